//! Keeps: `sconce pool …`: storage pools.
//! Order: a storage-router makes a pool, since it has the keys; whoever removes one looks for its volumes first.
//! Crash: a command that was cut short can be given again.
//! Knows no back end's content.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::join_all;
use sconce_fs_router::names::NamesError;
use sconce_runtime::Clock;
use sconce_schemas::NodeName;
use sconce_schemas::records::{DeepScrubRecord, KeyPrint, PoolRecord};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageNodeStatus};
use serde::Serialize;

use crate::args::{Format, Pool, PoolCreate};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::pool_init;
use crate::view::{KeyView, PoolView, pool_lines, pool_table, print, time_shown, unknown};

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

/// A pool, and how far its deep scrub is.
#[derive(Debug, Serialize)]
struct ShownView {
    #[serde(flatten)]
    pool: PoolView,
    /// Its deep scrub; null where no storage-router has seen the pool yet.
    deep_scrub: Option<DeepScrubView>,
}

/// A deep scrub that is under way, or the last one.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct DeepScrubView {
    /// Who does it now; null where nobody does.
    node: Option<String>,
    /// Whether a round is asked for that has not begun.
    asked: bool,
    /// When it began.
    begun: String,
    /// When it ended; null while it is under way.
    ended: Option<String>,
    /// When it ends if it goes on as it did; null where it is not under way, or has read nothing.
    estimated_end: Option<String>,
    /// Objects that there were when it began.
    expected_objects: u64,
    /// Objects that it read.
    objects: u64,
    /// Bytes that it read.
    bytes: u64,
    /// Objects of which something was bad, and is good again.
    repaired: u64,
    /// Objects of which a part could not be reached or written.
    left: u64,
    /// Objects of which no good copy is left.
    lost: u64,
}

impl DeepScrubView {
    fn new(record: &DeepScrubRecord, node: Option<&NodeName>, now_us: u64) -> Self {
        let elapsed = u128::from(now_us.saturating_sub(record.begun_us));
        let left = u128::from(record.expected.saturating_sub(record.objects));
        let is_under_way = record.ended_us.is_none();
        let estimated = (elapsed * left)
            .checked_div(u128::from(record.objects))
            .filter(|_| is_under_way)
            .map(|more| now_us.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)));
        Self {
            node: node.map(ToString::to_string),
            asked: record.is_asked,
            begun: time_shown(record.begun_us),
            ended: record.ended_us.map(time_shown),
            estimated_end: estimated.map(time_shown),
            expected_objects: record.expected,
            objects: record.objects,
            bytes: record.bytes,
            repaired: record.repaired,
            left: record.left,
            lost: record.lost,
        }
    }

    fn shown(&self) -> String {
        let found = format!(
            "{} of {} objects, {} read, {} repaired, {} could not be reached, {} without a good copy",
            self.objects,
            self.expected_objects,
            crate::size::shown(self.bytes),
            self.repaired,
            self.left,
            self.lost
        );
        match (&self.ended, self.asked) {
            (Some(_), true) => "asked for, begins soon".to_owned(),
            (Some(_), _) if self.expected_objects == 0 => format!("none since {}", self.begun),
            (Some(ended), _) => format!("ended {ended}: {found}"),
            (None, _) => {
                let node = self.node.as_deref().unwrap_or("nobody now");
                let end = self.estimated_end.clone().unwrap_or_else(unknown);
                format!("since {} by {node}: {found}; estimated end {end}", self.begun)
            }
        }
    }
}

fn lines(view: &ShownView) -> String {
    let scrub = view.deep_scrub.as_ref();
    let scrub = scrub.map_or_else(unknown, DeepScrubView::shown);
    format!("{}\n deep scrub   {scrub}", pool_lines(&view.pool))
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
    let backends = create.backends.iter().map(ToString::to_string);
    let name = create.name.to_string();
    let pool = PoolRecord::proposed(name, create.protect, backends, create.compress, create.encrypt);
    let asked = StorageControl::CreatePool { pool };
    match cluster.storage.control(asked, MAKE_DEADLINE).await? {
        StorageControlReply::Pool(pool) => shown(cluster, &pool, format).await,
        _ => bail!("a storage-router gave an answer to another question; is it of the same version?"),
    }
}

async fn shown(cluster: &Cluster, pool: &PoolRecord, format: Format) -> Result<()> {
    let said = said(cluster).await?;
    let said: Vec<&StorageNodeStatus> = said.iter().collect();
    let scrub = cluster.names.deep_scrub(&pool.name).await.map_err(explained)?;
    let now_us = Clock::system().unix_micros();
    let view = ShownView {
        pool: view(pool, &said),
        deep_scrub: scrub.map(|(record, node)| DeepScrubView::new(&record, node.as_ref(), now_us)),
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
    use super::*;

    #[test]
    fn the_end_of_a_deep_scrub_is_estimated_by_how_it_went() {
        let at = 1_800_000_000_000_000;
        let record = DeepScrubRecord {
            begun_us: at,
            expected: 400,
            objects: 100,
            bytes: 5 << 20,
            lost: 1,
            ..DeepScrubRecord::default()
        };
        let node = "sr-1".parse().unwrap();
        let view = DeepScrubView::new(&record, Some(&node), at + 10_000_000);
        assert_eq!(view.estimated_end, Some(time_shown(at + 40_000_000)));
        let shown = view.shown();
        assert!(
            shown.contains("by sr-1: 100 of 400 objects") && shown.contains("1 without a good copy"),
            "{shown}"
        );
        let none = DeepScrubRecord {
            objects: 0,
            ..record.clone()
        };
        assert_eq!(DeepScrubView::new(&none, None, at + 1).estimated_end, None);
        let over = DeepScrubRecord {
            ended_us: Some(at + 9),
            ..record
        };
        assert_eq!(DeepScrubView::new(&over, None, at + 10).estimated_end, None);
    }
}
