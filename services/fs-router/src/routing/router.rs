//! The routing core at work on an IO thread: its sockets, its timer, its questions to the registry.
//!
//! Keeps: the core, its links, and for each front end what completed and was not yet taken.
//! Order: what a front end submitted before one [`Router::send`] leaves together; completions are taken in the
//! order in which they came.
//! Crash: that of the core.
//! Knows no front end's protocol. One thread owns it; nothing here is `Send`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use sconce_bus::{ClientEvent, Endpoint, Network};
use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock, Throttle};
use sconce_schemas::NodeName;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{VolumeReply, VolumeRequest};
use sconce_schemas::wire::{Hello, Protocol, Refusal, RefusalCode, Role, Version};
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::clusters::{ClusterCache, Leads};
use super::core::{
    Clusters, Core, Effect, Event, FrontEndKey, Limits, LinkKey, Micros, OwnerKey, StorageKey,
};
use super::counts::Counts;
use super::front_end::FrontEnd;
use super::incarnation::Incarnation;
use super::links::Links;
use super::lookup;
use super::mailbox::Mailbox;
use super::orphans::Orphans;
use crate::peers::Identity;

/// Lines about peers that refuse this service: one in this time.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a router needs of its process.
#[derive(Clone)]
pub struct Components {
    /// Who this is, for the peers.
    pub node: NodeName,
    /// What this is, for the peers.
    pub role: Role,
    /// How messages travel.
    pub network: Network,
    /// Who owns what.
    pub registry: Registry,
    /// The time.
    pub clock: Clock,
    /// Bounds and waits.
    pub limits: Limits,
    /// Shared by all routers of the process.
    pub orphans: Orphans,
    /// Which process of the node this is.
    pub incarnation: Incarnation,
    /// Clusters that were read before; shared by all routers of the process.
    pub cache: Option<ClusterCache>,
    /// This router's own.
    pub counts: Arc<Counts>,
}

/// Routes operations to owners. A handle: clones share one router.
#[derive(Clone)]
pub struct Router {
    pub(super) shared: Rc<Shared>,
}

pub(super) struct Shared {
    components: Components,
    /// Which of the process's routers it is.
    index: usize,
    started: Instant,
    pub(super) state: RefCell<State>,
    /// When the timer task wakes; later than the core's next wake only while it is being told.
    armed: Cell<Option<Micros>>,
    rearm: Rc<Notify>,
    timer: Cell<Option<JoinHandle<()>>>,
}

pub(super) struct State {
    pub(super) core: Core,
    links: Links,
    pub(super) mailboxes: Slab<Mailbox>,
    /// Reused.
    pub(super) effects: Vec<Effect>,
    /// Events that carrying out effects brought about.
    events: VecDeque<Event>,
    /// Clusters that the cache left to this core.
    leads: Leads,
}

impl Router {
    /// A router on this thread, within its `LocalSet`. `index` tells the routers of a process apart.
    #[must_use]
    pub fn new(components: Components, index: usize, mut chance: Chance) -> Router {
        let limits = Limits {
            has_cache: components.cache.is_some(),
            ..components.limits
        };
        let mut core = Core::new(limits, chance.fork());
        let incarnation = components.incarnation.clone();
        core.identify(incarnation.front_end(&components.node, &mut chance));
        let started = components.clock.now();
        let shared = Rc::new(Shared {
            components,
            index,
            started,
            state: RefCell::new(State {
                core,
                links: Links::default(),
                mailboxes: Slab::new(),
                effects: Vec::new(),
                events: VecDeque::new(),
                leads: Leads::default(),
            }),
            armed: Cell::new(None),
            rearm: Rc::new(Notify::new()),
            timer: Cell::new(None),
        });
        let timer = tokio::task::spawn_local(keep_time(Rc::downgrade(&shared)));
        shared.timer.set(Some(timer));
        tokio::task::spawn_local({
            let shared = Rc::downgrade(&shared);
            async move {
                let incarnation = incarnation.number().await;
                if let Some(shared) = shared.upgrade() {
                    shared.run(Some(Event::Announced { incarnation }));
                }
            }
        });
        Router { shared }
    }

    /// The process's orphans: wait for a volume's before its client is let in again.
    #[must_use]
    pub fn orphans(&self) -> &Orphans {
        &self.shared.components.orphans
    }

    /// A front end that takes its completions by [`FrontEnd::poll`].
    #[must_use]
    pub fn attach(&self) -> FrontEnd {
        self.attach_mailbox(Mailbox::Queue {
            completions: VecDeque::new(),
            stalled: None,
            room: false,
            waker: None,
        })
    }

