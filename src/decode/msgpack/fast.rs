//! The columnar form straight from bytes to columns: no value tree, one tight loop for each common run.
//!
//! Anything unusual is a [`Fallback`], never an error: the generic decoder then decides and words it.

use super::generic::is_known;
use super::scan::Reader;
use super::{DecodeOptions, Decoded};
use crate::batch::{Column, TableBatch, check_column_name, check_table_name};
use crate::decode::column::{Cell, ColumnBuilder};
use crate::decode::strings::StringBuilder;
use crate::decode::table::{check_partitions, folded, stored_name};
use crate::decode::time::column_to_micros;
use crate::limits;
use hashbrown::HashSet;

/// The body is not for this decoder.
#[derive(Debug, PartialEq, Eq)]
pub struct Fallback;

/// Unknown keys beside `m` and `columns` that are still looked through for duplicates here.
const MAX_UNKNOWN_KEYS: usize = 16;
/// Columns up to which names are compared pair by pair.
const FEW_COLUMNS: usize = 32;

pub fn decode(body: &[u8], options: &DecodeOptions) -> Result<Decoded, Fallback> {
    let mut input = Input { rest: body };
    let mut table = None;
    let mut columns = None;
    let mut unknown: Vec<&[u8]> = Vec::new();
    for _ in 0..input.map()? {
        match input.string()? {
            b"m" if table.is_none() => table = Some(table_name(&mut input)?),
            b"columns" if columns.is_none() => columns = Some(read_columns(&mut input, options)?),
            other if is_known(other) => return Err(Fallback),
            other => {
                simdutf8::basic::from_utf8(other).map_err(|_| Fallback)?;
                if unknown.contains(&other) || unknown.len() == MAX_UNKNOWN_KEYS {
                    return Err(Fallback);
                }
                unknown.push(other);
                let mut r = Reader::new(input.rest);
                if r.skip() != Ok(0) {
                    return Err(Fallback);
                }
                input.rest = input.rest.get(r.position()..).ok_or(Fallback)?;
            }
        }
    }
    let (Some(table), Some(read)) = (table, columns) else { return Err(Fallback) };
    if !input.rest.is_empty() || options.bounds.max_tables == 0 {
        return Err(Fallback);
    }
    if read.rows == 0 {
        return Ok(Decoded { tables: Vec::new(), invalid_utf8: 0, saturated: 0 });
    }
    let time = match read.time {
        Some(t) => t,
        None => vec![options.receive_time_us; read.rows],
    };
    check_partitions(std::iter::once(time.as_slice()), &options.bounds).map_err(|_| Fallback)?;
    Ok(Decoded { tables: vec![TableBatch { table, time, columns: read.columns }], invalid_utf8: 0, saturated: 0 })
}

struct Columns {
    rows: usize,
    time: Option<Vec<i64>>,
    columns: Vec<Column>,
}

fn table_name(input: &mut Input<'_>) -> Result<String, Fallback> {
    let name = match input.scalar()? {
        Cell::Str(s) => simdutf8::basic::from_utf8(s).map_err(|_| Fallback)?.to_owned(),
        Cell::Int(n) => format!("measurement_{n}"),
        _ => return Err(Fallback),
    };
    check_table_name(&name).map_err(|_| Fallback)?;
    Ok(name)
}

