//! The payload of a write record: one request as typed columns, laid out so that replay copies them straight into
//! Arrow buffers. `wal-format.md` section "Write payload" is the description for strangers.
//!
//! A directory of tables, rows and hours comes first, so that planning reads no column.

use std::sync::Arc;

use super::bytes::{Malformed, Parsed, Reader, Writer};
use crate::batch::{Bits, Column, Strings, TableBatch, ValidBatch, Values, hours};
use crate::limits;
use crate::types::{ColumnType, Hour};

/// First byte of every write payload.
pub const PAYLOAD_VERSION: u8 = 1;

/// The payload carries an idempotency key.
pub const FLAG_KEY: u8 = 1;
/// The payload holds at least one column marked [`COLUMN_DEFINES`], or a table that is new.
pub const FLAG_DELTA: u8 = 2;

/// The column came as a tag.
pub const COLUMN_TAG: u8 = 1;
/// The column's definition (name, type, tag) takes effect with this record.
pub const COLUMN_DEFINES: u8 = 2;
/// A validity bitmap precedes the values.
pub const COLUMN_VALIDITY: u8 = 4;
/// The values are codes into a dictionary.
pub const COLUMN_DICTIONARY: u8 = 8;

/// An idempotency key as the log remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyEntry {
    /// First 16 bytes of SHA-256 over database, NUL, key.
    pub id: [u8; 16],
    /// SHA-256 over the inflated body, the route and the precision or unit.
    pub body: [u8; 32],
    /// The log's running time in milliseconds when the request came (see `idempotency`).
    pub running_ms: u64,
    /// HTTP status of the stored outcome.
    pub status: u16,
}

/// Rows of one table by hour: what the planner needs of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableIndex {
    pub table: Arc<str>,
    pub rows: u32,
    /// Ascending hours with the rows of each.
    pub hours: Vec<(Hour, u32)>,
    /// Bytes of the table's columns in the payload.
    pub bytes: usize,
}

/// The directory of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordIndex {
    pub database: Arc<str>,
    pub tables: Vec<TableIndex>,
    pub key: Option<KeyEntry>,
    /// The payload changes the catalog.
    pub defines: bool,
}

impl RecordIndex {
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|t| u64::from(t.rows)).sum()
    }
}

/// A record ready for the committer: only [`encode`] makes one, only from a [`ValidBatch`].
#[derive(Clone, Debug)]
pub struct EncodedRecord {
    /// Room for the record header, the payload, zeros up to the record alignment.
    buf: Vec<u8>,
    payload_len: u32,
    payload_crc: u32,
    receive_time_us: i64,
    index: RecordIndex,
}

impl EncodedRecord {
    pub fn index(&self) -> &RecordIndex {
        &self.index
    }

    pub fn payload_len(&self) -> u32 {
        self.payload_len
    }

    pub fn payload_crc(&self) -> u32 {
        self.payload_crc
    }

    pub fn receive_time_us(&self) -> i64 {
        self.receive_time_us
    }

    /// Header room, payload and alignment: a multiple of [`limits::RECORD_ALIGN`].
    pub fn record_len(&self) -> usize {
        self.buf.len()
    }

    pub fn payload(&self) -> &[u8] {
        self.buf.get(limits::RECORD_HEADER_BYTES..limits::RECORD_HEADER_BYTES + self.payload_len as usize).unwrap_or_default()
    }

    pub fn header_room(&mut self) -> Option<&mut [u8]> {
        self.buf.get_mut(..limits::RECORD_HEADER_BYTES)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }
}

