//! The rows of one table and hour in one record: where they lie, and whether every byte of them can be trusted.
//!
//! INVARIANT(checked-before-gathered): a slice enters the columns only after [`check`] has seen all that gathering
//! relies on, so that a damaged slice is set aside whole and leaves nothing behind.

use hashbrown::HashMap;

use crate::format::payload::{self, ColumnView, DataView, IntView, StringsView, TableView};
use crate::types::{ColumnType, Hour, Sequence, hour_of, int_fits_f64};

use super::columns::SchemaColumn;

/// Rows that are decoded at a time where the whole slice is not wanted at once.
const BLOCK_ROWS: usize = 1 << 16;

/// One slice of an output. 32 bytes, because a plan may hold millions of one-row requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceRef {
    pub sequence: Sequence,
    /// Bytes into the mapped segment at which the record's payload begins.
    pub offset: u64,
    /// Index into the plan's inputs.
    pub segment: u32,
    /// Bytes of the payload.
    pub len: u32,
    /// Index in the record's directory.
    pub table: u32,
    /// Rows, and in the top bit whether they are all of the table.
    rows_whole: u32,
}

const WHOLE: u32 = 1 << 31;
const _: () = assert!(std::mem::size_of::<SliceRef>() <= 32);
const _: () = assert!(crate::limits::MAX_ROWS_PER_TABLE < WHOLE as usize);

impl SliceRef {
    /// `rows`: rows of the table in this hour; `whole`: they are all of the table's rows in the record.
    pub fn new(sequence: Sequence, segment: u32, offset: u64, len: u32, table: u32, rows: u32, whole: bool) -> Self {
        Self { sequence, offset, segment, len, table, rows_whole: (rows & !WHOLE) | if whole { WHOLE } else { 0 } }
    }

    /// Rows of the table in this hour.
    pub fn rows(&self) -> u32 {
        self.rows_whole & !WHOLE
    }

    /// All rows of the table are in this hour.
    pub fn whole(&self) -> bool {
        self.rows_whole & WHOLE != 0
    }
}

/// Where payloads are found: mapped segments in the server, plain memory in tests.
pub trait Payloads: Sync {
    /// The payload of the slice's record; empty when there is none, which sets the slice aside.
    fn payload(&self, s: &SliceRef) -> &[u8];
}

/// Why a slice cannot be built.
pub(super) type Refused = String;

/// The earliest time of the slice in `hour`, after checking that its rows in the hour are those the plan counted.
///
/// # Errors
/// Why the slice must be set aside.
pub(super) fn first_time(s: &SliceRef, payload: &[u8], hour: Hour) -> Result<i64, Refused> {
    let (rows, body) = payload::table_body(payload, s.table).map_err(|e| format!("payload {e}"))?;
    let time = payload::parse_time(body, rows).map_err(|e| format!("table body {e}"))?;
    let (mut first, mut found) = (i64::MAX, 0u64);
    each_block(&time, |_, block| {
        for t in block {
            if hour_of(*t) == hour {
                first = first.min(*t);
                found += 1;
            }
        }
    });
    if found != u64::from(s.rows()) {
        return Err(format!("{found} rows in hour {hour}, the plan counted {}", s.rows()));
    }
    if s.whole() && found != u64::from(rows) {
        return Err(format!("{found} of {rows} rows in hour {hour}, the plan counted all"));
    }
    Ok(first)
}

pub(super) fn each_block(v: &IntView<'_>, mut f: impl FnMut(usize, &[i64])) {
    let mut block = Vec::with_capacity(v.len().min(BLOCK_ROWS));
    let mut from = 0;
    while from < v.len() {
        block.clear();
        v.slice(from, from + BLOCK_ROWS).extend(&mut block);
        f(from, &block);
        from += BLOCK_ROWS;
    }
}

/// A slice that may be gathered.
pub(super) struct Checked<'a> {
    pub view: TableView<'a>,
    /// Index into the schema of each of the view's columns.
    pub targets: Vec<u32>,
    /// Ascending runs of rows that are in the hour.
    pub runs: Vec<(u32, u32)>,
}

/// Column names to schema positions, remembering the order in which the last slice had them.
pub(super) struct Targets<'s> {
    schema: &'s [SchemaColumn],
    by_name: HashMap<&'s str, u32>,
    last: Vec<u32>,
    seen: Vec<u64>,
    round: u64,
}

impl<'s> Targets<'s> {
    pub(super) fn new(schema: &'s [SchemaColumn]) -> Self {
        let by_name = schema.iter().enumerate().map(|(i, c)| (c.name.as_str(), i as u32)).collect();
        Self { schema, by_name, last: Vec::new(), seen: vec![0; schema.len()], round: 0 }
    }

