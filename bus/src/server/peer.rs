//! What a server knows of its clients.
//!
//! Keeps: each client's greeting, what it has outstanding, its replies that wait to leave; what the clients of one node
//! have outstanding together.
//! Order: a client's replies leave in the order in which they were answered; clients take turns.
//! Crash: nothing; a client that is lost takes all of it with it.
//! Knows no sockets and no bodies.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::Throttle;
use sconce_schemas::NodeName;
use sconce_schemas::wire::envelope::{REQUEST_OVERHEAD, Request, close_replies, put_reply};
use sconce_schemas::wire::{Body, Foreign, Hello, Refusal, RefusalCode, Version, Welcome};
use slab::Slab;

use super::{Identity, PeerId};
use crate::batch::Outbox;
use crate::bell::Bell;
use crate::credit::{Breach, Ledger, Sent, charge};
use crate::link::{Frames, PeerKey};
use crate::refuse::{Refuse, another_major};
use crate::tolerant::Tolerant;

/// What the server, its pump and its replies share.
pub(super) struct Shared {
    /// Rung when there is something to send.
    pub(super) bell: Bell,
    /// Requests that were dropped unanswered.
    pub(super) dropped: Cell<u64>,
    identity: Identity,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    peers: Slab<Peer>,
    by_key: HashMap<PeerKey, usize>,
    /// What is kept for each node that has clients here.
    nodes: HashMap<NodeName, Kept>,
    next_id: u64,
    /// Slots of clients with replies that wait to leave, each at most once.
    dirty: VecDeque<usize>,
    /// Clients that [`Shared::mark_gone`] removed and nobody was told of.
    gone: VecDeque<PeerId>,
}

struct Peer {
    id: PeerId,
    key: PeerKey,
    hello: Hello,
    ledger: Ledger,
    node_kept: Kept,
    outbox: Outbox<Sent>,
    dirty: bool,
}

/// Bytes that are kept for all clients of one node: one with a valid certificate can have many connections, each with
/// a credit of its own.
#[derive(Clone, Default)]
struct Kept(Rc<Cell<u64>>);

impl Kept {
    fn bytes(&self) -> u64 {
        self.0.get()
    }

    /// Changes a client's ledger, and the node's sum with it.
    fn follow<T>(&self, ledger: &mut Ledger, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let before = ledger.kept();
        let changed = change(ledger);
        let others = self.0.get().saturating_sub(before);
        self.0.set(others.saturating_add(ledger.kept()));
        changed
    }

    fn forget(&self, ledger: &Ledger) {
        self.0.set(self.0.get().saturating_sub(ledger.kept()));
    }

    /// Whether this is the only client of its node.
    fn is_last(&self) -> bool {
        // The table has one, the client the other.
        Rc::strong_count(&self.0) <= 2
    }
}

/// A batch that its client was allowed to send.
pub(super) struct Admitted<Q> {
    pub(super) slot: usize,
    pub(super) peer: PeerId,
    pub(super) requests: Vec<Request<Tolerant<Q>>>,
    /// So many of them are for the service; the others found that too much is kept for their node.
    pub(super) taken: usize,
}

/// An encoded reply on its way out.
pub(super) struct Answer {
    pub(super) slot: usize,
    pub(super) peer: PeerId,
    /// What the request was charged.
    pub(super) charge: u64,
    pub(super) data: Bytes,
}

/// What a request is charged that is not kept: its answer, until that is read.
const REFUSED_CHARGE: u64 = 4 * REQUEST_OVERHEAD;

fn breach(breach: &Breach) -> Refusal {
    Refusal::reject(RefusalCode::Invalid, format!("flow control: {breach}"))
}

fn ungreeted() -> Refusal {
    Refusal::reject(RefusalCode::Invalid, "a connection starts with a greeting, once")
}

