//! What a session is on beside a volume itself: a snapshot, or two roots to be compared.
//!
//! Keeps: the names by which it is opened, and which snapshots those were at first.
//! Order: what was opened first is what it stays on, through any number of owners.
//! Crash: nothing.
//! Knows no operations.

use sconce_schemas::access::AccessReply;
use sconce_schemas::wire::volume::{Since, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{SessionId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::routing::operation::Opened;

/// What a session is on that is not the volume itself: a snapshot to be read, or two roots to be compared. It takes no
/// changes. Written down, it is still on those snapshots that it was on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The snapshot that is read, or looked at; `None`: the volume, which is only compared.
    snapshot: Option<OnSnapshot>,
    compared: Compared,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Compared {
    /// It is read.
    No,
    /// With nothing.
    WithNothing,
    /// With a snapshot of the volume, or of this other one.
    Since(Option<VolumeId>, OnSnapshot),
}

/// A snapshot that a session is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OnSnapshot {
    /// What it is opened by.
    name: String,
    /// Which it is, once that is known: never another, whatever has its name later.
    id: Option<SnapshotId>,
}

impl View {
    /// A snapshot, to be read: the one with this name when it is opened, or only `id`, where that is given.
    #[must_use]
    pub fn snapshot(name: String, id: Option<SnapshotId>) -> Self {
        Self {
            snapshot: Some(OnSnapshot { name, id }),
            compared: Compared::No,
        }
    }

    /// The volume, or a snapshot of it, to be compared with a snapshot, or with nothing.
    #[must_use]
    pub fn changes(of: Option<String>, since: Option<Since>) -> Self {
        let on = |name| OnSnapshot { name, id: None };
        Self {
            snapshot: of.map(on),
            compared: match since {
                None => Compared::WithNothing,
                Some(Since { volume, snapshot }) => Compared::Since(volume, on(snapshot)),
            },
        }
    }

    /// The same, if these are the snapshots that are opened.
    #[must_use]
    pub fn exactly(mut self, snapshot: Option<SnapshotId>, since: Option<SnapshotId>) -> Self {
        if let Some(on) = &mut self.snapshot {
            on.id = snapshot;
        }
        if let Compared::Since(_, on) = &mut self.compared {
            on.id = since;
        }
        self
    }

    /// What opens it at the owner of `volume`.
    pub(super) fn to_open(&self, volume: VolumeId, session: SessionId) -> VolumeControl {
        let snapshot = self.snapshot.as_ref().map(|on| on.name.clone());
        let since = match &self.compared {
            Compared::No => {
                return VolumeControl::Open {
                    volume,
                    session,
                    snapshot,
                    access: None,
                };
            }
            Compared::WithNothing => None,
            Compared::Since(of, on) => Some(Since {
                volume: *of,
                snapshot: on.name.clone(),
            }),
        };
        VolumeControl::OpenChanges {
            volume,
            snapshot,
            since,
        }
    }

    /// The owner has opened these snapshots. Refuses if they are not those that the session is on.
    pub(super) fn check(
        &mut self,
        snapshot: Option<SnapshotId>,
        since: Option<SnapshotId>,
    ) -> Option<Refusal> {
        let wrong = self.snapshot.as_mut().and_then(|on| on.check(snapshot));
        match &mut self.compared {
            Compared::Since(_, on) if wrong.is_none() => on.check(since),
            _ => wrong,
        }
    }
}

impl OnSnapshot {
    fn check(&mut self, found: Option<SnapshotId>) -> Option<Refusal> {
        let (Some(known), Some(found)) = (self.id, found) else {
            self.id = self.id.or(found);
            return None;
        };
        (known != found).then(|| {
            let text = format!("snapshot {:?} was removed; another has its name now", self.name);
            Refusal::reject(RefusalCode::NotFound, text)
        })
    }
}

/// What an owner tells of what it has opened.
pub(super) struct Told {
    pub(super) handle: u32,
    pub(super) opened: Opened,
    pub(super) snapshot: Option<SnapshotId>,
    pub(super) since: Option<SnapshotId>,
    pub(super) access: Option<AccessReply>,
}

impl Told {
    /// `None`: it tells something else.
    pub(super) fn of(reply: &VolumeControlReply) -> Option<Self> {
        let told = |handle, epoch, size, read_only, snapshot, since| Self {
            handle,
            opened: Opened {
                epoch,
                size,
                read_only,
            },
            snapshot,
            since,
            access: None,
        };
        match *reply {
            VolumeControlReply::Opened {
                handle,
                epoch,
                size,
                read_only,
                snapshot,
                ref access,
            } => Some(Self {
                access: access.clone(),
                ..told(handle, epoch, size, read_only, snapshot, None)
            }),
            VolumeControlReply::OpenedChanges {
                handle,
                epoch,
                size,
                snapshot,
                since,
            } => Some(told(handle, epoch, size, true, snapshot, since)),
            _ => None,
        }
    }
}
