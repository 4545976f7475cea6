//! Snapshots: what was there when one was taken stays readable, whatever happens to the volume and its router.

use bytes::Bytes;
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{IoCode, SnapshotStatus, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on, until};
use crate::restart::is_of_the_volume_router;

const MIB: u64 = 1 << 20;
/// No manifest is stored unless a test asks for it.
const NO_CHECKPOINTS: &str = "[volumes]\ncheckpoint_idle = \"2h\"\ncheckpoint_age = \"2h\"\n";

/// Asks until there is an answer that stays.
pub(crate) async fn ask(client: &Client, control: VolumeControl) -> Result<VolumeControlReply, Refusal> {
    until("an answer", async || {
        match client.control(control.clone()).await {
            Err(refusal) if matches!(refusal.remedy, Remedy::Retry | Remedy::Reroute) => None,
            answered => Some(answered),
        }
    })
    .await
}

pub(crate) async fn take(client: &Client, id: u64, name: &str) -> Result<(), Refusal> {
    let take = VolumeControl::TakeSnapshot {
        volume: client.volume,
        id: SnapshotId(id),
        name: name.to_owned(),
        metadata: [("why".to_owned(), name.to_owned())].into(),
    };
    ask(client, take).await.map(drop)
}

pub(crate) async fn remove(client: &Client, name: &str) -> Result<(), Refusal> {
    let remove = VolumeControl::RemoveSnapshot {
        volume: client.volume,
        name: name.to_owned(),
        id: None,
    };
    ask(client, remove).await.map(drop)
}

async fn remove_exactly(client: &Client, name: &str, id: u64) -> Result<(), Refusal> {
    let remove = VolumeControl::RemoveSnapshot {
        volume: client.volume,
        name: name.to_owned(),
        id: Some(SnapshotId(id)),
    };
    ask(client, remove).await.map(drop)
}

pub(crate) async fn roll_back(client: &Client, to: &str, id: u64, keep: Option<&str>) -> Result<(), Refusal> {
    let roll_back = VolumeControl::RollBack {
        volume: client.volume,
        to: to.to_owned(),
        id: SnapshotId(id),
        keep: keep.map(str::to_owned),
    };
    ask(client, roll_back).await.map(drop)
}

async fn set_read_only(client: &Client, read_only: bool) {
    let volume = client.volume;
    let set = VolumeControl::SetReadOnly { volume, read_only };
    ask(client, set).await.unwrap();
}

pub(crate) async fn list(client: &Client) -> Vec<SnapshotStatus> {
    let volume = client.volume;
    match ask(client, VolumeControl::ListSnapshots { volume })
        .await
        .unwrap()
    {
        VolumeControlReply::Snapshots { snapshots } => snapshots,
        other => panic!("{other:?}"),
    }
}

/// What the snapshots of a volume hold, in the order in which they were taken.
#[derive(Default)]
struct Kept(Vec<(String, Vec<u8>)>);

impl Kept {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.to_owned(), bytes.to_vec()));
    }

    fn get(&self, name: &str) -> Vec<u8> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.unwrap().1.clone()
    }

    /// These snapshots are there, no others, and each holds what it must. Gives how much came from the back ends.
    async fn check(&self, cluster: &Cluster, client: &Client) -> u64 {
        let found: Vec<String> = list(client).await.into_iter().map(|status| status.name).collect();
        let names: Vec<&String> = self.0.iter().map(|(name, _)| name).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), names);
        let mut located = 0;
        for (name, bytes) in &self.0 {
            let snapshot = Client::open_snapshot(cluster, client.volume, name).await;
            let mut snapshot = snapshot.unwrap();
            let model = Model {
                bytes: bytes.clone(),
                rng: fastrand::Rng::with_seed(0),
            };
            model.check(&mut snapshot).await;
            located += snapshot.located;
        }
        located
    }
}

async fn change(model: &mut Model, client: &mut Client) {
    for _ in 0..40 {
        model.change(client).await;
    }
}

async fn lose_buffer(cluster: &mut Cluster, client: &mut Client) {
    cluster.kill();
    std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
    cluster.start();
    take_over(client).await;
}

pub(crate) async fn take_over(client: &mut Client) {
    let volume = client.volume;
    assert_eq!(
        client.reopen().await.unwrap_err().code,
        RefusalCode::WaitsForOwner
    );
    // A storage-router that has just begun is not known at once.
    let taken = until("the volume is taken over", async || {
        let forced = VolumeControl::TakeOver { volume, force: true };
        let answer = client.control(forced).await;
        (!answer
            .as_ref()
            .is_err_and(|refusal| refusal.remedy == Remedy::Retry))
        .then_some(answer)
    });
    taken.await.unwrap();
    client.reopen().await.unwrap();
}

