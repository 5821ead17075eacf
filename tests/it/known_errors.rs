//! Mistakes that servers like this one have made, by the public issue that tells of each. A test here shows that this server
//! does not make it; where another module's test shows that already, its name stands in [`LESSONS`], which has a row for every one.
//!
//! A killed process shows the order of steps, not what a power cut leaves of them: the page cache survives. Syncs, full disks
//! and poison are shown with a disk in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_ingest::error::Reason;
use arc_ingest::metrics::Metrics;
use arc_ingest::vfs::Vfs;
use arc_ingest::wal::shared::LogSettings;
use arc_ingest::wal::{AppendError, Appender, recover};
use serde_json::{Value, json};

use super::core::{self, Batch, Core, MemSink, TestClock};
use super::lake;
use super::lifecycle::{contents, log_files, one, shipped, unshipped};
use super::mem_vfs::MemVfs;
use super::msgpack::{arr, columnar, i, ints, mp, strs};
use super::server::{Client, Place, until};

const T: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600_000_000;

/// Every lesson, with the tests that hold it: a path and the name of a test in it.
const LESSONS: &[(&str, &[(&str, &str)])] = &[
    // Log and ack
    ("arc#803, #218, #199: log deleted by age or by a shutdown", &[(HERE, "arc_803_a_shutdown_without_shipping_keeps_the_log")]),
    ("arc#594: recovery deleted the writer's own file", &[(KILLS, "killed_under_load_every_acknowledged_row_is_there_once")]),
    ("arc#590: replay without the live path's normalisation", &[(HERE, "arc_590_replayed_rows_equal_live_rows")]),
    ("arc#225: a full queue dropped entries", &[(HERE, "arc_225_a_full_log_refuses_and_recovers")]),
    ("arc#229: replay repeated what was flushed", &[(KILLS, "killed_in_the_middle_of_a_compaction"), (MODEL, CRASH)]),
    ("arc#401: refused only at the flush", &[(BAD, "what_is_refused_leaves_no_trace")]),
    ("arc#340: two rotations in one second, one name", &[(HERE, "arc_340_names_do_not_come_from_a_clock")]),
    ("arc PR#484: a corrupt length", &[(HERE, "arc_pr_484_a_damaged_length_costs_one_record"), (BITS, EVERY_BIT)]),
    ("turso PR#3077, neon PR#9108: a failed sync forgotten", &[(HERE, "turso_3077_a_failed_sync_is_final_until_a_restart")]),
    ("nats-server#7564: acknowledged, not synced", &[(HERE, "nats_7564_what_is_acknowledged_is_synced")]),
    ("nats-server#7549: one flipped bit, a third of a stream", &[(BITS, EVERY_BIT), (LIFE, "damage_is_set_aside_by_default")]),
    (
        "influxdb#26970, #27654, #26549: empty files after a power cut",
        &[(HERE, "influxdb_26970_empty_files_are_refused_by_name_or_harmless")],
    ),
    ("prometheus#13027: half a record, later good data dropped", &[(HERE, "prometheus_13027_a_torn_tail_is_cut_and_the_log_goes_on")]),
    ("loki#15235, raft-engine#344: a full disk, and no start to drain it", &[(HERE, "loki_15235_a_full_disk_starts_and_drains")]),
    ("prometheus#7245: what cannot be read was deleted", &[(LIFE, "damage_is_set_aside_by_default"), (DRAIN, LEFT)]),
    (
        "vector#17644, #16525: a torn write put a buffer into a loop",
        &[(HERE, "prometheus_13027_a_torn_tail_is_cut_and_the_log_goes_on"), (BITS, "every_set_of_lost_sectors_of_a_group_is_judged")],
    ),
    ("vector#19154, #20561: no fsck", &[("src/tools/tests.rs", "damage_is_named_with_its_place_and_what_is_missing")]),
    (
        "vector PR#25570: unlinked before the ledger was synced",
        &[("src/wal/fault_tests.rs", "released_segments_are_removed_after_the_new_manifest_stands"), (MODEL, CRASH)],
    ),
    ("readers woken before progress was published", &[(HERE, "whoever_is_woken_finds_the_progress_published")]),
    ("firebird#8048, badger#1801, questdb PR#743: a sparse file mapped, disk full", &[(HERE, "firebird_8048_segments_have_real_blocks")]),
    (
        "greptimedb#7999: a malformed row panicked every replay",
        &[
            ("src/compact/tests.rs", "what_cannot_be_built_is_set_aside_and_the_rest_goes_on"),
            ("src/compact/tests.rs", "a_panic_sets_one_slice_aside"),
            ("src/compact/worker_tests.rs", "a_record_that_keeps_ending_the_process_is_set_aside"),
        ],
    ),
    // Recovery
    ("influxdb#26481, #24427: replay loaded everything", &[(HERE, "influxdb_26481_recovery_is_bounded_in_memory")]),
    ("influxdb#5764: three hours for 14 GB, in silence", &[(HERE, "influxdb_5764_recovery_reads_once_and_shows_its_progress")]),
    (
        "greptimedb#3085: writes stalled at a rotation",
        &[
            (HERE, "greptimedb_3085_a_rotation_prepares_nothing"),
            ("src/wal/fault_tests.rs", "a_seal_is_not_starved_by_a_queue_that_is_never_empty"),
        ],
    ),
    (
        "greptimedb#1613: the sequence went backwards",
        &[(HERE, "greptimedb_1613_sequences_never_go_back"), (MODEL, "every_acknowledged_batch_comes_out_once_in_order")],
    ),
    ("quickwit#5548: log never truncated", &[(HERE, "arc_225_a_full_log_refuses_and_recovers")]),
    // Types and time
    (
        "arc#202: truncated floats, missing fields as 0",
        &[(GOOD, "schemas_grow_and_widen_across_flushes"), (GOOD, "every_type_and_every_null")],
    ),
    ("arc PR#493: a string in `time`", &[(BAD, "what_is_refused_leaves_no_trace")]),
    ("influxdb#3769, vector#21041: seconds taken for nanoseconds", &[(GOOD, "units_by_magnitude_and_by_header")]),
    (
        "arc 26.03: precision parameter ignored",
        &[(GOOD, "units_by_magnitude_and_by_header"), ("src/http/tests.rs", "time_units_and_keys_are_checked")],
    ),
    ("arc#312: rows before 1970 in the wrong hour", &[(GOOD, "partitions_follow_the_rows_own_hour")]),
    ("questdb PR#6531: a row dated 2100", &[(HERE, "questdb_6531_far_times_lose_nothing")]),
    ("arc#130, #413: schema change while flushing", &[(HERE, "arc_413_schemas_change_while_flushing")]),
    ("influxdb docs#5040: type conflict answered 204", &[(BAD, "what_is_refused_leaves_no_trace")]),
    // Parquet and objects
    ("object names by wall clock", &[(HERE, "arc_340_names_do_not_come_from_a_clock")]),
    (
        "kafka-connect-storage-cloud#165, #388: exactly once",
        &[(KILLS, "killed_in_the_middle_of_a_compaction"), ("src/compact/tests.rs", "the_same_slices_make_the_same_bytes")],
    ),
    ("arc#157, #240: crash between upload and delete", &[(KILLS, "killed_in_the_middle_of_a_compaction")]),
    (
        "arrow-rs-object-store#661, #767: local store never synced",
        &[
            ("src/sink/local.rs", "only_what_is_sealed_is_published"),
            ("src/sink/local.rs", "a_name_whose_sync_failed_is_not_durable_because_the_next_sync_succeeds"),
        ],
    ),
    (
        "horaedb#394, neon#1744: partial Parquet after a crash",
        &[
            (KILLS, "killed_in_the_middle_of_a_compaction"),
            ("src/sink/local.rs", "nothing_is_visible_before_publishing_nor_after_dropping"),
        ],
    ),
    (
        "aws-sdk-pandas#2987, redpanda PR#29558, lakekeeper PR#1734: multipart uploads",
        &[
            (STORES, "no_answer_to_a_put_leaves_half_an_object"),
            (STORES, "what_is_dropped_or_fails_leaves_no_upload"),
            (STORES, "a_sweep_aborts_the_uploads_of_its_own_log_only"),
        ],
    ),
    (
        "arc PR#197: one slow upload hung every worker",
        &[(HERE, "writes_go_on_while_a_flush_waits"), ("src/compact/worker_tests.rs", "a_foreign_object_stops_its_output_alone")],
    ),
    ("vector#19210: thousands of tiny objects", &[(HERE, "vector_19210_small_requests_share_a_file")]),
    ("arc#142, PR#104: age flush late or never", &[(LIFE, "age_ships_within_max_delay")]),
    // Limits and security
    (
        "arcadedb#8084, cortex PR#7515: limit on the compressed size only",
        &[(BAD, "what_is_refused_leaves_no_trace"), ("src/decode/compression.rs", "limits_are_enforced_while_inflating")],
    ),
    ("arc#526: names from a reused buffer", &[(HERE, "arc_526_rows_stay_in_their_database_and_table")]),
    (
        "arc#122: unvalidated names in object keys",
        &[(BAD, "what_is_refused_leaves_no_trace"), ("src/sink/mod.rs", "names_that_could_leave_the_lake_are_refused")],
    ),
    (
        "arc 26.05.1: write routes without their auth",
        &[(ROUTES, "every_route_with_every_kind_of_token"), (ROUTES, "every_path_has_its_tier")],
    ),
    (
        "advisories: logs readable without a token, public profiler",
        &[(ROUTES, "every_path_has_its_tier"), ("tests/it/access.rs", "no_token_reaches_a_log_line")],
    ),
    ("telegraf#13826: one rejected metric blocks the others", &[(HERE, "telegraf_13826_a_refused_request_blocks_nothing")]),
];

