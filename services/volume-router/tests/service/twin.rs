//! The host of a twin: what it keeps for another owner, refuses, and takes over. The owner is the test.

use bytes::Bytes;
use sconce_bus::{Endpoint, Identity, Limits, Protocol, RequestIn, Server, ServerEvent};
use sconce_registry::{Change, Registry};
use sconce_schemas::crc::crc32c;
use sconce_schemas::records::{
    DtlMode, DtlState, EpochStart, GoneRecord, NodeRecord, Record as _, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::sco::{BatchBuilder, Entry, EntryKind, ScoHeader};
use sconce_schemas::wire::storage::{StorageControl, StorageControlReply, StorageReply, StorageRequest};
use sconce_schemas::wire::twin::{TwinReply, TwinRequest, TwinSay};
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy, Role};
use sconce_schemas::{
    BatchSeq, ByteLen, CLUSTER_LEN, ClusterAddress, Epoch, NodeName, ScoId, ScoSize, Slot, VolumeId,
};

use sconce_volume_router::device::faults::{Call, Fault, FaultyDisk};

use crate::client::{Client, bytes};
use crate::cluster::{Cluster, NODE, block_on, until};

const MIB: u64 = 1 << 20;
const OWNER: &str = "another";
const EPOCH: Epoch = Epoch(3);

fn sco_size() -> ScoSize {
    ScoSize::new(256).unwrap()
}

/// An owner on another node, as its twin's host sees it.
struct Owner {
    client: Client,
    registry: Registry,
    volume: VolumeId,
    stream: u64,
    tlog: u64,
    slot: u16,
    seq: u64,
}

impl Owner {
    /// It owns a volume, and it and its node are in the registry before the host starts, which would begin a volume of its own.
    async fn new(cluster: &Cluster) -> Self {
        Self::of(cluster, 1).await
    }

