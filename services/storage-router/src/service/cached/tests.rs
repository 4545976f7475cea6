//! The cache gives what the pool would, asks it once, and reads ahead of who reads in order.

use std::time::Duration;

use futures_util::future::join_all;
use sconce_cache::{CacheSettings, Components, SystemDisk};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Chance, Clock};
use sconce_schemas::records::{PlacementEntry, PoolRecord, Protection};
use sconce_schemas::{Epoch, ScoId, VolumeId};
use tempfile::TempDir;
use tokio::task::LocalSet;

use super::*;
use crate::checked::Checked;
use crate::pool::FIRST_PLACEMENT;
use crate::testing::{Faults, FaultyBackend, MemoryBackend};
use crate::workers::Workers;

const NONE: Faults = faults(0);
const ABSENT: Faults = faults(1000);

const fn faults(absent: u16) -> Faults {
    Faults {
        slow: 0,
        delay_max: Duration::ZERO,
        full: 0,
        absent,
        flip: 0,
        lost_answer: 0,
        torn: 0,
    }
}

struct Setup {
    cache: Rc<ObjectCache>,
    pool: Arc<Pool>,
    backend: Arc<FaultyBackend>,
    checked: Arc<Checked>,
    _directory: TempDir,
}

const NAME: ObjectName = ObjectName::Sco {
    volume: VolumeId([7; 16]),
    id: ScoId(3),
    epoch: Epoch(2),
    version: 0,
};

fn content(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    Chance::seeded(5).fill(&mut bytes);
    bytes.into()
}

impl Setup {
    async fn new(object: &Bytes) -> Self {
        let memory = Arc::new(MemoryBackend::new("disk", 1 << 30));
        let backend = Arc::new(FaultyBackend::new(memory, NONE, 1));
        let checked = Arc::new(Checked::new(
            backend.clone(),
            Workers::inline(),
            Duration::from_secs(30),
        ));
        let record = PoolRecord {
            name: "main".to_owned(),
            protection: Protection::Replicas(1),
            backends: vec![PlacementEntry {
                backend: "disk".to_owned(),
                weight: 1,
            }],
            placement_version: FIRST_PLACEMENT,
        };
        let backends = [("disk".to_owned(), checked.clone())].into();
        let pool = Pool::new(record, &backends, Workers::inline()).unwrap();
        pool.put(NAME, object.clone()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let settings = CacheSettings {
            directory: directory.path().to_owned(),
            size: ByteSize::new(16 << 20),
        };
        let components = Components {
            disk: Arc::new(SystemDisk),
            clock: Clock::system(),
        };
        let cache = Cache::open(&settings, PIECE, components, &mut Chance::seeded(1));
        cache.settled().await;
        Self {
            cache: Rc::new(ObjectCache::new(cache)),
            pool,
            backend,
            checked,
            _directory: directory,
        }
    }

    async fn get(&self, offset: u64, length: u64) -> Result<Bytes, Refusal> {
        self.cache.get(&self.pool, NAME, offset, length).await
    }

    async fn requests(&self) -> u64 {
        self.checked.status().await.requests
    }
}

fn part(object: &Bytes, offset: u64, length: u64) -> Bytes {
    let at = |position: u64| usize::try_from(position).unwrap().min(object.len());
    object.slice(at(offset)..at(offset + length))
}

#[tokio::test]
async fn any_range_is_what_the_pool_gives_and_is_given_again_without_a_back_end() {
    let object = content(300_001);
    let local = LocalSet::new();
    let all = async {
        let setup = Setup::new(&object).await;
        let mut chance = Chance::seeded(9);
        let ranges: Vec<_> = (0..200)
            .map(|_| (chance.below(350_000), 1 + chance.below(200_000)))
            .collect();
        for (offset, length) in &ranges {
            let read = setup.get(*offset, *length).await.unwrap();
            assert_eq!(read, part(&object, *offset, *length), "{length} bytes at {offset}");
        }
        setup.cache.cache().settled().await;
        setup.backend.set(ABSENT);
        for (offset, length) in ranges {
            // What is behind the end is nothing that could be kept.
            let length = length.min(300_001_u64.saturating_sub(offset));
            if length > 0 {
                let read = setup.get(offset, length).await.unwrap();
                assert_eq!(read, part(&object, offset, length), "{length} bytes at {offset}");
            }
        }
        assert!(setup.get(0, CACHED_MAX + 1).await.is_err(), "long reads go by");
    };
    local.run_until(all).await;
}

#[tokio::test]
async fn many_that_ask_at_once_cost_one_read_and_hear_the_same_error() {
    let object = content(4 << 20);
    let local = LocalSet::new();
    let all = async {
        let setup = Setup::new(&object).await;
        setup.backend.set(ABSENT);
        for read in join_all((0..20).map(|_| setup.get(70_000, 100_000))).await {
            read.unwrap_err();
        }
        setup.backend.set(NONE);
        let before = setup.requests().await;
        for read in join_all((0..50).map(|_| setup.get(70_000, 100_000))).await {
            assert_eq!(read.unwrap(), part(&object, 70_000, 100_000));
        }
        assert_eq!(setup.requests().await - before, 1);
    };
    local.run_until(all).await;
}

#[tokio::test]
async fn who_reads_in_order_finds_it_there_and_the_back_end_is_asked_for_many_pieces_at_once() {
    let object = content(4 << 20);
    let local = LocalSet::new();
    let all = async {
        let setup = Setup::new(&object).await;
        let before = setup.requests().await;
        for offset in (0..4 << 20).step_by(16 << 10) {
            let read = setup.get(offset, 16 << 10).await.unwrap();
            assert_eq!(read, part(&object, offset, 16 << 10), "at {offset}");
            tokio::task::yield_now().await;
        }
        let requests = setup.requests().await - before;
        assert!(requests <= 16, "{requests} requests for 64 pieces");
    };
    local.run_until(all).await;
}
