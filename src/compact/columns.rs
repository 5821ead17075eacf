//! The rows of one row group as typed columns: gathered from slices, put in order, handed to the encoder.

use std::collections::TryReserveError;

use arrow::array::BooleanBufferBuilder;
use arrow::buffer::BooleanBuffer;
use parquet::errors::ParquetError;

use crate::format::payload::{ColumnView, DataView, StringsView};
use crate::types::{ColumnType, Sequence};

use super::slices::{Checked, code_at, each_block, is_valid};
use super::strings::{Rows, SliceDictionary, StrBuf, StrView};

/// A column of the output's schema, `time` aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaColumn {
    /// The name in the log.
    pub name: String,
    pub ty: ColumnType,
    /// Stands before the fields.
    pub tag: bool,
}

/// A finished column of one row group.
#[derive(Debug)]
pub struct Column<'a> {
    pub rows: usize,
    /// None: no NULLs. Begins at bit 0.
    pub validity: Option<BooleanBuffer>,
    pub values: Values<'a>,
}

/// One value a row; those of NULL rows mean nothing.
#[derive(Debug)]
pub enum Values<'a> {
    Int64(&'a [i64]),
    Float64(&'a [f64]),
    Bool(BooleanBuffer),
    Strings(StrView<'a>),
}

/// Values up to which the buffers of a sort are kept for the next row group.
const KEPT_VALUES: usize = 1 << 20;

enum Data {
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Bool(BooleanBufferBuilder),
    Strings(StrBuf),
}

struct ColumnBuf {
    /// Rows present; the rest up to the group's are NULL and not yet written down.
    rows: usize,
    validity: Option<BooleanBufferBuilder>,
    data: Data,
}

impl ColumnBuf {
    fn new(ty: ColumnType) -> Self {
        let data = match ty {
            ColumnType::Int64 => Data::Int64(Vec::new()),
            ColumnType::Float64 => Data::Float64(Vec::new()),
            ColumnType::Bool => Data::Bool(BooleanBufferBuilder::new(0)),
            ColumnType::Utf8 | ColumnType::Binary => Data::Strings(StrBuf::default()),
        };
        let mut c = Self { rows: 0, validity: None, data };
        c.clear();
        c
    }

    fn clear(&mut self) {
        self.rows = 0;
        self.validity = None;
        match &mut self.data {
            Data::Int64(v) => v.clear(),
            Data::Float64(v) => v.clear(),
            Data::Bool(v) => v.truncate(0),
            Data::Strings(v) => v.clear(),
        }
    }

    fn reserve(&mut self, rows: usize) -> Result<(), TryReserveError> {
        match &mut self.data {
            Data::Int64(v) => v.try_reserve(rows),
            Data::Float64(v) => v.try_reserve(rows),
            Data::Bool(v) => {
                v.reserve(rows);
                Ok(())
            }
            Data::Strings(v) => v.reserve(rows),
        }
    }

    fn strings(&self) -> Option<&StrBuf> {
        if let Data::Strings(s) = &self.data { Some(s) } else { None }
    }

    fn held(&self) -> usize {
        self.strings().map_or(0, StrBuf::held)
    }

    /// NULLs up to row `to`.
    fn pad(&mut self, to: usize) {
        if to <= self.rows {
            return;
        }
        let present = self.rows;
        self.validity_from(present).append_n(to - present, false);
        match &mut self.data {
            Data::Int64(v) => v.resize(to, 0),
            Data::Float64(v) => v.resize(to, 0.0),
            Data::Bool(v) => v.append_n(to - present, false),
            Data::Strings(v) => v.pad(to),
        }
        self.rows = to;
    }

    fn validity_from(&mut self, present: usize) -> &mut BooleanBufferBuilder {
        self.validity.get_or_insert_with(|| {
            let mut b = BooleanBufferBuilder::new(present + 1024);
            b.append_n(present, true);
            b
        })
    }

    fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        if let Some(v) = &mut self.validity {
            v.truncate(rows);
        }
        match &mut self.data {
            Data::Int64(v) => v.truncate(rows),
            Data::Float64(v) => v.truncate(rows),
            Data::Bool(v) => v.truncate(rows),
            Data::Strings(v) => v.truncate(rows),
        }
    }

    fn append(&mut self, c: &ColumnView<'_>, from: usize, to: usize, open: &mut OpenColumn) -> Result<(), TryReserveError> {
        let present = self.rows;
        let validity = c.validity.filter(|v| (from..to).any(|i| !is_valid(Some(v), i)));
        if let Some(bits) = validity {
            self.validity_from(present).append_packed_range(from..to, bits);
        } else if let Some(v) = &mut self.validity {
            v.append_n(to - from, true);
        }
        match (&mut self.data, &c.data) {
            (Data::Int64(out), DataView::Int64(v)) => v.slice(from, to).extend(out),
            (Data::Float64(out), DataView::Float64(b)) => {
                let b = b.as_chunks::<8>().0.get(from..to).unwrap_or_default();
                out.extend(b.iter().map(|b| f64::from_le_bytes(*b)));
            }
            (Data::Float64(out), DataView::Int64(v)) => {
                each_block(&v.slice(from, to), |_, ints| out.extend(ints.iter().map(|x| *x as f64)));
            }
            (Data::Bool(out), DataView::Bool(b)) => out.append_packed_range(from..to, b),
            (Data::Strings(out), DataView::Strings(s)) => {
                let bytes = open.take(s, from, to);
                out.push_plain(&Rows { from, to, validity }, s, bytes)?;
            }
            (Data::Strings(out), DataView::Dictionary { entries, width, codes }) => {
                out.push_codes(&Rows { from, to, validity }, codes, *width, entries.bytes(), &mut open.dictionary)?;
            }
            // The check has refused every other pair.
            _ => {
                self.pad(present + (to - from));
                return Ok(());
            }
        }
        self.rows = present + (to - from);
        Ok(())
    }
}

/// Where the gathering of a string column of a slice stands.
#[derive(Default)]
struct OpenColumn {
    row: usize,
    byte: usize,
    dictionary: SliceDictionary,
}

impl OpenColumn {
    /// The bytes of rows `from..to`, end to end.
    fn take<'a>(&mut self, s: &StringsView<'a>, from: usize, to: usize) -> &'a [u8] {
        let mut sum = 0usize;
        s.for_each_length(self.row, from, |l| sum += l as usize);
        let start = self.byte + sum;
        sum = 0;
        s.for_each_length(from, to, |l| sum += l as usize);
        (self.row, self.byte) = (to, start + sum);
        s.bytes().get(start..start + sum).unwrap_or_default()
    }
}

