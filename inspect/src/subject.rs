//! A volume that is looked at: what the back ends list of it, and its newest manifest.
//!
//! Keeps: listings, manifest, and the problems that were found so far.
//! Order: the newest manifest is that of the highest epoch, then number, as a recovery takes it. An older one is taken only to
//! go on behind a damaged one, which is told.
//! Crash: nothing.
//! Knows no trees.

use sconce_schemas::bundle::BUNDLE_FROM;
use sconce_schemas::manifest::{MANIFEST_BYTES_MAX, Manifest, TREE_HEIGHT_MAX, TreeRoot};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::EpochStart;
use sconce_schemas::{DecodeError, Epoch, LineageIndex, ObjectName, ScoId, VolumeId};
use sconce_volume::stored::epoch_of_sco;

use crate::report::{PROBLEMS_MAX, Problem, ProblemKind};
use crate::store::{Answers, Copies, Store, StoreError};

/// A volume that is looked at.
#[derive(Debug)]
pub struct Subject {
    /// The volume.
    pub id: VolumeId,
    /// Its manifests, checkpoints and SCOs on the back ends.
    pub manifests: Copies,
    /// Its checkpoints.
    pub maps: Copies,
    /// Its SCOs.
    pub scos: Copies,
    /// The newest manifest that is whole.
    pub manifest: Option<Manifest>,
    /// What is wrong so far.
    pub problems: Problems,
}

/// Problems of a volume.
#[derive(Debug, Default)]
pub struct Problems {
    /// The first ones.
    pub list: Vec<Problem>,
    /// All of them.
    pub count: u64,
    /// The worst of all, and whether content may be lost.
    pub kinds: std::collections::BTreeSet<ProblemKind>,
}

/// Where a problem is, beside its volume.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spot {
    pub(crate) of: String,
    pub(crate) object: Option<ObjectName>,
    pub(crate) node: Option<crate::report::NodeId>,
    pub(crate) sco: Option<ScoId>,
    pub(crate) slot: Option<u16>,
    pub(crate) address: Option<u64>,
}

impl Spot {
    pub(crate) fn of(of: impl Into<String>) -> Self {
        Self {
            of: of.into(),
            ..Self::default()
        }
    }

    pub(crate) fn object(mut self, name: ObjectName) -> Self {
        self.object = Some(name);
        self
    }
}

/// How the failure of a decoder counts: a newer format is not damage.
pub(crate) const fn kind_of(error: &DecodeError) -> ProblemKind {
    match error {
        DecodeError::Version { .. } => ProblemKind::NotJudged,
        _ => ProblemKind::Damaged,
    }
}

impl Subject {
    /// Lists a volume and reads its newest manifest.
    ///
    /// # Errors
    /// A back end cannot be listed.
    pub async fn open(store: &Store, id: VolumeId) -> Result<Self, StoreError> {
        let mut subject = Self {
            id,
            manifests: store.list(id, ObjectKind::Manifest).await?,
            maps: store.list(id, ObjectKind::Map).await?,
            scos: store.list(id, ObjectKind::Sco).await?,
            manifest: None,
            problems: Problems::default(),
        };
        for (at, name) in subject.by_age().into_iter().enumerate() {
            let found = subject.read_manifest(store, name).await;
            // The newest two stay (docs/decisions/0063): the one before is read for what people may find in it.
            if subject.manifest.is_none() {
                subject.manifest = found;
            }
            if subject.manifest.is_some() && at > 0 {
                break;
            }
        }
        if subject.manifest.is_none() {
            let text = if subject.manifests.is_empty() {
                "it has no manifest: it was never stored, or is being deleted, or all manifests are lost"
            } else {
                "none of its manifests can be used"
            };
            subject.tell(ProblemKind::NoManifest, &Spot::of("manifest"), text);
        }
        Ok(subject)
    }

    /// Names of the manifests, the newest first.
    pub(crate) fn by_age(&self) -> Vec<ObjectName> {
        let mut names: Vec<ObjectName> = self.manifests.keys().copied().collect();
        names.sort_by_key(|name| std::cmp::Reverse(age(name)));
        names
    }

