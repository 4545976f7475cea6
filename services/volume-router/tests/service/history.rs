//! The history: any moment within its window becomes a snapshot, whatever happened since, and what it needs stays.

use std::time::{SystemTime, UNIX_EPOCH};

use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};
use crate::snapshots::{ask, list, take_over};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

/// Now, behind all that was answered before and before all that is sent after: the clock is seen to go on twice.
fn moment() -> u64 {
    let now = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let go_on = |from: u64| {
        while now() <= from {
            std::hint::spin_loop();
        }
    };
    go_on(now());
    let moment = now();
    go_on(moment);
    moment
}

async fn set_history(client: &Client, window_us: u64) {
    let volume = client.volume;
    ask(client, VolumeControl::SetHistory { volume, window_us })
        .await
        .unwrap();
}

async fn take_moment(client: &Client, id: u64, time_us: u64) -> Result<(), Refusal> {
    let take = VolumeControl::TakeMoment {
        volume: client.volume,
        id: SnapshotId(id),
        name: format!("moment-{id}"),
        time_us,
        metadata: [("why".to_owned(), "a test".to_owned())].into(),
    };
    ask(client, take).await.map(drop)
}

async fn check(cluster: &Cluster, client: &Client, id: u64, bytes: &[u8]) {
    let name = format!("moment-{id}");
    let mut reader = Client::open_snapshot(cluster, client.volume, &name)
        .await
        .unwrap();
    let model = Model {
        bytes: bytes.to_vec(),
        rng: fastrand::Rng::with_seed(0),
    };
    model.check(&mut reader).await;
}

#[test]
fn any_moment_of_the_window_can_be_had_again() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[scrub]\ngrace = \"100ms\"\nbandwidth = \"1GiB\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(SIZE, 61);

        // Off: refused, and said so.
        let refused = take_moment(&client, 1, moment()).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::Unsupported, "{refused}");
        let before = moment();
        set_history(&client, 3_600_000_000).await;
        until("the history begins", async || {
            client.show().await.history.and_then(|history| history.from_us)
        })
        .await;

        let mut moments = Vec::new();
        for round in 0..8 {
            for _ in 0..40 {
                model.change(&mut client).await;
            }
            moments.push((moment(), model.bytes.clone()));
            for _ in 0..20 {
                model.change(&mut client).await;
            }
            if round % 2 == 0 {
                client.sync().await;
            }
        }
        // Some from the write buffer, some from the back end; also after a crash.
        for (id, (time_us, bytes)) in (10..).zip(&moments).step_by(2) {
            take_moment(&client, id, *time_us).await.unwrap();
            check(&cluster, &client, id, bytes).await;
        }
        cluster.kill();
        cluster.start();
        client.reopen().await.unwrap();
        for (id, (time_us, bytes)) in (10..).zip(&moments).skip(1).step_by(2) {
            take_moment(&client, id, *time_us).await.unwrap();
            check(&cluster, &client, id, bytes).await;
            // The same once more changes nothing.
            take_moment(&client, id, *time_us).await.unwrap();
        }
        assert_eq!(list(&client).await.len(), moments.len());

        // What was answered is on the back ends.
        client.sync().await;
        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        take_over(&mut client).await;
        model.check(&mut client).await;
        for (id, (_, bytes)) in (10..).zip(&moments) {
            check(&cluster, &client, id, bytes).await;
        }

        let early = take_moment(&client, 2, before).await.unwrap_err();
        assert_eq!(early.code, RefusalCode::NotFound, "{early}");
        assert!(early.text.contains("goes back to"), "{early}");
        let late = take_moment(&client, 3, moment() + 3_600_000_000)
            .await
            .unwrap_err();
        assert_eq!(late.code, RefusalCode::Invalid, "{late}");
        assert!(late.text.contains("in the future"), "{late}");
    });
}
