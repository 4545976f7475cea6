//! Descriptors that outlive the process: systemd's descriptor store, or the supervisor that speaks as it does.
//!
//! Keeps: what an earlier process of this service stored, until a part of this one takes it.
//! Order: what is stored under a name stays there until it is removed; both are done when [`DescriptorStore::settled`] returns.
//! Crash: what was stored is given to the next process.
//! Knows no sockets and no mounts; only names and descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use sd_notify::NotifyState;

/// How long the store is waited for: it does nothing else.
const SETTLED_MAX: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Who keeps descriptors for the next process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct DescriptorStore {
    /// Nobody holds anything where this is `None`.
    held: Option<Arc<Mutex<Held>>>,
}

type Held = BTreeMap<String, Vec<OwnedFd>>;

impl DescriptorStore {
    /// The store that the environment names, and what it has; without one, nothing outlives the process. Call it once,
    /// before anything else opens descriptors.
    ///
    /// # Errors
    /// The environment is not what a store sets.
    pub fn from_env() -> io::Result<DescriptorStore> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(DescriptorStore::default());
        }
        let mut held = Held::new();
        for (number, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: the store gave this number to this process (LISTEN_PID is checked), nobody else has asked for
            // it, and it was open: close-on-exec was set on it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            held.entry(name).or_default().push(descriptor);
        }
        Ok(DescriptorStore {
            held: Some(Arc::new(Mutex::new(held))),
        })
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.held.is_some()
    }

    /// What an earlier process stored under a name; it stays stored.
    #[must_use]
    pub fn take(&self, name: &str) -> Vec<OwnedFd> {
        self.held()
            .and_then(|mut held| held.remove(name))
            .unwrap_or_default()
    }

    /// What an earlier process stored under names that begin so, each with its name; it stays stored.
    #[must_use]
    pub fn take_all(&self, prefix: &str) -> Vec<(String, Vec<OwnedFd>)> {
        let Some(mut held) = self.held() else {
            return Vec::new();
        };
        held.extract_if(.., |name, _| name.starts_with(prefix)).collect()
    }

    /// Stores descriptors under a name, in addition to those that it has.
    ///
    /// # Errors
    /// The store does not take them.
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        // Only a removal ends it: the store need not watch it, and a peer that is gone is this service's business.
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        sd_notify::notify_with_fds(&state, descriptors)
    }

    /// Lets go of what is stored under a name.
    ///
    /// # Errors
    /// The store does not listen.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
    }

    /// Waits until the store has done what it was told.
    ///
    /// # Errors
    /// It does not answer within 5 s.
    pub fn settled(&self) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        // The store closes what is sent along with a barrier when it comes to it.
        let (ours, theirs) = io::pipe()?;
        sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
        drop(theirs);
        let mut closed = [PollFd::new(&ours, PollFlags::empty())];
        match rustix::event::poll(&mut closed, Some(&SETTLED_MAX))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the descriptor store does not answer",
            )),
            _ => Ok(()),
        }
    }

    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        let held = self.held.as_ref()?;
        Some(held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_store_nothing_is_kept_and_nothing_fails() {
        let store = DescriptorStore::default();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        store.store("a", &[one.as_fd()]).unwrap();
        store.remove("a").unwrap();
        store.settled().unwrap();
        assert!(!store.is_there() && store.take("a").is_empty() && store.take_all("").is_empty());
    }
}
