//! Every byte that leaves a process: ids, geometry, stored formats, messages.
//!
//! Keeps: the one definition of each format and message, with its version and its golden file.
//! Order: none; everything here is a pure function of its input.
//! Crash: a decoder refuses what a crash tore, by CRC, and never guesses.
//! Knows no sockets, no files, no clock.

pub mod access;
pub mod bundle;
pub mod checkpoint;
mod checks;
pub mod crc;
pub mod fragment;
pub mod geometry;
pub mod history;
pub mod ids;
mod le;
pub mod log_record;
pub mod manifest;
pub mod object;
pub mod packed_sco;
pub mod records;
pub mod registry_log;
pub mod sco;
pub mod stored_object;
pub mod stream;
pub mod wire;

pub use geometry::{ByteLen, CLUSTER_BYTES, CLUSTER_LEN, ClusterAddress, ClusterCount, ScoSize, VolumeSize};
pub use ids::{
    BackendId, BatchSeq, CheckpointId, Epoch, LineageIndex, Location, ManifestSeq, NodeName, PlaceName,
    ScoId, SessionId, Slot, SnapshotId, VolumeId,
};
pub use object::ObjectName;

/// Why stored bytes or a message could not be decoded.
///
/// The text names the thing, the value that was found and what would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended before the value did.
    #[error("{what} is cut off: {have} bytes are there, {need} are needed")]
    Short {
        /// What was being decoded.
        what: &'static str,
        /// Bytes that the input holds.
        have: usize,
        /// Bytes that the value takes.
        need: usize,
    },
    /// The first bytes are not those of this format.
    #[error("{what} does not start with its magic number: found {found:#010x}, expected {expected:#010x}")]
    Magic {
        /// What was being decoded.
        what: &'static str,
        /// The number that was found.
        found: u32,
        /// The number that this format starts with.
        expected: u32,
    },
    /// A format version that this build does not read.
    #[error("{what} has version {found}; this build reads versions 1 to {newest}")]
    Version {
        /// What was being decoded.
        what: &'static str,
        /// The version that was found.
        found: u32,
        /// The newest version that this build reads.
        newest: u32,
    },
    /// A checksum that does not hold: the bytes are torn or damaged.
    #[error("{what} is damaged: its CRC32C is {found:#010x}, its content gives {expected:#010x}")]
    Crc {
        /// What was being decoded.
        what: &'static str,
        /// The CRC that is stored.
        found: u32,
        /// The CRC of what is there.
        expected: u32,
    },
    /// A value outside its range.
    #[error("{what} is {found}, which is not {expected}")]
    Value {
        /// The field.
        what: &'static str,
        /// The value that was found.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Not well-formed msgpack, or not of the message's shape.
    #[error("{what} is not a well-formed message: {detail}")]
    Msgpack {
        /// What was being decoded.
        what: &'static str,
        /// What the decoder said.
        detail: String,
    },
}
