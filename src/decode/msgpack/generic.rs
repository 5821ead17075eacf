//! Every form of request, item by item. This decoder is the authority on what is accepted and words every error.

use super::scan::{self, Head, Reader};
use super::value::{self, Value};
use super::{DecodeOptions, Decoded};
use crate::batch::{check_table_name, shown};
use crate::decode::table::{Tables, check_columns, invalid, stored_name, within};
use crate::decode::time::{extension_to_micros, float_to_micros, to_micros, unit_name, unit_of, unit_of_float};
use crate::error::RequestError;
use crate::limits;
use crate::types::TimeUnit;
use hashbrown::HashSet;
use std::borrow::Cow;

pub fn decode(body: &[u8], options: &DecodeOptions) -> Result<Decoded, RequestError> {
    let invalid_utf8 = scan::check(body)?;
    let rewritten;
    let body = if invalid_utf8 == 0 {
        body
    } else {
        rewritten = scan::replace_invalid_utf8(body)?;
        &rewritten
    };
    let replaced = invalid_utf8 > 0;
    let mut request = Request { options, tables: Tables::new(options.bounds), json: String::new(), times: Vec::new(), depth: 0, replaced };
    match Reader::new(body).peek()? {
        Head::Map(_) => request.item(body)?,
        Head::Array(_) => request.items(body)?,
        other => return invalid(format!("expected a map or an array at the top level, found {}", other.name())),
    }
    Ok(Decoded { tables: request.tables.finish()?, invalid_utf8 })
}

/// Levels of batches and arrays within each other. Each level walks its items once more.
const MAX_BATCH_DEPTH: usize = 4;

/// A request while its items are read.
pub(super) struct Request<'o> {
    pub options: &'o DecodeOptions,
    pub tables: Tables,
    /// JSON text of the nested value read last.
    pub json: String,
    /// Times of the item being read.
    pub times: Vec<i64>,
    /// Batches and arrays that the present item stands in.
    depth: usize,
    /// Strings of the body were not UTF-8 and hold U+FFFD instead.
    pub replaced: bool,
}

/// The parts of an item that have a meaning, unread.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub m: Option<&'a [u8]>,
    pub batch: Option<&'a [u8]>,
    pub columns: Option<&'a [u8]>,
    pub t: Option<&'a [u8]>,
    pub time: Option<&'a [u8]>,
    pub h: Option<&'a [u8]>,
    pub tags: Option<&'a [u8]>,
    pub fields: Option<&'a [u8]>,
    pub f: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(item: &'a [u8]) -> Result<Self, RequestError> {
        let mut r = Reader::new(item);
        let pairs = match r.head()? {
            Head::Map(n) => n,
            other => return invalid(format!("expected a map, found {}", other.name())),
        };
        let mut parts = Self::default();
        let mut unknown: Vec<&[u8]> = Vec::new();
        for _ in 0..pairs {
            let raw_key = r.raw()?;
            let key = Reader::new(raw_key).head()?;
            let raw = r.raw()?;
            let known = match key {
                Head::Str(b"m") => &mut parts.m,
                Head::Str(b"batch") => &mut parts.batch,
                Head::Str(b"columns") => &mut parts.columns,
                Head::Str(b"t") => &mut parts.t,
                Head::Str(b"time") => &mut parts.time,
                Head::Str(b"h") => &mut parts.h,
                Head::Str(b"tags") => &mut parts.tags,
                Head::Str(b"fields") => &mut parts.fields,
                Head::Str(b"f") => &mut parts.f,
                Head::Str(other) => {
                    unknown.push(other);
                    continue;
                }
                // A key of another type names nothing here.
                _ => continue,
            };
            if known.replace(raw).is_some() {
                return twice(key);
            }
        }
        unknown.sort_unstable();
        if let Some(key) = unknown.windows(2).find_map(|w| match w {
            [a, b] if a == b => Some(*a),
            _ => None,
        }) {
            return twice(Head::Str(key));
        }
        Ok(parts)
    }
}

fn twice<T>(key: Head<'_>) -> Result<T, RequestError> {
    let name = match key {
        Head::Str(s) => String::from_utf8_lossy(s),
        other => Cow::Borrowed(other.name()),
    };
    invalid(format!("key '{}' stands twice in one map", shown(&name)))
}

