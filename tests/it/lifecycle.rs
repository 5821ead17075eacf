//! Starting, stopping, refusing to start; when rows are shipped; copies of a log.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lake;
use super::msgpack::mp;
use super::server::{Place, Server, copy_dir, until};

pub const T: i64 = 1_700_000_000_000_000;
pub const PAUSED: &str = "compaction.paused=true";

pub fn one(n: i64) -> Vec<u8> {
    mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n]}}))
}

pub fn shipped(place: &Place) -> Vec<i64> {
    lake::rows(&place.lake(), "default", "t").iter().map(|r| r["n"].as_i64().unwrap()).collect()
}

/// Name, length and CRC of every file, LOCK aside: what must not change.
pub fn contents(dir: &Path) -> Vec<(PathBuf, usize, u32)> {
    let mut out = Vec::new();
    for e in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if e.file_type().unwrap().is_dir() {
            out.extend(contents(&e.path()));
        } else if e.file_name() != "LOCK" {
            let bytes = std::fs::read(e.path()).unwrap();
            out.push((e.path(), bytes.len(), crc32fast::hash(&bytes)));
        }
    }
    out.sort();
    out
}

/// Files of the log's directory whose name begins so, sorted.
pub fn log_files(wal: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = std::fs::read_dir(wal)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix))
        .collect();
    out.sort();
    out
}

#[test]
fn sigterm_ships_everything_and_exits_0() {
    let place = Place::new();
    let mut server = place.start(&["compaction.max_delay=1h", "server.shutdown_timeout=10s"]);
    for n in 0..5 {
        server.store(&one(n));
    }
    assert!(shipped(&place).is_empty());
    let started = Instant::now();
    server.terminate();
    let status = server.wait_end(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(shipped(&place), [0, 1, 2, 3, 4]);
    let server = place.start(&[]);
    assert_eq!(server.store(&one(5)), 6, "sequences go on");
    assert_eq!(server.flush()["rows"], 1);
}

#[test]
fn a_second_server_on_the_same_log_exits_75() {
    let place = Place::new();
    let first = place.start(&["compaction.max_delay=1h"]);
    first.store(&one(0));
    let files = || [log_files(&place.wal(), "seg-"), log_files(&place.wal(), "manifest")];
    let before = files();
    let (code, log) = place.run_to_end(&[]);
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("LOCK") && log.contains("another process"), "{log}");
    assert_eq!(files(), before);
    first.store(&one(1));
    assert_eq!(first.flush()["rows"], 2);
    assert_eq!(shipped(&place), [0, 1]);
}

#[test]
fn a_port_in_use_exits_1_and_touches_no_log() {
    let first = Place::new();
    let server = first.start(&[]);
    let second = Place::new();
    let (code, log) = second.run_to_end(&[&format!("server.port={}", server.addr.port())]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("cannot listen on") && log.contains("server.port"), "{log}");
    assert!(!second.wal().exists());
}

#[test]
fn a_bad_configuration_exits_78() {
    let place = Place::new();
    for (set, says) in [
        ("wal.nothing=1", "wal.nothing"),
        ("wal.segment_size=1KB", "wal.segment_size"),
        ("server.port=99999", "server.port"),
        ("server.host=0.0.0.0", "server.insecure"),
        ("server.host=::", "server.insecure"),
        ("wal.max_size=1MB", "wal.max_size"),
        ("wal.on_damage=maybe", "wal.on_damage"),
        ("nonsense", "nonsense"),
    ] {
        let (code, log) = place.run_to_end(&[set]);
        assert_eq!(code, Some(78), "{set}: {log}");
        assert!(log.contains(says), "{set}: {log}");
    }
    std::fs::write(place.path().join("arc.toml"), "[wal]\nsegment_siez = \"1MB\"\n").unwrap();
    let (code, log) = place.run_to_end(&[]);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("segment_siez") && log.contains("line 2"), "{log}");
    assert!(!place.wal().exists());
}

#[test]
fn health_ready_and_status_bodies() {
    let place = Place::new();
    let server = place.start(&[]);
    let health = server.get("/health");
    assert_eq!(health.status, 200);
    let h = health.json();
    assert_eq!((&h["status"], &h["name"], &h["message"]), (&json!("pass"), &json!("arc"), &json!("ready for queries and writes")));
    assert!(h["version"].is_string() && h["uptime_sec"].is_u64(), "{h}");
    let ready = server.get("/ready").json();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("ready"), &Value::Null));
    server.store(&one(0));
    let s = server.status();
    assert_eq!((&s["watermarks"]["appended"], &s["watermarks"]["durable"]), (&json!(1), &json!(1)), "{s}");
    for key in ["version", "log_uuid", "segments", "backlog", "plans", "tables", "quarantine", "keys", "last_error"] {
        assert!(s.get(key).is_some(), "{key}: {s}");
    }
    assert_eq!(
        s["tables"][0],
        json!({"database": "default", "table": "t", "columns": [{"name": "n", "type": "int64", "tag": false}], "widened": []})
    );
    assert_eq!(server.call("HEAD", "/health", &[], b"").status, 200);
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.lines().any(|l| l == "arc_wal_durable_sequence 1"), "{metrics}");
    let spec = server.get("/api/v1/write/msgpack/spec").json();
    assert_eq!(spec["success"], 204);
    assert!(server.get("/api/v1/write/msgpack/stats").json()["requests_durable"].is_u64());
}

