//! The storage protocol: volume-routers and fs-routers to storage-routers.
//!
//! Keeps: what can be asked of a storage-router and what it answers.
//! Order: none; objects never change, so every request may be repeated.
//! Crash: a put that was not answered may have stored its object; the same bytes again are no conflict.
//! Knows no placement, no back end.
//!
//! Puts and gets are arrays: `[0, pool, name]` with the object as data, `[1, pool, name, offset, length]`.
//! Everything else is `[2, {control}]`.

use serde::{Deserialize, Serialize};

use super::event::{EventPage, EventsAsk};
use super::msgpack::{Body, put_array, put_named, put_str, put_uint, skip, take_fields, take_named};
use super::msgpack::{take_str, take_uint};
use super::refusal::Refusal;
use crate::DecodeError;
use crate::geometry::ByteLen;
use crate::ids::{NodeName, VolumeId};
use crate::object::{ObjectKind, ObjectName};
use crate::records::{BackendPlace, BackendRecord, PlacementEntry, PoolRecord};

/// To a storage-router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageRequest {
    /// Stores the data that comes with it, durably. Objects are immutable: putting the same bytes again
    /// succeeds, other bytes are refused as `Exists`.
    Put {
        /// The pool whose policy applies.
        pool: String,
        /// The object.
        name: ObjectName,
    },
    /// Reads `length` bytes from `offset`; fewer where the object ends before. Offsets in a SCO are those of the SCO as it
    /// was written, in every version; a version that is gone is answered out of a newer one.
    Get {
        /// The pool.
        pool: String,
        /// The object.
        name: ObjectName,
        /// First byte.
        offset: u64,
        /// Bytes, at most [`GET_BYTES_MAX`].
        length: u32,
        /// A cache on the way may answer it, and keep it: guests' reads. Whoever wants to know what the back ends have, or reads
        /// once, goes by. Builds before there was a choice do not say, and mean no.
        cached: bool,
    },
    /// Everything else.
    Control(StorageControl),
}

/// Most bytes of one [`StorageRequest::Get`]; a longer read is several.
pub const GET_BYTES_MAX: u32 = 8 << 20;
/// Largest object: a 64 MiB SCO with its TLog, or a checkpoint.
pub const OBJECT_BYTES_MAX: u64 = 96 << 20;
const POOL_NAME_MAX: usize = 63;
const OBJECT_NAME_MAX: usize = 96;

/// Control requests to a storage-router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StorageControl {
    /// Length of an object; of a SCO, that of the SCO as it was written, in every version.
    Stat {
        /// The pool.
        pool: String,
        /// The object.
        name: ObjectName,
    },
    /// Removes an object; one that is not there is no error.
    Delete {
        /// The pool.
        pool: String,
        /// The object.
        name: ObjectName,
    },
    /// Names of a volume's objects of one kind, sorted, those after `after`, at most `limit` (1 to 1000).
    List {
        /// The pool.
        pool: String,
        /// The volume.
        volume: VolumeId,
        /// The kind.
        kind: ObjectKind,
        /// Only names that sort after this one.
        after: Option<ObjectName>,
        /// Most names in the answer.
        limit: u32,
        /// Refused unless every back end of the pool answers: what one that is away may still have is not listed, and
        /// whoever concludes that nothing is left has to know.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        everywhere: bool,
    },
    /// Volumes that have any object in the pool, sorted, those after `after`, at most `limit` (1 to 1000).
    ListVolumes {
        /// The pool.
        pool: String,
        /// Only volumes that sort after this one.
        after: Option<VolumeId>,
        /// Most volumes in the answer.
        limit: u32,
    },
    /// What the node knows of itself and its back ends.
    NodeStatus,
    /// What happened at the node. Answered at once where there is something to tell.
    Events(EventsAsk),
    /// Sets up a back end that is at this place for every storage-router, and registers it. The same again is no error.
    AddBackend {
        /// Its name.
        name: NodeName,
        /// Where it is.
        place: BackendPlace,
    },
    /// Makes a pool; the node adds what its keys are known by. The same again is no error.
    CreatePool {
        /// The pool as it is to be.
        pool: PoolRecord,
    },
    /// Gives back ends of a pool other shares of its objects, or has back ends join it; with a weight of 0 they leave it once nothing
    /// is on them. The same again is no error.
    PlacePool {
        /// The pool.
        pool: String,
        /// The weights that are to be others than they are.
        weights: Vec<PlacementEntry>,
        /// Back ends with a weight of 0 that are gone for good: nobody waits for what is on them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lost: Vec<String>,
    },
}

/// From a storage-router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageReply {
    /// A put or delete was done.
    Done,
    /// A get's bytes are the reply's data share.
    Data,
    /// The answer to a control request.
    Control(StorageControlReply),
    /// Not done.
    Refused(Refusal),
}

/// Answers to [`StorageControl`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StorageControlReply {
    /// The answer to `Stat`.
    Stat {
        /// The object's length.
        length: u64,
    },
    /// The answer to `List`; fewer names than the limit: there are no more.
    Names {
        /// The names.
        names: Vec<ObjectName>,
    },
    /// The answer to `ListVolumes`.
    Volumes {
        /// The volumes.
        volumes: Vec<VolumeId>,
    },
    /// The answer to `NodeStatus`.
    Node(StorageNodeStatus),
    /// The answer to `Events`.
    Events(EventPage),
    /// The answer to `AddBackend`: as it is in the registry.
    Backend(BackendRecord),
    /// The answer to `CreatePool` and `PlacePool`: as it is in the registry.
    Pool(PoolRecord),
}

