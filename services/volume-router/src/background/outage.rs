//! One retry loop for the background's jobs: without end, with waits in between, and told once.
//!
//! Keeps: whether a volume's jobs are failing, so that people are told at the beginning and at the end only.
//! Order: waits double up to their limit.
//! Crash: nothing.
//! Knows no jobs.

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sconce_runtime::{Backoff, Events};
use sconce_schemas::VolumeId;
use sconce_schemas::wire::event::What;
use tokio::time::Instant;

use super::chance;

const WAIT_FIRST: Duration = Duration::from_millis(50);
/// Long enough not to burden a back end that is down, short enough not to be the pause that people see.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// A failure that passes sooner is a restart of the other side and nothing for people.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// Whether the jobs of one volume are failing.
#[derive(Debug)]
pub(crate) struct Outage {
    told: AtomicBool,
    events: Events,
    volume: VolumeId,
}

/// How a try ended that is not to be repeated.
pub(crate) enum Tried<T, E> {
    /// It is over.
    Over(T),
    /// It failed for now: try again.
    Again(E),
}

impl Outage {
    /// Of jobs that do not fail so far.
    pub(crate) fn new(events: Events, volume: VolumeId) -> Self {
        Self {
            told: AtomicBool::new(false),
            events,
            volume,
        }
    }

    /// Tries until it is over, or `None` once `wanted` says that nobody wants it any more.
    pub(crate) async fn endure<T, E: Display, F: Future<Output = Tried<T, E>>>(
        &self,
        what: &str,
        path: &str,
        wanted: impl Fn() -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T> {
        let mut backoff = Backoff::new(WAIT_FIRST, WAIT_MAX, chance());
        let mut failing_since = None;
        while wanted() {
            match attempt().await {
                Tried::Over(outcome) => {
                    if self.told.swap(false, Ordering::Relaxed) {
                        let work = what.to_owned();
                        self.events.tell_of(self.volume, path, What::WorkGoesOn { work });
                    }
                    return Some(outcome);
                }
                Tried::Again(cause) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= TOLD_AFTER && !self.told.swap(true, Ordering::Relaxed) {
                        let (work, cause) = (what.to_owned(), cause.to_string());
                        self.events
                            .tell_of(self.volume, path, What::WorkFails { work, cause });
                    }
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
        None
    }
}
