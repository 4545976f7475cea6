//! The envelope that an object has on a back end, so that a range of it can be checked by itself.
//!
//! Keeps: the layout of a stored object and every check that a reader makes of one.
//! Order: header, then each 4 KiB chunk of the object with its CRC32C right behind it.
//! Crash: a cut, foreign, misnamed or flipped object fails a CRC or a length; it never reads as good.
//! Knows no back end and no files.
//!
//! ```text
//! 0    u32      magic "SCob"
//! 4    u32      version: 1 for a whole object, 2 for a fragment of one
//! 8    u64      length in bytes of what is in the envelope: the object, or the fragment
//! 16   u32      bytes of a chunk, 4096
//! 20   u16      length of the name
//! 22   94 bytes the name as text, then zeros
//! 116  u32      0 for a whole object; for a fragment the CRC32C of the head that it begins with
//! 120  u32      0 for a whole object; for a fragment its index and 1
//! 124  u32      CRC32C of all before
//! 128  chunks   4096 bytes (the last one perhaps fewer) and their CRC32C
//! ```
//!
//! All numbers are little endian. A chunk's CRC32C starts from the header's CRC and the chunk's index. A reader
//! knows the object's name and, from the stored length, the object's; so it knows the header without reading it,
//! and a chunk that holds is this chunk of this object. A cluster of a SCO is exactly one chunk: reading it takes
//! one read of 4100 bytes (docs/decisions/0020). A pool with a policy keeps fragments ([`crate::fragment`]): what
//! the header says of one is known to whoever knows its head, and a chunk of another fragment of the same object, or of
//! a fragment of other content of this name, does not hold either.

use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::DecodeError;
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::{crc32c, crc32c_append};
use crate::geometry::CLUSTER_LEN;
use crate::le::u32_at;
use crate::object::ObjectName;
use crate::wire::storage::OBJECT_BYTES_MAX;

/// First four bytes of a stored object: `SCob`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SCob");
/// The newest version that this build reads, and the one that it writes.
pub const VERSION: u32 = 2;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of the object that one CRC covers.
pub const CHUNK_BYTES: usize = CLUSTER_LEN;
/// Bytes that a chunk takes with its CRC.
pub const STORED_CHUNK_BYTES: usize = CHUNK_BYTES + CRC_BYTES;
/// Largest fragment in bytes: one that holds all of the largest object, with its head and the tags of its chunks.
pub const FRAGMENT_BYTES_MAX: u64 = OBJECT_BYTES_MAX + (1 << 20);
/// Largest stored length: the largest fragment in its envelope.
pub const STORED_BYTES_MAX: u64 = HEADER_BYTES as u64
    + FRAGMENT_BYTES_MAX
    + FRAGMENT_BYTES_MAX.div_ceil(CHUNK_BYTES as u64) * CRC_BYTES as u64;

const CRC_BYTES: usize = 4;
const NAME_AT: usize = 22;
const NAME_BYTES_MAX: usize = 94;
/// The version of a whole object's envelope.
const VERSION_WHOLE: u32 = 1;
const SET_AT: usize = NAME_AT + NAME_BYTES_MAX;
const FRAGMENT_AT: usize = SET_AT + 4;
const CRC_AT: usize = HEADER_BYTES - CRC_BYTES;

// Volume (32), kind (8), id (16), epoch (16), version (4) and four separators.
const _: () = assert!(32 + 8 + 16 + 16 + 4 + 4 <= NAME_BYTES_MAX);
const _: () = assert!(FRAGMENT_AT + 4 == CRC_AT);

/// Which fragment of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentId {
    /// Its number.
    pub index: u8,
    /// Which encoding of the object: CRC32C of the head that all its fragments begin with.
    pub set: u32,
}

/// The header of a stored object: which object it is, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHeader {
    name: ObjectName,
    fragment: Option<FragmentId>,
    length: u64,
    bytes: [u8; HEADER_BYTES],
}

impl StoredHeader {
    /// The header of `name`, an object of `length` bytes.
    ///
    /// # Errors
    /// More than [`OBJECT_BYTES_MAX`].
    pub fn new(name: ObjectName, length: u64) -> Result<Self, DecodeError> {
        Self::of(name, None, length)
    }

