//! Repair of fragments: those that are missing, damaged or of no use are made again out of the others.
//!
//! Keeps: nothing.
//! Order: as of copies: one repair of an object at a time, and none while it is deleted.
//! Crash: a fragment is the bad one or the good one; the next read, or the next look at the pool, finds out.
//! Knows no kind of back end, and needs no key: what is rebuilt is what was encrypted, byte by byte.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sconce_fragments::{assemble, rebuild};
use sconce_schemas::ObjectName;
use sconce_schemas::crc::crc32c;
use sconce_schemas::fragment::FragmentHead;
use sconce_schemas::stored_object::SealedObject;

use super::gather::{Gathered, gather};
use super::read::answers;
use super::{Coded, Set, Survey};
use crate::backend::BackendError;
use crate::checked::damaged;
use crate::pool::repair::{Outcome, is_gone_for_good};
use crate::pool::{Answer, Pool};

/// Bodies are read in pieces, each of the fragments that are good there, so that damage in different places of more
/// fragments than the code can miss is still repaired. A multiple of 64.
const PIECE_BYTES: u64 = 256 << 10;

impl Pool {
    /// The sets of fragments that are there of an object.
    pub(super) async fn survey(&self, coded: &Coded, name: ObjectName) -> Survey {
        let seats = self.seats(name, 0).await;
        let seats = &seats;
        let asked = (0..self.width)
            .map(|fragment| async move { (fragment, self.head_of(coded, name, fragment, seats).await) });
        let mut sets: Vec<Set> = Vec::new();
        let mut failed = Vec::new();
        for (fragment, head) in futures_util::future::join_all(asked).await {
            let head = match head {
                Ok(head) => head,
                Err(error) => {
                    failed.push((fragment, error));
                    continue;
                }
            };
            let set = match sets.iter().position(|set| set.head == head) {
                Some(at) => &mut sets[at],
                None => {
                    sets.push(Set {
                        seats: vec![None; self.width],
                        head,
                    });
                    let last = sets.len() - 1;
                    &mut sets[last]
                }
            };
            if let Some(place) = set.seats.get_mut(fragment) {
                *place = seats.of.get(fragment).copied().flatten();
            }
        }
        sets.sort_by_key(|set| std::cmp::Reverse(set.members()));
        Survey {
            sets,
            seats: seats.of.clone(),
            failed,
        }
    }

    /// Makes again what is missing or damaged of an object's fragments. All of them are read; the bytes are added to `read`.
    pub(in crate::pool) async fn repair_fragments(
        &self,
        coded: &Coded,
        name: ObjectName,
        read: &mut u64,
    ) -> Outcome {
        let mut survey = self.survey(coded, name).await;
        // Whoever knows the head of a set needs no other: of fragments whose own head is damaged the bodies are tried.
        let mut bad = BTreeSet::new();
        if let Some(largest) = survey.sets.first_mut() {
            for (fragment, error) in &survey.failed {
                if matches!(error, BackendError::Damaged { .. }) {
                    bad.insert(*fragment);
                    if let Some(seat) = largest.seats.get_mut(*fragment) {
                        *seat = survey.seats.get(*fragment).copied().flatten();
                    }
                }
            }
        }
        let are_gone = survey.absent() == 0;
        let Some(mut set) = survey.chosen(self.quorum).cloned() else {
            // None at all: it was deleted meanwhile.
            let is_lost = are_gone && !survey.too_few(self.quorum).is_empty();
            return if is_lost {
                Outcome::Lost(survey.too_few(self.quorum))
            } else {
                Outcome::Postponed
            };
        };
        // What an absent back end has is not known, and nothing can be written there.
        let is_absent = |fragment: usize| {
            let failed = survey.failed.iter().find(|(failed, _)| *failed == fragment);
            failed.is_some_and(|(_, error)| !is_gone_for_good(error))
        };
        let is_no_member = |fragment: &usize| set.seats.get(*fragment).copied().flatten().is_none();
        bad.extend(
            (0..self.width)
                .filter(is_no_member)
                .filter(|fragment| !is_absent(*fragment)),
        );
        if bad.is_empty() && !are_gone {
            return Outcome::Partly(BTreeSet::new());
        }
        let longest = (0..self.width)
            .map(|fragment| set.head.body_bytes(fragment))
            .max();
        let longest = longest.unwrap_or(0);
        let mut bodies = vec![BytesMut::new(); self.width];
        let mut start = 0;
        while start < longest {
            let piece = start..(start + PIECE_BYTES).min(longest);
            match self
                .piece_of_all(coded, name, &mut set, piece.clone(), &mut bad)
                .await
            {
                Ok(ranges) => {
                    for (fragment, range) in ranges {
                        bodies[fragment].extend_from_slice(&range);
                    }
                }
                Err(answers) if are_gone && answers.iter().all(|a| is_gone_for_good(&a.error)) => {
                    return Outcome::Lost(answers);
                }
                Err(_) => return Outcome::Postponed,
            }
            *read += (piece.end - piece.start) * self.width as u64;
            start = piece.end;
        }
        // One that stopped answering while it was read was not checked.
        let is_unread = |fragment: usize| {
            let seat = set.seats.get(fragment).copied().flatten();
            seat.is_none() && !bad.contains(&fragment)
        };
        let is_unread = (0..self.width).any(is_unread);
        match self
            .write_again(name, &set.head, &survey.seats, bodies, &bad)
            .await
        {
            Outcome::Repaired(repaired) if !are_gone || is_unread => Outcome::Partly(repaired),
            outcome => outcome,
        }
    }