/// A checked slice whose rows go into one row group or several, in ascending order.
pub(super) struct OpenSlice<'a> {
    checked: Checked<'a>,
    columns: Vec<OpenColumn>,
    run: usize,
    /// Rows of the current run that are gathered.
    taken: usize,
    left: usize,
    sequence: Sequence,
}

impl<'a> OpenSlice<'a> {
    pub(super) fn new(checked: Checked<'a>, sequence: Sequence) -> Self {
        let columns = checked
            .view
            .columns
            .iter()
            .map(|c| {
                let mut o = OpenColumn::default();
                if let DataView::Dictionary { entries, .. } = &c.data {
                    o.dictionary = SliceDictionary::new(entries);
                }
                o
            })
            .collect();
        let left = checked.runs.iter().map(|(a, b)| (b - a) as usize).sum();
        Self { checked, columns, run: 0, taken: 0, left, sequence }
    }

    /// Rows not yet gathered.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The rows not yet gathered.
    fn rows(&self) -> impl Iterator<Item = usize> {
        let runs = self.checked.runs.get(self.run..).unwrap_or_default().iter();
        runs.flat_map(|(a, b)| *a as usize..*b as usize).skip(self.taken)
    }

    pub(super) fn new_row_group(&mut self) {
        self.columns.iter_mut().for_each(|c| c.dictionary.new_row_group());
    }
}

