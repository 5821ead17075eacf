//! Files built from slices, read back with the `parquet` crate's Arrow reader.

use std::io::{self, Write};

use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use ::parquet::basic::Encoding;
use ::parquet::file::statistics::Statistics;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};

use super::columns::SchemaColumn;
use super::name::Layout;
use super::parquet::{BuildError, Built, Codecs, Encodings, OutputSpec, WriterSettings, build};
use super::slices::{Payloads, SliceRef};
use crate::batch::{Bits, Column, Strings, TableBatch, ValidBatch, Values};
use crate::format::payload::encode;
use crate::limits::HOUR_US;
use crate::types::{ColumnType, hour_of};

#[derive(Default)]
pub struct Log {
    pub payloads: Vec<Vec<u8>>,
}

impl Payloads for Log {
    fn payload(&self, s: &SliceRef) -> &[u8] {
        self.payloads.get(s.segment as usize).map_or(&[], |p| p.as_slice())
    }
}

impl Log {
    /// Appends a record; its slices in `hour`.
    pub fn push(&mut self, hour: i64, tables: Vec<TableBatch>) -> Vec<SliceRef> {
        let batch = ValidBatch::new("db".into(), tables).unwrap();
        let e = encode(&batch, None, false, 0, 1 << 30).unwrap();
        let n = self.payloads.len() as u32;
        self.payloads.push(e.payload().to_vec());
        let len = e.payload_len();
        e.index()
            .tables
            .iter()
            .enumerate()
            .filter_map(|(i, t)| {
                let (_, rows) = t.hours.iter().find(|(h, _)| *h == hour)?;
                Some(SliceRef::new(u64::from(n) + 1, n, 0, len, i as u32, *rows, *rows == t.rows))
            })
            .collect()
    }

    pub fn one(&mut self, hour: i64, time: Vec<i64>, columns: Vec<Column>) -> SliceRef {
        self.push(hour, vec![TableBatch { table: "cpu".into(), time, columns }])[0]
    }
}

pub fn col(name: &str, values: Values) -> Column {
    Column { name: name.into(), tag: false, values, validity: None, defines: false }
}

pub fn nullable(name: &str, values: Values, valid: &[bool]) -> Column {
    let mut b = Bits::default();
    valid.iter().for_each(|v| b.push(*v));
    Column { validity: Some(b), ..col(name, values) }
}

pub fn strings(v: &[&str]) -> Strings {
    let mut s = Strings::default();
    v.iter().for_each(|x| s.push(x.as_bytes()));
    s
}

pub fn spec(hour: i64, columns: &[(&str, ColumnType)]) -> OutputSpec {
    OutputSpec {
        database: "db".into(),
        table: "cpu".into(),
        hour,
        layout: Layout::Hive,
        columns: columns.iter().map(|(n, ty)| SchemaColumn { name: (*n).into(), ty: *ty, tag: false }).collect(),
        settings: WriterSettings::default(),
        metadata: vec![("arc.plan".into(), "7".into())],
    }
}

pub fn run(spec: &OutputSpec, slices: &[SliceRef], log: &Log) -> (Built, Vec<u8>) {
    let mut out = Vec::new();
    let built = build(spec, slices, log, &[], &mut out).unwrap();
    assert_eq!(built.bytes, out.len() as u64);
    (built, out)
}

pub fn read(file: &[u8]) -> RecordBatch {
    let b = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(file)).unwrap();
    let schema = b.schema().clone();
    let batches: Vec<RecordBatch> = b.with_batch_size(1 << 20).build().unwrap().map(|b| b.unwrap()).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

pub fn metadata(file: &[u8]) -> ArrowReaderMetadata {
    ArrowReaderMetadata::load(&bytes::Bytes::copy_from_slice(file), Default::default()).unwrap()
}

fn times(b: &RecordBatch) -> Vec<i64> {
    b.column(0).as_primitive::<TimestampMicrosecondType>().values().to_vec()
}

fn ints(b: &RecordBatch, name: &str) -> Vec<Option<i64>> {
    b.column_by_name(name).unwrap().as_primitive::<Int64Type>().iter().collect()
}

pub fn floats(b: &RecordBatch, name: &str) -> Vec<Option<f64>> {
    b.column_by_name(name).unwrap().as_primitive::<Float64Type>().iter().collect()
}

fn texts(b: &RecordBatch, name: &str) -> Vec<Option<String>> {
    b.column_by_name(name).unwrap().as_string::<i32>().iter().map(|s| s.map(str::to_owned)).collect()
}

use ColumnType::{Binary, Bool, Float64, Int64, Utf8};

