//! The real queue, committer, preallocator and catalog under shuttle: threads and futures in orders that a scheduler picks, random and
//! PCT, over a disk in memory. A lost wake-up is a deadlock, which shuttle reports with the schedule.
//!
//! `just shuttle` runs them; `ARC_SHUTTLE_SCHEDULES` is the number of schedules of each kind for each test.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};

use super::commit::Committer;
use super::memory::{DiskCall, MemoryDisk};
use super::prealloc::Preallocator;
use super::recover::open;
use super::shared::LogSettings;
use super::testing::{record, settings};
use super::{AppendError, Appender, Completion, Shared};
use crate::batch::{Bits, Column, TableBatch, ValidBatch, Values};
use crate::catalog::Catalog;
use crate::clock::{Clock, SharedClock};
use crate::compact::control::{Control, Shipped};
use crate::error::{Reason, RequestError};
use crate::format::file_header::{FileHeader, FileKind};
use crate::format::payload::{EncodedRecord, PayloadView, encode};
use crate::format::record::RecordKind;
use crate::format::scan::{Found, Scanner};
use crate::limits::FILE_HEADER_BYTES;
use crate::metrics::Metrics;
use crate::types::{ColumnType, LogId, Sequence};
use crate::vfs::{Engine, Vfs};

/// Time that passes by being looked at.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
    }
    fn wall_us(&self) -> i64 {
        self.0.fetch_add(1, Ordering::Relaxed) as i64
    }
    fn random_u64(&self) -> u64 {
        (self.0.fetch_add(1, Ordering::Relaxed) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn random_id(&self) -> LogId {
        LogId([7; 16])
    }
}

fn explore(test: impl Fn() + Send + Sync + Clone + 'static) {
    let n = std::env::var("ARC_SHUTTLE_SCHEDULES").map_or(150, |n| n.parse().unwrap());
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
    config.failure_persistence = shuttle::FailurePersistence::Print;
    shuttle::Runner::new(RandomScheduler::new(n), config.clone()).run(test.clone());
    shuttle::Runner::new(PctScheduler::new(3, n), config).run(test);
}

/// Ids of the records in the segments of the disk that are synced, by sequence.
fn synced(disk: &MemoryDisk) -> Vec<(Sequence, i64)> {
    let mut out = Vec::new();
    for (path, bytes) in disk.synced() {
        if !path.extension().is_some_and(|x| x == "wal") || bytes.len() < FILE_HEADER_BYTES {
            continue;
        }
        let Ok((header, _)) = FileHeader::parse_file(&bytes[..FILE_HEADER_BYTES], FileKind::Segment) else { continue };
        for found in Scanner::new(&bytes, header.salt, FILE_HEADER_BYTES as u64, bytes.len() as u64) {
            let Found::Record(r) = found else { continue };
            if r.kind == RecordKind::Write {
                let batch = PayloadView::parse(Scanner::payload(&bytes, &r)).unwrap().to_batch().unwrap();
                out.push((r.sequence, batch.tables()[0].time[0]));
            }
        }
    }
    out
}

type Outcome = Result<Sequence, AppendError>;

/// What the completions and the waiters were told.
#[derive(Default)]
struct Told {
    completed: Vec<(i64, Outcome)>,
    returned: Vec<(i64, Option<Outcome>)>,
}

#[derive(Clone)]
struct Log {
    disk: MemoryDisk,
    shared: Arc<Shared>,
    prealloc: Arc<Preallocator>,
    told: Arc<Mutex<Told>>,
}

struct Threads {
    log: Log,
    committer: JoinHandle<()>,
    prealloc: JoinHandle<()>,
    _lock: Box<dyn std::any::Any + Send + Sync>,
}

impl Threads {
    fn start(change: impl FnOnce(&mut LogSettings)) -> Self {
        Self::start_on(MemoryDisk::default(), change)
    }

    fn start_on(disk: MemoryDisk, change: impl FnOnce(&mut LogSettings)) -> Self {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let mut s = settings(Path::new("/log"), 16 << 10, Engine::Pwrite);
        change(&mut s);
        let clock: SharedClock = Arc::new(Ticks::default());
        let o = open(&vfs, s, clock, Metrics::new(), &mut |_| {}, &mut |_| {}).unwrap();
        let log = Log { disk, shared: o.shared, prealloc: o.prealloc, told: Arc::default() };
        let committer: Committer = o.committer;
        let p = Arc::clone(&log.prealloc);
        Self { log, committer: thread::spawn(move || committer.run()), prealloc: thread::spawn(move || p.run()), _lock: o.lock }
    }

    /// Ends the log and checks what everybody was told against what is on the disk.
    fn finish(self) {
        self.log.prealloc.stop();
        self.log.shared.close_queue();
        self.committer.join().unwrap();
        self.prealloc.join().unwrap();
        let told = self.log.told.lock().unwrap();
        let on_disk = synced(&self.log.disk);
        for (id, returned) in &told.returned {
            let seen: Vec<Outcome> = told.completed.iter().filter(|(i, _)| i == id).map(|(_, o)| *o).collect();
            assert_eq!(seen.len(), 1, "id {id}: completions {seen:?}");
            assert!(returned.is_none_or(|r| r == seen[0]), "id {id}: completed with {seen:?}, returned {returned:?}");
            match seen[0] {
                Ok(sequence) => assert!(on_disk.contains(&(sequence, *id)), "id {id}"),
                Err(AppendError::NotStored(_)) => assert!(on_disk.iter().all(|(_, i)| i != id), "id {id} was refused and is stored"),
                Err(AppendError::UnknownOutcome) => {}
            }
        }
        assert_eq!(told.completed.len(), told.returned.len());
        let order: Vec<Sequence> = told.completed.iter().filter_map(|(_, o)| o.ok()).collect();
        assert!(order.is_sorted(), "completions out of order: {order:?}");
    }
}

impl Log {
    /// A completion that checks, at its moment, that what it is told is true already.
    fn completion(&self, id: i64) -> Completion {
        let log = self.clone();
        Box::new(move |outcome| {
            if let Ok(sequence) = outcome {
                assert!(synced(&log.disk).contains(&(sequence, id)), "id {id} is completed before its sync");
            }
            log.told.lock().unwrap().completed.push((id, outcome));
        })
    }

    fn returned(&self, id: i64, outcome: Option<Outcome>) {
        if let Some(Ok(sequence)) = outcome {
            assert!(synced(&self.disk).contains(&(sequence, id)), "id {id} is acknowledged before its sync");
            assert!(self.shared.watermarks().durable >= sequence, "id {id} is woken before the watermark says so");
        }
        let mut told = self.told.lock().unwrap();
        if outcome.is_some() {
            assert!(told.completed.iter().any(|(i, o)| *i == id && Some(*o) == outcome), "id {id} is woken before its completion");
        }
        told.returned.push((id, outcome));
    }

    fn append_record(&self, id: i64, r: EncodedRecord) -> Outcome {
        let outcome = block_on(Appender::new(Arc::clone(&self.shared)).append(r, Some(self.completion(id))));
        self.returned(id, Some(outcome));
        outcome
    }

    fn append(&self, id: i64) -> Outcome {
        self.append_record(id, record(id, 1))
    }

    fn spawn<T: Send + 'static>(&self, f: impl FnOnce(Self) -> T + Send + 'static) -> JoinHandle<T> {
        let log = self.clone();
        thread::spawn(move || f(log))
    }
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn nobody_is_told_before_the_sync_and_nobody_is_forgotten() {
    explore(|| {
        let t = Threads::start(|_| {});
        join((0..3).map(|i| t.log.spawn(move |log| (log.append(i).ok(), log.append(10 + i).ok()))).collect());
        t.finish();
    });
}

#[test]
fn after_a_failed_sync_every_waiter_hears_and_nothing_is_acknowledged() {
    explore(|| {
        let disk = MemoryDisk::default();
        let t = Threads::start_on(disk.clone(), |_| {});
        let mut left = shuttle::rand::thread_rng().gen_range(0..4);
        let mut written = std::collections::BTreeSet::new();
        disk.set_hook(move |call, path| {
            if call == DiskCall::Write {
                written.insert(path.to_owned());
            }
            // Spares that are being prepared are not written to. The manifest is: its sync comes before the first answer of a segment.
            let counts = call == DiskCall::Sync && written.contains(path);
            left -= i32::from(counts);
            (counts && left < 0).then_some(libc::EIO)
        });
        join((0..3).map(|i| t.log.spawn(move |log| (log.append(i).ok(), log.append(10 + i).ok()))).collect());
        if t.log.shared.is_poisoned() {
            assert_eq!(t.log.append(99), Err(AppendError::NotStored(Reason::Poisoned)));
        }
        t.finish();
    });
}

/// Somebody else than the committer finds out that nothing more may be written: the manifest could not be synced.
#[test]
fn a_poison_from_outside_reaches_an_idle_committer() {
    explore(|| {
        let t = Threads::start(|_| {});
        let appended = t.log.spawn(|log| log.append(1));
        t.log.shared.poison("manifest".into());
        appended.join().unwrap().ok();
        // It ends by itself, also if nobody ever writes again.
        let Threads { log, committer, prealloc, .. } = t;
        committer.join().unwrap();
        log.prealloc.stop();
        prealloc.join().unwrap();
        assert!(log.append(2).is_err());
    });
}

#[test]
fn a_shutdown_loses_no_waiter() {
    explore(|| {
        let t = Threads::start(|_| {});
        let writers = (0..3).map(|i| t.log.spawn(move |log| log.append(i))).collect();
        t.log.shared.close_queue();
        for outcome in join(writers) {
            assert!(matches!(outcome, Ok(_) | Err(AppendError::NotStored(Reason::Shutdown | Reason::NotStored))), "{outcome:?}");
        }
        assert_eq!(t.log.append(9), Err(AppendError::NotStored(Reason::Shutdown)));
        t.finish();
    });
}

#[test]
fn a_client_that_goes_takes_its_record_back_or_never() {
    explore(|| {
        let t = Threads::start(|_| {});
        let gone = |log: Log, id: i64| {
            let append = Appender::new(Arc::clone(&log.shared));
            let outcome = block_on(async {
                tokio::select! {
                    biased;
                    r = append.append(record(id, 1), Some(log.completion(id))) => Some(r),
                    () = crate::sync::sleep(Duration::from_secs(1)) => None,
                }
            });
            log.returned(id, outcome);
        };
        let mut threads: Vec<_> = (0..3).map(|i| t.log.spawn(move |log| gone(log, i))).collect();
        threads.push(t.log.spawn(|log| {
            let _ = log.append(7);
        }));
        join(threads);
        t.finish();
    });
}

fn one_column(id: i64, values: Values) -> ValidBatch {
    let c = Column { name: "c".into(), tag: false, values, validity: None, defines: false };
    ValidBatch::new("db".into(), vec![TableBatch { table: "t".into(), time: vec![id], columns: vec![c] }]).unwrap()
}

#[derive(Debug)]
enum Wrote {
    Stored,
    NotStored,
    /// 400.
    Conflict,
}

/// As the HTTP handlers do it: resolve, append, settle in the completion.
fn write(log: &Log, catalog: &Arc<Catalog>, id: i64, values: Values) -> Wrote {
    let ty = values.column_type().unwrap();
    let mut batch = one_column(id, values);
    let reservation = match block_on(catalog.resolve(&mut batch)) {
        Ok(r) => r,
        Err(RequestError::Invalid(_)) => {
            let known = catalog.entries();
            let c = known.iter().flat_map(|t| &t.columns).find(|c| c.name == "c");
            assert!(c.is_some_and(|c| c.ty != ty as u8), "refused for what is not durable: {known:?}");
            return Wrote::Conflict;
        }
        Err(e) => panic!("{e:?}"),
    };
    let r = encode(&batch, None, reservation.defines(), 7, 1 << 20).unwrap();
    let told = log.completion(id);
    let completion: Completion = Box::new(move |outcome| {
        match outcome {
            Ok(sequence) => reservation.settle(sequence),
            Err(_) => drop(reservation),
        }
        told(outcome);
    });
    let outcome = block_on(Appender::new(Arc::clone(&log.shared)).append(r, Some(completion)));
    log.returned(id, Some(outcome));
    if outcome.is_ok() { Wrote::Stored } else { Wrote::NotStored }
}

/// One gets the column; the other waits for the outcome: refused when it stands, the next to define it when it does not.
#[test]
fn two_first_writers_of_a_column_agree_on_its_type() {
    explore(|| {
        let t = Threads::start(|_| {});
        let catalog = Catalog::new(10, 10);
        let types = [Values::Int64(vec![1]), Values::Bool(Bits::filled(1, true)), Values::Int64(vec![2])];
        let threads = types.into_iter().enumerate().map(|(i, values)| {
            let catalog = Arc::clone(&catalog);
            t.log.spawn(move |log| (values.column_type().unwrap(), write(&log, &catalog, i as i64, values)))
        });
        let wrote = join(threads.collect());
        let stored: Vec<ColumnType> = wrote.iter().filter(|(_, w)| matches!(w, Wrote::Stored)).map(|(t, _)| *t).collect();
        assert!(stored.windows(2).all(|w| w[0] == w[1]), "{wrote:?}");
        if wrote.iter().all(|(_, w)| !matches!(w, Wrote::NotStored)) {
            assert!(!stored.is_empty(), "{wrote:?}");
        }
        let known: Vec<u8> = catalog.entries().iter().flat_map(|t| t.columns.iter().map(|c| c.ty)).collect();
        assert_eq!(known, stored.first().map(|t| *t as u8).into_iter().collect::<Vec<_>>(), "what was given up is forgotten");
        t.finish();
    });
}

/// While no spare can be made writers wait or are refused; when there is room again whoever still waits is served.
#[test]
fn writers_go_on_when_there_is_room_again() {
    explore(|| {
        let disk = MemoryDisk::default();
        let t = Threads::start_on(disk.clone(), |_| {});
        let mut failures = shuttle::rand::thread_rng().gen_range(0..4);
        disk.set_hook(move |call, path| {
            let spare = call == DiskCall::Create && path.extension().is_some_and(|x| x == "tmp");
            failures -= i32::from(spare);
            (spare && failures >= 0).then_some(libc::ENOSPC)
        });
        // Each takes more than half of a segment.
        join((0..3).map(|i| t.log.spawn(move |log| log.append_record(i, record(i, 1100)))).collect());
        for id in 50.. {
            match t.log.append(id) {
                Ok(_) => break,
                Err(AppendError::NotStored(Reason::DiskFull | Reason::NotStored)) => {}
                Err(e) => panic!("{e:?}"),
            }
        }
        t.finish();
    });
}

/// The next rotation finds a spare without having asked for it.
#[test]
fn a_spare_that_is_taken_is_replaced_at_once() {
    explore(|| {
        let t = Threads::start(|_| {});
        for _ in 0..2 {
            while !t.log.prealloc.is_ready() {
                thread::yield_now();
            }
            let spare = t.log.prealloc.take(0).unwrap();
            t.log.disk.remove(&spare.path).unwrap();
        }
        t.finish();
    });
}

#[test]
fn a_seal_that_is_asked_for_comes() {
    explore(|| {
        let t = Threads::start(|_| {});
        let writers = (0..2).map(|i| t.log.spawn(move |log| (log.append(i).ok(), log.append(10 + i).ok()))).collect();
        let sealer = t.log.spawn(|log| {
            log.shared.request_seal(1);
            log.append(20).ok()
        });
        join(writers);
        sealer.join().unwrap();
        // By now the committer may have gone to sleep.
        for _ in 0..shuttle::rand::thread_rng().gen_range(0..60) {
            thread::yield_now();
        }
        let last = t.log.shared.watermarks().durable;
        t.log.shared.request_seal(last);
        let w = t.log.shared.wait_watermarks(Duration::from_secs(60), |w| w.sealed >= last);
        assert!(w.sealed >= last);
        t.finish();
    });
}

/// A flush that does not time out ends with what it asked for.
#[test]
fn a_flush_hears_of_the_last_plan() {
    explore(|| {
        let t = Threads::start(|_| {});
        let control = Control::new(Arc::clone(&t.log.shared), false);
        let last = t.log.append(1);
        let Ok(target) = last else { return t.finish() };
        let flushers = (0..2)
            .map(|_| {
                let control = Arc::clone(&control);
                t.log.spawn(move |_| block_on(control.flush(Duration::from_secs(60))))
            })
            .collect();
        // What the compactor does, without plans and files.
        t.log.shared.request_seal(target);
        t.log.shared.wait_watermarks(Duration::from_secs(60), |w| w.sealed >= target);
        t.log.shared.advance(|w| w.shipped = target);
        for f in join(flushers) {
            assert!(!matches!(f, Shipped::Done { through, .. } if through < target), "{f:?}");
        }
        t.finish();
    });
}
