//! Write access: one front end at a time, handed over, broken, outlived by no write of the one before.

use bytes::Bytes;
use sconce_bus::CallError;
use sconce_registry::Registry;
use sconce_schemas::access::{Access, AccessAsk, AccessChange, AccessMode, AccessReply};
use sconce_schemas::records::{NodeRecord, Record as _, keys};
use sconce_schemas::wire::event::{EventsAsk, What};
use sconce_schemas::wire::registry::Change;
use sconce_schemas::wire::volume::{IoCode, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy, Role};
use sconce_schemas::{NodeName, SessionId, VolumeId};

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, LONG, NODE, block_on, until};
use crate::peer::Peer;
use crate::scene::PATIENT;

const SIZE: u64 = 8 << 20;
const CLUSTER: usize = 4096;

/// A volume, and the registry that says who may write it.
struct Pool {
    cluster: Cluster,
    registry: Registry,
    volume: VolumeId,
}

impl Pool {
    async fn begin() -> Self {
        // Its owner serves it for so long as the registry is away.
        let mut cluster = Cluster::new().with_settings(PATIENT);
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, SIZE).await;
        let pool = Self {
            cluster,
            registry,
            volume,
        };
        pool.announce("hv-1").await;
        pool.announce("hv-2").await;
        pool
    }

    /// A front end's node is in the registry.
    async fn announce(&self, name: &str) {
        let record = NodeRecord {
            name: node(name),
            role: Role::FsRouter,
            endpoints: Vec::new(),
            version: "0.1.0".to_owned(),
            pid: 1,
            place: None,
            buffer: None,
        };
        let put = Change::put(keys::node(&record.name), None, record.to_bytes());
        self.registry.commit(vec![put]).await.unwrap();
    }

    /// Its lease is over.
    async fn gone(&self, name: &str) {
        let delete = Change::delete(keys::node(&node(name)), None);
        self.registry.commit(vec![delete]).await.unwrap();
    }

    async fn access(&self) -> Access {
        self.cluster.record(&self.registry, self.volume).await.access
    }

    async fn is_held_by(&self, name: &str) {
        let access = self.access().await;
        let held = access.held_by().map(|held| held.node.as_str());
        assert_eq!(held, Some(name), "{access:?}");
    }

    /// A front end that has opened the volume and has not written yet.
    async fn front_end(&self, name: &str, incarnation: u64) -> Client {
        let mut client = Client::connect(&self.cluster, self.volume);
        client.ask = Some(AccessAsk {
            node: node(name),
            incarnation,
            take: false,
            held: None,
        });
        client.reopen().await.unwrap();
        client
    }

    async fn set(&self, client: &Client, change: AccessChange) {
        let volume = self.volume;
        let set = async || {
            client
                .control(VolumeControl::SetAccess { volume, change })
                .await
                .ok()
        };
        assert_eq!(until("the change", set).await, VolumeControlReply::Done);
    }

    /// What was told of write access.
    async fn told(&self, client: &Client) -> Vec<&'static str> {
        let asked = client.control(VolumeControl::Events(EventsAsk::default()));
        let VolumeControlReply::Events(page) = asked.await.unwrap() else {
            panic!("no events");
        };
        let names = page.events.iter().map(|event| event.what.name());
        names.filter(|name| name.starts_with("access")).collect()
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// Writes as the routing core does: access is asked for first, and again where a handle is not good for writing any more.
async fn try_write(client: &mut Client, offset: u64, data: Bytes) -> Result<(), Refusal> {
    if let Some(ask) = &mut client.ask
        && !std::mem::replace(&mut ask.take, true)
    {
        client.reopen().await?;
    }
    let mut request = client.request(IoCode::Write, 0, offset, data.len() as u64);
    let end = std::time::Instant::now() + LONG;
    loop {
        assert!(std::time::Instant::now() < end, "a write is never answered");
        match &client.access {
            Some(AccessReply::Refused(refusal)) if refusal.remedy == Remedy::Reject => {
                let refusal = refusal.clone();
                client.ask.as_mut().unwrap().take = false;
                return Err(refusal);
            }
            Some(AccessReply::Refused(_)) => {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                client.reopen().await?;
                continue;
            }
            _ => {}
        }
        request.handle = client.handle;
        match client.attempt(request, data.clone(), LONG).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(refusal)) if refusal.remedy == Remedy::Reject => return Err(refusal),
            Ok(Err(refusal)) if refusal.remedy == Remedy::Retry => {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            Ok(Err(_)) | Err(CallError::Lost) => client.reopen().await?,
            Err(error) => panic!("{error}"),
        }
    }
}

