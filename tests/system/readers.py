#!/usr/bin/env python3
"""What other programs make of the files: every reader version of `reader_matrix/versions.py` over every class of file.

The server writes each class over HTTP: all types, NULL, NaN, infinities, -0.0, empty strings and one of 1 MB, in every codec and both
encodings. Each reader reads all rows, which must be those sent, bit by bit, and runs every filter twice: pushed down into the file, and
over all rows; both must find the same ids, and those of SQL. What a version is known not to read stands in KNOWN; anything else fails.
Each reader is installed once into a cache (`reader_matrix/versions.py` fills it); one that cannot be had is skipped by name.

`--readers polars-1.20,spark` takes those that begin so, `--codecs zstd` those codecs; `--cached 1` takes only what the cache has.
"""

import struct

from lib import *
from reader_matrix import versions
from reader_matrix.adapters import COLUMNS, canonical

CODECS = ["zstd", "none", "snappy", "gzip", "lz4"]
ENCODINGS = ["compatible", "compact"]
GROUP = 100
ROWS = 12 * GROUP
HOUR = 1_767_225_600_000_000
LONG = "L" * (1 << 20)

# What versions are known not to read: beginning of the reader's name, encodings of the class, and what the error contains. It is on
# docs/reading.md; a version that reads it after all is worth a line there, and fails here.
KNOWN = [
    ("spark-3.5", "compact", "BYTE_STREAM_SPLIT"),
    ("spark-4.2", "compact", "BYTE_STREAM_SPLIT"),
    # The number of BYTE_STREAM_SPLIT.
    ("fastparquet", "compact", "Encoding 9"),
]
# Filters that a version gets wrong by itself: beginning of the reader's name, operation.
KNOWN_FILTERS = [
    # It leaves out row groups whose minimum or maximum is in the list.
    ("fastparquet", "not in"),
]


# --- what is sent ------------------------------------------------------------------------------------------------------------------


def rows_sent():
    """Rows as COLUMNS has them. Each row group of 100 has a trait of its own."""
    rows = []
    for n in range(ROWS):
        group, i = divmod(n, GROUP)
        some = group != 6 and i % 7 != 3
        smooth = 50.0 + n * 0.25 + (n % 97) * 1.1
        whole = [-(1 << 63), (1 << 63) - 1, -1, 0][i % 4] if group == 1 else n * 3 - 500
        double = {
            1: [-1e100, 1e100, 5e-324, -0.5][i % 4],
            9: [float("-inf"), float("inf"), 1.7976931348623157e308, float("nan")][i % 4],
            2: [1.5, float("nan"), -2.5, 7e200][i % 4],
            3: float("nan"),
            4: [-0.0, 0.0][i % 2],
            7: -0.0,
            8: 0.0,
        }.get(group, n / 8 + 20)
        text = {1: ["", "a", "ÿ", "漢字"][i % 4], 5: LONG if i == 50 else "long " * 40 + str(i), 9: "", 10: "zz" * 100 + str(i)}.get(group, f"host {i % 5}")
        flag = group == 4 or (group != 5 and i % 2 == 0)
        blob = b"" if group == 1 else bytes([0xFF, i, 0])
        null = lambda v, some=some: v if some else None
        rows.append([n, HOUR + n * 1000, null(whole), null(double), smooth, null(text), null(flag), null(blob)])
    return rows


def pack(v):
    """MessagePack, with doubles bit by bit."""
    if v is None:
        return b"\xc0"
    if isinstance(v, bool):
        return b"\xc3" if v else b"\xc2"
    if isinstance(v, int):
        return b"\xd3" + struct.pack(">q", v)
    if isinstance(v, float):
        return b"\xcb" + struct.pack(">d", v)
    if isinstance(v, str):
        b = v.encode()
        return b"\xdb" + struct.pack(">I", len(b)) + b
    if isinstance(v, bytes):
        return b"\xc6" + struct.pack(">I", len(v)) + v
    if isinstance(v, list):
        return b"\xdd" + struct.pack(">I", len(v)) + b"".join(map(pack, v))
    return b"\xdf" + struct.pack(">I", len(v)) + b"".join(pack(k) + pack(x) for k, x in v.items())


