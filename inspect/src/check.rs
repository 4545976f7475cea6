//! The check: proves what the back ends hold of volumes consistent, or says what is not.
//!
//! Keeps: nothing between calls.
//! Order: manifests, then trees, then the SCOs that they refer to, then what nothing refers to. Ancestors before clones.
//! Crash: nothing; nothing is written.
//! Knows no registry and no write buffer: what is behind a volume's newest manifest it sees as the log that a start replays.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sconce_schemas::crc::crc32c;
use sconce_schemas::{BatchSeq, Epoch, ObjectName, ScoId, Slot, VolumeId};
use sconce_volume::ScoState;
use sconce_volume::stored::epoch_of_sco;

use crate::bundle::{self, Bundle};
use crate::claims::{Claims, ScoClaims, ScoKey};
use crate::maps;
use crate::orphans;
use crate::report::{BackendReport, ProblemKind, Report, Verdict, VolumeReport};
use crate::sco::{self, ScoFile};
use crate::store::{Store, StoreError};
use crate::subject::{Spot, Subject};
use crate::walk::{ByteOffsetChecked as _, Walk};

/// Slots whose claims are in memory at once: 24 bytes each, 768 MiB; 128 GiB of live data. What is more takes another walk.
const CLAIMS_MAX: usize = 32 << 20;

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// These volumes only; empty: all.
    pub volumes: Vec<VolumeId>,
    /// Whether each live cluster is read.
    pub data: bool,
    /// Slots whose claims are in memory at once; `None`: as many as a machine usually has room for.
    pub claims_max: Option<usize>,
}

/// What was found of a volume beside its problems.
#[derive(Debug, Clone, Default)]
struct Figures {
    live_slots: u64,
    dead_slots: u64,
    behind: u64,
    clusters_read: u64,
}

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    options: &'a Options,
    subjects: Vec<Subject>,
    numbers: HashMap<VolumeId, usize>,
    chosen: Vec<bool>,
    tables: Vec<BTreeMap<ScoId, ScoState>>,
    live_maps: HashSet<ObjectName>,
    /// SCO objects that a SCO table or a clone refers to.
    live_scos: HashSet<ObjectName>,
    nodes: Vec<u64>,
    figures: Vec<Figures>,
    /// Of each volume the last SCO that was judged, and its last batch.
    last: Vec<Option<(ScoId, BatchSeq)>>,
    /// The bundle that was read last: its SCOs are neighbours. `None`: it was told why it could not be read.
    bundle: Option<(ObjectName, Option<Bundle>)>,
}

/// Checks volumes.
///
/// # Errors
/// A back end cannot be listed.
pub async fn check(store: &Store, options: &Options) -> Result<Report, StoreError> {
    let mut subjects = Vec::new();
    for volume in store.volumes().await? {
        subjects.push(Subject::open(store, volume).await?);
    }
    let depth = |subject: &Subject| {
        subject
            .manifest
            .as_ref()
            .map_or(0, |manifest| manifest.lineage.len())
    };
    subjects.sort_by_key(|subject| (depth(subject), subject.id));
    let numbers: HashMap<VolumeId, usize> = subjects.iter().map(|subject| subject.id).zip(0..).collect();
    let is_chosen = |id: VolumeId| options.volumes.is_empty() || options.volumes.contains(&id);
    let count = subjects.len();
    let mut check = Check {
        store,
        options,
        chosen: subjects.iter().map(|subject| is_chosen(subject.id)).collect(),
        numbers,
        tables: vec![BTreeMap::new(); count],
        live_maps: HashSet::new(),
        live_scos: HashSet::new(),
        nodes: vec![0; count],
        figures: vec![Figures::default(); count],
        last: vec![None; count],
        bundle: None,
        subjects,
    };
    check.trees_and_scos().await;
    check.logs_behind().await;
    check.map_objects().await;
    check.ancestors();
    Ok(check.report().await)
}

