//! The life of a volume at its owner: claimed, recovered, served, released.
//!
//! Keeps: nothing between starts; the registry's record and the headers of the write buffer do.
//! Order: claim (epoch + 1), recover, seal, note where the epoch's SCOs begin and in which buffer, serve.
//! Crash: at any point the next claim takes a higher epoch and begins again.
//! Knows the engine by its recovery; knows no clients.

mod ancestor;
mod epochs;
pub(crate) mod erasure;
mod manifest;
mod origin;
mod path;
pub(crate) mod record;
mod recover;

use std::sync::Arc;

use sconce_registry::{Registry, RegistryError};
use sconce_runtime::crash::{Point, hit};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::{EpochStart, ManifestRef, VolumeRecord, keys};
use sconce_schemas::wire::event::OwnedWhy;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, Epoch, NodeName, ScoId, VolumeId};
use sconce_volume::{CloneOf, Recovered, Seal, Volume, VolumeConfig};

use crate::actor::Shard;
use crate::background::{StoreError, Subject};
use crate::device::FoundSco;
use crate::node::Node;
use record::{Claimant, Ownership, RecordError, TakeOver};

pub(crate) use ancestor::{AncestorRoot, find as find_ancestor};
pub(crate) use epochs::is_of_the_log;
pub(crate) use path::of as path_of;

/// A volume that is ready to be served.
pub(crate) struct Owned {
    /// The engine.
    pub(crate) volume: Volume,
    /// What recovery found.
    pub(crate) recovered: Recovered,
    /// The volume, for messages and the back ends.
    pub(crate) subject: Subject,
    /// The ownership.
    pub(crate) ownership: Ownership,
    /// The registry's record.
    pub(crate) record: VolumeRecord,
    /// Volume ids of the lineage, this volume last.
    pub(crate) lineage: Arc<[VolumeId]>,
    /// The manifest that recovery began with.
    pub(crate) manifest: Option<ManifestRef>,
    /// Files in the write buffer that it went on without: of a twin that was given up.
    pub(crate) unused: Vec<FoundSco>,
    /// Who had the volume before it was moved here.
    pub(crate) moved_from: Option<NodeName>,
}

/// What tries to start a volume have found out, for messages: it outlives those that fail.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// The volume's path.
    pub(crate) path: Option<Arc<str>>,
    /// Who owned it before the first claim of this process, and why it is here since.
    pub(crate) came: Option<(NodeName, OwnedWhy)>,
}

impl Known {
    /// The claim succeeded.
    fn claimed(&mut self, before: &VolumeRecord, claimant: &Claimant) {
        let asked = claimant.takeover;
        // Whoever moved it here has named this node as its owner.
        let moved = before.moving.as_ref().filter(|moving| moving.to == claimant.node);
        let from = moved.map_or(&before.owner, |moving| &moving.from);
        let why = match before.owner == claimant.node {
            _ if asked.is_some_and(|asked| asked.force) => OwnedWhy::Forced,
            true if before.epoch == Epoch::NONE => OwnedWhy::Created,
            true if moved.is_some() => OwnedWhy::Moved,
            true => OwnedWhy::Start,
            false if asked.is_some_and(|asked| asked.orphaned) => OwnedWhy::TwinHost,
            false => OwnedWhy::Operator,
        };
        self.came.get_or_insert_with(|| (from.clone(), why));
    }
}

/// Why a volume is not served.
#[derive(Debug)]
pub(crate) enum StartError {
    /// It is not for this node, now: what to answer. Its files stay.
    Refused(Refusal),
    /// The same, and the record proves that nobody needs its files.
    Over(Refusal),
    /// The same, because something of it is damaged: not to be tried again at every question, as each try is an epoch.
    Stuck(Refusal),
    /// Something is missing that comes back: try again.
    Later(Refusal),
    /// The same, and what is missing is on its way: nobody has to look at it.
    Soon(Refusal),
}

