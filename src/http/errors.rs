//! From what went wrong to an answer, in one place.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;

use super::RequestId;
use crate::error::{Reason, RequestError};
use crate::metrics::{Metrics, Rejected};

/// Why a request has no success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// Said by the backend, or by a check of the request's head.
    Request(RequestError),
    /// No token, or none that is live.
    Unauthorized(&'static str),
    /// The same, to a client that asked whether its token is one.
    NotVerified(&'static str),
    /// A live token that may not do this.
    Forbidden(String),
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
    /// Of refusals for want of a right, as Arc has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    success: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid: Option<bool>,
}

/// The answer to a failure, counted and, for a bug of ours, logged.
pub(super) fn response(failure: Failure, id: &RequestId, metrics: &Metrics) -> Response {
    let counted = counted_as(&failure);
    metrics.reject(counted);
    let error = match failure {
        Failure::Request(e) => e,
        Failure::InFlight => RequestError::unavailable(Reason::NotStored, "too many bytes of requests in flight; send it again"),
        Failure::Panicked => RequestError::Internal(format!("internal error; the log has it under request id {id}")),
        Failure::Unauthorized(why) => return refused(401, "unauthorized", why, None),
        Failure::NotVerified(why) => return refused(401, "unauthorized", why, Some(false)),
        Failure::Forbidden(why) => return refused(403, "forbidden", &why, None),
        Failure::NoSuch(what) => return shaped(404, "not found", &what, None),
        Failure::NotFound => return shaped(404, "not found", "no such path", None),
        Failure::MethodNotAllowed => return shaped(405, "method not allowed", "the method is not allowed for this path", None),
    };
    let reason = match &error {
        RequestError::Unavailable { reason, .. } => Some(*reason),
        _ => None,
    };
    if let RequestError::Internal(message) = &error {
        tracing::error!(request_id = %id, %message, "internal error");
    }
    shaped(error.status(), error.code(), error.message(), reason)
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

fn counted_as(failure: &Failure) -> Rejected {
    match failure {
        Failure::InFlight => Rejected::InFlight,
        Failure::Unauthorized(_) | Failure::NotVerified(_) => Rejected::Unauthorized,
        Failure::Forbidden(_) => Rejected::Forbidden,
        Failure::NotFound | Failure::NoSuch(_) => Rejected::NotFound,
        Failure::MethodNotAllowed => Rejected::MethodNotAllowed,
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
            },
        },
    }
}
