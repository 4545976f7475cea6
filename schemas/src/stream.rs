//! Backup streams: a snapshot, or what differs between two, as a file that goes anywhere and is applied anywhere else.
//!
//! Keeps: the layout of a stream, and the rules that its records keep.
//! Order: a header, records in the order of their offsets, an end that counts them.
//! Crash: a stream that was cut has no end; it can be continued after its last whole record.
//! Knows no files and no volumes.
//!
//! ```text
//! header   magic "SCSB" u32, version u32, body length u32, CRC32C u32 of the body; body: msgpack map [`StreamHeader`]
//! record   magic "SCSR" u32, kind u8, encoding u8 (0), zero u16, number u64, offset u64, length u64, payload length u32,
//!          CRC32C u32 of the 36 bytes before it and the payload; payload
//! end      a record of kind 4 at the end of the volume, of length 0; payload: msgpack map [`StreamEnd`]
//! ```
//!
//! Numbers are little-endian. A record's number counts from 0: one that is missing, doubled or moved is seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::{crc32c, crc32c_append};
use crate::geometry::{CLUSTER_BYTES, VolumeSize};
use crate::ids::{SnapshotId, VolumeId};
use crate::le::{u32_at, u64_at};
use crate::wire::msgpack::{put_named, take_named};

const MAGIC: u32 = u32::from_le_bytes(*b"SCSB");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"SCSR");
const VERSION: u32 = 1;
const HEADER: &str = "stream header";
const RECORD: &str = "stream record";

/// Bytes of a stream before its header's body.
pub const STREAM_PREFIX_LEN: usize = 16;
/// Bytes of a record before its payload.
pub const RECORD_HEAD_LEN: usize = 40;
/// Most data of one record.
pub const RECORD_DATA_MAX: u64 = 1 << 20;
/// Longest body of a header: names and metadata have limits far below.
const BODY_MAX: usize = 64 << 10;
/// Longest payload of an end.
const END_MAX: usize = 4 << 10;

/// A snapshot, wherever copies of it are: by where it was taken first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSnapshot {
    /// The volume that it was taken of.
    pub volume: VolumeId,
    /// Its id there.
    pub id: SnapshotId,
    /// Its name at the source.
    pub name: String,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
    /// Size of the volume then.
    pub size: VolumeSize,
    /// What people wrote down with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl StreamSnapshot {
    /// Whether both are the same snapshot, whatever they are called.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.volume, self.id) == (other.volume, other.id)
    }
}

/// What a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// The source volume's path, for people.
    pub path: String,
    /// Bytes of a cluster: offsets and lengths are multiples, but for the volume's end.
    pub cluster_bytes: u64,
    /// Most data of one record.
    pub record_bytes_max: u64,
    /// What the target has to have; `None`: nothing, the stream is a whole snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StreamSnapshot>,
    /// What it has after the stream.
    pub to: StreamSnapshot,
}

