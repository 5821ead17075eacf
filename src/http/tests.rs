//! The server against a mock backend, over real sockets and raw bytes.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::decode::line_protocol::{Empty, LineOptions, Precision, Report, decode};
use crate::decode::table::Bounds;
use crate::error::Reason;

mod lines;
mod auth;
mod room;
mod routes;

/// Does what the body of a write says.
#[derive(Default)]
pub(super) struct Mock {
    seen: Mutex<Vec<WriteRequest>>,
    lines: Mutex<Vec<LineRequest>>,
    refuse: Mutex<Option<RequestError>>,
    flush: Mutex<Option<(FlushOutcome, Duration)>>,
    not_ready: AtomicBool,
    status_len: Mutex<usize>,
}

impl Backend for Mock {
    fn before_body(&self) -> Result<(), RequestError> {
        self.refuse.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn write_msgpack(&self, request: WriteRequest) -> Result<WriteOutcome, RequestError> {
        let body = request.body.clone();
        self.seen.lock().unwrap().push(request);
        let sequence = Some(7);
        match &body[..] {
            b"nothing" => Ok(WriteOutcome { sequence: None, replayed: false }),
            b"replay" => Ok(WriteOutcome { sequence, replayed: true }),
            b"invalid" => Err(RequestError::Invalid("no such thing".into())),
            b"large" => Err(RequestError::TooLarge("inflated".into())),
            b"reused" => Err(RequestError::KeyReused("other body".into())),
            b"internal" => Err(RequestError::Internal("a bug".into())),
            b"full" => Err(RequestError::unavailable(Reason::DiskFull, "no room")),
            b"panic" => panic!("the mock was told to"),
            b"slow" => {
                sleep(Duration::from_millis(400)).await;
                Ok(WriteOutcome { sequence, replayed: false })
            }
            b"stuck" => std::future::pending().await,
            _ => Ok(WriteOutcome { sequence, replayed: false }),
        }
    }

    async fn write_lines(&self, request: LineRequest) -> Result<LineOutcome, RequestError> {
        let mut report = Report::default();
        let (mut sequence, mut replayed) = (Some(7), false);
        match &request.body[..] {
            b"invalid" => return Err(RequestError::Invalid("no such thing".into())),
            b"full" => return Err(RequestError::unavailable(Reason::DiskFull, "no room")),
            b"" => sequence = None,
            b"replay" => replayed = true,
            _ => {}
        }
        if request.body.ends_with(b"bad") || request.body.ends_with(b"conflict") {
            let options = LineOptions {
                receive_time_us: 0,
                precision: request.precision,
                hive_names: true,
                large_unsigned: crate::types::LargeUnsigned::Refuse,
                bounds: Bounds { max_columns: 9, max_tables: 9, max_partitions: 9, max_bytes: 999 },
            };
            report = decode(&request.body, &options, &Empty).unwrap().report;
            sequence = sequence.filter(|_| request.accept_partial && report.bad < report.lines);
        }
        let status = request.dialect.status(&report);
        self.lines.lock().unwrap().push(request);
        Ok(LineOutcome { sequence, replayed, status, report })
    }

    async fn flush(&self, timeout: Duration) -> FlushOutcome {
        let mut flush = self.flush.lock().unwrap();
        let outcome = flush.take().map_or(FlushOutcome::Done { files: 2, rows: 30, through_seq: 9 }, |f| f.0);
        *flush = Some((outcome.clone(), timeout));
        outcome
    }

    fn databases(&self) -> Vec<String> {
        Vec::new()
    }

    fn status(&self, _: TablePage) -> Value {
        json!({"version": "x".repeat((*self.status_len.lock().unwrap()).max(1))})
    }

    fn readiness(&self) -> Readiness {
        if self.not_ready.load(Ordering::Relaxed) {
            Readiness { ready: false, reason: Some("recovering".into()), progress: Some(json!({"segments": 3})) }
        } else {
            Readiness { ready: true, ..Readiness::default() }
        }
    }

    fn spec(&self) -> Value {
        json!({"spec": true})
    }

    fn stats(&self) -> Value {
        json!({"stats": true})
    }
}

struct Running {
    addr: std::net::SocketAddr,
    backend: Arc<Mock>,
    metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Served>,
}

async fn start(change: impl FnOnce(&mut Settings)) -> Running {
    start_with(change, None).await
}

async fn start_with(change: impl FnOnce(&mut Settings), tokens: Option<Arc<Tokens>>) -> Running {
    let mut settings = Settings { shutdown_timeout: Duration::from_secs(5), ..Settings::default() };
    change(&mut settings);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (backend, metrics) = (Arc::new(Mock::default()), Metrics::new());
    let app = App::with_tokens(Arc::clone(&backend), Arc::clone(&metrics), settings, tokens);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve(listener, app, async {
        let _ = stopped.await;
    }));
    Running { addr, backend, metrics, stop: Some(stop), task }
}

