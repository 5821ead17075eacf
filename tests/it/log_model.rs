//! The log against a list: any sequence of appends, marks, seals, shipments, stops and crashes brings out every acknowledged batch, in
//! order, under contiguous sequences, and nothing that was not sent. A crash keeps of what was not synced nothing, all, or any set
//! of sectors; it may come at any write, sync or rename, of a recovery too.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_ingest::types::Sequence;
use arc_ingest::wal::AppendError;
use arc_ingest::wal::recover::OpenError;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

use super::core::{Batch, Core, MemSink, TestClock, mix, settings};
use super::mem_vfs::MemVfs;

/// Of what was not synced when the crash came.
#[derive(Clone, Copy, Debug)]
enum Keep {
    Nothing,
    All,
    /// Any set of sectors.
    Some(u64),
}

#[derive(Clone, Debug)]
enum Op {
    /// Batches that are queued at once: rows, characters a row.
    Append(Vec<(usize, usize)>),
    Mark,
    Seal,
    Ship,
    /// The compactor gets this many steps.
    ShipSome(usize),
    Close,
    Crash(Keep),
    /// Everything fails from the given operation on; the crash comes with the next [`Op::Crash`] or [`Op::Close`].
    Pull(u32),
}

struct Model {
    vfs: MemVfs,
    sink: MemSink,
    clock: Arc<TestClock>,
    core: Option<Core>,
    /// Acknowledged, or found by a recovery after their outcome was unknown.
    stored: BTreeMap<Sequence, Batch>,
    /// Sent since the last recovery, outcome unknown.
    unknown: Vec<Batch>,
    next_id: i64,
    pulled: bool,
}

impl Model {
    fn new() -> Self {
        let mut m = Self {
            vfs: MemVfs::default(),
            sink: MemSink::default(),
            clock: TestClock::new(3),
            core: None,
            stored: BTreeMap::new(),
            unknown: Vec::new(),
            next_id: 1,
            pulled: false,
        };
        m.open(Keep::All);
        m
    }

    fn last(&self) -> Sequence {
        self.stored.keys().last().copied().unwrap_or(0)
    }

    /// Recovers, from crashes in the recovery too, and checks what it found.
    fn open(&mut self, keep: Keep) {
        let core = loop {
            match Core::open(&self.vfs, &self.sink, &self.clock, settings(12 << 10)) {
                Ok(c) => break c,
                Err(OpenError::Io { .. }) if self.pulled => self.restart(keep),
                Err(e) => panic!("the log cannot be opened: {e}"),
            }
        };
        assert!(!core.report.is_damaged(), "{:?}", core.report.findings);
        let w = core.shared.watermarks();
        let sequences: Vec<Sequence> = core.seen.iter().map(|(s, _)| *s).collect();
        assert!(sequences.windows(2).all(|p| p[1] == p[0] + 1), "{sequences:?}");
        let last = sequences.last().copied().unwrap_or(w.released);
        assert!(sequences.first().is_none_or(|s| *s <= w.released + 1), "{sequences:?}, released {}", w.released);
        assert_eq!(w.durable, last);
        assert!(last >= self.last(), "acknowledged through {}, found through {last}", self.last());
        for (s, rows) in &core.seen {
            if let Some(b) = self.stored.get(s) {
                assert_eq!(*rows, b.rows(), "sequence {s}");
                continue;
            }
            // It had been sent, and nobody was told what became of it.
            let at = self.unknown.iter().position(|b| b.rows() == *rows).unwrap_or_else(|| panic!("sequence {s} was never sent"));
            self.stored.insert(*s, self.unknown.remove(at));
        }
        self.unknown.clear();
        self.core = Some(core);
    }

    /// The disk after a crash, plugged in again.
    fn restart(&mut self, keep: Keep) {
        self.core = None;
        let mut x = if let Keep::Some(seed) = keep { seed } else { 0 };
        self.vfs = self.vfs.after_crash(&mut || {
            x = mix(x);
            match keep {
                Keep::Nothing => false,
                Keep::All => true,
                Keep::Some(_) => x.is_multiple_of(2),
            }
        });
        self.pulled = false;
    }

