//! The back ends, through the storage-routers that the registry knows.
//!
//! Keeps: one connection to each storage-router endpoint in use.
//! Order: none; objects are immutable, so a request may be sent again to another storage-router.
//! Crash: a request whose answer was lost may have been carried out.
//! Knows no volumes' state.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sconce_bus::{CallError, Caller, Endpoint, Hello, Network, Role};
use sconce_registry::Registry;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::storage::{
    GET_BYTES_MAX, OBJECT_BYTES_MAX, StorageControl, StorageControlReply, StorageReply, StorageRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{ObjectName, VolumeId};
use tokio::time::Instant;

use crate::node::running;

/// How long one request may take besides its data: long enough for a storage-router that starts, short enough that
/// one that is gone is noticed and told.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a back end takes or gives at least in a second; one that is slower is asked again.
const BYTES_A_SECOND_MIN: u64 = 2 << 20;
/// How long a list of storage-routers is believed.
const NODES_AGE_MAX: Duration = Duration::from_secs(10);
/// Names in one page of a listing.
const LIST_PAGE: u32 = 1000;

/// Why a request to the back ends has no good answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// No storage-router can do it now: try again later.
    #[error("{0}")]
    Unavailable(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// It will not be done, however often it is asked for.
    #[error("{0}")]
    Refused(Refusal),
}

impl StoreError {
    /// What to answer to somebody who waits for it.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            StoreError::Unavailable(text) => Refusal::retry(RefusalCode::Unavailable, text.clone()),
            StoreError::NotFound(text) => Refusal::damaged(text.clone()),
            StoreError::Refused(refusal) => refusal.clone(),
        }
    }
}

type StorageCaller = Caller<StorageRequest, StorageReply>;

/// A client of the storage-routers; lives on one thread.
pub(crate) struct Store {
    network: Network,
    registry: Registry,
    hello: Hello,
    endpoints: RefCell<Vec<Endpoint>>,
    listed: Cell<Option<Instant>>,
    callers: RefCell<HashMap<Endpoint, StorageCaller>>,
    turn: Cell<usize>,
    /// Pools whose last put was refused for want of space.
    full: RefCell<BTreeSet<String>>,
}

impl Store {
    pub(crate) fn new(network: Network, registry: Registry, hello: Hello) -> Self {
        Self {
            network,
            registry,
            hello,
            endpoints: RefCell::default(),
            listed: Cell::new(None),
            callers: RefCell::default(),
            turn: Cell::new(0),
            full: RefCell::default(),
        }
    }

