//! Requests that must be stored: every row comes back from Parquet exactly as the contract says.

use serde_json::{Value, json};

use super::lake;
use super::msgpack::{arr, b, bin, columnar, ext, f, floats, gzip, i, ints, map, mp, nil, raw_str, s, strs, u, zstd};
use super::server::{Client, Place, Server};

/// 2023-11-14T22:13:20Z.
const T: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600_000_000;

fn flushed(server: &Server, rows: u64) {
    let f = server.flush();
    assert_eq!(f["rows"].as_u64(), Some(rows), "{f}");
}

fn table(place: &Place, name: &str) -> Vec<Value> {
    lake::rows(&place.lake(), "default", name)
}

#[test]
fn all_shapes_come_back_exactly() {
    let place = Place::new();
    let server = place.start(&[]);
    let columns = json!({"time": [T, T + 1], "host": ["a", "b"], "v": [1, null], "f": [1.5, -2.25], "ok": [true, false]});
    server.store(&mp(&json!({"m": "columnar", "columns": columns, "unknown": {"x": [1, 2]}})));
    // Keys in another order.
    server.store(&map(&[("columns", mp(&json!({"v": [7], "time": [T + 2]}))), ("m", s("columnar"))]));
    server.store(&mp(&json!({"m": "row", "t": T, "h": "n1", "fields": {"a": 1, "b": "x"}, "tags": {"dc": "eu", "n": 5, "z": null}})));
    server.store(&mp(&json!({"m": "row", "time": T + 1, "h": 3, "f": [1.5, "y", null]})));
    server.store(&mp(&json!({"m": 7, "t": T, "fields": {"a": 1}, "tags": {"a": "tag"}})));
    let batch = json!([
        {"m": "b1", "columns": {"time": [T], "v": [1]}},
        {"m": "b2", "t": T, "fields": {"v": "two"}},
        {"m": "b1", "t": T + 1, "fields": {"v": 2, "w": true}},
    ]);
    let sequence = server.store(&mp(&json!({"batch": batch, "unknown": {"ignored": [1]}})));
    assert_eq!(
        server.store(&mp(&json!([{"m": "b3", "t": T, "fields": {"v": 1}}, {"batch": [{"m": "b3", "t": T, "fields": {"v": 2}}]}]))),
        sequence + 1
    );
    flushed(&server, 3 + 2 + 1 + 3 + 2);

    let want = [
        json!({"time": T, "host": "a", "v": 1, "f": 1.5, "ok": true}),
        json!({"time": T + 1, "host": "b", "v": null, "f": -2.25, "ok": false}),
        json!({"time": T + 2, "host": null, "v": 7, "f": null, "ok": null}),
    ];
    assert_eq!(table(&place, "columnar"), want);
    let row0 = json!({"time": T, "dc": "eu", "host": "n1", "n": "5", "a": 1, "b": "x", "field_0": null, "field_1": null});
    let row1 = json!({"time": T + 1, "dc": null, "host": "host_3", "n": null, "a": null, "b": null, "field_0": 1.5, "field_1": "y"});
    assert_eq!(table(&place, "row"), [row0, row1], "a field that is nil and has no type yet is no column, nor is a tag");
    assert_eq!(table(&place, "measurement_7"), [json!({"time": T, "a": "tag", "a_value": 1})], "no host is made up");
    assert_eq!(table(&place, "b1"), [json!({"time": T, "v": 1, "w": null}), json!({"time": T + 1, "v": 2, "w": true})]);
    assert_eq!(table(&place, "b2"), [json!({"time": T, "v": "two"})]);
    assert_eq!(table(&place, "b3"), [json!({"time": T, "v": 1}), json!({"time": T, "v": 2})]);

    // `time` first, then tags, then fields, each by name; types as in the contract.
    let file = &lake::files(&place.lake(), "default/row")[0];
    let order: Vec<(&str, &str)> = file.schema.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    let want = [
        ("time", "timestamp"),
        ("dc", "string"),
        ("host", "string"),
        ("n", "string"),
        ("a", "int64"),
        ("b", "string"),
        ("field_0", "double"),
        ("field_1", "string"),
    ];
    assert_eq!(order, want);
    server.stop();
}

