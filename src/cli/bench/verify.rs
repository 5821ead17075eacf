//! `arc bench verify`: what the ledger says against what the lake holds.
//!
//! Exit code 0: nothing lost, doubled, half stored or foreign. 1: something is, or is not in Parquet yet. 74: ledger or lake cannot be read.

use super::ledger::{Book, Outcome};
use crate::cli::{EXIT_FAILURE, EXIT_IO, Global};
use arrow::array::{Array as _, Int64Array};
use clap::Args;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Ledger that `arc bench --ledger` wrote
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
    /// Root of the lake (storage.local_path)
    #[arg(long, value_name = "DIR")]
    pub lake: PathBuf,
    /// Database that the bench wrote to
    #[arg(long, default_value = super::DATABASE)]
    pub database: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// The findings; see [`Findings::clean`].
#[derive(Serialize, Default, Clone, PartialEq, Eq, Debug)]
pub struct Findings {
    /// Rows of acknowledged requests that are nowhere, although their part of the log is shipped.
    pub lost: u64,
    /// Rows of acknowledged requests that the server has still to ship: a flush, then another look, tells.
    pub not_in_parquet_yet: u64,
    /// Rows that are stored more than once.
    pub doubled: u64,
    /// Requests of which some rows are stored and some are not, refused ones aside.
    pub half: u64,
    /// Rows that no request explains, or that belong to a refused one.
    pub foreign: u64,
    pub acked_requests: u64,
    pub acked_rows: u64,
    pub refused_requests: u64,
    pub refused_rows: u64,
    pub unanswered_requests: u64,
    pub unanswered_present_rows: u64,
    pub unanswered_absent_rows: u64,
    /// Requests without an outcome, because the bench was killed, of which rows are stored.
    pub in_doubt_requests: u64,
    pub in_doubt_present_rows: u64,
    /// Rows in the files, each copy counted.
    pub present_rows: u64,
    /// Parquet files read.
    pub files: u64,
    /// Lines of the ledger that a killed bench left unfinished.
    pub torn_lines: u64,
    /// The first few ids of each kind of finding.
    pub examples: Vec<String>,
}

impl Findings {
    /// Whether the lake holds exactly what the ledger allows.
    pub fn clean(&self) -> bool {
        self.lost == 0 && self.not_in_parquet_yet == 0 && self.doubled == 0 && self.half == 0 && self.foreign == 0
    }

    fn example(&mut self, kind: &str, text: impl FnOnce() -> String) {
        if self.examples.iter().filter(|e| e.starts_with(kind)).count() < 5 {
            self.examples.push(format!("{kind}: {}", text()));
        }
    }
}

/// Runs `arc bench verify`.
pub fn run(global: &Global, args: &VerifyArgs) -> ExitCode {
    let found = match verify(&args.ledger, &args.lake, &args.database) {
        Ok(found) => found,
        Err(e) => {
            global.error(e);
            return ExitCode::from(EXIT_IO);
        }
    };
    let text = if args.json { format!("{}\n", serde_json::to_value(&found).unwrap_or_default()) } else { table(&found) };
    let printed = crate::cli::print(&text);
    if found.clean() { printed } else { ExitCode::from(EXIT_FAILURE) }
}

fn table(f: &Findings) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, n) in [
        ("files", f.files),
        ("rows present", f.present_rows),
        ("rows acknowledged", f.acked_rows),
        ("unanswered rows present", f.unanswered_present_rows),
        ("unanswered rows absent", f.unanswered_absent_rows),
        ("in doubt rows present", f.in_doubt_present_rows),
        ("not in Parquet yet", f.not_in_parquet_yet),
        ("lost", f.lost),
        ("doubled", f.doubled),
        ("half", f.half),
        ("foreign", f.foreign),
    ] {
        table.add_row([name.to_owned(), n.to_string()]);
    }
    let mut out = format!("{}\n", table.trim_fmt());
    for e in &f.examples {
        out.push_str(e);
        out.push('\n');
    }
    if f.not_in_parquet_yet > 0 {
        out.push_str("not in Parquet yet: POST /api/v1/flush (or stop the server), then verify again\n");
    }
    out.push_str(if f.clean() { "every acknowledged row is stored exactly once\n" } else { "NOT CLEAN\n" });
    out
}

/// Two bits an id: seen, and seen again.
struct Counts {
    base: u64,
    len: u64,
    seen: Vec<u64>,
    again: Vec<u64>,
}

