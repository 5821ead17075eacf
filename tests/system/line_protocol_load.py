#!/usr/bin/env python3
"""Much line protocol: exactness over millions of lines, and speed beside influxd 1.6.7 on the same data in the same run.

Exactness: every line has an id, and all its values follow from it; several connections, a third of the bodies as gzip; after a flush
DuckDB computes the values anew, by formulas of its own, and compares every row and a checksum of every column.

Speed: wrk posts bodies of the same three tags and three floats to both servers in turns, both synced before they answer, each turn on
an empty directory; every line has a time of its own. Lines a second while it lasts; CPU from /proc/PID/stat, until the last answer and
until the server has come to rest (arc: everything in Parquet; influxd: no more CPU used), both per million lines. Medians over the
turns. The floor is five times influxd's throughput at a tenth of its CPU a line.

Needs duckdb; the speed needs influxd and wrk (influxd.py says where they come from).
"""

import gzip
import http.client
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import time

import influxd
from lib import Problem, Results, Server, case, duckdb_module, note, parser, workdir

BASE_NS = 1767225600 * 10**9
TABLES = 3
COLUMNS = ["time", "host", "path", "n", "x", "y", "s", "up"]


# --- exactness

# What a line has, by its id: in line protocol here, in SQL below. Floats are fractions of powers of two, so that both are exact.
def lines(first, last):
    out = []
    for i in range(first, last):
        kind = i % 7
        if kind == 0:
            s = f'"q\\"{i % 97}\\\\"'
        elif kind == 1:
            s = f'"a, b=c d{i % 89}\ne"'
        elif kind == 2:
            s = '""'
        else:
            s = f'"v{i % 9973}"'
        path = f"\\=p\\,{i % 13}\\ x" if i % 5 == 0 else f"p{i % 211}"
        x = ((i * 7919) % 1000003) / 64 - 7000
        y = ((i * 2654435761) % 4294967296) / 4294967296
        out.append(
            f"t{i % TABLES},host=h{i % 1000},path={path} id={i}i,n={(i * 48271) % 2147483647 - 1073741823}i,x={x!r},y={y!r},s={s},up={'t' if i % 3 else 'FALSE'} {BASE_NS + i * 1000}\n"
        )
    return "".join(out).encode()


EXPECTED = f"""select id,
  make_timestamp({BASE_NS // 1000} + id) as time,
  'h' || (id % 1000) as host,
  case when id % 5 = 0 then '=p,' || (id % 13) || ' x' else 'p' || (id % 211) end as path,
  (id * 48271) % 2147483647 - 1073741823 as n,
  ((id * 7919) % 1000003)::double / 64 - 7000 as x,
  ((id * 2654435761) % 4294967296)::double / 4294967296 as y,
  case id % 7 when 0 then 'q"' || (id % 97) || chr(92) when 1 then 'a, b=c d' || (id % 89) || chr(10) || 'e' when 2 then '' else 'v' || (id % 9973) end as s,
  id % 3 <> 0 as up
from (select range as id from range({{rows}})) where id % {TABLES} = {{table}}"""


