//! The file of an object: written whole or not at all, read with one open and one read.
//!
//! Keeps: nothing; everything is in the file system.
//! Order: bytes synced, then named, then the names synced. A name is linked, so that it never overwrites.
//! Crash: before the link a temporary file is left; after it the object is whole.
//! Knows no envelope.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use sconce_runtime::crash::{self, Point};
use sconce_schemas::ObjectName;
use sconce_schemas::stored_object::SealedObject;

use super::direct;
use super::root::{Root, failed, remove_if_there};
use crate::backend::{BackendError, StoredRange};

/// How often a put makes a folder that a delete removes under its hands, before it gives up.
const FOLDER_TRIES: usize = 3;

pub(super) fn put_new(root: &Root, object: &SealedObject) -> Result<(), BackendError> {
    let path = root.ready()?.join(object.name().to_string());
    // A put that is sent again is answered without writing its bytes once more.
    if is_there(&path) {
        return already_there(root, object.name(), &path);
    }
    let temp = TempFile::write(root, object)?;
    let linked = named(root, object.name(), || fs::hard_link(&temp.path, &path));
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => already_there(root, object.name(), &path),
        done => finish(root, object.name(), &path, done),
    }
}

pub(super) fn replace(root: &Root, object: &SealedObject) -> Result<(), BackendError> {
    let path = root.ready()?.join(object.name().to_string());
    let temp = TempFile::write(root, object)?;
    let renamed = named(root, object.name(), || fs::rename(&temp.path, &path));
    finish(root, object.name(), &path, renamed)
}

pub(super) fn read(
    root: &Root,
    name: ObjectName,
    offset: u64,
    length: u64,
) -> Result<StoredRange, BackendError> {
    let path = root.ready()?.join(name.to_string());
    let file = open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => root.look_again().err().unwrap_or(BackendError::NotFound),
        _ => unreadable(&path, error),
    })?;
    let stat = file.metadata().map_err(failed("stat", &path))?;
    if !stat.is_file() {
        return Err(foreign(&path));
    }
    let stored_len = stat.len();
    let bytes = read_range(&file, offset, length.min(stored_len.saturating_sub(offset)))
        .map_err(|error| unreadable(&path, error))?;
    Ok(StoredRange { bytes, stored_len })
}

/// The same without waiting for a disk: `None` where the name or the bytes are not in the kernel's caches (or this
/// kernel cannot tell), and for every error, which the waiting way then finds again.
pub(super) fn read_cached(root: &Root, name: ObjectName, offset: u64, length: u64) -> Option<StoredRange> {
    let path = root.ready_now()?.join(name.to_string());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    let stored_len = u64::try_from(stat.st_size).ok()?;
    let due = usize::try_from(length.min(stored_len.saturating_sub(offset))).ok()?;
    let mut bytes = vec![0; due];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let read = rustix::io::preadv2(&file, &mut into, offset, ReadWriteFlags::NOWAIT).ok()?;
    (read == due).then(|| StoredRange {
        bytes: bytes.into(),
        stored_len,
    })
}

pub(super) fn delete(root: &Root, name: ObjectName) -> Result<(), BackendError> {
    let dir = root.ready()?;
    let path = dir.join(name.to_string());
    let failed = failed("delete", &path);
    if !remove_if_there(&path).map_err(&failed)? {
        // Gone already; whoever removed it may have died before syncing that.
        root.look_again()?;
    }
    sync_names(root, name, &path)?;
    root.dirs.remove_if_empty(dir, name).map_err(&failed)
}

/// Gives a written file its name; makes the folder where it is missing.
fn named(root: &Root, name: ObjectName, link: impl Fn() -> io::Result<()>) -> io::Result<()> {
    crash::hit(Point::AfterTempWritten);
    let mut linked = link();
    for _ in 0..FOLDER_TRIES {
        match &linked {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // In the place where the directory was mounted nothing is made.
                root.look_again().map_err(io::Error::other)?;
                root.dirs.make(root.path(), name)?;
                linked = link();
            }
            _ => break,
        }
    }
    linked
}

