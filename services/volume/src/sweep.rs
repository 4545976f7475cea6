//! The sweep: what crashes, lost owners and renewals left on the back ends is found by listing, and goes.
//!
//! Keeps: the pass under way: where its listing is, and what was found to be garbage.
//! Order: garbage is what neither the last manifest of this ownership nor the volume in memory leads to, or ever will. A name
//! is judged when it is listed and again a grace time later; only what is garbage both times goes.
//! Crash: a pass begins anew.
//! Knows no storage: the host lists and deletes, and makes sure before that this is still the owner.
//!
//! What is garbage stays garbage: SCOs, checkpoints and manifests are numbered upwards, and nothing that was let go of is
//! referred to again. So nothing here needs a lock, and a late delete takes nothing that is needed. Object versions
//! above those that the SCO table knows stay: each name has one content for ever, and the next bundle of that name has to see
//! that it is taken.

use sconce_schemas::ObjectName;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::Refusal;

use crate::event::Effect;
use crate::operations::Parked;
use crate::scrub::ScoObject;
use crate::tree::Missing;
use crate::volume::Volume;

/// Names that a pass finds at most; what is left is found by the next.
const FOUND_MAX: usize = 16 << 10;
/// Objects that are deleted at once.
const DELETES_MAX: usize = 64;
/// Names that one event judges.
const NAMES_STEP: usize = 256;

/// How often the pause after passes that failed is doubled: to an hour.
const PAUSE_DOUBLED_MAX: u32 = 6;

/// When a volume is swept.
#[derive(Debug, Clone, Copy)]
pub struct SweepPolicy {
    /// Microseconds between two passes over all of a volume's objects; 0: never. The first is due when the volume is opened.
    pub every_us: u64,
    /// Microseconds between two passes at least; one over its checkpoints is due when any of them became garbage.
    pub pause_us: u64,
    /// Microseconds between the two judgements.
    pub grace_us: u64,
}

impl Default for SweepPolicy {
    /// A day, a minute, a minute.
    fn default() -> Self {
        Self {
            every_us: 86_400_000_000,
            pause_us: 60_000_000,
            grace_us: 60_000_000,
        }
    }
}

/// State of a volume's sweeps.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    policy: SweepPolicy,
    pass: Option<Pass>,
    /// When the last pass over everything ended; `None`: there was none.
    all_us: Option<u64>,
    /// When the last pass ended.
    last_us: u64,
    /// How many of the volume's checkpoints were garbage when they were last swept.
    garbage: u64,
    /// Objects that were deleted since the volume was opened.
    swept: u64,
    /// Passes that failed since the last one that did not.
    failures: u32,
}

/// A pass under way.
#[derive(Debug)]
struct Pass {
    /// Of all kinds, not only of checkpoints.
    of_all: bool,
    kind: ObjectKind,
    /// As [`Sweep::garbage`], when it began.
    garbage: u64,
    found: Vec<ObjectName>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Asks for the names after this one.
    Next(Option<ObjectName>),
    /// The host lists.
    Listing,
    /// The first of these are judged; whether they wait for a node.
    Judging(Judging, bool),
    /// The grace time runs since then.
    Resting(u64),
    /// The host deletes so many; what is left.
    Deleting(u64, Vec<ObjectName>),
}

/// Names that are judged.
#[derive(Debug)]
struct Judging {
    names: Vec<ObjectName>,
    at: usize,
    garbage: Vec<ObjectName>,
    /// For the second time.
    again: bool,
}

impl Judging {
    const fn new(names: Vec<ObjectName>, again: bool) -> Self {
        Self {
            names,
            at: 0,
            garbage: Vec::new(),
            again,
        }
    }
}

impl Sweep {
    pub(crate) fn new(policy: SweepPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Objects that were deleted, and when all were last looked at, in microseconds since 1970; 0: not yet.
    pub(crate) fn status(&self) -> (u64, u64) {
        (self.swept, self.all_us.unwrap_or(0))
    }

    /// Whether it could go on at once.
    pub(crate) fn wants_turn(&self) -> bool {
        let step = self.pass.as_ref().map(|pass| &pass.step);
        matches!(step, Some(Step::Next(_) | Step::Judging(_, false)))
    }

    /// Whether ticks are needed.
    pub(crate) const fn has_work(&self) -> bool {
        self.pass.is_some()
    }

    /// The clock was set back.
    pub(crate) fn clock_set_back(&mut self, now_us: u64) {
        self.last_us = self.last_us.min(now_us);
        self.all_us = self.all_us.map(|at| at.min(now_us));
        if let Some(Pass {
            step: Step::Resting(since),
            ..
        }) = &mut self.pass
        {
            *since = now_us;
        }
    }
}

impl Volume {
    /// Whether ticks are needed: a pass is under way, or is due now.
    pub(crate) fn has_to_sweep(&self) -> bool {
        self.sweep.has_work()
            || self.garbage_checkpoints() > self.sweep.garbage
            || self.sweep_is_due().is_some()
    }

