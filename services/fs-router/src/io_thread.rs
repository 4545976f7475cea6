//! IO threads: each a current-thread runtime with a router of its own (DESIGN.md §4, Threads).
//!
//! Keeps: the threads, and the way to start tasks on them.
//! Order: tasks of one thread are started in the order in which they were given to it.
//! Crash: nothing.
//! Knows no front end: front ends give it their tasks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use sconce_runtime::Chance;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

use crate::routing::{Components, Counts, Router};

/// Tasks that may wait to be started on a thread.
const WAITING_MAX: usize = 256;

type Start = Box<dyn FnOnce(&Router) + Send>;

/// An IO thread. A handle: clones mean the same thread; it may be used from any thread.
#[derive(Clone)]
pub struct IoThread {
    starts: mpsc::Sender<Start>,
}

/// The thread is gone: the service stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the IO thread has stopped")]
pub struct Stopped;

impl IoThread {
    /// Starts a task on the thread.
    ///
    /// # Errors
    /// The thread has stopped.
    pub async fn spawn<F, T>(&self, task: F) -> Result<(), Stopped>
    where
        F: FnOnce(Router) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let start: Start = Box::new(move |router| {
            tokio::task::spawn_local(task(router.clone()));
        });
        self.starts.send(start).await.map_err(|_| Stopped)
    }

    /// Starts a task on the thread, from a thread that runs no tasks.
    ///
    /// # Errors
    /// The thread has stopped.
    pub fn spawn_blocking<F, T>(&self, task: F) -> Result<(), Stopped>
    where
        F: FnOnce(Router) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let start: Start = Box::new(move |router| {
            tokio::task::spawn_local(task(router.clone()));
        });
        self.starts.blocking_send(start).map_err(|_| Stopped)
    }

    /// Runs a task on the thread and gives its result.
    ///
    /// # Errors
    /// The thread has stopped.
    pub async fn run<F, T>(&self, task: F) -> Result<T::Output, Stopped>
    where
        F: FnOnce(Router) -> T + Send + 'static,
        T: Future<Output: Send> + 'static,
    {
        let (result, output) = oneshot::channel();
        self.spawn(move |router| async move {
            // Whoever asked may have stopped waiting.
            let _ = result.send(task(router).await);
        })
        .await?;
        output.await.map_err(|_| Stopped)
    }
}

/// The IO threads of a process.
pub struct IoThreads {
    threads: Vec<IoThread>,
    counts: Vec<Arc<Counts>>,
    joins: Vec<JoinHandle<()>>,
    next: AtomicUsize,
    ending: watch::Sender<bool>,
}

impl IoThreads {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// The system gives no thread or no runtime.
    pub fn start(count: usize, components: &Components) -> io::Result<IoThreads> {
        let mut threads = Vec::new();
        let mut counts = Vec::new();
        let mut joins = Vec::new();
        let ending = watch::Sender::new(false);
        for index in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (starts, waiting) = mpsc::channel(WAITING_MAX);
            let mut components = components.clone();
            components.counts = Arc::default();
            counts.push(Arc::clone(&components.counts));
            let ended = ending.subscribe();
            let join = std::thread::Builder::new()
                .name(format!("io-{index}"))
                .spawn(move || {
                    let local = LocalSet::new();
                    local.block_on(&runtime, serve(components, index, waiting, ended));
                })?;
            threads.push(IoThread { starts });
            joins.push(join);
        }
        Ok(IoThreads {
            threads,
            counts,
            joins,
            next: AtomicUsize::new(0),
            ending,
        })
    }

    /// The threads.
    #[must_use]
    pub fn all(&self) -> &[IoThread] {
        &self.threads
    }

    /// What each of the threads counts.
    #[must_use]
    pub fn counts(&self) -> &[Arc<Counts>] {
        &self.counts
    }

    /// One of the threads, the next one each time.
    #[must_use]
    pub fn pick(&self) -> IoThread {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.threads[next % self.threads.len()].clone()
    }

    /// Leaves the threads as they are, because the process ends in a moment: what still runs on them is neither answered
    /// nor dropped, which would answer it as well.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Ends the threads: what still runs on them is dropped.
    pub fn finish(self) {
        self.ending.send_replace(true);
        for join in self.joins {
            if let Err(panic) = join.join() {
                tracing::error!(?panic, "an IO thread panicked");
            }
        }
    }
}

async fn serve(
    components: Components,
    index: usize,
    mut waiting: mpsc::Receiver<Start>,
    mut ended: watch::Receiver<bool>,
) {
    let router = Router::new(components, index, Chance::from_os());
    loop {
        tokio::select! {
            start = waiting.recv() => match start {
                Some(start) => start(&router),
                None => return,
            },
            _ = ended.wait_for(|ended| *ended) => return,
        }
    }
}
