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
