//! An owner and a storage-router on a thread of their own, behind the real bus. They can be stopped, as by
//! `kill -9`, and started again.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use sconce_bus::{
    Endpoint, Identity, Limits, Network, PeerId, Protocol, RequestIn, Role, Server, ServerEvent, bind,
};
use sconce_runtime::Stop;
use sconce_schemas::records::NodeRecord;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    CLUSTER_BYTES, Epoch, NodeName, ObjectName, ScoSize, SessionId, SnapshotId, VolumeId, VolumeSize,
};

use super::{Models, node_record};

/// What the storage-router does with the next reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A bit of the data is flipped.
    Flip,
    /// The object is not there.
    Gone,
    /// It cannot be reached now.
    Busy,
}

/// A node that owns what the test says it owns.
pub(crate) struct Owner {
    network: Network,
    name: NodeName,
    endpoint: String,
    storage_endpoint: String,
    models: Models,
    /// Volumes that it refuses as not its own.
    pub(crate) not_mine: Arc<Mutex<Vec<VolumeId>>>,
    /// Volumes that wait for a write buffer that it does not have.
    pub(crate) waiting: Arc<Mutex<Vec<VolumeId>>>,
    pub(crate) trouble: Arc<Mutex<VecDeque<Trouble>>>,
    running: Option<(Stop, JoinHandle<()>)>,
    epoch: u64,
}

impl Owner {
    pub(crate) fn start(network: &Network, dir: &Path, name: &str, models: Models) -> Owner {
        let bus = dir.join(format!("bus-{name}"));
        let mut owner = Owner {
            network: network.clone(),
            name: name.parse().unwrap(),
            endpoint: format!("ipc://{}/owner.sock", bus.display()),
            storage_endpoint: format!("ipc://{}/storage.sock", bus.display()),
            models,
            not_mine: Arc::default(),
            waiting: Arc::default(),
            trouble: Arc::default(),
            running: None,
            epoch: 0,
        };
        owner.restart();
        owner
    }

    pub(crate) fn record(&self) -> NodeRecord {
        node_record(self.name.as_str(), Role::VolumeRouter, &self.endpoint)
    }

    pub(crate) fn storage_record(&self) -> NodeRecord {
        node_record(
            &format!("sr-{}", self.name),
            Role::StorageRouter,
            &self.storage_endpoint,
        )
    }

    /// Ends it at once: what it had not answered stays unanswered.
    pub(crate) fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.request();
            thread.join().unwrap();
        }
    }

    /// Starts it, on what the volumes hold.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.epoch += 1;
        let stop = Stop::new();
        let serving = Serving {
            network: self.network.clone(),
            name: self.name.clone(),
            models: self.models.clone(),
            not_mine: self.not_mine.clone(),
            waiting: self.waiting.clone(),
            trouble: self.trouble.clone(),
            epoch: Epoch(self.epoch),
            handles: HashMap::new(),
            compared: HashMap::new(),
            next_handle: 1,
        };
        let endpoints = (
            self.endpoint.parse().unwrap(),
            self.storage_endpoint.parse().unwrap(),
        );
        let (bound, is_bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serving.run(endpoints, stop, bound));
            }
        });
        is_bound.recv().unwrap();
        self.running = Some((stop, thread));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Serving {
    network: Network,
    name: NodeName,
    models: Models,
    not_mine: Arc<Mutex<Vec<VolumeId>>>,
    waiting: Arc<Mutex<Vec<VolumeId>>>,
    trouble: Arc<Mutex<VecDeque<Trouble>>>,
    epoch: Epoch,
    handles: HashMap<(PeerId, u32), (VolumeId, SessionId, Option<SnapshotId>)>,
    /// Handles that compare: a snapshot, or the volume, with a snapshot.
    compared: HashMap<(PeerId, u32), (VolumeId, Option<SnapshotId>, SnapshotId)>,
    next_handle: u32,
}

