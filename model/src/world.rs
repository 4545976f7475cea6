//! What the world does: commits and objects that arrive, machines that die, disks that are lost.
//!
//! Keeps: what is on its way outlives its sender.
//! Order: none, but for the registry: a commit whose record was written since it was read comes to nothing.
//! Crash: this is it.
//! Knows no rules of the protocol.

use crate::rules::{Limits, Planted, Rules, Streams};
use crate::state::{Batch, Buffer, Doubt, Object, Phase, SCOS, STREAMS, Sco, State, Stream, Twin};
use crate::step::{Next, Step};

/// Batches that a set has room for.
const BITS: u8 = 8;

pub(crate) fn offer(n: u8, next: &mut Next<'_>) {
    let from = next.from;
    let node = &from.nodes[usize::from(n)];
    if let Some(at) = node.committing {
        in_sync_is_written(n, at, next);
    }
    let lost = from
        .nodes
        .iter()
        .fold(0, |lost, node| lost + node.wiped + u8::from(node.gone));
    if node.gone {
        return next.go(Step::NodeReturns(n), |s| {
            let node = &mut s.nodes[usize::from(n)];
            node.gone = false;
            node.wiped += 1;
        });
    }
    if lost < next.rules.limits.losses {
        next.go(Step::NodeLost(n), |s| {
            s.crash(n);
            let node = &mut s.nodes[usize::from(n)];
            node.gone = true;
            node.files = [Sco::default(); SCOS];
            (node.unsynced, node.kept_for) = (0, 0);
        });
    }
    if node.phase != Phase::Idle || node.hosts.is_some() {
        next.go(Step::Crash(n), |s| s.crash(n));
    }
    if from.power_lost < next.rules.limits.power_losses {
        power_lost(n, next);
    }
}

/// A commit of `RecordInSync` arrives: the record was not written since its owner read it.
fn in_sync_is_written(n: u8, at: u8, next: &mut Next<'_>) {
    let from = next.from;
    let Some(stream) = from.streams[usize::from(at)] else {
        return;
    };
    let record = &from.record;
    if (record.owner, record.epoch) != (stream.owner, stream.epoch) {
        return;
    }
    let rules = next.rules;
    next.go(Step::InSyncIsWritten(n), |s| {
        // The buffer that answered the `Attach`.
        s.record.in_sync = Some(Buffer {
            node: stream.host,
            wiped: stream.wiped,
        });
        s.record.in_sync_boot = stream.boot;
        s.excuse();
        s.nodes[usize::from(n)].committing = None;
        s.record_written(rules);
    });
}

/// A machine loses power: of what was not synced, what was written after any point is gone, or nothing.
fn power_lost(n: u8, next: &mut Next<'_>) {
    let unsynced = next.from.nodes[usize::from(n)].unsynced;
    for bit in (0..=BITS).filter(|bit| *bit == BITS || unsynced & (1 << bit) != 0) {
        let lost = unsynced & u8::MAX.checked_shl(u32::from(bit)).unwrap_or(0);
        next.go(Step::PowerLost(n, bit), |s| {
            s.crash(n);
            s.power_lost += 1;
            let node = &mut s.nodes[usize::from(n)];
            node.boot += 1;
            node.files.iter_mut().for_each(|file| file.batches &= !lost);
            node.unsynced &= !lost;
            s.excuse();
        });
    }
}

pub(crate) fn offer_deliveries(next: &mut Next<'_>) {
    for (epoch, objects) in (0..).zip(&next.from.objects) {
        for (at, object) in (0..).zip(objects) {
            if object.sco.batches != 0 && !object.stored {
                next.go(Step::Stored(epoch, at), |s| {
                    s.objects[usize::from(epoch)][usize::from(at)].stored = true;
                });
            }
        }
    }
}

