//! A disk that fails under the service: the volume halts, is recovered, and nothing acknowledged is lost.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::CallError;
use sconce_runtime::{Clock, Stop};
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{IoCode, VolumeControl};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_volume_router::device::faults::{Call, Fault, FaultyDisk};
use sconce_volume_router::{Components, Settings};

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, LONG, block_on, until};

const MIB: u64 = 1 << 20;

pub(crate) struct Router {
    pub(crate) disk: Arc<FaultyDisk>,
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Router {
    pub(crate) fn stop(self) {
        self.disk.heal();
        self.stop.request();
        self.thread.join().unwrap();
    }
}

/// The service in this process, on a disk that the test lets fail.
pub(crate) fn start(cluster: &Cluster, disk: FaultyDisk) -> Router {
    let settings: Settings = sconce_runtime::settings::load(&cluster.settings()).unwrap();
    let (disk, stop) = (Arc::new(disk), Stop::new());
    let (faulty, stopped, network) = (disk.clone(), stop.clone(), cluster.network.clone());
    let thread = std::thread::spawn(move || {
        let service = async {
            let mut components = Components::of(&settings, network, stopped).await.unwrap();
            components.clock = Clock::system();
            components.disk = faulty;
            sconce_volume_router::run(settings, components).await.unwrap();
        };
        sconce_volume_router::block_on(service).unwrap();
    });
    Router { disk, stop, thread }
}

#[test]
fn every_failing_call_costs_a_recovery_and_no_acknowledged_write() {
    block_on(async {
        let cluster = Cluster::new();
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 1);
        let faults = [
            (Call::Write, Fault::Io),
            (Call::Write, Fault::NoSpace),
            (Call::Write, Fault::Short(100)),
            (Call::Sync, Fault::Io),
            (Call::Read, Fault::NotInMemory),
            (Call::Read, Fault::Short(5000)),
        ];
        let before = cluster.record(&registry, volume).await.epoch;
        for (call, fault) in faults {
            for passes in [0, 1, 7] {
                router.disk.arm(call, passes, 1, fault);
                for _ in 0..20 {
                    model.change(&mut client).await;
                }
                client.flush().await;
                let at = model.rng.usize(0..2000) * 4096;
                let found = client.read(at as u64, 4096).await;
                assert_eq!(found, model.bytes[at..at + 4096]);
            }
        }
        router.disk.heal();
        model.check(&mut client).await;
        let after = cluster.record(&registry, volume).await.epoch;
        assert!(
            after.0 >= before.0 + 6,
            "failures of the device halt the volume: {before} to {after}"
        );
        router.stop();
        assert_eq!(cluster.record(&registry, volume).await.buffer, None);
    });
}

#[test]
fn a_flush_after_a_recovery_waits_for_the_sync_of_what_was_recovered() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        cluster.stop_storage();
        for number in 0..10 {
            client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        }
        cluster.kill();
        let held: Vec<_> = cluster
            .files("buffer/sco")
            .into_iter()
            .filter(|path| std::fs::read(path).unwrap()[..4] != [0; 4])
            .collect();
        assert!(held.len() >= 3, "{held:?}");

        // The sync of the seal is a part of the recovery; none of those behind it ends.
        let disk = FaultyDisk::default();
        disk.arm(Call::Sync, 1, u32::MAX, Fault::Held);
        let router = start(&cluster, disk);
        client.reopen().await.unwrap();
        let flush = client.request(IoCode::Flush, 0, 0, 0);
        let early = client.attempt(flush, Bytes::new(), Duration::from_millis(500));
        let early = early.await;
        assert!(
            !matches!(early, Ok(Ok(_))),
            "answered before anything is synced: {early:?}"
        );
        router.disk.heal();
        client.flush().await;
        for path in &held {
            let synced = router.disk.syncs(&std::fs::metadata(path).unwrap());
            assert!(synced > 0, "{} was not synced", path.display());
        }
        cluster.start_storage();
        router.stop();
    });
}

