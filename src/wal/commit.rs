//! The committer: the one owner of the active segment.
//!
//! Each step takes what has queued up, writes it as one group, syncs once, publishes `durable` and wakes the waiters. What
//! arrives during a sync is the next group; there is no timer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::files;
use super::manifest::{Acknowledging, AppendFailure};
use super::prealloc::{Failure, Preallocator, Spare};
use super::queue::{AppendError, Item};
use super::shared::{ActiveInfo, Blocked, Received, SealedSegment, Shared, lock};
use crate::error::Reason;
use crate::format::file_header::{DeclaredEnd, FileHeader, FileKind};
use crate::format::manifest::SegmentEntry;
use crate::format::record::{RecordHeader, RecordKind, pad_len, put_pad};
use crate::limits::{BLOCK, FILE_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::log_limit::LogLimit;
use crate::types::{LogId, Sequence};
use crate::vfs::{GroupWriter, SyncMode, Vfs, is_no_space, is_out_of_descriptors, is_shortage};

/// The segment that is being written.
#[derive(Debug)]
pub struct Active {
    pub id: u64,
    pub salt: u64,
    pub path: PathBuf,
    pub file_len: u64,
    pub first_sequence: Sequence,
    /// Offset of the next group: a multiple of the block.
    pub end: u64,
    pub writer: Box<dyn GroupWriter>,
    /// When the first record of the segment was queued.
    pub oldest: Option<Received>,
    /// The last group has no mark yet; when it became durable.
    pub unmarked_since: Option<Duration>,
    /// The manifest says that rows of this segment may have been acknowledged.
    pub known: bool,
    /// A write failed: nothing is written here any more, the successor declares the end before the hole.
    pub failed: bool,
}

impl Active {
    pub fn info(&self) -> ActiveInfo {
        ActiveInfo { id: self.id, file_len: self.file_len, first_sequence: self.first_sequence, end: self.end, oldest: self.oldest }
    }
}

/// What a successor's header says.
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    pub log: LogId,
    pub id: u64,
    pub salt: u64,
    pub epoch: u64,
    pub first_sequence: Sequence,
    pub predecessor: Option<DeclaredEnd>,
}

/// How far an activation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Begun,
    /// The header is durable under the temporary name.
    Synced,
    /// The final name is there, and not yet durable.
    Renamed,
}

/// What stopped an activation.
#[derive(Debug)]
enum Stopped {
    /// For want of descriptors, memory or room: the step has changed nothing and may be tried again.
    Short(io::Error),
    /// A sync failed, or something that does not go away: the spare must not be used again.
    Failed(io::Error),
}

/// Gives a spare its header and its final name, in the order that makes its predecessor's end durable with it: header and
/// `tail` (whole groups copied by recovery) under the temporary name, sync, rename, directory sync.
///
/// INVARIANT(activation-order): the predecessor has been synced through its declared end before this begins; no record is
/// written to the new segment by the committer before this has ended, and none to the predecessor after it has begun.
#[derive(Debug)]
struct Activating {
    spare: Spare,
    activation: Activation,
    stage: Stage,
}

impl Activating {
    fn header(&self) -> FileHeader {
        let a = &self.activation;
        FileHeader {
            kind: FileKind::Segment,
            minor: crate::format::file_header::FORMAT_MINOR,
            compatible: 0,
            incompatible: 0,
            log: a.log,
            id: a.id,
            first_sequence: a.first_sequence,
            salt: a.salt,
            epoch: a.epoch,
            file_len: self.spare.len,
            predecessor: a.predecessor,
        }
    }

    /// Goes on from where it stopped; returns the path of the segment once it may be written.
    fn go_on(&mut self, vfs: &dyn Vfs, dir: &Path, tail: &[u8]) -> Result<PathBuf, Stopped> {
        let short = |e: io::Error| if is_shortage(&e) || is_no_space(&e) { Stopped::Short(e) } else { Stopped::Failed(e) };
        let path = files::segment_path(dir, self.activation.id);
        if self.stage == Stage::Begun {
            self.spare.file.write_all_at(&[&self.header().encode_file(), tail], 0).map_err(short)?;
            self.spare.file.sync(SyncMode::Full).map_err(Stopped::Failed)?;
            self.stage = Stage::Synced;
        }
        if self.stage == Stage::Synced {
            vfs.rename(&self.spare.path, &path).map_err(short)?;
            self.stage = Stage::Renamed;
        }
        // INVARIANT(poison-is-final): a directory that could not be opened was not synced; whatever else a sync says is final.
        vfs.sync_dir(dir).map_err(|e| if is_out_of_descriptors(&e) { Stopped::Short(e) } else { Stopped::Failed(e) })?;
        Ok(path)
    }
}

