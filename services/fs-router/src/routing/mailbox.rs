//! What a front end was told and has not taken.
//!
//! Keeps: completions, until their front end takes them.
//! Order: as they came.
//! Crash: nothing.
//! Knows no operation's meaning.

use std::collections::VecDeque;
use std::task::Waker;

use super::core::{SessionKey, Token};
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
        /// The session that had no room for what this front end submitted.
        stalled: Option<SessionKey>,
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

    /// A submission found no room.
    pub(super) fn stall(&mut self, on: SessionKey) {
        if let Mailbox::Queue { stalled, .. } = self {
            *stalled = Some(on);
        }
    }

    /// A session has room again. Who does not wait for that is not woken.
    pub(super) fn tell_room(&mut self, session: SessionKey) {
        match self {
            Mailbox::Queue {
                room, waker, stalled, ..
            } => {
                if *stalled != Some(session) {
                    return;
                }
                *stalled = None;
                *room = true;
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            Mailbox::Futures(waiters) => waiters.tell_room(),
        }
    }
}
