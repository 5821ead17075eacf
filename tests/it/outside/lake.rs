//! A lake that is away or another one, a log that is away, and paths that are none.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Case;
use crate::lake;
use crate::msgpack::{columnar, ints};
use crate::server::{Place, until};

const LOCAL: &str = "src/sink/local.rs";
const UNIT: &str = "src/compact/lake_tests.rs";
const HERE: &str = "tests/it/outside/lake.rs";
const CONFIG: &str = "src/config/load.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H2",
        kind: "identity checked once, used for ever",
        tests: &[
            (HERE, "lake_switched_by_a_link_while_running_is_waited_for"),
            (LOCAL, "a_path_that_leads_elsewhere_is_a_lake_that_is_away"),
            (LOCAL, "a_lake_that_is_gone_is_waited_for_and_not_made_anew"),
            (LOCAL, "a_link_within_the_lake_is_not_followed"),
            (UNIT, "lake_replaced_while_running_gets_nothing_and_releases_nothing"),
            (UNIT, "lake_away_after_publish_is_not_committed"),
            (UNIT, "lake_without_the_plan_before_gets_no_data"),
            (UNIT, "accepted_lake_holds_the_plans_from_there_on"),
        ],
    },
    Case {
        id: "H11",
        kind: "a start that fails leaves something behind",
        tests: &[
            (HERE, "start_that_fails_at_the_lake_leaves_no_segment"),
            (HERE, "starts_that_write_nothing_take_the_same_segment_again"),
            ("src/wal/start_tests.rs", "segment_is_taken_again_only_if_nothing_was_written_into_it"),
        ],
    },
    Case {
        id: "H14",
        kind: "local lake syncs only the nearest directory",
        tests: &[
            (LOCAL, "publish_syncs_bytes_then_name_then_every_directory_up_to_the_root"),
            (LOCAL, "published_objects_survive_a_power_cut_and_unpublished_ones_may_not"),
        ],
    },
    Case {
        id: "C5",
        kind: "a path as another program writes it becomes a directory of that name",
        tests: &[
            (HERE, "path_of_another_program_ends_the_start_with_78"),
            (CONFIG, "path_that_is_none_is_refused_by_every_key_that_takes_one"),
            ("src/config/paths.rs", "path_of_another_program_is_told_with_the_right_one"),
        ],
    },
    Case {
        id: "C8",
        kind: "paths compared as text",
        tests: &[
            (HERE, "log_and_lake_that_meet_through_a_link_end_the_start_with_78"),
            (CONFIG, "log_and_lake_that_overlap_through_links_are_refused"),
            ("src/config/paths.rs", "real_path_follows_links_that_lead_nowhere_yet"),
        ],
    },
    Case {
        id: "C10",
        kind: "a disk that is not mounted is taken for a beginning",
        tests: &[
            (HERE, "new_log_beside_another_of_the_same_host_is_said_loudly"),
            (HERE, "require_existing_refuses_to_begin_a_log"),
            ("src/sink/object/tests.rs", "children_and_small_objects_are_read_from_a_store"),
        ],
    },
];

fn row(n: i64) -> Vec<u8> {
    columnar("cpu", &[("time", ints(&[1_767_225_600_000_000 + n])), ("v", ints(&[n]))])
}

fn segments(wal: &Path) -> usize {
    let names = fs::read_dir(wal).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("seg-")).count()
}

#[test]
fn lake_switched_by_a_link_while_running_is_waited_for() {
    let place = Place::new();
    let data = place.path().join("data");
    for dir in ["one", "two"] {
        fs::create_dir_all(data.join(dir)).unwrap();
    }
    symlink("one", place.lake()).unwrap();
    let s = place.start(&["compaction.max_delay=50ms"]);
    s.store(&row(1));
    s.flush();
    let switch = |to: &str| {
        fs::remove_file(place.lake()).unwrap();
        symlink(to, place.lake()).unwrap();
    };
    switch("two");
    let sequence = s.store(&row(2));
    until("the lake is said to be away", || s.status()["last_error"].as_str().filter(|e| e.contains("another directory")).map(drop));
    assert!(s.watermark("shipped") < sequence);
    s.store(&row(3));
    assert_eq!(lake::names(&data.join("two")), Vec::<String>::new());
    switch("one");
    s.flush();
    assert_eq!(lake::rows(&place.lake(), "default", "cpu").len(), 3);
    assert_eq!(lake::names(&data.join("two")), Vec::<String>::new());
    assert_eq!(s.status()["last_error"], serde_json::Value::Null);
    s.stop();
}

#[test]
fn start_that_fails_at_the_lake_leaves_no_segment() {
    let place = Place::new();
    let s = place.start(&[]);
    s.store(&row(1));
    s.flush();
    s.stop();
    let before = segments(&place.wal());
    let away = place.path().join("away");
    fs::rename(place.lake(), &away).unwrap();
    for lake_is in ["another directory", "a file"] {
        if lake_is == "a file" {
            fs::remove_dir(place.lake()).unwrap();
            fs::write(place.lake(), b"").unwrap();
        }
        for _ in 0..3 {
            let (code, log) = place.run_to_end(&[]);
            assert!(matches!(code, Some(3 | 74)), "{code:?}: {log}");
            assert_eq!(segments(&place.wal()), before, "{lake_is}");
        }
    }
    fs::remove_file(place.lake()).unwrap();
    fs::rename(&away, place.lake()).unwrap();
    place.start(&[]).stop();
}

