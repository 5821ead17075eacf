//! A simulated machine with the whole core on it, one thread, and a scheduler that decides who goes next.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_ingest::clock::{Clock, SharedClock, SimClock, SplitMix64};
use arc_ingest::compact::Layout;
use arc_ingest::compact::plan::{Bounds as PlanBounds, MAX_CHUNKS, MAX_SLICES, PlanSettings};
use arc_ingest::compact::worker::{Compactor, PATIENCE, Settings as CompactSettings, Work};
use arc_ingest::config::Secret;
use arc_ingest::decode::Nested;
use arc_ingest::decode::line_protocol::Precision;
use arc_ingest::decode::table::Bounds;
use arc_ingest::error::{Reason, RequestError};
use arc_ingest::format::manifest::PlanWriter;
use arc_ingest::http::engine::{Engine, Running, WriteSettings};
use arc_ingest::http::{Backend, Dialect, LineRequest, RequestId, WriteRequest};
use arc_ingest::metrics::Metrics;
use arc_ingest::node::{self, LeftBehind, Node, NodeError, NodeSettings};
use arc_ingest::sink::object::sim_s3::SimS3;
use arc_ingest::sink::object::{CreateOnly, Driver, Endpoint, ObjectSettings, Remote, S3Settings, Verify};
use arc_ingest::sink::sim::SimStore;
use arc_ingest::sink::{ObjectSink, Sink};
use arc_ingest::types::LogId;
use arc_ingest::vfs::sim::{Rates, SimDisk};
use arc_ingest::vfs::{Engine as IoEngine, SyncMode};
use arc_ingest::wal::commit::{Committer, Step};
use arc_ingest::wal::prealloc::Preallocator;
use arc_ingest::wal::recover::OpenError;
use arc_ingest::wal::shared::LogSettings;
use arc_ingest::wal::{Appender, Shared, files};

use super::model::{DATABASE, Fate, Model, Request, Traffic};
use super::next::{Next, PATIENT};

mod checks;
mod faults;
mod local;

use checks::is_announced;

pub const WAL: &str = "/data/wal";
/// 2026-01-02.
const START_US: i64 = 1_767_312_000_000_000;

/// Sizes and limits of a simulated server.
#[derive(Clone, Debug)]
pub struct Machine {
    pub segment_data: u64,
    pub max_size: u64,
    pub reserve: u64,
    pub pool: usize,
    pub engine: IoEngine,
    pub trigger_size: u64,
    pub max_delay: Duration,
    pub max_outputs: usize,
    pub traffic: Traffic,
}

impl Machine {
    pub fn small(engine: IoEngine) -> Self {
        Self {
            segment_data: 32 << 10,
            max_size: 1 << 20,
            reserve: 64 << 10,
            pool: 2,
            engine,
            trigger_size: 64 << 10,
            max_delay: Duration::from_secs(10),
            max_outputs: 8,
            traffic: Traffic { tables: 3, most_rows: 12, hours: 3, keyed: 400, odd_types: 60, large: 10, lines: 0 },
        }
    }

    fn node(&self) -> NodeSettings {
        NodeSettings {
            log: LogSettings {
                directory: WAL.into(),
                segment_data: self.segment_data,
                max_size: self.max_size,
                reserve: self.reserve,
                pool: self.pool,
                engine: self.engine,
                sync: SyncMode::Data,
                queue_timeout: Duration::from_secs(2),
                mark_delay: Duration::from_millis(50),
                queue_bytes: 4 << 20,
                set_aside_damage: true,
                limits: None,
            },
            compact: CompactSettings {
                trigger_size: self.trigger_size,
                max_delay: self.max_delay,
                plan: PlanSettings {
                    bounds: PlanBounds {
                        bytes: self.trigger_size,
                        rows: 100_000,
                        outputs: self.max_outputs,
                        slices: MAX_SLICES,
                        chunks: MAX_CHUNKS,
                    },
                    writer: PlanWriter {
                        version: "sim".into(),
                        compression: "none".into(),
                        level: 1,
                        row_group_rows: 1 << 16,
                        layout: "hive".into(),
                        encoding: Some("compatible".into()),
                        row_group_bytes: Some(1 << 20),
                    },
                    layout: Layout::Hive,
                },
                workers: 1,
                memory: 8 << 20,
                patience: PATIENCE,
            },
            paused: false,
            max_columns: 100,
            max_tables: 100,
            max_total_columns: 10_000,
            max_name_bytes: 1 << 20,
            idempotency_window: Duration::from_secs(30 * 24 * 3600),
            idempotency_max_keys: 1_000_000,
            lake: "the simulated store".into(),
            accept_new_lake: false,
            require_existing: false,
            host: Some("sim".into()),
        }
    }
}