    pub(super) fn attach_mailbox(&self, mailbox: Mailbox) -> FrontEnd {
        let key = self.shared.state.borrow_mut().mailboxes.insert(mailbox);
        FrontEnd {
            router: self.clone(),
            key: FrontEndKey(key),
        }
    }

    /// Sends what was submitted, as far as the owners take it; the rest follows by itself.
    pub fn send(&self) {
        self.shared.run(None);
    }

    /// Who this is, for calls beside the data path.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let Components {
            network, role, node, ..
        } = &self.shared.components;
        Identity {
            network: network.clone(),
            role: *role,
            node: node.clone(),
        }
    }

    /// Where its front ends count.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.shared.components.counts
    }

    /// How long there has been this router.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_micros(self.shared.now())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }
}

impl Shared {
    pub(super) fn now(&self) -> Micros {
        let passed = self.components.clock.now() - self.started;
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    /// Takes in what happened, carries out what follows from it, and sends.
    pub(super) fn run(self: &Rc<Self>, event: Option<Event>) {
        self.run_all(event.into_iter());
    }

    fn run_all(self: &Rc<Self>, events: impl Iterator<Item = Event>) {
        let now = self.now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for event in events {
            state.core.apply(now, event, &mut state.effects);
        }
        loop {
            state.core.drain_sends(&mut state.links, &mut state.effects);
            if state.effects.is_empty() && state.events.is_empty() {
                break;
            }
            let mut effects = std::mem::take(&mut state.effects);
            for effect in effects.drain(..) {
                self.carry_out(state, effect);
            }
            state.effects = effects;
            while let Some(event) = state.events.pop_front() {
                state.core.apply(now, event, &mut state.effects);
            }
        }
        self.components.counts.are_under_way(state.core.held_requests());
        let next = state.core.next_wake();
        let armed = self.armed.get();
        if next.is_some_and(|next| armed.is_none_or(|armed| next < armed)) {
            self.rearm.notify_one();
        }
    }

    fn carry_out(self: &Rc<Self>, state: &mut State, effect: Effect) {
        match effect {
            Effect::Complete {
                front_end,
                token,
                outcome,
            } => {
                if let Some(mailbox) = state.mailboxes.get_mut(front_end.0) {
                    mailbox.put(token, outcome);
                }
            }
            Effect::Room(session) => state
                .mailboxes
                .iter_mut()
                .for_each(|(_, mailbox)| mailbox.tell_room(session)),
            Effect::Connect { link, endpoint } => self.connect(state, link, &endpoint),
            Effect::Disconnect { link } => state.links.remove(link),
            Effect::FindOwner { session, volume } => {
                self.ask(move |registry, _| async move {
                    let routed = lookup::owner_of(&registry, volume).await;
                    Event::Routed { session, routed }
                });
            }
            Effect::FindWriter { volume } => {
                self.ask(move |registry, _| async move {
                    let writer = lookup::writer_of(&registry, volume).await;
                    Event::WriterFound { volume, writer }
                });
            }
            Effect::FindStorage => {
                self.ask(move |registry, index| async move {
                    let endpoints = lookup::storage_routers(&registry, index).await;
                    Event::StorageFound { endpoints }
                });
            }
            Effect::LookUp { id, clusters } => self.look_up(state, id, clusters),
            Effect::Keep {
                clusters,
                data,
                is_cacheable,
            } => {
                if let Some(cache) = &self.components.cache {
                    cache.keep(&mut state.leads, &clusters, &data, is_cacheable);
                }
            }
            Effect::Release { clusters } => state.leads.release(&clusters),
            Effect::AccessRefused { volume, refusal } => {
                tracing::warn!(%volume, %refusal, "writes are refused");
            }
            Effect::Orphaned(volume) => self.components.orphans.add(volume),
            Effect::Settled(volume) => self.components.orphans.settle(volume),
        }
    }

    /// Asks the registry beside the IO path; the answer comes as an event.
    fn ask<F: Future<Output = Event> + 'static>(
        self: &Rc<Self>,
        question: impl FnOnce(Registry, usize) -> F,
    ) {
        let answer = question(self.components.registry.clone(), self.index);
        let shared = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let event = answer.await;
            if let Some(shared) = shared.upgrade() {
                shared.run(Some(event));
            }
        });
    }

    /// Asks the cache: at once for what is in memory, beside the other work of this thread for the rest.
    fn look_up(self: &Rc<Self>, state: &mut State, id: u64, clusters: Clusters) {
        let Some(cache) = &self.components.cache else {
            // The core asks only where there is one.
            return;
        };
        let sight = cache.look(&clusters);
        if !sight.has_to_wait() {
            let found = sight.answer(&mut state.leads);
            return state.events.push_back(Event::LookedUp { id, clusters, found });
        }
        let (cache, shared) = (cache.clone(), Rc::downgrade(self));
        tokio::task::spawn_local(async move {
            let sight = cache.wait(sight).await;
            // Without a router what it led is handed on.
            if let Some(shared) = shared.upgrade() {
                let found = sight.answer(&mut shared.state.borrow_mut().leads);
                shared.run(Some(Event::LookedUp { id, clusters, found }));
            }
        });
    }

    fn connect(self: &Rc<Self>, state: &mut State, link: LinkKey, endpoint: &str) {
        let endpoint: Endpoint = match endpoint.parse() {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::error!(%error, "the registry names an endpoint that is none");
                let refusal = Refusal::reject(RefusalCode::Invalid, error.to_string());
                return state.events.push_back(Event::Refused { link, refusal });
            }
        };
        let Components {
            node, role, network, ..
        } = &self.components;
        let hello = |protocol| Hello {
            version: Version::CURRENT,
            protocol,
            role: *role,
            node: node.clone(),
        };
        match link {
            LinkKey::Owner(key) => {
                let (sender, receiver) = sconce_bus::connect::<VolumeRequest, VolumeReply>(
                    network,
                    &endpoint,
                    hello(Protocol::Volume),
                );
                let task = tokio::task::spawn_local(receive(
                    Rc::downgrade(self),
                    receiver,
                    endpoint,
                    link,
                    move |id, reply, data| owner_replied(key, id, reply, data),
                ));
                state.links.add_owner(key, sender, task);
            }
            LinkKey::Storage(key) => {
                let (sender, receiver) = sconce_bus::connect::<StorageRequest, StorageReply>(
                    network,
                    &endpoint,
                    hello(Protocol::Storage),
                );
                let task = tokio::task::spawn_local(receive(
                    Rc::downgrade(self),
                    receiver,
                    endpoint,
                    link,
                    move |id, reply, data| storage_replied(key, id, reply, data),
                ));
                state.links.set_storage(key, sender, task);
            }
        }
    }
}

