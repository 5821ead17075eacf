//! Every metric of the server, in one table.
//!
//! [`Metrics`] holds one handle a series, registered when it is made, so that updating one is an atomic operation and
//! never a lookup by name. Series are fixed: labels take their values from the enums below, so that no client can make
//! a new one. There is no global recorder: a test or a tool makes its own [`Metrics`].
//!
//! Histogram samples are kept until they are folded into buckets: whoever runs a server calls [`Metrics::upkeep`] every
//! few seconds ([`crate::http::serve`] does).

use std::marker::PhantomData;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::clock::SystemClock;

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// `arc_<area>_<name>_<unit>[_total]`
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub help: &'static str,
    /// Names of the labels, empty for a plain metric.
    pub labels: &'static [&'static str],
    /// Values of the labels, one row a series; one empty row for a plain metric.
    pub series: fn() -> Vec<Vec<&'static str>>,
    /// Upper bounds, for a histogram.
    pub buckets: &'static [f64],
}

/// From 50 us to 10 s: a request, a wait, a sync.
const LATENCY: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// From 10 ms to 5 minutes: building and storing a Parquet file.
const LONG: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Records of a group.
const RECORDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];
/// Bytes of a group, from a block to beyond the largest group.
const BYTES: &[f64] =
    &[4096.0, 16_384.0, 65_536.0, 131_072.0, 262_144.0, 524_288.0, 1_048_576.0, 2_097_152.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

/// The labels of a metric: a small closed set of values, so that the number of series is known.
pub trait LabelSet: Copy {
    /// Names of the labels.
    const NAMES: &'static [&'static str];
    /// Label values of every series, in the order of [`LabelSet::index`].
    fn all() -> Vec<Vec<&'static str>>;
    /// Position of this value in [`LabelSet::all`].
    fn index(self) -> usize;
}

/// The handles of one labelled metric.
pub struct Family<T, L> {
    handles: Box<[T]>,
    labels: PhantomData<fn(L)>,
}

impl<T, L: LabelSet> Family<T, L> {
    /// The handle of one series.
    pub fn get(&self, label: L) -> &T {
        &self.handles[label.index()]
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $label:literal { $($(#[$vdoc:meta])* $variant:ident = $word:expr),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The value of the label.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl LabelSet for $name {
            const NAMES: &'static [&'static str] = &[$label];
            fn all() -> Vec<Vec<&'static str>> {
                Self::ALL.iter().map(|v| vec![v.word()]).collect()
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What a request asked for; unknown paths and methods are all `other`.
    Route, "route" {
        WriteMsgpack = "write_msgpack",
        WriteV1 = "write_v1",
        WriteV2 = "write_v2",
        WriteV3 = "write_v3",
        WriteLines = "write_line_protocol",
        Ping = "ping",
        Query = "query",
        WriteSpec = "write_msgpack_spec",
        WriteStats = "write_msgpack_stats",
        Flush = "flush",
        Health = "health",
        Ready = "ready",
        Metrics = "metrics",
        Status = "status",
        AuthVerify = "auth_verify",
        AuthTokens = "auth_tokens",
        Other = "other",
    }
}

label! {
    /// First digit of the status.
    StatusClass, "status" {
        Success = "2xx",
        Client = "4xx",
        Server = "5xx",
    }
}

impl StatusClass {
    /// The class of a status; whatever is neither 4xx nor 5xx counts as success.
    pub fn of(status: u16) -> Self {
        match status {
            400..=499 => Self::Client,
            500.. => Self::Server,
            _ => Self::Success,
        }
    }
}

label! {
    /// Why a request or a connection was turned away.
    Rejected, "reason" {
        Invalid = "invalid",
        TooLarge = "too_large",
        /// `Content-Encoding` or `Transfer-Encoding` names what this route does not take.
        UnsupportedEncoding = "unsupported_encoding",
        /// Neither `Content-Length` nor `Transfer-Encoding`.
        LengthRequired = "length_required",
        /// Some lines of a body were refused, the others stored.
        PartialWrite = "partial_write",
        KeyReused = "key_reused",
        /// No token, or none that is live.
        Unauthorized = "unauthorized",
        /// A token that may not do this.
        Forbidden = "forbidden",
        NotStored = "not_stored",
        UnknownOutcome = "unknown_outcome",
        Backlog = "backlog",
        DiskFull = "disk_full",
        Poisoned = "poisoned",
        Recovering = "recovering",
        Shutdown = "shutdown",
        Paused = "paused",
        Damaged = "damaged",
        Internal = "internal",
        NotFound = "not_found",
        MethodNotAllowed = "method_not_allowed",
        /// No room under `ingest.max_in_flight`.
        InFlight = "in_flight",
        /// A TLS handshake that failed, or took longer than `server.header_timeout`.
        Handshake = "tls_handshake",
        /// The head of a request did not come within `server.header_timeout`.
        SlowHeader = "slow_header",
        /// The body did not come within `server.read_timeout`.
        SlowBody = "slow_body",
        /// The client went away in the middle of a body.
        CutBody = "cut_body",
    }
}

label! {
    /// Where a segment stands.
    SegmentState, "state" {
        Active = "active",
        Sealed = "sealed",
        Spare = "spare",
        Pool = "pool",
    }
}

/// What this build is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Build;

impl Build {
    pub const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    /// The commit it was made from, as far as that was known (see `build.rs`), else `unknown`.
    pub const REVISION: &'static str = env!("ARC_REVISION");
}

impl LabelSet for Build {
    const NAMES: &'static [&'static str] = &["version", "revision"];

    fn all() -> Vec<Vec<&'static str>> {
        vec![vec![Self::VERSION, Self::REVISION]]
    }

    fn index(self) -> usize {
        0
    }
}

label! {
    /// What is asked of an object store.
    StoreOp, "op" {
        Put = "put",
        Head = "head",
        Get = "get",
        /// One piece of an object that is read.
        Read = "read",
        Delete = "delete",
        /// The beginning of an upload in parts.
        Begin = "begin",
        Part = "part",
        Complete = "complete",
        Abort = "abort",
        List = "list",
    }
}

label! {
    /// How a request to an object store ended.
    StoreOutcome, "outcome" {
        Ok = "ok",
        Exists = "exists",
        Missing = "missing",
        Denied = "denied",
        Busy = "busy",
        Timeout = "timeout",
        Network = "network",
        Failed = "failed",
    }
}

/// A request to an object store and its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreCall(pub StoreOp, pub StoreOutcome);

impl LabelSet for StoreCall {
    const NAMES: &'static [&'static str] = &["op", "outcome"];

