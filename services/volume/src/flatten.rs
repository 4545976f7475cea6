//! Flattening: a clone becomes independent of the volumes that it comes from.
//!
//! Keeps: how far the walk over the head's map is, and what is being copied.
//! Order: leaf after leaf: what an ancestor holds is copied, and a copy is appended only where the map still has the location
//! that was read, so a guest's write always wins. Then nodes that an ancestor stored are marked to be stored again. Once the
//! whole map was seen so, and no other root is older than that, the next manifest is independent; the registry hears of it
//! when that is stored, and only then may ancestors go.
//! Crash: what was copied is in the log. The walk begins again, and passes over what is done.
//! Knows no ancestor but by its place in the lineage; the host reads and paces.

use std::ops::ControlFlow;

use bytes::Bytes;
use sconce_schemas::checkpoint::{FANOUT, NodeRef};
use sconce_schemas::crc::crc32c;
use sconce_schemas::history::PointState;
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::LogRecord;
use sconce_schemas::manifest::FlattenState;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    BatchSeq, ByteLen, CLUSTER_BYTES, CLUSTER_LEN, CheckpointId, ClusterAddress, LineageIndex,
};

use crate::change::{Blocked, Change};
use crate::event::{Effect, Extent, SessionSlot, Ticket};
use crate::operations::Parked;
use crate::snapshots::{Ask, reject};
use crate::tree::Missing;
use crate::volume::Volume;

/// Leaves that one event looks at.
const LEAVES_STEP: usize = 16;
/// Clusters that one event appends.
const APPENDS_STEP: usize = 128;
/// Clusters of a leaf.
const LEAF: u64 = FANOUT as u64;

/// A clone on its way to independence.
#[derive(Debug)]
pub(crate) struct Flatten {
    /// From this checkpoint on nodes are stored whole, or as deltas on such nodes. Set when a checkpoint is frozen.
    from: Option<CheckpointId>,
    /// The head has nothing of an ancestor any more, neither clusters nor nodes: since this batch at the latest.
    clean: Option<BatchSeq>,
    /// The leaf that is looked at next begins here, or is behind.
    cursor: u64,
    job: Job,
    /// Until the next tick: something better is to be done, or something failed.
    paused: bool,
    copied: u64,
    trouble: Option<String>,
}

/// A cluster of an ancestor, to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Borrowed {
    address: ClusterAddress,
    location: Location,
}

#[derive(Debug)]
enum Job {
    /// Looking for what is to be copied.
    Looking,
    /// A node has to be loaded.
    Waiting(Box<Job>),
    /// The host reads them.
    Copying(Vec<Borrowed>),
    /// They are appended, from here on.
    Appending {
        clusters: Vec<(Borrowed, Bytes)>,
        at: usize,
    },
}

/// How far a clone is on its way to independence, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlattenStatus {
    /// What was copied since the volume was opened.
    pub copied: ByteLen,
    /// How much of the volume was looked at, in percent.
    pub percent: u8,
    /// Snapshots that were taken before the volume had nothing of its ancestors any more: while they are there, they need
    /// them. One without a name was removed, and its space is being counted.
    pub waits_for: Vec<String>,
    /// Its history reaches back to when it had something of its ancestors.
    pub waits_for_history: bool,
    /// What went wrong last; it is tried again.
    pub trouble: Option<String>,
}

/// Which stored nodes need nothing of an ancestor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnNodes {
    pub(crate) lineage: LineageIndex,
    pub(crate) from: CheckpointId,
}

impl OwnNodes {
    /// Whether the node is this volume's, and so is all that it is a delta on. Of one that was stored earlier that is known
    /// only if it is whole.
    pub(crate) fn has(&self, node: &NodeRef) -> bool {
        node.lineage == self.lineage && (node.chain == 0 || node.checkpoint >= self.from)
    }
}

impl Flatten {
    fn new(from: Option<CheckpointId>, clean: Option<BatchSeq>) -> Self {
        Self {
            from,
            clean,
            cursor: 0,
            job: Job::Looking,
            paused: false,
            copied: 0,
            trouble: None,
        }
    }

    /// As a manifest has it.
    pub(crate) fn restore(state: FlattenState) -> Self {
        Self::new(state.from, state.clean)
    }

