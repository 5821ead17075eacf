//! The header of a segment or a manifest.

use arbitrary::Unstructured;
use arc_ingest::format::file_header::{DeclaredEnd, FileHeader, FileKind, HEADER_LEN};
use arc_ingest::limits::{BLOCK, FILE_HEADER_BYTES};
use arc_ingest::types::LogId;

use super::build::{Damage, flag, upto};

const KINDS: [FileKind; 2] = [FileKind::Segment, FileKind::Manifest];
/// Where the fields end; what is between them and the CRC is reserved.
const FIELDS: usize = 120;

pub fn check(data: &[u8]) {
    any_bytes(data);
    let mut fixed = data.to_vec();
    fixed.resize(fixed.len().max(HEADER_LEN), 0);
    // Past the CRC, which no mutation finds.
    for kind in KINDS {
        fixed[..8].copy_from_slice(&kind.magic());
        let crc = crc(&fixed[..HEADER_LEN - 4]);
        fixed[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        any_bytes(&fixed);
    }
    two_copies(&mut Unstructured::new(data));
}

fn crc(b: &[u8]) -> u32 {
    let mut c = flate2::Crc::new();
    c.update(b);
    c.sum()
}

fn any_bytes(data: &[u8]) {
    for kind in KINDS {
        let _ = FileHeader::parse_file(data, kind);
        let Ok(h) = FileHeader::parse(data, kind) else { continue };
        let again = h.encode();
        assert_eq!(again[..FIELDS], data[..FIELDS], "{h:?}");
        if data[FIELDS..HEADER_LEN - 4].iter().all(|b| *b == 0) {
            assert_eq!(again[..], data[..HEADER_LEN], "{h:?}");
        }
        assert_eq!(FileHeader::parse(&again, kind), Ok(h));
        assert_eq!(h.encode_file().len(), FILE_HEADER_BYTES);
    }
}

/// Of two copies one may be damaged in any way.
fn two_copies(u: &mut Unstructured<'_>) {
    let mut n = || u.arbitrary::<u64>().unwrap_or(3);
    let id = n().max(1);
    let first_sequence = n().max(1);
    let kind = KINDS[n() as usize % 2];
    let predecessor = (id > 1).then(|| DeclaredEnd { id: id - 1, salt: n(), end: n(), last_sequence: first_sequence - 1 });
    let h = FileHeader {
        kind,
        minor: n() as u16,
        compatible: n(),
        incompatible: 0,
        log: LogId([n() as u8; 16]),
        id,
        first_sequence,
        salt: n(),
        epoch: n(),
        file_len: n().max(FILE_HEADER_BYTES as u64),
        predecessor,
    };
    let mut file = h.encode_file();
    assert_eq!(FileHeader::parse_file(&file, kind), Ok((h, [None, None])));
    let second = flag(u);
    let from = if second { BLOCK } else { 0 };
    for _ in 0..=upto(u, 3) {
        // A copy of the good header is no damage, so only flips and fills of the header proper are used.
        match Damage::make(u, from, from + HEADER_LEN) {
            Damage::Copy { .. } => {}
            d => drop(d.apply(&mut file, from + HEADER_LEN)),
        }
    }
    let one = &file[from..from + HEADER_LEN];
    let good = one == h.encode();
    let (found, bad) = FileHeader::parse_file(&file, kind).unwrap_or_else(|e| panic!("one copy is good: {e:?}"));
    assert_eq!(found, h);
    assert_eq!(bad[usize::from(second)].is_none(), good);
    assert!(bad[usize::from(!second)].is_none());
}
