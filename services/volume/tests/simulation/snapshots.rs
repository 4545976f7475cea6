//! Snapshots in the simulation: taken, removed and gone back to at any moment, and compared byte for byte.
//!
//! Keeps: the requests that wait for their answer.
//! Order: a rollback has the client's changes to itself, as a resize has; the others come at any time.
//! Crash: what was acknowledged survives the loss of power; each snapshot is what the log before its record says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{IoCode, VolumeReply};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{BatchSeq, ScoId, Slot, VolumeId};
use sconce_volume::{Ask, Effect, Event, Extent, ScoState, Ticket};

use crate::oracle::State;
use crate::world::{HOT, HOT_BYTES, World};

/// Most snapshots at a time: each is read whole after every crash.
const LIVING_MAX: usize = 5;

/// What a root holds, and every slot of the volume's own that it refers to.
pub(crate) struct Root {
    pub(crate) state: State,
    pub(crate) slots: BTreeSet<(ScoId, Slot)>,
}

/// Requests under way.
#[derive(Default)]
pub(crate) struct Asks {
    waiting: BTreeMap<Ticket, Ask>,
    /// What was done and may be asked for again, by somebody whose answer was lost.
    done: Vec<Ask>,
    names: u64,
    /// The snapshot that was proposed last.
    proposed: Option<SnapshotId>,
    /// The one for which acknowledgements are held for sure.
    held: Option<SnapshotId>,
    /// Those that may be let go from here on.
    decided: BTreeSet<SnapshotId>,
}

impl Asks {
    /// Whether anything was asked for that is not answered.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the volume is becoming another right now.
    pub(crate) fn is_rolling_back(&self) -> bool {
        self.waiting
            .values()
            .any(|ask| matches!(ask, Ask::RollBack { .. }))
    }

    pub(crate) fn held(&mut self, id: SnapshotId) {
        self.held = Some(id).filter(|id| !self.decided.contains(id));
    }

    pub(crate) fn let_go(&mut self, id: SnapshotId) {
        self.held.take_if(|held| *held == id);
    }

    /// What may be asked about the snapshot that was proposed.
    fn decision(&mut self, chance: &mut fastrand::Rng) -> Option<Ask> {
        let id = self.proposed.filter(|_| chance.u32(0..3) != 0)?;
        // It may be carried out at any moment from here on.
        self.decided.insert(id);
        self.let_go(id);
        match chance.u32(0..4) {
            0 => Some(Ask::Withdraw { id }),
            _ => Some(Ask::Confirm { id }),
        }
    }

    /// A crash: nobody waits any more. Whether a rollback may have happened or not.
    pub(crate) fn forget(&mut self) -> bool {
        let rolling = self.is_rolling_back();
        self.waiting.clear();
        self.done.clear();
        self.held = None;
        rolling
    }
}

impl World {
    pub(crate) fn submit_ask(&mut self) {
        if self.asks.is_rolling_back() {
            return;
        }
        if !self.asks.done.is_empty() && self.outstanding.is_empty() && self.chance.u32(0..4) == 0 {
            // It was done: nothing changes, whatever came after it.
            let ask = self.asks.done[self.chance.usize(0..self.asks.done.len())].clone();
            return self.send_ask(ask);
        }
        let names: Vec<String> = self
            .volume
            .snapshots()
            .into_iter()
            // The registry refuses to remove what clones begin as.
            .filter(|snapshot| !self.pinned.contains(&snapshot.label.id))
            .map(|snapshot| snapshot.label.name)
            .collect();
        let any = |chance: &mut fastrand::Rng| names.get(chance.usize(0..names.len().max(1))).cloned();
        self.asks.names += 1;
        let number = self.asks.names;
        let id = SnapshotId(number);
        let decision = self.asks.decision(&mut self.chance);
        let ask = match (self.chance.u32(0..10), any(&mut self.chance)) {
            _ if decision.is_some() => decision.unwrap(),
            (5..7, _) if names.len() < LIVING_MAX => {
                self.asks.proposed = Some(id);
                Ask::Propose {
                    id,
                    name: format!("part-{number}"),
                    metadata: BTreeMap::new(),
                }
            }
            // By its id, or by its name.
            (0..3, Some(name)) => match self.volume.snapshot_named(&name) {
                Some((id, _)) if number.is_multiple_of(2) => Ask::RemoveExactly { id },
                _ => Ask::Remove { name },
            },
            (3..5, Some(to)) if self.outstanding.is_empty() && self.asks.waiting.is_empty() => {
                Ask::RollBack {
                    to,
                    id,
                    keep: (names.len() < LIVING_MAX && self.chance.bool())
                        .then(|| format!("before-{number}")),
                }
            }
            _ if names.len() < LIVING_MAX => Ask::Take {
                id,
                name: format!("snapshot-{number}"),
                metadata: [("number".to_owned(), "x".repeat(self.chance.usize(0..300)))].into(),
            },
            _ => return,
        };
        self.send_ask(ask);
    }

