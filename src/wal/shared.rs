//! What the committer, the preallocator, the compactor and the requests know of each other.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::clock::SharedClock;
use crate::error::{Reason, RequestError};
use crate::format::manifest::NodeLimits;
use crate::metrics::{Metrics, SegmentState};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::{LogId, Sequence};

use super::queue::Queue;

/// Locks a mutex; a panic of another holder does not matter because every critical section leaves its data whole.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far the log has come, as sequences. 0 = nothing yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Handed to the file.
    pub appended: Sequence,
    /// Covered by a sync that returned.
    pub durable: Sequence,
    /// In segments whose successor is durable under its final name.
    pub sealed: Sequence,
    /// In committed Parquet files (or counted as set aside).
    pub shipped: Sequence,
    /// In segments that may be gone.
    pub released: Sequence,
}

impl Watermarks {
    /// INVARIANT(watermarks), in release builds too.
    pub fn check(&self) {
        assert!(
            self.released <= self.shipped && self.shipped <= self.sealed && self.sealed <= self.durable && self.durable <= self.appended,
            "INVARIANT(watermarks) violated: {self:?}"
        );
    }
}

/// When a record was received: the age of what waits goes on over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Monotonic.
    seen: Duration,
    /// Age at that time.
    before: Duration,
}

/// No age is larger: a wall clock that was set is no reason for an alarm that says decades.
const MAX_AGE: Duration = Duration::from_secs(366 * 86_400);

impl Received {
    /// By this process, at monotonic time `at`.
    pub fn at(at: Duration) -> Self {
        Self { seen: at, before: Duration::ZERO }
    }

    /// By an earlier process, as the wall clock said then. It may have been set since, either way: the age is never negative.
    pub fn earlier(received_us: i64, wall_now_us: i64, now: Duration) -> Self {
        let us = u64::try_from(wall_now_us.saturating_sub(received_us)).unwrap_or(0);
        Self { seen: now, before: Duration::from_micros(us).min(MAX_AGE) }
    }

    pub fn age(self, now: Duration) -> Duration {
        now.saturating_sub(self.seen).saturating_add(self.before).min(MAX_AGE)
    }
}

/// A segment that will not be written again and that a durable successor declares the end of.
#[derive(Debug)]
pub struct SealedSegment {
    pub id: u64,
    pub salt: u64,
    pub path: PathBuf,
    pub file_len: u64,
    pub first_sequence: Sequence,
    pub last_sequence: Sequence,
    /// File offset behind the last group.
    pub end: u64,
    /// When the first of its records that were not shipped was received; None when that is not known.
    pub oldest: Option<Received>,
    /// A write or sync failed, or it was found damaged: its file is never pooled.
    pub tainted: bool,
}

/// All watermarks as gauges.
fn show(m: &Metrics, w: &Watermarks) {
    m.wal_appended_sequence.set(w.appended as f64);
    m.wal_durable_sequence.set(w.durable as f64);
    m.wal_sealed_sequence.set(w.sealed as f64);
    m.wal_shipped_sequence.set(w.shipped as f64);
    m.wal_released_sequence.set(w.released as f64);
}

/// Sizes and limits of the log that do not change while it is open.
#[derive(Clone, Debug)]
pub struct LogSettings {
    pub directory: PathBuf,
    /// Data area of an ordinary segment, a multiple of the block.
    pub segment_data: u64,
    pub max_size: u64,
    pub reserve: u64,
    pub pool: usize,
    pub engine: crate::vfs::Engine,
    pub sync: crate::vfs::SyncMode,
    pub queue_timeout: Duration,
    pub mark_delay: Duration,
    /// Bytes of records that may wait for the committer.
    pub queue_bytes: usize,
    pub set_aside_damage: bool,
    /// Recorded in the manifest when the log is opened; None leaves what is there.
    pub limits: Option<NodeLimits>,
}

impl LogSettings {
    pub fn segment_len(&self) -> u64 {
        crate::limits::FILE_HEADER_BYTES as u64 + self.segment_data
    }
}

/// Why the committer cannot go on at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Blocked {
    No = 0,
    /// No spare segment yet.
    Preparing = 1,
    /// No room on the disk.
    DiskFull = 2,
    /// The log has reached its size limit.
    Backlog = 3,
}

