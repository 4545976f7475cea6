//! The service's log.
//!
//! Keeps: the file that the service writes to, of 64 MiB at most but for what half a minute adds, and the one before it.
//! Order: the file stays the same file, because the service has it open (appending): what it has becomes the old one, and
//! lines that come in just between the two steps are lost.
//! Crash: the files stay.
//! Knows no line.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

const BYTES_MAX: u64 = 64 << 20;

/// How long it grows between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(30);

pub(crate) struct Log {
    path: PathBuf,
    bytes_max: u64,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        let bytes_max = BYTES_MAX;
        Self { path, bytes_max }
    }

    /// To be written to.
    pub(crate) fn open(&self) -> io::Result<File> {
        let opened = OpenOptions::new().create(true).append(true).open(&self.path);
        opened.map_err(|error| io::Error::new(error.kind(), format!("log {}: {error}", self.path.display())))
    }

    /// Looks whether it is too long.
    pub(crate) fn look(&self) -> io::Result<()> {
        if fs::metadata(&self.path)?.len() <= self.bytes_max {
            return Ok(());
        }
        let beside = |end: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(end);
            PathBuf::from(path)
        };
        let copied = fs::copy(&self.path, beside(".1.new"));
        let copied = copied.and_then(|_| fs::rename(beside(".1.new"), beside(".1")));
        // Even where there was no space for the copy.
        OpenOptions::new().write(true).open(&self.path)?.set_len(0)?;
        copied
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_that_grows_becomes_the_old_one_while_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log {
            path: dir.path().join("x.log"),
            bytes_max: 1000,
        };
        let old = dir.path().join("x.log.1");
        let mut writer = log.open().unwrap();
        writer.write_all(b"short\n").unwrap();
        log.look().unwrap();
        assert!(!old.exists());
        for round in 0..3 {
            let long = format!("{round}").repeat(2000);
            writer.write_all(long.as_bytes()).unwrap();
            log.look().unwrap();
            assert!(fs::read_to_string(&old).unwrap().ends_with(&long));
            assert_eq!(fs::metadata(&log.path).unwrap().len(), 0);
        }
        writer.write_all(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&log.path).unwrap(), "more\n");
    }
}
