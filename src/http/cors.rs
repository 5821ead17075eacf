//! Cross-origin requests: what browsers ask before a page of another origin may write, and what they must read in the answer.
//!
//! Off unless `server.cors_origins` names origins. A preflight carries no token; the write that follows it is checked as any other.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, ORIGIN, VARY,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;

use super::routes::{ROUTES, Tier};

/// What a page may send beside the headers that are always allowed.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-encoding, content-type, idempotency-key, x-api-key, x-arc-database, x-arc-time-unit, x-request-id",
);
/// What a page may read of an answer.
const ANSWER_HEADERS: HeaderValue =
    HeaderValue::from_static("idempotency-replayed, retry-after, x-arc-sequence, x-influxdb-error, x-influxdb-version, x-request-id");
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origins that may write.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origins {
    any: bool,
    named: Vec<String>,
}

impl Origins {
    /// The origins of a list that the configuration has checked: separated by commas or spaces, `*` for any.
    pub fn of(list: &str) -> Self {
        let entries = || list.split([',', ' ']).filter(|e| !e.is_empty());
        Self { any: entries().any(|e| e == "*"), named: entries().map(str::to_owned).collect() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.any && self.named.is_empty()
    }

    fn allowed<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok()?;
        (self.any || self.named.iter().any(|o| o.eq_ignore_ascii_case(text))).then_some(origin)
    }

    /// The answer to a preflight for a route that writes, or that clients ask before they write.
    pub(super) fn preflight(&self, head: &Parts) -> Option<Response> {
        if head.method != Method::OPTIONS || !head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) || !is_for_writers(head.uri.path()) {
            return None;
        }
        self.allowed(&head.headers)?;
        let mut methods: Vec<&str> = ROUTES.iter().filter(|r| r.path == head.uri.path()).map(|r| r.method.as_str()).collect();
        methods.push("OPTIONS");
        let methods = HeaderValue::from_str(&methods.join(", ")).ok()?;
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ALLOW, methods.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        Some(response)
    }

    /// Lets a page of an allowed origin read the answer.
    pub(super) fn mark(&self, head: &Parts, answer: &mut HeaderMap) {
        if self.is_empty() || !is_for_writers(head.uri.path()) {
            return;
        }
        // The answer differs by origin also where there is none.
        answer.append(VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = self.allowed(&head.headers) {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
    }
}

fn is_for_writers(path: &str) -> bool {
    ROUTES.iter().any(|r| r.path == path && (r.tier == Tier::Write || matches!(path, "/ping" | "/query" | "/health")))
}
