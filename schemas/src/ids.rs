//! Identifiers, each a type of its own so that no two can be mixed up.
//!
//! Keeps: how each id is written as text (object names, messages to people) and packed into bytes.
//! Order: ids that count (`ScoId`, `Epoch`, `BatchSeq`, …) only ever grow within their volume.
//! Crash: nothing; ids are values.
//! Knows no storage and no wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DecodeError;

/// Makes a counting id: a `u64` that starts at 1, prints as decimal and has a successor.
macro_rules! counting_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The id before the first: nothing carries it.
            pub const NONE: Self = Self(0);
            /// The first id that is given out.
            pub const FIRST: Self = Self(1);

            /// Whether nothing carries it.
            #[must_use]
            pub const fn is_none(&self) -> bool {
                self.0 == 0
            }

            /// The id after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The id before this one; `NONE` stays `NONE`.
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counting_id! {
    /// Number of a SCO in its volume: SCOs are numbered in the order in which they were opened.
    /// At most [`ScoId::MAX`]: 36 bits, 256 PiB of writes with 4 MiB SCOs.
    ScoId
}
counting_id! {
    /// Number of an ownership of a volume. The registry raises it by compare-and-swap at each takeover.
    Epoch
}
counting_id! {
    /// Number of a TLog batch in its volume, without gaps across SCOs and epochs.
    BatchSeq
}
counting_id! {
    /// Number of a checkpoint object in its volume.
    CheckpointId
}
counting_id! {
    /// Number of a manifest in its volume.
    ManifestSeq
}

impl ScoId {
    /// The largest id that a packed [`Location`] can hold.
    pub const MAX: ScoId = ScoId((1 << Location::SCO_BITS) - 1);
}

/// A volume, for ever: 128 random bits, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// The id as two numbers, for formats that store words.
    #[must_use]
    pub fn from_u128(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeId({self})")
    }
}

impl FromStr for VolumeId {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let wrong = || DecodeError::Value {
            what: "volume id",
            found: format!("{text:?}"),
            expected: "32 hexadecimal digits in lower case",
        };
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        u128::from_str_radix(text, 16)
            .map(Self::from_u128)
            .map_err(|_| wrong())
    }
}

impl Serialize for VolumeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VolumeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A back end, for ever: 128 random bits given at its first start, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u128);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendId({self})")
    }
}

impl FromStr for BackendId {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let id = u128::from_str_radix(text, 16).ok().map(Self);
        id.filter(|id| id.to_string() == text)
            .ok_or_else(|| DecodeError::Value {
                what: "back end id",
                found: format!("{text:?}"),
                expected: "32 hexadecimal digits in lower case",
            })
    }
}

impl Serialize for BackendId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Position of a cluster in its SCO, counted in clusters from the start of the data area.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

/// Index of a volume in a lineage table: the root ancestor is 0, the volume itself the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LineageIndex(pub u16);

impl LineageIndex {
    /// The largest index that a packed [`Location`] can hold: a depth that no chain of clones reaches.
    pub const MAX: LineageIndex = LineageIndex((1 << Location::LINEAGE_BITS) - 1);
}

/// One client's numbered sequence of operations on one volume (DESIGN.md §4), random and never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A snapshot in its volume, random and never reused: written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Name of one running service of a pool, as its settings give it (`vr-1`): 1 to 63 of `a-z 0-9 - .`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let fits = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
            && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(DecodeError::Value {
            what: "node name",
            found: format!("{text:?}"),
            expected: "1 to 63 of a-z, 0-9, '-' and '.', a letter or digit first",
        })
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Name of a machine, a rack or whatever else services are in: 1 to 64 of `a-z A-Z 0-9 - . _ :`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PlaceName(String);

impl PlaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&NodeName> for PlaceName {
    fn from(node: &NodeName) -> Self {
        // Every node's name is one.
        Self(node.0.clone())
    }
}

impl FromStr for PlaceName {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let is_one = |c| matches!(c, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':');
        if (1..=64).contains(&text.len()) && text.bytes().all(is_one) {
            return Ok(Self(text.to_owned()));
        }
        Err(DecodeError::Value {
            what: "name of a machine or failure domain",
            found: format!("{text:?}"),
            expected: "1 to 64 of a-z, A-Z, 0-9, '-', '.', '_' and ':'",
        })
    }
}

