//! Line protocol as each API speaks it, and what its clients ask before they write.
//!
//! The four routes differ in the names of precisions, in where the database stands, and in how they tell of lines that were refused. What they
//! store of a body is the same: every line that fits, or, with `accept_partial=false`, all lines or none.

use axum::body::{Body, Bytes};
use axum::http::header::HeaderName;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::auth;
use super::errors::{self, Failure};
use super::routes::Call;
use super::write::{database, idempotency_key, invalid, stored};
use super::{App, Backend, RequestId, ops};
use crate::batch::check_database_name;
use crate::decode::line_protocol::{LineError, Precision, Report};
use crate::error::RequestError;
use crate::types::Sequence;

/// Which API a body of line protocol came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// `/write`, InfluxDB 1.x.
    V1,
    /// `/api/v2/write`, InfluxDB 2.x.
    V2,
    /// `/api/v3/write_lp`, InfluxDB 3.
    V3,
    /// `/api/v1/write/line-protocol`, Arc.
    Arc,
}

impl Dialect {
    /// The route, as it is remembered with an idempotency key.
    pub fn route(self) -> &'static str {
        match self {
            Self::V1 => "write",
            Self::V2 => "api/v2/write",
            Self::V3 => "api/v3/write_lp",
            Self::Arc => "api/v1/write/line-protocol",
        }
    }

    /// The status of a body with refused lines.
    pub fn status(self, report: &Report) -> u16 {
        match self {
            _ if report.bad == 0 => 204,
            Self::V2 | Self::Arc if report.only_conflicts() => 422,
            _ => 400,
        }
    }

    fn precision(self, name: Option<&str>) -> Result<Precision, RequestError> {
        let known = match (self, name.filter(|n| !n.is_empty())) {
            (Self::V3, None) => Some(Precision::Auto),
            (_, None) => Some(Precision::Nanos),
            (_, Some("ns")) => Some(Precision::Nanos),
            (_, Some("us")) => Some(Precision::Micros),
            (_, Some("ms")) => Some(Precision::Millis),
            (_, Some("s")) => Some(Precision::Seconds),
            (Self::V1 | Self::Arc, Some("n")) => Some(Precision::Nanos),
            (Self::V1 | Self::Arc, Some("u" | "µ" | "μ")) => Some(Precision::Micros),
            (Self::V1 | Self::Arc, Some("m")) => Some(Precision::Minutes),
            (Self::V1 | Self::Arc, Some("h")) => Some(Precision::Hours),
            (Self::V3, Some("auto")) => Some(Precision::Auto),
            (Self::V3, Some("nanosecond")) => Some(Precision::Nanos),
            (Self::V3, Some("microsecond")) => Some(Precision::Micros),
            (Self::V3, Some("millisecond")) => Some(Precision::Millis),
            (Self::V3, Some("second")) => Some(Precision::Seconds),
            (_, Some(_)) => None,
        };
        let names = match self {
            Self::V1 | Self::Arc => "n, ns, u, us, µ, ms, s, m, h",
            Self::V2 => "ns, us, ms, s",
            Self::V3 => "auto, nanosecond, microsecond, millisecond, second, ns, us, ms, s",
        };
        known.ok_or_else(|| {
            let found = crate::batch::shown(name.unwrap_or_default());
            invalid(format!("unknown precision '{found}': expected one of {names}; nothing was stored"))
        })
    }

    /// What is said of refused lines. Clients of the first API look for "partial write" and "unable to parse" in it.
    fn text(self, report: &Report, stored: bool) -> String {
        let Some(first) = report.details.first() else {
            return "partial write: some lines of this request were refused when it was stored first; which ones can no longer be said"
                .to_owned();
        };
        let why = if first.conflict {
            first.message.clone()
        } else {
            format!("unable to parse '{}': {}", crate::decode::line_protocol::shown(first.original.as_bytes()), first.message)
        };
        let (line, dropped) = (first.line, report.bad);
        match (self, stored) {
            (Self::V1, true) => format!("partial write: {why} dropped={dropped}"),
            (Self::V1, false) => format!("{why} dropped={dropped}"),
            (Self::V3, true) => format!("partial write of line protocol occurred: line {line}: {why} dropped={dropped}"),
            (Self::V3, false) => format!("parsing failed for write_lp endpoint: line {line}: {why} dropped={dropped}"),
            (_, true) => format!("partial write: line {line}: {why} dropped={dropped}"),
            (_, false) => format!("line {line}: {why} dropped={dropped}"),
        }
    }
}

/// A body of line protocol whose headers have been checked.
#[derive(Clone, Debug)]
pub struct LineRequest {
    /// A valid database name.
    pub database: String,
    pub dialect: Dialect,
    pub precision: Precision,
    /// Store the lines that fit although others do not.
    pub accept_partial: bool,
    /// 1 to 128 printable ASCII bytes.
    pub idempotency_key: Option<String>,
    /// The body as received, still compressed.
    pub body: Bytes,
    /// How often it may be compressed; each layer is recognised by its first bytes.
    pub layers: usize,
    /// For log lines.
    pub request_id: RequestId,
}

