//! Orderly stop: asked for by a signal or by a test, seen by every part.
//!
//! Keeps: whether the stop was requested, and whether a next process goes on with what clients have open.
//! Order: once requested it stays requested, as what it was requested first; a second signal ends the process at once.
//! Crash: nothing.
//! Knows no part that stops.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The request to stop; clones share it, across threads and runtimes.
#[derive(Debug, Clone)]
pub struct Stop {
    requested: Arc<watch::Sender<Option<Ending>>>,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// What clients have open ends with it.
    Stop,
    /// The next process goes on with it.
    HandOver,
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
            requested: Arc::new(watch::Sender::new(None)),
        }
    }

    /// A stop that SIGTERM and SIGINT request, and SIGUSR2 too. A second signal ends the process at once, as one who
    /// stops by hand expects of something that hangs. Runs within a tokio runtime, which has to live as long as the
    /// service.
    ///
    /// # Errors
    /// The signals cannot be received.
    pub fn on_signals() -> io::Result<Stop> {
        Self::with_usr2(Ending::Stop)
    }

    /// As [`Stop::on_signals`], but at SIGUSR2 clients are handed over to the next process.
    ///
    /// # Errors
    /// As there.
    pub fn or_hand_over_on_signals() -> io::Result<Stop> {
        Self::with_usr2(Ending::HandOver)
    }

    fn with_usr2(ending: Ending) -> io::Result<Stop> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut usr2 = signal(SignalKind::user_defined2())?;
        let stop = Stop::new();
        let requested = stop.clone();
        tokio::spawn(async move {
            let (name, ending) = tokio::select! {
                name = either(&mut term, &mut int) => (name, Ending::Stop),
                _ = usr2.recv() => ("SIGUSR2", ending),
            };
            tracing::info!(signal = name, ?ending, "stop requested");
            requested.end(ending);
            let name = either(&mut term, &mut int).await;
            tracing::warn!(signal = name, "second signal: ending without an orderly stop");
            std::process::exit(1);
        });
        Ok(stop)
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.end(Ending::Stop);
    }

    /// Requests the stop of a process whose clients are handed over to the next.
    pub fn request_hand_over(&self) {
        self.end(Ending::HandOver);
    }

    fn end(&self, ending: Ending) {
        self.requested.send_modify(|requested| {
            requested.get_or_insert(ending);
        });
    }

    /// Waits until the stop is requested. May be dropped and called again at will.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting can only end with the request.
        let _ = self.requested.subscribe().wait_for(Option::is_some).await;
    }

    /// Whether the stop is requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.borrow().is_some()
    }

    /// Whether the stop is requested, and clients are to be handed over.
    #[must_use]
    pub fn hands_over(&self) -> bool {
        *self.requested.borrow() == Some(Ending::HandOver)
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

    #[test]
    fn it_stays_what_it_was_requested_first() {
        let stop = Stop::new();
        assert!(!stop.hands_over());
        stop.request_hand_over();
        stop.request();
        assert!(stop.is_requested() && stop.hands_over());
        let stop = Stop::new();
        stop.request();
        stop.request_hand_over();
        assert!(stop.is_requested() && !stop.hands_over());
    }

    async fn signalled(stop: Stop, signal: &str) -> Stop {
        let pid = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
        stop.requested().await;
        stop
    }

    #[tokio::test]
    async fn sigterm_requests_the_stop() {
        let stop = signalled(Stop::or_hand_over_on_signals().unwrap(), "-TERM");
        assert!(!stop.await.hands_over());
    }

    #[tokio::test]
    async fn sigusr2_requests_the_hand_over_where_there_is_one() {
        let stop = signalled(Stop::or_hand_over_on_signals().unwrap(), "-USR2");
        assert!(stop.await.hands_over());
    }

    #[tokio::test]
    async fn sigusr2_requests_the_stop_where_there_is_none() {
        let stop = signalled(Stop::on_signals().unwrap(), "-USR2");
        assert!(!stop.await.hands_over());
    }
}
