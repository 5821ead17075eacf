//! Reads what is in the lake, with the `parquet` crate's Arrow reader and nothing of the server.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value, json};

/// One file of the lake.
#[derive(Debug)]
pub struct DataFile {
    /// Relative to the lake's root, without the file's own name.
    pub partition: String,
    pub path: PathBuf,
    /// Column names with their types, in the order of the file.
    pub schema: Vec<(String, String)>,
    pub rows: Vec<Map<String, Value>>,
    pub metadata: Map<String, Value>,
}

/// Every committed file under `lake/<below>`, sorted by path. The lake's own directory is left out.
pub fn files(lake: &Path, below: &str) -> Vec<DataFile> {
    let mut paths = Vec::new();
    walk(&lake.join(below), &mut paths);
    paths.sort();
    paths.into_iter().map(|p| read(lake, p)).collect()
}

/// The rows of a table (as its path has it), sorted by time, then by the rest.
pub fn rows(lake: &Path, database: &str, table: &str) -> Vec<Value> {
    let mut rows: Vec<Value> = files(lake, &format!("{database}/{table}")).into_iter().flat_map(|f| f.rows).map(Value::Object).collect();
    rows.sort_by_key(|r| (r["time"].as_i64(), r.to_string()));
    rows
}

/// The names of all files, relative to the lake's root, the lake's own directory included.
pub fn names(lake: &Path) -> Vec<String> {
    fn all(dir: &Path, out: &mut Vec<PathBuf>) {
        for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if e.file_type().unwrap().is_dir() { all(&e.path(), out) } else { out.push(e.path()) }
        }
    }
    let mut out = Vec::new();
    all(lake, &mut out);
    let mut names: Vec<String> = out.iter().map(|p| p.strip_prefix(lake).unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = e.file_name().into_string().unwrap();
        if e.file_type().unwrap().is_dir() {
            if name != "_arc" {
                walk(&e.path(), out);
            }
        } else if name.ends_with(".parquet") {
            out.push(e.path());
        }
    }
}

fn read(lake: &Path, path: PathBuf) -> DataFile {
    let open = || File::open(&path).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(open()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let schema = builder.schema().fields().iter().map(|f| (f.name().clone(), type_name(f.data_type()))).collect();
    let metadata =
        builder.metadata().file_metadata().key_value_metadata().into_iter().flatten().map(|kv| (kv.key.clone(), json!(kv.value))).collect();
    let mut rows = Vec::new();
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for row in 0..batch.num_rows() {
            let cells = batch.schema().fields().iter().zip(batch.columns()).map(|(f, c)| (f.name().clone(), cell(c, row))).collect();
            rows.push(cells);
        }
    }
    let partition = path.parent().unwrap().strip_prefix(lake).unwrap().to_str().unwrap().to_owned();
    DataFile { partition, path, schema, rows, metadata }
}

fn type_name(t: &DataType) -> String {
    match t {
        DataType::Timestamp(TimeUnit::Microsecond, Some(z)) if &**z == "UTC" => "timestamp".into(),
        DataType::Int64 => "int64".into(),
        DataType::Float64 => "double".into(),
        DataType::Utf8 => "string".into(),
        DataType::Boolean => "bool".into(),
        DataType::Binary => "binary".into(),
        other => format!("unexpected {other:?}"),
    }
}

/// NaN and infinities as strings, binary as `{"hex": ...}`, times in microseconds.
fn cell(c: &dyn Array, row: usize) -> Value {
    if c.is_null(row) {
        return Value::Null;
    }
    match c.data_type() {
        DataType::Timestamp(..) => json!(c.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Int64 => json!(c.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => {
            let v = c.as_primitive::<Float64Type>().value(row);
            if v.is_finite() { json!(v) } else { json!(v.to_string()) }
        }
        DataType::Utf8 => json!(c.as_string::<i32>().value(row)),
        DataType::Boolean => json!(c.as_boolean().value(row)),
        DataType::Binary => json!({"hex": c.as_binary::<i32>().value(row).iter().map(|b| format!("{b:02x}")).collect::<String>()}),
        other => panic!("a column of type {other:?}"),
    }
}
