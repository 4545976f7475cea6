//! Who may change the volume: what this ownership granted to whom.
//!
//! Keeps: the record's word on write access, and for each front end that has it a pass, with the sessions that it was given to.
//! Order: the record names a holder before anything of it is taken in, and a front end that is not granted any more has nothing
//! taken in from the moment at which another is.
//! Crash: passes are forgotten. Sessions come back with the generation under which they were granted, and the record knows whether
//! that is over.
//! Knows no registry: it says when that has to be asked.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use sconce_schemas::NodeName;
use sconce_schemas::access::{Access, AccessAsk, AccessMode, FAREWELL_SECONDS};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_volume::SessionSlot;
use tokio::time::Instant;

/// For how long a front end is refused without another look at the registry.
const REFUSED_FOR: Duration = Duration::from_millis(500);

/// Front ends that are remembered as refused: commands have names of their own, and many may come.
const REFUSED_MAX: usize = 64;

/// A session whose connections are gone for so long is over where others of its front end are not: as long as it is not, its front end opens the
/// volume again, and says for [`FAREWELL_SECONDS`] when it is. Twice that: the owner may see the end of a connection later than the front end does.
const GONE_FOR: Duration = Duration::from_secs(2 * FAREWELL_SECONDS);

/// What a handle is good for: compared once for each change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass(u64);

impl Pass {
    /// That of a build before there was write access: its changes are taken in while nobody has exclusive access.
    pub(crate) const UNASKED: Self = Self(0);
    /// No changes are taken in.
    pub(crate) const NONE: Self = Self(1);
    const FIRST: u64 = 2;

    /// What a handle is good for that was good for `before` and is opened again: a pass that was given ends by the owner's word alone.
    pub(crate) const fn or(self, before: Self) -> Self {
        match self {
            Self::NONE if before.0 >= Self::FIRST => before,
            pass => pass,
        }
    }
}

/// What a session was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    /// For its handle.
    pub(crate) pass: Pass,
    /// To ask with when it opens the volume again; 0 where any front end may write.
    pub(crate) generation: u64,
}

/// What comes of wanting to write, by what this ownership knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// It may.
    Granted(Permit),
    /// It may not.
    Refused(Refusal),
    /// The record is about to change: ask again.
    Undecided,
    /// The registry has to be asked.
    Claim,
}

/// A front end that may write.
#[derive(Debug)]
struct Grant {
    pass: Pass,
    node: NodeName,
    incarnation: u64,
    writers: Vec<Writer>,
}

/// A session that was given the pass.
#[derive(Debug)]
struct Writer {
    session: SessionSlot,
    /// Handles of connections that are there.
    links: u32,
    /// Since when none is.
    gone_since: Option<Instant>,
}

impl Writer {
    /// When it is taken to be over; `None`: it is connected.
    fn over_at(&self) -> Option<Instant> {
        self.gone_since.map(|since| since + GONE_FOR)
    }
}

/// The record is about to say something else of write access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deciding {
    /// That another front end has it, or as a person asked.
    Change,
    /// That nobody has it any more.
    Release,
}

/// Whose changes that wait in the engine are over, as another front end may write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fenced {
    /// Those of these sessions.
    Of(Vec<SessionSlot>),
    /// All but this session's: nobody had access, so those of builds before there was any were taken in.
    AllBut(SessionSlot),
}

/// What the registry is to be asked with.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// A holder that need not be in the registry is connected here.
    pub(crate) connected: bool,
    /// The record may say something else than what is known of it, and a change of it may be on its way.
    pub(crate) doubt: bool,
    /// Who gave access up, which the record does not say yet.
    pub(crate) given_up: Option<NodeName>,
}

/// Who may change the volume.
#[derive(Debug)]
pub(super) struct Permits {
    access: Access,
    /// Where access is exclusive, at most that of the holder.
    grants: Vec<Grant>,
    next: u64,
    /// The newest process of each node that was granted anything: what an earlier one had sent is worth nothing.
    newest: BTreeMap<NodeName, u64>,
    deciding: Option<Deciding>,
    /// What came of the last change of the record is not known.
    doubt: bool,
    /// The last session that wrote was closed.
    unused: bool,
    /// A session that wrote was closed, none is connected, and others may come back.
    is_left: bool,
    /// Until when each front end is refused as it was.
    refused: BTreeMap<NodeName, (Instant, Refusal)>,
}