const STORES: &str = "src/sink/object/tests.rs";
const ROUTES: &str = "src/http/tests/auth.rs";
const HERE: &str = "tests/it/known_errors.rs";
const KILLS: &str = "tests/it/exactly_once.rs";
const BAD: &str = "tests/it/bad_inputs.rs";
const GOOD: &str = "tests/it/accepted.rs";
const LIFE: &str = "tests/it/lifecycle.rs";
const MODEL: &str = "tests/it/log_model.rs";
const CRASH: &str = "a_crash_at_each_operation_loses_nothing_that_was_acknowledged";
const BITS: &str = "tests/it/damage/bits.rs";
const EVERY_BIT: &str = "every_flipped_bit_of_a_segment_costs_the_record_it_hit_at_most";
const DRAIN: &str = "tests/it/damage/drain.rs";
const LEFT: &str = "what_is_left_of_a_damaged_log_reaches_parquet_once";

/// Whether `text` has a test of this name: a function right below its attributes.
pub(super) fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it = |l: &str| [format!("fn {name}("), format!("async fn {name}(")].iter().any(|f| l.starts_with(f.as_str()));
    lines.iter().enumerate().filter(|(_, l)| is_it(l)).any(|(i, _)| {
        let attributes = lines[..i].iter().rev().take_while(|l| l.starts_with("#["));
        attributes.into_iter().any(|a| a.starts_with("#[test]") || a.starts_with("#[tokio::test"))
    })
}

