//! The job of one bundle, as the owner of a volume gives it to another volume-router (docs/decisions/0155).
//!
//! Keeps: which object is written, out of which, and for which ownership. Which clusters of them is said by the bundle's own
//! index, which comes beside the job as the request's data.
//! Order: none. The index has each cluster's CRC32C, so whoever carries the job out, how often and how late, makes the same object.
//! Crash: nothing; whoever gave it carries it out anew.
//! Knows no storage.

use serde::{Deserialize, Serialize};

use crate::bundle::{BUNDLE_FROM, BundleIndex, Member};
use crate::object::ObjectName;
use crate::{DecodeError, Epoch, NodeName, VolumeId};

/// A bundle to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleJob {
    /// Its name.
    pub bundle: ObjectName,
    /// What it is made of, in the order of its index.
    pub sources: Vec<JobSource>,
    /// The storage pool of both.
    pub pool: String,
    /// The volume's path, for messages.
    pub path: String,
    /// The volume-router that owns the volume.
    pub owner: NodeName,
    /// That ownership's number: nothing is written for one that is over.
    pub epoch: Epoch,
}

/// An object that a bundle is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSource {
    /// The object: a SCO, or a bundle.
    pub object: ObjectName,
    /// How many of the new bundle's SCOs are in it: the next ones of its index.
    pub members: u32,
}

impl BundleJob {
    /// Whether the job and the index beside it are of one bundle.
    ///
    /// # Errors
    /// The name is no bundle's, or not that of the index's last SCO; a source is another volume's, or no SCO; the sources have
    /// more or fewer SCOs than the index.
    pub fn check(&self, index: &BundleIndex) -> Result<(), DecodeError> {
        let volume = self.bundle.volume();
        let named = match (self.bundle, index.members.last()) {
            (
                ObjectName::Sco {
                    id, epoch, version, ..
                },
                Some(last),
            ) => version >= BUNDLE_FROM && (last.sco, last.epoch) == (id, epoch),
            _ => false,
        };
        if !named || index.volume != volume {
            return Err(wrong(
                format!(
                    "to write {} with an index of volume {}",
                    self.bundle, index.volume
                ),
                "to write a bundle that is named after the last SCO of its index",
            ));
        }
        let mut members = index.members.as_slice();
        for source in &self.sources {
            let count = usize::try_from(source.members).unwrap_or(usize::MAX);
            let split = members.split_at_checked(count);
            let (of_source, rest) = split.ok_or_else(|| self.wrong_count(index))?;
            if !source.can_hold(volume, of_source) {
                return Err(wrong(
                    format!("that reads {} SCOs out of {}", source.members, source.object),
                    "that reads SCOs of the same volume out of objects that can hold them",
                ));
            }
            members = rest;
        }
        match members {
            [] => Ok(()),
            _ => Err(self.wrong_count(index)),
        }
    }

    fn wrong_count(&self, index: &BundleIndex) -> DecodeError {
        let of_sources: u64 = self.sources.iter().map(|source| u64::from(source.members)).sum();
        wrong(
            format!(
                "with {of_sources} SCOs in its sources and {} in its index",
                index.members.len()
            ),
            "with as many in both",
        )
    }
}

impl JobSource {
    /// A bundle is named after the last SCO in it; any other SCO object holds the SCO of its name.
    fn can_hold(&self, of: VolumeId, members: &[Member]) -> bool {
        let ObjectName::Sco {
            volume,
            id,
            epoch,
            version,
        } = self.object
        else {
            return false;
        };
        let holds = match members {
            [] => false,
            [only] if version < BUNDLE_FROM => (only.sco, only.epoch) == (id, epoch),
            members => version >= BUNDLE_FROM && members.iter().all(|member| member.sco <= id),
        };
        volume == of && holds
    }
}

fn wrong(found: String, expected: &'static str) -> DecodeError {
    DecodeError::Value {
        what: "bundle job",
        found,
        expected,
    }
}
