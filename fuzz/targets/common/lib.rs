//! What the binaries share: the checks, and an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};

#[path = "../../checks/mod.rs"]
pub mod checks;

#[path = "../../../tests/it/sim/mod.rs"]
pub mod sim;

pub use libfuzzer_sys::fuzz_target;

/// The system's allocator, which tells the checks what is held.
pub struct Counting;

// SAFETY: every call is the system allocator's own, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        checks::held::taken(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        checks::held::taken(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        checks::held::given_back(layout.size());
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        checks::held::taken(new_size);
        checks::held::given_back(layout.size());
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// The fuzz target that runs the check of this name.
#[macro_export]
macro_rules! fuzz {
    ($name:ident) => {
        #[global_allocator]
        static COUNTING: $crate::Counting = $crate::Counting;

        $crate::fuzz_target!(|data: &[u8]| $crate::checks::$name::check(data));
    };
}
