//! A client as the fs-router is one: a session, numbered operations, held and sent again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_bus::{CallError, Caller, Endpoint, Protocol};
use sconce_schemas::access::{AccessAsk, AccessReply};
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::twin::{TwinReply, TwinRequest, TwinSay};
use sconce_schemas::wire::volume::{
    IoCode, IoFlags, IoRequest, NodeStatus, ReadExtent, VolumeControl, VolumeControlReply, VolumeReply,
    VolumeRequest, VolumeStatus,
};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{CLUSTER_LEN, ObjectName, ScoSize, SessionId, VolumeId};

use super::cluster::{Cluster, LONG, NODE, hello};

pub(crate) struct Client {
    caller: Caller<VolumeRequest, VolumeReply>,
    storage: Caller<StorageRequest, StorageReply>,
    pub(crate) volume: VolumeId,
    /// The snapshot that is open in the volume's place.
    snapshot: Option<String>,
    pub(crate) session: SessionId,
    pub(crate) handle: u32,
    pub(crate) next: u64,
    /// What is said of write access; as a build before there was any: nothing.
    pub(crate) ask: Option<AccessAsk>,
    /// What the last open answered to it.
    pub(crate) access: Option<AccessReply>,
    /// Located extents that reads were answered with.
    pub(crate) located: u64,
}

impl Client {
    /// Opens a volume, waiting until it is served.
    pub(crate) async fn open(cluster: &Cluster, volume: VolumeId) -> Self {
        let mut client = Self::connect(cluster, volume);
        client.reopen().await.unwrap();
        client
    }

    /// Opens one of a volume's snapshots.
    pub(crate) async fn open_snapshot(
        cluster: &Cluster,
        volume: VolumeId,
        name: &str,
    ) -> Result<Self, Refusal> {
        let mut client = Self {
            snapshot: Some(name.to_owned()),
            ..Self::connect(cluster, volume)
        };
        client.reopen().await?;
        Ok(client)
    }

    /// A client without an open volume.
    pub(crate) fn connect(cluster: &Cluster, volume: VolumeId) -> Self {
        Self::connect_to(cluster, NODE, volume)
    }

    /// A client of another node, without an open volume.
    pub(crate) fn connect_to(cluster: &Cluster, node: &str, volume: VolumeId) -> Self {
        let endpoint: Endpoint = cluster.endpoint(node).parse().unwrap();
        let storage: Endpoint = cluster.endpoint("storage-router").parse().unwrap();
        Self {
            caller: Caller::new(&cluster.network, &endpoint, hello(Protocol::Volume)),
            storage: Caller::new(&cluster.network, &storage, hello(Protocol::Storage)),
            volume,
            snapshot: None,
            session: SessionId(fastrand::u64(1..)),
            handle: 0,
            next: 1,
            ask: None,
            access: None,
            located: 0,
        }
    }

    /// The same session and numbers, at another node, and the client is called so.
    pub(crate) async fn go_to_as(&mut self, cluster: &Cluster, node: &str, client: &str) {
        let endpoint: Endpoint = cluster.endpoint(node).parse().unwrap();
        let mut hello = hello(Protocol::Volume);
        hello.node = client.parse().unwrap();
        self.caller = Caller::new(&cluster.network, &endpoint, hello);
        self.reopen().await.unwrap();
    }

    /// The same session and numbers, at another node.
    pub(crate) async fn go_to(&mut self, cluster: &Cluster, node: &str) {
        let endpoint: Endpoint = cluster.endpoint(node).parse().unwrap();
        self.caller = Caller::new(&cluster.network, &endpoint, hello(Protocol::Volume));
        self.reopen().await.unwrap();
    }

    pub(crate) async fn control(&self, control: VolumeControl) -> Result<VolumeControlReply, Refusal> {
        self.control_with(control, Bytes::new()).await
    }

