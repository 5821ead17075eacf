//! Mistakes that servers like this one have made, by the public issue that tells of each. A test here shows that this server
//! does not make it; where another module's test shows that already, its name stands in [`ELSEWHERE`].
//!
//! A killed process shows the order of steps, not what a power cut leaves of them: the page cache survives. Syncs, full disks
//! and poison need a simulated disk and are not claimed here.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lake;
use super::lifecycle::{contents, log_files, one, shipped, unshipped};
use super::msgpack::{arr, columnar, i, ints, mp, strs};
use super::server::{Client, Place, until};

const T: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600_000_000;

/// Issue, module, test.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("arc#594", "exactly_once", "killed_under_load_every_acknowledged_row_is_there_once"),
    ("arc#229", "exactly_once", "killed_in_the_middle_of_a_compaction"),
    ("arc#157, #240", "exactly_once", "killed_in_the_middle_of_a_compaction"),
    ("kafka-connect-storage-cloud#165, #388", "exactly_once", "killed_in_the_middle_of_a_compaction"),
    ("horaedb#394, neon#1744", "exactly_once", "killed_in_the_middle_of_a_compaction"),
    ("arc#401", "bad_inputs", "what_is_refused_leaves_no_trace"),
    ("arc#122", "bad_inputs", "what_is_refused_leaves_no_trace"),
    ("influxdb docs#5040", "bad_inputs", "what_is_refused_leaves_no_trace"),
    ("arc PR#493", "bad_inputs", "what_is_refused_leaves_no_trace"),
    ("arcadedb#8084, cortex PR#7515", "bad_inputs", "what_is_refused_leaves_no_trace"),
    ("arc#312", "accepted", "partitions_follow_the_rows_own_hour"),
    ("arc#202", "accepted", "schemas_grow_and_widen_across_flushes"),
    ("influxdb#3769, vector#21041", "accepted", "units_by_magnitude_and_by_header"),
    ("nats-server#7549", "lifecycle", "damage_is_set_aside_by_default"),
    ("prometheus#7245", "lifecycle", "damage_is_set_aside_by_default"),
    ("arc#142, PR#104", "lifecycle", "age_ships_within_max_delay"),
];

#[test]
fn tests_named_elsewhere_exist() {
    for (issue, module, test) in ELSEWHERE {
        let path = format!("{}/tests/it/{module}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("#[test]\nfn {test}()")), "{issue}: {module}::{test} is not there");
    }
}

/// arc#803, #218, #199: the log was deleted by age or by a shutdown hook. Here only a recorded commit lets go of it.
#[test]
fn arc_803_a_shutdown_without_shipping_keeps_the_log() {
    let place = unshipped();
    let segments = log_files(&place.wal(), "seg-").len();
    for _ in 0..3 {
        place.start(&["compaction.paused=true", "compaction.max_delay=10ms"]).stop();
    }
    assert!(log_files(&place.wal(), "seg-").len() >= segments);
    // A lake that cannot be written is no reason either; once it can, the drain goes on by itself.
    std::fs::create_dir_all(place.lake()).unwrap();
    let blocker = place.lake().join("default");
    std::fs::write(&blocker, b"").unwrap();
    let server = place.start(&[]);
    assert_eq!(server.call("POST", "/api/v1/flush?timeout=500ms", &[], b"").status, 504);
    let status = server.status();
    assert!(status["last_error"].is_string() && status["watermarks"]["released"] == 0, "{status}");
    assert_eq!(server.store(&one(3)), 4, "writes go on");
    std::fs::remove_file(&blocker).unwrap();
    server.flush();
    assert_eq!(shipped(&place), [0, 1, 2, 3]);
}

/// arc#590: replay did not share the live path's normalisation. The same requests, one server killed before it shipped them
/// and one not, make the same rows.
#[test]
fn arc_590_replayed_rows_equal_live_rows() {
    let send = |server: &super::server::Server| {
        server.store(&columnar("t", &[("time", ints(&[1_700_000_000])), ("host", strs(&["a"])), ("v", ints(&[1]))]));
        server.store(&mp(&json!({"m": "t", "t": 1_700_000_000_123i64, "h": 5, "fields": {"v": 1.5, "host": "x"}})));
        server.store_with(&[("x-arc-time-unit", "ns")], &columnar("t", &[("time", ints(&[-1])), ("v", ints(&[3]))]));
        server.store(&columnar("t", &[("time", arr(&[i(T)])), ("host", arr(&[vec![0xa2, 0xff, b'a']]))]));
    };
    let (live, replayed) = (Place::new(), Place::new());
    let server = live.start(&[]);
    send(&server);
    server.flush();
    let mut killed = replayed.start(&["compaction.paused=true"]);
    send(&killed);
    killed.kill();
    replayed.start(&[]).flush();
    let rows = |p: &Place| lake::rows(&p.lake(), "default", "t");
    assert_eq!(rows(&live).len(), 4);
    assert_eq!(rows(&live), rows(&replayed));
}

/// arc#225: a full queue dropped entries without an error; quickwit#5548: the log was never truncated and ingest stopped for
/// good. A full log refuses, keeps what it has, and takes writes again once it is drained.
#[test]
fn arc_225_a_full_log_refuses_and_recovers() {
    let place = Place::new();
    let small = ["wal.max_size=448KB", "compaction.trigger_size=128KB", "ingest.max_record_size=128KB", "wal.segment_size=64KB"];
    let paused = [&small[..], &["compaction.paused=true"]].concat();
    let server = place.start(&paused);
    let mut acked = Vec::new();
    let refused = (0..2000).find_map(|n| {
        let body = mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n], "text": ["z".repeat(3000)]}}));
        let r = server.write(&[], &body);
        match r.status {
            204 => acked.push(n),
            _ => return Some(r),
        }
        None
    });
    let refused = refused.expect("the log is never full");
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (503, Some("backlog")), "{refused}");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().is_ok());
    assert_eq!((server.get("/ready").status, server.get("/ready").json()["reason"].as_str()), (503, Some("backlog")));
    assert!(acked.len() > 20);
    server.stop();
    let server = place.start(&small);
    server.flush();
    assert_eq!(shipped(&place), acked);
    // Several times over what the log can hold.
    for n in 10_000..10_400 {
        let body = mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n], "text": ["z".repeat(3000)]}}));
        until("room", || (server.write(&[], &body).status == 204).then_some(()));
    }
    server.flush();
    assert_eq!(shipped(&place).len(), acked.len() + 400);
}

