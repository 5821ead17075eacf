//! The typed, columnar form of one request: what decoders make, what the log stores, what replay gives back.
//!
//! [`TableBatch`] is what a decoder fills in. [`ValidBatch`] is the same after [`ValidBatch::new`] has checked every
//! invariant that replay relies on; only a `ValidBatch` can be encoded for the log.
//!
//! INVARIANT(valid-batch): whatever `ValidBatch::new` accepts encodes to a payload that `format::payload` decodes to
//! the same rows, and that the compactor turns into Parquet without error.

use crate::error::RequestError;
use crate::limits;
use crate::names;
use crate::types::{ColumnType, hour_of};

/// One bit a row, least significant first, as in Arrow. Bits past `len` are zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    pub fn with_capacity(rows: usize) -> Self {
        Self { bytes: Vec::with_capacity(rows.div_ceil(8)), len: 0 }
    }

    /// `len` bits, all set to `value`.
    pub fn filled(len: usize, value: bool) -> Self {
        let mut b = Self { bytes: vec![if value { 0xff } else { 0 }; len.div_ceil(8)], len };
        b.clear_tail();
        b
    }

    /// The bits of `bytes`; None unless `bytes` has exactly the length that `len` bits need.
    pub fn from_bytes(bytes: Vec<u8>, len: usize) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) {
            return None;
        }
        let mut b = Self { bytes, len };
        b.clear_tail();
        Some(b)
    }

    fn clear_tail(&mut self) {
        let used = self.len % 8;
        if used != 0
            && let Some(last) = self.bytes.last_mut()
        {
            *last &= (1u8 << used) - 1;
        }
    }

    pub fn push(&mut self, v: bool) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if v && let Some(last) = self.bytes.last_mut() {
            *last |= 1 << (self.len % 8);
        }
        self.len += 1;
    }

    /// False also past the end.
    pub fn get(&self, i: usize) -> bool {
        i < self.len && self.bytes.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0)
    }

    /// Sets bit `i`; nothing happens past the end.
    pub fn set(&mut self, i: usize, v: bool) {
        if i < self.len
            && let Some(b) = self.bytes.get_mut(i / 8)
        {
            if v {
                *b |= 1 << (i % 8);
            } else {
                *b &= !(1 << (i % 8));
            }
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn count_ones(&self) -> usize {
        self.bytes.iter().map(|b| b.count_ones() as usize).sum()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        (0..self.len).map(|i| self.get(i))
    }
}

/// Byte strings laid end to end: entry i is `lengths[i]` bytes long.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Strings {
    pub lengths: Vec<u32>,
    pub bytes: Vec<u8>,
}

impl Strings {
    pub fn push(&mut self, s: &[u8]) {
        self.lengths.push(s.len() as u32);
        self.bytes.extend_from_slice(s);
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + '_ {
        let mut at = 0usize;
        self.lengths.iter().map(move |l| {
            let from = at;
            at += *l as usize;
            self.bytes.get(from..at).unwrap_or_default()
        })
    }
}

/// The values of one column, one entry a row; entries of NULL rows are zero or empty.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Every row is NULL and the type is not known from the data.
    Null,
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Bool(Bits),
    /// Valid UTF-8.
    Utf8(Strings),
    /// Valid UTF-8: row i is entry `codes[i]` of `dictionary` (NULL rows have any valid code, or 0 with an empty dictionary).
    /// Entries are distinct.
    Utf8Dict {
        codes: Vec<u16>,
        dictionary: Strings,
    },
    Binary(Strings),
}

impl Values {
    pub fn column_type(&self) -> Option<ColumnType> {
        Some(match self {
            Self::Null => return None,
            Self::Int64(_) => ColumnType::Int64,
            Self::Float64(_) => ColumnType::Float64,
            Self::Bool(_) => ColumnType::Bool,
            Self::Utf8(_) | Self::Utf8Dict { .. } => ColumnType::Utf8,
            Self::Binary(_) => ColumnType::Binary,
        })
    }

