//! The way into the log: requests queue records here, the committer takes them in groups.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::shared::{Blocked, Shared, lock};
use crate::error::{Reason, RequestError};
use crate::format::payload::EncodedRecord;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::types::Sequence;

/// Most records that may wait for the committer.
const MAX_QUEUED: usize = 65_536;

/// Why a record was not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendError {
    /// It never got a sequence: nothing of it is stored.
    NotStored(Reason),
    /// It got a sequence and the outcome is not known before the next recovery.
    UnknownOutcome,
}

impl AppendError {
    pub fn to_request_error(self) -> RequestError {
        match self {
            Self::NotStored(reason) => {
                let what = match reason {
                    Reason::DiskFull => "the disk is full; nothing was stored, send again later",
                    Reason::Backlog => "the log has reached wal.max_size; nothing was stored, send again later",
                    Reason::Poisoned => "a sync of the log failed; nothing was stored, the server must be restarted",
                    Reason::Shutdown => "the server is stopping; nothing was stored",
                    _ => "the log did not take the request in time; nothing was stored, send again",
                };
                RequestError::unavailable(reason, what)
            }
            Self::UnknownOutcome => RequestError::unavailable(
                Reason::UnknownOutcome,
                "a write or sync of the log failed; the rows may be found after a restart (retry with the same Idempotency-Key)",
            ),
        }
    }
}

/// Called exactly once with the outcome, before the waiter hears of it and in the order of sequences.
pub type Completion = Box<dyn FnOnce(Result<Sequence, AppendError>) + Send>;

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

/// INVARIANT(cancel-before-take): a record is either taken by the committer or cancelled by its waiter, never both; the
/// winner of the exchange owns the completion.
struct Ticket {
    state: AtomicU8,
    completion: Mutex<Option<Completion>>,
}

impl Ticket {
    fn claim(&self, to: u8) -> bool {
        self.state.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn complete(&self, outcome: Result<Sequence, AppendError>) {
        let c = lock(&self.completion).take();
        if let Some(c) = c {
            c(outcome);
        }
    }
}

pub(super) struct Item {
    pub record: EncodedRecord,
    pub queued: Duration,
    ticket: Arc<Ticket>,
    reply: oneshot::Sender<Result<Sequence, AppendError>>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Item").field("bytes", &self.record.record_len()).finish_non_exhaustive()
    }
}

impl Item {
    /// Runs the completion, without waking the waiter.
    pub fn complete(&self, outcome: Result<Sequence, AppendError>) {
        self.ticket.complete(outcome);
    }

    /// Wakes the waiter. [`Self::complete`] comes first.
    pub fn wake(self, outcome: Result<Sequence, AppendError>) {
        let _ = self.reply.send(outcome);
    }

    pub fn finish(self, outcome: Result<Sequence, AppendError>) {
        self.complete(outcome);
        self.wake(outcome);
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// The compactor asks for the active segment to be sealed when it holds sequences up to here.
    pub(super) seal_through: Sequence,
    /// No item will come any more.
    pub(super) closed: bool,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes items in order while their records fit `room` bytes and the group's bounds; cancelled ones are dropped.
    /// The second value is the length of the first record that did not fit, when nothing was taken.
    pub(super) fn take(&mut self, room: u64) -> (Vec<Item>, Option<usize>) {
        let mut out = Vec::new();
        let mut total = 0usize;
        while let Some(front) = self.items.front() {
            let len = front.record.record_len();
            let fits = (total + len) as u64 <= room;
            let full = !out.is_empty() && (total + len > crate::limits::MAX_GROUP_BYTES || out.len() >= crate::limits::MAX_GROUP_RECORDS);
            if full || (!fits && !out.is_empty()) {
                break;
            }
            if !fits {
                if front.ticket.state.load(Ordering::Acquire) == CANCELLED {
                    self.pop();
                    continue;
                }
                return (out, Some(len));
            }
            let Some(item) = self.pop() else { break };
            if item.ticket.claim(TAKEN) {
                total += len;
                out.push(item);
            }
        }
        (out, None)
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.record.record_len();
        Some(item)
    }

    /// Takes everything that is not cancelled, to be refused.
    pub(super) fn take_all(&mut self) -> Vec<Item> {
        self.bytes = 0;
        self.items.drain(..).filter(|i| i.ticket.claim(TAKEN)).collect()
    }
}

/// The handle with which requests append. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Appender {
    shared: Arc<Shared>,
}

struct CancelOnDrop(Arc<Ticket>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.0.claim(CANCELLED) {
            self.0.complete(Err(AppendError::NotStored(Reason::NotStored)));
        }
    }
}

impl Appender {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Appends one record and waits until it is durable. Dropping the future before the record has a sequence
    /// takes it back; after that it is never cancelled.
    ///
    /// # Errors
    /// [`AppendError`]; `completion` has seen the same outcome before.
    pub async fn append(&self, record: EncodedRecord, completion: Option<Completion>) -> Result<Sequence, AppendError> {
        let (reply, mut outcome) = oneshot::channel();
        let ticket = Arc::new(Ticket { state: AtomicU8::new(QUEUED), completion: Mutex::new(completion) });
        let guard = CancelOnDrop(Arc::clone(&ticket));
        let len = record.record_len();
        {
            let mut q = lock(&self.shared.queue);
            let refused = if self.shared.is_poisoned() {
                Some(Reason::Poisoned)
            } else if q.closed {
                Some(Reason::Shutdown)
            } else if q.items.len() >= MAX_QUEUED || (q.bytes > 0 && q.bytes + len > self.shared.settings.queue_bytes) {
                Some(self.why_waiting())
            } else {
                None
            };
            if let Some(reason) = refused {
                drop(q);
                if ticket.claim(CANCELLED) {
                    ticket.complete(Err(AppendError::NotStored(reason)));
                }
                return Err(AppendError::NotStored(reason));
            }
            q.bytes += len;
            let wake = q.items.is_empty();
            q.items.push_back(Item { record, queued: self.shared.clock.monotonic(), ticket: Arc::clone(&ticket), reply });
            drop(q);
            if wake {
                self.shared.queue_ready.notify_one();
            }
        }
        let lost = Err(AppendError::UnknownOutcome);
        tokio::select! {
            biased;
            r = &mut outcome => return r.unwrap_or(lost),
            () = crate::sync::sleep(self.shared.settings.queue_timeout) => {}
        }
        if ticket.claim(CANCELLED) {
            let e = AppendError::NotStored(self.why_waiting());
            ticket.complete(Err(e));
            return Err(e);
        }
        let r = outcome.await.unwrap_or(lost);
        drop(guard);
        r
    }

    fn why_waiting(&self) -> Reason {
        if self.shared.is_poisoned() {
            return Reason::Poisoned;
        }
        match self.shared.blocked() {
            Blocked::DiskFull => Reason::DiskFull,
            Blocked::Backlog => Reason::Backlog,
            Blocked::No | Blocked::Preparing => Reason::NotStored,
        }
    }
}
