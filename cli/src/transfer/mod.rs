//! Copies between volumes and raw images, and between pools.
//!
//! Keeps: the chunks under way between the thread that does file IO and the task that talks to the volume.
//! Order: chunks in any order; the end only when all are done.
//! Crash: what was copied so far stays; the command removes it when it fails, not when it is killed.
//! Knows no image format but raw, and backup streams (`stream/`).

mod export;
mod import;
mod progress;
mod stream;

pub use export::run as export;
pub use import::run as import;
pub use stream::verify;

/// Bytes of one request.
const CHUNK: u64 = 1 << 20;
/// Requests under way: enough to keep owner and back end busy, 16 MiB of memory.
const UNDERWAY_MAX: usize = 16;
