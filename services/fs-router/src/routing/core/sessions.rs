//! Sessions: from "who owns this volume?" to an open handle, and back when it is lost.
//!
//! Keeps: where each session is on that way, and which front ends wait for it to arrive.
//! Order: registry, connection, open; operations are sent only between an open and the next refusal or loss.
//! Crash: a session dies with its process; its id is never used again.
//! Knows no operations beyond moving them back into the queue.

use std::collections::VecDeque;

use sconce_schemas::wire::volume::VolumeControlReply;
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{SessionId, SnapshotId, VolumeId};

use super::access::SessionAccess;
use super::operations::{PartKey, PartState};
use super::types::{Effect, FrontEndKey, Micros, OwnerKey, Patience, Routed, SessionKey, Token};
use super::view::{Told, View};
use super::{Core, Timer};
use crate::routing::numbers::Numbers;
use crate::routing::operation::Outcome;

#[derive(Debug)]
pub(super) enum Route {
    /// Nobody wants anything.
    Idle,
    /// The registry was asked.
    Asking,
    /// Waits until `wake_at`, then asks the registry.
    Pausing,
    /// Attached to a link; open there with this handle.
    On { link: OwnerKey, handle: Option<u32> },
}

/// Whether an `Open` is to be sent or on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    Idle,
    Wanted,
    Sent(u64),
}

/// A front end that wants to know what an `Open` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) front_end: FrontEndKey,
    token: Token,
    patience: Patience,
}

impl Asked {
    fn told(self, outcome: Outcome) -> Effect {
        Effect::Complete {
            front_end: self.front_end,
            token: self.token,
            outcome,
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) volume: VolumeId,
    /// It is on this, and takes no changes; `None`: on the volume.
    pub(super) view: Option<View>,
    pub(super) id: SessionId,
    pub(super) route: Route,
    pub(super) opening: Opening,
    /// The registry was asked and has not answered.
    pub(super) looking: bool,
    pub(super) numbers: Numbers,
    /// Parts to be sent, in the order of their numbers; those without one behind.
    pub(super) ready: VecDeque<PartKey>,
    /// Is in the link's `turns`.
    pub(super) queued: bool,
    /// Operations that have not ended, and the bytes that they carry.
    pub(super) requests: usize,
    pub(super) bytes: u64,
    /// An operation was refused for want of room.
    pub(super) wants_room: bool,
    /// Operations that were left behind and may still be applied.
    pub(super) orphans: usize,
    /// Handles that front ends have.
    pub(super) users: usize,
    /// Front ends that want to know what an `Open` that is yet to be sent says.
    pub(super) asked: Vec<Asked>,
    /// Front ends whose `Open` is on its way.
    pub(super) asking: Vec<Asked>,
    /// Attempts to reach the owner since something last went well.
    pub(super) attempts: u32,
    pub(super) wake_at: Option<Micros>,
    /// Why operations are held, for people.
    pub(super) trouble: Option<String>,
    pub(super) access: SessionAccess,
}

impl Core {
    /// The session of a volume, made where there is none. Each call needs its [`Core::release`].
    pub fn session(&mut self, volume: VolumeId) -> SessionKey {
        if let Some(&key) = self.by_volume.get(&volume) {
            let session = &mut self.sessions[key.0];
            session.users += 1;
            session.access.is_wanted();
            return key;
        }
        let key = self.new_session(volume, None);
        self.by_volume.insert(volume, key);
        key
    }

    /// A session on a snapshot of a volume, to be read. It ends operations with `NotFound` once the snapshot is gone,
    /// or is not `id`, where that is given. Each call makes one of its own, so that one who opens a name anew gets what
    /// has it now, and needs its [`Core::release`].
    pub fn snapshot_session(&mut self, volume: VolumeId, name: String, id: Option<SnapshotId>) -> SessionKey {
        self.view_session(volume, View::snapshot(name, id))
    }

