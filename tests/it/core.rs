//! The whole core in one thread, step by step, over a disk and a store in memory: committer, preallocator, compactor.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_ingest::batch::{Column, Strings, TableBatch, ValidBatch, Values};
use arc_ingest::catalog::Catalog;
use arc_ingest::clock::{Clock, SharedClock};
use arc_ingest::compact::Layout;
use arc_ingest::compact::control::Control;
use arc_ingest::compact::plan::{Bounds, MAX_CHUNKS, MAX_SLICES, PlanSettings};
use arc_ingest::compact::worker::{Compactor, PATIENCE, Settings, Work};
use arc_ingest::format::manifest::{PlanWriter, TableEntry};
use arc_ingest::format::payload::{EncodedRecord, KeyEntry, PayloadView, encode};
use arc_ingest::idempotency::Keys;
use arc_ingest::metrics::Metrics;
use arc_ingest::sink::{ObjectInfo, Published, PutSmall, Sink, SinkResult, Staged};
use arc_ingest::types::{LogId, Sequence};
use arc_ingest::vfs::{Engine, SyncMode, Vfs};
use arc_ingest::wal::commit::{Committer, Step};
use arc_ingest::wal::prealloc::Preallocator;
use arc_ingest::wal::recover::{OpenError, Report, open};
use arc_ingest::wal::shared::LogSettings;
use arc_ingest::wal::{AppendError, Appender, Shared};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use super::mem_vfs::MemVfs;

pub const DIR: &str = "/wal";

/// Time that passes only when told to, and random numbers that are the same in every run.
#[derive(Debug)]
pub struct TestClock {
    ms: AtomicU64,
    random: AtomicU64,
}

impl TestClock {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { ms: AtomicU64::new(1_000_000), random: AtomicU64::new(seed) })
    }

    pub fn pass(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// The next number after `state` of a sequence that looks random (SplitMix64).
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.ms.load(Ordering::Relaxed))
    }
    fn wall_us(&self) -> i64 {
        1_700_000_000_000_000 + self.ms.load(Ordering::Relaxed) as i64 * 1000
    }
    fn random_u64(&self) -> u64 {
        mix(self.random.fetch_add(1, Ordering::Relaxed))
    }
    fn random_id(&self) -> LogId {
        let (a, b) = (self.random_u64(), self.random_u64());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&a.to_le_bytes());
        id[8..].copy_from_slice(&b.to_le_bytes());
        LogId(id)
    }
}

/// A store of objects in memory.
#[derive(Clone, Debug, Default)]
pub struct MemSink(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

struct MemStaged {
    sink: MemSink,
    name: String,
    bytes: Vec<u8>,
}

impl Write for MemStaged {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(b);
        Ok(b.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for MemStaged {
    fn seal(&mut self) -> SinkResult<()> {
        Ok(())
    }
    fn publish(self: Box<Self>) -> SinkResult<Published> {
        let mut objects = self.sink.0.lock().unwrap();
        if objects.contains_key(&self.name) {
            return Ok(Published::AlreadyThere);
        }
        objects.insert(self.name, self.bytes);
        Ok(Published::Created)
    }
}

impl Sink for MemSink {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        Ok(Box::new(MemStaged { sink: self.clone(), name: name.into(), bytes: Vec::new() }))
    }
    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        let objects = self.0.lock().unwrap();
        Ok(objects.get(name).map(|b| ObjectInfo { len: b.len() as u64, sha256: Sha256::digest(b).into() }))
    }
    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        Ok(self.0.lock().unwrap().keys().any(|name| name.starts_with(&format!("{directory}/"))))
    }
    fn confirm(&self, _name: &str) -> SinkResult<()> {
        Ok(())
    }
    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        let mut objects = self.0.lock().unwrap();
        if let Some(b) = objects.get(name) {
            return Ok(if b == bytes { PutSmall::Same } else { PutSmall::Exists(b.clone()) });
        }
        objects.insert(name.into(), bytes.into());
        Ok(PutSmall::Created)
    }
    fn device(&self) -> Option<u64> {
        None
    }
    fn sweep(&self) -> SinkResult<arc_ingest::sink::Swept> {
        Ok(arc_ingest::sink::Swept { removed: 0, complete: true })
    }
}

impl MemSink {
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    /// The (id, text) of every row in the Parquet files, sorted.
    pub fn rows(&self) -> Vec<(i64, String)> {
        let mut out = Vec::new();
        for (name, bytes) in &*self.0.lock().unwrap() {
            if !name.ends_with(".parquet") {
                continue;
            }
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes.clone())).unwrap().build().unwrap();
            for batch in reader.map(Result::unwrap) {
                let id = batch.column_by_name("id").unwrap_or_else(|| panic!("{name}: no column id")).as_primitive::<Int64Type>();
                let text = batch.column_by_name("text").unwrap_or_else(|| panic!("{name}: no column text")).as_string::<i32>();
                out.extend((0..batch.num_rows()).map(|i| (id.value(i), text.value(i).to_owned())));
            }
        }
        out.sort();
        out
    }
}

