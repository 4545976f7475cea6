//! A SCO of which only a part is kept: the content of `ObjectName::Sco` with a version above 0 (docs/decisions/0100).
//!
//! Keeps: which chunks of the SCO are there, and where; locations stay those of the SCO as it was written.
//! Order: the head, then the kept chunks in the order in which the SCO had them, so that any range of the SCO lies in one
//! range of the packed content.
//! Crash: nothing of its own; a head that is torn fails its CRC, and chunks are under the envelope's.
//! Knows no back end and no map: who packs says what is live.
//!
//! ```text
//! 0    u32      magic "SCOp"
//! 4    u32      CRC32C of all of the head that follows
//! 8    u32      version, 1
//! 12   u32      chunks of the SCO, the last one perhaps of fewer than 4096 bytes
//! 16   u64      length of the SCO in bytes
//! 24   bitmap   a bit for each chunk, lowest bit first: 1 where it is kept
//! ..   zeros    up to 4096
//! 4096 chunks   those that are kept, one behind the other
//! ```
//!
//! All numbers are little endian. Header area and TLog area are always kept: a SCO still tells its own story.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::DecodeError;
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::crc32c;
use crate::geometry::{CLUSTER_BYTES, CLUSTER_LEN, ScoSize};
use crate::ids::Slot;
use crate::le::u32_at;
use crate::sco::ScoHeader;
use crate::wire::storage::OBJECT_BYTES_MAX;

/// Bytes of the head: one chunk of the envelope, so that reading it is one small read.
pub const HEAD_BYTES: usize = CLUSTER_LEN;
/// Longest SCO that can be packed: it fits into an object even where all of it is kept.
pub const LENGTH_MAX: u64 = OBJECT_BYTES_MAX - HEAD_BYTES as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"SCOp");
const VERSION: u32 = 1;
const CRC_AT: usize = 4;
const SEALED_AT: usize = 8;
const BITMAP_AT: usize = 24;

// The bitmap of the longest SCO fits into the head.
const _: () = assert!(BITMAP_AT as u64 + LENGTH_MAX.div_ceil(CLUSTER_BYTES).div_ceil(8) <= HEAD_BYTES as u64);
// A slot's cluster is one chunk, of the largest SCO too.
const _: () = assert!(ScoSize::HEADER_AREA.is_multiple_of(CLUSTER_BYTES));
const _: () = assert!((ScoSize::CLUSTERS_MIN * ScoSize::TLOG_BYTES_PER_SLOT).is_multiple_of(CLUSTER_BYTES));
const _: () =
    assert!(ScoSize::HEADER_AREA + 16384 * (ScoSize::TLOG_BYTES_PER_SLOT + CLUSTER_BYTES) <= LENGTH_MAX);

const WHAT: &str = "packed SCO";

/// The content of a packed SCO.
#[derive(Debug, Clone, Copy)]
pub struct PackedSco;

impl PackedSco {
    /// Packs a SCO: what is to be stored as its next version. `object` is the SCO as it was written, or as a reader sees
    /// an earlier version of it. Kept are the areas in front of the data, and the clusters of the slots that are live.
    /// Whether the live clusters are whole is the caller's to check, before: a cluster that an earlier version dropped
    /// is zeros here.
    ///
    /// # Errors
    /// No SCO header at the start, or longer than [`LENGTH_MAX`].
    pub fn pack(object: &[u8], is_live: impl Fn(Slot) -> bool) -> Result<Bytes, DecodeError> {
        let first_slot = chunk_of(ScoHeader::from_bytes(object)?.size.data_offset());
        let mut head = PackedHead::without_chunks(object.len() as u64)?;
        for chunk in 0..head.chunks() {
            let is_kept = match chunk.checked_sub(first_slot) {
                None => true,
                Some(slot) => u16::try_from(slot).is_ok_and(|slot| is_live(Slot(slot))),
            };
            head.kept[chunk / 64] |= u64::from(is_kept) << (chunk % 64);
        }
        let mut packed = BytesMut::with_capacity(to_usize(head.packed_len()));
        packed.extend_from_slice(&head.to_bytes());
        for (chunk, bytes) in object.chunks(CLUSTER_LEN).enumerate() {
            if head.is_kept(chunk) {
                packed.extend_from_slice(bytes);
            }
        }
        Ok(packed.freeze())
    }

