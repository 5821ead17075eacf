//! A minimal HTTP/1.1 client: one request at a time on a kept-alive connection.
//!
//! The caller learns whether a complete answer came. Everything else is an error, after which nobody knows whether the
//! request was done.

use crate::cli::trust::explain;
use crate::config::value::Secret;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 4 << 20;

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub tls: bool,
    /// Name or address, an IPv6 one in brackets.
    pub host: String,
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Sent with every request; empty: none.
    pub token: Secret,
}

impl Target {
    /// `http://host[:port][/path]`, or https; without a path `otherwise`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str, otherwise: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            Err(format!("--url {url}: {why}; expected http://HOST[:PORT][/PATH] or https://..., such as http://127.0.0.1:8000"))
        };
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return bad("found another scheme or none"),
        };
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("it holds spaces, control or other characters that need escaping");
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok().filter(|p| *p > 0)),
            _ => (authority, Some(if tls { 443 } else { 80 })),
        };
        let Some(port) = port else { return bad("the port is no number from 1 to 65535") };
        if host.is_empty() || host.contains('@') || (host.contains(':') && !host.starts_with('[')) {
            return bad("the host is missing or not understood");
        }
        let path = if path.is_empty() || path == "/" { otherwise } else { path };
        Ok(Self { tls, host: host.to_owned(), port, path: path.to_owned(), token: Secret::default() })
    }

    /// The head of a write, up to and with the empty line.
    pub fn head(&self, database: &str, encoding: Option<&str>, key: Option<&str>, length: usize, out: &mut Vec<u8>) {
        use io::Write as _;
        let Self { host, port, path, token, .. } = self;
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/octet-stream\r\nx-arc-database: {database}\r\n\
             content-length: {length}\r\n"
        );
        if !token.is_empty() {
            let _ = write!(out, "authorization: Bearer {}\r\n", token.reveal());
        }
        if let Some(encoding) = encoding {
            let _ = write!(out, "content-encoding: {encoding}\r\n");
        }
        if let Some(key) = key {
            let _ = write!(out, "idempotency-key: {key}\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A complete answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// `X-Arc-Sequence`.
    pub sequence: Option<u64>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u32>,
    /// `Idempotency-Replayed: true`.
    pub replayed: bool,
    pub body: Vec<u8>,
    /// The connection cannot be used again.
    pub close: bool,
}

impl Answer {
    /// The server's own words for a refusal, or the beginning of the body.
    pub fn error(&self) -> String {
        let json = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let words = ["error", "message"].iter().find_map(|k| json.as_ref()?.get(k)?.as_str().map(str::to_owned));
        let words = words.unwrap_or_else(|| String::from_utf8_lossy(&self.body).chars().take(200).collect());
        format!("{} {}", self.status, words.trim().replace(char::is_control, " ")).trim_end().to_owned()
    }

    /// `reason` of a 503.
    pub fn reason(&self) -> Option<String> {
        serde_json::from_slice::<serde_json::Value>(&self.body).ok()?.get("reason")?.as_str().map(str::to_owned)
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to the first address that answers; `tls` for https.
    ///
    /// # Errors
    /// No connection within the timeout, or, unless `remote`, the name leads to another machine.
    pub async fn open(target: &Target, tls: Option<&TlsConnector>, remote: bool, timeout: Duration) -> io::Result<Self> {
        let bare = target.host.trim_start_matches('[').trim_end_matches(']');
        let connect = async {
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("host {bare} has no address"));
            for address in tokio::net::lookup_host((bare, target.port)).await? {
                if !remote && !address.ip().to_canonical().is_loopback() {
                    last = io::Error::new(io::ErrorKind::PermissionDenied, format!("host {bare} is {address}, not a loopback address"));
                    continue;
                }
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(e) => last = e,
                }
            }
            Err(last)
        };
        let opened = async {
            let stream = connect.await?;
            stream.set_nodelay(true)?;
            let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
            let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
            match tls.connect(name, stream).await {
                Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
                Err(e) => Err(explain(&e, bare).map_or(e, |why| io::Error::new(io::ErrorKind::PermissionDenied, why))),
            }
        };
        let stream = tokio::time::timeout(timeout, opened).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends a whole request and waits for its whole answer.
    ///
    /// # Errors
    /// No complete answer; the connection is of no use any more.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        self.buffer.clear();
        // What TLS has made of it stays in its buffer without a flush.
        let write = async {
            writer.write_all(request).await?;
            writer.flush().await
        };
        tokio::pin!(write);
        // An answer may come before the request is out, for a body that is too large; then the rest need not go.
        let sent = tokio::select! {
            biased;
            sent = &mut write => sent,
            early = more(&mut reader, &mut self.buffer) => {
                early?;
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "answered before the request was sent"))
            }
        };
        match sent {
            Ok(()) => read_answer(&mut reader, &mut self.buffer).await,
            Err(e) => match tokio::time::timeout(Duration::from_secs(1), read_answer(&mut reader, &mut self.buffer)).await {
                Ok(Ok(answer)) => Ok(Answer { close: true, ..answer }),
                _ => Err(e),
            },
        }
    }
}

