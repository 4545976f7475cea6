//! Moments: the volume as it was at a time within its history, made a snapshot.
//!
//! Keeps: who waits for which moment, and the one that is being made: a map that begins as a point's, and the log replayed
//! onto it.
//! Order: one at a time, in the order in which they were asked for; what a moment is is settled when it is asked for. An
//! answer leaves once a manifest has the snapshot: a crash before that leaves nothing of it.
//! Crash: asked for again, by the same id.
//! Knows no storage: the host brings the TLogs, nodes are asked for as everybody's are.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sconce_schemas::history::PointState;
use sconce_schemas::ids::Location;
use sconce_schemas::log_record::{LogRecord, SnapshotLabel};
use sconce_schemas::manifest::LogPlace;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::VolumeReply;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    BatchSeq, CheckpointId, ClusterAddress, Epoch, ScoId, SessionId, SnapshotId, VolumeSize,
};

use crate::event::{Effect, SessionSlot, Ticket};
use crate::operations::Parked;
use crate::recovery::{Origin, ScoImage};
use crate::replay::{Progress, RecordPlace, Replay, Target};
use crate::snapshots::{FrozenSnapshot, Snapshots, StoredSnapshot};
use crate::tree::{Missing, Tree};
use crate::volume::Volume;

/// Most moments that are under way.
const MOMENTS_MAX: usize = 16;
/// TLog entries that one event replays: about a millisecond.
const STEP_ENTRIES: u64 = 1024;
/// Names the map of an unfinished moment in a checkpoint; no snapshot has it.
const UNFINISHED: SnapshotId = SnapshotId(u64::MAX);

/// A moment that is asked for, to be kept as a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MomentAsk {
    /// Chosen by whoever asks: asking again with the same id changes nothing.
    pub id: SnapshotId,
    /// Name of the snapshot, unique in the volume.
    pub name: String,
    /// What people want written down.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// All batches up to this time are in it, in microseconds since 1970.
    pub time_us: u64,
}

/// The moments of a volume that are under way.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    queue: VecDeque<Moment>,
    making: Option<Making>,
    /// Made, but in no manifest yet.
    fresh: Vec<(SnapshotId, Vec<Ticket>)>,
}

/// What a moment is to be.
#[derive(Debug)]
struct Moment {
    label: SnapshotLabel,
    from: PointState,
    time_us: u64,
    /// The last batch that there was when it was asked for.
    last: BatchSeq,
    tickets: Vec<Ticket>,
}

/// The moment that is being made.
#[derive(Debug)]
struct Making {
    moment: Moment,
    map: Tree<Location>,
    size: VolumeSize,
    /// The SCO that is replayed, or comes next.
    sco: ScoId,
    /// The batch that comes next.
    seq: BatchSeq,
    at: LogPlace,
    replay: Option<Replay>,
    waits: Waits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// It can go on.
    No,
    ForLog,
    ForNode,
    /// For a checkpoint that stores what it changed so far, which takes too much memory; whether one is under way.
    ForMemory {
        frozen: bool,
    },
}

/// What a step came to.
enum Step {
    More,
    Log,
    Node(Missing),
    Over,
    Failed(Refusal),
}

