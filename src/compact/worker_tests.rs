//! The whole core driven step by step in one thread: committer, preallocator, compactor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::control::Control;
use super::lake::LakeCheck;
use super::name::Layout;
use super::plan::{Bounds, MAX_CHUNKS, MAX_SLICES, PlanSettings};
use super::quarantine;
use super::worker::{Compactor, PATIENCE, Settings, Work};
use crate::batch::{Column, TableBatch, ValidBatch, Values};
use crate::catalog::Catalog;
use crate::clock::SystemClock;
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::manifest::{Entry, PlanWriter};
use crate::format::payload::{PayloadView, encode};
use crate::format::record::RecordKind;
use crate::format::scan::{Found, Scanner};
use crate::idempotency::Keys;
use crate::metrics::Metrics;
use crate::sink::{LocalSink, ObjectInfo, Published, PutSmall, Sink, SinkError, SinkResult, Staged, Swept};
use crate::types::Sequence;
use crate::vfs::{Engine, OsVfs, SyncMode, Vfs};
use crate::wal::commit::{Committer, Step};
use crate::wal::files;
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::open;
use crate::wal::shared::LogSettings;
use crate::wal::{Appender, Shared};

pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) control: Arc<Control>,
    pub(super) committer: Committer,
    pub(super) prealloc: Arc<Preallocator>,
    pub(super) compactor: Compactor,
    appender: Appender,
    pub(super) catalog: Arc<Catalog>,
    pub(super) lake: PathBuf,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Core {
    pub(super) fn open(root: &Path) -> Self {
        Self::open_with(root, 64 << 20, |_| {})
    }

    /// `tamper` sees the manifest before the compactor does.
    pub(super) fn open_with(root: &Path, max_size: u64, tamper: impl FnOnce(&mut crate::wal::manifest::Manifest)) -> Self {
        let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
        let clock = SystemClock::shared();
        let catalog = Catalog::new(100, 100);
        let settings = LogSettings {
            directory: root.join("wal"),
            segment_data: 16 << 10,
            max_size,
            reserve: 4096,
            pool: 2,
            engine: Engine::Pwrite,
            sync: SyncMode::Data,
            queue_timeout: Duration::from_secs(5),
            mark_delay: Duration::ZERO,
            queue_bytes: 1 << 20,
            set_aside_damage: true,
            limits: None,
        };
        let mut o = open(
            &vfs,
            settings,
            clock.clone(),
            Metrics::new(),
            &mut |v| {
                let p = PayloadView::parse(v.payload).unwrap();
                let folded =
                    if v.behind_loss { catalog.fold_behind_loss(v.header.sequence, &p) } else { catalog.fold(v.header.sequence, &p) };
                folded.unwrap();
            },
            &mut |_| {},
        )
        .unwrap();
        catalog.restore(o.manifest.state.tables.values()).unwrap();
        tamper(&mut o.manifest);
        let lake = root.join("lake");
        let sink: Arc<dyn Sink> = Arc::new(LocalSink::open(&lake, o.shared.log).unwrap());
        let control = Control::new(Arc::clone(&o.shared), false);
        let compact = Settings {
            trigger_size: 1 << 30,
            max_delay: Duration::from_secs(3600),
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
            sink,
            o.manifest,
            Arc::clone(&catalog),
            Keys::new(Duration::from_secs(60), 10, clock),
            Arc::clone(&o.prealloc),
            compact,
        );
        Self {
            appender: Appender::new(Arc::clone(&o.shared)),
            shared: o.shared,
            control,
            committer: o.committer,
            prealloc: o.prealloc,
            compactor,
            catalog,
            lake,
            _lock: o.lock,
        }
    }

    /// Appends one row to each of `tables`, all at one time stamp.
    pub(super) fn append(&mut self, time: i64, tables: &[&str]) -> Sequence {
        self.append_batch(tables.iter().map(|t| TableBatch { table: (*t).into(), time: vec![time], columns: vec![] }).collect())
    }

    fn append_batch(&mut self, tables: Vec<TableBatch>) -> Sequence {
        let r = encode(&ValidBatch::new("db".into(), tables).unwrap(), None, true, 0, 1 << 20).unwrap();
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let appender = self.appender.clone();
        rt.block_on(async {
            let append = tokio::spawn(async move { appender.append(r, None).await });
            while !append.is_finished() {
                tokio::task::yield_now().await;
                self.prealloc.step();
                self.committer.step();
            }
            append.await.unwrap().unwrap()
        })
    }

    /// Steps everything until what is durable is shipped, or the compactor waits for something that does not come.
    pub(super) fn ship(&mut self) -> bool {
        let target = self.shared.watermarks().durable;
        self.control.request(target);
        self.shared.request_seal(target);
        for _ in 0..200 {
            self.prealloc.step();
            while self.committer.step() == Step::Worked {}
            let w = self.shared.watermarks();
            if w.shipped >= target && w.released >= target {
                return true;
            }
            if self.compactor.step() == Work::Done {
                return false;
            }
        }
        false
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        fn walk(d: &Path, out: &mut Vec<PathBuf>) {
            for e in std::fs::read_dir(d).into_iter().flatten().flatten() {
                if e.path().is_dir() { walk(&e.path(), out) } else { out.push(e.path()) }
            }
        }
        let mut out = Vec::new();
        walk(&self.lake, &mut out);
        out.retain(|p| p.extension().is_some_and(|e| e == "parquet"));
        out.sort();
        out
    }

    pub(super) fn rows(&self) -> u64 {
        let count = |p: &PathBuf| {
            let f = std::fs::File::open(p).unwrap();
            let m = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&f).unwrap();
            m.file_metadata().num_rows() as u64
        };
        self.files().iter().map(count).sum()
    }
}

