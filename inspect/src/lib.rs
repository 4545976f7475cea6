//! Inspection and checks of what is on back ends, without any service, and without the registry (docs/operating/inspect.md).
//!
//! Keeps: nothing.
//! Order: a check reads manifests, trees, SCOs; the newest manifest as a recovery finds it.
//! Crash: nothing; nothing is ever written, and it works where nothing can be.
//! Knows back ends by the storage-router's `Backend`, and volumes by the engine's own reading of their trees.

mod bundle;
pub mod check;
mod claims;
mod maps;
mod orphans;
pub mod report;
pub mod sco;
pub mod show;
pub mod store;
pub mod subject;
mod walk;

pub use check::{Options, check};
pub use report::{Report, Verdict};
pub use store::{Store, StoreError};
