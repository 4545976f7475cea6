//! Keeps: `sconce backend …`: the directories and buckets that pools are on.
//! Order: a storage-router sets a back end up before the registry knows it; whoever removes one looks for its pools first.
//! Crash: a command that was cut short can be given again.
//! Knows no back end's content, and no secret: where credentials are is said, never what they are.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sconce_schemas::NodeName;
use sconce_schemas::records::{BackendPlace, BackendRecord, PlacementEntry, PoolRecord, S3Place};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageNodeStatus};
use serde::Serialize;

use crate::args::{Backend, BackendAdd, Format};
use crate::cluster::{Cluster, explained};
use crate::pool::{self, MAKE_DEADLINE, RemovedView, said, share};
use crate::size::shown;
use crate::view::{ShareView, columns, print, unknown};

/// A back end, as the registry and the storage-routers know it.
#[derive(Debug, Serialize)]
struct PlacedView {
    /// Its name.
    name: String,
    /// Its identity.
    id: String,
    /// Where it is; null where only the settings of storage-routers say that.
    place: Option<String>,
    /// The pools that use it.
    pools: Vec<String>,
    /// What it takes of the objects of each.
    placement: Vec<InPoolView>,
    /// How each storage-router that answers sees it.
    seen: Vec<SeenView>,
}

/// What a back end takes of a pool's objects.
#[derive(Debug, Serialize)]
struct InPoolView {
    /// The pool.
    pool: String,
    /// What it takes.
    #[serde(flatten)]
    share: ShareView,
}

/// A back end, as a storage-router sees it.
#[derive(Debug, Serialize)]
struct SeenView {
    /// The storage-router.
    node: String,
    /// `ok`, or what is wrong.
    state: String,
    /// Space that is left; null where unknown.
    free_bytes: Option<u64>,
}

/// Runs `sconce backend …`.
///
/// # Errors
/// The command could not be done; the text says what to do next.
pub async fn run(cluster: &Cluster, command: Backend, format: Format) -> Result<()> {
    match command {
        Backend::Add(add) => self::add(cluster, *add, format).await,
        Backend::List => {
            let backends = cluster.names.backends().await.map_err(explained)?;
            list(cluster, &backends, format).await
        }
        Backend::Drain { name, lost } => drain(cluster, &name, lost, format).await,
        Backend::Remove { name } => {
            let removed = cluster.names.remove_backend(name.as_str()).await;
            let removed = removed.map_err(explained)?;
            let note = removed.place.is_none().then(|| {
                "the settings of storage-routers name it; take it out there too, or their next start registers it again"
                    .to_owned()
            });
            print(format, &RemovedView::new(removed.name, note), RemovedView::line)
        }
    }
}

async fn add(cluster: &Cluster, add: BackendAdd, format: Format) -> Result<()> {
    let name = add.name.clone();
    let asked = StorageControl::AddBackend {
        name,
        place: place(add)?,
    };
    match cluster.storage.control(asked, MAKE_DEADLINE).await? {
        StorageControlReply::Backend(record) => list(cluster, &[record], format).await,
        _ => bail!("a storage-router gave an answer to another question; is it of the same version?"),
    }
}

fn place(add: BackendAdd) -> Result<BackendPlace> {
    if let Some(dir) = &add.dir {
        return Ok(BackendPlace::Directory(text(dir)?));
    }
    let s3 = add.s3.context("neither --dir nor --s3 is there")?;
    Ok(BackendPlace::S3(Box::new(S3Place {
        region: add.region,
        style: add.style,
        ca: add.ca,
        credentials: add.credentials,
        credentials_file: add.credentials_file,
        profile: add.profile,
        ..s3
    })))
}

fn text(dir: &Path) -> Result<String> {
    let text = dir.to_str().map(str::to_owned);
    text.with_context(|| {
        format!(
            "--dir {} is not UTF-8; right would be a path that is",
            dir.display()
        )
    })
}

async fn list(cluster: &Cluster, backends: &[BackendRecord], format: Format) -> Result<()> {
    let pools = cluster.names.pools().await.map_err(explained)?;
    let said = said(cluster).await?;
    let views = backends.iter().map(|backend| view(backend, &pools, &said));
    let views: Vec<PlacedView> = views.collect();
    print(format, &views, |views| table(views))
}

fn view(backend: &BackendRecord, pools: &[PoolRecord], said: &[StorageNodeStatus]) -> PlacedView {
    let in_pool = |pool: &PoolRecord| {
        let entry = entry_in(pool, &backend.name)?;
        Some(InPoolView {
            pool: pool.name.clone(),
            share: share(pool, entry),
        })
    };
    let placement: Vec<InPoolView> = pools.iter().filter_map(in_pool).collect();
    let seen = said.iter().flat_map(|status| {
        let of_backend = status.backends.iter().filter(|found| found.name == backend.name);
        of_backend.map(|found| SeenView {
            node: status.node.to_string(),
            state: found.state.clone(),
            free_bytes: found.free.map(|bytes| bytes.0),
        })
    });
    PlacedView {
        name: backend.name.clone(),
        id: backend.id.to_string(),
        place: backend.place.as_ref().map(ToString::to_string),
        pools: placement.iter().map(|placed| placed.pool.clone()).collect(),
        placement,
        seen: seen.collect(),
    }
}

