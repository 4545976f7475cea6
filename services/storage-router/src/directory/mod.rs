//! A back end in a directory of a local or network file system.
//!
//! Keeps: each object as the file `<root>/<volume>/<kind>/<leaf>`, in its envelope.
//! Order: bytes, then the name, then the directories are synced; only then is a put answered.
//! Crash: a file without its final name is a temporary one, removed at the next start.
//! Knows no envelope: it moves bytes. Why a link and not a rename, and which syncs: docs/decisions/0021.

mod direct;
mod durable_dirs;
mod files;
mod identity;
mod listing;
mod read_only;
mod root;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{BackendId, ByteLen, NodeName, ObjectName, VolumeId};

use crate::backend::{Backend, BackendError, Identified, Pending, Space, StoredRange};
use crate::workers::Workers;
use root::Root;

pub use crate::identity::IDENTITY_FILE;
pub use read_only::ReadOnlyDirectory;

/// How a directory back end is set up.
#[derive(Debug)]
pub struct DirectorySettings {
    /// Its name.
    pub name: String,
    /// The directory.
    pub root: PathBuf,
    /// The service that opens it: names the folder of its temporary files.
    pub node: NodeName,
    /// The identity that the directory must have; `None` at the very first start, which gives it one.
    pub expected: Option<BackendId>,
}

/// A back end in a directory.
#[derive(Debug)]
pub struct DirectoryBackend {
    root: Arc<Root>,
    readers: Workers,
    writers: Workers,
}

/// Reads that wait for the disk at once: the depth that an SSD wants.
const READS_AT_ONCE: usize = 32;
/// Puts and deletes at once: each waits for two syncs, which file systems do together.
const WRITES_AT_ONCE: usize = 16;
/// Up to this size a read is first tried on the calling thread, without waiting for the disk: from the page cache that
/// takes 7 µs where two changes of threads take 25. Larger ones would hold up what else the thread has to do.
const CACHED_READ_BYTES_MAX: u64 = 128 << 10;
const READ_BYTES_AT_ONCE: u64 = 128 << 20;
const WRITE_BYTES_AT_ONCE: u64 = 256 << 20;

impl DirectoryBackend {
    /// A back end whose directory is looked at with the first request, or with [`DirectoryBackend::attach`].
    #[must_use]
    pub fn new(settings: DirectorySettings) -> Self {
        Self {
            root: Arc::new(Root::new(settings)),
            readers: Workers::bounded(READS_AT_ONCE, READ_BYTES_AT_ONCE),
            writers: Workers::bounded(WRITES_AT_ONCE, WRITE_BYTES_AT_ONCE),
        }
    }

    /// Looks at the directory now: makes it and its identity if this is its very first start, checks the identity
    /// otherwise, and removes the temporary files that an earlier start of this service left.
    ///
    /// # Errors
    /// `Denied`: the directory holds something else, or another back end. `Unavailable`: it is not there, or has
    /// lost its identity (not mounted?).
    pub async fn attach(&self) -> Result<BackendId, BackendError> {
        // Drawn here: a source of chance is not shared between threads.
        let fresh = BackendId(Chance::from_os().u128());
        self.on_root(&self.writers, 0, move |root| root.attach(fresh))
            .await
    }

    /// Changes the identity that the directory must have, where another service was first to register one.
    pub fn expect(&self, id: BackendId) {
        self.root.expect(id);
    }

    async fn on_root<T: Send + 'static>(
        &self,
        workers: &Workers,
        bytes: u64,
        job: impl FnOnce(&Root) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let root = Arc::clone(&self.root);
        workers.run(bytes, move || job(&root)).await
    }
}

impl Backend for DirectoryBackend {
    fn name(&self) -> &str {
        self.root.name()
    }

    fn put_new(&self, object: SealedObject) -> Pending<'_, ()> {
        let bytes = object.stored_len();
        Box::pin(self.on_root(&self.writers, bytes, move |root| files::put_new(root, &object)))
    }

    fn replace(&self, object: SealedObject) -> Pending<'_, ()> {
        let bytes = object.stored_len();
        Box::pin(self.on_root(&self.writers, bytes, move |root| files::replace(root, &object)))
    }

    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange> {
        Box::pin(async move {
            if length <= CACHED_READ_BYTES_MAX
                && let Some(range) = files::read_cached(&self.root, name, offset, length)
            {
                return Ok(range);
            }
            self.on_root(&self.readers, length, move |root| {
                files::read(root, name, offset, length)
            })
            .await
        })
    }

    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        Box::pin(self.on_root(&self.readers, 0, move |root| {
            listing::objects(root, volume, kind, after, limit)
        }))
    }

    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>> {
        Box::pin(self.on_root(&self.readers, 0, move |root| listing::volumes(root, after, limit)))
    }

    fn delete(&self, name: ObjectName) -> Pending<'_, ()> {
        Box::pin(self.on_root(&self.writers, 0, move |root| files::delete(root, name)))
    }

    fn space(&self) -> Pending<'_, Space> {
        Box::pin(self.on_root(&self.readers, 0, |root| {
            let dir = root.ready()?;
            let stat =
                rustix::fs::statvfs(dir).map_err(|errno| root::failed("measure", dir)(errno.into()))?;
            Ok(Space {
                capacity: Some(ByteLen(stat.f_blocks.saturating_mul(stat.f_frsize))),
                free: Some(ByteLen(stat.f_bavail.saturating_mul(stat.f_frsize))),
            })
        }))
    }
}

impl Identified for DirectoryBackend {
    fn attach(&self) -> Pending<'_, BackendId> {
        Box::pin(Self::attach(self))
    }

    fn expect(&self, id: BackendId) {
        Self::expect(self, id);
    }
}
