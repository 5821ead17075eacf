//! How long to wait before trying again.

use std::time::Duration;

/// Waits that double up to a cap, each cut by up to half at random, so that many who failed together do not return
/// together. Pure: the same seed gives the same waits.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
    state: u64,
}

impl Backoff {
    /// `first` and `cap` bound the uncut wait.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { first, cap, attempt: 0, state: seed }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        let full = self.first.saturating_mul(factor).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        let half = u64::try_from(full.as_nanos() / 2).unwrap_or(u64::MAX);
        full - Duration::from_nanos(if half == 0 { 0 } else { self.random() % half })
    }

    /// Failures since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_within_their_jitter() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut b = Backoff::new(first, cap, 7);
        let mut c = Backoff::new(first, cap, 7);
        let mut other = Backoff::new(first, cap, 8);
        let mut differs = false;
        for i in 0..100u32 {
            let full = first.saturating_mul(2u32.saturating_pow(i)).min(cap);
            let wait = b.next_wait();
            assert!(wait <= full && wait * 2 >= full, "attempt {i}: {wait:?} of {full:?}");
            assert_eq!(wait, c.next_wait());
            differs |= wait != other.next_wait();
        }
        assert!(differs);
        assert_eq!(b.attempts(), 100);
        b.reset();
        assert!(b.next_wait() <= first);
        assert_eq!(Backoff::new(Duration::ZERO, cap, 1).next_wait(), Duration::ZERO);
    }
}
