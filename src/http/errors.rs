//! From what went wrong to an answer, in one place.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;

use super::RequestId;
use super::lines::Refusal;
use crate::error::{Reason, RequestError};
use crate::metrics::{Metrics, Rejected};

/// Why a request has no success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// Said by the backend, or by a check of the request's head.
    Request(RequestError),
    /// Lines of a body were refused.
    Lines(Box<Refusal>),
    /// No token, or none that is live.
    Unauthorized(&'static str),
    /// The same, to a client that asked whether its token is one.
    NotVerified(&'static str),
    /// A live token that may not do this.
    Forbidden(String),
    /// An encoding of the body that is not undone here.
    UnsupportedEncoding(String),
    /// A body is expected, and nothing says how long it is.
    LengthRequired,
    /// No room under `max_in_flight`.
    InFlight,
    /// No such path.
    NotFound,
    /// The path is right, and what it names is not there.
    NoSuch(String),
    /// The path exists, with other methods; the router adds `Allow`.
    MethodNotAllowed,
    /// A handler panicked.
    Panicked,
}

impl From<RequestError> for Failure {
    fn from(e: RequestError) -> Self {
        Self::Request(e)
    }
}

#[derive(Serialize, Default)]
struct ErrorBody<'a> {
    error: &'a str,
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The first line that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<LineBody<'a>>>,
    /// Of refusals for want of a right, as Arc has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid: Option<bool>,
}

#[derive(Serialize)]
struct LineBody<'a> {
    original_line: &'a str,
    line_number: u64,
    error_message: &'a str,
}

const X_INFLUXDB_ERROR: HeaderName = HeaderName::from_static("x-influxdb-error");
/// Longest text of that header.
const MAX_ERROR_HEADER: usize = 1024;

/// The answer to a failure, counted and, for a bug of ours, logged. Clients of InfluxDB 1 find the text in a header too.
pub(super) fn response(failure: Failure, id: &RequestId, metrics: &Metrics, v1: bool) -> Response {
    let (mut response, text) = answer(failure, id, metrics);
    if v1 {
        let text: String = text.chars().take(MAX_ERROR_HEADER).map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(X_INFLUXDB_ERROR, value);
        }
    }
    response
}

const NO_LENGTH: &str = "expected Content-Length or Transfer-Encoding: chunked, found neither; nothing was stored";

impl Failure {
    /// The status of the answer.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Request(e) => e.status(),
            Self::Lines(refusal) => refusal.status,
            Self::Unauthorized(_) | Self::NotVerified(_) => 401,
            Self::Forbidden(_) => 403,
            Self::NotFound | Self::NoSuch(_) => 404,
            Self::MethodNotAllowed => 405,
            Self::LengthRequired => 411,
            Self::UnsupportedEncoding(_) => 415,
            Self::Panicked => 500,
            Self::InFlight => 503,
        }
    }

    /// What is said of it, without the text of refused lines.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Request(e) => e.message().into(),
            Self::Lines(refusal) => match refusal.details.first() {
                Some(d) => format!("line {}: {}", d.line, d.message).into(),
                None => refusal.text.as_str().into(),
            },
            Self::Unauthorized(why) | Self::NotVerified(why) => (*why).into(),
            Self::Forbidden(why) | Self::NoSuch(why) | Self::UnsupportedEncoding(why) => why.as_str().into(),
            Self::InFlight => NO_ROOM.into(),
            Self::NotFound => "no such path".into(),
            Self::MethodNotAllowed => "the method is not allowed for this path".into(),
            Self::LengthRequired => NO_LENGTH.into(),
            Self::Panicked => "internal error".into(),
        }
    }
}

const NO_ROOM: &str = "too many bytes of requests in flight (ingest.max_in_flight); send it again";

