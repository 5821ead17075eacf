//! The whole core against a store that loses replies, hangs, breaks off, forgets and is full; two copies of one log on one store; and
//! processes killed at any call of the store. One thread, simulated time: a seed is a run.
//!
//! `ARC_HOSTILE_SEEDS=from..to` runs other seeds than the usual ones, `ARC_HOSTILE_TRACE=1` prints what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::Int64Array;

use super::control::Control;
use super::lake::LakeCheck;
use super::name::Layout;
use super::plan::{Bounds, MAX_CHUNKS, MAX_SLICES, PlanSettings};
use super::worker::{Compactor, PATIENCE, Settings, Work, plan_object};
use crate::batch::{Column, TableBatch, ValidBatch, Values};
use crate::catalog::Catalog;
use crate::clock::{Clock, SharedClock};
use crate::config::Secret;
use crate::error::Reason;
use crate::format::manifest::PlanWriter;
use crate::format::payload::{PayloadView, encode};
use crate::idempotency::Keys;
use crate::metrics::{Metrics, StoreOp};
use crate::sink::object::sim_s3::{SimS3, WireFault, WireOp};
use crate::sink::object::{CreateOnly, Driver, Endpoint, ObjectSettings, Remote, S3Settings, Verify};
use crate::sink::sim::{Call, Fault, Op};
use crate::sink::{ObjectSink, SimStore, Sink};
use crate::types::{LogId, Sequence};
use crate::vfs::{Engine, SyncMode, Vfs};
use crate::wal::commit::{Committer, Step};
use crate::wal::memory::MemoryDisk;
use crate::wal::prealloc::Preallocator;
use crate::wal::recover::open;
use crate::wal::shared::LogSettings;
use crate::wal::{AppendError, Appender, Shared};

/// SplitMix64.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug)]
pub(super) struct TestClock {
    now_us: AtomicU64,
    rng: Mutex<Rng>,
}

impl TestClock {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { now_us: AtomicU64::new(1), rng: Mutex::new(Rng(seed)) })
    }

    pub(super) fn advance(&self, by: Duration) {
        self.now_us.fetch_add(by.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.now_us.load(Ordering::Relaxed))
    }
    fn wall_us(&self) -> i64 {
        1_700_000_000_000_000 + self.now_us.load(Ordering::Relaxed) as i64
    }
    fn random_u64(&self) -> u64 {
        self.rng.lock().unwrap().next()
    }
    fn random_id(&self) -> LogId {
        let (a, b) = (self.random_u64(), self.random_u64());
        LogId(((u128::from(a) << 64) | u128::from(b)).to_le_bytes())
    }
}

/// What a killed process unwinds with.
struct Killed;

#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) max_size: u64,
    pub(super) max_outputs: usize,
    pub(super) max_rows: u64,
    pub(super) compression: &'static str,
}

pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) control: Arc<Control>,
    committer: Committer,
    prealloc: Arc<Preallocator>,
    pub(super) compactor: Compactor,
    appender: Appender,
    catalog: Arc<Catalog>,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

/// One server: its disk and clock outlive its process.
pub(super) struct Server {
    pub(super) disk: MemoryDisk,
    pub(super) clock: Arc<TestClock>,
    pub(super) store: SimStore,
    /// The store is reached through this, by the client of a real one.
    pub(super) wire: Option<Wire>,
    shape: Shape,
    pub(super) core: Option<Core>,
    /// Sequence and id of what was acknowledged.
    acked: Vec<(Sequence, i64)>,
    /// Ids of what may be there or not.
    unknown: BTreeSet<i64>,
    released_seen: Sequence,
    /// Ids in the objects that were read before.
    read: BTreeMap<String, (Arc<[u8]>, BTreeSet<i64>)>,
    trace: bool,
}

const DIR: &str = "/log";

/// A store on the other side of a wire.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) s3: SimS3,
    pub(super) part_size: usize,
}