    fn apply(&mut self, op: &Op) {
        let core = self.core.as_mut().unwrap();
        match op {
            Op::Append(sizes) => {
                let batches: Vec<Batch> = (self.next_id..).zip(sizes).map(|(id, (rows, len))| Batch::new(id, *rows, *len)).collect();
                self.next_id += batches.len() as i64;
                let outcomes = core.append(&batches);
                for (b, o) in batches.into_iter().zip(outcomes) {
                    match o {
                        Ok(s) => {
                            assert_eq!(s, self.last() + 1, "contiguous");
                            self.stored.insert(s, b);
                        }
                        Err(_) if !self.pulled => panic!("{o:?}"),
                        Err(AppendError::UnknownOutcome) => self.unknown.push(b),
                        Err(AppendError::NotStored(_)) => {}
                    }
                }
            }
            Op::Mark => core.mark(),
            Op::Seal => core.rotate(),
            Op::Ship => assert!(core.ship() || self.pulled, "{:?}", core.shared.last_error()),
            Op::ShipSome(n) => core.ship_some(*n),
            Op::Close => {
                self.core.take().unwrap().close();
                if self.pulled {
                    self.restart(Keep::Nothing);
                }
                self.open(Keep::Nothing);
            }
            Op::Crash(keep) => {
                self.restart(*keep);
                self.open(*keep);
            }
            Op::Pull(n) => {
                self.vfs.pull_the_plug_after(*n);
                self.pulled = true;
            }
        }
        let lake = self.sink.rows();
        assert!(lake.windows(2).all(|w| w[0] != w[1]), "a row is in the lake twice");
    }
}

fn run(ops: &[Op]) {
    let mut m = Model::new();
    for op in ops {
        m.apply(op);
    }
    m.apply(&Op::Crash(Keep::Nothing));
    m.apply(&Op::Ship);
    let mut all: Vec<_> = m.stored.values().flat_map(Batch::rows).collect();
    all.sort();
    assert_eq!(m.sink.rows(), all);
}

fn keep() -> impl Strategy<Value = Keep> {
    prop_oneof![Just(Keep::Nothing), Just(Keep::All), any::<u64>().prop_map(Keep::Some)]
}

fn op() -> impl Strategy<Value = Op> {
    let batch = prop_oneof![
        8 => (1..20usize, 0..40usize),
        // More than a block, and more than a segment.
        2 => (1..3usize, 2000..6000usize),
        1 => (1..2usize, 15_000..50_000usize),
    ];
    prop_oneof![
        8 => prop::collection::vec(batch, 1..6).prop_map(Op::Append),
        2 => Just(Op::Mark),
        2 => Just(Op::Seal),
        1 => Just(Op::Ship),
        1 => (0..6usize).prop_map(Op::ShipSome),
        1 => Just(Op::Close),
        3 => keep().prop_map(Op::Crash),
        3 => (1..40u32).prop_map(Op::Pull),
    ]
}

fn cases() -> u32 {
    if std::env::var_os("ARC_EXHAUSTIVE").is_some() { 4000 } else { 60 }
}

proptest! {
    #![proptest_config(Config {
        cases: cases(),
        max_shrink_iters: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/it/log_model.regressions"))),
        ..Config::default()
    })]

    #[test]
    fn every_acknowledged_batch_comes_out_once_in_order(ops in prop::collection::vec(op(), 1..30)) {
        run(&ops);
    }
}

/// A crash at each operation of a short life in turn, recoveries included, with each way to keep what was not synced.
#[test]
fn a_crash_at_each_operation_loses_nothing_that_was_acknowledged() {
    let small = || Op::Append(vec![(2, 10), (1, 300)]);
    let life = [small(), Op::Mark, small(), Op::Append(vec![(1, 16_000)]), Op::Ship, small(), Op::Seal, small(), Op::Close, small()];
    let step = if std::env::var_os("ARC_EXHAUSTIVE").is_some() { 1 } else { 5 };
    for keep in [Keep::Nothing, Keep::All, Keep::Some(7)] {
        for n in (1..110).step_by(step) {
            // The crash, then one in the recovery from it.
            let before = [Op::Pull(n)];
            let after = [Op::Crash(keep), small(), Op::Pull(n % 23 + 1), Op::Crash(keep), small()];
            run(&[&before[..], &life[..], &after[..]].concat());
        }
    }
}

/// Lives in which an earlier form of the log, or of this test, went wrong.
#[test]
fn lives_that_went_wrong_once() {
    let lives: [&[Op]; 2] = [
        &[Op::Append(vec![(1, 600), (1, 600), (1, 600)]), Op::Crash(Keep::Some(1)), Op::Append(vec![(1, 1)]), Op::Close],
        &[Op::Append(vec![(1, 1)]), Op::Seal, Op::Pull(3), Op::Append(vec![(1, 20_000)]), Op::Crash(Keep::Nothing), Op::Ship],
    ];
    lives.into_iter().for_each(run);
}
