//! Tokens, TLS and reload of the real server: what it says, what it takes, and what it never says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

use super::server::{PATIENCE, Place, arc, profile, until};

const SMALL: &[&str] =
    &["server.port=0", "wal.segment_size=64KB", "wal.max_size=256MB", "compaction.trigger_size=16MB", "wal.reserve=64KB"];

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut c = Command::new(arc());
    c.args(args).current_dir(dir).env_clear().envs(profile()).stdin(Stdio::null());
    c
}

/// Runs a subcommand to its end.
fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server whose stdout, environment and scheme matter; killed when dropped.
struct Daemon {
    child: Child,
    addr: SocketAddr,
    out: PathBuf,
    err: PathBuf,
}

impl Daemon {
    /// `Err`: it ended by itself, with this code and these words.
    fn launch(dir: &Path, sets: &[&str], env: &[(&str, &str)]) -> Result<Self, (Option<i32>, String)> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (out, err) = (dir.join(format!("out-{n}")), dir.join(format!("err-{n}")));
        let mut c = command(dir, &["serve"]);
        c.envs(env.iter().copied());
        for set in SMALL.iter().chain(sets) {
            c.args(["--set", set]);
        }
        let child = c.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap()).spawn().unwrap();
        let mut d = Self { child, addr: ([127, 0, 0, 1], 0).into(), out, err };
        let banner = until("a banner, or the end", || {
            let said = d.said();
            if let Some(url) = said.lines().find_map(|l| l.trim().strip_prefix("listening")).filter(|_| said.contains("exactly once")) {
                return Some(Ok(url.trim().split_once("//").unwrap().1.to_owned()));
            }
            d.child.try_wait().unwrap().map(|status| Err((status.code(), d.log())))
        });
        d.addr = banner?.parse().unwrap();
        Ok(d)
    }

    fn start(dir: &Path, sets: &[&str], env: &[(&str, &str)]) -> Self {
        Self::launch(dir, sets, env).unwrap_or_else(|(code, log)| panic!("it ended with {code:?}: {log}"))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    fn logged(&self, words: &str) {
        until(&format!("{words:?} in the log"), || self.log().contains(words).then_some(()));
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGHUP, and the line that ends it.
    fn reload(&self) -> String {
        let before = self.log().matches("SIGHUP: reloaded").count();
        self.signal(rustix::process::Signal::HUP);
        until("the line of the reload", || {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|l| l.contains("SIGHUP: reloaded")).collect();
            (lines.len() > before).then(|| lines[before].to_owned())
        })
    }

    fn tcp(&self) -> TcpStream {
        let s = TcpStream::connect(self.addr).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        s
    }

    /// One request over plain HTTP; status and whole answer.
    fn ask(&self, request: &str) -> (u16, String) {
        exchange(self.tcp(), request).unwrap_or_else(|e| panic!("{e}: {}", self.log()))
    }

    fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = until("the end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<(u16, String)> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() => return Err(e),
        _ => {}
    }
    let answer = text(&answer);
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    status.map(|s| (s, answer)).ok_or_else(|| io::Error::other("no answer of HTTP"))
}