impl Moments {
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + usize::from(self.making.is_some()) + self.fresh.len()
    }

    /// Whether one is about to have this name.
    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.under_way().any(|moment| moment.label.name == name)
    }

    fn under_way(&self) -> impl Iterator<Item = &Moment> {
        self.making.iter().map(|making| &making.moment).chain(&self.queue)
    }

    /// The last batch of the oldest point that is still needed.
    pub(crate) fn needed(&self) -> Option<BatchSeq> {
        self.under_way().map(|moment| moment.from.covered).min()
    }

    /// The first of the volume's checkpoints that any needs which is not a snapshot yet.
    fn floor(&self) -> Option<CheckpointId> {
        let queued = self.queue.iter().map(|moment| moment.from.map.floor);
        let making = self.making.iter().map(|making| making.map.floor());
        queued.chain(making).min()
    }

    /// Whether the one that is being made could go on.
    pub(crate) fn wants_turn(&self) -> bool {
        self.making
            .as_ref()
            .is_some_and(|making| making.waits == Waits::No)
    }

    pub(crate) fn map_memory(&self) -> u64 {
        self.making
            .as_ref()
            .map_or(0, |making| making.map.resident_bytes())
    }

    /// The map that is being made, to be loaded into.
    pub(crate) fn map_mut(&mut self) -> Option<&mut Tree<Location>> {
        self.making.as_mut().map(|making| &mut making.map)
    }

    /// What of the unfinished map a checkpoint is to store, so that it need not be in memory.
    pub(crate) fn freeze(&mut self) -> Option<FrozenSnapshot> {
        let making = self.making.as_mut()?;
        let Waits::ForMemory { frozen } = &mut making.waits else {
            return None;
        };
        *frozen = true;
        Some(FrozenSnapshot {
            id: UNFINISHED,
            map: making.map.freeze(),
            children: Vec::new(),
            joined: None,
        })
    }

    /// A node could not be had.
    pub(crate) fn take_failed(&mut self) -> Vec<Ticket> {
        self.making
            .take()
            .map(|making| making.moment.tickets)
            .unwrap_or_default()
    }

    /// Everything that waits: for a halt.
    pub(crate) fn abandon(&mut self) -> Vec<Ticket> {
        let moments = std::mem::take(self);
        let making = moments.making.into_iter().map(|making| making.moment);
        let asked = making.chain(moments.queue).flat_map(|moment| moment.tickets);
        asked
            .chain(moments.fresh.into_iter().flat_map(|(_, tickets)| tickets))
            .collect()
    }

    fn tickets_of(&mut self, id: SnapshotId) -> Option<&mut Vec<Ticket>> {
        let making = self.making.iter_mut().map(|making| &mut making.moment);
        let mut moments = making.chain(&mut self.queue);
        if let Some(moment) = moments.find(|moment| moment.label.id == id) {
            return Some(&mut moment.tickets);
        }
        let fresh = self.fresh.iter_mut().find(|(fresh, _)| *fresh == id);
        fresh.map(|(_, tickets)| tickets)
    }
}

/// A moment as what is replayed onto; a snapshot is gone back to in it as in the volume.
struct Onto<'a> {
    map: &'a mut Tree<Location>,
    size: &'a mut VolumeSize,
    snapshots: &'a Snapshots,
}

impl Onto<'_> {
    fn clear(&mut self, from: u64, to: u64) -> Result<(), Missing> {
        self.map.clear(from..to, |_| ()).map(|_| ())
    }
}

impl Target for Onto<'_> {
    fn replay_write(&mut self, address: ClusterAddress, location: Location) -> Result<(), Missing> {
        self.map.set(address.0, Some(location)).map(|_| ())
    }

    fn replay_zero(&mut self, address: ClusterAddress, count: u64, allocate: bool) -> Result<(), Missing> {
        let (from, to) = (address.0, address.0.saturating_add(count));
        self.clear(from, to)?;
        if allocate {
            for number in from..to {
                self.map.set(number, Some(Location::ZEROS))?;
            }
        }
        Ok(())
    }

    fn replay_resize(&mut self, size: VolumeSize) -> Result<(), Missing> {
        if size < *self.size {
            self.clear(size.clusters().0, VolumeSize::MAX.clusters().0)?;
        }
        *self.size = size;
        Ok(())
    }

    fn replay_session(&mut self, _: SessionSlot, _: SessionId) {}

    fn replay_end(&mut self, _: SessionSlot, _: u64) {}

    fn replay_record(&mut self, record: LogRecord, _: RecordPlace) -> Result<(), String> {
        let LogRecord::RolledBack { to, .. } = record else {
            return Ok(());
        };
        let target = self.snapshots.get(to).filter(|found| found.removed.is_none());
        let target =
            target.ok_or_else(|| format!("invariant 7: snapshot {to} is gone and a moment needs it"))?;
        *self.map = Tree::thaw(&target.map.freeze());
        *self.size = target.size;
        Ok(())
    }
}

impl Volume {
    /// The first of the volume's checkpoints that a moment needs of which no manifest knows.
    pub(crate) fn moments_floor(&self) -> Option<CheckpointId> {
        let fresh = self
            .moments
            .fresh
            .iter()
            .filter_map(|(id, _)| self.snapshots.get(*id));
        let fresh = fresh.map(|snapshot| snapshot.map.floor());
        fresh.chain(self.moments.floor()).min()
    }

