//! The twin: another machine's write buffer, a stream to it that may be cut at any moment, and the registry's word on it.
//!
//! Keeps: what was said and not heard yet, what was answered and not heard yet, the twin's disk.
//! Order: a stream is heard in order; how far it is when something happens is drawn from the seed.
//! Crash: the owner's machine is lost, disk and all: if the record says that the twin is in sync, it takes over from its disk.
//! Knows the engine by what it says of the twin.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use sconce_schemas::records::DtlMode;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{BatchSeq, ScoId, ScoSize, Slot};
use sconce_volume::{Append, Effect, Event, Extent, TwinState};

use super::{Pending, World};
use crate::disk::Disk;

/// Something that was said to the twin.
enum Said {
    Open(ScoHeader),
    Append(Append),
    Copy(ScoId, Bytes),
    Sync(BatchSeq),
    Release(ScoId),
}

/// What there is of twins.
#[derive(Default)]
pub(crate) struct Twins {
    pub(crate) mode: DtlMode,
    /// The disk of the machine that the record names, or would name next.
    disk: Option<Disk>,
    said: VecDeque<Said>,
    answers: VecDeque<Event>,
    /// The stream is not cut.
    listens: bool,
    /// The record says that it is in sync.
    pub(super) in_sync: bool,
    /// Where each batch's slots begin.
    places: BTreeMap<(ScoId, Slot), BatchSeq>,
    /// The last batch that was acknowledged, and the last that a read has shown.
    pub(crate) acknowledged: BatchSeq,
    shown: BatchSeq,
    /// What happened, for the test's own measure.
    pub(crate) takeovers: usize,
    pub(crate) degraded: usize,
}

impl World {
    /// One effect for the twin. What is said to a stream that is cut nobody hears.
    pub(super) fn carry_out_for_twin(&mut self, effect: &Effect) {
        let said = match *effect {
            Effect::TwinOpen { header } => Said::Open(header),
            Effect::TwinCopy {
                sco,
                tlog_len,
                length,
                ..
            } => Said::Copy(sco, self.object(sco, tlog_len, length)),
            Effect::TwinSync { upto } => Said::Sync(upto),
            Effect::TwinRelease { upto } => Said::Release(upto),
            Effect::RecordInSync => return self.pending.push(Pending::RecordInSync),
            Effect::RecordDegraded => {
                // The one before it is over by then, whatever came of it.
                let before = self.pending.len();
                self.pending
                    .retain(|pending| !matches!(pending, Pending::RecordInSync));
                if self.pending.len() < before {
                    self.twins.in_sync |= self.chance.bool();
                }
                self.twins.degraded += 1;
                return self.pending.push(Pending::RecordDegraded);
            }
            _ => unreachable!("it is none of the twin's"),
        };
        self.say(said);
    }

    fn say(&mut self, said: Said) {
        if self.twins.listens {
            self.twins.said.push_back(said);
        }
    }

    /// A batch leaves: to the twin first, as the host does.
    pub(super) fn tell_twin(&mut self, append: &Append) {
        self.twins
            .places
            .insert((append.sco, append.first_slot), append.seq);
        if append.twin {
            self.say(Said::Append(Append {
                data: append.data.clone(),
                tlog: append.tlog.clone(),
                ..*append
            }));
        }
    }

    pub(super) fn record_in_sync(&mut self) {
        match self.chance.u32(0..8) {
            // Nobody knows what came of it.
            0 => {
                self.twins.in_sync |= self.chance.bool();
                self.cut_twin();
            }
            _ => {
                self.twins.in_sync = true;
                self.feed(Event::TwinInSync);
            }
        }
    }

    pub(super) fn record_degraded(&mut self) {
        self.twins.in_sync = false;
        self.feed(Event::TwinDegraded);
    }

    /// Something happens between the owner and its twin, if it has or wants one.
    pub(super) fn twin_step(&mut self) {
        match self.volume.twin_status().state {
            TwinState::Off | TwinState::Losing => {}
            TwinState::Searching if self.chance.u32(0..4) == 0 => {
                assert!(!self.twins.in_sync, "the record relies on a twin that is not");
                self.twins.disk = Some(Disk::new(ScoSize::new(64).unwrap(), self.chance.usize(20..80)));
                self.twins.said.clear();
                self.twins.answers.clear();
                self.twins.listens = true;
                self.feed(Event::TwinAttached);
            }
            TwinState::Searching => {}
            _ if self.chance.u32(0..60) == 0 => self.cut_twin(),
            _ => self.finish_one_of_twin(),
        }
    }

