//! Keeps: what `sconce volume access` does, and how write access is shown.
//! Order: the owner changes it; what is shown is what the registry says after that.
//! Crash: a change that was not answered may be done; asking again does no harm.
//! Knows the registry's record.

use anyhow::{Context as _, Result};
use sconce_fs_router::names::Resolved;
use sconce_schemas::access::{Access, AccessChange, AccessMode};
use sconce_schemas::wire::volume::VolumeControl;
use serde::Serialize;

use crate::args::{AccessArguments, Format};
use crate::cluster::{Cluster, explained};
use crate::view::{columns, print, time_shown};
use crate::volume::OWNER_DEADLINE;

/// Which front ends may write a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccessView {
    /// `exclusive`: one at a time; `shared`: any.
    pub mode: AccessMode,
    /// The node of the front end that may write; null where none has written since it was given up, or where it is shared.
    pub holder: Option<String>,
    /// Since when.
    pub since: Option<String>,
    /// Until when the next other front end that writes takes it over; null where that is not so.
    pub hand_over_until: Option<String>,
}

impl AccessView {
    /// What the record says at that time, in microseconds since 1970.
    #[must_use]
    pub fn new(access: &Access, now_us: u64) -> Self {
        let held = access.held_by();
        let offered = access
            .hand_over_until_us
            .filter(|_| held.is_some() && access.is_offered(now_us));
        Self {
            mode: access.mode,
            holder: held.map(|holder| holder.node.to_string()),
            since: held.map(|holder| time_shown(holder.since_us)),
            hand_over_until: offered.map(time_shown),
        }
    }

    /// In a line.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut text = self.mode.as_str().to_owned();
        match (&self.holder, &self.since) {
            (Some(holder), Some(since)) => text.push_str(&format!(", {holder} writes since {since}")),
            _ if self.mode == AccessMode::Exclusive => text.push_str(", nobody writes"),
            _ => {}
        }
        if let Some(until) = &self.hand_over_until {
            text.push_str(&format!(", to be handed over until {until}"));
        }
        text
    }
}

/// What `sconce volume access` prints.
#[derive(Debug, Serialize)]
struct VolumeAccessView {
    /// The volume's path.
    path: String,
    /// The volume's id.
    id: String,
    /// Which front ends may write it.
    #[serde(flatten)]
    access: AccessView,
}

/// `sconce volume access`
pub(crate) async fn run(cluster: &Cluster, arguments: &AccessArguments, format: Format) -> Result<()> {
    let file = cluster.resolve(&arguments.path).await?;
    if let Some(change) = arguments.change() {
        set(cluster, &file, change).await?;
    }
    let record = cluster.names.volume(file.volume).await.map_err(explained)?;
    let now_us = sconce_runtime::Clock::system().unix_micros();
    let view = VolumeAccessView {
        path: file.path.to_string(),
        id: file.volume.to_string(),
        access: AccessView::new(&record.access, now_us),
    };
    print(format, &view, lines)
}

async fn set(cluster: &Cluster, file: &Resolved, change: AccessChange) -> Result<()> {
    let volume = file.volume;
    let set = VolumeControl::SetAccess { volume, change };
    let asked = cluster.owners.call(volume, set, OWNER_DEADLINE).await;
    asked.with_context(|| {
        let path = &file.path;
        format!("write access to {path} may be as it was: give the command again")
    })?;
    Ok(())
}

fn lines(view: &VolumeAccessView) -> String {
    let mut table = columns(&[], &[]);
    let mut line = |name: &str, value: &str| {
        table.add_row([name, value]);
    };
    line("path", &view.path);
    line("mode", view.access.mode.as_str());
    line("holder", view.access.holder.as_deref().unwrap_or("nobody"));
    if let Some(since) = &view.access.since {
        line("since", since);
    }
    if let Some(until) = &view.access.hand_over_until {
        line("handed over until", until);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use sconce_schemas::access::AccessHolder;

    use super::*;

    #[test]
    fn access_is_shown_with_who_has_it_and_who_may_take_it() {
        let mut access = Access::default();
        let shown = |access: &Access, now| AccessView::new(access, now).shown();
        assert_eq!(shown(&access, 0), "exclusive, nobody writes");
        access.holder = Some(AccessHolder {
            node: "hv-1".parse().unwrap(),
            since_us: 1_700_000_000_000_000,
            released: false,
        });
        access.hand_over_until_us = Some(1_700_000_300_000_000);
        assert_eq!(
            shown(&access, 1_700_000_000_000_000),
            "exclusive, hv-1 writes since 2023-11-14T22:13:20Z, to be handed over until 2023-11-14T22:18:20Z"
        );
        assert_eq!(
            shown(&access, 1_700_000_300_000_000),
            "exclusive, hv-1 writes since 2023-11-14T22:13:20Z"
        );
        access.mode = AccessMode::Shared;
        assert_eq!(shown(&access, 0), "shared");
    }
}
