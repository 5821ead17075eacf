//! What cannot be published holds up nothing else for long, costs little while it waits, and ends a drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::hostile_tests::{Server, Shape, Wire, rows};
use super::worker::{DRAIN_PATIENCE, PATIENCE, plan_object};
use super::worker_tests::{Away, Core};
use crate::clock::Clock;
use crate::format::manifest::{ColumnEntry, Entry, TableEntry};
use crate::metrics::StoreOp;
use crate::sink::object::sim_s3::{SimS3, WireFault};
use crate::sink::sim::{Call, Fault};
use crate::sink::{MAX_SMALL, SimStore};
use crate::types::ColumnType;
use crate::vfs::Vfs;
use crate::wal::memory::MemoryDisk;

const SIDE: &str = "/log/side";

/// A server with an object store behind a wire.
fn server() -> (Server, SimS3, SimStore) {
    let store = SimStore::new();
    let s3 = SimS3::new(store.clone());
    let shape = Shape { max_size: 64 << 20, max_outputs: 100, max_rows: 1 << 30, compression: "none" };
    let mut s = Server::new(MemoryDisk::default(), 7, store.clone(), shape);
    s.wire = Some(Wire { s3: s3.clone(), part_size: 1 << 20 });
    let stall = Arc::clone(&s.clock);
    s3.set_stall(move |t| stall.advance(t));
    s.start();
    (s, s3, store)
}

/// Steps with everything asked for.
fn until(s: &mut Server, what: &str, done: impl Fn(&mut Server) -> bool) {
    for _ in 0..5_000 {
        let c = s.core();
        c.control.request(c.shared.watermarks().durable);
        if done(s) {
            return;
        }
        s.step();
    }
    panic!("{what}: {:?} {:?}", s.core().shared.last_error(), s.core().control.deferred());
}

/// Some steps with everything asked for.
fn press(s: &mut Server, steps: u32) {
    for _ in 0..steps {
        let c = s.core();
        c.control.request(c.shared.watermarks().durable);
        s.step();
    }
}

/// One in which all of these tables wait because somebody else's object has the name of their file.
fn taken(tables: &[&str]) -> (Server, SimS3, SimStore) {
    let (mut s, s3, store) = server();
    let thief = store.clone();
    s3.set_faults(move |w| {
        if w.op == StoreOp::Put && w.key.ends_with(".parquet") {
            thief.insert(w.key, b"not ours");
        }
        None
    });
    s.append(0, tables, 0);
    until(&mut s, "all are deferred", |s| s.core().control.deferred().outputs == tables.len() as u64);
    s3.clear_faults();
    (s, s3, store)
}

const MANY: [&str; 10] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];

/// An hour of ten outputs whose names are taken: each object is read once for each of a dozen attempts, and nothing is built or sent.
#[test]
fn a_deferred_output_is_looked_at_alone_and_ever_more_seldom() {
    let (mut s, s3, _store) = taken(&MANY);
    let before = (s3.requests_of(StoreOp::Get), s3.requests_of(StoreOp::Put));
    for _ in 0..720 {
        s.clock.advance(Duration::from_secs(5));
        s.step();
    }
    let reads = s3.requests_of(StoreOp::Get) - before.0;
    assert!((60..200).contains(&reads), "{reads} reads in an hour");
    assert_eq!(s3.requests_of(StoreOp::Put), before.1);
    assert_eq!(s.core().control.deferred().stuck, 10);
}

/// An operator who has moved an object away need not wait for minutes.
#[test]
fn a_flush_tries_at_once_what_waits() {
    let (mut s, _s3, store) = taken(&["t"]);
    for _ in 0..100 {
        s.clock.advance(Duration::from_secs(20));
        s.step();
    }
    for name in store.objects().into_keys().filter(|n| n.ends_with(".parquet")) {
        store.remove(&name);
    }
    s.clock.advance(Duration::from_secs(6));
    s.step();
    assert_eq!(s.core().control.deferred().outputs, 1, "it is tried every ten minutes");
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let control = Arc::clone(&s.core().control);
    rt.block_on(control.flush(Duration::ZERO));
    s.clock.advance(Duration::from_secs(6));
    s.step();
    assert_eq!(s.core().control.deferred().outputs, 0);
}

