"""One reader, driven from its own environment: `python adapters.py KIND` takes a job on stdin and answers on stdout.

Job: {"files": [{"class": ..., "path": ...}], "filters": [...], "hive": [directories]}. For each class one line of JSON comes back:
its rows, and for each filter the ids that the reader finds with the filter pushed down and those that it finds in all rows.
"""

import hashlib
import json
import math
import struct
import sys

COLUMNS = ["id", "time", "i", "f", "g", "s", "b", "y"]


def bits(v):
    """A double by its bits; a NaN is a NaN, whatever its bits."""
    if v is None:
        return None
    return "nan" if math.isnan(v) else struct.pack(">d", v).hex()


def short(b):
    """Bytes, or the hash of many."""
    b = bytes(b)
    return b.hex() if len(b) <= 64 else f"{len(b)}:{hashlib.sha256(b).hexdigest()}"


def cell(column, v):
    """A value in a form that is equal where the values are equal bit by bit; `time` comes as microseconds."""
    if v is None:
        return None
    if column in ("id", "time", "i"):
        return str(int(v))
    if column in ("f", "g"):
        return bits(float(v))
    if column == "s":
        return short(v.encode() if isinstance(v, str) else v)
    if column == "b":
        return bool(v)
    return short(v)


def canonical(rows):
    return sorted(([cell(c, v) for c, v in zip(COLUMNS, row)] for row in rows), key=lambda r: int(r[0]))