/// Row n must be in Parquet not before most of `delay` has passed and not later than a tenth more, and what a loaded machine
/// takes on top.
fn in_time(server: &Server, place: &Place, n: i64, delay: Duration) {
    server.store(&one(n));
    let started = Instant::now();
    until("the row is in Parquet", || shipped(place).contains(&n).then_some(()));
    let took = started.elapsed();
    assert!(took < delay.mul_f64(1.1) + Duration::from_secs(1), "row {n} took {took:?}");
    assert!(took > delay / 2, "row {n} took only {took:?}");
}

#[test]
fn age_ships_within_max_delay() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=2s"]);
    in_time(&server, &place, 0, Duration::from_secs(2));
    server.store(&one(1));
    server.flush();
    in_time(&server, &place, 2, Duration::from_secs(2));
}

#[test]
fn size_ships_without_waiting() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=1h", "compaction.trigger_size=64KB"]);
    let fill = |from: i64| {
        for n in from..from + 12 {
            // Text that does not shrink much.
            let text: Vec<String> =
                (0..500).map(|k| format!("{:016x}", (k * 7919 + n * 104_729i64).wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64))).collect();
            server.store(&mp(&json!({"m": "t", "columns": {"time": vec![T + n; 500], "n": vec![n; 500], "text": text}})));
        }
    };
    fill(0);
    until("the size trigger", || (!shipped(&place).is_empty()).then_some(()));
    // And again after the first time.
    let before = shipped(&place).len();
    fill(12);
    until("the size trigger again", || (shipped(&place).len() > before).then_some(()));
    server.flush();
    assert_eq!(shipped(&place).len(), 24 * 500);
}

#[test]
fn paused_keeps_the_log_and_a_restart_drains_it() {
    let place = Place::new();
    let server = place.start(&[PAUSED, "compaction.max_delay=50ms"]);
    assert_eq!(server.flush()["rows"], 0, "nothing to do is no error");
    for n in 0..3 {
        server.store(&one(n));
    }
    let flush = server.call("POST", "/api/v1/flush?timeout=1s", &[], b"");
    assert_eq!((flush.status, flush.json()["reason"].as_str()), (503, Some("paused")), "{flush}");
    assert!(flush.header("retry-after").is_some());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((shipped(&place).len(), server.watermark("shipped")), (0, 0));
    server.stop();
    assert!(shipped(&place).is_empty(), "paused is paused, also at the end");
    // Due at once, whatever the delay.
    let server = place.start(&["compaction.max_delay=1h"]);
    until("the drain", || (server.watermark("shipped") == 3).then_some(()));
    assert_eq!(shipped(&place), [0, 1, 2]);
    server.stop();
}

#[test]
fn a_flush_that_takes_too_long_is_504() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=1h"]);
    server.store(&one(0));
    let r = server.call("POST", "/api/v1/flush?timeout=0ms", &[], b"");
    assert_eq!(r.status, 504, "{r}");
    assert_eq!(r.json(), json!({"status": "timeout", "through_seq": 0, "target_seq": 1}));
    // It goes on without the client.
    until("the flush", || (server.watermark("shipped") == 1).then_some(()));
    let r = server.call("POST", "/api/v1/write/line-protocol/flush?timeout=10", &[], b"");
    assert_eq!(r.json(), json!({"status": "success", "files": 0, "rows": 0, "through_seq": 1}));
}

/// A place with three unshipped rows in one stopped log.
pub fn unshipped() -> Place {
    let place = Place::new();
    let server = place.start(&[PAUSED]);
    for n in 0..3 {
        server.store(&one(n));
    }
    server.stop();
    place
}

