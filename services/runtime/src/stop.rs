//! Orderly stop: asked for by a signal or by a test, seen by every part.
//!
//! Keeps: whether the stop was requested.
//! Order: once requested it stays requested; a second signal ends the process at once.
//! Crash: nothing.
//! Knows no part that stops.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The request to stop; clones share it, across threads and runtimes.
#[derive(Debug, Clone)]
pub struct Stop {
    requested: Arc<watch::Sender<bool>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// A stop that only [`Stop::request`] requests.
    #[must_use]
    pub fn new() -> Stop {
        Stop {
            requested: Arc::new(watch::Sender::new(false)),
        }
    }

    /// A stop that SIGTERM and SIGINT request. A second signal ends the process at once, as one who stops by hand
    /// expects of something that hangs. Runs within a tokio runtime, which has to live as long as the service.
    ///
    /// # Errors
    /// The signals cannot be received.
    pub fn on_signals() -> io::Result<Stop> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let stop = Stop::new();
        let requested = stop.clone();
        tokio::spawn(async move {
            let name = either(&mut term, &mut int).await;
            tracing::info!(signal = name, "stop requested");
            requested.request();
            let name = either(&mut term, &mut int).await;
            tracing::warn!(signal = name, "second signal: ending without an orderly stop");
            std::process::exit(1);
        });
        Ok(stop)
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }

    /// Waits until the stop is requested. May be dropped and called again at will.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting can only end with the request.
        let _ = self.requested.subscribe().wait_for(|requested| *requested).await;
    }

    /// Whether the stop is requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }
}

async fn either(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_sees_the_request_before_and_after_it() {
        let stop = Stop::new();
        let waiter = stop.clone();
        let waiting = tokio::spawn(async move { waiter.requested().await });
        tokio::task::yield_now().await;
        assert!(!stop.is_requested() && !waiting.is_finished());
        stop.clone().request();
        waiting.await.unwrap();
        stop.requested().await;
        assert!(stop.is_requested());
    }

    #[tokio::test]
    async fn sigterm_requests_the_stop() {
        let stop = Stop::on_signals().unwrap();
        let pid = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
        stop.requested().await;
    }
}
