//! Keeps: the front end on its IO thread: the tree, the volumes, the open files.
//! Order: each request is a task of its own; what belongs together in the tree is one commit there.
//! Crash: a file that is open without a name is removed by the next start, unless the mount is taken over with it open.
//! Knows no kernel messages: requests come as calls, answers go as values or an errno.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use fuser::{Errno, FileAttr};
use sconce_runtime::Clock;
use sconce_schemas::records::{InodeKind, InodeRecord};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{NodeName, VolumeId};
use tokio::sync::Mutex;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::attributes::attributes;
use super::errno::{of_names, of_refusal};
use super::handles::{self, Handles, OpenedSnapshot};
use super::listing::OpenDirectory;
use super::snapshots::Snapshots;
use super::table::{OpenFile, OpenFiles};
use super::virtual_inodes::{Virtual, is_virtual};
use super::volumes::{Extent, Source, Told, Volumes};
use crate::in_use::InUse;
use crate::names::{Keep, Names, Removed};
use crate::routing::Opened;

/// How long the size of a file that is not open is waited for when its owner does not answer but may be about to: a
/// restart takes less, and after a crash the registry lets its record go sooner.
pub(super) const EXTENT_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before an owner is asked again.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// An answer to the kernel.
pub(super) type Answer<T> = Result<T, Errno>;

/// The FUSE front end.
pub(super) struct Front<V> {
    pub(super) names: Names,
    pub(super) volumes: V,
    pub(super) files: RefCell<OpenFiles>,
    /// What the kernel has open.
    pub(super) handles: RefCell<Handles>,
    pub(super) listings: RefCell<HashMap<u64, Rc<Mutex<OpenDirectory>>>>,
    pub(super) snapshots: Snapshots,
    pub(super) clock: Clock,
    node: NodeName,
    /// Volumes that clients of other front ends of this process use.
    in_use: InUse,
    /// Requests that were taken and have not been answered.
    pub(super) underway: Cell<usize>,
}

impl<V: Volumes> Front<V> {
    pub(super) fn new(
        names: Names,
        volumes: V,
        node: NodeName,
        clock: Clock,
        in_use: InUse,
        handles: Handles,
    ) -> Self {
        Self {
            names,
            volumes,
            files: RefCell::default(),
            handles: RefCell::new(handles),
            listings: RefCell::default(),
            snapshots: Snapshots::default(),
            clock,
            node,
            in_use,
            underway: Cell::new(0),
        }
    }

    pub(super) fn now_ns(&self) -> i64 {
        i64::try_from(self.clock.unix_micros().saturating_mul(1000)).unwrap_or(i64::MAX)
    }

    /// The open file of an inode.
    pub(super) fn file(&self, inode: u64) -> Answer<OpenFile> {
        self.files.borrow().get(inode).copied().ok_or(Errno::EBADF)
    }

    /// Attributes of an inode.
    pub(super) async fn attributes(&self, inode: u64) -> Answer<FileAttr> {
        if is_virtual(inode) {
            let what = self.virtual_inode(inode)?;
            return self.virtual_attributes(&what).await;
        }
        let record = self
            .names
            .attributes(inode)
            .await
            .map_err(|error| of_names(&error))?;
        self.attributes_of(inode, record).await
    }

    /// Attributes of an inode whose record is known.
    pub(super) async fn attributes_of(&self, inode: u64, record: InodeRecord) -> Answer<FileAttr> {
        let extent = match record.kind {
            InodeKind::Directory => Extent {
                size: 0,
                allocated: None,
            },
            InodeKind::File(volume) => self.extent(inode, volume).await?,
        };
        Ok(self.shown(inode, record, extent))
    }

    /// Attributes with what this mount knows better than the record: the last write.
    pub(super) fn shown(&self, inode: u64, mut record: InodeRecord, extent: Extent) -> FileAttr {
        let files = self.files.borrow();
        let file = files.get(inode);
        if let Some(written) = file.and_then(|file| file.written_ns) {
            record.mtime_ns = written;
            record.ctime_ns = record.ctime_ns.max(written);
        }
        attributes(inode, &record, extent, !file.is_some_and(|file| file.nameless))
    }

