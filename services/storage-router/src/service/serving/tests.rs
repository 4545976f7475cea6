//! One back end that hangs, and everything else goes on. Time is virtual.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sconce_bus::{
    Caller, ClientEvent, Hello, Identity, InProcess, Limits, Network, Protocol, Role, Version, bind, connect,
};
use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock, Events};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{PlacementEntry, PoolRecord, Protection, keys};
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::wire::Remedy;
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::*;
use crate::backend::{Backend, Pending, Space, StoredRange};
use crate::checked::Checked;
use crate::service::backends::Backends;
use crate::service::keys::Cares;
use crate::service::pools::Pools;
use crate::service::standing::Standing;
use crate::testing::MemoryBackend;
use crate::workers::Workers;

type Client = Caller<StorageRequest, StorageReply>;

const BACKEND_DEADLINE: Duration = Duration::from_secs(30);
const REQUESTS: usize = 8;
/// Requests to one back end.
const UNDER_WAY: usize = REQUESTS / 2;

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(1),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

/// A back end that never answers; it has a permit for each request that reached it.
struct Hangs {
    asked: Arc<Semaphore>,
}

impl Hangs {
    fn never<T: Send + 'static>(&self) -> Pending<'_, T> {
        self.asked.add_permits(1);
        Box::pin(std::future::pending())
    }
}

impl Backend for Hangs {
    fn name(&self) -> &'static str {
        "hangs"
    }

    fn put_new(&self, _: SealedObject) -> Pending<'_, ()> {
        self.never()
    }

    fn replace(&self, _: SealedObject) -> Pending<'_, ()> {
        self.never()
    }

    fn read(&self, _: ObjectName, _: u64, _: u64) -> Pending<'_, StoredRange> {
        self.never()
    }

    fn list(
        &self,
        _: VolumeId,
        _: ObjectKind,
        _: Option<ObjectName>,
        _: usize,
    ) -> Pending<'_, Vec<ObjectName>> {
        self.never()
    }

    fn list_volumes(&self, _: Option<VolumeId>, _: usize) -> Pending<'_, Vec<VolumeId>> {
        self.never()
    }

    fn delete(&self, _: ObjectName) -> Pending<'_, ()> {
        self.never()
    }

    fn space(&self) -> Pending<'_, Space> {
        self.never()
    }
}

/// Two pools, each on a back end of its own: `hangs`, which never answers, and `works`.
async fn handler(registry: &Registry, asked: &Arc<Semaphore>) -> Handler {
    let asked = Arc::clone(asked);
    let pairs: [(&str, Arc<dyn Backend>); 2] = [
        ("hangs", Arc::new(Hangs { asked })),
        ("works", Arc::new(MemoryBackend::new("works", 1 << 30))),
    ];
    let mut backends = Vec::new();
    for (name, backend) in pairs {
        let checked = Checked::new(backend, Workers::inline(), BACKEND_DEADLINE).at_most(UNDER_WAY, 1 << 20);
        backends.push(Arc::new(checked));
        let record = PoolRecord {
            name: name.to_owned(),
            protection: Protection::Replicas(1),
            backends: vec![PlacementEntry {
                backend: name.to_owned(),
                weight: 1,
            }],
            placement_version: 1,
            compression: None,
            encrypted: false,
            keys: Vec::new(),
            change: None,
        };
        registry
            .put_record(&keys::pool(name), None, &record, None)
            .await
            .unwrap();
    }
    let backends = Backends::made(registry, backends);
    Handler {
        node: "sr-1".parse().unwrap(),
        pools: Pools::new(registry.clone(), backends, Workers::inline(), Cares::default()),
        standing: Standing::alone(),
        cache: None,
        events: Events::new("sr-1".parse().unwrap(), Clock::system(), &mut Chance::seeded(1)),
        stop: Stop::new(),
        operations: Default::default(),
        under_way: Rc::default(),
    }
}

async fn server(network: &Network) -> Server<StorageRequest, StorageReply> {
    let identity = Identity {
        node: "sr-1".parse().unwrap(),
        role: Role::StorageRouter,
        protocol: Protocol::Storage,
        limits: Limits::of(Protocol::Storage),
    };
    bind(network, &"inproc://sr-1".parse().unwrap(), identity)
        .await
        .unwrap()
}

fn hello(node: &str) -> Hello {
    Hello {
        version: Version::CURRENT,
        protocol: Protocol::Storage,
        role: Role::Client,
        node: node.parse().unwrap(),
    }
}

fn client(network: &Network, node: &str) -> Client {
    Caller::new(network, &"inproc://sr-1".parse().unwrap(), hello(node))
}

async fn greeted(network: &Network, node: &str) {
    let endpoint = "inproc://sr-1".parse().unwrap();
    let (_sender, mut events) = connect::<StorageRequest, StorageReply>(network, &endpoint, hello(node));
    while !matches!(events.next().await, ClientEvent::Up(_)) {}
}

async fn put(client: &Client, pool: &str, id: u64, within: Duration) -> StorageReply {
    let request = StorageRequest::Put {
        pool: pool.to_owned(),
        name: name(id),
    };
    let data = Bytes::from(vec![7; 5000]);
    client
        .call(&request, data, 0, within)
        .await
        .expect("it is answered")
        .0
}

#[tokio::test(start_paused = true)]
async fn one_back_end_hangs_and_the_other_and_the_greeting_still_answer() {
    LocalSet::new().run_until(test()).await;

    async fn test() {
        let network = Network::in_process(InProcess::new(1));
        let registry = Registry::memory();
        let asked = Arc::new(Semaphore::new(0));
        let handler = Rc::new(handler(&registry, &asked).await);
        let limits = LimitSettings {
            requests: REQUESTS,
            ..LimitSettings::default()
        };
        let stop = Stop::new();
        let serving = tokio::task::spawn_local(serve(server(&network).await, handler, limits, stop.clone()));

        let flood = client(&network, "flood");
        let held = tokio::task::spawn_local(async move {
            let puts = (0..40).map(|id| put(&flood, "hangs", id, Duration::from_secs(60)));
            join_all(puts).await
        });
        // The flood has taken what it gets.
        let of_flood = u32::try_from(UNDER_WAY).unwrap();
        asked.acquire_many(of_flood).await.unwrap().forget();

        let start = Instant::now();
        greeted(&network, "greeted").await;
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "deaf for {:?}",
            start.elapsed()
        );
        let late = client(&network, "late");
        for id in 0..100 {
            assert_eq!(
                put(&late, "works", id, Duration::from_secs(5)).await,
                StorageReply::Done
            );
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(4),
            "held up for {took:?} by another back end"
        );

        for reply in held.await.unwrap() {
            let StorageReply::Refused(refusal) = reply else {
                panic!("stored on a back end that hangs: {reply:?}")
            };
            assert!(
                refusal.remedy == Remedy::Retry && refusal.text.contains("hangs"),
                "{refusal}"
            );
        }
        assert!(
            start.elapsed() < BACKEND_DEADLINE + Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        stop.request();
        serving.await.unwrap();
    }
}
