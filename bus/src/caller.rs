//! Request and answer, for everyone but the hot path.
//!
//! Keeps: which call waits for which reply.
//! Order: none between calls.
//! Crash: a call whose connection is lost ends with `Lost`: whether it was carried out is unknown.
//! Knows no request's meaning.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_schemas::wire::{Body, Hello, Refusal, RefusalCode};
use sconce_tracing::{Trace, telemetry};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::client::{ClientEvent, Receiver, SendError, Sender, connect};
use crate::endpoint::Endpoint;
use crate::network::Network;
use crate::refuse::Refuse;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was sent, then the connection was lost: whether it was carried out is unknown.
    #[error("the connection was lost before the answer came: whether the request was carried out is unknown")]
    Lost,
    /// The time was over, before or after it was sent.
    #[error("no answer came in time")]
    Deadline,
    /// The server will not have us, or the request is larger than it takes.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// Calls a service over one connection, which all its clones share. Ends with its last clone.
pub struct Caller<Q, R> {
    inner: Rc<Inner<Q, R>>,
}

impl<Q, R> Clone for Caller<Q, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<Q, R> {
    sender: Sender<Q>,
    shared: Rc<Shared<R>>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared<R> {
    /// Calls that were sent and not answered.
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<(R, Bytes)>>>,
    next_id: Cell<u64>,
    /// Tells calls that could not be sent to try again.
    again: Notify,
    refused: RefCell<Option<Refusal>>,
}

impl<Q, R> Drop for Inner<Q, R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<Q: Body, R: Body + Refuse> Caller<Q, R> {
    /// A caller of the service at `endpoint`.
    #[must_use]
    pub fn new(network: &Network, endpoint: &Endpoint, hello: Hello) -> Self {
        let (sender, receiver) = connect(network, endpoint, hello);
        let shared = Rc::new(Shared {
            waiting: RefCell::default(),
            next_id: Cell::new(1),
            again: Notify::new(),
            refused: RefCell::default(),
        });
        let task = tokio::task::spawn_local(take_events(receiver, shared.clone()));
        Self {
            inner: Rc::new(Inner { sender, shared, task }),
        }
    }

    /// Sends a request as soon as there is a connection and credit, and waits for its answer, all within `deadline`.
    /// `reply_bytes` is the largest data that may come back.
    ///
    /// # Errors
    /// Whatever keeps the answer from coming; see [`CallError`].
    pub async fn call(
        &self,
        body: &Q,
        data: Bytes,
        reply_bytes: u32,
        deadline: Duration,
    ) -> Result<(R, Bytes), CallError> {
        self.call_for(telemetry::current(), body, data, reply_bytes, deadline)
            .await
    }

    /// The same for what `trace` says in place of what the task works for.
    ///
    /// # Errors
    /// As [`Caller::call`].
    pub async fn call_for(
        &self,
        trace: impl Into<Trace>,
        body: &Q,
        data: Bytes,
        reply_bytes: u32,
        deadline: Duration,
    ) -> Result<(R, Bytes), CallError> {
        let call = self.call_without_deadline(trace.into(), body, data, reply_bytes);
        timeout(deadline, call).await.unwrap_or(Err(CallError::Deadline))
    }

    async fn call_without_deadline(
        &self,
        trace: Trace,
        body: &Q,
        mut data: Bytes,
        reply_bytes: u32,
    ) -> Result<(R, Bytes), CallError> {
        loop {
            data = match self.begin_for(trace, body, data, reply_bytes) {
                Ok(mut begun) => return begun.answer().await,
                Err(NotBegun::NoRoom(data)) => data,
                Err(NotBegun::Refused(refusal)) => return Err(CallError::Refused(refusal)),
            };
            self.room().await;
        }
    }

    /// Sends a request now, so that requests leave in the order of these calls; what it gives waits for the answer.
    ///
    /// # Errors
    /// It cannot be sent now, or ever; see [`NotBegun`].
    pub fn begin(&self, body: &Q, data: Bytes, reply_bytes: u32) -> Result<Begun<R>, NotBegun> {
        self.begin_for(telemetry::current(), body, data, reply_bytes)
    }

    /// The same for what `trace` says in place of what the task works for.
    ///
    /// # Errors
    /// As [`Caller::begin`].
    pub fn begin_for(
        &self,
        trace: impl Into<Trace>,
        body: &Q,
        data: Bytes,
        reply_bytes: u32,
    ) -> Result<Begun<R>, NotBegun> {
        let shared = &self.inner.shared;
        if let Some(refusal) = &*shared.refused.borrow() {
            return Err(NotBegun::Refused(refusal.clone()));
        }
        let id = shared.next_id.replace(shared.next_id.get() + 1);
        match self.inner.sender.send(id, trace, body, data, reply_bytes) {
            Ok(()) => {}
            Err(SendError::NoCredit(data) | SendError::Down(data)) => return Err(NotBegun::NoRoom(data)),
            Err(error @ SendError::TooLarge { .. }) => {
                let refusal = Refusal::reject(RefusalCode::Invalid, error.to_string());
                return Err(NotBegun::Refused(refusal));
            }
        }
        let (answer, answered) = oneshot::channel();
        shared.waiting.borrow_mut().insert(id, answer);
        let waiting = Waiting {
            shared: Rc::clone(shared),
            id,
        };
        Ok(Begun {
            answered,
            _waiting: waiting,
        })
    }

    /// Returns when what there was no room for may be sent: nothing else may be awaited between the two.
    pub async fn room(&self) {
        self.inner.shared.again.notified().await;
    }
}

/// Why a request was not sent.
#[derive(Debug)]
pub enum NotBegun {
    /// There is no connection or no credit now: its data comes back.
    NoRoom(Bytes),
    /// The server will not have us, or the request is larger than it takes.
    Refused(Refusal),
}

/// A request that was sent. Dropped, its answer is not waited for.
pub struct Begun<R> {
    answered: oneshot::Receiver<(R, Bytes)>,
    _waiting: Waiting<R>,
}

impl<R> Begun<R> {
    /// Waits for the answer, however long that takes. Once it has come, not again.
    ///
    /// # Errors
    /// The connection was lost.
    pub async fn answer(&mut self) -> Result<(R, Bytes), CallError> {
        (&mut self.answered).await.map_err(|_| CallError::Lost)
    }
}

/// Forgets a call when it ends, in whatever way.
struct Waiting<R> {
    shared: Rc<Shared<R>>,
    id: u64,
}

impl<R> Drop for Waiting<R> {
    fn drop(&mut self) {
        self.shared.waiting.borrow_mut().remove(&self.id);
    }
}

async fn take_events<R: Body + Refuse>(mut receiver: Receiver<R>, shared: Rc<Shared<R>>) {
    loop {
        match receiver.next().await {
            ClientEvent::Up(_) | ClientEvent::Room => {}
            ClientEvent::Replies(replies) => {
                for reply in replies {
                    let call = shared.waiting.borrow_mut().remove(&reply.id);
                    if let Some(call) = call {
                        // A call whose deadline passed does not listen any more.
                        let _ = call.send((reply.body, reply.data));
                    }
                }
                continue;
            }
            ClientEvent::Down(_) => shared.waiting.borrow_mut().clear(),
            ClientEvent::Refused(refusal) => {
                *shared.refused.borrow_mut() = Some(refusal);
            }
        }
        shared.again.notify_waiters();
    }
}
