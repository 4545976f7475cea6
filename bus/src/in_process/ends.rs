//! The ends of in-process connections, as links.
//!
//! Keeps: which connection each end is of; dropping an end closes it.
//! Order: as the wires deliver.
//! Crash: nothing.
//! Knows no faults: those are the wires'.

use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::NodeName;
use tokio::sync::Notify;

use super::InProcess;
use super::wires::{ConnectionId, Delivery, Listener, Next};
use crate::endpoint::Endpoint;
use crate::link::{Arrival, Frames, LostReason, PeerKey};
use crate::network::{BindError, DialError};

/// A client's hold on its connection; gone when both halves are.
struct Hold {
    network: InProcess,
    id: ConnectionId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.network.wires().leave(self.id);
    }
}

pub(crate) struct DialSender(Arc<Hold>);

pub(crate) struct DialReceiver {
    hold: Arc<Hold>,
    bell: Arc<Notify>,
}

/// Connects `client` to the server that listens under that name.
pub(crate) fn dial(
    network: &InProcess,
    client: &NodeName,
    name: &str,
) -> Result<(DialSender, DialReceiver), DialError> {
    let mut wires = network.wires();
    let id = wires.connect(client, name).map_err(DialError::Absent)?;
    let bell = wires.connections.get(&id).map(|c| c.bell.clone());
    drop(wires);
    let hold = Arc::new(Hold {
        network: network.clone(),
        id,
    });
    let receiver = DialReceiver {
        hold: hold.clone(),
        bell: bell.unwrap_or_default(),
    };
    Ok((DialSender(hold), receiver))
}

impl DialSender {
    pub(crate) fn send(&mut self, frames: Frames) -> Result<(), LostReason> {
        match self.0.network.wires().send_to_server(self.0.id, frames) {
            true => Ok(()),
            false => Err(LostReason::Cut),
        }
    }
}

impl DialReceiver {
    pub(crate) async fn recv(&mut self) -> Result<Frames, LostReason> {
        loop {
            let next = self.hold.network.wires().next_for_client(self.hold.id);
            match next {
                Next::Ready(arrival) => return arrival,
                next => wait(next, &self.bell).await,
            }
        }
    }
}

async fn wait<T>(next: Next<T>, bell: &Notify) {
    match next {
        Next::At(at) => {
            tokio::select! {
                biased;
                () = bell.notified() => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
        Next::Ready(_) | Next::Nothing => bell.notified().await,
    }
}

#[derive(Clone)]
pub(crate) struct ListenSender(InProcess);

pub(crate) struct ListenReceiver {
    network: InProcess,
    name: String,
    bell: Arc<Notify>,
}

/// Listens under a name.
pub(crate) fn listen(
    network: &InProcess,
    endpoint: &Endpoint,
    name: &str,
    node: &NodeName,
) -> Result<(ListenSender, ListenReceiver), BindError> {
    let mut wires = network.wires();
    if wires.listeners.contains_key(name) {
        return Err(BindError::InUse {
            endpoint: endpoint.clone(),
        });
    }
    let bell = Arc::new(Notify::new());
    let listener = Listener {
        node: node.clone(),
        inbox: std::collections::BTreeMap::new(),
        bell: bell.clone(),
    };
    wires.listeners.insert(name.to_owned(), listener);
    drop(wires);
    let receiver = ListenReceiver {
        network: network.clone(),
        name: name.to_owned(),
        bell,
    };
    Ok((ListenSender(network.clone()), receiver))
}

fn key_of(id: ConnectionId) -> PeerKey {
    PeerKey(Bytes::copy_from_slice(&id.to_be_bytes()))
}

fn id_of(key: &PeerKey) -> Option<ConnectionId> {
    <[u8; 8]>::try_from(&key.0[..])
        .ok()
        .map(ConnectionId::from_be_bytes)
}

impl ListenSender {
    pub(crate) fn send(&mut self, peer: &PeerKey, frames: Frames) -> bool {
        id_of(peer).is_some_and(|id| self.0.wires().send_to_client(id, frames))
    }

    pub(crate) fn drop_peer(&mut self, peer: &PeerKey) {
        if let Some(id) = id_of(peer) {
            self.0.wires().close(id);
        }
    }
}

impl ListenReceiver {
    pub(crate) async fn recv(&mut self) -> (PeerKey, Arrival) {
        loop {
            let next = self.network.wires().next_for_server(&self.name);
            match next {
                Next::Ready(item) => {
                    let arrival = match item.what {
                        Delivery::Message { frames, again } => Arrival::Message { frames, again },
                        Delivery::Gone => Arrival::Gone,
                    };
                    return (key_of(item.connection), arrival);
                }
                next => wait(next, &self.bell).await,
            }
        }
    }
}

impl Drop for ListenReceiver {
    fn drop(&mut self) {
        self.network.wires().stop_listening(&self.name);
    }
}
