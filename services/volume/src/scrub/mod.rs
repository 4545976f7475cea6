//! Scrubbing: giving back the space of clusters that nothing refers to any more.
//!
//! Keeps: which SCOs are worth it, those at hand, and objects that wait to be deleted.
//! Order: an object is deleted only after the manifest that no longer refers to it, and a while later. Each slot is looked
//! up in all roots in one event: one that none of them has then is dead for ever, whatever comes.
//! Crash: a bundle that is in no manifest is an object too many; what it has is good, since it was written only after a
//! manifest that covers what it was made by.
//! Knows no storage: the host reads, rewrites and deletes.
//!
//! What is dead stays dead: new roots come from roots, so a slot that none refers to is never referred to again, and what was
//! found dead before a write or a snapshot is dead after it. Locations do not change: what is
//! left of a SCO is read out of its bundle by the same ranges.

mod condemned;
mod look;
mod run;
mod search;
mod swap;

use std::collections::VecDeque;

use sconce_schemas::bundle::BUNDLE_FROM;
use sconce_schemas::manifest::CondemnedState;
use sconce_schemas::{CLUSTER_BYTES, Epoch, ScoId};

use crate::event::Effect;
use crate::scos::ScoState;
use crate::volume::Volume;

use condemned::{CONDEMNED_MAX, Condemned};
use look::Look;
use run::Run;
use search::Pass;
use swap::Sealing;

pub use swap::{BundlePlan, BundleSource, KeptSco};

/// So long nothing is tried after something failed.
const REST_US: u64 = 30_000_000;

/// When this part of what is stored is to be given back, scrubbing does not make way for guests.
const URGENT_PART: u64 = 10;

/// So much of what is stored is to be live where the back ends are full, in percent.
const FULL_PERCENT: u8 = 95;

/// When scrubbing is worth it, and how careful it is.
#[derive(Debug, Clone, Copy)]
pub struct ScrubPolicy {
    /// Whether it runs at all. What is condemned is deleted in any case.
    pub enabled: bool,
    /// So much of what a volume stores is to be live, in percent: clusters are moved only as far as that takes.
    pub utilisation_percent: u8,
    /// Objects beyond half as many again as full ones would be, before small ones are merged for their number alone.
    pub objects_spare: u16,
    /// Microseconds that an object stays after the first manifest that does not refer to it: reads that were told of it
    /// are over then.
    pub grace_us: u64,
    /// Lookups in maps that one event makes: some hundred microseconds.
    pub lookups_step: usize,
}

impl Default for ScrubPolicy {
    /// Four fifths: a volume takes at most a quarter more than what is live. A minute.
    fn default() -> Self {
        Self {
            enabled: true,
            utilisation_percent: 80,
            objects_spare: 16,
            grace_us: 60_000_000,
            lookups_step: 8192,
        }
    }
}

/// An object that holds a SCO, or what is left of several, by what its name has beside the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoObject {
    /// The SCO; of a bundle, the last one in it.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its version.
    pub version: u16,
}

impl ScoObject {
    /// Whether it is a bundle.
    #[must_use]
    pub const fn is_bundle(self) -> bool {
        self.version >= BUNDLE_FROM
    }
}

/// What scrubbing does now, or why it does not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// Nothing is worth it: it looks again when something died.
    #[default]
    Idle,
    /// It waits for the next tick.
    Due,
    /// The SCO table is searched for what is worth it.
    Searching,
    /// The slots of SCOs are looked up in all roots.
    Looking,
    /// What was looked up waits for a manifest that covers it.
    Sealing,
    /// What is kept is written.
    Writing,
    /// It does not run: the write buffer is short of room, or changes wait for some.
    Pressed,
    /// It does not run: counts of the SCO table are being loaded.
    Counting,
    /// It does not run: it is switched off.
    Off,
    /// The last try failed: it is tried again.
    Failing,
}

