//! Requests that must be refused: the exact status, the shape of the answer, and that nothing of them is in the log.

use std::io::Write as _;

use arc_ingest::vfs::OsVfs;
use arc_ingest::wal::recover::inspect;
use serde_json::{Value, json};

use super::msgpack::{arr, b, bin, columnar, ext, f, floats, gzip, i, ints, map, mp, nil, raw_str, s, strs, u, zstd};
use super::server::{Client, Place, Reply};

const MSGPACK: &str = "/api/v1/write/msgpack";
const NOW: i64 = 1_700_000_000_000;

struct Case {
    name: String,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    /// Must stand in the message.
    says: &'static str,
}

fn case(name: &str, body: Vec<u8>, status: u16, says: &'static str) -> Case {
    Case { name: name.into(), method: "POST", path: MSGPACK.into(), headers: Vec::new(), body, status, says }
}

fn bad(name: &str, body: Vec<u8>, says: &'static str) -> Case {
    case(name, body, 400, says)
}

impl Case {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn at(mut self, method: &'static str, path: &str) -> Self {
        self.method = method;
        self.path = path.into();
        self
    }
}

fn code(status: u16) -> &'static str {
    match status {
        400 => "invalid",
        404 => "not found",
        405 => "method not allowed",
        413 => "request too large",
        422 => "unprocessable entity",
        other => panic!("no case has status {other}"),
    }
}

fn good() -> Vec<u8> {
    columnar("good", &[("time", ints(&[NOW])), ("v", ints(&[1]))])
}

/// A request of one column `v` beside a good time.
fn values(v: &[Vec<u8>]) -> Vec<u8> {
    columnar("t", &[("time", ints(&vec![NOW; v.len()])), ("v", arr(v))])
}

fn times(v: &[Vec<u8>]) -> Vec<u8> {
    columnar("t", &[("time", arr(v)), ("v", ints(&vec![1; v.len()]))])
}

fn row(extra: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pairs = vec![("m", s("t")), ("t", i(NOW))];
    pairs.extend(extra.iter().cloned());
    map(&pairs)
}

fn one_field() -> (&'static str, Vec<u8>) {
    ("fields", mp(&json!({"a": 1})))
}

fn syntax() -> Vec<Case> {
    let deep = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
    let in_column = columnar("t", &[("v", arr(&[deep(70)]))]);
    let batches = (0..5).fold(good(), |b, _| map(&[("batch", arr(&[b]))]));
    vec![
        bad("empty body", vec![], "empty"),
        bad("the marker that is never used", vec![0xc1], "0xc1"),
        bad("text", b"hello".to_vec(), ""),
        bad("truncated", good()[..good().len() - 1].to_vec(), "cut short"),
        bad("truncated in the middle", good()[..good().len() / 2].to_vec(), "cut short"),
        bad("an array of 4 billion", vec![0xdd, 0xff, 0xff, 0xff, 0xff, 1, 2], "cut short"),
        bad("a column of 4 billion", columnar("t", &[("v", vec![0xdd, 0xff, 0xff, 0xff, 0xff])]), "cut short"),
        bad("a string of 4 billion", vec![0x81, 0xdb, 0xff, 0xff, 0xff, 0xff, b'm'], "cut short"),
        bad("a byte behind", [good(), vec![0]].concat(), "follow"),
        bad("two objects", [good(), good()].concat(), "follow"),
        bad("an integer", i(5), "expected a map or an array"),
        bad("a string", s("x"), "expected a map or an array"),
        bad("nil", nil(), "expected a map or an array"),
        bad("nested too deep", deep(70), "deep"),
        bad("a value nested too deep", in_column, "deep"),
        bad("batches nested too deep", batches, "deep"),
        bad("batch is no array", map(&[("batch", i(1))]), "'batch' must be an array"),
        bad("an item that is no map", arr(&[good(), i(1)]), "item 1"),
        bad("a bad item of an array", arr(&[good(), good(), map(&[("m", s("x"))])]), "item 2"),
        bad("a bad item of a batch", map(&[("batch", arr(&[good(), row(&[])]))]), "item 1"),
        bad("key m twice", map(&[("m", s("a")), ("m", s("a")), one_field()]), "twice"),
        bad("columns twice", map(&[("m", s("a")), ("columns", mp(&json!({"a": [1]}))), ("columns", mp(&json!({"a": [1]})))]), "twice"),
        bad("an unknown key twice", map(&[("x", i(1)), ("m", s("a")), one_field(), ("x", i(2))]), "twice"),
        bad("a field twice", row(&[("fields", map(&[("a", i(1)), ("a", i(1))]))]), "twice"),
        bad("a tag twice", row(&[("tags", map(&[("a", s("1")), ("a", s("1"))])), ("fields", mp(&json!({"b": 1})))]), "twice"),
    ]
}

