//! The mount's descriptor: a new one, or that of the last process.
//!
//! Keeps: the session that reads the kernel's requests.
//! Order: a mount that is taken over has its unanswered requests sent again before the first is read. A new one is stored
//! before anything is opened through it.
//! Crash: the mount stays with the descriptor store: programs wait, and the next process takes it over.
//! Knows no file and no volume.
//!
//! Every thread reads from the one descriptor that the descriptor store has too: what was read from a clone of it ends with
//! `ECONNABORTED` when the process that had the clone is gone, and cannot be sent again.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, Session};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::DupFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sconce_runtime::DescriptorStore;

use super::bridge::{Bridge, Kernel};
use super::handles::{Handles, Opened};
use super::mount::{self, MountError};
use super::volumes::Volumes;

/// What the mount is called in the descriptor store, and what is open through it.
const DEVICE: &str = "fuse";
const HANDLES: &str = "fuse-handles";

/// `FUSE_NOTIFY_RESEND` of the kernel's `fuse.h` (Linux 6.9): all that was read and not answered is to be read again.
const NOTIFY_RESEND: i32 = 7;

/// A mount that is read from.
pub(super) struct Device {
    pub(super) point: PathBuf,
    session: BackgroundSession,
    /// An earlier process mounted it.
    is_taken_over: bool,
    /// The descriptor store has it too.
    pub(super) is_held: bool,
}

/// A mount before its requests are read, and what is open through it.
pub(super) struct Found<V: Volumes> {
    point: PathBuf,
    session: Session<Bridge<V>>,
    is_taken_over: bool,
    is_held: bool,
    pub(super) handles: Handles,
    pub(super) opened: Vec<Opened>,
}

/// Takes the mount of the last process over, or mounts anew. Blocks.
pub(super) fn find<V: Volumes>(
    point: &Path,
    config: &Config,
    bridge: impl Fn() -> Bridge<V>,
    kernel: &Arc<Kernel>,
    descriptors: &DescriptorStore,
) -> Result<Found<V>, MountError> {
    if let Some(found) = take_over(point, config, &bridge, descriptors) {
        return Ok(found);
    }
    let point = mount::prepare(point)?;
    let refused = |source| MountError::Refused {
        path: point.clone(),
        source,
    };
    let session = Session::new(bridge(), &point, config).map_err(refused)?;
    let handles = Handles::new(&point).map_err(refused)?;
    // Without it, what the last process had read would never be answered: better to let the mount end with the process.
    let is_held = descriptors.is_there() && kernel.resends();
    if is_held {
        descriptors
            .store(DEVICE, &[session.as_fd()])
            .and_then(|()| descriptors.store(HANDLES, &[handles.as_fd()]))
            .and_then(|()| descriptors.settled())
            .map_err(refused)?;
    }
    Ok(Found {
        point,
        session,
        is_taken_over: false,
        is_held,
        handles,
        opened: Vec::new(),
    })
}

/// The last process's mount, where there is one that can be gone on with; otherwise it ends.
fn take_over<V: Volumes>(
    point: &Path,
    config: &Config,
    bridge: impl Fn() -> Bridge<V>,
    descriptors: &DescriptorStore,
) -> Option<Found<V>> {
    let (mut devices, mut files) = (descriptors.take(DEVICE), descriptors.take(HANDLES));
    let (Some(device), Some(file), true, true) =
        (devices.pop(), files.pop(), devices.is_empty(), files.is_empty())
    else {
        end(descriptors);
        return None;
    };
    match gone_on(point, config, bridge, &device, file.into()) {
        Ok(found) => Some(found),
        Err(why) => {
            tracing::warn!(
                why,
                "the last process's mount ends: files that are open through it have to be opened again"
            );
            end(descriptors);
            None
        }
    }
}

