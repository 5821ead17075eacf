//! A server on a simulated disk and store, told by the input what happens next: requests, steps of its threads, faults, crashes.
//! Afterwards every promise to the clients must be kept.
//!
//! The input is two bytes for the machine and its seed, and then two bytes for each operation: what and flags, and how much.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_ingest::sink::sim::{Call, Fault as StoreFault};
use arc_ingest::vfs::Engine;
use arc_ingest::vfs::sim::{Fault, Rates};
use arc_ingest::wal::files;

use crate::sim::model::{Fate, Traffic};
use crate::sim::next::{Next, PATIENT};
use crate::sim::world::{Ended, Machine, WAL, World};

/// Lives of a server in one input: each is opened and recovered.
const LIVES: usize = 12;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub ends: BTreeMap<String, u64>,
    pub faults: BTreeSet<&'static str>,
    pub acked: usize,
    pub replays: u64,
    pub objects: usize,
    /// What was seen of the log's directory, when it was asked for.
    pub seen: BTreeSet<&'static str>,
    /// A column took integers and floats.
    pub widened: bool,
}

/// A fault of the store, until it is told otherwise.
struct Trouble {
    call: Option<Call>,
    /// Objects of one table only.
    table: Option<String>,
    skip: u32,
    count: u32,
    fault: Broken,
}

enum Broken {
    Store(StoreFault),
    /// The machine stops, before the call or after it.
    Stops(bool),
}

struct Ops<'a> {
    rest: &'a [u8],
    /// Steps of a longer operation that are still to come, the next one last.
    queue: Vec<Next>,
    trouble: Arc<Mutex<Vec<Trouble>>>,
    rot: bool,
}

fn machine(b: u8) -> Machine {
    let mut m = Machine::small(if b & 1 == 0 { Engine::Pwrite } else { Engine::Mmap });
    m.segment_data = 16 << 10;
    m.reserve = 16 << 10;
    m.max_size = [256 << 10, 512 << 10][usize::from(b >> 1 & 1)];
    m.pool = usize::from(b >> 2 & 1) * 2;
    m.trigger_size = [16 << 10, 64 << 10][usize::from(b >> 3 & 1)];
    m.max_delay = Duration::from_millis([50, 10_000][usize::from(b >> 4 & 1)]);
    m.max_outputs = [2, 8][usize::from(b >> 5 & 1)];
    m
}