impl Counts {
    fn new(base: u64, len: u64) -> io::Result<Self> {
        let too_many = || io::Error::new(io::ErrorKind::OutOfMemory, format!("the ledger spans {len} ids, too many to hold in memory"));
        let words = usize::try_from(len.div_ceil(64)).map_err(|_| too_many())?;
        let zeros = || {
            let mut v: Vec<u64> = Vec::new();
            v.try_reserve_exact(words).map_err(|_| too_many())?;
            v.resize(words, 0);
            Ok::<_, io::Error>(v)
        };
        Ok(Self { base, len, seen: zeros()?, again: zeros()? })
    }

    /// False if the id is outside of every range.
    fn add(&mut self, id: i64) -> bool {
        let Some(at) = u64::try_from(id).ok().and_then(|id| id.checked_sub(self.base)).filter(|at| *at < self.len) else {
            return false;
        };
        let (word, bit) = ((at / 64) as usize, 1u64 << (at % 64));
        if let (Some(seen), Some(again)) = (self.seen.get_mut(word), self.again.get_mut(word)) {
            *again |= *seen & bit;
            *seen |= bit;
        }
        true
    }

    fn is_seen(&self, id: u64) -> bool {
        let at = id.wrapping_sub(self.base);
        at < self.len && self.seen.get((at / 64) as usize).is_some_and(|w| w >> (at % 64) & 1 == 1)
    }

    /// How many of the ids are stored, word by word.
    fn present(&self, first: u64, last: u64) -> u64 {
        let (from, to) = (first - self.base, last - self.base);
        let (a, b) = ((from / 64) as usize, (to / 64) as usize);
        let mut n = 0u64;
        for (i, word) in self.seen.iter().enumerate().take(b + 1).skip(a) {
            let mut w = *word;
            if i == a {
                w &= u64::MAX << (from % 64);
            }
            if i == b {
                w &= u64::MAX >> (63 - to % 64);
            }
            n += u64::from(w.count_ones());
        }
        n
    }
}

/// Compares the ledger with the committed files of a database.
///
/// # Errors
/// Ledger or lake cannot be read; the message names the file.
pub fn verify(ledger: &Path, lake: &Path, database: &str) -> io::Result<Findings> {
    let book = Book::load(ledger)?;
    let mut found = Findings { torn_lines: book.torn_lines, ..Findings::default() };
    let (base, len) = match (book.lowest, book.highest) {
        (Some(lo), Some(hi)) => (lo, hi - lo + 1),
        _ => (0, 0),
    };
    let mut counts = Counts::new(base, len)?;
    let mut files = Vec::new();
    // A lake that is not there at all is a mistyped path; a database that is not there has no rows yet.
    std::fs::read_dir(lake).map_err(|e| io::Error::new(e.kind(), format!("lake {}: {e}", lake.display())))?;
    let root = lake.join(database);
    if root.exists() {
        walk(&root, &mut files)?;
    }
    for path in &files {
        count_file(path, &mut counts, &mut found)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("file {}: {e}", path.display())))?;
    }
    found.files = files.len() as u64;
    let shipped = shipped_through(lake, found.files)?;
    judge(&book, &counts, shipped, &mut found);
    Ok(found)
}

/// The sequence through which the log of this lake is shipped for certain: through the plan before its newest. `None` where that cannot be
/// told, as with several logs.
fn shipped_through(lake: &Path, files: u64) -> io::Result<Option<u64>> {
    let root = lake.join("_arc");
    if !root.exists() {
        // Whatever is shipped, its plan comes first. Files without one were brought here by somebody else.
        return Ok((files == 0).then_some(0));
    }
    let mut logs: Vec<Vec<(u64, u64)>> = Vec::new();
    for log in std::fs::read_dir(&root)? {
        let log = log?;
        if !log.file_type()?.is_dir() {
            continue;
        }
        let mut plans = Vec::new();
        for plan in std::fs::read_dir(log.path())? {
            let plan = plan?;
            let number = plan.file_name().to_str().and_then(|n| n.strip_prefix("plan-")?.parse::<u64>().ok());
            let Some(number) = number else { continue };
            let last = serde_json::from_slice::<serde_json::Value>(&std::fs::read(plan.path())?).ok();
            if let Some(last) = last.as_ref().and_then(|v| v.get("last_sequence")?.as_u64()) {
                plans.push((number, last));
            }
        }
        plans.sort_unstable();
        logs.push(plans);
    }
    let [plans] = logs.as_slice() else { return Ok(None) };
    Ok(Some(plans.len().checked_sub(2).and_then(|at| plans.get(at)).map_or(0, |p| p.1)))
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("directory {}: {e}", dir.display()));
    let mut entries = std::fs::read_dir(dir).map_err(named)?.collect::<Result<Vec<_>, _>>().map_err(named)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for e in entries {
        let name = e.file_name();
        if name.as_encoded_bytes().first().is_some_and(|b| matches!(b, b'.' | b'_')) {
            continue;
        }
        if e.file_type().map_err(named)?.is_dir() {
            walk(&e.path(), out)?;
        } else if name.as_encoded_bytes().ends_with(b".parquet") {
            out.push(e.path());
        }
    }
    Ok(())
}

