//! Every form of request, item by item. This decoder is the authority on what is accepted and words every error.

use super::scan::{self, Head, Reader};
use super::texts::Texts;
use super::value::{self, Value};
use super::{DecodeOptions, Decoded};
use crate::batch::{check_table_name, shown, shown_bytes};
use crate::decode::column::Cell;
use crate::decode::sniff::Format;
use crate::decode::table::{KnownTypes, Tables, check_columns, invalid, stored_name, within};
use crate::decode::time::{extension_to_micros, float_to_micros, to_micros, unit_name, unit_of, unit_of_float};
use crate::error::RequestError;
use crate::limits;
use crate::types::TimeUnit;
use hashbrown::HashSet;
use std::borrow::Cow;

pub fn decode(body: &[u8], options: &DecodeOptions, known: KnownTypes<'_>) -> Result<Decoded, RequestError> {
    let invalid_utf8 = scan::check(body).map_err(|e| sniffed(body, e))?;
    let tables = Tables::new(options.bounds, options.large_unsigned);
    let texts = Texts::new(options.max_text, invalid_utf8 > 0);
    let mut request = Request { options, tables, texts, times: Vec::new(), depth: 0 };
    match Reader::new(body).peek()? {
        Head::Map(_) => request.item(body)?,
        Head::Array(_) => request.items(body)?,
        other => {
            let found = format!("expected a map or an array at the top level, found {}", other.name());
            return Err(sniffed(body, RequestError::Invalid(found)));
        }
    }
    let (tables, saturated) = request.tables.finish(known)?;
    Ok(Decoded { tables, invalid_utf8: request.texts.replaced, saturated })
}

/// What a body is that is no MessagePack, if that can be seen, else the error.
fn sniffed(body: &[u8], e: RequestError) -> RequestError {
    let Some(format) = Format::of(body).filter(|f| *f != Format::MessagePack) else { return e };
    let advice = match format {
        Format::Json | Format::Text => "; /api/v1/write/line-protocol takes line protocol",
        Format::LineProtocol => "; send it to /api/v1/write/line-protocol",
        Format::Compressed(_) => "; gzip and zstd are taken",
        _ => "",
    };
    RequestError::Invalid(format!(
        "the body is no MessagePack: this looks like {}, expected a MessagePack map or array{advice}",
        format.name()
    ))
}

/// Levels of batches and arrays within each other. Each level walks its items once more.
const MAX_BATCH_DEPTH: usize = 4;

/// A request while its items are read.
pub(super) struct Request<'o> {
    pub options: &'o DecodeOptions,
    pub tables: Tables,
    /// The text made last: of a nested value, or of a string that was not UTF-8.
    pub texts: Texts,
    /// Times of the item being read.
    pub times: Vec<i64>,
    /// Batches and arrays that the present item stands in.
    depth: usize,
}

/// Keys of an item that mean something.
const KNOWN: [&str; 9] = ["m", "batch", "columns", "t", "time", "h", "tags", "fields", "f"];
/// Keys that mean nothing, in one item. They are held while they are compared.
const MAX_UNKNOWN_KEYS: usize = 1 << 16;

/// The key that is probably meant: one that differs in case alone, or lacks its last letter.
fn meant(key: &[u8]) -> Option<&'static str> {
    let singular = |known: &str| known.len() > 2 && known.strip_suffix('s').is_some_and(|k| key.eq_ignore_ascii_case(k.as_bytes()));
    KNOWN.into_iter().find(|known| key.eq_ignore_ascii_case(known.as_bytes()) || singular(known))
}

