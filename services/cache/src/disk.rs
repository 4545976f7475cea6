//! The system calls on the cache's file: a component, so that a test can let them fail.
//!
//! Keeps: nothing.
//! Order: what was written is read from then on.
//! Crash: what was written by a killed process is there; after a loss of power any part of it may be missing.
//! Knows no layout.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::ReadWriteFlags;

/// Where caches' files are. Its calls block.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens the file `path`, or makes it and the directories above it. One that another process has open is refused.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn CacheFile>>;

    /// Bytes of the file system that holds the file `path`, which was opened before: of all, not of what is free.
    ///
    /// # Errors
    /// What the system says.
    fn capacity(&self, path: &Path) -> io::Result<u64>;
}

/// An open file.
pub trait CacheFile: Send + Sync + fmt::Debug {
    /// Reads at `offset`; gives the bytes that were read, fewer than asked for only at the end of the file. With `now` only
    /// what is in memory: `WouldBlock` where that is not all.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, buffer: &mut [u8], offset: u64, now: bool) -> io::Result<usize>;

    /// Writes all of it at `offset`. Not synced: what a loss of power takes away is a miss.
    ///
    /// # Errors
    /// What the system says; part of it may be written then.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes it empty.
    ///
    /// # Errors
    /// What the system says.
    fn clear(&self) -> io::Result<()>;

    /// Whether it can still be found by a name: what is written to one that was deleted is lost at the next start.
    ///
    /// # Errors
    /// What the system says.
    fn is_named(&self) -> io::Result<bool>;
}

/// The machine's.
#[derive(Debug, Clone, Copy)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn CacheFile>> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // It holds what is on guests' disks.
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        // A file that was brought here from elsewhere may be open to all.
        file.set_permissions(Permissions::from_mode(0o600))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Box::new(SystemFile(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process has it open; right would be a directory of its own for each service",
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn capacity(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_blocks.saturating_mul(found.f_frsize))
    }
}

#[derive(Debug)]
struct SystemFile(File);

impl CacheFile for SystemFile {
    fn read(&self, buffer: &mut [u8], offset: u64, now: bool) -> io::Result<usize> {
        if now {
            let parts = &mut [IoSliceMut::new(buffer)];
            let read = rustix::io::preadv2(&self.0, parts, offset, ReadWriteFlags::NOWAIT)?;
            // Less than all: the rest is not in memory, or not in the file; a read that may block tells.
            return match read == buffer.len() {
                true => Ok(read),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn clear(&self) -> io::Result<()> {
        self.0.set_len(0)
    }

    fn is_named(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.nlink() > 0)
    }
}
