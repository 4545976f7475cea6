//! Reads and fetches of a served volume: from memory at once, else on a blocking thread, else from the back ends.
//!
//! Keeps: nothing.
//! Order: a read is answered when it is complete, whatever came after it.
//! Crash: nothing.
//! Knows no map: the engine said where everything is.

use bytes::Bytes;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::{CLUSTER_LEN, ClusterAddress};
use sconce_tracing::{Point, Step};
use sconce_volume::{Event, Extent, FetchId, Ticket};

use super::Serving;
use crate::actor::messages::{BadExtent, Found, FoundRead, Happened};
use crate::actor::read::{self, Outcome};

/// Data that a read may copy on the volume's thread; a longer one would hold up its neighbours.
const INLINE_READ_MAX: usize = 2 << 20;

/// Where the parts of a read are.
#[cold]
fn trace_extents(read: Step, extents: &[Extent]) {
    let mut address = ClusterAddress::holding(read.address).byte_offset();
    for extent in extents {
        let (point, length) = match extent {
            Extent::Zeros { length } => (None, u64::from(*length)),
            Extent::Local { crcs, .. } => (Some(Point::VolumeBufferHit), (crcs.len() * CLUSTER_LEN) as u64),
            Extent::Stored { crcs, .. } => {
                let length = (crcs.len() * CLUSTER_LEN) as u64;
                (Some(Point::VolumeStoredLocation), length)
            }
        };
        if let Some(point) = point {
            point.record(|| Step {
                address,
                length,
                ..read
            });
        }
        address += length;
    }
}

impl Serving {
    pub(super) fn read(&mut self, ticket: Ticket, extents: Vec<Extent>) {
        Point::VolumeMapLookup.record(|| self.shard.replies.step(ticket));
        if Point::VolumeBufferHit.is_on() || Point::VolumeStoredLocation.is_on() {
            trace_extents(self.shard.replies.step(ticket), &extents);
        }
        if read::local_len(&extents) <= INLINE_READ_MAX
            && let Some(outcome) = read::read_now(&extents, &self.locals)
        {
            return self.answer_read(ticket, outcome);
        }
        let copies = read::copies(&extents, &self.locals);
        let (me, generation) = (self.me.clone(), self.generation);
        sconce_runtime::blocking(move || {
            let outcome = read::read(&extents, &copies);
            let read = FoundRead::Client(ticket, outcome);
            me.tell(Found { generation, read });
        });
    }

    /// A blocking read came back.
    pub(in crate::actor) fn found(&mut self, found: FoundRead) {
        match found {
            FoundRead::Client(ticket, outcome) => self.answer_read(ticket, outcome),
            FoundRead::Fetch(fetch, extent, result) => self.fetched_here(fetch, &extent, result),
        }
        self.settle();
    }

    fn answer_read(&mut self, ticket: Ticket, outcome: Outcome) {
        let reply = match outcome.lost() {
            Some(bad) => {
                let (_, offset) = self.shard.replies.asked(ticket).unwrap_or((None, 0));
                let first = ClusterAddress::holding(offset).byte_offset();
                VolumeReply::Refused(self.damaged(bad, Some(first + bad.at)))
            }
            // What is here may not be the newest any more.
            None if !self.shard.node.gate.is_open() => VolumeReply::Refused(crate::gate::no_lease()),
            None => VolumeReply::Read(outcome.extents),
        };
        let data = match &reply {
            VolumeReply::Read(_) => outcome.data.freeze(),
            _ => Bytes::new(),
        };
        self.shard.replies.answer(ticket, reply, data);
        self.drop_bad(&outcome.damage);
    }

    /// Local copies that are not good and are stored: the back end's is used from here on.
    fn drop_bad(&mut self, damage: &[BadExtent]) {
        for bad in damage {
            if !bad.stored {
                continue;
            }
            tracing::warn!(
                volume = %self.path(),
                sco = %bad.sco,
                detail = bad.detail,
                "the local copy of a SCO is damaged: the back end's is used"
            );
            let Some(local) = self.locals.get(bad.sco) else {
                continue;
            };
            // One that no manifest covers yet is needed by a recovery, which checks it and takes the stored one.
            if local.header.epoch == bad.epoch && local.file.is_cache() {
                self.drop_cache(bad.sco, bad.epoch);
            }
        }
    }

    fn damaged(&self, bad: &BadExtent, address: Option<u64>) -> Refusal {
        let at = address.map_or_else(String::new, |address| format!(" at byte {address}"));
        let text = format!(
            "volume {}{at}: SCO {} of epoch {} in the write buffer: {}, and no other copy is left",
            self.path(),
            bad.sco,
            bad.epoch,
            bad.detail
        );
        tracing::error!("{text}");
        Refusal::damaged(text)
    }

    /// Reads a cluster for a change that covers it in part.
    pub(super) fn fetch(&mut self, fetch: FetchId, from: Extent) {
        match &from {
            Extent::Zeros { .. } => {
                let result = Ok(Bytes::from_static(&[0; CLUSTER_LEN]));
                self.take(Event::Fetched { fetch, result });
            }
            Extent::Stored { .. } => self.fetch_stored(fetch, &from),
            Extent::Local { .. } => {
                if let Some(result) = read::cluster_now(&from, &self.locals) {
                    return self.fetched_here(fetch, &from, result);
                }
                let copies = read::copies(std::slice::from_ref(&from), &self.locals);
                let (me, generation) = (self.me.clone(), self.generation);
                sconce_runtime::blocking(move || {
                    let result = read::cluster(&from, &copies);
                    let read = FoundRead::Fetch(fetch, from, result);
                    me.tell(Found { generation, read });
                });
            }
        }
    }

    fn fetched_here(&mut self, fetch: FetchId, from: &Extent, result: Result<Bytes, BadExtent>) {
        let bad = match result {
            Ok(cluster) => {
                return self.take(Event::Fetched {
                    fetch,
                    result: Ok(cluster),
                });
            }
            Err(bad) => bad,
        };
        match from {
            Extent::Local {
                sco,
                first_slot,
                crcs,
            } if bad.stored => {
                let stored = Extent::Stored {
                    volume: self.owner.subject().volume,
                    sco: *sco,
                    epoch: bad.epoch,
                    version: 0,
                    first_slot: *first_slot,
                    crcs: crcs.clone(),
                };
                self.fetch_stored(fetch, &stored);
                self.drop_bad(std::slice::from_ref(&bad));
            }
            _ => {
                let result = Err(self.damaged(&bad, None));
                self.take(Event::Fetched { fetch, result });
            }
        }
    }

    fn fetch_stored(&mut self, fetch: FetchId, from: &Extent) {
        let (Some(name), Extent::Stored { first_slot, crcs, .. }) = (from.object(), from) else {
            return;
        };
        let (offset, crc) = (
            self.sco_size.slot_offset(*first_slot),
            crcs.first().copied().unwrap_or(0),
        );
        let (background, subject) = (self.shard.node.background.clone(), self.owner.subject());
        let (me, generation) = (self.me.clone(), self.generation);
        actix_rt::spawn(async move {
            let result = background.cluster(subject, name, offset, crc).await;
            let event = Event::Fetched { fetch, result };
            me.tell(Happened { generation, event });
        });
    }
}
