//! Checkpoint objects: changed nodes of a volume's trees, each with its CRC, and an index (DESIGN.md §3).
//!
//! Keeps: how a node is stored, whole or as a delta on its predecessor, and where in its object.
//! Order: children come before the nodes that refer to them; the index comes last.
//! Crash: an object is whole or not there; each node has a CRC of its own, salted with its place.
//! Knows no tree: a node here is a level, an index and slots with opaque values of one width.
//!
//! ```text
//! object:  header (48 bytes)  nodes...  index (32 bytes a node)  footer (16 bytes)
//! header:  0 magic "MAP1"  4 version u32  8 volume (16)  24 checkpoint u64  32 epoch u64  40 reserved  44 crc u32
//! node:    0 crc u32  4 tree u8  5 level u8  6 form u8 (0 whole, 1 delta)  7 width u8  8 index u64
//!         16 bitmap of slots that are present in this record (64)
//!         80 for a delta: base reference (32), bitmap of slots that became empty (64)
//!            values of the present slots, in order, `width` bytes each
//! index:   tree u8  level u8  reserved u16  length u32  offset u64  node index u64  reserved u64
//! footer:  0 magic "MAPX"  4 nodes u32  8 index crc u32  12 crc u32 of this footer's first 12 bytes
//! ```

use crate::DecodeError;
use crate::checks::{check_crc, check_magic};
use crate::crc::{crc32c, crc32c_append, sco_salt};
use crate::ids::{CheckpointId, Epoch, LineageIndex, ScoId, VolumeId};
use crate::le::{u32_at, u64_at};

/// Slots of a node: the fan-out of the trees.
pub const FANOUT: usize = 512;
/// Stored size of a [`NodeRef`].
pub const NODE_REF_LEN: usize = 32;
/// Longest chain of deltas that a reader follows before it meets a whole node.
pub const DELTA_CHAIN_MAX: u8 = 8;
/// Longest value of a node's slot: an inner node's, a reference to a child and how many values are below it.
pub const NODE_VALUE_LEN_MAX: usize = NODE_REF_LEN + 8;
/// Largest stored node: all slots present with the longest values, both bitmaps.
pub const NODE_BYTES_MAX: usize = NODE_HEADER_LEN + NODE_REF_LEN + BITMAP_LEN + FANOUT * NODE_VALUE_LEN_MAX;

const MAGIC: u32 = u32::from_le_bytes(*b"MAP1");
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"MAPX");
const VERSION: u32 = 1;
const HEADER_LEN: usize = 48;
const FOOTER_LEN: usize = 16;
const INDEX_ENTRY_LEN: usize = 32;
const BITMAP_LEN: usize = FANOUT / 8;
const NODE_HEADER_LEN: usize = 16 + BITMAP_LEN;

/// Where a stored node is. 32 bytes: checkpoint u64, epoch u64, offset u32 (in units of 1 byte), length u32,
/// CRC u32, lineage u16, delta chain u8, reserved u8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// The checkpoint whose object holds it.
    pub checkpoint: CheckpointId,
    /// That object's epoch.
    pub epoch: Epoch,
    /// Byte offset in the object.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// CRC of the stored node: a reference proves what it refers to.
    pub crc: u32,
    /// The volume in the lineage whose checkpoint it is.
    pub lineage: LineageIndex,
    /// How many deltas a reader applies: 0 for a whole node.
    pub chain: u8,
}

impl NodeRef {
    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; NODE_REF_LEN] {
        let mut bytes = [0; NODE_REF_LEN];
        bytes[0..8].copy_from_slice(&self.checkpoint.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.offset.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.lineage.0.to_le_bytes());
        bytes[30] = self.chain;
        bytes
    }

    /// The reference that these bytes store.
    ///
    /// # Errors
    /// A length or a chain that no version wrote.
    pub fn from_bytes(bytes: &[u8; NODE_REF_LEN]) -> Result<Self, DecodeError> {
        let length = u32_at(bytes, 20);
        let chain = bytes[30];
        if length as usize > NODE_BYTES_MAX || chain > DELTA_CHAIN_MAX {
            return Err(DecodeError::Value {
                what: "node reference",
                found: format!("{length} bytes long with {chain} deltas"),
                expected: "within a node's limits",
            });
        }
        Ok(Self {
            checkpoint: CheckpointId(u64_at(bytes, 0)),
            epoch: Epoch(u64_at(bytes, 8)),
            offset: u32_at(bytes, 16),
            length,
            crc: u32_at(bytes, 24),
            lineage: LineageIndex(u16::from_le_bytes([bytes[28], bytes[29]])),
            chain,
        })
    }
}

