//! What the volume must hold, compared with what it gives.
//!
//! Keeps: the model, in the world; what an operation that is under way covers may be old or new.
//! Order: the model changes when an operation is answered.
//! Crash: the log's prefix says what must be there (`crash.rs`).
//! Knows no host.

use std::collections::BTreeMap;

use sconce_schemas::wire::volume::{ExtentKind, ExtentStatus, IoCode};
use sconce_volume::{Extent, Ticket};

use super::{Outstanding, World};
use crate::oracle::{State, stamp_of, stamps_of};

impl World {
    /// Apart from what the dead client had under way the volume is what the model says.
    pub(super) fn check_taken_over(&self, found: &State, dead: &BTreeMap<u64, Outstanding>) {
        if dead.values().any(|o| o.request.code == IoCode::Resize) || self.asks.is_rolling_back() {
            return;
        }
        assert_eq!(found.size, self.model.size);
        let unsure = |sector| dead.values().any(|o| o.sectors.contains(&sector));
        for cluster in found.clusters.keys().chain(self.model.clusters.keys()) {
            let stamps = |state: &State| state.clusters.get(cluster).copied().unwrap_or_default();
            let (here, expected) = (stamps(found), stamps(&self.model));
            for sector in (0..8).filter(|sector| !unsure(cluster * 8 + *sector as u64)) {
                assert_eq!(
                    here[sector], expected[sector],
                    "sector {sector} of cluster {cluster}"
                );
            }
        }
    }

    /// Everything the model has must be data; holes must be zeros in the model (unless something is under way).
    pub(super) fn check_extents(&self, extents: &[ExtentStatus]) {
        if self.asks.is_rolling_back() {
            return;
        }
        let mut at = 0;
        for extent in extents {
            let end = at + extent.length;
            if extent.kind != ExtentKind::Data {
                let range = at.div_ceil(4096)..end / 4096;
                for (cluster, stamps) in self.model.clusters.range(range) {
                    let busy = self
                        .outstanding
                        .values()
                        .any(|o| o.sectors.start / 8 <= *cluster && *cluster < o.sectors.end.div_ceil(8));
                    assert!(
                        busy,
                        "cluster {cluster} holds {stamps:?} but is reported as {:?}",
                        extent.kind
                    );
                }
            }
            at = end;
        }
    }

    pub(super) fn model_change(&mut self, done: &Outstanding) {
        if done.request.code == IoCode::Resize {
            self.model.resize(done.request.offset);
            return;
        }
        if done.request.code == IoCode::WriteZeroes {
            self.model.zero(done.sectors.clone());
            return;
        }
        for sector in done.sectors.clone() {
            match done.request.code {
                IoCode::Write => self.model.set_sector(sector, stamp_of(&done.data[..512])),
                _ => {
                    let whole = |cluster: u64| {
                        done.sectors.start <= cluster * 8 && (cluster + 1) * 8 <= done.sectors.end
                    };
                    if whole(sector / 8) {
                        self.model.set_sector(sector, 0);
                    }
                }
            }
        }
    }

    pub(super) fn check_read(&mut self, ticket: Ticket, extents: &[Extent]) {
        let Some(request) = self.reads.remove(&ticket) else {
            return;
        };
        self.note_shown(extents);
        let mut overtook = std::mem::take(&mut self.overtook);
        let ours = overtook.extract_if(.., |(read, _)| *read == ticket);
        let ours: Vec<_> = ours.map(|(_, sectors)| sectors).collect();
        self.overtook = overtook;
        if self.asks.is_rolling_back() {
            return;
        }
        let mut cluster = request.offset / 4096;
        for extent in extents {
            for content in self.contents(extent) {
                let under_way = self.outstanding.values().map(|o| &o.sectors);
                let busy = under_way
                    .chain(&ours)
                    .any(|sectors| sectors.start / 8 <= cluster && cluster < sectors.end.div_ceil(8));
                if !busy {
                    let expected = self.model.clusters.get(&cluster).copied().unwrap_or_default();
                    assert_eq!(content, expected, "cluster {cluster} read from {extent:?}");
                }
                cluster += 1;
            }
        }
        assert_eq!(
            cluster,
            (request.offset + request.length).div_ceil(4096),
            "a read of another length"
        );
    }

    /// The stamps of an extent's clusters, CRCs checked.
    pub(crate) fn contents(&self, extent: &Extent) -> Vec<[u64; 8]> {
        match extent {
            Extent::Zeros { length } => vec![[0; 8]; (*length / 4096) as usize],
            _ => self.clusters(extent).iter().map(|c| stamps_of(c)).collect(),
        }
    }

    /// What the volume holds.
    pub(super) fn read_all(&mut self) -> State {
        self.read_root(None).state
    }
}