impl Running {
    async fn client(&self) -> Client {
        Client { socket: TcpStream::connect(self.addr).await.unwrap(), buf: Vec::new() }
    }

    /// One request on a connection of its own.
    async fn once(&self, request: &str) -> Answer {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer(request.starts_with("HEAD")).await.unwrap()
    }

    fn last(&self) -> WriteRequest {
        self.backend.seen.lock().unwrap().last().unwrap().clone()
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{}", self.metrics.render());
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    fn metric(&self, line: &str) -> bool {
        let text = self.metrics.render();
        text.lines().any(|l| l == line)
    }
}

struct Client {
    socket: TcpStream,
    buf: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    version: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The common shape of an error.
    fn assert_error(&self, status: u16, code: &str, reason: Option<&str>) {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], code);
        assert_eq!(body["error"], body["message"]);
        assert!(!body["error"].as_str().unwrap().is_empty());
        assert_eq!(body.get("reason").and_then(Value::as_str), reason);
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.header("retry-after").is_some(), status == 503, "{self:?}");
        if let Some(after) = self.header("retry-after") {
            assert!(after.parse::<u32>().unwrap() >= 1);
        }
        assert!(self.header("x-request-id").is_some());
    }
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer; `None` when the connection ends first.
    async fn answer(&mut self, head_only: bool) -> Option<Answer> {
        timeout(Duration::from_secs(60), self.read_answer(head_only)).await.expect("an answer or the end within a minute")
    }

    async fn read_answer(&mut self, head_only: bool) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await {
                assert!(self.buf.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.buf));
                return None;
            }
        };
        let head = String::from_utf8(self.buf.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap().split(' ');
        let version = first.next().unwrap().to_owned();
        let status = first.next().unwrap().parse().unwrap();
        let headers: Vec<_> = lines.map(|l| l.split_once(": ").unwrap()).map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())).collect();
        let mut answer = Answer { status, version, headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |v| v.parse().unwrap());
        if !head_only {
            while self.buf.len() < length {
                assert!(self.more().await, "half a body");
            }
            answer.body = self.buf.drain(..length).collect();
        }
        Some(answer)
    }

    async fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.socket.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                true
            }
        }
    }

    async fn post(&mut self, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        self.send(post(headers, body)).await;
        self.answer(false).await.unwrap()
    }
}

fn post(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request =
        format!("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request
}

const CHUNKED: &str = "POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[tokio::test]
async fn a_write_is_204_with_its_sequence() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    let answer = client.post("", "rows").await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(answer.header("x-arc-sequence"), Some("7"));
    assert_eq!(answer.header("idempotency-replayed"), None);
    assert_eq!(answer.header("content-length"), None);
    let request = server.last();
    assert_eq!(request.database, "default");
    assert_eq!(request.time_unit, None);
    assert_eq!(request.idempotency_key, None);
    assert_eq!(&request.body[..], b"rows");

    let answer = client.post("", "nothing").await;
    assert_eq!((answer.status, answer.header("x-arc-sequence")), (204, None));
    let answer = client.post("Idempotency-Key: a b\r\n", "replay").await;
    assert_eq!((answer.status, answer.header("x-arc-sequence")), (204, Some("7")));
    assert_eq!(answer.header("idempotency-replayed"), Some("true"));
    assert_eq!(server.last().idempotency_key.as_deref(), Some("a b"));
    assert!(server.metric("arc_http_requests_total{route=\"write_msgpack\",status=\"2xx\"} 3"));
    assert!(server.metric("arc_http_in_flight_bytes 0"));
    assert!(server.metric("arc_http_connections 1"));
    assert!(server.metric("arc_http_request_seconds_count{route=\"write_msgpack\"} 3"));
}

