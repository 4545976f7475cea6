//! Files of the write buffer that rot.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use sconce_schemas::wire::Remedy;

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, block_on};

const MIB: u64 = 1 << 20;

/// Flips a bit of the given content wherever a file below `dir` holds it; gives how many files did.
fn flip(cluster: &Cluster, dir: &str, content: &[u8]) -> usize {
    let mut hits = 0;
    for path in cluster.files(dir) {
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| *window == content[..64]) {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at + 5] ^ 1], at as u64 + 5).unwrap();
            hits += 1;
        }
    }
    hits
}

#[test]
fn damage_in_what_is_stored_is_read_from_the_back_end() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        for number in 0..16 {
            client.write(number * 4096, bytes(number, 4096)).await;
        }
        client.sync().await;
        assert_eq!(flip(&cluster, "buffer", &bytes(7, 4096)), 1);
        assert_eq!(client.read(7 * 4096, 4096).await, bytes(7, 4096));
        assert!(client.located > 0);
        assert!(
            cluster.log().contains("the local copy of a SCO is damaged"),
            "{}",
            cluster.log()
        );
        // A part of a cluster is written onto what the back end has.
        client.write(7 * 4096, vec![1; 512]).await;
        let found = client.read(7 * 4096, 4096).await;
        assert!(found[..512] == [1; 512] && found[512..] == bytes(7, 4096)[512..]);
    });
}

#[test]
fn damage_in_what_is_nowhere_else_is_told_and_never_returned() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        cluster.stop_storage();
        for number in 0..16 {
            client.write(number * 4096, bytes(number, 4096)).await;
        }
        assert_eq!(flip(&cluster, "buffer", &bytes(7, 4096)), 1);
        let refusal = client.try_read(0, 16 * 4096).await.unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Damaged);
        for wanted in ["/disk-1", "byte 28672", "slot 7", "SCO"] {
            assert!(refusal.text.contains(wanted), "{wanted:?} is not in {refusal}");
        }
        assert_eq!(
            client.read(8 * 4096, 4096).await,
            bytes(8, 4096),
            "the rest is fine"
        );
        client.write(7 * 4096, bytes(77, 4096)).await;
        assert_eq!(
            client.read(7 * 4096, 4096).await,
            bytes(77, 4096),
            "a new write heals"
        );
    });
}

#[test]
fn a_damaged_local_checkpoint_is_read_again_from_the_back_end() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        for number in 0..512 {
            client.write(number * 4096, bytes(number, 4096)).await;
        }
        client.sync().await;
        cluster.kill();
        let maps: Vec<_> = cluster
            .files("buffer/map")
            .into_iter()
            .filter(|path| path.file_name().unwrap() != "manifest")
            .collect();
        assert!(!maps.is_empty());
        for path in maps {
            let mut object = std::fs::read(&path).unwrap();
            let middle = object.len() / 2;
            object[middle - 100..middle].fill(0xee);
            std::fs::write(&path, object).unwrap();
        }
        cluster.start();
        for number in 0..512 {
            assert_eq!(client.read(number * 4096, 4096).await, bytes(number, 4096));
        }
        assert!(
            cluster.log().contains("local copy of a checkpoint is damaged"),
            "{}",
            cluster.log()
        );
    });
}
