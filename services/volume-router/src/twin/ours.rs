//! The twin of one volume, at its owner: found, told, given up.
//!
//! Keeps: the stream, if there is one, and whether one is looked for.
//! Order: what the registry's record is to say of the twin is written in the order in which the volume asks for it; a twin is told that
//! it is none only once the record does not rely on it.
//! Crash: the next ownership's record says that there is no twin, and looks for one.
//! Knows no batches: what is waited for is the volume's business.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sconce_balance::TwinRank;
use sconce_bus::CallError;
use sconce_runtime::{Backoff, Chance};
use sconce_schemas::records::{Buffer, DtlState, NodeRecord, TwinHost};
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::wire::event::{TwinRefused, What};
use sconce_schemas::wire::twin::{TwinReply, TwinSay};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{BatchSeq, ByteLen, NodeName, ScoId, ScoSize};
use sconce_tracing::Trace;
use sconce_volume::{Append, Event, TwinState};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::stream::{Copied, Party, Stream, Trouble};
use crate::actor::{Owner, Shard};
use crate::background::Tried;
use crate::device::ScoFile;
use crate::node::Node;
use crate::owner::record::{RecordError, hand_over, note_degraded, note_in_sync, refusal_of};

/// A volume-router that would not, or could not, keep the twin is not asked again for so long.
const REST: Duration = Duration::from_secs(5);
/// How long nobody is asked once everybody was.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(2);

/// Lives with the volume.
pub(crate) struct Ours {
    shared: Rc<Shared>,
    /// The volume gives the stream up: it is told once the record does not rely on it any more.
    giving_up: bool,
}

/// Who is to keep the twin, if it can.
#[derive(Debug, Clone)]
struct First {
    node: NodeName,
    /// Nobody else is to.
    is_alone: bool,
}

/// What tasks of the volume's thread share.
struct Shared {
    shard: Rc<Shard>,
    owner: Owner,
    sco_size: ScoSize,
    stream: RefCell<Option<Rc<Stream>>>,
    /// The number of the next one. A twin refuses one that comes behind a newer one.
    streams: Cell<u64>,
    /// The volume wants a twin and has none.
    is_wanted: Cell<bool>,
    /// Somebody looks for one.
    is_sought: Cell<bool>,
    /// The volume is about to be released or handed over: nothing is to say from here on that anybody relies on a twin of this ownership.
    is_closing: Cell<bool>,
    /// Who is asked first where the choice is free, and alone where the volume moves there.
    first: RefCell<Option<First>>,
    /// Where an operator wants the twin to be.
    wish: RefCell<Option<TwinHost>>,
    /// The failure domain that the twin is in.
    domain: RefCell<String>,
    /// Volume-routers that are not asked until then, and why.
    rests: RefCell<HashMap<NodeName, (Instant, String)>>,
    /// Why no twin is in sync, for whoever asks; `None`: one is, or nothing went wrong.
    trouble: RefCell<Option<String>>,
    /// Changes of the record, one after the other: an older one must not win.
    turn: Mutex<()>,
}

impl Ours {
    /// `first`: who is asked first where the choice is free; `wish`: where an operator wants the twin to be.
    pub(crate) fn new(
        shard: &Rc<Shard>,
        owner: &Owner,
        sco_size: ScoSize,
        (first, wish): (Option<NodeName>, Option<TwinHost>),
    ) -> Self {
        let shared = Shared {
            shard: Rc::clone(shard),
            owner: owner.clone(),
            sco_size,
            streams: Cell::new(1),
            stream: RefCell::default(),
            is_wanted: Cell::new(false),
            is_sought: Cell::new(false),
            is_closing: Cell::new(false),
            first: RefCell::new(first.map(|node| First {
                node,
                is_alone: false,
            })),
            wish: RefCell::new(wish),
            domain: RefCell::default(),
            rests: RefCell::default(),
            trouble: RefCell::default(),
            turn: Mutex::new(()),
        };
        Self {
            shared: Rc::new(shared),
            giving_up: false,
        }
    }

    /// After every event: what the volume thinks of its twin decides what becomes of the stream.
    pub(crate) fn tend(&mut self, state: TwinState) {
        let shared = &self.shared;
        shared.is_wanted.set(state == TwinState::Searching);
        match state {
            TwinState::Losing => self.giving_up = true,
            TwinState::Off => self.give_up(),
            TwinState::Searching => {
                if std::mem::take(&mut self.giving_up) || shared.live().is_none() {
                    self.give_up();
                    self.seek();
                }
            }
            TwinState::Copying | TwinState::Joining | TwinState::InSync => {}
        }
    }