impl StartError {
    /// What to answer.
    pub(crate) const fn refusal(&self) -> &Refusal {
        match self {
            StartError::Refused(refusal)
            | StartError::Over(refusal)
            | StartError::Stuck(refusal)
            | StartError::Later(refusal)
            | StartError::Soon(refusal) => refusal,
        }
    }
}

impl From<RecordError> for StartError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Refused(refusal) => StartError::Refused(refusal),
            RecordError::Unavailable(text) => {
                StartError::Later(Refusal::retry(RefusalCode::Unavailable, text))
            }
        }
    }
}

impl From<sconce_registry::RegistryError> for StartError {
    fn from(error: sconce_registry::RegistryError) -> Self {
        RecordError::from(error).into()
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        StartError::Later(error.refusal())
    }
}

/// Claims a volume and recovers it. `takeover`: what a person asked for; gone where it is about another ownership. `found`: the
/// volume's files in the write buffer, in any order. A twin that the shard keeps of the volume ends before the claim; its files are among
/// the found ones then, and are the caller's ([`crate::twin::Twins::take_sealed`]) however this ends.
pub(crate) async fn start(
    shard: &Shard,
    id: VolumeId,
    (takeover, so_far): (&mut Option<TakeOver>, &mut Known),
    found: &[FoundSco],
) -> Result<Owned, StartError> {
    let node = &shard.node;
    let before = match record::read(&node.registry, id).await {
        Ok((record, _)) => record,
        Err(RecordError::Refused(_)) if !found.is_empty() => {
            return Err(StartError::Refused(without_record(id, found.len())));
        }
        Err(error) => return Err(error.into()),
    };
    takeover.take_if(|asked| !asked.is_about(&before, &node.name));
    let path = path_of(&node.registry, &before).await?;
    so_far.path = Some(path.as_str().into());
    let subject = Subject {
        volume: id,
        path: path.as_str().into(),
        pool: before.pool.as_str().into(),
    };
    let mut claimant = Claimant {
        node: node.name.clone(),
        buffer: node.device.identity().clone(),
        takeover: *takeover,
        judged: before.epoch,
        orphan: None,
        epochs_used: epochs_of(found),
        lost_power: record::seen_to_lose_power(&node.registry, &before, node.device.identity()).await?,
    };
    if let Err(refusal) = record::may_claim(&before, &claimant, &path) {
        let over = refusal.code != RefusalCode::WaitsForOwner
            && record::leaves_nothing(&before, node.device.id(), epochs_of(found));
        return Err(match over {
            true => StartError::Over(refusal),
            false => StartError::Refused(refusal),
        });
    }
    let relies_on_twin = record::relies_on_twin(&before, &node.name, node.device.id());
    if relies_on_twin && before.owner != node.name && !takeover.is_some_and(|takeover| takeover.force) {
        owner_is_gone(&node.registry, &before, *takeover, &path).await?;
        claimant.orphan = Some(before.epoch);
    }
    let manifest = manifest::newest(node, &subject, &before, found.is_empty()).await?;
    // Before the claim: while a clone waits for its parent, its tries cost no epochs.
    let origin = match (&manifest, before.origin) {
        (None, Some(origin)) => Some(origin::find(node, &subject, origin).await?),
        _ => None,
    };
    // From here on the owner before acknowledges nothing that relies on a twin here, whoever wins.
    let sealed = shard.twins.seal(id);
    if claimant.orphan.is_some() {
        // It may have come back while the manifest was looked for: it would go on answering reads until it hears of this.
        owner_is_gone(&node.registry, &before, *takeover, &path).await?;
    }
    let found = &[found, &sealed].concat();
    let newest = manifest.as_ref().map_or(Epoch::NONE, |manifest| manifest.epoch);
    claimant.epochs_used = epochs_of(found).max(newest);
    let claimed = record::claim(&node.registry, id, &claimant, &path, &node.clock).await?;
    let buffer_is_ours = claimed.buffer.as_deref() == Some(node.device.id());
    so_far.claimed(&before, &claimant);
    let known = manifest.as_ref().map(|manifest| (manifest.epoch, manifest.seq));
    if claimed.manifest.map(|named| (named.epoch, named.seq)) > known {
        // The owner before stored another one meanwhile: what that condemns may be deleted by now. It stores none after this.
        return Box::pin(start(shard, id, (takeover, so_far), found)).await;
    }
    let ownership = Ownership {
        node: node.name.clone(),
        epoch: claimed.epoch,
    };
    let by_manifest = manifest.as_ref().map_or(&[][..], |manifest| &manifest.epochs);
    // The record as the claim found it, but for the epoch that it took.
    let judged = VolumeRecord {
        epoch: before.epoch,
        ..claimed.clone()
    };
    let relies_on_twin = record::relies_on_twin(&judged, &node.name, node.device.id());
    let is_unused = |found: &FoundSco| {
        let of_the_stream = sealed.iter().any(|sealed| Arc::ptr_eq(&sealed.file, &found.file));
        !relies_on_twin
            && (of_the_stream || record::is_given_up_twin(&judged, node.device.id(), found.header.epoch))
    };
    let (unused, found): (Vec<FoundSco>, Vec<FoundSco>) = found.iter().cloned().partition(is_unused);
    let headers = found.iter().map(|found| (found.header.epoch, found.header.id));
    let known = epochs::known(&claimed.epochs, by_manifest, headers);
    // What the record says of its buffer it says of the last ownership that it knows.
    let last = known.epochs.last().map(|last| last.epoch);
    let last_of_record = claimed.epochs.last().map(|last| last.epoch);
    let last_is_here = known.last_from_headers || (buffer_is_ours && last == last_of_record);
    let source = recover::Source {
        background: node.background.clone(),
        device: node.device.clone(),
        subject,
        lineage: lineage_of(id, manifest.as_ref(), origin.as_ref()),
        sco_size: claimed.sco_size,
        found,
        force: takeover.is_some_and(|takeover| takeover.force),
        epoch_here: last.filter(|_| last_is_here),
    };
    let claimed = VolumeRecord {
        epochs: known.epochs,
        ..claimed
    };
    let mut owned = recover(node, source, ownership, claimed, (manifest, origin)).await?;
    owned.unused = unused;
    Ok(owned)
}

