//! Keeps: requests on names and attributes.
//! Order: a volume's size is set before the attributes that came with it.
//! Crash: as the tree says.
//! Knows no kernel messages.

use std::ffi::OsStr;
use std::rc::Rc;

use fuser::{Errno, FileAttr};
use sconce_schemas::records::{InodeKind, ROOT_INODE};
use sconce_tracing::Span;
use tokio::sync::Mutex;

use super::errno::of_names;
use super::front::{Answer, Front};
use super::listing::{Listing, OpenDirectory};
use super::snapshots;
use super::virtual_inodes::{Virtual, is_virtual};
use super::volumes::{Extent, Told, Volumes};
use crate::names::{Entry, NamesError, NewEntry, NewVolume, PathError, PoolPath, Replace, SetAttributes};

/// A name as the tree has it.
fn text(name: &OsStr) -> Answer<&str> {
    let wrong = || PathError::NotUtf8 {
        name: name.to_string_lossy().into_owned(),
    };
    name.to_str().ok_or_else(|| of_names(&NamesError::Path(wrong())))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn failed(error: NamesError) -> Errno {
    of_names(&error)
}

impl<V: Volumes> Front<V> {
    pub(super) async fn lookup(&self, parent: u64, name: &OsStr) -> Answer<FileAttr> {
        if is_virtual(parent) {
            return self.lookup_snapshot(parent, name).await;
        }
        let name = text(name)?;
        match self.names.lookup(parent, name).await {
            Ok(entry) => self.attributes(entry.inode).await,
            Err(NamesError::NotFound { .. }) if name == snapshots::NAME => {
                self.lookup_snapshots(parent).await
            }
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) async fn make_directory(
        &self,
        parent: u64,
        name: &OsStr,
        entry: NewEntry,
    ) -> Answer<FileAttr> {
        let name = text(name)?;
        self.refuse_snapshots(parent, name).await?;
        let inode = self
            .names
            .make_directory(parent, name, entry)
            .await
            .map_err(failed)?;
        self.attributes(inode).await
    }

    /// Makes an empty file.
    pub(super) async fn make_file(&self, parent: u64, name: &OsStr, entry: NewEntry) -> Answer<FileAttr> {
        let name = text(name)?;
        self.refuse_snapshots(parent, name).await?;
        let made = self
            .names
            .create_file(parent, name, &NewVolume::default(), entry)
            .await;
        let (inode, _) = made.map_err(failed)?;
        self.empty_file(inode).await
    }

    /// Makes a file and opens it; opens one that somebody made first, unless it had to be new.
    /// Makes a file and opens it: its attributes and a handle.
    pub(super) async fn create(
        &self,
        request: u64,
        parent: u64,
        name: &OsStr,
        entry: NewEntry,
        exclusive: bool,
    ) -> Answer<(FileAttr, u64)> {
        let before = self.handles.borrow().of_resent(request);
        if let Some(handle) = before {
            let entry = self.names.lookup(parent, text(name)?).await.map_err(failed)?;
            return Ok((self.attributes(entry.inode).await?, handle));
        }
        let attributes = self.create_open(parent, name, entry, exclusive).await?;
        let handle = self.handle(request, attributes.ino.0).await?;
        Ok((attributes, handle))
    }

    async fn create_open(
        &self,
        parent: u64,
        name: &OsStr,
        entry: NewEntry,
        exclusive: bool,
    ) -> Answer<FileAttr> {
        let name = text(name)?;
        self.refuse_snapshots(parent, name).await?;
        let made = self
            .names
            .create_file(parent, name, &NewVolume::default(), entry)
            .await;
        match made {
            Ok((inode, volume)) => {
                self.open_volume(inode, volume).await?;
                self.empty_file(inode).await
            }
            Err(NamesError::Exists { .. }) if !exclusive => {
                let entry = self.names.lookup(parent, name).await.map_err(failed)?;
                self.open(entry.inode, true).await?;
                self.attributes(entry.inode).await
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Attributes of a file that was made just now: its owner need not be asked for its size.
    async fn empty_file(&self, inode: u64) -> Answer<FileAttr> {
        let record = self.names.attributes(inode).await.map_err(failed)?;
        Ok(self.shown(
            inode,
            record,
            Extent {
                size: 0,
                allocated: Some(0),
            },
        ))
    }

    pub(super) async fn unlink(&self, parent: u64, name: &OsStr) -> Answer<()> {
        let name = text(name)?;
        self.refuse_snapshots(parent, name).await?;
        let removed = self
            .keeping(async |keep| {
                Span::control("volume.remove")
                    .scope(self.names.unlink(parent, name, keep))
                    .await
            })
            .await;
        self.removed(removed.map_err(failed)?).await;
        Ok(())
    }

    pub(super) async fn remove_directory(&self, parent: u64, name: &OsStr) -> Answer<()> {
        let name = text(name)?;
        self.refuse_snapshots(parent, name).await?;
        self.names
            .remove_directory(parent, name)
            .await
            .map(drop)
            .map_err(failed)
    }

    pub(super) async fn rename(
        self: Rc<Self>,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        replace: Replace,
    ) -> Answer<()> {
        let (from, to) = ((from.0, text(from.1)?), (to.0, text(to.1)?));
        self.refuse_snapshots(from.0, from.1).await?;
        self.refuse_snapshots(to.0, to.1).await?;
        let moved = self
            .keeping(async |keep| {
                Span::control("volume.rename")
                    .scope(self.names.rename(from, to, replace, keep))
                    .await
            })
            .await;
        let moved = moved.map_err(failed)?;
        if let Some(replaced) = moved.replaced {
            self.removed(replaced).await;
        }
        match moved.kind {
            InodeKind::File(volume) => self.volumes.tell(vec![volume], Told::Renamed),
            // Telling the owners of a whole tree takes a while; the rename is done before that.
            InodeKind::Directory => _ = tokio::task::spawn_local(self.tell_below(moved.inode)),
        }
        Ok(())
    }

    async fn tell_below(self: Rc<Self>, directory: u64) {
        let found = async {
            let path: PoolPath = self.names.path_of(directory).await?;
            self.names.files(&path, usize::MAX).await
        };
        match found.await {
            Ok(files) => self
                .volumes
                .tell(files.into_iter().map(|file| file.volume).collect(), Told::Renamed),
            Err(error) => tracing::debug!(%error, "owners are not told of a moved directory"),
        }
    }

    pub(super) async fn set_attributes(
        &self,
        inode: u64,
        set: SetAttributes,
        size: Option<u64>,
    ) -> Answer<FileAttr> {
        if is_virtual(inode) {
            return Err(Errno::EROFS);
        }
        if let Some(size) = size {
            self.resize(inode, size).await?;
        }
        if set != SetAttributes::default() {
            self.names.set_attributes(inode, set).await.map_err(failed)?;
        }
        if set.mtime_ns.is_some() {
            self.files.borrow_mut().time_set(inode);
        }
        self.attributes(inode).await
    }

    /// Starts reading a directory; answers the handle.
    pub(super) async fn open_directory(&self, inode: u64) -> Answer<u64> {
        let listing = self.listing(inode).await?;
        let handle = self.handles.borrow_mut().number();
        self.listings.borrow_mut().insert(handle, listing);
        Ok(handle)
    }

    async fn listing(&self, inode: u64) -> Answer<Rc<Mutex<OpenDirectory>>> {
        let listing = if is_virtual(inode) {
            match self.virtual_inode(inode)? {
                Virtual::Directory { of } => OpenDirectory::Snapshots(of, None),
                Virtual::File { .. } => return Err(Errno::ENOTDIR),
            }
        } else {
            let record = self.names.attributes(inode).await.map_err(failed)?;
            if record.kind != InodeKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            OpenDirectory::Tree(Listing::new(inode))
        };
        Ok(Rc::new(Mutex::new(listing)))
    }

    pub(super) fn close_directory(&self, handle: u64) {
        self.listings.borrow_mut().remove(&handle);
    }

    /// The directory above.
    pub(super) async fn parent(&self, inode: u64) -> Answer<u64> {
        if inode == ROOT_INODE {
            return Ok(ROOT_INODE);
        }
        if is_virtual(inode) {
            let (Virtual::Directory { of } | Virtual::File { of, .. }) = self.virtual_inode(inode)?;
            return Ok(of);
        }
        self.names
            .attributes(inode)
            .await
            .map(|record| record.parent)
            .map_err(failed)
    }

    /// Entries of an open directory from the `place`-th on, at most `limit`. One that was opened through an earlier process
    /// is read from there on.
    pub(super) async fn entries(
        &self,
        inode: u64,
        handle: u64,
        place: u64,
        limit: usize,
    ) -> Answer<Vec<Entry>> {
        let known = self.listings.borrow().get(&handle).cloned();
        let listing = match known {
            Some(listing) => listing,
            None => {
                let listing = self.listing(inode).await?;
                let mut listings = self.listings.borrow_mut();
                Rc::clone(listings.entry(handle).or_insert(listing))
            }
        };
        let entries = match &mut *listing.lock().await {
            OpenDirectory::Tree(listing) => {
                let entries = listing.from(&self.names, place).await.map_err(failed)?;
                entries.iter().take(limit).cloned().collect()
            }
            OpenDirectory::Snapshots(of, found) => {
                if place == 0 {
                    *found = None;
                }
                let found = match found {
                    Some(found) => found,
                    None => found.insert(self.list_snapshots(*of).await?),
                };
                let skip = usize::try_from(place).unwrap_or(usize::MAX);
                let left = found.entries.get(skip..).unwrap_or_default();
                match (left, found.failed) {
                    // What there is comes first, then that it may not be all.
                    ([], Some(errno)) => return Err(errno),
                    (left, _) => left.iter().take(limit).cloned().collect(),
                }
            }
        };
        Ok(entries)
    }
}
