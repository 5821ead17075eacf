//! Strings of one column of one row group, as codes into a dictionary while that pays, else end to end.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::slices::{code_at, is_valid};

/// Distinct values after which the column is asked, each time their number doubles, whether a dictionary still pays.
const FIRST_LOOK: usize = 8192;
/// Marks an entry of a slice's dictionary that has no code in the row group yet.
const UNMAPPED: u32 = u32::MAX;

/// Distinct byte strings with their codes, in the order of first appearance (which the hash does not influence).
pub(super) struct Interner {
    table: HashTable<(u32, u32)>,
    /// `len + 1` offsets into `bytes`.
    starts: Vec<usize>,
    bytes: Vec<u8>,
    state: RandomState,
}

impl Default for Interner {
    fn default() -> Self {
        Self { table: HashTable::new(), starts: vec![0], bytes: Vec::new(), state: RandomState::default() }
    }
}

fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Interner {
    fn intern(&mut self, s: &[u8]) -> u32 {
        let hash = self.state.hash_one(s) as u32;
        let found = self.table.find(spread(hash), |(h, code)| *h == hash && self.get(*code) == s);
        if let Some((_, code)) = found {
            return *code;
        }
        let code = self.len() as u32;
        self.bytes.extend_from_slice(s);
        self.starts.push(self.bytes.len());
        self.table.insert_unique(spread(hash), (hash, code), |(h, _)| spread(*h));
        code
    }

    fn get(&self, code: u32) -> &[u8] {
        match (self.starts.get(code as usize), self.starts.get(code as usize + 1)) {
            (Some(from), Some(to)) => self.bytes.get(*from..*to).unwrap_or_default(),
            _ => &[],
        }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn clear(&mut self) {
        self.table.clear();
        self.starts.truncate(1);
        self.bytes.clear();
    }
}

/// How the values of a finished column stand.
#[derive(Clone, Copy, Debug)]
pub enum StrView<'a> {
    /// Lengths, NULL rows included, and all bytes.
    Plain { lengths: &'a [u32], bytes: &'a [u8] },
    /// Codes (those of NULL rows mean nothing); entry i is `bytes[starts[i]..starts[i + 1]]`.
    Dictionary { codes: &'a [u32], starts: &'a [usize], bytes: &'a [u8] },
}

/// A run of rows of one slice's string column.
pub(super) struct Rows<'a> {
    pub from: usize,
    pub to: usize,
    pub validity: Option<&'a [u8]>,
}

/// What is remembered of a slice's dictionary while its rows are gathered.
#[derive(Default)]
pub(super) struct SliceDictionary {
    /// Offsets of the entries, one more than there are.
    pub starts: Vec<usize>,
    remap: Vec<u32>,
}

impl SliceDictionary {
    pub(super) fn new(lengths: &[u32]) -> Self {
        let mut starts = Vec::with_capacity(lengths.len() + 1);
        let mut at = 0usize;
        starts.push(at);
        for l in lengths {
            at += *l as usize;
            starts.push(at);
        }
        Self { starts, remap: vec![UNMAPPED; lengths.len()] }
    }

    /// Forgets the codes of the row group that has ended.
    pub(super) fn new_row_group(&mut self) {
        self.remap.fill(UNMAPPED);
    }
}

#[derive(Default)]
pub(super) struct StrBuf {
    plain: bool,
    /// A dictionary did not pay in an earlier row group of the file.
    never: bool,
    lengths: Vec<u32>,
    bytes: Vec<u8>,
    codes: Vec<u32>,
    interner: Interner,
    next_look: usize,
    /// Bytes that the values would take end to end.
    plain_bytes: usize,
}

impl StrBuf {
    pub(super) fn reserve(&mut self, rows: usize) {
        if self.plain { self.lengths.reserve(rows) } else { self.codes.reserve(rows) }
    }

