//! Keeps: `sconce pool …`: storage pools.
//! Order: a storage-router makes a pool, since it has the keys; whoever removes one looks for its volumes first.
//! Crash: a command that was cut short can be given again.
//! Knows no back end's content.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use sconce_fs_router::names::NamesError;
use sconce_runtime::Clock;
use sconce_schemas::records::{KeyPrint, PlacementEntry, PoolRecord};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageNodeStatus};
use serde::Serialize;

use crate::args::{Format, Pool, PoolCreate};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::pool_init;
use crate::rounds::{DeepScrubView, MoveView, placement_shown};
use crate::view::{KeyView, PlacementView, PoolView, ShareView, pool_lines, pool_table, print, unknown};

/// How long a storage-router is given to make what it is asked for: it may wait for a back end.
pub(crate) const MAKE_DEADLINE: Duration = Duration::from_secs(60);

/// What was removed.
#[derive(Debug, Serialize)]
pub(crate) struct RemovedView {
    /// Its name.
    pub(crate) name: String,
    /// `removed`.
    pub(crate) action: &'static str,
    /// What a person should know; null otherwise.
    pub(crate) note: Option<String>,
}

impl RemovedView {
    pub(crate) fn new(name: String, note: Option<String>) -> Self {
        let action = "removed";
        Self { name, action, note }
    }

    pub(crate) fn line(&self) -> String {
        match &self.note {
            Some(note) => format!("{} {}: {note}", self.action, self.name),
            None => format!("{} {}", self.action, self.name),
        }
    }
}

/// A pool, and how far what is done to all that is in it is.
#[derive(Debug, Serialize)]
struct ShownView {
    #[serde(flatten)]
    pool: PoolView,
    /// Its deep scrub; null where no storage-router has seen the pool yet.
    deep_scrub: Option<DeepScrubView>,
    /// The move of its objects that is under way, or the last one; null where there was none, or the one that was announced has not
    /// begun.
    moving: Option<MoveView>,
}

fn lines(view: &ShownView) -> String {
    let placement = placement_shown(view.pool.settled, view.moving.as_ref());
    let scrub = view.deep_scrub.as_ref();
    let scrub = scrub.map_or_else(unknown, DeepScrubView::shown);
    format!(
        "{}\n placement    {placement}\n deep scrub   {scrub}",
        pool_lines(&view.pool)
    )
}

/// Runs `sconce pool …`.
///
/// # Errors
/// The command could not be done; the text says what to do next.
pub async fn run(cluster: &Cluster, command: Pool, format: Format) -> Result<()> {
    match command {
        Pool::Create(create) => self::create(cluster, create, format).await,
        Pool::List => {
            let pools = cluster.names.pools().await.map_err(explained)?;
            let said = said(cluster).await?;
            let said: Vec<&StorageNodeStatus> = said.iter().collect();
            let views: Vec<PoolView> = pools.iter().map(|pool| view(pool, &said)).collect();
            print(format, &views, |views| pool_table(views))
        }
        Pool::Show { name } => {
            let pool = cluster.names.pool(name.as_str()).await.map_err(in_pools)?;
            shown(cluster, &pool, format).await
        }
        Pool::DeepScrub { name } => {
            if !cluster
                .names
                .ask_deep_scrub(name.as_str())
                .await
                .map_err(in_pools)?
            {
                bail!(
                    "a deep scrub of {name} is under way already; `sconce pool show {name}` tells how far it is"
                );
            }
            let pool = cluster.names.pool(name.as_str()).await.map_err(in_pools)?;
            shown(cluster, &pool, format).await
        }
        Pool::Place { name, shares } => {
            let weights = shares.into_iter().map(PlacementEntry::from).collect();
            place(cluster, name.to_string(), weights, Vec::new(), format).await
        }
        Pool::Remove { name } => {
            let removed = cluster.names.remove_pool(name.as_str()).await;
            removed.map_err(in_pools)?;
            let view = RemovedView::new(name.to_string(), None);
            print(format, &view, RemovedView::line)
        }
        Pool::Init(init) => pool_init::run(&init, format),
    }
}

