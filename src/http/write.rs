//! The MessagePack route, and what all writes share: what the head of a request says, then the body, then the backend.

use axum::body::Body;
use axum::http::header::HeaderName;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;

use super::errors::Failure;
use super::routes::Call;
use super::{App, Backend, WriteRequest, ops, printable};
use crate::batch::check_database_name;
use crate::error::RequestError;
use crate::limits::MAX_IDEMPOTENCY_KEY;
use crate::types::{Sequence, TimeUnit};

const X_ARC_DATABASE: HeaderName = HeaderName::from_static("x-arc-database");
const X_ARC_TIME_UNIT: HeaderName = HeaderName::from_static("x-arc-time-unit");
const X_ARC_SEQUENCE: HeaderName = HeaderName::from_static("x-arc-sequence");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// `POST /api/v1/write/msgpack`
pub(super) async fn msgpack<B: Backend>(app: &App<B>, call: &mut Call) -> Result<Response, Failure> {
    let database = database(call, Some("default"))?;
    let time_unit = time_unit(&call.head.headers)?;
    let idempotency_key = idempotency_key(&call.head.headers)?;
    app.backend.before_body()?;

    let (body, share) = call.body.read(app).await?;
    app.metrics.ingest_bytes_total.increment(body.len() as u64);
    let request = WriteRequest { database, time_unit, idempotency_key, body, layers: call.body.layers(), request_id: call.id.clone() };
    let outcome = app.backend.write_msgpack(request).await;
    drop(share);

    let outcome = outcome?;
    Ok(stored(outcome.sequence, outcome.replayed))
}

/// 204, with what it is known by.
pub(super) fn stored(sequence: Option<Sequence>, replayed: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    mark(&mut response, sequence, replayed);
    response
}

/// Says which record holds the rows, and whether an earlier request made it.
pub(super) fn mark(response: &mut Response, sequence: Option<Sequence>, replayed: bool) {
    if let Some(sequence) = sequence {
        response.headers_mut().insert(X_ARC_SEQUENCE, HeaderValue::from(sequence));
    }
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
}

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::Invalid(message.into())
}

/// The one value of a header, if there is one.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, RequestError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(invalid(format!("the header {name} is there more than once"))),
        (value, None) => Ok(value),
    }
}

fn text<'a>(value: &'a HeaderValue, name: &HeaderName) -> Result<&'a str, RequestError> {
    value.to_str().map_err(|_| invalid(format!("the header {name} is not ASCII text")))
}

/// The header, else `db`, else `bucket` up to its first `/`, else `otherwise`; only one that the request's token may touch.
pub(super) fn database(call: &mut Call, otherwise: Option<&str>) -> Result<String, Failure> {
    let name = match single(&call.head.headers, &X_ARC_DATABASE)? {
        Some(value) => text(value, &X_ARC_DATABASE)?.to_owned(),
        None => {
            let mut query = ops::query(&call.head.uri)?;
            let mut take = |key: &str| query.iter().position(|(k, _)| k == key).map(|at| query.swap_remove(at).1);
            match take("db").or_else(|| take("bucket").map(without_policy)).or_else(|| otherwise.map(str::to_owned)) {
                Some(name) => name,
                None => {
                    return Err(invalid("no database is named: expected the header x-arc-database or the parameter db (v2: bucket)").into());
                }
            }
        }
    };
    check_database_name(&name)?;
    call.database = Some(name.clone());
    call.grant.database(&name)?;
    Ok(name)
}

/// The database of a bucket such as `telegraf/autogen`: InfluxDB 1.8 takes what stands behind the `/` for a retention policy, which is ignored
/// here as `rp` is.
fn without_policy(mut bucket: String) -> String {
    if let Some(at) = bucket.find('/').filter(|at| *at > 0) {
        bucket.truncate(at);
    }
    bucket
}

fn time_unit(headers: &HeaderMap) -> Result<Option<TimeUnit>, RequestError> {
    let Some(value) = single(headers, &X_ARC_TIME_UNIT)? else { return Ok(None) };
    match TimeUnit::parse(text(value, &X_ARC_TIME_UNIT)?) {
        Some(unit) => Ok(Some(unit)),
        None => Err(invalid("the header x-arc-time-unit must be one of s, ms, us, ns")),
    }
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, RequestError> {
    let Some(value) = single(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    match value.to_str() {
        Ok(key) if printable(value.as_bytes(), MAX_IDEMPOTENCY_KEY) => Ok(Some(key.to_owned())),
        _ => Err(invalid(format!("Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII bytes"))),
    }
}