impl Serving {
    async fn run(
        mut self,
        (endpoint, storage): (Endpoint, Endpoint),
        stop: Stop,
        bound: std::sync::mpsc::Sender<()>,
    ) {
        let identity = |role, protocol| Identity {
            node: self.name.clone(),
            role,
            protocol,
            limits: Limits::of(protocol),
        };
        let (volume, objects) = (Protocol::Volume, Protocol::Storage);
        let mut volumes: Server<VolumeRequest, VolumeReply> =
            bind(&self.network, &endpoint, identity(Role::VolumeRouter, volume))
                .await
                .unwrap();
        let mut objects: Server<StorageRequest, StorageReply> =
            bind(&self.network, &storage, identity(Role::StorageRouter, objects))
                .await
                .unwrap();
        bound.send(()).unwrap();
        loop {
            tokio::select! {
                () = stop.requested() => return,
                event = volumes.next() => match event {
                    ServerEvent::Requests(requests) => {
                        requests.into_iter().for_each(|request| self.volume_request(request));
                    }
                    ServerEvent::PeerGone(peer) => {
                        self.handles.retain(|(of, _), _| *of != peer);
                        self.compared.retain(|(of, _), _| *of != peer);
                    }
                },
                event = objects.next() => if let ServerEvent::Requests(requests) = event {
                    requests.into_iter().for_each(|request| self.storage_request(request));
                },
            }
        }
    }

    fn volume_request(&mut self, request: RequestIn<VolumeRequest, VolumeReply>) {
        let (reply, data) = self.answer(request.peer, &request.body, &request.data);
        request.reply.send(reply, data);
    }

    fn answer(&mut self, peer: PeerId, request: &VolumeRequest, data: &Bytes) -> (VolumeReply, Bytes) {
        let refused = |refusal| (VolumeReply::Refused(refusal), Bytes::new());
        let not_owner = || Refusal::reroute(RefusalCode::NotOwner, "another node owns the volume");
        match request {
            VolumeRequest::Control(VolumeControl::Open {
                volume,
                session,
                snapshot,
                ..
            }) => {
                if self.not_mine.lock().unwrap().contains(volume) {
                    return refused(not_owner());
                }
                if self.waiting.lock().unwrap().contains(volume) {
                    let text = "it waits for another write buffer";
                    return refused(Refusal::retry(RefusalCode::WaitsForOwner, text));
                }
                let Some((size, read_only)) =
                    self.models.with(*volume, |model| (model.size, model.read_only))
                else {
                    return refused(Refusal::reject(RefusalCode::NotFound, "no such volume"));
                };
                let (mut size, mut read_only, mut id) = (size, read_only, None);
                if let Some(name) = snapshot {
                    let found = self.models.with(*volume, |model| model.snapshot_named(name));
                    let Some((found, then)) = found.flatten() else {
                        let text = format!("the volume has no snapshot {name:?}");
                        return refused(Refusal::reject(RefusalCode::NotFound, text));
                    };
                    (size, read_only, id) = (then, true, Some(found));
                }
                let handle = self.next_handle;
                self.next_handle += 1;
                self.handles.insert((peer, handle), (*volume, *session, id));
                let opened = VolumeControlReply::Opened {
                    handle,
                    epoch: self.epoch,
                    size: VolumeSize::new(size).unwrap(),
                    read_only,
                    snapshot: id,
                    access: None,
                };
                (VolumeReply::Control(opened), Bytes::new())
            }
            VolumeRequest::Control(VolumeControl::OpenChanges {
                volume,
                snapshot,
                since,
            }) => {
                if self.not_mine.lock().unwrap().contains(volume) {
                    return refused(not_owner());
                }
                let since = since.as_ref().expect("it is compared with a snapshot");
                let found = self.models.with(*volume, |model| {
                    let named = |name: &String| model.snapshot_named(name);
                    let of = match snapshot {
                        Some(name) => Some(Some(named(name)?)),
                        None => Some(None),
                    };
                    Some((of?, named(&since.snapshot)?.0, model.size))
                });
                let Some((of, since, size)) = found.flatten() else {
                    return refused(Refusal::reject(RefusalCode::NotFound, "no such snapshot"));
                };
                let handle = self.next_handle;
                self.next_handle += 1;
                let of_id = of.map(|(id, _)| id);
                self.compared.insert((peer, handle), (*volume, of_id, since));
                let size = of.map_or(size, |(_, size)| size);
                let opened = VolumeControlReply::OpenedChanges {
                    handle,
                    epoch: self.epoch,
                    size: VolumeSize::new(size).unwrap(),
                    snapshot: of_id,
                    since: Some(since),
                };
                (VolumeReply::Control(opened), Bytes::new())
            }
            VolumeRequest::Control(VolumeControl::ListSnapshots { volume }) => {
                let snapshots = self.models.with(*volume, |model| model.list_snapshots());
                let listed = VolumeControlReply::Snapshots {
                    snapshots: snapshots.unwrap_or_default(),
                };
                (VolumeReply::Control(listed), Bytes::new())
            }
            VolumeRequest::Io(io) if self.compared.contains_key(&(peer, io.handle)) => {
                let (volume, of, since) = self.compared[&(peer, io.handle)];
                if self.not_mine.lock().unwrap().contains(&volume) {
                    return refused(not_owner());
                }
                let reply = self.models.with(volume, |model| model.changes(of, since, io));
                (reply.unwrap(), Bytes::new())
            }
            VolumeRequest::Control(VolumeControl::Close { handle }) => {
                self.compared.remove(&(peer, *handle));
                if let Some((volume, session, _)) = self.handles.remove(&(peer, *handle)) {
                    self.models.with(volume, |model| model.close_session(session));
                }
                (VolumeReply::Control(VolumeControlReply::Done), Bytes::new())
            }
            VolumeRequest::Twin(_) => panic!("an fs-router has no twins"),
            VolumeRequest::Control(other) => {
                let text = format!("the model does not know {other:?}");
                refused(Refusal::reject(RefusalCode::Unsupported, text))
            }
            VolumeRequest::Io(io) => match self.handles.get(&(peer, io.handle)) {
                Some((volume, ..)) if self.not_mine.lock().unwrap().contains(volume) => refused(not_owner()),
                Some(&(volume, session, snapshot)) => self
                    .models
                    .with(volume, |model| match snapshot {
                        Some(id) => model.snapshot_io(id, io),
                        None => model.io(session, io, data),
                    })
                    .unwrap(),
                None => refused(Refusal::reroute(
                    RefusalCode::NotOpen,
                    "the handle is not open here",
                )),
            },
        }
    }

