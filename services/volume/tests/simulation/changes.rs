//! Changed blocks in the simulation: any two roots are compared at any moment.
//!
//! Keeps: the comparisons that wait for their answer.
//! Order: one of two snapshots is exact whenever it is answered; one of the head may or may not have what is under way.
//! Crash: it is asked again.
//!
//! Two proofs. While everything goes on, nothing that differs in the model is left out. When it stands still, what is
//! reported is exactly where the two roots refer to different places, as reads of both tell them.

use std::collections::BTreeMap;

use bytes::Bytes;
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{
    ChangeKind, ChangedExtent, ExtentKind, ExtentStatus, IoCode, IoRequest, VolumeReply,
};
use sconce_schemas::{ScoId, Slot, VolumeId};
use sconce_volume::{Base, Compared, Effect, Event, Extent, Ticket};

use crate::oracle::State;
use crate::world::{HOT, HOT_BYTES, World};

/// Comparisons under way.
#[derive(Default)]
pub(crate) struct Comparisons {
    waiting: BTreeMap<Ticket, (Compared, IoRequest)>,
    pub(crate) answered: usize,
}

impl Comparisons {
    /// A crash: nobody waits any more.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// The request that an answer is to, if it was one of these.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<(Compared, IoRequest)> {
        self.waiting.remove(&ticket)
    }
}

/// Where a root has a cluster: nowhere, nowhere but allocated, or in this slot; ancestors number their SCOs as the volume does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Hole,
    Zeros,
    At(VolumeId, ScoId, Slot),
}

impl World {
    /// Any two roots.
    fn any_roots(&mut self) -> Compared {
        let snapshots: Vec<SnapshotId> = self.volume.snapshots().iter().map(|s| s.label.id).collect();
        let any = |chance: &mut fastrand::Rng| {
            let at = chance.usize(0..snapshots.len() + 1);
            snapshots.get(at).copied()
        };
        let of = any(&mut self.chance);
        let since = any(&mut self.chance).map_or(Base::Nothing, Base::Snapshot);
        Compared { of, since }
    }

    fn size_of(&self, of: Option<SnapshotId>) -> u64 {
        let kept = self.volume.kept_roots();
        let found = kept.iter().find(|(id, _)| Some(*id) == of);
        found.map_or(self.volume.size(), |(_, size)| *size).bytes()
    }

    pub(crate) fn submit_comparison(&mut self) {
        let compared = self.any_roots();
        let size = self.size_of(compared.of);
        let offset = HOT[self.chance.usize(0..HOT.len())] + self.chance.u64(0..HOT_BYTES / 2);
        let length = if self.chance.bool() {
            size.saturating_sub(offset)
        } else {
            self.chance.u64(0..HOT_BYTES / 2).min(size.saturating_sub(offset))
        };
        if length == 0 {
            return;
        }
        let (ticket, request) = self.query(IoCode::Changes, offset, length);
        self.comparisons.waiting.insert(ticket, (compared, request));
        self.feed(Event::ComparedIo {
            ticket,
            compared,
            request,
        });
    }

    /// Nothing that differs in the model is left out of what a comparison covers.
    pub(crate) fn check_changes(
        &mut self,
        (compared, request): (Compared, IoRequest),
        extents: &[ChangedExtent],
    ) {
        let covered: u64 = extents.iter().map(|extent| extent.length).sum();
        assert!(
            0 < covered && covered <= request.length,
            "{covered} bytes answer a comparison of {}",
            request.length
        );
        self.comparisons.answered += 1;
        if self.asks.is_rolling_back() {
            return;
        }
        let snapshots = self.log.snapshots_at(self.log.last());
        let state = |id: SnapshotId| snapshots.get(&id).map(|(_, state)| state);
        let now = match compared.of {
            None => Some(&self.model),
            Some(id) => state(id),
        };
        let nothing = State::default();
        let before = match compared.since {
            Base::Snapshot(id) => state(id),
            _ => Some(&nothing),
        };
        // One that was removed while the comparison waited: it was answered from the log before that.
        let (Some(now), Some(before)) = (now, before) else {
            return;
        };
        let stamps = |state: &State, cluster: u64| state.clusters.get(&cluster).copied().unwrap_or_default();
        let mut at = request.offset;
        for extent in extents {
            let end = at + extent.length;
            let clusters = at / 4096..end.div_ceil(4096);
            let known = now.clusters.range(clusters.clone());
            let known = known
                .chain(before.clusters.range(clusters))
                .map(|(cluster, _)| *cluster);
            for cluster in known {
                let busy = compared.of.is_none()
                    && (self.outstanding.values())
                        .any(|o| o.sectors.start / 8 <= cluster && cluster < o.sectors.end.div_ceil(8));
                // A range may end within a cluster, as the next one begins.
                let whole = at <= cluster * 4096 && (cluster + 1) * 4096 <= end;
                let (now, before) = (stamps(now, cluster), stamps(before, cluster));
                match extent.kind {
                    _ if busy || !whole => {}
                    ChangeKind::Same => {
                        assert_eq!(
                            now, before,
                            "cluster {cluster} is reported as unchanged: {compared:?}"
                        );
                    }
                    ChangeKind::Zeros | ChangeKind::Hole => {
                        assert_eq!(
                            now, [0; 8],
                            "cluster {cluster} is reported as zeros: {compared:?}"
                        );
                    }
                    ChangeKind::Data => {}
                }
            }
            at = end;
        }
    }

