//! What clients send and hear at the edge of HTTP: encodings, lengths, refusals, credentials.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Case;
use crate::lake;
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
        id: "A5",
        kind: "a partial write that is repeated, stored once a try",
        tests: &[
            (HERE, "partial_write_repeated_with_the_same_bytes_is_stored_once_also_over_a_restart"),
            (HERE, "partial_write_with_a_line_without_time_is_stored_each_time"),
            ("src/idempotency.rs", "the_servers_own_keys_have_a_budget_of_their_own"),
        ],
    },
    Case {
        id: "A6",
        kind: "names and credentials in the forms of InfluxDB 1.8",
        tests: &[
            (HERE, "bucket_with_a_retention_policy_is_the_database_before_the_slash"),
            (HERE, "token_with_a_user_before_a_colon_is_the_part_behind_it"),
        ],
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
    Case {
        id: "A14",
        kind: "a list that is always empty",
        tests: &[(HERE, "show_databases_lists_those_that_exist_and_that_the_token_may_see")],
    },
    Case { id: "A16", kind: "browsers that cannot write", tests: &[(HERE, "pages_of_allowed_origins_may_write_and_no_others")] },
    Case {
        id: "E2",
        kind: "refused writes of which nothing is known",
        tests: &[
            (HERE, "refused_writes_are_in_the_status_and_in_the_log_without_secrets"),
            ("src/http/refusals.rs", "equal_refusals_are_one_entry_and_the_list_is_bounded"),
            ("src/http/refusals.rs", "a_sender_and_reason_is_logged_once_in_ten_seconds_and_all_of_them_seldom"),
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

/// Three lines, the middle one bad.
const PARTIAL: &str = "cpu,host=a v=1 1767225600000000000\ncpu,host=a v= 1767225601000000000\ncpu,host=b v=2 1767225602000000000";

fn rows(place: &Place, server: &Server, table: &str) -> usize {
    server.flush();
    lake::rows(&place.lake(), "d", table).len()
}

#[test]
fn partial_write_repeated_with_the_same_bytes_is_stored_once_also_over_a_restart() {
    let place = Place::new();
    let mut server = place.start(&[]);
    let first = server.call("POST", "/write?db=d", &[], PARTIAL.as_bytes());
    assert!(first.status == 400 && first.header("idempotency-replayed").is_none(), "{first}");
    let same = |r: &Reply| {
        assert_eq!((r.status, r.json(), r.sequence()), (400, first.json(), first.sequence()), "{r}");
        assert_eq!(r.header("idempotency-replayed"), Some("true"), "{r}");
    };
    for _ in 0..3 {
        same(&server.call("POST", "/write?db=d", &[], PARTIAL.as_bytes()));
    }
    same(&server.call("POST", "/write?db=d", &[("Content-Encoding", "gzip")], &gzip(PARTIAL.as_bytes())));
    assert_eq!(rows(&place, &server, "cpu"), 2);
    server.kill();
    let server = place.start(&[]);
    same(&server.call("POST", "/write?db=d", &[], PARTIAL.as_bytes()));
    server.stop();
    let server = place.start(&[]);
    same(&server.call("POST", "/write?db=d", &[], PARTIAL.as_bytes()));
    assert_eq!(rows(&place, &server, "cpu"), 2);

    // Other bytes, another route, precision or database are other writes.
    let others = [
        server.call("POST", "/write?db=d", &[], format!("{PARTIAL}\n").as_bytes()),
        server.call("POST", "/api/v2/write?bucket=d", &[], PARTIAL.as_bytes()),
        server.call("POST", "/write?db=e", &[], PARTIAL.as_bytes()),
        server.call("POST", "/api/v3/write_lp?db=d&precision=ns", &[], PARTIAL.as_bytes()),
        server.call("POST", "/api/v3/write_lp?db=d&precision=auto", &[], PARTIAL.as_bytes()),
    ];
    for r in &others {
        assert!(r.status == 400 && r.header("idempotency-replayed").is_none() && r.sequence() > first.sequence(), "{r}");
    }
    // A client's key comes first, and a whole write is new each time.
    for key in ["k1", "k2"] {
        let r = server.call("POST", "/write?db=d", &[("Idempotency-Key", key)], PARTIAL.as_bytes());
        assert!(r.status == 400 && r.header("idempotency-replayed").is_none(), "{r}");
    }
    let whole = b"whole v=1 1767225600000000000";
    for _ in 0..2 {
        assert_eq!(server.call("POST", "/write?db=d", &[], whole).status, 204);
    }
    assert_eq!(rows(&place, &server, "whole"), 2);
    assert_eq!(server.status()["keys"], 2, "those of clients alone");
}

#[test]
fn partial_write_with_a_line_without_time_is_stored_each_time() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = format!("{PARTIAL}\ncpu,host=c v=3");
    for _ in 0..3 {
        let r = server.call("POST", "/write?db=d", &[], body.as_bytes());
        assert!(r.status == 400 && r.header("idempotency-replayed").is_none(), "{r}");
    }
    assert_eq!(rows(&place, &server, "cpu"), 9);
}

#[test]
fn bucket_with_a_retention_policy_is_the_database_before_the_slash() {
    let place = Place::new();
    let server = place.start(&[]);
    for bucket in ["telegraf/autogen", "telegraf%2Fautogen", "telegraf/", "telegraf", "telegraf/a/b"] {
        for route in ["/api/v2/write", "/write", "/api/v3/write_lp"] {
            let r = server.call("POST", &format!("{route}?org=o&bucket={bucket}"), &[], &good(""));
            assert!(r.status == 204 && r.sequence().is_some(), "{route} {bucket}: {r}");
        }
    }
    for bucket in ["/autogen", "/", "", "1a/autogen", "a%00/b"] {
        let r = server.call("POST", &format!("/api/v2/write?bucket={bucket}"), &[], &good(""));
        assert_error(&r, 400, "invalid", &["database"]);
    }
    assert_eq!(rows_of(&server), [("telegraf".to_owned(), "cpu".to_owned())]);
}

/// Database and table of each table that there is.
fn rows_of(server: &Server) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    server.status()["tables"].as_array().unwrap().iter().map(|t| (text(&t["database"]), text(&t["table"]))).collect()
}

fn made_token(server: &Server, databases: &str) -> String {
    let body = format!(r#"{{"name": "t-{}", "permissions": ["write"], "databases": {databases}}}"#, databases.len());
    let r = server.call("POST", "/api/v1/auth/tokens", &[("Authorization", &format!("Bearer {TOKEN}"))], body.as_bytes());
    r.json()["token"].as_str().unwrap_or_else(|| panic!("{r}")).to_owned()
}

#[test]
fn token_with_a_user_before_a_colon_is_the_part_behind_it() {
    let place = Place::new();
    let server = with_tokens(&place, &[]);
    for value in [format!("Token telegraf:{TOKEN}"), format!("token :{TOKEN}"), format!("Token {TOKEN}"), format!("Bearer {TOKEN}")] {
        let r = server.call("POST", "/api/v2/write?bucket=d/autogen", &[("Authorization", &value)], &good(""));
        assert_eq!(r.status, 204, "{value}: {r}");
    }
    for value in
        [format!("Token {TOKEN}:telegraf"), "Token telegraf:".to_owned(), format!("Token a:b:{TOKEN}"), format!("Bearer u:{TOKEN}")]
    {
        let r = server.call("POST", "/api/v2/write?bucket=d", &[("Authorization", &value)], &good(""));
        assert_eq!(r.status, 401, "{value}: {r}");
    }
    let r = server.call("POST", &format!("/write?db=d&u=telegraf&p={TOKEN}"), &[], &good(""));
    assert_eq!(r.status, 204, "{r}");
}

#[test]
fn show_databases_lists_those_that_exist_and_that_the_token_may_see() {
    let place = Place::new();
    let server = with_tokens(&place, &[]);
    let admin = format!("Bearer {TOKEN}");
    let names = |headers: &[(&str, &str)], path: &str| -> Vec<String> {
        let r = server.call("GET", path, headers, b"");
        assert_eq!(r.status, 200, "{r}");
        let series = r.json()["results"][0]["series"][0].clone();
        assert!(series.is_null() || (series["name"] == "databases" && series["columns"] == serde_json::json!(["name"])), "{r}");
        series["values"].as_array().into_iter().flatten().map(|v| v[0].as_str().unwrap().to_owned()).collect()
    };
    let all = "/query?q=SHOW+DATABASES";
    assert!(names(&[("Authorization", &admin)], all).is_empty());
    for database in ["plant", "d", "e"] {
        let r = server.call("POST", &format!("/write?db={database}"), &[("Authorization", &admin)], &good(""));
        assert_eq!(r.status, 204, "{r}");
    }
    assert_eq!(names(&[("Authorization", &admin)], all), ["d", "e", "plant"]);
    assert_eq!(names(&[("Authorization", &admin)], "/query?q=SHOW+DATABASES&db=new"), ["d", "e", "plant", "new"]);
    let limited = format!("Token u:{}", made_token(&server, r#"["e", "none"]"#));
    assert_eq!(names(&[("Authorization", &limited)], all), ["e"]);
    for headers in [&[][..], &[("Authorization", "Bearer wrong")]] {
        assert!(names(headers, all).is_empty(), "the route is open, the list is not");
    }
    assert!(names(&[("Authorization", &admin)], "/query?q=CREATE+DATABASE+x").is_empty());
}

#[test]
fn pages_of_allowed_origins_may_write_and_no_others() {
    let place = Place::new();
    let server = with_tokens(&place, &["server.cors_origins=https://app.example, http://localhost:3000"]);
    let ask = |origin: &str, path: &str| {
        server.call(
            "OPTIONS",
            path,
            &[("Origin", origin), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization")],
            b"",
        )
    };
    for route in ROUTES {
        let path = route.split_once('?').unwrap().0;
        for origin in ["https://app.example", "http://localhost:3000"] {
            let r = ask(origin, path);
            assert_eq!((r.status, r.header("access-control-allow-origin"), r.header("vary")), (204, Some(origin), Some("origin")), "{r}");
            assert!(r.header("access-control-allow-methods").unwrap().contains("POST"), "{r}");
            assert!(r.header("access-control-allow-headers").unwrap().contains("authorization"), "{r}");
        }
        for origin in ["https://evil.example", "null", "https://app.example.evil", "http://app.example"] {
            let r = ask(origin, path);
            assert_eq!((r.status, r.header("access-control-allow-origin")), (405, None), "{origin}: {r}");
        }
    }
    assert_eq!(ask("https://app.example", "/api/v1/auth/tokens").status, 405);
    // The write itself, taken or refused, can be read by the page; it still needs its token.
    let admin = format!("Bearer {TOKEN}");
    for (headers, status) in [(vec![("Authorization", admin.as_str())], 204), (vec![], 401)] {
        let headers: Vec<_> = headers.into_iter().chain([("Origin", "https://app.example")]).collect();
        let r = server.call("POST", "/write?db=d", &headers, &good(""));
        assert_eq!((r.status, r.header("access-control-allow-origin")), (status, Some("https://app.example")), "{r}");
        assert!(r.header("access-control-expose-headers").unwrap().contains("x-arc-sequence"), "{r}");
    }
    let r = server.call("GET", "/api/v1/status", &[("Authorization", &admin), ("Origin", "https://app.example")], b"");
    assert_eq!((r.status, r.header("access-control-allow-origin")), (200, None), "only what writers need: {r}");
    drop(server);
    let off = place.start(&[]);
    let r = off.call("OPTIONS", "/write", &[("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")], b"");
    assert_eq!((r.status, r.header("access-control-allow-origin"), r.header("vary")), (405, None, None), "{r}");
}

#[test]
fn refused_writes_are_in_the_status_and_in_the_log_without_secrets() {
    let place = Place::new();
    let server = with_tokens(&place, &[]);
    let admin = format!("Bearer {TOKEN}");
    let auth = [("Authorization", admin.as_str())];
    assert_eq!(server.call("POST", "/write?db=d", &auth, b"cpu v=1 1767225600000000000").status, 204);
    let wrong = "a-wrong-token-that-nobody-may-see-anywhere";
    for _ in 0..20 {
        assert_eq!(server.call("POST", "/api/v2/write?bucket=d", &auth, b"cpu v=\"private text\" 1767225601000000000").status, 422);
    }
    assert_eq!(server.call("POST", "/write?db=d", &auth, b"cpu v=2 1767225602000000000\nbad line").status, 400);
    assert_eq!(server.call("POST", &format!("/write?db=d&p={wrong}"), &[], &good("")).status, 401);
    assert_eq!(server.call("POST", "/write?db=1bad", &auth, &good("")).status, 400);
    assert_eq!(server.call("POST", "/write?db=d", &[auth[0], ("Content-Encoding", "br")], b"xxxxx").status, 415);
    let r = server.call("GET", "/api/v1/status", &auth, b"");
    let refused = r.json()["refused_writes"].as_array().unwrap_or_else(|| panic!("{r}")).clone();
    let seen: Vec<_> =
        refused.iter().map(|k| (k["reason"].as_str().unwrap(), k["status"].as_u64().unwrap(), k["count"].as_u64().unwrap())).collect();
    assert_eq!(
        seen,
        [("unsupported_encoding", 415, 1), ("invalid", 400, 1), ("unauthorized", 401, 1), ("partial_write", 400, 1), ("invalid", 422, 20)],
        "newest first"
    );
    let conflict = &refused[4];
    assert_eq!((&conflict["peer"], &conflict["route"]), (&"127.0.0.1".into(), &"write_v2".into()), "{conflict}");
    assert_eq!((&conflict["database"], &conflict["table"]), (&"d".into(), &"cpu".into()), "{conflict}");
    assert!(conflict["last"].as_str().unwrap().starts_with("20"), "{conflict}");
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("write refused")).collect();
    assert!(lines.iter().filter(|l| l.contains("invalid") && l.contains("127.0.0.1")).count() <= 2, "{log}");
    for reason in ["unsupported_encoding", "partial_write", "invalid", "unauthorized"] {
        assert!(lines.iter().any(|l| l.contains(reason)), "{reason}: {log}");
    }
    for secret in [wrong, TOKEN, "private text"] {
        assert!(!log.contains(secret) && !String::from_utf8_lossy(&r.body).contains(secret), "{secret}");
    }
}
