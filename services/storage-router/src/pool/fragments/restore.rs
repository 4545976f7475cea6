//! Restoring a pool's policy: objects of which fragments are missing are found by listings, and repaired.
//!
//! Keeps: nothing; whether there may be something to do is the pool's to know.
//! Order: volume by volume, kind by kind, in the order of the names.
//! Crash: the next start looks again.
//! Knows no kind of back end. Damage is not found by listings: reads find it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sconce_schemas::wire::Refusal;
use sconce_schemas::{ObjectName, VolumeId};

use crate::pool::Pool;
use crate::pool::repair::Outcome;
use crate::pool::walk::Walk;

/// What came of looking through a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects of which something was missing, and is there again.
    pub repaired: u64,
    /// Objects of which something is still missing.
    pub left: u64,
    /// Back ends that did not answer.
    pub absent: usize,
}

impl Restored {
    /// Whether everything is where the policy wants it.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.left == 0 && self.absent == 0
    }
}

impl Pool {
    /// Whether fragments may be missing somewhere: since the start, or since something was found.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.coded
            .as_ref()
            .is_some_and(|coded| coded.is_short.load(Ordering::Relaxed))
    }

    /// Looks through all objects of volumes that are the pool's for those of which fragments are missing, and makes them again. Nothing to do for a pool
    /// of whole copies.
    ///
    /// # Errors
    /// A retry when so many back ends are absent that nothing can be told.
    pub async fn restore(
        self: &Arc<Self>,
        is_mine: impl AsyncFn(VolumeId) -> Result<bool, Refusal>,
    ) -> Result<Restored, Refusal> {
        let mut restored = Restored::default();
        let Some(coded) = &self.coded else {
            return Ok(restored);
        };
        if self.is_moving() {
            // The mover comes by everything, within its budget.
            return Ok(restored);
        }
        // What falls short from here on is for the next time.
        coded.is_short.store(false, Ordering::Relaxed);
        let done = self.restore_all(&is_mine, &mut restored).await;
        if done.is_err() || !restored.is_whole() {
            coded.note_short();
        }
        done.map(|()| restored)
    }

    async fn restore_all(
        self: &Arc<Self>,
        is_mine: &impl AsyncFn(VolumeId) -> Result<bool, Refusal>,
        restored: &mut Restored,
    ) -> Result<(), Refusal> {
        let mut walk = Walk::default();
        while let Some(batch) = walk.next(self).await? {
            restored.absent = restored.absent.max(batch.absent().len());
            if let Some(volume) = batch.volume()
                && !is_mine(volume).await?
            {
                continue;
            }
            for name in batch.names() {
                if self.is_superseded() {
                    return Err(self.superseded());
                }
                restored.objects += 1;
                self.restore_object(name, batch.seen(name), batch.absent(), restored)
                    .await;
            }
        }
        Ok(())
    }

    async fn restore_object(
        self: &Arc<Self>,
        name: ObjectName,
        seen: &[usize],
        absent: &[usize],
        restored: &mut Restored,
    ) {
        let Some(coded) = &self.coded else { return };
        // What is on an absent back end is not known, and nothing can be written there.
        let is_missing = self
            .places(&name)
            .iter()
            .any(|place| !seen.contains(place) && !absent.contains(place) && !self.is_lost(*place));
        // Of too few fragments nothing can be made: they are of a put that was never answered for.
        // After a change of the map a fragment may be elsewhere.
        let is_elsewhere = self.was_changed() && seen.len() >= self.width;
        if !is_missing || is_elsewhere || seen.len() < coded.needed() {
            return;
        }
        let _hold = self.holds.hold(name).await;
        let outcome = self.repair_fragments(coded, name, &mut 0).await;
        match &outcome {
            Outcome::Repaired(_) => restored.repaired += 1,
            Outcome::Partly(_) | Outcome::Postponed => restored.left += 1,
            // Told once, below; looking again brings nothing back.
            Outcome::Lost(_) => {}
        }
        self.log_repair(name, outcome);
    }
}
