//! Keeps: `sconce events`: the events of all services in one stream.
//! Order: what is known already comes in the order of the services' clocks, those of one service in its own order; what is followed comes as
//! it is told. A coming or going that several services saw is shown once.
//! Crash: nothing is kept; the command begins anew with what the services have.
//! Knows no kind of event: it shows what it is told, and what could not be had.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use sconce_fs_router::peers::PeerError;
use sconce_schemas::records::NodeRecord;
use sconce_schemas::wire::Role;
use sconce_schemas::wire::event::{EventPage, EventsAsk, PoolEvent, VolumeName, WAIT_MS_MAX, What};
use sconce_schemas::{NodeName, VolumeId};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{Events, Format, Moment, Since};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::view::time_shown;

/// How long a service is given beyond the wait that it was asked for.
const BEYOND_WAIT: Duration = LIVE_DEADLINE;
/// How often the registry is asked which services there are.
const LIST_EVERY: Duration = Duration::from_secs(2);
/// A service that did not answer, or at once with nothing, is asked again after this long.
const AGAIN: Duration = Duration::from_secs(1);
/// Within this, services tell of the same coming or going; their clocks differ by less.
const SAME_WITHIN_US: u64 = 30_000_000;

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventView {
    /// When, by the clock of whoever tells it (RFC 3339).
    pub time: String,
    /// The service that tells it; what cannot be had is told of the service that would have told it.
    pub node: String,
    /// Its number at that service; null for what is no event of its.
    pub seq: Option<u64>,
    /// What happened, in a word; `gap`: something that is not known.
    pub kind: String,
    /// `info`, `warning` or `error`.
    pub level: String,
    /// The volume's path; null where it is about none, or the path was not known.
    pub volume: Option<String>,
    /// The volume's id; null where it is about none.
    pub volume_id: Option<String>,
    /// For people.
    pub text: String,
    /// More of what happened, by kind.
    pub details: Map<String, Value>,
}

impl EventView {
    fn of(node: &NodeName, event: &PoolEvent) -> Self {
        let mut details = match serde_json::to_value(&event.what) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        details.remove("type");
        let path = event.volume.as_ref().map(|volume| volume.path.clone());
        Self {
            time: precisely(event.time_us),
            node: node.to_string(),
            seq: Some(event.seq),
            kind: event.what.name().to_owned(),
            level: event.level.as_str().to_owned(),
            volume: path.filter(|path| !path.is_empty()),
            volume_id: event.volume.as_ref().map(|volume| volume.id.to_string()),
            text: event.text.clone(),
            details,
        }
    }

    fn gap(node: &NodeName, time_us: u64, text: String) -> Self {
        Self {
            time: precisely(time_us),
            node: node.to_string(),
            seq: None,
            kind: "gap".to_owned(),
            level: "warning".to_owned(),
            volume: None,
            volume_id: None,
            text,
            details: Map::new(),
        }
    }

    fn shown(&self) -> String {
        format!("{} {} {:7} {}", self.time, self.node, self.level, self.text)
    }
}

