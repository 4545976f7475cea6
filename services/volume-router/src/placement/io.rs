//! What each client asks of each of this node's volumes.
//!
//! Keeps: a counter for each client of each volume, since it was read last.
//! Order: none; what is counted while counters are read is read the next time.
//! Crash: nothing.
//! Knows no connections: whoever opens a volume is given its counter, and counts without a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sconce_schemas::wire::volume::IoCode;
use sconce_schemas::{NodeName, VolumeId};

/// Bytes that one client reads and writes of one volume. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct IoCount(Arc<AtomicU64>);

impl IoCount {
    /// An operation came. A discard says nothing of where a volume should be: it may be of all of it, and moves no data.
    pub(crate) fn came(&self, code: IoCode, length: u64) {
        if matches!(code, IoCode::Read | IoCode::Write) {
            self.0.fetch_add(length, Ordering::Relaxed);
        }
    }

    fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Lives with the node.
#[derive(Debug, Default)]
pub(crate) struct IoCounts {
    counts: Mutex<HashMap<(VolumeId, NodeName), IoCount>>,
}

impl IoCounts {
    /// The counter of a client that opens a volume.
    pub(crate) fn of(&self, volume: VolumeId, client: NodeName) -> IoCount {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry((volume, client)).or_default().clone()
    }

    /// What was counted since the last time. A counter that nobody has any more is read for the last time.
    pub(crate) fn take(&self) -> Vec<(VolumeId, NodeName, u64)> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        counts.retain(|(volume, client), count| {
            let is_used = count.is_used();
            let bytes = count.0.swap(0, Ordering::Relaxed);
            if bytes > 0 {
                taken.push((*volume, client.clone(), bytes));
            }
            is_used
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_reads_and_writes_is_counted_once_also_after_it_left() {
        let counts = IoCounts::default();
        let (volume, client): (_, NodeName) = (VolumeId([1; 16]), "fs-1".parse().unwrap());
        let count = counts.of(volume, client.clone());
        let other = counts.of(volume, client.clone());
        count.came(IoCode::Write, 4096);
        other.came(IoCode::Read, 512);
        count.came(IoCode::Discard, 1 << 40);
        assert_eq!(counts.take(), [(volume, client.clone(), 4608)]);
        assert_eq!(counts.take(), []);
        count.came(IoCode::Write, 1);
        drop((count, other));
        assert_eq!(counts.take(), [(volume, client, 1)]);
        assert!(counts.counts.lock().unwrap().is_empty());
    }
}
