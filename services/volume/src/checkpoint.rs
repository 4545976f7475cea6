//! Checkpoints: when one is due, what it freezes, and what follows once it is stored.
//!
//! Keeps: the checkpoint under way, who waits for it, and what the newest manifest covers.
//! Order: SCOs and map objects first, in any order; then the manifest; then local SCOs may be taken away.
//! Crash: a checkpoint without its manifest is garbage; the manifest before it stands.
//! Knows no storage.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use sconce_schemas::history::HistoryState;
use sconce_schemas::ids::Location;
use sconce_schemas::manifest::{CondemnedState, FlattenState, Manifest, SessionState, SnapshotState};
use sconce_schemas::wire::volume::{VolumeControlReply, VolumeReply};
use sconce_schemas::{
    BatchSeq, CheckpointId, DecodeError, Epoch, LineageIndex, ManifestSeq, ScoId, SnapshotId, VolumeId,
    VolumeSize,
};

use crate::event::{CheckpointObject, Effect, StoredRoots, Ticket};
use crate::scos::ScoState;
use crate::snapshots::{FrozenSnapshot, StoredSnapshot, fill_in};
use crate::tree::{DeltaBases, Encoder, FrozenTree};
use crate::volume::Volume;

/// When a checkpoint is due.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointPolicy {
    /// TLog entries since the last one: bounds the replay of a restart.
    pub entries_max: u64,
    /// Microseconds without a change, if there is anything to store.
    pub idle_us: u64,
    /// Microseconds since the first change that no manifest covers.
    pub age_us: u64,
    /// Bytes of checkpoint objects that are stored at least before the head's trees are stored anew.
    pub renewal_bytes: u64,
    /// Nodes that one event lets be stored again: some ten microseconds.
    pub renewal_step: u16,
}

impl Default for CheckpointPolicy {
    /// Half a second's worth of TLogs at a million entries a second; idle for 5 s; a minute old.
    fn default() -> Self {
        Self {
            entries_max: 500_000,
            idle_us: 5_000_000,
            age_us: 60_000_000,
            renewal_bytes: 4 << 20,
            renewal_step: 16,
        }
    }
}

/// A volume's trees at one moment, to be encoded beside the volume.
#[derive(Debug)]
pub struct Frozen {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: Epoch,
    pub(crate) lineage: LineageIndex,
    pub(crate) first: CheckpointId,
    pub(crate) map: FrozenTree<Location>,
    pub(crate) scos: FrozenTree<ScoState>,
    /// Snapshots whose maps are not stored yet.
    pub(crate) snapshots: Vec<FrozenSnapshot>,
    /// Only on these nodes deltas are stored.
    pub(crate) bases: DeltaBases,
}

impl Frozen {
    /// Encodes what changed since the last checkpoint; only once for each frozen state.
    ///
    /// # Errors
    /// A node that cannot be encoded (its object would be too large): a bug.
    pub fn encode(&self) -> Result<(Vec<CheckpointObject>, StoredRoots), DecodeError> {
        let mut encoder =
            Encoder::new(self.volume, self.epoch, self.lineage, self.first).with_bases(self.bases);
        let map = encoder.tree(&self.map)?;
        let scos = encoder.tree(&self.scos)?;
        let mut snapshots = Vec::with_capacity(self.snapshots.len());
        for FrozenSnapshot {
            id,
            map,
            children,
            joined,
        } in &self.snapshots
        {
            let map = encoder.tree(map)?;
            let children = children
                .iter()
                .map(|child| encoder.tree(child))
                .collect::<Result<_, _>>()?;
            let joined = joined.as_ref().map(|child| encoder.tree(child)).transpose()?;
            snapshots.push(StoredSnapshot {
                id: *id,
                map,
                children,
                joined,
            });
        }
        let (objects, checkpoint) = encoder.finish();
        let bytes = objects.iter().map(|object| object.bytes.len() as u64).sum();
        Ok((
            objects,
            StoredRoots {
                map,
                scos,
                snapshots,
                checkpoint,
                bytes,
            },
        ))
    }
}

/// State of a volume's checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    pub(crate) policy: CheckpointPolicy,
    pub(crate) next_id: CheckpointId,
    pub(crate) next_manifest: ManifestSeq,
    /// The last batch that a stored manifest covers.
    pub(crate) covered: BatchSeq,
    /// The last SCO that a stored manifest covers.
    pub(crate) covered_sco: ScoId,
    /// A manifest is due though no batch is: none was ever stored, or the path changed.
    pub(crate) manifest_due: bool,
    /// TLog entries since the last freeze.
    pub(crate) entries: u64,
    /// Checkpoints that were frozen by this ownership, and the last of them that a stored manifest names.
    pub(crate) frozen: u64,
    pub(crate) stored: u64,
    /// The last stored manifest of this ownership, as far as map objects go; `None`: there is none yet.
    pub(crate) named: Option<Named>,
    first_change_us: u64,
    last_change_us: u64,
    running: Option<Running>,
    syncs: VecDeque<(BatchSeq, Ticket)>,
}

