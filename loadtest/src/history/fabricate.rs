//! A simulated fill: a volume's map and SCO table as those of a full volume, put on the back end without the data.
//!
//! Keeps: nothing.
//! Order: map objects, then the manifest, as an owner stores them.
//! Crash: see `history`.
//! Knows the stored formats, and the directory of a back end.
//!
//! Each leaf of the map (2 MiB of the volume) has one location in place of 512, and each SCO one slot of it: as many nodes on as
//! many levels as a full volume, in a 60th of the bytes. Only the first SCO is there; nothing else is ever read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sconce_schemas::checkpoint::{
    Bitmap, CheckpointBuilder, FANOUT, NodePlace, NodeRecord, NodeRef, TreeKind,
};
use sconce_schemas::crc::crc32c;
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::records::EpochStart;
use sconce_schemas::sco::{BatchBuilder, Entry, EntryKind, ScoHeader};
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{
    BatchSeq, CLUSTER_LEN, CheckpointId, ClusterAddress, Epoch, LineageIndex, ManifestSeq, ObjectName, ScoId,
    ScoSize, Slot, VolumeId, VolumeSize,
};

const EPOCH: Epoch = Epoch(1);
const OBJECT_BYTES: usize = 4 << 20;
const LEAF_CLUSTERS: u64 = FANOUT as u64;
/// Stored bytes of a SCO's state: slots, live slots, version, and what later builds have.
const STATE_LEN: usize = 16;

/// Puts a volume of `bytes` bytes, a multiple of 4 MiB, at `path` into the back end's directory.
pub(super) fn fabricate(backend: &Path, path: &str, bytes: u64) -> Result<VolumeId> {
    let volume = VolumeId::from_u128(u128::from(fastrand::u64(1..)) << 64 | u128::from(fastrand::u64(..)));
    let size = ScoSize::default();
    let cluster = vec![7; CLUSTER_LEN];
    let crc = crc32c(&cluster);
    let leaves = bytes / (LEAF_CLUSTERS * CLUSTER_LEN as u64);
    let scos = leaves / 2;
    let mut writer = Writer {
        backend,
        volume,
        builder: CheckpointBuilder::new(volume, CheckpointId::FIRST, EPOCH),
        next: CheckpointId::FIRST,
        filled: 0,
    };
    let map = writer.tree(TreeKind::Map, leaves, |leaf| {
        let sco = ScoId(leaf / 2 + 1);
        let location = Location::new(LineageIndex(0), sco, Slot(u16::from(leaf % 2 == 1)), crc);
        (vec![(0, location.to_bytes().to_vec())], 12)
    })?;
    // Full, so that nobody thinks them worth scrubbing.
    let mut state = vec![0; STATE_LEN];
    state[..2].copy_from_slice(&size.slots().to_le_bytes());
    state[2..4].copy_from_slice(&size.slots().to_le_bytes());
    let table = writer.tree(TreeKind::Scos, (scos + 1).div_ceil(LEAF_CLUSTERS), |leaf| {
        let ids = leaf * LEAF_CLUSTERS..(leaf + 1) * LEAF_CLUSTERS;
        let is_one = |id: &u64| (1..=scos).contains(id);
        let values = ids.filter(is_one).map(|id| (slot_of(id), state.clone()));
        (values.collect(), STATE_LEN)
    })?;
    let checkpoint = writer.close()?;
    put_sco(backend, volume, size, &cluster)?;
    let manifest = Manifest {
        volume,
        seq: ManifestSeq(1),
        epoch: EPOCH,
        path: path.to_owned(),
        pool: "default".to_owned(),
        size: VolumeSize::new(bytes)?,
        sco_size: size,
        allocated_clusters: leaves,
        map,
        scos: table,
        scos_count: scos,
        covered: BatchSeq(scos),
        covered_sco: ScoId(scos),
        checkpoint,
        lineage: vec![volume],
        epochs: vec![EpochStart {
            epoch: EPOCH,
            first_sco: ScoId::FIRST,
        }],
        ..Manifest::default()
    };
    let name = ObjectName::Manifest {
        volume,
        seq: manifest.seq,
        epoch: EPOCH,
    };
    put(backend, name, manifest.to_bytes())?;
    Ok(volume)
}

fn slot_of(number: u64) -> usize {
    usize::try_from(number % LEAF_CLUSTERS).unwrap_or(0)
}

fn put(backend: &Path, name: ObjectName, bytes: Vec<u8>) -> Result<()> {
    let path = backend.join(name.to_string());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let sealed = SealedObject::seal(name, bytes.into())?;
    fs::write(&path, sealed.to_stored()).with_context(|| path.display().to_string())
}

