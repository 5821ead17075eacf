//! What is encoded is read back, alone and out of a segment.

use arbitrary::Unstructured;
use arc_ingest::format::payload::{EncodedRecord, PayloadView, encode};
use arc_ingest::format::record::{RecordHeader, RecordKind, pad_len, put_pad};
use arc_ingest::format::scan::{Known, Scanner, judge};
use arc_ingest::limits::{FILE_HEADER_BYTES, MAX_PAYLOAD};

use super::build::{batch, flag, key, one_in, upto};
use super::{parquet_rows, rows};

pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let salt = u.arbitrary().unwrap_or(9);
    let first: u64 = 1 + upto(u, 1000) as u64;
    let mut file = vec![0u8; FILE_HEADER_BYTES];
    let mut made: Vec<EncodedRecord> = Vec::new();
    let mut sequence = first - 1;
    loop {
        let floor = sequence;
        for _ in 0..=upto(u, 2) {
            sequence += 1;
            let record = one(u);
            append(&mut file, record, sequence, floor, salt, &mut made);
        }
        let at = file.len() as u64;
        put_pad(&mut file, pad_len(at), at, salt, sequence, floor, 0);
        if made.len() > 6 || u.is_empty() {
            break;
        }
    }
    let found: Vec<_> = Scanner::new(&file, salt, FILE_HEADER_BYTES as u64, file.len() as u64).collect();
    let v = judge(Known { first_sequence: first, declared: None, floor: 0 }, &found);
    assert!(v.findings.is_empty(), "{:?}", v.findings);
    assert_eq!((v.last_sequence, v.end), (sequence, file.len() as u64));
    let writes: Vec<&RecordHeader> = v.records.iter().filter(|r| r.kind == RecordKind::Write).collect();
    assert_eq!(writes.len(), made.len());
    for ((h, e), n) in writes.into_iter().zip(&made).zip(first..) {
        assert_eq!((h.sequence, h.receive_time_us), (n, e.receive_time_us()));
        assert_eq!(Scanner::payload(&file, h), e.payload());
    }
}

fn append(file: &mut Vec<u8>, mut record: EncodedRecord, sequence: u64, floor: u64, salt: u64, made: &mut Vec<EncodedRecord>) {
    let header = RecordHeader {
        kind: RecordKind::Write,
        payload_len: record.payload_len(),
        payload_crc: record.payload_crc(),
        salt,
        offset: file.len() as u64,
        sequence,
        durable_floor: floor,
        receive_time_us: record.receive_time_us(),
    };
    record.header_room().unwrap().copy_from_slice(&header.encode());
    file.extend_from_slice(record.bytes());
    made.push(record);
}

fn one(u: &mut Unstructured<'_>) -> EncodedRecord {
    let batch = batch(u);
    let key = key(u);
    let (new_tables, receive_time) = (flag(u), u.arbitrary().unwrap_or(0));
    let e = encode(&batch, key, new_tables, receive_time, MAX_PAYLOAD).unwrap();
    assert!(encode(&batch, key, new_tables, receive_time, e.payload().len() - 1).is_err());
    let v = PayloadView::parse(e.payload()).unwrap();
    assert_eq!(&v.index, e.index());
    assert_eq!(v.index.key, key);
    assert_eq!(v.index.rows(), batch.rows() as u64);
    let back = v.to_batch().unwrap();
    assert_eq!(back.database(), batch.database());
    rows::assert_same(back.tables(), batch.tables());
    let again = encode(&back, key, new_tables, receive_time, MAX_PAYLOAD).unwrap();
    assert_eq!(again.bytes(), e.bytes());
    if one_in(u, 4) {
        parquet_rows::assert_ships(e.payload(), batch.tables(), u.arbitrary().unwrap_or(0));
    }
    e
}