/// Encodes one request. `new_tables`: the record must be folded into the catalog even when no column says so.
///
/// # Errors
/// The encoded payload's length, when it is over `max_payload` bytes.
pub fn encode(
    batch: &ValidBatch,
    key: Option<KeyEntry>,
    new_tables: bool,
    receive_time_us: i64,
    max_payload: usize,
) -> Result<EncodedRecord, usize> {
    let estimate: usize = batch.tables().iter().map(|t| 64 + t.rows() * 8 * (t.columns.len() + 1)).sum();
    let mut bodies: Vec<u8> = Vec::with_capacity(estimate.min(1 << 26));
    let mut tables = Vec::with_capacity(batch.tables().len());
    for t in batch.tables() {
        let from = bodies.len();
        put_table(&mut bodies, t);
        tables.push(TableIndex {
            table: t.table.as_str().into(),
            rows: t.rows() as u32,
            hours: hours(&t.time),
            bytes: bodies.len() - from,
        });
    }
    let defines = new_tables || batch.tables().iter().any(|t| t.columns.iter().any(|c| c.defines));
    let index = RecordIndex { database: batch.database().into(), tables, key, defines };

    let mut buf = Vec::with_capacity(limits::RECORD_HEADER_BYTES + 256 + bodies.len());
    buf.resize(limits::RECORD_HEADER_BYTES, 0);
    put_directory(&mut buf, &index);
    buf.extend_from_slice(&bodies);
    let payload_len = buf.len() - limits::RECORD_HEADER_BYTES;
    if payload_len > max_payload.min(limits::MAX_PAYLOAD) {
        return Err(payload_len);
    }
    let payload_crc = crc32fast::hash(buf.get(limits::RECORD_HEADER_BYTES..).unwrap_or_default());
    buf.resize(buf.len().next_multiple_of(limits::RECORD_ALIGN), 0);
    Ok(EncodedRecord { buf, payload_len: payload_len as u32, payload_crc, receive_time_us, index })
}

fn put_directory(out: &mut Vec<u8>, index: &RecordIndex) {
    out.put_u8(PAYLOAD_VERSION);
    out.put_u8(if index.key.is_some() { FLAG_KEY } else { 0 } | if index.defines { FLAG_DELTA } else { 0 });
    out.put_str(&index.database);
    if let Some(k) = &index.key {
        put_key(out, k);
    }
    out.put_varint(index.tables.len() as u64);
    for t in &index.tables {
        out.put_str(&t.table);
        out.put_varint(u64::from(t.rows));
        out.put_varint(t.bytes as u64);
        out.put_varint(t.hours.len() as u64);
        for (hour, rows) in &t.hours {
            out.put_signed(*hour);
            out.put_varint(u64::from(*rows));
        }
    }
}

/// Fixed part, 50 bytes and a varint: shared with the manifest's key checkpoints.
pub fn put_key(out: &mut Vec<u8>, k: &KeyEntry) {
    out.put_slice(&k.id);
    out.put_slice(&k.body);
    out.put_u16(k.status);
    out.put_varint(k.running_ms);
}

/// # Errors
/// [`Malformed`] when the bytes end early.
pub fn get_key(r: &mut Reader<'_>) -> Parsed<KeyEntry> {
    Ok(KeyEntry { id: r.array("key id")?, body: r.array("key body hash")?, status: r.u16("key status")?, running_ms: r.varint("key age")? })
}

fn put_table(out: &mut Vec<u8>, t: &TableBatch) {
    put_ints(out, &t.time);
    out.put_varint(t.columns.len() as u64);
    for c in &t.columns {
        put_column(out, c);
    }
}

fn put_column(out: &mut Vec<u8>, c: &Column) {
    let Some(ty) = c.values.column_type() else { return };
    out.put_str(&c.name);
    out.put_u8(ty as u8);
    let dictionary = matches!(c.values, Values::Utf8Dict { .. });
    let mut flags = 0;
    for (on, bit) in
        [(c.tag, COLUMN_TAG), (c.defines, COLUMN_DEFINES), (c.validity.is_some(), COLUMN_VALIDITY), (dictionary, COLUMN_DICTIONARY)]
    {
        flags |= if on { bit } else { 0 };
    }
    out.put_u8(flags);
    if let Some(v) = &c.validity {
        out.put_slice(v.as_bytes());
    }
    match &c.values {
        Values::Null => {}
        Values::Int64(v) => put_ints(out, v),
        Values::Float64(v) => put_array(out, v, f64::to_le_bytes),
        Values::Bool(v) => out.put_slice(v.as_bytes()),
        Values::Utf8(s) | Values::Binary(s) => put_strings(out, s),
        Values::Utf8Dict { codes, dictionary } => {
            out.put_varint(dictionary.len() as u64);
            put_strings(out, dictionary);
            if dictionary.len() <= 256 {
                out.extend(codes.iter().map(|c| *c as u8));
            } else {
                put_array(out, codes, u16::to_le_bytes);
            }
        }
    }
}