/// Bugs of our own that a method of docs/testing.md has found: what it was and what found it, and the tests that hold it.
const OWN: &[(&str, &[(&str, &str)])] = &[
    (
        "a log's directory that a failed first start had left was never synced into its parent: a power cut took all of it (seed 32)",
        &[("src/vfs/sim/tests.rs", "a_directory_whose_sync_failed_is_durable_before_anything_stands_in_it")],
    ),
    (
        "text of a string behind an error of its line was stored as a line (cases of line protocol)",
        &[("src/decode/line_protocol/tests/refused.rs", "text_in_strings_is_no_line")],
    ),
    (
        "a torn pad was declared durable, and was damage a start later (crash matrix; recover_dir)",
        &[
            ("src/wal/decision_tests.rs", "a_torn_pad_behind_the_last_mark_is_no_damage_later"),
            ("tests/it/damage/drain.rs", "a_torn_mark_is_no_damage_to_a_later_recovery"),
        ],
    ),
    (
        "a torn group whose first sector did not arrive was not reported (damage)",
        &[("src/format/scan.rs", "a_torn_group_without_its_beginning_is_torn")],
    ),
    (
        "a record that defined columns rotted, and later rows lost their columns (damage; random lives, seed 56)",
        &[("tests/it/damage/drain.rs", "a_lost_definition_costs_only_its_own_record")],
    ),
    (
        "a manifest that was cut short was taken for torn (damage)",
        &[("src/wal/decision_tests.rs", "a_manifest_that_was_cut_short_is_refused")],
    ),
    (
        "a lost tail was counted twice as damage (recover_dir)",
        &[("src/wal/decision_tests.rs", "a_lost_tail_is_counted_once_with_and_without_a_successor")],
    ),
    (
        "sequences at the ends of their range overflowed (scan)",
        &[("src/format/scan.rs", "sequences_at_both_ends_of_their_range_end_the_scan_without_a_panic")],
    ),
    (
        "the manifest wrote over a block that was synced, after a short write of its mark (ops)",
        &[("src/wal/fault_tests.rs", "a_mark_of_the_manifest_that_was_cut_short_is_written_again_before_the_next_group")],
    ),
    (
        "a deferred output that had lost a record was never published (random lives, seed 10160)",
        &[
            ("src/compact/worker_tests.rs", "an_output_that_lost_a_record_before_it_was_deferred_is_published_without_it"),
            ("src/compact/worker_tests.rs", "rot_in_a_side_segment_costs_only_the_record"),
        ],
    ),
    (
        "a plan whose widening record had rotted was tried for ever (by reading)",
        &[("src/compact/worker_tests.rs", "a_plan_whose_widening_record_has_rotted_still_ships")],
    ),
    (
        "a record that could be read again went into a file that did not count it (by reading)",
        &[("src/compact/worker_tests.rs", "a_record_that_can_be_read_again_after_its_plan_was_made_is_set_aside")],
    ),
    (
        "a side segment without its headers kept its output for ever (by reading)",
        &[("src/compact/worker_tests.rs", "a_side_segment_that_has_lost_its_headers_still_gives_its_records")],
    ),
    (
        "an idle committer slept through a poison from outside (shuttle)",
        &[("src/wal/shuttle_tests.rs", "a_poison_from_outside_reaches_an_idle_committer")],
    ),
    (
        "the preallocator slept while its spare was taken (shuttle)",
        &[("src/wal/shuttle_tests.rs", "a_spare_that_is_taken_is_replaced_at_once")],
    ),
    (
        "a release held up the committer, and files it could not move were not counted (by reading)",
        &[
            ("src/wal/prealloc_tests.rs", "a_release_does_not_hold_up_the_committer"),
            ("src/wal/prealloc_tests.rs", "a_pooled_file_that_cannot_be_moved_is_gone"),
            ("src/wal/prealloc_tests.rs", "a_released_file_whose_directory_cannot_be_synced_still_counts"),
        ],
    ),
    (
        "the last answer was cut for a client that read slowly (http)",
        &[("src/http/server.rs", "the_last_answer_is_whole_however_slowly_it_is_read")],
    ),
    (
        "bodies that were announced and not sent held up small ones (attacks)",
        &[
            ("src/http/tests/room.rs", "what_is_announced_and_not_sent_takes_no_room"),
            ("src/http/tests/room.rs", "small_bodies_do_not_queue_behind_large_ones"),
            ("src/http/tests/room.rs", "the_beginnings_of_large_bodies_leave_the_reserved_part_alone"),
        ],
    ),
    (
        "large answers were held whole for every slow reader (attacks)",
        &[("src/http/tests/room.rs", "large_answers_wait_for_their_readers_only_within_bounds")],
    ),
    (
        "one-byte numbers took eight times their bytes (attacks)",
        &[("src/decode/msgpack/tests/rules.rs", "one_byte_numbers_cannot_take_eight_times_their_bytes_without_bound")],
    ),
    (
        "two column names that are not UTF-8 became one (attacks)",
        &[("src/decode/msgpack/tests/rules.rs", "names_that_are_not_utf8_are_refused")],
    ),
    (
        "half a plan object was taken for another copy's, and ended the process (system tests of stores)",
        &[("src/compact/worker_tests.rs", "half_a_plan_object_is_damage_and_no_fork")],
    ),
    ("a pipe with the name of a manifest hung every tool (attacks)", &[("src/vfs/os.rs", "what_is_no_regular_file_is_refused_at_once")]),
];

