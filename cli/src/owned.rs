//! Keeps: what `sconce status` says of the volumes: who owns them since when, what is at risk, what waits for whom.
//! Order, crash: nothing is changed.
//! Knows the registry's records and what owners said; asks nobody.

use std::collections::BTreeMap;

use comfy_table::Table;
use sconce_fs_router::peers::{is_served, is_starting};
use sconce_schemas::records::{DtlMode, DtlState, VolumeRecord};
use sconce_schemas::wire::volume::VolumeStatus;
use sconce_schemas::{NodeName, VolumeId};
use serde::Serialize;

use crate::size::shown;
use crate::view::{LastMoveView, MovingView, columns, dtl_name, time_shown, unknown, why_shown};

/// Volumes that a table lists; the others are counted.
pub const LISTED_MAX: usize = 20;
/// Volumes that are named in one line.
pub const NAMED_MAX: usize = 5;

/// A volume and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnedView {
    /// Path in the pool's tree, or the id where nobody knows it.
    pub path: String,
    /// The volume's id.
    pub id: String,
    /// The volume-router that serves it, or is to serve it.
    pub owner: String,
    /// Number of the ownership; 0 before the first.
    pub epoch: u64,
    /// When the ownership began; null where it is not known.
    pub owned_since: Option<String>,
    /// `serving`, `starting`, `waits`, or `unknown` where its owner did not say.
    pub state: String,
    /// Since when it is served, or is not; null where nobody said.
    pub state_since: Option<String>,
    /// What a twin of its write buffer is waited for: `none`, `async` or `sync`.
    pub dtl_mode: String,
    /// `in_sync`, `degraded` or `off`.
    pub dtl_state: String,
    /// Since when that is so; null where it is not known.
    pub dtl_since: Option<String>,
    /// The volume-router that has the twin, or is getting it.
    pub dtl_host: Option<String>,
    /// Why it has no twin that is in sync, where something went wrong.
    pub dtl_trouble: Option<String>,
    /// The failure domain that the owner and the twin are both in; missing where they are in different ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtl_shared_domain: Option<String>,
    /// The move that is under way; missing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<MovingView>,
    /// The last move that is over; missing where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_move: Option<LastMoveView>,
    /// Acknowledged bytes that are not on the back ends; null where nobody said.
    pub unstored_bytes: Option<u64>,
    /// Acknowledged bytes that are in one write buffer alone; null: there may be some, and nobody can say how many.
    pub at_risk_bytes: Option<u64>,
    /// What it waits for, and with which command to go on; null where it does not wait.
    pub needs: Option<String>,
    /// The node of the front end that may write it; null where it is shared, or nobody writes.
    pub writer: Option<String>,
}

/// How many volumes are how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VolumeCounts {
    /// All of them.
    pub total: usize,
    /// Served.
    pub serving: usize,
    /// Being recovered.
    pub starting: usize,
    /// Waiting for something that does not come by itself, or only in time.
    pub waiting: usize,
    /// Of which their owners did not say.
    pub unknown: usize,
    /// With a twin that has every acknowledged write.
    pub in_sync: usize,
    /// That want a twin, and have none that is in sync.
    pub degraded: usize,
    /// That want none.
    pub without_twin: usize,
}

/// What the loss of one node's write buffer would lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RiskView {
    /// The node.
    pub node: String,
    /// Volumes with acknowledged bytes that are there alone.
    pub volumes: usize,
    /// Those bytes.
    pub bytes: u64,
    /// Volumes that may have some, while nobody can say how many.
    pub unknown_volumes: usize,
    /// The first of all of them, those with the most bytes first.
    pub paths: Vec<String>,
}

/// What is known of one volume.
struct Known<'a> {
    record: &'a VolumeRecord,
    said: Option<&'a VolumeStatus>,
}

/// What is known of all volumes.
pub struct Owned<'a> {
    volumes: Vec<Known<'a>>,
    /// With their failure domains.
    running: BTreeMap<&'a NodeName, &'a str>,
}