fn count_file(path: &Path, counts: &mut Counts, found: &mut Findings) -> Result<(), anyhow::Error> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    found.present_rows += rows;
    let Ok(index) = builder.schema().index_of("id") else {
        found.foreign += rows;
        found.example("foreign", || format!("{rows} rows without a column id in {}", path.display()));
        return Ok(());
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let mut read = 0u64;
    for batch in builder.with_projection(mask).with_batch_size(1 << 16).build()? {
        let batch = batch?;
        let column = batch.column(0);
        let Some(ids) = column.as_any().downcast_ref::<Int64Array>() else {
            anyhow::bail!("column id has the type {}, expected Int64", column.data_type());
        };
        read += ids.len() as u64;
        for id in ids {
            if !id.is_some_and(|id| counts.add(id)) {
                found.foreign += 1;
                found.example("foreign", || format!("id {id:?} in {}", path.display()));
            }
        }
    }
    anyhow::ensure!(read == rows, "the footer says {rows} rows, {read} could be read");
    Ok(())
}

fn judge(book: &Book, counts: &Counts, shipped: Option<u64>, found: &mut Findings) {
    for (word, again) in counts.again.iter().enumerate().filter(|(_, w)| **w != 0) {
        found.doubled += u64::from(again.count_ones());
        found.example("doubled", || format!("id {}", counts.base + word as u64 * 64 + u64::from(again.trailing_zeros())));
    }
    let mut explained = 0u64;
    for r in &book.ranges {
        let (rows, present) = (r.last - r.first + 1, counts.present(r.first, r.last));
        explained += present;
        let half = present != 0 && present != rows;
        let shown = || format!("request {} to {}, {present} of {rows} rows stored", r.first, r.last);
        match r.outcome {
            Outcome::Acked => {
                found.acked_requests += 1;
                found.acked_rows += rows;
                found.half += u64::from(half);
                if present == 0 && r.sequence.zip(shipped).is_some_and(|(s, through)| s > through) {
                    found.not_in_parquet_yet += rows;
                    continue;
                }
                found.lost += rows - present;
                if present != rows {
                    let missing = (r.first..=r.last).find(|id| !counts.is_seen(*id)).unwrap_or(r.first);
                    found.example("lost", || format!("acknowledged {}, first missing id {missing}", shown()));
                }
            }
            Outcome::Unanswered => {
                found.unanswered_requests += 1;
                found.unanswered_present_rows += present;
                found.unanswered_absent_rows += rows - present;
                found.half += u64::from(half);
                if half {
                    found.example("half", || format!("unanswered {}", shown()));
                }
            }
            Outcome::Refused | Outcome::Unused | Outcome::Reserved => {
                if r.outcome == Outcome::Refused {
                    found.refused_requests += 1;
                    found.refused_rows += rows;
                }
                found.foreign += present;
                if present != 0 {
                    let what = if r.outcome == Outcome::Refused { "refused" } else { "never sent" };
                    found.example("foreign", || format!("{what} {}", shown()));
                }
            }
        }
    }
    explained += judge_in_doubt(book, counts, found);
    let total: u64 = counts.seen.iter().map(|w| u64::from(w.count_ones())).sum();
    let unexplained = total.saturating_sub(explained);
    found.foreign += unexplained;
    if unexplained > 0 {
        found.example("foreign", || format!("{unexplained} ids that the ledger does not mention"));
    }
}

