//! `arc healthcheck`: asks a running server whether it is well, for containers and scripts that have no HTTP client.
//!
//! Exit code 0 when the answer is 200, 1 when it is not or does not come in time; the reason is on stderr.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::trust::{Trust, client_config, explain};
use super::{EXIT_FAILURE, Global, print};
use crate::config::Config;
use crate::config::value::{parse_duration, show_duration};

/// Much more than any answer has.
const MOST: u64 = 256 << 10;

#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// http://HOST[:PORT] or https://HOST[:PORT]; without it the server that the configuration describes, on this machine
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Ask whether writes are taken (/ready), not only whether the process lives (/health)
    #[arg(long)]
    ready: bool,
    /// Time for all of it
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    timeout: Duration,
    /// CA certificates (PEM) used to verify the server, or its own certificate
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Take any certificate from an https URL
    #[arg(long)]
    insecure: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|d| !d.is_zero() && *d <= Duration::from_secs(3600))
        .ok_or_else(|| "expected a duration up to 1h, such as 500ms or 5s".into())
}

/// Runs `arc healthcheck`.
pub fn run(global: &Global, args: &HealthcheckArgs) -> ExitCode {
    let (target, trust) = match &args.url {
        Some(url) => {
            let target = match Target::parse(url) {
                Ok(t) => t,
                Err(e) => return fail(global, &e),
            };
            let trust = match (&args.ca, args.insecure) {
                (Some(file), _) => Trust::File(file.clone()),
                (None, true) => Trust::Any,
                (None, false) if target.tls => {
                    return fail(global, &format!("--url {url}: say with --ca FILE what its certificate is held against, or --insecure"));
                }
                (None, false) => Trust::Any,
            };
            (target, trust)
        }
        None => {
            let config = match global.load() {
                Ok((config, _, _)) => config,
                Err(e) => return global.refuse(&e),
            };
            match Target::of(&config) {
                // It is this machine's own address, the certificate is made for other names, and nothing secret is sent.
                Ok(target) => (target, args.ca.clone().map_or(Trust::Any, Trust::File)),
                Err(e) => return fail(global, &e),
            }
        }
    };
    let path = if args.ready { "/ready" } else { "/health" };
    match ask(&target, &trust, path, args.timeout) {
        Ok(Answer { status: 200, .. }) => print(&format!("{path}: 200\n")),
        Ok(Answer { status, body }) => {
            let reason = serde_json::from_slice::<serde_json::Value>(&body).ok();
            let reason = reason.as_ref().and_then(|v| v.get("reason")?.as_str()).unwrap_or("no reason given");
            fail(global, &format!("{}{path}: expected 200, found {status} ({reason})", target.shown()))
        }
        Err(e) => {
            let why = match explain(&e, &target.host) {
                Some(why) => why,
                None if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                    format!("no answer within {}", show_duration(args.timeout))
                }
                None => e.to_string(),
            };
            fail(global, &format!("{}{path}: {why}", target.shown()))
        }
    }
}

