#!/usr/bin/env python3
"""Line protocol against two oracles: influxd 1.6.7 here, the crate influxdb-line-protocol in tests/it/line_protocol_cases.rs.

Every case of lp_cases.py goes to both servers as a request of its own and again in batches; what was answered and what can be read
back is compared, type by type: influxd by `SELECT`, arc by a flush and pyarrow. What arc must make of a case is written in
tests/golden/line_protocol_cases.jsonl; a case in which influxd makes something else of it carries the names of the rules that say
why, and docs/line-protocol.md explains each of them. Any other difference is a failure, and so is a difference that is gone.

`--record` writes that file from lp_model.py and a run of influxd; `--crate FILE` takes the crate's verdicts that the test wrote.
Needs influxd (see influxd.py) and pyarrow; without influxd arc is still held against the file.
"""

import glob
import http.client
import json
import os
import re
import time
import urllib.parse

import lp_model
from influxd import Influxd, find, missing
from lib import REPO, Results, Server, case, note, parser, workdir
from lp_cases import cases

GOLDEN = os.path.join(REPO, "tests", "golden", "line_protocol_cases.jsonl")
PAGE = os.path.join(REPO, "docs", "line-protocol.md")
KINDS = {"float": "f", "integer": "i", "string": "s", "boolean": "b", "?": "?"}
# Rules of lp_model.py on which only the crate parts from arc, and on which both do.
CRATE_RULES = {"comma", "duplicate-tag", "equals-in-tag-value", "no-digit", "overflow", "trailing-space", "two-backslashes"}
SHARED_RULES = {
    "after-quote", "bom", "case", "comment", "conflict", "control", "crlf", "escaped-hash", "escaped-newline", "hive", "invisible", "name-limits", "stray-quote", "tab",
    "tag-and-field", "time-name", "unpaired-quote", "unsigned",
}
# influxd slows down with the number of its databases.
CASES_PER_INFLUXD = 250


def in_order(rows):
    return sorted(rows, key=lambda r: json.dumps(r, sort_keys=True))


def number(t):
    """A time as JSON readers with 64-bit integers take it."""
    return t if t is None or -(1 << 63) <= t < 1 << 63 else str(t)


# --- the file


def model(body, precision=""):
    bad, rows, notes = lp_model.parse(body, precision)
    return [400 if bad else 204, in_order([[t, tags, fields, number(time)] for t, tags, fields, time in rows])], bad, notes


def encode(c):
    out = {"id": c.id}
    try:
        out["body"] = c.body.decode()
    except UnicodeDecodeError:
        out["hex"] = c.body.hex()
    if c.precision:
        out["precision"] = c.precision
    return out


def load():
    with open(GOLDEN) as f:
        out = []
        for line in f:
            x = json.loads(line)
            x["bytes"] = bytes.fromhex(x["hex"]) if "hex" in x else x["body"].encode()
            x.setdefault("precision", "")
            # Left out where they are the same.
            x.setdefault("influxd", x["arc"])
            out.append(x)
        return out


def explained(kind):
    """The names that the page has a line for: `| \\`name\\` |` in its table of influxd or of the crate."""
    with open(PAGE) as f:
        text = f.read()
    part = text.split(f"<!-- {kind} -->", 1)[1].split("<!-- end -->", 1)[0]
    return set(re.findall(r"^\| `([a-z0-9-]+)` \|", part, re.M))


# --- influxd


def influxd_rows(server, database, since, until, unit):
    """Rows as the file has them; a time between `since` and `until` is "now", which influxd cuts to the precision of the request."""
    out = []
    for table, tags, fields, t in server.rows(database):
        typed = {k: lp_model.typed(KINDS[kind], v) for k, (kind, v) in fields.items()}
        cut = unit > 1 and since // unit <= t // unit <= until // unit and t % unit == 0
        out.append([table, tags, typed, None if since <= t <= until else "now, cut" if cut else t])
    return in_order(out)


