//! Strings of one column of one row group, as codes into a dictionary while that pays, else end to end.
//!
//! INVARIANT(strings-are-counted): what the values take end to end is counted as they come, NULL rows as nothing, and a dictionary is given up
//! only for a copy of about its own size. A NULL row has a code of its own, which stands for no entry.

use std::collections::TryReserveError;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::slices::{code_at, is_valid};
use crate::format::payload::StringsView;

/// Distinct values after which the column is asked, each time their number doubles, whether a dictionary still pays.
const FIRST_LOOK: usize = 8192;
/// Marks an entry of a slice's dictionary that has no code in the row group yet.
const UNMAPPED: u32 = u32::MAX;
/// The code of a NULL row.
const NULL: u32 = u32::MAX;
/// Bytes that an entry takes beside its own: its start, its place in the hash table, its length in the dictionary's page.
const ENTRY_BYTES: usize = 24;
/// A dictionary is written as one page, built and compressed in memory beside it: each of its bytes counts twice.
const DICTIONARY_WEIGHT: usize = 2;
/// Buffers up to this size are kept for the next row group.
const KEPT_BYTES: usize = 1 << 20;

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
    /// Lengths, those of NULL rows being 0, and all bytes. `starts`: where each row's bytes begin; None: they lie in the order of the rows.
    Plain { lengths: &'a [u32], starts: Option<&'a [usize]>, bytes: &'a [u8] },
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
    starts: Vec<usize>,
    remap: Vec<u32>,
    /// What the entries without a code would add to the row group's dictionary.
    unmapped: usize,
    longest: usize,
}

impl SliceDictionary {
    pub(super) fn new(lengths: &StringsView<'_>) -> Self {
        let mut starts = Vec::with_capacity(lengths.len() + 1);
        let (mut at, mut longest) = (0usize, 0usize);
        starts.push(at);
        lengths.for_each_length(0, lengths.len(), |l| {
            at += l as usize;
            longest = longest.max(l as usize);
            starts.push(at);
        });
        let mut d = Self { starts, remap: vec![UNMAPPED; lengths.len()], unmapped: 0, longest };
        d.new_row_group();
        d
    }

    /// Forgets the codes of the row group that has ended.
    pub(super) fn new_row_group(&mut self) {
        self.remap.fill(UNMAPPED);
        self.unmapped = self.bytes() * DICTIONARY_WEIGHT + self.remap.len() * ENTRY_BYTES;
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Length of the entry `code`.
    pub(super) fn len_of(&self, code: usize) -> usize {
        match (self.starts.get(code), self.starts.get(code + 1)) {
            (Some(from), Some(to)) => to - from,
            _ => 0,
        }
    }

    fn is_mapped(&self, code: usize) -> bool {
        self.remap.get(code).is_some_and(|to| *to != UNMAPPED)
    }
}

#[derive(Default)]
pub(super) struct StrBuf {
    plain: bool,
    /// A dictionary did not pay in an earlier row group of the file.
    never: bool,
    lengths: Vec<u32>,
    bytes: Vec<u8>,
    /// Where the bytes of each row begin, once rows have been put in order.
    starts: Vec<usize>,
    codes: Vec<u32>,
    interner: Interner,
    next_look: usize,
    /// Rows that are not NULL.
    valid: usize,
    /// Bytes that the values take end to end.
    plain_bytes: usize,
}

impl StrBuf {
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<(), TryReserveError> {
        if self.plain { self.lengths.try_reserve(rows) } else { self.codes.try_reserve(rows) }
    }

    /// Bytes held and needed to write them, but for the five of each row.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() + self.interner.bytes.len() * DICTIONARY_WEIGHT + self.interner.len() * ENTRY_BYTES
    }

    /// The most that one more string of this length adds to [`Self::held`].
    pub(super) fn cost(&self, len: usize) -> usize {
        if self.plain { len } else { len * DICTIONARY_WEIGHT + ENTRY_BYTES }
    }

    /// The most that `rows` more rows of a slice's dictionary add to [`Self::held`].
    pub(super) fn cost_of_codes(&self, d: &SliceDictionary, rows: usize) -> usize {
        if self.plain { d.longest.saturating_mul(rows) } else { d.unmapped }
    }

    /// The most that one more row of this code adds to [`Self::held`].
    pub(super) fn cost_of_code(&self, d: &SliceDictionary, code: usize) -> usize {
        if !self.plain && d.is_mapped(code) { 0 } else { self.cost(d.len_of(code)) }
    }

