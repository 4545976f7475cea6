//! `[placement]`: when volumes are moved by themselves.
//!
//! Keeps: the section and its defaults.
//! Order: none.
//! Crash: nothing.
//! Knows no component.

use std::time::Duration;

use sconce_balance::{Band, FollowRule};
use sconce_runtime::settings::{ByteSize, Interval};
use serde::Deserialize;

use super::{SettingError, check};

/// The section.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementSettings {
    /// Whether this node gives volumes to others that have fewer.
    pub rebalance: bool,
    /// Whether it gives volumes to where their IO comes from.
    pub follow_io: bool,
    /// How often it looks.
    pub every: Interval,
    /// For so long no volume-router has come or gone before it gives anything.
    pub stable: Interval,
    /// For so long a volume stays where it is after it came there, or was started there.
    pub settle: Interval,
    /// So many volumes more than another a node may have always.
    pub band: usize,
    /// So many of a hundred of the mean, where that is more.
    pub band_percent: usize,
    /// The time over which IO is counted.
    pub window: Interval,
    /// At least so much of a hundred of a volume's IO comes from where it goes.
    pub share: u8,
    /// At least so much IO there is within the window.
    pub io_min: ByteSize,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        Self {
            rebalance: true,
            follow_io: false,
            every: Interval::new(Duration::from_secs(5)),
            stable: Interval::new(Duration::from_secs(60)),
            settle: Interval::new(Duration::from_secs(1800)),
            band: 2,
            band_percent: 10,
            window: Interval::new(Duration::from_secs(300)),
            share: 80,
            io_min: ByteSize::new(64 << 20),
        }
    }
}

impl PlacementSettings {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        check(
            "placement.every",
            (Duration::from_millis(50)..=Duration::from_secs(3600)).contains(&self.every.duration()),
            self.every,
            "within 50ms to 1h",
        )?;
        check(
            "placement.window",
            (self.every.duration()..=Duration::from_secs(86_400)).contains(&self.window.duration()),
            self.window,
            "placement.every at least, 24h at most",
        )?;
        check(
            "placement.band",
            (1..=1_000_000).contains(&self.band),
            self.band,
            "within 1 to 1000000",
        )?;
        check(
            "placement.band_percent",
            self.band_percent <= 100,
            self.band_percent,
            "within 0 to 100",
        )?;
        // Below that two places could both have it.
        check(
            "placement.share",
            (51..=100).contains(&self.share),
            self.share,
            "within 51 to 100",
        )
    }

    pub(crate) const fn band(&self) -> Band {
        Band {
            volumes: self.band,
            percent: self.band_percent,
        }
    }

    pub(crate) const fn follow_rule(&self) -> FollowRule {
        FollowRule {
            percent: self.share,
            bytes_min: self.io_min.bytes(),
        }
    }
}
