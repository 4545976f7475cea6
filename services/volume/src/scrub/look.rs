//! The look at a run of SCOs: which of their slots any root refers to.
//!
//! Keeps: the objects of the run, and which of their slots were looked up.
//! Order: object by object: its TLog, or index, is read, each slot is looked up. What was looked up waits for a manifest that
//! is frozen later and stored: only what that manifest's maps do not refer to either is dead after every crash.
//! Crash: a look is forgotten.
//! Knows no storage.

use std::ops::ControlFlow;

use bytes::Bytes;
use sconce_schemas::bundle::{BundleIndex, KeptCluster};
use sconce_schemas::ids::Location;
use sconce_schemas::sco::{Batch, EntryKind, ScoHeader};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{ScoId, ScoSize, Slot};

use super::run::Run;
use super::{BundleSource, Job, KeptSco, ScoObject};
use crate::event::Effect;
use crate::operations::Parked;
use crate::tree::{Missing, Tree};
use crate::volume::Volume;

/// A look at a run.
#[derive(Debug)]
pub(super) struct Look {
    /// Objects to be looked at, the next one last.
    left: Vec<(ScoObject, Vec<ScoId>)>,
    done: Vec<BundleSource>,
    /// Slots that the table says the run has.
    pub(super) slots: u64,
    at: At,
}

/// Where a look is.
#[derive(Debug)]
enum At {
    /// The host reads this object's TLog, or its index.
    Reading(ScoObject, Vec<ScoId>),
    /// Its slots are looked up.
    Slots(Slots),
}

/// The slots of an object.
#[derive(Debug)]
struct Slots {
    object: ScoObject,
    scos: Vec<KeptSco>,
    /// The next slot: of which SCO, and how many of its slots are before it.
    next: (usize, usize),
    /// Slots of the SCO at hand that are kept.
    kept: Vec<KeptCluster>,
    waits: bool,
}

impl Look {
    /// Whether it could go on at once.
    pub(super) fn wants_turn(&self) -> bool {
        matches!(&self.at, At::Slots(slots) if !slots.waits)
    }
}

impl Volume {
    /// Begins with a run as the table has it now. `false`: there is nothing to do.
    pub(super) fn begin_look(&mut self, run: Run, effects: &mut Vec<Effect>) -> Result<bool, Missing> {
        let mut left: Vec<(ScoObject, Vec<ScoId>)> = Vec::new();
        let (mut slots, mut live) = (0, 0);
        self.scos.visit(run.first.0..run.last.next().0, |sco, state| {
            let object = self.object_of(ScoId(sco), state);
            match left.last_mut() {
                Some((known, scos)) if *known == object => scos.push(ScoId(sco)),
                _ => left.push((object, vec![ScoId(sco)])),
            }
            slots += u64::from(state.slots);
            live += u64::from(state.live);
            ControlFlow::Continue(())
        })?;
        if left.is_empty() || run.last > self.scrub_upto() || (left.len() == 1 && live > 0 && live >= slots) {
            return Ok(false);
        }
        left.reverse();
        self.look_at_next(left, Vec::new(), slots, effects);
        Ok(true)
    }

    fn look_at_next(
        &mut self,
        mut left: Vec<(ScoObject, Vec<ScoId>)>,
        done: Vec<BundleSource>,
        slots: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some((object, scos)) = left.pop() else {
            return self.looked(done, slots, effects);
        };
        self.scrub.job = Some(Job::Looking(Look {
            left,
            done,
            slots,
            at: At::Reading(object, scos),
        }));
        effects.push(Effect::ReadTlog { object });
    }

