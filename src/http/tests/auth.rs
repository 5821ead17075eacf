//! Who may use which route: a table made from the table of routes.

use std::collections::BTreeSet;

use super::*;
use crate::auth::{NewToken, Permission};
use crate::clock::{SharedClock, SimClock};

const NOW: i64 = 1_767_225_600_000_000;

/// A server with a token of every kind.
struct Guarded {
    _dir: tempfile::TempDir,
    tokens: Arc<Tokens>,
    clock: Arc<SimClock>,
    server: Running,
}

async fn guarded() -> Guarded {
    let dir = tempfile::tempdir().unwrap();
    let clock = SimClock::new(7, NOW);
    let tokens = Arc::new(Tokens::open(&dir.path().join("auth/tokens.json"), Arc::clone(&clock) as SharedClock, true).unwrap());
    tokens.bootstrap(None).unwrap().unwrap();
    let server = start_with(|_| {}, Some(Arc::clone(&tokens))).await;
    Guarded { _dir: dir, tokens, clock, server }
}

impl Guarded {
    fn make(&self, permissions: &[Permission], databases: Option<&str>, lifetime_us: Option<i64>) -> (u64, String) {
        let new = NewToken {
            name: format!("t{}", self.tokens.list().last().map_or(0, |t| t.id)),
            description: None,
            permissions: permissions.to_vec(),
            databases: databases.map(|d| vec![d.to_owned()]),
            lifetime_us,
        };
        let (token, secret) = self.tokens.create(new).unwrap();
        (token.id, secret.reveal().to_owned())
    }

    /// A request that does what the route is for, and what its token may be held against.
    fn request(&self, row: &RouteRow, auth: &str) -> Vec<u8> {
        let (victim, _) = self.make(&[Permission::Read], None, None);
        let body = match row.action {
            crate::http::routes::Action::CreateToken => format!("{{\"name\":\"made-{victim}\"}}"),
            crate::http::routes::Action::Token(tokens::Deed::Update) => "{\"description\":\"x\"}".to_owned(),
            _ if row.tier == Tier::Write => "m f=1".to_owned(),
            _ => String::new(),
        };
        let path = row.path.replace("{id}", &victim.to_string());
        format!(
            "{} {path}?db=mine&bucket=mine HTTP/1.1\r\nHost: x\r\n{auth}X-Arc-Database: mine\r\nContent-Length: {}\r\n\r\n{body}",
            row.method,
            body.len()
        )
        .into_bytes()
    }
}

/// What a route of this tier says to whom. `None`: the handler's own answer.
fn expected(tier: Tier, who: &str) -> Option<u16> {
    match (tier, who) {
        (Tier::Open, _) => None,
        (_, "none" | "wrong" | "expired" | "revoked") => Some(401),
        (Tier::Itself, _) | (_, "admin") => None,
        (Tier::Read, "read") | (Tier::Write, "write" | "own database's") => None,
        (Tier::Read, "write" | "other database's" | "own database's")
        | (Tier::Write, "read" | "other database's")
        | (Tier::Admin, "read" | "write" | "other database's" | "own database's") => Some(403),
        _ => panic!("{who}"),
    }
}

#[tokio::test]
async fn every_route_with_every_kind_of_token() {
    use Permission::{Admin, Read, Write};
    let g = guarded().await;
    let secret = |made: (u64, String)| made.1;
    let expired = secret(g.make(&[Admin], None, Some(1)));
    g.clock.advance(Duration::from_secs(1));
    let (id, revoked) = g.make(&[Admin], None, None);
    g.tokens.revoke(id).unwrap();
    let callers = [
        ("none", String::new()),
        ("wrong", format!("arc_{}", "0".repeat(64))),
        ("read", secret(g.make(&[Read], None, None))),
        ("write", secret(g.make(&[Write], None, None))),
        ("expired", expired),
        ("revoked", revoked),
        ("other database's", secret(g.make(&[Read, Write], Some("other"), None))),
        ("own database's", secret(g.make(&[Read, Write], Some("mine"), None))),
        ("admin", secret(g.make(&[Admin], None, None))),
    ];
    let mut table =
        format!("| method | path | tier |{}\n|---|---|---|", callers.iter().map(|(who, _)| format!(" {who} |")).collect::<String>());
    table += &"---|".repeat(callers.len());
    let mut cells = 0;
    for row in ROUTES {
        table += &format!("\n| {} | `{}` | {:?} |", row.method, row.path, row.tier);
        for (who, text) in &callers {
            let auth = if text.is_empty() { String::new() } else { format!("Authorization: Bearer {text}\r\n") };
            let stored = || g.server.backend.seen.lock().unwrap().len() + g.server.backend.lines.lock().unwrap().len();
            let (seen, before) = (stored(), g.tokens.list().len());
            let mut client = g.server.client().await;
            let request = g.request(row, &auth);
            client.send(&request).await;
            let answer = client.answer(false).await.unwrap();
            let want = expected(row.tier, who);
            let at = format!("{} {} as {who}: {answer:?}", row.method, row.path);
            match want {
                Some(status) => {
                    assert_eq!(answer.status, status, "{at}");
                    answer.assert_error(status, if status == 401 { "unauthorized" } else { "forbidden" }, None);
                    assert_eq!(answer.json()["success"], false);
                    assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer realm=\"arc\""), "{at}");
                    assert_eq!(stored(), seen, "the backend was asked: {at}");
                    assert_eq!(g.tokens.list().len(), before + 1, "only the one that the test has made: {at}");
                }
                None => assert!(!matches!(answer.status, 401 | 403 | 404 | 405 | 500), "{at}"),
            }
            table += &format!(" {} |", answer.status);
            cells += 1;
        }
    }
    assert_eq!(cells, ROUTES.len() * callers.len());
    if let Some(path) = std::env::var_os("ARC_ROUTE_TABLE") {
        std::fs::write(path, table + "\n").unwrap();
    }
}

