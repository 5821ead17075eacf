//! Builds of Parquet files: their memory, their threads, and what they do when one of them keeps failing.

use super::super::lake;
use super::super::server::{Place, Server};
use super::Case;

const MEMORY: &str = "src/compact/memory_tests.rs";
const UNCLEAN: &str = "src/compact/unclean_tests.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H1",
        kind: "a cost decided by a number of rows where it is bytes; a bound checked after growth; one record blamed for all of them",
        tests: &[
            ("tests/it/outside/build.rs", "compaction_of_nulls_after_a_long_value_stays_in_its_memory"),
            ("tests/build_memory.rs", "a_build_takes_no_more_memory_than_stated"),
            (MEMORY, "null_rows_after_a_long_first_value_add_nothing"),
            (MEMORY, "a_dictionary_with_few_long_values_is_kept"),
            (MEMORY, "repeated_long_values_after_distinct_ones_are_coded"),
            (MEMORY, "long_values_end_row_groups_before_they_are_taken"),
            (MEMORY, "long_values_between_nulls_are_read_back"),
            ("src/compact/memory.rs", "builds_together_never_take_more_than_the_memory"),
            (UNCLEAN, "an_output_that_ended_the_process_is_built_in_smaller_pieces"),
            (UNCLEAN, "an_output_that_keeps_ending_the_process_moves_aside_and_the_rest_is_shipped"),
        ],
    },
    Case {
        id: "H13",
        kind: "a panic where fewer threads would do; a guess where a plan says something unknown",
        tests: &[
            (UNCLEAN, "threads_that_cannot_be_started_are_done_without"),
            (UNCLEAN, "a_plan_with_an_unknown_word_is_refused_by_name"),
            ("src/compact/spec.rs", "words_that_this_version_does_not_know_are_refused_by_name"),
        ],
    },
    Case {
        id: "H14",
        kind: "a mutant that no test saw: bounds of strings counted NULL as an empty one",
        tests: &[(MEMORY, "bounds_of_strings_leave_out_null_rows")],
    },
];

/// 2026-01-01T00:00:00Z in milliseconds.
const T: i64 = 1_767_225_600_000;

fn write(server: &Server, lines: &[String]) {
    let r = server.call("POST", "/write?db=d&precision=ms", &[], lines.join("\n").as_bytes());
    assert_eq!(r.status, 204, "{r}");
}

/// The most resident memory that the process has had, in megabytes.
#[cfg(target_os = "linux")]
fn peak(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// One row with a string of 100 KB, 8,000 rows without it and 8,193 distinct short ones came to 780 MB; with 8 MB to an end of the process at
/// every start.
#[cfg(target_os = "linux")]
#[test]
fn compaction_of_nulls_after_a_long_value_stays_in_its_memory() {
    let idle = peak(&Place::new().start(&[]));
    for length in [100_000, 3_000_000] {
        let place = Place::new();
        let server = place.start(&[]);
        write(&server, &[format!("t s=\"{}\" {T}", "x".repeat(length))]);
        write(&server, &(1..=8000).map(|i| format!("t v=1i {}", T + i)).collect::<Vec<_>>());
        write(&server, &(0..8193).map(|i| format!("t s=\"v{i}\" {}", T + 10_000 + i)).collect::<Vec<_>>());
        server.flush();
        let peak = peak(&server);
        assert!(peak < idle + 120, "{peak} MB for a string of {length} bytes, {idle} MB idle");
        let rows = lake::rows(&place.lake(), "d", "t");
        let strings: Vec<&str> = rows.iter().filter_map(|r| r["s"].as_str()).collect();
        assert_eq!((rows.len(), strings.len()), (16_194, 8194));
        assert_eq!(strings.iter().map(|s| s.len()).max(), Some(length));
        assert_eq!(rows.iter().filter(|r| r["v"] == 1).count(), 8000);
    }
}