fn put_array<T: Copy, const N: usize>(out: &mut Vec<u8>, v: &[T], f: impl Fn(T) -> [u8; N]) {
    let from = out.len();
    out.resize(from + v.len() * N, 0);
    if let Some(dst) = out.get_mut(from..) {
        for (d, s) in dst.chunks_exact_mut(N).zip(v) {
            d.copy_from_slice(&f(*s));
        }
    }
}

/// Frame of reference: a base and unsigned offsets of 0, 1, 2, 4 or 8 bytes; with 8 the base is 0 and the values stand as they are.
fn put_ints(out: &mut Vec<u8>, v: &[i64]) {
    let (mut lo, mut hi) = (i64::MAX, i64::MIN);
    for x in v {
        lo = lo.min(*x);
        hi = hi.max(*x);
    }
    let span = if v.is_empty() { 0 } else { hi.wrapping_sub(lo) as u64 };
    let base = if v.is_empty() { 0 } else { lo };
    let offset = |x: i64| x.wrapping_sub(base) as u64;
    match span {
        0 => {
            out.put_u8(0);
            out.put_signed(base);
        }
        1..=0xff => {
            out.put_u8(1);
            out.put_signed(base);
            out.extend(v.iter().map(|x| offset(*x) as u8));
        }
        0x100..=0xffff => {
            out.put_u8(2);
            out.put_signed(base);
            put_array(out, v, |x| (offset(x) as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.put_u8(4);
            out.put_signed(base);
            put_array(out, v, |x| (offset(x) as u32).to_le_bytes());
        }
        _ => {
            out.put_u8(8);
            out.put_signed(0);
            put_array(out, v, i64::to_le_bytes);
        }
    }
}

/// Lengths of 1, 2 or 4 bytes each, then the bytes.
fn put_strings(out: &mut Vec<u8>, s: &Strings) {
    let longest = s.lengths.iter().copied().max().unwrap_or(0);
    let width: u8 = match longest {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    };
    out.put_u8(width);
    out.put_varint(s.bytes.len() as u64);
    match width {
        1 => out.extend(s.lengths.iter().map(|l| *l as u8)),
        2 => put_array(out, &s.lengths, |l| (l as u16).to_le_bytes()),
        _ => put_array(out, &s.lengths, u32::to_le_bytes),
    }
    out.put_slice(&s.bytes);
}

/// Integers as they stand in the payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntView<'a> {
    base: i64,
    width: u8,
    bytes: &'a [u8],
    rows: usize,
}

impl<'a> IntView<'a> {
    fn parse(r: &mut Reader<'a>, rows: usize) -> Parsed<Self> {
        let width = r.u8("integer width")?;
        let base = r.signed("integer base")?;
        if !matches!(width, 0 | 1 | 2 | 4 | 8) || (width == 8 && base != 0) {
            return r.fail("an integer width of 0, 1, 2, 4, or 8 with base 0");
        }
        let Some(n) = rows.checked_mul(width as usize) else { return r.fail("integers within the payload") };
        Ok(Self { base, width, bytes: r.take(n, "integers")?, rows })
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The values of rows `from..to`; bounds past the end are cut.
    pub fn slice(&self, from: usize, to: usize) -> Self {
        let to = to.min(self.rows);
        let from = from.min(to);
        let w = usize::from(self.width);
        Self { bytes: self.bytes.get(from * w..to * w).unwrap_or_default(), rows: to - from, ..*self }
    }

    /// Appends all values to `out`.
    pub fn extend(&self, out: &mut Vec<i64>) {
        let base = self.base;
        match self.width {
            0 => out.extend(std::iter::repeat_n(base, self.rows)),
            1 => out.extend(self.bytes.iter().map(|b| base.wrapping_add(i64::from(*b)))),
            2 => out.extend(self.bytes.as_chunks::<2>().0.iter().map(|b| base.wrapping_add(i64::from(u16::from_le_bytes(*b))))),
            4 => out.extend(self.bytes.as_chunks::<4>().0.iter().map(|b| base.wrapping_add(i64::from(u32::from_le_bytes(*b))))),
            _ => out.extend(self.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b))),
        }
    }

    pub fn to_vec(&self) -> Vec<i64> {
        let mut v = Vec::with_capacity(self.rows);
        self.extend(&mut v);
        v
    }
}

