//! Random operations on a file against a model of it in memory, as fsx does.
//!
//! Keeps: the model, and the last operations for a failure's report.
//! Order: every read is compared at once; the whole file at the end.
//! Crash: none is expected here.
//! Knows a file, not what serves it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate};

/// Most bytes of one operation.
const LENGTH_MAX: usize = 256 * 1024;
/// How many operations a failure reports.
const REMEMBERED: usize = 20;

/// A file under test.
#[derive(Debug)]
pub struct Fsx {
    path: PathBuf,
    file: File,
    model: Vec<u8>,
    size_max: usize,
    random: fastrand::Rng,
    last: VecDeque<String>,
}

impl Fsx {
    /// A new file at `path` that grows to at most `size_max` bytes.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(path: &Path, size_max: usize, seed: u64) -> Result<Fsx> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("creating {}", path.display()))?;
        Ok(Fsx {
            path: path.to_owned(),
            file,
            model: Vec::new(),
            size_max,
            random: fastrand::Rng::with_seed(seed),
            last: VecDeque::new(),
        })
    }

    /// Performs so many operations, then compares the whole file.
    ///
    /// # Errors
    /// An operation fails, or a read differs from the model; with the last operations.
    pub fn run(&mut self, operations: u32) -> Result<()> {
        for _ in 0..operations {
            self.step().with_context(|| self.report())?;
        }
        self.file.sync_all()?;
        self.compare(0, self.model.len()).with_context(|| self.report())
    }

    fn step(&mut self) -> Result<()> {
        match self.random.u32(0..100) {
            0..45 => self.write(),
            45..80 => {
                let (at, length) = self.range_within();
                self.note(format!("read {length} at {at}"));
                self.compare(at, length)
            }
            80..88 => self.punch(),
            88..94 => self.truncate(),
            94..98 => {
                self.note("sync".to_owned());
                self.file.sync_data().map_err(Into::into)
            }
            _ => self.reopen(),
        }
    }

    fn write(&mut self) -> Result<()> {
        let length = self.random.usize(1..=LENGTH_MAX.min(self.size_max));
        let at = self.random.usize(0..=self.size_max - length);
        self.note(format!("write {length} at {at}"));
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes);
        self.file.write_all_at(&bytes, at as u64)?;
        if self.model.len() < at + length {
            self.model.resize(at + length, 0);
        }
        if let Some(range) = self.model.get_mut(at..at + length) {
            range.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn punch(&mut self) -> Result<()> {
        let (at, length) = self.range_within();
        if length == 0 {
            return Ok(());
        }
        self.note(format!("punch {length} at {at}"));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, at as u64, length as u64)?;
        if let Some(range) = self.model.get_mut(at..at + length) {
            range.fill(0);
        }
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let size = self.random.usize(0..=self.size_max);
        self.note(format!("truncate to {size}"));
        self.file.set_len(size as u64)?;
        self.model.resize(size, 0);
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        self.note("close and open".to_owned());
        self.file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let size = self.file.metadata()?.len();
        if size != self.model.len() as u64 {
            bail!("the file has {size} bytes, not {}", self.model.len());
        }
        Ok(())
    }

    fn compare(&self, at: usize, length: usize) -> Result<()> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at as u64)?;
        let expected = self.model.get(at..at + length).unwrap_or_default();
        match bytes
            .iter()
            .zip(expected)
            .position(|(found, expected)| found != expected)
        {
            Some(differs) => bail!(
                "byte {} is {:#04x}, not {:#04x}",
                at + differs,
                bytes[differs],
                expected[differs]
            ),
            None => Ok(()),
        }
    }

    fn range_within(&mut self) -> (usize, usize) {
        let at = self.random.usize(0..=self.model.len());
        (at, self.random.usize(0..=LENGTH_MAX.min(self.model.len() - at)))
    }

    fn note(&mut self, operation: String) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(operation);
    }

    fn report(&self) -> String {
        let last: Vec<&str> = self.last.iter().map(String::as_str).collect();
        format!("{}: after {}", self.path.display(), last.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_file_passes_and_a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut fsx = Fsx::create(&dir.path().join("file"), 1 << 20, 7).unwrap();
        fsx.run(300).unwrap();
        fsx.file.set_len(1 << 20).unwrap();
        fsx.model.resize(1 << 20, 0);
        fsx.file.write_all_at(b"?", 4096).unwrap();
        fsx.file.write_all_at(b"!", 4097).unwrap();
        assert!(fsx.compare(0, 1 << 20).is_err());
    }
}
