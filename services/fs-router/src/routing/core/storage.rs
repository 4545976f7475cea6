//! The link to a storage-router, and the fetches that leave on it.
//!
//! Keeps: which storage-router this thread reads from; any of the pool's will do.
//! Order: fetches leave in the order in which they became ready.
//! Crash: nothing; only reads are here.
//! Knows no parts: what a fetch is for is its own business.

use std::cmp::Reverse;
use std::collections::VecDeque;

use sconce_schemas::wire::storage::StorageRequest;

use super::fetches::{FetchKey, FetchState, WriterState};
use super::types::{Effect, LinkKey, Micros, Sent, StorageKey, Wire};
use super::{Core, IdKind, Timer};

/// The storage-router that this thread reads from.
#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) link: Option<(StorageKey, String)>,
    pub(super) up: bool,
    pub(super) full: bool,
    /// The registry was asked for the storage-routers that are alive.
    pub(super) looking: bool,
    /// The one that is up does not do: another is taken where there is another.
    wants_other: bool,
    /// When a link was last made.
    linked_at: Micros,
    /// Times that the thread went to another since that last helped.
    pub(super) moves: u32,
    pub(super) ready: VecDeque<FetchKey>,
    /// Counts links.
    pub(super) links: u64,
    pub(super) attempts: u32,
    pub(super) wake_at: Option<Micros>,
}

/// Moves to another storage-router that double the time to the next: to about a minute.
const MOVES_DOUBLED_MAX: u32 = 6;

impl Core {
    pub(super) fn look_for_storage(&mut self, effects: &mut Vec<Effect>) {
        if !self.storage.looking {
            self.storage.looking = true;
            effects.push(Effect::FindStorage);
        }
    }

    /// The storage-router of this thread holds what others may give. Where going to another did not help it is the
    /// back end that is away: each further time is twice as long after the last, so that what nobody can give does
    /// not disturb the other reads of this thread.
    pub(super) fn want_other_storage(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        let patience = self.limits.backoff_max_us << self.storage.moves.min(MOVES_DOUBLED_MAX);
        if self.storage.up && now >= self.storage.linked_at + patience {
            self.storage.wants_other = true;
            self.look_for_storage(effects);
        }
    }

    /// Picks a storage-router, another than the one that is lost or does not do where there is another.
    pub(super) fn storage_found(
        &mut self,
        now: Micros,
        mut endpoints: Vec<String>,
        effects: &mut Vec<Effect>,
    ) {
        self.storage.looking = false;
        let wants_other = std::mem::take(&mut self.storage.wants_other);
        if self.storage.up && !wants_other {
            return;
        }
        if let Some((_, lost)) = &self.storage.link
            && endpoints.len() > 1
        {
            endpoints.retain(|endpoint| endpoint != lost);
        }
        if self.storage.up {
            let current = self.storage.link.as_ref().map(|(_, endpoint)| endpoint);
            if endpoints.iter().all(|endpoint| Some(endpoint) == current) {
                return;
            }
            self.storage.moves = self.storage.moves.saturating_add(1);
        }
        let at = self.set_backoff(now, self.storage.attempts, Timer::Storage);
        self.storage.attempts = self.storage.attempts.saturating_add(1);
        self.storage.wake_at = Some(at);
        let picked = self.chance.below(endpoints.len() as u64);
        let Some(endpoint) = usize::try_from(picked).ok().and_then(|at| endpoints.get(at)) else {
            return;
        };
        if self.storage.link.as_ref().is_some_and(|(_, on)| on == endpoint) {
            return;
        }
        self.take_back_fetches();
        self.drop_storage_link(effects);
        self.storage.links += 1;
        self.storage.linked_at = now;
        let link = StorageKey(self.storage.links);
        self.storage.link = Some((link, endpoint.clone()));
        effects.push(Effect::Connect {
            link: LinkKey::Storage(link),
            endpoint: endpoint.clone(),
        });
    }

    fn drop_storage_link(&mut self, effects: &mut Vec<Effect>) {
        if let Some((link, _)) = self.storage.link.take() {
            effects.push(Effect::Disconnect {
                link: LinkKey::Storage(link),
            });
        }
        self.storage.up = false;
        self.storage.full = false;
    }

    pub(super) fn wake_storage(&mut self, at: Micros, effects: &mut Vec<Effect>) {
        if self.storage.wake_at == Some(at) {
            self.storage.wake_at = None;
            if !self.storage.up && !self.storage.ready.is_empty() {
                self.look_for_storage(effects);
            }
        }
    }

    fn is_storage(&self, link: StorageKey) -> bool {
        self.storage.link.as_ref().is_some_and(|(on, _)| *on == link)
    }

    pub(super) fn storage_has_room(&mut self, link: StorageKey) {
        if self.is_storage(link) {
            self.storage.full = false;
        }
    }

    pub(super) fn storage_up(&mut self, link: StorageKey) {
        if self.is_storage(link) {
            self.storage.up = true;
            self.storage.full = false;
        }
    }

    pub(super) fn storage_down(&mut self, link: StorageKey, effects: &mut Vec<Effect>) {
        if self.is_storage(link) {
            self.storage.up = false;
            self.storage.full = false;
            self.take_back_fetches();
            if !self.storage.ready.is_empty() {
                self.look_for_storage(effects);
            }
        }
    }

    pub(super) fn storage_refused(&mut self, now: Micros, link: StorageKey, effects: &mut Vec<Effect>) {
        if self.is_storage(link) {
            self.take_back_fetches();
            self.drop_storage_link(effects);
            let at = self.set_backoff(now, self.storage.attempts, Timer::Storage);
            self.storage.attempts = self.storage.attempts.saturating_add(1);
            self.storage.wake_at = Some(at);
        }
    }

    fn take_back_fetches(&mut self) {
        for (index, fetch) in &mut self.fetches {
            if fetch.state == FetchState::Sent {
                fetch.state = FetchState::Ready;
                fetch.id = 0;
                self.storage.ready.push_back(FetchKey(index));
            }
        }
    }

    /// Sends the fetches that are ready, as far as there is room.
    pub(super) fn send_fetches(&mut self, wire: &mut impl Wire, effects: &mut Vec<Effect>) {
        while self.storage.up
            && !self.storage.full
            && let Some((link, _)) = &self.storage.link
            && let Some(&key) = self.storage.ready.front()
        {
            let link = *link;
            let trace = {
                let part = &self.parts[self.fetches[key.0].part.0];
                self.running[part.operation.0].trace
            };
            let id = self.next_id(IdKind::Fetch, key.0);
            let fetch = &mut self.fetches[key.0];
            let Some(WriterState::Known(writer)) = self.writers.get(&fetch.clusters.writer) else {
                // Forgotten since: it is asked for again.
                self.storage.ready.pop_front();
                fetch.state = FetchState::Waiting;
                fetch.wake_at = Some(0);
                self.timers.push(Reverse((0, Timer::Fetch(key))));
                continue;
            };
            let length = fetch.length();
            let request = StorageRequest::Get {
                pool: writer.pool.clone(),
                name: fetch.object(),
                offset: writer.sco_size.slot_offset(fetch.clusters.first_slot),
                length,
                cached: true,
            };
            match wire.to_storage(link, id, trace, &request, length) {
                Sent::Taken => {}
                Sent::NoRoom => {
                    self.storage.full = true;
                    return;
                }
                Sent::Never(why) => {
                    self.fail_fetch(key, &why, effects);
                    continue;
                }
            }
            fetch.state = FetchState::Sent;
            fetch.id = id;
            self.storage.ready.pop_front();
        }
    }
}
