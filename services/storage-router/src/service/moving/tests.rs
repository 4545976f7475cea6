//! Nothing is placed or moved before every storage-router knows, whoever is cut off says so, and a move ends. Time is virtual.

use bytes::Bytes;
use sconce_registry::announce::{Announcement, NODE_TTL};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Chance, Events};
use sconce_schemas::records::{PlacementEntry, Protection, VolumeRecord};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageReply, StorageRequest};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{Epoch, ObjectName, ScoId, ScoSize, VolumeId, VolumeSize};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::checked::Checked;
use crate::service::backends::Backends;
use crate::service::following;
use crate::service::keys::Cares;
use crate::service::pools::Pools;
use crate::service::standing::Standing;
use crate::testing::MemoryBackend;
use crate::workers::Workers;

const LONG: Duration = Duration::from_secs(3600);
const OBJECT_BYTES: usize = 1 << 20;

/// Storage-routers on the same four back ends and the same registry; a pool is on three of them.
struct World {
    registry: Registry,
    memory: Vec<Arc<MemoryBackend>>,
    clock: Clock,
}

struct Router {
    stop: Stop,
    handler: Rc<Handler>,
    running: Vec<JoinHandle<()>>,
}

fn simulated(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(u128::from(id % 3)),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn content(id: u64) -> Bytes {
    let mut content = vec![0; OBJECT_BYTES];
    Chance::seeded(id).fill(&mut content);
    content.into()
}

fn node(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.parse().unwrap(),
        role: Role::StorageRouter,
        endpoints: vec!["tcp://127.0.0.1:1".to_owned()],
        version: "1".to_owned(),
        pid: 1,
        place: None,
        buffer: None,
    }
}

fn disk(index: usize) -> String {
    format!("disk-{index}")
}

impl World {
    async fn new() -> Self {
        let registry = Registry::memory();
        let record = PoolRecord::proposed(
            "vms".to_owned(),
            Protection::Replicas(2),
            (0..3).map(disk),
            None,
            false,
        );
        let key = keys::pool("vms");
        registry.put_record(&key, None, &record, None).await.unwrap();
        for id in 0..3 {
            let id = VolumeId::from_u128(id);
            let (size, owner) = (VolumeSize::default(), "vr-1".parse().unwrap());
            let volume = VolumeRecord::unowned(id, size, ScoSize::default(), "vms".to_owned(), owner);
            let key = keys::volume(id);
            registry.put_record(&key, None, &volume, None).await.unwrap();
        }
        Self {
            registry,
            memory: (0..4)
                .map(|index| Arc::new(MemoryBackend::new(&disk(index), 1 << 30)))
                .collect(),
            clock: Clock::simulated(1_800_000_000_000_000),
        }
    }

    /// A service as it runs, but for its socket; it stays announced while `stays`.
    async fn start(&self, name: &str, stays: bool) -> Router {
        let checked = self.memory.iter().map(|memory| {
            let checked = Checked::new(memory.clone(), Workers::inline(), Duration::from_secs(30));
            Arc::new(checked)
        });
        let backends = Backends::made(&self.registry, checked);
        let workers = Workers::inline();
        let announced = Announcement::register(&self.registry, &node(name), NODE_TTL)
            .await
            .unwrap();
        let stop = Stop::new();
        let handler = Rc::new(Handler {
            operations: sconce_tracing::metrics::Operations::default(),
            under_way: Rc::default(),
            node: name.parse().unwrap(),
            pools: Pools::new(self.registry.clone(), backends, workers, Cares::default()),
            standing: Standing::new(announced.tenure()),
            cache: None,
            events: Events::new(name.parse().unwrap(), self.clock.clone(), &mut Chance::seeded(1)),
            stop: stop.clone(),
        });
        following::look(&handler).await.unwrap();
        let mut running = Vec::new();
        if stays {
            let kept = announced.keep(stop.clone());
            running.push(tokio::task::spawn_local(async move { kept.await.unwrap() }));
        }
        let following = following::follow(Rc::clone(&handler), self.registry.clone(), stop.clone());
        running.push(tokio::task::spawn_local(following));
        let moving = Moving {
            handler: Rc::clone(&handler),
            registry: self.registry.clone(),
            settings: MoveSettings {
                bytes_per_second: ByteSize::new(4 << 20),
            },
            clock: self.clock.clone(),
            stop: stop.clone(),
        };
        running.push(tokio::task::spawn_local(moving.run()));
        Router {
            stop,
            handler,
            running,
        }
    }

    async fn pool(&self) -> PoolRecord {
        let found = self.registry.get_record(&keys::pool("vms")).await.unwrap();
        found.unwrap().0
    }

