//! The tree over a bus that loses answers to commits: a change whose answer was lost is found out about, never done
//! twice and never told wrongly.

use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{
    Hello, Identity, InProcess, Limits, Network, Protocol, Role, Server, ServerEvent, Version, bind,
};
use sconce_registry::{CommitError, Registry};
use sconce_runtime::{Chance, Clock, Stop};
use sconce_schemas::NodeName;
use sconce_schemas::records::keys;
use sconce_schemas::wire::registry::{Change, RegistryReply, RegistryRequest};
use tokio::task::LocalSet;

use super::competitors::block_on;
use super::model::{Model, step, walk};
use super::{node, pool, put};
use crate::names::Names;

const ENDPOINT: &str = "inproc://registry";
const STEPS: usize = 250;

/// A registry that serves over the bus, and loses the connection instead of answering one commit in `one_in`.
struct Host {
    wires: InProcess,
    registry: Registry,
    chance: Chance,
    one_in: u64,
}

impl Host {
    fn node() -> NodeName {
        "host".parse().unwrap()
    }

    fn client() -> NodeName {
        "test".parse().unwrap()
    }

    async fn serve(mut self, mut server: Server<RegistryRequest, RegistryReply>) {
        loop {
            let ServerEvent::Requests(requests) = server.next().await else {
                continue;
            };
            for request in requests {
                if let Some(reply) = self.answer(request.body).await {
                    request.reply.send(reply, Bytes::new());
                }
            }
        }
    }

    /// `None`: the answer is lost.
    async fn answer(&mut self, request: RegistryRequest) -> Option<RegistryReply> {
        let revision = self.registry.revision().await.unwrap();
        match request {
            RegistryRequest::Get { key } => {
                let entry = self.registry.get(&key).await.unwrap();
                Some(RegistryReply::Entry { entry, revision })
            }
            RegistryRequest::List { prefix, after, limit } => {
                let limit = usize::try_from(limit).unwrap();
                let entries = self
                    .registry
                    .list(&prefix, after.as_deref(), limit)
                    .await
                    .unwrap();
                Some(RegistryReply::Entries {
                    entries,
                    more: false,
                    revision,
                })
            }
            RegistryRequest::Commit { changes } => self.commit(changes).await,
            other => panic!("names do not ask for {other:?}"),
        }
    }

    async fn commit(&mut self, changes: Vec<Change>) -> Option<RegistryReply> {
        let reply = match self.registry.commit(changes).await {
            Ok(revision) => RegistryReply::Committed { revision },
            Err(CommitError::Conflict { key, found }) => RegistryReply::Conflict { key, found },
            Err(other) => panic!("{other}"),
        };
        if self.chance.one_of(1, self.one_in) {
            self.wires.break_connections(&Self::client(), &Self::node());
            return None;
        }
        Some(reply)
    }
}

fn identity() -> Identity {
    Identity {
        node: Host::node(),
        role: Role::StorageRouter,
        protocol: Protocol::Registry,
        limits: Limits::of(Protocol::Registry),
    }
}

fn hello() -> Hello {
    Hello {
        version: Version::CURRENT,
        protocol: Protocol::Registry,
        role: Role::Client,
        node: Host::client(),
    }
}

/// Serves `host` on a thread of its own until the stop.
fn start(network: Network, host: Host, stop: Stop) -> std::thread::JoinHandle<()> {
    let (bound, is_bound) = std::sync::mpsc::channel();
    let hosting = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let server = bind(&network, &ENDPOINT.parse().unwrap(), identity())
                .await
                .unwrap();
            bound.send(()).unwrap();
            tokio::select! {
                () = host.serve(server) => {}
                () = stop.requested() => {}
            }
        });
    });
    is_bound.recv().unwrap();
    hosting
}

/// A registry behind the bus, until it is dropped.
pub(super) struct Remote {
    pub(super) registry: Registry,
    stop: Stop,
    hosting: Option<std::thread::JoinHandle<()>>,
}

impl Remote {
    /// With the pool `default` and one volume-router.
    pub(super) fn new(seed: u64, one_in: u64) -> Self {
        let wires = InProcess::new(11);
        let network = Network::in_process(wires.clone());
        let (registry, stop) = (Registry::memory(), Stop::new());
        block_on(async {
            put(&registry, keys::pool("default"), &pool("default")).await;
            let owner = node("vr-1", Role::VolumeRouter);
            put(&registry, keys::node(&owner.name), &owner).await;
        });
        let host = Host {
            wires,
            registry,
            chance: Chance::seeded(seed),
            one_in,
        };
        let hosting = Some(start(network.clone(), host, stop.clone()));
        let registry = Registry::remote(&network, &ENDPOINT.parse().unwrap(), hello()).unwrap();
        Self {
            registry,
            stop,
            hosting,
        }
    }

    pub(super) fn names(&self, seed: u64) -> Names {
        Names::new(self.registry.clone(), Clock::system(), Chance::seeded(seed))
            .patient(Duration::from_secs(60))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(hosting) = self.hosting.take() {
            let ended = hosting.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the host panicked");
        }
    }
}

#[test]
fn what_is_told_is_true_although_answers_are_lost() {
    let remote = Remote::new(2, 3);
    let names = remote.names(1);
    block_on(async {
        let (mut model, mut chance) = (Model::default(), Chance::seeded(3));
        for _ in 0..STEPS {
            step(&names, &mut model, &mut chance).await;
        }
        assert_eq!(walk(&names).await, model.0);
    });
}