/// Which of the volume's checkpoints a stored manifest leads to.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) manifest: ManifestSeq,
    /// The newest.
    pub(crate) upto: CheckpointId,
    pub(crate) ranges: Vec<RangeInclusive<CheckpointId>>,
}

/// The checkpoint under way: what was true when its trees were frozen.
#[derive(Debug)]
struct Running {
    frozen: Arc<Frozen>,
    /// Its number among those of this ownership.
    number: u64,
    covered: BatchSeq,
    covered_sco: ScoId,
    size: VolumeSize,
    allocated: u64,
    scos: u64,
    sessions: Vec<SessionState>,
    snapshots: Vec<SnapshotState>,
    gone_snapshots: Vec<SnapshotId>,
    history: HistoryState,
    /// Its last point is this checkpoint.
    is_point: bool,
    condemned: Vec<CondemnedState>,
    parent: Option<SnapshotId>,
    read_only: bool,
    flatten: Option<FlattenState>,
    independent: bool,
    roots: Option<StoredRoots>,
    manifest: Option<Named>,
}

impl Checkpoints {
    pub(crate) fn new(policy: CheckpointPolicy, manifest: Option<&Manifest>) -> Self {
        Self {
            policy,
            next_id: manifest.map_or(CheckpointId::FIRST, |m| m.checkpoint.next()),
            next_manifest: manifest.map_or(ManifestSeq::FIRST, |m| m.seq.next()),
            covered: manifest.map_or(BatchSeq::NONE, |m| m.covered),
            covered_sco: manifest.map_or(ScoId::NONE, |m| m.covered_sco),
            manifest_due: manifest.is_none(),
            entries: 0,
            frozen: 0,
            stored: 0,
            named: None,
            first_change_us: 0,
            last_change_us: 0,
            running: None,
            syncs: VecDeque::new(),
        }
    }

    /// A batch of this many entries left.
    pub(crate) fn changed(&mut self, entries: u64, now_us: u64) {
        if self.entries == 0 {
            self.first_change_us = now_us;
        }
        self.entries += entries;
        self.last_change_us = now_us;
    }

    /// Whether anything is not covered by a stored manifest.
    pub(crate) fn dirty(&self, appended: BatchSeq) -> bool {
        self.manifest_due || self.running.is_some() || appended > self.covered
    }

    /// Whether a checkpoint is under way, up to its manifest.
    pub(crate) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The clock was set back to `now_us`.
    pub(crate) fn clock_set_back(&mut self, now_us: u64) {
        self.first_change_us = self.first_change_us.min(now_us);
        self.last_change_us = self.last_change_us.min(now_us);
    }

    fn due(&self, appended: BatchSeq, now_us: u64, pressed: bool) -> bool {
        let old = |since: u64, limit: u64| now_us.saturating_sub(since) >= limit;
        let aged =
            old(self.last_change_us, self.policy.idle_us) || old(self.first_change_us, self.policy.age_us);
        let wanted = pressed || !self.syncs.is_empty() || self.entries >= self.policy.entries_max || aged;
        self.running.is_none() && (self.manifest_due || (appended > self.covered && wanted))
    }

    /// Requests that wait for a manifest that covers everything up to their batch.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Ticket> {
        self.running = None;
        std::mem::take(&mut self.syncs)
            .into_iter()
            .map(|(_, ticket)| ticket)
    }
}

impl Volume {
    /// A control request: answer when everything up to here is stored.
    pub(crate) fn sync(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        self.end_batch(effects);
        let appended = self.frontier.appended();
        if !self.checkpoints.dirty(appended) {
            effects.push(done(ticket));
            return;
        }
        self.checkpoints.syncs.push_back((appended, ticket));
    }

    /// Begins a checkpoint if one is due: close the SCO, freeze the trees, ask for them to be stored.
    pub(crate) fn checkpoint_if_due(&mut self, pressed: bool, effects: &mut Vec<Effect>) {
        let is_due = self
            .checkpoints
            .due(self.frontier.appended(), self.now_us, pressed);
        // What is dead in SCOs whose counts are being loaded would be lost for ever.
        if !is_due || !self.unburied.is_empty() {
            return;
        }
        self.close_sco(effects);
        let mut snapshots = self.snapshots.freeze();
        snapshots.extend(self.moments.freeze());
        let (flatten, own, independent) = self.freeze_flatten();
        let bases = DeltaBases {
            own,
            from: self.freeze_renewal(),
        };
        let frozen = Arc::new(Frozen {
            volume: self.id,
            epoch: self.epoch,
            lineage: self.own_lineage(),
            first: self.checkpoints.next_id,
            map: self.map.freeze(),
            scos: self.scos.freeze(),
            snapshots,
            bases,
        });
        // An open SCO that is empty is not covered; neither is one that is being opened.
        let next = self.log.open_sco().unwrap_or(self.log.next_sco());
        let point = self.new_point(next.prev());
        let mut history = self.history.save(point.time_us);
        let is_point = self.history.frozen(point, &frozen.map);
        history.points.extend(is_point.then_some(point));
        self.checkpoints.frozen += 1;
        self.scrub.frozen();
        self.checkpoints.running = Some(Running {
            frozen: Arc::clone(&frozen),
            number: self.checkpoints.frozen,
            covered: self.frontier.appended(),
            covered_sco: next.prev(),
            size: self.size,
            allocated: self.map.count(),
            scos: self.scos.count(),
            sessions: self.sessions.save(),
            snapshots: self.snapshots.save(),
            gone_snapshots: self.snapshots.gone(),
            history,
            is_point,
            condemned: self.scrub.save(),
            parent: self.snapshots.parent(),
            read_only: self.read_only,
            flatten,
            independent,
            roots: None,
            manifest: None,
        });
        self.checkpoints.entries = 0;
        self.checkpoints.manifest_due = false;
        effects.push(Effect::StoreCheckpoint { frozen });
    }