#[test]
fn every_lesson_is_held_by_tests_that_exist() {
    for (lesson, tests) in LESSONS.iter().chain(OWN) {
        for (path, name) in *tests {
            let text = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            assert!(has_test(&text, name), "{lesson}: {path} has no test {name}");
        }
    }
    assert!(LESSONS.iter().chain(OWN).all(|(_, tests)| !tests.is_empty()));
    assert!(!has_test("#[test]\nfn ab() {}\nfn a() {}", "a") && has_test("#[tokio::test]\nasync fn a() {}", "a"));
}

/// A sync of the log failed and was forgotten; the pages were marked clean, and the next one succeeded. Here the first failure is the
/// last word until a restart: nothing is acknowledged, written or synced again.
#[test]
fn turso_3077_a_failed_sync_is_final_until_a_restart() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let open = |vfs: &MemVfs| Core::open(vfs, &sink, &clock, core::settings(16 << 10)).unwrap();
    let mut c = open(&vfs);
    c.store(Batch::new(1, 1, 10));
    vfs.fail_next_sync();
    let [first, second] = c.append(&[Batch::new(2, 1, 10), Batch::new(3, 1, 10)])[..] else { panic!("two outcomes") };
    assert_eq!((first, second), (Err(AppendError::UnknownOutcome), Err(AppendError::UnknownOutcome)));
    assert!(c.shared.is_poisoned());
    let before = vfs.operations();
    for n in 4..7 {
        assert_eq!(c.append(&[Batch::new(n, 1, 10)])[0], Err(AppendError::NotStored(Reason::Poisoned)));
    }
    c.mark();
    c.rotate();
    assert_eq!(vfs.operations() - before, 0, "nothing is written or synced after the failure");
    drop(c);
    // The group may be there or not; what was acknowledged is.
    for kept in [false, true] {
        let c = open(&vfs.after_crash(&mut || kept));
        let found: Vec<i64> = c.seen.iter().map(|(_, rows)| rows[0].0).collect();
        assert_eq!(found, if kept { vec![1, 2, 3] } else { vec![1] });
    }
    // A restart of the process alone finds it in memory, marked clean: what it takes from there it stores again, before a power cut.
    for _ in 0..2 {
        assert_eq!(open(&vfs).seen.len(), 3);
    }
    assert_eq!(open(&vfs.after_crash(&mut || false)).seen.len(), 3);
}