    /// Rows held; None for [`Values::Null`], which fits any number.
    pub fn rows(&self) -> Option<usize> {
        Some(match self {
            Self::Null => return None,
            Self::Int64(v) => v.len(),
            Self::Float64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Utf8(v) | Self::Binary(v) => v.len(),
            Self::Utf8Dict { codes, .. } => codes.len(),
        })
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Column {
    pub name: String,
    /// Came as a tag: sorted before the fields in Parquet.
    pub tag: bool,
    pub values: Values,
    /// Bit set = not NULL. None = no NULLs (but for [`Values::Null`]).
    pub validity: Option<Bits>,
    /// Set by validation: this column's definition (name, type, tag) is not yet durable in the catalog, or
    /// this record widens it; replay adds it.
    pub defines: bool,
}

impl Column {
    pub fn is_null(&self, row: usize) -> bool {
        matches!(self.values, Values::Null) || self.validity.as_ref().is_some_and(|v| !v.get(row))
    }
}

/// The rows of one request for one table.
#[derive(Clone, PartialEq, Debug)]
pub struct TableBatch {
    pub table: String,
    /// Microseconds since the Unix epoch, one a row.
    pub time: Vec<i64>,
    pub columns: Vec<Column>,
}

impl TableBatch {
    pub fn rows(&self) -> usize {
        self.time.len()
    }
}

/// One request, validated. See the module's invariant.
#[derive(Clone, PartialEq, Debug)]
pub struct ValidBatch {
    database: String,
    tables: Vec<TableBatch>,
}

impl ValidBatch {
    /// Checks names, lengths, times and column bounds. Types against the catalog and configured limits are checked before.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] or [`RequestError::TooLarge`], naming the table and column.
    pub fn new(database: String, tables: Vec<TableBatch>) -> Result<Self, RequestError> {
        check_database_name(&database)?;
        if tables.len() > limits::MAX_TABLES_PER_REQUEST {
            return Err(RequestError::TooLarge(format!(
                "request has {} tables, at most {} are allowed",
                tables.len(),
                limits::MAX_TABLES_PER_REQUEST
            )));
        }
        let mut seen = hashbrown::HashSet::with_capacity(tables.len());
        for t in &tables {
            // A log from before a rule for names still has to be read.
            check_stored_table_name(&t.table)?;
            if !seen.insert(t.table.as_str()) {
                return Err(RequestError::Internal(format!("table '{}' stands twice in one batch", t.table)));
            }
            check_table(t)?;
        }
        drop(seen);
        Ok(Self { database, tables })
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub fn tables(&self) -> &[TableBatch] {
        &self.tables
    }

    pub fn rows(&self) -> usize {
        self.tables.iter().map(TableBatch::rows).sum()
    }

    /// For the catalog alone, which sets `defines` and widens integers: neither touches what was validated.
    pub(crate) fn tables_mut(&mut self) -> &mut [TableBatch] {
        &mut self.tables
    }
}

fn check_table(t: &TableBatch) -> Result<(), RequestError> {
    let rows = t.rows();
    let table = &t.table;
    if rows == 0 {
        return Err(RequestError::Internal(format!("table '{table}' has no rows")));
    }
    if rows > limits::MAX_ROWS_PER_TABLE {
        return Err(RequestError::TooLarge(format!(
            "table '{table}' has {rows} rows in one request, at most {} are allowed",
            limits::MAX_ROWS_PER_TABLE
        )));
    }
    if let Some(i) = t.time.iter().position(|t| !(limits::MIN_TIME_US..=limits::MAX_TIME_US).contains(t)) {
        return Err(RequestError::Invalid(format!("table '{table}': time of row {i} is outside the years 0001 to 9999")));
    }
    if t.columns.len() > limits::MAX_COLUMNS {
        return Err(RequestError::Invalid(format!(
            "table '{table}' has {} columns, at most {} are allowed",
            t.columns.len(),
            limits::MAX_COLUMNS
        )));
    }
    let mut seen = hashbrown::HashSet::with_capacity(t.columns.len());
    for c in &t.columns {
        check_stored_column_name(table, &c.name)?;
        if !seen.insert(c.name.as_str()) {
            return Err(RequestError::Invalid(format!("table '{table}': column '{}' is given twice", c.name)));
        }
        check_column(table, c, rows)?;
    }
    Ok(())
}

fn check_column(table: &str, c: &Column, rows: usize) -> Result<(), RequestError> {
    let bug = |what: &str| Err(RequestError::Internal(format!("table '{table}', column '{}': {what}", c.name)));
    let Some(n) = c.values.rows() else {
        return bug("a column of unknown type reached validation");
    };
    if n != rows {
        return Err(RequestError::Invalid(format!("table '{table}': column '{}' has {n} values, time has {rows}", c.name)));
    }
    if c.validity.as_ref().is_some_and(|v| v.len() != rows) {
        return bug("validity has the wrong length");
    }
    match &c.values {
        Values::Utf8(s) => check_strings(s, true).or_else(bug),
        Values::Binary(s) => check_strings(s, false).or_else(bug),
        Values::Utf8Dict { codes, dictionary } => {
            check_strings(dictionary, true).or_else(bug)?;
            let max = codes.iter().copied().max().unwrap_or(0) as usize;
            let all_null = c.validity.as_ref().is_some_and(|v| v.count_ones() == 0);
            if max >= dictionary.len() && !(max == 0 && all_null) {
                return bug("a dictionary code is out of range");
            }
            Ok(())
        }
        Values::Null | Values::Int64(_) | Values::Float64(_) | Values::Bool(_) => Ok(()),
    }
}

fn check_strings(s: &Strings, utf8: bool) -> Result<(), &'static str> {
    let total: u64 = s.lengths.iter().map(|l| u64::from(*l)).sum();
    if total != s.bytes.len() as u64 {
        return Err("string lengths do not add up to the bytes");
    }
    if utf8 {
        let whole = simdutf8::basic::from_utf8(&s.bytes).map_err(|_| "strings are not UTF-8")?;
        if !whole.is_ascii() {
            // Each entry must be whole characters: the concatenation alone does not show that.
            let mut at = 0usize;
            for l in &s.lengths {
                at += *l as usize;
                if !whole.is_char_boundary(at) {
                    return Err("strings are not UTF-8");
                }
            }
        }
    }
    Ok(())
}

/// `^[A-Za-z][A-Za-z0-9_-]{0,63}$`
///
/// # Errors
/// [`RequestError::Invalid`] with the rule.
pub fn check_database_name(name: &str) -> Result<(), RequestError> {
    let ok = name.len() <= limits::MAX_DATABASE_NAME
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if ok {
        Ok(())
    } else {
        Err(RequestError::Invalid(format!(
            "invalid database name '{}': expected a letter, then at most 63 letters, digits, '_' or '-'",
            shown(name)
        )))
    }
}

/// The rules for a table's name in the log: non-empty, at most 128 bytes (200 after escaping), no control characters, not `.` or `..`.
///
/// # Errors
/// [`RequestError::Invalid`] with the rule.
fn check_stored_table_name(name: &str) -> Result<(), RequestError> {
    let bad = |why: &str| Err(RequestError::Invalid(format!("invalid table name '{}': {why}", shown(name))));
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > limits::MAX_TABLE_NAME {
        return bad("it is longer than 128 bytes");
    }
    if name == "." || name == ".." {
        return bad("'.' and '..' are not allowed");
    }
    if name.chars().any(char::is_control) {
        return bad("control characters are not allowed");
    }
    if escape_table(name).len() > limits::MAX_ESCAPED_TABLE {
        return bad("it is longer than 200 bytes after percent escaping");
    }
    Ok(())
}

/// The rules for the name of a table that a request has: those of the log, and nothing invisible, see [`names`].
///
/// # Errors
/// [`RequestError::Invalid`] with the rule.
pub fn check_table_name(name: &str) -> Result<(), RequestError> {
    check_stored_table_name(name)?;
    names::check_visible(name).map_err(|why| RequestError::Invalid(format!("invalid table name '{}': {why}", shown(name))))
}

/// The rules for a column's name in the log: non-empty, at most 256 bytes, no control characters, not `time`.
///
/// # Errors
/// [`RequestError::Invalid`] with the rule.
fn check_stored_column_name(table: &str, name: &str) -> Result<(), RequestError> {
    let bad = |why: &str| Err(RequestError::Invalid(format!("table '{}': invalid column name '{}': {why}", shown(table), shown(name))));
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > limits::MAX_COLUMN_NAME {
        return bad("it is longer than 256 bytes");
    }
    if name.chars().any(char::is_control) {
        return bad("control characters are not allowed");
    }
    if name.eq_ignore_ascii_case("time") {
        return bad("'time' is the time stamp column");
    }
    Ok(())
}

/// The rules for the name of a column that a request has: those of the log, and nothing invisible, see [`names`].
///
/// # Errors
/// [`RequestError::Invalid`] with the rule.
pub fn check_column_name(table: &str, name: &str) -> Result<(), RequestError> {
    check_stored_column_name(table, name)?;
    names::check_visible(name)
        .map_err(|why| RequestError::Invalid(format!("table '{}': invalid column name '{}': {why}", shown(table), shown(name))))
}

/// A name as it stands in an error message: as it is, but control and invisible characters escaped; shortened.
pub fn shown(name: &str) -> String {
    let mut out = String::new();
    let mut chars = name.chars();
    for c in chars.by_ref().take(MAX_SHOWN) {
        if c.is_control() || names::is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if chars.next().is_some() {
        out.push_str("...");
    }
    out
}

/// [`shown`] for a name that may be other than UTF-8: such bytes are escaped.
pub fn shown_bytes(name: &[u8]) -> String {
    use std::fmt::Write as _;
    let cut = name.get(..MAX_SHOWN * 4).unwrap_or(name);
    let mut out = String::new();
    for chunk in cut.utf8_chunks() {
        out.push_str(&shown(chunk.valid()));
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    if cut.len() < name.len() {
        out.push_str("...");
    }
    out
}

/// Characters of a name that errors repeat.
const MAX_SHOWN: usize = 80;

/// The path segment of a table: `[A-Za-z0-9_.-]` as is, every other byte `%XX`, also a leading `.` or `_`.
pub fn escape_table(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, b) in name.bytes().enumerate() {
        let plain = b.is_ascii_alphanumeric() || b == b'-' || ((b == b'_' || b == b'.') && i > 0);
        if plain {
            out.push(b as char);
        } else {
            use std::fmt::Write as _;
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// The hours that `time` covers with the rows of each, ascending. `time` in microseconds since the Unix epoch.
pub fn hours(time: &[i64]) -> Vec<(crate::types::Hour, u32)> {
    let (Some(lo), Some(hi)) = (time.iter().min(), time.iter().max()) else {
        return Vec::new();
    };
    if hour_of(*lo) == hour_of(*hi) {
        return vec![(hour_of(*lo), time.len() as u32)];
    }
    let mut counts = std::collections::BTreeMap::new();
    for t in time {
        *counts.entry(hour_of(*t)).or_insert(0u32) += 1;
    }
    counts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_escape_reversibly() {
        assert_eq!(escape_table("cpu.load_1-x"), "cpu.load_1-x");
        assert_eq!(escape_table(".hidden"), "%2Ehidden");
        assert_eq!(escape_table("_x_"), "%5Fx_");
        assert_eq!(escape_table("a/b%é"), "a%2Fb%25%C3%A9");
        assert!(check_table_name("..").is_err());
        assert!(check_table_name(&"é".repeat(40)).is_err(), "240 bytes escaped");
    }

    #[test]
    fn names_are_shown_as_they_are_but_for_what_nobody_sees() {
        for (name, want) in [("°C", "°C"), ("温度", "温度"), ("it's \\ \"x\"", "it's \\ \"x\""), ("a\n\u{feff}b", "a\\n\\u{feff}b")] {
            assert_eq!(shown(name), want);
            assert_eq!(shown_bytes(name.as_bytes()), want);
        }
        assert_eq!(shown_bytes(b"caf\xe9\0"), "caf\\xe9\\u{0}");
        assert_eq!(shown(&"é".repeat(80)), "é".repeat(80));
        assert_eq!(shown(&"é".repeat(81)), "é".repeat(80) + "...");
        assert!(shown_bytes(&[0xff; 10_000]).len() < 2000);
    }

    /// What an older log holds is read and shipped, whatever names requests may have now.
    #[test]
    fn a_batch_from_a_log_keeps_names_that_requests_may_not_have() {
        let table = "\u{feff}cpu ";
        assert!(check_table_name(table).is_err() && check_column_name("t", table).is_err());
        let columns = vec![Column { name: table.into(), tag: false, values: Values::Int64(vec![1]), validity: None, defines: true }];
        assert!(ValidBatch::new("db".into(), vec![TableBatch { table: table.into(), time: vec![1], columns }]).is_ok());
    }

    #[test]
    fn strings_that_split_a_character_are_refused() {
        let s = Strings { lengths: vec![1, 1], bytes: "é".as_bytes().to_vec() };
        assert!(check_strings(&s, true).is_err());
        let s = Strings { lengths: vec![2], bytes: "é".as_bytes().to_vec() };
        assert!(check_strings(&s, true).is_ok());
    }

    #[test]
    fn bits_keep_their_tail_clear() {
        let b = Bits::from_bytes(vec![0xff, 0xff], 9).expect("two bytes hold nine bits");
        assert_eq!(b.count_ones(), 9);
        assert!(!b.get(9));
        assert!(Bits::from_bytes(vec![0], 9).is_none());
    }
}
