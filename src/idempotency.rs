//! Idempotency keys: which requests are stored already. A fold over the log with checkpoints in the manifest.
//!
//! Age counts the log's *running time*: milliseconds that a server has had the log open. It is kept with each key, so that
//! neither a wall clock that jumps nor a long stop shortens or lengthens the window.
//!
//! A partial write that comes again with the same bytes is recognised by a key that the server makes ([`own_key`]). These keys have a
//! budget of their own, so that they never make a client's key be forgotten early.

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

/// The key that the server makes for a partial write: an id and a body hash, over the route, the precision, the database and the inflated
/// body. The id is the beginning of the hash, by which `is_own` knows it; a client's key has another hash as its id.
pub fn own_key(route: &str, unit: &str, database: &str, body: &[u8]) -> ([u8; 16], [u8; 32]) {
    let mut h = Sha256::new();
    for part in ["partial write", route, unit, database] {
        h.update(part.as_bytes());
        h.update([0]);
    }
    h.update(body);
    let hash: [u8; 32] = h.finalize().into();
    let mut id = [0; 16];
    id.iter_mut().zip(hash).for_each(|(i, h)| *i = h);
    (id, hash)
}

/// Whether a server made the key.
fn is_own(id: &[u8; 16], body: &[u8; 32]) -> bool {
    body.starts_with(id)
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

/// Keys that share a budget.
#[derive(Debug)]
struct Live {
    keys: HashMap<[u8; 16], (Sequence, KeyEntry)>,
    /// In order of sequences, which is the order of age.
    order: VecDeque<(Sequence, [u8; 16])>,
    max: usize,
    early_evictions: u64,
}

#[derive(Debug)]
struct Inner {
    clients: Live,
    own: Live,
    in_flight: HashMap<[u8; 16], InFlight>,
}

/// Most keys that the server makes itself.
pub const MAX_OWN_KEYS: usize = 100_000;

#[derive(Debug)]
pub struct Keys {
    inner: Mutex<Inner>,
    window: Duration,
    clock: SharedClock,
    /// Running time of the log when this process opened it, less the clock's reading then.
    base_ms: Mutex<(u64, Duration)>,
}

/// The newest keys of a log that is being read, no more of them than would stay live: a log holds far more of them than that when it is long.
#[derive(Debug)]
pub struct Newest {
    max: usize,
    clients: VecDeque<(Sequence, KeyEntry)>,
    own: VecDeque<(Sequence, KeyEntry)>,
}

impl Newest {
    pub fn new(max: usize) -> Self {
        Self { max, clients: VecDeque::new(), own: VecDeque::new() }
    }

    /// In order of sequences.
    pub fn push(&mut self, sequence: Sequence, entry: KeyEntry) {
        let own = is_own(&entry.id, &entry.body);
        let (entries, max) = if own { (&mut self.own, MAX_OWN_KEYS) } else { (&mut self.clients, self.max) };
        entries.push_back((sequence, entry));
        if entries.len() > max {
            entries.pop_front();
        }
    }

    /// In order of sequences, those of clients before the server's own.
    pub fn entries(self) -> impl Iterator<Item = (Sequence, KeyEntry)> {
        self.clients.into_iter().chain(self.own)
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
        let inner = Inner { clients: Live::new(max), own: Live::new(MAX_OWN_KEYS), in_flight: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(inner), window, clock, base_ms: Mutex::new((0, now)) })
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

    /// Takes over a key from the manifest or the log; those of one budget in order of sequences.
    pub fn restore(&self, sequence: Sequence, entry: KeyEntry) {
        self.resume(entry.running_ms);
        let mut i = lock(&self.inner);
        i.insert(sequence, entry);
        self.evict(&mut i);
    }

    /// Takes over the keys of the manifest and those of the log, of which the manifest may have some already: each once.
    pub fn restore_all(&self, checkpoint: &[StoredKey], log: Newest) {
        let through = checkpoint.last().map_or(0, |(s, _)| *s);
        let behind = log.entries().filter(|(s, _)| *s > through);
        checkpoint.iter().copied().chain(behind).for_each(|(s, k)| self.restore(s, k));
    }

    /// Begins a request with a key; waits while another with the same key is on its way.
    pub async fn begin(self: &Arc<Self>, id: [u8; 16], body: [u8; 32]) -> Begin {
        loop {
            let mut ended = {
                let mut i = lock(&self.inner);
                self.evict(&mut i);
                if let Some((sequence, e)) = i.live(&id, &body).keys.get(&id) {
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
        i.clients.evict(now, window);
        i.own.evict(now, window);
    }

    /// Live keys whose record's sequence is above `after` and at most `through`, in order of sequences: what a checkpoint must hold.
    pub fn between(&self, after: Sequence, through: Sequence) -> Vec<StoredKey> {
        let i = lock(&self.inner);
        let mut keys: Vec<StoredKey> = i.clients.between(after, through).chain(i.own.between(after, through)).collect();
        keys.sort_unstable_by_key(|(s, _)| *s);
        keys
    }

    /// Live keys of clients.
    pub fn len(&self) -> usize {
        lock(&self.inner).clients.keys.len()
    }

    /// Live keys that the server made.
    pub fn own_len(&self) -> usize {
        lock(&self.inner).own.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys of clients that were forgotten before their window had passed, because there were too many.
    pub fn early_evictions(&self) -> u64 {
        lock(&self.inner).clients.early_evictions
    }
}

impl Inner {
    fn live(&mut self, id: &[u8; 16], body: &[u8; 32]) -> &mut Live {
        if is_own(id, body) { &mut self.own } else { &mut self.clients }
    }

    fn insert(&mut self, sequence: Sequence, entry: KeyEntry) {
        let live = self.live(&entry.id, &entry.body);
        live.keys.insert(entry.id, (sequence, entry));
        live.order.push_back((sequence, entry.id));
    }
}

impl Live {
    fn new(max: usize) -> Self {
        Self { keys: HashMap::new(), order: VecDeque::new(), max, early_evictions: 0 }
    }

    fn evict(&mut self, now: u64, window: u64) {
        while let Some((sequence, id)) = self.order.front().copied() {
            let Some((_, e)) = self.keys.get(&id).filter(|(live, _)| *live == sequence) else {
                self.order.pop_front();
                continue;
            };
            let old = e.running_ms + window < now;
            if !old && self.keys.len() <= self.max {
                return;
            }
            if !old {
                self.early_evictions += 1;
            }
            self.keys.remove(&id);
            self.order.pop_front();
        }
    }

    fn between(&self, after: Sequence, through: Sequence) -> impl Iterator<Item = StoredKey> + '_ {
        let from = self.order.partition_point(|(s, _)| *s <= after);
        let range = self.order.range(from..).take_while(move |(s, _)| *s <= through);
        range.filter_map(|(s, id)| self.keys.get(id).filter(|(live, _)| live == s).map(|(_, e)| (*s, *e)))
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
            newest.push(s, KeyEntry { id: [0; 16], body: [9; 32], running_ms: s, status: 204 });
            assert!(newest.clients.len() <= 3 && newest.clients.capacity() <= 8);
        }
        assert_eq!(newest.entries().map(|(s, k)| (s, k.running_ms)).collect::<Vec<_>>(), [(998, 998), (999, 999), (1000, 1000)]);
    }

    /// A flood of partial writes forgets only keys of its own kind, here and while a log is read.
    #[test]
    fn the_servers_own_keys_have_a_budget_of_their_own() {
        let k = keys(2);
        let mut newest = Newest::new(2);
        let own = |n: u64| {
            let (id, body) = own_key("write", "ns", "d", &n.to_le_bytes());
            KeyEntry { id, body, running_ms: 0, status: 400 }
        };
        let client = |id: u8| KeyEntry { id: [id; 16], body: [0; 32], running_ms: 0, status: 204 };
        let more = MAX_OWN_KEYS as u64 + 5;
        for (sequence, entry) in [(1, client(1)), (2, client(2))].into_iter().chain((3..3 + more).map(|s| (s, own(s)))) {
            k.restore(sequence, entry);
            newest.push(sequence, entry);
        }
        assert_eq!((k.len(), k.own_len(), k.early_evictions()), (2, MAX_OWN_KEYS, 0));
        let kept: Vec<Sequence> = k.between(0, u64::MAX).iter().map(|(s, _)| *s).collect();
        assert_eq!((&kept[..3], kept.is_sorted()), (&[1, 2, 8][..], true));
        assert_eq!(newest.entries().map(|(s, _)| s).collect::<Vec<_>>(), kept);
        k.restore(more + 3, client(3));
        assert_eq!((k.early_evictions(), k.between(0, 2).len()), (1, 1), "clients' keys are counted among themselves");
    }

    #[test]
    fn own_keys_differ_by_route_unit_database_and_body() {
        let all = [
            own_key("write", "ns", "d", b"x"),
            own_key("api/v2/write", "ns", "d", b"x"),
            own_key("write", "us", "d", b"x"),
            own_key("write", "ns", "e", b"x"),
            own_key("write", "ns", "d", b"y"),
        ];
        assert_eq!(all.iter().map(|k| k.0).collect::<std::collections::HashSet<_>>().len(), all.len());
        assert!(all.iter().all(|(id, body)| is_own(id, body)));
        assert!(!is_own(&key_id("d", "k"), &body_hash("write", "ns", b"x")));
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

    /// Between a release and the removal of its segments both manifest and log have a key: taken twice, it would stand twice in the next
    /// checkpoint and in all that follow.
    #[test]
    fn keys_that_manifest_and_log_have_are_restored_once() {
        let k = keys(10);
        let entry = |id: u8| KeyEntry { id: [id; 16], body: [0; 32], running_ms: 0, status: 204 };
        let mut log = Newest::new(10);
        (2..=4u8).for_each(|id| log.push(id.into(), entry(id)));
        k.restore_all(&[(1, entry(1)), (2, entry(2)), (3, entry(3))], log);
        assert_eq!(k.between(0, 9).iter().map(|(s, e)| (*s, e.id[0])).collect::<Vec<_>>(), [(1, 1), (2, 2), (3, 3), (4, 4)]);
        assert_eq!(lock(&k.inner).clients.order.len(), 4);
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
