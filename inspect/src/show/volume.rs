//! Volumes and their manifests.
//!
//! Keeps: nothing.
//! Order: volumes by id, snapshots as they were taken.
//! Crash: nothing.
//! Knows no trees.

use std::collections::BTreeMap;

use sconce_schemas::checkpoint::NodeRef;
use sconce_schemas::manifest::{Manifest, SnapshotState, TreeRoot};
use sconce_schemas::records::EpochStart;
use sconce_schemas::{CLUSTER_BYTES, ObjectName};
use serde::Serialize;

use super::{ShowError, content, moment};
use crate::report::Problem;
use crate::store::{Copies, Store};
use crate::subject::Subject;

/// A volume on back ends.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeSummary {
    /// Its id.
    pub id: String,
    /// Its path when the manifest was written; null without a manifest.
    pub path: Option<String>,
    /// Its storage pool; null likewise.
    pub pool: Option<String>,
    /// The newest manifest; null likewise.
    pub manifest: Option<String>,
    /// Size of the volume.
    pub size_bytes: Option<u64>,
    /// Bytes of clusters that are mapped.
    pub allocated_bytes: Option<u64>,
    /// Whether it takes no writes.
    pub read_only: Option<bool>,
    /// Names of its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// Volumes that it reads from, the root ancestor first.
    pub ancestors: Vec<String>,
    /// Objects of each kind.
    pub objects: BTreeMap<&'static str, ObjectsView>,
    /// What is wrong with its manifests.
    pub problems: Vec<Problem>,
}

/// Objects of one kind.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ObjectsView {
    /// How many.
    pub count: u64,
    /// Bytes that they take together on one back end.
    pub bytes: u64,
    /// Those whose length cannot be read.
    pub unreadable: u64,
}

/// A manifest.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestView {
    /// Its object.
    pub object: String,
    /// The volume.
    pub volume: String,
    /// Path of the volume when it was written.
    pub path: String,
    /// The storage pool.
    pub pool: String,
    /// Its number.
    pub seq: u64,
    /// The ownership that wrote it.
    pub epoch: u64,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Data bytes of a SCO.
    pub sco_size_bytes: u64,
    /// Whether the volume takes no writes.
    pub read_only: bool,
    /// Bytes of clusters that are mapped.
    pub allocated_bytes: u64,
    /// Root of the map.
    pub map: RootView,
    /// Root of the SCO table.
    pub sco_table: RootView,
    /// The last batch that it covers.
    pub covered_batch: u64,
    /// The last SCO that it covers.
    pub covered_sco: u64,
    /// The newest checkpoint that it refers to.
    pub checkpoint: u64,
    /// Volumes of the lineage with their ownerships (first SCO of each epoch), the volume itself the last.
    pub lineage: Vec<LineageView>,
    /// Sessions that it knows.
    pub sessions: usize,
    /// The snapshot that the volume comes from.
    pub parent: Option<String>,
    /// What the volume, a clone, began as.
    pub origin: Option<OriginView>,
    /// The snapshots, removed ones that are not counted yet among them.
    pub snapshots: Vec<SnapshotView>,
    /// Objects that wait to be deleted.
    pub condemned: Vec<String>,
}

/// A volume of a lineage.
#[derive(Debug, Clone, Serialize)]
pub struct LineageView {
    /// The volume.
    pub volume: String,
    /// Its ownerships.
    pub epochs: Vec<EpochView>,
}

/// An ownership.
#[derive(Debug, Clone, Serialize)]
pub struct EpochView {
    /// Its number.
    pub epoch: u64,
    /// The first SCO that it wrote.
    pub first_sco: u64,
}

/// What a clone began as.
#[derive(Debug, Clone, Serialize)]
pub struct OriginView {
    /// The parent.
    pub volume: String,
    /// Its snapshot.
    pub snapshot: String,
}

