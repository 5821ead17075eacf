//! The backend of the server: decodes, validates, appends, waits for the sync; and says how the log is doing.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::large::{LARGE_BODY, LargeBodies, Turn};
use super::oddities::{Found, Oddities};
use super::{Backend, FlushOutcome, LineOutcome, LineRequest, Readiness, TablePage, WriteOutcome, WriteRequest};
use crate::batch::TableBatch;
use crate::catalog::Catalog;
use crate::clock::SharedClock;
use crate::compact::control::{Control, Shipped};
use crate::decode::line_protocol::{self, InCatalog, LineOptions, Lines, Report};
use crate::decode::msgpack::{DecodeOptions, Decoded, decode_into};
use crate::decode::table::Bounds;
use crate::decode::validate::{Admitted, admit};
use crate::decode::{Nested, compression};
use crate::error::{Reason, RequestError};
use crate::idempotency::{Begin, InFlightKey, Keys, body_hash, key_id, own_key};
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::types::{ColumnType, LargeUnsigned, Sequence, TimeUnit};
use crate::wal::recover::Progress;
use crate::wal::shared::{Blocked, lock};
use crate::wal::{AppendError, Appender, Completion, Shared};

/// Limits and rules of writes.
#[derive(Clone, Copy, Debug)]
pub struct WriteSettings {
    pub max_payload_size: usize,
    pub max_inflated_size: usize,
    pub max_record_size: usize,
    pub bounds: Bounds,
    pub nested: Nested,
    pub hive_names: bool,
    pub large_unsigned: LargeUnsigned,
    /// Bytes of all requests being worked on. Large bodies share them as they are when inflated, with the text that is made of them.
    pub max_in_flight: usize,
}

/// What exists once the log is open.
#[derive(Debug)]
pub struct Running {
    pub shared: Arc<Shared>,
    pub appender: Appender,
    pub catalog: Arc<Catalog>,
    pub keys: Arc<Keys>,
    pub control: Arc<Control>,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    settings: WriteSettings,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    running: OnceLock<Running>,
    recovery: Mutex<Option<Progress>>,
    /// Bodies that are large, or become so when inflated. `http` counts bytes on the wire under `ingest.max_in_flight`; such a body takes
    /// many times as much while it is inflated, decoded and encoded.
    large: LargeBodies,
    oddities: Oddities,
    /// What the process is run with, for the status.
    process: Mutex<serde_json::Map<String, Value>>,
}

impl Engine {
    /// An engine that answers 503 `recovering` until [`Self::start`].
    pub fn new(settings: WriteSettings, clock: SharedClock, metrics: Arc<Metrics>) -> Arc<Self> {
        let large = LargeBodies::new(settings.max_in_flight);
        Arc::new(Self {
            settings,
            clock,
            metrics,
            running: OnceLock::new(),
            recovery: Mutex::default(),
            large,
            oddities: Oddities::default(),
            process: Mutex::default(),
        })
    }

    /// Adds a fact about the process to the status.
    pub fn note_process(&self, name: &str, value: impl Into<Value>) {
        lock(&self.process).insert(name.to_owned(), value.into());
    }

    fn process(&self) -> Value {
        let mut process = lock(&self.process).clone();
        process.insert("log_lines_dropped".into(), crate::log_writer::dropped().into());
        Value::Object(process)
    }

    /// How far recovery has come, for `/ready`.
    pub fn recovering(&self, p: Progress) {
        *lock(&self.recovery) = Some(p);
    }