    /// The values stand end to end.
    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Tries a dictionary again in this row group; false when values stand end to end already.
    pub(super) fn try_dictionary(&mut self) -> bool {
        if self.plain && self.valid == 0 {
            self.codes.resize(self.lengths.len(), NULL);
            self.lengths.clear();
            self.plain = false;
        }
        !self.plain
    }

    pub(super) fn pad(&mut self, rows: usize) {
        if self.plain { self.lengths.resize(rows, 0) } else { self.codes.resize(rows, NULL) }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.codes.truncate(rows);
        if self.plain {
            self.lengths.truncate(rows);
            self.bytes.truncate(self.lengths.iter().map(|l| *l as usize).sum());
            self.plain_bytes = self.bytes.len();
            self.valid = self.valid.min(rows);
        } else {
            let valid = self.codes.iter().filter(|c| **c != NULL);
            (self.valid, self.plain_bytes) = valid.fold((0, 0), |(n, sum), c| (n + 1, sum + self.interner.get(*c).len()));
        }
    }

    pub(super) fn clear(&mut self) {
        self.plain = self.never;
        self.lengths.clear();
        self.bytes.clear();
        self.starts.clear();
        self.codes.clear();
        self.interner.clear();
        self.next_look = FIRST_LOOK;
        self.valid = 0;
        self.plain_bytes = 0;
    }

    /// Gives large buffers back: the column has been written, and the next one needs the memory.
    pub(super) fn release(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        if self.interner.bytes.capacity() > KEPT_BYTES {
            self.interner = Interner::default();
        }
        self.starts = Vec::new();
    }

    /// Appends rows whose `lengths` (one a row of `rows`) lie end to end in `bytes`.
    pub(super) fn push_plain(&mut self, rows: &Rows<'_>, strings: &StringsView<'_>, bytes: &[u8]) -> Result<(), TryReserveError> {
        let mut at = 0usize;
        let mut i = rows.from;
        if self.plain {
            self.bytes.try_reserve(bytes.len())?;
            if rows.validity.is_none() {
                strings.for_each_length(rows.from, rows.to, |l| self.lengths.push(l));
                self.bytes.extend_from_slice(bytes);
                self.valid += rows.to - rows.from;
                self.plain_bytes = self.bytes.len();
                return Ok(());
            }
            strings.for_each_length(rows.from, rows.to, |l| {
                let end = at + l as usize;
                if is_valid(rows.validity, i) {
                    self.lengths.push(l);
                    self.bytes.extend_from_slice(bytes.get(at..end).unwrap_or_default());
                    self.valid += 1;
                } else {
                    self.lengths.push(0);
                }
                (at, i) = (end, i + 1);
            });
            self.plain_bytes = self.bytes.len();
            return Ok(());
        }
        // The dictionary takes at most these.
        self.interner.bytes.try_reserve(bytes.len())?;
        strings.for_each_length(rows.from, rows.to, |l| {
            let end = at + l as usize;
            if is_valid(rows.validity, i) {
                let code = self.interner.intern(bytes.get(at..end).unwrap_or_default());
                self.codes.push(code);
                self.valid += 1;
                self.plain_bytes += l as usize;
            } else {
                self.codes.push(NULL);
            }
            (at, i) = (end, i + 1);
        });
        self.look()
    }

