//! Memory of a build, counted by the allocator: whatever the rows are, it stays below the bound that `docs/memory.md` states.
//!
//! A binary of its own, because the counting allocator counts everything that its process does.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_ingest::batch::{Bits, Column, Strings, TableBatch, ValidBatch, Values};
use arc_ingest::compact::{self, Codecs, OutputSpec, Payloads, SchemaColumn, SliceRef, WriterSettings};
use arc_ingest::format::payload::encode;
use arc_ingest::types::ColumnType;
use proptest::prelude::*;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    MOST.fetch_max(NOW.fetch_add(by, Relaxed) + by, Relaxed);
}

// SAFETY: every call is handed to the system's allocator as it came; only numbers are kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        grown(l.size());
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        NOW.fetch_sub(l.size(), Relaxed);
        unsafe { System.dealloc(p, l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        // Large blocks are moved by the kernel, page by page: old and new are not there at one time.
        NOW.fetch_sub(l.size(), Relaxed);
        grown(n);
        unsafe { System.realloc(p, l, n) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROW_GROUP: usize = 1 << 20;
/// What a build takes beside its values: buffers of the file and the page, descriptions of columns. The compressor's memory is not Rust's.
const FIXED: usize = 6 << 20;

/// How the values of a column of a slice are made.
#[derive(Clone, Copy, Debug)]
enum Text {
    Absent,
    /// All NULL.
    Null,
    /// `length` bytes each, distinct.
    Distinct(usize),
    /// A few entries of `length` bytes, as a dictionary of the request or not.
    Repeated(usize, bool),
    /// One of `length` bytes among short distinct ones, every third NULL.
    OneLong(usize),
}

#[derive(Clone, Debug)]
struct Slice {
    rows: usize,
    /// Times in descending order: rows have to be sorted.
    backwards: bool,
    texts: [Text; 3],
    number: bool,
}

fn value(k: usize, i: usize, length: usize) -> Vec<u8> {
    let mut v = format!("{k}-{i}-").into_bytes();
    v.resize(length.max(v.len()), b'x');
    v
}

fn column(k: usize, name: &str, rows: usize, text: Text) -> Option<Column> {
    let mut strings = Strings::default();
    let mut validity = None;
    let values = match text {
        Text::Absent => return None,
        Text::Null => {
            (0..rows).for_each(|_| strings.push(b""));
            let mut b = Bits::default();
            (0..rows).for_each(|_| b.push(false));
            validity = Some(b);
            Values::Utf8(strings)
        }
        Text::Distinct(length) => {
            (0..rows).for_each(|i| strings.push(&value(k, i, length)));
            Values::Utf8(strings)
        }
        Text::Repeated(length, true) => {
            (0..3).for_each(|i| strings.push(&value(k, i, length)));
            Values::Utf8Dict { codes: (0..rows).map(|i| (i % 3) as u16).collect(), dictionary: strings }
        }
        Text::Repeated(length, false) => {
            (0..rows).for_each(|i| strings.push(&value(k, i % 3, length)));
            Values::Utf8(strings)
        }
        Text::OneLong(length) => {
            let mut b = Bits::default();
            for i in 0..rows {
                b.push(i % 3 != 1);
                strings.push(&if i == rows / 2 {
                    value(k, i, length)
                } else if i % 3 == 1 {
                    Vec::new()
                } else {
                    value(k, i, 0)
                });
            }
            validity = Some(b).filter(|_| rows > 1);
            Values::Utf8(strings)
        }
    };
    Some(Column { name: name.into(), tag: false, values, validity, defines: false })
}

struct Log(Vec<Vec<u8>>);

impl Payloads for Log {
    fn payload(&self, s: &SliceRef) -> &[u8] {
        &self.0[s.segment as usize]
    }
}

fn log(slices: &[Slice]) -> (Log, Vec<SliceRef>) {
    let mut log = Log(Vec::new());
    let mut refs = Vec::new();
    for (k, s) in slices.iter().enumerate() {
        let mut time: Vec<i64> = (0..s.rows as i64).collect();
        if s.backwards {
            time.reverse();
        }
        let mut columns: Vec<Column> = ["a", "b", "c"].iter().zip(s.texts).filter_map(|(n, t)| column(k, n, s.rows, t)).collect();
        if s.number {
            let values = Values::Int64(time.clone());
            columns.push(Column { name: "n".into(), tag: false, values, validity: None, defines: false });
        }
        let batch = ValidBatch::new("db".into(), vec![TableBatch { table: "t".into(), time, columns }]).unwrap();
        let e = encode(&batch, None, false, 0, 1 << 30).unwrap();
        log.0.push(e.payload().to_vec());
        refs.push(SliceRef::new(k as u64 + 1, k as u32, 0, e.payload_len(), 0, s.rows as u32, true));
    }
    (log, refs)
}

fn spec(codec: Codecs, columns: Vec<SchemaColumn>) -> OutputSpec {
    OutputSpec {
        database: "db".into(),
        table: "t".into(),
        hour: 0,
        layout: compact::Layout::Hive,
        columns,
        settings: WriterSettings {
            compression: codec,
            encodings: compact::Encodings::Compatible,
            row_group_rows: 1 << 20,
            row_group_bytes: ROW_GROUP,
        },
        metadata: Vec::new(),
    }
}

fn columns() -> Vec<SchemaColumn> {
    let column = |name: &str, ty| SchemaColumn { name: name.into(), ty, tag: false };
    let text = ColumnType::Utf8;
    vec![column("a", text), column("b", text), column("c", text), column("n", ColumnType::Int64)]
}

/// The most bytes that the build had allocated at one time, and the rows it wrote.
fn peak(spec: &OutputSpec, log: &Log, slices: &[SliceRef]) -> (usize, u64) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let built = compact::build(spec, slices, log, &[], &mut io::sink()).unwrap();
    assert_eq!(built.set_aside, []);
    (MOST.load(Relaxed) - before, built.rows)
}

fn bound(slices: &[SliceRef]) -> usize {
    let longest = slices.iter().map(|s| s.len as usize).max().unwrap_or(0);
    4 * ROW_GROUP.max(longest) + FIXED
}

fn check(slices: &[Slice], codec: Codecs) -> Result<(), TestCaseError> {
    let (log, refs) = log(slices);
    let (peak, rows) = peak(&spec(codec, columns()), &log, &refs);
    prop_assert_eq!(rows, slices.iter().map(|s| s.rows as u64).sum::<u64>());
    prop_assert!(peak <= bound(&refs), "{} bytes, bound {}: {:?}", peak, bound(&refs), slices);
    Ok(())
}

fn a_text() -> impl Strategy<Value = Text> {
    let length = prop_oneof![3 => 0usize..40, 2 => 100usize..3000, 1 => 20_000usize..400_000];
    prop_oneof![
        1 => Just(Text::Absent),
        2 => Just(Text::Null),
        3 => length.clone().prop_map(Text::Distinct),
        3 => (length.clone(), any::<bool>()).prop_map(|(n, d)| Text::Repeated(n, d)),
        3 => length.prop_map(Text::OneLong),
    ]
}

fn a_slice() -> impl Strategy<Value = Slice> {
    let rows = prop_oneof![2 => Just(1usize), 3 => 2usize..300, 2 => 4000usize..9000];
    (rows, any::<bool>(), [a_text(), a_text(), a_text()], any::<bool>()).prop_map(|(rows, backwards, mut texts, number)| {
        // A request is at most some megabytes here.
        for t in &mut texts {
            if let Text::Distinct(n) | Text::Repeated(n, false) = t {
                *n = (*n).min((1 << 20) / rows);
            }
        }
        Slice { rows, backwards, texts, number }
    })
}

// One test for all of them: what runs beside it would be counted too.
#[test]
fn a_build_takes_no_more_memory_than_stated() {
    let one = |rows, text| Slice { rows, backwards: false, texts: [text, Text::Absent, Text::Absent], number: false };
    let codecs = [Codecs::Zstd(1), Codecs::None, Codecs::Snappy, Codecs::Lz4];
    // Found from outside: a long first value, 8,000 NULLs, 8,193 distinct short ones.
    for length in [100_000, 2_000_000] {
        let slices = [one(1, Text::Distinct(length)), one(8000, Text::Null), one(8193, Text::Distinct(6))];
        codecs.iter().for_each(|c| check(&slices, *c).unwrap());
    }
    // Long values without NULLs, and one at the end after many NULLs.
    let long: Vec<Slice> = (0..16).map(|_| one(48, Text::Distinct(25_000))).collect();
    codecs.iter().for_each(|c| check(&long, *c).unwrap());
    check(&[one(9000, Text::Distinct(5)), one(50_000, Text::Null), one(1, Text::Distinct(900_000))], Codecs::None).unwrap();
    // Few long values, repeated, after distinct ones.
    check(
        &[one(9000, Text::Distinct(5)), one(9000, Text::Repeated(200_000, true)), one(9000, Text::Repeated(200_000, true))],
        Codecs::None,
    )
    .unwrap();
    // Empty strings: a length each and nothing else.
    check(&[one(400_000, Text::Repeated(0, false))], Codecs::None).unwrap();
    let cases = std::env::var("ARC_MEMORY_CASES").map_or(40, |v| v.parse().unwrap());
    let config = ProptestConfig { cases, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(slices in prop::collection::vec(a_slice(), 1..8), codec in prop::sample::select(codecs.to_vec()))| {
        check(&slices, codec)?;
    });
    many_columns();
}

/// A thousand string columns of which each row has one: what a column takes beside its values, and the footer.
fn many_columns() {
    let names: Vec<String> = (0..1000).map(|i| format!("column_{i:04}")).collect();
    let mut log = Log(Vec::new());
    let mut refs = Vec::new();
    for k in 0..3000usize {
        let c = column(k, &names[k % 1000], 1, Text::Distinct(if k % 100 == 0 { 50_000 } else { 20 })).unwrap();
        let table = TableBatch { table: "t".into(), time: vec![k as i64], columns: vec![c] };
        let e = encode(&ValidBatch::new("db".into(), vec![table]).unwrap(), None, false, 0, 1 << 30).unwrap();
        log.0.push(e.payload().to_vec());
        refs.push(SliceRef::new(k as u64 + 1, k as u32, 0, e.payload_len(), 0, 1, true));
    }
    let columns: Vec<SchemaColumn> = names.iter().map(|n| SchemaColumn { name: n.clone(), ty: ColumnType::Utf8, tag: false }).collect();
    let (peak, rows) = peak(&spec(Codecs::Zstd(1), columns), &log, &refs);
    assert_eq!(rows, 3000);
    // 16 row groups; a column chunk is described by about a kilobyte in the footer.
    let footer = 20 * 1000 * 1024;
    assert!(peak <= 4 * ROW_GROUP + FIXED + 1000 * 4096 + footer, "{peak} bytes");
}
