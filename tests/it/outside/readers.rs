//! Files that others must read: which order, bounds, codecs and encodings they have, and where they are. What other readers
//! than the `parquet` crate make of them is the matrix of `tests/system/readers.py` (`just readers`).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::basic::{ColumnOrder, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;

use super::Case;
use crate::lake;
use crate::msgpack::{self as mp, columnar};
use crate::server::{Place, Server};

const THIS: &str = "tests/it/outside/readers.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "B1",
        kind: "statistics in a form that other readers refuse or misread",
        tests: &[
            (THIS, "values_and_bounds_are_exact_in_every_codec_and_encoding"),
            ("src/compact/bounds_tests.rs", "order_of_every_column_is_the_one_of_its_type"),
            ("src/compact/bounds_tests.rs", "column_has_bounds_in_every_row_group_or_in_none"),
            ("src/compact/bounds_tests.rs", "bounds_hold_for_zeros_of_either_sign_and_are_left_out_where_nan_is"),
        ],
    },
    Case {
        id: "B2",
        kind: "an encoding that is chosen by data and that some readers do not know",
        tests: &[
            (THIS, "values_and_bounds_are_exact_in_every_codec_and_encoding"),
            (THIS, "plan_keeps_its_encoding_when_the_setting_changes"),
            ("src/compact/tests.rs", "doubles_whose_bytes_compress_better_apart_are_split_in_compact_files"),
        ],
    },
    Case {
        id: "B3",
        kind: "a partition column whose type readers guess",
        tests: &[(THIS, "page_of_readers_names_the_types_of_partition_columns")],
    },
    Case {
        id: "B4",
        kind: "a directory that readers take for a file",
        tests: &[
            (THIS, "new_table_named_like_a_file_gets_a_directory_that_does_not_look_like_one"),
            (THIS, "table_with_files_keeps_its_directory"),
            ("src/compact/name.rs", "directory_of_a_new_table_never_looks_like_a_file"),
            ("src/compact/paths.rs", "manifest_then_lake_decide_which_directory_a_table_has"),
        ],
    },
];

const HOUR: i64 = 1_767_225_600_000_000;
/// Rows of a row group in these tests.
const GROUP: usize = 100;
const ROWS: usize = 8 * GROUP;

/// What is sent and must be in the file: NULL is None, doubles are their bits.
struct Sent {
    ints: Vec<Option<i64>>,
    doubles: Vec<Option<u64>>,
    /// The same where there is no NaN.
    numbers: Vec<Option<u64>>,
    texts: Vec<Option<String>>,
    /// The same where none is long.
    names: Vec<Option<String>>,
    flags: Vec<Option<bool>>,
    bytes: Vec<Option<Vec<u8>>>,
}

/// Each row group has a trait of its own: ordinary values, extremes, NaN among others, NaN alone, zeros, long strings, NULL alone,
/// smooth doubles.
fn sent() -> Sent {
    let mut x = Sent {
        ints: Vec::new(),
        doubles: Vec::new(),
        numbers: Vec::new(),
        texts: Vec::new(),
        names: Vec::new(),
        flags: Vec::new(),
        bytes: Vec::new(),
    };
    for row in 0..ROWS {
        let (group, i) = (row / GROUP, row % GROUP);
        let some = group != 6 && i % 7 != 3;
        let int = if group == 1 { [i64::MIN, i64::MAX, -1, 0][i % 4] } else { row as i64 * 3 - 500 };
        let double = match group {
            1 => [f64::NEG_INFINITY, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE / 4.0][i % 4],
            2 => [1.5, f64::NAN, -2.5, -f64::NAN][i % 4],
            3 => f64::from_bits(f64::NAN.to_bits() | i as u64),
            4 => [0.0, -0.0][usize::from(i % 2 == 0)],
            _ => row as f64 / 8.0 + 20.0,
        };
        let text = match group {
            1 => ["", "a", "ÿ", "漢字"][i % 4].to_owned(),
            5 if i == 50 => "L".repeat(1 << 20),
            5 => format!("{}{i}", "long ".repeat(40)),
            _ => format!("host {}", i % 5),
        };
        let bytes = match group {
            1 => vec![],
            _ => vec![0xff, i as u8, 0],
        };
        x.ints.push(some.then_some(int));
        x.doubles.push(some.then_some(double.to_bits()));
        x.numbers.push(some.then_some(if double.is_nan() { row as f64 } else { double }.to_bits()));
        x.names.push(some.then_some(if text.len() > 128 { format!("name {i}") } else { text.clone() }));
        x.texts.push(some.then_some(text));
        x.flags.push(some.then_some(group == 4 || (group != 5 && i % 2 == 0)));
        x.bytes.push(some.then_some(bytes));
    }
    x
}