fn names() -> Vec<Case> {
    let table = |n: &str| columnar(n, &[("v", ints(&[1]))]);
    let column = |n: &str| columnar("t", &[(n, ints(&[1]))]);
    let column2 = |a: &str, b: &str| columnar("t", &[(a, ints(&[1])), (b, ints(&[1]))]);
    let mut many: Vec<(String, Vec<u8>)> = (0..33).map(|n| (format!("c{n}"), ints(&[1]))).collect();
    many.push(("time".into(), ints(&[NOW])));
    let many: Vec<(&str, Vec<u8>)> = many.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    vec![
        bad("no table", map(&[one_field()]), "'m'"),
        bad("table is nil", map(&[("m", nil()), one_field()]), "'m'"),
        bad("table is a float", map(&[("m", f(1.5)), one_field()]), "'m'"),
        bad("table is empty", table(""), "empty"),
        bad("table is .", table("."), "'..'"),
        bad("table is ..", table(".."), "'..'"),
        bad("table of 129 bytes", table(&"x".repeat(129)), "128 bytes"),
        bad("table over 200 bytes escaped", table(&"é".repeat(40)), "200 bytes"),
        bad("table with NUL", table("a\0b"), "control"),
        bad("table with newline", table("a\nb"), "control"),
        bad("table with DEL", table("a\u{7f}"), "control"),
        bad("table with a C1 control", table("a\u{85}"), "control"),
        bad("column is empty", column(""), "empty"),
        bad("column of 257 bytes", column(&"x".repeat(257)), "256 bytes"),
        bad("column with NUL", column("a\0"), "control"),
        bad("column with tab", column("a\tb"), "control"),
        bad("column TIME", column("TIME"), "'time'"),
        bad("columns up to case", column2("Host", "host"), "case"),
        bad("columns up to case beyond ASCII", column2("É", "é"), "case"),
        bad("column twice", column2("a", "a"), "twice"),
        bad("too many columns", columnar("t", &many), "columns"),
        bad("tag and field up to case", row(&[("tags", mp(&json!({"A": "x"}))), ("fields", mp(&json!({"a": 1})))]), "case"),
        bad("a column name that is no string", map(&[("m", s("t")), ("columns", vec![0x81, 1, 0x91, 1])]), "must be a string"),
        bad("database with a digit first", good(), "database").with("x-arc-database", "1abc"),
        bad("database with a slash", good(), "database").with("x-arc-database", "a/b"),
        bad("database is empty", good(), "database").with("x-arc-database", ""),
        bad("database of 65 bytes", good(), "database").with("x-arc-database", &"d".repeat(65)),
        bad("database ..", good(), "database").with("x-arc-database", ".."),
        bad("database with a leading underscore", good(), "database").with("x-arc-database", "_arc"),
        bad("database not ASCII", good(), "x-arc-database").with("x-arc-database", "dé"),
        bad("database twice", good(), "more than once").with("x-arc-database", "a").with("x-arc-database", "a"),
        bad("db= bad", good(), "database").at("POST", "/api/v1/write/msgpack?db=a%2Fb"),
        bad("db= empty", good(), "database").at("POST", "/api/v1/write/msgpack?db="),
        bad("bucket= bad", good(), "database").at("POST", "/api/v1/write/msgpack?bucket=9"),
    ]
}