#[tokio::test]
async fn errors_have_one_shape() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.post("", "invalid").await.assert_error(400, "invalid", None);
    client.post("", "large").await.assert_error(413, "request too large", None);
    client.post("", "reused").await.assert_error(422, "unprocessable entity", None);
    client.post("", "internal").await.assert_error(500, "internal error", None);
    client.post("", "full").await.assert_error(503, "unavailable", Some("disk_full"));
    client.send(get("/nowhere")).await;
    client.answer(false).await.unwrap().assert_error(404, "not found", None);
    assert!(server.metric("arc_http_rejected_total{reason=\"disk_full\"} 1"));
    assert!(server.metric("arc_http_rejected_total{reason=\"not_found\"} 1"));
    assert!(server.metric("arc_http_requests_total{route=\"other\",status=\"4xx\"} 1"));
}

#[tokio::test]
async fn a_panic_is_500_and_the_server_goes_on() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    let answer = client.post("X-Request-Id: find-me\r\n", "panic").await;
    answer.assert_error(500, "internal error", None);
    assert!(answer.json()["error"].as_str().unwrap().contains("find-me"));
    assert_eq!(client.post("", "rows").await.status, 204, "the same connection");
    assert!(server.metric("arc_http_panics_total 1"));
    assert!(server.metric("arc_http_in_flight_bytes 0"), "the share was given back");
}

#[tokio::test]
async fn the_database_comes_from_the_header_then_the_query() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    for (target, header, want) in [
        ("", "", "default"),
        ("?db=one", "", "one"),
        ("?bucket=two", "", "two"),
        ("?bucket=two&db=one", "", "one"),
        ("?db=a%5Fb", "", "a_b"),
        ("?db=one", "X-Arc-Database: three\r\n", "three"),
    ] {
        client.send(format!("POST /api/v1/write/msgpack{target} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 4\r\n\r\nrows")).await;
        assert_eq!(client.answer(false).await.unwrap().status, 204, "{target} {header}");
        assert_eq!(server.last().database, want, "{target} {header}");
    }
    for header in ["X-Arc-Database: 1a", "X-Arc-Database: ", "X-Arc-Database: a/b", "X-Arc-Database: a\r\nX-Arc-Database: b"] {
        client.post(&format!("{header}\r\n"), "rows").await.assert_error(400, "invalid", None);
    }
    client.send("POST /api/v1/write/msgpack?db= HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nrows").await;
    client.answer(false).await.unwrap().assert_error(400, "invalid", None);
    assert_eq!(client.post("", "rows").await.status, 204, "the connection is still good");
}

