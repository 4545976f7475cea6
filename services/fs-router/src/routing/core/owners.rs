//! Links to volume-routers: which are connected, and which sessions use them.
//!
//! Keeps: one link for each endpoint, as long as a session uses it and a while longer.
//! Order: a link that is lost takes back what its sessions had sent; one that is up opens them again.
//! Crash: nothing.
//! Knows no registry and no operations.

use std::collections::VecDeque;

use sconce_schemas::wire::Refusal;

use super::sessions::{Opening, Route};
use super::types::{Effect, LinkKey, Micros, OwnerKey, SessionKey};
use super::{Core, Timer};

/// A connection to a volume-router, shared by the sessions of all volumes that it owns.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) endpoint: String,
    pub(super) up: bool,
    /// A request was not taken: wait for room.
    pub(super) full: bool,
    /// Sessions that have something to send, each once.
    pub(super) turns: VecDeque<SessionKey>,
    /// Handles that nobody uses any more.
    pub(super) closing: Vec<u32>,
    /// Sessions that are attached.
    pub(super) sessions: usize,
    /// Set while no session is attached: when the link goes.
    pub(super) wake_at: Option<Micros>,
}

/// How long a link without sessions is kept: a session that comes back soon needs no new greeting.
const LINK_KEPT_US: Micros = 30_000_000;

impl Core {
    pub(super) fn attach(
        &mut self,
        now: Micros,
        key: SessionKey,
        endpoint: String,
        effects: &mut Vec<Effect>,
    ) {
        let link = match self.by_endpoint.get(&endpoint) {
            Some(&link) => link,
            None => self.connect(endpoint, effects),
        };
        self.links[link.0].sessions += 1;
        self.sessions[key.0].route = Route::On { link, handle: None };
        if self.links[link.0].up {
            self.sessions[key.0].opening = Opening::Wanted;
            self.queue(link, key);
        } else {
            self.wait(now, key);
        }
    }

    fn connect(&mut self, endpoint: String, effects: &mut Vec<Effect>) -> OwnerKey {
        let link = OwnerKey(self.links.insert(Link {
            endpoint: endpoint.clone(),
            up: false,
            full: false,
            turns: VecDeque::new(),
            closing: Vec::new(),
            sessions: 0,
            wake_at: None,
        }));
        self.by_endpoint.insert(endpoint.clone(), link);
        effects.push(Effect::Connect {
            link: LinkKey::Owner(link),
            endpoint,
        });
        link
    }

    /// Takes a session off its link: its operations on the way there are to be sent again, wherever it goes next.
    pub(super) fn detach(&mut self, now: Micros, key: SessionKey) {
        self.take_back_sends(key);
        let session = &mut self.sessions[key.0];
        let Route::On { link, .. } = session.route else {
            return;
        };
        session.route = Route::Idle;
        session.opening = Opening::Idle;
        session.queued = false;
        session.asked.append(&mut session.asking);
        let entry = &mut self.links[link.0];
        entry.turns.retain(|turn| *turn != key);
        entry.sessions -= 1;
        if entry.sessions == 0 {
            let at = now + LINK_KEPT_US;
            entry.wake_at = Some(at);
            self.set_timer(at, Timer::Link(link));
        }
    }

    pub(super) fn wake_link(&mut self, at: Micros, key: OwnerKey, effects: &mut Vec<Effect>) {
        let due = self
            .links
            .get(key.0)
            .is_some_and(|link| link.wake_at == Some(at) && link.sessions == 0);
        if due {
            self.remove_link(key, effects);
        }
    }

    fn remove_link(&mut self, key: OwnerKey, effects: &mut Vec<Effect>) {
        let link = self.links.remove(key.0);
        self.by_endpoint.remove(&link.endpoint);
        effects.push(Effect::Disconnect {
            link: LinkKey::Owner(key),
        });
    }

    pub(super) fn owner_has_room(&mut self, key: OwnerKey) {
        if let Some(link) = self.links.get_mut(key.0) {
            link.full = false;
        }
    }

    pub(super) fn owner_up(&mut self, key: OwnerKey) {
        let Some(link) = self.links.get_mut(key.0) else {
            return;
        };
        link.up = true;
        link.full = false;
        link.closing.clear();
        for session in self.sessions_on(key) {
            self.sessions[session.0].opening = Opening::Wanted;
            self.queue(key, session);
        }
    }

    pub(super) fn owner_down(&mut self, now: Micros, key: OwnerKey) {
        let Some(link) = self.links.get_mut(key.0) else {
            return;
        };
        link.up = false;
        link.full = false;
        link.closing.clear();
        let why = format!("the connection to {} is lost", link.endpoint);
        for session in self.sessions_on(key) {
            self.take_back_sends(session);
            let entry = &mut self.sessions[session.0];
            entry.route = Route::On {
                link: key,
                handle: None,
            };
            entry.opening = Opening::Idle;
            entry.trouble = Some(why.clone());
            entry.asked.append(&mut entry.asking);
            if entry.wake_at.is_none() {
                self.wait(now, session);
            }
            self.note_unused(session);
        }
    }

    /// The peer will never talk to this build. Guests wait, for a rolling upgrade ends; whoever opens a volume
    /// anew is told.
    pub(super) fn owner_refused(
        &mut self,
        now: Micros,
        key: OwnerKey,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) {
        if !self.links.contains(key.0) {
            return;
        }
        for session in self.sessions_on(key) {
            self.leave_owner(now, session, refusal.text.clone());
            self.refuse_asked(session, refusal, effects);
            self.note_unused(session);
        }
        self.remove_link(key, effects);
    }

    fn sessions_on(&self, key: OwnerKey) -> Vec<SessionKey> {
        self.sessions
            .iter()
            .filter(|(_, session)| matches!(session.route, Route::On { link, .. } if link == key))
            .map(|(index, _)| SessionKey(index))
            .collect()
    }
}
