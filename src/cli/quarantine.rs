//! `arc quarantine list|show`
//!
//! Exit codes: 0 done, 1 not a log or no such slice, 3 a file of the quarantine cannot be read, 74 I/O error.

use std::process::ExitCode;

use clap::Subcommand;

use super::wal::{Directory, json_line, with_directory};
use super::{EXIT_FAILURE, Global, plain_table};
use crate::tools::ToolError;
use crate::tools::quarantine::{Quarantine, Slice, list, show};
use crate::types::Sequence;
use crate::vfs::OsVfs;

#[derive(Subcommand, Debug)]
pub enum QuarantineCommand {
    /// List the slices that could not be turned into Parquet
    List {
        #[command(flatten)]
        directory: Directory,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the slices of one sequence with their rows, or their first bytes where they cannot be decoded
    Show {
        /// Sequence of the record
        #[arg(value_name = "SEQUENCE")]
        sequence: Sequence,
        #[command(flatten)]
        directory: Directory,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs `arc quarantine`.
pub fn run(global: &Global, command: QuarantineCommand) -> ExitCode {
    match command {
        QuarantineCommand::List { directory, json } => with_directory(global, directory, |dir| {
            let q = list(&OsVfs, &dir)?;
            let text = if json { json_line(&q) } else { table(&q) };
            Ok((super::print(&text), q.problems.is_empty()))
        }),
        QuarantineCommand::Show { sequence, directory, json } => with_directory(global, directory, |dir| {
            let (slices, problems) = show(&OsVfs, &dir, sequence)?;
            for p in &problems {
                global.warn(p);
            }
            if slices.is_empty() && problems.is_empty() {
                global.error(format!("{}: expected a slice of sequence {sequence}, found none; see arc quarantine list", dir.display()));
                return Ok((ExitCode::from(EXIT_FAILURE), true));
            }
            let text = if json {
                json_line(&serde_json::json!({"sequence": sequence, "slices": slices, "problems": problems}))
            } else {
                slices.iter().map(shown).collect()
            };
            Ok::<_, ToolError>((super::print(&text), problems.is_empty()))
        }),
    }
}

fn table(q: &Quarantine) -> String {
    use std::fmt::Write as _;
    let mut t = plain_table(&["SEQUENCE", "DATABASE", "TABLE", "HOUR", "ROWS", "BYTES", "PLAN", "REASON"]);
    for s in &q.slices {
        let e = &s.entry;
        t.add_row([
            e.sequence.to_string(),
            e.database.clone(),
            e.table.clone(),
            e.hour.to_string(),
            e.rows.to_string(),
            e.bytes.to_string(),
            e.plan.to_string(),
            e.reason.clone(),
        ]);
    }
    let mut out = if q.slices.is_empty() { String::new() } else { format!("{}\n", t.trim_fmt()) };
    let _ = writeln!(out, "{} slices, {} rows, {} bytes", q.slices.len(), q.rows, q.bytes);
    for p in &q.problems {
        let _ = writeln!(out, "problem: {p}");
    }
    out
}

fn shown(s: &Slice) -> String {
    use std::fmt::Write as _;
    let e = &s.line.entry;
    let mut out = format!(
        "sequence {}, database {}, table {}, hour {}, {} rows, plan {}, {} bytes in {}\nreason: {}\n",
        e.sequence, e.database, e.table, e.hour, e.rows, e.plan, e.bytes, s.line.file, e.reason
    );
    for row in s.decoded.iter().flatten() {
        let _ = writeln!(out, "{row}");
    }
    if let Some(why) = &s.error {
        let _ = writeln!(out, "not decodable: {why}");
    }
    if let Some(hex) = &s.hex {
        let _ = writeln!(out, "first bytes: {hex}");
    }
    out
}
