//! The FUSE front end: the pool's tree as a file system, in which any file is a volume.
//!
//! Keeps: the mount, the threads that read the kernel's requests, the queue to the IO thread that serves them.
//! Order: a leftover mount is removed, then the new one made; at the stop the mount goes first, then what is under way
//! is answered.
//! Crash: the mount stays behind, dead, until the next start; programs with open files have to open them again.
//! Knows no NBD and no placement of objects.

mod attributes;
mod bridge;
mod data;
mod errno;
mod front;
mod listing;
mod mount;
mod routed;
mod snapshots;
mod table;
#[cfg(test)]
mod tests;
mod tree;
mod virtual_inodes;
mod volumes;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use sconce_runtime::{Clock, Stop};
use sconce_schemas::NodeName;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{spawn_blocking, spawn_local};

use bridge::{Bridge, Queued};
use front::Front;
pub use mount::MountError;
pub use routed::RoutedVolumes;
pub use volumes::{Extent, Snapshot, Source, Space, Told, Volumes};

use crate::in_use::InUse;
use crate::names::Names;

/// Requests that wait for the IO thread.
const QUEUE_MAX: usize = 64;
/// Bytes of requests that are under way; further ones wait, in the queue and then in the kernel.
const BYTES_MAX: usize = 256 << 20;
/// How long the registry is waited for before a file operation fails: longer than any restart takes.
const NAMES_PATIENCE: Duration = Duration::from_secs(60);
/// How long requests that are under way at the stop are waited for.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause before nameless files of an earlier process are tried again.
const NAMELESS_PAUSE: Duration = Duration::from_secs(1);

/// Settings of the FUSE front end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FuseSettings {
    /// Where the pool's tree is mounted; the directory is made where it is missing.
    pub mount: PathBuf,
    /// Threads that read requests from the kernel: 1 to 64.
    #[serde(default = "default_threads")]
    pub threads: u8,
}

fn default_threads() -> u8 {
    2
}

/// The mounted tree, not served yet: requests wait.
pub struct Mount<V> {
    point: PathBuf,
    session: BackgroundSession,
    requests: mpsc::Receiver<Queued<V>>,
    front: Rc<Front<V>>,
}

impl<V: Volumes> Mount<V> {
    /// Mounts the tree for the fs-router `node`. On the IO thread that owns `volumes`. What is `in_use` is not removed.
    ///
    /// # Errors
    /// The mount point cannot be used.
    pub async fn new(
        settings: &FuseSettings,
        names: Names,
        volumes: V,
        node: NodeName,
        clock: Clock,
        in_use: InUse,
    ) -> Result<Self, MountError> {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let (point, session) = mounted(settings, Bridge::new(queue)).await?;
        tracing::info!(mount = %point.display(), "the pool's tree is mounted");
        let front = Front::new(names.patient(NAMES_PATIENCE), volumes, node, clock, in_use);
        Ok(Self {
            point,
            session,
            requests,
            front: Rc::new(front),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Serves requests until the stop, then unmounts and answers what is under way. In a `LocalSet`.
    pub async fn serve(self, stop: &Stop) {
        let Self {
            point,
            session,
            requests,
            front,
        } = self;
        let clearing = spawn_local(clear_nameless(Rc::clone(&front)));
        let budget = Arc::new(Semaphore::new(BYTES_MAX));
        let mut taking = spawn_local(take(Rc::clone(&front), requests, Arc::clone(&budget)));
        tokio::select! {
            _ = &mut taking => {
                tracing::error!(mount = %point.display(), "the file system was unmounted by somebody else");
                stop.requested().await;
            }
            () = stop.requested() => {}
        }
        // The kernel sends requests while it unmounts; they are still taken.
        unmount(point, session).await;
        let all = u32::try_from(BYTES_MAX).unwrap_or(u32::MAX);
        if tokio::time::timeout(DRAIN, budget.acquire_many(all))
            .await
            .is_err()
        {
            tracing::warn!(
                requests = front.underway.get(),
                "file requests are not answered: their volumes wait"
            );
        }
        taking.abort();
        clearing.abort();
    }
}

async fn mounted<V: Volumes>(
    settings: &FuseSettings,
    bridge: Bridge<V>,
) -> Result<(PathBuf, BackgroundSession), MountError> {
    let point = settings.mount.clone();
    let threads = usize::from(settings.threads.clamp(1, 64));
    let mounting = spawn_blocking(move || {
        let point = mount::prepare(&point)?;
        let refused = |source| MountError::Refused {
            path: point.clone(),
            source,
        };
        let session = Session::new(bridge, &point, &config(threads)).map_err(refused)?;
        let session = session.spawn().map_err(refused)?;
        Ok((point, session))
    });
    match mounting.await {
        Ok(mounted) => mounted,
        Err(error) => Err(MountError::Refused {
            path: settings.mount.clone(),
            source: std::io::Error::other(error),
        }),
    }
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(mount::SOURCE.to_owned()),
        MountOption::Subtype(mount::SOURCE.to_owned()),
        // The kernel checks permissions against mode, owner and group.
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
    ];
    // Only root may let others in without a setting in /etc/fuse.conf: hypervisors run guests as users of their own.
    config.acl = if rustix::process::geteuid().is_root() {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config
}

/// Takes requests in until the threads that read them are gone.
async fn take<V: Volumes>(
    front: Rc<Front<V>>,
    mut requests: mpsc::Receiver<Queued<V>>,
    budget: Arc<Semaphore>,
) {
    while let Some(Queued { bytes, serve }) = requests.recv().await {
        let Ok(permit) = Arc::clone(&budget).acquire_many_owned(bytes).await else {
            return;
        };
        let front = Rc::clone(&front);
        front.underway.set(front.underway.get() + 1);
        spawn_local(async move {
            serve(Rc::clone(&front)).await;
            front.underway.set(front.underway.get() - 1);
            drop(permit);
        });
    }
}

async fn unmount(point: PathBuf, session: BackgroundSession) {
    let unmounting = spawn_blocking(move || {
        if let Err(error) = session.umount_and_join() {
            // Somebody has a file open: out of the tree at once, the rest when they close it.
            tracing::info!(mount = %point.display(), %error, "unmounting lazily");
            if let Err(detail) = mount::detach(&point) {
                tracing::warn!(mount = %point.display(), detail, "cannot unmount");
            }
        }
    });
    if let Err(error) = unmounting.await {
        tracing::error!(%error, "unmounting ended early");
    }
}

/// Removes files that an earlier process of this node had open without a name.
async fn clear_nameless<V: Volumes>(front: Rc<Front<V>>) {
    while let Err(error) = front.remove_all_nameless().await {
        tracing::debug!(%error, "removed files of an earlier run are tried again");
        tokio::time::sleep(NAMELESS_PAUSE).await;
    }
}