    async fn of(cluster: &Cluster, number: u8) -> Self {
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, number, 4 * MIB).await;
        let owner = Self {
            client: Client::connect(cluster, volume),
            registry,
            volume,
            stream: 77,
            tlog: 0,
            slot: 0,
            seq: 1,
        };
        owner.is_there(true).await;
        owner
            .record(|record| {
                record.owner = OWNER.parse().unwrap();
                record.epoch = EPOCH;
                record.buffer = Some("theirs".to_owned());
                record.dtl_mode = DtlMode::Sync;
                record.dtl_state = DtlState::Degraded;
                record.epochs = vec![EpochStart {
                    epoch: EPOCH,
                    first_sco: ScoId(1),
                }];
            })
            .await;
        owner
    }

    /// Whether its node is in the registry.
    async fn is_there(&self, there: bool) {
        let name: NodeName = OWNER.parse().unwrap();
        let key = keys::node(&name);
        let record = NodeRecord {
            name,
            role: Role::VolumeRouter,
            endpoints: Vec::new(),
            version: String::new(),
            pid: 0,
            place: None,
            buffer: None,
        };
        match there {
            true => drop(self.registry.put_record(&key, None, &record, None).await.unwrap()),
            false => drop(
                self.registry
                    .commit(vec![Change::delete(key, None)])
                    .await
                    .unwrap(),
            ),
        }
    }

    /// Changes the volume's record.
    async fn record(&self, change: impl FnOnce(&mut VolumeRecord)) {
        let key = keys::volume(self.volume);
        let (mut record, revision) = self
            .registry
            .get_record::<VolumeRecord>(&key)
            .await
            .unwrap()
            .unwrap();
        change(&mut record);
        self.registry
            .put_record(&key, Some(revision), &record, None)
            .await
            .unwrap();
    }

    async fn relies_on(&self, buffer: &str) {
        self.record(|record| {
            record.dtl_state = DtlState::InSync;
            record.dtl_host = Some(NODE.parse().unwrap());
            record.dtl_buffer = Some(buffer.to_owned());
        })
        .await;
    }

    async fn degrade(&self) {
        self.record(|record| {
            record.dtl_state = DtlState::Degraded;
            record.dtl_host = None;
            record.dtl_buffer = None;
        })
        .await;
    }

    async fn say_in(&self, epoch: Epoch, say: TwinSay, data: Bytes) -> Result<TwinReply, Refusal> {
        let said = TwinRequest {
            volume: self.volume,
            epoch,
            stream: self.stream,
            say,
        };
        self.client.say(said, data).await
    }

    async fn say(&self, say: TwinSay) -> Result<TwinReply, Refusal> {
        self.say_in(EPOCH, say, Bytes::new()).await
    }

    async fn try_attach(&self, epoch: Epoch) -> Result<String, Refusal> {
        let say = TwinSay::Attach {
            path: "/disk-1".to_owned(),
            sco_size: sco_size(),
        };
        match self.say_in(epoch, say, Bytes::new()).await? {
            TwinReply::Attached { buffer, .. } => Ok(buffer),
            TwinReply::Done => panic!("it does not name its buffer"),
        }
    }

    /// Attaches; the host may still be starting.
    async fn attach(&self) -> String {
        until("the attach", async || self.try_attach(EPOCH).await.ok()).await
    }

    fn header(&self, sco: u64) -> ScoHeader {
        ScoHeader {
            volume: self.volume,
            id: ScoId(sco),
            epoch: EPOCH,
            size: sco_size(),
            first_batch: BatchSeq(self.seq),
            synced_below: ScoId(sco),
        }
    }

    async fn open(&mut self, sco: u64) {
        (self.tlog, self.slot) = (0, 0);
        let header = self.header(sco);
        let say = TwinSay::Open {
            sco: header.id,
            first_batch: header.first_batch,
            synced_below: header.synced_below,
        };
        assert_eq!(self.say(say).await, Ok(TwinReply::Done));
    }

    /// A batch that writes one cluster.
    fn batch(&mut self, sco: u64, address: u64, data: &Bytes) -> Vec<u8> {
        let mut batch = BatchBuilder::default();
        batch.push(&Entry {
            kind: EntryKind::Write {
                address: ClusterAddress(address),
                crc: crc32c(data),
            },
            session: 0,
            number: 0,
            last: true,
        });
        batch.close(
            self.header(sco).salt(),
            BatchSeq(self.seq),
            Slot(self.slot),
            self.seq,
        )
    }

    async fn try_append(&mut self, sco: u64, address: u64, data: Bytes) -> Result<TwinReply, Refusal> {
        let tlog = self.batch(sco, address, &data);
        let say = TwinSay::Append {
            sco: ScoId(sco),
            seq: BatchSeq(self.seq),
            tlog_offset: self.tlog,
            tlog: tlog.clone(),
            first_slot: Slot(self.slot),
        };
        let answer = self.say_in(EPOCH, say, data).await;
        (self.seq, self.slot, self.tlog) = (self.seq + 1, self.slot + 1, self.tlog + tlog.len() as u64);
        answer
    }

    async fn append(&mut self, sco: u64, address: u64, data: Bytes) {
        assert_eq!(self.try_append(sco, address, data).await, Ok(TwinReply::Done));
    }

    /// A SCO with one batch, as it is copied.
    fn image(&mut self, sco: u64, address: u64, data: &Bytes) -> Bytes {
        self.slot = 0;
        let header = self.header(sco);
        let mut image = header.to_bytes().to_vec();
        image.resize(usize::try_from(ScoSize::HEADER_AREA).unwrap(), 0);
        image.extend(self.batch(sco, address, data));
        image.resize(usize::try_from(sco_size().data_offset()).unwrap(), 0);
        image.extend_from_slice(data);
        self.seq += 1;
        image.into()
    }

    async fn copy(&self, sco: u64, image: &Bytes, part: std::ops::Range<usize>) {
        let say = TwinSay::Copy {
            sco: ScoId(sco),
            sco_epoch: EPOCH,
            offset: ByteLen(part.start as u64),
            length: ByteLen(image.len() as u64),
        };
        let answer = self.say_in(EPOCH, say, image.slice(part)).await;
        assert_eq!(answer, Ok(TwinReply::Done));
    }

    async fn held(&self) -> u64 {
        self.client.node().await.buffer_unstored.0
    }

    async fn owner(&self) -> String {
        let key = keys::volume(self.volume);
        let record = self.registry.get_record::<VolumeRecord>(&key).await.unwrap();
        record.unwrap().0.owner.to_string()
    }
}