    /// What is reported is exactly where two roots refer to different places: a few pairs of all that there are.
    pub(crate) fn check_comparisons(&mut self, pairs: usize) {
        for _ in 0..pairs {
            let compared = self.any_roots();
            let reported = self.compared(compared);
            let now = self.places(compared.of);
            let before = match compared.since {
                Base::Snapshot(id) => self.places(Some(id)),
                _ => BTreeMap::new(),
            };
            for (cluster, place) in now {
                let kind = match place {
                    same if before.get(&cluster).copied().unwrap_or(Place::Hole) == same => ChangeKind::Same,
                    Place::Hole => ChangeKind::Hole,
                    Place::Zeros => ChangeKind::Zeros,
                    Place::At(..) => ChangeKind::Data,
                };
                let at = cluster * 4096;
                let found = reported.range(..=at).next_back().map(|(_, kind)| *kind);
                assert_eq!(found, Some(kind), "cluster {cluster} of {compared:?}: {place:?}");
            }
            self.check_as_ancestor(compared, &reported);
        }
    }

    /// A root that a manifest names gives the same as the snapshot itself: it is how ancestors' snapshots are had.
    fn check_as_ancestor(&mut self, compared: Compared, reported: &BTreeMap<u64, ChangeKind>) {
        let Base::Snapshot(id) = compared.since else {
            return;
        };
        let states = self.manifest.iter().flat_map(|manifest| &manifest.snapshots);
        let stored = states.filter(|state| state.label.id == id && state.removed.is_none());
        let Some(root) = stored.map(|state| state.map).next() else {
            return;
        };
        let since = Base::Ancestor(root);
        let as_ancestor = self.compared(Compared { since, ..compared });
        assert_eq!(as_ancestor, *reported, "{compared:?} by its root");
    }

    /// What differs between two roots, asked for piece by piece: where each kind begins.
    fn compared(&mut self, compared: Compared) -> BTreeMap<u64, ChangeKind> {
        let size = self.size_of(compared.of);
        let (mut found, mut at, mut last) = (BTreeMap::new(), 0, None);
        while at < size {
            let (ticket, request) = self.query(IoCode::Changes, at, size - at);
            let event = Event::ComparedIo {
                ticket,
                compared,
                request,
            };
            let VolumeReply::Changes(extents) = self.answer_to(ticket, event) else {
                panic!("a comparison is answered");
            };
            assert!(!extents.is_empty(), "{compared:?} from {at}");
            for extent in extents {
                if last != Some(extent.kind) {
                    found.insert(at, extent.kind);
                    last = Some(extent.kind);
                }
                at += extent.length;
            }
        }
        assert_eq!(at, size);
        found
    }

    /// Where a root has the clusters of the hot regions.
    fn places(&mut self, of: Option<SnapshotId>) -> BTreeMap<u64, Place> {
        let size = self.size_of(of);
        let mut places = BTreeMap::new();
        for base in HOT {
            let length = HOT_BYTES.min(size.saturating_sub(base));
            if length == 0 {
                continue;
            }
            let mut cluster = base / 4096;
            for extent in self.read_extents(of, base, length) {
                let volume = match &extent {
                    Extent::Stored { volume, .. } => *volume,
                    Extent::Zeros { .. } | Extent::Local { .. } => self.id,
                };
                match extent {
                    Extent::Zeros { length } => {
                        (0..u64::from(length / 4096)).for_each(|at| {
                            places.insert(cluster + at, Place::Hole);
                        });
                        cluster += u64::from(length / 4096);
                    }
                    Extent::Local {
                        sco,
                        first_slot,
                        crcs,
                    }
                    | Extent::Stored {
                        sco,
                        first_slot,
                        crcs,
                        ..
                    } => {
                        for slot in (first_slot.0..).take(crcs.len()) {
                            places.insert(cluster, Place::At(volume, sco, Slot(slot)));
                            cluster += 1;
                        }
                    }
                }
            }
            self.mark_zeros(of, base, length, &mut places);
        }
        places
    }

    /// A read does not tell allocated zeros from holes.
    fn mark_zeros(
        &mut self,
        of: Option<SnapshotId>,
        base: u64,
        length: u64,
        places: &mut BTreeMap<u64, Place>,
    ) {
        let mut at = base;
        while at < base + length {
            let (ticket, request) = self.query(IoCode::Extents, at, base + length - at);
            let event = self.io_event(of, ticket, request);
            let VolumeReply::Extents(extents) = self.answer_to(ticket, event) else {
                panic!("extents are answered");
            };
            for ExtentStatus { length, kind } in extents {
                if kind == ExtentKind::Zeros {
                    (at / 4096..(at + length).div_ceil(4096)).for_each(|cluster| {
                        places.insert(cluster, Place::Zeros);
                    });
                }
                at += length;
            }
        }
    }

    fn io_event(&self, of: Option<SnapshotId>, ticket: Ticket, request: IoRequest) -> Event {
        match of {
            None => Event::Io {
                ticket,
                session: self.slot,
                request,
                data: Bytes::new(),
            },
            Some(snapshot) => Event::SnapshotIo {
                ticket,
                snapshot,
                request,
            },
        }
    }

    /// The answer to an event, loading what is needed.
    fn answer_to(&mut self, ticket: Ticket, event: Event) -> VolumeReply {
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        loop {
            let Some(effect) = effects.pop() else {
                // It waits for a node that somebody else asked for.
                let (place, reference) = self.take_pending_load().expect("a request is answered");
                effects.push(Effect::LoadNode { place, reference });
                continue;
            };
            match effect {
                Effect::Reply { ticket: at, reply } if at == ticket => {
                    effects.into_iter().for_each(|effect| self.carry_out(effect));
                    return reply;
                }
                Effect::LoadNode { place, reference } => {
                    let result = self.load_node(&reference);
                    let loaded = Event::NodeLoaded {
                        place,
                        reference,
                        result,
                    };
                    self.volume.apply(loaded, &mut effects);
                }
                other => self.carry_out(other),
            }
        }
    }
}
