//! Hosting: the process that has the embedded registry serves it to others over the bus.
//!
//! Keeps: the requests that are under way, by client.
//! Order: the registry's; requests of one client are answered as they are done.
//! Crash: clients ask again; a commit that was acknowledged is in the registry.
//! Knows no home: it serves any registry.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{PeerId, Refusal, RefusalCode, Reply, RequestIn, Server, ServerEvent};
use sconce_runtime::Stop;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::task::JoinSet;

use crate::{CommitError, Registry, RegistryError};

/// Most requests of one client at a time; one more is told to come back. Waiting watches are most of them.
const REQUESTS_MAX: usize = 1024;
/// How long an orderly stop waits for commits that are under way.
const STOP_WAIT: Duration = Duration::from_secs(2);

type Registered = Server<RegistryRequest, RegistryReply>;

/// Serves `registry` to the clients of `server` until the stop is requested. Runs on the thread of `server`.
pub async fn host(registry: Registry, mut server: Registered, stop: Stop) {
    let mut clients: HashMap<PeerId, Client> = HashMap::new();
    loop {
        let event = tokio::select! {
            biased;
            () = stop.requested() => break,
            event = server.next() => event,
        };
        match event {
            ServerEvent::Requests(requests) => {
                for request in requests {
                    clients.entry(request.peer).or_default().take(&registry, request);
                }
            }
            ServerEvent::PeerGone(peer) => {
                clients.remove(&peer);
            }
        }
    }
    let finished = async {
        for client in clients.values_mut() {
            client.watches.shutdown().await;
            while client.others.join_next().await.is_some() {}
        }
    };
    if tokio::time::timeout(STOP_WAIT, finished).await.is_err() {
        tracing::warn!(
            wait_ms = STOP_WAIT.as_millis(),
            "registry requests were still under way at the stop"
        );
    }
}

/// What one client has under way. Dropped with it, which ends its waiting watches; a commit that has begun goes on.
#[derive(Default)]
struct Client {
    watches: JoinSet<()>,
    others: JoinSet<()>,
}

impl Client {
    fn take(&mut self, registry: &Registry, request: RequestIn<RegistryRequest, RegistryReply>) {
        while self.watches.try_join_next().is_some() {}
        while self.others.try_join_next().is_some() {}
        if self.watches.len() + self.others.len() >= REQUESTS_MAX {
            let text =
                format!("{REQUESTS_MAX} registry requests of this client are under way; wait for some");
            let refusal = Refusal::retry(RefusalCode::Unavailable, text);
            return request
                .reply
                .send(RegistryReply::Refused { refusal }, Bytes::new());
        }
        let registry = registry.clone();
        let tasks = match request.body {
            RegistryRequest::Watch { .. } => &mut self.watches,
            _ => &mut self.others,
        };
        tasks.spawn_local(answer(registry, request.body, request.reply));
    }
}

async fn answer(registry: Registry, request: RegistryRequest, reply: Reply<RegistryReply>) {
    let answered = match ask(&registry, request).await {
        Ok(answered) => answered,
        Err(refusal) => RegistryReply::Refused { refusal },
    };
    reply.send(answered, Bytes::new());
}

async fn ask(registry: &Registry, request: RegistryRequest) -> Result<RegistryReply, Refusal> {
    Ok(match request {
        RegistryRequest::Get { key } => {
            let found = registry.find(&key).await.map_err(refusal)?;
            RegistryReply::Entry {
                entry: found.entry,
                revision: found.revision,
            }
        }
        RegistryRequest::List { prefix, after, limit } => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let page = registry
                .page(&prefix, after.as_deref(), limit)
                .await
                .map_err(refusal)?;
            RegistryReply::Entries {
                entries: page.entries,
                more: page.more,
                revision: page.revision,
            }
        }
        RegistryRequest::Commit { changes } => match registry.commit(changes).await {
            Ok(revision) => RegistryReply::Committed { revision },
            Err(CommitError::Conflict { key, found }) => RegistryReply::Conflict { key, found },
            Err(error) => return Err(commit_refusal(&error)),
        },
        RegistryRequest::Watch {
            prefix,
            after,
            wait_ms,
        } => {
            let wait = Duration::from_millis(u64::from(wait_ms)).min(crate::limits::WAIT_MAX);
            let watched = registry.watch(&prefix, after, wait).await.map_err(refusal)?;
            RegistryReply::Events {
                events: watched.events,
                revision: watched.revision,
                lost: watched.lost,
            }
        }
        RegistryRequest::LeaseGrant { ttl_ms } => {
            let ttl = Duration::from_millis(u64::from(ttl_ms));
            let lease = registry.lease(ttl).await.map_err(refusal)?.id();
            RegistryReply::Lease { lease }
        }
        RegistryRequest::LeaseKeepAlive { lease } => {
            registry.home().keep_alive(lease).await.map_err(refusal)?;
            RegistryReply::Done
        }
        RegistryRequest::LeaseRevoke { lease } => {
            registry.home().revoke(lease).await.map_err(refusal)?;
            RegistryReply::Done
        }
    })
}

fn refusal(error: RegistryError) -> Refusal {
    let text = error.to_string();
    match error {
        RegistryError::Invalid(invalid) => Refusal::reject(RefusalCode::Invalid, invalid.text),
        RegistryError::LeaseGone { .. } => Refusal::reject(RefusalCode::NotFound, text),
        RegistryError::Unavailable { .. } => Refusal::retry(RefusalCode::Unavailable, text),
        RegistryError::Damaged { .. } => Refusal::damaged(text),
    }
}

fn commit_refusal(error: &CommitError) -> Refusal {
    let text = error.to_string();
    match error {
        CommitError::Invalid(invalid) => Refusal::reject(RefusalCode::Invalid, invalid.text.as_str()),
        CommitError::LeaseGone { .. } => Refusal::reject(RefusalCode::NotFound, text),
        CommitError::Conflict { .. } => Refusal::reject(RefusalCode::Conflict, text),
        CommitError::Unavailable { .. } | CommitError::Unknown { .. } => {
            Refusal::retry(RefusalCode::Unavailable, text)
        }
    }
}