/// An answer that a client heard while the machine ran.
struct Answer {
    request: usize,
    outcome: Result<Outcome, RequestError>,
}

/// A request that was answered for what it is.
#[derive(Debug)]
struct Outcome {
    /// None: nothing is stored.
    sequence: Option<u64>,
    replayed: bool,
    status: u16,
    /// Lines that were refused; None when they were too many to be named.
    refused: Option<BTreeSet<u64>>,
}

/// Sends a request as its client does.
async fn write(engine: &Engine, key: Option<String>, body: Vec<u8>, dialect: Option<Dialect>) -> Result<Outcome, RequestError> {
    let (database, request_id) = (DATABASE.to_owned(), RequestId::new("sim").unwrap());
    let Some(dialect) = dialect else {
        let request = WriteRequest { database, time_unit: None, idempotency_key: key, body: body.into(), layers: 1, request_id };
        let w = engine.write_msgpack(request).await?;
        return Ok(Outcome { sequence: w.sequence, replayed: w.replayed, status: 204, refused: None });
    };
    let precision = Precision::Micros;
    let request =
        LineRequest { database, dialect, precision, accept_partial: true, idempotency_key: key, body: body.into(), layers: 1, request_id };
    let l = engine.write_lines(request).await?;
    assert_eq!(l.status == 204, l.report.bad == 0);
    let named: BTreeSet<u64> = l.report.details.iter().map(|d| d.line).collect();
    let refused = (l.report.bad as usize == named.len()).then_some(named);
    Ok(Outcome { sequence: l.sequence, replayed: l.replayed, status: l.status, refused })
}

fn parts(q: &Request) -> (Option<String>, Vec<u8>, Option<Dialect>) {
    (q.key.clone(), q.body.clone(), q.lines.as_ref().map(|l| l.dialect))
}

/// How a boot ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Power was cut, or a mapped page could not be read.
    Off,
    /// The process ended by itself, after a failed sync.
    Poisoned,
    /// The process was killed; the machine runs on.
    Killed,
    /// In good order.
    Done,
    /// The log could not be opened for an error of the disk.
    NotOpened,
}

/// What a boot is to do.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// Steps of the scheduler.
    pub steps: u64,
    /// Requests that clients begin, per mille of steps.
    pub load: u64,
    /// Ships everything at the end, and stops in good order.
    pub drain: bool,
    /// `arc drain` on another machine instead of the server: nobody writes.
    pub elsewhere: bool,
}

impl Boot {
    /// A server's life.
    pub const fn server(steps: u64, load: u64, drain: bool) -> Self {
        Self { steps, load, drain, elsewhere: false }
    }
}

/// A process that runs.
struct Live {
    r: Running_,
    answers: Arc<Mutex<Vec<Answer>>>,
    tokio_now: Duration,
    poisoned_for: u32,
    compactor_due: Duration,
}

pub struct World {
    pub random: SplitMix64,
    pub disk: SimDisk,
    pub store: SimStore,
    /// The store is reached by requests, with the client of a real one; with the size of its parts.
    pub wire: Option<(SimS3, usize)>,
    /// The lake is a directory of the disk, and the store is not used.
    pub local: bool,
    /// How often the local lake is unmounted or mounted: per mille of steps; how often it was unmounted.
    pub unmounts: u64,
    pub unmounted: u64,
    /// Objects of the local lake that were looked at.
    seen: BTreeSet<String>,
    pub model: Model,
    pub machine: Machine,
    pub boots: u64,
    pub answers: u64,
    /// Answers from a remembered key.
    pub replays: u64,
    /// Answers that told of refused lines and of stored ones.
    pub partial: u64,
    pub trace: u64,
    /// A store that fails is repaired while the server drains.
    pub repairs: bool,
    /// Segments had bits flipped: damage may be reported.
    pub rot: bool,
    /// Sequences of the records that were hit.
    rotted: BTreeSet<u64>,
    wall_us: i64,
    clock: Arc<SimClock>,
    /// Disturbances besides those of disk and store: per mille of steps.
    pub clock_jumps: u64,
    pub disk_full: u64,
    /// A drain on another machine runs.
    elsewhere: bool,
    /// Store calls at which the machine stops, before or after their effect.
    pub store_crash: Arc<Mutex<Option<(u64, bool)>>>,
    /// What a put has broken.
    broken: Arc<Mutex<Option<String>>>,
}

