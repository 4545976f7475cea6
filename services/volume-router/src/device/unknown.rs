//! Files of the buffer of which nobody can tell from the header what they hold: damaged, unreadable, of a wrong length.
//!
//! Keeps: the files, out of everybody's reach: any of them may hold the only copy of something.
//! Order: a SCO that a recovery misses is looked for here by its batches, before it counts as missing.
//! Crash: the next start finds them again.
//! Knows no content but the first batch: its CRC is salted with volume, SCO and epoch, so it tells whose it is.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, PoisonError};

use sconce_schemas::sco::{Batch, ScoHeader};
use sconce_schemas::{BatchSeq, Epoch, ScoId, ScoSize, VolumeId};

use super::file::BufferFile;
use super::keeper::name;
use super::pool::Shared;

/// One such file.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) file: BufferFile,
    /// What its header says, where it can be read and the length is wrong.
    pub(super) header: Option<ScoHeader>,
}

/// A SCO that a recovery looks for.
#[derive(Debug, Clone, Copy)]
pub struct Sought {
    /// Its volume.
    pub volume: VolumeId,
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The volume's size of SCOs.
    pub size: ScoSize,
}

impl Sought {
    fn header(&self, first_batch: BatchSeq) -> ScoHeader {
        ScoHeader {
            volume: self.volume,
            id: self.sco,
            epoch: self.epoch,
            size: self.size,
            first_batch,
            // What the lost header proved is not known; nothing is claimed.
            synced_below: ScoId::NONE,
        }
    }
}

/// Looks for a SCO among the files that nobody knows. `true`: it was there, has its header again, and can be claimed.
/// Blocks.
///
/// # Errors
/// Files that may be it cannot be read: the text names them all.
pub(super) fn identify(shared: &Arc<Shared>, sought: &Sought) -> Result<bool, String> {
    let mut unknown = shared.unknown.lock().unwrap_or_else(PoisonError::into_inner);
    let mut unreadable = Vec::new();
    for at in 0..unknown.len() {
        match is_it(shared, &unknown[at], sought) {
            Ok(Some(header)) => {
                let Unknown { file, .. } = unknown.swap_remove(at);
                tracing::warn!(
                    file = %name(file.number),
                    volume = %sought.volume,
                    sco = %sought.sco,
                    "a file of the write buffer whose header was damaged is known by its batches: it has a header again"
                );
                shared.known(file, header);
                return Ok(true);
            }
            Ok(None) => {}
            Err(text) => unreadable.push(text),
        }
    }
    match unreadable.is_empty() {
        true => Ok(false),
        false => Err(unreadable.join("; ")),
    }
}

fn is_it(shared: &Shared, unknown: &Unknown, sought: &Sought) -> Result<Option<ScoHeader>, String> {
    let file = &unknown.file;
    let told = |what: &str| format!("file {} of the write buffer {what}", name(file.number));
    if let Some(header) = &unknown.header {
        let same = (header.volume, header.id, header.epoch) == (sought.volume, sought.sco, sought.epoch);
        return match same {
            true => Err(told(&format!(
                "should be {} bytes long and is {}",
                header.size.file_len(),
                file.length
            ))),
            false => Ok(None),
        };
    }
    if file.length != sought.size.file_len() {
        return Ok(None);
    }
    let tlog =
        read_tlog(shared, file, sought.size).map_err(|error| told(&format!("cannot be read: {error}")))?;
    let Ok(batch) = Batch::from_bytes(&tlog, sought.header(BatchSeq::NONE).salt()) else {
        return Ok(None);
    };
    let header = sought.header(batch.seq);
    file.write(&*shared.disk, &header.to_bytes())
        .map_err(|error| told(&format!("cannot be given its header again: {error}")))?;
    Ok(Some(header))
}

fn read_tlog(shared: &Shared, file: &BufferFile, size: ScoSize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(size.tlog_area()).map_err(io::Error::other)?;
    let mut tlog = Vec::with_capacity(length);
    while tlog.len() < length {
        let at = ScoSize::HEADER_AREA + tlog.len() as u64;
        let mut part = [MaybeUninit::uninit(); 16 << 10];
        let wanted = part.len().min(length - tlog.len());
        let read = shared.disk.read(&file.file, &mut part[..wanted], at, false)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: `Disk::read` wrote the first `read` bytes.
        tlog.extend(part[..read].iter().map(|byte| unsafe { byte.assume_init() }));
    }
    Ok(tlog)
}
