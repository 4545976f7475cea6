//! Repair: a copy that is missing or damaged is written again from the good ones.
//!
//! Keeps: a bound on the repairs under way; what does not fit waits for the next read of the object.
//! Order: one repair of an object at a time, and none while it is deleted.
//! Crash: a copy is the bad one or the good one; the next read finds out.
//! Knows no kind of back end.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::BytesMut;
use sconce_schemas::ObjectName;
use sconce_schemas::stored_object::{FragmentId, SealedObject};
use sconce_tracing::{Span, Trace, telemetry};

use super::{Answer, Pool};
use crate::backend::BackendError;
use crate::checked::Checked;

/// An object is read in pieces, each from whichever copy is good there, so that two copies with damage in
/// different places still make a good one.
const PIECE_BYTES: u64 = 256 << 10;

/// What came of a repair.
pub(super) enum Outcome {
    /// These back ends have good copies again.
    Repaired(BTreeSet<usize>),
    /// These, but others not yet.
    Partly(BTreeSet<usize>),
    /// The object was deleted meanwhile, or a good copy cannot be reached now: the next read comes back to it.
    Postponed,
    /// No good copy is left of some part.
    Lost(Vec<Answer>),
}

impl Pool {
    /// Repairs the copies that a read found missing or damaged, after the read has been answered. When as many
    /// repairs as allowed are under way, the next read of the object comes back to it.
    pub(super) fn repair_later(self: &Arc<Self>, name: ObjectName, failed: &[Answer]) {
        let places = self.places(&name);
        // While objects move, what is not in its place yet is the mover's.
        let is_moving = self.is_moving();
        let needs_repair = |answer: &Answer| match answer.error {
            BackendError::Damaged { .. } => true,
            BackendError::NotFound => {
                places.contains(&answer.backend) && !is_moving && !self.is_lost(answer.backend)
            }
            _ => false,
        };
        for answer in failed.iter().filter(|answer| needs_repair(answer)) {
            self.log_bad_copy(name, answer);
        }
        if !failed.iter().any(needs_repair) {
            return;
        }
        if let Some(coded) = &self.coded {
            // Where one is missing others may be, and the slots below may be taken.
            coded.note_short();
        }
        let Ok(slot) = Arc::clone(&self.repair_slots).try_acquire_owned() else {
            return;
        };
        let Some(hold) = self.holds.try_hold(name) else {
            return;
        };
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let mut span = Span::control("storage.repair");
            span.text("sconce.object", name);
            let repair = async {
                match &pool.coded {
                    Some(coded) => pool.repair_fragments(coded, name, &mut 0).await,
                    None => pool.repair(name, BTreeSet::new()).await,
                }
            };
            let outcome = telemetry::scope(span.trace_or(Trace::default()), repair).await;
            if let Outcome::Lost(_) = outcome {
                span.fail("no good copy is left of a part of the object");
            }
            drop(span);
            pool.log_repair(name, outcome);
            drop((hold, slot));
        });
    }

    /// Writes the copies again that are found missing or damaged, and those that are known to be bad.
    pub(super) async fn repair(&self, name: ObjectName, mut bad: BTreeSet<usize>) -> Outcome {
        let places = self.places(&name);
        let haunts = self.haunts(&name);
        let length = match self.length_by_any(name, &haunts, &mut bad).await {
            Ok(length) => length,
            // Where none is damaged it was deleted meanwhile.
            Err(answers)
                if answers.iter().all(|a| is_gone_for_good(&a.error))
                    && answers.iter().any(|a| a.error != BackendError::NotFound) =>
            {
                return Outcome::Lost(answers);
            }
            Err(_) => return Outcome::Postponed,
        };
        let mut whole = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
        while (whole.len() as u64) < length {
            let offset = whole.len() as u64;
            let due = PIECE_BYTES.min(length - offset);
            match self.piece_of_any(name, &haunts, offset, due, &mut bad).await {
                Ok(piece) => whole.extend_from_slice(&piece),
                Err(answers) if answers.iter().all(|a| is_gone_for_good(&a.error)) => {
                    return Outcome::Lost(answers);
                }
                Err(_) => return Outcome::Postponed,
            }
        }
        let Ok(object) = SealedObject::seal(name, whole.freeze()) else {
            return Outcome::Postponed;
        };
        bad.retain(|index| places.contains(index));
        let targets: Vec<usize> = bad.iter().copied().collect();
        let failed = self.replace_on(&targets, &object).await;
        failed.iter().for_each(|answer| {
            bad.remove(&answer.backend);
        });
        match failed.is_empty() {
            true => Outcome::Repaired(bad),
            false => Outcome::Partly(bad),
        }
    }

    async fn length_by_any(
        &self,
        name: ObjectName,
        haunts: &[usize],
        bad: &mut BTreeSet<usize>,
    ) -> Result<u64, Vec<Answer>> {
        let mut failed = Vec::new();
        for index in haunts {
            let stat = match self.backend(*index) {
                Ok(backend) => backend.stat(name).await,
                Err(error) => Err(error),
            };
            match stat {
                Ok(length) => return Ok(length),
                Err(error) => {
                    note_bad(bad, *index, &error);
                    failed.push(Answer {
                        backend: *index,
                        error,
                    });
                }
            }
        }
        Err(failed)
    }

    async fn piece_of_any(
        &self,
        name: ObjectName,
        haunts: &[usize],
        offset: u64,
        due: u64,
        bad: &mut BTreeSet<usize>,
    ) -> Result<bytes::Bytes, Vec<Answer>> {
        let mut failed = Vec::new();
        for index in haunts {
            let read = match self.backend(*index) {
                Ok(backend) => backend.get(name, offset, due).await,
                Err(error) => Err(error),
            };
            let error = match read {
                Ok(piece) if piece.len() as u64 == due => return Ok(piece),
                Ok(piece) => BackendError::Damaged {
                    what: format!("{} of {due} bytes at {offset}", piece.len()),
                },
                Err(error) => error,
            };
            note_bad(bad, *index, &error);
            failed.push(Answer {
                backend: *index,
                error,
            });
        }
        Err(failed)
    }

    pub(super) fn log_repair(&self, name: ObjectName, outcome: Outcome) {
        let (pool, volume) = (&self.record.name, name.volume());
        match outcome {
            Outcome::Repaired(backends) | Outcome::Partly(backends) => {
                self.log_replaced(name, &Vec::from_iter(backends))
            }
            Outcome::Postponed => tracing::info!(%pool, %volume, object = %name, "repair postponed"),
            Outcome::Lost(answers) => tracing::error!(
                %pool, %volume, object = %name, copies = self.told(&answers),
                "repair failed: no good copy is left of a part of the object"
            ),
        }
    }
}

fn note_bad(bad: &mut BTreeSet<usize>, index: usize, error: &BackendError) {
    if is_gone_for_good(error) {
        bad.insert(index);
    }
}

/// Whether waiting will not bring this copy back.
pub(super) fn is_gone_for_good(error: &BackendError) -> bool {
    matches!(error, BackendError::Damaged { .. } | BackendError::NotFound)
}

/// Reads a copy, or this fragment, from its start to its end, a piece at a time; its length.
pub(super) async fn read_through(
    backend: &Checked,
    name: ObjectName,
    fragment: Option<FragmentId>,
    mut take: impl FnMut(&[u8]),
) -> Result<u64, BackendError> {
    let length = backend.stat_of(name, fragment).await?;
    let mut at = 0;
    while at < length {
        let due = PIECE_BYTES.min(length - at);
        let piece = backend.get_of(name, fragment, at, due).await?;
        if piece.len() as u64 != due {
            return Err(BackendError::Damaged {
                what: format!("{} of {due} bytes at {at}", piece.len()),
            });
        }
        take(&piece);
        at += due;
    }
    Ok(length)
}