/// Back ends that have nothing, and take their time to say so.
struct Empty(Server<StorageRequest, StorageReply>);

impl Empty {
    /// In the place of the cluster's storage-router.
    async fn instead(cluster: &mut Cluster, registry: &Registry) -> Self {
        cluster.stop_storage();
        let name: NodeName = "empty".parse().unwrap();
        let endpoint = cluster.endpoint(name.as_str());
        let record = NodeRecord {
            name: name.clone(),
            role: Role::StorageRouter,
            endpoints: vec![endpoint.clone()],
            version: String::new(),
            pid: 0,
            place: None,
            buffer: None,
        };
        registry
            .put_record(&keys::node(&name), None, &record, None)
            .await
            .unwrap();
        let identity = Identity {
            node: name,
            role: Role::StorageRouter,
            protocol: Protocol::Storage,
            limits: Limits::of(Protocol::Storage),
        };
        let endpoint: Endpoint = endpoint.parse().unwrap();
        Self(
            sconce_bus::bind(&cluster.network, &endpoint, identity)
                .await
                .unwrap(),
        )
    }

    /// The next requests.
    async fn asked(&mut self) -> Vec<RequestIn<StorageRequest, StorageReply>> {
        loop {
            if let ServerEvent::Requests(requests) = self.0.next().await {
                return requests;
            }
        }
    }

    fn answer(requests: Vec<RequestIn<StorageRequest, StorageReply>>) {
        for request in requests {
            let reply = match request.body {
                StorageRequest::Control(StorageControl::List { .. }) => {
                    StorageReply::Control(StorageControlReply::Names { names: Vec::new() })
                }
                StorageRequest::Put { .. } => {
                    let text = "nothing is taken";
                    StorageReply::Refused(Refusal::retry(RefusalCode::Unavailable, text))
                }
                _ => StorageReply::Refused(Refusal::reject(RefusalCode::NotFound, "there is no such object")),
            };
            request.reply.send(reply, Bytes::new());
        }
    }

    /// Answers at once from here on.
    async fn serve(mut self) {
        loop {
            Self::answer(self.asked().await);
        }
    }
}

fn cluster_of(seed: u64) -> Bytes {
    bytes(seed, CLUSTER_LEN)
}

/// A volume of an owner that has no twin, and a host that runs.
async fn started() -> (Cluster, Owner) {
    let mut cluster = Cluster::new();
    let owner = Owner::new(&cluster).await;
    cluster.start();
    (cluster, owner)
}

/// The same, attached to the buffer that is named, which has one batch: cluster 9.
async fn with_one_batch() -> (Cluster, Owner, String) {
    let (cluster, mut owner) = started().await;
    let buffer = owner.attach().await;
    owner.open(1).await;
    owner.append(1, 9, cluster_of(9)).await;
    (cluster, owner, buffer)
}

#[test]
fn an_attach_that_comes_behind_a_newer_one_gives_nothing_up() {
    block_on(async {
        let (_cluster, mut owner) = started().await;
        let newer = owner.stream + 1;
        let older = std::mem::replace(&mut owner.stream, newer);
        owner.attach().await;
        owner.stream = older;
        let refusal = owner.try_attach(EPOCH).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen, "{refusal}");
        owner.stream = newer;
        assert_eq!(owner.say(TwinSay::Beat).await, Ok(TwinReply::Done));
    });
}

#[test]
fn what_a_stream_of_an_earlier_ownership_still_does_is_not_done_for_a_later_one() {
    block_on(async {
        let cluster = Cluster::new();
        let mut owner = Owner::new(&cluster).await;
        let router = crate::faults::start(&cluster, FaultyDisk::default());
        owner.attach().await;
        owner.open(1).await;
        owner.append(1, 9, cluster_of(9)).await;
        router.disk.arm(Call::Sync, 0, 1, Fault::Held);
        let sync = owner.say(TwinSay::Sync {
            upto: BatchSeq(owner.seq),
        });
        let next = async {
            until("the sync to be under way", async || {
                (router.disk.failed() > 0).then_some(())
            })
            .await;
            // Each ownership numbers its streams anew.
            owner.record(|record| record.epoch = EPOCH.next()).await;
            owner.try_attach(EPOCH.next()).await.unwrap();
            router.disk.heal();
        };
        let (synced, ()) = tokio::join!(sync, next);
        let refusal = synced.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen, "{refusal}");
        let beat = owner.say_in(EPOCH.next(), TwinSay::Beat, Bytes::new()).await;
        assert_eq!(beat, Ok(TwinReply::Done));
        router.stop();
    });
}

