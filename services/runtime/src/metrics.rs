//! The endpoint at which Prometheus reads a service's metrics: `GET /metrics` over HTTP.
//!
//! Keeps: the socket, and the connections of a few readers.
//! Order: each page is made when it is asked for.
//! Crash: nothing; a reader asks again.
//! Knows no service: what a page says is told to it. Who reads is not asked; nothing can be changed here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sconce_tracing::metrics::Page;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{Stop, Throttle};

/// Readers at one time; more wait in the system's queue.
const READERS_MAX: usize = 8;
/// How long a reader may take from its connection to its page.
const READER_MAX: Duration = Duration::from_secs(30);
/// How long a service may take to tell its numbers; Prometheus waits 10 s where nothing is said.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// How long it is not listened where the system gives no connection.
const AGAIN: Duration = Duration::from_millis(200);
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// The section `[metrics]` of every service's settings; without it nothing listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// Where `GET /metrics` is answered.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

fn address<'de, D: serde::Deserializer<'de>>(typed: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(typed)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is no address; right would be an IP address and a port, such as \"127.0.0.1:9801\""
        ))
    })
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "metrics.listen = \"{address}\" cannot be listened at: {source}; right would be an address of this machine, \
     with a port that nobody listens at"
)]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Whose metrics they are.
#[derive(Debug, Clone)]
pub struct MetricsOf {
    /// The service, as `volume-router`.
    pub service: &'static str,
    /// The node's name in the pool.
    pub node: String,
    /// The build.
    pub version: &'static str,
}

/// An endpoint that listens.
#[derive(Debug)]
pub struct MetricsEndpoint {
    listener: TcpListener,
}

impl MetricsEndpoint {
    /// Listens where the settings say, if they do.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub async fn bind(settings: Option<&MetricsSettings>) -> Result<Option<Self>, MetricsError> {
        let Some(MetricsSettings { listen: address }) = settings.copied() else {
            return Ok(None);
        };
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(Self { listener })),
            Err(source) => Err(MetricsError { address, source }),
        }
    }

    /// Answers readers until the stop is requested; `tell` puts a service's own numbers on a page. Within a `LocalSet`.
    pub async fn serve(self, of: MetricsOf, tell: impl AsyncFn(&mut Page) + 'static, stop: Stop) {
        static TOLD: Throttle = Throttle::every(TOLD_EVERY);
        let pages = Rc::new(Pages { of, tell });
        let mut readers = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.requested() => return,
                _ = readers.join_next(), if !readers.is_empty() => {}
                accepted = self.listener.accept(), if readers.len() < READERS_MAX => match accepted {
                    Ok((stream, _)) => {
                        let pages = Rc::clone(&pages);
                        readers.spawn_local(async move {
                            // One that is slow, or goes, is no matter of this service's.
                            let _ = timeout(READER_MAX, pages.answer(stream)).await;
                        });
                    }
                    Err(error) => {
                        if TOLD.pass().is_some() {
                            tracing::info!(%error, "no connection for a reader of metrics");
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                },
            }
        }
    }
}

struct Pages<T> {
    of: MetricsOf,
    tell: T,
}

impl<T: AsyncFn(&mut Page) + 'static> Pages<T> {
    async fn answer(&self, stream: TcpStream) {
        let service = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(self.reply(&request).await)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // The reader is gone, or spoke no HTTP.
        let _ = connection.await;
    }

    async fn reply<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            let text = format!("{} is not here; right would be /metrics\n", request.uri().path());
            return reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", text);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let text = format!("{} changes nothing here; right would be GET\n", request.method());
            let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", text);
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let page = self.page().await;
        reply(StatusCode::OK, Page::CONTENT_TYPE, page.to_string())
    }

    async fn page(&self) -> Page {
        let mut page = Page::default();
        if timeout(TOLD_WITHIN, (self.tell)(&mut page)).await.is_err() {
            page.left_out();
        }
        let MetricsOf {
            service,
            node,
            version,
        } = &self.of;
        page.process(service, node, version);
        page
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(text));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests;
