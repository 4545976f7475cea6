//! Fragments: what a back end keeps of an object in a pool with a policy, instead of a whole copy (docs/decisions/0200).
//!
//! Keeps: how an object is cut, and the head that each of its fragments begins with.
//! Order: head, padding up to a multiple of 4096, then the body.
//! Crash: the envelope around a fragment ([`crate::stored_object`]) says whether it is whole.
//! Knows no code, no cipher and no compression: it says which were used and how long what they made is.
//!
//! ```text
//! 0    u32      magic "SCfh"
//! 4    u16      version, 1
//! 6    u8       fragments with data, K (1: each fragment holds all)
//! 7    u8       fragments with parity, M
//! 8    u8       compression: 0 none, 1 LZ4, 2 Zstandard
//! 9    u8       binary logarithm of the bytes of a chunk
//! 10   u16      zero
//! 12   u32      id of the key, 0: not encrypted
//! 16   u64      fingerprint of the key
//! 24   16 bytes salt of the object's own key
//! 40   u64      length of the object in bytes
//! 48   u32 K+M  CRC32C of each body
//! ..   chunks   u32 stored bytes, bit 31: compressed; u32 CRC32C of the stored bytes
//! ..   u32      CRC32C of all before
//! ```
//!
//! All numbers are little endian. The object is cut into K pieces at multiples of 4096 bytes, each piece into chunks;
//! a chunk is compressed and encrypted by itself. The body of fragment `i < K` is the stored chunks of piece `i`; the
//! bodies from K on are parity over the others, which count as padded with zeros to the same length, a multiple of 64.
//! With K = 1 all bodies are the same. The head is the same in all fragments of an object, the table in it is of all
//! chunks: whoever has read one head knows where everything is. Two fragments belong together if their heads are equal.

use std::ops::Range;

use crate::DecodeError;
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::crc32c;
use crate::geometry::CLUSTER_LEN;
use crate::le::{u32_at, u64_at};
use crate::records::{Compression, Protection};
use crate::stored_object::FragmentId;
use crate::wire::storage::OBJECT_BYTES_MAX;

/// First four bytes of a fragment: `SCfh`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SCfh");
/// The newest version that this build reads, and the one that it writes.
pub const VERSION: u16 = 1;
/// Bytes that tell how long a head is.
pub const FIXED_BYTES: usize = 48;
/// Bytes of a chunk in what is written now: what a read of a cluster decrypts and expands.
pub const CHUNK_BYTES_LOG2: u8 = 16;
/// Bytes that encryption adds to a chunk.
pub const TAG_BYTES: usize = 16;
/// Bodies that parity is computed over have a multiple of so many bytes.
pub const SHARD_UNIT: usize = 64;
/// Bytes of the salt of an object's own key.
pub const SALT_BYTES: usize = 16;

const WHAT: &str = "fragment head";
const CRC_BYTES: usize = 4;
const CHUNK_ENTRY_BYTES: usize = 8;
const COMPRESSED: u32 = 1 << 31;
const CHUNK_LOG2: Range<u8> = 12..25;
const WIDTH_MAX: usize = 32;

// A chunk's stored length and the bit beside it fit into a u32, with room for the tag.
const _: () = assert!((1_u64 << CHUNK_LOG2.end) < COMPRESSED as u64);
const _: () = assert!(Protection::DATA_MAX as usize + Protection::PARITY_MAX as usize <= WIDTH_MAX);
const _: () = assert!(Protection::REPLICAS_MAX as usize <= WIDTH_MAX);

/// How an object is cut into pieces and chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Pieces: fragments with data.
    pub data: u8,
    /// Fragments with parity; with one piece, further copies.
    pub parity: u8,
    /// Binary logarithm of the bytes of a chunk.
    pub chunk_log2: u8,
    /// Length of the object in bytes.
    pub length: u64,
}

/// A part of a piece, as an object's reader needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Its number among all chunks of the object.
    pub index: usize,
    /// The fragment that it is in.
    pub fragment: u8,
    /// Where it begins in the object.
    pub at: u64,
    /// Its bytes in the object.
    pub length: usize,
}

