//! Finding and judging records: any bytes, bytes made to pass the CRCs, and damaged logs of which it is known what they held.

use arbitrary::Unstructured;
use arc_ingest::format::record::{RECORD_MAGIC, RecordHeader, RecordKind, pad_len, put_pad, record_len};
use arc_ingest::format::scan::{Found, Known, Label, Scanner, Verdict, judge};
use arc_ingest::limits::{FILE_HEADER_BYTES, RECORD_ALIGN, RECORD_HEADER_BYTES};

use super::build::{Damage, flag, one_in, upto};
use super::held;

const DATA: usize = FILE_HEADER_BYTES;

pub fn check(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 3 {
        0 => raw(rest),
        1 => passing(rest),
        _ => damaged(rest),
    }
}

/// The first bytes say salt and cut; the others are the file.
fn raw(data: &[u8]) {
    let Some((head, file)) = data.split_first_chunk::<10>() else { return };
    let [cut0, cut1, salt @ ..] = *head;
    let cut = usize::from(u16::from_le_bytes([cut0, cut1]));
    let salt = u64::from_le_bytes(salt);
    scan_all(file, salt, 0, cut);
}

/// As [`raw`], but wherever a record's magic stands the header is made to fit: salt, place and CRCs.
fn passing(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<3>() else { return };
    let cut = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let salt = u64::from(head[2]);
    let mut file = rest.to_vec();
    let mut at = 0;
    while at + RECORD_HEADER_BYTES <= file.len() {
        if file[at..].starts_with(&RECORD_MAGIC.to_le_bytes()) {
            fit(&mut file, at, salt);
        }
        at += RECORD_ALIGN;
    }
    scan_all(&file, salt, 0, cut);
}

/// What of the header is free: kind, payload length (16 bits), sequence and floor (as they stand).
fn fit(file: &mut [u8], at: usize, salt: u64) {
    let h = &file[at..at + RECORD_HEADER_BYTES];
    let word = |i: usize| u64::from_le_bytes(h[i..i + 8].try_into().unwrap());
    let kind = [RecordKind::Write, RecordKind::Mark, RecordKind::Pad, RecordKind::Entry, RecordKind::Keys][usize::from(h[4] % 5)];
    let payload_len = u32::from(u16::from_le_bytes([h[8], h[9]]));
    let spoil = h[5] & 1 != 0;
    let sequence = word(32);
    let payload = file.get(at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + payload_len as usize).unwrap_or_default();
    let header = RecordHeader {
        kind,
        payload_len,
        payload_crc: crc(payload) ^ u32::from(spoil),
        salt,
        offset: at as u64,
        sequence,
        durable_floor: word(40).min(sequence),
        receive_time_us: word(48) as i64,
    };
    file[at..at + RECORD_HEADER_BYTES].copy_from_slice(&header.encode());
}

fn crc(b: &[u8]) -> u32 {
    let mut c = flate2::Crc::new();
    c.update(b);
    c.sum()
}

fn place(f: &Found) -> (u64, u64) {
    match f {
        Found::Record(h) => (h.offset, h.offset + h.record_len() as u64),
        Found::Bad { from, to, .. } => (*from, *to),
    }
}

fn records(found: &[Found]) -> Vec<RecordHeader> {
    found.iter().filter_map(|f| if let Found::Record(h) = f { Some(*h) } else { None }).collect()
}

/// Everything that holds for any bytes; returns what was found.
pub fn scan_all(file: &[u8], salt: u64, from: usize, cut: usize) -> Vec<Found> {
    let to = file.len() as u64;
    let most = 64 * file.len() + (64 << 10);
    let found: Vec<Found> = held::at_most(most, || Scanner::new(file, salt, from as u64, to).collect());
    let mut at = from as u64;
    for f in &found {
        let (from, end) = place(f);
        assert_eq!(from, at, "places follow each other");
        assert!(end > from && from < to);
        if let Found::Record(h) = f {
            let payload = Scanner::payload(file, h);
            assert_eq!(payload.len(), h.payload_len as usize, "the payload lies within the file");
            assert_eq!(h.encode()[..], file[from as usize..from as usize + RECORD_HEADER_BYTES]);
            assert_eq!(crc(payload), h.payload_crc);
            assert_eq!((h.salt, h.offset), (salt, from));
        } else {
            assert!(end <= to);
        }
        at = end;
    }
    assert!(at >= to || found.is_empty() && from as u64 >= to, "the scan ends at {at}, the file at {to}");
    prefix(file, salt, from, cut, &found);

    let first_sequence = records(&found).first().map_or(1, |h| h.sequence.max(1));
    for first_sequence in [1, first_sequence] {
        for floor in [0, first_sequence, u64::MAX - 1, u64::MAX] {
            for declared in [None, Some((cut as u64, first_sequence)), Some((to, u64::MAX - 1))] {
                let known = Known { first_sequence, declared, floor };
                let v = held::at_most(400 * found.len() + (64 << 10), || judge(known, &found));
                verdict(&found, &v, known);
            }
        }
    }
    found
}

/// What lies before the first place that reaches beyond the cut is found alike without what is behind it.
fn prefix(file: &[u8], salt: u64, from: usize, cut: usize, whole: &[Found]) {
    let cut = cut.min(file.len());
    let found: Vec<Found> = Scanner::new(file, salt, from as u64, cut as u64).collect();
    let copied: Vec<Found> = Scanner::new(&file[..cut], salt, from as u64, u64::MAX).collect();
    assert_eq!(found, copied, "nothing behind the end that was given is looked at");
    let crossing = whole.iter().map(place).find(|(_, end)| *end > cut as u64).map_or(u64::MAX, |(from, _)| from);
    let before = |f: &[Found]| records(f).into_iter().filter(|h| h.offset < crossing).collect::<Vec<_>>();
    assert_eq!(before(&found), before(whole));
}