impl Permits {
    /// By what the record says.
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            grants: Vec::new(),
            next: Pass::FIRST,
            newest: BTreeMap::new(),
            deciding: None,
            doubt: false,
            unused: false,
            is_left: false,
            refused: BTreeMap::new(),
        }
    }

    pub(super) const fn access(&self) -> &Access {
        &self.access
    }

    /// Whether changes that come with this pass are taken in.
    pub(super) fn takes(&self, pass: Pass) -> bool {
        match pass {
            Pass::UNASKED => self.access.held_by().is_none(),
            pass => self.grants.iter().any(|grant| grant.pass == pass),
        }
    }

    /// A session of this run wants to write. Gives too whose sessions may not any more.
    pub(super) fn judge(
        &mut self,
        ask: &AccessAsk,
        session: SessionSlot,
        path: &str,
    ) -> (Judged, Vec<SessionSlot>) {
        if let Some(refusal) = self.is_over(ask, path) {
            return (Judged::Refused(refusal), Vec::new());
        }
        let is_holder = self
            .access
            .held_by()
            .is_some_and(|holder| holder.node == ask.node);
        let judged = match self.deciding {
            Some(Deciding::Release) => Judged::Undecided,
            // The record may say by now that nobody has it: it has to say who before anything is taken in.
            None if is_holder && self.doubt && !self.has_writers() => Judged::Claim,
            Some(Deciding::Change) if self.doubt && !self.has_writers() => Judged::Undecided,
            _ if is_holder || self.access.mode == AccessMode::Shared => {
                let (permit, fenced) = self.grant(ask, session);
                return (Judged::Granted(permit), fenced);
            }
            Some(Deciding::Change) => Judged::Undecided,
            None => match self.refused.get(&ask.node) {
                Some((until, refusal)) if Instant::now() < *until => Judged::Refused(refusal.clone()),
                _ => Judged::Claim,
            },
        };
        (judged, Vec::new())
    }

    /// Why whatever comes of this front end is worth nothing any more, if so.
    fn is_over(&self, ask: &AccessAsk, path: &str) -> Option<Refusal> {
        if self
            .newest
            .get(&ask.node)
            .is_some_and(|newest| ask.incarnation < *newest)
        {
            let text = format!(
                "volume {path}: a later process of {} writes it; what an earlier one had sent is refused",
                ask.node
            );
            return Some(Refusal::reject(RefusalCode::NoAccess, text));
        }
        let is_fenced = ask.held.is_some_and(|held| held < self.access.generation);
        (is_fenced && self.access.mode == AccessMode::Exclusive).then(|| {
            let now = match self.access.held_by() {
                Some(holder) => format!("{} has it since {}", holder.node, time(holder.since_us)),
                None => "nobody has it now".to_owned(),
            };
            let text = format!(
                "volume {path}: write access was taken from {} ({now}); its client has to open the volume anew",
                ask.node
            );
            Refusal::reject(RefusalCode::NoAccess, text)
        })
    }

    /// Gives the session its front end's pass; and which sessions may not write any more, as they are of an earlier process.
    fn grant(&mut self, ask: &AccessAsk, session: SessionSlot) -> (Permit, Vec<SessionSlot>) {
        let mut fenced = Vec::new();
        let known = self.grants.iter().position(|grant| grant.node == ask.node);
        if let Some(at) = known
            && self.grants[at].incarnation < ask.incarnation
        {
            fenced = sessions_of([self.grants.swap_remove(at)]);
            fenced.retain(|fenced| *fenced != session);
        }
        if ask.incarnation > 0 {
            self.newest.insert(ask.node.clone(), ask.incarnation);
        }
        self.refused.remove(&ask.node);
        (self.unused, self.is_left) = (false, false);
        let known = self.grants.iter().position(|grant| grant.node == ask.node);
        let at = known.unwrap_or_else(|| {
            let pass = Pass(self.next);
            self.next += 1;
            self.grants.push(Grant {
                pass,
                node: ask.node.clone(),
                incarnation: ask.incarnation,
                writers: Vec::new(),
            });
            self.grants.len() - 1
        });
        let grant = &mut self.grants[at];
        match grant.writers.iter_mut().find(|writer| writer.session == session) {
            Some(writer) => (writer.links, writer.gone_since) = (writer.links + 1, None),
            None => grant.writers.push(Writer {
                session,
                links: 1,
                gone_since: None,
            }),
        }
        let generation = match self.access.mode {
            AccessMode::Exclusive => self.access.generation,
            AccessMode::Shared => 0,
        };
        (
            Permit {
                pass: grant.pass,
                generation,
            },
            fenced,
        )
    }

    /// The record is about to change.
    pub(super) const fn decides(&mut self, what: Deciding) {
        self.deciding = Some(what);
    }

    /// Whether it is.
    pub(super) const fn is_deciding(&self) -> bool {
        self.deciding.is_some()
    }

    /// It did not. What was granted still holds.
    pub(super) const fn undecided(&mut self) {
        self.deciding = None;
    }

    /// Nobody knows whether it did. What was granted under the record that is known still holds, and nothing was granted under another;
    /// what was to be released still is.
    pub(super) const fn failed(&mut self) {
        self.deciding = None;
        self.doubt = true;
    }

    /// Earlier processes are not told from later ones any more: the registry may have been restored, and give out lower numbers.
    pub(super) fn forget_newest(&mut self) {
        self.newest.clear();
    }

    /// The record says this now. Gives which sessions may not write any more.
    pub(super) fn decided(&mut self, access: Access) -> Vec<SessionSlot> {
        (self.deciding, self.doubt) = (None, false);
        self.refused.clear();
        let before = std::mem::replace(&mut self.access, access);
        let is_other = before.generation != self.access.generation;
        let is_exclusive = self.access.mode == AccessMode::Exclusive;
        let holder = self.access.held_by().map(|holder| &holder.node);
        let ends = |grant: &mut Grant| is_exclusive && (is_other || holder != Some(&grant.node));
        let ended = sessions_of(self.grants.extract_if(.., ends));
        self.is_left &= self.has_writers();
        ended
    }

    /// The record says so, and that the session's front end may write.
    pub(super) fn claimed(
        &mut self,
        access: Access,
        ask: &AccessAsk,
        session: SessionSlot,
    ) -> (Permit, Fenced) {
        let was_free = self.access.held_by().is_none();
        let mut fenced = self.decided(access);
        let (permit, of_earlier) = self.grant(ask, session);
        fenced.extend(of_earlier);
        match was_free && self.access.held_by().is_some() {
            true => (permit, Fenced::AllBut(session)),
            false => (permit, Fenced::Of(fenced)),
        }
    }

    /// The front end is refused, for a while. Whether it was not known that it would be.
    pub(super) fn refuses(&mut self, node: &NodeName, refusal: &Refusal) -> bool {
        self.deciding = None;
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        let until = Instant::now() + REFUSED_FOR;
        let before = self.refused.insert(node.clone(), (until, refusal.clone()));
        before.is_none()
    }

    /// Whether the front end was refused since the record said something else.
    pub(super) fn is_refused(&self, node: &NodeName) -> bool {
        self.refused.contains_key(node)
    }

    /// A handle's connection is gone.
    pub(super) fn gone(&mut self, pass: Pass, session: SessionSlot) {
        let Some(at) = self.grants.iter().position(|grant| grant.pass == pass) else {
            return;
        };
        let grant = &mut self.grants[at];
        let writers = grant.writers.iter_mut();
        for writer in writers.filter(|writer| writer.session == session) {
            writer.links = writer.links.saturating_sub(1);
            if writer.links == 0 {
                writer.gone_since.get_or_insert_with(Instant::now);
            }
        }
        // Nobody keeps these for those that come back: each is asked for anew, and a command has a new name each time.
        let is_kept = self.access.mode == AccessMode::Exclusive && grant.incarnation > 0;
        if !is_kept && grant.writers.iter().all(|writer| writer.links == 0) {
            self.grants.swap_remove(at);
        }
    }

    /// A session is closed by its client, whatever the handle was good for that it was closed by.
    pub(super) fn closed(&mut self, session: SessionSlot) {
        let before = self.writers().count();
        for grant in &mut self.grants {
            grant.writers.retain(|writer| writer.session != session);
        }
        let wrote = self.writers().count() < before;
        match self.access.mode {
            AccessMode::Exclusive => {
                self.unused |= !self.grants.is_empty() && !self.has_writers();
                let is_left = self.has_writers() && self.writers().all(|writer| writer.links == 0);
                self.is_left |= wrote && is_left;
            }
            AccessMode::Shared => self.grants.retain(|grant| !grant.writers.is_empty()),
        }
    }

    /// Sessions that are gone for long, of a front end of which none is connected since one was closed, are over: it had said so, and was not
    /// heard. Where none was ever closed its front end may be cut off, and all of them come back.
    pub(super) fn forget_gone(&mut self) {
        if !self.is_left {
            return;
        }
        let now = Instant::now();
        for grant in &mut self.grants {
            grant
                .writers
                .retain(|writer| writer.over_at().is_none_or(|over| now < over));
        }
        if !self.has_writers() {
            (self.unused, self.is_left) = (true, false);
        }
    }

    /// How long until [`Permits::forget_gone`] is to be called again.
    pub(super) fn forgets_in(&self) -> Option<Duration> {
        let next = self.writers().filter_map(Writer::over_at).min();
        let next = next.filter(|_| self.is_left)?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn writers(&self) -> impl Iterator<Item = &Writer> {
        self.grants.iter().flat_map(|grant| &grant.writers)
    }

    /// Whether the holder gave its access up and the record does not say so, or may name one that was never told that it has it.
    pub(super) fn is_to_be_released(&self) -> bool {
        let is_given_up = self.unused && self.access.held_by().is_some();
        let is_exclusive = self.access.mode == AccessMode::Exclusive;
        let is_unknown = self.doubt && is_exclusive && (self.unused || self.access.held_by().is_none());
        self.deciding.is_none() && (is_given_up || is_unknown)
    }

    fn has_writers(&self) -> bool {
        self.grants.iter().any(|grant| !grant.writers.is_empty())
    }

    /// What the registry is asked with, for a front end that wants to write.
    pub(super) fn claim(&self) -> Claim {
        let given_up = self.access.held_by().filter(|_| self.unused);
        Claim {
            connected: self.has_connected_command(),
            doubt: self.doubt,
            given_up: given_up.map(|holder| holder.node.clone()),
        }
    }

    /// Whether a holder that need not be in the registry is connected here.
    fn has_connected_command(&self) -> bool {
        let mut commands = self.grants.iter().filter(|grant| grant.incarnation == 0);
        commands.any(|grant| grant.writers.iter().any(|writer| writer.links > 0))
    }
}

