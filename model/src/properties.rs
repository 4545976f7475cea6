//! What has to hold in every state.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: a state in the middle of a restart or a takeover is one as any other.
//! Knows what guests were told, which no part of the protocol does.

use crate::rules::Limits;
use crate::state::{Buffer, Phase, State};

/// What is broken in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The owner in charge does not have a write that was acknowledged; so also where another one acknowledged it.
    Owner,
    /// The record says `InSync`, and the twin that it names does not have a write that was acknowledged.
    Twin,
    /// The record names a write buffer that is there, and what a restart would find there lacks a write that was acknowledged.
    Buffer,
    /// The back end has a SCO that is another than the one which the owner in charge has under that name.
    BackEnd,
    /// The owner's write buffer is there, or the record says `InSync` and the twin's is: and nothing leads to the volume being served.
    Stuck,
}

pub(crate) fn broken(s: &State) -> Option<Broken> {
    let record = &s.record;
    let misses = |log: u8| s.acked & !log != 0;
    let in_charge = s.owner(record.owner).filter(|owner| owner.epoch == record.epoch);
    if let Some(owner) = in_charge {
        if misses(owner.log) {
            return Some(Broken::Owner);
        }
        if contradicts(s) {
            return Some(Broken::BackEnd);
        }
    }
    if let Some(twin) = record.in_sync
        && s.is_here(twin)
        && s.may_go_on(twin.node)
        && misses(s.replay(twin.node, true).log)
    {
        return Some(Broken::Twin);
    }
    match record.buffer {
        Some(buffer) if s.is_here(buffer) && s.may_go_on(buffer.node) => {
            misses(s.replay(buffer.node, true).log).then_some(Broken::Buffer)
        }
        None => misses(s.replay(record.owner, false).log).then_some(Broken::Buffer),
        Some(_) => None,
    }
}

/// Whether an object is of the log of the owner in charge, and another than its file.
fn contradicts(s: &State) -> bool {
    let files = &s.nodes[usize::from(s.record.owner)].files;
    files.iter().enumerate().any(|(at, file)| {
        let object = &s.objects[s.record.epoch_at(at)][at];
        let is_named = file.batches != 0 && usize::from(file.epoch) == s.record.epoch_at(at);
        object.stored && is_named && object.sco != *file
    })
}

/// Whether the volume is to be served again by those who are there: the owner's write buffer is, or nobody needs one; or, what this is
/// about, the record relies on a twin whose host is; and that has not lost power, unless all that the record names is there and has.
pub(crate) fn can_be_served(s: &State, limits: &Limits) -> bool {
    let may_go_on = |buffer: Buffer| s.is_here(buffer) && s.may_go_on(buffer.node);
    let record = &s.record;
    let has_epochs = record.epoch + 1 < limits.epochs;
    has_epochs && (record.buffer.is_none_or(may_go_on) || record.in_sync.is_some_and(may_go_on))
}

/// Whether it depends on the twin alone: the owner is gone for good.
pub(crate) fn is_left_to_twin(s: &State, limits: &Limits) -> bool {
    let is_gone = s
        .record
        .buffer
        .is_some_and(|buffer| s.nodes[usize::from(buffer.node)].gone);
    is_gone && can_be_served(s, limits)
}

/// Whether the owner in charge serves.
pub(crate) fn is_served(s: &State) -> bool {
    match &s.nodes[usize::from(s.record.owner)].phase {
        Phase::Serving(owner) => owner.epoch == s.record.epoch,
        _ => false,
    }
}
