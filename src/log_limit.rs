//! One line of a kind at a time, however often its cause repeats.
//!
//! What clients or a sick disk can make happen thousands of times a second may not fill the disk that the logs are on. The first of a kind
//! is logged at once; those of the next ten seconds are counted, and the next line says how many there were. Metrics count all of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a kind is quiet after a line.
pub const QUIET: Duration = Duration::from_secs(10);

/// The gate of one kind of line.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// Milliseconds; 0 before the first line.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    pub const fn new() -> Self {
        Self { next: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// `Some` if the line is to be written, with the number of those that were not since the last one. `now` is time since a fixed point,
    /// such as [`crate::clock::Clock::monotonic`].
    pub fn pass(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Relaxed);
        let quiet = u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX);
        // Of those that come at the same time, one wins.
        if now >= next && self.next.compare_exchange(next, now.saturating_add(quiet), Relaxed, Relaxed).is_ok() {
            return Some(self.suppressed.swap(0, Relaxed));
        }
        self.suppressed.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_says_how_many_there_were() {
        let limit = LogLimit::new();
        let at = |ms: u64| limit.pass(Duration::from_millis(ms));
        assert_eq!(at(0), Some(0));
        for ms in 1..100 {
            assert_eq!(at(ms * 100), None);
        }
        assert_eq!(at(10_000), Some(99));
        assert_eq!(at(10_001), None);
        assert_eq!(at(60_000), Some(1));
        assert_eq!(at(80_000), Some(0));
    }

    #[test]
    fn of_many_threads_one_logs() {
        let limit = LogLimit::new();
        let lines: usize = std::thread::scope(|s| {
            let all: Vec<_> =
                (0..8).map(|_| s.spawn(|| (0..1000).filter(|_| limit.pass(Duration::from_secs(1)).is_some()).count())).collect();
            all.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(lines, 1);
        assert_eq!(limit.pass(Duration::from_secs(20)), Some(7999));
    }
}