fn sessions_of(grants: impl IntoIterator<Item = Grant>) -> Vec<SessionSlot> {
    let writers = grants.into_iter().flat_map(|grant| grant.writers);
    writers.map(|writer| writer.session).collect()
}

/// Why a front end may not write while another has access, for people.
pub(super) fn held_by_another(access: &Access, node: Option<&NodeName>, path: &str) -> Refusal {
    let node = node.map_or("another one", NodeName::as_str);
    let (holder, since) = access.held_by().map_or_else(
        || ("another front end".to_owned(), String::new()),
        |holder| {
            (
                holder.node.to_string(),
                format!(" since {}", time(holder.since_us)),
            )
        },
    );
    let text = format!(
        "volume {path} is written by {holder}{since}, and by one front end at a time. To let {node} go on: \
         sconce volume access {path} --hand-over; where clients agree among themselves: --shared; if {holder} is dead: --break"
    );
    Refusal::reject(RefusalCode::NoAccess, text)
}

fn time(micros: u64) -> String {
    let moment = UNIX_EPOCH.checked_add(Duration::from_micros(micros));
    moment.map_or_else(
        || format!("{micros} us"),
        |moment| humantime::format_rfc3339_seconds(moment).to_string(),
    )
}

#[cfg(test)]
mod tests;