fn list<T>(values: &[Option<T>], one: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    mp::arr(&values.iter().map(|v| v.as_ref().map_or_else(mp::nil, &one)).collect::<Vec<_>>())
}

fn store(server: &Server, table: &str, x: &Sent) {
    let time: Vec<i64> = (0..ROWS as i64).map(|i| HOUR + i).collect();
    server.store(&columnar(
        table,
        &[
            ("time", mp::ints(&time)),
            ("i", list(&x.ints, |v| mp::i(*v))),
            ("f", list(&x.doubles, |v| mp::f(f64::from_bits(*v)))),
            ("n", list(&x.numbers, |v| mp::f(f64::from_bits(*v)))),
            ("s", list(&x.texts, |v| mp::s(v))),
            ("t", list(&x.names, |v| mp::s(v))),
            ("b", list(&x.flags, |v| mp::b(*v))),
            ("y", list(&x.bytes, |v| mp::bin(v))),
        ],
    ));
}

fn only_file(lake: &Path, table: &str) -> std::fs::File {
    let files = lake::files(lake, &format!("default/{table}"));
    assert_eq!(files.len(), 1);
    std::fs::File::open(&files[0].path).unwrap()
}

/// A file as the `parquet` crate reads it.
struct Seen {
    metadata: Arc<ParquetMetaData>,
    schema: SchemaRef,
    rows: RecordBatch,
}

impl Seen {
    fn of(file: std::fs::File) -> Self {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let (metadata, schema) = (builder.metadata().clone(), builder.schema().clone());
        let batches: Vec<RecordBatch> = builder.with_batch_size(ROWS).build().unwrap().map(Result::unwrap).collect();
        let rows = arrow::compute::concat_batches(&schema, &batches).unwrap();
        Self { metadata, schema, rows }
    }

    fn encodings(&self) -> HashSet<Encoding> {
        self.metadata.row_groups().iter().flat_map(|g| g.columns()).flat_map(|c| c.encodings()).collect()
    }

    /// Minima and maxima of the row groups, as a reader takes them from the statistics; number of NULLs.
    fn bounds(&self, column: &str) -> (ArrayRef, ArrayRef, Vec<u64>) {
        let file = self.metadata.file_metadata();
        let c = StatisticsConverter::try_new(column, &self.schema, file.schema_descr()).unwrap();
        let c = c.with_column_orders(file.column_orders().map(Vec::as_slice));
        let groups = self.metadata.row_groups();
        let nulls = c.row_group_null_counts(groups).unwrap().values().to_vec();
        (c.row_group_mins(groups).unwrap(), c.row_group_maxes(groups).unwrap(), nulls)
    }
}

/// The bounds must be the least and the greatest value of each group where `least` gives them, and absent elsewhere.
fn check_bounds<T: PartialEq + std::fmt::Debug>(
    column: &str,
    found: &[(Option<T>, Option<T>)],
    values: &[Option<T>],
    least: impl Fn(&[&T]) -> Option<(T, T)>,
) {
    assert_eq!(found.len(), ROWS / GROUP);
    for (g, (min, max)) in found.iter().enumerate() {
        let values: Vec<&T> = values[g * GROUP..(g + 1) * GROUP].iter().flatten().collect();
        let (expected_min, expected_max) = least(&values).unzip();
        assert_eq!((min, max), (&expected_min, &expected_max), "{column}, row group {g}");
    }
}

fn ordered<T: Ord + Clone>(values: &[&T]) -> Option<(T, T)> {
    Some(((*values.iter().min()?).clone(), (*values.iter().max()?).clone()))
}

