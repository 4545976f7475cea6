//! The twin protocol: the owner of a volume to the volume-router that keeps a twin of its write buffer (docs/decisions/0170).
//!
//! Keeps: what an owner says to a twin, and what the twin answers.
//! Order: what one stream says is done in the order in which it was sent; answers may pass each other.
//! Crash: a stream that was cut is never taken up again; the owner begins another one.
//! Knows no sockets, no engine.

use serde::{Deserialize, Serialize};

use crate::geometry::{ByteLen, ScoSize};
use crate::ids::{BatchSeq, Epoch, ScoId, Slot, VolumeId};

/// One thing that an owner says to its twin. Data beside it: the clusters of an append, the bytes of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinRequest {
    /// The volume.
    pub volume: VolumeId,
    /// The ownership that says it.
    pub epoch: Epoch,
    /// Number of the stream, ascending within the ownership: one that the twin does not know is refused with `NotOpen`.
    pub stream: u64,
    /// What is to be done.
    pub say: TwinSay,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TwinSay {
    /// Begin a stream: what the twin had of the volume before is nothing that anybody relies on. Refused unless the registry's
    /// record is of this ownership and does not rely on a twin.
    Attach {
        /// The volume's path, for messages.
        path: String,
        /// Clusters of its SCOs.
        sco_size: ScoSize,
    },
    /// A SCO was opened.
    Open {
        /// The SCO, of this ownership.
        sco: ScoId,
        /// Number of its first batch.
        first_batch: BatchSeq,
        /// SCOs below this one were synced at the owner.
        synced_below: ScoId,
    },
    /// A batch of an open SCO; the request's data are its clusters.
    Append {
        /// The SCO.
        sco: ScoId,
        /// The batch's number.
        seq: BatchSeq,
        /// Where its entries go, counted from the start of the TLog area.
        tlog_offset: u64,
        /// The entries, closed by their CRC.
        #[serde(with = "crate::wire::msgpack::bytes")]
        tlog: Vec<u8>,
        /// Slot of the first cluster.
        first_slot: Slot,
    },
    /// A part of a SCO that was written before the stream began; the request's data are its bytes, as they are stored. Parts come
    /// in ascending order and follow each other; the header area is worth nothing before the last has come.
    Copy {
        /// The SCO.
        sco: ScoId,
        /// The ownership that wrote it.
        sco_epoch: Epoch,
        /// Where the part begins.
        offset: ByteLen,
        /// Bytes of all parts together.
        length: ByteLen,
    },
    /// All appends up to this batch are to survive the loss of power.
    Sync {
        /// The last of them.
        upto: BatchSeq,
    },
    /// SCOs up to this one are on the back ends and covered by a manifest that the registry's record names.
    Release {
        /// The last of them.
        upto: ScoId,
    },
    /// The stream is over, and nobody relies on what the twin has.
    Detach,
    /// Nothing but the question whether the stream still is.
    Beat,
}

/// What a twin answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TwinReply {
    /// To [`TwinSay::Attach`].
    Attached {
        /// Identity of the twin's write buffer, for the registry's record.
        buffer: String,
        /// What names the boot of its machine, likewise. Builds before 0196 do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot: Option<String>,
    },
    /// Done: what was to be written survives the death of the twin's process; what was copied or synced also the loss of power.
    Done,
}
