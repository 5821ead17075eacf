// @influxdata/influxdb3-client (InfluxDB 3): `/api/v2/write`, and `/api/v3/write_lp` with noSync. It does not retry: the application does.

import {readFileSync} from 'node:fs'
import {createRequire} from 'node:module'
import {P, Pace, check, refuses, row, say, untilWritten} from './rows.mjs'

const {InfluxDBClient, Point, HttpError, setLogger} = createRequire(P.modules)('@influxdata/influxdb3-client')
setLogger({error() {}, warn() {}})

const client = (token = P.token) =>
  new InfluxDBClient({host: P.url, token, database: P.database, writeTimeout: 5000, transportOptions: {ca: readFileSync(P.ca)}, writeOptions: {gzipThreshold: 1000}})

function point(i) {
  const {tags, fields, ns} = row(i)
  const p = Point.measurement(P.table).setTimestamp(String(ns))
  for (const [k, v] of Object.entries(tags)) p.setTag(k, v)
  p.setIntegerField('id', fields.id).setIntegerField('big', fields.big).setFloatField('value', fields.value)
  p.setStringField('text', fields.text).setBooleanField('ok', fields.ok)
  if (fields.maybe !== undefined) p.setFloatField('maybe', fields.maybe)
  return p
}

const transient = (e) => !(e instanceof HttpError) || e.statusCode >= 429

async function load() {
  const c = client()
  const pace = new Pace(P.rate)
  // Every other batch by the v3 route.
  let noSync = false
  for (let first = 0; first < P.rows; first += P.batch) {
    const last = Math.min(first + P.batch, P.rows)
    const points = []
    for (let i = first; i < last; i++) points.push(point(i))
    noSync = !noSync
    await untilWritten(() => c.write(points, P.database, undefined, {noSync}), [[first, last - 1]], transient)
    say('ack', {rows: last - first})
    await pace.wait(last - first)
  }
  await c.close()
}

async function checks() {
  const c = client()
  const version = await c.getServerVersion()
  check('server version', version, version)
  const write = (lines, c1 = c, options = {}) => c1.write(lines, P.database, undefined, {precision: 's', ...options}).then(() => 'written')
  const http = (status, ...words) => (e) => e instanceof HttpError && e.statusCode === status && words.every((w) => `${e.message} ${e.body}`.includes(w))
  check('write', (await write(['errors a=1i,id=1i 1'])) === 'written', 'written')
  await refuses('bad line, v2 route', () => write(['errors a=2i,id=2i 2', 'errors a= 3', 'errors a=3i,id=3i 4']), http(400, 'line 2'))
  await refuses('bad line, v3 route', () => write(['errors a=4i,id=4i 2', 'errors a= 3', 'errors a=5i,id=5i 4'], c, {noSync: true}), http(400, 'partial write of line protocol occurred', '"line_number":2'))
  await refuses('type conflict, v2 route', () => write(['errors a="text",id=6i 5', 'errors a=7i,id=7i 6']), http(422))
  say('stored', {ids: [1, 2, 3, 4, 5, 7]})
  for (const [name, token, status] of [['wrong token', 'wrong', 401], ['read-only token', P.read_token, 403], ['token of another database', P.other_token, 403]])
    await refuses(name, () => write(['errors a=8i,id=8i 7'], client(token)), http(status))
}

await {load, checks}[P.mode]()
say('end')
process.exit(0)