def send(port, share, shares, rows, size):
    """One connection's share of the bodies; returns (accepted bodies, gzipped bodies)."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    accepted = zipped = 0
    for k in range(share, (rows + size - 1) // size, shares):
        body, headers = lines(k * size, min((k + 1) * size, rows)), {}
        if k % 3 == 0:
            body, headers = gzip.compress(body, 1), {"Content-Encoding": "gzip"}
            zipped += 1
        while True:
            c.request("POST", "/write?db=exact", body, headers)
            r = c.getresponse()
            text = r.read()
            if r.status == 204:
                accepted += 1
                break
            if r.status not in (429, 503):
                raise Problem(f"body {k}: {r.status} {text[:300]!r}")
            time.sleep(int(r.getheader("Retry-After", "1")))
    return accepted, zipped


def exact(results, rows, connections, size, directory):
    duckdb = duckdb_module()
    if duckdb is None:
        results.skip("line-protocol-exact", "duckdb is not installed (pip install duckdb)")
        return
    for d in ("logs", "wal", "lake"):
        os.makedirs(os.path.join(directory, d), exist_ok=True)
    server = Server(f"{directory}/wal", f"{directory}/lake", f"{directory}/logs", {"log.level": "warn"}).start().wait_ready()
    started = time.monotonic()
    with multiprocessing.Pool(connections) as pool:
        sent = pool.starmap(send, [(server.port, i, connections, rows, size) for i in range(connections)])
    writing = time.monotonic() - started
    flushed = server.flush(timeout=300)
    server.stop()
    bodies, zipped = sum(a for a, _ in sent), sum(z for _, z in sent)
    db = duckdb.connect(config={"threads": 2})
    db.execute("set timezone = 'UTC'")
    problems, total, distinct = [], 0, 0
    for table in range(TABLES):
        files = f"{server.lake}/exact/t{table}/**/*.parquet"
        db.execute(f"create or replace view found as select * replace (time::timestamp as time) from read_parquet('{files}', hive_partitioning=false)")
        db.execute("create or replace temp view expected as " + EXPECTED.format(rows=rows, table=table))
        types = dict(db.execute("select column_name, column_type from (describe found)").fetchall())
        if types != {"time": "TIMESTAMP", "host": "VARCHAR", "path": "VARCHAR", "id": "BIGINT", "n": "BIGINT", "x": "DOUBLE", "y": "DOUBLE", "s": "VARCHAR", "up": "BOOLEAN"}:
            problems.append(f"t{table} has the types {types}")
        # Counts, sums, distinct times and a checksum of each column, from the files and from the formulas.
        measures = "count(*), sum(id), sum(n), count(distinct id), count(distinct time), min(time), max(time)" + "".join(f", sum(hash({c})::hugeint), count({c})" for c in ["id", *COLUMNS])
        a, b = (db.execute(f"select {measures} from {v}").fetchone() for v in ("found", "expected"))
        if a != b:
            problems.append(f"t{table}: {a} instead of {b}")
        same = " and ".join(f"f.{c} is not distinct from e.{c}" for c in COLUMNS)
        equal = db.execute(f"select count(*) from found f join expected e using (id) where {same}").fetchone()[0]
        if equal != b[0]:
            problems.append(f"t{table}: {equal} of {b[0]} rows are equal")
        total, distinct = total + a[0], distinct + a[4]
    good = not problems and total == rows == distinct and flushed["status"] == "success"
    results.check(
        good, "line-protocol-exact",
        f"{rows} lines in {bodies} bodies ({zipped} as gzip) over {connections} connections in {writing:.0f} s; DuckDB: {total} rows, {distinct} distinct times, every row and every column's checksum equal" + (f"; {problems[:3]}" if problems else ""),
    )


# --- speed


def write_bodies(directory, count, size, seed):
    """Three tables in turn; region and environment belong to the host, as they do in life: 3,000 series."""
    rng = random.Random(seed)
    os.makedirs(directory)
    total = 0
    for i in range(count):
        measurement = ("cpu", "mem", "disk")[i % 3]
        out = []
        for j in range(size):
            h = rng.randrange(1000)
            region, env = ("us-east", "us-west", "eu-central")[h % 3], ("prod", "staging", "dev")[h // 3 % 3]
            values = ",".join(f"usage_{k}={rng.uniform(0, 100)!r}" for k in ("idle", "user", "system"))
            out.append(f"{measurement},host=server{h:03},region={region},env={env} {values} 17672RRRRRRR{j:04}000\n")
        body = "".join(out).encode()
        total += len(body)
        with open(os.path.join(directory, f"{i}.lp"), "wb") as f:
            f.write(body)
    return total / (count * size)


def cpu(pid):
    """CPU seconds that a process has used, its threads included."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(url, bodies, size, seconds, connections, out):
    env = influxd.environment("wrk") | {"BODIES": bodies, "LINES": str(size), "FIRST": "0", "OUT": out}
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lp_post.lua")
    args = [influxd.find("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", script, url]
    before = os.times()
    p = subprocess.run(args, env=env, capture_output=True, text=True, check=False, timeout=seconds + 120)
    if p.returncode != 0 or not os.path.exists(out):
        raise Problem(f"wrk: {p.returncode} {p.stdout[-300:]} {p.stderr[-300:]}")
    after = os.times()
    with open(out) as f:
        r = json.load(f)
    os.remove(out)
    r["generator_cpu"] = after.children_user + after.children_system - before.children_user - before.children_system
    if r["refused"] or r["socket_errors"] or not r["accepted"]:
        raise Problem(f"{url}: {r}")
    return r


def settle(pid, quiet=2.0, most=60):
    """Waits until a process uses no CPU to speak of."""
    end, last, since = time.monotonic() + most, cpu(pid), time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.25)
        now = cpu(pid)
        if now - last > 0.05:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > quiet:
            return