#[test]
fn one_pass_publishes_all_that_can_be_published_again() {
    let (mut s, s3, store) = taken(&MANY);
    for name in store.objects().into_keys().filter(|n| n.ends_with(".parquet")).step_by(2) {
        store.remove(&name);
    }
    s.clock.advance(Duration::from_secs(6));
    let puts = s3.requests_of(StoreOp::Put);
    s.step();
    assert_eq!((s.core().control.deferred().outputs, s3.requests_of(StoreOp::Put) - puts), (5, 5));
}

#[test]
fn a_slow_pass_over_deferred_outputs_lets_plans_go_on() {
    let (mut s, s3, _store) = taken(&MANY);
    let hung = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&hung);
    s3.set_faults(move |w| {
        let hangs = w.op == StoreOp::Get && w.key.ends_with(".parquet");
        count.fetch_add(u32::from(hangs), Ordering::Relaxed);
        hangs.then_some(WireFault::Hangs)
    });
    s.append(1, &["other"], 0);
    s.clock.advance(Duration::from_secs(6));
    until(&mut s, "the other table is shipped", |s| s.core().shared.watermarks().shipped == 2);
    // Three tries each of one look, two passes at most.
    assert!((3..=6).contains(&hung.load(Ordering::Relaxed)), "{hung:?} requests hung");
    assert_eq!(s.core().control.deferred().outputs, 10);
}

/// The rights to one table are missing: a server goes on with the others after minutes. A store that is away as a whole is no such case.
#[test]
fn an_output_that_fails_while_the_store_answers_holds_up_nothing_for_long() {
    let (mut s, s3, store) = server();
    s.append(0, &["a", "secret"], 0);
    s3.set_faults(|_| Some(WireFault::Refused));
    for _ in 0..720 {
        s.clock.advance(Duration::from_secs(5));
        press(&mut s, 1);
    }
    assert_eq!(s.core().control.deferred().outputs, 0, "the store is away");
    let denied = |w: &crate::sink::object::sim_s3::WireOp<'_>| w.op == StoreOp::Put && w.key.contains("/secret/");
    s3.set_faults(move |w| denied(w).then_some(WireFault::Answers(403, "AccessDenied")));
    let from = s.clock.monotonic();
    until(&mut s, "it moves aside", |s| s.core().control.deferred().outputs == 1);
    let took = s.clock.monotonic() - from;
    assert!(took >= PATIENCE && took < PATIENCE + Duration::from_secs(60), "{took:?}");
    s.append(1, &["a"], 0);
    until(&mut s, "the other table goes on", |s| s.core().shared.watermarks().released == 2);
    s3.clear_faults();
    assert!(s.drain(), "{:?}", s.core().shared.last_error());
    assert_eq!(rows(&store).keys().collect::<Vec<_>>(), [&0, &1]);
}

/// What a drain waits for is counted as stuck after some attempts, whatever the reason.
#[test]
fn in_a_drain_an_output_that_keeps_failing_is_stuck_soon() {
    let (mut s, s3, _store) = server();
    s.core().compactor.settings.patience = DRAIN_PATIENCE;
    s3.set_faults(|w| (w.op == StoreOp::Put && w.key.contains("/secret/")).then_some(WireFault::Answers(403, "AccessDenied")));
    s.append(0, &["secret"], 0);
    let from = s.clock.monotonic();
    until(&mut s, "it is stuck", |s| s.core().control.deferred().stuck == 1 && s.core().shared.watermarks().released == 1);
    assert!(s.clock.monotonic() - from < DRAIN_PATIENCE + Duration::from_secs(30));
    // The same after a restart, which remembers no attempts.
    s.kill();
    s.start();
    assert_eq!(s.core().control.deferred().stuck, 0);
    until(&mut s, "it is stuck again", |s| s.core().control.deferred().stuck == 1);
}