fn answer(failure: Failure, id: &RequestId, metrics: &Metrics) -> (Response, String) {
    let counted = failure.counted_as();
    metrics.reject(counted);
    let error = match failure {
        Failure::Request(e) => {
            if let RequestError::Internal(message) = &e {
                tracing::error!(request_id = %id, %message, "internal error");
            }
            e
        }
        Failure::InFlight => RequestError::unavailable(Reason::NotStored, NO_ROOM),
        Failure::Panicked => RequestError::Internal(format!("internal error; the log has it under request id {id}")),
        Failure::Unauthorized(why) => return (refused(401, "unauthorized", why, None), why.to_owned()),
        Failure::NotVerified(why) => return (refused(401, "unauthorized", why, Some(false)), why.to_owned()),
        Failure::Forbidden(why) => return (refused(403, "forbidden", &why, None), why),
        Failure::NoSuch(what) => return said(404, "not found", &what),
        Failure::NotFound => return said(404, "not found", "no such path"),
        Failure::MethodNotAllowed => return said(405, "method not allowed", "the method is not allowed for this path"),
        Failure::UnsupportedEncoding(why) => return said(415, "unsupported media type", &why),
        Failure::LengthRequired => return said(411, "length required", NO_LENGTH),
        Failure::Lines(refusal) => return lines(*refusal),
    };
    let reason = match &error {
        RequestError::Unavailable { reason, .. } => Some(*reason),
        _ => None,
    };
    (shaped(error.status(), error.code(), error.message(), reason), error.message().to_owned())
}

fn said(status: u16, code: &str, message: &str) -> (Response, String) {
    (shaped(status, code, message, None), message.to_owned())
}

/// What was stored and what was refused: the text for those who read one, line by line for those who read more.
fn lines(refusal: Refusal) -> (Response, String) {
    let data =
        refusal.details.iter().map(|d| LineBody { original_line: &d.original, line_number: d.line, error_message: &d.message }).collect();
    let body = ErrorBody {
        error: &refusal.text,
        code: refusal.code,
        message: &refusal.text,
        line: refusal.details.first().map(|d| d.line),
        data: Some(data),
        ..ErrorBody::default()
    };
    let mut response = json(refusal.status, &body);
    super::write::mark(&mut response, refusal.sequence, refusal.replayed);
    super::lines::mark_comments(&mut response, refusal.comments);
    (response, refusal.text)
}

fn shaped(status: u16, code: &str, message: &str, reason: Option<Reason>) -> Response {
    let body = ErrorBody { error: message, code, message, reason: reason.map(Reason::word), ..ErrorBody::default() };
    let mut response = json(status, &body);
    if let Some(reason) = reason {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(reason.retry_after()));
    }
    response
}

fn refused(status: u16, code: &str, message: &str, valid: Option<bool>) -> Response {
    let mut response = json(status, &ErrorBody { error: message, code, message, success: Some(false), valid, ..ErrorBody::default() });
    if status == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"arc\""));
    }
    response
}

/// A JSON answer.
pub(super) fn json(status: u16, body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Failure {
    /// The reason under which it is counted.
    pub(super) fn counted_as(&self) -> Rejected {
        match self {
            Failure::InFlight => Rejected::InFlight,
            Failure::Lines(refusal) if refusal.sequence.is_some() => Rejected::PartialWrite,
            Failure::Lines(_) => Rejected::Invalid,
            Failure::Unauthorized(_) | Failure::NotVerified(_) => Rejected::Unauthorized,
            Failure::Forbidden(_) => Rejected::Forbidden,
            Failure::NotFound | Failure::NoSuch(_) => Rejected::NotFound,
            Failure::MethodNotAllowed => Rejected::MethodNotAllowed,
            Failure::UnsupportedEncoding(_) => Rejected::UnsupportedEncoding,
            Failure::LengthRequired => Rejected::LengthRequired,
            Failure::Panicked => Rejected::Internal,
            Failure::Request(e) => match e {
                RequestError::Invalid(_) => Rejected::Invalid,
                RequestError::TooLarge(_) => Rejected::TooLarge,
                RequestError::KeyReused(_) => Rejected::KeyReused,
                RequestError::Internal(_) => Rejected::Internal,
                RequestError::Unavailable { reason, .. } => match reason {
                    Reason::NotStored => Rejected::NotStored,
                    Reason::UnknownOutcome => Rejected::UnknownOutcome,
                    Reason::Backlog => Rejected::Backlog,
                    Reason::DiskFull => Rejected::DiskFull,
                    Reason::Poisoned => Rejected::Poisoned,
                    Reason::Recovering => Rejected::Recovering,
                    Reason::Shutdown => Rejected::Shutdown,
                    Reason::Paused => Rejected::Paused,
                    Reason::Damaged => Rejected::Damaged,
                },
            },
        }
    }
}
