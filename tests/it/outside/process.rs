//! The process among others: descriptors, a stderr that cannot be written, a lock that is removed.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::lifecycle::{one, shipped};
use super::super::msgpack::mp;
use super::super::server::{Client, Place, Server, arc, profile, until};
use super::Case;

pub(super) const CASES: &[Case] = &[
    Case {
        id: "H3",
        kind: "a local shortage taken for a disk fault",
        tests: &[
            ("tests/it/outside/process.rs", "idle_connections_at_the_descriptor_limit_do_not_stop_rotation"),
            ("tests/it/outside/process.rs", "descriptors_that_run_out_while_running_are_waited_for"),
            ("src/wal/shortage_tests.rs", "rotation_short_of_something_waits_and_goes_on"),
            ("src/wal/shortage_tests.rs", "rotation_whose_sync_fails_poisons"),
        ],
    },
    Case {
        id: "H4",
        kind: "diagnostics as a point of failure",
        tests: &[("src/log_writer.rs", "line_that_cannot_be_written_is_dropped_and_counted")],
    },
    Case {
        id: "H12",
        kind: "a lock that a name can take away",
        tests: &[
            ("tests/it/outside/process.rs", "lock_file_removed_still_excludes_a_second_server_and_a_drain"),
            ("src/vfs/held.rs", "directory_renamed_and_made_anew_keeps_two_logs_apart"),
        ],
    },
    Case {
        id: "C1",
        kind: "stderr that cannot be written",
        tests: &[
            ("tests/it/outside/process.rs", "stderr_that_cannot_be_written_stops_nothing"),
            ("tests/it/outside/process.rs", "stdout_that_cannot_be_written_stops_nothing"),
            ("tests/it/outside/process.rs", "drain_with_a_dead_stderr_ships"),
            ("tests/it/outside/process.rs", "lines_lost_while_nobody_read_are_reported"),
        ],
    },
    Case {
        id: "C2",
        kind: "stderr that is not read",
        tests: &[
            ("tests/it/outside/process.rs", "stderr_that_nobody_reads_stops_nothing"),
            ("src/log_writer.rs", "output_that_takes_nothing_holds_up_nobody"),
        ],
    },
    Case {
        id: "E6",
        kind: "log lines that machines cannot read",
        tests: &[("src/cli/logging.rs", "json_line_has_each_key_once"), ("src/cli/logging.rs", "other_crates_stay_at_warnings")],
    },
];

/// Over half a segment of the test servers, so that each second one rotates.
fn large(n: i64) -> Vec<u8> {
    mp(&json!({"m": "t", "columns": {"time": [1_700_000_000_000_000i64 + n], "n": [n], "s": ["x".repeat(40_000)]}}))
}

fn run(command: &mut Command, place: &Place) -> Output {
    command.current_dir(place.path()).env_clear().envs(profile()).stdin(Stdio::null()).output().unwrap()
}

fn metric(server: &Server, name: &str) -> f64 {
    let page = String::from_utf8(server.get("/metrics").body).unwrap();
    let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
}

#[test]
fn idle_connections_at_the_descriptor_limit_do_not_stop_rotation() {
    let place = Place::new();
    let server = place.start_by("ulimit -n 256; exec \"$@\"", &["server.header_timeout=1m"]);
    let mut client = Client::connect(server.addr).unwrap();
    let status = client.call("GET", "/api/v1/status", &[], b"").unwrap().json();
    let most = status["process"]["max_connections"].as_u64().unwrap();
    assert!((100..200).contains(&most) && status["process"]["open_files_limit"] == 256, "{status}");
    assert!(server.log().contains("server.max_connections = 4096 does not fit the limit of open files"), "{}", server.log());
    let idle: Vec<TcpStream> = (0..306).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    for n in 0..20 {
        let r = client.call("POST", "/api/v1/write/msgpack", &[], &large(n)).unwrap();
        assert_eq!(r.status, 204, "{n}: {r}: {}", server.log());
    }
    let flushed = client.call("POST", "/api/v1/flush", &[], b"").unwrap();
    assert_eq!(flushed.status, 200, "{flushed}");
    drop(idle);
    until("connections are taken again", || Client::connect(server.addr).ok()?.call("GET", "/health", &[], b"").ok());
    assert!(metric(&server, "arc_wal_rotations_total") >= 9.0);
    assert_eq!(metric(&server, "arc_http_accept_errors_total"), 0.0);
    assert_eq!(metric(&server, "arc_http_max_connections"), most as f64);
    server.stop();
    assert_eq!(shipped(&place), (0..20).collect::<Vec<_>>());
}

/// Every call that opens something fails for a while: whatever was acknowledged is stored, and all goes on afterwards.
#[test]
fn descriptors_that_run_out_while_running_are_waited_for() {
    for io in ["wal.io=pwrite", "wal.io=mmap"] {
        let place = Place::new();
        let server = place.start(&[io, "wal.queue_timeout=200ms", "compaction.trigger_size=128KB"]);
        let mut client = Client::connect(server.addr).unwrap();
        let mut stored = Vec::new();
        let mut write = |n: i64| {
            let r = client.call("POST", "/api/v1/write/msgpack", &[], &large(n)).unwrap();
            assert!(r.status == 204 || r.status == 503, "{n}: {r}");
            if r.status == 204 {
                stored.push(n);
            }
            r.status == 204
        };
        for n in 0..4 {
            assert!(write(n), "{}", server.log());
        }
        let before = server.limit_files(Some(3));
        let refused = (4..40).filter(|n| !write(*n)).count();
        assert!(refused > 0, "no spare segment can be made without a descriptor");
        // A connection that cannot be accepted waits.
        let waiting = TcpStream::connect(server.addr).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        server.limit_files(before);
        drop(waiting);
        let mut n = 40;
        until("writes are taken again", || {
            n += 1;
            write(n).then_some(())
        });
        for n in 200..210 {
            assert!(write(n), "{}", server.log());
        }
        let errors = metric(&server, "arc_http_accept_errors_total");
        assert!((1.0..40.0).contains(&errors), "accepting does not spin: {errors}");
        assert_eq!(metric(&server, "arc_wal_poisoned"), 0.0, "{}", server.log());
        server.flush();
        server.stop();
        assert_eq!(shipped(&place), stored, "{io}");
    }
}

