//! Keeps: `sconce volume …`.
//! Order: a name is made before its volume is opened, and gone before its volume is deleted.
//! Crash: a command that was cut short can be given again.
//! Knows no back end.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use sconce_fs_router::names::{NamesError, NewEntry, NewVolume, PoolPath, Resolved};
use sconce_fs_router::peers::{PeerError, is_served};
use sconce_schemas::records::{DtlState, TwinHost};
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::volume::VolumeControl;
use sconce_schemas::{NodeName, VolumeSize};
use serde::Serialize;

use crate::access;
use crate::args::{Create, Dtl, Format, HistoryWindow, Moves, Placement, Volume, WantedHost};
use crate::cluster::{Cluster, LIVE_DEADLINE, explained};
use crate::flatten;
use crate::size::shown;
use crate::view::{VolumeView, print, volume_lines, volume_table};

/// Volumes whose owners are asked at the same time.
const SHOW_CONCURRENCY: usize = 16;
/// How long a volume is given to store everything: a full write buffer on a slow back end.
pub const SYNC_DEADLINE: Duration = Duration::from_secs(3600);
/// How long an owner is given to answer: it may be starting.
pub(crate) const OWNER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a sync goes on before the command says what it waits for.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);
/// How long a move is given: what is not stored is copied.
const MOVE_DEADLINE: Duration = Duration::from_secs(900);
/// How long a takeover is given: it replays what the checkpoints do not cover.
const TAKEOVER_DEADLINE: Duration = Duration::from_secs(120);

/// What a command did to a volume.
#[derive(Debug, Serialize)]
struct DoneView {
    /// The volume's path.
    path: String,
    /// The volume's id.
    id: String,
    /// `deleted` or `synced`.
    action: &'static str,
}

/// Runs `sconce volume …`.
///
/// # Errors
/// The command could not be done; the text says what to do next.
pub async fn run(cluster: &Cluster, command: Volume, format: Format) -> Result<()> {
    match command {
        Volume::Create(create) => self::create(cluster, &create, format).await,
        Volume::List { directory } => list(cluster, &directory, format).await,
        Volume::Show { path } => {
            let file = cluster.resolve(&path).await?;
            show(cluster, &file, format).await
        }
        Volume::Resize { path, size, shrink } => resize(cluster, &path, size, shrink, format).await,
        Volume::Set {
            path,
            history,
            placement,
        } => {
            let file = cluster.resolve(&path).await?;
            if let Some(history) = history {
                set_history(cluster, &file, history).await?;
            }
            if let Some(placement) = placement {
                let pinned = cluster.names.set_pinned(file.volume, placement == Moves::Pinned);
                pinned.await.map_err(explained)?;
            }
            show(cluster, &file, format).await
        }
        Volume::Dtl {
            path,
            mode,
            host,
            only,
        } => {
            let file = cluster.resolve(&path).await?;
            // First where, so that no twin is made elsewhere meanwhile.
            if let Some(host) = host {
                set_twin_host(cluster, &file, host, only).await?;
            }
            if let Some(mode) = mode {
                set_dtl(cluster, &file, mode).await?;
            }
            show(cluster, &file, format).await
        }
        Volume::Access(arguments) => access::run(cluster, &arguments, format).await,
        Volume::Delete { path } => delete(cluster, &path, format).await,
        Volume::Sync { path } => sync(cluster, &path, format).await,
        Volume::Flatten { path, wait } => flatten::run(cluster, &path, wait, format).await,
        Volume::Move { path, node } => {
            let file = cluster.resolve(&path).await?;
            move_to(cluster, &file, &node).await?;
            show(cluster, &file, format).await
        }
        Volume::Takeover { path, to, force } => takeover(cluster, &path, to, force, format).await,
    }
}

/// Makes a volume and its file.
///
/// # Errors
/// The path is taken; no such pool or owner.
pub async fn make(
    cluster: &Cluster,
    path: &PoolPath,
    size: VolumeSize,
    placement: &Placement,
) -> Result<Resolved> {
    let new = NewVolume {
        size,
        sco_size: placement.sco_size.unwrap_or_default(),
        pool: placement.pool.clone(),
        owner: placement.owner.clone(),
        dtl: placement.dtl.into(),
    };
    cluster
        .names
        .create_volume(path, &new, NewEntry::FILE, true)
        .await
        .map_err(explained)
}

async fn create(cluster: &Cluster, create: &Create, format: Format) -> Result<()> {
    let file = make(cluster, &create.path, create.size, &create.placement).await?;
    if let Some(history) = create.history
        && let Err(error) = set_history(cluster, &file, history).await
    {
        bail!(
            "{} was created, but its history could not be set: {error}\n`sconce volume set {} --history …` sets it",
            file.path,
            file.path
        );
    }
    show(cluster, &file, format).await
}

