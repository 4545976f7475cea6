//! A SCO's file: appends, reads and syncs at the places that the SCO's layout gives.
//!
//! Keeps: the open file, whose it is, and whether it may be given to another SCO.
//! Order: a batch's clusters are written before its TLog entries.
//! Crash: batches are whole or do not validate; what was synced is there.
//! Knows no volumes.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use sconce_schemas::sco::{HEADER_LEN, ScoHeader};
use sconce_schemas::{CLUSTER_BYTES, ScoSize, Slot};

use super::disk::{Disk, PARTS_MAX};
use super::pool::Shared;

/// A file of the write buffer, whatever SCO it holds.
#[derive(Debug)]
pub(super) struct BufferFile {
    /// Its fixed name.
    pub(super) number: u64,
    pub(super) file: File,
    /// Bytes; also its size class.
    pub(super) length: u64,
    /// Its header and TLog areas are zeros, so that the end of what the next SCO appends shows as an end and not as
    /// something damaged.
    blank: AtomicBool,
    /// A sync failed: the system may have dropped what was written and still show it. The next sync writes all
    /// of it again first. Held while a sync runs: the system tells an error of a file once, so of two syncs at the
    /// same time one would hear that all is well.
    suspect: Mutex<bool>,
}

impl BufferFile {
    /// `blank`: all of it is zeros.
    pub(super) fn new(number: u64, file: File, length: u64, blank: bool) -> Self {
        Self {
            number,
            file,
            length,
            blank: AtomicBool::new(blank),
            suspect: Mutex::new(false),
        }
    }

    /// Writes at the start of the file.
    pub(super) fn write(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        write_all(disk, &self.file, &mut [IoSlice::new(bytes)], 0).map(drop)
    }

    /// Zeros over the first `areas` bytes: the file holds no SCO.
    pub(super) fn erase(&self, disk: &dyn Disk, areas: usize) -> io::Result<()> {
        self.write(disk, &vec![0; areas])?;
        self.blank.store(true, Ordering::Release);
        Ok(())
    }