    /// The log is open: requests are taken from here on.
    pub fn start(&self, running: Running) {
        let _ = self.running.set(running);
    }

    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }

    fn open(&self) -> Result<&Running, RequestError> {
        self.running
            .get()
            .ok_or_else(|| RequestError::unavailable(Reason::Recovering, "the log is being recovered; see /ready for progress"))
    }

    /// The body, inflated; a large one with the turn that it holds while it is worked on. `text`: values of it become text.
    async fn inflated(&self, body: Bytes, layers: usize, text: bool) -> Result<(Bytes, Option<Turn<'_>>), RequestError> {
        let s = &self.settings;
        let declared = usize::try_from(compression::declared(&body)).unwrap_or(usize::MAX);
        if body.len() <= LARGE_BODY && declared <= LARGE_BODY {
            match compression::inflate_layers(body.clone(), layers, s.max_payload_size, s.max_inflated_size.min(LARGE_BODY)) {
                // It is larger than it said: inflated again from its beginning, in its turn.
                Err(RequestError::TooLarge(_)) => {}
                inflated => return Ok((inflated?, None)),
            }
        }
        let mut most = compression::expected(&body).max(2 * LARGE_BODY).min(s.max_inflated_size);
        loop {
            // Few bodies are nested values throughout: room for the most that could become of them would make every body wait.
            let text = if text { most.min(s.max_record_size) / 2 } else { 0 };
            let turn = self.large.turn(most, text).await?;
            let inflated = aside(true, || compression::inflate_layers(body.clone(), layers, s.max_payload_size, most));
            match inflated {
                // Once more, with room for all that a body may be.
                Err(RequestError::TooLarge(_)) if most < s.max_inflated_size => most = s.max_inflated_size,
                inflated => return Ok((inflated?, Some(turn))),
            }
        }
    }

    /// Decodes a MessagePack body. One that makes more text than was expected of it is decoded again, with room for all that it may make.
    async fn decoded<'e>(
        &'e self,
        r: &Running,
        request: &WriteRequest,
        receive_time_us: i64,
        body: Bytes,
        turn: &mut Option<Turn<'e>>,
    ) -> Result<Decoded, RequestError> {
        let s = &self.settings;
        let known = |table: &str, column: &str| r.catalog.column_type(&request.database, table, column);
        let decode = |body: &Bytes, max_text: usize, large: bool| {
            let options = DecodeOptions {
                receive_time_us,
                time_unit: request.time_unit,
                nested: s.nested,
                hive_names: s.hive_names,
                large_unsigned: s.large_unsigned,
                bounds: s.bounds,
                max_text,
            };
            aside(large, || decode_into(body, &options, &known))
        };
        let max_text = turn.as_ref().map_or(s.max_record_size, |t| t.text);
        match decode(&body, max_text, turn.is_some()) {
            Err(RequestError::TooLarge(_)) if max_text < s.max_record_size => {
                // Nothing inflated is held while the turn is waited for.
                let inflated = body.len();
                drop(body);
                *turn = None;
                *turn = Some(self.large.turn(inflated, s.max_record_size).await?);
                let body = aside(true, || {
                    compression::inflate_layers(request.body.clone(), request.layers, s.max_payload_size, s.max_inflated_size)
                })?;
                decode(&body, s.max_record_size, true)
            }
            decoded => decoded,
        }
    }

    /// The claim of a request with a key, or the answer that it had.
    async fn claim(&self, r: &Running, database: &str, key: Option<&str>, hash: impl FnOnce() -> [u8; 32]) -> Result<Claim, RequestError> {
        let Some(key) = key else { return Ok(Claim::None) };
        let other_body = || {
            RequestError::KeyReused(format!(
                "the Idempotency-Key '{key}' was used with another body: expected the same bytes, route and time unit; use a new key for new rows"
            ))
        };
        self.claim_id(r, key_id(database, key), hash(), other_body).await
    }

    /// The claim of a partial write that has no key: sent again with the same bytes, it is stored once. None if a stored line has no time
    /// stamp of its own: such lines are new measurements each time.
    async fn claim_partial(
        &self,
        r: &Running,
        request: &LineRequest,
        body: &[u8],
        lines: &Lines,
        now_us: i64,
    ) -> Result<Claim, RequestError> {
        // A line without a time stamp has the time of receipt, which no other line has but by an accident that costs nothing but a copy.
        if lines.report.bad == 0 || lines.tables.iter().any(|t| t.time.contains(&now_us)) {
            return Ok(Claim::None);
        }
        let make = || own_key(request.dialect.route(), &request.unit(), &request.database, body);
        let (id, hash) = aside(body.len() > LARGE_BODY, make);
        self.claim_id(r, id, hash, || RequestError::Internal("two bodies have one SHA-256".to_owned())).await
    }

    async fn claim_id(
        &self,
        r: &Running,
        id: [u8; 16],
        hash: [u8; 32],
        other_body: impl FnOnce() -> RequestError,
    ) -> Result<Claim, RequestError> {
        // Retries must not gather behind a sync that hangs: each holds a connection and its body. The rows are those of the first request,
        // which may be stored yet: that they are not must not be said.
        let begin = tokio::time::timeout(r.shared.settings.queue_timeout, r.keys.begin(id, hash)).await;
        let Ok(begin) = begin else {
            return Err(RequestError::unavailable(
                Reason::UnknownOutcome,
                "the first request with this Idempotency-Key or body is still on its way, longer than wal.queue_timeout; send it again as it is",
            ));
        };
        match begin {
            Begin::First(claim) => Ok(Claim::First(claim)),
            Begin::Stored { sequence, status } => {
                self.metrics.ingest_replayed_keys_total.increment(1);
                Ok(Claim::Stored { sequence, status })
            }
            Begin::OtherBody => Err(other_body()),
            Begin::Unavailable(reason) => {
                Err(RequestError::unavailable(reason, "the first request with this Idempotency-Key or body was refused; send again later"))
            }
        }
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteOutcome, RequestError> {
        let r = self.open()?;
        let delay = r.shared.admit()?;
        let started = self.clock.monotonic();
        let s = &self.settings;
        let (body, mut turn) = self.inflated(request.body.clone(), request.layers, true).await?;
        let large = turn.is_some();
        let unit = request.time_unit.map_or("", unit_name);
        let hash = || aside(large, || body_hash("msgpack", unit, &body));
        let claim = match self.claim(r, &request.database, request.idempotency_key.as_deref(), hash).await? {
            Claim::None => None,
            Claim::First(claim) => Some(claim),
            Claim::Stored { sequence, .. } => return Ok(WriteOutcome { sequence: Some(sequence), replayed: true }),
        };
        let receive_time_us = self.clock.wall_us();
        let decoded = self.decoded(r, &request, receive_time_us, body, &mut turn).await?;
        self.metrics.ingest_invalid_utf8_total.increment(decoded.invalid_utf8);
        let saturated = decoded.saturated;
        if decoded.tables.is_empty() {
            return Ok(WriteOutcome { sequence: None, replayed: false });
        }
        refuse_full(r, &request.database, &decoded.tables)?;
        let odd = Found::of(&decoded.tables, receive_time_us);
        let entry = claim.as_ref().map(|c| c.entry);
        let admitted = admit(&r.catalog, &request.database, decoded.tables, entry, receive_time_us, s.max_record_size);
        let admitted = in_time(r, admitted).await?;
        // What waits for the log from here on is bounded by its queue.
        drop(turn);
        self.metrics.ingest_decode_seconds.record(self.clock.monotonic().saturating_sub(started).as_secs_f64());
        let sequence = self.append(r, admitted, claim, delay).await?;
        self.metrics.ingest_saturated_total.increment(saturated);
        self.note(&request.database, odd, receive_time_us);
        Ok(WriteOutcome { sequence: Some(sequence), replayed: false })
    }

    /// What of a body fits is stored in one record; the rest is reported.
    async fn write_line_protocol(&self, request: LineRequest) -> Result<LineOutcome, RequestError> {
        let r = self.open()?;
        let delay = r.shared.admit()?;
        let started = self.clock.monotonic();
        let s = &self.settings;
        let (database, dialect) = (request.database.as_str(), request.dialect);
        let (body, turn) = self.inflated(request.body.clone(), request.layers, false).await?;
        let large = turn.is_some();
        let unit = request.unit();
        let hash = || aside(large, || body_hash(dialect.route(), &unit, &body));
        let receive_time_us = self.clock.wall_us();
        let options = LineOptions {
            receive_time_us,
            precision: request.precision,
            hive_names: s.hive_names,
            large_unsigned: s.large_unsigned,
            bounds: s.bounds,
        };
        let known = InCatalog { catalog: &r.catalog, database };
        let read = || aside(large, || line_protocol::decode(&body, &options, &known));
        let mut claim = match self.claim(r, database, request.idempotency_key.as_deref(), hash).await? {
            Claim::None => None,
            Claim::First(claim) => Some(claim),
            Claim::Stored { sequence, status: 204 } => {
                return Ok(LineOutcome { sequence: Some(sequence), replayed: true, status: 204, report: Report::default() });
            }
            // Which lines were refused is not remembered, but they are refused again.
            Claim::Stored { sequence, status } => {
                let report = read().map(|lines| lines.report).unwrap_or_default();
                return Ok(LineOutcome { sequence: Some(sequence), replayed: true, status, report });
            }
        };
        let mut attempts = 0;
        let (admitted, status, report, odd) = loop {
            let lines = read()?;
            let status = dialect.status(&lines.report);
            if lines.tables.is_empty() || (lines.report.bad > 0 && !request.accept_partial) {
                let report = lines.report;
                self.metrics.ingest_refused_lines_total.increment(report.bad);
                self.metrics.ingest_comments_total.increment(report.comments);
                return Ok(LineOutcome { sequence: None, replayed: false, status, report });
            }
            refuse_full(r, database, &lines.tables)?;
            if claim.is_none() {
                match self.claim_partial(r, &request, &body, &lines, receive_time_us).await? {
                    Claim::None => {}
                    Claim::First(first) => claim = Some(first),
                    Claim::Stored { sequence, status } => {
                        return Ok(LineOutcome { sequence: Some(sequence), replayed: true, status, report: lines.report });
                    }
                }
            }
            let report = lines.report;
            if let Some(claim) = &mut claim {
                claim.entry.status = status;
            }
            let entry = claim.as_ref().map(|c| c.entry);
            attempts += 1;
            let odd = Found::of(&lines.tables, receive_time_us);
            let admitted = admit(&r.catalog, database, lines.tables, entry, receive_time_us, s.max_record_size);
            match in_time(r, admitted).await {
                Ok(admitted) => break (admitted, status, report, odd),
                // Other requests have made columns since the lines were read: read again, the lines that do not fit to them are left out.
                Err(RequestError::Invalid(_)) if attempts < ATTEMPTS => {}
                Err(e) => return Err(e),
            }
        };
        drop(body);
        drop(turn);
        self.metrics.ingest_decode_seconds.record(self.clock.monotonic().saturating_sub(started).as_secs_f64());
        let sequence = self.append(r, admitted, claim, delay).await?;
        self.metrics.ingest_refused_lines_total.increment(report.bad);
        self.metrics.ingest_saturated_total.increment(report.saturated);
        self.note(database, odd, receive_time_us);
        self.metrics.ingest_comments_total.increment(report.comments);
        Ok(LineOutcome { sequence: Some(sequence), replayed: false, status, report })
    }

    /// Notes stored rows whose time stamps can hardly be meant.
    fn note(&self, database: &str, odd: Found, now_us: i64) {
        if odd.rows() > 0 {
            self.metrics.ingest_odd_times_total.increment(odd.rows());
            self.oddities.note(database, odd, now_us, self.clock.monotonic());
        }
    }

    /// Appends a record and waits until it is durable.
    async fn append(&self, r: &Running, admitted: Admitted, claim: Option<InFlightKey>, delay: Duration) -> Result<Sequence, RequestError> {
        let (reservation, rows) = (admitted.reservation, admitted.rows);
        let completion: Option<Completion> = if reservation.is_empty() && claim.is_none() {
            None
        } else {
            Some(Box::new(move |outcome| match outcome {
                Ok(sequence) => {
                    reservation.settle(sequence);
                    if let Some(c) = claim {
                        c.stored(sequence);
                    }
                }
                Err(e) => {
                    drop(reservation);
                    if let Some(c) = claim {
                        c.unavailable(match e {
                            AppendError::NotStored(reason) => reason,
                            AppendError::UnknownOutcome => Reason::UnknownOutcome,
                        });
                    }
                }
            }))
        };
        let sequence = r.appender.append(admitted.record, completion).await.map_err(AppendError::to_request_error)?;
        self.metrics.ingest_rows_total.increment(rows);
        self.metrics.ingest_batches_total.increment(1);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(sequence)
    }
}

