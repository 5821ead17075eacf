//! Rebuilding the catalog from the manifest's checkpoint and the log's records.

use super::{Catalog, Defined};
use crate::format::manifest::TableEntry;
use crate::format::payload::PayloadView;
use crate::types::{ColumnType, Sequence};
use crate::wal::shared::lock;

impl Catalog {
    /// Takes over a checkpoint, before or after records that it does not cover have been folded in.
    ///
    /// # Errors
    /// A type number that this version does not know.
    pub fn restore<'a>(&self, tables: impl IntoIterator<Item = &'a TableEntry>) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        for e in tables {
            let (t, totals) = inner.table(&e.database, &e.table);
            t.since = Some(t.since.map_or(e.since, |s| s.min(e.since)));
            for c in &e.columns {
                let ty = ColumnType::from_u8(c.ty)
                    .ok_or_else(|| format!("table '{}': column '{}' has the unknown type {}", e.table, c.name, c.ty))?;
                let name = t.claim(&c.name, totals);
                let mut d = Defined { ty, tag: c.tag, since: c.since, widened: c.widened };
                if let Some(folded) = t.columns.get(&name) {
                    d.since = d.since.min(folded.since);
                    // A record behind the checkpoint widened it: what the fold took for the first definition may be that.
                    if d.ty == ColumnType::Int64 && folded.ty == ColumnType::Float64 {
                        d.ty = ColumnType::Float64;
                        d.widened = Some(folded.widened.unwrap_or(folded.since));
                        t.dirty = true;
                    }
                }
                t.columns.insert(name, d);
            }
        }
        Ok(())
    }

    /// Folds one record in. Records that the checkpoint covers already change nothing.
    ///
    /// # Errors
    /// What is wrong with the payload.
    pub fn fold(&self, sequence: Sequence, payload: &PayloadView<'_>) -> Result<(), String> {
        if payload.index.defines { self.define_from(sequence, payload, false) } else { Ok(()) }
    }

    /// [`Self::fold`] for a record behind lost ones: its tables and columns take effect whether or not it is the one that defines
    /// them, or its rows would have no columns to go to and later requests could choose other types.
    ///
    /// # Errors
    /// What is wrong with the payload.
    pub fn fold_behind_loss(&self, sequence: Sequence, payload: &PayloadView<'_>) -> Result<(), String> {
        self.define_from(sequence, payload, true)
    }

    fn define_from(&self, sequence: Sequence, payload: &PayloadView<'_>, all: bool) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        for (i, t) in payload.index.tables.iter().enumerate() {
            let view = payload.table(i).map_err(|e| format!("table '{}': {e}", t.table))?;
            let (table, totals) = inner.table(&payload.index.database, &t.table);
            table.define_table(sequence);
            for c in view.columns.iter().filter(|c| c.defines || all) {
                table.define(c.name, c.ty, c.tag, sequence, totals);
            }
        }
        Ok(())
    }
}
