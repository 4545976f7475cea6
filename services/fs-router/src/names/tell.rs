//! Keeps: control calls to the owner of a volume, wherever that is now.
//! Order: the registry says who owns; a `NotOwner` answer, an owner that restarts or one that waits is asked again
//! until the deadline.
//! Crash: what an owner was not told of it finds in the registry at its next start.
//! Knows no data path: that is the routing core's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sconce_bus::{CallError, Caller, Endpoint, Network};
use sconce_schemas::records::NodeRecord;
use sconce_schemas::records::keys;
use sconce_schemas::wire::Hello;
use sconce_schemas::wire::refusal::{Refusal, Remedy};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest};
use sconce_schemas::{NodeName, VolumeId};
use tokio::time::Instant;

use super::{Names, NamesError};

/// Pause before an owner that could not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// Control answers are small; a node's status with thousands of volumes is the largest.
const REPLY_BYTES: u32 = 1 << 20;
/// How long one owner is told of a change before it is left to find out by itself.
const TELL_DEADLINE: Duration = Duration::from_secs(2);
/// Owners told at the same time.
const TELL_CONCURRENCY: usize = 8;

/// Why an owner did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The registry did not lead to an owner.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The owner is not among the running services, or does not answer.
    #[error("volume-router {owner} does not answer: {why}")]
    Silent {
        /// The owner.
        owner: NodeName,
        /// What is known.
        why: String,
    },
    /// The owner's record names no endpoint that this build can use.
    #[error("volume-router {owner} announces the endpoint {endpoint:?}, which cannot be used: {why}")]
    Endpoint {
        /// The owner.
        owner: NodeName,
        /// The endpoint.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// The owner said no.
    #[error("{0}")]
    Refused(Refusal),
    /// The owner answered something else.
    #[error("volume-router {owner} gave an answer to another question; is it of the same version?")]
    Answer {
        /// The owner.
        owner: NodeName,
    },
}

/// Control calls to owners. Lives on one thread, like the sockets that it uses.
pub struct Owners {
    names: Names,
    network: Network,
    hello: Hello,
    callers: RefCell<HashMap<Endpoint, Caller<VolumeRequest, VolumeReply>>>,
}

impl Owners {
    /// Calls over `network`, greeting with `hello`.
    #[must_use]
    pub fn new(names: Names, network: Network, hello: Hello) -> Self {
        Self {
            names,
            network,
            hello,
            callers: RefCell::default(),
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
    ) -> Result<VolumeControlReply, OwnerError> {
        let give_up = Instant::now() + deadline;
        let request = VolumeRequest::Control(control);
        loop {
            let owner = self.names.volume(volume).await?.owner;
            let left = give_up.saturating_duration_since(Instant::now());
            let error = match self.ask(&owner, volume, &request, left).await {
                Ok(reply) => return Ok(reply),
                Err(OwnerError::Refused(refusal))
                    if matches!(refusal.remedy, Remedy::Reject | Remedy::Damaged) =>
                {
                    return Err(OwnerError::Refused(refusal));
                }
                Err(error) => error,
            };
            if Instant::now() + PAUSE >= give_up {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
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
        request: &VolumeRequest,
        deadline: Duration,
    ) -> Result<VolumeControlReply, OwnerError> {
        let silent = |why: String| OwnerError::Silent {
            owner: node.clone(),
            why,
        };
        let record = self.names.read::<NodeRecord>(keys::node(node)).await?;
        let record = record.ok_or_else(|| silent("it is not running (`sconce status`)".to_owned()))?;
        let caller = self.caller(&record.record, volume)?;
        match caller.call(request, Bytes::new(), REPLY_BYTES, deadline).await {
            Ok((VolumeReply::Control(reply), _)) => Ok(reply),
            Ok((VolumeReply::Done, _)) => Ok(VolumeControlReply::Done),
            Ok((VolumeReply::Refused(refusal), _)) | Err(CallError::Refused(refusal)) => {
                Err(OwnerError::Refused(refusal))
            }
            Ok(_) => Err(OwnerError::Answer { owner: node.clone() }),
            Err(error) => Err(silent(error.to_string())),
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

    fn caller(
        &self,
        node: &NodeRecord,
        volume: VolumeId,
    ) -> Result<Caller<VolumeRequest, VolumeReply>, OwnerError> {
        let wrong = |endpoint: &str, why: String| OwnerError::Endpoint {
            owner: node.name.clone(),
            endpoint: endpoint.to_owned(),
            why,
        };
        let text = node
            .endpoint_of(volume)
            .ok_or_else(|| wrong("", "it announces none".to_owned()))?;
        let endpoint: Endpoint = text.parse().map_err(|error| wrong(text, format!("{error}")))?;
        let mut callers = self.callers.borrow_mut();
        let caller = callers
            .entry(endpoint.clone())
            .or_insert_with(|| Caller::new(&self.network, &endpoint, self.hello.clone()));
        Ok(caller.clone())
    }
}
