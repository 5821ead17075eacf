//! Letting bodies in: how large one may be, how many bytes all of them may be, and reading one with few copies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Method;
use axum::http::header::EXPECT;
use axum::http::request::Parts;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::conn::ConnState;
use super::encoding::BodyHead;
use super::errors::Failure;
use super::linger::Sender;
use super::{App, Backend, Settings};
use crate::decode::compression::{MAGIC_BYTES, is_compressed};
use crate::error::RequestError;
use crate::metrics::{Metrics, Rejected};

/// Bytes to one permit of the semaphores, whose permits are counted in 32 bits.
pub(super) const GRANULE: usize = 1024;
/// A part of the room that large bodies leave alone: one in so many bytes.
const RESERVED_PART: u32 = 8;
/// Largest body that may use it.
const SMALL: usize = 1 << 20;
/// Most of the reserved part that a body may take which does not say how long it is.
const UNDECLARED: usize = 64 << 10;
/// A body gets room for all that was declared once this part of it has come.
const PROOF_PART: usize = 16;
/// Rest of a body that is read before the answer goes out, so that the connection can go on.
const SMALL_REST: u64 = 1 << 20;
/// How long that may take.
const SMALL_REST_TIME: Duration = Duration::from_secs(2);
/// Least room for a body that comes in more than one piece.
const FIRST: usize = 4 << 10;

/// Permits for `bytes`.
pub(super) fn granules(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(GRANULE).min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX)
}

/// Room for the bytes of all bodies, in granules.
///
/// INVARIANT(small-bodies-pass): neither large bodies nor what they wait for can take the reserved part, and what a client has announced
/// takes no room before it has sent a part of it (`PROOF_PART`).
#[derive(Debug)]
pub(super) struct Room {
    common: Arc<Semaphore>,
    common_total: u32,
    reserved: Arc<Semaphore>,
    /// Largest shares that may stand in `reserved`: of bodies that say how long they are, and of others.
    small: u32,
    undeclared: u32,
}

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        let total = granules(bytes).max(1);
        let reserved = total / RESERVED_PART;
        let common_total = total - reserved;
        Self {
            common: Arc::new(Semaphore::new(common_total as usize)),
            common_total,
            reserved: Arc::new(Semaphore::new(reserved as usize)),
            small: granules(SMALL).min(reserved),
            undeclared: granules(UNDECLARED).min(reserved),
        }
    }
}

/// A request's share of the room; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    common: Option<OwnedSemaphorePermit>,
    reserved: Option<OwnedSemaphorePermit>,
    /// What was declared decides whether a body may stand in the reserved part: the beginnings of large ones would fill it.
    declared: Option<u32>,
    granules: u32,
    metrics: Arc<Metrics>,
}

fn held(permit: Option<&OwnedSemaphorePermit>) -> u32 {
    permit.map_or(0, |p| u32::try_from(p.num_permits()).unwrap_or(u32::MAX))
}

fn join(to: &mut Option<OwnedSemaphorePermit>, permit: OwnedSemaphorePermit) {
    match to {
        Some(held) => held.merge(permit),
        None => *to = Some(permit),
    }
}

impl Share {
    fn none(declared: Option<usize>, metrics: &Arc<Metrics>) -> Self {
        Self { common: None, reserved: None, declared: declared.map(granules), granules: 0, metrics: Arc::clone(metrics) }
    }

    /// Makes the share at least `bytes` large, or as large as all there is in common: a body over it is alone there.
    async fn grow<B: Backend>(&mut self, app: &App<B>, bytes: usize) -> Result<(), Failure> {
        let room = &app.room;
        let want = granules(bytes).min(room.common_total);
        let more = want.saturating_sub(self.granules);
        if more == 0 {
            return Ok(());
        }
        if let Ok(permit) = Arc::clone(&room.common).try_acquire_many_owned(more) {
            join(&mut self.common, permit);
        } else if self.declared.map_or(want <= room.undeclared, |d| want.max(d) <= room.small) {
            // The common part has a queue, with large bodies in it.
            join(&mut self.reserved, acquire(app, &room.reserved, more).await?);
        } else {
            let more = want.saturating_sub(held(self.common.as_ref()));
            join(&mut self.common, acquire(app, &room.common, more).await?);
            self.reserved = None;
        }
        self.metrics.http_in_flight_bytes.increment(f64::from(want - self.granules) * GRANULE as f64);
        self.granules = want;
        Ok(())
    }
}

