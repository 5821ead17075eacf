//! `arc wal dump`: what the log holds, row by row.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::rows::Rows;
use super::side::{Outside, Wanted, each_record, outside};
use super::{MOST_LOOKS, ToolError, entries, pause};
use crate::batch::TableBatch;
use crate::format::payload::{PayloadView, one_table};
use crate::format::record::RecordHeader;
use crate::types::{Sequence, hour_of};
use crate::vfs::{Vfs, read_all};
use crate::wal::files;
use crate::wal::manifest::load;
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
    /// Also whole records among the bytes that were set aside of damaged and torn places, each line with its file.
    pub set_aside: bool,
}

/// How a dump went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    pub lines: u64,
    /// Why rows may be missing, or a server would not start: as far as the log was read.
    pub problems: Vec<String>,
}

/// Where a record stands.
struct Place<'a> {
    /// 0 outside of the log's segments.
    segment: u64,
    file: &'a str,
    /// Lines say so.
    named: bool,
}

struct Dump<'a> {
    vfs: &'a dyn Vfs,
    dir: &'a Path,
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
    /// Records of side segments and the quarantine that no segment has shown yet.
    outside: BTreeMap<Sequence, Vec<Outside>>,
    error: Option<ToolError>,
    ended: bool,
}

/// Prints every kept record from `options.from` on as JSON lines, in the order of sequences; those that only side segments or the
/// quarantine hold are among them. Memory is bounded by one segment, and an entry for each record of the side segments.
///
/// On a live log it ends with the last record found. A jump in the sequences from one segment to the next may come from a
/// segment that was made or released during the look, so it is believed only when a second look meets it too.
///
/// # Errors
/// [`ToolError`]; damage is no error but a problem in the result.
pub fn dump(vfs: &dyn Vfs, dir: &Path, options: &DumpOptions, out: &mut dyn Write) -> Result<Dumped, ToolError> {
    let mut d = Dump {
        vfs,
        dir,
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
        outside: BTreeMap::new(),
        error: None,
        ended: options.limit == Some(0),
    };
    // Before anything else: it says when this is no log.
    entries(vfs, dir)?;
    d.look_outside()?;
    let (mut damage, mut seen_before): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
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
                let mut seen = Vec::new();
                for f in r.findings.iter().filter(|f| f.finding.label.is_damage()) {
                    let x = &f.finding;
                    let text = format!(
                        "{} (segment {}) offset {}: {}: expected {}, found {}; missing sequences: {}",
                        r.file_name(f.segment),
                        f.segment,
                        x.from,
                        x.label.name(),
                        x.expected,
                        x.found,
                        x.missing_text()
                    );
                    // What a look finds whose list of files was refused may come of a release during it.
                    if !damage.contains(&text) && (r.refusals.is_empty() || seen_before.contains(&text)) {
                        damage.push(text.clone());
                    }
                    seen.push(text);
                }
                seen_before = seen;
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
    d.rest()?;
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
        let file = files::segment_name(v.segment);
        let place = Place { segment: v.segment, file: &file, named: false };
        let printed = self.outside_before(sequence).and_then(|()| {
            // The segment has the whole record.
            self.outside.remove(&sequence);
            if self.ended { Ok(()) } else { self.print(&place, v.header, v.payload, None) }
        });
        match printed {
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

    /// Finds the records that only side segments and the quarantine hold.
    fn look_outside(&mut self) -> Result<(), ToolError> {
        let shown = self.dir.display().to_string();
        // A manifest that cannot be read is a matter of the report.
        let state = load(self.vfs, self.dir).ok().flatten().map(|m| m.state).unwrap_or_default();
        let (records, problems) = outside(self.vfs, self.dir, &state).map_err(ToolError::io(shown))?;
        self.outside = records;
        self.done.problems.extend(problems);
        if let Some(from) = self.options.from {
            self.outside = self.outside.split_off(&from);
        }
        Ok(())
    }

    /// Prints the records outside of the segments whose sequences are below `sequence`.
    fn outside_before(&mut self, sequence: Sequence) -> std::io::Result<()> {
        while let Some(first) = self.outside.first_entry().filter(|e| *e.key() < sequence && !self.ended) {
            // Some tables and hours of a request may be here, others there, and one in both places.
            let mut seen: Vec<Wanted> = Vec::new();
            for r in first.remove() {
                if seen.contains(&r.wanted) {
                    continue;
                }
                let place = Place { segment: 0, file: &r.file, named: false };
                match r.payload(self.vfs, self.dir) {
                    Some(payload) => self.print(&place, &r.header, &payload, Some(&r.wanted))?,
                    None => self.done.problems.push(format!("{}: sequence {}: it was there and has gone", r.file, r.header.sequence)),
                }
                seen.push(r.wanted);
                if self.ended {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What is left behind the last record of the segments; then what was set aside, if it is asked for.
    fn rest(&mut self) -> Result<(), ToolError> {
        let end = self.options.to.map_or(Sequence::MAX, |to| to.saturating_add(1));
        if self.options.limit != Some(self.done.lines) {
            self.ended = false;
            self.outside_before(end).map_err(ToolError::Output)?;
        }
        if !self.options.set_aside {
            return Ok(());
        }
        let dir = self.dir.join(files::SIDE);
        let shown = dir.display().to_string();
        let all = match self.vfs.list(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            x => x.map_err(ToolError::io(shown))?,
        };
        for e in all.into_iter().filter(|e| !e.is_dir && files::parse_deferred(&e.name).is_none()) {
            let bytes = self.vfs.open(&dir.join(&e.name), false).and_then(|f| read_all(&*f)).map_err(ToolError::io(e.name.clone()))?;
            let file = format!("{}/{}", files::SIDE, e.name);
            let mut printed = Ok(());
            each_record(&bytes, &mut |h, payload| {
                let wanted = self.options.from.is_none_or(|f| h.sequence >= f) && h.sequence < end;
                if printed.is_ok() && wanted && !self.ended {
                    printed = self.print(&Place { segment: 0, file: &file, named: true }, h, payload, None);
                }
            });
            printed.map_err(ToolError::Output)?;
        }
        Ok(())
    }

    /// Prints the rows of a record, or those of one table and hour of it.
    fn print(&mut self, place: &Place<'_>, header: &RecordHeader, payload: &[u8], part: Option<&Wanted>) -> std::io::Result<()> {
        let unreadable = |why: String| format!("{} offset {}: sequence {}: {why}", place.file, header.offset, header.sequence);
        let p = match PayloadView::parse(payload) {
            Ok(p) => p,
            Err(e) => {
                self.done.problems.push(unreadable(format!("payload {e}")));
                return if self.options.records { self.header(place, header) } else { Ok(()) };
            }
        };
        let options = self.options;
        let database = Arc::clone(&p.index.database);
        let wanted = |table: &str| options.table.as_deref().is_none_or(|t| t == table) && part.is_none_or(|w| w.is_table(&database, table));
        if options.database.as_deref().is_some_and(|d| d != &*p.index.database) || !p.index.tables.iter().any(|t| wanted(&t.table)) {
            return Ok(());
        }
        if self.options.records {
            return self.header(place, header);
        }
        let batch = match p.to_batch() {
            Ok(b) => b,
            Err(e) => {
                self.done.problems.push(unreadable(e));
                return self.print_readable(place, header, &p, &wanted, part);
            }
        };
        for t in batch.tables().iter().filter(|t| wanted(&t.table)) {
            self.table(place, header, batch.database(), t, part)?;
            if self.ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The tables of a record that can be decoded, where another one of it cannot.
    fn print_readable(
        &mut self,
        place: &Place<'_>,
        header: &RecordHeader,
        p: &PayloadView<'_>,
        wanted: &dyn Fn(&str) -> bool,
        part: Option<&Wanted>,
    ) -> std::io::Result<()> {
        for (i, t) in p.index.tables.iter().enumerate().filter(|(_, t)| wanted(&t.table)) {
            let alone = one_table(p, i).ok().map(|(directory, body)| [&directory, body].concat());
            let batch = alone.as_deref().and_then(|b| PayloadView::parse(b).ok()?.to_batch().ok());
            for table in batch.iter().flat_map(|b| b.tables()).filter(|x| x.table == *t.table) {
                self.table(place, header, &p.index.database, table, part)?;
                if self.ended {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn table(
        &mut self,
        place: &Place<'_>,
        header: &RecordHeader,
        database: &str,
        t: &TableBatch,
        part: Option<&Wanted>,
    ) -> std::io::Result<()> {
        let hour = part.and_then(|w| w.hour);
        let rows = Rows::new(database, t);
        for (row, _) in t.time.iter().enumerate().filter(|(_, time)| hour.is_none_or(|h| hour_of(**time) == h)) {
            self.line.clear();
            rows.put(&mut self.line, header.sequence, row);
            if place.named {
                let file = serde_json::Value::from(place.file);
                self.line.truncate(self.line.len() - 2);
                self.line.push_str(&format!(",\"file\":{file}}}\n"));
            }
            self.put_line()?;
            if self.ended {
                return Ok(());
            }
        }
        Ok(())
    }

    fn header(&mut self, place: &Place<'_>, h: &RecordHeader) -> std::io::Result<()> {
        use std::fmt::Write as _;
        self.line.clear();
        let line = json!({
            "seq": h.sequence, "kind": h.kind.name(), "offset": h.offset, "segment": place.segment, "file": place.file,
            "payload_len": h.payload_len, "floor": h.durable_floor, "receive_time": h.receive_time_us,
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
