//! The system calls on the write buffer's files: a component, so that a test can let them fail.
//!
//! Keeps: nothing.
//! Order: a call may do part of what it was given; callers go on with the rest.
//! Crash: what was written and not synced may be there or not, in any part.
//! Knows no SCOs.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Most parts of one [`Disk::write`]: the system's IOV_MAX.
pub(super) const PARTS_MAX: usize = 1024;

/// Calls on open files. A test's own is [`super::faults::FaultyDisk`].
pub trait Disk: Send + Sync + fmt::Debug {
    /// Writes the parts one after the other at `offset`; gives the bytes that were written, at least one of a
    /// non-empty input.
    ///
    /// # Errors
    /// What the system says.
    fn write(&self, file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Reads at `offset`; gives the bytes that were read, 0 at the end of the file. With `now` only what is in
    /// memory: `WouldBlock` where that is nothing.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, file: &File, buffer: &mut [MaybeUninit<u8>], offset: u64, now: bool) -> io::Result<usize>;

    /// Waits until what was written survives a loss of power.
    ///
    /// # Errors
    /// What the system says; what was written since the last sync may then be lost although it can be read.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes the file `length` bytes long with space that is its own.
    ///
    /// # Errors
    /// What the system says: above all that there is no space.
    fn allocate(&self, file: &File, length: u64) -> io::Result<()>;

    /// Waits until a new file, with its length and its name in `dir`, survives a loss of power: a sync of its data
    /// alone does not keep its name.
    ///
    /// # Errors
    /// What the system says.
    fn keep(&self, file: &File, dir: &Path) -> io::Result<()>;

    /// What names the time since the machine last lost what was written and not synced.
    ///
    /// # Errors
    /// What the system says.
    fn boot(&self) -> io::Result<String>;
}

/// Where Linux names its boot (random(4)); in containers too it is the machine's.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The machine's.
#[derive(Debug, Clone, Copy)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn write(&self, file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(file, parts, offset)?)
    }

    fn read(&self, file: &File, buffer: &mut [MaybeUninit<u8>], offset: u64, now: bool) -> io::Result<usize> {
        if !now {
            let (read, _) = rustix::io::pread(file, buffer, offset)?;
            return Ok(read.len());
        }
        let part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the one iovec describes `buffer`, which this function borrows for writing until the call
        // returns; the kernel writes no more than its length, and bytes of any value.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
            // A file system without preallocation: written zeros take the space just as well.
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, file, length),
            other => Ok(other?),
        }
    }

    fn keep(&self, file: &File, dir: &Path) -> io::Result<()> {
        file.sync_all()?;
        File::open(dir)?.sync_all()
    }

    fn boot(&self) -> io::Result<String> {
        let named = std::fs::read_to_string(BOOT_ID).map_err(|error| {
            let text = format!(
                "{BOOT_ID}, which tells whether the machine was booted anew, cannot be read: {error}"
            );
            io::Error::new(error.kind(), text)
        })?;
        Ok(named.trim_end().to_owned())
    }
}

fn write_zeros(disk: &dyn Disk, file: &File, length: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = 0;
    while at < length {
        let part = usize::try_from(length - at)
            .unwrap_or(usize::MAX)
            .min(ZEROS.len());
        at += disk.write(file, &[IoSlice::new(&ZEROS[..part])], at)? as u64;
    }
    Ok(())
}
