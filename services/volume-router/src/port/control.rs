//! Control requests: each a task of its own, so that one that waits holds up nothing.
//!
//! Keeps: nothing.
//! Order: none; a client waits for the answer before it relies on it.
//! Crash: nothing; the registry's record says what was decided.
//! Knows volumes by their handles.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_bus::{PeerId, Reply};
use sconce_runtime::Stop;
use sconce_schemas::access::{AccessAsk, AccessReply};
use sconce_schemas::wire::volume::{
    NodeStatus, QueueStatus, SnapshotStatus, VolumeControl, VolumeControlReply, VolumeReply, VolumeStatus,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, SessionId, VolumeId};
use sconce_tracing::OperationId;
use sconce_volume::{Ask, MomentAsk, SnapshotInfo, Ticket};

use super::peers::{Open, OpenOn, Peers};
use crate::actor::{Pass, Shard, VolumeActor, VolumeHandle, Waiting};
use crate::background::PoolUsage;
use crate::deletion;
use crate::owner::record::TakeOver;
use crate::placement::IoCount;

/// What a control request is carried out with.
pub(super) struct Control {
    pub(super) shard: Rc<Shard>,
    pub(super) index: usize,
    pub(super) peers: Rc<RefCell<Peers>>,
    pub(super) peer: PeerId,
    /// Why nothing but questions is answered now.
    pub(super) closed: Option<Refusal>,
    /// Nobody waits for events past it.
    pub(super) stop: Stop,
    /// Counts among the requests under way.
    pub(super) _counted: Rc<()>,
}

