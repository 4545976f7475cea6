//! The write buffer's device: preallocated, recycled SCO files, and local copies of checkpoints.
//!
//! Keeps: `<dir>/buffer.id`, `<dir>/sco/<n>`, `<dir>/map/<volume>/…`, within a total budget.
//! Order: a file's content is written by its volume's thread alone; which file is whose is decided under one lock.
//! Crash: what a file holds is told by its header; there is no table beside the files that could disagree.
//! Knows no engine state: a volume says what is unstored, what is a cache and what is over.

mod checkpoints;
mod disk;
pub mod faults;
mod file;
mod identity;
mod keeper;
mod pool;
mod scan;
#[cfg(test)]
mod tests;
mod unknown;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sconce_runtime::{Chance, simulated};
use sconce_schemas::records::Buffer;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{Epoch, ScoId, ScoSize, VolumeId};

pub use checkpoints::LocalCheckpoints;
pub use disk::{Disk, SystemDisk};
pub use file::{BadCluster, ScoFile, check_clusters};
pub use pool::{FoundSco, Tenant, Unclaimed, Usage};
pub use unknown::Sought;

use pool::Shared;

/// From here on, in thousandths of the write buffer, what can be is stored: well before writes are slowed down.
pub(crate) const PRESSED_FROM: u64 = 500;

/// The write buffer of this process: a handle, shared by all its threads.
#[derive(Debug, Clone)]
pub struct Device {
    shared: Arc<Shared>,
    identity: Arc<Buffer>,
    _keeper: Arc<KeeperEnd>,
}

