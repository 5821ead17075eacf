//! Columns in, finished file out: the slices of one output become one Parquet file.
//!
//! Slices are ordered by their earliest time, then gathered row group by row group; within a row group rows are put
//! in order by time. What the file holds depends on the specification and the slices alone, so that a retry makes the
//! same bytes.

use std::collections::TryReserveError;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::add_encoded_arrow_schema_to_metadata;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use sha2::{Digest, Sha256};

use crate::types::{ColumnType, Hour, Sequence};

use super::chunk::{self, Encoder};
use super::columns::{OpenSlice, RowGroup, SchemaColumn};
use super::footer::{self, Bounds};
use super::name::Layout;
use super::slices::{Payloads, SliceRef, Targets, check, first_time};

/// `created_by` of every file.
pub const CREATED_BY: &str = concat!("arc-ingest ", env!("CARGO_PKG_VERSION"));

/// Compression of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codecs {
    None,
    Snappy,
    Lz4,
    /// Level 1 to 9.
    Gzip(u32),
    /// Level 1 to 22.
    Zstd(i32),
}

/// Which encodings of values a file may have (`compaction.encoding`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encodings {
    /// Those that every reader of the matrix reads (tests/system/readers.py): PLAIN, dictionary, DELTA_BINARY_PACKED.
    Compatible,
    /// BYTE_STREAM_SPLIT too, where it makes doubles smaller.
    Compact,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterSettings {
    pub compression: Codecs,
    pub encodings: Encodings,
    /// Most rows of a row group; at least 1.
    pub row_group_rows: usize,
    /// Most bytes of raw columns of a row group, a dictionary counted twice. A row that is larger by itself is a row group of its own; one whose
    /// slice has larger dictionaries takes them whole.
    pub row_group_bytes: usize,
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self { compression: Codecs::Zstd(1), encodings: Encodings::Compatible, row_group_rows: 1 << 20, row_group_bytes: 128 << 20 }
    }
}

/// What a plan fixes of one output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputSpec {
    pub database: String,
    pub table: String,
    pub hour: Hour,
    pub layout: Layout,
    /// Every column of the file but `time`, in any order.
    pub columns: Vec<SchemaColumn>,
    pub settings: WriterSettings,
    /// Footer key-values; `arc.database`, `arc.table`, `arc.rows` and `arc.writer_version` are added.
    pub metadata: Vec<(String, String)>,
}

impl OutputSpec {
    /// Bytes of a row in memory, strings aside.
    pub(super) fn fixed_bytes(&self) -> usize {
        let width = |c: &SchemaColumn| match c.ty {
            ColumnType::Int64 | ColumnType::Float64 => 8,
            ColumnType::Utf8 | ColumnType::Binary => 5,
            ColumnType::Bool => 1,
        };
        8 + self.columns.iter().map(width).sum::<usize>()
    }
}

/// Rows that did not reach the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    pub sequence: Sequence,
    pub rows: u32,
    pub reason: String,
}

/// A finished file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Built {
    pub rows: u64,
    pub bytes: u64,
    pub sha256: [u8; 32],
    /// In the order in which they were met; slices that the caller had set aside already are not repeated.
    pub set_aside: Vec<SetAside>,
}

#[derive(thiserror::Error, Debug)]
pub enum BuildError {
    /// Writing to `out` failed: try again from the start.
    #[error("writing the file: {0}")]
    Io(#[from] io::Error),
    /// The specification cannot be met, or a bug; trying again does not help.
    #[error("building the file: {0}")]
    Internal(String),
    /// The system gave no memory for it.
    #[error("building the file: {0}")]
    Memory(String),
}

fn out_of_memory(e: TryReserveError) -> ParquetError {
    ParquetError::External(Box::new(e))
}

/// Hashes and counts what passes, and keeps the error that the Parquet writer would wrap.
struct Output<'a> {
    inner: &'a mut (dyn Write + Send),
    hash: Sha256,
    bytes: u64,
    failed: Option<io::Error>,
    /// Some: what is written is kept here, see [`File::close`].
    held: Option<Vec<u8>>,
}

