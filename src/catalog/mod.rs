//! The columns of every table: a fold over the definitions in the log's records, with a durable checkpoint in the manifest.
//!
//! A definition is *reserved* when a request is validated, *durable* when its record is, and forgotten when the append
//! fails. A request is refused only for what is durable; where it conflicts with a reservation it waits for the outcome.
//!
//! INVARIANT(idempotent-definitions): every record that relies on a definition which was not durable when it was validated carries that definition
//! itself, so that records may reach the log in any order.
//! INVARIANT(no-widening-under-a-wide-int): a column is not widened to float64 while a request with an integer that a double cannot hold is
//! on its way into it.
//! INVARIANT(replay-is-never-refused): limits hold for what requests add. A log that holds more opens, and everything in it stays usable.

mod fold;
mod look;
mod totals;

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tokio::sync::Notify;

use crate::batch::{Column, TableBatch, ValidBatch, Values, shown};
use crate::error::RequestError;
use crate::format::manifest::{ColumnEntry, PlanColumn, TableEntry};
use crate::sync::Mutex;
use crate::types::{ColumnType, Sequence, int_fits_f64};

pub use look::{Look, Page, Room};
use totals::Totals;

/// A column as the log defines it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Defined {
    ty: ColumnType,
    tag: bool,
    since: Sequence,
    widened: Option<Sequence>,
}

/// A definition on its way into the log.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    ty: ColumnType,
    holders: u32,
}

#[derive(Debug, Default)]
struct Table {
    since: Option<Sequence>,
    columns: HashMap<Arc<str>, Defined>,
    /// Names of `columns` and `reserved`, by the name in lower case.
    folded: HashMap<Arc<str>, Arc<str>>,
    reserved: HashMap<Arc<str>, Reserved>,
    /// Requests on their way that hold integers a double cannot hold, by column.
    pins: HashMap<Arc<str>, u32>,
    dirty: bool,
}

#[derive(Debug, Default)]
struct Inner {
    databases: HashMap<Box<str>, HashMap<Arc<str>, Table>>,
    totals: Totals,
}

/// What requests may add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Columns of one table (`ingest.max_columns`).
    pub max_columns: usize,
    /// Tables (`ingest.max_tables`).
    pub max_tables: usize,
    /// Columns of all tables together (`ingest.max_total_columns`).
    pub max_total_columns: usize,
    /// Bytes of the names of all tables and columns, each as often as it is used (`ingest.max_name_bytes`).
    pub max_name_bytes: usize,
}

#[derive(Debug)]
pub struct Catalog {
    inner: Mutex<Inner>,
    outcome: Notify,
    limits: Limits,
}

/// One thing a request holds until its record's outcome is known.
#[derive(Clone, Debug)]
enum Hold {
    Define { table: Arc<str>, column: Arc<str>, ty: ColumnType, tag: bool },
    Pin { table: Arc<str>, column: Arc<str> },
    Table { table: Arc<str> },
}

/// What a request needs to hold, by the places of its tables and columns.
#[derive(Clone, Copy, Debug)]
enum Need {
    Define(usize, usize, ColumnType),
    Pin(usize, usize),
    Table(usize),
}

/// What one request holds in the catalog. Dropping it without [`Reservation::settle`] gives it up.
#[derive(Debug)]
pub struct Reservation {
    catalog: Arc<Catalog>,
    database: Box<str>,
    holds: Vec<Hold>,
}

impl Reservation {
    /// Whether the record must be folded into the catalog.
    pub fn defines(&self) -> bool {
        self.holds.iter().any(|h| !matches!(h, Hold::Pin { .. }))
    }

    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// The record is durable with this sequence: its definitions take effect.
    pub fn settle(mut self, sequence: Sequence) {
        self.release(Some(sequence));
    }

    fn release(&mut self, sequence: Option<Sequence>) {
        let holds = std::mem::take(&mut self.holds);
        if holds.is_empty() {
            return;
        }
        let mut inner = crate::wal::shared::lock(&self.catalog.inner);
        for h in holds {
            inner.release(&self.database, h, sequence);
        }
        drop(inner);
        self.catalog.outcome.notify_waiters();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release(None);
    }
}