#[test]
fn a_log_without_its_manifest_is_refused() {
    let place = unshipped();
    let manifest = log_files(&place.wal(), "manifest").pop().unwrap();
    let away = place.path().join("manifest-away");
    std::fs::rename(&manifest, &away).unwrap();
    let before = contents(&place.wal());
    let (code, log) = place.run_to_end(&[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("manifest"), "{log}");
    assert_eq!(contents(&place.wal()), before);
    assert!(lake::names(&place.lake()).iter().all(|name| name.starts_with("_arc/")));
    std::fs::rename(&away, &manifest).unwrap();
    place.start(&[]).flush();
    assert_eq!(shipped(&place), [0, 1, 2]);
}

#[test]
fn a_log_that_lost_a_segment_is_refused() {
    let place = unshipped();
    let segment = log_files(&place.wal(), "seg-").remove(0);
    std::fs::remove_file(&segment).unwrap();
    let before = contents(&place.wal());
    let (code, log) = place.run_to_end(&[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("segment"), "{log}");
    assert_eq!(contents(&place.wal()), before);
}

/// Flips a byte in the payload of the first record of the oldest segment.
pub fn damage(place: &Place) {
    let segment = log_files(&place.wal(), "seg-").remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = arc_ingest::limits::FILE_HEADER_BYTES + arc_ingest::limits::RECORD_HEADER_BYTES + 9;
    bytes[at] ^= 0x10;
    std::fs::write(&segment, bytes).unwrap();
}

#[test]
fn damage_is_refused_when_configured() {
    let place = unshipped();
    damage(&place);
    let before = contents(&place.wal());
    let (code, log) = place.run_to_end(&["wal.on_damage=refuse"]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("wal.on_damage") && log.contains("damage"), "{log}");
    assert_eq!(contents(&place.wal()), before);
}

#[test]
fn damage_is_set_aside_by_default() {
    let place = unshipped();
    damage(&place);
    let mut server = place.start(&[PAUSED]);
    assert!(server.log().contains("damage in the log"), "{}", server.log());
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.lines().any(|l| l == "arc_wal_damage_findings_total 1"), "{metrics}");
    let side = log_files(&place.wal().join("side"), "");
    assert_eq!(side.len(), 1, "the bytes are kept");
    assert_eq!(server.store(&one(3)), 4, "the damaged sequence is not given out again");
    server.kill();
    let server = place.start(&[]);
    server.flush();
    assert_eq!(shipped(&place), [1, 2, 3], "only the damaged record is lost");
    until("the damaged segment is released", || (server.watermark("released") >= 3).then_some(()));
    let evidence = until("the damaged segment is kept", || log_files(&place.wal().join("side"), "damaged-").pop());
    let kept: Vec<_> = log_files(&place.wal().join("side"), "").into_iter().filter(|p| *p != evidence).collect();
    assert_eq!(kept, side, "kept once");
    server.stop();
    let server = place.start(&["wal.on_damage=refuse"]);
    assert_eq!(server.flush()["rows"], 0, "the damaged segment has gone with its rows shipped");
}

const SECOND: &str = "wal.directory=data/wal2";

/// Two copies of a log drain one after the other: the second finds its plan and its files there already.
#[test]
fn a_copy_of_a_log_doubles_nothing() {
    let place = unshipped();
    copy_dir(&place.wal(), &place.path().join("data/wal2"));
    let first = place.start(&[]);
    first.flush();
    let names = lake::names(&place.lake());
    let second = place.start(&[SECOND]);
    second.flush();
    assert_eq!(shipped(&place), [0, 1, 2]);
    assert_eq!(lake::names(&place.lake()), names);
    second.stop();
    first.stop();
}

/// Two copies of a log that both went on are two logs: the one that ships second stops.
#[test]
fn diverged_copies_are_forked() {
    let place = unshipped();
    copy_dir(&place.wal(), &place.path().join("data/wal2"));
    let second = place.start(&[PAUSED, SECOND]);
    second.store(&one(100));
    second.stop();
    let first = place.start(&[]);
    first.store(&one(3));
    first.flush();
    first.stop();
    let names = lake::names(&place.lake());
    let wal = |p: &Path| log_files(&p.join("data/wal2"), "seg-");
    let segments = wal(place.path());
    let (code, log) = place.run_to_end(&[SECOND]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("forked"), "{log}");
    assert_eq!(lake::names(&place.lake()), names, "nothing shipped");
    assert_eq!(shipped(&place), [0, 1, 2, 3]);
    assert!(segments.iter().all(|s| s.exists()), "nothing released");
}

/// A lake that is gone or another one is not filled silently, neither while running nor at a start.
#[test]
fn a_lake_that_vanished_is_not_made_anew() {
    let place = Place::new();
    let server = place.start(&[]);
    server.store(&one(1));
    server.flush();
    let away = place.path().join("away");
    std::fs::rename(place.lake(), &away).unwrap();
    server.store(&one(2));
    let r = server.call("POST", "/api/v1/flush?timeout=1s", &[], b"");
    assert_eq!(r.status, 504, "nothing is committed while the lake is away");
    assert!(!place.lake().exists());
    assert!(server.status()["last_error"].as_str().unwrap().contains("the lake's directory is gone"));
    std::fs::rename(&away, place.lake()).unwrap();
    server.flush();
    assert_eq!(shipped(&place), vec![1, 2]);
    server.stop();

    std::fs::rename(place.lake(), &away).unwrap();
    let (code, log) = place.run_to_end(&[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("storage.accept_new_lake"), "{log}");
    let server = place.start(&["storage.accept_new_lake=true"]);
    server.store(&one(3));
    server.flush();
    assert_eq!(shipped(&place), vec![3]);
    server.stop();
}
