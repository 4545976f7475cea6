//! Changes: writes, discards, zeroes and resizes on their way into the log and the map.
//!
//! Keeps: how far a change got; one that has to wait (for a node, an old cluster, room, or its turn) goes on from there.
//! Order: within a change ascending addresses; changes that wait for room go on in the order in which they came.
//! Crash: what of a change is in the log stands; it counts as applied only with its last entry.
//! Knows no clients beyond their tickets.

use std::ops::{ControlFlow, Range};

use bytes::{Bytes, BytesMut};
use sconce_schemas::crc::crc32c;
use sconce_schemas::geometry::{ByteLen, VolumeSize};
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::PIECES_MAX;
use sconce_schemas::sco::{Entry, EntryKind};
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, ClusterAddress, DecodeError};

use crate::event::{Effect, SessionSlot, Ticket};
use crate::replay::RecordPlace;
use crate::snapshots::Ask;
use crate::tree::Missing;
use crate::volume::Volume;

/// Most clusters that one event touches in the map for a discard or zeroes, in one log entry: some milliseconds. What is left
/// of the change waits for its turn, so that a guest that zeroes a terabyte does not stop the other volumes of the thread.
const PIECE_CLUSTERS: u64 = 1 << 15;
/// Clusters that a leaf of the map covers.
const LEAF_CLUSTERS: u64 = sconce_schemas::checkpoint::FANOUT as u64;
/// Most clusters that one log entry discards.
const DISCARD_CLUSTERS_MAX: u64 = u32::MAX as u64;
/// Most discards at a time of which a walk is still to find what died: each keeps two maps, and is in every manifest.
/// Beyond it, what is discarded is loaded first. One for each so many bytes of memory for the map.
const UNSEEN_MAX: u64 = 64;
const UNSEEN_SHARE: u64 = 4 << 20;
/// Scratch space of discards that is kept.
const DROPPED_KEPT: usize = 4096;

/// A change under way.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) ticket: Ticket,
    pub(crate) session: SessionSlot,
    pub(crate) number: u64,
    pub(crate) fua: bool,
    kind: Kind,
    /// It may reach beyond the volume's end.
    extends: bool,
    start: u64,
    at: u64,
    end: u64,
    /// Something of it is in the log.
    logged: bool,
    /// Its last entry is.
    ended: bool,
    /// The old cluster that was fetched for a partial write, and where it was then.
    fetched: Option<(Location, Bytes)>,
}

#[derive(Debug)]
enum Kind {
    Data(Bytes),
    /// Whole clusters become holes; parts of clusters are left as they are.
    Discard,
    /// The exact range reads as zeros; whole clusters become holes or, with `true`, allocated zeros.
    Zeroes(bool),
    /// The tail of the last cluster becomes zeros, then the size changes.
    Resize(u64),
    /// A record in the log.
    Record(Ask),
}

/// Why a change cannot go on right now.
#[derive(Debug)]
pub(crate) enum Blocked {
    /// A map node has to be loaded.
    Node(Missing),
    /// The open SCO is full.
    Room,
    /// The old content of a cluster is needed.
    Fetch(Location),
    /// A piece is done; others come first.
    Turn,
    /// It never will.
    Refused(Refusal),
}

impl From<Missing> for Blocked {
    fn from(missing: Missing) -> Self {
        Blocked::Node(missing)
    }
}

impl Change {
    /// The change that `request` asks of a volume of this size.
    pub(crate) fn new(
        ticket: Ticket,
        session: SessionSlot,
        request: &IoRequest,
        data: Bytes,
        size: VolumeSize,
        read_only: bool,
    ) -> Result<Self, Refusal> {
        let (offset, length) = (request.offset, request.length);
        if read_only {
            return Err(takes_no_writes());
        }
        let (kind, start, end) = match request.code {
            IoCode::Resize => {
                VolumeSize::new(offset).map_err(|e| Refusal::reject(RefusalCode::NoSpace, e.to_string()))?;
                (Kind::Resize(offset), offset, offset)
            }
            code => {
                let end = check_range(request, size)?;
                let kind = match code {
                    IoCode::Write => Kind::Data(check_data(length, data)?),
                    IoCode::Discard => Kind::Discard,
                    _ => Kind::Zeroes(request.flags.has(IoFlags::NO_HOLE)),
                };
                (kind, offset, end)
            }
        };
        Ok(Self {
            ticket,
            session,
            number: request.number,
            fua: request.flags.has(IoFlags::FUA),
            kind,
            extends: may_extend(request),
            start,
            at: start,
            end,
            logged: false,
            ended: false,
            fetched: None,
        })
    }

