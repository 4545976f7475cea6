//! CRC32C (Castagnoli, RFC 3720 appendix B.4), the one checksum of all stored formats.
//!
//! Keeps: which polynomial, and what a salt is made of; neither ever changes.
//! Order: none.
//! Crash: what a crash left half written does not hold.
//! Knows no formats.

use crate::ids::{Epoch, ScoId, VolumeId};

/// CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// CRC32C continued: the CRC of what `crc` covers followed by `bytes`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The salt of a SCO: a CRC that starts from it holds in this SCO of this ownership only, so that what an
/// earlier use of a recycled file left behind never validates.
#[must_use]
pub fn sco_salt(volume: VolumeId, sco: ScoId, epoch: Epoch) -> u32 {
    let mut salt = [0; 32];
    salt[..16].copy_from_slice(&volume.0);
    salt[16..24].copy_from_slice(&sco.0.to_le_bytes());
    salt[24..].copy_from_slice(&epoch.0.to_le_bytes());
    crc32c(&salt)
}