    fn wants_turn(&self) -> bool {
        let can_go_on = matches!(self.job, Job::Looking | Job::Appending { .. });
        self.from.is_some() && self.clean.is_none() && !self.paused && can_go_on
    }

    fn pause(&mut self, trouble: impl Into<Option<String>>) {
        self.paused = true;
        self.job = Job::Looking;
        self.trouble = trouble.into().or(self.trouble.take());
    }
}

impl Volume {
    /// Whether nothing of the head is an ancestor's.
    pub(crate) fn is_own_alone(&self) -> bool {
        self.lineage.len() <= 1
            || self.independent
            || self.flatten.as_ref().is_some_and(|state| state.clean.is_some())
    }

    /// Whether what came from this batch on, and was not gone back behind it since, has nothing of an ancestor either.
    pub(crate) fn is_own_alone_since(&self, batch: BatchSeq) -> bool {
        let clean = self.flatten.as_ref().and_then(|flatten| flatten.clean);
        self.lineage.len() <= 1 || self.independent || clean.is_some_and(|clean| batch > clean)
    }

    /// Whether the volume is a clone that needs nothing of the volumes that it comes from: a stored manifest says so.
    #[must_use]
    pub const fn is_independent(&self) -> bool {
        self.independent
    }

    pub(crate) fn judge_flatten(&self) -> Result<Option<LogRecord>, Refusal> {
        let is_clean = self
            .flatten
            .as_ref()
            .is_some_and(|flatten| flatten.clean.is_some());
        if is_clean && self.history_borrows() {
            // The history gets a point behind it.
            return Ok(Some(LogRecord::Flatten));
        }
        if self.flatten.is_some() || self.independent {
            return Ok(None);
        }
        if self.lineage.len() <= 1 {
            return Err(reject(
                RefusalCode::Invalid,
                "it is no clone: it depends on no other volume",
            ));
        }
        Ok(Some(LogRecord::Flatten))
    }

    /// The record in the log: now, or in recovery.
    pub(crate) fn begin_flatten(&mut self) {
        if self.flatten.is_none() && !self.independent {
            self.flatten = Some(Flatten::new(None, None));
            // The next checkpoint says which nodes are old.
            self.checkpoints.manifest_due = true;
        }
    }

    /// The head is another: what it has is to be looked at anew, if it may have anything of an ancestor.
    pub(crate) fn flatten_anew(&mut self, is_own: bool) {
        if let Some(flatten) = self.flatten.as_mut().filter(|_| !is_own) {
            let copied = flatten.copied;
            *flatten = Flatten::new(flatten.from, None);
            flatten.copied = copied;
        }
    }

    /// A checkpoint is being frozen: what of this its manifest says, and which nodes it may store deltas on.
    pub(crate) fn freeze_flatten(&mut self) -> (Option<FlattenState>, Option<OwnNodes>, bool) {
        let independent = self.independent || self.may_be_independent();
        let Some(flatten) = &mut self.flatten else {
            return (None, None, independent);
        };
        let from = *flatten.from.get_or_insert(self.checkpoints.next_id);
        let state = FlattenState {
            from: flatten.from,
            clean: flatten.clean,
        };
        let nodes = OwnNodes {
            lineage: self.own_lineage(),
            from,
        };
        (Some(state).filter(|_| !independent), Some(nodes), independent)
    }

    /// Neither the head nor any other root has anything of an ancestor.
    fn may_be_independent(&self) -> bool {
        let is_clean = self
            .flatten
            .as_ref()
            .is_some_and(|flatten| flatten.clean.is_some());
        is_clean && self.snapshots.borrowing().next().is_none() && !self.history_borrows()
    }

    /// Whether moments of the history may have something of an ancestor. One of the batch in which the head became clean
    /// may be from before that.
    fn history_borrows(&self) -> bool {
        let clean = self.flatten.as_ref().and_then(|flatten| flatten.clean);
        let is_older = |base: &PointState| clean.is_none_or(|clean| base.covered <= clean);
        self.history.base().is_some_and(is_older)
    }

