//! Keeps: what programs have open through the mount, in a file in memory that the descriptor store keeps with the
//! mount; the numbers by which the kernel knows it.
//! Order: an open is written down before the kernel is told of it, a close before it is answered. A number is given out
//! once, whichever process gives it.
//! Crash: the next process finds what the kernel believes to be open. Requests come to it again: an open that is written
//! down is not one more, a close of what is not there any more is done.
//! Knows no volume and no kernel messages.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use sconce_schemas::{SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};

use super::volumes::{Snapshot, Source};

/// How handles are written down: changes with each change of [`Head`] and [`Opened`].
const VERSION: u32 = 1;
/// Bytes of a slot: with the longest name of a snapshot there is room to spare. The kernel copies a write within a page in
/// one piece, so that a process that is killed leaves a slot as it was or as it should be.
const SLOT: u64 = 1024;
const _: () = assert!(4096 % SLOT == 0);
/// Set in the number of a request that an earlier process was sent and did not answer.
const RESENT: u64 = 1 << 63;

/// What is open under a handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opened {
    handle: u64,
    /// The request that opened it.
    request: u64,
    pub(super) inode: u64,
    volume: VolumeId,
    /// The snapshot, if it is one.
    pub(super) snapshot: Option<OpenedSnapshot>,
}

/// What a process that did not see it opened has to know of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenedSnapshot {
    /// The file that it is one of.
    pub(super) of: u64,
    id: SnapshotId,
    name: String,
    created_us: u64,
    size: u64,
    allocated: u64,
}

/// The first slot.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    /// Where the tree is mounted.
    mount: PathBuf,
    /// How many processes had the mount before.
    generation: u32,
}

/// Of any build's.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why an earlier process's handles cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Another build wrote them.
    #[error("they were written as version {found}; this build reads version {VERSION}")]
    Version {
        /// What they were written as.
        found: u32,
    },
    /// They are of another mount.
    #[error("they are of the mount {}", found.display())]
    Mount {
        /// Which that is.
        found: PathBuf,
    },
    /// The file holds something else.
    #[error("slot {slot}: {source}")]
    Malformed {
        /// Where.
        slot: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The system does not let it be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// The handles of a mount.
#[derive(Debug)]
pub(super) struct Handles {
    file: File,
    generation: u32,
    /// Handles that this process gave out.
    given: u32,
    /// Slots in use, by handle.
    slots: HashMap<u64, u64>,
    free: Vec<u64>,
    /// Slots that the file has, the first one too.
    end: u64,
    /// Handles of earlier processes, by the request that opened them.
    before: HashMap<u64, u64>,
}

impl Opened {
    /// Its content.
    pub(super) fn source(&self) -> Source {
        Source {
            volume: self.volume,
            snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.id),
        }
    }
}

impl OpenedSnapshot {
    /// The snapshot of the file `of`.
    pub(super) fn new(of: u64, snapshot: &Snapshot) -> Self {
        Self {
            of,
            id: snapshot.id,
            name: snapshot.name.clone(),
            created_us: snapshot.created_us,
            size: snapshot.size,
            allocated: snapshot.allocated,
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            id: self.id,
            name: self.name.clone(),
            created_us: self.created_us,
            size: self.size,
            allocated: self.allocated,
        }
    }
}

/// Whether an earlier process was sent this request and did not answer it: what it asks for may be done.
pub(super) fn is_resent(request: u64) -> bool {
    request & RESENT != 0
}

impl Handles {
    /// None yet, of the tree that is mounted at `mount`.
    pub(super) fn new(mount: &Path) -> io::Result<Self> {
        let file = memfd_create("fuse-handles", MemfdFlags::CLOEXEC)?;
        Self::over(file.into(), mount)
    }

    /// As [`Handles::new`], in an empty file.
    pub(super) fn over(file: File, mount: &Path) -> io::Result<Self> {
        let handles = Self {
            file,
            generation: 0,
            given: 0,
            slots: HashMap::new(),
            free: Vec::new(),
            end: 1,
            before: HashMap::new(),
        };
        handles.head(mount)?;
        Ok(handles)
    }

