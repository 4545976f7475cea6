//! The whole volume-router over the real bus, with a real storage-router: a write is kept, whatever dies.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod access;
mod bundle_job;
mod changes;
mod client;
mod clones;
mod cluster;
mod damage;
mod deletion;
mod dtl;
mod events;
mod faults;
mod flatten;
mod group;
mod history;
mod hostile;
mod inspect;
mod io;
mod loss;
mod moving;
mod neighbour;
mod ownership;
mod peer;
mod placement;
mod power;
mod pressure;
mod registry;
mod restart;
mod scale;
mod scene;
mod scrub;
mod snapshots;
mod twin;
