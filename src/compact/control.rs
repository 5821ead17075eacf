//! What requests ask of the compactor and what it tells them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::lake::OtherLog;
use crate::format::manifest::Entry;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, sleep};
use crate::types::Sequence;
use crate::wal::Shared;
use crate::wal::files;
use crate::wal::shared::lock;

/// How a wait for shipping ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shipped {
    Done {
        files: u64,
        rows: u64,
        through: Sequence,
    },
    TimedOut {
        through: Sequence,
        target: Sequence,
    },
    /// Everything else is shipped, and what waits cannot be read: waiting longer changes nothing.
    Lost(String),
}

/// Outputs that wait in side segments.
#[derive(Clone, Debug, Default)]
pub struct Deferred {
    pub outputs: u64,
    pub bytes: u64,
    /// Those that need somebody: the last attempt met what will not go away by itself, or several have failed while the store answered.
    pub stuck: u64,
    /// Side segments that cannot be read, and why: nothing brings their rows back by itself.
    pub lost: BTreeMap<String, String>,
    /// Side segments that no entry of the manifest names.
    pub strays: Vec<String>,
    /// The lowest sequence among them.
    pub from: Option<Sequence>,
    /// Tables (database, table) that have too much there: only their writes are refused.
    pub refused: HashSet<(String, String)>,
}

/// Shared between the compactor and whoever asks something of it.
#[derive(Debug)]
pub struct Control {
    shared: Arc<Shared>,
    target: AtomicU64,
    stop: AtomicBool,
    paused: AtomicBool,
    files: AtomicU64,
    rows: AtomicU64,
    plans: AtomicU64,
    open_plan: AtomicU64,
    quarantined: Mutex<(u64, u64)>,
    deferred: Mutex<Deferred>,
    damage: Mutex<Vec<Entry>>,
    any_refused: AtomicBool,
    /// Flushes that have begun; the last one that the compactor has heard of; the last one after which it has looked at what waits.
    flushes: [AtomicU64; 3],
    forked: Mutex<Option<String>>,
    barred: Mutex<Option<String>>,
    other_logs: Mutex<Vec<OtherLog>>,
    signal: (Mutex<bool>, Condvar),
}

