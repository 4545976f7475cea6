//! Counts what a decoder takes from the allocator, and ends the run where a length field was believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything on to the system's allocator; counting takes no memory itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.with(|taken| taken.set(taken.get() + layout.size()));
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Decodes `input`, which may take memory in proportion to its length, whatever it announces.
pub fn within_memory<T>(input: &[u8], decode: impl FnOnce() -> T) -> T {
    let before = TAKEN.with(Cell::get);
    let decoded = decode();
    let taken = TAKEN.with(Cell::get) - before;
    assert!(
        taken <= (16 << 10) + input.len() * 1024,
        "{taken} bytes were taken to decode {}",
        input.len()
    );
    decoded
}