/// Columns that the tables of one status have together; a table with more is listed alone.
const STATUS_COLUMNS: usize = 10_000;

/// What an idempotency key comes to.
enum Claim {
    /// The request has none.
    None,
    First(InFlightKey),
    Stored {
        sequence: Sequence,
        status: u16,
    },
}

/// How often the lines of a body are read because the catalog changed while they were.
const ATTEMPTS: u32 = 16;

/// Bounds the wait for columns and tables that other requests define: they stay on their way while a sync hangs.
async fn in_time(r: &Running, admitted: impl Future<Output = Result<Admitted, RequestError>>) -> Result<Admitted, RequestError> {
    tokio::time::timeout(r.shared.settings.queue_timeout, admitted).await.unwrap_or_else(|_| {
        let why =
            "columns of the request are being defined by another that is still on its way, longer than wal.queue_timeout; send it again";
        Err(RequestError::unavailable(Reason::NotStored, why))
    })
}

/// Refuses what belongs to a table that cannot be shipped and has no more room to wait.
fn refuse_full(r: &Running, database: &str, tables: &[TableBatch]) -> Result<(), RequestError> {
    match r.control.refuses(database, tables.iter().map(|t| t.table.as_str())) {
        None => Ok(()),
        Some(table) => Err(RequestError::unavailable(
            Reason::Backlog,
            format!(
                "table '{table}': its files cannot be published and what may wait for that is full (see last_error of /api/v1/status); other tables are taken"
            ),
        )),
    }
}

