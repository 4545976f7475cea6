//! The NBD front end: block devices over a unix socket or TCP.
//!
//! Keeps: the listening sockets and how many clients there are.
//! Order: clients are spread over the IO threads in turn; a client stays on its thread.
//! Crash: with a descriptor store the sockets go on listening, and clients that connect again wait for the next
//! process; without, a unix socket that a killed process left behind is taken over by the next.
//! Knows no owner: it hands operations to its thread's router.

mod budget;
mod contexts;
mod handover;
mod inbox;
mod listener;
mod negotiation;
mod outbox;
pub mod protocol;
mod replies;
mod statuses;
mod stream;
mod transmission;

pub use listener::{ListenError, Listener, NbdSettings};
