//! Write access: asked for with a session's first change, and again wherever the volume is opened anew.
//!
//! Keeps: what each session was granted, and the changes that wait for it. Reads never do.
//! Order: changes leave in the order in which they came; none leaves before access is granted.
//! Crash: the next process of this node asks anew, and what this one had sent is refused from then on.
//! Knows no owner's reasons.

use std::collections::VecDeque;

use sconce_schemas::NodeName;
use sconce_schemas::access::{AccessAsk, AccessReply, FAREWELL_SECONDS};
use sconce_schemas::wire::{Refusal, Remedy};

use super::Core;
use super::operations::PartKey;
use super::sessions::{Opening, Route, Session, is_held};
use super::types::{Effect, FrontEndKey, Micros, SessionKey};
use crate::routing::operation::Outcome;

/// How long a session that nobody has any more is kept where its owner, which is away, believes that it may write.
const FAREWELL_US: Micros = FAREWELL_SECONDS * 1_000_000;

/// Who the core is, for owners.
#[derive(Debug, Clone)]
pub(super) struct Me {
    node: NodeName,
    /// Which process of the node; not known before it is announced.
    incarnation: Option<u64>,
}

/// A session's write access.
#[derive(Debug, Default)]
pub(super) struct SessionAccess {
    /// What is sent on the session's handle may change the volume.
    granted: bool,
    /// The `Open` that is on its way asks for it.
    asked: bool,
    /// The generation under which it was granted last.
    held: Option<u64>,
    /// It was asked for, and what was answered is lost, or that nobody can say: it may be granted.
    doubt: bool,
    /// The `Close` that is on its way, or to be sent: the session goes with its answer.
    closing: Option<Closing>,
    /// Changes that wait for it, in order.
    waiting: VecDeque<PartKey>,
    /// Front ends that have opened the volume in this session, or changed it.
    opened: Vec<FrontEndKey>,
    /// It was lost: why, and the front ends that have opened the volume since. No other may write in this session.
    lost: Option<(Refusal, Vec<FrontEndKey>)>,
    /// It was refused since it was last granted, and somebody was told.
    told: bool,
    /// Nobody has the session any more: until when its owner is looked for, to tell it.
    farewell: Option<Micros>,
}

/// How far the last word of a session is that may have write access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Wanted,
    Sent(u64),
}

impl SessionAccess {
    /// Whether the owner may believe that the session writes, and is to be told that it is over.
    const fn is_to_be_closed(&self) -> bool {
        self.held.is_some() || self.doubt
    }

    /// Whether an `Open` is on its way that may grant it.
    pub(super) const fn is_asked(&self) -> bool {
        self.asked
    }

    /// The `Close` leaves.
    pub(super) const fn close_sent(&mut self, id: u64) {
        self.closing = Some(Closing::Sent(id));
    }

    /// Somebody has the session, again.
    pub(super) const fn is_wanted(&mut self) {
        self.farewell = None;
    }

    /// An `Open` leaves.
    pub(super) const fn asks(&mut self, ask: Option<&AccessAsk>) {
        self.asked = match ask {
            Some(ask) => ask.take,
            None => false,
        };
    }

    /// The handle is not there any more; gives what waited.
    pub(super) fn without_handle(&mut self) -> VecDeque<PartKey> {
        self.doubt |= self.asked;
        (self.granted, self.asked, self.closing) = (false, false, None);
        std::mem::take(&mut self.waiting)
    }

    /// The volume is gone.
    pub(super) const fn forget(&mut self) {
        (self.held, self.doubt) = (None, false);
    }

    /// A front end asks for the volume to be opened.
    pub(super) fn opens(&mut self, front_end: FrontEndKey) {
        if let Some((_, fresh)) = &mut self.lost
            && !self.opened.contains(&front_end)
            && !fresh.contains(&front_end)
        {
            fresh.push(front_end);
        }
    }

    /// It is open for this front end, or used as if it were.
    pub(super) fn is_used_by(&mut self, front_end: FrontEndKey) {
        if !self.opened.contains(&front_end) {
            self.opened.push(front_end);
        }
    }