    /// Size and space of a file. An open file's size is known here, so its owner's restart does not hold it up; of
    /// another file the registry knows the size, for when its owner is gone.
    async fn extent(&self, inode: u64, volume: VolumeId) -> Answer<Extent> {
        let give_up = Instant::now() + EXTENT_PATIENCE;
        loop {
            let error = match self.ask_extent(inode, volume).await {
                Ok(extent) => return Ok(extent),
                Err(error) => error,
            };
            if let Some(file) = self.files.borrow().get(inode) {
                return Ok(Extent {
                    size: file.size,
                    allocated: None,
                });
            }
            if !passes(&error) {
                return Err(of_refusal(&error));
            }
            if error.code == RefusalCode::WaitsForOwner || Instant::now() >= give_up {
                return self.recorded(volume).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The size that the owner last told the registry.
    async fn recorded(&self, volume: VolumeId) -> Answer<Extent> {
        let record = self.names.volume(volume).await;
        let record = record.map_err(|error| of_names(&error))?;
        Ok(Extent {
            size: record.known_size().bytes(),
            allocated: None,
        })
    }

    async fn ask_extent(&self, inode: u64, volume: VolumeId) -> Result<Extent, Refusal> {
        let mark = self.files.borrow().mark(inode);
        let extent = self.volumes.extent(volume).await?;
        let size = self.files.borrow_mut().told(inode, mark, extent.size);
        Ok(Extent { size, ..extent })
    }

    /// An open file's size as its owner has it, however long that takes.
    pub(super) async fn size_now(&self, inode: u64, source: Source) -> Answer<u64> {
        if source.snapshot.is_some() {
            return Ok(self.file(inode)?.size);
        }
        let mark = self.files.borrow().mark(inode);
        let opened = self
            .volumes
            .open(source.volume)
            .await
            .map_err(|refusal| of_refusal(&refusal))?;
        Ok(self.files.borrow_mut().told(inode, mark, opened.size.bytes()))
    }

    /// Goes on with what was opened through an earlier process.
    pub(super) fn go_on(self: &Rc<Self>, opened: Vec<handles::Opened>) {
        for opened in opened {
            let (inode, source) = (opened.inode, opened.source());
            let is_first = !self.files.borrow().is_open(inode);
            self.files.borrow_mut().enter(inode, source);
            match opened.snapshot {
                Some(of) => {
                    let snapshot = of.snapshot();
                    self.volumes
                        .attach_snapshot(source.volume, snapshot.id, &snapshot.name);
                    self.files.borrow_mut().known(inode, snapshot.size, true);
                    let file = Virtual::File {
                        of: of.of,
                        volume: source.volume,
                        snapshot,
                    };
                    self.snapshots.inodes.borrow_mut().looked_up(file);
                }
                None if is_first => {
                    // Requests need not wait for what the owner says of it.
                    let front = Rc::clone(self);
                    spawn_local(async move {
                        if let Ok(opened) = front.volumes.open(source.volume).await {
                            front.files.borrow_mut().opened(inode, opened);
                        }
                    });
                }
                None => {}
            }
        }
    }

    /// Writes down when files were last written to that stay open for the next process.
    pub(super) async fn keep_times(&self) {
        let written = self.files.borrow().written();
        for (inode, written_ns) in written {
            self.keep_time(inode, written_ns).await;
        }
    }

    async fn keep_time(&self, inode: u64, written_ns: i64) {
        let set = crate::names::SetAttributes {
            mtime_ns: Some(written_ns),
            ..Default::default()
        };
        if let Err(error) = self.names.set_attributes(inode, set).await {
            tracing::debug!(%error, "the time of a file's last write is not kept");
        }
    }

    /// Opens the file of an inode for a request of the kernel: a handle, the same if the request comes again.
    pub(super) async fn open_handle(&self, request: u64, inode: u64, writes: bool) -> Answer<u64> {
        let before = self.handles.borrow().of_resent(request);
        if let Some(handle) = before {
            return Ok(handle);
        }
        self.open(inode, writes).await?;
        self.handle(request, inode).await
    }

    /// A handle for a file that was opened for a request.
    pub(super) async fn handle(&self, request: u64, inode: u64) -> Answer<u64> {
        let given = self.file(inode).and_then(|file| {
            let snapshot = match is_virtual(inode) {
                true => match self.virtual_inode(inode)? {
                    Virtual::File { of, snapshot, .. } => Some(OpenedSnapshot::new(of, &snapshot)),
                    Virtual::Directory { .. } => return Err(Errno::EISDIR),
                },
                false => None,
            };
            let volume = file.source.volume;
            let given = self.handles.borrow_mut().open(request, inode, volume, snapshot);
            given.map_err(|error| {
                tracing::warn!(%error, "a file cannot be opened");
                Errno::ENFILE
            })
        });
        if given.is_err() {
            self.close(inode).await;
        }
        given
    }

    /// Closes a file for a request of the kernel, once, however often that comes.
    pub(super) async fn close_handle(&self, handle: u64, inode: u64) {
        let is_open = self.handles.borrow_mut().close(handle);
        if is_open {
            self.close(inode).await;
        }
    }

    /// Opens the file of an inode once more.
    pub(super) async fn open(&self, inode: u64, writes: bool) -> Answer<()> {
        if is_virtual(inode) {
            // Root may write to what has no permission for it.
            return match writes {
                true => Err(Errno::EROFS),
                false => self.open_snapshot(inode).await,
            };
        }
        let record = self
            .names
            .attributes(inode)
            .await
            .map_err(|error| of_names(&error))?;
        let InodeKind::File(volume) = record.kind else {
            return Err(Errno::EISDIR);
        };
        self.open_volume(inode, volume).await
    }

    /// Opens a file whose volume is known once more.
    pub(super) async fn open_volume(&self, inode: u64, volume: VolumeId) -> Answer<()> {
        self.files.borrow_mut().enter(inode, volume.into());
        let opened = self.volumes.open(volume).await;
        self.entered(inode, opened).await
    }

    /// The owner has answered an open.
    pub(super) async fn entered(&self, inode: u64, opened: Result<Opened, Refusal>) -> Answer<()> {
        match opened {
            Ok(opened) => {
                self.files.borrow_mut().opened(inode, opened);
                Ok(())
            }
            Err(refusal) => {
                self.close(inode).await;
                Err(of_refusal(&refusal))
            }
        }
    }

    /// Closes a file once. The last close writes down when it was last written to, and removes a file without a name.
    pub(super) async fn close(&self, inode: u64) {
        let Some(file) = self.files.borrow_mut().leave(inode) else {
            return;
        };
        self.volumes.close(file.source);
        if file.nameless {
            self.remove_nameless(inode).await;
        } else if let Some(written_ns) = file.written_ns {
            self.keep_time(inode, written_ns).await;
        }
    }

    /// Removes what an earlier process of this node had open without a name, and is not open any more.
    pub(super) async fn remove_all_nameless(&self) -> Result<(), crate::names::NamesError> {
        loop {
            let mut nameless = self.names.nameless(&self.node).await?;
            nameless.retain(|file| {
                let mut files = self.files.borrow_mut();
                // Its last close removes it.
                files.unnamed(file.inode);
                !files.is_open(file.inode)
            });
            if nameless.is_empty() {
                return Ok(());
            }
            for file in nameless {
                if let Some(removed) = self.names.remove_nameless(&self.node, file.inode).await? {
                    self.volumes.tell(vec![removed.volume], Told::Deleted);
                }
            }
        }
    }

    async fn remove_nameless(&self, inode: u64) {
        match self.names.remove_nameless(&self.node, inode).await {
            Ok(Some(removed)) => self.volumes.tell(vec![removed.volume], Told::Deleted),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a removed file's space comes back at the next start"),
        }
    }

    /// Runs a change of the tree that keeps the files that are open here when their names go.
    pub(super) async fn keeping<T>(&self, change: impl AsyncFnOnce(Keep<'_>) -> T) -> T {
        let is_open = |inode: u64| self.files.borrow().is_open(inode);
        let is_used =
            |volume: VolumeId| self.in_use.has(volume) || self.files.borrow().has_snapshot_of(volume);
        change(Keep::Open {
            holder: &self.node,
            is_open: &is_open,
            is_used: &is_used,
        })
        .await
    }

    /// What follows when a file's name is gone.
    pub(super) async fn removed(&self, removed: Removed) {
        if !removed.kept {
            return self.volumes.tell(vec![removed.volume], Told::Deleted);
        }
        let is_open = self.files.borrow().is_open(removed.inode);
        if is_open {
            self.files.borrow_mut().unnamed(removed.inode);
        } else {
            // The last close came while the name went, and found the file still named.
            self.remove_nameless(removed.inode).await;
        }
    }
}

/// Whether asking again can help.
pub(super) fn passes(refusal: &Refusal) -> bool {
    matches!(refusal.remedy, Remedy::Retry | Remedy::Reroute)
}
