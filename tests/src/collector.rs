//! A collector of OpenTelemetry: takes OTLP over HTTP and keeps what came.
//!
//! Keeps: all spans, in memory.
//! Order: as they came.
//! Crash: dropped, it is gone, and its connections with it.
//! Knows OTLP, and no service.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::own_address;

/// A span that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The service that sent it.
    pub service: String,
    /// Its node.
    pub node: String,
    /// What was done.
    pub name: String,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The span above it; empty for none.
    pub parent: String,
    /// When it began, in nanoseconds since 1970.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// What it says.
    pub attributes: BTreeMap<String, String>,
    /// Whether it says that it failed.
    pub failed: bool,
}

/// A collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Starts one at a port that is free.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from((own_address(), 0)))
    }

    /// Starts one at this address.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .with_context(|| format!("a collector at {address}"))?;
        let address = listener.local_addr()?;
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let (over, until) = oneshot::channel();
        let kept = Arc::clone(&spans);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(&listener, &kept) => {}
                    _ = until => {}
                }
            });
        });
        Ok(Self {
            address,
            spans,
            over: Some(over),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that came.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: &TcpListener, kept: &Arc<Mutex<Vec<Span>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let kept = Arc::clone(kept);
        connections.spawn(async move {
            let answer = service_fn(|request| take(request, &kept));
            // Whoever sends goes away in the middle at times.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn take(
    request: Request<Incoming>,
    kept: &Mutex<Vec<Span>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_traces = request.uri().path() == "/v1/traces";
    let taken = match request.into_body().collect().await {
        Ok(body) if is_traces => ExportTraceServiceRequest::decode(body.to_bytes()).ok(),
        _ => None,
    };
    let mut response = Response::new(Full::default());
    match taken {
        Some(taken) => {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(spans(taken));
        }
        None => *response.status_mut() = hyper::StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut found = Vec::new();
    for of_resource in request.resource_spans {
        let resource = words(of_resource.resource.unwrap_or_default().attributes);
        let said = |key: &str| resource.get(key).cloned().unwrap_or_default();
        for of_scope in of_resource.scope_spans {
            found.extend(of_scope.spans.into_iter().map(|span| {
                Span {
                    service: said("service.name"),
                    node: said("service.instance.id"),
                    name: span.name,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    start: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    attributes: words(span.attributes),
                    failed: span
                        .status
                        .is_some_and(|status| status.code() == StatusCode::Error),
                }
            }));
        }
    }
    found
}

fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let word = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .into_iter()
        .map(|attribute| (attribute.key, word(attribute.value)))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
