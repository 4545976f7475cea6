//! What the service tells of itself as metrics: what its threads count, and what its volumes say of themselves.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no reader. A volume that does not answer in time is left out, and the page says so.

use std::time::Duration;

use futures_util::future::join_all;
use sconce_schemas::records::DtlState;
use sconce_schemas::wire::volume::VolumeStatus;
use sconce_tracing::Action;
use sconce_tracing::metrics::{Metric, OfOperations, Operations, Page};
use tokio::time::timeout;

use crate::node::Node;

/// How long a volume may take to answer: its thread may have much to do.
const VOLUME_WITHIN: Duration = Duration::from_secs(2);

/// Puts all on a page.
pub(crate) async fn tell(node: &Node, page: &mut Page) {
    operations(node, page);
    buffer(node, page);
    uploads(node, page);
    let volumes = node.volumes.all();
    let shown = volumes
        .iter()
        .map(|(_, handle)| timeout(VOLUME_WITHIN, handle.show()));
    for shown in join_all(shown).await {
        match shown {
            Ok(Ok(status)) => volume(page, &status),
            // It is gone.
            Ok(Err(_)) => {}
            Err(_) => page.left_out(),
        }
    }
}

fn operations(node: &Node, page: &mut Page) {
    let of = OfOperations {
        seconds: Metric::VolumeSeconds,
        bytes: Metric::VolumeBytes,
        errors: Metric::VolumeErrors,
    };
    let shards: Vec<&Operations> = node.counts.iter().map(|shard| &shard.operations).collect();
    page.operations(of, &[], &Action::OF_CLIENTS, &shards);
    for (number, shard) in node.counts.iter().enumerate() {
        page.number(Metric::ShardOperations, &[&number.to_string()], shard.under_way());
    }
    page.number(Metric::ShardOperationsMax, &[], node.operations_max as u64);
}

fn buffer(node: &Node, page: &mut Page) {
    let usage = node.device.usage();
    page.number(Metric::BufferSize, &[], usage.size.0);
    page.number(Metric::BufferAllocated, &[], usage.allocated.0);
    page.number(Metric::BufferUnstored, &[], usage.unstored.0);
    page.number(Metric::BufferCached, &[], usage.cached.0);
    page.number(Metric::BufferWaiting, &[], usage.waiting as u64);
}

fn uploads(node: &Node, page: &mut Page) {
    let counts = node.background.uploads();
    page.histogram(Metric::Uploads, &[], [&counts.took]);
    page.number(Metric::UploadedBytes, &[], counts.bytes());
    page.number(Metric::UploadErrors, &[], counts.errors());
    let room = node.background.usage();
    for (pool, usage) in room.pools() {
        page.number(Metric::UploadsUnderWay, &[&pool], usage.requests() as u64);
        page.number(Metric::UploadsWaiting, &[&pool], usage.waiting() as u64);
        page.number(Metric::UploadBytesUnderWay, &[&pool], usage.bytes());
    }
    page.number(Metric::UploadsMax, &[], room.requests_max as u64);
    page.number(Metric::UploadBytesMax, &[], room.bytes_max);
}

fn volume(page: &mut Page, status: &VolumeStatus) {
    let id = status.id.to_string();
    let path = status.path.as_deref().unwrap_or_default();
    page.number(Metric::VolumeInfo, &[&id, path], 1);
    let labels = [id.as_str()];
    page.yes_or_no(Metric::VolumeServing, &labels, status.state == "serving");
    if status.state != "serving" {
        // What it would say of itself is not known.
        return;
    }
    page.number(Metric::VolumeSize, &labels, status.size.bytes());
    page.number(Metric::VolumeAllocated, &labels, status.allocated.0);
    page.number(Metric::VolumeUnstored, &labels, status.unstored.0);
    page.number(Metric::VolumeMapMemory, &labels, status.map_memory.0);
    for (state, name) in [
        (DtlState::InSync, "in_sync"),
        (DtlState::Degraded, "degraded"),
        (DtlState::Off, "off"),
    ] {
        page.yes_or_no(Metric::VolumeDtl, &[&id, name], status.dtl_state == state);
    }
    if let Some(scrub) = &status.scrub {
        page.number(Metric::ScrubDead, &labels, scrub.dead.0);
        page.number(Metric::ScrubDue, &labels, scrub.to_win.0);
        page.number(Metric::ScrubWon, &labels, scrub.won.0);
        page.number(Metric::ScrubRewritten, &labels, scrub.rewritten);
        page.number(Metric::ScrubRemoved, &labels, scrub.removed);
        page.number(Metric::ScrubErrors, &labels, scrub.failures);
    }
}
