//! Local copies of checkpoints and of each volume's newest manifest: the same bytes as on the back ends.
//!
//! Keeps: `<dir>/map/<volume>/<checkpoint>.<epoch>` and `<dir>/map/<volume>/manifest`, the former within a budget.
//! Order: where room is needed the oldest copy goes first.
//! Crash: a copy is whole (renamed into place) or not there; what the disk damaged shows by its CRC and is dropped.
//! Knows no trees. Nothing here is the only copy of anything, so nothing is synced.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, Manifest};
use sconce_schemas::{CheckpointId, Epoch, VolumeId};

const MANIFEST: &str = "manifest";

type Key = (VolumeId, CheckpointId, Epoch);

/// The copies. Every call blocks on the file system.
#[derive(Debug)]
pub struct LocalCheckpoints {
    dir: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    bytes: u64,
    lengths: HashMap<Key, u64>,
    oldest_first: VecDeque<Key>,
}

impl LocalCheckpoints {
    /// The copies in `dir`, of which `bytes_max` bytes may be kept.
    ///
    /// # Errors
    /// The directory cannot be made or listed.
    pub fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let dir = dir.join("map");
        fs::create_dir_all(&dir)?;
        let mut found: Vec<(SystemTime, Key, u64)> = Vec::new();
        for volume_dir in fs::read_dir(&dir)? {
            let volume_dir = volume_dir?;
            let Some(volume) = volume_dir.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            for copy in fs::read_dir(volume_dir.path())? {
                let copy = copy?;
                let Some((id, epoch)) = copy.file_name().to_str().and_then(parse_name) else {
                    continue;
                };
                let metadata = copy.metadata()?;
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((written, (volume, id, epoch), metadata.len()));
            }
        }
        found.sort_unstable();
        let mut index = Index::default();
        found
            .into_iter()
            .for_each(|(_, key, length)| index.add(key, length));
        Ok(Self {
            dir,
            bytes_max,
            index: Mutex::new(index),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all copies of checkpoints.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index().bytes
    }

    /// Keeps a copy, and drops the oldest ones that have no room beside it.
    ///
    /// # Errors
    /// It cannot be written; it is then not there.
    pub fn keep(&self, volume: VolumeId, id: CheckpointId, epoch: Epoch, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if length > self.bytes_max {
            return Ok(());
        }
        self.make_room(length);
        let key = (volume, id, epoch);
        self.put(volume, &name(id, epoch), bytes)?;
        let mut index = self.index();
        index.remove(key);
        index.add(key, length);
        Ok(())
    }

    fn make_room(&self, length: u64) {
        let mut dropped = Vec::new();
        let mut index = self.index();
        while index.bytes + length > self.bytes_max {
            let Some(oldest) = index.oldest_first.front().copied() else {
                break;
            };
            index.remove(oldest);
            dropped.push(oldest);
        }
        drop(index);
        for key in dropped {
            // A copy that stays behind is found, and counted, at the next start.
            let _ = fs::remove_file(self.path(key));
        }
    }

    fn put(&self, volume: VolumeId, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(volume.to_string());
        fs::create_dir_all(&dir)?;
        let temporary = dir.join(format!("{name}.new"));
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, dir.join(name)))
            .inspect_err(|_| {
                let _ = fs::remove_file(&temporary);
            })
    }

    /// `length` bytes at `offset` of a copy, unchecked; `None` where there is no such copy or it is too short.
    #[must_use]
    pub fn read(
        &self,
        volume: VolumeId,
        id: CheckpointId,
        epoch: Epoch,
        offset: u64,
        length: usize,
    ) -> Option<Vec<u8>> {
        let key = (volume, id, epoch);
        if !self.index().lengths.contains_key(&key) {
            return None;
        }
        let mut bytes = vec![0; length];
        let read = File::open(self.path(key)).and_then(|file| file.read_exact_at(&mut bytes, offset));
        read.ok().map(|()| bytes)
    }

    /// Drops a copy: it is damaged.
    pub fn discard(&self, volume: VolumeId, id: CheckpointId, epoch: Epoch) {
        let key = (volume, id, epoch);
        self.index().remove(key);
        let _ = fs::remove_file(self.path(key));
    }

    /// Keeps a copy of the volume's newest manifest instead of the one before.
    ///
    /// # Errors
    /// It cannot be written; the one before then stands.
    pub fn keep_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        self.put(manifest.volume, MANIFEST, &manifest.to_bytes())
    }

    /// The copy of the volume's newest manifest; `None` where there is none or it is damaged.
    #[must_use]
    pub fn manifest(&self, volume: VolumeId) -> Option<Manifest> {
        let path = self.dir.join(volume.to_string()).join(MANIFEST);
        let length = fs::metadata(&path).ok()?.len();
        if length > MANIFEST_BYTES_MAX as u64 {
            return None;
        }
        let manifest = Manifest::from_bytes(&fs::read(path).ok()?).ok()?;
        (manifest.volume == volume).then_some(manifest)
    }

    /// Drops all that is kept of a volume.
    pub fn forget(&self, volume: VolumeId) {
        let mut index = self.index();
        let keys: Vec<Key> = index
            .lengths
            .keys()
            .filter(|key| key.0 == volume)
            .copied()
            .collect();
        keys.into_iter().for_each(|key| index.remove(key));
        drop(index);
        let _ = fs::remove_dir_all(self.dir.join(volume.to_string()));
    }

    fn path(&self, (volume, id, epoch): Key) -> PathBuf {
        self.dir.join(volume.to_string()).join(name(id, epoch))
    }
}

