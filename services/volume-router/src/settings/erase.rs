//! `[erase]`: deleted volumes, this node's and those of nodes that are gone.
//!
//! Keeps: the section and its defaults.
//! Order: none.
//! Crash: nothing.
//! Knows no component.

use std::time::Duration;

use sconce_runtime::settings::Interval;
use serde::Deserialize;

use super::{SettingError, check};

const DAY: Duration = Duration::from_hours(24);

/// The section.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EraseSettings {
    /// How long after the last object was removed the back ends are listed once more before the volume's record goes: a
    /// put that was under way at the deletion is over then.
    pub grace: Interval,
    /// How long a node is gone before others take its deletions over. So often it is looked whose are.
    pub adopt_after: Interval,
}

impl Default for EraseSettings {
    fn default() -> Self {
        Self {
            // A put takes up to 10 s, and half a second for each MiB of up to 96.
            grace: Interval::new(Duration::from_secs(120)),
            adopt_after: Interval::new(Duration::from_secs(600)),
        }
    }
}

impl EraseSettings {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        check(
            "erase.grace",
            self.grace.duration() <= DAY,
            self.grace,
            "at most 24h",
        )?;
        check(
            "erase.adopt_after",
            (Duration::from_secs(1)..=DAY).contains(&self.adopt_after.duration()),
            self.adopt_after,
            "within 1s to 24h",
        )
    }
}
