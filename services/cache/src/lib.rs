//! An SSD cache of immutable pieces, named by where they are.
//!
//! Keeps: pieces of at most a fixed length in one file of a fixed size, within which a policy that resists scans decides
//! what stays; who fetches what at the moment.
//! Order: a piece can be found from the moment that it was put; it is written to the file later, by a thread that may block.
//! Crash: what was written is found again; what was half written does not hold its CRC32C and is a miss.
//! Knows no clusters, no objects and no services. Whatever happens to its file is a miss, never an error and never other bytes.

mod cache;
mod counters;
mod disk;
mod flights;
mod key;
mod layout;
mod metrics;
mod policy;
mod settings;
mod store;

pub use cache::{Cache, Components, Found, PENDING_BYTES_MAX, Reading, Use};
pub use counters::Counters;
pub use disk::{CacheFile, Disk, SystemDisk};
pub use flights::{Flight, Flights, Follower, Joined, Turn};
pub use key::{KEY_LEN, Key};
pub use layout::{ENTRY_LEN, Geometry, HEADER_LEN};
pub use policy::Policy;
pub use settings::{CacheSettings, SIZE_MIN};