/// Byte strings as they stand in the payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StringsView<'a> {
    width: u8,
    lengths: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> StringsView<'a> {
    fn parse(r: &mut Reader<'a>, n: usize) -> Parsed<Self> {
        let width = r.u8("string length width")?;
        if !matches!(width, 1 | 2 | 4) {
            return r.fail("a string length width of 1, 2 or 4");
        }
        let total = r.count(1, "string bytes")?;
        let Some(len) = n.checked_mul(width as usize) else { return r.fail("string lengths within the payload") };
        let lengths = r.take(len, "string lengths")?;
        let bytes = r.take(total, "string bytes")?;
        Ok(Self { width, lengths, bytes })
    }

    pub fn len(&self) -> usize {
        self.lengths.len() / usize::from(self.width)
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// All strings end to end.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of string `i`; 0 past the end.
    pub fn length(&self, i: usize) -> usize {
        match self.width {
            1 => self.lengths.get(i).map_or(0, |b| usize::from(*b)),
            2 => self.lengths.as_chunks::<2>().0.get(i).map_or(0, |b| usize::from(u16::from_le_bytes(*b))),
            _ => self.lengths.as_chunks::<4>().0.get(i).map_or(0, |b| u32::from_le_bytes(*b) as usize),
        }
    }

    /// Calls `f` with the lengths of strings `from..to`; bounds past the end are cut.
    pub fn for_each_length(&self, from: usize, to: usize, mut f: impl FnMut(u32)) {
        let w = usize::from(self.width);
        let to = to.min(self.len());
        let lengths = self.lengths.get(from.min(to) * w..to * w).unwrap_or_default();
        match self.width {
            1 => lengths.iter().for_each(|b| f(u32::from(*b))),
            2 => lengths.as_chunks::<2>().0.iter().for_each(|b| f(u32::from(u16::from_le_bytes(*b)))),
            _ => lengths.as_chunks::<4>().0.iter().for_each(|b| f(u32::from_le_bytes(*b))),
        }
    }

    /// # Errors
    /// When lengths and bytes do not agree.
    pub fn to_strings(&self) -> Result<Strings, Malformed> {
        let mut lengths = Vec::with_capacity(self.len());
        self.for_each_length(0, self.len(), |l| lengths.push(l));
        let sum: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
        if sum != self.bytes.len() as u64 {
            return Err(Malformed { at: 0, what: "string lengths that add up to the string bytes" });
        }
        Ok(Strings { lengths, bytes: self.bytes.to_vec() })
    }
}