pub const ALL: [Codecs; 5] = [Codecs::None, Codecs::Zstd(1), Codecs::Snappy, Codecs::Gzip(6), Codecs::Lz4];

#[test]
fn time_then_tags_then_fields_each_by_name() {
    let mut log = Log::default();
    let s = log.one(0, vec![5], vec![col("b", Values::Int64(vec![1])), col("date", Values::Int64(vec![2]))]);
    let mut spec = spec(0, &[("b", Int64), ("z", Utf8), ("a", Float64), ("date", Int64), ("date_value", Bool), ("y", Binary)]);
    spec.columns[1].tag = true;
    let (built, file) = run(&spec, &[s], &log);
    assert_eq!(built.rows, 1);
    let m = metadata(&file);
    let names: Vec<&str> = m.schema().fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["time", "z", "a", "b", "date_value", "date_value_value", "y"]);
    let types: Vec<DataType> = m.schema().fields().iter().map(|f| f.data_type().clone()).collect();
    assert_eq!(types[0], DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())));
    assert_eq!(types[1..4], [DataType::Utf8, DataType::Float64, DataType::Int64]);
    assert!(!m.schema().field(0).is_nullable() && m.schema().field(1).is_nullable());
    let sorting = m.metadata().row_group(0).sorting_columns().unwrap();
    assert!(sorting[0].column_idx == 0 && !sorting[0].descending);
    assert!(m.metadata().file_metadata().created_by().unwrap().starts_with("arc-ingest "));
    let kv = m.metadata().file_metadata().key_value_metadata().unwrap();
    let get = |k: &str| kv.iter().find(|e| e.key == k).and_then(|e| e.value.clone());
    assert_eq!(get("arc.rows").unwrap(), "1");
    assert_eq!(get("arc.plan").unwrap(), "7");
    assert_eq!(get("arc.table").unwrap(), "cpu");
    let b = read(&file);
    assert_eq!(ints(&b, "date_value_value"), [Some(2)]);
    assert!(b.column_by_name("date_value").unwrap().is_null(0));
}