/// The columns of the row group in progress.
pub(super) struct RowGroup {
    time: Vec<i64>,
    columns: Vec<ColumnBuf>,
    /// Sequence and first row of each piece gathered.
    pieces: Vec<(Sequence, u32)>,
    /// Rows that are likely to come, for reservations.
    expected: usize,
    held: usize,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    ints: Vec<i64>,
    floats: Vec<f64>,
    codes: Vec<u32>,
}

impl Scratch {
    /// Gives large buffers back, as [`StrBuf::release`] does.
    fn release(&mut self) {
        if self.ints.capacity() + self.floats.capacity() + self.codes.capacity() > KEPT_VALUES {
            *self = Self::default();
        }
    }
}

impl RowGroup {
    pub(super) fn new(schema: &[SchemaColumn]) -> Self {
        Self {
            time: Vec::new(),
            columns: schema.iter().map(|c| ColumnBuf::new(c.ty)).collect(),
            pieces: Vec::new(),
            expected: 0,
            held: 0,
            scratch: Scratch::default(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.time.len()
    }

    /// Bytes of strings held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// # Errors
    /// When there is no memory for the rows expected.
    pub(super) fn start(&mut self, expected: usize) -> Result<(), TryReserveError> {
        self.time.clear();
        self.time.try_reserve(expected)?;
        self.columns.iter_mut().for_each(ColumnBuf::clear);
        self.pieces.clear();
        self.expected = expected;
        self.held = 0;
        Ok(())
    }

    /// The string columns of the slice, with where their values go.
    fn strings<'s, 'a>(&'s self, s: &'s OpenSlice<'a>) -> impl Iterator<Item = (&'s ColumnView<'a>, &'s OpenColumn, &'s StrBuf)> {
        let columns = s.checked.view.columns.iter().zip(&s.checked.targets).zip(&s.columns);
        columns.filter_map(|((c, t), open)| Some((c, open, self.columns.get(*t as usize)?.strings()?)))
    }

    /// Before rows of the slice come into this row group: where the slice repeats a few long values, a column that was to stand end to end
    /// is coded again, since copies would take many times their bytes. False when it holds values already: the row group has to end first.
    pub(super) fn meet(&mut self, s: &OpenSlice<'_>) -> bool {
        for ((c, t), open) in s.checked.view.columns.iter().zip(&s.checked.targets).zip(&s.columns) {
            let Some(Data::Strings(buf)) = self.columns.get_mut(*t as usize).map(|b| &mut b.data) else { continue };
            let DataView::Dictionary { width, codes, .. } = &c.data else { continue };
            if buf.is_plain() {
                let valid = s.rows().filter(|i| is_valid(c.validity, *i));
                let plain: usize = valid.map(|i| open.dictionary.len_of(code_at(codes, *width, i))).sum();
                if plain > 2 * open.dictionary.bytes() && !buf.try_dictionary() {
                    return false;
                }
            }
        }
        true
    }

    /// What the dictionaries of the slice may still add, where values are coded.
    pub(super) fn dictionaries(&self, s: &OpenSlice<'_>) -> usize {
        let coded = self.strings(s).filter(|(_, _, buf)| !buf.is_plain());
        coded.map(|(_, open, buf)| buf.cost_of_codes(&open.dictionary, 0)).sum()
    }

    /// How many of the next `wanted` rows of the slice surely fit into `free` bytes, at `fixed` bytes a row and what their strings take.
    pub(super) fn fitting(&self, s: &OpenSlice<'_>, wanted: usize, fixed: usize, free: usize) -> usize {
        let most = |c: &ColumnView<'_>, open: &OpenColumn, buf: &StrBuf| match &c.data {
            DataView::Strings(v) => buf.cost(v.bytes().len() - open.byte.min(v.bytes().len())) + (wanted - 1) * buf.cost(0),
            _ => buf.cost_of_codes(&open.dictionary, wanted),
        };
        let whole = self.strings(s).fold(wanted.saturating_mul(fixed), |sum, (c, open, buf)| sum.saturating_add(most(c, open, buf)));
        if whole <= free {
            return wanted;
        }
        let cost = |i: usize| {
            let of = |(c, open, buf): (&ColumnView<'_>, &OpenColumn, &StrBuf)| match &c.data {
                _ if !is_valid(c.validity, i) => 0,
                DataView::Strings(v) => buf.cost(v.length(i)),
                DataView::Dictionary { width, codes, .. } => buf.cost_of_code(&open.dictionary, code_at(codes, *width, i)),
                _ => 0,
            };
            fixed + self.strings(s).map(of).sum::<usize>()
        };
        let mut left = free;
        let fits = |i: &usize| left.checked_sub(cost(*i)).map(|rest| left = rest).is_some();
        s.rows().take(wanted).take_while(fits).count()
    }

    /// Appends up to `limit` rows of the slice.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub(super) fn gather(&mut self, s: &mut OpenSlice<'_>, mut limit: usize) -> Result<(), TryReserveError> {
        self.pieces.push((s.sequence, self.time.len() as u32));
        while limit > 0
            && let Some((from, to)) = s.checked.runs.get(s.run).copied()
        {
            let (from, to) = (from as usize, to as usize);
            let a = from + s.taken;
            let b = to.min(a + limit);
            let row = self.time.len();
            s.checked.view.time.slice(a, b).extend(&mut self.time);
            for ((c, t), open) in s.checked.view.columns.iter().zip(&s.checked.targets).zip(&mut s.columns) {
                let Some(buf) = self.columns.get_mut(*t as usize) else { continue };
                if buf.rows == 0 {
                    buf.reserve(self.expected)?;
                }
                let before = buf.held();
                buf.pad(row);
                buf.append(c, a, b, open)?;
                self.held = (self.held + buf.held()).saturating_sub(before);
            }
            limit -= b - a;
            s.left -= b - a;
            s.taken += b - a;
            if b == to {
                s.run += 1;
                s.taken = 0;
            }
        }
        Ok(())
    }