#[test]
fn snapshots_are_taken_gone_back_to_and_removed_and_all_of_it_survives() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let (mut model, mut kept) = (Model::new(4 << 20, 21), Kept::default());

        take(&client, 1, "empty").await.unwrap();
        kept.add("empty", &model.bytes);
        for (id, name) in [(2, "one"), (3, "two"), (4, "three")] {
            change(&mut model, &mut client).await;
            take(&client, id, name).await.unwrap();
            kept.add(name, &model.bytes);
        }
        change(&mut model, &mut client).await;
        kept.check(&cluster, &client).await;
        model.check(&mut client).await;

        // Back, with the state before kept; the later snapshots stay.
        roll_back(&client, "one", 5, Some("was")).await.unwrap();
        kept.add("was", &model.bytes);
        model.bytes = kept.get("one");
        model.check(&mut client).await;
        change(&mut model, &mut client).await;
        // Forward again, without it.
        roll_back(&client, "three", 6, None).await.unwrap();
        model.bytes = kept.get("three");
        model.check(&mut client).await;
        change(&mut model, &mut client).await;
        // "one" is what two branches come from, and goes all the same.
        remove(&client, "one").await.unwrap();
        kept.0.retain(|(name, _)| name != "one");
        kept.check(&cluster, &client).await;

        cluster.kill();
        cluster.start();
        model.check(&mut client).await;
        kept.check(&cluster, &client).await;
        change(&mut model, &mut client).await;

        client.sync().await;
        assert!(list(&client).await.iter().all(|snapshot| snapshot.synced));
        lose_buffer(&mut cluster, &mut client).await;
        assert!(
            kept.check(&cluster, &client).await > 0,
            "nothing came from the back end"
        );
        model.check(&mut client).await;
        // It goes on from there as from anywhere.
        change(&mut model, &mut client).await;
        take(&client, 7, "after").await.unwrap();
        kept.add("after", &model.bytes);
        roll_back(&client, "empty", 8, None).await.unwrap();
        model.bytes = kept.get("empty");
        remove(&client, "two").await.unwrap();
        kept.0.retain(|(name, _)| name != "two");
        cluster.kill();
        cluster.start();
        model.check(&mut client).await;
        kept.check(&cluster, &client).await;
    });
}

#[test]
fn a_removal_by_id_is_of_that_snapshot_and_of_none_that_has_its_name_later() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let client = Client::open(&cluster, volume).await;
        let names = async || -> Vec<(u64, String)> {
            let list = list(&client).await.into_iter();
            list.map(|status| (status.id.0, status.name)).collect()
        };
        take(&client, 1, "monday").await.unwrap();
        remove_exactly(&client, "monday", 1).await.unwrap();
        take(&client, 2, "monday").await.unwrap();
        // Sent again after a lost answer, once at once and once when it is forgotten.
        for _ in 0..2 {
            if let Err(refusal) = remove_exactly(&client, "monday", 1).await {
                assert_eq!(refusal.code, RefusalCode::NotFound, "{refusal}");
            }
            assert_eq!(names().await, [(2, "monday".to_owned())]);
            client.sync().await;
        }
        // One that two branches come from is hidden, and as good as gone.
        take(&client, 3, "later").await.unwrap();
        roll_back(&client, "monday", 4, Some("before")).await.unwrap();
        for _ in 0..2 {
            remove_exactly(&client, "monday", 2).await.unwrap();
        }
        let left = [(3, "later".to_owned()), (4, "before".to_owned())];
        assert_eq!(names().await, left);
        let never = remove_exactly(&client, "later", 99).await.unwrap_err();
        assert_eq!(never.code, RefusalCode::NotFound, "{never}");
        assert_eq!(names().await, left);
    });
}

