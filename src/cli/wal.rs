//! `arc wal list|verify|dump`
//!
//! Exit codes: 0 clean (a torn or live tail is clean), 1 not a log, 3 problems found, 74 I/O error. These change nothing; `damage` and
//! `deferred` are in [`super::wal_change`].

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::wal_change::{DamageCommand, DeferredCommand, damage, deferred};
use super::{EXIT_FAILURE, EXIT_IO, EXIT_PROBLEMS, Global, plain_table};
use crate::format::scan::range_text;
use crate::tools::dump::{DumpOptions, dump};
use crate::tools::lake::LakeReport;
use crate::tools::list::{Listing, Sizes, list};
use crate::tools::side::{KeptLine, SideLine};
use crate::tools::verify::{Stage, Verified, verify};
use crate::tools::{ToolError, short_salt};
use crate::types::Sequence;
use crate::vfs::OsVfs;

/// Most lines of one kind that people are shown; JSON has them all.
const MOST_LINES: usize = 100;

#[derive(Subcommand, Debug)]
pub enum WalCommand {
    /// List the segments of a log and its other files, by their headers
    List {
        #[command(flatten)]
        directory: Directory,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check every byte of a log, live or copied, and say what a recovery would keep; exit code 3 if something is wrong
    Verify(VerifyArgs),
    /// Print the rows of a log as JSON lines, in the order of sequences; NULL columns are left out
    ///
    /// Rows that are in Parquet already are among them as long as their segment is there: `shipped` of `arc wal list` tells them
    /// apart, by sequence.
    Dump(DumpArgs),
    /// Damage that was found: list it, and acknowledge it once it has been seen to
    #[command(subcommand)]
    Damage(DamageCommand),
    /// Side segments: list them, and give up one that is lost
    #[command(subcommand)]
    Deferred(DeferredCommand),
}

/// Which log.
#[derive(Args, Debug)]
pub struct Directory {
    /// Directory of the log, live or a copy [default: wal.directory of the configuration]
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The same as DIR
    #[arg(long = "dir", value_name = "DIR", conflicts_with = "dir")]
    pub dir_flag: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub directory: Directory,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// Also check the files of this lake (storage.local_path) against the log's commits
    #[arg(long, value_name = "DIR")]
    pub lake: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct DumpArgs {
    #[command(flatten)]
    pub directory: Directory,
    /// First sequence
    #[arg(long, value_name = "SEQ")]
    pub from: Option<Sequence>,
    /// Last sequence
    #[arg(long, value_name = "SEQ")]
    pub to: Option<Sequence>,
    /// Only this database
    #[arg(long)]
    pub database: Option<String>,
    /// Only this table
    #[arg(long)]
    pub table: Option<String>,
    /// At most this many lines
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Record headers instead of rows; receive_time is in microseconds since 1970
    #[arg(long)]
    pub records: bool,
    /// Also records among the bytes set aside in side/ of damaged and torn places; their lines say "file"
    #[arg(long)]
    pub set_aside: bool,
}

/// Runs `arc wal`.
pub fn run(global: &Global, command: WalCommand) -> ExitCode {
    match command {
        WalCommand::List { directory, json } => with_directory(global, directory, |dir| {
            let l = list(&OsVfs, &dir)?;
            let text = if json { json_line(&l) } else { listing(&l) };
            Ok((super::print(&text), l.problems.is_empty()))
        }),
        WalCommand::Verify(args) => with_directory(global, args.directory, |dir| {
            let mut shown = Shown::new();
            let v = verify(&OsVfs, &dir, args.lake.as_deref(), &mut |s| shown.update(s));
            shown.end();
            let v = v?;
            let text = if args.json { json_line(&v) } else { verified(&v, global.color.on_stdout()) };
            Ok((super::print(&text), v.clean()))
        }),
        WalCommand::Damage(c) => damage(global, c),
        WalCommand::Deferred(c) => deferred(global, c),
        WalCommand::Dump(args) => {
            let DumpArgs { directory, from, to, database, table, limit, records, set_aside } = args;
            let options = DumpOptions { from, to, database, table, limit, records, set_aside };
            with_directory(global, directory, |dir| {
                let mut out = BufWriter::with_capacity(1 << 18, std::io::stdout().lock());
                let done = dump(&OsVfs, &dir, &options, &mut out)?;
                for p in done.problems.iter().take(MOST_LINES) {
                    global.warn(p);
                }
                if !done.problems.is_empty() {
                    global.warn(format!(
                        "{} problems: rows may be missing; arc wal verify says what a recovery would do",
                        done.problems.len()
                    ));
                }
                Ok((ExitCode::SUCCESS, done.problems.is_empty()))
            })
        }
    }
}

/// Runs a tool on the directory given or configured and turns its outcome into an exit code.
pub(super) fn with_directory(
    global: &Global,
    directory: Directory,
    run: impl FnOnce(PathBuf) -> Result<(ExitCode, bool), ToolError>,
) -> ExitCode {
    let dir = match directory.dir.or(directory.dir_flag) {
        Some(dir) => dir,
        None => match global.load() {
            Ok((config, _, warnings)) => {
                for w in &warnings {
                    global.warn(w);
                }
                config.wal.directory
            }
            Err(e) => return global.refuse(&e),
        },
    };
    match run(dir) {
        Ok((printed, _)) if printed != ExitCode::SUCCESS => printed,
        Ok((_, true)) => ExitCode::SUCCESS,
        Ok((_, false)) => ExitCode::from(EXIT_PROBLEMS),
        // A reader that has seen enough is no error.
        Err(ToolError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            global.error(&e);
            ExitCode::from(if matches!(e, ToolError::NotALog(_)) { EXIT_FAILURE } else { EXIT_IO })
        }
    }
}

pub(super) fn json_line(v: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_value(v).unwrap_or_default())
}

fn or_dash(v: Option<u64>) -> String {
    v.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

fn listing(l: &Listing) -> String {
    use std::fmt::Write as _;
    let mut t = plain_table(&["ID", "FILE", "LENGTH", "FIRST", "LAST", "END", "LABEL", "SALT"]);
    for s in &l.segments {
        let salt = s.salt.as_deref().and_then(|s| u64::from_str_radix(s, 16).ok()).map_or_else(|| "-".to_owned(), short_salt);
        t.add_row([
            s.id.to_string(),
            s.file.clone(),
            s.length.to_string(),
            or_dash(s.first_seq),
            or_dash(s.last_seq),
            or_dash(s.end),
            s.label.to_owned(),
            salt,
        ]);
    }
    let mut out = format!("log {}\n{}\n", l.log_uuid.as_deref().unwrap_or("unknown"), t.trim_fmt());
    if let Some(m) = &l.manifest {
        let _ = writeln!(
            out,
            "manifest    {} (end {}, epoch {}, {} plans, {} tables, {} keys; shipped through {}, released through {})",
            m.file, m.end, m.epoch, m.plans, m.tables, m.keys, m.shipped, m.released
        );
    }
    let sizes = |s: Sizes| format!("{} files, {} bytes", s.files, s.bytes);
    for (name, s) in [("spares", l.spares), ("pool", l.pool), ("side", l.side), ("quarantine", l.quarantine)] {
        let _ = writeln!(out, "{name:<11} {}", sizes(s));
    }
    let _ = writeln!(out, "reserve     {} bytes", l.reserve_bytes);
    side(&mut out, &l.side_segments, &l.kept);
    for p in &l.problems {
        let _ = writeln!(out, "problem: {p}");
    }
    out
}

fn verified(v: &Verified, color: bool) -> String {
    use std::fmt::Write as _;
    let mut out = format!("log {}\n", v.log_uuid.as_deref().unwrap_or("unknown"));
    let mut t = plain_table(&["ID", "FILE", "FIRST", "LAST", "END", "LABEL"]);
    for s in &v.segments {
        t.add_row([
            s.id.to_string(),
            s.file.clone(),
            s.first_seq.to_string(),
            s.last_seq.to_string(),
            s.end.to_string(),
            s.label.to_owned(),
        ]);
    }
    let _ = writeln!(out, "{}\n", t.trim_fmt());
    if !v.tables.is_empty() {
        let mut t = plain_table(&["DATABASE", "TABLE", "ROWS", "NOT SHIPPED", "IN SIDE SEGMENTS"]);
        for x in v.tables.iter().take(MOST_LINES) {
            t.add_row([x.database.clone(), x.table.clone(), x.rows.to_string(), x.unshipped_rows.to_string(), x.side_rows.to_string()]);
        }
        let _ = writeln!(out, "{}", t.trim_fmt());
        more(&mut out, v.tables.len(), "tables");
        out.push('\n');
    }
    if !v.findings.is_empty() {
        let mut t = plain_table(&["FINDING", "SEGMENT", "FILE", "OFFSET", "EXPECTED", "FOUND"]);
        for f in v.findings.iter().take(MOST_LINES) {
            let segment = if f.segment == 0 { "-".to_owned() } else { f.segment.to_string() };
            t.add_row([f.label.to_owned(), segment, f.file.clone(), f.offset.to_string(), f.expected.clone(), f.found.clone()]);
        }
        let _ = writeln!(out, "{}", t.trim_fmt());
        more(&mut out, v.findings.len(), "findings");
        out.push('\n');
    }
    for m in v.missing.iter().take(MOST_LINES) {
        let plural = if m.first == m.last { "" } else { "s" };
        let _ = writeln!(out, "missing: sequence{plural} {}", range_text(m.first, m.last));
    }
    more(&mut out, v.missing.len(), "missing ranges");
    for r in v.refusals.iter().take(MOST_LINES) {
        let _ = writeln!(out, "refused: {r}");
    }
    more(&mut out, v.refusals.len(), "refusals");
    side(&mut out, &v.side, &v.kept);
    if v.quarantined_rows > 0 {
        let _ = writeln!(out, "quarantine: {} rows; see arc quarantine list", v.quarantined_rows);
    }
    if let Some(l) = &v.lake {
        lake(&mut out, l);
    }
    let w = &v.watermarks;
    let _ = if v.verdict == "refused" {
        writeln!(out, "shipped through {}, released through {}, as far as the manifest can be read", w.shipped, w.released)
    } else {
        writeln!(
            out,
            "recovery would keep sequences through {} (shipped through {}, released through {})",
            v.would_recover_through, w.shipped, w.released
        )
    };
    let word = match (v.verdict, v.clean()) {
        (verdict @ ("clean" | "torn"), false) => format!("{verdict}, but the lake is not"),
        (verdict, _) => verdict.to_owned(),
    };
    let advice = match v.verdict {
        "damaged" => {
            "\nKeep a copy. With wal.on_damage = \"set-aside\" a server goes on without what is missing, with \"refuse\" it does not start; restoring the files first loses nothing."
        }
        "refused" => "\nA server would not start here; nothing has been changed.",
        "torn" => "\nNothing on disk shows that the tail was acknowledged.",
        _ => "",
    };
    let code = if v.clean() { "32" } else { "31" };
    let _ = if color { writeln!(out, "verdict: \x1b[1;{code}m{word}\x1b[0m{advice}") } else { writeln!(out, "verdict: {word}{advice}") };
    out
}

/// Side segments and what else is kept beside the log.
pub(super) fn side(out: &mut String, segments: &[SideLine], kept: &[KeptLine]) {
    use std::fmt::Write as _;
    let sequences = |first: Option<Sequence>, last: Option<Sequence>| match (first, last) {
        (Some(a), Some(b)) => range_text(a, b),
        (Some(a), None) => format!("from {a}"),
        _ => "-".to_owned(),
    };
    if !segments.is_empty() {
        let mut t = plain_table(&["SIDE SEGMENT", "STATE", "BYTES", "DATABASE", "TABLE", "ROWS", "SEQUENCES"]);
        for s in segments.iter().take(MOST_LINES) {
            t.add_row([
                s.file.clone(),
                s.state.to_owned(),
                s.bytes.to_string(),
                s.database.clone().unwrap_or_else(|| "-".into()),
                s.table.clone().unwrap_or_else(|| "-".into()),
                or_dash(s.rows),
                sequences(s.first_seq, s.last_seq),
            ]);
        }
        let _ = writeln!(out, "{}", t.trim_fmt());
        more(out, segments.len(), "side segments");
    }
    if !kept.is_empty() {
        let mut t = plain_table(&["SET ASIDE", "BYTES", "WHOLE RECORDS", "SEQUENCES"]);
        for k in kept.iter().take(MOST_LINES) {
            t.add_row([k.file.clone(), k.bytes.to_string(), k.records.to_string(), sequences(k.first_seq, k.last_seq)]);
        }
        let _ = writeln!(out, "{}", t.trim_fmt());
        more(out, kept.len(), "files");
    }
}

fn lake(out: &mut String, l: &LakeReport) {
    use std::fmt::Write as _;
    let _ = writeln!(out, "lake: {} committed files checked", l.checked);
    for n in l.missing.iter().take(MOST_LINES) {
        let _ = writeln!(out, "lake: missing {n}: committed, and not there; its rows may still be in the log or in a copy");
    }
    more(out, l.missing.len(), "missing files");
    for w in l.wrong.iter().take(MOST_LINES) {
        let ((len, sha), (found_len, found_sha)) = (&w.expected, &w.found);
        let _ = writeln!(out, "lake: wrong {}: expected {len} bytes, SHA-256 {sha}; found {found_len} bytes, SHA-256 {found_sha}", w.name);
    }
    more(out, l.wrong.len(), "wrong files");
    for n in l.unnamed.iter().take(MOST_LINES) {
        let _ = writeln!(out, "lake: unnamed {n}: this log's uuid, and no commit names it; readers count its rows");
    }
    more(out, l.unnamed.len(), "unnamed files");
    for n in l.pending.iter().take(MOST_LINES) {
        let _ = writeln!(out, "lake: pending {n}: published as intended, not committed yet");
    }
    more(out, l.pending.len(), "pending files");
}

fn more(out: &mut String, n: usize, what: &str) {
    use std::fmt::Write as _;
    if n > MOST_LINES {
        let _ = writeln!(out, "... and {} more {what}; --json has them all", n - MOST_LINES);
    }
}

/// Progress on stderr: a bar on a terminal, else a line every few seconds.
struct Shown {
    bar: Option<indicatif::ProgressBar>,
    last: Instant,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = indicatif::ProgressBar::new(0);
            if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, last: Instant::now() }
    }