/// Runs `f` here, or where it may take its time.
fn aside<T>(large: bool, f: impl FnOnce() -> T) -> T {
    let many = tokio::runtime::Handle::try_current().is_ok_and(|h| h.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    if large && many { tokio::task::block_in_place(f) } else { f() }
}

fn unit_name(u: TimeUnit) -> &'static str {
    match u {
        TimeUnit::Seconds => "s",
        TimeUnit::Millis => "ms",
        TimeUnit::Micros => "us",
        TimeUnit::Nanos => "ns",
    }
}

impl Backend for Engine {
    fn before_body(&self) -> Result<(), RequestError> {
        self.open()?.shared.admit().map(|_| ())
    }

    async fn write_msgpack(&self, request: WriteRequest) -> Result<WriteOutcome, RequestError> {
        self.write(request).await
    }

    async fn write_lines(&self, request: LineRequest) -> Result<LineOutcome, RequestError> {
        self.write_line_protocol(request).await
    }

    async fn flush(&self, timeout: Duration) -> FlushOutcome {
        let r = match self.open() {
            Ok(r) => r,
            Err(e) => return FlushOutcome::Failed(e),
        };
        if let Some(why) = r.control.forked() {
            return FlushOutcome::Failed(RequestError::unavailable(Reason::Poisoned, why));
        }
        if r.shared.is_poisoned() {
            return FlushOutcome::Failed(RequestError::unavailable(
                Reason::Poisoned,
                "a sync of the log failed; the server must be restarted",
            ));
        }
        if r.control.is_paused() {
            let w = r.shared.watermarks();
            if w.shipped < w.durable {
                return FlushOutcome::Failed(RequestError::unavailable(Reason::Paused, "compaction.paused is set: nothing is shipped"));
            }
        }
        match r.control.flush(timeout).await {
            Shipped::Done { files, rows, through } => FlushOutcome::Done { files, rows, through_seq: through },
            Shipped::TimedOut { through, target } => FlushOutcome::TimedOut { through_seq: through, target_seq: target },
            Shipped::Lost(why) => FlushOutcome::Failed(RequestError::unavailable(Reason::Damaged, why)),
        }
    }