/// Activates a spare in one go.
///
/// # Errors
/// Writing, syncing or renaming failed. After an error the spare must not be used again.
pub fn activate(vfs: &dyn Vfs, dir: &Path, spare: &Spare, activation: &Activation, tail: &[u8]) -> io::Result<PathBuf> {
    let spare = Spare { path: spare.path.clone(), file: Arc::clone(&spare.file), len: spare.len };
    let mut activating = Activating { spare, activation: *activation, stage: Stage::Begun };
    activating.go_on(vfs, dir, tail).map_err(|stopped| match stopped {
        Stopped::Short(e) | Stopped::Failed(e) => e,
    })
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Worked,
    /// Nothing to do before this time, unless something is queued.
    Idle(Option<Duration>),
    /// Cannot go on; look again soon.
    Blocked,
    /// Closed and everything is committed, or poisoned.
    Done,
}

#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
    vfs: Arc<dyn Vfs>,
    prealloc: Arc<Preallocator>,
    manifest: Acknowledging,
    active: Active,
    epoch: u64,
    next_sequence: Sequence,
    pad: Vec<u8>,
    /// A rotation that waits for descriptors, memory or room.
    rotating: Option<Activating>,
    /// What it waits for, as it was reported.
    waits_for: Option<String>,
    shortages: LogLimit,
}

impl Committer {
    pub fn new(
        shared: Arc<Shared>,
        vfs: Arc<dyn Vfs>,
        prealloc: Arc<Preallocator>,
        manifest: Acknowledging,
        active: Active,
        epoch: u64,
        next: Sequence,
    ) -> Self {
        {
            let mut s = lock(&shared.segments);
            s.active = Some(active.info());
            shared.recount(&s);
        }
        Self {
            shared,
            vfs,
            prealloc,
            manifest,
            active,
            epoch,
            next_sequence: next,
            pad: Vec::with_capacity(2 * BLOCK),
            rotating: None,
            waits_for: None,
            shortages: LogLimit::new(),
        }
    }

