//! What is stored, answered and refused of a body, and what all bodies together may take.

use serde_json::{Value, json};

use super::Case;
use crate::lake;
use crate::msgpack::{arr, columnar, ext, f, floats, gzip, i, ints, map, mp, raw_str, s, strs, u};
use crate::server::{Place, Reply, Server};

const UNIT: &str = "src/decode/msgpack/tests/rules.rs";
const LINES: &str = "src/decode/line_protocol/tests/grammar.rs";
const REFUSED: &str = "src/decode/line_protocol/tests/refused.rs";
const HERE: &str = "tests/it/outside/decode.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H7",
        kind: "no bound for all tables together: columns, bytes of names, and the status that lists them",
        tests: &[
            (HERE, "columns_and_names_of_all_tables_are_bounded_and_a_log_over_the_limit_opens"),
            (HERE, "the_status_lists_tables_in_pages"),
            ("src/catalog/tests.rs", "columns_of_all_tables_together_are_bounded"),
            ("src/catalog/tests.rs", "name_bytes_of_all_tables_together_are_bounded"),
            ("src/catalog/tests.rs", "replay_is_never_refused_and_what_is_there_stays_usable"),
            ("src/catalog/tests.rs", "tables_share_the_names_of_their_columns"),
            (REFUSED, "columns_and_name_bytes_of_all_tables_are_bounded_line_by_line"),
        ],
    },
    Case {
        id: "H9",
        kind: "text produced from input without a budget",
        tests: &[
            (HERE, "memory_stays_bounded_while_small_bodies_become_much_text"),
            (UNIT, "text_made_of_values_is_bounded_by_the_record"),
            (UNIT, "a_long_tag_of_many_rows_is_never_copied_for_each_of_them"),
            ("src/http/large.rs", "large_bodies_share_their_room_and_one_over_it_goes_alone"),
        ],
    },
    Case {
        id: "A2",
        kind: "invisible characters become part of names",
        tests: &[
            (HERE, "byte_order_marks_are_skipped_and_invisible_names_refused"),
            (LINES, "byte_order_marks_before_lines_are_skipped"),
            ("src/names.rs", "names_that_people_use_are_allowed"),
            ("src/names.rs", "names_with_what_nobody_sees_are_refused_by_the_character"),
            ("src/batch.rs", "a_batch_from_a_log_keeps_names_that_requests_may_not_have"),
            (REFUSED, "other_formats_are_named_once"),
        ],
    },
    Case {
        id: "A4",
        kind: "a name that begins like a comment is lost without a word",
        tests: &[(HERE, "an_escaped_hash_is_a_name_and_comments_are_counted"), (LINES, "a_backslash_before_a_hash_makes_a_name_of_it")],
    },
    Case {
        id: "A8",
        kind: "a hint that leads away from the cause",
        tests: &[(REFUSED, "a_backslash_before_a_space_is_said_to_escape_it")],
    },
    Case {
        id: "A9",
        kind: "parts of a request dropped with a 204",
        tests: &[
            (HERE, "tags_of_a_columnar_item_are_stored_and_misplaced_keys_refused"),
            (UNIT, "tags_of_the_columnar_form_are_columns_of_one_value"),
            (UNIT, "known_keys_in_the_wrong_place_are_refused_by_name"),
        ],
    },
    Case {
        id: "A10",
        kind: "names that are not UTF-8 merge into one",
        tests: &[(HERE, "names_that_are_not_utf8_are_refused_and_strings_replaced"), (UNIT, "names_that_are_not_utf8_are_refused")],
    },
    Case {
        id: "A11",
        kind: "an unsigned integer refused although the column holds it exactly",
        tests: &[
            (HERE, "unsigned_integers_go_into_float_columns_that_hold_them"),
            (UNIT, "integers_above_int64_go_into_float_columns_that_hold_them_exactly"),
            (LINES, "unsigned_integers_above_int64_need_a_float_column_or_are_saturated"),
        ],
    },
    Case {
        id: "A12",
        kind: "names in errors that nobody can read",
        tests: &[
            ("src/batch.rs", "names_are_shown_as_they_are_but_for_what_nobody_sees"),
            (REFUSED, "names_in_messages_stand_as_they_are"),
            (HERE, "names_in_answers_stand_as_they_are"),
        ],
    },
    Case {
        id: "A13",
        kind: "errors that do not say what was sent",
        tests: &[
            (UNIT, "extensions_are_named_by_their_number"),
            (UNIT, "other_formats_are_named_with_a_route_that_takes_them"),
            ("src/decode/sniff.rs", "formats_by_their_first_bytes"),
            (HERE, "json_sent_to_the_messagepack_route_is_named"),
        ],
    },
    Case {
        id: "A15",
        kind: "time stamps in the wrong unit are stored silently",
        tests: &[
            (HERE, "rows_of_1970_and_of_the_future_are_counted_logged_and_listed"),
            ("src/http/oddities.rs", "times_before_2000_and_over_a_day_ahead_are_odd"),
            ("src/http/oddities.rs", "the_list_keeps_the_tables_that_were_odd_last"),
        ],
    },
    Case {
        id: "A17",
        kind: "one value for which a whole batch is refused for ever",
        tests: &[
            (HERE, "large_unsigned_integers_are_refused_by_name_or_saturated_and_counted"),
            (UNIT, "integers_above_int64_are_saturated_and_counted_when_asked"),
            (LINES, "unsigned_integers_above_int64_need_a_float_column_or_are_saturated"),
        ],
    },
];