/// What a request holds: `rows` rows that carry its id, with a text of `len` characters each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub id: i64,
    pub rows: usize,
    pub len: usize,
    pub key: bool,
}

impl Batch {
    pub fn new(id: i64, rows: usize, len: usize) -> Self {
        Self { id, rows, len, key: false }
    }

    /// The rows as they come out.
    pub fn rows(&self) -> Vec<(i64, String)> {
        (0..self.rows).map(|i| (self.id, format!("{i}{}", text(self.id, i, self.len)))).collect()
    }

    /// As the first record of its table.
    pub fn record(&self) -> EncodedRecord {
        encode(&ValidBatch::new("db".into(), vec![self.table()]).unwrap(), None, true, 0, 1 << 26).unwrap()
    }

    fn table(&self) -> TableBatch {
        let mut s = Strings::default();
        for (_, t) in self.rows() {
            s.push(t.as_bytes());
        }
        let column = |name: &str, values| Column { name: name.into(), tag: false, values, validity: None, defines: false };
        let time = (0..self.rows as i64).map(|i| 1_700_000_000_000_000 + i).collect();
        let columns = vec![column("id", Values::Int64(vec![self.id; self.rows])), column("text", Values::Utf8(s))];
        TableBatch { table: "t".into(), time, columns }
    }
}

fn text(id: i64, row: usize, len: usize) -> String {
    let mut x = mix(id as u64 ^ ((row as u64) << 32));
    let mut out = String::with_capacity(len);
    for _ in 0..len {
        x = mix(x);
        out.push((b'a' + (x % 26) as u8) as char);
    }
    out
}

/// The batch id and rows of a record's payload.
pub fn read_rows(payload: &[u8]) -> Vec<(i64, String)> {
    let b = PayloadView::parse(payload).unwrap().to_batch().unwrap();
    let t = &b.tables()[0];
    let (Values::Int64(id), Values::Utf8(s)) = (&t.columns[0].values, &t.columns[1].values) else { panic!("{t:?}") };
    id.iter().zip(s.iter()).map(|(id, s)| (*id, String::from_utf8(s.to_vec()).unwrap())).collect()
}

pub fn settings(data: u64) -> LogSettings {
    LogSettings {
        directory: DIR.into(),
        segment_data: data,
        max_size: 64 << 20,
        reserve: 0,
        pool: 2,
        engine: Engine::Pwrite,
        sync: SyncMode::Data,
        queue_timeout: Duration::from_secs(10),
        mark_delay: Duration::from_millis(50),
        queue_bytes: 64 << 20,
        set_aside_damage: true,
        limits: None,
    }
}

