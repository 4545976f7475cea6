//! Opening two roots to be compared.
//!
//! Keeps: nothing.
//! Order: an ancestor's snapshot is looked up on the back ends before the volume is asked.
//! Crash: nothing.
//! Knows no trees.

use sconce_schemas::VolumeId;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::{Since, VolumeControlReply};

use super::control::Control;
use super::peers::{Open, OpenOn};
use crate::actor::{CompareWith, Pass};
use crate::owner::find_ancestor;
use crate::placement::IoCount;

impl Control {
    pub(super) async fn open_changes(
        &self,
        volume: VolumeId,
        snapshot: Option<String>,
        since: Option<Since>,
    ) -> Result<VolumeControlReply, Refusal> {
        let handle = self.begun_here(volume)?;
        let since = match since {
            None => CompareWith::Nothing,
            Some(Since {
                volume: Some(ancestor),
                snapshot,
            }) if ancestor != volume => {
                CompareWith::Ancestor(find_ancestor(&self.shard.node, ancestor, &snapshot).await?)
            }
            Some(Since { snapshot, .. }) => CompareWith::Snapshot(snapshot),
        };
        let opened = handle.open_compared(snapshot, since).await?;
        let number = self.add(&Open {
            volume,
            handle,
            generation: opened.generation,
            on: OpenOn::Compared(opened.compared),
            io: IoCount::default(),
            pass: Pass::NONE,
        })?;
        Ok(VolumeControlReply::OpenedChanges {
            handle: number,
            epoch: opened.epoch,
            size: opened.size,
            snapshot: opened.compared.of,
            since: opened.since,
        })
    }
}
