//! Faults that outsiders found, by the number of their report. Each submodule covers one area and lists its cases; `docs/testing.md` has
//! the same list for readers.

mod build;
mod damage;
mod decode;
mod http;
mod lake;
mod manifest;
mod process;
mod readers;
mod settings;
mod store;

use std::path::Path;

use super::known_errors::has_test;

/// A fault found from outside and the tests that hold its right value.
pub(super) struct Case {
    /// The report's number: H1, A5, D10.
    pub(super) id: &'static str,
    /// What kind of fault it stands for.
    pub(super) kind: &'static str,
    /// Paths below the repository's root, each with the name of a test in that file.
    pub(super) tests: &'static [(&'static str, &'static str)],
}

const AREAS: &[&[Case]] = &[
    build::CASES,
    damage::CASES,
    decode::CASES,
    http::CASES,
    lake::CASES,
    manifest::CASES,
    process::CASES,
    readers::CASES,
    settings::CASES,
    store::CASES,
];

#[test]
fn every_case_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for case in AREAS.iter().flat_map(|cases| cases.iter()) {
        assert!(!case.tests.is_empty(), "{}: {}: no test", case.id, case.kind);
        for (file, test) in case.tests {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            assert!(has_test(&text, test), "{}: {file} has no test {test}", case.id);
        }
    }
}

#[test]
fn every_case_is_in_the_testing_page() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/testing.md")).unwrap();
    for case in AREAS.iter().flat_map(|cases| cases.iter()) {
        assert!(page.contains(&format!("| {} |", case.id)), "docs/testing.md has no row for {}", case.id);
    }
}