    /// The host read a SCO's header and TLog area, or a bundle's index.
    pub(crate) fn tlog_read(
        &mut self,
        object: ScoObject,
        result: Result<Bytes, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Job::Looking(mut look)) = self
            .scrub
            .job
            .take_if(|job| matches!(job, Job::Looking(Look { at: At::Reading(at, _), .. }) if *at == object))
        else {
            return;
        };
        let At::Reading(_, scos) = &look.at else { return };
        // What cannot be read is left as it is; a later pass comes back to it.
        let Some(scos) = result.ok().and_then(|bytes| self.slots_of(object, scos, &bytes)) else {
            return self.scrub_failing();
        };
        look.at = At::Slots(Slots {
            object,
            scos,
            next: (0, 0),
            kept: Vec::new(),
            waits: false,
        });
        self.look(look, effects);
    }

    /// What each slot of these SCOs was written for; `None` where the object does not say it whole.
    fn slots_of(&mut self, object: ScoObject, scos: &[ScoId], bytes: &[u8]) -> Option<Vec<KeptSco>> {
        if !object.is_bundle() {
            return self.slots_of_sco(object, bytes).map(|sco| vec![sco]);
        }
        let index = BundleIndex::from_bytes(bytes).ok()?;
        // Whoever else is in it would lose it.
        for member in index.members.iter().filter(|member| !scos.contains(&member.sco)) {
            match self.scos.get(member.sco.0) {
                Ok(Some(state)) if self.object_of(member.sco, state) == object => return None,
                Ok(_) => {}
                Err(missing) => {
                    self.wanted.push(missing);
                    return None;
                }
            }
        }
        let members = index
            .members
            .into_iter()
            .filter(|member| scos.contains(&member.sco) && self.epoch_at(member.sco) == Some(member.epoch));
        let found: Vec<KeptSco> = members
            .map(|member| KeptSco {
                sco: member.sco,
                epoch: member.epoch,
                size: member.size,
                kept: member.kept,
            })
            .collect();
        (index.volume == self.id && found.len() == scos.len()).then_some(found)
    }

    fn slots_of_sco(&self, object: ScoObject, bytes: &[u8]) -> Option<KeptSco> {
        let header = ScoHeader::from_bytes(bytes).ok()?;
        if header.volume != self.id || header.id != object.sco || header.epoch != object.epoch {
            return None;
        }
        let to_index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let mut tlog = bytes.get(to_index(ScoSize::HEADER_AREA)..to_index(header.size.data_offset()))?;
        let mut kept = Vec::new();
        while tlog.iter().take(4).any(|byte| *byte != 0) {
            let batch = Batch::from_bytes(tlog, header.salt()).ok()?;
            let writes = batch.entries.iter().filter_map(|entry| match entry.kind {
                EntryKind::Write { address, crc } => Some((address, crc)),
                _ => None,
            });
            let numbered = (batch.first_slot.0..).map(Slot).zip(writes);
            kept.extend(numbered.map(|(slot, (address, crc))| KeptCluster { slot, address, crc }));
            tlog = tlog.get(batch.len..)?;
        }
        Some(KeptSco {
            sco: header.id,
            epoch: header.epoch,
            size: header.size,
            kept,
        })
    }

    /// Looks the next slots up in all roots.
    pub(super) fn look(&mut self, mut look: Look, effects: &mut Vec<Effect>) {
        let At::Slots(slots) = &mut look.at else {
            self.scrub.job = Some(Job::Looking(look));
            return;
        };
        match self.look_step(slots) {
            Err(missing) => {
                slots.waits = true;
                self.scrub.job = Some(Job::Looking(look));
                self.wait(missing, Some(Parked::Scrub), effects);
            }
            Ok(false) => self.scrub.job = Some(Job::Looking(look)),
            Ok(true) => {
                let Look {
                    left,
                    mut done,
                    slots: of_run,
                    at,
                } = look;
                if let At::Slots(Slots { object, scos, .. }) = at {
                    done.push(BundleSource { object, scos });
                }
                self.look_at_next(left, done, of_run, effects);
            }
        }
    }

    /// Whether the object's slots are all looked up.
    fn look_step(&self, slots: &mut Slots) -> Result<bool, Missing> {
        slots.waits = false;
        let roots: Vec<&Tree<Location>> = self.kept_maps().collect();
        let step = (self.scrub.policy.lookups_step / roots.len()).max(1);
        for _ in 0..step {
            let Some(sco) = slots.scos.get_mut(slots.next.0) else {
                return Ok(true);
            };
            let Some(written) = sco.kept.get(slots.next.1).copied() else {
                sco.kept = std::mem::take(&mut slots.kept);
                slots.next = (slots.next.0 + 1, 0);
                continue;
            };
            if self.is_live(&roots, sco.sco, written)? {
                slots.kept.push(written);
            }
            slots.next.1 += 1;
        }
        Ok(false)
    }

    fn is_live(&self, roots: &[&Tree<Location>], sco: ScoId, written: KeptCluster) -> Result<bool, Missing> {
        for root in roots {
            if let Some(location) = root.get(written.address.0)?
                && location.sco() == sco
                && location.slot() == written.slot
                && self.is_own(location)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