/// Which slots of a node are meant: one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmap([u64; FANOUT / 64]);

impl Bitmap {
    /// No slot.
    pub const EMPTY: Bitmap = Bitmap([0; FANOUT / 64]);

    /// Whether slot `at` is in.
    #[must_use]
    pub const fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    /// Puts slot `at` in.
    pub const fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    /// Takes slot `at` out.
    pub const fn clear(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    /// How many slots are in.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no slot is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many slots below `at` are in: where slot `at` is, or would be, in a packed list.
    #[must_use]
    pub fn rank(&self, at: usize) -> usize {
        let whole: u32 = self.0[..at / 64].iter().map(|word| word.count_ones()).sum();
        let part = if at < FANOUT {
            (self.0[at / 64] & ((1 << (at % 64)) - 1)).count_ones()
        } else {
            0
        };
        (whole + part) as usize
    }

    /// The slots that are in, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word_at, word)| {
            std::iter::successors((*word != 0).then_some(*word), |rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| word_at * 64 + rest.trailing_zeros() as usize)
        })
    }

    fn to_bytes(self) -> [u8; BITMAP_LEN] {
        let mut bytes = [0; BITMAP_LEN];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let mut words = [0; FANOUT / 64];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64_at(chunk, 0);
        }
        Self(words)
    }
}

/// Which of a volume's trees a node is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TreeKind {
    /// Cluster address → location.
    Map,
    /// SCO id → SCO state.
    Scos,
}

/// Where a node is in its tree: leaves are level 0; `index` counts the nodes of a level from the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePlace {
    /// Which tree.
    pub tree: TreeKind,
    /// Height above the leaves.
    pub level: u8,
    /// Position in the level.
    pub index: u64,
}

/// A node's record as it is stored: whole, or what changed since `base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Where the node is in its tree.
    pub place: NodePlace,
    /// What this record is a delta on; `None`: it is whole.
    pub base: Option<NodeRef>,
    /// Slots whose values this record holds.
    pub present: Bitmap,
    /// Slots that became empty since the base.
    pub emptied: Bitmap,
    /// Bytes of a value.
    pub width: u8,
    /// The values of the present slots, in order, `width` bytes each.
    pub values: Vec<u8>,
}

/// Builds a checkpoint object.
pub struct CheckpointBuilder {
    id: CheckpointId,
    epoch: Epoch,
    salt: u32,
    bytes: Vec<u8>,
    index: Vec<u8>,
    nodes: u32,
}

