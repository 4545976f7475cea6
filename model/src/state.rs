//! What the model knows at one moment: the record, the nodes with their files, the streams, the back end.
//!
//! Keeps: sets as bits of a byte, so that millions of states fit into memory.
//! Order: batches have the numbers in which they were written by anybody; a SCO's batches are in that order.
//! Crash: a node's files and the record stay; all else of a node is gone.
//! Knows no steps.

/// Nodes at most.
pub const NODES: usize = 3;
/// Names of SCOs at most.
pub const SCOS: usize = 3;
/// Guest writes at most, each a batch.
pub const BATCHES: usize = 4;
/// Streams at most.
pub const STREAMS: usize = 3;
/// Ownerships at most.
pub const EPOCHS: usize = 4;
/// Batches of a full SCO.
pub(crate) const SCO_BATCHES: u32 = 2;
/// No SCO.
const NOWHERE: u8 = u8::MAX;

/// A write buffer: a node and how often its disk was wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Buffer {
    pub(crate) node: u8,
    pub(crate) wiped: u8,
}

/// The registry's record of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) owner: u8,
    pub(crate) epoch: u8,
    pub(crate) buffer: Option<Buffer>,
    /// The boot of the machine in which that began to be relied on (`buffer_boot`).
    pub(crate) buffer_boot: u8,
    /// `dtl_host` and `dtl_buffer`, while it says `InSync`.
    pub(crate) in_sync: Option<Buffer>,
    /// Likewise (`dtl_boot`); 0 where there is none.
    pub(crate) in_sync_boot: u8,
    /// The first SCO of each epoch that has begun.
    pub(crate) starts: [u8; EPOCHS],
    /// SCOs below this one are covered by a manifest.
    pub(crate) covered: u8,
    /// The stream that its host has written here ([`crate::Streams::InRecord`]).
    pub(crate) stream: Option<u8>,
}

impl Record {
    /// It relies on no twin.
    pub(crate) const fn without_twin(&mut self) {
        (self.in_sync, self.in_sync_boot) = (None, 0);
    }

    /// The epoch whose SCO of this name is of the log.
    pub(crate) fn epoch_at(&self, sco: usize) -> usize {
        let begun = |epoch: &usize| usize::from(self.starts[*epoch]) <= sco;
        (0..EPOCHS).rev().find(begun).unwrap_or(0)
    }
}

/// A SCO: in a write buffer, or on the back end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sco {
    pub(crate) epoch: u8,
    /// Batches of the log before its first.
    pub(crate) first: u8,
    /// None: there is no such SCO.
    pub(crate) batches: u8,
}

/// An object of the back end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) sco: Sco,
    /// It has arrived.
    pub(crate) stored: bool,
}

/// How far an owner's twin is (services/volume/src/twin.rs `State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Twin {
    Detached,
    /// `Attach` was sent (services/volume-router/src/twin/ours.rs `attach`).
    Attaching,
    Copying,
    Joining,
    Recording,
    InSync,
    Losing,
}

impl Twin {
    pub(crate) const fn listens(self) -> bool {
        matches!(
            self,
            Self::Copying | Self::Joining | Self::Recording | Self::InSync
        )
    }

    pub(crate) const fn is_waited_for(self) -> bool {
        matches!(
            self,
            Self::Joining | Self::Recording | Self::InSync | Self::Losing
        )
    }
}

/// A volume that is served, by the owner in charge or by one that does not know yet that it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) epoch: u8,
    /// The batches in its map.
    pub(crate) log: u8,
    pub(crate) open: Option<u8>,
    pub(crate) next_sco: u8,
    pub(crate) twin: Twin,
    pub(crate) stream: u8,
    /// What it knows that the twin holds, and has synced.
    pub(crate) held: u8,
    pub(crate) synced: u8,
    /// What the twin has to have synced before the record says `InSync`.
    pub(crate) owed: u8,
    /// SCOs that are still to be copied.
    pub(crate) copies: u8,
}

impl Owner {
    /// It serves what it has replayed, and has no twin yet.
    pub(crate) const fn begun(epoch: u8, log: u8, next_sco: u8) -> Self {
        Self {
            epoch,
            log,
            open: None,
            next_sco,
            twin: Twin::Detached,
            stream: 0,
            held: 0,
            synced: 0,
            owed: 0,
            copies: 0,
        }
    }
}

