//! The HTTP side: connections, admission of bodies, routes, answers.
//!
//! What a request means is behind [`Backend`], which [`engine`] implements; no other file here knows the WAL. Three promises:
//!
//! * **Every status is made in one place** (`errors`): one shape of error body, `Retry-After` on every 503, and a
//!   panicking handler is a 500, not the end of the server.
//! * **Every resource is bounded** (`admit`, `server`): connections, the time a head, a body or an idle connection may
//!   take, the size of a body, and the bytes of all bodies together.
//! * **A client sees its answer.** After an answer given before the whole body has come, the connection lingers (`linger`). The exception is
//!   a body that comes too slowly: the connection closes without an answer, because agents drop data on a 408.
//!
//! The way of a request: `server` accepts and drives the connection under the watch of `conn`, `routes` picks the row
//! of the table, `auth` lets it pass or not, the row's handler runs (`write`, `lines`, `ops`, `tokens`), `errors` shapes what went wrong.

mod admit;
mod auth;
mod conn;
mod cors;
mod encoding;
pub mod engine;
mod errors;
mod large;
mod linger;
pub mod lines;
mod oddities;
mod ops;
mod refusals;
mod routes;
mod server;
mod tls;
mod tokens;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;
use tokio::time::Instant;

use crate::auth::Tokens;
use crate::error::RequestError;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::types::{Sequence, TimeUnit};

pub use cors::Origins;
pub use lines::{Dialect, LineOutcome, LineRequest};
pub use linger::LingerLimits;
pub use routes::{ROUTES, RouteRow, Tier};
pub use server::{Served, listen, serve, serve_stream, serve_tls};
pub use tls::{Tls, TlsError};

/// Limits of the server; the configuration's `server.*` and `ingest.max_in_flight`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest body as received, still compressed (`server.max_payload_size`).
    pub max_payload_size: usize,
    /// Bytes of all bodies being read or worked on (`ingest.max_in_flight`).
    pub max_in_flight: usize,
    /// How long a request waits for room under `max_in_flight` before its 503.
    pub admit_wait: Duration,
    /// From the first byte of a head, or from accepting the connection, to the end of the head.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub read_timeout: Duration,
    /// Longest pause within a body; in force when it is shorter than `read_timeout`.
    pub stall_timeout: Duration,
    /// How long a connection may wait for its next request, and a client may take to read an answer.
    pub idle_timeout: Duration,
    /// How long requests may go on after the shutdown has begun.
    pub shutdown_timeout: Duration,
    /// Connections at one time; more wait in the listener's backlog.
    pub max_connections: usize,
    /// What is read and discarded after an answer that was given before the whole body had come.
    pub linger: LingerLimits,
    /// Whose pages may write (`server.cors_origins`).
    pub origins: Origins,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_payload_size: 64 << 20,
            max_in_flight: 256 << 20,
            admit_wait: Duration::from_secs(1),
            header_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            shutdown_timeout: Duration::from_secs(30),
            max_connections: 4096,
            linger: LingerLimits::default(),
            origins: Origins::default(),
        }
    }
}

/// The id by which a request is found in the logs: the client's `X-Request-Id`, or one made here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// None unless the text is 1 to 128 printable ASCII bytes.
    pub fn new(text: &str) -> Option<Self> {
        printable(text.as_bytes(), 128).then(|| HeaderValue::from_str(text).ok().map(Self))?
    }

    /// The id as text: 1 to 128 printable ASCII bytes.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A MessagePack write whose headers have been checked and whose body has been read.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// A valid database name.
    pub database: String,
    /// `x-arc-time-unit`; `None` leaves the unit to detection by magnitude.
    pub time_unit: Option<TimeUnit>,
    /// 1 to 128 printable ASCII bytes.
    pub idempotency_key: Option<String>,
    /// The body as received, still compressed.
    pub body: Bytes,
    /// How often it may be compressed; each layer is recognised by its first bytes.
    pub layers: usize,
    /// For log lines.
    pub request_id: RequestId,
}

/// A write that succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteOutcome {
    /// The record that holds the rows; `None` when there was nothing to store.
    pub sequence: Option<Sequence>,
    /// The rows were stored by an earlier request with the same key.
    pub replayed: bool,
}

/// Which tables a status lists, sorted by database and name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablePage {
    pub offset: usize,
    pub limit: usize,
}

impl Default for TablePage {
    fn default() -> Self {
        Self { offset: 0, limit: 100 }
    }
}

impl TablePage {
    /// The most that one status lists.
    pub const MAX_LIMIT: usize = 1000;
}

/// How a flush ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FlushOutcome {
    /// Everything acknowledged before the call is in committed Parquet.
    Done { files: u64, rows: u64, through_seq: Sequence },
    /// Not yet; it goes on.
    TimedOut { through_seq: Sequence, target_seq: Sequence },
    /// It cannot be done now.
    Failed(RequestError),
}

