//! The cache gives what the pool would, asks it once, and reads ahead of who reads in order.

#![expect(clippy::unwrap_used, reason = "a test: what goes wrong fails it")]

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_cache::{Cache, CacheSettings, Components, SystemDisk};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Chance, Clock};
use sconce_schemas::records::{PlacementEntry, PoolRecord, Protection};
use sconce_schemas::wire::{Refusal, Remedy};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use tempfile::TempDir;
use tokio::task::LocalSet;

use sconce_storage_router::cached::{CACHED_MAX, ObjectCache, PIECE, Streams};
use sconce_storage_router::checked::Checked;
use sconce_storage_router::pool::{Care, FIRST_PLACEMENT, Pool};
use sconce_storage_router::testing::{Faults, FaultyBackend, MemoryBackend};
use sconce_storage_router::workers::Workers;

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
    memory: Arc<MemoryBackend>,
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
        let backend = Arc::new(FaultyBackend::new(memory.clone(), NONE, 1));
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
            compression: None,
            encrypted: false,
            keys: Vec::new(),
            change: None,
        };
        let backends = [("disk".to_owned(), checked.clone())].into();
        let care = Care {
            keys: Arc::default(),
            hedge_after: Duration::from_millis(100),
        };
        let pool = Pool::new(record, &backends, Workers::inline(), care).unwrap();
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
            memory,
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
            assert_eq!(
                read,
                part(&object, *offset, *length),
                "{length} bytes at {offset}"
            );
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
async fn what_is_damaged_costs_nobody_what_is_beside_it() {
    let object = content(300_000);
    let local = LocalSet::new();
    let all = async {
        let setup = Setup::new(&object).await;
        let mut stored = setup.memory.stored(NAME).unwrap().to_vec();
        let at = stored
            .windows(64)
            .position(|bytes| bytes == &object[3 * 4096..][..64]);
        stored[at.unwrap()] ^= 1;
        setup.memory.damage(NAME, stored.into());
        let reads = join_all((0..8).map(|chunk| setup.get(chunk * 4096, 4096))).await;
        for (chunk, read) in (0..).zip(reads) {
            match chunk {
                3 => assert_eq!(read.unwrap_err().remedy, Remedy::Damaged),
                _ => assert_eq!(read.unwrap(), part(&object, chunk * 4096, 4096), "chunk {chunk}"),
            }
        }
        assert_eq!(
            setup.get(70_000, 9000).await.unwrap(),
            part(&object, 70_000, 9000)
        );
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

fn sco(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId([1; 16]),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

#[test]
fn a_reader_in_order_is_read_ahead_of_and_no_piece_twice() {
    let streams = Streams::default();
    let mut ahead = Vec::new();
    let mut late = 0;
    for piece in 0..64 {
        // Guests read a part of a piece at a time.
        for _ in 0..4 {
            late += u32::from(piece > 4 && !ahead.contains(&piece));
            ahead.extend(streams.note(sco(1), &(piece..=piece)).ahead.into_iter().flatten());
        }
    }
    let mut once = ahead.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ahead.len(), "a piece was read ahead twice");
    assert_eq!(late, 0, "a reader came before what was read for it");
}

#[test]
fn readers_of_two_objects_do_not_disturb_each_other_and_random_ones_get_nothing() {
    let streams = Streams::default();
    let mut ahead = [0, 0];
    for piece in 0..20 {
        for object in [0, 1_u8] {
            let read = streams.note(sco(u64::from(object)), &(piece..=piece)).ahead;
            ahead[usize::from(object)] += read.into_iter().flatten().count();
        }
    }
    assert!(ahead.iter().all(|pieces| *pieces > 16), "{ahead:?}");
    let mut random = numbers(7);
    for _ in 0..1000 {
        let piece = random() % 64;
        let read = streams.note(sco(9), &(piece..=piece)).ahead;
        assert!(
            read.is_none_or(|read| read.count() <= 4),
            "a coincidence is no reader"
        );
    }
}

/// Numbers without a pattern.
fn numbers(mut state: u32) -> impl FnMut() -> u32 {
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    }
}