#[test]
fn a_side_segment_that_cannot_be_read_is_stuck_and_comes_back_with_its_file() {
    let (mut s, _s3, store) = taken(&["a"]);
    s.kill();
    let name = s.disk.list(SIDE.as_ref()).unwrap()[0].name.clone();
    let (path, away) = (format!("{SIDE}/{name}"), "/log/away");
    s.disk.rename(path.as_ref(), away.as_ref()).unwrap();
    s.start();
    until(&mut s, "it is stuck", |s| s.core().control.deferred().stuck == 1);
    assert!(s.core().shared.last_error().unwrap().contains(&name));
    s.disk.rename(away.as_ref(), path.as_ref()).unwrap();
    for name in store.objects().into_keys().filter(|n| n.ends_with(".parquet")) {
        store.remove(&name);
    }
    assert!(s.drain(), "{:?}", s.core().shared.last_error());
    assert_eq!(rows(&store).len(), 1);
}

#[test]
fn a_plan_object_that_is_none_is_said_to_bar_the_plan() {
    let (mut s, _s3, store) = server();
    let object = plan_object(s.core().shared.log, 1);
    store.insert(&object, b"{\"plan\":1,\"inp");
    s.append(0, &["a"], 0);
    until(&mut s, "it is barred", |s| s.core().control.barred().is_some());
    assert!(s.core().control.barred().unwrap().contains(&object));
    store.remove(&object);
    assert!(s.drain(), "{:?}", s.core().shared.last_error());
    assert_eq!(s.core().control.barred(), None);
}

/// The late put of a deferred output arrives while another output keeps its plan open.
#[test]
fn a_deferred_output_that_appears_by_itself_is_counted_as_committed() {
    let shape = Shape { max_size: 64 << 20, max_outputs: 100, max_rows: 1 << 30, compression: "none" };
    let store = SimStore::new();
    let mut s = Server::new(MemoryDisk::default(), 7, store.clone(), shape);
    let mut first = Some(Fault::Late);
    store.set_faults(move |op| match op.call {
        Call::Publish if op.name.contains("/a/") => Some(first.take().unwrap_or(Fault::Fails(libc::EACCES))),
        Call::Publish => Some(Fault::Fails(libc::EIO)),
        _ => None,
    });
    s.start();
    s.append(0, &["a", "b"], 0);
    until(&mut s, "one is deferred", |s| s.core().control.deferred().outputs == 1);
    assert!(store.land(0));
    for _ in 0..5 {
        s.step();
    }
    store.clear_faults();
    assert!(s.drain(), "{:?} {:?}", s.core().control.deferred(), s.core().shared.last_error());
    assert_eq!(s.disk.list(SIDE.as_ref()).unwrap().len(), 0);
    assert_eq!(rows(&store).len(), 1);
}

#[test]
fn an_error_that_is_over_is_said_no_longer() {
    let (mut s, s3, _store) = taken(&["a"]);
    s3.set_faults(|_| Some(WireFault::Refused));
    s.append(1, &["b"], 0);
    press(&mut s, 20);
    let said = |s: &mut Server| s.core().shared.last_error().unwrap_or_default();
    assert!(said(&mut s).contains("no answer"), "{}", said(&mut s));
    s3.clear_faults();
    until(&mut s, "it is shipped", |s| s.core().shared.watermarks().shipped == 2);
    assert!(said(&mut s).contains("another object has this name"), "the output still waits: {}", said(&mut s));
    let (mut s, s3, _store) = server();
    s.append(0, &["a"], 0);
    s3.set_faults(|_| Some(WireFault::Refused));
    press(&mut s, 20);
    assert!(s.core().shared.last_error().is_some());
    s3.clear_faults();
    assert!(s.drain());
    assert_eq!(s.core().shared.last_error(), None);
}

