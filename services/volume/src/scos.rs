//! What the volume's two trees hold: a SCO's state, and a cluster's location.
//!
//! Keeps: how each is stored in a node; the bytes never change meaning.
//! Order: none.
//! Crash: nothing here survives.
//! Knows no tree.

use sconce_schemas::DecodeError;
use sconce_schemas::checkpoint::TreeKind;
use sconce_schemas::ids::Location;

use crate::tree::Value;

/// State of a SCO. Stored as slots u16, live u16, version u16, reserved u16, reserved u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoState {
    /// Slots that were written.
    pub slots: u16,
    /// Slots that the head or a snapshot refers to; what a walk is still to find (`reap.rs`) is among them.
    pub live: u16,
    /// Version: 0 as written.
    pub version: u16,
}

impl Value for ScoState {
    const WIDTH: u8 = 16;
    const TREE: TreeKind = TreeKind::Scos;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.slots.to_le_bytes());
        out.extend_from_slice(&self.live.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 10]);
    }

    fn take(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some(bytes) = bytes.first_chunk::<16>() else {
            return Err(DecodeError::Short {
                what: "SCO state",
                have: bytes.len(),
                need: 16,
            });
        };
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Ok(Self {
            slots: word(0),
            live: word(2),
            version: word(4),
        })
    }
}

impl Value for Location {
    const WIDTH: u8 = 12;
    const TREE: TreeKind = TreeKind::Map;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    fn take(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes.first_chunk::<{ Location::STORED_LEN }>() {
            Some(bytes) => Ok(Location::from_bytes(*bytes)),
            None => Err(DecodeError::Short {
                what: "location",
                have: bytes.len(),
                need: Location::STORED_LEN,
            }),
        }
    }
}
