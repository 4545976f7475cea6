//! The volume-router: actors around the engine.
//!
//! Keeps: the volumes that this node owns, and the write buffer that they share.
//! Order: a volume's operations are applied on its shard's thread, in the order in which they came.
//! Crash: the engine's recovery makes a prefix of what the write buffer and the back ends hold.
//! Knows no front end and no back end.
//!
//! Follow one write: `port` → `actor::serving` → `device::file`; what happens beside it: `background`; a volume's
//! start and end: `actor::life` → `owner`.

mod actor;
mod announce;
mod background;
mod buffer;
mod deletion;
pub mod device;
mod gate;
mod metrics;
mod node;
mod owner;
mod placement;
mod port;
mod service;
mod settings;
mod shard;
mod twin;

pub use service::{Components, RunError, block_on, run};
pub use settings::{
    BufferSettings, DtlSettings, EraseSettings, LimitSettings, PlacementSettings, SettingError, Settings,
    UploadSettings, VolumesSettings,
};
