//! A shard's port on the bus: messages in, each volume's operations handed to its actor in one go.
//!
//! Keeps: which handles each client has open; its volumes hear when a client is gone.
//! Order: operations of one message on one volume reach it in their order, as one round.
//! Crash: handles are forgotten; clients are told to open again.
//! Knows no engine. Replies that are ready at the same time leave as one message: the bus sees to that.

mod changes;
mod control;
mod peers;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use sconce_bus::{RequestIn, Server, ServerEvent};
use sconce_runtime::Stop;
use sconce_schemas::VolumeId;
use sconce_schemas::geometry::{ByteLen, ClusterAddress};
use sconce_schemas::wire::volume::{IoCode, IoRequest, VolumeReply, VolumeRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_tracing::{Point, Status, Step, telemetry};

use crate::actor::{Operation, Shard, VolumeHandle, Waiting};
use peers::Peers;

pub(crate) use peers::OpenOn;

type Request = RequestIn<VolumeRequest, VolumeReply>;

/// Control requests that one shard works on at a time.
const CONTROLS_MAX: usize = 1024;

/// The port of one shard.
pub(crate) struct Port {
    shard: Rc<Shard>,
    /// Which shard it is.
    index: usize,
    peers: Rc<RefCell<Peers>>,
    stop: Stop,
    controls: Rc<()>,
    /// Scratch space: the rounds of one message.
    rounds: Vec<Gathered>,
}

/// The operations of one message on one volume.
struct Gathered {
    volume: VolumeId,
    handle: VolumeHandle,
    operations: Vec<Operation>,
}

impl Port {
    pub(crate) fn new(shard: Rc<Shard>, index: usize, stop: Stop) -> Self {
        Self {
            shard,
            index,
            peers: Rc::default(),
            stop,
            controls: Rc::new(()),
            rounds: Vec::new(),
        }
    }

    /// Serves until `over` comes true.
    pub(crate) async fn serve(
        mut self,
        mut server: Server<VolumeRequest, VolumeReply>,
        over: impl Future<Output = ()>,
    ) {
        tokio::pin!(over);
        loop {
            let event = tokio::select! {
                biased;
                () = &mut over => return,
                event = server.next() => event,
            };
            match event {
                ServerEvent::Requests(requests) => self.take(&server, requests),
                ServerEvent::PeerGone(peer) => {
                    // What it sent and what still waits must not be applied after what its successor writes.
                    for open in self.peers.borrow_mut().gone(peer) {
                        open.client_gone();
                    }
                }
            }
        }
    }

    fn take(&mut self, server: &Server<VolumeRequest, VolumeReply>, requests: Vec<Request>) {
        let closed = self.closed();
        // All of a message came at this time.
        let now = Instant::now();
        if let Some(first) = requests.first() {
            // A message is of one client.
            let client = || server.hello(first.peer).map(|hello| hello.node);
            self.peers.borrow_mut().here(first.peer, client);
        }
        for request in requests {
            match request.body {
                VolumeRequest::Io(io) => match &closed {
                    None => self.gather(request, io, now),
                    Some(refusal) => self.refuse(request, &io, now, refusal.clone()),
                },
                // In their order, beside no task: a batch that overtakes another would be lost.
                VolumeRequest::Twin(said) => {
                    let twins = &self.shard.twins;
                    twins.take(*said, request.data, closed.as_ref(), request.reply);
                }
                VolumeRequest::Control(ref control) => {
                    let control = control.clone();
                    self.control(request, control);
                }
            }
        }
        for gathered in self.rounds.drain(..) {
            if let Err((operations, refusal)) = gathered.handle.round(gathered.operations) {
                for operation in operations {
                    self.shard.replies.refuse(operation.ticket, refusal.clone());
                }
            }
        }
    }

    /// Why no operation is served now, if none is.
    fn closed(&self) -> Option<Refusal> {
        if self.stop.is_requested() {
            let text = "the volume-router is stopping";
            return Some(Refusal::retry(RefusalCode::Unavailable, text));
        }
        (!self.shard.node.gate.is_open()).then(crate::gate::no_lease)
    }

    fn gather(&mut self, request: Request, io: IoRequest, since: Instant) {
        let peers = self.peers.borrow();
        let Some(open) = peers.handle(request.peer, io.handle) else {
            let text = format!(
                "handle {} is not open on this connection: open the volume again",
                io.handle
            );
            let refusal = Refusal::reroute(RefusalCode::NotOpen, text);
            return self.refuse(request, &io, since, refusal);
        };
        if let Err(refusal) = check(&request, &io) {
            return self.refuse(request, &io, since, refusal);
        }
        let recorded = request.reply.is_recorded();
        let recorded = recorded.then(|| Box::new(request.reply.trace()));
        let waiting = Waiting {
            operation: request.reply.operation(),
            reply: request.reply,
            volume: open.volume,
            code: Some(io.code),
            offset: io.offset,
            bytes: request.data.len() as u64 + u64::from(request.reply_bytes),
            since,
        };
        let ticket = match self.shard.replies.put(waiting) {
            Ok(ticket) => ticket,
            Err(waiting) => {
                let refusal = Refusal::retry(RefusalCode::Unavailable, "too many operations are under way");
                self.shard
                    .replies
                    .ended(io.code, since, 0, Status::from(&refusal));
                return waiting.reply.send(VolumeReply::Refused(refusal), Bytes::new());
            }
        };
        if let OpenOn::Session(_) = open.on {
            open.io.came(io.code, io.length);
        }
        Point::VolumeReceive.record(|| Step {
            length: io.length,
            ..self.shard.replies.step(ticket)
        });
        let operation = Operation {
            ticket,
            generation: open.generation,
            on: open.on,
            pass: open.pass,
            request: io,
            data: request.data,
            recorded,
        };
        match self.rounds.iter_mut().find(|known| known.volume == open.volume) {
            Some(gathered) => gathered.operations.push(operation),
            None => self.rounds.push(Gathered {
                volume: open.volume,
                handle: open.handle.clone(),
                operations: vec![operation],
            }),
        }
    }

    /// Refuses an operation that was not taken in.
    fn refuse(&self, request: Request, io: &IoRequest, since: Instant, refusal: Refusal) {
        self.shard
            .replies
            .ended(io.code, since, 0, Status::from(&refusal));
        refuse(request, refusal);
    }

    fn control(&self, request: Request, control: sconce_schemas::wire::volume::VolumeControl) {
        if Rc::strong_count(&self.controls) > CONTROLS_MAX {
            let text = "too many control requests are under way";
            return refuse(request, Refusal::retry(RefusalCode::Unavailable, text));
        }
        let closed = self.stop.is_requested().then(|| self.closed()).flatten();
        let work = control::Control {
            shard: Rc::clone(&self.shard),
            index: self.index,
            peers: Rc::clone(&self.peers),
            peer: request.peer,
            closed,
            stop: self.stop.clone(),
            _counted: Rc::clone(&self.controls),
        };
        let trace = request.reply.trace();
        actix_rt::spawn(telemetry::scope(
            trace,
            work.run(control, request.data, request.reply),
        ));
    }
}

fn refuse(request: Request, refusal: Refusal) {
    request.reply.send(VolumeReply::Refused(refusal), Bytes::new());
}

/// What a client may send wrong in an operation, apart from what only the volume knows.
fn check(request: &Request, io: &IoRequest) -> Result<(), Refusal> {
    let sent = request.data.len() as u64;
    let invalid = |text| Err(Refusal::reject(RefusalCode::Invalid, text));
    match io.code {
        IoCode::Write if sent != io.length => invalid(format!(
            "a write of {} bytes came with {sent} bytes of data",
            io.length
        )),
        IoCode::Read => {
            let first = ClusterAddress::holding(io.offset);
            let end = ByteLen(io.offset.saturating_add(io.length)).clusters_ceil();
            let needs = ByteLen((end.0 - first.0).saturating_mul(sconce_schemas::CLUSTER_BYTES));
            if needs.0 > u64::from(request.reply_bytes) {
                return invalid(format!(
                    "a read of {} bytes at {} needs {} bytes of room for its answer, the client has {}",
                    io.length, io.offset, needs.0, request.reply_bytes
                ));
            }
            Ok(())
        }
        code if code != IoCode::Write && sent != 0 => invalid(format!(
            "{sent} bytes of data came with an operation that takes none"
        )),
        _ => Ok(()),
    }
}