    /// A session on a view of a volume; as [`Core::snapshot_session`].
    pub fn view_session(&mut self, volume: VolumeId, view: View) -> SessionKey {
        self.new_session(volume, Some(view))
    }

    /// What a session is on beside the volume itself.
    #[must_use]
    pub fn view(&self, session: SessionKey) -> Option<&View> {
        self.sessions.get(session.0)?.view.as_ref()
    }

    fn new_session(&mut self, volume: VolumeId, view: Option<View>) -> SessionKey {
        let id = SessionId(self.chance.u64());
        SessionKey(self.sessions.insert(Session {
            volume,
            view,
            id,
            route: Route::Idle,
            opening: Opening::Idle,
            looking: false,
            numbers: Numbers::new(),
            ready: VecDeque::new(),
            queued: false,
            requests: 0,
            bytes: 0,
            wants_room: false,
            orphans: 0,
            users: 1,
            asked: Vec::new(),
            asking: Vec::new(),
            attempts: 0,
            wake_at: None,
            trouble: None,
            access: SessionAccess::default(),
        }))
    }

    /// Gives back what [`Core::session`] or [`Core::snapshot_session`] gave. The session ends once nobody has it and nothing is under way.
    pub fn release(&mut self, now: Micros, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(key.0) {
            session.users = session.users.saturating_sub(1);
            self.note_unused(key);
            self.end_unused(now);
        }
    }

    /// Asks the owner to open the volume; completes with [`Outcome::Opened`], as it is then, or a refusal.
    pub fn open(
        &mut self,
        key: SessionKey,
        front_end: FrontEndKey,
        token: Token,
        patience: Patience,
        effects: &mut Vec<Effect>,
    ) {
        self.sessions[key.0].access.opens(front_end);
        self.sessions[key.0].asked.push(Asked {
            front_end,
            token,
            patience,
        });
        self.want_open(key, effects);
    }

    /// Why the operations of a session are held, where they are.
    #[must_use]
    pub fn trouble(&self, key: SessionKey) -> Option<&str> {
        self.sessions.get(key.0)?.trouble.as_deref()
    }

    /// Starts the way to the owner where it has not begun.
    pub(super) fn start(&mut self, key: SessionKey, effects: &mut Vec<Effect>) {
        if matches!(self.sessions[key.0].route, Route::Idle) {
            self.sessions[key.0].route = Route::Asking;
            self.look(key, effects);
        }
    }

    fn want_open(&mut self, key: SessionKey, effects: &mut Vec<Effect>) {
        self.start(key, effects);
        let session = &mut self.sessions[key.0];
        if let Route::On { link, .. } = session.route
            && session.opening == Opening::Idle
        {
            session.opening = Opening::Wanted;
            self.queue(link, key);
        }
    }

    /// Puts a session in its link's turns.
    pub(super) fn queue(&mut self, link: OwnerKey, key: SessionKey) {
        let session = &mut self.sessions[key.0];
        if !session.queued {
            session.queued = true;
            self.links[link.0].turns.push_back(key);
        }
    }

    fn look(&mut self, key: SessionKey, effects: &mut Vec<Effect>) {
        let session = &mut self.sessions[key.0];
        if !session.looking {
            session.looking = true;
            let volume = session.volume;
            effects.push(Effect::FindOwner { session: key, volume });
        }
    }

    pub(super) fn routed(&mut self, now: Micros, key: SessionKey, routed: Routed, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(key.0).filter(|session| session.looking) else {
            return;
        };
        session.looking = false;
        let volume = session.volume;
        // Judged again on return: what was asked for in need is of no use to a session that is open since.
        let current = match session.route {
            Route::Asking => None,
            Route::On { link, handle: None } if !self.links[link.0].up => Some(link),
            _ => return self.note_unused(key),
        };
        let is_absent = matches!(routed, Routed::Absent(_));
        match routed {
            Routed::Gone(refusal) => self.fail_session(now, key, &refusal, effects),
            Routed::Unknown(why) | Routed::Absent(why) => {
                session.trouble = Some(why.clone());
                if current.is_none() {
                    session.route = Route::Pausing;
                }
                self.wait(now, key);
                if is_absent {
                    self.refuse_impatient(key, &Refusal::retry(RefusalCode::WaitsForOwner, why), effects);
                }
            }
            Routed::At { endpoint, writer } => {
                self.know_writer(volume, writer);
                if current.is_some_and(|link| self.links[link.0].endpoint == endpoint) {
                    return self.wait(now, key);
                }
                self.detach(now, key);
                self.attach(now, key, endpoint, effects);
            }
        }
        self.note_unused(key);
    }