impl Server {
    fn write_lines(&self, body: &[u8]) -> Reply {
        self.call("POST", "/write?db=d&precision=us", &[], body)
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' '))).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// Refused with 400 and a message that has all of `parts`.
fn refused(r: &Reply, parts: &[&str]) {
    assert_eq!(r.status, 400, "{r}");
    let message = r.json()["message"].as_str().unwrap().to_owned();
    for p in parts {
        assert!(message.contains(p), "'{p}' is not in: {message}");
    }
}

const IN_D: &[(&str, &str)] = &[("x-arc-database", "d")];
/// 2023-11-14T22:13:20Z.
const T: i64 = 1_700_000_000_000_000;

fn table(place: &Place, name: &str) -> Vec<Value> {
    lake::rows(&place.lake(), "d", name)
}

/// Resident memory of a process at its highest, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A column `a` with one value: an array of `n` objects of one byte.
fn array_of(n: u32, byte: u8) -> Vec<u8> {
    let array = [&[0xdd][..], &n.to_be_bytes(), &vec![byte; n as usize]].concat();
    columnar("t", &[("time", ints(&[T])), ("a", arr(&[array]))])
}

/// Little on the wire, 12 MB inflated, 60 MB as text. Sixteen at a time, and all other ways to make text.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_bounded_while_small_bodies_become_much_text() {
    const INFLATED: u64 = 16 << 20;
    let place = Place::new();
    let server = place.start(&["ingest.max_inflated_size=16MB", "ingest.max_record_size=16MB", "ingest.max_in_flight=32MB"]);
    let before = peak_memory(server.pid());
    let n = 12 << 20;
    let invalid = columnar("t", &[("time", ints(&[T])), ("a", arr(&[raw_str(&vec![0xff; n])]))]);
    let control = columnar("t", &[("time", ints(&[T])), ("a", arr(&[arr(&[s(&"\u{1}".repeat(n))])]))]);
    let bodies: Vec<Vec<u8>> = [array_of(n as u32, 1), array_of(n as u32, 0xc2), invalid, control].iter().map(|body| gzip(body)).collect();
    assert!(bodies.iter().all(|b| b.len() < 256 << 10));
    let (to, bodies) = (&server, &bodies);
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|i| scope.spawn(move || to.write(IN_D, &bodies[i % bodies.len()]).status)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // A turn may come too late for one of sixteen.
    assert!(answers.iter().all(|s| matches!(s, 413 | 503)) && answers.contains(&413), "{answers:?}");
    let took = peak_memory(server.pid()) - before;
    // One body and its text at a time: the body, its text, and what the allocator keeps of them.
    assert!(took < 8 * INFLATED, "{} MB", took >> 20);
    // As text it fits.
    server.store_with(IN_D, &gzip(&array_of(1 << 20, 1)));
    server.stop();
}

