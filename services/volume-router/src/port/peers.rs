//! The handles that clients have open on one shard.
//!
//! Keeps: for each connection its handles, and what each stands for.
//! Order: a handle's number is used again only with another use count, so that a late operation never reaches
//! another volume.
//! Crash: handles are forgotten with their connection; the sessions behind them are not.
//! Knows no operations.

use std::collections::HashMap;

use sconce_bus::PeerId;
use sconce_schemas::wire::Refusal;
use sconce_schemas::{NodeName, SnapshotId, VolumeId};
use sconce_volume::{Compared, SessionSlot};

use crate::actor::{Pass, VolumeHandle};
use crate::placement::IoCount;

/// Handles that one connection may have open.
const HANDLES_MAX: usize = 1 << 16;

/// What a handle stands for.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) volume: VolumeId,
    pub(crate) handle: VolumeHandle,
    pub(crate) generation: u32,
    /// What it is open on.
    pub(crate) on: OpenOn,
    /// Counts what the client asks of it.
    pub(crate) io: IoCount,
    /// What it may change.
    pub(crate) pass: Pass,
}

/// What a handle is open on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OpenOn {
    /// The volume, in a session.
    Session(SessionSlot),
    /// A snapshot of it, which takes no numbered operations.
    Snapshot(SnapshotId),
    /// Two roots, to be compared.
    Compared(Compared),
}

impl Open {
    /// The client says that it is over.
    pub(crate) async fn close(&self) -> Result<(), Refusal> {
        match self.on {
            OpenOn::Session(slot) => self.handle.close(self.generation, slot).await,
            OpenOn::Snapshot(_) | OpenOn::Compared(_) => Ok(()),
        }
    }

    /// It was opened once more, and one handle stands for both.
    fn opened_again(&self, before: Pass) {
        if let OpenOn::Session(slot) = self.on {
            let twice = (self.pass == before).then_some(self.pass);
            self.handle.opened_again(self.generation, slot, twice);
        }
    }

    /// Whether it is the same session of the same run of the volume.
    fn is_same(&self, other: &Self) -> bool {
        let (OpenOn::Session(slot), OpenOn::Session(of_other)) = (self.on, other.on) else {
            return false;
        };
        // The next actor counts its runs anew.
        (&self.handle, self.generation, slot) == (&other.handle, other.generation, of_other)
    }

    /// The client's connection is gone.
    pub(crate) fn client_gone(&self) {
        if let OpenOn::Session(slot) = self.on {
            self.handle.client_gone(self.generation, slot, self.pass);
        }
    }
}

/// The connections that have handles.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_peer: HashMap<PeerId, Handles>,
}

#[derive(Debug, Default)]
struct Handles {
    /// Who the client says it is.
    client: Option<NodeName>,
    places: Vec<Place>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Place {
    uses: u16,
    open: Option<Open>,
}

impl Peers {
    /// What a handle of a connection stands for.
    pub(crate) fn handle(&self, peer: PeerId, handle: u32) -> Option<&Open> {
        let (place, uses) = split(handle);
        let place = self.by_peer.get(&peer)?.places.get(usize::from(place))?;
        place.open.as_ref().filter(|_| place.uses == uses)
    }

    /// A connection is there; `client` tells whose it is, and is asked once.
    pub(crate) fn here(&mut self, peer: PeerId, client: impl FnOnce() -> Option<NodeName>) {
        let new = || Handles {
            client: client(),
            ..Handles::default()
        };
        self.by_peer.entry(peer).or_insert_with(new);
    }

    /// Whose a connection is; `None`: it is gone.
    pub(crate) fn client(&self, peer: PeerId) -> Option<NodeName> {
        self.by_peer.get(&peer)?.client.clone()
    }

    /// A handle for an open session: that which the connection has for it, if it has one, with what it may change now. `None`: the
    /// connection is gone, or has as many as it may have.
    pub(crate) fn add(&mut self, peer: PeerId, open: Open) -> Option<u32> {
        let handles = self.by_peer.get_mut(&peer)?;
        let is_same = |place: &Place| place.open.as_ref().is_some_and(|known| known.is_same(&open));
        if let Some(at) = handles.places.iter().position(is_same) {
            let place = &mut handles.places[at];
            if let Some(known) = &mut place.open {
                // Both were counted.
                open.opened_again(known.pass);
                known.pass = open.pass.or(known.pass);
            }
            return u16::try_from(at).ok().map(|at| join(at, place.uses));
        }
        let at = match handles.free.pop() {
            Some(at) => at,
            None if handles.places.len() < HANDLES_MAX => {
                handles.places.push(Place { uses: 0, open: None });
                u16::try_from(handles.places.len() - 1).ok()?
            }
            None => return None,
        };
        let place = handles.places.get_mut(usize::from(at))?;
        place.uses = place.uses.wrapping_add(1);
        place.open = Some(open);
        Some(join(at, place.uses))
    }

    /// Takes a handle away.
    pub(crate) fn remove(&mut self, peer: PeerId, handle: u32) -> Option<Open> {
        let (at, uses) = split(handle);
        let handles = self.by_peer.get_mut(&peer)?;
        let place = handles
            .places
            .get_mut(usize::from(at))
            .filter(|place| place.uses == uses)?;
        let open = place.open.take()?;
        handles.free.push(at);
        Some(open)
    }

    /// The connection is gone; gives what it had open. The sessions stay: the client comes back and opens them again.
    pub(crate) fn gone(&mut self, peer: PeerId) -> impl Iterator<Item = Open> {
        let handles = self.by_peer.remove(&peer).unwrap_or_default();
        handles.places.into_iter().filter_map(|place| place.open)
    }
}

fn join(place: u16, uses: u16) -> u32 {
    u32::from(uses) << 16 | u32::from(place)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "takes the two halves apart that `join` joined"
)]
const fn split(handle: u32) -> (u16, u16) {
    (handle as u16, (handle >> 16) as u16)
}
