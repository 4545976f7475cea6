//! Metrics: what a service counts and measures, as Prometheus reads it.
//!
//! Keeps: nothing; numbers are where they are counted, each once.
//! Order: a page shows metrics in the list's order, whatever the order in which they were told.
//! Crash: counts begin at 0 with the next process, as Prometheus expects of counters.
//! Knows no service and no socket. What the hot path counts is in [`Operations`]: relaxed additions to its own thread's numbers.

mod count;
mod list;
mod page;
mod process;

pub use count::{Histogram, Operations};
pub use list::{About, Kind, Metric};
pub use page::{OfOperations, Page};

#[cfg(test)]
mod tests;
