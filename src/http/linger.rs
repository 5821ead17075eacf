//! Reading on after an answer that was given before the whole body had come.
//!
//! Closing a socket with unread bytes resets the connection, and a reset may overtake the answer. A client that writes its whole body before
//! it reads would see a broken connection instead of the refusal, and would send the same again. So after such an answer the server closes
//! its own side, then reads and discards, for a bounded time and a bounded number of bytes.
//!
//! INVARIANT(lingering-gives-way): a lingering connection holds a buffer of [`BUFFER`] bytes and its slot, no part of `max_in_flight`. There
//! are at most [`MAX_LINGERING`] of them; beyond that, and whenever a new connection finds no slot, the oldest ends, those without a valid
//! token first. So nobody can hold `max_connections` by being refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::conn::Stream;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::wal::shared::lock;

/// Most connections that linger at a time.
const MAX_LINGERING: usize = 1024;
/// Bytes that are read in one go.
const BUFFER: usize = 16 << 10;
/// Longest time that a connection lingers once the shutdown has begun.
const AT_SHUTDOWN: Duration = Duration::from_secs(2);

/// How long and how much is read and discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LingerLimits {
    /// In all.
    pub time: Duration,
    /// Without a byte.
    pub pause: Duration,
    /// Bytes of a client whose token is valid, or of any client where there is no authentication.
    pub bytes: u64,
    /// Bytes of others.
    pub bytes_unknown: u64,
}

impl Default for LingerLimits {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), pause: Duration::from_secs(5), bytes: 256 << 20, bytes_unknown: 16 << 20 }
    }
}

/// Who left bytes unread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Sender {
    /// No token was checked, or none was valid.
    Unknown,
    Known,
}

/// The connections that linger.
#[derive(Debug)]
pub(super) struct Lingering {
    limits: LingerLimits,
    at_shutdown: Duration,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Oldest first, those of unknown senders before the others. Dropping the value ends the connection.
    open: BTreeMap<(Sender, u64), oneshot::Sender<()>>,
    /// A connection waits for a slot: who would linger now ends at once.
    short: bool,
}

impl Inner {
    fn end_oldest(&mut self) {
        self.open.pop_first();
    }
}

struct Entry<'a> {
    lingering: &'a Lingering,
    key: (Sender, u64),
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.lingering.inner).open.remove(&self.key);
        self.lingering.metrics.http_lingering_connections.decrement(1.0);
    }
}

impl Lingering {
    pub(super) fn new(limits: LingerLimits, shutdown_timeout: Duration, metrics: &Arc<Metrics>) -> Self {
        Self { limits, at_shutdown: AT_SHUTDOWN.min(shutdown_timeout / 2), metrics: Arc::clone(metrics), inner: Mutex::default() }
    }

    /// While `short`, connections wait for a slot: one lingering connection ends now, and no other begins.
    pub(super) fn give_way(&self, short: bool) {
        let mut inner = lock(&self.inner);
        inner.short = short;
        if short {
            inner.end_oldest();
        }
    }

    fn enter(&self, sender: Sender) -> Option<(Entry<'_>, oneshot::Receiver<()>)> {
        let mut inner = lock(&self.inner);
        if inner.short {
            return None;
        }
        while inner.open.len() >= MAX_LINGERING {
            inner.end_oldest();
        }
        let key = (sender, inner.next);
        inner.next += 1;
        let (end, ended) = oneshot::channel();
        inner.open.insert(key, end);
        self.metrics.http_lingering_connections.increment(1.0);
        Some((Entry { lingering: self, key }, ended))
    }

    /// Closes the sending side, then reads until the client has closed too, a limit is reached, or another connection needs the slot.
    pub(super) async fn linger(&self, mut socket: impl Stream, sender: Sender, drain: &mut watch::Receiver<bool>) {
        let Some((_entry, ended)) = self.enter(sender) else { return };
        let until = Instant::now() + self.limits.time;
        let draining = async {
            if drain.wait_for(|drain| *drain).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(self.at_shutdown).await;
        };
        tokio::select! {
            biased;
            _ = ended => {}
            () = draining => {}
            () = self.discard(&mut socket, sender, until) => {}
        }
    }