    /// Stores an object. The same bytes again succeed.
    pub(crate) async fn put(&self, pool: &str, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        let request = StorageRequest::Put {
            pool: pool.to_owned(),
            name,
        };
        match self.call(&request, bytes, 0).await? {
            (StorageReply::Done, _) => {
                self.full.borrow_mut().remove(pool);
                Ok(())
            }
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// Whether the pool's last put was refused for want of space.
    pub(crate) fn is_full(&self, pool: &str) -> bool {
        self.full.borrow().contains(pool)
    }

    /// A part of an object as the back ends have it; fewer bytes where it ends before. `length` is at most [`GET_BYTES_MAX`].
    pub(crate) async fn get(
        &self,
        pool: &str,
        name: ObjectName,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, StoreError> {
        self.part(pool, name, offset, length, false).await
    }

    /// As [`Store::get`], for what a guest waits for: a storage-router's cache may have it.
    pub(crate) async fn get_cached(
        &self,
        pool: &str,
        name: ObjectName,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, StoreError> {
        self.part(pool, name, offset, length, true).await
    }

    async fn part(
        &self,
        pool: &str,
        name: ObjectName,
        offset: u64,
        length: u32,
        cached: bool,
    ) -> Result<Bytes, StoreError> {
        let request = StorageRequest::Get {
            pool: pool.to_owned(),
            name,
            offset,
            length,
            cached,
        };
        match self.call(&request, Bytes::new(), length).await? {
            (StorageReply::Data, bytes) => Ok(bytes),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// A whole object, or its first `length` bytes; `None` where there is no such object.
    pub(crate) async fn get_whole(
        &self,
        pool: &str,
        name: ObjectName,
        length: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let length = length.min(OBJECT_BYTES_MAX);
        let mut whole = BytesMut::new();
        while (whole.len() as u64) < length {
            let left = length - whole.len() as u64;
            let part = u32::try_from(left).map_or(GET_BYTES_MAX, |left| left.min(GET_BYTES_MAX));
            match self.get(pool, name, whole.len() as u64, part).await {
                Ok(bytes) => {
                    whole.extend_from_slice(&bytes);
                    if bytes.len() < part as usize {
                        break;
                    }
                }
                Err(StoreError::NotFound(_)) if whole.is_empty() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(whole.freeze()))
    }

    /// Removes an object; one that is not there is as good.
    pub(crate) async fn delete(&self, pool: &str, name: ObjectName) -> Result<(), StoreError> {
        let request = StorageRequest::Control(StorageControl::Delete {
            pool: pool.to_owned(),
            name,
        });
        match self.call(&request, Bytes::new(), 0).await? {
            (StorageReply::Done, _) => Ok(()),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// A page of a volume's objects of one kind, those after `after`; an empty one is the last.
    pub(crate) async fn list(
        &self,
        pool: &str,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
    ) -> Result<Vec<ObjectName>, StoreError> {
        self.list_of(pool, volume, kind, after, false).await
    }

    /// The first page of a volume's objects of one kind, refused unless every back end of the pool tells: an empty one
    /// says that nothing is left.
    pub(crate) async fn list_everywhere(
        &self,
        pool: &str,
        volume: VolumeId,
        kind: ObjectKind,
    ) -> Result<Vec<ObjectName>, StoreError> {
        self.list_of(pool, volume, kind, None, true).await
    }

    async fn list_of(
        &self,
        pool: &str,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        everywhere: bool,
    ) -> Result<Vec<ObjectName>, StoreError> {
        let request = StorageRequest::Control(StorageControl::List {
            pool: pool.to_owned(),
            volume,
            kind,
            after,
            limit: LIST_PAGE,
            everywhere,
        });
        match self.call(&request, Bytes::new(), 0).await? {
            (StorageReply::Control(StorageControlReply::Names { names }), _) => Ok(names),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// Asks one storage-router after the other until one answers.
    async fn call(
        &self,
        request: &StorageRequest,
        data: Bytes,
        reply_bytes: u32,
    ) -> Result<(StorageReply, Bytes), StoreError> {
        let endpoints = self.endpoints().await?;
        let bytes = data.len() as u64 + u64::from(reply_bytes);
        let deadline = DEADLINE + Duration::from_secs(bytes / BYTES_A_SECOND_MIN);
        let mut failed = "the registry knows no storage-router that runs".to_owned();
        for _ in 0..endpoints.len() {
            let turn = self.turn.replace(self.turn.get().wrapping_add(1));
            let Some(endpoint) = endpoints.get(turn % endpoints.len()) else {
                break;
            };
            let caller = self.caller(endpoint);
            let call = caller.call(request, data.clone(), reply_bytes, deadline);
            match call.await {
                Ok((StorageReply::Refused(refusal), _)) => match self.judge(request, refusal) {
                    StoreError::Unavailable(text) => failed = text,
                    error => return Err(error),
                },
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    failed = format!("storage-router at {endpoint}: {error}");
                    self.listed.set(None);
                    if let CallError::Refused(_) = error {
                        // A connection that was refused stays so; the next one may be welcome.
                        self.callers.borrow_mut().remove(endpoint);
                    }
                }
            }
        }
        self.listed.set(None);
        Err(StoreError::Unavailable(failed))
    }

    fn judge(&self, request: &StorageRequest, refusal: Refusal) -> StoreError {
        if let (RefusalCode::NoSpace, StorageRequest::Put { pool, .. }) = (refusal.code, request) {
            self.full.borrow_mut().insert(pool.clone());
        }
        judge(refusal)
    }

    fn caller(&self, endpoint: &Endpoint) -> StorageCaller {
        let mut callers = self.callers.borrow_mut();
        let caller = callers
            .entry(endpoint.clone())
            .or_insert_with(|| Caller::new(&self.network, endpoint, self.hello.clone()));
        caller.clone()
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, StoreError> {
        let fresh = self.listed.get().is_some_and(|at| at.elapsed() < NODES_AGE_MAX);
        if !fresh {
            self.list_nodes().await?;
        }
        Ok(self.endpoints.borrow().clone())
    }

    async fn list_nodes(&self) -> Result<(), StoreError> {
        let nodes = match running(&self.registry, Role::StorageRouter).await {
            Ok(nodes) => nodes,
            // Storage-routers that were there a moment ago may serve although the registry does not.
            Err(_) if !self.endpoints.borrow().is_empty() => return Ok(()),
            Err(error) => return Err(StoreError::Unavailable(error.to_string())),
        };
        let endpoints: Vec<Endpoint> = nodes
            .into_iter()
            .flat_map(|node| node.endpoints)
            .filter_map(|text| text.parse().ok())
            .collect();
        self.callers
            .borrow_mut()
            .retain(|endpoint, _| endpoints.contains(endpoint));
        if !endpoints.is_empty() {
            self.listed.set(Some(Instant::now()));
        }
        *self.endpoints.borrow_mut() = endpoints;
        Ok(())
    }
}

fn judge(refusal: Refusal) -> StoreError {
    match (refusal.remedy, refusal.code) {
        (_, RefusalCode::NotFound) => StoreError::NotFound(refusal.text),
        (Remedy::Retry | Remedy::Reroute, _) => StoreError::Unavailable(refusal.text),
        (Remedy::Reject | Remedy::Damaged, _) => StoreError::Refused(refusal),
    }
}

fn unexpected(reply: &StorageReply) -> StoreError {
    let text = format!("a storage-router answered something else than was asked: {reply:?}");
    StoreError::Refused(Refusal::reject(RefusalCode::Internal, text))
}
