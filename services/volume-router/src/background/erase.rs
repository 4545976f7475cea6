//! Deletion: a volume that is gone from the names gives its space back.
//!
//! Keeps: how far each erasure is; that it is not over, the record's phase says.
//! Order: objects first, manifests last of them: while a manifest is there the volume is a volume. Then the same again
//! until, a grace after the last object went, a listing of all back ends finds nothing; then the record.
//! Crash: begun again at the next start, from whatever is still there, or by another node if there is no next start.
//! Knows no engine: the volume is not served any more. Whether its objects may go, the record is asked each second.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_runtime::crash::{Point, hit};
use sconce_schemas::VolumeId;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::volume::ErasureStatus;
use tokio::time::Instant;

use super::outage::{Outage, Tried};
use super::{Shared, StoreError, Subject};
use crate::owner::erasure::{self, Right, may_erase};
use crate::owner::record::RecordError;

/// An answer of the registry, that the objects may go, is believed for so long: a record that was put right meanwhile, by
/// hand or by `sconce recover`, loses no more than goes in this time.
const ALLOWED_FOR: Duration = Duration::from_secs(1);

/// The erasures under way, for whoever asks: each volume only once at a time.
#[derive(Debug, Default)]
pub(crate) struct Erasures {
    by_volume: Mutex<BTreeMap<VolumeId, Progress>>,
}

#[derive(Debug)]
struct Progress {
    deleted: u64,
    state: String,
}

impl Erasures {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Progress>> {
        self.by_volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was not under way.
    fn begin(&self, volume: VolumeId) -> bool {
        let mut begun = false;
        self.lock().entry(volume).or_insert_with(|| {
            begun = true;
            Progress {
                deleted: 0,
                state: DELETING.to_owned(),
            }
        });
        begun
    }

    fn end(&self, volume: VolumeId) {
        self.lock().remove(&volume);
    }

    fn deleted_one(&self, volume: VolumeId) {
        if let Some(progress) = self.lock().get_mut(&volume) {
            progress.deleted += 1;
        }
    }

    fn is_at(&self, volume: VolumeId, state: String) {
        if let Some(progress) = self.lock().get_mut(&volume) {
            progress.state = state;
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<ErasureStatus> {
        let status = |(volume, progress): (&VolumeId, &Progress)| ErasureStatus {
            volume: *volume,
            deleted: progress.deleted,
            state: progress.state.clone(),
        };
        self.lock().iter().map(status).collect()
    }
}

const DELETING: &str = "deleting";

/// Runs until nothing of the volume is left, or it is another node's to see to.
pub(super) async fn run(shared: &Shared, subject: &Subject, right: &Right) {
    if !shared.erasures.begin(subject.volume) {
        return;
    }
    let (copies, volume) = (Arc::clone(&shared.checkpoints), subject.volume);
    // What stays of the local copies is only space, until it is the oldest.
    let _ = sconce_runtime::blocking(move || copies.forget(volume)).await;
    let erasure = Erasure {
        shared,
        subject,
        right,
        allowed_at: Cell::new(None),
        quiet_since: Cell::new(Instant::now()),
    };
    erasure.run().await;
    shared.erasures.end(volume);
}

/// Why an erasure does not go on.
enum Halt {
    /// It is not this node's, or the volume is none that may be erased.
    Over(Refusal),
    /// Something is missing that comes back.
    Later(String),
}

impl From<RecordError> for Halt {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Refused(refusal) => Halt::Over(refusal),
            RecordError::Unavailable(text) => Halt::Later(text),
        }
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Halt::Later(error.to_string())
    }
}

struct Erasure<'a> {
    shared: &'a Shared,
    subject: &'a Subject,
    right: &'a Right,
    /// When the registry last said that the objects may go.
    allowed_at: Cell<Option<Instant>>,
    /// When the last object went; before the first, when the erasure began.
    quiet_since: Cell<Instant>,
}

impl Erasure<'_> {
    async fn run(&self) {
        let path = &self.subject.path;
        let erase = || async {
            match self.erase().await {
                Ok(()) => Tried::Over(Ok(())),
                Err(Halt::Over(refusal)) => Tried::Over(Err(refusal)),
                Err(Halt::Later(cause)) => {
                    self.is_at(format!("waits: {cause}"));
                    Tried::Again(cause)
                }
            }
        };
        let outage = Outage::new(self.shared.events.clone(), self.subject.volume);
        match outage.endure("deleting", path, || true, erase).await {
            Some(Ok(())) => tracing::info!(volume = %path, "deleted"),
            Some(Err(refusal)) => tracing::info!(volume = %path, %refusal, "not erased here"),
            None => {}
        }
    }

    async fn erase(&self) -> Result<(), Halt> {
        loop {
            self.is_at(DELETING.to_owned());
            let begun = Instant::now();
            self.delete_all().await?;
            let quiet_at = self.quiet_since.get() + self.shared.erase.grace.duration();
            if begun >= quiet_at {
                return self.end().await;
            }
            let grace = self.shared.erase.grace.duration().as_secs();
            self.is_at(format!(
                "waits {grace} s for what was on its way to the back ends"
            ));
            tokio::time::sleep_until(quiet_at).await;
        }
    }

    /// Deletes all objects that the back ends have.
    async fn delete_all(&self) -> Result<(), Halt> {
        let (store, volume, pool) = (&self.shared.store, self.subject.volume, &*self.subject.pool);
        for kind in [ObjectKind::Sco, ObjectKind::Map, ObjectKind::Manifest] {
            loop {
                self.allowed().await?;
                // A copy that an earlier try did not reach may be the only one that is left.
                let page = store.list_everywhere(pool, volume, kind).await?;
                if page.is_empty() {
                    break;
                }
                for name in page {
                    self.allowed().await?;
                    store.delete(pool, name).await?;
                    self.quiet_since.set(Instant::now());
                    self.shared.erasures.deleted_one(volume);
                    hit(Point::DuringErasure);
                }
            }
        }
        Ok(())
    }

    /// Whether the objects may go now.
    async fn allowed(&self) -> Result<(), Halt> {
        let fresh = self.allowed_at.get().is_some_and(|at| at.elapsed() < ALLOWED_FOR);
        if !fresh {
            let asked = Instant::now();
            may_erase(&self.shared.registry, self.subject.volume, self.right).await?;
            self.allowed_at.set(Some(asked));
        }
        Ok(())
    }

    async fn end(&self) -> Result<(), Halt> {
        hit(Point::AfterErasure);
        let Shared {
            registry,
            buffer,
            clock,
            ..
        } = self.shared;
        erasure::end(
            registry,
            self.subject.volume,
            self.right,
            buffer,
            clock.unix_micros(),
        )
        .await?;
        Ok(())
    }

    fn is_at(&self, state: String) {
        self.shared.erasures.is_at(self.subject.volume, state);
    }
}