#[test]
fn units_by_magnitude_and_by_header() {
    let place = Place::new();
    let server = place.start(&[]);
    // Table, header, times as sent, times as stored.
    type Unit = (&'static str, Option<&'static str>, Vec<u8>, Vec<i64>);
    let cases: Vec<Unit> = vec![
        ("s", None, ints(&[1_700_000_000, 9_999_999_999]), vec![T, 9_999_999_999_000_000]),
        ("ms", None, ints(&[1_700_000_000_001]), vec![T + 1000]),
        ("us", None, ints(&[T + 1]), vec![T + 1]),
        ("ns", None, ints(&[T * 1000 + 1999]), vec![T + 1]),
        ("ns_floor", Some("ns"), ints(&[-1, -1001]), vec![-2, -1]),
        ("as_ms", Some("ms"), ints(&[1_700_000_000]), vec![1_700_000_000_000]),
        ("as_us", Some("us"), ints(&[5]), vec![5]),
        ("mixed_with_unit", Some("ms"), ints(&[1_700_000_000, 1_700_000_000_000]), vec![1_700_000_000_000, T]),
        ("float_s", None, floats(&[1_700_000_000.000_001_4]), vec![T + 1]),
        ("float_ms", None, floats(&[1_700_000_000_000.5]), vec![T + 500]),
        ("float_us", Some("us"), floats(&[1.5, 2.4]), vec![2, 2]),
        ("ext4", None, arr(&[ext(-1, &1_700_000_000u32.to_be_bytes())]), vec![T]),
        ("ext8", None, arr(&[ext(-1, &((999_999_999u64 << 34) | 1_700_000_000).to_be_bytes())]), vec![T + 999_999]),
        ("ext12", None, arr(&[ext(-1, &[500_000_999u32.to_be_bytes().to_vec(), (-1i64).to_be_bytes().to_vec()].concat())]), vec![-500_000]),
        ("year_1", Some("s"), ints(&[-62_135_596_800]), vec![-62_135_596_800_000_000]),
        ("year_9999", Some("s"), ints(&[253_402_300_799]), vec![253_402_300_799_000_000]),
    ];
    let mut rows = 0;
    for (name, unit, times, want) in &cases {
        let headers: Vec<(&str, &str)> = unit.iter().map(|u| ("x-arc-time-unit", *u)).collect();
        rows += want.len() as u64;
        server.store_with(&headers, &columnar(name, &[("time", times.clone()), ("v", ints(&vec![1; want.len()]))]));
    }
    // In row form each item has its own unit.
    server.store(&mp(&json!([{"m": "items", "t": 1_700_000_000, "fields": {"v": 1}}, {"m": "items", "t": T + 5, "fields": {"v": 2}}])));
    flushed(&server, rows + 2);
    for (name, _, _, want) in &cases {
        let got: Vec<i64> = table(&place, name).iter().map(|r| r["time"].as_i64().unwrap()).collect();
        assert_eq!(&got, want, "{name}");
    }
    assert_eq!(table(&place, "items"), [json!({"time": T, "v": 1}), json!({"time": T + 5, "v": 2})]);
}