    /// Asks the registry again after a while.
    pub(super) fn wait(&mut self, now: Micros, key: SessionKey) {
        let attempts = self.sessions[key.0].attempts;
        let at = self.set_backoff(now, attempts, Timer::Session(key));
        let session = &mut self.sessions[key.0];
        session.attempts = attempts.saturating_add(1);
        session.wake_at = Some(at);
    }

    pub(super) fn wake_session(&mut self, at: Micros, key: SessionKey, effects: &mut Vec<Effect>) {
        let Some(session) = self
            .sessions
            .get_mut(key.0)
            .filter(|session| session.wake_at == Some(at))
        else {
            return;
        };
        session.wake_at = None;
        match session.route {
            Route::Pausing => {
                session.route = Route::Asking;
                self.look(key, effects);
            }
            // The owner may be back at another place, or another node may be the owner by now.
            Route::On { link, .. } if !self.links[link.0].up => self.look(key, effects),
            _ => self.want_access(key),
        }
    }

    /// The owner refused: nothing more goes there until the registry was asked and the volume is open again.
    pub(super) fn leave_owner(&mut self, now: Micros, key: SessionKey, why: String) {
        self.detach(now, key);
        let session = &mut self.sessions[key.0];
        session.route = Route::Pausing;
        session.trouble = Some(why);
        self.wait(now, key);
    }

    pub(super) fn opened(
        &mut self,
        now: Micros,
        link: OwnerKey,
        id: u64,
        key: SessionKey,
        reply: Result<VolumeControlReply, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let expected = |session: &Session| {
            session.opening == Opening::Sent(id)
                && matches!(session.route, Route::On { link: on, .. } if on == link)
        };
        let Some(session) = self.sessions.get_mut(key.0).filter(|s| expected(s)) else {
            return;
        };
        match reply.map(|reply| Told::of(&reply)) {
            Ok(Some(Told {
                handle,
                opened,
                snapshot,
                since,
                access,
            })) => {
                let view = session.view.as_mut();
                if let Some(refusal) = view.and_then(|view| view.check(snapshot, since)) {
                    self.links[link.0].closing.push(handle);
                    self.fail_session(now, key, &refusal, effects);
                    return self.note_unused(key);
                }
                session.route = Route::On {
                    link,
                    handle: Some(handle),
                };
                session.trouble = None;
                session.wake_at = None;
                session.opening = if session.asked.is_empty() {
                    Opening::Idle
                } else {
                    Opening::Wanted
                };
                self.access_answered(now, key, access, effects);
                let session = &mut self.sessions[key.0];
                let asking = std::mem::take(&mut session.asking);
                for asked in asking {
                    session.access.is_used_by(asked.front_end);
                    effects.push(asked.told(Outcome::Opened(opened)));
                }
                self.queue(link, key);
            }
            Ok(None) => self.leave_owner(
                now,
                key,
                "the owner answered something else to an open".to_owned(),
            ),
            Err(refusal) if is_held(&refusal) || refusal.remedy == Remedy::Reroute => {
                self.leave_owner(now, key, refusal.text.clone());
                if refusal.code == RefusalCode::WaitsForOwner {
                    self.refuse_impatient(key, &refusal, effects);
                }
            }
            Err(refusal) => self.fail_session(now, key, &refusal, effects),
        }
        self.note_unused(key);
    }

