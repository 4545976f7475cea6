//! Reads: from the map to extents.
//!
//! Keeps: nothing; a read that needs a map node waits in the volume's table and starts again.
//! Order: a read sees every change that was applied before it, held or not.
//! Crash: reads leave nothing behind.
//! Knows no data: the host reads what the extents name and checks the CRCs.

use std::ops::ControlFlow;

use sconce_schemas::geometry::ByteLen;
use sconce_schemas::ids::Location;
use sconce_schemas::wire::volume::{EXTENTS_MAX, ExtentKind, ExtentStatus};
use sconce_schemas::{CLUSTER_BYTES, ClusterAddress, Slot, SnapshotId};

use crate::event::{Effect, Extent, Ticket};
use crate::scos::ScoState;
use crate::snapshots::snapshot_gone;
use crate::tree::{Missing, Tree};
use crate::volume::Volume;

/// Most mapped clusters that one extents request looks at: bounds the work of one event.
const EXTENTS_CLUSTERS_MAX: u64 = 1 << 20;
/// Longest run of zeros in one extent.
const ZEROS_MAX: u64 = 1 << 30;

/// A read or extents request, checked against the volume's size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub(crate) ticket: Ticket,
    /// The snapshot that is asked; `None`: the volume.
    pub(crate) of: Option<SnapshotId>,
    pub(crate) offset: u64,
    pub(crate) end: u64,
}

impl Query {
    /// Clusters that it covers.
    fn clusters(&self) -> std::ops::Range<u64> {
        clusters_of(self.offset..self.end)
    }
}