impl StreamHeader {
    /// Whether both lead from the same snapshot to the same.
    #[must_use]
    pub fn is_same_step(&self, other: &Self) -> bool {
        let same_base = match (&self.from, &other.from) {
            (Some(one), Some(other)) => one.is(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_base && self.to.is(&other.to) && self.to.size == other.to.size
    }

    /// The bytes that a stream starts with.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; STREAM_PREFIX_LEN];
        put_named(&mut bytes, self);
        let body = u32::try_from(bytes.len() - STREAM_PREFIX_LEN).unwrap_or(u32::MAX);
        let crc = crc32c(&bytes[STREAM_PREFIX_LEN..]);
        for (at, word) in [(0, MAGIC), (4, VERSION), (8, body), (12, crc)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Whether these are the first bytes of a stream, of whatever version.
    #[must_use]
    pub fn is_stream(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC.to_le_bytes())
    }

    /// Bytes of the body behind this prefix.
    ///
    /// # Errors
    /// No stream, of a newer version, or too long to be one.
    pub fn body_len(prefix: &[u8; STREAM_PREFIX_LEN]) -> Result<usize, DecodeError> {
        let (magic, version) = (u32_at(prefix, 0), u32_at(prefix, 4));
        check_magic(HEADER, magic, MAGIC)?;
        check_version(HEADER, version, VERSION)?;
        let len = u32_at(prefix, 8) as usize;
        if len > BODY_MAX {
            return Err(DecodeError::Value {
                what: "stream header length",
                found: len.to_string(),
                expected: "at most 65536",
            });
        }
        Ok(len)
    }

    /// The header of this prefix and body.
    ///
    /// # Errors
    /// Damaged, or values that no version wrote.
    pub fn from_parts(prefix: &[u8; STREAM_PREFIX_LEN], mut body: &[u8]) -> Result<Self, DecodeError> {
        check_crc(HEADER, u32_at(prefix, 12), crc32c(body))?;
        let header: Self = take_named(&mut body, HEADER)?;
        if header.cluster_bytes != CLUSTER_BYTES || header.record_bytes_max != RECORD_DATA_MAX {
            return Err(DecodeError::Value {
                what: "stream geometry",
                found: format!("{}, {}", header.cluster_bytes, header.record_bytes_max),
                expected: "clusters of 4096 and records of 1048576 bytes",
            });
        }
        Ok(header)
    }
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Data: its payload.
    Data,
    /// Zeros that count as allocated.
    Zeros,
    /// A hole.
    Hole,
    /// The end of the stream.
    End,
}

/// A record without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// What it holds.
    pub kind: RecordKind,
    /// How many records are before it.
    pub number: u64,
    /// First byte of the volume.
    pub offset: u64,
    /// Bytes of the volume.
    pub length: u64,
    /// Bytes of the payload.
    pub payload: u32,
}

impl RecordHead {
    /// The stored bytes of the head, for this payload.
    #[must_use]
    pub fn to_bytes(&self, payload: &[u8]) -> [u8; RECORD_HEAD_LEN] {
        let mut bytes = [0; RECORD_HEAD_LEN];
        bytes[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        bytes[4] = match self.kind {
            RecordKind::Data => 1,
            RecordKind::Zeros => 2,
            RecordKind::Hole => 3,
            RecordKind::End => 4,
        };
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.length.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload.to_le_bytes());
        let crc = crc32c_append(crc32c(&bytes[..36]), payload);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What a head says. Its CRC is not looked at: [`RecordHead::check`] does that once the payload is there.
    ///
    /// # Errors
    /// No record, or values that no version wrote.
    pub fn from_bytes(bytes: &[u8; RECORD_HEAD_LEN]) -> Result<Self, DecodeError> {
        check_magic(RECORD, u32_at(bytes, 0), RECORD_MAGIC)?;
        let value = |what, found: u64, expected| DecodeError::Value {
            what,
            found: found.to_string(),
            expected,
        };
        let kind = match bytes[4] {
            1 => RecordKind::Data,
            2 => RecordKind::Zeros,
            3 => RecordKind::Hole,
            4 => RecordKind::End,
            other => return Err(value("stream record kind", other.into(), "1 to 4")),
        };
        if bytes[5..8] != [0; 3] {
            return Err(value("stream record encoding", bytes[5].into(), "0"));
        }
        let head = Self {
            kind,
            number: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length: u64_at(bytes, 24),
            payload: u32_at(bytes, 32),
        };
        let fits = match kind {
            RecordKind::Data => u64::from(head.payload) == head.length && head.length <= RECORD_DATA_MAX,
            RecordKind::Zeros | RecordKind::Hole => head.payload == 0,
            RecordKind::End => head.payload as usize <= END_MAX && head.length == 0,
        };
        if !fits || (head.length == 0) != (kind == RecordKind::End) {
            let found = format!("{} for {} bytes of {kind:?}", head.payload, head.length);
            return Err(DecodeError::Value {
                what: "stream record payload length",
                found,
                expected: "what the record is about",
            });
        }
        Ok(head)
    }

    /// Checks a head with its payload.
    ///
    /// # Errors
    /// The CRC does not hold.
    pub fn check(bytes: &[u8; RECORD_HEAD_LEN], payload: &[u8]) -> Result<(), DecodeError> {
        let (found, expected) = (u32_at(bytes, 36), crc32c_append(crc32c(&bytes[..36]), payload));
        if found == expected {
            return Ok(());
        }
        Err(DecodeError::Crc {
            what: RECORD,
            found,
            expected,
        })
    }
}

/// What a stream was, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Records before the end.
    pub records: u64,
    /// Bytes of data in them.
    pub data_bytes: u64,
    /// Bytes of zeros and holes.
    pub zero_bytes: u64,
    /// SHA-256 of all bytes before the end's record.
    #[serde(with = "crate::wire::msgpack::bytes")]
    pub sha256: Vec<u8>,
}

impl StreamEnd {
    /// The end's payload.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_named(&mut bytes, self);
        bytes
    }

