//! A schedule, a budget, one at a time, and going on where it was. Time is virtual.

use bytes::Bytes;
use sconce_runtime::settings::{ByteSize, Interval};
use sconce_runtime::{Chance, Events};
use sconce_schemas::records::{ClaimRecord, PoolRecord, Protection, VolumeRecord};
use sconce_schemas::{Epoch, ScoId, ScoSize, VolumeId, VolumeSize};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::checked::Checked;
use crate::service::backends::Backends;
use crate::service::keys::Cares;
use crate::service::pools::Pools;
use crate::service::rounds::CLAIM_TTL;
use crate::service::standing::Standing;
use crate::testing::MemoryBackend;
use crate::workers::Workers;

const DAY: Duration = Duration::from_secs(24 * 3600);
const OBJECT_BYTES: usize = 1 << 20;

/// Storage-routers on the same two back ends and the same registry.
struct World {
    registry: Registry,
    memory: Vec<Arc<MemoryBackend>>,
    clock: Clock,
}

struct Router {
    stop: Stop,
    running: JoinHandle<()>,
    pool: Arc<Pool>,
}

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(u128::from(id % 3)),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

impl World {
    async fn new() -> Self {
        let registry = Registry::memory();
        let backends = (0..2).map(|index| format!("disk-{index}"));
        let record = PoolRecord::proposed("vms".to_owned(), Protection::Replicas(2), backends, None, false);
        registry
            .put_record(&keys::pool("vms"), None, &record, None)
            .await
            .unwrap();
        for id in 0..3 {
            let id = VolumeId::from_u128(id);
            let owner = "vr-1".parse().unwrap();
            let size = VolumeSize::default();
            let volume = VolumeRecord::unowned(id, size, ScoSize::default(), "vms".to_owned(), owner);
            registry
                .put_record(&keys::volume(id), None, &volume, None)
                .await
                .unwrap();
        }
        let memory = (0..2).map(|index| Arc::new(MemoryBackend::new(&format!("disk-{index}"), 1 << 30)));
        Self {
            registry,
            memory: memory.collect(),
            clock: Clock::simulated(1_800_000_000_000_000),
        }
    }

    async fn start(&self, node: &str) -> Router {
        let checked = self.memory.iter().map(|memory| {
            Arc::new(Checked::new(
                memory.clone(),
                Workers::inline(),
                Duration::from_secs(30),
            ))
        });
        let backends = Backends::made(&self.registry, checked);
        let stop = Stop::new();
        let pools = Pools::new(
            self.registry.clone(),
            backends,
            Workers::inline(),
            Cares::default(),
        );
        let handler = Handler {
            operations: sconce_tracing::metrics::Operations::default(),
            under_way: Rc::default(),
            node: node.parse().unwrap(),
            pools,
            standing: Standing::alone(),
            cache: None,
            events: Events::new(node.parse().unwrap(), self.clock.clone(), &mut Chance::seeded(1)),
            stop: stop.clone(),
        };
        let pool = handler.pools.find("vms").await.unwrap();
        let scrubbing = DeepScrubbing {
            handler: Rc::new(handler),
            registry: self.registry.clone(),
            settings: DeepScrubSettings {
                period: Interval::new(30 * DAY),
                bytes_per_second: ByteSize::new(1 << 20),
            },
            clock: self.clock.clone(),
            stop: stop.clone(),
        };
        let running = tokio::task::spawn_local(scrubbing.run());
        Router { stop, running, pool }
    }

    async fn record(&self) -> Option<DeepScrubRecord> {
        let found = self.registry.get_record(&keys::deep_scrub("vms")).await.unwrap();
        found.map(|(record, _)| record)
    }