#[test]
fn rows_are_shipped_and_the_log_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for i in 0..300 {
        c.append(i * 1_000_000, &["a", "b"]);
    }
    assert!(c.shared.watermarks().sealed > 0, "several segments");
    assert!(c.ship());
    assert_eq!((c.files().len(), c.rows()), (2, 600));
    let left: Vec<_> = OsVfs.list(&dir.path().join("wal")).unwrap().into_iter().filter(|e| e.name.starts_with("seg-")).collect();
    assert_eq!(left.len(), 1, "only the active segment is left");
    let (_, age) = c.shared.backlog();
    assert_eq!(age, None);
    drop(c);
    let mut c = Core::open(dir.path());
    assert!(c.ship());
    assert_eq!(c.rows(), 600, "nothing is shipped twice");
}

/// A foreign object under the name of one output stops that output; the other is committed, nothing is released, and moving
/// the object away lets the plan go on.
#[test]
fn a_foreign_object_stops_its_output_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a", "b"]);
    let log = c.shared.log;
    let blocker =
        dir.path().join(format!("lake/db/a/date=1970-01-01/hour=00/{log}-00000000000000000001-00000000000000000001-0000.parquet"));
    std::fs::create_dir_all(blocker.parent().unwrap()).unwrap();
    std::fs::write(&blocker, b"not ours").unwrap();
    assert!(!c.ship());
    assert_eq!(c.files().len(), 2, "the foreign object and table b's file");
    assert_eq!((c.shared.watermarks().shipped, c.shared.watermarks().released), (0, 0));
    assert!(c.shared.last_error().unwrap().contains("another object has this name"));
    let intents: Vec<usize> = c.compactor.manifest.state.plans[&1].intents.values().map(Vec::len).collect();
    assert_eq!(intents, [1, 1], "two hundred attempts, one intent each");
    assert_eq!(std::fs::read(&blocker).unwrap(), b"not ours");
    std::fs::remove_file(&blocker).unwrap();
    assert!(c.ship());
    assert_eq!(c.rows(), 2);
}