impl Control {
    pub fn new(shared: Arc<Shared>, paused: bool) -> Arc<Self> {
        Arc::new(Self {
            shared,
            target: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            paused: AtomicBool::new(paused),
            files: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            plans: AtomicU64::new(0),
            open_plan: AtomicU64::new(0),
            quarantined: Mutex::default(),
            deferred: Mutex::default(),
            damage: Mutex::default(),
            any_refused: AtomicBool::new(false),
            flushes: Default::default(),
            forked: Mutex::default(),
            barred: Mutex::default(),
            other_logs: Mutex::default(),
            signal: (Mutex::new(false), Condvar::new()),
        })
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Asks for everything through `target` to be shipped now.
    pub fn request(&self, target: Sequence) {
        self.target.fetch_max(target, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn target(&self) -> Sequence {
        self.target.load(Ordering::Acquire)
    }

    /// The compactor ends after its current step.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub fn wake(&self) {
        *lock(&self.signal.0) = true;
        self.signal.1.notify_all();
    }

    pub(super) fn wait(&self, timeout: Duration) {
        let mut woken = lock(&self.signal.0);
        if !*woken {
            (woken, _) = self.signal.1.wait_timeout(woken, timeout).unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
    }

    pub(super) fn committed(&self, files: u64, rows: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn set_plan(&self, open: Option<u64>) {
        if open.is_none() {
            self.plans.fetch_add(1, Ordering::Relaxed);
        }
        self.open_plan.store(open.unwrap_or(0), Ordering::Relaxed);
    }

    /// Plans shipped by this process, and the one being built.
    pub fn plans(&self) -> (u64, Option<u64>) {
        let open = self.open_plan.load(Ordering::Relaxed);
        (self.plans.load(Ordering::Relaxed), (open > 0).then_some(open))
    }

    pub(super) fn set_quarantined(&self, records: u64, bytes: u64) {
        *lock(&self.quarantined) = (records, bytes);
    }

    /// Slices and bytes in the quarantine.
    pub fn quarantined(&self) -> (u64, u64) {
        *lock(&self.quarantined)
    }

    pub(super) fn set_deferred(&self, d: Deferred) {
        self.shared.metrics.compact_deferred_outputs.set(d.outputs as f64);
        self.shared.metrics.compact_deferred_bytes.set(d.bytes as f64);
        self.any_refused.store(!d.refused.is_empty(), Ordering::Release);
        *lock(&self.deferred) = d;
        self.shared.nudge();
    }

    pub(super) fn set_damage(&self, damage: Vec<Entry>) {
        *lock(&self.damage) = damage;
    }

    /// The damage in this log that recoveries and plans have reported: manifest entries.
    pub fn damage(&self) -> Vec<Entry> {
        lock(&self.damage).clone()
    }

    /// The same as JSON, with the name of the file beside each number.
    pub fn damage_json(&self) -> Vec<serde_json::Value> {
        let with_file = |e: &Entry| {
            let mut v = serde_json::json!(e);
            if let (Entry::Damage { segment, .. }, Some(o)) = (e, v.as_object_mut()) {
                let file = if *segment == 0 { files::SIDE.to_owned() } else { files::segment_name(*segment) };
                o.insert("file".into(), file.into());
            }
            v
        };
        lock(&self.damage).iter().map(with_file).collect()
    }

    /// Outputs that wait in side segments.
    pub fn deferred(&self) -> Deferred {
        lock(&self.deferred).clone()
    }

    /// A table of the request whose outputs have waited until their limit was reached.
    pub fn refuses<'a>(&self, database: &str, tables: impl IntoIterator<Item = &'a str>) -> Option<String> {
        if !self.any_refused.load(Ordering::Acquire) {
            return None;
        }
        let d = lock(&self.deferred);
        tables.into_iter().find(|t| d.refused.contains(&(database.to_owned(), (*t).to_owned()))).map(str::to_owned)
    }

    /// Files and rows committed by this process.
    pub fn totals(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }

    /// Through which sequence every row is in committed Parquet: `shipped` counts deferred outputs as well.
    pub fn committed_through(&self) -> Sequence {
        let shipped = self.shared.watermarks().shipped;
        lock(&self.deferred).from.map_or(shipped, |f| shipped.min(f.saturating_sub(1)))
    }

    pub(super) fn set_forked(&self, why: String) {
        self.set_refused(format!("forked: {why}"));
    }

    /// Nothing may be shipped to this store before a person has decided something.
    pub(super) fn set_refused(&self, why: String) {
        tracing::error!(error = %why, "nothing more is shipped or released");
        self.shared.set_last_error(why.clone());
        *lock(&self.forked) = Some(why);
        self.shared.nudge();
    }

    /// Why nothing is shipped until a person has decided something: this log and the store disagree about what a plan is (`forked: ...`), or
    /// the store is not the lake of this log, or not one that can be used safely.
    pub fn forked(&self) -> Option<String> {
        lock(&self.forked).clone()
    }

    pub(super) fn set_other_logs(&self, found: Vec<OtherLog>) {
        *lock(&self.other_logs) = found;
    }

    /// The logs of this host that the lake held when this log began, with this process.
    pub fn other_logs(&self) -> Vec<OtherLog> {
        lock(&self.other_logs).clone()
    }

    pub(super) fn set_barred(&self, why: Option<String>) {
        *lock(&self.barred) = why;
    }

    /// Why the plan that is next cannot begin, and with it nothing after it, when that will not change by itself.
    pub fn barred(&self) -> Option<String> {
        lock(&self.barred).clone()
    }

    /// The number of the newest flush, if it has begun since this was asked last.
    pub(super) fn take_hurry(&self) -> Option<u64> {
        let [begun, heard, _] = &self.flushes;
        let newest = begun.load(Ordering::Acquire);
        (heard.swap(newest, Ordering::Relaxed) < newest).then_some(newest)
    }

    /// What waits has been tried since flush `number` began.
    pub(super) fn looked(&self, number: u64) {
        self.flushes[2].fetch_max(number, Ordering::AcqRel);
    }

    /// Why the rest of flush `number` will not be shipped, whatever it waits for.
    fn lost(&self, number: u64, target: Sequence) -> Option<String> {
        if self.flushes[2].load(Ordering::Acquire) < number || self.shared.watermarks().shipped < target {
            return None;
        }
        let d = lock(&self.deferred);
        let all = d.outputs == d.lost.len() as u64;
        d.lost.values().next().filter(|_| all).map(|why| match d.lost.len() {
            1 => why.clone(),
            n => format!("{n} side segments cannot be read; the first: {why}"),
        })
    }

    /// Ships what is durable now and waits for it, at most `timeout`; outputs that wait are tried at once. A flush joins one that is running.
    pub async fn flush(&self, timeout: Duration) -> Shipped {
        let number = self.flushes[0].fetch_add(1, Ordering::AcqRel) + 1;
        let target = self.shared.watermarks().durable;
        let (files, rows) = (self.files.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed));
        self.request(target);
        let over = sleep(timeout);
        tokio::pin!(over);
        loop {
            let changed = self.shared.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let through = self.committed_through();
            if through >= target {
                let since = |c: &AtomicU64, before| c.load(Ordering::Relaxed).saturating_sub(before);
                return Shipped::Done { files: since(&self.files, files), rows: since(&self.rows, rows), through };
            }
            if let Some(why) = self.lost(number, target) {
                return Shipped::Lost(why);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut over => return Shipped::TimedOut { through: self.committed_through(), target },
            }
        }
    }
}