    /// There is no way to this volume, for good: all that waits for it ends.
    fn fail_session(&mut self, now: Micros, key: SessionKey, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.detach(now, key);
        let session = &mut self.sessions[key.0];
        session.route = Route::Idle;
        session.attempts = 0;
        session.trouble = None;
        if refusal.code == RefusalCode::NotFound {
            session.access.forget();
        }
        self.refuse_asked(key, refusal, effects);
        self.sessions[key.0].ready.clear();
        let parts: Vec<PartKey> = self
            .parts
            .iter()
            .filter(|(_, part)| part.session == key && part.state != PartState::Gathering)
            .map(|(index, _)| PartKey(index))
            .collect();
        for part in parts {
            self.finish_part(part, Outcome::Refused(refusal.clone()), effects);
        }
    }

    pub(super) fn refuse_asked(&mut self, key: SessionKey, refusal: &Refusal, effects: &mut Vec<Effect>) {
        for asked in std::mem::take(&mut self.sessions[key.0].asked) {
            effects.push(asked.told(Outcome::Refused(refusal.clone())));
        }
    }

    /// The volume waits for an owner that may never come: who does not want to wait that long is told.
    fn refuse_impatient(&mut self, key: SessionKey, refusal: &Refusal, effects: &mut Vec<Effect>) {
        self.sessions[key.0].asked.retain(|asked| {
            let is_patient = asked.patience == Patience::Endless;
            if !is_patient {
                effects.push(asked.told(Outcome::Refused(refusal.clone())));
            }
            is_patient
        });
    }

    /// Forgets who of a front end waits for an open.
    pub(super) fn forget_asked(&mut self, front_end: FrontEndKey) {
        for (_, session) in &mut self.sessions {
            session.asked.retain(|asked| asked.front_end != front_end);
            session.asking.retain(|asked| asked.front_end != front_end);
            session.access.left(front_end);
        }
    }

    /// Something of a session ended: it may have been the last.
    pub(super) fn note_unused(&mut self, key: SessionKey) {
        if self.sessions.get(key.0).is_some_and(Session::is_unused) {
            self.unused.push(key);
        }
    }

    /// Ends the sessions that nobody has and that have nothing under way.
    pub(super) fn end_unused(&mut self, now: Micros) {
        while let Some(key) = self.unused.pop() {
            if !self.sessions.get(key.0).is_some_and(Session::is_unused) {
                continue;
            }
            if self.says_farewell(now, key) {
                continue;
            }
            if self.says_last_word(key) {
                continue;
            }
            let route = match self.sessions[key.0].route {
                Route::On {
                    link,
                    handle: Some(handle),
                } => Some((link, handle)),
                _ => None,
            };
            self.end_session(now, key);
            if let Some((link, handle)) = route {
                self.links[link.0].closing.push(handle);
            }
        }
    }

    pub(super) fn end_session(&mut self, now: Micros, key: SessionKey) {
        self.detach(now, key);
        self.forget_volume(key);
        self.sessions.remove(key.0);
    }

    /// Who opens the volume from here on gets another session.
    pub(super) fn forget_volume(&mut self, key: SessionKey) {
        let volume = self.sessions[key.0].volume;
        if self.by_volume.get(&volume) == Some(&key) {
            self.by_volume.remove(&volume);
        }
    }
}

impl Session {
    /// The open is on its way, for all that have asked until now.
    pub(super) fn open_sent(&mut self, id: u64) {
        self.opening = Opening::Sent(id);
        self.asking.append(&mut self.asked);
    }

    fn is_unused(&self) -> bool {
        // Whether the session has access is not known before that is answered.
        let is_asking = matches!(self.opening, Opening::Sent(_)) && self.access.is_asked();
        self.users == 0 && self.requests == 0 && !self.looking && !is_asking
    }
}

/// Whether a refusal says: the same again, later.
pub(super) fn is_held(refusal: &Refusal) -> bool {
    refusal.remedy == Remedy::Retry || refusal.code == RefusalCode::WaitsForOwner
}