/// The values of a column as they stand in the payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DataView<'a> {
    Int64(IntView<'a>),
    /// 8 bytes a row, little-endian.
    Float64(&'a [u8]),
    /// One bit a row, least significant first.
    Bool(&'a [u8]),
    Strings(StringsView<'a>),
    /// `codes`: `width` (1 or 2) bytes a row, little-endian.
    Dictionary {
        entries: StringsView<'a>,
        width: u8,
        codes: &'a [u8],
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColumnView<'a> {
    pub name: &'a str,
    pub rows: usize,
    pub ty: ColumnType,
    pub tag: bool,
    pub defines: bool,
    /// One bit a row, set = not NULL.
    pub validity: Option<&'a [u8]>,
    pub data: DataView<'a>,
}

/// One table's rows of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct TableView<'a> {
    pub rows: usize,
    pub time: IntView<'a>,
    pub columns: Vec<ColumnView<'a>>,
}

/// A payload, its directory parsed.
#[derive(Clone, Debug)]
pub struct PayloadView<'a> {
    pub index: RecordIndex,
    bodies: Vec<&'a [u8]>,
}

impl<'a> PayloadView<'a> {
    /// Parses the directory; columns are parsed by [`Self::table`].
    ///
    /// # Errors
    /// [`Malformed`] with the offset within the payload.
    pub fn parse(payload: &'a [u8]) -> Parsed<Self> {
        let mut r = Reader::new(payload);
        if r.u8("payload version")? != PAYLOAD_VERSION {
            return r.fail("payload version 1");
        }
        let flags = r.u8("payload flags")?;
        if flags & !(FLAG_KEY | FLAG_DELTA) != 0 {
            return r.fail("known payload flags");
        }
        let database: Arc<str> = r.str("database name")?.into();
        let key = if flags & FLAG_KEY != 0 { Some(get_key(&mut r)?) } else { None };
        let n = r.count(5, "table count")?;
        let mut tables = Vec::with_capacity(n.min(1024));
        for _ in 0..n {
            let table: Arc<str> = r.str("table name")?.into();
            let rows = u32::try_from(r.varint("row count")?).or_else(|_| r.fail("a row count of 32 bits"))?;
            let bytes = usize::try_from(r.varint("table bytes")?).or_else(|_| r.fail("table bytes"))?;
            let n_hours = r.count(2, "hour count")?;
            let mut hours = Vec::with_capacity(n_hours);
            let mut sum = 0u64;
            for _ in 0..n_hours {
                let hour = r.signed("hour")?;
                let rows = u32::try_from(r.varint("rows of an hour")?).or_else(|_| r.fail("rows of an hour"))?;
                if hours.last().is_some_and(|(h, _)| *h >= hour) {
                    return r.fail("ascending hours");
                }
                sum += u64::from(rows);
                hours.push((hour, rows));
            }
            if rows as usize > limits::MAX_ROWS_PER_TABLE || sum != u64::from(rows) {
                return r.fail("hours whose rows add up to the table's");
            }
            tables.push(TableIndex { table, rows, hours, bytes });
        }
        let mut bodies = Vec::with_capacity(tables.len());
        for t in &tables {
            bodies.push(r.take(t.bytes, "table body")?);
        }
        r.finish("the end of the payload")?;
        Ok(Self { index: RecordIndex { database, tables, key, defines: flags & FLAG_DELTA != 0 }, bodies })
    }

    /// Parses the columns of table `i` of the directory.
    ///
    /// # Errors
    /// [`Malformed`] with the offset within the table's body.
    pub fn table(&self, i: usize) -> Parsed<TableView<'a>> {
        let (Some(t), Some(body)) = (self.index.tables.get(i), self.bodies.get(i)) else {
            return Err(Malformed { at: 0, what: "a table of the directory" });
        };
        parse_table(body, t.rows)
    }

    /// The whole payload as the batch that was encoded, every value checked.
    ///
    /// # Errors
    /// What is wrong, with the table.
    pub fn to_batch(&self) -> Result<ValidBatch, String> {
        let mut tables = Vec::with_capacity(self.index.tables.len());
        for (i, t) in self.index.tables.iter().enumerate() {
            let v = self.table(i).map_err(|e| format!("table '{}': {e}", t.table))?;
            let time = v.time.to_vec();
            if hours(&time) != t.hours {
                return Err(format!("table '{}': hours of the directory are not those of the rows", t.table));
            }
            let columns = v.columns.iter().map(to_column).collect::<Parsed<Vec<_>>>().map_err(|e| format!("table '{}': {e}", t.table))?;
            tables.push(TableBatch { table: t.table.to_string(), time, columns });
        }
        ValidBatch::new(self.index.database.to_string(), tables).map_err(|e| e.message().to_owned())
    }
}

/// A payload with nothing but table `i` of `p`: its directory, and the body that follows it. Database, key and flags are those of `p`.
///
/// # Errors
/// [`Malformed`] when there is no such table.
pub fn one_table<'a>(p: &PayloadView<'a>, i: usize) -> Parsed<(Vec<u8>, &'a [u8])> {
    let (Some(t), Some(body)) = (p.index.tables.get(i), p.bodies.get(i)) else {
        return Err(Malformed { at: 0, what: "a table of the directory" });
    };
    let index =
        RecordIndex { database: Arc::clone(&p.index.database), tables: vec![t.clone()], key: p.index.key, defines: p.index.defines };
    let mut directory = Vec::new();
    put_directory(&mut directory, &index);
    Ok((directory, body))
}

