//! Collects the rows of one request, table by table, from any number of items.

use super::column::{Cell, ColumnBuilder, Mismatch};
use crate::batch::{TableBatch, check_column_name, check_table_name, shown};
use crate::error::RequestError;
use crate::limits;
use crate::types::{ColumnType, LargeUnsigned, hour_of};
use hashbrown::{HashMap, HashSet};
use std::borrow::Cow;

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Columns of a table, `time` not counted (`ingest.max_columns`).
    pub max_columns: usize,
    /// Tables of a request (`ingest.max_tables`).
    pub max_tables: usize,
    /// Tables times hours of a request (`ingest.max_partitions`).
    pub max_partitions: usize,
    /// Bytes of a decoded request; here it bounds the cells that items left out (`ingest.max_record_size`), and all cells as they stand in
    /// memory, see [`Bounds::cells`].
    pub max_bytes: usize,
}

/// How many times its size in the log a request may take in memory while it is decoded.
const IN_MEMORY: usize = 4;
/// Bytes of a cell in memory, for all that matters here.
const CELL: usize = 8;
/// Bytes of a column with its name, its places in the indexes and the index of its strings, its cells not counted.
const COLUMN: usize = 2048;

impl Bounds {
    /// Most cells of a request, times included. A number of one byte takes eight when it is decoded.
    pub fn cells(&self) -> usize {
        self.max_bytes.saturating_mul(IN_MEMORY) / CELL
    }
}

pub(crate) fn invalid<T>(message: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError::Invalid(message.into()))
}

/// Puts `place` in front of what went wrong.
pub(crate) fn within(place: impl std::fmt::Display, e: RequestError) -> RequestError {
    match e {
        RequestError::Invalid(m) => RequestError::Invalid(format!("{place}: {m}")),
        RequestError::TooLarge(m) => RequestError::TooLarge(format!("{place}: {m}")),
        other => other,
    }
}

/// The name under which a column is stored: with Hive partitioning, `date` and `hour` are taken by the path.
pub(crate) fn stored_name(name: &str, hive_names: bool) -> Cow<'_, str> {
    if hive_names && (name.eq_ignore_ascii_case("date") || name.eq_ignore_ascii_case("hour")) {
        Cow::Owned(format!("{name}_value"))
    } else {
        Cow::Borrowed(name)
    }
}

/// A name as readers that fold case see it.
pub(crate) fn folded(name: &str) -> String {
    name.to_lowercase()
}

/// Refuses more columns than allowed.
pub(crate) fn check_columns(table: &str, columns: usize, bounds: &Bounds) -> Result<(), RequestError> {
    if columns > bounds.max_columns {
        return invalid(format!("table '{}' has more than {} columns (ingest.max_columns)", shown(table), bounds.max_columns));
    }
    Ok(())
}

/// The type that the catalog has for a column of a table, if it has one.
pub type KnownTypes<'a> = &'a dyn Fn(&str, &str) -> Option<ColumnType>;

/// The bounds of a request and what it has used of them.
pub struct Budget {
    pub bounds: Bounds,
    /// What new columns do with integers above the largest int64.
    pub large_unsigned: LargeUnsigned,
    padding: usize,
    cells: usize,
    columns: usize,
}

impl Budget {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, large_unsigned: LargeUnsigned::Refuse, padding: 0, cells: 0, columns: 0 }
    }

    /// Counts the cells of an item before they are decoded.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`] when the request has too many.
    #[inline]
    pub fn claim(&mut self, table: &str, cells: usize) -> Result<(), RequestError> {
        self.cells = self.cells.saturating_add(cells);
        if self.cells > self.bounds.cells() {
            return Err(RequestError::TooLarge(format!(
                "table '{}': the request has more than {} values, which is {IN_MEMORY} times ingest.max_record_size in memory; split it",
                shown(table),
                self.bounds.cells()
            )));
        }
        Ok(())
    }

    /// Counts new columns before they are made. As many as one table may have cost nothing; each beyond them counts as the cells that take
    /// its place in memory: a few bytes of a body make a column.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`] when the request has too many.
    pub fn add_columns(&mut self, table: &str, columns: usize) -> Result<(), RequestError> {
        self.columns = self.columns.saturating_add(columns);
        let beyond = self.columns.saturating_sub(self.bounds.max_columns).min(columns);
        if beyond == 0 {
            return Ok(());
        }
        self.cells = self.cells.saturating_add(beyond.saturating_mul(COLUMN / CELL));
        if self.cells > self.bounds.cells() {
            return Err(RequestError::TooLarge(format!(
                "table '{}': the request has {} columns so far, in all its tables, and with its values they take more than {} bytes in memory \
                 ({IN_MEMORY} times ingest.max_record_size); split it",
                shown(table),
                self.columns,
                self.bounds.cells().saturating_mul(CELL)
            )));
        }
        Ok(())
    }

    /// Refuses a request's next table when it has as many as there may be pairs of table and hour: each table has a row.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`].
    pub fn check_tables(&self, tables: usize) -> Result<(), RequestError> {
        if tables >= self.bounds.max_partitions { too_many_partitions(&self.bounds) } else { Ok(()) }
    }

    /// Pads a column with NULL. Items that each name other columns would otherwise turn a small body into a huge table.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`] when the request leaves out too many cells.
    pub fn pad(&mut self, table: &str, column: &mut ColumnBuilder, rows: usize) -> Result<(), RequestError> {
        let missing = rows.saturating_sub(column.len());
        if missing == 0 {
            return Ok(());
        }
        self.padding = self.padding.saturating_add(missing.saturating_mul(column.row_width()));
        if self.padding > self.bounds.max_bytes {
            return Err(RequestError::TooLarge(format!(
                "table '{}': the cells that rows leave out take more than {} bytes (ingest.max_record_size); split the request",
                shown(table),
                self.bounds.max_bytes
            )));
        }
        column.pad_to(rows);
        Ok(())
    }
}

