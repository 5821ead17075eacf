//! `arc metrics reference`: every metric, from the table that the server is made of.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Subcommand;

use crate::metrics::{Build, Definition, Kind, TABLE};

#[derive(Subcommand, Debug)]
pub enum MetricsCommand {
    /// Print every metric with its kind, labels and meaning, as Markdown
    Reference,
}

/// Runs `arc metrics`.
pub fn run(command: &MetricsCommand) -> ExitCode {
    match command {
        MetricsCommand::Reference => super::print(&reference()),
    }
}

/// The areas of names with what they are about; a metric of another area stands under its own name.
const AREAS: &[(&str, &str)] = &[
    ("build", "This build"),
    ("process", "The process"),
    ("http", "HTTP"),
    ("auth", "Tokens"),
    ("tls", "TLS"),
    ("ingest", "What was taken in"),
    ("wal", "The log"),
    ("compact", "From the log to Parquet"),
    ("store", "The object store"),
    ("keys", "Idempotency keys"),
];

/// The text of `docs/metrics.md`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         What `GET /metrics` serves. This page is made from the code, by `arc metrics reference`. What to alert on is in\n\
         [../ops/prometheus/alerts.yml](../ops/prometheus/alerts.yml), a dashboard in [../ops/grafana/arc.json](../ops/grafana/arc.json).\n\n\
         Counters begin at 0 with each start of the process. Every series is there from the start. A histogram has the series\n\
         `_bucket` (with the label `le`), `_sum` and `_count`; its unit is the one in its name.\n",
    );
    let area = |d: &Definition| d.name.split('_').nth(1).unwrap_or_default();
    let mut seen: Vec<&str> = Vec::new();
    for d in TABLE {
        if !seen.contains(&area(d)) {
            seen.push(area(d));
        }
    }
    for a in seen {
        let title = AREAS.iter().find(|(name, _)| *name == a).map_or(a, |(_, title)| title);
        let _ = write!(out, "\n## {title}\n\n| metric | kind | meaning |\n|---|---|---|\n");
        let mut labels = Vec::new();
        for d in TABLE.iter().filter(|d| area(d) == a) {
            let kind = match d.kind {
                Kind::Counter => "counter".to_owned(),
                Kind::Gauge => "gauge".to_owned(),
                Kind::Histogram => {
                    let (first, last) = (d.buckets.first().copied().unwrap_or(0.0), d.buckets.last().copied().unwrap_or(0.0));
                    format!("histogram, {} buckets from {first} to {last}", d.buckets.len())
                }
            };
            let with = if d.labels.is_empty() { String::new() } else { format!("{{{}}}", d.labels.join(",")) };
            let _ = writeln!(out, "| `{}{with}` | {kind} | {} |", d.name, d.help);
            labels.extend(values(d).into_iter().map(|(label, values)| format!("`{}`, label `{label}`: {values}.\n", d.name)));
        }
        if !labels.is_empty() {
            let _ = write!(out, "\n{}", labels.join("\n"));
        }
    }
    out
}

/// Each label of a metric with the values that it takes.
fn values(d: &Definition) -> Vec<(&'static str, String)> {
    let series = (d.series)();
    let of = |(at, label): (usize, &&'static str)| {
        let mut seen: Vec<&str> = Vec::new();
        for value in series.iter().filter_map(|row| row.get(at)) {
            if !seen.contains(value) {
                seen.push(value);
            }
        }
        let text = match seen.as_slice() {
            // It differs from build to build, and the page must not.
            [value] if [Build::VERSION, Build::REVISION].contains(value) => "that of the build".to_owned(),
            values => values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", "),
        };
        (*label, text)
    };
    d.labels.iter().enumerate().map(of).collect()
}
