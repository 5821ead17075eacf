//! The manifest: what is kept of shipped plans, the reserve that grows with it, and what it knows of the newest segment.

use std::path::Path;
use std::sync::Arc;

use arc_ingest::cli::settings::node_settings;
use arc_ingest::clock::SystemClock;
use arc_ingest::config::Config;
use arc_ingest::format::manifest::{ColumnEntry, Entry, NodeLimits, TableEntry};
use arc_ingest::node::LeftBehind;
use arc_ingest::types::LogId;
use arc_ingest::vfs::Vfs;
use arc_ingest::wal::files;
use arc_ingest::wal::manifest::{Manifest, ManifestState};
use arc_ingest::wal::shared::LogSettings;

use super::Case;
use crate::core::{self, Batch, Core, DIR, MemSink, TestClock};
use crate::mem_vfs::MemVfs;

const HERE: &str = "tests/it/outside/manifest.rs";
const DECISIONS: &str = "src/wal/decision_tests.rs";
const STATE: &str = "src/wal/manifest/tests.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H5",
        kind: "a constant against a growing need",
        tests: &[
            (HERE, "a_full_disk_is_drained_and_started_from_whatever_the_manifest_takes"),
            (HERE, "a_manifest_that_outgrows_the_reserve_takes_it_along"),
            ("src/wal/error_tests.rs", "a_reserve_without_blocks_of_its_own_frees_nothing_and_is_made_anew"),
        ],
    },
    Case {
        id: "H6",
        kind: "a bound in the wrong unit",
        tests: &[
            (STATE, "a_table_of_a_thousand_columns_does_not_make_the_manifest_grow_with_each_flush"),
            (STATE, "files_of_shipped_plans_are_forgotten_by_their_bytes_and_the_newest_plan_is_kept"),
            (STATE, "a_deferred_output_outlives_all_that_is_forgotten_of_its_plan"),
        ],
    },
    Case {
        id: "H14",
        kind: "a mutant that no test saw",
        tests: &[
            (STATE, "a_deferred_output_outlives_all_that_is_forgotten_of_its_plan"),
            ("src/idempotency.rs", "keys_that_manifest_and_log_have_are_restored_once"),
        ],
    },
    Case { id: "H8", kind: "a node's promise not in its log", tests: &[(HERE, "a_drain_keeps_as_many_keys_as_the_node_has_promised")] },
    Case {
        id: "D3",
        kind: "a log refused for good although nothing is missing",
        tests: &[
            (DECISIONS, "garbage_behind_the_newest_segment_is_moved_aside"),
            (DECISIONS, "a_newest_segment_that_was_lost_before_it_held_anything_is_not_missed"),
            (DECISIONS, "an_unreadable_block_of_the_manifest_that_was_never_used_is_no_reason_to_refuse"),
        ],
    },
    Case {
        id: "D4",
        kind: "acknowledged rows gone unseen",
        tests: &[
            (DECISIONS, "a_manifest_without_its_newest_segment_is_refused"),
            (DECISIONS, "a_newest_segment_of_zeros_is_damage_through_what_the_manifest_knows"),
            (DECISIONS, "a_newest_segment_that_was_emptied_is_refused_with_what_it_held"),
            (DECISIONS, "a_newest_segment_of_another_generation_is_refused"),
        ],
    },
];

/// A drain with defaults on another machine remembers what the node has promised to remember, and leaves the promise in the log.
#[test]
fn a_drain_keeps_as_many_keys_as_the_node_has_promised() {
    let mut theirs = Config::default();
    theirs.ingest.idempotency_max_keys = 3_000_000;
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let limits = node_settings(&theirs).log.limits;
    drop(Core::open(&vfs, &sink, &clock, LogSettings { limits, ..core::settings(16 << 10) }).unwrap());
    for round in 0..2 {
        let left = LeftBehind::read(&vfs, Path::new(DIR));
        assert_eq!(left.limits, Some(NodeLimits { idempotency_window_ms: 3_600_000, idempotency_max_keys: 3_000_000 }), "round {round}");
        let drain = node_settings(&Config::default()).for_drain(&left).unwrap();
        assert_eq!((drain.idempotency_max_keys, drain.log.limits), (3_000_000, None));
        drop(Core::open(&vfs, &sink, &clock, LogSettings { limits: drain.log.limits, ..core::settings(16 << 10) }).unwrap());
    }
    // A log of 1.0 does not say.
    assert_eq!(node_settings(&Config::default()).for_drain(&LeftBehind::default()).unwrap().idempotency_max_keys, usize::MAX);
}

/// A directory with a manifest of about so many bytes, and nothing else.
fn with_manifest(bytes: usize) -> MemVfs {
    let vfs = MemVfs::default();
    vfs.create_dir_all(Path::new(DIR)).unwrap();
    let damage = |n: usize| Entry::Damage {
        // Of no segment of this test: damaged ones are kept when they are released.
        segment: n as u64 + 1_000_000,
        from: 8192,
        to: 8200,
        label: "x".repeat(2000),
        first_missing: 0,
        last_missing: 0,
    };
    let state = ManifestState { epoch: 1, next_plan: 1, damage: (0..bytes / 2200).map(damage).collect(), ..ManifestState::default() };
    let as_vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Manifest::create(as_vfs, SystemClock::shared(), Path::new(DIR), LogId([7; 16]), state, None).unwrap();
    vfs
}