    /// A manifest is stored that says that the volume is independent.
    pub(crate) fn became_independent(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.independent, true) {
            self.flatten = None;
            self.origin = None;
            effects.push(Effect::Independent);
        }
    }

    /// How far it is; `None`: nobody asked for it, or it is done.
    #[must_use]
    pub fn flatten_status(&self) -> Option<FlattenStatus> {
        let flatten = self.flatten.as_ref()?;
        let end = self.size.clusters().0.max(1);
        let percent = if flatten.clean.is_some() {
            100
        } else {
            u8::try_from(flatten.cursor.min(end) * 100 / end).unwrap_or(100)
        };
        let waits_for = self.snapshots.borrowing();
        Some(FlattenStatus {
            copied: ByteLen(flatten.copied * CLUSTER_BYTES),
            percent,
            waits_for: waits_for.map(|snapshot| snapshot.label.name.clone()).collect(),
            waits_for_history: self.history_borrows(),
            trouble: flatten.trouble.clone(),
        })
    }

    /// Whether ticks are needed: something is to be copied.
    pub(crate) fn has_to_flatten(&self) -> bool {
        self.flatten
            .as_ref()
            .is_some_and(|flatten| flatten.clean.is_none())
    }

    pub(crate) fn wants_to_flatten(&self) -> bool {
        let is_busy = !self.held.is_empty() || self.log.is_opening() || self.has_to_reap();
        !is_busy && self.flatten.as_ref().is_some_and(Flatten::wants_turn)
    }

    /// A tick: goes on, unless there is something better to do.
    pub(crate) fn flatten_tick(&mut self, pressed: bool) {
        if let Some(flatten) = &mut self.flatten {
            flatten.paused = pressed;
        }
    }

    /// A turn.
    pub(crate) fn flatten_turn(&mut self, effects: &mut Vec<Effect>) {
        let Some(job) = self.take_flatten_job() else {
            return;
        };
        let stepped = match job {
            Job::Looking => self.look_for_borrowed(effects),
            Job::Appending { clusters, at } => self.append_copies(clusters, at, effects),
            Job::Waiting(_) | Job::Copying(_) => {
                self.put_flatten_job(job);
                Ok(())
            }
        };
        if let Err((missing, job)) = stepped {
            self.put_flatten_job(Job::Waiting(Box::new(job)));
            self.wait(missing, Some(Parked::Flatten), effects);
        }
    }

    /// The node that it waited for is there.
    pub(crate) fn flatten_resumed(&mut self) {
        if let Some(job) = self.take_flatten_job() {
            self.put_flatten_job(match job {
                Job::Waiting(job) => *job,
                other => other,
            });
        }
    }

    /// The node that it waited for cannot be had.
    pub(crate) fn flatten_failed(&mut self, refusal: &Refusal) {
        if let Some(flatten) = &mut self.flatten {
            flatten.pause(refusal.text.clone());
        }
    }

    fn take_flatten_job(&mut self) -> Option<Job> {
        let flatten = self.flatten.as_mut()?;
        Some(std::mem::replace(&mut flatten.job, Job::Looking))
    }

    fn put_flatten_job(&mut self, job: Job) {
        if let Some(flatten) = &mut self.flatten {
            flatten.job = job;
        }
    }

    /// Looks at the next leaves, until one has clusters of an ancestor.
    fn look_for_borrowed(&mut self, effects: &mut Vec<Effect>) -> Result<(), (Missing, Job)> {
        for leaf in 0..LEAVES_STEP {
            // One a tick at least, however little memory there is.
            if leaf > 0 && self.flatten_has_no_memory() {
                return Ok(());
            }
            let Some((cursor, from)) = self.flatten.as_ref().and_then(|f| Some((f.cursor, f.from?))) else {
                return Ok(());
            };
            let looking = |missing| (missing, Job::Looking);
            let Some(leaf) = self.next_leaf(cursor).map_err(looking)? else {
                self.all_looked_at(effects);
                return Ok(());
            };
            let borrowed = self.borrowed_in(leaf).map_err(looking)?;
            if !borrowed.is_empty() {
                self.copy(borrowed, effects).map_err(looking)?;
                return Ok(());
            }
            let own = OwnNodes {
                lineage: self.own_lineage(),
                from,
            };
            self.map.store_again(leaf, |node| !own.has(node));
            if let Some(flatten) = &mut self.flatten {
                flatten.cursor = leaf + LEAF;
            }
        }
        Ok(())
    }

    /// What is stored again has to stay in memory until it is: if there is no room for more, a checkpoint comes first.
    fn flatten_has_no_memory(&mut self) -> bool {
        if !self.has_no_memory_for_more() {
            return false;
        }
        if let Some(flatten) = &mut self.flatten {
            flatten.paused = true;
        }
        true
    }

    /// The first number of the leaf that has the first mapped cluster from `cursor` on.
    fn next_leaf(&self, cursor: u64) -> Result<Option<u64>, Missing> {
        let mut found = None;
        self.map.visit(cursor..u64::MAX, |number, _| {
            found = Some(number / LEAF * LEAF);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn borrowed_in(&self, leaf: u64) -> Result<Vec<Borrowed>, Missing> {
        let mut borrowed = Vec::new();
        self.map.visit(leaf..leaf + LEAF, |number, location| {
            if !location.reads_zeros() && !self.is_own(location) {
                let address = ClusterAddress(number);
                borrowed.push(Borrowed { address, location });
            }
            ControlFlow::Continue(())
        })?;
        Ok(borrowed)
    }

    fn copy(&mut self, borrowed: Vec<Borrowed>, effects: &mut Vec<Effect>) -> Result<(), Missing> {
        let mut extents: Vec<Extent> = Vec::new();
        for cluster in &borrowed {
            self.push_cluster(&mut extents, cluster.location)?;
        }
        self.put_flatten_job(Job::Copying(borrowed));
        effects.push(Effect::Copy { extents });
        Ok(())
    }

    /// The host read what was to be copied, cluster after cluster.
    pub(crate) fn copied(&mut self, result: Result<Vec<Bytes>, Refusal>) {
        let Some(flatten) = &mut self.flatten else { return };
        let Job::Copying(borrowed) = std::mem::replace(&mut flatten.job, Job::Looking) else {
            return;
        };
        let clusters = match result {
            Ok(clusters) => clusters,
            Err(refusal) => return flatten.pause(refusal.text),
        };
        let is_it = |(borrowed, bytes): (&Borrowed, &Bytes)| {
            bytes.len() == CLUSTER_LEN && crc32c(bytes) == borrowed.location.crc()
        };
        if clusters.len() != borrowed.len() || !borrowed.iter().zip(&clusters).all(is_it) {
            return flatten.pause("what was read is not what was asked for".to_owned());
        }
        flatten.trouble = None;
        flatten.job = Job::Appending {
            clusters: borrowed.into_iter().zip(clusters).collect(),
            at: 0,
        };
    }

    /// Appends copies of what the map has still.
    fn append_copies(
        &mut self,
        clusters: Vec<(Borrowed, Bytes)>,
        mut at: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<(), (Missing, Job)> {
        let end = (at + APPENDS_STEP).min(clusters.len());
        while at < end {
            let (Borrowed { address, location }, bytes) = &clusters[at];
            match self.append_copy(*address, *location, bytes, effects) {
                Ok(()) => at += 1,
                Err(Blocked::Node(missing)) => return Err((missing, Job::Appending { clusters, at })),
                Err(Blocked::Refused(refusal)) => {
                    if let Some(flatten) = &mut self.flatten {
                        flatten.pause(refusal.text);
                    }
                    return Ok(());
                }
                // It goes on once there is room.
                Err(Blocked::Room | Blocked::Fetch(_) | Blocked::Turn) => break,
            }
        }
        if at < clusters.len() {
            self.put_flatten_job(Job::Appending { clusters, at });
        }
        Ok(())
    }

    fn append_copy(
        &mut self,
        address: ClusterAddress,
        from: Location,
        bytes: &Bytes,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        if self.map.get(address.0)? != Some(from) {
            return Ok(());
        }
        self.need_slot(effects)?;
        let crc = from.crc();
        let (sco, slot) = self.log.next_slot();
        self.place(address, Location::new(self.own_lineage(), sco, slot, crc))?;
        self.log.push_cluster(address, crc, SessionSlot::NONE.0, 0, false);
        self.log.push_data(bytes.clone());
        if let Some(flatten) = &mut self.flatten {
            flatten.copied += 1;
        }
        Ok(())
    }

    /// The walk is at its end: from here on the head, and each root that comes from it, is the volume's own.
    fn all_looked_at(&mut self, effects: &mut Vec<Effect>) {
        let seq = self.last_seq();
        if let Some(flatten) = &mut self.flatten {
            flatten.clean = Some(seq);
        }
        self.checkpoints.manifest_due = true;
        if self.history_borrows() {
            self.take_change(Change::ask(Ticket::NOBODY, Ask::Flatten), effects);
        }
    }
}
