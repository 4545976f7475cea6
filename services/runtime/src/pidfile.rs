//! The pid file: which process is the service, and that there is only one.
//!
//! Keeps: the file, locked for as long as the process lives.
//! Order: who holds the lock is the service; the number in the file follows.
//! Crash: the kernel releases a killed process's lock, and the next process takes the file over.
//! Knows no service.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A pid file of this process; dropping it removes the file.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

/// Writes this process's id to `path` and locks the file.
///
/// # Errors
/// `AlreadyExists` when another living process holds the file (the text names it); the file cannot be written.
pub fn write(path: &Path) -> io::Result<PidFile> {
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("pid file {}: {error}", path.display()));
    loop {
        let mut file = open(path).map_err(told)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(told(error)),
        }
        // Between open and lock the last holder may have removed the file: its name is then free or another's.
        if !is_at(&file, path) {
            continue;
        }
        file.set_len(0).map_err(told)?;
        writeln!(file, "{}", std::process::id()).map_err(told)?;
        let path = path.to_owned();
        return Ok(PidFile { path, _file: file });
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn held(path: &Path, file: &mut File) -> io::Error {
    let mut pid = String::new();
    let _ = file
        .rewind()
        .and_then(|()| file.take(20).read_to_string(&mut pid));
    let text = format!(
        "pid file {}: process {} runs with it; stop that one first, or use another run directory",
        path.display(),
        pid.trim()
    );
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The lock is still held, so the name is still ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let first = write(&path).unwrap();
        let pid = std::process::id().to_string();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), pid);
        let error = write(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains(&pid), "{error}");
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        std::fs::write(&path, "123456789\n").unwrap();
        let _held = write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn an_error_names_the_file() {
        let error = write(Path::new("/nonexistent-dir/x.pid")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-dir/x.pid"), "{error}");
    }
}
