//! The SCO's own bytes: header and TLog batches (DESIGN.md §3), the same in the write buffer and on a back end.
//!
//! Keeps: header layout, batch layout, and the salts that tie both to one SCO of one ownership.
//! Order: batches follow each other without gaps and carry consecutive [`BatchSeq`]s, across SCOs too.
//! Crash: a batch whose CRC does not hold ends the SCO; what is before it stands.
//! Knows no files; areas are where [`crate::ScoSize`] puts them.
//!
//! ```text
//! header (64 bytes, little endian)            batch (32 bytes + 24 an entry)
//!  0 magic "SCO1"      4 version u32            0 crc u32: CRC32C from the SCO's salt over all that follows
//!  8 volume id (16)   24 sco id u64             4 entries u16      6 first slot u16
//! 32 epoch u64        40 slots u32              8 batch seq u64   16 time u64 (µs since 1970)
//! 44 reserved u32     48 first batch seq u64   24 reserved u64 (0)
//! 56 synced below u32 60 crc u32
//!
//! entry (24 bytes)
//!  0 address u64   8 number u64   16 CRC32C or count u32   20 session slot u16   22 kind u8   23 last u8 (1: the operation ends here)
//! ```
//!
//! `synced below` is stored as a distance: every SCO that lies at least that many before this one was synced
//! when this header was written, so recovery need not check its clusters.

use crate::DecodeError;
use crate::checks::{check_crc, check_magic, check_version};
use crate::crc::{crc32c, crc32c_append, sco_salt};
use crate::geometry::{ClusterAddress, ScoSize};
use crate::ids::{BatchSeq, Epoch, ScoId, Slot, VolumeId};
use crate::le::{u32_at, u64_at};

/// Stored size of a header; the rest of the header area is zeros.
pub const HEADER_LEN: usize = 64;
/// Stored size of a batch without its entries.
pub const BATCH_HEADER_LEN: usize = 32;
/// Stored size of an entry.
pub const ENTRY_LEN: usize = 24;

const MAGIC: u32 = u32::from_le_bytes(*b"SCO1");
const VERSION: u32 = 1;

// Even a SCO whose every cluster came alone has room for its batches.
const _: () = assert!(ScoSize::TLOG_BYTES_PER_SLOT >= (BATCH_HEADER_LEN + ENTRY_LEN) as u64);
const _: () = assert!(HEADER_LEN as u64 <= ScoSize::HEADER_AREA);

/// First bytes of a SCO: what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoHeader {
    /// The volume that wrote it.
    pub volume: VolumeId,
    /// Its number.
    pub id: ScoId,
    /// The ownership that wrote it.
    pub epoch: Epoch,
    /// Its size.
    pub size: ScoSize,
    /// Number of its first batch.
    pub first_batch: BatchSeq,
    /// SCOs below this one were synced when this header was written.
    pub synced_below: ScoId,
}

impl ScoHeader {
    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let distance = u32::try_from(self.id.0.saturating_sub(self.synced_below.0)).unwrap_or(u32::MAX);
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.volume.0);
        bytes[24..32].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&u32::from(self.size.slots()).to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first_batch.0.to_le_bytes());
        bytes[56..60].copy_from_slice(&distance.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that these bytes store.
    ///
    /// # Errors
    /// Cut off, no SCO, a newer version, damaged, or values out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "SCO header";
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::Short {
                what: WHAT,
                have: bytes.len(),
                need: HEADER_LEN,
            });
        };
        check_magic(WHAT, u32_at(bytes, 0), MAGIC)?;
        check_crc(WHAT, u32_at(bytes, 60), crc32c(&bytes[..60]))?;
        check_version(WHAT, u32_at(bytes, 4), VERSION)?;
        let mut volume = [0; 16];
        volume.copy_from_slice(&bytes[8..24]);
        let id = ScoId(u64_at(bytes, 24));
        if id == ScoId::NONE || id > ScoId::MAX {
            return Err(DecodeError::Value {
                what: "SCO id",
                found: id.to_string(),
                expected: "within 1 to 2^36-1",
            });
        }
        Ok(Self {
            volume: VolumeId(volume),
            id,
            epoch: Epoch(u64_at(bytes, 32)),
            size: ScoSize::new(u64::from(u32_at(bytes, 40)))?,
            first_batch: BatchSeq(u64_at(bytes, 48)),
            synced_below: ScoId(id.0.saturating_sub(u64::from(u32_at(bytes, 56)))),
        })
    }

    /// The salt of this SCO's batches.
    #[must_use]
    pub fn salt(&self) -> u32 {
        sco_salt(self.volume, self.id, self.epoch)
    }
}