/// arc#340, object names by wall clock: two rotations in one second shared a file name. Many segments and many plans within a
/// second make many names.
#[test]
fn arc_340_names_do_not_come_from_a_clock() {
    let place = Place::new();
    let server = place.start(&["wal.segment_size=4KB", "wal.pool=0"]);
    for n in 0..40 {
        server.store(&one(n));
        if n % 10 == 9 {
            server.flush();
        }
    }
    let files = lake::names(&place.lake()).into_iter().filter(|n| n.ends_with(".parquet")).count();
    assert!((4..=40).contains(&files), "{files}");
    assert_eq!(shipped(&place), (0..40).collect::<Vec<_>>());
}

/// arc PR#484: a corrupt length made the reader allocate 4 GB and lose its place.
#[test]
fn arc_pr_484_a_damaged_length_costs_one_record() {
    let place = unshipped();
    let segment = log_files(&place.wal(), "seg-").remove(0);
    let clean = std::fs::read(&segment).unwrap();
    let header = arc_ingest::limits::FILE_HEADER_BYTES;
    // Every 4-byte field of the first record's header in turn becomes enormous.
    for at in (0..arc_ingest::limits::RECORD_HEADER_BYTES).step_by(4) {
        let mut bytes = clean.clone();
        bytes[header + at..header + at + 4].fill(0xff);
        std::fs::write(&segment, bytes).unwrap();
        let mut seen = Vec::new();
        let vfs = arc_ingest::vfs::OsVfs;
        let report = arc_ingest::wal::recover::inspect(&vfs, &place.wal(), &mut |v| seen.push(v.header.sequence), &mut |_| {}).unwrap();
        assert_eq!((seen, report.verdict()), (vec![2, 3], "damaged"), "field at {at}");
    }
    std::fs::write(&segment, clean).unwrap();
    place.start(&[]).flush();
    assert_eq!(shipped(&place), [0, 1, 2]);
}

/// influxdb#26970, #27654, #26549: zero-byte files after a power cut led to a panic at each start.
#[test]
fn influxdb_26970_empty_files_are_refused_by_name_or_harmless() {
    for prefix in ["seg-", "manifest-"] {
        let place = unshipped();
        let file = log_files(&place.wal(), prefix).remove(0);
        let clean = std::fs::read(&file).unwrap();
        std::fs::write(&file, b"").unwrap();
        let before = contents(&place.wal());
        let (code, log) = place.run_to_end(&[]);
        assert_eq!(code, Some(3), "{prefix}: {log}");
        assert!(log.contains(file.file_name().unwrap().to_str().unwrap()) && !log.contains("panic"), "{log}");
        assert_eq!(contents(&place.wal()), before, "{prefix}");
        std::fs::write(&file, clean).unwrap();
        place.start(&[]).flush();
        assert_eq!(shipped(&place), [0, 1, 2]);
    }
    // What an unfinished preparation leaves is cleared away.
    let place = unshipped();
    std::fs::write(place.wal().join("spare-0.tmp"), b"").unwrap();
    std::fs::write(place.wal().join("pool/seg-0000000000000001.wal"), b"").unwrap();
    place.start(&[]).flush();
    assert_eq!(shipped(&place), [0, 1, 2]);
}

