//! Clients that send what is wrong.

use std::time::Duration;

use bytes::Bytes;
use sconce_schemas::wire::volume::{IoCode, VolumeControl};
use sconce_schemas::wire::{RefusalCode, Remedy};

use crate::client::Client;
use crate::cluster::{Cluster, LONG, block_on};

const MIB: u64 = 1 << 20;

#[test]
fn what_a_client_sends_wrong_is_refused_and_harms_nobody() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, vec![5; 4096]).await;

        let mut cases = Vec::new();
        let mut wrong_handle = client.request(IoCode::Write, 0, 0, 4096);
        wrong_handle.handle = 0xffff_ffff;
        cases.push((wrong_handle, vec![1; 4096], Remedy::Reroute, RefusalCode::NotOpen));
        let short = client.request(IoCode::Write, 0, 0, 4096);
        cases.push((short, vec![1; 512], Remedy::Reject, RefusalCode::Invalid));
        let odd = client.request(IoCode::Flush, 0, 0, 0);
        cases.push((odd, vec![1; 512], Remedy::Reject, RefusalCode::Invalid));
        let beyond = client.request(IoCode::Write, 0, 64 * MIB, 4096);
        cases.push((beyond, vec![1; 4096], Remedy::Reject, RefusalCode::OutOfRange));
        let overflow = client.request(IoCode::Discard, 0, u64::MAX - 10, u64::MAX);
        cases.push((overflow, Vec::new(), Remedy::Reject, RefusalCode::OutOfRange));
        for (request, data, remedy, code) in cases {
            let refused = client
                .attempt(request, Bytes::from(data), LONG)
                .await
                .unwrap()
                .unwrap_err();
            assert_eq!(
                (refused.remedy, refused.code),
                (remedy, code),
                "{request:?}: {refused}"
            );
        }

        let stranger = Client::open(&cluster, volume).await;
        let mut stolen = client.request(IoCode::Write, 0, 0, 4096);
        stolen.handle = client.handle + (1 << 16);
        let refused = stranger
            .attempt(stolen, Bytes::from(vec![1; 4096]), LONG)
            .await
            .unwrap();
        assert_eq!(refused.unwrap_err().code, RefusalCode::NotOpen);
        let refusal = client
            .control(VolumeControl::Close { handle: 12345 })
            .await
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen);

        assert_eq!(client.read(0, 4096).await, vec![5; 4096]);
    });
}

#[test]
fn a_closed_handle_is_closed_and_its_number_reaches_no_other_volume() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let (one, two) = (
            cluster.create(&registry, 1, MIB).await,
            cluster.create(&registry, 2, MIB).await,
        );
        let mut client = Client::open(&cluster, one).await;
        client.write(0, vec![1; 4096]).await;
        let handle = client.handle;
        client.control(VolumeControl::Close { handle }).await.unwrap();
        let session = client.session;
        client
            .control(VolumeControl::Open {
                volume: two,
                session,
                snapshot: None,
                access: None,
            })
            .await
            .unwrap();
        let late = client.request(IoCode::Write, 0, 0, 4096);
        let refused = client
            .attempt(late, Bytes::from(vec![9; 4096]), Duration::from_secs(10))
            .await;
        assert_eq!(refused.unwrap().unwrap_err().code, RefusalCode::NotOpen);
        let mut other = Client::open(&cluster, two).await;
        assert_eq!(other.read(0, 4096).await, vec![0; 4096]);
    });
}

#[test]
fn wrong_settings_are_told_by_key_value_and_what_is_right() {
    let cases = [
        ("64 KiB", "", vec!["buffer.size", "64 KiB", "32 MiB"]),
        (
            "64 MiB",
            "[uploads]\nparallel = 0\n",
            vec!["uploads.parallel", "0", "1 to 64"],
        ),
        (
            "64 MiB",
            "[volumes]\nlease = \"1h\"\n",
            vec!["volumes.lease", "1s to 5min"],
        ),
        (
            "64 MiB",
            "[volumes]\nmap_memroy = \"1 GiB\"\n",
            vec!["map_memroy", "map_memory"],
        ),
        (
            "64 MiB",
            "[erase]\nadopt_after = \"0s\"\n",
            vec!["erase.adopt_after", "1s to 24h"],
        ),
        (
            "64 MiB",
            "[limits]\nthreads = 2\n",
            vec!["limits.threads", "node.endpoints"],
        ),
    ];
    for (size, extra, wanted) in cases {
        let mut cluster = Cluster::new().with_buffer(size).with_settings(extra);
        cluster.start();
        cluster.wait_for_end();
        let log = cluster.log();
        for part in wanted.iter().chain(&["volume-router.toml"]) {
            assert!(log.contains(part), "{part:?} is not in {log}");
        }
    }
}
