//! Holds `wal-format.md` against the code: the example is parsed, the tables are compared with the constants.

use super::bytes::Reader;
use super::file_header::*;
use super::manifest::{Entry, PlanInput};
use super::payload::*;
use super::record::*;
use super::scan::{Found, Known, Label, Scanner, judge};
use crate::batch::{Bits, Column, Strings, TableBatch, ValidBatch, Values};
use crate::limits::*;
use crate::types::{ColumnType, LogId};

const PAGE: &str = include_str!("../../wal-format.md");
const SALT: u64 = 0x1122_3344_5566_7788;
const RECEIVED: i64 = 1_767_225_600_500_000;

/// The file that the page dumps: header, one write record, pad, mark, pad.
fn example() -> Vec<u8> {
    let header = FileHeader {
        kind: FileKind::Segment,
        minor: FORMAT_MINOR,
        compatible: 0,
        incompatible: 0,
        log: LogId(*b"\x8f\x14\xe4\x5f\xce\xea\x46\x7f\xa0\x9c\x3c\x1d\x5b\x7a\x90\x02"),
        id: 3,
        first_sequence: 42,
        salt: SALT,
        epoch: 2,
        file_len: 16384,
        predecessor: Some(DeclaredEnd { id: 2, salt: 0x0102_0304_0506_0708, end: 12288, last_sequence: 41 }),
    };
    let mut words = Strings::default();
    ["a", "b"].iter().for_each(|s| words.push(s.as_bytes()));
    let mut valid = Bits::filled(3, true);
    valid.set(1, false);
    let t = TableBatch {
        table: "cpu".into(),
        time: vec![1_767_225_600_000_000, 1_767_225_600_000_010, 1_767_229_200_000_000],
        columns: vec![
            Column {
                name: "host".into(),
                tag: true,
                values: Values::Utf8Dict { codes: vec![0, 1, 0], dictionary: words },
                validity: None,
                defines: true,
            },
            Column { name: "load".into(), tag: false, values: Values::Float64(vec![0.5, 0.0, 1.0]), validity: Some(valid), defines: true },
            Column { name: "n".into(), tag: false, values: Values::Int64(vec![-3, 7, 300]), validity: None, defines: true },
        ],
    };
    let batch = ValidBatch::new("db".into(), vec![t]).unwrap();
    let key = KeyEntry { id: [0xaa; 16], body: [0xbb; 32], running_ms: 1500, status: 204 };
    let mut r = encode(&batch, Some(key), false, RECEIVED, 1 << 20).unwrap();
    let mut file = header.encode_file();
    let head = |kind, payload_len, payload_crc, offset: usize, floor, time| RecordHeader {
        kind,
        payload_len,
        payload_crc,
        salt: SALT,
        offset: offset as u64,
        sequence: 42,
        durable_floor: floor,
        receive_time_us: time,
    };
    let h = head(RecordKind::Write, r.payload_len(), r.payload_crc(), file.len(), 41, RECEIVED).encode();
    r.header_room().unwrap().copy_from_slice(&h);
    file.extend_from_slice(r.bytes());
    let at = file.len() as u64;
    put_pad(&mut file, pad_len(at), at, SALT, 42, 41, RECEIVED + 100);
    let mark = head(RecordKind::Mark, 0, crc32fast::hash(&[]), file.len(), 42, RECEIVED + 50_000).encode();
    file.extend_from_slice(&mark);
    let at = file.len() as u64;
    put_pad(&mut file, pad_len(at), at, SALT, 42, 42, RECEIVED + 50_000);
    file
}

/// `hexdump -C` with runs of equal lines as `*`.
fn dump(b: &[u8]) -> String {
    let mut out = String::new();
    let mut last: Option<&[u8]> = None;
    let mut star = false;
    for (i, line) in b.chunks(16).enumerate() {
        if last == Some(line) {
            if !star {
                out.push_str("*\n");
            }
            star = true;
            continue;
        }
        (last, star) = (Some(line), false);
        let hex: Vec<String> = line.iter().map(|x| format!("{x:02x}")).collect();
        let text: String = line.iter().map(|x| if (0x20..0x7f).contains(x) { *x as char } else { '.' }).collect();
        out.push_str(&format!("{:08x}  {}  {}  |{text}|\n", i * 16, hex[..8].join(" "), hex[8..].join(" ")));
    }
    out.push_str(&format!("{:08x}\n", b.len()));
    out
}