/// Whether the twin here is to be gone on from: the owner's node is not in the registry, or shows there that it cannot go on.
async fn owner_is_gone(
    registry: &Registry,
    before: &VolumeRecord,
    takeover: Option<TakeOver>,
    path: &str,
) -> Result<(), StartError> {
    let owner = registry.get(&keys::node(&before.owner)).await?;
    match before.buffer.is_some() && record::can_go_on(before, owner.as_ref()) {
        // It came back just now: nobody waits for anything.
        true if takeover.is_some_and(|takeover| takeover.orphaned) => {
            Err(StartError::Refused(record::not_owner(before, path)))
        }
        true => Err(StartError::Refused(record::owner_is_there(before, path))),
        false => Ok(()),
    }
}

async fn recover(
    node: &Arc<Node>,
    source: recover::Source,
    ownership: Ownership,
    claimed: VolumeRecord,
    (manifest, origin): (Option<Manifest>, Option<CloneOf>),
) -> Result<Owned, StartError> {
    let (subject, lineage) = (source.subject.clone(), Arc::clone(&source.lineage));
    let found = source.found.clone();
    let config = VolumeConfig {
        id: subject.volume,
        epoch: ownership.epoch,
        path: subject.path.to_string(),
        pool: subject.pool.to_string(),
        sco_size: claimed.sco_size,
        initial_size: claimed.initial_size,
        epochs: claimed.epochs.clone(),
        origin,
        map_memory: node.map_memory,
        checkpoint: node.checkpoint,
        scrub: node.scrub,
        sweep: node.sweep,
        dtl: claimed
            .moving
            .as_ref()
            .map_or(claimed.dtl_mode, |moving| moving.mode),
        dtl_behind: ByteLen(node.dtl.behind.bytes()),
    };
    let moved_from = claimed.moving.as_ref().map(|moving| moving.from.clone());
    let reference = manifest.as_ref().map(|manifest| ManifestRef {
        seq: manifest.seq,
        epoch: manifest.epoch,
    });
    let (volume, recovered) = recover::run(source, config, manifest).await?;
    hit(Point::DuringRecovery);
    seal(&found, recovered.seal).await?;
    let record = record::begin_epoch(
        &node.registry,
        subject.volume,
        &ownership,
        node.device.identity(),
        (&claimed.epochs, recovered.next_sco),
        &node.clock,
    )
    .await?;
    Ok(Owned {
        volume,
        recovered,
        subject,
        ownership,
        record,
        lineage,
        manifest: reference,
        unused: Vec::new(),
        moved_from,
    })
}