    /// The path, or the id where there is none.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.manifest {
            Some(manifest) => format!("{} ({})", manifest.path, self.id),
            None => self.id.to_string(),
        }
    }

    /// Notes a problem.
    pub(crate) fn tell(&mut self, kind: ProblemKind, spot: &Spot, what: impl std::fmt::Display) {
        self.tell_on(kind, None, spot, what);
    }

    fn tell_on(
        &mut self,
        kind: ProblemKind,
        backend: Option<&str>,
        spot: &Spot,
        what: impl std::fmt::Display,
    ) {
        self.problems.count += 1;
        self.problems.kinds.insert(kind);
        if self.problems.list.len() >= PROBLEMS_MAX {
            return;
        }
        let object = spot.object.map(|name| name.to_string());
        let mut text = format!("volume {}: {}", self.shown(), spot.of);
        if let Some(object) = &object {
            text.push_str(&format!(": object {object}"));
        }
        if let Some(backend) = backend {
            text.push_str(&format!(" on {backend}"));
        }
        if let Some(node) = &spot.node {
            text.push_str(&format!(
                ": {} node {} of level {}",
                node.tree, node.index, node.level
            ));
        }
        if let Some(slot) = spot.slot {
            text.push_str(&format!(": slot {slot}"));
        }
        if let Some(address) = spot.address {
            text.push_str(&format!(": address {address}"));
        }
        text.push_str(&format!(": {what}"));
        self.problems.list.push(Problem {
            kind,
            object,
            backend: backend.map(str::to_owned),
            of: spot.of.clone(),
            node: spot.node.clone(),
            sco: spot.sco.map(|sco| sco.0),
            slot: spot.slot,
            address: spot.address,
            text,
        });
    }

    /// Notes bad copies, and gives the good one.
    pub(crate) fn take<T>(&mut self, store: &Store, spot: &Spot, answers: Answers<T>) -> Option<T> {
        use sconce_storage_router::BackendError as E;
        let is_lost = answers.good.is_none();
        for bad in &answers.bad {
            let kind = match &bad.error {
                // It was listed a moment ago: somebody deletes meanwhile.
                E::Unavailable { .. } | E::Denied { .. } | E::Locked { .. } | E::Full | E::Exists => {
                    ProblemKind::NotJudged
                }
                E::Damaged { .. } | E::NotFound if !is_lost => ProblemKind::CopyDamaged,
                E::NotFound => ProblemKind::Missing,
                E::Damaged { .. } => ProblemKind::Damaged,
            };
            let backend = store.label(bad.backend).to_owned();
            self.tell_on(kind, Some(&backend), spot, &bad.error);
        }
        answers.good
    }

    /// Reads a range of an object of this volume for `teller`, this volume or a clone; `None`: it was told why not.
    async fn read_manifest(&mut self, store: &Store, name: ObjectName) -> Option<Manifest> {
        let spot = Spot::of("manifest").object(name);
        let copies = self.manifests.get(&name).cloned().unwrap_or_default();
        let limit = MANIFEST_BYTES_MAX as u64 + 1;
        let answers = store.read(name, &copies, 0, limit).await;
        let bytes = self.take(store, &spot, answers)?;
        let manifest = match Manifest::from_bytes(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                self.tell(kind_of(&error), &spot, error);
                return None;
            }
        };
        let own = ObjectName::Manifest {
            volume: manifest.volume,
            seq: manifest.seq,
            epoch: manifest.epoch,
        };
        if own != name {
            self.tell(ProblemKind::Mismatch, &spot, format!("it says that it is {own}"));
            return None;
        }
        match wrong_in(&manifest) {
            None => Some(manifest),
            Some(wrong) => {
                self.tell(ProblemKind::Mismatch, &spot, wrong);
                None
            }
        }
    }

    /// The ownership that wrote a SCO of this volume, as its manifest has it.
    pub(crate) fn epoch_of(&self, sco: ScoId) -> Option<Epoch> {
        epoch_of_sco(&self.manifest.as_ref()?.epochs, sco)
    }

    /// The newest version of a SCO, in no bundle, that is on the back ends.
    pub(crate) fn newest_version(&self, sco: ScoId, epoch: Epoch) -> Option<u16> {
        let name = |version| ObjectName::Sco {
            volume: self.id,
            id: sco,
            epoch,
            version,
        };
        let newest = self.scos.range(name(0)..name(BUNDLE_FROM)).next_back();
        newest.and_then(|(name, _)| match name {
            ObjectName::Sco { version, .. } => Some(*version),
            ObjectName::Map { .. } | ObjectName::Manifest { .. } => None,
        })
    }
}

