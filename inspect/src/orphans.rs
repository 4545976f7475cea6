//! What nothing refers to: objects that crashes left, and what waits to be deleted.
//!
//! Keeps: nothing.
//! Order: by name.
//! Crash: nothing.
//! Knows the rules by which a recovery passes objects over: epochs, versions, what the newest manifest covers.

use std::collections::{BTreeMap, HashSet};

use sconce_schemas::manifest::Manifest;
use sconce_schemas::{CheckpointId, ObjectName, ScoId};
use sconce_volume::ScoState;

use crate::bundle;
use crate::report::Orphan;
use crate::store::Store;
use crate::subject::Subject;

/// Manifests that stay: the newest, and the one before it (docs/decisions/0063).
const MANIFESTS_KEPT: usize = 2;

/// SCOs behind the newest manifest, as far as a recovery would take them: of its ownership or a later one, as written.
pub(crate) fn behind(subject: &Subject) -> Vec<ObjectName> {
    let Some(manifest) = &subject.manifest else {
        return Vec::new();
    };
    let is_behind = |name: &ObjectName| match name {
        ObjectName::Sco {
            id, epoch, version, ..
        } => *id > manifest.covered_sco && *epoch >= manifest.epoch && *version == 0,
        ObjectName::Map { .. } | ObjectName::Manifest { .. } => false,
    };
    subject.scos.keys().copied().filter(is_behind).collect()
}

/// The objects of a volume that nothing refers to.
pub(crate) async fn find(
    store: &Store,
    subject: &Subject,
    table: &BTreeMap<ScoId, ScoState>,
    live_maps: &HashSet<ObjectName>,
    live_scos: &HashSet<ObjectName>,
) -> Vec<Orphan> {
    let mut found: Vec<(ObjectName, &'static str)> = Vec::new();
    let behind: HashSet<ObjectName> = behind(subject).into_iter().collect();
    for name in subject.scos.keys() {
        if !behind.contains(name)
            && !live_scos.contains(name)
            && let Some(why) = why_not(subject, table, *name)
        {
            found.push((*name, why));
        }
    }
    let kept = subject
        .manifest
        .as_ref()
        .map(Manifest::checkpoints)
        .unwrap_or_default();
    for name in subject.maps.keys().filter(|name| !live_maps.contains(*name)) {
        let ObjectName::Map { id, .. } = name else {
            continue;
        };
        if is_within_history(subject, *id) {
            continue;
        }
        let why = match kept.iter().any(|range| range.contains(id)) {
            true => {
                "no tree has a node in it any more; it goes when older ones do, once the map is stored anew"
            }
            false => "no tree reaches it",
        };
        found.push((*name, why));
    }
    for name in subject.by_age().into_iter().skip(MANIFESTS_KEPT) {
        found.push((name, "two newer manifests supersede it"));
    }
    let mut orphans = Vec::with_capacity(found.len());
    for (name, why) in found {
        let copies = copies(subject, name);
        let length = store.length(name, copies).await.good;
        orphans.push(Orphan {
            object: name.to_string(),
            bytes: length,
            why,
        });
    }
    orphans
}

/// Whether a checkpoint is kept for moments of the history, whatever refers to it now: it lies behind the base.
fn is_within_history(subject: &Subject, id: CheckpointId) -> bool {
    let Some(manifest) = &subject.manifest else {
        return false;
    };
    let history = &manifest.history;
    let base = history.points.first().map(|point| point.checkpoint);
    history.window_us > 0 && id > base.unwrap_or_default() && id <= manifest.checkpoint
}

fn copies(subject: &Subject, name: ObjectName) -> &[usize] {
    let listing = match name {
        ObjectName::Sco { .. } => &subject.scos,
        ObjectName::Map { .. } => &subject.maps,
        ObjectName::Manifest { .. } => &subject.manifests,
    };
    listing.get(&name).map_or(&[], Vec::as_slice)
}

/// Why nothing needs a SCO; `None`: it is referred to.
fn why_not(subject: &Subject, table: &BTreeMap<ScoId, ScoState>, name: ObjectName) -> Option<&'static str> {
    let ObjectName::Sco {
        id, epoch, version, ..
    } = name
    else {
        return None;
    };
    let Some(manifest) = &subject.manifest else {
        return Some("its volume has no manifest");
    };
    let is_it = |condemned: &&sconce_schemas::manifest::CondemnedState| {
        condemned.sco == id && condemned.epoch == epoch && condemned.version == version
    };
    if manifest.condemned.iter().any(|condemned| is_it(&condemned)) {
        return Some("it waits to be deleted");
    }
    if id > manifest.covered_sco || subject.epoch_of(id) != Some(epoch) {
        return Some("no recovery takes it: a takeover left it behind");
    }
    if bundle::is_bundle(name) {
        return Some("no SCO is in it by the SCO table");
    }
    match table.get(&id) {
        Some(state) if state.bundle.is_some() => Some("a bundle took its place"),
        None => Some("the SCO table does not have it"),
        Some(state) if state.version > version => Some("a later version of it took its place"),
        Some(state) if state.version < version => Some("a version that no manifest names"),
        Some(_) => None,
    }
}
