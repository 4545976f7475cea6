//! The workloads, and what Sconce must reach of the other server's figure (the project's goals for this slice).
//!
//! Keeps: the closed list.
//! Order: writes before reads, so that a short run still shows the writes.
//! Crash: nothing.
//! Knows fio's names for things.

use crate::fio::Load;

/// One way of loading a disk.
#[derive(Debug, PartialEq)]
pub(super) struct Workload {
    /// Its name in tables and for `--only`.
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) rw: &'static str,
    /// Bytes of a request, as fio takes them.
    pub(super) block: &'static str,
    /// Requests under way.
    pub(super) depth: u32,
    /// A flush after so many writes.
    pub(super) flush_each: Option<u32>,
    /// The disk is written just before, so that the data is in the write buffer.
    pub(super) reads_fresh: bool,
    /// Of the better qemu-nbd's figure, what Sconce must reach.
    pub(super) goal: f64,
    /// Figures are MB/s, not operations/s.
    pub(super) by_bytes: bool,
}

impl Workload {
    /// What fio is asked for.
    pub(super) fn load(&self) -> Load<'static> {
        Load {
            rw: self.rw,
            block: self.block,
            depth: self.depth,
            flush_each: self.flush_each,
            per_second_max: None,
        }
    }
}

const WRITE: Workload = Workload {
    name: "",
    rw: "randwrite",
    block: "4k",
    depth: 1,
    flush_each: None,
    reads_fresh: false,
    goal: 0.5,
    by_bytes: false,
};
const READ: Workload = Workload {
    rw: "randread",
    reads_fresh: true,
    ..WRITE
};

/// All workloads.
pub(super) static WORKLOADS: [Workload; 7] = [
    Workload {
        name: "randwrite-4k-1",
        ..WRITE
    },
    Workload {
        name: "randwrite-4k-32",
        depth: 32,
        goal: 0.7,
        ..WRITE
    },
    Workload {
        name: "randwrite-4k-32-flush",
        depth: 32,
        flush_each: Some(32),
        goal: 0.7,
        ..WRITE
    },
    Workload {
        name: "randread-4k-1",
        ..READ
    },
    Workload {
        name: "randread-4k-32",
        depth: 32,
        goal: 0.6,
        ..READ
    },
    Workload {
        name: "write-1m",
        rw: "write",
        block: "1m",
        depth: 4,
        goal: 0.6,
        by_bytes: true,
        ..WRITE
    },
    Workload {
        name: "read-1m",
        rw: "read",
        block: "1m",
        depth: 4,
        goal: 0.6,
        by_bytes: true,
        ..READ
    },
];
