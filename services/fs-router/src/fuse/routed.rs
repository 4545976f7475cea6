//! Keeps: the volumes that files have open, each with its session at the routing core of this thread.
//! Order, crash: as the routing core says.
//! Knows no file.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant as Moment};

use sconce_schemas::records::PoolRecord;
use sconce_schemas::wire::storage::BackendStatus;
use sconce_schemas::wire::volume::{IoCode, VolumeControl, VolumeControlReply};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, SnapshotId, VolumeId};
use sconce_tracing::{Point, Span, Status, Step};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::volumes::{Extent, Snapshot, Source, Space, Told, Volumes};
use crate::names::Names;
use crate::peers::{Identity, Owners, PeerError, StorageRouters, is_served, is_starting};
use crate::routing::{Opened, Operation, Outcome, Router, Volume};

/// How long an owner is waited for when a program asks for a file's size.
const EXTENT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a storage-router is waited for when a program asks for space.
const SPACE_DEADLINE: Duration = Duration::from_secs(1);
/// How long an answer about space holds: space changes slowly, and programs ask often.
const SPACE_AGE_MAX: Duration = Duration::from_secs(10);
/// What a back end holds that has no size, as a bucket: with nothing, programs would not begin to write.
const UNBOUNDED: ByteLen = ByteLen(1 << 50);

/// Volumes behind the routing core.
pub struct RoutedVolumes {
    router: Router,
    names: Names,
    owners: Rc<Owners>,
    storage: StorageRouters,
    open: RefCell<HashMap<Source, Volume>>,
    space: RefCell<Option<(Instant, Space)>>,
}

impl RoutedVolumes {
    /// Volumes of the pool that `names` shows, through the router of this thread.
    #[must_use]
    pub fn new(router: Router, names: Names, identity: Identity) -> Self {
        Self {
            router,
            owners: Rc::new(Owners::new(names.clone(), identity.clone())),
            storage: StorageRouters::new(names.clone(), identity),
            names,
            open: RefCell::default(),
            space: RefCell::default(),
        }
    }

    fn handle(&self, volume: VolumeId) -> Volume {
        let mut open = self.open.borrow_mut();
        let attach = || self.router.attach_volume(volume);
        open.entry(volume.into()).or_insert_with(attach).clone()
    }

    fn snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str) -> Volume {
        let source = Source {
            volume,
            snapshot: Some(id),
        };
        let mut open = self.open.borrow_mut();
        let attach = || self.router.attach_snapshot(volume, id, name.to_owned());
        open.entry(source).or_insert_with(attach).clone()
    }

    async fn ask_space(&self) -> Result<Space, PeerError> {
        let pools = self.names.pools().await?;
        let mut backends = Vec::new();
        for node in self.storage.running().await? {
            backends.extend(self.storage.status(&node, SPACE_DEADLINE).await?.backends);
        }
        Ok(space_of(&pools, &backends))
    }
}

/// Space for volumes: that of each pool's back ends, less what its protection takes. A back end that several
/// storage-routers or pools have counts once.
fn space_of(pools: &[PoolRecord], backends: &[BackendStatus]) -> Space {
    let mut counted = BTreeSet::new();
    let mut space = Space::default();
    for pool in pools {
        for placed in &pool.backends {
            let found = backends.iter().find(|backend| backend.name == placed.backend);
            if let Some(backend) = found.filter(|_| counted.insert(&placed.backend)) {
                let unknown = if backend.state == "ok" {
                    UNBOUNDED
                } else {
                    ByteLen(0)
                };
                let share = |bytes: Option<ByteLen>| pool.protection.room_in(bytes.unwrap_or(unknown).0);
                space.capacity = space.capacity.saturating_add(share(backend.capacity));
                space.free = space.free.saturating_add(share(backend.free));
            }
        }
    }
    space
}

fn unavailable(error: PeerError) -> Refusal {
    match error {
        PeerError::Refused(refusal) => refusal,
        PeerError::Names(crate::names::NamesError::NotFound { at }) => {
            Refusal::reject(RefusalCode::NotFound, format!("{at} does not exist"))
        }
        error @ PeerError::Absent { .. } => Refusal::retry(RefusalCode::WaitsForOwner, error.to_string()),
        error => Refusal::retry(RefusalCode::Unavailable, error.to_string()),
    }
}

impl Volumes for RoutedVolumes {
    async fn open(&self, volume: VolumeId) -> Result<Opened, Refusal> {
        self.router.orphans().settled(volume).await;
        self.handle(volume).opened().await
    }

