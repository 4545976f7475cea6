//! A map: which slot has which part of a volume; and the nodes of a checkpoint object.
//!
//! Keeps: nothing.
//! Order: addresses ascend; nodes as the index has them.
//! Crash: nothing.
//! Knows nodes by the engine's own reading of them.

use std::ops::Range;

use futures_util::future::LocalBoxFuture;
use sconce_schemas::checkpoint::{NodePlace, NodeRef, TreeKind, decode_index, decode_node};
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{Manifest, TreeRoot};
use sconce_schemas::{CLUSTER_BYTES, LineageIndex, ObjectName, ScoId, VolumeId};
use sconce_volume::stored::{LEAF_NUMBERS, StoredNode, epoch_of_sco, map_node};
use serde::Serialize;

use super::{ShowError, content};
use crate::store::Store;
use crate::subject::Subject;
use crate::walk::tree_name;

/// A part of a volume's map.
#[derive(Debug, Clone, Serialize)]
pub struct MapView {
    /// The volume.
    pub volume: String,
    /// Its path.
    pub path: String,
    /// `head`, or the snapshot's name.
    pub of: String,
    /// What is mapped; what is not here is a hole.
    pub extents: Vec<ExtentView>,
    /// Nodes that could not be read: what they cover is missing.
    pub problems: Vec<String>,
}

/// A run of clusters that lie one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExtentView {
    /// Byte offset in the volume.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// `data`, or `zeros` (allocated, without content).
    pub kind: &'static str,
    /// The volume whose SCO it is; null for zeros.
    pub volume: Option<String>,
    /// The SCO.
    pub sco: Option<u64>,
    /// Its ownership.
    pub epoch: Option<u64>,
    /// The first slot.
    pub slot: Option<u16>,
    /// CRC32C of each cluster.
    pub crcs: Vec<u32>,
}

/// A checkpoint object.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointView {
    /// The object.
    pub object: String,
    /// Its length.
    pub length_bytes: usize,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
}

/// A node in a checkpoint object.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// `map` or `sco_table`.
    pub tree: &'static str,
    /// Height above the leaves.
    pub level: u8,
    /// Position in the level.
    pub index: u64,
    /// Where in the object it is.
    pub offset: u32,
    /// Its length.
    pub length: u32,
    /// Slots whose values it has.
    pub values: Option<usize>,
    /// The checkpoint whose node it is a delta on; null for a whole node.
    pub delta_on: Option<u64>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

struct Reading<'a> {
    store: &'a Store,
    /// The volumes of the lineage.
    subjects: Vec<Option<Subject>>,
    manifest: &'a Manifest,
    range: Range<u64>,
    extents: Vec<ExtentView>,
    problems: Vec<String>,
}

/// A volume's map, or a snapshot's, from one byte offset to another.
///
/// # Errors
/// There is no manifest, or no such snapshot in it.
pub async fn map(
    store: &Store,
    subject: &Subject,
    snapshot: Option<&str>,
    range: Range<u64>,
) -> Result<MapView, ShowError> {
    let Some(manifest) = &subject.manifest else {
        let why = subject.problems.list.last().map(|problem| problem.text.clone());
        return Err(ShowError::Object(why.unwrap_or_default()));
    };
    let root = match snapshot {
        None => manifest.map,
        Some(name) => snapshot_root(manifest, name)?,
    };
    let mut subjects = Vec::new();
    for volume in &manifest.lineage {
        subjects.push(Some(Subject::open(store, *volume).await?));
    }
    let mut reading = Reading {
        store,
        subjects,
        manifest,
        range: range.start / CLUSTER_BYTES..range.end.div_ceil(CLUSTER_BYTES),
        extents: Vec::new(),
        problems: Vec::new(),
    };
    if let Some(node) = root.node {
        let place = NodePlace {
            tree: TreeKind::Map,
            level: root.height,
            index: 0,
        };
        reading.node(place, node).await;
    }
    Ok(MapView {
        volume: manifest.volume.to_string(),
        path: manifest.path.clone(),
        of: snapshot.unwrap_or("head").to_owned(),
        extents: reading.extents,
        problems: reading.problems,
    })
}

fn snapshot_root(manifest: &Manifest, name: &str) -> Result<TreeRoot, ShowError> {
    let mut kept = manifest
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.removed.is_none() && !snapshot.hidden);
    let found = kept.find(|snapshot| snapshot.label.name == name);
    found.map(|snapshot| snapshot.map).ok_or_else(|| {
        let text = format!(
            "volume {}: its newest manifest has no snapshot {name:?}; `sconce inspect manifest` shows those that it has",
            manifest.path
        );
        ShowError::Object(text)
    })
}