impl<'a> Owned<'a> {
    /// `said`: what each volume-router that answered said of its volumes; `running`: the nodes in the registry, with their failure domains.
    #[must_use]
    pub fn new(
        records: &'a [VolumeRecord],
        said: &[(&'a NodeName, &'a [VolumeStatus])],
        running: impl Iterator<Item = (&'a NodeName, &'a str)>,
    ) -> Self {
        // An owner that was replaced, and does not know it yet, says nothing that counts.
        let by_volume: BTreeMap<(VolumeId, &NodeName), &VolumeStatus> = said
            .iter()
            .flat_map(|(node, volumes)| volumes.iter().map(|status| ((status.id, *node), status)))
            .collect();
        let known = |record: &'a VolumeRecord| Known {
            record,
            said: by_volume.get(&(record.id, &record.owner)).copied(),
        };
        Self {
            volumes: records.iter().map(known).collect(),
            running: running.collect(),
        }
    }

    /// Volumes that are named by more than their ids: all, or only those that a table shows.
    #[must_use]
    pub fn to_name(&self, all: bool) -> Vec<VolumeId> {
        let wanted = match all {
            true => (0..self.volumes.len()).collect(),
            false => attention(&self.views(&BTreeMap::new())),
        };
        let shown = if all { usize::MAX } else { LISTED_MAX };
        let known = wanted.into_iter().take(shown).map(|at| &self.volumes[at]);
        known
            .filter(|known| path_of(known).is_none())
            .map(|known| known.record.id)
            .collect()
    }

    /// For people and programs. `paths`: of those that nobody named.
    #[must_use]
    pub fn views(&self, paths: &BTreeMap<VolumeId, String>) -> Vec<OwnedView> {
        let view = |known: &Known<'_>| self.view(known, paths);
        self.volumes.iter().map(view).collect()
    }

    fn view(&self, known: &Known<'_>, paths: &BTreeMap<VolumeId, String>) -> OwnedView {
        let (record, state) = (known.record, self.state(known));
        let by_name = path_of(known).or_else(|| paths.get(&record.id).map(String::as_str));
        let path = by_name.map_or_else(|| record.id.to_string(), str::to_owned);
        let served = known.said.filter(|said| is_served(said));
        let dtl_state = served.map_or(record.dtl_state, |said| said.dtl_state);
        let host = served.map_or(record.dtl_host.as_ref(), |said| said.dtl_host.as_ref());
        let domain_of = |node: &NodeName| self.running.get(node).copied();
        let shared = host
            .and_then(domain_of)
            .filter(|its| domain_of(&record.owner) == Some(its));
        let unstored = served.map(|said| said.unstored.0);
        let at_risk = match (dtl_state, &record.buffer, unstored) {
            // What nobody ever wrote to, or was released, is on the back ends.
            (DtlState::InSync, ..) | (_, None, None) => Some(0),
            (_, _, unstored) => unstored,
        };
        OwnedView {
            id: record.id.to_string(),
            owner: record.owner.to_string(),
            epoch: served.map_or(record.epoch, |said| said.epoch).0,
            owned_since: record.epoch_since_us.map(time_shown),
            state: state.name().to_owned(),
            state_since: known.said.and_then(|said| said.state_since_us).map(time_shown),
            dtl_mode: record.dtl_mode.as_str().to_owned(),
            dtl_state: dtl_name(dtl_state).to_owned(),
            dtl_since: record.dtl_since_us.map(time_shown),
            dtl_host: host.map(ToString::to_string),
            dtl_trouble: served.and_then(|said| said.dtl_trouble.clone()),
            dtl_shared_domain: shared.map(str::to_owned),
            moving: record.moving.as_ref().map(MovingView::from),
            last_move: record.last_move.as_ref().map(LastMoveView::from),
            unstored_bytes: unstored,
            at_risk_bytes: at_risk,
            writer: record.access.held_by().map(|holder| holder.node.to_string()),
            needs: (state == State::Waits).then(|| self.needs(known, &path)),
            path,
        }
    }

    fn state(&self, known: &Known<'_>) -> State {
        match known.said {
            Some(said) if is_served(said) => State::Serving,
            Some(said) if is_starting(said) => State::Starting,
            Some(_) => State::Waits,
            None if !self.running.contains_key(&known.record.owner) => State::Waits,
            None => State::Unknown,
        }
    }

    /// What a volume that is not served waits for, and how to go on.
    fn needs(&self, known: &Known<'_>, path: &str) -> String {
        if let Some(said) = known.said {
            return said.state.clone();
        }
        let record = known.record;
        let owner = &record.owner;
        let force = format!("sconce volume takeover {path} --force");
        match (record.dtl_state, &record.dtl_host, &record.buffer) {
            (_, _, None) => format!(
                "its owner {owner} is not running. Nothing of it is only in a write buffer: start {owner}, or go on with: \
                 sconce volume takeover {path}"
            ),
            (DtlState::InSync, Some(host), _) if self.running.contains_key(host) => format!(
                "its owner {owner} is not running. Its twin at {host} has every acknowledged write: {host} takes it over by \
                 itself, or with: sconce volume takeover {path} --to {host}"
            ),
            (DtlState::InSync, Some(host), _) => format!(
                "its owner {owner} is not running, nor is {host}, whose twin has every acknowledged write. Start one of the \
                 two; or give up what is not on the back ends, with: {force}"
            ),
            (_, _, Some(buffer)) => format!(
                "its owner {owner} is not running, and acknowledged writes may be only in its write buffer {buffer}. Start \
                 {owner} with that buffer; or give up what is not on the back ends, with: {force}"
            ),
        }
    }
}