/// Rows and body of table `i` of the directory, without building the directory: what the compactor needs of a record
/// that may hold a single row.
///
/// # Errors
/// [`Malformed`] with the offset within the payload.
pub fn table_body(payload: &[u8], i: u32) -> Parsed<(u32, &[u8])> {
    let mut r = Reader::new(payload);
    if r.u8("payload version")? != PAYLOAD_VERSION {
        return r.fail("payload version 1");
    }
    let flags = r.u8("payload flags")?;
    if flags & !(FLAG_KEY | FLAG_DELTA) != 0 {
        return r.fail("known payload flags");
    }
    skip_str(&mut r, "database name")?;
    if flags & FLAG_KEY != 0 {
        get_key(&mut r)?;
    }
    let n = r.count(5, "table count")?;
    let (mut before, mut found) = (0usize, None);
    for t in 0..n {
        skip_str(&mut r, "table name")?;
        let rows = u32::try_from(r.varint("row count")?).or_else(|_| r.fail("a row count of 32 bits"))?;
        let bytes = usize::try_from(r.varint("table bytes")?).or_else(|_| r.fail("table bytes"))?;
        for _ in 0..r.count(2, "hour count")? {
            r.signed("hour")?;
            r.varint("rows of an hour")?;
        }
        if rows as usize > limits::MAX_ROWS_PER_TABLE {
            return r.fail("a row count within the limit");
        }
        match found {
            None if t == i as usize => found = Some((rows, bytes)),
            None => before = before.checked_add(bytes).map_or_else(|| r.fail("table bytes"), Ok)?,
            Some(_) => {}
        }
    }
    let Some((rows, bytes)) = found else { return r.fail("a table of the directory") };
    r.take(before, "table body")?;
    Ok((rows, r.take(bytes, "table body")?))
}

fn skip_str(r: &mut Reader<'_>, what: &'static str) -> Parsed<()> {
    let n = r.count(1, what)?;
    r.take(n, what).map(|_| ())
}

/// The times of a table's body, its columns left alone.
///
/// # Errors
/// [`Malformed`] with the offset within the body.
pub fn parse_time(body: &[u8], rows: u32) -> Parsed<IntView<'_>> {
    IntView::parse(&mut Reader::new(body), rows as usize)
}

/// A table's body as its columns.
///
/// # Errors
/// [`Malformed`] with the offset within the body.
pub fn parse_table(body: &[u8], rows: u32) -> Parsed<TableView<'_>> {
    let rows = rows as usize;
    let mut r = Reader::new(body);
    let time = IntView::parse(&mut r, rows)?;
    let n = r.count(4, "column count")?;
    let mut columns = Vec::with_capacity(n.min(limits::MAX_COLUMNS));
    for _ in 0..n {
        columns.push(parse_column(&mut r, rows)?);
    }
    r.finish("the end of the table")?;
    Ok(TableView { rows, time, columns })
}