/// What one TLog entry says. `session` is a slot of the volume's session table, `number` the operation's number in
/// that session (DESIGN.md §4 'bus'): they let recovery know which operations were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub kind: EntryKind,
    /// Slot in the session table.
    pub session: u16,
    /// Number of the operation in its session.
    pub number: u64,
    /// Whether the operation ends with this entry: recovery counts it as applied only then.
    pub last: bool,
}

/// What happened, with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// The batch's next slot holds this cluster.
    Write {
        /// Where in the volume.
        address: ClusterAddress,
        /// CRC32C of the cluster.
        crc: u32,
    },
    /// `count` clusters from `address` became holes.
    Discard {
        /// The first cluster.
        address: ClusterAddress,
        /// How many.
        count: u32,
    },
    /// `count` clusters from `address` became zeros that count as allocated.
    Zero {
        /// The first cluster.
        address: ClusterAddress,
        /// How many.
        count: u32,
    },
    /// The volume has this size from here on.
    Resize {
        /// Bytes.
        size: u64,
    },
    /// The entry's session slot stands for this session from here on.
    Session {
        /// The session's id.
        id: u64,
    },
    /// A piece of a [`LogRecord`](crate::log_record::LogRecord), which ends with the entry that is `last`. Belongs to
    /// no session.
    Record(RecordPiece),
}

/// Up to [`RecordPiece::BYTES_MAX`] bytes of a record in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPiece {
    bytes: [u8; Self::BYTES_MAX],
    len: u16,
}

impl RecordPiece {
    /// Bytes that one entry takes.
    pub const BYTES_MAX: usize = 20;

    /// The piece with the first bytes of `bytes`, as many as fit.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(Self::BYTES_MAX);
        let mut piece = [0; Self::BYTES_MAX];
        piece[..len].copy_from_slice(&bytes[..len]);
        Self {
            bytes: piece,
            // At most 20.
            len: u16::try_from(len).unwrap_or(0),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

const WRITE: u8 = 1;
const DISCARD: u8 = 2;
const ZERO: u8 = 3;
const RESIZE: u8 = 4;
const SESSION: u8 = 5;
const RECORD: u8 = 6;

impl Entry {
    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENTRY_LEN] {
        if let EntryKind::Record(piece) = &self.kind {
            return self.record_bytes(piece);
        }
        let (kind, address, word) = match self.kind {
            EntryKind::Write { address, crc } => (WRITE, address.0, crc),
            EntryKind::Discard { address, count } => (DISCARD, address.0, count),
            EntryKind::Zero { address, count } => (ZERO, address.0, count),
            EntryKind::Resize { size } => (RESIZE, size, 0),
            EntryKind::Session { id } => (SESSION, id, 0),
            EntryKind::Record(_) => (RECORD, 0, 0),
        };
        let mut bytes = [0; ENTRY_LEN];
        bytes[0..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..20].copy_from_slice(&word.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.session.to_le_bytes());
        bytes[22] = kind;
        bytes[23] = u8::from(self.last);
        bytes
    }

    /// A record's piece lies where other kinds have address, number and word; its length where they have the session.
    fn record_bytes(&self, piece: &RecordPiece) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..RecordPiece::BYTES_MAX].copy_from_slice(&piece.bytes);
        bytes[20..22].copy_from_slice(&piece.len.to_le_bytes());
        bytes[22] = RECORD;
        bytes[23] = u8::from(self.last);
        bytes
    }

    fn record_from(bytes: &[u8; ENTRY_LEN]) -> Result<Self, DecodeError> {
        let len = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        let Some(piece) = bytes[..RecordPiece::BYTES_MAX].get(..len) else {
            return Err(DecodeError::Value {
                what: "length of a record's piece",
                found: len.to_string(),
                expected: "at most 20",
            });
        };
        Ok(Self {
            kind: EntryKind::Record(RecordPiece::new(piece)),
            session: 0,
            number: 0,
            last: bytes[23] != 0,
        })
    }

    fn from_bytes(bytes: &[u8; ENTRY_LEN]) -> Result<Self, DecodeError> {
        let (address, word) = (u64_at(bytes, 0), u32_at(bytes, 16));
        let cluster = ClusterAddress(address);
        let kind = match bytes[22] {
            WRITE => EntryKind::Write {
                address: cluster,
                crc: word,
            },
            DISCARD => EntryKind::Discard {
                address: cluster,
                count: word,
            },
            ZERO => EntryKind::Zero {
                address: cluster,
                count: word,
            },
            RESIZE => EntryKind::Resize { size: address },
            SESSION => EntryKind::Session { id: address },
            RECORD => return Self::record_from(bytes),
            kind => {
                return Err(DecodeError::Value {
                    what: "TLog entry kind",
                    found: kind.to_string(),
                    expected: "1 to 6",
                });
            }
        };
        let session = u16::from_le_bytes([bytes[20], bytes[21]]);
        Ok(Self {
            kind,
            session,
            number: u64_at(bytes, 8),
            last: bytes[23] != 0,
        })
    }
}

