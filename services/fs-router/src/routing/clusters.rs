//! The cache of clusters that were read before, as the routing cores of a process use it.
//!
//! Keeps: the cache, and which clusters are being fetched, by whichever core.
//! Order: what was fetched can be found before those that wait for it are told. A lookup never waits while it leads a fetch, so no two
//! wait for each other.
//! Crash: that of the cache.
//! Knows no volumes but those that wrote: a template's clusters are one cluster for all its clones.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::FutureExt as _;
use sconce_cache::{Cache, Flight, Flights, Follower, Found, Joined, KEY_LEN, Key, Reading, Turn, Use};
use sconce_schemas::CLUSTER_LEN;
use sconce_schemas::crc::crc32c;

use super::core::{Clusters, Lookup};

/// What a fetch that others wait for cannot say: a core that fails drops it, and the next one tries.
type Never = std::convert::Infallible;

/// The cluster cache of a process. A handle.
#[derive(Clone)]
pub struct ClusterCache {
    cache: Cache,
    flights: Flights<Never>,
}

/// The fetches that a core makes for all.
#[derive(Default)]
pub(super) struct Leads {
    flights: HashMap<Key, Flight<Never>>,
}

/// What a look at the cache showed, for each cluster.
pub(super) struct Sight {
    seen: Vec<Seen>,
}

enum Seen {
    Here(Bytes),
    OnDisk {
        key: Key,
        crc: u32,
        reading: Reading,
    },
    Ours {
        key: Key,
        flight: Flight<Never>,
    },
    Others {
        key: Key,
        follower: Follower<Never>,
    },
    /// It is being read from the disk.
    Read,
}

impl ClusterCache {
    /// With a cache for pieces of a cluster's length.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            flights: Flights::default(),
        }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Looks without waiting.
    pub(super) fn look(&self, clusters: &Clusters) -> Sight {
        let seen = keys(clusters).map(|(key, crc)| match self.cache.find(&key, Use::Counts) {
            Found::Hit(data) if is_cluster(&data, crc) => Seen::Here(data),
            Found::OnDisk(reading) => Seen::OnDisk { key, crc, reading },
            Found::Hit(_) | Found::Miss => self.join(key),
        });
        Sight { seen: seen.collect() }
    }

    fn join(&self, key: Key) -> Seen {
        match self.flights.join(&self.cache, key) {
            Joined::Over(data) => Seen::Here(data),
            Joined::Leads(flight) => Seen::Ours { key, flight },
            Joined::Follows(follower) => Seen::Others { key, follower },
        }
    }

    /// Waits for the disk, and then, where all is fetched by others, for the first of them, and takes what came with it: who fetches
    /// fetches many at once, and where nothing is kept it would have to be fetched again.
    pub(super) async fn wait(&self, sight: Sight) -> Sight {
        let mut seen = self.read(sight.seen).await;
        if seen.iter().all(|seen| matches!(seen, Seen::Others { .. }))
            && let Some((first, rest)) = seen.split_first_mut()
        {
            if let Seen::Others { key, follower } = first {
                *first = Seen::after(*key, follower.await);
            }
            for other in rest {
                if let Seen::Others { key, follower } = other
                    && let Some(turn) = follower.now_or_never()
                {
                    *other = Seen::after(*key, turn);
                }
            }
        }
        Sight { seen }
    }

    /// Reads what is on the disk, in one job.
    async fn read(&self, mut seen: Vec<Seen>) -> Vec<Seen> {
        let (mut places, mut readings) = (Vec::new(), Vec::new());
        for (at, one) in seen.iter_mut().enumerate() {
            match std::mem::replace(one, Seen::Read) {
                Seen::OnDisk { key, crc, reading } => {
                    places.push((at, key, crc));
                    readings.push(reading);
                }
                other => *one = other,
            }
        }
        if readings.is_empty() {
            return seen;
        }
        let read = self.cache.read_all(readings).await;
        for ((at, key, crc), data) in places.into_iter().zip(read) {
            seen[at] = match data {
                Some(data) if is_cluster(&data, crc) => Seen::Here(data),
                _ => self.join(key),
            };
        }
        seen
    }

    /// Gives what was fetched to the cache and to those that wait for it.
    pub(super) fn keep(&self, leads: &mut Leads, clusters: &Clusters, data: &Bytes, is_cacheable: bool) {
        for (at, (key, _)) in keys(clusters).enumerate() {
            let start = at * CLUSTER_LEN;
            if data.len() < start + CLUSTER_LEN {
                return;
            }
            let cluster = data.slice(start..start + CLUSTER_LEN);
            if is_cacheable {
                self.cache.put(key, cluster.clone());
            }
            if let Some(flight) = leads.flights.remove(&key) {
                flight.land(&Ok(cluster));
            }
        }
    }
}

