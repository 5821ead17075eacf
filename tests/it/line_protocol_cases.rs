//! The corner cases of `tests/golden/line_protocol_cases.jsonl` against the crate influxdb-line-protocol. What arc makes of a case is
//! `arc`, what the crate makes of it is `crate` where that differs, with the rules of `docs/line-protocol.md` that say why.
//! `tests/system/line_protocol.py` holds the same cases against influxd and against arc as a server.

use std::fmt::Write as _;

use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines};
use serde_json::{Map, Value, json};

struct Case {
    id: String,
    body: Vec<u8>,
    precision: String,
    entry: Map<String, Value>,
}

fn cases() -> Vec<Case> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/line_protocol_cases.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let case = |line| {
        let Value::Object(entry) = serde_json::from_str(line).unwrap() else { panic!("{line}") };
        let text = |key: &str| entry.get(key).map(|v| v.as_str().unwrap().to_owned());
        let body = match text("hex") {
            Some(hex) => (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect(),
            None => text("body").unwrap().into_bytes(),
        };
        Case { id: text("id").unwrap(), body, precision: text("precision").unwrap_or_default(), entry }
    };
    text.lines().map(case).collect()
}

/// A verdict with floats by their bits, and rows in the order of their text.
fn comparable(verdict: &Value) -> (u64, Vec<String>) {
    let float = |v: &Value| match v.as_str().and_then(|t| t.strip_prefix("f:")) {
        Some(t) => json!(format!("f:{:016x}", t.parse::<f64>().unwrap().to_bits())),
        None => v.clone(),
    };
    let row = |r: &Value| {
        let fields: Map<String, Value> = r[2].as_object().unwrap().iter().map(|(k, v)| (k.clone(), float(v))).collect();
        json!([r[0], r[1], fields, r[3]]).to_string()
    };
    let mut rows: Vec<String> = verdict[1].as_array().unwrap().iter().map(row).collect();
    rows.sort();
    (verdict[0].as_u64().unwrap(), rows)
}

fn row(l: &ParsedLine<'_>) -> Value {
    let tags: Map<String, Value> = l.series.tag_set.iter().flatten().map(|(k, v)| (k.to_string(), json!(v.to_string()))).collect();
    // Of a key that stands twice, the last value stays.
    let fields: Map<String, Value> = l
        .field_set
        .iter()
        .map(|(k, v)| {
            let value = match v {
                FieldValue::I64(v) => format!("i:{v}"),
                FieldValue::U64(v) => format!("u:{v}"),
                FieldValue::F64(v) => format!("f:{v:?}"),
                FieldValue::String(v) => format!("s:{v}"),
                FieldValue::Boolean(v) => format!("b:{v}"),
            };
            (k.to_string(), json!(value))
        })
        .collect();
    json!([l.series.measurement.to_string(), tags, fields, l.timestamp])
}

/// What the crate makes of a body: whether all lines are good, and the rows of the good ones.
fn crate_verdict(body: &str) -> Value {
    let lines: Vec<_> = parse_lines(body).collect();
    let bad = lines.iter().any(Result::is_err);
    let rows: Vec<Value> = lines.iter().flatten().map(row).collect();
    json!([if bad { 400 } else { 204 }, rows])
}

/// ARC_RECORD_CRATE=FILE writes the crate's verdicts that differ from arc's, for `line_protocol.py --record --crate FILE`.
#[test]
fn the_crate_differs_only_where_it_is_written_down() {
    let mut wrong = String::new();
    let mut record = String::new();
    let (mut compared, mut different) = (0, 0);
    for c in cases() {
        // The crate takes text, and leaves precisions to whoever calls.
        let Ok(body) = str::from_utf8(&c.body) else { continue };
        if !c.precision.is_empty() {
            continue;
        }
        compared += 1;
        let arc = &c.entry["arc"];
        let expected = c.entry.get("crate").unwrap_or(arc);
        let found = crate_verdict(body);
        if comparable(&found) != comparable(arc) {
            different += 1;
            writeln!(record, "{}", json!({"id": c.id, "crate": found})).unwrap();
        }
        if comparable(&found) != comparable(expected) {
            writeln!(wrong, "{} {body:?}: {found}, expected {expected}", c.id).unwrap();
        } else if (comparable(&found) != comparable(arc)) != c.entry.contains_key("why_crate") {
            writeln!(wrong, "{} {body:?}: a difference needs a rule, and no difference has none", c.id).unwrap();
        }
    }
    if let Ok(path) = std::env::var("ARC_RECORD_CRATE") {
        std::fs::write(path, record).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(compared >= 2_000, "{compared} cases were compared");
    println!("{compared} cases, {different} differ by rule");
}
