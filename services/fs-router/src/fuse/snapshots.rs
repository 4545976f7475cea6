//! Keeps: the snapshots of a directory's files as files of `.snapshots` in that directory.
//! Order: a snapshot is seen as soon as it is taken; one that is removed, within a second.
//! Crash: nothing; owners know the snapshots.
//! Knows no kernel messages. `.snapshots` is hidden: who names it finds it, no listing has it, so that what walks a tree
//! (backups, `du`, `rm -r`) meets each disk once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::rc::Rc;
use std::time::Duration;

use fuser::{Errno, FileAttr};
use futures_util::StreamExt as _;
use sconce_schemas::VolumeId;
use sconce_schemas::records::InodeKind;
use sconce_schemas::wire::RefusalCode;
use tokio::time::Instant;

use super::attributes::attributes;
use super::errno::{of_names, of_refusal};
use super::front::{Answer, EXTENT_PATIENCE, Front, PAUSE, passes};
use super::virtual_inodes::{Virtual, VirtualInodes, file_number, is_virtual};
use super::volumes::{Extent, Snapshot, Source, Volumes};
use crate::names::{Entry, LIST_MAX, NamesError};

/// The directory's name.
pub(super) const NAME: &str = ".snapshots";

/// How long an owner's answer about its snapshots is believed: as long as the kernel believes a name.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Owners that are asked at the same time for one listing.
const OWNERS_MAX: usize = 8;

/// What is known of snapshots.
#[derive(Default)]
pub(super) struct Snapshots {
    pub(super) inodes: RefCell<VirtualInodes>,
    told: RefCell<HashMap<VolumeId, Told>>,
}

/// What an owner said of its volume's snapshots, and when.
struct Told {
    at: Instant,
    snapshots: Rc<Vec<Snapshot>>,
}

/// What a listing of a directory's snapshots found.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) entries: Vec<Entry>,
    /// Why there may be more.
    pub(super) failed: Option<Errno>,
}

impl Snapshots {
    fn known(&self, volume: VolumeId) -> Option<Rc<Vec<Snapshot>>> {
        let told = self.told.borrow();
        let told = told.get(&volume)?;
        told.is_believed().then(|| Rc::clone(&told.snapshots))
    }

    fn learn(&self, volume: VolumeId, snapshots: Vec<Snapshot>) -> Rc<Vec<Snapshot>> {
        let snapshots = Rc::new(snapshots);
        let mut told = self.told.borrow_mut();
        told.retain(|_, told| told.is_believed());
        let at = Instant::now();
        told.insert(
            volume,
            Told {
                at,
                snapshots: Rc::clone(&snapshots),
            },
        );
        snapshots
    }
}

impl Told {
    fn is_believed(&self) -> bool {
        self.at.elapsed() < AGE_MAX
    }
}

impl<V: Volumes> Front<V> {
    /// The inode of a number that [`is_virtual`]. The kernel names none that it has not looked up.
    pub(super) fn virtual_inode(&self, inode: u64) -> Answer<Virtual> {
        let inodes = self.snapshots.inodes.borrow();
        inodes.get(inode).cloned().ok_or(Errno::ESTALE)
    }

    /// The directory of `parent`'s snapshots; the registry has no such name there.
    pub(super) async fn lookup_snapshots(&self, parent: u64) -> Answer<FileAttr> {
        let what = Virtual::Directory { of: parent };
        let shown = self.virtual_attributes(&what).await?;
        self.looked_up(what, shown)
    }

    /// A name in a virtual directory.
    pub(super) async fn lookup_snapshot(&self, parent: u64, name: &OsStr) -> Answer<FileAttr> {
        let Virtual::Directory { of } = self.virtual_inode(parent)? else {
            return Err(Errno::ENOTDIR);
        };
        let name = name.to_str().and_then(|name| name.rsplit_once('@'));
        let (file, name) = name.ok_or(Errno::ENOENT)?;
        let entry = self.names.lookup(of, file).await.map_err(|error| match error {
            // A name that no file can have.
            NamesError::Path(_) => Errno::ENOENT,
            error => of_names(&error),
        })?;
        let InodeKind::File(volume) = entry.kind else {
            return Err(Errno::ENOENT);
        };
        let what = Virtual::File {
            of: entry.inode,
            volume,
            snapshot: self.snapshot_named(volume, name).await?,
        };
        let shown = self.virtual_attributes(&what).await?;
        self.looked_up(what, shown)
    }

    fn looked_up(&self, what: Virtual, shown: FileAttr) -> Answer<FileAttr> {
        let text = format!("{what:?}");
        match self.snapshots.inodes.borrow_mut().looked_up(what) {
            Some(_) => Ok(shown),
            None => {
                tracing::error!(what = text, "its inode number is another's: it is not shown");
                Err(Errno::EIO)
            }
        }
    }

