//! Bundles: what is left of several SCOs in one object (docs/decisions/0115), as each of the SCOs.
//!
//! Keeps: nothing.
//! Order: the index before what it describes.
//! Crash: nothing.
//! Knows no map.

use bytes::Bytes;
use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex, START_BYTES};
use sconce_schemas::wire::storage::OBJECT_BYTES_MAX;
use sconce_schemas::{CLUSTER_BYTES, DecodeError, Epoch, ObjectName, ScoId};

use crate::report::ProblemKind;
use crate::sco::{ScoFile, Written};
use crate::store::Store;
use crate::subject::{Spot, Subject, kind_of};

/// Bundles behind a SCO that are looked into for it, where no SCO table names one: as many as a storage-router does.
const LOOKED_INTO: usize = 256;

/// A bundle, as far as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) index: BundleIndex,
    pub(crate) whole: Option<Bytes>,
}

/// Whether this is the name of a bundle.
pub(crate) const fn is_bundle(name: ObjectName) -> bool {
    matches!(
        name,
        ObjectName::Sco {
            version: BUNDLE_FROM..,
            ..
        }
    )
}

/// Reads a bundle of this volume; what is wrong with it is told. `data`: all of it, else its index.
pub(crate) async fn read(
    store: &Store,
    subject: &mut Subject,
    spot: &Spot,
    name: ObjectName,
    data: bool,
) -> Option<Bundle> {
    let spot = spot.clone().object(name);
    let Some(copies) = subject.scos.get(&name).cloned() else {
        subject.tell(ProblemKind::Missing, &spot, "no back end has it");
        return None;
    };
    let lengths = store.length(name, &copies).await;
    // A copy that failed once is told once.
    let is_good = |copy: &usize| lengths.bad.iter().all(|bad| bad.backend != *copy);
    let good: Vec<usize> = copies.iter().copied().filter(is_good).collect();
    let length = subject.take(store, &spot, lengths)?;
    let want = if data { OBJECT_BYTES_MAX } else { CLUSTER_BYTES };
    let answers = store.read(name, &good, 0, want).await;
    let mut bytes = subject.take(store, &spot, answers)?;
    match BundleIndex::len_of(&bytes) {
        Ok(len) if len > bytes.len() && !data => {
            let answers = store.read(name, &good, 0, len as u64).await;
            bytes = subject.take(store, &spot, answers)?;
        }
        Ok(_) => {}
        Err(error) => {
            subject.tell(kind_of(&error), &spot, error);
            return None;
        }
    }
    let index = match decode(subject, &bytes, length) {
        Ok(index) => index,
        Err(error) => {
            subject.tell(kind_of(&error), &spot, error);
            return None;
        }
    };
    Some(Bundle {
        index,
        whole: data.then_some(bytes),
    })
}

fn decode(subject: &Subject, bytes: &[u8], length: u64) -> Result<BundleIndex, DecodeError> {
    let index = BundleIndex::from_bytes(bytes)?;
    if index.volume != subject.id {
        return Err(DecodeError::Value {
            what: "bundle",
            found: format!("of volume {}", index.volume),
            expected: "of the volume that its name says",
        });
    }
    if index.object_len() != length {
        let to_index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        return Err(DecodeError::Short {
            what: "bundle",
            have: to_index(length),
            need: to_index(index.object_len()),
        });
    }
    Ok(index)
}

/// A SCO in a bundle; what is wrong with it is told.
pub(crate) fn member(
    bundle: &Bundle,
    subject: &mut Subject,
    spot: &Spot,
    name: ObjectName,
    (sco, epoch): (ScoId, Epoch),
) -> Option<ScoFile> {
    let spot = spot.clone().object(name);
    match view(bundle, sco, epoch) {
        Ok(Some(file)) => Some(file),
        Ok(None) => {
            let what = format!("SCO {sco} of epoch {epoch} is not in this bundle");
            subject.tell(ProblemKind::Mismatch, &spot, what);
            None
        }
        Err(error) => {
            subject.tell(kind_of(&error), &spot, error);
            None
        }
    }
}

fn view(bundle: &Bundle, sco: ScoId, epoch: Epoch) -> Result<Option<ScoFile>, DecodeError> {
    let members = &bundle.index.members;
    let at = members
        .iter()
        .position(|member| (member.sco, member.epoch) == (sco, epoch));
    let Some((at, member)) = at.and_then(|at| Some((at, members.get(at)?))) else {
        return Ok(None);
    };
    let Some(head) = bundle.index.view(at)? else {
        return Ok(None);
    };
    let mut written = vec![None; usize::from(member.size.slots())];
    for kept in &member.kept {
        if let Some(slot) = written.get_mut(usize::from(kept.slot.0)) {
            *slot = Some(Written {
                address: kept.address,
                crc: kept.crc,
            });
        }
    }
    let whole = match &bundle.whole {
        None => None,
        Some(bytes) => {
            let range = head.packed_range(0, member.length);
            let to_index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let (from, to) = (to_index(range.start), to_index(range.end));
            Some(head.expand(0, member.length, bytes.slice(from..to.max(from)))?)
        }
    };
    Ok(Some(ScoFile {
        log: None,
        size: member.size,
        written,
        length: member.length,
        packed: Some(head),
        whole,
    }))
}

/// The bundle that has a SCO of which nobody says where it is: the first behind it that does.
pub(crate) async fn find(
    store: &Store,
    subject: &Subject,
    (sco, epoch): (ScoId, Epoch),
) -> Option<ObjectName> {
    let from = ObjectName::Sco {
        volume: subject.id,
        id: sco,
        epoch: Epoch::NONE,
        version: 0,
    };
    let bundles = subject.scos.range(from..).filter(|(name, _)| is_bundle(**name));
    for (name, copies) in bundles.take(LOOKED_INTO) {
        let start = store.read(*name, copies, 0, START_BYTES as u64).await.good;
        let len = start.and_then(|start| BundleIndex::len_of(&start).ok());
        let Some(len) = len else { continue };
        let bytes = store.read(*name, copies, 0, len as u64).await.good;
        let index = bytes.and_then(|bytes| BundleIndex::from_bytes(&bytes).ok());
        let has = |index: BundleIndex| index.members.iter().any(|m| (m.sco, m.epoch) == (sco, epoch));
        if index.is_some_and(has) {
            return Some(*name);
        }
    }
    None
}