fn fail(global: &Global, text: &str) -> ExitCode {
    global.error(text);
    ExitCode::from(EXIT_FAILURE)
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("--url {url:?}: {why}; expected http://HOST[:PORT] or https://HOST[:PORT]"));
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return bad("found another scheme or none"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'/' | b'?' | b'#' | b'@')) {
            return bad("found a path, a user or characters that no host has");
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => match port.parse().ok().filter(|p| *p > 0) {
                Some(port) => (host, port),
                None => return bad("the port is no number from 1 to 65535"),
            },
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if host.is_empty() || (bare.is_none() && host.contains(':')) {
            return bad("the host is missing or not understood");
        }
        Ok(Self { tls, host: bare.unwrap_or(host).to_owned(), port })
    }

    /// The server of a configuration, as this machine reaches it.
    fn of(config: &Config) -> Result<Self, String> {
        let host = config.server.host.as_str();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let host = match host.parse::<std::net::IpAddr>() {
            // All addresses: one of them is loopback.
            Ok(ip) if ip.is_unspecified() => if ip.is_ipv4() { "127.0.0.1" } else { "::1" }.to_owned(),
            _ => host.to_owned(),
        };
        match config.server.port {
            0 => Err("server.port = 0 lets the system choose the port: give the server's address with --url".to_owned()),
            port => Ok(Self { tls: config.server.tls_enabled, host, port }),
        }
    }

    fn shown(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn ask(target: &Target, trust: &Trust, path: &str, time: Duration) -> io::Result<Answer> {
    let end = Instant::now() + time;
    let stream = connect(target, end)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: arc-healthcheck\r\nConnection: close\r\n\r\n", target.authority());
    let mut answer = Vec::new();
    if target.tls {
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        let client = ClientConnection::new(Arc::new(client_config(trust)?), name).map_err(io::Error::other)?;
        exchange(StreamOwned::new(client, stream), &request, &mut answer)?;
    } else {
        exchange(stream, &request, &mut answer)?;
    }
    let text = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| text("the answer is cut short, or not HTTP"))?;
    let (line, body) = (answer.split(|b| *b == b'\r').next().unwrap_or_default(), answer.get(head + 4..).unwrap_or_default());
    let line = std::str::from_utf8(line).unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|l| l.get(2..5)?.parse().ok()).ok_or_else(|| text("the answer is not HTTP/1"))?;
    Ok(Answer { status, body: body.to_vec() })
}

fn exchange(mut stream: impl Read + Write, request: &str, answer: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    match stream.take(MOST).read_to_end(answer) {
        // A peer may close without TLS's farewell. Whether the answer is whole shows in it.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => Ok(()),
        r => r.map(drop),
    }
}

