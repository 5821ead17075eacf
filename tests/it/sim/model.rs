//! What clients sent and heard, and what that obliges the server to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arc_ingest::clock::SplitMix64;
use arc_ingest::http::Dialect;
use arrow::array::{Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use serde_json::{Map, Value, json};

pub const DATABASE: &str = "db";
/// 2026-01-01T00:00:00Z.
const EPOCH_US: i64 = 1_767_225_600_000_000;
const HOUR_US: i64 = 3_600_000_000;

/// One row as it was sent: a value for each column, without nulls.
#[derive(Clone, Debug)]
pub struct Row {
    pub table: String,
    pub time_us: i64,
    pub cells: BTreeMap<String, Value>,
}

/// What is known of the fate of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// No answer, or one that leaves it open.
    Unknown,
    /// 204.
    Acked(u64),
    /// Refused, by every answer so far: nothing of it may be stored.
    Absent,
}

/// One logical request: sent once, or again and again with its key.
#[derive(Clone, Debug)]
pub struct Request {
    pub key: Option<String>,
    pub body: Vec<u8>,
    pub rows: Vec<Row>,
    pub first_rid: i64,
    pub fate: Fate,
    pub in_flight: u32,
    /// Damage of a disk has hit its record: its rows may be missing.
    pub rotten: bool,
    /// Line protocol, if it is that.
    pub lines: Option<LineBody>,
}

/// What is known of the lines of a body.
#[derive(Clone, Debug)]
pub struct LineBody {
    pub dialect: Dialect,
    /// The row of each line, None for those that nobody can store, by number.
    pub rows: BTreeMap<u64, Option<usize>>,
    /// The rows that were refused, as every answer so far has it.
    pub dropped: Option<BTreeSet<usize>>,
}

impl Request {
    /// Takes note of the lines that an answer names: those that nobody can store, and rows whose types did not fit.
    ///
    /// # Errors
    /// When it names too few or others than an answer before.
    pub fn told(&mut self, named: &BTreeSet<u64>) -> Result<(), String> {
        let Some(lines) = &mut self.lines else { return Err("it has no lines".into()) };
        let mut dropped = BTreeSet::new();
        for line in named {
            match lines.rows.get(line) {
                Some(Some(row)) => _ = dropped.insert(*row),
                Some(None) => {}
                None => return Err(format!("line {line} is none, and was refused")),
            }
        }
        if let Some((line, _)) = lines.rows.iter().find(|(line, row)| row.is_none() && !named.contains(line)) {
            return Err(format!("line {line} cannot be stored, and was not refused"));
        }
        match &lines.dropped {
            Some(before) if *before != dropped => Err(format!("the rows {before:?} were refused, then {dropped:?}")),
            _ => {
                lines.dropped = Some(dropped);
                Ok(())
            }
        }
    }
}

/// How rich the traffic is.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub tables: u64,
    pub most_rows: u64,
    pub hours: u64,
    /// Per mille of requests with a key, of values with an unusual type, of requests with a large string.
    pub keyed: u64,
    pub odd_types: u64,
    pub large: u64,
    /// Per mille of requests that are line protocol.
    pub lines: u64,
}

/// Lines that nobody can store: bad grammar, bad values, names that cannot be. If one were stored, no request would know its row; a table of that
/// name must not come to be.
const BAD_LINES: &[&str] = &[
    "nope",
    "t0 rid=-5i,c0=",
    "t1,x= rid=-5i",
    "t2 rid=-5i,c1=1.5i",
    "t0 rid=-5i,c2=\"open",
    "t1 rid=-5i,c3=\"two\nlines\",c1=NaN",
    "t1 rid=-5i 99999999999999999999",
    "nowhere rid=-5i,time=1",
    "nowhere,rid=x rid=-5i,RID=1",
    "t0 rid=9223372036854775808i",
];

const DIALECTS: [Dialect; 4] = [Dialect::V1, Dialect::V2, Dialect::V3, Dialect::Arc];

/// One row as a line, times in microseconds.
fn line(r: &Row) -> String {
    let cells: Vec<String> = r
        .cells
        .iter()
        .map(|(c, v)| match v {
            Value::Number(n) if n.is_i64() => format!("{c}={n}i"),
            Value::String(s) => format!("{c}=\"{s}\""),
            other => format!("{c}={other}"),
        })
        .collect();
    format!("{} {} {}", r.table, cells.join(","), r.time_us)
}

#[derive(Default)]
pub struct Model {
    pub requests: Vec<Request>,
    next_rid: i64,
}

