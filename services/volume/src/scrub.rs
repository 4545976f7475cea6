//! Scrubbing: giving back the space of clusters that nothing refers to any more.
//!
//! Keeps: which SCOs are worth it, the one at hand, and objects that wait to be deleted.
//! Order: an object is deleted only after the manifest that no longer refers to it, and a while later. Each slot is looked
//! up in all roots in one event: one that none of them has then is dead for ever, whatever comes.
//! Crash: what was rewritten and is in no manifest is an object too many; it never takes the place of the one that counts.
//! Knows no storage: the host reads, rewrites and deletes.
//!
//! What is dead stays dead: new roots come from roots, so a slot that none refers to is never referred to again, and what was
//! found dead before a write or a snapshot is dead after it. Locations do not change: the rewritten object is read by the same ranges.

use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use bytes::Bytes;
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::CondemnedState;
use sconce_schemas::sco::{Batch, EntryKind, ScoHeader};
use sconce_schemas::wire::Refusal;
use sconce_schemas::{ClusterAddress, Epoch, ScoId, ScoSize, Slot};

use crate::event::Effect;
use crate::operations::Parked;
use crate::scos::ScoState;
use crate::tree::{Missing, Tree};
use crate::volume::Volume;

/// SCO states that one event looks at in the search.
const SEARCH_STEP: u64 = 4096;
/// SCOs that one pass over the table picks.
const PICKED_MAX: usize = 64;
/// After so many swaps a manifest is due, so that their old objects can go.
const SWAPS_A_MANIFEST: usize = 32;

/// When scrubbing is worth it, and how careful it is.
#[derive(Debug, Clone, Copy)]
pub struct ScrubPolicy {
    /// A SCO with at most this share of its slots live, in percent, is rewritten.
    pub live_percent_max: u8,
    /// Microseconds that an object stays after the first manifest that does not refer to it: reads that were told of it
    /// are over then.
    pub grace_us: u64,
    /// Lookups in maps that one event makes: some hundred microseconds.
    pub lookups_step: usize,
}

impl Default for ScrubPolicy {
    /// Three quarters: a volume takes at most a third more than what is live. A minute.
    fn default() -> Self {
        Self {
            live_percent_max: 75,
            grace_us: 60_000_000,
            lookups_step: 8192,
        }
    }
}

/// Slots of a SCO that are kept, with the CRC32C of what they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept(Vec<Option<u32>>);

impl Kept {
    /// Whether a slot is.
    #[must_use]
    pub fn has(&self, slot: Slot) -> bool {
        self.crc(slot).is_some()
    }

    /// CRC32C of a slot's cluster, if it is kept.
    #[must_use]
    pub fn crc(&self, slot: Slot) -> Option<u32> {
        self.0.get(usize::from(slot.0)).copied().flatten()
    }

    /// How many are.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.iter().flatten().count()).unwrap_or(u16::MAX)
    }
}

/// A SCO's object, by what its name has beside the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoObject {
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its version.
    pub version: u16,
}

/// What scrubbing did since the volume was opened, and what is left, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// SCOs that were rewritten.
    pub rewritten: u64,
    /// SCOs that went whole.
    pub removed: u64,
    /// Bytes that the back ends no longer have to hold.
    pub won_bytes: u64,
    /// Bytes of dead clusters that the last pass over the SCO table found, by its counts.
    pub dead_bytes: u64,
    /// When something was last given back, in microseconds since 1970; 0: never.
    pub last_success_us: u64,
    /// Objects that wait to be deleted.
    pub condemned: usize,
}

/// State of a volume's scrubbing.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// Something died since the last pass began.
    pub(crate) is_stale: bool,
    policy: ScrubPolicy,
    pass: Option<Pass>,
    picked: Vec<ScoId>,
    job: Option<Job>,
    condemned: Vec<Condemned>,
    swaps: usize,
    status: ScrubStatus,
}

/// A pass over the SCO table.
#[derive(Debug, Default)]
struct Pass {
    cursor: u64,
    best: BinaryHeap<std::cmp::Reverse<(u64, ScoId)>>,
    dead: u64,
    waits: bool,
}

#[derive(Debug)]
enum Job {
    /// The host reads its TLog.
    Reading(ScoObject),
    Looking(Look),
    /// The host rewrites it.
    Rewriting {
        from: ScoObject,
        kept: u16,
    },
}

/// What a slot was written for.
#[derive(Debug, Clone, Copy)]
struct Written {
    slot: Slot,
    address: ClusterAddress,
    crc: u32,
}

