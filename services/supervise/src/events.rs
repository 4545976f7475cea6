//! What is told of the service's ends.
//!
//! Keeps: the file of events, of 1 MiB at most, and the one before it; the number of ends in a row.
//! Order: a line for each end.
//! Crash: the files stay.
//! Knows no process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A service that ends again and again says so every few seconds.
const BYTES_MAX: u64 = 1 << 20;

pub(crate) struct Events {
    service: String,
    file: Option<PathBuf>,
    exits: Option<PathBuf>,
}

impl Events {
    pub(crate) fn new(service: &str, file: Option<PathBuf>, exits: Option<PathBuf>) -> Self {
        Self {
            service: service.to_owned(),
            file,
            exits,
        }
    }

    /// Tells a line.
    pub(crate) fn say(&self, text: &str) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let line = format!("{now} {}: {text}\n", self.service);
        let told = match &self.file {
            Some(path) => open(path).and_then(|mut file| file.write_all(line.as_bytes())),
            None => io::stderr().write_all(line.as_bytes()),
        };
        // Nobody is left to be told that nobody can be told.
        let _ = told;
    }

    /// The service ended as soon as it was started, this often in a row.
    pub(crate) fn exits(&self, count: u32) {
        let Some(path) = &self.exits else { return };
        let written = match count {
            0 => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            count => fs::write(path, format!("{count}\n")),
        };
        if let Err(error) = written {
            self.say(&format!("{}: {error}", path.display()));
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|file| file.len() >= BYTES_MAX) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_full_becomes_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        Events::new("a", Some(path.clone()), None).say("b");
        assert!(fs::read_to_string(&path).unwrap().ends_with("Z a: b\n"));
        assert_eq!(fs::metadata(dir.path().join("log.1")).unwrap().len(), 1 << 20);
    }

    #[test]
    fn the_number_of_ends_is_there_while_it_is_not_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let events = Events::new("a", Some(dir.path().join("log")), Some(path.clone()));
        events.exits(0);
        events.exits(3);
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n");
        events.exits(0);
        assert!(!path.exists() && !dir.path().join("log").exists());
    }
}
