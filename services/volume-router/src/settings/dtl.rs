//! `[dtl]`: twins of write buffers on other volume-routers.
//!
//! Keeps: the section and its defaults.
//! Order: none.
//! Crash: nothing.
//! Knows no component.

use std::time::Duration;

use sconce_runtime::settings::{ByteSize, Interval};
use serde::Deserialize;

use super::{SettingError, check};

/// The section.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DtlSettings {
    /// How long a twin may take to answer before it counts as lost: for so long guests' writes wait for one that does not.
    pub timeout: Interval,
    /// How far a twin may be behind what is acknowledged in asynchronous mode.
    pub behind: ByteSize,
}

impl Default for DtlSettings {
    fn default() -> Self {
        Self {
            timeout: Interval::new(Duration::from_secs(2)),
            behind: ByteSize::new(16 << 20),
        }
    }
}

impl DtlSettings {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        check(
            "dtl.timeout",
            (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&self.timeout.duration()),
            self.timeout,
            "within 100ms to 1min",
        )?;
        check(
            "dtl.behind",
            (64 << 10..=1 << 30).contains(&self.behind.bytes()),
            self.behind,
            "within 64 KiB and 1 GiB",
        )
    }
}