/// Slots of reserved blocks without an outcome; says how many rows they explain.
fn judge_in_doubt(book: &Book, counts: &Counts, found: &mut Findings) -> u64 {
    let mut explained = 0;
    let mut ranges = book.ranges.iter().peekable();
    for (first, last, rows) in &book.blocks {
        let mut slot = *first;
        while slot <= *last {
            while ranges.next_if(|r| r.last < slot).is_some() {}
            if let Some(r) = ranges.peek().filter(|r| r.first <= slot) {
                slot = r.last + 1;
                continue;
            }
            let end = (slot + rows - 1).min(*last);
            let present = counts.present(slot, end);
            explained += present;
            if present > 0 {
                found.in_doubt_requests += 1;
                found.in_doubt_present_rows += present;
                if present != end - slot + 1 {
                    found.half += 1;
                    found.example("half", || format!("request {slot} to {end} without an outcome, {present} rows stored"));
                }
            }
            slot = end + 1;
        }
    }
    explained
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, StringArray};
    use arrow::record_batch::RecordBatch;
    use std::sync::Arc;

    fn lake_file(dir: &Path, name: &str, ids: &[i64]) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let other: ArrayRef = Arc::new(StringArray::from(vec!["x"; ids.len()]));
        let ids: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
        write(&path, RecordBatch::try_from_iter([("host", other), ("id", ids)]).unwrap());
    }

    fn write(path: &Path, batch: RecordBatch) {
        let mut w = parquet::arrow::ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
        w.write(&batch).unwrap();
        w.close().unwrap();
    }

    fn line(first: u64, last: u64, outcome: &str) -> String {
        format!("{{\"first_id\":{first},\"last_id\":{last},\"outcome\":\"{outcome}\",\"tables\":[\"bench_0\"]}}\n")
    }

    fn check(ledger: &str, files: &[(&str, &[i64])]) -> Findings {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, ledger).unwrap();
        let lake = dir.path().join("lake");
        std::fs::create_dir(&lake).unwrap();
        for (name, ids) in files {
            lake_file(&lake, name, ids);
        }
        verify(&path, &lake, "bench").unwrap()
    }

    fn kinds(f: &Findings) -> [u64; 4] {
        [f.lost, f.doubled, f.half, f.foreign]
    }

    const A: &str = "bench/bench_0/date=2026-01-01/hour=00/a.parquet";
    const B: &str = "bench/bench_1/2026/01/01/01/b.parquet";

    #[test]
    fn a_clean_lake() {
        let ledger = line(1, 3, "acked") + &line(4, 6, "unanswered") + &line(7, 9, "unanswered") + &line(10, 12, "refused");
        let f = check(&ledger, &[(A, &[1, 3, 8]), (B, &[2, 9, 7])]);
        assert_eq!(kinds(&f), [0; 4]);
        assert!(f.clean() && f.examples.is_empty());
        assert_eq!((f.acked_rows, f.present_rows, f.files), (3, 6, 2));
        assert_eq!((f.unanswered_present_rows, f.unanswered_absent_rows), (3, 3));
    }

    #[test]
    fn every_kind_of_finding() {
        assert_eq!(kinds(&check(&line(1, 3, "acked"), &[])), [3, 0, 0, 0]);
        assert_eq!(kinds(&check(&line(1, 3, "acked"), &[(A, &[1, 3])])), [1, 0, 1, 0]);
        assert_eq!(kinds(&check(&line(1, 3, "acked"), &[(A, &[1, 2, 3]), (B, &[2, 3, 3])])), [0, 2, 0, 0]);
        assert_eq!(kinds(&check(&line(1, 3, "unanswered"), &[(A, &[1, 2])])), [0, 0, 1, 0]);
        assert_eq!(kinds(&check(&line(1, 3, "refused"), &[(A, &[1, 2])])), [0, 0, 0, 2]);
        let gap = line(1, 3, "acked") + &line(7, 9, "refused");
        assert_eq!(kinds(&check(&gap, &[(A, &[1, 2, 3, 5, 100, -1])])), [0, 0, 0, 3]);
        assert_eq!(kinds(&check("", &[(A, &[1])])), [0, 0, 0, 1]);
    }

    /// The plan before the newest is shipped; of the newest, and of what is behind it, nothing is known.
    #[test]
    fn rows_that_are_still_in_the_log_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, lake) = (dir.path().join("ledger"), dir.path().join("lake"));
        let acked = |id: u64, seq: u64| format!("{{\"first_id\":{id},\"last_id\":{id},\"outcome\":\"acked\",\"seq\":{seq}}}\n");
        std::fs::write(&ledger, acked(1, 1) + &acked(2, 2) + &acked(3, 3) + &acked(4, 4)).unwrap();
        let look = || {
            let f = verify(&ledger, &lake, "bench").unwrap();
            assert!(!f.clean());
            (f.lost, f.not_in_parquet_yet)
        };
        std::fs::create_dir(&lake).unwrap();
        assert_eq!(look(), (0, 4), "nothing was ever shipped");
        lake_file(&lake, A, &[]);
        assert_eq!(look(), (4, 0), "whose files these are cannot be told");
        let log = lake.join("_arc/07070707-0707-0707-0707-070707070707");
        std::fs::create_dir_all(&log).unwrap();
        assert_eq!(look(), (0, 4));
        std::fs::write(log.join("plan-9"), "{\"last_sequence\":2}").unwrap();
        assert_eq!(look(), (0, 4));
        std::fs::write(log.join("plan-10"), "{\"last_sequence\":3}").unwrap();
        assert_eq!(look(), (2, 2));
        std::fs::create_dir(lake.join("_arc/other")).unwrap();
        assert_eq!(look(), (4, 0));
    }

    #[test]
    fn a_killed_bench_leaves_doubt_but_no_false_alarm() {
        let block = "{\"first_id\":1,\"last_id\":40,\"outcome\":\"reserved\",\"rows\":10}\n{\"first_id\":11,\"la";
        let f = check(&(line(1, 10, "acked") + block), &[(A, &(1..=20).collect::<Vec<_>>())]);
        assert_eq!(kinds(&f), [0; 4]);
        assert_eq!((f.in_doubt_requests, f.in_doubt_present_rows, f.torn_lines), (1, 10, 1));
        let f = check(&(line(1, 10, "acked") + block), &[(A, &(1..=25).collect::<Vec<_>>())]);
        assert_eq!(kinds(&f), [0, 0, 1, 0]);
        let closed =
            line(1, 10, "acked") + "{\"first_id\":1,\"last_id\":40,\"outcome\":\"reserved\",\"rows\":10}\n" + &line(11, 40, "unused");
        assert_eq!(kinds(&check(&closed, &[(A, &(1..=12).collect::<Vec<_>>())])), [0, 0, 0, 2]);
    }

    #[test]
    fn only_committed_files_of_the_database_count() {
        let files: &[(&str, &[i64])] = &[
            (A, &[1, 2, 3]),
            ("bench/bench_0/date=2026-01-01/hour=00/.tmp.parquet", &[1]),
            ("bench/bench_0/date=2026-01-01/hour=00/_tmp.parquet", &[1]),
            ("bench/bench_0/date=2026-01-01/hour=00/a.parquet.tmp", &[1]),
            ("bench/_arc/x.parquet", &[1]),
            ("other/bench_0/x.parquet", &[1]),
        ];
        assert_eq!(kinds(&check(&line(1, 3, "acked"), files)), [0; 4]);
    }

    #[test]
    fn unreadable_files_are_errors_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        std::fs::write(&ledger, line(1, 3, "acked")).unwrap();
        let table = dir.path().join("lake/bench/bench_0");
        std::fs::create_dir_all(&table).unwrap();
        std::fs::write(table.join("bad.parquet"), "PAR1").unwrap();
        let lake = dir.path().join("lake");
        assert!(verify(&ledger, &lake, "bench").unwrap_err().to_string().contains("bad.parquet"));
        let ids: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        write(&table.join("bad.parquet"), RecordBatch::try_from_iter([("id", ids)]).unwrap());
        assert!(verify(&ledger, &lake, "bench").unwrap_err().to_string().contains("Float64"));
        assert!(verify(&ledger, &dir.path().join("none"), "bench").unwrap_err().to_string().contains("none"));
        assert!(verify(&dir.path().join("none"), &lake, "bench").unwrap_err().to_string().contains("ledger"));
    }

    #[test]
    fn counting_words_at_the_edges() {
        let mut c = Counts::new(5, 300).unwrap();
        for id in [5, 68, 69, 70, 132, 133, 304] {
            assert!(c.add(id));
        }
        assert!(!c.add(4) && !c.add(305) && !c.add(-1));
        for (first, last, n) in [(5, 304, 7), (5, 5, 1), (6, 68, 1), (69, 132, 3), (69, 133, 4), (134, 303, 0), (304, 304, 1)] {
            assert_eq!(c.present(first, last), n, "{first}..={last}");
        }
    }
}
