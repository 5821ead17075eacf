//! What a service manager hears: a socket of our own in the place of systemd's.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::lifecycle::one;
use super::server::{PATIENCE, Place, Server};

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One message: its lines.
type Message = Vec<(String, String)>;

fn value<'a>(m: &'a Message, name: &str) -> Option<&'a str> {
    m.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

impl Manager {
    fn new(place: &Place) -> Self {
        let path = place.path().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    fn env(&self) -> (&'static str, &str) {
        ("NOTIFY_SOCKET", self.path.to_str().unwrap())
    }

    /// The next message, if one comes in time.
    fn next(&self, within: Duration) -> Option<Message> {
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).ok()?;
        let text = std::str::from_utf8(&bytes[..n]).unwrap();
        Some(
            text.lines()
                .map(|l| l.split_once('=').unwrap_or_else(|| panic!("no assignment: {text:?}")))
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        )
    }

    /// Messages through the first that has `name`.
    fn through(&self, name: &str, server: &Server) -> Vec<Message> {
        let end = Instant::now() + PATIENCE;
        let mut out = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let m = self.next(left).unwrap_or_else(|| panic!("no {name} came, but {out:?}: {}", server.log()));
            let found = value(&m, name).is_some();
            out.push(m);
            if found {
                return out;
            }
        }
    }

    /// Pings within the time.
    fn pings(&self, within: Duration) -> usize {
        let end = Instant::now() + within;
        let mut n = 0;
        while let Some(m) = self.next(end.saturating_duration_since(Instant::now())) {
            n += usize::from(value(&m, "WATCHDOG") == Some("1"));
            if Instant::now() >= end {
                break;
            }
        }
        n
    }
}

#[test]
fn ready_is_said_once_after_the_recovery_and_stopping_with_the_signal() {
    let place = Place::new();
    let mut server = place.start(&["compaction.paused=true"]);
    for n in 0..3 {
        server.store(&one(n));
    }
    server.kill();

    let manager = Manager::new(&place);
    let mut server = place.launch_with(&["compaction.max_delay=1h", "server.shutdown_timeout=20s"], &[manager.env()]);
    let messages = manager.through("READY", &server);
    // What is ready takes writes at once, without asking /ready first.
    assert_eq!(server.store(&one(3)), 4);
    let (last, before) = messages.split_last().unwrap();
    assert_eq!(value(last, "READY"), Some("1"));
    assert!(!before.is_empty(), "the recovery said nothing");
    for m in before {
        assert!(value(m, "STATUS").unwrap().starts_with("recovering: "), "{m:?}");
        assert!(value(m, "EXTEND_TIMEOUT_USEC").unwrap().parse::<u64>().unwrap() >= 60_000_000, "{m:?}");
    }

    server.terminate();
    let messages = manager.through("STOPPING", &server);
    let (last, before) = messages.split_last().unwrap();
    assert!(
        before.iter().all(|m| value(m, "READY").is_none() && value(m, "WATCHDOG").is_none()),
        "without a watchdog there is no ping: {before:?}"
    );
    let more: u64 = value(last, "EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
    assert!(more > 20_000_000, "server.shutdown_timeout and something for the end: {last:?}");
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0), "{}", server.log());
}

#[test]
fn a_start_that_is_refused_is_never_ready() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=1h"]);
    server.store(&one(0));
    server.stop();
    for f in super::lifecycle::log_files(&place.wal(), "manifest") {
        std::fs::remove_file(f).unwrap();
    }
    let manager = Manager::new(&place);
    let (code, log) = place.run_to_end_with(&[], &[manager.env()]);
    assert_eq!(code, Some(3), "{log}");
    while let Some(m) = manager.next(Duration::from_millis(50)) {
        assert!(value(&m, "READY").is_none(), "{m:?}");
    }
}

#[test]
fn pings_come_while_it_moves_and_only_then() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let mut server = place.launch_with(&[], &[manager.env(), ("WATCHDOG_USEC", "2000000")]);
    manager.through("READY", &server);
    assert!(manager.pings(Duration::from_secs(3)) >= 4, "idle: {}", server.log());
    server.store(&one(0));
    server.flush();
    assert!(manager.pings(Duration::from_secs(2)) >= 2, "after work: {}", server.log());

    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    manager.pings(Duration::from_millis(100));
    assert_eq!(manager.pings(Duration::from_secs(2)), 0, "a process that stands still");
    kill_process(pid, Signal::CONT).unwrap();
    assert!(manager.pings(Duration::from_secs(4)) >= 2, "and goes on: {}", server.log());

    // Through the stop as well: the manager keeps counting.
    server.terminate();
    manager.through("STOPPING", &server);
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0), "{}", server.log());
}

#[test]
fn a_reload_is_said_from_its_beginning_to_its_end() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let server = place.launch_with(&[], &[manager.env()]);
    manager.through("READY", &server);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    let begun = manager.through("RELOADING", &server);
    let since = value(begun.last().unwrap(), "MONOTONIC_USEC");
    assert!(since.is_some_and(|t| t.parse::<u64>().unwrap() > 0), "{begun:?}");
    manager.through("READY", &server);
    assert!(server.log().contains("SIGHUP: reloaded"), "{}", server.log());
}

#[test]
fn somebody_elses_watchdog_gets_no_ping() {
    let place = Place::new();
    let manager = Manager::new(&place);
    let server = place.launch_with(&[], &[manager.env(), ("WATCHDOG_USEC", "400000"), ("WATCHDOG_PID", "1")]);
    manager.through("READY", &server);
    assert_eq!(manager.pings(Duration::from_secs(1)), 0);
}