#[test]
fn a_snapshot_says_when_it_is_synced_and_what_is_not_survives_kill_9_all_the_same() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ncheckpoint_idle = \"100ms\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        cluster.stop_storage();
        let (mut model, mut kept) = (Model::new(4 << 20, 22), Kept::default());
        change(&mut model, &mut client).await;
        take(&client, 9, "nightly").await.unwrap();
        kept.add("nightly", &model.bytes);
        change(&mut model, &mut client).await;
        let [status] = &list(&client).await[..] else {
            panic!("one snapshot was taken");
        };
        assert!(!status.synced, "there is no back end");
        assert_eq!(
            (status.id, status.size.bytes()),
            (SnapshotId(9), 4 * MIB),
            "{status:?}"
        );
        assert_eq!(status.metadata["why"], "nightly");
        assert!(status.allocated.0 > 0 && status.created_us > 0, "{status:?}");

        cluster.kill();
        cluster.start();
        kept.check(&cluster, &client).await;
        model.check(&mut client).await;
        assert!(!list(&client).await[0].synced);

        // Nobody asks for it.
        cluster.start_storage();
        until("the snapshot to be synced", async || {
            list(&client).await[0].synced.then_some(())
        })
        .await;
        lose_buffer(&mut cluster, &mut client).await;
        kept.check(&cluster, &client).await;
    });
}

#[test]
fn the_loss_of_the_buffer_costs_only_snapshots_that_were_not_synced() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings(NO_CHECKPOINTS);
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let (mut model, mut kept) = (Model::new(4 << 20, 23), Kept::default());
        change(&mut model, &mut client).await;
        take(&client, 1, "synced").await.unwrap();
        kept.add("synced", &model.bytes);
        client.sync().await;
        cluster.stop_storage();
        change(&mut model, &mut client).await;
        take(&client, 2, "lost").await.unwrap();
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start_storage();
        cluster.start();
        take_over(&mut client).await;
        kept.check(&cluster, &client).await;
        // Its name and id are free again.
        take(&client, 2, "lost").await.unwrap();
    });
}

#[test]
fn every_crash_point_keeps_the_snapshots_that_were_acknowledged() {
    let points = Point::ALL.iter().filter(|point| is_of_the_volume_router(**point));
    for point in points {
        block_on(async {
            let mut cluster = Cluster::new().with_buffer("32 MiB");
            cluster.start();
            let registry = cluster.registry().await;
            let volume = cluster.create(&registry, 1, MIB).await;
            let mut client = Client::open(&cluster, volume).await;
            let (mut model, mut kept) = (Model::new(1 << 20, 24), Kept::default());
            cluster.kill();
            let mut armed = cluster.with_env(CRASH_ENV, point.name());
            armed.start();
            let ended = std::cell::Cell::new(false);
            let reached = async {
                let mut changes = 0;
                while changes < 40 || !ended.get() {
                    assert!(changes < 4000, "{} is not reached", point.name());
                    model.change(&mut client).await;
                    changes += 1;
                    if changes % 8 == 0 {
                        // Whatever is under way when the process ends is asked again, with the same id.
                        let name = format!("after-{changes}");
                        take(&client, changes, &name).await.unwrap();
                        kept.add(&name, &model.bytes);
                    }
                    if kept.0.len() > 5 {
                        let (name, _) = kept.0.remove(model.rng.usize(..5));
                        match remove(&client, &name).await {
                            Ok(()) => {}
                            // It was done before the process ended.
                            Err(refusal) => assert_eq!(refusal.code, RefusalCode::NotFound, "{refusal}"),
                        }
                    }
                    if changes == 40 {
                        client.sync().await;
                    }
                }
                client.sync().await;
            };
            let watched = async {
                until("the crash point", async || armed.has_ended().then_some(())).await;
                armed.clear_env();
                armed.start();
                ended.set(true);
            };
            tokio::join!(reached, watched);
            kept.check(&armed, &client).await;
            model.check(&mut client).await;
            armed.kill();
            armed.start();
            kept.check(&armed, &client).await;
            assert!(
                armed.log().contains(point.name()),
                "{} was not reached",
                point.name()
            );
        });
    }
}

#[test]
fn what_is_acknowledged_while_the_router_stops_needs_its_buffer_no_more() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut taken = 0;
        for round in 0..4 {
            client.write(0, bytes(round, 256 << 10)).await;
            cluster.begin_stop();
            let stopped = std::cell::Cell::new(false);
            let takes = async {
                while !stopped.get() {
                    taken += 1;
                    take(&client, taken, &format!("number-{taken}")).await.unwrap();
                }
            };
            let stops = async {
                until("the end", async || cluster.has_ended().then_some(())).await;
                assert_eq!(cluster.record(&registry, volume).await.buffer, None);
                std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
                cluster.start();
                stopped.set(true);
            };
            tokio::join!(takes, stops);
            client.reopen().await.unwrap();
            assert_eq!(list(&client).await.len() as u64, taken, "round {round}");
        }
    });
}