    async fn open_snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str) -> Result<Opened, Refusal> {
        self.snapshot(volume, id, name).opened().await
    }

    fn attach_snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str) {
        self.snapshot(volume, id, name);
    }

    async fn run(&self, source: Source, operation: Operation) -> Outcome {
        let volume = match source.snapshot {
            None => self.handle(source.volume),
            Some(_) => match self.open.borrow().get(&source) {
                Some(snapshot) => snapshot.clone(),
                None => return Outcome::Refused(Refusal::reject(RefusalCode::NotOpen, "the file is closed")),
            },
        };
        let step = Step {
            operation: volume.operation_id(),
            action: operation.code.into(),
            volume: source.volume,
            address: operation.offset,
            length: operation.length,
            status: Status::Ok,
        };
        Point::FuseEntry.record(|| step);
        let since = Moment::now();
        let mut span = Span::sampled(span_name(operation.code), step.operation);
        if span.is_recorded() {
            span.text("sconce.volume", step.volume);
            span.number("sconce.address", step.address);
            span.number("sconce.length", step.length);
        }
        let run = volume.run(operation.with_id(step.operation));
        let outcome = run.await.unwrap_or_else(Outcome::Refused);
        if let Outcome::Refused(refusal) = &outcome {
            span.fail(refusal);
        }
        drop(span);
        let counts = &self.router.counts().fuse;
        counts.ended(step.action, since.elapsed(), step.length, outcome.status());
        Point::FuseExit.record(|| Step {
            status: outcome.status(),
            ..step
        });
        outcome
    }

    fn close(&self, source: Source) {
        self.open.borrow_mut().remove(&source);
    }

    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, Refusal> {
        let list = VolumeControl::ListSnapshots { volume };
        let told = self.owners.call(volume, list, EXTENT_DEADLINE).await;
        let VolumeControlReply::Snapshots { snapshots } = told.map_err(unavailable)? else {
            let text = "the owner answered something else than its snapshots";
            return Err(Refusal::reject(RefusalCode::Internal, text));
        };
        let shown = snapshots.into_iter().map(|status| Snapshot {
            id: status.id,
            name: status.name,
            created_us: status.created_us,
            size: status.size.bytes(),
            allocated: status.allocated.0,
        });
        Ok(shown.collect())
    }

    async fn extent(&self, volume: VolumeId) -> Result<Extent, Refusal> {
        match self.owners.show(volume, EXTENT_DEADLINE).await {
            Ok(status) if is_served(&status) => Ok(Extent {
                size: status.size.bytes(),
                allocated: Some(status.allocated.0),
            }),
            Ok(status) if is_starting(&status) => Err(Refusal::retry(RefusalCode::Unavailable, status.state)),
            Ok(status) => Err(Refusal::retry(RefusalCode::WaitsForOwner, status.state)),
            Err(error) => Err(unavailable(error)),
        }
    }

    fn tell(&self, volumes: Vec<VolumeId>, told: Told) {
        let owners = Rc::clone(&self.owners);
        spawn_local(async move {
            let untold = owners
                .tell(&volumes, |volume| match told {
                    Told::Renamed => VolumeControl::Renamed { volume },
                    Told::Deleted => VolumeControl::Delete { volume },
                })
                .await;
            if untold > 0 {
                tracing::info!(
                    untold,
                    ?told,
                    "owners that did not answer find it in the registry later"
                );
            }
        });
    }

    async fn space(&self) -> Space {
        let known = *self.space.borrow();
        if let Some((_, space)) = known.filter(|(at, _)| at.elapsed() < SPACE_AGE_MAX) {
            return space;
        }
        match self.ask_space().await {
            Ok(space) => {
                self.space.replace(Some((Instant::now(), space)));
                space
            }
            Err(error) => {
                tracing::debug!(%error, "space is shown as it was");
                known.map(|(_, space)| space).unwrap_or_default()
            }
        }
    }
}

/// For traces.
const fn span_name(code: IoCode) -> &'static str {
    match code {
        IoCode::Read => "fuse.read",
        IoCode::Write => "fuse.write",
        IoCode::Discard => "fuse.discard",
        IoCode::WriteZeroes => "fuse.write_zeroes",
        IoCode::Flush => "fuse.flush",
        IoCode::Extents => "fuse.extents",
        IoCode::Resize => "fuse.resize",
        IoCode::Changes => "fuse.changes",
    }
}

#[cfg(test)]
mod tests {
    use sconce_schemas::ByteLen;
    use sconce_schemas::records::PlacementEntry;

    use sconce_schemas::records::Protection;

    use super::*;

    #[test]
    fn space_is_that_of_each_back_end_once_by_the_copies_kept() {
        let backend = |name: &str, capacity: u64| BackendStatus {
            name: name.to_owned(),
            state: "ok".to_owned(),
            capacity: Some(ByteLen(capacity)),
            free: Some(ByteLen(capacity / 2)),
            requests: 0,
            errors: 0,
            written: sconce_schemas::wire::storage::Written::default(),
        };
        let pool = |copies, backends: &[&str]| PoolRecord {
            name: String::new(),
            protection: Protection::Replicas(copies),
            backends: backends
                .iter()
                .map(|backend| PlacementEntry {
                    backend: (*backend).to_owned(),
                    weight: 1,
                })
                .collect(),
            placement_version: 1,
            compression: None,
            encrypted: false,
            keys: Vec::new(),
            change: None,
        };
        let mut seen = vec![
            backend("a", 100),
            backend("b", 100),
            backend("a", 100),
            backend("c", 1000),
        ];
        let pools = [pool(2, &["a", "b"]), pool(1, &["b", "c", "absent"])];
        assert_eq!(
            space_of(&pools, &seen),
            Space {
                capacity: 1100,
                free: 550
            }
        );
        // A bucket has no size; neither has what does not answer, but nothing fits there.
        let without_size = |name: &str, state: &str| BackendStatus {
            state: state.to_owned(),
            capacity: None,
            free: None,
            ..backend(name, 0)
        };
        seen.push(without_size("bucket", "ok"));
        seen.push(without_size("gone", "it is unavailable"));
        let capacity = UNBOUNDED.0;
        assert_eq!(
            space_of(&[pool(1, &["bucket", "gone"])], &seen),
            Space {
                capacity,
                free: capacity
            }
        );
    }
}
