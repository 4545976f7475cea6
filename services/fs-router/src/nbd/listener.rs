//! Listening for NBD clients, and handing each to an IO thread.
//!
//! Keeps: the listening sockets; a count of clients.
//! Order: a client that is one too many is closed at once, before it costs anything. Clients that the last process left
//! come before all others.
//! Crash: the sockets stay with the descriptor store; without one the unix socket's file stays behind, and the next
//! process removes it.
//! Knows no protocol.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sconce_runtime::settings::ByteSize;
use sconce_runtime::{DescriptorStore, Stop, Throttle};
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::handover::{self, Left};
use super::negotiation::{Chosen, Exports, Failed, Negotiation};
use super::stream::{Accepted, Stream};
use super::transmission::{Connection, Ended, Transmission};
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
    descriptors: DescriptorStore,
    /// Clients of the last process.
    left: Vec<Left<Accepted>>,
}

/// What the listening sockets are called in the descriptor store.
const UNIX: &str = "nbd-unix";
const TCP: &str = "nbd-tcp";

/// Lines about clients that are turned away or break the protocol: one for each cause in this time.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How long clients have for their last answers when the service stops.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(5);

/// How long a client that is in its handshake has for it at a hand-over.
const LAST_OPTIONS_MAX: Duration = Duration::from_secs(2);

/// After an accept that failed for want of something (files, memory): how long to wait for it.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Listener {
    /// Listens, with the sockets and clients of the last process where the store has them.
    ///
    /// # Errors
    /// A path or address cannot be used, or is used by another process.
    pub async fn bind(
        settings: &NbdSettings,
        descriptors: &DescriptorStore,
    ) -> Result<Listener, ListenError> {
        let unix = bind_unix(&settings.socket, descriptors)?;
        let tcp = match settings.tcp {
            Some(address) => {
                let bound = bind_tcp(address, descriptors).await;
                Some(bound.map_err(|source| ListenError::Tcp { address, source })?)
            }
            None => {
                let_go(descriptors, TCP);
                None
            }
        };
        Ok(Listener {
            unix,
            path: settings.socket.clone(),
            tcp,
            clients_max: settings.clients_max,
            memory: settings.memory,
            descriptors: descriptors.clone(),
            left: handover::take(descriptors),
        })
    }

    /// The address that TCP clients reach, where there is one.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Serves clients until the stop is requested and they have their last answers, or are handed over.
    pub async fn serve(mut self, threads: &[IoThread], names: &Names, in_use: &InUse, stop: &Stop) {
        let left = std::mem::take(&mut self.left);
        if !left.is_empty() {
            tracing::info!(
                clients = left.len(),
                "going on with the last process's NBD clients"
            );
        }
        let mut left = left.into_iter();
        let budget = Budget::new(self.memory);
        let places = Arc::new(Semaphore::new(self.clients_max));
        let mut turn = 0;
        loop {
            let arrived = match left.next() {
                Some(left) => Ok(Arrived::Before(Box::new(left))),
                None => tokio::select! {
                    biased;
                    () = stop.requested() => break,
                    accepted = self.accept() => accepted.map(Arrived::Now),
                },
            };
            let arrived = match arrived {
                Ok(arrived) => arrived,
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
                arrived,
                names: names.clone(),
                in_use: in_use.clone(),
                budget: budget.clone(),
                stop: stop.clone(),
                descriptors: self.descriptors.clone(),
                place,
            };
            if client.start(thread).await.is_err() {
                break;
            }
        }
        if !stop.hands_over() {
            // The name goes first: a client that comes now finds nobody, and tries again.
            remove(&self.path);
            let_go(&self.descriptors, UNIX);
            let_go(&self.descriptors, TCP);
        }
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

/// The unix socket at this path that the last process left, or a new one.
fn bind_unix(path: &Path, descriptors: &DescriptorStore) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    if let Some(held) = taken(descriptors, UNIX) {
        let held = std::os::unix::net::UnixListener::from(held);
        let is_here = held
            .local_addr()
            .is_ok_and(|address| address.as_pathname() == Some(path));
        if is_here && path.exists() {
            held.set_nonblocking(true).map_err(failed)?;
            return UnixListener::from_std(held).map_err(failed);
        }
        // Settings have changed, or somebody removed the name: nobody finds it.
        let_go(descriptors, UNIX);
    }
    let bound = bind_new_unix(path)?;
    put(descriptors, UNIX, bound.as_fd());
    Ok(bound)
}