class Influxds:
    """A new influxd every so often."""

    def __init__(self):
        self.used, self.server = 0, None

    def next(self):
        if self.server is None or self.used >= CASES_PER_INFLUXD:
            self.stop()
            self.server, self.used = Influxd(workdir()).start(), 0
        self.used += 1
        database = f"d{self.used}"
        self.server.create(database)
        return self.server, database

    def stop(self):
        if self.server:
            self.server.stop()
            self.server = None

    def ask(self, body, precision):
        server, database = self.next()
        since = time.time_ns()
        status, error = server.write(database, body, precision)
        return [status, influxd_rows(server, database, since, time.time_ns(), lp_model.UNITS[precision])], error


# --- arc


def arc_write(connection, database, body, precision):
    query = urllib.parse.urlencode({"db": database} | ({"precision": precision} if precision else {}))
    connection.request("POST", "/write?" + query, body)
    r = connection.getresponse()
    return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()


def arc_tables(lake, database):
    """{table: [({column: "type:value"}, microseconds)]} of all files, and what is wrong with their layout."""
    import pyarrow.parquet as pq

    kinds = {"int64": "i", "double": "f", "string": "s", "bool": "b"}
    out, columns = {}, {}
    for path in glob.glob(os.path.join(glob.escape(os.path.join(lake, database)), "**", "*.parquet"), recursive=True):
        f = pq.ParquetFile(path)
        table = f.metadata.metadata[b"arc.table"].decode()
        data = f.read()
        names = data.schema.names
        columns.setdefault(table, set()).add(tuple(names))
        times = data.column(0).cast("int64").to_pylist()
        values = [(n, kinds[str(data.schema.field(i).type)], data.column(i).to_pylist()) for i, n in enumerate(names) if i > 0]
        for row, t in enumerate(times):
            out.setdefault(table, []).append(({n: lp_model.typed(k, v[row]) for n, k, v in values if v[row] is not None}, t))
    return out, columns