/// One table under construction. Every item adds rows after those of the items before it.
pub struct TableBuilder {
    name: String,
    time: Vec<i64>,
    columns: Vec<ColumnBuilder>,
    /// Positions by name: of the field, of the tag.
    index: HashMap<String, [Option<u32>; 2], foldhash::fast::RandomState>,
    /// Position after the column found last: items tend to repeat their order.
    hint: usize,
}

impl TableBuilder {
    /// # Errors
    /// [`RequestError::Invalid`] for a name that no table can have.
    pub fn new(name: &str) -> Result<Self, RequestError> {
        check_table_name(name)?;
        Ok(Self { name: name.to_owned(), time: Vec::new(), columns: Vec::new(), index: HashMap::default(), hint: 0 })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows of the items that are complete.
    pub fn rows(&self) -> usize {
        self.time.len()
    }

    /// Completes an item with the times of its rows.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`] for more rows than one record can hold.
    pub fn add_times(&mut self, times: &[i64]) -> Result<(), RequestError> {
        if self.time.len() + times.len() > limits::MAX_ROWS_PER_TABLE {
            return Err(RequestError::TooLarge(format!(
                "table '{}' has more than {} rows in one request; split it",
                shown(&self.name),
                limits::MAX_ROWS_PER_TABLE
            )));
        }
        self.time.extend_from_slice(times);
        self.hint = 0;
        Ok(())
    }

    /// The position of a column that the present item has not used yet, padded with NULL up to the item's first row.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for a bad name, a column given twice, and too many columns of the table; [`RequestError::TooLarge`] for too
    /// many columns or cells left out of the request.
    pub fn column(&mut self, name: &str, tag: bool, budget: &mut Budget) -> Result<usize, RequestError> {
        let hit = self.columns.get(self.hint).is_some_and(|c| c.tag() == tag && c.name() == name);
        let at = if hit { self.hint } else { self.find_or_add(name, tag, budget)? };
        self.hint = at + 1;
        let rows = self.time.len();
        let Some(column) = self.columns.get_mut(at) else {
            return Err(RequestError::Internal("a column index is out of range".into()));
        };
        if column.len() > rows {
            return invalid(format!("table '{}': column '{}' is given twice", shown(&self.name), shown(name)));
        }
        budget.pad(&self.name, column, rows)?;
        Ok(at)
    }

    fn find_or_add(&mut self, name: &str, tag: bool, budget: &mut Budget) -> Result<usize, RequestError> {
        let known = self.index.get(name).copied().unwrap_or_default();
        let [field, as_tag] = known;
        if let Some(at) = if tag { as_tag } else { field } {
            return Ok(at as usize);
        }
        check_column_name(&self.name, name)?;
        check_columns(&self.name, self.columns.len() + 1, &budget.bounds)?;
        budget.add_columns(&self.name, 1)?;
        let at = self.columns.len();
        let added = Some(at as u32);
        self.index.insert(name.to_owned(), if tag { [field, added] } else { [added, as_tag] });
        let saturate = budget.large_unsigned == LargeUnsigned::Saturate;
        self.columns.push(ColumnBuilder::new(name.to_owned(), tag, 0).saturating(saturate));
        Ok(at)
    }

    /// Adds a cell to the column at `at`; `row` counts within the item.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] when the types do not mix.
    #[inline]
    pub fn push(&mut self, at: usize, row: usize, cell: Cell<'_>) -> Result<(), RequestError> {
        let Some(column) = self.columns.get_mut(at) else {
            return Err(RequestError::Internal("a column index is out of range".into()));
        };
        column.push(cell).map_err(|why| mismatch(&self.name, column.name(), row, why))
    }

    /// Adds one text to `rows` rows of the column at `at`, the item's first row on.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] when the types do not mix, [`RequestError::TooLarge`] for too many copies of a text.
    pub fn push_repeated(&mut self, at: usize, text: &str, rows: usize) -> Result<(), RequestError> {
        let Some(column) = self.columns.get_mut(at) else {
            return Err(RequestError::Internal("a column index is out of range".into()));
        };
        column.push_repeated(text.as_bytes(), rows).map_err(|why| mismatch(&self.name, column.name(), 0, why))
    }

    fn finish(mut self, budget: &mut Budget, known: KnownTypes<'_>, saturated: &mut u64) -> Result<TableBatch, RequestError> {
        self.separate_fields_from_tags()?;
        let mut seen: HashMap<String, &str> = HashMap::with_capacity(self.columns.len());
        for c in &self.columns {
            if let Some(other) = seen.insert(folded(c.name()), c.name()) {
                return invalid(format!(
                    "table '{}': columns '{}' and '{}' differ in case only",
                    shown(&self.name),
                    shown(other),
                    shown(c.name())
                ));
            }
        }
        drop(seen);
        let rows = self.time.len();
        let mut columns = Vec::with_capacity(self.columns.len());
        for mut c in self.columns {
            budget.pad(&self.name, &mut c, rows)?;
            let float = c.has_large() && known(&self.name, c.name()) == Some(ColumnType::Float64);
            *saturated += c.settle_large(float).map_err(|why| match why {
                // The table's column decides, no row of the request.
                Mismatch::Inexact { value, row: Some(row) } => mismatch(&self.name, c.name(), row, Mismatch::Inexact { value, row: None }),
                why => mismatch(&self.name, c.name(), 0, why),
            })?;
            columns.push(c.finish());
        }
        Ok(TableBatch { table: self.name, columns, time: self.time })
    }

    /// A field with a tag's name becomes `<name>_value`, also when tag and field stand in different items.
    fn separate_fields_from_tags(&mut self) -> Result<(), RequestError> {
        let both: Vec<(String, u32)> = self
            .index
            .iter()
            .filter_map(|(name, [field, tag])| field.filter(|_| tag.is_some()).map(|at| (format!("{name}_value"), at)))
            .collect();
        for (name, at) in both {
            if self.index.contains_key(&name) {
                return invalid(format!("table '{}': column '{}' is given twice", shown(&self.name), shown(&name)));
            }
            check_column_name(&self.name, &name)?;
            if let Some(c) = self.columns.get_mut(at as usize) {
                c.set_name(name);
            }
        }
        Ok(())
    }
}

fn mismatch(table: &str, column: &str, row: usize, why: Mismatch) -> RequestError {
    let (table, column) = (shown(table), shown(column));
    RequestError::Invalid(match why {
        Mismatch::TooManyCopies => {
            return RequestError::TooLarge(format!(
                "table '{table}': column '{column}' has tags that stand for many rows each and more distinct texts than a dictionary holds; \
                 split the request"
            ));
        }
        Mismatch::Large { value, row } => format!(
            "table '{table}': column '{column}': row {row}: the integer {value} is above {}, the largest int64 (ingest.large_unsigned = \
             \"saturate\" stores that in its place)",
            i64::MAX
        ),
        Mismatch::Types { column: have, cell } => {
            format!("table '{table}': column '{column}' holds {have}, row {row} is {cell}")
        }
        Mismatch::Inexact { value, row: None } => {
            format!("table '{table}': column '{column}' holds float64, which cannot represent the integer {value} of row {row}")
        }
        Mismatch::Inexact { value, row: Some(earlier) } => format!(
            "table '{table}': column '{column}' holds int64, row {row} is float64, which cannot represent the {value} of row {earlier}"
        ),
    })
}

/// All tables of a request, each once, in the order of their first rows.
pub struct Tables {
    budget: Budget,
    tables: Vec<TableBuilder>,
    index: HashMap<String, usize, foldhash::fast::RandomState>,
    last: usize,
}

impl Tables {
    pub fn new(bounds: Bounds, large_unsigned: LargeUnsigned) -> Self {
        let budget = Budget { large_unsigned, ..Budget::new(bounds) };
        Self { budget, tables: Vec::new(), index: HashMap::default(), last: 0 }
    }

