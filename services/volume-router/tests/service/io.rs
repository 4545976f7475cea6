//! What is written is read.

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};

const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_is_read_in_whole_clusters_and_in_parts() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 1);
        for _ in 0..300 {
            model.change(&mut client).await;
        }
        model.check(&mut client).await;
        client.flush().await;
        client.sync().await;
        assert_eq!(client.show().await.state, "serving");
        model.check(&mut client).await;
        assert_eq!(client.located, 0, "the write buffer still has everything");
    });
}

#[test]
fn the_registry_learns_the_size() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        // Soon after a resize ...
        client.resize(16 * MIB).await;
        until("the size after a resize", async || {
            let record = cluster.record(&registry, volume).await;
            (record.size?.bytes() == 16 * MIB).then_some(())
        })
        .await;
        // ... and with the manifest that an orderly stop ends with.
        client.resize(4 * MIB).await;
        drop(client);
        let mut cluster = cluster;
        assert_eq!(cluster.stop(), Some(0));
        let record = cluster.record(&registry, volume).await;
        assert_eq!(record.size.map(|size| size.bytes()), Some(4 * MIB));
    });
}
