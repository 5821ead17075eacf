//! `arc wal damage list|ack`, `arc wal deferred list|give-up`: what a person decides about a stopped log.
//!
//! Exit codes: 0 nothing to say, 3 a decision is open or there is nothing of that name, 4 changed, 74 an I/O error, 75 a server has the log
//! open.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;

use super::serve::EXIT_LOCKED;
use super::wal::{Directory, json_line, with_directory};
use super::{EXIT_IO, EXIT_PROBLEMS, Global, plain_table};
use crate::clock::SystemClock;
use crate::format::manifest::Entry;
use crate::format::scan::range_text;
use crate::tools::side::{kept_lines, side_lines};
use crate::tools::{ToolError, entries};
use crate::vfs::{OsVfs, Vfs};
use crate::wal::files;
use crate::wal::manifest::{ManifestState, load};
use crate::wal::offline::{acknowledge, give_up};
use crate::wal::recover::OpenError;

/// Changed.
const EXIT_CHANGED: u8 = 4;

#[derive(Subcommand, Debug)]
pub enum DamageCommand {
    /// List the damage that the manifest knows, and the evidence that is kept of it
    List {
        #[command(flatten)]
        directory: Directory,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget damage of released segments and remove its evidence; the server must be stopped
    Ack {
        /// Number or file name of a segment, or "all"
        #[arg(value_name = "SEGMENT", value_parser = which)]
        segment: Which,
        #[command(flatten)]
        directory: Directory,
    },
}

#[derive(Subcommand, Debug)]
pub enum DeferredCommand {
    /// List the side segments: records of files that cannot be published
    List {
        #[command(flatten)]
        directory: Directory,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give up the rows of a side segment that is lost or will never be published: they count as lost. The server must be stopped
    GiveUp {
        /// Its name, out-PLAN-OUTPUT.wal
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        directory: Directory,
    },
}

/// A segment, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Which(Option<u64>);

fn which(text: &str) -> Result<Which, String> {
    let id = || text.parse().ok().or_else(|| files::parse_segment(text)).or_else(|| files::parse_evidence(text).map(|(id, _)| id));
    match text {
        "all" => Ok(Which(None)),
        _ => id().map(|id| Which(Some(id))).ok_or_else(|| "expected a number, the name of a segment's file, or all".into()),
    }
}

fn state(dir: &Path) -> Result<ManifestState, ToolError> {
    entries(&OsVfs, dir)?;
    let shown = || dir.display().to_string();
    let loaded = load(&OsVfs, dir).map_err(|e| ToolError::Io { what: shown(), source: std::io::Error::other(e.to_string()) })?;
    loaded.map(|m| m.state).ok_or_else(|| ToolError::NotALog(format!("{}: expected a manifest, found none", shown())))
}

/// The outcome of a change as an exit code.
fn changed<T>(global: &Global, r: Result<T, OpenError>, text: impl FnOnce(T) -> (String, u8)) -> ExitCode {
    match r {
        Ok(x) => {
            let (text, code) = text(x);
            let printed = super::print(&text);
            if printed == ExitCode::SUCCESS { ExitCode::from(code) } else { printed }
        }
        Err(e) => {
            global.error(&e);
            ExitCode::from(match e {
                OpenError::Locked(_) => EXIT_LOCKED,
                OpenError::Refused(_) => EXIT_PROBLEMS,
                OpenError::Io { .. } => EXIT_IO,
            })
        }
    }
}

fn read_io(dir: &Path) -> impl FnOnce(std::io::Error) -> ToolError {
    let what = dir.display().to_string();
    move |source| ToolError::Io { what, source }
}

/// Runs `arc wal damage`.
pub fn damage(global: &Global, command: DamageCommand) -> ExitCode {
    match command {
        DamageCommand::List { directory, json } => with_directory(global, directory, |dir| {
            let damage = state(&dir)?.damage;
            let kept = kept_lines(&OsVfs, &dir).map_err(read_io(&dir))?;
            let text = if json {
                json_line(&json!({"damage": damage.iter().map(with_file).collect::<Vec<_>>(), "kept": kept}))
            } else {
                let mut t = plain_table(&["FILE", "SEGMENT", "OFFSET", "LABEL", "MISSING"]);
                for d in &damage {
                    let Entry::Damage { segment, from, label, first_missing, last_missing, .. } = d else { continue };
                    let file = if *segment == 0 { "side".to_owned() } else { files::segment_name(*segment) };
                    let missing = if *first_missing == 0 { "-".to_owned() } else { range_text(*first_missing, *last_missing) };
                    t.add_row([file, segment.to_string(), from.to_string(), label.clone(), missing]);
                }
                let mut text = if damage.is_empty() { String::new() } else { format!("{}\n", t.trim_fmt()) };
                super::wal::side(&mut text, &[], &kept);
                text
            };
            Ok((super::print(&text), damage.is_empty()))
        }),
        DamageCommand::Ack { segment: Which(segment), directory } => with_directory(global, directory, |dir| {
            entries(&OsVfs, &dir)?;
            let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
            let done = acknowledge(&vfs, &SystemClock::shared(), &dir, segment);
            let code = changed(global, done, |a| {
                use std::fmt::Write as _;
                let mut text = format!("{} entries of damage forgotten, {} files removed\n", a.entries, a.files.len());
                for f in &a.files {
                    let _ = writeln!(text, "removed side/{f}");
                }
                for s in &a.left {
                    let _ = writeln!(text, "{} is still in the log: let a server ship it first", files::segment_name(*s));
                }
                let none = a.entries == 0 && a.files.is_empty();
                (text, if !a.left.is_empty() || none { EXIT_PROBLEMS } else { EXIT_CHANGED })
            });
            Ok((code, true))
        }),
    }
}

/// The entry as JSON, with the name of its file beside the number.
fn with_file(e: &Entry) -> serde_json::Value {
    let mut v = json!(e);
    if let (Entry::Damage { segment, .. }, Some(o)) = (e, v.as_object_mut()) {
        o.insert("file".into(), if *segment == 0 { "side".into() } else { files::segment_name(*segment).into() });
    }
    v
}

/// Runs `arc wal deferred`.
pub fn deferred(global: &Global, command: DeferredCommand) -> ExitCode {
    match command {
        DeferredCommand::List { directory, json } => with_directory(global, directory, |dir| {
            let lines = side_lines(&OsVfs, &dir, &state(&dir)?).map_err(read_io(&dir))?;
            let mut text = String::new();
            super::wal::side(&mut text, &lines, &[]);
            let text = if json { json_line(&json!({"side_segments": lines})) } else { text };
            Ok((super::print(&text), lines.iter().all(|l| l.state != "missing" && l.state != "stray")))
        }),
        DeferredCommand::GiveUp { name, directory } => with_directory(global, directory, |dir| {
            entries(&OsVfs, &dir)?;
            let vfs: Arc<dyn Vfs> = Arc::new(OsVfs);
            let done = give_up(&vfs, &SystemClock::shared(), &dir, &name);
            let code = changed(global, done, |g| {
                let kept = g.kept.map_or_else(|| "there was no file".to_owned(), |k| format!("what is left of the file is side/{k}"));
                let range = range_text(g.first_sequence, g.last_sequence);
                (format!("{} rows of table {} (sequences {range}) are given up; {kept}\n", g.rows, g.table), EXIT_CHANGED)
            });
            Ok((code, true))
        }),
    }
}