/// Whether a key beside the table's name and the columns is more than an unknown one.
pub(super) fn is_known(key: &[u8]) -> bool {
    meant(key).is_some()
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
                    if let Some(known) = meant(other) {
                        return invalid(format!("unknown key '{}': expected '{known}'", shown_bytes(other)));
                    }
                    if unknown.len() == MAX_UNKNOWN_KEYS {
                        return invalid(format!("an item has more than {MAX_UNKNOWN_KEYS} unknown keys"));
                    }
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

    /// Refuses keys of `all` that say something where nothing listens to it. A nil says nothing: serializers write it for what is absent.
    fn refuse(all: &[(&str, Option<&[u8]>)], beside: &str) -> Result<(), RequestError> {
        let is_nil = |raw: &[u8]| matches!(Reader::new(raw).head(), Ok(Head::Nil));
        let given: Vec<String> = all.iter().filter(|(_, raw)| raw.is_some_and(|r| !is_nil(r))).map(|(key, _)| format!("'{key}'")).collect();
        if given.is_empty() {
            return Ok(());
        }
        invalid(format!(
            "{} beside '{beside}' would be dropped: {}",
            given.join(", "),
            match beside {
                "batch" => "each item of a batch has its own",
                _ => "expected only 'm', 'columns' and 'tags'; times are the column 'time', a host is a tag",
            }
        ))
    }

    /// Refuses what a batch does not take.
    fn only_batch(&self) -> Result<(), RequestError> {
        let [m, columns, t, time, h] = [("m", self.m), ("columns", self.columns), ("t", self.t), ("time", self.time), ("h", self.h)];
        Self::refuse(&[m, columns, t, time, h, ("tags", self.tags), ("fields", self.fields), ("f", self.f)], "batch")
    }

    /// Refuses what the columnar form does not take.
    fn only_columns(&self) -> Result<(), RequestError> {
        Self::refuse(&[("t", self.t), ("time", self.time), ("h", self.h)], "columns")
    }
}

fn twice<T>(key: Head<'_>) -> Result<T, RequestError> {
    let name = match key {
        Head::Str(s) => Cow::Owned(shown_bytes(s)),
        other => other.name(),
    };
    invalid(format!("key '{name}' stands twice in one map"))
}