    fn storage_request(&mut self, request: RequestIn<StorageRequest, StorageReply>) {
        let (reply, data) = self.get(&request.body);
        request.reply.send(reply, data);
    }

    /// Objects are made up from what the one cold volume holds.
    fn get(&mut self, request: &StorageRequest) -> (StorageReply, Bytes) {
        let refused = |refusal| (StorageReply::Refused(refusal), Bytes::new());
        let StorageRequest::Get {
            name: ObjectName::Sco { id, .. },
            offset,
            length,
            ..
        } = request
        else {
            return refused(Refusal::reject(
                RefusalCode::Unsupported,
                "the model has SCOs only",
            ));
        };
        let trouble = self.trouble.lock().unwrap().pop_front();
        match trouble {
            Some(Trouble::Gone) => return refused(Refusal::reject(RefusalCode::NotFound, "no such object")),
            Some(Trouble::Busy) => return refused(Refusal::retry(RefusalCode::Unavailable, "no back end")),
            _ => {}
        }
        let sco_size = ScoSize::new(super::volume::CHUNK as u64).unwrap();
        let slot = (offset - sco_size.data_offset()) / CLUSTER_BYTES;
        let found = self
            .models
            .cold(|model| model.stored(*id, slot, *length as usize));
        match found.flatten() {
            Some(data) if trouble == Some(Trouble::Flip) => {
                let mut bytes = data.to_vec();
                bytes[100] ^= 0x10;
                (StorageReply::Data, bytes.into())
            }
            Some(data) => (StorageReply::Data, data),
            None => refused(Refusal::reject(RefusalCode::NotFound, "no such object")),
        }
    }
}
