//! Changed blocks: what differs between two roots of one lineage.
//!
//! Keeps: the roots of ancestors that somebody compares with, a few of them, with the nodes that were loaded for that.
//! Order: an answer is of the moment when it is given; one that is about the head has every change that was applied before it
//! was asked for.
//! Crash: nothing survives; the question is asked again.
//! Knows no content: two clusters are the same if they are in the same place. One that was written again with what it
//! held counts as changed, nothing that changed is ever left out.

use std::ops::ControlFlow;

use sconce_schemas::checkpoint::NodeRecord;
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::TreeRoot;
use sconce_schemas::wire::volume::{ChangeKind, ChangedExtent, EXTENTS_MAX, IoCode, IoRequest, VolumeReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_BYTES, DecodeError, SnapshotId};

use crate::change::check_range;
use crate::event::{Effect, Ticket};
use crate::operations::Parked;
use crate::read::{clusters_of, trim};
use crate::snapshots::snapshot_gone;
use crate::tree::{Missing, StoredUpTo, Tree, adopt};
use crate::volume::Volume;

/// Pairs of nodes that one event compares: a fraction of a millisecond.
const PAIRS_MAX: u64 = 128;
/// Roots of ancestors that are kept at a time.
const FOREIGN_MAX: usize = 4;

/// What a root is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing: all that is mapped differs.
    Nothing,
    /// A snapshot of the volume.
    Snapshot(SnapshotId),
    /// The map of a snapshot of a volume that this one descends from, as that one's manifest has it.
    Ancestor(TreeRoot),
}

/// Two roots: what is looked at, and what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// The snapshot that is looked at; `None`: the volume.
    pub of: Option<SnapshotId>,
    /// What it is compared with.
    pub since: Base,
}

/// A request for changes, checked against the size of what is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) ticket: Ticket,
    compared: Compared,
    offset: u64,
    end: u64,
}

/// Roots of ancestors, the last used last.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    roots: Vec<(TreeRoot, Tree<Location>)>,
}

impl Foreign {
    /// Makes sure that a root is known.
    fn know(&mut self, root: TreeRoot) {
        let known = self.roots.iter().position(|(known, _)| *known == root);
        let entry = match known {
            Some(at) => self.roots.remove(at),
            None => (root, Tree::stored(root, 0)),
        };
        self.roots.push(entry);
        let more = self.roots.len().saturating_sub(FOREIGN_MAX);
        self.roots.drain(..more);
    }

    fn get(&self, root: TreeRoot) -> Option<&Tree<Location>> {
        let found = self.roots.iter().find(|(known, _)| *known == root);
        found.map(|(_, tree)| tree)
    }

    /// Puts a loaded node into every root that wants it.
    pub(crate) fn adopt(&mut self, missing: &Missing, records: &[NodeRecord]) -> Result<(), DecodeError> {
        let trees = self.roots.iter_mut().map(|(_, tree)| tree);
        adopt(trees, missing, records)
    }

    fn evict(&mut self, budget: u64, stored: StoredUpTo) {
        for (_, tree) in &mut self.roots {
            if tree.resident_bytes() > budget {
                tree.evict(budget / 2, stored);
            }
        }
    }
}

impl Volume {
    /// A request on two roots: what differs, or a flush, which has nothing to do.
    pub(crate) fn compared_io(
        &mut self,
        ticket: Ticket,
        compared: Compared,
        request: &IoRequest,
        effects: &mut Vec<Effect>,
    ) {
        match request.code {
            IoCode::Flush => effects.push(Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            }),
            IoCode::Changes => self.compare(ticket, compared, request, effects),
            _ => {
                let text = "what was opened to be compared is neither read nor written";
                let refusal = Refusal::reject(RefusalCode::Invalid, text);
                self.refuse(ticket, refusal, effects);
            }
        }
    }

    /// Answers what differs in a range.
    pub(crate) fn compare(
        &mut self,
        ticket: Ticket,
        compared: Compared,
        request: &IoRequest,
        effects: &mut Vec<Effect>,
    ) {
        let size = match compared.of {
            None => self.size,
            Some(id) => match self.snapshots.get(id) {
                Some(found) if found.removed.is_none() => found.size,
                _ => return self.refuse(ticket, snapshot_gone(), effects),
            },
        };
        match check_range(request, size) {
            Ok(end) => {
                let comparison = Comparison {
                    ticket,
                    compared,
                    offset: request.offset,
                    end,
                };
                self.run_comparison(comparison, effects);
            }
            Err(refusal) => self.refuse(ticket, refusal, effects),
        }
    }

    /// Takes a comparison as far as it goes now.
    pub(crate) fn run_comparison(&mut self, comparison: Comparison, effects: &mut Vec<Effect>) {
        if let Base::Ancestor(root) = comparison.compared.since {
            // Other comparisons may have taken its place while this one waited.
            self.foreign.know(root);
        }
        let changes = match self.changes(&comparison) {
            Some(Ok(changes)) => changes,
            Some(Err(missing)) => {
                return self.wait(missing, Some(Parked::Compare(comparison)), effects);
            }
            None => return self.refuse(comparison.ticket, snapshot_gone(), effects),
        };
        effects.push(Effect::Reply {
            ticket: comparison.ticket,
            reply: VolumeReply::Changes(changes),
        });
        let stored = self.stored_up_to();
        self.snapshots.evict(self.map_memory / 8, stored);
        self.foreign.evict(self.map_memory / 8, stored);
    }

    /// What differs, at least at the start of the range; `None`: one of the two is gone.
    fn changes(&self, comparison: &Comparison) -> Option<Result<Vec<ChangedExtent>, Missing>> {
        let nothing = Tree::default();
        let now = self.map_of(comparison.compared.of)?;
        let before = match comparison.compared.since {
            Base::Nothing => &nothing,
            Base::Snapshot(id) => self.map_of(Some(id))?,
            Base::Ancestor(root) => self.foreign.get(root)?,
        };
        let bytes = comparison.offset..comparison.end;
        let clusters = clusters_of(bytes.clone());
        let start = clusters.start;
        let (mut extents, mut next) = (Vec::new(), start);
        let mut visit = |number: u64, _: Option<Location>, now: Option<Location>| {
            push(&mut extents, ChangeKind::Same, number - next);
            push(&mut extents, kind_of(now), 1);
            next = number + 1;
            // The next one may make two more.
            if extents.len() + 2 > EXTENTS_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let upto = match before.diff_part(now, clusters, PAIRS_MAX, &mut visit) {
            Ok(upto) => upto,
            // What was seen before the missing node is an answer; without any, the node comes first.
            Err(missing) if missing.first() <= start => return Some(Err(missing)),
            Err(missing) => missing.first(),
        };
        push(&mut extents, ChangeKind::Same, upto.saturating_sub(next));
        Some(Ok(trim(extents, bytes, |extent| &mut extent.length)))
    }
}

fn kind_of(now: Option<Location>) -> ChangeKind {
    match now {
        None => ChangeKind::Hole,
        Some(location) if location.reads_zeros() => ChangeKind::Zeros,
        Some(_) => ChangeKind::Data,
    }
}

fn push(extents: &mut Vec<ChangedExtent>, kind: ChangeKind, clusters: u64) {
    let length = clusters * CLUSTER_BYTES;
    match extents.last_mut() {
        Some(last) if last.kind == kind => last.length += length,
        _ if length > 0 => extents.push(ChangedExtent { length, kind }),
        _ => {}
    }
}