impl State {
    /// Nobody was told that a write survives, before it is flushed, that all machines that the record names lose power.
    fn excuse(&mut self) {
        let record = &self.record;
        let is_one_whole = self.is_whole(record.buffer, record.buffer_boot)
            || self.is_whole(record.in_sync, record.in_sync_boot);
        if is_one_whole {
            return;
        }
        let named = [record.buffer, record.in_sync].into_iter().flatten();
        let here = named.filter(|buffer| self.is_here(*buffer));
        // Any of them may be the one that is gone on with.
        let kept = here.fold(u8::MAX, |kept, buffer| kept & self.replay(buffer.node, true).log);
        let excused = !kept & !self.flushed & ((1 << self.written) - 1);
        self.excused |= excused;
        self.acked &= !excused;
    }

    /// A node's process dies: all that it knew is gone but for its files and what it has sent.
    pub(crate) fn crash(&mut self, n: u8) {
        let node = &mut self.nodes[usize::from(n)];
        node.phase = Phase::Idle;
        (node.hosts, node.attach, node.doubt) = (None, None, None);
    }

    /// The record was written: a commit that was read for before that comes to nothing.
    pub(crate) fn record_written(&mut self, rules: &Rules) {
        if !rules.lacks(Planted::InSyncComparesEpoch) {
            self.nodes.iter_mut().for_each(|node| node.committing = None);
        }
        if rules.streams == Streams::InRecord {
            // These would write it too.
            for node in &mut self.nodes {
                (node.attach, node.doubt) = (None, None);
            }
        }
    }

    /// The stream that would be the next one, if there may be another.
    pub(crate) fn free_stream(&self, limits: &Limits) -> Option<u8> {
        let free = (0..).zip(&self.streams).find(|(_, stream)| stream.is_none());
        free.filter(|_| self.opened < limits.streams).map(|(at, _)| at)
    }

    /// Brings into one form what cannot make a difference any more.
    pub(crate) fn settle(&mut self, rules: &Rules) {
        if !rules.lacks(Planted::ResumeCutStream) {
            (0..STREAMS).for_each(|at| self.settle_stream(at));
        }
        let flying = self
            .streams
            .iter()
            .flatten()
            .fold(0, |all, stream| all | stream.flight);
        for (at, batch) in self.batches.iter_mut().enumerate() {
            if flying & (1 << at) == 0 {
                *batch = Batch::default();
            }
        }
        // What a later epoch has begun before is never of the log again.
        for sco in 0..SCOS {
            let epoch = self.record.epoch_at(sco);
            for objects in &mut self.objects[..epoch] {
                objects[sco] = Object::default();
            }
        }
    }

    fn settle_stream(&mut self, at: usize) {
        let Some(stream) = self.streams[at] else { return };
        let is_it = |named: &Option<u8>| named.map(usize::from) == Some(at);
        let host = &self.nodes[usize::from(stream.host)];
        let owner = self.owner(stream.owner).filter(|owner| {
            (usize::from(owner.stream), owner.epoch) == (at, stream.epoch) && owner.twin != Twin::Detached
        });
        let is_heard = owner.is_some();
        let may_be_heard_of = is_it(&host.hosts) || is_it(&host.attach) || stream.asked;
        let is_named = self.nodes.iter().any(|node| is_it(&node.committing))
            || matches!(host.doubt, Some(Doubt::Silent(silent, _)) if usize::from(silent) == at);
        if !is_heard && !may_be_heard_of && !is_named {
            self.streams[at] = None;
            for stream in self.streams.iter_mut().flatten() {
                stream.after &= !(1 << at);
            }
            if is_it(&self.record.stream) {
                self.record.stream = None;
            }
            return;
        }
        let settled = Stream {
            attached: stream.attached && is_heard,
            held: if is_heard { stream.held } else { 0 },
            flight: if may_be_heard_of { stream.flight } else { 0 },
            detach: stream.detach && may_be_heard_of,
            ..stream
        };
        self.streams[at] = Some(settled);
    }
}
