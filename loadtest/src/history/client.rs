//! The cluster from within this process: snapshots, clones, first bytes, without a process for each.
//!
//! Keeps: the connection, on one thread.
//! Order: one request after the other.
//! Crash: nothing.
//! Knows the `sconce` command's library.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sconce_cli::cluster::Cluster;
use sconce_fs_router::names::{NewEntry, PoolPath, Resolved, Snapshot};
use sconce_schemas::wire::volume::{IoFlags, SnapshotStatus, VolumeControl, VolumeControlReply};
use sconce_schemas::{CLUSTER_BYTES, SnapshotId};
use tokio::task::LocalSet;

use crate::sconce::Sconce;

const DEADLINE: Duration = Duration::from_secs(60);

/// A client of a Sconce.
pub(crate) struct Client {
    cluster: Cluster,
    chance: fastrand::Rng,
}

/// Runs `work` with a client of a Sconce.
pub(crate) fn with<T>(sconce: &Sconce, work: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let settings = sconce.path("sconce.toml");
    LocalSet::new().block_on(&runtime, async move {
        let mut client = Client {
            cluster: Cluster::open(Some(&settings)).await?,
            chance: fastrand::Rng::new(),
        };
        work(&mut client).await
    })
}

fn path(text: &str) -> Result<PoolPath> {
    text.parse().with_context(|| text.to_owned())
}

impl Client {
    pub(crate) async fn file(&self, volume: &str) -> Result<Resolved> {
        self.cluster.resolve(&path(volume)?).await
    }

    /// Takes a snapshot.
    pub(crate) async fn take(&mut self, file: &Resolved, name: &str) -> Result<()> {
        let take = VolumeControl::TakeSnapshot {
            volume: file.volume,
            id: SnapshotId(self.chance.u64(1..1 << 63)),
            name: name.to_owned(),
            metadata: BTreeMap::new(),
        };
        self.cluster.owners.call(file.volume, take, DEADLINE).await?;
        Ok(())
    }

    /// Waits until all that was written to a volume is on the back ends.
    pub(crate) async fn sync(&self, file: &Resolved) -> Result<()> {
        let volume = file.volume;
        let sync = VolumeControl::Sync { volume };
        self.cluster.owners.call(volume, sync, DEADLINE).await?;
        Ok(())
    }

    pub(crate) async fn snapshot(&self, file: &Resolved, name: &str) -> Result<SnapshotStatus> {
        let volume = file.volume;
        let list = VolumeControl::ListSnapshots { volume };
        let VolumeControlReply::Snapshots { snapshots } =
            self.cluster.owners.call(volume, list, DEADLINE).await?
        else {
            bail!("the owner answered another question");
        };
        let found = snapshots.into_iter().find(|snapshot| snapshot.name == name);
        found.with_context(|| format!("{} has no snapshot {name}", file.path))
    }

    /// Makes a clone; gives it, and how long that took.
    pub(crate) async fn clone(
        &self,
        file: &Resolved,
        from: &SnapshotStatus,
        new: &str,
    ) -> Result<(Resolved, Duration)> {
        let new = path(new)?;
        let begun = Instant::now();
        let from = Snapshot {
            volume: file.volume,
            id: from.id,
            size: from.size,
            // Nobody else is here.
            removals: self.cluster.names.removals(file.volume).await?,
        };
        let clone = self
            .cluster
            .names
            .create_clone(from, &new, NewEntry::FILE)
            .await?;
        Ok((clone, begun.elapsed()))
    }

    /// How long it takes to open a volume and read a cluster of it, waiting for its owner to serve it.
    pub(crate) async fn first_byte(&self, file: &Resolved, address: u64) -> Result<Duration> {
        let begun = Instant::now();
        let volume = self.cluster.volume(file).await?;
        let read = volume.read(address, CLUSTER_BYTES).await?;
        if read.len() != CLUSTER_BYTES {
            bail!("{} bytes were read of {}", read.len(), file.path);
        }
        Ok(begun.elapsed())
    }

    /// Moves a volume to another volume-router.
    pub(crate) async fn move_to(&self, file: &Resolved, node: &str) -> Result<()> {
        sconce_cli::volume::move_to(&self.cluster, file, &node.parse()?).await
    }

    /// Waits until a volume is served.
    pub(crate) async fn served(&self, file: &Resolved) -> Result<()> {
        self.cluster.volume(file).await.map(drop)
    }

    /// Overwrites so many random clusters of the first `bytes` bytes.
    pub(crate) async fn scribble(&mut self, file: &Resolved, bytes: u64, clusters: u32) -> Result<()> {
        let volume = self.cluster.volume(file).await?;
        for _ in 0..clusters {
            let mut data = vec![0; 4096];
            self.chance.fill(&mut data);
            let at = self.chance.u64(0..bytes / CLUSTER_BYTES) * CLUSTER_BYTES;
            volume.write(at, data.into(), IoFlags(0)).await?;
        }
        Ok(())
    }

    /// Some cluster of the first `bytes` bytes.
    pub(crate) fn any_address(&mut self, bytes: u64) -> u64 {
        self.chance.u64(0..bytes / CLUSTER_BYTES) * CLUSTER_BYTES
    }
}
