//! Keeps: which errno a program gets for which error.
//! Order, crash: nothing.
//! Knows no file. What an errno cannot say is logged here, once.

use fuser::Errno;
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::names::{NamesError, PathError};

/// The errno for an error of the tree.
pub(super) fn of_names(error: &NamesError) -> Errno {
    match error {
        NamesError::Path(error) => of_path(error),
        NamesError::NotFound { .. } => Errno::ENOENT,
        NamesError::Exists { .. } => Errno::EEXIST,
        NamesError::NotDirectory { .. } => Errno::ENOTDIR,
        NamesError::IsDirectory { .. } => Errno::EISDIR,
        NamesError::NotEmpty { .. } => Errno::ENOTEMPTY,
        NamesError::Cycle { .. } => Errno::EINVAL,
        NamesError::Deep { .. } => Errno::ENAMETOOLONG,
        NamesError::Busy { .. } => Errno::EBUSY,
        NamesError::InUse { .. }
        | NamesError::PoolInUse { .. }
        | NamesError::BackendInUse { .. }
        | NamesError::Cloned { .. }
        | NamesError::BeingRemoved { .. }
        | NamesError::SnapshotsRemoved { .. } => {
            tracing::info!(%error, "a file is not removed");
            Errno::EBUSY
        }
        NamesError::NoPool { .. }
        | NamesError::NoBackend { .. }
        | NamesError::NoVolumeRouter
        | NamesError::UnknownOwner { .. }
        | NamesError::Damaged { .. }
        | NamesError::Contradiction { .. }
        | NamesError::Unavailable { .. } => {
            tracing::warn!(%error, "a file operation failed");
            Errno::EIO
        }
    }
}

fn of_path(error: &PathError) -> Errno {
    match error {
        PathError::Long { .. } | PathError::Deep { .. } => Errno::ENAMETOOLONG,
        PathError::NotUtf8 { .. } => Errno::EILSEQ,
        PathError::Root => Errno::EBUSY,
        PathError::Relative { .. }
        | PathError::Empty { .. }
        | PathError::Dots { .. }
        | PathError::NoSnapshot { .. }
        | PathError::Snapshot { .. }
        | PathError::Character { .. } => Errno::EINVAL,
    }
}

/// The errno for what an owner refused.
pub(super) fn of_refusal(refusal: &Refusal) -> Errno {
    match refusal.code {
        RefusalCode::Invalid | RefusalCode::OutOfRange => Errno::EINVAL,
        RefusalCode::ReadOnly => Errno::EROFS,
        RefusalCode::NoAccess => Errno::EPERM,
        RefusalCode::NoSpace => Errno::ENOSPC,
        // The file is there, its volume is not any more: somebody else removed it.
        RefusalCode::NotFound => Errno::ESTALE,
        RefusalCode::Unsupported => Errno::EOPNOTSUPP,
        RefusalCode::Corrupt => {
            tracing::error!(%refusal, "a file holds damaged data");
            Errno::EIO
        }
        _ => {
            tracing::warn!(%refusal, "a file operation failed");
            Errno::EIO
        }
    }
}
