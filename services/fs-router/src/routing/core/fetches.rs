//! Clusters that are read from the cache or straight from storage-routers, because the owner answered with their locations.
//!
//! Keeps: each range of clusters until its bytes are here and each cluster's CRC32C holds. What the cache gives and what it
//! does not becomes ranges of their own.
//! Order: none; a part's pieces are put in order by their places, not by their arrival.
//! Crash: nothing; only reads are here.
//! Knows no sessions: what a lost object means is asked of the owner by sending the part again.

use bytes::Bytes;
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::storage::StorageReply;
use sconce_schemas::wire::volume::ReadExtent;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, ClusterAddress, Epoch, ObjectName, VolumeId};

use super::operations::{PartKey, PartState};
use super::sessions::is_held;
use super::types::{Clusters, Effect, Lookup, Micros, StorageKey, Writer};
use super::{Core, IdKind, Timer, split_id};
use crate::routing::operation::{Outcome, Piece};

/// Index of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FetchKey(pub(super) usize);

/// A range of clusters of one SCO.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) part: PartKey,
    /// The volume's address of the first cluster.
    pub(super) address: ClusterAddress,
    pub(super) clusters: Clusters,
    pub(super) epoch: Epoch,
    pub(super) version: u16,
    pub(super) state: FetchState,
    /// Others may wait for what this one gets.
    pub(super) is_awaited: bool,
    /// The id of the last send, or of the last lookup.
    pub(super) id: u64,
    pub(super) attempts: u32,
    /// Times that a storage-router said "later".
    pub(super) held: u32,
    /// Times that bytes came whose CRC did not hold.
    pub(super) damaged: u32,
    pub(super) wake_at: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchState {
    /// The cache is asked.
    LookingUp,
    /// The writer's pool is not known yet.
    Unplaced,
    Ready,
    Sent,
    Waiting,
}

/// What is known of a volume that wrote SCOs.
#[derive(Debug)]
pub(super) enum WriterState {
    Asked,
    Known(Writer),
}

/// Times that a storage-router may say "later" to a fetch before another is looked for. It may be the only one that
/// cannot reach the back end.
const HELD_MAX: u32 = 3;
/// Times that damaged bytes are asked for again: a storage-router repairs what it finds damaged.
const DAMAGED_MAX: u32 = 3;
/// Times that the owner is asked again for what its locations did not lead to.
const ASTRAY_MAX: u32 = 5;
/// Records of writers that are remembered.
const WRITERS_MAX: usize = 4096;

