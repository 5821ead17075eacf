//! The process is killed again and again under load: afterwards every acknowledged row is in Parquet once, and every other
//! request is there whole or not at all.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lake;
use super::msgpack::mp;
use super::server::{self, Client, PATIENCE, Place, Server};

/// Rows of each request.
const ROWS: u64 = 8;
const T: i64 = 1_700_000_000_000_000;
const HOUR: i64 = 3_600_000_000;

/// Small segments, and compaction that is always at work.
pub const BUSY: &[&str] = &["compaction.trigger_size=64KB", "compaction.max_delay=200ms", "log.level=warn"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Acked,
    /// Answered, and not stored.
    Refused,
    Unknown,
}

/// Which rows make request `r`: ids, spread over two tables (in every third request over both) and two hours.
fn body(r: u64) -> Vec<u8> {
    let ids: Vec<u64> = (r * ROWS..(r + 1) * ROWS).collect();
    let item = |table: u64, ids: &[u64]| {
        let time: Vec<i64> = ids.iter().map(|id| T + *id as i64 + HOUR * (*id % 2) as i64).collect();
        let text: Vec<String> = ids.iter().map(|id| text(*id)).collect();
        json!({"m": format!("t{table}"), "columns": {"time": time, "id": ids, "text": text}})
    };
    mp(&if r.is_multiple_of(3) { json!([item(0, &ids[..3]), item(1, &ids[3..])]) } else { item(r % 2, &ids) })
}

fn text(id: u64) -> String {
    format!("row {id} {}", "x".repeat((id % 97) as usize))
}

/// A closed loop of a few connections that outlives the server.
pub struct Load {
    addr: Mutex<SocketAddr>,
    keys: bool,
    next: AtomicU64,
    stop: AtomicBool,
    fates: Mutex<HashMap<u64, Fate>>,
    replayed: AtomicU64,
}

