//! Clones: a volume that begins as another's snapshot, at any depth, with whatever was lost.

use sconce_registry::Registry;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::Origin;
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::{SnapshotId, VolumeId};

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on};
use crate::snapshots::{take, take_over};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

/// A volume with a snapshot named `base`, which the model is.
async fn parent(cluster: &Cluster, registry: &Registry) -> (Client, Model) {
    let volume = cluster.create(registry, 1, 4 * MIB).await;
    let mut client = Client::open(cluster, volume).await;
    client.sync().await;
    let mut model = Model::new(SIZE, 31);
    for _ in 0..60 {
        model.change(&mut client).await;
    }
    take(&client, 1, "base").await.unwrap();
    (client, model)
}

async fn clone_base(cluster: &Cluster, registry: &Registry, number: u16, parent: VolumeId) -> VolumeId {
    let origin = Origin {
        volume: parent,
        snapshot: SnapshotId(1),
    };
    cluster.clone_of(registry, number, origin, 4 * MIB).await
}

fn copy(model: &Model, seed: u64) -> Model {
    Model {
        bytes: model.bytes.clone(),
        rng: fastrand::Rng::with_seed(seed),
    }
}

async fn change(model: &mut Model, client: &mut Client) {
    for _ in 0..40 {
        model.change(client).await;
    }
}

#[test]
fn a_clone_of_a_synced_snapshot_is_a_volume_of_its_own_whatever_is_lost() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let (mut parent, mut parents) = parent(&cluster, &registry).await;
        let mut clones = copy(&parents, 32);
        change(&mut parents, &mut parent).await;
        parent.sync().await;
        let volume = clone_base(&cluster, &registry, 1, parent.volume).await;
        let mut clone = Client::open(&cluster, volume).await;
        clones.check(&mut clone).await;
        assert_eq!(clone.show().await.size.bytes(), 4 * MIB);

        // The back end alone says what it needs.
        clone.sync().await;
        let of_clone = format!("{volume}/manifest/");
        let mut files = cluster.files("backend");
        files.retain(|path| path.to_string_lossy().contains(&of_clone));
        let newest = std::fs::read(files.last().unwrap()).unwrap();
        let at = newest.windows(4).position(|bytes| bytes == b"MFT1").unwrap();
        // Behind what is stored, the file has the back end's own CRC.
        let origin = Manifest::from_bytes(&newest[at..newest.len() - 4]).map(|manifest| manifest.origin);
        let expected = Origin {
            volume: parent.volume,
            snapshot: SnapshotId(1),
        };
        assert_eq!(origin, Ok(Some(expected)));

        // Neither sees what is written to the other, nor does the snapshot.
        let base = copy(&clones, 0);
        change(&mut clones, &mut clone).await;
        change(&mut parents, &mut parent).await;
        take(&clone, 1, "own").await.unwrap();
        for _ in 0..2 {
            clones.check(&mut clone).await;
            parents.check(&mut parent).await;
            let snapshot = Client::open_snapshot(&cluster, parent.volume, "base").await;
            base.check(&mut snapshot.unwrap()).await;
            cluster.kill();
            cluster.start();
        }
        change(&mut clones, &mut clone).await;
        clone.sync().await;
        parent.sync().await;
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        take_over(&mut clone).await;
        clones.check(&mut clone).await;
        assert!(clone.located > 0, "nothing came from the back end");
        change(&mut clones, &mut clone).await;
        clones.check(&mut clone).await;
        // The clone needed nothing of its parent's owner for that.
        assert_eq!(
            parent.reopen().await.unwrap_err().code,
            RefusalCode::WaitsForOwner
        );
        let forced = VolumeControl::TakeOver {
            volume: parent.volume,
            force: true,
        };
        parent.control(forced).await.unwrap();
        parents.check(&mut parent).await;
    });
}

