//! For tests of this crate and of others: back ends in memory, and back ends that go wrong on purpose.
//!
//! Keeps: objects in memory; which faults happen, drawn from a seed.
//! Order: as every back end.
//! Crash: memory is gone with its process, which is the point of it in a simulation.
//! Knows no service. No service uses it.

mod faulty;
mod memory;

pub use faulty::{Faults, FaultyBackend};
pub use memory::MemoryBackend;