async fn waits_for_takeover(cluster: &Cluster, volume: VolumeId) -> Client {
    let mut client = Client::connect(cluster, volume);
    until("the takeover", async || client.reopen().await.ok()).await;
    client
}

#[test]
fn an_owner_that_is_gone_is_taken_over_with_what_it_appended_and_copied() {
    block_on(async {
        let (cluster, mut owner) = started().await;
        let buffer = owner.attach().await;
        let (first, second) = (cluster_of(1), cluster_of(2));
        let image = owner.image(1, 5, &first);
        let middle = usize::try_from(sco_size().data_offset()).unwrap();
        owner.copy(1, &image, 0..middle).await;
        owner.copy(1, &image, middle..image.len()).await;
        owner.open(2).await;
        owner.append(2, 6, second.clone()).await;
        let upto = BatchSeq(owner.seq);
        assert_eq!(owner.say(TwinSay::Sync { upto }).await, Ok(TwinReply::Done));
        owner.relies_on(&buffer).await;

        // As long as it is there, it is not: not even where somebody asks for it.
        let takeover = VolumeControl::TakeOver {
            volume: owner.volume,
            force: false,
        };
        let refusal = owner.client.control(takeover).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        assert!(refusal.text.contains("which is in the registry"), "{refusal}");
        owner.append(2, 7, second.clone()).await;

        owner.is_there(false).await;
        let mut client = waits_for_takeover(&cluster, owner.volume).await;
        assert_eq!(client.read(5 * 4096, CLUSTER_LEN).await, first);
        assert_eq!(client.read(6 * 4096, CLUSTER_LEN).await, second);
        assert_eq!(client.read(7 * 4096, CLUSTER_LEN).await, second);
        let refusal = owner.try_append(2, 8, second).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reroute, RefusalCode::NotOpen)
        );

        let record = cluster.record(&owner.registry, owner.volume).await;
        assert_eq!(
            (record.owner.as_str(), record.buffer.as_deref()),
            (NODE, Some(&*buffer))
        );
        assert_eq!(
            (record.dtl_state, record.dtl_host, record.dtl_buffer),
            (DtlState::Degraded, None, None)
        );
        assert!(record.epoch > EPOCH);
    });
}

#[test]
fn a_stream_that_breaks_while_it_is_taken_over_leaves_everything_to_the_takeover() {
    block_on(async {
        let (mut cluster, mut owner, buffer) = with_one_batch().await;
        owner.relies_on(&buffer).await;
        let mut storage = Empty::instead(&mut cluster, &owner.registry).await;
        owner.is_there(false).await;

        // The takeover has begun, and asks which manifest there is. The stream goes on until the claim.
        let asked = storage.asked().await;
        assert_eq!(owner.say(TwinSay::Beat).await, Ok(TwinReply::Done));
        let refusal = owner.try_append(99, 10, cluster_of(10)).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Invalid);
        Empty::answer(asked);
        let serving = tokio::task::spawn_local(storage.serve());
        let mut client = waits_for_takeover(&cluster, owner.volume).await;
        assert_eq!(client.read(9 * 4096, CLUSTER_LEN).await, cluster_of(9));
        serving.abort();
    });
}

#[test]
fn a_twin_begins_only_for_the_owner_and_where_nobody_relies_on_another() {
    block_on(async {
        let (_cluster, mut owner) = started().await;
        let buffer = owner.attach().await;
        let refusal = owner.try_attach(Epoch(2)).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reroute, RefusalCode::NotOwner)
        );
        owner.open(1).await;
        owner.append(1, 0, cluster_of(1)).await;
        owner.relies_on(&buffer).await;
        let refusal = owner.try_attach(EPOCH).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        // The stream that is relied on goes on.
        owner.append(1, 1, cluster_of(2)).await;

        let known = owner.stream;
        owner.stream += 1;
        let refusal = owner.say(TwinSay::Beat).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reroute, RefusalCode::NotOpen)
        );
        owner.degrade().await;
        owner.attach().await;
        let second = std::mem::replace(&mut owner.stream, known);
        let refusal = owner.say(TwinSay::Beat).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen);
        owner.stream = second;
        assert_eq!(owner.say(TwinSay::Beat).await, Ok(TwinReply::Done));
        assert_eq!(owner.held().await, 0, "what the first stream had is given back");
    });
}

