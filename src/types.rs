//! Small values that every layer names the same way.

use std::fmt;

/// Position of a record in the log: contiguous from 1, never reused, across segments and restarts.
/// 0 means "none yet".
pub type Sequence = u64;

/// Hours since the Unix epoch, floored (hour -1 ends at the epoch).
pub type Hour = i64;

/// The UTC hour in which `time_us` (microseconds since the Unix epoch) falls.
pub fn hour_of(time_us: i64) -> Hour {
    time_us.div_euclid(crate::limits::HOUR_US)
}

/// The identity of one log: made with its directory, carried by every file of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let u = uuid::Uuid::from_bytes(self.0);
        write!(f, "{u}")
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type of a column. The numbers are part of the log format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum ColumnType {
    Int64 = 1,
    Float64 = 2,
    Utf8 = 3,
    Bool = 4,
    Binary = 5,
}

impl ColumnType {
    pub fn from_u8(v: u8) -> Option<Self> {
        Some(match v {
            1 => Self::Int64,
            2 => Self::Float64,
            3 => Self::Utf8,
            4 => Self::Bool,
            5 => Self::Binary,
            _ => return None,
        })
    }

    /// The name used in errors, `/api/v1/status` and the docs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::Utf8 => "string",
            Self::Bool => "bool",
            Self::Binary => "binary",
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Unit of time stamps given by a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    Seconds,
    Millis,
    Micros,
    Nanos,
}

impl TimeUnit {
    /// The values of the header `x-arc-time-unit`.
    pub fn parse(s: &str) -> Option<Self> {
        Some(match s {
            "s" => Self::Seconds,
            "ms" => Self::Millis,
            "us" => Self::Micros,
            "ns" => Self::Nanos,
            _ => return None,
        })
    }
}

/// True when `v` can be a float64 and back without loss.
pub fn int_fits_f64(v: i64) -> bool {
    const EXACT: i64 = 1 << 53;
    // 2^63 is the one double whose saturating cast back would compare equal to i64::MAX.
    (-EXACT..=EXACT).contains(&v) || (v as f64 != 9_223_372_036_854_775_808.0 && (v as f64) as i64 == v)
}

/// True when `v` can be a float64 and back without loss.
pub fn uint_fits_f64(v: u64) -> bool {
    // 2^64 is the one double whose saturating cast back would compare equal to u64::MAX.
    v as f64 != 18_446_744_073_709_551_616.0 && (v as f64) as u64 == v
}

/// What is done with an unsigned integer above the largest int64 (`ingest.large_unsigned`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LargeUnsigned {
    /// The request or the line is refused.
    #[default]
    Refuse,
    /// The largest int64 is stored in its place, and counted.
    Saturate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_floor_before_the_epoch() {
        assert_eq!(hour_of(0), 0);
        assert_eq!(hour_of(-1), -1);
        assert_eq!(hour_of(-3_600_000_000), -1);
        assert_eq!(hour_of(-3_600_000_001), -2);
        assert_eq!(hour_of(3_599_999_999), 0);
    }

    #[test]
    fn ints_that_a_double_cannot_hold() {
        assert!(int_fits_f64(1 << 53));
        assert!(!int_fits_f64((1 << 53) + 1));
        assert!(int_fits_f64((1 << 53) + 2));
        assert!(!int_fits_f64(i64::MAX));
        assert!(int_fits_f64(i64::MIN));
        assert!(uint_fits_f64(1 << 63) && uint_fits_f64(18_446_744_073_709_549_568));
        assert!(!uint_fits_f64(u64::MAX) && !uint_fits_f64((1 << 63) + 1));
    }
}