/// The pairs of a map with string keys, each key once.
///
/// A name that held U+FFFD before is not told from one that was replaced in the same body: refused as well.
pub(super) fn pairs<'a>(raw: &'a [u8], what: &str, max: usize, replaced: bool) -> Result<Vec<(&'a str, &'a [u8])>, RequestError> {
    let mut r = Reader::new(raw);
    let n = match r.head()? {
        Head::Map(n) => n,
        other => return invalid(format!("'{what}' must be a map, found {}", other.name())),
    };
    // Bounds the vector below: a pair can be as short as two bytes.
    if n > max {
        return invalid(format!("'{what}' has {n} entries, at most {max} are allowed (ingest.max_columns)"));
    }
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        let name = match Reader::new(r.raw()?).head()? {
            Head::Str(s) => std::str::from_utf8(s).map_err(|e| RequestError::Internal(format!("a key was not rewritten: {e}")))?,
            other => return invalid(format!("a key of '{what}' must be a string, found {}", other.name())),
        };
        if replaced && name.contains(char::REPLACEMENT_CHARACTER) {
            // Two such names would become one column.
            return invalid(format!("the name '{}' in '{what}' is not valid UTF-8", shown(name)));
        }
        out.push((name, r.raw()?));
    }
    Ok(out)
}

impl Request<'_> {
    /// The items of an array.
    fn items(&mut self, raw: &[u8]) -> Result<(), RequestError> {
        let mut r = Reader::new(raw);
        let n = match r.head()? {
            Head::Array(n) => n,
            other => return invalid(format!("'batch' must be an array, found {}", other.name())),
        };
        if self.depth == MAX_BATCH_DEPTH {
            return invalid(format!("batches are nested deeper than {MAX_BATCH_DEPTH} levels"));
        }
        self.depth += 1;
        for i in 0..n {
            let item = r.raw()?;
            self.item(item).map_err(|e| within(format_args!("item {i}"), e))?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn item(&mut self, item: &[u8]) -> Result<(), RequestError> {
        let parts = Parts::of(item)?;
        if let Some(batch) = parts.batch {
            return self.items(batch);
        }
        let table = self.table_name(parts.m)?;
        match parts.columns {
            // Either could be what the client means: taking one would drop the other unseen.
            Some(_) if parts.fields.is_some() || parts.f.is_some() => invalid(format!(
                "table '{}': 'columns' and '{}' stand in one map, expected one of them",
                shown(&table),
                if parts.fields.is_some() { "fields" } else { "f" }
            )),
            Some(columns) => self.columnar(&table, columns),
            None => self.row(&table, &parts),
        }
    }

    fn table_name<'a>(&mut self, m: Option<&'a [u8]>) -> Result<Cow<'a, str>, RequestError> {
        let Some(raw) = m else {
            return invalid("'m' (the table name) is missing");
        };
        let name = match self.value(raw)? {
            Value::Str(s) => Cow::Borrowed(s),
            Value::Int(n) => Cow::Owned(format!("measurement_{n}")),
            Value::Big(n) => Cow::Owned(format!("measurement_{n}")),
            other => return invalid(format!("'m' (the table name) must be a string or an integer, found {}", other.name())),
        };
        check_table_name(&name)?;
        Ok(name)
    }

    /// The value of `raw`; JSON text of a nested one is in `self.json`.
    pub fn value<'a>(&mut self, raw: &'a [u8]) -> Result<Value<'a>, RequestError> {
        value::read(raw, self.options.nested, &mut self.json)
    }

    fn columnar(&mut self, table: &str, raw: &[u8]) -> Result<(), RequestError> {
        let in_table = |e| within(format_args!("table '{}'", shown(table)), e);
        let max = self.options.bounds.max_columns.saturating_add(1);
        let columns = pairs(raw, "columns", max, self.replaced).map_err(in_table)?;
        let rows = rows_of(table, &columns)?;
        if rows == 0 {
            return Ok(());
        }
        if rows > limits::MAX_ROWS_PER_TABLE {
            return Err(RequestError::TooLarge(format!(
                "table '{}' has {rows} rows, at most {} are allowed in one request; split it",
                shown(table),
                limits::MAX_ROWS_PER_TABLE
            )));
        }
        check_columns(table, columns.iter().filter(|(name, _)| *name != "time").count(), self.tables.bounds())?;
        self.tables.claim(table, rows.saturating_mul(columns.len()))?;
        self.times.clear();
        match columns.iter().find(|(name, _)| *name == "time") {
            Some((_, raw)) => self.read_times(raw).map_err(in_table)?,
            None => self.times.resize(rows, self.options.receive_time_us),
        }
        let (builder, budget) = self.tables.table(table)?;
        for (name, raw) in columns.iter().filter(|(name, _)| *name != "time") {
            let name = stored_name(name, self.options.hive_names);
            let at = builder.column(&name, false, budget)?;
            let place = format_args!("table '{}': column '{}'", shown(table), shown(&name));
            value::for_each(raw, self.options.nested, &mut self.json, place, |row, value, json| match value.cell(json) {
                Ok(cell) => builder.push(at, row, cell),
                Err(why) => invalid(format!("{place}: row {row}: {why}")),
            })?;
        }
        builder.add_times(&self.times)
    }

    /// Reads a `time` column into `self.times`.
    fn read_times(&mut self, raw: &[u8]) -> Result<(), RequestError> {
        let mut clock = Clock { unit: self.options.time_unit.map(|u| (u, None)) };
        let times = &mut self.times;
        value::for_each(raw, self.options.nested, &mut self.json, "time", |row, value, _| {
            times.push(clock.micros(value, row).map_err(|why| RequestError::Invalid(format!("time of row {row}: {why}")))?);
            Ok(())
        })
    }
}