    fn suspect(&self) -> MutexGuard<'_, bool> {
        // A sync that panicked has not ended well, and the flag says so.
        self.suspect.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a SCO file is to its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tenure {
    /// Its SCO may be nowhere else.
    Held = 0,
    /// Its SCO is on the back ends and covered: a cache.
    Cached = 1,
    /// A cache that its volume was asked to give up.
    Evicting = 2,
    /// Given back: free once the last reader lets go of it.
    Retired = 3,
    /// Given back after it was asked for.
    RetiredEvicted = 4,
}

/// A file of the write buffer while it holds one SCO. It is free for another once it was given back
/// ([`super::Device::retire`]) and nobody reads it any more; if it was not given back, as when the process ends, the
/// file stays what it is.
#[derive(Debug)]
pub struct ScoFile {
    pub(super) file: Arc<BufferFile>,
    size: ScoSize,
    tenure: AtomicU8,
    disk: Arc<dyn Disk>,
    device: Weak<Shared>,
}

impl ScoFile {
    pub(super) fn new(
        file: Arc<BufferFile>,
        size: ScoSize,
        disk: &Arc<dyn Disk>,
        device: Weak<Shared>,
    ) -> Self {
        Self {
            file,
            size,
            tenure: AtomicU8::new(Tenure::Held as u8),
            disk: Arc::clone(disk),
            device,
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.file.length
    }

    pub(super) fn tenure(&self) -> Tenure {
        match self.tenure.load(Ordering::Acquire) {
            0 => Tenure::Held,
            1 => Tenure::Cached,
            2 => Tenure::Evicting,
            3 => Tenure::Retired,
            _ => Tenure::RetiredEvicted,
        }
    }

    /// Whether its SCO is on the back ends and covered by a manifest, so that the file may go.
    #[must_use]
    pub fn is_cache(&self) -> bool {
        matches!(self.tenure(), Tenure::Cached | Tenure::Evicting)
    }

    /// Callers hold the device's lock, so that two changes do not meet.
    pub(super) fn set_tenure(&self, tenure: Tenure) {
        self.tenure.store(tenure as u8, Ordering::Release);
    }

    /// Makes the file the SCO's, without any batch.
    pub(super) fn begin(&self, header: &ScoHeader) -> io::Result<()> {
        self.begin_copy()?;
        self.write_at(&header.to_bytes(), 0)
    }

    /// Makes the file ready to be written in parts; it holds no SCO until its header area is written.
    pub(super) fn begin_copy(&self) -> io::Result<()> {
        if !self.file.blank.load(Ordering::Acquire) {
            self.erase()?;
        }
        self.file.blank.store(false, Ordering::Release);
        // What an earlier SCO could not sync is nobody's now, and writing it again would race with appends.
        *self.file.suspect() = false;
        Ok(())
    }

    /// Zeros where header and TLog were: the file holds no SCO.
    fn erase(&self) -> io::Result<()> {
        self.file.erase(&*self.disk, self.areas())
    }

    /// Bytes of its header and TLog areas.
    fn areas(&self) -> usize {
        usize::try_from(self.size.data_offset()).unwrap_or(usize::MAX)
    }

    /// Appends a batch: one write for its clusters from `first_slot` on, one for its entries at `tlog_offset` of the
    /// TLog area. Buffered: [`Self::sync`] makes it survive a loss of power.
    ///
    /// # Errors
    /// The device's; `InvalidInput` where the batch lies outside the SCO's areas.
    pub fn append(&self, first_slot: Slot, data: &[Bytes], tlog_offset: u64, tlog: &[u8]) -> io::Result<()> {
        let length: u64 = data.iter().map(|part| part.len() as u64).sum();
        let data_at = self.size.slot_offset(first_slot);
        let tlog_end = tlog_offset.saturating_add(tlog.len() as u64);
        if data_at + length > self.size.file_len() || tlog_end > self.size.tlog_area() {
            let text = format!(
                "a batch does not fit into its SCO: {length} bytes of data from slot {} of {}, TLog up to {tlog_end} of {}",
                first_slot.0,
                self.size.slots(),
                self.size.tlog_area(),
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.write_parts(data, data_at)?;
        self.write_at(tlog, ScoSize::HEADER_AREA + tlog_offset)
    }

    /// Writes a part of a SCO as it is stored. Buffered, as [`Self::append`].
    ///
    /// # Errors
    /// The device's; `InvalidInput` where the part lies outside the file.
    pub fn write_part(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size.file_len() {
            let text = format!(
                "a part up to {end} does not fit into a SCO of {} bytes",
                self.size.file_len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.write_at(bytes, offset)
    }

    fn write_parts(&self, parts: &[Bytes], mut offset: u64) -> io::Result<()> {
        if let [part] = parts {
            return self.write_at(part, offset);
        }
        for group in parts.chunks(PARTS_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
            offset = self.write_all(&mut slices, offset)?;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all(&mut [IoSlice::new(bytes)], offset).map(drop)
    }

    fn write_all(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<u64> {
        write_all(&*self.disk, &self.file.file, slices, offset)
    }

    /// Reads `clusters` clusters from `first_slot` on to the end of `out`, as far as they are in memory. `false`: they
    /// are not, and `out` is as it was; [`Self::read`] gets them.
    ///
    /// # Errors
    /// The device's.
    pub fn read_now(&self, first_slot: Slot, clusters: usize, out: &mut BytesMut) -> io::Result<bool> {
        self.read_clusters(first_slot, clusters, out, true)
    }

    /// The same from the device. Blocks.
    ///
    /// # Errors
    /// The device's; `UnexpectedEof` where the file ends before.
    pub fn read(&self, first_slot: Slot, clusters: usize, out: &mut BytesMut) -> io::Result<()> {
        self.read_clusters(first_slot, clusters, out, false).map(drop)
    }

    fn read_clusters(
        &self,
        first_slot: Slot,
        clusters: usize,
        out: &mut BytesMut,
        now: bool,
    ) -> io::Result<bool> {
        let length = clusters * sconce_schemas::CLUSTER_LEN;
        let offset = self.size.slot_offset(first_slot);
        if offset + length as u64 > self.length() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_bytes(offset, length, out, now)
    }

    fn read_bytes(&self, offset: u64, length: usize, out: &mut BytesMut, now: bool) -> io::Result<bool> {
        let start = out.len();
        out.reserve(length);
        let mut done = 0;
        while done < length {
            let spare = out.spare_capacity_mut();
            let target: &mut [MaybeUninit<u8>] = &mut spare[done..length];
            match self.disk.read(&self.file.file, target, offset + done as u64, now) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read.min(length - done),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if now && is_not_in_memory(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        // SAFETY: `Disk::read` wrote the first `length` bytes of the spare capacity, part after part.
        unsafe { out.set_len(start + length) };
        Ok(true)
    }

    /// The SCO's first `length` bytes. Blocks.
    ///
    /// # Errors
    /// The device's; `UnexpectedEof` where the file ends before.
    pub fn image(&self, length: u64) -> io::Result<Bytes> {
        self.read_from_start(length).map(BytesMut::freeze)
    }

    /// The SCO's first `length` bytes as they are stored: with zeros where nothing of it is, behind the header and in
    /// the TLog area from `tlog_len` on, so that the same SCO gives the same object twice. Blocks.
    ///
    /// # Errors
    /// The device's; `UnexpectedEof` where the file ends before.
    pub fn object(&self, length: u64, tlog_len: u64) -> io::Result<Bytes> {
        let to_index = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let mut bytes = self.read_from_start(length)?;
        let header = to_index(ScoSize::HEADER_AREA)?;
        let used = to_index(ScoSize::HEADER_AREA.saturating_add(tlog_len))?;
        let data = to_index(self.size.data_offset())?;
        for unused in [HEADER_LEN..header, used..data] {
            if let Some(unused) = bytes.get_mut(unused) {
                unused.fill(0);
            }
        }
        Ok(bytes.freeze())
    }

    fn read_from_start(&self, length: u64) -> io::Result<BytesMut> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut out = BytesMut::with_capacity(length);
        self.read_bytes(0, length, &mut out, false)?;
        Ok(out)
    }

    /// The whole file. Blocks.
    ///
    /// # Errors
    /// The device's.
    pub fn whole(&self) -> io::Result<Bytes> {
        self.image(self.size.file_len())
    }

    /// Makes the TLog area zeros from `from` on, so that nothing behind a recovery's end ever validates. Blocks.
    ///
    /// # Errors
    /// The device's.
    pub fn seal(&self, from: u64) -> io::Result<()> {
        let rest = self.size.tlog_area().saturating_sub(from);
        let zeros = vec![0; usize::try_from(rest).map_err(io::Error::other)?];
        self.write_at(&zeros, ScoSize::HEADER_AREA + from)
    }

    /// Waits until all that was written survives a loss of power. Blocks.
    ///
    /// # Errors
    /// The device's. What was written since the last good sync may be lost then; the next sync writes it again.
    pub fn sync(&self) -> io::Result<()> {
        let mut suspect = self.file.suspect();
        // Until it has ended well.
        if std::mem::replace(&mut *suspect, true) {
            let all = self.whole()?;
            self.write_at(&all, 0)?;
        }
        self.disk.sync(&self.file.file)?;
        *suspect = false;
        Ok(())
    }
}

/// Goes on after short writes until all is written; gives the offset behind the last byte.
fn write_all(
    disk: &dyn Disk,
    file: &File,
    mut slices: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<u64> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match disk.write(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut slices, written);
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(offset)
}

fn is_not_in_memory(error: &io::Error) -> bool {
    // File systems without RWF_NOWAIT say `Unsupported`: the blocking read serves them.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported
    )
}

impl Drop for ScoFile {
    fn drop(&mut self) {
        let evicted = match self.tenure() {
            Tenure::Retired => false,
            Tenure::RetiredEvicted => true,
            Tenure::Held | Tenure::Cached | Tenure::Evicting => return,
        };
        // Often on the volume's thread, which does not wait for the file system: the device's own erases it.
        match self.device.upgrade() {
            Some(device) => device.give_back(&self.file, self.areas(), evicted),
            None => drop(self.erase()),
        }
    }
}

/// A cluster whose content is not what its CRC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCluster {
    /// Which of the clusters that were checked.
    pub at: usize,
    /// CRC32C of what is there.
    pub found: u32,
    /// CRC32C that it should have.
    pub expected: u32,
}

/// Checks clusters, one after the other in `bytes`, against their CRC32Cs.
///
/// # Errors
/// The first that does not hold; clusters that are missing count as bad.
pub fn check_clusters(bytes: &[u8], crcs: &[u32]) -> Result<(), BadCluster> {
    const CLUSTER: usize = sconce_schemas::CLUSTER_LEN;
    for (at, expected) in crcs.iter().copied().enumerate() {
        let found = bytes
            .get(at * CLUSTER..(at + 1) * CLUSTER)
            .map_or(!expected, crc32c::crc32c);
        if found != expected {
            return Err(BadCluster { at, found, expected });
        }
    }
    Ok(())
}

const _: () = assert!(sconce_schemas::CLUSTER_LEN as u64 == CLUSTER_BYTES);
