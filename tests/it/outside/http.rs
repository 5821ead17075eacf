//! What clients send and hear at the edge of HTTP: encodings, lengths, refusals, credentials.

use std::time::{Duration, Instant};

use super::Case;
use crate::msgpack::{columnar, gzip, ints, zstd};
use crate::server::{Client, Place, Reply, Server};

const HERE: &str = "tests/it/outside/http.rs";

pub(super) const CASES: &[Case] = &[
    Case {
        id: "A1",
        kind: "a body in an encoding that is not undone, taken for text",
        tests: &[
            (HERE, "unknown_content_encoding_is_415_and_stores_nothing"),
            (HERE, "known_content_encodings_are_undone_in_any_form"),
            ("src/decode/compression.rs", "zstd_behind_skippable_frames_inflates"),
            ("src/http/encoding.rs", "known_encodings_in_any_case_and_in_lists_are_taken"),
        ],
    },
    Case {
        id: "A3",
        kind: "a body whose length is not given, taken for none",
        tests: &[(HERE, "write_without_a_length_is_411_and_its_body_is_no_request")],
    },
    Case {
        id: "A7",
        kind: "a refusal that a client which writes before it reads never sees",
        tests: &[
            (HERE, "early_answers_are_heard_by_a_client_that_writes_its_whole_body_first"),
            (HERE, "lingering_connections_give_way_to_new_ones_and_to_a_stop"),
            ("src/http/linger.rs", "bytes_have_a_limit_that_is_lower_for_unknown_senders"),
            ("src/http/linger.rs", "time_and_pauses_have_limits"),
            ("src/http/linger.rs", "no_more_than_the_bound_and_not_beyond_a_shutdown"),
        ],
    },
];

/// The write routes, with a database.
const ROUTES: [&str; 5] =
    ["/write?db=d", "/api/v2/write?bucket=d", "/api/v3/write_lp?db=d", "/api/v1/write/line-protocol?db=d", "/api/v1/write/msgpack?db=d"];

/// A body that the route stores.
fn good(route: &str) -> Vec<u8> {
    if route.contains("msgpack") {
        columnar("cpu", &[("time", ints(&[1_767_225_600])), ("v", ints(&[1]))])
    } else {
        b"cpu,host=a v=1 1767225600000000000".to_vec()
    }
}

/// Nothing was ever stored.
fn assert_empty(server: &Server) {
    let status = server.status();
    assert_eq!((&status["watermarks"]["durable"], status["tables"].as_array().map(Vec::len)), (&0.into(), Some(0)), "{status}");
}

fn assert_error(r: &Reply, status: u16, code: &str, says: &[&str]) {
    assert_eq!(r.status, status, "{r}");
    let body = r.json();
    assert_eq!(body["code"], code, "{r}");
    let message = body["message"].as_str().unwrap();
    for s in says {
        assert!(message.contains(s), "expected {s}: {r}");
    }
}

#[test]
fn unknown_content_encoding_is_415_and_stores_nothing() {
    let place = Place::new();
    let server = place.start(&[]);
    // The literal of a raw snappy block is readable, so that it was taken for a line.
    let snappy = b"\x2c.Hlog,host=a msg=\"abc:\x03\x00,\" 1767225600";
    for route in ROUTES {
        for encoding in ["snappy", "deflate", "br", "compress", "GZIP, Snappy", "gzip;q=1", "*", "utf-8"] {
            for body in [&snappy[..], b"cpu,host=a v=1 1767225600000000000", b"", b"x"] {
                let r = server.call("POST", route, &[("Content-Encoding", encoding)], body);
                let named = encoding.strip_prefix("GZIP, ").unwrap_or(encoding);
                assert_error(
                    &r,
                    415,
                    "unsupported media type",
                    &[&format!("'{named}'"), "gzip, x-gzip, zstd or identity", "nothing was stored"],
                );
            }
        }
        let r = server.call("POST", route, &[("Content-Encoding", "gzip"), ("Content-Encoding", "br")], &good(route));
        assert_error(&r, 415, "unsupported media type", &["'br'"]);
    }
    let form = [("Content-Encoding", "gzip"), ("Content-Type", "application/x-www-form-urlencoded")];
    let r = server.call("POST", "/query", &form, &gzip(b"q=SHOW+DATABASES"));
    assert_error(&r, 415, "unsupported media type", &["identity"]);
    assert_empty(&server);
    assert!(String::from_utf8(server.get("/metrics").body).unwrap().contains("reason=\"unsupported_encoding\"} 166"));
}