/// A compactor that waits has left its plan in good order, however often it is stopped.
#[test]
fn a_stop_while_the_store_is_away_is_no_unclean_end() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..4 {
        let mut c = Core::open(dir.path());
        let (away, staged) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        c.compactor.sink = Arc::new(Away { lake: Arc::clone(&c.compactor.sink), away, staged });
        c.append(n, &["a"]);
        assert!(!c.ship());
        c.compactor.finish();
        assert_eq!(c.compactor.manifest.state.plans[&1].attempts, 0);
    }
    let mut c = Core::open(dir.path());
    assert!(c.ship());
    assert_eq!(c.rows(), 4);
}

#[test]
#[should_panic(expected = "INVARIANT(shipped-is-settled)")]
fn a_plan_with_an_open_output_is_never_called_shipped() {
    let (mut s, _s3, _store) = server();
    s.append(0, &["a"], 0);
    until(&mut s, "a plan is made", |s| s.core().control.plans().1.is_some());
    let plan = s.core().compactor.manifest.state.plans[&1].plan.clone();
    let _ = s.core().compactor.ship(&plan);
}

/// Tables of many columns make plans that are larger than their rows: they are divided before the object of one is too large to be read back.
#[test]
fn a_plan_is_no_larger_than_its_object_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Core::open(dir.path());
    let names: Vec<String> = (0..70).map(|n| format!("t{n:02}")).collect();
    // Each character of these takes six bytes in JSON.
    let column = |n: u32| ColumnEntry {
        name: format!("{n:03}{}", "\u{1}".repeat(250)),
        ty: ColumnType::Int64 as u8,
        tag: false,
        since: 1,
        widened: None,
    };
    let tables: Vec<TableEntry> = names
        .iter()
        .map(|t| TableEntry { database: "db".into(), table: t.clone(), since: 1, columns: (0..100).map(column).collect() })
        .collect();
    c.catalog.restore(&tables).unwrap();
    for (n, t) in names.iter().enumerate() {
        c.append(n as i64, &[t]);
    }
    assert!(c.ship(), "{:?}", c.shared.last_error());
    assert_eq!((c.rows(), c.control.plans().0), (70, 2));
    for p in c.compactor.manifest.state.plans.values() {
        let len = Entry::Plan(p.plan.clone()).encode().unwrap().len() as u64;
        assert!(len < MAX_SMALL / 2 + (1 << 20), "plan {}: {len} bytes", p.plan.plan);
    }
}

/// Bytes of everything that `wal.max_size` bounds.
fn counted(s: &Server) -> u64 {
    let sizes = |dir: &str, ours: fn(&str) -> bool| -> u64 {
        s.disk.list(dir.as_ref()).unwrap().iter().filter(|e| !e.is_dir && ours(&e.name)).map(|e| e.len).sum()
    };
    sizes("/log", |n| n.starts_with("seg-") || n.starts_with("spare-")) + sizes("/log/pool", |_| true) + sizes(SIDE, |_| true)
}

