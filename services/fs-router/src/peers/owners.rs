//! Keeps: control calls to the owner of a volume, wherever that is now.
//! Order: the registry says who owns; a `NotOwner` answer, an owner that restarts or one that waits is asked again
//! until the deadline.
//! Crash: what an owner was not told of it finds in the registry at its next start.
//! Knows no data path: that is the routing core's.

use std::time::Duration;

use futures_util::StreamExt;
use sconce_bus::Protocol;
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::event::{EventPage, EventsAsk};
use sconce_schemas::wire::volume::{
    SnapshotStatus, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest, VolumeStatus,
};
use sconce_schemas::{Epoch, NodeName, VolumeId};
use tokio::time::Instant;

use super::{Callers, Identity, PeerError};
use crate::names::Names;

/// Pause before an owner that could not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one owner is told of a change before it is left to find out by itself.
const TELL_DEADLINE: Duration = Duration::from_secs(2);
/// Owners told at the same time.
const TELL_CONCURRENCY: usize = 8;

/// The state of a volume that is going to be served as soon as its recovery is done.
const STARTING: &str = "starting";

/// Whether the figures of a status are real: a volume that is not served has no epoch there, and no size.
#[must_use]
pub fn is_served(status: &VolumeStatus) -> bool {
    status.epoch != Epoch::NONE
}

/// Whether a volume that is not served is going to be soon; otherwise it waits for something, perhaps for ever.
#[must_use]
pub fn is_starting(status: &VolumeStatus) -> bool {
    status.state == STARTING
}

/// Control calls to volume-routers.
pub struct Owners {
    pub(super) names: Names,
    callers: Callers<VolumeRequest, VolumeReply>,
}

impl Owners {
    /// Calls as `identity` says.
    #[must_use]
    pub fn new(names: Names, identity: Identity) -> Self {
        Self {
            names,
            callers: Callers::new(identity, Protocol::Volume),
        }
    }

    /// Asks the owner of `volume`, for up to `deadline`.
    ///
    /// # Errors
    /// No such volume, no answer within the deadline, or a refusal that asking again does not change.
    pub async fn call(
        &self,
        volume: VolumeId,
        control: VolumeControl,
        deadline: Duration,
    ) -> Result<VolumeControlReply, PeerError> {
        self.call_unless(volume, control, deadline, |_| false).await
    }

    /// Asks the owner of `volume`, for up to `deadline` or until an answer that asking again is not worth.
    async fn call_unless(
        &self,
        volume: VolumeId,
        control: VolumeControl,
        deadline: Duration,
        is_final: impl Fn(&PeerError) -> bool,
    ) -> Result<VolumeControlReply, PeerError> {
        let give_up = Instant::now() + deadline;
        loop {
            let owner = self.names.volume(volume).await?.owner;
            let left = give_up.saturating_duration_since(Instant::now());
            let error = match self.ask(&owner, volume, control.clone(), left).await {
                Err(PeerError::Refused(refusal))
                    if matches!(refusal.remedy, Remedy::Reject | Remedy::Damaged) =>
                {
                    return Err(PeerError::Refused(refusal));
                }
                Err(error) => error,
                reply => return reply,
            };
            if is_final(&error) || Instant::now() + PAUSE >= give_up {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What the owner of `volume` knows of it. An owner that is only starting the volume is asked again until the
    /// deadline; whatever it says then counts: its figures do when [`is_served`]. One that does not run is not waited
    /// for: what the registry knows has to do.
    ///
    /// # Errors
    /// As [`Owners::call`].
    pub async fn show(&self, volume: VolumeId, deadline: Duration) -> Result<VolumeStatus, PeerError> {
        let give_up = Instant::now() + deadline;
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            let show = VolumeControl::Show { volume };
            let is_final = |error: &PeerError| matches!(error, PeerError::Absent { .. });
            let status = match self.call_unless(volume, show, left, is_final).await? {
                VolumeControlReply::Volume(status) => *status,
                _ => {
                    return Err(PeerError::Answer {
                        node: self.names.volume(volume).await?.owner,
                    });
                }
            };
            if is_served(&status) || !is_starting(&status) || Instant::now() + PAUSE >= give_up {
                return Ok(status);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The volume's snapshots, oldest first. An owner that does not run is not waited for.
    ///
    /// # Errors
    /// As [`Owners::call`].
    pub async fn snapshots(
        &self,
        volume: VolumeId,
        deadline: Duration,
    ) -> Result<Vec<SnapshotStatus>, PeerError> {
        let is_final = |error: &PeerError| matches!(error, PeerError::Absent { .. });
        let list = VolumeControl::ListSnapshots { volume };
        match self.call_unless(volume, list, deadline, is_final).await? {
            VolumeControlReply::Snapshots { snapshots } => Ok(snapshots),
            _ => Err(PeerError::Answer {
                node: self.names.volume(volume).await?.owner,
            }),
        }
    }

    /// Asks the volume-router `node` once, at the endpoint that serves `volume` (any volume, for what concerns the
    /// whole node).
    ///
    /// # Errors
    /// It does not run, does not answer within the deadline, or refuses.
    pub async fn ask(
        &self,
        node: &NodeName,
        volume: VolumeId,
        control: VolumeControl,
        deadline: Duration,
    ) -> Result<VolumeControlReply, PeerError> {
        let silent = |why: &str| PeerError::Silent {
            node: node.clone(),
            why: why.to_owned(),
        };
        let record = self
            .names
            .node(node)
            .await?
            .ok_or_else(|| PeerError::Absent { node: node.clone() })?;
        let endpoint = record
            .endpoint_of(volume)
            .ok_or_else(|| silent("it announces no endpoint"))?;
        let request = VolumeRequest::Control(control);
        match self.callers.call(node, endpoint, &request, 0, deadline).await?.0 {
            VolumeReply::Control(reply) => Ok(reply),
            VolumeReply::Done => Ok(VolumeControlReply::Done),
            VolumeReply::Refused(refusal) => Err(PeerError::Refused(refusal)),
            VolumeReply::Read(_)
            | VolumeReply::Extents(_)
            | VolumeReply::Changes(_)
            | VolumeReply::Twin(_) => Err(PeerError::Answer { node: node.clone() }),
        }
    }

    /// What happened at the volume-router `node`, as it tells it.
    ///
    /// # Errors
    /// As [`Owners::ask`].
    pub async fn events(
        &self,
        node: &NodeName,
        ask: EventsAsk,
        deadline: Duration,
    ) -> Result<EventPage, PeerError> {
        let ask = VolumeControl::Events(ask);
        match self.ask(node, VolumeId::default(), ask, deadline).await? {
            VolumeControlReply::Events(page) => Ok(page),
            _ => Err(PeerError::Answer { node: node.clone() }),
        }
    }

    /// Tells the owners of `volumes`, as far as they answer: one that does not finds out by itself.
    ///
    /// Answers how many could not be told.
    pub async fn tell(&self, volumes: &[VolumeId], what: impl Fn(VolumeId) -> VolumeControl) -> usize {
        let told = volumes
            .iter()
            .map(|volume| self.call(*volume, what(*volume), TELL_DEADLINE));
        let told = futures_util::stream::iter(told).buffer_unordered(TELL_CONCURRENCY);
        told.fold(0, async |untold, answer| untold + usize::from(answer.is_err()))
            .await
    }
}
