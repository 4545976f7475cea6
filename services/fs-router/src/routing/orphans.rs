//! Operations that a front end left behind and that an owner may still apply.
//!
//! Keeps: how many sessions of this process have such operations, by volume.
//! Order: a client that opens a volume anew is let in when those of its last connection can no longer be applied;
//! otherwise a late one could overwrite what it writes now.
//! Crash: what this process had sent and the owner not applied yet waits in the owner, if anywhere. The owner drops it
//! with the connection that it came on (decision 0070), so it cannot be applied behind the back of a client that comes
//! back through another process.
//! Knows no operation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sconce_schemas::VolumeId;
use tokio::sync::Notify;

/// The orphans of all IO threads of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Orphans {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    sessions: Mutex<HashMap<VolumeId, usize>>,
    settled: Notify,
}

impl Orphans {
    /// A session has orphans of this volume.
    pub(super) fn add(&self, volume: VolumeId) {
        *self.sessions().entry(volume).or_default() += 1;
    }

    /// A session has none any more.
    pub(super) fn settle(&self, volume: VolumeId) {
        let mut sessions = self.sessions();
        if let Some(count) = sessions.get_mut(&volume) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&volume);
                self.shared.settled.notify_waiters();
            }
        }
    }

    /// Waits until no session has orphans of this volume.
    pub async fn settled(&self, volume: VolumeId) {
        loop {
            let settled = self.shared.settled.notified();
            if !self.sessions().contains_key(&volume) {
                return;
            }
            settled.await;
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeId, usize>> {
        self.shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_waits_for_the_orphans_of_ones_volume_only() {
        let orphans = Orphans::default();
        let (one, other) = (VolumeId([1; 16]), VolumeId([2; 16]));
        orphans.add(one);
        orphans.add(one);
        orphans.settled(other).await;
        let waiting = tokio::spawn({
            let orphans = orphans.clone();
            async move { orphans.settled(one).await }
        });
        orphans.settle(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        orphans.settle(one);
        waiting.await.unwrap();
    }
}
