//! A snapshot of several volumes at one instant: who is told what, and when.
//!
//! Keeps: how far each volume is.
//! Order: all propose; once *all* have said that theirs is in their log, all confirm. Each volume holds the
//! acknowledgements of what comes after its proposal until it is confirmed, and refuses the confirmation if it did not
//! hold them all the while. So when all have confirmed, no acknowledgement left a volume between its own cut and the last
//! volume's: a write that was sent because another was acknowledged is in the cut only with that other.
//! Crash: proposals that nobody confirms are withdrawn by their volumes. Whoever is cut short while volumes confirm leaves
//! some of them with a snapshot whose group has fewer volumes than it says.
//! Knows no sockets and no time: it is told what was answered. A simulation does that too.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{SnapshotId, VolumeId};
use tokio::time::Instant;

use super::{Owners, PeerError};

/// How long a volume is given to propose: the first ones hold acknowledgements meanwhile, for two seconds at most.
const PROPOSE_DEADLINE: Duration = Duration::from_millis(1500);
/// How long a volume is given to confirm. What it was asked, it may do: so it is asked until it says.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(30);
/// How long a volume is given to forget it again, or to remove it.
const UNDO_DEADLINE: Duration = Duration::from_secs(5);

/// What a volume is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// Keep yourself as you are, and hold acknowledgements.
    Propose,
    /// It is a snapshot now.
    Confirm,
    /// Forget it.
    Withdraw,
    /// It was confirmed, and others were not: remove it.
    Remove,
}

/// Why a snapshot of several volumes was not taken: of which volume it is said, by its place, and what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupFailure {
    /// What went wrong.
    pub causes: Vec<(usize, String)>,
    /// Volumes that may have a snapshot all the same.
    pub left: Vec<(usize, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Proposing,
    Confirming,
    Undoing,
    Over,
}

#[derive(Debug, Clone, Copy, Default)]
struct Member {
    asked: Option<Say>,
    /// It may have one in its log.
    proposed: bool,
    confirmed: bool,
}

/// A snapshot of several volumes under way.
#[derive(Debug)]
pub struct GroupCut {
    members: Vec<Member>,
    phase: Phase,
    failure: GroupFailure,
}

impl GroupCut {
    /// Of so many volumes; and what to say to which.
    #[must_use]
    pub fn new(volumes: usize) -> (Self, Vec<(usize, Say)>) {
        let mut cut = Self {
            members: vec![Member::default(); volumes],
            phase: Phase::Proposing,
            failure: GroupFailure::default(),
        };
        let says = (0..volumes).map(|at| cut.say(at, Say::Propose)).collect();
        (cut, says)
    }

    /// A volume answered what it was told last, or did not: why not. What to say next.
    pub fn answered(&mut self, at: usize, answer: Result<(), String>) -> Vec<(usize, Say)> {
        let Some(said) = self.members.get_mut(at).and_then(|member| member.asked.take()) else {
            return Vec::new();
        };
        match (said, answer) {
            (Say::Propose, Ok(())) => self.members[at].proposed = true,
            (Say::Confirm, Ok(())) => self.members[at].confirmed = true,
            (Say::Withdraw | Say::Remove, Ok(())) => {}
            (Say::Propose | Say::Confirm, Err(cause)) => {
                // Without an answer it may have been done.
                self.members[at].proposed = true;
                self.failure.causes.push((at, cause));
            }
            // What could not be confirmed goes by itself.
            (Say::Withdraw | Say::Remove, Err(cause)) => {
                if self.phase == Phase::Undoing {
                    self.failure.left.push((at, cause));
                }
            }
        }
        self.next()
    }

    fn say(&mut self, at: usize, say: Say) -> (usize, Say) {
        self.members[at].asked = Some(say);
        (at, say)
    }