    /// The header of `name`, or of that fragment of it, of `length` bytes.
    ///
    /// # Errors
    /// More than [`OBJECT_BYTES_MAX`], for a fragment [`FRAGMENT_BYTES_MAX`].
    pub fn of(name: ObjectName, fragment: Option<FragmentId>, length: u64) -> Result<Self, DecodeError> {
        check_length(length, fragment.is_some())?;
        let version = if fragment.is_some() {
            VERSION
        } else {
            VERSION_WHOLE
        };
        let text = name.to_string();
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        bytes[8..16].copy_from_slice(&length.to_le_bytes());
        bytes[16..20].copy_from_slice(&CHUNK_BYTES_U32.to_le_bytes());
        // The assertion above holds every name below `NAME_BYTES_MAX`.
        let name_len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        bytes[20..22].copy_from_slice(&name_len.to_le_bytes());
        bytes[NAME_AT..NAME_AT + text.len()].copy_from_slice(text.as_bytes());
        let (set, place) = fragment.map_or((0, 0), |fragment| (fragment.set, u32::from(fragment.index) + 1));
        bytes[SET_AT..FRAGMENT_AT].copy_from_slice(&set.to_le_bytes());
        bytes[FRAGMENT_AT..CRC_AT].copy_from_slice(&place.to_le_bytes());
        let crc = crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        Ok(Self {
            name,
            fragment,
            length,
            bytes,
        })
    }

    /// The header that `name`, or that fragment of it, must have when it takes `stored_len` bytes on a back end.
    ///
    /// # Errors
    /// No object takes this many bytes.
    pub fn of_stored(
        name: ObjectName,
        fragment: Option<FragmentId>,
        stored_len: u64,
    ) -> Result<Self, DecodeError> {
        Self::of(name, fragment, length_of(stored_len)?)
    }

    /// The header that `stored` starts with.
    ///
    /// # Errors
    /// Cut off, not of this format, of a newer version, damaged, or of values that this format does not allow.
    pub fn decode(stored: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "stored object header";
        let Some(bytes) = stored.first_chunk::<HEADER_BYTES>() else {
            return Err(DecodeError::Short {
                what: WHAT,
                have: stored.len(),
                need: HEADER_BYTES,
            });
        };
        check_magic(WHAT, u32_at(bytes, 0), MAGIC)?;
        check_crc(WHAT, u32_at(bytes, CRC_AT), crc32c(&bytes[..CRC_AT]))?;
        let version = u32_at(bytes, 4);
        check_version(WHAT, version, VERSION)?;
        let length = u64::from(u32_at(bytes, 8)) | (u64::from(u32_at(bytes, 12)) << 32);
        let name_len = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        let name = bytes[NAME_AT..SET_AT]
            .get(..name_len)
            .and_then(|text| std::str::from_utf8(text).ok())
            .ok_or_else(|| DecodeError::Value {
                what: "stored object header: name",
                found: format!("{name_len} bytes long, or not text"),
                expected: "text of at most 94 bytes",
            })?
            .parse()?;
        let fragment = match u32_at(bytes, FRAGMENT_AT) {
            0 => None,
            // An index that is none is refused below: the header made of it is another one.
            place => Some(FragmentId {
                index: u8::try_from(place - 1).unwrap_or(u8::MAX),
                set: u32_at(bytes, SET_AT),
            }),
        };
        let header = Self::of(name, fragment, length)?;
        if header.bytes == *bytes {
            return Ok(header);
        }
        Err(DecodeError::Value {
            what: "stored object header",
            found: format!(
                "with chunks of {} bytes, padding, or fragment number {} in version {version}",
                u32_at(bytes, 16),
                u32_at(bytes, FRAGMENT_AT)
            ),
            expected: "chunks of 4096 bytes, zeros after the name, and fragments 1 to 256 in version 2 alone",
        })
    }

    /// The object's name.
    #[must_use]
    pub const fn name(&self) -> ObjectName {
        self.name
    }

    /// Which fragment of the object it is; `None`: the whole object.
    #[must_use]
    pub const fn fragment(&self) -> Option<FragmentId> {
        self.fragment
    }

    /// Length of the object, or of the fragment, in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The header as it is stored.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.bytes
    }

    /// Length of the object in its envelope, in bytes.
    #[must_use]
    pub const fn stored_len(&self) -> u64 {
        HEADER_BYTES as u64 + self.length + self.length.div_ceil(CHUNK_BYTES as u64) * CRC_BYTES as u64
    }

    /// `the whole object of 100 bytes`: for errors.
    #[must_use]
    pub fn what(&self) -> String {
        match self.fragment {
            None => format!("the whole object of {} bytes", self.length),
            Some(FragmentId { index, set }) => {
                format!("its fragment {index} of set {set:08x}, of {} bytes", self.length)
            }
        }
    }

    /// The CRC that is stored behind the chunk at `index`.
    #[must_use]
    pub fn chunk_crc(&self, index: u64, chunk: &[u8]) -> u32 {
        let salt = crc32c_append(u32_at(&self.bytes, CRC_AT), &index.to_le_bytes());
        crc32c_append(salt, chunk)
    }
}

