//! Time stamps of clients, in any unit, to microseconds since the Unix epoch.

use crate::limits::{MAX_TIME_US, MIN_TIME_US};
use crate::types::TimeUnit;

const MAX_SECONDS: u64 = 10_000_000_000;
const MAX_MILLIS: u64 = 10_000_000_000_000;
const MAX_MICROS: u64 = 10_000_000_000_000_000;

/// The name used in requests and errors.
pub fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Seconds => "s",
        TimeUnit::Millis => "ms",
        TimeUnit::Micros => "us",
        TimeUnit::Nanos => "ns",
    }
}

/// The unit that the magnitude of `t` suggests: seconds up to the year 2286, and so on.
pub fn unit_of(t: i64) -> TimeUnit {
    match t.unsigned_abs() {
        a if a < MAX_SECONDS => TimeUnit::Seconds,
        a if a < MAX_MILLIS => TimeUnit::Millis,
        a if a < MAX_MICROS => TimeUnit::Micros,
        _ => TimeUnit::Nanos,
    }
}

/// [`unit_of`] for a float.
pub fn unit_of_float(t: f64) -> TimeUnit {
    let a = t.abs();
    if a < MAX_SECONDS as f64 {
        TimeUnit::Seconds
    } else if a < MAX_MILLIS as f64 {
        TimeUnit::Millis
    } else if a < MAX_MICROS as f64 {
        TimeUnit::Micros
    } else {
        TimeUnit::Nanos
    }
}

/// Microseconds, nanoseconds floored; None outside the years 0001 to 9999.
pub fn to_micros(t: i64, unit: TimeUnit) -> Option<i64> {
    let us = match unit {
        TimeUnit::Seconds => t.checked_mul(1_000_000)?,
        TimeUnit::Millis => t.checked_mul(1_000)?,
        TimeUnit::Micros => t,
        TimeUnit::Nanos => t.div_euclid(1_000),
    };
    (MIN_TIME_US..=MAX_TIME_US).contains(&us).then_some(us)
}

/// The nearest microsecond; None for NaN and outside the years 0001 to 9999.
pub fn float_to_micros(t: f64, unit: TimeUnit) -> Option<i64> {
    let rough = match unit {
        TimeUnit::Seconds => t * 1e6,
        TimeUnit::Millis => t * 1e3,
        TimeUnit::Micros => t,
        TimeUnit::Nanos => t / 1e3,
    }
    .round();
    // Both bounds are compared as doubles first: a cast saturates and NaN becomes 0.
    if !(rough >= MIN_TIME_US as f64 && rough <= MAX_TIME_US as f64) {
        return None;
    }
    // The product above is rounded to a double already: whole and fraction apart are not.
    let exact = |scale: i64| t.trunc() as i64 * scale + (t.fract() * scale as f64).round() as i64;
    let us = match unit {
        TimeUnit::Seconds => exact(1_000_000),
        TimeUnit::Millis => exact(1_000),
        TimeUnit::Micros | TimeUnit::Nanos => rough as i64,
    };
    (MIN_TIME_US..=MAX_TIME_US).contains(&us).then_some(us)
}

/// Microseconds of the data of a MessagePack timestamp extension (type -1), floored.
///
/// # Errors
/// What is wrong with it.
pub fn extension_to_micros(data: &[u8]) -> Result<i64, &'static str> {
    let (seconds, nanos) = if let Ok(b) = <[u8; 4]>::try_from(data) {
        (i64::from(u32::from_be_bytes(b)), 0)
    } else if let Ok(b) = <[u8; 8]>::try_from(data) {
        let v = u64::from_be_bytes(b);
        ((v & ((1 << 34) - 1)) as i64, v >> 34)
    } else if let Some(([n0, n1, n2, n3], seconds)) = data.split_first_chunk::<4>()
        && let Ok(b) = <[u8; 8]>::try_from(seconds)
    {
        (i64::from_be_bytes(b), u64::from(u32::from_be_bytes([*n0, *n1, *n2, *n3])))
    } else {
        return Err("a timestamp extension has 4, 8 or 12 bytes");
    };
    if nanos > 999_999_999 {
        return Err("the nanoseconds of a timestamp extension are at most 999999999");
    }
    seconds
        .checked_mul(1_000_000)
        .and_then(|us| us.checked_add((nanos / 1_000) as i64))
        .filter(|us| (MIN_TIME_US..=MAX_TIME_US).contains(us))
        .ok_or("it is outside the years 0001 to 9999")
}