#[test]
fn an_actor_that_panics_costs_a_recovery_and_no_acknowledged_write() {
    block_on(async {
        let cluster = Cluster::new();
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 3);
        for passes in [0, 1, 5] {
            for _ in 0..40 {
                model.change(&mut client).await;
            }
            router.disk.arm(Call::Write, passes, 1, Fault::Panic);
            for _ in 0..20 {
                model.change(&mut client).await;
            }
            model.check(&mut client).await;
        }
        client.sync().await;
        model.check(&mut client).await;
        router.stop();
    });
}

#[test]
fn a_read_beside_a_write_that_fails_is_not_damage() {
    block_on(async {
        let cluster = Cluster::new();
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(1, 4096)).await;
        for _ in 0..10 {
            client.reopen().await.unwrap();
            router.disk.arm(Call::Write, 0, 1, Fault::Io);
            let write = client.request(IoCode::Write, 0, 0, 4096);
            let read = client.request(IoCode::Read, 0, 0, 4096);
            // Both leave as one message, and reach the volume as one round.
            let (written, read) = tokio::join!(
                client.attempt(write, bytes(2, 4096), LONG),
                client.attempt(read, Bytes::new(), LONG)
            );
            assert!(!matches!(written, Ok(Ok(_))), "{written:?}");
            if let Ok(Err(refusal)) = read {
                assert_ne!(refusal.remedy, Remedy::Damaged, "{refusal}");
            }
            router.disk.heal();
        }
        router.stop();
    });
}

#[test]
fn what_a_client_left_behind_is_not_applied_after_what_its_successor_wrote() {
    block_on(async {
        let cluster = Cluster::new();
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(1, 4096)).await;

        // A write of a part of a cluster, whose rest is read from a disk that hangs.
        router.disk.arm(Call::Read, 0, 1, Fault::NotInMemory);
        router.disk.arm(Call::Read, 1, 1, Fault::Held);
        let part = client.request(IoCode::Write, 0, 512, 512);
        let sent = client
            .attempt(part, bytes(2, 512), Duration::from_millis(300))
            .await;
        assert!(sent.is_err(), "{sent:?}");
        drop(client);
        let mut successor = Client::open(&cluster, volume).await;
        successor.write(0, bytes(3, 4096)).await;
        until("the volume to hear that the first client is gone", async || {
            let node = successor.node().await;
            let operations = node
                .queues
                .iter()
                .find(|queue| queue.name.starts_with("operations"));
            (operations.unwrap().requests == 0).then_some(())
        })
        .await;
        router.disk.heal();
        successor.flush().await;
        successor.sync().await;
        assert_eq!(successor.read(0, 4096).await, bytes(3, 4096));
        router.stop();
        let router = start(&cluster, FaultyDisk::default());
        assert_eq!(successor.read(0, 4096).await, bytes(3, 4096));
        router.stop();
    });
}

#[test]
fn a_buffer_that_cannot_be_read_is_refused_in_clear_words_and_costs_no_epochs() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        for number in 0..8 {
            client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        }
        // Its first SCO is on the back end, the rest is not.
        until("a SCO to be stored", async || {
            let files = cluster.files("backend");
            let stored = |path: &std::path::PathBuf| path.to_string_lossy().contains("/sco/000000000001.");
            files.iter().any(stored).then_some(())
        })
        .await;
        cluster.stop_storage();
        for number in 8..20 {
            client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        }
        cluster.kill();
        cluster.start_storage();

        // Headers can be read, and nothing else.
        let files = u32::try_from(cluster.files("buffer/sco").len()).unwrap();
        let disk = FaultyDisk::default();
        disk.arm(Call::Read, files, u32::MAX, Fault::Io);
        let router = start(&cluster, disk);
        let refusal = client.reopen().await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        for wanted in [
            "/disk-1",
            "cannot be read from the write buffer",
            "no stored copy of SCO",
            "--force",
        ] {
            assert!(refusal.text.contains(wanted), "{wanted:?} is not in {refusal}");
        }
        let epoch = cluster.record(&registry, volume).await.epoch;
        for _ in 0..20 {
            client.reopen().await.unwrap_err();
        }
        assert_eq!(cluster.record(&registry, volume).await.epoch, epoch);
        router.stop();

        // Not even headers: any file may be any SCO.
        let disk = FaultyDisk::default();
        disk.arm(Call::Read, 0, u32::MAX, Fault::Io);
        let router = start(&cluster, disk);
        let refusal = client.reopen().await.unwrap_err();
        assert!(
            refusal.text.contains("of the write buffer cannot be read"),
            "{refusal}"
        );
        router.stop();

        // The disk is well again.
        let router = start(&cluster, FaultyDisk::default());
        for number in 0..20 {
            let found = client.read(number * 256 * 1024, 256 << 10).await;
            assert!(found == bytes(number, 256 << 10), "block {number}");
        }
        router.stop();
    });
}

