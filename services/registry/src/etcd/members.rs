//! etcd's members, and which of them is asked.
//!
//! Keeps: a connection to each, and which one answered last.
//! Order: that one is asked. While it does not answer the next one is asked as well, then the one after it, and again those that could
//! not answer; the first answer counts.
//! Crash: nothing; a new process begins with the first.
//! Knows no requests, but which of them may be put to two members.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::DEADLINE;
use super::errors::Failure;

/// How long one member is given before the next is asked as well: longer than a commit takes on a slow disk, and short against a
/// lease, which is renewed at a third of its time.
const NEXT_AFTER: Duration = Duration::from_millis(500);

/// Whether a request may be put to a second member while a first one has not answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    /// Done twice it is as if it were done once.
    Harmless,
    /// Never.
    No,
}

type Request<T> = Pin<Box<dyn Future<Output = Result<T, etcd_client::Error>> + Send>>;

/// What came of a request.
pub(super) struct Asked<T> {
    pub(super) answer: Result<T, Failure>,
    /// Another member was asked before, and what it made of the request is not known.
    pub(super) may_be_done: bool,
}

/// The members.
#[derive(Clone)]
pub(super) struct Members {
    clients: Vec<Client>,
    /// Which one is asked.
    current: watch::Sender<usize>,
}

impl Members {
    /// Connections that are made when they are first used.
    pub(super) async fn connect(
        endpoints: &[String],
        options: &ConnectOptions,
    ) -> Result<Self, etcd_client::Error> {
        let mut clients = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            clients.push(Client::connect([endpoint], Some(options.clone())).await?);
        }
        Ok(Self {
            clients,
            current: watch::Sender::new(0),
        })
    }

    /// The member that is asked now, and what notices when it is another.
    pub(super) fn current(&self) -> (Client, watch::Receiver<usize>) {
        let current = self.current.subscribe();
        let client = self.clients[*current.borrow()].clone();
        (client, current)
    }

    /// Asks, within the deadline of all requests.
    pub(super) async fn ask<T: Send + 'static>(
        self,
        twice: Twice,
        request: impl Fn(Client) -> Request<T> + Send,
    ) -> Asked<T> {
        let first = *self.current.borrow();
        let by = Instant::now() + DEADLINE;
        let mut asked = JoinSet::new();
        let mut unanswered = 0;
        let mut failure = None;
        let rest = (0..self.clients.len()).map(|at| (first + at) % self.clients.len());
        let mut rest: VecDeque<usize> = match twice {
            Twice::Harmless => rest.collect(),
            Twice::No => rest.take(1).collect(),
        };
        // While members elect a leader those that answer say that there is none, and soon there is one.
        let mut again = Vec::new();
        loop {
            let mut next_after = by;
            if let Some(member) = rest.pop_front() {
                let attempt = request(self.clients[member].clone());
                asked.spawn(async move { (member, attempt.await) });
                next_after = by.min(Instant::now() + NEXT_AFTER);
            } else if !asked.is_empty() && !again.is_empty() {
                next_after = by.min(Instant::now() + NEXT_AFTER);
            } else if asked.is_empty() {
                let none = || Failure::other("no member can be asked".to_owned());
                return Asked {
                    answer: Err(failure.unwrap_or_else(none)),
                    may_be_done: unanswered > 0,
                };
            }
            let answered = tokio::select! {
                answered = asked.join_next() => answered,
                () = sleep_until(next_after) => None,
            };
            match answered {
                Some(Ok((member, Ok(answer)))) => {
                    self.prefer(member);
                    return Asked {
                        answer: Ok(answer),
                        may_be_done: unanswered + asked.len() > 0,
                    };
                }
                Some(Ok((member, Err(error)))) => {
                    let failed = Failure::from(error);
                    if !failed.is_of_member() {
                        self.prefer(member);
                        return Asked {
                            answer: Err(failed),
                            may_be_done: unanswered + asked.len() > 0,
                        };
                    }
                    self.avoid(member);
                    unanswered += 1;
                    failure = Some(failed);
                    again.push(member);
                }
                Some(Err(_)) => return Asked::unknown(Failure::ended()),
                None if Instant::now() >= by => {
                    self.avoid(first);
                    return Asked::unknown(Failure::late(DEADLINE));
                }
                None => rest.extend(again.drain(..)),
            }
        }
    }

    fn prefer(&self, member: usize) {
        self.current
            .send_if_modified(|current| std::mem::replace(current, member) != member);
    }

    /// Where this one was asked, the next one is from now on.
    fn avoid(&self, member: usize) {
        let next = (member + 1) % self.clients.len();
        self.current.send_if_modified(|current| {
            let moves = *current == member && next != member;
            if moves {
                *current = next;
            }
            moves
        });
    }
}

impl<T> Asked<T> {
    pub(super) fn unknown(failure: Failure) -> Self {
        Self {
            answer: Err(failure),
            may_be_done: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_member_without_a_leader_is_asked_again_while_another_answers_nothing() {
        let endpoints = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let members = Members::connect(&endpoints, &ConnectOptions::new())
            .await
            .unwrap();
        let asked = AtomicUsize::new(0);
        let answer = members.ask(Twice::Harmless, |_| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Box::pin(std::future::pending()),
            1..4 => Box::pin(async { Err(etcd_client::Error::InvalidArgs("no leader".to_owned())) }),
            _ => Box::pin(async { Ok(()) }),
        });
        answer.await.answer.unwrap();
        assert_eq!(asked.into_inner(), 5);
    }
}