    /// The checkpoint's objects are on the back ends.
    pub(crate) fn checkpoint_stored(&mut self, roots: StoredRoots) {
        if let Some(running) = &mut self.checkpoints.running {
            self.checkpoints.next_id = roots.checkpoint.next();
            self.renewal.stored(roots.bytes);
            running.roots = Some(roots);
        }
    }

    /// Writes the manifest once everything that it refers to is on the back ends.
    pub(crate) fn manifest_if_ready(&mut self, effects: &mut Vec<Effect>) {
        let seq = self.checkpoints.next_manifest;
        let Some(running) = &mut self.checkpoints.running else {
            return;
        };
        let Some(roots) = &running.roots else { return };
        if running.manifest.is_some() || !self.locals.stored_upto(running.covered_sco) {
            return;
        }
        let mut snapshots = std::mem::take(&mut running.snapshots);
        fill_in(&mut snapshots, &roots.snapshots);
        let mut history = std::mem::take(&mut running.history);
        if let Some(point) = history.points.last_mut().filter(|_| running.is_point) {
            (point.map, point.checkpoint) = (roots.map, roots.checkpoint);
        }
        let manifest = Manifest {
            volume: self.id,
            seq,
            epoch: self.epoch,
            path: self.path.clone(),
            pool: self.pool.clone(),
            size: running.size,
            sco_size: self.sco_size,
            read_only: running.read_only,
            allocated_clusters: running.allocated,
            map: roots.map,
            scos: roots.scos,
            scos_count: running.scos,
            covered: running.covered,
            covered_sco: running.covered_sco,
            checkpoint: roots.checkpoint,
            lineage: self.lineage.clone(),
            epochs: self.epochs.clone(),
            ancestor_epochs: self.ancestor_epochs.clone(),
            sessions: std::mem::take(&mut running.sessions),
            snapshots,
            gone_snapshots: running.gone_snapshots.clone(),
            condemned: running.condemned.clone(),
            parent: running.parent,
            origin: self.origin.filter(|_| !running.independent),
            flatten: running.flatten,
            independent: running.independent,
            history,
            renewal: self.renewal.save(),
        };
        running.manifest = Some(Named {
            manifest: seq,
            upto: roots.checkpoint,
            ranges: manifest.checkpoints(),
        });
        effects.push(Effect::StoreManifest {
            manifest: Box::new(manifest),
        });
    }

    /// The manifest is stored: what it covers is safe without the write buffer.
    pub(crate) fn manifest_stored(&mut self, seq: ManifestSeq, effects: &mut Vec<Effect>) {
        let is_it = |running: &mut Running| {
            running
                .manifest
                .as_ref()
                .is_some_and(|named| named.manifest == seq)
        };
        let Some(mut running) = self.checkpoints.running.take_if(is_it) else {
            return;
        };
        self.checkpoints.named = running.manifest.take();
        self.checkpoints.next_manifest = seq.next();
        self.checkpoints.covered = running.covered;
        if self.checkpoints.covered_sco != running.covered_sco {
            self.scrub.more_is_covered();
        }
        self.checkpoints.covered_sco = running.covered_sco;
        self.checkpoints.stored = running.number;
        self.scrub.manifest_stored(&running.condemned, self.now_us);
        drop(running.frozen);
        if running.independent {
            self.became_independent(effects);
        }
        if let Some(roots) = &running.roots {
            self.snapshots.stored(&roots.snapshots);
            self.moments_stored(&roots.snapshots, effects);
            self.point_stored(running.covered, roots.map, roots.checkpoint);
        }
        for sco in self.locals.covered(running.covered_sco) {
            effects.push(Effect::Evictable { sco });
        }
        self.release_twin(running.covered_sco, effects);
        self.checkpoint_is_over(effects);
        self.moments_have_room();
        self.scrub_sealed(effects);
        while let Some((_, ticket)) = self
            .checkpoints
            .syncs
            .front()
            .filter(|(upto, _)| *upto <= running.covered)
            .copied()
        {
            self.checkpoints.syncs.pop_front();
            effects.push(done(ticket));
        }
    }
}

fn done(ticket: Ticket) -> Effect {
    Effect::Reply {
        ticket,
        reply: VolumeReply::Control(VolumeControlReply::Done),
    }
}
