//! A network within the process, with faults from a seed.
//!
//! Keeps: who listens, what is under way on each connection, which ways are cut.
//! Order: as sent within a connection, unless told to reorder.
//! Crash: a lost connection loses what was under way, as a broken stream does; `late` lets some of it arrive anyway,
//! after the client connected again, as a kernel's buffer does.
//! Knows no envelope.
//!
//! A real stream never loses a single message, so neither does this network: what it loses is a connection. With one
//! seed, on one thread and under tokio's paused clock, everything happens in the same order again.

mod ends;
mod wires;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_schemas::NodeName;

pub(crate) use ends::{DialReceiver, DialSender, ListenReceiver, ListenSender, dial, listen};
use wires::Wires;

/// What goes wrong, and how often: each probability is from 0 to 1, and for each message.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// A message takes so long.
    pub delay: RangeInclusive<Duration>,
    /// The connection breaks, and what was under way is lost.
    pub loss: f64,
    /// What was under way to the server when the connection broke arrives anyway, up to ten delays later.
    pub late: f64,
    /// The message arrives twice.
    pub duplicate: f64,
    /// The message overtakes, or is overtaken.
    pub reorder: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO..=Duration::ZERO,
            loss: 0.0,
            late: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
        }
    }
}

/// A network within the process: give it to [`Network::in_process`](crate::Network::in_process), keep a clone to
/// disturb it.
#[derive(Clone)]
pub struct InProcess(Arc<Mutex<Wires>>);

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProcess")
    }
}

impl InProcess {
    /// A network without faults; `seed` decides all that is left to chance.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Wires::new(seed))))
    }

    /// From now on messages suffer `faults`.
    pub fn set_faults(&self, faults: Faults) {
        self.wires().faults = faults;
    }

    /// Cuts the way from one node to another: what is sent is held until [`Self::heal`], or lost with its
    /// connection. The way back is another.
    pub fn cut(&self, from: &NodeName, to: &NodeName) {
        self.wires().cut.insert((from.clone(), to.clone()));
    }

    /// Cuts both ways.
    pub fn part(&self, one: &NodeName, other: &NodeName) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Opens the way from one node to another again.
    pub fn heal(&self, from: &NodeName, to: &NodeName) {
        let mut wires = self.wires();
        wires.cut.remove(&(from.clone(), to.clone()));
        wires.wake_all();
    }

    /// Opens all ways.
    pub fn heal_all(&self) {
        let mut wires = self.wires();
        wires.cut = BTreeSet::new();
        wires.wake_all();
    }

    /// Breaks all connections between two nodes, now.
    pub fn break_connections(&self, one: &NodeName, other: &NodeName) {
        self.wires().break_between(one, other);
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        // Wires are whole between any two statements that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dice of one client.
    pub(crate) fn chance(&self) -> fastrand::Rng {
        self.wires().chance.fork()
    }
}