/// Why the write buffer cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("write buffer {}: {source}", dir.display())]
pub struct DeviceError {
    /// Where it is.
    pub dir: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl Device {
    /// Opens the write buffer in `dir`, makes it where there is none, and reads what its files hold. `size`: bytes
    /// that all SCO files together may take.
    ///
    /// # Errors
    /// The directory or a file cannot be made, listed or opened.
    pub fn open(
        dir: &Path,
        size: u64,
        disk: Arc<dyn Disk>,
        chance: &mut Chance,
    ) -> Result<Device, DeviceError> {
        let told = |source| DeviceError {
            dir: dir.to_owned(),
            source,
        };
        let scos = dir.join("sco");
        fs::create_dir_all(&scos).map_err(told)?;
        let identity = Buffer {
            id: identity::of(dir, chance).map_err(told)?,
            boot: Some(disk.boot().map_err(told)?),
        };
        let shared = Arc::new(Shared::new(scos, disk, size));
        scan::scan(&shared).map_err(told)?;
        let keeper = Arc::clone(&shared);
        let thread = if simulated::is_here() {
            tokio::task::spawn_local(keeper::run_here(keeper));
            None
        } else {
            let thread = std::thread::Builder::new().name("write-buffer".into());
            Some(thread.spawn(move || keeper::run(&keeper)).map_err(told)?)
        };
        let keeper = KeeperEnd {
            shared: Arc::clone(&shared),
            thread,
        };
        Ok(Device {
            shared,
            identity: Arc::new(identity),
            _keeper: Arc::new(keeper),
        })
    }

    /// The buffer's identity, as a volume's record names it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// The same, with the boot in which it was opened.
    #[must_use]
    pub fn identity(&self) -> &Buffer {
        &self.identity
    }

    /// What the start found of a volume; it is the caller's from here on.
    #[must_use]
    pub fn claim(&self, volume: VolumeId) -> Vec<FoundSco> {
        self.shared.claim(volume)
    }

    /// Gives back what [`Self::claim`] gave: the volume cannot be served now, and what is found stays.
    pub fn disclaim(&self, volume: VolumeId, found: Vec<FoundSco>) {
        self.shared.disclaim(volume, found);
    }

    /// What nobody has claimed of a volume as it is now, if there is any. Taken before the registry is read, it keeps what comes until the
    /// answer from being judged by that (docs/decisions/0171, 4).
    #[must_use]
    pub fn unclaimed_of(&self, volume: VolumeId) -> Option<Unclaimed> {
        self.shared.unclaimed_of(volume)
    }

    /// Gives up what nobody has claimed of a volume, if it is what was seen and `is_over` says so of its newest epoch; gives how many SCOs.
    pub fn give_up(&self, seen: Unclaimed, is_over: impl FnOnce(Epoch) -> bool) -> usize {
        self.shared.give_up(seen, is_over)
    }

    /// Looks for a SCO among the files whose headers do not tell what they hold. `true`: it was there and can be claimed
    /// now. Blocks.
    ///
    /// # Errors
    /// Files that may be it cannot be read: the text names them all.
    pub fn identify(&self, sought: &Sought) -> Result<bool, String> {
        unknown::identify(&self.shared, sought)
    }

    /// Volumes of which the start found something that nobody has claimed.
    #[must_use]
    pub fn unclaimed(&self) -> Vec<VolumeId> {
        self.shared.unclaimed()
    }

    /// From here on the device may ask `tenant` to give up caches of `volume`.
    pub fn join(&self, volume: VolumeId, tenant: Arc<dyn Tenant>) {
        self.shared.join(volume, tenant);
    }

    /// The volume is served here no more.
    pub fn leave(&self, volume: VolumeId) {
        self.shared.leave(volume);
    }

    /// A file for this SCO, its header written. `None`: there is none now; [`Tenant::file_ready`] says when to ask
    /// again.
    ///
    /// # Errors
    /// The header cannot be written.
    pub fn open_sco(&self, header: &ScoHeader) -> io::Result<Option<Arc<ScoFile>>> {
        self.take(header.volume, header.size, |sco| sco.begin(header))
    }

    /// The same for a SCO that is copied in parts ([`ScoFile::write_part`]): as long as its header area is not written, the file holds
    /// no SCO, for this process and for the next.
    ///
    /// # Errors
    /// What the file held before cannot be erased.
    pub fn open_copy(&self, volume: VolumeId, size: ScoSize) -> io::Result<Option<Arc<ScoFile>>> {
        self.take(volume, size, ScoFile::begin_copy)
    }

    fn take(
        &self,
        volume: VolumeId,
        size: ScoSize,
        begin: impl FnOnce(&ScoFile) -> io::Result<()>,
    ) -> io::Result<Option<Arc<ScoFile>>> {
        let Some(file) = self.shared.take(volume, size.file_len()) else {
            return Ok(None);
        };
        let sco = ScoFile::new(file, size, &self.shared.disk, Arc::downgrade(&self.shared));
        if let Err(error) = begin(&sco) {
            self.shared.retire(&sco);
            return Err(error);
        }
        Ok(Some(Arc::new(sco)))
    }

    /// The cache that the volume was asked back is not with the volume, but with what nobody serves: from there it goes.
    pub fn evict_left(&self, volume: VolumeId, sco: ScoId, epoch: Epoch) {
        self.shared.evict_left(volume, sco, epoch);
    }

    /// The SCO is on the back ends and covered: its file is a cache from here on, and may be asked back.
    pub fn evictable(&self, volume: VolumeId, sco: ScoId, epoch: Epoch, file: &Arc<ScoFile>) {
        self.shared.evictable(volume, sco, epoch, file);
    }

    /// The file's SCO is not needed here any more: another may have the file once its last reader let go of it.
    pub fn retire(&self, file: &ScoFile) {
        self.shared.retire(file);
    }

    /// How full the buffer is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }

    /// Part of the buffer, in thousandths, that holds SCOs which are not stored. Cheap: every acknowledgement asks.
    #[must_use]
    pub fn fullness(&self) -> u64 {
        self.shared.fullness()
    }

    /// How full it is, for those that only look.
    pub(crate) fn level(&self) -> Level {
        Level(Arc::clone(&self.shared))
    }
}

/// Tells how full the write buffer is; keeps nothing of it going.
#[derive(Debug, Clone)]
pub(crate) struct Level(Arc<Shared>);

impl Level {
    /// Whether what can be is to be stored now.
    pub(crate) fn is_pressed(&self) -> bool {
        self.0.fullness() > PRESSED_FROM
    }
}

/// Ends the device's thread with the last handle, once it has erased what was given back.
#[derive(Debug)]
struct KeeperEnd {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for KeeperEnd {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.ring();
        // One that panicked has said so.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}
