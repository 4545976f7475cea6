//! Volumes that clients of this process use by another way than a file: over NBD.
//!
//! Keeps: how many clients use each volume, for all threads of the process.
//! Order: a client counts from before its volume is opened until after its last answer.
//! Crash: nothing; a client that comes back counts again.
//! Knows no protocol and no file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sconce_schemas::VolumeId;

/// The volumes in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    clients: Arc<Mutex<HashMap<VolumeId, usize>>>,
}

/// A client that uses a volume. Dropping it ends that.
#[derive(Debug)]
pub struct Use {
    in_use: InUse,
    volume: VolumeId,
}

impl InUse {
    /// One more client uses a volume.
    #[must_use]
    pub fn enter(&self, volume: VolumeId) -> Use {
        *self.clients().entry(volume).or_default() += 1;
        Use {
            in_use: self.clone(),
            volume,
        }
    }

    /// Whether a client uses a volume.
    #[must_use]
    pub fn has(&self, volume: VolumeId) -> bool {
        self.clients().contains_key(&volume)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<VolumeId, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut clients = self.in_use.clients();
        if let Some(count) = clients.get_mut(&self.volume) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_in_use_until_its_last_client_goes() {
        let in_use = InUse::default();
        let (one, other) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let first = in_use.enter(one);
        let second = in_use.enter(one);
        drop(first);
        assert!(in_use.has(one) && !in_use.has(other));
        drop(second);
        assert!(!in_use.has(one));
    }
}