/// Documented as persisted, synced every two minutes.
#[test]
fn nats_7564_what_is_acknowledged_is_synced() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let mut c = Core::open(&vfs, &sink, &clock, core::settings(16 << 10)).unwrap();
    for n in 1..30 {
        c.store(Batch::new(n, 2, 300));
        let after = vfs.after_crash(&mut || false);
        let found = Core::open(&after, &sink, &clock, core::settings(16 << 10)).unwrap();
        assert_eq!(found.seen.iter().map(|(_, rows)| rows[0].0).collect::<Vec<_>>(), (1..=n).collect::<Vec<_>>());
    }
}

/// The disk of the log is full: the server could not even start to drain it. Here it starts out of the reserve, refuses writes,
/// ships, and takes writes again once there is room.
#[test]
fn loki_15235_a_full_disk_starts_and_drains() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let settings = || LogSettings { reserve: 8 << 20, ..core::settings(16 << 10) };
    let mut c = Core::open(&vfs, &sink, &clock, settings()).unwrap();
    for n in 0..20 {
        c.store(Batch::new(n, 2, 1000));
    }
    drop(c);
    vfs.room(0);
    let mut c = Core::open(&vfs, &sink, &clock, settings()).unwrap();
    assert!(c.shared.reserve_spent());
    assert_eq!(c.shared.admit().unwrap_err().status(), 503);
    // What is released makes the room for the rest, and for the reserve.
    let drained = (0..20).any(|_| {
        clock.pass(600);
        c.ship()
    });
    assert!(drained, "{:?} {:?}", c.shared.watermarks(), c.shared.last_error());
    assert_eq!(sink.rows().len(), 40);
    assert!(!c.shared.reserve_spent() && c.shared.admit().is_ok());
    c.store(Batch::new(20, 1, 1));
}

