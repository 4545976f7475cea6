//! Events: what happened to volumes, nodes and back ends, as a service tells whoever asks for it.
//!
//! Keeps: the closed list of what can happen, how serious each is, and the words for people. An event's text goes with it: a build that does
//! not know what happened can still say it.
//! Order: a service numbers its events without gaps from 1 up, for as long as it runs; between services there are only their clocks.
//! Crash: a service that starts anew begins another run of numbers.
//! Knows no ring, no log.
//!
//! A newer build may add kinds and fields. A field never gains values that an older build cannot read: that is another kind.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::envelope::Role;
use crate::access::AccessMode;
use crate::geometry::ByteLen;
use crate::ids::{Epoch, NodeName, VolumeId};
use crate::records::DtlMode;

/// Most bytes of an event's text.
pub const TEXT_BYTES_MAX: usize = 2048;
/// Longest wait of one [`EventsAsk`], in milliseconds.
pub const WAIT_MS_MAX: u32 = 20_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolEvent {
    /// Its number in the run of the service that tells it.
    pub seq: u64,
    /// When, in microseconds since 1970, by that service's clock.
    pub time_us: u64,
    /// How serious it is.
    pub level: Level,
    /// The volume that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeName>,
    /// What happened.
    pub what: What,
    /// The same for people; names the volume.
    pub text: String,
}

/// A volume as programs and as people name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeName {
    /// Its id.
    pub id: VolumeId,
    /// Its path when it happened; empty where nobody knew it.
    pub path: String,
}

/// How serious an event is: the level of its line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be, or passes by itself.
    Info,
    /// Something is lost or does not work; the service deals with it.
    Warning,
    /// A person must look.
    Error,
}

impl Level {
    /// Its name, as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Why a node owns a volume since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnedWhy {
    /// It is new.
    Created,
    /// It owned the volume before, and started or claimed it anew.
    Start,
    /// Its owner is gone, and its twin is here.
    TwinHost,
    /// It was moved here.
    Moved,
    /// An operator asked for it.
    Operator,
    /// An operator asked for it and accepted the loss of what is not on the back ends.
    Forced,
    /// For a reason that this build does not know.
    #[serde(other)]
    Other,
}

/// Why a front end may write a volume since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessWhy {
    /// It wrote, and no other had access.
    Free,
    /// It wrote after the other was told to hand over.
    HandedOver,
    /// It wrote, and the other's node is gone.
    Gone,
    /// For a reason that this build does not know.
    #[serde(other)]
    Other,
}

