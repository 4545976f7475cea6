//! Ends and starts: killed, stopped, at crash points.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_schemas::wire::volume::IoCode;

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, LONG, block_on};

const MIB: u64 = 1 << 20;

#[test]
fn a_killed_router_has_every_acknowledged_write_at_once() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 2);
        for round in 0..4 {
            for _ in 0..150 {
                model.change(&mut client).await;
            }
            cluster.kill();
            let begun = Instant::now();
            cluster.start();
            let last = u64::try_from(model.bytes.len() - 512).unwrap();
            assert_eq!(
                client.read(last, 512).await,
                model.bytes[model.bytes.len() - 512..]
            );
            let took = begun.elapsed();
            assert!(took < LONG, "round {round}: the first answer took {took:?}");
            model.check(&mut client).await;
        }
        let record = cluster.record(&registry, volume).await;
        assert_eq!(record.epoch.0, 5);
    });
}

#[test]
fn a_restart_needs_no_back_end() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 3);
        for _ in 0..100 {
            model.change(&mut client).await;
        }
        client.sync().await;
        for _ in 0..100 {
            model.change(&mut client).await;
        }
        cluster.stop_storage();
        cluster.kill();
        cluster.start();
        model.check(&mut client).await;
        for _ in 0..50 {
            model.change(&mut client).await;
        }
        model.check(&mut client).await;
        cluster.start_storage();
        client.sync().await;
        model.check(&mut client).await;
    });
}

#[test]
fn an_operation_that_comes_twice_is_applied_once_even_across_a_restart() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let old = bytes(1, 4096);
        let mut first = client.request(IoCode::Write, 0, 0, 4096);
        client.io(first, old.clone()).await.unwrap();
        let mut second = client.request(IoCode::Write, 0, 0, 4096);
        second.below = first.number;
        let new = bytes(2, 4096);
        client.io(second, new.clone()).await.unwrap();
        cluster.kill();
        cluster.start();
        client.reopen().await.unwrap();
        first.handle = client.handle;
        client.io(first, old).await.unwrap();
        assert_eq!(
            client.read(0, 4096).await,
            new,
            "a late duplicate wrote over newer data"
        );
    });
}

#[test]
fn an_orderly_stop_stores_all_and_needs_no_buffer_afterwards() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 4);
        for _ in 0..100 {
            model.change(&mut client).await;
        }
        assert_eq!(cluster.stop(), Some(0));
        let record = cluster.record(&registry, volume).await;
        assert_eq!(record.buffer, None);
        cluster.start();
        model.check(&mut client).await;
        assert_eq!(client.located, 0, "the files are still there as caches");
        model.change(&mut client).await;
        assert_eq!(cluster.stop(), Some(0));
        std::fs::remove_dir_all(cluster.path("buffer")).unwrap();
        cluster.start();
        model.check(&mut client).await;
        assert!(client.located > 0, "everything comes from the back end");
    });
}

#[test]
fn a_stop_without_a_back_end_ends_in_time_and_loses_nothing() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\nstop_within = \"300ms\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 8 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(8 << 20, 5);
        cluster.stop_storage();
        for _ in 0..50 {
            model.change(&mut client).await;
        }
        let begun = Instant::now();
        cluster.stop();
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        assert!(cluster.record(&registry, volume).await.buffer.is_some());
        cluster.start();
        model.check(&mut client).await;
    });
}

/// Whether the volume-router passes the point with a volume that lives. Every point is named: a new one has to be decided on here.
pub(crate) fn is_of_the_volume_router(point: Point) -> bool {
    match point {
        Point::AfterAppend
        | Point::BeforeAck
        | Point::AfterScoClosed
        | Point::AfterScoUploaded
        | Point::AfterCheckpointStored
        | Point::AfterManifestStored
        | Point::AfterRecordUpdated
        | Point::AfterRecycle
        | Point::DuringRecovery => true,
        Point::AfterTempWritten | Point::AfterRename | Point::AfterJournal | Point::AfterApply => false,
        // `deletion` passes these.
        Point::DuringErasure | Point::AfterErasure => false,
        // `neighbour` passes these.
        Point::BeforeBundlePut | Point::AfterBundlePut => false,
    }
}

#[test]
fn every_crash_point_of_the_volume_router_keeps_what_was_acknowledged() {
    let points = Point::ALL.iter().filter(|point| is_of_the_volume_router(**point));
    for point in points {
        block_on(async {
            let mut cluster = Cluster::new().with_buffer("32 MiB");
            cluster.start();
            let registry = cluster.registry().await;
            let volume = cluster.create(&registry, 1, 4 * MIB).await;
            let mut client = Client::open(&cluster, volume).await;
            let mut model = Model::new(4 << 20, 6);
            for _ in 0..20 {
                model.change(&mut client).await;
            }
            cluster.kill();
            let mut armed = cluster.with_env(CRASH_ENV, point.name());
            armed.start();
            let ended = std::cell::Cell::new(false);
            let reached = async {
                // Whatever is under way when the process ends is sent again by the client. The last point is passed
                // when the buffer's files were all used once.
                let mut changes = 0;
                while changes < 40 || !ended.get() {
                    assert!(changes < 4000, "{} is not reached", point.name());
                    model.change(&mut client).await;
                    changes += 1;
                    if changes == 40 {
                        client.sync().await;
                    }
                }
                client.sync().await;
            };
            let watched = async {
                while !armed.has_ended() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                armed.clear_env();
                armed.start();
                ended.set(true);
            };
            tokio::join!(reached, watched);
            model.check(&mut client).await;
            assert!(
                armed.log().contains(point.name()),
                "{} was not reached",
                point.name()
            );
        });
    }
}

#[test]
fn a_flush_and_a_write_with_fua_are_answered() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.flush().await;
        let request = client.request(IoCode::Write, sconce_schemas::wire::volume::IoFlags::FUA, 0, 512);
        client.io(request, Bytes::from_static(&[7; 512])).await.unwrap();
        client.flush().await;
        assert_eq!(client.read(0, 1024).await, [[7; 512], [0; 512]].concat());
    });
}