    /// A snapshot of a volume; one that was taken a moment ago is found, whatever is believed.
    async fn snapshot_named(&self, volume: VolumeId, name: &str) -> Answer<Snapshot> {
        let find = |snapshots: &[Snapshot]| snapshots.iter().find(|known| known.name == name).cloned();
        if let Some(found) = self.snapshots.known(volume).and_then(|known| find(&known)) {
            return Ok(found);
        }
        find(&self.ask_snapshots(volume).await?).ok_or(Errno::ENOENT)
    }

    async fn snapshots_of(&self, volume: VolumeId) -> Answer<Rc<Vec<Snapshot>>> {
        match self.snapshots.known(volume) {
            Some(known) => Ok(known),
            None => self.ask_snapshots(volume).await,
        }
    }

    /// Asks the owner; waits for one that is about to answer, not for one that is gone.
    async fn ask_snapshots(&self, volume: VolumeId) -> Answer<Rc<Vec<Snapshot>>> {
        let give_up = Instant::now() + EXTENT_PATIENCE;
        loop {
            match self.volumes.snapshots(volume).await {
                Ok(snapshots) => return Ok(self.snapshots.learn(volume, snapshots)),
                Err(error)
                    if passes(&error)
                        && error.code != RefusalCode::WaitsForOwner
                        && Instant::now() < give_up =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(of_refusal(&error)),
            }
        }
    }

    /// Attributes of a virtual inode: those of what it stands for, without write permissions.
    pub(super) async fn virtual_attributes(&self, what: &Virtual) -> Answer<FileAttr> {
        let (Virtual::Directory { of } | Virtual::File { of, .. }) = what;
        let record = self.names.attributes(*of).await;
        let mut record = record.map_err(|error| of_names(&error))?;
        record.mode &= 0o555;
        let mut extent = Extent {
            size: 0,
            allocated: None,
        };
        match what {
            Virtual::Directory { .. } if record.kind != InodeKind::Directory => return Err(Errno::ENOTDIR),
            Virtual::Directory { .. } => {}
            Virtual::File { snapshot, .. } => {
                let created_ns = i64::try_from(snapshot.created_us.saturating_mul(1000)).unwrap_or(i64::MAX);
                (record.mtime_ns, record.ctime_ns) = (created_ns, created_ns);
                extent = Extent {
                    size: snapshot.size,
                    allocated: Some(snapshot.allocated),
                };
            }
        }
        Ok(attributes(what.number(), &record, extent, true))
    }

    /// Opens a snapshot once more.
    pub(super) async fn open_snapshot(&self, inode: u64) -> Answer<()> {
        let Virtual::File { volume, snapshot, .. } = self.virtual_inode(inode)? else {
            return Err(Errno::EISDIR);
        };
        let source = Source {
            volume,
            snapshot: Some(snapshot.id),
        };
        self.files.borrow_mut().enter(inode, source);
        let opened = self
            .volumes
            .open_snapshot(volume, snapshot.id, &snapshot.name)
            .await;
        self.entered(inode, opened).await
    }

    /// The snapshots of all files of a directory, file by file, as far as their owners answer.
    pub(super) async fn list_snapshots(&self, directory: u64) -> Answer<Found> {
        let mut files = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.names.list(directory, after.as_deref(), LIST_MAX).await;
            let page = page.map_err(|error| of_names(&error))?;
            let last = page.len() < LIST_MAX;
            after = page.last().map(|entry| entry.name.clone());
            files.extend(page.into_iter().filter_map(|entry| match entry.kind {
                InodeKind::File(volume) => Some((entry.name, volume)),
                InodeKind::Directory => None,
            }));
            if last {
                break;
            }
        }
        let asked = files
            .into_iter()
            .map(async |(name, volume)| (name, volume, self.snapshots_of(volume).await));
        let mut asked = futures_util::stream::iter(asked).buffered(OWNERS_MAX);
        let mut found = Found::default();
        while let Some((name, volume, snapshots)) = asked.next().await {
            match snapshots {
                Ok(snapshots) => found.entries.extend(snapshots.iter().map(|snapshot| Entry {
                    name: format!("{name}@{}", snapshot.name),
                    inode: file_number(volume, snapshot.id),
                    kind: InodeKind::File(volume),
                })),
                // It was removed since it was listed.
                Err(Errno::ESTALE | Errno::ENOENT) => {}
                Err(errno) => _ = found.failed.get_or_insert(errno),
            }
        }
        Ok(found)
    }

    /// Refuses a change of a name that is a snapshot's, or that of the directory of snapshots.
    pub(super) async fn refuse_snapshots(&self, parent: u64, name: &str) -> Answer<()> {
        if is_virtual(parent) {
            return Err(Errno::EROFS);
        }
        if name != NAME {
            return Ok(());
        }
        // One that somebody made by other means, or before there were snapshots, is as any other.
        match self.names.lookup(parent, name).await {
            Ok(_) => Ok(()),
            Err(NamesError::NotFound { .. }) => Err(Errno::EROFS),
            Err(error) => Err(of_names(&error)),
        }
    }
}
