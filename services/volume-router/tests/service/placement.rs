//! What a volume-router puts elsewhere by itself: twins out of its failure domain or to where they are wanted, volumes to who has fewer and to
//! where their IO comes from. All the while somebody writes, who knows what was acknowledged.

use sconce_schemas::VolumeId;
use sconce_schemas::records::{DtlMode, DtlState, MoveWhy, NodeRecord, Place, TwinHost, VolumeRecord, keys};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::event::{EventsAsk, What};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply};

use crate::client::Client;
use crate::cluster::{Cluster, NODE, block_on, until};
use crate::peer::Peer;
use crate::scene::{PATIENT, Scene};

/// Looks often, and takes what it sees for lasting soon.
const QUICK: &str = "[placement]\nevery = \"100ms\"\nstable = \"300ms\"\nsettle = \"300ms\"\n";

/// The same, and nobody is given up who lives.
fn quick() -> String {
    format!("{PATIENT}{QUICK}")
}

async fn scene(domain: &str, settings: &str, seed: u64) -> Scene {
    Scene::of(Cluster::new().in_domain(domain).with_settings(settings), seed).await
}

impl Scene {
    /// Writes until the record is as it should be.
    async fn until_record(&mut self, what: &str, is_so: impl Fn(&VolumeRecord) -> bool) -> VolumeRecord {
        let end = std::time::Instant::now() + crate::cluster::LONG;
        loop {
            let record = self.record().await;
            if is_so(&record) {
                return record;
            }
            assert!(
                std::time::Instant::now() < end,
                "{what} did not come about: {record:?}"
            );
            self.change(5).await;
        }
    }

    async fn twin_is_at(&mut self, host: &str) {
        self.until_record(&format!("a twin at {host}"), |record| {
            record.twin().is_some_and(|twin| twin.as_str() == host)
        })
        .await;
    }

    async fn edit(&self, volume: VolumeId, edit: impl Fn(&mut VolumeRecord)) {
        until("the record to be changed", async || {
            let key = keys::volume(volume);
            let (mut record, revision) = self.registry.get_record::<VolumeRecord>(&key).await.ok()??;
            edit(&mut record);
            self.registry
                .put_record(&key, Some(revision), &record, None)
                .await
                .ok()
        })
        .await;
    }

    async fn wish(&self, node: &str, only: bool) {
        let host = TwinHost {
            node: node.parse().unwrap(),
            only,
        };
        self.edit(self.client.volume, |record| record.twin_host = Some(host.clone()))
            .await;
    }

    /// What was told of the volume by the node that the client talks to.
    async fn told(&self) -> Vec<What> {
        let told = self
            .client
            .control(VolumeControl::Events(EventsAsk::default()))
            .await;
        let VolumeControlReply::Events(page) = told.unwrap() else {
            panic!("it is no page of events");
        };
        let volume = self.client.volume;
        let of_it = page.events.into_iter();
        let of_it = of_it.filter(|event| event.volume.as_ref().is_some_and(|named| named.id == volume));
        of_it.map(|event| event.what).collect()
    }
}

#[test]
fn a_twin_leaves_its_owners_failure_domain_once_it_can() {
    block_on(async {
        let mut scene = scene("one", &quick(), 71).await;
        let _near = Peer::start_in(&scene.cluster, "one", "a-near", PATIENT).await;
        scene.set(DtlMode::Sync).await;
        scene.twin_is_at("a-near").await;
        until("word that one loss takes both", async || {
            let told = scene.told().await;
            let is_it = |what: &What| {
                matches!(what, What::TwinSharesDomain { host, domain } if host.as_str() == "a-near" && domain == "one")
            };
            told.iter().any(is_it).then_some(())
        })
        .await;

        let mut far = Peer::start_in(&scene.cluster, "two", "far", PATIENT).await;
        scene.twin_is_at("far").await;
        // And is not asked first any more where another domain has somebody.
        let _other = Peer::start_in(&scene.cluster, "three", "z-other", PATIENT).await;
        far.kill();
        scene.is_gone(far.name).await;
        scene.twin_is_at("z-other").await;
        scene.model.check(&mut scene.client).await;
    });
}

