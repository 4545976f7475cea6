//! The back ends: objects by name, and what is read of them.
//!
//! Keeps: the objects.
//! Order: none.
//! Crash: they stay.
//! Knows no volume; what is asked for and is not there ends the test.

use std::collections::BTreeMap;

use bytes::Bytes;
use sconce_schemas::checkpoint::{NodeRecord, NodeRef, decode_node};
use sconce_schemas::crc::crc32c;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::{ObjectName, ScoSize, Slot, VolumeId};
use sconce_volume::Extent;

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<ObjectName, Bytes>,
}

pub(crate) fn sco_size() -> ScoSize {
    ScoSize::new(64).unwrap()
}

pub(crate) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

pub(crate) fn volume_of(name: &ObjectName) -> VolumeId {
    match name {
        ObjectName::Sco { volume, .. }
        | ObjectName::Map { volume, .. }
        | ObjectName::Manifest { volume, .. } => *volume,
    }
}

impl Store {
    pub(crate) fn put(&mut self, name: ObjectName, bytes: &Bytes) {
        let stored = self.objects.entry(name).or_insert_with(|| bytes.clone());
        assert!(stored == bytes, "{name} is there with other bytes");
    }

    /// Everything of a volume goes.
    pub(crate) fn erase(&mut self, volume: VolumeId) {
        self.objects.retain(|name, _| volume_of(name) != volume);
    }

    pub(crate) fn newest_manifest(&self, volume: VolumeId) -> Option<Manifest> {
        let names = self.objects.iter();
        let of_volume =
            names.filter(|(name, _)| name.kind() == ObjectKind::Manifest && volume_of(name) == volume);
        let manifests = of_volume.map(|(_, bytes)| Manifest::from_bytes(bytes).unwrap());
        manifests.max_by_key(|manifest| (manifest.epoch, manifest.seq))
    }

    /// A node and what it is a delta on, newest first.
    pub(crate) fn node(&self, lineage: &[VolumeId], reference: NodeRef) -> Vec<NodeRecord> {
        let mut records = Vec::new();
        let mut next = Some(reference);
        while let Some(reference) = next {
            let volume = lineage[usize::from(reference.lineage.0)];
            let name = ObjectName::Map {
                volume,
                id: reference.checkpoint,
                epoch: reference.epoch,
            };
            let object = self
                .objects
                .get(&name)
                .unwrap_or_else(|| panic!("{name} is gone"));
            let from = reference.offset as usize;
            let bytes = &object[from..from + reference.length as usize];
            let record = decode_node(volume, &reference, bytes).unwrap();
            next = record.base;
            records.push(record);
        }
        records
    }

    /// The clusters of a stored extent; an object that is gone gives way to its newest version, as at a storage-router.
    pub(crate) fn clusters(&self, extent: &Extent) -> Vec<Bytes> {
        let Extent::Stored {
            volume,
            sco,
            epoch,
            version,
            first_slot,
            crcs,
        } = extent
        else {
            panic!("{extent:?} is not on the back ends");
        };
        let name = |version| ObjectName::Sco {
            volume: *volume,
            id: *sco,
            epoch: *epoch,
            version,
        };
        let object = self.objects.get(&name(*version)).or_else(|| {
            let mut versions = (0..100).rev();
            versions.find_map(|version| self.objects.get(&name(version)))
        });
        let object = object.unwrap_or_else(|| panic!("{} is gone", name(*version)));
        let slots = (first_slot.0..).map(Slot).zip(crcs);
        slots
            .map(|(slot, crc)| {
                let at = index(sco_size().slot_offset(slot));
                let cluster = object.slice(at..at + 4096);
                assert_eq!(crc32c(&cluster), *crc, "{} slot {}", name(*version), slot.0);
                cluster
            })
            .collect()
    }
}