    /// The change that a record makes.
    pub(crate) const fn ask(ticket: Ticket, ask: Ask) -> Self {
        Self {
            ticket,
            session: SessionSlot::NONE,
            number: 0,
            fua: true,
            kind: Kind::Record(ask),
            extends: false,
            start: 0,
            at: 0,
            end: 0,
            logged: false,
            ended: false,
            fetched: None,
        }
    }

    /// Whether it proposes a snapshot: its answer does not wait for what it holds.
    pub(crate) const fn is_proposal(&self) -> bool {
        matches!(self.kind, Kind::Record(Ask::Propose { .. }))
    }

    /// The old cluster has arrived.
    pub(crate) fn fetched(&mut self, location: Location, cluster: Bytes) {
        self.fetched = Some((location, cluster));
    }

    /// The cluster that it works on.
    pub(crate) const fn cluster(&self) -> ClusterAddress {
        ClusterAddress::holding(self.at)
    }

    /// An entry of it, which is about to be in the log.
    fn entry(&mut self, kind: EntryKind, last: bool) -> Entry {
        self.note_entry(last);
        Entry {
            kind,
            session: self.session.0,
            number: self.number,
            last,
        }
    }

    const fn note_entry(&mut self, last: bool) {
        self.logged = true;
        self.ended |= last;
    }
}

fn may_extend(request: &IoRequest) -> bool {
    request.code == IoCode::Write && request.flags.has(IoFlags::EXTEND)
}

/// Checks a range against the volume; gives its end.
pub(crate) fn check_range(request: &IoRequest, size: VolumeSize) -> Result<u64, Refusal> {
    let (offset, length) = (request.offset, request.length);
    let extends = may_extend(request);
    let limit = if extends {
        VolumeSize::MAX.bytes()
    } else {
        size.bytes()
    };
    match offset.checked_add(length) {
        Some(end) if end <= limit => Ok(end),
        _ => {
            let code = if extends {
                RefusalCode::NoSpace
            } else {
                RefusalCode::OutOfRange
            };
            Err(beyond(code, offset, length, limit))
        }
    }
}

fn takes_no_writes() -> Refusal {
    Refusal::reject(RefusalCode::ReadOnly, "the volume takes no writes")
}

fn beyond(code: RefusalCode, offset: u64, length: u64, limit: u64) -> Refusal {
    let text = format!("{length} bytes at {offset} reach beyond the end at {limit} bytes");
    Refusal::reject(code, text)
}

fn check_data(length: u64, data: Bytes) -> Result<Bytes, Refusal> {
    if data.len() as u64 == length {
        return Ok(data);
    }
    let text = format!("a write of {length} bytes came with {} bytes of data", data.len());
    Err(Refusal::reject(RefusalCode::Invalid, text))
}

impl Volume {
    /// Takes a change as far as it goes. `Ok`: all of it is in the batch.
    pub(crate) fn advance(&mut self, change: &mut Change, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        if let Kind::Record(ask) = &change.kind {
            return self.log_record(ask, effects);
        }
        if self.read_only {
            // It waited for something while the volume became a template.
            return Err(Blocked::Refused(takes_no_writes()));
        }
        self.fit_size(change, effects)?;
        self.log_session(change, effects)?;
        if let Kind::Resize(size) = change.kind {
            self.cut_off(change, size, effects)?;
        }
        while change.at < change.end {
            let within = change.at % CLUSTER_BYTES;
            let left = change.end - change.at;
            if within != 0 || left < CLUSTER_BYTES {
                self.advance_part(change, left.min(CLUSTER_BYTES - within), effects)?;
            } else if matches!(change.kind, Kind::Data(_)) {
                self.advance_clusters(change, left / CLUSTER_BYTES, effects)?;
            } else {
                self.advance_zeroes(change, left / CLUSTER_BYTES, effects)?;
            }
        }
        if let Kind::Resize(size) = change.kind {
            self.log_resize(change, size, true, effects)?;
        }
        self.log_end(change, effects)
    }