impl Core {
    /// Puts a read's extents in place and starts what has to be fetched; `Err` where they do not cover the part.
    pub(super) fn gather(
        &mut self,
        key: PartKey,
        extents: Vec<ReadExtent>,
        mut data: Bytes,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ()> {
        let (start, length) = self.parts[key.0].aligned();
        if !covers(&extents, length, data.len()) {
            return Err(());
        }
        let mut address = ClusterAddress::holding(start);
        let part = &mut self.parts[key.0];
        part.state = PartState::Gathering;
        part.gathered.clear();
        part.missing = 0;
        for extent in extents {
            let clusters = extent_bytes(&extent) / CLUSTER_BYTES;
            let piece = match extent {
                ReadExtent::Data { length } => Some(Piece::Data(data.split_to(length as usize))),
                ReadExtent::Zeros { length } => Some(Piece::Zeros(u64::from(length))),
                ReadExtent::Located {
                    volume,
                    sco,
                    epoch,
                    version,
                    first_slot,
                    crcs,
                } => {
                    let clusters = Clusters {
                        writer: volume,
                        sco,
                        first_slot,
                        crcs,
                    };
                    let fetch = Fetch::begun(key, address, clusters, (epoch, version));
                    let fetch = FetchKey(self.fetches.insert(fetch));
                    self.parts[key.0].missing += 1;
                    match self.limits.has_cache {
                        true => self.look_up(fetch, effects),
                        false => self.place_fetch(fetch, effects),
                    }
                    None
                }
            };
            if let Some(piece) = piece {
                self.parts[key.0].gathered.insert(address, piece);
            }
            address.0 += clusters;
        }
        Ok(())
    }

    /// Asks the cache for a fetch's clusters.
    fn look_up(&mut self, key: FetchKey, effects: &mut Vec<Effect>) {
        let id = self.next_id(IdKind::Fetch, key.0);
        let fetch = &mut self.fetches[key.0];
        fetch.state = FetchState::LookingUp;
        fetch.id = id;
        let clusters = fetch.clusters.clone();
        effects.push(Effect::LookUp { id, clusters });
    }

    /// The cache's answer: the fetch falls into runs of clusters that are here, that are to be fetched, and that another
    /// fetches.
    pub(super) fn looked_up(
        &mut self,
        id: u64,
        clusters: &Clusters,
        found: &[Lookup],
        effects: &mut Vec<Effect>,
    ) {
        let (_, index) = split_id(id);
        let is_answer = |fetch: &Fetch| fetch.id == id && fetch.state == FetchState::LookingUp;
        if !self.fetches.get(index).is_some_and(is_answer) || found.len() != clusters.crcs.len() {
            // Nobody is there any more to fetch what others wait for.
            for at in (0..found.len()).filter(|at| found[*at] == Lookup::Ours) {
                let clusters = clusters.run(at, 1);
                effects.push(Effect::Release { clusters });
            }
            return;
        }
        let whole = self.fetches.remove(index);
        self.parts[whole.part.0].missing -= 1;
        let mut at = 0;
        while at < found.len() {
            let length = found[at..]
                .iter()
                .take_while(|next| found[at].is_like(next))
                .count();
            let address = ClusterAddress(whole.address.0 + at as u64);
            let part = &mut self.parts[whole.part.0];
            if let Lookup::Here(_) = found[at] {
                for (next, cluster) in found[at..at + length].iter().enumerate() {
                    if let Lookup::Here(data) = cluster {
                        let address = ClusterAddress(address.0 + next as u64);
                        part.gathered.insert(address, Piece::Data(data.clone()));
                    }
                }
            } else {
                part.missing += 1;
                let is_awaited = found[at] == Lookup::Ours;
                let (run, of) = (clusters.run(at, length), (whole.epoch, whole.version));
                let fetch = FetchKey(self.fetches.insert(Fetch {
                    is_awaited,
                    ..Fetch::begun(whole.part, address, run, of)
                }));
                match is_awaited {
                    true => self.place_fetch(fetch, effects),
                    false => self.look_up(fetch, effects),
                }
            }
            at += length;
        }
        if self.parts[whole.part.0].missing == 0 {
            self.finish_gathered(whole.part, effects);
        }
    }

    /// Queues a fetch, once its writer's pool is known.
    fn place_fetch(&mut self, key: FetchKey, effects: &mut Vec<Effect>) {
        let fetch = &mut self.fetches[key.0];
        fetch.state = FetchState::Unplaced;
        fetch.wake_at = None;
        let writer = fetch.clusters.writer;
        match self.writers.get(&writer) {
            Some(WriterState::Known(_)) => {
                fetch.state = FetchState::Ready;
                self.storage.ready.push_back(key);
                // With a timer set, what it wakes looks.
                if !self.storage.up && self.storage.wake_at.is_none() {
                    self.look_for_storage(effects);
                }
            }
            Some(WriterState::Asked) => {}
            None => {
                self.writers.insert(writer, WriterState::Asked);
                effects.push(Effect::FindWriter { volume: writer });
            }
        }
    }

    /// Notes what locates a volume's SCOs.
    pub(super) fn know_writer(&mut self, volume: VolumeId, writer: Writer) {
        if self.writers.len() >= WRITERS_MAX {
            self.writers
                .retain(|_, state| matches!(state, WriterState::Asked));
        }
        // Those that wait for an answer to FindWriter are placed by it.
        if !matches!(self.writers.get(&volume), Some(WriterState::Asked)) {
            self.writers.insert(volume, WriterState::Known(writer));
        }
    }

    pub(super) fn writer_found(
        &mut self,
        now: Micros,
        volume: VolumeId,
        found: Result<Option<Writer>, String>,
        effects: &mut Vec<Effect>,
    ) {
        let waiting: Vec<FetchKey> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| fetch.clusters.writer == volume && fetch.state == FetchState::Unplaced)
            .map(|(index, _)| FetchKey(index))
            .collect();
        self.writers.remove(&volume);
        match found {
            Ok(Some(writer)) => {
                self.know_writer(volume, writer);
                waiting.into_iter().for_each(|key| self.place_fetch(key, effects));
            }
            Ok(None) => {
                for key in waiting {
                    // An earlier one may have taken this one with it: they can be of one read.
                    if !self.fetches.contains(key.0) {
                        continue;
                    }
                    let why = format!("volume {volume}, which wrote it, has no record in the registry");
                    self.fail_fetch(key, &why, effects);
                }
            }
            Err(_) => waiting.into_iter().for_each(|key| self.hold_fetch(now, key)),
        }
    }

