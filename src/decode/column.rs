//! Builds one column cell by cell, with the rules for mixed types.

use super::strings::StringBuilder;
use crate::batch::{Bits, Column, Strings, Values};
use crate::types::{ColumnType, int_fits_f64, uint_fits_f64};

/// One value as a client sent it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Cell<'a> {
    Null,
    Int(i64),
    /// An integer above `i64::MAX`.
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    /// UTF-8, unless the caller checks the whole column with [`ColumnBuilder::is_utf8`].
    Str(&'a [u8]),
    Binary(&'a [u8]),
}

/// Why a cell does not fit into the column.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mismatch {
    /// The column has one type, the cell another that does not mix with it.
    Types { column: ColumnType, cell: ColumnType },
    /// Integers and floats are mixed, and float64 cannot hold this integer. `row` if it came earlier than the cell.
    Inexact { value: i128, row: Option<usize> },
    /// The column holds integers, and this one of that row is above the largest int64.
    Large { value: u64, row: usize },
    /// Rows would need too many copies of a text that stands for many of them.
    TooManyCopies,
}

enum Kind {
    Null,
    Int(Vec<i64>),
    Float(Vec<f64>),
    Bool(Bits),
    Str(StringBuilder),
    Binary(Strings),
}

/// A column under construction.
pub struct ColumnBuilder {
    name: String,
    tag: bool,
    kind: Kind,
    len: usize,
    validity: Option<Bits>,
    expected_rows: usize,
    saturate: bool,
    /// Rows of an integer column with numbers above `i64::MAX`, which stands in their place: whether the column comes to hold floats, which
    /// may have them, is known at its end.
    large: Vec<(usize, u64)>,
    saturated: u64,
}

/// The double that stands for the largest int64, and for any larger integer that no double holds exactly.
const SATURATED: f64 = i64::MAX as f64;

impl ColumnBuilder {
    /// `expected_rows` is reserved at the first value, so it must be bounded by bytes that exist; 0 when not known.
    pub fn new(name: String, tag: bool, expected_rows: usize) -> Self {
        Self { name, tag, kind: Kind::Null, len: 0, validity: None, expected_rows, saturate: false, large: Vec::new(), saturated: 0 }
    }

