//! Files that lost fs-routers had open without a name: another one removes them.
//!
//! Keeps: since when each holder of such files is gone, as far as this one saw.
//! Order: a look at the start and one after each `adopt_after`; a holder that two looks in a row missed has nothing open.
//! Crash: a new process counts anew.
//! Knows no open files: those of a holder that runs are its own business.

use std::collections::HashMap;
use std::time::Duration;

use sconce_runtime::Stop;
use sconce_runtime::settings::Interval;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::{NodeName, VolumeId};
use serde::Deserialize;
use tokio::time::Instant;

use crate::names::{Names, NamesError};
use crate::peers::Owners;

/// The section `[nameless]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamelessSettings {
    /// How long another fs-router is gone before the files go that it had open without a name.
    pub adopt_after: Interval,
}

impl Default for NamelessSettings {
    fn default() -> Self {
        Self {
            adopt_after: Interval::new(Duration::from_secs(600)),
        }
    }
}

/// Looks for files whose holder is gone.
pub struct Nameless {
    names: Names,
    node: NodeName,
    /// Whether this fs-router keeps files open without a name, and so sees to its own.
    has_mount: bool,
    adopt_after: Duration,
    gone_since: HashMap<NodeName, Instant>,
}

impl Nameless {
    /// For the fs-router `node`.
    #[must_use]
    pub fn new(names: Names, node: NodeName, has_mount: bool, settings: NamelessSettings) -> Self {
        Self {
            names,
            node,
            has_mount,
            adopt_after: settings.adopt_after.duration(),
            gone_since: HashMap::new(),
        }
    }

    /// Runs until the stop. In a `LocalSet`.
    pub async fn run(mut self, owners: Owners, stop: Stop) {
        loop {
            match self.look(Instant::now()).await {
                Ok(deleted) => {
                    owners
                        .tell(&deleted, |volume| VolumeControl::Delete { volume })
                        .await;
                }
                Err(error) => tracing::debug!(%error, "files without a name are looked for again later"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.adopt_after) => {}
                () = stop.requested() => return,
            }
        }
    }

    /// Removes the files whose holders have been gone for long enough; gives their volumes, which are deleted.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn look(&mut self, now: Instant) -> Result<Vec<VolumeId>, NamesError> {
        let files = self.names.all_nameless().await?;
        self.gone_since
            .retain(|holder, _| files.iter().any(|file| file.holder == *holder));
        let mut deleted = Vec::new();
        for file in files {
            if !self.is_gone(&file.holder, now).await? {
                continue;
            }
            // One that cannot go now, because of a clone that an older build let be made, keeps no other.
            match self.names.remove_nameless(&file.holder, file.inode).await {
                Ok(Some(removed)) => {
                    tracing::info!(volume = %file.volume, holder = %file.holder, "removed a file without a name: its holder is gone");
                    deleted.push(removed.volume);
                }
                Ok(None) => {}
                Err(error @ NamesError::Unavailable { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(volume = %file.volume, holder = %file.holder, %error, "a file without a name stays");
                }
            }
        }
        Ok(deleted)
    }

    async fn is_gone(&mut self, holder: &NodeName, now: Instant) -> Result<bool, NamesError> {
        if *holder == self.node {
            return Ok(!self.has_mount);
        }
        if self.names.node(holder).await?.is_some() {
            self.gone_since.remove(holder);
            return Ok(false);
        }
        let since = *self.gone_since.entry(holder.clone()).or_insert(now);
        Ok(now.duration_since(since) >= self.adopt_after)
    }
}
