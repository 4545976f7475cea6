//! The way between hosts: mutual TLS 1.3 around a ZeroMQ stream.
//!
//! Keeps: which certificates this service shows and which authority it believes.
//! Order: a peer is checked by TLS first, then its bytes by the filter, then they reach a unix socket.
//! Crash: nothing; a lost stream is a lost connection.
//! Knows no envelope.

mod carry;
mod connect;
mod filter;
mod serve;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sconce_schemas::NodeName;
use serde::Deserialize;
use tokio::net::TcpStream;

pub(crate) use connect::{Tunnel, tunnel};
pub(crate) use serve::{Bridge, serve};

use crate::authority::{AuthorityError, read_key};

/// Which files tell who this node is and whom it believes; `sconce pool` makes them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// This node's key, readable by its owner only.
    pub key: PathBuf,
}

/// How long a peer may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What [`TlsSettings`] name, read.
struct Identity {
    authority: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn malformed(path: &Path, expected: &'static str, detail: &dyn std::fmt::Display) -> AuthorityError {
    AuthorityError::Malformed {
        path: path.to_owned(),
        expected,
        detail: detail.to_string(),
    }
}

impl TlsSettings {
    fn read(&self) -> Result<Identity, AuthorityError> {
        let mut authority = RootCertStore::empty();
        for certificate in read_certificates(&self.authority)? {
            authority
                .add(certificate)
                .map_err(|e| malformed(&self.authority, "an authority's certificate", &e))?;
        }
        let key = PrivateKeyDer::from_pem_slice(read_key(&self.key)?.as_bytes())
            .map_err(|e| malformed(&self.key, "a private key", &e))?;
        Ok(Identity {
            authority: Arc::new(authority),
            chain: read_certificates(&self.certificate)?,
            key,
        })
    }

    /// What this node shows and asks as a server called `node`.
    fn server(&self, node: &NodeName) -> Result<Arc<ServerConfig>, AuthorityError> {
        let identity = self.read()?;
        let parsed = identity.chain.first().map(ParsedCertificate::try_from);
        let name = server_name(node);
        if !matches!(&parsed, Some(Ok(own)) if verify_server_name(own, &name).is_ok()) {
            let detail = format!("its names do not hold {node}, as which clients look for this service");
            return Err(malformed(&self.certificate, "this node's certificate", &detail));
        }
        let wrong = |e: rustls::Error| malformed(&self.certificate, "a certificate that fits its key", &e);
        let verifier = WebPkiClientVerifier::builder_with_provider(identity.authority, provider())
            .build()
            .map_err(|e| malformed(&self.authority, "an authority's certificate", &e))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain, identity.key)
            .map_err(wrong)?;
        Ok(Arc::new(config))
    }

    /// What this node shows and asks as a client.
    fn client(&self) -> Result<Arc<ClientConfig>, AuthorityError> {
        let identity = self.read()?;
        let wrong = |e: rustls::Error| malformed(&self.certificate, "a certificate that fits its key", &e);
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_root_certificates(identity.authority)
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(wrong)?;
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let bytes = std::fs::read(path).map_err(|source| AuthorityError::File {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|e| malformed(path, "a certificate", &e))?;
    if certificates.is_empty() {
        return Err(malformed(path, "a certificate", &"there is none in it"));
    }
    Ok(certificates)
}

/// A node's name as certificates carry it.
fn server_name(node: &NodeName) -> ServerName<'static> {
    match node.as_str().parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        // What a node may be called is a host name, but for a dot at its end or two in a row: such a name is in no
        // certificate, and so matches none.
        Err(_) => ServerName::try_from(node.as_str().to_owned())
            .unwrap_or(ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into())),
    }
}

/// What a client has sent and the server's host has not got is dropped when the client's process ends. Otherwise the kernel goes on sending
/// it, as long as the way is cut off and a while longer: the next process would be connected and have read, and then its predecessor's
/// last writes would be applied.
fn end_with_process(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(())
}

/// Sends small messages at once, and notices a dead host within half a minute.
fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 25_000)?;
    Ok(())
}
