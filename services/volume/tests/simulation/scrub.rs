//! Scrubbing in the simulation: the host's part of it, and what must be on the back end at the end.
//!
//! Keeps: nothing.
//! Order: a SCO is read, rewritten and deleted at any moment, or not at all.
//! Crash: what was rewritten and is in no manifest stays as an object too many.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::{ObjectName, ScoId, ScoSize, Slot, VolumeId};
use sconce_volume::{Ask, Event, Kept, ScoObject};

use crate::world::World;

pub(crate) fn name_of(volume: VolumeId, object: ScoObject) -> ObjectName {
    ObjectName::Sco {
        volume,
        id: object.sco,
        epoch: object.epoch,
        version: object.version,
    }
}

impl World {
    pub(crate) fn read_tlog(&mut self, object: ScoObject) {
        let stored = &self.store[&name_of(self.id, object)];
        let areas = usize::try_from(ScoSize::new(64).unwrap().data_offset()).unwrap();
        let result = Ok(stored.slice(..areas));
        self.feed(Event::TlogRead { object, result });
    }

    pub(crate) fn rewrite_sco(&mut self, from: ScoObject, kept: &Kept) {
        if self.chance.u32(0..10) == 0 {
            self.feed(Event::ScoRewritten { from, to: None });
            return;
        }
        let size = ScoSize::new(64).unwrap();
        let mut bytes = BytesMut::from(&self.store[&name_of(self.id, from)][..]);
        for slot in (0..size.slots()).map(Slot).filter(|slot| !kept.has(*slot)) {
            let at = usize::try_from(size.slot_offset(slot)).unwrap();
            if let Some(cluster) = bytes.get_mut(at..at + 4096) {
                cluster.fill(0);
            }
        }
        let newest = self.versions_of(self.id, from).last().copied().unwrap();
        let to = newest + 1;
        let name = name_of(self.id, ScoObject { version: to, ..from });
        assert!(self.store.insert(name, Bytes::from(bytes)).is_none());
        self.feed(Event::ScoRewritten { from, to: Some(to) });
    }

    pub(crate) fn delete_sco(&mut self, object: ScoObject) {
        let done = self.chance.u32(0..10) != 0;
        if done {
            self.store.remove(&name_of(self.id, object));
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

    /// The newest version of a SCO that is there.
    pub(crate) fn newest_version(&self, volume: VolumeId, object: ScoObject) -> Option<ObjectName> {
        let version = *self.versions_of(volume, object).last()?;
        Some(name_of(volume, ScoObject { version, ..object }))
    }

    /// What the SCO table refers to is there; nothing else is, but for what crashes left.
    pub(crate) fn check_space(&mut self) {
        let states = self.sco_states();
        let epochs = self.epochs.clone();
        let epoch_of = |sco: ScoId| {
            epochs
                .iter()
                .rev()
                .find(|start| start.first_sco <= sco)
                .unwrap()
                .epoch
        };
        let referred: BTreeSet<ObjectName> = states
            .iter()
            .map(|(sco, state)| {
                assert!(state.live <= state.slots, "SCO {sco}: {state:?}");
                name_of(
                    self.id,
                    ScoObject {
                        sco: *sco,
                        epoch: epoch_of(*sco),
                        version: state.version,
                    },
                )
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
        if self.crashes == 0 {
            let more: Vec<_> = there.difference(&referred).collect();
            assert!(more.is_empty(), "nothing refers to these: {more:?}");
        }
    }

    /// Removes all snapshots, discards all there is, lets scrubbing end, and finds no SCO left.
    pub(crate) fn remove_everything(&mut self) {
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
