//! The only clock and the only randomness of the server.
//!
//! Everything that asks for the time or for a random number takes a [`Clock`], so that a simulation can
//! supply both.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Time since some fixed point of this process; never goes backwards.
    fn monotonic(&self) -> Duration;
    /// Microseconds since the Unix epoch by the wall clock; may jump either way.
    fn wall_us(&self) -> i64;
    /// 64 random bits, good enough to tell two generations of a file apart.
    fn random_u64(&self) -> u64;
    /// A fresh log id.
    fn random_id(&self) -> crate::types::LogId;
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