    /// Runs until closed or poisoned.
    pub fn run(mut self) {
        loop {
            self.shared.pulses.commit.beat();
            match self.step() {
                Step::Worked => {}
                Step::Done => {
                    if self.shared.is_poisoned() {
                        self.refuse_all(AppendError::NotStored(Reason::Poisoned));
                    }
                    return;
                }
                Step::Blocked => self.wait(Some(Duration::from_millis(20)), true),
                Step::Idle(until) => {
                    let now = self.shared.clock.monotonic();
                    self.wait(until.map(|u| u.saturating_sub(now)), false);
                }
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>, even_if_queued: bool) {
        let q = lock(&self.shared.queue);
        // What came between the step and here: its notification has found nobody.
        let asked = !q.is_empty() || q.closed || self.seal_asked(&q);
        if (asked && !even_if_queued) || self.shared.is_poisoned() {
            return;
        }
        let timeout = timeout.unwrap_or(Duration::from_secs(1));
        drop(self.shared.queue_ready.wait_timeout(q, timeout).unwrap_or_else(PoisonError::into_inner));
    }

    fn seal_asked(&self, q: &super::queue::Queue) -> bool {
        q.seal_through >= self.active.first_sequence && self.next_sequence > self.active.first_sequence
    }

    /// Bytes a group may take in the active segment: one block is kept back for the mark.
    fn room(&self) -> u64 {
        if self.active.failed {
            return 0;
        }
        // A pad may take a whole block more than the rest of the last one.
        self.active.file_len.saturating_sub(self.active.end).saturating_sub(2 * BLOCK as u64)
    }

    pub fn step(&mut self) -> Step {
        if self.shared.is_poisoned() {
            self.refuse_all(AppendError::NotStored(Reason::Poisoned));
            return Step::Done;
        }
        if let Some(activating) = self.rotating.take() {
            let step = self.activate_next(activating);
            // What has not begun to rotate when everything is committed is the next start's.
            let over = step == Step::Blocked && {
                let q = lock(&self.shared.queue);
                q.closed && q.is_empty()
            };
            return if over { Step::Done } else { step };
        }
        let (items, too_large, seal, closed) = {
            let mut q = lock(&self.shared.queue);
            let seal = self.seal_asked(&q);
            // INVARIANT(seal-is-not-starved): under a load that never lets the queue run empty a seal comes before the next group, if
            // there is a segment to go on in.
            if seal && !q.is_empty() && self.prealloc.is_ready() {
                drop(q);
                return self.rotate(0);
            }
            let (items, too_large) = q.take(self.room());
            (items, too_large, seal, q.closed)
        };
        if !items.is_empty() {
            return self.commit(items);
        }
        if let Some(len) = too_large {
            return self.rotate(len as u64 + 3 * BLOCK as u64);
        }
        let now = self.shared.clock.monotonic();
        if let Some(since) = self.active.unmarked_since {
            let due = since + self.shared.settings.mark_delay;
            if now >= due || closed || seal {
                return self.mark();
            }
            return Step::Idle(Some(due));
        }
        if seal {
            return self.rotate(0);
        }
        if closed {
            return Step::Done;
        }
        if self.shared.blocked() != Blocked::No {
            // Whoever could not be taken has gone. While writes are refused nobody else would come to find out that there is room.
            if !self.prealloc.settle() {
                return Step::Blocked;
            }
            self.shared.set_blocked(Blocked::No);
        }
        Step::Idle(None)
    }

    fn refuse_all(&self, e: AppendError) {
        let items = {
            let mut q = lock(&self.shared.queue);
            q.closed = true;
            q.take_all()
        };
        for i in items {
            i.finish(Err(e));
        }
    }

    fn commit(&mut self, mut items: Vec<Item>) -> Step {
        let started = self.shared.clock.monotonic();
        let first = self.next_sequence;
        let floor = first - 1;
        let from = self.active.end;
        let mut at = from;
        let mut oldest = started;
        for (sequence, item) in (first..).zip(items.iter_mut()) {
            oldest = oldest.min(item.queued);
            self.shared.metrics.wal_queue_wait_seconds.record(started.saturating_sub(item.queued).as_secs_f64());
            let r = &mut item.record;
            let header = RecordHeader {
                kind: RecordKind::Write,
                payload_len: r.payload_len(),
                payload_crc: r.payload_crc(),
                salt: self.active.salt,
                offset: at,
                sequence,
                durable_floor: floor,
                receive_time_us: r.receive_time_us(),
            }
            .encode();
            if let Some(room) = r.header_room() {
                room.copy_from_slice(&header);
            }
            at += r.record_len() as u64;
        }
        let last = first + items.len() as u64 - 1;
        self.pad.clear();
        put_pad(&mut self.pad, pad_len(at), at, self.active.salt, last, floor, self.shared.clock.wall_us());
        let end = at + self.pad.len() as u64;
        // INVARIANT(block-aligned-groups): a block that has been synced is never written again in its generation.
        assert!(from.is_multiple_of(BLOCK as u64) && end.is_multiple_of(BLOCK as u64) && end <= self.active.file_len);

        let mut bufs: Vec<&[u8]> = Vec::with_capacity(items.len() + 1);
        bufs.extend(items.iter().map(|i| i.record.bytes()));
        bufs.push(&self.pad);
        if let Err(e) = self.active.writer.write(&bufs, from) {
            return self.write_failed(items, e);
        }
        self.shared.advance(|w| w.appended = last);
        let sync_started = self.shared.clock.monotonic();
        if let Err(e) = self.active.writer.sync() {
            self.sync_failed(items, &e);
            return Step::Done;
        }
        if !self.active.known
            && let Err(e) = self.make_known(last)
        {
            self.sync_failed(items, &e);
            return Step::Done;
        }
        let now = self.shared.clock.monotonic();

        self.next_sequence = last + 1;
        self.active.end = end;
        self.active.oldest.get_or_insert(Received::at(oldest));
        self.active.unmarked_since = Some(now);
        self.publish_active();
        for (sequence, item) in (first..).zip(items.iter()) {
            item.complete(Ok(sequence));
        }
        // INVARIANT(publish-then-wake): whoever is woken finds the watermark that covers it.
        self.shared.advance(|w| w.durable = last);
        self.shared.set_blocked(Blocked::No);
        let m = &self.shared.metrics;
        m.wal_sync_seconds.record(now.saturating_sub(sync_started).as_secs_f64());
        m.wal_syncs_total.increment(1);
        m.wal_group_records.record(items.len() as f64);
        m.wal_group_bytes.record((end - from) as f64);
        m.wal_record_bytes_total.increment(at - from);
        m.wal_pad_bytes_total.increment(end - at);
        for (sequence, item) in (first..).zip(items) {
            item.wake(Ok(sequence));
        }
        Step::Worked
    }

    /// INVARIANT(known-before-ack): the manifest names a segment after records of it are durable and before one of them is acknowledged. So a
    /// segment that is lost or empty has lost nothing unless the manifest names it, and one that the manifest names holds records.
    fn make_known(&mut self, durable: Sequence) -> io::Result<()> {
        let a = &self.active;
        let entry = SegmentEntry { segment: a.id, salt: a.salt, first_sequence: a.first_sequence, durable };
        // Its room was made before the segment was activated: without room there is no other way either.
        self.manifest.add(entry).map_err(|e| io::Error::other(e.to_string()))?;
        self.active.known = true;
        Ok(())
    }

    fn publish_active(&self) {
        let mut s = lock(&self.shared.segments);
        s.active = Some(self.active.info());
    }

    /// A failed or short write. The group's bytes are a hole: the segment is given up, and its successor declares the end
    /// before the hole. The waiters hear `not_stored` only once that is durable.
    fn write_failed(&mut self, items: Vec<Item>, e: io::Error) -> Step {
        self.active.failed = true;
        self.shared.set_last_error(format!("{}: write at offset {}: {e}", self.active.path.display(), self.active.end));
        if !is_no_space(&e) && !is_shortage(&e) {
            self.shared.poison(format!("{}: write at offset {}: {e}", self.active.path.display(), self.active.end));
            for i in items {
                i.finish(Err(AppendError::UnknownOutcome));
            }
            return Step::Done;
        }
        tracing::warn!(file = files::segment_name(self.active.id), offset = self.active.end, error = %e, "write failed for want of room or memory: abandoning this segment");
        let moved = self.rotate(0) == Step::Worked;
        let reason = if is_no_space(&e) { Reason::DiskFull } else { Reason::NotStored };
        let outcome = if moved { AppendError::NotStored(reason) } else { AppendError::UnknownOutcome };
        for i in items {
            i.finish(Err(outcome));
        }
        if moved { Step::Worked } else { Step::Blocked }
    }

    fn sync_failed(&mut self, items: Vec<Item>, e: &io::Error) {
        self.active.failed = true;
        self.shared.metrics.wal_sync_failures_total.increment(1);
        self.shared.poison(format!("{}: sync of the group at offset {}: {e}", self.active.path.display(), self.active.end));
        for i in items {
            i.finish(Err(AppendError::UnknownOutcome));
        }
        self.refuse_all(AppendError::NotStored(Reason::Poisoned));
    }

    /// Writes and syncs a mark: the witness of the last group.
    fn mark(&mut self) -> Step {
        if self.active.failed || self.active.end + BLOCK as u64 > self.active.file_len {
            self.active.unmarked_since = None;
            return Step::Worked;
        }
        let last = self.next_sequence - 1;
        let now = self.shared.clock.wall_us();
        let at = self.active.end;
        let header = RecordHeader {
            kind: RecordKind::Mark,
            payload_len: 0,
            payload_crc: crc32fast::hash(&[]),
            salt: self.active.salt,
            offset: at,
            sequence: last,
            durable_floor: last,
            receive_time_us: now,
        }
        .encode();
        self.pad.clear();
        let behind = at + RECORD_HEADER_BYTES as u64;
        put_pad(&mut self.pad, pad_len(behind), behind, self.active.salt, last, last, now);
        if let Err(e) = self.active.writer.write(&[&header, &self.pad], at) {
            return self.write_failed(Vec::new(), e);
        }
        if let Err(e) = self.active.writer.sync() {
            self.sync_failed(Vec::new(), &e);
            return Step::Done;
        }
        self.active.end = behind + self.pad.len() as u64;
        self.active.unmarked_since = None;
        self.shared.metrics.wal_marks_total.increment(1);
        self.shared.metrics.wal_syncs_total.increment(1);
        self.publish_active();
        Step::Worked
    }

    /// Seals the active segment by activating a successor with at least `data` bytes of data area.
    fn rotate(&mut self, data: u64) -> Step {
        match self.manifest.prepare() {
            Ok(()) => {}
            Err(AppendFailure::NoSpace(e)) => {
                self.rotation_waits(self.active.id + 1, &e);
                return Step::Blocked;
            }
            Err(e) => {
                self.shared.poison(e.to_string());
                return Step::Done;
            }
        }
        let spare = match self.prealloc.take(data) {
            Ok(s) => s,
            Err(why) => {
                self.shared.set_blocked(match why {
                    Some(Failure::DiskFull) => Blocked::DiskFull,
                    Some(Failure::SizeLimit) => Blocked::Backlog,
                    Some(Failure::Other) | None => Blocked::Preparing,
                });
                return Step::Blocked;
            }
        };
        let last = self.next_sequence - 1;
        let activation = Activation {
            log: self.shared.log,
            id: self.active.id + 1,
            salt: self.shared.clock.random_u64(),
            epoch: self.epoch,
            first_sequence: self.next_sequence,
            predecessor: Some(DeclaredEnd { id: self.active.id, salt: self.active.salt, end: self.active.end, last_sequence: last }),
        };
        self.activate_next(Activating { spare, activation, stage: Stage::Begun })
    }

    /// Carries a rotation on. A shortage is back-pressure: nothing is written until it is over.
    fn activate_next(&mut self, mut activating: Activating) -> Step {
        let settings = &self.shared.settings;
        // The mapping first: once the new segment has its name there is no way back.
        let writer = Arc::clone(&activating.spare.file)
            .appender(settings.engine, settings.sync)
            .map_err(|e| if is_shortage(&e) { Stopped::Short(e) } else { Stopped::Failed(e) });
        let opened = writer.and_then(|w| Ok((activating.go_on(&*self.vfs, &settings.directory, &[])?, w)));
        let Activation { id, salt, first_sequence, .. } = activating.activation;
        let (path, writer) = match opened {
            Ok(x) => x,
            Err(Stopped::Short(e)) => {
                self.rotation_waits(id, &e);
                self.rotating = Some(activating);
                return Step::Blocked;
            }
            Err(Stopped::Failed(e)) => {
                // The half-made file has no final name or, if it has, no records: recovery knows what to do with either, this process
                // does not go on.
                self.shared.poison(format!("{}: activation of segment {id}: {e}", activating.spare.path.display()));
                return Step::Done;
            }
        };
        if let Some(why) = self.waits_for.take()
            && self.shared.last_error() == Some(why)
        {
            self.shared.clear_last_error();
        }
        let last = self.next_sequence - 1;
        let next = Active {
            id,
            salt,
            path,
            file_len: activating.spare.len,
            first_sequence,
            end: FILE_HEADER_BYTES as u64,
            writer,
            oldest: None,
            unmarked_since: None,
            known: false,
            failed: false,
        };
        let old = std::mem::replace(&mut self.active, next);
        let sealed = SealedSegment {
            id: old.id,
            salt: old.salt,
            path: old.path,
            file_len: old.file_len,
            first_sequence: old.first_sequence,
            last_sequence: last,
            end: old.end,
            oldest: old.oldest,
            tainted: old.failed,
        };
        {
            let mut s = lock(&self.shared.segments);
            s.sealed.push_back(Arc::new(sealed));
            s.active = Some(self.active.info());
            self.shared.recount(&s);
        }
        self.shared.advance(|w| w.sealed = last);
        self.shared.set_blocked(Blocked::No);
        self.shared.metrics.wal_rotations_total.increment(1);
        tracing::debug!(segment = id, sequence = first_sequence, "segment activated");
        Step::Worked
    }

    fn rotation_waits(&mut self, id: u64, e: &io::Error) {
        self.shared.set_blocked(if is_no_space(e) { Blocked::DiskFull } else { Blocked::Preparing });
        let why = format!("{} cannot be activated yet: {e}", files::segment_name(id));
        self.shared.set_last_error(why.clone());
        self.waits_for = Some(why);
        if let Some(suppressed) = self.shortages.pass(self.shared.clock.monotonic()) {
            tracing::warn!(file = files::segment_name(id), error = %e, suppressed, "a segment cannot be activated yet: trying again, writes wait");
        }
    }
}

impl Shared {
    /// Asks the committer to seal the active segment if it holds sequences up to `through`.
    pub fn request_seal(&self, through: Sequence) {
        let mut q = lock(&self.queue);
        q.seal_through = q.seal_through.max(through);
        drop(q);
        self.queue_ready.notify_all();
    }

    /// No record will be queued any more; the committer commits what is there, marks it and ends.
    pub fn close_queue(&self) {
        lock(&self.queue).closed = true;
        self.queue_ready.notify_all();
    }
}
