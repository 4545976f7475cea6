//! The twin protocol of docs/decisions/0170 as a model that is searched to its end (docs/decisions/0171).
//!
//! Keeps: one volume, its registry record, two or three nodes of which each may own it or host its twin, the streams and commits between
//! them, a back end.
//! Order: breadth first over every state, so that a counterexample is a shortest one. Nothing bounds the length of a life; what is counted
//! (writes, streams, ownerships, lost disks, forced takeovers) is bounded by [`Limits`].
//! Crash: at any step a process dies, a node is lost with its disk, a machine loses power, an owner does not know that it is none.
//! Knows no code of the services. Steps have the names of the engine's events and effects (services/volume/src/event.rs); the headers of
//! `owner`, `host` and `claim` say which function carries each out.
//!
//! What has to hold in every state is [`Broken`]: the owner in charge has every acknowledged write, the twin has them while the record says
//! `InSync`, a write buffer that the record names has them; the back end contradicts none; and a volume that can be served again is never
//! stuck. An acknowledgement that an owner gives when it is in charge no more counts like any other.
//!
//! A test of the search are the rules that it is told to leave out ([`Planted`]): each leads to a loss that it finds.
//!
//! Time is not in the model: a lease is over, an answer is late, and a node pauses whenever that is worst. One rule needs it: an owner
//! that uses a stream is never silent in it.

mod claim;
mod host;
mod owner;
mod properties;
mod rules;
mod search;
mod state;
mod step;
mod world;

pub use properties::Broken;
pub use rules::{Limits, Planted, Rules, Streams};
pub use search::{Found, search};
pub use state::{BATCHES, EPOCHS, NODES, SCOS, STREAMS};
pub use step::Step;
