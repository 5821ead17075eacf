//! One output: from the slices of a plan to a staged, sealed file; and, after unclean ends, which record was to blame.
//!
//! Where no record alone ends the process but all of an output together do, no record is blamed: the output is built in smaller and smaller
//! pieces, and after that its records move to a side segment, so that everything else goes on.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SliceRef;
use super::parquet::{BuildError, Built, OutputSpec, build};
use super::plan::Slices;
use crate::format::manifest::SetAside;
use crate::sink::{Sink, SinkError, Staged};
use crate::types::Sequence;
use crate::vfs::{File, Vfs, is_no_space, read_all};
use crate::wal::files;
use crate::wal::manifest::OutputFile;

/// Unclean ends of a plan after which its records are tried one at a time.
pub(super) const UNCLEAN_ENDS: u32 = 3;
/// Unclean ends at the same record, one after the other, after which it is set aside.
pub(super) const SUSPICIONS: usize = 3;

/// Unclean ends within an output after which it is not built for a while. Each one before makes its row groups a quarter as large.
pub(super) const OUTPUT_ENDS: u32 = 4;
/// How long a process has to have run before it tries such an output again; each further end doubles it.
const ENDS_WAIT: Duration = Duration::from_secs(600);
/// Stands for the output as a whole where a record's sequence is expected.
const WHOLE: Sequence = 0;
/// Outputs whose unclean ends are remembered.
const MAX_ENDS: usize = 64;

/// What is being tried, and which outputs have ended a process, in a file that is not synced: it has to outlive this process, not the machine.
///
/// 24 bytes of what is being tried (plan, output, sequence), then as many for each such output (plan, output, ends).
pub(super) struct Probe {
    file: Arc<dyn File>,
    ends: Mutex<BTreeMap<(u64, u32), u32>>,
}

fn three(b: &[u8; 24]) -> Option<(u64, u32, u64)> {
    let mut v = b.as_chunks::<8>().0.iter().map(|x| u64::from_le_bytes(*x));
    Some((v.next()?, u32::try_from(v.next()?).ok()?, v.next()?))
}

fn bytes_of((a, b, c): (u64, u32, u64)) -> Vec<u8> {
    [a, u64::from(b), c].iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Probe {
    /// Opens the file. An output that was being built as a whole when the last process ended has one more end.
    pub(super) fn open(vfs: &dyn Vfs, dir: &Path) -> Option<Self> {
        let path = dir.join(files::PROBE);
        let file = vfs.open(&path, true).or_else(|_| vfs.create_new(&path)).ok()?;
        let bytes = read_all(&*file).unwrap_or_default();
        let mut entries = bytes.as_chunks::<24>().0.iter().filter_map(three);
        let tried = entries.next();
        let ends = entries.filter(|(plan, ..)| *plan > 0).map(|(plan, n, ends)| ((plan, n), ends as u32)).take(MAX_ENDS).collect();
        let probe = Self { file, ends: Mutex::new(ends) };
        if let Some((plan, n, WHOLE)) = tried.filter(|(plan, ..)| *plan > 0) {
            let mut ends = probe.lock();
            *ends.entry((plan, n)).or_default() += 1;
            while ends.len() > MAX_ENDS {
                ends.pop_first();
            }
            probe.keep(&ends);
            drop(ends);
            probe.write(0, 0, 0);
        }
        Some(probe)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, u32), u32>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, ends: &BTreeMap<(u64, u32), u32>) {
        let mut b: Vec<u8> = ends.iter().flat_map(|((plan, n), ends)| bytes_of((*plan, *n, u64::from(*ends)))).collect();
        // What is left of a longer list names no plan.
        b.resize(MAX_ENDS * 24, 0);
        let _ = self.file.write_all_at(&[&b], 24);
    }

    /// Unclean ends within this output as a whole.
    pub(super) fn ends(&self, plan: u64, output: u32) -> u32 {
        self.lock().get(&(plan, output)).copied().unwrap_or(0)
    }

    /// The output is about to be built as a whole: the specification for it, with smaller row groups after unclean ends.
    ///
    /// # Errors
    /// When it has ended too many processes, and this one has not run for long enough to try again.
    pub(super) fn begin_output(&self, plan: u64, output: u32, spec: &OutputSpec, running_for: Duration) -> Result<OutputSpec, Trouble> {
        let ends = self.ends(plan, output);
        if let Some(over) = ends.checked_sub(OUTPUT_ENDS) {
            let wait = ENDS_WAIT.saturating_mul(1u32.checked_shl(over).unwrap_or(u32::MAX));
            if running_for < wait {
                return Err(Trouble::Lasting(format!(
                    "output {output} of plan {plan} (table {}): the process ended {ends} times while it was being built, the last times with \
                     smaller row groups; its records are kept, and it is tried again when this process has run for {} s, or at the next start \
                     once the file \"{}\" in the WAL directory is removed",
                    spec.table,
                    wait.as_secs(),
                    files::PROBE
                )));
            }
        }
        let mut spec = spec.clone();
        let quarters = 2 * ends.min(OUTPUT_ENDS);
        spec.settings.row_group_rows = (spec.settings.row_group_rows >> quarters).max(1);
        spec.settings.row_group_bytes >>= quarters;
        self.write(plan, output, WHOLE);
        Ok(spec)
    }

    /// The output was built, or failed without ending the process.
    pub(super) fn end_output(&self, plan: u64, output: u32, built: bool) {
        self.write(0, 0, 0);
        let mut ends = self.lock();
        if built && ends.remove(&(plan, output)).is_some() {
            self.keep(&ends);
        }
    }

    pub(super) fn write(&self, plan: u64, output: u32, sequence: Sequence) {
        // A probe that is not written only delays the verdict on a record.
        let _ = self.file.write_all_at(&[&bytes_of((plan, output, sequence))], 0);
    }

    /// What was being tried when the last process ended. It is said once: an end before the next try is no evidence against it.
    pub(super) fn take(&self) -> Option<(u64, u32, Sequence)> {
        let mut b = [0u8; 24];
        (self.file.read_at(&mut b, 0).ok()? == b.len()).then_some(())?;
        self.write(0, 0, 0);
        three(&b)
    }
}

