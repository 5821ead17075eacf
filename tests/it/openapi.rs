//! `docs/openapi.yaml` held against the table of routes and against live answers.

use std::collections::BTreeSet;
use std::path::Path;

use arc_ingest::http::{ROUTES, Tier};
use serde_json::{Value, json};

use super::msgpack::mp;
use super::server::{Place, Reply, Server};

const METHODS: [&str; 8] = ["get", "head", "post", "put", "patch", "delete", "options", "trace"];

fn page() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.yaml");
    serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("docs/openapi.yaml: {e}"))
}

/// Every operation: method, path, what stands there.
fn operations(page: &Value) -> Vec<(String, String, &Value)> {
    let mut out = Vec::new();
    for (path, item) in page["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(m, _)| METHODS.contains(&m.as_str())) {
            out.push((method.to_uppercase(), path.clone(), operation));
        }
    }
    out
}

/// Follows `$ref`.
fn resolve<'a>(page: &'a Value, v: &'a Value) -> &'a Value {
    match v.get("$ref").and_then(Value::as_str) {
        Some(reference) => {
            let at = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out of the page"));
            resolve(page, page.pointer(at).unwrap_or_else(|| panic!("{reference} leads nowhere")))
        }
        None => v,
    }
}

#[test]
fn every_route_is_there_and_no_other() {
    let page = page();
    let written: BTreeSet<(String, String)> = operations(&page).into_iter().map(|(m, p, _)| (m, p)).collect();
    let served: BTreeSet<(String, String)> = ROUTES.iter().map(|r| (r.method.to_string(), r.path.to_owned())).collect();
    let missing: Vec<_> = served.difference(&written).collect();
    // HEAD goes with GET: where it is written down, GET must be served.
    let foreign: Vec<_> =
        written.difference(&served).filter(|(m, p)| m != "HEAD" || !served.contains(&("GET".to_owned(), p.clone()))).collect();
    assert!(
        missing.is_empty() && foreign.is_empty(),
        "served and not in docs/openapi.yaml: {missing:?}; in it and not served: {foreign:?}"
    );
}

#[test]
fn security_is_what_the_table_of_routes_asks_for() {
    let page = page();
    let schemes: BTreeSet<&String> = page["components"]["securitySchemes"].as_object().unwrap().keys().collect();
    for r in ROUTES {
        let operation = &page["paths"][r.path][r.method.as_str().to_lowercase()];
        let security = operation["security"].as_array().unwrap_or_else(|| panic!("{} {}: no security", r.method, r.path));
        let role = match r.tier {
            Tier::Open => {
                assert!(security.is_empty(), "{} {}: open to all", r.method, r.path);
                assert!(operation["responses"].get("401").is_none(), "{} {}: nobody is refused", r.method, r.path);
                continue;
            }
            Tier::Read => json!(["read"]),
            Tier::Write => json!(["write"]),
            Tier::Admin => json!(["admin"]),
            Tier::Itself => json!([]),
        };
        let named: BTreeSet<&String> = security.iter().flat_map(|s| s.as_object().unwrap().keys()).collect();
        assert_eq!(named, schemes, "{} {}", r.method, r.path);
        for s in security {
            assert!(s.as_object().unwrap().values().all(|roles| *roles == role), "{} {}: {s}, expected {role}", r.method, r.path);
        }
        let mut must = vec!["401"];
        if r.tier != Tier::Itself {
            must.push("403");
        }
        if r.tier == Tier::Write {
            must.extend(["204", "400", "411", "413", "415", "422", "500", "503"]);
        }
        for status in must {
            assert!(operation["responses"].get(status).is_some(), "{} {}: no {status}", r.method, r.path);
        }
    }
}

