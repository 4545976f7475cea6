//! A bundle: what is left of several SCOs in one object (docs/decisions/0115).
//!
//! Keeps: which SCOs have clusters in it, which slots of each, where they were written and what their CRCs are.
//! Order: the index, then the clusters: SCO by SCO, slot by slot, so that any range of a SCO is one range of the bundle.
//! Crash: nothing of its own; an index that is torn fails its CRC, and chunks are under the envelope's.
//! Knows no back end and no map: who packs says what is kept.
//!
//! ```text
//! 0    u32      magic "SCOm"
//! 4    u32      CRC32C of all of the index that follows
//! 8    u32      version, 1
//! 12   u32      bytes of the index, a multiple of 4096
//! 16   u32      members
//! 20   u32      clusters
//! 24   16 bytes the volume
//! 40   members  32 bytes each: SCO u64, epoch u64, length of the SCO as it was written u64, its slots when full u32,
//!               clusters of it u32
//! ..   clusters 16 bytes each: address u64, CRC32C u32, slot u16, zeros u16
//! ..   zeros    up to the index's end
//! ..   the clusters, 4096 bytes each
//! ```
//!
//! All numbers are little endian. Its name is that of the last SCO in it, with a version from [`BUNDLE_FROM`] on. The TLogs
//! of the SCOs are not in it, but all that a later scrub needs of them.

use bytes::{Bytes, BytesMut};

use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::crc32c;
use crate::geometry::{CLUSTER_BYTES, CLUSTER_LEN, ScoSize};
use crate::ids::{Epoch, ScoId, Slot, VolumeId};
use crate::le::{u32_at, u64_at};
use crate::packed_sco::PackedHead;
use crate::{ClusterAddress, DecodeError};

/// Versions of a SCO's name from this one on name bundles.
pub const BUNDLE_FROM: u16 = 0x8000;
/// Most clusters of a bundle: those of the largest SCO.
pub const CLUSTERS_MAX: usize = 16384;
/// Longest index: each cluster of a SCO of its own.
pub const INDEX_BYTES_MAX: usize =
    (MEMBERS_AT + CLUSTERS_MAX * (MEMBER_BYTES + CLUSTER_ENTRY_BYTES)).next_multiple_of(CLUSTER_LEN);
/// Bytes that say how long the index is.
pub const START_BYTES: usize = 24;

const WHAT: &str = "bundle";
const MAGIC: u32 = u32::from_le_bytes(*b"SCOm");
const VERSION: u32 = 1;
const SEALED_AT: usize = 8;
const MEMBERS_AT: usize = 40;
const MEMBER_BYTES: usize = 32;
const CLUSTER_ENTRY_BYTES: usize = 16;

// The largest bundle is an object.
const _: () = assert!(
    INDEX_BYTES_MAX as u64 + CLUSTERS_MAX as u64 * CLUSTER_BYTES <= crate::wire::storage::OBJECT_BYTES_MAX
);

/// A cluster that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptCluster {
    /// Its slot in its SCO.
    pub slot: Slot,
    /// What it was written for.
    pub address: ClusterAddress,
    /// CRC32C of what it holds.
    pub crc: u32,
}

/// What is kept of one SCO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its size when full.
    pub size: ScoSize,
    /// Length of the SCO as it was written, in bytes.
    pub length: u64,
    /// Its clusters, by ascending slot; not empty.
    pub kept: Vec<KeptCluster>,
}

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleIndex {
    /// The volume.
    pub volume: VolumeId,
    /// The SCOs, ascending; not empty.
    pub members: Vec<Member>,
}

impl BundleIndex {
    /// How many bytes the index takes that starts with these, of which there are at least [`START_BYTES`].
    ///
    /// # Errors
    /// Cut off, no bundle, a newer version, or longer than an index can be.
    pub fn len_of(bytes: &[u8]) -> Result<usize, DecodeError> {
        let Some(start) = bytes.first_chunk::<START_BYTES>() else {
            return Err(short(bytes.len(), START_BYTES));
        };
        check_magic(WHAT, u32_at(start, 0), MAGIC)?;
        check_version(WHAT, u32_at(start, 8), VERSION)?;
        let len = u32_at(start, 12) as usize;
        if (CLUSTER_LEN..=INDEX_BYTES_MAX).contains(&len) && len.is_multiple_of(CLUSTER_LEN) {
            return Ok(len);
        }
        Err(wrong(
            format!("with an index of {len} bytes"),
            "of whole chunks within its limits",
        ))
    }

