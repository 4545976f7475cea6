//! Files of the write buffer that rot.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{ObjectName, ScoSize, Slot};

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, block_on, until};

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

/// The buffer's files that hold SCOs, in the order of the log.
fn scos(cluster: &Cluster) -> Vec<(ScoHeader, PathBuf)> {
    let holds = |path: PathBuf| {
        let header = ScoHeader::from_bytes(&std::fs::read(&path).unwrap()).ok()?;
        Some((header, path))
    };
    let mut scos: Vec<_> = cluster
        .files("buffer/sco")
        .into_iter()
        .filter_map(holds)
        .collect();
    scos.sort_by_key(|(header, _)| header.id);
    scos
}

fn flip_at(path: &Path, at: u64) {
    let bytes = std::fs::read(path).unwrap();
    let flipped = [bytes[usize::try_from(at).unwrap()] ^ 0x10];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&flipped, at).unwrap();
}

/// A volume that was killed with several SCOs in the write buffer alone, all of them flushed.
async fn killed_with_unstored(cluster: &mut Cluster) -> Client {
    let registry = cluster.registry().await;
    let volume = cluster.create(&registry, 1, 8 * MIB).await;
    let mut client = Client::open(cluster, volume).await;
    client.sync().await;
    cluster.stop_storage();
    for number in 0..24 {
        client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        client.flush().await;
    }
    cluster.kill();
    client
}

async fn check(client: &mut Client, blocks: u64) {
    for number in 0..blocks {
        let found = client.read(number * 256 * 1024, 256 << 10).await;
        assert!(found == bytes(number, 256 << 10), "block {number}");
    }
}

#[test]
fn a_damaged_header_of_any_sco_costs_nothing() {
    block_on(async {
        let mut cluster = Cluster::started();
        let mut client = killed_with_unstored(&mut cluster).await;
        let held = scos(&cluster);
        assert!(held.len() >= 5, "{held:?}");
        // One in the middle, and the last one, which no later header tells of.
        for (_, path) in [&held[2], &held[held.len() - 1]] {
            flip_at(path, 26);
        }
        cluster.start();
        check(&mut client, 24).await;
        assert!(
            cluster.log().contains("it has a header again"),
            "{}",
            cluster.log()
        );
        cluster.start_storage();
        client.sync().await;
        check(&mut client, 24).await;
    });
}

#[test]
fn damage_in_the_middle_of_the_log_is_not_its_end() {
    block_on(async {
        let mut cluster = Cluster::started();
        let mut client = killed_with_unstored(&mut cluster).await;
        let registry = cluster.registry().await;
        let held = scos(&cluster);
        let (header, path) = &held[1];
        // In the second batch of its TLog.
        let at = ScoSize::HEADER_AREA + 4000;
        flip_at(path, at);
        // Only the back end knows whether it has a good copy.
        cluster.start_storage();
        cluster.start();
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        let sco = format!("SCO {}", header.id);
        for wanted in ["/disk-1", &sco, "sconce volume takeover /disk-1 --force"] {
            assert!(refusal.text.contains(wanted), "{wanted:?} is not in {refusal}");
        }
        // Whoever asks again costs no epoch, and the files stay.
        let epoch = cluster.record(&registry, header.volume).await.epoch;
        for _ in 0..20 {
            client.reopen().await.unwrap_err();
        }
        assert_eq!(cluster.record(&registry, header.volume).await.epoch, epoch);
        assert_eq!(scos(&cluster).len(), held.len());

        // The file is put right: nothing is lost.
        cluster.kill();
        cluster.stop_storage();
        flip_at(path, at);
        cluster.start();
        check(&mut client, 24).await;

        // It is damaged for good: an operator decides.
        cluster.kill();
        flip_at(path, at);
        cluster.start_storage();
        cluster.start();
        client.reopen().await.unwrap_err();
        let volume = header.volume;
        let forced = VolumeControl::TakeOver { volume, force: true };
        client.control(forced).await.unwrap();
        client.reopen().await.unwrap();
        check(&mut client, 4).await;
        client.write(0, bytes(99, 4096)).await;
        let told = "as an operator asked";
        until(told, async || cluster.log().contains(told).then_some(())).await;
        cluster.kill();
        cluster.start();
        assert_eq!(client.read(0, 4096).await, bytes(99, 4096));
    });
}

#[test]
fn a_file_that_rots_after_its_object_was_stored_holds_up_nothing() {
    block_on(async {
        let mut cluster = Cluster::started();
        let mut client = killed_with_unstored(&mut cluster).await;
        cluster.start_storage();
        // Its object was stored, but the volume-router died before it knew; then the file rotted.
        let (header, path) = &scos(&cluster)[0];
        let name = ObjectName::Sco {
            volume: header.volume,
            id: header.id,
            epoch: header.epoch,
            version: 0,
        };
        let object = std::fs::read(path).unwrap();
        client.put(name, object).await;
        flip_at(path, header.size.slot_offset(Slot(5)) + 77);
        cluster.start();
        client.reopen().await.unwrap();
        client.sync().await;
        check(&mut client, 24).await;
        let told = "it counts as stored";
        assert!(cluster.log().contains(told), "{}", cluster.log());
    });
}
