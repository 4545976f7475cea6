//! Deleted volumes: whose objects go, whose never do, and who sees to it.

use sconce_registry::{Registry, Revision};
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_schemas::records::{
    CloneRecord, ErasedRecord, InodeKind, InodeRecord, NodeRecord, Origin, ROOT_INODE, Record as _,
    VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::wire::registry::Change;
use sconce_schemas::wire::volume::{ErasureStatus, VolumeControl};
use sconce_schemas::wire::{Role, volume::VolumeControlReply};
use sconce_schemas::{Epoch, ObjectName, ScoId, SnapshotId, VolumeId};

use crate::client::Client;
use crate::cluster::{Cluster, NODE, block_on, until};

const MIB: u64 = 1 << 20;
const GONE: &str = "gone";
const AT_ONCE: &str = "[erase]\ngrace = \"0s\"\nadopt_after = \"1s\"\n";
/// What was adopted stays as it is once all that was there is deleted.
const NEVER_OVER: &str = "[erase]\ngrace = \"1h\"\nadopt_after = \"1s\"\n";

/// Any object of a volume.
fn object(volume: VolumeId, id: u64) -> ObjectName {
    ObjectName::Sco {
        volume,
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn objects(cluster: &Cluster, volume: VolumeId) -> usize {
    let (files, text) = (cluster.files("backend"), volume.to_string());
    let of_volume = |path: &&std::path::PathBuf| path.to_string_lossy().contains(&text);
    files.iter().filter(of_volume).count()
}

/// A world of volumes that no router has served yet.
struct World {
    cluster: Cluster,
    registry: Registry,
    client: Client,
}

impl World {
    async fn new(settings: &str) -> Self {
        let cluster = Cluster::new().with_settings(settings);
        let registry = cluster.registry().await;
        let client = Client::connect(&cluster, VolumeId([0; 16]));
        Self {
            cluster,
            registry,
            client,
        }
    }

    fn map(self, change: impl FnOnce(Cluster) -> Cluster) -> Self {
        Self {
            cluster: change(self.cluster),
            ..self
        }
    }

    /// A volume with 3 objects; its record is then `edit`ed. Gives the record as it is in the registry.
    async fn volume(&self, number: u8, edit: impl FnOnce(&mut VolumeRecord)) -> VolumeRecord {
        let id = self.cluster.create(&self.registry, number, MIB).await;
        for at in 1..=3 {
            self.client.put(object(id, at), vec![number; 5000]).await;
        }
        let mut record = self.cluster.record(&self.registry, id).await;
        edit(&mut record);
        self.put(keys::volume(id), &record).await;
        record
    }

    /// One that was deleted, with `owner` as its owner.
    async fn deleted(&self, number: u8, owner: &str) -> VolumeRecord {
        let record = self
            .volume(number, |record| {
                record.phase = VolumePhase::Deleting;
                record.owner = owner.parse().unwrap();
                record.epoch = Epoch(5);
            })
            .await;
        self.remove(keys::inode(record.inode)).await;
        record
    }

    async fn put<R: sconce_schemas::records::Record>(&self, key: String, record: &R) {
        self.registry.put_record(&key, None, record, None).await.unwrap();
    }

    async fn remove(&self, key: String) {
        let delete = Change::delete(key, None);
        self.registry.commit(vec![delete]).await.unwrap();
    }

    /// Its record and all of its objects are gone.
    async fn erased(&self, volume: VolumeId) {
        until("the record to go", async || {
            let found = self.registry.get(&keys::volume(volume)).await.unwrap();
            found.is_none().then_some(())
        })
        .await;
        assert_eq!(objects(&self.cluster, volume), 0, "objects of {volume}");
    }

    /// Neither its record nor any of its objects was touched.
    async fn is_untouched(&self, record: &VolumeRecord, why: &str) {
        let now = self.cluster.record(&self.registry, record.id).await;
        assert_eq!(&now, record, "{why}");
        assert_eq!(objects(&self.cluster, record.id), 3, "{why}");
    }

    /// How far the erasure of a volume is, once it is where it waits.
    async fn waiting(&self, volume: VolumeId) -> ErasureStatus {
        until("the erasure to wait", async || {
            let erasing = self.client.node().await.erasing;
            let mut waiting = erasing
                .into_iter()
                .filter(|erasure| erasure.state.starts_with("waits"));
            waiting.find(|erasure| erasure.volume == volume)
        })
        .await
    }
}

#[test]
fn a_deletion_whose_owner_is_gone_is_taken_over_and_nothing_that_is_needed_is_touched() {
    block_on(async {
        let mut world = World::new(AT_ONCE).await;
        let to_be_adopted = world.deleted(1, GONE).await;
        let mut kept = Vec::new();

        kept.push((
            "it is not deleted",
            world
                .volume(2, |record| record.owner = GONE.parse().unwrap())
                .await,
        ));

        let living = world.deleted(3, "elsewhere").await;
        let elsewhere = NodeRecord {
            name: living.owner.clone(),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 1,
            place: None,
            buffer: None,
        };
        world.put(keys::node(&living.owner), &elsewhere).await;
        kept.push(("its owner lives", living));

        let named = world.deleted(4, GONE).await;
        let file = InodeRecord {
            kind: InodeKind::File(named.id),
            parent: ROOT_INODE,
            name: "came-back".to_owned(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        };
        world.put(keys::inode(named.inode), &file).await;
        kept.push(("it has a name", named));

        let parent = world.deleted(5, GONE).await;
        let clone = CloneRecord {
            snapshot: SnapshotId(1),
            inode: 7777,
        };
        let of_parent = keys::clone(parent.id, VolumeId([77; 16]));
        world.put(of_parent.clone(), &clone).await;
        kept.push(("it has a clone", parent.clone()));

        let grandparent = world.deleted(6, GONE).await;
        let origin = Origin {
            volume: grandparent.id,
            snapshot: SnapshotId(1),
        };
        kept.push(("a clone's record names it", grandparent));
        kept.push((
            "it is a clone",
            world.volume(7, |record| record.origin = Some(origin)).await,
        ));

        // The last of a look: when it is gone, all others have been judged.
        let last = world.deleted(200, GONE).await;
        world.cluster.start();
        for adopted in [&to_be_adopted, &last] {
            world.erased(adopted.id).await;
        }
        for (why, record) in &kept {
            world.is_untouched(record, why).await;
        }
        let log = world.cluster.log();
        for told in [
            "is a clone of it and needs it",
            "is still there, inode",
            "the record of a clone says that it needs it",
        ] {
            assert!(log.contains(told), "{told:?} is not told:\n{log}");
        }
        // With its last clone the parent goes too.
        world.remove(of_parent).await;
        world.erased(parent.id).await;
    });
}

#[test]
fn nothing_is_taken_over_while_a_record_is_damaged_that_may_be_a_clones() {
    block_on(async {
        let mut world = World::new(AT_ONCE).await;
        let record = world.deleted(1, GONE).await;
        let own = world.deleted(2, NODE).await;
        let damaged = keys::volume(VolumeId([9; 16]));
        let broken = Change::put(damaged.clone(), Some(Revision::ABSENT), vec![0xc1; 10]);
        world.registry.commit(vec![broken]).await.unwrap();
        world.cluster.start();
        until("the refusal to be told", async || {
            let log = world.cluster.log();
            log.contains("and may be that of a clone").then_some(())
        })
        .await;
        world.is_untouched(&record, "a record is damaged").await;
        // What is this node's own never waits for others' records.
        world.erased(own.id).await;
        world.remove(damaged).await;
        world.erased(record.id).await;
    });
}

#[test]
fn what_is_adopted_is_the_next_epochs_and_is_finished_after_a_kill() {
    block_on(async {
        let mut world = World::new(NEVER_OVER).await;
        let before = world.deleted(1, GONE).await;
        world.cluster.start();
        let status = world.waiting(before.id).await;
        assert_eq!(status.deleted, 3);
        assert!(status.state.contains("3600 s"), "{status:?}");
        let adopted = world.cluster.record(&world.registry, before.id).await;
        assert_eq!(
            (adopted.owner.as_str(), adopted.epoch),
            (NODE, before.epoch.next()),
            "so the owner before is refused"
        );
        world.cluster.kill();
        // What an owner had under way at the kill.
        world.client.put(object(before.id, 9), vec![9; 100]).await;
        let mut world = world.map(|cluster| cluster.with_settings(AT_ONCE));
        world.cluster.start();
        world.erased(before.id).await;
    });
}

#[test]
fn an_erasure_that_was_cut_short_anywhere_is_finished_also_one_that_was_adopted() {
    block_on(async {
        for (point, pass) in [
            (Point::DuringErasure, 1),
            (Point::DuringErasure, 3),
            (Point::AfterErasure, 1),
        ] {
            for owner in [NODE, GONE] {
                let world = World::new(AT_ONCE).await;
                let record = world.deleted(1, owner).await;
                let mut world = world.map(|cluster| {
                    let armed = format!("{}:{pass}", point.name());
                    cluster.with_env(CRASH_ENV, &armed)
                });
                world.cluster.start();
                world.cluster.wait_for_end();
                let now = world.cluster.record(&world.registry, record.id).await;
                assert_eq!(
                    now.phase,
                    VolumePhase::Deleting,
                    "{point:?}: the record is the last to go"
                );
                assert_eq!(now.owner.as_str(), NODE, "{point:?}");
                world.cluster.clear_env();
                world.cluster.start();
                world.erased(record.id).await;
            }
        }
    });
}

#[test]
fn a_put_that_was_under_way_at_the_deletion_is_found_before_the_record_goes() {
    block_on(async {
        // Twice: the object that is found begins it anew.
        let mut world = World::new("[erase]\ngrace = \"6s\"\nadopt_after = \"1s\"\n").await;
        let record = world.deleted(1, NODE).await;
        world.cluster.start();
        assert_eq!(world.waiting(record.id).await.deleted, 3);
        world.client.put(object(record.id, 4), vec![4; 100]).await;
        world.erased(record.id).await;
    });
}

#[test]
fn an_erasure_stops_when_the_record_is_anothers_or_the_volume_comes_back() {
    block_on(async {
        let mut world = World::new("[erase]\ngrace = \"10s\"\nadopt_after = \"1s\"\n").await;
        let (anothers, back) = (world.deleted(1, NODE).await, world.deleted(2, NODE).await);
        world.cluster.start();
        for record in [&anothers, &back] {
            world.waiting(record.id).await;
        }
        let elsewhere = NodeRecord {
            name: "elsewhere".parse().unwrap(),
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 1,
            place: None,
            buffer: None,
        };
        world.put(keys::node(&elsewhere.name), &elsewhere).await;
        let anothers = VolumeRecord {
            owner: elsewhere.name,
            epoch: anothers.epoch.next(),
            ..anothers
        };
        // As an older registry has it that was put in place of the newer.
        let back = VolumeRecord {
            phase: VolumePhase::Active,
            owner: "elsewhere".parse().unwrap(),
            ..back
        };
        for record in [&anothers, &back] {
            world.put(keys::volume(record.id), record).await;
        }
        // From here on no look may find what is put, however late it is.
        for record in [&anothers, &back] {
            for at in 1..=3 {
                world.client.put(object(record.id, at), vec![1; 100]).await;
            }
        }
        until("the erasures to end", async || {
            world.client.node().await.erasing.is_empty().then_some(())
        })
        .await;
        world.is_untouched(&anothers, "another node's by now").await;
        world.is_untouched(&back, "it is not deleted any more").await;
    });
}

#[test]
fn whoever_asks_for_a_deletion_that_the_owner_saw_by_itself_is_answered() {
    block_on(async {
        let mut world = World::new(NEVER_OVER).await;
        world.cluster.start();
        for number in 1..=20 {
            let volume = world.cluster.create(&world.registry, number, MIB).await;
            let mut client = Client::open(&world.cluster, volume).await;
            client.write(0, vec![1; 4096]).await;
            let mut record = world.cluster.record(&world.registry, volume).await;
            record.phase = VolumePhase::Deleting;
            world.remove(keys::inode(record.inode)).await;
            world.put(keys::volume(volume), &record).await;
            if number % 2 == 0 {
                // Its actor is gone; otherwise it may be about to go.
                world.waiting(volume).await;
            }
            for _ in 0..2 {
                let asked = client.control(VolumeControl::Delete { volume }).await;
                assert_eq!(asked.unwrap(), VolumeControlReply::Done, "volume {number}");
            }
        }
    });
}

#[test]
fn a_node_that_was_away_gives_up_what_another_erased_and_nothing_else() {
    block_on(async {
        let mut world = World::new(AT_ONCE).await;
        world.cluster.start();
        let (erased, recovered, unknown) = (1, 2, 3);
        let mut records = Vec::new();
        for number in [erased, recovered, unknown] {
            let volume = world.cluster.create(&world.registry, number, MIB).await;
            let mut client = Client::open(&world.cluster, volume).await;
            client.write(0, vec![number; 4096]).await;
            records.push(world.cluster.record(&world.registry, volume).await);
        }
        world.cluster.kill();
        let [erased, recovered, unknown] = &records[..] else {
            panic!("three volumes")
        };
        let note = |buffer: &str, erased_us| ErasedRecord {
            buffer: buffer.to_owned(),
            pool: "default".to_owned(),
            erased_us,
        };
        let ours = erased.buffer.as_deref().unwrap();
        for record in [erased, unknown] {
            world.remove(keys::volume(record.id)).await;
        }
        for record in [erased, recovered] {
            world.put(keys::erased(record.id), &note(ours, u64::MAX)).await;
        }
        let (awaited, lost) = (VolumeId([50; 16]), VolumeId([51; 16]));
        world.put(keys::erased(awaited), &note("another", u64::MAX)).await;
        world.put(keys::erased(lost), &note("another", 1)).await;
        // What it stored although another node had erased the volume by then.
        for record in [erased, unknown] {
            world.client.put(object(record.id, 9), vec![9; 100]).await;
        }
        world.cluster.start();
        let left = until("the notes to be seen to", async || {
            let left = world.registry.list(keys::ERASED, None, 10).await.unwrap();
            (left.len() <= 1).then_some(left)
        })
        .await;
        assert_eq!(left.len(), 1, "another node may come back for its note");
        assert_eq!(left[0].key, keys::erased(awaited));
        assert_eq!(
            ErasedRecord::from_bytes(&left[0].value).unwrap(),
            note("another", u64::MAX)
        );
        assert_eq!(objects(&world.cluster, erased.id), 0);
        assert!(
            objects(&world.cluster, unknown.id) > 0,
            "without a note nothing says that it is nobody's"
        );
        let mut client = Client::open(&world.cluster, recovered.id).await;
        assert_eq!(client.read(0, 4096).await, vec![2; 4096], "its record came back");
        let log = world.cluster.log();
        let told = |volume: VolumeId| {
            let mut lines = log.lines();
            lines.any(|line| line.contains("does not know") && line.contains(&volume.to_string()))
        };
        assert!(told(unknown.id), "nothing says that it is worth nothing");
        assert!(!told(erased.id), "it is worth nothing");
    });
}

#[test]
fn a_write_buffer_that_is_not_the_erasers_is_left_a_note() {
    block_on(async {
        let mut world = World::new(AT_ONCE).await;
        let mut record = world.deleted(1, GONE).await;
        record.buffer = Some("a buffer elsewhere".to_owned());
        world.put(keys::volume(record.id), &record).await;
        world.cluster.start();
        world.erased(record.id).await;
        let key = keys::erased(record.id);
        let (note, _) = world
            .registry
            .get_record::<ErasedRecord>(&key)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(note.buffer, "a buffer elsewhere");
    });
}
