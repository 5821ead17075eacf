//! What a start is given: variables, addresses, filesystems, certificates, paths.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::super::lifecycle::{PAUSED, one};
use super::super::server::{Client, Place, arc, profile, until};
use super::Case;

pub(super) const CASES: &[Case] = &[
    Case {
        id: "C3",
        kind: "a variable of the cloud that panics in the store's client",
        tests: &[
            ("src/config/cloud.rs", "cloud_variable_with_a_control_character_is_refused_by_name"),
            ("tests/it/outside/settings.rs", "cloud_variable_with_a_line_break_never_panics"),
            ("src/sink/object/tests.rs", "client_that_panics_is_an_error_of_that_call"),
        ],
    },
    Case {
        id: "C4",
        kind: "an empty variable taken for a value",
        tests: &[
            ("src/config/cloud.rs", "cloud_variable_is_trimmed_and_an_empty_one_is_unset"),
            ("tests/it/outside/settings.rs", "empty_variable_takes_the_default"),
        ],
    },
    Case {
        id: "C6",
        kind: "a log where a sync means nothing",
        tests: &[
            ("tests/it/outside/settings.rs", "log_on_tmpfs_is_refused_unless_allowed"),
            ("src/cli/start.rs", "filesystem_of_a_container_or_a_network_is_named"),
        ],
    },
    Case {
        id: "C7",
        kind: "an address that people write, and configuration that cannot work",
        tests: &[
            ("tests/it/outside/settings.rs", "ipv6_host_in_brackets_is_listened_on"),
            ("tests/it/outside/settings.rs", "host_that_cannot_work_is_a_fault_of_the_configuration"),
            ("src/cli/start.rs", "each_thing_that_would_stop_a_start_is_named"),
            ("src/cli/start.rs", "start_that_would_work_is_tried_without_a_trace"),
            ("tests/it/outside/settings.rs", "check_with_start_tells_what_would_stop_it"),
        ],
    },
    Case {
        id: "C9",
        kind: "variables that Kubernetes makes of Services",
        tests: &[("tests/it/outside/settings.rs", "variable_of_a_service_is_refused_with_a_hint")],
    },
    Case {
        id: "C11",
        kind: "a setting that stops shipping without a word",
        tests: &[("tests/it/outside/settings.rs", "paused_compaction_is_warned_of_and_shown")],
    },
    Case {
        id: "E1",
        kind: "commands beside the service that mean another log",
        tests: &[
            ("tests/it/operations.rs", "token_command_without_its_file_asks_where"),
            ("tests/it/operations.rs", "the_unit_suits_the_program"),
        ],
    },
    Case {
        id: "E4",
        kind: "a tool that keeps the reason to itself",
        tests: &[
            ("src/cli/bench/verify.rs", "rows_that_are_still_in_the_log_are_not_lost"),
            ("tests/it/outside/settings.rs", "bench_tells_the_first_error"),
        ],
    },
    Case {
        id: "E5",
        kind: "a certificate that everybody makes and the check refuses",
        tests: &[("src/cli/healthcheck.rs", "certificate_of_openssl_is_good_with_its_own_file")],
    },
    Case { id: "E7", kind: "sentences that are not true", tests: &[("tests/it/outside/settings.rs", "links_lead_to_headings")] },
];

