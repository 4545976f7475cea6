//! Replies of the transmission phase: their headers. Data follows them, or does not.
//!
//! Keeps: nothing; values become bytes.
//! Order: the caller appends what belongs to a header right behind it.
//! Crash: nothing.
//! Knows no sockets and no operations.

use bytes::{BufMut as _, BytesMut};

use super::ErrorCode;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const FLAG_DONE: u16 = 1;

const TYPE_NONE: u16 = 0;
const TYPE_OFFSET_DATA: u16 = 1;
const TYPE_OFFSET_HOLE: u16 = 2;
const TYPE_BLOCK_STATUS: u16 = 5;
const TYPE_ERROR: u16 = (1 << 15) + 1;

/// Longest text of an error.
const TEXT_MAX: usize = 1024;

/// State bits of `base:allocation`.
pub const STATE_HOLE: u32 = 1;
/// State bits of `base:allocation`.
pub const STATE_ZERO: u32 = 2;
/// State bits of `qemu:dirty-bitmap:…`.
pub const STATE_DIRTY: u32 = 1;

/// Appends a simple reply: done, or an error.
pub fn put_simple(out: &mut BytesMut, cookie: u64, error: Option<ErrorCode>) {
    out.put_u32(SIMPLE_MAGIC);
    out.put_u32(error.map_or(0, |code| code as u32));
    out.put_u64(cookie);
}

fn put_chunk(out: &mut BytesMut, done: bool, kind: u16, cookie: u64, length: u32) {
    out.put_u32(STRUCTURED_MAGIC);
    out.put_u16(if done { FLAG_DONE } else { 0 });
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(length);
}

/// Appends an empty last chunk.
pub fn put_none(out: &mut BytesMut, cookie: u64) {
    put_chunk(out, true, TYPE_NONE, cookie, 0);
}

/// Appends the header of a chunk of data; `length` bytes of data follow it.
pub fn put_offset_data(out: &mut BytesMut, cookie: u64, done: bool, offset: u64, length: u32) {
    put_chunk(out, done, TYPE_OFFSET_DATA, cookie, length + 8);
    out.put_u64(offset);
}

/// Appends a chunk that stands for zeros.
pub fn put_offset_hole(out: &mut BytesMut, cookie: u64, done: bool, offset: u64, length: u32) {
    put_chunk(out, done, TYPE_OFFSET_HOLE, cookie, 12);
    out.put_u64(offset);
    out.put_u32(length);
}

/// Appends an error with a text for people, as the last chunk.
pub fn put_error(out: &mut BytesMut, cookie: u64, error: ErrorCode, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_MAX)];
    let length = u16::try_from(text.len()).unwrap_or(0);
    put_chunk(out, true, TYPE_ERROR, cookie, 6 + u32::from(length));
    out.put_u32(error as u32);
    out.put_u16(length);
    out.put_slice(&text.as_bytes()[..usize::from(length)]);
}

/// Appends what a context tells: lengths with their state bits.
pub fn put_block_status(out: &mut BytesMut, cookie: u64, done: bool, context: u32, extents: &[(u32, u32)]) {
    let length = u32::try_from(4 + extents.len() * 8).unwrap_or(u32::MAX);
    put_chunk(out, done, TYPE_BLOCK_STATUS, cookie, length);
    out.put_u32(context);
    for (length, state) in extents {
        out.put_u32(*length);
        out.put_u32(*state);
    }
}