impl Cut {
    /// How a pool of this protection cuts an object of `length` bytes.
    #[must_use]
    pub const fn of(protection: Protection, length: u64) -> Self {
        let (data, parity) = match protection {
            Protection::Replicas(copies) => (1, copies.saturating_sub(1)),
            Protection::Erasure { data, parity } => (data, parity),
        };
        Self {
            data,
            parity,
            chunk_log2: CHUNK_BYTES_LOG2,
            length,
        }
    }

    /// Fragments.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.data as usize + self.parity as usize
    }

    /// Bytes of each piece but the last that has any: a cluster of a SCO is never cut in two.
    #[must_use]
    pub fn piece_bytes(&self) -> u64 {
        let even = self.length.div_ceil(u64::from(self.data.max(1)));
        even.next_multiple_of(CLUSTER_LEN as u64)
    }

    /// The piece of the object that a fragment holds.
    #[must_use]
    pub fn piece(&self, fragment: u8) -> Range<u64> {
        let piece = self.piece_bytes();
        let start = (piece * u64::from(fragment)).min(self.length);
        start..(start + piece).min(self.length)
    }

    /// Chunks of a full piece.
    fn chunks_of_piece(&self) -> u64 {
        self.piece_bytes().div_ceil(1 << self.chunk_log2)
    }

    /// All chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkPlace> + use<> {
        let (cut, chunk) = (*self, 1_usize << self.chunk_log2);
        let places = (0..cut.data).flat_map(move |fragment| {
            let piece = cut.piece(fragment);
            piece.clone().step_by(chunk).map(move |at| {
                let length = to_usize(piece.end - at).min(chunk);
                (fragment, at, length)
            })
        });
        places
            .enumerate()
            .map(|(index, (fragment, at, length))| ChunkPlace {
                index,
                fragment,
                at,
                length,
            })
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        let chunks = |fragment| {
            let piece = self.piece(fragment);
            (piece.end - piece.start).div_ceil(1 << self.chunk_log2)
        };
        to_usize((0..self.data).map(chunks).sum())
    }

    /// The chunks that hold a range of the object, by their numbers.
    #[must_use]
    pub fn chunks_holding(&self, range: &Range<u64>) -> Range<usize> {
        let (start, end) = (range.start.min(self.length), range.end.min(self.length));
        if start >= end {
            return 0..0;
        }
        let index_of = |at: u64| {
            let piece = self.piece_bytes();
            to_usize(at / piece * self.chunks_of_piece() + ((at % piece) >> self.chunk_log2))
        };
        index_of(start)..index_of(end - 1) + 1
    }

    /// Bytes of the head.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        FIXED_BYTES + CRC_BYTES * self.width() + CHUNK_ENTRY_BYTES * self.chunk_count() + CRC_BYTES
    }

    /// Where the body begins in a fragment.
    #[must_use]
    pub fn body_at(&self) -> usize {
        self.head_bytes().next_multiple_of(CLUSTER_LEN)
    }

    fn check(self) -> Result<Self, DecodeError> {
        let is_right = (1..=usize::from(Protection::DATA_MAX)).contains(&usize::from(self.data))
            && self.parity <= Protection::PARITY_MAX
            && CHUNK_LOG2.contains(&self.chunk_log2)
            && self.length <= OBJECT_BYTES_MAX;
        if is_right {
            return Ok(self);
        }
        Err(DecodeError::Value {
            what: WHAT,
            found: format!(
                "{}+{} fragments of {} bytes in chunks of 2^{}",
                self.data, self.parity, self.length, self.chunk_log2
            ),
            expected: "1 to 16 fragments with data, up to 8 with parity, of up to 96 MiB, in chunks of 2^12 to 2^24",
        })
    }
}

/// With which key an object was encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealing {
    /// The key's id, not 0.
    pub key: u32,
    /// What tells the key from another one that has this id by mistake.
    pub fingerprint: u64,
    /// Salt of the object's own key.
    pub salt: [u8; SALT_BYTES],
}

