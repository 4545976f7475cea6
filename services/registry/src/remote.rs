//! The remote home: a registry that another process hosts, reached over the bus.
//!
//! Keeps: the connection, on a thread of its own: a bus socket belongs to one thread, a handle to any.
//! Order: the host's.
//! Crash: when the connection is lost, what only reads is asked again within its deadline; a commit is not, since it
//! may have happened: it ends as `Unknown`.
//! Knows no home: the host has one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_bus::{CallError, Caller, Endpoint, Hello, Network};
use sconce_runtime::simulated;
use sconce_schemas::wire::registry::{Change, LeaseId, RegistryReply, RegistryRequest, Revision};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::home::{Answer, Found, Home, Page};
use crate::{CommitError, Invalid, OpenError, RegistryError, Watched};

/// How long a request may take, a restart of the host included.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most requests at a time; one more waits. Long polls are most of them.
const REQUESTS_MAX: usize = 512;

type Outcome = Result<RegistryReply, CallError>;

/// A registry that is reached over the bus.
pub(crate) struct Remote {
    /// How errors name it.
    name: String,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

struct Job {
    request: RegistryRequest,
    deadline: Duration,
    answer: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

impl Remote {
    /// Starts the connection's thread; the connection itself is made, and made again, as it can be.
    pub(crate) fn start(network: &Network, endpoint: &Endpoint, hello: Hello) -> Result<Self, OpenError> {
        let (jobs, todo) = mpsc::channel(REQUESTS_MAX);
        let (network, at) = (network.clone(), endpoint.clone());
        if simulated::is_here() {
            tokio::task::spawn_local(async move { serve(&network, &at, hello, todo).await });
        } else {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(OpenError::Thread)?;
            let thread = std::thread::Builder::new().name("registry".to_owned());
            let run = move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serve(&network, &at, hello, todo));
            };
            thread.spawn(run).map_err(OpenError::Thread)?;
        }
        Ok(Self {
            name: format!("at {endpoint}"),
            jobs,
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
        })
    }

    /// Sends a request once.
    async fn call(&self, request: RegistryRequest, deadline: Duration) -> Outcome {
        // Neither closes while `self` is there.
        let Ok(room) = self.room.clone().acquire_owned().await else {
            return Err(CallError::Lost);
        };
        let (answer, answered) = oneshot::channel();
        let job = Job {
            request,
            deadline,
            answer,
            _room: room,
        };
        if self.jobs.send(job).await.is_err() {
            return Err(CallError::Lost);
        }
        answered.await.unwrap_or(Err(CallError::Lost))
    }

    /// Asks for what may be asked twice, until there is an answer or the time is over.
    async fn ask(
        &self,
        request: RegistryRequest,
        deadline: Duration,
    ) -> Result<RegistryReply, RegistryError> {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.call(request.clone(), left).await {
                Ok(RegistryReply::Refused { refusal }) | Err(CallError::Refused(refusal)) => {
                    return Err(self.refused(refusal, &request));
                }
                Ok(reply) => return Ok(reply),
                Err(CallError::Lost) if Instant::now() < until => {}
                Err(error) => return Err(self.unavailable(error)),
            }
        }
    }

    fn unavailable(&self, detail: impl std::fmt::Display) -> RegistryError {
        RegistryError::Unavailable {
            registry: self.name.clone(),
            detail: detail.to_string(),
        }
    }

    fn refused(&self, refusal: Refusal, request: &RegistryRequest) -> RegistryError {
        match (refusal.code, request) {
            (
                RefusalCode::NotFound,
                RegistryRequest::LeaseKeepAlive { lease } | RegistryRequest::LeaseRevoke { lease },
            ) => RegistryError::LeaseGone { lease: *lease },
            (RefusalCode::Invalid, _) => RegistryError::Invalid(Invalid { text: refusal.text }),
            _ => self.unavailable(refusal),
        }
    }

    fn commit_refused(&self, refusal: Refusal, lease: Option<LeaseId>) -> CommitError {
        match (refusal.remedy, refusal.code, lease) {
            (Remedy::Reject, RefusalCode::NotFound, Some(lease)) => CommitError::LeaseGone { lease },
            (Remedy::Reject, RefusalCode::Invalid, _) => CommitError::Invalid(Invalid { text: refusal.text }),
            // The bus answers "try again" for a request that the host dropped half way: nothing more is known.
            _ => self.unknown(refusal),
        }
    }

    fn unknown(&self, detail: impl std::fmt::Display) -> CommitError {
        CommitError::Unknown {
            registry: self.name.clone(),
            detail: detail.to_string(),
        }
    }

    fn unexpected(&self, reply: &RegistryReply) -> RegistryError {
        let text = format!("{reply:?}");
        let shown = &text[..text.floor_char_boundary(80)];
        self.unavailable(format!("an answer that does not belong to the request: {shown}"))
    }
}

