//! The client: sends operations, hears the answers, dies and comes back.
//!
//! Keeps: what it has not had an answer to, in the world.
//! Order: of operations that overlap only one is under way at a time: they would have no order, and the model needs one.
//! Crash: it sends again what was not answered, under the same numbers.
//! Knows no effects.

use bytes::Bytes;
use sconce_schemas::SessionId;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_volume::{Event, Ticket};

use super::{HOT, HOT_BYTES, LONG, Outstanding, SIZE, SMALLER, World};
use crate::oracle::fill;

impl World {
    pub(super) fn client_round(&mut self) {
        for _ in 0..self.chance.usize(1..5) {
            match self.chance.u32(0..100) {
                0..55 => self.submit_change(),
                55..80 => self.submit_read(),
                80..92 => self.submit_flush(),
                92..94 => self.submit_extents(),
                94..96 => self.submit_ask(),
                96 => self.submit_comparison(),
                97..99 => self.submit_history(),
                _ => {
                    let number = self.outstanding.keys().next().copied();
                    // A duplicate of something that is under way: a resend that was too quick.
                    if let Some(number) = number {
                        self.send(number);
                    }
                }
            }
            if self.crash_in == Some(0) {
                return;
            }
        }
        self.feed(Event::BatchEnd { now_us: self.now_us });
    }

    pub(super) fn range(&mut self) -> std::ops::Range<u64> {
        let base = HOT[self.chance.usize(0..HOT.len())];
        let most = (SIZE.min(base + HOT_BYTES) - base) / 512;
        let first = self.chance.u64(0..most);
        let longest = if self.chance.bool() { 8 } else { 160 };
        let count = self.chance.u64(1..=longest.min(most - first));
        let (mut from, mut to) = (base / 512 + first, base / 512 + first + count);
        if self.chance.bool() {
            (from, to) = (from / 8 * 8, (to.div_ceil(8) * 8).min(SIZE / 512));
        }
        from..to
    }

    pub(super) fn submit_change(&mut self) {
        let mut sectors = self.range();
        if self.chance.u32(0..300) == 0 {
            // So long that it is done in pieces.
            sectors.end = sectors.start + (LONG + self.chance.u64(0..LONG)) / 512;
        }
        // Concurrent overlapping writes have no order; the model needs one.
        // Different sectors of one cluster may be written at the same time.
        let free = self
            .outstanding
            .values()
            .all(|o| o.sectors.end <= sectors.start || sectors.end <= o.sectors.start);
        if !free || self.outstanding.len() > 12 || self.asks.is_rolling_back() {
            return;
        }
        // One resize at a time, with nothing else under way: its effect on the others would have no order.
        let resizing = self
            .outstanding
            .values()
            .any(|o| o.request.code == IoCode::Resize);
        if resizing || (self.outstanding.is_empty() && self.chance.u32(0..4) == 0) {
            if !resizing {
                self.submit_resize();
            }
            return;
        }
        if sectors.end * 512 > self.model.size {
            return;
        }
        let code = match self.chance.u32(0..10) {
            _ if sectors.end - sectors.start >= LONG / 512 => IoCode::WriteZeroes,
            0..7 => IoCode::Write,
            7 => IoCode::Discard,
            _ => IoCode::WriteZeroes,
        };
        let mut flags = 0;
        if self.chance.u32(0..8) == 0 {
            flags |= IoFlags::FUA;
        }
        if code == IoCode::WriteZeroes && self.chance.bool() {
            flags |= IoFlags::NO_HOLE;
        }
        self.stamp += 1;
        let mut data = Vec::new();
        if code == IoCode::Write {
            fill(
                &mut data,
                self.stamp,
                usize::try_from(sectors.end - sectors.start).unwrap(),
            );
        }
        let request = IoRequest {
            handle: 0,
            number: self.next_number,
            below: 0,
            code,
            flags: IoFlags(flags),
            offset: sectors.start * 512,
            length: (sectors.end - sectors.start) * 512,
        };
        self.next_number += 1;
        self.outstanding.insert(
            request.number,
            Outstanding {
                request,
                data: data.into(),
                sectors,
            },
        );
        self.send(request.number);
    }

    pub(super) fn submit_resize(&mut self) {
        self.submit_resize_to(if self.model.size == SIZE { SMALLER } else { SIZE });
    }

    pub(crate) fn submit_resize_to(&mut self, size: u64) {
        let (_, mut request) = self.query(IoCode::Resize, size, 0);
        request.code = IoCode::Resize;
        // Reads of the last region have to be left alone meanwhile.
        let sectors = HOT[3] / 512..SIZE.div_ceil(512);
        self.outstanding.insert(
            request.number,
            Outstanding {
                request,
                data: Bytes::new(),
                sectors,
            },
        );
        self.send(request.number);
    }

    pub(super) fn send(&mut self, number: u64) {
        let below = self.outstanding.keys().min().copied().unwrap_or(number);
        let Outstanding {
            mut request, data, ..
        } = self.outstanding[&number].clone();
        request.below = below;
        // The ticket of a change is its number: a duplicate may be answered twice.
        self.feed(Event::Io {
            ticket: Ticket(number),
            session: self.slot,
            request,
            data,
        });
    }

