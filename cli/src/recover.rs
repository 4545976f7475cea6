//! Keeps: `sconce recover`: names and volume records written again from the newest manifests on the back ends.
//! Order: all manifests are read before anything is written; a clone is written before what it came from; a volume's name
//! and record are one commit.
//! Crash: what was recovered is there; running it again goes on with the rest.
//! Knows no trees: the volume's owner reads those when it takes the volume over.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use sconce_fs_router::names::{NamesError, NewEntry, PoolPath};
use sconce_fs_router::peers::PeerError;
use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, Manifest};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{ManifestRef, VolumeRecord};
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply};
use sconce_schemas::{NodeName, ObjectName, VolumeId};
use tokio::time::Instant;

use crate::args::{Format, Recover};
use crate::cluster::{Cluster, explained};
use crate::view::{RecoveredView, print, recovered_table};

/// How long a storage-router is given for one answer: a listing over a slow back end takes a while.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// Names in one answer.
const LIST_MAX: u32 = 1000;
/// Where volumes go whose path is not one.
const LOST: &str = "/lost+found";

/// Runs `sconce recover`.
///
/// # Errors
/// The registry or the storage-routers do not answer; volumes that cannot be recovered are shown first.
pub async fn run(cluster: &Cluster, recover: &Recover, format: Format) -> Result<()> {
    let mut pools: Vec<String> = cluster
        .names
        .pools()
        .await
        .map_err(explained)?
        .into_iter()
        .map(|pool| pool.name)
        .collect();
    if let Some(wanted) = &recover.pool {
        pools.retain(|pool| pool == wanted);
        if pools.is_empty() {
            bail!("there is no storage pool {wanted}; `sconce status` shows the pools");
        }
    }
    if pools.is_empty() {
        bail!(
            "the registry knows no storage pool: storage-routers write theirs when they start; are they running?"
        );
    }
    let mut found = Vec::new();
    let cut_short = recover_all(cluster, &pools, recover.dry_run, &mut found).await;
    // What was done is shown, however it ended.
    let mut found: Vec<RecoveredView> = found.into_iter().map(|found| found.view).collect();
    found.sort_by(|one, other| (&one.pool, &one.id).cmp(&(&other.pool, &other.id)));
    print(format, &found, |found| recovered_table(found))?;
    cut_short?;
    let failed = found.iter().filter(|volume| volume.action == FAILED).count();
    if failed > 0 {
        bail!(
            "{failed} of {} volumes could not be recovered; where one is a clone, what it needs of its parent is not kept \
             from being deleted: delete nothing until it is",
            found.len()
        );
    }
    Ok(())
}

/// The action of a volume that was not recovered, or not yet.
const FAILED: &str = "failed";

/// A volume on the back ends.
struct Found {
    view: RecoveredView,
    /// What is to be written of it, where the registry does not know it.
    new: Option<New>,
}

/// A volume that is to be written.
struct New {
    path: PoolPath,
    pool: String,
    /// Without its snapshots: they may be megabytes, and the volume's owner reads them itself.
    manifest: Manifest,
}

impl New {
    /// Volumes that it came from, and itself.
    fn depth(&self) -> usize {
        self.manifest.lineage.len()
    }
}

/// Looks at all volumes, then writes: clones before what they came from, so that no parent is there, and can be deleted,
/// before all that depends on it. An error is one that keeps all that are left from being recovered too.
async fn recover_all(
    cluster: &Cluster,
    pools: &[String],
    dry_run: bool,
    found: &mut Vec<Found>,
) -> Result<()> {
    for pool in pools {
        let volumes = volumes_in(cluster, pool)
            .await
            .with_context(|| format!("listing pool {pool}"))?;
        for volume in volumes {
            found.push(look(cluster, pool, volume).await?);
        }
    }
    found.sort_by_key(|found| std::cmp::Reverse(found.new.as_ref().map_or(0, New::depth)));
    for Found { view, new } in found {
        let Some(new) = new.take() else { continue };
        if dry_run {
            view.path = Some(new.path.to_string());
            "would recover".clone_into(&mut view.action);
            continue;
        }
        match write(cluster, &new).await {
            Ok(path) => {
                view.path = Some(path.to_string());
                "recovered".clone_into(&mut view.action);
            }
            Err(error) if stops_all(&error) => {
                view.note = Some(error.to_string());
                return Err(explained(error));
            }
            Err(error) => view.note = Some(error.to_string()),
        }
    }
    Ok(())
}