/// What resolving one column came to.
enum Verdict {
    /// As the catalog has it; `pin` when it holds integers that a double cannot.
    Fits {
        pin: bool,
    },
    /// Not durable yet: this record carries the definition.
    Defines(ColumnType, bool),
    Wait,
}

impl Catalog {
    /// A catalog without a limit for all tables together.
    pub fn new(max_columns: usize, max_tables: usize) -> Arc<Self> {
        Self::with_limits(Limits { max_columns, max_tables, max_total_columns: usize::MAX, max_name_bytes: usize::MAX })
    }

    pub fn with_limits(limits: Limits) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), outcome: Notify::new(), limits })
    }

    /// Fits the batch to the catalog: converts integers for float64 columns, marks the columns that it defines, and
    /// reserves them. Waits while it conflicts only with definitions on their way.
    ///
    /// # Errors
    /// [`RequestError::Invalid`], naming table, column, row and both types.
    pub async fn resolve(self: &Arc<Self>, batch: &mut ValidBatch) -> Result<Reservation, RequestError> {
        loop {
            let notified = self.outcome.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(r) = self.try_resolve(batch)? {
                return Ok(r);
            }
            notified.await;
        }
    }

    /// [`Self::resolve`] without waiting: None while it would have to.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn try_resolve(self: &Arc<Self>, batch: &mut ValidBatch) -> Result<Option<Reservation>, RequestError> {
        let database: Box<str> = batch.database().into();
        let mut inner = crate::wal::shared::lock(&self.inner);
        let Some(needs) = self.needs(&inner, batch)? else { return Ok(None) };
        let holds: Vec<Hold> = needs.iter().filter_map(|need| inner.hold(&database, batch.tables(), *need)).collect();
        drop(inner);
        let reservation = Reservation { catalog: Arc::clone(self), database, holds };
        let tables = batch.tables_mut();
        for need in needs {
            if let Need::Define(t, c, _) = need
                && let Some(column) = tables.get_mut(t).and_then(|t| t.columns.get_mut(c))
            {
                column.defines = true;
            }
        }
        self.widen(batch)?;
        Ok(Some(reservation))
    }

    /// What the request needs to hold; None while it has to wait.
    fn needs(&self, inner: &Inner, batch: &ValidBatch) -> Result<Option<Vec<Need>>, RequestError> {
        let mut needs = Vec::new();
        let mut new = totals::Added::default();
        for (t, table) in batch.tables().iter().enumerate() {
            let known = inner.databases.get(batch.database()).and_then(|d| d.get(table.table.as_str()));
            if known.is_none() {
                new.table(&table.table);
            }
            if known.is_none_or(|k| k.since.is_none()) {
                needs.push(Need::Table(t));
            }
            let mut added = 0usize;
            for (c, column) in table.columns.iter().enumerate() {
                match judge(known, &table.table, column)? {
                    Verdict::Fits { pin: false } => {}
                    Verdict::Fits { pin: true } => needs.push(Need::Pin(t, c)),
                    Verdict::Wait => return Ok(None),
                    Verdict::Defines(ty, pin) => {
                        let name = column.name.as_str();
                        if known.is_none_or(|k| !k.columns.contains_key(name) && !k.reserved.contains_key(name)) {
                            added += 1;
                            new.column(name);
                        }
                        needs.push(Need::Define(t, c, ty));
                        if pin {
                            needs.push(Need::Pin(t, c));
                        }
                    }
                }
            }
            let have = known.map_or(0, |k| k.folded.len());
            if added > 0 && have + added > self.limits.max_columns {
                return Err(RequestError::Invalid(format!(
                    "table '{}' would have {} columns, at most {} are allowed (ingest.max_columns)",
                    shown(&table.table),
                    have + added,
                    self.limits.max_columns
                )));
            }
        }
        inner.totals.check(new, &self.limits)?;
        Ok(Some(needs))
    }

    /// Converts integers where the catalog says float64. The judge has seen that they fit.
    fn widen(&self, batch: &mut ValidBatch) -> Result<(), RequestError> {
        let database = batch.database().to_owned();
        let inner = crate::wal::shared::lock(&self.inner);
        for t in batch.tables_mut() {
            let Some(known) = inner.databases.get(database.as_str()).and_then(|d| d.get(t.table.as_str())) else { continue };
            for c in &mut t.columns {
                let durable = known.columns.get(c.name.as_str()).map(|d| d.ty);
                let want = durable.or_else(|| known.reserved.get(c.name.as_str()).map(|r| r.ty));
                if want == Some(ColumnType::Float64)
                    && let Values::Int64(v) = &c.values
                {
                    check_wide(&t.table, c, v)?;
                    c.values = Values::Float64(v.iter().map(|x| *x as f64).collect());
                }
            }
        }
        Ok(())
    }

    /// Tables whose definition changed since the last call, for the manifest.
    pub fn take_dirty(&self) -> Vec<TableEntry> {
        let mut inner = crate::wal::shared::lock(&self.inner);
        let mut out = Vec::new();
        for (database, tables) in &mut inner.databases {
            for (table, t) in tables {
                if std::mem::take(&mut t.dirty)
                    && let Some(e) = t.entry(database, table)
                {
                    out.push(e);
                }
            }
        }
        out.sort_by(|a, b| (&a.database, &a.table).cmp(&(&b.database, &b.table)));
        out
    }

    /// Gives back what [`Self::take_dirty`] returned: it did not reach the manifest.
    pub fn mark_dirty(&self, tables: &[TableEntry]) {
        let mut inner = crate::wal::shared::lock(&self.inner);
        for e in tables {
            inner.table(&e.database, &e.table).0.dirty = true;
        }
    }

    /// Everything that is durable, sorted.
    pub fn databases(&self) -> Vec<String> {
        let inner = crate::wal::shared::lock(&self.inner);
        let stored = inner.databases.iter().filter(|(d, ts)| ts.iter().any(|(n, t)| t.entry(d, n).is_some()));
        let mut out: Vec<String> = stored.map(|(d, _)| d.to_string()).collect();
        out.sort_unstable();
        out
    }

    pub fn entries(&self) -> Vec<TableEntry> {
        let inner = crate::wal::shared::lock(&self.inner);
        let mut out: Vec<TableEntry> =
            inner.databases.iter().flat_map(|(d, ts)| ts.iter().filter_map(move |(n, t)| t.entry(d, n))).collect();
        out.sort_by(|a, b| (&a.database, &a.table).cmp(&(&b.database, &b.table)));
        out
    }

    /// The sequences at which columns of the table were widened, ascending: a record's schema version is how many of them are at
    /// or below its sequence.
    pub fn widenings(&self, database: &str, table: &str) -> Vec<Sequence> {
        let inner = crate::wal::shared::lock(&self.inner);
        let Some(t) = inner.databases.get(database).and_then(|d| d.get(table)) else { return Vec::new() };
        let mut v: Vec<Sequence> = t.columns.values().filter_map(|c| c.widened).collect();
        v.sort_unstable();
        v.dedup();
        v
    }

    /// The table's columns as defined by records through `through`, with their types at schema version `version`; tags first, then
    /// fields, each by name.
    pub fn schema(&self, database: &str, table: &str, version: usize, through: Sequence) -> Vec<PlanColumn> {
        let widenings = self.widenings(database, table);
        let inner = crate::wal::shared::lock(&self.inner);
        let Some(t) = inner.databases.get(database).and_then(|d| d.get(table)) else { return Vec::new() };
        let mut out: Vec<PlanColumn> = t
            .columns
            .iter()
            .filter(|(_, c)| c.since <= through)
            .map(|(name, c)| {
                let widened = c.widened.is_some_and(|w| widenings.iter().position(|x| *x == w).is_some_and(|i| i < version));
                let ty = if c.widened.is_some() && !widened { ColumnType::Int64 } else { c.ty };
                PlanColumn { name: name.to_string(), ty: ty as u8, tag: c.tag }
            })
            .collect();
        out.sort_by(|a, b| (!a.tag, &a.name).cmp(&(!b.tag, &b.name)));
        out
    }
}