impl CheckpointBuilder {
    /// An empty checkpoint.
    #[must_use]
    pub fn new(volume: VolumeId, id: CheckpointId, epoch: Epoch) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&volume.0);
        bytes[24..32].copy_from_slice(&id.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&epoch.0.to_le_bytes());
        let crc = crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        Self {
            id,
            epoch,
            salt: salt(volume, id, epoch),
            bytes,
            index: Vec::new(),
            nodes: 0,
        }
    }

    /// Appends a node and gives its reference; `lineage` is the volume's own index in its lineage.
    ///
    /// # Errors
    /// The object would be larger than 4 GiB.
    pub fn push(&mut self, node: &NodeRecord, lineage: LineageIndex) -> Result<NodeRef, DecodeError> {
        let start = self.bytes.len();
        let offset = u32::try_from(start).map_err(|_| DecodeError::Value {
            what: "checkpoint size",
            found: format!("{start} bytes"),
            expected: "less than 4 GiB",
        })?;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[
            tree_code(node.place.tree),
            node.place.level,
            u8::from(node.base.is_some()),
            node.width,
        ]);
        self.bytes.extend_from_slice(&node.place.index.to_le_bytes());
        self.bytes.extend_from_slice(&node.present.to_bytes());
        if let Some(base) = &node.base {
            self.bytes.extend_from_slice(&base.to_bytes());
            self.bytes.extend_from_slice(&node.emptied.to_bytes());
        }
        self.bytes.extend_from_slice(&node.values);
        let length = self.bytes.len() - start;
        // A reader takes a longer one for damage: whoever stored it would have lost it.
        if length > NODE_BYTES_MAX {
            self.bytes.truncate(start);
            return Err(DecodeError::Value {
                what: "map node",
                found: format!("{length} bytes"),
                expected: "within a node's limits",
            });
        }
        let crc = crc32c_append(self.salt, &self.bytes[start + 4..]);
        self.bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.push_index(node.place, offset, length);
        let chain = node.base.map_or(0, |base| base.chain + 1);
        Ok(NodeRef {
            checkpoint: self.id,
            epoch: self.epoch,
            offset,
            length,
            crc,
            lineage,
            chain,
        })
    }

    fn push_index(&mut self, place: NodePlace, offset: u32, length: u32) {
        self.index
            .extend_from_slice(&[tree_code(place.tree), place.level, 0, 0]);
        self.index.extend_from_slice(&length.to_le_bytes());
        self.index.extend_from_slice(&u64::from(offset).to_le_bytes());
        self.index.extend_from_slice(&place.index.to_le_bytes());
        self.index.extend_from_slice(&[0; 8]);
        self.nodes += 1;
    }

    /// Nodes so far.
    #[must_use]
    pub const fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The object's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let mut footer = [0; FOOTER_LEN];
        footer[0..4].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
        footer[4..8].copy_from_slice(&self.nodes.to_le_bytes());
        footer[8..12].copy_from_slice(&crc32c_append(self.salt, &self.index).to_le_bytes());
        let crc = crc32c(&footer[..12]);
        footer[12..16].copy_from_slice(&crc.to_le_bytes());
        self.bytes.extend_from_slice(&self.index);
        self.bytes.extend_from_slice(&footer);
        self.bytes
    }
}

/// The node that `bytes`, read from where `reference` points, store.
///
/// # Errors
/// Cut off, damaged, or not the node that the reference means.
pub fn decode_node(volume: VolumeId, reference: &NodeRef, bytes: &[u8]) -> Result<NodeRecord, DecodeError> {
    const WHAT: &str = "map node";
    let need = reference.length as usize;
    if bytes.len() != need || need < NODE_HEADER_LEN {
        return Err(DecodeError::Short {
            what: WHAT,
            have: bytes.len(),
            need: need.max(NODE_HEADER_LEN),
        });
    }
    let crc = crc32c_append(salt(volume, reference.checkpoint, reference.epoch), &bytes[4..]);
    check_crc(WHAT, u32_at(bytes, 0), crc)?;
    check_crc(WHAT, crc, reference.crc)?;
    let tree = match bytes[4] {
        0 => TreeKind::Map,
        1 => TreeKind::Scos,
        other => {
            return Err(DecodeError::Value {
                what: "map node tree",
                found: other.to_string(),
                expected: "0 or 1",
            });
        }
    };
    let place = NodePlace {
        tree,
        level: bytes[5],
        index: u64_at(bytes, 8),
    };
    let width = bytes[7];
    let present = Bitmap::from_bytes(&bytes[16..NODE_HEADER_LEN]);
    let (base, emptied, values_at) = match bytes[6] {
        0 => (None, Bitmap::EMPTY, NODE_HEADER_LEN),
        _ => {
            let at = NODE_HEADER_LEN + NODE_REF_LEN;
            let stored = bytes
                .get(NODE_HEADER_LEN..at)
                .and_then(|b| b.first_chunk::<NODE_REF_LEN>());
            let emptied = bytes.get(at..at + BITMAP_LEN);
            let (Some(stored), Some(emptied)) = (stored, emptied) else {
                return Err(DecodeError::Short {
                    what: WHAT,
                    have: bytes.len(),
                    need: at + BITMAP_LEN,
                });
            };
            (
                Some(NodeRef::from_bytes(stored)?),
                Bitmap::from_bytes(emptied),
                at + BITMAP_LEN,
            )
        }
    };
    let need = values_at + present.count() * usize::from(width);
    if bytes.len() != need {
        return Err(DecodeError::Short {
            what: WHAT,
            have: bytes.len(),
            need,
        });
    }
    Ok(NodeRecord {
        place,
        base,
        present,
        emptied,
        width,
        values: bytes[values_at..].to_vec(),
    })
}

