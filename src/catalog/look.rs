//! What is known of a table before a request is resolved: whoever can drop single rows asks here which.

use std::sync::Arc;

use super::{Catalog, Table};
use crate::format::manifest::TableEntry;
use crate::types::ColumnType;
use crate::wal::shared::lock;

/// What the catalog says of a column's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// No durable column has the name; `reserved` when one is on its way.
    New { reserved: bool },
    /// A durable column of this type.
    Typed(ColumnType),
    /// A durable column has the name up to case.
    Folded(Arc<str>),
}

/// What may be added, with everything that is on its way counted as there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// The table is there, or on its way.
    pub known: bool,
    /// Columns that the table may still get.
    pub columns: usize,
    /// Tables that may still be made.
    pub tables: usize,
    /// Columns that all tables together may still get.
    pub total_columns: usize,
    /// Bytes that the names of new tables and columns may still take.
    pub name_bytes: usize,
}

/// A part of the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Sorted by database and name.
    pub tables: Vec<TableEntry>,
    /// How many tables there are.
    pub total_tables: usize,
    /// How many columns they have.
    pub total_columns: usize,
}

impl Catalog {
    /// Which of a request's columns [`Catalog::resolve`] would refuse.
    pub fn look(&self, database: &str, table: &str, column: &str) -> Look {
        let inner = lock(&self.inner);
        let Some(t) = inner.databases.get(database).and_then(|d| d.get(table)) else { return Look::New { reserved: false } };
        if let Some(d) = t.columns.get(column) {
            return Look::Typed(d.ty);
        }
        match t.folded.get(column.to_lowercase().as_str()) {
            Some(other) if **other != *column && t.columns.contains_key(other) => Look::Folded(Arc::clone(other)),
            _ => Look::New { reserved: t.reserved.contains_key(column) },
        }
    }

    /// The type of a column that is durable, or on its way.
    pub fn column_type(&self, database: &str, table: &str, column: &str) -> Option<ColumnType> {
        let inner = lock(&self.inner);
        let t = inner.databases.get(database)?.get(table)?;
        t.columns.get(column).map(|d| d.ty).or_else(|| t.reserved.get(column).map(|r| r.ty))
    }

    /// How many columns and tables [`Catalog::resolve`] would let through.
    pub fn room(&self, database: &str, table: &str) -> Room {
        let inner = lock(&self.inner);
        let known = inner.databases.get(database).and_then(|d| d.get(table));
        Room {
            known: known.is_some(),
            columns: self.limits.max_columns.saturating_sub(known.map_or(0, |t| t.folded.len())),
            tables: self.limits.max_tables.saturating_sub(inner.totals.tables),
            total_columns: self.limits.max_total_columns.saturating_sub(inner.totals.columns),
            name_bytes: self.limits.max_name_bytes.saturating_sub(inner.totals.name_bytes),
        }
    }

    /// Up to `limit` durable tables behind the first `offset`: at least one, and then no more than have `max_columns` columns together.
    pub fn page(&self, offset: usize, limit: usize, max_columns: usize) -> Page {
        let inner = lock(&self.inner);
        let mut all: Vec<(&str, &str, &Table)> = inner
            .databases
            .iter()
            .flat_map(|(d, tables)| tables.iter().filter(|(_, t)| t.since.is_some()).map(move |(name, t)| (&**d, &**name, t)))
            .collect();
        let total_tables = all.len();
        let total_columns = all.iter().map(|(_, _, t)| t.columns.len()).sum();
        all.sort_unstable_by_key(|(d, name, _)| (*d, *name));
        let mut columns = 0;
        let within = |(_, _, t): &&(&str, &str, &Table)| {
            let first = columns == 0;
            columns += t.columns.len().max(1);
            first || columns <= max_columns
        };
        let tables = all.iter().skip(offset).take(limit).take_while(within).filter_map(|(d, name, t)| t.entry(d, name)).collect();
        Page { tables, total_tables, total_columns }
    }
}