impl Wire {
    fn sink(&self, log: LogId, clock: SharedClock) -> ObjectSink {
        let s3 = S3Settings {
            bucket: "bucket".into(),
            endpoint: "http://127.0.0.1:1".into(),
            access_key: "key".into(),
            secret_key: Secret::new("secret"),
            ..S3Settings::default()
        };
        let timeout = Duration::from_secs(30);
        let remote = Remote::s3(&s3, &Endpoint { timeout, connector: Some(Arc::new(self.s3.clone())), ..Endpoint::default() }).unwrap();
        let settings = ObjectSettings {
            prefix: String::new(),
            part_size: self.part_size,
            parts_in_flight: 2,
            puts: 1,
            timeout,
            verify: Verify::Head,
            create_only: CreateOnly::Probe,
            race_keys: 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        ObjectSink::new(remote, settings, log, Driver::here(runtime), Metrics::new(), clock)
    }
}

/// A schedule of faults by seed, on the requests themselves.
fn wire_faults(seed: u64, m: Malice, foreign: Arc<Mutex<BTreeSet<String>>>) -> impl FnMut(&WireOp<'_>) -> Option<WireFault> + Send {
    let mut rng = Rng(seed ^ 0x317eu64 << 32);
    move |w| {
        if !rng.one_in(m.one_in) {
            return None;
        }
        if m.kills && rng.one_in(6) {
            resume_unwind(Box::new(Killed));
        }
        Some(match rng.below(14) {
            0 => WireFault::Answers(507, ""),
            1 => WireFault::Answers(403, ["AccessDenied", "RequestTimeTooSkewed", "QuotaExceeded"][rng.below(3) as usize]),
            2 => WireFault::Answers(400, "ExpiredToken"),
            3 => WireFault::Answers(503, "SlowDown"),
            4 => WireFault::AnswersAfter(500, "InternalError"),
            5 => WireFault::ErrorBody,
            6 => WireFault::ErrorBodyAfter,
            7 | 8 => WireFault::ReplyLost,
            9 | 10 => WireFault::Late,
            11 => WireFault::Hangs,
            12 => WireFault::CutAnswer,
            _ if m.vandals && w.op == StoreOp::Put && w.key.ends_with(".parquet") => {
                foreign.lock().unwrap().insert(w.key.to_owned());
                WireFault::KeepsHalf
            }
            _ => WireFault::Refused,
        })
    }
}

impl Server {
    pub(super) fn new(disk: MemoryDisk, seed: u64, store: SimStore, shape: Shape) -> Self {
        let trace = std::env::var_os("ARC_HOSTILE_TRACE").is_some();
        Self {
            disk,
            clock: TestClock::new(seed),
            store,
            wire: None,
            shape,
            core: None,
            acked: vec![],
            unknown: BTreeSet::new(),
            released_seen: 0,
            read: BTreeMap::new(),
            trace,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>12?} {}", self.clock.monotonic(), what());
        }
    }

