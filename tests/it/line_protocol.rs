//! Line protocol through HTTP to Parquet: what each API stores of a body, what it says of the rest, and that a key holds for both.

use serde_json::{Value, json};

use super::lake;
use super::msgpack::{gzip, mp, zstd};
use super::server::{Place, Reply, Server};

/// 2023-11-14T22:13:20Z.
const T: i64 = 1_700_000_000_000_000;

/// The four routes with a database and nanoseconds.
const ROUTES: [&str; 4] = [
    "/write?db=d&precision=ns",
    "/api/v2/write?org=o&bucket=d&precision=ns",
    "/api/v3/write_lp?db=d&precision=nanosecond",
    "/api/v1/write/line-protocol?db=d&precision=ns",
];

impl Server {
    fn lines(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.call("POST", path, headers, body)
    }
}

fn ns(us: i64) -> i64 {
    us * 1000
}

fn bad_lines(r: &Reply) -> Vec<u64> {
    r.json()["data"].as_array().unwrap_or_else(|| panic!("{r}")).iter().map(|d| d["line_number"].as_u64().unwrap()).collect()
}

fn table(place: &Place, name: &str) -> Vec<Value> {
    lake::rows(&place.lake(), "d", name)
}

#[test]
fn rows_come_back_exactly() {
    let place = Place::new();
    let server = place.start(&[]);
    for (n, path) in ROUTES.iter().enumerate() {
        let body = format!(
            "# four types, escapes, a string over two lines\n\
             m{n},host=a\\ b,dc=eu u=1i,f=0.5,s=\"x\\\"y\\\\z\nsecond\",ok=t {}\r\n\
             m{n},host=c u=2u,f=7,date=\"d\" {}\n",
            ns(T) + 999,
            ns(T + 1)
        );
        let bytes = match n {
            1 => gzip(body.as_bytes()),
            2 => zstd(body.as_bytes()),
            _ => body.into_bytes(),
        };
        let r = server.lines(path, &[], &bytes);
        assert!(r.status == 204 && r.body.is_empty() && r.sequence() == Some(n as u64 + 1), "{r}");
    }
    // Without a time stamp a line has the time of receipt.
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    assert_eq!(server.lines("/write?db=d", &[], b"now v=1").status, 204);
    let flushed = server.flush();
    assert_eq!(flushed["rows"], 9);
    for n in 0..4 {
        let want = [
            json!({"time": T, "dc": "eu", "host": "a b", "date_value": null, "f": 0.5, "ok": true, "s": "x\"y\\z\nsecond", "u": 1}),
            json!({"time": T + 1, "dc": null, "host": "c", "date_value": "d", "f": 7.0, "ok": null, "s": null, "u": 2}),
        ];
        assert_eq!(table(&place, &format!("m{n}")), want);
    }
    let order: Vec<String> = lake::files(&place.lake(), "d/m0")[0].schema.iter().map(|(n, t)| format!("{n}:{t}")).collect();
    assert_eq!(order.join(" "), "time:timestamp dc:string host:string date_value:string f:double ok:bool s:string u:int64");
    assert!((before - 5_000_000..before + 60_000_000).contains(&table(&place, "now")[0]["time"].as_i64().unwrap()));
    server.stop();
}

#[test]
fn empty_bodies_store_nothing() {
    let place = Place::new();
    let server = place.start(&[]);
    for path in ROUTES {
        for body in ["", "\n\n", "# comment\n", " \r\n"] {
            let r = server.lines(path, &[("Idempotency-Key", "empty")], body.as_bytes());
            assert!(r.status == 204 && r.body.is_empty() && r.sequence().is_none(), "{path} {body:?}: {r}");
        }
    }
    assert_eq!(server.watermark("appended"), 0);
    assert_eq!(server.status()["keys"], 0);
}

