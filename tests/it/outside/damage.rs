//! Damage, side segments, and what the tools say of them.

use std::path::Path;
use std::time::Duration;

use super::Case;
use crate::server::{Place, Server, until};

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
        id: "D8",
        kind: "a file that may hold the last copy of rows, deleted or waited for without a word",
        tests: &[
            ("src/compact/waiting_tests.rs", "a_side_segment_that_nothing_names_is_kept_and_named"),
            ("src/compact/waiting_tests.rs", "a_flush_names_a_side_segment_that_is_missing"),
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