    pub(super) fn start(&mut self) {
        assert!(self.core.is_none());
        let vfs: Arc<dyn Vfs> = Arc::new(self.disk.clone());
        let clock: SharedClock = self.clock.clone();
        let catalog = Catalog::new(100, 100);
        let settings = LogSettings {
            directory: DIR.into(),
            segment_data: 16 << 10,
            max_size: self.shape.max_size,
            reserve: 4096,
            pool: 2,
            engine: Engine::Pwrite,
            sync: SyncMode::Data,
            queue_timeout: Duration::from_secs(5),
            mark_delay: Duration::from_millis(50),
            queue_bytes: 1 << 20,
            set_aside_damage: true,
            limits: None,
        };
        let o = open(
            &vfs,
            settings,
            clock.clone(),
            Metrics::new(),
            &mut |v| catalog.fold(v.header.sequence, &PayloadView::parse(v.payload).unwrap()).unwrap(),
            &mut |_| {},
        )
        .unwrap();
        catalog.restore(o.manifest.state.tables.values()).unwrap();
        let control = Control::new(Arc::clone(&o.shared), false);
        let clock_of_store: SharedClock = self.clock.clone();
        let sink: Arc<dyn Sink> = match &self.wire {
            None => Arc::new(self.store.clone()),
            Some(w) => Arc::new(w.sink(o.shared.log, clock_of_store)),
        };
        let bounds =
            Bounds { bytes: 1 << 30, rows: self.shape.max_rows, outputs: self.shape.max_outputs, slices: MAX_SLICES, chunks: MAX_CHUNKS };
        let writer = PlanWriter {
            version: "test".into(),
            compression: self.shape.compression.into(),
            level: 1,
            row_group_rows: 1 << 20,
            layout: "hive".into(),
            encoding: Some("compatible".into()),
            row_group_bytes: Some(1 << 20),
        };
        let compact = Settings {
            trigger_size: 24 << 10,
            max_delay: Duration::from_secs(60),
            plan: PlanSettings { bounds, writer, layout: Layout::Hive },
            workers: 1,
            memory: 8 << 20,
            patience: PATIENCE,
        };
        let keys = Keys::new(Duration::from_secs(60), 10, clock);
        let mut compactor = Compactor::new(
            Arc::clone(&o.shared),
            Arc::clone(&control),
            vfs,
            sink,
            o.manifest,
            Arc::clone(&catalog),
            keys,
            Arc::clone(&o.prealloc),
            compact,
        );
        if self.wire.is_some() {
            compactor.check_first(LakeCheck { lake: "the store".into(), ..LakeCheck::default() });
        }
        self.say(|| format!("started, {:?}", o.shared.watermarks()));
        self.core = Some(Core {
            appender: Appender::new(Arc::clone(&o.shared)),
            shared: o.shared,
            control,
            committer: o.committer,
            prealloc: o.prealloc,
            compactor,
            catalog,
            _lock: o.lock,
        });
    }

    pub(super) fn kill(&mut self) {
        self.say(|| "killed".into());
        self.core = None;
    }

    pub(super) fn core(&mut self) -> &mut Core {
        self.core.as_mut().unwrap()
    }

    fn forked(&self) -> bool {
        self.core.as_ref().is_some_and(|c| c.control.forked().is_some())
    }