/// Whether no other volume could be recovered either.
fn stops_all(error: &NamesError) -> bool {
    matches!(error, NamesError::Unavailable { .. } | NamesError::NoVolumeRouter)
}

async fn volumes_in(cluster: &Cluster, pool: &str) -> Result<Vec<VolumeId>> {
    let mut volumes: Vec<VolumeId> = Vec::new();
    loop {
        let control = StorageControl::ListVolumes {
            pool: pool.to_owned(),
            after: volumes.last().copied(),
            limit: LIST_MAX,
        };
        let StorageControlReply::Volumes { volumes: page } = control_of(cluster, control).await? else {
            bail!("the storage-router answered another question");
        };
        let last = page.len() < usize::try_from(LIST_MAX)?;
        volumes.extend(page);
        if last {
            return Ok(volumes);
        }
    }
}

/// What is known of one volume. Only what keeps all others from being recovered too is an error.
async fn look(cluster: &Cluster, pool: &str, volume: VolumeId) -> Result<Found> {
    let mut view = RecoveredView {
        id: volume.to_string(),
        path: None,
        pool: pool.to_owned(),
        size_bytes: None,
        action: FAILED.to_owned(),
        note: None,
    };
    match cluster.names.volume(volume).await {
        Ok(known) => {
            view.path = cluster
                .names
                .path_of(known.inode)
                .await
                .ok()
                .map(|path| path.to_string());
            view.size_bytes = Some(known.known_size().bytes());
            "known".clone_into(&mut view.action);
            return Ok(Found { view, new: None });
        }
        Err(NamesError::NotFound { .. }) => {}
        Err(error) if stops_all(&error) => return Err(explained(error)),
        Err(error) => {
            view.note = Some(error.to_string());
            return Ok(Found { view, new: None });
        }
    }
    let (manifest, note) = match newest_manifest(cluster, pool, volume).await {
        Ok(found) => found,
        Err(error) => {
            view.note = Some(format!("{error:#}"));
            return Ok(Found { view, new: None });
        }
    };
    view.size_bytes = Some(manifest.size.bytes());
    view.note = note;
    let path = path_of(&manifest);
    let pool = pool.to_owned();
    let manifest = Manifest {
        snapshots: Vec::new(),
        ..manifest
    };
    Ok(Found {
        view,
        new: Some(New { path, pool, manifest }),
    })
}

/// The newest manifest that is whole, and a note where a newer one is not.
async fn newest_manifest(
    cluster: &Cluster,
    pool: &str,
    volume: VolumeId,
) -> Result<(Manifest, Option<String>)> {
    let mut names = manifests_of(cluster, pool, volume).await?;
    names.sort_by_key(age);
    let mut note = None;
    while let Some(name) = names.pop() {
        let cause = match manifest(cluster, pool, name).await {
            Ok(manifest) if manifest.volume == volume => return Ok((manifest, note)),
            Ok(manifest) => format!("is that of volume {}", manifest.volume),
            Err(error) => match error.downcast_ref::<PeerError>() {
                // It may be good: an older one says less, and the volume is there later.
                Some(error) if passes(error) => bail!("{name} cannot be read now: {error}"),
                _ => format!("cannot be used ({error})"),
            },
        };
        note = Some(format!("{name} {cause}: an older one is used"));
    }
    bail!(
        "{}",
        note.unwrap_or_else(|| "no manifest: it was never stored, or is being deleted".to_owned())
    )
}

async fn manifest(cluster: &Cluster, pool: &str, name: ObjectName) -> Result<Manifest> {
    let get = async || {
        let storage = &cluster.storage;
        storage.get(pool, name, MANIFEST_BYTES_MAX, DEADLINE).await
    };
    let bytes = patiently(get).await?;
    Ok(Manifest::from_bytes(&bytes)?)
}

