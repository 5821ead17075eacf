//! Finding the records of one file and judging the places where there are none.
//!
//! The scan is in two steps, both pure. [`Scanner`] walks bytes and yields valid records and bad regions; it knows only the
//! salt. [`judge`] applies the decision table of `wal-format.md` to what was found.

use super::file_header::FileKind;
use super::record::{RecordHeader, RecordKind};
use crate::limits::{BLOCK, RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::types::Sequence;

/// What stands at one place of a file. Offsets are file offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Header and payload are right.
    Record(RecordHeader),
    /// No valid record from `from` up to `to`.
    Bad { from: u64, to: u64, why: Why },
}

/// Why a bad region was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// All zero.
    Zero,
    /// No header with this file's salt and place.
    Header,
    /// The header is right, the payload's CRC is not.
    PayloadCrc { sequence: Sequence, expected: u32, found: u32 },
    /// The header is right but the payload runs past the end of the file.
    Length { sequence: Sequence, payload_len: u32 },
    /// A good record of a kind that does not belong in this file.
    Kind { kind: RecordKind },
}

impl Why {
    /// Whether a good header stands there.
    fn is_begun(&self) -> bool {
        matches!(self, Self::PayloadCrc { .. } | Self::Length { .. } | Self::Kind { .. })
    }

    pub fn expected(&self) -> String {
        match self {
            Self::Zero | Self::Header => "a record of this segment's salt".into(),
            Self::PayloadCrc { sequence, expected, .. } => format!("payload CRC {expected:08x} of sequence {sequence}"),
            Self::Length { sequence, .. } => format!("the payload of sequence {sequence} within the file"),
            Self::Kind { .. } => "a record of a kind that belongs in this file".into(),
        }
    }

    pub fn found(&self) -> String {
        match self {
            Self::Zero => "zeros".into(),
            Self::Header => "no valid record header".into(),
            Self::PayloadCrc { found, .. } => format!("CRC {found:08x}"),
            Self::Length { payload_len, .. } => format!("a length of {payload_len} bytes"),
            Self::Kind { kind } => format!("a record of kind {}", kind.name()),
        }
    }
}

/// Iterates over the valid records and bad regions of `file`, from `from` up to `to` (file offsets).
///
/// INVARIANT(scan-ends): each step moves forward by at least [`RECORD_ALIGN`] bytes.
pub struct Scanner<'a> {
    file: &'a [u8],
    salt: u64,
    at: u64,
    to: u64,
    only: Option<FileKind>,
}

impl<'a> Scanner<'a> {
    pub fn new(file: &'a [u8], salt: u64, from: u64, to: u64) -> Self {
        let to = to.min(file.len() as u64);
        Self { file, salt, at: from.next_multiple_of(RECORD_ALIGN as u64), to, only: None }
    }

    /// Takes only records that belong in a file of this kind: whatever else has good CRCs is a bad place.
    pub fn only(mut self, kind: FileKind) -> Self {
        self.only = Some(kind);
        self
    }

    fn belongs(&self, h: &RecordHeader) -> bool {
        match h.kind {
            RecordKind::Write => self.only != Some(FileKind::Manifest),
            RecordKind::Entry | RecordKind::Keys => self.only != Some(FileKind::Segment),
            RecordKind::Mark | RecordKind::Pad => true,
        }
    }

