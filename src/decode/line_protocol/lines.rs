//! From lines to rows, the long way: every line can go it.

use hashbrown::HashMap;
use memchr::{memchr, memchr_iter};

use super::report::{Report, shown};
use super::rows::{Column, Conflict, Names, Source, Table, fits, type_of};
use super::scan::{Quoted, Text, Value, blanks, boolean, ends_line, ends_value, integer, measurement, name, number, string, word};
use super::short::Shapes;
use super::{Known, LineOptions, Lines};
use crate::batch::{check_column_name, check_table_name, shown as shown_name};
use crate::catalog::Look;
use crate::decode::sniff::Format;
use crate::decode::table::{Budget, check_partitions, folded, stored_name};
use crate::error::RequestError;
use crate::limits::{MAX_COLUMN_NAME, MAX_COLUMNS, MAX_ROWS_PER_TABLE};
use crate::types::{ColumnType, LargeUnsigned};

/// Why a line cannot be read.
struct Bad(String);

fn bad<T>(message: String) -> Result<T, Bad> {
    Err(Bad(message))
}

/// One value of a line.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) key: Text,
    pub(super) value: Value,
    pub(super) tag: bool,
    /// Where the value is over; quotes included.
    pub(super) end: usize,
    pub(super) target: Target,
}

/// The column that a cell goes to.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Old(usize),
    /// One of the columns that the line adds.
    Fresh(usize),
    /// None: another value of the line has taken its place.
    Nowhere,
}

/// What was read of a line.
pub(super) struct Parsed {
    pub(super) start: usize,
    pub(super) measurement: Text,
    time: i64,
    /// Past the newline.
    end: usize,
    /// Within strings.
    newlines: u64,
}

/// A column that a line adds if nothing speaks against the line.
struct Fresh {
    name: String,
    tag: bool,
    durable: Option<ColumnType>,
    /// The catalog does not count it yet.
    new: bool,
    cell: usize,
}

/// Why a line that can be read is refused.
struct Refused {
    message: String,
    conflict: bool,
}

fn refused<T>(message: String) -> Result<T, Refused> {
    Err(Refused { message, conflict: false })
}

pub(super) struct Decoder<'a, K> {
    pub(super) body: &'a [u8],
    pub(super) options: &'a LineOptions,
    known: &'a K,
    short_cut: bool,
    /// The whole body is UTF-8.
    utf8: bool,
    pub(super) budget: Budget,
    pub(super) tables: Vec<Table>,
    index: Names,
    /// Tables of this body that the catalog does not count yet, their columns, and the bytes of the names of both.
    new_tables: usize,
    new_columns: usize,
    new_names: usize,
    /// Room for those columns and bytes, as the catalog had it last.
    total_room: (usize, usize),
    pub(super) report: Report,
    /// Of the line being read, from 1.
    pub(super) line: u64,
    /// Bytes that may be read a second time because the quotes of a line do not pair: keeps the work linear.
    again: usize,
    pub(super) shapes: Shapes,
    pub(super) cells: Vec<Cell>,
    pub(super) values: Vec<Value>,
    fresh: Vec<Fresh>,
    fresh_index: HashMap<String, usize>,
    pub(super) scratch: Vec<u8>,
}