/// A look for a SCO's slots in all roots.
#[derive(Debug)]
struct Look {
    object: ScoObject,
    slots: Vec<Written>,
    at: usize,
    kept: Vec<bool>,
    waits: bool,
}

/// An object that nothing refers to any more.
#[derive(Debug, Clone, Copy)]
struct Condemned {
    object: ScoObject,
    /// Since when no stored manifest refers to it.
    free_since_us: Option<u64>,
    deleting: bool,
}

impl Scrub {
    /// As a manifest has it.
    pub(crate) fn restore(policy: ScrubPolicy, states: &[CondemnedState]) -> Self {
        let condemned = states.iter().map(|state| Condemned {
            object: ScoObject {
                sco: state.sco,
                epoch: state.epoch,
                version: state.version,
            },
            // Counted from the first tick on.
            free_since_us: Some(0),
            deleting: false,
        });
        Self {
            is_stale: true,
            policy,
            condemned: condemned.collect(),
            ..Self::default()
        }
    }

    /// For a manifest.
    pub(crate) fn save(&self) -> Vec<CondemnedState> {
        let state = |condemned: &Condemned| CondemnedState {
            sco: condemned.object.sco,
            epoch: condemned.object.epoch,
            version: condemned.object.version,
        };
        self.condemned.iter().map(state).collect()
    }

    /// A manifest is stored that condemns these.
    pub(crate) fn manifest_stored(&mut self, saved: &[CondemnedState], now_us: u64) {
        for condemned in self.condemned.iter_mut().filter(|c| c.free_since_us.is_none()) {
            let object = condemned.object;
            let is_it = |state: &CondemnedState| state.sco == object.sco && state.version == object.version;
            if saved.iter().any(is_it) {
                condemned.free_since_us = Some(now_us);
            }
        }
    }

    /// Whether ticks are needed.
    pub(crate) fn has_work(&self) -> bool {
        self.is_stale || self.job.is_some() || !self.picked.is_empty() || !self.condemned.is_empty()
    }

    /// Whether it could go on at once.
    pub(crate) fn wants_turn(&self) -> bool {
        match (&self.job, &self.pass) {
            (Some(Job::Looking(look)), _) => !look.waits,
            (Some(_), _) => false,
            (None, Some(pass)) => !pass.waits,
            (None, None) => false,
        }
    }

    fn condemn(&mut self, object: ScoObject) {
        self.condemned.push(Condemned {
            object,
            free_since_us: None,
            deleting: false,
        });
        self.swaps += 1;
    }
}

