//! Threads for work that blocks, so that the bus thread never does.
//!
//! Keeps: how many jobs, and jobs of how many bytes, run at once.
//! Order: jobs begin in the order in which they came.
//! Crash: a job that panics answers its caller with an error; the others go on.
//! Knows no back end.

use std::sync::Arc;

use crate::backend::BackendError;
use crate::room::Room;

/// Bounded access to the runtime's blocking threads. What does not fit waits in its caller, whose number is bounded
/// by the service. Clones share the bounds.
#[derive(Debug, Clone)]
pub struct Workers {
    bounds: Option<Arc<Room>>,
}

impl Workers {
    /// At most `jobs` jobs at once, with `bytes` bytes among them. A job of more bytes than that runs alone.
    #[must_use]
    pub fn bounded(jobs: usize, bytes: u64) -> Self {
        Self {
            bounds: Some(Arc::new(Room::new(jobs, bytes))),
        }
    }

    /// No threads: a job runs where it is asked for. For simulations, where one seed decides the whole order.
    #[must_use]
    pub const fn inline() -> Self {
        Self { bounds: None }
    }

    /// Runs a job that moves `bytes` bytes. The bounds hold until the job ends, even when the caller has gone.
    ///
    /// # Errors
    /// What the job says; `Unavailable` when it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: u64,
        job: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let Some(bounds) = &self.bounds else { return job() };
        let place = bounds.enter(bytes).await;
        let running = tokio::task::spawn_blocking(move || {
            let done = job();
            drop(place);
            done
        });
        running.await.unwrap_or_else(|end| {
            Err(BackendError::Unavailable {
                why: format!("a job ended without an answer: {end}"),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn no_more_jobs_and_bytes_than_allowed_run_at_once() {
        for (workers, bytes, most) in [
            (Workers::bounded(3, 1 << 30), 1, 3),
            (Workers::bounded(100, 4096), 2048, 2),
            (Workers::bounded(100, 4096), 1 << 40, 1),
        ] {
            let running = Arc::new(AtomicUsize::new(0));
            let peak = Arc::new(AtomicUsize::new(0));
            let jobs = (0..40).map(|_| {
                let (running, peak) = (Arc::clone(&running), Arc::clone(&peak));
                workers.run(bytes, move || {
                    peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })
            });
            for done in futures_util::future::join_all(jobs).await {
                done.unwrap();
            }
            let peak = peak.load(Ordering::SeqCst);
            assert!(peak <= most, "{peak} jobs at once, at most {most} allowed");
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_gives_its_place_back() {
        let workers = Workers::bounded(1, 1024);
        let broken = workers.run(1, || -> Result<(), _> { panic!("on purpose") }).await;
        assert!(matches!(broken, Err(BackendError::Unavailable { .. })));
        assert_eq!(workers.run(1, || Ok(7)).await, Ok(7));
    }
}