impl Control {
    /// `data`: what came with it.
    pub(super) async fn run(self, control: VolumeControl, data: Bytes, reply: Reply<VolumeReply>) {
        let done = match (control, &self.closed) {
            (VolumeControl::Events(ask), _) => {
                let page = self.shard.node.events.page(&ask, &self.stop).await;
                Ok(VolumeControlReply::Events(page))
            }
            (VolumeControl::NodeStatus, _) => Ok(VolumeControlReply::Node(self.status().await)),
            (VolumeControl::Show { volume }, _) => self.show(volume).await,
            (_, Some(refusal)) => Err(refusal.clone()),
            (
                VolumeControl::Open {
                    volume,
                    session,
                    snapshot: None,
                    access,
                },
                None,
            ) => self.open(volume, session, access).await,
            (
                VolumeControl::Open {
                    volume,
                    snapshot: Some(name),
                    ..
                },
                None,
            ) => self.open_snapshot(volume, name).await,
            (
                VolumeControl::OpenChanges {
                    volume,
                    snapshot,
                    since,
                },
                None,
            ) => self.open_changes(volume, snapshot, since).await,
            (VolumeControl::Close { handle }, None) => self.close(handle).await,
            (VolumeControl::Sync { volume }, None) => {
                return self.ticketed(volume, self.served(volume), reply, VolumeHandle::sync);
            }
            (
                VolumeControl::TakeSnapshot {
                    volume,
                    id,
                    name,
                    metadata,
                },
                None,
            ) => {
                return self
                    .request(volume, Ask::Take { id, name, metadata }, reply)
                    .await;
            }
            (
                VolumeControl::ProposeSnapshot {
                    volume,
                    id,
                    name,
                    metadata,
                },
                None,
            ) => {
                return self
                    .request(volume, Ask::Propose { id, name, metadata }, reply)
                    .await;
            }
            (VolumeControl::ConfirmSnapshot { volume, id }, None) => {
                return self.request(volume, Ask::Confirm { id }, reply).await;
            }
            (VolumeControl::WithdrawSnapshot { volume, id }, None) => {
                return self.request(volume, Ask::Withdraw { id }, reply).await;
            }
            (VolumeControl::RemoveSnapshot { volume, name, id }, None) => {
                let ask = id.map_or(Ask::Remove { name }, |id| Ask::RemoveExactly { id });
                return self.request(volume, ask, reply).await;
            }
            (VolumeControl::RollBack { volume, to, id, keep }, None) => {
                return self.request(volume, Ask::RollBack { to, id, keep }, reply).await;
            }
            (VolumeControl::SetReadOnly { volume, read_only }, None) => {
                return self.request(volume, Ask::ReadOnly(read_only), reply).await;
            }
            (VolumeControl::SetHistory { volume, window_us }, None) => {
                return self.request(volume, Ask::History { window_us }, reply).await;
            }
            (
                VolumeControl::TakeMoment {
                    volume,
                    id,
                    name,
                    time_us,
                    metadata,
                },
                None,
            ) => {
                let ask = MomentAsk {
                    id,
                    name,
                    metadata,
                    time_us,
                };
                return self
                    .ask(volume, reply, |handle, ticket| handle.moment(ticket, ask))
                    .await;
            }
            (VolumeControl::SetDtl { volume, mode }, None) => match self.begun_here(volume) {
                Ok(handle) => handle.set_dtl(mode).await.map(|()| VolumeControlReply::Done),
                Err(refusal) => Err(refusal),
            },
            (VolumeControl::Move { volume, to }, None) => match self.begun_here(volume) {
                Ok(handle) => handle.move_to(to, None).await.map(|()| VolumeControlReply::Done),
                Err(refusal) => Err(refusal),
            },
            (VolumeControl::LeaveTwin { volume, node }, None) => match self.begun_here(volume) {
                Ok(handle) => handle.leave_twin(node).await.map(|()| VolumeControlReply::Done),
                Err(refusal) => Err(refusal),
            },
            (VolumeControl::SetAccess { volume, change }, None) => match self.begun_here(volume) {
                Ok(handle) => handle.set_access(change).await.map(|()| VolumeControlReply::Done),
                Err(refusal) => Err(refusal),
            },
            (VolumeControl::Flatten { volume }, None) => {
                return self.request(volume, Ask::Flatten, reply).await;
            }
            (VolumeControl::ListSnapshots { volume }, None) => self.snapshots(volume).await,
            (VolumeControl::Renamed { volume }, None) => match self.served(volume) {
                Ok(handle) => handle.renamed().await.map(|()| VolumeControlReply::Done),
                Err(refusal) => Err(refusal),
            },
            (VolumeControl::Delete { volume }, None) => {
                let deleted = deletion::asked(&self.shard.node, volume).await;
                deleted.map(|()| VolumeControlReply::Done)
            }
            (VolumeControl::TakeOver { volume, force }, None) => {
                self.take_over(volume, TakeOver::asked(force)).await
            }
            (VolumeControl::WriteBundle(job), None) => {
                let written = self.shard.node.background.write_bundle(*job, data).await;
                written.map(|length| VolumeControlReply::BundleWritten { length })
            }
        };
        let answer = match done {
            Ok(done) => VolumeReply::Control(done),
            Err(refusal) => VolumeReply::Refused(refusal),
        };
        reply.send(answer, Bytes::new());
    }

    /// The volume's actor, if it has one.
    fn served(&self, volume: VolumeId) -> Result<VolumeHandle, Refusal> {
        self.shard.node.volumes.get(volume).ok_or_else(|| {
            let text = format!("volume {volume} is not open on {}", self.shard.node.name);
            Refusal::reroute(RefusalCode::NotOwner, text)
        })
    }

    /// The volume's actor; begins one on this shard, where it has to be.
    fn served_or_begun(&self, volume: VolumeId, takeover: Option<TakeOver>) -> Result<VolumeHandle, Refusal> {
        let node = &self.shard.node;
        if let Some(handle) = node.volumes.get(volume) {
            return Ok(handle);
        }
        let shard = node.shard_of(volume);
        if shard != self.index {
            let text = format!("volume {volume} is served at endpoint {shard} of {}", node.name);
            return Err(Refusal::reroute(RefusalCode::NotOwner, text));
        }
        Ok(VolumeActor::begin(&self.shard, volume, takeover))
    }