#[test]
fn every_type_with_and_without_nulls_in_every_compression() {
    let mut log = Log::default();
    let n = 1000usize;
    let time: Vec<i64> = (0..n as i64).map(|i| i * 1000).collect();
    let valid: Vec<bool> = (0..n).map(|i| i % 3 != 1).collect();
    let mut text = Strings::default();
    let mut unique = Strings::default();
    let mut codes = Vec::new();
    for i in 0..n {
        text.push(if valid[i] { ["ä", "", "longer text"][i % 3].as_bytes() } else { b"" });
        unique.push(format!("value {i}").as_bytes());
        codes.push((i % 2) as u16);
    }
    let bits = |f: &dyn Fn(usize) -> bool| {
        let mut b = Bits::default();
        (0..n).for_each(|i| b.push(f(i)));
        b
    };
    let columns = |some: bool| {
        let make = |name: &str, v| if some { nullable(name, v, &valid) } else { col(name, v) };
        vec![
            make("i", Values::Int64((0..n as i64).map(|i| i * i - 500).collect())),
            make("wide", Values::Int64((0..n as i64).map(|i| i.wrapping_mul(0x7654_3210_fedc_ba98)).collect())),
            make("f", Values::Float64((0..n).map(|i| i as f64 / 3.0).collect())),
            make("b", Values::Bool(bits(&|i| i % 5 == 0))),
            make("s", Values::Utf8(text.clone())),
            make("u", Values::Utf8(unique.clone())),
            make("d", Values::Utf8Dict { codes: codes.clone(), dictionary: strings(&["x", "yy"]) }),
            make("y", Values::Binary(unique.clone())),
        ]
    };
    let a = log.one(0, time.clone(), columns(false));
    let b = log.one(0, time.iter().map(|t| t + 500).collect(), columns(true));
    let c = log.one(0, vec![7], vec![]);
    let all = [
        ("i", Int64),
        ("wide", Int64),
        ("f", Float64),
        ("b", Bool),
        ("s", Utf8),
        ("u", Utf8),
        ("d", Utf8),
        ("y", Binary),
        ("absent", Float64),
        ("absent_s", Utf8),
    ];
    let mut reference = None;
    for codec in ALL {
        let mut spec = spec(0, &all);
        spec.settings.compression = codec;
        let (built, file) = run(&spec, &[a, b, c], &log);
        assert_eq!((built.rows, built.set_aside.len()), (2 * n as u64 + 1, 0), "{codec:?}");
        let got = read(&file);
        assert!(times(&got).is_sorted());
        assert_eq!(reference.get_or_insert_with(|| got.clone()), &got, "{codec:?}");
        let m = metadata(&file);
        let statistics = m.metadata().row_group(0).column(5).statistics().unwrap();
        assert_eq!(statistics.null_count_opt(), Some(1 + (0..n).filter(|i| i % 3 == 1).count() as u64), "{codec:?}");
    }
    let got = reference.unwrap();
    assert_eq!(got.column_by_name("absent").unwrap().null_count(), 2 * n + 1);
    // Rows at 0, 7 (all NULL), 500, 1000, 1500 (row 1 of the second slice: NULL), 2000, 2500.
    assert_eq!(times(&got)[..7], [0, 7, 500, 1000, 1500, 2000, 2500]);
    assert_eq!(ints(&got, "i")[..7], [Some(-500), None, Some(-500), Some(-499), None, Some(-496), Some(-496)]);
    let t = |v: &[Option<&str>]| v.iter().map(|s| s.map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(texts(&got, "s")[..7], t(&[Some("ä"), None, Some("ä"), Some(""), None, Some("longer text"), Some("longer text")]));
    assert_eq!(texts(&got, "d")[..5], t(&[Some("x"), None, Some("x"), Some("yy"), None]));
    assert_eq!(texts(&got, "u")[5], Some("value 2".to_owned()));
    assert_eq!(floats(&got, "f")[5], Some(2.0 / 3.0));
    let b = got.column_by_name("b").unwrap().as_boolean();
    assert!(b.value(0) && b.is_null(1) && b.value(2) && !b.value(3));
    assert_eq!(got.column_by_name("y").unwrap().as_binary::<i32>().value(6), b"value 2");
}

#[test]
fn integers_widen_only_when_exact() {
    let mut log = Log::default();
    let good = log.one(0, vec![1, 2], vec![col("v", Values::Int64(vec![3, 1 << 53]))]);
    let bad = log.one(0, vec![3], vec![col("v", Values::Int64(vec![(1 << 53) + 1]))]);
    let null = log.one(0, vec![4, 5], vec![nullable("v", Values::Int64(vec![(1 << 53) + 1, 9]), &[false, true])]);
    let (built, file) = run(&spec(0, &[("v", Float64)]), &[good, bad, null], &log);
    assert_eq!(floats(&read(&file), "v"), [Some(3.0), Some((1u64 << 53) as f64), None, Some(9.0)]);
    assert_eq!(built.set_aside.len(), 1);
    assert_eq!((built.set_aside[0].sequence, built.set_aside[0].rows), (2, 1));
    assert!(built.set_aside[0].reason.contains("not exact"), "{}", built.set_aside[0].reason);
}

#[test]
fn a_slice_gives_only_its_rows_of_the_hour_also_before_1970() {
    for hour in [-1i64, 0, hour_of(crate::limits::MIN_TIME_US), 437_000] {
        let t = hour * HOUR_US;
        let outside = if hour < -1000 { t + HOUR_US } else { t - 1 };
        let time = vec![t + HOUR_US - 1, outside, t, t + HOUR_US, t + 5];
        let mut log = Log::default();
        let s = log.one(
            hour,
            time,
            vec![
                col("i", Values::Int64(vec![1, 2, 3, 4, 5])),
                col("f", Values::Float64(vec![1.0, 2.0, 3.0, 4.0, 5.0])),
                col("s", Values::Utf8(strings(&["one", "two", "three", "four", "five"]))),
                col("d", Values::Utf8Dict { codes: vec![0, 1, 2, 1, 0], dictionary: strings(&["a", "zzz", "b"]) }),
                nullable("b", Values::Bool(Bits::from_bytes(vec![0b10101], 5).unwrap()), &[true, true, true, true, false]),
            ],
        );
        assert!(!s.whole() && s.rows() == 3);
        let (built, file) = run(&spec(hour, &[("i", Int64), ("f", Float64), ("s", Utf8), ("d", Utf8), ("b", Bool)]), &[s], &log);
        let b = read(&file);
        assert_eq!(built.rows, 3);
        assert_eq!(times(&b), [t, t + 5, t + HOUR_US - 1]);
        assert_eq!(ints(&b, "i"), [Some(3), Some(5), Some(1)]);
        assert_eq!(floats(&b, "f"), [Some(3.0), Some(5.0), Some(1.0)]);
        assert_eq!(texts(&b, "s"), [Some("three".to_owned()), Some("five".into()), Some("one".into())]);
        assert_eq!(texts(&b, "d"), [Some("b".to_owned()), Some("a".into()), Some("a".into())]);
        let bools = b.column_by_name("b").unwrap().as_boolean();
        assert!(bools.value(0) && bools.is_null(1) && bools.value(2));
        let m = metadata(&file);
        let Some(Statistics::ByteArray(s)) = m.metadata().row_group(0).column(2).statistics() else { panic!("no statistics") };
        assert_eq!(s.max_opt().unwrap().data(), b"b", "an entry that only other hours use is not in the file");
    }
}

#[test]
fn what_cannot_be_built_is_set_aside_and_the_rest_goes_on() {
    let mut log = Log::default();
    let mut slices = Vec::new();
    let mut reasons: Vec<(u64, &str)> = Vec::new();
    let text = |log: &mut Log, slices: &mut Vec<SliceRef>, t: i64| {
        let s = log.one(0, vec![t, t + 1], vec![col("s", Values::Utf8(strings(&["abcd", "efgh"]))), col("v", Values::Int64(vec![t, 600]))]);
        slices.push(s);
        s
    };
    let good = text(&mut log, &mut slices, 0);
    let damage = |log: &mut Log, s: SliceRef, from: &[u8], to: &[u8]| {
        let p = &mut log.payloads[s.segment as usize];
        let at = p.windows(from.len()).position(|w| w == from).unwrap();
        p[at..at + from.len()].copy_from_slice(to);
    };
    let s = text(&mut log, &mut slices, 10);
    damage(&mut log, s, b"abcd", b"ab\xffd");
    reasons.push((s.sequence, "not UTF-8"));
    let s = text(&mut log, &mut slices, 20);
    damage(&mut log, s, b"abcdefgh", "abc\u{e9}fgh".as_bytes());
    reasons.push((s.sequence, "string 0 is not UTF-8"));
    let s = text(&mut log, &mut slices, 30);
    damage(&mut log, s, &[4, 4, b'a'], &[4, 9, b'a']);
    reasons.push((s.sequence, "add up"));
    let s = text(&mut log, &mut slices, 40);
    log.payloads[s.segment as usize].truncate(20);
    reasons.push((s.sequence, "expected"));
    let s = log.one(0, vec![50, 51], vec![col("s", Values::Utf8Dict { codes: vec![0, 1], dictionary: strings(&["qq", "rr"]) })]);
    damage(&mut log, s, b"qqrr\x00\x01", b"qqrr\x00\x02");
    slices.push(s);
    reasons.push((s.sequence, "code 2 of a dictionary of 2"));
    let s = log.one(0, vec![60], vec![col("v", Values::Utf8(strings(&["x"])))]);
    slices.push(s);
    reasons.push((s.sequence, "string values, the plan's schema has int64"));
    let s = log.one(0, vec![70], vec![col("unknown", Values::Int64(vec![1]))]);
    slices.push(s);
    reasons.push((s.sequence, "not in the plan's schema"));
    let s = log.one(0, vec![80], vec![col("v", Values::Float64(vec![1.0]))]);
    slices.push(s);
    reasons.push((s.sequence, "float64 values"));
    let s = log.one(0, vec![90, HOUR_US], vec![]);
    slices.push(SliceRef::new(s.sequence, s.segment, 0, s.len, 0, 2, true));
    reasons.push((s.sequence, "1 rows in hour 0"));
    let s = SliceRef::new(77, 1000, 0, 0, 0, 3, true);
    slices.push(s);
    reasons.push((77, "expected payload version"));
    let mut s = good;
    (s.table, s.sequence) = (5, 78);
    slices.push(s);
    reasons.push((78, "a table of the directory"));
    let s = log.one(0, vec![100], vec![col("v", Values::Int64(vec![1])), col("w", Values::Int64(vec![1]))]);
    damage(&mut log, s, b"\x01w", b"\x01v");
    slices.push(s);
    reasons.push((s.sequence, "stands twice"));
    let last = text(&mut log, &mut slices, 200);
    let (built, file) = run(&spec(0, &[("s", Utf8), ("v", Int64), ("w", Int64)]), &slices, &log);
    assert_eq!(times(&read(&file)), [0, 1, 200, 201]);
    let mut got = built.set_aside.clone();
    got.sort_by_key(|s| s.sequence);
    reasons.sort();
    assert_eq!(got.iter().map(|s| s.sequence).collect::<Vec<_>>(), reasons.iter().map(|r| r.0).collect::<Vec<_>>());
    for (got, (_, reason)) in got.iter().zip(&reasons) {
        assert!(got.reason.contains(reason), "'{}' for '{reason}'", got.reason);
    }
    let listed: u64 = got.iter().map(|s| u64::from(s.rows)).sum();
    assert_eq!(built.rows + listed, slices.iter().map(|s| u64::from(s.rows())).sum::<u64>());
    // Sequences set aside before are neither built nor listed again: the file is the same.
    let skip: Vec<u64> = reasons.iter().map(|r| r.0).collect();
    let mut again = Vec::new();
    let second = build(&spec(0, &[("s", Utf8), ("v", Int64), ("w", Int64)]), &slices, &log, &skip, &mut again).unwrap();
    assert_eq!((again, second.set_aside), (file, vec![]));
    assert_eq!(last.rows(), 2);
}

#[test]
fn no_byte_change_panics_and_none_loses_count_of_rows() {
    let mut log = Log::default();
    let time: Vec<i64> = (0..20).collect();
    let s = log.one(
        0,
        time,
        vec![
            col("i", Values::Int64((0..20).collect())),
            nullable("s", Values::Utf8(strings(&["ab"; 20])), &[false; 20]),
            col("d", Values::Utf8Dict { codes: vec![1; 20], dictionary: strings(&["x", "y"]) }),
            col("b", Values::Bool(Bits::filled(20, true))),
        ],
    );
    let spec = spec(0, &[("i", Float64), ("s", Utf8), ("d", Utf8), ("b", Bool)]);
    let original = log.payloads[0].clone();
    for i in 0..original.len() {
        for x in [1u8, 0x80, 0xff] {
            log.payloads[0] = original.clone();
            log.payloads[0][i] ^= x;
            let (built, file) = run(&spec, &[s], &log);
            let aside: u64 = built.set_aside.iter().map(|a| u64::from(a.rows)).sum();
            assert_eq!(built.rows + aside, 20, "byte {i}");
            assert_eq!(read(&file).num_rows() as u64, built.rows);
        }
    }
}

#[test]
fn a_panic_sets_one_slice_aside() {
    struct Trap(Log);
    impl Payloads for Trap {
        fn payload(&self, s: &SliceRef) -> &[u8] {
            assert!(s.sequence != 2, "trap");
            self.0.payload(s)
        }
    }
    let mut log = Log::default();
    let slices: Vec<SliceRef> = (0..3).map(|i| log.one(0, vec![i], vec![])).collect();
    let mut out = Vec::new();
    let built = build(&spec(0, &[]), &slices, &Trap(log), &[], &mut out).unwrap();
    assert_eq!((built.rows, built.set_aside.len()), (2, 1));
    assert!(built.set_aside[0].reason.contains("panic: trap"));
}

#[test]
fn rows_are_sorted_in_each_row_group_ties_by_sequence_and_row() {
    let mut log = Log::default();
    let mut slices = Vec::new();
    // Overlapping, with ties, the later sequence with the earlier times.
    for k in 0..50i64 {
        let time: Vec<i64> = (0..40).map(|i| (i * 7 + (50 - k)) % 60).collect();
        let ids: Vec<i64> = (0..40).map(|i| k * 40 + i).collect();
        let names: Vec<String> = ids.iter().map(|i| format!("n{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        slices.push(log.one(
            0,
            time,
            vec![
                col("id", Values::Int64(ids.clone())),
                col("name", Values::Utf8(strings(&names))),
                nullable(
                    "f",
                    Values::Float64(ids.iter().map(|i| *i as f64).collect()),
                    &ids.iter().map(|i| i % 2 == 0).collect::<Vec<_>>(),
                ),
                col("b", Values::Bool(Bits::from_bytes(vec![0x5a; 5], 40).unwrap())),
            ],
        ));
    }
    slices.reverse();
    for (rows, codec) in [(1 << 20, Codecs::Zstd(1)), (1 << 20, Codecs::Snappy), (333, Codecs::None), (1, Codecs::None)] {
        let mut spec = spec(0, &[("id", Int64), ("name", Utf8), ("f", Float64), ("b", Bool)]);
        spec.settings.row_group_rows = rows;
        spec.settings.compression = codec;
        let (built, file) = run(&spec, &slices, &log);
        assert_eq!(built.rows, 2000);
        let b = read(&file);
        let (t, id) = (times(&b), ints(&b, "id"));
        let mut at = 0;
        for g in metadata(&file).metadata().row_groups() {
            let n = g.num_rows() as usize;
            assert!(n <= rows);
            let keys: Vec<(i64, i64)> = (at..at + n).map(|i| (t[i], id[i].unwrap())).collect();
            assert!(keys.is_sorted(), "row group of {rows}");
            at += n;
        }
        let mut all: Vec<i64> = id.iter().map(|i| i.unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..2000).collect::<Vec<_>>());
        let (names, f, bools) = (texts(&b, "name"), floats(&b, "f"), b.column_by_name("b").unwrap().as_boolean().clone());
        for i in 0..2000 {
            let id = id[i].unwrap();
            assert_eq!(names[i].as_deref(), Some(format!("n{id}").as_str()));
            assert_eq!(f[i], (id % 2 == 0).then_some(id as f64));
            assert_eq!(bools.value(i), 0x5a >> (id % 8) & 1 == 1);
        }
    }
}