    /// Bytes held, but for the four of each row.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() + self.interner.bytes.len() + self.interner.len() * 24
    }

    pub(super) fn pad(&mut self, rows: usize) {
        if self.plain { self.lengths.resize(rows, 0) } else { self.codes.resize(rows, 0) }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.codes.truncate(rows);
        if self.plain {
            self.lengths.truncate(rows);
            self.bytes.truncate(self.lengths.iter().map(|l| *l as usize).sum());
        }
    }

    pub(super) fn clear(&mut self) {
        self.plain = self.never;
        self.lengths.clear();
        self.bytes.clear();
        self.codes.clear();
        self.interner.clear();
        self.next_look = FIRST_LOOK;
        self.plain_bytes = 0;
    }

    /// Appends rows whose `lengths` (one a row of `rows`) lie end to end in `bytes`.
    pub(super) fn push_plain(&mut self, rows: &Rows<'_>, lengths: &[u32], bytes: &[u8]) {
        if self.plain {
            self.lengths.extend_from_slice(lengths);
            self.bytes.extend_from_slice(bytes);
            return;
        }
        let mut at = 0usize;
        for (i, l) in lengths.iter().enumerate() {
            let end = at + *l as usize;
            if is_valid(rows.validity, rows.from + i) {
                let code = self.interner.intern(bytes.get(at..end).unwrap_or_default());
                self.codes.push(code);
            } else {
                self.codes.push(0);
            }
            at = end;
        }
        self.plain_bytes += bytes.len();
        self.look();
    }

    /// Appends rows given as codes into the slice's dictionary.
    pub(super) fn push_codes(&mut self, rows: &Rows<'_>, codes: &[u8], width: u8, entries: &[u8], d: &mut SliceDictionary) {
        let entry = |starts: &[usize], code: usize| match (starts.get(code), starts.get(code + 1)) {
            (Some(from), Some(to)) => entries.get(*from..*to).unwrap_or_default(),
            _ => &[],
        };
        if self.plain {
            for i in rows.from..rows.to {
                let s = if is_valid(rows.validity, i) { entry(&d.starts, code_at(codes, width, i)) } else { &[] };
                self.lengths.push(s.len() as u32);
                self.bytes.extend_from_slice(s);
            }
            return;
        }
        let SliceDictionary { starts, remap } = d;
        let interner = &mut self.interner;
        let mut map = |code: usize| match remap.get_mut(code) {
            Some(to) => {
                if *to == UNMAPPED {
                    *to = interner.intern(entry(starts, code));
                }
                *to
            }
            None => 0,
        };
        match (rows.validity, width) {
            (None, 1) => self.codes.extend(codes.get(rows.from..rows.to).unwrap_or_default().iter().map(|c| map(usize::from(*c)))),
            (None, _) => {
                let codes = codes.as_chunks::<2>().0.get(rows.from..rows.to).unwrap_or_default();
                self.codes.extend(codes.iter().map(|c| map(usize::from(u16::from_le_bytes(*c)))));
            }
            (validity, _) => {
                self.codes.extend((rows.from..rows.to).map(|i| if is_valid(validity, i) { map(code_at(codes, width, i)) } else { 0 }))
            }
        }
        // A slice that came with a dictionary is taken at its average length.
        let mean = entries.len() / starts.len().saturating_sub(1).max(1);
        self.plain_bytes += (rows.to - rows.from) * mean;
        self.look();
    }

    /// Gives the dictionary up where most values turn out to be distinct: interning them costs the most and gains nothing.
    fn look(&mut self) {
        let distinct = self.interner.len();
        if distinct < self.next_look {
            return;
        }
        self.next_look = distinct * 2;
        if distinct * 2 > self.codes.len() {
            self.give_up(None);
        }
    }

    fn give_up(&mut self, validity: Option<&[u8]>) {
        self.lengths.reserve(self.codes.capacity());
        for (i, code) in self.codes.iter().enumerate() {
            // NULL rows hold code 0, which may be a long entry.
            let s = if is_valid(validity, i) { self.interner.get(*code) } else { &[] };
            self.lengths.push(s.len() as u32);
            self.bytes.extend_from_slice(s);
        }
        self.codes.clear();
        self.interner.clear();
        self.plain = true;
        self.never = true;
    }

    /// The last decision, by size, when all rows of the row group are here.
    pub(super) fn settle(&mut self, validity: Option<&[u8]>) {
        if self.plain {
            return;
        }
        let rows = self.codes.len();
        let width = usize::BITS - self.interner.len().saturating_sub(1).leading_zeros();
        let coded = self.interner.bytes.len() + 4 * self.interner.len() + rows * width as usize / 8;
        if coded > (self.plain_bytes + 4 * rows) / 4 * 3 && self.interner.len() > 1 {
            self.give_up(validity);
        }
    }

    pub(super) fn permute(&mut self, order: &[u32], scratch: &mut Vec<u32>) {
        scratch.clear();
        if !self.plain {
            scratch.extend(order.iter().map(|i| self.codes.get(*i as usize).copied().unwrap_or(0)));
            std::mem::swap(&mut self.codes, scratch);
            return;
        }
        let d = SliceDictionary::new(&self.lengths);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for i in order {
            let i = *i as usize;
            if let (Some(from), Some(to)) = (d.starts.get(i), d.starts.get(i + 1)) {
                scratch.push((to - from) as u32);
                bytes.extend_from_slice(self.bytes.get(*from..*to).unwrap_or_default());
            }
        }
        std::mem::swap(&mut self.lengths, scratch);
        self.bytes = bytes;
    }

    pub(super) fn view(&self) -> StrView<'_> {
        if self.plain {
            StrView::Plain { lengths: &self.lengths, bytes: &self.bytes }
        } else {
            StrView::Dictionary { codes: &self.codes, starts: &self.interner.starts, bytes: &self.interner.bytes }
        }
    }
}