fn connect(target: &Target, end: Instant) -> io::Result<Timed> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(end)?) {
            Ok(stream) => return Ok(Timed { stream, end }),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A connection with an end in time for all that is done with it, not for each call.
struct Timed {
    stream: TcpStream,
    end: Instant,
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.end)?))?;
        self.stream.read(buf)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.end)?))?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let t = |tls, host: &str, port| Ok(Target { tls, host: host.into(), port });
        assert_eq!(Target::parse("http://a.b:8000"), t(false, "a.b", 8000));
        assert_eq!(Target::parse("http://a.b/"), t(false, "a.b", 80));
        assert_eq!(Target::parse("https://[::1]:9"), t(true, "::1", 9));
        assert_eq!(Target::parse("https://[::1]"), t(true, "::1", 443));
        for bad in ["", "a.b:80", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a/b", "http://::1", "http://u@a", "http://a\n"]
        {
            assert!(Target::parse(bad).unwrap_err().contains("--url"), "{bad}");
        }
    }

    #[test]
    fn the_configuration_says_where_the_server_is() {
        let of = |host: &str, port| {
            let mut config = Config::default();
            (config.server.host, config.server.port) = (host.into(), port);
            Target::of(&config).map(|t| t.shown())
        };
        assert_eq!(of("127.0.0.1", 8000).unwrap(), "http://127.0.0.1:8000");
        assert_eq!(of("0.0.0.0", 81).unwrap(), "http://127.0.0.1:81");
        assert_eq!(of("::", 82).unwrap(), "http://[::1]:82");
        assert_eq!(of("[::1]", 83).unwrap(), "http://[::1]:83");
        assert_eq!(of("db.example", 84).unwrap(), "http://db.example:84");
        assert!(of("::", 0).unwrap_err().contains("--url"));
        let mut config = Config::default();
        config.server.tls_enabled = true;
        assert_eq!(Target::of(&config).unwrap().shown(), "https://127.0.0.1:8000");
    }

    #[test]
    fn answers_are_read_whole_and_in_time() {
        let serve = |answer: &'static [u8], hold: Duration| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let thread = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut head = [0; 1024];
                let n = socket.read(&mut head).unwrap();
                let _ = socket.write_all(answer);
                std::thread::sleep(hold);
                head.get(..n).unwrap().to_vec()
            });
            let target = Target { tls: false, host: "127.0.0.1".into(), port };
            let r = ask(&target, &Trust::Any, "/ready", Duration::from_millis(300));
            let head = String::from_utf8(thread.join().unwrap()).unwrap();
            assert!(head.starts_with("GET /ready HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
            r.map(|a| (a.status, a.body))
        };
        let no = Duration::ZERO;
        assert_eq!(serve(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{}", no).unwrap(), (503, b"{}".to_vec()));
        assert!(serve(b"HTTP/1.1 200 OK\r\nA: b\r\n", no).unwrap_err().to_string().contains("cut short"));
        assert!(serve(b"220 mail ready\r\n\r\n", no).is_err());
        assert!(serve(b"", no).is_err());
        let late = serve(b"HTTP/1.1 200 OK\r\n", Duration::from_secs(1)).unwrap_err();
        assert!(matches!(late.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{late}");
    }

    #[test]
    fn certificates_are_held_against_the_file_or_not_at_all() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (good, empty) = (dir.path().join("good.pem"), dir.path().join("empty.pem"));
        std::fs::write(&good, made.cert.pem()).unwrap();
        std::fs::write(&empty, "").unwrap();
        let other = dir.path().join("other.pem");
        std::fs::write(&other, rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem()).unwrap();

        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let check = |host: &str, trust: &Trust| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let target = Target { tls: true, host: host.into(), port: listener.local_addr().unwrap().port() };
            let config = Arc::clone(&config);
            let thread = std::thread::spawn(move || {
                let (socket, _) = listener.accept().unwrap();
                let mut stream = StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), socket);
                let mut head = [0; 1024];
                // Whoever does not like the certificate leaves.
                if stream.read(&mut head).is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
                }
            });
            let r = ask(&target, trust, "/health", Duration::from_secs(5));
            let _ = thread.join();
            r.map(|a| a.status)
        };
        assert_eq!(check("localhost", &Trust::File(good.clone())).unwrap(), 200);
        assert_eq!(check("127.0.0.1", &Trust::Any).unwrap(), 200);
        for (host, file) in [("127.0.0.1", &good), ("localhost", &other), ("localhost", &empty), ("localhost", &dir.path().join("none"))] {
            assert!(check(host, &Trust::File(file.clone())).is_err(), "{host} {}", file.display());
        }
    }

    /// As `openssl req -x509` makes it: an authority that has signed itself.
    #[test]
    fn certificate_of_openssl_is_good_with_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let make = |names: &[&str], from: i32, to: i32| {
            let mut p = rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
            p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            (p.not_before, p.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            let key = rcgen::KeyPair::generate().unwrap();
            (p.self_signed(&key).unwrap(), key)
        };
        let ask_with = |(cert, key): &(rcgen::Certificate, rcgen::KeyPair), ca: &rcgen::Certificate, host: &str| {
            let file = dir.path().join("ca.pem");
            std::fs::write(&file, ca.pem()).unwrap();
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let thread = std::thread::spawn(move || {
                let (socket, _) = listener.accept().unwrap();
                let mut stream = StreamOwned::new(rustls::ServerConnection::new(Arc::new(config)).unwrap(), socket);
                if stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
                }
            });
            let target = Target { tls: true, host: host.into(), port };
            let r = ask(&target, &Trust::File(file), "/health", Duration::from_secs(5));
            thread.join().unwrap();
            r.map(|a| a.status).map_err(|e| explain(&e, host).unwrap_or_else(|| e.to_string()))
        };
        let good = make(&["localhost"], 2020, 2090);
        assert_eq!(ask_with(&good, &good.0, "localhost"), Ok(200));
        assert!(ask_with(&good, &good.0, "127.0.0.1").unwrap_err().contains("not made for \"127.0.0.1\""));
        let nameless = make(&[], 2020, 2090);
        assert!(ask_with(&nameless, &nameless.0, "localhost").unwrap_err().contains("subjectAltName"));
        let old = make(&["localhost"], 2020, 2021);
        assert!(ask_with(&old, &old.0, "localhost").unwrap_err().contains("has expired"));
        let other = make(&["localhost"], 2020, 2090);
        let e = ask_with(&good, &other.0, "localhost").unwrap_err();
        assert!(e.contains("in the file of --ca"), "{e}");
    }
}