    async fn open_snapshot(&self, volume: VolumeId, name: String) -> Result<VolumeControlReply, Refusal> {
        let handle = self.begun_here(volume)?;
        let opened = handle.open_snapshot(name).await?;
        let number = self.add(&Open {
            volume,
            handle,
            generation: opened.generation,
            on: OpenOn::Snapshot(opened.id),
            io: IoCount::default(),
            pass: Pass::NONE,
        })?;
        Ok(VolumeControlReply::Opened {
            handle: number,
            epoch: opened.epoch,
            size: opened.size,
            read_only: true,
            snapshot: Some(opened.id),
            access: None,
        })
    }

    async fn snapshots(&self, volume: VolumeId) -> Result<VolumeControlReply, Refusal> {
        let known = self.begun_here(volume)?.snapshots().await?;
        let status = |info: SnapshotInfo| SnapshotStatus {
            id: info.label.id,
            name: info.label.name,
            created_us: info.label.created_us,
            size: info.size,
            allocated: info.allocated,
            synced: info.synced,
            metadata: info.label.metadata,
        };
        Ok(VolumeControlReply::Snapshots {
            snapshots: known.into_iter().map(status).collect(),
        })
    }

    /// The volume's actor, begun if need be, if this is the shard that serves it.
    pub(super) fn begun_here(&self, volume: VolumeId) -> Result<VolumeHandle, Refusal> {
        let shard = self.shard.node.shard_of(volume);
        if shard == self.index {
            return self.served_or_begun(volume, None);
        }
        let text = format!(
            "volume {volume} is served at endpoint {shard} of {}",
            self.shard.node.name
        );
        Err(Refusal::reroute(RefusalCode::NotOwner, text))
    }

    /// A handle of the connection's for what was opened.
    pub(super) fn add(&self, open: &Open) -> Result<u32, Refusal> {
        let number = self.peers.borrow_mut().add(self.peer, open.clone());
        number.ok_or_else(|| {
            // Perhaps the connection is gone meanwhile, and the client comes back.
            open.client_gone();
            let text = "the connection has as many volumes open as it may have; close some";
            Refusal::reject(RefusalCode::Invalid, text)
        })
    }

    async fn open(
        &self,
        volume: VolumeId,
        session: SessionId,
        ask: Option<AccessAsk>,
    ) -> Result<VolumeControlReply, Refusal> {
        let handle = self.begun_here(volume)?;
        let opened = handle.open(session).await?;
        let client = self.peers.borrow().client(self.peer);
        let count = client.map(|client| self.shard.node.io.of(volume, client));
        let (pass, access) = match ask {
            None => (Pass::UNASKED, None),
            Some(ask) if !ask.take => (Pass::NONE, None),
            Some(ask) => match handle.take_access(&opened, ask).await {
                Ok(permit) => (permit.pass, Some(AccessReply::Granted(permit.generation))),
                Err(refusal) => (Pass::NONE, Some(AccessReply::Refused(refusal))),
            },
        };
        let number = self.add(&Open {
            volume,
            handle,
            generation: opened.generation,
            on: OpenOn::Session(opened.slot),
            io: count.unwrap_or_default(),
            pass,
        })?;
        Ok(VolumeControlReply::Opened {
            handle: number,
            epoch: opened.epoch,
            size: opened.size,
            read_only: opened.read_only,
            snapshot: None,
            access,
        })
    }

    async fn close(&self, handle: u32) -> Result<VolumeControlReply, Refusal> {
        let open = self.peers.borrow_mut().remove(self.peer, handle);
        let Some(open) = open else {
            let text = format!("handle {handle} is not open on this connection");
            return Err(Refusal::reject(RefusalCode::NotOpen, text));
        };
        open.close().await?;
        Ok(VolumeControlReply::Done)
    }