impl<'de> Deserialize<'de> for PlaceName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a cluster's content is, and its CRC32C: what a map leaf holds for each cluster. 12 bytes.
///
/// The place is packed into 64 bits: lineage index (14), SCO id (36), slot (14). SCO id 0 is no SCO:
/// with slot 0 the cluster was never written, with slot 1 it was written as zeros and counts as
/// allocated (NBD's `NO_HOLE`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Location {
    place: [u32; 2],
    crc: u32,
}

impl Location {
    /// Bits of the SCO id.
    pub const SCO_BITS: u32 = 36;
    /// Bits of the lineage index.
    pub const LINEAGE_BITS: u32 = 14;
    /// Bits of the slot.
    pub const SLOT_BITS: u32 = 14;
    /// Stored size of a location.
    pub const STORED_LEN: usize = 12;

    /// A cluster that was never written, or was discarded: reads as zeros, takes no space.
    pub const HOLE: Location = Location {
        place: [0, 0],
        crc: 0,
    };
    /// A cluster that reads as zeros but counts as allocated; takes no space in any SCO.
    pub const ZEROS: Location = Location {
        place: [1, 0],
        crc: 0,
    };

    /// The location of `slot` in `sco` of the volume at `lineage`.
    ///
    /// The id bounds are the caller's: [`ScoId::MAX`], [`LineageIndex::MAX`] and the SCO's slot count are
    /// checked where ids are given out.
    #[must_use]
    pub fn new(lineage: LineageIndex, sco: ScoId, slot: Slot, crc: u32) -> Self {
        debug_assert!(sco != ScoId::NONE && sco <= ScoId::MAX && lineage <= LineageIndex::MAX);
        let place = (u64::from(lineage.0) << (Self::SCO_BITS + Self::SLOT_BITS))
            | (sco.0 << Self::SLOT_BITS)
            | u64::from(slot.0);
        Self::from_place(place, crc)
    }

    #[expect(clippy::cast_possible_truncation, reason = "splits 64 bits into two halves")]
    const fn from_place(place: u64, crc: u32) -> Self {
        Self {
            place: [place as u32, (place >> 32) as u32],
            crc,
        }
    }

    const fn place(self) -> u64 {
        self.place[0] as u64 | ((self.place[1] as u64) << 32)
    }

    /// Whether the cluster reads as zeros without any SCO: a hole or allocated zeros.
    #[must_use]
    pub const fn reads_zeros(self) -> bool {
        self.sco().0 == 0
    }

    /// Whether the cluster is a hole: never written, or discarded.
    #[must_use]
    pub const fn is_hole(self) -> bool {
        self.place() == 0
    }

    /// The SCO; `ScoId::NONE` where the cluster reads as zeros.
    #[must_use]
    pub const fn sco(self) -> ScoId {
        ScoId((self.place() >> Self::SLOT_BITS) & ((1 << Self::SCO_BITS) - 1))
    }

    /// The slot in that SCO.
    #[must_use]
    pub const fn slot(self) -> Slot {
        Slot((self.place() & ((1 << Self::SLOT_BITS) - 1)) as u16)
    }

    /// The volume in the lineage table whose SCO it is.
    #[must_use]
    pub const fn lineage(self) -> LineageIndex {
        LineageIndex((self.place() >> (Self::SCO_BITS + Self::SLOT_BITS)) as u16)
    }

    /// CRC32C of the cluster's 4096 bytes.
    #[must_use]
    pub const fn crc(self) -> u32 {
        self.crc
    }

    /// The 12 stored bytes: the packed place, then the CRC, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::STORED_LEN] {
        let mut bytes = [0; Self::STORED_LEN];
        bytes[..8].copy_from_slice(&self.place().to_le_bytes());
        bytes[8..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// The location that these bytes store; every bit pattern is one.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::STORED_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self::from_place(
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u32::from_le_bytes([i, j, k, l]),
        )
    }
}

const _: () = assert!(Location::SCO_BITS + Location::LINEAGE_BITS + Location::SLOT_BITS == 64);
const _: () = assert!(size_of::<Location>() == Location::STORED_LEN);

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_hole() {
            return f.write_str("hole");
        }
        if self.reads_zeros() {
            return f.write_str("zeros");
        }
        write!(
            f,
            "{}:{}/{}#{:08x}",
            self.lineage().0,
            self.sco(),
            self.slot().0,
            self.crc
        )
    }
}
