//! How the client library's requests reach the server: HTTP/1.1 over TCP or TLS, and an answer that is no success
//! becomes a [`Fault`] here, where its code, its headers and its body are all at hand.
//!
//! Keeps: connections that were used, for a while.
//! Order: none.
//! Crash: connections end; what was under way is unknown and asked again.
//! Knows no objects. Sends each request once: sending again is `retry`'s.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::header::{AUTHORIZATION, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tower_service::Service;

use super::fault::{Fault, Place};

/// An idle connection is closed before a server or a balancer closes it (60 s with most).
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The most that is read of an answer that is no success.
const FAULT_BYTES_MAX: usize = 64 << 10;

type Connections = Client<HttpsConnector<Tcp<Resolver>>, HttpRequestBody>;

/// The transport. Clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    connections: Connections,
    place: Arc<Place>,
    /// The host of the bucket's requests: others are for credentials, and their answers are the library's to judge.
    host: String,
    /// Completes a multipart upload only where there is no object: the library cannot ask for that.
    is_completing_new: bool,
}

impl Transport {
    /// A transport to `bucket_url`, which trusts the certificates in `ca`, or those that this machine trusts.
    ///
    /// # Errors
    /// The certificates cannot be read; the text names the file.
    pub(super) fn new(
        place: Arc<Place>,
        bucket_url: &Uri,
        ca: Option<&Path>,
        connect_within: Duration,
    ) -> Result<Self, String> {
        let mut tcp = Tcp::new_with_resolver(Resolver(GaiResolver::new()));
        tcp.enforce_http(false);
        // A small request must not wait for the acknowledgement of the one before.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_within));
        let tls = HttpsConnectorBuilder::new()
            .with_tls_config(tls(bucket_url, ca)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let connections = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(tls);
        Ok(Self {
            connections,
            place,
            host: bucket_url.host().unwrap_or_default().to_owned(),
            is_completing_new: false,
        })
    }

    /// The same connections, for multipart uploads of objects that must not be there yet.
    pub(super) fn completing_new(&self) -> Self {
        Self {
            is_completing_new: true,
            ..self.clone()
        }
    }

    /// Answers that are no success become faults, with what the server said.
    async fn judged(&self, request: &str, access_key: &str, response: HttpResponse) -> HttpError {
        let (head, mut body) = response.into_parts();
        let mut text = Vec::new();
        // What cannot be read of a failure's description leaves its status, which is enough.
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if text.len() > FAULT_BYTES_MAX {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text);
        failed(
            self.place
                .judge(request, access_key, head.status, &head.headers, &text),
        )
    }
}

#[async_trait::async_trait]
impl HttpService for Transport {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_ours = request.uri().host() == Some(&self.host);
        let completes = request.method() == Method::POST
            && request
                .uri()
                .query()
                .is_some_and(|query| query.contains("uploadId="));
        if self.is_completing_new && completes {
            // Not signed, and need not be: only what is named in the signature is.
            request
                .headers_mut()
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let told = if is_ours {
            self.place.told(request.method(), request.uri())
        } else {
            // Without its query: nothing of it is for a log.
            let uri = request.uri();
            format!(
                "{} {}{} (for credentials)",
                request.method(),
                uri.host().unwrap_or_default(),
                uri.path()
            )
        };
        let access_key = access_key(request.headers().get(AUTHORIZATION));
        let answer = self.connections.request(request).await;
        let response = answer.map_err(|error| failed(Fault::without_answer(&told, &error)))?;
        let broken = told.clone();
        let response = response.map(|body| {
            HttpResponseBody::new(body.map_err(move |error| failed(Fault::without_answer(&broken, &error))))
        });
        if is_ours && !response.status().is_success() {
            return Err(self.judged(&told, &access_key, response).await);
        }
        Ok(response)
    }
}

impl HttpConnector for Transport {
    /// The library's own options are for its own transport.
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// An error of a kind that the library does not act on by itself.
fn failed(fault: Fault) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, fault)
}

/// The access key's id out of `AWS4-HMAC-SHA256 Credential=<id>/<date>/…`; the secret is nowhere in a request.
fn access_key(authorization: Option<&HeaderValue>) -> String {
    let id = || {
        let (_, rest) = authorization?.to_str().ok()?.split_once("Credential=")?;
        Some(rest.split_once('/')?.0.to_owned())
    };
    id().unwrap_or_default()
}

fn tls(bucket_url: &Uri, ca: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = match ca {
        Some(file) => roots_in(file)?,
        None if bucket_url.scheme_str() == Some("https") => roots_of_this_machine()?,
        None => RootCertStore::empty(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn roots_in(file: &Path) -> Result<RootCertStore, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        format!("ca = {file:?}: {error}; right would be a file with certificates in PEM form")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"it holds no certificate"));
    }
    Ok(roots)
}

fn roots_of_this_machine() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        return Err(format!(
            "this machine trusts no certificates ({:?}); right would be the package ca-certificates, or `ca` in the \
             settings",
            found.errors
        ));
    }
    Ok(roots)
}

/// The machine's resolver; but a name below `localhost` is this machine (RFC 6761), which not every resolver knows, and
/// without which no bucket's host name of a local server is found.
#[derive(Debug, Clone)]
struct Resolver(GaiResolver);

type Addresses = Box<dyn Iterator<Item = SocketAddr> + Send>;

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Addresses, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if name.as_str().ends_with(".localhost") {
            let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let here = here.into_iter().map(|ip| SocketAddr::new(ip, 0));
            return Box::pin(std::future::ready(Ok(Box::new(here) as Addresses)));
        }
        let asked = self.0.call(name);
        Box::pin(async move { Ok(Box::new(asked.await?) as Addresses) })
    }
}
