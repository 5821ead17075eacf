//! Names of the files in the log's directory.

use std::path::{Path, PathBuf};

pub const LOCK: &str = "LOCK";
pub const RESERVE: &str = "reserve";
pub const POOL: &str = "pool";
pub const SIDE: &str = "side";
/// Which record a cautious build is trying.
pub const PROBE: &str = "probe";
pub const QUARANTINE: &str = "quarantine";

pub fn segment_name(id: u64) -> String {
    format!("seg-{id:016x}.wal")
}

pub fn manifest_name(id: u64) -> String {
    format!("manifest-{id:016x}")
}

pub fn spare_name(n: u64) -> String {
    format!("spare-{n:016x}.tmp")
}

pub fn pool_name(id: u64) -> String {
    format!("free-{id:016x}.tmp")
}

/// In the side directory: a file with the name of segment `id` that was none.
pub fn garbage_name(id: u64) -> String {
    format!("{id:016x}-no-segment.bin")
}

/// The side segment of a deferred output.
pub fn deferred_name(plan: u64, output: u32) -> String {
    format!("out-{plan:016x}-{output:08x}.wal")
}

/// Plan and output in the name of a side segment.
pub fn parse_deferred(name: &str) -> Option<(u64, u32)> {
    let (plan, output) = name.strip_prefix("out-")?.strip_suffix(".wal")?.split_once('-')?;
    (output.len() == 8).then_some(())?;
    Some((hex(plan)?, u32::from_str_radix(output, 16).ok()?))
}

/// A damaged segment that is kept although it is released, whole.
pub fn evidence_name(id: u64, salt: u64) -> String {
    format!("damaged-{id:016x}-{salt:016x}.wal")
}

/// Id and salt in the name of a damaged segment that is kept, or of another copy of it that was found later.
pub fn parse_evidence(name: &str) -> Option<(u64, u64)> {
    let rest = name.strip_prefix("damaged-").or_else(|| name.strip_prefix("copy-"))?;
    let (id, salt) = rest.strip_suffix(".wal")?.split_once('-')?;
    Some((hex(id)?, hex(salt)?))
}

fn hex(s: &str) -> Option<u64> {
    (s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))).then(|| u64::from_str_radix(s, 16).ok())?
}

/// The id in a segment's file name.
pub fn parse_segment(name: &str) -> Option<u64> {
    hex(name.strip_prefix("seg-")?.strip_suffix(".wal")?)
}

/// The id in a manifest's file name.
pub fn parse_manifest(name: &str) -> Option<u64> {
    hex(name.strip_prefix("manifest-")?)
}

/// Whether the name is that of a file that never holds acknowledged data: a spare, or an unfinished manifest.
pub fn is_scratch(name: &str) -> bool {
    name.ends_with(".tmp") && (name.starts_with("spare-") || name.starts_with("manifest-"))
}

pub fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(segment_name(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_near_misses_are_not_ours() {
        assert_eq!(parse_segment(&segment_name(0xabc)), Some(0xabc));
        assert_eq!(parse_manifest(&manifest_name(7)), Some(7));
        for bad in ["seg-1.wal", "seg-00000000000000AB.wal", "seg-0000000000000001.wal.bak", "manifest-0000000000000001.tmp"] {
            assert_eq!(parse_segment(bad).or(parse_manifest(bad)), None, "{bad}");
        }
        assert!(is_scratch(&spare_name(1)) && is_scratch("manifest-0000000000000001.tmp"));
        assert!(!is_scratch(&segment_name(1)));
    }
}