    /// One request with a row of this id for each of `tables`, in one hour.
    pub(super) fn append(&mut self, id: i64, tables: &[&str], hour: i64) {
        let c = self.core.as_mut().unwrap();
        let table = |t: &&str| TableBatch {
            table: (*t).into(),
            time: vec![hour * 3_600_000_000 + id],
            columns: vec![Column { name: "id".into(), tag: false, values: Values::Int64(vec![id]), validity: None, defines: false }],
        };
        let mut batch = ValidBatch::new("db".into(), tables.iter().map(table).collect()).unwrap();
        let reservation = c.catalog.try_resolve(&mut batch).unwrap().unwrap();
        let r = encode(&batch, None, reservation.defines(), self.clock.wall_us(), 1 << 20).unwrap();
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _in = rt.enter();
        let done = {
            let mut append = pin!(c.appender.append(r, None));
            let mut polls = 0;
            loop {
                if let Poll::Ready(x) = append.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    break x;
                }
                polls += 1;
                if polls > 20 {
                    // The client goes.
                    break Err(AppendError::NotStored(Reason::NotStored));
                }
                c.prealloc.step();
                c.committer.step();
            }
        };
        match done {
            Ok(sequence) => {
                reservation.settle(sequence);
                self.acked.push((sequence, id));
            }
            Err(AppendError::NotStored(_)) => {}
            Err(AppendError::UnknownOutcome) => {
                self.unknown.insert(id);
            }
        }
        self.say(|| format!("append {id} to {tables:?}: {done:?}"));
    }

    /// A step of everything; None when the process was killed within it.
    pub(super) fn step(&mut self) -> Option<Work> {
        let clock = Arc::clone(&self.clock);
        let c = self.core();
        c.prealloc.step();
        for _ in 0..8 {
            if c.committer.step() != Step::Worked {
                break;
            }
        }
        let Ok(work) = catch_unwind(AssertUnwindSafe(|| c.compactor.step())).map_err(|p| {
            if !p.is::<Killed>() {
                resume_unwind(p);
            }
        }) else {
            self.kill();
            return None;
        };
        if let Work::Wait(t) = work {
            clock.advance(t);
        }
        self.say(|| {
            let c = self.core.as_ref().unwrap();
            format!("{work:?} {:?} {:?}", c.shared.watermarks(), c.shared.last_error())
        });
        self.check_released();
        Some(work)
    }

    /// Nothing in the log is released before its rows are in the store, or in a side segment.
    fn check_released(&mut self) {
        let c = self.core.as_ref().unwrap();
        let w = c.shared.watermarks();
        if w.released <= self.released_seen {
            return;
        }
        self.released_seen = w.released;
        let held = c.control.deferred().from.unwrap_or(u64::MAX);
        for (name, bytes) in self.store.objects().into_iter().filter(|(n, _)| n.ends_with(".parquet")) {
            if self.read.get(&name).is_none_or(|(b, _)| !Arc::ptr_eq(b, &bytes)) {
                let ids = rows_of(&bytes).unwrap_or_default().into_iter().collect();
                self.read.insert(name, (bytes, ids));
            }
        }
        let there: BTreeSet<i64> = self.read.values().flat_map(|(_, ids)| ids.iter().copied()).collect();
        for (sequence, id) in self.acked.iter().filter(|(s, _)| *s <= w.released && *s < held) {
            assert!(there.contains(id), "sequence {sequence} (id {id}) is released and not in the store: {w:?}");
        }
    }

    /// Steps until everything acknowledged is committed and released; false when that does not come.
    pub(super) fn drain(&mut self) -> bool {
        // An output that has failed often is tried again after minutes.
        for _ in 0..12_000 {
            if self.core.is_none() {
                self.start();
            }
            let c = self.core();
            let target = c.shared.watermarks().durable;
            c.control.request(target);
            let w = c.shared.watermarks();
            if w.released >= target && c.control.deferred().outputs == 0 {
                return true;
            }
            if self.step() == Some(Work::Done) {
                return false;
            }
        }
        false
    }
}

/// The ids in one file; None when it is not whole.
fn rows_of(file: &[u8]) -> Option<Vec<i64>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(file)).ok()?.build().unwrap();
    let mut out = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        out.extend(batch.column_by_name("id").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().values());
    }
    Some(out)
}

/// Ids in the Parquet of the store, and in how many rows of each table.
pub(super) fn rows(store: &SimStore) -> BTreeMap<i64, BTreeMap<String, u32>> {
    let mut out: BTreeMap<i64, BTreeMap<String, u32>> = BTreeMap::new();
    for (name, bytes) in store.objects().iter().filter(|(n, _)| n.ends_with(".parquet")) {
        let table = name.split('/').nth(1).unwrap().to_owned();
        for id in rows_of(bytes).unwrap_or_else(|| panic!("{name} is not a whole file")) {
            *out.entry(id).or_default().entry(table.clone()).or_insert(0) += 1;
        }
    }
    out
}

/// What the requests were: id to tables.
type Sent = BTreeMap<i64, Vec<&'static str>>;

fn check_rows(store: &SimStore, sent: &Sent, must: &BTreeSet<i64>, may: &BTreeSet<i64>, seed: u64) {
    let there = rows(store);
    for id in must {
        assert!(there.contains_key(id), "seed {seed}: acknowledged id {id} is not in the store");
    }
    for (id, tables) in &there {
        assert!(must.contains(id) || may.contains(id), "seed {seed}: id {id} was never acknowledged and is in the store");
        let want: BTreeMap<String, u32> = sent[id].iter().map(|t| ((*t).to_owned(), 1)).collect();
        assert_eq!(*tables, want, "seed {seed}: rows of id {id}");
    }
}

const TABLES: [&[&str]; 5] = [&["a"], &["b"], &["a", "b"], &["a", "b", "c"], &["c"]];

