//! The server side of the bus.
//!
//! Keeps: who is connected, what each client has outstanding, and the replies that wait to leave.
//! Order: replies leave as they become ready; those that are ready when the socket is free leave as one message for
//! each client.
//! Crash: nothing; clients notice, connect again and send again what was not answered.
//! Knows no request's meaning: it hands out bodies and takes bodies back.

mod peer;
mod reply;

use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::Throttle;
use sconce_schemas::NodeName;
use sconce_schemas::wire::envelope::Header;
use sconce_schemas::wire::{Body, Hello, Protocol, Refusal, RefusalCode, Role, Trace, Version};
use sconce_tracing::{OperationId, Point, Step};

use crate::endpoint::Endpoint;
use crate::limits::Limits;
use crate::link::{Arrival, Frames, ListenReceiver, ListenSender, PeerKey};
use crate::network::{BindError, Network};
use crate::refuse::Refuse;
use crate::tolerant::Tolerant;
use peer::{Admitted, Shared};
pub use reply::Reply;

/// Lines about clients that are dropped or refused: one for each cause in this time.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a server tells its clients of itself.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub node: NodeName,
    /// What it is.
    pub role: Role,
    /// The bodies that it understands.
    pub protocol: Protocol,
    /// What each client may have outstanding; [`Limits::of`] the protocol fits.
    pub limits: Limits,
}

/// A client's connection, for as long as it lasts; a client that connects again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(u64);

/// What happened at a server.
pub enum ServerEvent<Q, R: Body + Refuse> {
    /// Requests came, as one message of one client.
    Requests(Vec<RequestIn<Q, R>>),
    /// A client is gone; what its requests are answered from now on is thrown away.
    PeerGone(PeerId),
}

/// A request that came in.
pub struct RequestIn<Q, R: Body + Refuse> {
    /// Who sent it.
    pub peer: PeerId,
    /// What it belongs to in traces. What is done for it belongs to [`Reply::trace`].
    pub trace: Trace,
    /// Data that the client expects back, in bytes, and for which it took credit: refuse a request whose answer would
    /// be larger, before making it.
    pub reply_bytes: u32,
    /// What is asked.
    pub body: Q,
    /// The data that came with it: a slice of the message, which stays in memory while any of its slices does.
    pub data: Bytes,
    /// Answers it.
    pub reply: Reply<R>,
}

/// A listening socket; stops listening when it is dropped.
pub struct Server<Q: Body, R: Body + Refuse> {
    shared: Rc<Shared>,
    receiver: ListenReceiver,
    sender: ListenSender,
    endpoint: Endpoint,
    pump: tokio::task::JoinHandle<()>,
    body: PhantomData<fn(Q) -> R>,
}

/// Listens at `endpoint`.
///
/// # Errors
/// The endpoint is taken, or its directory is not private, or this network does not carry it.
pub async fn bind<Q: Body, R: Body + Refuse>(
    network: &Network,
    endpoint: &Endpoint,
    identity: Identity,
) -> Result<Server<Q, R>, BindError> {
    let (sender, receiver) = network.listen(endpoint, &identity).await?;
    let endpoint = endpoint.clone().with_port(receiver.port());
    let shared = Rc::new(Shared::new(identity));
    let pump = tokio::task::spawn_local(pump(shared.clone(), sender.clone()));
    Ok(Server {
        shared,
        receiver,
        sender,
        endpoint,
        pump,
        body: PhantomData,
    })
}

/// Sends what waits to leave, each client's replies as one message.
async fn pump(shared: Rc<Shared>, mut sender: ListenSender) {
    loop {
        while let Some((peer, frames)) = shared.next_message() {
            // Whether the peer is gone is for the receiving half to say.
            sender.send(&peer, frames).await;
        }
        shared.bell.rung().await;
    }
}

