//! A machine's disk: files of the real file system, with what a loss of power takes from them.
//!
//! Keeps: of each file, what was written since it was last synced, and what was there before.
//! Order: as written; a loss of power takes any of it, also single sectors.
//! Crash: a killed process loses nothing that it had written.
//! Knows no SCOs. The local copies of checkpoints, which nobody syncs, are not written through it: see [`SimulatedDisk::lose_power`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sconce_runtime::Chance;
use sconce_volume_router::device::{Disk, SystemDisk};

const SECTOR: usize = 512;
/// A read that takes only what is in memory finds nothing so many times in 100.
const NOT_IN_MEMORY: u64 = 20;

/// The disk of one machine.
#[derive(Debug)]
pub(crate) struct SimulatedDisk {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    /// By inode.
    unsynced: BTreeMap<u64, Unsynced>,
    /// How often the machine lost power.
    boots: u64,
}

#[derive(Debug)]
struct Unsynced {
    file: File,
    writes: Vec<Written>,
}

#[derive(Debug)]
struct Written {
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl SimulatedDisk {
    pub(crate) fn new(chance: Chance) -> Self {
        let unsynced = BTreeMap::new();
        Self {
            state: Mutex::new(State {
                chance,
                unsynced,
                boots: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine loses power: of what was not synced any part is gone, of each file on its own.
    pub(crate) fn lose_power(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let State {
            chance,
            unsynced,
            boots,
        } = &mut *state;
        *boots += 1;
        for Unsynced { file, writes } in std::mem::take(unsynced).into_values() {
            for written in writes.iter().rev() {
                file.write_all_at(&written.before, written.offset)?;
            }
            // From none to all of it.
            let kept = chance.below(5);
            for Written { offset, after, .. } in &writes {
                for (at, sector) in after.chunks(SECTOR).enumerate() {
                    if chance.below(4) < kept {
                        file.write_all_at(sector, offset + (at * SECTOR) as u64)?;
                    }
                }
            }
        }
        lose_copies(chance, &dir.join("map"))
    }

    /// The disk is another one, and empty.
    pub(crate) fn replace(&self, dir: &Path) -> io::Result<()> {
        self.state().unsynced.clear();
        fs::remove_dir_all(dir)?;
        fs::create_dir_all(dir)
    }
}

/// Copies of checkpoints and manifests that nobody synced.
fn lose_copies(chance: &mut Chance, dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => lose_copies(chance, &path)?,
            false if chance.one_of(1, 3) => fs::remove_file(&path)?,
            false if chance.one_of(1, 3) => {
                let length = fs::metadata(&path)?.len();
                File::options()
                    .write(true)
                    .open(&path)?
                    .set_len(chance.below(length))?;
            }
            false => {}
        }
    }
    Ok(())
}

impl Disk for SimulatedDisk {
    fn write(&self, file: &File, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut after = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| after.extend_from_slice(part));
        let mut before = vec![0; after.len()];
        // Past the end there is nothing before it.
        let mut read = 0;
        while read < before.len() {
            match file.read_at(&mut before[read..], offset + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        file.write_all_at(&after, offset)?;
        let length = after.len();
        let mut state = self.state();
        let unsynced = match state.unsynced.entry(file.metadata()?.ino()) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => new.insert(Unsynced {
                file: file.try_clone()?,
                writes: Vec::new(),
            }),
        };
        unsynced.writes.push(Written {
            offset,
            before,
            after,
        });
        Ok(length)
    }

    fn read(&self, file: &File, buffer: &mut [MaybeUninit<u8>], offset: u64, now: bool) -> io::Result<usize> {
        if now && self.state().chance.one_of(NOT_IN_MEMORY, 100) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        SystemDisk.read(file, buffer, offset, false)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.state().unsynced.remove(&file.metadata()?.ino());
        Ok(())
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn keep(&self, file: &File, _dir: &Path) -> io::Result<()> {
        self.sync(file)
    }

    fn boot(&self) -> io::Result<String> {
        Ok(format!("boot {}", self.state().boots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_of_power_takes_of_what_was_not_synced_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..60 {
            let disk = SimulatedDisk::new(Chance::seeded(seed));
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .unwrap();
            disk.allocate(&file, 8192).unwrap();
            disk.write(&file, &[IoSlice::new(&[1; 8192])], 0).unwrap();
            disk.sync(&file).unwrap();
            disk.write(&file, &[IoSlice::new(&[2; 1024]), IoSlice::new(&[2; 1024])], 4096)
                .unwrap();
            disk.write(&file, &[IoSlice::new(&[3; 1024])], 4096).unwrap();
            disk.lose_power(dir.path()).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert!(
                bytes[..4096].iter().chain(&bytes[6144..]).all(|byte| *byte == 1),
                "it was synced"
            );
            let second = &bytes[5120..6144];
            match (second == [1; 1024], second == [2; 1024]) {
                (true, _) => lost += 1,
                (_, true) => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(
            lost > 5 && kept > 5 && torn > 5,
            "{lost} lost, {kept} kept, {torn} torn"
        );
    }
}
