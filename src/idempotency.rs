//! Idempotency keys: which requests are stored already. A fold over the log with checkpoints in the manifest.
//!
//! Age counts the log's *running time*: milliseconds that a server has had the log open. It is kept with each key, so that
//! neither a wall clock that jumps nor a long stop shortens or lengthens the window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::clock::SharedClock;
use crate::error::Reason;
use crate::format::manifest::StoredKey;
use crate::format::payload::KeyEntry;
use crate::sync::Mutex;
use crate::types::Sequence;
use crate::wal::shared::lock;

/// Identity of a key: SHA-256 over database, NUL, key, cut to 16 bytes.
pub fn key_id(database: &str, key: &str) -> [u8; 16] {
    let mut h = Sha256::new();
    h.update(database.as_bytes());
    h.update([0]);
    h.update(key.as_bytes());
    let full: [u8; 32] = h.finalize().into();
    let mut out = [0u8; 16];
    for (o, f) in out.iter_mut().zip(full) {
        *o = f;
    }
    out
}

/// "Same body": SHA-256 over the route, NUL, precision or unit, NUL, inflated body.
pub fn body_hash(route: &str, unit: &str, body: &[u8]) -> [u8; 32] {
    let mut h = Sha256::new();
    h.update(route.as_bytes());
    h.update([0]);
    h.update(unit.as_bytes());
    h.update([0]);
    h.update(body);
    h.finalize().into()
}

/// How the first request with a key ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Stored,
    Unavailable(Reason),
    /// Refused for what it is: the next one with the key is the first.
    Free,
}

#[derive(Debug)]
struct InFlight {
    body: [u8; 32],
    ended: watch::Sender<Option<Ended>>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<[u8; 16], (Sequence, KeyEntry)>,
    /// In order of sequences, which is the order of age.
    order: VecDeque<(Sequence, [u8; 16])>,
    in_flight: HashMap<[u8; 16], InFlight>,
    early_evictions: u64,
}

#[derive(Debug)]
pub struct Keys {
    inner: Mutex<Inner>,
    window: Duration,
    max: usize,
    clock: SharedClock,
    /// Running time of the log when this process opened it, less the clock's reading then.
    base_ms: Mutex<(u64, Duration)>,
}

/// The newest keys of a log that is being read, no more of them than would stay live: a log holds far more of them than that when it is long.
#[derive(Debug)]
pub struct Newest {
    max: usize,
    entries: VecDeque<(Sequence, KeyEntry)>,
}

impl Newest {
    pub fn new(max: usize) -> Self {
        Self { max, entries: VecDeque::new() }
    }

    /// In order of sequences.
    pub fn push(&mut self, sequence: Sequence, entry: KeyEntry) {
        self.entries.push_back((sequence, entry));
        if self.entries.len() > self.max {
            self.entries.pop_front();
        }
    }

    /// In order of sequences.
    pub fn entries(self) -> impl Iterator<Item = (Sequence, KeyEntry)> {
        self.entries.into_iter()
    }
}

/// What a request with a key is to do.
#[derive(Debug)]
pub enum Begin {
    /// It is the first: store it, with this entry in the record.
    First(InFlightKey),
    /// It is stored already.
    Stored { sequence: Sequence, status: u16 },
    /// The key belongs to another body.
    OtherBody,
    /// The first one was refused with 503 while this one waited.
    Unavailable(Reason),
}

/// The claim of the first request with a key. Dropping it frees the key.
#[derive(Debug)]
pub struct InFlightKey {
    keys: Arc<Keys>,
    pub entry: KeyEntry,
    done: bool,
}

impl InFlightKey {
    /// The record is durable.
    pub fn stored(mut self, sequence: Sequence) {
        self.done = true;
        self.keys.end(&self.entry, Ended::Stored, Some(sequence));
    }

    /// It was answered 503.
    pub fn unavailable(mut self, reason: Reason) {
        self.done = true;
        self.keys.end(&self.entry, Ended::Unavailable(reason), None);
    }
}

impl Drop for InFlightKey {
    fn drop(&mut self) {
        if !self.done {
            self.keys.end(&self.entry, Ended::Free, None);
        }
    }
}

