//! Moving: what is not where the placement map wants it is copied there, and then removed where it was (docs/decisions/0203).
//!
//! Keeps: nothing.
//! Order: a copy is durable in its place before another one is removed; each object is held meanwhile, so that none is deleted and
//! moved at once. A fragment keeps its number: only those move whose back end is none of the object's any more.
//! Crash: an object may be in its place and besides where it was; the next walk removes that.
//! Knows no schedule, and no key: what moves is what is stored, byte by byte.

use std::collections::BTreeSet;
use std::sync::Arc;

use sconce_schemas::ObjectName;

use super::fragments::{Coded, seated};
use super::repair::Outcome;
use super::walk::Batch;
use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::Checked;

/// What came of moving an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    name: ObjectName,
    /// Bytes that were written.
    pub bytes: u64,
    /// Bytes that were read to make again what could not be copied.
    pub read: u64,
    /// Whether something of it could not be reached or written, or is where it does not belong and nowhere else.
    pub is_left: bool,
    /// Back ends that have something of it without need.
    extras: Vec<usize>,
}

impl Moved {
    fn of(name: ObjectName) -> Self {
        Self {
            name,
            bytes: 0,
            read: 0,
            is_left: false,
            extras: Vec::new(),
        }
    }

    /// Whether something of it is to be removed where it was.
    #[must_use]
    pub fn has_extras(&self) -> bool {
        !self.extras.is_empty()
    }
}

impl Pool {
    /// Copies an object of a batch of this pool to where it belongs, or makes there what is missing of it. `None`: it is where it
    /// belongs, or of a put that was never answered for.
    pub async fn move_object(&self, batch: &Batch, name: ObjectName) -> Option<Moved> {
        let (places, seen) = (self.places(&name), batch.seen(name));
        let is_in_place = places.iter().all(|place| seen.contains(place)) && seen.len() == places.len();
        if is_in_place || batch.is_of_no_put(self, name) {
            return None;
        }
        let mut moved = Moved::of(name);
        if places.iter().any(|place| batch.absent().contains(place)) {
            moved.is_left = true;
            return Some(moved);
        }
        let _hold = self.holds.hold(name).await;
        let done = match &self.coded {
            None => self.move_copies(&places, seen, &mut moved).await,
            Some(coded) => self.move_fragments(coded, &places, &mut moved).await,
        };
        if let Err(answers) = done {
            tracing::info!(
                pool = %self.record.name, volume = %name.volume(), object = %name, why = self.told(&answers),
                "not moved yet"
            );
            moved.is_left = true;
        }
        if moved.is_left {
            moved.extras.clear();
        }
        Some(moved)
    }

    /// Removes what a moved object has where it was, if all of it is in its places. Whoever looked there just before the move has read it by
    /// then.
    pub async fn remove_extras(&self, moved: &mut Moved) {
        if moved.extras.is_empty() {
            return;
        }
        let name = moved.name;
        let _hold = self.holds.hold(name).await;
        let places = self.places(&name);
        let asked = self.ask_each(&places, |backend| async move { backend.fragment_of(name).await });
        let there: Vec<_> = asked
            .await
            .into_iter()
            .filter_map(|(_, there)| there.ok())
            .collect();
        let numbers: BTreeSet<u8> = there.iter().flatten().map(|fragment| fragment.index).collect();
        let are_all = match self.coded {
            Some(_) => numbers.len() == self.width,
            None => there.len() == places.len(),
        };
        if !are_all {
            moved.is_left = true;
            return;
        }
        let remove = |backend: Arc<Checked>| async move { backend.delete(name).await };
        let failed = self.on_each(&moved.extras, remove).await;
        moved.is_left |= failed.iter().any(|answer| answer.error != BackendError::NotFound);
    }