    /// A moment is asked for.
    pub(crate) fn ask_moment(&mut self, ticket: Ticket, ask: &MomentAsk, effects: &mut Vec<Effect>) {
        // What was taken in before is in a batch of a time before now.
        self.end_batch(effects);
        if let Some(tickets) = self.moments.tickets_of(ask.id) {
            tickets.push(ticket);
            return;
        }
        let known = self.snapshots.get(ask.id);
        if known.is_some_and(|known| known.label.name == ask.name) {
            effects.push(Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            });
            return;
        }
        match self.judge_moment(ticket, ask) {
            Ok(moment) => {
                self.moments.queue.push_back(moment);
                self.begin_moment();
            }
            Err(refusal) => self.refuse(ticket, refusal, effects),
        }
    }

    fn judge_moment(&self, ticket: Ticket, ask: &MomentAsk) -> Result<Moment, Refusal> {
        let mut label = self.new_label(ask.id, &ask.name, &ask.metadata)?;
        label.created_us = ask.time_us;
        if !self.history.is_on() {
            let text = "its history is off, so only its snapshots can be had; turn it on for the moments from then on";
            return Err(Refusal::reject(RefusalCode::Unsupported, text));
        }
        if ask.time_us > self.now_us {
            let text = format!(
                "{} is in the future, it is {} now",
                Instant(ask.time_us),
                Instant(self.now_us)
            );
            return Err(Refusal::reject(RefusalCode::Invalid, text));
        }
        let Some(from) = self.history.point_at(ask.time_us) else {
            let text = match self.history.base() {
                Some(base) => format!(
                    "{} is before its history, which goes back to {}",
                    Instant(ask.time_us),
                    Instant(base.time_us)
                ),
                None => "its history was turned on just now and has not begun yet; try again in a while"
                    .to_owned(),
            };
            return Err(Refusal::reject(RefusalCode::NotFound, text));
        };
        if self.moments.len() >= MOMENTS_MAX {
            let text = format!("{MOMENTS_MAX} moments of it are being made");
            return Err(Refusal::retry(RefusalCode::Unavailable, text));
        }
        Ok(Moment {
            label,
            from,
            time_us: ask.time_us,
            last: self.frontier.appended(),
            tickets: vec![ticket],
        })
    }

    fn begin_moment(&mut self) {
        if self.moments.making.is_some() {
            return;
        }
        let Some(moment) = self.moments.queue.pop_front() else {
            return;
        };
        let from = moment.from;
        let sco = from.covered_sco.next();
        self.moments.making = Some(Making {
            map: Tree::stored(from.map, from.allocated_clusters),
            size: from.size,
            sco,
            seq: from.covered.next(),
            at: LogPlace { sco, slots: 0 },
            replay: None,
            waits: Waits::No,
            moment,
        });
    }

    /// Takes the moment that is being made a step further.
    pub(crate) fn moment_turn(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut making) = self.moments.making.take() else {
            return;
        };
        making.waits = Waits::No;
        let step = making.step(&self.snapshots);
        match step {
            Step::More => {
                if making.map.resident_bytes() > self.map_memory / 2 {
                    let stored = self.stored_up_to();
                    if making.map.evict(self.map_memory / 4, stored) > self.map_memory / 2 {
                        // What is left has to be stored before it can go.
                        making.waits = Waits::ForMemory { frozen: false };
                        self.checkpoints.manifest_due = true;
                    }
                }
                self.moments.making = Some(making);
            }
            Step::Log => match self.epoch_at(making.sco) {
                Some(epoch) if making.sco < self.log.next_sco() => {
                    let sco = making.sco;
                    making.waits = Waits::ForLog;
                    self.moments.making = Some(making);
                    let local = !self.locals.is_stored(sco);
                    effects.push(Effect::ReadLog { sco, epoch, local });
                }
                _ => {
                    let text = format!(
                        "batch {} of its log is not to be found up to SCO {}",
                        making.seq, making.sco
                    );
                    self.moment_failed(making.moment.tickets, &Refusal::damaged(text), effects);
                }
            },
            Step::Node(missing) => {
                making.waits = Waits::ForNode;
                self.moments.making = Some(making);
                self.wait(missing, Some(Parked::Moment), effects);
            }
            Step::Over => {
                let at = RecordPlace {
                    at: making.at,
                    batch: making.seq.prev(),
                };
                let Moment {
                    label, tickets, from, ..
                } = making.moment;
                let own = self.is_own_alone_since(from.covered);
                self.moments.fresh.push((label.id, tickets));
                self.snapshots
                    .join(label, making.size, making.map, own, at, &self.map);
                self.checkpoints.manifest_due = true;
                self.begin_moment();
            }
            Step::Failed(refusal) => self.moment_failed(making.moment.tickets, &refusal, effects),
        }
    }

    /// Refuses a moment to those who wait for it, and goes on with the next.
    pub(crate) fn moment_failed(
        &mut self,
        tickets: Vec<Ticket>,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) {
        for ticket in tickets {
            self.refuse(ticket, refusal.clone(), effects);
        }
        self.begin_moment();
    }

    /// The host read header and TLog areas of a SCO.
    pub(crate) fn log_read(
        &mut self,
        sco: ScoId,
        epoch: Epoch,
        result: Result<Bytes, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let (id, size, lineage) = (self.id, self.sco_size, self.own_lineage());
        let is_asked = |making: &Making| making.waits == Waits::ForLog && making.sco == sco;
        let Some(making) = self.moments.making.as_mut().filter(|making| is_asked(making)) else {
            return;
        };
        let read = result.and_then(|bytes| {
            let fits = |header: &ScoHeader| {
                header.volume == id
                    && (header.id, header.epoch, header.size) == (sco, epoch, size)
                    && header.first_batch == making.seq
            };
            let header = ScoHeader::from_bytes(&bytes).ok().filter(fits).ok_or_else(|| {
                Refusal::damaged(format!(
                    "SCO {sco} does not go on with batch {} of its log",
                    making.seq
                ))
            })?;
            let image = ScoImage {
                bytes,
                origin: Origin::Stored,
            };
            Ok(Replay::new(header, image, lineage))
        });
        match read {
            Ok(replay) => {
                making.waits = Waits::No;
                making.replay = Some(replay);
            }
            Err(refusal) => {
                let tickets = self.moments.take_failed();
                self.moment_failed(tickets, &refusal, effects);
            }
        }
    }

    /// A checkpoint is over: the unfinished map can let go of what it stored.
    pub(crate) fn moments_have_room(&mut self) {
        let stored = self.stored_up_to();
        if let Some(making) = self
            .moments
            .making
            .as_mut()
            .filter(|making| making.waits == Waits::ForMemory { frozen: true })
        {
            making.map.evict(self.map_memory / 4, stored);
            making.waits = Waits::No;
        }
    }

    /// A manifest has these snapshots: whoever waits for one of them is answered.
    pub(crate) fn moments_stored(&mut self, stored: &[StoredSnapshot], effects: &mut Vec<Effect>) {
        let is_stored =
            |(id, _): &mut (SnapshotId, Vec<Ticket>)| stored.iter().any(|stored| stored.id == *id);
        for (_, tickets) in self.moments.fresh.extract_if(.., is_stored) {
            let reply = |ticket| Effect::Reply {
                ticket,
                reply: VolumeReply::Done,
            };
            effects.extend(tickets.into_iter().map(reply));
        }
    }

    /// The history was turned off: what is not made yet cannot be made any more.
    pub(crate) fn end_moments(&mut self, effects: &mut Vec<Effect>) {
        if self.history.is_on() || (self.moments.making.is_none() && self.moments.queue.is_empty()) {
            return;
        }
        let mut tickets = self.moments.take_failed();
        tickets.extend(self.moments.queue.drain(..).flat_map(|moment| moment.tickets));
        let refusal = Refusal::reject(RefusalCode::Unsupported, "its history was turned off");
        self.moment_failed(tickets, &refusal, effects);
    }
}