#[test]
fn known_content_encodings_are_undone_in_any_form() {
    let place = Place::new();
    let server = place.start(&[]);
    let skippable = |body: Vec<u8>| [b"\x5a\x2a\x4d\x18\x03\0\0\0abc", &body[..]].concat();
    for route in ROUTES {
        let body = good(route);
        let cases: &[(&str, Vec<u8>)] = &[
            ("identity", body.clone()),
            ("Identity", body.clone()),
            ("", body.clone()),
            ("gzip", gzip(&body)),
            (" GZip ", gzip(&body)),
            ("x-gzip", gzip(&body)),
            ("identity, gzip", gzip(&body)),
            ("zstd", zstd(&body)),
            ("zstd", skippable(zstd(&body))),
            ("zstd, gzip", gzip(&zstd(&body))),
            ("gzip,zstd", zstd(&gzip(&body))),
            ("gzip , gzip", gzip(&gzip(&body))),
            // Known by their first bytes, whatever the header says.
            ("snappy", gzip(&body)),
            ("br", zstd(&body)),
            ("gzip", body.clone()),
        ];
        for (encoding, body) in cases {
            let r = server.call("POST", route, &[("Content-Encoding", encoding)], body);
            assert!(r.status == 204 && r.sequence().is_some(), "{route} {encoding}: {r}");
        }
        let r = server.call("POST", route, &[("Content-Encoding", "zstd"), ("Content-Encoding", "gzip")], &gzip(&zstd(&body)));
        assert!(r.status == 204 && r.sequence().is_some(), "{route}: {r}");
    }
    let status = server.status();
    assert_eq!(status["watermarks"]["durable"], 16 * ROUTES.len());
    assert_eq!(status["tables"].as_array().unwrap().len(), 1, "{status}");
}

#[test]
fn write_without_a_length_is_411_and_its_body_is_no_request() {
    let place = Place::new();
    let server = place.start(&[]);
    let inner = format!(
        "POST /write?db=d HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}",
        good("").len(),
        String::from_utf8(good("")).unwrap()
    );
    for route in ROUTES {
        for version in ["1.0", "1.1"] {
            for body in [good(route), inner.clone().into_bytes(), Vec::new()] {
                let mut client = Client::connect(server.addr).unwrap();
                client.send(format!("POST {route} HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").as_bytes()).unwrap();
                client.send(&body).unwrap();
                let r = client.receive(false).unwrap();
                assert_error(&r, 411, "length required", &["Content-Length", "nothing was stored"]);
                assert_eq!(r.header("connection"), Some("close"));
                assert!(client.receive(false).is_err(), "one answer, then the end");
            }
        }
        let empty = server.call("POST", route, &[], b"");
        assert_eq!(empty.status, if route.contains("msgpack") { 400 } else { 204 }, "{route}: {empty}");
    }
    assert_empty(&server);
    // Nothing follows the head of these.
    for path in ["/api/v1/flush", "/query?q=CREATE+DATABASE+d"] {
        let mut client = Client::connect(server.addr).unwrap();
        for _ in 0..2 {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            assert_eq!(client.receive(false).unwrap().status, 200, "{path}");
        }
    }
}

const TOKEN: &str = "an-admin-token-of-thirty-two-characters-or-more";

fn with_tokens(place: &Place, more: &[&str]) -> Server {
    let sets: Vec<&str> = ["auth.enabled=true"].iter().chain(more).copied().collect();
    let mut server = place.launch_with(&sets, &[("ARC_AUTH_BOOTSTRAP_TOKEN", TOKEN)]);
    server.wait_ready();
    server
}

