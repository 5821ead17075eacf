//! What operators are given, held against the program: the page of metrics, alerts, the dashboard, the systemd unit, `arc healthcheck`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use arc_ingest::config::{Config, KEYS, LoadOptions};
use arc_ingest::metrics::{Definition, Kind, TABLE};
use serde_json::Value;

use super::server::{Place, arc, profile, until};

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn run(place: &Place, args: &[&str]) -> Output {
    Command::new(arc()).args(args).current_dir(place.path()).env_clear().envs(profile()).output().unwrap()
}

#[test]
fn the_page_of_metrics_is_current() {
    assert!(
        file("docs/metrics.md") == arc_ingest::cli::metrics::reference(),
        "docs/metrics.md is not what the code has: `cargo run -- metrics reference > docs/metrics.md` (or `just reference`)"
    );
}

/// The series of a definition: its own name, or those of a histogram.
fn definition(series: &str) -> Result<&'static Definition, String> {
    if let Some(d) = TABLE.iter().find(|d| d.name == series) {
        return if d.kind == Kind::Histogram { Err(format!("{series} is a histogram: it has no series of that name")) } else { Ok(d) };
    }
    ["_bucket", "_sum", "_count"]
        .iter()
        .filter_map(|suffix| series.strip_suffix(suffix))
        .find_map(|name| TABLE.iter().find(|d| d.name == name && d.kind == Kind::Histogram))
        .ok_or_else(|| format!("no metric has the series {series}"))
}

/// What is wrong with the selectors and groupings of an expression; the metrics that it uses go to `used`.
fn faults(expression: &str, used: &mut BTreeSet<&'static str>) -> Vec<String> {
    let mut out = Vec::new();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut labels: Vec<&str> = vec!["job", "instance", "le"];
    for (at, _) in expression.match_indices("arc_").filter(|(at, _)| !expression[..*at].ends_with(word)) {
        let rest = &expression[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !word(c)).unwrap_or(rest.len()));
        // A value such as job=~"arc_.*" is no metric.
        if expression[..at].ends_with(['"', '*']) {
            continue;
        }
        let d = match definition(name) {
            Ok(d) => d,
            Err(e) => {
                out.push(e);
                continue;
            }
        };
        used.insert(d.name);
        labels.extend(d.labels);
        let Some(selector) = rest.strip_prefix('{') else { continue };
        for matcher in selector.split('}').next().unwrap().split(',').filter(|m| !m.is_empty()) {
            let (label, rest) = matcher.split_at(matcher.find(|c| !word(c)).unwrap());
            let value = rest.trim_matches(['=', '~', '!', '"']);
            if let Some(at) = d.labels.iter().position(|l| *l == label) {
                let values: BTreeSet<&str> = (d.series)().iter().map(|row| row[at]).collect();
                for v in value.split('|') {
                    if !values.contains(v) {
                        out.push(format!("{name}: the label {label} is never {v:?}"));
                    }
                }
            } else if !["job", "instance", "le"].contains(&label) {
                out.push(format!("{name} has no label {label}"));
            }
        }
    }
    for clause in ["by (", "without ("] {
        for (at, _) in expression.match_indices(clause) {
            let list = expression[at + clause.len()..].split(')').next().unwrap();
            out.extend(
                list.split(',').map(str::trim).filter(|l| !labels.contains(l)).map(|l| format!("grouped by {l}, which nothing there has")),
            );
        }
    }
    out
}

fn held(what: &str, expressions: &[String]) -> BTreeSet<&'static str> {
    let mut used = BTreeSet::new();
    let faults: Vec<String> =
        expressions.iter().flat_map(|e| faults(e, &mut used).into_iter().map(move |f| format!("{f}, in {e}"))).collect();
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
    used
}

fn alerts() -> Vec<String> {
    file("ops/prometheus/alerts.yml").lines().filter_map(|l| l.trim().strip_prefix("expr: ").map(str::to_owned)).collect()
}

