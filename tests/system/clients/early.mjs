// Sends each request of a file with one client of Node and prints the status that it hears: early.mjs http|fetch CASES
import {readFileSync} from 'node:fs'
import http from 'node:http'
import https from 'node:https'

const viaHttp = (method, url, body, headers) =>
  new Promise((done, failed) => {
    const request = (url.startsWith('https') ? https : http).request(url, {method, headers: {...headers, 'content-length': body.length}}, (r) => {
      r.resume()
      r.on('end', () => done(r.statusCode))
      r.on('error', failed)
    })
    request.on('error', failed)
    request.end(body)
  })
const viaFetch = async (method, url, body, headers) => (await fetch(url, {method, headers, body})).status

const send = process.argv[2] === 'http' ? viaHttp : viaFetch
for (const line of readFileSync(process.argv[3], 'utf8').trimEnd().split('\n')) {
  const [name, method, url, file, headers] = line.split('\t')
  try {
    const late = new Promise((_, failed) => setTimeout(() => failed(new Error('no answer in 60 s')), 60000).unref())
    console.log(`${name}\t${await Promise.race([send(method, url, readFileSync(file), JSON.parse(headers)), late])}`)
  } catch (e) {
    console.log(`${name}\t${e.name}: ${e.message} ${e.cause ?? ''}`.replaceAll('\n', ' '))
  }
}
process.exit(0)
