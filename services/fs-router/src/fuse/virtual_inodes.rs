//! Keeps: inodes that are nobody's record: the directory of a directory's snapshots, and the snapshots in it.
//! Order: one is known from its first lookup until the kernel has forgotten it.
//! Crash: nothing; their numbers follow from what they stand for.
//! Knows no registry and no owner.

use std::collections::HashMap;

use sconce_schemas::{SnapshotId, VolumeId};

use super::volumes::Snapshot;

/// Set in the number of each of these inodes. Those of records have 63 bits.
const VIRTUAL: u64 = 1 << 63;

/// What such an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Virtual {
    /// The snapshots of a directory's files.
    Directory {
        /// The directory.
        of: u64,
    },
    /// A snapshot of a file.
    File {
        /// The file, whose owner, group and permissions count.
        of: u64,
        /// Its volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: Snapshot,
    },
}

impl Virtual {
    /// Its number: the same in each process.
    pub(super) fn number(&self) -> u64 {
        match self {
            Virtual::Directory { of } => directory_number(*of),
            Virtual::File { volume, snapshot, .. } => file_number(*volume, snapshot.id),
        }
    }

    /// Whether the other one is the same, perhaps with other attributes.
    fn is_same_as(&self, other: &Virtual) -> bool {
        match (self, other) {
            (Virtual::Directory { of: one }, Virtual::Directory { of: other }) => one == other,
            (
                Virtual::File {
                    volume: one,
                    snapshot,
                    ..
                },
                Virtual::File {
                    volume: other,
                    snapshot: of_other,
                    ..
                },
            ) => one == other && snapshot.id == of_other.id,
            _ => false,
        }
    }
}

/// Whether a number is that of such an inode.
pub(super) fn is_virtual(inode: u64) -> bool {
    inode & VIRTUAL != 0
}

/// The number of the directory of a directory's snapshots. It cannot be turned back: the directory's own number has all
/// the bits that there are.
fn directory_number(of: u64) -> u64 {
    VIRTUAL | mixed(mixed(of) ^ 1)
}

/// The number of a snapshot's file.
pub(super) fn file_number(volume: VolumeId, snapshot: SnapshotId) -> u64 {
    let [high, low] = volume.0.as_chunks::<8>().0 else {
        return VIRTUAL;
    };
    let volume = mixed(u64::from_be_bytes(*high)) ^ u64::from_be_bytes(*low);
    VIRTUAL | mixed(mixed(volume) ^ mixed(snapshot.0.wrapping_add(2)))
}

/// Spreads a number over all bits (the finalizer of splitmix64); it never changes, or inodes would.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Those that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct VirtualInodes {
    known: HashMap<u64, Known>,
}

#[derive(Debug)]
struct Known {
    what: Virtual,
    lookups: u64,
}

impl VirtualInodes {
    /// The kernel looks one up; answers its number, or `None` where another that the kernel knows has it: one in 2^63.
    pub(super) fn looked_up(&mut self, what: Virtual) -> Option<u64> {
        let number = what.number();
        let known = self.known.entry(number).or_insert_with(|| Known {
            what: what.clone(),
            lookups: 0,
        });
        if known.what.is_same_as(&what) {
            known.what = what;
            known.lookups += 1;
            Some(number)
        } else {
            None
        }
    }

    /// The kernel has forgotten this many lookups of one.
    pub(super) fn forget(&mut self, inode: u64, lookups: u64) {
        if let Some(known) = self.known.get_mut(&inode) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                self.known.remove(&inode);
            }
        }
    }

    pub(super) fn get(&self, inode: u64) -> Option<&Virtual> {
        self.known.get(&inode).map(|known| &known.what)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn file(volume: u8, id: u64) -> Virtual {
        Virtual::File {
            of: 77,
            volume: VolumeId([volume; 16]),
            snapshot: Snapshot {
                id: SnapshotId(id),
                name: "monday".to_owned(),
                created_us: 1,
                size: 4096,
                allocated: 0,
            },
        }
    }

    #[test]
    fn numbers_are_apart_from_each_other_and_from_all_real_ones() {
        let mut numbers = HashSet::new();
        for n in 0..2000 {
            for one in [file(1, n), file(2, n), Virtual::Directory { of: n }] {
                assert!(is_virtual(one.number()));
                assert!(numbers.insert(one.number()), "{one:?}");
            }
        }
        assert!(!is_virtual(u64::MAX >> 1));
    }

    #[test]
    fn numbers_stay_the_same_for_ever() {
        assert_eq!(Virtual::Directory { of: 1 }.number(), 0xe9fd_6049_d65a_f21e);
        assert_eq!(file(1, 5).number(), 0xe9ef_fc4c_4d0c_55a2);
    }

    #[test]
    fn one_is_known_until_its_last_lookup_is_forgotten() {
        let mut inodes = VirtualInodes::default();
        let number = inodes.looked_up(file(1, 5)).unwrap();
        assert_eq!(inodes.looked_up(file(1, 5)), Some(number));
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), Some(&file(1, 5)));
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), None);
        inodes.forget(number, 1);
    }
}