/// A chunk as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Where it is in its fragment's body.
    pub at: u64,
    /// Its bytes there.
    pub stored: u32,
    /// Whether it is compressed.
    pub is_compressed: bool,
    /// CRC32C of the stored bytes.
    pub crc: u32,
}

/// What each fragment of an object begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentHead {
    cut: Cut,
    compression: Option<Compression>,
    sealing: Option<Sealing>,
    body_crcs: Vec<u32>,
    chunks: Vec<StoredChunk>,
    body_lens: Vec<u64>,
    bytes: Vec<u8>,
}

impl FragmentHead {
    /// The head of an object's fragments. `chunks` are (stored bytes, whether they are compressed, their CRC32C), in order.
    ///
    /// # Errors
    /// Numbers that no head can have.
    pub fn new(
        cut: Cut,
        compression: Option<Compression>,
        sealing: Option<Sealing>,
        body_crcs: &[u32],
        chunks: &[(u32, bool, u32)],
    ) -> Result<Self, DecodeError> {
        let mut bytes = Vec::with_capacity(cut.check()?.head_bytes());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let code = compression.map_or(0, code_of);
        bytes.extend_from_slice(&[cut.data, cut.parity, code, cut.chunk_log2, 0, 0]);
        let (key, fingerprint, salt) = sealing.map_or((0, 0, [0; SALT_BYTES]), |sealing| {
            (sealing.key, sealing.fingerprint, sealing.salt)
        });
        bytes.extend_from_slice(&key.to_le_bytes());
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
        bytes.extend_from_slice(&salt);
        bytes.extend_from_slice(&cut.length.to_le_bytes());
        for crc in body_crcs {
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        for (stored, is_compressed, crc) in chunks {
            let flag = if *is_compressed { COMPRESSED } else { 0 };
            bytes.extend_from_slice(&(stored | flag).to_le_bytes());
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Self::from_bytes(&bytes)
    }

    /// How long the head is that begins with `bytes`.
    ///
    /// # Errors
    /// Less than [`FIXED_BYTES`], not of this format, of a newer version, or numbers that no head can have.
    pub fn len_of(bytes: &[u8]) -> Result<usize, DecodeError> {
        Ok(cut_of(bytes)?.head_bytes())
    }

    /// The head that `bytes` begin with. Whatever they are, nothing is allocated beyond some times their length.
    ///
    /// # Errors
    /// As [`FragmentHead::len_of`]; cut off, damaged, or a table that does not fit the object's length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cut = cut_of(bytes)?;
        let need = cut.head_bytes();
        let Some(bytes) = bytes.get(..need) else {
            return Err(DecodeError::Short {
                what: WHAT,
                have: bytes.len(),
                need,
            });
        };
        let (found, expected) = (
            u32_at(bytes, need - CRC_BYTES),
            crc32c(&bytes[..need - CRC_BYTES]),
        );
        check_crc(WHAT, found, expected)?;
        let compression = match bytes[8] {
            0 => None,
            1 => Some(Compression::Lz4),
            2 => Some(Compression::Zstd),
            code => return Err(wrong("compression", u64::from(code), "0 to 2")),
        };
        if bytes[10..12] != [0, 0] {
            return Err(wrong("padding", u64::from(bytes[10].max(bytes[11])), "zero"));
        }
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[24..40]);
        let (key, fingerprint) = (u32_at(bytes, 12), u64_at(bytes, 16));
        let sealing = (key != 0).then_some(Sealing {
            key,
            fingerprint,
            salt,
        });
        let tables = 48 + CRC_BYTES * cut.width();
        let body_crcs = (0..cut.width()).map(|index| u32_at(bytes, 48 + CRC_BYTES * index));
        let mut head = Self {
            cut,
            compression,
            sealing,
            body_crcs: body_crcs.collect(),
            chunks: Vec::with_capacity(cut.chunk_count()),
            body_lens: vec![0; usize::from(cut.data)],
            bytes: bytes.to_vec(),
        };
        for place in cut.chunks() {
            let entry = tables + CHUNK_ENTRY_BYTES * place.index;
            head.take_chunk(place, u32_at(bytes, entry), u32_at(bytes, entry + 4))?;
        }
        Ok(head)
    }