#[test]
fn asking_again_with_the_same_id_changes_nothing() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut kept = Kept::default();
        let (old, new) = (bytes(1, 1 << 20), bytes(2, 1 << 20));
        client.write(0, old.clone()).await;
        take(&client, 1, "old").await.unwrap();
        kept.add("old", &old);
        client.write(0, new.clone()).await;
        take(&client, 1, "old").await.unwrap();
        kept.check(&cluster, &client).await;
        roll_back(&client, "old", 2, Some("new")).await.unwrap();
        kept.add("new", &new);
        let newest = bytes(3, 1 << 20);
        client.write(0, newest.clone()).await;
        roll_back(&client, "old", 2, Some("new")).await.unwrap();
        assert_eq!(
            client.read(0, 1 << 20).await,
            newest,
            "gone back to a second time"
        );
        // A restart forgets nothing of that.
        cluster.kill();
        cluster.start();
        take(&client, 1, "old").await.unwrap();
        roll_back(&client, "old", 2, Some("new")).await.unwrap();
        assert_eq!(client.read(0, 1 << 20).await, newest);
        kept.check(&cluster, &client).await;
    });
}

#[test]
fn what_cannot_be_done_is_refused_in_clear_words() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(1, 4096)).await;
        take(&client, 1, "daily").await.unwrap();
        let is = |refused: Result<(), Refusal>, code: RefusalCode, says: &str| {
            let refusal = refused.unwrap_err();
            assert_eq!(
                (refusal.code, refusal.remedy),
                (code, Remedy::Reject),
                "{refusal}"
            );
            for wanted in ["/disk-1", says] {
                assert!(refusal.text.contains(wanted), "{wanted:?} is not in {refusal}");
            }
        };
        is(
            take(&client, 2, "daily").await,
            RefusalCode::Exists,
            "\"daily\" exists",
        );
        is(
            take(&client, 1, "weekly").await,
            RefusalCode::Exists,
            "\"weekly\" exists",
        );
        for wrong in ["", "a/b", "a@b", ".."] {
            is(
                take(&client, 3, wrong).await,
                RefusalCode::Invalid,
                "snapshot name",
            );
        }
        let reserved = take(&client, 1 << 63, "high").await;
        is(reserved, RefusalCode::Invalid, "snapshot id");
        is(
            remove(&client, "weekly").await,
            RefusalCode::NotFound,
            "the newest are daily",
        );
        let unknown = roll_back(&client, "weekly", 4, None).await;
        is(unknown, RefusalCode::NotFound, "\"weekly\"");
        let taken = roll_back(&client, "daily", 5, Some("daily")).await;
        is(taken, RefusalCode::Exists, "\"daily\" exists");
        let unopened = Client::open_snapshot(&cluster, volume, "weekly").await;
        is(unopened.map(drop), RefusalCode::NotFound, "\"weekly\"");

        // A snapshot and a template take no writes.
        let mut snapshot = Client::open_snapshot(&cluster, volume, "daily").await.unwrap();
        let changes = |offset: u64, code: IoCode| {
            let data = match code {
                IoCode::Write => bytes(9, 4096),
                _ => Bytes::new(),
            };
            (code, offset, 4096, data)
        };
        let codes = [
            changes(0, IoCode::Write),
            changes(0, IoCode::WriteZeroes),
            changes(0, IoCode::Discard),
            (IoCode::Resize, 2 * MIB, 0, Bytes::new()),
        ];
        set_read_only(&client, true).await;
        client.reopen().await.unwrap();
        for client in [&mut snapshot, &mut client] {
            for (code, offset, length, data) in codes.clone() {
                let request = client.request(code, 0, offset, length);
                let refused = client.io(request, data).await.map(drop);
                is(refused, RefusalCode::ReadOnly, "");
            }
            assert_eq!(client.read(0, 4096).await, bytes(1, 4096));
            client.flush().await;
        }
        let rolled = roll_back(&client, "daily", 6, None).await;
        is(rolled, RefusalCode::ReadOnly, "takes no writes");
        // It can be kept as it is, and be a volume as any other again.
        take(&client, 7, "golden").await.unwrap();
        set_read_only(&client, false).await;
        client.write(0, bytes(2, 4096)).await;
        assert_eq!(client.read(0, 4096).await, bytes(2, 4096));

        // Who reads a snapshot that is removed meanwhile is told.
        remove(&client, "daily").await.unwrap();
        let gone = snapshot.try_read(0, 4096).await.map(drop);
        is(gone, RefusalCode::NotFound, "removed");
    });
}
