//! Records in the log: what changes of a volume besides its clusters, size and sessions.
//!
//! Keeps: snapshots taken and removed, rollbacks, and whether the volume takes writes.
//! Order: a record stands at its place in the log: what it says is true of all that lies before it.
//! Crash: all pieces of a record are in one batch, so it is there whole or not at all.
//! Knows no map: what a snapshot holds is what the log before it made.
//!
//! A record is a msgpack map, cut into [`RecordPiece`]s of 20 bytes, one to a TLog entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::geometry::ScoSize;
use crate::ids::SnapshotId;
use crate::sco::{BATCH_HEADER_LEN, ENTRY_LEN, RecordPiece};
use crate::wire::msgpack::{put_named, take_named};

const WHAT: &str = "log record";
/// Longest name of a snapshot, in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 128;
/// Most bytes of a snapshot's metadata, keys and values together.
pub const METADATA_BYTES_MAX: usize = 2048;
/// Largest record: name, metadata, and what is around them.
pub const RECORD_BYTES_MAX: usize = 3200;
/// Most entries that a record takes.
pub const PIECES_MAX: u16 = 160;

const _: () = assert!(PIECES_MAX as usize * RecordPiece::BYTES_MAX >= RECORD_BYTES_MAX);
const _: () = assert!(SNAPSHOT_NAME_MAX + METADATA_BYTES_MAX + 512 < RECORD_BYTES_MAX);
// A record fits an empty SCO of the smallest size: no change waits for room that never comes.
const _: () = assert!(
    (BATCH_HEADER_LEN + PIECES_MAX as usize * ENTRY_LEN) as u64
        <= ScoSize::CLUSTERS_MIN * ScoSize::TLOG_BYTES_PER_SLOT
);

/// A snapshot as people know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLabel {
    /// Its id: random, chosen by whoever asks for it, so that asking again changes nothing.
    pub id: SnapshotId,
    /// Its name, unique in its volume.
    pub name: String,
    /// When it was taken, in microseconds since 1970 by the owner's clock.
    pub created_us: u64,
    /// What people wrote down with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// A record in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogRecord {
    /// The volume as it is here is kept.
    SnapshotTaken {
        /// As what.
        snapshot: SnapshotLabel,
    },
    /// The volume as it is here is kept if the confirmation follows in the same ownership: a part of a snapshot of several
    /// volumes. A later ownership removes one that was not confirmed, and until it is nobody sees it.
    SnapshotProposed {
        /// As what.
        snapshot: SnapshotLabel,
    },
    /// The proposed snapshot is one from here on: all volumes of its group have theirs.
    SnapshotConfirmed {
        /// Which.
        id: SnapshotId,
    },
    /// The volume, a clone, is to become independent of the volumes that it comes from.
    Flatten,
    /// The snapshot is gone.
    SnapshotRemoved {
        /// Which.
        id: SnapshotId,
    },
    /// From here on the volume is what the snapshot is.
    RolledBack {
        /// Which.
        to: SnapshotId,
        /// The state before, as a snapshot.
        before: SnapshotLabel,
        /// That snapshot is kept; otherwise it is removed at once.
        keep: bool,
    },
    /// Whether the volume takes no writes (a template), from here on.
    ReadOnly {
        /// It takes none.
        read_only: bool,
    },
    /// From here on any moment can be had for so long.
    History {
        /// Microseconds; 0: none can.
        window_us: u64,
    },
}

impl LogRecord {
    /// Its pieces, at most [`PIECES_MAX`].
    ///
    /// # Errors
    /// Larger than [`RECORD_BYTES_MAX`].
    pub fn to_pieces(&self) -> Result<Vec<RecordPiece>, DecodeError> {
        let mut bytes = Vec::new();
        put_named(&mut bytes, self);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(DecodeError::Value {
                what: WHAT,
                found: format!("{} bytes long", bytes.len()),
                expected: "at most 3200 bytes",
            });
        }
        Ok(bytes
            .chunks(RecordPiece::BYTES_MAX)
            .map(RecordPiece::new)
            .collect())
    }

    /// The record that these bytes, its pieces joined, are.
    ///
    /// # Errors
    /// Not a record that this build knows.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        take_named(&mut bytes, WHAT)
    }
}

/// Checks a snapshot's name: 1 to 128 bytes, no `/`, `@` or control characters, and not only dots.
///
/// # Errors
/// What is wrong with it.
pub fn check_snapshot_name(name: &str) -> Result<(), DecodeError> {
    let is_wrong = name.is_empty()
        || name.len() > SNAPSHOT_NAME_MAX
        || name.chars().any(|c| c == '/' || c == '@' || c.is_control())
        || name.bytes().all(|c| c == b'.');
    if is_wrong {
        return Err(DecodeError::Value {
            what: "snapshot name",
            found: format!("{name:?}"),
            expected: "1 to 128 bytes without '/', '@' and control characters, and not only dots",
        });
    }
    Ok(())
}

/// Checks what people want written down with a snapshot.
///
/// # Errors
/// It is too long.
pub fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), DecodeError> {
    let bytes: usize = metadata
        .iter()
        .map(|(key, value)| key.len() + value.len() + 8)
        .sum();
    if bytes <= METADATA_BYTES_MAX {
        return Ok(());
    }
    Err(DecodeError::Value {
        what: "snapshot metadata",
        found: format!("{bytes} bytes, counting 8 for each entry"),
        expected: "at most 2048 bytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, value: &str) -> LogRecord {
        LogRecord::SnapshotTaken {
            snapshot: SnapshotLabel {
                id: SnapshotId(u64::MAX),
                name: name.to_owned(),
                created_us: u64::MAX,
                metadata: [("reason".to_owned(), value.to_owned())].into(),
            },
        }
    }

    #[test]
    fn pieces_joined_are_the_record_again() {
        for length in 0..100 {
            let record = record("daily", &"x".repeat(length));
            let pieces = record.to_pieces().expect("a small record");
            let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
            assert_eq!(LogRecord::from_bytes(&bytes), Ok(record));
        }
    }

    #[test]
    fn what_the_checks_let_through_fits() {
        let name = "n".repeat(SNAPSHOT_NAME_MAX);
        assert!(check_snapshot_name(&name).is_ok());
        // The most entries that the check allows, each with the msgpack overhead of two strings.
        let metadata: BTreeMap<String, String> = (0..170)
            .map(|n: u32| (format!("{n:04}"), String::new()))
            .collect();
        assert!(check_metadata(&metadata).is_ok());
        let label = SnapshotLabel {
            id: SnapshotId(u64::MAX),
            name,
            created_us: u64::MAX,
            metadata,
        };
        let rolled = LogRecord::RolledBack {
            to: SnapshotId(u64::MAX),
            before: label,
            keep: false,
        };
        let pieces = rolled.to_pieces().expect("fits");
        assert!(pieces.len() <= usize::from(PIECES_MAX));
    }

    #[test]
    fn a_name_that_a_path_could_not_say_is_refused() {
        for wrong in ["", ".", "..", "a/b", "a@b", "a\nb", &"n".repeat(129)] {
            assert!(check_snapshot_name(wrong).is_err(), "{wrong:?}");
        }
        for right in ["daily", "2026-11-26T01:00:00Z", "vor dem Umbau", "a.b"] {
            assert!(check_snapshot_name(right).is_ok(), "{right:?}");
        }
    }
}
