//! A store that speaks S3, in memory, in the place of the network: the real client on one side, faults by a schedule on the other.
//!
//! Its objects are those of a [`SimStore`], so that whoever looks at a lake there finds them. Nothing here reads a clock, draws a random
//! number or starts a thread: with [`super::Driver::here`] and a paused clock a run can be repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{CONTENT_LENGTH, ETAG, IF_NONE_MATCH, LAST_MODIFIED};
use hyper::{Method, Response, StatusCode};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};

use super::super::SimStore;
use super::http::element;
use crate::metrics::StoreOp;

/// One request, before anything of it is done.
#[derive(Clone, Copy, Debug)]
pub struct WireOp<'a> {
    /// Counts all requests from 0.
    pub number: u64,
    pub op: StoreOp,
    /// The key; a prefix for [`StoreOp::List`].
    pub key: &'a str,
}

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireFault {
    /// Nothing is done; this is the answer. The code is empty where a proxy answers, not the store.
    Answers(u16, &'static str),
    /// It is done, and this is the answer.
    AnswersAfter(u16, &'static str),
    /// 200, with an error in the body; nothing is done.
    ErrorBody,
    /// 200, with an error in the body; it is done all the same.
    ErrorBodyAfter,
    /// The connection breaks before anything is done.
    Refused,
    /// It is done; the connection breaks before the answer.
    ReplyLost,
    /// No answer ever; nothing is done.
    Hangs,
    /// No answer ever; it is done later: at [`SimS3::land`].
    Late,
    /// The answer breaks off in its body.
    CutAnswer,
    /// A store that keeps half of the body and answers 200.
    KeepsHalf,
}

#[derive(Clone, Debug)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, Bytes>,
}

/// One request as the store sees it.
#[derive(Clone, Debug)]
struct Wire {
    op: StoreOp,
    key: String,
    query: BTreeMap<String, String>,
    create_only: bool,
    body: Bytes,
}

type Schedule = Box<dyn FnMut(&WireOp<'_>) -> Option<WireFault> + Send>;
type Stall = Box<dyn FnMut(Duration) + Send>;

#[derive(Default)]
struct State {
    uploads: BTreeMap<String, Upload>,
    next_upload: u64,
    late: Vec<Wire>,
    requests: u64,
    /// By operation, for tests that count.
    by_op: BTreeMap<&'static str, u64>,
    overwrites_puts: bool,
    overwrites_completions: bool,
    /// Every so many puts that a name refuses, one replaces what is there.
    leaks_every: Option<u64>,
    refused_puts: u64,
}

struct Inner {
    store: SimStore,
    state: Mutex<State>,
    schedule: Mutex<Option<Schedule>>,
    stall: Mutex<Option<Stall>>,
}

/// How far simulated time goes on while a request hangs.
const HANGS_FOR: Duration = Duration::from_secs(30);
/// Uploads on one page of a list: few, so that there are several pages.
const PAGE: usize = 2;

/// A simulated S3. Clones are the same one.
#[derive(Clone)]
pub struct SimS3 {
    inner: Arc<Inner>,
}

impl fmt::Debug for SimS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.state();
        f.debug_struct("SimS3").field("uploads", &s.uploads.len()).field("requests", &s.requests).finish_non_exhaustive()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimS3 {
    /// The objects are those of `store`; its faults do not strike here.
    pub fn new(store: SimStore) -> Self {
        let inner = Inner { store, state: Mutex::default(), schedule: Mutex::new(None), stall: Mutex::new(None) };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    /// Where the objects are.
    pub fn store(&self) -> SimStore {
        self.inner.store.clone()
    }

    /// Asks `schedule` before every request what goes wrong with it.
    pub fn set_faults(&self, schedule: impl FnMut(&WireOp<'_>) -> Option<WireFault> + Send + 'static) {
        *lock(&self.inner.schedule) = Some(Box::new(schedule));
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        *lock(&self.inner.schedule) = None;
    }

    /// `stall` lets simulated time pass while a request hangs.
    pub fn set_stall(&self, stall: impl FnMut(Duration) + Send + 'static) {
        *lock(&self.inner.stall) = Some(Box::new(stall));
    }

    /// A store that ignores `If-None-Match` on puts, on completions, or on both.
    pub fn set_overwrites(&self, puts: bool, completions: bool) {
        let mut s = self.state();
        (s.overwrites_puts, s.overwrites_completions) = (puts, completions);
    }

    /// A store that checks for a name and writes afterwards: one in `every` puts that it should refuse replaces the object.
    pub fn set_leaks(&self, every: u64) {
        self.state().leaks_every = Some(every);
    }

    /// Uploads that are neither completed nor aborted, by key.
    pub fn uploads(&self) -> Vec<String> {
        self.state().uploads.values().map(|u| u.key.clone()).collect()
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Requests of one kind so far.
    pub fn requests_of(&self, op: StoreOp) -> u64 {
        self.state().by_op.get(op.word()).copied().unwrap_or(0)
    }

    /// Requests that were given up by their caller and are still on their way.
    pub fn late(&self) -> usize {
        self.state().late.len()
    }

    /// The `i`-th of [`Self::late`] arrives.
    pub fn land(&self, i: usize) {
        let wire = {
            let mut s = self.state();
            if i >= s.late.len() {
                return;
            }
            s.late.remove(i)
        };
        drop(self.carry_out(&wire));
    }

    fn carry_out(&self, w: &Wire) -> HttpResponse {
        let mut s = self.state();
        let objects = &self.inner.store;
        let upload_id = w.query.get("uploadId").cloned().unwrap_or_default();
        match w.op {
            StoreOp::Put => {
                if w.create_only && !s.overwrites_puts && objects.get(&w.key).is_some() {
                    s.refused_puts += 1;
                    if s.leaks_every.is_none_or(|n| !s.refused_puts.is_multiple_of(n)) {
                        return answer(412, "PreconditionFailed");
                    }
                }
                objects.appear(&w.key, w.body.as_ref().into());
                tagged(&w.body)
            }
            StoreOp::Head | StoreOp::Get | StoreOp::Read => match objects.get(&w.key) {
                None => answer(404, "NoSuchKey"),
                Some(b) => {
                    let mut r = tagged(&b);
                    r.headers_mut().insert(CONTENT_LENGTH, b.len().into());
                    if w.op != StoreOp::Head {
                        *r.body_mut() = Bytes::copy_from_slice(&b).into();
                    }
                    r
                }
            },
            StoreOp::Delete => {
                objects.remove(&w.key);
                plain(StatusCode::NO_CONTENT, String::new())
            }
            StoreOp::Begin => {
                s.next_upload += 1;
                let id = format!("upload-{:06}", s.next_upload);
                s.uploads.insert(id.clone(), Upload { key: w.key.clone(), parts: BTreeMap::new() });
                let xml = format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
                plain(StatusCode::OK, xml)
            }
            StoreOp::Part => {
                let n = w.query.get("partNumber").and_then(|n| n.parse().ok()).unwrap_or(0);
                match s.uploads.get_mut(&upload_id).filter(|u| u.key == w.key) {
                    None => answer(404, "NoSuchUpload"),
                    Some(u) => {
                        u.parts.insert(n, w.body.clone());
                        tagged(&w.body)
                    }
                }
            }
            StoreOp::Complete => {
                let Some(u) = s.uploads.get(&upload_id).filter(|u| u.key == w.key) else { return answer(404, "NoSuchUpload") };
                if w.create_only && !s.overwrites_completions && objects.get(&w.key).is_some() {
                    return answer(412, "PreconditionFailed");
                }
                let mut whole = Vec::new();
                for piece in String::from_utf8_lossy(&w.body).split("<Part>").skip(1) {
                    let n: Option<u32> = element(piece, "PartNumber").and_then(|n| n.parse().ok());
                    let (Some(part), Some(tag)) = (n.and_then(|n| u.parts.get(&n)), element(piece, "ETag")) else {
                        return answer(400, "InvalidPart");
                    };
                    if tag != etag(part) {
                        return answer(400, "InvalidPart");
                    }
                    whole.extend_from_slice(part);
                }
                s.uploads.remove(&upload_id);
                objects.appear(&w.key, whole.as_slice().into());
                let xml = format!("<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>", etag(&whole));
                plain(StatusCode::OK, xml)
            }
            StoreOp::Abort => match s.uploads.remove(&upload_id) {
                None => answer(404, "NoSuchUpload"),
                Some(_) => plain(StatusCode::NO_CONTENT, String::new()),
            },
            StoreOp::List if w.query.contains_key("list-type") => plain(StatusCode::OK, list_objects(objects, w)),
            StoreOp::List => plain(StatusCode::OK, list(&s, w)),
        }
    }
}

/// Every object after a name, on one page.
fn list_objects(objects: &SimStore, w: &Wire) -> String {
    let after = w.query.get("start-after").map_or("", String::as_str);
    let entry = |k: &str, b: &[u8]| {
        let (len, tag) = (b.len(), etag(b));
        format!(
            "<Contents><Key>{k}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{tag}</ETag><Size>{len}</Size></Contents>"
        )
    };
    let found: String =
        objects.objects().iter().filter(|(k, _)| k.starts_with(&w.key) && k.as_str() > after).map(|(k, b)| entry(k, b)).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")
}

/// One page of the uploads, in the order of key and id.
fn list(s: &State, w: &Wire) -> String {
    let mut all: Vec<(&str, &str)> = s.uploads.iter().map(|(id, u)| (u.key.as_str(), id.as_str())).collect();
    all.sort_unstable();
    let after = w.query.get("key-marker").map(|k| (k.as_str(), w.query.get("upload-id-marker").map_or("", String::as_str)));
    all.retain(|x| x.0.starts_with(&w.key) && after.is_none_or(|a| *x > a));
    let page = all.get(..all.len().min(PAGE)).unwrap_or_default();
    let uploads: String = page.iter().map(|(k, id)| format!("<Upload><Key>{k}</Key><UploadId>{id}</UploadId></Upload>")).collect();
    let next = match page.last() {
        Some((k, id)) if page.len() < all.len() => {
            format!("<IsTruncated>true</IsTruncated><NextKeyMarker>{k}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>")
        }
        _ => "<IsTruncated>false</IsTruncated>".into(),
    };
    format!("<ListMultipartUploadsResult>{next}{uploads}</ListMultipartUploadsResult>")
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{:08x}-{}\"", crc32fast::hash(bytes), bytes.len())
}

fn plain(status: StatusCode, body: String) -> HttpResponse {
    let mut r = Response::new(body.into());
    *r.status_mut() = status;
    r
}

fn tagged(bytes: &[u8]) -> HttpResponse {
    let mut r = plain(StatusCode::OK, String::new());
    if let Ok(tag) = etag(bytes).parse() {
        r.headers_mut().insert(ETAG, tag);
    }
    r.headers_mut().insert(LAST_MODIFIED, hyper::header::HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT"));
    r
}

fn error_body(code: &str) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>simulated</Message></Error>")
}

fn answer(status: u16, code: &str) -> HttpResponse {
    let body = if code.is_empty() { "<html>bad gateway</html>".into() } else { error_body(code) };
    plain(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
}

fn broken(kind: HttpErrorKind, what: &str) -> HttpError {
    HttpError::new(kind, io::Error::new(io::ErrorKind::ConnectionReset, format!("simulated: {what}")))
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let hex = |c: Option<u8>| c.and_then(|c| (c as char).to_digit(16)).unwrap_or(0) as u8;
        out.push(if b == b'%' { (hex(bytes.next()) << 4) | hex(bytes.next()) } else { b });
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn wire(request: HttpRequest) -> Wire {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (decoded(k), decoded(v)))
        .collect();
    // The first part of the path is the bucket.
    let key = parts.uri.path().trim_start_matches('/').split_once('/').map_or_else(String::new, |(_, k)| decoded(k));
    let has = |k: &str| query.contains_key(k);
    let op = match parts.method {
        Method::POST if has("uploads") => StoreOp::Begin,
        Method::POST => StoreOp::Complete,
        Method::PUT if has("uploadId") => StoreOp::Part,
        Method::PUT => StoreOp::Put,
        Method::DELETE if has("uploadId") => StoreOp::Abort,
        Method::DELETE => StoreOp::Delete,
        Method::HEAD => StoreOp::Head,
        _ if has("uploads") || has("list-type") => StoreOp::List,
        _ => StoreOp::Get,
    };
    let key = if op == StoreOp::List { query.get("prefix").cloned().unwrap_or_default() } else { key };
    let create_only = parts.headers.get(IF_NONE_MATCH).is_some_and(|v| v == "*");
    Wire { op, key, query, create_only, body }
}

#[async_trait]
impl HttpService for SimS3 {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut w = wire(request).await;
        let number = {
            let mut s = self.state();
            s.requests += 1;
            *s.by_op.entry(w.op.word()).or_insert(0) += 1;
            s.requests - 1
        };
        let fault = lock(&self.inner.schedule).as_mut().and_then(|f| f(&WireOp { number, op: w.op, key: &w.key }));
        if matches!(fault, Some(WireFault::Hangs | WireFault::Late))
            && let Some(stall) = lock(&self.inner.stall).as_mut()
        {
            stall(HANGS_FOR);
        }
        match fault {
            None => Ok(self.carry_out(&w)),
            Some(WireFault::Answers(status, code)) => Ok(answer(status, code)),
            Some(WireFault::AnswersAfter(status, code)) => {
                drop(self.carry_out(&w));
                Ok(answer(status, code))
            }
            Some(WireFault::ErrorBody) => Ok(plain(StatusCode::OK, error_body("InternalError"))),
            Some(WireFault::ErrorBodyAfter) => {
                drop(self.carry_out(&w));
                Ok(plain(StatusCode::OK, error_body("InternalError")))
            }
            Some(WireFault::Refused) => Err(broken(HttpErrorKind::Connect, "refused")),
            Some(WireFault::ReplyLost) => {
                drop(self.carry_out(&w));
                Err(broken(HttpErrorKind::Interrupted, "reset"))
            }
            Some(WireFault::Hangs) => std::future::pending().await,
            Some(WireFault::Late) => {
                self.state().late.push(w);
                std::future::pending().await
            }
            Some(WireFault::CutAnswer) => {
                let mut r = self.carry_out(&w);
                let whole = std::mem::replace(r.body_mut(), Bytes::new().into());
                let whole = whole.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                *r.body_mut() = whole.slice(..whole.len() / 2).into();
                Ok(r)
            }
            Some(WireFault::KeepsHalf) => {
                w.body.truncate(w.body.len() / 2);
                Ok(self.carry_out(&w))
            }
        }
    }
}

impl HttpConnector for SimS3 {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}