impl Reading<'_> {
    fn node(&mut self, place: NodePlace, reference: NodeRef) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            let width = LEAF_NUMBERS.saturating_pow(u32::from(place.level) + 1);
            let first = place.index.saturating_mul(width);
            if first >= self.range.end || first.saturating_add(width) <= self.range.start {
                return;
            }
            match self.load(place, reference).await {
                Err(problem) => self.problems.push(format!(
                    "map node {} of level {} (addresses from {} on): {problem}",
                    place.index,
                    place.level,
                    first.saturating_mul(CLUSTER_BYTES)
                )),
                Ok(StoredNode::Leaf(values)) => {
                    for (number, location) in values {
                        if self.range.contains(&number) {
                            self.add(number, location);
                        }
                    }
                }
                Ok(StoredNode::Inner(children)) => {
                    for child in children {
                        self.node(child.place, child.reference).await;
                    }
                }
            }
        })
    }

    async fn load(&self, place: NodePlace, reference: NodeRef) -> Result<StoredNode<Location>, String> {
        let mut records = Vec::new();
        let mut next = Some(reference);
        while let Some(at) = next {
            let number = usize::from(at.lineage.0);
            let subject = self.subjects.get(number).and_then(Option::as_ref);
            let subject = subject.ok_or_else(|| format!("the lineage has no volume {number}"))?;
            let name = ObjectName::Map {
                volume: subject.id,
                id: at.checkpoint,
                epoch: at.epoch,
            };
            let copies = subject
                .maps
                .get(&name)
                .ok_or_else(|| format!("no back end has object {name}"))?;
            let (offset, length) = (u64::from(at.offset), u64::from(at.length));
            let answers = self.store.read(name, copies, offset, length).await;
            let bytes = answers.good.ok_or_else(|| {
                let why = answers.bad.first().map(|bad| bad.error.to_string());
                format!("object {name}: {}", why.unwrap_or_default())
            })?;
            let record =
                decode_node(subject.id, &at, &bytes).map_err(|error| format!("object {name}: {error}"))?;
            let chain = record.base.map_or(0, |base| base.chain.saturating_add(1));
            if record.place != place || chain != at.chain {
                return Err(format!("object {name}: another node is where it should be"));
            }
            next = record.base;
            records.push(record);
        }
        map_node(place, reference, &records).map_err(|error| error.to_string())
    }

    fn add(&mut self, number: u64, location: Location) {
        let address = number.saturating_mul(CLUSTER_BYTES);
        let is_zeros = location.reads_zeros();
        let (volume, epoch) = match is_zeros {
            true => (None, None),
            false => self.origin(location.lineage(), location.sco()),
        };
        let extent = ExtentView {
            address,
            length: CLUSTER_BYTES,
            kind: if is_zeros { "zeros" } else { "data" },
            volume: volume.map(|volume| volume.to_string()),
            sco: (!is_zeros).then(|| location.sco().0),
            epoch,
            slot: (!is_zeros).then(|| location.slot().0),
            crcs: if is_zeros {
                Vec::new()
            } else {
                vec![location.crc()]
            },
        };
        match self.extents.last_mut() {
            Some(last) if follows(last, &extent) => {
                last.length += CLUSTER_BYTES;
                last.crcs.extend(extent.crcs);
            }
            _ => self.extents.push(extent),
        }
    }

    fn origin(&self, lineage: LineageIndex, sco: ScoId) -> (Option<VolumeId>, Option<u64>) {
        let number = usize::from(lineage.0);
        let epochs = self
            .manifest
            .ancestor_epochs
            .get(number)
            .unwrap_or(&self.manifest.epochs);
        let epoch = epoch_of_sco(epochs, sco).map(|epoch| epoch.0);
        (self.manifest.lineage.get(number).copied(), epoch)
    }
}

fn follows(last: &ExtentView, next: &ExtentView) -> bool {
    let clusters = last.length / CLUSTER_BYTES;
    let slot = last.slot.map(|slot| u64::from(slot) + clusters);
    last.address.checked_add(last.length) == Some(next.address)
        && last.kind == next.kind
        && (last.volume.as_ref(), last.sco, last.epoch) == (next.volume.as_ref(), next.sco, next.epoch)
        && slot == next.slot.map(u64::from)
}

/// The nodes of a checkpoint object.
///
/// # Errors
/// It is not there, or not readable.
pub async fn checkpoint(
    store: &Store,
    subject: &Subject,
    name: ObjectName,
) -> Result<CheckpointView, ShowError> {
    let object = content(store, subject, name).await?;
    let index = decode_index(subject.id, &object)
        .map_err(|error| ShowError::Object(format!("object {name}: {error}")))?;
    let ObjectName::Map { id, epoch, .. } = name else {
        return Err(ShowError::Object(format!("object {name} is no checkpoint")));
    };
    let nodes = index.into_iter().map(|(place, offset, length)| {
        let (from, len) = (offset as usize, length as usize);
        let bytes = from
            .checked_add(len)
            .and_then(|end| object.get(from..end))
            .unwrap_or_default();
        let crc = bytes
            .first_chunk::<4>()
            .map_or(0, |word| u32::from_le_bytes(*word));
        let reference = NodeRef {
            checkpoint: id,
            epoch,
            offset,
            length,
            crc,
            lineage: LineageIndex(0),
            chain: 0,
        };
        let record = decode_node(subject.id, &reference, bytes);
        let problem = match &record {
            Ok(record) if record.place != place => Some("the index says another place".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        NodeView {
            tree: tree_name(place.tree),
            level: place.level,
            index: place.index,
            offset,
            length,
            values: record.as_ref().ok().map(|record| record.present.count()),
            delta_on: record
                .as_ref()
                .ok()
                .and_then(|record| Some(record.base?.checkpoint.0)),
            problem,
        }
    });
    Ok(CheckpointView {
        object: name.to_string(),
        length_bytes: object.len(),
        nodes: nodes.collect(),
    })
}