    fn databases(&self) -> Vec<String> {
        self.running.get().map(|r| r.catalog.databases()).unwrap_or_default()
    }

    fn status(&self, page: TablePage) -> Value {
        let version = env!("CARGO_PKG_VERSION");
        let Some(r) = self.running.get() else {
            return json!({"version": version, "state": "recovering", "progress": self.readiness().progress});
        };
        let w = r.shared.watermarks();
        let (bytes, age) = r.shared.backlog();
        let (active, sealed, spare, pool) = {
            let s = lock(&r.shared.segments);
            (usize::from(s.active.is_some()), s.sealed.len(), s.spare.0, s.pool.0)
        };
        let listed = r.catalog.page(page.offset, page.limit, STATUS_COLUMNS);
        let more = listed.total_tables.saturating_sub(page.offset.saturating_add(listed.tables.len()));
        let next = (more > 0 && !listed.tables.is_empty()).then_some(page.offset + listed.tables.len());
        let tables: Vec<Value> = listed
            .tables
            .iter()
            .map(|t| {
                let columns: Vec<Value> = t
                    .columns
                    .iter()
                    .map(|c| {
                        let ty = ColumnType::from_u8(c.ty).map_or("unknown", ColumnType::name);
                        json!({"name": c.name, "type": ty, "tag": c.tag})
                    })
                    .collect();
                let widened: Vec<&str> = t.columns.iter().filter(|c| c.widened.is_some()).map(|c| c.name.as_str()).collect();
                json!({"database": t.database, "table": t.table, "columns": columns, "widened": widened})
            })
            .collect();
        let (done, open) = r.control.plans();
        let (records, quarantined) = r.control.quarantined();
        let deferred = r.control.deferred();
        json!({
            "version": version,
            "log_uuid": r.shared.log.to_string(),
            "watermarks": {
                "appended": w.appended, "durable": w.durable, "sealed": w.sealed, "shipped": w.shipped, "released": w.released,
            },
            "segments": {"active": active, "sealed": sealed, "spare": spare, "pool": pool},
            "backlog": {"bytes": bytes, "oldest_seconds": age.map_or(0.0, |a| a.as_secs_f64())},
            "plans": {"shipped": done, "open": open},
            "tables": tables,
            "tables_total": listed.total_tables,
            "tables_more": more,
            "tables_next_offset": next,
            "columns_total": listed.total_columns,
            "oddities": self.oddities.json(),
            "quarantine": {"records": records, "bytes": quarantined},
            "deferred": {"outputs": deferred.outputs, "bytes": deferred.bytes, "lost": deferred.lost, "strays": deferred.strays},
            "keys": r.keys.len(),
            "last_error": r.shared.last_error(),
            "other_logs": r.control.other_logs(),
            "damage": r.control.damage_json(),
            "poisoned": r.shared.is_poisoned(),
            "forked": r.control.forked(),
            "paused": r.control.is_paused(),
            "process": self.process(),
        })
    }

