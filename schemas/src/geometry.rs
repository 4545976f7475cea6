//! Sizes: clusters, SCOs, volumes, and the crossing between bytes and clusters.
//!
//! Keeps: the layout of a SCO as a function of its size; the bounds of a volume.
//! Order, crash: nothing; sizes are values.
//! Knows no formats beyond where their areas lie.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::DecodeError;

/// Bytes of a cluster, the unit of mapping, caching and checksumming.
pub const CLUSTER_BYTES: u64 = 4096;
/// The same as a buffer length.
pub const CLUSTER_LEN: usize = 4096;
/// Smallest unit that a client may address.
pub const SECTOR_BYTES: u64 = 512;

/// Address of a cluster in its volume: byte offset / 4096.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterAddress(pub u64);

/// A number of clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterCount(pub u64);

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteLen(pub u64);

impl ClusterAddress {
    /// The cluster that holds byte `offset`: the one crossing from bytes to clusters.
    #[must_use]
    pub const fn holding(offset: u64) -> Self {
        Self(offset / CLUSTER_BYTES)
    }

    /// Offset of the cluster's first byte: the one crossing back.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        self.0 * CLUSTER_BYTES
    }
}

impl ByteLen {
    /// How many clusters these bytes take, the last one perhaps in part.
    #[must_use]
    pub const fn clusters_ceil(self) -> ClusterCount {
        ClusterCount(self.0.div_ceil(CLUSTER_BYTES))
    }
}

impl ClusterCount {
    /// The bytes of this many clusters.
    #[must_use]
    pub const fn bytes(self) -> ByteLen {
        ByteLen(self.0 * CLUSTER_BYTES)
    }
}

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match UNITS
            .iter()
            .find(|(_, shift)| self.0 >= 1 << shift && self.0.trailing_zeros() >= *shift)
        {
            Some((unit, shift)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Size of a volume in bytes: 0 to 64 TiB, any number of bytes (a volume may hold a 2 KiB file).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VolumeSize(u64);

impl VolumeSize {
    /// The largest volume.
    pub const MAX: VolumeSize = VolumeSize(64 << 40);

    /// A size that was checked.
    ///
    /// # Errors
    /// More than 64 TiB.
    pub fn new(bytes: u64) -> Result<Self, DecodeError> {
        if bytes > Self::MAX.0 {
            return Err(DecodeError::Value {
                what: "volume size",
                found: format!("{bytes} bytes"),
                expected: "at most 64 TiB (70368744177664 bytes)",
            });
        }
        Ok(Self(bytes))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Clusters that the volume spans, the last one perhaps in part.
    #[must_use]
    pub const fn clusters(self) -> ClusterCount {
        ByteLen(self.0).clusters_ceil()
    }
}

impl<'de> Deserialize<'de> for VolumeSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// How many clusters a SCO of a volume holds, and with it where the areas of a SCO lie.
///
/// Layout: header (one cluster), TLog area (64 bytes a slot: even a SCO filled by one-cluster batches fits,
/// [`crate::sco`] asserts that), data area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ScoSize(u16);

impl Default for ScoSize {
    fn default() -> Self {
        Self(1024)
    }
}

impl ScoSize {
    /// Bytes of the header area.
    pub const HEADER_AREA: u64 = CLUSTER_BYTES;
    /// Clusters of the smallest SCO: 256 KiB.
    pub const CLUSTERS_MIN: u64 = 64;
    /// Bytes of TLog area for each slot.
    pub const TLOG_BYTES_PER_SLOT: u64 = 64;

    /// A SCO size in clusters.
    ///
    /// # Errors
    /// Not a power of two from 64 (256 KiB) to 16384 (64 MiB).
    pub fn new(clusters: u64) -> Result<Self, DecodeError> {
        match u16::try_from(clusters) {
            Ok(slots) if slots.is_power_of_two() && (64..=16384).contains(&slots) => Ok(Self(slots)),
            _ => Err(DecodeError::Value {
                what: "SCO size",
                found: format!("{clusters} clusters"),
                expected: "a power of two from 64 (256 KiB) to 16384 (64 MiB)",
            }),
        }
    }

    /// Slots in the data area.
    #[must_use]
    pub const fn slots(self) -> u16 {
        self.0
    }

    /// Bytes of the TLog area.
    #[must_use]
    pub const fn tlog_area(self) -> u64 {
        self.0 as u64 * Self::TLOG_BYTES_PER_SLOT
    }

    /// Offset of the data area in the SCO.
    #[must_use]
    pub const fn data_offset(self) -> u64 {
        Self::HEADER_AREA + self.tlog_area()
    }

    /// Offset of a slot's cluster in the SCO.
    #[must_use]
    pub const fn slot_offset(self, slot: crate::ids::Slot) -> u64 {
        self.data_offset() + slot.0 as u64 * CLUSTER_BYTES
    }

    /// Bytes of a whole SCO with all its areas.
    #[must_use]
    pub const fn file_len(self) -> u64 {
        self.data_offset() + self.0 as u64 * CLUSTER_BYTES
    }
}

impl<'de> Deserialize<'de> for ScoSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
