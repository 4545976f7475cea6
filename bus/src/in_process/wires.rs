//! What is under way, and what becomes of it.
//!
//! Keeps: listeners, connections, and the messages between them with the time at which each arrives.
//! Order: of one connection as sent, unless the faults say otherwise; all from one seed.
//! Crash: a connection that is cut loses what was under way.
//! Knows no envelope.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sconce_schemas::NodeName;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Faults;
use crate::link::{Frames, LostReason};

/// Most messages under way in one direction of a connection: beyond any credit.
const UNDER_WAY_MAX: usize = 70_000;

/// Number of a connection.
pub(super) type ConnectionId = u64;

/// The state of the network.
pub(super) struct Wires {
    pub(super) chance: fastrand::Rng,
    pub(super) faults: Faults,
    /// Ways that are cut: from, to.
    pub(super) cut: BTreeSet<(NodeName, NodeName)>,
    pub(super) listeners: BTreeMap<String, Listener>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    next: u64,
}

/// Who listens under a name.
pub(super) struct Listener {
    pub(super) node: NodeName,
    pub(super) inbox: BTreeMap<When, ToServer>,
    pub(super) bell: Arc<Notify>,
}

/// A connection, for as long as its client holds an end of it or its server was not told of its end.
pub(super) struct Connection {
    pub(super) client: NodeName,
    pub(super) listener: String,
    pub(super) server: NodeName,
    /// Neither end can send any more.
    over: bool,
    /// The client holds no end of it any more.
    left: bool,
    /// The server was told of its end, or is no more.
    told: bool,
    to_server: Flow,
    to_client: Flow,
    pub(super) inbox: BTreeMap<When, ToClient>,
    pub(super) bell: Arc<Notify>,
}

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    sent: u64,
    newest: Option<Instant>,
}

/// When something arrives; the number keeps those of one moment in order.
pub(super) type When = (Instant, u64);

/// What a listener gets.
pub(super) struct ToServer {
    pub(super) connection: ConnectionId,
    pub(super) what: Delivery,
}

pub(super) enum Delivery {
    Message { frames: Frames, again: bool },
    Gone,
}

/// What a client gets.
pub(super) type ToClient = Result<Frames, LostReason>;

/// What there is for a receiver now.
pub(super) enum Next<T> {
    Ready(T),
    /// Nothing before then.
    At(Instant),
    /// Nothing before the bell rings.
    Nothing,
}