#[test]
fn a_clone_of_a_snapshot_that_is_not_stored_yet_is_served_as_soon_as_it_is() {
    block_on(async {
        let mut cluster = Cluster::new()
            // Nothing is stored by itself: the clone's start has to ask for it.
            .with_settings("[volumes]\ncheckpoint_idle = \"2h\"\ncheckpoint_age = \"2h\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let (mut parent, mut parents) = parent(&cluster, &registry).await;
        let mut clones = copy(&parents, 33);
        change(&mut parents, &mut parent).await;
        let volume = clone_base(&cluster, &registry, 1, parent.volume).await;
        let mut clone = Client::open(&cluster, volume).await;
        clones.check(&mut clone).await;
        // Nobody had to look at it, and the tries cost no ownerships.
        assert!(!cluster.log().contains("WARN"), "{}", cluster.log());
        assert_eq!(cluster.record(&registry, volume).await.epoch.0, 1);

        // Without a back end it waits, and says for what; also across a restart.
        take(&parent, 2, "later").await.unwrap();
        cluster.stop_storage();
        change(&mut parents, &mut parent).await;
        let origin = Origin {
            volume: parent.volume,
            snapshot: SnapshotId(2),
        };
        let second = cluster.clone_of(&registry, 2, origin, 4 * MIB).await;
        cluster.kill();
        cluster.start();
        parents.check(&mut parent).await;
        let waiting = Client::connect(&cluster, second);
        waiting.show().await;
        crate::cluster::until("the clone to say what it waits for", async || {
            let state = waiting.show().await.state;
            (state != "starting" && state != "serving").then_some(state)
        })
        .await;
        cluster.start_storage();
        let mut later = Client::open(&cluster, second).await;
        let base = later.read(0, SIZE).await;
        assert!(base != clones.bytes, "both snapshots are the same");
        let mut snapshot = Client::open_snapshot(&cluster, parent.volume, "later")
            .await
            .unwrap();
        assert!(
            base == snapshot.read(0, SIZE).await,
            "the clone is not what its snapshot is"
        );
        change(&mut clones, &mut clone).await;
        clones.check(&mut clone).await;
    });
}

#[test]
fn a_clone_whose_snapshot_is_gone_says_so() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let (parent, _) = parent(&cluster, &registry).await;
        let origin = Origin {
            volume: parent.volume,
            snapshot: SnapshotId(99),
        };
        let clone = Client::connect(&cluster, cluster.clone_of(&registry, 1, origin, 4 * MIB).await);
        crate::cluster::until("the clone to say what it lacks", async || {
            let state = clone.show().await.state;
            let wanted = ["0000000000000063", "is gone", "sconce volume delete"];
            wanted.iter().all(|part| state.contains(part)).then_some(())
        })
        .await;
        // The parent has nothing to do with it.
        assert_eq!(parent.show().await.state, "serving");
    });
}

/// How deep clones of clones go.
fn depth() -> u16 {
    let full = std::env::var_os("SCONCE_TEST_FULL").is_some_and(|value| value == "1");
    if full { 1000 } else { 50 }
}

#[test]
fn a_clone_of_a_clone_of_a_clone_reads_what_every_one_of_them_wrote() {
    block_on(async {
        // Each of them has a SCO open for a while; and 8 MiB in another volume take all caches away.
        let mut cluster = Cluster::new().with_buffer("128 MiB");
        cluster.start();
        let registry = cluster.registry().await;
        let (mut client, mut model) = parent(&cluster, &registry).await;
        for number in 1..=depth() {
            let volume = clone_base(&cluster, &registry, number, client.volume).await;
            client = Client::open(&cluster, volume).await;
            let at = usize::from(number) % 1024 * 4096;
            let data = bytes(u64::from(number), 4096);
            client.write(at as u64, data.clone()).await;
            model.bytes[at..at + 4096].copy_from_slice(&data);
            take(&client, 1, "base").await.unwrap();
            client.sync().await;
        }
        model.check(&mut client).await;
        let filler = cluster.create(&registry, 2, 256 * MIB).await;
        let mut filler = Client::open(&cluster, filler).await;
        for number in 0..128 {
            filler.write(number * MIB, bytes(number, 1 << 20)).await;
        }
        filler.sync().await;
        let before = client.located;
        model.check(&mut client).await;
        assert!(
            client.located - before >= u64::from(depth()).min(500),
            "one extent for each ancestor at least comes from the back end"
        );
        cluster.kill();
        cluster.start();
        model.check(&mut client).await;
    });
}
