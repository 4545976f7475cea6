//! How messages travel.

use std::path::PathBuf;
use std::sync::Arc;

use sconce_schemas::NodeName;

use crate::endpoint::{Endpoint, Place};
use crate::in_process::{self, InProcess};
use crate::link::{LinkReceiver, LinkSender, ListenReceiver, ListenSender};
use crate::server::Identity;
use crate::zeromq;

/// How messages travel: chosen once by whoever starts a service, and passed to everything that connects or binds.
#[derive(Debug, Clone)]
pub struct Network(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    #[expect(dead_code, reason = "read by the TLS bridge, which follows")]
    Zeromq(ZeromqSettings),
    InProcess(InProcess),
}

/// What the ZeroMQ network needs to know of this service.
#[derive(Debug, Clone)]
pub struct ZeromqSettings {
    /// A directory for private sockets; made with mode 0700 where it is missing.
    pub run_dir: PathBuf,
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
    /// ZeroMQ over unix sockets; between hosts through mutual TLS.
    #[must_use]
    pub fn zeromq(settings: ZeromqSettings) -> Self {
        Self(Arc::new(Kind::Zeromq(settings)))
    }

    /// A network within the process, for tests and for services that share one.
    #[must_use]
    pub fn in_process(network: InProcess) -> Self {
        Self(Arc::new(Kind::InProcess(network)))
    }

    /// The dice of one client of this network.
    pub(crate) fn chance(&self) -> fastrand::Rng {
        match &*self.0 {
            Kind::Zeromq(_) => fastrand::Rng::new(),
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
            (Kind::Zeromq(_), Place::Ipc(path)) => {
                let (sender, receiver) = zeromq::dial(path).await?;
                Ok((LinkSender::Zeromq(sender), LinkReceiver::Zeromq(receiver)))
            }
            (Kind::InProcess(network), Place::InProcess(name)) => {
                let (sender, receiver) = in_process::dial(network, node, name)?;
                Ok((LinkSender::InProcess(sender), LinkReceiver::InProcess(receiver)))
            }
            (Kind::InProcess(_), _) => Err(DialError::Never(format!(
                "{endpoint}: the in-process network reaches inproc:// endpoints"
            ))),
            (Kind::Zeromq(_), _) => Err(DialError::Never(format!(
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
            (Kind::Zeromq(_), Place::Ipc(path)) => {
                let (sender, receiver) = zeromq::listen(endpoint, path).await?;
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
            (Kind::Zeromq(_), _) => Err(BindError::Unsupported {
                endpoint: endpoint.clone(),
                expected: "the ZeroMQ network binds ipc:// and tls:// endpoints",
            }),
        }
    }
}