    /// A control request with data.
    pub(crate) async fn control_with(
        &self,
        control: VolumeControl,
        data: Bytes,
    ) -> Result<VolumeControlReply, Refusal> {
        let request = VolumeRequest::Control(control);
        let end = Instant::now() + LONG;
        loop {
            match self.caller.call(&request, data.clone(), 0, LONG).await {
                Ok((VolumeReply::Control(reply), _)) => return Ok(reply),
                Ok((VolumeReply::Refused(refusal), _)) => return Err(refusal),
                Ok((other, _)) => panic!("{other:?}"),
                Err(CallError::Lost) if Instant::now() < end => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Says something to a twin, as an owner does.
    pub(crate) async fn say(&self, said: TwinRequest, data: Bytes) -> Result<TwinReply, Refusal> {
        // What changes nothing the second time is said again where the connection was lost: on a busy machine a host may be silent for seconds.
        let is_repeatable = matches!(
            said.say,
            TwinSay::Attach { .. }
                | TwinSay::Sync { .. }
                | TwinSay::Release { .. }
                | TwinSay::Detach
                | TwinSay::Beat
        );
        let request = VolumeRequest::Twin(Box::new(said));
        let end = Instant::now() + LONG;
        loop {
            match self.caller.call(&request, data.clone(), 0, LONG).await {
                Ok((VolumeReply::Twin(reply), _)) => return Ok(reply),
                Ok((VolumeReply::Refused(refusal), _)) => return Err(refusal),
                Ok((other, _)) => panic!("{other:?}"),
                Err(CallError::Lost) if is_repeatable && Instant::now() < end => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Opens the volume in the client's session, waiting for what passes.
    pub(crate) async fn reopen(&mut self) -> Result<(), Refusal> {
        let (volume, session) = (self.volume, self.session);
        let end = Instant::now() + LONG;
        loop {
            match self
                .control(VolumeControl::Open {
                    volume,
                    session,
                    snapshot: self.snapshot.clone(),
                    access: self.ask.clone(),
                })
                .await
            {
                Ok(VolumeControlReply::Opened {
                    handle,
                    snapshot,
                    access,
                    ..
                }) => {
                    self.access = access;
                    if let (Some(AccessReply::Granted(generation)), Some(ask)) = (&self.access, &mut self.ask)
                    {
                        ask.held = (*generation > 0).then_some(*generation);
                    }
                    let told = snapshot.is_some();
                    assert_eq!(told, self.snapshot.is_some(), "which snapshot it is");
                    self.handle = handle;
                    return Ok(());
                }
                Ok(other) => panic!("{other:?}"),
                Err(refusal) if refusal.code == RefusalCode::WaitsForOwner => return Err(refusal),
                Err(refusal) if refusal.remedy == Remedy::Retry && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// One try of one operation.
    pub(crate) async fn attempt(
        &self,
        request: IoRequest,
        data: Bytes,
        deadline: Duration,
    ) -> Result<Result<(VolumeReply, Bytes), Refusal>, CallError> {
        let room = match request.code {
            IoCode::Read => u32::try_from(request.length).unwrap() + 2 * 4096,
            _ => 0,
        };
        let request = VolumeRequest::Io(request);
        let (reply, data) = self.caller.call(&request, data, room, deadline).await?;
        Ok(match reply {
            VolumeReply::Refused(refusal) => Err(refusal),
            reply => Ok((reply, data)),
        })
    }

    pub(crate) fn request(&mut self, code: IoCode, flags: u8, offset: u64, length: u64) -> IoRequest {
        let number = self.next;
        self.next += 1;
        IoRequest {
            handle: self.handle,
            number,
            below: number,
            code,
            flags: IoFlags(flags),
            offset,
            length,
        }
    }

    /// One operation, sent again until it is done or refused for good.
    pub(crate) async fn io(
        &mut self,
        mut request: IoRequest,
        data: Bytes,
    ) -> Result<(VolumeReply, Bytes), Refusal> {
        let end = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < end, "{request:?} is never answered");
            request.handle = self.handle;
            match self.attempt(request, data.clone(), LONG).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(refusal)) => match refusal.remedy {
                    Remedy::Reject | Remedy::Damaged => return Err(refusal),
                    Remedy::Reroute => self.reopen().await?,
                    Remedy::Retry => tokio::time::sleep(Duration::from_millis(2)).await,
                },
                Err(CallError::Lost) => self.reopen().await?,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) async fn write(&mut self, offset: u64, data: impl Into<Bytes>) {
        let data = data.into();
        let request = self.request(IoCode::Write, 0, offset, data.len() as u64);
        self.io(request, data).await.unwrap();
    }

    pub(crate) async fn flush(&mut self) {
        let request = self.request(IoCode::Flush, 0, 0, 0);
        self.io(request, Bytes::new()).await.unwrap();
    }

    pub(crate) async fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.try_read(offset, length).await.unwrap()
    }

    pub(crate) async fn try_read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Refusal> {
        let request = self.request(IoCode::Read, 0, offset, length as u64);
        let (reply, mut data) = self.io(request, Bytes::new()).await?;
        let VolumeReply::Read(extents) = reply else {
            panic!("{reply:?}")
        };
        let mut bytes = Vec::new();
        for extent in extents {
            match extent {
                ReadExtent::Data { length } => bytes.extend_from_slice(&data.split_to(length as usize)),
                ReadExtent::Zeros { length } => bytes.resize(bytes.len() + length as usize, 0),
                located => bytes.extend_from_slice(&self.fetch(located).await),
            }
        }
        assert!(data.is_empty(), "more data than the extents say");
        let start = usize::try_from(offset % 4096).unwrap();
        Ok(bytes[start..start + length].to_vec())
    }

    /// Reads a located extent from the storage-router, as the fs-router does.
    async fn fetch(&mut self, extent: ReadExtent) -> Bytes {
        let ReadExtent::Located {
            volume,
            sco,
            epoch,
            version,
            first_slot,
            crcs,
        } = extent
        else {
            panic!("{extent:?}")
        };
        self.located += 1;
        let request = StorageRequest::Get {
            pool: "default".to_owned(),
            name: ObjectName::Sco {
                volume,
                id: sco,
                epoch,
                version,
            },
            offset: ScoSize::new(256).unwrap().slot_offset(first_slot),
            length: u32::try_from(crcs.len() * CLUSTER_LEN).unwrap(),
            cached: false,
        };
        let length = crcs.len() * CLUSTER_LEN;
        let room = u32::try_from(length).unwrap();
        let (reply, bytes) = self.stored(&request, Bytes::new(), room).await;
        assert_eq!(reply, StorageReply::Data);
        for (cluster, crc) in bytes.chunks(CLUSTER_LEN).zip(&crcs) {
            assert_eq!(sconce_schemas::crc::crc32c(cluster), *crc);
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    /// Asks the storage-router, again where the connection was lost: on a busy machine it may say nothing for seconds.
    async fn stored(&self, request: &StorageRequest, data: Bytes, room: u32) -> (StorageReply, Bytes) {
        let end = Instant::now() + LONG;
        loop {
            match self.storage.call(request, data.clone(), room, LONG).await {
                Ok(answer) => return answer,
                Err(CallError::Lost) if Instant::now() < end => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Puts an object on the back ends, as the volume-router does.
    pub(crate) async fn put(&self, name: ObjectName, bytes: Vec<u8>) {
        let request = StorageRequest::Put {
            pool: "default".to_owned(),
            name,
        };
        let (reply, _) = self.stored(&request, bytes.into(), 0).await;
        assert_eq!(reply, StorageReply::Done);
    }

    /// An object's first bytes, as it is stored.
    pub(crate) async fn get(&self, name: ObjectName, length: usize) -> Bytes {
        let length = u32::try_from(length).unwrap();
        let request = StorageRequest::Get {
            pool: "default".to_owned(),
            name,
            offset: 0,
            length,
            cached: false,
        };
        let (reply, bytes) = self.stored(&request, Bytes::new(), length).await;
        assert_eq!(reply, StorageReply::Data);
        bytes
    }

    /// Waits until everything is stored.
    pub(crate) async fn sync(&self) {
        let volume = self.volume;
        let end = Instant::now() + LONG;
        loop {
            match self.control(VolumeControl::Sync { volume }).await {
                Ok(_) => return,
                Err(refusal) => {
                    assert!(
                        refusal.remedy != Remedy::Reject && Instant::now() < end,
                        "{refusal}"
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    pub(crate) async fn resize(&mut self, size: u64) {
        let request = self.request(IoCode::Resize, 0, size, 0);
        self.io(request, Bytes::new()).await.unwrap();
    }

    pub(crate) async fn show(&self) -> VolumeStatus {
        let volume = self.volume;
        match self.control(VolumeControl::Show { volume }).await.unwrap() {
            VolumeControlReply::Volume(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn node(&self) -> NodeStatus {
        match self.control(VolumeControl::NodeStatus).await.unwrap() {
            VolumeControlReply::Node(status) => status,
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes that depend on a seed alone.
pub(crate) fn bytes(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// What a volume should hold, beside it.
pub(crate) struct Model {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rng: fastrand::Rng,
}

impl Model {
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        Self {
            bytes: vec![0; size],
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// A random change on both sides: sector-aligned writes of up to 64 KiB, and now and then a discard.
    pub(crate) async fn change(&mut self, client: &mut Client) {
        let length = 512 * self.rng.usize(1..=128);
        let offset = 512 * self.rng.usize(0..=(self.bytes.len() - length) / 512);
        if self.rng.u8(..) < 25 {
            let (offset, length) = (offset / 4096 * 4096, length.next_multiple_of(4096));
            let length = length.min(self.bytes.len() - offset);
            let request = client.request(IoCode::Discard, 0, offset as u64, length as u64);
            client.io(request, Bytes::new()).await.unwrap();
            self.bytes[offset..offset + length].fill(0);
        } else {
            let data = bytes(self.rng.u64(..), length);
            client.write(offset as u64, data.clone()).await;
            self.bytes[offset..offset + length].copy_from_slice(&data);
        }
    }

    /// Whether the volume holds what it should.
    pub(crate) async fn check(&self, client: &mut Client) {
        for at in (0..self.bytes.len()).step_by(256 << 10) {
            let length = (256 << 10).min(self.bytes.len() - at);
            let found = client.read(at as u64, length).await;
            let differs = found
                .iter()
                .zip(&self.bytes[at..])
                .position(|(found, right)| found != right);
            assert_eq!(differs, None, "first difference from {at} on");
        }
    }
}