    fn hold_fetch(&mut self, now: Micros, key: FetchKey) {
        let attempts = self.fetches[key.0].attempts;
        let at = self.set_backoff(now, attempts, Timer::Fetch(key));
        let fetch = &mut self.fetches[key.0];
        fetch.state = FetchState::Waiting;
        fetch.attempts = attempts.saturating_add(1);
        fetch.wake_at = Some(at);
    }

    /// The storage-router said "later". Another may say otherwise: it is looked for each [`HELD_MAX`] answers.
    fn storage_held(&mut self, now: Micros, key: FetchKey, effects: &mut Vec<Effect>) {
        self.hold_fetch(now, key);
        let fetch = &mut self.fetches[key.0];
        fetch.held = fetch.held.saturating_add(1);
        if fetch.held.is_multiple_of(HELD_MAX) {
            self.want_other_storage(now, effects);
        }
    }

    pub(super) fn wake_fetch(&mut self, at: Micros, key: FetchKey, effects: &mut Vec<Effect>) {
        let is_due = |fetch: &Fetch| fetch.state == FetchState::Waiting && fetch.wake_at == Some(at);
        if self.fetches.get(key.0).is_some_and(is_due) {
            self.place_fetch(key, effects);
        }
    }

    pub(super) fn storage_replied(
        &mut self,
        now: Micros,
        link: StorageKey,
        id: u64,
        reply: StorageReply,
        data: Bytes,
        effects: &mut Vec<Effect>,
    ) {
        let (kind, index) = split_id(id);
        let key = FetchKey(index);
        let is_answer = |fetch: &Fetch| fetch.id == id && fetch.state == FetchState::Sent;
        let is_current = self.storage.link.as_ref().is_some_and(|(on, _)| *on == link);
        if kind != IdKind::Fetch || !is_current || !self.fetches.get(index).is_some_and(is_answer) {
            return;
        }
        match reply {
            StorageReply::Data if self.fetches[index].holds(&data) => self.fetched(key, data, effects),
            StorageReply::Refused(refusal) if refusal.code == RefusalCode::NotFound => {
                self.gone_astray(now, key, effects);
            }
            StorageReply::Refused(refusal) if is_held(&refusal) || refusal.remedy == Remedy::Reroute => {
                self.storage_held(now, key, effects);
            }
            StorageReply::Refused(refusal) => self.fail_fetch(key, &refusal.text, effects),
            _ => {
                let fetch = &mut self.fetches[index];
                fetch.damaged += 1;
                if fetch.damaged < DAMAGED_MAX {
                    return self.hold_fetch(now, key);
                }
                self.fail_fetch(key, "its CRC32C does not hold in any copy", effects);
            }
        }
    }

    fn fetched(&mut self, key: FetchKey, data: Bytes, effects: &mut Vec<Effect>) {
        self.storage.attempts = 0;
        let fetch = self.fetches.remove(key.0);
        if fetch.held >= HELD_MAX {
            self.storage.moves = 0;
        }
        if fetch.is_awaited {
            let writer = self.writers.get(&fetch.clusters.writer);
            let is_cacheable = matches!(writer, Some(WriterState::Known(writer)) if writer.is_cacheable);
            effects.push(Effect::Keep {
                clusters: fetch.clusters,
                data: data.clone(),
                is_cacheable,
            });
        }
        let part = &mut self.parts[fetch.part.0];
        part.gathered.insert(fetch.address, Piece::Data(data));
        part.missing -= 1;
        if part.missing == 0 {
            self.finish_gathered(fetch.part, effects);
        }
    }

