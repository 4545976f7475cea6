//! The directory of sockets, and a socket's name in it.
//!
//! Keeps: that only this user enters the directory; that one process at a time listens under a name.
//! Order: lock, bind under a private name, then take the name by renaming: whoever connects meanwhile finds the old
//! socket or the new one, never none.
//! Crash: the lock goes with the process; the stale socket that is left is replaced by the next bind.
//! Knows no messages.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::endpoint::Endpoint;
use crate::network::BindError;

/// A socket's name, ours until it is dropped.
pub(crate) struct SocketName {
    path: PathBuf,
    inode: (u64, u64),
    _lock: File,
}

/// Makes the directory (0700) where it is missing, and refuses one that others may enter.
pub(crate) fn private_directory(path: &Path) -> Result<(), BindError> {
    let wrong = |found: String, expected: &'static str| BindError::Directory {
        path: path.to_owned(),
        found,
        expected,
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| wrong(format!("cannot be made: {e}"), "exist"))?;
    let metadata =
        std::fs::metadata(path).map_err(|e| wrong(format!("cannot be read: {e}"), "be readable"))?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(wrong(
            format!("belongs to user id {}, not {user}", metadata.uid()),
            "belong to the user that runs this service",
        ));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(wrong(
            format!("has mode {mode:04o}"),
            "have mode 0700 (chmod 700), so that nobody else reaches the socket",
        ));
    }
    Ok(())
}

/// Listens at `path`, in place of a stale socket.
pub(crate) fn bind_socket(endpoint: &Endpoint, path: &Path) -> Result<(UnixListener, SocketName), BindError> {
    let refused = |action: &'static str| {
        move |e: io::Error| BindError::Refused {
            endpoint: endpoint.clone(),
            action,
            detail: e.to_string(),
        }
    };
    private_directory(path.parent().unwrap_or(Path::new("/")))?;
    let lock = lock(&with_suffix(path, ".lock"))
        .map_err(refused("lock the socket's name"))?
        .ok_or_else(|| BindError::InUse {
            endpoint: endpoint.clone(),
        })?;
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        return Err(refused("take the name")(io::Error::other(
            "something that is not a socket has it",
        )));
    }
    // ZeroMQ removes the name that it was bound under some time after it was dropped: by then a new server may
    // listen. So it gets to know a name that nobody else uses.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = format!(".{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let private = with_suffix(path, &unique);
    let _ = std::fs::remove_file(&private);
    let listener = UnixListener::bind(&private).map_err(refused("bind"))?;
    let named = std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::symlink_metadata(&private))
        .and_then(|metadata| std::fs::rename(&private, path).map(|()| metadata));
    let metadata = named.map_err(refused("name the socket"))?;
    let name = SocketName {
        path: path.to_owned(),
        inode: (metadata.dev(), metadata.ino()),
        _lock: lock,
    };
    Ok((listener, name))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The lock, or `None` where another holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        if ours {
            // Left behind it would be replaced by the next bind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
