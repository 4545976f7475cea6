//! A stream: what one ownership tells one run of its twin.
//!
//! Keeps: what was said and is not answered, and what could not be sent yet.
//! Order: SCOs and batches leave in the order in which they are told; the volume hears of the twin's answers to them in that order too.
//! Crash: a stream that failed in any way is over, and says so once: nothing more comes of it.
//! Knows no record.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use sconce_bus::{Begun, CallError, NotBegun};
use sconce_runtime::Chance;
use sconce_runtime::simulated::{Planted, leaves_out};
use sconce_schemas::records::Buffer;
use sconce_schemas::sco::{HEADER_LEN, ScoHeader};
use sconce_schemas::wire::Refusal;
use sconce_schemas::wire::event::What;
use sconce_schemas::wire::twin::{TwinReply, TwinRequest, TwinSay};
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};
use sconce_schemas::{BatchSeq, ByteLen, Epoch, NodeName, ScoId, VolumeId};
use sconce_tracing::{Action, Cause, OperationId, OperationIds, Point, Status, Step, Trace};
use sconce_volume::{Append, Event};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::lines::Line;
use crate::actor::Owner;
use crate::device::ScoFile;

/// An owner that writes nothing asks this often whether its stream still is.
const BEAT: Duration = Duration::from_secs(1);
/// Bytes of a part of a SCO that is copied: guests' writes go between two of them.
const PART_BYTES: usize = 1 << 20;
/// Bytes of batches that wait to be sent: a twin that is so far behind does not keep up.
const UNSENT_MAX: u64 = 256 << 20;

/// Who is told what.
pub(super) struct Party {
    pub(super) line: Line,
    pub(super) node: NodeName,
    pub(super) owner: Owner,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    /// The stream's number.
    pub(super) stream: u64,
    /// How long an answer may take.
    pub(super) timeout: Duration,
}

impl Party {
    fn request(&self, say: TwinSay) -> VolumeRequest {
        VolumeRequest::Twin(Box::new(TwinRequest {
            volume: self.volume,
            epoch: self.epoch,
            stream: self.stream,
            say,
        }))
    }

    /// Says something that is in no order with anything else, and waits for the answer.
    pub(super) async fn ask(&self, say: TwinSay, data: Bytes) -> Result<TwinReply, Trouble> {
        let request = self.request(say);
        let (reply, _) = self.line.call(&request, data, 0, self.timeout).await?;
        reply_of(reply)
    }
}

/// Why a twin did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It cannot be asked, or did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It will not.
    #[error("{0}")]
    Refused(Refusal),
    /// It answered something else than was asked.
    #[error("it answered something else than was asked")]
    Answer,
}

fn reply_of(reply: VolumeReply) -> Result<TwinReply, Trouble> {
    match reply {
        VolumeReply::Twin(reply) => Ok(reply),
        VolumeReply::Refused(refusal) => Err(Trouble::Refused(refusal)),
        _ => Err(Trouble::Answer),
    }
}

fn done(reply: &TwinReply) -> Result<(), Trouble> {
    match reply {
        TwinReply::Done => Ok(()),
        TwinReply::Attached { .. } => Err(Trouble::Answer),
    }
}

/// A stream that the twin knows. Dropped, it is told nothing more.
pub(super) struct Stream {
    inner: Rc<Inner>,
    /// The twin's write buffer.
    pub(super) buffer: Buffer,
    tasks: [JoinHandle<()>; 3],
}

struct Inner {
    party: Party,
    unsent: RefCell<VecDeque<Unsent>>,
    unsent_bytes: Cell<u64>,
    /// Something could not be sent at once.
    is_unsent: Notify,
    sent: RefCell<VecDeque<Sent>>,
    /// Something was sent.
    is_sent: Notify,
    /// Each batch that is sent is an operation in traces.
    operations: RefCell<OperationIds>,
    over: Cell<bool>,
    /// Why it is over, where that was not its owner's wish.
    lost: RefCell<Option<String>>,
}

struct Unsent {
    batch: Option<BatchSeq>,
    operation: OperationId,
    /// The span of an operation in the batch, where one is recorded.
    cause: Option<Cause>,
    request: VolumeRequest,
    data: Bytes,
    at: Instant,
}

