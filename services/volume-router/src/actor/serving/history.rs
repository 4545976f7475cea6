//! The host's part of the history: what it reaches, and reading the log for a moment of it.
//!
//! Keeps: nothing.
//! Order: what was appended before is in the file that is read.
//! Crash: a moment that was not answered is asked for again.
//! Knows no map.

use sconce_schemas::wire::volume::HistoryReach;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, Epoch, ScoId};
use sconce_volume::{Event, MomentAsk, Ticket};

use super::{Happened, Serving, Stopping};

impl Serving {
    /// How far back moments can be had, if they can.
    pub(in crate::actor) fn history(&self) -> Option<HistoryReach> {
        let status = self.volume.history_status();
        (status.window_us > 0).then_some(HistoryReach {
            window_us: status.window_us,
            from_us: status.from_us,
        })
    }

    /// A moment of the history is to be kept as a snapshot.
    pub(in crate::actor) fn moment(&mut self, ticket: Ticket, ask: MomentAsk) {
        if self.stopping != Stopping::No {
            return self.shard.replies.refuse(ticket, self.stopping());
        }
        let now_us = self.shard.node.clock.unix_micros();
        self.happened(Event::Moment { ticket, ask, now_us });
    }

    /// Reads header and TLog areas of a SCO beside the volume: from its file where it is not stored yet, else the object.
    pub(super) fn read_log(&self, sco: ScoId, epoch: Epoch, local: bool) {
        let here = self
            .locals
            .get(sco)
            .filter(|here| local && here.header.epoch == epoch);
        let file = here.map(|here| std::sync::Arc::clone(&here.file));
        let background = self.shard.node.background.clone();
        let (subject, length) = (self.owner.subject(), self.sco_size.data_offset());
        let (me, generation) = (self.me.clone(), self.generation);
        actix_rt::spawn(async move {
            let read = match file {
                Some(file) => sconce_runtime::blocking(move || file.image(length)).await.ok(),
                None => None,
            };
            let result = match read {
                Some(Ok(bytes)) => Ok(bytes),
                Some(Err(error)) => {
                    let text = format!("SCO {sco} cannot be read from the write buffer: {error}");
                    Err(Refusal::retry(RefusalCode::Unavailable, text))
                }
                None => match background.sco(subject, sco, epoch, ByteLen(length)).await {
                    Ok(Some(image)) => Ok(image.bytes),
                    Ok(None) => Err(Refusal::damaged(format!("SCO {sco} is gone"))),
                    Err(error) => Err(error.refusal()),
                },
            };
            let event = Event::LogRead { sco, epoch, result };
            me.tell(Happened { generation, event });
        });
    }
}