fn times_and_types() -> Vec<Case> {
    let time = |v: Vec<u8>| times(&[i(NOW), v]);
    let max = u(i64::MAX as u64 + 1);
    let wide = (1i64 << 53) + 1;
    vec![
        bad("time nil", time(nil()), "time of row 1"),
        bad("time a string", time(s("2024-01-01")), "time of row 1"),
        bad("time a bool", time(b(true)), "time of row 1"),
        bad("time binary", time(bin(b"x")), "time of row 1"),
        bad("time NaN", time(f(f64::NAN)), "time of row 1"),
        bad("time infinite", time(f(f64::INFINITY)), "time of row 1"),
        bad("time above i64", time(max.clone()), "time of row 1"),
        bad("time nested", time(ints(&[1])), "time of row 1"),
        bad("time in two units", times(&[i(1_700_000_000), i(NOW)]), "unit"),
        bad("time in two units by floats", times(&[f(1.7e9), f(1.7e12)]), "unit"),
        bad("time after the year 9999", times(&[i(253_402_300_800)]), "9999").with("x-arc-time-unit", "s"),
        bad("time before the year 1", times(&[i(-62_135_596_801)]), "0001").with("x-arc-time-unit", "s"),
        bad("time that overflows", times(&[i(i64::MAX)]), "9999").with("x-arc-time-unit", "s"),
        bad("time an extension of 5 bytes", time(ext(-1, &[0; 5])), "timestamp extension"),
        bad("time an extension with 10^9 ns", time(ext(-1, &((1_000_000_000u64 << 34) | 1).to_be_bytes())), "nanoseconds"),
        bad("time another extension", time(ext(5, &[0; 4])), "time of row 1"),
        bad("unknown unit", good(), "x-arc-time-unit").with("x-arc-time-unit", "m"),
        bad("empty unit", good(), "x-arc-time-unit").with("x-arc-time-unit", ""),
        bad("unit twice", good(), "more than once").with("x-arc-time-unit", "s").with("x-arc-time-unit", "s"),
        bad("lengths differ", columnar("t", &[("time", ints(&[NOW])), ("v", ints(&[1, 2]))]), "'v' has 2"),
        bad("one column empty", columnar("t", &[("time", ints(&[NOW])), ("v", arr(&[]))]), "length"),
        bad("a column that is no array", columnar("t", &[("v", i(1))]), "must be an array"),
        bad("a column that is nil", columnar("t", &[("v", nil())]), "must be an array"),
        bad("no columns", columnar("t", &[]), "at least one column"),
        bad("columns is an array", map(&[("m", s("t")), ("columns", ints(&[1]))]), "must be a map"),
        bad("columns and fields", map(&[("m", s("t")), ("columns", mp(&json!({"a": [1]}))), one_field()]), "'fields'"),
        bad("int, string", values(&[i(1), s("x")]), "row 1"),
        bad("string, int", values(&[s("x"), i(1)]), "row 1"),
        bad("bool, int", values(&[b(true), i(1)]), "row 1"),
        bad("float, string", values(&[f(1.0), nil(), s("x")]), "row 2"),
        bad("string, binary", values(&[s("x"), bin(b"x")]), "row 1"),
        bad("string, map", values(&[b(true), map(&[])]), "row 1"),
        bad("int above i64", values(&[i(1), max]), "row 1"),
        bad("wide int, float", values(&[i(wide), f(1.5)]), "9007199254740993"),
        bad("float, wide int", values(&[f(1.5), i(wide)]), "9007199254740993"),
        bad("an extension", values(&[ext(5, &[1])]), "extension"),
        bad("a timestamp outside time", values(&[ext(-1, &[0; 4])]), "time only"),
    ]
}

fn rows() -> Vec<Case> {
    let tags = |v: Value| ("tags", mp(&v));
    vec![
        bad("no fields", row(&[]), "nothing to store"),
        bad("tags alone", row(&[tags(json!({"a": "x"}))]), "nothing to store"),
        bad("fields empty", row(&[("fields", map(&[]))]), "at least one field"),
        bad("f empty", row(&[("f", arr(&[]))]), "at least one field"),
        bad("fields is an array", row(&[("fields", ints(&[1]))]), "must be a map"),
        bad("f is a map", row(&[("f", map(&[("a", i(1))]))]), "must be an array"),
        bad("fields and f", row(&[one_field(), ("f", ints(&[1]))]), "'f'"),
        bad("t and time", row(&[one_field(), ("time", i(NOW))]), "'time'"),
        bad("t a string", map(&[("m", s("t")), ("t", s("now")), one_field()]), "'t'"),
        bad("t nil", map(&[("m", s("t")), ("t", nil()), one_field()]), "'t'"),
        bad("a field called time", row(&[("fields", mp(&json!({"time": 1})))]), "time"),
        bad("a tag called time", row(&[one_field(), tags(json!({"time": "x"}))]), "time"),
        bad("h against tags.host", row(&[one_field(), ("h", s("a")), tags(json!({"host": "b"}))]), "tags.host"),
        bad("h a float", row(&[one_field(), ("h", f(1.0))]), "'h'"),
        bad("tags is an array", row(&[one_field(), ("tags", arr(&[]))]), "must be a map"),
        bad("a_value taken", row(&[tags(json!({"a": "x"})), ("fields", mp(&json!({"a": 1, "a_value": 2})))]), "a_value"),
        bad("a field above i64", row(&[("fields", map(&[("a", u(u64::MAX))]))]), "int64"),
        bad("rows of other types", arr(&[row(&[one_field()]), row(&[("fields", mp(&json!({"a": "x"})))])]), "item 1"),
    ]
}

