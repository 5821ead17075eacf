//! What is stored as asked and can hardly be meant: time stamps before the year 2000, or over a day ahead.
//!
//! A client that sends seconds and says nanoseconds gets 204 and rows of 1970. It is told by a line in the log, a metric, and a list in the
//! status with database and table.

use std::time::Duration;

use serde_json::{Value, json};

use crate::batch::{TableBatch, shown};
use crate::compact::name::civil_from_days;
use crate::log_limit::LogLimit;
use crate::sync::Mutex;
use crate::wal::shared::lock;

/// 2000-01-01T00:00:00Z.
const YEAR_2000_US: i64 = 946_684_800_000_000;
const DAY_US: i64 = 86_400_000_000;
/// Tables that the list has, the one that was odd last first; names bound its bytes.
const MAX_LISTED: usize = 64;

/// How a time stamp is odd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Before2000,
    Ahead,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Before2000 => "before_2000",
            Self::Ahead => "ahead",
        }
    }
}

/// Odd rows of a table.
#[derive(Clone, Debug)]
struct Odd {
    table: String,
    kind: Kind,
    rows: u64,
    /// The time stamp that is farthest off.
    example_us: i64,
}

/// Odd rows of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    tables: Vec<Odd>,
    rows: u64,
}

impl Found {
    /// Looks at the times of all rows.
    pub(super) fn of(tables: &[TableBatch], now_us: i64) -> Self {
        let latest = now_us.saturating_add(DAY_US);
        let mut found = Self::default();
        for t in tables {
            let (low, high) = t.time.iter().fold((i64::MAX, i64::MIN), |(l, h), t| (l.min(*t), h.max(*t)));
            if low < YEAR_2000_US {
                found.add(t, Kind::Before2000, low, |t| t < YEAR_2000_US);
            }
            if high > latest {
                found.add(t, Kind::Ahead, high, |t| t > latest);
            }
        }
        found
    }

    fn add(&mut self, t: &TableBatch, kind: Kind, example_us: i64, is_odd: impl Fn(i64) -> bool) {
        let rows = t.time.iter().filter(|t| is_odd(**t)).count() as u64;
        self.rows += rows;
        if self.tables.len() < MAX_LISTED {
            self.tables.push(Odd { table: t.table.clone(), kind, rows, example_us });
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

#[derive(Debug)]
struct Listed {
    database: String,
    odd: Odd,
    seen_us: i64,
}

/// The list of the status, and the line of the log.
#[derive(Debug, Default)]
pub(super) struct Oddities {
    list: Mutex<Vec<Listed>>,
    limit: LogLimit,
}

impl Oddities {
    /// Notes odd rows that were stored.
    pub(super) fn note(&self, database: &str, found: Found, now_us: i64, now: Duration) {
        if let (Some(first), Some(suppressed)) = (found.tables.first(), self.limit.pass(now)) {
            tracing::warn!(
                database,
                table = %shown(&first.table),
                rows = found.rows,
                time = %iso(first.example_us),
                suppressed,
                "rows were stored with times {}: is the unit of the client's time stamps the one that it names (precision, x-arc-time-unit)?",
                if first.kind == Kind::Ahead { "over a day ahead" } else { "before the year 2000" }
            );
        }
        let mut list = lock(&self.list);
        for odd in found.tables {
            let same = |l: &Listed| l.database == database && l.odd.table == odd.table && l.odd.kind == odd.kind;
            let rows = list.iter().position(same).map_or(0, |at| list.remove(at).odd.rows);
            list.truncate(MAX_LISTED - 1);
            let odd = Odd { rows: rows.saturating_add(odd.rows), ..odd };
            list.insert(0, Listed { database: database.to_owned(), odd, seen_us: now_us });
        }
    }

    /// The list as the status shows it.
    pub(super) fn json(&self) -> Vec<Value> {
        let entry = |l: &Listed| {
            json!({
                "database": l.database, "table": l.odd.table, "kind": l.odd.kind.word(), "rows": l.odd.rows,
                "example_time": iso(l.odd.example_us), "last_seen": iso(l.seen_us),
            })
        };
        lock(&self.list).iter().map(entry).collect()
    }
}

/// A time in UTC as ISO 8601 writes it.
fn iso(us: i64) -> String {
    let (year, month, day) = civil_from_days(us.div_euclid(DAY_US));
    let (seconds, micros) = (us.rem_euclid(DAY_US) / 1_000_000, us.rem_euclid(1_000_000));
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000_000;

    fn table(name: &str, time: Vec<i64>) -> TableBatch {
        TableBatch { table: name.into(), time, columns: Vec::new() }
    }

    #[test]
    fn times_before_2000_and_over_a_day_ahead_are_odd() {
        let found = Found::of(&[table("fine", vec![YEAR_2000_US, NOW, NOW + DAY_US])], NOW);
        assert_eq!((found.rows(), found.tables.len()), (0, 0));
        let found = Found::of(&[table("t", vec![1_767_225_600, YEAR_2000_US - 1, NOW, NOW + DAY_US + 1])], NOW);
        assert_eq!(found.rows(), 3);
        let o = Oddities::default();
        o.note("db", found.clone(), NOW, Duration::from_secs(1));
        o.note("db", found, NOW + 1, Duration::from_secs(1));
        let list = o.json();
        assert_eq!(list.len(), 2);
        let old = json!({
            "database": "db", "table": "t", "kind": "before_2000", "rows": 4, "example_time": "1970-01-01T00:29:27.225600Z",
            "last_seen": "2026-01-01T00:00:00.000001Z",
        });
        assert!(list.contains(&old), "{list:?}");
        assert!(list.iter().any(|l| l["kind"] == "ahead" && l["rows"] == 2));
    }

    #[test]
    fn the_list_keeps_the_tables_that_were_odd_last() {
        let o = Oddities::default();
        let many: Vec<TableBatch> = (0..1000).map(|i| table(&format!("t{i}"), vec![1])).collect();
        let found = Found::of(&many, NOW);
        assert_eq!((found.rows(), found.tables.len()), (1000, MAX_LISTED));
        o.note("db", found, NOW, Duration::ZERO);
        o.note("db", Found::of(&[table("last", vec![1])], NOW), NOW, Duration::ZERO);
        let list = o.json();
        assert_eq!((list.len(), list[0]["table"].as_str()), (MAX_LISTED, Some("last")));
    }
}