fn len(vfs: &MemVfs, name: &str) -> u64 {
    vfs.open(&Path::new(DIR).join(name), false).map_or(0, |f| f.len().unwrap())
}

/// Steps until everything is shipped and released, or time is over; how often admission changed meanwhile.
fn drain(c: &mut Core, clock: &TestClock) -> (bool, usize) {
    let (mut changes, mut open) = (0, c.shared.admit().is_ok());
    for _ in 0..40 {
        clock.pass(600);
        c.ship_some(3);
        let done = c.ship();
        changes += usize::from(std::mem::replace(&mut open, c.shared.admit().is_ok()) != open);
        if done {
            return (true, changes);
        }
    }
    (false, changes)
}

/// Whatever the manifest takes and however little room there is: the server starts, refuses writes, ships everything, and takes writes
/// again once, when the reserve is whole.
#[test]
fn a_full_disk_is_drained_and_started_from_whatever_the_manifest_takes() {
    for manifest in [0, 700 << 10, 5 << 20, 13 << 20] {
        for room in [0, 30 << 10, 1 << 20, 3 << 20] {
            let what = format!("a manifest of {manifest} bytes, room for {room}");
            let (vfs, sink, clock) = (with_manifest(manifest), MemSink::default(), TestClock::new(1));
            let settings = || LogSettings { reserve: 4 << 20, ..core::settings(16 << 10) };
            let mut c = Core::open(&vfs, &sink, &clock, settings()).unwrap();
            for n in 0..12 {
                c.store(Batch::new(n, 2, 1000));
            }
            let needed = 2 * c.manifest_end();
            assert!(len(&vfs, files::RESERVE) >= needed, "{what}: {} for {needed}", len(&vfs, files::RESERVE));
            drop(c);
            vfs.room(room);
            for start in 0..2 {
                let mut c = Core::open(&vfs, &sink, &clock, settings()).unwrap_or_else(|e| panic!("{what}, start {start}: {e}"));
                if start == 0 {
                    continue;
                }
                let (done, changes) = drain(&mut c, &clock);
                assert!(done, "{what}: {:?} {:?}", c.shared.watermarks(), c.shared.last_error());
                assert!(changes <= 1, "{what}: writes flapped {changes} times");
                assert_eq!(sink.rows().len(), 24, "{what}");
                vfs.room(64 << 20);
                drain(&mut c, &clock);
                assert!(c.shared.admit().is_ok(), "{what}");
                c.store(Batch::new(100, 1, 1));
            }
        }
    }
}

/// A disk that is full while the server runs: its plans make the manifest longer, which takes the room of the reserve; nothing stands still.
#[test]
fn a_manifest_that_outgrows_the_reserve_takes_it_along() {
    for manifest in [0, 3 << 20, 9 << 20] {
        let (vfs, sink, clock) = (with_manifest(manifest), MemSink::default(), TestClock::new(1));
        let settings = LogSettings { reserve: 2 << 20, ..core::settings(16 << 10) };
        let mut c = Core::open(&vfs, &sink, &clock, settings).unwrap();
        let column = |n: u64| ColumnEntry { name: format!("{n:0>250}"), ty: 1, tag: false, since: 1, widened: None };
        c.define(&[TableEntry { database: "db".into(), table: "t".into(), since: 1, columns: (0..90).map(column).collect() }]);
        let (mut stored, mut changes, mut open, mut grown) = (0, 0, true, 0);
        for n in 0..200 {
            if n == 100 {
                vfs.room(0);
            }
            if c.shared.admit().is_ok() && c.append(&[Batch::new(n, 1, 10)])[0].is_ok() {
                stored += 1;
            }
            let before = len(&vfs, files::RESERVE);
            clock.pass(600);
            assert!(c.ship(), "manifest {manifest}, batch {n}: {:?}", c.shared.last_error());
            grown += usize::from(n < 100 && len(&vfs, files::RESERVE) > before);
            changes += usize::from(std::mem::replace(&mut open, c.shared.admit().is_ok()) != open);
            if n < 100 {
                assert!(len(&vfs, files::RESERVE) >= 2 * c.manifest_end(), "manifest {manifest}, batch {n}");
            }
        }
        assert!(stored >= 100 && sink.rows().len() == stored, "{stored} stored, {} shipped", sink.rows().len());
        assert_eq!((changes, c.shared.admit().is_err()), (1, true), "manifest {manifest}: writes are refused once");
        assert!(grown > 3, "manifest {manifest}: the reserve grew {grown} times");
        vfs.room(64 << 20);
        drain(&mut c, &clock);
        assert!(c.shared.admit().is_ok());
    }
}