    /// Drops all rows from `rows` on, whatever state a panic has left the columns in.
    pub(super) fn roll_back(&mut self, rows: usize) {
        self.time.truncate(rows);
        self.columns.iter_mut().for_each(|c| c.truncate(rows));
        self.held = self.columns.iter().map(ColumnBuf::held).sum();
        while self.pieces.last().is_some_and(|(_, at)| *at as usize >= rows) {
            self.pieces.pop();
        }
    }

    /// The order by time that the rows are not in yet; ties by sequence, then by row.
    pub(super) fn order(&self) -> Option<Vec<u32>> {
        let ties_in_order = self.pieces.windows(2).all(|w| match w {
            [(s0, _), (s1, at)] => {
                let at = *at as usize;
                s0 <= s1 || at == 0 || self.time.get(at - 1) != self.time.get(at)
            }
            _ => true,
        });
        if self.time.is_sorted() && ties_in_order {
            return None;
        }
        let mut pieces: Vec<(Sequence, u32, u32)> = Vec::with_capacity(self.pieces.len());
        for (i, (s, from)) in self.pieces.iter().enumerate() {
            pieces.push((*s, *from, self.pieces.get(i + 1).map_or(self.time.len() as u32, |p| p.1)));
        }
        pieces.sort_unstable();
        Some(order_by_time(&self.time, pieces.iter().flat_map(|(_, from, to)| *from..*to)))
    }