    fn update(&mut self, s: Stage) {
        let (what, p) = match s {
            Stage::Log(p) => ("log", p),
            Stage::Lake(p) => ("lake", p),
        };
        if let Some(bar) = &self.bar {
            bar.set_message(what);
            bar.set_length(p.bytes_total);
            bar.set_position(p.bytes_done);
        } else if self.last.elapsed() >= Duration::from_secs(3) {
            self.last = Instant::now();
            // Nobody is left to tell if stderr is gone.
            let _ = writeln!(std::io::stderr(), "{what}: {} of {} bytes", p.bytes_done, p.bytes_total);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Color;
    use crate::tools::lake::WrongFile;
    use crate::tools::verify::Missing;
    use std::io;

    fn exit(outcome: Result<(ExitCode, bool), ToolError>) -> ExitCode {
        let global = Global { config: None, sets: Vec::new(), color: Color::Never };
        let directory = Directory { dir: Some("x".into()), dir_flag: None };
        with_directory(&global, directory, |dir| {
            assert_eq!(dir, PathBuf::from("x"));
            outcome
        })
    }

    #[test]
    fn exit_codes_are_those_of_the_interface() {
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        assert_eq!(exit(Ok((ExitCode::SUCCESS, true))), ExitCode::SUCCESS);
        assert_eq!(exit(Ok((ExitCode::SUCCESS, false))), ExitCode::from(3));
        assert_eq!(exit(Ok((ExitCode::from(74), false))), ExitCode::from(74));
        assert_eq!(exit(Err(ToolError::NotALog("x".into()))), ExitCode::from(1));
        assert_eq!(exit(Err(ToolError::Io { what: "x".into(), source: io(io::ErrorKind::Other) })), ExitCode::from(74));
        assert_eq!(exit(Err(ToolError::Output(io(io::ErrorKind::BrokenPipe)))), ExitCode::SUCCESS);
        assert_eq!(exit(Err(ToolError::Output(io(io::ErrorKind::StorageFull)))), ExitCode::from(74));
    }

    #[test]
    fn people_are_told_the_verdict_the_place_and_what_to_do() {
        let wrong = WrongFile { name: "db/t/x.parquet".into(), expected: (3, "aa".into()), found: (2, "bb".into()) };
        let lake = LakeReport { checked: 1, wrong: vec![wrong], unnamed: vec!["u".into(); MOST_LINES + 2], ..LakeReport::default() };
        let v = Verified { verdict: "clean", missing: vec![Missing { first: 4, last: 5 }], lake: Some(lake), ..Verified::default() };
        let text = verified(&v, false);
        for part in [
            "missing: sequences 4 to 5",
            "wrong db/t/x.parquet: expected 3 bytes, SHA-256 aa; found 2",
            "and 2 more unnamed files",
            "verdict: clean, but the lake is not",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\x1b') && verified(&v, true).contains("\x1b[1;31m"));
        let refused = verified(&Verified { verdict: "refused", ..Verified::default() }, false);
        assert!(refused.contains("would not start") && !refused.contains("would keep"), "{refused}");
        assert!(verified(&Verified { verdict: "torn", ..Verified::default() }, false).contains("Nothing on disk shows that"));
    }
}
