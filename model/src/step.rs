//! What can happen next.
//!
//! Keeps: nothing.
//! Order: each step is atomic; what takes its time in the services is several.
//! Crash: a node does nothing for as long as it does nothing: that is how one that hangs looks.
//! Knows where each step's rule is: who does it is told by its module.

use crate::rules::Rules;
use crate::state::{NODES, State};
use crate::{claim, host, owner, world};

/// One step, by the name of the engine's event or effect where there is one (services/volume/src/event.rs). The first number is the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the modules that offer them say what they are")]
pub enum Step {
    Append(u8),
    AppendAtTwinAlone(u8),
    Reply(u8),
    CloseSco(u8),
    Upload(u8, u8),
    Synced(u8),
    Flushed(u8),
    SendsAttach(u8, u8),
    AttachUnanswered(u8),
    TwinAttached(u8),
    TwinCopied(u8, u8),
    TwinHeld(u8),
    TwinSynced(u8),
    RecordInSync(u8),
    TwinInSync(u8),
    TwinLost(u8),
    RecordDegraded(u8),
    DegradedAsRead(u8),
    Resumes(u8),
    Release(u8),
    HandOver(u8),
    HostReadsForAttach(u8, u8),
    HostAttaches(u8, u8),
    HostAppends(u8, u8),
    HostDetaches(u8, u8),
    StreamBreaks(u8),
    HostReadsRecord(u8),
    HostGivesUp(u8),
    StartsTakeover(u8),
    StartsForced(u8),
    Claim(u8),
    BeginEpoch(u8),
    InSyncIsWritten(u8),
    Stored(u8, u8),
    Crash(u8),
    NodeLost(u8),
    NodeReturns(u8),
    PowerLost(u8, u8),
}

/// What can happen next, and what it leads to.
pub(crate) struct Next<'a> {
    pub(crate) from: &'a State,
    pub(crate) rules: &'a Rules,
    pub(crate) found: Vec<(Step, State)>,
}

impl Next<'_> {
    pub(crate) fn go(&mut self, step: Step, change: impl FnOnce(&mut State)) {
        let mut next = *self.from;
        change(&mut next);
        self.found.push((step, next));
    }
}

/// All that can happen next.
pub(crate) fn steps(from: &State, rules: &Rules) -> Vec<(Step, State)> {
    let mut next = Next {
        from,
        rules,
        found: Vec::with_capacity(32),
    };
    for (n, node) in (0..rules.limits.nodes).zip(&from.nodes[..NODES]) {
        world::offer(n, &mut next);
        if !node.gone {
            owner::offer(n, &mut next);
            host::offer(n, &mut next);
            claim::offer(n, &mut next);
        }
    }
    world::offer_deliveries(&mut next);
    next.found
}