/// How the store misbehaves in one run.
#[derive(Clone, Copy, Debug)]
struct Malice {
    /// One call in so many goes wrong.
    one_in: u64,
    kills: bool,
    /// Objects come and go, or break off: what somebody has to put right by hand.
    vandals: bool,
}

/// A schedule of faults by seed. Names of objects that are not ours go to `foreign`.
fn faults(seed: u64, m: Malice, foreign: Arc<Mutex<BTreeSet<String>>>) -> impl FnMut(&Op<'_>) -> Option<Fault> + Send {
    let mut rng = Rng(seed ^ 0xfau64 << 32);
    move |op| {
        if !rng.one_in(m.one_in) {
            return None;
        }
        if m.kills && rng.one_in(6) {
            resume_unwind(Box::new(Killed));
        }
        let put = matches!(op.call, Call::Publish | Call::PutSmall);
        Some(match rng.below(12) {
            0 => Fault::Fails(libc::ENOSPC),
            1 => Fault::Fails(libc::EACCES),
            2 | 3 if put => Fault::ReplyLost,
            4 | 5 if put => Fault::Late,
            6 if put => Fault::Hangs,
            2..=5 if op.call == Call::Describe => Fault::Unseen,
            7 if m.vandals && op.call == Call::Publish => {
                foreign.lock().unwrap().insert(op.name.to_owned());
                Fault::Short
            }
            8 if m.vandals && op.call == Call::Publish => {
                foreign.lock().unwrap().insert(op.name.to_owned());
                Fault::Foreign(b"not ours".to_vec())
            }
            // Without a plan of its own the lake is another one: `lake_tests`.
            9 if m.vandals && op.call == Call::Describe && !op.name.contains("/plan-") => Fault::Vanishes,
            10 => Fault::Fails(libc::ETIMEDOUT),
            _ => Fault::Fails(libc::EIO),
        })
    }
}

/// Somebody moves away what is not a whole file of ours.
fn clean(store: &SimStore, foreign: &Mutex<BTreeSet<String>>) {
    for name in std::mem::take(&mut *foreign.lock().unwrap()) {
        if store.get(&name).is_some_and(|b| rows_of(&b).is_none()) {
            store.remove(&name);
        }
    }
}