    fn slice(&self, from: u64, len: usize) -> Option<&'a [u8]> {
        let from = usize::try_from(from).ok()?;
        let end = from.checked_add(len)?;
        if end as u64 > self.to { None } else { self.file.get(from..end) }
    }

    /// A header at `at` of this salt and place.
    fn header(&self, at: u64) -> Option<RecordHeader> {
        let h = RecordHeader::parse(self.slice(at, RECORD_HEADER_BYTES)?)?;
        (h.salt == self.salt && h.offset == at).then_some(h)
    }

    fn check(&self, h: &RecordHeader) -> Result<(), Why> {
        let Some(p) = self.slice(h.offset + RECORD_HEADER_BYTES as u64, h.payload_len as usize) else {
            return Err(Why::Length { sequence: h.sequence, payload_len: h.payload_len });
        };
        let found = crc32fast::hash(p);
        if found == h.payload_crc { Ok(()) } else { Err(Why::PayloadCrc { sequence: h.sequence, expected: h.payload_crc, found }) }
    }

    /// The payload of a record that this scanner yielded.
    pub fn payload(file: &'a [u8], h: &RecordHeader) -> &'a [u8] {
        let from = h.offset as usize + RECORD_HEADER_BYTES;
        file.get(from..from + h.payload_len as usize).unwrap_or_default()
    }

    /// The next place behind `from` with a valid header, or the end.
    fn resync(&self, from: u64) -> u64 {
        let magic = super::record::RECORD_MAGIC.to_le_bytes();
        let (Ok(start), Ok(end)) = (usize::try_from(from), usize::try_from(self.to)) else { return self.to };
        let Some(rest) = self.file.get(start.min(end)..end) else { return self.to };
        let mut at = from;
        for part in rest.chunks(ZEROS.len()) {
            // Most of what is behind the last record is zeros, and the magic is not.
            if is_zero(part) {
                at += part.len() as u64;
                continue;
            }
            for w in part.chunks(RECORD_ALIGN) {
                if w.starts_with(&magic) && self.header(at).is_some() {
                    return at;
                }
                at += RECORD_ALIGN as u64;
            }
        }
        self.to
    }
}

/// A multiple of [`RECORD_ALIGN`].
static ZEROS: [u8; 1024] = [0; 1024];

/// At most as long as [`ZEROS`].
fn is_zero(part: &[u8]) -> bool {
    ZEROS.starts_with(part)
}

impl Iterator for Scanner<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if self.at >= self.to {
            return None;
        }
        let from = self.at;
        if let Some(h) = self.header(from) {
            return Some(match self.check(&h) {
                Ok(()) if !self.belongs(&h) => {
                    self.at = from + h.record_len() as u64;
                    Found::Bad { from, to: self.at.min(self.to), why: Why::Kind { kind: h.kind } }
                }
                Ok(()) => {
                    self.at = from + h.record_len() as u64;
                    Found::Record(h)
                }
                Err(why @ Why::PayloadCrc { .. }) => {
                    // The header's own CRC vouches for the length: the damage ends where the record does.
                    self.at = from + h.record_len() as u64;
                    Found::Bad { from, to: self.at.min(self.to), why }
                }
                Err(why) => {
                    self.at = self.resync(from + RECORD_ALIGN as u64);
                    Found::Bad { from, to: self.at, why }
                }
            });
        }
        self.at = self.resync(from + RECORD_ALIGN as u64);
        let zero = self.slice(from, (self.at - from) as usize).is_some_and(|b| b.chunks(ZEROS.len()).all(is_zero));
        Some(Found::Bad { from, to: self.at, why: if zero { Why::Zero } else { Why::Header } })
    }
}

/// The label of a bad place, one row of the decision table each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Label {
    /// D1: a record whose sequence is known durable cannot be read: its rows are lost, what follows is kept.
    Damaged,
    /// D2: the place between two groups cannot be read, no sequence is missing.
    DamagedPad,
    /// T1: the log ends here: nothing behind this place was ever acknowledged.
    Torn,
    /// T2: valid records behind a torn place; they were never acknowledged and are set aside.
    BehindTorn,
    /// S1: a record repeats a sequence already seen; the later copy is ignored.
    Repeated,
}

impl Label {
    pub fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::DamagedPad => "damaged_pad",
            Self::Torn => "torn",
            Self::BehindTorn => "behind_torn",
            Self::Repeated => "repeated",
        }
    }

    /// Whether acknowledged rows may be missing.
    pub fn is_damage(self) -> bool {
        matches!(self, Self::Damaged | Self::DamagedPad)
    }
}

/// One finding about a region of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub label: Label,
    pub from: u64,
    pub to: u64,
    /// Sequences that are missing because of it: first and last.
    pub missing: Option<(Sequence, Sequence)>,
    pub expected: String,
    pub found: String,
}

