//! The tables of a body under construction: what fits is seen before anything is added.

use hashbrown::HashMap;

use super::scan::{Escapes, Value};
use crate::batch::TableBatch;
use crate::decode::column::{Cell, ColumnBuilder, Mismatch};
use crate::decode::table::Budget;
use crate::error::RequestError;
use crate::types::{ColumnType, int_fits_f64, uint_fits_f64};

/// Keyed by bytes: what is looked up stands in the body.
pub(super) type Names = HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>;

/// Why a value does not go into a column.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Conflict {
    Types {
        have: ColumnType,
    },
    /// The column is float64 and cannot hold this integer.
    Inexact(i128),
    /// The column is not float64, and the integer is above the largest int64.
    Large(u64),
    /// The column holds integers in this body that float64 cannot hold.
    Wide,
}

/// A column under construction.
pub(super) struct Column {
    builder: ColumnBuilder,
    /// Durable, or made by the rows so far.
    ty: Option<ColumnType>,
    wide: bool,
    /// Integers above the largest int64 are stored as that.
    saturate: bool,
    /// The line that used it last, and the cell there.
    pub(super) line: u64,
    pub(super) cell: usize,
}

pub(super) fn type_of(value: &Value) -> ColumnType {
    match value {
        Value::Int(_) | Value::Unsigned(_) => ColumnType::Int64,
        Value::Float(_) => ColumnType::Float64,
        Value::Bool(_) => ColumnType::Bool,
        Value::Str(_) => ColumnType::Utf8,
    }
}

/// Whether a column of type `ty` takes the value.
#[inline]
pub(super) fn fits(ty: Option<ColumnType>, wide: bool, saturate: bool, value: &Value) -> Result<(), Conflict> {
    match (ty, value) {
        (Some(ColumnType::Float64), Value::Unsigned(u)) if !saturate && !uint_fits_f64(*u) => Err(Conflict::Inexact(i128::from(*u))),
        (Some(ColumnType::Float64), Value::Unsigned(_)) => Ok(()),
        (None | Some(ColumnType::Int64), Value::Unsigned(u)) if !saturate => Err(Conflict::Large(*u)),
        (None, _) => Ok(()),
        (Some(ColumnType::Float64), Value::Int(i)) => {
            if int_fits_f64(*i) {
                Ok(())
            } else {
                Err(Conflict::Inexact(i128::from(*i)))
            }
        }
        (Some(ColumnType::Int64), Value::Float(_)) => {
            if wide {
                Err(Conflict::Wide)
            } else {
                Ok(())
            }
        }
        (Some(have), v) if have == type_of(v) => Ok(()),
        (Some(have), _) => Err(Conflict::Types { have }),
    }
}

impl Column {
    pub(super) fn new(name: String, tag: bool, durable: Option<ColumnType>, saturate: bool) -> Self {
        Self { builder: ColumnBuilder::new(name, tag, 0), ty: durable, wide: false, saturate, line: 0, cell: 0 }
    }

    pub(super) fn name(&self) -> &str {
        self.builder.name()
    }

    #[inline]
    pub(super) fn fits(&self, value: &Value) -> Result<(), Conflict> {
        fits(self.ty, self.wide, self.saturate, value)
    }

    /// Adds a value that fits, in row `row`.
    #[inline]
    pub(super) fn push(&mut self, row: usize, value: &Value, of: &mut Source<'_>, budget: &mut Budget) -> Result<(), RequestError> {
        if self.builder.len() != row {
            budget.pad(of.table, &mut self.builder, row)?;
        }
        let pushed = match *value {
            Value::Str(text) if text.escapes == Escapes::None => {
                self.ty = Some(ColumnType::Utf8);
                self.builder.push_front_of(of.body.get(text.from..).unwrap_or_default(), text.to - text.from)
            }
            Value::Str(text) => {
                self.ty = Some(ColumnType::Utf8);
                self.builder.push(Cell::Str(text.plain(of.body, of.scratch)))
            }
            Value::Float(f) => {
                self.ty = Some(ColumnType::Float64);
                self.builder.push(Cell::Float(f))
            }
            Value::Unsigned(u) if self.ty == Some(ColumnType::Float64) => {
                let exact = uint_fits_f64(u);
                *of.saturated += u64::from(!exact);
                self.builder.push(Cell::Float(if exact { u as f64 } else { i64::MAX as f64 }))
            }
            Value::Unsigned(_) => {
                *of.saturated += 1;
                self.ty = Some(ColumnType::Int64);
                self.wide = true;
                self.builder.push(Cell::Int(i64::MAX))
            }
            Value::Int(i) if self.ty == Some(ColumnType::Float64) => self.builder.push(Cell::Float(i as f64)),
            Value::Int(i) => {
                self.ty = Some(ColumnType::Int64);
                self.wide |= !int_fits_f64(i);
                self.builder.push(Cell::Int(i))
            }
            Value::Bool(b) => {
                self.ty = Some(ColumnType::Bool);
                self.builder.push(Cell::Bool(b))
            }
        };
        pushed.map_err(|why: Mismatch| RequestError::Internal(format!("a value that fits was not taken: {why:?}")))
    }
}

/// Where the texts of values are.
pub(super) struct Source<'a> {
    pub(super) body: &'a [u8],
    pub(super) table: &'a str,
    pub(super) scratch: &'a mut Vec<u8>,
    /// Counts integers that are stored as the largest int64.
    pub(super) saturated: &'a mut u64,
}

/// A table under construction.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) time: Vec<i64>,
    pub(super) columns: Vec<Column>,
    /// Positions of columns, by name.
    pub(super) index: Names,
    /// The same by the name in lower case.
    pub(super) folded: HashMap<String, u32>,
    /// New columns that the catalog has room for.
    pub(super) room: usize,
}

impl Table {
    pub(super) fn new(name: String, room: usize) -> Self {
        Self { name, time: Vec::new(), columns: Vec::new(), index: Names::default(), folded: HashMap::new(), room }
    }

    /// Adds a column; the caller has seen that no other has the name, also up to case.
    pub(super) fn add(&mut self, column: Column, new: bool) -> usize {
        let at = self.columns.len();
        self.index.insert(column.name().as_bytes().into(), at as u32);
        self.folded.insert(column.name().to_lowercase(), at as u32);
        self.room -= usize::from(new).min(self.room);
        self.columns.push(column);
        at
    }

    pub(super) fn finish(self, budget: &mut Budget) -> Result<TableBatch, RequestError> {
        let rows = self.time.len();
        let mut columns = Vec::with_capacity(self.columns.len());
        for mut c in self.columns {
            budget.pad(&self.name, &mut c.builder, rows)?;
            columns.push(c.builder.finish());
        }
        Ok(TableBatch { table: self.name, columns, time: self.time })
    }
}
