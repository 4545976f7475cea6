//! Which machines may be lost: an acknowledgement promises to survive the loss of one that holds it, not of two.
//!
//! Keeps: of each volume the record as it was last seen, and the machines whose part of it is not whole since they were lost.
//! Order: the registry's.
//! Crash: nothing.
//! Knows records and write buffers' names.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use sconce_registry::Registry;
use sconce_schemas::records::{DtlState, VolumeRecord, keys};
use sconce_schemas::{NodeName, VolumeId};

/// Who holds what.
#[derive(Default)]
pub(crate) struct Promises {
    volumes: RefCell<BTreeMap<VolumeId, Known>>,
}

struct Known {
    record: VolumeRecord,
    /// Machines that were lost since they last had all of it.
    not_whole: BTreeSet<String>,
}

/// What names a machine's write buffer now.
pub(crate) type Buffers = BTreeMap<String, String>;

impl Promises {
    /// Follows the records for as long as the simulation lasts.
    pub(crate) async fn follow(
        self: Rc<Self>,
        registry: Registry,
    ) -> Result<(), sconce_registry::RegistryError> {
        let mut after = registry.revision().await?;
        for (_, record, _) in registry.list_records::<VolumeRecord>(keys::VOLUMES).await? {
            self.seen(record);
        }
        loop {
            let watched = registry
                .watch(keys::VOLUMES, after, Duration::from_secs(30))
                .await?;
            for event in watched.events {
                if let Some(entry) = event.entry {
                    self.seen(sconce_registry::record::decode::<VolumeRecord>(&entry)?);
                }
            }
            after = watched.revision;
        }
    }

    fn seen(&self, record: VolumeRecord) {
        let mut volumes = self.volumes.borrow_mut();
        let known = volumes.entry(record.id).or_insert_with(|| Known {
            record: record.clone(),
            not_whole: BTreeSet::new(),
        });
        match record.dtl_state {
            // The owner alone has all of it, or what is left.
            DtlState::Degraded | DtlState::Off => {
                let owner = record.owner.to_string();
                known.not_whole.retain(|lost| *lost != owner);
            }
            // Its twin was made whole before this.
            DtlState::InSync if known.record.dtl_state != DtlState::InSync => {
                let host = record.dtl_host.as_ref().map(ToString::to_string);
                known.not_whole.retain(|lost| Some(lost) != host.as_ref());
            }
            DtlState::InSync => {}
        }
        known.record = record;
    }

    /// Whether every volume survives the loss of this machine, with its disk or with what is not synced on it.
    pub(crate) fn survive_without(&self, machine: &str, buffers: &Buffers) -> bool {
        self.volumes.borrow().values().all(|known| {
            let holders = known.holders(buffers);
            !holders.contains(machine) || holders.len() > 1
        })
    }

    /// The machine was lost.
    pub(crate) fn lost(&self, machine: &str) {
        for known in self.volumes.borrow_mut().values_mut() {
            known.not_whole.insert(machine.to_owned());
        }
    }

    /// A volume's owner, and the host of its twin where the record relies on one.
    pub(crate) fn owner_and_twin(&self, volume: VolumeId) -> Option<(NodeName, Option<NodeName>)> {
        let volumes = self.volumes.borrow();
        let record = &volumes.get(&volume)?.record;
        let twin = record
            .dtl_host
            .clone()
            .filter(|_| record.dtl_state == DtlState::InSync);
        Some((record.owner.clone(), twin))
    }
}

impl Known {
    /// The machines that have every acknowledged write in their write buffers; all of them, where the back ends have it.
    fn holders(&self, buffers: &Buffers) -> BTreeSet<String> {
        let VolumeRecord {
            buffer,
            dtl_state,
            dtl_buffer,
            ..
        } = &self.record;
        let relied = match dtl_state {
            DtlState::InSync => [buffer.as_ref(), dtl_buffer.as_ref()],
            DtlState::Degraded | DtlState::Off => [buffer.as_ref(), None],
        };
        let of = |wanted: &String| {
            buffers
                .iter()
                .find(|(_, buffer)| *buffer == wanted)
                .map(|(name, _)| name.clone())
        };
        let named = relied.into_iter().flatten().filter_map(of);
        named.filter(|name| !self.not_whole.contains(name)).collect()
    }
}
