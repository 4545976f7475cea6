//! The job of a bundle, as a volume-router gets it from another one: judged, checked, and the same whenever it is done.

use std::path::PathBuf;

use bytes::Bytes;
use sconce_schemas::bundle::{BundleIndex, KeptCluster, Member};
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::scrub::{BundleJob, JobSource};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{CLUSTER_LEN, ClusterAddress, Epoch, ObjectName, ScoId, ScoSize, Slot, VolumeId};

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, NODE, block_on, until};

const MIB: u64 = 1 << 20;

/// A job made by hand, on a SCO made by hand.
struct ByHand {
    job: BundleJob,
    index: BundleIndex,
    clusters: Vec<Bytes>,
}

impl ByHand {
    async fn new(client: &Client, epoch: Epoch) -> Self {
        let (volume, size) = (client.volume, ScoSize::new(256).unwrap());
        let object = |version| ObjectName::Sco {
            volume,
            id: ScoId(900),
            epoch,
            version,
        };
        let clusters: Vec<Bytes> = (0..5).map(|seed| bytes(seed, CLUSTER_LEN)).collect();
        let mut sco = vec![0; usize::try_from(size.data_offset()).unwrap()];
        clusters.iter().for_each(|cluster| sco.extend_from_slice(cluster));
        client.put(object(0), sco).await;
        let kept = |slot: u16| KeptCluster {
            slot: Slot(slot),
            address: ClusterAddress(u64::from(slot)),
            crc: crc32c(&clusters[usize::from(slot)]),
        };
        let member = Member {
            sco: ScoId(900),
            epoch,
            size,
            length: size.slot_offset(Slot(4)) + CLUSTER_LEN as u64,
            kept: [0, 2, 4].map(kept).to_vec(),
        };
        let source = JobSource {
            object: object(0),
            members: 1,
        };
        let job = BundleJob {
            bundle: object(0x8000),
            sources: vec![source],
            pool: "default".to_owned(),
            path: "/disk-1".to_owned(),
            owner: NODE.parse().unwrap(),
            epoch,
        };
        let index = BundleIndex {
            volume,
            members: vec![member],
        };
        Self { job, index, clusters }
    }

    fn kept(&mut self) -> &mut Vec<KeptCluster> {
        &mut self.index.members[0].kept
    }

    /// Asks until there is time for it.
    async fn ask(&self, client: &Client) -> Result<u64, Refusal> {
        let control = VolumeControl::WriteBundle(Box::new(self.job.clone()));
        until("time for it", async || {
            let index = Bytes::from(self.index.to_bytes());
            match client.control_with(control.clone(), index).await {
                Ok(VolumeControlReply::BundleWritten { length }) => Some(Ok(length.0)),
                Ok(other) => panic!("{other:?}"),
                Err(refusal) if refusal.text.contains("no time") => None,
                Err(refusal) => Some(Err(refusal)),
            }
        })
        .await
    }

    fn file(&self, cluster: &Cluster) -> PathBuf {
        cluster.path("backend").join(self.job.bundle.to_string())
    }
}

#[test]
fn a_job_is_checked_and_done_again_gives_the_same() {
    block_on(async {
        let cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let client = Client::open(&cluster, volume).await;
        let epoch = cluster.record(&registry, volume).await.epoch;
        let by_hand = async || ByHand::new(&client, epoch).await;
        let refused = async |job: &ByHand| {
            let refusal = job.ask(&client).await.unwrap_err();
            assert!(!job.file(&cluster).exists(), "it was written: {refusal}");
            refusal
        };

        // A zombie's: its ownership is over, or another node's.
        let mut zombie = by_hand().await;
        zombie.job.epoch = Epoch(epoch.0 - 1);
        assert_eq!(refused(&zombie).await.code, RefusalCode::NotOwner);
        let mut strange = by_hand().await;
        strange.job.owner = "somebody-else".parse().unwrap();
        assert_eq!(refused(&strange).await.code, RefusalCode::NotOwner);
        let mut unknown = by_hand().await;
        unknown.index.volume = VolumeId([9; 16]);
        assert_eq!(refused(&unknown).await.code, RefusalCode::Invalid);

        let mut misplaced = by_hand().await;
        misplaced.job.pool = "elsewhere".to_owned();
        assert_eq!(refused(&misplaced).await.code, RefusalCode::Invalid);

        // A cluster that is not what was written there.
        let mut damaged = by_hand().await;
        damaged.kept()[1].crc ^= 1;
        let refusal = refused(&damaged).await;
        assert!(refusal.text.contains("not what was written there"), "{refusal}");

        // Once, and again.
        let mut job = by_hand().await;
        let length = job.index.object_len();
        assert_eq!(job.ask(&client).await, Ok(length));
        let kept = [0, 2, 4].map(|slot| job.clusters[slot].as_ref());
        let whole = job.index.pack(kept).unwrap();
        let stored = client.get(job.job.bundle, whole.len() + 1).await;
        assert!(stored == whole, "not the bundle");
        let written = std::fs::read(job.file(&cluster)).unwrap();
        assert_eq!(job.ask(&client).await, Ok(length));
        assert!(std::fs::read(job.file(&cluster)).unwrap() == written);

        // Another choice has to have another name.
        job.kept().pop();
        assert_eq!(job.ask(&client).await.unwrap_err().code, RefusalCode::Exists);
        assert!(std::fs::read(job.file(&cluster)).unwrap() == written);
    });
}

#[test]
fn a_node_that_does_not_scrub_helps_nobody() {
    block_on(async {
        let mut cluster = Cluster::new().with_settings("[scrub]\nenabled = false\n");
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let client = Client::open(&cluster, volume).await;
        let epoch = cluster.record(&registry, volume).await.epoch;
        let job = ByHand::new(&client, epoch).await;
        let control = VolumeControl::WriteBundle(Box::new(job.job.clone()));
        let asked = client.control_with(control, job.index.to_bytes().into()).await;
        let refusal = asked.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Retry, RefusalCode::Unavailable),
            "{refusal}"
        );
        assert!(!job.file(&cluster).exists());
    });
}
