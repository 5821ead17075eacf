// influx (InfluxDB v1): with one host it fails at once while that host is set aside, so the application repeats.

import {readFileSync} from 'node:fs'
import {createRequire} from 'node:module'
import {P, Pace, check, refuses, row, say, untilWritten} from './rows.mjs'

const {InfluxDB, FieldType} = createRequire(P.modules)('influx')

const client = (password = P.token) =>
  new InfluxDB({
    hosts: [{host: P.host, port: P.port, protocol: 'https', options: {ca: readFileSync(P.ca)}}],
    username: 'any',
    password,
    database: P.database,
    pool: {maxRetries: 5, requestTimeout: 5000},
    schema: [
      {
        measurement: P.table,
        tags: ['host', 'region'],
        fields: {id: FieldType.INTEGER, big: FieldType.INTEGER, value: FieldType.FLOAT, text: FieldType.STRING, ok: FieldType.BOOLEAN, maybe: FieldType.FLOAT},
      },
      {measurement: 'errors', tags: [], fields: {id: FieldType.INTEGER, a: FieldType.INTEGER}},
    ],
  })

function point(i) {
  const {tags, fields, ns} = row(i)
  return {measurement: P.table, tags, fields, timestamp: Number(ns / 1000n)}
}

// An answer below 500 is a RequestError, which has `res`; all else may come right.
const transient = (e) => e.res === undefined

async function load() {
  const c = client()
  const pace = new Pace(P.rate)
  for (let first = 0; first < P.rows; first += P.batch) {
    const last = Math.min(first + P.batch, P.rows)
    const points = []
    for (let i = first; i < last; i++) points.push(point(i))
    await untilWritten(() => c.writePoints(points, {precision: 'u'}), [[first, last - 1]], transient)
    say('ack', {rows: last - first})
    await pace.wait(last - first)
  }
}

async function checks() {
  const c = client()
  const [ping] = await c.ping(5000)
  check('ping', ping.online && ping.version, JSON.stringify({online: ping.online, version: ping.version}))
  await c.createDatabase(P.database)
  check('createDatabase', true, 'no error')
  const names = await c.getDatabaseNames().catch((e) => e)
  check('getDatabaseNames', Array.isArray(names), names)
  const at = (n, fields) => ({measurement: 'errors', fields, timestamp: n})
  await c.writePoints([at(1, {id: 1, a: 1})], {precision: 's'})
  const status = (code, ...words) => (e) => e.res?.statusCode === code && words.every((w) => e.message.includes(w))
  const text = (n, value) => ({measurement: 'untyped', fields: {a: value}, timestamp: n})
  await c.writePoints([text(1, 'text')], {precision: 's'})
  await refuses('type conflict', () => c.writePoints([text(2, 1), text(3, 'more')], {precision: 's'}), status(400, 'partial write', 'field type conflict', 'dropped=1'))
  await refuses('query', () => c.query('select * from errors'), status(400))
  say('stored', {ids: [1]})
  for (const [name, token, code] of [['wrong token', 'wrong', 401], ['read-only token', P.read_token, 403], ['token of another database', P.other_token, 403]])
    await refuses(name, () => client(token).writePoints([at(4, {id: 4})]), status(code))
}

await {load, checks}[P.mode]()
say('end')
process.exit(0)
