//! What is written is read.

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on};

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