/// Why a step could not finish.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Where the log is.
    NoSpace(String),
    /// Where the lake is.
    LakeFull(String),
    Retry(String),
    /// Will not go away by itself: permissions, a file where a directory belongs, a foreign object.
    Lasting(String),
    /// The manifest is in an unknown state, or the store holds another plan.
    Fatal,
}

impl From<SinkError> for Trouble {
    fn from(e: SinkError) -> Self {
        match e {
            SinkError::NoSpace { .. } => Self::LakeFull(e.to_string()),
            SinkError::Transient { .. } => Self::Retry(e.to_string()),
            SinkError::Permanent { .. } => Self::Lasting(e.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        if is_no_space(&e) { Self::NoSpace(e.to_string()) } else { Self::Retry(e.to_string()) }
    }
}

/// Why an output waits.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) why: String,
    /// It will not go away by itself.
    pub(super) lasting: bool,
    /// It was built, its intent is recorded, and an object of somebody else has its name.
    pub(super) foreign: bool,
    /// Its side segment cannot be read.
    pub(super) lost: bool,
}

impl Stop {
    pub(super) fn passing(why: String) -> Self {
        Self { why, lasting: false, foreign: false, lost: false }
    }

    pub(super) fn lasting(why: String) -> Self {
        Self { why, lasting: true, foreign: false, lost: false }
    }

    pub(super) fn foreign(why: String) -> Self {
        Self { why, lasting: true, foreign: true, lost: false }
    }

    pub(super) fn lost(why: String) -> Self {
        Self { why, lasting: true, foreign: false, lost: true }
    }
}

/// One output as it came out of the builder: staged and sealed, or without rows.
pub(super) struct Ready {
    pub(super) output: u32,
    pub(super) file: OutputFile,
    pub(super) staged: Option<Box<dyn Staged>>,
}

/// Builds each record on its own, into nothing: the one that ends the process is on record.
pub(super) fn try_each(probe: &Probe, plan: u64, output: u32, spec: &OutputSpec, list: &[SliceRef], skip: &[Sequence], slices: &Slices) {
    for s in list.iter().filter(|s| !skip.contains(&s.sequence)) {
        probe.write(plan, output, s.sequence);
        let _ = build(spec, &[*s], &slices.mapped, &[], &mut io::sink());
    }
    probe.write(0, 0, 0);
}

/// Builds one output, leaving out the records of `skip`, which count as set aside.
pub(super) fn build_one(
    sink: &dyn Sink,
    output: u32,
    name: &str,
    spec: &OutputSpec,
    list: &[SliceRef],
    skip: &[Sequence],
    slices: &Slices,
) -> Result<Ready, Trouble> {
    let mut staged = sink.stage(name)?;
    let built: Built = match build(spec, list, &slices.mapped, skip, &mut StagedWriter(&mut *staged)) {
        Ok(b) => b,
        Err(BuildError::Io(e)) => return Err(SinkError::from_io(format!("writing {name}"), e).into()),
        Err(e @ (BuildError::Internal(_) | BuildError::Memory(_))) => return Err(Trouble::Retry(format!("{name}: {e}"))),
    };
    let culprits = list.iter().filter(|s| skip.contains(&s.sequence)).map(|s| SetAside {
        sequence: s.sequence,
        rows: u64::from(s.rows()),
        reason: format!("the process ended {SUSPICIONS} times while this record was being turned into Parquet"),
    });
    let set_aside: Vec<SetAside> = built
        .set_aside
        .iter()
        .map(|a| SetAside { sequence: a.sequence, rows: u64::from(a.rows), reason: a.reason.clone() })
        .chain(culprits)
        .collect();
    if built.rows == 0 {
        // Everything was set aside: there is no file.
        let file = OutputFile { length: 0, sha256: String::new(), rows: 0, set_aside };
        return Ok(Ready { output, file, staged: None });
    }
    staged.seal()?;
    let file = OutputFile { length: built.bytes, sha256: hex(&built.sha256), rows: built.rows, set_aside };
    Ok(Ready { output, file, staged: Some(staged) })
}

struct StagedWriter<'a>(&'a mut dyn Staged);

impl io::Write for StagedWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
