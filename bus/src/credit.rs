//! Who owes whom how much: credits of a connection, in requests and in bytes.
//!
//! Keeps: on the client, the charge of each unanswered request; on the server, of each request whose reply the client
//! has not proved to have taken in.
//! Order: charges are taken when a request is queued, given back when its reply was taken in.
//! Crash: a lost connection forgets all of it on both sides.
//! Knows no sockets.
//!
//! An honest client never has more outstanding than its [`Welcome`](crate::Welcome) allows, so the server's bound can
//! be strict: whoever exceeds it is dropped. The server's charge is never above the client's.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use sconce_schemas::wire::envelope::{OUTSTANDING_MAX, REQUEST_OVERHEAD};

/// The credit that a request takes.
pub(crate) fn charge(body_len: usize, data_len: usize, reply_len: u32) -> u64 {
    body_len as u64 + data_len as u64 + u64::from(reply_len) + REQUEST_OVERHEAD
}

/// A client's side.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    left: u64,
    total: u64,
}

impl Credit {
    pub(crate) fn new(total: u64) -> Self {
        Self { left: total, total }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Takes `charge` with `outstanding` requests out already; false where it does not fit.
    pub(crate) fn take(&mut self, charge: u64, outstanding: usize) -> bool {
        let fits = charge <= self.left && outstanding < OUTSTANDING_MAX;
        if fits {
            self.left -= charge;
        }
        fits
    }

    pub(crate) fn give_back(&mut self, charge: u64) {
        self.left = self.total.min(self.left + charge);
    }
}

/// A server's side, for one client.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: u64,
    /// Charges of requests whose replies are not proved to be taken in.
    held: u64,
    /// What replies were larger than their requests said: our own doing as much as the client's, so bounded apart.
    excess: u64,
    requests: usize,
    /// Messages sent and not proved to be taken in, oldest first; the first one's number is `first`.
    sent: VecDeque<Sent>,
    first: u32,
    key: RandomState,
}

/// What a message that was sent to the client gives back once it is taken in.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) held: u64,
    pub(crate) excess: u64,
    pub(crate) requests: usize,
}

impl Sent {
    /// Another reply leaves in the same message.
    pub(crate) fn add(&mut self, other: Sent) {
        self.held = self.held.saturating_add(other.held);
        self.excess = self.excess.saturating_add(other.excess);
        self.requests += other.requests;
    }
}

/// What a client did that no honest client does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("{held} bytes are outstanding; the credit is {limit}")]
    Credit { held: u64, limit: u64 },
    #[error("{0} requests are outstanding; at most {OUTSTANDING_MAX} may be")]
    Requests(usize),
    #[error("{0} messages were sent and not read")]
    Unread(usize),
    #[error("the mark {0:#x} was never given out")]
    Mark(u64),
}

