//! Pools and back ends that are made while the services run: two storage-routers, one of which hosts the registry.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{CallError, Caller, Hello, Network, Protocol, Role, Version, ZeromqSettings};
use sconce_registry::{Change, Registry};
use sconce_runtime::Stop;
use sconce_schemas::records::{BackendPlace, BackendRecord, PoolRecord, Protection, S3Place, keys};
use sconce_schemas::wire::storage::{
    StorageControl, StorageControlReply, StorageNodeStatus, StorageReply, StorageRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};
use sconce_storage_router::{Components, Settings, run};
use tokio::task::{JoinHandle, LocalSet};

const DEADLINE: Duration = Duration::from_secs(20);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn endpoint(&self, name: &str) -> String {
        format!("ipc://{}/{name}.sock", self.path("bus").display())
    }

    /// The first one hosts the registry. No back end and no pool is in the settings.
    fn settings(&self, node: &str, more: &str) -> Settings {
        let registry = self.endpoint("registry");
        let home = match node {
            "sr-1" => format!(
                "home = \"sled\"\ndir = {:?}\nlisten = {registry:?}",
                self.path("registry")
            ),
            _ => format!("home = \"remote\"\nendpoint = {registry:?}"),
        };
        let text = format!(
            "[node]\nname = {node:?}\nrun_dir = {:?}\nendpoints = [{:?}]\n[registry]\n{home}\n{more}",
            self.path(node),
            self.endpoint(node)
        );
        let file = self.path(&format!("{node}.toml"));
        std::fs::write(&file, text).unwrap();
        sconce_runtime::settings::load(&file).unwrap()
    }

    fn network(&self) -> Network {
        Network::zeromq(ZeromqSettings {
            run_dir: self.path("bus"),
        })
    }

    fn hello(protocol: Protocol) -> Hello {
        Hello {
            version: Version::CURRENT,
            protocol,
            role: Role::Client,
            node: "test".parse().unwrap(),
        }
    }

    fn registry(&self) -> Registry {
        let endpoint = self.endpoint("registry").parse().unwrap();
        Registry::remote(&self.network(), &endpoint, Self::hello(Protocol::Registry)).unwrap()
    }

    fn start(&self, node: &str, more: &str) -> Router {
        let stop = Stop::new();
        let components = Components {
            network: self.network(),
            stop: stop.clone(),
        };
        let running = tokio::task::spawn_local(run(self.settings(node, more), components));
        let endpoint = self.endpoint(node).parse().unwrap();
        let caller = Caller::new(&self.network(), &endpoint, Self::hello(Protocol::Storage));
        Router {
            stop,
            running,
            caller,
        }
    }

    fn write_key(&self, name: &str, byte: u8) -> String {
        let file = self.path(name);
        std::fs::write(&file, [byte; 32]).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!("[[keys]]\npool = \"vms\"\nid = 1\nfile = {file:?}\n")
    }

    fn disk(&self, name: &str) -> StorageControl {
        let place = BackendPlace::Directory(self.path(name).display().to_string());
        add(name, place)
    }
}

fn add(name: &str, place: BackendPlace) -> StorageControl {
    StorageControl::AddBackend {
        name: name.parse().unwrap(),
        place,
    }
}

fn pool(protection: Protection, backends: &[&str], encrypted: bool) -> PoolRecord {
    let backends = backends.iter().map(|name| (*name).to_owned());
    PoolRecord::proposed("vms".to_owned(), protection, backends, None, encrypted)
}

fn create(pool: &PoolRecord) -> StorageControl {
    StorageControl::CreatePool { pool: pool.clone() }
}

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

struct Router {
    stop: Stop,
    running: JoinHandle<anyhow::Result<()>>,
    caller: Caller<StorageRequest, StorageReply>,
}

impl Router {
    async fn ask(&self, request: StorageRequest, data: &'static [u8]) -> (StorageReply, Bytes) {
        loop {
            match self
                .caller
                .call(&request, Bytes::from_static(data), 1 << 20, DEADLINE)
                .await
            {
                Ok(answer) => return answer,
                Err(CallError::Lost) => {}
                Err(error) => panic!("{request:?}: {error}"),
            }
        }
    }

    async fn control(&self, control: StorageControl) -> StorageReply {
        self.ask(StorageRequest::Control(control), &[]).await.0
    }

    async fn refused(&self, control: StorageControl) -> Refusal {
        refused(self.control(control).await)
    }

    async fn put(&self, id: u64, data: &'static [u8]) -> StorageReply {
        let pool = "vms".to_owned();
        self.ask(StorageRequest::Put { pool, name: name(id) }, data)
            .await
            .0
    }

