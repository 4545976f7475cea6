//! Keeps: snapshots of several volumes at one instant, and which volumes are meant.
//! Order: each volume is looked at before any is asked to hold acknowledgements: one that starts, or has the name already, is
//! noticed while nothing waits.
//! Crash: what was proposed and not confirmed is withdrawn by its volume; a command that was cut short can be given again.
//! Knows no protocol: `sconce_fs_router::peers` has the order of the rounds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail};
use futures_util::future::try_join_all;
use glob::{MatchOptions, Pattern};
use sconce_fs_router::names::{PoolPath, Removal, Resolved, SnapshotPath};
use sconce_fs_router::peers::{GroupFailure, GroupLabel, GroupMember};
use serde::Serialize;

use crate::args::{Format, SnapshotCreate};
use crate::cluster::{Cluster, explained};
use crate::snapshot::{new_id, remove_marked, snapshots, view};
use crate::view::{SnapshotView, print, snapshot_table};
use crate::volume;

/// In the metadata of each volume's snapshot: the group's id.
const GROUP: &str = "group";
/// Likewise: of how many volumes the group is.
const VOLUMES: &str = "group-volumes";
/// A volume that was too slow is no reason to bother a person at once.
const TRIES: usize = 3;

/// What `snapshot create --group` prints.
#[derive(Debug, Serialize)]
struct GroupView {
    /// The group's id, which is in the metadata of its snapshots.
    group: String,
    /// For how long acknowledgements of writes were held at most.
    held_ms_max: u64,
    /// A snapshot of each volume.
    snapshots: Vec<SnapshotView>,
}

/// Takes a snapshot of several volumes at one instant.
///
/// # Errors
/// No volumes are meant, a volume has the name already, or its owner does not answer in time.
pub(crate) async fn create(cluster: &Cluster, create: SnapshotCreate, format: Format) -> Result<()> {
    let (files, name) = meant(cluster, &create.paths).await?;
    let mut metadata: BTreeMap<String, String> = create.metadata.into_iter().collect();
    if let Some(key) = [GROUP, VOLUMES].iter().find(|key| metadata.contains_key(**key)) {
        bail!("--metadata {key}=… is written by the command itself; take another key");
    }
    let group = new_id().to_string();
    metadata.insert(GROUP.to_owned(), group.clone());
    metadata.insert(VOLUMES.to_owned(), files.len().to_string());
    let label = GroupLabel { name, metadata };
    let known = try_join_all(files.iter().map(|file| snapshots(cluster, file))).await?;
    for (file, known) in files.iter().zip(&known) {
        if known.iter().any(|snapshot| snapshot.name == label.name) {
            bail!(
                "{}@{} exists already; remove it or take another name",
                file.path,
                label.name
            );
        }
    }
    let held = take(cluster, &files, &label).await?;
    if create.wait_synced {
        try_join_all(files.iter().map(|file| volume::store(cluster, file))).await?;
    }
    let mut views = Vec::new();
    for file in &files {
        let taken = snapshots(cluster, file).await?;
        let taken = taken.into_iter().find(|snapshot| snapshot.name == label.name);
        views.extend(taken.map(|snapshot| view(&file.path, snapshot)));
    }
    let view = GroupView {
        group,
        held_ms_max: u64::try_from(held.as_millis()).unwrap_or(u64::MAX).max(1),
        snapshots: views,
    };
    print(format, &view, |view| {
        format!(
            "{}\ngroup {} of {} volumes; acknowledgements of writes were held for at most {} ms",
            snapshot_table(&view.snapshots),
            view.group,
            view.snapshots.len(),
            view.held_ms_max
        )
    })
}

async fn take(cluster: &Cluster, files: &[Resolved], label: &GroupLabel) -> Result<std::time::Duration> {
    let mut tries = 0;
    loop {
        tries += 1;
        let member = |file: &Resolved| GroupMember {
            volume: file.volume,
            id: new_id(),
        };
        let members: Vec<GroupMember> = files.iter().map(member).collect();
        match cluster.owners.snapshot_group(&members, label).await {
            Ok(held) => return Ok(held),
            // What is left would be in the way.
            Err(failure) if tries == TRIES || !failure.left.is_empty() => {
                return Err(explained_failure(files, label, &failure));
            }
            Err(_) => {}
        }
    }
}

