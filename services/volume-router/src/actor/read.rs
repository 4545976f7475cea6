//! Reads of the write buffer: extents become data, each cluster checked against its CRC.
//!
//! Keeps: nothing.
//! Order: that of the extents.
//! Crash: nothing.
//! Knows no clients. The same code runs on the volume's thread, for what is in memory, and on a blocking one.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::ReadExtent;
use sconce_schemas::{CLUSTER_LEN, ScoId, Slot};
use sconce_volume::Extent;

use super::locals::{Local, Locals};
use super::messages::BadExtent;
use crate::device::{BadCluster, ScoFile, check_clusters};

/// What a read found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The answer's extents.
    pub(super) extents: Vec<ReadExtent>,
    /// The data of its data extents.
    pub(super) data: BytesMut,
    /// Local copies that are not good. One whose object is stored is in `extents` as a location; where one is not,
    /// the read cannot be answered.
    pub(super) damage: Vec<BadExtent>,
}

/// A local SCO, as far as reads need it.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    header: ScoHeader,
    file: Arc<ScoFile>,
    stored: bool,
}

impl From<&Local> for Copy {
    fn from(local: &Local) -> Self {
        Self {
            header: local.header,
            file: Arc::clone(&local.file),
            stored: local.stored,
        }
    }
}

/// The local SCOs that these extents are in, held so that a blocking thread can read them.
pub(super) fn copies(extents: &[Extent], locals: &Locals) -> Vec<(ScoId, Copy)> {
    let mut copies: Vec<(ScoId, Copy)> = Vec::new();
    for extent in extents {
        if let Extent::Local { sco, .. } = extent
            && copies.iter().all(|(known, _)| known != sco)
            && let Some(local) = locals.get(*sco)
        {
            copies.push((*sco, local.into()));
        }
    }
    copies
}

/// Bytes of data that these extents have in the write buffer.
pub(super) fn local_len(extents: &[Extent]) -> usize {
    let length = |extent: &Extent| match extent {
        Extent::Local { crcs, .. } => crcs.len() * CLUSTER_LEN,
        _ => 0,
    };
    extents.iter().map(length).sum()
}

/// Reads what is in memory. `None`: something is not, [`read`] gets it.
pub(super) fn read_now(extents: &[Extent], locals: &Locals) -> Option<Outcome> {
    let mut outcome = Outcome {
        data: BytesMut::with_capacity(local_len(extents)),
        extents: Vec::with_capacity(extents.len()),
        damage: Vec::new(),
    };
    for extent in extents {
        match extent {
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } => {
                let copy = locals
                    .get(*sco)
                    .map(|local| (&local.header, &local.file, local.stored));
                let part = Part {
                    first_slot: *first_slot,
                    crcs,
                };
                if !outcome.take_local(*sco, copy, &part, true) {
                    return None;
                }
            }
            extent => outcome.take_other(extent),
        }
    }
    Some(outcome)
}

/// Reads everything. Blocks.
pub(super) fn read(extents: &[Extent], copies: &[(ScoId, Copy)]) -> Outcome {
    let mut outcome = Outcome {
        data: BytesMut::with_capacity(local_len(extents)),
        ..Outcome::default()
    };
    for extent in extents {
        match extent {
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } => {
                let copy = copies.iter().find(|(id, _)| id == sco);
                let copy = copy.map(|(_, copy)| (&copy.header, &copy.file, copy.stored));
                let part = Part {
                    first_slot: *first_slot,
                    crcs,
                };
                outcome.take_local(*sco, copy, &part, false);
            }
            extent => outcome.take_other(extent),
        }
    }
    outcome
}

/// Slots that follow each other.
struct Part<'a> {
    first_slot: Slot,
    crcs: &'a [u32],
}

