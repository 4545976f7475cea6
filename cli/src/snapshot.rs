//! Keeps: `sconce snapshot …`, `sconce clone …`, `sconce template …`.
//! Order: a snapshot is marked before it is removed, so that nobody clones it meanwhile; then its owner is told.
//! Crash: a command that was cut short can be given again.
//! Knows no back end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sconce_fs_router::names::{
    NamesError, NewEntry, PoolPath, Removal, Resolved, Snapshot as Cloned, SnapshotPath,
};
use sconce_fs_router::peers::PeerError;
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{SnapshotStatus, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use serde::Serialize;

use crate::args::{CloneFrom, Format, Moment, Rollback, Snapshot, SnapshotCreate, Template, parse_moment};
use crate::cluster::{Cluster, explained};
use crate::group;
use crate::view::{SnapshotView, print, snapshot_lines, snapshot_table, time_shown};
use crate::volume;

/// How long an owner is given to answer: it may be starting.
pub(crate) const OWNER_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn view(volume: &PoolPath, status: SnapshotStatus) -> SnapshotView {
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

/// How often a clone's snapshot is looked for again where others remove snapshots meanwhile.
const CLONE_TRIES: usize = 20;
/// How long a moment may take: a replay of a checkpoint's interval, behind others that were asked for before.
const MOMENT_DEADLINE: Duration = Duration::from_secs(600);

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
        Snapshot::Create(create) if create.group => group::create(cluster, create, format).await,
        Snapshot::Delete(delete) if delete.group => group::delete(cluster, &delete.paths, format).await,
        Snapshot::Create(create) => self::create(cluster, create, format).await,
        Snapshot::List { path } => list(cluster, &path, format).await,
        Snapshot::Show { path } => show(cluster, &path, format).await,
        Snapshot::Delete(paths) => delete(cluster, one(&paths.paths)?, format).await,
        Snapshot::Rollback(rollback) => self::rollback(cluster, rollback, format).await,
    }
}

async fn create(cluster: &Cluster, create: SnapshotCreate, format: Format) -> Result<()> {
    let SnapshotCreate {
        paths,
        metadata,
        wait_synced,
        at,
        ..
    } = create;
    let path = one(&paths)?;
    let file = cluster.resolve(&path.volume).await?;
    if let Some(at) = at {
        // What it is answered for is on the back ends.
        take_moment(cluster, &file, &path.name, at, metadata.into_iter().collect()).await?;
        return show(cluster, path, format).await;
    }
    let take = VolumeControl::TakeSnapshot {
        volume: file.volume,
        id: new_id(),
        name: path.name.clone(),
        metadata: metadata.into_iter().collect(),
    };
    ask(cluster, &file, take, &path).await?;
    if wait_synced {
        let stored = volume::store(cluster, &file).await;
        stored.with_context(|| format!("{path} was taken, and is not synced yet"))?;
    }
    show(cluster, path, format).await
}

/// The only one of what may be several where they are a group.
fn one(paths: &[SnapshotPath]) -> Result<&SnapshotPath> {
    match paths {
        [path] => Ok(path),
        _ => bail!(
            "{} paths are given\nadd --group if all of them are meant at one instant, or give the command for each",
            paths.len()
        ),
    }
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
    let id = find(cluster, &file, path).await?.id;
    remove(cluster, &file, path, id).await?;
    done(path.to_string(), "deleted", None, format)
}

/// Keeps a moment of a volume's history as a snapshot.
async fn take_moment(
    cluster: &Cluster,
    file: &Resolved,
    name: &str,
    Moment(time_us): Moment,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let take = VolumeControl::TakeMoment {
        volume: file.volume,
        id: new_id(),
        name: name.to_owned(),
        time_us,
        metadata,
    };
    let of = format!("{}@{name}", file.path);
    ask_within(cluster, file, take, of, MOMENT_DEADLINE).await?;
    Ok(())
}

/// The snapshot of this name, or else the moment that the name says, kept as a snapshot for what is done with it; and whether
/// it was made here. A second clone of a moment uses the snapshot of the first.
async fn find_or_take(
    cluster: &Cluster,
    file: &Resolved,
    path: &SnapshotPath,
    reason: &str,
) -> Result<(SnapshotStatus, bool)> {
    let Ok(at) = parse_moment(&path.name) else {
        return Ok((find(cluster, file, path).await?, false));
    };
    let known = snapshots(cluster, file).await?;
    let made = format!("at-{}", path.name);
    let is_it = |snapshot: &&SnapshotStatus| snapshot.name == path.name || snapshot.name == made;
    if let Some(found) = known.iter().find(is_it) {
        return Ok((found.clone(), false));
    }
    let metadata = [("made-for".to_owned(), reason.to_owned())].into();
    take_moment(cluster, file, &made, at, metadata).await?;
    let volume = path.volume.clone();
    let found = find(cluster, file, &SnapshotPath { volume, name: made }).await?;
    Ok((found, true))
}

/// Removes this snapshot, whatever has its name by now.
///
/// # Errors
/// It has clones, or its owner does not do it.
pub(crate) async fn remove(
    cluster: &Cluster,
    file: &Resolved,
    path: &SnapshotPath,
    id: SnapshotId,
) -> Result<()> {
    let begun = cluster.names.begin_removal(file.volume, id).await;
    remove_marked(cluster, file, path, begun.map_err(explained)?).await
}

