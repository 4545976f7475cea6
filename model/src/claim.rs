//! Takeovers and restarts: who may own the volume next.
//!
//! Keeps: the rules of services/volume-router/src/owner/mod.rs `start` and owner/record.rs `may_claim`.
//! Order: the record is read, the stream here is ended, the record is claimed (judged anew), the log is replayed, the epoch begins.
//! Crash: at any point the next claim takes a higher epoch and begins again.
//! Knows no leases: that an owner's lease is over may be seen at any time, so that each owner may be one that does not know it.
//!
//! A planned move is a commit by which the twin's host is the owner before it claims anything (`HandOver`).

use crate::rules::Planted;
use crate::state::{Owner, Phase, Sco, State};
use crate::step::{Next, Step};

pub(crate) fn offer(n: u8, next: &mut Next<'_>) {
    let node = &next.from.nodes[usize::from(n)];
    match node.phase {
        Phase::Idle => starts(n, next),
        Phase::Starting { orphan, forced } => claims(n, orphan, forced, next),
        Phase::Claimed { epoch } => begins(n, epoch, next),
        Phase::Serving(_) => {}
    }
}

fn starts(n: u8, next: &mut Next<'_>) {
    let from = next.from;
    let record = &from.record;
    if record.epoch + 1 >= next.rules.limits.epochs {
        return;
    }
    let rules = next.rules;
    let has_stream = from.nodes[usize::from(n)].hosts.is_some();
    let may_go_on = may_go_on(n, rules.planted, from);
    let has_twin = relies_on(n, rules.planted, from)
        && may_go_on
        && (has_stream || !rules.lacks(Planted::TakeoverNeedsStream));
    let orphan = (has_twin && record.owner != n).then_some(record.epoch);
    let is_ours = record
        .buffer
        .is_none_or(|buffer| buffer == from.buffer(n) && may_go_on);
    let mut start = |step, forced, orphan| {
        next.go(step, |s| {
            let node = &mut s.nodes[usize::from(n)];
            node.phase = Phase::Starting { orphan, forced };
            node.attach = None;
            if !rules.lacks(Planted::ClaimWithoutSeal) {
                node.hosts = None;
            }
        });
    };
    if is_ours || has_twin {
        start(Step::StartsTakeover(n), false, orphan);
    }
    if from.forced < rules.limits.forces && !is_ours {
        start(Step::StartsForced(n), true, None);
    }
}

/// Whether the record relies on the twin in this node's write buffer.
fn relies_on(n: u8, planted: Option<Planted>, s: &State) -> bool {
    match planted {
        Some(Planted::ClaimByAnotherBuffer) => s.record.in_sync.is_some_and(|buffer| buffer.node == n),
        _ => s.relies_on(n),
    }
}

/// Whether what the node has of the volume is as good as what any other has.
fn may_go_on(n: u8, planted: Option<Planted>, s: &State) -> bool {
    match planted {
        Some(Planted::PowerLossUnseen | Planted::ClaimByAnotherBuffer) => true,
        _ => s.may_go_on(n),
    }
}

fn claims(n: u8, orphan: Option<u8>, forced: bool, next: &mut Next<'_>) {
    let from = next.from;
    let record = &from.record;
    let may_go_on = may_go_on(n, next.rules.planted, from);
    let has_twin = relies_on(n, next.rules.planted, from)
        && may_go_on
        && orphan.is_none_or(|orphan| orphan == record.epoch);
    let is_ours = record
        .buffer
        .is_none_or(|buffer| buffer == from.buffer(n) && may_go_on);
    let as_it_was = next.rules.lacks(Planted::ClaimJudgedEarly) && orphan == Some(record.epoch);
    let epoch = record.epoch + 1;
    if !(is_ours || has_twin || forced || as_it_was) || epoch >= next.rules.limits.epochs {
        return;
    }
    let rules = next.rules;
    next.go(Step::Claim(n), |s| {
        s.record.epoch = epoch;
        s.record.owner = n;
        s.record_written(rules);
        if !is_ours && !has_twin && forced {
            s.void_before = epoch;
            s.forced += 1;
        }
        s.nodes[usize::from(n)].phase = Phase::Claimed { epoch };
    });
}

fn begins(n: u8, epoch: u8, next: &mut Next<'_>) {
    let from = next.from;
    let rules = next.rules;
    let planted = rules.planted;
    if (from.record.owner, from.record.epoch) != (n, epoch) {
        return;
    }
    let is_ours = from.record.buffer.is_none_or(|buffer| buffer == from.buffer(n));
    let files_count = is_ours
        || relies_on(n, planted, from)
        || matches!(
            planted,
            Some(Planted::ForcedUsesGivenUpTwin | Planted::ClaimJudgedEarly)
        );
    let replayed = from.replay(n, files_count);
    next.go(Step::BeginEpoch(n), |s| {
        let node = &mut s.nodes[usize::from(n)];
        for (at, file) in node.files.iter_mut().enumerate() {
            if replayed.files & (1 << at) == 0 {
                *file = Sco::default();
            }
        }
        node.unsynced &= replayed.log;
        node.kept_for = epoch;
        node.phase = Phase::Serving(Owner::begun(epoch, replayed.log, replayed.next_sco));
        // What was not used was given up by whoever forced the claim.
        if s.void_before == epoch {
            s.acked &= replayed.log;
            s.flushed &= replayed.log;
        }
        s.record.buffer = Some(s.buffer(n));
        s.record.buffer_boot = s.nodes[usize::from(n)].boot;
        if planted != Some(Planted::BeginKeepsInSync) {
            s.record.without_twin();
        }
        s.record.starts[usize::from(epoch)] = replayed.next_sco;
        s.record_written(rules);
    });
}