    /// A front end is gone; its key may be another's next.
    pub(super) fn left(&mut self, front_end: FrontEndKey) {
        self.opened.retain(|known| *known != front_end);
        if let Some((_, fresh)) = &mut self.lost {
            fresh.retain(|known| *known != front_end);
        }
    }

    /// Why this front end may never write in this session, if so.
    fn why_never(&self, front_end: FrontEndKey) -> Option<&Refusal> {
        let (refusal, fresh) = self.lost.as_ref()?;
        (!fresh.contains(&front_end)).then_some(refusal)
    }

    /// Forgets parts that are over.
    pub(super) fn retain(&mut self, keep: impl Fn(&PartKey) -> bool) {
        self.waiting.retain(keep);
    }
}

impl Core {
    /// From here on owners are told who asks: `node`, whose process this is. Without that none grants anything.
    pub fn identify(&mut self, node: NodeName) {
        let incarnation = None;
        self.me = Some(Me { node, incarnation });
    }

    /// Which process of its node this is, by which owners tell it from those before and after it.
    pub(super) fn announced(&mut self, incarnation: u64) {
        if let Some(me) = &mut self.me {
            me.incarnation = Some(incarnation);
        }
        let sessions: Vec<SessionKey> = self.sessions.iter().map(|(key, _)| SessionKey(key)).collect();
        sessions.into_iter().for_each(|key| self.want_access(key));
    }

    /// What an `Open` of the session says.
    pub(super) fn access_ask(&self, key: SessionKey) -> Option<AccessAsk> {
        let me = self.me.as_ref()?;
        let access = &self.sessions[key.0].access;
        let wants = access.granted || access.is_to_be_closed() || !access.waiting.is_empty();
        Some(AccessAsk {
            node: me.node.clone(),
            incarnation: me.incarnation.unwrap_or(0),
            take: wants && me.incarnation.is_some(),
            held: access.held,
        })
    }

    /// The first part of the session's queue waits if it needs access that was not granted, and ends if it never will be.
    pub(super) fn park(&mut self, key: SessionKey, part: PartKey, effects: &mut Vec<Effect>) -> bool {
        let session = &mut self.sessions[key.0];
        let running = &self.running[self.parts[part.0].operation.0];
        let access = &mut session.access;
        if (access.granted && access.lost.is_none())
            || self.me.is_none()
            || session.view.is_some()
            || !running.code.needs_access(running.flags)
        {
            return false;
        }
        if let Some(refusal) = access.why_never(running.front_end) {
            let refusal = refusal.clone();
            session.ready.pop_front();
            self.finish_part(part, Outcome::Refused(refusal), effects);
            return true;
        }
        if access.granted {
            return false;
        }
        session.ready.pop_front();
        access.waiting.push_back(part);
        self.want_access(key);
        true
    }

    /// Asks for access where changes wait for it and nothing is under way that will.
    pub(super) fn want_access(&mut self, key: SessionKey) {
        let is_known = self.me.as_ref().is_some_and(|me| me.incarnation.is_some());
        let session = &mut self.sessions[key.0];
        let wants =
            !session.access.waiting.is_empty() && !session.access.granted && session.wake_at.is_none();
        if let Route::On {
            link,
            handle: Some(_),
        } = session.route
            && session.opening == Opening::Idle
            && wants
            && is_known
        {
            session.opening = Opening::Wanted;
            self.queue(link, key);
        }
    }

    /// The owner has opened the volume, and says this of write access.
    pub(super) fn access_answered(
        &mut self,
        now: Micros,
        key: SessionKey,
        reply: Option<AccessReply>,
        effects: &mut Vec<Effect>,
    ) {
        let access = &mut self.sessions[key.0].access;
        let asked = std::mem::take(&mut access.asked);
        match reply {
            Some(AccessReply::Granted(generation)) => {
                access.doubt = false;
                access.held = (generation > 0).then_some(generation);
                self.access_granted(key);
            }
            // A build before there was write access takes all changes.
            None if asked => {
                access.doubt = false;
                self.access_granted(key);
            }
            Some(AccessReply::Refused(refusal)) if is_held(&refusal) || refusal.remedy == Remedy::Reroute => {
                // Nobody could say, or it may yet be written down.
                (access.granted, access.doubt) = (false, access.doubt || asked);
                self.sessions[key.0].trouble = Some(refusal.text);
                self.wait(now, key);
            }
            Some(AccessReply::Refused(refusal)) => {
                (access.granted, access.doubt) = (false, false);
                self.access_refused(key, &refusal, effects);
            }
            None => {}
        }
        self.want_access(key);
    }