/// What scrubbing did since the volume was opened, and what is left, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// What it does now.
    pub state: ScrubState,
    /// Objects that were written in place of others.
    pub rewritten: u64,
    /// SCOs that went whole.
    pub removed: u64,
    /// Bytes that the back ends no longer have to hold.
    pub won_bytes: u64,
    /// Bytes of clusters that the SCOs have, by the last pass over the SCO table.
    pub stored_bytes: u64,
    /// Bytes of dead clusters among them, by the table's counts.
    pub dead_bytes: u64,
    /// How much of them is to be given back until the volume is as full of live clusters as it is to be.
    pub to_win_bytes: u64,
    /// When something was last given back, in microseconds since 1970; 0: never.
    pub last_success_us: u64,
    /// Tries that failed.
    pub failures: u64,
    /// When the last one failed, in microseconds since 1970; 0: never.
    pub last_failure_us: u64,
    /// SCOs that the pass under way has looked at.
    pub searched: u64,
    /// Objects that hold SCOs, by the last pass.
    pub objects: u64,
    /// Runs of SCOs that were found worth it and wait for their turn.
    pub picked: usize,
    /// Objects that wait to be deleted.
    pub condemned: usize,
    /// Orphans that sweeps deleted.
    pub swept: u64,
    /// When all the volume's objects were last looked at by one, in microseconds since 1970; 0: not yet.
    pub last_sweep_us: u64,
}

/// State of a volume's scrubbing.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// Something died since the last pass began.
    is_stale: bool,
    /// How many clusters did.
    died: u64,
    /// When the last pass began.
    pass_us: u64,
    policy: ScrubPolicy,
    pass: Option<Pass>,
    /// The best last.
    picked: Vec<Run>,
    job: Option<Job>,
    /// What was looked up and waits for a manifest.
    sealing: VecDeque<Sealing>,
    condemned: Vec<Condemned>,
    /// Objects that were condemned since the last checkpoint was frozen.
    swaps: usize,
    /// The write buffer was short of room at the last tick.
    pressed: bool,
    /// The back ends have no room.
    full: bool,
    /// The last try failed.
    failing: bool,
    status: ScrubStatus,
}

#[derive(Debug)]
enum Job {
    /// A run is looked up.
    Looking(Look),
    /// The host writes the bundle.
    Writing(BundlePlan),
    /// The bundle is written, as this version, and the table's nodes are loaded.
    Swapping(BundlePlan, Option<u16>),
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

    /// What is worth it now.
    fn policy_now(&self) -> ScrubPolicy {
        let percent = self.policy.utilisation_percent;
        ScrubPolicy {
            utilisation_percent: if self.full {
                percent.max(FULL_PERCENT)
            } else {
                percent
            },
            ..self.policy
        }
    }

    /// Clusters died.
    pub(crate) fn died(&mut self, count: u16) {
        self.is_stale = true;
        self.died += u64::from(count);
    }

    /// More SCOs are covered, and may have nothing that is live.
    pub(crate) fn more_is_covered(&mut self) {
        self.is_stale = true;
    }

    /// A checkpoint is frozen that condemns all that was swapped.
    pub(crate) fn frozen(&mut self) {
        self.swaps = 0;
    }

    /// Whether ticks are needed.
    pub(crate) fn has_work(&self) -> bool {
        !self.condemned.is_empty() || (self.policy.enabled && (self.is_stale || self.is_at_work()))
    }

    fn is_at_work(&self) -> bool {
        self.job.is_some()
            || self.pass.is_some()
            || !self.picked.is_empty()
            || !self.sealing.is_empty()
            || self.swaps > 0
    }

    /// Whether something failed a short while ago.
    fn rests(&self, now_us: u64) -> bool {
        self.failing && now_us.abs_diff(self.status.last_failure_us) < REST_US
    }

    /// Whether it could go on at once.
    pub(crate) fn wants_turn(&self) -> bool {
        match (&self.job, &self.pass) {
            (Some(Job::Looking(look)), _) => look.wants_turn(),
            (Some(_), _) => false,
            (None, Some(pass)) => !pass.waits,
            (None, None) => false,
        }
    }
}

impl Volume {
    /// The object that holds a SCO.
    #[must_use]
    pub fn object_of(&self, sco: ScoId, state: ScoState) -> ScoObject {
        let (sco, version) = match state.bundle {
            Some(bundle) => (bundle.named, bundle.version),
            None => (sco, state.version),
        };
        ScoObject {
            sco,
            epoch: self.epoch_at(sco).unwrap_or(Epoch::NONE),
            version,
        }
    }