    /// The same range of all bodies, padded with zeros. Which fragments were found bad is noted. All are read, so that
    /// damage nobody read before is found too.
    async fn piece_of_all(
        &self,
        coded: &Coded,
        name: ObjectName,
        set: &mut Set,
        range: Range<u64>,
        bad: &mut BTreeSet<usize>,
    ) -> Result<Vec<(usize, Bytes)>, Vec<Answer>> {
        let cut = *set.head.cut();
        let needed = usize::from(cut.data);
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let is_member = |fragment: &usize| set.seats.get(*fragment).copied().flatten().is_some();
        let order = self.working_first(&set.seats, (0..self.width).filter(is_member));
        let known: &Set = set;
        let read = |fragment: usize| {
            let (seat, range) = (known.seats.get(fragment).copied().flatten(), range.clone());
            async move {
                let read = self.read_body(name, known, fragment, seat, range).await?;
                let mut padded = BytesMut::from(&*read);
                padded.resize(length, 0);
                Ok(padded.freeze())
            }
        };
        let Gathered { good, failed } = gather(&order, order.len(), coded.care.hedge_after, read).await;
        let gone = failed.iter().filter(|(_, error)| is_gone_for_good(error));
        bad.extend(gone.map(|(fragment, _)| *fragment));
        if good.len() >= needed {
            // One that hung once is not waited for with every piece.
            for (fragment, _) in failed.iter().filter(|(_, error)| !is_gone_for_good(error)) {
                if let Some(seat) = set.seats.get_mut(*fragment) {
                    *seat = None;
                }
            }
        }
        if good.len() < needed {
            return Err(answers(&set.seats, failed));
        }
        let missing: Vec<usize> = (0..self.width)
            .filter(|fragment| good.iter().all(|(there, _)| there != fragment))
            .collect();
        if missing.is_empty() {
            return Ok(good);
        }
        let parities = usize::from(cut.parity);
        let shard = length.next_multiple_of(sconce_schemas::fragment::SHARD_UNIT);
        let job = move || {
            let padded: Vec<(usize, Bytes)> = good
                .iter()
                .map(|(at, body)| (*at, widened(body, shard)))
                .collect();
            let rebuilt = rebuild(needed, parities, &padded, &missing)
                .map_err(|what| BackendError::Damaged { what })?;
            let mut all = good;
            all.extend(rebuilt.into_iter().map(|(at, body)| (at, body.slice(..length))));
            Ok(all)
        };
        let all = self.workers.run(length as u64 * self.width as u64, job).await;
        all.map_err(|error| vec![Answer { backend: 0, error }])
    }

    /// Puts the bad fragments in their places again.
    async fn write_again(
        &self,
        name: ObjectName,
        head: &FragmentHead,
        seats: &[Option<usize>],
        bodies: Vec<BytesMut>,
        bad: &BTreeSet<usize>,
    ) -> Outcome {
        let mut repaired = BTreeSet::new();
        for fragment in bad {
            let (Some(Some(place)), Some(body)) = (seats.get(*fragment), bodies.get(*fragment)) else {
                continue;
            };
            let length = usize::try_from(head.body_bytes(*fragment)).unwrap_or(usize::MAX);
            let body = body.get(..length).unwrap_or_default();
            if Some(crc32c(body)) != head.body_crc(*fragment) {
                let error = BackendError::Damaged {
                    what: format!(
                        "what fragment {fragment} was rebuilt to has not the CRC32C that the head says"
                    ),
                };
                return Outcome::Lost(vec![Answer {
                    backend: *place,
                    error,
                }]);
            }
            let sealed = SealedObject::seal_fragment(name, head.id_of(*fragment), assemble(head, body));
            let written = match (self.backend(*place), sealed) {
                (Ok(backend), Ok(sealed)) => backend.replace(&sealed).await,
                (Err(error), _) => Err(error),
                (_, Err(error)) => Err(damaged(&error)),
            };
            if written.is_ok() {
                repaired.insert(*place);
            }
        }
        if repaired.len() < bad.len() {
            return Outcome::Partly(repaired);
        }
        Outcome::Repaired(repaired)
    }
}

fn widened(body: &Bytes, length: usize) -> Bytes {
    if body.len() == length {
        return body.clone();
    }
    let mut widened = BytesMut::from(&**body);
    widened.resize(length, 0);
    widened.freeze()
}