FILTERS = [
    *({"column": "id", "op": op, "value": v} for op in ("=", "!=", "<", ">") for v in (0, 450, 1199)),
    {"column": "id", "op": "in", "value": [3, 333, 1100, 5000]},
    *({"column": "i", "op": op, "value": v} for op in ("=", "!=", "<", ">") for v in (-500, 0, 2000, (1 << 63) - 1)),
    {"column": "i", "op": "in", "value": [-1, 1300, 3097]},
    {"column": "i", "op": "not in", "value": [-1, 1300, 3097]},
    *({"column": "f", "op": op, "value": v} for op in ("=", "!=", "<", ">") for v in (0.0, -0.0, 1.5, 150.5, 1e150, 1e300, float("inf"))),
    {"column": "f", "op": "in", "value": [1.5, 40.125, -2.5]},
    {"column": "f", "op": "not in", "value": [1.5, 40.125, -2.5]},
    *({"column": "g", "op": op, "value": v} for op in ("=", "<", ">") for v in (50.0, 100.0, 352.0)),
    *({"column": "s", "op": op, "value": v} for op in ("=", "!=", "<", ">") for v in ("", "host 3", "host", "漢字", "m", "zz")),
    {"column": "s", "op": "in", "value": ["", "host 1", "nowhere"]},
    {"column": "s", "op": "not in", "value": ["", "host 1", "nowhere"]},
    {"column": "s", "op": "like", "value": "host 1%"},
    {"column": "s", "op": "like", "value": "long %"},
    {"column": "b", "op": "=", "value": True},
    {"column": "b", "op": "=", "value": False},
    *({"column": c, "op": "is null"} for c in ("i", "f", "s", "b", "y")),
    {"column": "y", "op": "=", "value": "ff0500"},
]


def expected_ids(rows, f):
    """The ids that a filter finds, and those about which engines differ: NaN in comparisons, and zeros of the two signs."""
    k, op, want = COLUMNS.index(f["column"]), f["op"], f.get("value")
    ids, open_to_taste = set(), set()
    for row in rows:
        v = row[k]
        if op == "is null":
            hit = v is None
        elif v is None:
            hit = False
        else:
            if f["column"] == "y":
                v = v.hex()
            zeros = f["column"] in ("f", "g") and v == 0 and (want == 0 if not isinstance(want, list) else 0 in want)
            if isinstance(v, float) and (v != v or zeros):
                open_to_taste.add(row[0])
            hit = {
                "=": lambda: v == want, "!=": lambda: v != want, "<": lambda: v < want, ">": lambda: v > want,
                "in": lambda: v in want, "not in": lambda: v not in want, "like": lambda: v.startswith(want.rstrip("%")),
            }[op]()
        if hit:
            ids.add(row[0])
    return ids, open_to_taste


def write_classes(d, rows, codecs):
    """{class: path of its only file}, written by the real server."""
    lake, out = os.path.join(d, "lake"), {}
    columns = {name: [r[k] for r in rows] for k, name in enumerate(COLUMNS)}
    settings = {"compaction.row_group_rows": str(GROUP)}
    server = Server(os.path.join(d, "wal"), lake, d, settings)
    for codec in codecs:
        for encoding in ENCODINGS:
            server.start(compaction__compression=codec, compaction__level="3", compaction__encoding=encoding).wait_ready()
            table = f"{codec}_{encoding}"
            status, _, reason = server.write(pack({"m": table, "columns": columns}), headers={"x-arc-time-unit": "us"}, timeout=60)
            if status != 204:
                raise Problem(f"{table}: {status} {reason}")
            server.flush()
            (out[f"{codec}, {encoding}"],) = glob.glob(f"{lake}/probe/{table}/**/*.parquet", recursive=True)
            server.stop()
    # Two hours of a table whose name looks like a file's.
    server.start().wait_ready()
    for hour in (7, 12):
        body = pack({"m": "cpu.parquet", "columns": {"time": [HOUR + hour * 3_600_000_000], "v": [hour]}})
        if server.write(body, headers={"x-arc-time-unit": "us"})[0] != 204:
            raise Problem("the table in two hours was not stored")
    server.flush()
    server.stop()
    (table,) = glob.glob(f"{lake}/probe/cpu*")
    return out, table


# --- what is seen ------------------------------------------------------------------------------------------------------------------


def known(reader, name):
    """What the error has to contain; None when the class must be read."""
    # Without compression nothing is gained by that encoding, so it is not there.
    found = [text for r, encodings, text in KNOWN if reader.startswith(r) and name.endswith(encodings) and not name.startswith("none")]
    return found[0] if found else None


def ask(reader, job):
    """The answers of a reader's own process, by class."""
    kind, _ = versions.READERS[reader]
    interpreter = versions.python(reader, fetch=job.pop("fetch"))
    # Nothing of it may come from this interpreter, and Java finds the environment's Python.
    env = {k: v for k, v in clean_env().items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"PYSPARK_PYTHON": interpreter}
    adapters = os.path.join(HERE, "reader_matrix", "adapters.py")
    p = subprocess.run([interpreter, "-I", adapters, kind], input=json.dumps(job), capture_output=True, text=True, timeout=900, env=env, check=False)
    answers = {x["class"]: x for x in map(json.loads, p.stdout.splitlines())}
    missing = [x["class"] for x in job["files"] + job["hive"] if x["class"] not in answers]
    for name in missing:
        answers[name] = {"error": f"ended with {p.returncode}: {p.stderr.strip()[-300:]}"}
    return answers