fn entry_in<'a>(pool: &'a PoolRecord, backend: &str) -> Option<&'a PlacementEntry> {
    pool.backends.iter().find(|entry| entry.backend == backend)
}

async fn drain(cluster: &Cluster, name: &NodeName, is_lost: bool, format: Format) -> Result<()> {
    let pools = cluster.names.pools().await.map_err(explained)?;
    let mut using = pools
        .iter()
        .filter(|pool| entry_in(pool, name.as_str()).is_some());
    let pool = match (using.next(), using.next()) {
        (Some(pool), None) => pool,
        (Some(pool), Some(other)) => bail!(
            "back end {name} is in several pools, {} and {} among them; `sconce pool place POOL {name}=0` has it leave one",
            pool.name,
            other.name
        ),
        (None, _) => {
            let backends = cluster.names.backends().await.map_err(explained)?;
            if backends.iter().all(|backend| backend.name != name.as_str()) {
                bail!("there is no back end {name}; `sconce backend list` shows those that there are");
            }
            bail!(
                "back end {name} is in no pool, so nothing is to be moved off it; `sconce backend remove {name}` removes it"
            );
        }
    };
    let leaves = PlacementEntry {
        backend: name.to_string(),
        weight: 0,
    };
    let lost = is_lost.then(|| name.to_string());
    let lost = lost.into_iter().collect();
    pool::place(cluster, pool.name.clone(), vec![leaves], lost, format).await
}

fn table(views: &[PlacedView]) -> String {
    let mut table = columns(
        &["BACK END", "PLACE", "POOLS", "WEIGHT", "SEEN BY", "STATE", "FREE"],
        &[3, 6],
    );
    for view in views {
        let place = view.place.clone();
        let place = place.unwrap_or_else(|| "by settings".to_owned());
        let pools = match view.pools.is_empty() {
            true => unknown(),
            false => view.pools.join(", "),
        };
        let weights = view.placement.iter().map(|placed| placed.share.weight_shown());
        let weights: Vec<String> = weights.collect();
        let weights = match weights.is_empty() {
            true => unknown(),
            false => weights.join(", "),
        };
        let leaving = view.placement.iter().find(|placed| placed.share.is_leaving());
        let leaving = match leaving.map(|placed| placed.share.lost) {
            Some(true) => ", leaving (lost)",
            Some(false) => ", leaving",
            None => "",
        };
        let nobody = [SeenView {
            node: unknown(),
            state: "no storage-router that answers knows it".to_owned(),
            free_bytes: None,
        }];
        let seen = if view.seen.is_empty() {
            &nobody[..]
        } else {
            &view.seen[..]
        };
        for seen in seen {
            table.add_row([
                view.name.clone(),
                place.clone(),
                pools.clone(),
                weights.clone(),
                seen.node.clone(),
                format!("{}{leaving}", seen.state),
                seen.free_bytes.map_or_else(unknown, shown),
            ]);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use sconce_schemas::BackendId;
    use sconce_schemas::records::Protection;
    use sconce_schemas::wire::storage::BackendStatus;

    use super::*;

    fn row(backend: &str, pools: &[PoolRecord]) -> Vec<String> {
        let record = BackendRecord {
            name: backend.to_owned(),
            id: BackendId(7),
            place: Some(BackendPlace::Directory("/d".to_owned())),
        };
        let said = StorageNodeStatus {
            node: "sr-1".parse().unwrap(),
            backends: vec![BackendStatus {
                name: backend.to_owned(),
                state: "ok".to_owned(),
                ..BackendStatus::default()
            }],
            pools: Vec::new(),
        };
        let table = table(&[view(&record, pools, &[said])]);
        let row = table.lines().nth(1).unwrap_or_default();
        // Between columns there are two spaces at the least.
        let cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    }

    #[test]
    fn a_back_ends_weight_and_whether_it_leaves_are_shown() {
        let backends = (1..4).map(|n| format!("disk-{n}"));
        let pool = PoolRecord::proposed("vms".to_owned(), Protection::Replicas(2), backends, None, false);
        let weight = |backend: &str, weight| PlacementEntry {
            backend: backend.to_owned(),
            weight,
        };
        let leave = [weight("disk-1", 0), weight("disk-2", 0), weight("disk-4", 2)];
        let announced = pool.announcing(&leave, &["disk-2".to_owned()]);
        let pools = [announced.placing()];
        assert_eq!(
            row("disk-9", &pools),
            ["disk-9", "/d", "-", "-", "sr-1", "ok", "-"]
        );
        for (backend, weight, state) in [
            ("disk-1", "0", "ok, leaving"),
            ("disk-2", "0", "ok, leaving (lost)"),
            ("disk-3", "1", "ok"),
            ("disk-4", "2", "ok"),
        ] {
            assert_eq!(
                row(backend, &pools),
                [backend, "/d", "vms", weight, "sr-1", state, "-"]
            );
        }
        assert_eq!(row("disk-1", &[announced])[3], "1 (to be 0)");
    }
}