/// A batch under construction: the engine fills one for each round of its inputs and reuses the buffer.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    entries: u16,
    writes: u16,
}

impl BatchBuilder {
    /// Most entries of a batch.
    pub const ENTRIES_MAX: u16 = u16::MAX;

    /// Appends an entry. The caller keeps within [`Self::ENTRIES_MAX`].
    pub fn push(&mut self, entry: &Entry) {
        if self.bytes.is_empty() {
            self.bytes.resize(BATCH_HEADER_LEN, 0);
        }
        self.bytes.extend_from_slice(&entry.to_bytes());
        self.entries += 1;
        if matches!(entry.kind, EntryKind::Write { .. }) {
            self.writes += 1;
        }
    }

    /// Entries so far.
    #[must_use]
    pub const fn entries(&self) -> u16 {
        self.entries
    }

    /// Entries of kind write so far: slots that the batch takes.
    #[must_use]
    pub const fn writes(&self) -> u16 {
        self.writes
    }

    /// Bytes that the batch takes in the TLog area if closed now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Closes the batch with its header and CRC; the builder is empty again.
    pub fn close(&mut self, salt: u32, seq: BatchSeq, first_slot: Slot, time_us: u64) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(bytes.len().max(BATCH_HEADER_LEN), 0);
        bytes[4..6].copy_from_slice(&self.entries.to_le_bytes());
        bytes[6..8].copy_from_slice(&first_slot.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&seq.0.to_le_bytes());
        let mut time_us = time_us;
        let crc = loop {
            bytes[16..24].copy_from_slice(&time_us.to_le_bytes());
            let crc = crc32c_append(salt, &bytes[4..]);
            // Four zeros stand where nothing was ever written, and would end the log there: the batch is a microsecond younger.
            if crc != 0 {
                break crc;
            }
            time_us = time_us.wrapping_add(1);
        };
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        (self.entries, self.writes) = (0, 0);
        bytes
    }
}

/// A batch as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its number in the volume.
    pub seq: BatchSeq,
    /// Slot of its first write; the others follow.
    pub first_slot: Slot,
    /// When it was closed, in microseconds since 1970 by the owner's clock.
    pub time_us: u64,
    /// What happened, in order.
    pub entries: Vec<Entry>,
    /// Bytes that it takes in the TLog area.
    pub len: usize,
}

impl Batch {
    /// The batch at the start of `tlog`, which is what is left of a TLog area.
    ///
    /// # Errors
    /// Cut off, damaged or not of this SCO (CRC), or an entry that no version wrote.
    pub fn from_bytes(tlog: &[u8], salt: u32) -> Result<Self, DecodeError> {
        const WHAT: &str = "TLog batch";
        let short = |need| DecodeError::Short {
            what: WHAT,
            have: tlog.len(),
            need,
        };
        let head = tlog
            .first_chunk::<BATCH_HEADER_LEN>()
            .ok_or(short(BATCH_HEADER_LEN))?;
        let count = u16::from_le_bytes([head[4], head[5]]);
        if count == 0 {
            return Err(DecodeError::Value {
                what: "TLog batch length",
                found: "0 entries".into(),
                expected: "at least 1 entry",
            });
        }
        let len = BATCH_HEADER_LEN + usize::from(count) * ENTRY_LEN;
        let whole = tlog.get(..len).ok_or(short(len))?;
        check_crc(WHAT, u32_at(head, 0), crc32c_append(salt, &whole[4..]))?;
        let (stored, _) = whole[BATCH_HEADER_LEN..].as_chunks::<ENTRY_LEN>();
        let entries = stored.iter().map(Entry::from_bytes).collect::<Result<_, _>>()?;
        Ok(Self {
            seq: BatchSeq(u64_at(head, 8)),
            first_slot: Slot(u16::from_le_bytes([head[6], head[7]])),
            time_us: u64_at(head, 16),
            entries,
            len,
        })
    }
}
