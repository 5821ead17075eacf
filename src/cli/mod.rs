//! The command line: one file a subcommand.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 runtime error, 2 usage, 74 I/O error,
//! 78 configuration; a subcommand documents what else it uses.

pub mod access;
pub mod bench;
pub mod config;
pub mod descriptors;
pub mod drain;
pub mod healthcheck;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod quarantine;
pub mod reload;
pub mod serve;
pub mod settings;
pub mod start;
pub mod token;
mod trust;
pub mod version;
pub mod wal;
pub mod wal_change;

use crate::config::{Config, ConfigError, LoadOptions, Origins, Warning};
use crate::log_writer;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A runtime error.
pub const EXIT_FAILURE: u8 = 1;
/// A tool found problems and changed nothing.
pub const EXIT_PROBLEMS: u8 = 3;
/// Reading or writing failed.
pub const EXIT_IO: u8 = 74;

#[derive(Parser, Debug)]
#[command(
    name = "arc",
    version,
    about = "Durable ingester: HTTP to a synced write-ahead log to Parquet, every acknowledged row exactly once",
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every subcommand takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Configuration file; without it ./arc.toml, else /etc/arc/arc.toml
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Set a key of the configuration, before the environment and the file; may be repeated
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE", help_heading = "Global options")]
    pub sets: Vec<String>,
    /// Colours in what people read; NO_COLOR is respected
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, help_heading = "Global options")]
    pub color: Color,
}

/// `--color`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether to colour what goes to stderr.
    pub fn on_stderr(self) -> bool {
        self.on(std::io::stderr().is_terminal())
    }

    /// Whether to colour what people read on stdout.
    pub fn on_stdout(self) -> bool {
        self.on(std::io::stdout().is_terminal())
    }

    fn on(self, terminal: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && terminal,
        }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the server
    Serve,
    /// Ship everything that the log of a stopped node still holds, and end
    Drain(drain::DrainArgs),
    /// Check, show and document the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask a running server whether it is well: exit code 0, or 1 and the reason
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Document the metrics
    #[command(subcommand)]
    Metrics(metrics::MetricsCommand),
    /// Make, list and end the tokens that the server asks for
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Look at a log, live or copied; decide about damage and lost side segments of a stopped one
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// Look at slices that could not be turned into Parquet
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Measure a running server, and check what it stored
    Bench(Box<bench::BenchArgs>),
    /// Say which version this is
    Version(version::VersionArgs),
}

impl Global {
    /// Reads the configuration with the flags, environment and directory of this process.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<(Config, Origins, Vec<Warning>), ConfigError> {
        // The directory only serves to find files; without one, relative paths still count from wherever we are.
        let mut options = LoadOptions::new(std::env::current_dir().unwrap_or_default());
        options.config_path.clone_from(&self.config);
        options.sets.clone_from(&self.sets);
        options.env = std::env::vars_os().collect();
        Config::load(&options)
    }

    /// Says an error on stderr.
    pub fn error(&self, text: impl std::fmt::Display) {
        self.say("error", "31", &text);
    }

    /// Says something on stderr.
    pub fn note(&self, text: impl std::fmt::Display) {
        self.say("note", "36", &text);
    }

    /// Says a warning on stderr.
    pub fn warn(&self, text: impl std::fmt::Display) {
        self.say("warning", "33", &text);
    }

    fn say(&self, word: &str, code: &str, text: &dyn std::fmt::Display) {
        let line = if self.color.on_stderr() { format!("\x1b[1;{code}m{word}:\x1b[0m {text}\n") } else { format!("{word}: {text}\n") };
        if !log_writer::say(&line) {
            // Nobody is left to tell if stderr is gone.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    /// The exit code of a refused configuration, after saying why.
    pub fn refuse(&self, e: &ConfigError) -> ExitCode {
        self.error(e);
        ExitCode::from(e.exit_code())
    }
}

/// A table without lines, for people.
fn plain_table(head: &[&str]) -> comfy_table::Table {
    let mut t = comfy_table::Table::new();
    t.load_style(comfy_table::presets::NOTHING);
    t.set_header(head.iter().copied());
    t
}

/// Writes data to stdout and turns the outcome into an exit code: a reader that has seen enough is no error.
pub fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_IO),
    }
}

/// How long the end of the process waits for its last log lines to be taken.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Writes to stdout as [`print()`] does, and goes on after `patience` if nobody reads; whether it was written.
pub fn print_within(text: String, patience: Duration) -> bool {
    let (done, told) = std::sync::mpsc::channel();
    let writer = std::thread::Builder::new().name("arc-stdout".into()).spawn(move || {
        let mut out = std::io::stdout().lock();
        let _ = done.send(out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok());
    });
    writer.is_ok() && told.recv_timeout(patience).unwrap_or(false)
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let code = run();
    log_writer::finish(LAST_LINES);
    code
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    match cli.command {
        Command::Serve => serve::run(&cli.global),
        Command::Drain(args) => drain::run(&cli.global, &args),
        Command::Config(command) => config::run(&cli.global, &command),
        Command::Healthcheck(args) => healthcheck::run(&cli.global, &args),
        Command::Metrics(command) => metrics::run(&command),
        Command::Token(command) => token::run(&cli.global, command),
        Command::Wal(command) => wal::run(&cli.global, command),
        Command::Quarantine(command) => quarantine::run(&cli.global, command),
        Command::Bench(args) => bench::run(&cli.global, *args),
        Command::Version(args) => version::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["arc", "config", "show", "--origin", "--set", "a.b=c", "--set", "d.e=f", "--color", "never"]).unwrap();
        assert_eq!(cli.global.sets, ["a.b=c", "d.e=f"]);
        for good in [
            &["wal", "list"][..],
            &["wal", "list", "d", "--json"],
            &["wal", "verify", "d", "--lake", "l", "--json"],
            &["wal", "dump", "--dir", "d", "--from", "1", "--to", "2", "--limit", "3", "--table", "t", "--database", "b", "--records"],
            &["drain", "d", "--timeout", "5m", "--json"],
            &["healthcheck", "--url", "http://h", "--ready", "--timeout", "3s", "--insecure"],
            &["metrics", "reference"],
            &["quarantine", "list", "d"],
            &["quarantine", "show", "7", "d", "--json"],
        ] {
            assert!(Cli::try_parse_from(["arc"].iter().chain(good)).is_ok(), "{good:?}");
        }
        assert_eq!(Cli::try_parse_from(["arc", "wal", "list", "d", "--dir", "d"]).unwrap_err().exit_code(), 2);
        assert_eq!(Cli::try_parse_from(["arc", "nothing"]).unwrap_err().exit_code(), 2);
    }
}
