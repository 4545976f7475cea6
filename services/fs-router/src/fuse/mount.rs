//! Keeps: the mount point: free before the mount, free again after the stop.
//! Order: what an earlier process left mounted is detached before anything is mounted.
//! Crash: without a descriptor store the mount stays behind, dead (`Transport endpoint is not connected`); the next
//! start detaches it.
//! Knows no file.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

/// The source that the mount shows in `/proc/self/mountinfo`: what tells it from somebody else's. (Its type is `fuse`
/// where root mounted it and `fuse.sconce` where fusermount3 did.)
pub(super) const SOURCE: &str = "sconce";

/// Most mounts on top of each other that are taken for leftovers.
const LEFTOVERS_MAX: usize = 32;

/// Why the mount point cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It cannot be made or looked at.
    #[error("mount point {}: {source}", path.display())]
    Directory {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is mounted there.
    #[error(
        "mount point {}: a file system of type {kind} is mounted there; unmount it or choose another directory",
        path.display()
    )]
    Taken {
        /// The mount point.
        path: PathBuf,
        /// Type of the file system.
        kind: String,
    },
    /// An earlier mount does not go away.
    #[error("mount point {}: the mount of an earlier run cannot be removed: {detail}", path.display())]
    Stuck {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The kernel or fusermount3 refused the mount.
    #[error("mount point {}: cannot mount: {source}; is /dev/fuse there, and fuse3 installed?", path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the mount point where it is missing, and frees it of what an earlier process left. Answers its real path.
///
/// # Errors
/// It cannot be made, or something else is mounted there.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let wrong = |source| MountError::Directory {
        path: path.to_owned(),
        source,
    };
    let real = real(path).map_err(wrong)?;
    for _ in 0..LEFTOVERS_MAX {
        match mounted_at(&real).map_err(wrong)? {
            None => {
                std::fs::create_dir_all(&real).map_err(wrong)?;
                return Ok(real);
            }
            Some(found) if found.is_ours() => {
                detach(&real).map_err(|detail| MountError::Stuck {
                    path: real.clone(),
                    detail,
                })?;
            }
            Some(found) => {
                return Err(MountError::Taken {
                    path: real,
                    kind: found.kind,
                });
            }
        }
    }
    let detail = format!("{LEFTOVERS_MAX} were removed and there are more");
    Err(MountError::Stuck { path: real, detail })
}

/// The mount point's real path. Its parent is made where it is missing.
pub(super) fn real(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    // A dead mount cannot be looked at: its parent is resolved instead.
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            std::fs::create_dir_all(parent)?;
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Ok(absolute),
    }
}

/// Unmounts what nobody uses.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::empty())?)
}

/// Takes the mount out of the tree at once; programs that have files open keep them until they close them.
pub(super) fn detach(path: &Path) -> Result<(), String> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        // Only root may unmount by itself; others through the helper that is installed with fuse3.
        Err(rustix::io::Errno::PERM) => {
            let done = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(path)
                .output();
            match done {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
                Err(error) => Err(format!("fusermount3: {error}")),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A file system that is mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    kind: String,
    source: String,
}

impl Found {
    /// Whether an fs-router mounted it.
    pub(super) fn is_ours(&self) -> bool {
        self.kind.starts_with("fuse") && self.source == SOURCE
    }
}

/// The topmost file system that is mounted at `path`.
pub(super) fn mounted_at(path: &Path) -> io::Result<Option<Found>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(topmost(&table, path))
}

fn topmost(table: &str, path: &Path) -> Option<Found> {
    let wanted = path.to_str()?;
    let found = |line: &str| {
        let (mount, what) = line.split_once(" - ")?;
        let (point, mut what) = (mount.split(' ').nth(4)?, what.split(' '));
        let found = Found {
            kind: what.next()?.to_owned(),
            source: what.next()?.to_owned(),
        };
        (unescaped(point) == wanted).then_some(found)
    };
    table.lines().filter_map(found).next_back()
}

/// A path of mountinfo, where space, tab, newline and backslash are three octal digits.
fn unescaped(point: &str) -> String {
    let mut bytes = Vec::with_capacity(point.len());
    let mut rest = point.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:40 / /work/run\\040a/mnt rw,nosuid,nodev - fuse.sconce sconce rw,user_id=0
91 22 0:41 / /work/run\\040a/mnt rw,nosuid,nodev - fuse.other other rw,user_id=0
93 22 0:43 / /work/mnt rw,nosuid - fuse sconce rw,user_id=0,group_id=0
92 22 0:42 / /work/run\\040a/mnt/below rw - tmpfs tmpfs rw
";

    #[test]
    fn the_topmost_mount_is_found_by_its_whole_path() {
        let at = |path: &str| topmost(TABLE, Path::new(path)).map(|found| (found.is_ours(), found.kind));
        assert_eq!(at("/work/run a/mnt"), Some((false, "fuse.other".to_owned())));
        assert_eq!(at("/work/mnt"), Some((true, "fuse".to_owned())));
        assert_eq!(at("/work/run a/mnt/below"), Some((false, "tmpfs".to_owned())));
        assert_eq!(at("/"), Some((false, "ext4".to_owned())));
        assert_eq!(at("/work/run a"), None);
        assert_eq!(unescaped("a\\134b\\x"), "a\\b\\x");
    }

    #[test]
    fn a_mount_point_that_is_missing_is_made_and_another_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("run/mnt");
        let real = prepare(&point).unwrap();
        assert!(real.is_dir());
        let error = prepare(Path::new("/proc")).unwrap_err();
        assert!(
            matches!(&error, MountError::Taken { kind, .. } if kind == "proc"),
            "{error}"
        );
    }
}