#[tokio::test]
async fn time_units_and_keys_are_checked() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    for (word, unit) in [("s", TimeUnit::Seconds), ("ms", TimeUnit::Millis), ("us", TimeUnit::Micros), ("ns", TimeUnit::Nanos)] {
        assert_eq!(client.post(&format!("x-arc-time-unit: {word}\r\n"), "rows").await.status, 204);
        assert_eq!(server.last().time_unit, Some(unit));
    }
    let longest = "k".repeat(128);
    assert_eq!(client.post(&format!("Idempotency-Key: {longest}\r\n"), "rows").await.status, 204);
    assert_eq!(server.last().idempotency_key, Some(longest));
    let before = server.backend.seen.lock().unwrap().len();
    for header in [
        "x-arc-time-unit: m\r\n".to_owned(),
        "x-arc-time-unit: s\r\nx-arc-time-unit: s\r\n".to_owned(),
        "Idempotency-Key:\r\n".to_owned(),
        format!("Idempotency-Key: {}\r\n", "k".repeat(129)),
        "Idempotency-Key: caf\u{e9}\r\n".to_owned(),
        "Idempotency-Key: a\tb\r\n".to_owned(),
        "Idempotency-Key: a\r\nIdempotency-Key: a\r\n".to_owned(),
    ] {
        client.post(&header, "rows").await.assert_error(400, "invalid", None);
    }
    assert_eq!(server.backend.seen.lock().unwrap().len(), before, "nothing reached the backend");
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    assert_eq!(client.post("X-Request-Id: abc-1\r\n", "rows").await.header("x-request-id"), Some("abc-1"));
    assert_eq!(server.last().request_id.as_str(), "abc-1");
    let mut seen = HashSet::new();
    for header in [String::new(), "X-Request-Id: \r\n".into(), format!("X-Request-Id: {}\r\n", "x".repeat(129)), String::new()] {
        let id = client.post(&header, "rows").await.header("x-request-id").unwrap().to_owned();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 4, "{id}");
        assert!(seen.insert(id));
    }
    client.send(get("/nowhere")).await;
    assert!(client.answer(false).await.unwrap().header("x-request-id").is_some());
}

