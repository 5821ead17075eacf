//! The routes of line protocol: what goes in, and how refused lines are told of.

use super::*;

const ROUTES_OF_LINES: [(&str, Dialect); 4] = [
    ("/write?db=d", Dialect::V1),
    ("/api/v2/write?bucket=d&org=o", Dialect::V2),
    ("/api/v3/write_lp?db=d", Dialect::V3),
    ("/api/v1/write/line-protocol?db=d", Dialect::Arc),
];

fn to(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

impl Running {
    async fn lines(&self, path: &str, body: &str) -> Answer {
        self.once(&to(path, "", body)).await
    }

    fn last_lines(&self) -> LineRequest {
        self.backend.lines.lock().unwrap().last().unwrap().clone()
    }
}

#[tokio::test]
async fn requests_reach_the_backend_with_what_they_say() {
    let server = start(|_| {}).await;
    for (path, dialect) in ROUTES_OF_LINES {
        let answer = server.lines(path, "m v=1").await;
        assert_eq!((answer.status, answer.body.len(), answer.header("x-arc-sequence")), (204, 0, Some("7")));
        let seen = server.last_lines();
        let default = if dialect == Dialect::V3 { Precision::Auto } else { Precision::Nanos };
        assert_eq!((seen.dialect, seen.database.as_str(), seen.precision, seen.accept_partial), (dialect, "d", default, true));
        assert_eq!((seen.idempotency_key, &seen.body[..]), (None, &b"m v=1"[..]));
        server.lines(&format!("{path}&precision=ms"), "").await;
        assert_eq!(server.last_lines().precision, Precision::Millis);
        server.once(&to(path, "x-arc-database: other\r\nIdempotency-Key: k\r\n", "m v=1")).await;
        let seen = server.last_lines();
        assert_eq!((seen.database.as_str(), seen.idempotency_key.as_deref()), ("other", Some("k")));
        server.lines(&format!("{path}&precision=fortnight"), "m v=1").await.assert_error(400, "invalid", None);
        server.lines(path, "invalid").await.assert_error(400, "invalid", None);
        server.lines(path, "full").await.assert_error(503, "unavailable", Some("disk_full"));
        let replayed = server.lines(path, "replay").await;
        assert_eq!((replayed.status, replayed.header("idempotency-replayed")), (204, Some("true")));
    }
    let stored = server.backend.lines.lock().unwrap().len();
    for path in ["/write", "/api/v2/write?org=o", "/api/v3/write_lp", "/write?db=", "/write?db=a/b"] {
        server.lines(path, "m v=1").await.assert_error(400, "invalid", None);
    }
    assert_eq!(server.backend.lines.lock().unwrap().len(), stored);
    assert_eq!(server.lines("/api/v1/write/line-protocol", "m v=1").await.status, 204);
    assert_eq!(server.last_lines().database, "default");
}

#[tokio::test]
async fn v3_has_two_flags() {
    let server = start(|_| {}).await;
    for (parameters, partial) in [
        ("", true),
        ("&accept_partial=true", true),
        ("&accept_partial=false", false),
        ("&no_sync=true", true),
        ("&no_sync=false&accept_partial=false", false),
    ] {
        assert_eq!(server.lines(&format!("/api/v3/write_lp?db=d{parameters}"), "m v=1").await.status, 204);
        assert_eq!(server.last_lines().accept_partial, partial, "{parameters}");
    }
    for bad in ["&accept_partial=1", "&no_sync=maybe"] {
        server.lines(&format!("/api/v3/write_lp?db=d{bad}"), "m v=1").await.assert_error(400, "invalid", None);
    }
    assert_eq!(server.lines("/write?db=d&accept_partial=1&no_sync=maybe", "m v=1").await.status, 204, "nobody asked");
}

/// Each API's own text and status; the lines themselves are told of in one way.
#[tokio::test]
async fn refused_lines_are_told_of() {
    let server = start(|_| {}).await;
    let body = "m v=1\n\n# a comment\nm v=oops\nm v=bad";
    let why = "unable to parse 'm v=oops': invalid field value";
    for ((path, dialect), text) in ROUTES_OF_LINES.into_iter().zip([
        format!("partial write: {why}"),
        format!("partial write: line 4: {why}"),
        format!("partial write of line protocol occurred: line 4: {why}"),
        format!("partial write: line 4: {why}"),
    ]) {
        let answer = server.lines(path, body).await;
        answer.assert_error(400, "invalid", None);
        let json = answer.json();
        let message = json["message"].as_str().unwrap();
        assert!(message.starts_with(&text) && message.ends_with(" dropped=2"), "{dialect:?}: {message}");
        assert_eq!((&json["line"], answer.header("x-arc-sequence")), (&json!(4), Some("7")));
        let data = json["data"].as_array().unwrap();
        assert_eq!(data.len(), 2);
        assert_eq!((&data[1]["line_number"], &data[1]["original_line"]), (&json!(5), &json!("m v=bad")));
        assert!(data[1]["error_message"].as_str().unwrap().contains("found 'bad'"), "{json}");
        assert_eq!(answer.header("x-influxdb-error"), (dialect == Dialect::V1).then_some(message));
    }
    // Nothing is stored: then it is no partial write.
    for ((path, dialect), text) in ROUTES_OF_LINES.into_iter().zip([
        "unable to parse 'bad': missing fields",
        "line 1: unable to parse 'bad': missing fields",
        "parsing failed for write_lp endpoint: line 1: unable to parse 'bad': missing fields",
        "line 1: unable to parse 'bad': missing fields",
    ]) {
        let answer = server.lines(path, "bad").await;
        answer.assert_error(400, "invalid", None);
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(text) && message.ends_with(" dropped=1"), "{dialect:?}: {message}");
        assert_eq!(answer.header("x-arc-sequence"), None);
    }
    let refused = server.lines("/api/v3/write_lp?db=d&accept_partial=false", body).await;
    refused.assert_error(400, "invalid", None);
    assert_eq!(refused.header("x-arc-sequence"), None);
    assert!(refused.json()["message"].as_str().unwrap().starts_with("parsing failed for write_lp endpoint: line 4"));
    assert!(server.metric("arc_http_rejected_total{reason=\"partial_write\"} 4"), "{}", server.metrics.render());
}

