//! What each request means: the protocol on one side, pools on the other.
//!
//! Keeps: nothing but what it was given.
//! Order: each request stands for itself.
//! Crash: nothing.
//! Knows no sockets and no back ends.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_runtime::{Events, Moment, Stop};
use sconce_schemas::wire::storage::{
    GET_BYTES_MAX, StorageControl, StorageControlReply, StorageNodeStatus, StorageReply, StorageRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{NodeName, ObjectName};
use sconce_tracing::metrics::{Metric, OfOperations, Operations, Page};
use sconce_tracing::{Action, Point, Status, Step};

use super::pools::Pools;
use super::standing::Standing;
use crate::cached::ObjectCache;
use crate::trace::step;

/// Most names or volumes in one answer.
const LIST_MAX: u32 = 1000;
/// What is counted: `control` is all that is neither a put nor a get, but waiting for events.
const ACTIONS: [Action; 3] = [Action::Put, Action::Get, Action::Control];
/// How long a back end may take to say how much space it has, for metrics.
const SPACE_WITHIN: Duration = Duration::from_secs(2);

/// What is read of an object.
struct Part {
    name: ObjectName,
    offset: u64,
    length: u32,
    cached: bool,
}

/// Answers requests.
pub(super) struct Handler {
    pub(super) node: NodeName,
    pub(super) pools: Pools,
    /// Whether it knows of every placement that others go by.
    pub(super) standing: Standing,
    /// Parts of objects that were read before.
    pub(super) cache: Option<Rc<ObjectCache>>,
    /// What happens is told here.
    pub(super) events: Events,
    /// Nobody waits for events past it.
    pub(super) stop: Stop,
    /// How requests went.
    pub(super) operations: Operations,
    /// One more for each that is under way.
    pub(super) under_way: Rc<()>,
}

impl Handler {
    /// The answer to a request, with the data that goes with it. `reply_bytes` is what the client has room for.
    pub(super) async fn answer(
        &self,
        request: StorageRequest,
        data: Bytes,
        reply_bytes: u32,
    ) -> (StorageReply, Bytes) {
        let (_counted, since) = (Rc::clone(&self.under_way), Instant::now());
        let asked = match &request {
            StorageRequest::Put { .. } => Some((Action::Put, data.len() as u64)),
            StorageRequest::Get { length, .. } => Some((Action::Get, u64::from(*length))),
            StorageRequest::Control(StorageControl::Events(_)) => None,
            StorageRequest::Control(_) => Some((Action::Control, 0)),
        };
        let done = match request {
            StorageRequest::Put { pool, name } => self.put(&pool, name, data).await,
            StorageRequest::Get {
                pool,
                name,
                offset,
                length,
                cached,
            } => {
                let part = Part {
                    name,
                    offset,
                    length,
                    cached,
                };
                self.get(&pool, part, reply_bytes).await
            }
            StorageRequest::Control(control) => Box::pin(self.control(control)).await,
        };
        if let Some((action, bytes)) = asked {
            let status = done.as_ref().map_or_else(Status::from, |_| Status::Ok);
            self.operations.ended(action, since.elapsed(), bytes, status);
        }
        done.unwrap_or_else(|refusal| (StorageReply::Refused(refusal), Bytes::new()))
    }

    /// Puts the service's numbers on a page.
    pub(super) async fn tell_metrics(&self, page: &mut Page) {
        let of = OfOperations {
            seconds: Metric::StorageSeconds,
            bytes: Metric::StorageBytes,
            errors: Metric::StorageErrors,
        };
        page.operations(of, &[], &ACTIONS, &[&self.operations]);
        // One is the handler's own.
        let under_way = Rc::strong_count(&self.under_way) - 1;
        page.number(Metric::StorageUnderWay, &[], under_way as u64);
        if let Some(cache) = &self.cache {
            cache.cache().counters().tell(page, "objects");
        }
        let mut backends: Vec<_> = self.pools.backends().all().into_values().collect();
        backends.sort_by(|one, other| one.name().cmp(other.name()));
        backends.iter().for_each(|backend| backend.tell_metrics(page));
        let spaces = join_all(backends.iter().map(|backend| backend.space(SPACE_WITHIN))).await;
        for (backend, space) in backends.iter().zip(spaces) {
            match space {
                Some(Ok(space)) => {
                    for (metric, bytes) in [
                        (Metric::BackendCapacity, space.capacity),
                        (Metric::BackendFree, space.free),
                    ] {
                        if let Some(bytes) = bytes {
                            page.number(metric, &[backend.name()], bytes.0);
                        }
                    }
                }
                // It does not work, which the page says.
                Some(Err(_)) => {}
                None => page.left_out(),
            }
        }
    }

    async fn put(&self, pool: &str, name: ObjectName, data: Bytes) -> Result<(StorageReply, Bytes), Refusal> {
        let step = step(Action::Put, name, 0, data.len() as u64);
        Point::StoragePut.record(|| step);
        let done = match self.stands() {
            Ok(since) => match self.pools.find(pool).await {
                Ok(pool) => self.if_still(since, pool.put(name, data).await),
                Err(refusal) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        Point::StorageExit.record(|| ended(step, &done));
        done.map(|()| (StorageReply::Done, Bytes::new()))
    }

    async fn get(&self, pool: &str, part: Part, reply_bytes: u32) -> Result<(StorageReply, Bytes), Refusal> {
        let Part {
            name,
            offset,
            length,
            cached,
        } = part;
        let most = GET_BYTES_MAX.min(reply_bytes);
        if length > most {
            let text = format!("get of {length} bytes of {name}; right would be at most {most}");
            return Err(Refusal::reject(RefusalCode::Invalid, text));
        }
        let step = step(Action::Get, name, offset, u64::from(length));
        Point::StorageGet.record(|| step);
        let since = self.standing.since();
        let got = match self.pools.find(pool).await {
            Ok(pool) => match &self.cache {
                // What is in the cache is in clear on its SSD.
                Some(cache) if cached && !pool.record().encrypted => {
                    cache.get(&pool, name, offset, u64::from(length)).await
                }
                _ => pool.get(name, offset, u64::from(length)).await,
            },
            Err(refusal) => Err(refusal),
        };
        // What is found is what was asked for.
        let got = got.or_else(|refusal| self.if_still(since, Err(refusal)));
        Point::StorageExit.record(|| ended(step, &got));
        got.map(|data| (StorageReply::Data, data))
    }

    async fn control(&self, control: StorageControl) -> Result<(StorageReply, Bytes), Refusal> {
        let reply = match control {
            StorageControl::Stat { pool, name } => {
                let since = self.standing.since();
                let length = self.pools.find(&pool).await?.stat(name).await;
                StorageControlReply::Stat {
                    length: length.or_else(|refusal| self.if_still(since, Err(refusal)))?,
                }
            }
            StorageControl::Delete { pool, name } => {
                let since = self.stands()?;
                let deleted = self.pools.find(&pool).await?.delete(name).await;
                self.if_still(since, deleted)?;
                return Ok((StorageReply::Done, Bytes::new()));
            }
            StorageControl::List {
                pool,
                volume,
                kind,
                after,
                limit,
                everywhere,
            } => {
                let limit = check_limit(limit)?;
                if after.is_some_and(|after| after.volume() != volume || after.kind() != kind) {
                    let text = format!(
                        "list of {volume}/{} after an object of another list",
                        kind.as_str()
                    );
                    return Err(Refusal::reject(RefusalCode::Invalid, text));
                }
                let since = self.stands()?;
                let pool = self.pools.find(&pool).await?;
                let names = match everywhere {
                    true => pool.list_everywhere(volume, kind, after, limit).await,
                    false => pool.list(volume, kind, after, limit).await,
                };
                StorageControlReply::Names {
                    names: self.if_still(since, names)?,
                }
            }
            StorageControl::ListVolumes { pool, after, limit } => {
                let limit = check_limit(limit)?;
                let since = self.stands()?;
                let volumes = self.pools.find(&pool).await?.list_volumes(after, limit).await;
                StorageControlReply::Volumes {
                    volumes: self.if_still(since, volumes)?,
                }
            }
            StorageControl::Events(ask) => {
                StorageControlReply::Events(self.events.page(&ask, &self.stop).await)
            }
            StorageControl::NodeStatus => StorageControlReply::Node(self.status().await),
            StorageControl::AddBackend { name, place } => {
                StorageControlReply::Backend(self.pools.backends().add(&name, place).await?)
            }
            StorageControl::CreatePool { pool } => StorageControlReply::Pool(self.pools.create(pool).await?),
            StorageControl::PlacePool { pool, weights, lost } => {
                StorageControlReply::Pool(self.pools.place(&pool, &weights, &lost).await?)
            }
        };
        Ok((StorageReply::Control(reply), Bytes::new()))
    }

    /// Since when this service knows of every back end that an object may be on: what does not only read what it finds begins with that.
    fn stands(&self) -> Result<Option<Moment>, Refusal> {
        self.standing.since().map(Some).ok_or_else(|| self.unsure())
    }

    /// What was done, if the service has known that from its begin to its end.
    fn if_still<T>(&self, since: Option<Moment>, done: Result<T, Refusal>) -> Result<T, Refusal> {
        match since.is_some() && self.standing.since() == since {
            true => done,
            false => Err(self.unsure()),
        }
    }

    fn unsure(&self) -> Refusal {
        let text = format!(
            "storage-router {} has not heard from the registry for a while: where objects are may have changed, so it only gives what \
             it finds until it has",
            self.node
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    async fn status(&self) -> StorageNodeStatus {
        StorageNodeStatus {
            node: self.node.clone(),
            backends: self.pools.backends().statuses().await,
            pools: self.pools.statuses(),
        }
    }
}

fn ended<T>(step: Step, done: &Result<T, Refusal>) -> Step {
    Step {
        status: done.as_ref().map_or_else(Status::from, |_| Status::Ok),
        ..step
    }
}

fn check_limit(limit: u32) -> Result<usize, Refusal> {
    if (1..=LIST_MAX).contains(&limit) {
        return Ok(limit as usize);
    }
    let text = format!("a list of {limit} names was asked for; right would be 1 to {LIST_MAX}");
    Err(Refusal::reject(RefusalCode::Invalid, text))
}