#[test]
fn columns_and_names_of_all_tables_are_bounded_and_a_log_over_the_limit_opens() {
    let place = Place::new();
    let wide = |table: &str, columns: std::ops::Range<usize>| {
        let names: Vec<String> = columns.map(|i| format!("column{i:03}")).collect();
        columnar(table, &names.iter().map(|n| (n.as_str(), ints(&[1]))).collect::<Vec<_>>())
    };
    let server = place.start(&["ingest.max_total_columns=30", "ingest.max_name_bytes=1KB"]);
    server.store_with(IN_D, &wide("a", 0..20));
    refused(&server.write(IN_D, &wide("b", 0..11)), &["11 new columns beyond the 20", "ingest.max_total_columns", "raise it"]);
    server.store_with(IN_D, &wide("b", 0..10));
    server.store_with(IN_D, &wide("a", 5..15));
    let r = server.write_lines(b"b v=1 1700000000000000\nb column001=5i 1700000000000000");
    refused(&r, &["partial write", "ingest.max_total_columns", "dropped=1"]);
    server.stop();
    // The limit was lowered: what the log holds stays, also when it is replayed.
    let mut server = place.start(&["ingest.max_total_columns=5", "ingest.max_name_bytes=1KB"]);
    assert_eq!(server.status()["columns_total"], 30);
    server.store_with(IN_D, &wide("a", 0..20));
    refused(&server.write(IN_D, &wide("a", 0..21)), &["1 new columns beyond the 30"]);
    server.kill();
    let server = place.start(&["ingest.max_name_bytes=1KB"]);
    let long = "n".repeat(250);
    let names: Vec<String> = (0..4).map(|i| format!("{long}{i}")).collect();
    let body = columnar("c", &names.iter().map(|n| (n.as_str(), ints(&[1]))).collect::<Vec<_>>());
    refused(&server.write(IN_D, &body), &["take 1005 bytes", "ingest.max_name_bytes"]);
    assert_eq!(server.flush()["rows"].as_u64().map(|n| n > 0), Some(true));
    assert_eq!(table(&place, "a").len(), 3);
    server.stop();
}

#[test]
fn the_status_lists_tables_in_pages() {
    let place = Place::new();
    let server = place.start(&[]);
    let items: Vec<Vec<u8>> = (0..120).map(|n| columnar(&format!("t{n:03}"), &[("v", ints(&[1]))])).collect();
    server.store_with(IN_D, &arr(&items));
    let page = |query: &str| {
        let status = server.get(&format!("/api/v1/status{query}")).json();
        let names: Vec<String> = status["tables"].as_array().unwrap().iter().map(|t| t["table"].as_str().unwrap().to_owned()).collect();
        (names, status["tables_total"].clone(), status["tables_more"].clone(), status["tables_next_offset"].clone())
    };
    let (names, total, more, next) = page("");
    assert_eq!((names.len(), names[0].as_str(), total, more, next), (100, "t000", json!(120), json!(20), json!(100)));
    let (names, _, more, next) = page("?offset=100");
    assert_eq!((names.len(), names[0].as_str(), more, next), (20, "t100", json!(0), Value::Null));
    let (names, _, more, next) = page("?offset=10&limit=5");
    assert_eq!((names.join(" "), more, next), ("t010 t011 t012 t013 t014".into(), json!(105), json!(15)));
    assert_eq!(page("?limit=0").0.len(), 0);
    assert_eq!(page("?offset=500").0.len(), 0);
    refused(&server.get("/api/v1/status?limit=1001"), &["limit must be a whole number up to 1000"]);
    // A page has no more columns than 10,000, unless one table has.
    let wide = |n: usize| {
        let names: Vec<String> = (0..1000).map(|i| format!("c{i}")).collect();
        columnar(&format!("w{n:02}"), &names.iter().map(|n| (n.as_str(), ints(&[1]))).collect::<Vec<_>>())
    };
    for n in 0..12 {
        server.store_with(IN_D, &wide(n));
    }
    let (names, _, more, next) = page("?offset=120");
    assert_eq!((names.len(), more, next), (10, json!(2), json!(130)));
    server.stop();
}