    /// Appends rows given as codes into the slice's dictionary.
    pub(super) fn push_codes(
        &mut self,
        rows: &Rows<'_>,
        codes: &[u8],
        width: u8,
        entries: &[u8],
        d: &mut SliceDictionary,
    ) -> Result<(), TryReserveError> {
        let entry = |starts: &[usize], code: usize| match (starts.get(code), starts.get(code + 1)) {
            (Some(from), Some(to)) => entries.get(*from..*to).unwrap_or_default(),
            _ => &[],
        };
        let valid = (rows.from..rows.to).filter(|i| is_valid(rows.validity, *i));
        if self.plain {
            let sum = valid.map(|i| d.len_of(code_at(codes, width, i))).sum();
            self.bytes.try_reserve(sum)?;
            for i in rows.from..rows.to {
                if is_valid(rows.validity, i) {
                    let s = entry(&d.starts, code_at(codes, width, i));
                    self.lengths.push(s.len() as u32);
                    self.bytes.extend_from_slice(s);
                    self.valid += 1;
                } else {
                    self.lengths.push(0);
                }
            }
            self.plain_bytes = self.bytes.len();
            return Ok(());
        }
        self.interner.bytes.try_reserve(d.unmapped / DICTIONARY_WEIGHT)?;
        let before = self.codes.len();
        let SliceDictionary { starts, remap, unmapped, .. } = d;
        let interner = &mut self.interner;
        let mut sum = 0usize;
        let mut map = |code: usize| match remap.get_mut(code) {
            Some(to) => {
                let s = entry(starts, code);
                if *to == UNMAPPED {
                    *to = interner.intern(s);
                    *unmapped = unmapped.saturating_sub(s.len() * DICTIONARY_WEIGHT + ENTRY_BYTES);
                }
                sum += s.len();
                *to
            }
            None => NULL,
        };
        match (rows.validity, width) {
            (None, 1) => self.codes.extend(codes.get(rows.from..rows.to).unwrap_or_default().iter().map(|c| map(usize::from(*c)))),
            (None, _) => {
                let codes = codes.as_chunks::<2>().0.get(rows.from..rows.to).unwrap_or_default();
                self.codes.extend(codes.iter().map(|c| map(usize::from(u16::from_le_bytes(*c)))));
            }
            (validity, _) => {
                self.codes.extend((rows.from..rows.to).map(|i| if is_valid(validity, i) { map(code_at(codes, width, i)) } else { NULL }))
            }
        }
        self.plain_bytes += sum;
        let nulls = if rows.validity.is_none() { 0 } else { self.codes.iter().skip(before).filter(|c| **c == NULL).count() };
        self.valid += self.codes.len() - before - nulls;
        self.look()
    }

    /// Gives the dictionary up where most values turn out to be distinct: interning them costs the most and gains nothing.
    fn look(&mut self) -> Result<(), TryReserveError> {
        let distinct = self.interner.len();
        if distinct < self.next_look {
            return Ok(());
        }
        self.next_look = distinct * 2;
        // Few long values among many short ones are distinct by number only: their copies would take many times the dictionary.
        if distinct * 2 > self.codes.len() && self.plain_bytes <= self.interner.bytes.len() * DICTIONARY_WEIGHT {
            self.give_up()?;
        }
        Ok(())
    }

    fn give_up(&mut self) -> Result<(), TryReserveError> {
        self.lengths.try_reserve(self.codes.capacity())?;
        self.bytes.try_reserve(self.plain_bytes)?;
        for code in &self.codes {
            let s = if *code == NULL { &[][..] } else { self.interner.get(*code) };
            self.lengths.push(s.len() as u32);
            self.bytes.extend_from_slice(s);
        }
        self.codes.clear();
        self.interner = Interner::default();
        self.plain = true;
        self.never = true;
        Ok(())
    }

    /// The last decision, by size, when all rows of the row group are here.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn settle(&mut self) -> Result<(), TryReserveError> {
        if self.plain {
            return Ok(());
        }
        let width = usize::BITS - self.interner.len().saturating_sub(1).leading_zeros();
        let coded = self.interner.bytes.len() + 4 * self.interner.len() + self.valid * width as usize / 8;
        let plain = self.plain_bytes + 4 * self.valid;
        if coded > plain / 4 * 3 && self.interner.len() > 1 { self.give_up() } else { Ok(()) }
    }

    pub(super) fn permute(&mut self, order: &[u32], scratch: &mut Vec<u32>) {
        scratch.clear();
        if !self.plain {
            scratch.extend(order.iter().map(|i| self.codes.get(*i as usize).copied().unwrap_or(NULL)));
            std::mem::swap(&mut self.codes, scratch);
            return;
        }
        // The bytes stay where they are: a copy of them would double the column.
        let mut at = 0usize;
        let next = |l: &u32| {
            let from = at;
            at += *l as usize;
            from
        };
        let from: Vec<usize> = self.lengths.iter().map(next).collect();
        self.starts.clear();
        self.starts.extend(order.iter().map(|i| from.get(*i as usize).copied().unwrap_or(0)));
        scratch.extend(order.iter().map(|i| self.lengths.get(*i as usize).copied().unwrap_or(0)));
        std::mem::swap(&mut self.lengths, scratch);
    }

    pub(super) fn view(&self) -> StrView<'_> {
        if self.plain {
            let starts = (!self.starts.is_empty()).then_some(self.starts.as_slice());
            StrView::Plain { lengths: &self.lengths, starts, bytes: &self.bytes }
        } else {
            StrView::Dictionary { codes: &self.codes, starts: &self.interner.starts, bytes: &self.interner.bytes }
        }
    }
}