#[test]
fn one_slice_larger_than_row_groups_is_split() {
    let mut log = Log::default();
    let n = 1000usize;
    let names: Vec<String> = (0..n).map(|i| "x".repeat(i % 40)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let s = log.one(
        0,
        (0..n as i64).collect(),
        vec![
            col("s", Values::Utf8(strings(&names))),
            col(
                "d",
                Values::Utf8Dict {
                    codes: (0..n).map(|i| (i % 300) as u16).collect(),
                    dictionary: {
                        let v: Vec<String> = (0..300).map(|i| format!("e{i}")).collect();
                        strings(&v.iter().map(String::as_str).collect::<Vec<_>>())
                    },
                },
            ),
        ],
    );
    let mut spec = spec(0, &[("s", Utf8), ("d", Utf8)]);
    spec.settings.row_group_rows = 70;
    let (built, file) = run(&spec, &[s], &log);
    assert_eq!(built.rows, n as u64);
    assert_eq!(metadata(&file).metadata().num_row_groups(), n.div_ceil(70));
    let b = read(&file);
    assert_eq!(texts(&b, "s"), names.iter().map(|s| Some((*s).to_owned())).collect::<Vec<_>>());
    assert_eq!(texts(&b, "d"), (0..n).map(|i| Some(format!("e{}", i % 300))).collect::<Vec<_>>());
}

#[test]
fn the_same_slices_make_the_same_bytes() {
    let mut log = Log::default();
    let mut slices: Vec<SliceRef> = (0..30)
        .map(|k| {
            let names: Vec<String> = (0..100).map(|i| format!("n{}", i * k % 17)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            log.one(0, (0..100).map(|i| i * 31 % 100).collect(), vec![col("s", Values::Utf8(strings(&names)))])
        })
        .collect();
    for codec in ALL {
        let mut spec = spec(0, &[("s", Utf8)]);
        spec.settings.compression = codec;
        let (a, file) = run(&spec, &slices, &log);
        slices.reverse();
        let (b, again) = run(&spec, &slices, &log);
        assert!(a == b && file == again);
        let digest: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&file).into();
        assert_eq!(a.sha256, digest);
    }
}

#[test]
fn more_distinct_strings_than_a_slice_can_code() {
    let mut log = Log::default();
    let mut slices = Vec::new();
    let mut expected = Vec::new();
    for k in 0..8u32 {
        let dictionary: Vec<String> = (0..10_000).map(|i| format!("a rather long entry {:06}", k * 10_000 + i)).collect();
        let codes: Vec<u16> = (0..40_000u32).map(|i| (i * 7 % 10_000) as u16).collect();
        expected.extend(codes.iter().map(|c| Some(dictionary[*c as usize].clone())));
        let dictionary = strings(&dictionary.iter().map(String::as_str).collect::<Vec<_>>());
        slices.push(log.one(
            0,
            (0..40_000).map(|i| i64::from(k) * 40_000 + i).collect(),
            vec![col("s", Values::Utf8Dict { codes, dictionary })],
        ));
    }
    for codec in ALL {
        let mut spec = spec(0, &[("s", Utf8)]);
        spec.settings.compression = codec;
        let (_, file) = run(&spec, &slices, &log);
        assert_eq!(texts(&read(&file), "s"), expected);
        let m = metadata(&file);
        let encodings: Vec<Encoding> = m.metadata().row_group(0).column(1).encodings().collect();
        assert!(encodings.contains(&Encoding::RLE_DICTIONARY), "{encodings:?}");
    }
}

#[test]
fn mostly_distinct_strings_are_not_coded() {
    let mut log = Log::default();
    let slices: Vec<SliceRef> = (0..30i64)
        .map(|k| {
            let v: Vec<String> = (0..1000).map(|i| format!("id-{k}-{i}")).collect();
            log.one(
                0,
                (0..1000).map(|i| k * 1000 + i).collect(),
                vec![col("s", Values::Utf8(strings(&v.iter().map(String::as_str).collect::<Vec<_>>())))],
            )
        })
        .collect();
    let mut spec = spec(0, &[("s", Utf8)]);
    spec.settings.row_group_rows = 12_000;
    let (_, file) = run(&spec, &slices, &log);
    let m = metadata(&file);
    assert!(m.metadata().row_groups().iter().all(|g| g.column(1).dictionary_page_offset().is_none()));
    assert_eq!(texts(&read(&file), "s")[29_999].as_deref(), Some("id-29-999"));
    let Some(Statistics::ByteArray(s)) = m.metadata().row_group(0).column(1).statistics() else { panic!("no statistics") };
    assert_eq!(s.min_opt().unwrap().data(), b"id-0-0");
}

#[test]
fn wide_tables_stay_within_the_bound_of_a_row_group() {
    let mut log = Log::default();
    let names: Vec<String> = (0..1000).map(|i| format!("c{i:04}")).collect();
    let slices: Vec<SliceRef> =
        (0..3000i64).map(|i| log.one(0, vec![i], vec![col(&names[i as usize % 1000], Values::Float64(vec![i as f64]))])).collect();
    let columns: Vec<(&str, ColumnType)> = names.iter().map(|n| (n.as_str(), Float64)).collect();
    let mut spec = spec(0, &columns);
    spec.settings.row_group_bytes = 4 << 20;
    let (built, file) = run(&spec, &slices, &log);
    assert_eq!((built.rows, built.set_aside.len()), (3000, 0));
    let m = metadata(&file);
    assert!(m.metadata().row_groups().iter().all(|g| g.num_rows() <= (4 << 20) / 8008));
    let b = read(&file);
    assert_eq!(floats(&b, "c0007")[1007], Some(1007.0));
    assert_eq!(b.column_by_name("c0007").unwrap().null_count(), 2997);
}

#[test]
fn long_strings_end_row_groups_by_bytes() {
    let mut log = Log::default();
    let long: Vec<String> = (0..100).map(|i| format!("{i}").repeat(1000)).collect();
    let slices: Vec<SliceRef> =
        (0..100i64).map(|i| log.one(0, vec![i], vec![col("s", Values::Utf8(strings(&[long[i as usize].as_str()])))])).collect();
    let mut spec = spec(0, &[("s", Utf8)]);
    spec.settings.row_group_bytes = 20_000;
    let (_, file) = run(&spec, &slices, &log);
    let m = metadata(&file);
    assert!(m.metadata().row_groups().iter().all(|g| g.num_rows() <= 21) && m.metadata().num_row_groups() >= 8);
    assert_eq!(texts(&read(&file), "s"), long.iter().cloned().map(Some).collect::<Vec<_>>());
}

#[test]
fn doubles_whose_bytes_compress_better_apart_are_split_in_compact_files() {
    let mut log = Log::default();
    let v: Vec<f64> = (0..300_000).map(|i| 50.0 + f64::from(i % 977) * 1.1 + f64::from(i) / 7.0).collect();
    let valid: Vec<bool> = (0..300_000).map(|i| i % 10 != 3).collect();
    let s =
        log.one(0, (0..300_000).collect(), vec![col("f", Values::Float64(v.clone())), nullable("g", Values::Float64(v.clone()), &valid)]);
    for (encodings, expected) in [(Encodings::Compact, true), (Encodings::Compatible, false)] {
        let mut spec = spec(0, &[("f", Float64), ("g", Float64)]);
        spec.settings.encodings = encodings;
        let (_, file) = run(&spec, &[s], &log);
        let m = metadata(&file);
        let split = |i: usize| m.metadata().row_group(0).column(i).encodings().any(|e| e == Encoding::BYTE_STREAM_SPLIT);
        assert_eq!((split(1), split(2)), (expected, expected), "{encodings:?}");
        let b = read(&file);
        assert_eq!(floats(&b, "f"), v.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(floats(&b, "g"), v.iter().zip(&valid).map(|(v, ok)| ok.then_some(*v)).collect::<Vec<_>>());
    }
}

#[test]
fn several_tables_of_one_record_and_nothing_at_all() {
    let mut log = Log::default();
    let t = |name: &str, v: i64| TableBatch { table: name.into(), time: vec![v], columns: vec![col("v", Values::Int64(vec![v]))] };
    let s = log.push(0, vec![t("a", 1), t("b", 2), t("c", 3)]);
    let (_, file) = run(&spec(0, &[("v", Int64)]), &[s[1]], &log);
    assert_eq!(ints(&read(&file), "v"), [Some(2)]);
    let (built, file) = run(&spec(0, &[("v", Int64)]), &[], &log);
    assert_eq!((built.rows, read(&file).num_rows()), (0, 0));
}

#[test]
fn a_write_that_fails_is_an_io_error_with_its_number() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::from_raw_os_error(28));
            }
            let n = buf.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut log = Log::default();
    let s = log.one(0, vec![1], vec![]);
    for room in [0, 3, 100, 400] {
        let e = build(&spec(0, &[]), &[s], &log, &[], &mut Full(room)).unwrap_err();
        assert!(matches!(e, BuildError::Io(e) if e.raw_os_error() == Some(28)), "room for {room}");
    }
}

