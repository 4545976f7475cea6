//! What the core takes in and what it asks for: its whole boundary.
//!
//! Keeps: nothing; these are values.
//! Order: effects are carried out in the order given.
//! Crash: nothing.
//! Knows no sockets, no clock, no tasks.

use bytes::Bytes;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};
use sconce_schemas::{ScoId, ScoSize, Slot, VolumeId};

use crate::routing::operation::Outcome;

/// Microseconds since the core was made.
pub type Micros = u64;

/// A connection to a volume-router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerKey(pub usize);

/// A connection to a storage-router; each has a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageKey(pub u64);

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkKey {
    /// To a volume-router.
    Owner(OwnerKey),
    /// To a storage-router.
    Storage(StorageKey),
}

/// The core's session on one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub usize);

/// Who asked: one connection of a client, one mount, one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontEndKey(pub usize);

/// Names an operation to its front end, which chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// How much the core takes on, and how it waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Reads and writes are cut at multiples of this many bytes of the volume. A multiple of the cluster size.
    pub part_bytes: u64,
    /// Operations of one volume that have not ended.
    pub requests_max: usize,
    /// Bytes that they carry.
    pub bytes_max: u64,
    /// First wait before something is tried again.
    pub backoff_first_us: Micros,
    /// Longest wait.
    pub backoff_max_us: Micros,
    /// Whether there is a cache that [`Effect::LookUp`] asks.
    pub has_cache: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            part_bytes: 512 << 10,
            requests_max: 4096,
            bytes_max: 128 << 20,
            backoff_first_us: 5_000,
            backoff_max_us: 1_000_000,
            has_cache: false,
        }
    }
}

/// How long an open is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until the volume is served, however long that takes.
    Endless,
    /// Until it is known that the volume waits for an owner that may never come back: then the open ends with
    /// [`sconce_schemas::wire::RefusalCode::WaitsForOwner`].
    WhileServed,
}

/// What of a volume's record locates the SCOs that it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Its storage pool.
    pub pool: String,
    /// Clusters of a SCO.
    pub sco_size: ScoSize,
    /// Whether its clusters may be on an SSD as they are. Not those of a pool whose content must not be in clear there.
    pub is_cacheable: bool,
}

/// Clusters that follow one another in a SCO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    /// The volume that wrote it.
    pub writer: VolumeId,
    /// The SCO.
    pub sco: ScoId,
    /// Where the first one is.
    pub first_slot: Slot,
    /// Each one's CRC32C.
    pub crcs: Vec<u32>,
}

impl Clusters {
    /// `length` of them from the one at index `at` on, as far as there are that many.
    #[must_use]
    pub fn run(&self, at: usize, length: usize) -> Self {
        let end = self.crcs.len().min(at.saturating_add(length));
        let skipped = u16::try_from(at).unwrap_or(u16::MAX);
        Self {
            first_slot: Slot(self.first_slot.0.saturating_add(skipped)),
            crcs: self.crcs.get(at..end).unwrap_or_default().to_vec(),
            ..*self
        }
    }
}

/// What the cache says of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It is here, unharmed.
    Here(Bytes),
    /// It is not here, and the core is to fetch it: others that want it wait for [`Effect::Keep`] or [`Effect::Release`].
    Ours,
    /// Another fetches it: the cache is asked again, and then answers once that one is done.
    Others,
}