/// A volume-router that would not, or could not, keep a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinRefused {
    /// Who.
    pub node: NodeName,
    /// Why.
    pub cause: String,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum What {
    /// A service is in the registry since.
    NodeJoined {
        /// Its name.
        name: NodeName,
        /// What it is.
        role: Role,
        /// Its process.
        pid: u32,
        /// The process of this name that was there until then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        in_place_of: Option<u32>,
    },
    /// A service is not in the registry any more: it stopped, or its lease is over.
    NodeLeft {
        /// Its name.
        name: NodeName,
        /// What it was.
        role: Role,
        /// Its process.
        pid: u32,
    },
    /// The lease of the node that tells had ended: it served nothing meanwhile.
    LeaseEnded,
    /// The node that tells owns the volume and serves it.
    Owned {
        /// Who owned it before.
        from: NodeName,
        /// The ownership.
        epoch: Epoch,
        /// Why.
        why: OwnedWhy,
        /// Batches of the log that were replayed.
        replayed: u64,
    },
    /// All of the volume is on the back ends and it is nobody's until its owner, or another, starts it.
    Released {
        /// The ownership that ended.
        epoch: Epoch,
    },
    /// The node that tells serves the volume no more, unless the registry says that it still may.
    Fenced {
        /// The ownership that is in doubt.
        epoch: Epoch,
        /// Why.
        cause: String,
    },
    /// The volume is over, at the node that tells: another owns it, or it is deleted.
    Over {
        /// Why.
        cause: String,
    },
    /// The volume's engine stopped.
    Halted {
        /// Why.
        cause: String,
        /// Whether it was the write buffer's device: then it is recovered by itself.
        device_failed: bool,
    },
    /// The volume is not served: what it would take is named.
    WaitsForOwner {
        /// What it waits for, and with which command to go on.
        cause: String,
    },
    /// The volume is not served now, and is tried again until it is.
    Unavailable {
        /// Why not.
        cause: String,
    },
    /// The volume wants a twin from now on, or none.
    DtlMode {
        /// What the twin is waited for.
        mode: DtlMode,
    },
    /// An operator wants the volume's twin to be there from now on.
    TwinHostSet {
        /// Where; `None`: where the owner finds best.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<NodeName>,
        /// And nowhere else.
        only: bool,
    },
    /// The twin is in the failure domain that the owner is in: what loses the one may lose the other.
    TwinSharesDomain {
        /// Where it is.
        host: NodeName,
        /// The failure domain.
        domain: String,
    },
    /// The volume is about to be moved to where its IO comes from.
    FollowsIo {
        /// Where to.
        to: NodeName,
        /// The machine or failure domain that it comes from.
        from: String,
        /// How much of it does, of a hundred.
        percent: u8,
        /// All of it.
        bytes: ByteLen,
        /// The time that it came in, in seconds.
        window_s: u64,
    },
    /// The volume is about to be moved because its owner has more volumes than another.
    Rebalances {
        /// Where to.
        to: NodeName,
        /// How many the owner has.
        here: u64,
        /// How many that one has.
        there: u64,
    },
    /// A node was asked for a twin, said yes, and is told what is not on the back ends.
    TwinChosen {
        /// The node.
        host: NodeName,
    },
    /// All volume-routers were asked, and none keeps a twin. They are asked again.
    TwinNotFound {
        /// Who said what; empty: there is no other.
        refused: Vec<TwinRefused>,
    },
    /// The twin has every acknowledged write, and the registry's record says so.
    InSync {
        /// Where it is.
        host: NodeName,
    },
    /// The owner gives the twin up, as it is to be elsewhere.
    TwinGivenUp {
        /// Where it was.
        host: NodeName,
        /// Why.
        cause: String,
    },
    /// The volume is being moved to another node.
    MoveBegun {
        /// Where to.
        to: NodeName,
    },
    /// It was not moved, and is served here on.
    NotMoved {
        /// Where it was to go.
        to: NodeName,
        /// Why it did not.
        cause: String,
    },
    /// It is another node's from here on, with everything that was acknowledged.
    HandedOver {
        /// Whose it is.
        to: NodeName,
        /// The ownership that ended.
        epoch: Epoch,
    },
    /// The twin is given up.
    TwinLost {
        /// Where it was.
        host: NodeName,
        /// Why.
        cause: String,
    },
    /// The registry's record says that there is no twin to rely on.
    Degraded {
        /// Whether one is wanted.
        wanted: bool,
        /// Where it was; `None`: this ownership had none yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<NodeName>,
        /// Why there is none.
        cause: String,
    },
    /// The node that tells keeps a twin of the volume.
    KeepsTwin {
        /// For whom.
        owner: NodeName,
        /// The ownership.
        epoch: Epoch,
    },
    /// The node that tells keeps it no more.
    TwinEnded {
        /// Why.
        cause: String,
    },
    /// The write buffer of the node that tells is nearly full: writes are slowed down soon.
    BufferNearlyFull {
        /// Bytes of files that hold what is not on the back ends.
        held: ByteLen,
        /// Its size.
        size: ByteLen,
    },
    /// It is so no more.
    BufferRelieved {
        /// Bytes of files that hold what is not on the back ends.
        held: ByteLen,
        /// Its size.
        size: ByteLen,
    },
    /// Work beside a volume fails, and is tried again until it does not.
    WorkFails {
        /// Which work.
        work: String,
        /// What went wrong.
        cause: String,
    },
    /// It works again.
    WorkGoesOn {
        /// Which work.
        work: String,
    },
    /// Another front end than before has exclusive write access to the volume.
    AccessTaken {
        /// Its node.
        node: NodeName,
        /// Who had it before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<NodeName>,
        /// Why it got it.
        why: AccessWhy,
    },
    /// A front end wanted to write, and may not. Told once for each front end and holder.
    AccessRefused {
        /// Its node.
        node: NodeName,
        /// Why not, and what would be right.
        cause: String,
    },
    /// The next other front end that writes takes write access over.
    AccessOffered {
        /// Who has it until then.
        holder: NodeName,
        /// For so many seconds.
        seconds: u64,
    },
    /// Write access was taken from a front end that is said to be dead: nothing that it sends is applied any more.
    AccessBroken {
        /// Its node.
        holder: NodeName,
    },
    /// One front end at a time may write the volume from now on, or any.
    AccessMode {
        /// How many.
        mode: AccessMode,
    },
    /// The node that tells cannot use a back end.
    BackendFails {
        /// The back end.
        backend: String,
        /// What went wrong.
        cause: String,
    },
    /// It can again.
    BackendWorks {
        /// The back end.
        backend: String,
    },
    /// Something that this build does not know; the text says it.
    #[serde(other)]
    Other,
}