impl Check<'_> {
    /// Whether a volume's trees are walked: it is chosen, or reads from one that is.
    fn is_walked(&self, number: usize) -> bool {
        let manifest = self
            .subjects
            .get(number)
            .and_then(|subject| subject.manifest.as_ref());
        manifest.is_some_and(|manifest| {
            let mut lineage = manifest.lineage.iter();
            lineage.any(|volume| {
                self.numbers
                    .get(volume)
                    .is_some_and(|number| self.is_chosen(*number))
            })
        })
    }

    fn has_chosen_clone(&self, number: usize) -> bool {
        let Some(id) = self.subjects.get(number).map(|subject| subject.id) else {
            return false;
        };
        self.subjects.iter().enumerate().any(|(clone, subject)| {
            let lineage = subject.manifest.as_ref().map(|manifest| &manifest.lineage);
            self.is_chosen(clone) && lineage.is_some_and(|lineage| lineage.contains(&id))
        })
    }

    fn is_chosen(&self, number: usize) -> bool {
        self.chosen.get(number).copied().unwrap_or(false)
    }

    async fn trees_and_scos(&mut self) {
        let walked: Vec<usize> = (0..self.subjects.len())
            .filter(|number| self.is_walked(*number))
            .collect();
        // What a chosen clone reads from others is found by their SCO tables.
        let ancestors: Vec<usize> = (0..self.subjects.len())
            .filter(|number| !walked.contains(number) && self.has_chosen_clone(*number))
            .collect();
        let mut from: ScoKey = (VolumeId::default(), ScoId::NONE);
        let mut is_first = true;
        loop {
            let max = self.options.claims_max.unwrap_or(CLAIMS_MAX);
            let mut claims = Claims::from(from, max);
            let mut nodes = vec![0; self.subjects.len()];
            let mut walk = Walk::new(
                self.store,
                &mut self.subjects,
                &self.numbers,
                &mut self.tables,
                &mut self.live_maps,
                &mut claims,
                &mut nodes,
                &self.chosen,
                is_first,
            );
            for number in &ancestors {
                walk.table(*number).await;
            }
            for number in &walked {
                walk.volume(*number).await;
            }
            if is_first {
                self.nodes = nodes;
            }
            self.scos(&claims).await;
            match claims.until() {
                Some(until) => (from, is_first) = (until, false),
                None => return,
            }
        }
    }

    /// Judges the SCOs of a window: those of the SCO tables, and those that maps refer to.
    async fn scos(&mut self, claims: &Claims) {
        let mut keys: BTreeSet<ScoKey> = claims.keys().collect();
        for (number, table) in self
            .tables
            .iter()
            .enumerate()
            .filter(|(number, _)| self.is_chosen(*number))
        {
            if let Some(subject) = self.subjects.get(number) {
                keys.extend(
                    table
                        .keys()
                        .map(|sco| (subject.id, *sco))
                        .filter(|key| claims.covers(*key)),
                );
            }
        }
        for key in keys {
            self.sco(key, claims.of(key)).await;
        }
    }

    /// Who is told of what is wrong with a SCO: its volume, or where that has no manifest here a clone of it.
    async fn sco(&mut self, key: ScoKey, claims: Option<&ScoClaims>) {
        let (volume, id) = key;
        let Some((number, teller)) = self.teller(volume) else {
            return;
        };
        let spot = Spot {
            sco: Some(id),
            ..Spot::of(format!("SCO {id}"))
        };
        let Some((name, epoch)) = self.name_of(number, teller, volume, id, &spot).await else {
            return;
        };
        self.live_scos.insert(name);
        let state = self.state_of(number, id);
        // It is found by its volume's listing; a clone's own listing does not have it.
        let Some(subject) = number.and_then(|number| self.subjects.get_mut(number)) else {
            self.tell(
                teller,
                ProblemKind::Missing,
                &spot.object(name),
                "no back end has anything of its volume",
            );
            return;
        };
        let before = subject.problems.count;
        let file = if bundle::is_bundle(name) {
            if self.bundle.as_ref().is_none_or(|(known, _)| *known != name) {
                let read = bundle::read(self.store, subject, &spot, name, self.options.data).await;
                self.bundle = Some((name, read));
            }
            let read = self.bundle.as_ref().and_then(|(_, read)| read.as_ref());
            read.and_then(|bundle| bundle::member(bundle, subject, &spot, name, (id, epoch)))
        } else {
            // All of it, also where nothing of it is live any more: it is still stored, and said to be good.
            sco::read(self.store, subject, &spot, name, self.options.data).await
        };
        let failed = subject.problems.count > before;
        if failed && Some(teller) != number {
            self.tell(
                teller,
                ProblemKind::Ancestor,
                &spot.clone().object(name),
                "it is lost or damaged",
            );
        }
        if let Some(state) = state.filter(|_| Some(teller) == number) {
            self.counters(teller, &spot.clone().object(name), state, claims, file.as_ref());
        }
        let Some(file) = file else { return };
        if Some(teller) == number {
            self.sequence(teller, &spot.clone().object(name), id, &file);
        }
        let Some(claims) = claims else { return };
        self.claims(teller, &spot.object(name), claims, &file);
    }

    /// Number of the volume, and who is told of what is wrong with it.
    fn teller(&self, volume: VolumeId) -> Option<(Option<usize>, usize)> {
        let number = self.numbers.get(&volume).copied();
        if let Some(number) = number.filter(|number| self.is_chosen(*number)) {
            return Some((Some(number), number));
        }
        let is_clone = |subject: &Subject| {
            let lineage = subject.manifest.as_ref().map(|manifest| &manifest.lineage);
            lineage.is_some_and(|lineage| lineage.contains(&volume))
        };
        let clone = (0..self.subjects.len())
            .find(|number| self.is_chosen(*number) && self.subjects.get(*number).is_some_and(is_clone));
        clone.map(|clone| (number, clone))
    }

    fn state_of(&self, number: Option<usize>, id: ScoId) -> Option<ScoState> {
        self.tables.get(number?)?.get(&id).copied()
    }

    /// The object that has a SCO, and the SCO's epoch; `None`: it was told why there is none.
    async fn name_of(
        &mut self,
        number: Option<usize>,
        teller: usize,
        volume: VolumeId,
        id: ScoId,
        spot: &Spot,
    ) -> Option<(ObjectName, Epoch)> {
        let subject = number.and_then(|number| self.subjects.get(number));
        let has_table = subject.is_some_and(|subject| subject.manifest.is_some());
        let by_manifest = subject
            .filter(|_| number == Some(teller))
            .and_then(|subject| subject.epoch_of(id));
        let Some(epoch) = by_manifest.or_else(|| self.epoch_by_clone(teller, volume, id)) else {
            let what = "no ownership of its volume wrote it";
            self.tell(teller, ProblemKind::Mismatch, spot, what);
            return None;
        };
        let name = |id, epoch, version| ObjectName::Sco {
            volume,
            id,
            epoch,
            version,
        };
        let Some(state) = self.state_of(number, id) else {
            if has_table {
                let what = "maps refer to it, but the SCO table does not have it";
                self.tell(teller, ProblemKind::Mismatch, spot, what);
                return None;
            }
            // Only an ancestor without a manifest is looked for as readers do that know nothing.
            let Some(subject) = subject else {
                return Some((name(id, epoch, 0), epoch));
            };
            let found = match subject.newest_version(id, epoch) {
                Some(version) => Some(name(id, epoch, version)),
                None => bundle::find(self.store, subject, (id, epoch)).await,
            };
            return Some((found.unwrap_or_else(|| name(id, epoch, 0)), epoch));
        };
        let Some(bundle) = state.bundle else {
            return Some((name(id, epoch, state.version), epoch));
        };
        let named = subject.and_then(|subject| subject.epoch_of(bundle.named));
        if named.is_none() {
            let what = format!(
                "its bundle is named after SCO {}, which no ownership wrote",
                bundle.named
            );
            self.tell(teller, ProblemKind::Mismatch, spot, what);
        }
        Some((name(bundle.named, named?, bundle.version), epoch))
    }

    fn epoch_by_clone(&self, clone: usize, volume: VolumeId, id: ScoId) -> Option<Epoch> {
        let manifest = self.subjects.get(clone)?.manifest.as_ref()?;
        let lineage = manifest.lineage.iter().position(|ancestor| *ancestor == volume)?;
        let epochs = manifest.ancestor_epochs.get(lineage).unwrap_or(&manifest.epochs);
        epoch_of_sco(epochs, id)
    }

    fn tell(&mut self, number: usize, kind: ProblemKind, spot: &Spot, what: impl std::fmt::Display) {
        if let Some(subject) = self.subjects.get_mut(number) {
            subject.tell(kind, spot, what);
        }
    }

    /// Compares what the SCO table counts with what maps and the object have.
    fn counters(
        &mut self,
        teller: usize,
        spot: &Spot,
        state: ScoState,
        claims: Option<&ScoClaims>,
        file: Option<&ScoFile>,
    ) {
        let live = claims.map_or(0, ScoClaims::counted);
        if let Some(figures) = self.figures.get_mut(teller) {
            figures.live_slots += live;
            figures.dead_slots += u64::from(state.slots).saturating_sub(live);
        }
        // Where a part of a map could not be read, a scan finds too little, and that is told already.
        let is_scan_whole = self
            .subjects
            .get(teller)
            .is_some_and(|subject| !subject.problems.kinds.iter().any(|kind| kind.is_loss()));
        if live != u64::from(state.live) && is_scan_whole {
            let what = format!(
                "{live} of its slots are referred to, the SCO table counts {}",
                state.live
            );
            self.tell(teller, ProblemKind::Counter, spot, what);
        }
        let Some(file) = file else { return };
        let stored = file.kept();
        if stored != u64::from(state.slots) {
            let what = format!("it holds {stored} clusters, the SCO table counts {}", state.slots);
            self.tell(teller, ProblemKind::Counter, spot, what);
        }
        let told = file.written.iter().flatten().count() as u64;
        if file.log_wrong().is_none() && file.packed.is_none() && told != stored {
            let what = format!("it holds {stored} clusters, its log tells of {told}");
            self.tell(teller, ProblemKind::Mismatch, spot, what);
        }
    }

    /// The log goes on from SCO to SCO without gaps, and ends where the manifest says.
    fn sequence(&mut self, number: usize, spot: &Spot, id: ScoId, file: &ScoFile) {
        let Some(log) = file.log.as_ref().filter(|log| log.tlog.wrong.is_none()) else {
            return;
        };
        let Some(last_batch) = log.tlog.last_batch() else {
            return;
        };
        let before = self.last.get(number).copied().flatten();
        if let Some((sco, batch)) = before
            && sco.next() == id
            && log.header.first_batch != batch.next()
        {
            let what = format!(
                "it begins with batch {}, SCO {sco} before it ends with batch {batch}",
                log.header.first_batch
            );
            self.tell(number, ProblemKind::Mismatch, spot, what);
        }
        if let Some(last) = self.last.get_mut(number) {
            *last = Some((id, last_batch));
        }
        let Some(manifest) = self
            .subjects
            .get(number)
            .and_then(|subject| subject.manifest.as_ref())
        else {
            return;
        };
        let (covered_sco, covered) = (manifest.covered_sco, manifest.covered);
        let size = manifest.sco_size;
        if id == covered_sco && last_batch != covered {
            let what = format!("it ends with batch {last_batch}, the manifest covers it up to {covered}");
            self.tell(number, ProblemKind::Mismatch, spot, what);
        }
        if file.size != size {
            let what = format!(
                "it is of {} clusters, the volume's SCOs are of {}",
                file.size.slots(),
                size.slots()
            );
            self.tell(number, ProblemKind::Mismatch, spot, what);
        }
    }

    /// Each slot that maps have holds what they say.
    fn claims(&mut self, teller: usize, spot: &Spot, claims: &ScoClaims, file: &ScoFile) {
        for (slot, claim) in claims.iter().filter(|(_, claim)| claim.is_kept) {
            let address = claim.address.byte_offset_checked();
            let spot = Spot {
                slot: Some(slot),
                address: Some(address),
                ..spot.clone()
            };
            match file.written.get(usize::from(slot)).copied().flatten() {
                Some(written) if (written.address, written.crc) == (claim.address, claim.crc) => {}
                Some(written) => {
                    let what = format!(
                        "the map has CRC32C {:#010x}, its object address {} and {:#010x}",
                        claim.crc,
                        written.address.byte_offset_checked(),
                        written.crc
                    );
                    self.tell(teller, ProblemKind::Mismatch, &spot, what);
                    continue;
                }
                // Told with the log.
                None if file.log_wrong().is_some() => {}
                None => {
                    self.tell(
                        teller,
                        ProblemKind::Mismatch,
                        &spot,
                        "its object does not tell of this slot",
                    );
                    continue;
                }
            }
            if !file.has(Slot(slot)) {
                self.tell(
                    teller,
                    ProblemKind::Missing,
                    &spot,
                    "the cluster is not in the object",
                );
                continue;
            }
            let Some(cluster) = file.cluster(Slot(slot)) else {
                continue;
            };
            if let Some(figures) = self.figures.get_mut(teller) {
                figures.clusters_read += 1;
            }
            let found = crc32c(cluster);
            if found != claim.crc {
                let what = format!(
                    "the cluster has CRC32C {found:#010x}, the map {:#010x}",
                    claim.crc
                );
                self.tell(teller, ProblemKind::Damaged, &spot, what);
            }
        }
    }

    /// SCOs behind the newest manifest are the log that a start replays: they must be whole.
    async fn logs_behind(&mut self) {
        for number in (0..self.subjects.len())
            .filter(|number| self.is_chosen(*number))
            .collect::<Vec<_>>()
        {
            let Some(subject) = self.subjects.get(number) else {
                continue;
            };
            for name in orphans::behind(subject) {
                let ObjectName::Sco { id, .. } = name else {
                    continue;
                };
                let spot = Spot {
                    sco: Some(id),
                    ..Spot::of(format!("SCO {id}, behind the manifest"))
                };
                let Some(subject) = self.subjects.get_mut(number) else {
                    continue;
                };
                let file = sco::read(self.store, subject, &spot, name, self.options.data).await;
                let Some(file) = file else { continue };
                let spot = spot.object(name);
                for (slot, written) in (0..).zip(file.written.iter().flatten()) {
                    let Some(cluster) = file.cluster(Slot(slot)) else {
                        break;
                    };
                    let found = crc32c(cluster);
                    if found != written.crc {
                        let spot = Spot {
                            slot: Some(slot),
                            address: Some(written.address.byte_offset_checked()),
                            ..spot.clone()
                        };
                        let what = format!(
                            "the cluster has CRC32C {found:#010x}, its log {:#010x}",
                            written.crc
                        );
                        subject.tell(ProblemKind::Damaged, &spot, what);
                    }
                }
                if let Some(figures) = self.figures.get_mut(number) {
                    figures.behind += 1;
                    let read = if file.whole.is_some() {
                        file.written.len()
                    } else {
                        0
                    };
                    figures.clusters_read += read as u64;
                }
            }
        }
    }

    /// Checkpoint objects that are referred to are whole, what in them is not referred to any more among it.
    async fn map_objects(&mut self) {
        let mut live: Vec<ObjectName> = self.live_maps.iter().copied().collect();
        live.sort();
        for name in live {
            let Some((Some(number), teller)) = self.teller(name.volume()) else {
                continue;
            };
            let is_told_here = number == teller;
            if let Some(subject) = self.subjects.get_mut(number).filter(|_| is_told_here) {
                is_said_to_be_needed(subject, name);
                maps::check(self.store, subject, name).await;
            }
        }
    }

    /// A clone is no better than what it reads from.
    fn ancestors(&mut self) {
        for number in 0..self.subjects.len() {
            let Some(manifest) = self
                .subjects
                .get(number)
                .and_then(|subject| subject.manifest.clone())
            else {
                continue;
            };
            let Some((own, ancestors)) = manifest.lineage.split_last() else {
                continue;
            };
            let is_lost = |volume: &&VolumeId| {
                let subject = self
                    .numbers
                    .get(*volume)
                    .and_then(|number| self.subjects.get(*number));
                let kinds = subject.map(|subject| &subject.problems.kinds);
                *volume != own && kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind.is_loss()))
            };
            let lost: Vec<VolumeId> = ancestors.iter().filter(is_lost).copied().collect();
            for ancestor in lost {
                let what = format!("volume {ancestor}, which it reads from, has lost or damaged content");
                self.tell(number, ProblemKind::Ancestor, &Spot::of("lineage"), what);
            }
        }
    }

    async fn report(mut self) -> Report {
        let mut volumes = Vec::new();
        for number in 0..self.subjects.len() {
            if self.is_chosen(number) {
                volumes.push(self.volume_report(number).await);
            }
        }
        for volume in &self.options.volumes {
            if !self.numbers.contains_key(volume) {
                volumes.push(nothing_of(*volume));
            }
        }
        let mut backends: Vec<BackendReport> = self
            .store
            .labels()
            .into_iter()
            .map(|backend| BackendReport {
                backend,
                problem: None,
            })
            .collect();
        for (label, wrong) in self.store.wrong() {
            for backend in backends.iter_mut().filter(|backend| backend.backend == label) {
                backend.problem = Some(wrong.to_owned());
            }
        }
        let wrong_backend = backends
            .iter()
            .any(|backend| backend.problem.is_some())
            .then_some(Verdict::Inconsistent);
        let worst = volumes
            .iter()
            .map(|volume| volume.verdict)
            .chain(wrong_backend)
            .max();
        Report {
            verdict: worst.unwrap_or(Verdict::Consistent),
            data: self.options.data,
            backends,
            volumes,
        }
    }

    async fn volume_report(&mut self, number: usize) -> VolumeReport {
        let Some(subject) = self.subjects.get(number) else {
            return nothing_of(VolumeId::default());
        };
        let table = self.tables.get(number).cloned().unwrap_or_default();
        let orphans = orphans::find(self.store, subject, &table, &self.live_maps, &self.live_scos).await;
        let figures = self.figures.get(number).cloned().unwrap_or_default();
        let manifest = subject.manifest.as_ref();
        let ancestors =
            manifest.map(|manifest| manifest.lineage.split_last().map_or(&[][..], |(_, rest)| rest));
        let name = manifest.map(|manifest| ObjectName::Manifest {
            volume: manifest.volume,
            seq: manifest.seq,
            epoch: manifest.epoch,
        });
        let problems = &subject.problems;
        VolumeReport {
            id: subject.id.to_string(),
            path: manifest.map(|manifest| manifest.path.clone()),
            pool: manifest.map(|manifest| manifest.pool.clone()),
            verdict: problems
                .kinds
                .iter()
                .map(|kind| kind.verdict())
                .max()
                .unwrap_or(Verdict::Consistent),
            manifest: name.map(|name| name.to_string()),
            size_bytes: manifest.map_or(0, |manifest| manifest.size.bytes()),
            allocated_bytes: manifest.map_or(0, |manifest| {
                manifest
                    .allocated_clusters
                    .saturating_mul(sconce_schemas::CLUSTER_BYTES)
            }),
            snapshots: manifest.map_or(0, |manifest| {
                let kept = manifest
                    .snapshots
                    .iter()
                    .filter(|snapshot| snapshot.removed.is_none());
                kept.count()
            }),
            ancestors: ancestors
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            nodes: self.nodes.get(number).copied().unwrap_or(0),
            scos: table.len() as u64,
            live_slots: figures.live_slots,
            dead_slots: figures.dead_slots,
            behind: figures.behind,
            condemned: manifest.map_or(0, |manifest| manifest.condemned.len()),
            clusters_read: figures.clusters_read,
            problem_count: problems.count,
            problems: problems.list.clone(),
            orphan_bytes: orphans.iter().filter_map(|orphan| orphan.bytes).sum(),
            orphans,
        }
    }
}

