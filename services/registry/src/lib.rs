//! The registry: who owns what. Nodes, volumes, names, pools and placement (DESIGN.md §4).
//!
//! Keeps: one handle to a small consistent store, wherever that has its home: embedded (sled, with a checked
//! journal beside it), etcd, in memory, or another process that is reached over the bus.
//! Order: commits happen one after the other, each all or nothing; a watch tells them in that order.
//! Crash: a commit that was acknowledged is there afterwards, whole; another is there whole or not at all.
//! Knows no IO path: what a volume writes never comes here.

pub mod announce;
mod embedded;
mod error;
mod etcd;
mod history;
mod home;
mod host;
mod image;
mod lease;
pub mod limits;
pub mod nodes;
mod own_runtime;
pub mod record;
mod registry;
mod remote;
mod settings;
mod state;
mod store;

pub use error::{CommitError, Invalid, OpenError, RegistryError};
pub use host::host;
pub use lease::Lease;
pub use registry::{Registry, Watched};
pub use sconce_schemas::wire::registry::{Change, Entry, LeaseId, Revision, WatchEvent};
pub use settings::RegistrySettings;