pub struct Core {
    pub shared: Arc<Shared>,
    pub report: Report,
    /// Sequences that recovery kept, each with its rows.
    pub seen: Vec<(Sequence, Vec<(i64, String)>)>,
    control: Arc<Control>,
    committer: Committer,
    prealloc: Arc<Preallocator>,
    compactor: Option<Compactor>,
    appender: Appender,
    catalog: Arc<Catalog>,
    keys: Arc<Keys>,
    clock: Arc<TestClock>,
    rt: tokio::runtime::Runtime,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Core {
    pub fn open(vfs: &MemVfs, sink: &MemSink, clock: &Arc<TestClock>, settings: LogSettings) -> Result<Self, OpenError> {
        let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let shared_clock: SharedClock = Arc::clone(clock) as SharedClock;
        let catalog = Catalog::new(100, 100);
        let keys = Keys::new(Duration::from_secs(3600), 1000, shared_clock.clone());
        let (mut seen, mut stored) = (Vec::new(), Vec::new());
        let mut o = open(
            &vfs,
            settings,
            shared_clock,
            Metrics::new(),
            &mut |v| {
                let p = PayloadView::parse(v.payload).unwrap();
                let sequence = v.header.sequence;
                if v.behind_loss { catalog.fold_behind_loss(sequence, &p) } else { catalog.fold(sequence, &p) }.unwrap();
                stored.extend(p.index.key.map(|k| (v.header.sequence, k)));
                seen.push((v.header.sequence, read_rows(v.payload)));
            },
            &mut |_| {},
        )?;
        catalog.restore(o.manifest.state.tables.values()).unwrap();
        let mut all = std::mem::take(&mut o.manifest.state.keys);
        all.extend(stored);
        all.sort_by_key(|(s, _)| *s);
        all.dedup_by_key(|(s, _)| *s);
        all.into_iter().for_each(|(s, k)| keys.restore(s, k));
        let control = Control::new(Arc::clone(&o.shared), false);
        let compact = Settings {
            trigger_size: 1 << 30,
            max_delay: Duration::from_secs(1 << 30),
            plan: PlanSettings {
                bounds: Bounds { bytes: 1 << 30, rows: 1 << 30, outputs: 100, slices: MAX_SLICES, chunks: MAX_CHUNKS },
                writer: PlanWriter {
                    version: "test".into(),
                    compression: "none".into(),
                    level: 1,
                    row_group_rows: 1 << 20,
                    layout: "hive".into(),
                    encoding: Some("compatible".into()),
                    row_group_bytes: Some(1 << 20),
                },
                layout: Layout::Hive,
            },
            workers: 1,
            memory: 8 << 20,
            patience: PATIENCE,
        };
        let compactor = Compactor::new(
            Arc::clone(&o.shared),
            Arc::clone(&control),
            vfs,
            Arc::new(sink.clone()),
            o.manifest,
            Arc::clone(&catalog),
            Arc::clone(&keys),
            Arc::clone(&o.prealloc),
            compact,
        );
        Ok(Self {
            appender: Appender::new(Arc::clone(&o.shared)),
            shared: o.shared,
            report: o.report,
            seen,
            control,
            committer: o.committer,
            prealloc: o.prealloc,
            compactor: Some(compactor),
            catalog,
            keys,
            clock: Arc::clone(clock),
            rt: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
            _lock: o.lock,
        })
    }

    /// Appends the batches as one group, where one can hold them.
    pub fn append(&mut self, batches: &[Batch]) -> Vec<Result<Sequence, AppendError>> {
        let mut held = Vec::new();
        let mut tasks = Vec::new();
        for b in batches {
            let mut batch = ValidBatch::new("db".into(), vec![b.table()]).unwrap();
            let reservation = self.catalog.try_resolve(&mut batch).unwrap().unwrap();
            let key = b.key.then(|| KeyEntry { id: [b.id as u8; 16], body: [7; 32], running_ms: self.keys.running_ms(), status: 204 });
            let record = encode(&batch, key, reservation.defines(), self.clock.wall_us(), 1 << 26).unwrap();
            held.push((reservation, key));
            let appender = self.appender.clone();
            tasks.push(self.rt.spawn(async move { appender.append(record, None).await }));
        }
        let (prealloc, committer) = (&self.prealloc, &mut self.committer);
        self.rt.block_on(async {
            for n in 0.. {
                // The first turn of the executor queues all of them.
                tokio::task::yield_now().await;
                if tasks.iter().all(tokio::task::JoinHandle::is_finished) {
                    break;
                }
                if n > 300 {
                    // It stands still: the disk has failed.
                    tasks.iter().for_each(tokio::task::JoinHandle::abort);
                }
                prealloc.step();
                committer.step();
            }
        });
        let outcomes: Vec<_> = tasks.into_iter().map(|t| self.rt.block_on(t).unwrap_or(Err(AppendError::UnknownOutcome))).collect();
        for (o, (reservation, key)) in outcomes.iter().zip(held) {
            if let Ok(s) = o {
                reservation.settle(*s);
                key.into_iter().for_each(|k| self.keys.restore(*s, k));
            }
        }
        outcomes
    }

    /// One batch that must be stored.
    pub fn store(&mut self, b: Batch) -> Sequence {
        self.append(&[b])[0].unwrap()
    }

    /// Lets the mark's delay pass.
    pub fn mark(&mut self) {
        self.clock.pass(60);
        self.settle();
    }

    pub fn settle(&mut self) {
        for _ in 0..100 {
            self.prealloc.step();
            if self.committer.step() != Step::Worked {
                return;
            }
        }
    }

    /// Seals the active segment, if it holds anything.
    pub fn rotate(&mut self) {
        self.shared.request_seal(self.shared.watermarks().durable);
        self.settle();
    }

    /// The committer alone seals the active segment.
    pub fn rotate_only(&mut self) {
        self.shared.request_seal(self.shared.watermarks().durable);
        while self.committer.step() == Step::Worked {}
    }

    /// Steps the compactor until `done`; false when it will not be.
    fn drive(&mut self, done: impl Fn(&Shared) -> bool) -> bool {
        for _ in 0..400 {
            if done(&self.shared) {
                return true;
            }
            self.settle();
            if self.compactor.as_mut().unwrap().step() == Work::Done {
                return false;
            }
        }
        false
    }

    /// Ships and releases everything durable.
    pub fn ship(&mut self) -> bool {
        let target = self.shared.watermarks().durable;
        self.control.request(target);
        self.rotate();
        self.drive(|s| s.watermarks().released >= target)
    }

    /// The compactor does up to `steps` steps with everything asked for.
    pub fn ship_some(&mut self, steps: usize) {
        self.control.request(self.shared.watermarks().durable);
        self.rotate();
        for _ in 0..steps {
            self.settle();
            self.compactor.as_mut().unwrap().step();
        }
    }

    /// Bytes of the manifest that hold something.
    pub fn manifest_end(&self) -> u64 {
        self.compactor.as_ref().unwrap().manifest_end()
    }

    /// The catalog holds these tables.
    pub fn define(&self, tables: &[TableEntry]) {
        self.catalog.restore(tables).unwrap();
    }

    /// A stop in good order.
    pub fn close(mut self) {
        self.shared.close_queue();
        for _ in 0..1000 {
            self.prealloc.step();
            if self.committer.step() == Step::Done {
                break;
            }
        }
        self.control.stop();
        self.compactor.take().unwrap().run();
    }
}

pub fn segment(id: u64) -> PathBuf {
    arc_ingest::wal::files::segment_path(Path::new(DIR), id)
}