fn parse_column<'a>(r: &mut Reader<'a>, rows: usize) -> Parsed<ColumnView<'a>> {
    let name = r.str("column name")?;
    let Some(ty) = ColumnType::from_u8(r.u8("column type")?) else { return r.fail("a column type from 1 to 5") };
    let flags = r.u8("column flags")?;
    if flags & !(COLUMN_TAG | COLUMN_DEFINES | COLUMN_VALIDITY | COLUMN_DICTIONARY) != 0 {
        return r.fail("known column flags");
    }
    let validity = if flags & COLUMN_VALIDITY != 0 { Some(r.take(rows.div_ceil(8), "validity")?) } else { None };
    let data = match (ty, flags & COLUMN_DICTIONARY != 0) {
        (ColumnType::Int64, false) => DataView::Int64(IntView::parse(r, rows)?),
        (ColumnType::Float64, false) => {
            let Some(n) = rows.checked_mul(8) else { return r.fail("floats within the payload") };
            DataView::Float64(r.take(n, "floats")?)
        }
        (ColumnType::Bool, false) => DataView::Bool(r.take(rows.div_ceil(8), "booleans")?),
        (ColumnType::Utf8 | ColumnType::Binary, false) => DataView::Strings(StringsView::parse(r, rows)?),
        (ColumnType::Utf8, true) => {
            let n = r.count(1, "dictionary size")?;
            let entries = StringsView::parse(r, n)?;
            let width = if n <= 256 { 1u8 } else { 2 };
            let Some(len) = rows.checked_mul(usize::from(width)) else { return r.fail("codes within the payload") };
            DataView::Dictionary { entries, width, codes: r.take(len, "dictionary codes")? }
        }
        _ => return r.fail("a dictionary only on strings"),
    };
    Ok(ColumnView { name, rows, ty, tag: flags & COLUMN_TAG != 0, defines: flags & COLUMN_DEFINES != 0, validity, data })
}