/// More than the two socket buffers of a loopback connection hold, and less than is discarded of an unknown client.
const UNREAD: usize = 12 << 20;

/// Writes the whole request before it reads the answer.
fn write_first(server: &Server, head: &str, body: &[u8]) -> Reply {
    let mut client = Client::connect(server.addr).unwrap();
    client.send(head.as_bytes()).unwrap();
    client.send(body).unwrap_or_else(|e| panic!("{head}: the body could not be written: {e}"));
    let r = client.receive(false).unwrap_or_else(|e| panic!("{head}: no answer: {e}"));
    assert_eq!(r.header("connection"), Some("close"), "{r}");
    r
}

#[test]
fn early_answers_are_heard_by_a_client_that_writes_its_whole_body_first() {
    let place = Place::new();
    let server = with_tokens(&place, &[]);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let made = server.call(
        "POST",
        "/api/v1/auth/tokens",
        &[("Authorization", &format!("Bearer {TOKEN}"))],
        br#"{"name": "other", "permissions": ["write"], "databases": ["other"]}"#,
    );
    let limited = format!("Authorization: Bearer {}\r\n", made.json()["token"].as_str().unwrap_or_else(|| panic!("{made}")));
    let length = format!("Content-Length: {UNREAD}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let body = vec![b'x'; UNREAD];
    let chunks = [b"10000\r\n", &body[..65536], b"\r\n"].concat().repeat(UNREAD / 65536);
    for (line, headers, body, status) in [
        ("POST /write?db=1bad", format!("{bearer}{length}"), &body, 400),
        ("POST /api/v1/write/msgpack?db=1bad", format!("{bearer}{chunked}"), &chunks, 400),
        ("POST /write?db=d", length.clone(), &body, 401),
        ("POST /write?db=d", chunked.to_owned(), &chunks, 401),
        ("POST /write?db=d", format!("{limited}{length}"), &body, 403),
        ("POST /nowhere", length.clone(), &body, 404),
        ("PUT /write?db=d", length.clone(), &body, 405),
        ("POST /write?db=d", bearer.clone(), &body, 411),
        ("POST /write?db=d", format!("{bearer}{length}"), &body, 413),
        ("POST /api/v2/write?bucket=d", format!("{bearer}{chunked}"), &chunks, 413),
        ("POST /write?db=d", format!("{bearer}{length}Content-Encoding: snappy\r\n"), &body, 413),
        ("POST /write?db=d", format!("{bearer}{chunked}Content-Encoding: snappy\r\n"), &chunks, 415),
    ] {
        let r = write_first(&server, &format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"), body);
        assert_eq!(r.status, status, "{line} {headers}: {r}");
    }
    // hyper answers broken heads by itself.
    for head in [format!("POST /write HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(40_000)), "POST  /write\r\n\r\n".to_owned()] {
        let mut client = Client::connect(server.addr).unwrap();
        client.send(head.as_bytes()).unwrap();
        client.send(&body).unwrap();
        assert!([400, 431].contains(&client.receive(false).unwrap().status));
    }
    let big = vec![b'x'; 40 << 20];
    let r =
        write_first(&server, &format!("POST /write?db=1bad HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: {}\r\n\r\n", big.len()), &big);
    assert_eq!(r.status, 400, "with a token more is discarded: {r}");
    server.stop();
}

#[test]
fn lingering_connections_give_way_to_new_ones_and_to_a_stop() {
    let place = Place::new();
    let server = with_tokens(&place, &["server.max_connections=4"]);
    let refused = || {
        let mut client = Client::connect(server.addr).unwrap();
        client.send(b"POST /write?db=d HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\nx").unwrap();
        assert_eq!(client.receive(false).unwrap().status, 401);
        client
    };
    // Each is answered and goes on sending; none of them keeps a healthy client waiting.
    let held: Vec<Client> = (0..4).map(|_| refused()).collect();
    let begun = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(held);
    let held: Vec<Client> = (0..3).map(|_| refused()).collect();
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    drop(held);
}