/// Good lines are stored in one record, bad ones are told of and leave nothing; after a kill it is the same.
#[test]
fn partial_writes_keep_the_good_lines_on_every_route() {
    let place = Place::new();
    let mut server = place.start(&[]);
    for (n, path) in ROUTES.iter().enumerate() {
        let body = format!(
            "p{n} v=1i {}\np{n} v=1.5i 5\n\np{n},t= v=3i 5\np{n} v=\"text\" {}\np{n} v=4i,time=5 5\np{n},t=x v=5i {}\nq{n} \u{7}=1\nq{n} w=NaN",
            ns(T),
            ns(T + 1),
            ns(T + 2)
        );
        let r = server.lines(path, &[], body.as_bytes());
        assert_eq!((r.status, r.sequence()), (400, Some(n as u64 + 1)), "{r}");
        assert_eq!(bad_lines(&r), [2, 4, 5, 6, 8, 9], "{r}");
        let body = r.json();
        assert_eq!((&body["code"], &body["line"]), (&json!("invalid"), &json!(2)), "{r}");
        let text = body["error"].as_str().unwrap();
        assert!(text.starts_with("partial write") && text.contains("unable to parse") && text.ends_with("dropped=6"), "{text}");
        assert_eq!(r.header("x-influxdb-error").is_some(), n == 0, "{r}");
    }
    // Every line is bad: nothing is stored, and no table comes to be.
    for (n, path) in ROUTES.iter().enumerate() {
        let r = server.lines(path, &[("Idempotency-Key", "all-bad")], format!("none{n} v=\nnone{n}").as_bytes());
        assert_eq!((r.status, r.sequence()), (400, None), "{r}");
        assert!(!r.json()["error"].as_str().unwrap().contains("partial write"), "{r}");
        let r = server.lines(path, &[("Idempotency-Key", "all-bad")], format!("none{n} x=\n").as_bytes());
        assert_eq!(r.status, 400, "a refused request's key is free: {r}");
    }
    assert_eq!(server.watermark("appended"), 4);
    assert_eq!(server.status()["keys"], 0);
    server.kill();
    let server = place.start(&[]);
    assert_eq!(server.flush()["rows"], 8);
    for n in 0..4 {
        let want = [json!({"time": T, "t": null, "v": 1}), json!({"time": T + 2, "t": "x", "v": 5})];
        assert_eq!(table(&place, &format!("p{n}")), want);
    }
    assert_eq!(server.status()["tables"].as_array().unwrap().len(), 4);
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("arc_ingest_refused_lines_total 0"), "counted by the process before");
    server.stop();
}

#[test]
fn v3_can_be_all_or_nothing() {
    let place = Place::new();
    let server = place.start(&[]);
    let body = format!("m v=1 {}\nm v=\nm v=\"x\" 5", ns(T));
    let path = "/api/v3/write_lp?db=d&precision=ns&accept_partial=false&no_sync=true";
    let r = server.lines(path, &[], body.as_bytes());
    assert_eq!((r.status, r.sequence(), bad_lines(&r)), (400, None, vec![2, 3]), "{r}");
    assert!(r.json()["error"].as_str().unwrap().starts_with("parsing failed for write_lp endpoint"), "{r}");
    assert_eq!(server.watermark("appended"), 0);
    let r = server.lines(path, &[], b"m v=1");
    assert_eq!((r.status, r.sequence()), (204, Some(1)), "{r}");
    assert_eq!(server.watermark("durable"), 1, "no_sync syncs all the same");
}

/// What an earlier request has made durable decides, line by line, whichever format it came in.
#[test]
fn conflicts_with_durable_types_cost_only_their_lines() {
    let place = Place::new();
    let server = place.start(&["ingest.max_columns=4"]);
    let columns = json!({"time": [T], "i": [1], "f": [0.5], "s": ["x"]});
    server.call("POST", "/api/v1/write/msgpack?db=d", &[], &mp(&json!({"m": "typed", "columns": columns})));
    let wide = (1i64 << 53) + 1;
    let body = format!(
        "typed i=\"x\" 5\ntyped i=2i,f=3i {a}\ntyped f={wide}i 5\ntyped s=1 5\nother s=1 {a}\ntyped F=1 5\ntyped b=t {b}\ntyped c=1 5\ntyped i=2.5 {c}",
        a = ns(T + 1),
        b = ns(T + 2),
        c = ns(T + 3),
    );
    let want_bad = [1, 3, 4, 6, 8];
    for (n, path) in ROUTES.iter().enumerate() {
        let r = server.lines(path, &[], body.replace("other", &format!("other{n}")).as_bytes());
        assert_eq!((r.status, bad_lines(&r)), (400, want_bad.to_vec()), "{path}: {r}");
        let text = r.json()["error"].as_str().unwrap().to_owned();
        assert!(
            text.contains("field type conflict: input field \"i\" on measurement \"typed\" is type string, already exists as type"),
            "{r}"
        );
        // Conflicts alone.
        let r = server.lines(path, &[], format!("typed s=1\nalone{n} v=1 {}\ntyped s=t", ns(T)).as_bytes());
        assert_eq!((r.status, bad_lines(&r)), (if n % 2 == 0 { 400 } else { 422 }, vec![1, 3]), "{path}: {r}");
        assert_eq!(r.json()["code"], if n % 2 == 0 { "invalid" } else { "unprocessable entity" });
        assert_eq!(r.sequence(), Some(2 * n as u64 + 3));
    }
    assert_eq!(server.flush()["rows"], 1 + 4 * 5);
    let widened = server.status()["tables"].as_array().unwrap().iter().find(|t| t["table"] == "typed").unwrap()["widened"].clone();
    assert_eq!(widened, json!(["i"]));
    server.stop();
}

