//! Scrubbing in the simulation: the host's part of it, and what must be on the back end at the end.
//!
//! Keeps: nothing.
//! Order: a SCO is read, rewritten and deleted at any moment, or not at all.
//! Crash: what was rewritten and is in no manifest stays as an object too many. So does what a neighbour wrote too late.

use std::collections::BTreeSet;

use bytes::Bytes;
use sconce_schemas::bundle::{BundleIndex, Member};
use sconce_schemas::crc::crc32c;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{Epoch, ObjectName, ScoId, ScoSize, Slot, VolumeId};
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

/// A bundle that a neighbour was asked for and may still write.
pub(crate) struct Late {
    name: ObjectName,
    bytes: Bytes,
    index: BundleIndex,
    /// The ownership that asked.
    epoch: Epoch,
}

impl World {
    pub(crate) fn read_tlog(&mut self, object: ScoObject) {
        self.late_bundle();
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
        self.late_bundle();
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
        let named = |version| name_of(self.id, ScoObject { version, ..above });
        // A name that was given away before comes to nothing else.
        let is_free = |version: &u16| {
            let name = named(*version);
            let late = self.late.iter().filter(|late| late.name == name);
            let mut there = self
                .store
                .get(&name)
                .into_iter()
                .chain(late.map(|late| &late.bytes));
            there.all(|there| *there == bytes)
        };
        let version = (above.version + 1..).find(is_free).expect("a free version");
        let name = named(version);
        self.merged += usize::from(index.members.len() > 1);
        // A neighbour is asked and comes to it late: the volume has it from somebody else by then, or has given up on it.
        if self.may_crash && self.chance.u32(0..6) == 0 {
            self.late.push(Late {
                name,
                bytes: bytes.clone(),
                index: index.clone(),
                epoch: self.epoch,
            });
            if self.chance.bool() {
                self.feed(Event::BundleWritten { above, to: None });
                return;
            }
        }
        self.put(name, bytes);
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
        self.late_bundle();
        let done = self.chance.u32(0..10) != 0;
        if done {
            self.store.remove(&name_of(self.id, object));
            self.bundles.remove(&name_of(self.id, object));
        }
        self.feed(Event::ScoDeleted { object, done });
    }

    /// A neighbour may come to what it was asked for at any time, as long as the ownership lasts that asked. What is there already is
    /// not overwritten.
    fn late_bundle(&mut self) {
        let now = self.epoch;
        self.late.retain(|late| late.epoch == now);
        if self.late.is_empty() || self.chance.u32(0..4) != 0 {
            return;
        }
        let at = self.chance.usize(0..self.late.len());
        let Late {
            name, bytes, index, ..
        } = self.late.swap_remove(at);
        if !self.store.contains_key(&name) {
            self.came_late += 1;
            self.put(name, bytes);
            self.bundles.insert(name, index);
        }
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
