//! An ownership's handle: what jobs beside the volume know of it, and how they tell it what happened.
//!
//! Keeps: who the owner is, whether it still is, whether its jobs are failing, where bundles are written, and the size that the
//! registry is to know.
//! Order: an owner that is none any more stays so; its next ownership has a handle of its own.
//! Crash: nothing.
//! Knows no engine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actix::Addr;
use sconce_runtime::Events;
use sconce_schemas::records::ManifestRef;
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::event::What;
use sconce_schemas::{NodeName, ScoId, VolumeId, VolumeSize};
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
    events: Events,
    manifests: Mutex<[Option<ManifestRef>; 2]>,
    help: Mutex<Help>,
    /// The volume's size in bytes.
    size: AtomicU64,
    /// A job that tells the registry of the size has not read it yet.
    noting_size: AtomicBool,
}

/// What neighbours do of the volume's scrubbing.
#[derive(Debug, Default)]
pub(crate) struct Help {
    /// Who was asked to write the bundle at hand.
    pub(crate) at: Option<NodeName>,
    /// Bundles that neighbours wrote.
    pub(crate) written: u64,
    /// Bundles that a neighbour did not answer for in time, or not well.
    pub(crate) taken_back: u64,
    /// By the SCO that they are named after, the last versions of bundles that were given away and came to nothing. A neighbour may still
    /// write them as long as this ownership lasts, so nothing else gets their names: a name has one content for ever.
    given: BTreeMap<ScoId, u16>,
}

impl Help {
    /// The last version of the SCO's name that may be taken, known to be so up to `known`.
    pub(crate) fn taken(&self, sco: ScoId, known: u16) -> u16 {
        self.given.get(&sco).map_or(known, |given| known.max(*given))
    }

    /// The name is given away.
    pub(crate) fn give(&mut self, sco: ScoId, version: u16) {
        self.given.insert(sco, version);
    }

    /// The volume knows a bundle of this name: later ones have later versions.
    pub(crate) fn known(&mut self, sco: ScoId) {
        self.given.remove(&sco);
    }
}

impl Owner {
    /// The ownership that `volume` begins; `manifest` is the newest there is, `size` what the registry knows.
    pub(crate) fn new(
        volume: Addr<VolumeActor>,
        generation: u32,
        subject: Subject,
        ownership: Ownership,
        manifest: Option<ManifestRef>,
        size: VolumeSize,
        events: &Events,
    ) -> Self {
        let inner = Inner {
            volume,
            generation,
            volume_id: subject.volume,
            pool: subject.pool,
            path: Mutex::new(subject.path),
            ownership,
            current: AtomicBool::new(true),
            outage: Outage::new(events.clone(), subject.volume),
            events: events.clone(),
            manifests: Mutex::new([None, manifest]),
            help: Mutex::default(),
            size: AtomicU64::new(size.bytes()),
            noting_size: AtomicBool::new(false),
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

    /// The volume has this size; whether a job is to be begun that tells the registry.
    pub(crate) fn sized(&self, size: VolumeSize) -> bool {
        if self.inner.size.load(Ordering::Relaxed) == size.bytes() {
            return false;
        }
        self.inner.size.store(size.bytes(), Ordering::Relaxed);
        !self.inner.noting_size.swap(true, Ordering::AcqRel)
    }

    /// The job reads the size from here on: a change that comes later needs another.
    pub(crate) fn reads_size(&self) {
        self.inner.noting_size.store(false, Ordering::Release);
    }

    /// The volume's size.
    pub(crate) fn size(&self) -> VolumeSize {
        // It was a size when it was put there.
        VolumeSize::new(self.inner.size.load(Ordering::Relaxed)).unwrap_or(VolumeSize::MAX)
    }

    pub(crate) fn ownership(&self) -> &Ownership {
        &self.inner.ownership
    }

    pub(crate) fn outage(&self) -> &Outage {
        &self.inner.outage
    }

    /// What neighbours do of the volume's scrubbing: to be looked at, or changed.
    pub(crate) fn help<T>(&self, look: impl FnOnce(&mut Help) -> T) -> T {
        look(&mut self.inner.help.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something happened to the volume that people are told of.
    pub(crate) fn tell(&self, what: What) {
        let subject = self.subject();
        self.inner.events.tell_of(subject.volume, &subject.path, what);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_given_away_is_not_taken_for_something_else() {
        let (mut help, sco) = (Help::default(), ScoId(7));
        assert_eq!(help.taken(sco, 0x8000), 0x8000);
        help.give(sco, 0x8001);
        assert_eq!(help.taken(sco, 0x8000), 0x8001);
        assert_eq!(help.taken(sco, 0x8005), 0x8005);
        assert_eq!(help.taken(ScoId(8), 0x8000), 0x8000);
        help.known(sco);
        assert_eq!(
            help.taken(sco, 0x8001),
            0x8001,
            "that is what the table says from now on"
        );
    }
}