    /// The object is not there: a scrub may have replaced it by its next version, which the owner knows.
    fn gone_astray(&mut self, now: Micros, key: FetchKey, effects: &mut Vec<Effect>) {
        let part = self.fetches[key.0].part;
        self.parts[part.0].astray += 1;
        if self.parts[part.0].astray > ASTRAY_MAX {
            return self.fail_fetch(key, "it is not on the back ends", effects);
        }
        self.drop_fetches(part, effects);
        self.hold(now, part);
    }

    /// A read ends with an error that names what is damaged.
    pub(super) fn fail_fetch(&mut self, key: FetchKey, why: &str, effects: &mut Vec<Effect>) {
        let fetch = &self.fetches[key.0];
        let part = fetch.part;
        let volume = self.sessions[self.parts[part.0].session.0].volume;
        let refusal = Refusal::damaged(format!(
            "volume {volume}, byte {}: {}: {why}",
            fetch.address.byte_offset(),
            fetch.object(),
        ));
        self.drop_fetches(part, effects);
        self.finish_part(part, Outcome::Refused(refusal), effects);
    }

    /// Forgets what is fetched for a part.
    pub(super) fn drop_fetches(&mut self, part: PartKey, effects: &mut Vec<Effect>) {
        if self.parts[part.0].missing == 0 {
            return;
        }
        self.fetches.retain(|_, fetch| {
            if fetch.part == part && fetch.is_awaited {
                let clusters = fetch.clusters.clone();
                effects.push(Effect::Release { clusters });
            }
            fetch.part != part
        });
        let fetches = &self.fetches;
        self.storage.ready.retain(|key| {
            fetches
                .get(key.0)
                .is_some_and(|fetch| fetch.state == FetchState::Ready)
        });
        let part = &mut self.parts[part.0];
        part.gathered.clear();
        part.missing = 0;
    }
}

impl Fetch {
    /// Of a part, of an object in this epoch and version; nothing is asked yet.
    fn begun(
        part: PartKey,
        address: ClusterAddress,
        clusters: Clusters,
        (epoch, version): (Epoch, u16),
    ) -> Self {
        Self {
            part,
            address,
            clusters,
            epoch,
            version,
            state: FetchState::Unplaced,
            is_awaited: false,
            id: 0,
            attempts: 0,
            held: 0,
            damaged: 0,
            wake_at: None,
        }
    }

    pub(super) fn object(&self) -> ObjectName {
        ObjectName::Sco {
            volume: self.clusters.writer,
            id: self.clusters.sco,
            epoch: self.epoch,
            version: self.version,
        }
    }

    pub(super) fn length(&self) -> u32 {
        u32::try_from(self.clusters.crcs.len() * CLUSTER_LEN).unwrap_or(u32::MAX)
    }

    /// Whether these are the clusters, unharmed.
    fn holds(&self, data: &[u8]) -> bool {
        data.len() == self.clusters.crcs.len() * CLUSTER_LEN
            && data
                .chunks_exact(CLUSTER_LEN)
                .zip(&self.clusters.crcs)
                .all(|(cluster, crc)| crc32c(cluster) == *crc)
    }
}

fn extent_bytes(extent: &ReadExtent) -> u64 {
    match extent {
        ReadExtent::Data { length } | ReadExtent::Zeros { length } => u64::from(*length),
        ReadExtent::Located { crcs, .. } => crcs.len() as u64 * CLUSTER_BYTES,
    }
}

/// Whether extents cover `length` bytes of whole clusters, and their data is there.
fn covers(extents: &[ReadExtent], length: u64, data_len: usize) -> bool {
    let whole = |extent: &ReadExtent| {
        let bytes = extent_bytes(extent);
        bytes > 0 && bytes.is_multiple_of(CLUSTER_BYTES)
    };
    let data: u64 = extents
        .iter()
        .filter(|extent| matches!(extent, ReadExtent::Data { .. }))
        .map(extent_bytes)
        .sum();
    extents.iter().all(whole)
        && extents.iter().map(extent_bytes).sum::<u64>() == length
        && data == data_len as u64
}
