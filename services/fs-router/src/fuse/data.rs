//! Keeps: requests on the content of files: reads, writes, sizes, holes.
//! Order: as the volume's owner says; a read never goes beyond the end that the owner last told.
//! Crash: what was answered is kept as DESIGN.md §6 promises; `fsync` is a flush.
//! Knows no kernel messages.

use bytes::Bytes;
use fuser::Errno;
use sconce_schemas::VolumeSize;
use sconce_schemas::records::InodeKind;
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::volume::{ExtentKind, IoFlags};

use super::errno::{of_names, of_refusal};
use super::front::{Answer, Front};
use super::table::OpenFile;
use super::virtual_inodes::is_virtual;
use super::volumes::Volumes;
use crate::routing::{Operation, Outcome, ReadData};

/// How often a read is cut anew because the file became smaller while it was read.
const READ_ATTEMPTS_MAX: usize = 8;

/// What `fallocate` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allocate {
    /// Reserve space. There is nothing to reserve in a thin, log-structured volume: at most the size changes.
    Reserve {
        /// Whether the size stays.
        keep_size: bool,
    },
    /// Make a hole.
    Punch,
    /// Make zeros that count as allocated.
    Zero {
        /// Whether the size stays.
        keep_size: bool,
    },
}

impl Allocate {
    /// What the mode of a `fallocate` call means; `None`: nothing that is done here.
    pub(super) fn from_mode(mode: i32) -> Option<Self> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Some(Allocate::Reserve { keep_size }),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Allocate::Punch),
            libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::Zero { keep_size }),
            _ => None,
        }
    }
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seek {
    /// The next data.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// The end of a range, if a volume can reach so far.
fn end_of(offset: u64, length: u64) -> Answer<u64> {
    match offset.checked_add(length) {
        Some(end) if end <= VolumeSize::MAX.bytes() => Ok(end),
        _ => Err(Errno::EFBIG),
    }
}

impl<V: Volumes> Front<V> {
    /// Reads what of a range lies before the end of the file.
    pub(super) async fn read(&self, inode: u64, offset: u64, length: u64) -> Answer<ReadData> {
        let file = self.file(inode)?;
        let mut size = file.size;
        let end = offset.saturating_add(length);
        for _ in 0..READ_ATTEMPTS_MAX {
            // Another client may have made the file larger: the end is asked for where it matters.
            if end > size {
                size = self.size_now(inode, file.source).await?;
            }
            if offset >= size {
                return Ok(ReadData::default());
            }
            let operation = Operation::read(offset, end.min(size) - offset);
            match self.volumes.run(file.source, operation).await {
                Outcome::Read(data) => return Ok(data),
                // Another client made it smaller meanwhile.
                Outcome::Refused(refusal) if refusal.code == RefusalCode::OutOfRange => size = 0,
                other => return Err(unexpected(other)),
            }
        }
        Err(Errno::EIO)
    }

    /// Writes; the file grows where the write goes beyond its end.
    pub(super) async fn write(&self, inode: u64, offset: u64, data: Bytes, durable: bool) -> Answer<()> {
        let file = self.writable(inode)?;
        let end = end_of(offset, data.len() as u64)?;
        let flags = if durable {
            IoFlags::EXTEND | IoFlags::FUA
        } else {
            IoFlags::EXTEND
        };
        self.done(&file, Operation::write(offset, data, flags)).await?;
        self.files.borrow_mut().wrote(inode, end, self.now_ns());
        Ok(())
    }

    /// All that was written survives a power loss of the owner's machine.
    pub(super) async fn sync(&self, inode: u64) -> Answer<()> {
        let file = self.file(inode)?;
        self.done(&file, Operation::flush()).await
    }

    /// Sets the size of a file, open or not.
    pub(super) async fn resize(&self, inode: u64, size: u64) -> Answer<()> {
        let to = VolumeSize::new(size).map_err(|_| Errno::EFBIG)?;
        if is_virtual(inode) {
            return Err(Errno::EROFS);
        }
        let record = self
            .names
            .attributes(inode)
            .await
            .map_err(|error| of_names(&error))?;
        let InodeKind::File(volume) = record.kind else {
            return Err(Errno::EISDIR);
        };
        self.open_volume(inode, volume).await?;
        let done = self.resize_open(inode, to).await;
        self.close(inode).await;
        done
    }

    async fn resize_open(&self, inode: u64, size: VolumeSize) -> Answer<()> {
        let file = self.writable(inode)?;
        self.done(&file, Operation::resize(size)).await?;
        self.files
            .borrow_mut()
            .resized(inode, size.bytes(), self.now_ns());
        Ok(())
    }

    /// Punches holes, writes zeros, or makes a file larger.
    pub(super) async fn allocate(&self, inode: u64, offset: u64, length: u64, what: Allocate) -> Answer<()> {
        let file = self.writable(inode)?;
        let end = end_of(offset, length)?;
        let mut size = self.size_for(inode, &file, end).await?;
        let grows = match what {
            Allocate::Punch => false,
            Allocate::Reserve { keep_size } | Allocate::Zero { keep_size } => !keep_size && end > size,
        };
        if grows {
            self.resize_open(inode, VolumeSize::new(end).map_err(|_| Errno::EFBIG)?)
                .await?;
            size = end;
        }
        let inside = end.min(size).saturating_sub(offset);
        let operation = match what {
            Allocate::Reserve { .. } => return Ok(()),
            _ if inside == 0 => return Ok(()),
            // Not a discard, which may leave the parts of clusters at both ends as they are.
            Allocate::Punch => Operation::write_zeroes(offset, inside, 0),
            Allocate::Zero { .. } => Operation::write_zeroes(offset, inside, IoFlags::NO_HOLE),
        };
        self.done(&file, operation).await?;
        self.files
            .borrow_mut()
            .wrote(inode, offset + inside, self.now_ns());
        Ok(())
    }

    /// Where the next data or hole begins, from `offset` on.
    pub(super) async fn seek(&self, inode: u64, offset: u64, what: Seek) -> Answer<u64> {
        let file = self.file(inode)?;
        let size = self.size_for(inode, &file, offset.saturating_add(1)).await?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        while at < size {
            let operation = Operation::extents(at, size - at);
            let Outcome::Extents(extents) = self.run(&file, operation).await? else {
                return Err(Errno::EIO);
            };
            let before = at;
            for extent in extents {
                let data = extent.kind == ExtentKind::Data;
                if extent.length > 0 && data == (what == Seek::Data) {
                    return Ok(at);
                }
                at = at.saturating_add(extent.length);
            }
            if at == before {
                return Err(Errno::EIO);
            }
        }
        match what {
            Seek::Data => Err(Errno::ENXIO),
            Seek::Hole => Ok(size),
        }
    }

    /// The file's size, asked for only where `end` lies beyond what is known: another client may have made it larger.
    async fn size_for(&self, inode: u64, file: &OpenFile, end: u64) -> Answer<u64> {
        if end <= file.size {
            return Ok(file.size);
        }
        self.size_now(inode, file.source).await
    }

    fn writable(&self, inode: u64) -> Answer<OpenFile> {
        let file = self.file(inode)?;
        if file.read_only {
            Err(Errno::EROFS)
        } else {
            Ok(file)
        }
    }

    async fn run(&self, file: &OpenFile, operation: Operation) -> Answer<Outcome> {
        match self.volumes.run(file.source, operation).await {
            Outcome::Refused(refusal) => Err(of_refusal(&refusal)),
            outcome => Ok(outcome),
        }
    }

    async fn done(&self, file: &OpenFile, operation: Operation) -> Answer<()> {
        match self.run(file, operation).await? {
            Outcome::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

/// The errno for an outcome that is not the one of the operation.
fn unexpected(outcome: Outcome) -> Errno {
    match outcome {
        Outcome::Refused(refusal) => of_refusal(&refusal),
        other => {
            tracing::error!(?other, "an operation ended as another does");
            Errno::EIO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate_are_known_or_refused() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let mode = Allocate::from_mode;
        assert_eq!(mode(0), Some(Allocate::Reserve { keep_size: false }));
        assert_eq!(mode(libc::FALLOC_FL_PUNCH_HOLE | keep), Some(Allocate::Punch));
        assert_eq!(mode(libc::FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(
            mode(libc::FALLOC_FL_ZERO_RANGE),
            Some(Allocate::Zero { keep_size: false })
        );
        assert_eq!(
            mode(libc::FALLOC_FL_ZERO_RANGE | keep),
            Some(Allocate::Zero { keep_size: true })
        );
        assert_eq!(mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(mode(libc::FALLOC_FL_INSERT_RANGE), None);
    }

    #[test]
    fn ranges_end_within_the_largest_volume() {
        assert_eq!(end_of(10, 5), Ok(15));
        assert!(end_of(u64::MAX, 1).is_err());
        assert!(end_of(VolumeSize::MAX.bytes(), 1).is_err());
    }
}
