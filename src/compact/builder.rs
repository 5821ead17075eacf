//! One output: from the slices of a plan to a staged, sealed file; and, after unclean ends, which record was to blame.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::SliceRef;
use super::parquet::{BuildError, Built, OutputSpec, build};
use super::plan::Slices;
use crate::format::manifest::SetAside;
use crate::sink::{Sink, SinkError, Staged};
use crate::types::Sequence;
use crate::vfs::{File, Vfs, is_no_space};
use crate::wal::files;
use crate::wal::manifest::OutputFile;

/// Unclean ends of a plan after which its records are tried one at a time.
pub(super) const UNCLEAN_ENDS: u32 = 3;
/// Unclean ends at the same record, one after the other, after which it is set aside.
pub(super) const SUSPICIONS: usize = 3;

/// Which record is being tried, in a file that is not synced: it has to outlive this process, not the machine.
pub(super) struct Probe(Arc<dyn File>);

impl Probe {
    pub(super) fn open(vfs: &dyn Vfs, dir: &Path) -> Option<Self> {
        let path = dir.join(files::PROBE);
        vfs.open(&path, true).or_else(|_| vfs.create_new(&path)).ok().map(Self)
    }

    pub(super) fn write(&self, plan: u64, output: u32, sequence: Sequence) {
        let mut b = Vec::with_capacity(24);
        for v in [plan, u64::from(output), sequence] {
            b.extend_from_slice(&v.to_le_bytes());
        }
        // A probe that is not written only delays the verdict on a record.
        let _ = self.0.write_all_at(&[&b], 0);
    }

    /// What was being tried when the last process ended. It is said once: an end before the next try is no evidence against it.
    pub(super) fn take(&self) -> Option<(u64, u32, Sequence)> {
        let mut b = [0u8; 24];
        (self.0.read_at(&mut b, 0).ok()? == b.len()).then_some(())?;
        self.write(0, 0, 0);
        let mut v = b.as_chunks::<8>().0.iter().map(|x| u64::from_le_bytes(*x));
        Some((v.next()?, u32::try_from(v.next()?).ok()?, v.next()?))
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
        let _ = build(spec, vec![*s], &slices.mapped, &[], &mut io::sink());
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
    let built: Built = match build(spec, list.to_vec(), &slices.mapped, skip, &mut StagedWriter(&mut *staged)) {
        Ok(b) => b,
        Err(BuildError::Io(e)) => return Err(SinkError::from_io(format!("writing {name}"), e).into()),
        Err(e @ BuildError::Internal(_)) => return Err(Trouble::Retry(format!("{name}: {e}"))),
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
