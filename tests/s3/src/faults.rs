//! What goes wrong, and what was asked.
//!
//! Keeps: the faults, the seeded source that draws them, the counts, and the listings as they were.
//! Order: one draw for each request, in the order in which they come.
//! Crash: nothing.
//! Knows no connections.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::http::response::Parts;
use hyper::{Method, Request, StatusCode};

/// What goes wrong; numbers are times in a thousand requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// `503 SlowDown`, and nothing is done.
    pub slow_down: u16,
    /// The connection is reset in the middle of the request, and nothing is done.
    pub reset_request: u16,
    /// The connection is reset in the middle of the answer.
    pub reset_answer: u16,
    /// All is done, and the connection is reset in place of the answer.
    pub lost_answer: u16,
    /// How much longer a `PUT` takes.
    pub put_delay: Duration,
    /// A `PUT` goes on once this is not set any more.
    pub puts_wait: bool,
    /// How much longer a `GET` takes.
    pub get_delay: Duration,
    /// Requests never end.
    pub hangs: bool,
    /// Lists are answered as the same was answered before, as long as this is set.
    pub stale_lists: bool,
    /// `If-None-Match` is not heeded: what is there is overwritten.
    pub overwrites: bool,
    /// `If-None-Match` is refused: `501 NotImplemented`.
    pub no_conditions: bool,
    /// Puts find no space: `507`.
    pub full: bool,
    /// The access key may not do what it asks: `403 AccessDenied`.
    pub denied: bool,
    /// The bucket is in another region: `301 PermanentRedirect`.
    pub elsewhere: bool,
}

/// What was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests, whatever came of them.
    pub requests: u64,
    /// Of these `PUT` and `POST`.
    pub puts: u64,
    /// The most of these that were under way at once.
    pub puts_at_once: u64,
    /// Of these `GET` of a key.
    pub gets: u64,
    /// Of these lists.
    pub lists: u64,
    /// Uploads in parts that were completed.
    pub completions: u64,
    /// Requests that went wrong on purpose.
    pub faults: u64,
    /// Connections.
    pub connections: u64,
}

/// What was drawn for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drawn {
    Nothing,
    Refuse(StatusCode, &'static str),
    ResetRequest,
    ResetAnswer,
    LoseAnswer,
    Hang,
}

#[derive(Debug)]
pub(crate) struct State {
    root: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    counts: Counts,
    puts_under_way: u64,
    random: fastrand::Rng,
    lists: HashMap<String, (Parts, Bytes)>,
}

impl State {
    pub(crate) fn new(root: PathBuf, seed: u64) -> Self {
        Self {
            root,
            inner: Mutex::new(Inner {
                faults: Faults::default(),
                counts: Counts::default(),
                puts_under_way: 0,
                random: fastrand::Rng::with_seed(seed),
                lists: HashMap::new(),
            }),
        }
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// Whether puts wait now.
    pub(crate) fn puts_wait(&self) -> bool {
        self.inner().faults.puts_wait
    }

    /// A put is under way until what this gives is dropped.
    pub(crate) fn put_begins(&self) -> Put<'_> {
        let inner = &mut *self.inner();
        inner.puts_under_way += 1;
        inner.counts.puts_at_once = inner.counts.puts_at_once.max(inner.puts_under_way);
        Put(self)
    }

    pub(crate) fn connected(&self) {
        self.inner().counts.connections += 1;
    }

    /// Counts a request and decides what becomes of it.
    pub(crate) fn draw<T>(&self, request: &Request<T>) -> (Faults, Drawn) {
        let inner = &mut *self.inner();
        let counts = &mut inner.counts;
        counts.requests += 1;
        let method = request.method();
        counts.puts += u64::from(matches!(*method, Method::PUT | Method::POST));
        let list = is_list(request);
        counts.lists += u64::from(list);
        counts.gets += u64::from(method == Method::GET && !list);
        let drawn = decide(inner.faults, &mut inner.random, request);
        counts.faults += u64::from(drawn != Drawn::Nothing);
        (inner.faults, drawn)
    }

    /// The answer as it was, where lists are stale.
    pub(crate) fn stale_list<T>(&self, request: &Request<T>) -> Option<(Parts, Bytes)> {
        let inner = self.inner();
        let is_stale = inner.faults.stale_lists && is_list(request);
        is_stale
            .then(|| inner.lists.get(&request.uri().to_string()).cloned())
            .flatten()
    }

    /// Keeps an answer, for when lists are stale.
    pub(crate) fn listed(&self, uri: String, head: &Parts, body: &Bytes) {
        self.inner().lists.insert(uri, (head.clone(), body.clone()));
    }

    pub(crate) fn completed(&self) {
        self.inner().counts.completions += 1;
    }

    /// Removes what a put is about to overwrite, as a server that heeds no condition would.
    pub(crate) fn forget(&self, host: &str, path: &str) {
        let path = path.trim_start_matches('/');
        let file = match host.split_once(".localhost") {
            Some((bucket, _)) => self.root.join(bucket).join(path),
            None => self.root.join(path),
        };
        // Nothing there is the usual case.
        let _ = std::fs::remove_file(file);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A put that is under way.
pub(crate) struct Put<'a>(&'a State);

impl Drop for Put<'_> {
    fn drop(&mut self) {
        self.0.inner().puts_under_way -= 1;
    }
}

pub(crate) fn is_list<T>(request: &Request<T>) -> bool {
    request
        .uri()
        .query()
        .is_some_and(|query| query.contains("list-type=2"))
}

pub(crate) fn is_conditional<T>(request: &Request<T>) -> bool {
    request.headers().contains_key(hyper::header::IF_NONE_MATCH)
}

fn decide<T>(faults: Faults, random: &mut fastrand::Rng, request: &Request<T>) -> Drawn {
    let mut happens = |times: u16| random.u16(0..1000) < times;
    let drawn = [
        (
            happens(faults.slow_down),
            Drawn::Refuse(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        ),
        (happens(faults.reset_request), Drawn::ResetRequest),
        (happens(faults.reset_answer), Drawn::ResetAnswer),
        (happens(faults.lost_answer), Drawn::LoseAnswer),
        (faults.hangs, Drawn::Hang),
        (
            faults.no_conditions && is_conditional(request),
            Drawn::Refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        ),
        (
            faults.full && request.method() == Method::PUT,
            Drawn::Refuse(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
        ),
        (
            faults.denied,
            Drawn::Refuse(StatusCode::FORBIDDEN, "AccessDenied"),
        ),
        (
            faults.elsewhere,
            Drawn::Refuse(StatusCode::MOVED_PERMANENTLY, "PermanentRedirect"),
        ),
    ];
    let first = drawn.into_iter().find(|(happens, _)| *happens);
    first.map_or(Drawn::Nothing, |(_, drawn)| drawn)
}