def sql_literal(column, v, double="CAST('{}' AS DOUBLE)", binary="X'{}'"):
    if column in ("f", "g"):
        return double.format({"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(repr(float(v)), repr(float(v))))
    if column == "s":
        return "'" + v.replace("'", "''") + "'"
    if column == "b":
        return "TRUE" if v else "FALSE"
    if column == "y":
        return binary.format(v)
    return str(v)


def sql(f, **how):
    """A filter as SQL."""
    column, op, v = f["column"], f["op"], f.get("value")
    if op in ("=", "!=", "<", ">"):
        return f"{column} {'<>' if op == '!=' else op} {sql_literal(column, v, **how)}"
    if op in ("in", "not in"):
        return f"{column} {op.upper()} ({', '.join(sql_literal(column, x, **how) for x in v)})"
    if op == "is null":
        return f"{column} IS NULL"
    return f"{column} LIKE {sql_literal(column, v)}"


class DuckDb:
    def __init__(self):
        import duckdb

        self.con = duckdb.connect()
        self.con.execute("SET TimeZone='UTC'; SET threads=2; SET memory_limit='1GB'")

    def _source(self, path):
        return f"read_parquet('{path}', hive_partitioning=false)"

    def rows(self, path):
        self.con.execute(f"CREATE OR REPLACE TEMP TABLE loaded AS SELECT * FROM {self._source(path)}")
        return self.con.execute("SELECT id, epoch_us(time), i, f, g, s, b, y FROM loaded").fetchall()

    def _where(self, f):
        return sql(f, binary="from_hex('{}')")

    def pushed(self, path, f):
        return [r[0] for r in self.con.execute(f"SELECT id FROM {self._source(path)} WHERE {self._where(f)}").fetchall()]

    def loaded(self, f):
        return [r[0] for r in self.con.execute(f"SELECT id FROM loaded WHERE {self._where(f)}").fetchall()]

    def hive(self, root):
        r = self.con.execute(f"SELECT * FROM read_parquet('{root}/**/*.parquet', hive_partitioning=true)")
        types = {c[0]: str(c[1]) for c in r.description}
        n = lambda w: self.con.execute(f"SELECT count(*) FROM read_parquet('{root}/**/*.parquet', hive_partitioning=true) WHERE {w}").fetchone()[0]
        told = f"read_parquet('{root}/**/*.parquet', union_by_name=true, hive_types={{'date': DATE, 'hour': INT}})"
        below_ten = self.con.execute(f"SELECT hour, v FROM {told} WHERE hour < 10").fetchall()
        if below_ten != [(7, 7)]:
            raise AssertionError(f"with hive_types, hour < 10 finds {below_ten}")
        return {"type": types["hour"], **_counts(n, "hour = 7", "hour < 10", "hour = '07'", "hour = '7'")}


def _counts(n, *wheres):
    out = {}
    for w in wheres:
        try:
            out[w] = n(w)
        except Exception as e:  # noqa: BLE001
            out[w] = f"error: {str(e).splitlines()[0][:60]}"
    return out


class PyArrow:
    def __init__(self):
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.dataset as ds

        self.pa, self.pc, self.ds = pa, pc, ds

    def rows(self, path):
        self.table = self.ds.dataset(path).to_table()
        t = self.table.set_column(self.table.column_names.index("time"), "time", self.pc.cast(self.table["time"], self.pa.int64()))
        return [[r[c] for c in COLUMNS] for r in t.to_pylist()]

    def _where(self, f):
        c, op, v = self.pc.field(f["column"]), f["op"], f.get("value")
        one = lambda x: self.pa.scalar(bytes.fromhex(x)) if f["column"] == "y" else float(x) if f["column"] in ("f", "g") else x
        if op in ("in", "not in"):
            found = c.isin([one(x) for x in v])
            # A NULL is not in the list here, where SQL has neither.
            return found if op == "in" else ~found & c.is_valid()
        if op == "is null":
            return c.is_null()
        if op == "like":
            return self.pc.match_like(c, v)
        return {"=": c.__eq__, "!=": c.__ne__, "<": c.__lt__, ">": c.__gt__}[op](one(v))

    def pushed(self, path, f):
        return self.ds.dataset(path).to_table(filter=self._where(f), columns=["id"])["id"].to_pylist()

    def loaded(self, f):
        return self.table.filter(self._where(f))["id"].to_pylist()

    def hive(self, root):
        d = self.ds.dataset(root, partitioning="hive")
        n = lambda e: d.count_rows(filter=e)
        h = self.pc.field("hour")
        out = {"type": str(d.schema.field("hour").type)}
        for name, e in (("hour = 7", lambda: h == 7), ("hour < 10", lambda: h < 10), ("hour = '07'", lambda: h == "07"), ("hour = '7'", lambda: h == "7")):
            out.update(_counts(lambda w, e=e: n(e()), name))
        return out

    def encodings(self, path):
        import pyarrow.parquet as pq

        m = pq.read_metadata(path)
        groups = range(m.num_row_groups)
        return sorted({e for g in groups for c in range(m.num_columns) for e in m.row_group(g).column(c).encodings})


class Polars:
    def __init__(self):
        import polars as pl

        self.pl = pl

    def _scan(self, path):
        return self.pl.scan_parquet(path, hive_partitioning=False)

    def rows(self, path):
        self.frame = self._scan(path).collect()
        t = self.frame.select([self.pl.col(c).dt.epoch("us") if c == "time" else self.pl.col(c) for c in COLUMNS])
        return t.rows()

    def _where(self, f):
        c, op, v = self.pl.col(f["column"]), f["op"], f.get("value")
        one = lambda x: bytes.fromhex(x) if f["column"] == "y" else float(x) if f["column"] in ("f", "g") else x
        if op in ("in", "not in"):
            found = c.is_in([one(x) for x in v])
            return found if op == "in" else ~found & c.is_not_null()
        if op == "is null":
            return c.is_null()
        if op == "like":
            return c.str.starts_with(v.rstrip("%"))
        x = self.pl.lit(one(v))
        return {"=": c.__eq__, "!=": c.__ne__, "<": c.__lt__, ">": c.__gt__}[op](x)

    def pushed(self, path, f):
        return self._scan(path).filter(self._where(f)).select("id").collect()["id"].to_list()

    def loaded(self, f):
        return self.frame.filter(self._where(f))["id"].to_list()

    def hive(self, root):
        scan = lambda: self.pl.scan_parquet(f"{root}/**/*.parquet", hive_partitioning=True)
        h = self.pl.col("hour")
        n = lambda e: scan().filter(e).collect().height
        out = {"type": str(scan().collect().schema["hour"])}
        for name, e in (("hour = 7", h == 7), ("hour < 10", h < 10), ("hour = '07'", h == "07"), ("hour = '7'", h == "7")):
            out.update(_counts(lambda w, e=e: n(e), name))
        return out


class DataFusion:
    def __init__(self):
        import datafusion
        import pyarrow as pa
        import pyarrow.compute as pc

        self.df, self.pa, self.pc = datafusion, pa, pc
        config = datafusion.SessionConfig({"datafusion.execution.parquet.pushdown_filters": "true", "datafusion.execution.target_partitions": "2"})
        self.ctx = datafusion.SessionContext(config)
        self.seen = {}

    def _table(self, path):
        if path not in self.seen:
            self.seen[path] = f"t{len(self.seen)}"
            self.ctx.register_parquet(self.seen[path], path)
        return self.seen[path]

    def _ids(self, statement):
        return [v for b in self.ctx.sql(statement).collect() for v in b.column(0).to_pylist()]

    def rows(self, path):
        batches = self.ctx.sql(f"SELECT {', '.join(COLUMNS)} FROM {self._table(path)}").collect()
        self.name = f"loaded{len(self.seen)}"
        self.ctx.register_record_batches(self.name, [batches])
        rows = []
        for b in batches:
            columns = [b.column(k).cast(self.pa.int64()) if c == "time" else b.column(k) for k, c in enumerate(COLUMNS)]
            rows += zip(*[c.to_pylist() for c in columns])
        return rows

    def pushed(self, path, f):
        return self._ids(f"SELECT id FROM {self._table(path)} WHERE {sql(f)}")

    def loaded(self, f):
        return self._ids(f"SELECT id FROM {self.name} WHERE {sql(f)}")

    def hive(self, root):
        # Columns of the path have to be named, with their types; older versions take them as text.
        n = lambda t: lambda w: self._ids(f"SELECT count(*) FROM {t} WHERE {w}")[0]
        for name, hour in (("as_text", "string"), ("as_number", "int64" if self.df.__version__ >= "46" else "int")):
            types = [("date", "string"), ("hour", hour)]
            if self.df.__version__ >= "46":
                types = [(c, self.pa.type_for_alias(t)) for c, t in types]
            self.ctx.register_parquet(name, root, table_partition_cols=types)
        return {"type": "as it is told", **_counts(n("as_number"), "hour = 7", "hour < 10"), **_counts(n("as_text"), "hour = '07'", "hour = '7'")}


class FastParquet:
    def __init__(self):
        import fastparquet

        self.fp = fastparquet

    def rows(self, path):
        self.frame = t = self.fp.ParquetFile(path).to_pandas()
        import pandas as pd

        out = []
        for row in zip(*[t[c] for c in COLUMNS]):
            cells = []
            for c, v in zip(COLUMNS, row):
                # pandas has one missing value for NULL and NaN in doubles.
                if v is None or v is pd.NA or v is pd.NaT or (isinstance(v, float) and math.isnan(v) and c not in ("f", "g")):
                    cells.append(None)
                elif c == "time":
                    cells.append(pd.Timestamp(v).value // 1000)
                else:
                    cells.append(v)
            out.append(cells)
        return out

    def _filter(self, f):
        v = f.get("value")
        one = lambda x: bytes.fromhex(x) if f["column"] == "y" else float(x) if f["column"] in ("f", "g") else x
        if f["op"] in ("is null", "like"):
            raise NotImplementedError
        return (f["column"], {"=": "=="}.get(f["op"], f["op"]), [one(x) for x in v] if isinstance(v, list) else one(v))

    def pushed(self, path, f):
        # It leaves out row groups; rows are for pandas (its own row filter has no NULL).
        columns = ["id"] if f["column"] == "id" else ["id", f["column"]]
        return self._ids(self.fp.ParquetFile(path).to_pandas(columns=columns, filters=[self._filter(f)]), f)

    def loaded(self, f):
        return self._ids(self.frame, f)

    def _ids(self, frame, f):
        column, op, v = self._filter(f)
        c = frame[column]
        m = {"==": c.__eq__, "!=": c.__ne__, "<": c.__lt__, ">": c.__gt__, "in": c.isin, "not in": lambda v: ~c.isin(v)}[op](v)
        # A NULL is in no list here and equals nothing, so that != and `not in` find it, where SQL does not.
        return [int(v) for v in frame[m.fillna(False).astype(bool) & c.notna()]["id"]]

    def hive(self, root):
        import glob

        t = self.fp.ParquetFile(sorted(glob.glob(f"{root}/**/*.parquet", recursive=True)), root=root).to_pandas()
        h = t["hour"]
        n = {"hour = 7": lambda: (h == 7).sum(), "hour < 10": lambda: (h.astype(h.cat.categories.dtype) < 10).sum(),
             "hour = '07'": lambda: (h == "07").sum(), "hour = '7'": lambda: (h == "7").sum()}
        return {"type": f"category of {h.cat.categories.dtype}", **_counts(lambda w: int(n[w]()), *n)}


class Spark:
    def __init__(self):
        from pyspark.sql import SparkSession

        b = SparkSession.builder.master("local[2]")
        for k, v in {
            "spark.driver.memory": "1g", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
            "spark.sql.session.timeZone": "UTC", "spark.sql.shuffle.partitions": "2", "spark.log.level": "ERROR", "spark.sql.ansi.enabled": "true",
            "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        }.items():
            b = b.config(k, v)
        self.spark = b.getOrCreate()
        self.spark.sparkContext.setLogLevel("OFF")

    def rows(self, path):
        self.path = path
        t = self.spark.read.parquet(path).selectExpr("id", "unix_micros(time)", "i", "f", "g", "s", "b", "y")
        return [list(r) for r in t.collect()]

    def _ids(self, path, f, push):
        self.spark.conf.set("spark.sql.parquet.filterPushdown", push)
        where = sql(f, double="CAST('{}' AS DOUBLE)")
        return [r[0] for r in self.spark.read.parquet(path).where(where).select("id").collect()]

    def pushed(self, path, f):
        return self._ids(path, f, "true")

    def loaded(self, f):
        return self._ids(self.path, f, "false")

    def hive(self, root):
        t = self.spark.read.parquet(root)
        n = lambda w: t.where(w).count()
        return {"type": dict(t.dtypes)["hour"], **_counts(n, "hour = 7", "hour < 10", "hour = '07'", "hour = '7'")}


class ClickHouse:
    def __init__(self):
        import chdb

        self.chdb = chdb

    def _query(self, text, settings=""):
        out = self.chdb.query(text + " SETTINGS max_threads = 2" + settings, "JSONCompactEachRow")
        return [json.loads(x) for x in str(out).splitlines() if x]

    def rows(self, path):
        self.path = path
        columns = {"time": "toUnixTimestamp64Micro(time)", "s": "hex(s)", "y": "hex(y)"}
        for c in ("f", "g"):
            columns[c] = f"if(isNull({c}), NULL, hex(reinterpretAsUInt64(assumeNotNull({c}))))"
        got = self._query(f"SELECT {', '.join(columns.get(c, c) for c in COLUMNS)} FROM file('{path}', Parquet)")
        double = lambda v: None if v is None else struct.unpack(">d", bytes.fromhex(v.rjust(16, "0")))[0]
        blob = lambda v: None if v is None else bytes.fromhex(v)
        how = {"f": double, "g": double, "s": blob, "y": blob}
        return [[how.get(c, lambda v: v)(v) for c, v in zip(COLUMNS, row)] for row in got]

    def _ids(self, path, f, settings):
        special = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
        where = sql(f, double="toFloat64('{}')", binary="unhex('{}')")
        for a, b in special.items():
            where = where.replace(f"'{a}'", f"'{b}'")
        return [int(r[0]) for r in self._query(f"SELECT id FROM file('{path}', Parquet) WHERE {where}", settings)]

    def pushed(self, path, f):
        return self._ids(path, f, ", input_format_parquet_filter_push_down = 1")

    def loaded(self, f):
        off = ", input_format_parquet_filter_push_down = 0, input_format_parquet_bloom_filter_push_down = 0, optimize_move_to_prewhere = 0"
        return self._ids(self.path, f, off)

    def hive(self, root):
        n = lambda w: int(self._query(f"SELECT count() FROM file('{root}/**/*.parquet', Parquet) WHERE {w}", ", use_hive_partitioning = 1")[0][0])
        t = self._query(f"SELECT toTypeName(hour) FROM file('{root}/**/*.parquet', Parquet) LIMIT 1", ", use_hive_partitioning = 1")[0][0]
        return {"type": t, **_counts(n, "hour = 7", "hour < 10", "hour = '07'", "hour = '7'")}


KINDS = {"duckdb": DuckDb, "pyarrow": PyArrow, "polars": Polars, "datafusion": DataFusion, "fastparquet": FastParquet, "spark": Spark, "chdb": ClickHouse}


def reason(e):
    # The reason of a Java exception is far behind its beginning.
    return f"{type(e).__name__}: {' '.join(str(e).split())[:4000]}"


def one_class(reader, path, filters):
    try:
        answer = {"rows": canonical(reader.rows(path))}
    except Exception as e:  # noqa: BLE001
        return {"error": reason(e)}
    if hasattr(reader, "encodings"):
        answer["encodings"] = reader.encodings(path)
    answer["filters"] = []
    for f in filters:
        try:
            answer["filters"].append({"pushed": sorted(reader.pushed(path, f)), "loaded": sorted(reader.loaded(f))})
        except NotImplementedError:
            answer["filters"].append({"none": True})
        except Exception as e:  # noqa: BLE001
            answer["filters"].append({"error": reason(e)})
    return answer


def main():
    job = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr
    reader = KINDS[sys.argv[1]]()
    for x in job["files"]:
        answer = one_class(reader, x["path"], job["filters"])
        print(json.dumps({"class": x["class"], **answer}), file=out, flush=True)
    for x in job["hive"]:
        try:
            answer = {"hive": reader.hive(x["path"])}
        except Exception as e:  # noqa: BLE001
            answer = {"error": reason(e)}
        print(json.dumps({"class": x["class"], **answer}), file=out, flush=True)


if __name__ == "__main__":
    main()
