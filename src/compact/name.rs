//! Where an output lies in the lake: a pure function of what the plan fixed, so that a retry finds its own object.

use crate::batch::escape_table;
use crate::types::{Hour, LogId, Sequence};

/// How partitions appear in paths (`storage.layout`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// `date=YYYY-MM-DD/hour=HH`; columns named `date` and `hour` are stored as `date_value` and `hour_value`, because
    /// readers take the path's keys for columns.
    Hive,
    /// `YYYY/MM/DD/HH`.
    Arc,
}

impl Layout {
    /// The layout with this name in configuration and plans.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "hive" => Some(Self::Hive),
            "arc" => Some(Self::Arc),
            _ => None,
        }
    }
}

/// What follows the last dot of a name that readers or stores take for that of a file: `*.parquet` and its like, files under way,
/// checksums, and nothing, which not every store allows at the end of a directory's name.
const FILE_ENDINGS: [&str; 7] = ["parquet", "parq", "pq", "tmp", "crc", "_COPYING_", ""];

/// The directory of a new table: [`escape_table`], and the last dot escaped too where the name would look like a file's.
pub fn table_directory(table: &str) -> String {
    let escaped = escape_table(table);
    match escaped.rsplit_once('.') {
        Some((stem, ending)) if FILE_ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(ending)) => format!("{stem}%2E{ending}"),
        _ => escaped,
    }
}

/// The name of an output, relative to the lake's root, `/` between its parts. `directory` is the table's, the pair the plan's first
/// and last sequence, `n` the output's number in the plan.
pub fn object_name(
    database: &str,
    directory: &str,
    layout: Layout,
    hour: Hour,
    log: LogId,
    (first, last): (Sequence, Sequence),
    n: u32,
) -> String {
    let (year, month, day) = civil_from_days(hour.div_euclid(24));
    let h = hour.rem_euclid(24);
    let partition = match layout {
        Layout::Hive => format!("date={year:04}-{month:02}-{day:02}/hour={h:02}"),
        Layout::Arc => format!("{year:04}/{month:02}/{day:02}/{h:02}"),
    };
    format!("{database}/{directory}/{partition}/{log}-{first:020}-{last:020}-{n:04}.parquet")
}

/// Year, month and day of the proleptic Gregorian calendar, `days` after 1970-01-01 (before it when negative).
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    // Years begin on 1 March, so that the leap day is the last of its year; eras are 400 years of 146,097 days.
    let z = days.saturating_add(719_468);
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_TIME_US, MIN_TIME_US};
    use crate::types::hour_of;

    #[test]
    fn dates_from_year_1_to_9999() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(-1), (1969, 12, 31));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(-25_509), (1900, 2, 28));
        assert_eq!(civil_from_days(-25_508), (1900, 3, 1));
        assert_eq!(civil_from_days(hour_of(MIN_TIME_US).div_euclid(24)), (1, 1, 1));
        assert_eq!(civil_from_days(hour_of(MAX_TIME_US).div_euclid(24)), (9999, 12, 31));
        let (mut y, mut m, mut d) = (1i64, 1u32, 1u32);
        let first = hour_of(MIN_TIME_US).div_euclid(24);
        for day in first..=hour_of(MAX_TIME_US).div_euclid(24) {
            assert_eq!(civil_from_days(day), (y, m, d));
            let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
            let last = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][m as usize - 1];
            d += 1;
            if d > last {
                (m, d) = (m + 1, 1);
            }
            if m > 12 {
                (y, m) = (y + 1, 1);
            }
        }
    }

    #[test]
    fn directory_of_a_new_table_never_looks_like_a_file() {
        for (table, directory) in [
            ("cpu", "cpu"),
            ("cpu.load", "cpu.load"),
            ("parquet", "parquet"),
            ("cpu.parquet.load", "cpu.parquet.load"),
            ("cpu.parquet", "cpu%2Eparquet"),
            ("a.b.PARQUET", "a.b%2EPARQUET"),
            ("cpu.pq", "cpu%2Epq"),
            ("cpu.tmp", "cpu%2Etmp"),
            ("cpu._COPYING_", "cpu%2E_COPYING_"),
            ("cpu.", "cpu%2E"),
            (".parquet", "%2Eparquet"),
            ("_x.parquet", "%5Fx%2Eparquet"),
            ("cpu%2Eparquet", "cpu%252Eparquet"),
            ("*.parquet", "%2A%2Eparquet"),
        ] {
            assert_eq!(table_directory(table), directory);
            // Whoever decodes a directory finds the table's name, whichever of the two it is.
            for path in [directory.to_owned(), escape_table(table)] {
                let decoded: Vec<u8> = path.split('%').enumerate().flat_map(|(i, part)| decode(i, part)).collect();
                assert_eq!(decoded, table.as_bytes());
            }
        }
    }

    fn decode(part: usize, text: &str) -> Vec<u8> {
        if part == 0 {
            return text.as_bytes().to_vec();
        }
        [&[u8::from_str_radix(&text[..2], 16).unwrap()], &text.as_bytes()[2..]].concat()
    }

    #[test]
    fn names_are_those_of_the_interface() {
        let log = LogId([0x11; 16]);
        assert_eq!(
            object_name("db", &table_directory("a/b"), Layout::Hive, -1, log, (3, 12), 4),
            "db/a%2Fb/date=1969-12-31/hour=23/11111111-1111-1111-1111-111111111111-00000000000000000003-00000000000000000012-0004.parquet"
        );
        assert_eq!(
            object_name("db", &table_directory("_t"), Layout::Arc, hour_of(MIN_TIME_US), log, (1, 1), 12_345),
            "db/%5Ft/0001/01/01/00/11111111-1111-1111-1111-111111111111-00000000000000000001-00000000000000000001-12345.parquet"
        );
    }
}