fn shape(rng: &mut Rng) -> Shape {
    Shape {
        max_size: if rng.one_in(2) { 256 << 10 } else { 64 << 20 },
        max_outputs: if rng.one_in(3) { 2 } else { 100 },
        max_rows: if rng.one_in(3) { 7 } else { 1 << 30 },
        compression: ["none", "zstd", "snappy"][rng.below(3) as usize],
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let Ok(s) = std::env::var("ARC_HOSTILE_SEEDS") else { return 0..usual };
    let (a, b) = s.split_once("..").expect("ARC_HOSTILE_SEEDS=from..to");
    a.parse().unwrap()..b.parse().unwrap()
}

/// One server, one store, one seed. Returns the number of calls of the store, for the comparison of two runs.
fn one_server(seed: u64, wired: bool) -> (u64, Vec<String>) {
    let mut rng = Rng(seed);
    let store = SimStore::new();
    let foreign = Arc::new(Mutex::new(BTreeSet::new()));
    if rng.one_in(3) {
        // Log and lake share a disk: a full lake spends the log's reserve.
        store.set_device(Some(1));
    }
    let shape = shape(&mut rng);
    let m = Malice { one_in: [3, 6, 12, 40][rng.below(4) as usize], kills: rng.one_in(2), vandals: rng.one_in(3) };
    let mut s = Server::new(MemoryDisk::default(), seed, store.clone(), shape);
    let stall = Arc::clone(&s.clock);
    let s3 = SimS3::new(store.clone());
    if wired {
        s.wire = Some(Wire { s3: s3.clone(), part_size: if rng.one_in(3) { 1 << 20 } else { 500 } });
        s3.set_overwrites(false, rng.one_in(2));
        s3.set_stall(move |t| stall.advance(t));
        s3.set_faults(wire_faults(seed, m, Arc::clone(&foreign)));
    } else {
        store.set_stall(move |t| stall.advance(t));
        store.set_faults(faults(seed, m, Arc::clone(&foreign)));
    }
    let mut sent = Sent::new();
    s.start();
    for id in 0..150 {
        if s.core.is_none() {
            s.start();
        }
        match rng.below(20) {
            0..=8 => {
                let tables = TABLES[rng.below(5) as usize];
                sent.insert(id, tables.to_vec());
                s.append(id, tables, rng.below(3) as i64);
            }
            9..=13 => {
                s.step();
            }
            14 => s.clock.advance(Duration::from_secs(rng.below(70))),
            15 | 16 => {
                let c = s.core();
                let target = c.shared.watermarks().durable;
                c.control.request(target);
                for _ in 0..rng.below(6) {
                    if s.core.is_some() {
                        s.step();
                    }
                }
            }
            17 if m.kills => s.kill(),
            18 => {
                let late = store.late().len() as u64;
                if late > 0 {
                    store.land(rng.below(late) as usize);
                } else if s3.late() > 0 {
                    s3.land(rng.below(s3.late() as u64) as usize);
                }
            }
            19 => clean(&store, &foreign),
            _ => {}
        }
    }
    store.clear_faults();
    s3.clear_faults();
    clean(&store, &foreign);
    let acked = |s: &Server| s.acked.iter().map(|(_, id)| *id).collect::<BTreeSet<_>>();
    assert!(s.drain(), "seed {seed}: not drained: {:?}", s.core.as_ref().and_then(|c| c.shared.last_error()));
    check_rows(&store, &sent, &acked(&s), &s.unknown, seed);
    while !store.late().is_empty() {
        store.land(0);
    }
    while s3.late() > 0 {
        s3.land(0);
    }
    s.kill();
    s.append_after_restart(&mut sent);
    assert!(s.drain(), "seed {seed}: not drained after a restart");
    check_rows(&store, &sent, &acked(&s), &s.unknown, seed);
    assert_eq!(s3.uploads(), Vec::<String>::new(), "seed {seed}: uploads are left");
    let probes = store.objects().into_keys().filter(|k| k.contains("/probe-")).count();
    assert_eq!(probes, 0, "seed {seed}: probes are left");
    assert_eq!(store.replaced(), Vec::<String>::new(), "seed {seed}: objects were replaced");
    (store.calls() + s3.requests(), store.objects().into_keys().collect())
}

impl Server {
    fn append_after_restart(&mut self, sent: &mut Sent) {
        self.start();
        sent.insert(1_000, vec!["a"]);
        self.append(1_000, &["a"], 0);
        assert_eq!(self.acked.last().map(|(_, id)| *id), Some(1_000));
    }
}

#[test]
fn every_acknowledged_row_is_in_a_hostile_store_exactly_once() {
    for seed in seeds(120) {
        one_server(seed, false);
    }
}

/// The same through the client of a real store, against what a wire and a store behind it can do.
#[test]
fn every_acknowledged_row_is_behind_a_hostile_wire_exactly_once() {
    for seed in seeds(40) {
        one_server(seed, true);
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in [3, 4, 5, 6] {
        for wired in [false, true] {
            assert_eq!(one_server(seed, wired), one_server(seed, wired), "seed {seed}, wired {wired}");
        }
    }
}

/// Two servers with copies of one log directory, and one store.
fn two_servers(seed: u64) -> (bool, bool) {
    let mut rng = Rng(seed);
    let store = SimStore::new();
    let foreign = Arc::new(Mutex::new(BTreeSet::new()));
    let m = Malice { one_in: [4, 12, 1000][rng.below(3) as usize], kills: rng.one_in(2), vandals: false };
    let shape = shape(&mut rng);
    let mut a = Server::new(MemoryDisk::default(), seed, store.clone(), shape.clone());
    store.set_faults(faults(seed, m, foreign));
    let mut sent = Sent::new();
    let mut id = 0;
    let mut request = |rng: &mut Rng, s: &mut Server| {
        if s.core.is_none() {
            s.start();
        }
        id += 1;
        let tables = TABLES[rng.below(5) as usize];
        sent.insert(id, tables.to_vec());
        s.append(id, tables, rng.below(2) as i64);
    };
    for _ in 0..rng.below(40) {
        request(&mut rng, &mut a);
        if rng.one_in(3) {
            let c = a.core();
            let target = c.shared.watermarks().durable;
            c.control.request(target);
        }
        if rng.one_in(2) {
            a.step();
        }
    }
    // Without its mark the last group is copied into each server's own next segment: two plans, one of which loses.
    if rng.one_in(2) {
        if a.core.is_none() {
            a.start();
        }
        a.clock.advance(Duration::from_secs(1));
        while a.core().committer.step() == Step::Worked {}
    }
    a.kill();
    // The copy is of a log at rest, but as it was left: with plans half carried out.
    let mut b = Server::new(a.disk.copy(), seed ^ 0xb0b, store.clone(), Shape { compression: "lz4", ..shape });
    let common: BTreeSet<i64> = a.acked.iter().map(|(_, id)| *id).collect();
    (b.acked, b.unknown, b.released_seen) = (a.acked.clone(), a.unknown.clone(), a.released_seen);
    let own = rng.below(4);
    for _ in 0..120 {
        let (s, bit) = if rng.one_in(2) { (&mut a, 1) } else { (&mut b, 2) };
        if s.core.is_none() {
            s.start();
        }
        match rng.below(8) {
            0 | 1 if own & bit != 0 => request(&mut rng, s),
            2 => {
                let c = s.core();
                let target = c.shared.watermarks().durable;
                c.control.request(target);
            }
            3 if !store.late().is_empty() => {
                store.land(0);
            }
            _ => {
                s.step();
            }
        }
    }
    store.clear_faults();
    let drained = [a.drain(), b.drain()];
    let forked = (a.forked(), b.forked());
    assert_eq!(drained, [!forked.0, !forked.1], "seed {seed}: neither drained nor forked");
    assert!(!(forked.0 && forked.1), "seed {seed}: both stopped");
    while !store.late().is_empty() {
        store.land(0);
    }
    // Rows of before the copy, and those of whoever ships; the other one's stay in its log.
    let mut must = common;
    let mut may = a.unknown.clone();
    may.extend(&b.unknown);
    for (s, forked) in [(&mut a, forked.0), (&mut b, forked.1)] {
        let ids: BTreeSet<i64> = s.acked.iter().map(|(_, id)| *id).collect();
        if forked {
            // A second life comes to the same end, and nothing has left its log that is not in the store.
            let before = store.objects();
            s.kill();
            s.start();
            assert!(!s.drain() && s.forked(), "seed {seed}: forked only once");
            assert!(before == store.objects(), "seed {seed}: a forked server has put something");
            let w = s.core().shared.watermarks();
            let plan = s.core().compactor.manifest.state.open_plan().map(|p| p.plan.plan).unwrap();
            assert!(store.get(&plan_object(s.core().shared.log, plan)).is_some());
            let shipped: BTreeSet<i64> = s.acked.iter().filter(|(q, _)| *q <= w.shipped).map(|(_, id)| *id).collect();
            must.extend(&shipped);
            may.extend(&ids);
        } else {
            must.extend(&ids);
        }
    }
    check_rows(&store, &sent, &must, &may, seed);
    forked
}

/// The plan objects fence: exactly one ships a plan; the other one adopts it when it is its own, else stops, ships and releases nothing.
#[test]
fn two_copies_of_a_log_on_one_store_double_nothing() {
    let (mut both, mut one) = (0, 0);
    for seed in seeds(100) {
        match two_servers(seed) {
            (false, false) => both += 1,
            _ => one += 1,
        }
    }
    if std::env::var_os("ARC_HOSTILE_SEEDS").is_none() {
        assert!(both > 10 && one > 10, "adopted in {both} runs, forked in {one}");
    }
}