fn finish(root: &Root, name: ObjectName, path: &Path, named: io::Result<()>) -> Result<(), BackendError> {
    named.map_err(failed("store", path))?;
    crash::hit(Point::AfterRename);
    sync_names(root, name, path)
}

/// Whoever wrote what is there may have died before syncing it: the answer `Exists` promises that it is durable.
fn already_there(root: &Root, name: ObjectName, path: &Path) -> Result<(), BackendError> {
    // What cannot be opened or synced because it is no file is seen as damaged when it is read.
    if let Err(error) = open(path).and_then(|file| file.sync_all())
        && error.raw_os_error() == Some(Errno::IO.raw_os_error())
    {
        return Err(failed("sync", path)(error));
    }
    sync_names(root, name, path)?;
    Err(BackendError::Exists)
}

/// Makes the names that lead to an object durable, or that it has none any longer.
pub(super) fn sync_names(root: &Root, name: ObjectName, path: &Path) -> Result<(), BackendError> {
    match root.dirs.sync(root.path(), name) {
        // Where the directory is still the right one, the folder was removed, which it only is when it is empty: the
        // object was deleted since, and is as durable as its caller wanted it. Else it was unmounted meanwhile, and
        // nobody knows what is in it.
        Err(error) if error.kind() == ErrorKind::NotFound => root.look_again(),
        done => done.map_err(failed("sync the names of", path)),
    }
}

/// Opens for reading, without following a link and without waiting for the other end of a foreign FIFO.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn unreadable(path: &Path, error: io::Error) -> BackendError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        // A disk that cannot read its sectors, and names that are no files: another copy may be good.
        Some(Errno::IO | Errno::ILSEQ) => BackendError::Damaged {
            what: format!("{} cannot be read: {error}", path.display()),
        },
        Some(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => foreign(path),
        _ => failed("read", path)(error),
    }
}

fn foreign(path: &Path) -> BackendError {
    BackendError::Damaged {
        what: format!("{} is not a regular file", path.display()),
    }
}

/// Up to `length` bytes: `length` was bounded by the file's own.
fn read_range(file: &File, offset: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // A capacity may be larger than what was asked for.
    bytes.truncate(length);
    Ok(bytes.into())
}

/// A written and synced file that has no name of its own yet; removed when dropped.
struct TempFile {
    path: PathBuf,
}

impl TempFile {
    fn write(root: &Root, object: &SealedObject) -> Result<Self, BackendError> {
        let (temp, file) = Self::create(root)?;
        let written = write_all(&file, object).and_then(|()| file.sync_all());
        written.map_err(failed("write", &temp.path))?;
        Ok(temp)
    }

    fn create(root: &Root) -> Result<(Self, File), BackendError> {
        let mut path = root.new_temp();
        let mut created = create_new(&path);
        if let Err(error) = &created {
            match error.kind() {
                // The folder is gone: with its directory (an error), or by somebody's hand (made again).
                ErrorKind::NotFound => root.look_again()?,
                // An earlier process had our number.
                ErrorKind::AlreadyExists => path = root.new_temp(),
                _ => {}
            }
            created = create_new(&path);
        }
        let file = created.map_err(failed("create", &path))?;
        Ok((Self { path }, file))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After a rename it is gone; what cannot be removed now is removed at the next start.
        let _ = remove_if_there(&self.path);
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Writes the object: a large one past the page cache, where the file system can.
fn write_all(file: &File, object: &SealedObject) -> io::Result<()> {
    let length = object.stored_len();
    if length >= direct::DIRECT_BYTES_MIN && direct::write(file, object.pieces(), length)? {
        return Ok(());
    }
    file.set_len(0)?;
    write_buffered(file, object)
}

/// Writes the object's pieces as they lie in memory: nothing is copied together first.
fn write_buffered(mut file: &File, object: &SealedObject) -> io::Result<()> {
    file.rewind()?;
    let mut pieces: Vec<IoSlice<'_>> = object.pieces().map(IoSlice::new).collect();
    let mut left = pieces.as_mut_slice();
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