impl Shared {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            bell: Bell::default(),
            dropped: Cell::new(0),
            identity,
            state: RefCell::default(),
        }
    }

    /// The server is gone: what is answered from now on is thrown away.
    pub(super) fn close(&self) {
        *self.state.borrow_mut() = State::default();
    }

    pub(super) fn oversized(&self, frames: &Frames) -> Option<Refusal> {
        let limit = self.identity.limits.message_bytes_max;
        (frames.len() > limit).then(|| {
            let text = format!("a message of {} bytes; at most {limit} are taken", frames.len());
            Refusal::reject(RefusalCode::Invalid, text)
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.borrow().peers.len() >= self.identity.limits.peers_max
    }

    pub(super) fn keys(&self) -> Vec<PeerKey> {
        self.state
            .borrow()
            .peers
            .iter()
            .map(|(_, peer)| peer.key.clone())
            .collect()
    }

    pub(super) fn hello(&self, peer: PeerId) -> Option<Hello> {
        let state = self.state.borrow();
        let mut peers = state.peers.iter();
        peers.find(|(_, p)| p.id == peer).map(|(_, p)| p.hello.clone())
    }

    /// Lets a client in, or says why not.
    pub(super) fn greet(&self, key: &PeerKey, hello: Hello) -> Result<Welcome, Refusal> {
        let identity = &self.identity;
        if hello.protocol != identity.protocol {
            let text = format!(
                "{} wants protocol {:?}, this endpoint of {} serves {:?}: check the endpoint",
                hello.node, hello.protocol, identity.node, identity.protocol
            );
            return Err(Refusal::reject(RefusalCode::Unsupported, text));
        }
        let mut state = self.state.borrow_mut();
        if state.by_key.contains_key(key) {
            return Err(ungreeted());
        }
        if state.peers.len() >= identity.limits.peers_max {
            let text = format!("{} has {} clients already", identity.node, state.peers.len());
            return Err(Refusal::retry(RefusalCode::Unavailable, text));
        }
        state.next_id += 1;
        let node_kept = state.nodes.entry(hello.node.clone()).or_default().clone();
        let peer = Peer {
            id: PeerId(state.next_id),
            key: key.clone(),
            hello,
            ledger: Ledger::new(identity.limits.credit_bytes),
            node_kept,
            outbox: Outbox::default(),
            dirty: false,
        };
        let slot = state.peers.insert(peer);
        state.by_key.insert(key.clone(), slot);
        Ok(Welcome {
            version: Version::CURRENT,
            role: identity.role,
            node: identity.node.clone(),
            credit_bytes: identity.limits.credit_bytes,
            message_bytes_max: identity.limits.message_bytes_max,
        })
    }

    /// What is said to a client of another major version.
    pub(super) fn refuse_foreign(&self, foreign: &Foreign) -> Refusal {
        another_major(foreign, &self.identity.node)
    }

    /// A client sent what this version does not know: its own may.
    pub(super) fn pass_over(&self, key: &PeerKey, kind: u64) -> Result<(), Refusal> {
        let state = self.state.borrow();
        let slot = *state.by_key.get(key).ok_or_else(ungreeted)?;
        let peer = state.peers.get(slot).ok_or_else(ungreeted)?;
        let version = peer.hello.version;
        if version.minor > Version::CURRENT.minor {
            return Ok(());
        }
        let text = format!("a header of kind {kind}, which protocol {version} does not have");
        Err(Refusal::reject(RefusalCode::Invalid, text))
    }

    pub(super) fn remove(&self, key: &PeerKey) -> Option<PeerId> {
        let mut state = self.state.borrow_mut();
        let slot = state.by_key.remove(key)?;
        let peer = state.peers.try_remove(slot)?;
        if peer.dirty {
            state.dirty.retain(|dirty| *dirty != slot);
        }
        peer.node_kept.forget(&peer.ledger);
        if peer.node_kept.is_last() {
            state.nodes.remove(&peer.hello.node);
        }
        Some(peer.id)
    }

    /// Removes a client that was found gone; [`Self::take_gone`] tells of it.
    pub(super) fn mark_gone(&self, key: &PeerKey) {
        if let Some(peer) = self.remove(key) {
            self.state.borrow_mut().gone.push_back(peer);
        }
    }

    pub(super) fn take_gone(&self) -> Option<PeerId> {
        self.state.borrow_mut().gone.pop_front()
    }

    /// Checks a batch against what its client may have outstanding, and its node: more than the node may have is
    /// not kept. That is no breach, for the connections of an honest node do not know of each other.
    pub(super) fn admit<Q: Body>(
        &self,
        key: &PeerKey,
        mark: u64,
        requests: Vec<Request<Tolerant<Q>>>,
        again: bool,
    ) -> Result<Admitted<Q>, Refusal> {
        let mut state = self.state.borrow_mut();
        let slot = *state.by_key.get(key).ok_or_else(ungreeted)?;
        let peer = state.peers.get_mut(slot).ok_or_else(ungreeted)?;
        let node_max = self.identity.limits.node_bytes_max();
        let Peer {
            ledger, node_kept, ..
        } = peer;
        node_kept
            .follow(ledger, |ledger| ledger.taken_in(mark))
            .map_err(|b| breach(&b))?;
        let mut taken = requests.len();
        if !again {
            for (index, request) in requests.iter().enumerate() {
                let charge = charge(request.body.len, request.data_len as usize, request.reply_len);
                if taken == requests.len() && node_kept.bytes().saturating_add(charge) > node_max {
                    taken = index;
                }
                node_kept
                    .follow(ledger, |ledger| ledger.take(charge))
                    .map_err(|b| breach(&b))?;
                if index >= taken {
                    let waived = charge.saturating_sub(REFUSED_CHARGE);
                    node_kept.follow(ledger, |ledger| ledger.waive(waived));
                }
            }
        }
        Ok(Admitted {
            slot,
            peer: peer.id,
            requests,
            taken,
        })
    }

    /// Says to a request that too much is kept for its node.
    pub(super) fn refuse_for_node<R: Body + Refuse>(&self, slot: usize, peer: PeerId, id: u64) {
        let text = format!(
            "{} keeps {} bytes of this node's requests and unread answers already, over all its connections; try again",
            self.identity.node,
            self.identity.limits.node_bytes_max()
        );
        static TOLD: Throttle = Throttle::every(Duration::from_secs(10));
        if let Some(unsaid) = TOLD.pass() {
            let node = self.hello(peer).map(|hello| hello.node.to_string());
            tracing::info!(node, unsaid, "a node has too much outstanding: {text}");
        }
        let body = R::refused(Refusal::retry(RefusalCode::Unavailable, text));
        let answer = Answer {
            slot,
            peer,
            charge: REFUSED_CHARGE,
            data: Bytes::new(),
        };
        self.answer(answer, |entry| put_reply(entry, id, 0, &body));
    }

    /// A client asks whether anybody is there.
    pub(super) fn pong(&self, key: &PeerKey, mark: u64) -> Result<u64, Refusal> {
        let mut state = self.state.borrow_mut();
        let slot = *state.by_key.get(key).ok_or_else(ungreeted)?;
        let peer = state.peers.get_mut(slot).ok_or_else(ungreeted)?;
        let Peer {
            ledger, node_kept, ..
        } = peer;
        node_kept
            .follow(ledger, |ledger| ledger.taken_in(mark))
            .map_err(|b| breach(&b))?;
        Ok(ledger.send(Sent::default()))
    }

    /// Queues a reply that `put` encodes; it leaves with all others that are ready by then.
    pub(super) fn answer(&self, answer: Answer, put: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(answer.slot).filter(|p| p.id == answer.peer) else {
            return;
        };
        let mut entry = peer.outbox.scratch();
        put(&mut entry);
        let len = entry.len() as u64 + answer.data.len() as u64;
        let sent = Sent {
            held: answer.charge,
            excess: len.saturating_sub(answer.charge),
            requests: 1,
        };
        let limit = crate::limits::Limits::MESSAGE_BYTES_CEILING;
        peer.outbox.push(entry, answer.data, limit).add(sent);
        if !std::mem::replace(&mut peer.dirty, true) {
            state.dirty.push_back(answer.slot);
            drop(state);
            self.bell.ring();
        }
    }

    /// The next message to send, and to whom.
    pub(super) fn next_message(&self) -> Option<(PeerKey, Frames)> {
        let mut state = self.state.borrow_mut();
        loop {
            let slot = state.dirty.pop_front()?;
            let Some(peer) = state.peers.get_mut(slot) else {
                continue;
            };
            let Peer {
                outbox,
                ledger,
                node_kept,
                ..
            } = peer;
            let start = |header: &mut Vec<u8>, tally, count| {
                let mark = node_kept.follow(ledger, |ledger| ledger.send(tally));
                close_replies(header, mark, count, &[]);
            };
            let Some(frames) = outbox.pop(start) else {
                peer.dirty = false;
                continue;
            };
            let key = peer.key.clone();
            // Others first: a client with a long queue does not hold them up.
            peer.dirty = !peer.outbox.is_empty();
            if peer.dirty {
                state.dirty.push_back(slot);
            }
            return Some((key, frames));
        }
    }
}