#[test]
fn every_type_and_every_null() {
    let place = Place::new();
    let server = place.start(&[]);
    let time = ints(&[T, T + 1, T + 2]);
    let columns = [
        ("time", time.clone()),
        ("ints", arr(&[i(i64::MIN), nil(), u(i64::MAX as u64)])),
        ("floats", arr(&[f(f64::NAN), f(f64::NEG_INFINITY), f(-0.0)])),
        ("mixed", arr(&[i(1 << 53), f(0.5), nil()])),
        ("strs", arr(&[s(""), s("é\u{1F600}\0\n"), nil()])),
        ("bools", arr(&[b(true), nil(), b(false)])),
        ("bins", arr(&[bin(b""), bin(&[0, 255]), nil()])),
        ("nils", arr(&[nil(), nil(), nil()])),
        ("nested", arr(&[mp(&json!([1, "a", null])), map(&[("k", bin(b"abc")), ("n", f(f64::NAN))]), s("text")])),
        ("f32", arr(&[[vec![0xca], 1.5f32.to_be_bytes().to_vec()].concat(), nil(), nil()])),
        ("broken", arr(&[raw_str(b"a\xffb"), s("ok"), nil()])),
    ];
    server.store(&columnar("types", &columns));
    flushed(&server, 3);
    let want = [
        json!({"time": T, "ints": i64::MIN, "floats": "NaN", "mixed": 9007199254740992.0, "strs": "", "bools": true, "bins": {"hex": ""},
               "nested": "[1,\"a\",null]", "f32": 1.5, "broken": "a\u{fffd}b"}),
        json!({"time": T + 1, "ints": null, "floats": "-inf", "mixed": 0.5, "strs": "é\u{1F600}\0\n", "bools": null, "bins": {"hex": "00ff"},
               "nested": "{\"k\":\"YWJj\",\"n\":null}", "f32": null, "broken": "ok"}),
        json!({"time": T + 2, "ints": i64::MAX, "floats": -0.0, "mixed": null, "strs": null, "bools": false, "bins": null,
               "nested": "text", "f32": null, "broken": null}),
    ];
    assert_eq!(table(&place, "types"), want, "a column of nothing but nil has no type and is not there");
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.lines().any(|l| l == "arc_ingest_invalid_utf8_total 1"), "{metrics}");

    // Once the type is known, nil is NULL in it.
    server.store(&columnar("types", &[("time", ints(&[T + 3])), ("nils", ints(&[4])), ("strs", arr(&[nil()]))]));
    server.store(&columnar("types", &[("time", ints(&[T + 4])), ("nils", arr(&[nil()]))]));
    flushed(&server, 2);
    let rows = table(&place, "types");
    assert_eq!((&rows[3]["nils"], &rows[3]["strs"], &rows[4]["nils"]), (&json!(4), &Value::Null, &Value::Null));
    // A request with nothing but a time is stored.
    server.store(&columnar("only_time", &[("time", ints(&[T]))]));
    server.store(&columnar("only_nil", &[("time", ints(&[T])), ("x", arr(&[nil()]))]));
    flushed(&server, 2);
    assert_eq!((table(&place, "only_time"), table(&place, "only_nil")), (vec![json!({"time": T})], vec![json!({"time": T})]));
}

#[test]
fn partitions_follow_the_rows_own_hour() {
    let place = Place::new();
    let server = place.start(&[]);
    let hour = T - T.rem_euclid(HOUR);
    let times = [-1, 0, -HOUR, -HOUR - 1, hour - 1, hour, hour + HOUR - 1, -62_135_596_800_000_000, 253_402_300_799_999_999];
    let n: Vec<i64> = (0..times.len() as i64).collect();
    server.store_with(&[("x-arc-time-unit", "us")], &columnar("t", &[("time", ints(&times)), ("n", ints(&n))]));
    let f = server.flush();
    assert_eq!((f["rows"].as_u64(), f["files"].as_u64()), (Some(9), Some(7)), "{f}");
    let found: Vec<(String, Vec<i64>)> = lake::files(&place.lake(), "default/t")
        .into_iter()
        .map(|f| (f.partition, f.rows.iter().map(|r| r["n"].as_i64().unwrap()).collect()))
        .collect();
    let want: Vec<(String, Vec<i64>)> = [
        ("0001-01-01/hour=00", vec![7]),
        ("1969-12-31/hour=22", vec![3]),
        ("1969-12-31/hour=23", vec![2, 0]),
        ("1970-01-01/hour=00", vec![1]),
        ("2023-11-14/hour=21", vec![4]),
        ("2023-11-14/hour=22", vec![5, 6]),
        ("9999-12-31/hour=23", vec![8]),
    ]
    .into_iter()
    .map(|(p, n)| (format!("default/t/date={p}"), n))
    .collect();
    assert_eq!(found, want, "rows within a file by time");
}

