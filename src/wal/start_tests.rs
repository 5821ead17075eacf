//! Which segment a start goes on with.

use std::path::Path;

use super::testing::{Running, reopen, settings};
use crate::limits::FILE_HEADER_BYTES;
use crate::vfs::Engine;

fn segments(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut out: Vec<String> = names.filter(|n| n.starts_with("seg-")).collect();
    out.sort();
    out
}

/// INVARIANT(untouched-segment): as soon as anything is in it, or could be, the next start makes another one.
#[test]
fn segment_is_taken_again_only_if_nothing_was_written_into_it() {
    for engine in [Engine::Pwrite, Engine::Mmap] {
        let dir = tempfile::tempdir().unwrap();
        let s = || settings(dir.path(), 64 << 10, engine);
        drop(reopen(s()).unwrap());
        let first = segments(dir.path());
        for _ in 0..3 {
            drop(reopen(s()).unwrap());
            assert_eq!(segments(dir.path()), first, "nothing was written");
        }
        // Bytes far behind the header that no group explains, one bad header copy, a smaller file than is asked for.
        let path = dir.path().join(&first[0]);
        let clean = std::fs::read(&path).unwrap();
        for (at, size) in [(FILE_HEADER_BYTES + 9000, 64 << 10), (100, 64 << 10), (FILE_HEADER_BYTES, 64 << 10), (0, 128 << 10)] {
            let copy = tempfile::tempdir().unwrap();
            let fresh = |data| settings(copy.path(), data, engine);
            drop(reopen(fresh(64 << 10)).unwrap());
            let path = copy.path().join(&segments(copy.path())[0]);
            if at > 0 {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
            drop(reopen(fresh(size)).unwrap());
            assert_eq!(segments(copy.path()).len(), 2, "{engine:?}, {at}, {size}");
        }
        let (o, _) = reopen(s()).unwrap();
        let running = Running::start(o);
        assert_eq!(running.append(7, 3), 1);
        drop(running);
        assert_eq!(segments(dir.path()), first, "it takes records");
        assert_ne!(std::fs::read(&path).unwrap(), clean);
        let (o, seen) = reopen(s()).unwrap();
        assert_eq!((seen, segments(dir.path()).len()), (vec![(1, 7)], 2));
        let running = Running::start(o);
        assert_eq!(running.append(8, 3), 2);
        drop(running);
        assert_eq!(reopen(s()).unwrap().1, [(1, 7), (2, 8)]);
    }
}