/// An output that cannot be published while the log fills up moves aside: the others are released, the watermarks go on, a
/// flush does not call it committed; and it is published under its planned name when it can be, also by a later process.
#[test]
fn a_stopped_output_that_pins_the_log_moves_to_a_side_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    let mut rows = 0;
    let blocker = dir.path().join("lake/db/a");
    std::fs::create_dir_all(dir.path().join("lake/db")).unwrap();
    // A file where the table's directory would be.
    std::fs::write(&blocker, b"").unwrap();
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a", "b"]);
        rows += 1;
    }
    assert!(c.ship(), "released although table a cannot be published: {:?}", c.shared.last_error());
    assert_eq!(c.rows(), rows as u64, "table b's rows");
    let d = c.control.deferred();
    assert_eq!((d.outputs, d.from), (1, Some(1)));
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let flushed = rt.block_on(c.control.flush(Duration::from_millis(20)));
    assert!(matches!(flushed, super::control::Shipped::TimedOut { through: 0, .. }), "{flushed:?}");
    drop(c);
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    assert_eq!(c.control.deferred().outputs, 1, "remembered");
    std::fs::remove_file(&blocker).unwrap();
    c.compactor.step();
    c.compactor.step();
    assert_eq!(c.control.deferred().outputs, 0, "{:?}", c.shared.last_error());
    assert_eq!((c.rows(), c.files().len()), (2 * rows as u64, 2));
    assert!(OsVfs.list(&dir.path().join("wal/side")).unwrap().is_empty());
    drop(c);
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    assert!(c.ship());
    assert_eq!(c.rows(), 2 * rows as u64);
}

/// A lake behind something that may be away. Plan objects get through.
pub(super) struct Away {
    pub(super) lake: Arc<dyn Sink>,
    pub(super) away: Arc<AtomicBool>,
    pub(super) staged: Arc<AtomicU32>,
}

struct AwayStaged(Box<dyn Staged>, Arc<AtomicBool>);

fn gone<T>(away: &AtomicBool, then: impl FnOnce() -> SinkResult<T>) -> SinkResult<T> {
    if !away.load(Ordering::Relaxed) {
        return then();
    }
    Err(SinkError::from_io("the store", std::io::Error::from_raw_os_error(libc::ETIMEDOUT)))
}

impl std::io::Write for AwayStaged {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        self.0.write(b)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Staged for AwayStaged {
    fn seal(&mut self) -> SinkResult<()> {
        self.0.seal()
    }
    fn publish(self: Box<Self>) -> SinkResult<Published> {
        let Self(staged, away) = *self;
        gone(&away, || staged.publish())
    }
}

impl Sink for Away {
    fn stage(&self, name: &str) -> SinkResult<Box<dyn Staged>> {
        self.staged.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(AwayStaged(self.lake.stage(name)?, Arc::clone(&self.away))))
    }
    fn describe(&self, name: &str) -> SinkResult<Option<ObjectInfo>> {
        gone(&self.away, || self.lake.describe(name))
    }
    fn holds_any(&self, directory: &str) -> SinkResult<bool> {
        gone(&self.away, || self.lake.holds_any(directory))
    }
    fn confirm(&self, name: &str) -> SinkResult<()> {
        self.lake.confirm(name)
    }
    fn put_small(&self, name: &str, bytes: &[u8]) -> SinkResult<PutSmall> {
        self.lake.put_small(name, bytes)
    }
    fn device(&self) -> Option<u64> {
        None
    }
    fn sweep(&self) -> SinkResult<Swept> {
        self.lake.sweep()
    }
    fn ready(&self) -> SinkResult<()> {
        gone(&self.away, || Ok(()))
    }
}

