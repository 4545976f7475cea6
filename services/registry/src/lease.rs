//! Leases: keys that go when their holder does.
//!
//! Keeps: a lease's id, and until when its holder may rely on it, suspended machines included.
//! Order: the holder's end is never after the registry's: it counts from before the request that renewed it.
//! Crash: the holder's end is the lease's, after its time to live.
//! Knows no keys.

use std::time::Duration;

use sconce_runtime::Moment;
use sconce_schemas::wire::registry::LeaseId;

use crate::{Registry, RegistryError};

/// A lease that this process holds. Dropping it leaves it to its time to live.
#[derive(Debug)]
pub struct Lease {
    registry: Registry,
    id: LeaseId,
    ttl: Duration,
    renewed: Moment,
}

impl Lease {
    pub(crate) fn new(registry: Registry, id: LeaseId, ttl: Duration, asked: Moment) -> Self {
        Self {
            registry,
            id,
            ttl,
            renewed: asked,
        }
    }

    /// Its number, which a [`Change`](crate::Change) binds a key to.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Its time to live.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// When its last renewal was asked for.
    #[must_use]
    pub fn renewed(&self) -> Moment {
        self.renewed
    }

    /// Until when the registry keeps it at least: an owner that relies on it stops before.
    #[must_use]
    pub fn held_until(&self) -> Moment {
        self.renewed.after(self.ttl)
    }

    /// Keeps it alive for another time to live.
    ///
    /// # Errors
    /// It has ended, or the registry cannot be used now.
    pub async fn keep_alive(&mut self) -> Result<(), RegistryError> {
        let asked = Moment::now();
        self.registry.home().keep_alive(self.id).await?;
        self.renewed = asked;
        Ok(())
    }

    /// Ends it: its keys are deleted, in one commit. One that has ended before is as good.
    ///
    /// # Errors
    /// The registry cannot be used now.
    pub async fn revoke(self) -> Result<(), RegistryError> {
        self.registry.home().revoke(self.id).await
    }
}
