//! The table of routes against the router.

use super::*;

#[tokio::test]
async fn the_table_is_what_the_router_serves() {
    let server = start(|_| {}).await;
    let mut seen = HashSet::new();
    for row in ROUTES {
        assert!(seen.insert((row.method.as_str(), row.path)), "{row:?} twice");
        let parameters = if row.path == "/query" { "?q=SHOW%20DATABASES" } else { "?db=x" };
        let request = |method: &str| format!("{method} {}{parameters} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", row.path);
        let own = server.once(&request(row.method.as_str())).await;
        // There are no tokens without authentication.
        let absent = row.path.starts_with("/api/v1/auth/tokens");
        assert!(if absent { own.status == 404 } else { own.status < 300 }, "{row:?}: {own:?}");
        let methods: Vec<&str> = ROUTES.iter().filter(|r| r.path == row.path).map(|r| r.method.as_str()).collect();
        let mut allowed = methods.clone();
        if let Some(get) = methods.iter().position(|m| *m == "GET") {
            allowed.insert(get + 1, "HEAD");
        }
        for other in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            if methods.contains(&other) {
                continue;
            }
            let answer = server.once(&request(other)).await;
            answer.assert_error(405, "method not allowed", None);
            assert_eq!(answer.header("allow"), Some(allowed.join(",").as_str()), "{row:?}");
        }
        let head = server.once(&request("HEAD")).await;
        let want = if absent {
            404
        } else if row.path == "/ping" {
            204
        } else {
            200
        };
        assert_eq!(head.status, if allowed.contains(&"HEAD") { want } else { 405 }, "{row:?}");
    }
    let tier = |path: &str| ROUTES.iter().find(|r| r.path == path).unwrap().tier;
    for path in ["/api/v1/write/msgpack", "/write", "/api/v2/write", "/api/v3/write_lp", "/api/v1/write/line-protocol"] {
        assert_eq!(tier(path), Tier::Write);
    }
    assert_eq!(tier("/api/v1/flush"), Tier::Admin);
    assert_eq!(tier("/api/v1/status"), Tier::Read);
    assert_eq!(tier("/health"), Tier::Open);
    for path in ["/", "/api", "/api/v1/write", "/api/v1/write/msgpack/", "/health/x", "/Health"] {
        server.once(&get(path)).await.assert_error(404, "not found", None);
    }
}