impl Volume {
    /// Emits the effect that answers a read.
    pub(crate) fn read(&mut self, query: &Query, effects: &mut Vec<Effect>) -> Result<(), Missing> {
        let clusters = query.clusters();
        let mut extents = Vec::with_capacity(1);
        let mut next = clusters.start;
        let mut pending = false;
        let mut missing = None;
        let Some(map) = self.map_of(query.of) else {
            self.refuse(query.ticket, snapshot_gone(), effects);
            return Ok(());
        };
        map.visit(clusters.clone(), |number, location| {
            push_zeros(&mut extents, number - next);
            next = number + 1;
            if location.reads_zeros() {
                push_zeros(&mut extents, 1);
            } else {
                pending |= self.log.is_pending(location.sco(), location.slot());
                if let Err(lacks) = self.push_cluster(&mut extents, location) {
                    missing = Some(lacks);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(missing) = missing {
            return Err(missing);
        }
        push_zeros(&mut extents, clusters.end - next);
        if pending || (self.twin.gates_reads() && self.log.has_bare_entries()) {
            // The read's clusters have to be in the file before the host reads them, and the twin told of what it shows.
            self.end_batch(effects);
        }
        self.answer_read(query, extents, effects);
        Ok(())
    }

    /// The map of a snapshot that exists, or the head's.
    pub(crate) fn map_of(&self, snapshot: Option<SnapshotId>) -> Option<&Tree<Location>> {
        let Some(id) = snapshot else {
            return Some(&self.map);
        };
        let found = self
            .snapshots
            .get(id)
            .filter(|snapshot| snapshot.removed.is_none());
        found.map(|snapshot| &snapshot.map)
    }

    /// The extent of one cluster, for a fetch.
    ///
    /// # Errors
    /// The node of the SCO table that has to be loaded first.
    pub(crate) fn extent_of(&self, location: Location) -> Result<Extent, Missing> {
        let mut extents = Vec::with_capacity(1);
        self.push_cluster(&mut extents, location)?;
        Ok(extents.pop().unwrap_or(Extent::Zeros { length: 4096 }))
    }

    /// The version of the object that holds a location. An ancestor's is not known here: its first, which a
    /// storage-router takes for the newest where it is gone.
    fn version_of(&self, location: Location) -> Result<u16, Missing> {
        if !self.is_own(location) {
            return Ok(0);
        }
        let state = self.scos.get(location.sco().0)?;
        Ok(state.map_or(0, ScoState::told_version))
    }

    pub(crate) fn push_cluster(&self, extents: &mut Vec<Extent>, location: Location) -> Result<(), Missing> {
        let (at_sco, at_slot, crc) = (location.sco(), location.slot(), location.crc());
        let local = self.is_own(location) && self.locals.has(at_sco);
        match extents.last_mut() {
            Some(Extent::Local {
                sco,
                first_slot,
                crcs,
            }) if local && *sco == at_sco && follows(*first_slot, crcs.len(), at_slot) => {
                crcs.push(crc);
            }
            Some(Extent::Stored {
                volume,
                sco,
                first_slot,
                crcs,
                ..
            }) if !local
                && *sco == at_sco
                && self.volume_of(location) == Some(*volume)
                && follows(*first_slot, crcs.len(), at_slot) =>
            {
                crcs.push(crc);
            }
            _ if local => {
                extents.push(Extent::Local {
                    sco: at_sco,
                    first_slot: at_slot,
                    crcs: vec![crc],
                });
            }
            _ => extents.push(Extent::Stored {
                volume: self.volume_of(location).unwrap_or(self.id),
                sco: at_sco,
                epoch: self.epoch_of(location),
                version: self.version_of(location)?,
                first_slot: at_slot,
                crcs: vec![crc],
            }),
        }
        Ok(())
    }

    /// Answers which parts of a range are data, zeros and holes; perhaps only its start.
    pub(crate) fn extents(&self, query: &Query) -> Result<Vec<ExtentStatus>, Missing> {
        let clusters = query.clusters();
        let (start, end) = (clusters.start, clusters.end);
        let mut extents: Vec<ExtentStatus> = Vec::new();
        let mut next = start;
        let mut seen = 0;
        let mut cut = false;
        let Some(map) = self.map_of(query.of) else {
            return Ok(Vec::new());
        };
        let visited = map.visit(clusters, |number, location| {
            push_status(&mut extents, ExtentKind::Hole, number - next);
            let kind = if location.reads_zeros() {
                ExtentKind::Zeros
            } else {
                ExtentKind::Data
            };
            push_status(&mut extents, kind, 1);
            next = number + 1;
            seen += 1;
            cut = extents.len() >= EXTENTS_MAX || seen >= EXTENTS_CLUSTERS_MAX;
            if cut {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        match visited {
            // What was seen before the missing node is an answer; without any, the node comes first.
            Err(missing) if next == start => return Err(missing),
            Ok(()) if !cut => push_status(&mut extents, ExtentKind::Hole, end - next),
            _ => {}
        }
        Ok(trim(extents, query.offset..query.end, |extent| {
            &mut extent.length
        }))
    }
}

fn follows(first: Slot, count: usize, slot: Slot) -> bool {
    usize::from(first.0) + count == usize::from(slot.0)
}

fn push_zeros(extents: &mut Vec<Extent>, clusters: u64) {
    let mut bytes = clusters * CLUSTER_BYTES;
    if let Some(Extent::Zeros { length }) = extents.last_mut()
        && let Ok(sum) = u32::try_from(u64::from(*length) + bytes)
        && u64::from(sum) <= ZEROS_MAX
    {
        *length = sum;
        return;
    }
    while bytes > 0 {
        let part = bytes.min(ZEROS_MAX);
        extents.push(Extent::Zeros {
            length: u32::try_from(part).unwrap_or(0),
        });
        bytes -= part;
    }
}

fn push_status(extents: &mut Vec<ExtentStatus>, kind: ExtentKind, clusters: u64) {
    let length = clusters * CLUSTER_BYTES;
    match extents.last_mut() {
        Some(last) if last.kind == kind => last.length += length,
        _ if length > 0 => extents.push(ExtentStatus { length, kind }),
        _ => {}
    }
}

/// Clusters that bytes lie in.
pub(crate) fn clusters_of(bytes: std::ops::Range<u64>) -> std::ops::Range<u64> {
    ClusterAddress::holding(bytes.start).0..ByteLen(bytes.end).clusters_ceil().0
}

/// Cuts cluster-aligned extents to the bytes that were asked for. `length`: that of one.
pub(crate) fn trim<T>(
    mut extents: Vec<T>,
    bytes: std::ops::Range<u64>,
    length: impl Fn(&mut T) -> &mut u64,
) -> Vec<T> {
    if let Some(first) = extents.first_mut() {
        *length(first) -= bytes.start % CLUSTER_BYTES;
    }
    let mut left = bytes.end - bytes.start;
    extents.retain_mut(|extent| {
        let length = length(extent);
        *length = left.min(*length);
        left -= *length;
        *length > 0
    });
    extents
}