#[test]
fn alerts_use_metrics_that_exist() {
    let rules = file("ops/prometheus/alerts.yml").matches("- alert: ").count();
    let expressions = alerts();
    assert_eq!(expressions.len(), rules, "each expression stands in one line behind `expr: `");
    let used = held("alerts.yml", &expressions);
    for must in [
        "arc_wal_poisoned",
        "arc_wal_damage_findings_total",
        "arc_compact_quarantined_records",
        "arc_wal_backlog_bytes",
        "arc_wal_backlog_age_seconds",
        "arc_wal_disk_full",
        "arc_store_mismatches_total",
        "arc_http_ready",
        "arc_wal_sync_seconds",
        "arc_compact_deferred_outputs",
        "arc_ingest_key_evictions_total",
    ] {
        assert!(used.contains(must), "nobody is told of {must}");
    }
}

#[test]
fn the_dashboard_uses_metrics_that_exist() {
    fn walk(v: &Value, out: &mut Vec<String>) {
        match v {
            Value::Object(m) => {
                for (k, v) in m {
                    match v {
                        Value::String(s) if k == "expr" || (k == "query" && s.contains("arc_")) => out.push(s.clone()),
                        v => walk(v, out),
                    }
                }
            }
            Value::Array(a) => a.iter().for_each(|v| walk(v, out)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&file("ops/grafana/arc.json")).unwrap();
    let mut expressions = Vec::new();
    walk(&dashboard, &mut expressions);
    assert!(expressions.len() > 30, "{}", expressions.len());
    assert!(held("arc.json", &expressions).len() > 30);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels have ids of their own");
}

#[test]
fn the_check_of_expressions_finds_what_it_looks_for() {
    let mut used = BTreeSet::new();
    let mut bad = |e: &str| faults(e, &mut used).len();
    assert_eq!(bad("arc_wal_poisoned == 1"), 0);
    assert_eq!(bad("arc_wal_poisned == 1"), 1);
    assert_eq!(bad("rate(arc_wal_sync_seconds[5m])"), 1);
    assert_eq!(bad("rate(arc_wal_sync_seconds_bucket[5m]) + arc_wal_sync_seconds_count"), 0);
    assert_eq!(bad("arc_wal_poisoned_count"), 1);
    assert_eq!(bad("arc_http_requests_total{status=\"5xx\",job=~\"$job\"}"), 0);
    assert_eq!(bad("arc_http_requests_total{status=\"500\"}"), 1);
    assert_eq!(bad("arc_http_requests_total{code=\"5xx\"}"), 1);
    assert_eq!(bad("sum by (route, le) (arc_http_request_seconds_bucket)"), 0);
    assert_eq!(bad("sum by (table) (arc_http_requests_total)"), 1);
    assert_eq!(used.len(), 4);
}

#[test]
fn the_unit_suits_the_program() {
    let unit = file("ops/arc.service");
    let get = |key: &str| -> Vec<&str> { unit.lines().filter_map(|l| l.strip_prefix(key)?.strip_prefix('=')).collect() };
    assert_eq!(get("Type"), ["notify"]);
    // Exit codes that need a person: usage, a decision about the log, another process, the configuration.
    assert_eq!(get("RestartPreventExitStatus"), ["2 3 75 78"]);
    let stop: u64 = get("TimeoutStopSec")[0].strip_suffix('s').unwrap().parse().unwrap();
    assert!(stop > Config::default().server.shutdown_timeout.as_secs() + 15, "{stop}");
    let connections = Config::default().server.max_connections as u64;
    assert!(get("LimitNOFILE")[0].parse::<u64>().unwrap() > 2 * connections);
    let variables: Vec<String> = KEYS.iter().map(|k| k.env()).collect();
    let known = |name: &str| variables.iter().any(|v| v == name) || ["ARC_LOG", "ARC_AUTH_BOOTSTRAP_TOKEN"].contains(&name);
    let set: Vec<&str> = get("Environment").iter().flat_map(|l| l.split(' ')).collect();
    for assignment in set {
        let (name, _) = assignment.split_once('=').unwrap();
        assert!(known(name), "{name} is no key");
    }
    assert!(!unit.contains("ARC_WAL_DIRECTORY"), "a path in the unit is seen by the service alone, and not by `arc token` beside it");
    let mut options = LoadOptions::new("/");
    options.config_path = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/arc.toml"));
    let packaged = Config::load(&options).unwrap().0;
    for dir in [&packaged.wal.directory, &packaged.storage.local_path, &packaged.auth.token_file] {
        assert!(dir.starts_with("/var/lib/arc"), "ProtectSystem=strict leaves only the state directory to write to: {}", dir.display());
    }
}

/// A shell beside the service, whose working directory is anywhere.
#[test]
fn token_command_without_its_file_asks_where() {
    let place = Place::new();
    let out = |args: &[&str]| {
        let out = run(&place, args);
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    for args in [&["token", "create", "a"][..], &["token", "list"], &["token", "rotate", "a"]] {
        let (code, text) = out(args);
        let file = place.path().join("data/auth/tokens.json");
        assert!(code == Some(1) && text.contains(&file.display().to_string()) && text.contains("(default)"), "{args:?}: {text}");
        assert_eq!(text.contains("--new"), args[1] == "create", "{text}");
        assert!(!place.path().join("data").exists(), "nothing is made");
    }
    assert_eq!(out(&["token", "create", "a", "--new"]).0, Some(0));
    assert_eq!(out(&["token", "create", "b"]).0, Some(0));
    assert_eq!(out(&["token", "list"]).0, Some(0));
}

#[test]
fn healthcheck_says_how_a_server_is() {
    let place = Place::new();
    let server = place.start(&[]);
    let url = format!("http://{}", server.addr);
    let port = format!("server.port={}", server.addr.port());
    let of = |args: &[&str]| {
        let out = run(&place, &[&["healthcheck"], args].concat());
        (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
    };
    assert_eq!(of(&["--url", &url]), (Some(0), "/health: 200\n".into()));
    assert_eq!(of(&["--ready", "--url", &url]), (Some(0), "/ready: 200\n".into()));
    // The configuration says where the server is, also when it listens on all addresses.
    assert_eq!(of(&["--set", &port]).0, Some(0));
    assert_eq!(of(&["--set", &port, "--set", "server.host=0.0.0.0", "--set", "server.insecure=true"]).0, Some(0));
    assert_eq!(of(&["--url", &url, "--timeout", "never"]).0, Some(2));
    let (code, text) = of(&["--set", "server.port=0"]);
    assert!(code == Some(1) && text.contains("--url"), "{text}");
    let (code, text) = of(&["--url", "https://localhost:1"]);
    assert!(code == Some(1) && text.contains("--ca FILE") && text.contains("--insecure"), "{text}");
    assert_eq!(of(&["--set", "server.nothing=1"]).0, Some(78));
    server.stop();
    let (code, text) = of(&["--url", &url, "--timeout", "2s"]);
    assert!(code == Some(1) && text.contains("refused") && !text.contains("no answer within"), "{text}");
}

#[test]
fn healthcheck_tells_alive_from_ready() {
    let place = Place::new();
    // Nothing is shipped, so that the log gets full.
    let sets = ["compaction.paused=true", "wal.max_size=5MB", "compaction.trigger_size=1MB", "ingest.max_record_size=1MB"];
    let server = place.start(&sets);
    let url = format!("http://{}", server.addr);
    let rows: Vec<i64> = (0..20_000).collect();
    let body = super::msgpack::mp(&serde_json::json!({"m": "t", "columns": {"time": rows, "n": rows}}));
    let of = |args: &[&str]| run(&place, &[&["healthcheck", "--url", &url], args].concat());
    // Full is said while there is somebody to refuse: what is smaller may still fit.
    let text = until("a server that is not ready", || {
        if server.write(&[], &body).status != 503 {
            return None;
        }
        let out = of(&["--ready"]);
        let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
        assert!(metrics.contains("arc_wal_max_bytes 5242880\n"), "{metrics}");
        let refused = out.status.code() == Some(1) && metrics.contains("arc_http_ready 0\n");
        refused.then(|| String::from_utf8(out.stderr).unwrap())
    });
    assert!(text.contains("expected 200, found 503 (backlog)"), "{text}");
    assert_eq!(of(&[]).status.code(), Some(0), "it lives");
}
