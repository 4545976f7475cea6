//! For how long the same volume-routers run.
//!
//! Keeps: who ran at the last look and since when, and when that changed last.
//! Order: looks are told in the order of their times.
//! Crash: the next one begins anew, and waits anew.
//! Knows no clock: the time of a look comes with it, as what passed since some moment of the caller's.

use std::collections::BTreeMap;
use std::time::Duration;

use sconce_schemas::NodeName;

use crate::Pool;

/// Lives with whoever looks.
#[derive(Debug, Clone, Default)]
pub struct Stable {
    /// The process, whether it is drained, and since when that is so.
    seen: BTreeMap<NodeName, (u32, bool, Duration)>,
    changed: Option<Duration>,
}

impl Stable {
    /// Tells of a look.
    pub fn look(&mut self, pool: &Pool, now: Duration) {
        let before = std::mem::take(&mut self.seen);
        for router in pool.routers().values() {
            let is_drained = pool.drained().contains(&router.name);
            let same =
                |(pid, drained, _): &&(u32, bool, Duration)| (*pid, *drained) == (router.pid, is_drained);
            let since = before.get(&router.name).filter(same);
            let since = since.map_or(now, |(_, _, since)| *since);
            self.seen
                .insert(router.name.clone(), (router.pid, is_drained, since));
        }
        if self.changed.is_none() || self.seen != before {
            self.changed = Some(now);
        }
    }

    /// For how long the same processes run, and the same of them are drained.
    #[must_use]
    pub fn stable_for(&self, now: Duration) -> Duration {
        self.changed
            .map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// For how long this one runs and is drained or is not; zero where it does not run.
    #[must_use]
    pub fn there_for(&self, node: &NodeName, now: Duration) -> Duration {
        let seen = self.seen.get(node);
        seen.map_or(Duration::ZERO, |(_, _, since)| now.saturating_sub(*since))
    }
}