/// With the store away nothing is built over and over, and no records move aside: that is for an output that cannot be published.
#[test]
fn a_store_that_is_away_is_waited_for_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    let (away, staged) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    c.compactor.sink = Arc::new(Away { lake: Arc::clone(&c.compactor.sink), away: Arc::clone(&away), staged: Arc::clone(&staged) });
    let mut rows = 0;
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a", "b", "c"]);
        rows += 1;
    }
    assert!(!c.ship());
    assert_eq!(staged.load(Ordering::Relaxed), 1, "two hundred steps, one output built");
    assert_eq!((c.control.deferred().outputs, c.files().len()), (0, 0));
    assert!(c.shared.last_error().unwrap().contains("the store"), "{:?}", c.shared.last_error());
    away.store(false, Ordering::Relaxed);
    assert!(c.ship());
    assert_eq!(c.rows(), 3 * rows as u64);
}

/// A plan object that is no plan, half of one for instance, is damage: nothing is shipped over it, and it is not taken for another
/// copy's history, which would end the process.
#[test]
fn half_a_plan_object_is_damage_and_no_fork() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a"]);
    let object = dir.path().join("lake").join(super::worker::plan_object(c.shared.log, 1));
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(&object, b"{\"plan\":1,\"inp").unwrap();
    assert!(!c.ship());
    assert_eq!((c.control.forked(), c.files().len()), (None, 0));
    assert!(c.shared.last_error().unwrap().contains("is not a plan"), "{:?}", c.shared.last_error());
    c.append(1, &["a"]);
    std::fs::remove_file(&object).unwrap();
    assert!(c.ship());
    assert_eq!(c.rows(), 2);
}

/// A lake that could not be asked at the start is asked before anything is shipped; the wrong one gets nothing.
#[test]
fn the_wrong_lake_is_found_before_anything_is_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a"]);
    let check = |name: &str| LakeCheck { known_object: Some(name.into()), lake: "the lake".into(), ..LakeCheck::default() };
    let away = Arc::new(AtomicBool::new(true));
    let staged = Arc::new(AtomicU32::new(0));
    let lake = std::mem::replace(&mut c.compactor.sink, Arc::new(crate::sink::SimStore::new()));
    c.compactor.sink = Arc::new(Away { lake, away: Arc::clone(&away), staged });
    c.compactor.check_first(check("_arc/x/plan-7"));
    assert!(!c.ship());
    assert_eq!((c.control.forked(), c.files().len()), (None, 0), "it is asked again and again");
    away.store(false, Ordering::Relaxed);
    assert!(!c.ship());
    assert!(c.control.forked().unwrap().contains("does not hold _arc/x/plan-7"), "{:?}", c.control.forked());
    assert!(!dir.path().join("lake/_arc").exists() && c.files().is_empty());
    drop(c);
    let mut c = Core::open(dir.path());
    std::fs::create_dir_all(dir.path().join("lake/_arc/x")).unwrap();
    std::fs::write(dir.path().join("lake/_arc/x/plan-7"), b"{}").unwrap();
    c.compactor.check_first(check("_arc/x/plan-7"));
    assert!(c.ship());
    assert_eq!(c.rows(), 1);
}

fn flip(path: &Path, at: u64) {
    let f = OsVfs.open(path, true).unwrap();
    let mut b = [0];
    f.read_at(&mut b, at).unwrap();
    f.write_all_at(&[&[b[0] ^ 1]], at).unwrap();
}

/// Flips a bit in the payload of the record with this sequence, wherever it stands in a file in `dir`; the place.
fn rot(dir: &Path, sequence: Sequence) -> (PathBuf, u64) {
    for e in OsVfs.list(dir).unwrap().into_iter().filter(|e| e.name.ends_with(".wal")) {
        let path = dir.join(&e.name);
        let bytes = crate::vfs::read_all(&*OsVfs.open(&path, false).unwrap()).unwrap();
        let (h, _) = FileHeader::parse_file(&bytes, FileKind::Segment).unwrap();
        for x in Scanner::new(&bytes, h.salt, crate::limits::FILE_HEADER_BYTES as u64, bytes.len() as u64) {
            if let Found::Record(r) = x
                && (r.kind, r.sequence) == (RecordKind::Write, sequence)
            {
                flip(&path, r.offset + 66);
                return (path, r.offset + 66);
            }
        }
    }
    panic!("no record {sequence} in {}", dir.display());
}

