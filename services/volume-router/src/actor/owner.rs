//! An ownership's handle: what jobs beside the volume know of it, and how they tell it what happened.
//!
//! Keeps: who the owner is, whether it still is, and whether its jobs are failing.
//! Order: an owner that is none any more stays so; its next ownership has a handle of its own.
//! Crash: nothing.
//! Knows no engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actix::Addr;
use sconce_schemas::VolumeId;
use sconce_schemas::records::ManifestRef;
use sconce_schemas::wire::Refusal;
use sconce_volume::Event;

use super::VolumeActor;
use super::messages::{Broken, Happened, Lost};
use crate::background::{Outage, Subject};
use crate::owner::record::Ownership;

/// A volume's ownership, for those who work beside it. Clones share it, across threads.
#[derive(Clone)]
pub(crate) struct Owner {
    inner: Arc<Inner>,
}

struct Inner {
    volume: Addr<VolumeActor>,
    generation: u32,
    volume_id: VolumeId,
    pool: Arc<str>,
    path: Mutex<Arc<str>>,
    ownership: Ownership,
    current: AtomicBool,
    outage: Outage,
    manifests: Mutex<[Option<ManifestRef>; 2]>,
}

impl Owner {
    /// The ownership that `volume` begins; `manifest` is the newest there is.
    pub(crate) fn new(
        volume: Addr<VolumeActor>,
        generation: u32,
        subject: Subject,
        ownership: Ownership,
        manifest: Option<ManifestRef>,
    ) -> Self {
        let inner = Inner {
            volume,
            generation,
            volume_id: subject.volume,
            pool: subject.pool,
            path: Mutex::new(subject.path),
            ownership,
            current: AtomicBool::new(true),
            outage: Outage::default(),
            manifests: Mutex::new([None, manifest]),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The volume, as the back ends and people name it now.
    pub(crate) fn subject(&self) -> Subject {
        let path = self.inner.path.lock().unwrap_or_else(PoisonError::into_inner);
        Subject {
            volume: self.inner.volume_id,
            path: Arc::clone(&path),
            pool: Arc::clone(&self.inner.pool),
        }
    }

    /// The volume's path is another now.
    pub(crate) fn rename(&self, path: &str) {
        *self.inner.path.lock().unwrap_or_else(PoisonError::into_inner) = path.into();
    }

    pub(crate) fn ownership(&self) -> &Ownership {
        &self.inner.ownership
    }

    pub(crate) fn outage(&self) -> &Outage {
        &self.inner.outage
    }

    /// Whether anybody wants the outcome of a job.
    pub(crate) fn is_current(&self) -> bool {
        self.inner.current.load(Ordering::Relaxed)
    }

    /// The ownership ends: jobs that have not begun never will.
    pub(crate) fn end(&self) {
        self.inner.current.store(false, Ordering::Relaxed);
    }

    /// Tells the volume.
    pub(crate) fn happened(&self, event: Event) {
        let generation = self.inner.generation;
        self.inner.volume.do_send(Happened { generation, event });
    }

    /// Somebody else owns the volume.
    pub(crate) fn lost(&self, refusal: Refusal) {
        let generation = self.inner.generation;
        self.inner.volume.do_send(Lost { generation, refusal });
    }

    /// A bug: the volume stops and says so.
    pub(crate) fn broken(&self, reason: &str) {
        let (generation, reason) = (self.inner.generation, reason.to_owned());
        self.inner.volume.do_send(Broken { generation, reason });
    }

    /// A manifest is the newest; gives the one that two newer ones supersede.
    pub(crate) fn superseded(&self, newest: ManifestRef) -> Option<ManifestRef> {
        let mut manifests = self
            .inner
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let [before_last, last] = *manifests;
        *manifests = [last, Some(newest)];
        before_last
    }
}