impl LineRequest {
    /// What belongs to the body when it is asked whether two are the same.
    pub fn unit(&self) -> String {
        format!("{}{}", self.precision.name(), if self.accept_partial { "" } else { ";accept_partial=false" })
    }
}

/// What became of a body of line protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineOutcome {
    /// The record that holds the rows; None when nothing was stored.
    pub sequence: Option<Sequence>,
    /// The rows were stored by an earlier request with the same key.
    pub replayed: bool,
    /// 204, or what is said when lines were refused.
    pub status: u16,
    pub report: Report,
}

/// An answer that tells of refused lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) details: Vec<LineError>,
    pub(super) sequence: Option<Sequence>,
    pub(super) replayed: bool,
    /// Comments of the body.
    pub(super) comments: u64,
}

/// The first value of a parameter.
fn parameter<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

fn flag(query: &[(String, String)], name: &str, otherwise: bool) -> Result<bool, RequestError> {
    match parameter(query, name) {
        None | Some("") => Ok(otherwise),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(invalid(format!("{name} must be true or false, found '{}'", crate::batch::shown(other)))),
    }
}

/// `POST /write`, `/api/v2/write`, `/api/v3/write_lp`, `/api/v1/write/line-protocol`
pub(super) async fn write<B: Backend>(app: &App<B>, call: &mut Call, dialect: Dialect) -> Result<Response, Failure> {
    let query = ops::query(&call.head.uri)?;
    let database = database(call, (dialect == Dialect::Arc).then_some("default"))?;
    let precision = dialect.precision(parameter(&query, "precision"))?;
    let mut accept_partial = true;
    if dialect == Dialect::V3 {
        accept_partial = flag(&query, "accept_partial", true)?;
        // Nothing is acknowledged before it is synced, whatever is asked for.
        flag(&query, "no_sync", false)?;
    }
    let idempotency_key = idempotency_key(&call.head.headers)?;
    app.backend.before_body()?;

    let (body, share) = call.body.read(app).await?;
    app.metrics.ingest_bytes_total.increment(body.len() as u64);
    let layers = call.body.layers();
    let request = LineRequest { database, dialect, precision, accept_partial, idempotency_key, body, layers, request_id: call.id.clone() };
    let outcome = app.backend.write_lines(request).await;
    drop(share);

    let LineOutcome { sequence, replayed, status, report } = outcome?;
    if status == 204 {
        let mut response = stored(sequence, replayed);
        mark_comments(&mut response, report.comments);
        return Ok(response);
    }
    let refusal = Refusal {
        status,
        code: if status == 422 { "unprocessable entity" } else { "invalid" },
        text: dialect.text(&report, sequence.is_some()),
        details: report.details,
        sequence,
        replayed,
        comments: report.comments,
    };
    Err(Failure::Lines(Box::new(refusal)))
}

/// Says how many lines were comments, if any: a name that begins with `#` makes one of its line.
pub(super) fn mark_comments(response: &mut Response, comments: u64) {
    if comments > 0 {
        response.headers_mut().insert(HeaderName::from_static("x-arc-comment-lines"), HeaderValue::from(comments));
    }
}

/// Clients of InfluxDB 1 and 2 read the version from here and parse it as a semantic version; by a leading 1.8 they know the API that
/// `/write` and `/query` speak, which also has `/api/v2/write`.
const INFLUXDB_VERSION: &str = concat!("1.8.10-arc-", env!("CARGO_PKG_VERSION"));

/// `GET /ping`, `HEAD /ping`
pub(super) fn ping(call: &Call) -> Result<Response, Failure> {
    let query = ops::query(&call.head.uri)?;
    let verbose = parameter(&query, "verbose").is_some_and(|v| !matches!(v, "" | "0" | "false"));
    let mut response = if verbose {
        errors::json(200, &json!({"version": INFLUXDB_VERSION}))
    } else {
        let mut empty = Response::new(Body::empty());
        *empty.status_mut() = StatusCode::NO_CONTENT;
        empty
    };
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-influxdb-version"), HeaderValue::from_static(INFLUXDB_VERSION));
    headers.insert(HeaderName::from_static("x-influxdb-build"), HeaderValue::from_static("OSS"));
    headers.insert(HeaderName::from_static("request-id"), call.id.header());
    Ok(response)
}

/// Longest statement that is looked at.
const MAX_STATEMENT: usize = 64 << 10;