fn read_columns(input: &mut Input<'_>, options: &DecodeOptions) -> Result<Columns, Fallback> {
    let pairs = input.map()?;
    if pairs == 0 || pairs > options.bounds.max_columns.saturating_add(1) {
        return Err(Fallback);
    }
    let mut rows = None;
    let mut time = None;
    let mut columns: Vec<Column> = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        let name = simdutf8::basic::from_utf8(input.string()?).map_err(|_| Fallback)?;
        let n = input.array()?;
        if *rows.get_or_insert(n) != n || n > limits::MAX_ROWS_PER_TABLE || n.saturating_mul(pairs) > options.bounds.cells() {
            return Err(Fallback);
        }
        let is_time = name == "time";
        let name = stored_name(name, options.hive_names);
        if is_time && time.is_some() || !is_time && check_column_name("", &name).is_err() {
            return Err(Fallback);
        }
        let column = read_column(input, name.into_owned(), n)?;
        if is_time {
            let mut values = if n == 0 { Vec::new() } else { column.into_ints().ok_or(Fallback)? };
            if !column_to_micros(&mut values, options.time_unit) {
                return Err(Fallback);
            }
            time = Some(values);
        } else {
            columns.push(column.finish());
        }
    }
    if columns.len() > options.bounds.max_columns || !distinct_names(&columns) {
        return Err(Fallback);
    }
    Ok(Columns { rows: rows.unwrap_or(0), time, columns })
}

/// True when no two names are equal up to case.
fn distinct_names(columns: &[Column]) -> bool {
    if columns.len() > FEW_COLUMNS || columns.iter().any(|c| !c.name.is_ascii()) {
        let mut seen = HashSet::with_capacity(columns.len());
        return columns.iter().all(|c| seen.insert(folded(&c.name)));
    }
    let mut rest = columns;
    while let Some((first, others)) = rest.split_first() {
        if others.iter().any(|c| c.name.eq_ignore_ascii_case(&first.name)) {
            return false;
        }
        rest = others;
    }
    true
}

/// `n` values; each byte left is at least one, see [`Input::array`], so `n` may size allocations.
fn read_column(input: &mut Input<'_>, name: String, n: usize) -> Result<ColumnBuilder, Fallback> {
    let mut column = ColumnBuilder::new(name, false, n);
    while column.len() < n {
        let cell = input.scalar()?;
        column.push(cell).map_err(|_| Fallback)?;
        let left = n - column.len();
        match cell {
            Cell::Int(_) => column.extend_ints(|v| input.ints(left, v)),
            Cell::Float(_) => column.extend_floats(|v| input.floats(left, v)),
            Cell::Str(_) => column.extend_strings(|v| input.strings(left, v)),
            Cell::Null | Cell::Bool(_) | Cell::Unsigned(_) | Cell::Binary(_) => {}
        }
    }
    if column.is_utf8() { Ok(column) } else { Err(Fallback) }
}

struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fallback> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Fallback)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Fallback> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or(Fallback)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn map(&mut self) -> Result<usize, Fallback> {
        let [marker] = self.take()?;
        Ok(match marker {
            0x80..=0x8f => usize::from(marker & 0x0f),
            0xde => usize::from(u16::from_be_bytes(self.take()?)),
            0xdf => u32::from_be_bytes(self.take()?) as usize,
            _ => return Err(Fallback),
        })
    }

    fn array(&mut self) -> Result<usize, Fallback> {
        let [marker] = self.take()?;
        let n = match marker {
            0x90..=0x9f => usize::from(marker & 0x0f),
            0xdc => usize::from(u16::from_be_bytes(self.take()?)),
            0xdd => u32::from_be_bytes(self.take()?) as usize,
            _ => return Err(Fallback),
        };
        if n > self.rest.len() { Err(Fallback) } else { Ok(n) }
    }

    fn string(&mut self) -> Result<&'a [u8], Fallback> {
        match self.scalar()? {
            Cell::Str(s) => Ok(s),
            _ => Err(Fallback),
        }
    }

    /// The next value, if it is neither nested nor an extension nor above `i64::MAX`. Strings are not checked.
    fn scalar(&mut self) -> Result<Cell<'a>, Fallback> {
        let [marker] = self.take()?;
        Ok(match marker {
            0xc0 => Cell::Null,
            0xc2 => Cell::Bool(false),
            0xc3 => Cell::Bool(true),
            0xca => Cell::Float(f64::from(f32::from_be_bytes(self.take()?))),
            0xcb => Cell::Float(f64::from_be_bytes(self.take()?)),
            0xa0..=0xbf => Cell::Str(self.bytes(usize::from(marker & 0x1f))?),
            0xd9 => {
                let n = u8::from_be_bytes(self.take()?);
                Cell::Str(self.bytes(usize::from(n))?)
            }
            0xda => {
                let n = u16::from_be_bytes(self.take()?);
                Cell::Str(self.bytes(usize::from(n))?)
            }
            0xdb => {
                let n = u32::from_be_bytes(self.take()?);
                Cell::Str(self.bytes(n as usize)?)
            }
            _ => {
                let (int, rest) = int(marker, self.rest).ok_or(Fallback)?;
                self.rest = rest;
                Cell::Int(int)
            }
        })
    }

    /// Up to `n` integers, while they come.
    fn ints(&mut self, n: usize, out: &mut Vec<i64>) {
        let end = out.len() + n;
        while out.len() < end {
            let Some((marker, rest)) = self.rest.split_first() else { return };
            if matches!(marker, 0xcf | 0xd3) {
                let before = out.len();
                let (chunks, _) = self.rest.as_chunks::<9>();
                out.extend(chunks.iter().take(end - before).map_while(|[marker, v @ ..]| {
                    let v = i64::from_be_bytes(*v);
                    (*marker == 0xd3 || *marker == 0xcf && v >= 0).then_some(v)
                }));
                self.rest = self.rest.get((out.len() - before) * 9..).unwrap_or_default();
                if out.len() == before {
                    return;
                }
            } else if let Some((v, rest)) = int(*marker, rest) {
                out.push(v);
                self.rest = rest;
            } else {
                return;
            }
        }
    }

    /// Up to `n` doubles, while they come.
    fn floats(&mut self, n: usize, out: &mut Vec<f64>) {
        let before = out.len();
        let (chunks, _) = self.rest.as_chunks::<9>();
        out.extend(chunks.iter().take(n).map_while(|[marker, v @ ..]| if *marker == 0xcb { Some(f64::from_be_bytes(*v)) } else { None }));
        self.rest = self.rest.get((out.len() - before) * 9..).unwrap_or_default();
    }

    /// Up to `n` strings of the short formats, while they come.
    fn strings(&mut self, n: usize, out: &mut StringBuilder) {
        for _ in 0..n {
            let (len, text) = match self.rest {
                [marker @ 0xa0..=0xbf, text @ ..] => (usize::from(marker & 0x1f), text),
                [0xd9, len, text @ ..] => (usize::from(*len), text),
                [0xda, high, low, text @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), text),
                _ => return,
            };
            if !out.push_front_of(text, len) {
                return;
            }
            self.rest = text.get(len..).unwrap_or_default();
        }
    }
}

/// The integer with this marker at the front of `rest`, and what follows it.
fn int(marker: u8, rest: &[u8]) -> Option<(i64, &[u8])> {
    Some(match marker {
        0x00..=0x7f | 0xe0..=0xff => (i64::from(marker as i8), rest),
        0xcc => rest.split_first_chunk().map(|(b, r)| (i64::from(u8::from_be_bytes(*b)), r))?,
        0xcd => rest.split_first_chunk().map(|(b, r)| (i64::from(u16::from_be_bytes(*b)), r))?,
        0xce => rest.split_first_chunk().map(|(b, r)| (i64::from(u32::from_be_bytes(*b)), r))?,
        0xcf => rest.split_first_chunk().and_then(|(b, r)| Some((i64::try_from(u64::from_be_bytes(*b)).ok()?, r)))?,
        0xd0 => rest.split_first_chunk().map(|(b, r)| (i64::from(i8::from_be_bytes(*b)), r))?,
        0xd1 => rest.split_first_chunk().map(|(b, r)| (i64::from(i16::from_be_bytes(*b)), r))?,
        0xd2 => rest.split_first_chunk().map(|(b, r)| (i64::from(i32::from_be_bytes(*b)), r))?,
        0xd3 => rest.split_first_chunk().map(|(b, r)| (i64::from_be_bytes(*b), r))?,
        _ => return None,
    })
}
