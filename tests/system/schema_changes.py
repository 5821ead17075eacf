#!/usr/bin/env python3
"""The same rows and types by pyarrow, DuckDB and Polars, also for a table whose columns were added and widened over time.

Needs pyarrow, duckdb, polars and msgpack from PyPI; prints SKIP and the reason without them.
"""
import json, math, os, signal, socket, subprocess, sys, tempfile, time, urllib.request

NAME = "schema_changes"
try:
    import duckdb, msgpack, polars as pl, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq
except ImportError as e:
    print(f"SKIP {NAME}: {e.name} is not installed (pip install pyarrow duckdb polars msgpack)")
    sys.exit(0)

ARC = os.environ.get("ARC_BIN", os.path.join(os.path.dirname(__file__), "../../target/release/arc"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(base, path, body=b"", headers=None):
    with urllib.request.urlopen(urllib.request.Request(base + path, data=body, headers=headers or {}, method="POST"), timeout=60) as r:
        return r.status, r.read()


def canonical(rows):
    """Rows as sorted lists of text: NaN equals NaN, 1 is not 1.0."""
    def cell(v):
        if isinstance(v, float):
            return "nan" if math.isnan(v) else f"f{v!r}"
        if isinstance(v, (bytes, bytearray, memoryview)):
            return "b" + bytes(v).hex()
        if hasattr(v, "timestamp"):
            return f"t{round(v.timestamp() * 1e6)}"
        return repr(v)
    return sorted([{k: cell(v) for k, v in r.items() if v is not None} for r in rows], key=lambda r: json.dumps(r, sort_keys=True))


def main():
    fails = []
    with tempfile.TemporaryDirectory() as d:
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        p = subprocess.Popen([ARC, "serve", "--set", f"server.port={port}"], cwd=d, stdout=subprocess.DEVNULL, stderr=open(f"{d}/err", "wb"))
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(base + "/ready", timeout=1)
                    break
                except OSError:
                    time.sleep(0.05)
            t0 = 1767225600_000_000
            expect = {}

            def write(table, columns):
                status, _ = post(base, "/api/v1/write/msgpack", msgpack.packb({"m": table, "columns": columns}), {"x-arc-time-unit": "us"})
                assert status == 204, status
                names = list(columns)
                expect.setdefault(table, []).extend(dict(zip(names, row)) for row in zip(*columns.values()))

            def flush():
                status, body = post(base, "/api/v1/flush")
                assert status == 200, body

            # One file with every type, nulls, extremes, non-ASCII text, times before 1970 and several hours.
            n = 5000
            write("types", {
                "time": [t0 + i * 1_000_003 for i in range(n)],
                "i": [(-1) ** i * (i << 40) if i % 7 else None for i in range(n)],
                "f": [i / 3 if i % 5 else (float("nan") if i % 2 else float("inf")) for i in range(n)],
                "s": [f"hôst {i % 50}" if i % 3 else None for i in range(n)],
                "u": [f"unique-{i}" for i in range(n)],
                "b": [bool(i % 2) if i % 11 else None for i in range(n)],
                "y": [bytes([i % 256, 0]) for i in range(n)],
            })
            write("types", {"time": [-1, -3_600_000_001], "i": [1, 2], "f": [0.5, -0.0], "s": ["", "x"], "u": ["a", "b"], "b": [True, False], "y": [b"", b"\xff"]})
            flush()
            # A table that changes: a column is added, then an int becomes a float.
            write("changing", {"time": [t0, t0 + 1], "v": [1, 2]})
            flush()
            write("changing", {"time": [t0 + 2], "v": [3], "added": ["new"]})
            flush()
            write("changing", {"time": [t0 + 3, t0 + 4], "v": [3.5, 4], "added": [None, "n"]})
            flush()
            status = json.load(urllib.request.urlopen(base + "/api/v1/status"))
            widened = {t["table"]: t["widened"] for t in status["tables"]}
            if widened != {"types": [], "changing": ["v"]}:
                fails.append(f"status names the widened columns: {widened}")
        finally:
            p.send_signal(signal.SIGTERM)
            code = p.wait(timeout=40)
        if code != 0:
            fails.append(f"exit code {code}")

        lake = f"{d}/data/lake/default"
        con = duckdb.connect()
        con.execute("SET TimeZone='UTC'")

        def by_duckdb(table):
            r = con.execute(f"select * from read_parquet('{lake}/{table}/**/*.parquet', union_by_name=true, hive_partitioning=false)")
            types = {c[0]: str(c[1]) for c in r.description}
            return r.to_arrow_table().to_pylist(), types

        def by_pyarrow(table):
            files = [f for f in ds.dataset(f"{lake}/{table}").files]
            schemas = [pq.read_schema(f) for f in files]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            t = ds.dataset(files, schema=schema).to_table()
            return t.to_pylist(), {f.name: str(f.type) for f in t.schema}

        def by_polars(table):
            # Polars 2 reads columns that are missing or narrower in some files when told to.
            lf = pl.scan_parquet(
                f"{lake}/{table}/**/*.parquet", hive_partitioning=False, missing_columns="insert", extra_columns="ignore",
                schema=polars_schema(table), cast_options=pl.ScanCastOptions(integer_cast=["upcast", "allow-float"]))
            t = lf.collect()
            return t.to_dicts(), {n: str(x) for n, x in t.schema.items()}

        def polars_schema(table):
            schemas = [pl.read_parquet_schema(f) for f in ds.dataset(f"{lake}/{table}").files]
            out = {}
            for s in schemas:
                for n, t in s.items():
                    out[n] = pl.Float64 if pl.Float64 in (t, out.get(n)) else t
            return out

        for table in ("types", "changing"):
            wide = {"v"} if table == "changing" else set()
            want = []
            for r in expect[table]:
                import datetime as dt
                row = {k: (float(v) if k in wide and v is not None else v) for k, v in r.items()}
                row["time"] = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=r["time"])
                want.append(row)
            want = canonical(want)
            for reader in (by_duckdb, by_pyarrow, by_polars):
                try:
                    rows, types = reader(table)
                except Exception as e:
                    fails.append(f"{reader.__name__} {table}: {type(e).__name__}: {e}")
                    continue
                got = canonical(rows)
                if got != want:
                    bad = next((a, b) for a, b in zip(got + [None] * len(want), want + [None] * len(got)) if a != b)
                    fails.append(f"{reader.__name__} {table}: {len(got)} rows for {len(want)}, first difference {bad}")
                print(f"  {reader.__name__} {table}: {len(rows)} rows, {types}")
    for f in fails:
        print(f"FAIL {NAME}: {f}")
    if not fails:
        print(f"PASS {NAME}: pyarrow {pa.__version__}, DuckDB {duckdb.__version__}, Polars {pl.__version__} read the same rows")
    sys.exit(1 if fails else 0)


main()