    async fn discard(&self, socket: &mut impl Stream, sender: Sender, until: Instant) {
        let pause = || until.min(Instant::now() + self.limits.pause);
        // An error means that the client is gone, or that this side is closed already; reading tells which.
        let _ = timeout_at(pause(), socket.shutdown()).await;
        let mut left = match sender {
            Sender::Known => self.limits.bytes,
            Sender::Unknown => self.limits.bytes_unknown,
        };
        let mut buffer = vec![0; BUFFER];
        while left > 0 {
            match timeout_at(pause(), socket.read(&mut buffer)).await {
                Ok(Ok(n)) if n > 0 => left = left.saturating_sub(n as u64),
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, duplex};

    fn lingering(change: impl FnOnce(&mut LingerLimits)) -> Arc<Lingering> {
        let mut limits = LingerLimits::default();
        change(&mut limits);
        Arc::new(Lingering::new(limits, Duration::from_secs(30), &Metrics::new()))
    }

    /// A client that sends for ever, a piece whenever it is asked.
    #[derive(Default)]
    struct Endless(Arc<AtomicU64>);

    impl AsyncRead for Endless {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let n = buf.remaining();
            buf.put_slice(&vec![0; n]);
            self.0.fetch_add(n as u64, Relaxed);
            std::task::Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>, b: &[u8]) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Ok(b.len()))
        }

        fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bytes_have_a_limit_that_is_lower_for_unknown_senders() {
        let lingering = lingering(|_| {});
        for (sender, want) in [(Sender::Known, 256 << 20), (Sender::Unknown, 16 << 20)] {
            let client = Endless::default();
            let read = Arc::clone(&client.0);
            lingering.linger(client, sender, &mut watch::channel(false).1).await;
            assert_eq!(read.load(Relaxed), want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_and_pauses_have_limits() {
        let lingering = lingering(|_| {});
        // Silent: 5 s. A byte each second: 30 s. Gone: at once.
        for (every, want) in [(None, 5), (Some(1), 30)] {
            let (mut client, socket) = duplex(64);
            let begun = Instant::now();
            let writing = tokio::spawn(async move {
                while let Some(secs) = every {
                    tokio::time::sleep(Duration::from_secs(secs)).await;
                    if client.write_all(b"x").await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            });
            lingering.linger(socket, Sender::Known, &mut watch::channel(false).1).await;
            assert_eq!(begun.elapsed().as_secs(), want);
            writing.abort();
        }
        let (client, socket) = duplex(64);
        drop(client);
        let begun = Instant::now();
        lingering.linger(socket, Sender::Known, &mut watch::channel(false).1).await;
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn those_without_a_token_go_first_then_the_oldest() {
        let lingering = lingering(|l| (l.time, l.pause) = (Duration::from_secs(3000), Duration::from_secs(3000)));
        let mut clients = Vec::new();
        let mut tasks = Vec::new();
        for sender in [Sender::Known, Sender::Unknown, Sender::Known, Sender::Unknown] {
            let (client, socket) = duplex(64);
            clients.push(client);
            let lingering = Arc::clone(&lingering);
            tasks.push(tokio::spawn(async move { lingering.linger(socket, sender, &mut watch::channel(false).1).await }));
            tokio::task::yield_now().await;
        }
        for first in [1, 3, 0] {
            lingering.give_way(true);
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(tasks[first].is_finished(), "{first}");
            let (_client, socket) = duplex(64);
            let begun = Instant::now();
            lingering.linger(socket, Sender::Known, &mut watch::channel(false).1).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "while connections are short nobody lingers");
            lingering.give_way(false);
        }
        assert!(!tasks[2].is_finished());
        tasks[2].abort();
        let _ = (&mut tasks[2]).await;
        assert!(lock(&lingering.inner).open.is_empty());
        assert!(lingering.metrics.render().contains("arc_http_lingering_connections 0"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_bound_and_not_beyond_a_shutdown() {
        let lingering = lingering(|_| {});
        let (drain, drained) = watch::channel(false);
        let mut clients = Vec::new();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..MAX_LINGERING + 10 {
            let (client, socket) = duplex(64);
            clients.push(client);
            let (lingering, mut drained) = (Arc::clone(&lingering), drained.clone());
            tasks.spawn(async move { lingering.linger(socket, Sender::Known, &mut drained).await });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(lock(&lingering.inner).open.len(), MAX_LINGERING);
        let begun = Instant::now();
        drain.send(true).unwrap();
        tasks.join_all().await;
        assert!(begun.elapsed() <= Duration::from_millis(2100), "{:?}", begun.elapsed());
    }
}