    fn give_up(&mut self) {
        self.giving_up = false;
        if let Some(stream) = self.shared.stream.take() {
            let volume = self.shared.owner.subject().volume;
            self.shared.node().seen.forget_choice(volume);
            if let Some(cause) = stream.lost() {
                self.shared.rest(stream.node(), cause);
            }
            actix_rt::spawn(async move { stream.detach().await });
        }
    }

    fn seek(&self) {
        if !self.shared.is_sought.replace(true) {
            let shared = Rc::clone(&self.shared);
            actix_rt::spawn(async move {
                seek(&shared).await;
                shared.is_sought.set(false);
            });
        }
    }

    /// Whether there is a stream: what was told of one that is over by now comes to nothing.
    pub(crate) fn has_stream(&self) -> bool {
        self.shared.live().is_some()
    }

    /// Where the twin is, if there is one.
    pub(crate) fn host(&self) -> Option<NodeName> {
        self.shared.live().map(|stream| stream.node().clone())
    }

    /// The twin is to be on this node and on no other: one elsewhere is given up.
    pub(crate) fn only_on(&self, node: &NodeName) {
        *self.shared.first.borrow_mut() = Some(First {
            node: node.clone(),
            is_alone: true,
        });
        self.shared.rests.borrow_mut().remove(node);
        self.shared.shard.lines.forget_who_runs();
        if let Some(stream) = self.shared.live().filter(|stream| stream.node() != node) {
            stream.leave(&format!("it is to be on {node}"));
        }
    }

    /// The twin may be on any node.
    pub(crate) fn anywhere(&self) {
        self.shared.first.take();
    }

    /// An operator wants the twin to be here from now on. One that is elsewhere stays until it can be there.
    pub(crate) fn wish(&self, wish: Option<TwinHost>) {
        let before = self.shared.wish.replace(wish.clone());
        if before == wish {
            return;
        }
        let (host, only) = wish.map_or((None, false), |wish| (Some(wish.node), wish.only));
        if let Some(host) = &host {
            self.shared.rests.borrow_mut().remove(host);
        }
        self.shared.owner.tell(What::TwinHostSet { host, only });
    }

    /// A twin on this node is given up; another node is asked to keep one.
    pub(crate) fn leave(&self, node: &NodeName) {
        let cause = "it is to be on another node";
        self.shared.rest(node, cause.to_owned());
        if let Some(stream) = self.shared.live().filter(|stream| stream.node() == node) {
            stream.leave(cause);
        }
    }

    /// Why the only node that is asked does not keep the twin.
    pub(crate) fn refusal_of_only(&self) -> Option<String> {
        self.shared.rests(&self.shared.only()?)
    }

    /// It is not handed over.
    pub(crate) fn stays(&self) {
        self.shared.is_closing.set(false);
    }