    /// Those that an earlier process left, with what is open under them.
    ///
    /// # Errors
    /// They are of another build or another mount.
    pub(super) fn read(file: File, mount: &Path) -> Result<(Self, Vec<Opened>), Unusable> {
        let malformed = |slot| move |source| Unusable::Malformed { slot, source };
        let end = file.metadata()?.len().div_ceil(SLOT).max(1);
        let head = read(&file, 0)?;
        let Versioned { version } = serde_json::from_slice(&head).map_err(malformed(0))?;
        if version != VERSION {
            return Err(Unusable::Version { found: version });
        }
        let head: Head = serde_json::from_slice(&head).map_err(malformed(0))?;
        if head.mount != mount {
            return Err(Unusable::Mount { found: head.mount });
        }
        let (mut slots, mut free, mut before, mut all) =
            (HashMap::new(), Vec::new(), HashMap::new(), Vec::new());
        for slot in 1..end {
            let bytes = read(&file, slot)?;
            if bytes.is_empty() {
                free.push(slot);
                continue;
            }
            let opened: Opened = serde_json::from_slice(&bytes).map_err(malformed(slot))?;
            slots.insert(opened.handle, slot);
            before.insert(opened.request, opened.handle);
            all.push(opened);
        }
        let handles = Self {
            file,
            generation: head.generation.wrapping_add(1),
            given: 0,
            slots,
            free,
            end,
            before,
        };
        handles.head(mount)?;
        Ok((handles, all))
    }

    fn head(&self, mount: &Path) -> io::Result<()> {
        let head = Head {
            version: VERSION,
            mount: mount.to_owned(),
            generation: self.generation,
        };
        write(&self.file, 0, &serde_json::to_vec(&head)?)
    }

    /// The handle that an earlier process gave for this request without saying so.
    pub(super) fn of_resent(&self, request: u64) -> Option<u64> {
        let handle = self.before.get(&(request & !RESENT)).copied();
        handle.filter(|handle| is_resent(request) && self.slots.contains_key(handle))
    }

    /// A handle for a file that a request opened.
    pub(super) fn open(
        &mut self,
        request: u64,
        inode: u64,
        volume: VolumeId,
        snapshot: Option<OpenedSnapshot>,
    ) -> io::Result<u64> {
        let handle = self.number();
        let opened = Opened {
            handle,
            request: request & !RESENT,
            inode,
            volume,
            snapshot,
        };
        let slot = self.free.pop().unwrap_or(self.end);
        if let Err(error) = write(&self.file, slot, &serde_json::to_vec(&opened)?) {
            if slot < self.end {
                self.free.push(slot);
            }
            return Err(error);
        }
        self.end = self.end.max(slot + 1);
        self.slots.insert(handle, slot);
        Ok(handle)
    }

    /// A handle that need not be known to the next process: of a directory, which is read anew from where its reader is.
    pub(super) fn number(&mut self) -> u64 {
        self.given = self.given.wrapping_add(1);
        u64::from(self.generation) << 32 | u64::from(self.given)
    }

    /// Forgets a handle; whether it was there.
    pub(super) fn close(&mut self, handle: u64) -> bool {
        let Some(slot) = self.slots.remove(&handle) else {
            return false;
        };
        match write(&self.file, slot, &[]) {
            Ok(()) => self.free.push(slot),
            // The next process believes it to be open: a removed file's space comes back later.
            Err(error) => tracing::warn!(%error, "a close is not written down for the next process"),
        }
        true
    }
}

impl AsFd for Handles {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a slot holds; nothing: it is free.
fn read(file: &File, slot: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(SLOT).map_err(io::Error::other)?];
    let mut found = 0;
    // The last slot may be shorter.
    while let Some(rest) = bytes.get_mut(found..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, slot * SLOT + found as u64)? {
            0 => break,
            some => found += some,
        }
    }
    let length = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    bytes.drain(..2);
    bytes.truncate(length);
    Ok(bytes)
}