fn path_of<'a>(known: &Known<'a>) -> Option<&'a str> {
    let path = known.said.and_then(|said| said.path.as_deref());
    path.filter(|path| !path.is_empty())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Starting,
    Waits,
    Unknown,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Starting => "starting",
            Self::Waits => "waits",
            Self::Unknown => "unknown",
        }
    }
}

/// How many volumes are how.
#[must_use]
pub fn counts(views: &[OwnedView]) -> VolumeCounts {
    let state = |name: &str| views.iter().filter(|view| view.state == name).count();
    let dtl = |name: &str| views.iter().filter(|view| view.dtl_state == name).count();
    VolumeCounts {
        total: views.len(),
        serving: state("serving"),
        starting: state("starting"),
        waiting: state("waits"),
        unknown: state("unknown"),
        in_sync: dtl("in_sync"),
        degraded: dtl("degraded"),
        without_twin: dtl("off"),
    }
}

/// What the loss of each node's write buffer would lose, the most first; nothing where that is nothing.
#[must_use]
pub fn risks(views: &[OwnedView]) -> Vec<RiskView> {
    let mut by_owner: BTreeMap<&str, Vec<&OwnedView>> = BTreeMap::new();
    for view in views {
        if view.at_risk_bytes != Some(0) {
            by_owner.entry(&view.owner).or_default().push(view);
        }
    }
    let risk = |(node, mut owned): (&str, Vec<&OwnedView>)| {
        owned.sort_by_key(|view| std::cmp::Reverse(view.at_risk_bytes.unwrap_or(0)));
        let known = owned.iter().filter_map(|view| view.at_risk_bytes);
        RiskView {
            node: node.to_owned(),
            volumes: known.clone().count(),
            bytes: known.clone().sum(),
            unknown_volumes: owned.len() - known.count(),
            paths: owned
                .iter()
                .take(NAMED_MAX)
                .map(|view| view.path.clone())
                .collect(),
        }
    };
    let mut risks: Vec<RiskView> = by_owner.into_iter().map(risk).collect();
    risks.sort_by_key(|risk| std::cmp::Reverse((risk.unknown_volumes > 0, risk.bytes)));
    risks
}

