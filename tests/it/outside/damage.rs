//! Damage, side segments, and what the tools say of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::Case;
use crate::server::{Place, Server, arc, until};

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H10",
        kind: "bytes on disk that no limit counts",
        tests: &[
            ("src/compact/waiting_tests.rs", "side_segments_count_in_the_size_of_the_log"),
            ("tests/it/outside/damage.rs", "wal_directory_stays_below_max_size_while_twelve_tables_wait"),
        ],
    },
    Case {
        id: "D1",
        kind: "evidence of damage removed before anybody could look at it",
        tests: &[("tests/it/outside/damage.rs", "damaged_segment_is_kept_whole_until_it_is_acknowledged")],
    },
    Case {
        id: "D2",
        kind: "rows in files that no command reads",
        tests: &[
            ("src/tools/outside_tests.rs", "side_segment_rows_are_listed_verified_and_dumped"),
            ("src/tools/outside_tests.rs", "quarantined_rows_are_verified_and_dumped_once"),
            ("src/tools/outside_tests.rs", "records_set_aside_are_counted_and_dumped_when_asked_for"),
        ],
    },
    Case {
        id: "D5",
        kind: "a text that says more than is known",
        tests: &[("src/cli/wal.rs", "people_are_told_the_verdict_the_place_and_what_to_do")],
    },
    Case {
        id: "D6",
        kind: "bytes that verify does not look at",
        tests: &[
            ("src/tools/outside_tests.rs", "verify_decodes_every_column_of_every_record"),
            ("src/tools/outside_tests.rs", "records_of_the_wrong_kind_are_damage"),
            ("src/tools/outside_tests.rs", "verify_reads_every_byte_of_the_manifest_and_behind_the_ends"),
            ("src/tools/outside_tests.rs", "verify_names_side_segments_that_are_damaged_missing_or_stray"),
        ],
    },
    Case {
        id: "D7",
        kind: "a name believed more than the content",
        tests: &[
            ("src/tools/outside_tests.rs", "segments_are_told_by_what_they_hold_not_by_their_names"),
            ("src/tools/outside_tests.rs", "missing_ranges_are_those_of_the_missing_segments"),
        ],
    },
    Case {
        id: "D8",
        kind: "a file that may hold the last copy of rows, deleted or waited for without a word",
        tests: &[
            ("src/compact/waiting_tests.rs", "a_side_segment_that_nothing_names_is_kept_and_named"),
            ("src/compact/waiting_tests.rs", "a_flush_names_a_side_segment_that_is_missing"),
            ("tests/it/outside/damage.rs", "lost_side_segment_is_named_and_given_up_by_a_command"),
        ],
    },
    Case {
        id: "D9",
        kind: "texts in the form of the program's own values",
        tests: &[
            ("src/cli/wal.rs", "people_are_told_the_verdict_the_place_and_what_to_do"),
            ("src/format/scan.rs", "ranges_are_said_in_words"),
        ],
    },
    Case {
        id: "D10",
        kind: "a measure that starts over with the process",
        tests: &[
            ("src/wal/tests.rs", "backlog_age_counts_from_the_receive_time_of_an_earlier_run"),
            ("tests/it/outside/damage.rs", "backlog_age_goes_on_after_a_restart"),
        ],
    },
];

