//! Wakes the one task that waits, within a thread.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Rung by anyone on the thread, heard by one task. Rings before anybody listens are kept, as one.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Cell<bool>,
    listener: Cell<Option<Waker>>,
}

impl Bell {
    pub(crate) fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(waker) = self.listener.take()
        {
            waker.wake();
        }
    }

    /// Returns once the bell was rung since the last time that it returned. Safe to drop at any time.
    pub(crate) async fn rung(&self) {
        poll_fn(|cx| {
            if self.rung.replace(false) {
                return Poll::Ready(());
            }
            let waker = match self.listener.take() {
                Some(waker) if waker.will_wake(cx.waker()) => waker,
                _ => cx.waker().clone(),
            };
            self.listener.set(Some(waker));
            Poll::Pending
        })
        .await;
    }
}