/// Root of a tree.
#[derive(Debug, Clone, Serialize)]
pub struct RootView {
    /// Levels above the leaves.
    pub height: u8,
    /// The checkpoint's number; null where the tree is empty.
    pub checkpoint: Option<u64>,
    /// That checkpoint's object.
    pub object: Option<String>,
    /// Where in it the root node is.
    pub offset: Option<u32>,
    /// Its length.
    pub length: Option<u32>,
    /// Deltas until its whole record.
    pub deltas: Option<u8>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created: String,
    /// `kept`, `hidden` (removed, and still needed), `removed` (not counted yet).
    pub state: &'static str,
    /// Size of the volume then.
    pub size_bytes: u64,
    /// Bytes of clusters that were mapped then.
    pub allocated_bytes: u64,
    /// Its place in the log: the SCO.
    pub at_sco: u64,
    /// Slots of that SCO before it.
    pub at_slots: u16,
    /// The snapshot that it comes from.
    pub parent: Option<String>,
    /// Its map.
    pub map: RootView,
    /// What was written down with it.
    pub metadata: BTreeMap<String, String>,
}

/// All volumes.
///
/// # Errors
/// A back end cannot be listed.
pub async fn volumes(store: &Store) -> Result<Vec<VolumeSummary>, ShowError> {
    let mut found = Vec::new();
    for id in store.volumes().await? {
        let subject = Subject::open(store, id).await?;
        found.push(volume(store, &subject).await);
    }
    Ok(found)
}

/// One volume.
pub async fn volume(store: &Store, subject: &Subject) -> VolumeSummary {
    let manifest = subject.manifest.as_ref();
    let mut objects = BTreeMap::new();
    for (kind, listing) in [
        ("manifest", &subject.manifests),
        ("map", &subject.maps),
        ("sco", &subject.scos),
    ] {
        objects.insert(kind, count(store, listing).await);
    }
    let lineage = manifest.map_or(&[][..], |manifest| &manifest.lineage);
    VolumeSummary {
        id: subject.id.to_string(),
        path: manifest.map(|manifest| manifest.path.clone()),
        pool: manifest.map(|manifest| manifest.pool.clone()),
        manifest: manifest.map(|manifest| name_of(manifest).to_string()),
        size_bytes: manifest.map(|manifest| manifest.size.bytes()),
        allocated_bytes: manifest.map(|manifest| manifest.allocated_clusters.saturating_mul(CLUSTER_BYTES)),
        read_only: manifest.map(|manifest| manifest.read_only),
        snapshots: manifest
            .iter()
            .flat_map(|manifest| &manifest.snapshots)
            .filter(|snapshot| snapshot.removed.is_none() && !snapshot.hidden)
            .map(|snapshot| snapshot.label.name.clone())
            .collect(),
        ancestors: lineage
            .iter()
            .filter(|volume| **volume != subject.id)
            .map(ToString::to_string)
            .collect(),
        objects,
        problems: subject.problems.list.clone(),
    }
}

async fn count(store: &Store, listing: &Copies) -> ObjectsView {
    let mut view = ObjectsView::default();
    for (name, copies) in listing {
        view.count += 1;
        match store.length(*name, copies).await.good {
            Some(length) => view.bytes += length,
            None => view.unreadable += 1,
        }
    }
    view
}

/// A manifest: the newest of a volume, or the one that is named.
///
/// # Errors
/// It is not there, or not readable.
pub async fn manifest(
    store: &Store,
    subject: &Subject,
    named: Option<ObjectName>,
) -> Result<ManifestView, ShowError> {
    let read;
    let manifest = match (named, &subject.manifest) {
        (Some(name), _) => {
            let bytes = content(store, subject, name).await?;
            read = Manifest::from_bytes(&bytes)
                .map_err(|error| ShowError::Object(format!("object {name}: {error}")))?;
            &read
        }
        (None, Some(manifest)) => manifest,
        (None, None) => {
            let why = subject.problems.list.last().map(|problem| problem.text.clone());
            return Err(ShowError::Object(why.unwrap_or_default()));
        }
    };
    Ok(view(manifest))
}