    fn next(&mut self) -> Vec<(usize, Say)> {
        let failed = !self.failure.causes.is_empty();
        let waits = self.members.iter().any(|member| member.asked.is_some());
        match self.phase {
            // Whoever holds acknowledgements is let go at once.
            Phase::Proposing if failed => {
                let says = self.undo();
                if !self.members.iter().any(|member| member.asked.is_some()) {
                    self.phase = Phase::Over;
                }
                says
            }
            Phase::Proposing if !waits => {
                self.phase = Phase::Confirming;
                (0..self.members.len())
                    .map(|at| self.say(at, Say::Confirm))
                    .collect()
            }
            Phase::Confirming if !waits && failed => {
                self.phase = Phase::Undoing;
                self.undo()
            }
            Phase::Confirming | Phase::Undoing if !waits => {
                self.phase = Phase::Over;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// What of it there may be, and is not being taken back yet.
    fn undo(&mut self) -> Vec<(usize, Say)> {
        let mut says = Vec::new();
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            if member.asked.is_none() && std::mem::take(&mut member.proposed) {
                let say = if member.confirmed {
                    Say::Remove
                } else {
                    Say::Withdraw
                };
                says.push(self.say(at, say));
            }
        }
        says
    }

    /// What came of it, once it is over.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<(), &GroupFailure>> {
        match self.phase {
            Phase::Over if self.failure.causes.is_empty() => Some(Ok(())),
            Phase::Over => Some(Err(&self.failure)),
            _ => None,
        }
    }
}

/// One volume's part.
#[derive(Debug, Clone)]
pub struct GroupMember {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot's id, another for each try.
    pub id: SnapshotId,
}

/// What all volumes' parts have.
#[derive(Debug, Clone)]
pub struct GroupLabel {
    /// The snapshots' name.
    pub name: String,
    /// What people want written down with them.
    pub metadata: std::collections::BTreeMap<String, String>,
}

impl Owners {
    /// Takes a snapshot of several volumes at one instant; tells for how long acknowledgements of writes were held at most.
    ///
    /// # Errors
    /// A volume's owner refused, was slow, or does not answer: then none has it, except those that are named.
    pub async fn snapshot_group(
        &self,
        members: &[GroupMember],
        label: &GroupLabel,
    ) -> Result<Duration, GroupFailure> {
        let begun = Instant::now();
        let (mut cut, mut says) = GroupCut::new(members.len());
        let mut asked = FuturesUnordered::new();
        let mut held = Duration::ZERO;
        loop {
            asked.extend(says.drain(..).filter_map(|(at, say)| {
                let member = members.get(at)?;
                Some(async move { (at, say, self.tell_member(member, label, say).await) })
            }));
            let Some((at, say, answer)) = asked.next().await else {
                break;
            };
            if say == Say::Confirm {
                held = begun.elapsed();
            }
            says = cut.answered(at, answer.map_err(|error| error.to_string()));
        }
        match cut.outcome() {
            Some(Err(failure)) => Err(failure.clone()),
            _ => Ok(held),
        }
    }

    async fn tell_member(&self, member: &GroupMember, label: &GroupLabel, say: Say) -> Result<(), PeerError> {
        let &GroupMember { volume, id } = member;
        let (control, deadline) = match say {
            Say::Propose => (
                VolumeControl::ProposeSnapshot {
                    volume,
                    id,
                    name: label.name.clone(),
                    metadata: label.metadata.clone(),
                },
                PROPOSE_DEADLINE,
            ),
            Say::Confirm => (VolumeControl::ConfirmSnapshot { volume, id }, CONFIRM_DEADLINE),
            Say::Withdraw => (VolumeControl::WithdrawSnapshot { volume, id }, UNDO_DEADLINE),
            Say::Remove => return self.remove_snapshot(volume, id, &label.name, UNDO_DEADLINE).await,
        };
        match self.call(volume, control, deadline).await {
            // Its confirmation was done and its answer lost.
            Err(PeerError::Refused(refusal))
                if say == Say::Withdraw && refusal.code == RefusalCode::Exists =>
            {
                self.remove_snapshot(volume, id, &label.name, UNDO_DEADLINE).await
            }
            answer => answer.map(drop),
        }
    }

    /// Removes a snapshot, marked in the registry meanwhile so that nobody clones it.
    ///
    /// # Errors
    /// It has clones, which are named; its owner does not answer or refuses.
    pub async fn remove_snapshot(
        &self,
        volume: VolumeId,
        id: SnapshotId,
        name: &str,
        deadline: Duration,
    ) -> Result<(), PeerError> {
        let removal = self.names.begin_removal(volume, id).await?;
        let remove = VolumeControl::RemoveSnapshot {
            volume,
            name: name.to_owned(),
            id: Some(id),
        };
        match self.call(volume, remove, deadline).await {
            Ok(_) => {}
            // An earlier answer was lost, or another was faster: it is gone.
            Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {}
            Err(error) => {
                // Without an answer the mark stays: the owner may still do it.
                if matches!(&error, PeerError::Refused(refusal) if is_final(refusal)) {
                    self.names.withdraw_removal(removal).await?;
                }
                return Err(error);
            }
        }
        Ok(self.names.end_removal(volume, id).await?)
    }
}

const fn is_final(refusal: &Refusal) -> bool {
    matches!(refusal.remedy, Remedy::Reject | Remedy::Damaged)
}
