//! Backup streams: snapshots out of one pool, into another.
//!
//! Keeps: which snapshot is which, wherever copies of it are.
//! Order: a stream is applied record by record; the snapshot that it leads to is taken when all of it was.
//! Crash: what was written of a stream, and what was applied of one, is found again and continued.
//! Knows no volume-router.

mod export;
mod import;
mod read;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use sconce_schemas::stream::StreamSnapshot;
use sconce_schemas::wire::volume::SnapshotStatus;
use sconce_schemas::{SnapshotId, VolumeId};

pub(super) use export::run as export;
pub(super) use import::{is_stream, run as import};
pub use verify::run as verify;

/// Metadata of a snapshot that came with a stream: the volume that it was taken of first, and its id there.
const ORIGIN_VOLUME: &str = "sconce.origin.volume";
const ORIGIN_SNAPSHOT: &str = "sconce.origin.snapshot";
/// Metadata of the snapshot that marks an import: which.
const IMPORTS: &str = "sconce.import";
/// The name of the snapshot that marks an import: the volume as it was when the import began.
const MARK: &str = "sconce-import";

/// Which snapshot it is: one that came with a stream is still the one that it was where it came from.
fn identity(volume: VolumeId, status: &SnapshotStatus) -> StreamSnapshot {
    let origin = || {
        let volume: VolumeId = status.metadata.get(ORIGIN_VOLUME)?.parse().ok()?;
        let id = u64::from_str_radix(status.metadata.get(ORIGIN_SNAPSHOT)?, 16).ok()?;
        Some((volume, SnapshotId(id)))
    };
    let (volume, id) = origin().unwrap_or((volume, status.id));
    let mut metadata = status.metadata.clone();
    metadata.remove(ORIGIN_VOLUME);
    metadata.remove(ORIGIN_SNAPSHOT);
    StreamSnapshot {
        volume,
        id,
        name: status.name.clone(),
        created_us: status.created_us,
        size: status.size,
        metadata,
    }
}

#[cfg(test)]
mod identities {
    use sconce_schemas::{ByteLen, VolumeSize};

    use super::*;

    #[test]
    fn a_copy_of_a_snapshot_is_still_that_snapshot() {
        let mut status = SnapshotStatus {
            id: SnapshotId(9),
            name: "monday".to_owned(),
            created_us: 5,
            size: VolumeSize::new(4096).unwrap(),
            allocated: ByteLen(0),
            synced: true,
            metadata: [("why".to_owned(), "because".to_owned())].into(),
        };
        let here = VolumeId([1; 16]);
        let first = identity(here, &status);
        assert_eq!((first.volume, first.id), (here, SnapshotId(9)));
        // As an import writes it down, in another volume.
        status.id = SnapshotId(77);
        status
            .metadata
            .insert(ORIGIN_VOLUME.to_owned(), first.volume.to_string());
        status
            .metadata
            .insert(ORIGIN_SNAPSHOT.to_owned(), first.id.to_string());
        let copy = identity(VolumeId([2; 16]), &status);
        assert_eq!(copy, first);
        // What is no id is nobody's.
        status.metadata.insert(ORIGIN_SNAPSHOT.to_owned(), "x".to_owned());
        assert_eq!(identity(here, &status).id, SnapshotId(77));
    }
}
