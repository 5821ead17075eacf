//! From a payload to Parquet and back.

use std::collections::BTreeMap;

use ::arrow::array::{Array, AsArray, RecordBatch};
use ::arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arc_ingest::batch::TableBatch;
use arc_ingest::compact::{Built, Codecs, Layout, OutputSpec, Payloads, SchemaColumn, SliceRef, WriterSettings, build};
use arc_ingest::format::payload::{PayloadView, TableView, parse_table, parse_time, table_body};
use arc_ingest::types::hour_of;

use super::rows::{Cell, cells};

struct One<'a>(&'a [u8]);

impl Payloads for One<'_> {
    fn payload(&self, _: &SliceRef) -> &[u8] {
        self.0
    }
}

/// Makes the file of one table and hour.
pub fn file(payload: &[u8], v: &PayloadView<'_>, i: usize, view: &TableView<'_>, hour: i64, rows: u32, codec: u8) -> (Built, Vec<u8>) {
    let t = &v.index.tables[i];
    let spec = OutputSpec {
        database: v.index.database.to_string(),
        table: t.table.to_string(),
        hour,
        // Under Hive, columns named `date` and `hour` get other names; those have tests of their own.
        layout: Layout::Arc,
        columns: view.columns.iter().map(|c| SchemaColumn { name: c.name.into(), ty: c.ty, tag: c.tag }).collect(),
        settings: WriterSettings {
            compression: [Codecs::None, Codecs::None, Codecs::None, Codecs::Zstd(1), Codecs::Snappy, Codecs::Lz4][usize::from(codec % 6)],
            row_group_rows: if codec >= 128 { 3 } else { 1 << 20 },
            ..WriterSettings::default()
        },
        metadata: vec![],
    };
    let slice = SliceRef::new(1, 0, 0, payload.len() as u32, i as u32, rows, rows == t.rows);
    let mut out = Vec::new();
    let built = build(&spec, &[slice], &One(payload), &[], &mut out).unwrap_or_else(|e| panic!("table '{}': {e}", t.table));
    assert_eq!(built.bytes, out.len() as u64);
    (built, out)
}

/// Every slice of a payload whose rows are `tables` becomes a file that holds exactly its rows.
pub fn assert_ships(payload: &[u8], tables: &[TableBatch], codec: u8) {
    let v = PayloadView::parse(payload).unwrap();
    assert_eq!(v.index.tables.len(), tables.len());
    for (i, (t, batch)) in v.index.tables.iter().zip(tables).enumerate() {
        let view = v.table(i).unwrap();
        let (rows, body) = table_body(payload, i as u32).unwrap();
        assert_eq!((rows, t.rows as usize), (t.rows, batch.rows()));
        assert_eq!(format!("{:?}", parse_table(body, rows).unwrap()), format!("{view:?}"));
        assert_eq!(parse_time(body, rows).unwrap(), view.time);
        // More hours than this are the same again.
        for (hour, rows) in t.hours.iter().take(4) {
            let (built, out) = file(payload, &v, i, &view, *hour, *rows, codec);
            assert_eq!((built.rows, &built.set_aside[..]), (u64::from(*rows), &[][..]));
            assert_holds(&out, batch, *hour);
        }
    }
}

/// Whether the file holds the rows of the hour.
fn assert_holds(file: &[u8], t: &TableBatch, hour: i64) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(file)).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(|b| b.unwrap()).collect();
    let wanted: BTreeMap<&str, Vec<Cell<'_>>> = t.columns.iter().map(|c| (c.name.as_str(), cells(c, t.rows()))).collect();
    let mut want: Vec<(i64, Vec<Cell<'_>>)> = Vec::new();
    for row in (0..t.rows()).filter(|r| hour_of(t.time[*r]) == hour) {
        want.push((t.time[row], wanted.values().map(|c| c[row]).collect()));
    }
    let mut got: Vec<(i64, Vec<Cell<'_>>)> = Vec::new();
    for b in &batches {
        let times = b.column(0).as_primitive::<TimestampMicrosecondType>();
        let mut columns: BTreeMap<&str, Vec<Cell<'_>>> = BTreeMap::new();
        for (f, a) in b.schema_ref().fields().iter().zip(b.columns()).skip(1) {
            columns.insert(f.name().as_str(), array(a));
        }
        assert!(columns.keys().eq(wanted.keys()));
        got.extend((0..b.num_rows()).map(|row| (times.value(row), columns.values().map(|c| c[row]).collect())));
    }
    want.sort();
    got.sort();
    assert_eq!(got, want);
}

fn array(a: &dyn Array) -> Vec<Cell<'_>> {
    let cell = |i: usize| match a.data_type() {
        _ if a.is_null(i) => Cell::Null,
        DataType::Int64 => Cell::Int(a.as_primitive::<Int64Type>().value(i)),
        DataType::Float64 => Cell::Float(a.as_primitive::<Float64Type>().value(i).to_bits()),
        DataType::Boolean => Cell::Bool(a.as_boolean().value(i)),
        DataType::Utf8 => Cell::Text(a.as_string::<i32>().value(i).as_bytes()),
        DataType::Binary => Cell::Binary(a.as_binary::<i32>().value(i)),
        other => panic!("a column of type {other}"),
    };
    (0..a.len()).map(cell).collect()
}
