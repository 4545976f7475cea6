//! Which objects are being repaired or deleted: one at a time for each object.
//!
//! Keeps: the names that are held.
//! Order: a delete waits for a repair of the same object, so that a repair never brings a deleted object back.
//! Crash: nothing is held any longer. Between two storage-routers a repair may outlive a delete: that leaves a
//! copy that nobody refers to, which the sweep finds.
//! Knows no back ends.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sconce_schemas::ObjectName;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Holds {
    held: Mutex<HashSet<ObjectName>>,
    freed: Notify,
}

/// An object that nobody else repairs or deletes while this lives.
#[derive(Debug)]
pub(super) struct Hold {
    holds: Arc<Holds>,
    name: ObjectName,
}

impl Holds {
    /// Holds the object, if nobody does.
    pub(super) fn try_hold(self: &Arc<Self>, name: ObjectName) -> Option<Hold> {
        let is_free = self.lock().insert(name);
        is_free.then(|| Hold {
            holds: Arc::clone(self),
            name,
        })
    }

    /// Holds the object as soon as nobody does.
    pub(super) async fn hold(self: &Arc<Self>, name: ObjectName) -> Hold {
        self.wait_for(|| self.try_hold(name)).await
    }

    /// Waits until nothing is held.
    pub(super) async fn none(&self) {
        self.wait_for(|| self.lock().is_empty().then_some(())).await;
    }

    async fn wait_for<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            // Registered before looking, so that nothing freed in between is missed.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ObjectName>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.lock().remove(&self.name);
        self.holds.freed.notify_waiters();
    }
}