    /// The mode is changed; a weaker one is in the record before it counts.
    pub(super) fn change_twin_mode(&mut self) {
        let mode = [DtlMode::None, DtlMode::Async, DtlMode::Sync][self.chance.usize(0..3)];
        if self.twins.mode == DtlMode::Async {
            // What was acknowledged before it reached the twin was not promised to be there, and is not promised now.
            (self.twins.acknowledged, self.twins.shown) = (BatchSeq::NONE, BatchSeq::NONE);
        }
        self.twins.mode = mode;
        self.feed(Event::TwinMode { mode });
    }

    fn cut_twin(&mut self) {
        self.twins.listens = false;
        self.twins.said.clear();
        self.twins.answers.clear();
        self.feed(Event::TwinLost);
    }

    /// Whether nothing is on its way.
    pub(super) fn twin_is_quiet(&self) -> bool {
        self.twins.said.is_empty() && self.twins.answers.is_empty()
    }

    /// What is said is heard, or what is answered.
    pub(super) fn finish_one_of_twin(&mut self) {
        if self.chance.bool()
            && let Some(answer) = self.twins.answers.pop_front()
        {
            return self.feed(answer);
        }
        if !self.hear_one() {
            self.cut_twin();
        }
    }

    /// What the owner hears next of its twin, whatever else there is.
    pub(crate) fn hear_of_twin(&mut self) -> Option<Event> {
        if self.volume.twin_status().state == TwinState::Losing {
            self.pending
                .retain(|pending| !matches!(pending, Pending::RecordDegraded));
            self.twins.in_sync = false;
            return Some(Event::TwinDegraded);
        }
        while self.twins.answers.is_empty() && !self.twins.said.is_empty() {
            if !self.hear_one() {
                self.twins.listens = false;
                self.twins.said.clear();
                return Some(Event::TwinLost);
            }
        }
        self.twins.answers.pop_front()
    }

    /// `false`: the twin's disk is full.
    fn hear_one(&mut self) -> bool {
        let (Some(said), Some(disk)) = (self.twins.said.pop_front(), &mut self.twins.disk) else {
            return true;
        };
        let answer = match said {
            Said::Open(header) => return disk.open(&header),
            Said::Append(append) => {
                disk.append(&append, usize::MAX);
                Event::TwinHeld { upto: append.seq }
            }
            Said::Copy(sco, bytes) => {
                if !disk.copy(sco, &bytes) {
                    return false;
                }
                Event::TwinCopied { sco }
            }
            Said::Sync(upto) => {
                disk.sync(None, disk.now());
                Event::TwinSynced { upto }
            }
            Said::Release(upto) => {
                disk.recycle_upto(upto);
                return true;
            }
        };
        self.twins.answers.push_back(answer);
        true
    }

    /// The owner's machine is lost. If the record says so, the twin goes on from its disk, with whatever of the stream has reached it;
    /// gives what has to be there.
    pub(super) fn lose_owner(&mut self) -> Option<BatchSeq> {
        if !self.twins.in_sync {
            return None;
        }
        if self.twins.listens {
            for _ in 0..self.chance.usize(0..=self.twins.said.len()) {
                if !self.hear_one() {
                    break;
                }
            }
        }
        self.disk = self
            .twins
            .disk
            .take()
            .expect("the twin that the record names has a disk");
        self.twins.takeovers += 1;
        let power_fails = self.chance.u32(0..4) == 0;
        if power_fails {
            self.disk.power_loss(&mut self.chance);
        }
        Some(match self.twins.mode {
            DtlMode::Sync if !power_fails => {
                let Twins {
                    acknowledged, shown, ..
                } = self.twins;
                acknowledged.max(shown).max(self.flushed)
            }
            _ => self.flushed,
        })
    }

    /// A new ownership has no twin, and its record says so before it serves. Batches behind `upto` never were.
    pub(super) fn forget_twin(&mut self, upto: BatchSeq) {
        let twins = &mut self.twins;
        (twins.listens, twins.in_sync, twins.disk) = (false, false, None);
        twins.said.clear();
        twins.answers.clear();
        twins.places.retain(|_, seq| *seq <= upto);
        (twins.acknowledged, twins.shown) = (twins.acknowledged.min(upto), twins.shown.min(upto));
    }

    /// A read shows these: what it has shown, no takeover may take back.
    pub(super) fn note_shown(&mut self, extents: &[Extent]) {
        for extent in extents {
            if let Extent::Local {
                sco,
                first_slot,
                crcs,
            } = extent
            {
                let last = Slot(first_slot.0 + u16::try_from(crcs.len()).unwrap() - 1);
                let batch = self
                    .twins
                    .places
                    .range((*sco, Slot(0))..=(*sco, last))
                    .next_back();
                let seq = batch.map_or(BatchSeq::NONE, |(_, seq)| *seq);
                self.twins.shown = self.twins.shown.max(seq);
            }
        }
    }
}