#[test]
fn a_twin_is_where_an_operator_wants_it_whenever_that_can_be() {
    block_on(async {
        let mut scene = scene("one", &quick(), 72).await;
        let _first = Peer::start(&scene.cluster, "first", PATIENT).await;
        scene.set(DtlMode::Sync).await;
        scene.twin_is_at("first").await;
        let mut wanted = Peer::start(&scene.cluster, "wanted", PATIENT).await;
        scene.wish("wanted", false).await;
        scene.twin_is_at("wanted").await;
        // It is elsewhere meanwhile, and goes back.
        wanted.kill();
        scene.is_gone(wanted.name).await;
        scene.twin_is_at("first").await;
        let mut wanted = Peer::start(&scene.cluster, "wanted", PATIENT).await;
        scene.twin_is_at("wanted").await;

        // Nowhere else: there is none meanwhile, and whoever asks is told why.
        scene.wish("wanted", true).await;
        until("the owner to know", async || {
            let told = scene.told().await;
            told.iter()
                .any(|what| matches!(what, What::TwinHostSet { only: true, .. }))
                .then_some(())
        })
        .await;
        wanted.kill();
        scene.is_gone(wanted.name).await;
        until("a volume without its twin, and why", async || {
            let status = scene.client.show().await;
            let trouble = status.dtl_trouble.unwrap_or_default();
            let is_told = trouble.contains("wanted: it is no volume-router that runs and is not drained");
            (status.dtl_state == DtlState::Degraded && is_told).then_some(())
        })
        .await;
        scene.change(20).await;
        assert_eq!(scene.record().await.twin(), None);
        let _wanted = Peer::start(&scene.cluster, "wanted", PATIENT).await;
        scene.twin_is_at("wanted").await;
        scene.model.check(&mut scene.client).await;
    });
}

#[test]
fn a_volume_goes_to_where_its_io_comes_from_unless_it_is_pinned() {
    block_on(async {
        let follow = "follow_io = true\nrebalance = false\nwindow = \"1s\"\nio_min = \"16 KiB\"\n";
        let mut scene = scene("here", &format!("{QUICK}{follow}"), 73).await;
        let client = NodeRecord {
            name: "fs-there".parse().unwrap(),
            role: Role::FsRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 1,
            place: Some(Place {
                host: "there".parse().unwrap(),
                failure_domain: "there".parse().unwrap(),
            }),
            buffer: None,
        };
        scene
            .registry
            .put_record(&keys::node(&client.name), None, &client, None)
            .await
            .unwrap();
        let _peer = Peer::start_in(&scene.cluster, "there", "vr-there", "").await;
        // One that would go first, having more IO, and must not.
        let pinned = scene.cluster.create(&scene.registry, 2, 8 << 20).await;
        scene.edit(pinned, |record| record.pinned = true).await;
        let mut other = Client::open(&scene.cluster, pinned).await;
        other.go_to_as(&scene.cluster, NODE, "fs-there").await;
        scene.client.go_to_as(&scene.cluster, NODE, "fs-there").await;
        let record = loop {
            other.write(0, vec![1; 1 << 20]).await;
            let record = scene.record().await;
            // While it is moved, and after that, whoever writes to it here is held or sent away.
            if record.moving.is_some() || record.owner.as_str() != NODE {
                break record;
            }
            scene.change(2).await;
        };
        assert_eq!(
            record.moving.map_or(MoveWhy::Io, |moving| moving.why),
            MoveWhy::Io
        );
        let told = scene.told().await;
        let follows = |what: &What| matches!(what, What::FollowsIo { to, from, percent: 100, .. } if to.as_str() == "vr-there" && from == "there");
        assert!(told.iter().any(follows), "{told:?}");
        until("the next owner", async || {
            let last = scene.record().await.last_move?;
            ((last.from.as_str(), last.to.as_str(), last.why) == (NODE, "vr-there", MoveWhy::Io))
                .then_some(())
        })
        .await;
        scene
            .client
            .go_to_as(&scene.cluster, "vr-there", "fs-there")
            .await;
        scene.model.check(&mut scene.client).await;
        other.write(0, vec![2; 4096]).await;
        let record = scene.cluster.record(&scene.registry, pinned).await;
        assert_eq!((record.owner.as_str(), record.last_move), (NODE, None));
    });
}

#[test]
fn a_node_that_joins_is_given_its_share() {
    block_on(async {
        let mut scene = scene("here", QUICK, 74).await;
        scene.change(40).await;
        let mut volumes = vec![scene.client.volume];
        for number in 2..8 {
            volumes.push(scene.cluster.create(&scene.registry, number, 1 << 20).await);
        }
        for volume in &volumes[1..] {
            drop(Client::open(&scene.cluster, *volume).await);
        }
        // The least busy go: not the one that is written to.
        let _peer = Peer::start(&scene.cluster, "joined", QUICK).await;
        let end = std::time::Instant::now() + crate::cluster::LONG;
        loop {
            scene.change(5).await;
            let mut given = 0;
            for volume in &volumes {
                let record = scene.cluster.record(&scene.registry, *volume).await;
                let is_there = record.owner.as_str() == "joined" && record.moving.is_none();
                given += usize::from(is_there);
                let why = record.last_move.map(|last| last.why);
                assert!(!is_there || why == Some(MoveWhy::Balance), "{why:?}");
            }
            // Four stay and three go.
            match given {
                3 => break,
                _ => assert!(
                    std::time::Instant::now() < end,
                    "it has {given} of {}",
                    volumes.len()
                ),
            }
        }
        assert_eq!(scene.record().await.owner.as_str(), NODE);
        scene.model.check(&mut scene.client).await;
    });
}
