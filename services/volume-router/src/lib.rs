//! The volume-router: actors around the engine.
//!
//! Keeps: the volumes that this node owns, and the write buffer that they share.
//! Order: a volume's operations are applied on its shard's thread, in the order in which they came.
//! Crash: the engine's recovery makes a prefix of what the write buffer and the back ends hold.
//! Knows no front end and no back end.

pub mod device;