struct Running_ {
    shared: Arc<Shared>,
    engine: Arc<Engine>,
    committer: Committer,
    prealloc: Arc<Preallocator>,
    compactor: Compactor,
    control: Arc<arc_ingest::compact::control::Control>,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

fn is_log_file(p: &Path) -> bool {
    let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    p.parent() == Some(Path::new(WAL)) && (files::parse_segment(name).is_some() || files::parse_manifest(name).is_some())
}

impl World {
    pub fn new(seed: u64, machine: Machine) -> Self {
        let mut random = SplitMix64(seed);
        let clock = SimClock::new(random.next_u64(), START_US);
        let disk = SimDisk::new(random.next_u64(), Arc::clone(&clock), is_log_file);
        let (store, broken) = (SimStore::new(), Arc::new(Mutex::new(None)));
        let (seen_by, told) = (disk.clone(), Arc::clone(&broken));
        store.set_witness(move |store, name, bytes| {
            if let Err(why) = is_announced(&seen_by, &|n| store.get(n).is_some(), name, bytes) {
                told.lock().unwrap().get_or_insert(why);
            }
        });
        Self {
            random,
            disk,
            store,
            wire: None,
            local: false,
            unmounts: 0,
            unmounted: 0,
            seen: BTreeSet::new(),
            model: Model::default(),
            machine,
            boots: 0,
            answers: 0,
            replays: 0,
            partial: 0,
            trace: 0,
            repairs: false,
            rot: false,
            rotted: BTreeSet::new(),
            wall_us: START_US,
            clock,
            clock_jumps: 0,
            disk_full: 0,
            elsewhere: false,
            store_crash: Arc::default(),
            broken,
        }
    }

    /// Puts a wire between the server and its store.
    pub fn behind_a_wire(&mut self, part_size: usize, overwrites: bool) {
        let s3 = SimS3::new(self.store.clone());
        s3.set_overwrites(false, overwrites);
        self.wire = Some((s3, part_size));
    }

    /// Calls of the store so far, or requests.
    pub fn store_calls(&self) -> u64 {
        self.wire.as_ref().map_or_else(|| self.store.calls(), |(s3, _)| s3.requests())
    }

    /// The wall clock is set, by `us` forwards or backwards.
    pub fn jump(&self, us: i64) {
        self.clock.jump(us);
    }