fn owner_replied(link: OwnerKey, id: u64, reply: VolumeReply, data: bytes::Bytes) -> Event {
    Event::OwnerReplied {
        link,
        id,
        reply,
        data,
    }
}

fn storage_replied(link: StorageKey, id: u64, reply: StorageReply, data: bytes::Bytes) -> Event {
    Event::StorageReplied {
        link,
        id,
        reply,
        data,
    }
}

/// Hands a link's events to the core, as long as there is one.
async fn receive<R: sconce_bus::Body + sconce_bus::Refuse>(
    shared: Weak<Shared>,
    mut receiver: sconce_bus::Receiver<R>,
    endpoint: Endpoint,
    link: LinkKey,
    replied: impl Fn(u64, R, bytes::Bytes) -> Event,
) {
    loop {
        let event = receiver.next().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match event {
            ClientEvent::Replies(replies) => {
                shared.run_all(
                    replies
                        .into_iter()
                        .map(|reply| replied(reply.id, reply.body, reply.data)),
                );
            }
            ClientEvent::Room => shared.run(Some(Event::Room(link))),
            ClientEvent::Up(welcome) => {
                tracing::info!(%endpoint, node = %welcome.node, "connected");
                shared.run(Some(Event::Up(link)));
            }
            ClientEvent::Down(reason) => {
                tracing::info!(%endpoint, %reason, "connection lost: operations are held");
                shared.run(Some(Event::Down(link)));
            }
            ClientEvent::Refused(refusal) => {
                static TOLD: Throttle = Throttle::every(TOLD_EVERY);
                if let Some(unsaid) = TOLD.pass() {
                    tracing::error!(%endpoint, %refusal, unsaid, "the peer refuses this service");
                }
                shared.run(Some(Event::Refused { link, refusal }));
                return;
            }
        }
    }
}

/// Tells the core when its time has come. Waiting does not keep the router alive: whoever drops it ends this task.
async fn keep_time(shared: Weak<Shared>) {
    while let Some(strong) = shared.upgrade() {
        let next = strong.state.borrow().core.next_wake();
        strong.armed.set(next);
        let due = next.map(|at| strong.started + Duration::from_micros(at));
        let rearm = strong.rearm.clone();
        drop(strong);
        let is_due = wait_until(due, &rearm).await;
        if is_due && let Some(strong) = shared.upgrade() {
            strong.run(Some(Event::Tick));
        }
    }
}

async fn wait_until(due: Option<Instant>, rearm: &Notify) -> bool {
    match due {
        None => {
            rearm.notified().await;
            false
        }
        Some(due) => tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => true,
            () = rearm.notified() => false,
        },
    }
}
