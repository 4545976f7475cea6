//! A disk in memory that fails, tears and forgets as it is told.
#![allow(dead_code, reason = "each test uses its part")]
#![expect(clippy::unwrap_used, reason = "a test: what goes wrong fails it")]

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use sconce_cache::{Cache, CacheFile, CacheSettings, Components, Disk, Key};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Chance, Clock};

/// A disk with one file.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk {
    state: Arc<Mutex<DiskState>>,
}

#[derive(Debug)]
pub(crate) struct DiskState {
    /// The file that has the name. Its bytes outlive a process.
    file: Arc<Mutex<Vec<u8>>>,
    /// What was written since the start, for losses of power.
    log: Vec<(u64, Vec<u8>)>,
    /// As it was when the log began.
    durable: Vec<u8>,
    /// Writes until the process dies, which happens half way through one.
    pub(crate) writes_left: Option<usize>,
    pub(crate) is_full: bool,
    pub(crate) reads_fail: bool,
    /// Whether reads that must not block say that they would.
    pub(crate) nothing_in_memory: bool,
    pub(crate) writes: usize,
    /// Bytes of the file system.
    pub(crate) capacity: u64,
    /// Bytes of the file that cannot be read or written.
    pub(crate) bad: Range<u64>,
    /// Reads that block end when this does.
    pub(crate) hangs: bool,
}

impl Default for DiskState {
    fn default() -> Self {
        Self {
            file: Arc::default(),
            log: Vec::new(),
            durable: Vec::new(),
            writes_left: None,
            is_full: false,
            reads_fail: false,
            nothing_in_memory: false,
            writes: 0,
            capacity: 1 << 40,
            bad: 0..0,
            hangs: false,
        }
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl MemoryDisk {
    pub(crate) fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap()
    }

    /// What is in the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().file.lock().unwrap().clone()
    }

    /// The process is gone; what it wrote is there.
    pub(crate) fn restart(&self) {
        let mut state = self.state();
        state.writes_left = None;
        let bytes = state.file.lock().unwrap().clone();
        state.durable = bytes;
        // What the old process still does is done to a file of its own.
        state.file = Arc::new(Mutex::new(state.durable.clone()));
        state.log.clear();
    }

    /// The machine is gone; of what was written since the last start some sectors are there.
    pub(crate) fn lose_power(&self, random: &mut fastrand::Rng) {
        let mut state = self.state();
        let mut bytes = std::mem::take(&mut state.durable);
        for (offset, written) in std::mem::take(&mut state.log) {
            for (index, sector) in written.chunks(512).enumerate() {
                if random.bool() {
                    put(&mut bytes, offset + index as u64 * 512, sector);
                }
            }
        }
        state.file = Arc::new(Mutex::new(bytes));
        drop(state);
        self.restart();
    }

    /// Somebody changes bytes of the file.
    pub(crate) fn corrupt(&self, random: &mut fastrand::Rng) {
        let state = self.state();
        let mut bytes = state.file.lock().unwrap();
        if bytes.is_empty() {
            return;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..4) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => {
                let end = (at + random.usize(..20_000)).min(bytes.len());
                bytes[at..end].fill_with(|| random.u8(..));
            }
            2 => bytes.truncate(at),
            _ => {
                // What is somewhere else.
                let length = random.usize(..5000).min(bytes.len() - at);
                let from = random.usize(..=bytes.len() - length);
                bytes.copy_within(from..from + length, at);
            }
        }
    }

    /// Somebody deletes the file. The process that has it open goes on with it.
    pub(crate) fn delete(&self) {
        self.state().file = Arc::default();
    }
}

impl DiskState {
    fn is_bad(&self, offset: u64, length: usize) -> bool {
        offset < self.bad.end && self.bad.start < offset + length as u64
    }
}

impl Disk for MemoryDisk {
    fn open(&self, _: &Path) -> io::Result<Box<dyn CacheFile>> {
        let bytes = self.state().file.clone();
        Ok(Box::new(MemoryFile {
            disk: self.clone(),
            bytes,
        }))
    }

    fn capacity(&self, _: &Path) -> io::Result<u64> {
        Ok(self.state().capacity)
    }
}

impl MemoryFile {
    fn is_the_file(&self, state: &DiskState) -> bool {
        Arc::ptr_eq(&self.bytes, &state.file)
    }
}

impl CacheFile for MemoryFile {
    fn read(&self, buffer: &mut [u8], offset: u64, now: bool) -> io::Result<usize> {
        let state = self.disk.state();
        if state.reads_fail {
            return Err(io::Error::other("the disk does not read"));
        }
        if now && state.nothing_in_memory {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.is_bad(offset, buffer.len()) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        if !now && state.hangs {
            drop(state);
            while self.disk.state().hangs {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            return Err(io::Error::other("the disk does not read"));
        }
        let bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        let read = buffer.len().min(bytes.len() - start);
        buffer[..read].copy_from_slice(&bytes[start..start + read]);
        Ok(read)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.is_bad(offset, bytes.len()) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        let mut bytes = bytes;
        let mut is_last = false;
        if let Some(left) = &mut state.writes_left {
            match *left {
                0 => return Err(io::Error::other("the process is dead")),
                1 => {
                    bytes = &bytes[..bytes.len() / 2];
                    is_last = true;
                }
                _ => {}
            }
            *left -= 1;
        }
        state.writes += 1;
        if self.is_the_file(&state) {
            state.log.push((offset, bytes.to_vec()));
        }
        put(&mut self.bytes.lock().unwrap(), offset, bytes);
        match is_last {
            true => Err(io::Error::other("the process dies here")),
            false => Ok(()),
        }
    }

    fn clear(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if self.is_the_file(&state) {
            state.durable.clear();
            state.log.clear();
        }
        self.bytes.lock().unwrap().clear();
        Ok(())
    }

    fn is_named(&self) -> io::Result<bool> {
        Ok(self.is_the_file(&self.disk.state()))
    }
}

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    if file.len() < start + bytes.len() {
        file.resize(start + bytes.len(), 0);
    }
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn key(number: u32) -> Key {
    let mut key = [0; sconce_cache::KEY_LEN];
    key[..4].copy_from_slice(&number.to_le_bytes());
    Key(key)
}

/// What the key names: its own, and of its own length.
pub(crate) fn piece(number: u32, piece_len: u32) -> Bytes {
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    let length = match number % 4 {
        0 => random.u32(1..=piece_len),
        _ => piece_len,
    };
    (0..length).map(|_| random.u8(..)).collect()
}

/// A cache of `cells` cells; it gives what it is asked for once it has settled.
pub(crate) async fn open(disk: &MemoryDisk, cells: u32, piece_len: u32) -> Cache {
    let size = 2 * 4096 + u64::from(cells) * (u64::from(piece_len) + 64);
    let settings = CacheSettings {
        directory: "/nowhere".into(),
        size: ByteSize::new(size),
    };
    let components = Components {
        disk: Arc::new(disk.clone()),
        clock: Clock::system(),
    };
    let cache = Cache::open(&settings, piece_len, components, &mut Chance::seeded(1));
    cache.settled().await;
    cache
}

/// Longer than any wait after an error.
pub(crate) const LONG: Duration = Duration::from_secs(61);
