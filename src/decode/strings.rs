//! Builds a string column, as a dictionary for as long as that pays.

use crate::batch::{Strings, Values};
use foldhash::fast::RandomState;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;

/// Distinct entries up to which a dictionary is kept whatever the number of rows.
const FEW: usize = 256;
/// Rows after which a column of nearly distinct strings is seen as such.
const JUDGED_AT: usize = 1024;
/// Slots looked at before the dictionary is given up: bounds the work that chosen keys can cause.
const MAX_PROBES: usize = 128;

static SEEDS: LazyLock<(u64, u64)> = LazyLock::new(|| {
    let random = RandomState::default();
    (random.hash_one(1u8), random.hash_one(2u8))
});

/// What identifies a string: its length and, up to 16 bytes, all of them. For longer ones `word` is a hash.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Key {
    word: u128,
    len: u32,
}

const EXACT_KEY: u32 = 16;

impl Key {
    /// The key of the first `len` bytes of `text`. What follows them is loaded too but shifted out: with 16 bytes at hand
    /// this takes no branch on the length.
    #[inline(always)]
    fn of(text: &[u8], len: usize) -> Self {
        let key = len as u32;
        if len <= EXACT_KEY as usize {
            let bytes = match text.first_chunk::<16>() {
                Some(bytes) => *bytes,
                None => padded(text),
            };
            let word = u128::from_be_bytes(bytes).checked_shr(128 - 8 * key).unwrap_or(0);
            return Self { word, len: key };
        }
        let mut hash = SEEDS.0;
        let text = text.get(..len).unwrap_or_default();
        let words = text.chunks_exact(8);
        let last = text.last_chunk::<8>().map_or(0, |c| u64::from_le_bytes(*c));
        for word in words {
            hash = folded_multiply(hash ^ word.try_into().map_or(0, u64::from_le_bytes), 0x9e37_79b9_7f4a_7c15 ^ SEEDS.1);
        }
        Self { word: u128::from(folded_multiply(hash ^ last, SEEDS.1)), len: key }
    }

    #[inline(always)]
    fn hash(self, seeds: (u64, u64)) -> u64 {
        folded_multiply(self.word as u64 ^ seeds.0, (self.word >> 64) as u64 ^ seeds.1 ^ (u64::from(self.len) << 56))
    }
}

#[cold]
fn padded(text: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    bytes
}