/// Times of one column, which have one unit.
#[derive(Default)]
pub(super) struct Clock {
    /// The unit, with the row that it was seen in unless it was given.
    pub unit: Option<(TimeUnit, Option<usize>)>,
}

impl Clock {
    /// Microseconds since the Unix epoch.
    pub fn micros(&mut self, value: Value<'_>, row: usize) -> Result<i64, String> {
        match value {
            Value::Int(t) => {
                let unit = self.unit(unit_of(t), row)?;
                to_micros(t, unit).ok_or_else(|| format!("{t} {} is outside the years 0001 to 9999", unit_name(unit)))
            }
            Value::Float(t) if t.is_finite() => {
                let unit = self.unit(unit_of_float(t), row)?;
                float_to_micros(t, unit).ok_or_else(|| format!("{t:?} {} is outside the years 0001 to 9999", unit_name(unit)))
            }
            Value::Float(t) => Err(format!("expected a number, found {t:?}")),
            Value::Big(t) => Err(format!("{t} is above {}, the largest int64", i64::MAX)),
            Value::Extension(-1, data) => extension_to_micros(data).map_err(str::to_owned),
            other => Err(format!("expected a number, found {}", other.name())),
        }
    }

    fn unit(&mut self, seen: TimeUnit, row: usize) -> Result<TimeUnit, String> {
        match self.unit {
            None => {
                self.unit = Some((seen, Some(row)));
                Ok(seen)
            }
            Some((unit, Some(first))) if unit != seen => Err(format!(
                "it is in {} by its magnitude, row {first} in {}; expected one unit (the header x-arc-time-unit can name it)",
                unit_name(seen),
                unit_name(unit)
            )),
            Some((unit, _)) => Ok(unit),
        }
    }
}

/// The number of rows that all columns have.
fn rows_of(table: &str, columns: &[(&str, &[u8])]) -> Result<usize, RequestError> {
    const SHOWN: usize = 20;
    let table = shown(table);
    let mut names = HashSet::with_capacity(columns.len());
    let mut lengths = Vec::with_capacity(columns.len());
    for (name, raw) in columns {
        if !names.insert(*name) {
            return invalid(format!("table '{table}': key '{}' stands twice in 'columns'", shown(name)));
        }
        match Reader::new(raw).head()? {
            Head::Array(n) => lengths.push(n),
            other => return invalid(format!("table '{table}': column '{}' must be an array, found {}", shown(name), other.name())),
        }
    }
    let Some(rows) = lengths.first().copied() else {
        return invalid(format!("table '{table}': 'columns' is empty, expected at least one column"));
    };
    if lengths.iter().any(|n| *n != rows) {
        let mut list: Vec<String> =
            columns.iter().zip(&lengths).take(SHOWN).map(|((name, _), n)| format!("'{}' has {n}", shown(name))).collect();
        if let Some((odd, n)) = columns.iter().zip(&lengths).skip(SHOWN).find(|(_, n)| **n != rows) {
            list.push(format!("... '{}' has {n}", shown(odd.0)));
        }
        return invalid(format!("table '{table}': columns differ in length: {}", list.join(", ")));
    }
    Ok(rows)
}