    fn access_granted(&mut self, key: SessionKey) {
        let session = &mut self.sessions[key.0];
        session.access.granted = true;
        session.access.told = false;
        // They came before those that are in the queue.
        while let Some(part) = session.access.waiting.pop_back() {
            session.ready.push_front(part);
        }
    }

    /// Another node may write, or access was taken from this one: what waits ends. Front ends that had access and lost it never get it
    /// again, as their clients cannot know what was written meanwhile; those that open the volume from here on may ask.
    fn access_refused(&mut self, key: SessionKey, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let session = &mut self.sessions[key.0];
        let volume = session.volume;
        if session.access.held.take().is_some() {
            let opened = &session.access.opened;
            let asked = session.asked.iter().chain(&session.asking);
            let fresh = asked.map(|asked| asked.front_end);
            let fresh = fresh.filter(|front_end| !opened.contains(front_end)).collect();
            session.access.lost = Some((refusal.clone(), fresh));
        }
        if !std::mem::replace(&mut session.access.told, true) {
            let refusal = refusal.clone();
            effects.push(Effect::AccessRefused { volume, refusal });
        }
        for part in std::mem::take(&mut self.sessions[key.0].access.waiting) {
            self.finish_part(part, Outcome::Refused(refusal.clone()), effects);
        }
    }

    /// Whether a session that nobody has any more is kept, as its owner believes that it may write and is to be told otherwise.
    pub(super) fn says_farewell(&mut self, now: Micros, key: SessionKey) -> bool {
        let session = &mut self.sessions[key.0];
        let is_open = matches!(session.route, Route::On { handle: Some(_), .. });
        if !session.access.is_to_be_closed() || is_open {
            return false;
        }
        let until = *session.access.farewell.get_or_insert(now + FAREWELL_US);
        if now >= until {
            return false;
        }
        if matches!(session.route, Route::Idle) {
            session.route = Route::Pausing;
            self.wait(now, key);
        }
        true
    }

    /// The last word of a session that nobody has any more and that may have write access: the session goes with the answer. Who opens
    /// the volume meanwhile gets another one. `false`: none is needed, or there is no owner to say it to.
    pub(super) fn says_last_word(&mut self, key: SessionKey) -> bool {
        let session = &mut self.sessions[key.0];
        let Route::On {
            link,
            handle: Some(_),
        } = session.route
        else {
            return false;
        };
        if !session.access.is_to_be_closed() {
            return false;
        }
        if session.access.closing.is_none() {
            session.access.closing = Some(Closing::Wanted);
            self.forget_volume(key);
            self.queue(link, key);
        }
        true
    }

    /// The handle whose `Close` is to leave, if one is.
    pub(super) fn to_be_closed(&self, key: SessionKey) -> Option<u32> {
        let session = &self.sessions[key.0];
        match session.route {
            Route::On { handle, .. } if session.access.closing == Some(Closing::Wanted) => handle,
            _ => None,
        }
    }

    /// The owner has heard the last word of a session, or has no such handle; or it has to be said again, where the volume is open anew.
    pub(super) fn close_answered(&mut self, now: Micros, id: u64, key: SessionKey, refusal: Option<Refusal>) {
        let is_answer = |session: &&Session| session.access.closing == Some(Closing::Sent(id));
        if self.sessions.get(key.0).filter(is_answer).is_none() {
            return;
        }
        match refusal {
            Some(refusal) if refusal.remedy != Remedy::Reject => {
                self.leave_owner(now, key, refusal.text);
                self.note_unused(key);
            }
            _ => self.end_session(now, key),
        }
    }
}