/// Twelve tables that cannot be published, in requests of one table and of all, beside one that can: the directory stays below
/// `wal.max_size`, the twelve are refused first, and nothing that was acknowledged is lost.
#[test]
fn side_segments_count_in_the_size_of_the_log() {
    let bad: Vec<String> = (0..12).map(|n| format!("bad{n:02}")).collect();
    let names: Vec<&str> = bad.iter().map(String::as_str).collect();
    for all_at_once in [false, true] {
        let (store, max) = (SimStore::new(), 2 << 20);
        let shape = Shape { max_size: max, max_outputs: 100, max_rows: 1 << 30, compression: "none" };
        let mut s = Server::new(MemoryDisk::default(), 7, store.clone(), shape);
        store.set_faults(|op| (op.call == Call::Publish && op.name.contains("/bad")).then_some(Fault::Fails(libc::EACCES)));
        s.start();
        let (mut id, mut good, mut most) = (0, 0, 0);
        for round in 0..6_000 {
            let request = if all_at_once { names.clone() } else { vec![names[round % 12]] };
            let c = s.core();
            let taken = c.shared.admit().is_ok() && c.control.refuses("db", request.iter().copied()).is_none();
            if taken {
                s.append(id, &request, 0);
                id += 1;
            }
            let c = s.core();
            if round % 10 == 0 && c.shared.admit().is_ok() {
                s.append(id, &["good"], 0);
                id += 1;
                good += 1;
            }
            if round % 5 == 0 {
                s.step();
            }
            most = most.max(counted(&s));
        }
        assert!(most <= max, "{most} bytes of {max}");
        let d = s.core().control.deferred();
        assert!(d.outputs > 0 && !d.refused.is_empty(), "{d:?}");
        assert!(s.core().control.refuses("db", ["good"]).is_none());
        assert!(good > 500, "the good table was taken {good} times of 600");
        store.clear_faults();
        assert!(s.drain(), "{:?}", s.core().shared.last_error());
        // One row for each sequence.
        assert_eq!(rows(&store).len() as u64, s.core().shared.watermarks().durable);
        assert_eq!(s.disk.list(SIDE.as_ref()).unwrap().len(), 0);
    }
}

/// A side segment whose entry is not there may be all that is left of some rows.
#[test]
fn a_side_segment_that_nothing_names_is_kept_and_named() {
    let (mut s, _s3, store) = taken(&["a"]);
    s.kill();
    let name = s.disk.list(SIDE.as_ref()).unwrap()[0].name.clone();
    let stray = "out-0000000000000009-00000000.wal";
    let bytes = crate::vfs::read_all(&*s.disk.open(format!("{SIDE}/{name}").as_ref(), false).unwrap()).unwrap();
    crate::vfs::write_durable(&s.disk, SIDE.as_ref(), stray, &[&bytes]).unwrap();
    s.start();
    assert_eq!(s.core().control.deferred().strays, [stray]);
    for name in store.objects().into_keys().filter(|n| n.ends_with(".parquet")) {
        store.remove(&name);
    }
    assert!(s.drain());
    let left: Vec<_> = s.disk.list(SIDE.as_ref()).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(left, [stray], "the one whose output is committed is gone, the other one is not");
}

/// A flush waits for what can come, not for a file that is not there.
#[test]
fn a_flush_names_a_side_segment_that_is_missing() {
    let (mut s, _s3, store) = taken(&["a"]);
    s.kill();
    let name = s.disk.list(SIDE.as_ref()).unwrap()[0].name.clone();
    s.disk.rename(format!("{SIDE}/{name}").as_ref(), "/log/away".as_ref()).unwrap();
    s.start();
    s.append(1, &["b"], 0);
    let flush = |s: &mut Server| {
        let control = Arc::clone(&s.core().control);
        let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _in = rt.enter();
        let mut flush = std::pin::pin!(control.flush(Duration::from_secs(3600)));
        for _ in 0..500 {
            let waker = std::task::Waker::noop();
            if let std::task::Poll::Ready(x) = flush.as_mut().poll(&mut std::task::Context::from_waker(waker)) {
                return x;
            }
            s.step();
        }
        panic!("the flush has no answer");
    };
    let super::control::Shipped::Lost(why) = flush(&mut s) else { panic!("not lost") };
    assert!(why.contains(&name) && why.contains("arc wal deferred give-up"), "{why}");
    assert_eq!(s.core().control.deferred().lost.keys().collect::<Vec<_>>(), [&name]);
    assert!(store.objects().keys().any(|n| n.contains("/b/")), "the other table is shipped");
    // The file is back: the same flush succeeds.
    s.disk.rename("/log/away".as_ref(), format!("{SIDE}/{name}").as_ref()).unwrap();
    for name in store.objects().into_keys().filter(|n| n.contains("/a/")) {
        store.remove(&name);
    }
    assert!(matches!(flush(&mut s), super::control::Shipped::Done { .. }));
    assert_eq!(rows(&store).len(), 2);
}
