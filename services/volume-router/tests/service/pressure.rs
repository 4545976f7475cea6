//! A write buffer that fills up.

use std::time::Duration;

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
        let held = loop {
            let request = client.request(
                sconce_schemas::wire::volume::IoCode::Write,
                0,
                acknowledged * 256 * 1024,
                256 * 1024,
            );
            let tried = client.attempt(request, bytes(acknowledged, 256 << 10), Duration::from_secs(10));
            match tried.await {
                Ok(Ok(_)) => acknowledged += 1,
                Ok(Err(refusal)) => panic!("{refusal}"),
                Err(_) => break request,
            }
        };
        assert!(
            acknowledged >= 64,
            "only {acknowledged} x 256 KiB went into 32 MiB"
        );
        let node = client.node().await;
        assert!(node.buffer_unstored.0 * 10 > node.buffer_size.0 * 9, "{node:?}");
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
