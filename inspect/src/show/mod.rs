//! What one volume, manifest, map or SCO holds, for people and programs (docs/operating/inspect.md has the JSON).
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no verdict: it shows what is there, and says where it cannot.

mod map;
mod sco;
mod volume;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sconce_schemas::{ObjectName, VolumeId};

use crate::store::{Store, StoreError};
use crate::subject::Subject;

pub use map::{CheckpointView, ExtentView, MapView, NodeView, checkpoint, map};
pub use sco::{BatchView, EntryView, MemberView, ScoView, sco};
pub use volume::{
    ManifestView, ObjectsView, RootView, SnapshotView, VolumeSummary, manifest, volume, volumes,
};

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// A back end cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such volume here.
    #[error("there is no volume {asked} on these back ends; they have {known}")]
    NoVolume {
        /// What was asked for.
        asked: String,
        /// Some of those that are here.
        known: String,
    },
    /// There is no such object here, or it is not readable.
    #[error("{0}")]
    Object(String),
}

/// A volume as people name it: by its id, or its path as its newest manifest has it.
///
/// # Errors
/// There is none; more than one has the path.
pub async fn find(store: &Store, asked: &str) -> Result<Subject, ShowError> {
    let known = store.volumes().await?;
    if let Some(id) = asked.parse::<VolumeId>().ok().filter(|id| known.contains(id)) {
        return Ok(Subject::open(store, id).await?);
    }
    let (mut found, mut paths) = (Vec::new(), Vec::new());
    for id in known {
        let subject = Subject::open(store, id).await?;
        match &subject.manifest {
            Some(manifest) if manifest.path == asked => found.push(subject),
            Some(manifest) => paths.push(manifest.path.clone()),
            None => paths.push(id.to_string()),
        }
    }
    if found.len() > 1 {
        let ids: Vec<String> = found.iter().map(|subject| subject.id.to_string()).collect();
        let text = format!(
            "more than one volume had the path {asked}: {}; give the id",
            ids.join(", ")
        );
        return Err(ShowError::Object(text));
    }
    found.pop().ok_or_else(|| {
        let more = paths.len().saturating_sub(5);
        paths.truncate(5);
        let known = match (paths.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (false, 0) => paths.join(", "),
            (false, more) => format!("{} and {more} more", paths.join(", ")),
        };
        ShowError::NoVolume {
            asked: asked.to_owned(),
            known,
        }
    })
}

/// An object as people name it: by its name, or by its file's path, which tells the back end's directory too.
#[must_use]
pub fn object(asked: &str) -> Option<(ObjectName, Option<PathBuf>)> {
    if let Ok(name) = asked.parse() {
        return Some((name, None));
    }
    let path = Path::new(asked);
    let (leaf, kind) = (path, path.parent()?);
    let (volume, root) = (kind.parent()?, kind.parent()?.parent()?);
    let part = |path: &Path| path.file_name().and_then(|name| name.to_str().map(str::to_owned));
    let name = format!("{}/{}/{}", part(volume)?, part(kind)?, part(leaf)?);
    let root = if root.as_os_str().is_empty() {
        Path::new(".")
    } else {
        root
    };
    Some((name.parse().ok()?, Some(root.to_owned())))
}

/// A moment of a log, as people read it.
fn moment(us: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(us));
    match time.filter(|_| us < 253_402_300_800_000_000) {
        Some(time) => humantime::format_rfc3339_micros(time).to_string(),
        None => format!("{us} µs after 1970"),
    }
}

/// All of an object's content, its envelope checked.
async fn content(store: &Store, subject: &Subject, name: ObjectName) -> Result<bytes::Bytes, ShowError> {
    let listing = match name {
        ObjectName::Sco { .. } => &subject.scos,
        ObjectName::Map { .. } => &subject.maps,
        ObjectName::Manifest { .. } => &subject.manifests,
    };
    let Some(copies) = listing.get(&name) else {
        return Err(ShowError::Object(format!(
            "there is no object {name} on these back ends"
        )));
    };
    let answers = store
        .read(name, copies, 0, sconce_schemas::wire::storage::OBJECT_BYTES_MAX)
        .await;
    answers.good.ok_or_else(|| {
        let why = answers.bad.first().map_or_else(String::new, |bad| {
            format!(" on {}: {}", store.label(bad.backend), bad.error)
        });
        ShowError::Object(format!("object {name}{why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_or_pointed_at() {
        let name = "00000000000000000000000000000001/sco/000000000002.00000001.0000";
        let parsed: ObjectName = name.parse().unwrap();
        assert_eq!(object(name), Some((parsed, None)));
        let at = format!("/srv/backend/{name}");
        assert_eq!(object(&at), Some((parsed, Some("/srv/backend".into()))));
        let at = format!("./{name}");
        assert_eq!(object(&at), Some((parsed, Some(".".into()))));
        for wrong in ["", "/", "/vm1/disk.raw", "sco/000000000002.00000001.0000"] {
            assert_eq!(object(wrong), None, "{wrong:?}");
        }
    }
}
