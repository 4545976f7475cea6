//! A back end whose answers were checked: bytes that come out of here are the bytes that went in.
//!
//! Keeps: counters of requests, errors and what was stored, whether the back end worked last time, and its share of the room.
//! Order: none; each request stands for itself.
//! Crash: a put whose answer was lost is found done when it is sent again.
//! Knows the envelope; no kind of back end, no policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sconce_runtime::Events;
use sconce_runtime::events::log_only;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::{FragmentId, HEADER_BYTES, SealedObject, Span, StoredHeader};
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::storage::{BackendStatus, Written};
use sconce_schemas::{DecodeError, ObjectName, VolumeId};
use sconce_tracing::metrics::{Metric, Page};
use sconce_tracing::{Action, Point, SpanKind, Status, Step, telemetry};

use crate::asked::{Asked, AskedCounts};
use crate::backend::{Backend, BackendError, Pending, Space};
use crate::room::Room;
use crate::share::{PATIENCE, Share};
use crate::trace::step;
use crate::workers::Workers;

/// Reads up to this size are checked on the calling thread: 256 KiB take 30 µs, a change of threads 16 µs.
pub(crate) const CHECK_HERE_BYTES: usize = 256 << 10;
/// Size of the reads in which an object that is there is compared.
const PIECE_BYTES: usize = 4 << 20;

/// A back end behind its checks.
pub struct Checked {
    backend: Arc<dyn Backend>,
    workers: Workers,
    deadline: Duration,
    share: Share,
    requests: AtomicU64,
    errors: AtomicU64,
    objects_written: AtomicU64,
    bytes_written: AtomicU64,
    asked: AskedCounts,
    /// The last request found it at work: a change is told, and not each request.
    works: AtomicBool,
    /// Where that is told.
    events: Option<Events>,
}

