//! A disk that fails under the service: the volume halts, is recovered, and nothing acknowledged is lost.

use std::sync::Arc;
use std::thread::JoinHandle;

use sconce_runtime::{Clock, Stop};
use sconce_volume_router::device::faults::{Call, Fault, FaultyDisk};
use sconce_volume_router::{Components, Settings};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on};

const MIB: u64 = 1 << 20;

struct Router {
    disk: Arc<FaultyDisk>,
    stop: Stop,
    thread: JoinHandle<()>,
}

fn start(cluster: &Cluster) -> Router {
    let settings: Settings = sconce_runtime::settings::load(&cluster.settings()).unwrap();
    let (disk, stop) = (Arc::new(FaultyDisk::default()), Stop::new());
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
        let router = start(&cluster);
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
        router.stop.request();
        router.thread.join().unwrap();
        assert_eq!(cluster.record(&registry, volume).await.buffer, None);
    });
}