    /// Has the record name the twin's host as the owner, in its turn. Nothing is acknowledged any more.
    pub(crate) fn hand_over(&self) -> impl Future<Output = Result<(), Refusal>> + 'static {
        let shared = Rc::clone(&self.shared);
        shared.is_closing.set(true);
        async move {
            let _turn = shared.turn.lock().await;
            let Some(stream) = shared.live() else {
                return Err(Refusal::retry(RefusalCode::Unavailable, "the twin was lost"));
            };
            let (registry, owner) = (&shared.shard.node.registry, &shared.owner);
            let (volume, twin) = (owner.subject().volume, (stream.node(), stream.buffer.id.as_str()));
            let handed = hand_over(registry, volume, owner.ownership(), twin);
            match timeout(shared.timeout(), handed).await {
                Ok(handed) => handed.map_err(refusal_of),
                Err(_) => Err(Refusal::retry(
                    RefusalCode::Unavailable,
                    "the registry did not say in time that the volume is handed over",
                )),
            }
        }
    }

    /// Why no twin is in sync, where something went wrong.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.trouble.borrow().clone()
    }

    pub(crate) fn open(&self, header: &ScoHeader) {
        if let Some(stream) = self.shared.live() {
            stream.open(header);
        }
    }

    /// `recorded`: what the batch belongs to, if an operation in it is recorded in spans.
    pub(crate) fn append(&self, append: &Append, recorded: Option<Trace>) {
        if let Some(stream) = self.shared.live() {
            stream.append(append, recorded);
        }
    }

    pub(crate) fn sync(&self, upto: BatchSeq) {
        if let Some(stream) = self.shared.live() {
            stream.sync(upto);
        }
    }

    pub(crate) fn release(&self, upto: ScoId) {
        if let Some(stream) = self.shared.live() {
            stream.release(upto);
        }
    }

    /// `local`: the SCO's header and file, unless it is gone.
    pub(crate) fn copy(
        &self,
        sco: ScoId,
        (tlog_len, length): (ByteLen, ByteLen),
        local: Option<(ScoHeader, Arc<ScoFile>)>,
    ) {
        let Some(stream) = self.shared.live() else { return };
        let Some((header, file)) = local else {
            return stream.needs_no_copy(sco);
        };
        let copied = Copied {
            header,
            tlog_len,
            length,
            file,
        };
        stream.copy(Rc::clone(&self.shared.shard.lines.copies), copied);
    }

    /// The record is to say that the twin has every acknowledged write.
    pub(crate) fn record_in_sync(&self) {
        // Where it is over the volume is about to hear that.
        let Some(stream) = self.shared.live() else { return };
        let shared = Rc::clone(&self.shared);
        actix_rt::spawn(async move { shared.record_in_sync(&stream).await });
    }

    /// The record is to say that there is no twin.
    pub(crate) fn record_degraded(&self) {
        let shared = Rc::clone(&self.shared);
        actix_rt::spawn(async move { shared.record_degraded().await });
    }

    /// The volume is about to be released: its twin goes with that.
    pub(crate) fn releases(&self) -> Release {
        self.shared.is_closing.set(true);
        Release(Rc::clone(&self.shared))
    }

    /// The volume is over, everywhere: nobody needs a twin.
    pub(crate) fn over(&mut self) {
        self.shared.is_wanted.set(false);
        self.give_up();
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shared.is_wanted.set(false);
        self.shared
            .node()
            .seen
            .forget_choice(self.shared.owner.subject().volume);
        // A task that has it still tells the next ownership nothing: it is another's handle that it tells.
        self.shared.stream.take();
    }
}

/// The twin of a volume that is released.
pub(crate) struct Release(Rc<Shared>);

impl Release {
    /// Does what writes the release to the record in its turn, then tells the twin that it is none.
    pub(crate) async fn after(self, released: impl Future<Output = bool>) -> bool {
        let shared = self.0;
        let _turn = shared.turn.lock().await;
        let is_released = released.await;
        if is_released {
            let stream = shared.stream.take();
            if let Some(stream) = stream {
                stream.detach().await;
            }
        }
        is_released
    }
}

impl Shared {
    /// The stream, while it is not over.
    fn live(&self) -> Option<Rc<Stream>> {
        self.stream
            .borrow()
            .as_ref()
            .filter(|stream| !stream.is_over())
            .map(Rc::clone)
    }

    fn node(&self) -> &Node {
        &self.shard.node
    }

    fn timeout(&self) -> Duration {
        self.shard.node.dtl.timeout.duration()
    }

    async fn record_in_sync(&self, stream: &Stream) {
        let _turn = self.turn.lock().await;
        if self.is_closing.get() || stream.is_over() {
            return stream.fail("the volume is being released or handed over");
        }
        // One that was drained while this was made. Where the registry cannot tell, it cannot be noted either.
        if !self.is_only(stream.node())
            && matches!(self.shard.lines.is_drained(stream.node()).await, Ok(true))
        {
            return stream.leave("it is on a node that is drained");
        }
        let (registry, owner) = (&self.shard.node.registry, &self.owner);
        let volume = owner.subject().volume;
        let (host, buffer, clock) = (stream.node(), &stream.buffer, &self.shard.node.clock);
        let note = note_in_sync(registry, volume, owner.ownership(), host, buffer, clock);
        match timeout(self.timeout(), note).await {
            Ok(Ok(())) => {
                self.trouble.take();
                owner.tell(What::InSync { host: host.clone() });
                self.node().seen.forget_choice(volume);
                let domain = self.domain.borrow();
                if *domain == self.node().place.failure_domain.as_str() {
                    let (host, domain) = (host.clone(), domain.clone());
                    owner.tell(What::TwinSharesDomain { host, domain });
                }
                owner.happened(Event::TwinInSync);
            }
            Ok(Err(RecordError::Refused(refusal))) if refusal.code == RefusalCode::Conflict => {
                stream.fail(&refusal.text)
            }
            Ok(Err(RecordError::Refused(refusal))) => owner.lost(refusal),
            // Whether the record says so is unknown: the volume has it say that there is none.
            Ok(Err(RecordError::Unavailable(cause))) => stream.fail(&cause),
            Err(_) => stream.fail("the registry did not say in time that it is known as the twin"),
        }
    }