def one_missing(rows):
    """The rows for pandas, where a missing double is a NaN."""
    doubles = [COLUMNS.index("f"), COLUMNS.index("g")]
    return [["nan" if k in doubles and v is None else v for k, v in enumerate(r)] for r in rows]


def judge_rows(want, got):
    for a, b in zip(want, got):
        if a != b:
            column = next(c for c, x, y in zip(COLUMNS, a, b) if x != y)
            k = COLUMNS.index(column)
            return f"id {a[0]}: {column}: expected {str(a[k])[:60]}, found {str(b[k])[:60]}"
    return None if len(want) == len(got) else f"expected {len(want)} rows, found {len(got)}"


def judge_filters(reader, rows, answers):
    """Problems, and how many filters the reader has."""
    problems, ran = [], 0
    for f, a in zip(FILTERS, answers):
        what = f"{f['column']} {f['op']} {str(f.get('value', ''))[:40]}"
        if "none" in a or any(reader.startswith(r) and f["op"] == op for r, op in KNOWN_FILTERS):
            continue
        if "error" in a:
            problems.append(f"{what}: {a['error']}")
            continue
        ran += 1
        if a["pushed"] != a["loaded"]:
            lost, more = set(a["loaded"]) - set(a["pushed"]), set(a["pushed"]) - set(a["loaded"])
            problems.append(f"{what}: pushed down it finds {len(lost)} fewer and {len(more)} more, such as id {min(lost | more)}")
        ids, open_to_taste = expected_ids(rows, f)
        wrong = (ids ^ set(a["pushed"])) - open_to_taste
        if wrong:
            problems.append(f"{what}: {len(wrong)} ids are wrong, such as {min(wrong)}")
    return problems, ran


def print_tables(classes, table):
    """Reader by class: whether it reads it and how many filters it ran; then what it makes of `hour=07`."""
    print("\n| reader | " + " | ".join(classes) + " |\n|" + "---|" * (len(classes) + 1))
    for reader, cells in table.items():
        print(f"| {reader} | " + " | ".join(cells[c] for c in classes) + " |")
    print("\n| reader | `hour=07` and what filters on it find |\n|---|---|")
    for reader, cells in table.items():
        hive = cells["hive"]
        print(f"| {reader} | " + (", ".join(f"{k}: {v}" for k, v in hive.items()) if isinstance(hive, dict) else str(hive)) + " |")


def main():
    args = parser(__doc__.splitlines()[0], readers="", codecs=",".join(CODECS), cached=0).parse_args()
    results = Results()
    names = [n for n in versions.READERS if any(n.startswith(x) for x in args.readers.split(","))]
    d = workdir(args.keep)
    rows = rows_sent()
    want = canonical(rows)
    files, hive = write_classes(d, rows, args.codecs.split(","))
    results.check(os.path.basename(hive) == "cpu%2Eparquet", "readers: path of a table named like a file", os.path.basename(hive))
    job = {"files": [{"class": c, "path": p} for c, p in files.items()], "hive": [{"class": "hive", "path": hive}], "filters": FILTERS}
    table = {}
    for reader in names:
        started = time.monotonic()
        try:
            answers = ask(reader, {**job, "fetch": not args.cached})
        except versions.Unavailable as e:
            results.skip(f"readers: {reader}", e)
            continue
        except subprocess.TimeoutExpired:
            results.fail(f"readers: {reader}", "no answer within 900 s")
            continue
        table[reader] = {}
        for name in files:
            a = answers[name]
            if "error" in a:
                table[reader][name] = "no"
                text = known(reader, name)
                as_known = text is not None and text in a["error"]
                results.check(as_known, f"readers: {reader}: {name}", f"refused as known: {text}" if as_known else f"refused: {a['error'][:400]}")
                continue
            difference = judge_rows(one_missing(want) if reader.startswith("fastparquet") else want, a["rows"])
            problems, ran = judge_filters(reader, rows, a["filters"])
            bad = ([difference] if difference else []) + problems
            if known(reader, name):
                bad.append("it is read, and KNOWN says that it is not")
            table[reader][name] = "rows differ" if difference else f"{len(problems)} filters differ" if problems else f"yes, {ran}"
            if "encodings" in a:
                split = "BYTE_STREAM_SPLIT" in a["encodings"]
                if split != (name.endswith("compact") and not name.startswith("none")):
                    bad.append(f"encodings {a['encodings']}")
            results.check(not bad, f"readers: {reader}: {name}", "; ".join(bad[:4]) or f"{len(want)} rows, {ran} filters")
        results.check("hive" in answers["hive"], f"readers: {reader}: partition columns", json.dumps(answers["hive"])[:200])
        table[reader]["hive"] = answers["hive"].get("hive", answers["hive"].get("error"))
        note(f"{reader}: {time.monotonic() - started:.0f} s")
    print_tables(list(files), table)
    return results.end()


if __name__ == "__main__":
    sys.exit(main())
