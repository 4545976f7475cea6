//! Deep scrub: all copies, or all fragments, of an object are read and checked, and what is not good is made again.
//!
//! Keeps: nothing.
//! Order: objects as they are walked; each is held while it is read, so that none is deleted and repaired at once.
//! Crash: whoever remembers the last object goes on after it; what was read twice is read twice.
//! Knows no schedule.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sconce_schemas::ObjectName;

use super::Pool;
use super::fragments::Coded;
use super::repair::{Outcome, is_gone_for_good, read_through};
use super::walk::Batch;
use crate::backend::BackendError;

/// A delete that is under way has removed all of an object within this time, if no back end hangs.
const DELETED_WITHIN: Duration = Duration::from_secs(5);

/// What came of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it is good, or it was deleted meanwhile.
    Good,
    /// Something was missing or damaged, and is there again.
    Repaired,
    /// A part of it cannot be reached or written now.
    Left,
    /// No good copy is left of a part of it.
    Lost,
}

impl Pool {
    /// Reads an object of a batch through, and repairs it. What was found, and how many bytes were read.
    pub async fn deep_scrub(self: &Arc<Self>, batch: &Batch, name: ObjectName) -> (Found, u64) {
        if batch.is_of_no_put(self, name) {
            return (Found::Good, 0);
        }
        self.scrub(name).await
    }

    /// Reads an object through, and repairs it. What was found, and how many bytes were read.
    pub async fn scrub(self: &Arc<Self>, name: ObjectName) -> (Found, u64) {
        let mut read = 0;
        let mut outcome = self.scrub_once(name, &mut read).await;
        if matches!(outcome, Outcome::Lost(_)) {
            // Another storage-router may be deleting it just now.
            tokio::time::sleep(DELETED_WITHIN).await;
            outcome = self.scrub_once(name, &mut read).await;
        }
        let found = match &outcome {
            Outcome::Repaired(back) if back.is_empty() => Found::Good,
            Outcome::Repaired(_) => Found::Repaired,
            Outcome::Partly(_) | Outcome::Postponed => Found::Left,
            Outcome::Lost(_) => Found::Lost,
        };
        self.log_repair(name, outcome);
        (found, read)
    }

    async fn scrub_once(self: &Arc<Self>, name: ObjectName, read: &mut u64) -> Outcome {
        let _hold = self.holds.hold(name).await;
        match &self.coded {
            Some(coded) => self.scrub_fragments(coded, name, read).await,
            None => self.scrub_copies(name, read).await,
        }
    }

    async fn scrub_fragments(&self, coded: &Coded, name: ObjectName, read: &mut u64) -> Outcome {
        let outcome = self.repair_fragments(coded, name, read).await;
        match outcome {
            // Nothing of it is there, on no back end: it was deleted since it was listed.
            Outcome::Postponed if self.is_gone(name).await => Outcome::Repaired(BTreeSet::new()),
            outcome => outcome,
        }
    }

    async fn is_gone(&self, name: ObjectName) -> bool {
        let haunts = self.haunts(&name);
        let asked = self.ask_each(&haunts, |backend| async move { backend.fragment_of(name).await });
        let answers = asked.await;
        answers
            .iter()
            .all(|(_, answer)| matches!(answer, Err(BackendError::NotFound)))
    }

    pub(super) async fn scrub_copies(&self, name: ObjectName, read: &mut u64) -> Outcome {
        let places = self.places(&name);
        let answers = self.ask_each(&places, |backend| async move {
            read_through(&backend, name, None, |_| ()).await
        });
        let (mut bad, mut absent, mut gone) = (BTreeSet::new(), 0, 0);
        for (place, answer) in answers.await {
            match answer {
                Ok(bytes) => *read += bytes,
                Err(error) if is_gone_for_good(&error) => {
                    gone += usize::from(error == BackendError::NotFound);
                    bad.insert(place);
                }
                Err(_) => absent += 1,
            }
        }
        if gone == places.len() && self.is_gone(name).await {
            return Outcome::Repaired(BTreeSet::new());
        }
        let outcome = match bad.is_empty() {
            true => Outcome::Repaired(BTreeSet::new()),
            false => self.repair(name, bad).await,
        };
        match outcome {
            Outcome::Repaired(back) if absent > 0 => Outcome::Partly(back),
            outcome => outcome,
        }
    }
}
