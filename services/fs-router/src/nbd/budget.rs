//! What the clients of a process may make it hold together, in bytes of requests and answers.
//!
//! Keeps: the bytes that are left for all, and each connection's share.
//! Order: who waits for bytes is served in turn, so that small requests do not starve a large one.
//! Crash: nothing; a connection that ends gives its share back.
//! Knows no requests.
//!
//! Each connection has [`OWN`] bytes that it never has to wait for: however much others hold, for however long their
//! volumes wait, its requests of ordinary size go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sconce_runtime::settings::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a connection that do not count for the process: enough for any request that a guest's kernel makes.
const OWN: u64 = 4 << 20;
/// Bytes of a connection at most; a request alone may carry more.
const CONNECTION_MAX: u64 = 64 << 20;

/// The bytes of a process. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    left: Arc<Semaphore>,
    own: u64,
    connection_max: u64,
    most: u32,
}

impl Budget {
    /// At most `memory` for all connections beyond their own, and no more than 4 GiB.
    pub(super) fn new(memory: ByteSize) -> Self {
        let most = u32::try_from(memory.bytes()).unwrap_or(u32::MAX);
        Self::of(OWN, CONNECTION_MAX, most)
    }

    fn of(own: u64, connection_max: u64, process_max: u32) -> Self {
        Self {
            left: Arc::new(Semaphore::new(process_max as usize)),
            own,
            connection_max,
            most: process_max,
        }
    }

    /// The share of a connection.
    pub(super) fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            held: 0,
            counted: 0,
            waiting: None,
            granted: 0,
        }
    }
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>>>>;

/// What one connection holds.
pub(super) struct Share {
    budget: Budget,
    held: u64,
    /// What of it counts for the process.
    counted: u32,
    /// In turn for bytes of the process.
    waiting: Option<Waiting>,
    /// Bytes of the process that its turn gave, not taken yet.
    granted: u32,
}

impl Share {
    /// Bytes that are held.
    #[cfg(test)]
    fn held(&self) -> u64 {
        self.held
    }

    /// Takes `bytes`, if there is room. If there is none at this connection, try again when it gave something back; if
    /// there is none in the process, the task of `cx` is woken when there is.
    pub(super) fn take(&mut self, bytes: u64, cx: &mut Context<'_>) -> bool {
        if self.held > 0 && self.held.saturating_add(bytes) > self.budget.connection_max {
            return false;
        }
        let over = (self.held.saturating_add(bytes)).saturating_sub(self.budget.own);
        let over = u32::try_from(over).unwrap_or(u32::MAX);
        let over = match self.held {
            // A request that is larger than all that there is for all goes when it has all of that.
            0 => over.min(self.budget.most),
            _ if over > self.budget.most => return false,
            _ => over,
        };
        let more = over.saturating_sub(self.counted);
        if !self.count(more, cx) {
            return false;
        }
        self.held += bytes;
        true
    }

    /// Counts `more` bytes for the process.
    fn count(&mut self, more: u32, cx: &mut Context<'_>) -> bool {
        loop {
            if self.granted >= more {
                self.granted -= more;
                self.counted += more;
                if self.granted > 0 {
                    self.budget.left.add_permits(self.granted as usize);
                    self.granted = 0;
                }
                self.waiting = None;
                return true;
            }
            let missing = more - self.granted;
            if self.waiting.is_none()
                && let Ok(permit) = self.budget.left.try_acquire_many(missing)
            {
                permit.forget();
                self.granted += missing;
                continue;
            }
            let left = self.budget.left.clone();
            let waiting = self
                .waiting
                .get_or_insert_with(|| Box::pin(async move { left.acquire_many_owned(missing).await.ok() }));
            match waiting.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(permit) => {
                    self.waiting = None;
                    if let Some(permit) = permit {
                        self.granted += u32::try_from(permit.num_permits()).unwrap_or(0);
                        permit.forget();
                    }
                }
            }
        }
    }

    /// Gives bytes back.
    pub(super) fn give(&mut self, bytes: u64) {
        self.held = self.held.saturating_sub(bytes);
        let over = self.held.saturating_sub(self.budget.own);
        let over = u32::try_from(over).unwrap_or(u32::MAX);
        if over < self.counted {
            self.budget.left.add_permits((self.counted - over) as usize);
            self.counted = over;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Out of the queue first, so that nothing is given to who is gone.
        self.waiting = None;
        self.budget
            .left
            .add_permits(self.counted as usize + self.granted as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    fn take(share: &mut Share, bytes: u64) -> bool {
        share.take(bytes, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_connections_own_bytes_are_there_whatever_others_hold() {
        let budget = Budget::of(10, 1000, 100);
        let (mut greedy, mut modest) = (budget.share(), budget.share());
        assert!(take(&mut greedy, 110));
        assert!(!take(&mut greedy, 1));
        assert!(take(&mut modest, 10));
        assert!(!take(&mut modest, 1));
        drop(greedy);
        assert!(take(&mut modest, 1));
    }

    #[test]
    fn who_waits_for_many_bytes_is_not_overtaken_by_who_wants_few() {
        let budget = Budget::of(0, 1000, 100);
        let (mut one, mut large, mut small) = (budget.share(), budget.share(), budget.share());
        assert!(take(&mut one, 60));
        assert!(!take(&mut large, 80));
        assert!(!take(&mut small, 10));
        one.give(60);
        assert!(take(&mut large, 80));
        assert!(take(&mut small, 10));
    }

    #[test]
    fn who_goes_while_it_waits_leaves_nothing_behind() {
        let budget = Budget::of(0, 1000, 100);
        let (mut one, mut gone) = (budget.share(), budget.share());
        assert!(take(&mut one, 60));
        assert!(!take(&mut gone, 80));
        drop(gone);
        drop(one);
        assert_eq!(budget.left.available_permits(), 100);
    }

    proptest! {
        #[test]
        fn what_is_held_never_exceeds_what_there_is_and_all_comes_back(
            steps in proptest::collection::vec((0_usize..3, 0_u64..70, any::<bool>()), 0..200)
        ) {
            let budget = Budget::of(10, 80, 100);
            let mut shares = [budget.share(), budget.share(), budget.share()];
            for (who, bytes, gives) in steps {
                if gives {
                    let held = shares[who].held();
                    shares[who].give(bytes.min(held));
                } else {
                    take(&mut shares[who], bytes);
                }
                let beyond: u64 = shares.iter().map(|share| share.held().saturating_sub(10)).sum();
                prop_assert!(beyond <= 100);
                prop_assert!(shares.iter().all(|share| share.held() <= 80));
            }
            drop(shares);
            prop_assert_eq!(budget.left.available_permits(), 100);
        }
    }
}
