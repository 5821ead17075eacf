//! Giving room back: shipped segments, and the reserve once there is room for it. Telling the manifest how far the log has come.

use std::sync::Arc;
use std::time::Duration;

use super::builder::Trouble;
use super::worker::Compactor;
use crate::format::manifest::{Entry, SegmentEntry};
use crate::wal::SealedSegment;
use crate::wal::aside::{is_damaged, keep_segment};
use crate::wal::files;
use crate::wal::manifest::AppendFailure;
use crate::wal::reserve::{ensure_reserve, kept_for_a_start, reserve_length, spend_reserve};
use crate::wal::shared::lock;

/// How often the manifest is told how far the log is durable, when there is nothing else to tell it.
const PROGRESS: Duration = Duration::from_secs(10);

impl Compactor {
    /// How much must be there of what was acknowledged, if that is more than the manifest knows.
    pub(super) fn progress(&self) -> Option<SegmentEntry> {
        let durable = self.shared.watermarks().durable;
        self.manifest.acknowledged().filter(|s| s.durable < durable).map(|s| SegmentEntry { durable, ..s })
    }

    /// From time to time, so that a recovery misses what is lost of the newest segment, too: nothing else says where its records ended.
    pub(super) fn tell_progress(&mut self) -> Result<(), Trouble> {
        if self.shared.is_poisoned() || self.shared.clock.monotonic() < self.told + PROGRESS {
            return Ok(());
        }
        self.append(self.progress().map(Entry::Segment).into_iter().collect(), &[])
    }

    /// Makes the reserve whole again when there is room.
    pub(super) fn restore_reserve(&mut self) {
        let now = self.shared.clock.monotonic();
        if !self.shared.reserve_spent() || self.reserve_tried.is_some_and(|t| now < t + Duration::from_millis(500)) {
            return;
        }
        self.reserve_tried = Some(now);
        self.reserve_length = reserve_length(self.shared.settings.reserve, self.manifest.end());
        match ensure_reserve(&*self.vfs, &self.shared.settings.directory, self.reserve_length) {
            Ok(true) => {
                tracing::info!("there is room on the disk again: writes are taken");
                self.shared.set_reserve_spent(false);
            }
            Ok(false) => {}
            Err(e) => self.shared.set_last_error(format!("making the reserve whole: {e}")),
        }
    }

    /// INVARIANT(reserve-covers-the-manifest): a manifest that has grown takes the reserve with it. Where there is no room for that, writes
    /// are refused until there is: the drain and the next start need it more.
    pub(super) fn grow_reserve(&mut self) {
        let length = reserve_length(self.shared.settings.reserve, self.manifest.end());
        if length <= self.reserve_length || self.shared.reserve_spent() {
            return;
        }
        match ensure_reserve(&*self.vfs, &self.shared.settings.directory, length) {
            Ok(whole) => {
                self.reserve_length = length;
                self.shared.set_reserve_spent(!whole);
            }
            Err(e) => self.shared.set_last_error(format!("making the reserve longer: {e}")),
        }
    }

    /// Gives the reserve's blocks to the drain, and those of pooled segments; false when there are none. Writes are refused until the reserve
    /// is whole again.
    pub(super) fn make_room(&mut self) -> bool {
        self.shared.set_reserve_spent(true);
        let reserve = self.shared.settings.directory.join(files::RESERVE);
        let len = self.vfs.open(&reserve, false).and_then(|f| f.len()).unwrap_or(0);
        let keep = kept_for_a_start(self.reserve_length.max(len), self.manifest.allocated());
        let freed = if len > keep { spend_reserve(&*self.vfs, &reserve, keep) } else { 0 };
        self.prealloc.empty_pool() + freed > 0
    }

    /// Releases sealed segments all of whose sequences are shipped, oldest first; true when there was one.
    pub(super) fn release(&mut self) -> Result<bool, Trouble> {
        let w = self.shared.watermarks();
        let done: Vec<Arc<SealedSegment>> = self.sealed().into_iter().take_while(|s| s.last_sequence <= w.shipped).collect();
        let Some(last) = done.last() else { return Ok(false) };
        let through = last.last_sequence.max(w.released);
        let keys = self.keys.between(self.manifest.state.released, through);
        let mut entries = Vec::new();
        let dirty = self.catalog.take_dirty();
        for chunk in dirty.chunks(500) {
            entries.push(Entry::Catalog { last_sequence: through, tables: chunk.to_vec() });
        }
        entries.push(Entry::Released { segment: last.id, last_sequence: through });
        if let Err(e) = self.append(entries, &keys) {
            // The definitions must be in the next checkpoint all the same.
            self.catalog.mark_dirty(&dirty);
            return Err(e);
        }
        let ids: Vec<u64> = done.iter().map(|s| s.id).collect();
        {
            let mut s = lock(&self.shared.segments);
            s.sealed.retain(|x| !ids.contains(&x.id));
            self.shared.recount(&s);
        }
        self.shared.advance(|x| x.released = x.released.max(through));
        let (mut failed, mut kept) = (None, false);
        for s in done {
            // One that fails is left to the next start, the others are not.
            let gone = if is_damaged(&self.manifest.state.damage, s.id) {
                kept = true;
                keep_segment(&*self.vfs, &self.shared.settings.directory, &s.path, s.id, s.salt)
            } else {
                self.prealloc.give(s.path.clone(), s.file_len, s.id, !s.tainted)
            };
            if let Err(e) = gone {
                failed.get_or_insert(e);
            }
        }
        if kept {
            self.count_deferred();
        }
        if self.manifest.wants_rewrite() {
            match self.manifest.rewrite(self.keys.between(0, through)) {
                // It stands as it is, and appending to it needs less room than its copy.
                Err(AppendFailure::NoSpace(e)) => tracing::warn!(error = %e, "no room for a shorter manifest"),
                rewritten => self.written(rewritten)?,
            }
        }
        failed.map_or(Ok(true), |e| Err(e.into()))
    }
}
