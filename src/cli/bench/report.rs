//! What a run found out, for people and for machines.

use hdrhistogram::Histogram;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Counts of one connection, then of the whole run.
#[derive(Debug)]
pub struct Stats {
    pub requests: u64,
    pub acked: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub retries: u64,
    /// 204s that said `Idempotency-Replayed: true`.
    pub replayed: u64,
    pub connects: u64,
    pub bytes_sent: u64,
    /// Every complete answer, retries too.
    pub statuses: BTreeMap<u16, u64>,
    /// The reasons of 503s.
    pub reasons: BTreeMap<String, u64>,
    /// What the first request that was not acknowledged was told, or why there was no connection.
    pub first_error: Option<String>,
    /// Microseconds.
    pub latency: Histogram<u64>,
}

impl Stats {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            requests: 0,
            acked: 0,
            refused: 0,
            unanswered: 0,
            retries: 0,
            replayed: 0,
            connects: 0,
            bytes_sent: 0,
            statuses: BTreeMap::new(),
            reasons: BTreeMap::new(),
            first_error: None,
            latency: Histogram::new_with_bounds(1, 24 * 3600 * 1_000_000, 3)?,
        })
    }

    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.acked += other.acked;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.retries += other.retries;
        self.replayed += other.replayed;
        self.connects += other.connects;
        self.bytes_sent += other.bytes_sent;
        for (k, n) in &other.statuses {
            *self.statuses.entry(*k).or_default() += n;
        }
        for (k, n) in &other.reasons {
            *self.reasons.entry(k.clone()).or_default() += n;
        }
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        // The bounds are equal, so nothing is out of range.
        let _ = self.latency.add(&other.latency);
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    pub stats: Stats,
    pub rows_per_request: u64,
    pub elapsed: Duration,
    /// First id of the run and the one after its last.
    pub ids: (u64, u64),
    pub run_id: String,
    /// Why the run ended early, if it did.
    pub stopped_by: Option<String>,
}

impl Report {
    fn acked_rows(&self) -> u64 {
        self.stats.acked * self.rows_per_request
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.elapsed.as_secs_f64().max(1e-6)
    }

    pub fn json(&self) -> String {
        let s = &self.stats;
        let q = |q: f64| s.latency.value_at_quantile(q);
        let statuses: BTreeMap<String, u64> = s.statuses.iter().map(|(k, n)| (k.to_string(), *n)).collect();
        let round = |v: f64| (v * 10.0).round() / 10.0;
        let object = json!({
            "requests": s.requests,
            "acked": s.acked,
            "refused": s.refused,
            "unanswered": s.unanswered,
            "retries": s.retries,
            "replayed": s.replayed,
            "connects": s.connects,
            "bytes_sent": s.bytes_sent,
            "seconds": self.elapsed.as_millis() as f64 / 1000.0,
            "acked_rows": self.acked_rows(),
            "rows_per_second": round(self.per_second(self.acked_rows())),
            "requests_per_second": round(self.per_second(s.acked)),
            "latency_us": {
                "p50": q(0.5), "p99": q(0.99), "p999": q(0.999), "max": s.latency.max(), "mean": round(s.latency.mean()),
            },
            "statuses": statuses,
            "reasons": s.reasons,
            "first_error": s.first_error,
            "first_id": self.ids.0,
            "next_id": self.ids.1,
            "run_id": self.run_id,
            "stopped_by": self.stopped_by,
        });
        format!("{object}\n")
    }

    pub fn table(&self) -> String {
        let s = &self.stats;
        let ms = |q: f64| format!("{:.2} ms", s.latency.value_at_quantile(q) as f64 / 1000.0);
        let counted = |it: Vec<String>| if it.is_empty() { "-".to_owned() } else { it.join(", ") };
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        for (name, value) in [
            ("duration", format!("{:.1} s", self.elapsed.as_secs_f64())),
            ("requests", format!("{} ({} acked, {} refused, {} unanswered)", s.requests, s.acked, s.refused, s.unanswered)),
            ("retries", format!("{} ({} replayed), {} connects", s.retries, s.replayed, s.connects)),
            (
                "acked rows",
                format!(
                    "{} ({:.0} rows/s, {:.0} requests/s)",
                    self.acked_rows(),
                    self.per_second(self.acked_rows()),
                    self.per_second(s.acked)
                ),
            ),
            ("sent", format!("{:.1} MB ({:.1} MB/s)", s.bytes_sent as f64 / 1048576.0, self.per_second(s.bytes_sent) / 1048576.0)),
            ("latency", format!("p50 {}, p99 {}, p999 {}, max {:.2} ms", ms(0.5), ms(0.99), ms(0.999), s.latency.max() as f64 / 1000.0)),
            ("statuses", counted(s.statuses.iter().map(|(k, n)| format!("{k}: {n}")).collect())),
            ("503 reasons", counted(s.reasons.iter().map(|(k, n)| format!("{k}: {n}")).collect())),
            ("first error", s.first_error.clone().unwrap_or_else(|| "-".to_owned())),
        ] {
            table.add_row([name.to_owned(), value]);
        }
        format!("{}\n", table.trim_fmt())
    }
}