impl Making {
    fn step(&mut self, snapshots: &Snapshots) -> Step {
        let mut budget = STEP_ENTRIES;
        while budget > 0 {
            if self.seq > self.moment.last {
                return Step::Over;
            }
            let Some(replay) = &mut self.replay else {
                return Step::Log;
            };
            if replay.batch.is_none() {
                budget -= 1;
                match replay.read(self.seq, false) {
                    Progress::Ended { .. } => {
                        // What is not whole here is what an earlier use of the file left: the next SCO goes on, or nothing does.
                        self.sco = self.sco.next();
                        self.replay = None;
                        continue;
                    }
                    _ => {
                        if replay
                            .batch
                            .as_ref()
                            .is_some_and(|batch| batch.time_us > self.moment.time_us)
                        {
                            return Step::Over;
                        }
                    }
                }
                continue;
            }
            let mut onto = Onto {
                map: &mut self.map,
                size: &mut self.size,
                snapshots,
            };
            match replay.apply(&mut onto, &mut budget) {
                Progress::Needs(missing) => return Step::Node(missing),
                Progress::Wrong(text) => {
                    return Step::Failed(Refusal::damaged(format!("SCO {}: {text}", self.sco)));
                }
                _ if replay.batch.is_none() => {
                    self.at = replay.place();
                    self.seq = self.seq.next();
                }
                _ => {}
            }
        }
        Step::More
    }
}

/// A moment for people, in UTC.
struct Instant(u64);

/// The last second of the year 9999.
const SECONDS_MAX: u64 = 253_402_300_799;

impl std::fmt::Display for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = Duration::from_micros(self.0).min(Duration::from_secs(SECONDS_MAX));
        humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + since).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Instant;

    #[test]
    fn a_moment_is_said_in_utc() {
        for (time_us, said) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_795_428_903_250_000, "2026-11-23T10:15:03.250000Z"),
            (u64::MAX, "9999-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(Instant(time_us).to_string(), said);
        }
    }
}