impl<'a, K: Known> Decoder<'a, K> {
    pub(super) fn new(body: &'a [u8], options: &'a LineOptions, known: &'a K, short_cut: bool) -> Self {
        let utf8 = simdutf8::basic::from_utf8(body).is_ok();
        Self {
            body,
            options,
            known,
            short_cut: short_cut && utf8,
            utf8,
            budget: Budget::new(options.bounds),
            tables: Vec::new(),
            index: Names::default(),
            new_tables: 0,
            new_columns: 0,
            new_names: 0,
            total_room: (usize::MAX, usize::MAX),
            report: Report::default(),
            line: 1,
            again: body.len().saturating_mul(4),
            shapes: Shapes::default(),
            cells: Vec::new(),
            values: Vec::new(),
            fresh: Vec::new(),
            fresh_index: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Lines, RequestError> {
        let mut at = 0;
        while at < self.body.len() {
            at = self.next(at)?;
        }
        check_partitions(self.tables.iter().map(|t| t.time.as_slice()), &self.options.bounds)?;
        let mut tables = Vec::with_capacity(self.tables.len());
        for t in self.tables {
            tables.push(t.finish(&mut self.budget)?);
        }
        Ok(Lines { tables, report: self.report })
    }

    /// Takes the line at `at`; where the next one begins.
    fn next(&mut self, at: usize) -> Result<usize, RequestError> {
        let mut start = blanks(self.body, at);
        // Files that were put together have a byte-order mark each.
        while self.body.get(start) == Some(&BOM[0]) && self.body.get(start..).is_some_and(|b| b.starts_with(&BOM)) {
            start = blanks(self.body, start + BOM.len());
        }
        let comment = self.body.get(start) == Some(&b'#');
        if comment || ends_line(self.body, start) {
            self.report.comments += u64::from(comment);
            self.line += 1;
            return Ok(self.newline(start) + 1);
        }
        self.report.lines += 1;
        if self.short_cut
            && let Some(end) = self.short(start)?
        {
            return Ok(end);
        }
        self.long(start)
    }

    /// The first newline from `at` on, or the end.
    fn newline(&self, at: usize) -> usize {
        let rest = self.body.get(at..).unwrap_or_default();
        at + memchr(b'\n', rest).unwrap_or(rest.len())
    }

    fn bytes(&self, from: usize, to: usize) -> &'a [u8] {
        let line = self.body.get(from..to).unwrap_or_default();
        line.strip_suffix(b"\n").map_or(line, |l| l.strip_suffix(b"\r").unwrap_or(l))
    }

    fn long(&mut self, start: usize) -> Result<usize, RequestError> {
        let refused = match self.read(start) {
            Ok(parsed) => {
                let end = parsed.end;
                let refused = if self.utf8 { None } else { not_utf8(self.bytes(start, end)) };
                let refused = match refused {
                    Some(message) => Some(Refused { message, conflict: false }),
                    None => self.store(&parsed)?.err(),
                };
                if let Some(mut r) = refused {
                    let original = self.bytes(start, end);
                    r.message.push_str(&self.hint());
                    self.report.refuse(self.line, original, r.message, r.conflict);
                }
                self.line += 1 + parsed.newlines;
                return Ok(end);
            }
            Err(bad) => bad,
        };
        let end = (self.end_of_bad(start) + 1).min(self.body.len());
        let original = self.bytes(start, end);
        let message = refused.0 + &self.hint();
        self.report.refuse(self.line, original, message, false);
        self.line += memchr_iter(b'\n', self.body.get(start..end).unwrap_or_default()).count() as u64;
        Ok(end)
    }

    /// For the message of the first refused line: what the body is instead of line protocol, if that can be seen.
    fn hint(&self) -> String {
        if self.report.bad > 0 {
            return String::new();
        }
        match Format::of(self.body) {
            None | Some(Format::LineProtocol | Format::Text) => String::new(),
            Some(Format::Utf16) => " (the body looks like UTF-16; line protocol is UTF-8)".to_owned(),
            Some(Format::MessagePack) => " (the body looks like MessagePack, which /api/v1/write/msgpack takes)".to_owned(),
            Some(other) => format!(" (the body looks like {}; expected line protocol)", other.name()),
        }
    }

    /// The newline that ends a line which cannot be read: the first outside of strings, which begin as in a line that can be read. If the
    /// quotes do not pair, the line's own first newline.
    fn end_of_bad(&mut self, start: usize) -> usize {
        let (body, mut at, mut fields) = (self.body, start, false);
        // The byte before is an `=` that nothing escapes.
        let mut equals = false;
        while let Some(b) = body.get(at) {
            let behind_equals = std::mem::replace(&mut equals, *b == b'=');
            match b {
                b'\n' => break,
                b'\\' if matches!(body.get(at + 1), Some(b',' | b' ' | b'=')) => at += 1,
                b' ' => fields = true,
                b'"' if fields && behind_equals => match string(body, at) {
                    Some(q) if ends_value(body, q.end) => at = q.end - 1,
                    unpaired => {
                        let first = self.newline(start);
                        let end = unpaired.map_or(body.len(), |q| self.newline(q.end));
                        let again = end - first;
                        if again > self.again {
                            return end;
                        }
                        self.again -= again;
                        return first;
                    }
                },
                _ => {}
            }
            at += 1;
        }
        at.min(body.len())
    }

    /// What stands at `at`, for messages.
    fn found(&self, at: usize) -> String {
        match self.body.get(at) {
            _ if ends_line(self.body, at) => "the end of the line".to_owned(),
            Some(b' ') => "a space".to_owned(),
            Some(b) if b.is_ascii_graphic() => format!("'{}'", char::from(*b)),
            Some(b) => format!("the byte 0x{b:02x}"),
            None => "the end of the line".to_owned(),
        }
    }

    fn read(&mut self, start: usize) -> Result<Parsed, Bad> {
        let body = self.body;
        self.cells.clear();
        let measurement = measurement(body, start);
        if measurement.is_empty() {
            return bad("missing measurement: expected a name, found ','".to_owned());
        }
        let mut at = measurement.to;
        while body.get(at) == Some(&b',') {
            at = self.read_tag(at + 1)?;
        }
        at = blanks(body, at);
        if ends_line(body, at) {
            return no_fields(measurement.of(body));
        }
        let mut newlines = 0;
        loop {
            at = self.read_field(at, &mut newlines)?;
            if body.get(at) != Some(&b',') {
                break;
            }
            at += 1;
        }
        at = blanks(body, at);
        let mut time = self.options.receive_time_us;
        if !ends_line(body, at) {
            let wrong = || {
                let found = body.get(at..self.newline(at)).unwrap_or_default().trim_ascii_end();
                bad(format!("bad timestamp: expected an integer and the end of the line, found '{}'", shown(found)))
            };
            let Some((t, end)) = integer(body, at) else { return wrong() };
            let end = blanks(body, end);
            if !ends_line(body, end) {
                return wrong();
            }
            time = match self.options.precision.to_micros(t) {
                Some(us) => us,
                None => {
                    let unit = self.options.precision.name();
                    return bad(format!("bad timestamp: {t} ({unit}) is outside the years 0001 to 9999"));
                }
            };
            at = end;
        }
        let end = (self.newline(at) + 1).min(body.len());
        Ok(Parsed { start, measurement, time, end, newlines })
    }

    fn read_tag(&mut self, at: usize) -> Result<usize, Bad> {
        let body = self.body;
        let key = name(body, at, false);
        if body.get(key.to) != Some(&b'=') {
            let (key_text, found) = (shown(key.of(body)), self.found(key.to));
            return bad(match key.is_empty() {
                true => format!("missing tag key: expected a name after ',', found {found}"),
                false => {
                    let hint = escape_hint(key.of(body));
                    format!("missing tag value: expected '=' after the tag key '{key_text}', found {found}{hint}")
                }
            });
        }
        if key.is_empty() {
            return bad("missing tag key: expected a name before '='".to_owned());
        }
        let text = name(body, key.to + 1, false);
        if text.is_empty() {
            let (key, found) = (shown(key.of(body)), self.found(text.to));
            return bad(format!("missing tag value: expected text after '{key}=', found {found}"));
        }
        match body.get(text.to) {
            Some(b',' | b' ') => {}
            Some(b'=') => {
                let (key, hint) = (shown(key.of(body)), escape_hint(text.of(body)));
                let hint = if hint.is_empty() { " (write '\\=' for it)".to_owned() } else { hint };
                return bad(format!("invalid tag: expected ',' or a space after the value of '{key}', found '='{hint}"));
            }
            _ => return no_fields(text.of(body)),
        }
        self.add_cell(Cell { key, value: Value::Str(text), tag: true, end: text.to, target: Target::Nowhere })?;
        Ok(text.to)
    }

    /// No row has more columns than a table may have: what is beyond it repeats keys, and a cell here is larger than its text.
    fn add_cell(&mut self, cell: Cell) -> Result<(), Bad> {
        if self.cells.len() >= MAX_COLUMNS {
            return bad(format!("too many tags and fields: expected at most {MAX_COLUMNS} in one line"));
        }
        self.cells.push(cell);
        Ok(())
    }

    fn read_field(&mut self, at: usize, newlines: &mut u64) -> Result<usize, Bad> {
        let body = self.body;
        let key = name(body, at, false);
        if body.get(key.to) != Some(&b'=') {
            let (key_text, found) = (shown(key.of(body).trim_ascii_end()), self.found(key.to));
            return bad(match key.is_empty() || ends_line(body, at) {
                true => format!("missing field key: expected a name, found {found}"),
                false => {
                    let hint = escape_hint(key.of(body));
                    format!("missing field value: expected '=' after the field key '{key_text}', found {found}{hint}")
                }
            });
        }
        if key.is_empty() {
            return bad("missing field key: expected a name before '='".to_owned());
        }
        let at = key.to + 1;
        let (value, end) = match body.get(at) {
            Some(b'"') => {
                let Some(Quoted { text, end, newlines: n }) = string(body, at) else {
                    let text = body.get(at..self.newline(at)).unwrap_or_default();
                    let escaped = text.windows(2).any(|pair| pair == b"\\\"");
                    let hint = if escaped { " (in a string \\\" is a quote, and a backslash at its end is written twice)" } else { "" };
                    return bad(format!("unterminated string: the quote after '{}=' is never closed{hint}", shown(key.of(body))));
                };
                if !ends_value(body, end) {
                    let (key, found) = (shown(key.of(body)), self.found(end));
                    let message = format!(
                        "invalid string: expected ',', a space or the end of the line after the closing quote of '{key}', found {found}"
                    );
                    return bad(message);
                }
                *newlines += n;
                (Value::Str(text), end)
            }
            Some(b'0'..=b'9' | b'-' | b'.') => match number(body, at) {
                Some((value, end)) if ends_value(body, end) => (value, end),
                _ => return self.no_value(key, at),
            },
            _ => {
                let text = word(body, at);
                match boolean(text) {
                    Some(b) => (Value::Bool(b), at + text.len()),
                    None => return self.no_value(key, at),
                }
            }
        };
        self.add_cell(Cell { key, value, tag: false, end, target: Target::Nowhere })?;
        Ok(end)
    }

    /// Says why there is no value at `at`.
    fn no_value<T>(&self, key: Text, at: usize) -> Result<T, Bad> {
        let text = word(self.body, at);
        let (key, value) = (shown(key.of(self.body)), shown(text));
        let digits = |t: &[u8]| !t.is_empty() && t.iter().all(u8::is_ascii_digit);
        let whole = |t: &[u8]| digits(t.strip_prefix(b"-").unwrap_or(t));
        let message = if text.is_empty() {
            format!(
                "missing field value: expected a number, a string in double quotes or a boolean after '{key}=', found {}",
                self.found(at)
            )
        } else if text.strip_suffix(b"i").is_some_and(whole) {
            format!("invalid number: field '{key}' is {value}, outside the range of int64")
        } else if text.strip_suffix(b"u").is_some_and(digits) {
            format!("invalid number: field '{key}' is {value}, over 9223372036854775807, the largest that is stored (int64)")
        } else if std::str::from_utf8(text).is_ok_and(|t| t.parse::<f64>().is_ok_and(|f| !f.is_finite())) {
            format!("invalid number: field '{key}' is {value}, expected a finite float64")
        } else {
            format!("invalid field value: expected a number, a string in double quotes or a boolean after '{key}=', found '{value}'")
        };
        bad(message)
    }

    /// Adds the row of a line, whole or not at all.
    fn store(&mut self, parsed: &Parsed) -> Result<Result<(), Refused>, RequestError> {
        let checked = match self.check(parsed) {
            Ok(checked) => checked,
            Err(refused) => return Ok(Err(refused)),
        };
        let at = match checked {
            Ok(at) => at,
            Err((table, new)) => {
                self.budget.check_tables(self.tables.len())?;
                self.new_tables += usize::from(new);
                self.new_names += if new { table.name.len() } else { 0 };
                self.index.insert(table.name.as_bytes().into(), self.tables.len() as u32);
                self.tables.push(table);
                self.tables.len() - 1
            }
        };
        let Some(table) = self.tables.get_mut(at) else {
            return Err(RequestError::Internal("a table index is out of range".into()));
        };
        self.budget.claim(&table.name, self.cells.len() + 1)?;
        self.budget.add_columns(&table.name, self.fresh.len())?;
        let before = table.columns.len();
        let saturate = self.options.large_unsigned == LargeUnsigned::Saturate;
        for f in self.fresh.drain(..) {
            self.new_columns += usize::from(f.new);
            self.new_names += if f.new { f.name.len() } else { 0 };
            table.add(Column::new(f.name, f.tag, f.durable, saturate), f.new);
        }
        let row = open_row(table)?;
        let mut of = Source { body: self.body, table: &table.name, scratch: &mut self.scratch, saturated: &mut self.report.saturated };
        let mut whole = true;
        for c in &mut self.cells {
            let column = match c.target {
                Target::Old(column) => column,
                Target::Fresh(n) => before + n,
                Target::Nowhere => {
                    whole = false;
                    continue;
                }
            };
            c.target = Target::Old(column);
            match table.columns.get_mut(column) {
                Some(column) => column.push(row, &c.value, &mut of, &mut self.budget)?,
                None => return Err(RequestError::Internal("a column index is out of range".into())),
            }
        }
        table.time.push(parsed.time);
        if whole && self.short_cut {
            self.remember(parsed, at);
        }
        Ok(Ok(()))
    }

    /// Finds the table and the columns of a line, and whether it may be added: the table, or one to be made.
    #[allow(clippy::type_complexity, reason = "used once")]
    fn check(&mut self, parsed: &Parsed) -> Result<Result<usize, (Table, bool)>, Refused> {
        let (body, bounds) = (self.body, &self.options.bounds);
        let measurement = parsed.measurement.plain(body, &mut self.scratch);
        let mut made = None;
        let found = self.index.get(measurement).map(|at| *at as usize);
        if found.is_none() {
            let Ok(text) = std::str::from_utf8(measurement) else { return refused("the measurement is not valid UTF-8".to_owned()) };
            check_table_name(text).map_err(|e| Refused { message: e.message().to_owned(), conflict: false })?;
            if self.tables.len() >= bounds.max_tables {
                return refused(format!("request has more than {} tables (ingest.max_tables)", bounds.max_tables));
            }
            let room = self.known.room(text);
            if !room.known && self.new_tables >= room.tables {
                let (name, room) = (shown_name(text), room.tables);
                return refused(format!(
                    "table '{name}' is new; the database has room for {room} new tables (ingest.max_tables), and earlier lines add them"
                ));
            }
            self.total_room = (room.total_columns, room.name_bytes);
            made = Some((Table::new(text.to_owned(), room.columns), !room.known));
        }
        let table = match (found, &mut made) {
            (Some(at), _) => self.tables.get_mut(at),
            (None, Some((table, _))) => Some(table),
            (None, None) => None,
        };
        let Some(table) = table else { return refused("internal error: a table index is out of range".to_owned()) };
        self.fresh.clear();
        self.fresh_index.clear();
        let line = self.report.lines;
        let mut resolver = Resolver {
            body,
            hive_names: self.options.hive_names,
            saturate: self.options.large_unsigned == LargeUnsigned::Saturate,
            known: self.known,
            table,
            line,
            fresh: &mut self.fresh,
            fresh_index: &mut self.fresh_index,
            scratch: &mut self.scratch,
        };
        for i in 0..self.cells.len() {
            resolver.resolve(&mut self.cells, i)?;
        }
        resolver.check_types(&self.cells)?;
        let (columns, room, name) = (table.columns.len(), table.room, shown_name(&table.name));
        if columns + self.fresh.len() > bounds.max_columns {
            return refused(format!("table '{name}' has more than {} columns (ingest.max_columns)", bounds.max_columns));
        }
        let new = self.fresh.iter().filter(|f| f.new);
        let (added, mut names) = new.fold((0, 0), |(n, bytes), f| (n + 1, bytes + f.name.len()));
        if added > room {
            return refused(format!("table '{name}' has room for {room} more columns (ingest.max_columns), and the line adds more"));
        }
        names += made.as_ref().filter(|(_, new)| *new).map_or(0, |(table, _)| table.name.len());
        let (columns, bytes) = self.total_room;
        if added > 0 && self.new_columns + added > columns {
            return refused(format!(
                "all tables together have room for {columns} more columns (ingest.max_total_columns), and the line and earlier ones add more"
            ));
        }
        if names > 0 && self.new_names + names > bytes {
            return refused(format!(
                "the names of all tables and columns have room for {bytes} more bytes (ingest.max_name_bytes), and the line and earlier ones \
                 add more"
            ));
        }
        match (found, made) {
            (Some(at), _) => Ok(Ok(at)),
            (None, Some(made)) => Ok(Err(made)),
            (None, None) => refused("internal error: a table index is out of range".to_owned()),
        }
    }
}

/// UTF-8's byte-order mark.
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The line ends behind `last`, the measurement or the value of its last tag.
fn no_fields<T>(last: &[u8]) -> Result<T, Bad> {
    let hint = escape_hint(last);
    bad(format!("missing fields: expected a space and at least one field, found the end of the line{hint}"))
}

/// What to say of an element that goes on behind a backslash where an end of it was perhaps meant.
fn escape_hint(element: &[u8]) -> String {
    let escaped = element.windows(2).find_map(|pair| match pair {
        b"\\ " => Some("the space"),
        b"\\," => Some("the comma"),
        b"\\=" => Some("the '='"),
        _ => None,
    });
    match escaped {
        Some(what) => format!(
            " ('{}' goes on behind {what}, which the backslash before it escapes; a name or a tag value cannot end in a backslash)",
            shown(element)
        ),
        None => String::new(),
    }
}

/// The number of the row that is to be added.
#[inline]
pub(super) fn open_row(table: &Table) -> Result<usize, RequestError> {
    let row = table.time.len();
    if row >= MAX_ROWS_PER_TABLE {
        return Err(RequestError::TooLarge(format!(
            "table '{}' has more than {MAX_ROWS_PER_TABLE} rows in one request; split it",
            shown_name(&table.name)
        )));
    }
    Ok(row)
}

fn not_utf8(line: &[u8]) -> Option<String> {
    let e = std::str::from_utf8(line).err()?;
    Some(format!("not valid UTF-8: byte {} of the line", e.valid_up_to() + 1))
}

/// Finds the columns of a line's cells.
struct Resolver<'r, K> {
    body: &'r [u8],
    hive_names: bool,
    saturate: bool,
    known: &'r K,
    table: &'r mut Table,
    /// Number of the line among those of the body.
    line: u64,
    fresh: &'r mut Vec<Fresh>,
    /// Of `fresh`, by name and by the name in lower case.
    fresh_index: &'r mut HashMap<String, usize>,
    scratch: &'r mut Vec<u8>,
}

