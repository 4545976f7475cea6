//! Large volumes, small memory.

use bytes::Bytes;
use sconce_schemas::wire::volume::IoCode;

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// Leaves of the map that the test of a small memory uses.
const LEAVES: u64 = 5000;

#[test]
fn a_map_that_does_not_fit_its_memory_is_loaded_as_it_is_needed() {
    block_on(async {
        // The smallest that the settings allow; each leaf of the map covers 2 MiB.
        let settings = "[volumes]\nmap_memory = \"1 MiB\"\n";
        let mut cluster = Cluster::new().with_buffer("64 MiB").with_settings(settings);
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * TIB).await;
        let mut client = Client::open(&cluster, volume).await;
        // A cluster in each of many leaves, far apart.
        let place = |number: u64| number * (1 << 30) + number * 4096;
        for number in 0..LEAVES {
            client.write(place(number), bytes(number, 4096)).await;
            if number % 500 == 499 {
                client.sync().await;
            }
        }
        client.sync().await;
        for number in 0..LEAVES {
            assert_eq!(
                client.read(place(number), 4096).await,
                bytes(number, 4096),
                "{number}"
            );
        }
        let used = client.show().await.map_memory.0;
        // All of it would be 3 MiB.
        assert!(used < 2 * MIB, "{used} bytes of the map are in memory");
        cluster.kill();
        cluster.start();
        for number in (0..LEAVES).rev() {
            assert_eq!(
                client.read(place(number), 4096).await,
                bytes(number, 4096),
                "{number}"
            );
        }
        let used = client.show().await.map_memory.0;
        assert!(used < 2 * MIB, "{used} bytes of the map are in memory");
    });
}

#[test]
fn random_changes_with_little_memory_are_kept() {
    block_on(async {
        let settings = "[volumes]\nmap_memory = \"1 MiB\"\n";
        let mut cluster = Cluster::new().with_buffer("32 MiB").with_settings(settings);
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 16 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(16 << 20, 21);
        for _ in 0..2 {
            for _ in 0..200 {
                model.change(&mut client).await;
            }
            cluster.kill();
            cluster.start();
            model.check(&mut client).await;
        }
    });
}

#[test]
fn a_discard_of_two_empty_tebibytes_takes_no_time_and_no_back_end() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 2 * TIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        // Without a back end a request to it would not be answered.
        cluster.stop_storage();
        let discard = client.request(IoCode::Discard, 0, 0, 2 * TIB);
        client.io(discard, Bytes::new()).await.unwrap();
        assert_eq!(client.read(TIB, 4096).await, vec![0; 4096]);
        cluster.start_storage();
    });
}

#[test]
fn a_volume_of_64_tebibytes_is_used_from_end_to_end() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 64 * TIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let last = 64 * TIB - 4096;
        let places = [0, 4096, 32 * TIB, last - 4096, last];
        for (seed, place) in (1..).zip(places) {
            client.write(place, bytes(seed, 4096)).await;
        }
        client.flush().await;
        let beyond = client.request(IoCode::Write, 0, 64 * TIB, 4096);
        assert!(client.io(beyond, bytes(9, 4096)).await.is_err());
        for stored in [false, true] {
            for (seed, place) in (1..).zip(places) {
                assert_eq!(client.read(place, 4096).await, bytes(seed, 4096), "at {place}");
            }
            assert_eq!(client.read(16 * TIB, 4096).await, vec![0; 4096]);
            assert_eq!(client.show().await.size.bytes(), 64 * TIB);
            if !stored {
                cluster.kill();
                cluster.start();
                client.reopen().await.unwrap();
                client.sync().await;
                assert_eq!(cluster.stop(), Some(0));
                std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
                cluster.start();
            }
        }
        assert!(client.located > 0, "all of it comes from the back end in the end");
    });
}