/// What holds for every verdict.
fn verdict(found: &[Found], v: &Verdict, known: Known) {
    let all = records(found);
    let mut rest = all.iter();
    let mut last: Option<&RecordHeader> = None;
    for r in &v.records {
        assert!(rest.any(|x| x == r), "a kept record was found, in this order");
        if r.kind.numbered() {
            assert!(last.is_none_or(|l| l.sequence < r.sequence), "a sequence is kept once");
            last = Some(r);
        }
        assert!(r.sequence <= v.last_sequence);
        if let Some((end, _)) = known.declared {
            assert!(r.offset < end);
        }
    }
    assert!(v.floor >= known.floor);
    for f in &v.findings {
        assert!(f.from <= f.to);
        if let Some((a, b)) = f.missing {
            assert!(a <= b && f.label == Label::Damaged);
            assert!(v.records.iter().all(|r| !r.kind.numbered() || !(a..=b).contains(&r.sequence)), "what is missing is not kept");
        }
    }
}

/// A log of known content, damaged.
fn damaged(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let salt = 77;
    let mut file = vec![0u8; DATA];
    let mut written: Vec<RecordHeader> = Vec::new();
    let mut sequence = 0;
    for _ in 0..=upto(u, 4) {
        let floor = sequence;
        for _ in 0..=upto(u, 3) {
            sequence += 1;
            let n = [0, 3, 10, 64, 400, 5000][upto(u, 5)];
            put(&mut file, RecordKind::Write, sequence, floor, &vec![sequence as u8; n], salt, &mut written);
        }
        pad(&mut file, sequence, floor, salt);
    }
    if flag(u) {
        put(&mut file, RecordKind::Mark, sequence, sequence, &[], salt, &mut Vec::new());
        pad(&mut file, sequence, sequence, salt);
    }
    let end = file.len();
    file.resize(end + 4096 * upto(u, 2), 0);
    if one_in(u, 3) {
        // An older generation behind the last group.
        let from = file.len();
        put(&mut file, RecordKind::Write, 1 + upto(u, 9) as u64, 0, b"older", salt + 1, &mut Vec::new());
        file.resize(from + 4096, 0);
    }
    let clean = file.clone();
    let mut changed: Vec<(usize, usize)> = Vec::new();
    for _ in 0..upto(u, 4) {
        let to = file.len();
        changed.push(Damage::make(u, DATA, to).apply(&mut file, to));
    }
    if one_in(u, 4) {
        let keep = DATA + upto(u, file.len() - DATA);
        changed.push((keep, usize::MAX));
        file.truncate(keep);
    }
    let found = scan_all(&file, salt, DATA, DATA + upto(u, end - DATA));
    let declared = flag(u).then_some((end as u64, sequence));
    let v = judge(Known { first_sequence: 1, declared, floor: 0 }, &found);
    verdict(&found, &v, Known { first_sequence: 1, declared, floor: 0 });
    let intact = |r: &RecordHeader| {
        let (a, b) = (r.offset as usize, r.offset as usize + RECORD_HEADER_BYTES + r.payload_len as usize);
        file.get(a..b).is_some_and(|x| *x == clean[a..b])
    };
    let kept: Vec<RecordHeader> = v.records.iter().filter(|r| r.kind == RecordKind::Write).copied().collect();
    for r in &kept {
        assert!(written.contains(r) && intact(r), "{r:?} was never written");
    }
    let must = |r: &&RecordHeader| intact(r) && (r.sequence <= v.floor || declared.is_some());
    for r in written.iter().filter(must) {
        assert!(kept.contains(r), "sequence {} is whole and at or below F = {}: {:?}", r.sequence, v.floor, v.findings);
    }
    // What is neither kept nor said to be missing was above F, where the log ends.
    for r in &written {
        let missing = v.findings.iter().filter_map(|f| f.missing).any(|(a, b)| (a..=b).contains(&r.sequence));
        assert!(
            kept.contains(r) || missing || r.sequence > v.last_sequence && r.sequence > v.floor,
            "sequence {} is gone unsaid",
            r.sequence
        );
        assert!(!(kept.contains(r) && missing));
    }
    if changed.is_empty() {
        assert!(v.findings.is_empty(), "{:?}", v.findings);
        assert_eq!(kept, written);
    }
}

fn put(file: &mut Vec<u8>, kind: RecordKind, sequence: u64, floor: u64, payload: &[u8], salt: u64, written: &mut Vec<RecordHeader>) {
    let h = RecordHeader {
        kind,
        payload_len: payload.len() as u32,
        payload_crc: crc(payload),
        salt,
        offset: file.len() as u64,
        sequence,
        durable_floor: floor,
        receive_time_us: 5,
    };
    let from = file.len();
    file.extend_from_slice(&h.encode());
    file.extend_from_slice(payload);
    file.resize(from + record_len(payload.len()), 0);
    written.push(h);
}

fn pad(file: &mut Vec<u8>, sequence: u64, floor: u64, salt: u64) {
    let at = file.len() as u64;
    put_pad(file, pad_len(at), at, salt, sequence, floor, 0);
}