def measured(pid, url, rest, *args):
    before = cpu(pid)
    r = wrk(url, *args)
    loaded = cpu(pid)
    rest()
    return r | {"cpu": loaded - before, "cpu_at_rest": cpu(pid) - before}


def arc_turn(directory, *args):
    for d in ("logs", "wal", "lake"):
        os.makedirs(os.path.join(directory, d))
    server = Server(f"{directory}/wal", f"{directory}/lake", f"{directory}/logs", {"log.level": "warn"}).start().wait_ready()
    r = measured(server.pid, server.url + "/write?db=speed", lambda: server.flush(timeout=300), *args)
    server.stop()
    return r


def influxd_turn(directory, *args):
    server = influxd.Influxd(directory).start()
    server.create("speed")
    r = measured(server.pid, server.url + "/write?db=speed", lambda: settle(server.pid), *args)
    # What it acknowledged can be counted, so that it was not compared with a server that throws lines away.
    found = sum(s["values"][0][1] for s in server.query("SELECT count(usage_idle) FROM cpu, mem, disk", "speed")[0]["series"])
    server.stop()
    if found < r["accepted"] * int(args[1]):
        raise Problem(f"influxd acknowledged {r['accepted'] * int(args[1])} lines and has {found}")
    return r


def speed(results, seconds, turns, size, connections, directory, seed):
    for tool in ("influxd", "wrk"):
        if influxd.find(tool) is None:
            results.skip(f"line-protocol-speed-{size}", influxd.missing(tool))
            return
    bodies = os.path.join(directory, f"bodies-{size}")
    width = write_bodies(bodies, 60_000 // size, size, seed)
    seen = {"influxd": [], "arc": []}
    for turn in range(turns):
        for name, f in (("influxd", influxd_turn), ("arc", arc_turn)):
            r = f(os.path.join(directory, f"{name}-{size}-{turn}"), bodies, size, seconds, connections, os.path.join(directory, "wrk.json"))
            n = r["accepted"] * size
            r |= {"rate": n / r["seconds"], "load": r["cpu"] / n * 1e6, "rest": r["cpu_at_rest"] / n * 1e6, "generator": r["generator_cpu"] / r["seconds"]}
            seen[name].append(r)
            note(f"{size} lines a body, turn {turn + 1}, {name}: {r['rate']:,.0f} lines/s, CPU-s per million lines {r['load']:.3f} under load, {r['rest']:.3f} to rest; p50 {r['p50_ms']:.1f} ms, p99 {r['p99_ms']:.1f} ms; generator {r['generator']:.2f} cores")
    median = {name: {k: statistics.median(r[k] for r in rs) for k in ("rate", "load", "rest", "generator", "p50_ms", "p99_ms")} for name, rs in seen.items()}
    a, i = median["arc"], median["influxd"]
    faster, cheaper, cheaper_rest = a["rate"] / i["rate"], i["load"] / a["load"], i["rest"] / a["rest"]
    text = " | ".join(f"{name} {m['rate']:,.0f} lines/s, {m['load']:.3f} CPU-s per million lines under load, {m['rest']:.3f} to rest, p50 {m['p50_ms']:.1f} ms, p99 {m['p99_ms']:.1f} ms" for name, m in median.items())
    results.check(
        faster >= 5 and cheaper >= 10, f"line-protocol-speed-{size}",
        f"{turns} turns of {seconds} s, {connections} connections, {size} lines of {width:.0f} bytes a body: {text}; arc has {faster:.1f} times the throughput at 1/{cheaper:.1f} of the CPU a line (to rest: 1/{cheaper_rest:.1f}); generator at most {max(i['generator'], a['generator']):.2f} cores",
    )


def main():
    p = parser(__doc__.split("\n", 1)[0], lines=10_000_000, connections=4, body=5000, seconds=10, turns=3)
    p.add_argument("--only", choices=["exact", "speed"])
    args = p.parse_args()
    results = Results()
    directory = workdir(args.keep)
    if args.only != "speed":
        case(results, "line-protocol-exact", exact, results, args.lines, args.connections, args.body, os.path.join(directory, "exact"))
    if args.only != "exact" and args.turns:
        for size in (1000, 5000):
            case(results, f"line-protocol-speed-{size}", speed, results, args.seconds, args.turns, size, 8, directory, args.seed)
    return results.end()


if __name__ == "__main__":
    main()