#[tokio::test]
async fn the_token_comes_in_any_of_five_ways_and_before_the_body() {
    let g = guarded().await;
    let (_, token) = g.make(&[Permission::Write], Some("mine"), None);
    // user:token
    let basic = {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = Vec::new();
        for c in format!("user:{token}").as_bytes().chunks(3) {
            let bits = c.iter().fold(0u32, |v, b| v << 8 | u32::from(*b)) << (8 * (3 - c.len()));
            let all: Vec<u8> = (0..=c.len()).map(|i| digits[(bits >> (18 - 6 * i) & 63) as usize]).collect();
            out.extend(all);
        }
        String::from_utf8(out).unwrap()
    };
    let ways = [
        (format!("Authorization: Bearer {token}\r\n"), String::new()),
        (format!("Authorization: Token {token}\r\n"), String::new()),
        (format!("Authorization: Basic {basic}\r\n"), String::new()),
        (format!("X-API-Key: {token}\r\n"), String::new()),
        (String::new(), format!("u=user&p={token}&")),
    ];
    for (header, query) in &ways {
        for (database, status) in [("mine", 204), ("yours", 403)] {
            let request =
                format!("POST /api/v1/write/msgpack?{query}db={database} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 4\r\n\r\nrows");
            assert_eq!(g.server.once(&request).await.status, status, "{request}");
        }
    }
    // A client that waits for leave to send its body is refused without it, and so is one whose body would be too large.
    for (database, auth, length, status) in [("mine", "x", 4u64, 401), ("yours", &token, 4, 403), ("mine", "x", 1 << 40, 401)] {
        let request = format!(
            "POST /api/v1/write/msgpack?db={database} HTTP/1.1\r\nHost: x\r\nAuthorization: Token {auth}\r\nExpect: 100-continue\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        assert_eq!(g.server.once(&request).await.status, status);
    }
    // The one open route that reads a body reads a small one.
    let large = "POST /query HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n";
    g.server.once(large).await.assert_error(413, "request too large", None);
    let mut client = g.server.client().await;
    client.send("POST /query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..8 {
        client.send(format!("4000\r\n{}\r\n", "x".repeat(0x4000))).await;
    }
    client.answer(false).await.unwrap().assert_error(413, "request too large", None);
    assert_eq!(g.server.backend.seen.lock().unwrap().len(), ways.len());
    assert!(g.server.metric("arc_http_rejected_total{reason=\"unauthorized\"} 2"));
    assert!(g.server.metric("arc_http_rejected_total{reason=\"forbidden\"} 6"));
}

#[tokio::test]
async fn a_token_ends_when_it_expires_or_is_revoked() {
    let g = guarded().await;
    let (id, token) = g.make(&[Permission::Read], None, Some(60_000_000));
    let status = || async { g.server.once(&format!("GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n")).await };
    assert_eq!(status().await.status, 200);
    g.clock.advance(Duration::from_secs(60));
    let answer = status().await;
    answer.assert_error(401, "unauthorized", None);
    assert!(answer.json()["error"].as_str().unwrap().contains("expired"));
    g.clock.jump(-60_000_000);
    assert_eq!(status().await.status, 200);
    // By another process, which shares only the file.
    let other = Tokens::open(g.tokens.path(), Arc::clone(&g.clock) as SharedClock, false).unwrap();
    other.revoke(id).unwrap();
    assert!(g.tokens.refresh().unwrap());
    assert!(status().await.json()["error"].as_str().unwrap().contains("revoked"));
}

#[tokio::test]
async fn tokens_are_managed_in_the_shapes_of_arc() {
    let g = guarded().await;
    let (_, admin) = g.make(&[Permission::Admin], None, None);
    let call = |method: &str, path: &str, token: &str, body: &str| {
        let request = format!(
            "{method} /api/v1/auth/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let server = &g.server;
        async move { server.once(&request).await }
    };
    let verified = call("GET", "verify", &admin, "").await;
    assert_eq!((verified.status, &verified.json()["valid"]), (200, &json!(true)));
    assert_eq!(verified.json()["permissions"], json!(["admin"]));
    assert_eq!(verified.json()["token_info"]["enabled"], json!(true));
    let bad = call("GET", "verify", "nobody's", "").await;
    bad.assert_error(401, "unauthorized", None);
    assert_eq!(bad.json()["valid"], json!(false));

    let made = call("POST", "tokens", &admin, r#"{"name":"m","permissions":["write"],"databases":["a"],"expires_in":"30d"}"#).await;
    assert_eq!((made.status, made.header("cache-control")), (201, Some("no-store")));
    let made = made.json();
    assert_eq!(made["success"], json!(true));
    assert_eq!(made["expires_at"], json!("2026-01-31T00:00:00.000000Z"));
    let (id, text) = (made["id"].as_u64().unwrap(), made["token"].as_str().unwrap().to_owned());
    let verified = call("GET", "verify", &text, "").await.json();
    assert_eq!((&verified["token_info"]["databases"], &verified["permissions"]), (&json!(["a"]), &json!(["write"])));
    let listed = call("GET", "tokens", &admin, "").await;
    assert_eq!(listed.json()["count"], json!(3));
    let one = call("GET", &format!("tokens/{id}"), &admin, "").await;
    assert_eq!(one.json()["token"]["name"], json!("m"));
    for shown in [&listed, &one] {
        let shown = String::from_utf8_lossy(&shown.body).into_owned();
        assert!(!shown.contains(&text) && !shown.contains("sha256"), "{shown}");
    }
    let defaults = call("POST", "tokens", &admin, r#"{"name":"n"}"#).await.json();
    assert_eq!(defaults["permissions"], json!(["read", "write"]));

    let rotated = call("POST", &format!("tokens/{id}/rotate"), &admin, "").await;
    let next = rotated.json()["new_token"].as_str().unwrap().to_owned();
    assert_eq!((rotated.status, call("GET", "verify", &text, "").await.status), (200, 401));
    assert_eq!(call("GET", "verify", &next, "").await.status, 200);
    let renamed = call("PATCH", &format!("tokens/{id}"), &admin, r#"{"name":"o","description":"d"}"#).await;
    assert_eq!((renamed.status, &renamed.json()["token"]["name"]), (200, &json!("o")));
    assert_eq!(call("POST", &format!("tokens/{id}/revoke"), &admin, "").await.status, 200);
    assert_eq!(call("GET", "verify", &next, "").await.status, 401);
    call("POST", &format!("tokens/{id}/rotate"), &admin, "").await.assert_error(400, "invalid", None);
    assert_eq!(call("DELETE", &format!("tokens/{id}"), &admin, "").await.status, 200);
    for (method, path) in [("DELETE", format!("tokens/{id}")), ("GET", "tokens/x".into()), ("POST", "tokens/0/rotate".into())] {
        let gone = call(method, &path, &admin, "").await;
        gone.assert_error(404, "not found", None);
        assert!(gone.json()["error"].as_str().unwrap().contains("not found"), "{gone:?}");
    }
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(129));
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"name":""}"#,
        r#"{"name":"o","permission":["read"]}"#,
        r#"{"name":"p","permissions":["delete"]}"#,
        r#"{"name":"p","permissions":[]}"#,
        r#"{"name":"p","databases":["/"]}"#,
        r#"{"name":"p","databases":["a"],"permissions":["admin"]}"#,
        r#"{"name":"p","expires_in":"soon"}"#,
        r#"{"name":"p","expires_in":-1}"#,
        r#"{"name":"n"}"#,
        &long,
    ] {
        call("POST", "tokens", &admin, bad).await.assert_error(400, "invalid", None);
    }
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(70_000));
    call("POST", "tokens", &admin, &large).await.assert_error(413, "request too large", None);
    assert_eq!(g.tokens.list().iter().map(|t| t.name.clone()).collect::<Vec<_>>(), ["bootstrap", "t1", "n"]);
}

#[tokio::test]
async fn without_authentication_there_are_no_tokens_and_nobody_is_asked() {
    let server = start(|_| {}).await;
    let verified = server.once(&get("/api/v1/auth/verify")).await;
    assert_eq!((verified.status, verified.json()["valid"].clone()), (200, json!(true)));
    server.once(&get("/api/v1/auth/tokens")).await.assert_error(404, "not found", None);
    let made = "POST /api/v1/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"name\":\"a\"}";
    server.once(made).await.assert_error(404, "not found", None);
    assert_eq!(server.once(&get("/api/v1/status")).await.status, 200);
}

#[test]
fn every_path_has_its_tier() {
    let of = |path: &str| ROUTES.iter().filter(|r| r.path == path).map(|r| format!("{:?}", r.tier)).collect::<BTreeSet<_>>();
    for row in ROUTES {
        assert_eq!(of(row.path).len(), 1, "{}", row.path);
        // A write route with another tier would take rows from anybody who may do something else.
        let writes = row.path.contains("write") && row.method == "POST" && !row.path.ends_with("/flush");
        assert_eq!(writes, row.tier == Tier::Write, "{} {}", row.method, row.path);
        let open = ["/health", "/ready", "/ping", "/metrics", "/query"].contains(&row.path);
        assert_eq!(open, row.tier == Tier::Open, "{} {}", row.method, row.path);
    }
}
