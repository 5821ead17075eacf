"""Reads a table back with pyarrow and with DuckDB and holds it to what the client programs write. Prints one JSON object.

Arguments in JSON: lake, database, table, rows, newline (what the client makes of a newline in a text).
"""

import glob
import os

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from rows import P, ranges, row, say

WANTED = {"time": "timestamp[us, tz=UTC]", "host": "string", "region": "string", "id": "int64", "big": "int64", "value": "double", "text": "string", "ok": "bool", "maybe": "double"}


def main():
    files = sorted(glob.glob(os.path.join(P["lake"], P["database"], P["table"], "**", "*.parquet"), recursive=True))
    files = [f for f in files if not os.path.basename(f).startswith((".", "_"))]
    if not files:
        say("read", files=0, rows=0, distinct=0, missing=[], foreign=0, different=[], types={}, doubled=[], duckdb=[0, 0])
        return
    schema = pa.unify_schemas([pq.read_schema(f) for f in files], promote_options="permissive")
    types = {f.name: str(f.type) for f in schema}
    if P.get("types_only"):
        say("read", files=len(files), rows=sum(pq.read_metadata(f).num_rows for f in files), types=types)
        return
    if P.get("ids_only"):
        wanted = ["id"]
    else:
        wanted = list(WANTED)
    table = pa.concat_tables([pq.read_table(f, partitioning=None, schema=schema, columns=wanted) for f in files])
    copies, different, foreign = {}, [], 0
    for got in table.to_pylist():
        i = got["id"]
        if P.get("ids_only"):
            copies[i] = copies.get(i, 0) + 1
            continue
        if i is None or not 0 <= i < P["rows"]:
            foreign += 1
            continue
        copies[i] = copies.get(i, 0) + 1
        tags, fields, us = row(i)
        want = {n: tags.get(n, fields.get(n)) for n in WANTED}
        want["text"] = want["text"].replace("\n", P["newline"])
        want["time"] = us
        got["time"] = got["time"].value if hasattr(got["time"], "value") else micros(got["time"])
        if got != want:
            different.append([got, want])
    con = duckdb.connect(config={"threads": 1})
    counted = con.execute("select count(*), count(distinct id) from read_parquet(?, union_by_name=true, hive_partitioning=false)", [files]).fetchone()
    say(
        "read", files=len(files), rows=table.num_rows, distinct=len(copies), foreign=foreign, types=types,
        missing=[] if P.get("ids_only") else ranges(i for i in range(P["rows"]) if i not in copies),
        different=[str(d) for d in different[:3]], differing=len(different), ids=sorted(copies) if P.get("ids_only") else [],
        doubled=ranges(i for i, n in copies.items() if n > 1), duckdb=list(counted),
    )


def micros(t):
    import datetime as dt

    return (t - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)) // dt.timedelta(microseconds=1)


main()
