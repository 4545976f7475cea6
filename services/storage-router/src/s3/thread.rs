//! A thread for one back end's requests: signing and encrypting megabytes must not hold up the bus.
//!
//! Keeps: the thread.
//! Order: none.
//! Crash: a request that panics answers its caller with an error; the others go on.
//! Knows no requests.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::backend::BackendError;

/// The thread. It ends, with all that is under way on it, when this is dropped.
#[derive(Debug)]
pub(super) struct Thread {
    runtime: Handle,
    _stop: oneshot::Sender<()>,
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl Thread {
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("s3-{name}"))
            // An error says that the sender was dropped, and it never sends.
            .spawn(move || drop(runtime.block_on(stopped)))?;
        Ok(Self {
            runtime: handle,
            _stop: stop,
        })
    }

    /// Does `work` on the thread. What is not waited for any more is given up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BackendError>> + Send + 'static,
    ) -> Result<T, BackendError> {
        let mut task = Task(self.runtime.spawn(work));
        (&mut task.0).await.unwrap_or_else(|end| {
            Err(BackendError::Unavailable {
                why: format!("a request ended without an answer: {end}"),
            })
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer_and_the_thread_goes_on() {
        let thread = Thread::start("test").unwrap();
        let broken = thread
            .run(async { panic!("on purpose") as Result<(), BackendError> })
            .await;
        assert!(matches!(broken, Err(BackendError::Unavailable { .. })));
        assert_eq!(thread.run(async { Ok(7) }).await, Ok(7));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up() {
        let thread = Thread::start("test").unwrap();
        let held = Arc::new(());
        let hold = Arc::clone(&held);
        let (begun, begins) = oneshot::channel();
        let work = thread.run(async move {
            let _hold = hold;
            let _ = begun.send(());
            std::future::pending::<Result<(), BackendError>>().await
        });
        tokio::select! {
            _ = work => unreachable!("it never ends"),
            _ = begins => {}
        }
        // The thread drops it before it does anything else.
        thread.run(async { Ok(()) }).await.unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
