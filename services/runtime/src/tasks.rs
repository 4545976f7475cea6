//! Supervised tasks: no part of a service ends unseen.
//!
//! Keeps: the tasks of one thread, by name.
//! Order: a part that ends before the stop was requested requests it; a half-working service is worse than a
//! restarted one.
//! Crash: a panic of a part is caught, logged and ends the service in order, so that other parts store what
//! they hold.
//! Knows no part.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

use crate::Stop;

/// The parts of a service that run on this thread (a `LocalSet`, or an actix arbiter).
#[derive(Debug)]
pub struct Tasks {
    stop: Stop,
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// How the parts ended when it was not in order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TasksError {
    /// A part ended although nobody had requested the stop.
    #[error("{name} ended by itself; the log says why")]
    Ended {
        /// The part.
        name: &'static str,
    },
    /// A part panicked.
    #[error("{name} panicked: {message}")]
    Panicked {
        /// The part.
        name: &'static str,
        /// What it said.
        message: String,
    },
    /// Parts did not stop in time and were dropped.
    #[error("not stopped after {} ms: {}", within.as_millis(), names.join(", "))]
    Hung {
        /// The parts.
        names: Vec<&'static str>,
        /// The time that they had.
        within: Duration,
    },
}

impl Tasks {
    /// No parts yet.
    #[must_use]
    pub fn new(stop: &Stop) -> Self {
        Self {
            stop: stop.clone(),
            running: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// Starts a part on this thread. It has to run until the stop is requested, and to end then.
    pub fn spawn_local(&mut self, name: &'static str, part: impl Future<Output = ()> + 'static) {
        let id = self.running.spawn_local(part).id();
        self.names.insert(id, name);
    }

    /// Waits for the stop, then for all parts, for `within` at most; parts that hang are dropped.
    ///
    /// # Errors
    /// The first part that ended by itself or panicked (the others were asked to stop and had their time);
    /// parts that hung.
    pub async fn finish(mut self, within: Duration) -> Result<(), TasksError> {
        let mut first_error = None;
        loop {
            let ended = tokio::select! {
                // First, so that parts that end on the stop do not count as ended by themselves.
                biased;
                () = self.stop.requested() => break,
                ended = self.running.join_next_with_id() => ended,
            };
            // A part may see a stop that another thread requests a moment before this task is told of it.
            let early = !self.stop.is_requested();
            match ended {
                Some(ended) => first_error = Some(self.judge(ended, early)).flatten(),
                None => self.stop.requested().await,
            }
            self.stop.request();
        }
        let parts_ended = async {
            while let Some(ended) = self.running.join_next_with_id().await {
                let error = self.judge(ended, false);
                first_error = first_error.take().or(error);
            }
        };
        let in_time = tokio::time::timeout(within, parts_ended).await.is_ok();
        if !in_time && first_error.is_none() {
            let mut names: Vec<_> = self.names.into_values().collect();
            names.sort_unstable();
            return Err(TasksError::Hung { names, within });
        }
        first_error.map_or(Ok(()), Err)
    }

    fn judge(&mut self, ended: Result<(Id, ()), JoinError>, early: bool) -> Option<TasksError> {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = self.names.remove(&id).unwrap_or("a task");
        let error = match ended {
            Ok(_) if early => TasksError::Ended { name },
            Ok(_) => return None,
            Err(error) => TasksError::Panicked {
                name,
                message: panic_message(error),
            },
        };
        tracing::error!(%error, "stopping the service");
        Some(error)
    }
}

fn panic_message(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "cancelled".to_owned();
    };
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    fn until(stop: &Stop) -> impl Future<Output = ()> + 'static {
        let stop = stop.clone();
        async move { stop.requested().await }
    }

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn parts_that_end_on_the_stop_are_in_order() {
        let local = LocalSet::new();
        let outcome = local.run_until(async {
            let stop = Stop::new();
            let mut tasks = Tasks::new(&stop);
            tasks.spawn_local("one", until(&stop));
            tasks.spawn_local("two", until(&stop));
            stop.request();
            tasks.finish(LONG).await
        });
        assert_eq!(outcome.await, Ok(()));
    }

    #[tokio::test]
    async fn a_part_that_ends_early_or_panics_stops_the_others() {
        let local = LocalSet::new();
        let outcome = local.run_until(async {
            let stop = Stop::new();
            let mut tasks = Tasks::new(&stop);
            tasks.spawn_local("steady", until(&stop));
            tasks.spawn_local("brief", async {});
            let early = tasks.finish(LONG).await;
            let stop = Stop::new();
            let mut tasks = Tasks::new(&stop);
            tasks.spawn_local("steady", until(&stop));
            tasks.spawn_local("broken", async { panic!("on purpose") });
            (early, tasks.finish(LONG).await)
        });
        let (early, panicked) = outcome.await;
        assert_eq!(early, Err(TasksError::Ended { name: "brief" }));
        let message = "on purpose".to_owned();
        assert_eq!(
            panicked,
            Err(TasksError::Panicked {
                name: "broken",
                message
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_hangs_is_named() {
        let local = LocalSet::new();
        let outcome = local.run_until(async {
            let stop = Stop::new();
            let mut tasks = Tasks::new(&stop);
            tasks.spawn_local("deaf", std::future::pending());
            tasks.spawn_local("steady", until(&stop));
            stop.request();
            tasks.finish(LONG).await
        });
        let names = vec!["deaf"];
        assert_eq!(outcome.await, Err(TasksError::Hung { names, within: LONG }));
    }
}
