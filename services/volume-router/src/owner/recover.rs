//! Recovery: the engine asks step by step, this gives it SCOs and nodes.
//!
//! Keeps: nothing.
//! Order: local files first, then the back ends.
//! Crash: begun again, in a higher epoch.
//! Knows no clients. What reads files runs on a blocking thread, so that a long replay holds up no other volume; what
//! waits for the back ends waits without one, so that many recoveries leave threads for syncs and reads.

use std::sync::Arc;

use sconce_schemas::checkpoint::{NodePlace, NodeRef};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, VolumeId};
use sconce_volume::{Origin, Recovered, Recovery, ScoImage, Step, Volume, VolumeConfig};

use super::StartError;
use crate::background::{Background, Subject};
use crate::device::{Device, FoundSco, Sought};

/// What a recovery reads from.
pub(super) struct Source {
    pub(super) background: Background,
    pub(super) device: Device,
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

/// What a recovery waits for that is not on this machine.
enum Need {
    Nothing,
    Node(NodePlace, NodeRef),
    Sco {
        sco: ScoId,
        epoch: Epoch,
        length: ByteLen,
        /// Why the write buffer's copy, if there is one, is not to be had.
        unreadable: Option<String>,
    },
}

/// Where the write buffer stands to a SCO.
enum Local {
    Here(ScoImage),
    Nowhere,
    /// Perhaps on the back ends; with why it may be here all the same and cannot be read.
    Elsewhere(Option<String>),
}

/// Recovers the volume.
pub(super) async fn run(
    source: Source,
    config: VolumeConfig,
    manifest: Option<Manifest>,
) -> Result<(Volume, Recovered), StartError> {
    let headers: Vec<ScoHeader> = source.found.iter().map(|found| found.header).collect();
    let mut recovery = Recovery::new(config, manifest.as_ref(), &headers)
        .map_err(|error| StartError::Later(Refusal::retry(RefusalCode::Internal, error.to_string())))?;
    let source = Arc::new(source);
    loop {
        let here = Arc::clone(&source);
        let went = sconce_runtime::blocking(move || {
            let need = go_on(&mut recovery, &here)?;
            Ok::<_, StartError>((recovery, need))
        });
        let need;
        (recovery, need) = went.await.map_err(|panic| {
            let text = format!("recovery panicked: {panic}");
            StartError::Later(Refusal::retry(RefusalCode::Internal, text))
        })??;
        match need {
            Need::Nothing => return source.judge(recovery.finish()),
            Need::Node(place, reference) => {
                let (subject, lineage) = (source.subject.clone(), Arc::clone(&source.lineage));
                let node = source.background.node(subject, lineage, place, reference);
                recovery.node(node.await);
            }
            Need::Sco {
                sco,
                epoch,
                length,
                unreadable,
            } => {
                let stored = source.background.sco(source.subject.clone(), sco, epoch, length);
                let stored = stored.await?;
                if let (None, Some(cause)) = (&stored, unreadable) {
                    source.without(sco, &cause)?;
                }
                recovery.sco(stored);
            }
        }
    }
}

/// Goes on as far as it gets with what is on this machine. Blocks.
fn go_on(recovery: &mut Recovery, source: &Source) -> Result<Need, StartError> {
    loop {
        match recovery.step() {
            Step::NeedSco {
                sco,
                epoch,
                stored_only,
                data,
            } => {
                let length = source.length(data);
                let local = match stored_only {
                    true => Local::Elsewhere(None),
                    false => source.local(sco, epoch, length)?,
                };
                match local {
                    Local::Here(image) => recovery.sco(Some(image)),
                    Local::Nowhere => recovery.sco(None),
                    Local::Elsewhere(unreadable) => {
                        return Ok(Need::Sco {
                            sco,
                            epoch,
                            length: ByteLen(length),
                            unreadable,
                        });
                    }
                }
            }
            Step::NeedNode { place, reference } => return Ok(Need::Node(place, reference)),
            Step::Failed(refusal) => return Err(StartError::Later(refusal)),
            Step::Done => return Ok(Need::Nothing),
        }
    }
}

impl Source {
    fn length(&self, data: bool) -> u64 {
        if data {
            self.sco_size.file_len()
        } else {
            self.sco_size.data_offset()
        }
    }

    fn local(&self, sco: ScoId, epoch: Epoch, length: u64) -> Result<Local, StartError> {
        let is_it = |found: &&FoundSco| found.header.id == sco && found.header.epoch == epoch;
        if let Some(found) = self.found.iter().find(is_it) {
            return Ok(match found.file.image(length) {
                Ok(bytes) => Local::Here(ScoImage {
                    bytes,
                    origin: Origin::Local,
                }),
                Err(error) => Local::Elsewhere(Some(format!(
                    "SCO {sco} cannot be read from the write buffer: {error}"
                ))),
            });
        }
        let sought = Sought {
            volume: self.subject.volume,
            sco,
            epoch,
            size: self.sco_size,
        };
        match self.device.identify(&sought) {
            Ok(true) => {
                let text = format!("SCO {sco} of volume {} was found again", self.subject.path);
                Err(StartError::Later(Refusal::retry(RefusalCode::Unavailable, text)))
            }
            Ok(false) if self.epoch_here == Some(epoch) => Ok(Local::Nowhere),
            Ok(false) => Ok(Local::Elsewhere(None)),
            Err(cause) => Ok(Local::Elsewhere(Some(format!("{cause}, and may be SCO {sco}")))),
        }
    }

    /// A SCO that may have been acknowledged cannot be had: the end of the volume's log, if a person accepts that.
    fn without(&self, sco: ScoId, cause: &str) -> Result<(), StartError> {
        if self.force {
            tracing::warn!(volume = %self.subject.path, cause, "served without what is lost, as an operator asked");
            return Ok(());
        }
        Err(self.stuck(&format!("{cause}; there is no stored copy of SCO {sco} either")))
    }

    fn judge(&self, (volume, recovered): (Volume, Recovered)) -> Result<(Volume, Recovered), StartError> {
        match &recovered.damaged {
            Some(damage) if self.force => {
                tracing::warn!(volume = %self.subject.path, %damage, "served without what is lost, as an operator asked");
            }
            Some(damage) => return Err(self.stuck(&damage.to_string())),
            None => {}
        }
        Ok((volume, recovered))
    }

    fn stuck(&self, cause: &str) -> StartError {
        let path = &self.subject.path;
        let text = format!(
            "volume {path}: {cause}. Nothing of it is served and all of its files are kept. Bring back what is missing, \
             or accept the loss of it and of all that was written after it with: sconce volume takeover {path} --force"
        );
        StartError::Stuck(Refusal::retry(RefusalCode::WaitsForOwner, text))
    }
}