/// A record that rots in a side segment is lost to the lake, reported, its bytes kept; the others of the output are published.
#[test]
fn rot_in_a_side_segment_costs_only_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    let mut rows = 0;
    let blocker = dir.path().join("lake/db/a");
    std::fs::create_dir_all(dir.path().join("lake/db")).unwrap();
    std::fs::write(&blocker, b"").unwrap();
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a"]);
        rows += 1;
    }
    assert!(c.ship(), "{:?}", c.shared.last_error());
    drop(c);
    rot(&dir.path().join("wal/side"), 3);
    std::fs::remove_file(&blocker).unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    for _ in 0..10 {
        c.compactor.step();
    }
    assert_eq!((c.control.deferred().outputs, c.rows()), (0, rows as u64 - 1), "{:?}", c.shared.last_error());
    let seen = &c.compactor.manifest.state.damage;
    assert!(matches!(&seen[..], [Entry::Damage { segment: 0, label, .. }] if label.starts_with("damaged_side out-")), "{seen:?}");
    let kept = OsVfs.list(&dir.path().join("wal/side")).unwrap();
    assert!(matches!(&kept[..], [e] if e.name.ends_with("-damaged.bin")), "{kept:?}");
}

/// The records of a side segment vouch for themselves.
#[test]
fn a_side_segment_that_has_lost_its_headers_still_gives_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    let mut rows = 0;
    let blocker = dir.path().join("lake/db/a");
    std::fs::create_dir_all(dir.path().join("lake/db")).unwrap();
    std::fs::write(&blocker, b"").unwrap();
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a"]);
        rows += 1;
    }
    assert!(c.ship(), "{:?}", c.shared.last_error());
    let side = dir.path().join("wal/side");
    let path = side.join(&OsVfs.list(&side).unwrap()[0].name);
    OsVfs.open(&path, true).unwrap().write_all_at(&[&[0; crate::limits::FILE_HEADER_BYTES]], 0).unwrap();
    std::fs::remove_file(&blocker).unwrap();
    drop(c);
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    for _ in 0..10 {
        c.compactor.step();
    }
    assert_eq!((c.control.deferred().outputs, c.rows()), (0, rows as u64), "{:?}", c.shared.last_error());
    assert_eq!(c.control.damage().len(), 1);
}

/// The plan was made without it: it is set aside whole, and neither lost nor in a file that others count on.
#[test]
fn a_record_that_can_be_read_again_after_its_plan_was_made_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for i in 0..3 {
        c.append(i, &["a"]);
    }
    let (path, at) = rot(&dir.path().join("wal"), 2);
    c.control.request(3);
    c.shared.request_seal(3);
    while c.control.plans().1.is_none() {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
    }
    drop(c);
    flip(&path, at);
    let mut c = Core::open(dir.path());
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!((c.rows(), c.control.quarantined().0), (2, 1));
    let q = quarantine::list(&OsVfs, &dir.path().join("wal")).unwrap();
    assert_eq!((q[0].entry.sequence, q[0].entry.rows), (2, 1));
}

/// A record that rots between the plan and its moving aside is reported once and does not hold up the rest for ever.
#[test]
fn an_output_that_lost_a_record_before_it_was_deferred_is_published_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    let mut rows = 0;
    let blocker = dir.path().join("lake/db/a");
    std::fs::create_dir_all(dir.path().join("lake/db")).unwrap();
    std::fs::write(&blocker, b"").unwrap();
    while c.shared.backlog().0 <= 64 << 10 {
        c.append(rows, &["a"]);
        rows += 1;
    }
    c.control.request(rows as u64);
    c.shared.request_seal(rows as u64);
    while c.control.plans().1.is_none() {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
    }
    drop(c);
    rot(&dir.path().join("wal"), 3);
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(c.control.deferred().outputs, 1);
    std::fs::remove_file(&blocker).unwrap();
    drop(c);
    let mut c = Core::open_with(dir.path(), 256 << 10, |_| {});
    for _ in 0..10 {
        c.compactor.step();
    }
    assert_eq!((c.control.deferred().outputs, c.rows()), (0, rows as u64 - 1), "{:?}", c.shared.last_error());
}

