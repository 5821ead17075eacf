//! Random lives: clients, faults, crashes, all drawn from a seed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use arc_ingest::clock::SplitMix64;
use arc_ingest::vfs::Engine;
use arc_ingest::vfs::sim::{Fault, Rates};

use super::world::{Boot, Ended, Machine, World};

/// What one seed came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub boots: u64,
    pub requests: u64,
    pub acked: u64,
    pub answers: u64,
    pub objects: u64,
    pub replays: u64,
    pub partial: u64,
    pub rots: u64,
    /// Worlds with a local lake, and how often it was unmounted.
    pub local: u64,
    pub unmounts: u64,
    pub faults: BTreeMap<String, u64>,
    pub ends: BTreeMap<String, u64>,
    pub trace: u64,
}

fn machine(r: &mut SplitMix64) -> Machine {
    let mut m = Machine::small(if r.chance(600) { Engine::Pwrite } else { Engine::Mmap });
    m.segment_data = [16 << 10, 32 << 10, 128 << 10][r.below(3) as usize];
    m.max_size = [512 << 10, 1 << 20, 8 << 20][r.below(3) as usize];
    m.pool = r.below(3) as usize;
    m.trigger_size = [16 << 10, 64 << 10, 1 << 20][r.below(3) as usize];
    m.max_delay = Duration::from_millis([50, 2000, 60_000][r.below(3) as usize]);
    m.max_outputs = [2, 8, 100][r.below(3) as usize];
    m.traffic.tables = 1 + r.below(5);
    m.traffic.most_rows = [1, 12, 100][r.below(3) as usize];
    m.traffic.hours = 1 + r.below(6);
    m.traffic.keyed = [0, 400, 1000][r.below(3) as usize];
    m.traffic.odd_types = [0, 60, 300][r.below(3) as usize];
    m.traffic.large = [0, 0, 100][r.below(3) as usize];
    m.traffic.lines = [0, 300, 1000][r.below(3) as usize];
    m
}

fn rates(r: &mut SplitMix64) -> Rates {
    let mut some = |most: u64, often: u64| if r.chance(often) { r.below(most) } else { 0 };
    Rates {
        write_error: some(10, 150),
        write_short: some(10, 150),
        write_no_space: some(30, 200),
        sync_error: some(20, 250),
        sync_slow: some(20, 200),
        read_error: some(20, 100),
        name_error: some(30, 200),
    }
}

/// Lives through `seed`.
///
/// # Errors
/// What broke a promise.
pub fn live(seed: u64) -> Result<Outcome, String> {
    let mut r = SplitMix64(seed ^ 0x5eed);
    let machine = machine(&mut r);
    let mut others = SplitMix64(seed ^ 0xd7a1);
    let mut w = World::new(seed, machine);
    // Not drawn from the same numbers, so that a seed stays the run that it was.
    let mut s = SplitMix64(seed ^ 0x317e);
    if s.chance(500) {
        w.behind_a_wire(if s.chance(500) { 1 << 20 } else { 1000 }, s.chance(500));
    }
    let mut t = SplitMix64(seed ^ 0x10ca1);
    if w.wire.is_none() && t.chance(500) {
        w.on_a_local_lake();
        w.unmounts = if t.chance(400) { 5 } else { 0 };
    }
    let logged = number("ARC_SIM_LOG").is_some_and(|n| n > 0);
    if logged {
        w.disk.print_calls();
    }
    let mut out = Outcome::default();
    let lives = 1 + r.below(8);
    w.repairs = true;
    w.clock_jumps = if r.chance(200) { 5 } else { 0 };
    w.disk_full = if r.chance(250) { 20 } else { 0 };
    let with_rot = r.chance(150);
    let load = [20, 100, 400][r.below(3) as usize];
    for _ in 0..lives {
        w.disk.set_rates(if r.chance(400) { rates(&mut r) } else { Rates::default() });
        w.store_faults(r.next_u64(), [0, 0, 20, 200, 1000][r.below(5) as usize]);
        if r.chance(600) {
            let at = w.disk.calls() + 1 + r.below(400);
            w.disk.script(at, if r.chance(500) { Fault::CrashBefore } else { Fault::CrashAfter });
        }
        if r.chance(200) {
            *w.store_crash.lock().unwrap() = Some((w.store_calls() + r.below(60), r.chance(500)));
        }
        // What was to befall the server befalls the drain; the server comes after it.
        let elsewhere = others.chance(200);
        let drain = Boot { steps: others.below(400), load: 0, drain: others.chance(600), elsewhere };
        let plan = Boot::server(r.below(1500), load, r.chance(200));
        let mut ended = Ended::Done;
        for plan in [drain, plan].into_iter().skip(usize::from(!elsewhere)) {
            ended = w.boot(plan)?;
            let name = if plan.elsewhere { format!("drain {ended:?}") } else { format!("{ended:?}") };
            *out.ends.entry(name).or_default() += 1;
        }
        if logged {
            println!("life {}: {plan:?} ended with {ended:?}", w.boots);
        }
        if ended == Ended::NotOpened {
            w.disk.set_rates(Rates::default());
        }
        if with_rot && r.chance(400) && w.rot_a_record() {
            out.rots += 1;
            if logged {
                println!("a record rots");
            }
        }
    }
    // Whether the node itself or another machine ships what is left.
    w.verify_by(others.chance(300))?;
    out.boots = w.boots;
    out.requests = w.model.requests.len() as u64;
    out.acked = w.model.acked() as u64;
    out.answers = w.answers;
    out.replays = w.replays;
    out.partial = w.partial;
    out.objects = w.objects().len() as u64;
    out.local = u64::from(w.local);
    out.unmounts = w.unmounted;
    out.faults = w.disk.injected().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    out.trace = w.trace;
    Ok(out)
}

