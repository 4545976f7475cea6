//! An upload: a closed and synced SCO file becomes an object.
//!
//! Keeps: the SCO's bytes in memory while a try of it has room.
//! Order: none between SCOs; the manifest waits for all of them.
//! Crash: an object that the volume does not know of is put again: the same bytes succeed.
//! Knows no map.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use sconce_runtime::crash::{Point, hit};
use sconce_schemas::ObjectName;
use sconce_schemas::wire::RefusalCode;
use sconce_tracing::metrics::Histogram;
use sconce_volume::Event;

use super::outage::Tried;
use super::{Shared, StoreError, Subject, Upload, stored};
use crate::actor::Owner;

/// How uploads went, for metrics.
#[derive(Debug, Default)]
pub(crate) struct UploadCounts {
    /// What those took that were stored.
    pub(crate) took: Histogram,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl UploadCounts {
    /// Bytes of SCOs that were stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Tries that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

/// Runs until the SCO is stored or its owner is owner no more. A file that cannot be read does not stop the volume, which
/// would only come to the same file again: what of it can be read is served, and people are told.
pub(super) async fn run(shared: &Shared, owner: &Owner, upload: &Upload) {
    hit(Point::AfterScoClosed);
    let subject = owner.subject();
    let since = Instant::now();
    let was_full = Cell::new(false);
    let put = || async {
        // While the write buffer has room, guests have the processors and the disk.
        let is_pressed = || shared.level.is_pressed();
        let length = upload.length.0;
        let _room = shared.room.take_calmly(&subject.pool, length, is_pressed).await;
        if !owner.is_current() {
            return Tried::Again("the volume is served here no more".to_owned());
        }
        let stored = put(shared, &subject, upload).await;
        // The volume gives back what it can, and hears when that was enough.
        let is_full = stored.is_err() && shared.store.is_full(&subject.pool);
        if is_full || was_full.get() {
            was_full.set(is_full);
            owner.happened(Event::BackEndsFull { full: is_full });
        }
        match stored {
            Ok(()) => Tried::Over(()),
            Err(cause) => {
                shared.uploads.errors.fetch_add(1, Ordering::Relaxed);
                Tried::Again(cause)
            }
        }
    };
    let stored = owner
        .outage()
        .endure("storing", &subject.path, || owner.is_current(), put);
    if stored.await.is_some() {
        hit(Point::AfterScoUploaded);
        shared.uploads.took.took(since.elapsed());
        shared.uploads.bytes.fetch_add(upload.length.0, Ordering::Relaxed);
        owner.happened(Event::ScoStored { sco: upload.sco });
    }
}

/// One try.
async fn put(shared: &Shared, subject: &Subject, upload: &Upload) -> Result<(), String> {
    let name = ObjectName::Sco {
        volume: subject.volume,
        id: upload.sco,
        epoch: upload.epoch,
        version: 0,
    };
    let cause = match read(upload).await {
        Ok(bytes) => match shared.store.put(&subject.pool, name, bytes).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Refused(refusal)) if refusal.code == RefusalCode::Exists => {
                format!("SCO {} is not the same here as on the back ends", upload.sco)
            }
            Err(error) => return Err(error.to_string()),
        },
        Err(error) => format!("SCO {} cannot be read from the write buffer: {error}", upload.sco),
    };
    // An earlier try may have stored it, while the file was good, and its answer was lost.
    match stored::is_whole(shared, subject, name, upload).await {
        Ok(()) => {
            tracing::warn!(volume = %subject.path, cause, "the back ends have the SCO, checked: it counts as stored");
            Ok(())
        }
        Err(why) => Err(format!("{cause}, and {why}")),
    }
}

async fn read(upload: &Upload) -> std::io::Result<Bytes> {
    let (file, length, tlog_len) = (Arc::clone(&upload.file), upload.length.0, upload.tlog_len.0);
    sconce_runtime::blocking(move || file.object(length, tlog_len))
        .await
        .map_err(std::io::Error::other)?
}