    /// Until the record says so, or the ownership is over: so long nothing is acknowledged.
    async fn record_degraded(&self) {
        let _turn = self.turn.lock().await;
        let (registry, owner) = (&self.shard.node.registry, &self.owner);
        let subject = owner.subject();
        let (host, cause) = self.why_degraded();
        let clock = &self.shard.node.clock;
        let note =
            || async { Tried::from(note_degraded(registry, subject.volume, owner.ownership(), clock).await) };
        let noted: Option<Result<DtlState, Refusal>> = owner
            .outage()
            .endure(
                "noting in the registry that the twin is lost",
                &subject.path,
                || owner.is_current(),
                note,
            )
            .await;
        match noted {
            Some(Ok(state)) => {
                let wanted = state != DtlState::Off;
                *self.trouble.borrow_mut() = wanted.then(|| cause.clone());
                owner.tell(What::Degraded { wanted, host, cause });
                owner.happened(Event::TwinDegraded);
            }
            Some(Err(refusal)) => owner.lost(refusal),
            None => {}
        }
    }

    /// Where the twin was, and why there is none to rely on.
    fn why_degraded(&self) -> (Option<NodeName>, String) {
        let stream = self.stream.borrow();
        let Some(stream) = stream.as_ref() else {
            return (None, "there is no twin yet".to_owned());
        };
        let given_up = || "it was given up".to_owned();
        let cause = stream
            .lost()
            .map(|cause| format!("the twin of the write buffer is lost: {cause}"));
        (Some(stream.node().clone()), cause.unwrap_or_else(given_up))
    }

    fn rest(&self, node: &NodeName, cause: String) {
        let until = Instant::now() + REST;
        self.rests.borrow_mut().insert(node.clone(), (until, cause));
    }

    /// Why a volume-router is not asked now.
    fn rests(&self, node: &NodeName) -> Option<String> {
        let rests = self.rests.borrow();
        let (_, cause) = rests.get(node).filter(|(until, _)| Instant::now() < *until)?;
        Some(cause.clone())
    }

    /// Nobody keeps a twin. Whoever asks hears why it is so now; it is told where others are among them than before.
    fn not_found(&self, refused: &BTreeMap<NodeName, String>, is_news: bool) {
        let refused = refused.iter().map(|(node, cause)| TwinRefused {
            node: node.clone(),
            cause: cause.clone(),
        });
        let what = What::TwinNotFound {
            refused: refused.collect(),
        };
        *self.trouble.borrow_mut() = Some(what.to_string());
        if is_news {
            self.owner.tell(what);
        }
    }

    /// The best comes first (docs/decisions/0174); where nobody else is to be asked, nobody else stays. Gives who cannot be asked, and why.
    fn sort(&self, others: &mut Vec<NodeRecord>) -> BTreeMap<NodeName, String> {
        let (former, wish) = (self.first.borrow().clone(), self.wish.borrow().clone());
        let streams = self.node().seen.streams();
        let domain = self.node().place.failure_domain.as_str();
        let for_whom = (
            wish.as_ref().map(|wish| &wish.node),
            former.as_ref().map(|first| &first.node),
        );
        let keeps = |other: &NodeRecord| streams.get(&other.name).copied().unwrap_or_default();
        others.sort_by_cached_key(|other| TwinRank::of(other, domain, for_whom, keeps(other)));
        let alone = former.filter(|first| first.is_alone).map(|first| first.node);
        let Some(node) = alone.or_else(|| wish.filter(|wish| wish.only).map(|wish| wish.node)) else {
            return BTreeMap::new();
        };
        others.retain(|other| other.name == node);
        if !others.is_empty() {
            return BTreeMap::new();
        }
        let cause = match node == self.node().name {
            true => "it owns the volume itself".to_owned(),
            false => "it is no volume-router that runs and is not drained".to_owned(),
        };
        if self.is_only(&node) {
            self.rest(&node, cause.clone());
            self.tell_if_only(&node);
        }
        BTreeMap::from([(node, cause)])
    }