/// Where a node is with the volume (services/volume-router/src/owner/mod.rs `start`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// The record was read and the stream here ended. `orphan`: the ownership whose twin here is gone on from.
    Starting {
        orphan: Option<u8>,
        forced: bool,
    },
    /// The record has its epoch.
    Claimed {
        epoch: u8,
    },
    Serving(Owner),
}

/// What a host may give up, by the record as it was read, and has not given up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Doubt {
    /// A stream that says nothing (services/volume-router/src/twin/host.rs `look_for_silent`).
    Silent(u8, Proof),
    /// Files that no stream and no actor has (services/volume-router/src/announce.rs `give_up_what_is_over`).
    Left(Proof),
}

/// What the record said when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Proof {
    /// What is of an earlier ownership is over: no commit of that can succeed any more.
    pub(crate) epoch: u8,
    /// It relied on another buffer: so that the owner had written `Degraded` after anything that it wrote of this one.
    pub(crate) elsewhere: bool,
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) wiped: u8,
    /// How often its machine lost power.
    pub(crate) boot: u8,
    /// It is gone with its disk.
    pub(crate) gone: bool,
    pub(crate) phase: Phase,
    pub(crate) files: [Sco; SCOS],
    /// The ownership that its files are of, or are kept for.
    pub(crate) kept_for: u8,
    /// Batches that a loss of power may take.
    pub(crate) unsynced: u8,
    /// The stream whose host it is.
    pub(crate) hosts: Option<u8>,
    /// The newest `Attach` that is under way, allowed by the record as it was read.
    pub(crate) attach: Option<u8>,
    pub(crate) doubt: Option<Doubt>,
    /// A commit of `RecordInSync` is on its way to the registry: the stream that it names.
    pub(crate) committing: Option<u8>,
}

/// A stream, and what is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stream {
    pub(crate) owner: u8,
    pub(crate) epoch: u8,
    pub(crate) host: u8,
    /// The host's buffer, and its boot, as it answered.
    pub(crate) wiped: u8,
    pub(crate) boot: u8,
    /// `Attach` is on its way.
    pub(crate) asked: bool,
    /// Streams of its owner to its host whose `Attach` was sent before.
    pub(crate) after: u8,
    /// `Attached` is on its way.
    pub(crate) attached: bool,
    /// `Detach` is on its way.
    pub(crate) detach: bool,
    /// Appends that are on their way, and those that the host has answered.
    pub(crate) flight: u8,
    pub(crate) held: u8,
}

/// A batch: its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) epoch: u8,
    pub(crate) sco: u8,
    pub(crate) first: u8,
}

/// All there is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) record: Record,
    pub(crate) nodes: [Node; NODES],
    pub(crate) streams: [Option<Stream>; STREAMS],
    pub(crate) batches: [Batch; BATCHES],
    pub(crate) objects: [[Object; SCOS]; EPOCHS],
    /// Streams that ever were.
    pub(crate) opened: u8,
    pub(crate) written: u8,
    pub(crate) acked: u8,
    pub(crate) flushed: u8,
    /// Batches that losses of power took, before any flush, of the last write buffer that had all of them: an acknowledgement promises nothing
    /// of that.
    pub(crate) excused: u8,
    /// An operator accepted the loss: what ownerships before this one acknowledge does not count.
    pub(crate) void_before: u8,
    pub(crate) forced: u8,
    pub(crate) power_lost: u8,
}

/// What a recovery finds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replayed {
    pub(crate) log: u8,
    pub(crate) next_sco: u8,
    /// Files of the buffer that are of the log.
    pub(crate) files: u8,
}

