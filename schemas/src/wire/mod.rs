//! Messages between services: what travels in the two frames of a bus message.
//!
//! Keeps: the envelope (who may talk, which request a reply answers) and the bodies of each protocol.
//! Order: a connection starts with `Hello`/`Welcome`; then requests and replies in any order, matched by id.
//! Crash: a message is whole or not there; a body that does not decode is refused, never guessed.
//! Knows no sockets.
//!
//! A bus message is a header frame and at most one data frame. The header is a msgpack array whose first
//! element is the number of its kind ([`envelope`]); a batch header lists its requests (or replies) with the length of each
//! one's share of the data frame, in order. Bodies of hot requests are msgpack arrays written by hand;
//! control bodies are msgpack maps, so that a field can be added within a major version.

pub mod envelope;
pub mod event;
pub mod msgpack;
mod names;
pub mod refusal;
pub mod registry;
pub mod scrub;
pub mod storage;
pub mod twin;
pub mod volume;

pub use envelope::{Cause, Foreign, Hello, Protocol, Role, Trace, Version, Welcome};
pub use msgpack::Body;
pub use refusal::{Refusal, RefusalCode, Remedy};