/// A partial write with a key is stored once, and every repeat hears the same of it, also after restarts.
#[test]
fn a_repeated_key_replays_a_partial_write() {
    let place = Place::new();
    let mut server = place.start(&[]);
    // On one route the conflict alone, for the status 422.
    let bodies: Vec<String> = (0..4)
        .map(|n| {
            let syntax = if n == 3 { "" } else { "bad line\n" };
            format!("k{n} v=1i {}\n{syntax}k{n} v=\"x\" 5\nk{n} v=2i {}", ns(T), ns(T + 1))
        })
        .collect();
    let send = |server: &Server, n: usize| server.lines(ROUTES[n], &[("Idempotency-Key", &format!("key-{n}"))], bodies[n].as_bytes());
    let first: Vec<Reply> = (0..4).map(|n| send(&server, n)).collect();
    for (n, r) in first.iter().enumerate() {
        assert_eq!((r.status, r.sequence()), ([400, 400, 400, 422][n], Some(n as u64 + 1)), "{r}");
        assert_eq!(r.header("idempotency-replayed"), None);
    }
    for life in 0..3 {
        for (n, before) in first.iter().enumerate() {
            let r = send(&server, n);
            assert_eq!(r.header("idempotency-replayed"), Some("true"), "life {life}: {r}");
            assert_eq!((r.status, r.sequence(), r.json()), (before.status, before.sequence(), before.json()), "life {life}");
        }
        // The same key with another body, precision or flag is another request.
        for (path, body) in [
            (ROUTES[0], "k0 v=1i"),
            ("/write?db=d&precision=us", bodies[0].as_str()),
            (ROUTES[3], bodies[0].as_str()),
            ("/api/v1/write/msgpack?db=d", bodies[0].as_str()),
        ] {
            let r = server.lines(path, &[("Idempotency-Key", "key-0")], body.as_bytes());
            assert_eq!(r.status, 422, "{path}: {r}");
        }
        let path = format!("{}&accept_partial=false", ROUTES[2]);
        assert_eq!(server.lines(&path, &[("Idempotency-Key", "key-2")], bodies[2].as_bytes()).status, 422);
        match life {
            // The second start finds the keys in the checkpoint, their segments shipped.
            0 => assert_eq!(server.flush()["rows"], 8),
            1 => assert_eq!(server.flush()["rows"], 0),
            _ => break,
        }
        server.kill();
        server = place.start(&[]);
    }
    assert_eq!(server.watermark("appended"), 4);
    for n in 0..4 {
        assert_eq!(table(&place, &format!("k{n}")), [json!({"time": T, "v": 1}), json!({"time": T + 1, "v": 2})]);
    }
    server.stop();
}

/// Columns that several requests make at the same time with types of their own: each line is stored or told of, and the table has one type.
#[test]
fn racing_definitions_lose_only_lines_that_are_told_of() {
    let place = Place::new();
    let server = place.start(&[]);
    let rounds = 20;
    let counts: Vec<(u64, u64)> = std::thread::scope(|s| {
        let server = &server;
        let threads: Vec<_> = (0..4)
            .map(|n| {
                s.spawn(move || {
                    let (mut stored, mut dropped) = (0, 0);
                    for round in 0..rounds {
                        let value = ["1i", "\"x\"", "t", "\"y\""][n];
                        let at = ns(T) + i64::from(round) * 100_000 + n as i64 * 10_000;
                        let body =
                            format!("r{round} own{n}=1i {at}\nr{round} shared={value} {}\nr{round} own{n}=2i {}", at + 1000, at + 2000);
                        let r = server.lines(ROUTES[n], &[], body.as_bytes());
                        let bad = if r.status == 204 { 0 } else { bad_lines(&r).len() as u64 };
                        assert!(bad <= 1 && (r.status == 204 || bad_lines(&r) == [2]), "{r}");
                        stored += 3 - bad;
                        dropped += bad;
                    }
                    (stored, dropped)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let stored: u64 = counts.iter().map(|(s, _)| s).sum();
    assert_eq!(stored + counts.iter().map(|(_, d)| d).sum::<u64>(), 3 * 4 * u64::from(rounds as u32));
    assert_eq!(server.flush()["rows"].as_u64(), Some(stored), "{counts:?}");
    let found: usize = (0..rounds).map(|r| table(&place, &format!("r{r}")).len()).sum();
    assert_eq!(found as u64, stored);
}

#[test]
fn pings_and_statements() {
    let place = Place::new();
    let server = place.start(&[]);
    assert_eq!(server.get("/ping").status, 204);
    assert_eq!(server.get("/ping?verbose=true").status, 200);
    let r = server.call("POST", "/query", &[("Content-Type", "application/x-www-form-urlencoded")], b"q=CREATE+DATABASE+%22telegraf%22");
    assert_eq!((r.status, r.json()), (200, json!({"results": [{"statement_id": 0}]})));
    assert_eq!(server.get("/query?q=SELECT+1").status, 400);
}