fn run(place: &Place, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let out: Output = Command::new(arc())
        .args(args)
        .current_dir(place.path())
        .env_clear()
        .envs(profile())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

const STORE: &[&str] = &["storage.backend=s3", "storage.s3_bucket=b", "storage.s3_endpoint=http://127.0.0.1:9", "storage.timeout=1s"];

#[test]
fn cloud_variable_with_a_line_break_never_panics() {
    let place = Place::new();
    let keys = [("AWS_ACCESS_KEY_ID", "key\n"), ("AWS_SECRET_ACCESS_KEY", "secret\r\n"), ("AWS_SESSION_TOKEN", "token\n")];
    let mut server = place.launch_with(STORE, &keys);
    server.wait_ready();
    server.store(&one(0));
    until("the store was asked", || server.status()["last_error"].as_str().map(str::to_owned));
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.terminate();
    assert_eq!(server.wait_end(super::super::server::PATIENCE).code(), Some(0));

    let (code, log) = place.run_to_end_with(STORE, &[("AWS_ACCESS_KEY_ID", "k\ney"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    assert!(code == Some(78) && log.contains("AWS_ACCESS_KEY_ID") && !log.contains("panicked"), "{code:?} {log}");
}

#[test]
fn empty_variable_takes_the_default() {
    let place = Place::new();
    let env = [("ARC_SERVER_HOST", ""), ("ARC_WAL_MAX_SIZE", ""), ("ARC_AUTH_ENABLED", ""), ("ARC_LOG", ""), ("ARC_STORAGE_S3_REGION", "")];
    let (code, text) = run(&place, &["config", "show", "--origin"], &env);
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("env ARC_") && !text.contains("warning"), "{text}");
}

#[test]
fn log_on_tmpfs_is_refused_unless_allowed() {
    let memory = Path::new("/dev/shm");
    // The magic number of tmpfs. Where there is none, the unit tests have to do.
    if !rustix::fs::statfs(memory).is_ok_and(|s| s.f_type as u64 == 0x0102_1994) {
        return;
    }
    let dir = tempfile::tempdir_in(memory).unwrap();
    let wal = format!("wal.directory={}", dir.path().join("wal").display());
    let place = Place::new();
    let (code, log) = place.run_to_end(&[&wal, "wal.allow_volatile=false"]);
    assert!(code == Some(78) && log.contains("found tmpfs") && log.contains("wal.allow_volatile"), "{code:?} {log}");
    assert!(!dir.path().join("wal").exists(), "nothing is made");

    let server = place.start(&[&wal]);
    assert_eq!(server.status()["process"]["wal_filesystem"], "tmpfs");
    assert!(server.log().contains("their files are memory") || server.log().contains("its files are memory"), "{}", server.log());
    let page = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(page.contains("\narc_wal_unsafe_filesystem 1\n"), "{page}");
    server.stop();
}

#[test]
fn ipv6_host_in_brackets_is_listened_on() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let place = Place::new();
    for host in ["server.host=[::1]", "server.host=::1"] {
        let mut server = place.launch(&[host]);
        assert!(server.addr.is_ipv6(), "{}", server.addr);
        server.wait_ready();
        let url = format!("server.port={}", server.addr.port());
        let (code, text) = run(&place, &["healthcheck", "--set", host, "--set", &url], &[]);
        assert_eq!(code, Some(0), "{text}");
        server.stop();
    }
}

#[test]
fn host_that_cannot_work_is_a_fault_of_the_configuration() {
    let place = Place::new();
    for host in ["http://localhost", "localhost:8000", "127.0.0.256", "[127.0.0.1]", "[::1", "a b", "192.0.2.1"] {
        let (code, log) = place.run_to_end(&[&format!("server.host={host}"), "server.insecure=true"]);
        assert!(code == Some(78) && log.contains("server.host"), "{host}: {code:?} {log}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, log) = place.run_to_end(&[&format!("server.port={}", taken.local_addr().unwrap().port())]);
    assert!(code == Some(1) && log.contains("stop what uses it"), "a port that is in use may be free later: {code:?} {log}");
}

#[test]
fn check_with_start_tells_what_would_stop_it() {
    let place = Place::new();
    let check = |sets: &[&str]| {
        let sets = sets.iter().chain(&["server.port=0", "wal.allow_volatile=true"]).flat_map(|s| ["--set", s]);
        run(&place, &["config", "check", "--start", "--json"].into_iter().chain(sets).collect::<Vec<_>>(), &[])
    };
    let (code, text) = check(&[]);
    let v: Value = serde_json::from_str(&text).unwrap();
    assert!(code == Some(0) && v["start"].as_array().unwrap().iter().all(|t| t["ok"] == true), "{text}");
    assert!(!place.path().join("data").exists(), "nothing is left behind");
    let server = place.start(&[]);
    let (code, text) = check(&[]);
    assert!(code == Some(78) && text.contains("another process has this log open"), "{text}");
    server.stop();
    std::fs::write(place.path().join("file"), "").unwrap();
    let (code, text) = check(&["storage.local_path=./file/lake"]);
    assert!(code == Some(78) && text.contains("expected a directory"), "{text}");
}

#[test]
fn variable_of_a_service_is_refused_with_a_hint() {
    let place = Place::new();
    let (code, log) = place.run_to_end_with(&[], &[("ARC_SERVER_PORT", "tcp://10.0.0.1:8000")]);
    // The helper's own --set goes before the variable; the variable is read all the same.
    assert!(code == Some(78) && log.contains("ARC_SERVER_PORT") && log.contains("enableServiceLinks: false"), "{code:?} {log}");
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deployment.md")).unwrap();
    assert!(page.contains("enableServiceLinks: false"));
}

#[test]
fn paused_compaction_is_warned_of_and_shown() {
    let place = Place::new();
    let server = place.start(&[PAUSED]);
    assert!(server.log().contains("compaction.paused = true"), "{}", server.log());
    assert_eq!(server.get("/ready").json()["progress"]["paused"], true);
    server.stop();
    let server = place.start(&[]);
    assert!(!server.log().contains("compaction.paused"), "{}", server.log());
    assert_eq!(server.get("/ready").json()["progress"]["paused"], false);
    server.stop();
}

#[test]
fn bench_tells_the_first_error() {
    let place = Place::new();
    let (code, text) = run(&place, &["bench", "--url", "http://127.0.0.1:1", "--duration", "200ms"], &[]);
    assert!(code == Some(1) && text.contains("no connection: ") && text.contains("refused"), "{text}");
    let mut server = place.launch(&["auth.enabled=true"]);
    until("ready", || {
        let r = Client::connect(server.addr).ok()?.call("GET", "/ready", &[], b"").ok()?;
        (r.status == 200).then_some(())
    });
    let url = format!("http://{}", server.addr);
    let (code, text) = run(&place, &["bench", "--url", &url, "--requests", "1", "--connections", "1"], &[]);
    assert!(code == Some(1) && text.contains("the first error: 401 "), "{text}");
    server.kill();
}

/// Every `](page#heading)` of the pages leads to a heading that is there.
#[test]
fn links_lead_to_headings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<_> = std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()).collect();
    pages.extend(["README.md", "wal-format.md", "CHANGELOG.md"].map(|p| root.join(p)));
    pages.retain(|p| p.extension().is_some_and(|e| e == "md"));
    let slug = |heading: &str| -> String {
        let kept = heading.trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let mut seen = 0;
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for (at, _) in text.match_indices("](") {
            let Some(link) = text[at + 2..].split(')').next() else { continue };
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() && target.extension().is_some_and(|e| e == "md") {
                let there = std::fs::read_to_string(&target).unwrap();
                let found = there.lines().filter_map(|l| l.strip_prefix('#')).any(|l| slug(l.trim_start_matches('#')) == anchor);
                assert!(found, "{}: {link}: no such heading", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}