    /// Whether this is all of a packed SCO, whatever its chunks hold.
    ///
    /// # Errors
    /// As [`PackedHead::from_bytes`]; more or fewer bytes than the head announces.
    pub fn check(packed: &[u8]) -> Result<(), DecodeError> {
        let due = PackedHead::from_bytes(packed)?.packed_len();
        if packed.len() as u64 == due {
            return Ok(());
        }
        Err(DecodeError::Short {
            what: WHAT,
            have: packed.len(),
            need: to_usize(due),
        })
    }
}

/// The head of a packed SCO: which chunks are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedHead {
    length: u64,
    /// A bit for each chunk; none is set beyond the last one.
    kept: Box<[u64]>,
    /// Where the first kept chunk is.
    base: u64,
}

impl PackedHead {
    fn without_chunks(length: u64) -> Result<Self, DecodeError> {
        if length > LENGTH_MAX {
            return Err(DecodeError::Value {
                what: "length of a packed SCO",
                found: format!("{length} bytes"),
                expected: "at most 4096 bytes less than 96 MiB",
            });
        }
        let words = to_usize(length.div_ceil(CLUSTER_BYTES).div_ceil(64));
        Ok(Self {
            length,
            kept: vec![0; words].into(),
            base: HEAD_BYTES as u64,
        })
    }

    /// The same for a SCO of which only these slots are there, one behind the other from `base` on.
    pub(crate) fn of_slots(
        size: ScoSize,
        length: u64,
        slots: impl Iterator<Item = Slot>,
        base: u64,
    ) -> Result<Self, DecodeError> {
        let mut head = Self::without_chunks(length)?;
        head.base = base;
        for chunk in slots.map(|slot| chunk_of(size.slot_offset(slot))) {
            if let Some(word) = head.kept.get_mut(chunk / 64) {
                *word |= 1 << (chunk % 64);
            }
        }
        Ok(head)
    }