async fn more<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.reserve(4096);
    if reader.read_buf(buffer).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection closed before a complete answer"));
    }
    Ok(())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {what}"))
}

enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

async fn read_answer<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut Vec<u8>) -> io::Result<Answer> {
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if buffer.len() > MAX_HEAD {
                return Err(invalid("the head is too long"));
            }
            more(reader, buffer).await?;
        };
        let head: Vec<u8> = buffer.drain(..end).collect();
        let (mut answer, framing) = parse_head(&head)?;
        if (100..200).contains(&answer.status) {
            continue;
        }
        match framing {
            Framing::Length(n) => {
                while buffer.len() < n {
                    more(reader, buffer).await?;
                }
                answer.body = buffer.drain(..n).collect();
            }
            Framing::Chunked => answer.body = read_chunks(reader, buffer).await?,
            Framing::UntilClose => {
                answer.close = true;
                while reader.read_buf(buffer).await? > 0 {
                    if buffer.len() > MAX_BODY {
                        return Err(invalid("the body is too long"));
                    }
                }
                answer.body = std::mem::take(buffer);
            }
        }
        // Nothing was asked for that could still come.
        answer.close |= !buffer.is_empty();
        return Ok(answer);
    }
}

async fn read_chunks<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader, buffer).await?;
        let size = line.split(';').next().and_then(|s| usize::from_str_radix(s.trim(), 16).ok()).ok_or_else(|| invalid("chunk size"))?;
        if size == 0 {
            while !read_line(reader, buffer).await?.is_empty() {}
            return Ok(body);
        }
        if size > MAX_BODY - body.len() {
            return Err(invalid("the body is too long"));
        }
        while buffer.len() < size + 2 {
            more(reader, buffer).await?;
        }
        body.extend(buffer.drain(..size));
        if !buffer.starts_with(b"\r\n") {
            return Err(invalid("a chunk does not end where it should"));
        }
        buffer.drain(..2);
    }
}

async fn read_line<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 2);
            return Ok(line);
        }
        if buffer.len() > MAX_HEAD {
            return Err(invalid("a line is too long"));
        }
        more(reader, buffer).await?;
    }
}