    fn readiness(&self) -> Readiness {
        let Some(r) = self.running.get() else {
            let progress = (*lock(&self.recovery)).map(|p| json!({"bytes_done": p.bytes_done, "bytes_total": p.bytes_total}));
            return Readiness { ready: false, reason: Some(Reason::Recovering.word().into()), progress };
        };
        let w = r.shared.watermarks();
        let progress = Some(json!({
            "durable": w.durable,
            "shipped": w.shipped,
            "blocked": r.shared.blocked() != Blocked::No,
            "damage": r.control.damage().len(),
            "paused": r.control.is_paused(),
        }));
        if let Some(why) = r.control.forked() {
            // This route is open to all; what the log and the store disagree about is in the status.
            let reason = if why.starts_with("forked") { "forked" } else { "refused" };
            return Readiness { ready: false, reason: Some(reason.into()), progress };
        }
        match r.shared.admit() {
            Ok(_) => Readiness { ready: true, reason: None, progress },
            Err(RequestError::Unavailable { reason, .. }) => Readiness { ready: false, reason: Some(reason.word().into()), progress },
            Err(e) => Readiness { ready: false, reason: Some(e.message().to_owned()), progress },
        }
    }

    fn spec(&self) -> Value {
        let s = &self.settings;
        json!({
            "format": "MessagePack",
            "shapes": {
                "columnar": {"m": "table", "columns": {"time": ["integers"], "name": ["values"]}, "tags": {"name": "value of all rows, optional"}},
                "row": {"m": "table", "t": "time", "h": "host, optional", "fields": {"name": "value"}, "tags": {"name": "value"}},
                "batch": {"batch": ["columnar or row items"]},
                "array": ["columnar or row items"],
            },
            "time": "by magnitude: < 1e10 s, < 1e13 ms, < 1e16 us, else ns; header x-arc-time-unit: s|ms|us|ns overrides",
            "compression": ["gzip", "zstd"],
            "headers": ["x-arc-database", "x-arc-time-unit", "Idempotency-Key"],
            "success": 204,
            "large_unsigned": if s.large_unsigned == LargeUnsigned::Saturate { "saturate" } else { "refuse" },
            "limits": {
                "max_payload_size": s.max_payload_size, "max_inflated_size": s.max_inflated_size, "max_record_size": s.max_record_size,
                "max_columns": s.bounds.max_columns, "max_tables": s.bounds.max_tables, "max_partitions": s.bounds.max_partitions,
            },
        })
    }

