//! What all tables have together: how many columns and tables, how many bytes their names take, and each name once.

use std::sync::Arc;

use hashbrown::HashSet;

use super::Limits;
use crate::error::RequestError;

/// Counts of what is durable and of what is reserved.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) tables: usize,
    pub(super) columns: usize,
    /// Of tables and columns, each name as often as it is used: so often it stands in the checkpoint.
    pub(super) name_bytes: usize,
    /// Each name once: tables of one kind share those of their columns.
    names: HashSet<Arc<str>>,
}

/// What a request would add.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Added {
    tables: usize,
    columns: usize,
    name_bytes: usize,
}

impl Added {
    pub(super) fn table(&mut self, name: &str) {
        self.tables += 1;
        self.name_bytes += name.len();
    }

    pub(super) fn column(&mut self, name: &str) {
        self.columns += 1;
        self.name_bytes += name.len();
    }
}

impl Totals {
    /// The one copy of a name.
    pub(super) fn name(&mut self, name: &str) -> Arc<str> {
        Arc::clone(self.names.get_or_insert_with(name, |name| name.into()))
    }

    /// How many names there are.
    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.names.len()
    }

    pub(super) fn add_table(&mut self, name: &str) {
        self.tables += 1;
        self.name_bytes += name.len();
    }

    pub(super) fn remove_table(&mut self, name: &str) {
        self.tables -= 1;
        self.name_bytes -= name.len();
        self.forget();
    }

    pub(super) fn add_column(&mut self, name: &str) {
        self.columns += 1;
        self.name_bytes += name.len();
    }

    pub(super) fn remove_column(&mut self, name: &str) {
        self.columns -= 1;
        self.name_bytes -= name.len();
        self.forget();
    }

    /// Drops names that nobody else has, now and then: requests that fail leave little behind.
    fn forget(&mut self) {
        // A column has its name, and that in lower case.
        if self.names.len() > 3 * (self.tables + self.columns) + 1024 {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
    }

    /// # Errors
    /// [`RequestError::Invalid`] naming the limit that the request would pass. What adds nothing passes none, whatever there is.
    pub(super) fn check(&self, new: Added, limits: &Limits) -> Result<(), RequestError> {
        const ADVICE: &str = "raise it, or keep values such as ids and dates out of the names of tables and columns";
        let over = |new: usize, have: usize, most: usize| new > 0 && have.saturating_add(new) > most;
        let text = if over(new.tables, self.tables, limits.max_tables) {
            format!(
                "the request would make {} new tables beyond the {} there are, at most {} are allowed (ingest.max_tables); {ADVICE}",
                new.tables, self.tables, limits.max_tables
            )
        } else if over(new.columns, self.columns, limits.max_total_columns) {
            format!(
                "the request would make {} new columns beyond the {} of all tables, at most {} are allowed (ingest.max_total_columns); {ADVICE}",
                new.columns, self.columns, limits.max_total_columns
            )
        } else if over(new.name_bytes, self.name_bytes, limits.max_name_bytes) {
            format!(
                "the names of the request's new tables and columns take {} bytes beyond the {} of all names, at most {} are allowed \
                 (ingest.max_name_bytes); {ADVICE}",
                new.name_bytes, self.name_bytes, limits.max_name_bytes
            )
        } else {
            return Ok(());
        };
        Err(RequestError::Invalid(text))
    }
}
