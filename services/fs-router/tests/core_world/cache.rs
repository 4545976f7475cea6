//! A cache beside the core, and what must be true of its questions: what it leaves to the core is kept or released, once.

use sconce_fs_router::routing::core::{Clusters, Lookup};

use super::*;

/// Names a cluster.
type Place = (VolumeId, ScoId, Slot, u32);

#[derive(Default)]
pub(super) struct Cached {
    /// Questions that are not answered.
    pub(super) asked: Vec<(u64, Clusters)>,
    kept: BTreeMap<Place, Bytes>,
    /// Left to the core.
    led: BTreeSet<Place>,
    hits: u64,
    fetched: u64,
    waits: u64,
}

fn places(clusters: &Clusters) -> Vec<Place> {
    let first = clusters.first_slot.0;
    let place = |(slot, crc): (u16, &u32)| (clusters.writer, clusters.sco, Slot(slot), *crc);
    (first..).zip(&clusters.crcs).map(place).collect()
}

impl World {
    /// Answers one of the questions, if it need not wait.
    pub(super) fn look_at_cache(&mut self) {
        if self.cache.asked.is_empty() {
            return;
        }
        let at = self.below(self.cache.asked.len());
        let (id, clusters) = self.cache.asked[at].clone();
        let places = places(&clusters);
        if places.iter().all(|place| self.cache.led.contains(place)) {
            self.cache.waits += 1;
            return;
        }
        self.cache.asked.swap_remove(at);
        let found = places
            .into_iter()
            .map(|place| match self.cache.kept.get(&place).cloned() {
                Some(data) if self.chance.one_of(self.rough.cached.unwrap(), 1000) => {
                    self.cache.hits += 1;
                    Lookup::Here(data)
                }
                _ if self.cache.led.insert(place) => Lookup::Ours,
                _ => Lookup::Others,
            })
            .collect();
        self.apply(Event::LookedUp { id, clusters, found });
    }

    pub(super) fn keep(&mut self, clusters: &Clusters, data: &Bytes, is_cacheable: bool) {
        assert!(is_cacheable, "all of this world may be kept");
        for (at, place) in places(clusters).into_iter().enumerate() {
            assert!(self.cache.led.remove(&place), "it was not left to the core");
            let cluster = data.slice(at * CLUSTER_LEN..(at + 1) * CLUSTER_LEN);
            assert_eq!(crc32c(&cluster), place.3, "what is kept is unharmed");
            self.cache.kept.insert(place, cluster);
            self.cache.fetched += 1;
        }
    }

    pub(super) fn release(&mut self, clusters: &Clusters) {
        for place in places(clusters) {
            assert!(self.cache.led.remove(&place), "it was not left to the core");
        }
    }

    /// With all operations over, and all questions answered, nothing is left to the core.
    pub(crate) fn check_cache(&mut self) {
        // What was asked for operations that were abandoned.
        for _ in 0..10_000 {
            self.look_at_cache();
        }
        assert!(self.cache.led.is_empty(), "others would wait for ever");
    }

    pub(crate) fn cache_hits(&self) -> u64 {
        self.cache.hits
    }

    pub(crate) fn cache_kept(&self) -> u64 {
        self.cache.fetched
    }

    pub(crate) fn cache_waits(&self) -> u64 {
        self.cache.waits
    }
}