    /// Integers above `i64::MAX` that the column cannot hold are stored as `i64::MAX` and counted.
    #[must_use]
    pub fn saturating(mut self, yes: bool) -> Self {
        self.saturate = yes;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn set_name(&mut self, name: String) {
        self.name = name;
    }

    pub fn tag(&self) -> bool {
        self.tag
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that a row more costs at least, NULL or not: what padding is bounded by.
    pub fn row_width(&self) -> usize {
        match &self.kind {
            Kind::Bool(_) => 1,
            // A column without a type may still turn out to hold numbers.
            Kind::Null | Kind::Int(_) | Kind::Float(_) => 8,
            Kind::Str(_) | Kind::Binary(_) => 4,
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Mismatch`] when the cell does not fit; the column is then unusable.
    #[inline]
    pub fn push(&mut self, cell: Cell<'_>) -> Result<(), Mismatch> {
        match (&mut self.kind, cell) {
            (_, Cell::Null) => {
                self.push_nulls(1);
                return Ok(());
            }
            (Kind::Float(v), Cell::Float(f)) => v.push(f),
            (Kind::Int(v), Cell::Int(i)) => v.push(i),
            (Kind::Str(b), Cell::Str(s)) => {
                if !b.push(s) {
                    return Err(Mismatch::TooManyCopies);
                }
            }
            (Kind::Bool(b), Cell::Bool(x)) => b.push(x),
            (Kind::Binary(b), Cell::Binary(x)) => b.push(x),
            (Kind::Float(v), Cell::Int(i)) => {
                if !int_fits_f64(i) {
                    return Err(Mismatch::Inexact { value: i.into(), row: None });
                }
                v.push(i as f64);
            }
            (Kind::Int(_), Cell::Float(f)) => {
                self.widen_to_floats()?;
                if let Kind::Float(v) = &mut self.kind {
                    v.push(f);
                }
            }
            (Kind::Float(v), Cell::Unsigned(u)) => {
                v.push(float_of(u, self.saturate, &mut self.saturated).ok_or(Mismatch::Inexact { value: u.into(), row: None })?);
            }
            (Kind::Int(v), Cell::Unsigned(u)) => {
                self.large.push((v.len(), u));
                v.push(i64::MAX);
            }
            (Kind::Null, _) => self.start(cell),
            (_, _) => return Err(self.types(cell)),
        }
        self.len += 1;
        if let Some(v) = &mut self.validity {
            v.push(true);
        }
        Ok(())
    }

    /// [`Self::push`] of a string: the first `len` bytes of `text`. Longer text makes this faster.
    ///
    /// # Errors
    /// As [`Self::push`].
    #[inline]
    pub fn push_front_of(&mut self, text: &[u8], len: usize) -> Result<(), Mismatch> {
        if let Kind::Str(b) = &mut self.kind
            && b.push_front_of(text, len)
        {
            self.len += 1;
            if let Some(v) = &mut self.validity {
                v.push(true);
            }
            return Ok(());
        }
        self.push(Cell::Str(text.get(..len).unwrap_or(text)))
    }

    /// Adds `rows` rows of one text.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_repeated(&mut self, text: &[u8], rows: usize) -> Result<(), Mismatch> {
        let Some(more) = rows.checked_sub(1) else { return Ok(()) };
        self.push(Cell::Str(text))?;
        if let Kind::Str(b) = &mut self.kind
            && !b.push_repeated(text, more)
        {
            return Err(Mismatch::TooManyCopies);
        }
        let rows = self.len + more;
        self.all_valid_to(rows);
        Ok(())
    }

    /// Makes a column of integers one of floats.
    fn widen_to_floats(&mut self) -> Result<(), Mismatch> {
        let Kind::Int(v) = &self.kind else { return Ok(()) };
        let mut large = self.large.iter().peekable();
        let mut floats: Vec<f64> = Vec::with_capacity(v.capacity());
        for (row, i) in v.iter().enumerate() {
            let unsigned = large.next_if(|(at, _)| *at == row).map(|(_, u)| *u);
            let float = match unsigned {
                Some(u) => float_of(u, self.saturate, &mut self.saturated),
                None => int_fits_f64(*i).then_some(*i as f64),
            };
            let value = unsigned.map_or(i128::from(*i), i128::from);
            floats.push(float.ok_or(Mismatch::Inexact { value, row: Some(row) })?);
        }
        self.kind = Kind::Float(floats);
        self.large.clear();
        Ok(())
    }

    /// True while the column's type decides what becomes of integers above `i64::MAX`.
    pub fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// Decides it: `float` if the table's column holds floats. Returns how many numbers were stored as `i64::MAX`.
    ///
    /// # Errors
    /// [`Mismatch`] for the first that cannot be stored.
    pub fn settle_large(&mut self, float: bool) -> Result<u64, Mismatch> {
        if float && self.has_large() {
            self.widen_to_floats()?;
        }
        match self.large.first() {
            Some((row, value)) if !self.saturate => return Err(Mismatch::Large { value: *value, row: *row }),
            _ => self.saturated += std::mem::take(&mut self.large).len() as u64,
        }
        Ok(self.saturated)
    }

    fn start(&mut self, cell: Cell<'_>) {
        let nulls = self.len;
        if nulls > 0 {
            self.validity = Some(Bits::filled(nulls, false));
        }
        self.kind = match cell {
            Cell::Null => Kind::Null,
            Cell::Int(i) => {
                let mut v = Vec::with_capacity(self.expected_rows);
                v.resize(nulls, 0);
                v.push(i);
                Kind::Int(v)
            }
            Cell::Unsigned(u) => {
                let mut v = Vec::with_capacity(self.expected_rows);
                v.resize(nulls, 0);
                v.push(i64::MAX);
                self.large.push((nulls, u));
                Kind::Int(v)
            }
            Cell::Float(f) => {
                let mut v = Vec::with_capacity(self.expected_rows);
                v.resize(nulls, 0.0);
                v.push(f);
                Kind::Float(v)
            }
            Cell::Bool(b) => {
                let mut v = Bits::filled(nulls, false);
                v.push(b);
                Kind::Bool(v)
            }
            Cell::Str(s) => {
                let mut b = StringBuilder::new(self.expected_rows);
                b.push_nulls(nulls);
                // A dictionary holds its first text whatever it is.
                let _ = b.push(s);
                Kind::Str(b)
            }
            Cell::Binary(x) => {
                let mut b = Strings { lengths: vec![0; nulls], bytes: Vec::new() };
                b.push(x);
                Kind::Binary(b)
            }
        };
    }

    /// Lets `add` append integers, if the column holds integers.
    pub fn extend_ints(&mut self, add: impl FnOnce(&mut Vec<i64>)) {
        if let Kind::Int(v) = &mut self.kind {
            add(v);
            let rows = v.len();
            self.all_valid_to(rows);
        }
    }

    /// Lets `add` append floats, if the column holds floats.
    pub fn extend_floats(&mut self, add: impl FnOnce(&mut Vec<f64>)) {
        if let Kind::Float(v) = &mut self.kind {
            add(v);
            let rows = v.len();
            self.all_valid_to(rows);
        }
    }

    /// Lets `add` append strings, if the column holds strings.
    pub fn extend_strings(&mut self, add: impl FnOnce(&mut StringBuilder)) {
        if let Kind::Str(b) = &mut self.kind {
            add(b);
            let rows = b.len();
            self.all_valid_to(rows);
        }
    }

    fn all_valid_to(&mut self, rows: usize) {
        if let Some(v) = &mut self.validity {
            (self.len..rows).for_each(|_| v.push(true));
        }
        self.len = rows;
    }

    /// False when a string column holds anything but UTF-8.
    pub fn is_utf8(&self) -> bool {
        match &self.kind {
            Kind::Str(b) => b.is_utf8(),
            _ => true,
        }
    }

    /// The values, if they are integers without NULL.
    pub fn into_ints(self) -> Option<Vec<i64>> {
        match self.kind {
            Kind::Int(v) if self.validity.is_none() && self.large.is_empty() => Some(v),
            _ => None,
        }
    }

    fn types(&self, cell: Cell<'_>) -> Mismatch {
        let column = match &self.kind {
            Kind::Null | Kind::Int(_) => ColumnType::Int64,
            Kind::Float(_) => ColumnType::Float64,
            Kind::Bool(_) => ColumnType::Bool,
            Kind::Str(_) => ColumnType::Utf8,
            Kind::Binary(_) => ColumnType::Binary,
        };
        let cell = match cell {
            Cell::Null | Cell::Int(_) | Cell::Unsigned(_) => ColumnType::Int64,
            Cell::Float(_) => ColumnType::Float64,
            Cell::Bool(_) => ColumnType::Bool,
            Cell::Str(_) => ColumnType::Utf8,
            Cell::Binary(_) => ColumnType::Binary,
        };
        Mismatch::Types { column, cell }
    }

    fn push_nulls(&mut self, n: usize) {
        match &mut self.kind {
            Kind::Null => {
                self.len += n;
                return;
            }
            Kind::Int(v) => v.resize(v.len() + n, 0),
            Kind::Float(v) => v.resize(v.len() + n, 0.0),
            Kind::Bool(v) => (0..n).for_each(|_| v.push(false)),
            Kind::Str(v) => v.push_nulls(n),
            Kind::Binary(v) => v.lengths.resize(v.lengths.len() + n, 0),
        }
        let validity = self.validity.get_or_insert_with(|| Bits::filled(self.len, true));
        (0..n).for_each(|_| validity.push(false));
        self.len += n;
    }

    /// Adds NULL rows until there are `rows`.
    pub fn pad_to(&mut self, rows: usize) {
        if rows > self.len {
            self.push_nulls(rows - self.len);
        }
    }

    pub fn finish(self) -> Column {
        let values = match self.kind {
            Kind::Null => Values::Null,
            Kind::Int(v) => Values::Int64(v),
            Kind::Float(v) => Values::Float64(v),
            Kind::Bool(v) => Values::Bool(v),
            Kind::Str(b) => b.finish(),
            Kind::Binary(v) => Values::Binary(v),
        };
        Column { name: self.name, tag: self.tag, values, validity: self.validity, defines: false }
    }
}

/// The double for an integer above `i64::MAX`, if one holds it exactly or any is good enough, which is counted.
fn float_of(u: u64, saturate: bool, saturated: &mut u64) -> Option<f64> {
    if uint_fits_f64(u) {
        return Some(u as f64);
    }
    *saturated += u64::from(saturate);
    saturate.then_some(SATURATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(cells: &[Cell<'_>]) -> Result<Column, Mismatch> {
        let mut b = ColumnBuilder::new("c".into(), false, 0);
        for c in cells {
            b.push(*c)?;
        }
        assert_eq!(b.len(), cells.len());
        Ok(b.finish())
    }

    #[test]
    fn ints_and_floats_mix_when_exact() {
        let c = build(&[Cell::Null, Cell::Int(1), Cell::Float(0.5), Cell::Int(2), Cell::Null]).unwrap();
        assert_eq!(c.values, Values::Float64(vec![0.0, 1.0, 0.5, 2.0, 0.0]));
        assert!(c.is_null(0) && !c.is_null(1) && c.is_null(4));
        let big = (1 << 53) + 1;
        assert_eq!(build(&[Cell::Int(0), Cell::Int(big), Cell::Float(0.5)]), Err(Mismatch::Inexact { value: big.into(), row: Some(1) }));
        assert_eq!(build(&[Cell::Float(0.5), Cell::Int(big)]), Err(Mismatch::Inexact { value: big.into(), row: None }));
        assert!(build(&[Cell::Int(big), Cell::Int(big)]).is_ok());
    }

    #[test]
    fn every_other_mix_is_refused() {
        let all = [Cell::Int(1), Cell::Float(1.0), Cell::Bool(true), Cell::Str(b"x"), Cell::Binary(b"x")];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let ok = i == j || (i < 2 && j < 2);
                assert_eq!(build(&[Cell::Null, *a, Cell::Null, *b]).is_ok(), ok, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn integers_above_int64_are_exact_doubles_or_nothing() {
        let (exact, inexact) = (1u64 << 63, u64::MAX);
        let large = |cells: &[Cell<'_>], saturate: bool, float: bool| {
            let mut b = ColumnBuilder::new("c".into(), false, 0).saturating(saturate);
            for c in cells {
                b.push(*c)?;
            }
            let saturated = b.settle_large(float)?;
            Ok((b.finish().values, saturated))
        };
        let both = [Cell::Unsigned(exact), Cell::Null, Cell::Float(0.5)];
        let mut turned = both;
        turned.reverse();
        assert_eq!(large(&both, false, false), Ok((Values::Float64(vec![exact as f64, 0.0, 0.5]), 0)));
        assert_eq!(large(&turned, false, false), Ok((Values::Float64(vec![0.5, 0.0, exact as f64]), 0)));
        assert_eq!(large(&[Cell::Int(1), Cell::Unsigned(exact)], false, true), Ok((Values::Float64(vec![1.0, exact as f64]), 0)));
        assert_eq!(large(&[Cell::Int(1), Cell::Unsigned(exact)], false, false), Err(Mismatch::Large { value: exact, row: 1 }));
        let value = i128::from(inexact);
        assert_eq!(large(&[Cell::Unsigned(inexact), Cell::Float(0.5)], false, false), Err(Mismatch::Inexact { value, row: Some(0) }));
        assert_eq!(large(&[Cell::Float(0.5), Cell::Unsigned(inexact)], false, false), Err(Mismatch::Inexact { value, row: None }));
        assert_eq!(large(&[Cell::Unsigned(inexact)], false, true), Err(Mismatch::Inexact { value, row: Some(0) }));
        assert_eq!(large(&[Cell::Int(1), Cell::Unsigned(inexact)], true, false), Ok((Values::Int64(vec![1, i64::MAX]), 1)));
        assert_eq!(large(&[Cell::Float(0.5), Cell::Unsigned(inexact)], true, false), Ok((Values::Float64(vec![0.5, SATURATED]), 1)));
        assert_eq!(
            large(&[Cell::Unsigned(inexact), Cell::Unsigned(exact)], true, true),
            Ok((Values::Float64(vec![SATURATED, exact as f64]), 1))
        );
        // The largest int64 itself is an integer like any other, which no double holds.
        let value = i128::from(i64::MAX);
        assert_eq!(large(&[Cell::Int(i64::MAX), Cell::Unsigned(exact)], true, true), Err(Mismatch::Inexact { value, row: Some(0) }));
    }

    #[test]
    fn all_null_has_no_type() {
        let c = build(&[Cell::Null, Cell::Null]).unwrap();
        assert_eq!((c.values, c.validity), (Values::Null, None));
    }
}