impl<K: Known> Resolver<'_, K> {
    fn resolve(&mut self, cells: &mut [Cell], i: usize) -> Result<(), Refused> {
        let Some(cell) = cells.get(i).copied() else { return Ok(()) };
        let Ok(key) = std::str::from_utf8(cell.key.plain(self.body, self.scratch)) else {
            return refused("a key is not valid UTF-8".to_owned());
        };
        if key.len() > MAX_COLUMN_NAME {
            // Before it is copied: it may be as long as the body.
            check_column_name(&self.table.name, key).map_err(|e| Refused { message: e.message().to_owned(), conflict: false })?;
        }
        let name = stored_name(key, self.hive_names).into_owned();
        let (mut target, mut earlier) = self.find(&name, &cell, i)?;
        let is_tag = |n: Option<usize>| n.and_then(|n| cells.get(n)).is_some_and(|c| c.tag);
        if !cell.tag && is_tag(earlier) {
            (target, earlier) = self.find(&format!("{name}_value"), &cell, i)?;
        }
        if let Some(before) = earlier {
            let Some(other) = cells.get_mut(before) else { return Ok(()) };
            let mut buffer = Vec::new();
            let same = other.key.plain(self.body, &mut buffer) == cell.key.plain(self.body, self.scratch);
            if cell.tag || other.tag || !same {
                let what = if cell.tag { "tag" } else { "field" };
                return refused(format!("{what} '{}' is given twice", shown_name(&name)));
            }
            other.target = Target::Nowhere;
            self.take(target, i);
        }
        if let Some(c) = cells.get_mut(i) {
            c.target = target;
        }
        Ok(())
    }

    /// The later of two values for one field takes the place.
    fn take(&mut self, target: Target, i: usize) {
        match target {
            Target::Old(at) => {
                if let Some(c) = self.table.columns.get_mut(at) {
                    c.cell = i;
                }
            }
            Target::Fresh(n) => {
                if let Some(f) = self.fresh.get_mut(n) {
                    f.cell = i;
                }
            }
            Target::Nowhere => {}
        }
    }

    /// The column of that name, and the cell of this line that has it already.
    fn find(&mut self, name: &str, cell: &Cell, i: usize) -> Result<(Target, Option<usize>), Refused> {
        if let Some(at) = self.table.index.get(name.as_bytes()).map(|at| *at as usize) {
            let Some(c) = self.table.columns.get_mut(at) else {
                return refused("internal error: a column index is out of range".to_owned());
            };
            if c.line == self.line {
                return Ok((Target::Old(at), Some(c.cell)));
            }
            (c.line, c.cell) = (self.line, i);
            return Ok((Target::Old(at), None));
        }
        let lower = folded(name);
        if let Some(n) = self.fresh_index.get(&lower).copied()
            && let Some(f) = self.fresh.get(n)
        {
            return if f.name == name { Ok((Target::Fresh(n), Some(f.cell))) } else { self.differs(name, &f.name) };
        }
        check_column_name(&self.table.name, name).map_err(|e| Refused { message: e.message().to_owned(), conflict: false })?;
        if let Some(other) = self.table.folded.get(&lower).and_then(|at| self.table.columns.get(*at as usize)) {
            return self.differs(name, other.name());
        }
        let (durable, new) = match self.known.look(&self.table.name, name) {
            Look::New { reserved } => (None, !reserved),
            Look::Typed(ty) => (Some(ty), false),
            Look::Folded(other) => return self.differs(name, &other),
        };
        let n = self.fresh.len();
        self.fresh_index.insert(lower, n);
        self.fresh.push(Fresh { name: name.to_owned(), tag: cell.tag, durable, new, cell: i });
        Ok((Target::Fresh(n), None))
    }

    fn differs<T>(&self, name: &str, other: &str) -> Result<T, Refused> {
        let (table, name, other) = (shown_name(&self.table.name), shown_name(name), shown_name(other));
        refused(format!("table '{table}': columns '{other}' and '{name}' differ in case only, which readers do not tell apart"))
    }

    fn check_types(&self, cells: &[Cell]) -> Result<(), Refused> {
        for c in cells {
            let (fit, name) = match c.target {
                Target::Old(at) => match self.table.columns.get(at) {
                    Some(column) => (column.fits(&c.value), column.name()),
                    None => continue,
                },
                Target::Fresh(n) => match self.fresh.get(n) {
                    Some(f) => (fits(f.durable, false, self.saturate, &c.value), f.name.as_str()),
                    None => continue,
                },
                Target::Nowhere => continue,
            };
            if let Err(Conflict::Large(u)) = fit {
                return refused(format!(
                    "invalid number: field '{}' is {u}u, over 9223372036854775807, the largest that is stored (int64; ingest.large_unsigned = \
                     \"saturate\" stores that in its place)",
                    shown_name(name)
                ));
            }
            if let Err(why) = fit {
                return Err(Refused { message: self.conflict(c, name, why), conflict: true });
            }
        }
        Ok(())
    }

    fn conflict(&self, cell: &Cell, column: &str, why: Conflict) -> String {
        let (kind, column, table) = (if cell.tag { "tag" } else { "field" }, shown_name(column), shown_name(&self.table.name));
        let found = type_of(&cell.value);
        let start =
            format!("field type conflict: input {kind} \"{column}\" on measurement \"{table}\" is type {found}, already exists as type");
        match why {
            Conflict::Types { have } => format!("{start} {have}"),
            Conflict::Inexact(i) => format!("{start} float64, which cannot represent {i}"),
            // Told apart before.
            Conflict::Large(u) => format!("{start} int64, which cannot represent {u}"),
            Conflict::Wide => format!("{start} int64, with integers that float64 cannot represent"),
        }
    }
}