fn gone_on<V: Volumes>(
    point: &Path,
    config: &Config,
    bridge: impl Fn() -> Bridge<V>,
    device: &OwnedFd,
    file: File,
) -> Result<Found<V>, String> {
    let point = mount::real(point).map_err(|error| error.to_string())?;
    match mount::mounted_at(&point) {
        Ok(Some(found)) if found.is_ours() && is_connected(device) => {}
        Ok(_) => return Err(format!("it is not at {} any more", point.display())),
        Err(error) => return Err(error.to_string()),
    }
    let (handles, opened) = Handles::read(file, &point).map_err(|why| why.to_string())?;
    let session = session_on(bridge(), device, config).map_err(|error| error.to_string())?;
    resend(device).map_err(|error| format!("the kernel does not send requests again: {error}"))?;
    tracing::info!(mount = %point.display(), open = opened.len(), "going on with the last process's mount");
    Ok(Found {
        point,
        session,
        is_taken_over: true,
        is_held: true,
        handles,
        opened,
    })
}

/// Whether the mount is there.
fn is_connected(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().contains(PollFlags::ERR)
}

/// A session on a mount that has had its handshake. fuser wants one first, so it has it with this process: over a socket,
/// in whose place the mount comes then.
fn session_on<V: Volumes>(
    bridge: Bridge<V>,
    device: &OwnedFd,
    config: &Config,
) -> io::Result<Session<Bridge<V>>> {
    let (kernel, socket) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::write(&kernel, &init())?;
    let session = Session::from_fd(bridge, socket, config.acl, config.clone())?;
    // SAFETY: the number is the session's, which is open and stays so; it is not closed here. No thread reads yet.
    let mut theirs = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    rustix::io::dup3(device, &mut theirs, DupFlags::CLOEXEC)?;
    Ok(session)
}

/// A `FUSE_INIT` as a kernel sends it that can do everything: what is answered to it is of no interest.
fn init() -> Vec<u8> {
    const LENGTH: u32 = 40 + 64;
    const OPCODE: u32 = 26;
    let numbers = [
        &[LENGTH, OPCODE][..],
        // Request, inode, user, group, process and padding.
        &[1, 0, 0, 0, 0, 0, 0, 0],
        // Version, read-ahead, and all flags.
        &[7, 40, 1 << 17, u32::MAX, u32::MAX],
        &[0; 11],
    ];
    numbers
        .concat()
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

/// Lets the kernel send again what the last process was sent and did not answer.
fn resend(device: &OwnedFd) -> io::Result<()> {
    // A message that answers no request (0) has its kind where others have their error.
    let mut message = 16_u32.to_ne_bytes().to_vec();
    message.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    rustix::io::write(device, &message)?;
    Ok(())
}

/// The descriptor store lets go of the mount.
fn end(descriptors: &DescriptorStore) {
    for name in [DEVICE, HANDLES] {
        if let Err(error) = descriptors.remove(name) {
            tracing::warn!(%error, name, "the descriptor store keeps what it has of the mount");
        }
    }
}

impl<V: Volumes> Found<V> {
    /// Reads requests from here on.
    pub(super) fn spawn(self) -> Result<(Device, Handles, Vec<Opened>), MountError> {
        let refused = |source| MountError::Refused {
            path: self.point.clone(),
            source,
        };
        let session = self.session.spawn().map_err(refused)?;
        let device = Device {
            point: self.point,
            session,
            is_taken_over: self.is_taken_over,
            is_held: self.is_held,
        };
        Ok((device, self.handles, self.opened))
    }
}

impl Device {
    /// Leaves the mount to the next process: nothing is answered any more, and nothing unmounted.
    pub(super) fn leave(self) {
        std::mem::forget(self.session);
    }

    /// Unmounts, and waits for the threads that read. Blocks.
    pub(super) fn unmount(self, descriptors: &DescriptorStore) {
        let Self {
            point,
            session,
            is_taken_over,
            ..
        } = self;
        let unmounted = match is_taken_over {
            // fuser did not mount it, and so does not unmount it.
            true => mount::unmount(&point).and_then(|()| session.join()),
            false => session.umount_and_join(),
        };
        if let Err(error) = unmounted {
            // Somebody has a file open: out of the tree at once, the rest when they close it.
            tracing::info!(mount = %point.display(), %error, "unmounting lazily");
            if let Err(detail) = mount::detach(&point) {
                tracing::warn!(mount = %point.display(), detail, "cannot unmount");
            }
        }
        end(descriptors);
    }
}
