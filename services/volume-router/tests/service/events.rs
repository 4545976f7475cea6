//! What a volume-router tells of its volumes.

use std::time::{Duration, Instant};

use sconce_schemas::VolumeId;
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::event::{EventPage, EventsAsk, OwnedWhy, PoolEvent, What};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply};

use crate::client::Client;
use crate::cluster::{Cluster, block_on};

const MIB: u64 = 1 << 20;
const WAIT_MS: u32 = 20_000;

async fn ask(client: &Client, after: &EventPage, wait_ms: u32) -> EventPage {
    let ask = EventsAsk {
        run: after.run,
        after: after.last,
        wait_ms,
    };
    page(client, ask).await
}

async fn page(client: &Client, ask: EventsAsk) -> EventPage {
    match client.control(VolumeControl::Events(ask)).await.unwrap() {
        VolumeControlReply::Events(page) => page,
        other => panic!("{other:?}"),
    }
}

fn of(page: &EventPage, volume: VolumeId) -> Vec<PoolEvent> {
    let about = |event: &&PoolEvent| event.volume.as_ref().is_some_and(|named| named.id == volume);
    page.events.iter().filter(about).cloned().collect()
}

#[test]
fn a_volume_that_waits_for_its_buffer_is_told_with_its_path_and_the_way_on() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, vec![7; 4096]).await;
        // The storage-router is there.
        client.sync().await;
        let first = page(&client, EventsAsk::default()).await;
        let told = of(&first, volume);
        assert!(
            matches!(&told[0].what, What::Owned { why: OwnedWhy::Created, epoch, .. } if epoch.0 == 1),
            "{told:?}"
        );
        let began = cluster.record(&registry, volume).await.epoch_since_us;
        assert!(began.is_some_and(|began| began >= first.began_us), "{began:?}");
        assert!(client.show().await.state_since_us >= began);

        cluster.kill();
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        let waits = page(&client, EventsAsk::default()).await;
        assert_ne!(waits.run, first.run, "it is another process");
        let told = of(&waits, volume);
        let [
            PoolEvent {
                what,
                text,
                volume: named,
                ..
            },
        ] = &told[..]
        else {
            panic!("one try or many, it is told once: {told:?}")
        };
        assert!(matches!(what, What::WaitsForOwner { .. }), "{what:?}");
        let path = &named.as_ref().unwrap().path;
        assert!(
            !path.is_empty() && text.contains(&format!("takeover {path} --force")),
            "{text}"
        );
        let status = client.show().await;
        assert_eq!(status.path.as_deref(), Some(path.as_str()));
        assert!(status.state_since_us > began, "since it waits");

        // Whoever waits hears what comes as it comes.
        let forced = VolumeControl::TakeOver { volume, force: true };
        let hears = async {
            let mut next = ask(&client, &waits, WAIT_MS).await;
            while of(&next, volume).is_empty() {
                next = ask(&client, &next, WAIT_MS).await;
            }
            of(&next, volume)
        };
        let (told, forced) = tokio::join!(hears, client.control(forced));
        forced.unwrap();
        assert!(
            matches!(
                &told[0].what,
                What::Owned {
                    why: OwnedWhy::Forced,
                    ..
                }
            ),
            "{told:?}"
        );
        assert!(cluster.record(&registry, volume).await.epoch_since_us > began);
    });
}

#[test]
fn whoever_waits_for_events_holds_up_no_stop() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let client = Client::open(&cluster, volume).await;
        let mut newest = page(&client, EventsAsk::default()).await;
        // Until nothing happens any more. What is asked later is answered later: then the first question waits. That its asker has gone by
        // then the service does not know.
        loop {
            let known = newest.clone();
            let waits = ask(&client, &known, WAIT_MS);
            tokio::pin!(waits);
            let answered = tokio::select! {
                biased;
                page = &mut waits => Some(page),
                _ = client.node() => None,
            };
            match answered {
                Some(page) => newest = page,
                None => break,
            }
        }
        let begun = Instant::now();
        assert_eq!(cluster.stop(), Some(0));
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(u64::from(WAIT_MS) / 2), "{took:?}");
    });
}
