//! Structured input: valid things made from bytes.

use arbitrary::{Result, Unstructured};
use arc_ingest::batch::{Bits, Column, Strings, TableBatch, ValidBatch, Values, check_column_name, check_table_name};
use arc_ingest::format::payload::KeyEntry;
use arc_ingest::limits;

/// A number from 0 to `most`.
pub fn upto(u: &mut Unstructured<'_>, most: usize) -> usize {
    u.int_in_range(0..=most).unwrap_or(0)
}

pub fn flag(u: &mut Unstructured<'_>) -> bool {
    u.arbitrary().unwrap_or(false)
}

/// True in one of `n` cases.
pub fn one_in(u: &mut Unstructured<'_>, n: usize) -> bool {
    upto(u, n - 1) == n - 1
}

fn text(u: &mut Unstructured<'_>, most: usize) -> String {
    let n = upto(u, most);
    let bytes = u.bytes(n.min(u.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn name(u: &mut Unstructured<'_>, nth: usize, valid: impl Fn(&str) -> bool) -> String {
    const SOME: [&str; 6] = ["host", "date", "hour", "Time_", "é€😀", "a/b%"];
    let s = match upto(u, 3) {
        0 | 1 => format!("c{nth}"),
        2 => SOME[upto(u, SOME.len() - 1)].to_owned(),
        _ => text(u, 20),
    };
    if valid(&s) { s } else { format!("n{nth}") }
}

fn strings(u: &mut Unstructured<'_>, n: usize, utf8: bool) -> Strings {
    let mut s = Strings::default();
    for _ in 0..n {
        match upto(u, 15) {
            0..=11 if utf8 => s.push(text(u, 6).as_bytes()),
            0..=11 => {
                let k = upto(u, 6).min(u.len());
                s.push(u.bytes(k).unwrap_or_default());
            }
            12..=13 => s.push(b""),
            14 => s.push(&[b'x'; 255]),
            _ => s.push(&[b'y'; 300]),
        }
    }
    s
}

pub fn int(u: &mut Unstructured<'_>) -> i64 {
    match upto(u, 5) {
        0..=2 => i64::from(u.arbitrary::<i8>().unwrap_or(0)),
        3 => i64::from(u.arbitrary::<i32>().unwrap_or(0)),
        4 => [i64::MIN, i64::MAX, 1 << 53, (1 << 53) + 1, -1][upto(u, 4)],
        _ => u.arbitrary().unwrap_or(0),
    }
}

fn float(u: &mut Unstructured<'_>) -> f64 {
    match upto(u, 3) {
        0 => f64::from(u.arbitrary::<i8>().unwrap_or(0)),
        1 => [f64::NAN, -0.0, f64::INFINITY, f64::MIN_POSITIVE][upto(u, 3)],
        _ => f64::from_bits(u.arbitrary().unwrap_or(0)),
    }
}

fn bits(u: &mut Unstructured<'_>, n: usize) -> Bits {
    let mut b = Bits::with_capacity(n);
    (0..n).for_each(|_| b.push(flag(u)));
    b
}

fn column(u: &mut Unstructured<'_>, nth: usize, rows: usize) -> Column {
    let values = match upto(u, 5) {
        0 => Values::Int64((0..rows).map(|_| int(u)).collect()),
        1 => Values::Float64((0..rows).map(|_| float(u)).collect()),
        2 => Values::Bool(bits(u, rows)),
        3 => Values::Utf8(strings(u, rows, true)),
        4 => Values::Binary(strings(u, rows, false)),
        _ => {
            let want = if one_in(u, 40) { 300 } else { 1 + upto(u, 5) };
            let mut dictionary = Strings::default();
            for i in 0..want {
                let s = if want > 256 { format!("{i}") } else { format!("{}{i}", text(u, 4)) };
                dictionary.push(s.as_bytes());
            }
            Values::Utf8Dict { codes: (0..rows).map(|_| upto(u, want - 1) as u16).collect(), dictionary }
        }
    };
    let validity = one_in(u, 3).then(|| bits(u, rows));
    Column { name: name(u, nth, |s| check_column_name("t", s).is_ok()), tag: flag(u), values, validity, defines: flag(u) }
}

fn time(u: &mut Unstructured<'_>) -> i64 {
    const NEAR: i64 = 1_767_225_600_000_000;
    let t = match upto(u, 7) {
        0..=3 => NEAR + i64::from(u.arbitrary::<u16>().unwrap_or(0)),
        4 => NEAR + i64::from(u.arbitrary::<i32>().unwrap_or(0)) * 10,
        5 => -1 - i64::from(u.arbitrary::<u32>().unwrap_or(0)),
        6 => [limits::MIN_TIME_US, limits::MAX_TIME_US, 0, limits::HOUR_US][upto(u, 3)],
        _ => u.arbitrary().unwrap_or(0),
    };
    t.clamp(limits::MIN_TIME_US, limits::MAX_TIME_US)
}

pub fn tables(u: &mut Unstructured<'_>) -> Vec<TableBatch> {
    let n = if one_in(u, 4) { 1 + upto(u, 3) } else { 1 };
    let mut out: Vec<TableBatch> = Vec::new();
    for i in 0..n {
        let table = name(u, i, |s| check_table_name(s).is_ok());
        if out.iter().any(|t| t.table == table) {
            continue;
        }
        let rows = 1 + if one_in(u, 20) { upto(u, 300) } else { upto(u, 8) };
        let mut columns: Vec<Column> = Vec::new();
        for c in 0..upto(u, 5) {
            let c = column(u, c, rows);
            if columns.iter().all(|d| d.name != c.name) {
                columns.push(c);
            }
        }
        out.push(TableBatch { table, time: (0..rows).map(|_| time(u)).collect(), columns });
    }
    out
}

/// A batch that is valid by construction: that [`ValidBatch::new`] takes it is part of the check.
pub fn batch(u: &mut Unstructured<'_>) -> ValidBatch {
    let database = ["db", "A", "default", "x-y_9"][upto(u, 3)];
    ValidBatch::new(database.into(), tables(u)).unwrap()
}

pub fn key(u: &mut Unstructured<'_>) -> Option<KeyEntry> {
    let any = |u: &mut Unstructured<'_>| -> Result<KeyEntry> {
        Ok(KeyEntry { id: u.arbitrary()?, body: u.arbitrary()?, running_ms: u.arbitrary()?, status: u.arbitrary()? })
    };
    if one_in(u, 4) { any(u).ok() } else { None }
}

/// A change of bytes.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    Flip {
        at: usize,
        mask: u8,
    },
    Fill {
        at: usize,
        len: usize,
        with: u8,
    },
    /// Bytes that stood elsewhere, as a sector that was written to the wrong place.
    Copy {
        from: usize,
        at: usize,
        len: usize,
    },
}

