//! What a pool tells its callers, and its operators, when copies are bad: always with the names of all concerned.
//!
//! Keeps: nothing.
//! Order: damage is told (WARN) where it is found, its repair where it is done; ERROR only where data is lost.
//! Crash: nothing.
//! Knows no front end: a caller acts on the remedy, the text is for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{DecodeError, ObjectName};

use super::{Answer, Pool};
use crate::backend::BackendError;

impl Pool {
    /// `back end "disk-1": it is full; back end "disk-2": …`
    pub(super) fn told(&self, answers: &[Answer]) -> String {
        let mut text = String::new();
        for Answer { backend, error } in answers {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing into a String cannot fail.
            let _ = write!(
                text,
                "{separator}back end {:?}: {error}",
                self.backend_name(*backend)
            );
        }
        text
    }

    fn of(&self, name: ObjectName) -> String {
        format!("object {name} of pool {:?}", self.record.name)
    }

    pub(super) fn exists(&self, name: ObjectName, failed: &[Answer]) -> Refusal {
        let text = format!(
            "{} was stored before with other content, and objects never change ({})",
            self.of(name),
            self.told(failed)
        );
        // A scrub that a crash cut short leaves a version that nobody was told of; the next one passes it over.
        if matches!(name, ObjectName::Sco { version: 1.., .. }) {
            tracing::info!(object = %name, "a version of a scrubbed SCO is taken: the scrub goes on with the next");
        } else {
            tracing::error!(pool = %self.record.name, volume = %name.volume(), object = %name, "put refused: {text}");
        }
        Refusal::reject(RefusalCode::Exists, text)
    }

    pub(super) fn not_stored(&self, name: ObjectName, failed: &[Answer]) -> Refusal {
        let is_full = failed.iter().any(|answer| answer.error == BackendError::Full);
        let code = if is_full {
            RefusalCode::NoSpace
        } else {
            RefusalCode::Unavailable
        };
        let text = format!(
            "{} is not yet stored on all its back ends: {}",
            self.of(name),
            self.told(failed)
        );
        Refusal::retry(code, text)
    }

    pub(super) fn no_key(&self, name: ObjectName, why: &str) -> Refusal {
        let text = format!(
            "{} cannot be stored: {why}; right would be a [[keys]] of this pool in this storage-router's settings",
            self.of(name)
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    pub(super) fn not_deleted(&self, name: ObjectName, failed: &[Answer]) -> Refusal {
        let text = format!(
            "{} is not yet deleted everywhere: {}",
            self.of(name),
            self.told(failed)
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    pub(super) fn cannot_list(&self, what: &str, absent: &[Answer]) -> Refusal {
        let text = format!(
            "cannot list {what} of pool {:?}: {}",
            self.record.name,
            self.told(absent)
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    pub(super) fn no_good_copy(&self, name: ObjectName, failed: &[Answer]) -> Refusal {
        let of = self.of(name);
        if failed.iter().all(|answer| answer.error == BackendError::NotFound) {
            return Refusal::reject(RefusalCode::NotFound, format!("{of} is not there"));
        }
        let may_come_back = |answer: &Answer| {
            !matches!(
                answer.error,
                BackendError::NotFound | BackendError::Damaged { .. }
            )
        };
        let told = self.told(failed);
        // Where those that do not answer are too few to have it, it was never stored: a put that was answered for would be on more.
        let gone: BTreeSet<usize> = failed
            .iter()
            .filter(|answer| answer.error == BackendError::NotFound)
            .map(|answer| answer.backend)
            .collect();
        let needed = self.coded.as_ref().map_or(1, |coded| coded.needed());
        let is_whole = failed
            .iter()
            .all(|answer| !matches!(answer.error, BackendError::Damaged { .. }));
        if is_whole && self.haunts(&name).len().saturating_sub(gone.len()) < needed {
            return Refusal::reject(RefusalCode::NotFound, format!("{of} is not there: {told}"));
        }
        if failed.iter().any(may_come_back) {
            return Refusal::retry(
                RefusalCode::Unavailable,
                format!("{of} cannot be read now: {told}"),
            );
        }
        let volume = name.volume();
        tracing::error!(pool = %self.record.name, %volume, object = %name, copies = told, "no good copy is left");
        Refusal::damaged(format!("{of} (volume {volume}) has no good copy left: {told}"))
    }

    /// `name` is gone, and whether a newer version is there could not be found out.
    pub(super) fn cannot_look_up(&self, name: ObjectName, listing: &Refusal) -> Refusal {
        let text = format!(
            "{} may be there in a newer version: {}",
            self.of(name),
            listing.text
        );
        Refusal::retry(listing.code, text)
    }

    /// `name` is gone, and more objects lie between it and what may hold it than are looked at.
    pub(super) fn too_many_between(&self, name: ObjectName) -> Refusal {
        let text = format!(
            "{} is being replaced: too much of that is not deleted yet",
            self.of(name)
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    /// `name` is gone, and so is the newer version that a listing showed a moment ago.
    pub(super) fn between_versions(&self, name: ObjectName, newer: ObjectName, failed: &[Answer]) -> Refusal {
        let text = format!(
            "{} is being replaced: {newer}: {}",
            self.of(name),
            self.told(failed)
        );
        Refusal::retry(RefusalCode::Unavailable, text)
    }

    pub(super) fn not_packed(&self, name: ObjectName, error: &DecodeError) -> Refusal {
        let text = format!(
            "{} was put as a version above 0, but its content is none: {error}",
            self.of(name)
        );
        tracing::error!(pool = %self.record.name, volume = %name.volume(), object = %name, "put refused: {text}");
        Refusal::reject(RefusalCode::Invalid, text)
    }

    /// What was begun by an older record is begun anew by the newer one.
    pub(super) fn superseded(&self) -> Refusal {
        let text = format!("the placement of pool {:?} changed meanwhile", self.record.name);
        Refusal::retry(RefusalCode::Conflict, text)
    }

    pub(super) fn log_bad_copy(&self, name: ObjectName, answer: &Answer) {
        tracing::warn!(
            pool = %self.record.name, volume = %name.volume(), object = %name,
            backend = self.backend_name(answer.backend), error = %answer.error,
            "bad copy: read from another one"
        );
    }

    pub(super) fn log_replaced(&self, name: ObjectName, backends: &[usize]) {
        for backend in backends {
            tracing::warn!(
                pool = %self.record.name, volume = %name.volume(), object = %name,
                backend = self.backend_name(*backend),
                "repaired: wrote a good copy in place of a bad one"
            );
        }
    }
}