/// The first SCO, with its first cluster.
fn put_sco(backend: &Path, volume: VolumeId, size: ScoSize, cluster: &[u8]) -> Result<()> {
    let header = ScoHeader {
        volume,
        id: ScoId::FIRST,
        epoch: EPOCH,
        size,
        first_batch: BatchSeq::FIRST,
        synced_below: ScoId::FIRST,
    };
    let mut batch = BatchBuilder::default();
    batch.push(&Entry {
        kind: EntryKind::Write {
            address: ClusterAddress(0),
            crc: crc32c(cluster),
        },
        session: 0,
        number: 1,
        last: true,
    });
    let batch = batch.close(header.salt(), BatchSeq::FIRST, Slot(0), 0);
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(index(ScoSize::HEADER_AREA), 0);
    bytes.extend_from_slice(&batch);
    bytes.resize(index(size.data_offset()), 0);
    bytes.extend_from_slice(cluster);
    let name = ObjectName::Sco {
        volume,
        id: header.id,
        epoch: EPOCH,
        version: 0,
    };
    put(backend, name, bytes)
}

struct Writer<'a> {
    backend: &'a Path,
    volume: VolumeId,
    builder: CheckpointBuilder,
    next: CheckpointId,
    filled: usize,
}

/// A leaf's slots with their values, and how long those are.
type Leaf = (Vec<(usize, Vec<u8>)>, usize);

impl Writer<'_> {
    /// Writes a tree of so many leaves, level by level.
    fn tree(&mut self, tree: TreeKind, leaves: u64, leaf: impl Fn(u64) -> Leaf) -> Result<TreeRoot> {
        let mut below: Vec<(NodeRef, u64)> = Vec::new();
        for index in 0..leaves {
            let (values, width) = leaf(index);
            let count = values.len() as u64;
            let place = NodePlace {
                tree,
                level: 0,
                index,
            };
            below.push((self.node(place, &values, width)?, count));
        }
        let mut height = 0;
        while below.len() > 1 {
            height += 1;
            let mut level = Vec::new();
            for (index, children) in (0..).zip(below.chunks(FANOUT)) {
                let place = NodePlace {
                    tree,
                    level: height,
                    index,
                };
                let values: Vec<(usize, Vec<u8>)> = children
                    .iter()
                    .enumerate()
                    .map(|(slot, (node, count))| {
                        (slot, [node.to_bytes().as_slice(), &count.to_le_bytes()].concat())
                    })
                    .collect();
                let count = children.iter().map(|(_, count)| count).sum();
                level.push((self.node(place, &values, 40)?, count));
            }
            below = level;
        }
        Ok(TreeRoot {
            height,
            node: below.first().map(|(node, _)| *node),
            floor: CheckpointId::NONE,
        })
    }

    fn node(&mut self, place: NodePlace, values: &[(usize, Vec<u8>)], width: usize) -> Result<NodeRef> {
        let mut present = Bitmap::EMPTY;
        values.iter().for_each(|(slot, _)| present.set(*slot));
        let record = NodeRecord {
            place,
            base: None,
            present,
            emptied: Bitmap::EMPTY,
            width: u8::try_from(width)?,
            values: values
                .iter()
                .flat_map(|(_, value)| value.iter().copied())
                .collect(),
        };
        if self.filled > OBJECT_BYTES {
            self.close()?;
        }
        let reference = self.builder.push(&record, LineageIndex(0))?;
        self.filled += reference.length as usize;
        Ok(reference)
    }

    /// Stores the object at hand; gives its number.
    fn close(&mut self) -> Result<CheckpointId> {
        let id = self.next;
        self.next = id.next();
        let following = CheckpointBuilder::new(self.volume, self.next, EPOCH);
        let bytes = std::mem::replace(&mut self.builder, following).finish();
        self.filled = 0;
        let name = ObjectName::Map {
            volume: self.volume,
            id,
            epoch: EPOCH,
        };
        put(self.backend, name, bytes)?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_fill_has_the_nodes_of_a_full_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = fabricate(dir.path(), "/sim.raw", 4 << 30).unwrap();
        let name = ObjectName::Manifest {
            volume,
            seq: ManifestSeq(1),
            epoch: EPOCH,
        };
        let stored = fs::read(dir.path().join(name.to_string())).unwrap();
        let manifest = Manifest::from_bytes(&stored[128..stored.len() - 4]).unwrap();
        // 2,048 leaves below 4 nodes below a root; 1,024 SCOs in three leaves, number 0 not being one.
        assert_eq!((manifest.map.height, manifest.allocated_clusters), (2, 2048));
        assert_eq!((manifest.scos.height, manifest.covered_sco), (1, ScoId(1024)));
    }
}
