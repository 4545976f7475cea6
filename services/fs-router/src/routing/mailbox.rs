//! What a front end was told and has not taken.
//!
//! Keeps: completions, until their front end takes them.
//! Order: as they came.
//! Crash: nothing.
//! Knows no operation's meaning.

use std::collections::VecDeque;
use std::task::Waker;

use super::core::Token;
use super::operation::Outcome;
use super::waiters::Waiters;

/// An operation that ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its name.
    pub token: Token,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a front end was told and has not taken.
pub(super) enum Mailbox {
    /// For one task that takes everything.
    Queue {
        completions: VecDeque<Completion>,
        room: bool,
        waker: Option<Waker>,
    },
    /// For a future each.
    Futures(Waiters),
}

impl Mailbox {
    pub(super) fn put(&mut self, token: Token, outcome: Outcome) {
        match self {
            Mailbox::Queue {
                completions, waker, ..
            } => {
                completions.push_back(Completion { token, outcome });
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Mailbox::Futures(waiters) => waiters.put(token, outcome),
        }
    }

    pub(super) fn tell_room(&mut self) {
        match self {
            Mailbox::Queue { room, waker, .. } => {
                *room = true;
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Mailbox::Futures(waiters) => waiters.tell_room(),
        }
    }
}