async fn create(cluster: &Cluster, create: PoolCreate, format: Format) -> Result<()> {
    let name = create.name.to_string();
    let none = std::iter::empty();
    let pool = PoolRecord {
        backends: create.backends.into_iter().map(PlacementEntry::from).collect(),
        ..PoolRecord::proposed(name, create.protect, none, create.compress, create.encrypt)
    };
    make(cluster, StorageControl::CreatePool { pool }, format).await
}

/// Has back ends of a pool take other shares of its objects, and shows the pool.
pub(crate) async fn place(
    cluster: &Cluster,
    pool: String,
    weights: Vec<PlacementEntry>,
    lost: Vec<String>,
    format: Format,
) -> Result<()> {
    make(cluster, StorageControl::PlacePool { pool, weights, lost }, format).await
}

/// Asks for a pool as it is to be, and shows what it is.
async fn make(cluster: &Cluster, asked: StorageControl, format: Format) -> Result<()> {
    match cluster.storage.control(asked, MAKE_DEADLINE).await? {
        StorageControlReply::Pool(pool) => shown(cluster, &pool, format).await,
        _ => bail!("a storage-router gave an answer to another question; is it of the same version?"),
    }
}

async fn shown(cluster: &Cluster, pool: &PoolRecord, format: Format) -> Result<()> {
    let said = said(cluster).await?;
    let said: Vec<&StorageNodeStatus> = said.iter().collect();
    let scrub = cluster.names.deep_scrub(&pool.name).await.map_err(explained)?;
    let moving = cluster.names.moving(&pool.name).await.map_err(explained)?;
    let now_us = Clock::system().unix_micros();
    let view = ShownView {
        pool: view(pool, &said),
        deep_scrub: scrub.map(|(record, node)| DeepScrubView::new(&record, node.as_ref(), now_us)),
        moving: moving.and_then(|(record, node)| MoveView::new(pool, &record, node.as_ref(), now_us)),
    };
    print(format, &view, lines)
}

/// What the storage-routers say of themselves, those that answer.
pub(crate) async fn said(cluster: &Cluster) -> Result<Vec<StorageNodeStatus>> {
    let running = cluster.storage.running().await?;
    let asked = running
        .iter()
        .map(|node| cluster.storage.status(node, LIVE_DEADLINE));
    Ok(join_all(asked).await.into_iter().filter_map(Result::ok).collect())
}

/// What is shown of a pool.
pub(crate) fn view(pool: &PoolRecord, said: &[&StorageNodeStatus]) -> PoolView {
    let of_pool = said.iter().flat_map(|status| {
        let of_pool = status.pools.iter().filter(|found| found.name == pool.name);
        of_pool.map(|found| format!("{}: {}", status.node, found.state))
    });
    let wrong: Vec<String> = of_pool.collect();
    let key = |key: &KeyPrint| KeyView {
        id: key.id,
        fingerprint: format!("{:016x}", key.fingerprint),
    };
    PoolView {
        name: pool.name.clone(),
        protection: pool.protection.to_string(),
        compression: pool.compression.map(|compression| compression.to_string()),
        encrypted: pool.encrypted,
        keys: pool.keys.iter().map(key).collect(),
        backends: pool
            .backends
            .iter()
            .map(|placed| placed.backend.clone())
            .collect(),
        state: match wrong.is_empty() {
            true => "ok".to_owned(),
            false => wrong.join("; "),
        },
        placement: pool.backends.iter().map(|entry| placement(pool, entry)).collect(),
        settled: pool.change.is_none(),
    }
}

fn placement(pool: &PoolRecord, entry: &PlacementEntry) -> PlacementView {
    PlacementView {
        backend: entry.backend.clone(),
        share: share(pool, entry),
    }
}

/// What a back end of a pool takes of its objects.
pub(crate) fn share(pool: &PoolRecord, entry: &PlacementEntry) -> ShareView {
    let wanted = pool
        .wanted()
        .iter()
        .find(|wanted| wanted.backend == entry.backend);
    ShareView {
        weight: entry.weight,
        wanted: wanted.map_or(entry.weight, |wanted| wanted.weight),
        lost: pool.has_lost(&entry.backend),
    }
}