impl Index {
    fn add(&mut self, key: Key, length: u64) {
        self.bytes += length;
        self.lengths.insert(key, length);
        self.oldest_first.push_back(key);
    }

    fn remove(&mut self, key: Key) {
        if let Some(length) = self.lengths.remove(&key) {
            self.bytes -= length;
            self.oldest_first.retain(|other| *other != key);
        }
    }
}

fn name(id: CheckpointId, epoch: Epoch) -> String {
    format!("{:012x}.{:08x}", id.0, epoch.0)
}

fn parse_name(text: &str) -> Option<(CheckpointId, Epoch)> {
    let (id, epoch) = text.split_once('.')?;
    let id = CheckpointId(u64::from_str_radix(id, 16).ok()?);
    let epoch = Epoch(u64::from_str_radix(epoch, 16).ok()?);
    (name(id, epoch) == text).then_some((id, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);

    #[test]
    fn the_oldest_copies_go_first_and_a_restart_finds_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let copies = LocalCheckpoints::open(dir.path(), 100).unwrap();
        for id in 1..=4 {
            copies
                .keep(
                    VOLUME,
                    CheckpointId(id),
                    Epoch(1),
                    &[u8::try_from(id).unwrap(); 40],
                )
                .unwrap();
        }
        assert_eq!(copies.bytes(), 80);
        assert_eq!(copies.read(VOLUME, CheckpointId(2), Epoch(1), 0, 40), None);
        assert_eq!(
            copies.read(VOLUME, CheckpointId(3), Epoch(1), 8, 4),
            Some(vec![3; 4])
        );
        assert_eq!(
            copies.read(VOLUME, CheckpointId(3), Epoch(1), 38, 4),
            None,
            "beyond the end"
        );
        assert_eq!(
            copies.read(VOLUME, CheckpointId(3), Epoch(2), 0, 4),
            None,
            "another epoch"
        );
        copies.keep(VOLUME, CheckpointId(9), Epoch(1), &[9; 101]).unwrap();
        assert_eq!(copies.bytes(), 80, "what is larger than the budget is not kept");

        let again = LocalCheckpoints::open(dir.path(), 100).unwrap();
        assert_eq!(again.bytes(), 80);
        assert_eq!(
            again.read(VOLUME, CheckpointId(4), Epoch(1), 0, 4),
            Some(vec![4; 4])
        );
        again.discard(VOLUME, CheckpointId(4), Epoch(1));
        assert_eq!(again.read(VOLUME, CheckpointId(4), Epoch(1), 0, 4), None);
        again.forget(VOLUME);
        assert_eq!(
            (again.bytes(), again.read(VOLUME, CheckpointId(3), Epoch(1), 0, 4)),
            (0, None)
        );
    }
}
