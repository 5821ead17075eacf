//! The watch over one connection: which part of a request it is in, and until when that part may last.
//!
//! hyper has one timeout, for heads, and it also runs while a kept-alive connection waits for its next request. Heads,
//! bodies and idle connections need limits of their own, so the connection's task keeps them here: the socket reports
//! bytes, the service reports the parts of a request, and [`drive`] closes the connection when the part's time is up.
//! A client that closes its connection and one that only says that it will send no more look alike: both send a FIN, and what tells them
//! apart is the answer to our own bytes. Clients of the second kind get their answer, so one that leaves while its request is worked on is
//! noticed when the answer is written, also when it resets the connection. Nothing depends on noticing it sooner: what it sent is
//! stored or refused like any other request, its body keeps its share of `max_in_flight`, and every wait of a write before its append has a
//! limit (admission, the turn of a large body, `wal.queue_timeout` for the queue, for columns on their way and for the first request with its
//! key), so it cannot hold either for longer than a client that stays.
//!
//! One timer serves all of it; it is moved only when a limit comes closer, so a busy connection hardly touches it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Settings;
use super::linger::{Lingering, Sender};

/// The timer looks at least this often, and no sleep is longer.
const LOOK: Duration = Duration::from_secs(60);

/// Where a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Part {
    /// Accepted, no byte yet.
    Fresh,
    /// Within a head.
    Head,
    /// Within a body that is being read.
    Body,
    /// A handler works; no limit.
    Work,
    /// An answer is under way or has gone; no byte of a next request yet.
    Idle,
}

impl Part {
    fn from_u8(v: u8) -> Self {
        [Self::Fresh, Self::Head, Self::Body, Self::Work, Self::Idle].into_iter().find(|p| *p as u8 == v).unwrap_or(Self::Work)
    }
}