/// The registry knows nothing of a volume that this write buffer holds SCOs of.
fn without_record(id: VolumeId, scos: usize) -> Refusal {
    let text = format!(
        "the registry has no record of volume {id}, but this write buffer holds {scos} of its SCOs: they are kept. \
         Bring the registry's data back, or make the record anew with: sconce recover"
    );
    Refusal::retry(RefusalCode::Unavailable, text)
}

/// Volume ids of the lineage, this volume last.
fn lineage_of(volume: VolumeId, manifest: Option<&Manifest>, origin: Option<&CloneOf>) -> Arc<[VolumeId]> {
    let begun = || {
        let ancestors = origin.map_or(&[][..], |origin| &origin.manifest.lineage);
        ancestors.iter().copied().chain([volume]).collect()
    };
    manifest
        .map_or_else(begun, |manifest| manifest.lineage.clone())
        .into()
}

/// Makes sure that nothing behind the log's end is ever replayed.
async fn seal(found: &[FoundSco], seal: Option<Seal>) -> Result<(), StartError> {
    let Some(seal) = seal else { return Ok(()) };
    let last = found
        .iter()
        .find(|found| found.header.id == seal.sco && found.header.epoch == seal.epoch);
    let Some(file) = last.map(|found| Arc::clone(&found.file)) else {
        return Ok(());
    };
    let sealed = sconce_runtime::blocking(move || file.seal(seal.tlog_len).and_then(|()| file.sync())).await;
    sealed.map_err(std::io::Error::other).flatten().map_err(|error| {
        let text = format!("SCO {} cannot be sealed in the write buffer: {error}", seal.sco);
        StartError::Later(Refusal::retry(RefusalCode::Unavailable, text))
    })
}

/// The highest epoch that the write buffer has seen of the volume.
fn epochs_of(found: &[FoundSco]) -> Epoch {
    found
        .iter()
        .map(|found| found.header.epoch)
        .max()
        .unwrap_or(Epoch::NONE)
}

/// The ownership whose SCOs include `sco`.
pub(crate) fn epoch_at(epochs: &[EpochStart], sco: ScoId) -> Option<Epoch> {
    let start = epochs.iter().rev().find(|start| start.first_sco <= sco);
    start.map(|start| start.epoch)
}

/// Reads the record again: whether the ownership holds. Nobody can say that of one that is damaged: its volume is not served from here on, and waits
/// for the record alone, while the node's others go on.
pub(crate) async fn verify(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
) -> Result<(), RecordError> {
    let found = registry.get_record::<VolumeRecord>(&keys::volume(volume)).await;
    let holds = match found {
        Ok(Some((record, _))) => own.holds(&record),
        Ok(None) => Err(record::not_found(volume)),
        Err(error @ RegistryError::Damaged { .. }) => {
            Err(Refusal::retry(RefusalCode::Unavailable, error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    holds.map_err(RecordError::Refused)
}