impl Finding {
    /// The missing sequences for people: `7`, `4 to 9` or `none known`.
    pub fn missing_text(&self) -> String {
        self.missing.map_or_else(|| "none known".to_owned(), |(first, last)| range_text(first, last))
    }
}

/// A range of sequences for people: `7` or `4 to 9`.
pub fn range_text(first: Sequence, last: Sequence) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

/// What is known about a file before judging it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Sequence of the file's first numbered record.
    pub first_sequence: Sequence,
    /// From the successor: offset behind the last group and last sequence.
    pub declared: Option<(u64, Sequence)>,
    /// The highest floor known from anywhere else (successors' headers, other files).
    pub floor: Sequence,
}

/// The verdict on one file.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Valid records in order: numbered ones, marks and pads.
    pub records: Vec<RecordHeader>,
    pub findings: Vec<Finding>,
    /// F: the highest floor of any valid record here, or what was known before.
    pub floor: Sequence,
    /// Offset behind the last kept record and its pad.
    pub end: u64,
    /// The last sequence kept or known to be missing; `first_sequence - 1` when there is none.
    pub last_sequence: Sequence,
}

/// Applies the decision table to what a scanner found. `found` covers the data area from its start.
///
/// A place is judged by the sequence `e` expected there and by F, the highest sequence known durable:
/// `e <= F` or inside a declared end: [`Label::Damaged`]; nothing missing behind it: [`Label::DamagedPad`]; else
/// [`Label::Torn`], and the log ends there.
pub fn judge(known: Known, found: &[Found]) -> Verdict {
    let floor = found.iter().fold(known.floor.max(known.first_sequence.saturating_sub(1)), |f, x| match x {
        Found::Record(h) => f.max(h.durable_floor),
        Found::Bad { .. } => f,
    });
    let mut v = Verdict { floor, last_sequence: known.first_sequence.saturating_sub(1), ..Verdict::default() };
    let mut bad: Option<(u64, u64, Why)> = None;
    let mut torn = false;
    let (limit, declared_last) = known.declared.map_or((u64::MAX, None), |(e, l)| (e, Some(l)));
    for item in found {
        match item {
            Found::Bad { from, .. } if *from >= limit => break,
            Found::Record(h) if h.offset >= limit => break,
            Found::Bad { from, to, why } => {
                // A good header anywhere in the place says that a record of this generation was begun there.
                let why = bad.map_or(*why, |(_, _, w)| if w.is_begun() { w } else { *why });
                bad = Some((bad.map_or(*from, |(f, _, _)| f), (*to).min(limit), why));
            }
            Found::Record(h) => {
                let expected = v.last_sequence.saturating_add(1);
                // What the record says about the sequences in front of it.
                let before = if h.kind.numbered() { h.sequence.saturating_sub(1) } else { h.sequence };
                if torn {
                    behind(&mut v, h);
                    continue;
                }
                // Of a sequence 0, which no log has, one would be kept after the other.
                if before < v.last_sequence || h.kind.numbered() && h.sequence <= v.last_sequence {
                    v.findings.push(Finding {
                        label: Label::Repeated,
                        from: h.offset,
                        to: h.offset + h.record_len() as u64,
                        missing: None,
                        expected: format!("sequence {expected}"),
                        found: format!("sequence {}", h.sequence),
                    });
                    continue;
                }
                if let Some((from, to, why)) = bad.take() {
                    let missing = (before > v.last_sequence).then_some((expected, before));
                    if missing.is_some() && expected > floor && declared_last.is_none() {
                        torn = true;
                        push(&mut v, Label::Torn, from, to, None, &why);
                        behind(&mut v, h);
                        continue;
                    }
                    let label = if missing.is_some() { Label::Damaged } else { Label::DamagedPad };
                    if declared_last.is_none() && missing.is_some_and(|(_, last)| last > floor) {
                        // Rot in what was durable and, behind it, a group that was not: the log ends at F.
                        push(&mut v, label, from, to, Some((expected, floor)), &why);
                        push(&mut v, Label::Torn, from, to, None, &why);
                        v.last_sequence = floor;
                        torn = true;
                        behind(&mut v, h);
                        continue;
                    }
                    push(&mut v, label, from, to, missing, &why);
                } else if before > v.last_sequence {
                    // Contiguous bytes but a jump in sequences: a record is missing without a bad place.
                    if expected > floor && declared_last.is_none() {
                        torn = true;
                        push(&mut v, Label::Torn, h.offset, h.offset, None, &Why::Header);
                        behind(&mut v, h);
                        continue;
                    }
                    push(&mut v, Label::Damaged, h.offset, h.offset, Some((expected, before)), &Why::Header);
                }
                v.last_sequence = h.sequence.max(before);
                v.end = h.offset + h.record_len() as u64;
                v.records.push(*h);
            }
        }
    }
    if !torn {
        tail(&mut v, bad, known, floor);
    }
    v
}

