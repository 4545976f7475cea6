//! How a front end uses its thread's router.
//!
//! Keeps: nothing; handles.
//! Order: operations are taken on in the order of their submission.
//! Crash: a front end that is dropped abandons its operations.
//! Knows no protocol.

use std::task::{Context, Poll};

use sconce_schemas::{SnapshotId, VolumeId};
use sconce_tracing::OperationId;

use super::core::{FrontEndKey, Patience, SessionKey, Token, View};
use super::mailbox::{Completion, Mailbox};
use super::operation::Operation;
use super::router::{Router, State};
use super::waiters::Waiters;

/// One who asks: a connection of a client, a mount, a command. Dropping it abandons its operations.
pub struct FrontEnd {
    pub(super) router: Router,
    pub(super) key: FrontEndKey,
}

/// A volume, or a snapshot of it, that a front end uses. Dropping it lets the volume's session end.
pub struct SessionHandle {
    pub(super) router: Router,
    pub(super) key: SessionKey,
    volume: VolumeId,
}

impl FrontEnd {
    /// The volume's session on this thread.
    #[must_use]
    pub fn session(&self, volume: VolumeId) -> SessionHandle {
        let key = self.router.shared.state.borrow_mut().core.session(volume);
        SessionHandle {
            router: self.router.clone(),
            key,
            volume,
        }
    }

    /// A session on a snapshot of the volume, to be read: the one with this name that is there when it is opened, or
    /// only `id`, where that is given.
    #[must_use]
    pub fn snapshot_session(&self, volume: VolumeId, name: String, id: Option<SnapshotId>) -> SessionHandle {
        self.view_session(volume, View::snapshot(name, id))
    }

    /// A session on a view of the volume: a snapshot, or two roots to be compared.
    #[must_use]
    pub fn view_session(&self, volume: VolumeId, view: View) -> SessionHandle {
        let mut state = self.router.shared.state.borrow_mut();
        let key = state.core.view_session(volume, view);
        SessionHandle {
            router: self.router.clone(),
            key,
            volume,
        }
    }

    /// An id for an operation that is about to be submitted, for what is traced before.
    #[must_use]
    pub fn operation_id(&self) -> OperationId {
        self.router.shared.state.borrow_mut().core.operation_id()
    }

    /// Takes an operation on; it completes under `token`. Call [`Router::send`] after one or several.
    ///
    /// # Errors
    /// The volume has too much under way: the operation comes back; [`FrontEnd::poll`] tells when there is room.
    pub fn submit(
        &self,
        session: &SessionHandle,
        token: Token,
        operation: Operation,
    ) -> Result<(), Operation> {
        let mut state = self.router.shared.state.borrow_mut();
        let State {
            core,
            effects,
            mailboxes,
            ..
        } = &mut *state;
        let submitted = core.submit(session.key, self.key, token, operation, effects);
        if submitted.is_err()
            && let Some(mailbox) = mailboxes.get_mut(self.key.0)
        {
            mailbox.stall(session.key);
        }
        submitted
    }

    /// Opens the volume at its owner; completes under `token` with `Outcome::Opened`, as the volume is then.
    pub fn open(&self, session: &SessionHandle, token: Token, patience: Patience) {
        let mut state = self.router.shared.state.borrow_mut();
        let State { core, effects, .. } = &mut *state;
        core.open(session.key, self.key, token, patience, effects);
    }

    /// Takes completions. Ready when there were any, or when there is room after a [`FrontEnd::submit`] found none.
    pub fn poll(&self, cx: &mut Context<'_>, taken: &mut Vec<Completion>) -> Poll<()> {
        let mut state = self.router.shared.state.borrow_mut();
        let Some(Mailbox::Queue {
            completions,
            room,
            waker,
            ..
        }) = state.mailboxes.get_mut(self.key.0)
        else {
            return Poll::Pending;
        };
        if completions.is_empty() && !*room {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        *room = false;
        taken.extend(completions.drain(..));
        Poll::Ready(())
    }

    /// The router.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Calls `use_waiters` with the futures that wait at this front end; `None` if it is none of futures.
    pub(super) fn with_waiters<T>(&self, use_waiters: impl FnOnce(&mut Waiters) -> T) -> Option<T> {
        match self
            .router
            .shared
            .state
            .borrow_mut()
            .mailboxes
            .get_mut(self.key.0)
        {
            Some(Mailbox::Futures(waiters)) => Some(use_waiters(waiters)),
            _ => None,
        }
    }
}

impl SessionHandle {
    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What it is on beside the volume itself, with the snapshots that it found.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let state = self.router.shared.state.borrow();
        state.core.view(self.key).cloned()
    }

    /// Why the volume's operations are held, where they are.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let state = self.router.shared.state.borrow();
        state.core.trouble(self.key).map(str::to_owned)
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        let shared = &self.router.shared;
        let now = shared.now();
        {
            let mut state = shared.state.borrow_mut();
            let State {
                core,
                effects,
                mailboxes,
                ..
            } = &mut *state;
            // What completes in the same moment finds no mailbox and is thrown away, as it should be.
            mailboxes.try_remove(self.key.0);
            core.abandon(now, self.key, effects);
        }
        shared.run(None);
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        let shared = &self.router.shared;
        let now = shared.now();
        shared.state.borrow_mut().core.release(now, self.key);
        shared.run(None);
    }
}