    fn all() -> Vec<Vec<&'static str>> {
        StoreOp::ALL.iter().flat_map(|o| StoreOutcome::ALL.iter().map(|e| vec![o.word(), e.word()])).collect()
    }

    fn index(self) -> usize {
        self.0 as usize * StoreOutcome::ALL.len() + self.1 as usize
    }
}

/// A route and a class of status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteStatus(pub Route, pub StatusClass);

impl LabelSet for RouteStatus {
    const NAMES: &'static [&'static str] = &["route", "status"];

    fn all() -> Vec<Vec<&'static str>> {
        Route::ALL.iter().flat_map(|r| StatusClass::ALL.iter().map(|s| vec![r.word(), s.word()])).collect()
    }

    fn index(self) -> usize {
        self.0 as usize * StatusClass::ALL.len() + self.1 as usize
    }
}

trait Handle: Sized {
    fn register(recorder: &PrometheusRecorder, definition: &Definition, key: &Key) -> Self;
}

const METADATA: Metadata<'static> = Metadata::new("arc_ingest", Level::INFO, None);

impl Handle for Counter {
    fn register(recorder: &PrometheusRecorder, definition: &Definition, key: &Key) -> Self {
        recorder.describe_counter(definition.name.into(), Some(definition.unit), definition.help.into());
        recorder.register_counter(key, &METADATA)
    }
}

impl Handle for Gauge {
    fn register(recorder: &PrometheusRecorder, definition: &Definition, key: &Key) -> Self {
        recorder.describe_gauge(definition.name.into(), Some(definition.unit), definition.help.into());
        recorder.register_gauge(key, &METADATA)
    }
}

impl Handle for Histogram {
    fn register(recorder: &PrometheusRecorder, definition: &Definition, key: &Key) -> Self {
        recorder.describe_histogram(definition.name.into(), Some(definition.unit), definition.help.into());
        recorder.register_histogram(key, &METADATA)
    }
}

fn plain<T: Handle>(recorder: &PrometheusRecorder, definition: &Definition) -> T {
    T::register(recorder, definition, &Key::from_name(definition.name))
}

fn family<T: Handle, L: LabelSet>(recorder: &PrometheusRecorder, definition: &Definition) -> Family<T, L> {
    let handles = L::all()
        .into_iter()
        .map(|values| {
            let labels: Vec<Label> = L::NAMES.iter().zip(values).map(|(name, value)| Label::new(*name, value)).collect();
            T::register(recorder, definition, &Key::from_parts(definition.name, labels))
        })
        .collect();
    Family { handles, labels: PhantomData }
}