async fn set_history(
    cluster: &Cluster,
    file: &Resolved,
    HistoryWindow(window_us): HistoryWindow,
) -> Result<()> {
    let volume = file.volume;
    let set = VolumeControl::SetHistory { volume, window_us };
    cluster.owners.call(volume, set, OWNER_DEADLINE).await?;
    Ok(())
}

async fn set_dtl(cluster: &Cluster, file: &Resolved, mode: Dtl) -> Result<()> {
    let (volume, mode) = (file.volume, mode.into());
    let set = VolumeControl::SetDtl { volume, mode };
    let asked = cluster.owners.call(volume, set, OWNER_DEADLINE).await;
    asked.with_context(|| {
        format!(
            "the mode of {} may not have changed: give the command again",
            file.path
        )
    })?;
    Ok(())
}

async fn set_twin_host(cluster: &Cluster, file: &Resolved, host: WantedHost, only: bool) -> Result<()> {
    let host = match host {
        WantedHost::Auto if only => {
            bail!("--only takes a volume-router: with --host auto the twin may be on any")
        }
        WantedHost::Auto => None,
        WantedHost::Node(node) => Some(TwinHost { node, only }),
    };
    if let Some(TwinHost { node, .. }) = &host {
        let running = cluster.names.volume_routers().await.map_err(explained)?;
        if !running.contains(node) {
            let names: Vec<&str> = running.iter().map(NodeName::as_str).collect();
            bail!(
                "{node} is no volume-router that runs, and cannot keep the twin of {}; those that do: {}",
                file.path,
                names.join(", ")
            );
        }
        let owner = cluster.names.volume(file.volume).await.map_err(explained)?.owner;
        if owner == *node {
            bail!(
                "{node} owns {} itself: its twin is on another node, or move it first with: sconce volume move {} NODE",
                file.path,
                file.path
            );
        }
    }
    let set = cluster.names.set_twin_host(file.volume, host.as_ref());
    set.await.map_err(explained)
}

/// Prints a volume.
///
/// # Errors
/// There is no record of it, or the registry is unreachable.
pub async fn show(cluster: &Cluster, file: &Resolved, format: Format) -> Result<()> {
    let view = cluster.view(file).await.map_err(explained)?;
    warn_silent(std::slice::from_ref(&view));
    print(format, &view, volume_lines)
}

async fn list(cluster: &Cluster, directory: &PoolPath, format: Format) -> Result<()> {
    let mut files = cluster
        .names
        .files(directory, usize::MAX)
        .await
        .map_err(explained)?;
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let views = files.iter().map(|file| cluster.view(file));
    let mut asked = futures_util::stream::iter(views).buffered(SHOW_CONCURRENCY);
    let mut views = Vec::with_capacity(files.len());
    let mut damaged = 0;
    for file in &files {
        match asked.next().await {
            Some(Ok(view)) => views.push(view),
            // Deleted since it was listed.
            Some(Err(NamesError::NotFound { .. })) => {}
            // The others are shown all the same.
            Some(Err(error @ NamesError::Damaged { .. })) => {
                eprintln!("{}: {error}", file.path);
                damaged += 1;
            }
            Some(Err(error)) => return Err(explained(error)),
            None => break,
        }
    }
    warn_silent(&views);
    print(format, &views, |views| volume_table(views))?;
    if damaged > 0 {
        bail!("{damaged} of {} volumes have damaged records", files.len());
    }
    Ok(())
}

fn warn_silent(views: &[VolumeView]) {
    let silent: Vec<&str> = views
        .iter()
        .filter(|view| !view.live)
        .map(|view| view.path.as_str())
        .collect();
    match silent[..] {
        [] => {}
        [path] => eprintln!(
            "{path} is not served, or its owner did not answer within {} s: this is what the registry has",
            LIVE_DEADLINE.as_secs()
        ),
        [..] => eprintln!(
            "{} volumes are not served, or their owners did not answer within {} s: for those this is what the \
             registry has",
            silent.len(),
            LIVE_DEADLINE.as_secs()
        ),
    }
}

async fn resize(
    cluster: &Cluster,
    path: &PoolPath,
    size: VolumeSize,
    shrink: bool,
    format: Format,
) -> Result<()> {
    let file = cluster.resolve(path).await?;
    let volume = cluster.volume(&file).await?;
    let now = volume.opened().await?.size;
    if size < now && !shrink {
        bail!(
            "{path} has {}: what lies beyond {} would be lost\nadd --shrink if that is meant",
            shown(now.bytes()),
            shown(size.bytes())
        );
    }
    volume.resize_as_asked(size).await?;
    show(cluster, &file, format).await
}