    fn send_ask(&mut self, ask: Ask) {
        let ticket = self.ticket();
        let now_us = self.now_us;
        self.ask(ticket, ask, now_us);
    }

    pub(crate) fn ask(&mut self, ticket: Ticket, ask: Ask, now_us: u64) {
        self.asks.waiting.insert(ticket, ask.clone());
        self.feed(Event::Ask { ticket, ask, now_us });
    }

    /// Whether the answer was to a request of this file.
    pub(crate) fn answered_ask(&mut self, ticket: Ticket, reply: &VolumeReply) -> bool {
        let Some(ask) = self.asks.waiting.remove(&ticket) else {
            return false;
        };
        match reply {
            VolumeReply::Done => {
                // It is in the log, and its ack promises what a flush does.
                let end = self.log.end_of_ask(&ask);
                assert!(
                    end.is_some() || !matches!(ask, Ask::Confirm { .. }),
                    "{ask:?} is done, and the log does not say so"
                );
                self.flushed = self.flushed.max(end.unwrap_or_default());
                if matches!(ask, Ask::RollBack { .. }) {
                    self.model = self.log.state_at(self.log.last());
                    // One that waits for the twin may show what was before.
                    self.reads.clear();
                }
                if matches!(
                    ask,
                    Ask::Take { .. } | Ask::RollBack { .. } | Ask::RemoveExactly { .. }
                ) {
                    self.asks.done.push(ask);
                }
            }
            // Two removals of one snapshot may meet.
            VolumeReply::Refused(refusal) => {
                let expected = match ask {
                    Ask::Propose { .. } | Ask::Confirm { .. } => RefusalCode::Conflict,
                    Ask::Withdraw { .. } => RefusalCode::Exists,
                    _ => RefusalCode::NotFound,
                };
                assert!(
                    refusal.remedy == Remedy::Retry || refusal.code == expected,
                    "{refusal}"
                );
            }
            other => panic!("{other:?} answers {ask:?}"),
        }
        true
    }

    /// A change is acknowledged: nothing is that comes after a proposed snapshot which holds acknowledgements.
    pub(crate) fn check_not_held(&self, number: u64) {
        let from = self.asks.held.and_then(|id| self.log.proposed_in(id));
        let end = self.log.end_of(number).unwrap_or_default();
        assert!(
            from.is_none_or(|from| end < from),
            "operation {number}, in batch {end}, is acknowledged while batch {from:?} holds it"
        );
    }

    /// Every snapshot that the log up to `upto` has is there, and holds what it must.
    pub(crate) fn check_snapshots(&mut self, upto: BatchSeq) {
        let mut expected = self.log.snapshots_at(upto);
        // They come to be with the manifest that answers.
        expected.retain(|id, _| !self.moments.is_waited_for(*id));
        let found: BTreeMap<SnapshotId, String> = self
            .volume
            .snapshots()
            .into_iter()
            .map(|snapshot| (snapshot.label.id, snapshot.label.name))
            .collect();
        let names = expected.iter().map(|(id, (name, _))| (*id, name.clone()));
        assert_eq!(found, names.collect(), "the snapshots up to batch {upto}");
        for (id, (name, state)) in expected {
            assert_eq!(
                self.read_root(Some(id)).state,
                state,
                "snapshot {name} after batch {upto}"
            );
        }
    }

