//! `arc bench`: a closed loop of writes against a running server, and the check of what it stored.
//!
//! Each connection sends one request at a time. Bodies are templates ([`body`]), outcomes go to a ledger ([`ledger`]) that
//! [`verify`] compares with the lake. An outcome is `acked` (204), `refused` (a complete answer that says no) or
//! `unanswered` (the connection broke or timed out, or 503 `unknown_outcome`). With `--keys` whatever is not definite
//! is sent again, same key and body, so that a request that ends acknowledged must be stored exactly once.
//!
//! Latencies are those of acknowledged requests, from the first attempt to the acknowledgement. A closed loop slows down
//! with the server: they say nothing about a load that would not wait.
//!
//! Exit code 0: at least one request was acknowledged. 1: none was, or the server went away with
//! `--tolerate-down=false`. 74: the ledger cannot be written.

pub mod body;
pub mod client;
pub mod ledger;
pub mod verify;
mod report;
mod run;

use super::{EXIT_FAILURE, EXIT_IO, Global};
use crate::config::is_loopback;
use crate::config::value::{Secret, parse_duration};
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The database that the bench writes to.
pub const DATABASE: &str = "bench";
/// Duration of a run for which nothing else was asked.
const DEFAULT_DURATION: Duration = Duration::from_secs(20);
/// The same with `--requests`: the server may be away for good.
const REQUESTS_DURATION: Duration = Duration::from_secs(600);
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// `--format`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One table a request, columns
    Columnar,
    /// One table a request, an array of rows
    Row,
    /// All tables in each request, columns
    Batch,
    /// One table a request, line protocol
    Line,
}

impl Format {
    /// Where bodies go when the URL has no path.
    fn path(self) -> &'static str {
        match self {
            Self::Columnar | Self::Row | Self::Batch => "/api/v1/write/msgpack",
            Self::Line => "/api/v1/write/line-protocol?precision=ms",
        }
    }
}

/// `--encoding`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    None,
    Gzip,
    Zstd,
}

impl Encoding {
    fn header(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|d| !d.is_zero() && *d <= MAX_DURATION)
        .ok_or_else(|| "expected a duration up to 24h, such as 500ms, 20s, 5m".into())
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    /// Compare a ledger with the Parquet files that were stored; exit code 1 if a row is lost, doubled, half or foreign
    Verify(verify::VerifyArgs),
}

#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    /// Server to write to; without a path the route of the format
    #[arg(long, required = true, value_name = "URL")]
    pub url: Option<String>,
    /// File whose first line is a token that may write to the database `bench`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// When to stop at the latest [default: 20s, with --requests 10m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Stop after so many requests, retries not counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Form of the bodies
    #[arg(long, value_enum, default_value_t = Format::Columnar)]
    pub format: Format,
    /// Compression of the bodies
    #[arg(long, value_enum, default_value_t = Encoding::None)]
    pub encoding: Encoding,
    /// Rows of each request
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rows: u32,
    /// Tables, which take turns (or share each request with --format batch)
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub tables: u32,
    /// Send an Idempotency-Key and repeat what was not answered
    #[arg(long)]
    pub keys: bool,
    /// With --keys: how long to go on repeating after the end
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub retry_for: Duration,
    /// Take down each request's ids and outcome; a ledger that exists is continued
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Time to wait for a connection, and for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Keep connecting while the server is away
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub tolerate_down: bool,
    /// CA certificates (PEM) used to verify an https server, or its own certificate
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// Take any certificate from an https server
    #[arg(long)]
    pub insecure: bool,
    /// Allow a target on another machine
    #[arg(long)]
    pub allow_remote: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    fn duration(&self) -> Duration {
        self.duration.unwrap_or(if self.requests.is_some() { REQUESTS_DURATION } else { DEFAULT_DURATION })
    }
}

/// Runs `arc bench` or `arc bench verify`.
pub fn run(global: &Global, args: BenchArgs) -> ExitCode {
    if let Some(BenchCommand::Verify(args)) = &args.command {
        return verify::run(global, args);
    }
    let args = args.run;
    let mut target = match client::Target::parse(args.url.as_deref().unwrap_or_default(), args.format.path()) {
        Ok(target) => target,
        Err(e) => {
            global.error(e);
            return ExitCode::from(2);
        }
    };
    if let Some(file) = &args.token_file {
        match read_token(file) {
            Ok(token) => target.token = token,
            Err(e) => {
                global.error(format_args!("--token-file {}: {e}", file.display()));
                return ExitCode::from(EXIT_IO);
            }
        }
    }
    if !args.allow_remote && !is_loopback(&target.host) {
        global.error(format_args!("--url: {} is not this machine; add --allow-remote if it may be put under load", target.host));
        return ExitCode::from(2);
    }
    if target.tls && args.ca.is_none() && !args.insecure {
        global.error("--url: say with --ca FILE what its certificate is verified with, or --insecure");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            global.error(format_args!("cannot start threads: {e}"));
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let json = args.json;
    match runtime.block_on(run::drive(args, target)) {
        Ok(report) => {
            let printed = super::print(&if json { report.json() } else { report.table() });
            if let Some(e) = &report.stopped_by {
                global.error(e);
                return ExitCode::from(EXIT_FAILURE);
            }
            if report.stats.acked == 0 {
                let first = report.stats.first_error.as_deref().map(|e| format!("; the first error: {e}")).unwrap_or_default();
                global.error(format_args!("no request was acknowledged{first}"));
                return ExitCode::from(EXIT_FAILURE);
            }
            printed
        }
        Err(e) => {
            global.error(e);
            ExitCode::from(EXIT_IO)
        }
    }
}

fn read_token(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    let token = text.lines().next().unwrap_or_default().trim();
    // What is there instead may be a secret too.
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("expected a token in the first line, printable ASCII without spaces, as `arc token create` prints it".into());
    }
    Ok(Secret::new(token))
}