fn filled(byte: u8) -> Bytes {
    vec![byte; CLUSTER].into()
}

async fn writes(client: &mut Client, byte: u8) {
    try_write(client, 0, filled(byte)).await.unwrap();
}

async fn is_refused(client: &mut Client) -> String {
    let refused = try_write(client, 0, filled(0xee)).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.remedy),
        (RefusalCode::NoAccess, Remedy::Reject)
    );
    refused.text
}

async fn holds(client: &mut Client, byte: u8) {
    assert!(
        client.read(0, CLUSTER).await == filled(byte),
        "what was written last is there"
    );
}

#[test]
fn who_writes_first_has_access_until_it_is_done() {
    block_on(async {
        let pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        assert!(pool.access().await.is_default(), "reads need nothing");
        holds(&mut two, 0).await;
        writes(&mut one, 1).await;
        pool.is_held_by("hv-1").await;
        let taken = pool.access().await;
        let text = is_refused(&mut two).await;
        for part in [
            "/disk-1",
            "hv-1 since 20",
            "let hv-2 go on",
            "sconce volume access /disk-1 --hand-over",
            "--break",
        ] {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
        is_refused(&mut two).await;
        holds(&mut two, 1).await;
        // Another session of the same node costs no change of the record, nor does another write.
        let mut same = pool.front_end("hv-1", 5).await;
        writes(&mut same, 2).await;
        writes(&mut one, 3).await;
        assert_eq!(pool.access().await, taken);
        assert_eq!(pool.told(&two).await, ["access_taken", "access_refused"]);

        for client in [&one, &same] {
            let handle = client.handle;
            client.control(VolumeControl::Close { handle }).await.unwrap();
        }
        until("access to be given up", async || {
            pool.access().await.held_by().is_none().then_some(())
        })
        .await;
        assert_eq!(pool.access().await.generation, 1);
        writes(&mut two, 4).await;
        pool.is_held_by("hv-2").await;
        assert_eq!(pool.access().await.generation, 2);
        // A session that had access and did not say that it is done with it.
        holds(&mut two, 4).await;
    });
}

#[test]
fn access_is_handed_over_between_two_that_write_and_nothing_of_the_first_comes_after_it() {
    block_on(async {
        let pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        let five_minutes = AccessChange::HandOver {
            within_us: 300_000_000,
        };
        // Over and refused meanwhile is neither.
        pool.set(&two, AccessChange::HandOver { within_us: 0 }).await;
        is_refused(&mut two).await;
        let former = async {
            let mut written = 0_u64;
            loop {
                // The whole of it, and in part: that waits in the engine for what was there.
                let (offset, length) = if written.is_multiple_of(2) {
                    (0, CLUSTER)
                } else {
                    (512, 512)
                };
                if let Err(refusal) = try_write(&mut one, offset, bytes(written, length)).await {
                    return (written, refusal);
                }
                written += 1;
            }
        };
        let next = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            pool.set(&two, five_minutes).await;
            writes(&mut two, 2).await;
            for _ in 0..200 {
                holds(&mut two, 2).await;
            }
        };
        let ((written, refusal), ()) = tokio::join!(former, next);
        assert!(written > 0, "it wrote until then");
        assert_eq!(refusal.code, RefusalCode::NoAccess);
        assert!(refusal.text.contains("was taken from hv-1"), "{refusal}");
        holds(&mut two, 2).await;
        pool.is_held_by("hv-2").await;
        // Once: the first one does not get it back by that, whoever opens the volume there.
        is_refused(&mut one).await;
        is_refused(&mut pool.front_end("hv-1", 5).await).await;
        let told = pool.told(&two).await;
        for name in ["access_offered", "access_taken", "access_refused"] {
            assert!(told.contains(&name), "{told:?}");
        }
    });
}

#[test]
fn a_front_end_whose_node_is_gone_loses_access_to_the_next_that_writes() {
    block_on(async {
        let pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        is_refused(&mut two).await;
        pool.gone("hv-1").await;
        // It is cut off from the registry alone, and still writes.
        writes(&mut one, 2).await;
        until("hv-2 to have access", async || {
            try_write(&mut two, 0, filled(3)).await.ok()
        })
        .await;
        assert!(is_refused(&mut one).await.contains("was taken from hv-1"));
        pool.announce("hv-1").await;
        is_refused(&mut one).await;
        holds(&mut one, 3).await;
    });
}

