//! Object stores that break their promises.

use super::Case;

const TESTS: &str = "src/sink/object/tests/race.rs";

pub(super) const CASES: &[Case] = &[Case {
    id: "H15",
    kind: "a promise of the store was tried in one order only",
    tests: &[
        (TESTS, "race_store_that_lets_two_writers_win_is_refused"),
        (TESTS, "race_that_is_passed_is_recorded_and_not_repeated"),
        (TESTS, "trust_uses_a_store_without_create_only_puts"),
        (TESTS, "race_survives_a_fault_of_any_request"),
        ("src/sink/object/race.rs", "judge_takes_exactly_one_winner_whose_bytes_are_kept"),
    ],
}];