/// A checkpoint that is referred to is within what the manifest says that its trees need: a sweep deletes the others.
fn is_said_to_be_needed(subject: &mut Subject, name: ObjectName) {
    let (Some(manifest), ObjectName::Map { id, .. }) = (&subject.manifest, name) else {
        return;
    };
    let ranges = manifest.checkpoints();
    if !ranges.iter().any(|range| range.contains(&id)) {
        let spot = Spot::of("map object").object(name);
        let what = format!(
            "a tree has a node in checkpoint {id}, and the manifest says that none is before its floor: {ranges:?}"
        );
        subject.tell(ProblemKind::Mismatch, &spot, what);
    }
}

/// A volume that was asked for and has no object here.
fn nothing_of(volume: VolumeId) -> VolumeReport {
    VolumeReport {
        id: volume.to_string(),
        path: None,
        pool: None,
        verdict: Verdict::Unknown,
        manifest: None,
        size_bytes: 0,
        allocated_bytes: 0,
        snapshots: 0,
        ancestors: Vec::new(),
        nodes: 0,
        scos: 0,
        live_slots: 0,
        dead_slots: 0,
        behind: 0,
        condemned: 0,
        clusters_read: 0,
        problem_count: 1,
        problems: vec![crate::report::Problem {
            kind: ProblemKind::NoManifest,
            object: None,
            backend: None,
            of: "manifest".to_owned(),
            node: None,
            sco: None,
            slot: None,
            address: None,
            text: format!("volume {volume}: these back ends have nothing of it"),
        }],
        orphans: Vec::new(),
        orphan_bytes: 0,
    }
}