fn name_of(manifest: &Manifest) -> ObjectName {
    ObjectName::Manifest {
        volume: manifest.volume,
        seq: manifest.seq,
        epoch: manifest.epoch,
    }
}

fn view(manifest: &Manifest) -> ManifestView {
    let epochs = manifest
        .ancestor_epochs
        .iter()
        .map(Vec::as_slice)
        .chain([manifest.epochs.as_slice()]);
    let condemned = manifest.condemned.iter().map(|condemned| {
        let name = ObjectName::Sco {
            volume: manifest.volume,
            id: condemned.sco,
            epoch: condemned.epoch,
            version: condemned.version,
        };
        name.to_string()
    });
    ManifestView {
        object: name_of(manifest).to_string(),
        volume: manifest.volume.to_string(),
        path: manifest.path.clone(),
        pool: manifest.pool.clone(),
        seq: manifest.seq.0,
        epoch: manifest.epoch.0,
        size_bytes: manifest.size.bytes(),
        sco_size_bytes: u64::from(manifest.sco_size.slots()) * CLUSTER_BYTES,
        read_only: manifest.read_only,
        allocated_bytes: manifest.allocated_clusters.saturating_mul(CLUSTER_BYTES),
        map: root(manifest, manifest.map),
        sco_table: root(manifest, manifest.scos),
        covered_batch: manifest.covered.0,
        covered_sco: manifest.covered_sco.0,
        checkpoint: manifest.checkpoint.0,
        lineage: manifest
            .lineage
            .iter()
            .zip(epochs)
            .map(|(volume, epochs)| LineageView {
                volume: volume.to_string(),
                epochs: epochs.iter().map(epoch).collect(),
            })
            .collect(),
        sessions: manifest.sessions.len(),
        parent: manifest.parent.map(|parent| parent.to_string()),
        origin: manifest.origin.map(|origin| OriginView {
            volume: origin.volume.to_string(),
            snapshot: origin.snapshot.to_string(),
        }),
        snapshots: manifest
            .snapshots
            .iter()
            .map(|snapshot| snapshot_view(manifest, snapshot))
            .collect(),
        condemned: condemned.collect(),
    }
}

fn epoch(start: &EpochStart) -> EpochView {
    EpochView {
        epoch: start.epoch.0,
        first_sco: start.first_sco.0,
    }
}

fn snapshot_view(manifest: &Manifest, snapshot: &SnapshotState) -> SnapshotView {
    let state = match (&snapshot.removed, snapshot.hidden) {
        (Some(_), _) => "removed",
        (None, true) => "hidden",
        (None, false) => "kept",
    };
    SnapshotView {
        id: snapshot.label.id.to_string(),
        name: snapshot.label.name.clone(),
        created: moment(snapshot.label.created_us),
        state,
        size_bytes: snapshot.size.bytes(),
        allocated_bytes: snapshot.allocated_clusters.saturating_mul(CLUSTER_BYTES),
        at_sco: snapshot.at.sco.0,
        at_slots: snapshot.at.slots,
        parent: snapshot.parent.map(|parent| parent.to_string()),
        map: root(manifest, snapshot.map),
        metadata: snapshot.label.metadata.clone(),
    }
}

fn root(manifest: &Manifest, root: TreeRoot) -> RootView {
    let object = |node: NodeRef| {
        let volume = manifest.lineage.get(usize::from(node.lineage.0))?;
        let name = ObjectName::Map {
            volume: *volume,
            id: node.checkpoint,
            epoch: node.epoch,
        };
        Some(name.to_string())
    };
    RootView {
        height: root.height,
        checkpoint: root.node.map(|node| node.checkpoint.0),
        object: root.node.and_then(object),
        offset: root.node.map(|node| node.offset),
        length: root.node.map(|node| node.length),
        deltas: root.node.map(|node| node.chain),
    }
}