#[test]
fn what_is_released_and_what_is_given_up_is_given_back() {
    block_on(async {
        let (_cluster, mut owner) = started().await;
        owner.attach().await;
        for sco in 1..=3 {
            owner.open(sco).await;
            owner.append(sco, sco, cluster_of(sco)).await;
        }
        assert_eq!(owner.held().await, 3 * sco_size().file_len());
        let upto = ScoId(2);
        assert_eq!(owner.say(TwinSay::Release { upto }).await, Ok(TwinReply::Done));
        assert_eq!(owner.held().await, sco_size().file_len());
        assert_eq!(owner.say(TwinSay::Detach).await, Ok(TwinReply::Done));
        assert_eq!(owner.held().await, 0);
        let refusal = owner.say(TwinSay::Beat).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen);
    });
}

#[test]
fn a_stream_whose_owner_is_silent_is_given_up_only_where_nobody_relies_on_it() {
    block_on(async {
        let mut cluster = Cluster::new();
        let mut relied = Owner::of(&cluster, 1).await;
        let mut left = Owner::of(&cluster, 2).await;
        let mut deleted = Owner::of(&cluster, 3).await;
        let mut erased = Owner::of(&cluster, 4).await;
        let mut lost = Owner::of(&cluster, 5).await;
        cluster.start();
        let mut buffer = String::new();
        for owner in [&mut relied, &mut left, &mut deleted, &mut erased, &mut lost] {
            buffer = owner.attach().await;
            owner.open(1).await;
            owner.append(1, 0, cluster_of(1)).await;
        }
        relied.relies_on(&buffer).await;
        deleted.relies_on(&buffer).await;
        // Another ownership went on elsewhere. As long as it is the stream's, its record may be about to rely on it.
        left.record(|record| record.epoch = EPOCH.next()).await;
        deleted
            .record(|record| record.phase = VolumePhase::Deleting)
            .await;
        // Two have no record any more: of one the registry says that it was erased, of the other nothing.
        let note = GoneRecord { erased_us: u64::MAX };
        let changes = vec![
            Change::delete(keys::volume(lost.volume), None),
            Change::delete(keys::volume(erased.volume), None),
            Change::put(keys::gone(erased.volume), None, note.to_bytes()),
        ];
        erased.registry.commit(changes).await.unwrap();
        until("the others to be given up", async || {
            (relied.held().await == 2 * sco_size().file_len()).then_some(())
        })
        .await;
        for owner in [&left, &deleted, &erased] {
            let refusal = owner.say(TwinSay::Beat).await.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::NotOpen);
        }
        for owner in [&relied, &lost] {
            assert_eq!(owner.say(TwinSay::Beat).await, Ok(TwinReply::Done));
        }
    });
}

#[test]
fn a_restarted_host_knows_no_stream_and_adopts_what_the_record_relies_on() {
    block_on(async {
        let (mut cluster, mut owner, buffer) = with_one_batch().await;
        // Half a copy is no SCO.
        let image = owner.image(2, 10, &cluster_of(10));
        let part = usize::try_from(sco_size().data_offset()).unwrap();
        owner.copy(2, &image, 0..part).await;
        assert_eq!(owner.held().await, 2 * sco_size().file_len());
        owner.relies_on(&buffer).await;
        cluster.kill();
        cluster.start();
        owner.client = Client::connect(&cluster, owner.volume);
        let refusal = until("an answer", async || match owner.say(TwinSay::Beat).await {
            Err(refusal) if refusal.code == RefusalCode::NotOpen => Some(refusal),
            _ => None,
        })
        .await;
        assert_eq!(refusal.remedy, Remedy::Reroute);
        assert_eq!(owner.held().await, sco_size().file_len());
        assert_eq!(owner.owner().await, OWNER);
        owner.is_there(false).await;
        let mut client = waits_for_takeover(&cluster, owner.volume).await;
        assert_eq!(client.read(9 * 4096, CLUSTER_LEN).await, cluster_of(9));
        assert_eq!(client.read(10 * 4096, CLUSTER_LEN).await, vec![0; CLUSTER_LEN]);
    });
}