impl Write for Output<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(buf);
            return Ok(buf.len());
        }
        match self.inner.write(buf) {
            Ok(n) => {
                self.hash.update(buf.get(..n).unwrap_or_default());
                self.bytes += n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let copy = e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error);
                self.failed = Some(e);
                Err(copy)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Builds one output. `skip`: sequences whose slices were set aside before; they are left out and not reported again.
///
/// A file without rows is written too when nothing is left; the caller decides whether it is wanted.
///
/// # Errors
/// [`BuildError`]; a slice that cannot be built is no error but set aside.
pub fn build(
    spec: &OutputSpec,
    slices: &[SliceRef],
    payloads: &dyn Payloads,
    skip: &[Sequence],
    out: &mut (dyn Write + Send),
) -> Result<Built, BuildError> {
    let columns = ordered_columns(spec);
    let mut set_aside = Vec::new();
    let order = in_time_order(spec.hour, slices, payloads, skip, &mut set_aside);
    let in_order = order.iter().filter_map(|i| slices.get(*i as usize));
    let mut output = Output { inner: out, hash: Sha256::new(), bytes: 0, failed: None, held: None };
    // A panic here is no slice's: it stops this output, not the thread that ships everything else.
    let rows = guarded(|| Ok(write_file(spec, &columns, in_order, payloads, &mut set_aside, &mut output)));
    let rows = rows.unwrap_or_else(|why| Err(ParquetError::General(why)));
    match (rows, output.failed) {
        (_, Some(e)) => Err(BuildError::Io(e)),
        (Err(ParquetError::External(e)), None) if e.is::<TryReserveError>() => Err(BuildError::Memory(e.to_string())),
        (Err(e), None) => Err(BuildError::Internal(e.to_string())),
        (Ok(rows), None) => Ok(Built { rows, bytes: output.bytes, sha256: output.hash.finalize().into(), set_aside }),
    }
}

/// Name in the file and column, in the file's order: tags, then fields, each by name.
struct FileColumn {
    stored: String,
    column: SchemaColumn,
}

fn ordered_columns(spec: &OutputSpec) -> Vec<FileColumn> {
    let taken = |n: &str| spec.columns.iter().any(|c| c.name == n);
    let mut columns: Vec<FileColumn> = spec
        .columns
        .iter()
        .map(|c| {
            let mut stored = c.name.clone();
            if spec.layout == Layout::Hive && (c.name == "date" || c.name == "hour") {
                stored.push_str("_value");
                while taken(&stored) {
                    stored.push_str("_value");
                }
            }
            FileColumn { stored, column: c.clone() }
        })
        .collect();
    columns.sort_by(|a, b| (!a.column.tag, &a.stored).cmp(&(!b.column.tag, &b.stored)));
    columns
}

/// Runs `f`, a panic becoming the reason for which a slice is set aside.
fn guarded<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|p| {
        let what = p.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| p.downcast_ref::<String>().cloned());
        Err(format!("panic: {}", what.unwrap_or_default()))
    })
}

/// Indices of the slices by their earliest time, ties by sequence. A plan may hold millions of slices: only their places are sorted.
fn in_time_order(hour: Hour, slices: &[SliceRef], payloads: &dyn Payloads, skip: &[Sequence], set_aside: &mut Vec<SetAside>) -> Vec<u32> {
    let skip: hashbrown::HashSet<Sequence> = skip.iter().copied().collect();
    let sequence = |i: u32| slices.get(i as usize).map(|s| s.sequence);
    let mut order: Vec<u32> = (0..slices.len() as u32).collect();
    order.retain(|i| sequence(*i).is_some_and(|s| !skip.contains(&s)));
    order.sort_by_key(|i| sequence(*i));
    let mut keyed = Vec::with_capacity(order.len());
    for i in &order {
        let Some(s) = slices.get(*i as usize) else { continue };
        match guarded(|| first_time(s, payloads.payload(s), hour)) {
            Ok(time) => keyed.push((time, *i)),
            Err(reason) => set_aside.push(SetAside { sequence: s.sequence, rows: s.rows(), reason }),
        }
    }
    keyed.sort_by_key(|(time, i)| (*time, sequence(*i)));
    order.clear();
    order.extend(keyed.iter().map(|(_, i)| *i));
    order
}

