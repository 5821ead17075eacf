//! Bytes held on the heap, where the binary counts them.
//!
//! The fuzz targets install an allocator that reports here; the test binary does not, and checks nothing of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

static COUNTING: AtomicBool = AtomicBool::new(false);
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// For the allocator, which only the fuzz targets have.
#[allow(dead_code)]
pub fn taken(bytes: usize) {
    COUNTING.store(true, Relaxed);
    let now = NOW.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    MOST.fetch_max(now, Relaxed);
}

/// For the allocator, which only the fuzz targets have.
#[allow(dead_code)]
pub fn given_back(bytes: usize) {
    NOW.fetch_sub(bytes, Relaxed);
}

/// Runs `f`, which may hold at most `most` bytes more than before at any time.
pub fn at_most<T>(most: usize, f: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let out = f();
    if COUNTING.load(Relaxed) {
        let held = MOST.load(Relaxed).saturating_sub(before);
        assert!(held <= most, "{held} bytes were held, at most {most} are allowed");
    }
    out
}