#[inline(always)]
fn folded_multiply(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

#[derive(Clone, Copy, Default)]
struct Slot {
    key: Key,
    /// Code plus one; 0 is an empty slot.
    entry: u32,
}

/// Open-addressed index from strings to codes.
struct Index {
    slots: Vec<Slot>,
    seeds: (u64, u64),
    /// Where each dictionary entry starts in the bytes.
    starts: Vec<u32>,
    last: Key,
    last_code: u16,
}

impl Index {
    fn new(rows: usize) -> Self {
        // A request may have many columns with a value each.
        let slots = if rows >= FEW { 4 * FEW } else { 16 };
        Self { slots: vec![Slot::default(); slots], seeds: *SEEDS, starts: Vec::new(), last: Key::default(), last_code: 0 }
    }

    /// The code of `s`, which is added to `dictionary` when new; None when the dictionary is to be given up.
    #[inline(always)]
    fn code(&mut self, key: Key, s: &[u8], dictionary: &mut Strings, rows: usize) -> Option<u16> {
        if key == self.last && key.len <= EXACT_KEY && !self.starts.is_empty() {
            return Some(self.last_code);
        }
        let mask = self.slots.len() - 1;
        let mut at = key.hash(self.seeds) as usize & mask;
        for _ in 0..MAX_PROBES {
            let slot = self.slots.get_mut(at)?;
            if slot.entry == 0 {
                return self.insert(at, key, s, dictionary, rows);
            }
            let code = slot.entry - 1;
            if slot.key == key && (key.len <= EXACT_KEY || entry(dictionary, &self.starts, code) == s) {
                self.last = key;
                self.last_code = code as u16;
                return Some(code as u16);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn insert(&mut self, at: usize, key: Key, s: &[u8], dictionary: &mut Strings, rows: usize) -> Option<u16> {
        let distinct = dictionary.len();
        if distinct >= FEW && distinct >= rows / 4 {
            return None;
        }
        let code = u16::try_from(distinct).ok()?;
        let start = u32::try_from(dictionary.bytes.len()).ok()?;
        self.slots.get_mut(at)?.key = key;
        self.slots.get_mut(at)?.entry = u32::from(code) + 1;
        self.starts.push(start);
        dictionary.push(s);
        self.last = key;
        self.last_code = code;
        if self.starts.len() * 2 > self.slots.len() {
            self.double()?;
        }
        Some(code)
    }

    fn double(&mut self) -> Option<()> {
        let mut slots = vec![Slot::default(); self.slots.len() * 2];
        let mask = slots.len() - 1;
        for old in self.slots.iter().filter(|s| s.entry != 0) {
            let mut at = old.key.hash(self.seeds) as usize & mask;
            let mut probes = 0;
            while slots.get(at)?.entry != 0 {
                at = (at + 1) & mask;
                probes += 1;
                if probes == MAX_PROBES {
                    return None;
                }
            }
            *slots.get_mut(at)? = *old;
        }
        self.slots = slots;
        Some(())
    }
}

fn entry<'a>(dictionary: &'a Strings, starts: &[u32], code: u32) -> &'a [u8] {
    let from = starts.get(code as usize).copied().unwrap_or(u32::MAX) as usize;
    let len = dictionary.lengths.get(code as usize).copied().unwrap_or(0) as usize;
    dictionary.bytes.get(from..from + len).unwrap_or_default()
}

/// The strings of one column, row by row.
pub struct StringBuilder {
    /// None once the dictionary has been given up: `strings` then holds a string a row.
    index: Option<Index>,
    codes: Vec<u16>,
    strings: Strings,
    expected_rows: usize,
    /// Bytes of the texts that came one by one: no more than the request has.
    direct: usize,
    /// Bytes that rows of a repeated text take beside them, when each row has its own copy.
    repeated: usize,
}

/// Repeated text that is always affordable.
const FREE: usize = 64 << 10;
/// Repeated text that is affordable for each byte that came by itself.
const REPEATS: usize = 4;

impl StringBuilder {
    /// `expected_rows` only tunes; 0 when not known.
    pub fn new(expected_rows: usize) -> Self {
        Self {
            index: Some(Index::new(expected_rows)),
            codes: Vec::with_capacity(expected_rows.min(1 << 20)),
            strings: Strings::default(),
            expected_rows,
            direct: 0,
            repeated: 0,
        }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        if self.index.is_some() { self.codes.len() } else { self.strings.len() }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row may have its own copy of its text. A dictionary of which one text stands for a million rows must not be given up for a
    /// number of distinct texts: it would become a million copies.
    fn affordable(&self) -> bool {
        self.repeated <= self.direct.saturating_mul(REPEATS).saturating_add(FREE)
    }

    /// A row of `s`; false when that would make too many copies of repeated texts.
    #[inline]
    #[must_use]
    pub fn push(&mut self, s: &[u8]) -> bool {
        self.push_front_of(s, s.len())
    }

    /// `rows` rows of `s`, at the cost of one while there is a dictionary; false when that would make too many copies of it.
    #[must_use]
    pub fn push_repeated(&mut self, s: &[u8], rows: usize) -> bool {
        let Some(more) = rows.checked_sub(1) else { return true };
        if !self.push(s) {
            return false;
        }
        if self.index.is_some() {
            let code = self.codes.last().copied().unwrap_or(0);
            self.codes.resize(self.codes.len() + more, code);
            self.repeated = self.repeated.saturating_add(s.len().saturating_mul(more));
            return true;
        }
        self.repeated = self.repeated.saturating_add(s.len().saturating_mul(more));
        if self.affordable() {
            (0..more).for_each(|_| self.strings.push(s));
        }
        self.affordable()
    }

    /// A row of the first `len` bytes of `text`; nothing is added, and false returned, when `text` is shorter or that would make
    /// too many copies of repeated texts. Longer text makes this faster.
    #[inline(always)]
    pub fn push_front_of(&mut self, text: &[u8], len: usize) -> bool {
        let Some(s) = text.get(..len) else { return false };
        self.direct = self.direct.saturating_add(len);
        let affordable = self.affordable();
        if let Some(index) = &mut self.index {
            let rows = if affordable { self.expected_rows.max(self.codes.len()) } else { usize::MAX };
            if let Some(code) = index.code(Key::of(text, len), s, &mut self.strings, rows) {
                self.codes.push(code);
                if self.codes.len() == JUDGED_AT && self.strings.len() > JUDGED_AT / 16 * 15 && affordable {
                    self.give_up();
                }
                return true;
            }
            if !affordable {
                return false;
            }
            self.give_up();
        }
        self.strings.push(s);
        true
    }

    /// `rows` NULL rows, held as empty strings: giving the dictionary up then never repeats a text that no row had.
    pub fn push_nulls(&mut self, rows: usize) {
        if rows == 0 {
            return;
        }
        if !self.push(b"") {
            // A dictionary that is full and that cannot be given up: NULL rows may have any code.
            self.codes.push(0);
        }
        if self.index.is_some() {
            let code = self.codes.last().copied().unwrap_or(0);
            self.codes.resize(self.codes.len() + rows - 1, code);
        } else {
            self.strings.lengths.resize(self.strings.lengths.len() + rows - 1, 0);
        }
    }

    /// The plain form from here on.
    #[cold]
    fn give_up(&mut self) {
        let Some(index) = self.index.take() else { return };
        let dictionary = std::mem::take(&mut self.strings);
        let rows = self.expected_rows.max(self.codes.len());
        let mean = dictionary.bytes.len() / dictionary.len().max(1) + 1;
        let plain = &mut self.strings;
        plain.lengths.reserve(rows.min(1 << 20));
        plain.bytes.reserve(rows.min(1 << 20).saturating_mul(mean).min(16 << 20));
        for code in self.codes.drain(..) {
            plain.push(entry(&dictionary, &index.starts, u32::from(code)));
        }
    }

    /// True when every string is UTF-8.
    pub fn is_utf8(&self) -> bool {
        let Ok(whole) = simdutf8::basic::from_utf8(&self.strings.bytes) else { return false };
        if whole.is_ascii() {
            return true;
        }
        let mut end = 0usize;
        self.strings.lengths.iter().all(|len| {
            end += *len as usize;
            whole.is_char_boundary(end)
        })
    }

    /// The column: a dictionary where it at least halves the number of strings.
    pub fn finish(mut self) -> Values {
        if self.strings.len() * 2 > self.codes.len() && self.affordable() {
            self.give_up();
        }
        match self.index {
            Some(_) => Values::Utf8Dict { codes: self.codes, dictionary: self.strings },
            None => Values::Utf8(self.strings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &Values) -> Vec<Vec<u8>> {
        match values {
            Values::Utf8(s) => s.iter().map(<[u8]>::to_vec).collect(),
            Values::Utf8Dict { codes, dictionary } => {
                let all: Vec<_> = dictionary.iter().map(<[u8]>::to_vec).collect();
                assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len(), "entries are distinct");
                codes.iter().map(|c| all[*c as usize].clone()).collect()
            }
            _ => unreachable!(),
        }
    }

    fn check(data: &[String], expected: usize, dictionary: bool) {
        let mut b = StringBuilder::new(expected);
        for s in data {
            assert!(b.push(s.as_bytes()));
        }
        assert_eq!(b.len(), data.len());
        assert!(b.is_utf8());
        let v = b.finish();
        assert_eq!(matches!(v, Values::Utf8Dict { .. }), dictionary, "{} rows", data.len());
        assert!(rows(&v).iter().eq(data.iter().map(String::as_bytes)));
    }

    #[test]
    fn dictionaries_are_kept_while_they_pay() {
        for expected in [0, 1000, 10_000] {
            check(&(0..1000).map(|i| format!("r{}", i % 3)).collect::<Vec<_>>(), expected, true);
            check(&(0..1000).map(|i| format!("host-with-a-long-name-{}", i % 250)).collect::<Vec<_>>(), expected, true);
            check(&(0..1000).map(|i| format!("unique{i}")).collect::<Vec<_>>(), expected, false);
            check(&(0..20_000).map(|i| format!("unique{i}")).collect::<Vec<_>>(), expected, false);
        }
        check(&(0..10_000).map(|i| format!("{}", i % 900)).collect::<Vec<_>>(), 10_000, true);
        check(&[], 0, true);
        check(&["a".to_string()], 1, false);
    }

    #[test]
    fn strings_that_differ_in_one_place_are_told_apart() {
        for len in 0..40usize {
            let mut all = vec!["x".repeat(len)];
            all.extend((0..len).map(|i| format!("{}y{}", "x".repeat(i), "x".repeat(len - i - 1))));
            let twice: Vec<_> = all.iter().chain(&all).chain(&all).cloned().collect();
            check(&twice, 0, true);
        }
        let short: Vec<_> = ["", "\0", "\0\0", "a", "aa", "\0a", "", "\0", "\0\0", "a", "aa", "\0a"].map(String::from).into();
        check(&short, 0, true);
    }

    #[test]
    fn null_rows_are_empty_and_never_repeat_a_long_text() {
        let mut b = StringBuilder::new(0);
        assert!(b.push("long".repeat(1000).as_bytes()));
        b.push_nulls(2000);
        (0..2000).for_each(|i| assert!(b.push(format!("{i}").as_bytes())));
        assert_eq!(b.len(), 4001);
        let v = b.finish();
        assert!(rows(&v)[1..2001].iter().all(Vec::is_empty));
        let Values::Utf8(s) = v else { panic!("a dictionary of 2000 does not pay") };
        assert!(s.bytes.capacity() < 1 << 20);
    }

    #[test]
    fn half_characters_are_not_utf8() {
        let mut b = StringBuilder::new(0);
        assert!(b.push(&[0xc3]) && b.push(&[0xa9]));
        assert!(!b.is_utf8());
    }

    /// One text for many rows, then more texts than a dictionary holds: each row would get a copy of the long one.
    #[test]
    fn a_dictionary_is_not_given_up_for_copies_of_a_repeated_text() {
        let fill = |long: usize| {
            let mut b = StringBuilder::new(0);
            assert!(b.push_repeated("x".repeat(long).as_bytes(), 1000));
            assert!(b.push_repeated(b"", 0));
            let pushed = (0..70_000).take_while(|i| b.push(format!("{i}").as_bytes())).count();
            (pushed, b)
        };
        let (pushed, mut b) = fill(10_000);
        assert_eq!(pushed, 65_535, "a code more than there are");
        assert!(b.strings.bytes.len() < 1 << 20);
        b.push_nulls(3);
        assert_eq!(b.len(), 1000 + 65_535 + 3);
        let (pushed, b) = fill(60);
        assert_eq!((pushed, b.len()), (70_000, 71_000));
        assert!(rows(&b.finish())[..1000].iter().all(|r| r.len() == 60));
    }

    #[test]
    fn repeated_rows_without_a_dictionary_count_each() {
        let mut b = StringBuilder::new(0);
        (0..2000).for_each(|i| assert!(b.push(format!("{i}").as_bytes())));
        assert!(b.index.is_none());
        assert!(b.push_repeated(b"few", 2000) && b.len() == 4000);
        assert!(!b.push_repeated(&[b'x'; 1000], 2000));
        assert!(b.strings.bytes.len() <= 100 << 10);
    }

    #[test]
    fn few_rows_of_a_long_text_are_held_once() {
        let mut b = StringBuilder::new(0);
        assert!(b.push_repeated("x".repeat(10_000).as_bytes(), 499));
        (0..501).for_each(|i| assert!(b.push(format!("{i}").as_bytes())));
        let v = b.finish();
        assert!(matches!(v, Values::Utf8Dict { .. }));
        assert_eq!(rows(&v)[999], b"500");
    }
}