fn write_file<'s>(
    spec: &OutputSpec,
    columns: &[FileColumn],
    slices: impl Iterator<Item = &'s SliceRef> + Clone,
    payloads: &dyn Payloads,
    set_aside: &mut Vec<SetAside>,
    output: &mut Output<'_>,
) -> Result<u64, ParquetError> {
    let schema: Vec<SchemaColumn> = columns.iter().map(|c| c.column.clone()).collect();
    let mut file = File::new(spec, columns, output)?;
    let mut targets = Targets::new(&schema);
    let mut group = RowGroup::new(&schema);
    let budget = Budget::new(spec);
    let mut left: u64 = slices.clone().map(|s| u64::from(s.rows())).sum();
    let mut rows = 0u64;
    group.start(budget.expected(left)).map_err(out_of_memory)?;
    let mut limit = 0usize;
    for s in slices {
        left = left.saturating_sub(u64::from(s.rows()));
        let opened = guarded(|| Ok(OpenSlice::new(check(s, payloads.payload(s), spec.hour, &mut targets)?, s.sequence)));
        let mut open = match opened {
            Ok(open) => open,
            Err(reason) => {
                set_aside.push(SetAside { sequence: s.sequence, rows: s.rows(), reason });
                continue;
            }
        };
        // A row group may end inside the slice; what was written of it before then cannot be taken back, but by then
        // the whole slice has been checked.
        let mut split = false;
        if !group.meet(&open) {
            rows += file.row_group(&mut group)?;
            group.start(budget.expected(left + open.left() as u64)).map_err(out_of_memory)?;
            group.meet(&open);
        }
        let start = group.rows();
        while open.left() > 0 {
            if group.rows() == 0 {
                limit = budget.limit(&group, &open);
            }
            let n = budget.rows_now(&group, &open, limit);
            if n == 0 {
                rows += file.row_group(&mut group)?;
                group.start(budget.expected(left + open.left() as u64)).map_err(out_of_memory)?;
                open.new_row_group();
                group.meet(&open);
                split = true;
                continue;
            }
            match guarded(|| Ok(group.gather(&mut open, n))) {
                Ok(Ok(())) => {}
                // No fault of the slice's.
                Ok(Err(e)) => return Err(out_of_memory(e)),
                Err(reason) if split => return Err(ParquetError::General(format!("sequence {}: {reason}", s.sequence))),
                Err(reason) => {
                    group.roll_back(start);
                    set_aside.push(SetAside { sequence: s.sequence, rows: s.rows(), reason });
                    break;
                }
            }
        }
    }
    if group.rows() > 0 {
        rows += file.row_group(&mut group)?;
    }
    file.close(spec, rows)?;
    Ok(rows)
}

/// When a row group ends.
///
/// INVARIANT(row-group-is-bounded): what a row group's columns take is counted before it is taken, and depends on the slices and the settings alone.
struct Budget {
    rows: usize,
    bytes: usize,
    /// Bytes of a row, strings aside.
    fixed: usize,
}

impl Budget {
    fn new(spec: &OutputSpec) -> Self {
        // Row numbers within a row group are 32 bits.
        Self { rows: spec.settings.row_group_rows.clamp(1, 1 << 30), bytes: spec.settings.row_group_bytes, fixed: spec.fixed_bytes() }
    }

    fn most(&self) -> usize {
        self.rows.min(self.bytes / self.fixed).max(1)
    }

    fn expected(&self, left: u64) -> usize {
        usize::try_from(left).unwrap_or(usize::MAX).min(self.most())
    }