/// The bytes of the page's dump.
fn undump() -> Vec<u8> {
    let text = PAGE.split("```hexdump\n").nth(1).expect("a block ```hexdump").split("```").next().unwrap();
    let mut out: Vec<u8> = Vec::new();
    let mut line = [0u8; 16];
    for l in text.lines().filter(|l| *l != "*") {
        let at = usize::from_str_radix(&l[..8], 16).unwrap();
        while out.len() < at {
            out.extend_from_slice(&line);
        }
        assert_eq!(out.len(), at, "{l}");
        let bytes: Vec<u8> = l[8..].split('|').next().unwrap().split_whitespace().map(|x| u8::from_str_radix(x, 16).unwrap()).collect();
        if !bytes.is_empty() {
            line = bytes.try_into().unwrap();
            out.extend_from_slice(&line);
        }
    }
    out
}

/// The cells of every table row under the heading `title`, up to the next heading, without the tables' heads.
fn rows(title: &str) -> Vec<Vec<String>> {
    let mut lines = PAGE.lines().skip_while(|l| !(l.starts_with('#') && l.trim_start_matches('#').trim() == title));
    lines.next().unwrap_or_else(|| panic!("no heading {title:?}"));
    let table: Vec<&str> = lines.take_while(|l| !l.starts_with('#')).filter(|l| l.starts_with('|')).collect();
    let heads: Vec<usize> = table.iter().enumerate().filter(|(_, l)| l.starts_with("|-")).flat_map(|(i, _)| [i - 1, i]).collect();
    let rows = table.iter().enumerate().filter(|(i, _)| !heads.contains(i));
    rows.map(|(_, l)| l.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned()).collect()).collect()
}

/// The value in the row of `title` whose first cell is `name`.
fn value(title: &str, name: &str) -> String {
    let found = rows(title).into_iter().find(|r| r[0] == name);
    found.unwrap_or_else(|| panic!("no row {name:?} under {title:?}"))[1].clone()
}

fn number(title: &str, name: &str) -> u64 {
    let v = value(title, name).replace(',', "");
    v.parse().unwrap_or_else(|_| panic!("{title}, {name}: {v:?} is no number"))
}

#[test]
#[ignore = "prints the dump for the page: cargo test --lib print_the_example -- --ignored --nocapture"]
fn print_the_example() {
    println!("{}", dump(&example()));
}

#[test]
fn the_dump_of_the_page_is_the_example_and_parses_to_what_the_page_says() {
    let file = undump();
    assert!(file == example(), "the page's dump is not what the library writes:\n{}", dump(&example()));

    let said = |name: &str| value("What the example says", name);
    let (h, bad) = FileHeader::parse_file(&file[..FILE_HEADER_BYTES], FileKind::Segment).unwrap();
    assert_eq!(bad, [None, None]);
    assert_eq!(said("log"), h.log.to_string());
    assert_eq!(said("id"), h.id.to_string());
    assert_eq!(said("first sequence"), h.first_sequence.to_string());
    assert_eq!(said("salt"), format!("{:016x}", h.salt));
    assert_eq!(said("epoch"), h.epoch.to_string());
    assert_eq!(said("file length"), h.file_len.to_string());
    let p = h.predecessor.unwrap();
    assert_eq!(said("predecessor"), format!("segment {}, salt {:016x}, end {}, last sequence {}", p.id, p.salt, p.end, p.last_sequence));

    let found: Vec<Found> = Scanner::new(&file, h.salt, FILE_HEADER_BYTES as u64, file.len() as u64).collect();
    let v = judge(Known { first_sequence: h.first_sequence, declared: None, floor: 0 }, &found);
    assert!(v.findings.is_empty());
    let kinds: Vec<String> = v.records.iter().map(|r| format!("{} at {}", r.kind.name(), r.offset)).collect();
    assert_eq!(said("records"), kinds.join(", "));
    assert_eq!(said("F"), v.floor.to_string());
    let w = &v.records[0];
    assert_eq!(said("payload"), format!("{} bytes, CRC {:08x}", w.payload_len, w.payload_crc));
    assert_eq!(said("receive time"), w.receive_time_us.to_string());

    let view = PayloadView::parse(Scanner::payload(&file, w)).unwrap();
    let k = view.index.key.unwrap();
    assert_eq!(said("key"), format!("id {:02x} x 16, body {:02x} x 32, status {}, {} ms", k.id[0], k.body[0], k.status, k.running_ms));
    assert_eq!(said("database, table, rows"), format!("{}, {}, {}", view.index.database, view.index.tables[0].table, view.index.rows()));
    assert_eq!(said("hours"), format!("{:?}", view.index.tables[0].hours));
    let b = view.to_batch().unwrap();
    let t = &b.tables()[0];
    assert_eq!(said("time"), format!("{:?}", t.time));
    let columns: Vec<String> = t.columns.iter().map(|c| format!("{} {}", c.name, c.values.column_type().unwrap())).collect();
    assert_eq!(said("columns"), columns.join(", "));
    let Values::Int64(n) = &t.columns[2].values else { panic!() };
    assert_eq!(said("n"), format!("{n:?}"));
}