    /// Calls `f` with the columns in the order of the schema, `time` first. Their values are gone afterwards.
    ///
    /// # Errors
    /// Those of `f`; when there is no memory.
    pub(super) fn finish(&mut self, mut f: impl FnMut(usize, Column<'_>) -> Result<(), ParquetError>) -> Result<(), ParquetError> {
        let order = self.order();
        let rows = self.time.len();
        if let Some(order) = &order {
            permute(&mut self.time, order, &mut self.scratch.ints);
        }
        f(0, Column { rows, validity: None, values: Values::Int64(&self.time) })?;
        for (i, c) in self.columns.iter_mut().enumerate() {
            c.pad(rows);
            let mut validity = c.validity.as_mut().map(BooleanBufferBuilder::finish);
            if let Data::Strings(s) = &mut c.data {
                s.settle().map_err(|e| ParquetError::External(Box::new(e)))?;
            }
            if let Some(order) = &order {
                validity = validity.map(|v| permute_bits(&v, order));
                match &mut c.data {
                    Data::Int64(v) => permute(v, order, &mut self.scratch.ints),
                    Data::Float64(v) => permute(v, order, &mut self.scratch.floats),
                    Data::Bool(_) => {}
                    Data::Strings(s) => s.permute(order, &mut self.scratch.codes),
                }
            }
            let values = match &mut c.data {
                Data::Int64(v) => Values::Int64(v),
                Data::Float64(v) => Values::Float64(v),
                Data::Bool(v) => {
                    let v = v.finish();
                    Values::Bool(order.as_ref().map_or_else(|| v.clone(), |o| permute_bits(&v, o)))
                }
                Data::Strings(s) => Values::Strings(s.view()),
            };
            f(i + 1, Column { rows, validity, values })?;
            if let Data::Strings(s) = &mut c.data {
                s.release();
            }
        }
        self.scratch.release();
        Ok(())
    }
}

fn permute<T: Copy + Default>(v: &mut Vec<T>, order: &[u32], scratch: &mut Vec<T>) {
    scratch.clear();
    scratch.extend(order.iter().map(|i| v.get(*i as usize).copied().unwrap_or_default()));
    std::mem::swap(v, scratch);
}

fn permute_bits(v: &BooleanBuffer, order: &[u32]) -> BooleanBuffer {
    BooleanBuffer::collect_bool(order.len(), |i| order.get(i).is_some_and(|j| v.value(*j as usize)))
}

/// Stable order of the rows `from` by time. Times of one hour differ by less than 2^32 µs: three passes of a radix
/// sort over what differs, whatever the number of overlapping runs.
fn order_by_time(time: &[i64], from: impl Iterator<Item = u32>) -> Vec<u32> {
    const DIGIT: u32 = 11;
    let (lo, hi) = time.iter().fold((i64::MAX, i64::MIN), |(lo, hi), t| (lo.min(*t), hi.max(*t)));
    let at = |i: u32| time.get(i as usize).copied().unwrap_or(lo);
    let span = hi.wrapping_sub(lo) as u64;
    if span > u64::from(u32::MAX) {
        let mut order: Vec<u32> = from.collect();
        order.sort_by_key(|i| at(*i));
        return order;
    }
    let mut keys: Vec<u64> = Vec::with_capacity(time.len());
    keys.extend(from.map(|i| (at(i).wrapping_sub(lo) as u64) << 32 | u64::from(i)));
    let mut other = vec![0u64; keys.len()];
    let bits = u64::BITS - span.leading_zeros();
    for pass in 0..bits.div_ceil(DIGIT) {
        let digit = |k: u64| (k >> (32 + pass * DIGIT)) as usize & ((1 << DIGIT) - 1);
        let mut places = [0u32; 1 << DIGIT];
        for k in &keys {
            places[digit(*k)] += 1;
        }
        let mut sum = 0;
        for p in &mut places {
            sum += std::mem::replace(p, sum);
        }
        for k in &keys {
            let p = &mut places[digit(*k)];
            other[*p as usize] = *k;
            *p += 1;
        }
        std::mem::swap(&mut keys, &mut other);
    }
    keys.into_iter().map(|k| k as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn radix_order_is_the_stable_order() {
        let mut x = 1u64;
        let mut next = |m: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % m
        };
        for span in [1u64, 7, 3000, 3_600_000_000, 1 << 40] {
            let time: Vec<i64> = (0..5000).map(|_| next(span) as i64 - 1_000_000).collect();
            let mut expected: Vec<u32> = (0..5000).collect();
            expected.sort_by_key(|i| time[*i as usize]);
            assert_eq!(order_by_time(&time, 0..5000), expected, "span {span}");
        }
    }
}
