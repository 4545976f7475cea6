//! The storage-router: spreads objects over back ends and gives good bytes back.
//!
//! Keeps: nothing of its own; objects are on the back ends, pools in the registry.
//! Order: an object is durable on all back ends of its policy before its put is answered.
//! Crash: an object is on a back end whole or not at all; a put that was not answered is sent again.
//! Knows no volumes beyond their ids in names, and of what objects hold only which clusters a packed SCO has.
//!
//! From the bus to the disk: [`run`] takes requests and finds their [`pool`], which knows where an object belongs
//! ([`placement`]) and how many copies it has; each copy goes through [`checked`], which puts it into its envelope's
//! care, to a [`backend`], of which [`directory`] and [`s3`] are the kinds.

mod asked;
pub mod backend;
pub mod cached;
pub mod checked;
pub mod directory;
mod identity;
pub mod placement;
pub mod pool;
mod room;
pub mod s3;
mod service;
pub mod settings;
mod share;
pub mod testing;
mod trace;
pub mod workers;

pub use backend::{Backend, BackendError};
pub use service::{Components, run, run_on};
pub use settings::Settings;
