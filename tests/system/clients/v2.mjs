// @influxdata/influxdb-client (InfluxDB v2): its write buffer and its retry buffer.

import {readFileSync} from 'node:fs'
import {createRequire} from 'node:module'
import {P, Pace, check, idsOf, kindOf, refuses, row, say, sleep} from './rows.mjs'

const {InfluxDB, Point, HttpError} = createRequire(P.modules)('@influxdata/influxdb-client')

const client = (token = P.token) => new InfluxDB({url: P.url, token, timeout: 5000, transportOptions: {ca: readFileSync(P.ca)}})

function point(i) {
  const {tags, fields, ns} = row(i)
  const p = new Point(P.table).timestamp(String(ns))
  for (const [k, v] of Object.entries(tags)) p.tag(k, v)
  p.intField('id', fields.id).intField('big', fields.big).floatField('value', fields.value)
  p.stringField('text', fields.text).booleanField('ok', fields.ok)
  if (fields.maybe !== undefined) p.floatField('maybe', fields.maybe)
  return p
}

async function load() {
  let settled = 0
  const options = {
    batchSize: P.batch,
    flushInterval: 500,
    maxBufferLines: 1000000,
    maxRetries: 1000,
    maxRetryTime: 600000,
    minRetryDelay: 500,
    maxRetryDelay: 4000,
    // The client takes `Retry-After: 1` for one millisecond; what it waits after a 503 is the jitter.
    retryJitter: 2000,
    gzipThreshold: 1000,
    writeSuccess(lines) {
      settled += lines.length
      say('ack', {rows: lines.length})
    },
    writeFailed(error, lines, attempt) {
      const final = attempt > options.maxRetries || error.message === 'Max retry time exceeded.' || (error instanceof HttpError && error.statusCode < 429)
      if (final) settled += lines.length
      say(final ? 'lost' : 'again', {kind: kindOf(error), why: `${error.constructor.name}: ${error.message} ${error.code ?? ''}`.slice(0, 200), ids: idsOf(lines)})
    },
    writeRetrySkipped({lines}) {
      settled += lines.length
      say('lost', {why: 'the retry buffer was full', ids: idsOf(lines)})
    },
  }
  const api = client().getWriteApi('any', P.database, 'ns', options)
  const pace = new Pace(P.rate)
  for (let i = 0; i < P.rows; i++) {
    api.writePoint(point(i))
    if (i % 100 === 99) await pace.wait(100)
  }
  await api.flush().catch(() => undefined)
  // close() gives up what waits for a retry or is under way, so all must be settled before.
  while (settled < P.rows) await sleep(50)
  await api.close()
}

async function checks() {
  const api = (token, bucket = P.database) => client(token).getWriteApi('any', bucket, 's', {maxRetries: 0})
  const write = async (lines, ...where) => {
    const a = api(...where)
    a.writeRecords(lines)
    await a.flush()
    await a.close()
    return 'written'
  }
  const http = (status, ...words) => (e) => e instanceof HttpError && e.statusCode === status && words.every((w) => e.message.includes(w))
  check('write', (await write(['errors a=1i,id=1i 1'])) === 'written', 'written')
  await refuses('bad line', () => write(['errors a=2i,id=2i 2', 'errors a= 3', 'errors a=3i,id=3i 4']), http(400, 'line 2'))
  await refuses('type conflict', () => write(['errors a="text",id=4i 5', 'errors a=5i,id=5i 6']), http(422, 'a'))
  say('stored', {ids: [1, 2, 3, 5]})
  for (const [name, token, status] of [['wrong token', 'wrong', 401], ['read-only token', P.read_token, 403], ['token of another database', P.other_token, 403]])
    await refuses(name, () => write(['errors a=6i,id=6i 7'], token), http(status))
}

await {load, checks}[P.mode]()
say('end')