/// Records were lost because readers were woken before the progress was published.
#[test]
fn whoever_is_woken_finds_the_progress_published() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::default());
    let clock = TestClock::new(1);
    let o = recover::open(&vfs, core::settings(64 << 10), clock, Metrics::new(), &mut |_| {}, &mut |_| {}).unwrap();
    let (prealloc, shared, committer) = (Arc::clone(&o.prealloc), Arc::clone(&o.shared), o.committer);
    let machines = [std::thread::spawn(move || prealloc.run()), std::thread::spawn(move || committer.run())];
    std::thread::scope(|s| {
        for t in 0..4 {
            let shared = &shared;
            s.spawn(move || {
                let appender = Appender::new(Arc::clone(shared));
                let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                for n in 0..300 {
                    let sequence = rt.block_on(appender.append(Batch::new(t * 1000 + n, 1, 5).record(), None)).unwrap();
                    let w = shared.watermarks();
                    assert!(w.durable >= sequence, "{sequence}: {w:?}");
                }
            });
        }
    });
    o.prealloc.stop();
    shared.close_queue();
    machines.into_iter().for_each(|m| m.join().unwrap());
}

/// A sparse file was mapped, the disk filled up, and touching a page was SIGBUS.
#[cfg(target_os = "linux")]
#[test]
fn firebird_8048_segments_have_real_blocks() {
    use std::os::unix::fs::MetadataExt as _;
    let place = Place::new();
    let server = place.start(&["wal.segment_size=256KB", "compaction.paused=true"]);
    server.store(&one(0));
    // The active one, and the spare that comes after it.
    until("a spare", || log_files(&place.wal(), "spare-").pop());
    server.stop();
    let files = [log_files(&place.wal(), "seg-"), log_files(&place.wal(), "spare-"), log_files(&place.wal(), "manifest-")].concat();
    assert!(files.len() >= 3, "{files:?}");
    for f in files {
        let m = f.metadata().unwrap();
        assert!(m.blocks() * 512 >= m.len(), "{}: {} blocks for {} bytes", f.display(), m.blocks(), m.len());
    }
}

/// Three hours for 14 GB. Every file is read once, and how far it has come is told.
#[test]
fn influxdb_5764_recovery_reads_once_and_shows_its_progress() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let mut c = Core::open(&vfs, &sink, &clock, core::settings(16 << 10)).unwrap();
    for n in 0..40 {
        c.store(Batch::new(n, 2, 1000));
    }
    drop(c);
    let mut told = Vec::new();
    let before = vfs.bytes_read();
    let report = recover::inspect(&vfs, core::DIR.as_ref(), &mut |_| {}, &mut |p| told.push((p.bytes_done, p.bytes_total))).unwrap();
    let total: u64 = report.segments.iter().map(|s| s.file_len).sum();
    assert!(report.segments.len() > 4 && told.len() > report.segments.len());
    assert!(told.windows(2).all(|w| w[0].0 <= w[1].0) && told.iter().all(|t| t.1 == total), "{told:?}");
    assert_eq!(told.last().unwrap().0, total);
    // Headers are read a second and a third time, and the manifest is.
    let read = vfs.bytes_read() - before;
    assert!(read < total + (4 << 20), "{read} bytes read of a log of {total}");
}

/// Writes stalled while a rotation prepared and synced a file. Here it finds one that is ready: a header, its sync, the name and
/// the name's sync, then the group and its sync.
#[test]
fn greptimedb_3085_a_rotation_prepares_nothing() {
    let (vfs, sink, clock) = (MemVfs::default(), MemSink::default(), TestClock::new(1));
    let mut c = Core::open(&vfs, &sink, &clock, core::settings(1 << 20)).unwrap();
    c.store(Batch::new(0, 1, 10));
    c.mark();
    let before = vfs.operations();
    c.rotate_only();
    assert_eq!(vfs.operations() - before, 4);
    let sealed = c.shared.watermarks().sealed;
    assert_eq!(sealed, 1);
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

/// The lake holds the data files that its plan object names, the plan object, where the log began, and nothing else.
#[test]
fn what_the_lake_holds_is_whole() {
    let place = unshipped();
    let server = place.start(&[]);
    server.flush();
    server.stop();
    let names = lake::names(&place.lake());
    let plans: Vec<&String> = names.iter().filter(|n| n.starts_with("_arc/") && n.contains("/plan-")).collect();
    assert_eq!((names.len(), plans.len()), (3, 1), "{names:?}");
    assert!(names.iter().any(|n| n.starts_with("_arc/") && n.ends_with("/node.json")), "{names:?}");
    let plan: Value = serde_json::from_slice(&std::fs::read(place.lake().join(plans[0])).unwrap()).unwrap();
    assert!(names.contains(&plan["outputs"][0]["name"].as_str().unwrap().to_owned()), "{plan}");
}