    /// Looks at the size, which may have changed while the change waited: what lies beyond the end now is refused, or
    /// extends the volume if it may.
    fn fit_size(&mut self, change: &mut Change, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        let size = self.size.bytes();
        if let Kind::Resize(wanted) = change.kind {
            // Shrinking zeroes what is left of the last cluster, again if a write got there meanwhile.
            let tail = ByteLen(wanted).clusters_ceil().bytes().0;
            (change.at, change.end) = (wanted, if wanted < size { tail } else { wanted });
        } else if change.end > size {
            if !change.extends {
                let (offset, length) = (change.start, change.end - change.start);
                let refusal = beyond(RefusalCode::OutOfRange, offset, length, size);
                return Err(Blocked::Refused(refusal));
            }
            self.log_session(change, effects)?;
            self.log_resize(change, change.end, false, effects)?;
        }
        Ok(())
    }

    /// Discards in pieces what a smaller size cuts off, so that the resize itself finds little.
    fn cut_off(&mut self, change: &mut Change, size: u64, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        let (first, end) = (ByteLen(size).clusters_ceil().0, self.size.clusters().0);
        let cut = if first < end {
            self.piece_end(first, end)
        } else {
            end
        };
        if cut >= end {
            return Ok(());
        }
        self.log_zeroes(change, ClusterAddress(first), cut - first, false, false, effects)?;
        Err(Blocked::Turn)
    }

    /// A change whose end changed nothing (a discard of holes) has an entry all the same that says that it is over: or
    /// its number would be new again after a recovery.
    fn log_end(&mut self, change: &mut Change, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        if change.logged && !change.ended {
            self.log_zeroes(change, ClusterAddress(0), 0, false, true, effects)?;
        }
        Ok(())
    }

    /// Where a piece of a discard from `first` ends, at `end` at the latest.
    fn piece_end(&self, first: u64, end: u64) -> u64 {
        let end = end.min(first + DISCARD_CLUSTERS_MAX);
        let end = self.map.cut(first..end, PIECE_CLUSTERS);
        match self.unseen_of(first..end) {
            Some((at, _)) if at > first => at,
            _ => end,
        }
    }

    /// The first node of a range that has to be loaded before the range is discarded, and where it begins: none as long as
    /// what is dropped unseen may be found by a walk later.
    fn unseen_of(&self, range: Range<u64>) -> Option<(u64, Missing)> {
        let most = (self.map_memory / UNSEEN_SHARE).clamp(1, UNSEEN_MAX);
        if self.snapshots.unseen() < usize::try_from(most).unwrap_or(usize::MAX) {
            return None;
        }
        self.map.first_missing(range)
    }

    /// Makes clusters holes or allocated zeros, in the map and in the log.
    fn log_zeroes(
        &mut self,
        change: &mut Change,
        address: ClusterAddress,
        count: u64,
        allocate: bool,
        last: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        self.need_entries(1, effects)?;
        self.zero(address, count, allocate)?;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let kind = if allocate {
            EntryKind::Zero { address, count }
        } else {
            EntryKind::Discard { address, count }
        };
        self.log.push(&change.entry(kind, last));
        Ok(())
    }

    /// Tells the log what the change's session slot stands for, if it does not know.
    fn log_session(&mut self, change: &Change, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        self.need_entries(1, effects)?;
        if let Some(id) = self.sessions.take_unlogged(change.session) {
            let kind = EntryKind::Session { id: id.0 };
            self.log.push(&Entry {
                kind,
                session: change.session.0,
                number: 0,
                last: false,
            });
        }
        Ok(())
    }

    /// Writes a record into the log and does what it says.
    fn log_record(&mut self, ask: &Ask, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        let Some(record) = self.judge(ask).map_err(Blocked::Refused)? else {
            return Ok(());
        };
        let too_large =
            |error: DecodeError| Blocked::Refused(Refusal::reject(RefusalCode::Invalid, error.to_string()));
        let pieces = record.to_pieces().map_err(too_large)?;
        // At most PIECES_MAX: an empty SCO has room for that.
        let entries = u16::try_from(pieces.len()).unwrap_or(PIECES_MAX);
        self.need_entries(entries, effects)?;
        let at = RecordPlace {
            at: self.log.place(),
            batch: self.log.next_seq(),
        };
        self.log.push_record(&pieces);
        self.hold_for(&record, effects);
        self.apply_record(record, at)
            .map_err(|text| Blocked::Refused(Refusal::reject(RefusalCode::Internal, text)))
    }

