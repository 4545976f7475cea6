//! Where a client's events come out.
//!
//! Keeps: the receiving half of the connection, while there is one.
//! Order: `Up` before the first reply, `Down` after the last; replies as they came.
//! Crash: dropping it ends the connection; what was unanswered may or may not be carried out.
//! Knows no request's meaning.

use std::marker::PhantomData;
use std::rc::Rc;

use sconce_schemas::wire::envelope::{Header, Reply};
use sconce_schemas::wire::{Body, Refusal, RefusalCode, Version};
use sconce_tracing::{OperationId, Point, Step};

use super::state::{Answered, Shared, Stage};
use super::{ClientEvent, ReplyIn};
use crate::link::{Frames, LinkReceiver, LostReason};
use crate::refuse::Refuse;
use crate::tolerant::Tolerant;

/// Receives a connection's events. Nothing is read from the connection but by [`Self::next`]: who does not call it
/// holds the server's replies up, in the end by the credit that is not given back.
pub struct Receiver<R> {
    shared: Rc<Shared>,
    driver: tokio::task::JoinHandle<()>,
    link: Option<LinkReceiver>,
    body: PhantomData<fn() -> R>,
}

impl<R> Drop for Receiver<R> {
    fn drop(&mut self) {
        self.driver.abort();
        self.shared.lose(LostReason::Closed);
    }
}

impl<R: Body + Refuse> Receiver<R> {
    pub(super) fn new(shared: Rc<Shared>, driver: tokio::task::JoinHandle<()>) -> Self {
        Self {
            shared,
            driver,
            link: None,
            body: PhantomData,
        }
    }

    /// The next event. Dropping the future loses none.
    pub async fn next(&mut self) -> ClientEvent<R> {
        loop {
            match self.shared.tell() {
                Some(Stage::Greeted(welcome, link)) => {
                    self.link = Some(link);
                    return ClientEvent::Up(welcome);
                }
                Some(Stage::Lost(reason)) => {
                    self.link = None;
                    return ClientEvent::Down(reason);
                }
                Some(Stage::Refused(refusal)) => return ClientEvent::Refused(refusal),
                _ => {}
            }
            if self.shared.take_room() {
                return ClientEvent::Room;
            }
            let Some(link) = &mut self.link else {
                self.shared.receiver.rung().await;
                continue;
            };
            let arrival = tokio::select! {
                biased;
                () = self.shared.receiver.rung() => continue,
                arrival = link.recv() => arrival,
            };
            match arrival.and_then(|frames| self.take(&frames)) {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(reason) => self.shared.lose(reason),
            }
        }
    }

    fn take(&self, frames: &Frames) -> Result<Option<ClientEvent<R>>, LostReason> {
        let header = Header::<Tolerant<R>>::decode(&frames.header, frames.data.len())
            .map_err(|e| LostReason::Protocol(e.to_string()))?;
        match header {
            Header::Replies { mark, replies } => {
                self.shared.arrived(Some(mark));
                let replies = self.replies(frames, replies);
                Ok((!replies.is_empty()).then_some(ClientEvent::Replies(replies)))
            }
            Header::Pong(mark) => {
                self.shared.arrived(Some(mark));
                Ok(None)
            }
            Header::Ping(_) | Header::Unknown(_) => {
                self.shared.arrived(None);
                Ok(None)
            }
            Header::Goodbye(refusal) => Err(LostReason::Goodbye(refusal)),
            Header::Hello(_) | Header::Welcome(_) | Header::Foreign(_) | Header::Requests { .. } => {
                Err(LostReason::Protocol(
                    "a server sent what only a client sends, or a second welcome".to_owned(),
                ))
            }
        }
    }

    fn replies(&self, frames: &Frames, replies: Vec<Reply<Tolerant<R>>>) -> Vec<ReplyIn<R>> {
        let mut data = frames.data.clone();
        let mut taken = Vec::with_capacity(replies.len());
        for reply in replies {
            let share = match reply.data_len as usize {
                0 => bytes::Bytes::new(),
                len => data.split_to(len),
            };
            let Some(Answered {
                id,
                operation,
                mut span,
            }) = self.shared.answered(reply.id)
            else {
                continue;
            };
            Point::BusReplyIn.record(|| Step {
                operation: OperationId(operation),
                length: share.len() as u64,
                ..Step::default()
            });
            let body = reply.body.body.unwrap_or_else(|error| {
                let text = format!(
                    "this client (protocol {}) cannot read the answer: {error}",
                    Version::CURRENT
                );
                R::refused(Refusal::reject(RefusalCode::Unsupported, text))
            });
            if span.is_recorded()
                && let Some(refusal) = body.refusal()
            {
                span.fail(refusal);
            }
            taken.push(ReplyIn {
                id,
                body,
                data: share,
            });
        }
        taken
    }
}