fn explained_failure(files: &[Resolved], label: &GroupLabel, failure: &GroupFailure) -> anyhow::Error {
    let path = |at: usize| files.get(at).map_or("?", |file| file.path.as_str());
    let causes = failure.causes.iter();
    let causes: Vec<String> = causes
        .map(|(at, cause)| format!("{}: {cause}", path(*at)))
        .collect();
    let mut text = format!("no snapshot was taken: {}", causes.join("; "));
    for (at, cause) in &failure.left {
        let (path, name) = (path(*at), &label.name);
        text.push_str(&format!(
            "\n{path}@{name} may be there all the same ({cause}); delete it: sconce snapshot delete {path}@{name}"
        ));
    }
    anyhow!(text)
}

/// Deletes the snapshots of several volumes: none while one of them has clones.
///
/// # Errors
/// No volumes are meant; one of them has no such snapshot, or it has clones; an owner does not answer.
pub(crate) async fn delete(cluster: &Cluster, paths: &[SnapshotPath], format: Format) -> Result<()> {
    let (files, name) = meant(cluster, paths).await?;
    let known = try_join_all(files.iter().map(|file| snapshots(cluster, file))).await?;
    let mut found = Vec::new();
    for (file, known) in files.iter().zip(known) {
        let snapshot = known.into_iter().find(|snapshot| snapshot.name == name);
        found.extend(snapshot.map(|snapshot| (file, snapshot.id)));
    }
    if found.is_empty() {
        bail!(
            "none of the {} volumes that are meant has a snapshot {name:?}",
            files.len()
        );
    }
    // All are marked before the first goes: from then on none is cloned.
    let mut marked: Vec<(SnapshotPath, &Resolved, Removal)> = Vec::new();
    for (file, id) in found {
        let path = SnapshotPath {
            volume: file.path.clone(),
            name: name.clone(),
        };
        match cluster.names.begin_removal(file.volume, id).await {
            Ok(removal) => marked.push((path, file, removal)),
            Err(error) => {
                for (_, _, removal) in marked {
                    cluster.names.withdraw_removal(removal).await.map_err(explained)?;
                }
                return Err(explained(error).context(format!("{path} stays, and so do the others")));
            }
        }
    }
    let mut deleted = Vec::new();
    for (path, file, removal) in marked {
        remove_marked(cluster, file, &path, removal).await?;
        deleted.push(path.to_string());
    }
    print(format, &deleted, |deleted| {
        let lines: Vec<String> = deleted.iter().map(|path| format!("{path} deleted")).collect();
        lines.join("\n")
    })
}

/// The volumes that patterns mean, in the order of their paths, and the one name of their snapshots.
async fn meant(cluster: &Cluster, paths: &[SnapshotPath]) -> Result<(Vec<Resolved>, String)> {
    let names: BTreeSet<&str> = paths.iter().map(|path| path.name.as_str()).collect();
    let Some(name) = names.first().filter(|_| names.len() == 1) else {
        let names: Vec<&str> = names.into_iter().collect();
        bail!(
            "the snapshots of a group have one name; these are {}: {}",
            names.len(),
            names.join(", ")
        );
    };
    let mut files: Vec<Resolved> = Vec::new();
    for path in paths {
        files.extend(matching(cluster, &path.volume).await?);
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files.dedup_by(|one, other| one.volume == other.volume);
    Ok((files, (*name).to_owned()))
}

/// The files that a path means, in which `*`, `?` and `[…]` stand for parts of names.
async fn matching(cluster: &Cluster, path: &PoolPath) -> Result<Vec<Resolved>> {
    let has_pattern = |name: &str| name.contains(['*', '?', '[']);
    if !path.components().any(has_pattern) {
        return Ok(vec![cluster.resolve(path).await?]);
    }
    let pattern = Pattern::new(path.as_str()).map_err(|error| {
        anyhow!("{path} is no pattern: {error}\n* stands for any part of a name, ? for one character, [abc] for one of these")
    })?;
    let mut directory = PoolPath::root();
    for name in path.components().take_while(|name| !has_pattern(name)) {
        directory = directory.join(name)?;
    }
    let files = cluster
        .names
        .files(&directory, usize::MAX)
        .await
        .map_err(explained)?;
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::default()
    };
    let found: Vec<Resolved> = files
        .into_iter()
        .filter(|file| pattern.matches_with(file.path.as_str(), options))
        .collect();
    if found.is_empty() {
        bail!("no volume matches {path}\n`sconce volume list` shows the volumes that there are");
    }
    Ok(found)
}