    async fn show(&self, volume: VolumeId) -> Result<VolumeControlReply, Refusal> {
        let handle = match self.served(volume) {
            Ok(handle) => handle,
            Err(refusal) if self.closed.is_some() => return Err(refusal),
            Err(_) => self.served_or_begun(volume, None)?,
        };
        let shown = handle.show().await?;
        Ok(VolumeControlReply::Volume(Box::new(shown)))
    }

    async fn request(&self, volume: VolumeId, ask: Ask, reply: Reply<VolumeReply>) {
        self.ask(volume, reply, |handle, ticket| handle.request(ticket, ask))
            .await;
    }

    /// Asks a volume, once it is served, for something that it answers by a ticket.
    async fn ask(
        &self,
        volume: VolumeId,
        reply: Reply<VolumeReply>,
        ask: impl FnOnce(&VolumeHandle, Ticket),
    ) {
        let handle = match self.begun_here(volume) {
            Ok(handle) => handle.served().await.map(|()| handle),
            Err(refusal) => Err(refusal),
        };
        self.ticketed(volume, handle, reply, ask);
    }

    /// Asks a volume for something that it answers by a ticket.
    fn ticketed(
        &self,
        volume: VolumeId,
        handle: Result<VolumeHandle, Refusal>,
        reply: Reply<VolumeReply>,
        ask: impl FnOnce(&VolumeHandle, Ticket),
    ) {
        let handle = match handle {
            Ok(handle) => handle,
            Err(refusal) => return reply.send(VolumeReply::Refused(refusal), Bytes::new()),
        };
        let waiting = Waiting {
            reply,
            volume,
            operation: OperationId::NONE,
            code: None,
            offset: 0,
            bytes: 0,
            since: Instant::now(),
        };
        match self.shard.replies.put(waiting) {
            Ok(ticket) => ask(&handle, ticket),
            Err(waiting) => {
                let refusal = Refusal::retry(RefusalCode::Unavailable, "too many operations are under way");
                waiting.reply.send(VolumeReply::Refused(refusal), Bytes::new());
            }
        }
    }

    async fn take_over(&self, volume: VolumeId, takeover: TakeOver) -> Result<VolumeControlReply, Refusal> {
        let handle = self.served_or_begun(volume, Some(takeover))?;
        handle.take_over(takeover).await?;
        Ok(VolumeControlReply::Done)
    }

    async fn status(&self) -> NodeStatus {
        let node = &self.shard.node;
        let volumes = node.volumes.all();
        let asked = join_all(volumes.iter().map(|(_, handle)| handle.show())).await;
        let volumes: Vec<VolumeStatus> = asked.into_iter().filter_map(Result::ok).collect();
        let usage = node.device.usage();
        NodeStatus {
            node: node.name.clone(),
            buffer_size: usage.size,
            buffer_unstored: usage.unstored,
            volumes,
            queues: self.queues(),
            erasing: node.background.erasures().all(),
        }
    }

    /// What waits where, against its limits.
    fn queues(&self) -> Vec<QueueStatus> {
        let (requests, bytes) = self.shard.replies.gauge();
        let (requests_max, bytes_max) = self.shard.replies.limits();
        let uploads = self.shard.node.background.usage();
        let operations = QueueStatus {
            name: format!("operations of shard {}", self.index),
            waiting: 0,
            requests: requests as u64,
            requests_max: requests_max as u64,
            bytes: ByteLen(bytes),
            bytes_max: ByteLen(bytes_max),
        };
        let to_pool = |(pool, usage): &(std::sync::Arc<str>, std::sync::Arc<PoolUsage>)| QueueStatus {
            name: format!("uploads to pool {pool}"),
            waiting: usage.waiting() as u64,
            requests: usage.requests() as u64,
            requests_max: uploads.requests_max as u64,
            bytes: ByteLen(usage.bytes()),
            bytes_max: ByteLen(uploads.bytes_max),
        };
        let mut queues = vec![operations];
        queues.extend(uploads.pools().iter().map(to_pool));
        queues
    }
}
