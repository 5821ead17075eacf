//! Rows of a record as JSON, in the form of `arc wal dump`.
//!
//! `columns` leaves NULL out. Binary values are `{"base64": "..."}`; doubles without a JSON number are `"NaN"`, `"Infinity"` and
//! `"-Infinity"`; a double always has a fraction or an exponent, an int64 never has.

use serde_json::Value;

use crate::batch::{Bits, Column, TableBatch, Values};
use crate::types::Sequence;

enum Cells<'a> {
    Null,
    Int64(&'a [i64]),
    Float64(&'a [f64]),
    Bool(&'a Bits),
    /// JSON texts.
    Text(Vec<String>),
    Codes(&'a [u16], Vec<String>),
}

/// One table of one record, ready to be written row by row.
pub struct Rows<'a> {
    batch: &'a TableBatch,
    /// `"database":...,"table":...`
    names: String,
    columns: Vec<(String, &'a Column, Cells<'a>)>,
}

fn quoted(s: &str) -> String {
    Value::from(s).to_string()
}

fn text(b: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(b))
}

fn base64(b: &[u8]) -> String {
    let mut s = String::from("{\"base64\":\"");
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in b.chunks(3) {
        let bits = chunk.iter().fold(0u32, |n, x| n << 8 | u32::from(*x)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * i) & 63) as usize).map_or('=', |d| char::from(*d));
            s.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    s.push_str("\"}");
    s
}

impl<'a> Rows<'a> {
    /// The rows of `batch`, which belongs to `database`.
    pub fn new(database: &str, batch: &'a TableBatch) -> Self {
        let names = format!("\"database\":{},\"table\":{}", quoted(database), quoted(&batch.table));
        let columns = batch.columns.iter().map(|c| (quoted(&c.name), c, cells(&c.values))).collect();
        Self { batch, names, columns }
    }

    /// Appends row `row` of record `sequence` as one line; nothing past the end.
    pub fn put(&self, out: &mut String, sequence: Sequence, row: usize) {
        use std::fmt::Write as _;
        let Some(time) = self.batch.time.get(row) else { return };
        // Writing to a string does not fail.
        let _ = write!(out, "{{\"seq\":{sequence},\"row\":{row},{},\"time_us\":{time},\"columns\":{{", self.names);
        let mut first = true;
        for (name, column, cells) in &self.columns {
            if column.is_null(row) {
                continue;
            }
            let from = out.len();
            let _ = write!(out, "{}{name}:", if first { "" } else { "," });
            let there = match cells {
                Cells::Null => false,
                Cells::Int64(v) => v.get(row).is_some_and(|v| write!(out, "{v}").is_ok()),
                Cells::Float64(v) => v.get(row).is_some_and(|v| put_float(out, *v)),
                Cells::Bool(v) => write!(out, "{}", v.get(row)).is_ok(),
                Cells::Text(v) => v.get(row).is_some_and(|v| out.write_str(v).is_ok()),
                Cells::Codes(codes, texts) => {
                    codes.get(row).and_then(|c| texts.get(usize::from(*c))).is_some_and(|v| out.write_str(v).is_ok())
                }
            };
            if there {
                first = false;
            } else {
                out.truncate(from);
            }
        }
        out.push_str("}}\n");
    }
}

fn cells(v: &Values) -> Cells<'_> {
    match v {
        Values::Null => Cells::Null,
        Values::Int64(v) => Cells::Int64(v),
        Values::Float64(v) => Cells::Float64(v),
        Values::Bool(v) => Cells::Bool(v),
        Values::Utf8(s) => Cells::Text(s.iter().map(text).collect()),
        Values::Binary(s) => Cells::Text(s.iter().map(base64).collect()),
        Values::Utf8Dict { codes, dictionary } => Cells::Codes(codes, dictionary.iter().map(text).collect()),
    }
}

fn put_float(out: &mut String, v: f64) -> bool {
    let special = if v.is_nan() {
        "\"NaN\""
    } else if v == f64::INFINITY {
        "\"Infinity\""
    } else if v == f64::NEG_INFINITY {
        "\"-Infinity\""
    } else {
        out.push_str(&Value::from(v).to_string());
        return true;
    };
    out.push_str(special);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Strings;
    use serde_json::json;

    #[test]
    fn every_type_and_the_values_that_json_lacks() {
        let strings = |v: &[&[u8]]| {
            let mut s = Strings::default();
            v.iter().for_each(|x| s.push(x));
            s
        };
        let col = |name: &str, values| Column { name: name.into(), tag: false, values, validity: None, defines: false };
        let mut nulls = Bits::filled(3, true);
        nulls.set(1, false);
        let t = TableBatch {
            table: "a\"b".into(),
            time: vec![-1, 2, 3],
            columns: vec![
                Column { validity: Some(nulls), ..col("i", Values::Int64(vec![i64::MIN, 0, i64::MAX])) },
                col("f", Values::Float64(vec![f64::NAN, f64::NEG_INFINITY, 1e300])),
                col("g", Values::Float64(vec![1.0, f64::INFINITY, -0.0])),
                col("b", Values::Bool(Bits::from_bytes(vec![0b101], 3).unwrap())),
                col("s\n", Values::Utf8(strings(&["é\"\n".as_bytes(), b"", b"x"]))),
                col("d", Values::Utf8Dict { codes: vec![1, 0, 1], dictionary: strings(&[b"x", b"yy"]) }),
                col("y", Values::Binary(strings(&[b"\xff\x00", b"", b"abc"]))),
            ],
        };
        let rows = Rows::new("db", &t);
        let mut out = String::new();
        (0..4).for_each(|i| rows.put(&mut out, 9, i));
        let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let row = |i: u32, time: i64, columns: Value| json!({"seq": 9, "row": i, "database": "db", "table": "a\"b", "time_us": time, "columns": columns});
        assert_eq!(
            lines,
            vec![
                row(0, -1, json!({"i": i64::MIN, "f": "NaN", "g": 1.0, "b": true, "s\n": "é\"\n", "d": "yy", "y": {"base64": "/wA="}})),
                row(1, 2, json!({"f": "-Infinity", "g": "Infinity", "b": false, "s\n": "", "d": "x", "y": {"base64": ""}})),
                row(2, 3, json!({"i": i64::MAX, "f": 1e300, "g": -0.0, "b": true, "s\n": "x", "d": "yy", "y": {"base64": "YWJj"}})),
            ]
        );
        assert!(out.contains("\"g\":1.0,"), "a double stays one: {out}");
    }
}