#[test]
fn the_page_holds_together() {
    fn walk(page: &Value, v: &Value, used: &mut BTreeSet<String>) {
        match v {
            Value::Object(m) => {
                if let Some(r) = m.get("$ref").and_then(Value::as_str) {
                    resolve(page, v);
                    used.insert(r.to_owned());
                }
                m.values().for_each(|v| walk(page, v, used));
            }
            Value::Array(a) => a.iter().for_each(|v| walk(page, v, used)),
            _ => {}
        }
    }
    let page = page();
    assert_eq!(page["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut used = BTreeSet::new();
    walk(&page, &page, &mut used);
    for (kind, parts) in page["components"].as_object().unwrap().iter().filter(|(k, _)| *k != "securitySchemes") {
        for name in parts.as_object().unwrap().keys() {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "nothing uses {kind}/{name}");
        }
    }
    let ids: Vec<String> = operations(&page).iter().map(|(_, _, o)| o["operationId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    for (method, path, o) in operations(&page) {
        assert!(o["summary"].is_string(), "{method} {path}");
        for (status, response) in o["responses"].as_object().unwrap() {
            let response = resolve(&page, response);
            let body = response.get("content").is_some();
            assert_eq!(body, status != "204", "{method} {path} {status}");
            if status == "503" && path != "/ready" {
                assert!(response["headers"].get("Retry-After").is_some(), "{method} {path}");
            }
        }
    }
}

#[test]
fn all_reasons_of_503_are_named() {
    use arc_ingest::error::Reason::*;
    let words: BTreeSet<&str> =
        [NotStored, UnknownOutcome, Backlog, DiskFull, Poisoned, Recovering, Shutdown, Paused, Damaged].iter().map(|r| r.word()).collect();
    let page = page();
    let named = page["components"]["schemas"]["UnavailableError"].pointer("/allOf/1/properties/reason/enum").unwrap();
    assert_eq!(named.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect::<BTreeSet<_>>(), words);
}

/// Where a value is not as the schema says: the part of JSON Schema that the page uses, any other word is an error.
fn misfits(page: &Value, schema: &Value, v: &Value, at: &str, out: &mut Vec<String>) {
    let schema = resolve(page, schema);
    for (word, rule) in schema.as_object().unwrap_or_else(|| panic!("{at}: no schema: {schema}")) {
        let mut bad = |why: String| out.push(format!("{at}: {why}, found {v}"));
        match word.as_str() {
            "description" | "default" | "example" => {}
            "type" => {
                let is = |t: &str| match t {
                    "object" => v.is_object(),
                    "array" => v.is_array(),
                    "string" => v.is_string(),
                    "integer" => v.is_i64() || v.is_u64(),
                    "number" => v.is_number(),
                    "boolean" => v.is_boolean(),
                    "null" => v.is_null(),
                    _ => panic!("type {t}"),
                };
                let one = std::slice::from_ref(rule);
                if !rule.as_array().map_or(one, Vec::as_slice).iter().any(|t| is(t.as_str().unwrap())) {
                    bad(format!("expected {rule}"));
                }
            }
            "const" if v != rule => bad(format!("expected {rule}")),
            "enum" if !rule.as_array().unwrap().contains(v) => bad(format!("expected one of {rule}")),
            "minimum" if v.as_f64().is_some_and(|n| n < rule.as_f64().unwrap()) => bad(format!("expected at least {rule}")),
            "const" | "enum" | "minimum" | "maximum" | "pattern" | "minLength" | "maxLength" => {}
            "required" => {
                for name in rule.as_array().unwrap() {
                    if v.is_object() && v.get(name.as_str().unwrap()).is_none() {
                        bad(format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(v) = v.get(name) {
                        misfits(page, rule, v, &format!("{at}.{name}"), out);
                    }
                }
            }
            "additionalProperties" => {
                let known = |name: &str| schema.get("properties").is_some_and(|p| p.get(name).is_some());
                for (name, v) in v.as_object().into_iter().flatten().filter(|(n, _)| !known(n)) {
                    match rule {
                        Value::Bool(false) => out.push(format!("{at}.{name}: not foreseen")),
                        Value::Bool(true) => {}
                        rule => misfits(page, rule, v, &format!("{at}.{name}"), out),
                    }
                }
            }
            "items" => {
                for (i, v) in v.as_array().into_iter().flatten().enumerate() {
                    misfits(page, rule, v, &format!("{at}[{i}]"), out);
                }
            }
            "allOf" => rule.as_array().unwrap().iter().for_each(|s| misfits(page, s, v, at, out)),
            "anyOf" => {
                let tried: Vec<Vec<String>> = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|s| {
                        let mut out = Vec::new();
                        misfits(page, s, v, at, &mut out);
                        out
                    })
                    .collect();
                if tried.iter().all(|t| !t.is_empty()) {
                    out.extend(tried.into_iter().flatten());
                }
            }
            word => panic!("{at}: the word {word} is not understood here"),
        }
    }
}

/// Top-level fields of an answer that its schema does not name: a page that falls behind the code.
fn unnamed(page: &Value, schema: &Value, v: &Value) -> Vec<String> {
    fn names(page: &Value, schema: &Value, out: &mut BTreeSet<String>) {
        let schema = resolve(page, schema);
        out.extend(schema.get("properties").and_then(Value::as_object).into_iter().flat_map(|p| p.keys().cloned()));
        for part in ["allOf", "anyOf"].iter().filter_map(|k| schema.get(k)?.as_array()).flatten() {
            names(page, part, out);
        }
    }
    let mut known = BTreeSet::new();
    names(page, schema, &mut known);
    v.as_object().into_iter().flat_map(|m| m.keys()).filter(|k| !known.contains(*k)).cloned().collect()
}

struct Checked<'a> {
    page: Value,
    server: &'a Server,
    seen: BTreeSet<(String, String, u16)>,
}

impl Checked<'_> {
    fn operation(&self, method: &str, path: &str) -> (String, &Value) {
        let fits = |template: &str| {
            let (a, b): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.starts_with('{') || *a == b)
        };
        let found = self.page["paths"].as_object().unwrap().iter().filter(|(t, _)| fits(t));
        // A path without a parameter goes before one with.
        let (template, item) = found.min_by_key(|(t, _)| t.contains('{')).unwrap_or_else(|| panic!("{path} is not in the page"));
        (template.clone(), &item[method.to_lowercase()])
    }

    /// The answer must have this status, and be as the page says.
    fn call(&mut self, status: u16, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let r = self.server.call(method, target, headers, body);
        assert_eq!(r.status, status, "{method} {target}: {r}");
        let (template, operation) = self.operation(method, target.split('?').next().unwrap());
        let response =
            operation["responses"].get(r.status.to_string()).unwrap_or_else(|| panic!("{method} {target}: {status} is not documented"));
        let response = resolve(&self.page, response);
        for (name, header) in response.get("headers").and_then(Value::as_object).into_iter().flatten() {
            let header = resolve(&self.page, header);
            match r.header(name) {
                Some(text) => {
                    let mut out = Vec::new();
                    misfits(&self.page, &header["schema"], &Value::String(text.to_owned()), name, &mut out);
                    assert!(out.is_empty(), "{method} {target}: {out:?}");
                }
                None => assert_ne!(header["required"], true, "{method} {target}: {name} is missing: {r}"),
            }
        }
        assert!(r.header("x-request-id").is_some(), "{r}");
        if let Some(content) = response.get("content").filter(|_| method != "HEAD") {
            let (media, content) = content.as_object().unwrap().iter().next().unwrap();
            assert!(r.header("content-type").unwrap_or_default().starts_with(media), "{method} {target}: {r}");
            if media == "application/json" {
                let mut out = Vec::new();
                misfits(&self.page, &content["schema"], &r.json(), "answer", &mut out);
                out.extend(unnamed(&self.page, &content["schema"], &r.json()).iter().map(|n| format!("{n} is not in the page")));
                assert!(out.is_empty(), "{method} {target}: {}", out.join("\n"));
            }
        } else {
            assert!(r.body.is_empty(), "{method} {target}: {r}");
        }
        self.seen.insert((method.to_owned(), template, status));
        r
    }
}