/// Zeros are widened to both signs.
fn bounds_of_doubles(values: &[&u64]) -> Option<(u64, u64)> {
    let values: Vec<f64> = values.iter().map(|v| f64::from_bits(**v)).collect();
    if values.is_empty() {
        return None;
    }
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some((if min == 0.0 { -0.0f64 } else { min }.to_bits(), if max == 0.0 { 0.0f64 } else { max }.to_bits()))
}

fn check_all_bounds(seen: &Seen, x: &Sent) {
    let nulls = |n: &[u64], of: &dyn Fn(usize) -> bool| {
        let expected: Vec<u64> = (0..ROWS / GROUP).map(|g| (g * GROUP..(g + 1) * GROUP).filter(|i| of(*i)).count() as u64).collect();
        assert_eq!(n, expected);
    };
    let (lo, hi, n) = seen.bounds("i");
    let pairs: Vec<_> = lo.as_primitive::<Int64Type>().iter().zip(hi.as_primitive::<Int64Type>()).collect();
    check_bounds("i", &pairs, &x.ints, ordered);
    nulls(&n, &|i| x.ints[i].is_none());
    let (lo, hi, n) = seen.bounds("n");
    let bits = |a: &ArrayRef| a.as_primitive::<Float64Type>().iter().map(|v| v.map(f64::to_bits)).collect::<Vec<_>>();
    let pairs: Vec<_> = bits(&lo).into_iter().zip(bits(&hi)).collect();
    check_bounds("n", &pairs, &x.numbers, bounds_of_doubles);
    nulls(&n, &|i| x.numbers[i].is_none());
    let (lo, hi, _) = seen.bounds("t");
    let text = |a: &ArrayRef| a.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>();
    let pairs: Vec<_> = text(&lo).into_iter().zip(text(&hi)).collect();
    check_bounds("t", &pairs, &x.names, ordered);
    // A NaN or a long string anywhere in the file leaves all row groups without.
    for column in ["f", "s"] {
        let (lo, hi, n) = seen.bounds(column);
        assert_eq!((lo.null_count(), hi.null_count()), (ROWS / GROUP, ROWS / GROUP), "{column}");
        nulls(&n, &|i| x.ints[i].is_none());
    }
    let (lo, hi, _) = seen.bounds("b");
    let pairs: Vec<_> = lo.as_boolean().iter().zip(hi.as_boolean()).collect();
    check_bounds("b", &pairs, &x.flags, ordered);
    let (lo, hi, _) = seen.bounds("y");
    let blob = |a: &ArrayRef| a.as_binary::<i32>().iter().map(|v| v.map(<[u8]>::to_vec)).collect::<Vec<_>>();
    let pairs: Vec<_> = blob(&lo).into_iter().zip(blob(&hi)).collect();
    check_bounds("y", &pairs, &x.bytes, ordered);
}

fn check_values(seen: &Seen, x: &Sent) {
    let column = |name: &str| seen.rows.column_by_name(name).unwrap();
    let time: Vec<i64> = column("time").as_primitive::<TimestampMicrosecondType>().values().to_vec();
    assert_eq!(time, (0..ROWS as i64).map(|i| HOUR + i).collect::<Vec<_>>());
    assert_eq!(column("i").as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), x.ints);
    for (name, expected) in [("f", &x.doubles), ("n", &x.numbers)] {
        assert!(column(name).as_primitive::<Float64Type>().iter().map(|v| v.map(f64::to_bits)).eq(expected.iter().copied()));
    }
    for (name, expected) in [("s", &x.texts), ("t", &x.names)] {
        assert!(column(name).as_string::<i32>().iter().eq(expected.iter().map(Option::as_deref)));
    }
    assert_eq!(column("b").as_boolean().iter().collect::<Vec<_>>(), x.flags);
    assert!(column("y").as_binary::<i32>().iter().eq(x.bytes.iter().map(Option::as_deref)));
}