#[test]
fn a_file_that_cannot_be_read_for_its_upload_stops_nothing() {
    block_on(async {
        let mut cluster = Cluster::new();
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.sync().await;
        cluster.stop_storage();
        for number in 0..10 {
            client.write(number * 256 * 1024, bytes(number, 256 << 10)).await;
        }
        let epoch = cluster.record(&registry, volume).await.epoch;
        router.disk.arm(Call::Read, 0, u32::MAX, Fault::Io);
        cluster.start_storage();
        until("an upload to fail", async || {
            (router.disk.failed() > 3).then_some(())
        })
        .await;
        client.write(0, bytes(50, 4096)).await;
        assert_eq!(
            cluster.record(&registry, volume).await.epoch,
            epoch,
            "it was not halted"
        );
        router.disk.heal();
        client.sync().await;
        assert_eq!(client.read(0, 4096).await, bytes(50, 4096));
        assert_eq!(
            client.read(9 * 256 * 1024, 4096).await,
            bytes(9, 256 << 10)[..4096]
        );
        assert_eq!(cluster.record(&registry, volume).await.epoch, epoch);
        router.stop();
    });
}

#[test]
fn what_is_done_after_the_lease_ended_is_not_acknowledged_by_the_node_that_lost_it() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\nlease = \"1s\"\n");
        let router = start(&cluster, FaultyDisk::default());
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(1, 4096)).await;
        router.disk.arm(Call::Sync, 0, u32::MAX, Fault::Held);
        let flush = client.request(IoCode::Flush, 0, 0, 0);
        let flushed = client.attempt(flush, Bytes::new(), LONG);
        let take = VolumeControl::TakeSnapshot {
            volume,
            id: SnapshotId(1),
            name: "late".to_owned(),
            metadata: [].into(),
        };
        let asking = Client::connect(&cluster, volume);
        let taken = asking.control(take.clone());
        let lease_ends = async {
            cluster.stop_registry();
            until("the lease to end", async || {
                let mut other = Client::connect(&cluster, volume);
                let read = other.request(IoCode::Read, 0, 0, 4096);
                let refusal = match other.attempt(read, Bytes::new(), LONG).await {
                    Ok(answer) => answer.unwrap_err(),
                    // Silent for a while, on a busy machine.
                    Err(CallError::Lost) => return None,
                    Err(error) => panic!("{error}"),
                };
                refusal.text.contains("no lease").then_some(())
            })
            .await;
            router.disk.heal();
        };
        let (flushed, taken, ()) = tokio::join!(flushed, taken, lease_ends);
        for refusal in [flushed.unwrap().unwrap_err(), taken.unwrap_err()] {
            assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
            assert!(refusal.text.contains("no lease"), "{refusal}");
        }
        cluster.start_registry();
        client.flush().await;
        // Asked again under the same id it is there, once.
        crate::snapshots::ask(&asking, take).await.unwrap();
        assert_eq!(crate::snapshots::list(&asking).await.len(), 1);
        assert_eq!(client.read(0, 4096).await, bytes(1, 4096));
        router.stop();
    });
}
