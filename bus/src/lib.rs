//! The bus: requests and replies between services, as msgpack over ZeroMQ.
//!
//! Keeps: connections (greeting, credits, batches, keep-alive) and which request a reply answers.
//! Order: none promised between requests; a reply comes at most once for each request of a connection.
//! Crash: a lost connection forgets what was unanswered; its callers are told (`Down`) and send again.
//! Knows no volumes, no objects, no names: bodies are whatever implements [`Body`].
//!
//! One thread owns each socket. [`connect`] and [`bind`] spawn local tasks: call them within a
//! [`tokio::task::LocalSet`] on a current-thread runtime (an actix arbiter is one). What travels how is told by a
//! [`Network`]: ZeroMQ over unix sockets, with mutual TLS between hosts, or an in-process network with seeded faults.

pub mod authority;
mod batch;
mod bell;
mod caller;
mod client;
mod credit;
mod endpoint;
mod in_process;
mod limits;
mod link;
mod network;
mod refuse;
mod server;
mod tls;
mod tolerant;
mod zeromq;

pub use caller::{Begun, CallError, Caller, NotBegun};
pub use client::{ClientEvent, Receiver, ReplyIn, SendError, Sender, connect};
pub use endpoint::{Endpoint, EndpointError};
pub use in_process::{Faults, InProcess};
pub use limits::Limits;
pub use link::LostReason;
pub use network::{BindError, Network, ZeromqSettings};
pub use refuse::Refuse;
pub use sconce_schemas::wire::{Body, Hello, Protocol, Refusal, RefusalCode, Remedy, Role, Version, Welcome};
pub use server::{Identity, PeerId, Reply, RequestIn, Server, ServerEvent, bind};
pub use tls::TlsSettings;