impl Leads {
    /// Hands fetches on to those that wait for them.
    pub(super) fn release(&mut self, clusters: &Clusters) {
        for (key, _) in keys(clusters) {
            self.flights.remove(&key);
        }
    }
}

impl Sight {
    /// Whether [`ClusterCache::wait`] is needed: something is on the disk, or all is with others.
    pub(super) fn has_to_wait(&self) -> bool {
        let is_on_disk = |seen: &Seen| matches!(seen, Seen::OnDisk { .. });
        self.seen.iter().any(is_on_disk) || self.seen.iter().all(|seen| matches!(seen, Seen::Others { .. }))
    }

    /// The core's answer. What it is to fetch is among its `leads` from now on.
    pub(super) fn answer(self, leads: &mut Leads) -> Vec<Lookup> {
        let answer = |seen| match seen {
            Seen::Here(data) => Lookup::Here(data),
            Seen::Ours { key, flight } => {
                leads.flights.insert(key, flight);
                Lookup::Ours
            }
            // Another look, which waits if it has to.
            Seen::OnDisk { .. } | Seen::Others { .. } | Seen::Read => Lookup::Others,
        };
        self.seen.into_iter().map(answer).collect()
    }
}

impl Seen {
    /// Once another's fetch is over, or is the caller's.
    fn after(key: Key, turn: Turn<Never>) -> Self {
        match turn {
            Turn::Landed(Ok(data)) => Self::Here(data),
            Turn::Landed(Err(never)) => match never {},
            Turn::Leads(flight) => Self::Ours { key, flight },
        }
    }
}

/// The cache's names of clusters, and each one's CRC32C. The name says it too: a SCO that two owners wrote differently, of which
/// one never counted, is two.
fn keys(clusters: &Clusters) -> impl Iterator<Item = (Key, u32)> {
    let first = u32::from(clusters.first_slot.0);
    let (writer, sco) = (clusters.writer, clusters.sco);
    (first..).zip(&clusters.crcs).map(move |(slot, crc)| {
        let mut key = [0; KEY_LEN];
        key[..16].copy_from_slice(&writer.0);
        key[16..24].copy_from_slice(&sco.0.to_le_bytes());
        key[24..28].copy_from_slice(&slot.to_le_bytes());
        key[28..32].copy_from_slice(&crc.to_le_bytes());
        (Key(key), *crc)
    })
}

fn is_cluster(data: &[u8], crc: u32) -> bool {
    data.len() == CLUSTER_LEN && crc32c(data) == crc
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sconce_cache::{CacheSettings, Components, SystemDisk};
    use sconce_runtime::settings::ByteSize;
    use sconce_runtime::{Chance, Clock};
    use sconce_schemas::{ScoId, Slot, VolumeId};

    use super::*;

    #[tokio::test]
    async fn who_waits_takes_all_that_was_fetched_also_where_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let settings = CacheSettings {
            directory: directory.path().to_owned(),
            size: ByteSize::new(1 << 20),
        };
        let components = Components {
            disk: Arc::new(SystemDisk),
            clock: Clock::system(),
        };
        let length = u32::try_from(CLUSTER_LEN).unwrap();
        let cache = Cache::open(&settings, length, components, &mut Chance::seeded(1));
        let cache = ClusterCache::new(cache);
        let mut data = vec![0; 8 * CLUSTER_LEN];
        Chance::seeded(2).fill(&mut data);
        let clusters = Clusters {
            writer: VolumeId([1; 16]),
            sco: ScoId(7),
            first_slot: Slot(3),
            crcs: data.chunks_exact(CLUSTER_LEN).map(crc32c).collect(),
        };
        let (mut ours, mut theirs) = (Leads::default(), Leads::default());
        let first = cache.look(&clusters).answer(&mut ours);
        assert!(first.iter().all(|found| matches!(found, Lookup::Ours)));
        let waits = cache.look(&clusters);
        assert!(waits.has_to_wait());
        cache.keep(&mut ours, &clusters, &data.clone().into(), false);
        let found = cache.wait(waits).await.answer(&mut theirs);
        for (found, cluster) in found.into_iter().zip(data.chunks_exact(CLUSTER_LEN)) {
            assert!(matches!(found, Lookup::Here(data) if data == cluster));
        }
        assert!(cache.flights.is_empty() && theirs.flights.is_empty());
    }
}