/// The record that widened a column rots after the plan was made: which output a slice belongs to is told by its sequence.
#[test]
fn a_plan_whose_widening_record_has_rotted_still_ships() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    let column = |values: Values| Column { name: "v".into(), tag: false, values, validity: None, defines: true };
    let row = |time: i64, columns: Vec<Column>| vec![TableBatch { table: "a".into(), time: vec![time], columns }];
    let batches =
        [row(0, vec![column(Values::Int64(vec![1]))]), row(1, vec![column(Values::Float64(vec![0.5]))]), row(2, vec![]), row(3, vec![])];
    for (i, b) in batches.into_iter().enumerate() {
        let sequence = c.append_batch(b.clone());
        assert_eq!(sequence, i as u64 + 1);
        let r = encode(&ValidBatch::new("db".into(), b).unwrap(), None, true, 0, 1 << 20).unwrap();
        c.catalog.fold(sequence, &PayloadView::parse(&r.bytes()[64..64 + r.payload_len() as usize]).unwrap()).unwrap();
    }
    c.control.request(4);
    c.shared.request_seal(4);
    while c.control.plans().1.is_none() {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
    }
    drop(c);
    rot(&dir.path().join("wal"), 2);
    let mut c = Core::open(dir.path());
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(c.rows(), 3);
    assert_eq!(c.control.quarantined().0, 0);
}

/// What goes bad between sealing and planning is lost to the lake, but not without its bytes and a record of it.
#[test]
fn rot_that_the_compactor_finds_is_set_aside_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for i in 0..300 {
        c.append(i * 1_000_000, &["a"]);
    }
    let first = crate::wal::shared::lock(&c.shared.segments).sealed.front().unwrap().path.clone();
    let f = OsVfs.open(&first, true).unwrap();
    f.write_all_at(&[b"rotten"], crate::limits::FILE_HEADER_BYTES as u64 + 70).unwrap();
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!(c.rows(), 299);
    let seen = |c: &Core| c.compactor.manifest.state.damage.clone();
    assert!(matches!(seen(&c)[..], [Entry::Damage { segment: 1, first_missing: 1, last_missing: 1, .. }]), "{:?}", seen(&c));
    assert_eq!(c.control.damage(), seen(&c), "what status and readiness say");
    let side = OsVfs.list(&dir.path().join("wal/side")).unwrap();
    // The place, and the whole segment, which is released.
    assert_eq!(side.len(), 2, "{side:?}");
    assert!(side.iter().any(|e| e.name.ends_with("-damaged.bin")) && side.iter().any(|e| files::parse_evidence(&e.name).is_some()));
    drop(c);
    assert_eq!(seen(&Core::open(dir.path())).len(), 1, "remembered");
}

/// An object that cannot be looked at, under a recorded intent, stops its own output only.
#[test]
fn an_intent_whose_object_cannot_be_read_stops_its_output_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a", "b"]);
    c.control.request(1);
    c.shared.request_seal(1);
    for _ in 0..50 {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
        if c.control.plans().1.is_some() {
            break;
        }
    }
    assert_eq!((c.control.plans().1, c.files().len()), (Some(1), 0));
    drop(c);
    let blocker = dir.path().join("lake/db/a");
    std::fs::create_dir_all(dir.path().join("lake/db")).unwrap();
    std::fs::write(&blocker, b"").unwrap();
    let mut c = Core::open_with(dir.path(), 64 << 20, |m| {
        let i = Entry::Intent { plan: 1, output: 0, length: 1, sha256: "00".into(), rows: 1, set_aside: vec![] };
        m.append(vec![i], &[]).unwrap();
    });
    assert!(!c.ship());
    assert_eq!(c.files().len(), 1, "table b is published: {:?}", c.shared.last_error());
    std::fs::remove_file(&blocker).unwrap();
    assert!(c.ship());
    assert_eq!(c.rows(), 2);
}