    async fn move_copies(
        &self,
        places: &[usize],
        seen: &[usize],
        moved: &mut Moved,
    ) -> Result<(), Vec<Answer>> {
        let name = moved.name;
        let missing: BTreeSet<usize> = places
            .iter()
            .filter(|place| !seen.contains(place))
            .copied()
            .collect();
        let extras = seen.iter().filter(|seen| !places.contains(seen));
        moved.extras = extras.copied().collect();
        let mut answers = Vec::new();
        if !missing.is_empty() {
            let own = seen.iter().filter(|seen| places.contains(seen));
            for source in own.chain(moved.extras.clone().iter()) {
                match self.carry(name, *source, &missing, moved).await {
                    Ok(()) => return Ok(()),
                    Err(error) => answers.push(Answer {
                        backend: *source,
                        error,
                    }),
                }
            }
        }
        // Nobody has a good copy whole, or it was copied before and not removed: that is looked at through all checks.
        let outcome = self.scrub_copies(name, &mut moved.read).await;
        let is_elsewhere = !moved.extras.is_empty();
        self.settle(outcome, answers, is_elsewhere, moved)
    }

    async fn move_fragments(
        &self,
        coded: &Coded,
        places: &[usize],
        moved: &mut Moved,
    ) -> Result<(), Vec<Answer>> {
        let name = moved.name;
        let found = self.found(name, 0).await;
        let mut seats = seated(self.width, places, &found);
        let (mut answers, mut carried) = (Vec::new(), Vec::new());
        for fragment in 0..self.width {
            let Some(seat) = seats[fragment].filter(|seat| !places.contains(seat)) else {
                continue;
            };
            let free = |place: &&usize| !seats.contains(&Some(**place));
            let own = places.get(fragment).filter(|place| free(place));
            let Some(place) = own.or_else(|| places.iter().find(free)).copied() else {
                continue;
            };
            match self.carry(name, seat, &BTreeSet::from([place]), moved).await {
                Ok(()) => {
                    seats[fragment] = Some(place);
                    carried.push(seat);
                }
                Err(error) => answers.push(Answer { backend: seat, error }),
            }
        }
        let has = |fragment: &Result<Option<usize>, BackendError>| match fragment {
            Ok(fragment) => *fragment,
            Err(_) => None,
        };
        let extras = found
            .iter()
            .filter(|(backend, fragment)| has(fragment).is_some() && !seats.contains(&Some(*backend)));
        moved.extras = extras.map(|(backend, _)| *backend).collect();
        let is_whole =
            (0..self.width).all(|fragment| found.iter().any(|(_, found)| has(found) == Some(fragment)));
        // What was copied before and not removed may be the better one: then the others are read too.
        let is_known = moved.extras.iter().all(|extra| carried.contains(extra));
        if is_whole && is_known && answers.is_empty() {
            return Ok(());
        }
        coded.forget(&name);
        // What could not be copied is made again where it was, and moves the next time.
        moved.is_left = !answers.is_empty();
        let outcome = self.repair_fragments(coded, name, &mut moved.read).await;
        let is_elsewhere = found
            .iter()
            .any(|(backend, fragment)| has(fragment).is_some() && !places.contains(backend));
        self.settle(outcome, answers, is_elsewhere, moved)
    }

    /// What a repair made of an object that could not be copied as it was.
    fn settle(
        &self,
        outcome: Outcome,
        answers: Vec<Answer>,
        is_elsewhere: bool,
        moved: &mut Moved,
    ) -> Result<(), Vec<Answer>> {
        match outcome {
            Outcome::Repaired(made) => {
                // Each is about as long as one of those that were read.
                moved.bytes += moved.read / self.width as u64 * made.len() as u64;
                Ok(())
            }
            Outcome::Partly(_) | Outcome::Postponed => Err(answers),
            Outcome::Lost(_) => {
                // Waiting brings nothing back; but what is left of it elsewhere is not to leave the pool before the operator says so.
                moved.is_left = is_elsewhere;
                moved.extras.clear();
                self.log_repair(moved.name, outcome);
                Ok(())
            }
        }
    }

    /// Copies what a back end has of an object to others. Where another storage-router deletes it in this moment the sweep finds the copy:
    /// that it is gone where it was may also be the work of another mover, or of a disk that fails.
    async fn carry(
        &self,
        name: ObjectName,
        from: usize,
        to: &BTreeSet<usize>,
        moved: &mut Moved,
    ) -> Result<(), BackendError> {
        let object = self.whole_on(from, name).await?;
        let to: Vec<usize> = to.iter().copied().collect();
        let failed = self.replace_on(&to, &object).await;
        moved.bytes += object.stored_len() * (to.len() - failed.len()) as u64;
        match failed.into_iter().next() {
            Some(answer) => Err(answer.error),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