/// `GET /query`, `POST /query`: says yes to what clients send before they write. Databases need not be made.
pub(super) async fn query<B: Backend>(app: &App<B>, call: &mut Call) -> Result<Response, Failure> {
    let query = ops::query(&call.head.uri)?;
    let mut form = Vec::new();
    if parameter(&query, "q").is_none() {
        // This route is open to all.
        let (body, _share) = call.body.read_up_to(app, MAX_STATEMENT).await?;
        form = form_urlencoded::parse(body.trim_ascii()).into_owned().collect();
    }
    let given = |name| parameter(&query, name).or_else(|| parameter(&form, name));
    let Some(statement) = given("q") else { return Err(invalid("no statement: expected the parameter q").into()) };
    let shows = understand(statement)? == Statement::ShowDatabases;
    // Some clients stop when the database that they are set to is not in the list. Every valid name is there as soon as it is written to.
    let named = given("db").filter(|name| shows && check_database_name(name).is_ok());
    let mut names = if shows { visible(app, call) } else { Vec::new() };
    if let Some(named) = named.filter(|n| !names.iter().any(|name| name == n)) {
        names.push(named.to_owned());
    }
    let result = if names.is_empty() {
        json!({"statement_id": 0})
    } else {
        let values: Vec<[String; 1]> = names.into_iter().map(|n| [n]).collect();
        json!({"statement_id": 0, "series": [{"name": "databases", "columns": ["name"], "values": values}]})
    };
    Ok(errors::json(200, &json!({ "results": [result] })))
}

/// The databases that exist, as far as the request's token may touch them. The route is open, so without a valid token there are none.
fn visible<B: Backend>(app: &App<B>, call: &Call) -> Vec<String> {
    let grant = auth::known(app, call);
    app.backend.databases().into_iter().filter(|name| grant.database(name).is_ok()).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Statement {
    CreateDatabase,
    ShowDatabases,
}

/// Accepts `CREATE DATABASE name ...` and `SHOW DATABASES`.
fn understand(statement: &str) -> Result<Statement, RequestError> {
    let text = statement.trim().trim_end_matches(';').trim_end();
    let mut words = text.split_ascii_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is = |a: &str, b: &str| first.eq_ignore_ascii_case(a) && second.eq_ignore_ascii_case(b);
    if is("SHOW", "DATABASES") && words.next().is_none() {
        return Ok(Statement::ShowDatabases);
    }
    if is("CREATE", "DATABASE")
        && let Some(name) = words.next()
    {
        let name = name.strip_prefix('"').and_then(|n| n.strip_suffix('"')).unwrap_or(name);
        let more = words.next().is_none_or(|w| w.eq_ignore_ascii_case("WITH"));
        if more && !text.contains(';') {
            return check_database_name(name).map(|()| Statement::CreateDatabase);
        }
    }
    let found = crate::batch::shown(text);
    Err(invalid(format!(
        "this server stores and does not query: expected CREATE DATABASE or SHOW DATABASES, found '{found}'; read the Parquet files"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements() {
        for good in [
            "SHOW DATABASES",
            "show databases;",
            "CREATE DATABASE telegraf",
            "CREATE DATABASE \"telegraf\"",
            " create  database \"a\" WITH DURATION 3d REPLICATION 1 ; ",
        ] {
            assert!(understand(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "SELECT * FROM cpu",
            "SHOW DATABASES; DROP DATABASE a",
            "CREATE DATABASE",
            "CREATE DATABASE \"\"",
            "CREATE DATABASE a b",
            "CREATE DATABASE a; DROP DATABASE b",
            "CREATE DATABASE \"../x\"",
            "DROP DATABASE a",
        ] {
            assert!(matches!(understand(bad), Err(RequestError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn each_api_has_its_precisions() {
        use Precision::*;
        let all = ["n", "ns", "u", "us", "µ", "ms", "s", "m", "h", "auto", "nanosecond", "microsecond", "millisecond", "second", "d", "NS"];
        let v1 = [Nanos, Nanos, Micros, Micros, Micros, Millis, Seconds, Minutes, Hours];
        for (dialect, default, want) in [
            (Dialect::V1, Nanos, all.iter().zip(v1).collect::<Vec<_>>()),
            (Dialect::Arc, Nanos, all.iter().zip(v1).collect()),
            (Dialect::V2, Nanos, vec![(&"ns", Nanos), (&"us", Micros), (&"ms", Millis), (&"s", Seconds)]),
            (
                Dialect::V3,
                Auto,
                vec![
                    (&"auto", Auto),
                    (&"nanosecond", Nanos),
                    (&"microsecond", Micros),
                    (&"millisecond", Millis),
                    (&"second", Seconds),
                    (&"ns", Nanos),
                    (&"us", Micros),
                    (&"ms", Millis),
                    (&"s", Seconds),
                ],
            ),
        ] {
            assert_eq!(dialect.precision(None), Ok(default));
            assert_eq!(dialect.precision(Some("")), Ok(default));
            for name in all {
                let want = want.iter().find(|(n, _)| **n == name).map(|(_, p)| *p);
                assert_eq!(dialect.precision(Some(name)).ok(), want, "{dialect:?} {name}");
            }
        }
    }
}
