//! Keeps: how an inode's record and its volume's extent become the attributes that the kernel shows.
//! Order, crash: nothing.
//! Knows no registry and no owner.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use sconce_schemas::CLUSTER_BYTES;
use sconce_schemas::records::{InodeKind, InodeRecord};

use super::volumes::Extent;

/// Bytes that one of `st_blocks` stands for.
const BLOCK_BYTES: u64 = 512;

/// The attributes of an inode; `extent` is that of its volume, nothing for a directory.
pub(super) fn attributes(inode: u64, record: &InodeRecord, extent: Extent, linked: bool) -> FileAttr {
    let (kind, links) = match record.kind {
        InodeKind::Directory => (FileType::Directory, 2),
        InodeKind::File(_) => (FileType::RegularFile, u32::from(linked)),
    };
    let mtime = time(record.mtime_ns);
    FileAttr {
        ino: INodeNo(inode),
        size: extent.size,
        blocks: extent.allocated.unwrap_or(0).div_ceil(BLOCK_BYTES),
        atime: mtime,
        mtime,
        ctime: time(record.ctime_ns),
        crtime: UNIX_EPOCH,
        kind,
        perm: u16::try_from(record.mode & 0o7777).unwrap_or(0o600),
        nlink: links,
        uid: record.uid,
        gid: record.gid,
        rdev: 0,
        blksize: u32::try_from(CLUSTER_BYTES).unwrap_or(4096),
        flags: 0,
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let time = if ns < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// A time as records keep it, in nanoseconds since 1970.
pub(super) fn nanoseconds(time: TimeOrNow) -> i64 {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_are_kept() {
        for ns in [0, 1, -1, 1_795_000_000_123_456_789, -5_000_000_000] {
            assert_eq!(nanoseconds(TimeOrNow::SpecificTime(time(ns))), ns);
        }
        assert!(nanoseconds(TimeOrNow::Now) > 1_577_836_800_000_000_000);
    }
}
