//! Changed blocks, asked for over the bus: between snapshots, since one, since what a clone began as; through restarts.

use sconce_schemas::records::Origin;
use sconce_schemas::wire::volume::{
    ChangeKind, IoCode, IoRequest, Since, VolumeControl, VolumeControlReply, VolumeReply,
};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{SnapshotId, VolumeId};

use bytes::Bytes;

use crate::client::{Client, Model, bytes};
use crate::cluster::{Cluster, block_on, until};
use crate::snapshots::{ask, take};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;

async fn open(client: &Client, of: Option<&str>, since: Option<Since>) -> Result<(u32, u64), Refusal> {
    let control = VolumeControl::OpenChanges {
        volume: client.volume,
        snapshot: of.map(str::to_owned),
        since,
    };
    match ask(client, control).await? {
        VolumeControlReply::OpenedChanges { handle, size, .. } => Ok((handle, size.bytes())),
        other => panic!("{other:?}"),
    }
}

fn since(snapshot: &str) -> Option<Since> {
    Some(Since {
        volume: None,
        snapshot: snapshot.to_owned(),
    })
}

fn since_of(volume: VolumeId, snapshot: &str) -> Option<Since> {
    Some(Since {
        volume: Some(volume),
        snapshot: snapshot.to_owned(),
    })
}

/// The kind of each cluster, asked for until all is told.
async fn changes(client: &mut Client, of: Option<&str>, since: Option<Since>) -> Vec<ChangeKind> {
    let (handle, size) = open(client, of, since).await.unwrap();
    let (mut kinds, mut at) = (Vec::new(), 0);
    while at < size {
        let request = IoRequest {
            handle,
            ..client.request(IoCode::Changes, 0, at, size - at)
        };
        let extents = until("what changed", async || {
            match client
                .attempt(request, Bytes::new(), crate::cluster::LONG)
                .await
                .unwrap()
            {
                Ok((VolumeReply::Changes(extents), _)) => Some(extents),
                Ok((other, _)) => panic!("{other:?}"),
                Err(refusal) => {
                    assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
                    None
                }
            }
        })
        .await;
        assert!(!extents.is_empty());
        for extent in extents {
            let clusters = usize::try_from(extent.length.div_ceil(4096)).unwrap();
            kinds.resize(kinds.len() + clusters, extent.kind);
            at += extent.length;
        }
    }
    kinds
}

/// What differs by content is reported, and nothing that no change touched.
fn check(kinds: &[ChangeKind], before: &[u8], now: &[u8], touched: &[bool]) {
    for (at, kind) in kinds.iter().enumerate() {
        let cluster = at * 4096..(at + 1) * 4096;
        let zeros = vec![0; 4096];
        let before = before.get(cluster.clone()).unwrap_or(&zeros);
        if before != &now[cluster.clone()] {
            assert_ne!(*kind, ChangeKind::Same, "cluster {at} differs");
        }
        if *kind != ChangeKind::Same {
            assert!(
                touched[at],
                "cluster {at} was left alone and is reported as {kind:?}"
            );
        }
        if matches!(kind, ChangeKind::Hole | ChangeKind::Zeros) {
            assert_eq!(now[cluster], zeros, "cluster {at} is no zeros");
        }
    }
}

/// Random changes, and which clusters they touched.
async fn change(model: &mut Model, client: &mut Client, touched: &mut [bool]) {
    for _ in 0..15 {
        let mut after = model.rng.clone();
        let length = 512 * after.usize(1..=128);
        let offset = 512 * after.usize(0..=(SIZE - length) / 512);
        // A discard is of whole clusters.
        let end = (offset / 4096 * 4096 + length.next_multiple_of(4096)).max(offset + length);
        touched[offset / 4096..end.min(SIZE).div_ceil(4096)].fill(true);
        model.change(client).await;
    }
}

fn all(touched: bool) -> Vec<bool> {
    vec![touched; SIZE / 4096]
}

