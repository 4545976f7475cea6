//! Files and directories that are durable when a call returns.
//!
//! Keeps: how errors name what was tried and where.
//! Order: a file is synced before its name, and its name before the call returns.
//! Crash: a file is replaced whole or not at all.
//! Knows no format.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::OpenError;

/// Makes an error that names the file and what was tried.
pub(super) fn told<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// Makes a directory that only its owner enters, with those above it, if it is not there.
pub(super) fn create_dir(dir: &Path) -> Result<(), OpenError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(told(dir, "create"))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    let opened = File::open(dir).map_err(told(dir, "open"))?;
    opened.sync_all().map_err(told(dir, "sync"))
}

/// The file's content; `None` where it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(told(path, "read")(error)),
    }
}

/// Makes a file anew, its content synced; its name is not yet.
pub(super) fn create(path: &Path, content: &[u8]) -> Result<File, OpenError> {
    let mut file = File::create(path).map_err(told(path, "create"))?;
    file.write_all(content).map_err(told(path, "write"))?;
    file.sync_all().map_err(told(path, "sync"))?;
    Ok(file)
}

/// Renames, and makes the new name durable.
pub(super) fn rename(from: &Path, to: &Path, dir: &Path) -> Result<(), OpenError> {
    fs::rename(from, to).map_err(told(to, "rename to"))?;
    sync_dir(dir)
}

/// The names in a directory that are text.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, OpenError> {
    let entries = fs::read_dir(dir).map_err(told(dir, "list"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(told(dir, "list"))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