impl Ledger {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: 0,
            excess: 0,
            requests: 0,
            sent: VecDeque::new(),
            first: 1,
            key: RandomState::new(),
        }
    }

    /// Bytes that the server keeps because of this client, at most.
    pub(crate) fn kept(&self) -> u64 {
        self.held.saturating_add(self.excess)
    }

    /// A request came in.
    pub(crate) fn take(&mut self, charge: u64) -> Result<(), Breach> {
        self.held = self.held.saturating_add(charge);
        self.requests += 1;
        self.check()
    }

    /// This much of what came in is not kept.
    pub(crate) fn waive(&mut self, charge: u64) {
        self.held = self.held.saturating_sub(charge);
    }

    fn check(&self) -> Result<(), Breach> {
        let held = self.held.max(self.excess);
        if held > self.limit {
            return Err(Breach::Credit {
                held,
                limit: self.limit,
            });
        }
        if self.requests > OUTSTANDING_MAX {
            return Err(Breach::Requests(self.requests));
        }
        // Each message answers a request or a ping; an honest client pings now and then.
        if self.sent.len() > OUTSTANDING_MAX + 1024 {
            return Err(Breach::Unread(self.sent.len()));
        }
        Ok(())
    }

    /// A message leaves: the mark that it carries.
    pub(crate) fn send(&mut self, sent: Sent) -> u64 {
        let held_len = u32::try_from(self.sent.len()).unwrap_or(u32::MAX);
        let number = self.first.wrapping_add(held_len);
        self.excess = self.excess.saturating_add(sent.excess);
        self.sent.push_back(sent);
        self.mark_of(number)
    }

    /// The client gave `mark` back: it has taken in that message and all before it.
    pub(crate) fn taken_in(&mut self, mark: u64) -> Result<(), Breach> {
        if mark == 0 {
            return self.check();
        }
        let number = u32::try_from(mark >> 32).unwrap_or(0);
        if self.mark_of(number) != mark {
            return Err(Breach::Mark(mark));
        }
        // An older mark, which the in-process network may bring late, is `ahead` by almost 2^32.
        let ahead = number.wrapping_sub(self.first) as usize;
        if ahead < self.sent.len() {
            for sent in self.sent.drain(..=ahead) {
                self.held = self.held.saturating_sub(sent.held);
                self.excess = self.excess.saturating_sub(sent.excess);
                self.requests = self.requests.saturating_sub(sent.requests);
            }
            self.first = number.wrapping_add(1);
        }
        self.check()
    }

    /// The number of a message, and 32 bits that only this ledger can compute.
    fn mark_of(&self, number: u32) -> u64 {
        let secret = self.key.hash_one(number) >> 32;
        u64::from(number) << 32 | secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(held: u64) -> Sent {
        Sent {
            held,
            excess: 0,
            requests: 1,
        }
    }

    #[test]
    fn what_is_proved_to_be_read_is_given_back() {
        let mut ledger = Ledger::new(1000);
        ledger.take(600).expect("fits");
        let first = ledger.send(sent(600));
        ledger.take(400).expect("fits exactly");
        let second = ledger.send(sent(400));
        assert_eq!(
            ledger.take(1),
            Err(Breach::Credit {
                held: 1001,
                limit: 1000
            })
        );
        let mut ledger_held = |mark| {
            ledger.taken_in(mark).ok();
            ledger.held
        };
        assert_eq!(ledger_held(first), 401);
        assert_eq!(ledger_held(first), 401, "an old mark gives nothing back twice");
        assert_eq!(ledger_held(second), 1);
    }

    #[test]
    fn a_mark_that_was_never_given_out_is_a_breach() {
        let mut ledger = Ledger::new(1000);
        let mark = ledger.send(sent(1));
        assert_eq!(ledger.taken_in(mark ^ 1), Err(Breach::Mark(mark ^ 1)));
        assert_eq!(
            ledger.taken_in(mark + (1 << 32)),
            Err(Breach::Mark(mark + (1 << 32)))
        );
        assert_eq!(ledger.taken_in(mark), Ok(()));
    }

    #[test]
    fn many_small_requests_are_bounded_too() {
        let mut ledger = Ledger::new(u64::MAX);
        for _ in 0..OUTSTANDING_MAX {
            ledger.take(0).expect("within the limit");
        }
        assert_eq!(ledger.take(0), Err(Breach::Requests(OUTSTANDING_MAX + 1)));
    }

    #[test]
    fn replies_larger_than_announced_are_bounded() {
        let mut ledger = Ledger::new(1000);
        ledger.send(Sent {
            held: 0,
            excess: 1001,
            requests: 0,
        });
        assert!(matches!(ledger.take(0), Err(Breach::Credit { .. })));
    }

    #[test]
    fn a_client_takes_no_more_than_its_credit() {
        let mut credit = Credit::new(100);
        assert!(credit.take(60, 0) && !credit.take(41, 1) && credit.take(40, 1));
        credit.give_back(60);
        assert!(!credit.take(60, OUTSTANDING_MAX) && credit.take(60, 1));
    }
}
