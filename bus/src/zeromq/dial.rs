//! A client's connection: one DEALER socket, thrown away when the connection is lost.
//!
//! Keeps: the socket's halves, what tells of its loss, and the tunnel to a remote server.
//! Order: messages arrive in the order sent; a loss is told after the last of them.
//! Crash: nothing.
//! Knows no envelope.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use zeromq::{DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketRecv, SocketSend};

use super::{socket_options, to_frames, to_message};
use crate::link::{Frames, LostReason};
use crate::network::DialError;
use crate::tls::Tunnel;

/// How long a server may take to answer ZeroMQ's own handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

pub(crate) struct DialSender(DealerSendHalf);

pub(crate) struct DialReceiver {
    messages: DealerRecvHalf,
    /// Tells of a lost peer, of which `recv` says nothing.
    monitor: futures_util::stream::BoxStream<'static, SocketEvent>,
    lost: bool,
    /// What leads to a remote server.
    _tunnel: Option<Tunnel>,
}

/// Connects to the server that listens at `path`.
pub(crate) async fn dial(path: &Path) -> Result<(DialSender, DialReceiver), DialError> {
    // The crate retries an absent server with pauses of its own. A plain connection tells at once whether anybody
    // listens, so that the bus keeps its own, shorter pauses.
    let probe = tokio::net::UnixStream::connect(path).await;
    drop(probe.map_err(|e| DialError::Absent(format!("{}: {e}", path.display())))?);
    connect(path, None).await
}

/// Connects to the remote server that a tunnel leads to.
pub(crate) async fn dial_tunnel(tunnel: Tunnel) -> Result<(DialSender, DialReceiver), DialError> {
    let path = tunnel.path().to_owned();
    connect(&path, Some(tunnel)).await
}

async fn connect(path: &Path, tunnel: Option<Tunnel>) -> Result<(DialSender, DialReceiver), DialError> {
    let mut options = socket_options();
    options.connect_timeout(HANDSHAKE);
    let mut socket = DealerSocket::with_options(options);
    let monitor = socket.monitor().boxed();
    let address = format!("ipc://{}", path.display());
    socket
        .connect(&address)
        .await
        .map_err(|e| DialError::Absent(format!("{address}: {e}")))?;
    let (sender, messages) = socket.split();
    let receiver = DialReceiver {
        messages,
        monitor,
        lost: false,
        _tunnel: tunnel,
    };
    Ok((DialSender(sender), receiver))
}

impl DialSender {
    pub(crate) async fn send(&mut self, frames: Frames) -> Result<(), LostReason> {
        self.0
            .send(to_message(frames))
            .await
            .map_err(|_| LostReason::Closed)
    }
}

impl DialReceiver {
    pub(crate) async fn recv(&mut self) -> Result<Frames, LostReason> {
        while !self.lost {
            tokio::select! {
                biased;
                message = self.messages.recv() => {
                    let message = message.map_err(|e| LostReason::Protocol(e.to_string()))?;
                    return to_frames(message.into_vecdeque())
                        .map_err(|parts| LostReason::Protocol(format!("a message of {parts} parts")));
                }
                event = self.monitor.next() => {
                    self.lost = matches!(event, None | Some(SocketEvent::Disconnected(_)));
                }
            }
        }
        Err(LostReason::Closed)
    }
}
