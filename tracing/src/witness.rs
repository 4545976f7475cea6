//! For tests: a WARN or ERROR that a test did not announce fails it.
//!
//! Keeps: the lines of these levels that this thread logged.
//! Order: as logged.
//! Crash: nothing.
//! Knows no test.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Sees every WARN and ERROR of the thread that made it, while it lives. What is left when it is dropped fails the
/// test.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Vec<String>>>,
    _guard: DefaultGuard,
}

impl Witness {
    /// Begins to watch this thread. Other threads, such as those of blocking tasks, are not seen.
    #[must_use]
    pub fn of_this_thread() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let recorder = Recorder { seen: seen.clone() };
        let subscriber = tracing_subscriber::registry().with(recorder);
        Self {
            seen,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The lines that contain `part`, which the test thereby announces.
    #[must_use]
    pub fn announced(&self, part: &str) -> Vec<String> {
        let mut seen = lock(&self.seen);
        let (announced, rest) = std::mem::take(&mut *seen)
            .into_iter()
            .partition(|line| line.contains(part));
        *seen = rest;
        announced
    }
}

impl Drop for Witness {
    #[expect(clippy::panic, reason = "this is how it fails a test")]
    fn drop(&mut self) {
        let seen = lock(&self.seen);
        if !seen.is_empty() && !std::thread::panicking() {
            panic!("logged and not announced by the test:\n{}", seen.join("\n"));
        }
    }
}

fn lock(seen: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Recorder {
    seen: Arc<Mutex<Vec<String>>>,
}

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // The more severe level is the lesser one.
        if *event.metadata().level() <= Level::WARN {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            lock(&self.seen).push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_lines_are_given_and_info_is_not_seen() {
        let witness = Witness::of_this_thread();
        tracing::info!("all is well");
        tracing::warn!(key = "a", "disk slow");
        tracing::error!("disk gone");
        assert_eq!(witness.announced("slow"), ["WARN disk slow key=\"a\""]);
        assert_eq!(witness.announced("gone"), ["ERROR disk gone"]);
    }

    #[test]
    fn what_nobody_announced_fails_the_test() {
        let failed = std::panic::catch_unwind(|| {
            let _witness = Witness::of_this_thread();
            tracing::warn!("disk slow");
        });
        let text = failed.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("WARN disk slow"), "{text}");
    }
}
