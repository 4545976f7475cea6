//! The client's side: a private unix socket that leads to a remote server.
//!
//! Keeps: one stream, for one connection of the local ZeroMQ socket.
//! Order: the remote is reached and checked before the private socket exists, so that an absent or wrong remote is an
//! error of the dialing, with its reason.
//! Crash: the private socket is left behind; its name is not used again by another process.
//! Knows no envelope.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sconce_schemas::NodeName;
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::carry::{Budget, Ended, carry};
use super::filter::Filter;
use super::{HANDSHAKE, TlsSettings, end_with_process, server_name, tune};
use crate::limits::Limits;
use crate::network::DialError;

/// How long a remote host may take to accept a TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the local ZeroMQ socket may take to connect.
const LOCAL: Duration = Duration::from_secs(10);

/// A way to a remote server; closed when it is dropped.
pub(crate) struct Tunnel {
    carrying: tokio::task::JoinHandle<()>,
    socket: PrivateSocket,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

impl Tunnel {
    /// The socket that leads there; takes one connection.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.socket.0
    }
}

/// A socket's file, removed when it is dropped.
struct PrivateSocket(PathBuf);

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // Already gone when the process's directory was cleaned up.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reaches `node` at `host:port` and opens a private socket in `dir`, a directory of mode 0700, that leads to it.
pub(crate) async fn tunnel(
    settings: &TlsSettings,
    (host, port, node): (&str, u16, &NodeName),
    dir: &std::path::Path,
) -> Result<Tunnel, DialError> {
    let absent = |e: &dyn std::fmt::Display| DialError::Absent(format!("tls://{host}:{port}/{node}: {e}"));
    // Read again for each connection: a renewed certificate is used from the next one on.
    let config = settings.client().map_err(|e| absent(&e))?;
    let stream = timeout(CONNECT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| absent(&format!("no answer within {CONNECT:?}")))?
        .map_err(|e| absent(&e))?;
    tune(&stream).map_err(|e| absent(&e))?;
    end_with_process(&stream).map_err(|e| absent(&e))?;
    let handshake = TlsConnector::from(config).connect(server_name(node), stream);
    let stream = timeout(HANDSHAKE, handshake)
        .await
        .map_err(|_| absent(&format!("no TLS handshake within {HANDSHAKE:?}")))?
        .map_err(|e| absent(&e))?;

    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let socket = PrivateSocket(dir.join(format!("to-{}-{number}", std::process::id())));
    // A process of the same number may have left one.
    let _ = std::fs::remove_file(&socket.0);
    let listener = UnixListener::bind(&socket.0).map_err(|e| absent(&e))?;
    let name = format!("tls://{host}:{port}/{node}");
    let carrying = tokio::task::spawn_local(async move {
        let Ok(Ok((local, _))) = timeout(LOCAL, listener.accept()).await else {
            return;
        };
        drop(listener);
        let limit = Limits::MESSAGE_BYTES_CEILING;
        // Who the server is was checked by its certificate.
        let filter = Filter::new(limit, Box::new(|_| Ok(())));
        match carry(stream, local, filter, Budget::new(limit)).await {
            Ended::ByPeer | Ended::ByUs => tracing::debug!(remote = name, "closed"),
            reason => tracing::info!(remote = name, %reason, "the connection ended"),
        }
    });
    Ok(Tunnel { carrying, socket })
}