    /// The head that these bytes, of which there may be more, start with.
    ///
    /// # Errors
    /// Cut off, no packed SCO, a newer version, damaged, or values that this format does not allow.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Some(bytes) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Err(DecodeError::Short {
                what: WHAT,
                have: bytes.len(),
                need: HEAD_BYTES,
            });
        };
        check_magic(WHAT, u32_at(bytes, 0), MAGIC)?;
        check_crc(WHAT, u32_at(bytes, CRC_AT), crc32c(&bytes[SEALED_AT..]))?;
        check_version(WHAT, u32_at(bytes, 8), VERSION)?;
        let mut head =
            Self::without_chunks(u64::from(u32_at(bytes, 16)) | u64::from(u32_at(bytes, 20)) << 32)?;
        for (word, stored) in head.kept.iter_mut().zip(bytes[BITMAP_AT..].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*stored);
        }
        // The number of chunks, no bit beyond the last one, and zeros behind.
        if head.to_bytes() == *bytes && head.rank(head.chunks()) == head.rank(head.kept.len() * 64) {
            return Ok(head);
        }
        Err(DecodeError::Value {
            what: WHAT,
            found: format!(
                "of {} chunks and {} bytes, or padding",
                u32_at(bytes, 12),
                head.length
            ),
            expected: "as many chunks as its bytes make, and zeros behind their bits",
        })
    }

    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // Bounded by `LENGTH_MAX`.
        let chunks = u32::try_from(self.chunks()).unwrap_or(u32::MAX);
        bytes[12..16].copy_from_slice(&chunks.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        for (stored, word) in bytes[BITMAP_AT..]
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(&self.kept)
        {
            *stored = word.to_le_bytes();
        }
        let crc = crc32c(&bytes[SEALED_AT..]);
        bytes[CRC_AT..SEALED_AT].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Length of the SCO as readers see it, in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Length of the packed content, head and all, in bytes.
    #[must_use]
    pub fn packed_len(&self) -> u64 {
        self.place_of(self.length)
    }

    /// Bytes that this head takes in memory.
    #[must_use]
    pub const fn memory(&self) -> usize {
        size_of::<Self>() + self.kept.len() * size_of::<u64>()
    }

    /// Where the kept chunks of `length` bytes of the SCO from `offset` lie in the packed content; empty where none is
    /// kept, or where the SCO ends before. Never longer than the range of the SCO.
    #[must_use]
    pub fn packed_range(&self, offset: u64, length: u64) -> Range<u64> {
        let wanted = self.within(offset, length);
        self.place_of(wanted.start)..self.place_of(wanted.end)
    }

    /// `length` bytes of the SCO from `offset`, fewer where it ends before, out of what lies in their
    /// [`PackedHead::packed_range`]. Where a chunk was dropped there are zeros: who asks for a dropped cluster sees that
    /// its CRC does not hold. Nothing is copied where nothing was dropped.
    ///
    /// # Errors
    /// `packed` is not as long as the range.
    pub fn expand(&self, offset: u64, length: u64, packed: Bytes) -> Result<Bytes, DecodeError> {
        let wanted = self.within(offset, length);
        let due = self.packed_range(offset, length);
        let due_len = to_usize(due.end - due.start);
        if packed.len() != due_len {
            return Err(DecodeError::Short {
                what: WHAT,
                have: packed.len(),
                need: due_len,
            });
        }
        let wanted_len = to_usize(wanted.end - wanted.start);
        if due_len == wanted_len {
            return Ok(packed);
        }
        let mut expanded = BytesMut::zeroed(wanted_len);
        let (mut kept, mut into) = (&packed[..], &mut expanded[..]);
        let mut at = wanted.start;
        while at < wanted.end {
            let chunk_end = (at / CLUSTER_BYTES + 1) * CLUSTER_BYTES;
            let len = to_usize(chunk_end.min(wanted.end) - at);
            let (part, rest) = into.split_at_mut(len);
            if self.is_kept(chunk_of(at)) {
                // There is as much left: together they are as long as the range, which was checked.
                let (from, left) = kept.split_at(len);
                part.copy_from_slice(from);
                kept = left;
            }
            into = rest;
            at += len as u64;
        }
        Ok(expanded.freeze())
    }

    fn within(&self, offset: u64, length: u64) -> Range<u64> {
        let start = offset.min(self.length);
        start..start.saturating_add(length).min(self.length)
    }

    /// Where the SCO's byte at `offset` is in the packed content, or would be if its chunk were kept. Of the end of a
    /// chunk: where the next one begins.
    fn place_of(&self, offset: u64) -> u64 {
        let chunk = chunk_of(offset);
        let in_chunk = match self.is_kept(chunk) {
            true => offset % CLUSTER_BYTES,
            false => 0,
        };
        self.base + self.rank(chunk) * CLUSTER_BYTES + in_chunk
    }

    fn chunks(&self) -> usize {
        to_usize(self.length.div_ceil(CLUSTER_BYTES))
    }

    fn is_kept(&self, chunk: usize) -> bool {
        let word = self.kept.get(chunk / 64).copied().unwrap_or(0);
        word >> (chunk % 64) & 1 == 1
    }

    /// How many chunks below `chunk` are kept. At most 384 words are counted, which takes less than the read that follows.
    fn rank(&self, chunk: usize) -> u64 {
        let (whole, rest) = self.kept.split_at((chunk / 64).min(self.kept.len()));
        let whole: u64 = whole.iter().map(|word| u64::from(word.count_ones())).sum();
        let below = (1_u64 << (chunk % 64)) - 1;
        whole
            + rest
                .first()
                .map_or(0, |word| u64::from((word & below).count_ones()))
    }
}

fn chunk_of(offset: u64) -> usize {
    to_usize(offset / CLUSTER_BYTES)
}

/// Only for lengths and offsets that were bounded by [`LENGTH_MAX`] or by a buffer before.
fn to_usize(bounded: u64) -> usize {
    usize::try_from(bounded).unwrap_or(usize::MAX)
}