/// Row groups that a reader leaves out by their bounds hold no row of the filter's, and those it takes whole hold no other.
fn check_filters(seen: &Seen, x: &Sent) {
    let (lo, hi, _) = seen.bounds("n");
    let (lo, hi) = (lo.as_primitive::<Float64Type>(), hi.as_primitive::<Float64Type>());
    let mut left_out = 0;
    for t in [f64::NEG_INFINITY, -1.0, -0.0, 0.0, 26.5, 1e9, f64::INFINITY] {
        for g in (0..ROWS / GROUP).filter(|g| lo.is_valid(*g)) {
            let values: Vec<f64> = x.numbers[g * GROUP..(g + 1) * GROUP].iter().flatten().map(|v| f64::from_bits(*v)).collect();
            let (lo, hi) = (lo.value(g), hi.value(g));
            assert!(hi > t || !values.iter().any(|v| *v > t), "n > {t}, row group {g}");
            assert!(lo < t || !values.iter().any(|v| *v < t), "n < {t}, row group {g}");
            assert!(hi >= t || values.iter().all(|v| *v < t), "n < {t}, row group {g}");
            // Readers compare zeros by their bits too.
            let within = lo.total_cmp(&t).is_le() && t.total_cmp(&hi).is_le();
            assert!(within || !values.contains(&t), "n = {t}, row group {g}");
            left_out += usize::from(!within);
        }
    }
    assert!(left_out > 20, "bounds leave out only {left_out} row groups");
}

#[test]
fn values_and_bounds_are_exact_in_every_codec_and_encoding() {
    let x = sent();
    let codecs: [(&str, i32, Compression); 6] = [
        ("none", 1, Compression::UNCOMPRESSED),
        ("snappy", 1, Compression::SNAPPY),
        ("lz4", 1, Compression::LZ4_RAW),
        ("gzip", 1, Compression::GZIP(GzipLevel::default())),
        ("gzip", 9, Compression::GZIP(GzipLevel::default())),
        ("zstd", 3, Compression::ZSTD(ZstdLevel::default())),
    ];
    let compatible = HashSet::from([Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY, Encoding::DELTA_BINARY_PACKED]);
    let place = Place::new();
    for (codec, level, expected) in codecs {
        for encoding in ["compatible", "compact"] {
            let table = format!("{codec}_{level}_{encoding}");
            let sets = [
                format!("compaction.compression={codec}"),
                format!("compaction.level={level}"),
                format!("compaction.encoding={encoding}"),
                format!("compaction.row_group_rows={GROUP}"),
            ];
            let server = place.start(&sets.each_ref().map(String::as_str));
            store(&server, &table, &x);
            server.flush();
            server.stop();
            let seen = Seen::of(only_file(&place.lake(), &table));
            let chunks = || seen.metadata.row_groups().iter().flat_map(|g| g.columns());
            // A file does not name its level.
            assert!(chunks().all(|c| std::mem::discriminant(&c.compression()) == std::mem::discriminant(&expected)), "{table}");
            assert!(encoding == "compact" || seen.encodings().is_subset(&compatible), "{table}: {:?}", seen.encodings());
            let orders = seen.metadata.file_metadata().column_orders().unwrap();
            assert!(orders.iter().all(|o| matches!(o, ColumnOrder::TYPE_DEFINED_ORDER(_))), "{table}: {orders:?}");
            check_values(&seen, &x);
            check_all_bounds(&seen, &x);
            check_filters(&seen, &x);
        }
    }
}

#[test]
fn plan_keeps_its_encoding_when_the_setting_changes() {
    // Doubles that are smaller with their bytes apart.
    let smooth = |server: &Server, first: i64| {
        let n = 20_000;
        let time: Vec<i64> = (0..n).map(|i| HOUR + first + i).collect();
        let f: Vec<f64> = (0..n).map(|i| 50.0 + (i % 977) as f64 * 1.1 + i as f64 / 7.0).collect();
        server.store(&columnar("t", &[("time", mp::ints(&time)), ("f", mp::floats(&f))]));
    };
    let place = Place::new();
    // A file where the directory of the table belongs: the plan is made and cannot be carried out.
    std::fs::create_dir_all(place.lake().join("default")).unwrap();
    std::fs::write(place.lake().join("default/t"), b"in the way").unwrap();
    let server = place.start(&["compaction.encoding=compact"]);
    smooth(&server, 0);
    let asked = server.call("POST", "/api/v1/flush?timeout=1s", &[], b"");
    assert_ne!(asked.status, 200, "{asked}");
    server.stop();
    std::fs::remove_file(place.lake().join("default/t")).unwrap();
    let server = place.start(&["compaction.encoding=compatible"]);
    server.flush();
    smooth(&server, 1_000_000);
    server.flush();
    server.stop();
    let mut split: Vec<(String, bool)> = lake::files(&place.lake(), "default/t")
        .into_iter()
        .map(|f| {
            let seen = Seen::of(std::fs::File::open(&f.path).unwrap());
            (f.path.file_name().unwrap().to_str().unwrap().to_owned(), seen.encodings().contains(&Encoding::BYTE_STREAM_SPLIT))
        })
        .collect();
    split.sort();
    assert_eq!(split.iter().map(|(_, s)| *s).collect::<Vec<_>>(), [true, false], "{split:?}");
}

