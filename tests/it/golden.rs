//! A log of format version 1 that stays as it was made: this version and all later ones read it and drain it.
//!
//! `tests/golden/v1/` holds the log's files, each gzipped (they are mostly zeros), and `expected.json`: what was sent, and what
//! must be read back. It is never made again. A new format version gets a directory of its own.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use arc_ingest::batch::{TableBatch, ValidBatch, Values};
use arc_ingest::format::payload::PayloadView;
use arc_ingest::vfs::OsVfs;
use arc_ingest::wal::recover::{Report, inspect};
use serde_json::{Map, Value, json};

use super::lake;
use super::msgpack::{arr, b, bin, columnar, f, gzip, i, ints, mp, nil, s};
use super::server::{Place, until};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// Puts the golden log into `dir`.
fn unpack(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for file in super::lifecycle::log_files(&golden(), "").into_iter().filter(|f| f.extension().is_some_and(|x| x == "gz")) {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&std::fs::read(&file).unwrap()[..]).read_to_end(&mut bytes).unwrap();
        std::fs::write(dir.join(file.file_stem().unwrap()), bytes).unwrap();
    }
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(golden().join("expected.json")).unwrap()).unwrap()
}

fn cell(t: &TableBatch, column: usize, row: usize) -> Value {
    let c = &t.columns[column];
    if c.is_null(row) {
        return Value::Null;
    }
    let text = |b: &[u8]| json!(std::str::from_utf8(b).unwrap());
    match &c.values {
        Values::Null => Value::Null,
        Values::Int64(v) => json!(v[row]),
        Values::Float64(v) if v[row].is_finite() => json!(v[row]),
        Values::Float64(v) => json!(v[row].to_string()),
        Values::Bool(v) => json!(v.get(row)),
        Values::Utf8(v) => text(v.iter().nth(row).unwrap()),
        Values::Utf8Dict { codes, dictionary } => text(dictionary.iter().nth(codes[row].into()).unwrap()),
        Values::Binary(v) => json!({"hex": v.iter().nth(row).unwrap().iter().map(|b| format!("{b:02x}")).collect::<String>()}),
    }
}

/// The rows of a record as `{"table": [row, ...]}`, NULLs left out.
fn tables(batch: &ValidBatch) -> Value {
    let row = |t: &TableBatch, r: usize| {
        let cells = (0..t.columns.len()).map(|c| (t.columns[c].name.clone(), cell(t, c, r))).filter(|(_, v)| !v.is_null());
        let mut row: Map<String, Value> = cells.collect();
        row.insert("time".into(), json!(t.time[r]));
        Value::Object(row)
    };
    let tables = batch.tables().iter().map(|t| (t.table.clone(), Value::Array((0..t.rows()).map(|r| row(t, r)).collect())));
    Value::Object(tables.collect())
}

fn read(dir: &Path) -> (Report, Vec<Value>) {
    let mut records = Vec::new();
    let report = inspect(
        &OsVfs,
        dir,
        &mut |v| {
            let p = PayloadView::parse(v.payload).unwrap();
            let batch = p.to_batch().unwrap();
            records.push(json!({
                "sequence": v.header.sequence,
                "database": batch.database(),
                "key": p.index.key.is_some(),
                "tables": tables(&batch),
            }));
        },
        &mut |_| {},
    )
    .unwrap();
    (report, records)
}

#[test]
fn a_log_of_version_1_is_read() {
    let want = expected();
    let dir = tempfile::tempdir().unwrap();
    unpack(dir.path());
    let (report, records) = read(dir.path());
    assert_eq!(report.verdict(), "clean", "{:?} {:?}", report.refusals, report.findings);
    assert_eq!(json!(report.log.unwrap().to_string()), want["log"]);
    assert_eq!(Value::Array(records), want["records"]);
    let state = &report.state;
    assert_eq!(json!([state.shipped, state.released, report.through]), want["shipped_released_through"]);
    assert_eq!(json!(state.keys.len()), want["keys_in_the_manifest"]);
    let catalog: Vec<String> = state.tables.values().map(|t| format!("{}.{} {}", t.database, t.table, t.columns.len())).collect();
    assert_eq!(json!(catalog), want["catalog"]);
}

