//! A simulated process: its tasks, on the one thread that there is, driven, held up and killed from outside.
//!
//! Keeps: the tasks.
//! Order: a killed process does nothing more; what it says while its tasks are dropped reaches nobody.
//! Crash: that is what it is for.
//! Knows no services.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::task::{JoinHandle, LocalSet};

/// A process that runs.
pub(crate) struct Process {
    shared: Rc<Shared>,
    driver: JoinHandle<()>,
}

struct Shared {
    tasks: RefCell<Option<LocalSet>>,
    held: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Process {
    /// Begins a process with this task, within the simulation's `LocalSet`.
    pub(crate) fn begin(main: impl Future<Output = ()> + 'static) -> Self {
        let tasks = LocalSet::new();
        tasks.spawn_local(main);
        let shared = Rc::new(Shared {
            tasks: RefCell::new(Some(tasks)),
            held: Cell::new(false),
            waker: Cell::new(None),
        });
        let driven = Rc::clone(&shared);
        let driver = tokio::task::spawn_local(poll_fn(move |cx| {
            if driven.held.get() {
                driven.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            match driven.tasks.borrow_mut().as_mut() {
                Some(tasks) => Pin::new(tasks).poll(cx),
                None => Poll::Ready(()),
            }
        }));
        Self { shared, driver }
    }

    /// Whether all of its tasks have ended.
    pub(crate) fn is_over(&self) -> bool {
        self.driver.is_finished()
    }

    /// From now on it gets no time, until [`Self::go_on`].
    pub(crate) fn hold(&self) {
        self.shared.held.set(true);
    }

    /// It gets time again.
    pub(crate) fn go_on(&self) {
        self.shared.held.set(false);
        if let Some(waker) = self.shared.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.driver.abort();
        let tasks = self.shared.tasks.borrow_mut().take();
        drop(tasks);
    }
}