#[test]
fn names_files_and_footers() {
    let place = Place::new();
    let server = place.start(&[]);
    let log = server.status()["log_uuid"].as_str().unwrap().to_owned();
    let one = |name: &str| columnar(name, &[("time", ints(&[T])), ("date", strs(&["d"])), ("Hour", ints(&[1])), ("_x", ints(&[2]))]);
    let tables = [
        ("cpu.load-1", "cpu.load-1"),
        (".hidden", "%2Ehidden"),
        ("_arc", "%5Farc"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("täble x", "t%C3%A4ble%20x"),
        ("date=1", "date%3D1"),
    ];
    for (n, (name, _)) in tables.iter().enumerate() {
        assert_eq!(server.store(&one(name)), n as u64 + 1);
    }
    flushed(&server, tables.len() as u64);
    let last = tables.len();
    for (name, path) in tables {
        let files = lake::files(&place.lake(), &format!("default/{path}"));
        assert_eq!(files.len(), 1, "{name}");
        assert_eq!(files[0].partition, format!("default/{path}/date=2023-11-14/hour=22"));
        let file = files[0].path.file_name().unwrap().to_str().unwrap();
        let stem = format!("{log}-{:020}-{last:020}-", 1);
        assert!(file.starts_with(&stem) && file.len() == stem.len() + "0000.parquet".len(), "{file}");
        assert_eq!(Value::Object(files[0].rows[0].clone()), json!({"time": T, "date_value": "d", "Hour_value": 1, "_x": 2}));
        let meta = &files[0].metadata;
        assert!(meta.values().any(|v| v == name), "the true name is in the footer: {meta:?}");
        assert_eq!((meta["arc.log_uuid"].as_str(), meta["arc.first_sequence"].as_str()), (Some(log.as_str()), Some("1")), "{meta:?}");
    }
    server.stop();

    let place = Place::new();
    let server = place.start(&["storage.layout=arc"]);
    server.store(&one("t"));
    flushed(&server, 1);
    let files = lake::files(&place.lake(), "default/t");
    assert_eq!(files[0].partition, "default/t/2023/11/14/22");
    assert_eq!(Value::Object(files[0].rows[0].clone()), json!({"time": T, "date": "d", "Hour": 1, "_x": 2}));
}

#[test]
fn a_missing_time_is_the_receive_time_and_stays_it() {
    let place = Place::new();
    let mut server = place.start(&["compaction.paused=true"]);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    let before = now();
    server.store(&columnar("t", &[("v", ints(&[1, 2]))]));
    server.store(&mp(&json!({"m": "t", "fields": {"v": 3}})));
    let after = now();
    server.kill();
    let server = place.start(&[]);
    server.flush();
    let rows = table(&place, "t");
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|r| (before..=after).contains(&r["time"].as_i64().unwrap())), "{before} {rows:?} {after}");
    assert_eq!(rows[0]["time"], rows[1]["time"], "one request, one time");
}

#[test]
fn schemas_grow_and_widen_across_flushes() {
    let place = Place::new();
    let server = place.start(&[]);
    let one = |t: i64, v: Value| mp(&json!({"m": "t", "columns": {"time": [t], "v": [v]}}));
    server.store(&one(T, json!(1)));
    flushed(&server, 1);
    // Within one plan: an int, the widening, an int as float; and a column more.
    server.store(&one(T + 1, json!(2)));
    server.store(&one(T + 2, json!(2.5)));
    server.store(&one(T + 3, json!(3)));
    server.store(&mp(&json!({"m": "t", "columns": {"time": [T + 4], "w": ["new"]}})));
    flushed(&server, 4);
    server.store(&one(T + 5, json!(4)));
    flushed(&server, 1);

    let files = lake::files(&place.lake(), "default/t");
    let types: Vec<Vec<String>> = files.iter().map(|f| f.schema.iter().skip(1).map(|(n, t)| format!("{n}:{t}")).collect()).collect();
    assert_eq!(types[0], ["v:int64"]);
    assert_eq!(types.last().unwrap(), &["v:double", "w:string"]);
    assert_eq!(files.len(), 4, "the widening splits a plan's file: {types:?}");
    let v: Vec<Value> = files.iter().flat_map(|f| &f.rows).map(|r| json!([r["time"].as_i64().unwrap() - T, r["v"]])).collect();
    let mut v: Vec<String> = v.iter().map(Value::to_string).collect();
    v.sort();
    assert_eq!(v, ["[0,1]", "[1,2]", "[2,2.5]", "[3,3.0]", "[4,null]", "[5,4.0]"]);
    let status = server.status();
    assert_eq!(status["tables"][0]["widened"], json!(["v"]), "{status}");
    assert_eq!(status["quarantine"]["records"], 0);
}