impl<Q: Body, R: Body + Refuse> Server<Q, R> {
    /// The next event. Dropping the future loses none.
    pub async fn next(&mut self) -> ServerEvent<Q, R> {
        loop {
            if let Some(peer) = self.shared.take_gone() {
                return ServerEvent::PeerGone(peer);
            }
            let (key, arrival) = self.receiver.recv().await;
            let event = match arrival {
                Arrival::Message { frames, again } => self.take(&key, frames, again).await,
                Arrival::Malformed { parts } => {
                    let found = format!("a message has {parts} parts; one or two are right");
                    self.dismiss(&key, Refusal::reject(RefusalCode::Invalid, found))
                        .await
                }
                Arrival::Gone => self.shared.remove(&key).map(ServerEvent::PeerGone),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Where clients reach this server: as it was bound, with the port that a `tls://` endpoint was given for 0.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What a client said of itself; `None` once it is gone.
    #[must_use]
    pub fn hello(&self, peer: PeerId) -> Option<Hello> {
        self.shared.hello(peer)
    }

    /// How many requests were dropped unanswered by this service (and answered `Retry` by the bus) since it started.
    #[must_use]
    pub fn dropped_requests(&self) -> u64 {
        self.shared.dropped.get()
    }

    async fn take(&mut self, key: &PeerKey, frames: Frames, again: bool) -> Option<ServerEvent<Q, R>> {
        if let Some(refusal) = self.shared.oversized(&frames) {
            return self.dismiss(key, refusal).await;
        }
        let header = match Header::<Tolerant<Q>>::decode(&frames.header, frames.data.len()) {
            Ok(header) => header,
            Err(error) => {
                let refusal = Refusal::reject(RefusalCode::Invalid, error.to_string());
                return self.dismiss(key, refusal).await;
            }
        };
        let taken = match header {
            Header::Hello(hello) => return self.greet(key, hello).await,
            Header::Foreign(foreign) => {
                let refusal = self.shared.refuse_foreign(&foreign);
                return self.turn_away(key, &foreign.node, refusal).await;
            }
            Header::Requests { mark, requests } => self.shared.admit(key, mark, requests, again).map(Some),
            Header::Ping(mark) => match self.shared.pong(key, mark) {
                Ok(mark) => {
                    self.send_header(key, &Header::Pong(mark)).await;
                    Ok(None)
                }
                Err(refusal) => Err(refusal),
            },
            Header::Pong(_) => Ok(None),
            Header::Unknown(kind) => self.shared.pass_over(key, kind).map(|()| None),
            Header::Goodbye(_) => {
                self.sender.drop_peer(key);
                return self.shared.remove(key).map(ServerEvent::PeerGone);
            }
            Header::Welcome(_) | Header::Replies { .. } => Err(Refusal::reject(
                RefusalCode::Invalid,
                "a client sent what only a server sends",
            )),
        };
        match taken {
            Ok(Some(admitted)) => self.hand_out(admitted, frames.data),
            Ok(None) => None,
            Err(refusal) => self.dismiss(key, refusal).await,
        }
    }

    fn hand_out(&self, admitted: Admitted<Q>, mut data: Bytes) -> Option<ServerEvent<Q, R>> {
        let mut requests = Vec::with_capacity(admitted.requests.len());
        for (index, request) in admitted.requests.into_iter().enumerate() {
            let data_len = request.data_len as usize;
            let data = if data_len == 0 {
                Bytes::new()
            } else {
                data.split_to(data_len)
            };
            if index >= admitted.taken {
                self.shared
                    .refuse_for_node::<R>(admitted.slot, admitted.peer, request.id);
                continue;
            }
            Point::BusRequestIn.record(|| Step {
                operation: OperationId(request.trace.operation),
                length: data.len() as u64,
                ..Step::default()
            });
            let reply = Reply::new(&self.shared, admitted.slot, admitted.peer, &request);
            match request.body.body {
                Ok(body) => requests.push(RequestIn {
                    peer: admitted.peer,
                    trace: request.trace,
                    reply_bytes: request.reply_len,
                    body,
                    data,
                    reply,
                }),
                Err(error) => {
                    let refusal = Refusal::reject(
                        RefusalCode::Unsupported,
                        format!(
                            "this service (protocol {}) cannot read the request: {error}",
                            Version::CURRENT
                        ),
                    );
                    reply.send(R::refused(refusal), Bytes::new());
                }
            }
        }
        (!requests.is_empty()).then_some(ServerEvent::Requests(requests))
    }

    async fn greet(&mut self, key: &PeerKey, hello: Hello) -> Option<ServerEvent<Q, R>> {
        let node = hello.node.clone();
        if self.shared.is_full() {
            self.sweep().await;
        }
        match self.shared.greet(key, hello) {
            Ok(welcome) => {
                tracing::debug!(client = %node, "connected");
                self.send_header(key, &Header::Welcome(welcome)).await;
                None
            }
            Err(refusal) => self.turn_away(key, &node, refusal).await,
        }
    }

    /// Refuses a greeting.
    async fn turn_away(
        &mut self,
        key: &PeerKey,
        client: &NodeName,
        refusal: Refusal,
    ) -> Option<ServerEvent<Q, R>> {
        // That of another version does not pass by itself.
        if refusal.code == RefusalCode::Unsupported {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::warn!(%client, reason = %refusal, unsaid, "refused a client");
            }
        } else {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::info!(%client, reason = %refusal, unsaid, "refused a client");
            }
        }
        self.dismiss(key, refusal).await
    }

    /// Finds clients whose end went by unnoticed: ZeroMQ tells of at most 1024 at a time.
    async fn sweep(&mut self) {
        for key in self.shared.keys() {
            let ping = encode(&Header::<Tolerant<R>>::Ping(0));
            if !self.sender.send(&key, ping).await {
                self.shared.mark_gone(&key);
            }
        }
    }

    /// Ends a connection, and says why.
    async fn dismiss(&mut self, key: &PeerKey, refusal: Refusal) -> Option<ServerEvent<Q, R>> {
        let peer = self.shared.remove(key);
        if peer.is_some() {
            static TOLD: Throttle = Throttle::every(TOLD_EVERY);
            if let Some(unsaid) = TOLD.pass() {
                tracing::info!(reason = %refusal, unsaid, "dropped a client that broke the protocol");
            }
        }
        self.send_header(key, &Header::Goodbye(refusal)).await;
        self.sender.drop_peer(key);
        peer.map(ServerEvent::PeerGone)
    }

    async fn send_header(&mut self, key: &PeerKey, header: &Header<Tolerant<R>>) {
        self.sender.send(key, encode(header)).await;
    }
}

impl<Q: Body, R: Body + Refuse> Drop for Server<Q, R> {
    fn drop(&mut self) {
        self.pump.abort();
        self.shared.close();
    }
}

fn encode<B: Body>(header: &Header<B>) -> Frames {
    let mut out = Vec::new();
    header.encode(&mut out);
    Frames {
        header: Bytes::from(out),
        data: Bytes::new(),
    }
}