fn precisely(micros: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_micros(micros);
    match micros {
        ..253_402_300_800_000_000 => humantime::format_rfc3339_micros(moment).to_string(),
        // A clock that was wrong.
        _ => time_shown(micros),
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// How far one service was listened to.
#[derive(Debug, Clone, Default)]
struct Heard {
    run: u64,
    after: u64,
    /// It did not answer last: told once.
    is_silent: bool,
}

/// What of the events is shown, and what was.
struct Stream {
    since_us: u64,
    volume: Option<(String, Option<VolumeId>)>,
    /// Who told of a coming or going, and when it was shown.
    seen: HashMap<(&'static str, NodeName, u32), (u64, Vec<NodeName>)>,
}

/// Lines with the moments that they are sorted by.
type Lines = Vec<(u64, EventView)>;

impl Stream {
    /// What a service told, and what it could not tell any more.
    fn page(&mut self, heard: &mut Heard, page: &EventPage) -> Lines {
        let mut lines = Lines::new();
        let node = &page.node;
        let oldest_us = page.events.first().map_or_else(now_us, |event| event.time_us);
        if heard.run == page.run {
            let missed = page.first.saturating_sub(heard.after + 1);
            if missed > 0 {
                let text =
                    format!("{missed} events of {node} are gone before they were read: its log has them");
                lines.push((oldest_us, EventView::gap(node, oldest_us, text)));
            }
        } else {
            lines.extend(self.begins(heard, page, oldest_us));
            *heard = Heard {
                run: page.run,
                ..Heard::default()
            };
        }
        let mut order_us = 0;
        for event in &page.events {
            heard.after = heard.after.max(event.seq);
            // A clock that was set back changes no order within one service.
            order_us = order_us.max(event.time_us);
            if self.shows(node, event) {
                lines.push((order_us, EventView::of(node, event)));
            }
        }
        lines
    }

    /// What is not known of the time before a run's oldest event.
    fn begins(&self, heard: &Heard, page: &EventPage, oldest_us: u64) -> Option<(u64, EventView)> {
        let (node, began) = (&page.node, time_shown(page.began_us));
        let (at_us, text) = if heard.run != 0 {
            let text = format!(
                "{node} was started anew at {began}: what it told after its event {} and before that is only in its log",
                heard.after
            );
            (page.began_us, text)
        } else if page.first > 1 && oldest_us > self.since_us {
            let text = format!(
                "{} older events of {node} are gone: its log has them",
                page.first - 1
            );
            (oldest_us, text)
        } else if page.first <= 1 && page.began_us > self.since_us {
            let text = format!("{node} was started at {began}: what it told before that is only in its log");
            (page.began_us, text)
        } else {
            return None;
        };
        Some((at_us, EventView::gap(node, at_us, text)))
    }

    fn shows(&mut self, node: &NodeName, event: &PoolEvent) -> bool {
        if event.time_us < self.since_us || self.is_known(node, event) {
            return false;
        }
        let Some((path, id)) = &self.volume else {
            return true;
        };
        let about = |volume: &VolumeName| volume.path == *path || Some(volume.id) == *id;
        event.volume.as_ref().is_some_and(about)
    }

    /// Whether another service told of the same coming or going.
    fn is_known(&mut self, node: &NodeName, event: &PoolEvent) -> bool {
        let key = match &event.what {
            What::NodeJoined { name, pid, .. } => ("joined", name.clone(), *pid),
            What::NodeLeft { name, pid, .. } => ("left", name.clone(), *pid),
            _ => return false,
        };
        let (shown_us, by) = self.seen.entry(key).or_insert((0, Vec::new()));
        let is_same =
            !by.is_empty() && !by.contains(node) && event.time_us.abs_diff(*shown_us) < SAME_WITHIN_US;
        if !is_same {
            (*shown_us, *by) = (event.time_us, Vec::new());
        }
        by.push(node.clone());
        is_same
    }
}

/// Runs `sconce events`.
///
/// # Errors
/// The registry is unreachable, or the output cannot be written.
pub async fn run(cluster: &Cluster, options: &Events, format: Format) -> Result<()> {
    let volume = match &options.volume {
        // One that is gone is still known by its path.
        Some(path) => {
            let id = cluster.names.resolve(path).await.ok().map(|file| file.volume);
            Some((path.as_str().to_owned(), id))
        }
        None => None,
    };
    let since_us = match options.since {
        None => 0,
        Some(Since::At(Moment(at))) => at,
        Some(Since::Ago(ago)) => now_us().saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)),
    };
    let mut stream = Stream {
        since_us,
        volume,
        seen: HashMap::new(),
    };
    let nodes = tellers(cluster).await?;
    let so_far = join_all(nodes.into_iter().map(|node| so_far(cluster, node))).await;
    let (mut lines, mut listened) = (Lines::new(), Vec::new());
    for (node, pages, silent) in so_far {
        let mut heard = Heard::default();
        for page in &pages {
            lines.extend(stream.page(&mut heard, page));
        }
        if let Some(error) = silent {
            lines.push(silent_line(&node, &mut heard, &error));
        }
        listened.push((node, heard));
    }
    if !show(format, lines)? || !options.follow {
        return Ok(());
    }
    follow(cluster, stream, listened, format).await
}

/// The services that tell events.
async fn tellers(cluster: &Cluster) -> Result<Vec<NodeRecord>> {
    let nodes = cluster.names.nodes().await.map_err(explained)?;
    let tells = |node: &NodeRecord| matches!(node.role, Role::VolumeRouter | Role::StorageRouter);
    Ok(nodes.into_iter().filter(tells).collect())
}

async fn ask(
    cluster: &Cluster,
    node: &NodeRecord,
    heard: &Heard,
    wait_ms: u32,
) -> Result<EventPage, PeerError> {
    let ask = EventsAsk {
        run: heard.run,
        after: heard.after,
        wait_ms,
    };
    let deadline = BEYOND_WAIT + Duration::from_millis(u64::from(wait_ms));
    match node.role {
        Role::StorageRouter => cluster.storage.events(node, ask, deadline).await,
        _ => cluster.owners.events(&node.name, ask, deadline).await,
    }
}

/// All that a service has told so far, and why that is not all.
async fn so_far(cluster: &Cluster, node: NodeRecord) -> (NodeRecord, Vec<EventPage>, Option<PeerError>) {
    let (mut heard, mut pages) = (Heard::default(), Vec::<EventPage>::new());
    loop {
        match ask(cluster, &node, &heard, 0).await {
            Ok(page) => {
                let after = page.events.last().map(|event| event.seq);
                heard = Heard {
                    run: page.run,
                    after: after.unwrap_or(0),
                    is_silent: false,
                };
                // The first page also tells what there is not.
                if after.is_some() || pages.is_empty() {
                    pages.push(page);
                }
                if after.is_none() {
                    return (node, pages, None);
                }
            }
            Err(error) => return (node, pages, Some(error)),
        }
    }
}

fn silent_line(node: &NodeRecord, heard: &mut Heard, error: &PeerError) -> (u64, EventView) {
    heard.is_silent = true;
    let now = now_us();
    let text = format!("the events of {} cannot be read now: {error}", node.name);
    (now, EventView::gap(&node.name, now, text))
}

/// Listens to all services until the output is closed.
async fn follow(
    cluster: &Cluster,
    mut stream: Stream,
    listened: Vec<(NodeRecord, Heard)>,
    format: Format,
) -> Result<()> {
    let mut asked = FuturesUnordered::new();
    let listen = async |node: NodeRecord, heard: Heard| {
        let begun = tokio::time::Instant::now();
        let page = ask(cluster, &node, &heard, WAIT_MS_MAX).await;
        let is_empty = page.as_ref().map_or(true, |page| page.events.is_empty());
        if is_empty && begun.elapsed() < AGAIN {
            tokio::time::sleep(AGAIN).await;
        }
        (node, heard, page)
    };
    // Those that are listened to, and what is known of those that are not.
    let mut there: BTreeMap<NodeName, Option<Heard>> = BTreeMap::new();
    for (node, heard) in listened {
        there.insert(node.name.clone(), None);
        asked.push(listen(node, heard));
    }
    let mut list = tokio::time::interval(LIST_EVERY);
    loop {
        tokio::select! {
            Some((node, mut heard, page)) = asked.next() => {
                let is_gone = matches!(page, Err(PeerError::Absent { .. }));
                let lines = match page {
                    Ok(page) => {
                        heard.is_silent = false;
                        stream.page(&mut heard, &page)
                    }
                    Err(error) if !heard.is_silent => vec![silent_line(&node, &mut heard, &error)],
                    Err(_) => Lines::new(),
                };
                if !show(format, lines)? {
                    return Ok(());
                }
                if is_gone {
                    there.insert(node.name.clone(), Some(heard));
                } else {
                    asked.push(listen(node, heard));
                }
            }
            _ = list.tick() => {
                // While the registry does not answer, those that are known are listened to.
                for node in tellers(cluster).await.unwrap_or_default() {
                    match there.insert(node.name.clone(), None) {
                        // It is listened to.
                        Some(None) => {}
                        Some(Some(heard)) => asked.push(listen(node, heard)),
                        None => asked.push(listen(node, Heard::default())),
                    }
                }
            }
        }
    }
}

/// Prints lines in the order of their moments; `false`: nobody reads them any more.
fn show(format: Format, mut lines: Lines) -> Result<bool> {
    lines.sort_by_key(|(at_us, _)| *at_us);
    let mut out = io::stdout().lock();
    for (_, line) in lines {
        let text = match format {
            Format::Json => serde_json::to_string(&line)?,
            Format::Table => line.shown(),
        };
        if !written(writeln!(out, "{text}"))? {
            return Ok(false);
        }
    }
    written(out.flush())
}

fn written(result: io::Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
