//! Spreading volumes evenly.
//!
//! Keeps: nothing.
//! Order: the one with the most gives to the one with the fewest, until they are within the band; the same view gives everybody the same
//! plan, so that all may carry out their parts of it at the same time and nobody gets too much.
//! Crash: what was moved stays moved; the rest is planned anew.
//! Knows no sizes: a volume counts as one.

use std::collections::BTreeSet;

use sconce_schemas::{NodeName, VolumeId};

use crate::{Loads, Pool, Volume};

/// How many volumes more than another a volume-router may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// So many always: at least 1, below which moving changes nothing.
    pub volumes: usize,
    /// So many of a hundred of the mean, where that is more.
    pub percent: usize,
}

impl Band {
    /// As even as can be.
    pub const EVEN: Band = Band {
        volumes: 1,
        percent: 0,
    };

    fn width(self, loads: &Loads) -> usize {
        let all: usize = loads.values().sum();
        let share = all.saturating_mul(self.percent) / 100 / loads.len().max(1);
        self.volumes.max(share).max(1)
    }
}

/// A volume and where it is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The volume.
    pub volume: VolumeId,
    /// Who owns it.
    pub from: NodeName,
    /// Who is to own it.
    pub to: NodeName,
}

/// What a volume-router is to give now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Give {
    /// What, and to whom.
    pub step: Move,
    /// How many volumes it has.
    pub here: usize,
    /// How many that one has.
    pub there: usize,
}

impl Pool {
    /// What has to be moved where, so that no volume-router that may be given volumes has more than another by more than the band. A volume goes
    /// to the host of its twin where that does as well, then the one that `busy` says least of.
    pub fn even_out(
        &self,
        band: Band,
        may_go: impl Fn(&Volume) -> bool,
        busy: impl Fn(&Volume) -> u64,
    ) -> Vec<Move> {
        let mut loads = self.loads();
        let width = band.width(&loads);
        let may_go = |volume: &&Volume| !volume.pinned && volume.moves_to.is_none() && may_go(volume);
        let mut rest: BTreeSet<VolumeId> = self.volumes().filter(may_go).map(|volume| volume.id).collect();
        let mut moves = Vec::new();
        while let Some(step) = self.next_step(&loads, width, &rest, &busy) {
            rest.remove(&step.volume);
            loads.entry(step.from.clone()).and_modify(|count| *count -= 1);
            loads.entry(step.to.clone()).and_modify(|count| *count += 1);
            moves.push(step);
        }
        moves
    }

    /// From the one with the most that has something to give to the one with the fewest that may have it.
    fn next_step(
        &self,
        loads: &Loads,
        width: usize,
        rest: &BTreeSet<VolumeId>,
        busy: &impl Fn(&Volume) -> u64,
    ) -> Option<Move> {
        let mut by_load: Vec<(usize, &NodeName)> = loads.iter().map(|(node, count)| (*count, node)).collect();
        by_load.sort_unstable();
        let pairs = by_load
            .iter()
            .rev()
            .flat_map(|from| by_load.iter().map(move |to| (from, to)));
        pairs
            .filter(|((many, _), (few, _))| *many > few + width)
            .find_map(|((_, from), (_, to))| {
                let owned = rest.iter().filter_map(|id| self.volume(*id));
                let chosen = owned
                    .filter(|volume| volume.owner == **from && self.keeps_promises(volume, to))
                    .min_by_key(|volume| (volume.twin.as_ref() != Some(to), busy(volume), volume.id))?;
                Some(Move {
                    volume: chosen.id,
                    from: (*from).clone(),
                    to: (*to).clone(),
                })
            })
    }

    /// What `me` is to give now, as far as this view tells. Nothing while a takeover is going on, or `me` or whom it would give to gives or gets
    /// something. A volume without the twin that it wants stays.
    pub fn give(
        &self,
        me: &NodeName,
        band: Band,
        may_go: impl Fn(&Volume) -> bool,
        busy: impl Fn(&Volume) -> u64,
    ) -> Option<Give> {
        if self.may_take(me).is_none() || self.is_in_move(me) || !self.is_calm() {
            return None;
        }
        let loads = self.loads();
        // What others have to give they know better: which of theirs goes changes nobody's count.
        let may_go = |volume: &Volume| !volume.is_degraded() && (volume.owner != *me || may_go(volume));
        let plan = self.even_out(band, may_go, busy);
        let step = plan.into_iter().find(|step| step.from == *me)?;
        (!self.is_in_move(&step.to)).then(|| Give {
            here: loads.get(me).copied().unwrap_or_default(),
            there: loads.get(&step.to).copied().unwrap_or_default(),
            step,
        })
    }

    /// Who is to own a volume next, whose owner is to have none any more: the host of its twin, which has everything, else whoever has the
    /// fewest of those where its twin can be apart.
    pub fn successor(&self, volume: &Volume, loads: &mut Loads) -> Option<NodeName> {
        let others = loads.iter().filter(|(node, _)| **node != volume.owner);
        let next = others.min_by_key(|(node, count)| {
            let is_twin = volume.twin.as_ref() == Some(node);
            (!is_twin, !self.keeps_promises(volume, node), **count)
        });
        let next = next?.0.clone();
        *loads.entry(next.clone()).or_default() += 1;
        Some(next)
    }
}
