//! One fetch for all that want the same piece at the same time.
//!
//! Keeps: which pieces are being fetched, and who waits for each.
//! Order: the first leads and fetches; those that come while it does get what it got, the same error too.
//! Crash: nothing is written.
//! Knows no fetching. A leader that is dropped before it is done hands the lead to one that waits, so that nobody is stranded.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::cache::{Cache, Found, Use};
use crate::key::Key;

type Waiting<E> = HashMap<Key, VecDeque<oneshot::Sender<Turn<E>>>>;

/// The fetches that are under way. A handle. An error, `E`, is told to all that wait at that moment and not kept.
#[derive(Debug)]
pub struct Flights<E> {
    waiting: Arc<Mutex<Waiting<E>>>,
}

/// Whose fetch it is.
#[derive(Debug)]
pub enum Joined<E> {
    /// The caller's.
    Leads(Flight<E>),
    /// Another's: it is waited for.
    Follows(Follower<E>),
    /// Another's was over between the caller's lookup and this.
    Over(Bytes),
}

/// A fetch that its holder is to make and [`Flight::land`].
#[derive(Debug)]
#[must_use]
pub struct Flight<E> {
    key: Key,
    /// `None` once it has landed.
    waiting: Option<Arc<Mutex<Waiting<E>>>>,
}

/// Waits for another's fetch.
#[derive(Debug)]
pub struct Follower<E> {
    turn: oneshot::Receiver<Turn<E>>,
}

/// How waiting ended.
#[derive(Debug)]
pub enum Turn<E> {
    /// The fetch is over.
    Landed(Result<Bytes, E>),
    /// Its leader gave up: the fetch is the caller's now.
    Leads(Flight<E>),
}

impl<E> Clone for Flights<E> {
    fn clone(&self) -> Self {
        Self {
            waiting: Arc::clone(&self.waiting),
        }
    }
}

impl<E> Default for Flights<E> {
    fn default() -> Self {
        Self {
            waiting: Arc::default(),
        }
    }
}

impl<E: Clone> Flights<E> {
    /// Joins the fetch of a piece that a lookup did not find in the cache, or begins it.
    pub fn join(&self, cache: &Cache, key: Key) -> Joined<E> {
        let flight = match self.lead(key) {
            Ok(flight) => flight,
            Err(follower) => return Joined::Follows(follower),
        };
        if cache.has(&key)
            && let Found::Hit(piece) = cache.find(&key, Use::Counts)
        {
            flight.land(&Ok(piece.clone()));
            return Joined::Over(piece);
        }
        Joined::Leads(flight)
    }
}

impl<E> Flights<E> {
    fn lead(&self, key: Key) -> Result<Flight<E>, Follower<E>> {
        let mut waiting = lock(&self.waiting);
        if let Some(others) = waiting.get_mut(&key) {
            let (sender, turn) = oneshot::channel();
            others.push_back(sender);
            return Err(Follower { turn });
        }
        waiting.insert(key, VecDeque::new());
        Ok(Flight {
            key,
            waiting: Some(Arc::clone(&self.waiting)),
        })
    }

    /// Pieces that are being fetched.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<E: Clone> Flight<E> {
    /// The fetch is over: all that wait are told.
    pub fn land(mut self, fetched: &Result<Bytes, E>) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let others = lock(&waiting).remove(&self.key).unwrap_or_default();
        for other in others {
            // One that does not wait any more has no use for it.
            let _ = other.send(Turn::Landed(fetched.clone()));
        }
    }
}

impl<E> Drop for Flight<E> {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        loop {
            let next = {
                let mut waiting = lock(&waiting);
                match waiting.get_mut(&self.key).and_then(VecDeque::pop_front) {
                    Some(next) => next,
                    None => {
                        waiting.remove(&self.key);
                        return;
                    }
                }
            };
            let flight = Flight {
                key: self.key,
                waiting: Some(Arc::clone(&waiting)),
            };
            match next.send(Turn::Leads(flight)) {
                Ok(()) => return,
                // It does not wait any more. Its flight must not hand the lead on too.
                Err(Turn::Leads(mut flight)) => flight.waiting = None,
                Err(Turn::Landed(_)) => {}
            }
        }
    }
}

impl<E> Future for Follower<E> {
    type Output = Turn<E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Turn<E>> {
        match Pin::new(&mut self.turn).poll(context) {
            Poll::Ready(Ok(turn)) => Poll::Ready(turn),
            // A sender is only dropped with all flights.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

fn lock<E>(waiting: &Mutex<Waiting<E>>) -> MutexGuard<'_, Waiting<E>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