/// The value that a row has in a column, from its number: any mix-up of rows shows.
fn value(rid: i64, column: &str, ty: u64) -> Value {
    let x = SplitMix64(rid as u64 ^ column.bytes().fold(7, |h, b| h * 31 + u64::from(b))).next_u64();
    match ty {
        0 => json!((x % 2_000_001) as i64 - 1_000_000),
        1 => json!((x % 1_000_000) as f64 / 8.0 + 0.125),
        2 => json!(format!("s{}", x % 50)),
        _ => json!(x.is_multiple_of(2)),
    }
}

/// The rows as lines, with lines between them that nobody can store.
fn as_line_protocol(random: &mut SplitMix64, rows: &[Row]) -> (Vec<u8>, LineBody) {
    let mut body = String::new();
    let mut numbers = BTreeMap::new();
    let mut number = 1;
    let bad = if random.chance(500) { 0 } else { 200 };
    let mut add = |text: &str, row: Option<usize>| {
        numbers.insert(number, row);
        number += text.matches('\n').count() as u64 + 1;
        body.push_str(text);
        body.push('\n');
    };
    for (i, r) in rows.iter().enumerate() {
        if random.chance(bad) {
            add(BAD_LINES[random.below(BAD_LINES.len() as u64) as usize], None);
        }
        add(&line(r), Some(i));
    }
    if random.chance(bad) {
        add(BAD_LINES[random.below(BAD_LINES.len() as u64) as usize], None);
    }
    let dialect = DIALECTS[random.below(4) as usize];
    (body.into_bytes(), LineBody { dialect, rows: numbers, dropped: None })
}

/// What kind of value a column has, as far as kinds conflict: integers and floats do not.
fn kind(v: &Value) -> u8 {
    match v {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        _ => 2,
    }
}

/// The kind of each column, by table and name, of all rows that are there.
fn kinds(present: &HashMap<i64, Vec<Row>>) -> HashMap<(&str, &str), u8> {
    let mut out = HashMap::new();
    for r in present.values().flatten() {
        for (c, v) in &r.cells {
            out.insert((r.table.as_str(), c.as_str()), kind(v));
        }
    }
    out
}

impl Model {
    /// Makes a request and remembers it; its index.
    pub fn request(&mut self, random: &mut SplitMix64, t: &Traffic) -> usize {
        let mut rows = Vec::new();
        let first_rid = self.next_rid;
        let mut items = Vec::new();
        let as_lines = t.lines > 0 && random.chance(t.lines);
        let tables = 1 + if random.chance(250) { random.below(3) } else { 0 };
        let mut names = BTreeSet::new();
        for _ in 0..tables {
            names.insert(format!("t{}", random.below(t.tables)));
        }
        for table in names {
            // An answer names no more than a hundred lines.
            let n = 1 + random.below(if as_lines { t.most_rows.min(20) } else { t.most_rows });
            let mut columns: BTreeMap<String, u64> = BTreeMap::new();
            for c in 0..random.below(5) {
                let name = format!("c{}", random.below(6) + c % 2);
                // The usual type of a column is part of its name's number; an odd one widens or conflicts.
                let usual = (name.as_bytes()[1] as u64 - b'0' as u64) % 4;
                columns.insert(name, if random.chance(t.odd_types) { random.below(4) } else { usual });
            }
            let mut item: Map<String, Value> = Map::new();
            let mut lists: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for _ in 0..n {
                let rid = self.next_rid;
                self.next_rid += 1;
                let hour = random.below(t.hours) as i64 - i64::from(random.chance(50)) * 600_000;
                let time_us = EPOCH_US + hour * HOUR_US + rid * 7 + random.below(1000) as i64;
                let mut cells = BTreeMap::from([("rid".to_owned(), json!(rid))]);
                for (c, ty) in &columns {
                    // A column of MessagePack has one type; each line may have its own.
                    let ty = if as_lines && random.chance(t.odd_types) { random.below(4) } else { *ty };
                    cells.insert(c.clone(), value(rid, c, ty));
                }
                if random.chance(t.large) {
                    let text = format!("{rid}-{}", if as_lines { "\n" } else { "" }).repeat(random.below(3000) as usize + 1);
                    cells.insert("blob".into(), json!(text));
                } else if lists.contains_key("blob") {
                    cells.insert("blob".into(), json!("small"));
                }
                rows.push(Row { table: table.clone(), time_us, cells });
                let row = rows.last().unwrap();
                lists.entry("time".into()).or_default().push(json!(time_us));
                for (c, v) in &row.cells {
                    let at = lists["time"].len() - 1;
                    let list = lists.entry(c.clone()).or_default();
                    list.resize(at, Value::Null);
                    list.push(v.clone());
                }
            }
            let len = n as usize;
            for l in lists.values_mut() {
                l.resize(len, Value::Null);
            }
            item.insert("m".into(), json!(table));
            item.insert("columns".into(), json!(lists));
            items.push(Value::Object(item));
        }
        let key = random.chance(t.keyed).then(|| format!("key-{first_rid}"));
        let (body, lines) = if as_lines {
            let (body, lines) = as_line_protocol(random, &rows);
            (body, Some(lines))
        } else {
            let body = if items.len() == 1 { items.remove(0) } else { json!({ "batch": items }) };
            (rmp_serde::to_vec(&body).unwrap(), None)
        };
        self.requests.push(Request { key, body, rows, first_rid, fate: Fate::Absent, in_flight: 0, rotten: false, lines });
        self.requests.len() - 1
    }