    async fn until(&self, what: &str, is_so: impl Fn(&DeepScrubRecord) -> bool) -> DeepScrubRecord {
        let waited = tokio::time::timeout(100 * DAY, async {
            let mut after = Revision::ABSENT;
            loop {
                if let Some(record) = self.record().await
                    && is_so(&record)
                {
                    return record;
                }
                let watched = self.registry.watch(keys::DEEP_SCRUBS, after, DAY).await.unwrap();
                after = watched.revision;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("waited for {what}"))
    }

    async fn set(&self, record: &DeepScrubRecord) {
        let key = keys::deep_scrub("vms");
        self.registry.put_record(&key, None, record, None).await.unwrap();
    }
}

impl Router {
    async fn fill(&self, objects: u64) {
        for id in 0..objects {
            let mut content = vec![0; OBJECT_BYTES];
            Chance::seeded(id).fill(&mut content);
            self.pool.put(name(id), Bytes::from(content)).await.unwrap();
        }
    }

    async fn stop(self) {
        self.stop.request();
        self.running.await.unwrap();
    }
}

/// With virtual time, which goes on by itself while nothing is to do.
fn simulated<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

#[test]
fn all_is_read_once_in_a_period_within_the_budget_and_what_is_bad_is_repaired() {
    simulated(async {
        let world = World::new().await;
        let begun = world.clock.unix_micros();
        let router = world.start("sr-1").await;
        router.fill(20).await;
        let seen = world.until("the pool to be seen", |_| true).await;
        assert_eq!(
            seen.ended_us,
            Some(seen.begun_us),
            "a round that has nothing to read"
        );
        let good = world.memory[1].stored(name(7)).unwrap();
        let mut bad = good.to_vec();
        *bad.last_mut().unwrap() ^= 1;
        world.memory[1].damage(name(7), bad.into());
        world.memory[0].lose(name(8));
        // One that is in another pool, or was erased: it is not this pool's to repair.
        let foreign = ObjectName::Sco {
            volume: VolumeId::from_u128(9),
            id: ScoId(1),
            epoch: Epoch(1),
            version: 0,
        };
        router
            .pool
            .put(foreign, Bytes::from_static(b"of another pool"))
            .await
            .unwrap();
        world.memory[0].lose(foreign);

        let round = world
            .until("the first round", |record| {
                record.objects > 0 && record.ended_us.is_some()
            })
            .await;
        let period = 30 * DAY.as_micros();
        let waited = u128::from(round.begun_us - begun);
        assert!(
            (period..period + 2 * LOOK_EVERY.as_micros()).contains(&waited),
            "{waited}"
        );
        assert_eq!((round.expected, round.objects), (20, 20));
        assert_eq!((round.repaired, round.left, round.lost), (2, 0, 0), "{round:?}");
        assert_eq!(world.memory[1].stored(name(7)).unwrap(), good);
        assert!(world.memory[0].stored(name(8)).is_some());
        assert!(world.memory[0].stored(foreign).is_none(), "it was brought back");
        // Two copies of each, but for the two that were not good.
        let read = 38 * OBJECT_BYTES as u64;
        assert_eq!(round.bytes, read);
        let took = u128::from(round.ended_us.unwrap() - round.begun_us);
        let least = u128::from(read) * 1_000_000 / (1 << 20);
        assert!((least..least * 11 / 10).contains(&took), "{took} of {least} us");

        let second = world
            .until("the second round", |record| record.begun_us > round.begun_us)
            .await;
        assert!(u128::from(second.begun_us - round.begun_us) >= period);
        router.stop().await;
    });
}

#[test]
fn a_round_that_was_cut_short_goes_on_where_it_was_and_one_does_it_at_a_time() {
    simulated(async {
        let world = World::new().await;
        let first = world.start("sr-1").await;
        first.fill(30).await;
        world.until("the pool to be seen", |_| true).await;
        let seen = world.record().await.unwrap();
        world
            .set(&DeepScrubRecord {
                is_asked: true,
                ..seen
            })
            .await;
        let begun = world
            .until("some of it to be read", |record| record.objects > 5)
            .await;
        assert!(begun.ended_us.is_none() && !begun.is_asked);
        let claimed = keys::deep_scrubber("vms");
        let holder = world
            .registry
            .get_record::<ClaimRecord>(&claimed)
            .await
            .unwrap()
            .unwrap()
            .0;
        assert_eq!(holder.node.as_str(), "sr-1");

        // Another one does not begin it while the first has it, and goes on with it once the first has stopped.
        let second = world.start("sr-2").await;
        let later = world
            .until("more of it", |record| record.objects > begun.objects)
            .await;
        assert!(later.ended_us.is_none());
        let holder = world
            .registry
            .get_record::<ClaimRecord>(&claimed)
            .await
            .unwrap()
            .unwrap()
            .0;
        assert_eq!(holder.node.as_str(), "sr-1");
        first.stop().await;
        let stopped = world.record().await.unwrap();
        assert!(stopped.ended_us.is_none() && stopped.objects < 30, "{stopped:?}");
        let over = world.until("the end", |record| record.ended_us.is_some()).await;
        assert_eq!(
            (over.objects, over.begun_us),
            (30, begun.begun_us),
            "each object once, in one round"
        );
        assert!(world.registry.get(&claimed).await.unwrap().is_none());
        second.stop().await;
    });
}

#[test]
fn a_process_that_was_killed_is_succeeded_by_its_next_start_at_once() {
    simulated(async {
        let world = World::new().await;
        let killed = world.start("sr-1").await;
        killed.fill(30).await;
        world.until("the pool to be seen", |_| true).await;
        let seen = world.record().await.unwrap();
        world
            .set(&DeepScrubRecord {
                is_asked: true,
                ..seen
            })
            .await;
        let begun = world
            .until("some of it to be read", |record| record.objects > 5)
            .await;
        killed.running.abort();
        let at = world.clock.unix_micros();
        let next = world.start("sr-1").await;
        let on = world
            .until("it to go on", |record| record.objects > begun.objects)
            .await;
        let waited = Duration::from_micros(world.clock.unix_micros() - at);
        assert!(waited < CLAIM_TTL, "{waited:?}");
        assert_eq!(on.begun_us, begun.begun_us);
        let over = world.until("the end", |record| record.ended_us.is_some()).await;
        assert_eq!((over.objects, over.lost, over.left), (30, 0, 0));
        next.stop().await;
    });
}