/// The stored bytes that have to be read, to read a range of an object.
///
/// Whole chunks that hold the range; the header too where the range starts in the first chunk, since it lies right
/// before it and costs nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    wanted: Range<u64>,
    first_chunk: u64,
    stored: Range<u64>,
}

impl Span {
    /// What holds `length` bytes from `offset`. Bounds beyond the largest fragment are taken as its end.
    #[must_use]
    pub fn holding(offset: u64, length: u64) -> Self {
        let start = offset.min(FRAGMENT_BYTES_MAX);
        let end = start.saturating_add(length).min(FRAGMENT_BYTES_MAX);
        let first_chunk = start / CHUNK_BYTES as u64;
        let end_chunk = end.div_ceil(CHUNK_BYTES as u64).max(first_chunk);
        let stored_start = match first_chunk {
            0 => 0,
            index => chunk_at(index),
        };
        Self {
            wanted: start..end,
            first_chunk,
            stored: stored_start..chunk_at(end_chunk),
        }
    }

    /// Offset of the first stored byte to read.
    #[must_use]
    pub const fn stored_offset(&self) -> u64 {
        self.stored.start
    }

    /// How many stored bytes to read; fewer come back where the object ends before.
    #[must_use]
    pub const fn stored_length(&self) -> u64 {
        self.stored.end - self.stored.start
    }

    /// The range of the object, out of the stored bytes that were read for it; fewer bytes than asked for, or
    /// none, where the object ends before.
    ///
    /// `stored_len` is what the whole object takes on the back end. Works within the buffer of `stored` if nobody
    /// else has it; one chunk is never moved at all.
    ///
    /// # Errors
    /// No object takes `stored_len` bytes, `stored` is shorter than it must be, or a CRC does not hold. Whatever
    /// the input is, it never allocates more than the length of `stored`.
    pub fn open(&self, name: ObjectName, stored_len: u64, stored: Bytes) -> Result<Bytes, DecodeError> {
        self.open_fragment(name, None, stored_len, stored)
    }

    /// The same of a fragment of the object, or of the whole object where it is `None`.
    ///
    /// # Errors
    /// As [`Span::open`]; and what was read is of another fragment.
    pub fn open_fragment(
        &self,
        name: ObjectName,
        fragment: Option<FragmentId>,
        stored_len: u64,
        stored: Bytes,
    ) -> Result<Bytes, DecodeError> {
        let header = StoredHeader::of_stored(name, fragment, stored_len)?;
        let due = self.stored.start.min(stored_len)..self.stored.end.min(stored_len);
        let due_len = to_usize(due.end - due.start);
        if stored.len() != due_len {
            return Err(DecodeError::Short {
                what: "stored object",
                have: stored.len(),
                need: due_len,
            });
        }
        let mut chunks = stored;
        if self.stored.start == 0 && !chunks.is_empty() {
            let found = StoredHeader::decode(&chunks)?;
            if found != header {
                return Err(DecodeError::Value {
                    what: "stored object",
                    found: format!("{}, {}", found.name, found.what()),
                    expected: "the object, or the fragment, that its path and its length say",
                });
            }
            chunks.advance(HEADER_BYTES);
        }
        let object = open_chunks(&header, self.first_chunk, chunks)?;
        let base = self.first_chunk * CHUNK_BYTES as u64;
        let take = |at: u64| to_usize(at - base).min(object.len());
        Ok(object.slice(take(self.wanted.start)..take(self.wanted.end)))
    }
}

fn open_chunks(header: &StoredHeader, first: u64, stored: Bytes) -> Result<Bytes, DecodeError> {
    if stored.len() <= STORED_CHUNK_BYTES {
        let length = open_chunk(header, first, &stored)?.len();
        return Ok(stored.slice(..length));
    }
    let mut object = stored
        .try_into_mut()
        .unwrap_or_else(|shared| BytesMut::from(&*shared));
    let mut length = 0;
    for index in first.. {
        let start = to_usize((index - first) * STORED_CHUNK_BYTES as u64);
        let end = object.len().min(start + STORED_CHUNK_BYTES);
        let chunk = open_chunk(header, index, &object[start..end])?.len();
        // Each chunk moves to the front by the CRCs before it, while it is in the CPU's cache.
        object.copy_within(start..start + chunk, length);
        length += chunk;
        if end == object.len() {
            break;
        }
    }
    object.truncate(length);
    Ok(object.freeze())
}

fn open_chunk<'a>(header: &StoredHeader, index: u64, stored: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let Some((chunk, crc)) = stored.split_last_chunk::<CRC_BYTES>() else {
        return match stored {
            [] => Ok(stored),
            _ => Err(DecodeError::Short {
                what: "stored object chunk",
                have: stored.len(),
                need: CRC_BYTES + 1,
            }),
        };
    };
    check_crc(
        "stored object chunk",
        u32::from_le_bytes(*crc),
        header.chunk_crc(index, chunk),
    )?;
    Ok(chunk)
}

