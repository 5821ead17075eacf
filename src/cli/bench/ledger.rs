//! What was sent and what came back, as JSON lines appended to a file.
//!
//! Ids are handed out in blocks. A block's line, `{"outcome":"reserved","first_id","last_id","rows"}`, is in the file
//! before the first id of the block leaves the process; within it, request k owns the `rows` ids from
//! `first_id + k * rows`. So one write covers many requests, and a killed bench leaves no id unexplained: a slot of a
//! block without an outcome may or may not have been sent and stored, whole or not at all.
//!
//! A request's own line, `{"first_id","last_id","tables","key","outcome","status","reason","seq","attempts"}`, is made
//! when its outcome is known (`acked`, `refused` or `unanswered`) and reaches the file within 50 ms. If the bench is killed
//! before, an acknowledgement is forgotten and the range counts as unanswered: a weaker check of those rows, never a
//! false alarm. A clean end adds `{"outcome":"unused",...}` for the ids of the last block that were never sent.
//!
//! Lines are written, not synced: a ledger survives the death of the bench and of the server, not of its machine.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Requests of one reserved block.
const BLOCK_REQUESTS: u64 = 256;
/// Far more than a line with a thousand tables takes; what is longer is no ledger.
const MAX_LINE: u64 = 1 << 16;

/// What a line of the ledger says about its ids.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered 204: every row must be stored exactly once.
    Acked,
    /// A complete answer that says no: no row may be stored.
    Refused,
    /// Nobody knows: all rows are stored, or none.
    Unanswered,
    /// Not a request: ids that may be used from here on.
    Reserved,
    /// Not a request: ids that were never sent.
    Unused,
}

/// A line of the ledger; see the module.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub first_id: u64,
    pub last_id: u64,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Of a reserved block: ids of each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

impl Line {
    /// A line with nothing but its ids and outcome.
    pub fn new(first_id: u64, last_id: u64, outcome: Outcome) -> Self {
        Self {
            first_id,
            last_id,
            outcome,
            tables: Vec::new(),
            key: None,
            status: None,
            reason: None,
            seq: None,
            attempts: None,
            rows: None,
        }
    }
}

/// Hands out ids and takes down outcomes.
#[derive(Debug)]
pub struct Ledger {
    file: Option<(PathBuf, File)>,
    pending: Vec<u8>,
    rows: u64,
    next: u64,
    /// First id that is not reserved yet.
    limit: u64,
}

impl Ledger {
    /// Continues the ledger at `path` after its highest id; without a path ids start at 1 and nothing is kept.
    ///
    /// # Errors
    /// The file cannot be opened, read, locked, or is no ledger.
    pub fn open(path: Option<&Path>, rows: u64) -> io::Result<Self> {
        let mut ledger = Self { file: None, pending: Vec::new(), rows: rows.max(1), next: 1, limit: 1 };
        let Some(path) = path else { return Ok(ledger) };
        let named = |e: io::Error| io::Error::new(e.kind(), format!("ledger {}: {e}", path.display()));
        let mut file = File::options().read(true).append(true).create(true).open(path).map_err(named)?;
        file.try_lock().map_err(|e| named(io::Error::other(format!("in use by another process ({e})"))))?;
        let book = read(&mut file).map_err(named)?;
        if file.seek(SeekFrom::End(0)).map_err(named)? > 0 {
            file.seek(SeekFrom::End(-1)).map_err(named)?;
            let mut last = [0u8];
            file.read_exact(&mut last).map_err(named)?;
            if last != [b'\n'] {
                // A run that was killed left half a line; end it so that ours stand alone.
                file.write_all(b"\n").map_err(named)?;
            }
        }
        ledger.next = book.highest.map_or(1, |h| h + 1);
        ledger.limit = ledger.next;
        ledger.file = Some((path.to_path_buf(), file));
        Ok(ledger)
    }

    /// The first id of the next request.
    ///
    /// # Errors
    /// The ledger cannot be written: nothing may be sent then.
    pub fn take(&mut self) -> io::Result<u64> {
        if self.next >= self.limit {
            let mut line = Line::new(self.next, self.next + self.rows * BLOCK_REQUESTS - 1, Outcome::Reserved);
            line.rows = Some(self.rows);
            self.limit = line.last_id + 1;
            self.record(&line);
            self.flush()?;
        }
        let first = self.next;
        self.next += self.rows;
        Ok(first)
    }

    /// The id after the last one handed out.
    pub fn next_id(&self) -> u64 {
        self.next
    }

    /// Takes down a line, to be written with the next flush.
    pub fn record(&mut self, line: &Line) {
        if self.file.is_some() && serde_json::to_writer(&mut self.pending, line).is_ok() {
            self.pending.push(b'\n');
        }
    }

    /// Writes the lines that were taken down.
    ///
    /// # Errors
    /// The file cannot be written; nothing more is written then.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let written = file.write_all(&self.pending);
        let named = written.map_err(|e| io::Error::new(e.kind(), format!("ledger {}: cannot be written: {e}", path.display())));
        self.pending.clear();
        if named.is_err() {
            // Some lines may be there: writing them again would make the ledger contradict itself.
            self.file = None;
        }
        named
    }

    /// Says which reserved ids were never sent, and flushes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn close(&mut self) -> io::Result<()> {
        if self.next < self.limit {
            let line = Line::new(self.next, self.limit - 1, Outcome::Unused);
            self.limit = self.next;
            self.record(&line);
        }
        self.flush()
    }
}

/// A request and what became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub first: u64,
    pub last: u64,
    pub outcome: Outcome,
    /// Sequence in the log, as the answer said.
    pub sequence: Option<u64>,
}