#[test]
fn a_twin_that_nobody_relies_on_is_not_adopted_and_given_back() {
    block_on(async {
        let (mut cluster, mut owner, buffer) = with_one_batch().await;
        owner.relies_on(&buffer).await;
        cluster.kill();
        owner.degrade().await;
        owner.is_there(false).await;
        cluster.start();
        owner.client = Client::connect(&cluster, owner.volume);
        until("the host", async || {
            let status = owner.client.control(VolumeControl::NodeStatus).await;
            status.ok()
        })
        .await;
        // Whether the record is about to rely on it nobody knows, until it relies on another one.
        assert_eq!(owner.held().await, sco_size().file_len());
        owner.relies_on("another").await;
        until("the files to be given back", async || {
            (owner.held().await == 0).then_some(())
        })
        .await;
        owner.degrade().await;
        let takeover = VolumeControl::TakeOver {
            volume: owner.volume,
            force: false,
        };
        let refusal = owner.client.control(takeover).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::WaitsForOwner);
        assert!(refusal.text.contains("degraded"), "{refusal}");
        assert_eq!(owner.owner().await, OWNER);
    });
}

#[test]
fn a_forced_takeover_uses_no_twin_that_was_given_up() {
    block_on(async {
        let (cluster, mut owner, _) = with_one_batch().await;
        // The owner went on without it, and knows that the record says so; the twin's host knows nothing yet.
        let takeover = VolumeControl::TakeOver {
            volume: owner.volume,
            force: true,
        };
        owner.client.control(takeover).await.unwrap();
        let mut client = Client::open(&cluster, owner.volume).await;
        assert_eq!(client.read(9 * 4096, CLUSTER_LEN).await, vec![0; CLUSTER_LEN]);
        let refusal = owner.try_append(1, 10, cluster_of(10)).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotOpen);
        assert_eq!(owner.held().await, 0);
    });
}

#[test]
fn a_full_write_buffer_answers_late_and_in_order() {
    block_on(async {
        let mut cluster = Cluster::new().with_buffer("32 MiB");
        let files = (32 << 20) / sco_size().file_len();
        let mut other = Owner::of(&cluster, 2).await;
        let mut owner = Owner::new(&cluster).await;
        cluster.start();
        other.attach().await;
        other.open(1).await;
        let buffer = owner.attach().await;
        for sco in 1..files {
            owner.open(sco).await;
            owner.append(sco, sco, cluster_of(sco)).await;
        }
        // The next one waits for a file, and so does what is said of it.
        let header = owner.header(files);
        let open = TwinSay::Open {
            sco: header.id,
            first_batch: header.first_batch,
            synced_below: header.synced_below,
        };
        (owner.tlog, owner.slot) = (0, 0);
        let tlog = owner.batch(files, 0, &cluster_of(0));
        let append = TwinSay::Append {
            sco: header.id,
            seq: header.first_batch,
            tlog_offset: 0,
            tlog,
            first_slot: Slot(0),
        };
        let freed = async {
            // It overtakes them: the stream is, and only slow.
            assert_eq!(owner.say(TwinSay::Beat).await, Ok(TwinReply::Done));
            other.say(TwinSay::Detach).await
        };
        let opened = owner.say(open);
        let appended = owner.say_in(EPOCH, append, cluster_of(0));
        let (opened, appended, detached) = tokio::join!(opened, appended, freed);
        assert_eq!((opened, appended), (Ok(TwinReply::Done), Ok(TwinReply::Done)));
        assert_eq!(detached, Ok(TwinReply::Done));
        assert_eq!(owner.held().await, files * sco_size().file_len());
        owner.relies_on(&buffer).await;
        owner.is_there(false).await;
        let mut client = waits_for_takeover(&cluster, owner.volume).await;
        for sco in 0..files {
            assert_eq!(
                client.read(sco * 4096, CLUSTER_LEN).await,
                cluster_of(sco),
                "SCO {sco}"
            );
        }
    });
}