    /// Whether a pass is due, and then whether over all kinds. None is before this ownership has a manifest.
    fn sweep_is_due(&self) -> Option<bool> {
        self.checkpoints.named.as_ref()?;
        let Sweep {
            policy,
            all_us,
            last_us,
            garbage,
            failures,
            ..
        } = &self.sweep;
        let since = |at: u64| self.now_us.saturating_sub(at);
        // All is listed again: of back ends that are away the less often the longer they are.
        if since(*last_us) < policy.pause_us << failures.min(&PAUSE_DOUBLED_MAX) {
            return None;
        }
        if policy.every_us > 0 && all_us.is_none_or(|at| since(at) >= policy.every_us) {
            return Some(true);
        }
        (self.garbage_checkpoints() > *garbage).then_some(false)
    }

    /// How many of the volume's checkpoints, stored or not, the last manifest does not lead to.
    fn garbage_checkpoints(&self) -> u64 {
        let Some(named) = &self.checkpoints.named else {
            return 0;
        };
        let kept: u64 = named
            .ranges
            .iter()
            .map(|range| range.end().0.saturating_sub(range.start().prev().0))
            .sum();
        named.upto.0.saturating_sub(kept)
    }

    /// A tick: begins a pass that is due, or goes on after the grace time.
    pub(crate) fn sweep_tick(&mut self, pressed: bool) {
        let now_us = self.now_us;
        match &mut self.sweep.pass {
            None if pressed => {}
            None => {
                if let Some(of_all) = self.sweep_is_due() {
                    self.sweep.pass = Some(Pass {
                        of_all,
                        kind: if of_all { ObjectKind::Sco } else { ObjectKind::Map },
                        garbage: self.garbage_checkpoints(),
                        found: Vec::new(),
                        step: Step::Next(None),
                    });
                }
            }
            Some(pass) => {
                if let Step::Resting(since) = pass.step
                    && now_us.saturating_sub(since) >= self.sweep.policy.grace_us
                {
                    let names = std::mem::take(&mut pass.found);
                    pass.step = Step::Judging(Judging::new(names, true), false);
                }
            }
        }
    }

    /// A turn.
    pub(crate) fn sweep_turn(&mut self, effects: &mut Vec<Effect>) {
        let Some(pass) = &mut self.sweep.pass else { return };
        match &mut pass.step {
            Step::Next(after) => {
                let after = *after;
                pass.step = Step::Listing;
                effects.push(Effect::List {
                    kind: pass.kind,
                    after,
                });
            }
            Step::Judging(judging, false) => {
                let judging = std::mem::replace(judging, Judging::new(Vec::new(), false));
                self.judge_names(judging, effects);
            }
            Step::Judging(_, true) | Step::Listing | Step::Resting(_) | Step::Deleting(..) => {}
        }
    }

    /// The host listed; no names: these were the last ones of the kind.
    pub(crate) fn listed(&mut self, result: Result<Vec<ObjectName>, Refusal>) {
        let now_us = self.now_us;
        let Some(pass) = self
            .sweep
            .pass
            .as_mut()
            .filter(|pass| matches!(pass.step, Step::Listing))
        else {
            return;
        };
        match result {
            Ok(names) if names.is_empty() => {
                let next = match pass.kind {
                    ObjectKind::Sco => Some(ObjectKind::Map),
                    ObjectKind::Map => pass.of_all.then_some(ObjectKind::Manifest),
                    ObjectKind::Manifest => None,
                };
                pass.step = match next {
                    Some(kind) => {
                        pass.kind = kind;
                        Step::Next(None)
                    }
                    None => Step::Resting(now_us),
                };
            }
            Ok(names) => pass.step = Step::Judging(Judging::new(names, false), false),
            Err(_) => self.sweep_failed(),
        }
    }

    /// It is tried again in time.
    pub(crate) fn sweep_failed(&mut self) {
        self.sweep.pass = None;
        self.sweep.last_us = self.now_us;
        self.sweep.failures += 1;
    }

    /// The node that it waited for is there.
    pub(crate) fn sweep_resumed(&mut self, effects: &mut Vec<Effect>) {
        if let Some(Pass {
            step: Step::Judging(_, waits),
            ..
        }) = &mut self.sweep.pass
        {
            *waits = false;
            self.sweep_turn(effects);
        }
    }