    /// Nobody will answer what is under way.
    pub fn cut_off(&mut self) {
        for r in &mut self.requests {
            if std::mem::take(&mut r.in_flight) > 0 && r.fate == Fate::Absent {
                r.fate = Fate::Unknown;
            }
        }
    }

    pub fn acked(&self) -> usize {
        self.requests.iter().filter(|r| matches!(r.fate, Fate::Acked(_))).count()
    }

    fn of_row(&self, rid: i64) -> Option<usize> {
        let n = self.requests.partition_point(|r| r.first_rid <= rid).checked_sub(1)?;
        (rid < self.requests[n].first_rid + self.requests[n].rows.len() as i64).then_some(n)
    }

    /// The row with this number as it was sent.
    pub fn row(&self, rid: i64) -> Option<&Row> {
        let r = &self.requests[self.of_row(rid)?];
        r.rows.get((rid - r.first_rid) as usize)
    }

    /// The record of the request with this row was hit by damage of the disk.
    pub fn rotten(&mut self, rid: i64) {
        if let Some(n) = self.of_row(rid) {
            self.requests[n].rotten = true;
        }
    }

    /// Rows are where and what they must be: `present` as [`read_store`] returns it, with the rows of the quarantine; `reported` says
    /// of a sequence whether its loss was.
    pub fn check(&self, present: &HashMap<i64, Vec<Row>>, reported: impl Fn(u64) -> bool) -> Result<(), String> {
        let mut known = 0;
        let kinds = kinds(present);
        let rotten = self.requests.iter().any(|r| r.rotten);
        for (n, r) in self.requests.iter().enumerate() {
            let found: Vec<usize> = (0..r.rows.len()).map(|i| present.get(&(r.first_rid + i as i64)).map_or(0, Vec::len)).collect();
            known += found.iter().filter(|f| **f > 0).count();
            // Of lines, those whose types did not fit are not there, and only those: types that are durable never change kind.
            let dropped = r.lines.as_ref().and_then(|l| l.dropped.as_ref());
            let fits =
                |row: &Row| row.cells.iter().all(|(c, v)| kinds.get(&(row.table.as_str(), c.as_str())).is_none_or(|k| *k == kind(v)));
            let absent = |i: usize| match (&r.lines, dropped) {
                (None, _) => false,
                (Some(_), Some(dropped)) => dropped.contains(&i),
                (Some(_), None) => !fits(&r.rows[i]),
            };
            if !rotten && let Some(i) = dropped.iter().flat_map(|d| d.iter()).find(|i| fits(&r.rows[**i])) {
                return Err(format!("request {n}: row {} was refused, and fits", r.first_rid + *i as i64));
            }
            if let Some(i) = (0..r.rows.len()).find(|i| absent(*i) && found[*i] > 0 && !(rotten && dropped.is_none())) {
                return Err(format!("request {n}: row {} was refused, and is there", r.first_rid + i as i64));
            }
            let whole: Vec<usize> = (0..r.rows.len()).filter(|i| !absent(*i)).map(|i| found[i]).collect();
            let (most, least) = (found.iter().max().copied().unwrap_or(0), whole.iter().min().copied().unwrap_or(usize::MAX));
            let what = || {
                format!("request {n} (rows {} to {}, key {:?}, {:?})", r.first_rid, r.first_rid + r.rows.len() as i64 - 1, r.key, r.fate)
            };
            // A key lives in its record until the release: with a record that has rotted after it was shipped it is forgotten.
            if most > 1 && !(r.rotten && r.key.is_some()) {
                return Err(format!("{}: a row is there {most} times", what()));
            }
            match r.fate {
                Fate::Absent if most > 0 => return Err(format!("{}: refused, and stored", what())),
                Fate::Acked(_) if least == 0 && !r.rotten => {
                    return Err(format!("{}: lost ({} of {} rows)", what(), found.iter().filter(|f| **f == 0).count(), found.len()));
                }
                Fate::Unknown if most != least && least != usize::MAX && !r.rotten && !(rotten && r.lines.is_some()) => {
                    return Err(format!("{}: half of it is there", what()));
                }
                _ => {}
            }
            if let Fate::Acked(s) = r.fate
                && least == 0
                && !reported(s)
            {
                return Err(format!("{}: lost to damage of the disk, and not reported", what()));
            }
            for (i, sent) in r.rows.iter().enumerate() {
                let Some(row) = present.get(&(r.first_rid + i as i64)).and_then(|v| v.first()) else { continue };
                same_row(sent, row).map_err(|e| format!("{}: row {}: {e}", what(), r.first_rid + i as i64))?;
            }
        }
        if known != present.len() {
            return Err(format!("{} rows are in the store, {known} of them were sent", present.len()));
        }
        Ok(())
    }
}

