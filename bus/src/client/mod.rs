//! The client side of the bus.
//!
//! Keeps: one connection to one endpoint, made again whenever it is lost, and what is unanswered on it.
//! Order: requests leave in the order in which they were sent; replies come in any order.
//! Crash: after `Down` nothing that was unanswered is remembered here: the caller sends it again once it is `Up`.
//! Knows no request's meaning.

mod driver;
mod receiver;
mod state;

use std::marker::PhantomData;
use std::rc::Rc;

use bytes::Bytes;
use sconce_schemas::wire::{Body, Hello, Refusal, Trace, Welcome};

use crate::endpoint::Endpoint;
use crate::link::LostReason;
use crate::network::Network;
use crate::refuse::Refuse;
pub use receiver::Receiver;
use state::Shared;

/// What happened on a client's connection.
#[derive(Debug)]
pub enum ClientEvent<R> {
    /// The server was greeted: requests can be sent.
    Up(Welcome),
    /// Replies came, as one message.
    Replies(Vec<ReplyIn<R>>),
    /// Credit was given back after a [`Sender::send`] that found none.
    Room,
    /// The connection is lost; all unanswered requests are forgotten, and may or may not have been carried out. `Up`
    /// follows by itself.
    Down(LostReason),
    /// The server will not have us (another major version, another protocol): no further try is made.
    Refused(Refusal),
}

/// A reply that came in.
#[derive(Debug)]
pub struct ReplyIn<R> {
    /// The `id` that its request was sent with.
    pub id: u64,
    /// What was answered.
    pub body: R,
    /// The data that came with it: a slice of the message, which stays in memory while any of its slices does.
    pub data: Bytes,
}

/// Why a request was not sent. Gives its data back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too much is outstanding; `Room` comes when something of it was answered.
    #[error("no credit is left: too much is outstanding")]
    NoCredit(Bytes),
    /// Not connected; `Up` comes when it is.
    #[error("not connected")]
    Down(Bytes),
    /// Larger than the server takes at all: it can never be sent.
    #[error("the request takes {bytes} bytes; the server takes {limit}")]
    TooLarge {
        /// The request's data.
        data: Bytes,
        /// What it takes: message, or credit.
        bytes: u64,
        /// What the server gives.
        limit: u64,
    },
}

/// Sends requests on a connection. Cheap to clone.
pub struct Sender<Q> {
    shared: Rc<Shared>,
    body: PhantomData<fn(Q)>,
}

impl<Q> Clone for Sender<Q> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            body: PhantomData,
        }
    }
}

impl<Q: Body> Sender<Q> {
    /// Queues a request; all that is queued when the socket is free leaves as one message. `id` comes back with the
    /// reply; `trace` is what it belongs to in traces (a number: that operation, not recorded; 0: none); `reply_bytes` is the largest data that may come back: an
    /// answer with more (beyond whole clusters) is refused.
    ///
    /// # Errors
    /// No credit is left or the connection is down: the caller keeps the request and tries again on the next event.
    pub fn send(
        &self,
        id: u64,
        trace: impl Into<Trace>,
        body: &Q,
        data: Bytes,
        reply_bytes: u32,
    ) -> Result<(), SendError> {
        self.shared.send(id, trace.into(), body, data, reply_bytes)
    }

    /// Whether requests can be sent now, credit permitting.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// Requests that are queued or sent and not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.shared.outstanding()
    }
}

/// Connects to `endpoint`, and again whenever the connection is lost, for as long as the receiver lives. The first
/// event is `Up`, however long the server takes to appear.
pub fn connect<Q: Body, R: Body + Refuse>(
    network: &Network,
    endpoint: &Endpoint,
    hello: Hello,
) -> (Sender<Q>, Receiver<R>) {
    let shared = Rc::new(Shared::new());
    let driver = driver::drive(shared.clone(), network.clone(), endpoint.clone(), hello);
    let driver = tokio::task::spawn_local(driver);
    let sender = Sender {
        shared: shared.clone(),
        body: PhantomData,
    };
    (sender, Receiver::new(shared, driver))
}
