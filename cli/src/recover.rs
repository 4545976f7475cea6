//! Keeps: `sconce recover`: names and volume records written again from the newest manifests on the back ends.
//! Order: a volume's manifest is read before anything is written of it; its name and record are one commit.
//! Crash: what was recovered is there; running it again goes on with the rest.
//! Knows no trees: the volume's owner reads those when it takes the volume over.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use sconce_fs_router::names::{NamesError, NewEntry, PoolPath};
use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, Manifest};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{DtlState, ManifestRef, VolumePhase, VolumeRecord};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply};
use sconce_schemas::{ObjectName, VolumeId};

use crate::args::{Format, Recover};
use crate::cluster::{Cluster, explained};
use crate::view::{RecoveredView, print, recovered_table};

/// How long a storage-router is given for one answer: a listing over a slow back end takes a while.
const DEADLINE: Duration = Duration::from_secs(60);
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
    for pool in &pools {
        let volumes = volumes_in(cluster, pool)
            .await
            .with_context(|| format!("listing pool {pool}"))?;
        for volume in volumes {
            found.push(recover_volume(cluster, pool, volume, recover.dry_run).await?);
        }
    }
    print(format, &found, |found| recovered_table(found))?;
    let failed = found.iter().filter(|volume| volume.action == "failed").count();
    if failed > 0 {
        bail!("{failed} of {} volumes could not be recovered", found.len());
    }
    Ok(())
}

async fn volumes_in(cluster: &Cluster, pool: &str) -> Result<Vec<VolumeId>> {
    let mut volumes: Vec<VolumeId> = Vec::new();
    loop {
        let control = StorageControl::ListVolumes {
            pool: pool.to_owned(),
            after: volumes.last().copied(),
            limit: LIST_MAX,
        };
        let StorageControlReply::Volumes { volumes: page } =
            cluster.storage.control(control, DEADLINE).await?
        else {
            bail!("the storage-router answered another question");
        };
        let last = page.len() < usize::try_from(LIST_MAX)?;
        volumes.extend(page);
        if last {
            return Ok(volumes);
        }
    }
}

/// Recovers one volume. Only what keeps all others from being recovered too is an error.
async fn recover_volume(
    cluster: &Cluster,
    pool: &str,
    volume: VolumeId,
    dry_run: bool,
) -> Result<RecoveredView> {
    let mut view = RecoveredView {
        id: volume.to_string(),
        path: None,
        pool: pool.to_owned(),
        size_bytes: None,
        action: "failed".to_owned(),
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
            view.action = "known".to_owned();
            return Ok(view);
        }
        Err(NamesError::NotFound { .. }) => {}
        Err(error) => return Err(explained(error)),
    }
    let (manifest, note) = match newest_manifest(cluster, pool, volume).await {
        Ok(found) => found,
        Err(error) => {
            view.note = Some(format!("{error:#}"));
            return Ok(view);
        }
    };
    view.size_bytes = Some(manifest.size.bytes());
    view.note = note;
    let path = path_of(&manifest);
    if dry_run {
        view.path = Some(path.to_string());
        view.action = "would recover".to_owned();
        return Ok(view);
    }
    let path = write(cluster, &path, record(cluster, pool, &manifest).await?).await?;
    view.path = Some(path.to_string());
    view.action = "recovered".to_owned();
    Ok(view)
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
        let read = cluster
            .storage
            .get(pool, name, MANIFEST_BYTES_MAX, DEADLINE)
            .await;
        let decoded = read
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(Manifest::from_bytes(&bytes)?));
        match decoded {
            Ok(manifest) if manifest.volume == volume => return Ok((manifest, note)),
            Ok(manifest) => {
                note = Some(format!(
                    "{name} is that of volume {}: an older one is used",
                    manifest.volume
                ));
            }
            Err(error) => note = Some(format!("{name} cannot be used ({error}): an older one is used")),
        }
    }
    bail!(
        "{}",
        note.unwrap_or_else(|| "no manifest: it was never stored, or is being deleted".to_owned())
    )
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
        };
        let StorageControlReply::Names { names: page } = cluster.storage.control(control, DEADLINE).await?
        else {
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
async fn record(cluster: &Cluster, pool: &str, manifest: &Manifest) -> Result<VolumeRecord> {
    Ok(VolumeRecord {
        id: manifest.volume,
        inode: 0,
        initial_size: manifest.size,
        size: Some(manifest.size),
        sco_size: manifest.sco_size,
        pool: pool.to_owned(),
        phase: VolumePhase::Active,
        owner: cluster.names.choose_owner(None).await.map_err(explained)?,
        epoch: manifest.epoch,
        buffer: None,
        dtl_host: None,
        dtl_state: DtlState::Off,
        manifest: Some(ManifestRef {
            seq: manifest.seq,
            epoch: manifest.epoch,
        }),
        epochs: manifest.epochs.clone(),
        origin: manifest.origin,
    })
}

/// Writes name and record; beside its path where that is taken by now.
async fn write(cluster: &Cluster, path: &PoolPath, record: VolumeRecord) -> Result<PoolPath> {
    let beside: PoolPath = format!("{path}.{}", record.id)
        .parse()
        .unwrap_or_else(|_| lost(record.id));
    for path in [path.clone(), beside, lost(record.id)] {
        match cluster.names.adopt(&path, record.clone(), NewEntry::FILE).await {
            Ok(_) => return Ok(path),
            Err(NamesError::Exists { .. } | NamesError::NotDirectory { .. }) => {}
            Err(error) => return Err(explained(error)),
        }
    }
    bail!("volume {} finds no free path, not even in {LOST}", record.id)
}