/// The last bad region, with no valid record behind it.
fn tail(v: &mut Verdict, bad: Option<(u64, u64, Why)>, known: Known, floor: Sequence) {
    let expected = v.last_sequence.saturating_add(1);
    let data_start = crate::limits::FILE_HEADER_BYTES as u64;
    if let Some((end, last)) = known.declared {
        if let Some((from, to, why)) = bad {
            let missing = (last > v.last_sequence).then_some((expected, last));
            push(v, if missing.is_some() { Label::Damaged } else { Label::DamagedPad }, from, to, missing, &why);
        } else if last > v.last_sequence {
            push(v, Label::Damaged, end, end, Some((expected, last)), &Why::Header);
        }
        v.last_sequence = v.last_sequence.max(last);
        v.end = end;
        return;
    }
    v.end = v.end.max(data_start);
    if v.last_sequence < floor {
        // A mark or a successor says more was durable than can be found.
        let (from, to, why) = bad.unwrap_or((v.end, v.end, Why::Header));
        push(v, Label::Damaged, from, to, Some((expected, floor)), &why);
        v.last_sequence = floor;
        v.end = v.end.next_multiple_of(BLOCK as u64);
    } else if let Some((from, to, why)) = bad
        && why != Why::Zero
        && !(why == Why::Header && stale(v, from))
    {
        push(v, Label::Torn, from, to, None, &why);
    }
}

/// What is left of an older generation behind the last group of a recycled file starts at a block and is no finding: it can
/// not be told from a group that was never begun.
fn stale(v: &Verdict, from: u64) -> bool {
    from == v.end.max(crate::limits::FILE_HEADER_BYTES as u64) && from.is_multiple_of(BLOCK as u64)
}

fn push(v: &mut Verdict, label: Label, from: u64, to: u64, missing: Option<(Sequence, Sequence)>, why: &Why) {
    v.findings.push(Finding { label, from, to, missing, expected: why.expected(), found: why.found() });
}