#[test]
fn what_changed_is_told_between_any_two_and_through_restarts() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(SIZE, 51);
        let (mut one, mut two) = (all(false), all(false));
        change(&mut model, &mut client, &mut all(false)).await;
        let monday = model.bytes.clone();
        take(&client, 1, "monday").await.unwrap();
        change(&mut model, &mut client, &mut one).await;
        let tuesday = model.bytes.clone();
        take(&client, 2, "tuesday").await.unwrap();
        change(&mut model, &mut client, &mut two).await;
        for round in 0..2 {
            let both: Vec<bool> = one.iter().zip(&two).map(|(one, two)| *one || *two).collect();
            let kinds = changes(&mut client, Some("tuesday"), since("monday")).await;
            check(&kinds, &monday, &tuesday, &one);
            check(
                &changes(&mut client, None, since("tuesday")).await,
                &tuesday,
                &model.bytes,
                &two,
            );
            check(
                &changes(&mut client, None, since("monday")).await,
                &monday,
                &model.bytes,
                &both,
            );
            // Backwards too, and from nothing.
            let kinds = changes(&mut client, Some("monday"), since("tuesday")).await;
            check(&kinds, &tuesday, &monday, &one);
            let kinds = changes(&mut client, Some("monday"), None).await;
            check(&kinds, &[], &monday, &all(true));
            let same = changes(&mut client, Some("monday"), since("monday")).await;
            assert!(same.iter().all(|kind| *kind == ChangeKind::Same));
            // A write is seen once it is acknowledged.
            client.write(8192, bytes(round, 4096)).await;
            model.bytes[8192..12288].copy_from_slice(&bytes(round, 4096));
            two[2] = true;
            let kinds = changes(&mut client, None, since("tuesday")).await;
            assert_eq!(kinds[2], ChangeKind::Data);
            if round == 0 {
                client.sync().await;
            }
            cluster.kill();
            cluster.start();
            client.reopen().await.unwrap();
        }
        for (of, from, said) in [
            (None, since("sunday"), "has no snapshot \"sunday\""),
            (Some("sunday"), since("monday"), "has no snapshot \"sunday\""),
        ] {
            let refusal = open(&client, of, from).await.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::NotFound);
            assert!(refusal.text.contains(said), "{refusal}");
        }
        // What is gone is told.
        let (handle, size) = open(&client, Some("tuesday"), since("monday")).await.unwrap();
        let remove = VolumeControl::RemoveSnapshot {
            volume,
            name: "monday".to_owned(),
            id: None,
        };
        ask(&client, remove).await.unwrap();
        let request = IoRequest {
            handle,
            ..client.request(IoCode::Changes, 0, 0, size)
        };
        let refusal = client.attempt(request, Bytes::new(), crate::cluster::LONG).await;
        assert_eq!(refusal.unwrap().unwrap_err().code, RefusalCode::NotFound);
        // Such a handle is for nothing else.
        let (handle, size) = open(&client, None, since("tuesday")).await.unwrap();
        for code in [IoCode::Extents, IoCode::Discard] {
            let request = IoRequest {
                handle,
                ..client.request(code, 0, 0, size)
            };
            let refusal = client.attempt(request, Bytes::new(), crate::cluster::LONG).await;
            assert_eq!(
                refusal.unwrap().unwrap_err().code,
                RefusalCode::Invalid,
                "{code:?}"
            );
        }
    });
}

#[test]
fn a_clone_is_compared_with_what_it_began_as_and_with_what_its_ancestors_were() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut parent = Client::open(&cluster, volume).await;
        let mut parents = Model::new(SIZE, 52);
        change(&mut parents, &mut parent, &mut all(false)).await;
        let early = parents.bytes.clone();
        take(&parent, 1, "early").await.unwrap();
        let mut between = all(false);
        change(&mut parents, &mut parent, &mut between).await;
        take(&parent, 2, "base").await.unwrap();
        parent.sync().await;
        let origin = Origin {
            volume,
            snapshot: SnapshotId(2),
        };
        let clone = cluster.clone_of(&registry, 1, origin, 4 * MIB).await;
        let mut client = Client::open(&cluster, clone).await;
        let mut model = Model {
            bytes: parents.bytes.clone(),
            rng: fastrand::Rng::with_seed(53),
        };
        let base = model.bytes.clone();
        let kinds = changes(&mut client, None, since_of(volume, "base")).await;
        assert!(
            kinds.iter().all(|kind| *kind == ChangeKind::Same),
            "nothing was written yet"
        );
        let mut touched = all(false);
        change(&mut model, &mut client, &mut touched).await;
        take(&client, 7, "own").await.unwrap();
        for _ in 0..2 {
            let kinds = changes(&mut client, Some("own"), since_of(volume, "base")).await;
            check(&kinds, &base, &model.bytes, &touched);
            let since_early: Vec<bool> = between.iter().zip(&touched).map(|(a, b)| *a || *b).collect();
            let kinds = changes(&mut client, None, since_of(volume, "early")).await;
            check(&kinds, &early, &model.bytes, &since_early);
            client.sync().await;
            cluster.kill();
            cluster.start();
            client.reopen().await.unwrap();
            parent.reopen().await.unwrap();
        }
        // Its own id is as good as none.
        let kinds = changes(&mut client, None, since_of(clone, "own")).await;
        assert!(kinds.iter().all(|kind| *kind == ChangeKind::Same));
        // The parent does not come from the clone.
        let refusal = open(&parent, None, since_of(clone, "own")).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Invalid, "{refusal}");
        assert!(refusal.text.contains("nothing in common"), "{refusal}");
        let refusal = open(&client, None, since_of(volume, "sunday")).await.unwrap_err();
        assert!(refusal.text.contains("has no snapshot \"sunday\""), "{refusal}");
    });
}
