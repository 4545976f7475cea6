//! Scrubbing: the back end gives space back, and every byte that is referred to stays readable.

use std::path::PathBuf;

use sconce_schemas::SnapshotId;
use sconce_schemas::records::Origin;

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};
use crate::snapshots::{take, take_over};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

/// SCO objects on the back end, and their bytes.
fn stored(cluster: &Cluster) -> (Vec<PathBuf>, u64) {
    let mut files = cluster.files("backend");
    files.retain(|path| path.to_string_lossy().contains("/sco/"));
    // One may be deleted while they are counted.
    let length = |path: &PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
    let bytes = files.iter().map(length).sum();
    (files, bytes)
}

/// A cluster that scrubs at once, and a volume of it.
async fn scrubbed() -> (Cluster, Client) {
    let mut cluster = Cluster::new().with_settings("[scrub]\ngrace = \"100ms\"\nbandwidth = \"1GiB\"\n");
    cluster.start();
    let registry = cluster.registry().await;
    let volume = cluster.create(&registry, 1, 4 * MIB).await;
    let client = Client::open(&cluster, volume).await;
    (cluster, client)
}

#[test]
fn what_is_overwritten_gives_its_space_back_and_what_is_kept_stays() {
    block_on(async {
        let (mut cluster, mut client) = scrubbed().await;
        let mut model = Model::new(SIZE, 41);
        for _ in 0..200 {
            model.change(&mut client).await;
        }
        take(&client, 1, "kept").await.unwrap();
        let kept = model.bytes.clone();
        for _ in 0..6 {
            for _ in 0..100 {
                model.change(&mut client).await;
            }
            client.sync().await;
        }
        let (_, written) = stored(&cluster);

        // At most a third more than what the volume and its snapshot refer to, and what each SCO has beside its clusters.
        until("the space comes back", async || {
            let (files, bytes) = stored(&cluster);
            let beside = files.len() as u64 * (32 << 10);
            (bytes <= 2 * 4 * MIB * 4 / 3 + beside && bytes < written * 2 / 3).then_some(())
        })
        .await;
        let (files, _) = stored(&cluster);
        let is_rewritten = |path: &PathBuf| path.extension().is_some_and(|version| version != "0000");
        assert!(files.iter().any(is_rewritten), "none was rewritten: {files:?}");
        let told = client.show().await.scrub.expect("an owner that serves tells");
        assert!(
            told.rewritten > 0 && told.won.0 > 0 && told.last_success_us > 0,
            "{told:?}"
        );
        assert_eq!((told.failures, told.last_failure_us), (0, 0), "{told:?}");

        // Nothing but the back end is left: all is read from what was scrubbed.
        client.sync().await;
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        take_over(&mut client).await;
        model.check(&mut client).await;
        let mut reader = Client::open_snapshot(&cluster, client.volume, "kept")
            .await
            .unwrap();
        let snapshot = Model {
            bytes: kept,
            rng: fastrand::Rng::with_seed(1),
        };
        snapshot.check(&mut reader).await;
        assert!(client.located > 0 && reader.located > 0, "read from the back end");
    });
}

#[test]
fn a_volume_that_is_emptied_leaves_nothing_on_the_back_end() {
    block_on(async {
        let (mut cluster, mut client) = scrubbed().await;
        let mut model = Model::new(SIZE, 42);
        for _ in 0..100 {
            model.change(&mut client).await;
        }
        client.sync().await;
        client.resize(0).await;
        client.sync().await;
        until("nothing is left", async || {
            stored(&cluster).0.is_empty().then_some(())
        })
        .await;
        assert_eq!(cluster.stop(), Some(0), "an orderly stop with nothing left to do");
    });
}

#[test]
fn a_volume_that_is_hurried_for_a_clone_is_not_called_pressed() {
    block_on(async {
        // Nothing is stored by itself, so that a clone has to ask for it.
        let mut cluster =
            Cluster::new().with_settings("[volumes]\ncheckpoint_idle = \"2h\"\ncheckpoint_age = \"2h\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(SIZE, 43);
        for number in 1..=5 {
            for _ in 0..40 {
                model.change(&mut client).await;
            }
            let name = format!("snapshot-{number}");
            take(&client, number, &name).await.unwrap();
            let origin = Origin {
                volume,
                snapshot: SnapshotId(number),
            };
            let number = u16::try_from(number).unwrap();
            let clone = cluster.clone_of(&registry, number, origin, 4 * MIB).await;
            Client::open(&cluster, clone).await;
            let told = client.show().await.scrub.expect("an owner that serves tells");
            assert_ne!(told.state, "pressed", "{told:?}");
        }
    });
}