fn sizes_and_compression() -> Vec<Case> {
    let zeros = vec![0u8; 4 << 20];
    let long = "x".repeat(3000);
    let record: Vec<u8> = {
        let texts: Vec<String> = (0..60).map(|n| format!("{n}{long}")).collect();
        columnar("t", &[("time", ints(&[NOW; 60])), ("v", strs(&texts.iter().map(String::as_str).collect::<Vec<_>>()))])
    };
    let hours: Vec<i64> = (0..9).map(|h| 1_700_000_000 + h * 3600).collect();
    let zipped = gzip(&good());
    let mut wrong_crc = zipped.clone();
    let at = wrong_crc.len() - 6;
    wrong_crc[at] ^= 1;
    let mut wrong_data = gzip(&[good(), vec![0; 500]].concat());
    wrong_data[14] ^= 0x55;
    let packed = zstd(&good());
    vec![
        case("over the raw limit", vec![0x90; 200 << 10], 413, "server.max_payload_size"),
        case("gzip over the inflated limit", gzip(&zeros), 413, "ingest.max_inflated_size"),
        case("zstd over the inflated limit", zstd(&zeros), 413, "ingest.max_inflated_size"),
        case("two gzip members over the limit", [gzip(&zeros[..200 << 10]), gzip(&zeros[..200 << 10])].concat(), 413, "max_inflated_size"),
        case("over the record limit", gzip(&record), 413, "ingest.max_record_size"),
        case("too many hours", columnar("t", &[("time", ints(&hours)), ("v", ints(&[1; 9]))]), 413, "ingest.max_partitions"),
        case(
            "too many tables and hours",
            {
                let at = ints(&hours[..3]);
                let items: Vec<Vec<u8>> = (0..3).map(|n| columnar(&format!("p{n}"), &[("time", at.clone())])).collect();
                arr(&items)
            },
            413,
            "ingest.max_partitions",
        ),
        bad("gzip cut short", zipped[..zipped.len() - 3].to_vec(), "gzip"),
        bad("gzip cut in its header", zipped[..7].to_vec(), "gzip"),
        bad("gzip with another checksum", wrong_crc, "gzip"),
        bad("gzip with damaged data", wrong_data, "gzip"),
        bad("gzip with bytes behind", [zipped.clone(), b"xyz".to_vec()].concat(), "gzip"),
        bad("gzip of nothing", gzip(b""), "empty"),
        bad("gzip of gzip", gzip(&zipped), ""),
        bad("zstd cut short", packed[..packed.len() - 2].to_vec(), "zstd"),
        bad("zstd with bytes behind", [packed.clone(), b"xyz".to_vec()].concat(), "zstd"),
        bad("zstd damaged", [&packed[..4], &[0xff; 12]].concat(), "zstd"),
        bad("an uncompressed body that says gzip is read as it is", b"\x80x".to_vec(), "follow").with("Content-Encoding", "gzip"),
    ]
}

