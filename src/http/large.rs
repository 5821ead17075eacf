//! Turns of large bodies: how many at a time, and how many bytes all of them may become.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::admit::granules;
use crate::error::{Reason, RequestError};

/// Bodies above this are decoded where they do not hold up other requests.
pub(super) const LARGE_BODY: usize = 256 << 10;
/// How long a large body waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// INVARIANT(large-bodies-bounded): the inflated bytes of all large bodies that are being worked on, and the text that is made of their values,
/// are together at most `ingest.max_in_flight`, or those of one. What else they take in memory is a small multiple of that, whatever they
/// hold.
#[derive(Debug)]
pub(super) struct LargeBodies {
    /// In granules.
    room: Semaphore,
    total: u32,
    /// No more at a time than there are cores.
    cores: Semaphore,
    pub(super) wait: Duration,
}

/// The turn of one body; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// Bytes of text that it may make.
    pub(super) text: usize,
    _room: SemaphorePermit<'a>,
    _core: SemaphorePermit<'a>,
}

impl LargeBodies {
    pub(super) fn new(bytes: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let total = granules(bytes).max(1);
        Self { room: Semaphore::new(total as usize), total, cores: Semaphore::new(cores), wait: WAIT }
    }

    /// Waits for the turn of a body of `inflated` bytes that makes `text` bytes of text. A body over all there is goes alone.
    ///
    /// # Errors
    /// 503 when other large bodies take too long.
    pub(super) async fn turn(&self, inflated: usize, text: usize) -> Result<Turn<'_>, RequestError> {
        let want = granules(inflated.saturating_add(text)).min(self.total);
        let both = async {
            let room = self.room.acquire_many(want).await.ok()?;
            Some((room, self.cores.acquire().await.ok()?))
        };
        match tokio::time::timeout(self.wait, both).await {
            Ok(Some((room, core))) => Ok(Turn { text, _room: room, _core: core }),
            _ => Err(RequestError::unavailable(
                Reason::NotStored,
                "too many large requests at a time (ingest.max_in_flight counts them inflated); send it again",
            )),
        }
    }

    /// Turns and bytes that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> (usize, usize) {
        (self.cores.available_permits(), self.room.available_permits() * super::admit::GRANULE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_share_their_room_and_one_over_it_goes_alone() {
        let mut large = LargeBodies::new(10 << 20);
        large.cores = Semaphore::new(100);
        large.wait = Duration::from_millis(20);
        let three =
            [large.turn(2 << 20, 1 << 20).await.unwrap(), large.turn(3 << 20, 0).await.unwrap(), large.turn(1, 3 << 20).await.unwrap()];
        assert!(matches!(large.turn(2 << 20, 0).await, Err(RequestError::Unavailable { reason: Reason::NotStored, .. })));
        assert!(large.turn(100 << 20, 0).await.is_err());
        assert!(large.turn(512 << 10, 0).await.is_ok());
        drop(three);
        let alone = large.turn(100 << 20, 1 << 30).await.unwrap();
        assert_eq!((alone.text, large.free().1), (1 << 30, 0));
        assert!(large.turn(1, 0).await.is_err());
        drop(alone);
        assert_eq!(large.free(), (100, 10 << 20));
    }
}