/// What is wrong with the volumes, for people.
#[must_use]
pub fn problems(views: &[OwnedView]) -> Vec<String> {
    let waiting: Vec<&OwnedView> = views.iter().filter(|view| view.needs.is_some()).collect();
    let mut problems: Vec<String> = waiting
        .iter()
        .take(NAMED_MAX)
        .filter_map(|view| Some(format!("{}: {}", view.path, view.needs.as_ref()?)))
        .collect();
    if waiting.len() > NAMED_MAX {
        problems.push(format!(
            "{} more volumes are not served: --output json lists them",
            waiting.len() - NAMED_MAX
        ));
    }
    let mode = DtlMode::Sync.as_str();
    let alone = |view: &&OwnedView| {
        view.state == "serving" && view.dtl_mode == mode && view.dtl_state == dtl_name(DtlState::Degraded)
    };
    let alone: Vec<&OwnedView> = views.iter().filter(alone).collect();
    if !alone.is_empty() {
        problems.push(format!(
            "{} volumes with --dtl sync have no twin that is in sync, so that what they acknowledge is in one write buffer \
             alone until it is stored: {}",
            alone.len(),
            named(alone.iter().map(|view| view.path.as_str()))
        ));
    }
    let beside = |view: &&OwnedView| {
        let is_in_sync = view.dtl_mode == mode && view.dtl_state == dtl_name(DtlState::InSync);
        view.state == "serving" && is_in_sync && view.dtl_shared_domain.is_some()
    };
    let beside: Vec<&OwnedView> = views.iter().filter(beside).collect();
    if !beside.is_empty() {
        problems.push(format!(
            "{} volumes with --dtl sync have their twin in their owner's failure domain, so that the loss of a process is survived, and \
             that of the domain is not: {}",
            beside.len(),
            named(beside.iter().map(|view| view.path.as_str()))
        ));
    }
    problems
}

fn named<'a>(paths: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = if paths.len() > NAMED_MAX { ", …" } else { "" };
    let first: Vec<&str> = paths.take(NAMED_MAX).collect();
    format!("{}{more}", first.join(", "))
}

/// In a line: how many volumes are how.
#[must_use]
pub fn counts_line(counts: &VolumeCounts) -> String {
    let parts = [
        (counts.serving, "serving"),
        (counts.starting, "starting"),
        (counts.waiting, "waiting"),
        (counts.unknown, "unknown"),
    ];
    let twins = [
        (counts.in_sync, "in sync"),
        (counts.degraded, "degraded"),
        (counts.without_twin, "without a twin"),
    ];
    let some = |parts: &[(usize, &str)]| {
        let some = parts.iter().filter(|(count, _)| *count > 0);
        let some: Vec<String> = some.map(|(count, what)| format!("{count} {what}")).collect();
        some.join(", ")
    };
    match counts.total {
        0 => "no volumes".to_owned(),
        total => format!("{total} volumes: {}; {}", some(&parts), some(&twins)),
    }
}

/// The volumes that a person should look at, by their places: what waits for a person first, then what may lose most.
fn attention(views: &[OwnedView]) -> Vec<usize> {
    let needed = |at: &usize| views[*at].state != "serving" || views[*at].dtl_state == "degraded";
    let mut found: Vec<usize> = (0..views.len()).filter(needed).collect();
    let rank = |at: &usize| {
        let at_risk = views[*at].at_risk_bytes.unwrap_or(u64::MAX);
        std::cmp::Reverse((views[*at].needs.is_some(), at_risk))
    };
    found.sort_by_key(rank);
    found
}