    fn log_resize(
        &mut self,
        change: &mut Change,
        size: u64,
        last: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        let size = VolumeSize::new(size)
            .map_err(|e| Blocked::Refused(Refusal::reject(RefusalCode::NoSpace, e.to_string())))?;
        self.need_entries(1, effects)?;
        self.resize(size)?;
        self.log
            .push(&change.entry(EntryKind::Resize { size: size.bytes() }, last));
        Ok(())
    }

    /// Sets the size; clusters wholly beyond it become holes (the meaning of a resize entry, in recovery too).
    pub(crate) fn resize(&mut self, size: VolumeSize) -> Result<(), Missing> {
        if size < self.size {
            self.discard(ClusterAddress(size.clusters().0), VolumeSize::MAX.clusters().0)?;
        }
        self.size = size;
        Ok(())
    }

    /// Removes the clusters from `first` up to `end` from the map.
    pub(crate) fn discard(&mut self, first: ClusterAddress, end: u64) -> Result<(), Missing> {
        // Only a range with a whole leaf can drop what is not here.
        let may_be_unseen = first
            .0
            .next_multiple_of(LEAF_CLUSTERS)
            .saturating_add(LEAF_CLUSTERS)
            <= end;
        if may_be_unseen && let Some((at, missing)) = self.unseen_of(first.0..end) {
            // What is in the log is done as far as it can be, so that one leaf after the other is enough. A change is cut
            // to what is here before it comes so far: nothing of it may be in the map that is not in the log.
            if self.replays && at > first.0 {
                self.discard(first, at)?;
            }
            return Err(missing);
        }
        let before = may_be_unseen.then(|| self.map.freeze());
        let mut dead = std::mem::take(&mut self.dropped);
        let mut unseen = false;
        let cleared = self.map.clear(first.0..end, |location| match location {
            Some(location) => dead.push(location),
            None => unseen = true,
        });
        match before.filter(|_| unseen) {
            Some(before) => {
                dead.clear();
                let own = self.is_own_alone();
                let after = self.map.freeze();
                self.snapshots.drop_unseen(&before, &after, self.size, own);
            }
            None => dead.drain(..).for_each(|location| self.bury(location)),
        }
        dead.shrink_to(DROPPED_KEPT);
        self.dropped = dead;
        cleared.map(|_| ())
    }

    /// Part of one cluster: the rest of it keeps its content.
    fn advance_part(
        &mut self,
        change: &mut Change,
        length: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        let address = change.cluster();
        let old = self.map.get(address.0)?.unwrap_or(Location::HOLE);
        let is_noop = match change.kind {
            Kind::Discard => true,
            Kind::Zeroes(_) | Kind::Resize(_) => old.reads_zeros(),
            Kind::Data(_) | Kind::Record(_) => false,
        };
        if !is_noop {
            let mut cluster = BytesMut::zeroed(CLUSTER_LEN);
            if !old.reads_zeros() {
                match &change.fetched {
                    Some((location, content)) if *location == old => cluster.copy_from_slice(content),
                    _ => return Err(Blocked::Fetch(old)),
                }
            }
            self.need_slot(effects)?;
            overlay(&mut cluster, change, length);
            let last = change.at + length == change.end && !matches!(change.kind, Kind::Resize(_));
            self.append_cluster(change, address, &cluster, last)?;
            self.log.push_data(cluster.freeze());
        }
        change.fetched = None;
        change.at += length;
        Ok(())
    }