#[tokio::test]
async fn conflicts_of_types_have_a_status_of_their_own() {
    let server = start(|_| {}).await;
    // The quoted value is a string where the lines before have made an integer.
    let body = "m v=1i\nm v=\"x\"\n#conflict";
    let mixed = "m v=1i\nm v=\"x\"\nm\n#conflict";
    for ((path, dialect), status) in ROUTES_OF_LINES.into_iter().zip([400, 422, 400, 422]) {
        let answer = server.lines(path, body).await;
        answer.assert_error(status, if status == 422 { "unprocessable entity" } else { "invalid" }, None);
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("field type conflict: input field \"v\" on measurement \"m\" is type string, already exists as type int64")
        );
        assert!(!message.contains("unable to parse"), "{dialect:?}: {message}");
        assert_eq!(server.lines(path, mixed).await.status, 400, "not only conflicts");
    }
}

#[tokio::test]
async fn clients_of_version_1_find_every_error_in_a_header() {
    let server = start(|_| {}).await;
    let answer = server.lines("/write?db=d", "m v=1\nm tag=\"é\nbad").await;
    assert_eq!(answer.status, 400);
    let header = answer.header("x-influxdb-error").unwrap();
    assert!(header.contains("unable to parse 'm tag=\"?'") && header.bytes().all(|b| (b' '..=b'~').contains(&b)), "{header}");
    assert!(server.lines("/write", "m v=1").await.header("x-influxdb-error").unwrap().contains("no database"));
    assert_eq!(server.lines("/write?db=d", "full").await.header("x-influxdb-error"), Some("no room"));
    assert!(server.once(&get("/query?q=SELECT%201")).await.header("x-influxdb-error").is_some());
    assert_eq!(server.lines("/api/v2/write?bucket=d", "bad").await.header("x-influxdb-error"), None);
}

#[tokio::test]
async fn pings() {
    let server = start(|_| {}).await;
    for (request, status, head) in [
        ("GET /ping", 204, false),
        ("HEAD /ping", 204, true),
        ("GET /ping?verbose=false", 204, false),
        ("GET /ping?verbose=true", 200, false),
        ("HEAD /ping?verbose=true", 200, true),
    ] {
        let answer = server.once(&format!("{request} HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{request}");
        let version = answer.header("x-influxdb-version").unwrap().to_owned();
        assert!(version.starts_with("1.8.10-arc"), "{version}");
        assert!(answer.header("x-influxdb-build").is_some());
        assert_eq!(answer.header("request-id"), Some("mine"));
        if status == 200 && !head {
            assert_eq!(answer.json(), json!({ "version": version }));
        }
    }
}

#[tokio::test]
async fn the_statements_that_clients_send_first() {
    let server = start(|_| {}).await;
    let yes = json!({"results": [{"statement_id": 0}]});
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for request in [
        get("/query?q=SHOW%20DATABASES"),
        get("/query?db=x&q=CREATE+DATABASE+%22telegraf%22"),
        to("/query?q=SHOW+DATABASES", "", ""),
        to("/query", form, "q=CREATE+DATABASE+%22telegraf%22"),
    ] {
        let answer = server.once(&request).await;
        assert_eq!((answer.status, answer.json()), (200, yes.clone()), "{request}");
    }
    let listed = server.once(&get("/query?q=SHOW+DATABASES&db=mine")).await;
    assert_eq!(listed.json()["results"][0]["series"][0]["values"], json!([["mine"]]));
    assert_eq!(server.once(&get("/query?q=SHOW+DATABASES&db=../x")).await.json(), yes);
    let long = format!("q={}", "x".repeat(65 << 10));
    for request in [get("/query"), get("/query?q="), get("/query?q=SELECT%201"), to("/query", form, "")] {
        server.once(&request).await.assert_error(400, "invalid", None);
    }
    server.once(&to("/query", form, &long)).await.assert_error(413, "request too large", None);
}