/// prometheus#13027, vector#17644, #16525: half a record at the end, and later starts dropped good data behind it or never
/// came up again.
#[test]
fn prometheus_13027_a_torn_tail_is_cut_and_the_log_goes_on() {
    let place = unshipped();
    let newest = log_files(&place.wal(), "seg-").pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let block = arc_ingest::limits::BLOCK;
    let used = (0..bytes.len() / block).rev().find(|b| bytes[b * block..(b + 1) * block].iter().any(|x| *x != 0)).unwrap();
    // The first half of a record that stands elsewhere in the file.
    let first: Vec<u8> = bytes[2 * block..2 * block + 100].to_vec();
    bytes[(used + 1) * block..(used + 1) * block + 100].copy_from_slice(&first);
    std::fs::write(&newest, bytes).unwrap();
    for n in 3..6 {
        let mut server = place.start(&["compaction.paused=true"]);
        assert_eq!(server.store(&one(n)), n as u64 + 1);
        server.kill();
    }
    place.start(&[]).flush();
    assert_eq!(shipped(&place), [0, 1, 2, 3, 4, 5]);
}

/// greptimedb#1613: the sequence went backwards. It does not, also when everything was shipped and released before.
#[test]
fn greptimedb_1613_sequences_never_go_back() {
    let place = Place::new();
    let mut last = 0;
    for round in 0..4 {
        let mut server = place.start(&[]);
        for n in 0..3 {
            let sequence = server.store(&one(round * 3 + n));
            assert_eq!(sequence, last + 1);
            last = sequence;
        }
        if round % 2 == 0 {
            server.flush();
            until("released", || (server.watermark("released") == last).then_some(()));
        }
        server.kill();
    }
}

/// questdb PR#6531: a row dated 2100 made a retention job delete everything.
#[test]
fn questdb_6531_far_times_lose_nothing() {
    let place = Place::new();
    let server = place.start(&[]);
    server.store(&columnar("t", &[("time", ints(&[4_102_444_800, 1, -1_000_000_000])), ("n", ints(&[0, 1, 2]))]));
    server.flush();
    server.store(&one(3));
    server.flush();
    let mut n = shipped(&place);
    n.sort_unstable();
    assert_eq!(n, [0, 1, 2, 3]);
}

/// arc#130, #413: a schema change while flushing led to a panic and mixed files.
#[test]
fn arc_413_schemas_change_while_flushing() {
    let place = Place::new();
    let server = place.start(&["compaction.trigger_size=4KB", "compaction.max_delay=50ms", "wal.segment_size=4KB"]);
    let addr = server.addr;
    let flusher = std::thread::spawn(move || {
        let mut c = Client::connect(addr).unwrap();
        for _ in 0..20 {
            assert_eq!(c.call("POST", "/api/v1/flush", &[], b"").unwrap().status, 200);
        }
    });
    for n in 0..60i64 {
        let v = if n < 30 { json!(n) } else { json!(n as f64 + 0.5) };
        server.store(&mp(&json!({"m": "t", "columns": {"time": [T + n], "n": [n], "v": [v], format!("c{}", n / 6): [n]}})));
    }
    flusher.join().unwrap();
    server.flush();
    assert_eq!(shipped(&place), (0..60).collect::<Vec<_>>());
    let rows = lake::rows(&place.lake(), "default", "t");
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row["v"].as_f64(), Some(if n < 30 { n as f64 } else { n as f64 + 0.5 }), "{row}");
        assert_eq!(row[format!("c{}", n / 6)], n, "{row}");
    }
    assert_eq!(server.status()["quarantine"]["records"], 0);
}

