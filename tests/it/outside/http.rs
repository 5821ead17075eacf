//! What clients send and hear at the edge of HTTP: encodings, lengths, refusals, credentials.

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
