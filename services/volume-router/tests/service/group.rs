//! A volume's part of a snapshot of several volumes: acknowledgements are held until it is decided, never for long, and what
//! is not confirmed leaves nothing.

use bytes::Bytes;
use sconce_schemas::SnapshotId;
use sconce_schemas::wire::volume::{IoCode, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode};

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, LONG, block_on, until};
use crate::snapshots::{ask, list, take};

const MIB: u64 = 1 << 20;
const NAME: &str = "together";

async fn propose(client: &Client, id: u64) -> Result<(), Refusal> {
    let propose = VolumeControl::ProposeSnapshot {
        volume: client.volume,
        id: SnapshotId(id),
        name: NAME.to_owned(),
        metadata: [("group".to_owned(), "1".to_owned())].into(),
    };
    ask(client, propose).await.map(drop)
}

async fn confirm(client: &Client, id: u64) -> Result<VolumeControlReply, Refusal> {
    let (volume, id) = (client.volume, SnapshotId(id));
    ask(client, VolumeControl::ConfirmSnapshot { volume, id }).await
}

async fn withdraw(client: &Client, id: u64) -> Result<VolumeControlReply, Refusal> {
    let (volume, id) = (client.volume, SnapshotId(id));
    ask(client, VolumeControl::WithdrawSnapshot { volume, id }).await
}

async fn names(client: &Client) -> Vec<String> {
    let known = list(client).await;
    known.into_iter().map(|snapshot| snapshot.name).collect()
}

/// The name of what went is free, at the latest when the volume has noticed.
async fn name_is_free(client: &Client, id: u64) {
    let mut id = id;
    until("the name to be free", async || {
        id += 1;
        match take(client, id, NAME).await {
            Ok(()) => Some(()),
            Err(refusal) => {
                assert_eq!(refusal.code, RefusalCode::Exists, "{refusal}");
                None
            }
        }
    })
    .await;
}

#[test]
fn acknowledgements_wait_until_the_snapshot_is_confirmed_and_it_has_nothing_of_what_came_after_it() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ngroup_hold = \"10s\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let (before, after) = (bytes(1, 4096), bytes(2, 4096));
        client.write(0, before.clone()).await;

        propose(&client, 1).await.unwrap();
        propose(&client, 1).await.unwrap();
        assert_eq!(propose(&client, 2).await.unwrap_err().code, RefusalCode::Conflict);
        assert!(names(&client).await.is_empty(), "it is not confirmed");
        let write = client.request(IoCode::Write, 0, 0, 4096);
        {
            let written = client.attempt(write, after.clone(), LONG);
            tokio::pin!(written);
            tokio::select! {
                biased;
                answer = &mut written => panic!("{answer:?} came while acknowledgements are held"),
                // Answered after the write was taken in: they come by one connection.
                known = names(&client) => assert!(known.is_empty()),
            }
            confirm(&client, 1).await.unwrap();
            written.await.unwrap().unwrap();
        }
        confirm(&client, 1).await.unwrap();
        assert_eq!(withdraw(&client, 1).await.unwrap_err().code, RefusalCode::Exists);
        assert_eq!(names(&client).await, [NAME]);

        cluster.kill();
        cluster.start();
        assert_eq!(client.read(0, 4096).await, after);
        let mut snapshot = Client::open_snapshot(&cluster, volume, NAME).await.unwrap();
        assert_eq!(snapshot.read(0, 4096).await, before);
    });
}

#[test]
fn who_proposes_and_goes_away_holds_acknowledgements_only_for_a_while() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ngroup_hold = \"50ms\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        propose(&client, 1).await.unwrap();
        let request = client.request(IoCode::Write, 0, 0, 4096);
        client.io(request, Bytes::from(vec![7; 4096])).await.unwrap();
        assert_eq!(confirm(&client, 1).await.unwrap_err().code, RefusalCode::Conflict);
        // Also where nobody withdraws it.
        name_is_free(&client, 10).await;
        assert_eq!(names(&client).await, [NAME]);
        assert_eq!(confirm(&client, 1).await.unwrap_err().code, RefusalCode::Conflict);
        withdraw(&client, 1).await.unwrap();
    });
}

#[test]
fn what_was_not_confirmed_before_a_kill_is_gone_after_it() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\ngroup_hold = \"10s\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        client.write(0, bytes(3, 8192)).await;
        propose(&client, 1).await.unwrap();
        cluster.kill();
        cluster.start();
        assert_eq!(confirm(&client, 1).await.unwrap_err().code, RefusalCode::Conflict);
        name_is_free(&client, 10).await;
        assert_eq!(client.read(0, 8192).await, bytes(3, 8192));
        assert_eq!(names(&client).await, [NAME]);
    });
}