/// A widening whose record is still in the log, over a definition that is in the checkpoint only, survives a restart.
#[test]
fn a_widening_after_the_checkpoint_survives_a_crash() {
    let place = Place::new();
    let mut server = place.start(&[]);
    let one = |t: i64, v: Value| mp(&json!({"m": "t", "columns": {"time": [t], "v": [v]}}));
    server.store(&one(T, json!(1)));
    flushed(&server, 1);
    super::server::until("the segment is released", || (server.watermark("released") == 1).then_some(()));
    server.kill();

    let mut server = place.start(&["compaction.paused=true"]);
    server.store(&one(T + 1, json!(2)));
    server.store(&one(T + 2, json!(2.5)));
    server.kill();
    let server = place.start(&["compaction.paused=true"]);
    let status = server.status();
    assert_eq!(status["tables"][0]["columns"][0]["type"], "float64", "{status}");
    assert_eq!(status["tables"][0]["widened"], json!(["v"]), "{status}");
    let wide = server.write(&[], &one(T + 3, json!((1i64 << 53) + 1)));
    assert_eq!(wide.status, 400, "{wide}");
    server.stop();
    let server = place.start(&[]);
    server.flush();
    assert_eq!(server.status()["quarantine"]["records"], 0);
    let v: Vec<Value> = table(&place, "t").iter().map(|r| r["v"].clone()).collect();
    assert_eq!(v, [json!(1), json!(2), json!(2.5)]);
}

#[test]
fn nothing_to_store_is_204_without_a_sequence() {
    let place = Place::new();
    let server = place.start(&[]);
    for (name, body) in [
        ("[]", mp(&json!([]))),
        ("batch []", mp(&json!({"batch": []}))),
        ("zero rows", mp(&json!({"m": "t", "columns": {"time": [], "v": []}}))),
        ("nested []", mp(&json!([[], {"batch": []}]))),
    ] {
        let r = server.write(&[("Idempotency-Key", "empty")], &body);
        if name == "nested []" {
            assert_eq!(r.status, 400, "an item must be a map: {r}");
            continue;
        }
        assert!(r.status == 204 && r.body.is_empty() && r.sequence().is_none(), "{name}: {r}");
        assert_eq!(r.header("idempotency-replayed"), None, "{name}: empty writes are not remembered: {r}");
    }
    assert_eq!(server.watermark("appended"), 0);
    assert_eq!(server.flush()["rows"], 0);
}

#[test]
fn the_database_is_the_header_then_db_then_bucket() {
    let place = Place::new();
    let server = place.start(&[]);
    let path = |q: &str| format!("/api/v1/write/msgpack{q}");
    for (want, header, query) in [
        ("default", None, ""),
        ("h1", Some("h1"), ""),
        ("h2", Some("h2"), "?db=other&bucket=more"),
        ("d1", None, "?db=d1"),
        ("d2", None, "?bucket=other&db=d2"),
        ("b1", None, "?bucket=b1&precision=ns"),
        ("A-b_9", None, "?db=A%2Db_9"),
    ] {
        let headers: Vec<(&str, &str)> = header.iter().map(|h| ("X-Arc-Database", *h)).collect();
        let body = mp(&json!({"m": "t", "t": T, "fields": {"want": want}}));
        assert_eq!(server.call("POST", &path(query), &headers, &body).status, 204);
    }
    flushed(&server, 7);
    for want in ["default", "h1", "h2", "d1", "d2", "b1", "A-b_9"] {
        assert_eq!(lake::rows(&place.lake(), want, "t"), [json!({"time": T, "want": want})]);
    }
}