def arc_expected(rows):
    """The file's rows as Parquet has them: columns without the distinction of tags and fields, microseconds."""
    out = {}
    for table, tags, fields, t in rows:
        columns = {k: f"s:{v}" for k, v in tags.items()} | fields
        out.setdefault(table, []).append((columns, None if t is None else int(t) // 1000))
    return out


def arc_difference(lake, database, rows, since, until):
    """None, or how what was read differs from what was expected."""
    found, layouts = arc_tables(lake, database)
    found = {table: in_order([[c, None if since <= t <= until else t] for c, t in rs]) for table, rs in found.items()}
    expected = {table: in_order([[c, t] for c, t in rs]) for table, rs in arc_expected(rows).items()}
    if found != expected:
        return f"read back {found}, expected {expected}"
    for table, orders in layouts.items():
        tags = sorted({k for r in rows if r[0] == table for k in r[1]}, key=str.encode)
        fields = sorted({k for r in rows if r[0] == table for k in r[2]}, key=str.encode)
        if set(tags) & set(fields):
            continue  # A string field in a tag's column: what came first decides.
        for order in orders:
            wanted = ["time", *[k for k in tags if k in order], *[k for k in fields if k in order]]
            if list(order) != wanted:
                return f"table {table!r} has the columns {list(order)}, expected {wanted}: time, tags, fields"
    return None


def arc_answer_wrong(status, headers, data, bad, rows):
    """None, or what is wrong with arc's answer to a v1 write with these bad lines (by number) and that many rows stored."""
    if status != (400 if bad else 204):
        return f"answered {status} {data[:200]!r}, expected {400 if bad else 204}"
    if not bad:
        return None if data == b"" else f"a 204 with the body {data[:100]!r}"
    try:
        body = json.loads(data)
    except ValueError:
        return f"no JSON: {data[:200]!r}"
    if ("partial write" in body["error"]) != (rows > 0):
        return f"{rows} rows stored, and the error is {body['error']!r}"
    if not headers.get("x-influxdb-error"):
        return "no X-Influxdb-Error"
    numbers = [x["line_number"] for x in body["data"]]
    if numbers != bad[: len(numbers)] or len(numbers) < min(len(bad), 20) or body["line"] != bad[0]:
        return f"bad lines are {bad}, the answer says {body['line']} and {numbers}"
    return None


# --- the tests


def check_file(results, golden):
    """The file is what the generator and the model make today, and the page explains every difference."""
    fresh = cases()
    stale = []
    for c, x in zip(fresh, golden):
        expected, _, _ = model(c.body, c.precision)
        if (c.id, c.body, c.precision) != (x["id"], x["bytes"], x["precision"]) or expected != x["arc"]:
            stale.append(c.id)
    if len(fresh) != len(golden):
        stale.append(f"{len(golden)} of {len(fresh)} cases")
    results.check(not stale, "line-protocol-file", f"{len(golden)} cases as lp_cases.py and lp_model.py make them" + (f", but not {stale[:5]}; run --record" if stale else ""))
    for kind, why in (("influxd", "why"), ("crate", "why_crate")):
        used, known = {w for x in golden for w in x.get(why, [])}, explained(kind)
        unexplained = [x["id"] for x in golden if x.get(kind, x["arc"]) != x["arc"] and not x.get(why)]
        good = used == known and not unexplained
        n = sum(x.get(kind, x["arc"]) != x["arc"] for x in golden)
        results.check(good, f"line-protocol-differences-{kind}", f"{n} cases differ, by {len(used)} rules; not in the page {sorted(used - known)}, only in the page {sorted(known - used)}, without a rule {unexplained[:5]}")


def check_influxd(results, golden):
    servers = Influxds()
    wrong = []
    for x in golden:
        got, error = servers.ask(x["bytes"], x["precision"])
        if got != x["influxd"]:
            wrong.append(x["id"])
            note(f"{x['id']} {x['bytes'][:200]!r}: influxd {got} {error!r}, the file has {x['influxd']}")
    servers.stop()
    same = sum(x["influxd"] == x["arc"] for x in golden)
    results.check(not wrong, "line-protocol-influxd", f"{len(golden)} cases as recorded, {same} of them as arc's; different now: {wrong[:10]}")


def start_arc(directory):
    for d in ("logs", "wal", "lake"):
        os.makedirs(os.path.join(directory, d), exist_ok=True)
    return Server(f"{directory}/wal", f"{directory}/lake", f"{directory}/logs", {"log.level": "warn"}).start().wait_ready()


def judge(name, results, what, wrong, details):
    for at, body, why in wrong[:40]:
        note(f"{at} {body[:300]!r}: {why}")
    results.check(not wrong, name, f"{what}; {details}" + (f"; {len(wrong)} wrong: {[at for at, _, _ in wrong[:10]]}" if wrong else ""))


def check_arc(results, golden, directory):
    server = start_arc(directory)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    wrong, sent = [], []
    for i, x in enumerate(golden):
        _, bad, _ = model(x["bytes"], x["precision"])
        since = time.time_ns() // 1000
        status, headers, data = arc_write(connection, f"c{i}", x["bytes"], x["precision"])
        sent.append((since, time.time_ns() // 1000))
        why = arc_answer_wrong(status, headers, data, bad, len(x["arc"][1]))
        if why:
            wrong.append((x["id"], x["bytes"], why))
    server.flush(timeout=120)
    for i, x in enumerate(golden):
        why = arc_difference(server.lake, f"c{i}", x["arc"][1], *sent[i])
        if why:
            wrong.append((x["id"], x["bytes"], why))
    rows = sum(len(x["arc"][1]) for x in golden)
    judge("line-protocol-arc", results, f"{len(golden)} requests", wrong, f"{rows} rows read back equal, {sum(x['arc'][0] == 400 for x in golden)} requests with bad lines")
    server.stop()


ROUTES = {
    "v2": ("/api/v2/write?bucket={}&org=any", {}),
    "v3": ("/api/v3/write_lp?db={}&precision=nanosecond", {}),
    "arc": ("/api/v1/write/line-protocol", {"x-arc-database": "{}"}),
}


def check_routes(results, golden, directory):
    """The other three routes store the same rows of the same bodies; their answers have their own form."""
    server = start_arc(os.path.join(directory, "routes"))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    wrong, sent = [], []
    chosen = [x for x in golden if not x["precision"]]
    for i, x in enumerate(chosen):
        _, bad, notes = model(x["bytes"])
        for name, (path, headers) in ROUTES.items():
            database = f"{name}{i}"
            since = time.time_ns() // 1000
            connection.request("POST", path.format(database), x["bytes"], {k: v.format(database) for k, v in headers.items()})
            r = connection.getresponse()
            data = r.read()
            sent.append((database, x, since, time.time_ns() // 1000))
            allowed = {204} if not bad else {400, 422} if "conflict" in notes and name != "v3" else {400}
            if r.status not in allowed or (r.status == 204) != (data == b""):
                wrong.append((f"{name} {x['id']}", x["bytes"], f"answered {r.status} {data[:200]!r}, expected {allowed}"))
            elif bad and [e["line_number"] for e in json.loads(data)["data"]][:20] != bad[:20]:
                wrong.append((f"{name} {x['id']}", x["bytes"], f"bad lines are {bad}, the answer is {data[:300]!r}"))
    server.flush(timeout=120)
    for database, x, since, until in sent:
        why = arc_difference(server.lake, database, x["arc"][1], since, until)
        if why:
            wrong.append((f"{database} {x['id']}", x["bytes"], why))
    judge("line-protocol-routes", results, f"{len(sent)} requests to {len(ROUTES)} routes", wrong, f"{len(ROUTES) * sum(len(x['arc'][1]) for x in chosen)} rows read back equal")
    server.stop()


def batches(golden, size, for_influxd):
    """Bodies joined by newlines, so that no case of a batch depends on another: no two types for one column, no tag that is a field
    elsewhere, no line whose end depends on what follows it; for influxd also no point twice, and no refused line with quotes, which
    may take the next lines along (rule `stray-quote`)."""
    waiting = []
    for x in golden:
        odd_quotes = x["bytes"].replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"') % 2
        # Whether it is stored depends on the type that its column has got from earlier cases.
        large = re.search(rb"[0-9]{19}u", x["bytes"])
        stray = for_influxd and x["arc"][0] == 400 and b'"' in x["bytes"]
        if not x["precision"] and not stray and not large and not odd_quotes and not x["bytes"].rstrip(b"\r\n").endswith(b"\\") and not x["bytes"].endswith(b"\r"):
            waiting.append(x)
    while waiting:
        batch, left, kinds, points, names = [], [], {}, set(), {}
        for x in waiting:
            own_kinds, own_points, own_names = {}, [], {}
            for table, tags, fields, t in x["arc"][1]:
                own_points.append((table, json.dumps(tags, sort_keys=True), t if t is None else int(t)))
                for k, kind in [*((k, "tag") for k in tags), *((k, v.split(":", 1)[0]) for k, v in fields.items())]:
                    own_kinds[table, k] = kind
                    own_names[table, k.lower()] = k
            clash = any(kinds.get(k, v) != v for k, v in own_kinds.items()) or (for_influxd and any(p in points for p in own_points)) or any(names.get(k, v) != v for k, v in own_names.items())
            if clash or len(batch) >= size:
                left.append(x)
                continue
            kinds.update(own_kinds)
            points.update(own_points)
            names.update(own_names)
            batch.append(x)
        yield batch
        waiting = left


def check_batches(results, golden, directory, with_influxd):
    """Good and bad lines together. Where the servers agree on each case alone, they must agree on the batch."""
    server = start_arc(os.path.join(directory, "batches"))
    servers = Influxds() if with_influxd else None
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    wrong, sent, n, lines = [], [], 0, 0
    agreed = [x for x in golden if x["influxd"] == x["arc"]]
    disputed = [x for x in golden if x["influxd"] != x["arc"]]
    for both, group in ((True, agreed), (False, disputed), (False, golden)):
        for batch in batches(group, 100, both):
            body = b"\n".join(x["bytes"] for x in batch)
            expected, bad, _ = model(body)
            # The model knows nothing of batches: alone and together must come to the same.
            alone = in_order([r for x in batch for r in x["arc"][1]])
            if expected[1] != alone:
                wrong.append((f"batch of {batch[0]['id']}", body, f"the model makes {expected[1]} of it, and {alone} of its cases"))
                continue
            since = time.time_ns() // 1000
            status, headers, data = arc_write(connection, f"b{n}", body, "")
            sent.append((f"b{n}", batch[0]["id"], body, expected[1], since, time.time_ns() // 1000))
            why = arc_answer_wrong(status, headers, data, bad, len(expected[1]))
            if both and servers:
                got, error = servers.ask(body, "")
                if got != expected:
                    why = f"influxd makes {got} {error[:300]!r} of it, expected {expected}"
            if why:
                wrong.append((f"batch of {batch[0]['id']}", body, why))
            n, lines = n + 1, lines + body.count(b"\n") + 1
    server.flush(timeout=120)
    for database, first, body, rows, since, until in sent:
        why = arc_difference(server.lake, database, rows, since, until)
        if why:
            wrong.append((f"batch of {first}", body, why))
    if servers:
        servers.stop()
    judge("line-protocol-batches", results, f"{n} batches, {lines} lines", wrong, f"{sum(len(s[3]) for s in sent)} rows read back equal" + (", influxd the same where it agrees on the cases" if servers else ""))
    server.stop()


def record(crate_file):
    """Writes the file anew; what has no rule is printed and left without one. influxd is asked about new cases only: whether the old
    ones are as they were is what the test finds out."""
    known = {(x["bytes"], x["precision"]): x for x in load()} if os.path.exists(GOLDEN) else {}
    crate = None
    if crate_file:
        with open(crate_file) as f:
            crate = {x["id"]: x["crate"] for x in map(json.loads, f)}
    servers = Influxds()
    lost, lines = 0, []
    for c in cases():
        out = encode(c)
        out["arc"], _, notes = model(c.body, c.precision)
        old = known.get((c.body, c.precision))
        got, error = (old["influxd"], "") if old else servers.ask(c.body, c.precision)
        if got != out["arc"]:
            out["influxd"] = got
            rules = sorted(notes - CRATE_RULES)
            if rules:
                out["why"] = rules
            else:
                lost += 1
                note(f"no rule: {c.id} {c.body[:200]!r}: influxd {got} {error!r}, arc {out['arc']}")
        by_crate = crate.get(c.id) if crate is not None else (old or {}).get("crate")
        if by_crate is not None and by_crate != out["arc"]:
            out["crate"] = by_crate
            rules = sorted(notes & (CRATE_RULES | SHARED_RULES))
            if rules:
                out["why_crate"] = rules
            else:
                lost += 1
                note(f"no rule: {c.id} {c.body[:200]!r}: crate {by_crate}, arc {out['arc']}")
        lines.append(json.dumps(out, ensure_ascii=True, separators=(",", ":")))
    servers.stop()
    with open(GOLDEN, "w") as f:
        f.write("\n".join(lines) + "\n")
    note(f"{len(lines)} cases, {lost} differences without a rule")


def main():
    p = parser(__doc__.split("\n", 1)[0], every=1)
    p.add_argument("--record", action="store_true")
    p.add_argument("--crate")
    p.add_argument("--only", default="file,influxd,arc,routes,batches")
    args = p.parse_args()
    if args.record:
        return record(args.crate)
    results = Results()
    golden = load()
    only = args.only.split(",")
    if "file" in only:
        case(results, "line-protocol-file", check_file, results, golden)
    sample = golden[args.seed % args.every :: args.every]
    with_influxd = find("influxd") is not None
    if "influxd" not in only:
        pass
    elif with_influxd:
        case(results, "line-protocol-influxd", check_influxd, results, sample)
    else:
        results.skip("line-protocol-influxd", missing("influxd"))
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        results.skip("line-protocol-arc", "pyarrow is not installed (pip install pyarrow)")
        return results.end()
    directory = workdir(args.keep)
    if "arc" in only:
        case(results, "line-protocol-arc", check_arc, results, golden, directory)
    if "routes" in only:
        case(results, "line-protocol-routes", check_routes, results, golden[args.seed % 4 :: 4], directory)
    if "batches" in only:
        case(results, "line-protocol-batches", check_batches, results, sample, directory, with_influxd)
    return results.end()


if __name__ == "__main__":
    main()
