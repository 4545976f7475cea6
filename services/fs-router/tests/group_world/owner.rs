//! An owner: an engine whose host does everything at once.
//!
//! Keeps: what was appended, and what was answered.
//! Order: an event's effects are carried out before the next event.
//! Crash: none.
//! Knows no other owner.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sconce_fs_router::peers::Say;
use sconce_schemas::records::DtlMode;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, SessionId, Slot, SnapshotId, VolumeId, VolumeSize};
use sconce_volume::{
    Ask, CheckpointPolicy, Effect, Event, Extent, Recovery, ScrubPolicy, SessionSlot, Step, SweepPolicy,
    Ticket, Volume, VolumeConfig,
};

use super::Broken;

const ID: SnapshotId = SnapshotId(7);
const NAME: &str = "cut";
/// Tickets of requests; those of writes are their stamps.
const ASK: Ticket = Ticket(1 << 32);
const READ: Ticket = Ticket(2 << 32);

pub(super) struct Owner {
    volume: Volume,
    session: SessionSlot,
    number: u64,
    now_us: u64,
    /// The first byte of each slot: its stamp.
    slots: BTreeMap<(ScoId, u16), u64>,
    acknowledged: BTreeSet<u64>,
    answer: Option<Result<(), String>>,
    read: Option<Vec<Extent>>,
    holding: bool,
    broken: Broken,
}

impl Owner {
    pub(super) fn new(number: usize, broken: Broken) -> Self {
        let config = VolumeConfig {
            id: VolumeId([u8::try_from(number).unwrap(); 16]),
            epoch: Epoch::FIRST,
            path: format!("/group/{number}"),
            pool: "default".into(),
            sco_size: ScoSize::new(64).unwrap(),
            initial_size: VolumeSize::new(1 << 20).unwrap(),
            epochs: Vec::new(),
            origin: None,
            map_memory: ByteLen(1 << 20),
            checkpoint: CheckpointPolicy::default(),
            scrub: ScrubPolicy::default(),
            sweep: SweepPolicy {
                every_us: 0,
                ..SweepPolicy::default()
            },
            dtl: DtlMode::None,
            dtl_behind: ByteLen(0),
        };
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, _) = recovery.finish();
        let session = volume.open_session(SessionId(1)).unwrap();
        Self {
            volume,
            session,
            number: 0,
            now_us: 1,
            slots: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            answer: None,
            read: None,
            holding: false,
            broken,
        }
    }

    pub(super) fn write(&mut self, stamp: u64) {
        self.number += 1;
        let byte = u8::try_from(stamp).unwrap();
        self.feed(Event::Io {
            ticket: Ticket(stamp),
            session: self.session,
            request: IoRequest {
                handle: 0,
                number: self.number,
                below: self.number,
                code: IoCode::Write,
                flags: IoFlags::default(),
                offset: 0,
                length: 4096,
            },
            data: Bytes::from(vec![byte; 4096]),
        });
    }

    pub(super) fn has_acknowledged(&self, stamp: u64) -> bool {
        self.acknowledged.contains(&stamp)
    }

    /// Whether acknowledgements are held.
    pub(super) const fn holds(&self) -> bool {
        self.holding
    }

    pub(super) fn told(&mut self, say: Say) -> Result<(), String> {
        let ask = match say {
            Say::Propose if self.broken == Broken::NothingHeld => Ask::Take {
                id: ID,
                name: NAME.to_owned(),
                metadata: BTreeMap::new(),
            },
            Say::Propose => Ask::Propose {
                id: ID,
                name: NAME.to_owned(),
                metadata: BTreeMap::new(),
            },
            Say::Confirm => Ask::Confirm { id: ID },
            Say::Withdraw => Ask::Withdraw { id: ID },
            Say::Remove => Ask::Remove {
                name: NAME.to_owned(),
            },
        };
        let answer = self.ask(ask);
        if matches!(say, Say::Confirm | Say::Withdraw) {
            self.holding = false;
        }
        match (say, answer) {
            (Say::Confirm, Err(_)) if self.broken == Broken::ConfirmedTooLate => Ok(()),
            // Confirmed, and its answer lost: what the driver of the rounds does then.
            (Say::Withdraw, Err(_)) => self.ask(Ask::Remove {
                name: NAME.to_owned(),
            }),
            (_, answer) => answer,
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<(), String> {
        self.answer = None;
        let now_us = self.now_us;
        self.feed(Event::Ask {
            ticket: ASK,
            ask,
            now_us,
        });
        self.answer.take().unwrap()
    }

    /// The hold has lasted for as long as it may.
    pub(super) fn expire(&mut self) {
        self.holding = false;
        self.feed(Event::HoldOver { snapshot: ID });
    }

    /// Once all has come to rest: whether there is a snapshot.
    pub(super) fn leftover(&mut self) -> bool {
        self.expire();
        for _ in 0..3 {
            self.now_us += 1_000_000;
            let now_us = self.now_us;
            self.feed(Event::Tick {
                now_us,
                pressed: false,
            });
        }
        let kept = self.volume.kept_roots();
        assert_eq!(kept.len(), self.volume.snapshots().len(), "a proposal stayed");
        !kept.is_empty()
    }

    /// What the snapshot has.
    pub(super) fn stamp_of_snapshot(&mut self) -> u64 {
        self.read = None;
        self.feed(Event::SnapshotIo {
            ticket: READ,
            snapshot: ID,
            request: IoRequest {
                handle: 0,
                number: 0,
                below: 0,
                code: IoCode::Read,
                flags: IoFlags::default(),
                offset: 0,
                length: 4096,
            },
        });
        match &self.read.take().unwrap()[..] {
            [Extent::Zeros { .. }] => 0,
            [Extent::Local { sco, first_slot, .. }] => self.slots[&(*sco, first_slot.0)],
            other => panic!("{other:?}"),
        }
    }

    fn feed(&mut self, event: Event) {
        self.now_us += 1;
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        self.carry_out(effects);
        let mut effects = Vec::new();
        let now_us = self.now_us;
        self.volume.apply(Event::BatchEnd { now_us }, &mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                if let Some(event) = self.answer_to(effect) {
                    self.volume.apply(event, &mut next);
                }
            }
            effects = next;
        }
    }

    fn answer_to(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::OpenSco { header } => Some(Event::ScoOpened { sco: header.id }),
            Effect::Append(append) => {
                let Slot(first) = append.first_slot;
                let stamps = append.data.concat();
                for (slot, cluster) in (first..).zip(stamps.chunks_exact(4096)) {
                    self.slots.insert((append.sco, slot), u64::from(cluster[0]));
                }
                Some(Event::AppendHeld { upto: append.seq })
            }
            Effect::Sync { upto } => Some(Event::Synced { upto }),
            Effect::Hold { .. } => {
                self.holding = true;
                None
            }
            Effect::Read { ticket, extents } => {
                assert_eq!(ticket, READ);
                self.read = Some(extents);
                None
            }
            Effect::Reply { ticket: ASK, reply } => {
                self.answer = Some(match reply {
                    VolumeReply::Done => Ok(()),
                    VolumeReply::Refused(refusal) => Err(refusal.text),
                    other => panic!("{other:?}"),
                });
                None
            }
            Effect::Reply { ticket, reply } => {
                assert_eq!(reply, VolumeReply::Done, "write {}", ticket.0);
                self.acknowledged.insert(ticket.0);
                None
            }
            Effect::Halt { reason } => panic!("{reason}"),
            // What is never done is as good as slow.
            _ => None,
        }
    }
}
