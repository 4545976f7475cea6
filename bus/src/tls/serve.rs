//! The server's side: listens on TCP, and leads who has a certificate to the local socket.
//!
//! Keeps: how many connections there are, of each certificate and in all.
//! Order: a stranger gets a TLS handshake and nothing else.
//! Crash: nothing; clients connect again.
//! Knows no envelope.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::CertificateDer;
use sconce_runtime::Throttle;
use sconce_schemas::NodeName;
use sconce_schemas::wire::envelope::Header;
use sconce_schemas::wire::registry::RegistryRequest;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::carry::{Budget, Ended, carry};
use super::filter::Filter;
use super::{HANDSHAKE, TlsSettings, server_name, tune};
use crate::endpoint::Endpoint;
use crate::network::BindError;

/// Most strangers in their handshake at a time: one more is turned away, so that they cannot use up what files this
/// process may open.
const HANDSHAKES_MAX: usize = 128;
/// Most connections with one certificate: a node has one for each pair of threads that talk.
const CONNECTIONS_OF_NODE_MAX: usize = 128;
/// Lines about peers that are turned away: one for each cause in this time, since anybody on the network can bring
/// them about.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Least memory for unfinished messages of one node.
const BUDGET_MIN: u64 = 32 << 20;

/// A listening bridge; stops, with all its connections, when it is dropped.
pub(crate) struct Bridge {
    accepting: tokio::task::JoinHandle<()>,
    address: SocketAddr,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Bridge {
    /// Where it listens: tells the port where the endpoint said 0.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

/// Everything that a connection needs to know.
struct Shared {
    acceptor: TlsAcceptor,
    local: PathBuf,
    message_bytes_max: u64,
    nodes: RefCell<HashMap<CertificateDer<'static>, Node>>,
}

/// Who has a certificate and is connected.
struct Node {
    connections: usize,
    budget: Budget,
}

/// Listens at `host:port` as `node`; `local` is the path of the socket that connections are led to.
pub(crate) async fn serve(
    endpoint: &Endpoint,
    settings: &TlsSettings,
    (host, port, node): (&str, u16, &NodeName),
    local: PathBuf,
    message_bytes_max: u64,
) -> Result<Bridge, BindError> {
    let refused = |action: &'static str, detail: String| BindError::Refused {
        endpoint: endpoint.clone(),
        action,
        detail,
    };
    let config = settings
        .server(node)
        .map_err(|e| refused("use the certificates", e.to_string()))?;
    let listener = TcpListener::bind((host, port))
        .await
        .map_err(|e| refused("listen", e.to_string()))?;
    let address = listener
        .local_addr()
        .map_err(|e| refused("listen", e.to_string()))?;
    let shared = Rc::new(Shared {
        acceptor: TlsAcceptor::from(config),
        local,
        message_bytes_max,
        nodes: RefCell::default(),
    });
    let accepting = tokio::task::spawn_local(accept(listener, shared));
    Ok(Bridge { accepting, address })
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    let mut strangers: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>> = JoinSet::new();
    let mut peers: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) if strangers.len() < HANDSHAKES_MAX => {
                    strangers.spawn_local(shake_hands(shared.acceptor.clone(), stream, address));
                }
                Ok((_, address)) => {
                    static TOLD: Throttle = Throttle::every(TOLD_EVERY);
                    if let Some(unsaid) = TOLD.pass() {
                        tracing::info!(%address, unsaid, "turned away: too many handshakes at a time");
                    }
                }
                Err(error) => {
                    // Out of files, most likely: without a pause this would spin until some are closed.
                    static TOLD: Throttle = Throttle::every(TOLD_EVERY);
                    if let Some(unsaid) = TOLD.pass() {
                        tracing::info!(%error, unsaid, "cannot accept a connection");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(known) = strangers.join_next() => {
                if let Ok(Some((stream, address))) = known {
                    peers.spawn_local(lead(shared.clone(), stream, address));
                }
            }
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, SocketAddr)> {
    let handshake = async {
        tune(&stream)?;
        acceptor.accept(stream).await
    };
    let error = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => return Some((stream, address)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not within {HANDSHAKE:?}"),
    };
    static TOLD: Throttle = Throttle::every(TOLD_EVERY);
    if let Some(unsaid) = TOLD.pass() {
        tracing::info!(%address, error, unsaid, "turned away: no TLS handshake");
    }
    None
}

/// Counts a connection of a certificate for as long as it lasts.
struct Counted {
    shared: Rc<Shared>,
    certificate: CertificateDer<'static>,
}

impl Counted {
    fn new(shared: &Rc<Shared>, certificate: CertificateDer<'static>) -> Option<(Self, Budget)> {
        let budget = {
            let mut nodes = shared.nodes.borrow_mut();
            let node = nodes.entry(certificate.clone()).or_insert_with(|| Node {
                connections: 0,
                budget: Budget::new(BUDGET_MIN.max(2 * shared.message_bytes_max)),
            });
            if node.connections >= CONNECTIONS_OF_NODE_MAX {
                return None;
            }
            node.connections += 1;
            node.budget.clone()
        };
        let counted = Self {
            shared: shared.clone(),
            certificate,
        };
        Some((counted, budget))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut nodes = self.shared.nodes.borrow_mut();
        if let Some(node) = nodes.get_mut(&self.certificate) {
            node.connections -= 1;
            if node.connections == 0 {
                nodes.remove(&self.certificate);
            }
        }
    }
}

/// Leads a peer with a certificate to the local socket.
async fn lead(shared: Rc<Shared>, stream: TlsStream<TcpStream>, address: SocketAddr) {
    // The verifier lets nobody in without one.
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(certificate) = certificates.and_then(|chain| chain.first()).cloned() else {
        return;
    };
    let certificate = certificate.into_owned();
    let Some((_counted, budget)) = Counted::new(&shared, certificate.clone()) else {
        static TOLD: Throttle = Throttle::every(TOLD_EVERY);
        if let Some(unsaid) = TOLD.pass() {
            tracing::info!(
                %address,
                unsaid,
                "turned away: {CONNECTIONS_OF_NODE_MAX} connections with its certificate"
            );
        }
        return;
    };
    let local = match UnixStream::connect(&shared.local).await {
        Ok(local) => local,
        Err(error) => {
            tracing::info!(%address, %error, "the local socket does not take a connection");
            return;
        }
    };
    let admit = move |greeting: &[u8]| admit(&certificate, greeting);
    let filter = Filter::new(shared.message_bytes_max, Box::new(admit));
    match carry(stream, local, filter, budget).await {
        Ended::ByPeer | Ended::ByUs => tracing::debug!(%address, "closed"),
        // A command that is done, a process that ended: they say no goodbye to TLS.
        Ended::Io(error)
            if matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            ) =>
        {
            tracing::debug!(%address, %error, "closed");
        }
        reason => {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::info!(%address, %reason, unsaid, "cut the connection");
            }
        }
    }
}

/// Lets a peer greet only as a node that its certificate is for.
fn admit(certificate: &CertificateDer<'static>, greeting: &[u8]) -> Result<(), String> {
    let node = match Header::<RegistryRequest>::decode(greeting, 0) {
        Ok(Header::Hello(hello)) => hello.node,
        // The server says to it why they do not work together.
        Ok(Header::Foreign(foreign)) => foreign.node,
        Ok(_) => return Err("it is no greeting".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let parsed = ParsedCertificate::try_from(certificate).map_err(|e| e.to_string())?;
    verify_server_name(&parsed, &server_name(&node))
        .map_err(|_| format!("it says {node}, which its certificate is not for"))
}
