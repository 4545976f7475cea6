//! An upload: a closed and synced SCO file becomes an object.
//!
//! Keeps: the SCO's bytes in memory while its turn lasts.
//! Order: none between SCOs; the manifest waits for all of them.
//! Crash: an object that the volume does not know of is put again: the same bytes succeed.
//! Knows no map.

use std::sync::Arc;

use bytes::Bytes;
use sconce_runtime::crash::{Point, hit};
use sconce_schemas::ObjectName;
use sconce_volume::Event;

use super::outage::Tried;
use super::{Shared, Upload};
use crate::actor::Owner;

/// Runs until the SCO is stored or its owner is owner no more.
pub(super) async fn run(shared: &Shared, owner: &Owner, upload: &Upload) {
    hit(Point::AfterScoClosed);
    let subject = owner.subject();
    let name = ObjectName::Sco {
        volume: subject.volume,
        id: upload.sco,
        epoch: upload.epoch,
        version: 0,
    };
    let _room = shared.room.take(upload.length.0).await;
    if !owner.is_current() {
        return;
    }
    let bytes = match read(upload).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let error = format!("SCO {} cannot be read for its upload: {error}", upload.sco);
            return owner.happened(Event::DeviceFailed { error });
        }
    };
    let put = || async {
        match shared.store.put(&subject.pool, name, bytes.clone()).await {
            Ok(()) => Tried::Over(()),
            Err(error) => Tried::Again(error),
        }
    };
    let stored = owner
        .outage()
        .endure("storing", &subject.path, || owner.is_current(), put);
    if stored.await.is_some() {
        hit(Point::AfterScoUploaded);
        owner.happened(Event::ScoStored { sco: upload.sco });
    }
}

async fn read(upload: &Upload) -> std::io::Result<Bytes> {
    let (file, length, tlog_len) = (Arc::clone(&upload.file), upload.length.0, upload.tlog_len.0);
    tokio::task::spawn_blocking(move || file.object(length, tlog_len))
        .await
        .map_err(std::io::Error::other)?
}