    pub(super) fn submit_read(&mut self) {
        let sectors = self.range();
        if sectors.end * 512 > self.volume.size().bytes() {
            return;
        }
        let ticket = self.query(
            IoCode::Read,
            sectors.start * 512,
            (sectors.end - sectors.start) * 512,
        );
        self.reads.insert(ticket.0, ticket.1);
        self.feed(Event::Io {
            ticket: ticket.0,
            session: self.slot,
            request: ticket.1,
            data: Bytes::new(),
        });
    }

    pub(super) fn submit_extents(&mut self) {
        let (ticket, request) = self.query(IoCode::Extents, 0, self.volume.size().bytes());
        self.reads.insert(ticket, request);
        self.feed(Event::Io {
            ticket,
            session: self.slot,
            request,
            data: Bytes::new(),
        });
    }

    pub(super) fn submit_flush(&mut self) {
        let (ticket, request) = self.query(IoCode::Flush, 0, 0);
        self.flushes.insert(ticket, self.held);
        self.feed(Event::Io {
            ticket,
            session: self.slot,
            request,
            data: Bytes::new(),
        });
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_number += 1;
        Ticket(self.next_number - 1)
    }

    pub(crate) fn query(&mut self, code: IoCode, offset: u64, length: u64) -> (Ticket, IoRequest) {
        let number = self.next_number;
        self.next_number += 1;
        let request = IoRequest {
            handle: 0,
            number,
            below: 0,
            code,
            flags: IoFlags::default(),
            offset,
            length,
        };
        (Ticket(number), request)
    }

    pub(super) fn answered(&mut self, ticket: Ticket, reply: &VolumeReply) {
        if self.answered_ask(ticket, reply) || self.answered_moment(ticket, reply) {
            return;
        }
        if let Some(asked) = self.comparisons.take(ticket) {
            match reply {
                VolumeReply::Changes(extents) => self.check_changes(asked, extents),
                // It was removed meanwhile, or a smaller size overtook it.
                VolumeReply::Refused(refusal) => assert!(
                    refusal.remedy == Remedy::Retry || refusal.code == RefusalCode::NotFound,
                    "{refusal}"
                ),
                other => panic!("{other:?} answers a comparison"),
            }
            return;
        }
        match reply {
            VolumeReply::Refused(refusal) => {
                assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
                self.reads.remove(&ticket);
                self.flushes.remove(&ticket);
            }
            VolumeReply::Extents(extents) => {
                let asked = self.reads.remove(&ticket).map(|request| request.length);
                let covered: u64 = extents.iter().map(|extent| extent.length).sum();
                assert!(
                    asked.is_none_or(|asked| 0 < covered && covered <= asked),
                    "extents say something of what was asked, perhaps only of its start"
                );
                self.check_extents(extents);
            }
            _ => {
                if let Some(upto) = self.flushes.remove(&ticket) {
                    self.flushed = self.flushed.max(upto);
                } else if let Some(done) = self.outstanding.remove(&ticket.0) {
                    assert!(
                        self.log.is_whole(ticket.0),
                        "operation {} is done, but the log does not say so",
                        ticket.0
                    );
                    self.check_not_held(ticket.0);
                    let end = self.log.end_of(ticket.0).unwrap_or_default();
                    self.twins.acknowledged = self.twins.acknowledged.max(end);
                    if done.request.flags.has(IoFlags::FUA) {
                        // A change that needed no entry (a discard of holes) has nothing to lose.
                        let end = self.log.end_of(ticket.0).unwrap_or_default();
                        self.flushed = self.flushed.max(end);
                    }
                    let waiting = self.reads.keys().map(|read| (*read, done.sectors.clone()));
                    self.overtook.extend(waiting);
                    self.model_change(&done);
                }
            }
        }
    }

    /// The client's connection is lost. Either the client comes back and sends again what was not answered, or it is
    /// dead and another takes its place: whatever the volume holds at that moment is what the other finds, and nothing
    /// of the dead one may come after it.
    pub(super) fn lose_client(&mut self) {
        let gone = self.slot;
        self.reads.clear();
        self.flushes.clear();
        if self.chance.bool() {
            self.slot = self.volume.open_session(self.session).unwrap();
            self.feed(Event::ClientGone { session: gone });
            if self.crash_in != Some(0) {
                self.resend();
            }
            return;
        }
        // Or it lives, and may not write any more.
        let over = match self.chance.bool() {
            true => Event::ClientGone { session: gone },
            false => Event::SessionFenced { session: gone },
        };
        self.feed(over);
        if self.crash_in == Some(0) {
            return;
        }
        self.session = SessionId(self.session.0 + 1);
        self.slot = self.volume.open_session(self.session).unwrap();
        let found = self.read_all();
        let dead = std::mem::take(&mut self.outstanding);
        self.check_taken_over(&found, &dead);
        self.model = found;
    }

    pub(super) fn resend(&mut self) {
        let numbers: Vec<u64> = self.outstanding.keys().copied().collect();
        for number in numbers {
            // One may be answered while others are sent.
            if self.crash_in != Some(0) && self.outstanding.contains_key(&number) {
                self.send(number);
            }
        }
        if self.crash_in != Some(0) {
            self.feed(Event::BatchEnd { now_us: self.now_us });
        }
    }
}