    async fn get(&self, id: u64) -> (StorageReply, Bytes) {
        let get = StorageRequest::Get {
            pool: "vms".to_owned(),
            name: name(id),
            offset: 0,
            length: 4096,
            cached: true,
        };
        self.ask(get, &[]).await
    }

    async fn status(&self) -> StorageNodeStatus {
        match self.control(StorageControl::NodeStatus).await {
            StorageReply::Control(StorageControlReply::Node(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for the status until it is as it should be.
    async fn until(&self, what: &str, is_so: impl Fn(&StorageNodeStatus) -> bool) {
        let looked = tokio::time::timeout(DEADLINE, async {
            while !is_so(&self.status().await) {
                tokio::task::yield_now().await;
            }
        });
        looked
            .await
            .unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"));
    }

    async fn stop(self) {
        self.stop.request();
        self.running.await.unwrap().unwrap();
    }
}

fn refused(reply: StorageReply) -> Refusal {
    match reply {
        StorageReply::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn locally<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

#[test]
fn pools_and_back_ends_that_are_made_while_services_run_are_followed_by_all() {
    locally(async {
        let place = Place::new();
        let (first, second) = (place.start("sr-1", ""), place.start("sr-2", ""));
        for disk in ["disk-1", "disk-2"] {
            let added = first.control(place.disk(disk)).await;
            let StorageReply::Control(StorageControlReply::Backend(record)) = &added else {
                panic!("{added:?}")
            };
            assert_eq!(record.name, disk);
            assert_eq!(second.control(place.disk(disk)).await, added, "the same again");
        }
        let vms = pool(Protection::Replicas(2), &["disk-1", "disk-2"], false);
        let made = StorageReply::Control(StorageControlReply::Pool(vms.clone()));
        assert_eq!(first.control(create(&vms)).await, made);
        assert_eq!(second.control(create(&vms)).await, made, "the same again");

        // Neither was started anew.
        assert_eq!(second.put(1, b"by the second").await, StorageReply::Done);
        assert_eq!(
            first.get(1).await,
            (StorageReply::Data, Bytes::from_static(b"by the second"))
        );
        for disk in ["disk-1", "disk-2"] {
            assert!(place.path(disk).join(name(1).to_string()).exists(), "two copies");
        }

        // What is not there any more is let go of.
        let registry = place.registry();
        let gone = vec![
            Change::delete(keys::pool("vms"), None),
            Change::delete(keys::backend("disk-2"), None),
        ];
        registry.commit(gone).await.unwrap();
        for router in [&first, &second] {
            router
                .until("disk-2 to be let go of", |status| status.backends.len() == 1)
                .await;
            // Pools are looked at after back ends.
            let refusal = tokio::time::timeout(DEADLINE, async {
                loop {
                    if let StorageReply::Refused(refusal) = router.get(1).await.0 {
                        return refusal;
                    }
                }
            });
            let refusal = refusal.await.unwrap();
            assert_eq!(refusal.code, RefusalCode::NotFound, "{refusal}");
        }

        // And found again as it was, after a start too.
        second.stop().await;
        let second = place.start("sr-2", "");
        assert!(matches!(
            second.control(place.disk("disk-2")).await,
            StorageReply::Control(_)
        ));
        assert_eq!(second.control(create(&vms)).await, made);
        assert_eq!(second.get(1).await.1, Bytes::from_static(b"by the second"));
        second.stop().await;
        first.stop().await;
    });
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    locally(async {
        let place = Place::new();
        let router = place.start("sr-1", "");
        assert!(matches!(
            router.control(place.disk("disk-1")).await,
            StorageReply::Control(_)
        ));
        std::fs::create_dir(place.path("photos")).unwrap();
        std::fs::write(place.path("photos/photo.jpg"), "x").unwrap();
        let elsewhere = BackendPlace::Directory(place.path("elsewhere").display().to_string());
        let at_disk_1 = BackendPlace::Directory(place.path("disk-1").display().to_string());
        let s3 = BackendPlace::S3(Box::new(S3Place {
            bucket: "vms".to_owned(),
            credentials: Some("here".to_owned()),
            ..S3Place::default()
        }));
        let replicas = |count, backends: &[&str]| create(&pool(Protection::Replicas(count), backends, false));
        let named = PoolRecord {
            name: "VMs".to_owned(),
            ..pool(Protection::Replicas(1), &["disk-1"], false)
        };
        for (asked, code, told) in [
            (
                add("disk-1", elsewhere),
                RefusalCode::Exists,
                vec!["disk-1", "backend remove"],
            ),
            (
                add("disk-9", at_disk_1),
                RefusalCode::Exists,
                vec!["the place of back end disk-1"],
            ),
            (
                add("disk-9", BackendPlace::Directory("d".to_owned())),
                RefusalCode::Invalid,
                vec!["disk-9", "\"d\"", "absolute"],
            ),
            (
                place.disk("photos"),
                RefusalCode::Invalid,
                vec!["photos", "photo.jpg"],
            ),
            (
                add("s3", s3),
                RefusalCode::Invalid,
                vec!["\"here\"", "instance-profile"],
            ),
            (
                replicas(1, &["disk-7"]),
                RefusalCode::NotFound,
                vec!["disk-7", "disk-1"],
            ),
            (
                replicas(2, &["disk-1"]),
                RefusalCode::Invalid,
                vec!["vms", "replica:2", "1 back ends"],
            ),
            (replicas(9, &["disk-1"]), RefusalCode::Invalid, vec!["replica:9"]),
            (create(&named), RefusalCode::Invalid, vec!["VMs", "a-z"]),
            (
                create(&pool(Protection::Replicas(1), &["disk-1"], true)),
                RefusalCode::Invalid,
                vec!["vms", "[[keys]]"],
            ),
        ] {
            let refusal = router.refused(asked.clone()).await;
            assert_eq!(refusal.code, code, "{asked:?}: {refusal}");
            for part in told {
                assert!(refusal.text.contains(part), "{part:?} is not in {refusal}");
            }
        }
        let registry = place.registry();
        let pools = registry.list(keys::POOLS, None, 10).await.unwrap();
        let backends = registry
            .list_records::<BackendRecord>(keys::BACKENDS)
            .await
            .unwrap();
        assert_eq!((pools.len(), backends.len()), (0, 1), "a refusal leaves nothing");

        assert!(matches!(
            router.control(replicas(1, &["disk-1"])).await,
            StorageReply::Control(_)
        ));
        assert!(matches!(
            router.control(place.disk("disk-2")).await,
            StorageReply::Control(_)
        ));
        let beside = PoolRecord {
            name: "beside".to_owned(),
            ..pool(Protection::Replicas(2), &["disk-2", "disk-1"], false)
        };
        let shared = router.refused(create(&beside)).await;
        assert!(
            shared.code == RefusalCode::Invalid && shared.text.contains("disk-1 is pool vms's"),
            "{shared}"
        );
        let other = router.refused(replicas(2, &["disk-1", "disk-2"])).await;
        assert!(
            other.code == RefusalCode::Exists && other.text.contains("replica:1 on disk-1"),
            "{other}"
        );
        router.stop().await;
    });
}

#[test]
fn a_storage_router_with_another_key_does_not_serve_the_pool() {
    locally(async {
        let place = Place::new();
        let key = place.write_key("right.key", 1);
        let first = place.start("sr-1", &key);
        assert!(matches!(
            first.control(place.disk("disk-1")).await,
            StorageReply::Control(_)
        ));
        let vms = pool(Protection::Replicas(1), &["disk-1"], true);
        let made = first.control(create(&vms)).await;
        let StorageReply::Control(StorageControlReply::Pool(made)) = made else {
            panic!("{made:?}")
        };
        assert_eq!(first.put(1, b"secret").await, StorageReply::Done);
        let stored = place.registry().get(&keys::pool("vms")).await.unwrap().unwrap();
        assert!(
            !stored.value.windows(8).any(|bytes| bytes == [1; 8]),
            "a key is in the registry"
        );
        let print = format!("{:016x}", made.keys[0].fingerprint);

        let wrong = place.write_key("wrong.key", 2);
        let none = String::new();
        for (settings, told) in [
            (wrong, vec!["key 1", "wrong.key", &print]),
            (none, vec!["key 1", "[[keys]]"]),
        ] {
            let second = place.start("sr-2", &settings);
            let refusal = refused(second.get(1).await.0);
            let put = refused(second.put(2, b"x").await);
            assert_eq!(refusal, put);
            for part in told {
                assert!(refusal.text.contains(part), "{part:?} is not in {refusal}");
            }
            let status = second.status().await;
            assert_eq!(status.pools.len(), 1);
            assert!(
                refusal.text.contains(&status.pools[0].state),
                "{:?}",
                status.pools
            );
            second.stop().await;
        }
        let second = place.start("sr-2", &key);
        assert_eq!(second.get(1).await.1, Bytes::from_static(b"secret"));
        assert_eq!(second.status().await.pools, []);

        // A new key is noted by the first that has it, and missed by the others.
        second.stop().await;
        let next = place
            .write_key("next.key", 3)
            .replace("id = 1", "id = 2\nwrites = false");
        let second = place.start("sr-2", &format!("{key}{next}"));
        assert_eq!(second.get(1).await.1, Bytes::from_static(b"secret"));
        first
            .until("the first to miss key 2", |status| {
                status.pools.iter().any(|pool| pool.state.contains("lacks key 2"))
            })
            .await;
        assert_eq!(first.put(2, b"still served").await, StorageReply::Done);
        second.stop().await;
        first.stop().await;
    });
}