fn one_row(server: &Server, table: &str, v: i64) {
    server.store(&columnar(table, &[("time", mp::ints(&[HOUR + v])), ("v", mp::ints(&[v]))]));
    server.flush();
}

/// Directories of the database `default`, each with its number of files.
fn directories(lake: &Path) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = std::fs::read_dir(lake.join("default"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .map(|d| (d.clone(), lake::files(lake, &format!("default/{d}")).len()))
        .collect();
    found.sort();
    found
}

#[test]
fn new_table_named_like_a_file_gets_a_directory_that_does_not_look_like_one() {
    let place = Place::new();
    let tables = ["cpu.parquet", "cpu.Parquet", "cpu.tmp", "cpu.", "cpu.load", "_cpu.parquet"];
    for start in 0..2 {
        let server = place.start(&[]);
        for (i, table) in tables.iter().enumerate() {
            one_row(&server, table, start * 10 + i as i64);
        }
        server.stop();
    }
    let expected = ["%5Fcpu%2Eparquet", "cpu%2E", "cpu%2EParquet", "cpu%2Eparquet", "cpu%2Etmp", "cpu.load"];
    assert_eq!(directories(&place.lake()), expected.map(|d| (d.to_owned(), 2)));
}

#[test]
fn table_with_files_keeps_its_directory() {
    let place = Place::new();
    // As version 0.1.0 has left them, by this log or by another one.
    for old in ["cpu.parquet", "gone.parquet"] {
        std::fs::create_dir_all(place.lake().join("default").join(old).join("date=2025-12-31/hour=23")).unwrap();
    }
    let file = place.lake().join("default/cpu.parquet/date=2025-12-31/hour=23/other.parquet");
    let server = place.start(&[]);
    one_row(&server, "cpu", 0);
    let (made, _) = directories(&place.lake()).into_iter().find(|(d, _)| d == "cpu").unwrap();
    std::fs::copy(&lake::files(&place.lake(), &format!("default/{made}"))[0].path, file).unwrap();
    std::fs::remove_dir_all(place.lake().join("default/gone.parquet")).unwrap();
    for v in 1..3 {
        one_row(&server, "cpu.parquet", v);
        one_row(&server, "gone.parquet", v);
    }
    server.stop();
    let server = place.start(&[]);
    one_row(&server, "cpu.parquet", 3);
    server.stop();
    let expected = [("cpu", 1), ("cpu.parquet", 4), ("gone%2Eparquet", 2)];
    assert_eq!(directories(&place.lake()), expected.map(|(d, n)| (d.to_owned(), n)));
}

/// What DuckDB makes of it is tried by `tests/system/readers.py`.
#[test]
fn page_of_readers_names_the_types_of_partition_columns() {
    let place = Place::new();
    let server = place.start(&[]);
    one_row(&server, "t", 7 * 3_600_000_000);
    server.stop();
    // Two digits: a change would change what filters on existing tables find.
    assert_eq!(lake::files(&place.lake(), "default/t")[0].partition, "default/t/date=2026-01-01/hour=07");
    for page in ["README.md", "docs/reading.md"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        let text: String = text.split_whitespace().collect();
        assert!(text.replace('=', "").contains("hive_types{'date':DATE,'hour':INT}"), "{page}");
    }
}