#[test]
fn byte_order_marks_are_skipped_and_invisible_names_refused() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = format!("\u{feff}cpu,host=a v=1 {T}\n\u{feff}cpu,host=b v=2 {T}\n");
    assert_eq!(server.write_lines(body.as_bytes()).status, 204);
    assert_eq!(server.write_lines(&gzip(body.as_bytes())).status, 204);
    for (name, what) in [("c\u{feff}pu", "U+FEFF"), ("cpu\u{200b}", "U+200B"), ("\u{202e}cpu", "U+202E"), ("cpu\\ ", "white space")] {
        refused(&server.write_lines(format!("{name} v=1 {T}").as_bytes()), &["invalid table name", what]);
        refused(&server.write_lines(format!("m {name}=1 {T}").as_bytes()), &["invalid column name", what]);
        let name = name.replace('\\', "");
        refused(&server.write(IN_D, &columnar(&name, &[("v", ints(&[1]))])), &["invalid table name", what]);
        refused(&server.write(IN_D, &columnar("t", &[(&name, ints(&[1]))])), &["invalid column name", what]);
    }
    let utf16: Vec<u8> = format!("cpu v=1 {T}\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused(&server.write_lines(&[&[0xff, 0xfe][..], &utf16].concat()), &["UTF-16"]);
    assert_eq!(server.flush()["rows"], 4);
    let tables: Vec<Value> = server.status()["tables"].as_array().unwrap().iter().map(|t| t["table"].clone()).collect();
    assert_eq!((tables, table(&place, "cpu").len()), (vec![json!("cpu")], 4));
    server.stop();
}

#[test]
fn an_escaped_hash_is_a_name_and_comments_are_counted() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = format!("\\#/0.1L,id=pm25 value=12 {T}\n#/0.1L,id=pm25 value=13 {T}\n# a comment\n");
    let r = server.write_lines(body.as_bytes());
    assert_eq!((r.status, r.header("x-arc-comment-lines")), (204, Some("2")), "{r}");
    assert_eq!(server.metric("arc_ingest_comments_total"), 2.0);
    let r = server.write_lines(format!("m v=1 {T}").as_bytes());
    assert_eq!((r.status, r.header("x-arc-comment-lines")), (204, None), "{r}");
    server.flush();
    let tables: Vec<Value> = server.status()["tables"].as_array().unwrap().iter().map(|t| t["table"].clone()).collect();
    assert_eq!(tables, ["#/0.1L", "m"]);
    server.stop();
}

#[test]
fn tags_of_a_columnar_item_are_stored_and_misplaced_keys_refused() {
    let place = Place::new();
    let server = place.start(&[]);
    let columns = || map(&[("time", ints(&[T, T + 1])), ("v", ints(&[1, 2]))]);
    let item = |more: &[(&str, Vec<u8>)]| map(&[&[("m", s("ct")), ("columns", columns())], more].concat());
    server.store_with(IN_D, &item(&[("tags", map(&[("host", s("a"))]))]));
    for key in ["h", "t", "time", "Tags", "tag", "fields", "Columns"] {
        refused(&server.write(IN_D, &item(&[(key, i(1))])), &[&format!("'{key}'")]);
    }
    let batch = arr(&[item(&[])]);
    for key in ["tags", "columns", "m"] {
        refused(&server.write(IN_D, &map(&[("batch", batch.clone()), (key, map(&[]))])), &[&format!("'{key}' beside 'batch'")]);
    }
    server.store_with(IN_D, &item(&[("unknown", i(1))]));
    server.flush();
    let rows = table(&place, "ct");
    assert_eq!(rows[0], json!({"time": T, "host": "a", "v": 1}));
    assert_eq!(rows.iter().filter(|r| r["host"] == "a").count(), 2);
    assert_eq!(rows.len(), 4);
    let status = server.status();
    let host = status["tables"][0]["columns"].as_array().unwrap().iter().find(|c| c["name"] == "host").unwrap();
    assert_eq!(host["tag"], true);
    server.stop();
}