#[derive(Debug, Default)]
pub struct Segments {
    pub sealed: VecDeque<Arc<SealedSegment>>,
    pub active: Option<ActiveInfo>,
    /// Preparing or ready spares, and pooled files: number and bytes.
    pub spare: (usize, u64),
    pub pool: (usize, u64),
}

#[derive(Clone, Copy, Debug)]
pub struct ActiveInfo {
    pub id: u64,
    pub file_len: u64,
    pub first_sequence: Sequence,
    /// Offset behind the last group.
    pub end: u64,
    pub oldest: Option<Received>,
}

/// Counts the rounds of a machine, so that a watchdog can tell one that waits from one that hangs: it must go on even when there is
/// nothing to do.
#[derive(Debug, Default)]
pub struct Pulse(std::sync::atomic::AtomicU64);

impl Pulse {
    pub fn beat(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Beats so far.
    pub fn count(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// One pulse for each machine.
#[derive(Debug, Default)]
pub struct Pulses {
    /// Beats at least every second, unless a write or a sync takes longer.
    pub commit: Pulse,
    /// Beats between steps and with each output, which may take as long as an output takes to build and to store.
    pub compact: Pulse,
    /// Beats at least every five seconds, unless making a spare takes longer.
    pub prealloc: Pulse,
}

/// One per log; everything in it may be read by any thread.
#[derive(Debug)]
pub struct Shared {
    pub log: LogId,
    pub settings: LogSettings,
    pub clock: SharedClock,
    pub metrics: Arc<Metrics>,
    pub(super) queue: Mutex<Queue>,
    pub(super) queue_ready: Condvar,
    watermarks: Mutex<Watermarks>,
    watermarks_changed: Condvar,
    /// Wakes async waiters for watermarks.
    pub progress: tokio::sync::Notify,
    pub segments: Mutex<Segments>,
    poisoned: AtomicBool,
    poison_message: Mutex<Option<String>>,
    blocked: AtomicU8,
    /// The reserve file is not whole: writes are refused and released segments are unlinked, not pooled.
    reserve_spent: AtomicBool,
    stopping: AtomicBool,
    last_error: Mutex<Option<String>>,
    pub(super) total_bytes: AtomicU64,
    /// Bytes of the side directory that count in `wal.max_size`.
    side_bytes: AtomicU64,
    /// Bytes that outputs which fail now would take there: kept free for them.
    side_wanted: AtomicU64,
    pub pulses: Pulses,
}

impl Shared {
    pub fn new(log: LogId, settings: LogSettings, clock: SharedClock, metrics: Arc<Metrics>, start: Watermarks) -> Arc<Self> {
        start.check();
        show(&metrics, &start);
        metrics.wal_max_bytes.set(settings.max_size as f64);
        Arc::new(Self {
            log,
            settings,
            clock,
            metrics,
            queue: Mutex::default(),
            queue_ready: Condvar::new(),
            watermarks: Mutex::new(start),
            watermarks_changed: Condvar::new(),
            progress: tokio::sync::Notify::new(),
            segments: Mutex::default(),
            poisoned: AtomicBool::new(false),
            poison_message: Mutex::default(),
            blocked: AtomicU8::new(0),
            reserve_spent: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            last_error: Mutex::default(),
            total_bytes: AtomicU64::new(0),
            side_bytes: AtomicU64::new(0),
            side_wanted: AtomicU64::new(0),
            pulses: Pulses::default(),
        })
    }

    pub fn watermarks(&self) -> Watermarks {
        *lock(&self.watermarks)
    }

    /// Changes the watermarks, checks their order and wakes whoever waits for them.
    pub fn advance(&self, f: impl FnOnce(&mut Watermarks)) {
        let mut w = lock(&self.watermarks);
        let before = *w;
        f(&mut w);
        w.check();
        let now = *w;
        assert!(
            now.durable >= before.durable
                && now.sealed >= before.sealed
                && now.shipped >= before.shipped
                && now.released >= before.released,
            "a watermark went back from {before:?} to {now:?}"
        );
        drop(w);
        let m = &self.metrics;
        m.wal_appended_sequence.set(now.appended as f64);
        m.wal_durable_sequence.set(now.durable as f64);
        if now.sealed != before.sealed || now.shipped != before.shipped || now.released != before.released {
            m.wal_sealed_sequence.set(now.sealed as f64);
            m.wal_shipped_sequence.set(now.shipped as f64);
            m.wal_released_sequence.set(now.released as f64);
        }
        self.watermarks_changed.notify_all();
        if now.sealed != before.sealed || now.shipped != before.shipped {
            self.progress.notify_waiters();
        }
    }

    /// Waits until `done` holds or `timeout` is over; returns the watermarks then.
    pub fn wait_watermarks(&self, timeout: Duration, done: impl Fn(&Watermarks) -> bool) -> Watermarks {
        let w = lock(&self.watermarks);
        let (w, _) = self.watermarks_changed.wait_timeout_while(w, timeout, |w| !done(w)).unwrap_or_else(PoisonError::into_inner);
        *w
    }

    /// Wakes threads that wait for watermarks, so that they look at other state.
    pub fn nudge(&self) {
        self.watermarks_changed.notify_all();
        // The committer looks at flags that are not behind this lock and then waits: it must not do so in between.
        drop(lock(&self.queue));
        self.queue_ready.notify_all();
        self.progress.notify_waiters();
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub fn poison_message(&self) -> Option<String> {
        lock(&self.poison_message).clone()
    }

    /// INVARIANT(poison-is-final): after an error of a sync nothing is written to the log or acknowledged until restart.
    pub fn poison(&self, message: String) {
        lock(&self.poison_message).get_or_insert(message.clone());
        *lock(&self.last_error) = Some(message.clone());
        self.poisoned.store(true, Ordering::Release);
        self.metrics.wal_poisoned.set(1.0);
        self.nudge();
        // Last: whatever becomes of the line, the flag stands.
        tracing::error!(error = %message, "the log is poisoned: nothing more is acknowledged until restart");
    }

    pub fn blocked(&self) -> Blocked {
        match self.blocked.load(Ordering::Acquire) {
            1 => Blocked::Preparing,
            2 => Blocked::DiskFull,
            3 => Blocked::Backlog,
            _ => Blocked::No,
        }
    }

    pub fn set_blocked(&self, b: Blocked) {
        self.blocked.store(b as u8, Ordering::Release);
        self.metrics.wal_disk_full.set(f64::from(u8::from(b == Blocked::DiskFull || self.reserve_spent())));
    }

    pub fn reserve_spent(&self) -> bool {
        self.reserve_spent.load(Ordering::Acquire)
    }

    pub fn set_reserve_spent(&self, spent: bool) {
        self.reserve_spent.store(spent, Ordering::Release);
        self.metrics.wal_disk_full.set(f64::from(u8::from(spent || self.blocked() == Blocked::DiskFull)));
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// No new appends from here on; what is queued is still committed.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.nudge();
    }

    pub fn set_last_error(&self, e: String) {
        *lock(&self.last_error) = Some(e);
    }

    /// What was said last is over.
    pub fn clear_last_error(&self) {
        *lock(&self.last_error) = None;
    }

    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// Bytes of the side directory, as far as they count in `wal.max_size`.
    pub fn side_bytes(&self) -> u64 {
        self.side_bytes.load(Ordering::Relaxed)
    }

    /// INVARIANT(side-is-counted): what waits in the side directory takes part in `wal.max_size`, so that the log's directory is bounded by it.
    pub fn set_side_bytes(&self, bytes: u64) {
        self.side_bytes.store(bytes, Ordering::Relaxed);
        self.recount(&lock(&self.segments));
        // A spare may fit now.
        self.queue_ready.notify_all();
    }

    /// Bytes that outputs which fail now would take in the side directory.
    pub fn side_wanted(&self) -> u64 {
        self.side_wanted.load(Ordering::Relaxed)
    }

    /// Keeps `bytes` of `wal.max_size` free for records that may have to move to the side directory.
    pub fn set_side_wanted(&self, bytes: u64) {
        self.side_wanted.store(bytes, Ordering::Relaxed);
        self.recount(&lock(&self.segments));
    }

    /// Bytes of all files of the log: active, sealed, spare, pool, side directory; and what is kept free for the last.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Recounts [`Self::total_bytes`] and the gauges; called with the list locked after every change of it.
    pub fn recount(&self, s: &Segments) {
        let sealed: u64 = s.sealed.iter().map(|x| x.file_len).sum();
        let active = s.active.map_or(0, |a| a.file_len);
        let side = self.side_bytes() + self.side_wanted();
        self.total_bytes.store(sealed + active + s.spare.1 + s.pool.1 + side, Ordering::Relaxed);
        let m = &self.metrics;
        m.wal_segments.get(SegmentState::Sealed).set(s.sealed.len() as f64);
        m.wal_segments.get(SegmentState::Active).set(f64::from(u8::from(s.active.is_some())));
        m.wal_segments.get(SegmentState::Spare).set(s.spare.0 as f64);
        m.wal_segments.get(SegmentState::Pool).set(s.pool.0 as f64);
    }

    /// Bytes of the log that are not yet released, side directory included, and the age of the oldest record that is not yet shipped.
    pub fn backlog(&self) -> (u64, Option<Duration>) {
        let shipped = self.watermarks().shipped;
        let s = lock(&self.segments);
        let data = crate::limits::FILE_HEADER_BYTES as u64;
        let mut bytes: u64 = s.sealed.iter().map(|x| x.end.saturating_sub(data)).sum::<u64>() + self.side_bytes();
        let now = self.clock.monotonic();
        let mut age: Option<Duration> = None;
        for x in &s.sealed {
            if x.last_sequence > shipped && x.last_sequence >= x.first_sequence {
                let a = x.oldest.unwrap_or(Received::at(Duration::ZERO)).age(now);
                age = Some(age.map_or(a, |o| o.max(a)));
            }
        }
        if let Some(a) = s.active {
            bytes += a.end.saturating_sub(data);
            if let Some(o) = a.oldest {
                let a = o.age(now);
                age = Some(age.map_or(a, |o| o.max(a)));
            }
        }
        (bytes, age)
    }

    /// How full the log is, 1.0 = refuse. The last segment's room is kept back: it is what a rotation needs.
    pub fn fill_level(&self) -> f64 {
        let (log, limit) = self.used();
        (log + self.side_bytes() + self.side_wanted()) as f64 / limit as f64
    }

    /// How much of the room that the side directory leaves is taken by segments: what a plan can give back.
    pub fn segment_level(&self) -> f64 {
        let (log, limit) = self.used();
        log as f64 / limit.saturating_sub(self.side_bytes()).max(1) as f64
    }

    /// Bytes of sealed and active segments, and how many there may be.
    fn used(&self) -> (u64, u64) {
        let s = lock(&self.segments);
        let sealed: u64 = s.sealed.iter().map(|x| x.file_len).sum();
        let active = s.active.map_or(0, |a| a.end);
        (sealed + active, self.settings.max_size.saturating_sub(self.settings.segment_len()).max(1))
    }

    /// Whether a request may come in, and how long its acknowledgement is to be delayed.
    ///
    /// INVARIANT(slow-before-refuse): from 80 % of `wal.max_size` on acknowledgements are delayed, from 100 % on requests are refused.
    ///
    /// # Errors
    /// The 503 to answer.
    pub fn admit(&self) -> Result<Duration, RequestError> {
        if self.is_poisoned() {
            let why = self.poison_message().unwrap_or_default();
            return Err(RequestError::unavailable(
                Reason::Poisoned,
                format!("a sync of the log failed ({why}); the server must be restarted"),
            ));
        }
        if self.is_stopping() {
            return Err(RequestError::unavailable(Reason::Shutdown, "the server is stopping"));
        }
        if self.reserve_spent() || self.blocked() == Blocked::DiskFull {
            return Err(RequestError::unavailable(Reason::DiskFull, "the disk is full; stored rows are being drained, send again later"));
        }
        let level = self.fill_level();
        if level >= 1.0 || self.blocked() == Blocked::Backlog {
            return Err(RequestError::unavailable(
                Reason::Backlog,
                "the log has reached wal.max_size; stored rows are being drained, send again later",
            ));
        }
        Ok(if level > 0.8 { Duration::from_secs_f64((level - 0.8) * 2.5) } else { Duration::ZERO })
    }
}
