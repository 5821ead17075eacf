//! Minima and maxima in the files, and the order they are in.

use ::parquet::basic::ColumnOrder;
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::statistics::Statistics;

use super::tests::{ALL, Log, col, floats, metadata, nullable, read, run, spec, strings};
use crate::batch::Values;
use crate::types::ColumnType::{self, Float64, Int64, Utf8};

#[test]
fn bounds_hold_for_zeros_of_either_sign_and_are_left_out_where_nan_is() {
    let mut log = Log::default();
    let columns = vec![
        col("some", Values::Float64(vec![f64::NAN, 1.0, 2.0])),
        col("zeros", Values::Float64(vec![0.0, -0.0, 0.0])),
        col("nan", Values::Float64(vec![f64::NAN, -f64::NAN, f64::NAN])),
        col("plus", Values::Float64(vec![0.0, 1.0, 2.0])),
        col("minus", Values::Float64(vec![-1.0, -0.0, f64::NEG_INFINITY])),
        nullable("null", Values::Float64(vec![f64::NAN, 1.0, 2.0]), &[false, true, true]),
    ];
    let s = log.one(0, vec![0, 1, 2], columns);
    for codec in ALL {
        let mut spec = spec(0, &["some", "zeros", "null", "nan", "plus", "minus"].map(|n| (n, Float64)));
        spec.settings.compression = codec;
        let (_, file) = run(&spec, &[s], &log);
        let m = metadata(&file);
        let of = |i: usize| match m.metadata().row_group(0).column(i).statistics() {
            Some(Statistics::Double(s)) => (s.min_opt().copied(), s.max_opt().copied(), s.null_count_opt()),
            other => panic!("{other:?}"),
        };
        let bits = |(min, max, nulls): (Option<f64>, Option<f64>, Option<u64>)| (min.map(f64::to_bits), max.map(f64::to_bits), nulls);
        let bounds = |min: f64, max: f64, nulls| (Some(min.to_bits()), Some(max.to_bits()), Some(nulls));
        // By name: minus, nan, null, plus, some, zeros.
        assert_eq!(bits(of(1)), bounds(f64::NEG_INFINITY, 0.0, 0), "{codec:?}");
        assert_eq!(bits(of(2)), (None, None, Some(0)), "{codec:?}");
        assert_eq!(bits(of(3)), bounds(1.0, 2.0, 1), "{codec:?}");
        assert_eq!(bits(of(4)), bounds(-0.0, 2.0, 0), "{codec:?}");
        assert_eq!(bits(of(5)), (None, None, Some(0)), "{codec:?}");
        assert_eq!(bits(of(6)), bounds(-0.0, 0.0, 0), "{codec:?}");
        assert!(floats(&read(&file), "some")[0].unwrap().is_nan());
    }
}

#[test]
fn column_has_bounds_in_every_row_group_or_in_none() {
    let mut log = Log::default();
    let long = "x".repeat(129);
    let texts = strings(&["a", "b", &long, "c", "", ""]);
    let valid = [true, true, true, true, false, false];
    let columns = vec![
        col("nan", Values::Float64(vec![1.0, 2.0, f64::NAN, 100.0, 5.0, 6.0])),
        nullable("null", Values::Float64(vec![1.0, 2.0, 3.0, 4.0, 0.0, 0.0]), &valid),
        nullable("long", Values::Utf8(texts), &valid),
        col("short", Values::Utf8(strings(&["a", "b", "c", "d", "e", "f"]))),
        col("int", Values::Int64(vec![1, 2, 3, 4, 5, 6])),
    ];
    let s = log.one(0, (0..6).collect(), columns);
    let mut spec = spec(0, &[("nan", Float64), ("null", Float64), ("long", Utf8), ("short", Utf8), ("int", Int64)]);
    spec.settings.row_group_rows = 2;
    let (_, file) = run(&spec, &[s], &log);
    let m = metadata(&file);
    let bounded = |name: &str| -> Vec<bool> {
        let of = |g: &RowGroupMetaData| {
            let c = g.columns().iter().find(|c| c.column_descr().name() == name).unwrap();
            let s = c.statistics().unwrap();
            assert!(s.null_count_opt().is_some() && s.min_bytes_opt().is_some() == s.max_bytes_opt().is_some());
            s.min_bytes_opt().is_some()
        };
        m.metadata().row_groups().iter().map(of).collect()
    };
    // With the bounds of the first row group alone a reader may take 2 for the greatest of all.
    assert_eq!(bounded("nan"), [false, false, false]);
    assert_eq!(bounded("long"), [false, false, false]);
    // A row group of NULLs has none to give.
    assert_eq!(bounded("null"), [true, true, false]);
    assert_eq!(bounded("short"), [true, true, true]);
    assert_eq!(bounded("int"), [true, true, true]);
    assert!(m.metadata().file_metadata().column_orders().unwrap().iter().all(|o| matches!(o, ColumnOrder::TYPE_DEFINED_ORDER(_))));
    let kv = m.metadata().file_metadata().key_value_metadata().unwrap();
    assert!(kv.iter().any(|e| e.key == "arc.rows" && e.value.as_deref() == Some("6")));
    assert_eq!(m.metadata().file_metadata().num_rows(), 6);
    assert!(m.metadata().row_group(2).sorting_columns().is_some());
    assert_eq!(read(&file).num_rows(), 6);
}

#[test]
fn order_of_every_column_is_the_one_of_its_type() {
    let mut log = Log::default();
    let names: Vec<String> = (0..20).map(|i| format!("f{i:02}")).collect();
    for columns in [1, 13, 14, 15, 20] {
        let names = &names[..columns];
        let s = log.one(0, vec![0], names.iter().map(|n| col(n, Values::Float64(vec![1.5]))).collect());
        let schema: Vec<(&str, ColumnType)> = names.iter().map(|n| (n.as_str(), Float64)).collect();
        let (_, file) = run(&spec(0, &schema), &[s], &log);
        let m = metadata(&file);
        let orders = m.metadata().file_metadata().column_orders().unwrap();
        assert_eq!(orders.len(), columns + 1);
        assert!(orders.iter().all(|o| matches!(o, ColumnOrder::TYPE_DEFINED_ORDER(_))), "{orders:?}");
    }
}