    /// Whole clusters of data, as many as the open SCO takes.
    fn advance_clusters(
        &mut self,
        change: &mut Change,
        clusters: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        let Kind::Data(data) = &change.kind else {
            return Ok(());
        };
        let data = data.clone();
        self.need_slot(effects)?;
        let take = clusters.min(u64::from(self.log.room().slots));
        let from = usize::try_from(change.at - change.start).unwrap_or(usize::MAX);
        let (first, end) = (change.cluster(), change.end);
        let mut appended = 0;
        let mut stopped = Ok(());
        for (address, cluster) in (first.0..first.0 + take).zip(data[from..].chunks_exact(CLUSTER_LEN)) {
            let last = change.at + (appended as u64 + 1) * CLUSTER_BYTES == end;
            stopped = self.append_cluster(change, ClusterAddress(address), cluster, last);
            if stopped.is_err() {
                break;
            }
            appended += 1;
        }
        if appended > 0 {
            self.log
                .push_data(data.slice(from..from + appended * CLUSTER_LEN));
            change.at += appended as u64 * CLUSTER_BYTES;
        }
        Ok(stopped?)
    }

    /// Whole clusters that become zeros.
    fn advance_zeroes(
        &mut self,
        change: &mut Change,
        clusters: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Blocked> {
        let allocate = matches!(change.kind, Kind::Zeroes(true));
        let address = change.cluster();
        let most = if allocate {
            PIECE_CLUSTERS
        } else {
            DISCARD_CLUSTERS_MAX
        };
        let count = self.piece_end(address.0, address.0 + clusters.min(most)) - address.0;
        let length = count * CLUSTER_BYTES;
        if allocate || self.has_any(address.0, count) {
            let last = change.at + length == change.end;
            self.log_zeroes(change, address, count, allocate, last, effects)?;
        }
        change.at += length;
        if count < clusters {
            Err(Blocked::Turn)
        } else {
            Ok(())
        }
    }

    /// Makes clusters holes, or allocated zeros.
    pub(crate) fn zero(
        &mut self,
        address: ClusterAddress,
        count: u64,
        allocate: bool,
    ) -> Result<(), Missing> {
        self.discard(address, address.0 + count)?;
        if allocate {
            for number in address.0..address.0 + count {
                self.map.set(number, Some(Location::ZEROS))?;
            }
        }
        Ok(())
    }

    /// Whether any cluster of the range is mapped; a node that is not resident holds some.
    fn has_any(&self, first: u64, count: u64) -> bool {
        let mut found = false;
        let seen = self.map.visit(first..first + count, |_, _| {
            found = true;
            ControlFlow::Break(())
        });
        found || seen.is_err()
    }

    /// Gives a cluster its place in the map and its slot in the log: first the map, which may have to be loaded, since
    /// nothing may be in the log that is not in the map.
    fn append_cluster(
        &mut self,
        change: &mut Change,
        address: ClusterAddress,
        cluster: &[u8],
        last: bool,
    ) -> Result<(), Missing> {
        let crc = crc32c(cluster);
        let (sco, slot) = self.log.next_slot();
        self.place(address, Location::new(self.own_lineage(), sco, slot, crc))?;
        self.log
            .push_cluster(address, crc, change.session.0, change.number, last);
        change.note_entry(last);
        Ok(())
    }

    /// Makes sure that a cluster fits the open SCO.
    pub(crate) fn need_slot(&mut self, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        if self.log.room().slots > 0 {
            Ok(())
        } else {
            self.make_room(effects)
        }
    }

    /// Makes sure that entries fit the open SCO.
    fn need_entries(&mut self, count: u16, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        if self.log.room().entries >= count {
            Ok(())
        } else {
            self.make_room(effects)
        }
    }

    /// Closes the full SCO and asks for the next: the change waits for it.
    fn make_room(&mut self, effects: &mut Vec<Effect>) -> Result<(), Blocked> {
        self.close_sco(effects);
        let synced_below = self.locals.synced_below().min(self.twin.synced_below());
        let opened = self.log.open_next(synced_below, effects);
        opened.map_err(|text| Blocked::Refused(Refusal::reject(RefusalCode::NoSpace, text)))?;
        Err(Blocked::Room)
    }
}

/// Lays the change's bytes at its position over an old cluster.
fn overlay(cluster: &mut [u8], change: &Change, length: u64) {
    let to_index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let within = to_index(change.at % CLUSTER_BYTES);
    let part = &mut cluster[within..within + to_index(length)];
    match &change.kind {
        Kind::Data(data) => {
            let from = to_index(change.at - change.start);
            part.copy_from_slice(&data[from..from + part.len()]);
        }
        _ => part.fill(0),
    }
}