impl Load {
    pub fn start(addr: SocketAddr, keys: bool, threads: usize) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        let load = Arc::new(Self {
            addr: Mutex::new(addr),
            keys,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            fates: Mutex::default(),
            replayed: AtomicU64::new(0),
        });
        let spawn = |_| {
            let load = Arc::clone(&load);
            std::thread::spawn(move || load.run())
        };
        let threads = (0..threads).map(spawn).collect();
        (load, threads)
    }

    /// The server is at another address now.
    pub fn moved_to(&self, addr: SocketAddr) {
        *self.addr.lock().unwrap() = addr;
    }

    pub fn any(&self, fate: Fate) -> bool {
        self.fates.lock().unwrap().values().any(|f| *f == fate)
    }

    pub fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.stop.store(true, SeqCst);
        threads.into_iter().for_each(|t| t.join().unwrap());
    }

    fn run(&self) {
        let mut client = None;
        while !self.stop.load(SeqCst) {
            let r = self.next.fetch_add(1, SeqCst);
            let fate = self.request(&mut client, r);
            self.fates.lock().unwrap().insert(r, fate);
        }
    }

    fn request(&self, client: &mut Option<Client>, r: u64) -> Fate {
        let (key, body) = (format!("key-{r}"), body(r));
        let headers: &[(&str, &str)] = if self.keys { &[("Idempotency-Key", &key)] } else { &[] };
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "request {r} got no answer");
            let c = match client {
                Some(c) => c,
                None => {
                    let addr = *self.addr.lock().unwrap();
                    let Ok(c) = Client::connect(addr) else {
                        // Nothing was sent. Without keys a request may have been sent before only if it is returned already.
                        if self.stop.load(SeqCst) && !self.keys {
                            return Fate::Refused;
                        }
                        std::thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    client.insert(c)
                }
            };
            let fate = match c.call("POST", "/api/v1/write/msgpack", headers, &body) {
                Ok(a) if a.status == 204 => {
                    self.replayed.fetch_add(u64::from(a.header("idempotency-replayed").is_some()), SeqCst);
                    Fate::Acked
                }
                Ok(a) if a.status == 503 => {
                    assert!(a.header("retry-after").is_some(), "{a}");
                    if a.json()["reason"] == "unknown_outcome" { Fate::Unknown } else { Fate::Refused }
                }
                Ok(a) => panic!("request {r}: {a}"),
                Err(_) => {
                    *client = None;
                    Fate::Unknown
                }
            };
            if fate == Fate::Acked || !self.keys {
                return fate;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Compares the lake with what was answered; the number of acknowledged requests.
    pub fn check(&self, place: &Place) -> usize {
        let mut seen: HashMap<u64, u32> = HashMap::new();
        for f in lake::files(&place.lake(), "default") {
            for row in f.rows {
                let id = row["id"].as_u64().unwrap();
                assert_eq!(row["text"], text(id), "row {id}");
                assert_eq!(row["time"], T + id as i64 + HOUR * (id % 2) as i64, "row {id}");
                *seen.entry(id).or_default() += 1;
            }
        }
        let fates = self.fates.lock().unwrap();
        let mut wrong = Vec::new();
        let mut acked = 0;
        for (r, fate) in fates.iter() {
            let counts: Vec<u32> = (r * ROWS..(r + 1) * ROWS).map(|id| seen.remove(&id).unwrap_or(0)).collect();
            let (whole, absent) = (counts.iter().all(|n| *n == 1), counts.iter().all(|n| *n == 0));
            let right = match fate {
                Fate::Acked => whole,
                Fate::Refused => absent,
                Fate::Unknown => whole || absent,
            };
            acked += usize::from(*fate == Fate::Acked);
            if !right {
                wrong.push(format!("request {r}, {fate:?}: {counts:?}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), fates.len(), wrong[..wrong.len().min(10)].join("\n"));
        assert!(seen.is_empty(), "rows that no request has: {:?}", seen.keys().take(10).collect::<Vec<_>>());
        acked
    }
}

/// Numbers that are the same in every run; the moments they stand for are not.
pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self, from: u64, to: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (self.0 >> 33) % (to - from)
    }

    pub fn nap(&mut self, from: u64, to: u64) {
        std::thread::sleep(Duration::from_millis(self.roll(from, to)));
    }
}

/// Kills under load, and while the next process recovers.
fn kill_loop(place: &Place, keys: bool, rounds: u64, sets: &[&str]) -> (Arc<Load>, Vec<JoinHandle<()>>, Server) {
    let mut dice = Dice(if keys { 7 } else { 3 });
    let mut server = place.start(sets);
    let (load, threads) = Load::start(server.addr, keys, 4);
    for round in 0..rounds {
        dice.nap(150, 900);
        server.kill();
        for _ in 0..round % 3 {
            let mut recovering = place.launch(sets);
            dice.nap(1, 50);
            recovering.kill();
        }
        server = place.start(sets);
        load.moved_to(server.addr);
    }
    dice.nap(100, 300);
    (load, threads, server)
}

fn settle(place: &Place, load: &Load, threads: Vec<JoinHandle<()>>, server: Server) {
    load.stop(threads);
    server.flush();
    let status = server.status();
    assert_eq!(status["quarantine"]["records"], 0, "{status}");
    let acked = load.check(place);
    assert!(acked > 50, "hardly a load: {acked}");
    let quiet = server.log();
    assert!(!quiet.contains("ERROR"), "{quiet}");
    server.stop();
    load.check(place);
}

#[test]
fn killed_under_load_every_acknowledged_row_is_there_once() {
    let place = Place::new();
    let (load, threads, server) = kill_loop(&place, false, 6, BUSY);
    settle(&place, &load, threads, server);
    assert!(load.any(Fate::Unknown), "no kill hit a request");
}

#[test]
fn killed_under_load_with_keys_every_row_is_there_once() {
    let place = Place::new();
    let (load, threads, server) = kill_loop(&place, true, 6, BUSY);
    settle(&place, &load, threads, server);
    assert!(load.fates.lock().unwrap().values().all(|f| *f == Fate::Acked));
}

#[test]
fn killed_with_a_mapped_log() {
    let place = Place::new();
    let (load, threads, server) = kill_loop(&place, false, 3, &[BUSY, &["wal.io=mmap"]].concat());
    settle(&place, &load, threads, server);
}

#[test]
fn sigterm_under_load_ships_everything_that_was_acknowledged() {
    let place = Place::new();
    let mut server = place.start(&["compaction.max_delay=1h", "server.shutdown_timeout=20s"]);
    let (load, threads) = Load::start(server.addr, false, 4);
    std::thread::sleep(Duration::from_millis(400));
    server.terminate();
    assert_eq!(server.wait_end(Duration::from_secs(20)).code(), Some(0), "{}", server.log());
    load.stop(threads);
    assert!(load.check(&place) > 20);
}

/// Each kill comes as soon as the drain has published something more.
#[test]
fn killed_in_the_middle_of_a_compaction() {
    let place = Place::new();
    let mut server = place.start(&["compaction.paused=true"]);
    let rows = 6 * 8 * 20;
    for n in 0..20 {
        let items: Vec<Value> = (0..8)
            .map(|t| {
                let time: Vec<i64> = (0..6).map(|h| T + h * HOUR + n).collect();
                let ids: Vec<i64> = (0..6).map(|h| n * 48 + t * 6 + h).collect();
                json!({"m": format!("t{t}"), "columns": {"time": time, "id": ids}})
            })
            .collect();
        server.store(&mp(&json!({"batch": items})));
    }
    server.kill();
    let mut kills = 0;
    let sets = ["compaction.workers=1", "compaction.max_outputs=20", "log.level=warn"];
    for _ in 0..12 {
        let before = lake::names(&place.lake()).len();
        let mut server = place.launch(&sets);
        let until = Instant::now() + PATIENCE;
        let more = loop {
            let now = lake::names(&place.lake());
            let files = now.iter().filter(|n| n.ends_with(".parquet")).count();
            if files >= 48 {
                break false;
            }
            if now.len() > before + kills % 5 {
                break true;
            }
            assert!(Instant::now() < until, "no progress: {}", server.log());
        };
        server.kill();
        kills += usize::from(more);
        if !more {
            break;
        }
    }
    assert!(kills >= 3, "only {kills} kills hit the compaction");
    let server = place.start(&sets);
    server.flush();
    let mut ids: Vec<i64> = lake::files(&place.lake(), "default").iter().flat_map(|f| &f.rows).map(|r| r["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..rows).collect::<Vec<_>>());
    server.stop();
    let unfinished: Vec<String> =
        lake::names(&place.lake()).into_iter().filter(|n| !n.ends_with(".parquet") && !n.starts_with("_arc/")).collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

/// The bench's own ledger and checker, over a kill.
#[test]
fn bench_and_its_verifier_agree() {
    let place = Place::new();
    let mut server = place.start(BUSY);
    let port = format!("server.port={}", server.addr.port());
    let ledger = place.path().join("ledger");
    let arc = |args: &[&str]| {
        let mut c = Command::new(server::arc());
        c.args(args).current_dir(place.path()).env_clear().envs(server::profile()).stdin(std::process::Stdio::null());
        c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        c
    };
    let url = format!("http://{}", server.addr);
    let run = ["--connections", "3", "--rows", "50", "--duration", "2s", "--keys", "--format", "batch", "--encoding", "zstd"];
    let bench = arc(&[&["bench", "--url", &url, "--ledger", ledger.to_str().unwrap(), "--json"], &run[..]].concat()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(900));
    server.kill();
    let server = place.start(&[BUSY, &[&port]].concat());
    let out = bench.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["acked"].as_u64().unwrap() > 5 && report["unanswered"] == 0, "{report}");
    server.flush();
    let lake_dir = place.lake();
    let verify = ["bench", "verify", "--ledger", ledger.to_str().unwrap(), "--lake", lake_dir.to_str().unwrap(), "--json"];
    let out = arc(&verify).output().unwrap();
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(out.status.success(), "{found}");
    assert_eq!(found["acked_rows"], report["acked_rows"], "{found}");
    let rows: usize = lake::files(&lake_dir, "bench").iter().map(|f| f.rows.len()).sum();
    assert_eq!(found["present_rows"].as_u64(), Some(rows as u64));
    // A row more, and the checker says so.
    let file = lake::files(&lake_dir, "bench").remove(0).path;
    std::fs::copy(&file, file.with_file_name("copy.parquet")).unwrap();
    assert_eq!(arc(&verify).output().unwrap().status.code(), Some(1));
}