async fn delete(cluster: &Cluster, path: &PoolPath, format: Format) -> Result<()> {
    let removed = cluster.names.remove_file(path).await.map_err(explained)?;
    // An owner that does not hear of it finds it in the registry; the name is gone in any case.
    cluster
        .owners
        .tell(&[removed.volume], |volume| VolumeControl::Delete { volume })
        .await;
    done(path, removed.volume.to_string(), "deleted", format)
}

async fn sync(cluster: &Cluster, path: &PoolPath, format: Format) -> Result<()> {
    let file = cluster.resolve(path).await?;
    store(cluster, &file).await?;
    done(path, file.volume.to_string(), "synced", format)
}

/// Waits until all that was written to a volume is on the back ends.
///
/// # Errors
/// Its owner does not answer or cannot store it.
pub async fn store(cluster: &Cluster, file: &Resolved) -> Result<()> {
    let volume = file.volume;
    let sync = cluster
        .owners
        .call(volume, VolumeControl::Sync { volume }, SYNC_DEADLINE);
    tokio::pin!(sync);
    let mut told = None;
    loop {
        if let Ok(synced) = tokio::time::timeout(SYNC_PATIENCE, &mut sync).await {
            synced.with_context(|| format!("{} is not stored", file.path))?;
            return Ok(());
        }
        let waits_for = match cluster.owners.show(volume, LIVE_DEADLINE).await {
            Ok(status) if is_served(&status) => {
                format!("{} are not on the back ends yet", shown(status.unstored.0))
            }
            Ok(status) => status.state,
            Err(error) => error.to_string(),
        };
        if told.as_ref() != Some(&waits_for) {
            eprintln!(
                "waiting for {}: {waits_for} (`sconce status` shows the services)",
                file.path
            );
            told = Some(waits_for);
        }
    }
}

fn done(path: &PoolPath, id: String, action: &'static str, format: Format) -> Result<()> {
    let view = DoneView {
        path: path.to_string(),
        id,
        action,
    };
    print(format, &view, |view| format!("{} {}", view.path, view.action))
}

/// Moves a volume; returns once the next owner serves it.
///
/// # Errors
/// It stays where it is; why.
pub async fn move_to(cluster: &Cluster, file: &Resolved, to: &NodeName) -> Result<()> {
    let volume = file.volume;
    let owner = cluster.names.volume(volume).await.map_err(explained)?.owner;
    let request = VolumeControl::Move {
        volume,
        to: to.clone(),
    };
    cluster.owners.ask(&owner, volume, request, MOVE_DEADLINE).await?;
    let served = cluster.owners.show(volume, TAKEOVER_DEADLINE).await;
    // Until it does, the former owner has everything too.
    let waits = || {
        let path = &file.path;
        format!(
            "{path} is {to}'s now, and not served there yet; where it cannot be: sconce volume takeover {path} --to {owner}"
        )
    };
    let served = served.with_context(waits)?;
    if !is_served(&served) {
        bail!("{}: {}", waits(), served.state);
    }
    Ok(())
}

async fn takeover(
    cluster: &Cluster,
    path: &PoolPath,
    to: Option<NodeName>,
    force: bool,
    format: Format,
) -> Result<()> {
    let file = cluster.resolve(path).await?;
    let volume = file.volume;
    let to = match to {
        Some(node) => node,
        None => successor(cluster, &file).await?,
    };
    let request = VolumeControl::TakeOver { volume, force };
    match cluster.owners.ask(&to, volume, request, TAKEOVER_DEADLINE).await {
        Ok(_) => show(cluster, &file, format).await,
        Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::WaitsForOwner && !force => {
            bail!("{refusal}\nadd --force to accept that loss")
        }
        Err(error) => Err(error.into()),
    }
}

/// Who is to own a volume next: the host of a twin that is in sync, else a volume-router other than its owner that runs and is not drained,
/// else its owner.
async fn successor(cluster: &Cluster, file: &Resolved) -> Result<NodeName> {
    let record = cluster.names.volume(file.volume).await.map_err(explained)?;
    let drained = cluster.names.drained().await.map_err(explained)?;
    let running = cluster.names.volume_routers().await.map_err(explained)?;
    // It has everything, so also where it is drained: nobody else can go on without a loss.
    let twin = record.dtl_host.filter(|_| record.dtl_state == DtlState::InSync);
    if let Some(twin) = twin.filter(|twin| running.contains(twin)) {
        return Ok(twin);
    }
    let owner = record.owner;
    let mut others = running
        .into_iter()
        .filter(|node| *node != owner && !drained.contains(node));
    Ok(others.next().unwrap_or(owner))
}