    /// The only node that is asked, if it is one.
    fn only(&self) -> Option<NodeName> {
        let first = self.first.borrow();
        first
            .as_ref()
            .filter(|first| first.is_alone)
            .map(|first| first.node.clone())
    }

    fn is_only(&self, node: &NodeName) -> bool {
        self.only().is_some_and(|only| only == *node)
    }

    /// Whether a twin on this node is what is asked for.
    fn may_keep(&self, node: &NodeName) -> bool {
        self.only().is_none_or(|only| only == *node) && self.rests(node).is_none()
    }

    /// Whoever waits for the only node that is asked looks at how it is.
    fn tell_if_only(&self, node: &NodeName) {
        if self.is_only(node) {
            // The volume has no twin, so that it does nothing else.
            self.owner.happened(Event::TwinLost);
        }
    }

    fn is_wanted(&self) -> bool {
        self.is_wanted.get() && self.owner.is_current() && !self.is_closing.get()
    }

    /// Asks one to be the twin.
    async fn attach(&self, node: &NodeRecord) -> Result<Stream, Trouble> {
        let subject = self.owner.subject();
        let Some(line) = self.shard.lines.line(node, subject.volume) else {
            return Err(CallError::Lost.into());
        };
        let party = Party {
            line,
            node: node.name.clone(),
            owner: self.owner.clone(),
            volume: subject.volume,
            epoch: self.owner.ownership().epoch,
            stream: self.streams.replace(self.streams.get() + 1),
            timeout: self.timeout(),
        };
        let say = TwinSay::Attach {
            path: subject.path.to_string(),
            sco_size: self.sco_size,
        };
        match party.ask(say, bytes::Bytes::new()).await? {
            TwinReply::Attached { buffer: id, boot } => Ok(Stream::new(party, Buffer { id, boot })),
            TwinReply::Done => Err(Trouble::Answer),
        }
    }
}

/// Looks for a twin until there is one or none is wanted any more.
async fn seek(shared: &Shared) {
    let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MAX, Chance::from_os());
    // Who would not; told when others are among them than before.
    let mut told: Option<Vec<NodeName>> = None;
    while shared.is_wanted() {
        let subject = shared.owner.subject();
        let mut others = match shared.shard.lines.others().await {
            Ok(others) => others,
            Err(error) => {
                tracing::debug!(volume = %subject.path, %error, "who could keep a twin cannot be known now");
                tokio::time::sleep(backoff.wait()).await;
                continue;
            }
        };
        let mut refused = shared.sort(&mut others);
        for node in others {
            if !shared.is_wanted() {
                break;
            }
            if let Some(cause) = shared.rests(&node.name) {
                refused.insert(node.name, cause);
                continue;
            }
            match shared.attach(&node).await {
                // Whoever may keep it may have changed meanwhile.
                Ok(stream) if shared.is_wanted() && !shared.may_keep(&node.name) => {
                    stream.detach().await;
                    break;
                }
                Ok(stream) if shared.is_wanted() => {
                    let host = node.name.clone();
                    shared.node().seen.choose(subject.volume, host.clone());
                    node.failure_domain().clone_into(&mut shared.domain.borrow_mut());
                    shared.owner.tell(What::TwinChosen { host });
                    *shared.stream.borrow_mut() = Some(Rc::new(stream));
                    return shared.owner.happened(Event::TwinAttached);
                }
                Ok(stream) => stream.detach().await,
                Err(error) => {
                    tracing::debug!(volume = %subject.path, node = %node.name, cause = %error, "no twin of the write buffer there");
                    shared.rest(&node.name, error.to_string());
                    shared.tell_if_only(&node.name);
                    refused.insert(node.name.clone(), error.to_string());
                    if let Trouble::Call(CallError::Refused(_)) = error {
                        shared.shard.lines.forget(&node, subject.volume);
                    }
                }
            }
        }
        if shared.is_wanted() {
            let names = Some(refused.keys().cloned().collect());
            shared.not_found(&refused, told != names);
            told = names;
            tokio::time::sleep(backoff.wait()).await;
        }
    }
}