    fn stats(&self) -> Value {
        let Some(r) = self.running.get() else { return json!({"state": "recovering"}) };
        let w = r.shared.watermarks();
        let (bytes, _) = r.shared.backlog();
        json!({
            "requests_durable": w.durable, "requests_shipped": w.shipped, "backlog_bytes": bytes, "keys": r.keys.len(),
            "key_evictions": r.keys.early_evictions(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::wal::memory::{DiskCall, MemoryDisk};
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    fn engine() -> Arc<Engine> {
        let bounds = Bounds { max_columns: 10, max_tables: 10, max_partitions: 10, max_bytes: 1 << 20 };
        let settings = WriteSettings {
            max_payload_size: 4 * LARGE_BODY,
            max_inflated_size: 4 * LARGE_BODY,
            max_record_size: 1 << 20,
            bounds,
            nested: Nested::Json,
            hive_names: true,
            large_unsigned: LargeUnsigned::Refuse,
            max_in_flight: 64 * LARGE_BODY,
        };
        Engine::new(settings, SystemClock::shared(), Metrics::new())
    }

    fn gzip(len: usize) -> Bytes {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(&vec![7; len]).unwrap();
        e.finish().unwrap().into()
    }

    #[tokio::test]
    async fn bodies_that_become_large_take_turns_and_small_ones_do_not_wait_for_them() {
        let mut engine = engine();
        Arc::get_mut(&mut engine).unwrap().large.wait = Duration::from_millis(20);
        let cores = engine.large.free().0;
        let bomb = gzip(3 * LARGE_BODY);
        assert!(bomb.len() < LARGE_BODY / 10);
        let mut held = Vec::new();
        for _ in 0..cores {
            let (body, turn) = engine.inflated(bomb.clone(), 1, false).await.unwrap();
            assert_eq!(body.len(), 3 * LARGE_BODY);
            held.push(turn.unwrap());
        }
        for large in [bomb.clone(), Bytes::from(vec![0; LARGE_BODY + 1])] {
            match engine.inflated(large, 1, false).await {
                Err(RequestError::Unavailable { reason: Reason::NotStored, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        for (small, len) in [(gzip(LARGE_BODY), LARGE_BODY), (Bytes::from_static(b"x"), 1)] {
            let (body, turn) = engine.inflated(small, 1, false).await.unwrap();
            assert_eq!((body.len(), turn.is_none()), (len, true));
        }
        drop(held);
        assert!(matches!(engine.inflated(gzip(4 * LARGE_BODY + 1), 1, false).await, Err(RequestError::TooLarge(_))));
        assert_eq!(engine.large.free(), (cores, 64 * LARGE_BODY));
    }

    /// While a sync hangs, whoever waits for what it will settle is told so in time.
    #[tokio::test]
    async fn nobody_waits_for_long_behind_a_write_that_hangs() {
        let disk = MemoryDisk::default();
        let vfs: Arc<dyn crate::vfs::Vfs> = Arc::new(disk.clone());
        let mut settings = crate::wal::testing::settings(std::path::Path::new("/log"), 1 << 14, crate::vfs::Engine::Pwrite);
        settings.queue_timeout = Duration::from_millis(200);
        let log = crate::wal::recover::open(&vfs, settings, SystemClock::shared(), Metrics::new(), &mut |_| {}, &mut |_| {}).unwrap();
        let hangs = Arc::new(AtomicBool::new(true));
        let hook = Arc::clone(&hangs);
        disk.set_hook(move |call, _| {
            while call == DiskCall::Sync && hook.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        });
        let committer = log.committer;
        let committer = std::thread::spawn(move || committer.run());
        let engine = engine();
        engine.start(Running {
            shared: Arc::clone(&log.shared),
            appender: Appender::new(Arc::clone(&log.shared)),
            catalog: Catalog::new(10, 10),
            keys: Keys::new(Duration::from_secs(60), 10, SystemClock::shared()),
            control: Control::new(Arc::clone(&log.shared), false),
        });
        let request = |key: Option<&str>, body: &'static [u8]| WriteRequest {
            database: "db".into(),
            time_unit: None,
            idempotency_key: key.map(str::to_owned),
            body: Bytes::from_static(body),
            layers: 1,
            request_id: crate::http::RequestId::new("r").unwrap(),
        };
        // {"m": "t", "t": 1, "fields": {"f": 1}}, and the same with a text.
        let one = b"\x83\xa1m\xa1t\xa1t\x01\xa6fields\x81\xa1f\x01";
        let other_type = b"\x83\xa1m\xa1t\xa1t\x01\xa6fields\x81\xa1f\xa1x";
        let mut first = Box::pin(engine.write(request(Some("k"), one)));
        assert!(tokio::time::timeout(Duration::from_millis(500), &mut first).await.is_err(), "its sync hangs");
        let again = [
            // Its rows may be stored yet.
            (request(Some("k"), one), Reason::UnknownOutcome, "Idempotency-Key"),
            (request(None, other_type), Reason::NotStored, "columns"),
        ];
        for (again, want, why) in again {
            match tokio::time::timeout(Duration::from_secs(30), engine.write(again)).await.expect("an answer in time") {
                Err(RequestError::Unavailable { reason, message }) => {
                    assert!(reason == want && message.contains(why), "{reason:?} {message}")
                }
                outcome => panic!("{why}: {outcome:?}"),
            }
        }
        hangs.store(false, SeqCst);
        assert_eq!(first.await.unwrap(), WriteOutcome { sequence: Some(1), replayed: false });
        log.shared.close_queue();
        committer.join().unwrap();
    }
}