async fn control_of(cluster: &Cluster, control: StorageControl) -> Result<StorageControlReply, PeerError> {
    patiently(async || cluster.storage.control(control.clone(), DEADLINE).await).await
}

/// Asks again while the answer is "later": a storage-router or a back end is starting, or busy.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, PeerError>) -> Result<T, PeerError> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Err(error) if passes(&error) && Instant::now() + PAUSE < give_up => {
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Whether asking again may be answered otherwise.
fn passes(error: &PeerError) -> bool {
    match error {
        PeerError::Refused(refusal) => matches!(refusal.remedy, Remedy::Retry | Remedy::Reroute),
        PeerError::Silent { .. } | PeerError::None { .. } => true,
        _ => false,
    }
}

/// What orders manifests: the ownership first, then the number.
fn age(name: &ObjectName) -> (u64, u64) {
    match name {
        ObjectName::Manifest { seq, epoch, .. } => (epoch.0, seq.0),
        ObjectName::Sco { .. } | ObjectName::Map { .. } => (0, 0),
    }
}

async fn manifests_of(cluster: &Cluster, pool: &str, volume: VolumeId) -> Result<Vec<ObjectName>> {
    let mut names: Vec<ObjectName> = Vec::new();
    loop {
        let control = StorageControl::List {
            pool: pool.to_owned(),
            volume,
            kind: ObjectKind::Manifest,
            after: names.last().copied(),
            limit: LIST_MAX,
            everywhere: false,
        };
        let StorageControlReply::Names { names: page } = control_of(cluster, control).await? else {
            bail!("the storage-router answered another question");
        };
        let last = page.len() < usize::try_from(LIST_MAX)?;
        names.extend(page);
        if last {
            return Ok(names);
        }
    }
}

/// Where the volume was when the manifest was written.
fn path_of(manifest: &Manifest) -> PoolPath {
    let named = manifest
        .path
        .parse()
        .ok()
        .filter(|path| *path != PoolPath::root());
    named.unwrap_or_else(|| lost(manifest.volume))
}

fn lost(volume: VolumeId) -> PoolPath {
    format!("{LOST}/{volume}")
        .parse()
        .unwrap_or_else(|_| PoolPath::root())
}

/// The record that leads an owner to all of the volume. What that owner's write buffer holds beyond the manifest it
/// finds there by itself.
fn record(owner: NodeName, pool: &str, manifest: &Manifest) -> VolumeRecord {
    VolumeRecord {
        size: Some(manifest.size),
        epoch: manifest.epoch,
        manifest: Some(ManifestRef {
            seq: manifest.seq,
            epoch: manifest.epoch,
        }),
        epochs: manifest.epochs.clone(),
        origin: manifest.origin,
        ..VolumeRecord::unowned(
            manifest.volume,
            manifest.size,
            manifest.sco_size,
            pool.to_owned(),
            owner,
        )
    }
}

/// Writes name and record; beside its path where that is taken by now.
async fn write(cluster: &Cluster, new: &New) -> Result<PoolPath, NamesError> {
    let path = &new.path;
    let owner = cluster.names.choose_owner(None).await?;
    let record = record(owner, &new.pool, &new.manifest);
    let beside: PoolPath = format!("{path}.{}", record.id)
        .parse()
        .unwrap_or_else(|_| lost(record.id));
    let mut taken = None;
    for path in [path.clone(), beside, lost(record.id)] {
        match cluster.names.adopt(&path, record.clone(), NewEntry::FILE).await {
            Ok(_) => return Ok(path),
            Err(error) if stops_all(&error) => return Err(error),
            Err(error @ NamesError::BeingRemoved { .. }) => return Err(error),
            // Taken, or nothing can be put there.
            Err(error) => taken = Some(error),
        }
    }
    Err(taken.unwrap_or(NamesError::NotFound {
        at: format!("a free path of volume {}", record.id),
    }))
}
