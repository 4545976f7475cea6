//! What a check found: values for people and programs. docs/operating/inspect.md describes the JSON; fields are added,
//! never renamed, removed or given another meaning.
//!
//! Keeps: nothing.
//! Order: problems in the order in which they were found.
//! Crash: nothing.
//! Knows no back end.

use serde::Serialize;

/// Most problems that are told of one volume; all are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// Whether what was looked at is as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is there and good, and the counters are true.
    Consistent,
    /// Something could not be read or is of a newer format, and nothing that was read is wrong.
    Unknown,
    /// Something is lost, damaged or wrong.
    Inconsistent,
}

/// What kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// An object that is referred to is on no back end.
    Missing,
    /// Bytes are not those that were written: a CRC or a format does not hold, in every copy.
    Damaged,
    /// A copy of an object is damaged; another one is good.
    CopyDamaged,
    /// A reference leads to something else than what it means.
    Mismatch,
    /// A counter is not what a scan finds.
    Counter,
    /// It could not be read, or this build does not know its format.
    NotJudged,
    /// The volume has objects, but no manifest.
    NoManifest,
    /// A volume that this one, a clone, reads from has lost or damaged content.
    Ancestor,
}

impl ProblemKind {
    /// What it makes of the volume.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            ProblemKind::NotJudged | ProblemKind::NoManifest => Verdict::Unknown,
            ProblemKind::Missing
            | ProblemKind::Damaged
            | ProblemKind::CopyDamaged
            | ProblemKind::Mismatch
            | ProblemKind::Counter
            | ProblemKind::Ancestor => Verdict::Inconsistent,
        }
    }

    /// Whether content may be lost, for clones too.
    pub(crate) const fn is_loss(self) -> bool {
        matches!(
            self,
            ProblemKind::Missing | ProblemKind::Damaged | ProblemKind::Mismatch
        )
    }
}

/// A node of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeId {
    /// `map` or `sco_table`.
    pub tree: &'static str,
    /// Height above the leaves.
    pub level: u8,
    /// Position in the level.
    pub index: u64,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// The object; null where it is not about one.
    pub object: Option<String>,
    /// The back end, where only one copy is meant.
    pub backend: Option<String>,
    /// What was being read: `head`, `snapshot NAME`, `SCO table`, `SCO N`, `manifest`.
    pub of: String,
    /// The node.
    pub node: Option<NodeId>,
    /// The SCO's number.
    pub sco: Option<u64>,
    /// The slot.
    pub slot: Option<u16>,
    /// Byte offset in the volume.
    pub address: Option<u64>,
    /// All of it in one sentence, with the volume's path.
    pub text: String,
}

/// An object that nothing refers to: space, not damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The object.
    pub object: String,
    /// Bytes that it takes on one back end; null where that cannot be told.
    pub bytes: Option<u64>,
    /// Why nothing needs it.
    pub why: &'static str,
}

/// What was found of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// The volume's id.
    pub id: String,
    /// Its path when the manifest was written; null without a manifest.
    pub path: Option<String>,
    /// Its storage pool; null without a manifest.
    pub pool: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// The newest manifest, which was judged; null without one.
    pub manifest: Option<String>,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes of clusters that are mapped.
    pub allocated_bytes: u64,
    /// Snapshots, hidden ones among them.
    pub snapshots: usize,
    /// Volumes that this one, a clone, reads from: the root ancestor first.
    pub ancestors: Vec<String>,
    /// Nodes of all trees that were read; those shared with a volume that was read before are not counted again.
    pub nodes: u64,
    /// SCOs in the SCO table.
    pub scos: u64,
    /// Slots of them that something refers to.
    pub live_slots: u64,
    /// Slots of them that nothing refers to, and that are still stored.
    pub dead_slots: u64,
    /// SCOs behind the manifest: a start of the volume replays them.
    pub behind: u64,
    /// Objects that wait to be deleted.
    pub condemned: usize,
    /// Clusters whose content was read and compared.
    pub clusters_read: u64,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first of them.
    pub problems: Vec<Problem>,
    /// Objects that nothing refers to.
    pub orphans: Vec<Orphan>,
    /// Bytes that they take on one back end.
    pub orphan_bytes: u64,
}

/// A back end that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendReport {
    /// Its directory.
    pub backend: String,
    /// What is wrong with the back end itself; null where nothing is.
    pub problem: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The verdict on all of it.
    pub verdict: Verdict,
    /// Whether the content of clusters was read.
    pub data: bool,
    /// The back ends.
    pub backends: Vec<BackendReport>,
    /// The volumes, ancestors before their clones.
    pub volumes: Vec<VolumeReport>,
}
