//! `arc drain`: what a node that is gone has left reaches Parquet once, whoever else has a part in it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::exactly_once::{BUSY, Dice, Fate, Load};
use super::lake;
use super::lifecycle::{PAUSED, T, contents, damage, log_files, one, shipped, unshipped};
use super::msgpack::mp;
use super::server::{self, PATIENCE, Place, copy_dir, until};

/// A drain that is started and may be killed.
fn launch(place: &Path, dir: &Path, args: &[&str]) -> Child {
    let mut c = Command::new(server::arc());
    c.args(["drain", dir.to_str().unwrap(), "--json"]).args(args).current_dir(place).env_clear().envs(server::profile());
    c.args(["--set", "log.format=text"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

struct Drained {
    code: Option<i32>,
    report: Value,
    log: String,
}

fn ended(out: &Output) -> Drained {
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    Drained { code: out.status.code(), report: serde_json::from_slice(&out.stdout).unwrap_or_default(), log }
}

fn drain_dir(place: &Path, dir: &Path, args: &[&str]) -> Drained {
    ended(&launch(place, dir, args).wait_with_output().unwrap())
}

fn drain(place: &Place, args: &[&str]) -> Drained {
    drain_dir(place.path(), &place.wal(), args)
}

/// A drain that must succeed; its report.
fn drained(place: &Place) -> Value {
    let d = drain(place, &[]);
    assert_eq!(d.code, Some(0), "{} {}", d.report, d.log);
    assert_eq!((&d.report["status"], &d.report["segments_left"]), (&json!("drained"), &json!(1)), "{}", d.report);
    assert_eq!(d.report["through_seq"], d.report["target_seq"], "{}", d.report);
    d.report
}

/// Nothing of the log is left but what every start leaves.
fn is_empty(wal: &Path) {
    assert_eq!(log_files(wal, "seg-").len(), 1);
    assert!(log_files(wal, "spare-").is_empty() && log_files(&wal.join("pool"), "").is_empty());
}

#[test]
fn what_a_killed_node_left_is_in_parquet_and_it_may_come_back() {
    let place = Place::new();
    // It never shipped anything, and was told not to.
    let mut dead = place.start(&[PAUSED]);
    for n in 0..5 {
        dead.store(&one(n));
    }
    let kept = dead.store_with(&[("Idempotency-Key", "k")], &one(5));
    let log = dead.status()["log_uuid"].clone();
    dead.kill();
    let report = drained(&place);
    assert_eq!((&report["log_uuid"], &report["rows"], &report["files"]), (&log, &json!(6), &json!(1)), "{report}");
    assert_eq!((&report["through_seq"], &report["quarantined"]["records"], &report["damage"]), (&json!(6), &json!(0), &json!(0)));
    assert_eq!(shipped(&place), [0, 1, 2, 3, 4, 5]);
    is_empty(&place.wal());
    let reserve = std::fs::metadata(place.wal().join("reserve")).unwrap().len();
    assert!((256 << 10..=512 << 10).contains(&reserve), "{reserve}: the reserve is the node's, as long as its manifest needs it");
    let names = lake::names(&place.lake());
    assert!(names.iter().all(|n| n.contains(log.as_str().unwrap())), "{names:?}");

    // Again: nothing to do.
    let again = drained(&place);
    assert_eq!((&again["rows"], &again["files"], &again["through_seq"]), (&json!(0), &json!(0), &json!(6)), "{again}");
    assert_eq!(lake::names(&place.lake()), names);

    // The node comes back: nothing to ship, its sequences go on, its keys are known.
    let back = place.start(&[]);
    assert_eq!(back.flush()["rows"], 0);
    let retried = back.write(&[("Idempotency-Key", "k")], &one(5));
    assert_eq!((retried.status, retried.sequence(), retried.header("idempotency-replayed")), (204, Some(kept), Some("true")), "{retried}");
    assert_eq!(back.store(&one(6)), 7);
    back.flush();
    back.stop();
    assert_eq!(shipped(&place), [0, 1, 2, 3, 4, 5, 6]);
}

/// Under load a node is killed, its log drained (by several that are killed as well), and started again.
#[test]
fn killed_under_load_and_drained_every_acknowledged_row_is_there_once() {
    let place = Place::new();
    let mut dice = Dice(11);
    let mut server = place.start(BUSY);
    let (load, threads) = Load::start(server.addr, false, 4);
    let (mut cut, mut whole) = (0, 0);
    for round in 0..6 {
        dice.nap(150, 600);
        server.kill();
        for _ in 0..round % 3 {
            let mut child = launch(place.path(), &place.wal(), &["--set", "compaction.trigger_size=64KB"]);
            dice.nap(1, 60);
            let cut_off = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            cut += u32::from(cut_off);
        }
        if round % 2 == 0 {
            drained(&place);
            is_empty(&place.wal());
            whole += 1;
        }
        server = place.start(BUSY);
        load.moved_to(server.addr);
    }
    dice.nap(100, 300);
    server.kill();
    load.stop(threads);
    drained(&place);
    assert!(load.check(&place) > 50 && cut > 1 && whole == 3, "{cut} cut off, {whole} whole");
    assert!(load.any(Fate::Unknown), "no kill hit a request");
    let unfinished: Vec<String> =
        lake::names(&place.lake()).into_iter().filter(|n| !n.ends_with(".parquet") && !n.starts_with("_arc/")).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

/// Each kill comes as soon as the drain has published something more; what it left half done is taken up under the same names.
#[test]
fn a_drain_that_is_killed_is_repeated() {
    let place = Place::new();
    let mut server = place.start(&[PAUSED]);
    for n in 0..20 {
        let items: Vec<Value> = (0..8)
            .map(|t| {
                let time: Vec<i64> = (0..6).map(|h| T + h * 3_600_000_000 + n).collect();
                json!({"m": format!("t{t}"), "columns": {"time": time, "n": (0..6).map(|h| n * 48 + t * 6 + h).collect::<Vec<_>>()}})
            })
            .collect();
        server.store(&mp(&json!({"batch": items})));
    }
    server.kill();
    let sets = ["--set", "compaction.workers=1", "--set", "compaction.max_outputs=20"];
    let mut kills = 0;
    for _ in 0..12 {
        let before = lake::names(&place.lake()).len();
        let mut child = launch(place.path(), &place.wal(), &sets);
        let end = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() && lake::names(&place.lake()).len() <= before + kills % 5 {
            assert!(Instant::now() < end, "no progress");
        }
        let over = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if over {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills hit the drain");
    drained(&place);
    let mut ids: Vec<i64> = lake::files(&place.lake(), "default").iter().flat_map(|f| &f.rows).map(|r| r["n"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..20 * 48).collect::<Vec<_>>());
}

/// Two nodes on one lake, both gone, drained at the same time from a third place.
#[test]
fn two_nodes_on_one_lake_are_drained_side_by_side() {
    let (place, other) = (Place::new(), Place::new());
    let lake_at = format!("storage.local_path={}", place.lake().display());
    let mut a = place.start(&[PAUSED, &lake_at]);
    let mut b = other.start(&[PAUSED, &lake_at]);
    for n in 0..6 {
        if n % 2 == 0 {
            a.store(&one(n))
        } else {
            b.store(&one(n))
        };
    }
    // A retry that reaches the other node is another request: keys are known in one log.
    a.store_with(&[("Idempotency-Key", "k")], &one(6));
    assert_eq!(b.write(&[("Idempotency-Key", "k")], &one(6)).header("idempotency-replayed"), None);
    a.kill();
    b.kill();
    let third = tempfile::tempdir().unwrap();
    let args = ["--set", &lake_at];
    let (x, y) = (launch(third.path(), &place.wal(), &args), launch(third.path(), &other.wal(), &args));
    let (x, y) = (ended(&x.wait_with_output().unwrap()), ended(&y.wait_with_output().unwrap()));
    assert_eq!((x.code, y.code), (Some(0), Some(0)), "{} {}", x.log, y.log);
    assert_ne!(x.report["log_uuid"], y.report["log_uuid"]);
    assert_eq!((&x.report["rows"], &y.report["rows"]), (&json!(4), &json!(4)));
    assert_eq!(shipped(&place), [0, 1, 2, 3, 4, 5, 6, 6]);
    assert!(std::fs::read_dir(third.path()).unwrap().next().is_none(), "nothing is made where it runs");
}

fn second(place: &Place) -> PathBuf {
    place.path().join("data/wal2")
}

/// A copy is drained, then the node starts on the original: it finds its plan and its files there.
#[test]
fn a_drained_copy_doubles_nothing() {
    let place = unshipped();
    copy_dir(&place.wal(), &second(&place));
    let d = drain_dir(place.path(), &second(&place), &[]);
    assert_eq!((d.code, &d.report["rows"]), (Some(0), &json!(3)), "{}", d.log);
    let names = lake::names(&place.lake());
    let server = place.start(&[]);
    server.flush();
    server.stop();
    assert_eq!(lake::names(&place.lake()), names);
    assert_eq!(shipped(&place), [0, 1, 2]);
}

/// The original has gone on and shipped more: the drain of the copy stops, ships and releases nothing.
#[test]
fn a_copy_of_a_node_that_went_on_is_forked() {
    let place = unshipped();
    copy_dir(&place.wal(), &second(&place));
    let server = place.start(&[]);
    server.store(&one(3));
    server.flush();
    server.stop();
    // The copy has something of its own as well.
    let server = place.start(&[PAUSED, "wal.directory=data/wal2"]);
    server.store(&one(100));
    server.stop();
    let (names, segments) = (lake::names(&place.lake()), log_files(&second(&place), "seg-"));
    let d = drain_dir(place.path(), &second(&place), &[]);
    assert_eq!((d.code, &d.report["status"], &d.report["rows"]), (Some(3), &json!("forked"), &json!(0)), "{} {}", d.report, d.log);
    assert!(d.log.contains("Forked"), "{}", d.log);
    assert_eq!(lake::names(&place.lake()), names);
    assert!(segments.iter().all(|s| s.exists()), "nothing released");
    assert_eq!(shipped(&place), [0, 1, 2, 3]);
}

/// A copy is drained while the original still takes writes: the plan that both want is the copy's, so the original stops, and no row is
/// there twice.
#[test]
fn a_node_whose_copy_was_drained_is_forked() {
    let place = Place::new();
    let mut server = place.start(&["compaction.max_delay=1h"]);
    for n in 0..3 {
        server.store(&one(n));
    }
    copy_dir(&place.wal(), &second(&place));
    server.store(&one(3));
    let d = drain_dir(place.path(), &second(&place), &[]);
    assert_eq!((d.code, &d.report["rows"]), (Some(0), &json!(3)), "{}", d.log);
    let _ = server.try_call("POST", "/api/v1/flush?timeout=5s", &[], b"");
    assert_eq!(server.wait_end(PATIENCE).code(), Some(3), "{}", server.log());
    assert_eq!(shipped(&place), [0, 1, 2]);
    // Its own drain says the same, and its rows are still in its log.
    let d = drain(&place, &[]);
    assert_eq!((d.code, &d.report["status"]), (Some(3), &json!("forked")), "{}", d.log);
    assert_eq!(shipped(&place), [0, 1, 2]);
    let dump = Command::new(server::arc()).args(["wal", "dump", place.wal().to_str().unwrap()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&dump.stdout).lines().count(), 4);
}

#[test]
fn a_damaged_log_is_drained_and_its_loss_is_said() {
    let place = unshipped();
    damage(&place);
    let before = contents(&place.wal());
    let d = drain(&place, &["--set", "wal.on_damage=refuse"]);
    assert_eq!(d.code, Some(3), "{}", d.log);
    assert!(d.log.contains("wal.on_damage"), "{}", d.log);
    assert_eq!(contents(&place.wal()), before);
    // Also when it is repeated: the directory is not to be thrown away.
    for rows in [2, 0] {
        let d = drain(&place, &[]);
        assert_eq!((d.code, &d.report["status"], &d.report["damage"]), (Some(3), &json!("drained"), &json!(1)), "{} {}", d.report, d.log);
        assert_eq!(d.report["rows"], rows, "{}", d.report);
        assert!(d.log.contains("found damaged") && d.log.contains("/side"), "{}", d.log);
        // The bytes of the place, and the whole segment, which is kept until it is acknowledged.
        let side = place.wal().join("side");
        let places = log_files(&side, "").iter().filter(|f| f.extension().is_some_and(|e| e == "bin")).count();
        assert_eq!((places, log_files(&side, "damaged-").len()), (1, 1));
    }
    assert_eq!(shipped(&place), [1, 2]);
}

#[test]
fn what_cannot_be_drained_is_left_alone() {
    let place = Place::new();
    let nothing = place.path().join("nothing");
    let d = drain_dir(place.path(), &nothing, &[]);
    assert_eq!(d.code, Some(1), "{}", d.log);
    assert!(!nothing.exists());
    std::fs::create_dir(&nothing).unwrap();
    let d = drain_dir(place.path(), &nothing, &[]);
    assert_eq!(d.code, Some(1), "{}", d.log);
    assert!(std::fs::read_dir(&nothing).unwrap().next().is_none());

    let server = place.start(&["compaction.max_delay=1h"]);
    server.store(&one(0));
    let d = drain(&place, &[]);
    assert_eq!(d.code, Some(75), "{}", d.log);
    assert!(d.log.contains("another process has this log open"), "{}", d.log);
    server.stop();

    let before = contents(&place.wal());
    for (set, code) in [("wal.on_damage=maybe", 78), ("storage.local_path=data/wal", 78)] {
        let d = drain(&place, &["--set", set]);
        assert_eq!(d.code, Some(code), "{}", d.log);
    }
    assert_eq!(drain(&place, &["--timeout", "soon"]).code, Some(2));
    // A lake that never held this log's files is not its lake.
    let d = drain(&place, &["--set", "storage.local_path=data/other"]);
    assert_eq!(d.code, Some(3), "{}", d.log);
    assert!(d.log.contains("storage.accept_new_lake"), "{}", d.log);
    for e in ["seg-", "manifest-"] {
        let names = |c: &[(PathBuf, usize, u32)]| c.iter().filter(|f| f.0.to_string_lossy().contains(e)).count();
        assert!(names(&contents(&place.wal())) >= names(&before));
    }
    assert_eq!(drained(&place)["rows"], 0);
}

/// The layout of a log's files is the node's, whatever the draining machine would choose.
#[test]
fn files_lie_where_the_node_put_them() {
    let place = Place::new();
    let mut server = place.start(&["storage.layout=arc", "compaction.compression=snappy", "compaction.max_delay=1h"]);
    server.store(&one(0));
    server.flush();
    server.store(&one(1));
    server.kill();
    let d = drain(&place, &["--set", "storage.layout=hive"]);
    assert_eq!(d.code, Some(0), "{}", d.log);
    assert!(d.log.contains("storage.layout"), "{}", d.log);
    assert_eq!(shipped(&place), [0, 1]);
    let names = lake::names(&place.lake());
    let files: Vec<&String> = names.iter().filter(|n| n.ends_with(".parquet")).collect();
    assert!(files.len() == 2 && files.iter().all(|n| n.starts_with("default/t/2023/11/14/22/")), "{files:?}");
}

/// A file that is in the way of the lake's directories: out of time, stopped by a signal, and drained once it is gone.
#[test]
fn time_and_signals_end_it_and_it_can_be_repeated() {
    let place = unshipped();
    let in_the_way = place.lake().join("default");
    std::fs::create_dir_all(place.lake()).unwrap();
    std::fs::write(&in_the_way, b"").unwrap();
    let d = drain(&place, &["--timeout", "700ms"]);
    assert_eq!((d.code, &d.report["status"]), (Some(1), &json!("timeout")), "{} {}", d.report, d.log);
    assert!(d.report["last_error"].as_str().unwrap().contains("default") && d.log.contains("drain again"), "{} {}", d.report, d.log);
    assert_eq!((&d.report["through_seq"], &d.report["target_seq"]), (&json!(0), &json!(3)));

    let child = launch(place.path(), &place.wal(), &[]);
    std::thread::sleep(Duration::from_millis(700));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let d = ended(&child.wait_with_output().unwrap());
    assert_eq!((d.code, &d.report["status"]), (Some(1), &json!("stopped")), "{} {}", d.report, d.log);

    std::fs::remove_file(&in_the_way).unwrap();
    assert_eq!(drained(&place)["rows"], 3);
    assert_eq!(shipped(&place), [0, 1, 2]);
}

/// An output whose name somebody else has taken: everything else is drained, and the drain ends and says so.
#[test]
fn an_output_whose_name_is_taken_needs_a_person() {
    let place = Place::new();
    // Small enough that what waits behind the output moves aside at once.
    let small = ["wal.max_size=1MB", "compaction.trigger_size=64KB", "compaction.max_delay=1h", "ingest.max_record_size=64KB"];
    let mut server = place.start(&small);
    let log = server.status()["log_uuid"].as_str().unwrap().to_owned();
    let taken = place.lake().join(format!("default/t/date=2023-11-14/hour=22/{log}-{:020}-{:020}-0000.parquet", 1, 1));
    std::fs::create_dir_all(taken.parent().unwrap()).unwrap();
    std::fs::write(&taken, b"not ours").unwrap();
    server.store(&one(0));
    server.call("POST", "/api/v1/flush?timeout=300ms", &[], b"");
    let big = |n: i64| mp(&json!({"m": "big", "columns": {"time": [T + n], "n": [n], "x": ["y".repeat(40 << 10)]}}));
    until("the output is put aside", || {
        server.write(&[], &big(server.watermark("appended") as i64));
        (server.status()["deferred"]["outputs"] == 1).then_some(())
    });
    let acked = server.watermark("durable");
    server.kill();
    let d = drain(&place, &[]);
    assert_eq!(
        (d.code, &d.report["status"], &d.report["deferred"]["records"]),
        (Some(3), &json!("waiting"), &json!(1)),
        "{} {}",
        d.report,
        d.log
    );
    assert!(d.log.contains("another object has this name") && d.log.contains("An output waits"), "{}", d.log);
    assert_eq!((log_files(&place.wal(), "seg-").len(), log_files(&place.wal().join("side"), "out-").len()), (1, 1));
    assert_eq!(lake::rows(&place.lake(), "default", "big").len() as u64, acked - 1);
    std::fs::remove_file(&taken).unwrap();
    drained(&place);
    assert_eq!(shipped(&place), [0]);
    assert!(log_files(&place.wal().join("side"), "out-").is_empty());
}

/// Many drains of one log at once: one of them works, the others hear that it is in use.
#[test]
fn one_drain_at_a_time() {
    let place = Arc::new(unshipped());
    let children: Vec<Child> = (0..4).map(|_| launch(place.path(), &place.wal(), &[])).collect();
    let codes: Vec<Option<i32>> = children.into_iter().map(|c| c.wait_with_output().unwrap().status.code()).collect();
    assert!(codes.iter().all(|c| matches!(c, Some(0 | 75))) && codes.contains(&Some(0)), "{codes:?}");
    assert_eq!(shipped(&place), [0, 1, 2]);
}