    /// The live counts of the SCO table are those of a scan of all roots.
    pub(crate) fn check_accounting(&mut self) {
        let kept = self.volume.kept_roots();
        let mut live = self.read_root(None).slots;
        for (id, _) in kept {
            live.extend(self.read_root(Some(id)).slots);
        }
        let mut found: BTreeMap<ScoId, u16> = BTreeMap::new();
        for (sco, _) in live {
            *found.entry(sco).or_default() += 1;
        }
        for (sco, state) in self.sco_states() {
            assert_eq!(
                found.remove(&sco).unwrap_or_default(),
                state.live,
                "live slots of SCO {sco}: what a scan finds, and what is counted"
            );
        }
        assert!(found.is_empty(), "SCOs that the table lacks: {found:?}");
    }

    /// What the SCO table says, its nodes loaded.
    pub(crate) fn sco_states(&mut self) -> Vec<(ScoId, ScoState)> {
        loop {
            match self.volume.sco_states() {
                Ok(states) => return states,
                Err((place, reference)) => {
                    let result = self.load_node(&reference);
                    self.feed_plain(Event::NodeLoaded {
                        place,
                        reference,
                        result,
                    });
                }
            }
        }
    }

    /// Reads the hot regions of a root, loading what is needed.
    pub(crate) fn read_root(&mut self, of: Option<SnapshotId>) -> Root {
        let size = match of {
            None => self.volume.size(),
            Some(id) => {
                let kept = self.volume.kept_roots();
                kept.iter().find(|(kept, _)| *kept == id).unwrap().1
            }
        };
        let mut root = Root {
            state: State {
                size: size.bytes(),
                ..State::default()
            },
            slots: BTreeSet::new(),
        };
        for base in HOT {
            let length = HOT_BYTES.min(size.bytes().saturating_sub(base));
            let extents = self.read_extents(of, base, length);
            let mut cluster = base / 4096;
            for extent in extents {
                for stamps in self.contents(&extent) {
                    root.state.set(cluster, stamps);
                    cluster += 1;
                }
                root.note(self.id, &extent);
            }
        }
        root
    }

    pub(crate) fn read_extents(&mut self, of: Option<SnapshotId>, offset: u64, length: u64) -> Vec<Extent> {
        let (ticket, request) = self.query(IoCode::Read, offset, length);
        let event = match of {
            None => Event::Io {
                ticket,
                session: self.slot,
                request,
                data: Bytes::new(),
            },
            Some(snapshot) => Event::SnapshotIo {
                ticket,
                snapshot,
                request,
            },
        };
        // Looking at it is no part of the life.
        let crash_in = self.crash_in.take();
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        let mut extents = None;
        while extents.is_none() {
            if effects.is_empty() {
                // It waits for a node that somebody else asked for, or for the twin.
                if let Some((place, reference)) = self.take_pending_load() {
                    effects.push(Effect::LoadNode { place, reference });
                } else {
                    let heard = self.hear_of_twin().expect("a read is answered");
                    self.volume.apply(heard, &mut effects);
                }
                continue;
            }
            match effects.remove(0) {
                Effect::Read {
                    ticket: at,
                    extents: found,
                } if at == ticket => extents = Some(found),
                Effect::LoadNode { place, reference } => {
                    let result = self.load_node(&reference);
                    let loaded = Event::NodeLoaded {
                        place,
                        reference,
                        result,
                    };
                    self.volume.apply(loaded, &mut effects);
                }
                other => self.carry_out(other),
            }
        }
        effects.into_iter().for_each(|effect| self.carry_out(effect));
        self.crash_in = crash_in;
        extents.expect("a read is answered")
    }
}

impl Root {
    fn note(&mut self, own: VolumeId, extent: &Extent) {
        let (sco, first, count) = match extent {
            Extent::Zeros { .. } => return,
            // An ancestor's.
            Extent::Stored { volume, .. } if *volume != own => return,
            Extent::Local {
                sco,
                first_slot,
                crcs,
            }
            | Extent::Stored {
                sco,
                first_slot,
                crcs,
                ..
            } => (*sco, first_slot.0, crcs.len()),
        };
        let last = first + u16::try_from(count).unwrap();
        self.slots.extend((first..last).map(|slot| (sco, Slot(slot))));
    }
}