struct Sent {
    /// `None`: a SCO was opened.
    batch: Option<BatchSeq>,
    operation: OperationId,
    at: Instant,
    begun: Begun<VolumeReply>,
}

impl Stream {
    /// The stream that the twin has said yes to.
    pub(super) fn new(party: Party, buffer: Buffer) -> Self {
        let inner = Rc::new(Inner {
            party,
            unsent: RefCell::default(),
            unsent_bytes: Cell::new(0),
            is_unsent: Notify::new(),
            sent: RefCell::default(),
            is_sent: Notify::new(),
            operations: RefCell::new(OperationIds::starting_at(Chance::from_os().u64())),
            over: Cell::new(false),
            lost: RefCell::default(),
        });
        let tasks = [
            actix_rt::spawn(send(Rc::clone(&inner))),
            actix_rt::spawn(hear(Rc::clone(&inner))),
            actix_rt::spawn(beat(Rc::clone(&inner))),
        ];
        Self { inner, buffer, tasks }
    }

    pub(super) fn node(&self) -> &NodeName {
        &self.inner.party.node
    }

    pub(super) fn is_over(&self) -> bool {
        self.inner.over.get()
    }

    /// Why it is over, where something went wrong.
    pub(super) fn lost(&self) -> Option<String> {
        self.inner.lost.borrow().clone()
    }

    /// Ends the stream, and tells the volume.
    pub(super) fn fail(&self, cause: &str) {
        self.inner.fail(cause);
    }

    /// Ends the stream because its owner wants so.
    pub(super) fn leave(&self, cause: &str) {
        let (inner, host) = (&self.inner, self.node().clone());
        let cause = cause.to_owned();
        inner.party.owner.tell(What::TwinGivenUp { host, cause });
        inner.tell(Event::TwinLost);
        inner.end();
    }

    pub(super) fn open(&self, header: &ScoHeader) {
        let say = TwinSay::Open {
            sco: header.id,
            first_batch: header.first_batch,
            synced_below: header.synced_below,
        };
        self.inner.say((None, None), say, Bytes::new());
    }

    pub(super) fn append(&self, append: &Append, recorded: Option<Trace>) {
        let say = TwinSay::Append {
            sco: append.sco,
            seq: append.seq,
            tlog_offset: append.tlog_offset,
            tlog: append.tlog.clone(),
            first_slot: append.first_slot,
        };
        let cause = recorded.and_then(|trace| trace.cause);
        self.inner
            .say((Some(append.seq), cause), say, joined(&append.data));
        if leaves_out(Planted::AckBeforeTwin) {
            self.inner.tell(Event::TwinHeld { upto: append.seq });
        }
    }

    /// Has the twin sync what it holds. It was answered before this is asked for that it holds it, so the order is right.
    pub(super) fn sync(&self, upto: BatchSeq) {
        let inner = Rc::clone(&self.inner);
        actix_rt::spawn(async move {
            let asked = inner.ask(TwinSay::Sync { upto }, Bytes::new()).await;
            if asked.is_some() {
                inner.tell(Event::TwinSynced { upto });
            }
        });
    }

    pub(super) fn release(&self, upto: ScoId) {
        let inner = Rc::clone(&self.inner);
        actix_rt::spawn(async move { inner.ask(TwinSay::Release { upto }, Bytes::new()).await });
    }

    /// Copies a SCO, as an object of it would be.
    pub(super) fn copy(&self, room: Rc<Semaphore>, copied: Copied) {
        let inner = Rc::clone(&self.inner);
        actix_rt::spawn(async move {
            let Ok(_room) = room.acquire().await else {
                return;
            };
            if inner.over.get() {
                return;
            }
            match copied.read().await {
                Ok(bytes) => copy(&inner, copied.header, bytes).await,
                Err(error) => inner.fail(&format!(
                    "SCO {} cannot be read from the write buffer: {error}",
                    copied.header.id
                )),
            }
        });
    }

    /// The SCO is on the back ends, and its file is gone.
    pub(super) fn needs_no_copy(&self, sco: ScoId) {
        self.inner.tell(Event::TwinCopied { sco });
    }

