//! What a build does where a few values are long: nothing is copied that was not counted, and what is read back is what was sent.

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ::parquet::file::statistics::Statistics;
use arrow::array::AsArray;

use super::parquet::{Codecs, OutputSpec, build};
use super::slices::SliceRef;
use super::tests::{Log, col, nullable, spec, strings};
use crate::batch::{Column, Strings, Values};
use crate::types::ColumnType::{Binary, Utf8};

const CODECS: [Codecs; 4] = [Codecs::None, Codecs::Zstd(1), Codecs::Snappy, Codecs::Lz4];

fn file(spec: &OutputSpec, slices: &[SliceRef], log: &Log) -> bytes::Bytes {
    let mut out = Vec::new();
    let built = build(spec, slices, log, &[], &mut out).unwrap();
    assert_eq!(built.set_aside, []);
    out.into()
}

/// The values of the first column beside `time`, as bytes, and the rows of each row group.
fn read(file: &bytes::Bytes) -> (Vec<Option<Vec<u8>>>, Vec<i64>) {
    let b = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap();
    let groups = b.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
    let mut out = Vec::new();
    for batch in b.build().unwrap() {
        let batch = batch.unwrap();
        let c = batch.column(1);
        match c.as_string_opt::<i32>() {
            Some(s) => out.extend(s.iter().map(|v| v.map(|v| v.as_bytes().to_vec()))),
            None => out.extend(c.as_binary::<i32>().iter().map(|v| v.map(<[u8]>::to_vec))),
        }
    }
    (out, groups)
}

fn text(v: &[String]) -> Strings {
    strings(&v.iter().map(String::as_str).collect::<Vec<_>>())
}

/// One row with a long value, then NULLs, then distinct short ones: each NULL was a copy of the long value.
#[test]
fn null_rows_after_a_long_first_value_add_nothing() {
    for (ty, codec) in [(Utf8, Codecs::None), (Binary, Codecs::Zstd(1)), (Utf8, Codecs::Lz4)] {
        let values = |s: Strings| if ty == Utf8 { Values::Utf8(s) } else { Values::Binary(s) };
        let long = "x".repeat(100_000);
        let short: Vec<String> = (0..8193).map(|i| format!("v{i}")).collect();
        let mut log = Log::default();
        let nulls = values(text(&vec![String::new(); 4000]));
        let slices = [
            log.one(0, vec![0], vec![col("s", values(strings(&[&long])))]),
            log.one(0, (1..4001).collect(), vec![nullable("s", nulls, &[false; 4000])]),
            log.one(0, (4001..8001).collect(), vec![]),
            log.one(0, (8001..16_194).collect(), vec![col("s", values(text(&short)))]),
            log.one(0, (16_194..17_000).collect(), vec![]),
        ];
        let mut spec = spec(0, &[("s", ty)]);
        spec.settings.compression = codec;
        let file = file(&spec, &slices, &log);
        assert!(codec != Codecs::None || file.len() < 600_000, "{} bytes", file.len());
        let (values, groups) = read(&file);
        assert_eq!(groups, [17_000]);
        assert_eq!(values[0].as_deref(), Some(long.as_bytes()));
        assert!(values[1..8001].iter().all(Option::is_none));
        assert!(short.iter().zip(&values[8001..]).all(|(a, b)| b.as_deref() == Some(a.as_bytes())));
        assert!(values[16_194..].iter().all(Option::is_none));
    }
}

/// Distinct by number, not by bytes: a few long values that repeat stay in the dictionary.
#[test]
fn a_dictionary_with_few_long_values_is_kept() {
    let long: Vec<String> = (0..4).map(|i| format!("{i}").repeat(200_000)).collect();
    let mixed: Vec<String> = (0..16_400).map(|i| if i % 2 == 0 { long[i / 2 % 4].clone() } else { format!("v{i}") }).collect();
    let mut log = Log::default();
    // Through dictionaries of the slices, as the decoder makes them.
    let slices: Vec<SliceRef> = mixed
        .chunks(400)
        .enumerate()
        .map(|(k, rows)| {
            let mut entries: Vec<String> = rows.to_vec();
            entries.sort_unstable();
            entries.dedup();
            let codes = rows.iter().map(|v| entries.binary_search(v).unwrap() as u16).collect();
            let first = k as i64 * 400;
            log.one(0, (first..first + 400).collect(), vec![col("s", Values::Utf8Dict { codes, dictionary: text(&entries) })])
        })
        .collect();
    let mut spec = spec(0, &[("s", Utf8)]);
    spec.settings.compression = Codecs::None;
    let file = file(&spec, &slices, &log);
    assert!(file.len() < 2 << 20, "{} bytes", file.len());
    let (values, groups) = read(&file);
    assert_eq!(groups, [16_400]);
    assert!(values.iter().zip(&mixed).all(|(a, b)| a.as_deref() == Some(b.as_bytes())));
}