fn keys_and_catalog() -> Vec<Case> {
    let typed = |c: &str, v: Vec<u8>| columnar("typed", &[("time", ints(&[NOW])), (c, arr(&[v]))]);
    let wide = typed("f", i((1 << 53) + 1));
    let more: Vec<(String, Vec<u8>)> = (0..28).map(|n| (format!("n{n}"), ints(&[1]))).collect();
    let more: Vec<(&str, Vec<u8>)> = more.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let tables: Vec<Vec<u8>> = (0..5).map(|n| columnar(&format!("new{n}"), &[("time", ints(&[NOW])), ("v", ints(&[1]))])).collect();
    vec![
        bad("key empty", good(), "Idempotency-Key").with("Idempotency-Key", ""),
        bad("key of 129 bytes", good(), "Idempotency-Key").with("Idempotency-Key", &"k".repeat(129)),
        bad("key not ASCII", good(), "Idempotency-Key").with("Idempotency-Key", "é"),
        bad("key with a tab", good(), "Idempotency-Key").with("Idempotency-Key", "a\tb"),
        bad("key twice", good(), "more than once").with("Idempotency-Key", "a").with("Idempotency-Key", "a"),
        case("key with another body", good(), 422, "used").with("Idempotency-Key", "used"),
        case("key with another unit", base(), 422, "used").with("Idempotency-Key", "used").with("x-arc-time-unit", "ms"),
        bad("string into int64", typed("i", s("x")), "int64"),
        bad("bool into int64", typed("i", b(true)), "int64"),
        bad("string into float64", typed("f", s("x")), "float64"),
        bad("int into string", typed("s", i(1)), "string"),
        bad("binary into string", typed("s", bin(b"x")), "string"),
        bad("string into binary", typed("x", s("x")), "binary"),
        bad("float into bool", typed("b", f(1.0)), "bool"),
        bad("an int that float64 cannot hold", wide, "9007199254740993"),
        bad("a durable column up to case", typed("I", i(1)), "case"),
        bad("too many columns with those there are", columnar("typed", &more), "ingest.max_columns"),
        bad("too many tables", arr(&tables), "ingest.max_tables"),
        bad("one of two tables is bad", arr(&[good(), typed("i", s("x"))]), "int64"),
    ]
}

/// Line protocol of which nothing can be stored, and requests for it that are refused before a line is read.
fn lines() -> Vec<Case> {
    const V1: &str = "/write?db=default&precision=ms";
    let at = |path: &str, name: &str, body: &[u8], says| bad(&format!("line protocol: {name}"), body.to_vec(), says).at("POST", path);
    let line = |name: &str, body: &[u8], says| at(V1, name, body, says);
    let over = |name: &str, body: Vec<u8>, says| case(&format!("line protocol: {name}"), body, 413, says).at("POST", V1);
    let hours: String = (0..9).map(|h| format!("h v=1 {}\n", NOW + h * 3_600_000)).collect();
    let sparse: String = (0..30).flat_map(|c| (0..60).map(move |r| format!("s v{c}=1 {}\n", NOW + c * 60 + r))).collect();
    let packed = gzip(b"m v=1");
    let mut all: Vec<Case> = ["/write", "/api/v2/write?org=o", "/api/v3/write_lp", "/api/v2/write?bucket=", "/write?db=../x"]
        .into_iter()
        .map(|p| at(p, &format!("no database for {p}"), b"m v=1", "database"))
        .collect();
    for (path, precision) in
        [("/write", "d"), ("/api/v2/write", "m"), ("/api/v2/write", "n"), ("/api/v3/write_lp", "u"), ("/api/v3/write_lp", "NS")]
    {
        all.push(at(&format!("{path}?db=d&precision={precision}"), &format!("{precision} on {path}"), b"m v=1", "unknown precision"));
    }
    all.extend([
        at("/api/v3/write_lp?db=d&accept_partial=yes", "a flag that is none", b"m v=1", "accept_partial"),
        at("/api/v3/write_lp?db=d&accept_partial=false", "one bad line, all or nothing", b"m v=1\nm v=", "parsing failed"),
        line("no fields", b"m\nm,t=x\n", "unable to parse 'm': missing fields"),
        line("no measurement", b",t=x v=1", "missing measurement"),
        line("an empty tag value", b"m,t= v=1", "missing tag value"),
        line("a tag twice", b"m,t=x,t=y v=1", "given twice"),
        line("a float with the suffix of an integer", b"m v=1.5i", "invalid field value"),
        line("letters behind digits", b"m v=12abc", "invalid field value"),
        line("an open quote", b"m v=\"x", "unterminated string"),
        line("text behind a quote", b"m v=\"x\"y", "invalid string"),
        line("NaN", b"m v=NaN", "finite"),
        line("infinity", b"m v=-Inf", "finite"),
        line("a float that overflows", b"m v=1e999", "finite"),
        line("an integer that overflows", b"m v=9223372036854775808i", "int64"),
        line("an unsigned that int64 cannot hold", b"m v=18446744073709551615u", "int64"),
        line("a field called time", b"m time=1", "time stamp column"),
        line("a time that is none", b"m v=1 now", "bad timestamp"),
        line("a time that overflows", b"m v=1 9223372036854775807", "9999"),
        line("a time that int64 cannot hold", b"m v=1 9223372036854775808", "bad timestamp"),
        line("invalid UTF-8", b"m v=\"\xff\"", "UTF-8"),
        line("columns that differ in case", b"m v=1,V=2", "case"),
        line("control characters", b"m\x01 v=1", "control characters"),
        line("MessagePack", &good(), "unable to parse"),
        line("a string into int64", b"typed i=\"x\"", "field type conflict"),
        line("an int that float64 cannot hold", b"typed f=9007199254740993i", "field type conflict"),
        line("a durable column up to case", b"typed I=1i", "case"),
        line("gzip cut short", &packed[..packed.len() - 3], "gzip"),
        over("too many hours", hours.into_bytes(), "ingest.max_partitions"),
        over("cells left out", sparse.into_bytes(), "ingest.max_record_size"),
        over("over the raw limit", vec![b'x'; 200 << 10], "server.max_payload_size"),
        over("over the inflated limit", gzip(&vec![b'x'; 400 << 10]), "ingest.max_inflated_size"),
        case("line protocol: types alone", b"typed i=\"x\"".to_vec(), 422, "field type conflict")
            .at("POST", "/api/v2/write?bucket=default"),
        at("/query?q=DROP+DATABASE+default", "another statement", b"", "CREATE DATABASE"),
    ]);
    let tables: String = (0..5).map(|n| format!("new{n} v=\n")).collect();
    all.push(line("tables of bad lines", tables.as_bytes(), "missing field value"));
    all
}

