//! Builds one column cell by cell, with the rules for mixed types.

use super::strings::StringBuilder;
use crate::batch::{Bits, Column, Strings, Values};
use crate::types::{ColumnType, int_fits_f64};

/// One value as a client sent it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Cell<'a> {
    Null,
    Int(i64),
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
    Inexact { value: i64, row: Option<usize> },
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
}

impl ColumnBuilder {
    /// `expected_rows` is reserved at the first value, so it must be bounded by bytes that exist; 0 when not known.
    pub fn new(name: String, tag: bool, expected_rows: usize) -> Self {
        Self { name, tag, kind: Kind::Null, len: 0, validity: None, expected_rows }
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
            (Kind::Str(b), Cell::Str(s)) => b.push(s),
            (Kind::Bool(b), Cell::Bool(x)) => b.push(x),
            (Kind::Binary(b), Cell::Binary(x)) => b.push(x),
            (Kind::Float(v), Cell::Int(i)) => {
                if !int_fits_f64(i) {
                    return Err(Mismatch::Inexact { value: i, row: None });
                }
                v.push(i as f64);
            }
            (Kind::Int(v), Cell::Float(f)) => {
                if let Some(row) = v.iter().position(|i| !int_fits_f64(*i)) {
                    let value = v.get(row).copied().unwrap_or_default();
                    return Err(Mismatch::Inexact { value, row: Some(row) });
                }
                let mut floats: Vec<f64> = Vec::with_capacity(v.capacity());
                floats.extend(v.iter().map(|i| *i as f64));
                floats.push(f);
                self.kind = Kind::Float(floats);
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
                b.push(s);
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
            Kind::Int(v) if self.validity.is_none() => Some(v),
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
            Cell::Null | Cell::Int(_) => ColumnType::Int64,
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
        assert_eq!(build(&[Cell::Int(0), Cell::Int(big), Cell::Float(0.5)]), Err(Mismatch::Inexact { value: big, row: Some(1) }));
        assert_eq!(build(&[Cell::Float(0.5), Cell::Int(big)]), Err(Mismatch::Inexact { value: big, row: None }));
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
    fn all_null_has_no_type() {
        let c = build(&[Cell::Null, Cell::Null]).unwrap();
        assert_eq!((c.values, c.validity), (Values::Null, None));
    }
}