impl Keys {
    pub fn new(window: Duration, max: usize, clock: SharedClock) -> Arc<Self> {
        let now = clock.monotonic();
        Arc::new(Self { inner: Mutex::default(), window, max, clock, base_ms: Mutex::new((0, now)) })
    }

    /// The log's running time in milliseconds.
    pub fn running_ms(&self) -> u64 {
        let (base, at) = *lock(&self.base_ms);
        base + self.clock.monotonic().saturating_sub(at).as_millis() as u64
    }

    /// Running time goes on from here: the highest value found in manifest or log.
    pub fn resume(&self, running_ms: u64) {
        let now = self.running_ms();
        if running_ms > now {
            *lock(&self.base_ms) = (running_ms, self.clock.monotonic());
        }
    }

    /// Takes over a key from the manifest or the log; in order of sequences.
    pub fn restore(&self, sequence: Sequence, entry: KeyEntry) {
        self.resume(entry.running_ms);
        let mut i = lock(&self.inner);
        i.insert(sequence, entry);
        self.evict(&mut i);
    }

    /// Begins a request with a key; waits while another with the same key is on its way.
    pub async fn begin(self: &Arc<Self>, id: [u8; 16], body: [u8; 32]) -> Begin {
        loop {
            let mut ended = {
                let mut i = lock(&self.inner);
                self.evict(&mut i);
                if let Some((sequence, e)) = i.live.get(&id) {
                    return if e.body == body { Begin::Stored { sequence: *sequence, status: e.status } } else { Begin::OtherBody };
                }
                match i.in_flight.get(&id) {
                    Some(f) if f.body != body => return Begin::OtherBody,
                    Some(f) => f.ended.subscribe(),
                    None => {
                        i.in_flight.insert(id, InFlight { body, ended: watch::Sender::new(None) });
                        drop(i);
                        let entry = KeyEntry { id, body, running_ms: self.running_ms(), status: 204 };
                        return Begin::First(InFlightKey { keys: Arc::clone(self), entry, done: false });
                    }
                }
            };
            let outcome = ended.wait_for(Option::is_some).await.map(|e| *e);
            if let Ok(Some(Ended::Unavailable(reason))) = outcome {
                return Begin::Unavailable(reason);
            }
        }
    }

    fn end(&self, entry: &KeyEntry, how: Ended, sequence: Option<Sequence>) {
        let mut i = lock(&self.inner);
        if let Some(s) = sequence {
            i.insert(s, *entry);
            self.evict(&mut i);
        }
        if let Some(f) = i.in_flight.remove(&entry.id) {
            drop(i);
            f.ended.send_replace(Some(how));
        }
    }

    fn evict(&self, i: &mut Inner) {
        let now = self.running_ms();
        let window = self.window.as_millis() as u64;
        while let Some((sequence, id)) = i.order.front().copied() {
            let Some((live, e)) = i.live.get(&id) else {
                i.order.pop_front();
                continue;
            };
            if *live != sequence {
                i.order.pop_front();
                continue;
            }
            let old = e.running_ms + window < now;
            if !old && i.live.len() <= self.max {
                return;
            }
            if !old {
                i.early_evictions += 1;
            }
            i.live.remove(&id);
            i.order.pop_front();
        }
    }

    /// Live keys whose record's sequence is above `after` and at most `through`: what a checkpoint must hold.
    pub fn between(&self, after: Sequence, through: Sequence) -> Vec<StoredKey> {
        let i = lock(&self.inner);
        let from = i.order.partition_point(|(s, _)| *s <= after);
        i.order
            .range(from..)
            .take_while(|(s, _)| *s <= through)
            .filter_map(|(s, id)| i.live.get(id).filter(|(live, _)| live == s).map(|(_, e)| (*s, *e)))
            .collect()
    }

