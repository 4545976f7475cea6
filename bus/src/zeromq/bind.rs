//! A server's socket: one ROUTER.
//!
//! Keeps: the socket, the name that it is bound under, and the bridge for remote clients where there is one.
//! Order: messages of one client arrive in the order sent; its end is told after the last of them.
//! Crash: the socket's file stays behind and is taken over by the next process.
//! Knows no envelope.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use zeromq::util::PeerIdentity;
use zeromq::{MultiPeerBackend, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketEvent};
use zeromq::{SocketRecv, SocketSend};

use super::directory::{SocketName, bind_socket};
use super::{socket_options, to_frames, to_message};
use crate::endpoint::Endpoint;
use crate::link::{Arrival, Frames, PeerKey};
use crate::network::BindError;
use crate::tls::Bridge;

#[derive(Clone)]
pub(crate) struct ListenSender {
    messages: RouterSendHalf,
    /// The crate's only way to end one peer's connection.
    peers: Arc<dyn MultiPeerBackend>,
}

pub(crate) struct ListenReceiver {
    messages: RouterRecvHalf,
    /// Tells which peers are gone, of which `recv` says nothing.
    monitor: BoxStream<'static, SocketEvent>,
    _name: SocketName,
    /// What leads remote clients here.
    bridge: Option<Bridge>,
}

/// Listens at `path`.
pub(crate) async fn listen(
    endpoint: &Endpoint,
    path: &Path,
) -> Result<(ListenSender, ListenReceiver), BindError> {
    let (listener, name) = bind_socket(endpoint, path)?;
    let mut socket = RouterSocket::with_options(socket_options());
    let monitor = socket.monitor().boxed();
    socket
        .bind_listener(listener)
        .await
        .map_err(|e| BindError::Refused {
            endpoint: endpoint.clone(),
            action: "listen",
            detail: e.to_string(),
        })?;
    let peers = socket.backend();
    let (sender, messages) = socket.split();
    let sender = ListenSender {
        messages: sender,
        peers,
    };
    let receiver = ListenReceiver {
        messages,
        monitor,
        _name: name,
        bridge: None,
    };
    Ok((sender, receiver))
}

impl ListenSender {
    /// Sends; false: the peer is gone.
    pub(crate) async fn send(&mut self, peer: &PeerKey, frames: Frames) -> bool {
        let mut message = to_message(frames);
        message.push_front(peer.0.clone());
        self.messages.send(message).await.is_ok()
    }

    /// Closes the connection once what was sent is written; what the peer sends from now on is not read.
    pub(crate) fn drop_peer(&mut self, peer: &PeerKey) {
        if let Ok(identity) = PeerIdentity::try_from(peer.0.clone()) {
            self.peers.peer_disconnected(&identity);
        }
    }
}

impl ListenReceiver {
    /// Keeps the bridge that leads here for as long as this listens.
    pub(crate) fn keep(&mut self, bridge: Bridge) {
        self.bridge = Some(bridge);
    }

    /// The TCP port of the bridge.
    pub(crate) fn port(&self) -> Option<u16> {
        self.bridge.as_ref().map(Bridge::port)
    }

    pub(crate) async fn recv(&mut self) -> (PeerKey, Arrival) {
        loop {
            tokio::select! {
                biased;
                message = self.messages.recv() => {
                    // An error here means that no peer is there at all, and the crate waits for one instead.
                    let Ok(message) = message else { continue };
                    let mut parts = message.into_vecdeque();
                    let peer = PeerKey(parts.pop_front().unwrap_or_default());
                    let arrival = match to_frames(parts) {
                        Ok(frames) => Arrival::Message { frames, again: false },
                        Err(parts) => Arrival::Malformed { parts },
                    };
                    return (peer, arrival);
                }
                Some(event) = self.monitor.next() => {
                    if let SocketEvent::Disconnected(peer) = event {
                        return (PeerKey(peer.into()), Arrival::Gone);
                    }
                }
            }
        }
    }
}