    fn resolve(&mut self, columns: &[ColumnView<'_>]) -> Result<Vec<u32>, Refused> {
        self.round += 1;
        let mut targets = Vec::with_capacity(columns.len());
        for (i, c) in columns.iter().enumerate() {
            let guess = self.last.get(i).filter(|t| self.schema.get(**t as usize).is_some_and(|s| s.name == c.name));
            let Some(t) = guess.or_else(|| self.by_name.get(c.name)).copied() else {
                return Err(format!("column '{}' is not in the plan's schema", c.name));
            };
            match self.seen.get_mut(t as usize) {
                Some(r) if *r != self.round => *r = self.round,
                _ => return Err(format!("column '{}' stands twice", c.name)),
            }
            targets.push(t);
        }
        self.last.clone_from(&targets);
        Ok(targets)
    }
}

/// Checks everything that gathering relies on.
///
/// # Errors
/// Why the slice must be set aside.
pub(super) fn check<'a>(s: &SliceRef, payload: &'a [u8], hour: Hour, targets: &mut Targets<'_>) -> Result<Checked<'a>, Refused> {
    let (rows, body) = payload::table_body(payload, s.table).map_err(|e| format!("payload {e}"))?;
    let view = payload::parse_table(body, rows).map_err(|e| format!("table body {e}"))?;
    let resolved = targets.resolve(&view.columns)?;
    let runs = if s.whole() { vec![(0, view.rows as u32)] } else { runs_in_hour(&view.time, hour) };
    for (c, t) in view.columns.iter().zip(&resolved) {
        let wanted = targets.schema.get(*t as usize).map_or(c.ty, |s| s.ty);
        check_column(c, wanted, &runs).map_err(|e| format!("column '{}': {e}", c.name))?;
    }
    Ok(Checked { view, targets: resolved, runs })
}

fn runs_in_hour(time: &IntView<'_>, hour: Hour) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    each_block(time, |at, block| {
        for (i, t) in block.iter().enumerate() {
            if hour_of(*t) == hour {
                let row = (at + i) as u32;
                match runs.last_mut() {
                    Some((_, to)) if *to == row => *to += 1,
                    _ => runs.push((row, row + 1)),
                }
            }
        }
    });
    runs
}

fn check_column(c: &ColumnView<'_>, wanted: ColumnType, runs: &[(u32, u32)]) -> Result<(), Refused> {
    let widened = wanted == ColumnType::Float64 && c.ty == ColumnType::Int64;
    if c.ty != wanted && !widened {
        return Err(format!("{} values, the plan's schema has {wanted}", c.ty));
    }
    match &c.data {
        DataView::Int64(v) if widened => check_widening(c, v, runs),
        DataView::Int64(_) | DataView::Float64(_) | DataView::Bool(_) => Ok(()),
        DataView::Strings(s) => check_strings(s, c.ty == ColumnType::Utf8),
        DataView::Dictionary { entries, width, codes } => {
            check_strings(entries, true)?;
            let code = |i: usize| code_at(codes, *width, i);
            let bad = match width {
                1 => codes.iter().any(|c| usize::from(*c) >= entries.len()),
                _ => codes.as_chunks::<2>().0.iter().any(|c| usize::from(u16::from_le_bytes(*c)) >= entries.len()),
            };
            // Rows that are NULL may hold any code.
            match (0..c.rows).find(|i| bad && is_valid(c.validity, *i) && code(*i) >= entries.len()) {
                Some(i) => Err(format!("row {i}: code {} of a dictionary of {}", code(i), entries.len())),
                None => Ok(()),
            }
        }
    }
}

fn check_widening(c: &ColumnView<'_>, v: &IntView<'_>, runs: &[(u32, u32)]) -> Result<(), Refused> {
    for (from, to) in runs {
        let (from, to) = (*from as usize, *to as usize);
        let mut refused = None;
        each_block(&v.slice(from, to), |at, block| {
            for (i, x) in block.iter().enumerate() {
                if !int_fits_f64(*x) && is_valid(c.validity, from + at + i) && refused.is_none() {
                    refused = Some(format!("row {}: {x} is not exact as float64", from + at + i));
                }
            }
        });
        if let Some(e) = refused {
            return Err(e);
        }
    }
    Ok(())
}

fn check_strings(s: &StringsView<'_>, utf8: bool) -> Result<(), Refused> {
    let mut sum = 0u64;
    s.for_each_length(0, s.len(), |l| sum += u64::from(l));
    if sum != s.bytes().len() as u64 {
        return Err(format!("string lengths add up to {sum}, there are {} bytes", s.bytes().len()));
    }
    if utf8 {
        let whole = simdutf8::basic::from_utf8(s.bytes()).map_err(|_| "strings are not UTF-8".to_owned())?;
        if !whole.is_ascii() {
            // Each entry must be whole characters: the concatenation alone does not show that.
            let (mut at, mut i, mut bad) = (0usize, 0usize, None);
            s.for_each_length(0, s.len(), |l| {
                at += l as usize;
                if bad.is_none() && !whole.is_char_boundary(at) {
                    bad = Some(i);
                }
                i += 1;
            });
            if let Some(i) = bad {
                return Err(format!("string {i} is not UTF-8"));
            }
        }
    }
    Ok(())
}

/// Row `i` is not NULL. The bits are least significant first.
pub(super) fn is_valid(validity: Option<&[u8]>, i: usize) -> bool {
    validity.is_none_or(|v| v.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1))
}

/// The dictionary code of row `i`; `usize::MAX` past the end.
pub(super) fn code_at(codes: &[u8], width: u8, i: usize) -> usize {
    if width == 1 {
        codes.get(i).map_or(usize::MAX, |c| usize::from(*c))
    } else {
        codes.as_chunks::<2>().0.get(i).map_or(usize::MAX, |c| usize::from(u16::from_le_bytes(*c)))
    }
}