fn routes() -> Vec<Case> {
    let flush = |t: &str| bad(&format!("flush timeout {t}"), vec![], "timeout").at("POST", &format!("/api/v1/flush?timeout={t}"));
    let at = |method, path: &str, status| case(&format!("{method} {path}"), vec![], status, "").at(method, path);
    vec![
        at("GET", "/nothing", 404),
        at("POST", "/api/v1/write", 404),
        at("POST", "/api/v1/write/msgpack/", 404),
        at("GET", "/api/v1/write/msgpack", 405),
        at("PUT", "/api/v1/write/msgpack", 405),
        at("DELETE", "/api/v1/write/msgpack", 405),
        at("POST", "/health", 405),
        at("POST", "/api/v1/status", 405),
        at("GET", "/api/v1/flush", 405),
        at("GET", "/api/v1/write/line-protocol/flush", 405),
        at("GET", "/write", 405),
        at("PUT", "/api/v3/write_lp", 405),
        at("POST", "/ping", 405),
        flush("x"),
        flush("-1s"),
        flush("1.5s"),
        flush("2h"),
        flush(""),
        flush("1d"),
    ]
}

/// The body that is stored before the cases: a column of each type.
fn base() -> Vec<u8> {
    let columns = [
        ("i", ints(&[1])),
        ("f", floats(&[1.5])),
        ("s", strs(&["a"])),
        ("b", arr(&[b(true)])),
        ("x", arr(&[bin(b"z")])),
        ("time", ints(&[NOW])),
    ];
    columnar("typed", &columns)
}

fn refused(name: &str, r: &Reply, status: u16, says: &str) {
    assert_eq!(r.status, status, "{name}: {r}");
    assert_eq!(r.header("content-type"), Some("application/json"), "{name}: {r}");
    assert!(r.header("x-request-id").is_some_and(|id| !id.is_empty()), "{name}: {r}");
    assert_eq!(r.header("x-arc-sequence"), None, "{name}: {r}");
    let body = r.json();
    assert_eq!(body["code"], code(status), "{name}: {r}");
    let message = body["message"].as_str().unwrap();
    assert!(!message.is_empty() && body["error"] == body["message"], "{name}: {r}");
    assert!(message.contains(says), "{name}: the message does not say {says:?}: {r}");
    assert!(!message.chars().any(char::is_control), "{name}: {r}");
}

