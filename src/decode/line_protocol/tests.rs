//! Hand-picked lines, and what they must come to.

use super::*;
use crate::batch::{Column, Values};
use crate::types::{ColumnType, LargeUnsigned};

mod grammar;
mod refused;

const NOW: i64 = 1_767_225_600_000_007;

fn options(precision: Precision) -> LineOptions {
    let bounds = Bounds { max_columns: 100, max_tables: 20, max_partitions: 50, max_bytes: 1 << 20 };
    LineOptions { receive_time_us: NOW, precision, hive_names: true, large_unsigned: LargeUnsigned::Refuse, bounds }
}

/// Decodes with and without the short cut, which must make no difference.
fn read_with(body: &[u8], options: &LineOptions, known: &impl Known) -> Lines {
    let lines = decode(body, options, known).unwrap();
    assert_eq!(Ok(&lines), decode_the_long_way(body, options, known).as_ref(), "{:?}", String::from_utf8_lossy(body));
    for t in &lines.tables {
        assert!(t.rows() > 0 && t.columns.iter().all(|c| c.values.rows() == Some(t.rows())));
    }
    lines
}

fn read(body: impl AsRef<[u8]>) -> Lines {
    read_with(body.as_ref(), &options(Precision::Nanos), &Empty)
}

/// A cell as text that shows its type.
fn cell(c: &Column, row: usize) -> Option<String> {
    if c.is_null(row) {
        return None;
    }
    let text = |s: &[u8]| format!("{:?}", std::str::from_utf8(s).unwrap());
    Some(match &c.values {
        Values::Null => return None,
        Values::Int64(v) => format!("{}i", v[row]),
        Values::Float64(v) => format!("{:?}", v[row]),
        Values::Bool(v) => v.get(row).to_string(),
        Values::Utf8(v) => text(v.iter().nth(row).unwrap()),
        Values::Utf8Dict { codes, dictionary } => text(dictionary.iter().nth(usize::from(codes[row])).unwrap()),
        Values::Binary(_) => unreachable!(),
    })
}

/// The rows as text: `table tag,..|field,.. time`, with the columns of each by name and `#` before tags.
fn rows(lines: &Lines) -> Vec<String> {
    let mut out = Vec::new();
    for t in &lines.tables {
        let mut columns: Vec<&Column> = t.columns.iter().collect();
        columns.sort_by_key(|c| (!c.tag, c.name.clone()));
        for row in 0..t.rows() {
            let cells: Vec<String> =
                columns.iter().filter_map(|c| cell(c, row).map(|v| format!("{}{}={v}", if c.tag { "#" } else { "" }, c.name))).collect();
            out.push(format!("{} {} {}", t.table, cells.join(" "), t.time[row]));
        }
    }
    out
}

fn messages(lines: &Lines) -> Vec<(u64, &str)> {
    lines.report.details.iter().map(|d| (d.line, d.message.as_str())).collect()
}