/// A ledger as read.
#[derive(Default, Debug)]
pub struct Book {
    /// Requests with an outcome and unused ids, ascending, without overlaps.
    pub ranges: Vec<Range>,
    /// Reserved ids (first, last, rows of each request), ascending.
    pub blocks: Vec<(u64, u64, u64)>,
    /// The lowest id that is mentioned.
    pub lowest: Option<u64>,
    /// The highest id that is mentioned.
    pub highest: Option<u64>,
    /// Lines that are no JSON: what a killed run was writing. Their requests count as unanswered.
    pub torn_lines: u64,
}

impl Book {
    /// Reads a whole ledger.
    ///
    /// # Errors
    /// The file cannot be read or is no ledger.
    pub fn load(path: &Path) -> io::Result<Self> {
        File::open(path).and_then(|mut f| read(&mut f)).map_err(|e| io::Error::new(e.kind(), format!("ledger {}: {e}", path.display())))
    }
}

fn read(file: &mut File) -> io::Result<Book> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    file.seek(SeekFrom::Start(0))?;
    let mut book = Book::default();
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut text = Vec::new();
    for number in 1u64.. {
        text.clear();
        if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        if text.len() as u64 == MAX_LINE {
            return Err(invalid(format!("line {number} is longer than {MAX_LINE} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let Ok(line) = serde_json::from_slice::<Line>(&text) else {
            book.torn_lines += 1;
            continue;
        };
        if line.last_id < line.first_id || line.last_id > i64::MAX as u64 {
            return Err(invalid(format!("line {number}: ids {} to {} are no range", line.first_id, line.last_id)));
        }
        book.lowest = Some(book.lowest.map_or(line.first_id, |l| l.min(line.first_id)));
        book.highest = Some(book.highest.map_or(line.last_id, |h| h.max(line.last_id)));
        match line.outcome {
            Outcome::Reserved => {
                let rows = line.rows.unwrap_or(line.last_id - line.first_id + 1).max(1);
                book.blocks.push((line.first_id, line.last_id, rows));
            }
            outcome => book.ranges.push(Range { first: line.first_id, last: line.last_id, outcome, sequence: line.seq }),
        }
    }
    if book.torn_lines > 0 && book.highest.is_none() {
        return Err(invalid("no line of it is a ledger line".into()));
    }
    book.ranges.sort_unstable_by_key(|r| r.first);
    book.blocks.sort_unstable();
    if let Some(w) = book.ranges.windows(2).find(|w| w[0].last >= w[1].first) {
        return Err(invalid(format!("the requests from id {} and from id {} share ids", w[0].first, w[1].first)));
    }
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_reserved_before_they_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut l = Ledger::open(Some(&path), 10).unwrap();
        assert_eq!((l.take().unwrap(), l.take().unwrap()), (1, 11));
        let book = Book::load(&path).unwrap();
        assert_eq!(book.blocks, [(1, 2560, 10)]);
        assert!(book.ranges.is_empty());
        let mut line = Line::new(1, 10, Outcome::Acked);
        (line.seq, line.status, line.tables) = (Some(7), Some(204), vec!["bench_0".into()]);
        l.record(&line);
        assert!(Ledger::open(Some(&path), 10).unwrap_err().to_string().contains("in use"));
        l.close().unwrap();
        drop(l);
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = r#"{"first_id":1,"last_id":10,"outcome":"acked","tables":["bench_0"],"status":204,"seq":7}"#;
        assert!(text.lines().any(|l| l == expected), "{text}");
        let book = Book::load(&path).unwrap();
        assert_eq!(book.ranges[0], Range { first: 1, last: 10, outcome: Outcome::Acked, sequence: Some(7) });
        assert_eq!(book.ranges[1], Range { first: 21, last: 2560, outcome: Outcome::Unused, sequence: None });
    }

    #[test]
    fn a_second_run_continues_behind_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut l = Ledger::open(Some(&path), 10).unwrap();
        l.take().unwrap();
        drop(l);
        // Killed while writing.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"first_id\":1,\"la").unwrap();
        let mut l = Ledger::open(Some(&path), 3).unwrap();
        assert_eq!(l.take().unwrap(), 2561);
        l.close().unwrap();
        let book = Book::load(&path).unwrap();
        assert_eq!((book.torn_lines, book.blocks.len()), (1, 2));
    }

    #[test]
    fn a_full_disk_hands_out_no_ids() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut l = Ledger { file: Some(("full".into(), full)), pending: Vec::new(), rows: 1, next: 1, limit: 1 };
        assert!(l.take().unwrap_err().to_string().contains("ledger full: cannot be written"));
        assert!(l.pending.is_empty(), "nothing is written twice");
        l.close().unwrap();
    }

    #[test]
    fn what_is_no_ledger_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        assert!(Ledger::open(Some(&path), 1).is_err());
        let twice = "{\"first_id\":1,\"last_id\":5,\"outcome\":\"acked\"}\n{\"first_id\":5,\"last_id\":9,\"outcome\":\"acked\"}\n";
        std::fs::write(&path, twice).unwrap();
        assert!(Book::load(&path).unwrap_err().to_string().contains("share ids"));
        std::fs::write(&path, vec![0u8; 1 << 17]).unwrap();
        assert!(Ledger::open(Some(&path), 1).unwrap_err().to_string().contains("longer than"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(Ledger::open(Some(&path), 1).unwrap().take().unwrap(), 1);
        assert_eq!(Ledger::open(None, 5).unwrap().take().unwrap(), 1);
    }
}