fn behind(v: &mut Verdict, h: &RecordHeader) {
    if h.kind == RecordKind::Pad {
        return;
    }
    v.findings.push(Finding {
        label: Label::BehindTorn,
        from: h.offset,
        to: h.offset + h.record_len() as u64,
        missing: None,
        expected: "nothing behind a torn place".into(),
        found: format!("{} record, sequence {}", h.kind.name(), h.sequence),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{pad_len, put_pad, record_len};
    use crate::limits::FILE_HEADER_BYTES;

    const SALT: u64 = 77;

    /// A file with groups of write records (payload sizes), each group with its floor; `mark` after the last.
    pub fn file(groups: &[&[usize]], mark: bool, len: usize) -> Vec<u8> {
        let mut f = vec![0u8; FILE_HEADER_BYTES];
        let mut seq = 0;
        for g in groups {
            let floor = seq;
            for n in *g {
                seq += 1;
                put(&mut f, RecordKind::Write, seq, floor, &vec![seq as u8; *n]);
            }
            pad(&mut f, seq, floor);
        }
        if mark {
            put(&mut f, RecordKind::Mark, seq, seq, &[]);
            pad(&mut f, seq, seq);
        }
        f.resize(f.len().max(len), 0);
        f
    }

    fn put(f: &mut Vec<u8>, kind: RecordKind, sequence: u64, durable_floor: u64, p: &[u8]) {
        let h = RecordHeader {
            kind,
            payload_len: p.len() as u32,
            payload_crc: crc32fast::hash(p),
            salt: SALT,
            offset: f.len() as u64,
            sequence,
            durable_floor,
            receive_time_us: 0,
        };
        let end = f.len() + record_len(p.len());
        f.extend_from_slice(&h.encode());
        f.extend_from_slice(p);
        f.resize(end, 0);
    }

    fn pad(f: &mut Vec<u8>, seq: u64, floor: u64) {
        let at = f.len() as u64;
        put_pad(f, pad_len(at), at, SALT, seq, floor, 0);
    }

    fn run(f: &[u8]) -> Verdict {
        let found: Vec<_> = Scanner::new(f, SALT, FILE_HEADER_BYTES as u64, f.len() as u64).collect();
        judge(Known { first_sequence: 1, declared: None, floor: 0 }, &found)
    }

    fn writes(v: &Verdict) -> Vec<u64> {
        v.records.iter().filter(|r| r.kind == RecordKind::Write).map(|r| r.sequence).collect()
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        let v = run(&file(&[&[10, 5000], &[3]], true, 1 << 16));
        assert_eq!((writes(&v), v.last_sequence, v.floor), (vec![1, 2, 3], 3, 3));
        assert!(v.findings.is_empty(), "{:?}", v.findings);
    }

    #[test]
    fn below_the_floor_only_the_damaged_record_is_lost() {
        let clean = file(&[&[10, 20, 30], &[3]], true, 1 << 15);
        let second = FILE_HEADER_BYTES + record_len(10);
        for at in second..second + RECORD_HEADER_BYTES + 20 {
            let mut f = clean.clone();
            f[at] ^= 0x10;
            let v = run(&f);
            assert_eq!(writes(&v), vec![1, 3, 4], "flip at {at}");
            assert_eq!(v.findings.len(), 1);
            assert_eq!((v.findings[0].label, v.findings[0].missing), (Label::Damaged, Some((2, 2))));
            assert_eq!(v.findings[0].from, second as u64);
        }
    }

    #[test]
    fn a_torn_last_group_ends_the_log_and_what_is_behind_is_named() {
        let mut f = file(&[&[10], &[20, 30, 40]], false, 1 << 15);
        let torn = FILE_HEADER_BYTES + BLOCK + record_len(20);
        f[torn + 70] ^= 1;
        let v = run(&f);
        assert_eq!((writes(&v), v.last_sequence, v.floor), (vec![1, 2], 2, 1));
        let labels: Vec<_> = v.findings.iter().map(|f| f.label).collect();
        assert_eq!(labels, vec![Label::Torn, Label::BehindTorn]);
        assert_eq!(v.findings[0].from, torn as u64);
    }

    #[test]
    fn a_damaged_pad_or_mark_loses_nothing() {
        let mut f = file(&[&[10], &[3]], true, 1 << 15);
        f[FILE_HEADER_BYTES + record_len(10) + 100] ^= 1;
        let v = run(&f);
        assert_eq!(writes(&v), vec![1, 2]);
        assert_eq!(v.findings.iter().map(|f| f.label).collect::<Vec<_>>(), vec![Label::DamagedPad]);
    }

    #[test]
    fn rot_below_the_floor_then_a_torn_group() {
        let mut f = file(&[&[10], &[20, 30], &[5, 6]], false, 1 << 15);
        // Sequence 3 is durable (floor of 4 and 5), 4 is not.
        let third = FILE_HEADER_BYTES + BLOCK + record_len(20);
        let fourth = FILE_HEADER_BYTES + 2 * BLOCK;
        f[third] ^= 1;
        f[fourth] ^= 1;
        let v = run(&f);
        assert_eq!(writes(&v), vec![1, 2]);
        assert_eq!(v.last_sequence, 3);
        assert_eq!(v.findings[0].missing, Some((3, 3)));
        assert_eq!(v.findings[1].label, Label::Torn);
        // Without the pad between them it is one place, which reaches from one side of the floor to the other.
        f[third..fourth].fill(0xee);
        let v = run(&f);
        assert_eq!((writes(&v), v.floor, v.last_sequence), (vec![1, 2], 3, 3));
        let found: Vec<_> = v.findings.iter().map(|x| (x.label, x.from, x.missing)).collect();
        assert_eq!(found[..2], [(Label::Damaged, third as u64, Some((3, 3))), (Label::Torn, third as u64, None)]);
        assert_eq!(found[2..].iter().map(|x| x.0).collect::<Vec<_>>(), [Label::BehindTorn]);
    }

    #[test]
    fn a_declared_end_makes_everything_inside_damage() {
        let f = file(&[&[10], &[20]], false, 1 << 15);
        let end = (FILE_HEADER_BYTES + 2 * BLOCK) as u64;
        let judge_with = |f: &[u8]| {
            let found: Vec<_> = Scanner::new(f, SALT, FILE_HEADER_BYTES as u64, f.len() as u64).collect();
            judge(Known { first_sequence: 1, declared: Some((end, 2)), floor: 2 }, &found)
        };
        assert!(judge_with(&f).findings.is_empty());
        let mut m = f.clone();
        m[FILE_HEADER_BYTES + BLOCK + 1] ^= 1;
        let v = judge_with(&m);
        assert_eq!((v.findings[0].label, v.findings[0].missing), (Label::Damaged, Some((2, 2))));
        let cut = &f[..FILE_HEADER_BYTES + BLOCK];
        let v = judge_with(cut);
        assert_eq!(v.findings[0].missing, Some((2, 2)));
        assert_eq!((v.last_sequence, v.end), (2, end));
    }

    fn labels(v: &Verdict) -> Vec<Label> {
        v.findings.iter().map(|f| f.label).collect()
    }

    #[test]
    fn a_floor_from_elsewhere_makes_a_missing_tail_damage() {
        let f = file(&[&[10], &[20]], false, 1 << 15);
        let found: Vec<_> = Scanner::new(&f, SALT, FILE_HEADER_BYTES as u64, f.len() as u64).collect();
        let v = judge(Known { first_sequence: 1, declared: None, floor: 5 }, &found);
        assert_eq!((labels(&v), v.findings[0].missing), (vec![Label::Damaged], Some((3, 5))));
        assert_eq!((writes(&v), v.last_sequence), (vec![1, 2], 5));
    }

    #[test]
    fn a_jump_in_sequences_is_damage_below_the_floor_and_torn_above_it() {
        let with_jump = |floor: u64| {
            let mut f = vec![0u8; FILE_HEADER_BYTES];
            put(&mut f, RecordKind::Write, 1, 0, b"a");
            put(&mut f, RecordKind::Write, 4, floor, b"b");
            pad(&mut f, 4, floor);
            run(&f)
        };
        let v = with_jump(3);
        assert_eq!((labels(&v), v.findings[0].missing), (vec![Label::Damaged], Some((2, 3))));
        assert_eq!(v.findings[0].from, v.findings[0].to);
        assert_eq!(writes(&v), vec![1, 4]);
        let v = with_jump(0);
        assert_eq!(labels(&v), vec![Label::Torn, Label::BehindTorn]);
        assert_eq!(writes(&v), vec![1]);
    }

    #[test]
    fn a_torn_record_with_nothing_behind_it_ends_the_log() {
        let mut f = file(&[&[10], &[20, 30]], false, 1 << 15);
        let torn = FILE_HEADER_BYTES + BLOCK + record_len(20);
        f[torn + RECORD_HEADER_BYTES + 3..].fill(0);
        let v = run(&f);
        assert_eq!((labels(&v), v.findings[0].from), (vec![Label::Torn], torn as u64));
        assert_eq!((writes(&v), v.last_sequence), (vec![1, 2], 2));
    }

    /// The first sector of a group did not arrive, the header of its second record did, nothing behind it did.
    #[test]
    fn a_torn_group_without_its_beginning_is_torn() {
        let mut f = file(&[&[10], &[700, 700]], false, 1 << 15);
        let group = FILE_HEADER_BYTES + BLOCK;
        let second = group + record_len(700);
        for beginning in [0, 0x5a] {
            f[group..second].fill(beginning);
            f[second + RECORD_HEADER_BYTES + 3..].fill(0);
            let v = run(&f);
            assert_eq!((labels(&v), v.findings[0].from), (vec![Label::Torn], group as u64));
            assert_eq!((writes(&v), v.last_sequence), (vec![1], 1));
        }
    }

    #[test]
    fn a_repeated_sequence_is_ignored() {
        let mut f = vec![0u8; FILE_HEADER_BYTES];
        put(&mut f, RecordKind::Write, 1, 0, b"first");
        put(&mut f, RecordKind::Write, 2, 0, b"second");
        put(&mut f, RecordKind::Write, 2, 0, b"again");
        put(&mut f, RecordKind::Write, 3, 0, b"third");
        pad(&mut f, 3, 0);
        let v = run(&f);
        assert_eq!((labels(&v), writes(&v)), (vec![Label::Repeated], vec![1, 2, 3]));
        assert_eq!(v.findings[0].missing, None);
    }

    #[test]
    fn sequences_at_both_ends_of_their_range_end_the_scan_without_a_panic() {
        let mut f = vec![0u8; FILE_HEADER_BYTES];
        put(&mut f, RecordKind::Write, 0, 0, b"none has this");
        put(&mut f, RecordKind::Write, 0, 0, b"again");
        put(&mut f, RecordKind::Write, u64::MAX, u64::MAX, b"the last");
        put(&mut f, RecordKind::Write, u64::MAX, u64::MAX, b"again");
        pad(&mut f, u64::MAX, u64::MAX);
        let v = run(&f);
        assert_eq!((writes(&v), v.last_sequence), (vec![u64::MAX], u64::MAX));
        assert_eq!(labels(&v), vec![Label::Repeated, Label::Repeated, Label::Damaged, Label::Repeated]);
        let found: Vec<_> = Scanner::new(&f[..FILE_HEADER_BYTES], SALT, 0, u64::MAX).collect();
        judge(Known { first_sequence: u64::MAX, declared: Some((u64::MAX, u64::MAX)), floor: u64::MAX }, &found);
    }

    #[test]
    fn an_older_generation_behind_the_last_group_is_no_finding() {
        let mut f = file(&[&[10]], true, 0);
        let end = f.len();
        let mut older = file(&[&[10], &[20], &[30, 40], &[50]], true, 1 << 15);
        // Another life of the file had another salt, which its header CRCs cover.
        for at in (0..older.len()).step_by(RECORD_ALIGN) {
            if let Some(h) = RecordHeader::parse(&older[at..]) {
                older[at..at + RECORD_HEADER_BYTES].copy_from_slice(&RecordHeader { salt: SALT + 1, ..h }.encode());
            }
        }
        f.extend_from_slice(&older[end..]);
        let v = run(&f);
        assert!(v.findings.is_empty(), "{:?}", v.findings);
        assert_eq!((writes(&v), v.end), (vec![1], end as u64));
    }

    #[test]
    fn ranges_are_said_in_words() {
        let finding = |missing| Finding { label: Label::Damaged, from: 0, to: 0, missing, expected: String::new(), found: String::new() };
        let texts = [None, Some((4, 4)), Some((80, 82))].map(|m| finding(m).missing_text());
        assert_eq!(texts, ["none known", "4", "80 to 82"]);
    }

    #[test]
    fn any_bytes_end() {
        let f = file(&[&[10], &[20]], true, 1 << 14);
        for n in 0..f.len() {
            let _ = run(&f[..n]);
        }
    }
}