/// Runs `arc` in the place's directory; its exit code and what it printed.
fn run(place: &Place, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(arc()).args(args).current_dir(place.path()).env_clear().envs(crate::server::profile()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

fn json(place: &Place, args: &[&str]) -> Value {
    let (_, text) = run(place, args);
    serde_json::from_str(text.lines().next().unwrap()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The paths in a directory whose names begin so.
fn named(dir: &Path, begin: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with(begin));
    all.sort();
    all
}

/// Line protocol that must be stored.
fn write_lines(s: &Server, lines: &str) {
    let r = s.call("POST", "/write?db=db", &[], lines.as_bytes());
    assert_eq!(r.status, 204, "{r}");
}

/// A file where the table's directory belongs: nothing of the table can be published.
fn block_table(place: &Place, table: &str) {
    std::fs::create_dir_all(place.lake().join("db")).unwrap();
    std::fs::write(place.lake().join("db").join(table), b"in the way").unwrap();
}

fn size_of(dir: &Path, names: impl Fn(&str) -> bool) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(Result::ok)
        .filter(|e| names(&e.file_name().to_string_lossy()))
        .filter_map(|e| e.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

/// Bytes that `wal.max_size` bounds: segments, spares, pool, side directory.
fn counted(place: &Place) -> u64 {
    let wal = place.wal();
    size_of(&wal, |n| n.starts_with("seg-") || n.starts_with("spare-"))
        + size_of(&wal.join("pool"), |_| true)
        + size_of(&wal.join("side"), |_| true)
}

#[test]
fn wal_directory_stays_below_max_size_while_twelve_tables_wait() {
    const MAX: u64 = 8 << 20;
    let place = Place::new();
    (0..12).for_each(|n| block_table(&place, &format!("bad{n}")));
    let s = place.start(&["wal.max_size=8MB", "compaction.trigger_size=1MB", "compaction.max_delay=1s"]);
    let text = "x".repeat(20_000);
    let (mut refused, mut good, mut most) = (0, 0, 0);
    for round in 0..3_000 {
        let lines: String =
            (0..4).map(|n| format!("bad{} v=\"{text}\" {}\n", (round + n * 3) % 12, 1_767_225_600_000_000_000u64 + round)).collect();
        let r = s.call("POST", "/write?db=db", &[], lines.as_bytes());
        match r.status {
            204 => {}
            503 => {
                assert_eq!(r.json()["reason"], "backlog", "{r}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => panic!("{r}"),
        }
        most = most.max(counted(&place));
        if refused > 100 {
            break;
        }
    }
    assert!(refused > 0 && most <= MAX, "{refused} refused, {most} bytes of {MAX}");
    // A table that can be published goes on.
    for n in 0..40 {
        let stored = until("the good table is taken", || {
            let line = format!("good v=\"{text}\" {}", 1_767_225_600_000_000_000u64 + n);
            let r = s.call("POST", "/write?db=db", &[], line.as_bytes());
            (r.status == 204).then_some(1)
        });
        good += stored;
    }
    assert_eq!(good, 40);
    let deferred = s.status()["deferred"].clone();
    assert!(deferred["outputs"].as_u64().unwrap() > 0, "{deferred}");
    // What waited is published once its place is free.
    (0..12).for_each(|n| std::fs::remove_file(place.lake().join(format!("db/bad{n}"))).unwrap());
    until("everything is published", || {
        s.call("POST", "/api/v1/flush?timeout=5s", &[], b"");
        (s.status()["deferred"]["outputs"] == 0).then_some(())
    });
    s.stop();
}

#[test]
fn backlog_age_goes_on_after_a_restart() {
    let place = Place::new();
    let mut s = place.start(&["compaction.paused=true"]);
    write_lines(&s, "t v=1 1767225600000000000");
    s.kill();
    std::thread::sleep(Duration::from_millis(2_100));
    let s = place.start(&["compaction.paused=true"]);
    let age = s.status()["backlog"]["oldest_seconds"].as_f64().unwrap();
    assert!((2.0..600.0).contains(&age), "{age}");
    let shown: f64 = until("the metric follows", || {
        let text = String::from_utf8(s.get("/metrics").body).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("arc_wal_backlog_age_seconds "))?;
        line.parse().ok().filter(|age| *age > 0.0)
    });
    assert!((2.0..600.0).contains(&shown), "{shown}");
}

const TIGHT: &[&str] = &["server.shutdown_timeout=3s", "wal.max_size=8MB", "compaction.trigger_size=1MB", "compaction.max_delay=1s"];

#[test]
fn lost_side_segment_is_named_and_given_up_by_a_command() {
    let place = Place::new();
    block_table(&place, "bad");
    let s = place.start(TIGHT);
    // More than a quarter of the log waits: it moves aside at once.
    let text = "x".repeat(50_000);
    let mut rows = 0;
    while s.status()["deferred"]["outputs"] == 0 {
        let line = format!("bad v=\"{text}\" {}", 1_767_225_600_000_000_000u64 + rows);
        let r = s.call("POST", "/write?db=db", &[], line.as_bytes());
        if r.status != 204 {
            assert_eq!(r.status, 503, "{r}");
            std::thread::sleep(Duration::from_millis(20));
        } else {
            rows += 1;
        }
    }
    s.stop();
    let dump = || run(&place, &["wal", "dump", "data/wal"]);
    let (code, text) = dump();
    assert_eq!((code, text.lines().count() as u64), (Some(0), rows), "every row is in the dump");
    let list = json(&place, &["wal", "list", "--json", "data/wal"]);
    assert!(list["side_segments"].as_array().unwrap().iter().all(|x| x["table"] == "bad" && x["state"] == "waits"), "{list}");
    assert_eq!(run(&place, &["wal", "verify", "data/wal"]).0, Some(0));
    // One is lost.
    let side = named(&place.wal().join("side"), "out-");
    std::fs::remove_file(&side[0]).unwrap();
    let name = side[0].file_name().unwrap().to_str().unwrap();
    assert_eq!(run(&place, &["wal", "deferred", "list", "data/wal"]).0, Some(3));
    std::fs::remove_file(place.lake().join("db/bad")).unwrap();
    let s = place.start(TIGHT);
    let r = s.call("POST", "/api/v1/flush?timeout=60s", &[], b"");
    assert_eq!((r.status, &r.json()["reason"]), (503, &Value::from("damaged")), "{r}");
    assert!(r.to_string().contains(name), "{r}");
    let (code, text) = run(&place, &["wal", "deferred", "give-up", name, "data/wal"]);
    assert_eq!(code, Some(75), "{text}");
    s.stop();
    assert_eq!(run(&place, &["wal", "deferred", "give-up", "out-0000000000000009-00000000.wal", "data/wal"]).0, Some(3));
    let (code, text) = run(&place, &["wal", "deferred", "give-up", name, "data/wal"]);
    assert_eq!(code, Some(4), "{text}");
    let s = place.start(TIGHT);
    s.flush();
    assert!(s.status()["damage"].to_string().contains(&format!("given_up {name}")));
    s.stop();
    assert_eq!(run(&place, &["wal", "damage", "list", "data/wal"]).0, Some(3));
    assert_eq!(run(&place, &["wal", "damage", "ack", "all", "data/wal"]).0, Some(4));
    assert_eq!(run(&place, &["wal", "damage", "list", "data/wal"]).0, Some(0));
    assert_eq!(run(&place, &["wal", "verify", "data/wal"]).0, Some(0));
}

#[test]
fn damaged_segment_is_kept_whole_until_it_is_acknowledged() {
    let place = Place::new();
    let mut s = place.start(&["compaction.paused=true"]);
    for n in 0..40 {
        write_lines(&s, &format!("t v=\"{}\" {}", "x".repeat(5_000), 1_767_225_600_000_000_000u64 + n));
    }
    s.kill();
    let second = named(&place.wal(), "seg-")[1].clone();
    let good = std::fs::read(&second).unwrap();
    let mut bad = good.clone();
    bad[8192 + 64 + 100] ^= 1;
    std::fs::write(&second, &bad).unwrap();
    let s = place.start(&[]);
    s.flush();
    until("it is released", || (!second.exists()).then_some(()));
    let side = place.wal().join("side");
    let kept = named(&side, "damaged-");
    assert_eq!(kept.len(), 1, "{}", s.log());
    assert!(std::fs::read(&kept[0]).unwrap() == bad, "whole, as it was found");
    s.stop();
    // A good copy that comes late is not removed either.
    std::fs::write(&second, &good).unwrap();
    let s = place.start(&[]);
    s.stop();
    let copy = named(&side, "copy-");
    assert!(copy.len() == 1 && std::fs::read(&copy[0]).unwrap() == good);
    let (_, all) = run(&place, &["wal", "dump", "--set-aside", "data/wal"]);
    let places: Vec<_> = all.lines().filter_map(|l| l.split("\"file\":\"").nth(1)?.get(..16)).collect();
    // Each row once, from whichever of the two has it whole; the copy alone has the damaged one.
    let from = |file: &str| places.iter().filter(|p| p.starts_with(file)).count();
    assert!(from("side/") >= 10 && from("side/copy-") > 0, "its rows can be read: {places:?}");
    let (code, text) = run(&place, &["wal", "damage", "list", "data/wal"]);
    assert!(code == Some(3) && text.contains("seg-0000000000000002.wal"), "{text}");
    assert_eq!(run(&place, &["wal", "damage", "ack", "9", "data/wal"]).0, Some(3));
    let (code, text) = run(&place, &["wal", "damage", "ack", "seg-0000000000000002.wal", "data/wal"]);
    assert_eq!(code, Some(4), "{text}");
    assert!(named(&side, "damaged-").is_empty() && named(&side, "copy-").is_empty());
    assert_eq!(run(&place, &["wal", "damage", "list", "data/wal"]).0, Some(0));
    place.start(&[]).stop();
}
