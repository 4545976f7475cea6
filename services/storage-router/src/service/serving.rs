//! The loop that takes requests off the bus, as many as there is room for, and answers each when it is done.
//!
//! Keeps: how many requests, and of how many bytes, are under way.
//! Order: requests begin in the order in which they came and end in any.
//! Crash: unanswered requests are sent again by their clients.
//! Knows no request's meaning.

use std::rc::Rc;
use std::sync::Arc;

use sconce_bus::{RequestIn, Server, ServerEvent};
use sconce_runtime::Stop;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::handler::Handler;
use crate::settings::LimitSettings;

type Request = RequestIn<StorageRequest, StorageReply>;

/// Room for requests: while there is none the socket is not read, and clients run out of credit.
struct Room {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    kib_max: u32,
}

/// Serves until the stop is requested, then answers what is under way and waits for the repairs.
pub(super) async fn serve(
    mut server: Server<StorageRequest, StorageReply>,
    handler: Rc<Handler>,
    limits: LimitSettings,
    stop: Stop,
) {
    let room = Room::new(&limits);
    let mut under_way = JoinSet::new();
    loop {
        let event = tokio::select! {
            biased;
            () = stop.requested() => break,
            event = server.next() => event,
        };
        let ServerEvent::Requests(requests) = event else {
            continue;
        };
        for request in requests {
            let permit = tokio::select! {
                biased;
                // What has not begun is dropped, and with that answered: try again.
                () = stop.requested() => break,
                permit = room.enter(&request) => permit,
            };
            let handler = Rc::clone(&handler);
            under_way.spawn_local(async move {
                let (body, data) = handler
                    .answer(request.body, request.data, request.reply_bytes)
                    .await;
                request.reply.send(body, data);
                drop(permit);
            });
        }
        while let Some(ended) = under_way.try_join_next() {
            tell(ended);
        }
    }
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

impl Room {
    fn new(limits: &LimitSettings) -> Self {
        let kib_max = u32::try_from(limits.bytes.bytes().div_ceil(1024)).unwrap_or(u32::MAX);
        Self {
            requests: Arc::new(Semaphore::new(limits.requests)),
            kib: Arc::new(Semaphore::new(kib_max as usize)),
            kib_max,
        }
    }

    async fn enter(&self, request: &Request) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let bytes = request.data.len() as u64 + u64::from(request.reply_bytes);
        let kib = u32::try_from(bytes.div_ceil(1024)).map_or(self.kib_max, |kib| kib.min(self.kib_max));
        // The semaphores are never closed.
        let slot = Arc::clone(&self.requests).acquire_owned().await.ok()?;
        let space = Arc::clone(&self.kib).acquire_many_owned(kib).await.ok()?;
        Some((slot, space))
    }
}