/// A record at which the process ended again and again is set aside; its bytes and the reason are in the quarantine, the rest is
/// shipped. Fewer such ends condemn nothing.
#[test]
fn a_record_that_keeps_ending_the_process_is_set_aside() {
    for (suspicions, shipped_rows) in [(2, 3), (3, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let mut c = Core::open(dir.path());
        for i in 0..3 {
            c.append(i, &["a"]);
        }
        c.control.request(3);
        c.shared.request_seal(3);
        // As far as the plan, no further.
        for _ in 0..50 {
            c.prealloc.step();
            while c.committer.step() == Step::Worked {}
            c.compactor.step();
            if c.control.plans().1.is_some() {
                break;
            }
        }
        assert_eq!(c.control.plans().1, Some(1));
        drop(c);
        let mut c = Core::open_with(dir.path(), 64 << 20, |m| {
            let mut e: Vec<Entry> = (0..4).map(|_| Entry::Attempt { plan: 1 }).collect();
            e.extend((0..suspicions).map(|_| Entry::Suspect { plan: 1, output: 0, sequence: 2 }));
            m.append(e, &[]).unwrap();
        });
        assert!(c.ship());
        assert_eq!(c.rows(), shipped_rows);
        let q = quarantine::list(&OsVfs, &dir.path().join("wal")).unwrap();
        assert_eq!(q.len() as u64, 3 - shipped_rows);
        assert_eq!(c.control.quarantined().0, 3 - shipped_rows);
        if let Some(q) = q.first() {
            assert_eq!((q.entry.sequence, q.entry.rows, q.entry.table.as_str()), (2, 1, "a"));
            let (_, record) = quarantine::read(&OsVfs, &q.path).unwrap();
            let p = PayloadView::parse(&record[64..64 + p_len(&record)]).unwrap();
            assert_eq!(p.to_batch().unwrap().tables()[0].time, vec![1]);
        }
    }
}

/// Changes the payload of the record with this sequence in a segment of `dir`, and its CRCs with it: a record that another writer made.
fn forge(dir: &Path, sequence: Sequence, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    for e in OsVfs.list(dir).unwrap().into_iter().filter(|e| e.name.ends_with(".wal")) {
        let f = OsVfs.open(&dir.join(&e.name), true).unwrap();
        let mut bytes = crate::vfs::read_all(&*f).unwrap();
        let (h, _) = FileHeader::parse_file(&bytes, FileKind::Segment).unwrap();
        let found = Scanner::new(&bytes, h.salt, crate::limits::FILE_HEADER_BYTES as u64, bytes.len() as u64).find_map(|x| match x {
            Found::Record(r) if (r.kind, r.sequence) == (RecordKind::Write, sequence) => Some(r),
            _ => None,
        });
        let Some(r) = found else { continue };
        let (from, payload) = (r.offset as usize, r.offset as usize + 64);
        let to = payload + r.payload_len as usize;
        change(&mut bytes[payload..to]);
        let payload_crc = crc32fast::hash(&bytes[payload..to]);
        bytes[from..payload].copy_from_slice(&crate::format::record::RecordHeader { payload_crc, ..r }.encode());
        f.write_all_at(&[&bytes[from..to]], r.offset).unwrap();
        return bytes[from..to].to_vec();
    }
    panic!("no record {sequence} in {}", dir.display());
}

/// INVARIANT(valid-batch) does not hold of what these records hold: that is a bug somewhere, and costs nothing but them.
#[test]
fn what_can_be_stored_and_not_be_built_is_kept_and_the_rest_is_shipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    for i in 0..5 {
        c.append(i, &["a"]);
    }
    c.append(5, &["alone"]);
    let wal = dir.path().join("wal");
    let body = |p: &[u8]| PayloadView::parse(p).unwrap().index.tables[0].bytes;
    let spoil = |p: &mut [u8]| {
        let at = p.len() - body(p);
        p[at] = 3;
    };
    // No payload version; an integer width of 3, in the middle of a file and in all of another.
    let kept = [forge(&wal, 2, |p| p[0] = 9), forge(&wal, 4, spoil), forge(&wal, 6, spoil)];
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!((c.rows(), c.files().len()), (3, 1), "{:?}", c.files());
    let q = quarantine::list(&OsVfs, &wal).unwrap();
    let found: Vec<_> = q.iter().map(|q| (q.entry.sequence, q.entry.table.as_str(), q.entry.rows)).collect();
    assert_eq!(found, [(2, "unknown", 0), (4, "a", 1), (6, "alone", 1)]);
    for (q, record) in q.iter().zip(&kept) {
        assert!(!q.entry.reason.is_empty());
        assert_eq!(&quarantine::read(&OsVfs, &q.path).unwrap().1, record, "{:?}", q.entry);
    }
    assert_eq!(c.control.quarantined().0, 3);
    let plan = &c.compactor.manifest.state.plans[&1];
    let commits: Vec<_> = plan.commits.values().map(|f| (f.rows, f.length > 0, f.set_aside.len())).collect();
    assert_eq!(commits, [(3, true, 1), (0, false, 1)]);
    assert!(plan.shipped && c.shared.watermarks().released == 6);
}