/// The connection's thread: ends with the last handle.
async fn serve(network: &Network, endpoint: &Endpoint, hello: Hello, mut todo: mpsc::Receiver<Job>) {
    let caller: Caller<RegistryRequest, RegistryReply> = Caller::new(network, endpoint, hello);
    while let Some(mut job) = todo.recv().await {
        let caller = caller.clone();
        tokio::task::spawn_local(async move {
            let outcome = tokio::select! {
                biased;
                outcome = caller.call(&job.request, Bytes::new(), 0, job.deadline) => outcome,
                // Whoever asked went away.
                () = job.answer.closed() => return,
            };
            let _ = job.answer.send(outcome.map(|(reply, _)| reply));
        });
    }
}

impl Home for Remote {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Found> {
        Box::pin(async move {
            let key = key.to_owned();
            match self.ask(RegistryRequest::Get { key }, DEADLINE).await? {
                RegistryReply::Entry { entry, revision } => Ok(Found { entry, revision }),
                other => Err(self.unexpected(&other)),
            }
        })
    }

    fn page<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move {
            let request = RegistryRequest::List {
                prefix: prefix.to_owned(),
                after: after.map(str::to_owned),
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
            };
            match self.ask(request, DEADLINE).await? {
                RegistryReply::Entries {
                    entries,
                    more,
                    revision,
                } => Ok(Page {
                    entries,
                    more,
                    revision,
                }),
                other => Err(self.unexpected(&other)),
            }
        })
    }

    fn commit(&self, changes: Vec<Change>) -> Answer<'_, Revision, CommitError> {
        Box::pin(async move {
            let lease = changes.iter().find_map(|change| change.lease);
            match self.call(RegistryRequest::Commit { changes }, DEADLINE).await {
                Ok(RegistryReply::Committed { revision }) => Ok(revision),
                Ok(RegistryReply::Conflict { key, found }) => Err(CommitError::Conflict { key, found }),
                Ok(RegistryReply::Refused { refusal }) => Err(self.commit_refused(refusal, lease)),
                Ok(other) => Err(self.unknown(self.unexpected(&other))),
                // The connection was refused, so that nothing was sent; or the commit was too large for it.
                Err(CallError::Refused(refusal)) if refusal.remedy == Remedy::Reject => {
                    Err(self.unavailable(refusal).into())
                }
                Err(error) => Err(self.unknown(error)),
            }
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision, wait: Duration) -> Answer<'a, Watched> {
        Box::pin(async move {
            let request = RegistryRequest::Watch {
                prefix: prefix.to_owned(),
                after,
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            };
            match self.ask(request, wait + DEADLINE).await? {
                RegistryReply::Events {
                    events,
                    revision,
                    lost,
                } => Ok(Watched {
                    events,
                    revision,
                    lost,
                }),
                other => Err(self.unexpected(&other)),
            }
        })
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, LeaseId> {
        Box::pin(async move {
            let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
            // Granted twice, the first one ends by itself: no key is bound to it.
            match self.ask(RegistryRequest::LeaseGrant { ttl_ms }, DEADLINE).await? {
                RegistryReply::Lease { lease } => Ok(lease),
                other => Err(self.unexpected(&other)),
            }
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            match self
                .ask(RegistryRequest::LeaseKeepAlive { lease }, DEADLINE)
                .await?
            {
                RegistryReply::Done => Ok(()),
                other => Err(self.unexpected(&other)),
            }
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.ask(RegistryRequest::LeaseRevoke { lease }, DEADLINE).await? {
                RegistryReply::Done => Ok(()),
                other => Err(self.unexpected(&other)),
            }
        })
    }
}