/// The TCP socket of this address that the last process left, or a new one.
async fn bind_tcp(address: SocketAddr, descriptors: &DescriptorStore) -> io::Result<TcpListener> {
    if let Some(held) = taken(descriptors, TCP) {
        let held = std::net::TcpListener::from(held);
        if held.local_addr()? == address {
            held.set_nonblocking(true)?;
            return TcpListener::from_std(held);
        }
        let_go(descriptors, TCP);
    }
    let bound = TcpListener::bind(address).await?;
    put(descriptors, TCP, bound.as_fd());
    Ok(bound)
}

/// The socket under this name; of several (nobody stores several) none.
fn taken(descriptors: &DescriptorStore, name: &str) -> Option<OwnedFd> {
    let mut held = descriptors.take(name);
    if held.len() > 1 {
        let_go(descriptors, name);
        return None;
    }
    held.pop()
}

fn put(descriptors: &DescriptorStore, name: &str, socket: std::os::fd::BorrowedFd<'_>) {
    if let Err(error) = descriptors.store(name, &[socket]) {
        tracing::warn!(%error, name, "a listening socket will end with this process");
    }
}

fn let_go(descriptors: &DescriptorStore, name: &str) {
    if let Err(error) = descriptors.remove(name) {
        tracing::warn!(%error, name, "a listening socket stays in the store");
    }
}

/// Binds the unix socket, and takes it over from a process that is gone.
fn bind_new_unix(path: &Path) -> Result<UnixListener, ListenError> {
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

/// How a client came.
enum Arrived {
    /// To this process.
    Now(Accepted),
    /// To the last one.
    Before(Box<Left<Accepted>>),
}

/// A client on its way to an IO thread.
struct Client {
    arrived: Arrived,
    names: Names,
    in_use: InUse,
    budget: Budget,
    stop: Stop,
    descriptors: DescriptorStore,
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
                if let Some((stream, chosen, unsent)) = agree(self.arrived, exports, &self.stop).await {
                    serve(
                        stream,
                        chosen,
                        unsent,
                        &self.budget,
                        &self.stop,
                        &self.descriptors,
                    )
                    .await;
                }
                drop(self.place);
            })
            .await
    }
}

/// Comes to an export, and to what the client has to be sent first.
async fn agree(arrived: Arrived, exports: Exports, stop: &Stop) -> Option<(Stream, Chosen, Vec<u8>)> {
    let (accepted, left) = match arrived {
        Arrived::Now(accepted) => (accepted, None),
        Arrived::Before(left) => (left.stream, Some((left.record, left.unread, left.unsent))),
    };
    let mut stream = match accepted.into_stream() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "cannot serve an NBD client");
            return None;
        }
    };
    if let Some((record, unread, unsent)) = left {
        let chosen = exports.go_on(record, &unread);
        return Some((stream, chosen, unsent));
    }
    let negotiation = Negotiation::new(&mut stream, exports);
    let chosen = tokio::select! {
        chosen = negotiation.run() => chosen,
        () = time_is_up(stop) => return None,
    };
    match chosen {
        Ok(chosen) => {
            tracing::info!(export = chosen.name, "NBD client connected");
            Some((stream, chosen, Vec::new()))
        }
        Err(Failed::Aborted) => None,
        Err(failed) => {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::info!(reason = %failed, unsaid, "NBD handshake failed");
            }
            None
        }
    }
}

/// A handshake ends at the stop; at a hand-over it may come to its end before.
async fn time_is_up(stop: &Stop) {
    stop.requested().await;
    if stop.hands_over() {
        tokio::time::sleep(LAST_OPTIONS_MAX).await;
    }
}

async fn serve(
    stream: Stream,
    chosen: Chosen,
    unsent: Vec<u8>,
    budget: &Budget,
    stop: &Stop,
    descriptors: &DescriptorStore,
) {
    let name = chosen.name;
    let connection = Connection {
        stream,
        agreed: chosen.agreed,
        front_end: chosen.front_end,
        session: chosen.session,
        contexts: chosen.contexts,
        unread: chosen.rest,
        unsent,
    };
    let ended = Transmission::new(connection, budget).run(stop).await;
    drop(chosen.in_use);
    match ended {
        Ok(mut left) => {
            left.record.export = name;
            if let Err(error) = left.store(descriptors) {
                tracing::warn!(export = left.record.export, %error, "an NBD client is not handed over");
            }
        }
        Err(ended @ Ended::Protocol(_)) => {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::warn!(export = name, reason = %ended, unsaid, "NBD client dropped");
            }
        }
        Err(ended) => tracing::info!(export = name, reason = %ended, "NBD client gone"),
    }
}