/// What a storage-router knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNodeStatus {
    /// Who it is.
    pub node: NodeName,
    /// Its back ends.
    pub backends: Vec<BackendStatus>,
    /// The pools that it does not serve as it should.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolStatus>,
}

/// A pool that a storage-router does not serve as it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub state: String,
}

/// State of a back end, as a storage-router sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name in the settings.
    pub name: String,
    /// `ok`, or what is wrong with it.
    pub state: String,
    /// Space that it can hold, where it knows.
    pub capacity: Option<ByteLen>,
    /// Space that is left, where it knows.
    pub free: Option<ByteLen>,
    /// Requests that it served since the start.
    pub requests: u64,
    /// Requests that failed since the start.
    pub errors: u64,
    /// What was stored on it since the start.
    #[serde(default, skip_serializing_if = "Written::is_none")]
    pub written: Written,
}

/// What was stored on a back end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Objects that were put, repaired copies among them.
    pub objects: u64,
    /// Bytes that they take there, envelopes and all.
    pub bytes: u64,
}

impl Written {
    /// Whether nothing was.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.objects == 0 && self.bytes == 0
    }
}

const PUT: u64 = 0;
const GET: u64 = 1;
const CONTROL: u64 = 2;

impl Body for StorageRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            StorageRequest::Put { pool, name } => {
                put_array(out, 3);
                put_uint(out, PUT);
                put_str(out, pool);
                put_str(out, &name.to_string());
            }
            StorageRequest::Get {
                pool,
                name,
                offset,
                length,
                cached,
            } => {
                put_array(out, 5 + usize::from(*cached));
                put_uint(out, GET);
                put_str(out, pool);
                put_str(out, &name.to_string());
                put_uint(out, *offset);
                put_uint(out, u64::from(*length));
                if *cached {
                    put_uint(out, 1);
                }
            }
            StorageRequest::Control(control) => {
                put_array(out, 2);
                put_uint(out, CONTROL);
                put_named(out, control);
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let fields = take_fields(input, "storage request", 2)? + 2;
        let kind: u64 = take_uint(input, "storage request kind")?;
        let need = match kind {
            PUT => 3,
            GET => 5,
            CONTROL => 2,
            kind => return Err(unknown("storage request kind", kind)),
        };
        let mut more = fields.checked_sub(need).ok_or(DecodeError::Short {
            what: "storage request",
            have: fields,
            need,
        })?;
        let request = match kind {
            PUT => StorageRequest::Put {
                pool: take_pool(input)?,
                name: take_name(input)?,
            },
            GET => StorageRequest::Get {
                pool: take_pool(input)?,
                name: take_name(input)?,
                offset: take_uint(input, "get.offset")?,
                length: take_uint(input, "get.length")?,
                cached: match more {
                    0 => false,
                    _ => {
                        more -= 1;
                        take_uint::<u64>(input, "get.cached")? != 0
                    }
                },
            },
            _ => StorageRequest::Control(take_named(input, "storage control request")?),
        };
        skip(input, "storage request", more)?;
        Ok(request)
    }

    fn name(&self) -> &'static str {
        super::names::of_storage(self)
    }
}

fn take_pool(input: &mut &[u8]) -> Result<String, DecodeError> {
    take_str(input, "pool name", POOL_NAME_MAX).map(str::to_owned)
}

fn take_name(input: &mut &[u8]) -> Result<ObjectName, DecodeError> {
    take_str(input, "object name", OBJECT_NAME_MAX)?.parse()
}

fn unknown(what: &'static str, found: u64) -> DecodeError {
    DecodeError::Value {
        what,
        found: found.to_string(),
        expected: "known to this version",
    }
}

const DONE: u64 = 0;
const DATA: u64 = 1;
const CONTROLLED: u64 = 2;
const REFUSED: u64 = 3;

impl Body for StorageReply {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            StorageReply::Done => {
                put_array(out, 1);
                put_uint(out, DONE);
            }
            StorageReply::Data => {
                put_array(out, 1);
                put_uint(out, DATA);
            }
            StorageReply::Control(control) => {
                put_array(out, 2);
                put_uint(out, CONTROLLED);
                put_named(out, control);
            }
            StorageReply::Refused(refusal) => {
                put_array(out, 2);
                put_uint(out, REFUSED);
                refusal.encode(out);
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let fields = take_fields(input, "storage reply", 1)? + 1;
        let kind: u64 = take_uint(input, "storage reply kind")?;
        if kind >= CONTROLLED && fields < 2 {
            return Err(DecodeError::Short {
                what: "storage reply",
                have: fields,
                need: 2,
            });
        }
        let (reply, taken) = match kind {
            DONE => (StorageReply::Done, 1),
            DATA => (StorageReply::Data, 1),
            CONTROLLED => (
                StorageReply::Control(take_named(input, "storage control reply")?),
                2,
            ),
            REFUSED => (StorageReply::Refused(Refusal::decode(input)?), 2),
            kind => return Err(unknown("storage reply kind", kind)),
        };
        skip(input, "storage reply", fields - taken)?;
        Ok(reply)
    }
}