impl State {
    /// Node 0 serves an empty volume that has no twin yet.
    pub(crate) fn first() -> Self {
        let owner = Owner::begun(0, 0, 0);
        let idle = Node {
            wiped: 0,
            boot: 0,
            gone: false,
            phase: Phase::Idle,
            files: [Sco::default(); SCOS],
            kept_for: 0,
            unsynced: 0,
            hosts: None,
            attach: None,
            doubt: None,
            committing: None,
        };
        let mut nodes = [idle; NODES];
        nodes[0].phase = Phase::Serving(owner);
        let mut starts = [NOWHERE; EPOCHS];
        starts[0] = 0;
        Self {
            record: Record {
                owner: 0,
                epoch: 0,
                buffer: Some(Buffer { node: 0, wiped: 0 }),
                buffer_boot: 0,
                in_sync: None,
                in_sync_boot: 0,
                starts,
                covered: 0,
                stream: None,
            },
            nodes,
            streams: [None; STREAMS],
            batches: [Batch::default(); BATCHES],
            objects: [[Object::default(); SCOS]; EPOCHS],
            opened: 0,
            written: 0,
            acked: 0,
            flushed: 0,
            excused: 0,
            void_before: 0,
            forced: 0,
            power_lost: 0,
        }
    }

    /// The write buffer that a node has now.
    pub(crate) fn buffer(&self, n: u8) -> Buffer {
        Buffer {
            node: n,
            wiped: self.nodes[usize::from(n)].wiped,
        }
    }

    /// Whether a write buffer is there.
    pub(crate) fn is_here(&self, buffer: Buffer) -> bool {
        let node = &self.nodes[usize::from(buffer.node)];
        !node.gone && node.wiped == buffer.wiped
    }

    /// Whether the record says that the twin in this node's write buffer has every acknowledged write (`relies_on_twin`).
    pub(crate) fn relies_on(&self, n: u8) -> bool {
        self.record.in_sync == Some(self.buffer(n))
    }

    /// Whether a write buffer that the record names is there, and has not lost power since: it has all that was acknowledged.
    pub(crate) fn is_whole(&self, buffer: Option<Buffer>, boot: u8) -> bool {
        buffer.is_some_and(|buffer| self.is_here(buffer) && self.nodes[usize::from(buffer.node)].boot == boot)
    }

    /// Whether a node's write buffer is one that the record names and is as good as any (`may_claim`): it has not lost power since, or
    /// there is no other, or that one is there and has lost power too.
    pub(crate) fn may_go_on(&self, n: u8) -> bool {
        let record = &self.record;
        let (own, boot) = (self.buffer(n), self.nodes[usize::from(n)].boot);
        let named = [
            (record.buffer, record.buffer_boot),
            (record.in_sync, record.in_sync_boot),
        ];
        let is_named = named.iter().any(|(buffer, _)| *buffer == Some(own));
        let is_whole = named.contains(&(Some(own), boot));
        let lost_power = |(buffer, boot): &(Option<Buffer>, u8)| {
            buffer.is_none_or(|other| self.is_here(other) && !self.is_whole(*buffer, *boot))
        };
        is_named && (is_whole || named.iter().all(lost_power))
    }

    pub(crate) fn owner(&self, n: u8) -> Option<&Owner> {
        match &self.nodes[usize::from(n)].phase {
            Phase::Serving(owner) => Some(owner),
            _ => None,
        }
    }

    pub(crate) fn owner_mut(&mut self, n: u8) -> Option<&mut Owner> {
        match &mut self.nodes[usize::from(n)].phase {
            Phase::Serving(owner) => Some(owner),
            _ => None,
        }
    }

    /// What a recovery on this node finds: each SCO from its file, if files of this buffer count, or else its object; until one is
    /// missed or does not go on where the one before it ended (services/volume/src/replay.rs).
    pub(crate) fn replay(&self, n: u8, files_count: bool) -> Replayed {
        let mut replayed = Replayed {
            log: 0,
            next_sco: 0,
            files: 0,
        };
        for (at, file) in self.nodes[usize::from(n)].files.iter().enumerate() {
            let epoch = self.record.epoch_at(at);
            let is_here = files_count
                && at >= usize::from(self.record.covered)
                && file.batches != 0
                && usize::from(file.epoch) == epoch;
            let object = &self.objects[epoch][at];
            let sco = match is_here {
                true => *file,
                false if object.stored => object.sco,
                false => break,
            };
            if u32::from(sco.first) != replayed.log.count_ones() {
                break;
            }
            replayed.log |= sco.batches;
            replayed.next_sco += 1;
            replayed.files |= u8::from(is_here) << at;
        }
        replayed
    }
}