/// The volumes that a person should look at, as rows; nothing where there are none.
#[must_use]
pub fn attention_table(views: &[OwnedView]) -> Option<String> {
    let found: Vec<&OwnedView> = attention(views).into_iter().map(|at| &views[at]).collect();
    if found.is_empty() {
        return None;
    }
    let mut table = columns(
        &[
            "VOLUME",
            "OWNER",
            "EPOCH",
            "OWNED SINCE",
            "STATE",
            "SINCE",
            "DTL",
            "SINCE",
            "AT RISK",
        ],
        &[2, 8],
    );
    found
        .iter()
        .take(LISTED_MAX)
        .for_each(|view| add_row(&mut table, view));
    let mut text = table.trim_fmt();
    if found.len() > LISTED_MAX {
        text.push_str(&format!(
            "\n… and {} more: --output json lists them",
            found.len() - LISTED_MAX
        ));
    }
    let troubles = found.iter().take(NAMED_MAX).filter_map(|view| {
        let trouble = view.dtl_trouble.as_ref()?;
        Some(format!("\n  {}: {trouble}", view.path))
    });
    text.extend(troubles);
    Some(text)
}

fn add_row(table: &mut Table, view: &OwnedView) {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(unknown);
    let dtl = match view.dtl_mode.as_str() {
        "none" => view.dtl_state.clone(),
        mode => format!("{mode} {}", view.dtl_state),
    };
    table.add_row([
        view.path.clone(),
        view.owner.clone(),
        view.epoch.to_string(),
        or_unknown(&view.owned_since),
        view.state.clone(),
        or_unknown(&view.state_since),
        dtl,
        or_unknown(&view.dtl_since),
        view.at_risk_bytes.map_or_else(|| "unknown".to_owned(), shown),
    ]);
}

/// The volumes that are being moved, and those that were moved last without anybody asking, as rows; nothing where there are none.
#[must_use]
pub fn move_table(views: &[OwnedView]) -> Option<String> {
    let going = views.iter().filter_map(|view| {
        let moving = view.moving.as_ref()?;
        let since = "now".to_owned();
        Some([&view.path, &view.owner, &moving.to, &since, &moving.why].map(Clone::clone))
    });
    let mut gone: Vec<(&OwnedView, &LastMoveView)> = views
        .iter()
        .filter_map(|view| Some((view, view.last_move.as_ref().filter(|last| last.why != "asked")?)))
        .collect();
    // Of one form, so that their order is that of the times.
    gone.sort_by(|(_, one), (_, other)| other.at.cmp(&one.at));
    let gone = gone.into_iter().take(NAMED_MAX);
    let gone =
        gone.map(|(view, last)| [&view.path, &last.from, &last.to, &last.at, &last.why].map(Clone::clone));
    let rows: Vec<[String; 5]> = going.take(LISTED_MAX).chain(gone).collect();
    if rows.is_empty() {
        return None;
    }
    let mut table = columns(&["MOVED", "FROM", "TO", "WHEN", "WHY"], &[]);
    for mut row in rows {
        row[4] = why_shown(&row[4]).to_owned();
        table.add_row(row);
    }
    Some(table.trim_fmt())
}

/// What the loss of a node would lose, as rows; nothing where that is nothing.
#[must_use]
pub fn risk_table(risks: &[RiskView]) -> Option<String> {
    if risks.is_empty() {
        return None;
    }
    let mut table = columns(&["LOST WITH THE BUFFER OF", "BYTES", "VOLUMES", "WHICH"], &[1, 2]);
    for risk in risks {
        let volumes = risk.volumes + risk.unknown_volumes;
        let more = if volumes > risk.paths.len() { ", …" } else { "" };
        let bytes = match (risk.unknown_volumes, risk.bytes) {
            (0, bytes) => shown(bytes),
            (_, 0) => "unknown".to_owned(),
            (_, bytes) => format!("{} and more", shown(bytes)),
        };
        table.add_row([
            risk.node.clone(),
            bytes,
            volumes.to_string(),
            format!("{}{more}", risk.paths.join(", ")),
        ]);
    }
    Some(table.trim_fmt())
}

#[cfg(test)]
mod tests;
