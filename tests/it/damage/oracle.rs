//! What `wal-format.md` says of a damaged segment, from where its records stood: written from that page, it knows the clean bytes
//! and looks at no CRC, magic or salt of the damaged ones. A record is there if its bytes are the clean ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arc_ingest::types::Sequence;

pub const DATA: usize = 8192;
pub const BLOCK: usize = 4096;
const HEADER: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Mark,
    Pad,
    Entry,
    Keys,
}

impl Kind {
    pub fn numbered(self) -> bool {
        !matches!(self, Self::Mark | Self::Pad)
    }
}

/// One record of a clean file.
#[derive(Clone, Copy, Debug)]
pub struct Rec {
    pub at: usize,
    pub kind: Kind,
    pub sequence: Sequence,
    pub floor: Sequence,
    /// Behind the payload.
    pub end: usize,
    /// Where the next record may stand.
    pub next: usize,
}

/// A clean file.
#[derive(Clone, Debug)]
pub struct Layout {
    pub id: u64,
    pub path: PathBuf,
    pub clean: Vec<u8>,
    pub first: Sequence,
    pub records: Vec<Rec>,
    /// As the successor's header has it: end, last sequence.
    pub declared: Option<(usize, Sequence)>,
}

pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

pub fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

impl Layout {
    /// Walks the records of a clean file by their lengths, from the field table of the format's page.
    pub fn of(path: PathBuf, clean: Vec<u8>) -> Self {
        let salt = u64_at(&clean, 64);
        let mut records = Vec::new();
        let mut at = DATA;
        while at + HEADER <= clean.len() && clean[at..at + 4] == [0xa7, 0x52, 0x43, 0xf5] && u64_at(&clean, at + 16) == salt {
            let kind = match clean[at + 4] {
                1 => Kind::Write,
                2 => Kind::Mark,
                3 => Kind::Pad,
                16 => Kind::Entry,
                17 => Kind::Keys,
                k => panic!("kind {k}"),
            };
            let end = at + HEADER + u32_at(&clean, at + 8) as usize;
            let next = end.next_multiple_of(8);
            records.push(Rec { at, kind, sequence: u64_at(&clean, at + 32), floor: u64_at(&clean, at + 40), end, next });
            at = next;
        }
        Self { id: u64_at(&clean, 48), path, first: u64_at(&clean, 56), records, declared: None, clean }
    }

    /// Behind the last record.
    pub fn used(&self) -> usize {
        self.records.last().map_or(DATA, |r| r.next)
    }

    pub fn at(&self, byte: usize) -> Option<&Rec> {
        self.records.iter().find(|r| (r.at..r.next).contains(&byte))
    }

    fn same(&self, now: &[u8], from: usize, to: usize) -> bool {
        now.get(from..to).is_some_and(|b| b == &self.clean[from..to])
    }

    /// Whether one of the two header copies is there.
    pub fn has_header(&self, now: &[u8]) -> bool {
        self.same(now, 0, 256) || self.same(now, BLOCK, BLOCK + 256)
    }

    /// Payloads of the write records, by sequence.
    pub fn payloads(&self) -> BTreeMap<Sequence, Vec<u8>> {
        let writes = self.records.iter().filter(|r| r.kind == Kind::Write);
        writes.map(|r| (r.sequence, self.clean[r.at + HEADER..r.end].to_vec())).collect()
    }
}

/// A finding: label, from, to, first and last missing sequence.
pub type Expected = (&'static str, u64, u64, Option<(Sequence, Sequence)>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub findings: Vec<Expected>,
    /// Numbered records that are kept.
    pub kept: Vec<Sequence>,
    pub last: Sequence,
    /// Neither a header nor a record is left: the log is refused.
    pub lost: bool,
}

/// The rows P1 to P13 for a file that holds `now`; `known` is the known floor, `declared` the end that a successor declares.
pub fn judge(l: &Layout, now: &[u8], known: Sequence, declared: Option<(usize, Sequence)>) -> Judged {
    let limit = declared.map_or(now.len(), |d| d.0.min(now.len()));
    let there: Vec<&Rec> = l.records.iter().filter(|r| r.end <= limit && l.same(now, r.at, r.end)).collect();
    let floor = there.iter().map(|r| r.floor).fold(known.max(l.first - 1), Sequence::max);
    let mut j = Judged { last: l.first - 1, ..Judged::default() };
    if !l.has_header(now) {
        j.findings.push(("damaged", 0, DATA as u64, None));
        // The manifest names the newest segment, with its salt: any record of it that is left tells that this is it.
        j.lost = declared.is_none() && there.is_empty();
    } else if now.len() < l.clean.len() {
        j.findings.push(("damaged", now.len() as u64, l.clean.len() as u64, None));
    }
    let mut end = DATA;
    let mut torn = false;
    for r in there {
        if torn {
            if r.kind != Kind::Pad {
                j.findings.push(("behind_torn", r.at as u64, r.next as u64, None));
            }
            continue;
        }
        let before = if r.kind.numbered() { r.sequence - 1 } else { r.sequence };
        let place = (end as u64, r.at as u64);
        if before > j.last {
            let e = j.last + 1;
            if declared.is_some() || before <= floor {
                j.findings.push(("damaged", place.0, place.1, Some((e, before))));
            } else {
                if e <= floor {
                    j.findings.push(("damaged", place.0, place.1, Some((e, floor))));
                    j.last = floor;
                }
                j.findings.push(("torn", place.0, place.1, None));
                torn = true;
                if r.kind != Kind::Pad {
                    j.findings.push(("behind_torn", r.at as u64, r.next as u64, None));
                }
                continue;
            }
        } else if r.at > end {
            j.findings.push(("damaged_pad", place.0, place.1, None));
        }
        if r.kind.numbered() {
            j.kept.push(r.sequence);
        }
        j.last = r.sequence;
        end = r.next;
    }
    if torn {
        return j;
    }
    let e = j.last + 1;
    if let Some((declared_end, last)) = declared {
        let place = if end < limit { (end as u64, limit as u64) } else { (declared_end as u64, declared_end as u64) };
        if last >= e {
            j.findings.push(("damaged", place.0, place.1, Some((e, last))));
        } else if end < limit {
            j.findings.push(("damaged_pad", place.0, place.1, None));
        }
        j.last = j.last.max(last);
        return j;
    }
    let rest = now.get(end..).unwrap_or_default();
    if e <= floor {
        j.findings.push(("damaged", end as u64, end.max(now.len()) as u64, Some((e, floor))));
        j.last = floor;
        return j;
    }
    let begun = l.records.iter().any(|r| r.at >= end && l.same(now, r.at, r.at + HEADER));
    let zeros = rest.iter().all(|b| *b == 0);
    if !zeros && (begun || !end.is_multiple_of(BLOCK)) {
        j.findings.push(("torn", end as u64, now.len() as u64, None));
    }
    j
}
