//! What is searched: how much of everything, and which rule is left out.
//!
//! Keeps: bounds, without which there would be no end; nothing bounds the length of a life.
//! Order: none.
//! Crash: none.
//! Knows no states.

use crate::state::{BATCHES, EPOCHS, NODES, SCOS, STREAMS};

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nodes: [`NODES`] at most.
    pub nodes: u8,
    /// Guest writes: [`BATCHES`] at most.
    pub writes: u8,
    /// Names of SCOs: [`SCOS`] at most.
    pub scos: u8,
    /// Streams: [`STREAMS`] at most.
    pub streams: u8,
    /// Ownerships: [`EPOCHS`] at most.
    pub epochs: u8,
    /// How often a node is lost with its disk.
    pub losses: u8,
    /// How often an operator forces a takeover.
    pub forces: u8,
    /// How often a machine loses power, with what was not synced.
    pub power_losses: u8,
    /// Closed SCOs are stored on the back end, and an owner may release the volume.
    pub uploads: bool,
    /// Streams break at their hosts, and hosts give up what nobody can rely on any more: streams that say nothing, files that are left.
    pub doubts: bool,
}

impl Limits {
    /// Two nodes, and nothing but streams, crashes, leases that end and takeovers.
    #[must_use]
    pub const fn small() -> Self {
        Self {
            nodes: 2,
            writes: 2,
            scos: 2,
            streams: 2,
            epochs: 3,
            losses: 0,
            forces: 0,
            power_losses: 0,
            uploads: false,
            doubts: false,
        }
    }

    /// Whether the model has room for that.
    #[must_use]
    pub fn fit(&self) -> bool {
        let sizes = [
            (self.nodes, NODES),
            (self.writes, BATCHES),
            (self.scos, SCOS),
            (self.streams, STREAMS),
            (self.epochs, EPOCHS),
        ];
        sizes.iter().all(|(wanted, most)| usize::from(*wanted) <= *most)
    }
}

/// What keeps a host from giving up what the record is about to rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Streams of an ownership are numbered upwards, and a host to which one has attached refuses those before it; it gives nothing up by
    /// itself unless the record is of a later ownership than what it has, or relies on another buffer.
    Numbered,
    /// The record names the stream: its host writes that by compare-and-swap before it gives anything up, and removes it before it gives
    /// that up; `RecordInSync` is of the stream that is named.
    InRecord,
}

/// A rule of the protocol that is left out, for a test of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// An acknowledgement does not wait for the twin.
    AckBeforeTwin,
    /// A takeover does not end the stream before its compare-and-swap.
    ClaimWithoutSeal,
    /// A claim is not judged anew when it is committed.
    ClaimJudgedEarly,
    /// A takeover does not look whether the record names the buffer that the node has now.
    ClaimByAnotherBuffer,
    /// A forced takeover uses twin files that the record does not rely on.
    ForcedUsesGivenUpTwin,
    /// A host gives up what it has for any `Attach`.
    AttachWithoutRecord,
    /// A host to which a stream has attached does not refuse an `Attach` that was sent before and comes after.
    AttachOutOfOrder,
    /// A host gives up what the record did not rely on when it was read, although a commit that says otherwise may be on its way.
    GiveUpAsRead,
    /// A host takes files for those of an earlier ownership because their headers are: copies are of earlier ones than their stream.
    GiveUpByHeaders,
    /// A host gives up by what it read of the record before the last stream began here, and whether it had anything then or not.
    GiveUpBehindAttach,
    /// Acknowledgements go on alone before the record says `Degraded`.
    DegradeAfterAck,
    /// `RecordDegraded` writes nothing where the record says so already.
    DegradeUnwritten,
    /// `RecordInSync` compares the ownership only, not the record's revision.
    InSyncComparesEpoch,
    /// `RecordInSync` does not wait for the copies.
    InSyncBeforeCopies,
    /// A SCO is stored before the twin has it.
    UploadNotGated,
    /// A SCO is stored once the twin has it, but has not synced it.
    UploadBeforeTwinSync,
    /// A stream that was cut is taken up again.
    ResumeCutStream,
    /// A new ownership's record goes on to say `InSync`.
    BeginKeepsInSync,
    /// A write buffer is trusted after a loss of power as before it.
    PowerLossUnseen,
    /// A twin that was started anew is nothing that is taken over.
    TakeoverNeedsStream,
}

/// What holds in a search.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How much there is.
    pub limits: Limits,
    /// What binds `RecordInSync` to what the host has.
    pub streams: Streams,
    /// What is left out.
    pub planted: Option<Planted>,
}

impl Rules {
    pub(crate) fn lacks(&self, rule: Planted) -> bool {
        self.planted == Some(rule)
    }
}