#[test]
fn names_that_are_not_utf8_are_refused_and_strings_replaced() {
    let place = Place::new();
    let server = place.start(&[]);
    let bad = |byte: u8| raw_str(&[b"caf".as_slice(), &[byte]].concat());
    let pair = |k: Vec<u8>, v: Vec<u8>| [vec![0x81], k, v].concat();
    for byte in [0xe9, 0xff] {
        refused(&server.write(IN_D, &map(&[("m", bad(byte)), ("columns", map(&[("v", ints(&[1]))]))])), &["'m'", "not valid UTF-8"]);
        refused(&server.write(IN_D, &map(&[("m", s("t")), ("columns", pair(bad(byte), ints(&[1])))])), &["not valid UTF-8"]);
        refused(&server.write(IN_D, &map(&[("m", s("t")), ("fields", pair(bad(byte), i(1)))])), &["not valid UTF-8"]);
    }
    server.store_with(IN_D, &columnar("t", &[("time", ints(&[T])), ("s", arr(&[bad(0xe9)]))]));
    assert_eq!(server.metric("arc_ingest_invalid_utf8_total"), 1.0);
    server.flush();
    assert_eq!(table(&place, "t"), [json!({"time": T, "s": "caf\u{fffd}"})]);
    server.stop();
}

#[test]
fn unsigned_integers_go_into_float_columns_that_hold_them() {
    const EXACT: u64 = 18_446_744_073_709_549_568;
    let place = Place::new();
    let server = place.start(&[]);
    let column = |values: Vec<Vec<u8>>| columnar("t", &[("time", ints(&[T, T + 1])), ("v", arr(&values))]);
    server.store_with(IN_D, &columnar("t", &[("time", ints(&[T])), ("v", floats(&[0.5]))]));
    server.store_with(IN_D, &column(vec![u(1 << 63), u(EXACT)]));
    server.store_with(IN_D, &column(vec![f(1.5), u(EXACT)]));
    assert_eq!(server.write_lines(format!("t v={EXACT}u {T}").as_bytes()).status, 204);
    refused(&server.write(IN_D, &column(vec![i(1), u(u64::MAX)])), &["'v'", "row 1", "18446744073709551615", "float64"]);
    refused(&server.write_lines(format!("t v={}u {T}", u64::MAX).as_bytes()), &["18446744073709551615"]);
    refused(&server.write(IN_D, &columnar("new", &[("time", ints(&[T])), ("v", arr(&[u(EXACT)]))])), &["'v'", "ingest.large_unsigned"]);
    server.flush();
    let values: Vec<f64> = table(&place, "t").iter().map(|r| r["v"].as_f64().unwrap()).collect();
    assert_eq!(values.iter().filter(|v| **v == EXACT as f64).count(), 3, "{values:?}");
    assert!(values.contains(&9_223_372_036_854_775_808.0));
    server.stop();
}