#[test]
fn a_command_that_is_connected_is_there_and_one_that_ended_is_not() {
    block_on(async {
        let pool = Pool::begin().await;
        let mut command = pool.front_end("sconce-77-abc", 0).await;
        let mut two = pool.front_end("hv-2", 6).await;
        writes(&mut command, 1).await;
        is_refused(&mut two).await;
        drop(command);
        until("hv-2 to have access", async || {
            try_write(&mut two, 0, filled(2)).await.ok()
        })
        .await;
    });
}

#[test]
fn access_that_is_broken_is_over_at_once_and_for_good() {
    block_on(async {
        let mut pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        pool.set(&two, AccessChange::Break).await;
        is_refused(&mut one).await;
        assert_eq!(pool.access().await.held_by(), None);
        writes(&mut two, 2).await;
        let handle = two.handle;
        two.control(VolumeControl::Close { handle }).await.unwrap();
        until("access to be given up", async || {
            pool.access().await.held_by().is_none().then_some(())
        })
        .await;
        // Nobody has it, and still not: what it would write belongs to before.
        is_refused(&mut one).await;
        pool.cluster.kill();
        pool.cluster.start();
        is_refused(&mut one).await;
        // Who opens the volume anew there may.
        writes(&mut pool.front_end("hv-1", 5).await, 3).await;
        is_refused(&mut one).await;
        holds(&mut one, 3).await;
    });
}

#[test]
fn another_owner_knows_who_has_access_and_who_lost_it() {
    block_on(async {
        let mut pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        pool.set(
            &two,
            AccessChange::HandOver {
                within_us: 300_000_000,
            },
        )
        .await;
        writes(&mut two, 2).await;
        let before = pool.access().await;
        pool.cluster.kill();
        pool.cluster.start();
        is_refused(&mut one).await;
        writes(&mut two, 3).await;
        assert_eq!(
            pool.access().await,
            before,
            "the same node goes on without a word to the registry"
        );

        let _peer = Peer::start(&pool.cluster, "there", PATIENT).await;
        let (volume, to) = (pool.volume, node("there"));
        two.control(VolumeControl::Move { volume, to }).await.unwrap();
        one.go_to(&pool.cluster, "there").await;
        is_refused(&mut one).await;
        two.go_to(&pool.cluster, "there").await;
        writes(&mut two, 4).await;
        is_refused(&mut one).await;
        holds(&mut one, 4).await;
        assert_eq!(pool.access().await, before);
        let record = pool.cluster.record(&pool.registry, volume).await;
        assert_eq!(record.owner.as_str(), "there");
    });
}

#[test]
fn a_later_process_of_a_node_goes_on_at_once_and_what_the_earlier_one_sent_is_refused() {
    block_on(async {
        let mut pool = Pool::begin().await;
        let mut earlier = pool.front_end("hv-1", 5).await;
        writes(&mut earlier, 1).await;
        // It needs no registry for that.
        pool.cluster.stop_registry();
        let mut later = pool.front_end("hv-1", 6).await;
        writes(&mut later, 2).await;
        assert!(is_refused(&mut earlier).await.contains("a later process of hv-1"));
        is_refused(&mut pool.front_end("hv-1", 5).await).await;
        holds(&mut later, 2).await;
        pool.cluster.start_registry();
    });
}

#[test]
fn without_the_registry_the_holder_goes_on_and_another_waits() {
    block_on(async {
        let mut pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        let handle = one.handle;
        let asked = one.control(VolumeControl::Close { handle });
        asked.await.unwrap();
        until("access to be given up", async || {
            pool.access().await.held_by().is_none().then_some(())
        })
        .await;
        let mut one = pool.front_end("hv-1", 5).await;
        writes(&mut one, 2).await;
        pool.cluster.stop_registry();
        writes(&mut one, 3).await;
        let asked = try_write(&mut two, 0, filled(9));
        let a_while = std::time::Duration::from_millis(400);
        assert!(tokio::time::timeout(a_while, asked).await.is_err(), "it waits");
        writes(&mut one, 4).await;
        holds(&mut one, 4).await;
        pool.cluster.start_registry();
        pool.gone("hv-1").await;
        until("hv-2 to have access", async || {
            try_write(&mut two, 0, filled(5)).await.ok()
        })
        .await;
    });
}