    pub fn bounds(&self) -> &Bounds {
        &self.budget.bounds
    }

    /// Counts the cells of an item, its times among them, before they are decoded.
    ///
    /// # Errors
    /// [`RequestError::TooLarge`] when the request has too many.
    pub fn claim(&mut self, table: &str, cells: usize) -> Result<(), RequestError> {
        self.budget.claim(table, cells)
    }

    /// The table of that name, added if new; the caller adds at least one row.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for a bad name or too many tables, [`RequestError::TooLarge`] for more of them than partitions.
    pub fn table(&mut self, name: &str) -> Result<(&mut TableBuilder, &mut Budget), RequestError> {
        if self.tables.get(self.last).is_none_or(|t| t.name != name) {
            self.last = match self.index.get(name) {
                Some(at) => *at,
                None => {
                    let new = TableBuilder::new(name)?;
                    if self.tables.len() >= self.budget.bounds.max_tables {
                        return invalid(format!("request has more than {} tables (ingest.max_tables)", self.budget.bounds.max_tables));
                    }
                    self.budget.check_tables(self.tables.len())?;
                    self.index.insert(name.to_owned(), self.tables.len());
                    self.tables.push(new);
                    self.tables.len() - 1
                }
            };
        }
        match self.tables.get_mut(self.last) {
            Some(table) => Ok((table, &mut self.budget)),
            None => Err(RequestError::Internal("a table index is out of range".into())),
        }
    }