/// A build that was left in good order is no evidence against its records.
#[test]
fn a_build_that_a_stop_ends_is_no_unclean_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    c.append(0, &["a"]);
    c.control.request(1);
    c.shared.request_seal(1);
    while c.control.plans().1.is_none() {
        c.prealloc.step();
        while c.committer.step() == Step::Worked {}
        c.compactor.step();
    }
    let attempts = |c: &Core| c.compactor.manifest.state.plans[&1].attempts;
    assert_eq!(attempts(&c), 1);
    c.control.stop();
    c.compactor.step();
    assert_eq!((attempts(&c), c.files().len()), (0, 0));
    drop(c);
    let mut c = Core::open(dir.path());
    assert_eq!(attempts(&c), 0);
    assert!(c.ship());
    assert_eq!(c.rows(), 1);
}

/// What a long manifest holds beyond its state goes with a release; what it says stays.
#[test]
fn a_manifest_that_has_grown_is_rewritten_with_a_release() {
    let dir = tempfile::tempdir().unwrap();
    let key = crate::format::payload::KeyEntry { id: [1; 16], body: [2; 32], running_ms: 3, status: 204 };
    let mut c = Core::open_with(dir.path(), 64 << 20, |m| m.append(vec![], &vec![(1, key); 400_000]).unwrap());
    let (before, long) = (c.compactor.manifest.path().to_owned(), c.compactor.manifest.allocated());
    c.append(0, &["a"]);
    assert!(c.ship());
    assert!(!before.exists() && c.compactor.manifest.allocated() < long / 4);
    c.append(1, &["a"]);
    assert!(c.ship());
    drop(c);
    let mut c = Core::open(dir.path());
    assert_eq!((c.shared.watermarks().shipped, c.compactor.manifest.state.next_plan), (2, 3));
    assert!(c.ship());
    assert_eq!(c.rows(), 2);
}

/// What a kill loop found: a process that ends before it tries anything must not count against the record of the end before it.
#[test]
fn an_unclean_end_counts_once_against_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let probe = super::builder::Probe::open(&OsVfs, dir.path()).unwrap();
    probe.write(1, 0, 17);
    assert_eq!(probe.take(), Some((1, 0, 17)));
    let later = super::builder::Probe::open(&OsVfs, dir.path()).unwrap();
    assert_eq!(later.take(), Some((0, 0, 0)), "plans are numbered from 1: this names none");
}

fn p_len(record: &[u8]) -> usize {
    crate::format::record::RecordHeader::parse(record).unwrap().payload_len as usize
}
