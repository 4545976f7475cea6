//! Keeps: where an operator wants a volume and its twin to be.
//! Order: a wish is in the volume's record before the command that gives it ends; the owner follows its records.
//! Crash: a wish is there or not.
//! Knows nobody's load.

use sconce_schemas::VolumeId;
use sconce_schemas::records::{TwinHost, VolumePhase, VolumeRecord, keys};

use super::changes::{Changes, Plan};
use super::{Names, NamesError};

impl Names {
    /// Notes where an operator wants a volume's twin to be; `None`: where its owner finds best.
    ///
    /// # Errors
    /// There is no such volume; the registry is unreachable.
    pub async fn set_twin_host(&self, volume: VolumeId, host: Option<&TwinHost>) -> Result<(), NamesError> {
        self.change_volume(volume, |record| record.twin_host = host.cloned())
            .await
    }

    /// Notes whether a volume is moved only where an operator asks for that.
    ///
    /// # Errors
    /// As [`Names::set_twin_host`].
    pub async fn set_pinned(&self, volume: VolumeId, pinned: bool) -> Result<(), NamesError> {
        self.change_volume(volume, |record| record.pinned = pinned).await
    }

    async fn change_volume(
        &self,
        volume: VolumeId,
        edit: impl Fn(&mut VolumeRecord),
    ) -> Result<(), NamesError> {
        let at = || format!("volume {volume}");
        self.change(at, async |_| {
            let found = self.read::<VolumeRecord>(keys::volume(volume)).await?;
            let found = found.filter(|seen| seen.record.phase == VolumePhase::Active);
            let mut seen = found.ok_or_else(|| NamesError::NotFound { at: at() })?;
            let before = seen.record.clone();
            edit(&mut seen.record);
            let mut changes = Changes::default();
            if seen.record != before {
                changes.replace(&seen);
            }
            Ok(Plan { changes, outcome: () })
        })
        .await
    }
}