#[test]
fn lock_file_removed_still_excludes_a_second_server_and_a_drain() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=1h"]);
    server.store(&one(0));
    for replaced in [false, true] {
        std::fs::remove_file(place.wal().join("LOCK")).unwrap_or_default();
        if replaced {
            std::fs::write(place.wal().join("LOCK"), "1").unwrap();
        }
        let (code, log) = place.run_to_end(&[]);
        assert_eq!(code, Some(75), "{log}");
        let drained = run(Command::new(arc()).arg("drain").arg(place.wal()), &place);
        assert_eq!(drained.status.code(), Some(75), "{}", String::from_utf8_lossy(&drained.stderr));
    }
    server.store(&one(1));
    server.stop();
    assert_eq!(shipped(&place), [0, 1]);
}

/// Rows come in, rotate and reach Parquet; the server ends as it should. Takes no longer than a healthy one would.
fn works(place: &Place, server: Server, before: std::ops::Range<i64>) {
    let began = Instant::now();
    for n in 0..200 {
        server.store(&if n % 20 == 0 { large(n) } else { one(n) });
    }
    server.flush();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    server.stop();
    assert_eq!(shipped(place), (0..200).chain(before).collect::<Vec<_>>());
}

fn fifo(place: &Place) -> PathBuf {
    let path = place.path().join("p");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
    path
}

#[test]
fn stderr_that_cannot_be_written_stops_nothing() {
    for (script, counted) in [
        ("exec \"$@\" 2>/dev/full", true),
        ("exec \"$@\" 2>&-", false),
        // The reader of the pipe goes at once.
        (": <p & exec \"$@\" 2>p", true),
    ] {
        let place = Place::new();
        fifo(&place);
        let server = place.start_by(script, &["log.level=debug"]);
        for n in 1000..1010 {
            server.store(&one(n));
        }
        if counted {
            until("lost lines are counted", || (metric(&server, "arc_process_log_lines_dropped_total") > 0.0).then_some(()));
            assert!(server.status()["process"]["log_lines_dropped"].as_u64() > Some(0));
        }
        works(&place, server, 1000..1010);
    }
}

/// A pipe that is full from the beginning, blocking and not.
#[test]
fn stderr_that_nobody_reads_stops_nothing() {
    for nonblocking in [false, true] {
        let place = Place::new();
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[b'\n'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, nonblocking).unwrap();
        let server = place.start_with_stderr(writer.into(), &["log.level=debug"]);
        works(&place, server, 0..0);
        drop(reader);
    }
}

#[test]
fn lines_lost_while_nobody_read_are_reported() {
    let place = Place::new();
    let fifo = fifo(&place);
    let open = || std::fs::OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(&fifo).unwrap();
    let reader = open();
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let server = place.start_with_stderr(writer.into(), &["log.level=debug"]);
    drop(reader);
    let mut n = 0;
    until("lines are lost", || {
        n += 1;
        server.store(&one(n));
        (metric(&server, "arc_process_log_lines_dropped_total") > 0.0).then_some(())
    });
    let mut reader = open();
    let mut text = Vec::new();
    until("the loss is reported", || {
        n += 1;
        server.store(&one(n));
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).contains("log lines were dropped").then_some(())
    });
    server.stop();
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

/// A port that nobody has, as far as that can be known.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn stdout_that_cannot_be_written_stops_nothing() {
    for script in ["exec \"$@\" >/dev/full", "exec \"$@\" >&-", "exec \"$@\" >/dev/full 2>&1"] {
        let place = Place::new();
        let port = free_port();
        let mut child = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(arc())
            .args(["serve", "--set", &format!("server.port={port}"), "--set", "auth.enabled=true"])
            .current_dir(place.path())
            .env_clear()
            .envs(profile())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready = until("ready", || {
            let r = Client::connect(([127, 0, 0, 1], port).into()).ok()?.call("GET", "/ready", &[], b"").ok()?;
            (r.status == 200).then_some(r)
        });
        assert_eq!(ready.status, 200, "{script}");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{script}");
    }
}

#[test]
fn drain_with_a_dead_stderr_ships() {
    for script in ["exec \"$@\" 2>/dev/full", "exec \"$@\" 2>&-", "exec \"$@\" 2>/dev/full >/dev/null"] {
        let place = Place::new();
        let mut server = place.start(&["compaction.paused=true"]);
        for n in 0..5 {
            server.store(&one(n));
        }
        server.kill();
        let mut c = Command::new("/bin/sh");
        let out = run(c.args(["-c", script, "sh"]).arg(arc()).arg("drain").arg(place.wal()).arg("--json"), &place);
        assert_eq!(out.status.code(), Some(0), "{script}");
        if !out.stdout.is_empty() {
            assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap()["status"], "drained");
        }
        assert_eq!(shipped(&place), [0, 1, 2, 3, 4], "{script}");
    }
}
