//! From spans that have ended to the collector.
//!
//! Keeps: spans that wait to leave, within a limit.
//! Order: spans leave in the order in which they ended, many at a time.
//! Crash: what waits is lost.
//! Knows no span's meaning. A collector that is away holds nobody up: spans wait, and those that there is no room for are counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Identity, QUEUE};

/// Spans that may wait: some megabytes.
pub(super) const WAITING_MAX: usize = 8192;
/// Spans that leave together.
const BATCH: usize = 512;
/// How long a span waits for others to leave with.
const GATHER: Duration = Duration::from_millis(500);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the same spans are tried again: a collector that refuses them must not hold up those after them for ever.
const SAME_MAX: Duration = Duration::from_secs(120);
/// How long the end of the process waits for what is left to leave.
const LAST: Duration = Duration::from_secs(1);

/// Why nothing can be recorded.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The collector's address is none.
    #[error(
        "telemetry.otlp is {value:?} ({detail}); right would be the address at which a collector takes OTLP over HTTP, \
         such as \"http://127.0.0.1:4318\" (no https: let a collector on this host carry it further)"
    )]
    Address {
        /// The value.
        value: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Telemetry runs in this process already.
    #[error("telemetry is started already in this process")]
    Twice,
    /// The system gives no thread.
    #[error("cannot start the telemetry's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What became of the spans that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsent {
    /// The collector has them.
    pub exported: u64,
    /// There was no room for them, or the collector would not have them.
    pub dropped: u64,
    /// They wait.
    pub waiting: u64,
}

/// Spans that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<SpanData>>,
    exported: AtomicU64,
    dropped: AtomicU64,
    /// A batch is whole, or the process ends.
    due: Notify,
}

impl Queue {
    pub(super) fn put(&self, span: SpanData) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push_back(span);
        if waiting.len() == BATCH {
            self.due.notify_one();
        }
    }

    pub(super) fn counts(&self) -> Unsent {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        Unsent {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            waiting: waiting.len() as u64,
        }
    }

    /// The next that leave together.
    fn take(&self) -> Vec<SpanData> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(BATCH);
        waiting.drain(..count).collect()
    }
}

/// Telemetry that runs. Dropped, it sends what is left, for a second at most.
#[derive(Debug)]
#[must_use = "dropped, it ends"]
pub struct Telemetry(Option<Running>);

#[derive(Debug)]
struct Running {
    over: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Telemetry {
    pub(super) const fn off() -> Self {
        Self(None)
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.over.notify_one();
            // A panic was logged.
            let _ = running.thread.join();
        }
    }
}

pub(super) fn start(address: &str, identity: Identity<'_>) -> Result<Telemetry, TelemetryError> {
    let exporter = exporter(address, identity)?;
    if QUEUE.set(Queue::default()).is_err() {
        return Err(TelemetryError::Twice);
    }
    let queue = QUEUE.get().ok_or(TelemetryError::Twice)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let over = Arc::new(Notify::new());
    let until = Arc::clone(&over);
    let thread = std::thread::Builder::new()
        .name("telemetry".to_owned())
        .spawn(move || runtime.block_on(Export::new(queue, exporter).run(&until)))?;
    Ok(Telemetry(Some(Running { over, thread })))
}

fn exporter(address: &str, identity: Identity<'_>) -> Result<SpanExporter, TelemetryError> {
    let wrong = |detail: String| TelemetryError::Address {
        value: address.to_owned(),
        detail,
    };
    let authority = address
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
        .ok_or_else(|| wrong("it does not begin with http://".to_owned()))?;
    if authority.is_empty() || authority.contains(['/', ' ']) {
        return Err(wrong(
            "a host and a port come after http://, and nothing else".to_owned(),
        ));
    }
    let once = RetryPolicy::default().with_max_retries(0);
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("http://{authority}/v1/traces"))
        .with_timeout(ANSWER)
        .with_retry_policy(once)
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let resource = Resource::builder_empty()
        .with_service_name(identity.service)
        .with_attributes([
            KeyValue::new("service.namespace", "sconce"),
            KeyValue::new("service.instance.id", identity.node.to_owned()),
            KeyValue::new("service.version", identity.version),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

/// The thread's work.
struct Export {
    queue: &'static Queue,
    exporter: SpanExporter,
    /// Since when the collector takes nothing, and how many had been dropped by then.
    away: Option<(Instant, u64)>,
}

impl Export {
    const fn new(queue: &'static Queue, exporter: SpanExporter) -> Self {
        Self {
            queue,
            exporter,
            away: None,
        }
    }

    async fn run(mut self, over: &Notify) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = over.notified() => break,
                () = self.send_next(&mut batch) => {}
            }
        }
        let rest = async {
            while self.send(&batch).await {
                batch = self.queue.take();
                if batch.is_empty() {
                    break;
                }
            }
        };
        // What has not left by then is lost, as it is in a crash.
        let _ = timeout(LAST, rest).await;
    }

    /// Sends what has gathered, or tries again to. Dropped, it loses none.
    async fn send_next(&mut self, batch: &mut Vec<SpanData>) {
        if batch.is_empty() {
            let _ = timeout(GATHER, self.queue.due.notified()).await;
            *batch = self.queue.take();
            return;
        }
        if self.send(batch).await {
            batch.clear();
            return;
        }
        let waits_since = self.away.map(|(since, _)| since.elapsed()).unwrap_or_default();
        if waits_since > SAME_MAX {
            self.queue
                .dropped
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            batch.clear();
        }
        tokio::time::sleep(AGAIN).await;
    }

    /// Whether the collector has them.
    async fn send(&mut self, batch: &[SpanData]) -> bool {
        if batch.is_empty() {
            return true;
        }
        let dropped = self.queue.dropped.load(Ordering::Relaxed);
        match self.exporter.export(batch.to_vec()).await {
            Ok(()) => {
                self.queue
                    .exported
                    .fetch_add(batch.len() as u64, Ordering::Relaxed);
                if let Some((since, before)) = self.away.take() {
                    let (away, dropped) = (since.elapsed(), dropped.saturating_sub(before));
                    tracing::info!(?away, dropped, "the telemetry's collector takes spans again");
                }
                true
            }
            Err(error) => {
                if self.away.is_none() {
                    self.away = Some((Instant::now(), dropped));
                    tracing::info!(
                        %error,
                        kept = WAITING_MAX,
                        "the telemetry's collector takes no spans: they wait, and those that there is no room for are counted"
                    );
                }
                false
            }
        }
    }
}
