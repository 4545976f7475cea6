//! What the volume's two trees hold: a SCO's state, and a cluster's location.
//!
//! Keeps: how each is stored in a node; the bytes never change meaning.
//! Order: none.
//! Crash: nothing here survives.
//! Knows no tree.

use sconce_schemas::DecodeError;
use sconce_schemas::ScoId;
use sconce_schemas::checkpoint::TreeKind;
use sconce_schemas::ids::Location;

use crate::tree::Value;

/// State of a SCO. Stored as slots u16, live u16, version u16, the bundle's version u16 (0: it is in none), the SCO that the
/// bundle is named after u64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoState {
    /// Slots that were written, or that the last scrub kept.
    pub slots: u16,
    /// Slots that the head or a snapshot refers to; what a walk is still to find (`reap.rs`) is among them.
    pub live: u16,
    /// The highest version of an object of its name: 0 as written; that of a bundle if one was ever named after it.
    pub version: u16,
    /// The bundle that holds it; `None`: the object of its name and version does.
    pub bundle: Option<InBundle>,
}

/// A bundle, as the state of a SCO in it names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InBundle {
    /// The SCO that it is named after.
    pub named: ScoId,
    /// Its version.
    pub version: u16,
}

impl ScoState {
    /// The version that readers are told. Of a SCO in a bundle it is one that is gone: they are shown to the bundle.
    pub(crate) const fn told_version(self) -> u16 {
        match self.bundle {
            Some(_) => 0,
            None => self.version,
        }
    }
}

impl Value for ScoState {
    const WIDTH: u8 = 16;
    const TREE: TreeKind = TreeKind::Scos;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.slots.to_le_bytes());
        out.extend_from_slice(&self.live.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        let bundle = self.bundle.unwrap_or(InBundle {
            named: ScoId::NONE,
            version: 0,
        });
        out.extend_from_slice(&bundle.version.to_le_bytes());
        out.extend_from_slice(&bundle.named.0.to_le_bytes());
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
        let mut named = [0; 8];
        named.copy_from_slice(&bytes[8..]);
        let bundle = InBundle {
            named: ScoId(u64::from_le_bytes(named)),
            version: word(6),
        };
        Ok(Self {
            slots: word(0),
            live: word(2),
            version: word(4),
            bundle: (bundle.version != 0).then_some(bundle),
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