#[tokio::test]
async fn refused_before_the_body() {
    let server = start(|_| {}).await;
    *server.backend.refuse.lock().unwrap() = Some(RequestError::unavailable(Reason::Poisoned, "restart me"));
    let mut client = server.client().await;
    client.post("", "rows").await.assert_error(503, "unavailable", Some("poisoned"));
    client.post("", vec![0; 500_000]).await.assert_error(503, "unavailable", Some("poisoned"));
    // More than is worth reading: the answer comes, then the connection ends.
    client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\nrows").await;
    let answer = client.answer(false).await.unwrap();
    answer.assert_error(503, "unavailable", Some("poisoned"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.answer(false).await.is_none());
    // The same to one that writes everything before it reads.
    let mut client = server.client().await;
    client.post("", vec![0; 20 << 20]).await.assert_error(503, "unavailable", Some("poisoned"));
    assert!(server.backend.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_declared_body_over_the_limit_is_413() {
    let server = start(|s| s.max_payload_size = 1000).await;
    let mut client = server.client().await;
    assert_eq!(client.post("", vec![b'x'; 1000]).await.status, 204);
    client.post("", vec![b'x'; 1001]).await.assert_error(413, "request too large", None);
    assert_eq!(client.post("", "rows").await.status, 204, "a little too much does not cost the connection");

    // A client that writes everything before it reads: more than the sockets hold, less than is thrown away.
    let mut client = server.client().await;
    client.post("", vec![b'x'; 1 << 20]).await.assert_error(413, "request too large", None);
    let mut client = server.client().await;
    client.send(format!("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 2 << 20)).await;
    // A reset in answer to one piece would fail the next.
    for _ in 0..9 {
        client.send(vec![b'x'; 100_000]).await;
        sleep(Duration::from_millis(20)).await;
    }
    let answer = client.answer(false).await.unwrap();
    answer.assert_error(413, "request too large", None);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(server.metric("arc_http_rejected_total{reason=\"too_large\"} 3"));
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_413() {
    let server = start(|s| s.max_payload_size = 100_000).await;
    let mut client = server.client().await;
    client.send(CHUNKED).await;
    let chunk = [b"2710\r\n".to_vec(), vec![b'x'; 10_000], b"\r\n".to_vec()].concat();
    for _ in 0..60 {
        client.send(&chunk).await;
        sleep(Duration::from_millis(2)).await;
    }
    client.send("0\r\n\r\n").await;
    client.answer(false).await.unwrap().assert_error(413, "request too large", None);
    assert!(server.backend.seen.lock().unwrap().is_empty());
    assert!(server.metric("arc_http_in_flight_bytes 0"));
}

#[tokio::test]
async fn chunked_bodies() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.send([CHUNKED.as_bytes(), b"4\r\nrows\r\n0\r\n\r\n"].concat()).await;
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    assert_eq!(&server.last().body[..], b"rows");

    client.send(CHUNKED).await;
    let mut want = Vec::new();
    for i in 0..50u8 {
        let data = vec![i; 3000];
        client.send([b"bb8\r\n".to_vec(), data.clone(), b"\r\n".to_vec()].concat()).await;
        want.extend(data);
        if i % 16 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    client.send("0\r\nTrailer: x\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    assert_eq!(server.last().body, want);

    client.send([CHUNKED.as_bytes(), b"zz\r\nrows\r\n0\r\n\r\n"].concat()).await;
    client.answer(false).await.unwrap().assert_error(400, "invalid", None);
}

#[tokio::test]
async fn bodies_in_many_pieces_arrive_whole() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    let body: Vec<u8> = (0..700_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let request = post("", &body);
    for part in request.chunks(90_000) {
        client.send(part).await;
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    assert_eq!(server.last().body, body);
    let body = vec![b'y'; 65_536];
    for _ in 0..5 {
        assert_eq!(client.post("", &body).await.status, 204);
        assert_eq!(server.last().body, body);
    }
}

#[tokio::test]
async fn a_body_that_stalls_gets_no_answer() {
    let server = start(|s| s.stall_timeout = Duration::from_millis(250)).await;
    let mut client = server.client().await;
    let begun = Instant::now();
    client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nrows").await;
    assert!(client.answer(false).await.is_none());
    assert!(begun.elapsed() >= Duration::from_millis(240), "{:?}", begun.elapsed());
    server.until(|| server.metric("arc_http_rejected_total{reason=\"slow_body\"} 1")).await;
    assert!(server.metric("arc_http_in_flight_bytes 0"));
    assert!(server.backend.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_that_trickles_gets_no_answer() {
    let server = start(|s| s.read_timeout = Duration::from_millis(600)).await;
    let mut client = server.client().await;
    assert_eq!(client.post("", "rows").await.status, 204);
    let begun = Instant::now();
    client.send(CHUNKED).await;
    let mut ended = false;
    for _ in 0..80 {
        let _ = client.socket.write_all(b"1\r\nx\r\n").await;
        if timeout(Duration::from_millis(100), client.read_answer(false)).await.is_ok_and(|a| a.is_none()) {
            ended = true;
            break;
        }
    }
    assert!(ended);
    assert!(begun.elapsed() >= Duration::from_millis(590), "{:?}", begun.elapsed());
    server.until(|| server.metric("arc_http_rejected_total{reason=\"slow_body\"} 1")).await;
    assert!(server.metric("arc_http_in_flight_bytes 0"));
    assert_eq!(server.backend.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_body_cut_short_gets_no_answer() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nrows").await;
    client.socket.shutdown().await.unwrap();
    assert!(client.answer(false).await.is_none());
    server.until(|| server.metric("arc_http_rejected_total{reason=\"cut_body\"} 1")).await;
    assert!(server.backend.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn heads_are_timed() {
    let server = start(|s| s.header_timeout = Duration::from_millis(250)).await;
    let begun = Instant::now();
    let mut silent = server.client().await;
    let mut half = server.client().await;
    half.send("POST /api/v1/write/ms").await;
    assert!(silent.answer(false).await.is_none());
    assert!(half.answer(false).await.is_none());
    assert!(begun.elapsed() >= Duration::from_millis(240), "{:?}", begun.elapsed());
    // The second head of a connection has its time from its first byte, not the idle connection's.
    let mut client = server.client().await;
    assert_eq!(client.post("", "rows").await.status, 204);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(client.post("", "rows").await.status, 204, "idle for longer than a head may take");
    client.send("GET /hea").await;
    assert!(client.answer(false).await.is_none());
    server.until(|| server.metric("arc_http_rejected_total{reason=\"slow_header\"} 2")).await;
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let server = start(|s| s.idle_timeout = Duration::from_millis(250)).await;
    let mut client = server.client().await;
    assert_eq!(client.post("", "rows").await.status, 204);
    assert_eq!(client.post("", "slow").await.status, 204, "a handler at work is not idle");
    let begun = Instant::now();
    assert!(client.answer(false).await.is_none());
    assert!(begun.elapsed() >= Duration::from_millis(240), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn http_1_0() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.send("POST /api/v1/write/msgpack HTTP/1.0\r\nContent-Length: 4\r\n\r\nrows").await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.version.as_str()), (204, "HTTP/1.0"));
    assert!(client.answer(false).await.is_none(), "closed after it");
}

#[tokio::test]
async fn expect_100_continue() {
    let server = start(|s| s.max_payload_size = 1000).await;
    let mut client = server.client().await;
    client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 100);
    client.send("rows").await;
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    // Refused: no "100 Continue" before it.
    client.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n").await;
    client.answer(false).await.unwrap().assert_error(413, "request too large", None);
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.send(post("", "slow")).await;
    client.socket.shutdown().await.unwrap();
    assert_eq!(client.answer(false).await.unwrap().status, 204);
    assert!(client.answer(false).await.is_none());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    let requests = [post("", "slow"), get("/health").into_bytes(), post("", "invalid"), get("/nowhere").into_bytes()].concat();
    client.send(requests).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.answer(false).await.unwrap().status);
    }
    assert_eq!(statuses, [204, 200, 400, 404]);
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let server = start(|s| s.max_connections = 1).await;
    let mut first = server.client().await;
    assert_eq!(first.post("", "rows").await.status, 204);
    let mut second = server.client().await;
    second.send(get("/health")).await;
    assert!(timeout(Duration::from_millis(200), second.read_answer(false)).await.is_err(), "waits");
    drop(first);
    assert_eq!(second.answer(false).await.unwrap().status, 200);
}

#[tokio::test]
async fn shutdown_finishes_requests_under_way() {
    let mut server = start(|_| {}).await;
    let mut idle = server.client().await;
    assert_eq!(idle.post("", "rows").await.status, 204);
    let mut busy = server.client().await;
    busy.send(post("", "slow")).await;
    let mut reading = server.client().await;
    reading.send("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nro").await;
    server.until(|| server.metric("arc_http_in_flight_bytes 2048")).await;
    server.stop();
    assert!(idle.answer(false).await.is_none());
    reading.send("ws").await;
    let answer = reading.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (204, Some("close")));
    assert_eq!(busy.answer(false).await.unwrap().status, 204);
    assert!(TcpStream::connect(server.addr).await.is_err(), "nobody listens");
    assert_eq!(server.task.await.unwrap(), Served { aborted: 0 });
}

#[tokio::test]
async fn shutdown_has_a_deadline() {
    let mut server = start(|s| s.shutdown_timeout = Duration::from_millis(200)).await;
    let mut stuck = server.client().await;
    stuck.send(post("", "stuck")).await;
    server.until(|| !server.backend.seen.lock().unwrap().is_empty()).await;
    server.stop();
    assert_eq!(timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap(), Served { aborted: 1 });
    assert!(stuck.answer(false).await.is_none());
    assert!(server.metrics.render().contains("arc_http_connections 0\n"));
}

#[tokio::test]
async fn operations() {
    let server = start(|_| {}).await;
    let health = server.once(&get("/health")).await;
    assert_eq!(health.status, 200);
    let body = health.json();
    assert_eq!(
        body,
        json!({"status": "pass", "name": "arc", "message": "ready for queries and writes",
            "version": env!("CARGO_PKG_VERSION"), "uptime_sec": body["uptime_sec"].as_u64().unwrap()})
    );
    let ready = server.once(&get("/ready")).await;
    assert_eq!((ready.status, ready.json()), (200, json!({"status": "ready", "reason": null, "progress": null})));
    server.backend.not_ready.store(true, Ordering::Relaxed);
    let ready = server.once(&get("/ready")).await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json(), json!({"status": "not_ready", "reason": "recovering", "progress": {"segments": 3}}));
    let metrics = server.once(&get("/metrics")).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    assert!(String::from_utf8(metrics.body).unwrap().contains("arc_http_connections"));
    assert_eq!(server.once(&get("/api/v1/status")).await.json(), json!({"version": "x", "refused_writes": []}));
    assert_eq!(server.once(&get("/api/v1/write/msgpack/spec")).await.json(), json!({"spec": true}));
    assert_eq!(server.once(&get("/api/v1/write/msgpack/stats")).await.json(), json!({"stats": true}));
}

#[tokio::test]
async fn flushing() {
    let server = start(|_| {}).await;
    let flush = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    let done = json!({"status": "success", "files": 2, "rows": 30, "through_seq": 9});
    for (path, want) in [
        ("/api/v1/flush", 60_000),
        ("/api/v1/write/line-protocol/flush?timeout=5s", 5_000),
        ("/api/v1/flush?timeout=250ms", 250),
        ("/api/v1/flush?timeout=3", 3_000),
    ] {
        let answer = server.once(&flush(path)).await;
        assert_eq!((answer.status, answer.json()), (200, done.clone()), "{path}");
        assert_eq!(server.backend.flush.lock().unwrap().as_ref().unwrap().1, Duration::from_millis(want), "{path}");
    }
    for path in ["/api/v1/flush?timeout=", "/api/v1/flush?timeout=soon", "/api/v1/flush?timeout=2h"] {
        server.once(&flush(path)).await.assert_error(400, "invalid", None);
    }
    *server.backend.flush.lock().unwrap() = Some((FlushOutcome::TimedOut { through_seq: 3, target_seq: 8 }, Duration::ZERO));
    let answer = server.once(&flush("/api/v1/flush")).await;
    assert_eq!((answer.status, answer.json()), (504, json!({"status": "timeout", "through_seq": 3, "target_seq": 8})));
    let failed = FlushOutcome::Failed(RequestError::unavailable(Reason::Paused, "compaction is paused"));
    *server.backend.flush.lock().unwrap() = Some((failed, Duration::ZERO));
    server.once(&flush("/api/v1/flush")).await.assert_error(503, "unavailable", Some("paused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once() {
    let mut server = start(|s| {
        s.max_connections = 16;
        s.max_in_flight = 256 << 10;
        s.admit_wait = Duration::from_secs(10);
    })
    .await;
    let clients: Vec<_> = (0..40usize)
        .map(|n| {
            let addr = server.addr;
            tokio::spawn(async move {
                let mut client = Client { socket: TcpStream::connect(addr).await.unwrap(), buf: Vec::new() };
                for i in 0..10 {
                    let body = vec![b'x'; 1 + (n * 7919 + i * 104_729) % 65_536];
                    let answer = client.post(&format!("X-Request-Id: {n}-{i}\r\n"), body).await;
                    assert_eq!(answer.status, 204);
                    assert_eq!(answer.header("x-request-id"), Some(format!("{n}-{i}").as_str()));
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    {
        let seen = server.backend.seen.lock().unwrap();
        assert_eq!(seen.len(), 400);
        assert!(seen.iter().all(|r| r.body.iter().all(|b| *b == b'x')));
    }
    server.until(|| server.metric("arc_http_connections 0")).await;
    assert!(server.metric("arc_http_in_flight_bytes 0"));
    server.stop();
    assert_eq!(server.task.await.unwrap(), Served { aborted: 0 });
}

#[tokio::test]
async fn broken_heads_end_the_connection() {
    let server = start(|_| {}).await;
    let mut client = server.client().await;
    client.send("nonsense\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status, 400);
    assert!(client.answer(false).await.is_none());
    let mut client = server.client().await;
    client.send(format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(33 << 10))).await;
    assert_eq!(client.answer(false).await.unwrap().status, 431);
}

#[test]
fn request_ids_do_not_repeat() {
    let ids = RequestIds::new();
    let made: HashSet<String> = (0..10_000).map(|_| ids.make().as_str().to_owned()).collect();
    assert_eq!(made.len(), 10_000);
}