impl Ops<'_> {
    fn take(&mut self) -> Option<(u8, u8)> {
        let [op, arg, rest @ ..] = self.rest else { return None };
        self.rest = rest;
        Some((*op, *arg))
    }

    /// What is next; faults are set on the way.
    fn next(&mut self, w: &mut World) -> Next {
        loop {
            if let Some(n) = self.queue.pop() {
                return n;
            }
            let Some((op, arg)) = self.take() else { return Next::Kill };
            if let Some(n) = self.one(w, op & 15, op >> 4, arg) {
                return n;
            }
        }
    }

    fn one(&mut self, w: &mut World, op: u8, flags: u8, arg: u8) -> Option<Next> {
        let many = u64::from(arg);
        match op {
            0 | 1 => {
                let all = |bit: u8| u64::from(flags >> bit & 1) * 1000;
                let traffic = Traffic {
                    tables: 3,
                    most_rows: [2, 40][usize::from(op)],
                    hours: 2,
                    keyed: all(0),
                    odd_types: all(1) / 2,
                    large: all(2) / 2,
                    lines: if arg & 0xc0 == 0xc0 { 1000 } else { 0 },
                };
                let patience = if flags & 8 == 0 { PATIENT } else { Duration::from_millis(many) };
                return Some(Next::Send { seed: many | u64::from(flags) << 8, traffic, patience });
            }
            2 => {
                let patience = if flags & 8 == 0 { PATIENT } else { Duration::from_millis(many) };
                return Some(Next::Again { back: usize::from(arg & 15), patience });
            }
            3 => self.queue.extend((0..=arg & 3).map(|_| Next::Committer)),
            4 => self.queue.extend((0..=arg & 3).map(|_| Next::Preallocator)),
            5 => self.queue.extend((0..=arg & 15).map(|_| Next::Compactor { early: flags & 1 == 1 })),
            // All of it goes on for a while.
            6 => {
                for _ in 0..=arg & 31 {
                    let by = Duration::from_micros(100 << flags.min(12));
                    self.queue.extend([
                        Next::Advance(by),
                        Next::Compactor { early: false },
                        Next::Compactor { early: false },
                        Next::Committer,
                        Next::Preallocator,
                    ]);
                }
            }
            7 => return Some(Next::Advance(Duration::from_micros((many + 1) * (50 << flags)))),
            8 => {
                let unit = if flags & 1 == 0 { 1_000_000 } else { 3_600_000_000 };
                w.jump(i64::from(arg as i8) * unit);
            }
            9 => {
                let room = w.disk.used() + (many << 8);
                w.disk.set_capacity(if flags & 1 == 0 { room } else { u64::MAX });
                let used: u64 = w.store.objects().values().map(|o| o.len() as u64).sum();
                w.store.set_capacity((flags & 6 == 6).then_some(used + (many << 4)));
            }
            10 => {
                let fault = match flags & 7 {
                    0 => Fault::CrashBefore,
                    1 => Fault::CrashAfter,
                    2 => Fault::Errno(libc::ENOSPC),
                    3 => Fault::Errno(libc::EDQUOT),
                    4 | 5 => Fault::Errno(libc::EIO),
                    _ => Fault::Short,
                };
                w.disk.script(w.disk.calls() + 1 + many, fault);
            }
            11 => {
                let some = |bit: u8| if arg >> bit & 1 == 1 { [20, 300, 1000][usize::from(flags % 3)] } else { 0 };
                w.disk.set_rates(Rates {
                    write_error: some(0),
                    write_short: some(1),
                    write_no_space: some(2),
                    sync_error: some(3),
                    sync_slow: some(4),
                    read_error: some(5) / 10,
                    name_error: some(6),
                });
            }
            12 | 13 => self.store_trouble(flags, arg, op == 13),
            14 => {
                if !w.store.late().is_empty() {
                    w.store.land(usize::from(arg) % w.store.late().len());
                }
            }
            _ => {
                w.disk.reseed(many);
                self.rot = flags & 15 == 15;
                return Some(match flags & 3 {
                    0 => Next::PowerCut,
                    1 => Next::Drain(1000),
                    _ => Next::Kill,
                });
            }
        }
        None
    }

    fn store_trouble(&self, flags: u8, arg: u8, lasting: bool) {
        const CALLS: [Option<Call>; 8] = [
            None,
            Some(Call::Stage),
            Some(Call::Write),
            Some(Call::Seal),
            Some(Call::Publish),
            Some(Call::PutSmall),
            Some(Call::Describe),
            Some(Call::Confirm),
        ];
        let call = CALLS[usize::from(arg & 7)];
        let put = matches!(call, Some(Call::Publish | Call::PutSmall));
        let fault = match flags & 7 {
            0 if lasting => return self.trouble.lock().unwrap().clear(),
            0 => Broken::Stops(false),
            1 => Broken::Stops(true),
            2 if put => Broken::Store(StoreFault::ReplyLost),
            3 if put => Broken::Store(StoreFault::Late),
            4 if call == Some(Call::Describe) => Broken::Store(StoreFault::Unseen),
            4 | 5 => Broken::Store(StoreFault::Hangs),
            6 => Broken::Store(StoreFault::Fails(libc::ENOSPC)),
            _ => Broken::Store(StoreFault::Fails(libc::EIO)),
        };
        let table = (lasting && arg & 128 == 0).then(|| format!("/t{}/", arg >> 3 & 3));
        let (skip, count) = if lasting { (0, u32::MAX) } else { (u32::from(arg >> 3), 1) };
        self.trouble.lock().unwrap().push(Trouble { call, table, skip, count, fault });
    }
}