fn check_wide(table: &str, c: &Column, v: &[i64]) -> Result<(), RequestError> {
    match v.iter().position(|x| !int_fits_f64(*x)) {
        None => Ok(()),
        Some(row) => Err(RequestError::Invalid(format!(
            "field type conflict: table '{table}', column '{}', row {row}: the column is float64 and cannot hold the integer {} exactly",
            c.name,
            v.get(row).copied().unwrap_or_default()
        ))),
    }
}

fn wide(c: &Column) -> bool {
    matches!(&c.values, Values::Int64(v) if v.iter().any(|x| !int_fits_f64(*x)))
}

fn judge(known: Option<&Table>, table: &str, c: &Column) -> Result<Verdict, RequestError> {
    use ColumnType::{Float64, Int64};
    let Some(ty) = c.values.column_type() else {
        return Err(RequestError::Internal(format!("table '{table}': column '{}' has no type", c.name)));
    };
    let Some(known) = known else { return Ok(Verdict::Defines(ty, wide(c))) };
    let reserved = known.reserved.get(c.name.as_str());
    if let Some(d) = known.columns.get(c.name.as_str()) {
        return match (d.ty, ty) {
            (Int64, Int64) if wide(c) => {
                // A reservation on a durable column is a widening.
                Ok(if reserved.is_some() { Verdict::Wait } else { Verdict::Fits { pin: true } })
            }
            (a, b) if a == b => Ok(Verdict::Fits { pin: false }),
            (Float64, Int64) => {
                if let Values::Int64(v) = &c.values {
                    check_wide(table, c, v)?;
                }
                Ok(Verdict::Fits { pin: false })
            }
            (Int64, Float64) => Ok(if known.pins.contains_key(c.name.as_str()) { Verdict::Wait } else { Verdict::Defines(Float64, false) }),
            (have, got) => Err(RequestError::Invalid(format!(
                "field type conflict: table '{table}', column '{}' is {have}, the request has {got}",
                c.name
            ))),
        };
    }
    if let Some(other) = known.folded.get(c.name.to_lowercase().as_str())
        && **other != *c.name
    {
        return if known.columns.contains_key(other) {
            Err(RequestError::Invalid(format!(
                "table '{table}': column '{}' equals column '{other}' up to case, which readers do not tell apart",
                c.name
            )))
        } else {
            Ok(Verdict::Wait)
        };
    }
    let Some(r) = reserved else { return Ok(Verdict::Defines(ty, wide(c))) };
    Ok(match (r.ty, ty) {
        (a, b) if a == b => Verdict::Defines(ty, wide(c)),
        (Float64, Int64) if !wide(c) => Verdict::Defines(Float64, false),
        _ => Verdict::Wait,
    })
}

