// The same as rows.py, for the clients in JavaScript.

export const P = JSON.parse(process.argv[2])
const T0_US = 1767225600000000n
const HOSTS = ['web-1', 'web 2', 'web,3', 'web=4', 'höst 5', "web'6", 'web"7', '日本']

export function row(i) {
  const tags = {host: HOSTS[i % HOSTS.length]}
  if (i % 3) tags.region = `r${i % 5}`
  const special = {1: 5e-324, 2: 1.7976931348623157e308, 3: 1e21 * i, 4: -1.5e-7, 5: i}
  const fields = {
    id: i,
    big: (i % 2 ? i : -i) * 1000003,
    value: special[i % 1000] ?? i / 7,
    text: i % 97 ? `say "${i}", a=b c\\d é` : `two\nlines ${i}`,
    ok: i % 2 === 0,
  }
  if (i % 5 === 0) fields.maybe = i / 2 + 0.25
  return {tags, fields, ns: (T0_US + BigInt(i) * 250000n + BigInt(i % 7)) * 1000n}
}

export const say = (ev, more) => process.stdout.write(JSON.stringify({ev, ...more}) + '\n')
export const check = (name, ok, details) => say('check', {name, ok: Boolean(ok), details: String(details).slice(0, 600)})
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms))

export async function refuses(name, f, wanted) {
  try {
    const got = await f()
    check(name, false, `no error, answered ${JSON.stringify(got)}`)
  } catch (e) {
    const text = `${e.constructor.name}: ${e.message}`.replace(/\s+/g, ' ')
    check(name, wanted(e), text)
  }
}

export function ranges(ids) {
  const out = []
  for (const i of ids.sort((a, b) => a - b)) {
    if (out.length && out.at(-1)[1] === i - 1) out.at(-1)[1] = i
    else out.push([i, i])
  }
  return out
}

export const idsOf = (lines) => ranges([...lines.join('\n').matchAll(/[ ,]id=(\d+)i/g)].map((m) => Number(m[1])))

export function kindOf(error) {
  if (error.code === 'ECONNREFUSED' || error.message?.includes('ECONNREFUSED')) return 'unreached'
  if (error.message === 'No host available') return 'unreached'
  if (error.message === 'Service Unavailable') return 'refused'
  if (error.statusCode || error.res) return String(error.body ?? error.message).includes('unknown_outcome') ? 'unclear' : 'refused'
  return 'unclear'
}

export class Pace {
  constructor(rate) {
    this.rate = rate
    this.due = performance.now()
  }
  async wait(rows) {
    const now = performance.now()
    this.due = Math.max(this.due + (rows / this.rate) * 1000, now)
    await sleep(this.due - now)
  }
}

// The loop that an application needs around a client that does not retry by itself.
export async function untilWritten(write, ids, transient) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 2000)) {
    try {
      return await write()
    } catch (e) {
      if (!transient(e)) throw e
      say('again', {kind: kindOf(e), why: `${e.constructor.name}: ${e.message}`.slice(0, 200), ids})
      await sleep(wait)
    }
  }
}
