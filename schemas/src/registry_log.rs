//! What the embedded registry keeps beside sled: a snapshot of all entries and a journal of the commits since.
//!
//! Keeps: the frame that both files are made of, and what the frames hold.
//! Order: a file is its head's frame, then the rest in order; each file has a generation, and a journal goes
//! with the snapshot of its generation.
//! Crash: a frame is whole or does not validate; a journal that is cut off is a prefix of its commits.
//! Knows no files.
//!
//! Frame: payload length u32, CRC32C u32 of the salt, the length and the payload, then the payload: a msgpack
//! map. Little endian. The salt is the CRC32C of the file's kind and generation, so that a frame of another
//! file never validates.
//!
//! ```text
//! snapshot: [SnapshotHead] [StoredEntry]*
//! journal:  [JournalHead] [StoredCommit]*
//! ```

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::checks::{check_crc, check_version};
use crate::crc::{crc32c, crc32c_append};
use crate::wire::msgpack::{put_named, take_named};
use crate::wire::registry::{LeaseId, Revision};

/// Version of both files.
pub const VERSION: u32 = 1;
/// Bytes in front of a payload.
pub const FRAME_HEADER_LEN: usize = 8;
/// Largest payload: a commit of the largest size, with room for names and numbers.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// Which of the two files a frame is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// All entries at one revision.
    Snapshot,
    /// The commits since.
    Journal,
}

impl FileKind {
    /// What the frames of this file's `generation` are salted with.
    #[must_use]
    pub fn salt(self, generation: u64) -> u32 {
        let kind: &[u8; 8] = match self {
            FileKind::Snapshot => b"SCRGSNAP",
            FileKind::Journal => b"SCRGJOUR",
        };
        crc32c_append(crc32c(kind), &generation.to_le_bytes())
    }

    const fn what(self) -> &'static str {
        match self {
            FileKind::Snapshot => "registry snapshot",
            FileKind::Journal => "registry journal",
        }
    }
}

/// First frame of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// Version of the format.
    pub version: u32,
    /// Its generation, which the journal that follows it has as well.
    pub generation: u64,
    /// The newest revision that it covers.
    pub revision: Revision,
    /// Entries that follow.
    pub entries: u64,
    /// Digest of those entries (see [`StoredEntry::digest`]).
    pub digest: u64,
}

/// First frame of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// Version of the format.
    pub version: u32,
    /// Its generation.
    pub generation: u64,
    /// The revision before its first commit.
    pub base: Revision,
}

/// A lease as far as it is stored: with each key that is bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLease {
    /// The lease.
    pub id: LeaseId,
    /// Its time to live, in milliseconds: how long its keys stay after a restart unless it is kept alive.
    pub ttl_ms: u32,
}

/// An entry in a snapshot, and in sled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// The key.
    pub key: String,
    /// The value.
    #[serde(with = "crate::wire::msgpack::bytes")]
    pub value: Vec<u8>,
    /// The revision at which it was set.
    pub revision: Revision,
    /// The lease that the key is bound to.
    pub lease: Option<StoredLease>,
}

impl StoredEntry {
    /// The entry's share of a digest over entries, which is the wrapping sum of theirs: it does not depend on
    /// their order, so that it can be kept up to date with each commit. FNV-1a, 64 bits: it has to show damage,
    /// not malice.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut bytes = Vec::new();
        put_named(&mut bytes, self);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
            (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// What a commit does to one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChange {
    /// The key.
    pub key: String,
    /// The new value; `None`: the key was deleted.
    #[serde(with = "crate::wire::msgpack::optional_bytes")]
    pub value: Option<Vec<u8>>,
    /// The lease that the key is bound to.
    pub lease: Option<StoredLease>,
}

/// A commit: all its changes, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCommit {
    /// Its revision: the one before it plus 1.
    pub revision: Revision,
    /// The changes, to different keys.
    pub changes: Vec<StoredChange>,
}

/// Appends a frame to `out`.
///
/// # Errors
/// The payload is larger than [`PAYLOAD_BYTES_MAX`]; nothing is appended.
pub fn put_frame<T: Serialize>(
    out: &mut Vec<u8>,
    kind: FileKind,
    generation: u64,
    payload: &T,
) -> Result<(), DecodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    put_named(out, payload);
    let len = out.len() - start - FRAME_HEADER_LEN;
    let Some(stored_len) = u32::try_from(len).ok().filter(|_| len <= PAYLOAD_BYTES_MAX) else {
        out.truncate(start);
        return Err(too_large(kind, len));
    };
    let len_bytes = stored_len.to_le_bytes();
    let crc = frame_crc(kind.salt(generation), len_bytes, &out[start + FRAME_HEADER_LEN..]);
    out[start..start + 4].copy_from_slice(&len_bytes);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Takes a frame off the front of `input`, which stays as it is where there is no valid one.
