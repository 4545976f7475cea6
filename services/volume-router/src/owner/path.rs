//! The volume's path: its inode's names up to the root.
//!
//! Keeps: nothing.
//! Order: a rename while the path is walked may give a mixture; the rename tells the owner to walk again.
//! Crash: nothing.
//! Knows no files.

use sconce_registry::{Registry, RegistryError};
use sconce_schemas::records::{InodeRecord, ROOT_INODE, VolumeRecord, keys};

/// Deeper than any tree that the fs-router makes; a cycle ends here.
const DEPTH_MAX: usize = 256;

/// The path of a volume, for messages and manifests. One whose inode is gone is named by its id.
pub(crate) async fn of(registry: &Registry, record: &VolumeRecord) -> Result<String, RegistryError> {
    let mut names = Vec::new();
    let mut inode = record.inode;
    while inode != ROOT_INODE && names.len() < DEPTH_MAX {
        match registry.get_record::<InodeRecord>(&keys::inode(inode)).await? {
            Some((found, _)) => {
                inode = found.parent;
                names.push(found.name);
            }
            None => return Ok(format!("(volume {})", record.id)),
        }
    }
    names.reverse();
    Ok(format!("/{}", names.join("/")))
}