/// What orders manifests: the ownership first, then the number.
pub(crate) fn age(name: &ObjectName) -> (Epoch, u64) {
    match name {
        ObjectName::Manifest { seq, epoch, .. } => (*epoch, seq.0),
        ObjectName::Sco { epoch, .. } | ObjectName::Map { epoch, .. } => (*epoch, 0),
    }
}

/// All roots of maps that a manifest names, with what they are.
pub(crate) fn roots(manifest: &Manifest) -> Vec<(String, TreeRoot)> {
    let mut roots = vec![
        ("head".to_owned(), manifest.map),
        ("SCO table".to_owned(), manifest.scos),
    ];
    for snapshot in &manifest.snapshots {
        roots.push((format!("snapshot {:?}", snapshot.label.name), snapshot.map));
        for child in snapshot.removed.iter().flat_map(|removed| &removed.children) {
            roots.push((format!("removed snapshot {:?}", snapshot.label.name), *child));
        }
        if let Some(joined) = &snapshot.joined {
            roots.push((format!("snapshot {:?}", snapshot.label.name), joined.child));
        }
    }
    for point in &manifest.history.points {
        roots.push(("history".to_owned(), point.map));
    }
    roots
}

/// What in a manifest cannot be: its CRC holds, so this is a bug of whoever wrote it, or damage that no CRC saw.
fn wrong_in(manifest: &Manifest) -> Option<String> {
    let lineage = manifest.lineage.len();
    if manifest.lineage.last() != Some(&manifest.volume) || lineage > usize::from(LineageIndex::MAX.0) + 1 {
        return Some(format!(
            "its lineage has {lineage} volumes; right would be 1 to {}, the volume itself the last",
            usize::from(LineageIndex::MAX.0) + 1
        ));
    }
    if lineage > 1 && manifest.ancestor_epochs.len() != lineage - 1 {
        return Some(format!(
            "it has the ownerships of {} ancestors; right would be {}",
            manifest.ancestor_epochs.len(),
            lineage - 1
        ));
    }
    for epochs in manifest.ancestor_epochs.iter().chain([&manifest.epochs]) {
        if let Some(wrong) = out_of_order(epochs) {
            return Some(wrong);
        }
    }
    if let Some(last) = manifest.epochs.last().filter(|last| last.epoch > manifest.epoch) {
        return Some(format!(
            "it is of epoch {}, but has SCOs of epoch {}",
            manifest.epoch, last.epoch
        ));
    }
    if let Some((of, root)) = roots(manifest)
        .into_iter()
        .find(|(_, root)| root.height > TREE_HEIGHT_MAX)
    {
        return Some(format!(
            "the tree of its {of} is {} levels high; right would be at most {TREE_HEIGHT_MAX}",
            root.height
        ));
    }
    wrong_snapshots(manifest)
}

fn out_of_order(epochs: &[EpochStart]) -> Option<String> {
    let pair = epochs.windows(2).find_map(|pair| match pair {
        [a, b] if a.epoch >= b.epoch || a.first_sco >= b.first_sco => Some((a, b)),
        _ => None,
    });
    pair.map(|(a, b)| {
        format!(
            "ownership {} from SCO {} is followed by {} from SCO {}; both should ascend",
            a.epoch, a.first_sco, b.epoch, b.first_sco
        )
    })
}

fn wrong_snapshots(manifest: &Manifest) -> Option<String> {
    let mut seen = std::collections::BTreeSet::new();
    for snapshot in &manifest.snapshots {
        if !seen.insert(snapshot.label.id) {
            return Some(format!("it has snapshot {} twice", snapshot.label.id));
        }
    }
    let parents = manifest
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.removed.is_none());
    let unknown = parents
        .map(|snapshot| snapshot.parent)
        .chain([manifest.parent])
        .flatten()
        .find(|parent| !seen.contains(parent));
    unknown.map(|parent| format!("something comes from snapshot {parent}, which it does not have"))
}