/// arc#526: names sliced from a reused buffer put rows into other databases.
#[test]
fn arc_526_rows_stay_in_their_database_and_table() {
    let place = Place::new();
    let server = place.start(&[]);
    let addr = server.addr;
    let threads: Vec<_> = (0..4)
        .map(|t| {
            std::thread::spawn(move || {
                let mut c = Client::connect(addr).unwrap();
                for n in 0..60 {
                    let (db, table) = (format!("db{}{}", t, "x".repeat(n % 7)), format!("table{}{}", t, "y".repeat(n % 5)));
                    let body = mp(&json!({"m": table, "columns": {"time": [T], "db": [db], "table": [table]}}));
                    let r = c.call("POST", "/api/v1/write/msgpack", &[("x-arc-database", &db)], &body).unwrap();
                    assert_eq!(r.status, 204);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    server.flush();
    let files = lake::files(&place.lake(), "");
    for f in &files {
        let mut path = f.partition.split('/');
        let (db, table) = (path.next().unwrap(), path.next().unwrap());
        assert!(f.rows.iter().all(|r| r["db"] == db && r["table"] == table), "{}", f.partition);
    }
    assert_eq!(files.iter().map(|f| f.rows.len()).sum::<usize>(), 240);
}

/// telegraf#13826: one refused metric blocks all the others. A refused request says 400 and the next ones go through, on the
/// same connection.
#[test]
fn telegraf_13826_a_refused_request_blocks_nothing() {
    let place = Place::new();
    let server = place.start(&[]);
    let mut c = Client::connect(server.addr).unwrap();
    for n in 0..20 {
        let bad = c.call("POST", "/api/v1/write/msgpack", &[], &mp(&json!({"m": "t", "t": "x", "fields": {"n": n}}))).unwrap();
        assert_eq!(bad.status, 400);
        assert_eq!(c.call("POST", "/api/v1/write/msgpack", &[], &one(n)).unwrap().status, 204);
    }
    server.flush();
    assert_eq!(shipped(&place), (0..20).collect::<Vec<_>>());
}

/// vector#19210: thousands of tiny objects. Many small requests of one hour are one file.
#[test]
fn vector_19210_small_requests_share_a_file() {
    let place = Place::new();
    let server = place.start(&[]);
    for n in 0..50 {
        server.store(&mp(&json!({"m": "t", "columns": {"time": [T + n, T + n + HOUR], "n": [n, n]}})));
    }
    let f = server.flush();
    assert_eq!((f["files"].as_u64(), f["rows"].as_u64()), (Some(2), Some(100)));
}

/// influxdb#26481, #24427: replay loaded everything into memory. Opening and draining a log takes far less than the log.
#[cfg(target_os = "linux")]
#[test]
fn influxdb_26481_recovery_is_bounded_in_memory() {
    let peak = |pid: u32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let sets = ["wal.segment_size=2MB", "wal.max_size=256MB", "compaction.trigger_size=16MB"];
    let empty = Place::new();
    let idle = peak(empty.start(&sets).pid());
    let place = Place::new();
    let server = place.start(&[&sets[..], &["compaction.paused=true"]].concat());
    let row: Vec<String> = (0..1000i64).map(|n| format!("{:0200x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64))).collect();
    let mut stored = 0;
    for n in 0..400 {
        let body = mp(&json!({"m": "t", "columns": {"time": vec![T + n; 1000], "text": row}}));
        server.store(&body);
        stored += body.len();
    }
    server.stop();
    let log: u64 = log_files(&place.wal(), "seg-").iter().map(|f| f.metadata().unwrap().len()).sum::<u64>() >> 20;
    assert!(log >= 60, "{log} MB of {stored} bytes sent");
    let server = place.start(&[&sets[..], &["compaction.paused=true"]].concat());
    let opened = peak(server.pid());
    assert!(opened - idle < 24, "opening {log} MB took {opened} MB, an empty log {idle} MB");
}

/// A flush under way does not hold up writes. (arc PR#197, one slow upload that hung every flush worker, needs a slow store and
/// is not shown by this.)
#[test]
fn writes_go_on_while_a_flush_waits() {
    let place = unshipped();
    let server = place.start(&[]);
    let addr = server.addr;
    let flush = std::thread::spawn(move || Client::connect(addr).unwrap().call("POST", "/api/v1/flush", &[], b"").unwrap());
    let started = Instant::now();
    for n in 3..20 {
        server.store(&one(n));
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(flush.join().unwrap().status, 200);
    server.flush();
    assert_eq!(shipped(&place), (0..20).collect::<Vec<_>>());
}

/// The lake holds the data files that its plan object names, the plan object, and nothing else.
#[test]
fn what_the_lake_holds_is_whole() {
    let place = unshipped();
    let server = place.start(&[]);
    server.flush();
    server.stop();
    let names = lake::names(&place.lake());
    let plans: Vec<&String> = names.iter().filter(|n| n.starts_with("_arc/")).collect();
    assert_eq!((names.len(), plans.len()), (2, 1), "{names:?}");
    let plan: Value = serde_json::from_slice(&std::fs::read(place.lake().join(plans[0])).unwrap()).unwrap();
    assert!(names.contains(&plan["outputs"][0]["name"].as_str().unwrap().to_owned()), "{plan}");
}