/// Writes a slot in one call.
fn write(file: &File, slot: u64, content: &[u8]) -> io::Result<()> {
    let too_long = || io::Error::other(format!("{} bytes are more than a slot holds", content.len()));
    let length = u16::try_from(content.len()).map_err(|_| too_long())?;
    if u64::from(length) + 2 > SLOT {
        return Err(too_long());
    }
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(content);
    file.write_all_at(&bytes, slot * SLOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNT: &str = "/run/s/mnt";

    /// The next process's view of a table.
    fn next(handles: &Handles) -> Result<(Handles, Vec<Opened>), Unusable> {
        Handles::read(handles.file.try_clone().unwrap(), Path::new(MOUNT))
    }

    fn inodes(opened: &[Opened]) -> Vec<u64> {
        opened.iter().map(|opened| opened.inode).collect()
    }

    #[test]
    fn the_next_process_knows_what_is_open_and_nothing_else() {
        let mut handles = Handles::new(Path::new(MOUNT)).unwrap();
        let volume = VolumeId([7; 16]);
        let snapshot = Snapshot {
            id: SnapshotId(u64::MAX),
            name: "\"".repeat(128),
            created_us: u64::MAX,
            size: u64::MAX,
            allocated: u64::MAX,
        };
        let of_snapshot = OpenedSnapshot::new(u64::MAX, &snapshot);
        let first = handles.open(1, 11, volume, None).unwrap();
        let second = handles
            .open(2, u64::MAX, volume, Some(of_snapshot.clone()))
            .unwrap();
        handles.open(3, 13, volume, None).unwrap();
        assert!(handles.close(first));
        let (mut handles, opened) = next(&handles).unwrap();
        assert_eq!(inodes(&opened), [u64::MAX, 13]);
        assert_eq!(opened[0].source().snapshot, Some(snapshot.id));
        assert_eq!(opened[0].snapshot.as_ref().unwrap().snapshot(), snapshot);
        // What was closed is closed, and a slot that is free is used again.
        assert!(!handles.close(first) && handles.close(second) && !handles.close(second));
        handles.open(4, 14, volume, None).unwrap();
        handles.open(5, 15, volume, None).unwrap();
        let (handles, opened) = next(&handles).unwrap();
        assert_eq!(inodes(&opened), [15, 14, 13]);
        assert_eq!(handles.end, 4);
    }

    #[test]
    fn no_process_gives_out_a_handle_that_another_gave() {
        let mut handles = Handles::new(Path::new(MOUNT)).unwrap();
        let mut given = std::collections::HashSet::new();
        for request in 0..30 {
            assert!(given.insert(handles.open(request, 1, VolumeId::default(), None).unwrap()));
            assert!(given.insert(handles.number()));
            if request % 10 == 9 {
                handles = next(&handles).unwrap().0;
            }
        }
    }

    #[test]
    fn an_open_that_comes_again_is_not_one_more() {
        let mut handles = Handles::new(Path::new(MOUNT)).unwrap();
        let handle = handles.open(6, 1, VolumeId::default(), None).unwrap();
        // Within a process nothing comes again.
        assert_eq!(handles.of_resent(6 | RESENT), None);
        let (mut handles, _) = next(&handles).unwrap();
        assert_eq!(handles.of_resent(6 | RESENT), Some(handle));
        assert_eq!(
            (handles.of_resent(6), handles.of_resent(7 | RESENT)),
            (None, None)
        );
        handles.close(handle);
        assert_eq!(handles.of_resent(6 | RESENT), None);
    }

    #[test]
    fn those_of_another_build_or_mount_are_refused() {
        let handles = Handles::new(Path::new("/another")).unwrap();
        assert!(matches!(next(&handles), Err(Unusable::Mount { .. })));
        write(&handles.file, 0, b"{\"version\":2,\"x\":1}").unwrap();
        assert!(matches!(next(&handles), Err(Unusable::Version { found: 2 })));
        write(&handles.file, 0, b"").unwrap();
        assert!(matches!(next(&handles), Err(Unusable::Malformed { slot: 0, .. })));
        let handles = Handles::new(Path::new(MOUNT)).unwrap();
        write(&handles.file, 1, b"{}").unwrap();
        assert!(matches!(next(&handles), Err(Unusable::Malformed { slot: 1, .. })));
    }
}
