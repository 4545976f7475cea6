//! The bus connections of a router.
//!
//! Keeps: the sending half of each, and the task that receives.
//! Order: that of the bus.
//! Crash: that of the bus.
//! Knows no core beyond its [`Wire`].

use bytes::Bytes;
use sconce_bus::{Body, SendError, Sender};
use sconce_schemas::wire::storage::StorageRequest;
use sconce_schemas::wire::volume::VolumeRequest;
use sconce_tracing::{OperationId, telemetry};
use tokio::task::JoinHandle;

use super::core::{LinkKey, OwnerKey, Sent, StorageKey, Wire};

#[derive(Default)]
pub(super) struct Links {
    owners: Vec<Option<Link<VolumeRequest>>>,
    storage: Option<(StorageKey, Link<StorageRequest>)>,
}

struct Link<Q> {
    sender: Sender<Q>,
    receiving: JoinHandle<()>,
}

impl<Q> Drop for Link<Q> {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

impl Links {
    pub(super) fn add_owner(
        &mut self,
        key: OwnerKey,
        sender: Sender<VolumeRequest>,
        receiving: JoinHandle<()>,
    ) {
        if self.owners.len() <= key.0 {
            self.owners.resize_with(key.0 + 1, || None);
        }
        self.owners[key.0] = Some(Link { sender, receiving });
    }

    pub(super) fn set_storage(
        &mut self,
        key: StorageKey,
        sender: Sender<StorageRequest>,
        receiving: JoinHandle<()>,
    ) {
        self.storage = Some((key, Link { sender, receiving }));
    }

    pub(super) fn remove(&mut self, link: LinkKey) {
        match link {
            LinkKey::Owner(key) => {
                if let Some(slot) = self.owners.get_mut(key.0) {
                    *slot = None;
                }
            }
            LinkKey::Storage(key) => {
                if self.storage.as_ref().is_some_and(|(current, _)| *current == key) {
                    self.storage = None;
                }
            }
        }
    }
}

impl Wire for Links {
    fn to_owner(
        &mut self,
        link: OwnerKey,
        id: u64,
        trace: u64,
        request: &VolumeRequest,
        data: Bytes,
        reply_bytes: u32,
    ) -> Sent {
        match self.owners.get(link.0) {
            Some(Some(link)) => send(&link.sender, id, trace, request, data, reply_bytes),
            _ => Sent::NoRoom,
        }
    }

    fn to_storage(
        &mut self,
        link: StorageKey,
        id: u64,
        trace: u64,
        request: &StorageRequest,
        reply_bytes: u32,
    ) -> Sent {
        match &self.storage {
            Some((current, storage)) if *current == link => {
                send(&storage.sender, id, trace, request, Bytes::new(), reply_bytes)
            }
            _ => Sent::NoRoom,
        }
    }
}

fn send<Q: Body>(
    sender: &Sender<Q>,
    id: u64,
    trace: u64,
    request: &Q,
    data: Bytes,
    reply_bytes: u32,
) -> Sent {
    let trace = telemetry::sampled(OperationId(trace));
    match sender.send(id, trace, request, data, reply_bytes) {
        Ok(()) => Sent::Taken,
        Err(SendError::NoCredit(_) | SendError::Down(_)) => Sent::NoRoom,
        Err(error @ SendError::TooLarge { .. }) => Sent::Never(error.to_string()),
    }
}