/// Sequences of the write records in the log, seen by the server's own reader.
fn logged(place: &Place) -> Vec<u64> {
    let mut seen = Vec::new();
    inspect(&OsVfs, &place.wal(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
    seen
}

const LIMITS: &[&str] = &[
    "server.max_payload_size=100KB",
    "ingest.max_inflated_size=300KB",
    "ingest.max_record_size=100KB",
    "ingest.max_partitions=8",
    "ingest.max_columns=32",
    "ingest.max_tables=4",
    "compaction.max_delay=1h",
];

#[test]
fn what_is_refused_leaves_no_trace() {
    let place = Place::new();
    let server = place.start(LIMITS);
    assert_eq!(server.store_with(&[("Idempotency-Key", "used")], &base()), 1);
    let before = logged(&place);
    assert_eq!(before, [1]);

    let cases: Vec<Case> = [syntax(), names(), times_and_types(), rows(), sizes_and_compression(), keys_and_catalog(), lines(), routes()]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() >= 150, "{}", cases.len());
    let mut failed = Vec::new();
    for c in &cases {
        let headers: Vec<(&str, &str)> = c.headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let r = server.call(c.method, &c.path, &headers, &c.body);
        let checked = std::panic::catch_unwind(|| refused(&c.name, &r, c.status, c.says));
        if checked.is_err() {
            failed.push(format!("{}: {r}", c.name));
        }
        assert_eq!(server.watermark("appended"), 1, "{}: it reached the log", c.name);
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));

    assert_eq!(logged(&place), before);
    let status = server.status();
    assert_eq!(status["tables"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["tables"][0]["columns"].as_array().unwrap().len(), 5, "{status}");
    let flushed = server.flush();
    assert_eq!((flushed["rows"].as_u64(), flushed["through_seq"].as_u64()), (Some(1), Some(1)), "the base row alone");
    let flushed = server.flush();
    assert_eq!((flushed["rows"].as_u64(), flushed["files"].as_u64()), (Some(0), Some(0)));
    // What was refused left nothing behind that keeps good requests out.
    assert_eq!(server.store(&good()), 2);
    server.stop();
}

#[test]
fn a_chunked_body_over_the_limit_is_413() {
    let place = Place::new();
    let server = place.start(LIMITS);
    let mut c = Client::connect(server.addr).unwrap();
    c.send(format!("POST {MSGPACK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let mut chunk = Vec::new();
    write!(chunk, "{:x}\r\n", 60 << 10).unwrap();
    chunk.extend(vec![0u8; 60 << 10]);
    chunk.extend(b"\r\n");
    for _ in 0..3 {
        c.send(&chunk).unwrap();
    }
    c.send(b"0\r\n\r\n").unwrap();
    refused("chunked", &c.receive(false).unwrap(), 413, "server.max_payload_size");
    // And chunks that are within the limit are a body like any other.
    let mut c = Client::connect(server.addr).unwrap();
    let mut request = format!("POST {MSGPACK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for part in good().chunks(7) {
        write!(request, "{:x}\r\n", part.len()).unwrap();
        request.extend(part);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    c.send(&request).unwrap();
    assert_eq!(c.receive(false).unwrap().status, 204);
    assert_eq!(server.flush()["rows"], 1);
}

#[test]
fn nested_values_are_refused_when_configured() {
    let place = Place::new();
    let server = place.start(&["ingest.nested=reject"]);
    for (name, body) in [
        ("array", values(&[ints(&[1])])),
        ("map", values(&[i(1), mp(&json!({"a": 1}))])),
        ("in a row", row(&[("fields", mp(&json!({"a": [1]})))])),
        ("in a tag", row(&[one_field(), ("tags", mp(&json!({"a": {}})))])),
    ] {
        refused(name, &server.write(&[], &body), 400, "ingest.nested");
    }
    refused("not UTF-8 in a name", &server.write(&[], &columnar("t", &[("a", arr(&[map(&[])]))])), 400, "ingest.nested");
    assert_eq!(server.watermark("appended"), 0);
    assert_eq!(server.flush()["rows"], 0);
}

/// Replaced by U+FFFD like other strings, two of them would become one column, here or in requests that follow each other.
#[test]
fn column_names_that_are_not_utf8_are_refused() {
    let place = Place::new();
    let server = place.start(&[]);
    let columns = [vec![0x82], raw_str(b"a\xff"), ints(&[1]), raw_str(b"a\xfe"), ints(&[1])].concat();
    refused("columns", &server.write(&[], &map(&[("m", s("t")), ("columns", columns)])), 400, "not valid UTF-8");
    assert_eq!(server.watermark("appended"), 0);
}