impl Volume {
    /// What scrubbing did and has to do.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        ScrubStatus {
            condemned: self.scrub.condemned.len(),
            ..self.scrub.status
        }
    }

    /// A tick: deletes what is due; begins the next SCO, or a pass for it, unless there is something better to do.
    pub(crate) fn scrub_tick(&mut self, pressed: bool, effects: &mut Vec<Effect>) {
        self.delete_condemned(effects);
        let is_busy = pressed || self.has_to_reap() || !self.unburied.is_empty() || !self.held.is_empty();
        if is_busy || self.scrub.job.is_some() || self.scrub.pass.is_some() {
            return;
        }
        if self.scrub.picked.is_empty() && self.scrub.is_stale {
            self.scrub.is_stale = false;
            self.scrub.pass = Some(Pass::default());
            return;
        }
        self.scrub_next(effects);
    }

    /// Goes on with what can go on.
    pub(crate) fn scrub_turn(&mut self, effects: &mut Vec<Effect>) {
        match self.scrub.job.take() {
            Some(Job::Looking(look)) => self.look(look, effects),
            Some(other) => self.scrub.job = Some(other),
            None => {
                if let Some(pass) = self.scrub.pass.take() {
                    self.search(pass, effects);
                }
            }
        }
    }

    fn delete_condemned(&mut self, effects: &mut Vec<Effect>) {
        let (now_us, grace_us) = (self.now_us, self.scrub.policy.grace_us);
        for condemned in &mut self.scrub.condemned {
            match &mut condemned.free_since_us {
                Some(since) if *since == 0 => *since = now_us,
                Some(since) if now_us.saturating_sub(*since) >= grace_us && !condemned.deleting => {
                    condemned.deleting = true;
                    effects.push(Effect::DeleteSco {
                        object: condemned.object,
                    });
                }
                _ => {}
            }
        }
    }

    /// The host deleted an object, or could not and will be asked again.
    pub(crate) fn sco_deleted(&mut self, object: ScoObject, done: bool) {
        let condemned = &mut self.scrub.condemned;
        if done {
            condemned.retain(|condemned| condemned.object != object);
        } else {
            condemned
                .iter_mut()
                .filter(|condemned| condemned.object == object)
                .for_each(|condemned| condemned.deleting = false);
        }
    }

    fn search(&mut self, mut pass: Pass, effects: &mut Vec<Effect>) {
        pass.waits = false;
        let newest = self.log.next_sco().0;
        let (mut at, mut seen) = (pass.cursor, 0);
        let (covered, policy) = (self.scrub_upto(), self.scrub.policy);
        let visited = self.scos.visit(pass.cursor..covered.next().0, |sco, state| {
            let dead = u64::from(state.slots.saturating_sub(state.live));
            pass.dead += dead;
            if policy.is_worth(state) {
                // Cost and benefit, as in log-structured file systems: space won, times age, by what has to be moved.
                let age = newest.saturating_sub(sco).max(1);
                let score =
                    dead.saturating_mul(age) / (u64::from(state.slots) + u64::from(state.live)).max(1);
                pass.best.push(std::cmp::Reverse((score, ScoId(sco))));
                if pass.best.len() > PICKED_MAX {
                    pass.best.pop();
                }
            }
            at = sco + 1;
            seen += 1;
            if seen >= SEARCH_STEP {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        pass.cursor = at;
        match visited {
            Err(missing) => {
                pass.waits = true;
                self.scrub.pass = Some(pass);
                self.wait(missing, Some(Parked::Scrub), effects);
            }
            Ok(()) if seen >= SEARCH_STEP => self.scrub.pass = Some(pass),
            Ok(()) => {
                self.scrub.status.dead_bytes = pass.dead * sconce_schemas::CLUSTER_BYTES;
                // What a full pick left out is found by the next pass.
                self.scrub.is_stale |= pass.best.len() == PICKED_MAX;
                // Reversed scores ascend, so the best come first; they are taken from the end.
                let best = pass.best.into_sorted_vec().into_iter().rev();
                self.scrub.picked = best.map(|std::cmp::Reverse((_, sco))| sco).collect();
                self.scrub_next(effects);
            }
        }
    }

    /// Begins with the next SCO that was picked; after the last one, what was swapped goes into a manifest.
    fn scrub_next(&mut self, effects: &mut Vec<Effect>) {
        while let Some(sco) = self.scrub.picked.pop() {
            match self.scos.get(sco.0) {
                Ok(Some(state)) if self.scrub.policy.is_worth(state) => {
                    let object = ScoObject {
                        sco,
                        epoch: self.epoch_at(sco).unwrap_or(Epoch::NONE),
                        version: state.version,
                    };
                    self.scrub.job = Some(Job::Reading(object));
                    effects.push(Effect::ReadTlog { object });
                    return;
                }
                Ok(_) => {}
                Err(missing) => {
                    self.scrub.picked.push(sco);
                    self.wanted.push(missing);
                    return;
                }
            }
        }
        if self.scrub.swaps > 0 {
            self.scrub.swaps = 0;
            self.checkpoints.manifest_due = true;
        }
    }

    /// The host read a SCO's header and TLog area.
    pub(crate) fn tlog_read(
        &mut self,
        object: ScoObject,
        result: Result<Bytes, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if !matches!(&self.scrub.job, Some(Job::Reading(reading)) if *reading == object) {
            return;
        }
        self.scrub.job = None;
        // What cannot be read is left as it is; a later pass comes back to it.
        let Some(slots) = result.ok().and_then(|bytes| self.slots_of(object, &bytes)) else {
            return;
        };
        let look = Look {
            object,
            kept: vec![false; slots.len()],
            slots,
            at: 0,
            waits: false,
        };
        self.look(look, effects);
    }

    /// What each slot of a SCO was written for, from its TLog; `None` if that is not whole.
    fn slots_of(&self, object: ScoObject, bytes: &[u8]) -> Option<Vec<Written>> {
        let header = ScoHeader::from_bytes(bytes).ok()?;
        if header.volume != self.id || header.id != object.sco || header.epoch != object.epoch {
            return None;
        }
        let to_index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let mut tlog = bytes.get(to_index(ScoSize::HEADER_AREA)..to_index(header.size.data_offset()))?;
        let mut slots = Vec::new();
        while tlog.iter().take(4).any(|byte| *byte != 0) {
            let batch = Batch::from_bytes(tlog, header.salt()).ok()?;
            let writes = batch.entries.iter().filter_map(|entry| match entry.kind {
                EntryKind::Write { address, crc } => Some((address, crc)),
                _ => None,
            });
            let numbered = (batch.first_slot.0..).map(Slot).zip(writes);
            slots.extend(numbered.map(|(slot, (address, crc))| Written { slot, address, crc }));
            tlog = tlog.get(batch.len..)?;
        }
        Some(slots)
    }

    /// Looks the next slots up in all roots.
    fn look(&mut self, mut look: Look, effects: &mut Vec<Effect>) {
        look.waits = false;
        let roots: Vec<&Tree<Location>> = self.kept_maps().collect();
        let step = (self.scrub.policy.lookups_step / roots.len()).max(1);
        let mut missing = None;
        for _ in 0..step {
            let Some(written) = look.slots.get(look.at).copied() else {
                break;
            };
            match self.is_live(&roots, look.object.sco, written) {
                Ok(live) => look.kept[look.at] = live,
                Err(lacks) => {
                    missing = Some(lacks);
                    break;
                }
            }
            look.at += 1;
        }
        drop(roots);
        if let Some(missing) = missing {
            look.waits = true;
            self.scrub.job = Some(Job::Looking(look));
            self.wait(missing, Some(Parked::Scrub), effects);
        } else if look.at < look.slots.len() {
            self.scrub.job = Some(Job::Looking(look));
        } else {
            self.looked(&look, effects);
        }
    }

    fn is_live(&self, roots: &[&Tree<Location>], sco: ScoId, written: Written) -> Result<bool, Missing> {
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

    fn looked(&mut self, look: &Look, effects: &mut Vec<Effect>) {
        let object = look.object;
        let Ok(Some(state)) = self.scos.get(object.sco.0) else {
            return;
        };
        if state.version != object.version {
            return;
        }
        let slots = look
            .slots
            .iter()
            .map(|written| usize::from(written.slot.0) + 1)
            .max();
        let mut kept = Kept(vec![None; slots.unwrap_or(0)]);
        for (written, live) in look.slots.iter().zip(&look.kept) {
            kept.0[usize::from(written.slot.0)] = live.then_some(written.crc);
        }
        let count = kept.count();
        if count == 0 {
            // Its leaf is resident: `get` has just read it.
            let _ = self.scos.set(object.sco.0, None);
            self.scrub.condemn(object);
            self.scrub.status.removed += 1;
            self.won(state.slots);
        } else if self.scrub.policy.is_worth(ScoState { live: count, ..state }) && object.version < u16::MAX {
            self.scrub.job = Some(Job::Rewriting {
                from: object,
                kept: count,
            });
            effects.push(Effect::RewriteSco { object, kept });
            return;
        }
        self.scrub_done(effects);
    }

    /// The host rewrote a SCO as a later version; `None`: it could not.
    pub(crate) fn sco_rewritten(&mut self, from: ScoObject, to: Option<u16>, effects: &mut Vec<Effect>) {
        let Some(Job::Rewriting { from: expected, kept }) = self.scrub.job.take() else {
            return;
        };
        let current = self.scos.get(from.sco.0).ok().flatten();
        if let (Some(state), Some(version)) = (current, to)
            && expected == from
            && state.version == from.version
            && version > from.version
        {
            let swapped = ScoState {
                slots: kept,
                version,
                ..state
            };
            // Its leaf is resident: `get` has just read it.
            let _ = self.scos.set(from.sco.0, Some(swapped));
            self.scrub.condemn(from);
            self.scrub.status.rewritten += 1;
            self.won(state.slots.saturating_sub(kept));
        }
        self.scrub_done(effects);
    }

    /// A node could not be had: a later pass comes back to it.
    pub(crate) fn scrub_failed(&mut self) {
        (self.scrub.job, self.scrub.pass) = (None, None);
        self.scrub.is_stale = true;
    }

    fn won(&mut self, slots: u16) {
        self.scrub.status.won_bytes += u64::from(slots) * sconce_schemas::CLUSTER_BYTES;
        self.scrub.status.last_success_us = self.now_us;
    }

    fn scrub_done(&mut self, effects: &mut Vec<Effect>) {
        if self.scrub.swaps >= SWAPS_A_MANIFEST {
            self.scrub.swaps = 0;
            self.checkpoints.manifest_due = true;
        }
        // The next one waits for a tick where something better is to be done.
        if !self.has_to_reap() && self.unburied.is_empty() && self.held.is_empty() {
            self.scrub_next(effects);
        }
    }
}

impl ScrubPolicy {
    fn is_worth(self, state: ScoState) -> bool {
        let most = u64::from(state.slots) * u64::from(self.live_percent_max);
        state.live == 0 || u64::from(state.live) * 100 <= most
    }
}
