//! Listening for NBD clients, and handing each to an IO thread.
//!
//! Keeps: the listening sockets; a count of clients.
//! Order: a client that is one too many is closed at once, before it costs anything.
//! Crash: the unix socket's file stays behind, and the next process removes it.
//! Knows no protocol.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Stop, Throttle};
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::negotiation::{Exports, Failed, Negotiation};
use super::stream::Accepted;
use super::transmission::{Ended, Transmission};
use crate::in_use::InUse;
use crate::io_thread::{IoThread, Stopped};
use crate::names::Names;

/// The section `[nbd]` of an fs-router's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdSettings {
    /// Where the unix socket is; whoever may write to it may use every volume.
    pub socket: PathBuf,
    /// Where to listen for TCP, if at all. NBD has no passwords: choose an address that only trusted hosts reach.
    #[serde(default)]
    pub tcp: Option<SocketAddr>,
    /// Most clients at a time.
    #[serde(default = "clients_max")]
    pub clients_max: usize,
    /// Bytes of requests and answers of all clients together, beyond the first 4 MiB of each.
    #[serde(default = "memory")]
    pub memory: ByteSize,
}

fn clients_max() -> usize {
    256
}

fn memory() -> ByteSize {
    ByteSize::new(1 << 30)
}

/// Why a socket cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The unix socket.
    #[error("NBD socket {}: {source}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process listens at the unix socket.
    #[error(
        "NBD socket {}: another process listens there; stop it first, or choose another path for [nbd] socket",
        path.display()
    )]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// The TCP socket.
    #[error("NBD address {address}: {source}")]
    Tcp {
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening sockets.
pub struct Listener {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
    clients_max: usize,
    memory: ByteSize,
}

/// Lines about clients that are turned away or break the protocol: one for each cause in this time.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How long clients have for their last answers when the service stops.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(5);

/// After an accept that failed for want of something (files, memory): how long to wait for it.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// A path or address cannot be used, or is used by another process.
    pub async fn bind(settings: &NbdSettings) -> Result<Listener, ListenError> {
        let unix = bind_unix(&settings.socket)?;
        let tcp = match settings.tcp {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| ListenError::Tcp { address, source })?)
            }
            None => None,
        };
        Ok(Listener {
            unix,
            path: settings.socket.clone(),
            tcp,
            clients_max: settings.clients_max,
            memory: settings.memory,
        })
    }

    /// The address that TCP clients reach, where there is one.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Serves clients until the stop is requested and they have their last answers.
    pub async fn serve(self, threads: &[IoThread], names: &Names, in_use: &InUse, stop: &Stop) {
        let budget = Budget::new(self.memory);
        let places = Arc::new(Semaphore::new(self.clients_max));
        let mut turn = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.requested() => break,
                accepted = self.accept() => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    static TOLD: Throttle = Throttle::every(TOLD_EVERY);
                    if let Some(unsaid) = TOLD.pass() {
                        tracing::warn!(%error, unsaid, "cannot accept an NBD client");
                    }
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                static TOLD: Throttle = Throttle::every(TOLD_EVERY);
                if let Some(unsaid) = TOLD.pass() {
                    tracing::warn!(
                        clients_max = self.clients_max,
                        unsaid,
                        "too many NBD clients: one more is turned away"
                    );
                }
                continue;
            };
            turn += 1;
            let thread = &threads[turn % threads.len()];
            let client = Client {
                accepted,
                names: names.clone(),
                in_use: in_use.clone(),
                budget: budget.clone(),
                stop: stop.clone(),
                place,
            };
            if client.start(thread).await.is_err() {
                break;
            }
        }
        // The name goes first: a client that comes now finds nobody, and tries again.
        remove(&self.path);
        let all = u32::try_from(self.clients_max).unwrap_or(u32::MAX);
        let gone = tokio::time::timeout(LAST_ANSWERS_MAX, places.acquire_many(all)).await;
        if gone.is_err() {
            tracing::info!("NBD clients with operations that are held were left without an answer");
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        let tcp = async {
            match &self.tcp {
                Some(tcp) => tcp.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            unix = self.unix.accept() => Ok(Accepted::Unix(unix?.0.into_std()?)),
            tcp = tcp => {
                let (stream, _) = tcp?;
                stream.set_nodelay(true)?;
                // A client whose machine is gone says nothing, ever.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Accepted::Tcp(stream.into_std()?))
            }
        }
    }
}

/// Binds the unix socket, and takes it over from a process that is gone.
fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    match UnixListener::bind(path) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ListenError::InUse {
                    path: path.to_owned(),
                });
            }
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the NBD socket");
    }
}

/// A client that was accepted, on its way to an IO thread.
struct Client {
    accepted: Accepted,
    names: Names,
    in_use: InUse,
    budget: Budget,
    stop: Stop,
    place: OwnedSemaphorePermit,
}

impl Client {
    async fn start(self, thread: &IoThread) -> Result<(), Stopped> {
        thread
            .spawn(move |router| async move {
                let exports = Exports {
                    names: self.names,
                    router,
                    in_use: self.in_use,
                };
                serve_client(self.accepted, exports, &self.budget, self.stop).await;
                drop(self.place);
            })
            .await
    }
}

async fn serve_client(accepted: Accepted, exports: Exports, budget: &Budget, stop: Stop) {
    let mut stream = match accepted.into_stream() {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "cannot serve an NBD client"),
    };
    let negotiation = Negotiation::new(&mut stream, exports);
    let chosen = tokio::select! {
        chosen = negotiation.run() => chosen,
        () = stop.requested() => return,
    };
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(Failed::Aborted) => return,
        Err(failed) => {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::info!(reason = %failed, unsaid, "NBD handshake failed");
            }
            return;
        }
    };
    let name = chosen.name;
    tracing::info!(export = name, "NBD client connected");
    let transmission = Transmission::new(
        stream,
        chosen.rest,
        chosen.agreed,
        chosen.front_end,
        chosen.session,
        chosen.contexts,
        budget,
    );
    let ended = transmission.run(stop.requested()).await;
    drop(chosen.in_use);
    match ended {
        ended @ Ended::Protocol(_) => {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::warn!(export = name, reason = %ended, unsaid, "NBD client dropped");
            }
        }
        ended => tracing::info!(export = name, reason = %ended, "NBD client gone"),
    }
}