impl Inner {
    fn table(&mut self, database: &str, table: &str) -> (&mut Table, &mut Totals) {
        let tables = self.databases.entry(database.into()).or_default();
        if !tables.contains_key(table) {
            self.totals.add_table(table);
        }
        (tables.entry(self.totals.name(table)).or_default(), &mut self.totals)
    }

    fn hold(&mut self, database: &str, batch: &[TableBatch], need: Need) -> Option<Hold> {
        let (Need::Define(t, ..) | Need::Pin(t, _) | Need::Table(t)) = need;
        let batch = batch.get(t)?;
        let (t, totals) = self.table(database, &batch.table);
        let table = totals.name(&batch.table);
        Some(match need {
            Need::Table(_) => Hold::Table { table },
            Need::Pin(_, c) => {
                let column = totals.name(&batch.columns.get(c)?.name);
                *t.pins.entry(Arc::clone(&column)).or_insert(0) += 1;
                Hold::Pin { table, column }
            }
            Need::Define(_, c, ty) => {
                let c = batch.columns.get(c)?;
                let column = t.claim(&c.name, totals);
                t.reserved.entry(Arc::clone(&column)).or_insert(Reserved { ty, holders: 0 }).holders += 1;
                Hold::Define { table, column, ty, tag: c.tag }
            }
        })
    }