/// An error that names a pool, with what to do about it.
fn in_pools(error: NamesError) -> anyhow::Error {
    match &error {
        NamesError::NoPool { .. } => anyhow::anyhow!("{error}"),
        _ => explained(error),
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::records::Protection;

    use super::*;

    fn entry(backend: &str, weight: u32) -> PlacementEntry {
        let backend = backend.to_owned();
        PlacementEntry { backend, weight }
    }

    fn pool() -> PoolRecord {
        PoolRecord {
            backends: vec![entry("disk-1", 1), entry("disk-2", 2), entry("disk-3", 1)],
            ..PoolRecord::proposed(
                "vms".to_owned(),
                Protection::Replicas(2),
                std::iter::empty(),
                None,
                false,
            )
        }
    }

    fn shown(pool: &PoolRecord) -> (String, String) {
        let view = ShownView {
            pool: view(pool, &[]),
            deep_scrub: None,
            moving: None,
        };
        let lines = lines(&view);
        (lines, pool_table(&[view.pool]))
    }

    fn line(lines: &str, name: &str) -> Option<String> {
        let found = lines
            .lines()
            .find_map(|line| line.trim().strip_prefix(name).map(str::trim));
        found.map(str::to_owned)
    }

    #[test]
    fn a_settled_pool_has_its_weights() {
        let (lines, table) = shown(&pool());
        assert_eq!(
            line(&lines, "back ends").as_deref(),
            Some("disk-1=1, disk-2=2, disk-3=1")
        );
        assert_eq!(line(&lines, "leaving"), None);
        assert_eq!(line(&lines, "placement").as_deref(), Some("settled"));
        let row = table.lines().nth(1).unwrap();
        assert!(
            row.contains("disk-1, disk-2, disk-3") && row.ends_with("ok"),
            "{row}"
        );
    }

    #[test]
    fn what_joins_and_what_leaves_a_pool_is_shown_from_the_announcement_on() {
        let weights = [entry("disk-1", 0), entry("disk-3", 0), entry("disk-4", 2)];
        let announced = pool().announcing(&weights, &["disk-1".to_owned()]);
        let (lines, table) = shown(&announced);
        assert_eq!(
            line(&lines, "back ends").as_deref(),
            Some("disk-1=1 (to be 0), disk-2=2, disk-3=1 (to be 0), disk-4=0 (to be 2)")
        );
        assert_eq!(line(&lines, "leaving").as_deref(), Some("disk-1 (lost), disk-3"));
        assert_eq!(
            line(&lines, "placement").as_deref(),
            Some("announced, begins soon")
        );
        let row = table.lines().nth(1).unwrap();
        assert!(row.ends_with("moving") && !row.contains("ok"), "{row}");

        let json = serde_json::to_value(view(&announced, &[])).unwrap();
        assert_eq!(
            json["backends"],
            serde_json::json!(["disk-1", "disk-2", "disk-3", "disk-4"])
        );
        assert_eq!(
            json["placement"][0],
            serde_json::json!({"backend": "disk-1", "weight": 1, "wanted": 0, "lost": true})
        );
        assert_eq!(json["settled"], false);
        assert_eq!(json["state"], "ok");

        let (lines, _) = shown(&announced.placing());
        assert_eq!(
            line(&lines, "back ends").as_deref(),
            Some("disk-1=0, disk-2=2, disk-3=0, disk-4=2")
        );
        assert_eq!(line(&lines, "leaving").as_deref(), Some("disk-1 (lost), disk-3"));
        let (lines, _) = shown(&announced.placing().settled());
        assert_eq!(line(&lines, "back ends").as_deref(), Some("disk-2=2, disk-4=2"));
    }

    #[test]
    fn what_is_wrong_with_a_pool_is_shown_beside_its_move() {
        let moving = PoolView {
            state: "sr-1: it lacks key 2".to_owned(),
            ..view(&pool().announcing(&[entry("disk-1", 0)], &[]), &[])
        };
        let table = pool_table(&[moving]);
        assert!(table.ends_with("sr-1: it lacks key 2; moving"), "{table}");
    }
}
