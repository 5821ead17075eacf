//! What is known of a table before a request is resolved: whoever can drop single rows asks here which.

use std::sync::Arc;

use super::Catalog;
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

    /// How many columns and tables [`Catalog::resolve`] would let through.
    pub fn room(&self, database: &str, table: &str) -> Room {
        let inner = lock(&self.inner);
        let known = inner.databases.get(database).and_then(|d| d.get(table));
        Room {
            known: known.is_some(),
            columns: self.max_columns.saturating_sub(known.map_or(0, |t| t.folded.len())),
            tables: self.max_tables.saturating_sub(inner.tables),
        }
    }
}