    async fn moving(&self) -> Option<MoveRecord> {
        let found = self.registry.get_record(&keys::moving("vms")).await.unwrap();
        found.map(|(record, _)| record)
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn(&World) -> bool) {
        let waited = tokio::time::timeout(LONG, async {
            while !is_so(self).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("waited for {what}"));
    }

    fn on(&self, id: u64) -> Vec<usize> {
        (0..4)
            .filter(|index| self.memory[*index].stored(name(id)).is_some())
            .collect()
    }
}

impl Router {
    async fn ask(&self, request: StorageRequest, data: Bytes) -> Result<Bytes, Refusal> {
        match self.handler.answer(request, data, u32::MAX).await {
            (StorageReply::Refused(refusal), _) => Err(refusal),
            (_, data) => Ok(data),
        }
    }

    async fn put(&self, id: u64) -> Result<Bytes, Refusal> {
        let request = StorageRequest::Put {
            pool: "vms".to_owned(),
            name: name(id),
        };
        self.ask(request, content(id)).await
    }

    async fn get(&self, id: u64) -> Result<Bytes, Refusal> {
        let request = StorageRequest::Get {
            pool: "vms".to_owned(),
            name: name(id),
            offset: 0,
            length: 1 << 20,
            cached: false,
        };
        self.ask(request, Bytes::new()).await
    }

    async fn control(&self, control: StorageControl) -> Result<(), Refusal> {
        self.ask(StorageRequest::Control(control), Bytes::new())
            .await
            .map(drop)
    }