/// An object in its envelope, ready to be written: the CRCs are computed once, however many copies are stored,
/// and the data is not copied. Cloning it copies the CRCs' handle and the data's.
#[derive(Debug, Clone)]
pub struct SealedObject {
    header: StoredHeader,
    crcs: Bytes,
    data: Bytes,
}

impl SealedObject {
    /// Puts `data` into its envelope. Reads all of it: about 0.1 ms a MiB.
    ///
    /// # Errors
    /// More than [`OBJECT_BYTES_MAX`].
    pub fn seal(name: ObjectName, data: Bytes) -> Result<Self, DecodeError> {
        Self::seal_fragment(name, None, data)
    }

    /// Puts a fragment of an object, or the whole object where it is `None`, into its envelope.
    ///
    /// # Errors
    /// More than [`OBJECT_BYTES_MAX`], for a fragment [`FRAGMENT_BYTES_MAX`].
    pub fn seal_fragment(
        name: ObjectName,
        fragment: Option<FragmentId>,
        data: Bytes,
    ) -> Result<Self, DecodeError> {
        let header = StoredHeader::of(name, fragment, data.len() as u64)?;
        let mut crcs = BytesMut::with_capacity(data.len().div_ceil(CHUNK_BYTES) * CRC_BYTES);
        for (index, chunk) in (0..).zip(data.chunks(CHUNK_BYTES)) {
            crcs.extend_from_slice(&header.chunk_crc(index, chunk).to_le_bytes());
        }
        Ok(Self {
            header,
            crcs: crcs.freeze(),
            data,
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> ObjectName {
        self.header.name
    }

    /// Which fragment of the object it is; `None`: the whole object.
    #[must_use]
    pub const fn fragment(&self) -> Option<FragmentId> {
        self.header.fragment
    }

    /// What is in the envelope.
    #[must_use]
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// Length of the object in its envelope, in bytes.
    #[must_use]
    pub const fn stored_len(&self) -> u64 {
        self.header.stored_len()
    }

    /// The stored bytes, in order, as pieces to be written one behind the other.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let chunks = self.data.chunks(CHUNK_BYTES).zip(self.crcs.chunks(CRC_BYTES));
        std::iter::once(self.header.bytes.as_slice()).chain(chunks.flat_map(|(chunk, crc)| [chunk, crc]))
    }

    /// The stored bytes, copied into one buffer.
    #[must_use]
    pub fn to_stored(&self) -> Bytes {
        let mut stored = BytesMut::with_capacity(to_usize(self.stored_len()));
        self.pieces().for_each(|piece| stored.extend_from_slice(piece));
        stored.freeze()
    }
}

/// Length of the object that takes `stored_len` bytes in its envelope.
///
/// # Errors
/// No object takes this many bytes.
pub fn length_of(stored_len: u64) -> Result<u64, DecodeError> {
    const CRC: u64 = CRC_BYTES as u64;
    let wrong = || DecodeError::Value {
        what: "length of a stored object",
        found: format!("{stored_len} bytes"),
        expected: "a header of 128 bytes and chunks of 4100, the last of 5 to 4100",
    };
    let chunks = stored_len.checked_sub(HEADER_BYTES as u64).ok_or_else(wrong)?;
    let last = chunks % STORED_CHUNK_BYTES as u64;
    if (1..=CRC).contains(&last) {
        return Err(wrong());
    }
    let length = chunks - chunks.div_ceil(STORED_CHUNK_BYTES as u64) * CRC;
    check_length(length, true)?;
    Ok(length)
}

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const CHUNK_BYTES_U32: u32 = CHUNK_BYTES as u32;

const fn chunk_at(index: u64) -> u64 {
    HEADER_BYTES as u64 + index * STORED_CHUNK_BYTES as u64
}

fn check_length(length: u64, is_fragment: bool) -> Result<(), DecodeError> {
    let (what, most, expected) = if is_fragment {
        ("length of a fragment", FRAGMENT_BYTES_MAX, "at most 97 MiB")
    } else {
        ("length of an object", OBJECT_BYTES_MAX, "at most 96 MiB")
    };
    if length <= most {
        return Ok(());
    }
    Err(DecodeError::Value {
        what,
        found: format!("{length} bytes"),
        expected,
    })
}

/// Only for lengths that were bounded by [`STORED_BYTES_MAX`] or by a buffer before.
fn to_usize(bounded: u64) -> usize {
    usize::try_from(bounded).unwrap_or(usize::MAX)
}