fn parse_head(head: &[u8]) -> io::Result<(Answer, Framing)> {
    let head = std::str::from_utf8(head).map_err(|_| invalid("the head is not UTF-8"))?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or("");
    let mut words = status_line.split(' ');
    let version = words.next().filter(|v| v.starts_with("HTTP/1.")).ok_or_else(|| invalid("version"))?;
    let status = words.next().and_then(|s| s.parse::<u16>().ok()).filter(|s| (100..600).contains(s)).ok_or_else(|| invalid("status"))?;
    let mut answer = Answer { status, close: version == "HTTP/1.0", ..Answer::default() };
    let mut length = None;
    let mut chunked = false;
    for line in lines.take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header without a colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse::<usize>().map_err(|_| invalid("content-length"))?),
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            "connection" => answer.close |= value.eq_ignore_ascii_case("close"),
            "x-arc-sequence" => answer.sequence = value.parse().ok(),
            "idempotency-replayed" => answer.replayed = value == "true",
            "retry-after" => answer.retry_after = value.parse().ok(),
            _ => {}
        }
    }
    let framing = match (status, length) {
        (100..200 | 204 | 304, _) => Framing::Length(0),
        _ if chunked => Framing::Chunked,
        (_, Some(n)) if n > MAX_BODY => return Err(invalid("the body is too long")),
        (_, Some(n)) => Framing::Length(n),
        (_, None) => Framing::UntilClose,
    };
    Ok((answer, framing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/api/v1/write/msgpack";

    #[test]
    fn urls() {
        let t = Target::parse("http://127.0.0.1:8000", PATH).unwrap();
        assert_eq!((t.host.as_str(), t.port, t.path.as_str()), ("127.0.0.1", 8000, "/api/v1/write/msgpack"));
        let t = Target::parse("http://[::1]:9/x?y=z", PATH).unwrap();
        assert_eq!((t.host.as_str(), t.port, t.path.as_str()), ("[::1]", 9, "/x?y=z"));
        assert_eq!(Target::parse("http://[::1]/", PATH).unwrap().port, 80);
        let t = Target::parse("https://a", PATH).unwrap();
        assert_eq!((t.tls, t.port), (true, 443));
        for bad in [
            "ftp://x",
            "127.0.0.1:8000",
            "http://",
            "https://",
            "http://:1",
            "http://a:0",
            "http://a:b",
            "http://a@b",
            "http://::1",
            "http://a/ b",
        ] {
            assert!(Target::parse(bad, PATH).is_err(), "{bad}");
        }
        let mut out = Vec::new();
        Target::parse("http://h:1", PATH).unwrap().head("bench", Some("gzip"), Some("k-1"), 5, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("POST /api/v1/write/msgpack HTTP/1.1\r\nhost: h:1\r\n") && text.ends_with("\r\n\r\n"));
        assert!(text.contains("content-length: 5\r\ncontent-encoding: gzip\r\nidempotency-key: k-1\r\n"));
        assert!(!text.contains("authorization"));

        let mut out = Vec::new();
        let target = Target { token: Secret::new("arc_0123"), ..Target::parse("http://h:1", PATH).unwrap() };
        target.head("bench", None, None, 5, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("\r\nauthorization: Bearer arc_0123\r\n\r\n"));
        assert!(!format!("{target:?}").contains("arc_0123"));
    }

    fn answer(bytes: &[u8]) -> io::Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { read_answer(&mut &*bytes, &mut Vec::new()).await })
    }

    #[test]
    fn answers() {
        let a = answer(b"HTTP/1.1 204 No Content\r\nX-Arc-Sequence: 17\r\nIdempotency-Replayed: true\r\n\r\n").unwrap();
        assert_eq!(a, Answer { status: 204, sequence: Some(17), replayed: true, ..Answer::default() });
        let a = answer(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 x\r\nretry-after: 2\r\ncontent-length: 25\r\n\r\n{\"reason\":\"disk_full\"}    ",
        );
        let a = a.unwrap();
        assert_eq!((a.status, a.retry_after, a.reason().as_deref(), a.close), (503, Some(2), Some("disk_full"), true));
        let a = answer(b"HTTP/1.1 400 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!((a.body.as_slice(), a.close), (&b"abcde"[..], false));
        let a = answer(b"HTTP/1.0 500 x\r\n\r\nrest").unwrap();
        assert_eq!((a.body.as_slice(), a.close), (&b"rest"[..], true));
    }

    #[test]
    fn an_answer_before_the_request_is_out_counts() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (early, after, broken) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap()), PATH).unwrap();
            tokio::spawn(async move {
                // The first connection is answered at the first byte and read no further, the second just ends.
                let (mut first, _) = listener.accept().await.unwrap();
                first.read_u8().await.unwrap();
                first.write_all(b"HTTP/1.1 413 x\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
                let (second, _) = listener.accept().await.unwrap();
                drop(second);
                std::future::pending::<()>().await;
                drop(first);
            });
            let patience = Duration::from_secs(5);
            let mut connection = Connection::open(&target, None, false, patience).await.unwrap();
            let request = vec![b'x'; 32 << 20];
            let early = tokio::time::timeout(patience, connection.exchange(&request)).await.unwrap().unwrap();
            let mut second = Connection::open(&target, None, false, patience).await.unwrap();
            let after = second.exchange(b"x").await;
            drop(second);
            (early, after.is_err(), Connection::open(&Target { port: 1, ..target }, None, false, patience).await.is_err())
        });
        assert_eq!((early.status, early.close, early.body.as_slice()), (413, true, &b"{}"[..]));
        assert!(after && broken);
    }

    #[test]
    fn half_an_answer_is_none() {
        for part in [
            &b""[..],
            b"HTTP/1.1 204 No",
            b"HTTP/1.1 400 x\r\ncontent-length: 5\r\n\r\nabc",
            b"HTTP/1.1 400 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 999999 x\r\n\r\n",
            b"HTTP/1.1 200 x\r\ncontent-length: 99999999999\r\n\r\n",
        ] {
            assert!(answer(part).is_err(), "{}", String::from_utf8_lossy(part));
        }
    }
}
