//! One line against the crate `influxdb-line-protocol`: the same verdict and the same values, but for the differences that
//! `docs/line-protocol.md` lists.

use std::collections::BTreeMap;

use arc_ingest::batch::{Column, TableBatch, Values};
use arc_ingest::decode::line_protocol::{Empty, LineOptions, Precision, decode};
use arc_ingest::decode::table::Bounds;
use arc_ingest::types::LargeUnsigned;
use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines, split_lines};

/// What we refuse and the crate takes, by our message.
const STRICTER: &[&str] = &[
    // Names that cannot be stored, or that readers of Parquet cannot tell apart.
    "control characters",
    "is longer than",
    "the invisible character",
    "white space at the beginning or the end",
    "'.' and '..' are not allowed",
    "'time' is the time stamp column",
    "differ in case only",
    "is given twice",
    // Values that a column cannot hold.
    "expected a finite float64",
    "the largest that is stored",
    // Unescaped commas in keys, unescaped equals signs in the values of tags.
    "found ','",
    "found '=' (",
    "missing tag value: expected text after",
    "missing tag key: expected a name after ','",
    // A comma behind the last field.
    "missing field key: expected a name, found",
];

/// What a comparison came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// Not one line for both.
    Nothing,
    BothTake,
    BothRefuse,
    /// A listed difference.
    Differs,
}

pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        compare(text);
    }
}

/// Panics where a difference is not listed.
pub fn compare(text: &str) -> Compared {
    // Comments; byte-order marks and hashes that are escaped, which the crate takes for parts of names.
    if text.trim_start_matches([' ', '\t']).starts_with(['#', '\u{feff}']) || text.trim_start_matches([' ', '\t']).starts_with("\\#") {
        return Compared::Nothing;
    }
    // Both must see one line: where lines end is not what is compared.
    if split_lines(text).count() != 1 || text.contains('\r') {
        return Compared::Nothing;
    }
    let bounds = Bounds { max_columns: 1024, max_tables: 10, max_partitions: 10, max_bytes: 1 << 20 };
    let options =
        LineOptions { receive_time_us: 0, precision: Precision::Nanos, hive_names: false, large_unsigned: LargeUnsigned::Refuse, bounds };
    let ours = decode(text.as_bytes(), &options, &Empty).unwrap();
    if ours.report.lines != 1 {
        return Compared::Nothing;
    }
    let theirs: Vec<_> = parse_lines(text).collect();
    let [theirs] = theirs.as_slice() else { return Compared::Nothing };
    match (ours.report.details.first(), theirs) {
        (None, Ok(theirs)) => same(text, &ours.tables, theirs),
        (Some(_), Err(_)) => Compared::BothRefuse,
        (Some(why), Ok(_)) => {
            let known = STRICTER.iter().any(|s| why.message.contains(s)) || escapes_apart(text);
            assert!(known, "{text:?} is refused ({}), and the crate takes it", why.message);
            Compared::Differs
        }
        (None, Err(e)) => {
            assert!(laxer(text) || escapes_apart(text), "{text:?} is taken, and the crate refuses it: {e}");
            Compared::Differs
        }
    }
}

/// What we take and the crate refuses: blanks at the end of a line without a time stamp, tabs beside blanks, a point without digits on one side.
fn laxer(text: &str) -> bool {
    let bytes = text.as_bytes();
    let point = bytes.windows(2).any(|w| {
        let digit = |b: u8| b.is_ascii_digit();
        (w[0] == b'.' && !digit(w[1])) || (w[1] == b'.' && !digit(w[0]))
    });
    point || text.ends_with('.') || text.ends_with([' ', '\t']) || text.contains('\t') || text.contains('\0')
}

/// A backslash before a backslash or the end of a name escapes it in the crate, and nothing here, as in influxd and its documentation.
fn escapes_apart(text: &str) -> bool {
    text.contains("\\\\") || text.contains("\\\n")
}

fn cell(c: &Column) -> String {
    let text = |s: &[u8]| format!("{:?}", std::str::from_utf8(s).unwrap());
    match &c.values {
        Values::Int64(v) => format!("{}i", v[0]),
        Values::Float64(v) => format!("{:016x}", v[0].to_bits()),
        Values::Bool(v) => v.get(0).to_string(),
        Values::Utf8(v) => text(v.iter().next().unwrap()),
        Values::Utf8Dict { codes, dictionary } => text(dictionary.iter().nth(usize::from(codes[0])).unwrap()),
        Values::Null | Values::Binary(_) => panic!("a column of no type"),
    }
}

fn same(text: &str, ours: &[TableBatch], theirs: &ParsedLine<'_>) -> Compared {
    let [table] = ours else { panic!("{text:?}: {} tables", ours.len()) };
    let mut want: BTreeMap<String, (bool, String)> = BTreeMap::new();
    for (k, v) in theirs.series.tag_set.iter().flatten() {
        want.insert(k.to_string(), (true, format!("{:?}", v.as_str())));
    }
    let tags: Vec<String> = want.keys().cloned().collect();
    for (k, v) in &theirs.field_set {
        let mut name = k.to_string();
        if tags.contains(&name) {
            name.push_str("_value");
        }
        let value = match v {
            FieldValue::I64(i) => format!("{i}i"),
            FieldValue::U64(u) => format!("{u}i"),
            FieldValue::F64(f) => format!("{:016x}", f.to_bits()),
            FieldValue::String(s) => format!("{:?}", s.as_str()),
            FieldValue::Boolean(b) => b.to_string(),
        };
        // Of a field that is given twice the last counts.
        want.insert(name, (false, value));
    }
    let found: BTreeMap<String, (bool, String)> = table.columns.iter().map(|c| (c.name.clone(), (c.tag, cell(c)))).collect();
    let time = theirs.timestamp.map_or(0, |t| t.div_euclid(1000));
    if found == want && table.table == theirs.series.measurement.as_str() && table.time == [time] {
        return Compared::BothTake;
    }
    assert!(escapes_apart(text), "{text:?}: {} {found:?} {:?}, the crate has {theirs:?}", table.table, table.time);
    Compared::Differs
}