///
/// # Errors
/// Cut off, too large, damaged, of another file, or not of `T`'s shape.
pub fn take_frame<T: DeserializeOwned>(
    input: &mut &[u8],
    kind: FileKind,
    generation: u64,
) -> Result<T, DecodeError> {
    let (mut payload, rest) = split_frame(input, kind, kind.salt(generation))?;
    let taken = take_named(&mut payload, kind.what())?;
    *input = rest;
    Ok(taken)
}

/// The generation and version in a file's first frame, and whether that frame validates. The generation is what
/// the salt is made of, so it is read first and then confirmed.
///
/// # Errors
/// Cut off, damaged, or a version that this build does not read.
pub fn take_head<T: Head>(input: &mut &[u8]) -> Result<T, DecodeError> {
    let kind = T::KIND;
    // Read without the CRC, which then tells whether what was read is true.
    let unchecked = input
        .get(FRAME_HEADER_LEN..)
        .ok_or_else(|| short(kind, input.len(), FRAME_HEADER_LEN))?;
    let head: T = take_named(
        &mut &unchecked[..unchecked.len().min(HEAD_BYTES_MAX)],
        kind.what(),
    )?;
    check_version(kind.what(), head.version(), VERSION)?;
    take_frame(input, kind, head.generation())
}

/// A head is a handful of numbers; more is never looked at before its CRC is checked.
const HEAD_BYTES_MAX: usize = 256;

/// The first frame of a file.
pub trait Head: DeserializeOwned {
    /// The file.
    const KIND: FileKind;
    /// Version of the format.
    fn version(&self) -> u32;
    /// The file's generation.
    fn generation(&self) -> u64;
}

impl Head for SnapshotHead {
    const KIND: FileKind = FileKind::Snapshot;

    fn version(&self) -> u32 {
        self.version
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Head for JournalHead {
    const KIND: FileKind = FileKind::Journal;

    fn version(&self) -> u32 {
        self.version
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// The first valid journal commit in `input`, wherever it begins, and where: tells a tail that a crash cut off
/// (nothing valid follows) from damage in the middle.
#[must_use]
pub fn find_commit(input: &[u8], generation: u64) -> Option<(usize, StoredCommit)> {
    let salt = FileKind::Journal.salt(generation);
    (0..input.len()).find_map(|at| {
        let (mut payload, _) = split_frame(&input[at..], FileKind::Journal, salt).ok()?;
        let commit = take_named(&mut payload, FileKind::Journal.what()).ok()?;
        Some((at, commit))
    })
}

fn split_frame(input: &[u8], kind: FileKind, salt: u32) -> Result<(&[u8], &[u8]), DecodeError> {
    let head = input
        .first_chunk::<FRAME_HEADER_LEN>()
        .ok_or_else(|| short(kind, input.len(), FRAME_HEADER_LEN))?;
    let [a, b, c, d, e, f, g, h] = *head;
    let (len_bytes, found) = ([a, b, c, d], u32::from_le_bytes([e, f, g, h]));
    let len = u32::from_le_bytes(len_bytes) as usize;
    if len > PAYLOAD_BYTES_MAX {
        return Err(too_large(kind, len));
    }
    let rest = &input[FRAME_HEADER_LEN..];
    let (payload, rest) = rest
        .split_at_checked(len)
        .ok_or_else(|| short(kind, rest.len(), len))?;
    let expected = frame_crc(salt, len_bytes, payload);
    check_crc(kind.what(), found, expected)?;
    Ok((payload, rest))
}

fn frame_crc(salt: u32, len: [u8; 4], payload: &[u8]) -> u32 {
    crc32c_append(crc32c_append(salt, &len), payload)
}

fn short(kind: FileKind, have: usize, need: usize) -> DecodeError {
    DecodeError::Short {
        what: kind.what(),
        have,
        need,
    }
}

fn too_large(kind: FileKind, len: usize) -> DecodeError {
    DecodeError::Value {
        what: kind.what(),
        found: format!("a frame of {len} bytes"),
        expected: "a frame of at most 2 MiB",
    }
}