    fn release(&mut self, database: &str, h: Hold, sequence: Option<Sequence>) {
        let (Hold::Table { table } | Hold::Pin { table, .. } | Hold::Define { table, .. }) = &h;
        let name = Arc::clone(table);
        let (t, totals) = self.table(database, table);
        match h {
            Hold::Table { .. } => {
                if let Some(s) = sequence {
                    t.define_table(s);
                }
            }
            Hold::Pin { column, .. } => {
                if let Some(n) = t.pins.get_mut(&column) {
                    *n -= 1;
                    if *n == 0 {
                        t.pins.remove(&column);
                    }
                }
            }
            Hold::Define { column, ty, tag, .. } => {
                if let Some(r) = t.reserved.get_mut(&column) {
                    r.holders -= 1;
                    if r.holders == 0 {
                        t.reserved.remove(&column);
                    }
                }
                if let Some(s) = sequence {
                    t.define(&column, ty, tag, s, totals);
                } else if !t.columns.contains_key(&column) && !t.reserved.contains_key(&column) {
                    t.give_up(&column, totals);
                }
            }
        }
        if t.since.is_none() && t.reserved.is_empty() && t.pins.is_empty() && t.columns.is_empty() {
            // A table that never came to be does not count.
            if let Some(d) = self.databases.get_mut(database)
                && d.remove(&*name).is_some()
            {
                self.totals.remove_table(&name);
            }
        }
    }
}

impl Table {
    fn define_table(&mut self, sequence: Sequence) {
        if self.since.is_none() {
            self.since = Some(sequence);
            self.dirty = true;
        }
    }

    /// The name of a column, which counts from here on if it is new.
    fn claim(&mut self, column: &str, totals: &mut Totals) -> Arc<str> {
        let name = totals.name(column);
        let lower = column.to_lowercase();
        let lower = if lower == column { Arc::clone(&name) } else { totals.name(&lower) };
        if let Entry::Vacant(e) = self.folded.entry(lower) {
            totals.add_column(&name);
            e.insert(Arc::clone(&name));
        }
        name
    }

    /// Undoes [`Self::claim`] for a column that never came to be.
    fn give_up(&mut self, column: &str, totals: &mut Totals) {
        if let Some(name) = self.folded.remove(column.to_lowercase().as_str()) {
            totals.remove_column(&name);
        }
    }

    /// Adds or widens a column; what is known already changes nothing.
    fn define(&mut self, column: &str, ty: ColumnType, tag: bool, sequence: Sequence, totals: &mut Totals) {
        self.define_table(sequence);
        let name = self.claim(column, totals);
        match self.columns.get_mut(column) {
            None => {
                self.columns.insert(name, Defined { ty, tag, since: sequence, widened: None });
                self.dirty = true;
            }
            Some(d) if d.ty == ColumnType::Int64 && ty == ColumnType::Float64 => {
                d.ty = ty;
                d.widened = Some(sequence);
                self.dirty = true;
            }
            Some(_) => {}
        }
    }

    fn entry(&self, database: &str, table: &str) -> Option<TableEntry> {
        let mut columns: Vec<ColumnEntry> = self
            .columns
            .iter()
            .map(|(name, c)| ColumnEntry { name: name.to_string(), ty: c.ty as u8, tag: c.tag, since: c.since, widened: c.widened })
            .collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        Some(TableEntry { database: database.into(), table: table.into(), since: self.since?, columns })
    }
}

#[cfg(test)]
mod tests;
