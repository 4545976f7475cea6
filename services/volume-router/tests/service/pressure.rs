//! A write buffer that fills up.

use std::time::Duration;

use sconce_registry::Change;
use sconce_schemas::records::keys;
use sconce_schemas::wire::volume::IoCode;

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on, until};

const MIB: u64 = 1 << 20;

#[test]
fn without_a_back_end_writes_wait_when_the_buffer_is_full_and_go_on_afterwards() {
    block_on(async {
        let mut cluster = Cluster::new().with_buffer("32 MiB");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 64 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        cluster.stop_storage();
        let mut acknowledged = 0_u64;
        let mut request = client.request(IoCode::Write, 0, 0, 256 * 1024);
        let held = loop {
            let tried = client.attempt(request, bytes(acknowledged, 256 << 10), Duration::from_secs(10));
            match tried.await {
                Ok(Ok(_)) => {
                    acknowledged += 1;
                    request = client.request(IoCode::Write, 0, acknowledged * 256 * 1024, 256 * 1024);
                }
                Ok(Err(refusal)) => panic!("{refusal}"),
                Err(_) if is_full(&client).await => break request,
                // It was only slow: the same is asked again.
                Err(_) => {}
            }
        };
        assert!(
            acknowledged >= 64,
            "only {acknowledged} x 256 KiB went into 32 MiB"
        );
        let node = client.node().await;
        let operations = node
            .queues
            .iter()
            .find(|queue| queue.name.starts_with("operations"))
            .unwrap();
        assert!(operations.requests >= 1, "{operations:?}");
        until("the log to say that storing does not work", async || {
            cluster.log().contains("trying again until it does").then_some(())
        })
        .await;

        cluster.start_storage();
        client.io(held, bytes(acknowledged, 256 << 10)).await.unwrap();
        for number in acknowledged + 1..256 {
            client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        }
        for number in 0..256 {
            let found = client.read(number * 256 * 1024, 256 << 10).await;
            assert!(found == bytes(number, 256 << 10), "block {number}");
        }
        assert!(client.located > 0, "64 MiB do not fit 32 MiB");
        until("the log to say that it works again", async || {
            cluster.log().contains("works again").then_some(())
        })
        .await;
    });
}

#[test]
fn a_full_buffer_and_a_restart_cost_no_volume_what_only_the_buffer_has() {
    block_on(async {
        let mut cluster = Cluster::new().with_buffer("32 MiB");
        cluster.start();
        let registry = cluster.registry().await;
        let volumes = [
            cluster.create(&registry, 1, 64 * MIB).await,
            cluster.create(&registry, 2, 64 * MIB).await,
        ];
        let mut one = Client::open(&cluster, volumes[0]).await;
        let mut two = Client::open(&cluster, volumes[1]).await;
        one.sync().await;
        two.sync().await;
        cluster.stop_storage();
        one.write(0, bytes(1, 4096)).await;
        let mut acknowledged = 0_u64;
        loop {
            if write_within(&mut two, acknowledged, Duration::from_secs(5)).await {
                acknowledged += 1;
            } else if is_full(&two).await {
                break;
            }
        }
        assert!(acknowledged >= 64, "{acknowledged}");
        cluster.kill();

        // The second volume's record is not there for a while: nobody claims what the buffer has of it.
        let record = cluster.record(&registry, volumes[1]).await;
        let key = keys::volume(volumes[1]);
        registry.commit(vec![Change::delete(&key, None)]).await.unwrap();
        cluster.start();
        one.reopen().await.unwrap();
        assert!(
            !write_within(&mut one, 9, Duration::from_secs(1)).await,
            "there is no room"
        );
        registry.put_record(&key, None, &record, None).await.unwrap();
        for number in 0..acknowledged {
            let found = two.read(number * 256 * 1024, 256 << 10).await;
            assert!(found == bytes(number, 256 << 10), "block {number} is lost");
        }
        cluster.start_storage();
        assert_eq!(one.read(0, 4096).await, bytes(1, 4096));
        one.write(4096, bytes(2, 4096)).await;
        assert_eq!(one.read(4096, 4096).await, bytes(2, 4096));
    });
}

/// Whether the back ends lack as much as the buffer holds; a write that takes long may be slow and nothing else.
async fn is_full(client: &Client) -> bool {
    let node = client.node().await;
    node.buffer_unstored.0 * 10 > node.buffer_size.0 * 9
}

/// Writes 256 KiB; whether that was acknowledged in time.
async fn write_within(client: &mut Client, number: u64, deadline: Duration) -> bool {
    let request = client.request(IoCode::Write, 0, number * 256 * 1024, 256 * 1024);
    let tried = client.attempt(request, bytes(number, 256 << 10), deadline);
    match tried.await {
        Ok(Ok(_)) => true,
        Ok(Err(refusal)) => panic!("{refusal}"),
        Err(_) => false,
    }
}

#[test]
fn two_volumes_share_a_small_buffer() {
    block_on(async {
        let mut cluster = Cluster::new().with_buffer("32 MiB");
        cluster.start();
        let registry = cluster.registry().await;
        let mut clients = Vec::new();
        for number in 1..=2 {
            let volume = cluster.create(&registry, number, 32 * MIB).await;
            clients.push((
                Client::open(&cluster, volume).await,
                Model::new(32 << 20, number.into()),
            ));
        }
        for _ in 0..1200 {
            for (client, model) in &mut clients {
                model.change(client).await;
            }
        }
        for (client, model) in &mut clients {
            model.check(client).await;
        }
    });
}
