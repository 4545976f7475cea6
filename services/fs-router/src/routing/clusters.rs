//! The cache of clusters that were read before, as the routing cores of a process use it.
//!
//! Keeps: the cache, and which clusters are being fetched, by whichever core.
//! Order: what was fetched can be found before those that wait for it are told. A lookup never waits while it leads a fetch, so no two
//! wait for each other.
//! Crash: that of the cache.
//! Knows no volumes but those that wrote: a template's clusters are one cluster for all its clones.

use std::collections::HashMap;

use bytes::Bytes;
use sconce_cache::{Cache, Flight, Flights, Follower, Found, Joined, KEY_LEN, Key, Reading, Turn};
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
    NotThere {
        key: Key,
    },
    Ours {
        key: Key,
        flight: Flight<Never>,
    },
    Others {
        key: Key,
        follower: Follower<Never>,
    },
    /// Its reading ended without an answer.
    Lost,
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
        let seen = keys(clusters).map(|(key, crc)| match self.cache.find(&key) {
            Found::Hit(data) if is_cluster(&data, crc) => Seen::Here(data),
            Found::OnDisk(reading) => Seen::OnDisk { key, crc, reading },
            Found::Hit(_) | Found::Miss => self.join(key),
        });
        Sight { seen: seen.collect() }
    }

    fn join(&self, key: Key) -> Seen {
        match self.flights.join(key) {
            Joined::Leads(flight) => match self.landed(&key) {
                Some(data) => {
                    flight.land(&Ok(data.clone()));
                    Seen::Here(data)
                }
                None => Seen::Ours { key, flight },
            },
            Joined::Follows(follower) => Seen::Others { key, follower },
        }
    }

    /// What another's fetch put into the cache between the look and the lead.
    fn landed(&self, key: &Key) -> Option<Bytes> {
        let found = self.cache.has(key).then(|| self.cache.find(key));
        match found {
            Some(Found::Hit(data)) => Some(data),
            _ => None,
        }
    }

    /// Waits for the disk, and then, where all is fetched by others, for the first of them.
    pub(super) async fn wait(&self, sight: Sight) -> Sight {
        let mut seen = self.read(sight.seen).await;
        if seen.iter().all(|seen| matches!(seen, Seen::Others { .. }))
            && let Some(first) = seen.first_mut()
        {
            *first = std::mem::replace(first, Seen::Lost).landed().await;
        }
        Sight { seen }
    }

    /// Reads what is on the disk, in one job.
    async fn read(&self, seen: Vec<Seen>) -> Vec<Seen> {
        if !seen.iter().any(|seen| matches!(seen, Seen::OnDisk { .. })) {
            return seen;
        }
        let count = seen.len();
        let reading = sconce_runtime::blocking(move || seen.into_iter().map(Seen::read).collect::<Vec<_>>());
        // Only without an answer where the job panicked, or the process ends.
        let read = reading.await.unwrap_or_default();
        let mut read: Vec<Seen> = read
            .into_iter()
            .map(|seen| match seen {
                Seen::NotThere { key } => self.join(key),
                seen => seen,
            })
            .collect();
        read.resize_with(count, || Seen::Lost);
        read
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
            Seen::OnDisk { .. } | Seen::NotThere { .. } | Seen::Others { .. } | Seen::Lost => Lookup::Others,
        };
        self.seen.into_iter().map(answer).collect()
    }
}

impl Seen {
    /// On a thread that may block.
    fn read(self) -> Self {
        match self {
            Self::OnDisk { key, crc, reading } => match reading.read_here() {
                Some(data) if is_cluster(&data, crc) => Self::Here(data),
                _ => Self::NotThere { key },
            },
            seen => seen,
        }
    }

    /// Once another's fetch is over, or is the caller's.
    async fn landed(self) -> Self {
        match self {
            Self::Others { key, follower } => match follower.await {
                Turn::Landed(Ok(data)) => Self::Here(data),
                Turn::Landed(Err(never)) => match never {},
                Turn::Leads(flight) => Self::Ours { key, flight },
            },
            seen => seen,
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
