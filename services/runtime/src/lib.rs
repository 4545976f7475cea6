//! What every service needs before it does anything of its own.
//!
//! Keeps: settings, clock, chance, orderly stop, supervised tasks, crash points, events, metrics' endpoint, pid file, descriptors that outlive the
//! process, throttled log lines, what a simulated process has in place of the system's.
//! Order: a stop that was requested stays requested.
//! Crash: a pid file that a killed process left behind is taken over by the next.
//! Knows no service, no bus and no storage.

pub mod backoff;
pub mod chance;
pub mod clock;
pub mod crash;
pub mod descriptors;
pub mod events;
pub mod metrics;
pub mod pidfile;
pub mod settings;
pub mod simulated;
pub mod stop;
pub mod tasks;
pub mod throttle;

pub use backoff::Backoff;
pub use chance::Chance;
pub use clock::{Clock, Moment};
pub use descriptors::DescriptorStore;
pub use events::Events;
pub use metrics::{MetricsEndpoint, MetricsError, MetricsOf, MetricsSettings};
pub use pidfile::PidFile;
pub use simulated::blocking;
pub use stop::Stop;
pub use tasks::Tasks;
pub use throttle::Throttle;
