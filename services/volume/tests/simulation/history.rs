//! The history in the simulation: turned on and off, moments asked for at any time within it and beside it, each compared byte
//! for byte with what the log says of that time.
//!
//! Keeps: moments that were asked for and are not answered, and those that are answered and not compared yet.
//! Order: what a moment is is settled when it is asked for.
//! Crash: one that was answered stays; one that was not is there whole, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{Epoch, ObjectName, ScoId, ScoSize, SnapshotId};
use sconce_volume::{Ask, Event, MomentAsk, Ticket};

use crate::world::World;

/// Most moments and snapshots at a time: each is read whole after every crash.
const LIVING_MAX: usize = 7;
const WINDOW_US: u64 = 30_000_000;
/// A manifest has few points, whatever was written.
const POINTS_MAX: usize = 150;

#[derive(Default)]
pub(crate) struct Moments {
    waiting: BTreeMap<Ticket, SnapshotId>,
    unchecked: BTreeSet<SnapshotId>,
    next: u64,
    /// Moments that were had, and those of them that lay before a rollback or a removal or a whole SCO.
    pub(crate) had: usize,
    pub(crate) refused: usize,
}

impl Moments {
    pub(crate) fn is_waited_for(&self, id: SnapshotId) -> bool {
        self.waiting.values().any(|waited| *waited == id)
    }
}

impl World {
    pub(crate) fn turn_history(&mut self, window_us: u64) {
        let ticket = self.ticket();
        let (ask, now_us) = (Ask::History { window_us }, self.now_us);
        self.ask(ticket, ask, now_us);
    }

    pub(crate) fn submit_history(&mut self) {
        let status = self.volume.history_status();
        assert!(status.points <= POINTS_MAX, "{status:?}");
        match self.chance.u32(0..30) {
            0 => self.turn_history(0),
            1 => {
                let window_us = self.chance.u64(WINDOW_US / 4..WINDOW_US);
                self.turn_history(window_us);
            }
            _ if status.window_us == 0 => self.turn_history(WINDOW_US),
            _ => self.submit_moment(status.from_us),
        }
    }

    fn submit_moment(&mut self, from_us: Option<u64>) {
        if self.volume.snapshots().len() + self.moments.waiting.len() >= LIVING_MAX {
            return;
        }
        let from = from_us.unwrap_or(self.now_us).min(self.now_us);
        let time_us = match self.chance.u32(0..12) {
            0 => from.saturating_sub(self.chance.u64(1..1_000_000)),
            1 => self.now_us + self.chance.u64(1..1_000_000),
            _ => self.chance.u64(from..=self.now_us),
        };
        self.moments.next += 1;
        let number = self.moments.next;
        let (id, name) = (SnapshotId((1 << 40) + number), format!("moment-{number}"));
        let ask = MomentAsk {
            id,
            name: name.clone(),
            metadata: BTreeMap::new(),
            time_us,
        };
        let (ticket, now_us) = (self.ticket(), self.now_us);
        self.moments.waiting.insert(ticket, id);
        let refused = self.moments.refused;
        self.feed(Event::Moment { ticket, ask, now_us });
        if self.crash_in == Some(0) {
            self.moments.waiting.remove(&ticket);
            return;
        }
        let can_be_had = from_us.is_some_and(|from| from <= time_us) && time_us <= now_us;
        assert_eq!(
            self.moments.refused == refused,
            can_be_had,
            "a moment at {time_us}: history from {from_us:?}, now {now_us}"
        );
        if can_be_had {
            let state = self.log.state_at(self.log.batch_at(time_us));
            self.log.keep_moment(id, name, state);
        }
    }

    /// Whether the answer was to a moment.
    pub(crate) fn answered_moment(&mut self, ticket: Ticket, reply: &VolumeReply) -> bool {
        let Some(id) = self.moments.waiting.remove(&ticket) else {
            return false;
        };
        match reply {
            VolumeReply::Done => {
                self.moments.unchecked.insert(id);
                self.moments.had += 1;
            }
            VolumeReply::Refused(refusal) => {
                let is_right = match refusal.code {
                    RefusalCode::Invalid => refusal.text.contains("in the future"),
                    RefusalCode::NotFound => refusal.text.contains("its history"),
                    RefusalCode::Unsupported => refusal.text.contains("turned off"),
                    _ => refusal.remedy == Remedy::Retry,
                };
                assert!(is_right, "{refusal}");
                self.log.moments.remove(&id);
                self.moments.refused += 1;
            }
            other => panic!("{other:?} answers a moment"),
        }
        true
    }

    /// What was answered is what it must be.
    pub(crate) fn check_moments(&mut self) {
        for id in std::mem::take(&mut self.moments.unchecked) {
            // It may be removed already.
            if self.volume.snapshots().iter().any(|found| found.label.id == id) {
                let (name, state) = self.log.moments[&id].clone();
                self.read_root(Some(id)).state.assert_is(&state, &name);
            }
        }
    }

    /// A crash: of the moments that were not answered some came to be, the others never will.
    pub(crate) fn forget_lost_moments(&mut self) {
        let there: BTreeSet<SnapshotId> = self
            .volume
            .snapshots()
            .iter()
            .map(|found| found.label.id)
            .collect();
        for id in std::mem::take(&mut self.moments.waiting).into_values() {
            if !there.contains(&id) {
                self.log.moments.remove(&id);
            }
        }
    }

    pub(crate) fn read_log(&mut self, sco: ScoId, epoch: Epoch, local: bool) {
        let length = ScoSize::new(64).unwrap().data_offset();
        let here = self.disk.image(sco, length).filter(|_| local);
        let bytes = here.map(bytes::Bytes::copy_from_slice).unwrap_or_else(|| {
            let name = ObjectName::Sco {
                volume: self.id,
                id: sco,
                epoch,
                version: 0,
            };
            let object = self
                .store
                .get(&name)
                .unwrap_or_else(|| panic!("{name} is gone, and a moment needs it"));
            object.slice(..usize::try_from(length).unwrap())
        });
        let result = Ok(bytes);
        self.feed(Event::LogRead { sco, epoch, result });
    }
}