async fn acquire<B: Backend>(app: &App<B>, from: &Arc<Semaphore>, granules: u32) -> Result<OwnedSemaphorePermit, Failure> {
    match timeout(app.settings.admit_wait, Arc::clone(from).acquire_many_owned(granules)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Failure::InFlight),
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.metrics.http_in_flight_bytes.decrement(f64::from(self.granules) * GRANULE as f64);
    }
}

/// Whether the client has shown that it sends what it has declared.
fn proved(total: usize, declared: usize) -> bool {
    total >= declared / PROOF_PART
}

/// The size of a body's buffer when `total` bytes of it have come: twice that, and all of it once the client has shown that it sends.
fn capacity(total: usize, declared: Option<usize>, max: usize) -> usize {
    let twice = total.saturating_mul(2).max(FIRST);
    match declared {
        Some(all) if proved(total, all) => all,
        Some(all) => twice.min(all),
        None => twice.min(max),
    }
    .max(total)
}

/// The body of a request on its way in.
#[derive(Debug)]
pub(super) struct Inbound {
    body: Body,
    conn: Arc<ConnState>,
    head: BodyHead,
    waits_for_continue: bool,
    ended: bool,
    /// A body may follow and nothing says where it ends: after a refusal, what follows the head is not taken for a request.
    unbounded: bool,
}

impl Inbound {
    pub(super) fn new(head: &Parts, body: Body, conn: Arc<ConnState>) -> Self {
        let ended = body.is_end_stream();
        let waits_for_continue = head.headers.contains_key(EXPECT);
        let about_body = BodyHead::of(&head.headers);
        let unbounded = !about_body.has_length() && matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        Self { body, conn, head: about_body, waits_for_continue, ended, unbounded }
    }

    /// How often the body may be compressed.
    pub(super) fn layers(&self) -> usize {
        self.head.layers()
    }