/// After a row group whose values were distinct, one with few long values is coded again.
#[test]
fn repeated_long_values_after_distinct_ones_are_coded() {
    let distinct: Vec<String> = (0..9000).map(|i| format!("id-{i}")).collect();
    let long = ["a".repeat(50_000), "b".repeat(50_000)];
    let mut log = Log::default();
    let repeated = || Values::Utf8Dict { codes: (0..5000).map(|i| i % 2).collect(), dictionary: text(&long) };
    let slices = [
        log.one(0, (0..9000).collect(), vec![col("s", Values::Utf8(text(&distinct)))]),
        log.one(0, (9000..14_000).collect(), vec![col("s", repeated())]),
        log.one(0, (14_000..19_000).collect(), vec![nullable("s", repeated(), &[true; 5000])]),
    ];
    let mut spec = spec(0, &[("s", Utf8)]);
    spec.settings.compression = Codecs::None;
    let file = file(&spec, &slices, &log);
    assert!(file.len() < 1 << 20, "{} bytes", file.len());
    let (values, groups) = read(&file);
    assert_eq!(groups, [9000, 10_000]);
    assert_eq!(values[18_999].as_deref(), Some(long[1].as_bytes()));
}

/// No row group holds more than its bytes, whatever the order of long and short values; a longer row stands alone.
#[test]
fn long_values_end_row_groups_before_they_are_taken() {
    let lengths = [10, 90_000, 5, 70_000, 70_000, 400_000, 1, 30_000, 30_000, 30_000, 30_000];
    let v: Vec<String> = lengths.iter().enumerate().map(|(i, n)| format!("{i:x}").repeat(*n)).collect();
    let mut log = Log::default();
    let one = [log.one(0, (0..v.len() as i64).collect(), vec![col("s", Values::Utf8(text(&v)))])];
    let each: Vec<SliceRef> =
        v.iter().enumerate().map(|(i, s)| log.one(0, vec![i as i64], vec![col("s", Values::Utf8(strings(&[s])))])).collect();
    let mut spec = spec(0, &[("s", Utf8)]);
    spec.settings.row_group_bytes = 200_000;
    for slices in [&one[..], &each] {
        let (values, groups) = read(&file(&spec, slices, &log));
        let mut at = 0usize;
        for rows in &groups {
            let rows = *rows as usize;
            let bytes: usize = v[at..at + rows].iter().map(String::len).sum();
            assert!(rows == 1 || bytes <= 200_000, "{groups:?}");
            at += rows;
        }
        assert!(values.iter().zip(&v).all(|(a, b)| a.as_deref() == Some(b.as_bytes())));
    }
}

/// Strings that stand end to end and came in another order than that of their times.
#[test]
fn distinct_strings_out_of_order_are_sorted_with_their_rows() {
    let mut log = Log::default();
    let row = |i: usize| (!i.is_multiple_of(3)).then(|| format!("value {i} {}", "y".repeat(i % 50)));
    let n = 3000usize;
    // Sent backwards, every third row NULL.
    let sent: Vec<usize> = (0..n).rev().collect();
    let v: Vec<String> = sent.iter().map(|i| row(*i).unwrap_or_default()).collect();
    let valid: Vec<bool> = sent.iter().map(|i| row(*i).is_some()).collect();
    let slices = [log.one(0, sent.iter().map(|i| *i as i64).collect(), vec![nullable("s", Values::Utf8(text(&v)), &valid)])];
    for codec in CODECS {
        let mut spec = spec(0, &[("s", Utf8)]);
        spec.settings.compression = codec;
        let (values, _) = read(&file(&spec, &slices, &log));
        assert!(values.iter().enumerate().all(|(i, s)| *s == row(i).map(String::into_bytes)), "{codec:?}");
    }
}

/// Pages of long values end within a group of eight rows, with NULLs on both sides of their ends.
#[test]
fn long_values_between_nulls_are_read_back() {
    let row = |i: usize| (i % 5 != 1).then(|| format!("{i}").repeat(if i.is_multiple_of(3) { 300_000 } else { 7 }));
    let n = 45usize;
    let v: Vec<String> = (0..n).map(|i| row(i).unwrap_or_default()).collect();
    let valid: Vec<bool> = (0..n).map(|i| row(i).is_some()).collect();
    let mut log = Log::default();
    let slices = [log.one(0, (0..n as i64).collect(), vec![nullable("s", Values::Binary(text(&v)), &valid)])];
    let (values, _) = read(&file(&spec(0, &[("s", Binary)]), &slices, &log));
    assert!(values.iter().enumerate().all(|(i, s)| *s == row(i).map(String::into_bytes)));
}

/// A NULL is no value: it is in no bound, whether the column stands end to end or as a dictionary.
#[test]
fn bounds_of_strings_leave_out_null_rows() {
    let cases: [(&str, usize); 2] = [("plain", 1), ("dictionary", 40)];
    for (stands, copies) in cases {
        let n = 12 * copies;
        let v: Vec<String> = (0..n).map(|i| if i % 4 == 0 { String::new() } else { format!("m{:02}", i % 12) }).collect();
        let valid: Vec<bool> = (0..n).map(|i| i % 4 != 0).collect();
        let column = |name: &str| -> Column { nullable(name, Values::Utf8(text(&v)), &valid) };
        let mut log = Log::default();
        let slices = [log.one(0, (0..n as i64).collect(), vec![column("s")])];
        let file = file(&spec(0, &[("s", Utf8)]), &slices, &log);
        let b = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let chunk = b.metadata().row_group(0).column(1);
        assert_eq!(chunk.dictionary_page_offset().is_some(), stands == "dictionary", "{stands}");
        let Some(Statistics::ByteArray(s)) = chunk.statistics() else { panic!("{stands}: no statistics") };
        assert_eq!(s.min_opt().unwrap().data(), b"m01", "{stands}");
        assert_eq!(s.max_opt().unwrap().data(), b"m11", "{stands}");
        assert_eq!(s.null_count_opt(), Some(n as u64 / 4), "{stands}");
    }
}
