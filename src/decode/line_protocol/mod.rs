//! Line protocol: `measurement,tag=value field=value,field=value timestamp`, a row a line.
//!
//! One pass over the bytes. `scan` reads the elements, `lines` turns a line into cells, `rows` holds the columns under construction. A line
//! whose keys stand as in an earlier line of its table is recognised by comparing bytes (`short`), and its values go straight to their columns;
//! every other line takes the long way, which is the authority: every verdict and every message is its own.
//!
//! INVARIANT(no-trace): a line that is refused adds no row, no value, no column, no table and no type, so that the lines around it come to
//! the same as without it.
//!
//! Where a line ends that cannot be read: at the first newline outside of quoted strings, so that nothing out of a string, whose text may come
//! from anybody, is ever taken for a line. The exception is a line whose quotes do not pair: it ends at its own first newline, or it would take
//! the lines behind it along.

mod lines;
mod report;
mod rows;
mod scan;
mod short;

#[cfg(test)]
mod tests;

pub use report::{LineError, Report, shown};

use super::table::Bounds;
use crate::batch::TableBatch;
use crate::catalog::{Catalog, Look, Room};
use crate::error::RequestError;
use crate::limits::{MAX_TIME_US, MIN_TIME_US};
use crate::types::LargeUnsigned;

/// The unit of time stamps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// By magnitude: below 5e9 seconds, 5e12 milliseconds, 5e15 microseconds, else nanoseconds.
    Auto,
    Nanos,
    Micros,
    Millis,
    Seconds,
    Minutes,
    Hours,
}

impl Precision {
    /// The name by which a precision is remembered with an idempotency key.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nanos => "ns",
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::Minutes => "m",
            Self::Hours => "h",
        }
    }

    /// Microseconds, nanoseconds floored; None outside the years 0001 to 9999.
    #[inline]
    pub fn to_micros(self, t: i64) -> Option<i64> {
        let us = match self {
            Self::Nanos => t.div_euclid(1_000),
            Self::Micros => t,
            Self::Millis => t.checked_mul(1_000)?,
            Self::Seconds => t.checked_mul(1_000_000)?,
            Self::Minutes => t.checked_mul(60_000_000)?,
            Self::Hours => t.checked_mul(3_600_000_000)?,
            Self::Auto => return Self::guess(t).to_micros(t),
        };
        (MIN_TIME_US..=MAX_TIME_US).contains(&us).then_some(us)
    }

    fn guess(t: i64) -> Self {
        match t.unsigned_abs() {
            a if a < 5_000_000_000 => Self::Seconds,
            a if a < 5_000_000_000_000 => Self::Millis,
            a if a < 5_000_000_000_000_000 => Self::Micros,
            _ => Self::Nanos,
        }
    }
}

/// What a body is decoded with.
#[derive(Clone, Copy, Debug)]
pub struct LineOptions {
    /// Time of lines that have none, in microseconds since the Unix epoch.
    pub receive_time_us: i64,
    pub precision: Precision,
    /// `date` and `hour` are partition columns of the storage layout: columns of that name become `<name>_value`.
    pub hive_names: bool,
    /// What is done with integers above the largest int64 in columns that are not float64.
    pub large_unsigned: LargeUnsigned,
    pub bounds: Bounds,
}

/// What the database holds already: a line that does not fit to it is refused, the others are not.
pub trait Known {
    fn room(&self, table: &str) -> Room;
    fn look(&self, table: &str, column: &str) -> Look;
}

/// A database without tables or limits.
#[derive(Clone, Copy, Debug)]
pub struct Empty;

impl Known for Empty {
    fn room(&self, _: &str) -> Room {
        Room { known: false, columns: usize::MAX, tables: usize::MAX, total_columns: usize::MAX, name_bytes: usize::MAX }
    }

    fn look(&self, _: &str, _: &str) -> Look {
        Look::New { reserved: false }
    }
}

/// A database of the catalog, as it is at each look: what became durable while a body was being decoded is found by whoever admits it.
#[derive(Clone, Copy, Debug)]
pub struct InCatalog<'a> {
    pub catalog: &'a Catalog,
    pub database: &'a str,
}

impl Known for InCatalog<'_> {
    fn room(&self, table: &str) -> Room {
        self.catalog.room(self.database, table)
    }

    fn look(&self, table: &str, column: &str) -> Look {
        self.catalog.look(self.database, table, column)
    }
}

/// What a body holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines {
    /// Each table once, each with at least one row; empty when there is nothing to store.
    pub tables: Vec<TableBatch>,
    pub report: Report,
}

/// Decodes an uncompressed body. Lines that cannot be stored are in the report, and left out.
///
/// # Errors
/// [`RequestError::TooLarge`] over a bound of the whole request.
pub fn decode(body: &[u8], options: &LineOptions, known: &impl Known) -> Result<Lines, RequestError> {
    lines::Decoder::new(body, options, known, true).run()
}

/// [`decode`] without its short cut for repeated keys: for tests, which compare the two.
///
/// # Errors
/// As [`decode`].
pub fn decode_the_long_way(body: &[u8], options: &LineOptions, known: &impl Known) -> Result<Lines, RequestError> {
    lines::Decoder::new(body, options, known, false).run()
}
