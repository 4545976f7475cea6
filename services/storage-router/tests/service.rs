//! The whole service over the real bus: one process's parts on one thread, and the process itself.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_bus::authority::{Authority, Validity};
use sconce_bus::{CallError, Caller, Hello, Network, Protocol, Role, TlsSettings, Version, ZeromqSettings};
use sconce_registry::Registry;
use sconce_runtime::{Chance, Stop};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::packed_sco::PackedSco;
use sconce_schemas::records::{BackendRecord, NodeRecord, PoolRecord, keys};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::event::{EventPage, EventsAsk, What};
use sconce_schemas::wire::storage::{
    GET_BYTES_MAX, StorageControl, StorageControlReply, StorageReply, StorageRequest,
};
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{BatchSeq, Epoch, ObjectName, ScoId, ScoSize, VolumeId};
use sconce_storage_router::{Components, Settings, run};
use tokio::task::{JoinHandle, LocalSet};

const DEADLINE: Duration = Duration::from_secs(20);

/// A run directory with settings for one storage-router that hosts its registry.
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
        format!("ipc://{}", self.path("bus").join(name).display())
    }

    fn write_settings(&self, replicas: u8, more: &str) -> PathBuf {
        let text = format!(
            r#"
[node]
name = "sr-1"
run_dir = "{run}"
endpoints = ["{storage}"]
[registry]
home = "sled"
dir = "{run}/registry"
listen = "{registry}"
[[backends]]
name = "disk-1"
dir = "{run}/backend/1"
[[backends]]
name = "disk-2"
dir = "{run}/backend/2"
[[pools]]
name = "default"
protect = "replica:{replicas}"
backends = ["disk-1", "disk-2"]
{more}
"#,
            run = self.dir.path().display(),
            storage = self.endpoint("storage-router.sock"),
            registry = self.endpoint("registry.sock"),
        );
        let file = self.path("storage-router.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    fn settings(&self, replicas: u8, more: &str) -> Settings {
        sconce_runtime::settings::load(&self.write_settings(replicas, more)).unwrap()
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

    fn client(&self) -> Client {
        let endpoint = self.endpoint("storage-router.sock").parse().unwrap();
        Client(Caller::new(
            &self.network(),
            &endpoint,
            Self::hello(Protocol::Storage),
        ))
    }

    fn registry(&self) -> Registry {
        let endpoint = self.endpoint("registry.sock").parse().unwrap();
        Registry::remote(&self.network(), &endpoint, Self::hello(Protocol::Registry)).unwrap()
    }

    fn start(&self, settings: Settings) -> (Stop, JoinHandle<anyhow::Result<()>>) {
        let stop = Stop::new();
        let components = Components {
            network: self.network(),
            stop: stop.clone(),
        };
        (stop, tokio::task::spawn_local(run(settings, components)))
    }
}

#[derive(Clone)]
struct Client(Caller<StorageRequest, StorageReply>);

impl Client {
    /// Asks; asks again where the connection was lost, as every client of the bus does.
    async fn ask(&self, request: StorageRequest, data: Bytes, reply_bytes: u32) -> (StorageReply, Bytes) {
        loop {
            match self.0.call(&request, data.clone(), reply_bytes, DEADLINE).await {
                Ok(answer) => return answer,
                Err(CallError::Lost) => {}
                Err(error) => panic!("{request:?}: {error}"),
            }
        }
    }

    async fn put(&self, name: ObjectName, data: Bytes) -> StorageReply {
        let pool = "default".to_owned();
        self.ask(StorageRequest::Put { pool, name }, data, 0).await.0
    }

    async fn get(&self, name: ObjectName, offset: u64, length: u32) -> (StorageReply, Bytes) {
        let pool = "default".to_owned();
        let request = StorageRequest::Get {
            pool,
            name,
            offset,
            length,
            cached: true,
        };
        self.ask(request, Bytes::new(), length).await
    }

    async fn control(&self, control: StorageControl) -> StorageReply {
        self.ask(StorageRequest::Control(control), Bytes::new(), 0)
            .await
            .0
    }
}

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn content(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    Chance::seeded(seed).fill(&mut bytes);
    bytes.into()
}

fn locally<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

fn refused(reply: StorageReply) -> sconce_schemas::wire::Refusal {
    let StorageReply::Refused(refusal) = reply else {
        panic!("not refused: {reply:?}")
    };
    refusal
}

#[test]
fn every_request_is_answered_over_the_bus() {
    locally(async {
        let place = Place::new();
        let (stop, running) = place.start(place.settings(2, ""));
        let client = place.client();
        let large = content(1, (12 << 20) + 5);
        assert_eq!(client.put(name(1), large.clone()).await, StorageReply::Done);
        assert_eq!(
            client.put(name(1), large.clone()).await,
            StorageReply::Done,
            "a resend"
        );
        assert_eq!(
            refused(client.put(name(1), content(2, 9)).await).code,
            RefusalCode::Exists
        );
        assert_eq!(client.put(name(2), content(2, 10_000)).await, StorageReply::Done);
        let (reply, data) = client.get(name(1), 5 << 20, GET_BYTES_MAX).await;
        assert_eq!(
            (reply, data),
            (StorageReply::Data, large.slice(5 << 20..)),
            "fewer where the object ends"
        );
        assert_eq!(
            client.get(name(2), 4096, 4096).await.1,
            content(2, 10_000).slice(4096..8192)
        );
        let too_much = refused(client.get(name(1), 0, GET_BYTES_MAX + 1).await.0);
        assert!(
            too_much.code == RefusalCode::Invalid && too_much.text.contains("8388608"),
            "{too_much}"
        );

        let pool = || "default".to_owned();
        let stat = |name| StorageControl::Stat { pool: pool(), name };
        let length = large.len() as u64;
        let expected = StorageReply::Control(StorageControlReply::Stat { length });
        assert_eq!(client.control(stat(name(1))).await, expected);
        assert_eq!(
            refused(client.control(stat(name(9))).await).code,
            RefusalCode::NotFound
        );
        let list = |after, limit| StorageControl::List {
            pool: pool(),
            volume: name(1).volume(),
            kind: ObjectKind::Sco,
            after,
            limit,
            everywhere: limit == 1,
        };
        let names = |ids: &[u64]| {
            StorageReply::Control(StorageControlReply::Names {
                names: ids.iter().map(|id| name(*id)).collect(),
            })
        };
        assert_eq!(client.control(list(None, 10)).await, names(&[1, 2]));
        assert_eq!(client.control(list(Some(name(1)), 1)).await, names(&[2]));
        for limit in [0, 1001] {
            assert!(
                refused(client.control(list(None, limit)).await)
                    .text
                    .contains("1 to 1000")
            );
        }
        let volumes = StorageControl::ListVolumes {
            pool: pool(),
            after: None,
            limit: 10,
        };
        let expected = StorageControlReply::Volumes {
            volumes: vec![name(1).volume()],
        };
        assert_eq!(client.control(volumes).await, StorageReply::Control(expected));
        let delete = |name| StorageControl::Delete { pool: pool(), name };
        for _ in 0..2 {
            assert_eq!(client.control(delete(name(2))).await, StorageReply::Done);
        }
        assert_eq!(
            refused(client.get(name(2), 0, 1).await.0).code,
            RefusalCode::NotFound
        );
        let elsewhere = StorageRequest::Put {
            pool: "nowhere".to_owned(),
            name: name(3),
        };
        let unknown = refused(client.ask(elsewhere, Bytes::new(), 0).await.0);
        assert!(
            unknown.remedy == Remedy::Reject && unknown.text.contains("\"nowhere\""),
            "{unknown}"
        );

        let StorageReply::Control(StorageControlReply::Node(status)) =
            client.control(StorageControl::NodeStatus).await
        else {
            panic!("no status")
        };
        assert_eq!(status.node.as_str(), "sr-1");
        let states: Vec<_> = status
            .backends
            .iter()
            .map(|b| (b.name.as_str(), b.state.as_str()))
            .collect();
        assert_eq!(states, [("disk-1", "ok"), ("disk-2", "ok")]);
        assert!(
            status
                .backends
                .iter()
                .all(|b| b.requests > 0 && b.errors == 0 && b.free < b.capacity)
        );
        let StorageReply::Control(StorageControlReply::Node(again)) =
            client.control(StorageControl::NodeStatus).await
        else {
            panic!("no status")
        };
        assert_eq!(
            again.backends[0].requests, status.backends[0].requests,
            "asking costs no back-end request"
        );

        let registry = place.registry();
        let (node, _) = registry
            .get_record::<NodeRecord>("node/sr-1")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (node.role, node.endpoints),
            (Role::StorageRouter, vec![place.endpoint("storage-router.sock")])
        );
        let (backend, _) = registry
            .get_record::<BackendRecord>(&keys::backend("disk-1"))
            .await
            .unwrap()
            .unwrap();
        let identity = std::fs::read_to_string(place.path("backend/1/sconce-backend")).unwrap();
        assert!(identity.contains(&backend.id.to_string()));
        stop.request();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_back_end_that_goes_and_comes_is_told_and_whoever_waits_takes_no_room() {
    locally(async {
        let place = Place::new();
        // Room for one request: who waits for events needs none.
        let more = "[limits]\nrequests = 1\nbytes = \"96 MiB\"\n";
        let (stop, running) = place.start(place.settings(2, more));
        let client = place.client();
        assert_eq!(client.put(name(1), content(1, 9)).await, StorageReply::Done);
        let newest = async |after: &EventPage, wait_ms| {
            let ask = EventsAsk {
                run: after.run,
                after: after.last,
                wait_ms,
            };
            match client.control(StorageControl::Events(ask)).await {
                StorageReply::Control(StorageControlReply::Events(page)) => page,
                other => panic!("{other:?}"),
            }
        };
        let nothing = EventPage {
            node: "sr-1".parse().unwrap(),
            run: 0,
            began_us: 0,
            first: 0,
            last: 0,
            events: Vec::new(),
        };
        // Until this is told, back ends or not.
        let until = async |after: EventPage, told: &dyn Fn(&What) -> bool| {
            let mut page = newest(&after, 0).await;
            loop {
                if let Some(event) = page.events.iter().find(|event| told(&event.what)) {
                    break (event.text.clone(), page.clone());
                }
                page = newest(&page, 10_000).await;
            }
        };
        let (_, known) = until(nothing, &|what| matches!(what, What::NodeJoined { .. })).await;
        let (there, away) = (place.path("backend/2"), place.path("backend/away"));
        std::fs::rename(&there, &away).unwrap();
        let fails = async || {
            client.put(name(2), content(2, 9)).await;
        };
        let told = until(known, &|what| matches!(what, What::BackendFails { .. }));
        let ((text, known), ()) = tokio::join!(told, fails());
        assert!(text.starts_with("back end fails: disk-2: "), "{text}");
        std::fs::rename(&away, &there).unwrap();
        let works = async || while client.put(name(3), content(3, 9)).await != StorageReply::Done {};
        let told = until(known, &|what| matches!(what, What::BackendWorks { .. }));
        let ((text, mut known), ()) = tokio::join!(told, works());
        assert_eq!(text, "back end works again: disk-2");
        let stored = loop {
            let before = known.clone();
            let waits = newest(&before, 10_000);
            tokio::pin!(waits);
            let told = tokio::select! {
                biased;
                page = &mut waits => page,
                stored = client.put(name(4), content(4, 9)) => break stored,
            };
            assert!(
                !told.events.is_empty(),
                "the put waited for whoever waits for events"
            );
            known = told;
        };
        assert_eq!(stored, StorageReply::Done);
        stop.request();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_scrubbed_sco_is_read_at_its_old_places_under_every_name_that_it_had() {
    locally(async {
        let place = Place::new();
        let (stop, running) = place.start(place.settings(2, ""));
        let client = place.client();
        let version = |version| ObjectName::Sco {
            volume: name(1).volume(),
            id: ScoId(1),
            epoch: Epoch(1),
            version,
        };
        let header = ScoHeader {
            volume: name(1).volume(),
            id: ScoId(1),
            epoch: Epoch(1),
            size: ScoSize::default(),
            first_batch: BatchSeq(1),
            synced_below: ScoId(1),
        };
        let mut sco = content(1, usize::try_from(header.size.file_len()).unwrap()).to_vec();
        sco[..64].copy_from_slice(&header.to_bytes());
        let packed = PackedSco::pack(&sco, |slot| slot.0 % 4 == 0).unwrap();
        assert!(packed.len() < sco.len() / 3);
        let front = usize::try_from(header.size.data_offset()).unwrap();
        let mut seen = sco.clone();
        for (slot, cluster) in seen[front..].chunks_mut(4096).enumerate() {
            if slot % 4 != 0 {
                cluster.fill(0);
            }
        }
        assert_eq!(
            client.put(version(0), sco.clone().into()).await,
            StorageReply::Done
        );
        let wrong = refused(client.put(version(1), sco.clone().into()).await);
        assert_eq!(
            (wrong.remedy, wrong.code),
            (Remedy::Reject, RefusalCode::Invalid),
            "not packed"
        );
        assert_eq!(client.put(version(1), packed).await, StorageReply::Done);
        let reads_as = async |asked, seen: &[u8]| {
            let length = u32::try_from(seen.len()).unwrap();
            // All of it, beyond its end, and single clusters.
            for (offset, length) in [(0, length), (1 << 20, GET_BYTES_MAX), (front as u64, 4096)] {
                let (reply, data) = client.get(asked, offset, length).await;
                assert_eq!(reply, StorageReply::Data);
                let from = usize::try_from(offset).unwrap();
                let to = seen.len().min(from + usize::try_from(length).unwrap());
                assert!(data == seen[from..to], "{asked} {offset} {length}");
            }
            let stat = StorageControl::Stat {
                pool: "default".to_owned(),
                name: asked,
            };
            let length = u64::from(length);
            let expected = StorageReply::Control(StorageControlReply::Stat { length });
            assert_eq!(client.control(stat).await, expected);
        };
        reads_as(version(0), &sco).await;
        reads_as(version(1), &seen).await;
        let delete = StorageControl::Delete {
            pool: "default".to_owned(),
            name: version(0),
        };
        assert_eq!(client.control(delete).await, StorageReply::Done);
        reads_as(version(0), &seen).await;
        reads_as(version(1), &seen).await;
        stop.request();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_flood_is_held_back_and_answered_and_a_stop_finishes_what_is_under_way() {
    locally(async {
        let place = Place::new();
        let (stop, running) = place.start(place.settings(2, "[limits]\nrequests = 3\nbytes = \"96 MiB\"\n"));
        let client = place.client();
        let puts = (0..60).map(|id| client.put(name(id), content(id, 100_000)));
        for reply in futures_util::future::join_all(puts).await {
            assert_eq!(reply, StorageReply::Done);
        }
        let late = (100..130).map(|id| {
            let client = client.clone();
            tokio::task::spawn_local(async move {
                let put = StorageRequest::Put {
                    pool: "default".to_owned(),
                    name: name(id),
                };
                (
                    id,
                    client
                        .0
                        .call(&put, content(id, 100_000), 0, Duration::from_secs(3))
                        .await,
                )
            })
        });
        let late: Vec<_> = late.collect();
        client.get(name(1), 0, 10).await;
        stop.request();
        running.await.unwrap().unwrap();
        let (_stop, again) = place.start(place.settings(2, ""));
        for put in late {
            let (id, answer) = put.await.unwrap();
            match answer {
                Ok((StorageReply::Done, _)) => {
                    assert_eq!(client.get(name(id), 0, 200_000).await.1, content(id, 100_000));
                }
                Ok((reply, _)) => assert_eq!(refused(reply).remedy, Remedy::Retry),
                Err(_) => {}
            }
            assert_eq!(
                client.put(name(id), content(id, 100_000)).await,
                StorageReply::Done
            );
        }
        again.abort();
    });
}

#[test]
fn a_lost_mount_is_told_and_served_again_when_it_is_back() {
    locally(async {
        let place = Place::new();
        let (stop, running) = place.start(place.settings(2, ""));
        let client = place.client();
        assert_eq!(client.put(name(1), content(1, 9000)).await, StorageReply::Done);
        stop.request();
        running.await.unwrap().unwrap();

        let (mounted, away) = (place.path("backend/2"), place.path("away"));
        std::fs::rename(&mounted, &away).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let (stop, running) = place.start(place.settings(2, ""));
        assert_eq!(
            client.get(name(1), 0, 9000).await.1,
            content(1, 9000),
            "the other copy"
        );
        let refusal = refused(client.put(name(2), content(2, 9000)).await);
        assert_eq!(refusal.remedy, Remedy::Retry);
        assert!(
            refusal.text.contains("disk-2") && refusal.text.contains("mounted"),
            "{refusal}"
        );
        assert_eq!(
            std::fs::read_dir(&mounted).unwrap().count(),
            0,
            "nothing is made there"
        );

        std::fs::remove_dir(&mounted).unwrap();
        std::fs::rename(&away, &mounted).unwrap();
        assert_eq!(client.put(name(2), content(2, 9000)).await, StorageReply::Done);
        stop.request();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn the_registrys_pool_counts_and_a_wrong_start_says_what_is_wrong() {
    locally(async {
        let place = Place::new();
        let (stop, running) = place.start(place.settings(2, ""));
        let client = place.client();
        assert_eq!(client.put(name(1), content(1, 9)).await, StorageReply::Done);
        stop.request();
        running.await.unwrap().unwrap();

        let (stop, running) = place.start(place.settings(1, ""));
        assert_eq!(client.put(name(2), content(2, 9)).await, StorageReply::Done);
        let (pool, _) = place
            .registry()
            .get_record::<PoolRecord>("pool/default")
            .await
            .unwrap()
            .unwrap();
        assert_eq!(pool, place.settings(2, "").pools[0].record());
        for disk in ["backend/1", "backend/2"] {
            assert!(
                place.path(disk).join(name(2).to_string()).exists(),
                "two replicas still"
            );
        }
        stop.request();
        running.await.unwrap().unwrap();

        let foreign = place.path("photos");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("photo.jpg"), "x").unwrap();
        let more = format!(
            "[[backends]]\nname = \"disk-3\"\ndir = \"{}\"\n",
            foreign.display()
        );
        let (_stop, running) = place.start(place.settings(2, &more));
        let error = format!("{:#}", running.await.unwrap().unwrap_err());
        assert!(
            error.contains("back end disk-3") && error.contains("photo.jpg"),
            "{error}"
        );
    });
}

/// The process itself; killed when the test ends early.
struct Process(Child);

impl Process {
    fn start(settings: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage-router"));
        Self(command.arg(settings).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_process_starts_fast_survives_kill_9_and_stops_in_order() {
    let place = Place::new();
    let settings = place.write_settings(2, "");
    let mut slowest = Duration::ZERO;
    for round in 0..4_u64 {
        let begun = Instant::now();
        let process = Process::start(&settings);
        locally(async {
            let client = place.client();
            for id in 0..round {
                assert_eq!(
                    client.get(name(id), 0, 9000).await.1,
                    content(id, 9000),
                    "answered before the kill"
                );
            }
            assert_eq!(
                client.put(name(round), content(round, 9000)).await,
                StorageReply::Done
            );
        });
        slowest = slowest.max(begun.elapsed());
        process.signal("-KILL");
    }
    assert!(
        slowest < Duration::from_secs(30),
        "restart to first answers took {slowest:?}"
    );

    let mut process = Process::start(&settings);
    locally(async { place.client().get(name(0), 0, 1).await });
    let pid = std::fs::read_to_string(place.path("storage-router.pid")).unwrap();
    assert_eq!(pid.trim(), process.0.id().to_string());
    process.signal("-TERM");
    assert!(
        process.0.wait().unwrap().success(),
        "an orderly stop is a success"
    );
    assert!(!place.path("storage-router.pid").exists());
}

#[test]
fn the_process_is_reached_over_tls_with_a_certificate_of_the_pool() {
    let place = Place::new();
    let certificates = place.path("certificates");
    let authority = Authority::create("test", &certificates).unwrap();
    let tls_of = |node: &str| {
        let issued = authority
            .issue(
                &node.parse().unwrap(),
                &["localhost".to_owned()],
                Validity::days(1),
            )
            .unwrap();
        let (certificate, key) = issued.write(&certificates).unwrap();
        TlsSettings {
            authority: certificates.join("authority.crt"),
            certificate,
            key,
        }
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("tls://localhost:{port}/sr-1");
    let TlsSettings {
        authority: ca,
        certificate,
        key,
    } = tls_of("sr-1");
    let more = format!("[tls]\nauthority = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let file = place.write_settings(2, &more);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace(&place.endpoint("storage-router.sock"), &endpoint),
    )
    .unwrap();
    let process = Process::start(&file);
    locally(async {
        let zeromq = ZeromqSettings {
            run_dir: place.path("client"),
        };
        let network = Network::zeromq_and_tls(zeromq, tls_of("test"));
        let client = Client(Caller::new(
            &network,
            &endpoint.parse().unwrap(),
            Place::hello(Protocol::Storage),
        ));
        assert_eq!(client.put(name(1), content(1, 1 << 20)).await, StorageReply::Done);
        assert_eq!(
            client.get(name(1), 4096, 8192).await.1,
            content(1, 1 << 20).slice(4096..12_288)
        );
    });
    drop(process);
}

#[test]
fn a_wrong_command_line_or_settings_file_is_told_and_fails() {
    let place = Place::new();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage-router"));
        let output = command.args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&[]).contains("FILE"));
    assert!(run(&["--config", "/nowhere.toml"]).contains("/nowhere.toml"));
    let file = place.write_settings(3, "");
    let error = run(&[file.to_str().unwrap()]);
    assert!(
        error.contains("replica:3") && error.contains("takes 3 back ends"),
        "{error}"
    );
    let file = place.write_settings(2, "");
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("ipc://", "tcp://");
    std::fs::write(&file, text).unwrap();
    let error = run(&[file.to_str().unwrap()]);
    assert!(
        error.contains("registry.listen = \"tcp://") && error.contains("plain TCP does not exist"),
        "{error}"
    );
}
