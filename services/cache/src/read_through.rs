//! A cache with a way to fetch what it does not have.
//!
//! Keeps: nothing but the cache and the fetches.
//! Order: what was fetched can be found before those that waited for it are told.
//! Crash: that of the cache.
//! Knows no places to fetch from.

use std::future::Future;

use bytes::Bytes;

use crate::cache::Cache;
use crate::flights::{Flight, Flights, Joined, Turn};
use crate::key::Key;

/// A cache whose misses are fetched once for all that want them at that time. A handle.
#[derive(Debug, Clone)]
pub struct ReadThrough<E> {
    cache: Cache,
    flights: Flights<E>,
}

impl<E: Clone> ReadThrough<E> {
    /// In front of whatever is fetched from.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            flights: Flights::default(),
        }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The piece from the cache, or else by `fetch`, which must give an unharmed one.
    ///
    /// # Errors
    /// What the fetch says, this one or the one that it waited for. It is not kept: the next caller fetches anew.
    pub async fn get<F>(&self, key: Key, fetch: impl FnOnce() -> F) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        if let Some(piece) = self.cache.get(&key).await {
            return Ok(piece);
        }
        let flight = match self.flights.join(key) {
            Joined::Leads(flight) => flight,
            Joined::Follows(follower) => match follower.await {
                Turn::Landed(fetched) => return fetched,
                Turn::Leads(flight) => flight,
            },
        };
        // Another's fetch may have ended between the lookup and this one's lead.
        if self.cache.has(&key)
            && let Some(piece) = self.cache.get(&key).await
        {
            let found = Ok(piece);
            flight.land(&found);
            return found;
        }
        self.fetch(key, flight, fetch).await
    }

    async fn fetch<F>(&self, key: Key, flight: Flight<E>, fetch: impl FnOnce() -> F) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        let fetched = fetch().await;
        if let Ok(piece) = &fetched {
            self.cache.put(key, piece.clone());
        }
        flight.land(&fetched);
        fetched
    }
}