/// Like [`live`], with panics as errors too.
pub fn live_or_say(seed: u64) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| live(seed))).unwrap_or_else(|p| {
        let text = p.downcast_ref::<String>().cloned().or_else(|| p.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// `ARC_SIM_FIRST=1`: the mutation check needs to know no more.
pub fn end_if_one_is_enough() {
    if number("ARC_SIM_FIRST").is_some() {
        std::process::exit(1);
    }
}

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds of every run of the suite, and as many more as there is time for (`ARC_SIM_SECONDS`, from `ARC_SIM_FROM` on).
#[test]
fn random_lives_keep_every_promise() {
    let seconds = number("ARC_SIM_SECONDS");
    let from = number("ARC_SIM_FROM").unwrap_or(0);
    let count = number("ARC_SIM_COUNT").unwrap_or(if seconds.is_some() { u64::MAX } else { 60 });
    let started = Instant::now();
    let mut total = Outcome::default();
    let mut failed = Vec::new();
    let mut seeds = 0;
    for seed in from..from.saturating_add(count) {
        if seconds.is_some_and(|s| started.elapsed() > Duration::from_secs(s)) {
            break;
        }
        seeds += 1;
        match live_or_say(seed) {
            Ok(o) => {
                total.boots += o.boots;
                total.requests += o.requests;
                total.acked += o.acked;
                total.answers += o.answers;
                total.objects += o.objects;
                total.replays += o.replays;
                total.partial += o.partial;
                total.rots += o.rots;
                total.local += o.local;
                total.unmounts += o.unmounts;
                for (k, v) in o.faults {
                    *total.faults.entry(k).or_default() += v;
                }
                for (k, v) in o.ends {
                    *total.ends.entry(k).or_default() += v;
                }
            }
            Err(e) => {
                println!("seed {seed}: {e}");
                end_if_one_is_enough();
                failed.push(seed);
                if failed.len() >= 20 {
                    break;
                }
            }
        }
    }
    println!(
        "{seeds} seeds from {from}: {} boots, {} requests, {} answers, {} acknowledged, {} replayed, {} partial, {} objects, {} rotten, ends {:?}, \
         faults {:?}, {:.0} s",
        total.boots,
        total.requests,
        total.answers,
        total.acked,
        total.replays,
        total.partial,
        total.objects,
        total.rots,
        total.ends,
        total.faults,
        started.elapsed().as_secs_f64()
    );
    assert!(
        failed.is_empty(),
        "seeds {failed:?} broke a promise; replay one with ARC_SIM_SEED=<seed> cargo test --test it sim::random::one_seed -- --nocapture"
    );
    assert!(total.acked > 0 && total.boots > seeds, "nothing happened");
    if seeds >= 60 {
        // A rate that is wired to nothing would test nothing.
        for fault in ["disk full", "error on a name", "no space", "read error", "slow sync", "sync error", "write error"] {
            assert!(total.faults.contains_key(fault), "no seed met the fault '{fault}'");
        }
        for end in ["Off", "Killed", "Poisoned", "Done", "NotOpened", "drain Off", "drain Killed", "drain Done"] {
            assert!(total.ends.contains_key(end), "no life ended as {end}");
        }
        assert!(total.rots > 0 && total.replays > 0, "{} rotten, {} replayed", total.rots, total.replays);
        assert!(total.partial > 0, "no write was partial");
        assert!(total.local > 0 && total.unmounts > 0, "{} local lakes, {} unmounts", total.local, total.unmounts);
    }
}

/// Replays `ARC_SIM_SEED`; `ARC_SIM_LOG=1` prints every call of the disk, and how each life ended.
#[test]
fn one_seed() {
    let Some(seed) = number("ARC_SIM_SEED") else { return };
    let outcome = live(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    println!("seed {seed}: {outcome:?}");
}

#[test]
fn equal_seeds_live_equal_lives() {
    for seed in [1, 2, 3] {
        let (a, b) = (live_or_say(seed), live_or_say(seed));
        assert_eq!(a.as_ref().map(|o| (o.trace, o.answers)), b.as_ref().map(|o| (o.trace, o.answers)), "seed {seed}");
    }
}
