//! Keeps: control calls and small reads to storage-routers.
//! Order: any storage-router that runs can answer for a whole pool; one that does not answer is passed over.
//! Crash: nothing is written.
//! Knows no cache and no placement.

use std::time::Duration;

use bytes::Bytes;
use sconce_bus::Protocol;
use sconce_schemas::records::NodeRecord;
use sconce_schemas::wire::event::{EventPage, EventsAsk};
use sconce_schemas::wire::storage::{
    GET_BYTES_MAX, StorageControl, StorageControlReply, StorageNodeStatus, StorageReply, StorageRequest,
};
use sconce_schemas::wire::{Remedy, Role};
use sconce_schemas::{NodeName, ObjectName};

use super::{Callers, Identity, PeerError};
use crate::names::Names;

/// Calls to storage-routers.
pub struct StorageRouters {
    names: Names,
    callers: Callers<StorageRequest, StorageReply>,
}

impl StorageRouters {
    /// Calls as `identity` says.
    #[must_use]
    pub fn new(names: Names, identity: Identity) -> Self {
        Self {
            names,
            callers: Callers::new(identity, Protocol::Storage),
        }
    }

    /// The storage-routers that run.
    ///
    /// # Errors
    /// The registry is unreachable.
    pub async fn running(&self) -> Result<Vec<NodeRecord>, PeerError> {
        let nodes = self.names.nodes().await?;
        Ok(nodes
            .into_iter()
            .filter(|node| node.role == Role::StorageRouter)
            .collect())
    }

    /// What a storage-router knows of itself and its back ends.
    ///
    /// # Errors
    /// It does not answer within the deadline, or refuses.
    pub async fn status(
        &self,
        node: &NodeRecord,
        deadline: Duration,
    ) -> Result<StorageNodeStatus, PeerError> {
        let request = StorageRequest::Control(StorageControl::NodeStatus);
        match self.ask(node, &request, 0, deadline).await? {
            (StorageReply::Control(StorageControlReply::Node(status)), _) => Ok(status),
            _ => Err(other_answer(&node.name)),
        }
    }

    /// What happened at a storage-router, as it tells it.
    ///
    /// # Errors
    /// It does not answer within the deadline, or refuses.
    pub async fn events(
        &self,
        node: &NodeRecord,
        ask: EventsAsk,
        deadline: Duration,
    ) -> Result<EventPage, PeerError> {
        let request = StorageRequest::Control(StorageControl::Events(ask));
        match self.ask(node, &request, 0, deadline).await? {
            (StorageReply::Control(StorageControlReply::Events(page)), _) => Ok(page),
            _ => Err(other_answer(&node.name)),
        }
    }

    /// Asks any storage-router.
    ///
    /// # Errors
    /// None runs or answers within the deadline; one refuses for good, or all of them for now.
    pub async fn control(
        &self,
        control: StorageControl,
        deadline: Duration,
    ) -> Result<StorageControlReply, PeerError> {
        let request = StorageRequest::Control(control);
        match self.ask_any(&request, 0, deadline).await? {
            (StorageReply::Control(reply), _, _) => Ok(reply),
            (_, _, node) => Err(other_answer(&node)),
        }
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// As [`StorageRouters::control`]; it is larger than `bytes_max`.
    pub async fn get(
        &self,
        pool: &str,
        name: ObjectName,
        bytes_max: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let mut object = Vec::new();
        loop {
            let request = StorageRequest::Get {
                pool: pool.to_owned(),
                name,
                offset: object.len() as u64,
                length: GET_BYTES_MAX,
                cached: false,
            };
            let (reply, data, node) = self.ask_any(&request, GET_BYTES_MAX, deadline).await?;
            if reply != StorageReply::Data || object.len() + data.len() > bytes_max {
                return Err(other_answer(&node));
            }
            object.extend_from_slice(&data);
            if data.len() < usize::try_from(GET_BYTES_MAX).unwrap_or(usize::MAX) {
                return Ok(object);
            }
        }
    }

    async fn ask_any(
        &self,
        request: &StorageRequest,
        reply_bytes: u32,
        deadline: Duration,
    ) -> Result<(StorageReply, Bytes, NodeName), PeerError> {
        let mut last = PeerError::None {
            role: "storage-router",
        };
        for node in self.running().await? {
            match self.ask(&node, request, reply_bytes, deadline).await {
                Ok((reply, data)) => return Ok((reply, data, node.name)),
                // Another may reach a back end that this one does not reach now.
                Err(PeerError::Refused(refusal)) if refusal.remedy != Remedy::Retry => {
                    return Err(PeerError::Refused(refusal));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        node: &NodeRecord,
        request: &StorageRequest,
        reply_bytes: u32,
        deadline: Duration,
    ) -> Result<(StorageReply, Bytes), PeerError> {
        let endpoint = node.endpoints.first().ok_or_else(|| PeerError::Silent {
            node: node.name.clone(),
            why: "it announces no endpoint".to_owned(),
        })?;
        match self
            .callers
            .call(&node.name, endpoint, request, reply_bytes, deadline)
            .await?
        {
            (StorageReply::Refused(refusal), _) => Err(PeerError::Refused(refusal)),
            answer => Ok(answer),
        }
    }
}

fn other_answer(node: &NodeName) -> PeerError {
    PeerError::Answer { node: node.clone() }
}