/// The nodes that a whole checkpoint object says it holds: for inspection and checks.
///
/// # Errors
/// Cut off, no checkpoint of this volume, or damaged.
pub fn decode_index(volume: VolumeId, object: &[u8]) -> Result<Vec<(NodePlace, u32, u32)>, DecodeError> {
    const WHAT: &str = "checkpoint";
    let short = |need| DecodeError::Short {
        what: WHAT,
        have: object.len(),
        need,
    };
    let header = object.first_chunk::<HEADER_LEN>().ok_or(short(HEADER_LEN))?;
    let footer = object.last_chunk::<FOOTER_LEN>().ok_or(short(FOOTER_LEN))?;
    for (found, expected) in [(u32_at(header, 0), MAGIC), (u32_at(footer, 0), FOOTER_MAGIC)] {
        check_magic(WHAT, found, expected)?;
    }
    for (found, expected) in [
        (u32_at(header, 44), crc32c(&header[..44])),
        (u32_at(footer, 12), crc32c(&footer[..12])),
    ] {
        check_crc(WHAT, found, expected)?;
    }
    let nodes = u32_at(footer, 4) as usize;
    let end = object.len() - FOOTER_LEN;
    let start = nodes
        .checked_mul(INDEX_ENTRY_LEN)
        .and_then(|len| end.checked_sub(len))
        .filter(|start| *start >= HEADER_LEN)
        .ok_or(short(HEADER_LEN + FOOTER_LEN))?;
    let index = &object[start..end];
    let salt = salt(
        volume,
        CheckpointId(u64_at(header, 24)),
        Epoch(u64_at(header, 32)),
    );
    check_crc("checkpoint index", u32_at(footer, 8), crc32c_append(salt, index))?;
    Ok(index
        .chunks_exact(INDEX_ENTRY_LEN)
        .map(|entry| {
            let tree = if entry[0] == 0 {
                TreeKind::Map
            } else {
                TreeKind::Scos
            };
            let place = NodePlace {
                tree,
                level: entry[1],
                index: u64_at(entry, 16),
            };
            (place, u32_at(entry, 8), u32_at(entry, 4))
        })
        .collect())
}

const fn tree_code(tree: TreeKind) -> u8 {
    match tree {
        TreeKind::Map => 0,
        TreeKind::Scos => 1,
    }
}

fn salt(volume: VolumeId, id: CheckpointId, epoch: Epoch) -> u32 {
    !sco_salt(volume, ScoId(id.0), epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with all slots, their values of this length; a delta if `base`.
    fn full(width: usize, base: bool) -> NodeRecord {
        let base = base.then_some(NodeRef {
            checkpoint: CheckpointId(1),
            epoch: Epoch(1),
            offset: 48,
            length: 100,
            crc: 7,
            lineage: LineageIndex(0),
            chain: 0,
        });
        let mut present = Bitmap::EMPTY;
        (0..FANOUT).for_each(|slot| present.set(slot));
        NodeRecord {
            place: NodePlace {
                tree: TreeKind::Map,
                level: 1,
                index: 0,
            },
            base,
            present,
            emptied: Bitmap::EMPTY,
            width: u8::try_from(width).unwrap(),
            values: vec![9; FANOUT * width],
        }
    }

    #[test]
    fn the_largest_node_is_read_as_it_was_stored() {
        let volume = VolumeId([1; 16]);
        let mut builder = CheckpointBuilder::new(volume, CheckpointId(2), Epoch(1));
        for base in [false, true] {
            let node = full(NODE_VALUE_LEN_MAX, base);
            let reference = builder.push(&node, LineageIndex(0)).unwrap();
            // Its reference is stored in its parent, or in the manifest.
            assert_eq!(NodeRef::from_bytes(&reference.to_bytes()).unwrap(), reference);
        }
        let largest = full(NODE_VALUE_LEN_MAX, true);
        let reference = builder.push(&largest, LineageIndex(0)).unwrap();
        assert_eq!(reference.length as usize, NODE_BYTES_MAX);
        let longer = full(NODE_VALUE_LEN_MAX + 1, true);
        assert!(
            builder.push(&longer, LineageIndex(0)).is_err(),
            "nobody could read it"
        );
        let object = builder.finish();
        let at = reference.offset as usize;
        let stored = &object[at..at + reference.length as usize];
        assert_eq!(decode_node(volume, &reference, stored).unwrap(), largest);
    }
}
