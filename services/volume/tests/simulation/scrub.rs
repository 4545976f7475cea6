//! Scrubbing in the simulation: the host's part of it, and what must be on the back end at the end.
//!
//! Keeps: nothing.
//! Order: a SCO is read, rewritten and deleted at any moment, or not at all.
//! Crash: what was rewritten and is in no manifest stays as an object too many.

use std::collections::BTreeSet;

use bytes::Bytes;
use sconce_schemas::bundle::{BundleIndex, Member};
use sconce_schemas::crc::crc32c;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ObjectName, ScoId, ScoSize, Slot, VolumeId};
use sconce_volume::{Ask, BundlePlan, Event, ScoObject};

use crate::world::World;

pub(crate) fn name_of(volume: VolumeId, object: ScoObject) -> ObjectName {
    ObjectName::Sco {
        volume,
        id: object.sco,
        epoch: object.epoch,
        version: object.version,
    }
}

/// Where the cluster of a slot is in a bundle.
pub(crate) fn place_in(index: &BundleIndex, sco: ScoId, slot: Slot) -> Option<usize> {
    let kept = index
        .members
        .iter()
        .flat_map(|member| member.kept.iter().map(|kept| (member.sco, kept.slot)));
    let at = kept.clone().position(|kept| kept == (sco, slot))?;
    Some(index.index_len() + at * 4096)
}

impl World {
    pub(crate) fn read_tlog(&mut self, object: ScoObject) {
        let stored = &self.store[&name_of(self.id, object)];
        let areas = usize::try_from(ScoSize::new(64).unwrap().data_offset()).unwrap();
        let result = match self.chance.u32(0..20) {
            0 => Err(Refusal::retry(RefusalCode::Unavailable, "not now")),
            _ if object.is_bundle() => Ok(stored.slice(..BundleIndex::len_of(stored).unwrap())),
            _ => Ok(stored.slice(..areas)),
        };
        self.feed(Event::TlogRead { object, result });
    }

    pub(crate) fn write_bundle(&mut self, plan: &BundlePlan) {
        let above = plan.above;
        if self.chance.u32(0..10) == 0 {
            self.feed(Event::BundleWritten { above, to: None });
            return;
        }
        let (mut members, mut clusters) = (Vec::new(), Vec::new());
        for source in &plan.sources {
            assert!(self.store.contains_key(&name_of(self.id, source.object)));
            for sco in source.scos.iter().filter(|sco| !sco.kept.is_empty()) {
                for kept in &sco.kept {
                    let cluster = self.stored_cluster(source.object, sco.sco, kept.slot);
                    assert_eq!(crc32c(&cluster), kept.crc, "SCO {} slot {}", sco.sco, kept.slot.0);
                    clusters.push(cluster);
                }
                members.push(Member {
                    sco: sco.sco,
                    epoch: sco.epoch,
                    size: sco.size,
                    length: sco.size.file_len(),
                    kept: sco.kept.clone(),
                });
            }
        }
        let index = BundleIndex {
            volume: self.id,
            members,
        };
        let bytes = index.pack(clusters.iter().map(|cluster| &cluster[..])).unwrap();
        let newest = self.versions_of(self.id, above).last().copied().unwrap_or(0);
        let version = above.version.max(newest) + 1;
        let name = name_of(self.id, ScoObject { version, ..above });
        assert!(self.put(name, bytes), "{name} is there already");
        self.merged += usize::from(index.members.len() > 1);
        self.bundles.insert(name, index);
        // Of some the answer is lost: what is there without the volume's knowledge may be read all the same.
        let to = (!self.may_crash || self.chance.u32(0..10) != 0).then_some(version);
        self.feed(Event::BundleWritten { above, to });
    }

    fn stored_cluster(&self, object: ScoObject, sco: ScoId, slot: Slot) -> Bytes {
        let name = name_of(self.id, object);
        let at = match self.bundles.get(&name) {
            Some(index) => place_in(index, sco, slot).expect("it is in the bundle"),
            None => usize::try_from(ScoSize::new(64).unwrap().slot_offset(slot)).unwrap(),
        };
        self.store[&name].slice(at..at + 4096)
    }

    pub(crate) fn delete_sco(&mut self, object: ScoObject) {
        let done = self.chance.u32(0..10) != 0;
        if done {
            self.store.remove(&name_of(self.id, object));
            self.bundles.remove(&name_of(self.id, object));
        }
        self.feed(Event::ScoDeleted { object, done });
    }

    /// Versions of a SCO that are there, ascending.
    fn versions_of(&self, volume: VolumeId, object: ScoObject) -> Vec<u16> {
        let last = ScoObject {
            version: u16::MAX,
            ..object
        };
        let first = ScoObject { version: 0, ..object };
        let there = self.store.range(name_of(volume, first)..=name_of(volume, last));
        let versions = there.filter_map(|(name, _)| match name {
            ObjectName::Sco {
                id, epoch, version, ..
            } if *id == object.sco && *epoch == object.epoch => Some(*version),
            _ => None,
        });
        versions.collect()
    }

    /// What the SCO table refers to is there; nothing else is, but for what crashes left.
    pub(crate) fn check_space(&mut self) {
        let states = self.sco_states();
        let referred: BTreeSet<ObjectName> = states
            .iter()
            .map(|(sco, state)| {
                assert!(state.live <= state.slots, "SCO {sco}: {state:?}");
                name_of(self.id, self.volume.object_of(*sco, *state))
            })
            .collect();
        let there: BTreeSet<ObjectName> = self
            .store
            .keys()
            .filter(|name| name.kind() == ObjectKind::Sco && name.volume() == self.id)
            .copied()
            .collect();
        let missing: Vec<_> = referred.difference(&there).collect();
        assert!(
            missing.is_empty(),
            "the SCO table refers to what is not there: {missing:?}"
        );
        if !self.may_crash {
            let more: Vec<_> = there.difference(&referred).collect();
            assert!(more.is_empty(), "nothing refers to these: {more:?}");
        }
    }

    /// Removes all snapshots, discards all there is, lets scrubbing end, and finds no SCO left.
    pub(crate) fn remove_everything(&mut self) {
        self.turn_history(0);
        for snapshot in self.volume.snapshots() {
            let ticket = self.ticket();
            let ask = Ask::Remove {
                name: snapshot.label.name,
            };
            self.feed(Event::Ask {
                ticket,
                ask,
                now_us: self.now_us,
            });
        }
        self.submit_resize_to(0);
        self.settle();
        self.check_space();
        let (_, live) = self
            .sco_states()
            .into_iter()
            .fold((0, 0), |(scos, live), (_, state)| {
                (scos + 1, live + u64::from(state.live))
            });
        assert_eq!(live, 0, "slots that something still refers to");
        let left = self
            .store
            .keys()
            .filter(|name| name.kind() == ObjectKind::Sco && name.volume() == self.id)
            .count();
        // What holds the last discards' records itself is covered by the newest manifest and empty: it goes as well.
        assert_eq!(left, 0, "SCOs that are left");
    }
}
