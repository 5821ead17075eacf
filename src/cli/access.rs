//! What the server lets in: tokens and the certificate, opened at the start and read again while it runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{EXIT_FAILURE, EXIT_IO};
use crate::auth::{AuthError, Secret, Tokens};
use crate::clock::SharedClock;
use crate::config::{Config, EXIT_CONFIG};
use crate::http::Tls;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;

/// Presets the first admin token.
pub const BOOTSTRAP: &str = "ARC_AUTH_BOOTSTRAP_TOKEN";
/// How often the server looks whether the file of tokens is another.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `None` without authentication.
    pub tokens: Option<Arc<Tokens>>,
    /// `None` for plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

/// The exit code for an error with the file of tokens.
pub fn exit_code(e: &AuthError) -> u8 {
    match e {
        AuthError::Io { .. } | AuthError::Locked { .. } => EXIT_IO,
        AuthError::Exposed { .. } | AuthError::Corrupt { .. } => EXIT_CONFIG,
        AuthError::Refused(_) | AuthError::NoSuch(_) => EXIT_FAILURE,
    }
}

impl Access {
    /// Opens what the configuration names. The secret is that of the admin token that the first start has made.
    ///
    /// # Errors
    /// What to say, and the exit code.
    pub fn open(config: &Config, clock: &SharedClock, preset: Option<&str>) -> Result<(Self, Option<Secret>), (String, u8)> {
        let mut access = Self::default();
        let server = &config.server;
        if server.tls_enabled {
            access.tls = Some(Tls::open(&server.tls_cert_file, &server.tls_key_file).map_err(|e| (e.to_string(), EXIT_CONFIG))?);
        }
        let mut first = None;
        if config.auth.enabled {
            let failed = |e: AuthError| (e.to_string(), exit_code(&e));
            let preset = match preset.map(Secret::preset).transpose() {
                Ok(preset) => preset,
                Err(e) => return Err((format!("{BOOTSTRAP}: {e}"), EXIT_CONFIG)),
            };
            let tokens = Tokens::open(&config.auth.token_file, Arc::clone(clock), true).map_err(failed)?;
            let was_preset = preset.is_some();
            match tokens.bootstrap(preset).map_err(failed)? {
                Some(_) if was_preset => tracing::info!("the first admin token is that of {BOOTSTRAP}"),
                Some(secret) => first = Some(secret),
                None if was_preset => tracing::info!("{BOOTSTRAP} is not used: there is a token file already"),
                None => {}
            }
            if !tokens.has_admin() {
                tracing::warn!(
                    "no live admin token in {}: `arc token create NAME --permissions admin` makes one",
                    config.auth.token_file.display()
                );
            }
            access.tokens = Some(Arc::new(tokens));
        } else if preset.is_some() {
            tracing::warn!("{BOOTSTRAP} has no effect: auth.enabled is false");
        }
        Ok((access, first))
    }

    /// Lines for the banner.
    pub fn banner(&self, address: SocketAddr, first: Option<&Secret>) -> (String, String) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut lines = match &self.tokens {
            None => "  tokens      not asked for (auth.enabled = false)\n".to_owned(),
            Some(t) => format!("  tokens      {} in {}\n", t.list().len(), t.path().display()),
        };
        if let Some(secret) = first {
            lines += &format!("\n  ADMIN TOKEN, shown this once:\n\n    {}\n\n", secret.reveal());
        }
        (format!("{scheme}://{address}"), lines)
    }

    /// Takes over what other processes did to the file of tokens, within about a second, for as long as the server runs.
    pub async fn follow(self, clock: SharedClock, metrics: Arc<Metrics>) {
        let Some(tokens) = self.tokens else { return };
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limit = LogLimit::new();
        loop {
            tick.tick().await;
            let store = Arc::clone(&tokens);
            // A disk may hang; one look at a time waits for it.
            let looked = tokio::task::spawn_blocking(move || store.refresh()).await;
            metrics.auth_tokens.set(tokens.live() as f64);
            match looked {
                Ok(Ok(true)) => tracing::info!(tokens = tokens.list().len(), "the token file has changed and is in force"),
                Ok(Ok(false)) => {}
                Ok(Err(e)) => {
                    metrics.auth_reload_errors_total.increment(1);
                    if let Some(suppressed) = limit.pass(clock.monotonic()) {
                        tracing::error!(suppressed, "the tokens stay as they were: {e}");
                    }
                }
                Err(e) => tracing::error!("looking at the token file ended by a panic: {e}"),
            }
        }
    }
}
