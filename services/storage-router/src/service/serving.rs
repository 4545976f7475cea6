//! The loop that takes requests off the bus, begins as many as there is room for, and answers each when it is done.
//!
//! Keeps: how many requests, and of how many bytes, are under way; those that wait for room.
//! Order: requests begin in the order in which they came and end in any. The bus is read all the time: greetings and
//! keep-alives are answered whatever the back ends do.
//! Crash: unanswered requests are sent again by their clients.
//! Knows no request's meaning.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use sconce_bus::{PeerId, RequestIn, Server, ServerEvent};
use sconce_runtime::Stop;
use sconce_schemas::wire::storage::{StorageControl, StorageReply, StorageRequest};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_tracing::telemetry;
use tokio::task::JoinSet;

use super::handler::Handler;
use crate::room::{Place, Room};
use crate::settings::LimitSettings;

type Request = RequestIn<StorageRequest, StorageReply>;

/// Most requests that wait for room: as many as one client may have outstanding.
const WAITING_MAX: usize = sconce_schemas::wire::envelope::OUTSTANDING_MAX;

/// Serves until the stop is requested, then answers what is under way and waits for the repairs.
pub(super) async fn serve(
    mut server: Server<StorageRequest, StorageReply>,
    handler: Rc<Handler>,
    limits: LimitSettings,
    stop: Stop,
) {
    let room = Room::new(limits.requests, limits.bytes.bytes());
    let mut waiting = Waiting::new(limits.bytes.bytes());
    let mut under_way = JoinSet::new();
    let mut begin = |request: Request, place: Option<Place>| {
        let handler = Rc::clone(&handler);
        under_way.spawn_local(async move {
            let answer = handler.answer(request.body, request.data, request.reply_bytes);
            let (body, data) = telemetry::scope(request.reply.trace(), answer).await;
            request.reply.send(body, data);
            drop(place);
        });
        while let Some(ended) = under_way.try_join_next() {
            tell(ended);
        }
    };
    loop {
        let event = tokio::select! {
            biased;
            // What has not begun is dropped, and with that answered: try again.
            () = stop.requested() => break,
            place = room.enter(waiting.next_bytes()), if !waiting.is_empty() => {
                if let Some(request) = waiting.pop() {
                    begin(request, Some(place));
                }
                continue;
            }
            event = server.next() => event,
        };
        match event {
            ServerEvent::Requests(requests) => {
                for request in requests {
                    // Who waits for events asks no back end: it takes no room, and holds up nobody.
                    if is_about_events(&request) {
                        begin(request, None);
                        continue;
                    }
                    match waiting
                        .is_empty()
                        .then(|| room.try_enter(bytes_of(&request)))
                        .flatten()
                    {
                        Some(place) => begin(request, Some(place)),
                        None => waiting.push(request),
                    }
                }
            }
            // It will ask again.
            ServerEvent::PeerGone(peer) => waiting.forget(peer),
        }
    }
    drop(waiting);
    while let Some(ended) = under_way.join_next().await {
        tell(ended);
    }
    handler.pools.settled().await;
}

/// A request whose handling panicked was answered by the bus: try again.
fn tell(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a request's handling ended with a bug");
    }
}

fn is_about_events(request: &Request) -> bool {
    matches!(request.body, StorageRequest::Control(StorageControl::Events(_)))
}

/// What a request takes of the room: what it brought and what it asks for.
fn bytes_of(request: &Request) -> u64 {
    request.data.len() as u64 + u64::from(request.reply_bytes)
}

/// Requests that wait for room.
struct Waiting {
    requests: VecDeque<Request>,
    /// Data that they brought.
    bytes: u64,
    bytes_max: u64,
}

impl Waiting {
    fn new(bytes_max: u64) -> Self {
        Self {
            requests: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// What the first one takes of the room.
    fn next_bytes(&self) -> u64 {
        self.requests.front().map_or(0, bytes_of)
    }

    fn push(&mut self, request: Request) {
        let bytes = self.bytes + request.data.len() as u64;
        if self.requests.len() >= WAITING_MAX || bytes > self.bytes_max {
            let text = "this storage-router has more requests than it can keep";
            let refusal = Refusal::retry(RefusalCode::Unavailable, text);
            request.reply.send(StorageReply::Refused(refusal), Bytes::new());
            return;
        }
        self.bytes = bytes;
        self.requests.push_back(request);
    }

    fn pop(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.bytes -= request.data.len() as u64;
        Some(request)
    }

    fn forget(&mut self, peer: PeerId) {
        self.requests.retain(|request| request.peer != peer);
        self.bytes = self
            .requests
            .iter()
            .map(|request| request.data.len() as u64)
            .sum();
    }
}

#[cfg(test)]
mod tests;