    fn sink(&self, log: LogId, metrics: &Arc<Metrics>, clock: &SharedClock) -> Result<Arc<dyn Sink>, String> {
        if self.local {
            return self.local_sink(log);
        }
        let Some((s3, part_size)) = &self.wire else { return Ok(Arc::new(self.store.clone())) };
        let settings = S3Settings {
            bucket: "bucket".into(),
            endpoint: "http://127.0.0.1:1".into(),
            access_key: "key".into(),
            secret_key: Secret::new("secret"),
            ..S3Settings::default()
        };
        let timeout = Duration::from_secs(30);
        let remote = Remote::s3(&settings, &Endpoint { timeout, connector: Some(Arc::new(s3.clone())), ..Endpoint::default() }).unwrap();
        let (prefix, part_size) = (String::new(), *part_size);
        let settings = ObjectSettings {
            prefix,
            part_size,
            parts_in_flight: 2,
            puts: 1,
            timeout,
            verify: Verify::Head,
            create_only: CreateOnly::Probe,
            race_keys: 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        Ok(Arc::new(ObjectSink::new(remote, settings, log, Driver::apart(runtime), Arc::clone(metrics), clock.clone())))
    }

    fn new_process(&mut self) -> SharedClock {
        let clock = SimClock::new(self.random.next_u64(), self.wall_us);
        self.disk.set_clock(Arc::clone(&clock));
        let stalled = Arc::clone(&clock);
        if let Some((s3, _)) = &self.wire {
            let stalled = Arc::clone(&clock);
            s3.set_stall(move |t| stalled.advance(t));
        }
        self.store.set_stall(move |t| stalled.advance(t));
        self.clock = Arc::clone(&clock);
        clock
    }

    /// The machine is gone as the kind of end says; who waited for an answer hears none.
    fn end(&mut self, how: Ended) {
        self.wall_us = self.clock.wall_us();
        match how {
            Ended::Off if self.disk.is_killed() => self.disk.kill(),
            Ended::Off => self.disk.crash(),
            Ended::Killed => self.disk.kill(),
            // A clean end and an unclean one of the process alone leave the page cache.
            Ended::Poisoned | Ended::Done | Ended::NotOpened => {
                if self.random.chance(200) {
                    self.disk.crash()
                } else {
                    self.disk.kill()
                }
            }
        }
        self.model.cut_off();
        self.mount(true);
    }

    /// One life of the process, up to its end and that of the machine if that comes with it.
    ///
    /// # Errors
    /// Whatever breaks a promise.
    pub fn boot(&mut self, plan: Boot) -> Result<Ended, String> {
        self.elsewhere = plan.elsewhere;
        let ended = self.live(async |w: &mut Self, l| w.run(l, plan).await);
        self.elsewhere = false;
        ended
    }

    /// What the process that is started is told: the server's settings, or what a drain makes of those of another machine.
    fn settings(&mut self) -> NodeSettings {
        if !self.elsewhere {
            return self.machine.node();
        }
        let mut other = self.machine.clone();
        other.segment_data = 256 << 10;
        other.trigger_size = [16 << 10, 256 << 10][self.random.below(2) as usize];
        other.max_outputs = [3, 50][self.random.below(2) as usize];
        let mut other = other.node();
        other.paused = true;
        other.idempotency_window = Duration::ZERO;
        other.idempotency_max_keys = 0;
        other.max_columns = 1;
        other.max_tables = 1;
        other.max_total_columns = 1;
        other.max_name_bytes = 1;
        other.for_drain(&LeftBehind::read(&*self.disk.vfs(), Path::new(WAL))).unwrap()
    }

    /// Like [`Self::boot`], with every step as `next` says. It may set faults as well.
    ///
    /// # Errors
    /// Whatever breaks a promise.
    pub fn boot_as_told(&mut self, mut next: impl FnMut(&mut Self) -> Next) -> Result<Ended, String> {
        self.live(async |w: &mut Self, l| w.run_as_told(l, &mut next).await)
    }

    fn live(&mut self, run: impl AsyncFnOnce(&mut Self, Live) -> Result<Ended, String>) -> Result<Ended, String> {
        self.boots += 1;
        let clock = self.new_process();
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().map_err(|e| e.to_string())?;
        let ended = {
            let _in = rt.enter();
            match self.open(&clock)? {
                Ok(r) => {
                    let (answers, tokio_now) = (Arc::default(), self.clock.monotonic());
                    rt.block_on(run(self, Live { r, answers, tokio_now, poisoned_for: 0, compactor_due: Duration::ZERO }))
                }
                Err(e) => Ok(e),
            }
        };
        drop(rt);
        let ended = ended?;
        let ended = if self.disk.is_off() { Ended::Off } else { ended };
        self.end(ended);
        self.check_lake(true)?;
        self.trace = self.trace.rotate_left(5) ^ self.disk.trace() ^ self.store_calls().wrapping_mul(0x9e37_79b9);
        Ok(ended)
    }

    fn open(&mut self, clock: &SharedClock) -> Result<Result<Running_, Ended>, String> {
        // Nobody reads them, and making them is dear beside a short life.
        static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
        let metrics = Arc::clone(METRICS.get_or_init(Metrics::new));
        let read_errors = |d: &SimDisk| d.injected().get("read error").copied().unwrap_or(0);
        let before = read_errors(&self.disk);
        let faults = |d: &SimDisk| d.injected().values().sum::<u64>();
        let faults_before = faults(&self.disk);
        let settings = self.settings();
        let sink = |log| self.sink(log, &metrics, clock);
        let opened = node::open(&self.disk.vfs(), settings, clock, Arc::clone(&metrics), sink, &mut |_| {});
        if self.disk.is_off() {
            return Ok(Err(Ended::Off));
        }
        let node: Node = match opened {
            Ok(n) => n,
            // What could not be read may be readable the next time.
            Err(NodeError::Log(OpenError::Refused(_))) if read_errors(&self.disk) > before => return Ok(Err(Ended::NotOpened)),
            Err(NodeError::Log(OpenError::Refused(why))) => return Err(format!("the log is refused: {why}")),
            Err(NodeError::Log(OpenError::Locked(p))) => return Err(format!("{} is locked", p.display())),
            Err(NodeError::Log(e @ OpenError::Io { .. })) => {
                if faults(&self.disk) == faults_before {
                    return Err(format!("cannot be opened: {e}"));
                }
                return Ok(Err(Ended::NotOpened));
            }
            // The store, which may fail.
            Err(NodeError::Other(_)) => return Ok(Err(Ended::NotOpened)),
        };
        self.check_opened(&node)?;
        let engine = Engine::new(
            WriteSettings {
                max_payload_size: 1 << 20,
                max_inflated_size: 1 << 20,
                max_record_size: 256 << 10,
                bounds: Bounds { max_columns: 100, max_tables: 10, max_partitions: 1000, max_bytes: 256 << 10 },
                large_unsigned: Default::default(),
                max_in_flight: 64 << 20,
                nested: Nested::Json,
                hive_names: true,
            },
            clock.clone(),
            metrics,
        );
        engine.start(Running {
            shared: Arc::clone(&node.shared),
            appender: Appender::new(Arc::clone(&node.shared)),
            catalog: node.catalog,
            keys: node.keys,
            control: Arc::clone(&node.control),
        });
        Ok(Ok(Running_ {
            shared: node.shared,
            engine,
            committer: node.committer,
            prealloc: node.prealloc,
            compactor: node.compactor,
            control: node.control,
            _lock: node.lock,
        }))
    }

    /// How the life has ended by itself.
    fn over(&self, l: &mut Live) -> Option<Ended> {
        if self.disk.is_off() {
            return Some(Ended::Off);
        }
        l.poisoned_for += u32::from(l.r.shared.is_poisoned());
        (l.poisoned_for > 60).then_some(Ended::Poisoned)
    }

    /// Lets the tasks of the requests run, and looks at what has come of it.
    async fn after_step(&mut self, l: &Live) -> Result<(), String> {
        tokio::task::yield_now().await;
        self.hear(&l.answers)?;
        self.check_puts()?;
        self.check_removed()
    }

    fn step_compactor(&mut self, l: &mut Live, early: impl FnOnce(&mut Self) -> bool) -> Result<(), String> {
        match l.r.compactor.step() {
            Work::Worked => self.check_lake(false)?,
            Work::Wait(t) => l.compactor_due = self.clock.monotonic() + if early(self) { Duration::ZERO } else { t },
            Work::Done => {
                if let Some(why) = l.r.control.forked() {
                    return Err(format!("forked: {why}"));
                }
            }
        }
        Ok(())
    }

    async fn run(&mut self, mut l: Live, plan: Boot) -> Result<Ended, String> {
        for _ in 0..plan.steps {
            if let Some(ended) = self.over(&mut l) {
                return Ok(ended);
            }
            if self.random.chance(plan.load) {
                self.send_some(&l);
            }
            self.disturb();
            match self.random.below(6) {
                0 => {
                    let by = Duration::from_micros(self.random.below(3000));
                    self.advance(by, &mut l.tokio_now).await;
                }
                1 => drop(l.r.prealloc.step()),
                2 | 3 => drop(l.r.committer.step()),
                4 if self.clock.monotonic() >= l.compactor_due => {
                    // Waits are also cut short, as by a wake-up.
                    self.step_compactor(&mut l, |w| !w.random.chance(700))?;
                }
                4 if self.random.chance(300) => self.advance(Duration::from_millis(20), &mut l.tokio_now).await,
                4 if self.random.chance(20) => self.advance(Duration::from_secs(5), &mut l.tokio_now).await,
                // A flush.
                5 if self.random.chance(20) => l.r.control.request(l.r.shared.watermarks().durable),
                _ => {}
            }
            self.after_step(&l).await?;
        }
        if !plan.drain {
            return Ok(if self.random.chance(500) { Ended::Killed } else { Ended::Off }).inspect(|e| {
                if *e == Ended::Off {
                    self.disk.stop();
                }
            });
        }
        self.drain(l, None).await
    }

    async fn run_as_told(&mut self, mut l: Live, next: &mut impl FnMut(&mut Self) -> Next) -> Result<Ended, String> {
        loop {
            if let Some(ended) = self.over(&mut l) {
                return Ok(ended);
            }
            match next(self) {
                Next::Send { seed, traffic, patience } => {
                    let i = self.model.request(&mut SplitMix64(seed), &traffic);
                    self.send(&l, i, patience);
                }
                Next::Again { back, patience } => {
                    let keyed = |i: &usize| self.model.requests.get(*i).is_some_and(|q| q.key.is_some());
                    if let Some(i) = (0..self.model.requests.len()).rev().filter(keyed).nth(back) {
                        self.send(&l, i, patience);
                    }
                }
                Next::Committer => drop(l.r.committer.step()),
                Next::Preallocator => drop(l.r.prealloc.step()),
                Next::Compactor { early } if early || self.clock.monotonic() >= l.compactor_due => {
                    self.step_compactor(&mut l, |_| early)?
                }
                Next::Compactor { .. } => {}
                Next::Advance(by) => self.advance(by, &mut l.tokio_now).await,
                Next::PowerCut => {
                    self.disk.stop();
                    return Ok(Ended::Off);
                }
                Next::Kill => return Ok(Ended::Killed),
                Next::Drain(rounds) => return self.drain(l, Some(rounds)).await,
            }
            self.after_step(&l).await?;
        }
    }

    /// Finishes what has come, ships everything, stops in good order.
    async fn drain(&mut self, mut l: Live, give_up: Option<u32>) -> Result<Ended, String> {
        let r = &mut l.r;
        r.shared.stop();
        r.control.request(r.shared.watermarks().durable);
        let rounds = give_up.unwrap_or(6_000);
        for i in 1..=rounds {
            if self.disk.is_off() {
                return Ok(Ended::Off);
            }
            if r.shared.is_poisoned() {
                return Ok(Ended::Poisoned);
            }
            if self.lake_is_spoiled(&r.shared) {
                return Ok(Ended::Killed);
            }
            if i % 100 == 99 {
                self.mount(true);
                // Somebody makes room, and the store is repaired.
                self.disk.set_capacity(u64::MAX);
                if self.repairs {
                    self.store_faults(0, 0);
                }
            }
            r.prealloc.step();
            while r.committer.step() == Step::Worked {}
            let wait = match r.compactor.step() {
                Work::Worked => Duration::from_micros(100),
                Work::Wait(t) => t,
                Work::Done => return r.control.forked().map_or(Ok(Ended::Poisoned), |why| Err(format!("forked: {why}"))),
            };
            self.advance(wait, &mut l.tokio_now).await;
            tokio::task::yield_now().await;
            self.hear(&l.answers)?;
            self.check_puts()?;
            self.check_lake(false)?;
            self.check_removed()?;
            let w = r.shared.watermarks();
            let waiting = self.model.requests.iter().any(|r| r.in_flight > 0);
            r.control.request(w.durable);
            if !waiting && w.shipped >= w.durable && w.released >= w.durable && r.control.deferred().outputs == 0 {
                break;
            }
            if i == rounds {
                let gives_up = give_up.map(|_| Ended::Killed);
                return gives_up.ok_or_else(|| format!(
                    "does not come to an end: {w:?}, {waiting} requests wait, blocked {:?}, reserve spent {}, fill {:.2}, {} bytes, plans {:?}, \
                     deferred {:?}, last error {:?}",
                    r.shared.blocked(),
                    r.shared.reserve_spent(),
                    r.shared.fill_level(),
                    r.shared.total_bytes(),
                    r.control.plans(),
                    r.control.deferred(),
                    r.shared.last_error()
                ));
            }
        }
        r.shared.close_queue();
        for _ in 0..100 {
            r.prealloc.step();
            if r.committer.step() == Step::Done {
                break;
            }
        }
        r.control.stop();
        r.compactor.finish();
        Ok(if self.disk.is_off() { Ended::Off } else { Ended::Done })
    }

    async fn advance(&mut self, by: Duration, tokio_now: &mut Duration) {
        self.clock.advance(by);
        let now = self.clock.monotonic();
        // The timers of the requests follow the simulated clock.
        tokio::time::advance(now.saturating_sub(*tokio_now)).await;
        *tokio_now = now;
    }

    /// A new request, or one with a key again.
    fn send_some(&mut self, l: &Live) {
        let again = self.random.chance(250);
        let keyed: Vec<usize> = if again {
            let n = self.model.requests.len();
            (n.saturating_sub(40)..n).filter(|i| self.model.requests[*i].key.is_some()).collect()
        } else {
            Vec::new()
        };
        let i = match keyed.get(self.random.below(keyed.len() as u64) as usize) {
            Some(i) => *i,
            None => self.model.request(&mut self.random, &self.machine.traffic),
        };
        // Some clients give up.
        let patience = if self.random.chance(30) { Duration::from_millis(self.random.below(500)) } else { PATIENT };
        self.send(l, i, patience);
    }

    fn send(&mut self, l: &Live, i: usize, patience: Duration) {
        let q = &mut self.model.requests[i];
        q.in_flight += 1;
        let (key, body, dialect) = parts(q);
        let (engine, answers) = (Arc::clone(&l.r.engine), Arc::clone(&l.answers));
        tokio::spawn(async move {
            match tokio::time::timeout(patience, write(&engine, key, body, dialect)).await {
                Ok(outcome) => answers.lock().unwrap().push(Answer { request: i, outcome }),
                Err(_) => {
                    let gone = RequestError::unavailable(Reason::UnknownOutcome, "the client has gone");
                    answers.lock().unwrap().push(Answer { request: i, outcome: Err(gone) });
                }
            }
        });
    }

    fn hear(&mut self, answers: &Arc<Mutex<Vec<Answer>>>) -> Result<(), String> {
        let heard = std::mem::take(&mut *answers.lock().unwrap());
        // From a machine that has stopped comes what it sent before: that a request was stored it can only have said before, as every
        // call fails from then on; the errors may be of after.
        let off = self.disk.is_off();
        for a in heard.into_iter().filter(|a| !off || a.outcome.is_ok()) {
            self.answers += 1;
            let q = &mut self.model.requests[a.request];
            q.in_flight -= 1;
            let what = format!("request {} (key {:?})", a.request, q.key);
            match a.outcome {
                Ok(Outcome { sequence: Some(s), replayed, status, refused }) => {
                    self.replays += u64::from(replayed);
                    self.partial += u64::from(status != 204);
                    if !self.rot
                        && let Some(refused) = refused
                    {
                        q.told(&refused).map_err(|e| format!("{what}: {e}"))?;
                    }
                    match q.fate {
                        Fate::Acked(before) if before != s && !q.rotten => {
                            return Err(format!("{what}: acknowledged as {before} and as {s}"));
                        }
                        Fate::Absent if replayed && q.in_flight == 0 => return Err(format!("{what}: replayed, and never stored")),
                        _ => {}
                    }
                    q.fate = Fate::Acked(s);
                }
                // Not one line could be stored.
                Ok(Outcome { sequence: None, status: 400 | 422, .. }) if q.lines.is_some() => {
                    if matches!(q.fate, Fate::Acked(_)) && !q.rotten {
                        return Err(format!("{what}: acknowledged, then refused"));
                    }
                }
                Ok(Outcome { sequence: None, .. }) => return Err(format!("{what}: has rows, and was answered as empty")),
                Err(RequestError::Unavailable { reason: Reason::UnknownOutcome, .. }) => {
                    if q.fate == Fate::Absent {
                        q.fate = Fate::Unknown;
                    }
                }
                Err(RequestError::Unavailable { .. }) => {}
                // A conflict of types, or too large for a record: nothing is stored. With a key, another attempt may have come before.
                Err(RequestError::Invalid { .. } | RequestError::TooLarge(_)) => {
                    if matches!(q.fate, Fate::Acked(_)) {
                        return Err(format!("{what}: acknowledged, then refused"));
                    }
                }
                Err(e) => return Err(format!("{what}: unexpected answer: {e:?}")),
            }
        }
        Ok(())
    }
}