fn request(method: &str, target: &str, headers: &str, body: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

/// The token that the banner shows.
fn shown(banner: &str) -> Option<String> {
    banner.lines().map(str::trim).find(|l| l.starts_with("arc_")).map(str::to_owned)
}

const STATUS: &str = "/api/v1/status";

#[test]
fn the_first_start_shows_an_admin_token_once_and_the_command_line_manages_the_rest() {
    let place = Place::new();
    let dir = place.path();
    let d = Daemon::start(dir, &["auth.enabled=true"], &[]);
    let admin = shown(&d.said()).expect("a token in the banner");
    assert!(!d.log().contains(&admin[4..]), "the log is for others to read");
    assert_eq!(d.ask(&request("GET", STATUS, "", "")).0, 401);
    until("recovery", || (d.ask(&request("GET", STATUS, &bearer(&admin), "")).0 == 200).then_some(()));
    assert_eq!(d.ask(&request("GET", "/health", "", "")).0, 200);

    let made = run(dir, &["token", "create", "agent", "--permissions", "read", "--json", "--expires-in", "1h"]);
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let agent = made["token"].as_str().unwrap().to_owned();
    let status = |token: &str| d.ask(&request("GET", STATUS, &bearer(token), "")).0;
    let prompt = |what: &str, token: &str, want: u16| {
        let begun = Instant::now();
        until(what, || (status(token) == want).then_some(()));
        assert!(begun.elapsed() < Duration::from_secs(10), "{what} took {:?}", begun.elapsed());
    };
    prompt("the token of another process", &agent, 200);
    let rotated = run(dir, &["token", "rotate", "agent"]);
    let next = text(&rotated.stdout).trim().to_owned();
    assert!(next.starts_with("arc_") && text(&rotated.stderr).contains("shown this once"), "{rotated:?}");
    prompt("the rotated token", &next, 200);
    assert_eq!(status(&agent), 401);
    let listed = text(&run(dir, &["token", "list"]).stdout);
    assert!(listed.contains("bootstrap") && listed.contains("agent") && listed.contains("live") && !listed.contains("arc_"), "{listed}");
    assert!(run(dir, &["token", "revoke", "agent"]).status.success());
    prompt("the revoked token", &next, 401);
    let listed: Value = serde_json::from_slice(&run(dir, &["token", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed["tokens"][1]["state"], "revoked");

    for (args, code) in [
        (&["token", "revoke", "nobody"][..], 1),
        (&["token", "create", "agent"], 1),
        (&["token", "create", "x", "--permissions", "all"], 1),
        (&["token", "create", "x", "--permissions", "admin", "--databases", "a"], 1),
        (&["token", "create"], 2),
    ] {
        let out = run(dir, args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty());
    }
    d.stop();

    let d = Daemon::start(dir, &["auth.enabled=true"], &[]);
    assert_eq!(shown(&d.said()), None, "once");
    until("recovery", || (d.ask(&request("GET", STATUS, &bearer(&admin), "")).0 == 200).then_some(()));
    d.stop();

    let file = dir.join("data/auth/tokens.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, log) = Daemon::launch(dir, &["auth.enabled=true"], &[]).err().unwrap();
    assert!(code == Some(78) && log.contains("0644") && log.contains("chmod 600"), "{code:?} {log}");
    assert_eq!(run(dir, &["token", "list"]).status.code(), Some(78));
}

#[test]
fn a_preset_token_is_neither_shown_nor_warned_of() {
    let place = Place::new();
    let (dir, preset) = (place.path(), "preset-token-of-a-test-0123456789");
    for bad in ["short-secret", "has a space in it and is long enough"] {
        let (code, log) = Daemon::launch(dir, &["auth.enabled=true"], &[("ARC_AUTH_BOOTSTRAP_TOKEN", bad)]).err().unwrap();
        assert!(code == Some(78) && log.contains("ARC_AUTH_BOOTSTRAP_TOKEN") && !log.contains(bad), "{code:?} {log}");
    }
    let d = Daemon::start(dir, &["auth.enabled=true"], &[("ARC_AUTH_BOOTSTRAP_TOKEN", preset)]);
    until("recovery", || (d.ask(&request("GET", STATUS, &bearer(preset), "")).0 == 200).then_some(()));
    for said in [d.said(), d.log()] {
        assert!(!said.contains(preset) && !said.contains("unknown environment"), "{said}");
    }
    assert!(d.log().contains("the first admin token is that of ARC_AUTH_BOOTSTRAP_TOKEN"));
    for args in [&["config", "show", "--origin"][..], &["config", "show", "--json"]] {
        let out = command(dir, args).env("ARC_AUTH_BOOTSTRAP_TOKEN", preset).output().unwrap();
        assert!(out.status.success() && !text(&out.stdout).contains(preset) && out.stderr.is_empty(), "{out:?}");
    }
    d.stop();
    let open = ["server.host=0.0.0.0"];
    let (code, log) = Daemon::launch(dir, &open, &[]).err().unwrap();
    assert!(code == Some(78) && log.contains("auth.enabled"), "{code:?} {log}");
    let d = Daemon::start(dir, &["server.host=0.0.0.0", "auth.enabled=true"], &[]);
    assert!(d.log().contains("tokens travel readable"), "{}", d.log());
}

/// A certificate for localhost and its key, in `dir`; the certificate as clients know it.
fn certificate(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    made.cert.der().clone()
}

const TLS: &[&str] = &["server.tls_enabled=true", "server.tls_cert_file=cert.pem", "server.tls_key_file=key.pem"];

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection that trusts `cert` alone; the handshake is done with the first byte.
fn tls(d: &Daemon, cert: &CertificateDer<'static>, alpn: &[&[u8]], versions: &[&'static rustls::SupportedProtocolVersion]) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    StreamOwned::new(connection, d.tcp())
}

fn health(d: &Daemon, cert: &CertificateDer<'static>) -> io::Result<u16> {
    exchange(tls(d, cert, &[b"http/1.1"], rustls::ALL_VERSIONS), &request("GET", "/health", "", "")).map(|(status, _)| status)
}

#[test]
fn tls_is_spoken_and_nothing_else() {
    let place = Place::new();
    let cert = certificate(place.path());
    let d = Daemon::start(place.path(), TLS, &[]);
    assert!(d.said().contains("https://"), "{}", d.said());
    // First: of failures within ten seconds, one is logged.
    let plain = exchange(d.tcp(), &request("GET", "/health", "", ""));
    assert!(plain.is_err(), "an answer in the clear: {plain:?}");
    d.logged("the client does not speak TLS");
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13], rustls::ALL_VERSIONS] {
        let mut s = tls(&d, &cert, &[b"h2", b"http/1.1"], versions);
        for _ in 0..3 {
            s.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut head = [0; 15];
            s.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            let mut rest = vec![0; 4096];
            assert!(s.read(&mut rest).unwrap() > 0);
        }
        assert_eq!(s.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    assert_eq!(exchange(tls(&d, &cert, &[], rustls::ALL_VERSIONS), &request("GET", "/health", "", "")).unwrap().0, 200, "no ALPN");
    let h2 = exchange(tls(&d, &cert, &[b"h2"], rustls::ALL_VERSIONS), &request("GET", "/health", "", "")).unwrap_err();
    assert!(h2.to_string().contains("NoApplicationProtocol"), "{h2}");
    // A large body over TLS, stored and acknowledged.
    until("recovery", || {
        let ready = exchange(tls(&d, &cert, &[], rustls::ALL_VERSIONS), &request("GET", "/ready", "", "")).unwrap().0;
        (ready == 200).then_some(())
    });
    let values = super::msgpack::ints(&(0..20_000).collect::<Vec<i64>>());
    let payload = super::msgpack::columnar("t", &[("v", values)]);
    let mut s = tls(&d, &cert, &[], rustls::ALL_VERSIONS);
    let head = format!("POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", payload.len());
    s.write_all(head.as_bytes()).unwrap();
    s.write_all(&payload).unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");

    assert_eq!(health(&d, &cert).unwrap(), 200);
    let metrics = exchange(tls(&d, &cert, &[], rustls::ALL_VERSIONS), &request("GET", "/metrics", "", "")).unwrap().1;
    let failed = metrics.lines().find_map(|l| l.strip_prefix("arc_http_rejected_total{reason=\"tls_handshake\"} ")).unwrap();
    assert!(failed.parse::<u32>().unwrap() >= 2, "{failed}");
    d.stop();
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let place = Place::new();
    let dir = place.path();
    let refused = |sets: &[&str], words: &[&str]| {
        let (code, log) = Daemon::launch(dir, sets, &[]).err().expect("refused");
        assert_eq!(code, Some(78), "{log}");
        for w in words {
            assert!(log.contains(w), "{w:?} is not in {log}");
        }
    };
    refused(&["server.tls_enabled=true"], &["server.tls_cert_file", "PEM file", "found none"]);
    refused(TLS, &["server.tls_cert_file cert.pem", "cannot be read"]);
    certificate(dir);
    let key = std::fs::read(dir.join("key.pem")).unwrap();
    std::fs::write(dir.join("key.pem"), "no key").unwrap();
    refused(TLS, &["server.tls_key_file key.pem", "BEGIN PRIVATE KEY"]);
    certificate(dir);
    std::fs::write(dir.join("key.pem"), key).unwrap();
    refused(TLS, &["server.tls_cert_file cert.pem", "server.tls_key_file key.pem", "its own key"]);
    std::fs::write(dir.join("cert.pem"), "").unwrap();
    refused(TLS, &["server.tls_cert_file cert.pem", "no certificate in it"]);
}

#[test]
fn a_reload_takes_what_is_good_and_keeps_what_was() {
    let place = Place::new();
    let dir = place.path();
    let first = certificate(dir);
    std::fs::write(dir.join("arc.toml"), "[log]\nlevel = \"info\"\n").unwrap();
    let sets: Vec<&str> = TLS.iter().copied().chain(["auth.enabled=true"]).collect();
    let d = Daemon::start(dir, &sets, &[]);
    assert_eq!(health(&d, &first).unwrap(), 200);
    let mut old = tls(&d, &first, &[], rustls::ALL_VERSIONS);
    old.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(old.read(&mut [0; 4096]).unwrap() > 0);
    assert!(!d.log().contains("\"DEBUG\""), "{}", d.log());

    let second = certificate(dir);
    std::fs::write(dir.join("arc.toml"), "[log]\nlevel = \"debug\"\n[wal]\npool = 3\n").unwrap();
    let line = d.reload();
    assert!(line.contains("log.level = debug") && line.contains("1 tokens") && line.contains("the certificate"), "{line}");
    d.logged("in force only after a restart: wal.pool");
    assert_eq!(health(&d, &second).unwrap(), 200);
    assert!(health(&d, &first).unwrap_err().to_string().contains("certificate"), "the old one is not shown any more");
    d.logged("\"DEBUG\"");
    // A connection that was open goes on.
    old.write_all(&request("GET", "/health", "", "").into_bytes()).unwrap();
    let mut answer = String::new();
    let _ = old.read_to_string(&mut answer);
    assert!(answer.contains("200 OK"), "{answer}");

    std::fs::write(dir.join("cert.pem"), "nothing").unwrap();
    std::fs::write(dir.join("arc.toml"), "[log]\nlevel = \"loud\"\n").unwrap();
    let tokens = dir.join("data/auth/tokens.json");
    let good = std::fs::read(&tokens).unwrap();
    std::fs::write(&tokens, "nothing").unwrap();
    let line = d.reload();
    assert!(line.contains("reloaded nothing"), "{line}");
    for words in ["the certificate stays as it was", "the configuration stays as it was", "the tokens stay as they were"] {
        d.logged(words);
    }
    assert_eq!(health(&d, &second).unwrap(), 200, "as before");
    let admin = shown(&d.said()).unwrap();
    let ask = |path: &str| exchange(tls(&d, &second, &[], rustls::ALL_VERSIONS), &request("GET", path, &bearer(&admin), "")).unwrap();
    assert_eq!(ask("/api/v1/auth/verify").0, 200);
    let metrics = ask("/metrics").1;
    assert!(metrics.contains("arc_tls_reload_errors_total 1"), "{metrics}");
    assert!(!metrics.contains("arc_auth_reload_errors_total 0"), "{metrics}");
    std::fs::write(&tokens, good).unwrap();
    let third = certificate(dir);
    std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(d.reload().contains("the certificate"));
    d.logged("mode 0644, expected 0600");
    assert_eq!(health(&d, &third).unwrap(), 200);
    d.stop();
}

#[test]
fn slow_handshakes_hold_no_more_than_their_slot_for_their_time() {
    let place = Place::new();
    let cert = certificate(place.path());
    let sets: Vec<&str> = TLS.iter().copied().chain(["server.header_timeout=700ms", "server.max_connections=4"]).collect();
    let d = Daemon::start(place.path(), &sets, &[]);
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> = (0..4).map(|_| d.tcp()).collect();
    // One sends half a handshake, byte by byte.
    silent[0].write_all(&[0x16, 0x03, 0x01]).unwrap();
    // A loaded machine may need more than one such time itself.
    until("once their time is up, the slots are free", || health(&d, &cert).ok().filter(|s| *s == 200));
    let waited = begun.elapsed();
    assert!((Duration::from_millis(600)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    for s in &mut silent {
        let n = s.read(&mut [0; 64]).unwrap_or(0);
        assert_eq!(n, 0, "closed");
    }
    d.logged("did not end within server.header_timeout");
    // A handshake and the head after it share that time.
    let mut s = tls(&d, &cert, &[], rustls::ALL_VERSIONS);
    let begun = Instant::now();
    s.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = s.read_to_end(&mut rest);
    assert!(rest.is_empty() && begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    until("a healthy client", || health(&d, &cert).ok().filter(|s| *s == 200));
    d.stop();
}

#[test]
fn no_token_reaches_a_log_line() {
    let place = Place::new();
    let dir = place.path();
    let cert = certificate(dir);
    let preset = "preset-secret-0123456789abcdefghij";
    let sets: Vec<&str> = TLS.iter().copied().chain(["auth.enabled=true"]).collect();
    let d = Daemon::start(dir, &sets, &[("ARC_LOG", "trace"), ("ARC_AUTH_BOOTSTRAP_TOKEN", preset)]);
    let ask = |method: &str, target: &str, headers: &str, body: &str| {
        exchange(tls(&d, &cert, &[], rustls::ALL_VERSIONS), &request(method, target, headers, body)).unwrap()
    };
    let made = body(&ask("POST", "/api/v1/auth/tokens", &bearer(preset), r#"{"name":"n","permissions":["admin"]}"#).1);
    let made_text = made["token"].as_str().unwrap().to_owned();
    let rotated = body(&ask("POST", "/api/v1/auth/tokens/2/rotate", &bearer(&made_text), "").1);
    let rotated = rotated["new_token"].as_str().unwrap().to_owned();
    let by_hand = text(&run(dir, &["token", "create", "cli", "--permissions", "admin"]).stdout).trim().to_owned();
    d.logged("the token file has changed");
    let wrong = "wrong-secret-9876543210-zyxwvutsrqponm";
    // "user:" and the text, in base64.
    let basic_preset = "dXNlcjpwcmVzZXQtc2VjcmV0LTAxMjM0NTY3ODlhYmNkZWZnaGlq";
    let basic_wrong = "dXNlcjp3cm9uZy1zZWNyZXQtOTg3NjU0MzIxMC16eXh3dnV0c3JxcG9ubQ==";
    for (token, basic, want) in [(preset, basic_preset, 200), (wrong, basic_wrong, 401)] {
        for (headers, query) in [
            (bearer(token), String::new()),
            (format!("Authorization: Token {token}\r\n"), String::new()),
            (format!("Authorization: Basic {basic}\r\n"), String::new()),
            (format!("x-api-key: {token}\r\n"), String::new()),
            (String::new(), format!("?u=user&p={token}")),
        ] {
            assert_eq!(ask("GET", &format!("/api/v1/auth/verify{query}"), &headers, "").0, want, "{headers}{query}");
            ask("POST", &format!("/api/v1/write/msgpack{query}"), &headers, "no msgpack");
            ask("POST", &format!("/write{query}"), &headers, "no line");
            ask("GET", &format!("/nowhere{query}"), &headers, "");
            ask("PUT", &format!("/api/v1/status{query}"), &headers, "");
        }
    }
    for token in [&made_text, &rotated, &by_hand] {
        ask("GET", "/api/v1/auth/verify", &bearer(token), "");
    }
    // Broken heads and bodies go through other paths of error.
    let _ = exchange(tls(&d, &cert, &[], rustls::ALL_VERSIONS), &format!("GET /x?p={preset} nonsense\r\nAuthorization: {wrong}\r\n\r\n"));
    let _ = exchange(d.tcp(), &request("GET", &format!("/health?p={preset}"), &bearer(wrong), ""));
    d.reload();
    std::fs::set_permissions(dir.join("data/auth/tokens.json"), std::fs::Permissions::from_mode(0o640)).unwrap();
    d.reload();
    let (log, said) = (d.log(), d.said());
    assert!(log.contains("\"TRACE\""), "the test means to see everything");
    assert!(log.contains("a request was refused"));
    for secret in [preset, wrong, basic_preset, &basic_wrong[..40], &made_text[4..], &rotated[4..], &by_hand[4..]] {
        for piece in [&secret[..20], &secret[secret.len() - 20..]] {
            for (what, text) in [("log", &log), ("stdout", &said)] {
                if let Some(line) = text.lines().find(|l| l.contains(piece)) {
                    panic!("{piece:?} in a line of the {what}: {line}");
                }
            }
        }
    }
    d.stop();
}