    /// Who sends it.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.conn.peer()
    }

    /// The bytes that are still to come, if the client said so.
    fn declared(&self) -> Option<u64> {
        if self.ended { Some(0) } else { self.body.size_hint().exact() }
    }

    /// Reads the whole body, within the limits. It may be compressed; an encoding that is not known is refused, unless the first bytes are
    /// those of gzip or zstd.
    pub(super) async fn read<B: Backend>(&mut self, app: &App<B>) -> Result<(Bytes, Share), Failure> {
        let refusal = self.head.refusal();
        self.read_whole(app, app.settings.max_payload_size, refusal).await
    }

    /// The same with a limit of its own, for bodies that are never large and never compressed.
    pub(super) async fn read_up_to<B: Backend>(&mut self, app: &App<B>, limit: usize) -> Result<(Bytes, Share), Failure> {
        if let Some(failure) = self.head.refusal_if_encoded() {
            return Err(failure);
        }
        self.read_whole(app, limit, None).await
    }

    async fn read_whole<B: Backend>(
        &mut self,
        app: &App<B>,
        limit: usize,
        unless_compressed: Option<Failure>,
    ) -> Result<(Bytes, Share), Failure> {
        if self.unbounded {
            return Err(Failure::LengthRequired);
        }
        let max = limit.min(app.settings.max_payload_size);
        let declared = self.declared().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if declared.is_some_and(|n| n > max) {
            return Err(too_large(max, &app.settings));
        }
        let mut share = Share::none(declared, &app.metrics);
        if declared == Some(0) {
            return unless_compressed.map_or_else(|| Ok((Bytes::new(), share)), Err);
        }
        self.conn.body_started();
        let bytes = self.gather(app, &mut share, (declared, max), unless_compressed).await;
        self.conn.body_ended();
        Ok((bytes?, share))
    }

    /// A body that comes in one piece is handed on as it is; only a second piece makes a buffer. Room is taken for bytes that are there: until
    /// then they stand in the connection's read buffer, which is bounded by itself.
    async fn gather<B: Backend>(
        &mut self,
        app: &App<B>,
        share: &mut Share,
        (declared, max): (Option<usize>, usize),
        mut unless_compressed: Option<Failure>,
    ) -> Result<Bytes, Failure> {
        let mut first = Bytes::new();
        let mut rest: Vec<u8> = Vec::new();
        while let Some(piece) = self.piece(&app.metrics).await? {
            let total = first.len().max(rest.len()).saturating_add(piece.len());
            if total > max {
                return Err(too_large(max, &app.settings));
            }
            if first.is_empty() && rest.is_empty() {
                // All that it will need in one go, as soon as it may have that: bodies that hold a part of the room and wait for the rest
                // wait for each other.
                share.grow(app, declared.filter(|all| proved(total, *all)).unwrap_or(total)).await?;
                first = piece;
            } else {
                if total > rest.capacity() {
                    let capacity = capacity(total, declared, max);
                    share.grow(app, capacity).await?;
                    rest.reserve_exact(capacity - rest.len());
                }
                if rest.is_empty() {
                    rest.extend_from_slice(&first);
                    first = Bytes::new();
                }
                rest.extend_from_slice(&piece);
            }
            if total >= MAGIC_BYTES
                && let Some(failure) = unless_compressed.take()
                && !is_compressed(if rest.is_empty() { &first } else { &rest })
            {
                return Err(failure);
            }
            if declared == Some(total) {
                self.ended = true;
                break;
            }
        }
        if let Some(failure) = unless_compressed {
            return Err(failure);
        }
        Ok(if rest.is_empty() { first } else { Bytes::from(rest) })
    }

    async fn piece(&mut self, metrics: &Metrics) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => {
                    self.ended = true;
                    return Ok(None);
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
                Some(Err(error)) => {
                    self.ended = true;
                    if malformed(&error) {
                        return Err(RequestError::Invalid("the chunked encoding of the body is malformed".to_owned()).into());
                    }
                    metrics.reject(Rejected::CutBody);
                    tracing::debug!(%error, "the client went away within a body");
                    match self.conn.close_without_answer().await {}
                }
            }
        }
    }

    /// Called when the answer stands: what is left of the body is read and discarded if it is little, so that the connection can go on;
    /// otherwise the connection lingers and ends after the answer, which `true` says.
    pub(super) async fn settle(&mut self, failed: bool, sender: Sender) -> bool {
        if failed && self.unbounded {
            self.conn.leave_unread(sender);
            return true;
        }
        if self.ended || self.body.is_end_stream() {
            return false;
        }
        let little = self.declared().is_some_and(|n| n <= SMALL_REST);
        // Reading would tell a client that waits for "100 Continue" to send what nobody wants.
        if little && !self.waits_for_continue {
            let rest = async {
                while let Some(frame) = self.body.frame().await {
                    if frame.is_err() {
                        return false;
                    }
                }
                true
            };
            if timeout(SMALL_REST_TIME, rest).await == Ok(true) {
                return false;
            }
        }
        self.conn.leave_unread(sender);
        true
    }
}

fn too_large(max: usize, settings: &Settings) -> Failure {
    let over = if max == settings.max_payload_size { format!("server.max_payload_size ({max} bytes)") } else { format!("{max} bytes") };
    RequestError::TooLarge(format!("the body is over {over}; send less in one request")).into()
}

/// Tells a body that breaks the rules of chunked encoding from a connection that broke.
fn malformed(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData);
        }
        source = e.source();
    }
    false
}
