//! How messages travel.
//!
//! Keeps: which ways there are for this process (unix sockets, TLS, in-process), and what each needs.
//! Order: none.
//! Crash: nothing; a network is a value.
//! Knows no envelope: it gives links.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sconce_schemas::NodeName;

use crate::endpoint::{Endpoint, Place};
use crate::in_process::{self, InProcess};
use crate::link::{LinkReceiver, LinkSender, ListenReceiver, ListenSender};
use crate::server::Identity;
use crate::tls::{self, TlsSettings};
use crate::zeromq;

/// How messages travel: chosen once by whoever starts a service, and passed to everything that connects or binds.
#[derive(Debug, Clone)]
pub struct Network(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Zeromq(ZeromqSettings, Option<TlsSettings>),
    InProcess(InProcess),
}

/// What the ZeroMQ network needs to know of this service.
#[derive(Debug, Clone)]
pub struct ZeromqSettings {
    /// A directory for private sockets: `tls` within it is made with mode 0700 where it is missing.
    pub run_dir: PathBuf,
}

const NO_TLS: &str = "tls:// needs the node's certificates in its settings (`sconce pool` makes them)";

impl ZeromqSettings {
    /// The directory of the sockets that lead to and from TLS.
    fn tls_dir(&self) -> Result<PathBuf, BindError> {
        let dir = self.run_dir.join("tls");
        zeromq::private_directory(&dir)?;
        Ok(dir)
    }
}

/// Why a service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket's directory is open to others, or not ours.
    #[error("{}: the directory of a socket must {expected}, but it {found}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Somebody listens there already.
    #[error("{endpoint}: another process listens there; stop it first, or choose another endpoint")]
    InUse {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The operating system or the transport refused.
    #[error("{endpoint}: cannot {action}: {detail}")]
    Refused {
        /// The endpoint.
        endpoint: Endpoint,
        /// What was tried.
        action: &'static str,
        /// What came back.
        detail: String,
    },
    /// This network does not carry that kind of endpoint.
    #[error("{endpoint}: {expected}")]
    Unsupported {
        /// The endpoint.
        endpoint: Endpoint,
        /// What would be right.
        expected: &'static str,
    },
}

/// Why a client did not reach a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody is there (yet).
    #[error("{0}")]
    Absent(String),
    /// No further try can succeed.
    #[error("{0}")]
    Never(String),
}

impl Network {
    /// ZeroMQ over unix sockets: for a service that does not leave its host.
    #[must_use]
    pub fn zeromq(settings: ZeromqSettings) -> Self {
        Self(Arc::new(Kind::Zeromq(settings, None)))
    }

    /// ZeroMQ over unix sockets, and between hosts through mutual TLS.
    #[must_use]
    pub fn zeromq_and_tls(settings: ZeromqSettings, tls: TlsSettings) -> Self {
        Self(Arc::new(Kind::Zeromq(settings, Some(tls))))
    }

    /// A network within the process, for tests and for services that share one.
    #[must_use]
    pub fn in_process(network: InProcess) -> Self {
        Self(Arc::new(Kind::InProcess(network)))
    }

    /// The dice of one client of this network.
    pub(crate) fn chance(&self) -> fastrand::Rng {
        match &*self.0 {
            Kind::Zeromq(..) => fastrand::Rng::new(),
            Kind::InProcess(network) => network.chance(),
        }
    }

    /// Connects `node` to `endpoint`.
    pub(crate) async fn dial(
        &self,
        endpoint: &Endpoint,
        node: &NodeName,
    ) -> Result<(LinkSender, LinkReceiver), DialError> {
        match (&*self.0, endpoint.place()) {
            (Kind::Zeromq(..), Place::Ipc(path)) => {
                let (sender, receiver) = zeromq::dial(path).await?;
                Ok((LinkSender::Zeromq(sender), LinkReceiver::Zeromq(receiver)))
            }
            (Kind::Zeromq(settings, tls), Place::Tls { host, port, node }) => {
                let tls = tls.as_ref().ok_or(DialError::Never(NO_TLS.to_owned()))?;
                let dir = settings.tls_dir().map_err(|e| DialError::Never(e.to_string()))?;
                let tunnel = tls::tunnel(tls, (host, *port, node), &dir).await?;
                let (sender, receiver) = zeromq::dial_tunnel(tunnel).await?;
                Ok((LinkSender::Zeromq(sender), LinkReceiver::Zeromq(receiver)))
            }
            (Kind::InProcess(network), Place::InProcess(name)) => {
                let (sender, receiver) = in_process::dial(network, node, name)?;
                Ok((LinkSender::InProcess(sender), LinkReceiver::InProcess(receiver)))
            }
            (Kind::InProcess(_), _) => Err(DialError::Never(format!(
                "{endpoint}: the in-process network reaches inproc:// endpoints"
            ))),
            (Kind::Zeromq(..), Place::InProcess(_)) => Err(DialError::Never(format!(
                "{endpoint}: the ZeroMQ network reaches ipc:// and tls:// endpoints"
            ))),
        }
    }

    pub(crate) async fn listen(
        &self,
        endpoint: &Endpoint,
        identity: &Identity,
    ) -> Result<(ListenSender, ListenReceiver), BindError> {
        match (&*self.0, endpoint.place()) {
            (Kind::Zeromq(..), Place::Ipc(path)) => {
                let (sender, receiver) = zeromq::listen(endpoint, path).await?;
                Ok((ListenSender::Zeromq(sender), ListenReceiver::Zeromq(receiver)))
            }
            (Kind::Zeromq(settings, tls), Place::Tls { host, port, node }) => {
                let tls = tls.as_ref().ok_or(BindError::Unsupported {
                    endpoint: endpoint.clone(),
                    expected: NO_TLS,
                })?;
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let local = settings
                    .tls_dir()?
                    .join(format!("at-{}-{number}", std::process::id()));
                let (sender, mut receiver) = zeromq::listen(endpoint, &local).await?;
                let limit = identity.limits.message_bytes_max;
                let bridge = tls::serve(endpoint, tls, (host, *port, node), local, limit).await?;
                receiver.keep(bridge);
                Ok((ListenSender::Zeromq(sender), ListenReceiver::Zeromq(receiver)))
            }
            (Kind::InProcess(network), Place::InProcess(name)) => {
                let (sender, receiver) = in_process::listen(network, endpoint, name, &identity.node)?;
                Ok((
                    ListenSender::InProcess(sender),
                    ListenReceiver::InProcess(receiver),
                ))
            }
            (Kind::InProcess(_), _) => Err(BindError::Unsupported {
                endpoint: endpoint.clone(),
                expected: "the in-process network binds inproc:// endpoints",
            }),
            (Kind::Zeromq(..), Place::InProcess(_)) => Err(BindError::Unsupported {
                endpoint: endpoint.clone(),
                expected: "the ZeroMQ network binds ipc:// and tls:// endpoints",
            }),
        }
    }
}