#[test]
fn live_answers_are_as_the_page_says() {
    let place = Place::new();
    let server = place.start(&["compaction.max_delay=1h", "server.max_payload_size=1MB", "ingest.max_inflated_size=1MB"]);
    let mut c = Checked { page: page(), server: &server, seen: BTreeSet::new() };
    let body = mp(&json!({"m": "t", "columns": {"time": [1], "v": [1]}}));
    let other = mp(&json!({"m": "t", "columns": {"time": [1], "v": [2]}}));
    let text = mp(&json!({"m": "t", "columns": {"time": [1], "v": ["a"]}}));
    let key = [("Idempotency-Key", "k")];

    let write = "/api/v1/write/msgpack";
    assert!(c.call(204, "POST", write, &key, &body).header("x-arc-sequence").is_some());
    assert_eq!(c.call(204, "POST", write, &key, &body).header("idempotency-replayed"), Some("true"));
    c.call(422, "POST", write, &key, &other);
    c.call(400, "POST", write, &[], &text);
    c.call(400, "POST", write, &[("x-arc-time-unit", "weeks")], &body);
    c.call(413, "POST", write, &[], &vec![0; 2 << 20]);

    for (path, database) in
        [("/write", "?db=d"), ("/api/v2/write", "?bucket=d"), ("/api/v3/write_lp", "?db=d"), ("/api/v1/write/line-protocol", "")]
    {
        let target = format!("{path}{database}");
        // A key belongs to a database, and to one route.
        let key = [("Idempotency-Key", path)];
        c.call(204, "POST", &target, &key, b"m v=1i 1");
        c.call(422, "POST", &target, &key, b"m v=2i 1");
        c.call(400, "POST", &target, &[], b"m v=1i 1\nm v=\nm v=3i 3");
        c.call(400, "POST", &format!("{path}?db=d&precision=weeks"), &[], b"m v=1i 1");
        c.call(400, "POST", &format!("{path}?db=.."), &[], b"m v=1i 1");
        c.call(413, "POST", &target, &[], &vec![b'#'; 2 << 20]);
    }
    c.call(422, "POST", "/api/v2/write?bucket=d", &[], b"m v=\"text\" 1");
    c.call(400, "POST", "/api/v3/write_lp?db=d&accept_partial=maybe", &[], b"m v=1i 1");

    c.call(204, "GET", "/ping", &[], b"");
    c.call(204, "HEAD", "/ping", &[], b"");
    c.call(200, "GET", "/ping?verbose=true", &[], b"");
    c.call(200, "GET", "/query?q=SHOW%20DATABASES", &[], b"");
    c.call(200, "POST", "/query", &[], b"q=CREATE+DATABASE+a");
    c.call(400, "GET", "/query?q=SELECT%201", &[], b"");
    c.call(400, "POST", "/query", &[], b"");

    c.call(200, "GET", "/api/v1/write/msgpack/spec", &[], b"");
    c.call(200, "GET", "/api/v1/write/msgpack/stats", &[], b"");
    c.call(200, "GET", "/health", &[], b"");
    c.call(200, "GET", "/ready", &[], b"");
    c.call(200, "GET", "/metrics", &[], b"");
    c.call(200, "GET", "/api/v1/status", &[], b"");
    c.call(400, "POST", "/api/v1/flush?timeout=never", &[], b"");
    c.call(200, "POST", "/api/v1/flush", &[], b"");
    c.call(200, "POST", "/api/v1/write/line-protocol/flush?timeout=10s", &[], b"");

    c.call(200, "GET", "/api/v1/auth/verify", &[], b"");
    c.call(404, "GET", "/api/v1/auth/tokens", &[], b"");
    let all = BTreeSet::from_iter(ROUTES.iter().map(|r| (r.method.to_string(), r.path)));
    let asked: BTreeSet<(String, &str)> = c.seen.iter().map(|(m, p, _)| (m.clone(), p.as_str())).collect();
    let not: Vec<_> = all.difference(&asked).filter(|(_, p)| !p.starts_with("/api/v1/auth/tokens")).collect();
    assert!(not.is_empty(), "nobody asked {not:?}");
}

