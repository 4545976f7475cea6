//! Volumes as futures: for front ends that handle a few operations at a time, and for the command line.
//!
//! Keeps: a front end and a session for each volume in use.
//! Order: operations that are awaited one after the other happen one after the other; concurrent ones in any order.
//! Crash: an operation whose future was dropped may happen or not.
//! Knows no protocol. Hot front ends use [`super::FrontEnd`] itself.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use sconce_schemas::wire::volume::{ChangedExtent, ExtentStatus, IoFlags};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{SnapshotId, VolumeId, VolumeSize};
use sconce_tracing::OperationId;

use super::core::{Patience, Token, View};
use super::front_end::{FrontEnd, SessionHandle};
use super::mailbox::Mailbox;
use super::operation::{Opened, Operation, Outcome, ReadData};
use super::router::Router;
use super::waiters::Waiters;

/// A volume in use. A handle: clones share it; dropping the last abandons its operations.
#[derive(Clone)]
pub struct Volume {
    shared: Rc<Shared>,
}

struct Shared {
    id: VolumeId,
    front_end: FrontEnd,
    session: SessionHandle,
}

impl Router {
    /// Opens a volume: waits for its owner, for as long as that takes.
    ///
    /// # Errors
    /// There is no such volume, or its owner will not open it.
    pub async fn volume(&self, id: VolumeId) -> Result<Volume, Refusal> {
        self.orphans().settled(id).await;
        let volume = self.attach_volume(id);
        volume.opened().await?;
        Ok(volume)
    }

    /// The volume, without waiting for its owner.
    #[must_use]
    pub fn attach_volume(&self, id: VolumeId) -> Volume {
        let front_end = self.attach_mailbox(Mailbox::Futures(Waiters::default()));
        let session = front_end.session(id);
        Volume::new(id, front_end, session)
    }

    /// A snapshot of the volume, to be read, without waiting for its owner: the one that is `id` and has this name.
    #[must_use]
    pub fn attach_snapshot(&self, volume: VolumeId, id: SnapshotId, name: String) -> Volume {
        let front_end = self.attach_mailbox(Mailbox::Futures(Waiters::default()));
        let session = front_end.snapshot_session(volume, name, Some(id));
        Volume::new(volume, front_end, session)
    }
}

impl Router {
    /// A view of the volume, without waiting for its owner.
    #[must_use]
    pub fn attach_view(&self, volume: VolumeId, view: View) -> Volume {
        let front_end = self.attach_mailbox(Mailbox::Futures(Waiters::default()));
        let session = front_end.view_session(volume, view);
        Volume::new(volume, front_end, session)
    }
}

