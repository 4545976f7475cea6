//! A registry that forgets, breaks or takes back what it said of a volume.

use bytes::Bytes;
use sconce_bus::CallError;
use sconce_registry::{Change, Registry};
use sconce_schemas::records::{VolumeRecord, keys};
use sconce_schemas::wire::Remedy;
use sconce_schemas::wire::volume::{IoCode, VolumeControl};
use sconce_schemas::{Epoch, VolumeId};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, LONG, block_on, until};

const MIB: u64 = 1 << 20;

/// What happens to a volume's record.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Wiped,
    Damaged,
    Older,
}

async fn put(registry: &Registry, record: &VolumeRecord) {
    let key = keys::volume(record.id);
    registry.put_record(&key, None, record, None).await.unwrap();
}

async fn harm(registry: &Registry, volume: VolumeId, harm: Harm, old: &VolumeRecord) {
    let key = keys::volume(volume);
    let change = match harm {
        Harm::Wiped => Change::delete(key, None),
        Harm::Damaged => Change::put(&key, None, b"no record".to_vec()),
        Harm::Older => return put(registry, old).await,
    };
    registry.commit(vec![change]).await.unwrap();
}

/// A volume of which much is in the write buffer alone, written in several ownerships, and its record from before most
/// of that.
async fn with_unstored(cluster: &mut Cluster, registry: &Registry) -> (Client, Model, VolumeRecord) {
    let volume = cluster.create(registry, 1, 8 * MIB).await;
    let mut client = Client::open(cluster, volume).await;
    let mut model = Model::new(8 << 20, 11);
    let old = cluster.record(registry, volume).await;
    for _ in 0..60 {
        model.change(&mut client).await;
    }
    client.sync().await;
    cluster.kill();
    cluster.stop_storage();
    cluster.start();
    for _ in 0..60 {
        model.change(&mut client).await;
    }
    (client, model, old)
}

#[test]
fn a_record_that_is_lost_damaged_or_old_costs_a_live_owner_no_acknowledged_write() {
    for kind in [Harm::Wiped, Harm::Damaged, Harm::Older] {
        block_on(async {
            let mut cluster = Cluster::started();
            let registry = cluster.registry().await;
            let (mut client, mut model, old) = with_unstored(&mut cluster, &registry).await;
            let volume = old.id;
            let right = cluster.record(&registry, volume).await;
            harm(&registry, volume, kind, &old).await;
            // Now the owner stores all, and learns of it when it names its manifest.
            cluster.start_storage();
            let noticed = match kind {
                Harm::Wiped | Harm::Older => "served here no more",
                Harm::Damaged => "noting a manifest in the registry does not work now",
            };
            let log = async || cluster.log().contains(noticed).then_some(());
            until(noticed, log).await;
            match kind {
                Harm::Wiped => {
                    let asked = VolumeControl::Open {
                        volume,
                        session: client.session,
                        snapshot: None,
                        access: None,
                    };
                    let refusal =
                        until("a refusal", async || client.control(asked.clone()).await.err()).await;
                    assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
                    let fresh = VolumeRecord {
                        epoch: Epoch::NONE,
                        epochs: Vec::new(),
                        manifest: None,
                        buffer: None,
                        ..right
                    };
                    put(&registry, &fresh).await;
                }
                Harm::Damaged => put(&registry, &right).await,
                Harm::Older => {}
            }
            model.check(&mut client).await;
            for _ in 0..20 {
                model.change(&mut client).await;
            }
            client.sync().await;
            model.check(&mut client).await;
        });
    }
}

#[test]
fn a_damaged_record_keeps_no_other_volume_from_being_served_after_the_lease_ended() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[volumes]\nlease = \"1s\"\n");
        cluster.start();
        let registry = cluster.registry().await;
        let mut clients = Vec::new();
        for number in [1, 2] {
            let volume = cluster.create(&registry, number, 8 * MIB).await;
            let mut client = Client::open(&cluster, volume).await;
            client.write(0, vec![number; 4096]).await;
            clients.push(client);
        }
        let right = cluster.record(&registry, clients[0].volume).await;
        harm(&registry, right.id, Harm::Damaged, &right).await;
        // A renewal that was under way when the lease ended may be answered in time after all: then it did not end, and is cut off again.
        while !cluster.log().contains("the lease had ended") {
            cluster.stop_registry();
            until("the gate to shut", async || {
                let mut other = Client::connect(&cluster, clients[1].volume);
                let read = other.request(IoCode::Read, 0, 0, 4096);
                let refusal = match other.attempt(read, Bytes::new(), LONG).await {
                    Ok(answer) => answer.err(),
                    // Silent for a while, on a busy machine.
                    Err(CallError::Lost) => None,
                    Err(error) => panic!("{error}"),
                };
                refusal
                    .is_some_and(|refusal| refusal.text.contains("no lease"))
                    .then_some(())
            })
            .await;
            cluster.start_registry();
            assert_eq!(clients[1].read(0, 4096).await, vec![2; 4096]);
        }
        clients[1].write(4096, vec![2; 4096]).await;
        let asked = VolumeControl::Open {
            volume: right.id,
            session: clients[0].session,
            snapshot: None,
            access: None,
        };
        let refusal = clients[0].control(asked).await.unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
        put(&registry, &right).await;
        assert_eq!(clients[0].read(0, 4096).await, vec![1; 4096]);
    });
}

#[test]
fn a_record_that_is_lost_damaged_or_old_costs_a_restart_no_acknowledged_write() {
    for kind in [Harm::Wiped, Harm::Damaged, Harm::Older] {
        block_on(async {
            let mut cluster = Cluster::started();
            let registry = cluster.registry().await;
            let (mut client, mut model, old) = with_unstored(&mut cluster, &registry).await;
            let right = cluster.record(&registry, old.id).await;
            cluster.kill();
            harm(&registry, old.id, kind, &old).await;
            cluster.start();
            if !matches!(kind, Harm::Older) {
                let told = match kind {
                    Harm::Wiped => "a volume that the registry does not know",
                    _ => "a volume's record is damaged",
                };
                until(told, async || cluster.log().contains(told).then_some(())).await;
                put(&registry, &right).await;
            }
            model.check(&mut client).await;
            // And once more: what the record says now is enough.
            for _ in 0..20 {
                model.change(&mut client).await;
            }
            cluster.kill();
            cluster.start();
            model.check(&mut client).await;
            cluster.start_storage();
            client.sync().await;
            model.check(&mut client).await;
        });
    }
}
