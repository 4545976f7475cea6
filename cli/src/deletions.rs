//! Keeps: what `sconce status` says of what is deleted and takes space yet: who sees to it, and what waits for whom.
//! Order, crash: nothing is changed.
//! Knows no objects.

use std::collections::BTreeMap;

use sconce_fs_router::names::{KnownVolumes, NamelessFile, Names, NamesError};
use sconce_schemas::records::{ErasedRecord, NodeRecord, VolumeRecord};
use sconce_schemas::wire::volume::ErasureStatus;
use sconce_schemas::{NodeName, VolumeId};
use serde::Serialize;

use crate::view::{columns, time_shown, unknown};

/// A volume that is on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeletionView {
    /// The volume's id.
    pub id: String,
    /// The service that sees to it, or that it waits for; a write buffer's identity where only that is waited for.
    pub node: String,
    /// What is done, or waited for.
    pub state: String,
    /// Objects that were removed since the node began; null where it does not erase.
    pub deleted_objects: Option<u64>,
}

/// What the registry knows of it.
#[derive(Debug, Default)]
pub struct Gone {
    volumes: KnownVolumes,
    nameless: Vec<NamelessFile>,
    erased: Vec<(VolumeId, ErasedRecord)>,
}

/// What volume-routers erase, as far as they answered.
pub type Erasing = BTreeMap<NodeName, Vec<ErasureStatus>>;

impl Gone {
    /// Asks the registry.
    ///
    /// # Errors
    /// It is unreachable.
    pub async fn find(names: &Names) -> Result<Self, NamesError> {
        Ok(Self {
            volumes: names.known_volumes().await?,
            nameless: names.all_nameless().await?,
            erased: names.erased_volumes().await?,
        })
    }

    /// Records that cannot be read.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.volumes.damaged
    }

    /// The volumes that exist.
    #[must_use]
    pub fn active(&self) -> &[VolumeRecord] {
        &self.volumes.active
    }

    /// For people and programs.
    #[must_use]
    pub fn views(&self, nodes: &[NodeRecord], erasing: &Erasing) -> Vec<DeletionView> {
        let runs = |name: &NodeName| nodes.iter().any(|node| node.name == *name);
        let deleted = self.volumes.deleted.iter();
        let deleted = deleted.map(|record| deleted_view(record, runs(&record.owner), erasing));
        let nameless = self.nameless.iter().map(|file| DeletionView {
            id: file.volume.to_string(),
            node: file.holder.to_string(),
            state: match runs(&file.holder) {
                true => "removed, and still open there",
                false => "was open there when it was removed; that does not run: another fs-router deletes it in time",
            }
            .to_owned(),
            deleted_objects: None,
        });
        let erased = self.erased.iter().map(|(volume, note)| DeletionView {
            id: volume.to_string(),
            node: note.buffer.clone(),
            state: format!(
                "erased at {}; that write buffer may hold SCOs of it, which are given up when it is back",
                time_shown(note.erased_us)
            ),
            deleted_objects: None,
        });
        deleted.chain(nameless).chain(erased).collect()
    }
}

fn deleted_view(record: &VolumeRecord, runs: bool, erasing: &Erasing) -> DeletionView {
    let of_owner = erasing.get(&record.owner);
    let progress = of_owner.and_then(|all| all.iter().find(|erasure| erasure.volume == record.id));
    let state = match (progress, of_owner, runs) {
        (Some(erasure), ..) => erasure.state.clone(),
        (None, Some(_), _) => "not begun: it is tried again".to_owned(),
        (None, None, true) => "it does not answer".to_owned(),
        (None, None, false) => {
            "it does not run: another volume-router takes the deletion over in time".to_owned()
        }
    };
    DeletionView {
        id: record.id.to_string(),
        node: record.owner.to_string(),
        state,
        deleted_objects: progress.map(|erasure| erasure.deleted),
    }
}

/// As rows; nothing where there are none.
#[must_use]
pub fn deletion_table(deletions: &[DeletionView]) -> Option<String> {
    if deletions.is_empty() {
        return None;
    }
    let mut table = columns(&["DELETED VOLUME", "AT", "OBJECTS GONE", "STATE"], &[2]);
    for deletion in deletions {
        table.add_row([
            deletion.id.clone(),
            deletion.node.clone(),
            deletion
                .deleted_objects
                .map_or_else(unknown, |count| count.to_string()),
            deletion.state.clone(),
        ]);
    }
    Some(table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use sconce_schemas::Epoch;
    use sconce_schemas::records::VolumePhase;
    use sconce_schemas::wire::Role;

    use super::*;
    use crate::testing::{name, volume};

    fn deleted(number: u8, owner: &str) -> VolumeRecord {
        VolumeRecord {
            inode: 100,
            phase: VolumePhase::Deleting,
            epoch: Epoch(1),
            ..volume(number, owner)
        }
    }

    #[test]
    fn what_waits_for_whom_is_told() {
        let file = |number, holder| NamelessFile {
            holder: name(holder),
            inode: 7,
            volume: VolumeId([number; 16]),
        };
        let gone = Gone {
            volumes: KnownVolumes {
                active: Vec::new(),
                deleted: vec![
                    deleted(1, "vr-1"),
                    deleted(2, "vr-1"),
                    deleted(3, "silent"),
                    deleted(4, "lost"),
                ],
                damaged: Vec::new(),
            },
            nameless: vec![file(5, "fs-1"), file(6, "lost")],
            erased: vec![(
                VolumeId([7; 16]),
                ErasedRecord {
                    buffer: "b-7".to_owned(),
                    pool: "default".to_owned(),
                    erased_us: 0,
                },
            )],
        };
        let running = ["vr-1", "silent", "fs-1"].map(|text| NodeRecord {
            name: name(text),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 1,
            place: None,
            buffer: None,
        });
        let erasure = ErasureStatus {
            volume: VolumeId([1; 16]),
            deleted: 12,
            state: "deleting".to_owned(),
        };
        let erasing = [(name("vr-1"), vec![erasure])].into();
        let views = gone.views(&running, &erasing);
        let told: Vec<(&str, &str)> = views
            .iter()
            .map(|view| {
                (
                    view.node.as_str(),
                    view.state.split([':', ';', ',']).next().unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("vr-1", "deleting"),
                ("vr-1", "not begun"),
                ("silent", "it does not answer"),
                ("lost", "it does not run"),
                ("fs-1", "removed"),
                ("lost", "was open there when it was removed"),
                ("b-7", "erased at 1970-01-01T00"),
            ]
        );
        assert_eq!(
            (views[0].deleted_objects, views[1].deleted_objects),
            (Some(12), None)
        );
        assert!(deletion_table(&views).unwrap().contains("12"));
        assert_eq!(deletion_table(&[]), None);
    }
}