/// The pairs of a map with string keys. Keys that are not UTF-8 are refused: replaced, two of them would become one.
pub(super) fn pairs<'a>(raw: &'a [u8], what: &str, max: usize) -> Result<Vec<(&'a str, &'a [u8])>, RequestError> {
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
            Head::Str(s) => match std::str::from_utf8(s) {
                Ok(name) => name,
                Err(_) => return invalid(format!("the name '{}' in '{what}' is not valid UTF-8", shown_bytes(s))),
            },
            other => return invalid(format!("a key of '{what}' must be a string, found {}", other.name())),
        };
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
            parts.only_batch()?;
            return self.items(batch);
        }
        let table = table_name(parts.m)?;
        match parts.columns {
            // Either could be what the client means: taking one would drop the other unseen.
            Some(_) if parts.fields.is_some() || parts.f.is_some() => invalid(format!(
                "table '{}': 'columns' and '{}' stand in one map, expected one of them",
                shown(&table),
                if parts.fields.is_some() { "fields" } else { "f" }
            )),
            Some(columns) => {
                parts.only_columns().map_err(|e| within(format_args!("table '{}'", shown(&table)), e))?;
                self.columnar(&table, columns, parts.tags)
            }
            None => self.row(&table, &parts),
        }
    }

    /// The value of `raw`; the text of one that has none of its own is in `self.texts`.
    pub fn value<'a>(&mut self, raw: &'a [u8]) -> Result<Value<'a>, RequestError> {
        value::read(&mut Reader::new(raw), self.options.nested, &mut self.texts)
    }

    /// Columns of one length, and tags that hold for all of their rows.
    fn columnar(&mut self, table: &str, raw: &[u8], tags: Option<&[u8]>) -> Result<(), RequestError> {
        let in_table = |e| within(format_args!("table '{}'", shown(table)), e);
        let max = self.options.bounds.max_columns.saturating_add(1);
        let columns = pairs(raw, "columns", max).map_err(in_table)?;
        let tags = given_tags(tags, max).map_err(in_table)?;
        if let Some((name, _)) = tags.iter().find(|(_, raw)| matches!(Reader::new(raw).head(), Ok(Head::Array(_)))) {
            return Err(in_table(RequestError::Invalid(format!(
                "tag '{}' is an array: a tag of the columnar form is one value for all rows; values by row are columns",
                shown(name)
            ))));
        }
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
        check_columns(table, columns.iter().filter(|(name, _)| *name != "time").count() + tags.len(), self.tables.bounds())?;
        self.tables.claim(table, rows.saturating_mul(columns.len() + tags.len()))?;
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
            let mut cells = Reader::new(raw);
            cells.head()?;
            for row in 0..rows {
                let value = value::read(&mut cells, self.options.nested, &mut self.texts)
                    .map_err(|e| within(format_args!("{place}: row {row}"), e))?;
                match value.cell(&self.texts) {
                    Ok(cell) => builder.push(at, row, cell)?,
                    Err(why) => return invalid(format!("{place}: row {row}: {why}")),
                }
            }
        }
        for (name, raw) in &tags {
            let name = stored_name(name, self.options.hive_names);
            let at = builder.column(&name, true, budget)?;
            let place = |e| within(format_args!("table '{}': tag '{}'", shown(table), shown(&name)), e);
            match value::tag_text(raw, self.options.nested, &mut self.texts).map_err(place)? {
                Some(text) => builder.push_repeated(at, text, rows)?,
                // Padded like the column of an item that does not name it.
                None => builder.push(at, 0, Cell::Null)?,
            }
        }
        builder.add_times(&self.times)
    }

    /// Reads a `time` column into `self.times`.
    fn read_times(&mut self, raw: &[u8]) -> Result<(), RequestError> {
        let mut clock = Clock { unit: self.options.time_unit.map(|u| (u, None)) };
        let mut times = Reader::new(raw);
        let n = match times.head()? {
            Head::Array(n) => n,
            other => return invalid(format!("column 'time' must be an array, found {}", other.name())),
        };
        for row in 0..n {
            let value =
                value::read(&mut times, self.options.nested, &mut self.texts).map_err(|e| within(format_args!("time: row {row}"), e))?;
            self.times.push(clock.micros(value, row).map_err(|why| RequestError::Invalid(format!("time of row {row}: {why}")))?);
        }
        Ok(())
    }
}

/// The table's name from `m`.
fn table_name(m: Option<&[u8]>) -> Result<Cow<'_, str>, RequestError> {
    let Some(raw) = m else {
        return invalid("'m' (the table name) is missing");
    };
    let name = match Reader::new(raw).head()? {
        Head::Str(s) => match std::str::from_utf8(s) {
            Ok(name) => Cow::Borrowed(name),
            Err(_) => return invalid(format!("'m' (the table name) is '{}', which is not valid UTF-8", shown_bytes(s))),
        },
        Head::Int(n) => Cow::Owned(format!("measurement_{n}")),
        Head::Unsigned(n) => Cow::Owned(format!("measurement_{n}")),
        other => return invalid(format!("'m' (the table name) must be a string or an integer, found {}", other.name())),
    };
    check_table_name(&name)?;
    Ok(name)
}

/// The tags of an item, unread.
pub(super) fn given_tags(raw: Option<&[u8]>, max: usize) -> Result<Vec<(&str, &[u8])>, RequestError> {
    match raw.map(|raw| (raw, Reader::new(raw).head())) {
        // Serializers write an absent map as nil.
        None | Some((_, Ok(Head::Nil))) => Ok(Vec::new()),
        Some((raw, _)) => pairs(raw, "tags", max),
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
            Value::Unsigned(t) => Err(format!("{t} is above {}, the largest int64", i64::MAX)),
            Value::Extension(-1, data) => extension_to_micros(data).map_err(str::to_owned),
            Value::Extension(kind, _) => Err(format!("expected a number, found extension type {kind} (a time stamp is extension type -1)")),
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