/// Shared by a connection's socket, its service and its task. All three run in that one task, one after the other, so
/// relaxed atomics are enough.
#[derive(Debug)]
pub(super) struct ConnState {
    epoch: Instant,
    /// For log lines; a pipe has none.
    peer: Option<SocketAddr>,
    header_ms: u64,
    read_ms: u64,
    stall_ms: u64,
    idle_ms: u64,
    part: AtomicU8,
    /// Milliseconds since `epoch`.
    deadline: AtomicU64,
    last_byte: AtomicU64,
    cut: AtomicBool,
    /// Bit 0: bytes were left unread; bit 1: their sender is known.
    unread: AtomicU8,
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl ConnState {
    pub(super) fn new(settings: &Settings, peer: Option<SocketAddr>) -> Arc<Self> {
        let header_ms = ms(settings.header_timeout);
        Arc::new(Self {
            epoch: Instant::now(),
            peer,
            header_ms,
            read_ms: ms(settings.read_timeout),
            stall_ms: ms(settings.stall_timeout),
            idle_ms: ms(settings.idle_timeout),
            part: AtomicU8::new(Part::Fresh as u8),
            deadline: AtomicU64::new(header_ms),
            last_byte: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            unread: AtomicU8::new(0),
        })
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn part(&self) -> Part {
        Part::from_u8(self.part.load(Relaxed))
    }

    fn enter(&self, part: Part, limit: u64) {
        self.deadline.store(if limit == u64::MAX { u64::MAX } else { self.now().saturating_add(limit) }, Relaxed);
        self.part.store(part as u8, Relaxed);
    }

    fn bytes_came(&self) {
        match self.part() {
            // A connection's first head counts from the accept: its deadline stays.
            Part::Fresh => self.part.store(Part::Head as u8, Relaxed),
            Part::Idle => self.enter(Part::Head, self.header_ms),
            Part::Body => self.last_byte.store(self.now(), Relaxed),
            Part::Head | Part::Work => {}
        }
    }

    /// When the time of the first head is up.
    pub(super) fn head_due(&self) -> Instant {
        self.epoch + Duration::from_millis(self.header_ms)
    }

    /// A head is complete.
    pub(super) fn request_started(&self) {
        self.enter(Part::Work, u64::MAX);
    }

    /// The handler reads the body.
    pub(super) fn body_started(&self) {
        self.last_byte.store(self.now(), Relaxed);
        self.enter(Part::Body, self.read_ms);
    }

    /// The handler has the body, or gave up on it.
    pub(super) fn body_ended(&self) {
        self.enter(Part::Work, u64::MAX);
    }

    /// The handler has returned its answer.
    pub(super) fn response_ready(&self) {
        self.enter(Part::Idle, self.idle_ms);
    }

    /// The answer goes out before the body has been read: linger after it.
    pub(super) fn leave_unread(&self, sender: Sender) {
        self.unread.store(if sender == Sender::Known { 3 } else { 1 }, Relaxed);
    }

    fn unread(&self) -> Option<Sender> {
        match self.unread.load(Relaxed) {
            0 => None,
            1 => Some(Sender::Unknown),
            _ => Some(Sender::Known),
        }
    }

    /// Ends the connection without an answer. Never returns: the connection's task drops the caller.
    pub(super) async fn close_without_answer(&self) -> std::convert::Infallible {
        self.cut.store(true, Relaxed);
        std::future::pending().await
    }

    /// When the present part's time is up, in milliseconds since `epoch`.
    fn due(&self) -> u64 {
        let deadline = self.deadline.load(Relaxed);
        match self.part() {
            Part::Body => deadline.min(self.last_byte.load(Relaxed).saturating_add(self.stall_ms)),
            _ => deadline,
        }
    }

    fn instant(&self, due: u64) -> Instant {
        let look = Instant::now() + LOOK;
        self.epoch.checked_add(Duration::from_millis(due)).map_or(look, |at| at.min(look))
    }
}

/// The two ways of a connection's bytes: a socket, or in tests a pipe in memory.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A socket that reports its bytes.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) socket: S,
    pub(super) state: Arc<ConnState>,
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.state.bytes_came();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// By the rules of HTTP, or because the socket broke.
    Done,
    /// A handler wants no answer to be sent.
    Cut,
    /// The time for this part was up.
    TooSlow(Part),
}

/// A hyper connection, as much of it as [`drive`] needs.
pub(super) trait Http: Unpin {
    type Socket: Stream;
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>>;
    /// Finish the request under way, then close.
    fn finish(&mut self);
    fn into_io(self) -> Watched<Self::Socket>;
}

/// Runs a connection to its end. It is asked to finish when `drain` turns true.
pub(super) async fn drive(mut http: impl Http, state: &ConnState, lingering: &Lingering, mut drain: watch::Receiver<bool>) -> Ended {
    let mut armed = state.due();
    let mut timer = std::pin::pin!(sleep_until(state.instant(armed)));
    let mut asked = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                if let Poll::Ready(end) = http.poll(cx) {
                    if let Err(error) = end {
                        tracing::debug!(%error, "connection ended");
                        if error.is_parse() {
                            // hyper has answered a broken head, and a body may follow it.
                            state.leave_unread(Sender::Unknown);
                        }
                    }
                    return Poll::Ready(Ended::Done);
                }
                if state.cut.load(Relaxed) {
                    return Poll::Ready(Ended::Cut);
                }
                poll_due(state, timer.as_mut(), &mut armed, cx)
            }) => break ended,
            changed = drain.changed(), if !asked => {
                if changed.is_err() || *drain.borrow() {
                    asked = true;
                    http.finish();
                }
            }
        }
    };
    if ended == Ended::Done
        && let Some(sender) = state.unread()
    {
        lingering.linger(http.into_io().socket, sender, &mut drain).await;
    }
    ended
}

fn poll_due(state: &ConnState, mut timer: Pin<&mut Sleep>, armed: &mut u64, cx: &mut Context<'_>) -> Poll<Ended> {
    let mut due = state.due();
    if due < *armed {
        *armed = due;
        timer.as_mut().reset(state.instant(due));
    }
    while timer.as_mut().poll(cx).is_ready() {
        due = state.due();
        if due <= state.now() {
            return Poll::Ready(Ended::TooSlow(state.part()));
        }
        *armed = due;
        timer.as_mut().reset(state.instant(due));
    }
    Poll::Pending
}