fn same_row(sent: &Row, found: &Row) -> Result<(), String> {
    if sent.table != found.table || sent.time_us != found.time_us {
        return Err(format!("sent to {} at {}, found in {} at {}", sent.table, sent.time_us, found.table, found.time_us));
    }
    if sent.cells.len() != found.cells.len() {
        return Err(format!("sent {:?}, found {:?}", sent.cells, found.cells));
    }
    for (c, v) in &sent.cells {
        let equal = match (v, found.cells.get(c)) {
            (Value::Number(a), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
            (a, Some(b)) => a == b,
            (_, None) => false,
        };
        if !equal {
            return Err(format!("column {c}: sent {v}, found {:?}", found.cells.get(c)));
        }
    }
    Ok(())
}

/// The directories of an hour: the proleptic Gregorian calendar, by the algorithm of Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms".
fn hive_hour(time_us: i64) -> String {
    let hours = time_us.div_euclid(HOUR_US);
    let z = hours.div_euclid(24) + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("date={year:04}-{month:02}-{day:02}/hour={:02}", hours.rem_euclid(24))
}

/// Every row in the store's Parquet objects, by its number, with a reader that is not ours.
pub fn read_store(objects: &BTreeMap<String, Arc<[u8]>>) -> Result<HashMap<i64, Vec<Row>>, String> {
    let mut out: HashMap<i64, Vec<Row>> = HashMap::new();
    for (name, bytes) in objects.iter().filter(|(n, _)| n.ends_with(".parquet")) {
        let parts: Vec<&str> = name.split('/').collect();
        let [database, table, date, hour, _] = parts[..] else { return Err(format!("{name}: expected database/table/date/hour/file")) };
        if database != DATABASE {
            return Err(format!("{name}: another database"));
        }
        let place = format!("{date}/{hour}");
        let table = table.to_owned();
        let bytes = bytes::Bytes::from(bytes.to_vec());
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes)
            .and_then(|b| b.build())
            .map_err(|e| format!("{name}: {e}"))?;
        for batch in reader {
            let batch = batch.map_err(|e| format!("{name}: {e}"))?;
            for i in 0..batch.num_rows() {
                let mut row = Row { table: table.clone(), time_us: 0, cells: BTreeMap::new() };
                for (f, c) in batch.schema().fields().iter().zip(batch.columns()) {
                    if c.is_null(i) {
                        continue;
                    }
                    let any = c.as_any();
                    let v = match c.data_type() {
                        DataType::Timestamp(..) => {
                            row.time_us = any.downcast_ref::<TimestampMicrosecondArray>().unwrap().value(i);
                            continue;
                        }
                        DataType::Int64 => json!(any.downcast_ref::<Int64Array>().unwrap().value(i)),
                        DataType::Float64 => json!(any.downcast_ref::<Float64Array>().unwrap().value(i)),
                        DataType::Boolean => json!(any.downcast_ref::<arrow::array::BooleanArray>().unwrap().value(i)),
                        DataType::Utf8 => json!(any.downcast_ref::<StringArray>().unwrap().value(i)),
                        DataType::Dictionary(..) => {
                            let text = arrow::compute::cast(c, &DataType::Utf8).map_err(|e| e.to_string())?;
                            json!(text.as_any().downcast_ref::<StringArray>().unwrap().value(i))
                        }
                        t => return Err(format!("{name}: column {} has type {t}", f.name())),
                    };
                    row.cells.insert(f.name().clone(), v);
                }
                if hive_hour(row.time_us) != place {
                    return Err(format!("{name}: holds a row of {}", hive_hour(row.time_us)));
                }
                let rid = row.cells.get("rid").and_then(|v| v.as_f64()).ok_or_else(|| format!("{name}: a row without rid"))?;
                out.entry(rid as i64).or_default().push(row);
            }
        }
    }
    Ok(out)
}