#[test]
fn starts_that_write_nothing_take_the_same_segment_again() {
    let place = Place::new();
    let paused = ["compaction.paused=true"];
    place.start(&paused).stop();
    let names = || {
        let names = fs::read_dir(place.wal()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut segments: Vec<String> = names.filter(|n| n.starts_with("seg-")).collect();
        segments.sort();
        segments
    };
    let first = names();
    for _ in 0..3 {
        let mut s = place.start(&paused);
        s.kill();
        assert_eq!(names(), first);
    }
    let s = place.start(&paused);
    s.store(&row(1));
    s.stop();
    assert_eq!(names(), first);
    place.start(&paused).stop();
    assert_eq!(names().len(), first.len() + 1, "what holds rows is not appended to");
    let s = place.start(&[]);
    s.store(&row(2));
    s.flush();
    assert_eq!(lake::rows(&place.lake(), "default", "cpu").len(), 2);
    s.stop();
}

#[test]
fn path_of_another_program_ends_the_start_with_78() {
    let place = Place::new();
    for (key, value, right) in [
        ("storage.local_path", "~/lake", "/home/u/lake"),
        ("storage.local_path", "s3://bucket/lake", "storage.s3_bucket"),
        ("storage.local_path", "gs://bucket/lake", "storage.gcs_bucket"),
        ("storage.local_path", "file:///srv/lake", "/srv/lake"),
        ("storage.local_path", "$HOME/lake", "not expanded"),
        ("storage.local_path", "${X}", "not expanded"),
        ("wal.directory", "~/wal", "/home/u/wal"),
        ("wal.directory", "$HOME/wal", "not expanded"),
        ("auth.token_file", "~/tokens.json", "/home/u/tokens.json"),
    ] {
        let (code, log) = place.run_to_end_with(&[&format!("{key}={value}")], &[("HOME", "/home/u")]);
        assert_eq!(code, Some(78), "{key}={value}: {log}");
        assert!(log.contains(key) && log.contains(value) && log.contains(right), "{key}={value}: {log}");
        assert!(!place.path().join("data").exists() && !place.path().join("~").exists(), "{key}={value}");
    }
}

#[test]
fn log_and_lake_that_meet_through_a_link_end_the_start_with_78() {
    let place = Place::new();
    fs::create_dir_all(place.path().join("data")).unwrap();
    for (link, target) in [("data/lake", "wal"), ("data/lake", "wal/new/lake"), ("data/wal", "lake/db"), ("data/lake", ".")] {
        let link = place.path().join(link);
        symlink(target, &link).unwrap();
        let (code, log) = place.run_to_end(&[]);
        assert_eq!(code, Some(78), "{target}: {log}");
        assert!(log.contains("wal.directory") && log.contains("storage.local_path"), "{log}");
        fs::remove_file(link).unwrap();
    }
}

#[test]
fn new_log_beside_another_of_the_same_host_is_said_loudly() {
    let place = Place::new();
    let s = place.start(&[]);
    assert_eq!(s.status()["other_logs"], serde_json::json!([]));
    s.store(&row(1));
    s.flush();
    let old = s.status()["log_uuid"].as_str().unwrap().to_owned();
    s.stop();
    let file = fs::read(place.lake().join(format!("_arc/{old}/node.json"))).unwrap();
    let node: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(node["directory"], place.wal().display().to_string());
    assert!(node["host"].as_str().is_some_and(|h| !h.is_empty()) && node["first_start"].as_str().unwrap().ends_with('Z'), "{node}");
    fs::rename(place.wal(), place.path().join("unmounted")).unwrap();
    let s = place.start(&[]);
    let others = until("it is said", || Some(s.status()["other_logs"].clone()).filter(|o| o[0].is_object()));
    assert_eq!(
        others,
        serde_json::json!([{
            "log_uuid": old, "directory": node["directory"], "first_start": node["first_start"], "last_plan": 1
        }])
    );
    let log = s.log();
    assert!(log.contains("a new log begins") && log.contains(&old) && log.contains("old_last_plan=1"), "{log}");
    s.stop();
    // It is no beginning any more, and the lake's check knows the file.
    let s = place.start(&[]);
    s.store(&row(2));
    s.flush();
    assert_eq!(s.status()["other_logs"], serde_json::json!([]));
    s.stop();
    let wal = place.wal();
    let verified = std::process::Command::new(crate::server::arc())
        .args(["wal", "verify", wal.to_str().unwrap(), "--lake", place.lake().to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success() && !said.contains("node.json"), "{said}");
}

#[test]
fn require_existing_refuses_to_begin_a_log() {
    let place = Place::new();
    let (code, log) = place.run_to_end(&["wal.require_existing=true"]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("wal.require_existing") && log.contains("mount"), "{log}");
    assert!(!place.wal().exists(), "nothing is made");
    place.start(&[]).stop();
    place.start(&["wal.require_existing=true"]).stop();
}