    /// What scrubbing did and has to do.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = &self.scrub;
        let (swept, last_sweep_us) = self.sweep.status();
        ScrubStatus {
            state: self.scrub_state(),
            searched: scrub.pass.as_ref().map_or(0, |pass| pass.searched),
            picked: scrub.picked.len(),
            condemned: scrub.condemned.len(),
            swept,
            last_sweep_us,
            ..scrub.status
        }
    }

    /// Whether so much is to be given back that it must not wait for quiet hours.
    #[must_use]
    pub fn scrub_is_urgent(&self) -> bool {
        let status = &self.scrub.status;
        self.scrub.full || status.to_win_bytes > status.stored_bytes / URGENT_PART
    }

    fn scrub_state(&self) -> ScrubState {
        let scrub = &self.scrub;
        match &scrub.job {
            _ if !scrub.policy.enabled => ScrubState::Off,
            Some(Job::Looking(_)) => ScrubState::Looking,
            Some(_) => ScrubState::Writing,
            None if scrub.pass.is_some() => ScrubState::Searching,
            None if scrub.failing => ScrubState::Failing,
            None if !scrub.is_stale && !scrub.is_at_work() => ScrubState::Idle,
            None if !self.unburied.is_empty() => ScrubState::Counting,
            None if self.scrub_is_held_up() => ScrubState::Pressed,
            None if !scrub.sealing.is_empty() => ScrubState::Sealing,
            None => ScrubState::Due,
        }
    }

    /// A tick: deletes what is due; begins the next run, or a pass for it, unless there is something better to do.
    pub(crate) fn scrub_tick(&mut self, pressed: bool, effects: &mut Vec<Effect>) {
        self.delete_condemned(effects);
        self.scrub.pressed = pressed;
        let is_at_it = self.scrub.job.is_some() || self.scrub.pass.is_some();
        if !self.scrub.policy.enabled || is_at_it || self.scrub_is_held_up() || self.scrub.rests(self.now_us)
        {
            return;
        }
        if !self.scrub.is_at_work() && self.pass_is_due() {
            self.begin_pass();
            return;
        }
        self.scrub_next(effects);
    }

    /// Whether there is something better to do. Where space runs out there is not: the write buffer may be short of room
    /// just because of that, and guests that never rest would stop scrubbing for ever.
    fn scrub_is_held_up(&self) -> bool {
        let is_short = self.scrub.pressed || !self.held.is_empty();
        let is_behind = self.scrub.condemned.len() >= CONDEMNED_MAX;
        is_behind || !self.unburied.is_empty() || (is_short && !self.scrub_is_urgent())
    }

    /// The back ends are full, or are no more: then more is given back than otherwise, and at once.
    pub(crate) fn back_ends_full(&mut self, full: bool) {
        if full && !self.scrub.full {
            (self.scrub.is_stale, self.scrub.pass_us) = (true, 0);
        }
        self.scrub.full = full;
    }

    /// A manifest is stored: what waited for it goes on.
    pub(crate) fn scrub_sealed(&mut self, effects: &mut Vec<Effect>) {
        let is_at_it = self.scrub.job.is_some() || self.scrub.pass.is_some();
        if !is_at_it && !self.scrub_is_held_up() && !self.scrub.sealing.is_empty() {
            self.scrub_next(effects);
        }
    }

    /// Goes on with what can go on.
    pub(crate) fn scrub_turn(&mut self, effects: &mut Vec<Effect>) {
        match self.scrub.job.take() {
            Some(Job::Looking(look)) => self.look(look, effects),
            Some(Job::Swapping(plan, to)) => self.swap(plan, to, effects),
            Some(other) => self.scrub.job = Some(other),
            None => {
                if let Some(pass) = self.scrub.pass.take() {
                    self.search(pass, effects);
                }
            }
        }
    }

    /// A node could not be had: a later pass comes back to it.
    pub(crate) fn scrub_failed(&mut self) {
        // What the host writes goes on: its answer comes.
        self.scrub.job.take_if(|job| !matches!(job, Job::Writing(_)));
        self.scrub.pass = None;
        self.scrub_failing();
    }

    /// A try failed: a later pass comes back to it.
    fn scrub_failing(&mut self) {
        self.scrub.is_stale = true;
        self.scrub.failing = true;
        self.scrub.status.failures += 1;
        self.scrub.status.last_failure_us = self.now_us;
    }

    fn won(&mut self, slots: u64) {
        self.scrub.status.won_bytes += slots * CLUSTER_BYTES;
        self.scrub.status.last_success_us = self.now_us;
        self.scrub.failing = false;
    }
}