    pub fn len(&self) -> usize {
        lock(&self.inner).live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys forgotten before their window had passed, because there were too many.
    pub fn early_evictions(&self) -> u64 {
        lock(&self.inner).early_evictions
    }
}

impl Inner {
    fn insert(&mut self, sequence: Sequence, entry: KeyEntry) {
        self.live.insert(entry.id, (sequence, entry));
        self.order.push_back((sequence, entry.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn keys(max: usize) -> Arc<Keys> {
        Keys::new(Duration::from_secs(3600), max, SystemClock::shared())
    }

    fn run<F: Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(f)
    }

    #[test]
    fn a_stored_key_replays_and_another_body_is_refused() {
        run(async {
            let k = keys(10);
            let id = key_id("db", "a");
            let Begin::First(f) = k.begin(id, [1; 32]).await else { panic!("first") };
            assert!(matches!(k.begin(id, [2; 32]).await, Begin::OtherBody));
            f.stored(7);
            assert!(matches!(k.begin(id, [1; 32]).await, Begin::Stored { sequence: 7, status: 204 }));
            assert!(matches!(k.begin(id, [2; 32]).await, Begin::OtherBody));
            assert_ne!(key_id("d", "ba"), key_id("db", "a"));
        });
    }

    #[test]
    fn waiters_hear_503_and_a_refused_key_is_free() {
        run(async {
            let k = keys(10);
            let id = key_id("db", "a");
            for unavailable in [true, false] {
                let Begin::First(f) = k.begin(id, [1; 32]).await else { panic!("first") };
                let k2 = Arc::clone(&k);
                let w = tokio::spawn(async move { k2.begin(id, [1; 32]).await });
                tokio::task::yield_now().await;
                if unavailable {
                    f.unavailable(Reason::NotStored);
                    assert!(matches!(w.await.unwrap(), Begin::Unavailable(Reason::NotStored)));
                } else {
                    drop(f);
                    assert!(matches!(w.await.unwrap(), Begin::First(_)));
                }
            }
        });
    }

    #[test]
    fn while_a_log_is_read_only_the_newest_keys_are_kept() {
        let mut newest = Newest::new(3);
        for s in 1..=1000u64 {
            newest.push(s, KeyEntry { id: [0; 16], body: [0; 32], running_ms: s, status: 204 });
            assert!(newest.entries.len() <= 3 && newest.entries.capacity() <= 8);
        }
        assert_eq!(newest.entries().map(|(s, k)| (s, k.running_ms)).collect::<Vec<_>>(), [(998, 998), (999, 999), (1000, 1000)]);
    }

    /// Checkpoint and log may both have a key, and a key that was forgotten can be stored anew.
    #[test]
    fn of_a_key_that_is_stored_twice_the_later_counts() {
        let k = keys(2);
        let entry = |id: u8, running_ms| KeyEntry { id: [id; 16], body: [0; 32], running_ms, status: 204 };
        for (sequence, id) in [(1, 1), (2, 2), (5, 1)] {
            k.restore(sequence, entry(id, 0));
        }
        assert_eq!((k.len(), k.early_evictions(), k.is_empty()), (2, 0, false));
        assert_eq!(k.between(0, 9).iter().map(|(s, e)| (*s, e.id[0])).collect::<Vec<_>>(), [(2, 2), (5, 1)]);
        // The older of the two goes first, whatever it was stored as at first.
        k.restore(6, entry(3, 0));
        assert_eq!(k.between(0, 9).iter().map(|(s, _)| *s).collect::<Vec<_>>(), [5, 6]);
        k.restore(7, entry(4, 4_000_000));
        assert_eq!((k.len(), k.early_evictions()), (1, 1), "an hour of running time later");
    }

    #[test]
    fn the_oldest_go_first_and_early_evictions_are_counted() {
        let k = keys(3);
        for s in 1..=5u8 {
            k.restore(u64::from(s), KeyEntry { id: [s; 16], body: [0; 32], running_ms: 0, status: 204 });
        }
        assert_eq!((k.len(), k.early_evictions()), (3, 2));
        assert_eq!(k.between(0, 4).iter().map(|(s, _)| *s).collect::<Vec<_>>(), vec![3, 4]);
        k.restore(6, KeyEntry { id: [6; 16], body: [0; 32], running_ms: 4_000_000, status: 204 });
        assert_eq!(k.len(), 1, "an hour of running time later only the new one is left");
        assert!(k.running_ms() >= 4_000_000);
    }
}
