//! What was looked up becomes a bundle, and the bundle takes the place of what it was made of.
//!
//! Keeps: what waits for a manifest that covers its look, and the bundle that is being written.
//! Order: look, manifest, bundle, table, the next manifest, and only then the old objects go. So every bundle that was ever
//! written has all that any state of the volume from then on can refer to, also one that a crash left.
//! Crash: a bundle that is in no manifest is an object too many; the table's next try has another version.
//! Knows no storage.

use sconce_schemas::bundle::{BUNDLE_FROM, KeptCluster};
use sconce_schemas::{Epoch, ScoId, ScoSize};

use super::{Job, ScoObject};
use crate::event::Effect;
use crate::operations::Parked;
use crate::scos::{InBundle, ScoState};
use crate::tree::Missing;
use crate::volume::Volume;

/// Clusters that may wait for a manifest: 16 bytes each.
const WAITING_MAX: u64 = 128 << 10;
/// So many old objects, and a manifest is due that lets them go.
const SWAPS_A_MANIFEST: usize = 256;
/// While guests write, a manifest is asked for only behind this many SCOs: it closes the open one, which costs a request.
const SCOS_A_MANIFEST: u64 = 16;
/// Or behind this part of the volume's, if that is more: a checkpoint of a large map costs bytes.
const SCOS_A_MANIFEST_PART: u64 = 32;

/// What is kept of a SCO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSco {
    /// The SCO.
    pub sco: ScoId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its size when full.
    pub size: ScoSize,
    /// The clusters; of a SCO that goes whole, none.
    pub kept: Vec<KeptCluster>,
}

/// An object that a bundle is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleSource {
    /// The object: a SCO, or a bundle.
    pub object: ScoObject,
    /// The SCOs in it, ascending.
    pub scos: Vec<KeptSco>,
}

/// A bundle to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundlePlan {
    /// The SCO that it is named after, its epoch, and the highest version of that name that is known.
    pub above: ScoObject,
    /// What it is made of, ascending.
    pub sources: Vec<BundleSource>,
}

impl BundlePlan {
    fn scos(&self) -> impl Iterator<Item = (ScoObject, &KeptSco)> {
        let of = |source: &BundleSource| source.object;
        self.sources
            .iter()
            .flat_map(move |source| source.scos.iter().map(move |sco| (of(source), sco)))
    }

    fn clusters(&self) -> u64 {
        clusters(&self.sources)
    }
}

fn clusters(sources: &[BundleSource]) -> u64 {
    let scos = sources.iter().flat_map(|source| &source.scos);
    scos.map(|sco| sco.kept.len() as u64).sum()
}

/// What was looked up and waits.
#[derive(Debug)]
pub(super) struct Sealing {
    plan: BundlePlan,
    /// Checkpoints that were frozen before the look ended.
    frozen: u64,
}

impl Volume {
    /// A run is looked up.
    pub(super) fn looked(&mut self, sources: Vec<BundleSource>, slots: u64, effects: &mut Vec<Effect>) {
        for sco in sources.iter().flat_map(|source| &source.scos) {
            let counted = self.scos.get(sco.sco.0).ok().flatten();
            let found = u16::try_from(sco.kept.len()).unwrap_or(u16::MAX);
            self.note_held(sco.sco, found, counted.map_or(found, |state| state.live));
        }
        let kept = clusters(&sources);
        let is_worth = kept < slots || kept == 0 || sources.len() > 1;
        let last = sources
            .iter()
            .rev()
            .flat_map(|source| source.scos.iter().rev())
            .find(|sco| !sco.kept.is_empty());
        let above = last.or(sources.first().and_then(|source| source.scos.first()));
        if let Some(sco) = above.filter(|_| is_worth && kept <= u64::from(self.sco_size.slots()).max(slots)) {
            let above = ScoObject {
                sco: sco.sco,
                epoch: sco.epoch,
                version: BUNDLE_FROM - 1,
            };
            let plan = BundlePlan { above, sources };
            if kept == 0 {
                // Nothing is written: the manifest that condemns the objects covers the look.
                return self.swap(plan, None, effects);
            }
            self.scrub.sealing.push_back(Sealing {
                plan,
                frozen: self.checkpoints.frozen,
            });
        }
        self.scrub_done(effects);
    }

    /// Goes on: writes what is covered, looks at the next run, or asks for the manifest that either waits for.
    pub(super) fn scrub_next(&mut self, effects: &mut Vec<Effect>) {
        let stored = self.checkpoints.stored;
        if let Some(sealed) = self.scrub.sealing.pop_front_if(|sealing| sealing.frozen < stored) {
            return self.begin_bundle(sealed.plan, effects);
        }
        let waiting: u64 = self
            .scrub
            .sealing
            .iter()
            .map(|sealing| sealing.plan.clusters())
            .sum();
        while waiting < WAITING_MAX
            && let Some(run) = self.scrub.picked.pop()
        {
            match self.begin_look(run, effects) {
                Ok(true) => return,
                Ok(false) => {}
                Err(missing) => {
                    self.scrub.picked.push(run);
                    self.wanted.push(missing);
                    return;
                }
            }
        }
        if !self.scrub.sealing.is_empty() || self.scrub.swaps > 0 {
            self.ask_for_manifest();
        }
    }

