//! A disk that fails where a test wants it to.
//!
//! Keeps: the faults that are armed, the calls that it holds up, and how often each file was synced.
//! Order: the nth call of a kind from now on, as armed.
//! Crash: nothing; it is for tests.
//! Knows no SCOs.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, SystemDisk};

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Disk::write`].
    Write,
    /// [`Disk::read`].
    Read,
    /// [`Disk::sync`].
    Sync,
    /// [`Disk::allocate`].
    Allocate,
    /// [`Disk::keep`].
    Keep,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No space left.
    NoSpace,
    /// An error of the device.
    Io,
    /// Only this many bytes are written or read.
    Short(usize),
    /// A read that is to be served from memory finds nothing there.
    NotInMemory,
    /// The call does not come back before [`FaultyDisk::heal`].
    Held,
    /// The thread panics.
    Panic,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    call: Call,
    passes: u32,
    times: u32,
    fault: Fault,
}

/// The machine's disk, but for the faults that are armed.
#[derive(Debug, Default)]
pub struct FaultyDisk {
    armed: Mutex<Vec<Armed>>,
    /// How often the disk was healed: what is held waits for the next time.
    heals: Mutex<u64>,
    healed: Condvar,
    /// Calls that went wrong.
    failed: AtomicU64,
    /// Good syncs, by inode.
    syncs: Mutex<HashMap<u64, u64>>,
}

impl FaultyDisk {
    /// Lets the calls of this kind after the next `passes` fail, `times` times.
    pub fn arm(&self, call: Call, passes: u32, times: u32, fault: Fault) {
        self.armed().push(Armed {
            call,
            passes,
            times,
            fault,
        });
    }

    /// No more faults; calls that are held go on.
    pub fn heal(&self) {
        self.armed().clear();
        *lock(&self.heals) += 1;
        self.healed.notify_all();
    }

    /// How many calls went wrong so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How often the file was synced.
    #[must_use]
    pub fn syncs(&self, file: &Metadata) -> u64 {
        lock(&self.syncs).get(&file.ino()).copied().unwrap_or(0)
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        lock(&self.armed)
    }

    /// What goes wrong with this call, once it may go on.
    #[expect(clippy::panic, reason = "a test asks for it")]
    fn fault(&self, call: Call) -> Option<Fault> {
        let heals = *lock(&self.heals);
        let fault = self.next_fault(call)?;
        self.failed.fetch_add(1, Ordering::Relaxed);
        match fault {
            Fault::Held => {
                let healed = self.healed.wait_while(lock(&self.heals), |now| *now == heals);
                drop(healed.unwrap_or_else(PoisonError::into_inner));
                None
            }
            Fault::Panic => panic!("a fault that a test armed"),
            fault => Some(fault),
        }
    }

    fn next_fault(&self, call: Call) -> Option<Fault> {
        let mut armed = self.armed();
        let mut hit = None;
        for armed in armed.iter_mut().filter(|armed| armed.call == call) {
            if armed.passes > 0 {
                armed.passes -= 1;
            } else if armed.times > 0 && hit.is_none() {
                armed.times -= 1;
                hit = Some(armed.fault);
            }
        }
        hit
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => rustix::io::Errno::NOSPC.into(),
        Fault::NotInMemory => io::ErrorKind::WouldBlock.into(),
        Fault::Io | Fault::Short(_) | Fault::Held | Fault::Panic => rustix::io::Errno::IO.into(),
    }
}

impl Disk for FaultyDisk {
    fn write(&self, file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match self.fault(Call::Write) {
            None => SystemDisk.write(file, parts, offset),
            Some(Fault::Short(bytes)) => {
                let first = parts
                    .iter()
                    .find(|part| !part.is_empty())
                    .map_or(&[][..], |part| part);
                let part = &first[..bytes.min(first.len())];
                SystemDisk.write(file, &[IoSlice::new(part)], offset)
            }
            Some(fault) => Err(error(fault)),
        }
    }

    fn read(&self, file: &File, buffer: &mut [MaybeUninit<u8>], offset: u64, now: bool) -> io::Result<usize> {
        match self.fault(Call::Read) {
            None => SystemDisk.read(file, buffer, offset, now),
            Some(Fault::Short(bytes)) => {
                let length = bytes.min(buffer.len());
                SystemDisk.read(file, &mut buffer[..length], offset, now)
            }
            Some(Fault::NotInMemory) if !now => SystemDisk.read(file, buffer, offset, now),
            Some(fault) => Err(error(fault)),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        match self.fault(Call::Sync) {
            None => {
                SystemDisk.sync(file)?;
                *lock(&self.syncs).entry(file.metadata()?.ino()).or_default() += 1;
                Ok(())
            }
            Some(fault) => Err(error(fault)),
        }
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        match self.fault(Call::Allocate) {
            None => SystemDisk.allocate(file, length),
            Some(fault) => Err(error(fault)),
        }
    }

    fn keep(&self, file: &File, dir: &Path) -> io::Result<()> {
        match self.fault(Call::Keep) {
            None => SystemDisk.keep(file, dir),
            Some(fault) => Err(error(fault)),
        }
    }

    fn boot(&self) -> io::Result<String> {
        SystemDisk.boot()
    }
}