    /// Bytes of a row group that begins with this slice: enough for the dictionaries that its rows share, which are part of one record. In
    /// smaller row groups they would be written again and again.
    fn limit(&self, group: &RowGroup, open: &OpenSlice<'_>) -> usize {
        self.bytes.max(group.dictionaries(open) + self.bytes / 4)
    }

    /// Rows of the slice that go into the row group in progress, which may take `limit` bytes; 0: it ends here.
    fn rows_now(&self, group: &RowGroup, open: &OpenSlice<'_>, limit: usize) -> usize {
        let room = self.most().saturating_sub(group.rows());
        let used = group.rows() * self.fixed + group.held();
        let wanted = open.left().min(room);
        if wanted == 0 || (group.rows() > 0 && used >= limit) {
            return 0;
        }
        let n = group.fitting(open, wanted, self.fixed, limit.saturating_sub(used));
        // A row that is larger than a row group gets one of its own.
        if group.rows() == 0 { n.max(1) } else { n }
    }
}

/// The file in progress.
struct File<'a, 'o> {
    writer: SerializedFileWriter<&'a mut Output<'o>>,
    encoder: Encoder,
    bounds: Bounds,
}

impl<'a, 'o> File<'a, 'o> {
    fn new(spec: &OutputSpec, columns: &[FileColumn], output: &'a mut Output<'o>) -> Result<Self, ParquetError> {
        let encoder = Encoder::new(spec.settings.compression, spec.settings.encodings)?;
        let mut fields = vec![Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false)];
        fields.extend(columns.iter().map(|c| Field::new(&c.stored, data_type(c.column.ty), true)));
        let arrow = Arc::new(Schema::new(fields));
        let parquet = ArrowSchemaConverter::new().convert(&arrow)?;
        let mut props = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_compression(encoder.compression())
            .set_offset_index_disabled(true)
            .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]))
            .build();
        add_encoded_arrow_schema_to_metadata(&arrow, &mut props);
        let writer = SerializedFileWriter::new(output, parquet.root_schema_ptr(), Arc::new(props))?;
        Ok(Self { writer, encoder, bounds: Bounds::default() })
    }

    /// Writes the gathered rows as one row group; returns their number.
    fn row_group(&mut self, group: &mut RowGroup) -> Result<u64, ParquetError> {
        let rows = group.rows() as u64;
        let schema = self.writer.schema_descr().columns().to_vec();
        let mut out = self.writer.next_row_group()?;
        group.finish(|i, column| {
            let desc = schema.get(i).ok_or_else(|| ParquetError::General("a column too many".to_owned()))?;
            let (chunk, close) = chunk::encode(desc, &column, &mut self.encoder)?;
            self.bounds.add(i, &close.metadata);
            out.append_column(&chunk, close)
        })?;
        out.close()?;
        Ok(rows)
    }

    /// Writes the footer. It is held back and changed where the `parquet` crate's is not what readers need, see [`footer`].
    fn close(mut self, spec: &OutputSpec, rows: u64) -> Result<(), ParquetError> {
        let own = [
            ("arc.database", spec.database.clone()),
            ("arc.table", spec.table.clone()),
            ("arc.rows", rows.to_string()),
            ("arc.writer_version", CREATED_BY.to_owned()),
        ];
        let given = spec.metadata.iter().map(|(k, v)| (k.as_str(), v.clone()));
        for (k, v) in given.chain(own) {
            self.writer.append_key_value_metadata(KeyValue::new(k.to_owned(), v));
        }
        let columns = self.writer.schema_descr().num_columns();
        self.writer.inner_mut().held = Some(Vec::new());
        let metadata = self.writer.finish()?;
        let output = self.writer.inner_mut();
        let mut held = output.held.take().unwrap_or_default();
        footer::drop_mixed_bounds(&mut held, metadata, &self.bounds)?;
        footer::set_type_order(&mut held, columns)?;
        output.write_all(&held)?;
        Ok(())
    }
}

fn data_type(ty: ColumnType) -> DataType {
    match ty {
        ColumnType::Int64 => DataType::Int64,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Utf8 => DataType::Utf8,
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Binary => DataType::Binary,
    }
}
