//! Recovery: the engine asks step by step, this gives it SCOs and nodes.
//!
//! Keeps: nothing.
//! Order: local files first, then the back ends.
//! Crash: begun again, in a higher epoch.
//! Knows no clients. Runs on a thread of its own: a long replay holds up no other volume.

use std::sync::Arc;

use sconce_schemas::manifest::Manifest;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, VolumeId};
use sconce_volume::{Origin, Recovered, Recovery, ScoImage, Step, Volume, VolumeConfig};
use tokio::runtime::Handle;

use super::StartError;
use crate::background::{Background, Subject};
use crate::device::FoundSco;

/// What a recovery reads from.
pub(super) struct Source {
    pub(super) background: Background,
    pub(super) subject: Subject,
    pub(super) lineage: Arc<[VolumeId]>,
    pub(super) sco_size: ScoSize,
    /// The volume's files in the write buffer.
    pub(super) found: Vec<FoundSco>,
    /// A person accepts the loss of what is damaged.
    pub(super) force: bool,
    /// The ownership whose SCOs were all written to this write buffer, the last one if the record says so: what is not
    /// in the buffer then is nowhere, or covered by the manifest. SCOs of earlier ones may have been taken over from
    /// the back ends.
    pub(super) epoch_here: Option<Epoch>,
}

/// Recovers the volume.
pub(super) async fn run(
    source: Source,
    config: VolumeConfig,
    manifest: Option<Manifest>,
) -> Result<(Volume, Recovered), StartError> {
    let handle = Handle::current();
    let steps = tokio::task::spawn_blocking(move || steps(&source, config, manifest.as_ref(), &handle));
    steps.await.map_err(|panic| {
        let text = format!("recovery panicked: {panic}");
        StartError::Later(Refusal::retry(RefusalCode::Internal, text))
    })?
}

fn steps(
    source: &Source,
    config: VolumeConfig,
    manifest: Option<&Manifest>,
    handle: &Handle,
) -> Result<(Volume, Recovered), StartError> {
    let headers: Vec<ScoHeader> = source.found.iter().map(|found| found.header).collect();
    let mut recovery = Recovery::new(config, manifest, &headers)
        .map_err(|error| StartError::Later(Refusal::retry(RefusalCode::Internal, error.to_string())))?;
    loop {
        match recovery.step() {
            Step::NeedSco {
                sco,
                epoch,
                stored_only,
                data,
            } => recovery.sco(source.sco(sco, epoch, stored_only, data, handle)?),
            Step::NeedNode { place, reference } => {
                let node = source.background.node(
                    source.subject.clone(),
                    Arc::clone(&source.lineage),
                    place,
                    reference,
                );
                recovery.node(handle.block_on(node));
            }
            Step::Failed(refusal) => return Err(StartError::Later(refusal)),
            Step::Done => break,
        }
    }
    let (volume, recovered) = recovery.finish();
    match &recovered.damaged {
        Some(damage) if source.force => {
            tracing::warn!(volume = %source.subject.path, %damage, "served without what is lost, as an operator asked");
        }
        Some(damage) => {
            let text = format!(
                "volume {}: {damage}. Its files are kept; `sconce volume takeover --force` serves it without what is lost",
                source.subject.path
            );
            return Err(StartError::Refused(Refusal::retry(
                RefusalCode::WaitsForOwner,
                text,
            )));
        }
        None => {}
    }
    Ok((volume, recovered))
}

impl Source {
    fn sco(
        &self,
        sco: ScoId,
        epoch: Epoch,
        stored_only: bool,
        data: bool,
        handle: &Handle,
    ) -> Result<Option<ScoImage>, StartError> {
        let length = if data {
            self.sco_size.file_len()
        } else {
            self.sco_size.data_offset()
        };
        let local = self
            .found
            .iter()
            .find(|found| found.header.id == sco && found.header.epoch == epoch);
        if let Some(found) = local.filter(|_| !stored_only) {
            let bytes = found.file.image(length).map_err(|error| {
                let text = format!(
                    "volume {}: SCO {sco} cannot be read from the write buffer: {error}",
                    self.subject.path
                );
                StartError::Later(Refusal::retry(RefusalCode::Unavailable, text))
            })?;
            return Ok(Some(ScoImage {
                bytes,
                origin: Origin::Local,
            }));
        }
        if self.epoch_here == Some(epoch) && !stored_only {
            return Ok(None);
        }
        let stored = self
            .background
            .sco(self.subject.clone(), sco, epoch, ByteLen(length));
        Ok(handle.block_on(stored)?)
    }
}
