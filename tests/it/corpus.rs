//! Every input that the fuzzers have left in `fuzz/corpus`, through the check that they run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/checks/mod.rs"]
pub mod checks;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(dir: &Path, of: impl Fn(&Path) -> bool) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| of(p)).map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_fuzz_target_has_a_check_a_binary_and_a_corpus_and_the_other_way_round() {
    let targets: BTreeSet<String> = checks::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), checks::TARGETS.len());
    assert_eq!(names(&fuzz().join("corpus"), |_| true), targets, "folders of fuzz/corpus");
    assert_eq!(names(&fuzz().join("targets"), |p| p.is_file()), targets, "binaries in fuzz/targets");
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for t in &targets {
        assert!(manifest.contains(&format!("path = \"targets/{t}.rs\"")), "{t} is no binary of fuzz/Cargo.toml");
        let binary = std::fs::read_to_string(fuzz().join("targets").join(format!("{t}.rs"))).unwrap();
        assert!(binary.contains(&format!("common::fuzz!({t});")), "targets/{t}.rs runs another check");
    }
}

/// Files of a corpus: at least one, few and small enough to be kept in a repository.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = fuzz().join("corpus").join(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let files: Vec<(PathBuf, Vec<u8>)> = paths.into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
    assert!((1..=80).contains(&files.len()), "{}: {} files", dir.display(), files.len());
    for (path, bytes) in &files {
        assert!(bytes.len() <= 4096, "{}: {} bytes", path.display(), bytes.len());
    }
    files
}

fn replay(name: &str) {
    let check = checks::TARGETS.iter().find(|(n, _)| *n == name).unwrap().1;
    for (path, bytes) in corpus(name) {
        // The harness shows it only when the check panics.
        println!("{}", path.display());
        check(&bytes);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_corpus_is_replayed() {
            let replayed: BTreeSet<&str> = [$(stringify!($name)),*].into();
            assert!(checks::TARGETS.iter().all(|(name, _)| replayed.contains(name)));
        }
    };
}

replays!(compression http line_protocol line_protocol_differential manifest msgpack msgpack_differential ops payload record_roundtrip recover_dir scan segment_header);

/// Inputs that reach nothing check nothing: a change of the operations' meaning must not go unseen.
#[test]
fn the_inputs_of_ops_reach_what_they_are_for() {
    let mut reached = BTreeSet::new();
    for (path, bytes) in corpus("ops") {
        let r = checks::ops::live(&bytes, true).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut here: BTreeSet<String> = r.ends.into_keys().chain(r.faults.into_iter().chain(r.seen).map(str::to_owned)).collect();
        let mut mark = |is: bool, what: &str| here.extend(is.then(|| what.to_owned()));
        mark(r.acked > 0, "acknowledged");
        mark(r.replays > 0, "replayed");
        mark(r.objects > 0, "shipped");
        mark(r.widened, "widened");
        println!("{}: {here:?}", path.display());
        reached.extend(here);
    }
    let all = [
        "Done",
        "Killed",
        "NotOpened",
        "Off",
        "Poisoned",
        "acknowledged",
        "deferred",
        "disk full",
        "error on a name",
        "no space",
        "read error",
        "recycled",
        "released",
        "replayed",
        "shipped",
        "short write",
        "sync error",
        "widened",
        "write error",
    ];
    for what in all {
        assert!(reached.contains(what), "no input comes to: {what}");
    }
}