    /// The tables, and how many integers were stored as `i64::MAX`.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for columns that differ in case only and for integers that their column cannot hold,
    /// [`RequestError::TooLarge`] over a bound of the request.
    pub fn finish(mut self, known: KnownTypes<'_>) -> Result<(Vec<TableBatch>, u64), RequestError> {
        check_partitions(self.tables.iter().map(|t| t.time.as_slice()), &self.budget.bounds)?;
        let mut saturated = 0;
        let tables: Result<_, _> = self.tables.into_iter().map(|t| t.finish(&mut self.budget, known, &mut saturated)).collect();
        Ok((tables?, saturated))
    }
}

/// Refuses more pairs of table and hour than `ingest.max_partitions`: each becomes a file.
pub(crate) fn check_partitions<'a>(times: impl Iterator<Item = &'a [i64]>, bounds: &Bounds) -> Result<(), RequestError> {
    let mut partitions = 0usize;
    for time in times {
        partitions += hours(time, bounds.max_partitions);
        if partitions > bounds.max_partitions {
            return too_many_partitions(bounds);
        }
    }
    Ok(())
}

fn too_many_partitions(bounds: &Bounds) -> Result<(), RequestError> {
    let most = bounds.max_partitions;
    Err(RequestError::TooLarge(format!("request covers more than {most} pairs of table and hour (ingest.max_partitions); split it")))
}

/// Distinct hours of `time`, counted to one past `max` at most.
fn hours(time: &[i64], max: usize) -> usize {
    let (low, high) = time.iter().fold((i64::MAX, i64::MIN), |(l, h), t| (l.min(*t), h.max(*t)));
    if time.is_empty() || hour_of(low) == hour_of(high) {
        return usize::from(!time.is_empty());
    }
    let mut seen = HashSet::new();
    let mut last = None;
    for t in time {
        let hour = hour_of(*t);
        if last != Some(hour) {
            last = Some(hour);
            seen.insert(hour);
            if seen.len() > max {
                break;
            }
        }
    }
    seen.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_tables_count_before_they_are_made() {
        let bounds = Bounds { max_columns: 100, max_tables: 1000, max_partitions: 30, max_bytes: 1 << 20 };
        let fill = |bounds: Bounds, tables: usize| {
            let mut all = Tables::new(bounds, LargeUnsigned::Refuse);
            for table in 0..tables {
                let (t, budget) = all.table(&format!("t{table}"))?;
                for column in 0..100 {
                    t.column(&format!("c{column}"), false, budget)?;
                }
                t.add_times(&[1])?;
            }
            Ok(all.tables.len())
        };
        assert_eq!(fill(bounds, 20), Ok(20));
        let refused = fill(Bounds { max_bytes: 256 << 10, ..bounds }, 20).unwrap_err();
        assert!(matches!(&refused, RequestError::TooLarge(m) if m.contains("columns so far")), "{refused:?}");
        assert_eq!(fill(Bounds { max_bytes: 1 << 10, ..bounds }, 1), Ok(1));
        let refused = fill(Bounds { max_partitions: 10, ..bounds }, 11).unwrap_err();
        assert!(matches!(&refused, RequestError::TooLarge(m) if m.contains("more than 10 pairs")), "{refused:?}");
    }
}
