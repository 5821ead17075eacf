//! Rows as values, whatever represents them.

use arc_ingest::batch::{Column, Strings, TableBatch, Values};

/// One cell; floats by their bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(u64),
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

fn entries(s: &Strings) -> Vec<&[u8]> {
    s.iter().collect()
}

pub fn cells(c: &Column, rows: usize) -> Vec<Cell<'_>> {
    let mut out: Vec<Cell<'_>> = match &c.values {
        Values::Null => vec![Cell::Null; rows],
        Values::Int64(v) => v.iter().map(|x| Cell::Int(*x)).collect(),
        Values::Float64(v) => v.iter().map(|x| Cell::Float(x.to_bits())).collect(),
        Values::Bool(v) => v.iter().map(Cell::Bool).collect(),
        Values::Utf8(s) => s.iter().map(Cell::Text).collect(),
        Values::Binary(s) => s.iter().map(Cell::Binary).collect(),
        Values::Utf8Dict { codes, dictionary } => {
            let e = entries(dictionary);
            // A row that is NULL may have any code.
            codes.iter().map(|c| e.get(usize::from(*c)).map_or(Cell::Null, |s| Cell::Text(s))).collect()
        }
    };
    assert_eq!(out.len(), rows, "column '{}'", c.name);
    for (row, cell) in out.iter_mut().enumerate() {
        if c.is_null(row) {
            *cell = Cell::Null;
        }
    }
    out
}

/// Whether both have the same tables, columns, types and rows in the same order. A column without a value says nothing, so that it
/// may be there or not.
pub fn assert_same(a: &[TableBatch], b: &[TableBatch]) {
    let names = |t: &[TableBatch]| t.iter().map(|t| t.table.clone()).collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    for (x, y) in a.iter().zip(b) {
        assert_eq!(x.time, y.time, "times of '{}'", x.table);
        let said = |t: &TableBatch| t.columns.iter().filter(|c| !matches!(c.values, Values::Null)).cloned().collect::<Vec<_>>();
        let (p, q) = (said(x), said(y));
        assert_eq!(p.len(), q.len(), "columns of '{}'", x.table);
        for (c, d) in p.iter().zip(&q) {
            assert_eq!((&c.name, c.tag, c.values.column_type()), (&d.name, d.tag, d.values.column_type()));
            assert_eq!(cells(c, x.rows()), cells(d, x.rows()), "column '{}' of '{}'", c.name, x.table);
        }
    }
}
