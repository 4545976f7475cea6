//! What a peer can send wrong: arbitrary bytes, and messages with bytes changed, are refused without a panic and without
//! taking memory on the word of a length field.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use sconce_schemas::wire::Body;
use sconce_schemas::wire::envelope::Header;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// Counts what each thread takes from the system's allocator.
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

/// What decoding may take at most: a few hundred bytes of memory for each byte that is there (a batch's requests are made
/// room for by its announced length, which is at most the frame's), whatever the frame announces.
fn bound(frame: &[u8]) -> usize {
    (16 << 10) + frame.len() * 1024
}

fn decode<B: Body>(frame: &[u8], data_len: usize) {
    let before = TAKEN.with(Cell::get);
    let _ = Header::<B>::decode(frame, data_len);
    let taken = TAKEN.with(Cell::get) - before;
    assert!(
        taken <= bound(frame),
        "{taken} bytes were taken for a frame of {}",
        frame.len()
    );
}

fn decode_as_all(frame: &[u8], data_len: usize) {
    decode::<VolumeRequest>(frame, data_len);
    decode::<VolumeReply>(frame, data_len);
    decode::<StorageRequest>(frame, data_len);
    decode::<StorageReply>(frame, data_len);
    decode::<RegistryRequest>(frame, data_len);
    decode::<RegistryReply>(frame, data_len);
}

fn golden_frames() -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let wire = files.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("wire-"))
    });
    let mut paths: Vec<_> = wire.collect();
    paths.sort();
    assert!(paths.len() >= 11, "the golden messages are there");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn lengths_beyond_the_frame_take_no_memory() {
    // Batches, strings, byte strings, maps that announce 2^32 - 1 elements.
    for announced in [[0xdd; 5], [0xdb; 5], [0xc6; 5], [0xdf; 5]] {
        let huge = [announced[0], 0xff, 0xff, 0xff, 0xff];
        for kind in 0..7 {
            decode_as_all(&[&[0x93, kind, 0][..], &huge].concat(), 0);
            decode_as_all(&[&[0x92, kind][..], &huge].concat(), 0);
            decode_as_all(&[&[0x93, kind, 0, 0x91, 0x95, 1, 0, 0, 0][..], &huge].concat(), 0);
            decode_as_all(
                &[&[0x93, kind, 0, 0x91, 0x95, 1, 0, 0, 0, 0x92, 1][..], &huge].concat(),
                0,
            );
        }
    }
}

#[test]
fn lists_within_a_control_message_take_no_memory_either() {
    // A list, or a map, in a field that is taken in whatever its shape, and in its first element the next.
    for opener in [0xdd, 0xdf] {
        let huge = [opener, 0xff, 0xff, 0xff, 0xff].repeat(30);
        for start in [
            &b"\x93\x02\0\x91\x95\x01\0\0\0\x81\xa1x"[..],
            b"\x93\x03\0\x91\x93\x01\0\x81\xa1x",
        ] {
            decode_as_all(&[start, &huge].concat(), 0);
        }
    }
}

#[test]
fn deep_nesting_ends_in_an_error() {
    for opener in [0x91u8, 0x81] {
        let mut frame = vec![0x92, 0];
        frame.extend(std::iter::repeat_n(opener, 100_000));
        decode_as_all(&frame, 0);
        // As a field that a newer version might have added.
        let mut frame = vec![0x93, 4, 1];
        frame.extend(std::iter::repeat_n(opener, 100_000));
        decode_as_all(&frame, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_are_refused_in_peace(frame: Vec<u8>, data_len in 0usize..10_000) {
        decode_as_all(&frame, data_len);
    }

    #[test]
    fn arbitrary_batches_are_refused_in_peace(
        kind in 0u8..7, count in 0u8..16, tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let start = [0x93, kind, 5, 0x90 | count];
        decode_as_all(&[&start[..], &tail].concat(), 0);
    }

    #[test]
    fn changed_messages_are_decoded_or_refused_in_peace(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let frames = golden_frames();
        let mut frame = which.get(&frames).clone();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if !whole {
            frame.truncate(cut.index(frame.len() + 1));
        }
        decode_as_all(&frame, 0);
    }
}