#[test]
fn large_unsigned_integers_are_refused_by_name_or_saturated_and_counted() {
    let place = Place::new();
    let body = columnar("p", &[("time", ints(&[T, T + 1])), ("limit", arr(&[i(1), u(u64::MAX)])), ("host", strs(&["a", "b"]))]);
    let lines = format!("l limit=18446744073709551615u,n=1i {T}\nl limit=2u,n=2i {T}\n");
    let server = place.start(&[]);
    refused(&server.write(IN_D, &body), &["'p'", "'limit'", "row 1", "18446744073709551615", "ingest.large_unsigned"]);
    refused(&server.write_lines(lines.as_bytes()), &["field 'limit'", "18446744073709551615u", "ingest.large_unsigned", "dropped=1"]);
    assert_eq!(server.metric("arc_ingest_saturated_total"), 0.0);
    server.stop();
    let server = place.start(&["ingest.large_unsigned=saturate"]);
    server.store_with(IN_D, &body);
    assert_eq!(server.write_lines(lines.as_bytes()).status, 204);
    assert_eq!(server.metric("arc_ingest_saturated_total"), 2.0);
    server.flush();
    let limits = |t: &str| table(&place, t).iter().map(|r| r["limit"].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!(limits("p"), [1, i64::MAX]);
    let mut of_lines = limits("l");
    of_lines.sort_unstable();
    assert_eq!(of_lines, [2, 2, i64::MAX]);
    server.stop();
}

#[test]
fn names_in_answers_stand_as_they_are() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = columnar("温度", &[("°C", arr(&[i(1), s("x")]))]);
    refused(&server.write(IN_D, &body), &["table '温度': column '°C'"]);
    server.store_with(IN_D, &columnar("温度", &[("°C", ints(&[1]))]));
    refused(&server.write(IN_D, &columnar("温度", &[("°C", strs(&["x"]))])), &["'温度'", "'°C' is int64"]);
    refused(&server.write(&[("x-arc-database", "it's")], &body), &["'it's'"]);
    let r = server.call("POST", "/write?db=donn%C3%A9es", &[], b"m v=1");
    refused(&r, &["invalid database name 'données'"]);
    server.stop();
}

#[test]
fn json_sent_to_the_messagepack_route_is_named() {
    let place = Place::new();
    let server = place.start(&[]);
    for body in [&br#"{"m":"cpu","columns":{"time":[1],"v":[1]}}"#[..], br#"[{"m":"cpu"}]"#] {
        refused(&server.write(IN_D, body), &["looks like JSON", "/api/v1/write/line-protocol takes line protocol"]);
        refused(&server.write(IN_D, &gzip(body)), &["looks like JSON"]);
    }
    refused(&server.write(IN_D, b"cpu,host=a v=1"), &["looks like line protocol"]);
    refused(&server.write_lines(&mp(&json!({"m": "t", "columns": {"v": [1]}}))), &["/api/v1/write/msgpack"]);
    refused(&server.write(IN_D, &columnar("t", &[("time", arr(&[ext(13, &[0; 8])]))])), &["extension type 13"]);
    server.stop();
}

#[test]
fn rows_of_1970_and_of_the_future_are_counted_logged_and_listed() {
    let place = Place::new();
    let server = place.start(&[]);
    // Seconds, said to be nanoseconds.
    let r = server.call("POST", "/write?db=d&precision=ns", &[], b"cpu v=1 1767225604\ncpu v=2 1767225605");
    assert_eq!(r.status, 204);
    server.store_with(IN_D, &columnar("fut", &[("time", ints(&[T, 4_102_444_800_000_000])), ("v", ints(&[1, 2]))]));
    server.store_with(IN_D, &columnar("fine", &[("time", ints(&[T])), ("v", ints(&[1]))]));
    assert_eq!(server.metric("arc_ingest_odd_times_total"), 3.0);
    let status = server.status();
    let odd: Vec<(&str, &str, u64)> = status["oddities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| (o["table"].as_str().unwrap(), o["kind"].as_str().unwrap(), o["rows"].as_u64().unwrap()))
        .collect();
    assert_eq!(odd, [("fut", "ahead", 1), ("cpu", "before_2000", 2)]);
    assert_eq!(
        (&status["oddities"][1]["database"], &status["oddities"][1]["example_time"]),
        (&json!("d"), &json!("1970-01-01T00:00:01.767225Z"))
    );
    let log = server.log();
    assert_eq!(log.matches("rows were stored with times").count(), 1, "{log}");
    assert!(log.contains("before the year 2000") && log.contains("cpu"), "{log}");
    server.stop();
}