/// Offset and size of every row of a table of fields follow from each other and end at `len`.
fn fields(title: &str, len: u64) -> Vec<(u64, u64, String)> {
    let mut at = 0;
    let mut out = Vec::new();
    for r in rows(title) {
        let (offset, size): (u64, u64) = (r[0].parse().unwrap(), r[1].parse().unwrap());
        assert_eq!(offset, at, "{title}: {}", r[2]);
        at += size;
        out.push((offset, size, r[2].clone()));
    }
    assert_eq!(at, len, "{title}");
    out
}

#[test]
fn the_fields_of_headers_stand_where_the_page_says() {
    let file = example();
    let at = |f: &[(u64, u64, String)], base: usize, name: &str| -> u64 {
        let (o, n, _) = f.iter().find(|x| x.2 == name).unwrap_or_else(|| panic!("no field {name}"));
        let b = &file[base + *o as usize..base + (*o + *n) as usize];
        b.iter().rev().fold(0, |v, x| (v << 8) | u64::from(*x))
    };
    let f = fields("File header", HEADER_LEN as u64);
    let expect = [
        ("magic", u64::from_le_bytes(SEGMENT_MAGIC)),
        ("format major", u64::from(FORMAT_MAJOR)),
        ("format minor", u64::from(FORMAT_MINOR)),
        ("header length", HEADER_LEN as u64),
        ("compatible features", 0),
        ("incompatible features", 0),
        ("id", 3),
        ("first sequence", 42),
        ("salt", SALT),
        ("epoch", 2),
        ("file length", 16384),
        ("predecessor id", 2),
        ("predecessor salt", 0x0102_0304_0506_0708),
        ("predecessor end", 12288),
        ("predecessor last sequence", 41),
        ("CRC", u64::from(crc32fast::hash(&file[..HEADER_LEN - 4]))),
    ];
    for copy in [0, BLOCK] {
        for (name, v) in expect {
            assert_eq!(at(&f, copy, name), v, "{name}");
        }
    }
    let f = fields("Record header", RECORD_HEADER_BYTES as u64);
    let rec = FILE_HEADER_BYTES;
    let h = RecordHeader::parse(&file[rec..]).unwrap();
    let expect = [
        ("magic", u64::from(RECORD_MAGIC)),
        ("kind", RecordKind::Write as u64),
        ("flags", 0),
        ("payload length", u64::from(h.payload_len)),
        ("payload CRC", u64::from(h.payload_crc)),
        ("salt", SALT),
        ("offset", rec as u64),
        ("sequence", 42),
        ("durable floor", 41),
        ("receive time", RECEIVED as u64),
        ("CRC", u64::from(crc32fast::hash(&file[rec..rec + RECORD_HEADER_BYTES - 4]))),
    ];
    for (name, v) in expect {
        assert_eq!(at(&f, rec, name), v, "{name}");
    }
}

#[test]
fn constants_are_those_of_the_page() {
    let hex = |b: &[u8]| b.iter().map(|x| format!("{x:02x}")).collect::<Vec<_>>().join(" ");
    assert_eq!(value("Constants", "segment magic"), hex(&SEGMENT_MAGIC));
    assert_eq!(value("Constants", "manifest magic"), hex(&MANIFEST_MAGIC));
    assert_eq!(value("Constants", "record magic"), hex(&RECORD_MAGIC.to_le_bytes()));
    assert_eq!(value("Constants", "format version"), format!("{FORMAT_MAJOR}.{FORMAT_MINOR}"));
    assert_eq!(number("Constants", "payload version"), u64::from(PAYLOAD_VERSION));
    assert_eq!(number("Constants", "known incompatible features"), KNOWN_INCOMPATIBLE);
    let bits = rows("Incompatible features").iter().map(|r| r[0].parse::<u64>().unwrap()).fold(0, |all, b| all | b);
    assert_eq!(bits, KNOWN_INCOMPATIBLE);

    let kinds: Vec<(u8, String)> = rows("Kinds of records").iter().map(|r| (r[0].parse().unwrap(), r[1].clone())).collect();
    let known: Vec<(u8, String)> = (0..=255).filter_map(|v| RecordKind::from_u8(v).map(|k| (v, k.name().to_owned()))).collect();
    assert_eq!(kinds, known);
    let types: Vec<(u8, String)> = rows("Column types").iter().map(|r| (r[0].parse().unwrap(), r[1].clone())).collect();
    let known: Vec<(u8, String)> = (0..=255).filter_map(|v| ColumnType::from_u8(v).map(|t| (v, t.name().to_owned()))).collect();
    assert_eq!(types, known);

    let flag = |title: &str| -> Vec<(u8, String)> { rows(title).iter().map(|r| (r[0].parse().unwrap(), r[1].clone())).collect() };
    assert_eq!(flag("Payload flags"), [(FLAG_KEY, "key".to_owned()), (FLAG_DELTA, "delta".to_owned())]);
    let columns = [(COLUMN_TAG, "tag"), (COLUMN_DEFINES, "defines"), (COLUMN_VALIDITY, "validity"), (COLUMN_DICTIONARY, "dictionary")];
    assert_eq!(flag("Column flags"), columns.map(|(b, n)| (b, n.to_owned())));

    let limits = [
        ("block", BLOCK),
        ("record alignment", RECORD_ALIGN),
        ("file header", FILE_HEADER_BYTES),
        ("record header", RECORD_HEADER_BYTES),
        ("payload", MAX_PAYLOAD),
        ("smallest data area", MIN_SEGMENT_DATA),
        ("largest wal.segment_size", MAX_SEGMENT_DATA),
        ("bytes of a group", MAX_GROUP_BYTES),
        ("records of a group", MAX_GROUP_RECORDS),
        ("table name", MAX_TABLE_NAME),
        ("table name, escaped", MAX_ESCAPED_TABLE),
        ("database name", MAX_DATABASE_NAME),
        ("column name", MAX_COLUMN_NAME),
        ("columns of a table", MAX_COLUMNS),
        ("tables of a request", MAX_TABLES_PER_REQUEST),
        ("rows of a table in a request", MAX_ROWS_PER_TABLE),
        ("Idempotency-Key", MAX_IDEMPOTENCY_KEY),
    ];
    for (name, v) in limits {
        assert_eq!(number("Limits", name), v as u64, "{name}");
    }
    assert_eq!(value("Limits", "earliest time"), MIN_TIME_US.to_string());
    assert_eq!(value("Limits", "latest time"), MAX_TIME_US.to_string());
}

