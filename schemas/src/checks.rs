//! What every stored format is asked first: is it one, does this build read it, is it whole.
//!
//! Keeps: nothing.
//! Order: each format's own; where the version is within what a CRC covers, that is checked before.
//! Crash: what was torn fails its CRC.
//! Knows no formats.

use crate::DecodeError;

/// The first bytes are a format's.
pub(crate) fn check_magic(what: &'static str, found: u32, expected: u32) -> Result<(), DecodeError> {
    if found == expected {
        return Ok(());
    }
    Err(DecodeError::Magic {
        what,
        found,
        expected,
    })
}

/// This build reads the version: 1 to the newest that it knows.
pub(crate) fn check_version(what: &'static str, found: u32, newest: u32) -> Result<(), DecodeError> {
    if (1..=newest).contains(&found) {
        return Ok(());
    }
    Err(DecodeError::Version { what, found, newest })
}

/// The stored CRC is that of what is there.
pub(crate) fn check_crc(what: &'static str, found: u32, expected: u32) -> Result<(), DecodeError> {
    if found == expected {
        return Ok(());
    }
    Err(DecodeError::Crc {
        what,
        found,
        expected,
    })
}
