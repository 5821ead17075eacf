//! The memory that all builds share: `compaction.memory`, see `docs/memory.md`.
//!
//! Two bounds make it one number. A row group's columns take at most an eighth of it ([`row_group_bytes`], recorded in the plan, since the
//! file's bytes depend on it), which bounds a build. A build takes its share before it begins and waits while the others have the rest.

use std::sync::{Condvar, Mutex, PoisonError};

use super::SliceRef;
use super::parquet::OutputSpec;
use crate::types::ColumnType;

/// Row groups are not larger than this, however much memory there is: 1,048,576 rows of 15 numbers.
pub const MAX_ROW_GROUP_BYTES: u64 = 128 << 20;
/// What versions before `compaction.memory` used; their plans do not say it.
pub(super) const EARLIER_ROW_GROUP_BYTES: u64 = 128 << 20;
/// Row groups that the memory of all builds has room for.
const ROW_GROUPS: u64 = 8;
/// What a build takes whatever its rows are: the compressor, a page twice, buffers of the file.
const BUILD_BYTES: usize = 8 << 20;
/// What a column takes beside its values: its names, its description, its metadata in the footer.
const COLUMN_BYTES: usize = 4 << 10;
/// What a slice takes while its output is built: its place in the order, twice.
const SLICE_BYTES: usize = 24;
/// What a row takes while rows are put in order.
const SORT_BYTES: usize = 24;

/// Bytes of a row group in new plans.
pub fn row_group_bytes(memory: u64) -> u64 {
    (memory / ROW_GROUPS).min(MAX_ROW_GROUP_BYTES)
}

/// Bytes that building this output takes at most: the columns of the row group in progress and the finished chunk of one of them, with the
/// longest value twice in the page in progress.
pub(super) fn build_bytes(spec: &OutputSpec, slices: &[SliceRef]) -> usize {
    let limit = spec.settings.row_group_bytes;
    let rows: usize = slices.iter().map(|s| s.rows() as usize).sum();
    let payloads: usize = slices.iter().map(|s| s.len as usize).sum();
    let longest = slices.iter().map(|s| s.len as usize).max().unwrap_or(0);
    let is_text = |ty: ColumnType| matches!(ty, ColumnType::Utf8 | ColumnType::Binary);
    let text = spec.columns.iter().any(|c| is_text(c.ty));
    let rows_at_once = rows.min(spec.settings.row_group_rows);
    let fixed = spec.fixed_bytes().saturating_mul(rows_at_once).min(limit.max(spec.fixed_bytes()));
    // A dictionary counts twice.
    let strings = if text { (2 * payloads).min(limit.max(2 * longest)) } else { 0 };
    let columns = fixed.saturating_add(strings).min(limit.max(2 * longest).max(spec.fixed_bytes()));
    let chunk = strings.max(8 * rows_at_once).min(columns);
    let page = if text { 2 * longest.min(columns) } else { 0 };
    let rows_in_group = (limit / spec.fixed_bytes()).min(rows_at_once);
    columns + chunk.max(SORT_BYTES * rows_in_group) + page + BUILD_BYTES + COLUMN_BYTES * spec.columns.len() + SLICE_BYTES * slices.len()
}

/// What is left of the memory for builds.
#[derive(Debug)]
pub(super) struct BuildMemory {
    total: usize,
    taken: Mutex<usize>,
    given_back: Condvar,
}

/// A build's part of the memory, given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    of: &'a BuildMemory,
    bytes: usize,
}

impl BuildMemory {
    pub(super) fn new(total: usize) -> Self {
        Self { total, taken: Mutex::new(0), given_back: Condvar::new() }
    }

    /// Waits for `bytes` of it. A build that needs more than all of it runs alone.
    pub(super) fn take(&self, bytes: usize) -> Share<'_> {
        let bytes = bytes.min(self.total);
        let free = |taken: &mut usize| *taken + bytes > self.total;
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self.given_back.wait_while(taken, free).unwrap_or_else(PoisonError::into_inner);
        *taken += bytes;
        Share { of: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.of.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.of.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn builds_together_never_take_more_than_the_memory() {
        let memory = BuildMemory::new(100);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for need in [60, 50, 40, 30, 100, 1000, 10, 10] {
                let (memory, now, most) = (&memory, &now, &most);
                s.spawn(move || {
                    for _ in 0..200 {
                        let share = memory.take(need);
                        let taken = now.fetch_add(share.bytes, Ordering::SeqCst) + share.bytes;
                        most.fetch_max(taken, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(share.bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 100);
        assert_eq!(*memory.taken.lock().unwrap(), 0);
    }

    #[test]
    fn row_groups_are_an_eighth_of_the_memory_and_not_larger_than_before() {
        assert_eq!(row_group_bytes(512 << 20), 64 << 20);
        assert_eq!(row_group_bytes(64 << 30), EARLIER_ROW_GROUP_BYTES);
    }
}
