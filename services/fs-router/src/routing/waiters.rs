//! Futures that wait for an operation each.
//!
//! Keeps: for each future its outcome, once there, and whom to wake.
//! Order: none.
//! Crash: nothing.
//! Knows no operation's meaning.

use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::core::Token;
use super::operation::Outcome;

#[derive(Default)]
pub(super) struct Waiters {
    waiting: Slab<Waiter>,
    for_room: Vec<Waker>,
}

enum Waiter {
    Waiting(Option<Waker>),
    Done(Outcome),
    /// Its future was dropped; the operation goes on.
    Forgotten,
}

impl Waiters {
    /// A token for an operation about to be submitted.
    pub(super) fn begin(&mut self) -> Token {
        Token(self.waiting.insert(Waiter::Waiting(None)) as u64)
    }

    /// The operation was not taken on.
    pub(super) fn cancel(&mut self, token: Token) {
        if let Some(key) = key_of(token) {
            self.waiting.try_remove(key);
        }
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&mut self, token: Token) {
        let Some(key) = key_of(token) else { return };
        match self.waiting.get_mut(key) {
            Some(Waiter::Done(_)) => {
                self.waiting.remove(key);
            }
            Some(waiter) => *waiter = Waiter::Forgotten,
            None => {}
        }
    }

    pub(super) fn put(&mut self, token: Token, outcome: Outcome) {
        let Some(key) = key_of(token) else { return };
        match self.waiting.get_mut(key) {
            Some(Waiter::Forgotten) => {
                self.waiting.remove(key);
            }
            Some(waiter) => {
                if let Waiter::Waiting(Some(waker)) = std::mem::replace(waiter, Waiter::Done(outcome)) {
                    waker.wake();
                }
            }
            None => {}
        }
    }

    pub(super) fn poll(&mut self, token: Token, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(key) = key_of(token) else {
            return Poll::Pending;
        };
        match self.waiting.get_mut(key) {
            Some(Waiter::Waiting(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Waiter::Done(_)) => match self.waiting.remove(key) {
                Waiter::Done(outcome) => Poll::Ready(outcome),
                Waiter::Waiting(_) | Waiter::Forgotten => Poll::Pending,
            },
            Some(Waiter::Forgotten) | None => Poll::Pending,
        }
    }

    pub(super) fn wait_for_room(&mut self, cx: &mut Context<'_>) {
        self.for_room.push(cx.waker().clone());
    }

    pub(super) fn tell_room(&mut self) {
        self.for_room.drain(..).for_each(Waker::wake);
    }
}

fn key_of(token: Token) -> Option<usize> {
    usize::try_from(token.0).ok()
}
