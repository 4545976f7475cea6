//! Keeps: which files are open through this mount, and what is known of each: size, last write, whether it has a name.
//! Order: a size that was asked for is forgotten when a write or resize ended meanwhile: the file's own is newer.
//! Crash: the table is gone; it is made anew from the handles, where the next process has them. Files that had no name any
//! more are found in the registry.
//! Knows no registry and no owner.

use std::collections::HashMap;

use sconce_schemas::VolumeId;

use super::volumes::Source;
use crate::routing::Opened;

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFile {
    /// Its content.
    pub(super) source: Source,
    /// Its size in bytes, as far as this mount knows.
    pub(super) size: u64,
    /// Whether it takes no writes.
    pub(super) read_only: bool,
    /// When it was last written to, in nanoseconds since 1970; `None`: not since its record was read or set.
    pub(super) written_ns: Option<i64>,
    /// Whether its name is gone.
    pub(super) nameless: bool,
    opens: u32,
    changes: u64,
}

/// The open files, by inode.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(HashMap<u64, OpenFile>);

impl OpenFiles {
    /// One more open. Counts from before the owner is asked, so that a file that is being opened is not removed.
    pub(super) fn enter(&mut self, inode: u64, source: Source) {
        let file = self.0.entry(inode).or_insert(OpenFile {
            source,
            size: 0,
            read_only: false,
            written_ns: None,
            nameless: false,
            opens: 0,
            changes: 0,
        });
        file.opens += 1;
    }

    /// What the owner said of the file.
    pub(super) fn opened(&mut self, inode: u64, opened: Opened) {
        self.known(inode, opened.size.bytes(), opened.read_only);
    }

    /// What is known of the file.
    pub(super) fn known(&mut self, inode: u64, size: u64, read_only: bool) {
        if let Some(file) = self.0.get_mut(&inode) {
            file.size = file.size.max(size);
            file.read_only = read_only;
        }
    }

    /// The files that were written to, and when, where their records do not tell.
    pub(super) fn written(&self) -> Vec<(u64, i64)> {
        let written = |(inode, file): (&u64, &OpenFile)| Some((*inode, file.written_ns?));
        self.0.iter().filter_map(written).collect()
    }

    /// One open less; answers the file when it was the last.
    pub(super) fn leave(&mut self, inode: u64) -> Option<OpenFile> {
        let file = self.0.get_mut(&inode)?;
        file.opens -= 1;
        if file.opens > 0 {
            return None;
        }
        self.0.remove(&inode)
    }

    pub(super) fn get(&self, inode: u64) -> Option<&OpenFile> {
        self.0.get(&inode)
    }

    pub(super) fn is_open(&self, inode: u64) -> bool {
        self.0.contains_key(&inode)
    }

    /// Whether a snapshot of this volume is open.
    pub(super) fn has_snapshot_of(&self, volume: VolumeId) -> bool {
        let mut sources = self.0.values().map(|file| file.source);
        sources.any(|source| source.volume == volume && source.snapshot.is_some())
    }

    /// A write up to `end` is there.
    pub(super) fn wrote(&mut self, inode: u64, end: u64, now_ns: i64) {
        self.change(inode, |file| {
            file.size = file.size.max(end);
            file.written_ns = Some(now_ns);
        });
    }

    /// The file has this size now.
    pub(super) fn resized(&mut self, inode: u64, size: u64, now_ns: i64) {
        self.change(inode, |file| {
            file.size = size;
            file.written_ns = Some(now_ns);
        });
    }

    /// The file's times were set: the last write's does not count any more.
    pub(super) fn time_set(&mut self, inode: u64) {
        self.change(inode, |file| file.written_ns = None);
    }

    /// The file's name is gone.
    pub(super) fn unnamed(&mut self, inode: u64) {
        self.change(inode, |file| file.nameless = true);
    }

    fn change(&mut self, inode: u64, change: impl FnOnce(&mut OpenFile)) {
        if let Some(file) = self.0.get_mut(&inode) {
            file.changes += 1;
            change(file);
        }
    }

    /// The file as it is before its owner is asked for its size.
    pub(super) fn mark(&self, inode: u64) -> Option<u64> {
        self.0.get(&inode).map(|file| file.changes)
    }

    /// The owner's answer to a question that was asked at `mark`: taken unless the file changed meanwhile. Answers
    /// the size that counts.
    pub(super) fn told(&mut self, inode: u64, mark: Option<u64>, size: u64) -> u64 {
        match self.0.get_mut(&inode) {
            Some(file) if Some(file.changes) == mark => {
                file.size = size;
                size
            }
            Some(file) => file.size,
            None => size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(size: u64) -> Opened {
        Opened {
            epoch: sconce_schemas::Epoch::FIRST,
            size: sconce_schemas::VolumeSize::new(size).unwrap(),
            read_only: false,
        }
    }

    #[test]
    fn the_last_close_takes_the_file_out() {
        let mut files = OpenFiles::default();
        files.enter(7, VolumeId::default().into());
        files.enter(7, VolumeId::default().into());
        files.opened(7, opened(10));
        files.wrote(7, 30, 1);
        files.unnamed(7);
        assert_eq!(files.leave(7), None);
        let file = files.leave(7).unwrap();
        assert_eq!((file.size, file.written_ns, file.nameless), (30, Some(1), true));
        assert_eq!(files.leave(7), None);
        assert!(!files.is_open(7));
    }

    #[test]
    fn an_answer_that_a_write_overtook_is_forgotten() {
        let mut files = OpenFiles::default();
        files.enter(7, VolumeId::default().into());
        files.opened(7, opened(10));
        let mark = files.mark(7);
        assert_eq!(files.told(7, mark, 20), 20);
        let mark = files.mark(7);
        files.wrote(7, 50, 1);
        assert_eq!(files.told(7, mark, 20), 50);
        let mark = files.mark(7);
        files.resized(7, 5, 2);
        assert_eq!(files.told(7, mark, 50), 5);
        assert_eq!(files.told(8, files.mark(8), 9), 9);
    }
}