/// The table: `kind field [labels] (buckets), unit, help`. The name of a metric is `arc_` and the name of its field.
macro_rules! table {
    (@type $kind:ident) => { $kind };
    (@type $kind:ident $labels:ty) => { Family<$kind, $labels> };
    (@make $recorder:ident, $definition:expr) => { plain($recorder, $definition) };
    (@make $recorder:ident, $definition:expr, $labels:ty) => { family::<_, $labels>($recorder, $definition) };
    (@names) => { &[] };
    (@names $labels:ty) => { <$labels as LabelSet>::NAMES };
    (@series) => { || vec![Vec::new()] };
    (@series $labels:ty) => { <$labels as LabelSet>::all };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
    ($($kind:ident $field:ident $([$labels:ty])? $(($buckets:ident))?, $unit:ident, $help:literal;)+) => {
        /// Every metric.
        pub const TABLE: &[Definition] = &[$(Definition {
            name: concat!("arc_", stringify!($field)),
            kind: Kind::$kind,
            unit: Unit::$unit,
            help: $help,
            labels: table!(@names $($labels)?),
            series: table!(@series $($labels)?),
            buckets: table!(@buckets $($buckets)?),
        }),+];

        /// One handle a series; see [`TABLE`].
        pub struct Metrics {
            render: PrometheusHandle,
            $(#[doc = $help] pub $field: table!(@type $kind $($labels)?),)+
        }

        impl Metrics {
            fn register(recorder: &PrometheusRecorder) -> Self {
                let mut rows = TABLE.iter();
                let mut next = || rows.next().expect("one row for each field");
                Self {
                    render: recorder.handle(),
                    $($field: table!(@make recorder, next() $(, $labels)?),)+
                }
            }
        }
    };
}

table! {
    Gauge build_info [Build], Count, "1, with the version of this build and the commit it was made from";
    Gauge process_start_time_seconds, Seconds, "When this process started, in seconds since the Unix epoch";
    Gauge process_resident_bytes, Bytes, "Resident memory of this process";
    Gauge process_open_fds, Count, "File descriptors that this process has open";
    Gauge process_max_fds, Count, "File descriptors that this process may have open";
    Gauge process_threads, Count, "Threads of this process";
    Counter process_log_lines_dropped_total, Count, "Log lines that stderr did not take";

    Counter http_requests_total [RouteStatus], Count, "Requests answered, by route and class of status";
    Counter http_rejected_total [Rejected], Count, "Requests refused and connections closed without an answer, by reason";
    Counter http_panics_total, Count, "Handlers that panicked; each was answered with 500";
    Counter http_accept_errors_total, Count, "Connections that could not be accepted";
    Gauge http_connections, Count, "Open connections";
    Gauge http_lingering_connections, Count, "Open connections whose answer was given early; what they still send is discarded";
    Gauge http_max_connections, Count, "Connections that may be open at a time: server.max_connections, or fewer where the limit of open files leaves no room";
    Gauge http_ready, Count, "1 when GET /ready says that writes would be taken";
    Gauge http_in_flight_bytes, Bytes, "Bytes of request bodies that are being read or worked on";
    Histogram http_request_seconds [Route] (LATENCY), Seconds, "From the head of a request to its answer";

    Counter ingest_rows_total, Count, "Rows acknowledged";
    Counter ingest_batches_total, Count, "Requests acknowledged whose rows were stored";
    Counter ingest_bytes_total, Bytes, "Bytes of request bodies as received";
    Histogram ingest_decode_seconds (LATENCY), Seconds, "Inflating, decoding and validating a body";
    Counter ingest_invalid_utf8_total, Count, "Strings in which invalid UTF-8 became U+FFFD";
    Counter ingest_odd_times_total, Count, "Rows stored with a time stamp before the year 2000 or over a day ahead";
    Counter ingest_comments_total, Count, "Lines of line protocol that were comments: lines that begin with #";
    Counter ingest_saturated_total, Count, "Unsigned integers above the largest int64 that were stored as it (ingest.large_unsigned)";
    Counter ingest_refused_lines_total, Count, "Lines of line protocol that were refused";
    Counter ingest_replayed_keys_total, Count, "Requests answered from a remembered idempotency key";
    Counter ingest_key_evictions_total, Count, "Idempotency keys forgotten before their window had passed";

    Gauge wal_appended_sequence, Count, "Highest sequence given to a record";
    Gauge wal_durable_sequence, Count, "Highest sequence on stable storage";
    Gauge wal_sealed_sequence, Count, "Highest sequence in a sealed segment";
    Gauge wal_shipped_sequence, Count, "Highest sequence through which every row is in committed Parquet";
    Gauge wal_released_sequence, Count, "Highest sequence whose segment has been released";
    Histogram wal_sync_seconds (LATENCY), Seconds, "One sync of the active segment";
    Histogram wal_group_records (RECORDS), Count, "Records of a group";
    Histogram wal_group_bytes (BYTES), Bytes, "Bytes of a group, with its pad";
    Histogram wal_queue_wait_seconds (LATENCY), Seconds, "From the end of validation until a record has its sequence";
    Counter wal_syncs_total, Count, "Syncs of segments";
    Counter wal_sync_failures_total, Count, "Syncs that failed; each poisons the log";
    Counter wal_record_bytes_total, Bytes, "Bytes of records written";
    Counter wal_pad_bytes_total, Bytes, "Bytes written to fill blocks";
    Gauge wal_segments [SegmentState], Count, "Segment files, by state";
    Gauge wal_backlog_bytes, Bytes, "Bytes of the log that are not released, side directory included";
    Gauge wal_max_bytes, Bytes, "Bytes that the log may have: wal.max_size";
    Gauge wal_backlog_age_seconds, Seconds, "Age of the oldest record that is not shipped";
    Counter wal_rotations_total, Count, "Segments begun";
    Counter wal_marks_total, Count, "Mark records written";
    Counter wal_damage_findings_total, Count, "Damaged places found by recovery";
    Gauge wal_unsafe_filesystem, Count, "1 if the log is on a filesystem that a start warns of: process.wal_filesystem of the status names it";
    Gauge wal_poisoned, Count, "1 after a failed sync";
    Gauge wal_disk_full, Count, "1 while writes are refused for want of room";

    Counter compact_plans_total, Count, "Plans committed";
    Counter compact_outputs_total, Count, "Parquet files committed";
    Counter compact_rows_total, Count, "Rows committed";
    Counter compact_parquet_bytes_total, Bytes, "Bytes of Parquet committed";
    Histogram compact_build_seconds (LONG), Seconds, "Building one Parquet file";
    Histogram compact_put_seconds (LONG), Seconds, "Storing one Parquet file";
    Counter compact_retries_total, Count, "Attempts of the store that were repeated";
    Counter compact_errors_total, Count, "Plans or outputs that failed and will be tried again";
    Gauge compact_quarantined_records, Count, "Slices of records set aside because they could not be built";
    Gauge compact_quarantined_bytes, Bytes, "Bytes of slices set aside";

    Gauge compact_deferred_outputs, Count, "Outputs that wait in side segments because they could not be stored";
    Gauge compact_deferred_bytes, Bytes, "Bytes of side segments";

    Counter store_requests_total [StoreCall], Count, "Requests to an object store";
    Counter store_retries_total, Count, "Requests to an object store that were repeated at once";
    Gauge store_uploads, Count, "Uploads in parts under way";
    Counter store_uploads_aborted_total, Count, "Uploads in parts that were given up";
    Counter store_mismatches_total, Count, "Objects that were not what had been put, by length or contents";
    Histogram store_put_seconds (LONG), Seconds, "Publishing one object in an object store";

    Gauge keys_live, Count, "Idempotency keys remembered";

    Gauge auth_tokens, Count, "Tokens that are neither revoked nor expired";
    Counter auth_reload_errors_total, Count, "Times that the token file could not be read again; the tokens before stay in force";
    Counter tls_reload_errors_total, Count, "Times that the certificate could not be read again; the one before stays in force";
}

impl Metrics {
    /// All series at zero.
    pub fn new() -> Arc<Self> {
        let builder = TABLE.iter().filter(|d| d.kind == Kind::Histogram).fold(PrometheusBuilder::new(), |builder, d| {
            builder.set_buckets_for_metric(Matcher::Full(d.name.to_owned()), d.buckets).expect("a histogram has buckets")
        });
        let metrics = Self::register(&builder.build_recorder());
        metrics.build_info.get(Build).set(1.0);
        metrics.process_start_time_seconds.set(SystemClock::shared().wall_us() as f64 / 1e6);
        Arc::new(metrics)
    }

    /// All series as Prometheus text.
    pub fn render(&self) -> String {
        self.look_at_the_process();
        self.render.run_upkeep();
        self.render.render()
    }

    fn look_at_the_process(&self) {
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            // VmRSS counts in KiB and so needs no page size.
            if let Some(kib) = status_number(&status, "VmRSS:") {
                self.process_resident_bytes.set(kib * 1024.0);
            }
            if let Some(threads) = status_number(&status, "Threads:") {
                self.process_threads.set(threads);
            }
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.process_open_fds.set(open.count().saturating_sub(1) as f64);
        }
        if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            self.process_max_fds.set(most as f64);
        }
    }

    /// Folds the samples of histograms into their buckets. Without it they take memory until somebody renders.
    pub fn upkeep(&self) {
        self.render.run_upkeep();
    }

    /// Counts a request or a connection turned away.
    pub fn reject(&self, reason: Rejected) {
        self.http_rejected_total.get(reason).increment(1);
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The number behind `name` in the text of `/proc/self/status`.
fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_follow_the_rule() {
        let areas = ["build", "process", "http", "ingest", "wal", "compact", "store", "keys", "auth", "tls"];
        let mut seen = HashSet::new();
        for d in TABLE {
            assert!(seen.insert(d.name), "{} twice", d.name);
            let area = d.name.strip_prefix("arc_").and_then(|n| n.split('_').next()).unwrap();
            assert!(areas.contains(&area), "{}", d.name);
            assert!(d.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", d.name);
            assert_eq!(d.name.ends_with("_total"), d.kind == Kind::Counter, "{}", d.name);
            assert_eq!(d.buckets.is_empty(), d.kind != Kind::Histogram, "{}", d.name);
            assert!(d.buckets.windows(2).all(|w| w[0] < w[1]), "{}", d.name);
            let stem = d.name.trim_end_matches("_total");
            assert_eq!(stem.ends_with("_bytes"), d.unit == Unit::Bytes, "{}", d.name);
            assert_eq!(stem.ends_with("_seconds"), d.unit == Unit::Seconds, "{}", d.name);
            assert!(!d.help.is_empty());
        }
    }

    #[test]
    fn every_series_is_rendered_from_the_start() {
        let text = Metrics::new().render();
        for d in TABLE {
            assert!(text.contains(&format!("# HELP {} {}", d.name, d.help)), "{}", d.name);
            let kind = match d.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            assert!(text.contains(&format!("# TYPE {} {kind}\n", d.name)), "{}", d.name);
        }
        let build = format!("arc_build_info{{version=\"{}\",revision=\"{}\"}} 1\n", Build::VERSION, Build::REVISION);
        assert!(text.contains(&build), "{text}");
        for of_the_process in ["resident_bytes", "open_fds", "max_fds", "threads"] {
            let name = format!("arc_process_{of_the_process} ");
            let value = text.lines().find_map(|l| l.strip_prefix(name.as_str())).unwrap();
            assert!(value.parse::<f64>().unwrap() > 0.0, "{name}{value}");
        }
        assert!(text.contains("arc_http_requests_total{route=\"write_msgpack\",status=\"2xx\"} 0\n"), "{text}");
        assert!(text.contains("arc_wal_segments{state=\"pool\"} 0\n"));
    }

    #[test]
    fn handles_reach_their_series() {
        let m = Metrics::new();
        m.http_requests_total.get(RouteStatus(Route::Flush, StatusClass::of(503))).increment(2);
        m.reject(Rejected::DiskFull);
        m.wal_sync_seconds.record(0.003);
        m.upkeep();
        m.wal_sync_seconds.record(0.003);
        m.wal_durable_sequence.set(42.0);
        let text = m.render();
        assert!(text.contains("arc_http_requests_total{route=\"flush\",status=\"5xx\"} 2\n"), "{text}");
        assert!(text.contains("arc_http_rejected_total{reason=\"disk_full\"} 1\n"));
        assert!(text.contains("arc_wal_sync_seconds_bucket{le=\"0.002\"} 0\n"), "{text}");
        assert!(text.contains("arc_wal_sync_seconds_bucket{le=\"0.004\"} 2\n"));
        assert!(text.contains("arc_wal_sync_seconds_count 2\n"));
        assert!(text.contains("arc_wal_durable_sequence 42\n"));
        assert!(Metrics::new().render().contains("arc_wal_durable_sequence 0\n"), "no state is shared");
    }

    #[test]
    fn label_indices_match_their_order() {
        for (i, r) in Route::ALL.iter().enumerate() {
            for (j, s) in StatusClass::ALL.iter().enumerate() {
                let at = RouteStatus(*r, *s).index();
                assert_eq!(at, i * StatusClass::ALL.len() + j);
                assert_eq!(RouteStatus::all()[at], vec![r.word(), s.word()]);
            }
        }
    }
}