/// Converts a column in place when every value falls into one unit (or `unit` is given) and into range; false, with the
/// column untouched, otherwise.
pub fn column_to_micros(times: &mut [i64], unit: Option<TimeUnit>) -> bool {
    let (mut low, mut high, mut smallest, mut largest) = (i64::MAX, i64::MIN, u64::MAX, 0);
    for t in times.iter() {
        low = low.min(*t);
        high = high.max(*t);
        smallest = smallest.min(t.unsigned_abs());
        largest = largest.max(t.unsigned_abs());
    }
    let of = |a: u64| unit_of(i64::try_from(a).unwrap_or(i64::MAX));
    let unit = match unit {
        Some(u) => u,
        None if of(smallest) == of(largest) => of(largest),
        None => return false,
    };
    // Conversion is monotonic: with both ends in range the rest is.
    if times.is_empty() {
        return true;
    }
    if to_micros(low, unit).is_none() || to_micros(high, unit).is_none() {
        return false;
    }
    match unit {
        TimeUnit::Seconds => times.iter_mut().for_each(|t| *t *= 1_000_000),
        TimeUnit::Millis => times.iter_mut().for_each(|t| *t *= 1_000),
        TimeUnit::Micros => {}
        TimeUnit::Nanos => times.iter_mut().for_each(|t| *t = t.div_euclid(1_000)),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_at_the_thresholds() {
        use TimeUnit::*;
        for (t, unit) in [
            (0, Seconds),
            (9_999_999_999, Seconds),
            (10_000_000_000, Millis),
            (9_999_999_999_999, Millis),
            (10_000_000_000_000, Micros),
            (9_999_999_999_999_999, Micros),
            (10_000_000_000_000_000, Nanos),
            (i64::MAX, Nanos),
            (i64::MIN, Nanos),
        ] {
            assert_eq!(unit_of(t), unit, "{t}");
            assert_eq!(unit_of(t.saturating_neg()), unit, "-{t}");
            // 2^53 and above, doubles round: the threshold then has no neighbour below.
            if t != 9_999_999_999_999_999 {
                assert_eq!(unit_of_float(t as f64), unit, "{t}");
            }
        }
    }

    #[test]
    fn conversion_floors_nanoseconds_and_bounds_years() {
        assert_eq!(to_micros(-1, TimeUnit::Nanos), Some(-1));
        assert_eq!(to_micros(1_999, TimeUnit::Nanos), Some(1));
        assert_eq!(to_micros(253_402_300_799, TimeUnit::Seconds), Some(253_402_300_799_000_000));
        assert_eq!(to_micros(253_402_300_800, TimeUnit::Seconds), None);
        assert_eq!(to_micros(-62_135_596_800, TimeUnit::Seconds), Some(MIN_TIME_US));
        assert_eq!(to_micros(-62_135_596_801, TimeUnit::Seconds), None);
        assert_eq!(to_micros(i64::MAX, TimeUnit::Seconds), None);
        assert_eq!(float_to_micros(1.5, TimeUnit::Micros), Some(2));
        assert_eq!(float_to_micros(1_700_000_000.123_456, TimeUnit::Seconds), Some(1_700_000_000_123_456));
        // 1.43 us past the second; the product with 1e6, rounded to a double, is 1.5 past it.
        assert_eq!(float_to_micros(1_700_000_000.000_001_4, TimeUnit::Seconds), Some(1_700_000_000_000_001));
        assert_eq!(float_to_micros(-1.5, TimeUnit::Seconds), Some(-1_500_000));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            assert_eq!(float_to_micros(bad, TimeUnit::Nanos), None, "{bad}");
        }
    }

    #[test]
    fn timestamp_extensions_of_all_widths() {
        assert_eq!(extension_to_micros(&1_700_000_000u32.to_be_bytes()), Ok(1_700_000_000_000_000));
        let eight = (999_999_999u64 << 34) | 1_700_000_000;
        assert_eq!(extension_to_micros(&eight.to_be_bytes()), Ok(1_700_000_000_999_999));
        let mut twelve = 500_000_999u32.to_be_bytes().to_vec();
        twelve.extend((-1i64).to_be_bytes());
        assert_eq!(extension_to_micros(&twelve), Ok(-500_000));
        assert!(extension_to_micros(&((1_000_000_000u64 << 34) | 1).to_be_bytes()).is_err());
        assert!(extension_to_micros(&[0; 5]).is_err());
        assert!(extension_to_micros(&[0, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn a_column_is_converted_whole_or_not_at_all() {
        let mut t = vec![1_700_000_000, -5];
        assert!(column_to_micros(&mut t, None));
        assert_eq!(t, [1_700_000_000_000_000, -5_000_000]);
        let mut t = vec![1_700_000_000, 1_700_000_000_000];
        assert!(!column_to_micros(&mut t, None));
        assert!(column_to_micros(&mut t, Some(TimeUnit::Millis)));
        assert!(!column_to_micros(&mut [i64::MAX, 0], Some(TimeUnit::Millis)));
        assert!(column_to_micros(&mut [i64::MAX, i64::MIN + 1_000_000], None));
    }
}
