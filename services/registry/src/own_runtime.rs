//! A thread with a tokio runtime, for a connection whose tasks must not depend on the thread that asked first.
//!
//! Keeps: the runtime, for as long as the handle lives.
//! Order: none between what runs there.
//! Crash: a panic there ends what panicked, no more.
//! Knows no registry.

use std::io;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The runtime; dropping it ends the thread and what runs there.
pub(crate) struct OwnRuntime {
    handle: Handle,
    _ends_when_dropped: oneshot::Sender<()>,
}

impl OwnRuntime {
    /// Starts a thread with this name.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (ends_when_dropped, end) = oneshot::channel::<()>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Ends with an error, when the sender is dropped.
            let _ = runtime.block_on(end);
        })?;
        Ok(Self {
            handle,
            _ends_when_dropped: ends_when_dropped,
        })
    }

    /// Runs something there; it ends early if the caller goes away. `None`: it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut running = Running(self.handle.spawn(task));
        (&mut running.0).await.ok()
    }
}

struct Running<T>(JoinHandle<T>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
