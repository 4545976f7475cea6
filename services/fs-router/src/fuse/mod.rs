//! The FUSE front end: the pool's tree as a file system, in which any file is a volume.
//!
//! Keeps: the mount, the threads that read the kernel's requests, the queue to the IO thread that serves them.
//! Order: a leftover mount is taken over, or removed and a new one made; at the stop the mount goes first, then what is
//! under way is answered. At a hand-over no more requests are taken, what is under way is answered, and the mount stays.
//! Crash: the mount stays with the descriptor store, and the next process goes on with what is open. Without a store
//! it stays behind, dead, until the next start; programs with open files have to open them again.
//! Knows no NBD and no placement of objects.

mod attributes;
mod bridge;
mod data;
mod device;
mod errno;
mod front;
mod handles;
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

use fuser::{Config, MountOption, SessionACL};
use sconce_runtime::{Clock, DescriptorStore, Stop};
use sconce_schemas::NodeName;
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::{spawn_blocking, spawn_local};

use bridge::{Bridge, Kernel, Queued};
use device::{Device, Found};
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
    device: Device,
    kernel: Arc<Kernel>,
    descriptors: DescriptorStore,
    requests: mpsc::Receiver<Queued<V>>,
    front: Rc<Front<V>>,
}

impl<V: Volumes> Mount<V> {
    /// Mounts the tree for the fs-router `node`, or takes over the mount that its last process left in the descriptor store.
    /// On the IO thread that owns `volumes`, in a `LocalSet`. What is `in_use` is not removed.
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
        descriptors: DescriptorStore,
    ) -> Result<Self, MountError> {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let kernel = Arc::<Kernel>::default();
        let found = found(settings, queue, Arc::clone(&kernel), descriptors.clone()).await?;
        let (device, handles, opened) = found.spawn()?;
        tracing::info!(mount = %device.point.display(), "the pool's tree is mounted");
        let names = names.patient(NAMES_PATIENCE);
        let front = Rc::new(Front::new(names, volumes, node, clock, in_use, handles));
        front.go_on(opened);
        Ok(Self {
            device,
            kernel,
            descriptors,
            requests,
            front,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.device.point
    }

    /// Serves requests until the stop, then unmounts and answers what is under way; or answers what is under way and
    /// leaves the mount to the next process. In a `LocalSet`.
    pub async fn serve(self, stop: &Stop) {
        let Self {
            device,
            kernel,
            descriptors,
            requests,
            front,
        } = self;
        let clearing = spawn_local(clear_nameless(Rc::clone(&front)));
        let budget = Arc::new(Semaphore::new(BYTES_MAX));
        let mut taking = spawn_local(take(Rc::clone(&front), requests, Arc::clone(&budget)));
        tokio::select! {
            _ = &mut taking => {
                tracing::error!(mount = %device.point.display(), "the file system was unmounted by somebody else");
                stop.requested().await;
            }
            () = stop.requested() => {}
        }
        if stop.hands_over() && device.is_held {
            kernel.leave();
            leave(&front, &budget).await;
            // The tasks stay as they are, with what they have not answered: dropping it would answer it.
            return device.leave();
        }
        // The kernel sends requests while it unmounts; they are still taken.
        unmount(device, descriptors).await;
        if drained(&budget).await.is_none() {
            tracing::warn!(
                requests = front.underway.get(),
                "file requests are not answered: their volumes wait"
            );
        }
        taking.abort();
        clearing.abort();
    }
}

/// Waits until nothing is under way, for a while; nothing more is taken for as long as what this gives is there.
async fn drained(budget: &Semaphore) -> Option<SemaphorePermit<'_>> {
    let all = u32::try_from(BYTES_MAX).unwrap_or(u32::MAX);
    let drained = tokio::time::timeout(DRAIN, budget.acquire_many(all)).await;
    drained.ok()?.ok()
}

/// Ends what is under way, before the next process goes on with the mount.
async fn leave<V: Volumes>(front: &Front<V>, budget: &Semaphore) {
    match drained(budget).await {
        // What waits in the queue is for the next process.
        Some(all) => all.forget(),
        None => tracing::info!(
            requests = front.underway.get(),
            "file requests are left to the next process: their volumes wait"
        ),
    }
    if tokio::time::timeout(DRAIN, front.keep_times()).await.is_err() {
        tracing::info!("the times of last writes are not kept: the registry does not answer");
    }
}

async fn found<V: Volumes>(
    settings: &FuseSettings,
    queue: mpsc::Sender<Queued<V>>,
    kernel: Arc<Kernel>,
    descriptors: DescriptorStore,
) -> Result<Found<V>, MountError> {
    let point = settings.mount.clone();
    let config = config(usize::from(settings.threads.clamp(1, 64)));
    let finding = spawn_blocking(move || {
        let bridge = || Bridge::new(queue.clone(), Arc::clone(&kernel));
        device::find(&point, &config, bridge, &kernel, &descriptors)
    });
    match finding.await {
        Ok(found) => found,
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
    // One descriptor, which the descriptor store has too: see `device`.
    config.clone_fd = false;
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

async fn unmount(device: Device, descriptors: DescriptorStore) {
    if let Err(error) = spawn_blocking(move || device.unmount(&descriptors)).await {
        tracing::error!(%error, "unmounting ended early");
    }
}

/// Removes files that an earlier process of this node had open without a name, and that are not open any more.
async fn clear_nameless<V: Volumes>(front: Rc<Front<V>>) {
    while let Err(error) = front.remove_all_nameless().await {
        tracing::debug!(%error, "removed files of an earlier run are tried again");
        tokio::time::sleep(NAMELESS_PAUSE).await;
    }
}
