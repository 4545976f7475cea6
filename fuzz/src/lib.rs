//! What the fuzz targets share: a bound on memory, and checks that hold for every format.
//!
//! Keeps: nothing.
//! Order: a target decodes what it is given; what decodes must mean the same after it was encoded again.
//! Crash: a panic is a finding; libFuzzer writes the input that led to it.
//! Knows no single format: those are the targets'.

mod memory;

use std::fmt::Debug;

use sconce_schemas::crc::crc32c_append;
use sconce_schemas::wire::Body;
use sconce_schemas::wire::envelope::Header;

pub use memory::within_memory;

/// The fs-router's own file: it refers to nothing outside, and the fs-router's tree takes minutes to build.
#[path = "../../services/fs-router/src/nbd/protocol/mod.rs"]
pub mod nbd;

/// Checks a message with bodies of `B`. The input is the data frame's length (two bytes, little endian) and the header.
pub fn message<B: Body + Debug + PartialEq>(input: &[u8]) {
    let Some((&[low, high], frame)) = input.split_first_chunk() else {
        return;
    };
    let data_len = usize::from(u16::from_le_bytes([low, high]));
    let decoded = within_memory(frame, || Header::<B>::decode(frame, data_len));
    if let Ok(header) = decoded {
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(Header::decode(&again, data_len).as_ref(), Ok(&header));
    }
}

/// Stores at `at` the CRC32C of what follows it, as the formats that begin with one want it: without this no input
/// would ever get past the checksum. Nothing happens where there is no room.
pub fn seal(bytes: &mut [u8], at: usize, salt: u32) {
    if bytes.len() >= at + 4 {
        let crc = crc32c_append(salt, &bytes[at + 4..]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Stores at `at` the CRC32C of what lies before it from `start` on.
pub fn seal_before(bytes: &mut [u8], start: usize, at: usize) {
    if bytes.len() >= at + 4 {
        let crc = crc32c_append(0, &bytes[start..at]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes the CRC of the frame at the start of `file` right (length u32, CRC u32 of the salt, the length and the payload),
/// and gives what is behind it; `None` where the frame is not all there.
pub fn seal_frame(file: &mut [u8], header_len: usize, salt: u32) -> Option<&mut [u8]> {
    let len = *file.first_chunk::<4>()?;
    let (frame, behind) =
        file.split_at_mut_checked(header_len.checked_add(u32::from_le_bytes(len) as usize)?)?;
    let crc = crc32c_append(crc32c_append(salt, &len), &frame[header_len..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(behind)
}