    async fn place(&self, weights: &[(&str, u32)], lost: &[&str]) -> Result<PoolRecord, Refusal> {
        let entry = |(backend, weight): &(&str, u32)| PlacementEntry {
            backend: (*backend).to_owned(),
            weight: *weight,
        };
        let control = StorageControl::PlacePool {
            pool: "vms".to_owned(),
            weights: weights.iter().map(entry).collect(),
            lost: lost.iter().map(ToString::to_string).collect(),
        };
        let answer = self
            .handler
            .answer(StorageRequest::Control(control), Bytes::new(), 1 << 20)
            .await;
        match answer.0 {
            StorageReply::Control(StorageControlReply::Pool(record)) => Ok(record),
            StorageReply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) {
        self.stop.request();
        for running in self.running {
            running.await.unwrap();
        }
    }
}

#[test]
fn a_back_end_joins_and_another_leaves_while_two_serve() {
    simulated(async {
        let world = World::new().await;
        let (one, two) = (world.start("sr-1", true).await, world.start("sr-2", true).await);
        for id in 0..60 {
            one.put(id).await.unwrap();
        }
        let announced = one.place(&[("disk-3", 1)], &[]).await.unwrap();
        assert_eq!(
            announced,
            one.place(&[("disk-3", 1)], &[]).await.unwrap(),
            "the same again"
        );
        let mut next = 60;
        let mut served = async |is_over: fn(&PoolRecord) -> bool| {
            while !is_over(&world.pool().await) {
                let writer = if next % 2 == 0 { &one } else { &two };
                writer.put(next).await.unwrap();
                for id in [next, next / 2, next % 60] {
                    assert_eq!(one.get(id).await.unwrap(), content(id));
                    assert_eq!(two.get(id).await.unwrap(), content(id));
                }
                next += 1;
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            next
        };
        served(|pool| pool.change.is_none()).await;
        two.place(&[("disk-0", 0)], &[]).await.unwrap();
        let objects = served(|pool| pool.change.is_none()).await;

        let names: Vec<String> = world
            .pool()
            .await
            .backends
            .into_iter()
            .map(|entry| entry.backend)
            .collect();
        assert_eq!(names, ["disk-1", "disk-2", "disk-3"]);
        for id in 0..objects {
            let on = world.on(id);
            assert!(on.len() == 2 && !on.contains(&0), "{id} is on {on:?}");
        }
        world
            .until("the end to be recorded", async |world| {
                world
                    .moving()
                    .await
                    .is_some_and(|moving| moving.ended_us.is_some())
            })
            .await;
        let moving = world.moving().await.unwrap();
        assert!(
            moving.moved > 20 && moving.left == 0 && moving.waits_for.is_empty(),
            "{moving:?}"
        );
        world
            .until("nothing to be left of it in the registry", async |world| {
                let known = keys::placements_known("vms");
                let claim = world.registry.get(&keys::mover("vms")).await.unwrap();
                claim.is_none() && world.registry.list(&known, None, 9).await.unwrap().is_empty()
            })
            .await;
        one.stop().await;
        two.stop().await;
    });
}

#[test]
fn nothing_is_placed_anew_before_every_storage_router_knows() {
    simulated(async {
        let world = World::new().await;
        let one = world.start("sr-1", true).await;
        for id in 0..20 {
            one.put(id).await.unwrap();
        }
        // One that is announced and follows nothing, as an older build does.
        let lease = world.registry.lease(LONG).await.unwrap();
        let key = keys::node(&"sr-9".parse().unwrap());
        let old = node("sr-9");
        world
            .registry
            .put_record(&key, None, &old, Some(lease.id()))
            .await
            .unwrap();
        one.place(&[("disk-3", 1)], &[]).await.unwrap();
        world
            .until("it to wait", async |world| {
                world
                    .moving()
                    .await
                    .is_some_and(|moving| moving.waits_for == ["sr-9".parse().unwrap()])
            })
            .await;
        tokio::time::sleep(LONG / 2).await;
        for id in 20..40 {
            one.put(id).await.unwrap();
        }
        assert!((0..40).all(|id| !world.on(id).contains(&3)));
        assert!(
            world
                .pool()
                .await
                .change
                .is_some_and(|change| change.next.is_some())
        );
        lease.revoke().await.unwrap();
        world
            .until("the end", async |world| world.pool().await.change.is_none())
            .await;
        assert!((0..40).any(|id| world.on(id).contains(&3)));
        one.stop().await;
    });
}

#[test]
fn requests_by_an_older_record_are_waited_for() {
    simulated(async {
        let world = World::new().await;
        let one = world.start("sr-1", true).await;
        one.put(1).await.unwrap();
        let under_way = one.handler.pools.find("vms").await.unwrap();
        one.place(&[("disk-3", 1)], &[]).await.unwrap();
        tokio::time::sleep(LONG).await;
        assert!(
            world
                .pool()
                .await
                .change
                .is_some_and(|change| change.next.is_some())
        );
        drop(under_way);
        world
            .until("the end", async |world| world.pool().await.change.is_none())
            .await;
        one.stop().await;
    });
}

#[test]
fn who_is_cut_off_gives_what_it_finds_and_says_nothing_of_what_it_does_not() {
    simulated(async {
        let world = World::new().await;
        // Nobody renews its announcement.
        let cut = world.start("sr-1", false).await;
        cut.put(1).await.unwrap();
        assert_eq!(cut.get(2).await.unwrap_err().code, RefusalCode::NotFound);
        tokio::time::sleep(NODE_TTL + Duration::from_secs(1)).await;
        assert_eq!(cut.get(1).await.unwrap(), content(1));
        let (pool, object) = ("vms".to_owned(), name(1));
        let (volume, kind) = (object.volume(), object.kind());
        let stat = StorageControl::Stat {
            pool: pool.clone(),
            name: name(2),
        };
        let delete = StorageControl::Delete {
            pool: pool.clone(),
            name: object,
        };
        let volumes = StorageControl::ListVolumes {
            pool: pool.clone(),
            after: None,
            limit: 9,
        };
        let list = StorageControl::List {
            pool,
            volume,
            kind,
            after: None,
            limit: 9,
            everywhere: false,
        };
        let mut refusals = vec![cut.put(3).await.unwrap_err(), cut.get(2).await.unwrap_err()];
        for control in [stat, delete, volumes, list] {
            refusals.push(cut.control(control).await.unwrap_err());
        }
        for refusal in refusals {
            assert_eq!(
                (refusal.remedy, refusal.code),
                (Remedy::Retry, RefusalCode::Unavailable),
                "{refusal}"
            );
            assert!(refusal.text.contains("sr-1"), "{refusal}");
        }
        assert_eq!(world.on(1).len(), 2, "nothing was deleted");
        cut.stop().await;
    });
}

#[test]
fn a_mover_that_was_killed_is_succeeded_and_what_cannot_be_is_refused() {
    simulated(async {
        let world = World::new().await;
        let killed = world.start("sr-1", true).await;
        for id in 0..60 {
            killed.put(id).await.unwrap();
        }
        for (weights, lost, what) in [
            (&[("disk-0", 0), ("disk-1", 0)][..], &[][..], "needs 2"),
            (&[("disk-9", 1)], &[], "no back end disk-9"),
            (&[("disk-0", u32::MAX)], &[], "0 to 1000000"),
            (&[], &["disk-0"], "weight 0"),
        ] {
            let refusal = killed.place(weights, lost).await.unwrap_err();
            assert!(refusal.text.contains(what), "{refusal}");
        }
        killed.place(&[("disk-3", 1), ("disk-1", 0)], &[]).await.unwrap();
        world
            .until("something to move", async |world| {
                (0..60).any(|id| world.on(id).contains(&3))
            })
            .await;
        killed.running.iter().for_each(JoinHandle::abort);
        drop(killed);
        let next = world.start("sr-1", true).await;
        world
            .until("the end", async |world| world.pool().await.change.is_none())
            .await;
        for id in 0..60 {
            let on = world.on(id);
            assert!(on.len() == 2 && !on.contains(&1), "{id} is on {on:?}");
            assert_eq!(next.get(id).await.unwrap(), content(id));
        }
        next.stop().await;
    });
}