    /// The index that these bytes, of which there may be more, start with.
    ///
    /// # Errors
    /// Cut off, no bundle, a newer version, damaged, or values that this format does not allow.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let len = Self::len_of(bytes)?;
        let stored = bytes.get(..len).ok_or_else(|| short(bytes.len(), len))?;
        check_crc(WHAT, u32_at(stored, 4), crc32c(&stored[SEALED_AT..]))?;
        let (members, clusters) = (u32_at(stored, 16) as usize, u32_at(stored, 20) as usize);
        let is_too_much = || {
            wrong(
                format!("of {members} SCOs and {clusters} clusters"),
                "within its index",
            )
        };
        if members > clusters || clusters > CLUSTERS_MAX {
            return Err(is_too_much());
        }
        let mut volume = VolumeId([0; 16]);
        volume.0.copy_from_slice(&stored[24..40]);
        let entries_at = MEMBERS_AT + members * MEMBER_BYTES;
        let table = stored.get(MEMBERS_AT..entries_at).ok_or_else(is_too_much)?;
        let entries = stored.get(entries_at..entries_at + clusters * CLUSTER_ENTRY_BYTES);
        let mut entries = entries
            .ok_or_else(is_too_much)?
            .chunks_exact(CLUSTER_ENTRY_BYTES)
            .map(|entry| KeptCluster {
                address: ClusterAddress(u64_at(entry, 0)),
                crc: u32_at(entry, 8),
                slot: Slot(u16::from_le_bytes([entry[12], entry[13]])),
            });
        let members = table.chunks_exact(MEMBER_BYTES).map(|member| {
            Ok(Member {
                sco: ScoId(u64_at(member, 0)),
                epoch: Epoch(u64_at(member, 8)),
                length: u64_at(member, 16),
                size: ScoSize::new(u64::from(u32_at(member, 24)))?,
                kept: entries.by_ref().take(u32_at(member, 28) as usize).collect(),
            })
        });
        let index = Self {
            volume,
            members: members.collect::<Result<_, DecodeError>>()?,
        };
        index.check()?;
        // The numbers in front, and zeros wherever there are some.
        if index.to_bytes() == stored {
            return Ok(index);
        }
        Err(wrong(
            "with other numbers than its SCOs make, or padding".to_owned(),
            "as it is written",
        ))
    }

    /// Whether it may be written.
    ///
    /// # Errors
    /// Nothing in it, too much, or out of order.
    pub fn check(&self) -> Result<(), DecodeError> {
        if self.members.is_empty() || self.clusters() > CLUSTERS_MAX {
            return Err(wrong(
                format!("of {} clusters", self.clusters()),
                "of 1 to 16384 clusters",
            ));
        }
        let key = |member: &Member| (member.sco, member.epoch);
        if !self.members.is_sorted_by(|a, b| key(a) < key(b)) {
            return Err(wrong("with SCOs out of order".to_owned(), "by ascending SCO"));
        }
        for member in &self.members {
            let end = member
                .kept
                .last()
                .map(|last| member.size.slot_offset(last.slot) + CLUSTER_BYTES);
            let fits = end.is_some_and(|end| (end..=member.size.file_len()).contains(&member.length));
            if !fits || !member.kept.is_sorted_by(|a, b| a.slot < b.slot) {
                let found = format!(
                    "with SCO {} of {} bytes that ends at {end:?}",
                    member.sco, member.length
                );
                return Err(wrong(found, "with slots that ascend within the SCO"));
            }
        }
        Ok(())
    }

    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.index_len()];
        // Bounded by `CLUSTERS_MAX`.
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let len = small(bytes.len());
        bytes[12..16].copy_from_slice(&len);
        bytes[16..20].copy_from_slice(&small(self.members.len()));
        bytes[20..24].copy_from_slice(&small(self.clusters()));
        bytes[24..40].copy_from_slice(&self.volume.0);
        let (table, entries) = bytes[MEMBERS_AT..].split_at_mut(self.members.len() * MEMBER_BYTES);
        for (stored, member) in table.chunks_exact_mut(MEMBER_BYTES).zip(&self.members) {
            stored[..8].copy_from_slice(&member.sco.0.to_le_bytes());
            stored[8..16].copy_from_slice(&member.epoch.0.to_le_bytes());
            stored[16..24].copy_from_slice(&member.length.to_le_bytes());
            stored[24..28].copy_from_slice(&u32::from(member.size.slots()).to_le_bytes());
            stored[28..32].copy_from_slice(&small(member.kept.len()));
        }
        let kept = self.members.iter().flat_map(|member| &member.kept);
        for (stored, kept) in entries.chunks_exact_mut(CLUSTER_ENTRY_BYTES).zip(kept) {
            stored[..8].copy_from_slice(&kept.address.0.to_le_bytes());
            stored[8..12].copy_from_slice(&kept.crc.to_le_bytes());
            stored[12..14].copy_from_slice(&kept.slot.0.to_le_bytes());
        }
        let crc = crc32c(&bytes[SEALED_AT..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Clusters in the bundle.
    #[must_use]
    pub fn clusters(&self) -> usize {
        self.members.iter().map(|member| member.kept.len()).sum()
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.index_len() as u64 + self.clusters() as u64 * CLUSTER_BYTES
    }

    /// How a reader of one of the SCOs finds its ranges in the bundle.
    ///
    /// # Errors
    /// A SCO that is too long.
    pub fn view(&self, at: usize) -> Result<Option<PackedHead>, DecodeError> {
        let Some(member) = self.members.get(at) else {
            return Ok(None);
        };
        let before: usize = self.members[..at].iter().map(|member| member.kept.len()).sum();
        let base = (self.index_len() + before * CLUSTER_LEN) as u64;
        let slots = member.kept.iter().map(|kept| kept.slot);
        PackedHead::of_slots(member.size, member.length, slots, base).map(Some)
    }

    /// The bundle, out of its clusters in order.
    ///
    /// # Errors
    /// As [`BundleIndex::check`]; more or fewer clusters than the index has.
    pub fn pack<'a>(&self, clusters: impl IntoIterator<Item = &'a [u8]>) -> Result<Bytes, DecodeError> {
        self.check()?;
        let mut bundle = BytesMut::with_capacity(usize::try_from(self.object_len()).unwrap_or(0));
        bundle.extend_from_slice(&self.to_bytes());
        for cluster in clusters {
            bundle.extend_from_slice(cluster);
        }
        let bundle = bundle.freeze();
        match bundle.len() as u64 == self.object_len() {
            true => Ok(bundle),
            false => Err(short(
                bundle.len(),
                usize::try_from(self.object_len()).unwrap_or(usize::MAX),
            )),
        }
    }

    /// Whether this is all of a bundle, whatever its clusters hold.
    ///
    /// # Errors
    /// As [`BundleIndex::from_bytes`]; more or fewer bytes than the index announces.
    pub fn check_whole(bundle: &[u8]) -> Result<(), DecodeError> {
        let due = Self::from_bytes(bundle)?.object_len();
        match bundle.len() as u64 == due {
            true => Ok(()),
            false => Err(short(bundle.len(), usize::try_from(due).unwrap_or(usize::MAX))),
        }
    }

    /// Bytes of the index.
    #[must_use]
    pub fn index_len(&self) -> usize {
        (MEMBERS_AT + self.members.len() * MEMBER_BYTES + self.clusters() * CLUSTER_ENTRY_BYTES)
            .next_multiple_of(CLUSTER_LEN)
    }
}

fn short(have: usize, need: usize) -> DecodeError {
    DecodeError::Short {
        what: WHAT,
        have,
        need,
    }
}

fn wrong(found: String, expected: &'static str) -> DecodeError {
    DecodeError::Value {
        what: WHAT,
        found,
        expected,
    }
}