    fn judge_names(&mut self, mut judging: Judging, effects: &mut Vec<Effect>) {
        let mut judged = Ok(());
        for _ in 0..NAMES_STEP {
            let Some(name) = judging.names.get(judging.at).copied() else {
                return self.judged(judging, effects);
            };
            match self.is_garbage(name) {
                Ok(is_garbage) => judging.garbage.extend(is_garbage.then_some(name)),
                Err(missing) => {
                    judged = Err(missing);
                    break;
                }
            }
            judging.at += 1;
        }
        if let Some(pass) = &mut self.sweep.pass {
            pass.step = Step::Judging(judging, judged.is_err());
        }
        if let Err(missing) = judged {
            self.wait(missing, Some(Parked::Sweep), effects);
        }
    }

    fn judged(&mut self, judging: Judging, effects: &mut Vec<Effect>) {
        let now_us = self.now_us;
        let Some(pass) = &mut self.sweep.pass else { return };
        if judging.again {
            return self.delete_next(judging.garbage, effects);
        }
        pass.found.extend(judging.garbage);
        pass.step = if pass.found.len() < FOUND_MAX {
            Step::Next(judging.names.last().copied())
        } else {
            // What was not looked at is, by the next one.
            (pass.of_all, pass.garbage) = (false, 0);
            Step::Resting(now_us)
        };
    }

    fn delete_next(&mut self, mut left: Vec<ObjectName>, effects: &mut Vec<Effect>) {
        if left.is_empty() {
            return self.end_pass();
        }
        let names = left.split_off(left.len().saturating_sub(DELETES_MAX));
        if let Some(pass) = &mut self.sweep.pass {
            pass.step = Step::Deleting(names.len() as u64, left);
            effects.push(Effect::Delete { names });
        }
    }

    /// The host deleted what it was to; or could not, and the next pass finds what is left.
    pub(crate) fn deleted(&mut self, done: bool, effects: &mut Vec<Effect>) {
        let Some(pass) = &mut self.sweep.pass else { return };
        let Step::Deleting(count, left) = &mut pass.step else {
            return;
        };
        if !done {
            return self.sweep_failed();
        }
        self.sweep.swept += *count;
        let left = std::mem::take(left);
        self.delete_next(left, effects);
    }

    fn end_pass(&mut self) {
        let Some(pass) = self.sweep.pass.take() else {
            return;
        };
        self.sweep.last_us = self.now_us;
        self.sweep.failures = 0;
        self.sweep.garbage = pass.garbage;
        if pass.of_all {
            self.sweep.all_us = Some(self.now_us);
        }
    }

    /// Whether nothing refers to an object of this volume, nor ever will.
    fn is_garbage(&self, name: ObjectName) -> Result<bool, Missing> {
        let Some(named) = self
            .checkpoints
            .named
            .as_ref()
            .filter(|_| name.volume() == self.id)
        else {
            return Ok(false);
        };
        match name {
            ObjectName::Sco {
                id, epoch, version, ..
            } => self.is_garbage_sco(ScoObject {
                sco: id,
                epoch,
                version,
            }),
            ObjectName::Map { id, .. } => {
                let is_kept = named.ranges.iter().any(|range| range.contains(&id));
                let is_read = self.moments_floor().is_some_and(|floor| floor <= id);
                Ok(id <= named.upto && !is_kept && !is_read)
            }
            // The one before the newest may still be read.
            ObjectName::Manifest { seq, epoch, .. } => Ok((epoch, seq) < (self.epoch, named.manifest.prev())),
        }
    }

    /// Of what a stored manifest covers, only the table says what is needed, and what was just let go of is condemned.
    fn is_garbage_sco(&self, object: ScoObject) -> Result<bool, Missing> {
        let in_log = self.epoch_at(object.sco);
        if in_log != Some(object.epoch) {
            // An earlier owner wrote it behind what is in the log of it.
            return Ok(in_log.is_some() && object.epoch < self.epoch);
        }
        if object.sco > self.checkpoints.covered_sco || self.scrub.is_condemned(object) {
            return Ok(false);
        }
        // A bundle goes whole: as long as any SCO is in it, so is the one that it is named after.
        let Some(state) = self.scos.get(object.sco.0)? else {
            return Ok(true);
        };
        let is_known = object.version <= state.version || (state.bundle.is_some() && !object.is_bundle());
        Ok(is_known && self.object_of(object.sco, state) != object)
    }
}