/// Removes a snapshot whose removal was begun.
///
/// # Errors
/// Its owner refuses, or does not answer.
pub(crate) async fn remove_marked(
    cluster: &Cluster,
    file: &Resolved,
    path: &SnapshotPath,
    removal: Removal,
) -> Result<()> {
    let id = removal.snapshot;
    let remove = VolumeControl::RemoveSnapshot {
        volume: file.volume,
        name: path.name.clone(),
        id: Some(id),
    };
    match ask(cluster, file, remove, path).await {
        Ok(_) => {}
        // An earlier answer was lost, or another was faster: it is gone.
        Err(Asked::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {}
        Err(asked) => {
            if matches!(asked, Asked::Refused(_)) {
                cluster.names.withdraw_removal(removal).await.map_err(explained)?;
            }
            return Err(asked.into());
        }
    }
    let ended = cluster.names.end_removal(file.volume, id).await;
    ended.map_err(explained)
}

/// Why an owner did not do what was asked.
#[derive(Debug, thiserror::Error)]
enum Asked {
    /// It said that it will not.
    #[error("{0}")]
    Refused(Refusal),
    /// It may still do it.
    #[error("{0}")]
    Undecided(String),
}

/// Asks the owner for a change that concerns `of`; asking again is harmless.
async fn ask(
    cluster: &Cluster,
    file: &Resolved,
    control: VolumeControl,
    of: impl Display,
) -> Result<(), Asked> {
    ask_within(cluster, file, control, of, OWNER_DEADLINE).await
}

async fn ask_within(
    cluster: &Cluster,
    file: &Resolved,
    control: VolumeControl,
    of: impl Display,
    deadline: Duration,
) -> Result<(), Asked> {
    match cluster.owners.call(file.volume, control, deadline).await {
        Ok(_) => Ok(()),
        Err(PeerError::Refused(refusal)) if matches!(refusal.remedy, Remedy::Reject | Remedy::Damaged) => {
            let text = format!("{of}: {}", refusal.text);
            Err(Asked::Refused(Refusal { text, ..refusal }))
        }
        Err(PeerError::Names(NamesError::NotFound { .. })) => {
            let text = format!("{of}: the volume was deleted");
            Err(Asked::Refused(Refusal::reject(RefusalCode::NotFound, text)))
        }
        Err(error @ PeerError::Silent { .. }) => Err(Asked::Undecided(format!(
            "{of}: {error}\nwhether it was done is not known; `sconce snapshot list {}` tells once the owner answers",
            file.path
        ))),
        Err(error) => Err(Asked::Undecided(format!("{of}: {error}"))),
    }
}

async fn rollback(cluster: &Cluster, rollback: Rollback, format: Format) -> Result<()> {
    let Rollback {
        path,
        keep_as,
        discard,
    } = rollback;
    let file = cluster.resolve(&path.volume).await?;
    let (target, is_made) = find_or_take(cluster, &file, &path, "rollback").await?;
    let id = new_id();
    let before = SnapshotPath {
        volume: path.volume.clone(),
        name: keep_as.unwrap_or_else(|| format!("before-rollback-{id}")),
    };
    let request = VolumeControl::RollBack {
        volume: file.volume,
        to: target.name.clone(),
        id,
        // Kept also where it is not wanted, until the answer is here: by it the owner tells a request that was sent again
        // from another one, and a second rollback would take away what was written after the first.
        keep: Some(before.name.clone()),
    };
    match ask(cluster, &file, request, &path).await {
        Err(Asked::Refused(refusal)) if refusal.code == RefusalCode::ReadOnly => bail!(
            "{refusal}\na template is gone back in after `sconce template unset {}`",
            path.volume
        ),
        asked => asked?,
    }
    if discard {
        let removed = remove(cluster, &file, &before, id).await;
        removed.with_context(|| format!("{} was rolled back, and the state before is kept", path.volume))?;
    }
    if is_made {
        // It was only made to be gone back to.
        let made = SnapshotPath {
            volume: path.volume.clone(),
            name: target.name,
        };
        let removed = remove(cluster, &file, &made, target.id).await;
        removed.with_context(|| format!("{} was rolled back, and {made} stays", path.volume))?;
    }
    let kept = (!discard).then(|| before.to_string());
    done(path.volume.to_string(), "rolled back", kept, format)
}

/// Runs `sconce clone`.
///
/// # Errors
/// There is no such snapshot, or the path is taken.
pub async fn clone(cluster: &Cluster, from: CloneFrom, format: Format) -> Result<()> {
    let parent = cluster.resolve(&from.path.volume).await?;
    let mut tries = 0..CLONE_TRIES;
    let clone = loop {
        let removals = cluster.names.removals(parent.volume).await.map_err(explained)?;
        let (found, _) = find_or_take(cluster, &parent, &from.path, "clone").await?;
        let snapshot = Cloned {
            volume: parent.volume,
            id: found.id,
            size: found.size,
            removals,
        };
        let made = cluster.names.create_clone(snapshot, &from.new, NewEntry::FILE);
        match made.await {
            Err(NamesError::SnapshotsRemoved { .. }) if tries.next().is_some() => {}
            made => break made.map_err(explained)?,
        }
    };
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
    ask(cluster, &file, request, &path).await?;
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