/// Whether writes would be taken now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Readiness {
    pub ready: bool,
    pub reason: Option<String>,
    pub progress: Option<serde_json::Value>,
}

/// What the server serves.
///
/// Any of the futures may be dropped before it ends: the connection broke, or the shutdown ran out of time.
pub trait Backend: Send + Sync + 'static {
    /// A cheap look before the body is read: refuses while poisoned, recovering, full or stopping.
    ///
    /// # Errors
    /// [`RequestError::Unavailable`] with the reason.
    fn before_body(&self) -> Result<(), RequestError>;

    /// Decodes, validates, stores and syncs a MessagePack body. `Ok` is answered 204 and means durable.
    fn write_msgpack(&self, request: WriteRequest) -> impl Future<Output = Result<WriteOutcome, RequestError>> + Send;

    /// Decodes line protocol, stores and syncs the lines that fit. `Ok` means that what the outcome calls stored is durable.
    fn write_lines(&self, request: LineRequest) -> impl Future<Output = Result<LineOutcome, RequestError>> + Send;

    /// Ships what was acknowledged before the call.
    fn flush(&self, timeout: Duration) -> impl Future<Output = FlushOutcome> + Send;

    /// The names of the databases that exist, each once.
    fn databases(&self) -> Vec<String>;

    /// The body of `GET /api/v1/status`, with a page of the tables.
    fn status(&self, page: TablePage) -> serde_json::Value;

    /// The answer of `GET /ready`.
    fn readiness(&self) -> Readiness;

    /// The body of `GET /api/v1/write/msgpack/spec`.
    fn spec(&self) -> serde_json::Value;

    /// The body of `GET /api/v1/write/msgpack/stats`.
    fn stats(&self) -> serde_json::Value;
}

/// What all connections share.
#[derive(Debug)]
pub struct App<B> {
    backend: Arc<B>,
    metrics: Arc<Metrics>,
    settings: Settings,
    room: admit::Room,
    large_answers: ops::LargeAnswers,
    lingering: linger::Lingering,
    refusals: refusals::Refusals,
    ids: RequestIds,
    /// `None` without authentication.
    tokens: Option<Arc<Tokens>>,
    refused_tokens: LogLimit,
    failed_handshakes: LogLimit,
    accept_errors: LogLimit,
    started: Instant,
    draining: AtomicBool,
}

impl<B: Backend> App<B> {
    /// A server that is not serving yet, without authentication; see [`serve`].
    pub fn new(backend: Arc<B>, metrics: Arc<Metrics>, settings: Settings) -> Arc<Self> {
        Self::with_tokens(backend, metrics, settings, None)
    }

    /// A server that asks for the `tokens` on every route that is not open, if there are some.
    pub fn with_tokens(backend: Arc<B>, metrics: Arc<Metrics>, settings: Settings, tokens: Option<Arc<Tokens>>) -> Arc<Self> {
        Arc::new(Self {
            backend,
            lingering: linger::Lingering::new(settings.linger, settings.shutdown_timeout, &metrics),
            metrics,
            refusals: refusals::Refusals::default(),
            room: admit::Room::new(settings.max_in_flight),
            large_answers: ops::LargeAnswers::default(),
            ids: RequestIds::new(),
            tokens,
            refused_tokens: LogLimit::new(),
            failed_handshakes: LogLimit::new(),
            accept_errors: LogLimit::new(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            settings,
        })
    }

    /// True once the shutdown has begun.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Makes ids that look like random UUIDs without asking the system for randomness each time: a random start, a
/// counter, and a mixing function that maps distinct counters to distinct ids.
#[derive(Debug)]
struct RequestIds {
    high: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        let (high, next) = uuid::Uuid::new_v4().as_u64_pair();
        Self { high, next: AtomicU64::new(next) }
    }

    fn make(&self) -> RequestId {
        let mixed = mix(self.next.fetch_add(1, Ordering::Relaxed));
        let bits = (u128::from(self.high ^ mix(mixed)) << 64) | u128::from(mixed);
        let id = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
        let mut text = uuid::Uuid::encode_buffer();
        let text: &str = id.hyphenated().encode_lower(&mut text);
        RequestId(HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-")))
    }

    /// The client's id if it is fit for a log line, else a new one.
    fn of(&self, headers: &axum::http::HeaderMap) -> RequestId {
        match headers.get("x-request-id") {
            Some(v) if printable(v.as_bytes(), 128) => RequestId(v.clone()),
            _ => self.make(),
        }
    }
}

/// The finaliser of splitmix64, a bijection.
fn mix(v: u64) -> u64 {
    let v = (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let v = (v ^ (v >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    v ^ (v >> 31)
}

/// 1 to `longest` bytes of printable ASCII.
fn printable(text: &[u8], longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.iter().all(|b| (0x20..=0x7e).contains(b))
}
