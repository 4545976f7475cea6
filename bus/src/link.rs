//! One way to reach a peer, whatever carries the bytes.
//!
//! Keeps: the two halves of a connection (client side) and of a listening socket (server side).
//! Order: messages of one connection arrive in the order sent, unless an in-process network is told to disturb it.
//! Crash: a lost connection is reported by the receiving half; what was under way may or may not have arrived.
//! Knows no envelope: it carries frames.

use bytes::Bytes;
use sconce_schemas::wire::Refusal;

use crate::{in_process, zeromq};

/// The frames of a message: the header, and the data frame (empty: there is none).
#[derive(Debug, Clone, Default)]
pub(crate) struct Frames {
    pub(crate) header: Bytes,
    pub(crate) data: Bytes,
}

impl Frames {
    /// Both frames together, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.header.len() as u64 + self.data.len() as u64
    }
}

/// Why a connection was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// The peer closed it or died.
    #[error("the peer closed the connection")]
    Closed,
    /// Requests were outstanding and nothing was heard, not even an answer to pings.
    #[error("the peer was silent for {0:?} with requests outstanding")]
    Silent(std::time::Duration),
    /// The peer ended it and said why.
    #[error("the peer ended the connection: {0}")]
    Goodbye(Refusal),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The in-process network was told to lose it.
    #[error("the network lost the connection")]
    Cut,
}

/// Sending half of a client's connection.
pub(crate) enum LinkSender {
    Zeromq(zeromq::DialSender),
    InProcess(in_process::DialSender),
}

impl LinkSender {
    pub(crate) async fn send(&mut self, frames: Frames) -> Result<(), LostReason> {
        match self {
            LinkSender::Zeromq(sender) => sender.send(frames).await,
            LinkSender::InProcess(sender) => sender.send(frames),
        }
    }
}

/// Receiving half of a client's connection.
pub(crate) enum LinkReceiver {
    Zeromq(zeromq::DialReceiver),
    InProcess(in_process::DialReceiver),
}

impl LinkReceiver {
    /// The next message. Dropping the future loses none.
    pub(crate) async fn recv(&mut self) -> Result<Frames, LostReason> {
        match self {
            LinkReceiver::Zeromq(receiver) => receiver.recv().await,
            LinkReceiver::InProcess(receiver) => receiver.recv().await,
        }
    }
}

/// How a listening socket tells its connections apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PeerKey(pub(crate) Bytes);

/// What happened at a listening socket.
pub(crate) enum Arrival {
    /// A message came. `again`: the in-process network's duplicate of one that came before.
    Message { frames: Frames, again: bool },
    /// The message is not one or two frames.
    Malformed { parts: usize },
    /// The connection is gone.
    Gone,
}

/// Sending half of a listening socket.
#[derive(Clone)]
pub(crate) enum ListenSender {
    Zeromq(zeromq::ListenSender),
    InProcess(in_process::ListenSender),
}

impl ListenSender {
    /// Sends to a peer. False: it is gone, which the receiving half reports too (or has reported).
    pub(crate) async fn send(&mut self, peer: &PeerKey, frames: Frames) -> bool {
        match self {
            ListenSender::Zeromq(sender) => sender.send(peer, frames).await,
            ListenSender::InProcess(sender) => sender.send(peer, frames),
        }
    }

    /// Ends a peer's connection after what was sent to it.
    pub(crate) fn drop_peer(&mut self, peer: &PeerKey) {
        match self {
            ListenSender::Zeromq(sender) => sender.drop_peer(peer),
            ListenSender::InProcess(sender) => sender.drop_peer(peer),
        }
    }
}

/// Receiving half of a listening socket.
pub(crate) enum ListenReceiver {
    Zeromq(zeromq::ListenReceiver),
    InProcess(in_process::ListenReceiver),
}

impl ListenReceiver {
    /// The TCP port where remote clients are taken, where they are.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            ListenReceiver::Zeromq(receiver) => receiver.port(),
            ListenReceiver::InProcess(_) => None,
        }
    }

    /// The next event. Dropping the future loses none.
    pub(crate) async fn recv(&mut self) -> (PeerKey, Arrival) {
        match self {
            ListenReceiver::Zeromq(receiver) => receiver.recv().await,
            ListenReceiver::InProcess(receiver) => receiver.recv().await,
        }
    }
}
