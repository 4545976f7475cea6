//! What tests of twins and moves begin with: a volume, its record, and a client that knows what it wrote.

use sconce_registry::{Change, Registry};
use sconce_schemas::records::{DtlMode, VolumeRecord, keys};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply};

use crate::client::{Client, Model};
use crate::cluster::Cluster;

const SIZE: usize = 8 << 20;
/// On a machine that stands still for seconds nobody is given up who lives. Who was killed is missed because its record is deleted
/// ([`Scene::is_gone`]), not because its lease ends.
pub(crate) const PATIENT: &str = "[dtl]\ntimeout = \"10s\"\n[volumes]\nlease = \"30s\"\n";
/// A twin that is silent is soon given up: for tests that rely on no twin that is in sync.
pub(crate) const SOON: &str = "[dtl]\ntimeout = \"500ms\"\n[volumes]\nlease = \"30s\"\n";

/// A volume.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) registry: Registry,
    pub(crate) client: Client,
    pub(crate) model: Model,
}

impl Scene {
    /// An empty one, with everything there.
    pub(crate) async fn begin(seed: u64) -> Self {
        Self::begin_with(PATIENT, seed).await
    }

    pub(crate) async fn begin_with(settings: &str, seed: u64) -> Self {
        Self::of(Cluster::new().with_settings(settings), seed).await
    }

    /// The same in a cluster that has everything but the volume-router.
    pub(crate) async fn of(mut cluster: Cluster, seed: u64) -> Self {
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, SIZE as u64).await;
        let client = Client::open(&cluster, volume).await;
        Self {
            cluster,
            registry,
            client,
            model: Model::new(SIZE, seed),
        }
    }

    pub(crate) async fn change(&mut self, times: usize) {
        for _ in 0..times {
            self.model.change(&mut self.client).await;
        }
    }

    pub(crate) async fn set(&self, mode: DtlMode) {
        let volume = self.client.volume;
        let set = self.client.control(VolumeControl::SetDtl { volume, mode }).await;
        assert_eq!(set.unwrap(), VolumeControlReply::Done);
    }

    pub(crate) async fn record(&self) -> VolumeRecord {
        self.cluster.record(&self.registry, self.client.volume).await
    }

    /// The lease of a node that was killed is over.
    pub(crate) async fn is_gone(&self, node: &str) {
        let node = keys::node(&node.parse().unwrap());
        self.registry
            .commit(vec![Change::delete(node, None)])
            .await
            .unwrap();
    }
}

/// SCOs in a node's write buffer: files whose header is one.
pub(crate) fn scos(cluster: &Cluster, node: &str) -> usize {
    let is_sco = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        let header = bytes.get(..sconce_schemas::sco::HEADER_LEN).unwrap_or_default();
        sconce_schemas::sco::ScoHeader::from_bytes(header).is_ok()
    };
    let files = cluster.files(&format!("{node}/buffer"));
    files.iter().filter(|path| is_sco(path)).count()
}