    /// Asks for a manifest, unless guests write and the next one comes by itself before it costs too many requests.
    fn ask_for_manifest(&mut self) {
        let behind = self.log.next_sco().0 - self.checkpoints.covered_sco.0;
        let scos = self.scrub.status.stored_bytes / self.sco_size.file_len();
        let is_written = self.last_seq() > self.checkpoints.covered;
        if !is_written || behind > SCOS_A_MANIFEST.max(scos / SCOS_A_MANIFEST_PART) {
            self.checkpoints.manifest_due = true;
        }
    }

    fn begin_bundle(&mut self, mut plan: BundlePlan, effects: &mut Vec<Effect>) {
        match self.scos.get(plan.above.sco.0) {
            Ok(Some(state)) if state.version < u16::MAX => {
                plan.above.version = plan.above.version.max(state.version);
                self.scrub.job = Some(Job::Writing(plan.clone()));
                effects.push(Effect::WriteBundle { plan: Box::new(plan) });
            }
            Ok(_) => self.scrub_next(effects),
            Err(missing) => {
                let sealing = Sealing { plan, frozen: 0 };
                self.scrub.sealing.push_front(sealing);
                self.wanted.push(missing);
            }
        }
    }

    /// The host wrote a bundle, as this version; `None`: it could not.
    pub(crate) fn bundle_written(&mut self, above: ScoObject, to: Option<u16>, effects: &mut Vec<Effect>) {
        let Some(Job::Writing(plan)) = self
            .scrub
            .job
            .take_if(|job| matches!(job, Job::Writing(plan) if plan.above == above))
        else {
            return;
        };
        match to.filter(|to| *to > above.version) {
            Some(to) => self.swap(plan, Some(to), effects),
            None => {
                self.scrub_failing();
                self.scrub_done(effects);
            }
        }
    }

    /// The bundle takes the place of its sources in the table.
    pub(super) fn swap(&mut self, plan: BundlePlan, to: Option<u16>, effects: &mut Vec<Effect>) {
        match self.states_of(&plan) {
            Ok(Some(states)) => self.swap_states(&plan, &states, to),
            // Nothing but a scrub changes which object holds a SCO, and there is one scrub.
            Ok(None) => self.scrub_failing(),
            Err(missing) => {
                self.scrub.job = Some(Job::Swapping(plan, to));
                return self.wait(missing, Some(Parked::Scrub), effects);
            }
        }
        self.scrub_done(effects);
    }

    fn states_of(&self, plan: &BundlePlan) -> Result<Option<Vec<ScoState>>, Missing> {
        let mut states = Vec::new();
        for (object, sco) in plan.scos() {
            match self.scos.get(sco.sco.0)? {
                Some(state) if self.object_of(sco.sco, state) == object => states.push(state),
                _ => return Ok(None),
            }
        }
        Ok(Some(states))
    }

    /// The leaves are resident: `states_of` has just read them. Counts stay: what died and is not counted yet (a removed
    /// snapshot is being reaped) is counted when that ends.
    fn swap_states(&mut self, plan: &BundlePlan, states: &[ScoState], to: Option<u16>) {
        let (mut won, mut removed) = (0, 0);
        for ((_, sco), state) in plan.scos().zip(states) {
            let kept = u16::try_from(sco.kept.len()).unwrap_or(u16::MAX);
            won += u64::from(state.slots.saturating_sub(kept));
            let version = to.filter(|_| kept > 0);
            let next = version.map(|version| ScoState {
                slots: kept,
                version: match sco.sco == plan.above.sco {
                    true => version,
                    false => state.version,
                },
                bundle: Some(InBundle {
                    named: plan.above.sco,
                    version,
                }),
                ..*state
            });
            removed += u64::from(next.is_none());
            let _ = self.scos.set(sco.sco.0, next);
        }
        // The last ones go first: who looks for a SCO whose object is gone lists from there on, and between it and the bundle none of
        // these is left.
        for source in plan.sources.iter().rev() {
            self.scrub.condemn(source.object);
        }
        self.scrub.status.rewritten += u64::from(to.is_some());
        self.scrub.status.removed += removed;
        self.won(won);
    }

    pub(super) fn scrub_done(&mut self, effects: &mut Vec<Effect>) {
        if self.scrub.swaps >= SWAPS_A_MANIFEST {
            self.ask_for_manifest();
        }
        // The next one waits for a tick where something better is to be done.
        if !self.scrub_is_held_up() {
            self.scrub_next(effects);
        }
    }
}
