//! The only clock and the only randomness of the server.
//!
//! Everything that asks for the time or for a random number takes a [`Clock`], so that a simulation can
//! supply both.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::Digest as _;

pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Time since some fixed point of this process; never goes backwards.
    fn monotonic(&self) -> Duration;
    /// Microseconds since the Unix epoch by the wall clock; may jump either way.
    fn wall_us(&self) -> i64;
    /// 64 random bits, good enough to tell two generations of a file apart.
    fn random_u64(&self) -> u64;
    /// A fresh log id.
    fn random_id(&self) -> crate::types::LogId;

    /// 256 bits fit for a secret, as far as the ids are random.
    fn random_secret(&self) -> [u8; 32] {
        // Six bits of each id are fixed; three of them hold more than enough.
        let ids: Vec<u8> = (0..3).flat_map(|_| self.random_id().0).collect();
        sha2::Sha256::digest(ids).into()
    }
}

pub type SharedClock = Arc<dyn Clock>;

#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn shared() -> SharedClock {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_us(&self) -> i64 {
        let us = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => i64::try_from(d.as_micros()).unwrap_or(i64::MAX),
            Err(e) => i64::try_from(e.duration().as_micros()).map_or(i64::MIN, |v| -v),
        };
        us.clamp(crate::limits::MIN_TIME_US, crate::limits::MAX_TIME_US)
    }

    fn random_u64(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().0 ^ uuid::Uuid::new_v4().as_u64_pair().1.rotate_left(17)
    }

    fn random_id(&self) -> crate::types::LogId {
        crate::types::LogId(*uuid::Uuid::new_v4().as_bytes())
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// True in `per_mille` of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// A clock that stands still until it is moved: for simulations. Random numbers come from its seed.
#[derive(Debug)]
pub struct SimClock {
    monotonic_us: AtomicU64,
    wall_us: AtomicI64,
    random: Mutex<SplitMix64>,
}

impl SimClock {
    pub fn new(seed: u64, wall_us: i64) -> Arc<Self> {
        Arc::new(Self { monotonic_us: AtomicU64::new(0), wall_us: AtomicI64::new(wall_us), random: Mutex::new(SplitMix64(seed)) })
    }

    /// Both clocks go on.
    pub fn advance(&self, by: Duration) {
        let us = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.monotonic_us.fetch_add(us, Ordering::Relaxed);
        self.jump(i64::try_from(us).unwrap_or(i64::MAX));
    }

    /// The wall clock is set, by `us` forwards or backwards.
    pub fn jump(&self, us: i64) {
        self.wall_us.fetch_add(us, Ordering::Relaxed);
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.monotonic_us.load(Ordering::Relaxed))
    }

    fn wall_us(&self) -> i64 {
        self.wall_us.load(Ordering::Relaxed).clamp(crate::limits::MIN_TIME_US, crate::limits::MAX_TIME_US)
    }

    fn random_u64(&self) -> u64 {
        self.random()
    }

    fn random_id(&self) -> crate::types::LogId {
        let mut id = [0; 16];
        for half in id.as_chunks_mut::<8>().0 {
            *half = self.random().to_le_bytes();
        }
        crate::types::LogId(id)
    }
}