#[test]
fn a_log_of_version_1_is_drained() {
    let want = expected();
    let place = Place::new();
    unpack(&place.wal());
    // Its lake did not come along.
    let server = place.start(&["wal.segment_size=8KB", "wal.on_damage=refuse", "storage.accept_new_lake=true"]);
    assert_eq!(json!(server.status()["log_uuid"]), want["log"]);
    // Keys, in the manifest and in the records, are known.
    for k in want["keys"].as_array().unwrap() {
        let headers = [("Idempotency-Key", k["key"].as_str().unwrap()), ("x-arc-database", k["database"].as_str().unwrap())];
        let r = server.write(&headers, &mp(&k["body"]));
        assert_eq!((r.status, r.header("idempotency-replayed"), r.sequence()), (204, Some("true"), k["sequence"].as_u64()), "{r}");
    }
    // A type that only the checkpoint knows still holds.
    assert_eq!(server.write(&[("x-arc-database", "gold")], &mp(&json!({"m": "old", "t": 1, "fields": {"v": "x"}}))).status, 400);
    let next = server.store_with(&[("x-arc-database", "gold")], &mp(&json!({"m": "new", "t": 1, "fields": {"v": 1}})));
    assert_eq!(json!(next - 1), want["shipped_released_through"][2]);
    server.flush();
    assert_eq!(server.status()["quarantine"]["records"], 0);

    for r in want["records"].as_array().unwrap() {
        for (table, rows) in r["tables"].as_object().unwrap() {
            let path = arc_ingest::batch::escape_table(table);
            let stored = lake::rows(&place.lake(), r["database"].as_str().unwrap(), &path);
            for row in rows.as_array().unwrap() {
                let same = |x: &&Value| {
                    let cells = x.as_object().unwrap();
                    cells.iter().all(|(name, v)| match row.get(name) {
                        None => v.is_null(),
                        // A widened column: 3 is stored as 3.0.
                        Some(w) => w == v || (w.is_number() && w.as_f64() == v.as_f64()),
                    })
                };
                assert_eq!(stored.iter().filter(same).count(), 1, "{row} in {stored:?}");
            }
        }
    }
    let rows: usize = lake::files(&place.lake(), "").iter().map(|f| f.rows.len()).sum();
    let records = want["records"].as_array().unwrap();
    let sent: usize = records.iter().flat_map(|r| r["tables"].as_object().unwrap().values()).map(|t| t.as_array().unwrap().len()).sum();
    assert_eq!(rows, sent + 1);
    server.stop();
}