#[test]
fn compressed_bodies_are_known_by_their_first_bytes() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = |n: i64| mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n]}}));
    server.store(&gzip(&body(0)));
    server.store_with(&[("Content-Encoding", "gzip")], &gzip(&body(1)));
    server.store_with(&[("Content-Encoding", "gzip")], &zstd(&body(2)));
    server.store_with(&[("Content-Encoding", "zstd"), ("Content-Type", "text/plain")], &body(3));
    let (a, z) = (body(4), body(5));
    server.store(&[gzip(&a[..5]), gzip(&a[5..])].concat());
    server.store(&[zstd(&z[..9]), zstd(&z[9..])].concat());
    flushed(&server, 6);
    let n: Vec<i64> = table(&place, "t").iter().map(|r| r["n"].as_i64().unwrap()).collect();
    assert_eq!(n, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn keys_replay_the_stored_outcome() {
    let place = Place::new();
    let mut server = place.start(&[]);
    let body = |n: i64| mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n]}}));
    let key = &[("Idempotency-Key", "k 1")][..];
    let bad = server.write(key, b"\xc1");
    assert_eq!(bad.status, 400);
    let first = server.store_with(key, &body(1));
    let check = |server: &Server, body: &[u8], headers: &[(&str, &str)]| {
        let r = server.write(headers, body);
        assert_eq!((r.status, r.sequence(), r.header("idempotency-replayed")), (204, Some(first), Some("true")), "{r}");
    };
    check(&server, &body(1), key);
    // The inflated body counts, not how it was packed.
    check(&server, &gzip(&body(1)), key);
    check(&server, &zstd(&body(1)), key);
    assert_eq!(server.write(key, &body(2)).status, 422);
    // The database is part of the identity.
    let other = server.store_with(&[("Idempotency-Key", "k 1"), ("x-arc-database", "db2")], &body(1));
    assert_ne!(other, first);
    server.kill();
    let mut server = place.start(&[]);
    check(&server, &body(1), key);
    server.flush();
    super::server::until("everything is released", || (server.watermark("released") == 2).then_some(()));
    check(&server, &body(1), key);
    server.kill();
    // The segments are gone, the key is in the manifest.
    let server = place.start(&[]);
    check(&server, &body(1), key);
    assert_eq!(server.write(key, &body(2)).status, 422);
    server.flush();
    assert_eq!(table(&place, "t"), [json!({"time": T + 1, "n": 1})]);
    assert_eq!(lake::rows(&place.lake(), "db2", "t"), [json!({"time": T + 1, "n": 1})]);
}

#[test]
fn old_and_cautious_clients_are_served() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = mp(&json!({"m": "t", "columns": {"time": [T], "n": [1]}}));
    let head = |version: &str, more: &str| {
        format!("POST /api/v1/write/msgpack HTTP/{version}\r\nHost: x\r\nContent-Length: {}\r\n{more}\r\n", body.len())
    };
    let mut c = Client::connect(server.addr).unwrap();
    c.send(&[head("1.0", "").as_bytes(), &body].concat()).unwrap();
    assert_eq!(c.receive(false).unwrap().status, 204);
    let mut c = Client::connect(server.addr).unwrap();
    c.send(head("1.1", "Expect: 100-continue\r\n").as_bytes()).unwrap();
    assert_eq!(c.receive(false).unwrap().status, 100);
    c.send(&body).unwrap();
    assert_eq!(c.receive(false).unwrap().status, 204);
    // Two requests at once on one connection are answered in their order.
    let both = [head("1.1", "X-Request-Id: r1\r\n").as_bytes(), &body, head("1.1", "X-Request-Id: r2\r\n").as_bytes(), &body].concat();
    c.send(&both).unwrap();
    let (a, b) = (c.receive(false).unwrap(), c.receive(false).unwrap());
    assert_eq!((a.header("x-request-id"), b.header("x-request-id")), (Some("r1"), Some("r2")));
    assert!(a.sequence().unwrap() < b.sequence().unwrap());
    flushed(&server, 4);
}
