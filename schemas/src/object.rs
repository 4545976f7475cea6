//! Names of the three kinds of immutable objects on a back end (DESIGN.md §3).
//!
//! Keeps: the one mapping between an object and its path.
//! Order: names of one kind sort by id, then epoch, then version, as text too (zero-padded hexadecimal).
//! Crash: nothing; names are values.
//! Knows no back end.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::bundle::BUNDLE_FROM;
use crate::ids::{CheckpointId, Epoch, ManifestSeq, ScoId, VolumeId};

/// The name of an object: what it is and of which volume. Written as
/// `<volume>/sco/<id>.<epoch>.<version>`, `<volume>/map/<id>.<epoch>` or `<volume>/manifest/<seq>.<epoch>`,
/// the numbers as 12 (epoch: 8, version: 4) hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// A SCO; `version` grows when it is compacted.
    Sco {
        /// The volume that wrote it.
        volume: VolumeId,
        /// Its number.
        id: ScoId,
        /// The ownership that wrote it.
        epoch: Epoch,
        /// 0 as written, more once compacted.
        version: u16,
    },
    /// A checkpoint: map and SCO-table nodes.
    Map {
        /// The volume that wrote it.
        volume: VolumeId,
        /// Its number.
        id: CheckpointId,
        /// The ownership that wrote it.
        epoch: Epoch,
    },
    /// A manifest: the volume's root record.
    Manifest {
        /// The volume that wrote it.
        volume: VolumeId,
        /// Its number.
        seq: ManifestSeq,
        /// The ownership that wrote it.
        epoch: Epoch,
    },
}

/// The kind of an object: the directory that it is listed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectKind {
    /// Storage container objects.
    Sco,
    /// Checkpoints.
    Map,
    /// Manifests.
    Manifest,
}

impl ObjectKind {
    /// The path element that names the kind.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Sco => "sco",
            ObjectKind::Map => "map",
            ObjectKind::Manifest => "manifest",
        }
    }
}

impl ObjectName {
    /// The volume whose object it is.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        match self {
            ObjectName::Sco { volume, .. }
            | ObjectName::Map { volume, .. }
            | ObjectName::Manifest { volume, .. } => *volume,
        }
    }

    /// The object's kind.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            ObjectName::Sco { .. } => ObjectKind::Sco,
            ObjectName::Map { .. } => ObjectKind::Map,
            ObjectName::Manifest { .. } => ObjectKind::Manifest,
        }
    }

    /// Whether it is what scrubs kept of several SCOs.
    #[must_use]
    pub const fn is_bundle(&self) -> bool {
        matches!(self, ObjectName::Sco { version, .. } if *version >= BUNDLE_FROM)
    }

    /// The ownership that wrote it.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        match self {
            ObjectName::Sco { epoch, .. }
            | ObjectName::Map { epoch, .. }
            | ObjectName::Manifest { epoch, .. } => *epoch,
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, kind) = (self.volume(), self.kind().as_str());
        match self {
            ObjectName::Sco {
                id, epoch, version, ..
            } => {
                write!(f, "{volume}/{kind}/{:012x}.{:08x}.{version:04x}", id.0, epoch.0)
            }
            ObjectName::Map { id, epoch, .. } => write!(f, "{volume}/{kind}/{:012x}.{:08x}", id.0, epoch.0),
            ObjectName::Manifest { seq, epoch, .. } => {
                write!(f, "{volume}/{kind}/{:012x}.{:08x}", seq.0, epoch.0)
            }
        }
    }
}

impl FromStr for ObjectName {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let wrong = || DecodeError::Value {
            what: "object name",
            found: format!("{text:?}"),
            expected: "<volume>/sco/<id>.<epoch>.<version>, <volume>/map/<id>.<epoch> or \
                       <volume>/manifest/<seq>.<epoch>",
        };
        parse(text)
            .filter(|name| name.to_string() == text)
            .ok_or_else(wrong)
    }
}

fn parse(text: &str) -> Option<ObjectName> {
    let mut parts = text.split('/');
    let volume: VolumeId = parts.next()?.parse().ok()?;
    let (kind, leaf) = (parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let mut numbers = leaf.split('.').map(|n| u64::from_str_radix(n, 16).ok());
    let (id, epoch) = (numbers.next()??, Epoch(numbers.next()??));
    let version = numbers.next();
    if numbers.next().is_some() {
        return None;
    }
    match (kind, version) {
        ("sco", Some(version)) => Some(ObjectName::Sco {
            volume,
            id: ScoId(id),
            epoch,
            version: u16::try_from(version?).ok()?,
        }),
        ("map", None) => Some(ObjectName::Map {
            volume,
            id: CheckpointId(id),
            epoch,
        }),
        ("manifest", None) => Some(ObjectName::Manifest {
            volume,
            seq: ManifestSeq(id),
            epoch,
        }),
        _ => None,
    }
}

impl Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