/// Lives through `data`.
///
/// # Errors
/// What broke a promise.
pub fn live(data: &[u8], watch: bool) -> Result<Reached, String> {
    let [first, second, rest @ ..] = data else { return Ok(Reached::default()) };
    let mut w = World::new(u64::from(*second), machine(*first));
    let trouble: Arc<Mutex<Vec<Trouble>>> = Arc::default();
    let (disk, list) = (w.disk.clone(), Arc::clone(&trouble));
    w.store.set_faults(move |op| {
        if disk.is_off() {
            return Some(StoreFault::Fails(libc::EIO));
        }
        let mut list = list.lock().unwrap();
        // A store that does not show the plans it has is taken for another store, and refused.
        let shown = |t: &Trouble| matches!(t.fault, Broken::Store(StoreFault::Unseen)) && !op.name.ends_with(".parquet");
        let hit =
            |t: &Trouble| !shown(t) && t.call.is_none_or(|c| c == op.call) && t.table.as_ref().is_none_or(|n| op.name.contains(n.as_str()));
        let mut out = None;
        list.retain_mut(|t| {
            if out.is_some() || !hit(t) {
                return true;
            }
            if t.skip > 0 {
                t.skip -= 1;
                return true;
            }
            t.count = t.count.saturating_sub(1);
            out = Some(match &t.fault {
                Broken::Store(f) => f.clone(),
                Broken::Stops(after) => {
                    disk.stop();
                    if *after { StoreFault::ReplyLost } else { StoreFault::Fails(libc::EIO) }
                }
            });
            t.count > 0
        });
        out
    });
    let mut ops = Ops { rest, queue: Vec::new(), trouble, rot: false };
    let mut out = Reached::default();
    let mut watcher = Watcher::default();
    for _ in 0..LIVES {
        ops.queue.clear();
        let ended = w.boot_as_told(|w| {
            if watch {
                watcher.look(w, &mut out.seen);
            }
            ops.next(w)
        })?;
        *out.ends.entry(format!("{ended:?}")).or_default() += 1;
        if std::mem::take(&mut ops.rot) {
            w.rot_a_record();
        }
        if ended == Ended::NotOpened {
            // The same fault at every start is one case, not many.
            w.disk.set_rates(Rates::default());
            ops.trouble.lock().unwrap().clear();
        }
        if ops.rest.len() < 2 {
            break;
        }
    }
    out.faults = w.disk.injected().into_keys().collect();
    w.verify()?;
    out.acked = w.model.acked();
    out.replays = w.replays;
    out.objects = w.store.objects().len();
    out.widened = widened(&w);
    Ok(out)
}

/// Sees from step to step which files of the log come and go.
#[derive(Default)]
struct Watcher {
    segments: BTreeSet<String>,
    pool: usize,
}

impl Watcher {
    fn look(&mut self, w: &World, seen: &mut BTreeSet<&'static str>) {
        let vfs = w.disk.vfs();
        let names = |dir: &str| -> BTreeSet<String> {
            let list = vfs.list(&Path::new(WAL).join(dir)).unwrap_or_default();
            list.into_iter().filter(|e| e.is_file).map(|e| e.name).collect()
        };
        let segments: BTreeSet<String> = names("").into_iter().filter(|n| files::parse_segment(n).is_some()).collect();
        let pool = names(files::POOL).len();
        if !self.segments.is_subset(&segments) {
            seen.insert("released");
        }
        if pool < self.pool && w.disk.injected().is_empty() {
            seen.insert("recycled");
        }
        if !names(files::SIDE).is_empty() {
            seen.insert("deferred");
        }
        (self.segments, self.pool) = (segments, pool);
    }
}

fn widened(w: &World) -> bool {
    let mut seen: BTreeMap<(&str, &str), BTreeSet<bool>> = BTreeMap::new();
    let acked = w.model.requests.iter().filter(|q| matches!(q.fate, Fate::Acked(_)));
    for (table, column, n) in
        acked.flat_map(|q| &q.rows).flat_map(|r| r.cells.iter().filter_map(|(c, v)| Some((r.table.as_str(), c.as_str(), v.as_number()?))))
    {
        seen.entry((table, column)).or_default().insert(n.is_i64());
    }
    seen.values().any(|s| s.len() == 2)
}

pub fn check(data: &[u8]) {
    if let Err(e) = live(data, false) {
        panic!("{e}");
    }
}