#[test]
fn live_answers_with_tokens_are_as_the_page_says() {
    const SECRET: &str = "openapi-test-openapi-test-openapi-test-openapi";
    let place = Place::new();
    let sets = ["auth.enabled=true", "compaction.max_delay=1h"];
    let mut server = place.launch_with(&sets, &[("ARC_AUTH_BOOTSTRAP_TOKEN", SECRET)]);
    server.wait_ready();
    let mut c = Checked { page: page(), server: &server, seen: BTreeSet::new() };
    let bearer = format!("Bearer {SECRET}");
    let admin = [("Authorization", bearer.as_str())];
    let tokens = "/api/v1/auth/tokens";

    let made =
        c.call(201, "POST", tokens, &admin, br#"{"name":"reader","permissions":["read"],"databases":["d"],"expires_in":"1h"}"#).json();
    let (id, secret) = (made["id"].as_u64().unwrap(), format!("Token {}", made["token"].as_str().unwrap()));
    let reader = [("Authorization", secret.as_str())];
    c.call(400, "POST", tokens, &admin, br#"{"name":""}"#);
    c.call(400, "POST", tokens, &admin, b"{");
    c.call(413, "POST", tokens, &admin, &vec![b' '; 100 << 10]);
    c.call(200, "GET", tokens, &admin, b"");
    let one = format!("{tokens}/{id}");
    c.call(200, "GET", &one, &admin, b"");
    c.call(200, "GET", "/api/v1/auth/verify", &reader, b"");
    c.call(401, "GET", "/api/v1/auth/verify", &[("x-api-key", "wrong")], b"");
    c.call(200, "PATCH", &one, &admin, br#"{"description":"x"}"#);
    c.call(400, "PATCH", &one, &admin, br#"{"permissions":["all"]}"#);
    // Every route that asks for something: without a token, and with one that may not.
    for r in ROUTES.iter().filter(|r| matches!(r.tier, Tier::Read | Tier::Write | Tier::Admin)) {
        let path = r.path.replace("{id}", &id.to_string());
        c.call(401, r.method.as_str(), &path, &[], b"");
        c.call(403, r.method.as_str(), &format!("{path}?db=other"), &reader, b"");
    }
    c.call(200, "POST", &format!("{one}/rotate"), &admin, b"");
    c.call(200, "POST", &format!("{one}/revoke"), &admin, b"");
    c.call(200, "DELETE", &one, &admin, b"");
    for (method, path) in [
        ("GET", one.clone()),
        ("PATCH", one.clone()),
        ("DELETE", one.clone()),
        ("POST", format!("{one}/rotate")),
        ("POST", format!("{one}/revoke")),
    ] {
        c.call(404, method, &path, &admin, b"{}");
    }
}

#[test]
fn a_503_is_as_the_page_says() {
    let place = Place::new();
    let server = place.start(&["compaction.paused=true"]);
    server.store(&mp(&json!({"m": "t", "columns": {"time": [1], "v": [1]}})));
    let mut c = Checked { page: page(), server: &server, seen: BTreeSet::new() };
    let r = c.call(503, "POST", "/api/v1/flush", &[], b"");
    assert_eq!(r.json()["reason"], "paused");
}

#[test]
fn the_check_of_answers_finds_what_it_looks_for() {
    let page = json!({"s": {"type": "object", "required": ["a"], "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/t"}}, "additionalProperties": false},
                      "t": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "string"}}]}});
    let count = |v: Value| {
        let mut out = Vec::new();
        misfits(&page, &page["s"], &v, "v", &mut out);
        out.len()
    };
    assert_eq!(count(json!({"a": 1, "b": null})), 0);
    assert_eq!(count(json!({"a": 2, "b": ["x"]})), 0);
    assert_eq!(count(json!({})), 1);
    assert_eq!(count(json!([])), 1);
    assert_eq!(count(json!({"a": 3})), 1);
    assert_eq!(count(json!({"a": 1, "b": [1]})), 2);
    assert_eq!(count(json!({"a": 1, "c": 1})), 1);
    assert_eq!(unnamed(&page, &page["s"], &json!({"a": 1, "c": 1})), ["c"]);
}