#[test]
fn varints_of_the_page_are_read_as_it_says() {
    for r in rows("Integers of variable length") {
        let bytes: Vec<u8> = r[0].split(' ').map(|x| u8::from_str_radix(x, 16).unwrap()).collect();
        let mut reader = Reader::new(&bytes);
        match r[1].as_str() {
            "refused" => assert!(Reader::new(&bytes).varint("v").is_err(), "{r:?}"),
            v => {
                assert_eq!(reader.varint("v"), Ok(v.parse().unwrap()), "{r:?}");
                assert_eq!(Reader::new(&bytes).signed("v"), Ok(r[2].parse().unwrap()), "{r:?}");
            }
        }
    }
}

#[test]
fn entries_of_the_page_are_entries() {
    let mut seen = std::collections::BTreeSet::new();
    let block = PAGE.split("```jsonl\n").nth(1).expect("a block ```jsonl").split("```").next().unwrap();
    for l in block.lines() {
        let e = Entry::decode(l.as_bytes()).unwrap_or_else(|e| panic!("{e}: {l}"));
        let again: serde_json::Value = serde_json::from_slice(&e.encode().unwrap()).unwrap();
        let page: serde_json::Value = serde_json::from_str(l).unwrap();
        assert_eq!(again, page, "a field of the page is not one of the code, or one of the code is not in the page");
        seen.insert(page["entry"].as_str().unwrap().to_owned());
        if let Entry::Plan(p) = e {
            assert_eq!(p.inputs, [PlanInput { segment: 3, salt: SALT, end: 12288, first_sequence: 42, last_sequence: 42 }]);
        }
    }
    // What the code knows, from its own message about an entry that it does not know.
    let message = Entry::decode(br#"{"entry":"?"}"#).unwrap_err().to_string();
    let all: std::collections::BTreeSet<String> = message.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_eq!(seen, all, "{message}");
}

#[test]
fn every_row_of_the_decision_tables_names_a_test_that_exists() {
    let sources = [include_str!("scan.rs"), include_str!("../wal/tests.rs"), include_str!("../wal/decision_tests.rs")];
    let mut ids = std::collections::BTreeSet::new();
    for title in ["Places within a file", "Files"] {
        let rows = rows(title);
        assert!(!rows.is_empty());
        for r in rows {
            assert!(ids.insert(r[0].clone()), "{} stands twice", r[0]);
            let test = r.last().unwrap();
            assert!(sources.iter().any(|s| s.contains(&format!("fn {test}()"))), "{}: no test {test}", r[0]);
        }
    }
    let labels: std::collections::BTreeSet<String> = rows("Places within a file")
        .iter()
        .flat_map(|r| r[1].split(", ").map(|l| l.trim_matches('`').to_owned()).collect::<Vec<_>>())
        .collect();
    for l in [Label::Damaged, Label::DamagedPad, Label::Torn, Label::BehindTorn, Label::Repeated] {
        assert!(labels.contains(l.name()), "{} is in no row", l.name());
    }
}