impl Lookup {
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What the registry says of where a volume is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routed {
    /// Its owner is reached at `endpoint`.
    At {
        /// The owner's endpoint for this volume.
        endpoint: String,
        /// What locates the volume's own SCOs.
        writer: Writer,
    },
    /// Nobody knows right now: the registry does not answer. For people: why.
    Unknown(String),
    /// Its owner does not run: the volume waits for it. For people: which.
    Absent(String),
    /// There is no such volume.
    Gone(Refusal),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A volume-router answered.
    OwnerReplied {
        /// Who.
        link: OwnerKey,
        /// To what.
        id: u64,
        /// The answer.
        reply: VolumeReply,
        /// Its data.
        data: Bytes,
    },
    /// A storage-router answered.
    StorageReplied {
        /// Who.
        link: StorageKey,
        /// To what.
        id: u64,
        /// The answer.
        reply: StorageReply,
        /// Its data.
        data: Bytes,
    },
    /// A link takes requests again.
    Room(LinkKey),
    /// A link is connected.
    Up(LinkKey),
    /// A link was lost, and with it all that it had not answered. It connects again by itself.
    Down(LinkKey),
    /// The peer refuses this link for good: another version.
    Refused {
        /// The link.
        link: LinkKey,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to [`Effect::FindOwner`].
    Routed {
        /// The session.
        session: SessionKey,
        /// What was found.
        routed: Routed,
    },
    /// The answer to [`Effect::FindWriter`]: `Ok(None)` where there is no such volume, `Err` where the registry
    /// does not answer.
    WriterFound {
        /// The volume.
        volume: VolumeId,
        /// What was found.
        writer: Result<Option<Writer>, String>,
    },
    /// The answer to [`Effect::FindStorage`]: one endpoint of each storage-router that is alive.
    StorageFound {
        /// The endpoints.
        endpoints: Vec<String>,
    },
    /// The answer to [`Effect::LookUp`].
    LookedUp {
        /// Which.
        id: u64,
        /// What was looked up.
        clusters: Clusters,
        /// What was found, for each.
        found: Vec<Lookup>,
    },
    /// Which process of its node this is.
    Announced {
        /// Higher than that of each before it; 0: it is not in the registry.
        incarnation: u64,
    },
    /// The time that [`super::Core::next_wake`] named has come.
    Tick,
}

/// What the core asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect, and go on connecting whenever the connection is lost.
    Connect {
        /// Names the connection.
        link: LinkKey,
        /// Where.
        endpoint: String,
    },
    /// Nothing is sent on this link any more, and no event of it is wanted.
    Disconnect {
        /// The link; its key may be given to another afterwards.
        link: LinkKey,
    },
    /// Ask the registry where a volume is served; answer [`Event::Routed`].
    FindOwner {
        /// For the answer.
        session: SessionKey,
        /// The volume.
        volume: VolumeId,
    },
    /// Ask the registry for the record of a volume that wrote SCOs; answer [`Event::WriterFound`].
    FindWriter {
        /// The volume.
        volume: VolumeId,
    },
    /// Ask the registry for the storage-routers that are alive; answer [`Event::StorageFound`].
    FindStorage,
    /// Ask the cache; answer [`Event::LookedUp`]. Only where [`Limits::has_cache`].
    LookUp {
        /// For the answer.
        id: u64,
        /// Of what.
        clusters: Clusters,
    },
    /// Clusters that the cache left to this core were fetched, and are unharmed.
    Keep {
        /// Which.
        clusters: Clusters,
        /// One after the other.
        data: Bytes,
        /// Whether the cache may keep them; those that wait for them get them in any case.
        is_cacheable: bool,
    },
    /// Clusters that the cache left to this core are not fetched: another that waits for them may.
    Release {
        /// Which.
        clusters: Clusters,
    },
    /// An operation ended.
    Complete {
        /// Who asked for it.
        front_end: FrontEndKey,
        /// Its name for it.
        token: Token,
        /// How it ended.
        outcome: Outcome,
    },
    /// A session that refused an operation for want of room takes operations again.
    Room(SessionKey),
    /// Changes of a volume are refused for want of write access; told once, until there is some.
    AccessRefused {
        /// The volume.
        volume: VolumeId,
        /// Why.
        refusal: Refusal,
    },
    /// Operations that a front end left behind may still be applied by the volume's owner ...
    Orphaned(VolumeId),
    /// ... and now none of them can be any more.
    Settled(VolumeId),
}

/// Whether a request was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It leaves with the next message.
    Taken,
    /// No credit, or no connection: [`Event::Room`], [`Event::Up`] or [`Event::Down`] will follow.
    NoRoom,
    /// The peer takes none as large as this. For people: why.
    Never(String),
}

/// Where the core's requests go: the bus, or a test.
pub trait Wire {
    /// Queues a request to a volume-router.
    fn to_owner(
        &mut self,
        link: OwnerKey,
        id: u64,
        trace: u64,
        request: &VolumeRequest,
        data: Bytes,
        reply_bytes: u32,
    ) -> Sent;

    /// Queues a request to a storage-router.
    fn to_storage(
        &mut self,
        link: StorageKey,
        id: u64,
        trace: u64,
        request: &StorageRequest,
        reply_bytes: u32,
    ) -> Sent;
}