impl Damage {
    /// Somewhere in `from..to`.
    pub fn make(u: &mut Unstructured<'_>, from: usize, to: usize) -> Self {
        let span = to.saturating_sub(from).max(1);
        let at = from + u.int_in_range(0..=span - 1).unwrap_or(0);
        match upto(u, 3) {
            0 | 1 => Self::Flip { at, mask: u.arbitrary::<u8>().unwrap_or(1).max(1) },
            2 => Self::Fill { at, len: len(u), with: if flag(u) { 0 } else { u.arbitrary().unwrap_or(0xff) } },
            _ => Self::Copy { from: u.int_in_range(0..=to).unwrap_or(0), at, len: len(u) },
        }
    }

    /// Applies it within `file[..to]`; returns the range that may have changed.
    pub fn apply(self, file: &mut [u8], to: usize) -> (usize, usize) {
        let to = to.min(file.len());
        let (at, end) = match self {
            Self::Flip { at, .. } => (at, at + 1),
            Self::Fill { at, len, .. } | Self::Copy { at, len, .. } => (at, at + len),
        };
        let (at, end) = (at.min(to), end.min(to));
        match self {
            Self::Flip { mask, .. } => file[at..end].iter_mut().for_each(|b| *b ^= mask),
            Self::Fill { with, .. } => file[at..end].fill(with),
            Self::Copy { from, .. } => {
                let n = (end - at).min(file.len().saturating_sub(from));
                file.copy_within(from.min(file.len())..from.min(file.len()) + n, at);
            }
        }
        (at, end)
    }
}

fn len(u: &mut Unstructured<'_>) -> usize {
    match upto(u, 3) {
        0 => 1 + upto(u, 15),
        1 => 64,
        2 => 512,
        _ => 1 + upto(u, 5000),
    }
}