impl What {
    /// Its name, as it is written.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NodeJoined { .. } => "node_joined",
            Self::NodeLeft { .. } => "node_left",
            Self::LeaseEnded => "lease_ended",
            Self::Owned { .. } => "owned",
            Self::Released { .. } => "released",
            Self::Fenced { .. } => "fenced",
            Self::Over { .. } => "over",
            Self::Halted { .. } => "halted",
            Self::WaitsForOwner { .. } => "waits_for_owner",
            Self::Unavailable { .. } => "unavailable",
            Self::DtlMode { .. } => "dtl_mode",
            Self::TwinHostSet { .. } => "twin_host_set",
            Self::TwinSharesDomain { .. } => "twin_shares_domain",
            Self::FollowsIo { .. } => "follows_io",
            Self::Rebalances { .. } => "rebalances",
            Self::TwinChosen { .. } => "twin_chosen",
            Self::TwinNotFound { .. } => "twin_not_found",
            Self::InSync { .. } => "in_sync",
            Self::TwinGivenUp { .. } => "twin_given_up",
            Self::MoveBegun { .. } => "move_begun",
            Self::NotMoved { .. } => "not_moved",
            Self::HandedOver { .. } => "handed_over",
            Self::TwinLost { .. } => "twin_lost",
            Self::Degraded { .. } => "degraded",
            Self::KeepsTwin { .. } => "keeps_twin",
            Self::TwinEnded { .. } => "twin_ended",
            Self::BufferNearlyFull { .. } => "buffer_nearly_full",
            Self::BufferRelieved { .. } => "buffer_relieved",
            Self::WorkFails { .. } => "work_fails",
            Self::WorkGoesOn { .. } => "work_goes_on",
            Self::AccessTaken { .. } => "access_taken",
            Self::AccessRefused { .. } => "access_refused",
            Self::AccessOffered { .. } => "access_offered",
            Self::AccessBroken { .. } => "access_broken",
            Self::AccessMode { .. } => "access_mode",
            Self::BackendFails { .. } => "backend_fails",
            Self::BackendWorks { .. } => "backend_works",
            Self::Other => "other",
        }
    }

    /// How serious it is.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::Halted { .. } => Level::Error,
            Self::LeaseEnded
            | Self::Fenced { .. }
            | Self::WaitsForOwner { .. }
            | Self::Unavailable { .. }
            | Self::TwinLost { .. }
            | Self::NotMoved { .. }
            | Self::WorkFails { .. }
            | Self::AccessRefused { .. }
            | Self::AccessBroken { .. }
            | Self::BackendFails { .. } => Level::Warning,
            _ => Level::Info,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeJoined {
                name,
                role,
                pid,
                in_place_of,
            } => {
                write!(f, "{role} {name} joined (process {pid}")?;
                match in_place_of {
                    Some(before) => write!(f, ", in place of process {before})"),
                    None => f.write_str(")"),
                }
            }
            Self::NodeLeft { name, role, pid } => {
                write!(
                    f,
                    "{role} {name} left (process {pid}): it stopped, or its lease is over"
                )
            }
            Self::LeaseEnded => {
                f.write_str("the lease had ended: every volume is verified before it is served again")
            }
            Self::Owned {
                from,
                epoch,
                why,
                replayed,
            } => {
                write!(f, "served here in epoch {epoch}, ")?;
                match why {
                    OwnedWhy::Created => write!(f, "for the first time"),
                    OwnedWhy::Start => write!(f, "after a start"),
                    OwnedWhy::TwinHost => {
                        write!(f, "taken over from {from}, which is gone, with its twin here")
                    }
                    OwnedWhy::Moved => write!(f, "moved from {from}"),
                    OwnedWhy::Operator => write!(f, "taken over from {from}, as an operator asked"),
                    OwnedWhy::Forced => {
                        write!(
                            f,
                            "taken over from {from} by force: an operator gave up what was not on the back ends"
                        )
                    }
                    OwnedWhy::Other => write!(f, "before that by {from}"),
                }?;
                write!(f, " ({replayed} batches replayed)")
            }
            Self::Released { epoch } => write!(f, "stored and released, epoch {epoch} is over"),
            Self::Fenced { epoch, cause } => write!(
                f,
                "volume is served here no more in epoch {epoch}, unless the registry still says so: {cause}"
            ),
            Self::Over { cause } => write!(f, "over here: {cause}"),
            Self::Halted {
                cause,
                device_failed: true,
            } => write!(f, "volume halted, the write buffer failed: {cause}"),
            Self::Halted { cause, .. } => {
                write!(
                    f,
                    "volume halted because of a bug: {cause}; its data is kept, a restart of the volume-router recovers it"
                )
            }
            Self::WaitsForOwner { cause } => write!(f, "waits: {cause}"),
            Self::Unavailable { cause } => {
                write!(
                    f,
                    "volume cannot be served now: trying again until it can: {cause}"
                )
            }
            Self::DtlMode { mode: DtlMode::None } => f.write_str("wants no twin from now on"),
            Self::DtlMode { mode } => write!(f, "wants a twin from now on, {}", mode.as_str()),
            Self::TwinHostSet { host: None, .. } => {
                f.write_str("its twin may be on any volume-router from now on")
            }
            Self::TwinHostSet {
                host: Some(host),
                only,
            } => {
                let otherwise = if *only {
                    "and nowhere else"
                } else {
                    "where that can be"
                };
                write!(f, "its twin is to be at {host} from now on, {otherwise}")
            }
            Self::TwinSharesDomain { host, domain } => write!(
                f,
                "the twin at {host} is in the owner's failure domain {domain}: what loses the one may lose the other"
            ),
            Self::FollowsIo {
                to,
                from,
                percent,
                bytes,
                window_s,
            } => write!(
                f,
                "goes to {to}: {percent} % of its IO ({} bytes in {window_s} s) comes from {from}",
                bytes.0
            ),
            Self::Rebalances { to, here, there } => {
                write!(
                    f,
                    "goes to {to}, which has {there} volumes: there are {here} here"
                )
            }
            Self::TwinChosen { host } => write!(f, "a twin of the write buffer is made at {host}"),
            Self::TwinNotFound { refused } if refused.is_empty() => f.write_str(
                "no twin of the write buffer is found: no other volume-router runs; they are asked again",
            ),
            Self::TwinNotFound { refused } => {
                f.write_str("no twin of the write buffer is found, they are asked again")?;
                refused
                    .iter()
                    .enumerate()
                    .try_for_each(|(n, TwinRefused { node, cause })| {
                        write!(f, "{} {node}: {cause}", if n == 0 { ":" } else { ";" })
                    })
            }
            Self::InSync { host } => write!(f, "in sync: the twin at {host} has every acknowledged write"),
            Self::TwinGivenUp { host, cause } => {
                write!(f, "the twin of the write buffer at {host} is given up: {cause}")
            }
            Self::MoveBegun { to } => write!(f, "is being moved to {to}"),
            Self::NotMoved { to, cause } => write!(f, "the volume was not moved to {to}: {cause}"),
            Self::HandedOver { to, epoch } => write!(f, "handed over to {to}, epoch {epoch} is over"),
            Self::TwinLost { host, cause } => {
                write!(
                    f,
                    "the twin of the write buffer is lost at {host}: {cause}; another one is looked for"
                )
            }
            Self::Degraded {
                wanted: false, cause, ..
            } => write!(f, "has no twin from now on: {cause}"),
            Self::Degraded { cause, .. } => write!(
                f,
                "degraded: acknowledged writes are in the owner's write buffer alone until they are stored: {cause}"
            ),
            Self::KeepsTwin { owner, epoch } => write!(f, "keeps a twin for {owner}, epoch {epoch}"),
            Self::TwinEnded { cause } => write!(f, "a twin is kept no more: {cause}"),
            Self::BufferNearlyFull { held, size } => write!(
                f,
                "the write buffer is nearly full, writes are slowed down: {} of {} bytes hold what is not on the back ends",
                held.0, size.0
            ),
            Self::BufferRelieved { held, size } => write!(
                f,
                "the write buffer has room again: {} of {} bytes hold what is not on the back ends",
                held.0, size.0
            ),
            Self::WorkFails { work, cause } => {
                write!(f, "{work} does not work now: trying again until it does: {cause}")
            }
            Self::WorkGoesOn { work } => write!(f, "{work} works again"),
            Self::AccessTaken { node, from, why } => {
                write!(f, "{node} has write access from now on")?;
                match (from, why) {
                    (Some(from), AccessWhy::HandedOver) => write!(f, ", handed over by {from}"),
                    (Some(from), AccessWhy::Gone) => {
                        write!(f, ": {from}, which had it, is not in the registry any more")
                    }
                    (Some(from), _) => write!(f, ", before that {from} had it"),
                    (None, _) => Ok(()),
                }
            }
            Self::AccessRefused { node, cause } => write!(f, "writes of {node} are refused: {cause}"),
            Self::AccessOffered { holder, seconds } => write!(
                f,
                "the next other front end that writes within {seconds} s takes write access over from {holder}"
            ),
            Self::AccessBroken { holder } => {
                write!(
                    f,
                    "write access was taken from {holder}: what it still sends is refused"
                )
            }
            Self::AccessMode {
                mode: AccessMode::Exclusive,
            } => f.write_str("one front end at a time may write from now on"),
            Self::AccessMode { .. } => f.write_str("any front end may write from now on"),
            Self::BackendFails { backend, cause } => write!(f, "back end fails: {backend}: {cause}"),
            Self::BackendWorks { backend } => write!(f, "back end works again: {backend}"),
            Self::Other => f.write_str("something that this build does not know"),
        }
    }
}

/// Asks a service for its events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAsk {
    /// The run that `after` is of; 0: of none, all that are kept are asked for.
    #[serde(default)]
    pub run: u64,
    /// Only events with higher numbers.
    #[serde(default)]
    pub after: u64,
    /// How long to wait for the first where there is none yet, at most [`WAIT_MS_MAX`].
    #[serde(default)]
    pub wait_ms: u32,
}

/// A service's answer to [`EventsAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// Who tells.
    pub node: NodeName,
    /// This run of it; never 0. Another one than was asked about: the service was started anew, and `after` was not heeded.
    pub run: u64,
    /// When the run began, in microseconds since 1970.
    pub began_us: u64,
    /// The oldest number that is kept, or the next one where none is: what lies between `after` and this is gone.
    pub first: u64,
    /// The newest number, 0 before the first.
    pub last: u64,
    /// In order; not all up to `last` where they are many.
    pub events: Vec<PoolEvent>,
}
