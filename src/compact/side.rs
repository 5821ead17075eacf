//! The side directory: what it holds, how much of `wal.max_size` that takes, and which tables have to wait for it.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::control::Deferred;
use super::deferred::Attempts;
use super::worker::Compactor;
use crate::format::manifest::Plan;
use crate::wal::files;
use crate::wal::shared::lock;

/// What becomes of a file in the side directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// The records of an output that waits.
    Waits,
    /// Its output is committed: it may go.
    Done,
    /// A copy that was never finished.
    Unfinished,
    /// A side segment that no entry of the manifest names.
    Stray,
    /// Bytes of a damaged or torn place, and whatever else is there.
    Kept,
}

impl Compactor {
    fn use_of(&self, name: &str) -> Use {
        if name.ends_with(".wal.tmp") {
            return Use::Unfinished;
        }
        let Some((plan, output)) = files::parse_deferred(name) else { return Use::Kept };
        let state = &self.manifest.state;
        if state.deferred.contains_key(&(plan, output)) {
            return Use::Waits;
        }
        if state.committed_late.contains(&(plan, output)) {
            return Use::Done;
        }
        match state.plans.get(&plan) {
            Some(p) if p.commits.contains_key(&output) => Use::Done,
            // A crash may have left it just before the entry that names it: the log still has the records, and its plan will settle it.
            Some(p) if !p.shipped && (output as usize) < p.plan.outputs.len() => Use::Waits,
            _ => Use::Stray,
        }
    }

    /// Counts what is in the side directory, removes what is done with, and tells requests which tables have too much waiting.
    ///
    /// INVARIANT(strays-stay): a side segment is removed only when the manifest says that its output is committed.
    pub(super) fn count_deferred(&mut self) {
        let waiting = &self.manifest.state.deferred;
        self.attempts.retain(|key, _| waiting.contains_key(key));
        let mut d = self.waiting();
        if let Some(bytes) = self.look_aside(&mut d) {
            self.shared.set_side_bytes(bytes);
        }
        self.control.set_deferred(d);
    }

    /// Outputs that wait, by the manifest.
    fn waiting(&self) -> Deferred {
        let state = &self.manifest.state;
        let mut by_table: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut d = Deferred::default();
        for ((k, n), bytes) in &state.deferred {
            let Some((o, schema)) = state.deferred_file(*k, *n) else { continue };
            d.outputs += 1;
            d.bytes += bytes;
            let attempts = self.attempts.get(&(*k, *n));
            d.stuck += u64::from(attempts.is_some_and(Attempts::is_stuck));
            if let Some(why) = attempts.and_then(|a| a.last.as_ref()).filter(|s| s.lost) {
                d.lost.insert(files::deferred_name(*k, *n), why.why.clone());
            }
            d.from = Some(d.from.map_or(o.first_sequence, |f| f.min(o.first_sequence)));
            *by_table.entry((schema.database.clone(), schema.table.clone())).or_default() += bytes;
        }
        // Together half of the log, and a quarter for one: the rest belongs to the tables that can be published.
        let share = self.shared.settings.max_size / 2 / (by_table.len() as u64).max(2);
        d.refused = by_table.into_iter().filter(|(_, b)| *b > share).map(|(t, _)| t).collect::<HashSet<_>>();
        d
    }

    /// Goes through the side directory; the bytes in it that count, if it can be listed.
    fn look_aside(&mut self, d: &mut Deferred) -> Option<u64> {
        let dir = self.shared.settings.directory.join(files::SIDE);
        let (mut waiting, mut kept) = (0, 0);
        let mut evidence = VecDeque::new();
        for e in self.vfs.list(&dir).ok()? {
            match self.use_of(&e.name) {
                Use::Waits => waiting += e.len,
                Use::Kept => {
                    kept += e.len;
                    if files::parse_evidence(&e.name).is_some() {
                        evidence.push_back(e);
                    }
                }
                Use::Done | Use::Unfinished => {
                    let removed = self.vfs.remove(&dir.join(&e.name));
                    let why = if e.name.ends_with(".tmp") { "it was never finished" } else { "its output is committed" };
                    match removed {
                        Ok(()) => tracing::info!(file = e.name, bytes = e.len, "side segment removed: {why}"),
                        Err(error) => {
                            tracing::warn!(file = e.name, %error, "a side segment that is not needed cannot be removed");
                            waiting += e.len;
                        }
                    }
                }
                Use::Stray => {
                    waiting += e.len;
                    d.strays.push(e.name.clone());
                    if self.strays.insert(e.name.clone()) {
                        tracing::warn!(
                            file = e.name,
                            bytes = e.len,
                            "a side segment that no entry of the manifest names is kept: look at it with \"arc wal list\", then move it away"
                        );
                    }
                }
            }
        }
        // Damage must not stop writes: what is kept of it has a quarter of the log, and the segments with the lowest numbers go first.
        let most = self.shared.settings.max_size / 4;
        evidence.make_contiguous().sort_by_key(|e| files::parse_evidence(&e.name));
        let mut bytes: u64 = evidence.iter().map(|e| e.len).sum();
        while bytes > most
            && let Some(e) = evidence.pop_front()
        {
            match self.vfs.remove(&dir.join(&e.name)) {
                Ok(()) => {
                    tracing::warn!(
                        file = e.name,
                        bytes = e.len,
                        most,
                        "evidence of damage takes more than a quarter of wal.max_size: the oldest is removed"
                    );
                    kept -= e.len;
                }
                Err(error) => tracing::warn!(file = e.name, %error, "evidence of damage cannot be removed"),
            }
            bytes -= e.len;
        }
        Some(waiting + kept.min(most))
    }

    /// Why `bytes` more in the side directory are too many, after the segments that this plan releases are gone.
    pub(super) fn no_room_aside(&self, plan: &Plan, bytes: u64) -> Option<String> {
        let max = self.shared.settings.max_size;
        let over = |x: &Self| {
            let given_back: u64 =
                lock(&x.shared.segments).sealed.iter().filter(|s| s.last_sequence <= plan.last_sequence).map(|s| s.file_len).sum();
            let rest = x.shared.total_bytes().saturating_sub(x.shared.side_wanted()).saturating_sub(given_back);
            (rest + bytes > max).then_some(rest)
        };
        over(self)?;
        self.prealloc.empty_pool();
        let rest = over(self)?;
        Some(format!(
            "plan {}: records of outputs that cannot be published need {bytes} bytes of side segments, wal.max_size leaves {}: nothing is \
             released before they are published, or wal.max_size is larger",
            plan.plan,
            max.saturating_sub(rest)
        ))
    }
}