impl Outcome {
    /// `false`: it is not in memory.
    fn take_local(
        &mut self,
        sco: ScoId,
        copy: Option<(&ScoHeader, &Arc<ScoFile>, bool)>,
        part: &Part<'_>,
        now: bool,
    ) -> bool {
        let start = self.data.len();
        let Some((header, file, stored)) = copy else {
            self.damage.push(BadExtent {
                sco,
                epoch: sconce_schemas::Epoch::NONE,
                stored: false,
                at: self.covered(),
                detail: "it is not in the write buffer".to_owned(),
            });
            return true;
        };
        let clusters = part.crcs.len();
        let read = if now {
            file.read_now(part.first_slot, clusters, &mut self.data)
        } else {
            file.read(part.first_slot, clusters, &mut self.data)
                .map(|()| true)
        };
        let checked = match read {
            Ok(false) => return false,
            Ok(true) => check_clusters(&self.data[start..], part.crcs).map_err(Bad::Cluster),
            Err(error) => Err(Bad::Device(error)),
        };
        if let Err(bad) = checked {
            self.data.truncate(start);
            self.damage.push(BadExtent {
                sco,
                epoch: header.epoch,
                stored,
                at: self.covered() + bad.at() * CLUSTER_LEN as u64,
                detail: bad.describe(part.first_slot),
            });
            self.extents.push(located(header, part));
            return true;
        }
        push_data(&mut self.extents, clusters);
        true
    }

    fn take_other(&mut self, extent: &Extent) {
        match extent {
            Extent::Zeros { length } => self.extents.push(ReadExtent::Zeros { length: *length }),
            Extent::Stored {
                volume,
                sco,
                epoch,
                version,
                first_slot,
                crcs,
            } => self.extents.push(ReadExtent::Located {
                volume: *volume,
                sco: *sco,
                epoch: *epoch,
                version: *version,
                first_slot: *first_slot,
                crcs: crcs.clone(),
            }),
            Extent::Local { .. } => {}
        }
    }

    /// Bytes that the extents so far cover.
    fn covered(&self) -> u64 {
        let length = |extent: &ReadExtent| match extent {
            ReadExtent::Data { length } | ReadExtent::Zeros { length } => u64::from(*length),
            ReadExtent::Located { crcs, .. } => (crcs.len() * CLUSTER_LEN) as u64,
        };
        self.extents.iter().map(length).sum()
    }

    /// The first part that is nowhere else.
    pub(super) fn lost(&self) -> Option<&BadExtent> {
        self.damage.iter().find(|bad| !bad.stored)
    }
}

fn push_data(extents: &mut Vec<ReadExtent>, clusters: usize) {
    let more = u32::try_from(clusters * CLUSTER_LEN).unwrap_or(u32::MAX);
    match extents.last_mut() {
        Some(ReadExtent::Data { length }) if length.checked_add(more).is_some() => *length += more,
        _ => extents.push(ReadExtent::Data { length: more }),
    }
}

fn located(header: &ScoHeader, part: &Part<'_>) -> ReadExtent {
    ReadExtent::Located {
        volume: header.volume,
        sco: header.id,
        epoch: header.epoch,
        version: 0,
        first_slot: part.first_slot,
        crcs: part.crcs.to_vec(),
    }
}

enum Bad {
    Cluster(BadCluster),
    Device(io::Error),
}

impl Bad {
    fn at(&self) -> u64 {
        match self {
            Bad::Cluster(bad) => bad.at as u64,
            Bad::Device(_) => 0,
        }
    }

    fn describe(&self, first: Slot) -> String {
        match self {
            Bad::Cluster(bad) => format!(
                "slot {} has CRC32C {:#010x}, not {:#010x}",
                usize::from(first.0) + bad.at,
                bad.found,
                bad.expected
            ),
            Bad::Device(error) => format!("slot {} cannot be read: {error}", first.0),
        }
    }
}

/// One cluster of the write buffer, from memory: `None` if it is not there.
pub(super) fn cluster_now(extent: &Extent, locals: &Locals) -> Option<Result<Bytes, BadExtent>> {
    read_now(std::slice::from_ref(extent), locals).map(one_cluster)
}

/// One cluster of the write buffer. Blocks.
pub(super) fn cluster(extent: &Extent, copies: &[(ScoId, Copy)]) -> Result<Bytes, BadExtent> {
    one_cluster(read(std::slice::from_ref(extent), copies))
}

fn one_cluster(outcome: Outcome) -> Result<Bytes, BadExtent> {
    match outcome.damage.into_iter().next() {
        Some(bad) => Err(bad),
        None => Ok(outcome.data.freeze()),
    }
}
