//! What goes wrong in a simulated world.

use arc_ingest::format::file_header::{FileHeader, FileKind};
use arc_ingest::format::record::{RecordHeader, RecordKind};
use arc_ingest::format::scan::{Found, Scanner};
use arc_ingest::limits::{BLOCK, FILE_HEADER_BYTES};
use arc_ingest::sink::object::sim_s3::WireFault;
use arc_ingest::sink::sim::{Call, Fault as StoreFault};

use super::checks::rids;
use super::*;

impl World {
    /// Faults of the store: per mille of calls, drawn from `seed`. Also stops the machine at [`Self::store_crash`].
    pub fn store_faults(&self, seed: u64, rate: u64) {
        if let Some((s3, _)) = &self.wire {
            return self.wire_faults(s3, seed, rate);
        }
        let (disk, crash) = (self.disk.clone(), Arc::clone(&self.store_crash));
        let mut random = SplitMix64(seed);
        self.store.set_faults(move |op| {
            if disk.is_off() {
                return Some(StoreFault::Fails(libc::EIO));
            }
            if let Some((_, after)) = crash.lock().unwrap().take_if(|(at, _)| *at == op.number) {
                disk.stop();
                return Some(if after { StoreFault::ReplyLost } else { StoreFault::Fails(libc::EIO) });
            }
            if !random.chance(rate) {
                return None;
            }
            let put = matches!(op.call, Call::Publish | Call::PutSmall);
            Some(match random.below(8) {
                0 if put => StoreFault::ReplyLost,
                1 if put => StoreFault::Late,
                2 => StoreFault::Hangs,
                3 => StoreFault::Fails(libc::ENOSPC),
                4 if op.call == Call::Describe && op.name.ends_with(".parquet") => StoreFault::Unseen,
                5 => StoreFault::Fails(libc::ETIMEDOUT),
                _ => StoreFault::Fails(libc::EIO),
            })
        });
    }

    pub(super) fn wire_faults(&self, s3: &SimS3, seed: u64, rate: u64) {
        let (disk, crash) = (self.disk.clone(), Arc::clone(&self.store_crash));
        let mut random = SplitMix64(seed);
        s3.set_faults(move |w| {
            if disk.is_off() {
                return Some(WireFault::Refused);
            }
            if let Some((_, after)) = crash.lock().unwrap().take_if(|(at, _)| *at == w.number) {
                disk.stop();
                return Some(if after { WireFault::ReplyLost } else { WireFault::Refused });
            }
            if !random.chance(rate) {
                return None;
            }
            Some(match random.below(12) {
                0 | 1 => WireFault::ReplyLost,
                2 => WireFault::Late,
                3 => WireFault::Hangs,
                4 => WireFault::Answers(507, ""),
                5 => WireFault::Answers(503, "SlowDown"),
                6 => WireFault::AnswersAfter(500, "InternalError"),
                7 => WireFault::ErrorBody,
                8 => WireFault::ErrorBodyAfter,
                9 => WireFault::Answers(403, if random.chance(500) { "RequestTimeTooSkewed" } else { "ExpiredToken" }),
                10 => WireFault::CutAnswer,
                _ => WireFault::Refused,
            })
        });
    }

    pub(super) fn disturb(&mut self) {
        self.disturb_lake();
        if self.random.chance(self.clock_jumps) {
            let by = self.random.below(7_200_000_000) as i64 - 3_600_000_000;
            self.clock.jump(by);
        }
        if self.random.chance(self.disk_full) {
            let room = self.random.below(200 << 10);
            let full = self.random.chance(500);
            self.disk.set_capacity(if full { self.disk.used() + room } else { u64::MAX });
        }
        if !self.store.late().is_empty() && self.random.chance(30) {
            let i = self.random.below(self.store.late().len() as u64) as usize;
            self.store.land(i);
        }
        if let Some((s3, _)) = &self.wire
            && s3.late() > 0
            && self.random.chance(30)
        {
            s3.land(self.random.below(s3.late() as u64) as usize);
        }
    }

    /// Flips a bit in a record of a sealed segment, or makes its block unreadable, if there is one, and marks the requests that lose by it.
    pub fn rot_a_record(&mut self) -> bool {
        let copy = self.disk.live_copy(0);
        let Ok(list) = copy.vfs().list(Path::new(WAL)) else { return false };
        let mut segments: Vec<String> = list.into_iter().map(|e| e.name).filter(|n| files::parse_segment(n).is_some()).collect();
        segments.pop();
        if segments.is_empty() {
            return false;
        }
        let path = Path::new(WAL).join(&segments[self.random.below(segments.len() as u64) as usize]);
        let Some(bytes) = self.disk.content(&path) else { return false };
        let Ok((header, _)) = FileHeader::parse_file(&bytes, FileKind::Segment) else { return false };
        let records: Vec<_> = Scanner::new(&bytes, header.salt, FILE_HEADER_BYTES as u64, bytes.len() as u64)
            .filter_map(|x| if let Found::Record(r) = x { Some(r) } else { None })
            .filter(|r| r.kind == RecordKind::Write)
            .collect();
        let Some(hit) = records.get(self.random.below(records.len() as u64) as usize) else { return false };
        let at = hit.offset as usize + self.random.below(hit.record_len() as u64) as usize;
        let lost = if self.random.chance(700) {
            let bit = self.random.below(8) as u8;
            self.disk.flip_bit(&path, at, bit);
            at..at + 1
        } else {
            // What shares the block cannot be read either.
            self.disk.make_unreadable(&path, at);
            at / BLOCK * BLOCK..at / BLOCK * BLOCK + BLOCK
        };
        self.rot = true;
        let is_hit = |r: &&RecordHeader| (r.offset as usize) < lost.end && r.offset as usize + r.record_len() > lost.start;
        for r in records.iter().filter(is_hit) {
            self.rotted.insert(r.sequence);
            for (_, _, rid) in rids(Scanner::payload(&bytes, r)) {
                self.model.rotten(rid);
            }
        }
        true
    }
}