fn to_column(c: &ColumnView<'_>) -> Parsed<Column> {
    let values = match c.data {
        DataView::Int64(v) => Values::Int64(v.to_vec()),
        DataView::Float64(b) => Values::Float64(b.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        DataView::Bool(b) => Values::Bool(Bits::from_bytes(b.to_vec(), c.rows).ok_or(Malformed { at: 0, what: "booleans" })?),
        DataView::Strings(s) if c.ty == ColumnType::Utf8 => Values::Utf8(s.to_strings()?),
        DataView::Strings(s) => Values::Binary(s.to_strings()?),
        DataView::Dictionary { entries, width, codes } => Values::Utf8Dict {
            codes: if width == 1 {
                codes.iter().map(|b| u16::from(*b)).collect()
            } else {
                codes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
            },
            dictionary: entries.to_strings()?,
        },
    };
    let validity = match c.validity {
        Some(b) => Some(Bits::from_bytes(b.to_vec(), c.rows).ok_or(Malformed { at: 0, what: "validity of the column's rows" })?),
        None => None,
    };
    Ok(Column { name: c.name.to_owned(), tag: c.tag, values, validity, defines: c.defines })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn sample() -> ValidBatch {
        let strings = |v: &[&str]| {
            let mut s = Strings::default();
            v.iter().for_each(|x| s.push(x.as_bytes()));
            s
        };
        let col = |name: &str, values| Column { name: name.into(), tag: false, values, validity: None, defines: false };
        let mut nulls = Bits::filled(3, true);
        nulls.set(1, false);
        let t = TableBatch {
            table: "cpu".into(),
            time: vec![-1, 3_600_000_000, 5],
            columns: vec![
                col("i", Values::Int64(vec![i64::MIN, i64::MAX, 0])),
                col("small", Values::Int64(vec![7, 7, 300])),
                Column { defines: true, validity: Some(nulls), ..col("f", Values::Float64(vec![1.5, 0.0, f64::NEG_INFINITY])) },
                col("b", Values::Bool(Bits::from_bytes(vec![0b101], 3).unwrap())),
                Column { tag: true, ..col("s", Values::Utf8(strings(&["a", "", "é"]))) },
                col("d", Values::Utf8Dict { codes: vec![1, 0, 1], dictionary: strings(&["x", "yy"]) }),
                col("y", Values::Binary(strings(&["\u{1}", "2", ""]))),
            ],
        };
        let bare = TableBatch { table: "t".into(), time: vec![0], columns: vec![] };
        ValidBatch::new("db".into(), vec![t, bare]).unwrap()
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_batch() {
        let key = KeyEntry { id: [1; 16], body: [2; 32], running_ms: 77, status: 204 };
        let e = encode(&sample(), Some(key), false, 9, 1 << 20).unwrap();
        assert_eq!(e.record_len() % limits::RECORD_ALIGN, 0);
        let v = PayloadView::parse(e.payload()).unwrap();
        assert_eq!(&v.index, e.index());
        assert!(v.index.defines);
        assert_eq!(v.index.key, Some(key));
        assert_eq!(v.index.tables[0].hours, vec![(-1, 1), (0, 1), (1, 1)]);
        assert_eq!(v.to_batch().unwrap(), sample());
        for i in 0..2 {
            let (rows, body) = table_body(e.payload(), i).unwrap();
            assert_eq!(parse_table(body, rows).unwrap(), v.table(i as usize).unwrap());
            assert_eq!(parse_time(body, rows).unwrap(), v.table(i as usize).unwrap().time);
        }
        assert!(table_body(e.payload(), 2).is_err());
        let ints = v.table(0).unwrap().time;
        assert_eq!(ints.slice(1, 9).to_vec(), vec![3_600_000_000, 5]);
    }

    /// The widest of each: lengths of two and four bytes, integers of two and four, codes of two.
    #[test]
    fn the_wider_forms_decode_to_the_same_batch() {
        let col = |name: &str, values| Column { name: name.into(), tag: false, values, validity: None, defines: false };
        let text = |lengths: &[usize]| {
            let mut s = Strings::default();
            lengths.iter().for_each(|n| s.push(&vec![b'x'; *n]));
            s
        };
        let mut dictionary = Strings::default();
        (0..300).for_each(|i| dictionary.push(format!("{i}").as_bytes()));
        for last in [0xff, 0x100, 0xffff, 0x1_0000] {
            let t = TableBatch {
                table: "t".into(),
                time: vec![0; 2],
                columns: vec![
                    col("s", Values::Utf8(text(&[1, last]))),
                    col("b", Values::Binary(text(&[last, 0]))),
                    col("i", Values::Int64(vec![-5, last as i64 - 5])),
                    col("d", Values::Utf8Dict { codes: vec![299, 255], dictionary: dictionary.clone() }),
                ],
            };
            let batch = ValidBatch::new("db".into(), vec![t]).unwrap();
            let e = encode(&batch, None, false, 9, 1 << 20).unwrap();
            assert_eq!(PayloadView::parse(e.payload()).unwrap().to_batch().unwrap(), batch, "{last}");
        }
    }

    #[test]
    fn every_truncation_and_every_byte_change_is_refused_or_read_without_panic() {
        let e = encode(&sample(), None, false, 9, 1 << 20).unwrap();
        let p = e.payload();
        for n in 0..p.len() {
            assert!(PayloadView::parse(&p[..n]).is_err(), "cut at {n}");
        }
        for i in 0..p.len() {
            for x in [1u8, 0x80, 0xff] {
                let mut m = p.to_vec();
                m[i] ^= x;
                if let Ok(v) = PayloadView::parse(&m) {
                    let _ = v.to_batch();
                }
                let _ = table_body(&m, 0).and_then(|(rows, body)| parse_table(body, rows));
            }
        }
    }

    #[test]
    fn a_payload_over_the_bound_is_refused_with_its_size() {
        assert!(matches!(encode(&sample(), None, false, 9, 100), Err(n) if n > 100));
    }
}
