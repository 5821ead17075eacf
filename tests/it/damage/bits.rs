use std::time::Instant;

use super::oracle::{BLOCK, DATA};
use super::*;

/// Which bits of byte `at` to flip.
fn bits(l: &Layout, at: usize) -> std::ops::Range<u8> {
    if exhaustive() {
        return 0..8;
    }
    let dense = match l.at(at) {
        Some(r) => at < r.at + 64 || r.kind.numbered() && at.is_multiple_of(3),
        None => at % BLOCK < 256 && at < DATA && at.is_multiple_of(3),
    };
    let bit = (at * 7 / 3 % 8) as u8;
    if dense || at.is_multiple_of(127) { bit..bit + 1 } else { 0..0 }
}

#[test]
fn every_flipped_bit_of_a_segment_costs_the_record_it_hit_at_most() {
    for left in ALL {
        let l = build(left);
        // The sealed ones are the same in all three.
        let first = if left == Left::Closed { 0 } else { l.newest() };
        let (started, mut cases) = (Instant::now(), 0);
        for n in first..l.segments.len() {
            let s = &l.segments[n];
            for at in 0..s.clean.len() {
                for bit in bits(s, at) {
                    l.vfs.edit(&s.path, |b| b[at] ^= 1 << bit);
                    let (report, seen) = l.inspect();
                    let mut now = s.clean.clone();
                    now[at] ^= 1 << bit;
                    l.compare(&format!("{left:?}, segment {}, byte {at}, bit {bit}", s.id), n, &now, &report, &seen);
                    l.vfs.edit(&s.path, |b| b[at] ^= 1 << bit);
                    cases += 1;
                }
            }
        }
        println!("{left:?}: {cases} flips in {:?}", started.elapsed());
    }
}

/// Two header copies, both hit: the cases that one flipped bit cannot make.
#[test]
fn a_lost_header_is_made_good_or_refused() {
    for left in ALL {
        let l = build(left);
        for n in 0..l.segments.len() {
            let s = &l.segments[n];
            for at in (0..256).step_by(if exhaustive() { 1 } else { 15 }) {
                let mut now = s.clean.clone();
                now[at] ^= 4;
                now[BLOCK + (at * 5) % 256] ^= 1;
                l.vfs.put(&s.path, now.clone());
                let (report, seen) = l.inspect();
                assert!(l.compare(&format!("{left:?}, segment {}, header byte {at}", s.id), n, &now, &report, &seen));
                // Together with a record: only when the header is gone too does the place of the successor matter.
                for r in &s.records {
                    let mut both = now.clone();
                    both[r.at + 40] ^= 16;
                    l.vfs.put(&s.path, both.clone());
                    let (report, seen) = l.inspect();
                    l.compare(&format!("{left:?}, segment {}, header and {r:?}", s.id), n, &both, &report, &seen);
                }
            }
            l.vfs.put(&s.path, s.clean.clone());
        }
    }
}

#[test]
fn every_truncation_of_a_segment_is_reported() {
    for left in ALL {
        let l = build(left);
        let first = if left == Left::Closed { 0 } else { l.newest() };
        for n in first..l.segments.len() {
            let s = &l.segments[n];
            let step = if exhaustive() { 1 } else { 97 };
            let mut lengths: Vec<usize> = (0..s.clean.len()).step_by(step).collect();
            for r in &s.records {
                lengths.extend([r.at, r.at + 1, r.at + 63, r.at + 64, r.at + 65, r.end - 1, r.end, r.end + 1, r.next]);
            }
            lengths.extend([0, 1, 255, 256, 257, 4095, 4096, 4097, 4351, 4352, 8191, 8192, 8193, s.clean.len() - 1, s.clean.len()]);
            for len in lengths.into_iter().filter(|x| *x <= s.clean.len()) {
                let now = s.clean[..len].to_vec();
                l.vfs.put(&s.path, now.clone());
                let (report, seen) = l.inspect();
                l.compare(&format!("{left:?}, segment {} cut to {len}", s.id), n, &now, &report, &seen);
            }
            l.vfs.put(&s.path, s.clean.clone());
        }
    }
}

/// What a power cut may leave of the last group: each of its sectors as it is now or as it was before, in any combination, over a
/// fresh file and over one that was used before. And the same of every sealed group, which no power cut does.
#[test]
fn every_set_of_lost_sectors_of_a_group_is_judged() {
    const SECTOR: usize = 512;
    let l = build(Left::Unmarked);
    for n in [1, l.newest()] {
        let s = &l.segments[n];
        let writes: Vec<_> = s.records.iter().filter(|r| r.kind == oracle::Kind::Write).collect();
        let from = writes.last().unwrap().at / BLOCK * BLOCK;
        let sectors = BLOCK / SECTOR;
        for older in [None, Some(0), Some(1)] {
            for lost in 0u32..1 << sectors {
                let mut now = s.clean.clone();
                for k in (0..sectors).filter(|k| lost & (1 << k) != 0) {
                    let at = from + k * SECTOR;
                    match older {
                        None => now[at..at + SECTOR].fill(0),
                        Some(o) => now[at..at + SECTOR].copy_from_slice(&l.old[o].1[DATA + k * SECTOR..DATA + (k + 1) * SECTOR]),
                    }
                }
                l.vfs.put(&s.path, now.clone());
                let (report, seen) = l.inspect();
                l.compare(&format!("segment {}, lost {lost:b} to {older:?}", s.id), n, &now, &report, &seen);
            }
        }
        l.vfs.put(&s.path, s.clean.clone());
    }
}

/// Every run of blocks zeroed, or back to an older generation.
#[test]
fn every_run_of_lost_blocks_is_reported() {
    for left in ALL {
        let l = build(left);
        for n in 0..l.segments.len() {
            let s = &l.segments[n];
            let blocks = s.clean.len() / BLOCK;
            for (from, to) in (0..blocks).flat_map(|a| (a + 1..=blocks).map(move |b| (a, b))) {
                for fill in [0, 0xff, 0x5a] {
                    let mut now = s.clean.clone();
                    if fill == 0x5a && l.old[0].1.len() >= to * BLOCK && from * BLOCK >= DATA {
                        now[from * BLOCK..to * BLOCK].copy_from_slice(&l.old[0].1[from * BLOCK..to * BLOCK]);
                    } else {
                        now[from * BLOCK..to * BLOCK].fill(fill);
                    }
                    l.vfs.put(&s.path, now.clone());
                    let (report, seen) = l.inspect();
                    l.compare(&format!("{left:?}, segment {}, blocks {from}..{to} to {fill}", s.id), n, &now, &report, &seen);
                }
            }
            l.vfs.put(&s.path, s.clean.clone());
        }
    }
}
