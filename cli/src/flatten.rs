//! Keeps: `sconce volume flatten`.
//! Order: the owner is asked once; then it is looked at until the registry says that the clone depends on nothing.
//! Crash: what was asked for goes on without the command, and over restarts.
//! Knows no back end.

use std::time::Duration;

use anyhow::{Result, bail};
use sconce_fs_router::names::PoolPath;
use sconce_schemas::wire::volume::VolumeControl;

use crate::args::Format;
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::volume;

/// How long an owner is given to answer: it may be starting.
const OWNER_DEADLINE: Duration = Duration::from_secs(30);
/// How often the owner is looked at while it copies.
const LOOK: Duration = Duration::from_millis(500);

/// Asks for a clone to become independent; waits for that if it is to.
///
/// # Errors
/// There is no such volume, it is no clone, its owner does not answer, or what is waited for does not come by itself.
pub(crate) async fn run(cluster: &Cluster, path: &PoolPath, wait: bool, format: Format) -> Result<()> {
    let file = cluster.resolve(path).await?;
    let volume = file.volume;
    let record = cluster.names.volume(volume).await.map_err(explained)?;
    if record.origin.is_none() {
        bail!("{path} depends on no other volume: it is no clone, or was made independent");
    }
    let flatten = VolumeControl::Flatten { volume };
    cluster.owners.call(volume, flatten, OWNER_DEADLINE).await?;
    while wait
        && cluster
            .names
            .volume(volume)
            .await
            .map_err(explained)?
            .origin
            .is_some()
    {
        let status = cluster.owners.show(volume, LIVE_DEADLINE).await;
        let progress = status.ok().and_then(|status| status.flatten);
        let waits_for = progress
            .filter(|progress| progress.percent == 100)
            .map_or_else(Vec::new, |progress| progress.waits_for);
        let named: Vec<String> = waits_for
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| format!("{path}@{name}"))
            .collect();
        if !named.is_empty() {
            bail!(
                "{path} has nothing of the volumes that it comes from any more, but older snapshots of it have: {}\n\
                 it is independent once they are deleted",
                named.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    volume::show(cluster, &file, format).await
}