    fn take_chunk(&mut self, place: ChunkPlace, stored: u32, crc: u32) -> Result<(), DecodeError> {
        let (stored, is_compressed) = (stored & !COMPRESSED, stored & COMPRESSED != 0);
        let tag = if self.sealing.is_some() { TAG_BYTES } else { 0 };
        let inner = (stored as usize).checked_sub(tag);
        let is_right = match inner {
            None => false,
            Some(inner) if is_compressed => self.compression.is_some() && inner < place.length,
            Some(inner) => inner == place.length,
        };
        if !is_right {
            return Err(wrong(
                "stored bytes of a chunk",
                u64::from(stored),
                "what its length, compression and tag make",
            ));
        }
        let body = &mut self.body_lens[usize::from(place.fragment)];
        self.chunks.push(StoredChunk {
            at: *body,
            stored,
            is_compressed,
            crc,
        });
        *body += u64::from(stored);
        Ok(())
    }

    /// How the object is cut.
    #[must_use]
    pub const fn cut(&self) -> &Cut {
        &self.cut
    }

    /// How those of its chunks are compressed that are.
    #[must_use]
    pub const fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// How its chunks are encrypted, if they are.
    #[must_use]
    pub const fn sealing(&self) -> Option<&Sealing> {
        self.sealing.as_ref()
    }

    /// The head as it is stored.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the envelopes of its fragments say of it: its CRC32C.
    #[must_use]
    pub fn set(&self) -> u32 {
        u32_at(&self.bytes, self.bytes.len() - CRC_BYTES)
    }

    /// What the envelope of a fragment says that it is.
    #[must_use]
    pub fn id_of(&self, fragment: usize) -> Option<FragmentId> {
        let index = u8::try_from(fragment).ok()?;
        Some(FragmentId {
            index,
            set: self.set(),
        })
    }

    /// A chunk, by its number.
    #[must_use]
    pub fn chunk(&self, index: usize) -> Option<&StoredChunk> {
        self.chunks.get(index)
    }

    /// Bytes of the longest body, rounded up: what parity is computed over.
    #[must_use]
    pub fn shard_bytes(&self) -> u64 {
        let longest = self.body_lens.iter().copied().max().unwrap_or(0);
        longest.next_multiple_of(SHARD_UNIT as u64)
    }

    /// Bytes of a fragment's body.
    #[must_use]
    pub fn body_bytes(&self, fragment: usize) -> u64 {
        match self.body_lens.get(fragment) {
            Some(length) => *length,
            None if self.cut.data == 1 => self.body_lens.first().copied().unwrap_or(0),
            None => self.shard_bytes(),
        }
    }

    /// CRC32C of a fragment's body.
    #[must_use]
    pub fn body_crc(&self, fragment: usize) -> Option<u32> {
        self.body_crcs.get(fragment).copied()
    }

    /// What it takes in memory, about, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes.len() + self.chunks.len() * size_of::<StoredChunk>() + self.body_lens.len() * 12
    }
}

fn cut_of(bytes: &[u8]) -> Result<Cut, DecodeError> {
    if bytes.len() < FIXED_BYTES {
        return Err(DecodeError::Short {
            what: WHAT,
            have: bytes.len(),
            need: FIXED_BYTES,
        });
    }
    check_magic(WHAT, u32_at(bytes, 0), MAGIC)?;
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    check_version(WHAT, u32::from(version), u32::from(VERSION))?;
    let cut = Cut {
        data: bytes[6],
        parity: bytes[7],
        chunk_log2: bytes[9],
        length: u64_at(bytes, 40),
    };
    cut.check()
}

const fn code_of(compression: Compression) -> u8 {
    match compression {
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}

fn wrong(what: &str, found: u64, expected: &'static str) -> DecodeError {
    DecodeError::Value {
        what: WHAT,
        found: format!("{what}: {found}"),
        expected,
    }
}

/// Only for lengths within an object.
fn to_usize(bounded: u64) -> usize {
    usize::try_from(bounded).unwrap_or(usize::MAX)
}
