//! The engine of a volume: log, map, checkpoints, recovery, as a state machine without IO.
//!
//! Keeps: what a volume is, and what must happen next.
//! Order: an event is applied whole; its effects are carried out in order.
//! Crash: [`Recovery`] makes of what the write buffer and the back ends hold a prefix of what was written.
//! Knows no sockets, no clock, no tasks, no chance.
//!
//! The host (an actor of the volume-router, or a simulation) feeds [`Event`]s to [`Volume::apply`] and carries out
//! the [`Effect`]s. Follow one write: [`Volume::apply`] → `change.rs` → `log.rs` → [`Effect::Append`] →
//! [`Event::AppendHeld`] → `frontier.rs` → [`Effect::Reply`]. Follow one read: `read.rs`, `tree/`.

mod accounting;
mod change;
mod changes;
mod checkpoint;
mod event;
mod flatten;
mod frontier;
mod history;
mod locals;
mod log;
mod moments;
mod operations;
mod proposal;
mod read;
mod reap;
mod recovery;
mod renewal;
mod replay;
mod roots;
mod scos;
mod scrub;
mod sessions;
mod snapshots;
pub mod stored;
mod sweep;
mod tree;
mod twin;
mod volume;

pub use changes::{Base, Compared};
pub use checkpoint::{CheckpointPolicy, Frozen};
pub use event::{Append, CheckpointObject, Effect, Event, Extent, FetchId, SessionSlot, StoredRoots, Ticket};
pub use flatten::FlattenStatus;
pub use history::HistoryStatus;
pub use moments::MomentAsk;
pub use recovery::{Damage, Origin, Recovered, Recovery, RecoveryError, ScoImage, Seal, Step};
pub use scos::{InBundle, ScoState};
pub use scrub::{BundlePlan, BundleSource, KeptSco, ScoObject, ScrubPolicy, ScrubState, ScrubStatus};
pub use snapshots::{Ask, SnapshotInfo, StoredSnapshot};
pub use sweep::SweepPolicy;
pub use twin::{TwinState, TwinStatus};
pub use volume::{CloneOf, Status, Volume, VolumeConfig};