impl Wires {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            cut: BTreeSet::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_cut(&self, from: &NodeName, to: &NodeName) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from.clone(), to.clone()))
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.chance.f64() < probability
    }

    fn delay(&mut self) -> Duration {
        let (least, most) = (*self.faults.delay.start(), *self.faults.delay.end());
        least + most.saturating_sub(least).mul_f64(self.chance.f64())
    }

    /// Connects `client` to the listener of that name.
    pub(super) fn connect(&mut self, client: &NodeName, listener: &str) -> Result<ConnectionId, String> {
        let server = match self.listeners.get(listener) {
            Some(found) => found.node.clone(),
            None => return Err(format!("nobody listens at inproc://{listener}")),
        };
        if self.is_cut(client, &server) || self.is_cut(&server, client) {
            return Err(format!("{client} does not reach {server}"));
        }
        let id = self.number();
        let connection = Connection {
            client: client.clone(),
            listener: listener.to_owned(),
            server,
            over: false,
            left: false,
            told: false,
            to_server: Flow::default(),
            to_client: Flow::default(),
            inbox: BTreeMap::new(),
            bell: Arc::new(Notify::new()),
        };
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// When the next message of a flow arrives, and perhaps when it arrives again.
    fn schedule(&mut self, id: ConnectionId, to_server: bool) -> Option<(When, Option<When>)> {
        let now = Instant::now();
        let at = now + self.delay();
        // The greeting is what makes a connection: it suffers delay and loss only.
        let greeted = {
            let flow = self.flow(id, to_server)?;
            flow.sent += 1;
            flow.sent > 1
        };
        let reordered = greeted && self.happens(self.faults.reorder);
        let again = (greeted && self.happens(self.faults.duplicate)).then(|| now + self.delay() * 2);
        let flow = self.flow(id, to_server)?;
        let at = match flow.newest {
            Some(newest) if !reordered => at.max(newest),
            _ => at,
        };
        flow.newest = Some(flow.newest.map_or(at, |newest| newest.max(at)));
        let when = (at, self.number());
        let again = again.map(|at| (at, self.number()));
        Some((when, again))
    }

    fn flow(&mut self, id: ConnectionId, to_server: bool) -> Option<&mut Flow> {
        let connection = self.connections.get_mut(&id).filter(|c| !c.over)?;
        Some(match to_server {
            true => &mut connection.to_server,
            false => &mut connection.to_client,
        })
    }

    /// A client sends; false: the connection is over.
    pub(super) fn send_to_server(&mut self, id: ConnectionId, frames: Frames) -> bool {
        if self.happens(self.faults.loss) {
            self.break_connection(id);
            return false;
        }
        let Some((when, again)) = self.schedule(id, true) else {
            return false;
        };
        let Some(listener) = self.listener_of(id) else {
            return false;
        };
        if listener.inbox.len() >= UNDER_WAY_MAX {
            self.break_connection(id);
            return false;
        }
        if let Some(again) = again {
            let frames = frames.clone();
            listener.put(again, id, Delivery::Message { frames, again: true });
        }
        let again = false;
        listener.put(when, id, Delivery::Message { frames, again });
        true
    }

    /// A server sends; false: the connection is over.
    pub(super) fn send_to_client(&mut self, id: ConnectionId, frames: Frames) -> bool {
        if self.happens(self.faults.loss) {
            self.break_connection(id);
            return false;
        }
        let Some((when, again)) = self.schedule(id, false) else {
            return false;
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        if connection.inbox.len() >= UNDER_WAY_MAX {
            self.break_connection(id);
            return false;
        }
        if let Some(again) = again {
            connection.inbox.insert(again, Ok(frames.clone()));
        }
        connection.inbox.insert(when, Ok(frames));
        connection.bell.notify_one();
        true
    }

    fn listener_of(&mut self, id: ConnectionId) -> Option<&mut Listener> {
        let name = &self.connections.get(&id)?.listener;
        self.listeners.get_mut(name)
    }

    /// What the server of that name gets next.
    pub(super) fn next_for_server(&mut self, name: &str) -> Next<ToServer> {
        let now = Instant::now();
        let Some(listener) = self.listeners.get(name) else {
            return Next::Nothing;
        };
        let open = listener.inbox.iter().find(|(_, item)| {
            let connection = self.connections.get(&item.connection);
            connection.is_none_or(|c| !self.is_cut(&c.client, &c.server))
        });
        match open.map(|(when, _)| *when) {
            None => Next::Nothing,
            Some((at, _)) if at > now => Next::At(at),
            Some(when) => {
                let item = self.listeners.get_mut(name).and_then(|l| l.inbox.remove(&when));
                if let Some(ToServer {
                    connection,
                    what: Delivery::Gone,
                }) = &item
                {
                    let id = *connection;
                    self.tell(id);
                }
                item.map_or(Next::Nothing, Next::Ready)
            }
        }
    }

    /// What a client gets next.
    pub(super) fn next_for_client(&mut self, id: ConnectionId) -> Next<ToClient> {
        let now = Instant::now();
        let Some(connection) = self.connections.get(&id) else {
            return Next::Ready(Err(LostReason::Closed));
        };
        let cut = self.is_cut(&connection.server, &connection.client);
        match connection.inbox.keys().next().copied() {
            // The client's own system tells it of a broken connection, whatever is cut.
            Some(when) if matches!(connection.inbox.get(&when), Some(Err(LostReason::Cut))) => {
                self.take(id, when)
            }
            None => Next::Nothing,
            Some(_) if cut => Next::Nothing,
            Some((at, _)) if at > now => Next::At(at),
            Some(when) => self.take(id, when),
        }
    }

    fn take(&mut self, id: ConnectionId, when: When) -> Next<ToClient> {
        let connection = self.connections.get_mut(&id);
        connection
            .and_then(|c| c.inbox.remove(&when))
            .map_or(Next::Nothing, Next::Ready)
    }

    /// An end was dropped, or the server dropped its client: what was sent before still arrives.
    pub(super) fn close(&mut self, id: ConnectionId) {
        let now = Instant::now();
        let (gone, end) = (self.number(), self.number());
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.over) else {
            return;
        };
        connection.over = true;
        let after = |flow: &Flow| flow.newest.map_or(now, |newest| newest.max(now));
        let (gone, end) = (
            (after(&connection.to_server), gone),
            (after(&connection.to_client), end),
        );
        connection.inbox.insert(end, Err(LostReason::Closed));
        connection.bell.notify_one();
        if let Some(listener) = self.listener_of(id) {
            listener.put(gone, id, Delivery::Gone);
        }
    }

    /// The connection breaks: what is under way is lost, but for what arrives late.
    fn break_connection(&mut self, id: ConnectionId) {
        let now = Instant::now();
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.over) else {
            return;
        };
        connection.over = true;
        connection.inbox.clear();
        connection.inbox.insert((now, 0), Err(LostReason::Cut));
        connection.bell.notify_one();
        let name = connection.listener.clone();
        let Some(listener) = self.listeners.get(&name) else {
            return;
        };
        let of_it = listener.inbox.iter().filter(|(_, item)| item.connection == id);
        let under_way: Vec<When> = of_it.map(|(when, _)| *when).collect();
        let mut last = now;
        for when in under_way {
            let late = self.happens(self.faults.late).then(|| when.0 + self.delay() * 10);
            let number = self.number();
            let Some(listener) = self.listeners.get_mut(&name) else {
                return;
            };
            let Some(item) = listener.inbox.remove(&when) else {
                continue;
            };
            if let Some(late) = late {
                last = last.max(late);
                listener.inbox.insert((late, number), item);
            }
        }
        let number = self.number();
        if let Some(listener) = self.listeners.get_mut(&name) {
            listener.put((last, number), id, Delivery::Gone);
        }
    }

    pub(super) fn break_between(&mut self, one: &NodeName, other: &NodeName) {
        let between = self.connections.iter().filter(|(_, c)| {
            (&c.client, &c.server) == (one, other) || (&c.client, &c.server) == (other, one)
        });
        let ids: Vec<ConnectionId> = between.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.break_connection(id));
    }

    /// A server stops: its clients see their connections end.
    pub(super) fn stop_listening(&mut self, name: &str) {
        let of_it = self.connections.iter().filter(|(_, c)| c.listener == name);
        let ids: Vec<ConnectionId> = of_it.map(|(id, _)| *id).collect();
        self.listeners.remove(name);
        for id in ids {
            self.close(id);
            self.tell(id);
        }
    }

    /// A client let go of its end.
    pub(super) fn leave(&mut self, id: ConnectionId) {
        self.close(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.left = true;
        }
        self.forget(id);
    }

    fn tell(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.told = true;
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ConnectionId) {
        if self.connections.get(&id).is_some_and(|c| c.left && c.told) {
            self.connections.remove(&id);
        }
    }

    /// Ways were opened: everybody looks again.
    pub(super) fn wake_all(&self) {
        self.listeners.values().for_each(|l| l.bell.notify_one());
        self.connections.values().for_each(|c| c.bell.notify_one());
    }
}

impl Listener {
    fn put(&mut self, when: When, connection: ConnectionId, what: Delivery) {
        self.inbox.insert(when, ToServer { connection, what });
        self.bell.notify_one();
    }
}
