//! `[scrub]` and `[sweep]`: giving back space.
//!
//! Keeps: the sections and their defaults.
//! Order: none.
//! Crash: nothing.
//! Knows no component.

use std::time::Duration;

use sconce_runtime::settings::{ByteSize, Interval};
use sconce_volume::{ScrubPolicy, SweepPolicy};
use serde::Deserialize;

use super::{SettingError, check, micros};

/// `[scrub]`: giving back the space of what nothing refers to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubSettings {
    /// Whether it runs. What was given up before is deleted in any case.
    pub enabled: bool,
    /// So much of what a volume takes on the back ends is to be live, in percent.
    pub utilisation: u8,
    /// Bytes a second that are read and written for it by this node.
    pub bandwidth: ByteSize,
    /// Requests a second that it sends to storage-routers.
    pub operations: u32,
    /// How long an object stays that no manifest refers to any more: reads that were told of it are over then.
    pub grace: Interval,
    /// When other volume-routers of the pool are asked to write bundles.
    pub help: ScrubHelp,
    /// How long one of them may take: then it is done here.
    pub help_within: Interval,
}

/// When other volume-routers are asked to do what scrubbing reads and writes. Each decides by its own budget whether it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubHelp {
    /// Never.
    #[default]
    Off,
    /// Where this node's budget is used up, or its guests are at work.
    WhenBusy,
    /// Before this node does any of it itself.
    Always,
}

impl Default for ScrubSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            utilisation: 80,
            bandwidth: ByteSize::new(64 << 20),
            operations: 200,
            grace: Interval::new(Duration::from_secs(60)),
            help: ScrubHelp::Off,
            help_within: Interval::new(Duration::from_secs(30)),
        }
    }
}

/// `[sweep]`: looking for objects that nothing refers to, within the budget of `[scrub]`. What is garbage goes `scrub.grace`
/// after it was found.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SweepSettings {
    /// Whether all objects of a volume are looked at once it is opened, and from time to time; what becomes garbage in good order
    /// goes in any case.
    pub enabled: bool,
    /// How often.
    pub every: Interval,
    /// How long after a pass the next one begins at the earliest.
    pub pause: Interval,
}

impl Default for SweepSettings {
    fn default() -> Self {
        let policy = SweepPolicy::default();
        Self {
            enabled: true,
            every: Interval::new(Duration::from_micros(policy.every_us)),
            pause: Interval::new(Duration::from_micros(policy.pause_us)),
        }
    }
}

impl ScrubSettings {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        check(
            "scrub.bandwidth",
            self.bandwidth.bytes() >= 1 << 20,
            self.bandwidth,
            "at least 1 MiB",
        )?;
        check(
            "scrub.operations",
            self.operations >= 1,
            self.operations,
            "at least 1",
        )?;
        check(
            "scrub.utilisation",
            (50..=95).contains(&self.utilisation),
            self.utilisation,
            "within 50 to 95",
        )?;
        check(
            "scrub.help_within",
            (Duration::from_millis(100)..=Duration::from_secs(300)).contains(&self.help_within.duration()),
            self.help_within,
            "within 100ms to 5min",
        )?;
        Ok(())
    }

    /// When scrubbing is worth it.
    pub(crate) fn policy(&self) -> ScrubPolicy {
        ScrubPolicy {
            enabled: self.enabled,
            utilisation_percent: self.utilisation,
            grace_us: micros(self.grace),
            ..ScrubPolicy::default()
        }
    }
}

impl SweepSettings {
    /// When what was left behind is looked for.
    pub(crate) fn policy(&self, scrub: &ScrubSettings) -> SweepPolicy {
        let every = if self.enabled { micros(self.every) } else { 0 };
        SweepPolicy {
            every_us: every,
            pause_us: micros(self.pause),
            grace_us: micros(scrub.grace),
        }
    }
}
