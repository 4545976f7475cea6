//! Routing: from an operation of a front end to the owner of its volume, through restarts, moves and failovers.
//!
//! Keeps: the split between the core (what to do) and its shell, the router (doing it).
//! Order: [`core`] says.
//! Crash: [`core`] says.
//! Knows no front end.

mod clusters;
pub mod core;
mod counts;
mod front_end;
mod incarnation;
mod links;
mod lookup;
mod mailbox;
mod numbers;
pub mod operation;
mod orphans;
mod router;
mod volume;
mod waiters;

pub use clusters::ClusterCache;
pub use core::{Limits, Patience, Token, View};
pub use counts::Counts;
pub use front_end::{FrontEnd, SessionHandle};
pub use incarnation::Incarnation;
pub use lookup::endpoint_for;
pub use mailbox::Completion;
pub use operation::{Opened, Operation, Outcome, Piece, ReadData};
pub use orphans::Orphans;
pub use router::{Components, Router};
pub use volume::Volume;