#[test]
fn any_front_end_writes_a_shared_volume_and_one_that_is_exclusive_again_is_the_firsts() {
    block_on(async {
        let pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        let mode = |mode| AccessChange::Mode { mode };
        pool.set(&one, mode(AccessMode::Shared)).await;
        writes(&mut two, 2).await;
        writes(&mut one, 3).await;
        // What an earlier process had sent is worth nothing here either.
        let mut later = pool.front_end("hv-1", 7).await;
        writes(&mut later, 4).await;
        is_refused(&mut one).await;
        pool.set(&two, mode(AccessMode::Exclusive)).await;
        writes(&mut two, 5).await;
        is_refused(&mut later).await;
        pool.is_held_by("hv-2").await;
        let told = pool.told(&two).await;
        let modes = told.iter().filter(|name| **name == "access_mode").count();
        assert_eq!(modes, 2, "{told:?}");
    });
}

#[test]
fn a_build_that_knows_no_access_writes_while_nobody_has_it() {
    block_on(async {
        let pool = Pool::begin().await;
        let mut old = Client::open(&pool.cluster, pool.volume).await;
        old.write(0, filled(1)).await;
        let mut one = pool.front_end("hv-1", 5).await;
        writes(&mut one, 2).await;
        let refused = try_write(&mut old, 0, filled(3)).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::NoAccess);
        holds(&mut old, 2).await;
        // A person may make the volume larger all the same.
        let mut larger = old.request(
            IoCode::Resize,
            sconce_schemas::wire::volume::IoFlags::OPERATOR,
            2 * SIZE,
            0,
        );
        larger.length = 0;
        old.io(larger, Bytes::new()).await.unwrap();
        let told = old
            .control(VolumeControl::Events(EventsAsk::default()))
            .await
            .unwrap();
        let VolumeControlReply::Events(page) = told else {
            panic!("{told:?}");
        };
        let taken = page
            .events
            .iter()
            .any(|event| matches!(&event.what, What::AccessTaken { node, .. } if node.as_str() == "hv-1"));
        assert!(taken && page.node.as_str() == NODE);
    });
}

#[test]
fn however_often_a_session_is_opened_again_it_has_one_handle_and_one_slot() {
    block_on(async {
        let pool = Pool::begin().await;
        let mut one = pool.front_end("hv-1", 5).await;
        writes(&mut one, 1).await;
        // More sessions of one connection than a volume has slots, each of which asks to write after it was opened.
        let mut many = pool.front_end("hv-1", 5).await;
        for number in 0..1100 {
            many.session = SessionId((1 << 40) + number);
            for take in [false, true, true] {
                many.ask.as_mut().unwrap().take = take;
                let before = many.handle;
                many.reopen().await.unwrap();
                assert!(!take || many.handle == before, "{number}");
            }
            let handle = many.handle;
            many.control(VolumeControl::Close { handle }).await.unwrap();
        }
        // One that is refused, as well.
        let mut two = pool.front_end("hv-2", 6).await;
        let handle = two.handle;
        for _ in 0..3 {
            is_refused(&mut two).await;
            assert_eq!(two.handle, handle);
        }
        holds(&mut two, 1).await;
        // A handle that was opened again is closed once, and that gives access up.
        let handle = one.handle;
        one.control(VolumeControl::Close { handle }).await.unwrap();
        until("access to be given up", async || {
            pool.access().await.held_by().is_none().then_some(())
        })
        .await;
    });
}

#[test]
fn access_that_was_given_up_without_the_registry_is_free_when_that_is_back() {
    block_on(async {
        let mut pool = Pool::begin().await;
        let (mut one, mut two) = (pool.front_end("hv-1", 5).await, pool.front_end("hv-2", 6).await);
        writes(&mut one, 1).await;
        pool.cluster.stop_registry();
        let handle = one.handle;
        one.control(VolumeControl::Close { handle }).await.unwrap();
        pool.cluster.start_registry();
        until("access to be given up", async || {
            pool.access().await.held_by().is_none().then_some(())
        })
        .await;
        writes(&mut two, 2).await;
        pool.is_held_by("hv-2").await;
    });
}
