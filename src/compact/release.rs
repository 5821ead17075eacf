//! Giving room back: shipped segments, and the reserve once there is room for it.

use std::sync::Arc;
use std::time::Duration;

use super::builder::Trouble;
use super::worker::Compactor;
use crate::format::manifest::Entry;
use crate::wal::SealedSegment;
use crate::wal::aside::{is_damaged, keep_segment};
use crate::wal::recover::ensure_reserve;
use crate::wal::shared::lock;

impl Compactor {
    /// Makes the reserve whole again when there is room.
    pub(super) fn restore_reserve(&mut self) {
        let now = self.shared.clock.monotonic();
        if !self.shared.reserve_spent() || self.reserve_tried.is_some_and(|t| now < t + Duration::from_millis(500)) {
            return;
        }
        self.reserve_tried = Some(now);
        match ensure_reserve(&*self.vfs, &self.shared.settings.directory, self.shared.settings.reserve) {
            Ok(true) => {
                tracing::info!("there is room on the disk again: writes are taken");
                self.shared.set_reserve_spent(false);
            }
            Ok(false) => {}
            Err(e) => self.shared.set_last_error(format!("making the reserve whole: {e}")),
        }
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
            let rewritten = self.manifest.rewrite(self.keys.between(0, through));
            self.written(rewritten)?;
        }
        failed.map_or(Ok(true), |e| Err(e.into()))
    }
}
