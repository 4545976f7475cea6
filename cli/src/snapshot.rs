//! Keeps: `sconce snapshot …`, `sconce clone …`, `sconce template …`.
//! Order: a snapshot is marked before it is removed, so that nobody clones it meanwhile; then its owner is told.
//! Crash: a command that was cut short can be given again.
//! Knows no back end.

use std::time::Duration;

use anyhow::{Result, bail};
use sconce_fs_router::names::{NewEntry, PoolPath, Resolved, Snapshot as Cloned, SnapshotPath};
use sconce_fs_router::peers::PeerError;
use sconce_schemas::wire::volume::{SnapshotStatus, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{SnapshotId, VolumeId};
use serde::Serialize;

use crate::args::{CloneFrom, Format, Rollback, Snapshot, SnapshotCreate, Template};
use crate::cluster::{Cluster, explained};
use crate::view::{SnapshotView, print, snapshot_lines, snapshot_table, time_shown};
use crate::volume;

/// How long an owner is given to answer: it may be starting.
pub(crate) const OWNER_DEADLINE: Duration = Duration::from_secs(30);

fn view(volume: &PoolPath, status: SnapshotStatus) -> SnapshotView {
    SnapshotView {
        path: format!("{volume}@{}", status.name),
        name: status.name,
        id: status.id.to_string(),
        created: time_shown(status.created_us),
        size_bytes: status.size.bytes(),
        allocated_bytes: status.allocated.0,
        synced: status.synced,
        metadata: status.metadata,
    }
}

/// What a command did.
#[derive(Debug, Serialize)]
struct DoneView {
    /// The path that it was done to.
    path: String,
    /// What was done.
    action: &'static str,
    /// The snapshot that holds the state before, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_as: Option<String>,
}

/// Runs `sconce snapshot …`.
///
/// # Errors
/// The command could not be done; the text says what to do next.
pub async fn run(cluster: &Cluster, command: Snapshot, format: Format) -> Result<()> {
    match command {
        Snapshot::Create(create) => self::create(cluster, create, format).await,
        Snapshot::List { path } => list(cluster, &path, format).await,
        Snapshot::Show { path } => show(cluster, &path, format).await,
        Snapshot::Delete { path } => delete(cluster, &path, format).await,
        Snapshot::Rollback(rollback) => self::rollback(cluster, rollback, format).await,
    }
}

async fn create(cluster: &Cluster, create: SnapshotCreate, format: Format) -> Result<()> {
    let SnapshotCreate {
        path,
        metadata,
        wait_synced,
    } = create;
    let file = cluster.resolve(&path.volume).await?;
    let take = VolumeControl::TakeSnapshot {
        volume: file.volume,
        id: new_id(),
        name: path.name.clone(),
        metadata: metadata.into_iter().collect(),
    };
    cluster.owners.call(file.volume, take, OWNER_DEADLINE).await?;
    if wait_synced {
        volume::store(cluster, &file).await?;
    }
    show(cluster, &path, format).await
}

async fn list(cluster: &Cluster, path: &PoolPath, format: Format) -> Result<()> {
    let file = cluster.resolve(path).await?;
    let snapshots = snapshots(cluster, &file).await?;
    let views: Vec<SnapshotView> = snapshots.into_iter().map(|status| view(path, status)).collect();
    print(format, &views, |views| snapshot_table(views))
}

async fn show(cluster: &Cluster, path: &SnapshotPath, format: Format) -> Result<()> {
    let file = cluster.resolve(&path.volume).await?;
    let found = find(cluster, &file, path).await?;
    print(format, &view(&path.volume, found), snapshot_lines)
}

async fn delete(cluster: &Cluster, path: &SnapshotPath, format: Format) -> Result<()> {
    let file = cluster.resolve(&path.volume).await?;
    let found = find(cluster, &file, path).await?;
    remove(cluster, file.volume, &found).await?;
    done(path.to_string(), "deleted", None, format)
}

/// Removes a snapshot.
///
/// # Errors
/// It has clones, or its owner does not answer.
pub(crate) async fn remove(cluster: &Cluster, volume: VolumeId, found: &SnapshotStatus) -> Result<()> {
    let id = found.id;
    cluster.names.begin_removal(volume, id).await.map_err(explained)?;
    let remove = VolumeControl::RemoveSnapshot {
        volume,
        name: found.name.clone(),
    };
    let removed = match cluster.owners.call(volume, remove, OWNER_DEADLINE).await {
        // An earlier answer was lost, or another was faster: it is gone.
        Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {
            Ok(VolumeControlReply::Done)
        }
        answered => answered,
    };
    if is_decided(&removed) {
        cluster.names.end_removal(volume, id).await.map_err(explained)?;
    }
    removed?;
    Ok(())
}

/// Whether the owner has said that a request is done, or that it is not: otherwise it may still do it.
fn is_decided(answer: &Result<VolumeControlReply, PeerError>) -> bool {
    match answer {
        Ok(_) => true,
        Err(PeerError::Refused(refusal)) => matches!(refusal.remedy, Remedy::Reject | Remedy::Damaged),
        Err(_) => false,
    }
}

async fn rollback(cluster: &Cluster, rollback: Rollback, format: Format) -> Result<()> {
    let Rollback {
        path,
        keep_as,
        discard,
    } = rollback;
    let file = cluster.resolve(&path.volume).await?;
    find(cluster, &file, &path).await?;
    let id = new_id();
    let keep = match (discard, keep_as) {
        (true, _) => None,
        (false, Some(name)) => Some(name),
        (false, None) => Some(format!("before-rollback-{id}")),
    };
    let request = VolumeControl::RollBack {
        volume: file.volume,
        to: path.name.clone(),
        id,
        keep: keep.clone(),
    };
    cluster.owners.call(file.volume, request, OWNER_DEADLINE).await?;
    let kept = keep.map(|name| format!("{}@{name}", path.volume));
    done(path.volume.to_string(), "rolled back", kept, format)
}

/// Runs `sconce clone`.
///
/// # Errors
/// There is no such snapshot, or the path is taken.
pub async fn clone(cluster: &Cluster, from: CloneFrom, format: Format) -> Result<()> {
    let parent = cluster.resolve(&from.path.volume).await?;
    let found = find(cluster, &parent, &from.path).await?;
    let snapshot = Cloned {
        volume: parent.volume,
        id: found.id,
        size: found.size,
    };
    let clone = cluster
        .names
        .create_clone(snapshot, &from.new, NewEntry::FILE)
        .await
        .map_err(explained)?;
    volume::show(cluster, &clone, format).await
}

/// Runs `sconce template …`.
///
/// # Errors
/// There is no such volume, or its owner does not answer.
pub async fn template(cluster: &Cluster, command: Template, format: Format) -> Result<()> {
    let (path, read_only) = match command {
        Template::Set { path } => (path, true),
        Template::Unset { path } => (path, false),
    };
    let file = cluster.resolve(&path).await?;
    let request = VolumeControl::SetReadOnly {
        volume: file.volume,
        read_only,
    };
    cluster.owners.call(file.volume, request, OWNER_DEADLINE).await?;
    let action = if read_only {
        "is a template now"
    } else {
        "takes writes again"
    };
    done(path.to_string(), action, None, format)
}

pub(crate) async fn snapshots(cluster: &Cluster, file: &Resolved) -> Result<Vec<SnapshotStatus>> {
    let volume = file.volume;
    let list = VolumeControl::ListSnapshots { volume };
    match cluster.owners.call(volume, list, OWNER_DEADLINE).await? {
        VolumeControlReply::Snapshots { snapshots } => Ok(snapshots),
        _ => bail!(
            "the owner of {} answered something else than its snapshots",
            file.path
        ),
    }
}

pub(crate) async fn find(cluster: &Cluster, file: &Resolved, path: &SnapshotPath) -> Result<SnapshotStatus> {
    let snapshots = snapshots(cluster, file).await?;
    match snapshots.into_iter().find(|snapshot| snapshot.name == path.name) {
        Some(found) => Ok(found),
        None => bail!(
            "{path} does not exist\n`sconce snapshot list {}` shows the snapshots that there are",
            path.volume
        ),
    }
}

/// Random, and below what the engine keeps for itself.
pub(crate) fn new_id() -> SnapshotId {
    SnapshotId(sconce_runtime::Chance::from_os().u64() >> 1)
}

fn done(path: String, action: &'static str, kept_as: Option<String>, format: Format) -> Result<()> {
    let view = DoneView {
        path,
        action,
        kept_as,
    };
    print(format, &view, |view| {
        let kept = view.kept_as.as_ref();
        let kept = kept.map_or_else(String::new, |kept| format!("; the state before is {kept}"));
        format!("{} {}{kept}", view.path, view.action)
    })
}