impl Volume {
    fn new(id: VolumeId, front_end: FrontEnd, session: SessionHandle) -> Volume {
        let shared = Shared {
            id,
            front_end,
            session,
        };
        Volume {
            shared: Rc::new(shared),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.shared.id
    }

    /// What its owner says of it now: size, epoch, whether it takes writes.
    ///
    /// # Errors
    /// There is no such volume, or its owner will not open it.
    pub async fn opened(&self) -> Result<Opened, Refusal> {
        let Shared {
            front_end, session, ..
        } = &*self.shared;
        let token = self.begin()?;
        front_end.open(session, token, Patience::Endless);
        match self.wait(token).await {
            Outcome::Opened(opened) => Ok(opened),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// Why its operations are held, where they are.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.session.trouble()
    }

    /// Reads `length` bytes from `offset`.
    ///
    /// # Errors
    /// The range is not within the volume; the data is damaged.
    pub async fn read(&self, offset: u64, length: u64) -> Result<ReadData, Refusal> {
        match self.run(Operation::read(offset, length)).await? {
            Outcome::Read(data) => Ok(data),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// Writes `data` at `offset`; `flags` are those of [`IoFlags`].
    ///
    /// # Errors
    /// The range is not within the volume (without [`IoFlags::EXTEND`]); the volume takes no writes.
    pub async fn write(&self, offset: u64, data: Bytes, flags: IoFlags) -> Result<(), Refusal> {
        self.change(Operation::write(offset, data, flags.0)).await
    }

    /// Makes a range a hole.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn discard(&self, offset: u64, length: u64, flags: IoFlags) -> Result<(), Refusal> {
        self.change(Operation::discard(offset, length, flags.0)).await
    }

    /// Makes a range zeros.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: IoFlags) -> Result<(), Refusal> {
        self.change(Operation::write_zeroes(offset, length, flags.0))
            .await
    }

    /// Makes all that was acknowledged survive a power loss.
    ///
    /// # Errors
    /// The volume is gone.
    pub async fn flush(&self) -> Result<(), Refusal> {
        self.change(Operation::flush()).await
    }

    /// Sets the size; what a smaller size cuts off is discarded.
    ///
    /// # Errors
    /// The volume takes no writes.
    pub async fn resize(&self, size: VolumeSize) -> Result<(), Refusal> {
        self.change(Operation::resize(size)).await
    }

    /// As [`Volume::resize`], as a person asks: that needs no write access.
    ///
    /// # Errors
    /// As [`Volume::resize`].
    pub async fn resize_as_asked(&self, size: VolumeSize) -> Result<(), Refusal> {
        let mut resize = Operation::resize(size);
        resize.flags.0 |= IoFlags::OPERATOR;
        self.change(resize).await
    }

    /// What of a range is data, zeros and holes; at least the start of the range is covered.
    ///
    /// # Errors
    /// The range is not within the volume.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<ExtentStatus>, Refusal> {
        match self.run(Operation::extents(offset, length)).await? {
            Outcome::Extents(extents) => Ok(extents),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// What of a range differs, in a view that compares; at least the start of the range is covered.
    ///
    /// # Errors
    /// The range is not within the volume; a snapshot is gone.
    pub async fn changes(&self, offset: u64, length: u64) -> Result<Vec<ChangedExtent>, Refusal> {
        match self.run(Operation::changes(offset, length)).await? {
            Outcome::Changes(changes) => Ok(changes),
            outcome => Err(unexpected(outcome)),
        }
    }

    async fn change(&self, operation: Operation) -> Result<(), Refusal> {
        match self.run(operation).await? {
            Outcome::Done => Ok(()),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// An id for an operation that is about to be run, for what is traced before.
    pub(crate) fn operation_id(&self) -> OperationId {
        self.shared.front_end.operation_id()
    }

    /// Runs any operation to its end.
    pub(crate) async fn run(&self, operation: Operation) -> Result<Outcome, Refusal> {
        let Shared {
            front_end, session, ..
        } = &*self.shared;
        let mut operation = Some(operation);
        let token = poll_fn(|cx| {
            let Some(next) = operation.take() else {
                return Poll::Pending;
            };
            let token = match self.begin() {
                Ok(token) => token,
                Err(refusal) => return Poll::Ready(Err(refusal)),
            };
            match front_end.submit(session, token, next) {
                Ok(()) => Poll::Ready(Ok(token)),
                Err(back) => {
                    operation = Some(back);
                    front_end.with_waiters(|waiters| {
                        waiters.cancel(token);
                        waiters.wait_for_room(cx);
                    });
                    Poll::Pending
                }
            }
        })
        .await?;
        match self.wait(token).await {
            Outcome::Refused(refusal) => Err(refusal),
            outcome => Ok(outcome),
        }
    }

    fn begin(&self) -> Result<Token, Refusal> {
        let token = self.shared.front_end.with_waiters(Waiters::begin);
        token.ok_or_else(|| Refusal::reject(RefusalCode::Internal, "a volume's front end has no waiters"))
    }

    async fn wait(&self, token: Token) -> Outcome {
        let front_end = &self.shared.front_end;
        front_end.router().send();
        let waiting = Waiting { front_end, token };
        poll_fn(|cx| {
            let polled = waiting
                .front_end
                .with_waiters(|waiters| waiters.poll(waiting.token, cx));
            polled.unwrap_or(Poll::Pending)
        })
        .await
    }
}

/// Lets its waiter go when the future is dropped.
struct Waiting<'a> {
    front_end: &'a FrontEnd,
    token: Token,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.front_end.with_waiters(|waiters| waiters.forget(self.token));
    }
}

fn unexpected(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => Refusal::reject(
            RefusalCode::Internal,
            format!("the operation ended as another: {other:?}"),
        ),
    }
}
