//! Control calls to the services that the registry names, for whoever is not on the data path.
//!
//! Keeps: one connection to each endpoint that was called.
//! Order: none between calls.
//! Crash: a call whose answer was lost may have been carried out; every control request may be sent again.
//! Knows no session and no operation: the data path is the routing core's.

mod group;
mod owners;
mod storage;

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{Body, CallError, Caller, Endpoint, Hello, Network, Protocol, Refuse, Role, Version};
use sconce_schemas::NodeName;
use sconce_schemas::wire::Refusal;

pub use group::{GroupCut, GroupFailure, GroupLabel, GroupMember, Say};
pub use owners::{Owners, is_served, is_starting};
pub use storage::StorageRouters;

use crate::names::NamesError;

/// Who calls, and over what.
#[derive(Clone)]
pub struct Identity {
    /// How messages travel.
    pub network: Network,
    /// What the caller is.
    pub role: Role,
    /// Who it is.
    pub node: NodeName,
}

/// Why a service did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The registry did not lead to it.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// It is not among the running services.
    #[error("{node} does not answer: it is not running")]
    Absent {
        /// The service.
        node: NodeName,
    },
    /// It does not answer.
    #[error("{node} does not answer: {why}")]
    Silent {
        /// The service.
        node: NodeName,
        /// What is known.
        why: String,
    },
    /// No service of this role runs.
    #[error("no {role} is running; `sconce status` shows what is")]
    None {
        /// The role.
        role: &'static str,
    },
    /// Its record names no endpoint that this build can use.
    #[error("{node} announces the endpoint {endpoint:?}, which cannot be used: {why}")]
    Endpoint {
        /// The service.
        node: NodeName,
        /// The endpoint.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(Refusal),
    /// It answered something else.
    #[error("{node} gave an answer to another question; is it of the same version?")]
    Answer {
        /// The service.
        node: NodeName,
    },
}

/// Connections of one protocol, by endpoint. Lives on one thread, like the sockets that it uses.
struct Callers<Q, R> {
    identity: Identity,
    protocol: Protocol,
    open: RefCell<HashMap<Endpoint, Caller<Q, R>>>,
}

impl<Q: Body, R: Body + Refuse> Callers<Q, R> {
    fn new(identity: Identity, protocol: Protocol) -> Self {
        Self {
            identity,
            protocol,
            open: RefCell::default(),
        }
    }

    /// Calls `node` at `endpoint`, once.
    async fn call(
        &self,
        node: &NodeName,
        endpoint: &str,
        request: &Q,
        reply_bytes: u32,
        deadline: Duration,
    ) -> Result<(R, Bytes), PeerError> {
        let parsed: Endpoint = endpoint.parse().map_err(|error| PeerError::Endpoint {
            node: node.clone(),
            endpoint: endpoint.to_owned(),
            why: format!("{error}"),
        })?;
        let caller = self.caller(&parsed);
        let called = caller.call(request, Bytes::new(), reply_bytes, deadline).await;
        called.map_err(|error| match error {
            CallError::Refused(refusal) => {
                // A connection that was refused makes no further try; the peer may be upgraded by the next call.
                self.open.borrow_mut().remove(&parsed);
                PeerError::Refused(refusal)
            }
            error => PeerError::Silent {
                node: node.clone(),
                why: error.to_string(),
            },
        })
    }

    fn caller(&self, endpoint: &Endpoint) -> Caller<Q, R> {
        let hello = || Hello {
            version: Version::CURRENT,
            protocol: self.protocol,
            role: self.identity.role,
            node: self.identity.node.clone(),
        };
        let mut open = self.open.borrow_mut();
        open.entry(endpoint.clone())
            .or_insert_with(|| Caller::new(&self.identity.network, endpoint, hello()))
            .clone()
    }
}
