//! Keeps: `sconce backend …`: the directories and buckets that pools are on.
//! Order: a storage-router sets a back end up before the registry knows it; whoever removes one looks for its pools first.
//! Crash: a command that was cut short can be given again.
//! Knows no back end's content, and no secret: where credentials are is said, never what they are.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sconce_schemas::records::{BackendPlace, BackendRecord, PoolRecord, S3Place};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageNodeStatus};
use serde::Serialize;

use crate::args::{Backend, BackendAdd, Format};
use crate::cluster::{Cluster, explained};
use crate::pool::{MAKE_DEADLINE, RemovedView, said};
use crate::size::shown;
use crate::view::{columns, print, unknown};

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
    /// How each storage-router that answers sees it.
    seen: Vec<SeenView>,
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
    let uses = |pool: &&PoolRecord| pool.backends.iter().any(|entry| entry.backend == backend.name);
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
        pools: pools.iter().filter(uses).map(|pool| pool.name.clone()).collect(),
        seen: seen.collect(),
    }
}

fn table(views: &[PlacedView]) -> String {
    let mut table = columns(&["BACK END", "PLACE", "POOLS", "SEEN BY", "STATE", "FREE"], &[5]);
    for view in views {
        let place = view.place.clone();
        let place = place.unwrap_or_else(|| "by settings".to_owned());
        let pools = match view.pools.is_empty() {
            true => unknown(),
            false => view.pools.join(", "),
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
                seen.node.clone(),
                seen.state.clone(),
                seen.free_bytes.map_or_else(unknown, shown),
            ]);
        }
    }
    table.trim_fmt()
}