    /// What this payload says.
    ///
    /// # Errors
    /// Not well-formed.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        take_named(&mut bytes, "stream end")
    }
}

/// The rules that the records of a stream keep, and their counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOrder {
    size: u64,
    /// The number that is next.
    pub records: u64,
    /// What is before this byte of the volume was told.
    pub at: u64,
    /// Bytes of data so far.
    pub data_bytes: u64,
    /// Bytes of zeros and holes so far.
    pub zero_bytes: u64,
}

impl StreamOrder {
    /// Of a stream that leads to a volume of this size.
    #[must_use]
    pub const fn new(size: VolumeSize) -> Self {
        Self {
            size: size.bytes(),
            records: 0,
            at: 0,
            data_bytes: 0,
            zero_bytes: 0,
        }
    }

    /// The next record.
    ///
    /// # Errors
    /// It is not the next one, or not within the volume.
    pub fn take(&mut self, head: &RecordHead) -> Result<(), DecodeError> {
        let wrong = |what, found: u64, expected| {
            Err(DecodeError::Value {
                what,
                found: found.to_string(),
                expected,
            })
        };
        if head.number != self.records {
            return wrong(
                "stream record number",
                head.number,
                "the next one: records are missing or moved",
            );
        }
        if head.kind == RecordKind::End {
            return match head.offset == self.size {
                true => Ok(()),
                false => wrong("stream end offset", head.offset, "the volume's size"),
            };
        }
        let end = head.offset.checked_add(head.length);
        let Some(end) = end.filter(|end| *end <= self.size) else {
            return wrong("stream record offset", head.offset, "within the volume");
        };
        if head.offset < self.at {
            return wrong("stream record offset", head.offset, "behind the record before it");
        }
        let whole = head.offset.is_multiple_of(CLUSTER_BYTES)
            && (end.is_multiple_of(CLUSTER_BYTES) || end == self.size);
        if !whole {
            return wrong("stream record offset", head.offset, "that of whole clusters");
        }
        self.records += 1;
        self.at = end;
        match head.kind {
            RecordKind::Data => self.data_bytes += head.length,
            _ => self.zero_bytes += head.length,
        }
        Ok(())
    }

    /// Whether the end counts what there was.
    ///
    /// # Errors
    /// It does not: records are missing.
    pub fn check_end(&self, end: &StreamEnd) -> Result<(), DecodeError> {
        let counted = (end.records, end.data_bytes, end.zero_bytes);
        if counted == (self.records, self.data_bytes, self.zero_bytes) {
            return Ok(());
        }
        Err(DecodeError::Value {
            what: "stream end",
            found: format!(
                "{} records, {} bytes of data, {} of zeros",
                counted.0, counted.1, counted.2
            ),
            expected: "what was in the stream",
        })
    }
}
