//! Proposed snapshots: a volume's part of a snapshot of several volumes at one instant.
//!
//! Keeps: nothing; the table of snapshots has what is proposed, the frontier what is held.
//! Order: from its record on nothing that comes after it is acknowledged, until it is confirmed, withdrawn, or held for too
//! long. Whoever confirms does so after all volumes have theirs in the log: so a write that was sent because another was
//! acknowledged is in the snapshot of its volume only if the other is in that of its own.
//! Crash: a hold does not survive; what was not confirmed is removed by the next ownership.
//! Knows no other volumes and no clock: the host says how long is too long.

use std::collections::BTreeMap;

use sconce_schemas::SnapshotId;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::change::Change;
use crate::event::{Effect, Ticket};
use crate::snapshots::{Ask, reject};
use crate::volume::Volume;

type Judged = Result<Option<LogRecord>, Refusal>;

impl Volume {
    pub(crate) fn judge_proposal(
        &self,
        id: SnapshotId,
        name: &str,
        metadata: &BTreeMap<String, String>,
    ) -> Judged {
        match self.frontier.holding() {
            Some(held) if held == id => Ok(None),
            Some(_) => {
                let text =
                    "a snapshot of several volumes that this one is part of is just being taken; try again";
                Err(reject(RefusalCode::Conflict, text))
            }
            // Its place in the log is an old one: others may have gone on from there.
            None if self.snapshots.get(id).is_some() => Err(hold_is_over(id)),
            None => {
                let snapshot = self.new_label(id, name, metadata)?;
                Ok(Some(LogRecord::SnapshotProposed { snapshot }))
            }
        }
    }

    pub(crate) fn judge_confirmation(&self, id: SnapshotId) -> Judged {
        match self.snapshots.standing(id) {
            Some(known) if !known.proposed => Ok(None),
            Some(_) if self.frontier.holding() == Some(id) => Ok(Some(LogRecord::SnapshotConfirmed { id })),
            _ => Err(hold_is_over(id)),
        }
    }

    pub(crate) fn judge_withdrawal(&self, id: SnapshotId) -> Judged {
        match self.snapshots.standing(id) {
            None => Ok(None),
            Some(known) if known.proposed => Ok(Some(LogRecord::SnapshotRemoved { id })),
            Some(known) => {
                let text = format!(
                    "snapshot {:?} was confirmed; remove it by its name",
                    known.label.name
                );
                Err(reject(RefusalCode::Exists, text))
            }
        }
    }

    /// A record is about to be applied, not in recovery: it begins or ends what is held.
    pub(crate) fn hold_for(&mut self, record: &LogRecord, effects: &mut Vec<Effect>) {
        match record {
            LogRecord::SnapshotProposed { snapshot } => {
                let snapshot = snapshot.id;
                self.frontier.hold(snapshot, self.last_seq());
                effects.push(Effect::Hold { snapshot });
            }
            LogRecord::SnapshotConfirmed { id } | LogRecord::SnapshotRemoved { id } => {
                self.frontier.let_go(*id);
            }
            _ => {}
        }
    }

    /// Removes what was proposed and can no longer be confirmed: nobody may be there who does.
    pub(crate) fn withdraw_abandoned(&mut self, effects: &mut Vec<Effect>) {
        let Some(id) = self.snapshots.first_proposed() else {
            return;
        };
        if self.frontier.holding() != Some(id) && self.held.is_empty() {
            self.take_change(Change::ask(Ticket::NOBODY, Ask::Withdraw { id }), effects);
        }
    }
}

fn hold_is_over(id: SnapshotId) -> Refusal {
    let text = format!(
        "acknowledgements were not held for snapshot {id} until all volumes had theirs: it was slow, or started again"
    );
    reject(RefusalCode::Conflict, text)
}