/// Rows as a reader that knows nothing of columns would keep them.
type Row = (i64, u64, usize, Vec<Option<String>>);

#[test]
fn random_slices_equal_a_plain_model() {
    let mut x = 7u64;
    let mut below = move |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % n
    };
    let schema = [("b", Bool), ("f", Float64), ("i", Int64), ("s", Utf8), ("w", Float64)];
    for round in 0..60 {
        let mut log = Log::default();
        let (mut slices, mut model): (Vec<SliceRef>, Vec<Row>) = (Vec::new(), Vec::new());
        let spread = [25, 50, HOUR_US as u64 * 2][round % 3];
        for sequence in 1..=1 + below(12) {
            let n = 1 + below(90) as usize;
            let time: Vec<i64> = (0..n).map(|_| HOUR_US - 20 + below(spread) as i64).collect();
            let mut rows: Vec<Vec<Option<String>>> = vec![vec![None; schema.len()]; n];
            let mut columns = Vec::new();
            for (k, (name, ty)) in schema.iter().enumerate() {
                if below(4) == 0 {
                    continue;
                }
                let with_nulls = below(2) == 0;
                let valid: Vec<bool> = (0..n).map(|_| !with_nulls || below(3) > 0).collect();
                let numbers: Vec<i64> = (0..n).map(|_| below(40) as i64 - 20).collect();
                let shown: Vec<String> = match ty {
                    Bool => numbers.iter().map(|v| (v % 2 == 0).to_string()).collect(),
                    Utf8 => numbers.iter().map(|v| "é".repeat((v + 20) as usize)).collect(),
                    _ => numbers.iter().map(i64::to_string).collect(),
                };
                let values = match (ty, *name) {
                    (Bool, _) => {
                        let mut b = Bits::default();
                        numbers.iter().for_each(|v| b.push(v % 2 == 0));
                        Values::Bool(b)
                    }
                    (Int64, _) | (_, "w") if *ty == Int64 || below(2) == 0 => Values::Int64(numbers.clone()),
                    (Float64, _) => Values::Float64(numbers.iter().map(|v| *v as f64).collect()),
                    _ if below(2) == 0 => {
                        let all: Vec<String> = (0..40).map(|v| "é".repeat(v)).collect();
                        let dictionary = strings(&all.iter().map(String::as_str).collect::<Vec<_>>());
                        Values::Utf8Dict { codes: numbers.iter().map(|v| (v + 20) as u16).collect(), dictionary }
                    }
                    _ => Values::Utf8(strings(&shown.iter().map(String::as_str).collect::<Vec<_>>())),
                };
                for (r, row) in rows.iter_mut().enumerate() {
                    row[k] = valid[r].then(|| shown[r].clone());
                }
                columns.push(if with_nulls { nullable(name, values, &valid) } else { col(name, values) });
            }
            for (r, row) in rows.into_iter().enumerate().filter(|(r, _)| hour_of(time[*r]) == 1) {
                model.push((time[r], sequence, r, row));
            }
            slices.extend(log.push(1, vec![TableBatch { table: "cpu".into(), time, columns }]));
        }
        model.sort_by_key(|r| (r.0, r.1, r.2));
        for codec in [Codecs::None, Codecs::Zstd(3), Codecs::Snappy, Codecs::Gzip(9), Codecs::Lz4] {
            let mut spec = spec(1, &schema);
            spec.settings.compression = codec;
            let (built, file) = run(&spec, &slices, &log);
            assert_eq!((built.rows, built.set_aside.len()), (model.len() as u64, 0));
            let b = read(&file);
            let show = |v: Vec<Option<f64>>| v.into_iter().map(|v| v.map(|v| v.to_string())).collect::<Vec<_>>();
            let bools = b.column_by_name("b").unwrap().as_boolean().iter().map(|v| v.map(|v| v.to_string())).collect();
            let ints = ints(&b, "i").into_iter().map(|v| v.map(|v| v.to_string())).collect();
            let columns = [bools, show(floats(&b, "f")), ints, texts(&b, "s"), show(floats(&b, "w"))];
            let t = times(&b);
            for (i, (time, sequence, row, cells)) in model.iter().enumerate() {
                let got: Vec<Option<String>> = columns.iter().map(|c: &Vec<Option<String>>| c[i].clone()).collect();
                assert_eq!((t[i], &got), (*time, cells), "round {round}, {codec:?}, row {row} of {sequence}");
            }
        }
    }
}
