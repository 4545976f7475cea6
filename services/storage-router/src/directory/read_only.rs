//! A back end's directory that is only looked at: for inspection, beside no service or beside a running one.
//!
//! Keeps: nothing, and changes nothing: no temporary folder is made and none is swept. Works where nothing can be written.
//! Order: none.
//! Crash: nothing.
//! Knows no registry: it takes the identity that the directory has.

use std::path::PathBuf;

use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{BackendId, ObjectName, VolumeId};

use super::root::{Root, failed};
use super::{files, listing};
use crate::backend::{Backend, BackendError, Pending, Space, StoredRange};
use crate::identity::Identity;

/// A back end in a directory, for reading. Every request is done on the calling thread before it returns.
#[derive(Debug)]
pub struct ReadOnlyDirectory {
    root: Root,
    id: Option<BackendId>,
    wrong: Option<String>,
}

impl ReadOnlyDirectory {
    /// Opens the directory. One whose identity file is damaged is opened too: see [`ReadOnlyDirectory::wrong`].
    ///
    /// # Errors
    /// `Unavailable`: it is not there, or is no back end's (not mounted?). `Denied`: it may not be read.
    pub fn open(path: PathBuf) -> Result<Self, BackendError> {
        let shown = path.display().to_string();
        match std::fs::read_dir(&path) {
            Ok(_) => {}
            Err(error) => return Err(failed("open the directory", &path)(error)),
        }
        let (name, id, wrong) = match Identity::read(&path) {
            Ok(Some(identity)) => (identity.name, Some(identity.id), None),
            Ok(None) => (shown, None, None),
            Err(error) => (shown, None, Some(error.to_string())),
        };
        let root = Root::read_only(name, path);
        root.ready()?;
        Ok(Self { root, id, wrong })
    }

    /// The identity of the back end, where it can be read.
    #[must_use]
    pub const fn id(&self) -> Option<BackendId> {
        self.id
    }

    /// What is wrong with the file that holds the identity.
    #[must_use]
    pub fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    fn refuse(&self) -> Pending<'_, ()> {
        let why = format!("{} is open for reading only", self.root.path().display());
        Box::pin(std::future::ready(Err(BackendError::Denied { why })))
    }
}

impl Backend for ReadOnlyDirectory {
    fn name(&self) -> &str {
        self.root.name()
    }

    fn put_new(&self, _: SealedObject) -> Pending<'_, ()> {
        self.refuse()
    }

    fn replace(&self, _: SealedObject) -> Pending<'_, ()> {
        self.refuse()
    }

    fn read(&self, name: ObjectName, offset: u64, length: u64) -> Pending<'_, StoredRange> {
        Box::pin(async move { files::read(&self.root, name, offset, length) })
    }

    fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        Box::pin(async move { listing::objects(&self.root, volume, kind, after, limit) })
    }

    fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Pending<'_, Vec<VolumeId>> {
        Box::pin(async move { listing::volumes(&self.root, after, limit) })
    }

    fn delete(&self, _: ObjectName) -> Pending<'_, ()> {
        self.refuse()
    }

    fn space(&self) -> Pending<'_, Space> {
        Box::pin(std::future::ready(Ok(Space::default())))
    }
}