impl Checked {
    /// Checks what `backend` answers; large reads on `workers`. An answer that takes longer than `deadline` counts
    /// as unavailable. Nobody but the log hears of it where it does not work, unless [`Checked::telling`] says who.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, workers: Workers, deadline: Duration) -> Self {
        Self {
            backend,
            workers,
            deadline,
            share: Share::new(Room::new(usize::MAX, u64::MAX)),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            objects_written: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            asked: AskedCounts::default(),
            works: AtomicBool::new(true),
            events: None,
        }
    }

    /// The same; where it fails and works again is told to `events`.
    #[must_use]
    pub fn telling(self, events: Events) -> Self {
        Self {
            events: Some(events),
            ..self
        }
    }

    /// At most `requests` requests, with `bytes` bytes among them, are under way at the back end. What does not fit
    /// waits for a moment and then counts as unavailable, so that a back end that hangs keeps no more than its share.
    #[must_use]
    pub fn at_most(mut self, requests: usize, bytes: u64) -> Self {
        self.share = Share::new(Room::new(requests, bytes));
        self
    }

    /// Recorded, if what it is done for is.
    fn span(&self, name: &'static str, length: u64) -> sconce_tracing::Span {
        let mut span = sconce_tracing::Span::below(telemetry::current(), SpanKind::Client, name);
        if span.is_recorded() {
            span.text("sconce.backend", self.name());
            span.number("sconce.length", length);
        }
        span
    }

    /// The back end's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.backend.name()
    }

    /// Whether the back end did what the last request asked, or said that there is nothing to do, and does not hang now.
    #[must_use]
    pub fn works(&self) -> bool {
        self.worked() && !self.share.is_stuck()
    }

    fn worked(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Stores an object, durably. The same object again succeeds.
    ///
    /// # Errors
    /// `Exists`: another object of this name is there and whole. `Damaged`: something is there that is not whole.
    /// `Full`, `Unavailable`, `Denied`.
    pub async fn put(&self, object: &SealedObject) -> Result<(), BackendError> {
        let step = step(Action::Put, object.name(), 0, object.stored_len());
        Point::BackendPut.record(|| step);
        let mut span = self.span("backend.put", object.stored_len());
        let put = self.backend.put_new(object.clone());
        let done = self.timed(Asked::Put, object.stored_len(), put).await;
        end(&mut span, &done);
        drop(span);
        Point::BackendExit.record(|| ended(step, &done));
        match done {
            Err(BackendError::Exists) => self.compare(object).await,
            done => self.wrote(object, done),
        }
    }

    /// Stores an object in place of a bad copy, durably.
    ///
    /// # Errors
    /// `Full`, `Unavailable`, `Denied`.
    pub async fn replace(&self, object: &SealedObject) -> Result<(), BackendError> {
        let replaced = self
            .timed(
                Asked::Put,
                object.stored_len(),
                self.backend.replace(object.clone()),
            )
            .await;
        self.wrote(object, replaced)
    }

    fn wrote(&self, object: &SealedObject, done: Result<(), BackendError>) -> Result<(), BackendError> {
        if done.is_ok() {
            self.objects_written.fetch_add(1, Ordering::Relaxed);
            self.bytes_written
                .fetch_add(object.stored_len(), Ordering::Relaxed);
        }
        done
    }

    /// Reads `length` bytes of an object from `offset`; fewer, or none, where it ends before.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`: what is there is not the object as it was put; `Unavailable`, `Denied`.
    pub async fn get(&self, name: ObjectName, offset: u64, length: u64) -> Result<Bytes, BackendError> {
        self.get_of(name, None, offset, length).await
    }

    /// As [`Checked::get`], of a fragment of the object, or of the whole object where it is `None`.
    ///
    /// # Errors
    /// As [`Checked::get`]; another fragment in its place is `Damaged`.
    pub async fn get_of(
        &self,
        name: ObjectName,
        fragment: Option<FragmentId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, BackendError> {
        let span = Span::holding(offset, length);
        let step = step(Action::Get, name, offset, length);
        Point::BackendGet.record(|| step);
        let read = self
            .backend
            .read(name, span.stored_offset(), span.stored_length());
        let mut recorded = self.span("backend.get", length);
        let read = self.timed(Asked::Get, length, read).await;
        end(&mut recorded, &read);
        drop(recorded);
        Point::BackendExit.record(|| ended(step, &read));
        let stored = read?;
        let is_large = stored.bytes.len() > CHECK_HERE_BYTES;
        let check = move || {
            span.open_fragment(name, fragment, stored.stored_len, stored.bytes)
                .map_err(|error| damaged(&error))
        };
        let checked = if is_large {
            self.workers.run(length, check).await
        } else {
            check()
        };
        self.counted(checked)
    }

    /// Length of an object in bytes, by its header and by its stored length, which have to agree.
    ///
    /// # Errors
    /// As [`Checked::get`].
    pub async fn stat(&self, name: ObjectName) -> Result<u64, BackendError> {
        self.stat_of(name, None).await
    }

    /// As [`Checked::stat`], of a fragment of the object, or of the whole object where it is `None`.
    ///
    /// # Errors
    /// As [`Checked::get`]; something else in its place is `Damaged`.
    pub async fn stat_of(&self, name: ObjectName, fragment: Option<FragmentId>) -> Result<u64, BackendError> {
        let header = self.header(name).await?;
        if header.fragment() == fragment {
            return Ok(header.length());
        }
        let right = match fragment {
            None => "the whole object".to_owned(),
            Some(fragment) => format!("fragment {}", fragment.index),
        };
        self.counted(Err(BackendError::Damaged {
            what: format!("it has {}; right would be {right}", header.what()),
        }))
    }

    /// Which fragment of an object is there; `None`: the whole object.
    ///
    /// # Errors
    /// As [`Checked::get`].
    pub async fn fragment_of(&self, name: ObjectName) -> Result<Option<FragmentId>, BackendError> {
        Ok(self.header(name).await?.fragment())
    }

    /// The first `length` bytes of the fragment of this number, or all where it is shorter, and what its envelope says of
    /// it.
    ///
    /// # Errors
    /// As [`Checked::get`]; another fragment, or the whole object, in its place is `Damaged`.
    pub async fn get_start(
        &self,
        name: ObjectName,
        index: u8,
        length: u64,
    ) -> Result<(FragmentId, Bytes), BackendError> {
        let span = Span::holding(0, length.max(1));
        let read = self
            .backend
            .read(name, span.stored_offset(), span.stored_length());
        let stored = self.timed(Asked::Get, length, read).await?;
        let opened = StoredHeader::decode(&stored.bytes).and_then(|header| match header.fragment() {
            Some(fragment) if fragment.index == index => {
                let bytes = span.open_fragment(name, Some(fragment), stored.stored_len, stored.bytes)?;
                Ok((fragment, bytes))
            }
            _ => Err(DecodeError::Value {
                what: "stored object",
                found: header.what(),
                expected: "the fragment that belongs here",
            }),
        });
        self.counted(opened.map_err(|error| damaged(&error)))
    }

    async fn header(&self, name: ObjectName) -> Result<StoredHeader, BackendError> {
        let stored = self
            .timed(Asked::Stat, 0, self.backend.read(name, 0, HEADER_BYTES as u64))
            .await?;
        let header = StoredHeader::decode(&stored.bytes).and_then(|found| {
            let right = StoredHeader::of_stored(name, found.fragment(), stored.stored_len)?;
            if found == right {
                return Ok(right);
            }
            Err(DecodeError::Value {
                what: "stored object",
                found: format!("{} of {} bytes", found.name(), found.length()),
                expected: "the object that its path and its length say",
            })
        });
        self.counted(header.map_err(|error| damaged(&error)))
    }

    /// See [`Backend::list`].
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn list(
        &self,
        volume: VolumeId,
        kind: ObjectKind,
        after: Option<ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectName>, BackendError> {
        self.timed(Asked::List, 0, self.backend.list(volume, kind, after, limit))
            .await
    }

    /// See [`Backend::list_volumes`].
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn list_volumes(
        &self,
        after: Option<VolumeId>,
        limit: usize,
    ) -> Result<Vec<VolumeId>, BackendError> {
        self.timed(Asked::List, 0, self.backend.list_volumes(after, limit))
            .await
    }

    /// Removes an object, durably; one that is not there is no error.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn delete(&self, name: ObjectName) -> Result<(), BackendError> {
        self.timed(Asked::Delete, 0, self.backend.delete(name)).await
    }

    /// What is known of the back end; asks it for its space, which does not count as a request.
    pub async fn status(&self) -> BackendStatus {
        let space = tokio::time::timeout(self.deadline, self.backend.space()).await;
        let (state, space) = match space.unwrap_or_else(|_| Err(self.too_late())) {
            Ok(space) => ("ok".to_owned(), space),
            Err(error) => (error.to_string(), Space::default()),
        };
        BackendStatus {
            name: self.name().to_owned(),
            state,
            capacity: space.capacity,
            free: space.free,
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            written: Written {
                objects: self.objects_written.load(Ordering::Relaxed),
                bytes: self.bytes_written.load(Ordering::Relaxed),
            },
        }
    }

    /// Puts what is counted of the back end on a page.
    pub fn tell_metrics(&self, page: &mut Page) {
        let labels = [self.name()];
        self.asked.tell(page, self.name());
        for (metric, value) in [
            (Metric::BackendErrors, &self.errors),
            (Metric::BackendObjectsWritten, &self.objects_written),
            (Metric::BackendBytesWritten, &self.bytes_written),
        ] {
            page.number(metric, &labels, value.load(Ordering::Relaxed));
        }
        page.yes_or_no(Metric::BackendWorks, &labels, self.works());
    }

    /// Its space, where it says it within this time.
    pub async fn space(&self, within: Duration) -> Option<Result<Space, BackendError>> {
        tokio::time::timeout(within, self.backend.space()).await.ok()
    }

    /// Whether what is there is the object. Only bytes whose CRC holds are compared: a read that goes wrong says
    /// `Damaged`, never that there is another object.
    async fn compare(&self, object: &SealedObject) -> Result<(), BackendError> {
        if object.fragment().is_some() {
            let there = match self.header(object.name()).await {
                Err(BackendError::NotFound) => return Err(vanished()),
                there => there?,
            };
            if there.fragment() != object.fragment() {
                self.read_whole(&there).await?;
                return Err(BackendError::Exists);
            }
        }
        let mut due = object.data().clone();
        let mut offset = 0;
        loop {
            let get = self.get_of(object.name(), object.fragment(), offset, PIECE_BYTES as u64);
            let there = match get.await {
                Err(BackendError::NotFound) => return Err(vanished()),
                there => there?,
            };
            if there != due.split_to(PIECE_BYTES.min(due.len())) {
                return Err(BackendError::Exists);
            }
            if there.len() < PIECE_BYTES {
                return Ok(());
            }
            offset += PIECE_BYTES as u64;
        }
    }

    /// Whether all CRCs of what is there hold.
    async fn read_whole(&self, header: &StoredHeader) -> Result<(), BackendError> {
        let mut offset = 0;
        while offset < header.length() {
            let get = self.get_of(header.name(), header.fragment(), offset, PIECE_BYTES as u64);
            match get.await {
                Err(BackendError::NotFound) => return Err(vanished()),
                read => read?,
            };
            offset += PIECE_BYTES as u64;
        }
        Ok(())
    }

    async fn timed<T>(&self, asked: Asked, bytes: u64, pending: Pending<'_, T>) -> Result<T, BackendError> {
        // Not counted and not told: the back end was not asked.
        let started = self.share.enter(bytes).await.ok_or_else(busy)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        let answer = tokio::time::timeout(self.deadline, pending).await;
        if answer.is_ok() {
            started.answered();
        }
        let done = matches!(answer, Ok(Ok(_)));
        self.asked
            .ended(asked, since.elapsed(), if done { bytes } else { 0 });
        self.counted(answer.unwrap_or_else(|_| Err(self.too_late())))
    }

    fn counted<T>(&self, answer: Result<T, BackendError>) -> Result<T, BackendError> {
        match &answer {
            Ok(_) | Err(BackendError::NotFound | BackendError::Exists) => self.tell(None),
            Err(BackendError::Damaged { .. }) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.tell(Some(error));
            }
        }
        answer
    }

    fn tell(&self, error: Option<&BackendError>) {
        if self.worked() == error.is_none() {
            return;
        }
        self.works.store(error.is_none(), Ordering::Relaxed);
        let backend = self.name().to_owned();
        let what = match error.map(ToString::to_string) {
            Some(cause) => What::BackendFails { backend, cause },
            None => What::BackendWorks { backend },
        };
        match &self.events {
            Some(events) => events.tell(what),
            None => log_only(&what),
        }
    }

    fn too_late(&self) -> BackendError {
        BackendError::Unavailable {
            why: format!("no answer within {} ms", self.deadline.as_millis()),
        }
    }
}

fn ended<T>(step: Step, done: &Result<T, BackendError>) -> Step {
    let status = if done.is_ok() { Status::Ok } else { Status::Failed };
    Step { status, ..step }
}

fn end<T>(span: &mut sconce_tracing::Span, done: &Result<T, BackendError>) {
    if let Err(error) = done {
        span.fail(error);
    }
}

fn busy() -> BackendError {
    BackendError::Unavailable {
        why: format!(
            "as much as it may have is under way, and no part of it ended within {} ms",
            PATIENCE.as_millis()
        ),
    }
}

pub(crate) fn damaged(error: &DecodeError) -> BackendError {
    BackendError::Damaged {
        what: error.to_string(),
    }
}

fn vanished() -> BackendError {
    BackendError::Unavailable {
        why: "the object was deleted while it was put".to_owned(),
    }
}