    /// Nobody relies on what the twin has: it may forget it. Nothing more comes of the stream.
    pub(super) async fn detach(&self) {
        self.inner.end();
        let detached = self.inner.party.ask(TwinSay::Detach, Bytes::new()).await;
        if let Err(cause) = detached {
            let (owner, twin) = (&self.inner.party.owner, self.node());
            // It finds out by itself: by the record, or by the next stream.
            tracing::debug!(volume = %owner.subject().path, %twin, %cause, "a twin was not told that it is none any more");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.inner.end();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A SCO that is copied.
pub(super) struct Copied {
    pub(super) header: ScoHeader,
    /// Bytes of its TLog area that are used.
    pub(super) tlog_len: ByteLen,
    /// Bytes from its start.
    pub(super) length: ByteLen,
    pub(super) file: Arc<ScoFile>,
}

impl Copied {
    async fn read(&self) -> std::io::Result<Bytes> {
        let (file, length, tlog_len) = (Arc::clone(&self.file), self.length.0, self.tlog_len.0);
        sconce_runtime::blocking(move || file.object(length, tlog_len))
            .await
            .map_err(std::io::Error::other)?
    }
}

async fn copy(inner: &Inner, header: ScoHeader, mut bytes: Bytes) {
    let found = ScoHeader::from_bytes(bytes.get(..HEADER_LEN).unwrap_or_default());
    if found.map(|found| (found.volume, found.id, found.epoch))
        != Ok((header.volume, header.id, header.epoch))
    {
        // Stored and covered meanwhile, its file was taken for something else: the next stream will not ask for it.
        let cause = format!("the file of SCO {} is not that SCO's", header.id);
        return inner.fail(&cause);
    }
    let length = ByteLen(bytes.len() as u64);
    let mut offset = ByteLen(0);
    while !bytes.is_empty() {
        let part = bytes.split_to(bytes.len().min(PART_BYTES));
        let sent = part.len() as u64;
        let say = TwinSay::Copy {
            sco: header.id,
            sco_epoch: header.epoch,
            offset,
            length,
        };
        if inner.ask(say, part).await.is_none() {
            return;
        }
        offset.0 += sent;
    }
    inner.tell(Event::TwinCopied { sco: header.id });
}

impl Inner {
    /// What comes after everything that was said so.
    fn say(&self, (batch, cause): (Option<BatchSeq>, Option<Cause>), say: TwinSay, data: Bytes) {
        if self.over.get() {
            return;
        }
        let operation = self.operations.borrow_mut().give();
        self.trace(Point::VolumeTwinSend, (batch, operation), data.len(), Status::Ok);
        let mut unsent = Unsent {
            batch,
            operation,
            cause,
            request: self.party.request(say),
            data,
            at: Instant::now(),
        };
        if self.unsent.borrow().is_empty() {
            match self.try_send(unsent) {
                None => return,
                Some(blocked) => unsent = blocked,
            }
        }
        let bytes = self.unsent_bytes.get() + unsent.data.len() as u64;
        if bytes > UNSENT_MAX {
            return self.fail(&format!("it is {bytes} bytes behind, and does not keep up"));
        }
        self.unsent_bytes.set(bytes);
        self.unsent.borrow_mut().push_back(unsent);
        self.is_unsent.notify_one();
    }

    /// Gives it back if it cannot be sent now.
    fn try_send(&self, unsent: Unsent) -> Option<Unsent> {
        let Unsent {
            batch,
            operation,
            cause,
            request,
            data,
            at,
        } = unsent;
        let trace = Trace {
            operation: operation.0,
            cause,
        };
        match self.party.line.begin_for(trace, &request, data, 0) {
            Ok(begun) => {
                self.sent.borrow_mut().push_back(Sent {
                    batch,
                    operation,
                    at,
                    begun,
                });
                self.is_sent.notify_one();
                None
            }
            Err(NotBegun::NoRoom(data)) => Some(Unsent {
                batch,
                operation,
                cause,
                request,
                data,
                at,
            }),
            Err(NotBegun::Refused(refusal)) => {
                self.fail(&refusal.text);
                None
            }
        }
    }

    /// Sends what waits; gives the time by which the first that still does has to be answered.
    fn send_unsent(&self) -> Option<Instant> {
        loop {
            let unsent = self.unsent.borrow_mut().pop_front()?;
            let (bytes, by) = (unsent.data.len() as u64, unsent.at + self.party.timeout);
            if let Some(blocked) = self.try_send(unsent) {
                self.unsent.borrow_mut().push_front(blocked);
                return Some(by);
            }
            self.unsent_bytes
                .set(self.unsent_bytes.get().saturating_sub(bytes));
        }
    }

    /// Says something that is in no order with anything else; `None`: the stream is over.
    async fn ask(&self, say: TwinSay, data: Bytes) -> Option<()> {
        if self.over.get() {
            return None;
        }
        let answer = self.party.ask(say, data).await;
        if let Err(trouble) = answer.and_then(|reply| done(&reply)) {
            self.fail(&trouble.to_string());
        }
        (!self.over.get()).then_some(())
    }

    /// Records a step of a batch on its way to the twin; nothing else is traced.
    #[inline]
    fn trace(&self, point: Point, (batch, operation): Said, length: usize, status: Status) {
        if let Some(batch) = batch {
            point.record(|| Step {
                operation,
                action: Action::Write,
                volume: self.party.volume,
                address: batch.0,
                length: length as u64,
                status,
            });
        }
    }

    fn tell(&self, event: Event) {
        if !self.over.get() {
            self.party.owner.happened(event);
        }
    }

    fn fail(&self, cause: &str) {
        if self.over.get() {
            return;
        }
        self.party.owner.tell(What::TwinLost {
            host: self.party.node.clone(),
            cause: cause.to_owned(),
        });
        *self.lost.borrow_mut() = Some(cause.to_owned());
        self.tell(Event::TwinLost);
        self.end();
    }

    fn end(&self) {
        self.over.set(true);
        self.unsent.borrow_mut().clear();
        self.sent.borrow_mut().clear();
    }
}

/// Sends what could not be sent at once.
async fn send(inner: Rc<Inner>) {
    while !inner.over.get() {
        match inner.send_unsent() {
            None => inner.is_unsent.notified().await,
            Some(by) => {
                // Nothing is awaited between the try and this.
                if timeout_at(by, inner.party.line.room()).await.is_err() {
                    inner.fail("it takes nothing more, and answered nothing in time");
                }
            }
        }
    }
}

/// Hears the answers in the order of what was said. Those that are there already are told of as one.
async fn hear(inner: Rc<Inner>) {
    while !inner.over.get() {
        let next = inner.sent.borrow_mut().pop_front();
        let Some(mut sent) = next else {
            inner.is_sent.notified().await;
            continue;
        };
        let answer = timeout_at(sent.at + inner.party.timeout, sent.begun.answer()).await;
        if !is_done(
            &inner,
            (sent.batch, sent.operation),
            answer.unwrap_or(Err(CallError::Deadline)),
        ) {
            return;
        }
        let mut held = sent.batch;
        while let Some((said, answer)) = answered(&inner) {
            if !is_done(&inner, said, answer) {
                return;
            }
            held = said.0.or(held);
        }
        if let Some(upto) = held {
            inner.tell(Event::TwinHeld { upto });
        }
    }
}

type Answer = Result<(VolumeReply, Bytes), CallError>;

/// A batch, or that a SCO was opened, and its operation.
type Said = (Option<BatchSeq>, OperationId);

/// The next answer, if it is there.
fn answered(inner: &Inner) -> Option<(Said, Answer)> {
    let mut sent = inner.sent.borrow_mut();
    let answer = sent.front_mut()?.begun.answer().now_or_never()?;
    sent.pop_front()
        .map(|sent| ((sent.batch, sent.operation), answer))
}

fn is_done(inner: &Inner, said: Said, answer: Answer) -> bool {
    let reply = answer
        .map_err(Trouble::from)
        .and_then(|(reply, _)| reply_of(reply));
    let done = reply.and_then(|reply| done(&reply));
    let status = match &done {
        Ok(()) => Status::Ok,
        Err(_) => Status::Failed,
    };
    inner.trace(Point::VolumeTwinAck, said, 0, status);
    if let Err(trouble) = done {
        inner.fail(&trouble.to_string());
    }
    !inner.over.get()
}

async fn beat(inner: Rc<Inner>) {
    loop {
        tokio::time::sleep(BEAT).await;
        if inner.ask(TwinSay::Beat, Bytes::new()).await.is_none() {
            return;
        }
    }
}

/// One piece of memory: the usual batch is one already.
fn joined(parts: &[Bytes]) -> Bytes {
    if let [only] = parts {
        return only.clone();
    }
    let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}
