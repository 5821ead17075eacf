//! `arc wal dump`: what the log holds, row by row.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;

use super::rows::Rows;
use super::{MOST_LOOKS, ToolError, entries, pause};
use crate::format::payload::PayloadView;
use crate::types::Sequence;
use crate::vfs::Vfs;
use crate::wal::recover::{Visited, inspect_from};

/// What to print.
#[derive(Clone, Debug, Default)]
pub struct DumpOptions {
    /// First sequence.
    pub from: Option<Sequence>,
    /// Last sequence.
    pub to: Option<Sequence>,
    pub database: Option<String>,
    pub table: Option<String>,
    /// Most lines.
    pub limit: Option<u64>,
    /// Record headers instead of rows.
    pub records: bool,
}

/// How a dump went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    pub lines: u64,
    /// Why rows may be missing, or a server would not start: as far as the log was read.
    pub problems: Vec<String>,
}

struct Dump<'a> {
    options: &'a DumpOptions,
    out: &'a mut dyn Write,
    line: String,
    done: Dumped,
    /// The next sequence to print; None before the first.
    next: Option<Sequence>,
    /// The segment of the last record; 0 before the first of a look.
    segment: u64,
    /// An earlier record was printed, or left out by the options.
    begun: bool,
    /// Sequences known to be missing from an earlier look.
    missing: Vec<(Sequence, Sequence)>,
    /// The sequence at which a jump began that is to be believed only when a second look meets it too: nothing is printed
    /// until then.
    doubted: Option<Sequence>,
    believe_all: bool,
    error: Option<ToolError>,
    ended: bool,
}

/// Prints every kept record from `options.from` on as JSON lines, in the order of sequences; memory is bounded by one segment.
///
/// On a live log it ends with the last record found. A jump in the sequences from one segment to the next may come from a
/// segment that was made or released during the look, so it is believed only when a second look meets it too.
///
/// # Errors
/// [`ToolError`]; damage is no error but a problem in the result.
pub fn dump(vfs: &dyn Vfs, dir: &Path, options: &DumpOptions, out: &mut dyn Write) -> Result<Dumped, ToolError> {
    let mut d = Dump {
        options,
        out,
        line: String::new(),
        done: Dumped::default(),
        next: options.from,
        segment: 0,
        begun: false,
        missing: Vec::new(),
        doubted: None,
        believe_all: false,
        error: None,
        ended: options.limit == Some(0),
    };
    let mut damage: Vec<String> = Vec::new();
    let mut refusals: Vec<String> = Vec::new();
    for look in 0..MOST_LOOKS {
        entries(vfs, dir)?;
        let believed = d.doubted.take();
        d.segment = 0;
        d.believe_all = look + 1 == MOST_LOOKS;
        let from = d.next.unwrap_or(0);
        let report = inspect_from(vfs, dir, from, &mut |v| d.record(&v, believed), &mut |_| {});
        if let Some(e) = d.error.take() {
            return Err(e);
        }
        match report {
            // A manifest or segment that a live server has replaced.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !d.believe_all => {}
            Err(e) => return Err(ToolError::io(dir.display().to_string())(e)),
            Ok(r) => {
                for f in r.findings.iter().filter(|f| f.finding.label.is_damage()) {
                    let x = &f.finding;
                    let text =
                        format!("segment {} offset {}: {}: expected {}, found {}", f.segment, x.from, x.label.name(), x.expected, x.found);
                    if !damage.contains(&text) {
                        damage.push(text);
                    }
                }
                d.missing = r.findings.iter().filter_map(|f| f.finding.missing).collect();
                // Refusals too are believed only when two looks share them.
                let first = std::mem::replace(&mut refusals, r.refusals);
                if d.doubted.is_none() && (refusals.is_empty() || look > 0) {
                    refusals.retain(|r| first.contains(r));
                    break;
                }
            }
        }
        pause(look);
    }
    refusals.extend(damage);
    refusals.append(&mut d.done.problems);
    d.done.problems = refusals;
    d.out.flush().map_err(ToolError::Output)?;
    Ok(d.done)
}

impl Dump<'_> {
    fn record(&mut self, v: &Visited<'_>, believed: Option<Sequence>) -> ControlFlow<()> {
        let sequence = v.header.sequence;
        if self.ended || self.options.to.is_some_and(|to| sequence > to) {
            self.ended = true;
            return ControlFlow::Break(());
        }
        let expected = self.next.unwrap_or(sequence);
        if sequence < expected || self.doubted.is_some() {
            return ControlFlow::Continue(());
        }
        // Within a segment a jump is damage, and the log may begin anywhere.
        let boundary = self.begun && self.segment != v.segment;
        if sequence > expected && boundary && believed != Some(expected) && !self.believe_all {
            let known = self.missing.iter().any(|(a, b)| *a <= expected && sequence - 1 <= *b);
            if !known {
                self.doubted = Some(expected);
                return ControlFlow::Continue(());
            }
        }
        self.begun = true;
        self.segment = v.segment;
        match self.print(v) {
            Ok(()) => {
                self.next = Some(sequence + 1);
                ControlFlow::Continue(())
            }
            Err(e) => {
                self.error = Some(ToolError::Output(e));
                ControlFlow::Break(())
            }
        }
    }

    fn print(&mut self, v: &Visited<'_>) -> std::io::Result<()> {
        let unreadable = |why: String| format!("segment {} offset {}: sequence {}: {why}", v.segment, v.header.offset, v.header.sequence);
        let p = match PayloadView::parse(v.payload) {
            Ok(p) => p,
            Err(e) => {
                self.done.problems.push(unreadable(format!("payload {e}")));
                return if self.options.records { self.header(v) } else { Ok(()) };
            }
        };
        let options = self.options;
        let wanted = |table: &str| options.table.as_deref().is_none_or(|t| t == table);
        if options.database.as_deref().is_some_and(|d| d != &*p.index.database) || !p.index.tables.iter().any(|t| wanted(&t.table)) {
            return Ok(());
        }
        if self.options.records {
            return self.header(v);
        }
        let batch = match p.to_batch() {
            Ok(b) => b,
            Err(e) => {
                self.done.problems.push(unreadable(e));
                return Ok(());
            }
        };
        for t in batch.tables().iter().filter(|t| wanted(&t.table)) {
            let rows = Rows::new(batch.database(), t);
            for row in 0..t.rows() {
                self.line.clear();
                rows.put(&mut self.line, v.header.sequence, row);
                self.put_line()?;
                if self.ended {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, v: &Visited<'_>) -> std::io::Result<()> {
        use std::fmt::Write as _;
        let h = v.header;
        self.line.clear();
        let line = json!({
            "seq": h.sequence, "kind": h.kind.name(), "offset": h.offset, "segment": v.segment, "payload_len": h.payload_len,
            "floor": h.durable_floor, "receive_time": h.receive_time_us,
        });
        let _ = writeln!(self.line, "{line}");
        self.put_line()
    }

    fn put_line(&mut self) -> std::io::Result<()> {
        self.out.write_all(self.line.as_bytes())?;
        self.done.lines += 1;
        self.ended = self.options.limit == Some(self.done.lines);
        Ok(())
    }
}
