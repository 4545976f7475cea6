//! Keeps: which services run, and who is to own a new volume.
//! Order: a choice is made before the commit that relies on it; one that no longer holds is repaired by a takeover.
//! Crash: nothing is written.
//! Knows no bus.

use std::collections::{BTreeMap, BTreeSet};

use sconce_schemas::NodeName;
use sconce_schemas::records::{DrainedRecord, NodeRecord, VolumePhase, VolumeRecord, keys};
use sconce_schemas::wire::Role;
use tokio::time::Instant;

use super::changes::{self, Changes, Plan, Seen};
use super::{LIST_MAX, Names, NamesError};

impl Names {
    /// The services that run, sorted by name.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, NamesError> {
        let found = self.read_many::<NodeRecord>(keys::NODES, None, LIST_MAX).await?;
        Ok(found.into_iter().map(|seen| seen.record).collect())
    }

    /// A service, if it runs.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn node(&self, name: &NodeName) -> Result<Option<NodeRecord>, NamesError> {
        let found = self.read::<NodeRecord>(keys::node(name)).await?;
        Ok(found.map(|seen| seen.record))
    }

    /// The nodes that are drained.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn drained(&self) -> Result<BTreeSet<NodeName>, NamesError> {
        let found = self.entries(keys::DRAINED, None, LIST_MAX).await?;
        let names = found
            .iter()
            .filter_map(|entry| entry.key.strip_prefix(keys::DRAINED));
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Notes that a node is drained from now on, or is not any more.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn set_drained(&self, node: &NodeName, is_drained: bool) -> Result<(), NamesError> {
        let key = keys::drained(node);
        let at = || format!("node {node}");
        self.change(at, async |_| {
            let mut changes = Changes::default();
            match (self.read::<DrainedRecord>(key.clone()).await?, is_drained) {
                (None, true) => {
                    let since_us = self.clock.unix_micros();
                    changes.create(key.clone(), &DrainedRecord { since_us });
                }
                (Some(seen), false) => changes.remove(&seen),
                (Some(_), true) | (None, false) => {}
            }
            Ok(Plan { changes, outcome: () })
        })
        .await
    }

    /// The volume-router that is to own a new volume: `wanted`, else the running one with the fewest. While none runs
    /// it is waited for: one may be restarting.
    ///
    /// # Errors
    /// None runs, or not the one that is wanted; the registry is unreachable.
    pub async fn choose_owner(&self, wanted: Option<&NodeName>) -> Result<NodeName, NamesError> {
        let give_up = Instant::now() + self.patience;
        let mut tried = 0;
        loop {
            let error = match self.try_choose_owner(wanted).await {
                Err(error @ (NamesError::NoVolumeRouter | NamesError::UnknownOwner { .. })) => error,
                chosen => return chosen,
            };
            if Instant::now() >= give_up {
                return Err(error);
            }
            tried += 1;
            self.pause(tried).await;
        }
    }

    async fn try_choose_owner(&self, wanted: Option<&NodeName>) -> Result<NodeName, NamesError> {
        let mut running = self.volume_routers().await?;
        if let Some(name) = wanted {
            return match (running.contains(name), running.is_empty()) {
                (true, _) => Ok(name.clone()),
                (false, true) => Err(NamesError::NoVolumeRouter),
                (false, false) => Err(NamesError::UnknownOwner {
                    name: name.to_string(),
                    known: joined(running.iter().map(NodeName::as_str)),
                }),
            };
        }
        let drained = self.drained().await?;
        if !running.iter().all(|name| drained.contains(name)) {
            running.retain(|name| !drained.contains(name));
        }
        match running.as_slice() {
            [] => Err(NamesError::NoVolumeRouter),
            [only] => Ok(only.clone()),
            _ => self.least_loaded(running).await,
        }
    }

    /// The volume-routers that run.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn volume_routers(&self) -> Result<Vec<NodeName>, NamesError> {
        let nodes = self.nodes().await?;
        let running = nodes.into_iter().filter(|node| node.role == Role::VolumeRouter);
        Ok(running.map(|node| node.name).collect())
    }

    async fn least_loaded(&self, running: Vec<NodeName>) -> Result<NodeName, NamesError> {
        let mut volumes: BTreeMap<NodeName, usize> = running.into_iter().map(|name| (name, 0)).collect();
        self.each_entry(keys::VOLUMES, |entry| {
            match changes::seen::<VolumeRecord>(entry) {
                Ok(Seen { record, .. }) if record.phase == VolumePhase::Active => {
                    if let Some(count) = volumes.get_mut(&record.owner) {
                        *count += 1;
                    }
                }
                Ok(_) => {}
                // It counts for nobody; a new volume is no worse off for it.
                Err(error) => tracing::error!(%error, "a volume's record is damaged"),
            }
            Ok(())
        })
        .await?;
        let least = volumes.into_iter().min_by_key(|(_, count)| *count);
        least.map(|(name, _)| name).ok_or(NamesError::NoVolumeRouter)
    }
}

pub(super) fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let joined = names.collect::<Vec<_>>().join(", ");
    if joined.is_empty() {
        "none".to_owned()
    } else {
        joined
    }
}
