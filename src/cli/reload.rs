//! SIGHUP: tokens, certificate and log level are read again. A bad file changes nothing and ends nothing.

use std::sync::Arc;

use super::Global;
use super::access::Access;
use super::logging::{Levels, filter};
use crate::config::{self, Config, KEYS};
use crate::metrics::Metrics;

/// Keys that a reload takes over.
const TAKEN: [&str; 1] = ["log.level"];

/// What is read again, and what it is held against.
#[derive(Debug)]
pub struct Reload {
    global: Global,
    config: Config,
    levels: Levels,
    access: Access,
    metrics: Arc<Metrics>,
}

impl Reload {
    pub fn new(global: &Global, config: &Config, levels: Levels, access: Access, metrics: Arc<Metrics>) -> Self {
        Self { global: global.clone(), config: config.clone(), levels, access, metrics }
    }

    /// Reads everything again, says what was done in one line, and each failure in a line of its own.
    pub fn run(&mut self) {
        let mut done = Vec::new();
        match self.global.load() {
            Ok((new, _, warnings)) => {
                for w in &warnings {
                    tracing::warn!("{w}");
                }
                if new.log.level != self.config.log.level {
                    self.config.log.level = new.log.level;
                    if self.levels.set(filter(&self.config)) {
                        done.push(match &self.config.log_filter {
                            Some(f) => format!("log.level = {} (not in force: ARC_LOG = {f:?})", new.log.level),
                            None => format!("log.level = {}", new.log.level),
                        });
                    }
                }
                let differ = |k: &&config::Key| (k.show)(&new) != (k.show)(&self.config) && !TAKEN.contains(&k.path().as_str());
                let waiting: Vec<String> = KEYS.iter().filter(differ).map(config::Key::path).collect();
                if !waiting.is_empty() {
                    tracing::warn!("changed in the configuration, in force only after a restart: {}", waiting.join(", "));
                }
            }
            Err(e) => tracing::error!("the configuration stays as it was: {e}"),
        }
        if let Some(tokens) = &self.access.tokens {
            match tokens.reload() {
                Ok(n) => done.push(format!("{n} tokens")),
                Err(e) => {
                    self.metrics.auth_reload_errors_total.increment(1);
                    tracing::error!("the tokens stay as they were: {e}");
                }
            }
        }
        if let Some(tls) = &self.access.tls {
            match tls.reload() {
                Ok(()) => done.push("the certificate".to_owned()),
                Err(e) => {
                    self.metrics.tls_reload_errors_total.increment(1);
                    tracing::error!("the certificate stays as it was: {e}");
                }
            }
        }
        let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", ") };
        tracing::info!("SIGHUP: reloaded {done}");
    }
}