/// How `tests/golden/v1` was made. It refuses to do it again.
#[test]
#[ignore = "the golden log exists and is never made again"]
fn make_version_1() {
    const T: i64 = 1_700_000_000_000_000;
    assert!(!golden().exists(), "{} exists and must stay as it is", golden().display());
    let place = Place::new();
    let small = ["wal.segment_size=8KB", "compaction.paused=true"];
    let gold = ("x-arc-database", "gold");
    let mut server = place.start(&small[..1]);
    let old_key = json!({"m": "old", "t": T, "fields": {"v": 1}});
    assert_eq!(server.store_with(&[gold, ("Idempotency-Key", "shipped")], &mp(&old_key)), 1);
    assert_eq!(server.store_with(&[gold], &mp(&json!({"m": "wide", "t": T, "fields": {"v": 1}}))), 2);
    server.flush();
    until("both are released", || (server.watermark("released") == 2).then_some(()));
    server.kill();

    let server = place.start(&small);
    let mut records = Vec::new();
    let mut send = |database: &str, key: Option<&str>, body: &[u8], tables: Value| {
        let mut headers = vec![("x-arc-database", database)];
        headers.extend(key.map(|k| ("Idempotency-Key", k)));
        let sequence = server.store_with(&headers, body);
        records.push(json!({"sequence": sequence, "database": database, "key": key.is_some(), "tables": tables}));
        sequence
    };
    let types = columnar(
        "types",
        &[
            ("time", ints(&[T, T + 1, -T - 1])),
            ("i", arr(&[i(i64::MIN), nil(), i(i64::MAX)])),
            ("f", arr(&[f(f64::NAN), f(-2.5), nil()])),
            ("s", arr(&[s(""), s("é\n"), nil()])),
            ("b", arr(&[b(true), nil(), b(false)])),
            ("x", arr(&[bin(b""), bin(&[0, 255]), nil()])),
        ],
    );
    let rows = json!([
        {"time": T, "i": i64::MIN, "f": "NaN", "s": "", "b": true, "x": {"hex": ""}},
        {"time": T + 1, "f": -2.5, "s": "é\n", "x": {"hex": "00ff"}},
        {"time": -T - 1, "i": i64::MAX, "b": false},
    ]);
    send("gold", None, &types, json!({"types": rows}));
    let kept = json!({"m": "a/b", "t": T, "h": "n1", "fields": {"v": true}, "tags": {"dc": "eu"}});
    let sequence = send("gold", Some("in the log"), &mp(&kept), json!({"a/b": [{"time": T, "host": "n1", "dc": "eu", "v": true}]}));
    // A widening of a column that the checkpoint has as an integer, with an integer before and after it.
    for v in [json!(2), json!(2.5), json!(3)] {
        let stored = if v == 3 { json!(3.0) } else { v.clone() };
        let n = T + 10 * (v.as_f64().unwrap() * 2.0) as i64;
        send("gold", None, &mp(&json!({"m": "wide", "t": n, "fields": {"v": v}})), json!({"wide": [{"time": n, "v": stored}]}));
    }
    // Many rows: a dictionary, several hours, two tables, a record larger than a segment.
    let time: Vec<i64> = (0..120).map(|n| T + n * 60_000_000).collect();
    let host: Vec<String> = (0..120).map(|n| format!("host-{}", n % 3)).collect();
    let value: Vec<f64> = (0..120).map(|n| f64::from(n) * 1.25 - 7.0).collect();
    let text: Vec<String> = (0..120).map(|n| format!("{n} {}", "y".repeat(70 + n % 40))).collect();
    let rows: Vec<Value> = (0..120).map(|n| json!({"time": time[n], "host": host[n], "value": value[n], "text": text[n]})).collect();
    let batch = json!({"batch": [
        {"m": "many", "columns": {"time": time, "host": host, "value": value, "text": text}},
        {"m": "one", "t": T, "f": [1, "two"]},
    ]});
    send("gold2", None, &mp(&batch), json!({"many": rows, "one": [{"time": T, "field_0": 1, "field_1": "two"}]}));
    for n in 0..6 {
        let body = json!({"m": "last", "t": T + n, "fields": {"n": n}});
        send("gold2", None, &mp(&body), json!({"last": [{"time": T + n, "n": n}]}));
    }
    let through = server.watermark("durable");
    let log = server.status()["log_uuid"].clone();
    server.stop();

    let expected = json!({
        "log": log,
        "records": records,
        "shipped_released_through": [2, 2, through],
        "keys_in_the_manifest": 1,
        "catalog": ["gold.old 1", "gold.wide 1"],
        "keys": [
            {"key": "shipped", "database": "gold", "body": old_key, "sequence": 1},
            {"key": "in the log", "database": "gold", "body": kept, "sequence": sequence},
        ],
    });
    std::fs::create_dir_all(golden()).unwrap();
    for prefix in ["seg-", "manifest-"] {
        for file in super::lifecycle::log_files(&place.wal(), prefix) {
            let name = format!("{}.gz", file.file_name().unwrap().to_str().unwrap());
            std::fs::write(golden().join(name), gzip(&std::fs::read(&file).unwrap())).unwrap();
        }
    }
    std::fs::write(golden().join("expected.json"), serde_json::to_vec(&expected).unwrap()).unwrap();
}
