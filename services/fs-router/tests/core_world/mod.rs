//! A seeded world around the routing core: owners that apply each number once, links that lose and delay, moves,
//! storage-routers that answer with damage. It checks on every send what the core promises of its sends.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use sconce_fs_router::routing::core::{
    Core, Effect, Event, FrontEndKey, Limits, LinkKey, Micros, OwnerKey, Routed, Sent, SessionKey,
    StorageKey, Token, Wire, Writer,
};
use sconce_fs_router::routing::{Operation, Outcome};
use sconce_runtime::Chance;
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{
    IoCode, IoRequest, ReadExtent, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{CLUSTER_LEN, Epoch, ObjectName, ScoId, ScoSize, SessionId, Slot, VolumeId, VolumeSize};

pub(crate) const CLUSTERS: usize = 64;
const NODES: usize = 3;
/// The front end that stays.
const STEADY: FrontEndKey = FrontEndKey(7);

/// How rough the world is: chances in 1000.
#[derive(Clone, Copy)]
pub(crate) struct Rough {
    pub(crate) lose_link: u64,
    pub(crate) refuse: u64,
    pub(crate) duplicate: u64,
    pub(crate) move_volume: u64,
    pub(crate) no_room: u64,
    pub(crate) located: u64,
    pub(crate) storage_trouble: u64,
    pub(crate) abandon: u64,
}

impl Rough {
    pub(crate) const NOT: Rough = Rough {
        lose_link: 0,
        refuse: 0,
        duplicate: 0,
        move_volume: 0,
        no_room: 0,
        located: 300,
        storage_trouble: 0,
        abandon: 0,
    };
    pub(crate) const VERY: Rough = Rough {
        lose_link: 8,
        refuse: 30,
        duplicate: 50,
        move_volume: 6,
        no_room: 100,
        located: 300,
        storage_trouble: 200,
        abandon: 10,
    };
}

/// What a volume holds, wherever it is served: it survives moves and restarts.
struct Volume {
    id: VolumeId,
    owner: usize,
    epoch: u64,
    clusters: Vec<[u8; 8]>,
    /// Per session: numbers that were applied, and the watermark.
    sessions: HashMap<SessionId, (HashSet<u64>, u64)>,
    /// Cluster → the stamp that the last acknowledged write left there.
    expected: Vec<[u8; 8]>,
    /// Clusters with an operation under way.
    busy: HashSet<usize>,
    /// Clusters at which an abandoned operation may still happen.
    haunted: HashSet<usize>,
    /// Whether the core says that there are such operations.
    orphaned: bool,
    key: SessionKey,
}

struct LinkState {
    node: usize,
    up: bool,
    /// Raised with each connection: what an earlier one carried comes to nothing, or late.
    incarnation: u64,
    handles: HashMap<u32, (usize, SessionId)>,
}

#[derive(Clone)]
struct Flying {
    link: OwnerKey,
    incarnation: u64,
    id: u64,
    request: VolumeRequest,
    data: Bytes,
    /// Of an operation: its volume and session.
    target: Option<(usize, SessionId)>,
}

struct Answer {
    flying: Flying,
    reply: VolumeReply,
    data: Bytes,
}

/// What the core sent to one volume's owner in one session, for the checks.
#[derive(Default)]
struct SentLog {
    content: HashMap<u64, (IoCode, u64, u64, Bytes)>,
    below: u64,
    newest: u64,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) chance: Chance,
    pub(crate) now: Micros,
    rough: Rough,
    volumes: Vec<Volume>,
    links: BTreeMap<usize, LinkState>,
    storage: Option<(StorageKey, bool)>,
    flying: Vec<Flying>,
    /// Requests of lost connections that may still reach their node.
    ghosts: Vec<Flying>,
    answers: Vec<Answer>,
    fetches: Vec<(StorageKey, u64, StorageRequest)>,
    objects: HashMap<ObjectName, Vec<u8>>,
    next_object: u64,
    pending: Vec<Effect>,
    wants: HashMap<Token, (usize, FrontEndKey, Operation)>,
    /// The front end that comes and goes.
    fleeting: FrontEndKey,
    next_token: u64,
    next_handle: u32,
    log: HashMap<usize, SentLog>,
    /// (link, volume) → whether operations may be sent: an open was answered and nothing was refused or lost since.
    may_send: HashMap<(OwnerKey, u32), bool>,
    /// Sends that were answered: a second answer, to a duplicate, tells the core nothing.
    answered: HashSet<u64>,
    pub(crate) completed: u64,
    pub(crate) sends: u64,
    pub(crate) resends: u64,
}

struct Recorder<'a> {
    flying: &'a mut Vec<Flying>,
    fetches: &'a mut Vec<(StorageKey, u64, StorageRequest)>,
    links: &'a BTreeMap<usize, LinkState>,
    storage: Option<(StorageKey, bool)>,
    log: &'a mut HashMap<usize, SentLog>,
    may_send: &'a HashMap<(OwnerKey, u32), bool>,
    chance: &'a mut Chance,
    no_room: u64,
    sends: &'a mut u64,
    resends: &'a mut u64,
}

impl Wire for Recorder<'_> {
    fn to_owner(
        &mut self,
        link: OwnerKey,
        id: u64,
        _trace: u64,
        request: &VolumeRequest,
        data: Bytes,
        _reply_bytes: u32,
    ) -> Sent {
        let state = &self.links[&link.0];
        assert!(state.up, "sent on a link that is down");
        if self.chance.one_of(self.no_room, 1000) {
            return Sent::NoRoom;
        }
        let mut target = None;
        if let VolumeRequest::Io(io) = request {
            assert_eq!(
                self.may_send.get(&(link, io.handle)),
                Some(&true),
                "sent to an owner that refused or has not opened: {io:?}"
            );
            target = Some(state.handles[&io.handle]);
            self.check(state.handles[&io.handle].0, io, &data);
        }
        self.flying.push(Flying {
            link,
            incarnation: state.incarnation,
            id,
            request: request.clone(),
            data,
            target,
        });
        *self.sends += 1;
        Sent::Taken
    }

    fn to_storage(
        &mut self,
        link: StorageKey,
        id: u64,
        _trace: u64,
        request: &StorageRequest,
        _reply_bytes: u32,
    ) -> Sent {
        assert_eq!(
            self.storage,
            Some((link, true)),
            "sent to a storage-router that is not up"
        );
        if self.chance.one_of(self.no_room, 1000) {
            return Sent::NoRoom;
        }
        self.fetches.push((link, id, request.clone()));
        Sent::Taken
    }
}

impl Recorder<'_> {
    /// Numbers and watermark of a send are as the owner may rely on.
    fn check(&mut self, volume: usize, io: &IoRequest, data: &Bytes) {
        let log = self.log.entry(volume).or_default();
        assert!(
            io.number > 0 && io.below <= io.number,
            "watermark above its number: {io:?}"
        );
        assert!(
            io.below >= log.below,
            "the watermark fell: {io:?}, it was {}",
            log.below
        );
        assert!(
            io.number >= log.below,
            "a number below the watermark was sent again: {io:?}"
        );
        log.below = io.below;
        let content = (io.code, io.offset, io.length, data.clone());
        match log.content.get(&io.number) {
            Some(before) => {
                assert!(io.code.changes(), "a read went out twice under one number");
                assert_eq!(*before, content, "a number was given to two operations");
                *self.resends += 1;
            }
            None => {
                assert_eq!(io.number, log.newest + 1, "numbers count up by one");
                log.newest = io.number;
                log.content.insert(io.number, content);
            }
        }
    }
}

fn stamp(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

fn cluster_of(stamp: [u8; 8]) -> Vec<u8> {
    stamp.repeat(CLUSTER_LEN / 8)
}

impl World {
    pub(crate) fn new(seed: u64, rough: Rough) -> World {
        let mut chance = Chance::seeded(seed);
        let limits = Limits {
            part_bytes: 4 * CLUSTER_LEN as u64,
            requests_max: 20,
            bytes_max: 60 * CLUSTER_LEN as u64,
            ..Limits::default()
        };
        let mut core = Core::new(limits, chance.fork());
        let volumes = (0..2_u8)
            .map(|n| {
                let id = VolumeId([n + 1; 16]);
                Volume {
                    id,
                    owner: usize::from(n),
                    epoch: 1,
                    clusters: vec![[0; 8]; CLUSTERS],
                    sessions: HashMap::new(),
                    expected: vec![[0; 8]; CLUSTERS],
                    busy: HashSet::new(),
                    haunted: HashSet::new(),
                    orphaned: false,
                    key: core.session(id),
                }
            })
            .collect();
        World {
            core,
            chance,
            now: 0,
            rough,
            volumes,
            links: BTreeMap::new(),
            storage: None,
            flying: Vec::new(),
            ghosts: Vec::new(),
            answers: Vec::new(),
            fetches: Vec::new(),
            objects: HashMap::new(),
            next_object: 1,
            pending: Vec::new(),
            wants: HashMap::new(),
            fleeting: FrontEndKey(100),
            next_token: 1,
            next_handle: 1,
            log: HashMap::new(),
            may_send: HashMap::new(),
            answered: HashSet::new(),
            completed: 0,
            sends: 0,
            resends: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.chance.below(bound as u64)).unwrap()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.wants.len()
    }

    pub(crate) fn is_haunted(&self) -> bool {
        self.volumes
            .iter()
            .any(|volume| volume.orphaned || !volume.haunted.is_empty())
    }

    /// From here on the world is kind.
    pub(crate) fn calm(&mut self) {
        self.rough = Rough::NOT;
    }

    fn apply(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.apply(self.now, event, &mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Complete {
                    front_end,
                    token,
                    outcome,
                } => {
                    self.completed(front_end, token, outcome);
                }
                Effect::Connect {
                    link: LinkKey::Owner(link),
                    endpoint,
                } => {
                    let node = endpoint.strip_prefix("node-").unwrap().parse().unwrap();
                    let state = LinkState {
                        node,
                        up: false,
                        incarnation: 0,
                        handles: HashMap::new(),
                    };
                    assert!(
                        self.links.insert(link.0, state).is_none(),
                        "a link key is in use twice"
                    );
                }
                Effect::Connect {
                    link: LinkKey::Storage(link),
                    ..
                } => self.storage = Some((link, false)),
                Effect::Disconnect {
                    link: LinkKey::Owner(link),
                } => {
                    self.links.remove(&link.0).expect("a link that is there");
                }
                Effect::Disconnect {
                    link: LinkKey::Storage(_),
                } => self.storage = None,
                effect @ (Effect::FindOwner { .. } | Effect::FindWriter { .. } | Effect::FindStorage) => {
                    self.pending.push(effect);
                }
                Effect::Orphaned(volume) => {
                    let volume = self.volumes.iter_mut().find(|v| v.id == volume).unwrap();
                    assert!(!std::mem::replace(&mut volume.orphaned, true), "told twice");
                }
                Effect::Settled(volume) => self.settled(volume),
                Effect::Room(_) => {}
            }
        }
    }

    fn drain(&mut self) {
        let mut effects = Vec::new();
        let mut recorder = Recorder {
            flying: &mut self.flying,
            fetches: &mut self.fetches,
            links: &self.links,
            storage: self.storage,
            log: &mut self.log,
            may_send: &self.may_send,
            chance: &mut self.chance,
            no_room: self.rough.no_room,
            sends: &mut self.sends,
            resends: &mut self.resends,
        };
        self.core.drain_sends(&mut recorder, &mut effects);
        self.carry_out(effects);
    }

    /// A random operation on clusters that no other operation is at, so that its result is known.
    pub(crate) fn submit(&mut self) {
        let index = self.below(self.volumes.len());
        let first = self.below(CLUSTERS);
        let count = 1 + self.below(9.min(CLUSTERS - first));
        let range = first..first + count;
        if range.clone().any(|at| self.volumes[index].busy.contains(&at)) {
            return;
        }
        let (offset, length) = ((first * CLUSTER_LEN) as u64, (count * CLUSTER_LEN) as u64);
        let token = Token(self.next_token);
        let operation = match self.chance.below(6) {
            0 | 1 => {
                let data: Vec<u8> = range
                    .clone()
                    .flat_map(|at| cluster_of(self.stamp_for(token, at)))
                    .collect();
                Operation::write(offset, data.into(), 0)
            }
            2 => Operation::write_zeroes(offset, length, 0),
            3 => Operation::flush(),
            _ => {
                let skip = self.chance.below(300);
                Operation::read(offset + skip, length - skip - self.chance.below(300))
            }
        };
        let mut effects = Vec::new();
        let volume = &mut self.volumes[index];
        let front_end = if self.chance.one_of(1, 4) {
            self.fleeting
        } else {
            STEADY
        };
        let accepted = self
            .core
            .submit(volume.key, front_end, token, operation.clone(), &mut effects);
        if let Err(back) = accepted {
            assert_eq!(back, operation, "an operation that finds no room comes back");
            return;
        }
        self.next_token += 1;
        if operation.code != IoCode::Flush {
            self.volumes[index].busy.extend(range);
        }
        self.wants.insert(token, (index, front_end, operation));
        self.carry_out(effects);
        self.drain();
    }

    fn stamp_for(&self, token: Token, cluster: usize) -> [u8; 8] {
        stamp(token.0 * 1000 + cluster as u64)
    }

    /// The fleeting front end goes, and another comes.
    fn abandon(&mut self) {
        let gone = self.fleeting;
        self.fleeting = FrontEndKey(gone.0 + 1);
        let left: Vec<Token> = self
            .wants
            .iter()
            .filter(|(_, (_, who, _))| *who == gone)
            .map(|(token, _)| *token)
            .collect();
        for token in left {
            let (index, _, operation) = self.wants.remove(&token).unwrap();
            if operation.code != IoCode::Flush {
                let volume = &mut self.volumes[index];
                for at in clusters(&operation) {
                    if operation.code.changes() {
                        volume.haunted.insert(at);
                    } else {
                        volume.busy.remove(&at);
                    }
                }
            }
        }
        let mut effects = Vec::new();
        self.core.abandon(self.now, gone, &mut effects);
        self.carry_out(effects);
        for volume in &self.volumes {
            assert!(
                volume.haunted.is_empty() || volume.orphaned,
                "nobody was told of orphans"
            );
        }
    }

    /// From here on what was abandoned has happened or never will.
    fn settled(&mut self, id: VolumeId) {
        let volume = self.volumes.iter_mut().find(|v| v.id == id).unwrap();
        assert!(
            std::mem::replace(&mut volume.orphaned, false),
            "told without reason"
        );
        for at in std::mem::take(&mut volume.haunted) {
            volume.expected[at] = volume.clusters[at];
            volume.busy.remove(&at);
        }
    }

    fn completed(&mut self, front_end: FrontEndKey, token: Token, outcome: Outcome) {
        let (index, who, operation) = self.wants.remove(&token).expect("an operation completes once");
        assert_eq!(front_end, who);
        self.completed += 1;
        let range = clusters(&operation);
        let first = range.start;
        match (operation.code, outcome) {
            (IoCode::Write, Outcome::Done) => {
                for at in range.clone() {
                    self.volumes[index].expected[at] = self.stamp_for(token, at);
                }
            }
            (IoCode::WriteZeroes, Outcome::Done) => {
                range
                    .clone()
                    .for_each(|at| self.volumes[index].expected[at] = [0; 8]);
            }
            (IoCode::Flush, Outcome::Done) => return,
            (IoCode::Read, Outcome::Read(data)) => {
                let whole: Vec<u8> = range
                    .clone()
                    .flat_map(|at| cluster_of(self.volumes[index].expected[at]))
                    .collect();
                let skip = usize::try_from(operation.offset).unwrap() - first * CLUSTER_LEN;
                let length = usize::try_from(operation.length).unwrap();
                assert_eq!(data.len(), operation.length);
                assert_eq!(
                    &data.into_bytes()[..],
                    &whole[skip..skip + length],
                    "a read after an acknowledged write"
                );
            }
            (code, outcome) => panic!("{code:?} ended as {outcome:?}"),
        }
        for at in range {
            self.volumes[index].busy.remove(&at);
        }
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        let rough = self.rough;
        if self.chance.one_of(rough.lose_link, 1000) {
            self.lose_link();
        }
        if self.chance.one_of(rough.abandon, 1000) {
            self.abandon();
        }
        if self.chance.one_of(rough.move_volume, 1000) {
            let (index, node) = (self.below(self.volumes.len()), self.below(NODES));
            let volume = &mut self.volumes[index];
            (volume.owner, volume.epoch) = (node, volume.epoch + 1);
        }
        match self.chance.below(8) {
            0 | 1 => self.serve_one(),
            2 | 3 => self.answer_one(),
            4 => self.serve_fetch(),
            5 => self.look_up_one(),
            6 => self.connect_one(),
            _ => {
                self.now += self.chance.below(20_000);
                if self.core.next_wake().is_some_and(|at| at <= self.now) {
                    self.apply(Event::Tick);
                }
            }
        }
        let links: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, l)| l.up)
            .map(|(key, _)| *key)
            .collect();
        for key in links {
            self.apply(Event::Room(LinkKey::Owner(OwnerKey(key))));
        }
        if let Some((link, true)) = self.storage {
            self.apply(Event::Room(LinkKey::Storage(link)));
        }
        self.drain();
    }

    fn connect_one(&mut self) {
        let down: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, l)| !l.up)
            .map(|(key, _)| *key)
            .collect();
        if let Some((link, false)) = self.storage {
            self.storage = Some((link, true));
            return self.apply(Event::Up(LinkKey::Storage(link)));
        }
        if !down.is_empty() {
            let key = down[self.below(down.len())];
            let link = self.links.get_mut(&key).unwrap();
            link.up = true;
            link.incarnation += 1;
            self.apply(Event::Up(LinkKey::Owner(OwnerKey(key))));
        }
    }

    fn lose_link(&mut self) {
        if self.chance.one_of(1, 4)
            && let Some((link, true)) = self.storage
        {
            self.storage = Some((link, false));
            self.fetches.clear();
            return self.apply(Event::Down(LinkKey::Storage(link)));
        }
        let up: Vec<usize> = self
            .links
            .iter()
            .filter(|(_, l)| l.up)
            .map(|(key, _)| *key)
            .collect();
        if up.is_empty() {
            return;
        }
        let key = up[self.below(up.len())];
        let link = self.links.get_mut(&key).unwrap();
        link.up = false;
        link.handles.clear();
        self.may_send.retain(|(on, _), _| on.0 != key);
        self.answers.retain(|answer| answer.flying.link.0 != key);
        // What was on its way may still arrive, long after.
        let (lost, kept) = std::mem::take(&mut self.flying)
            .into_iter()
            .partition(|f| f.link.0 == key);
        self.flying = kept;
        self.ghosts.extend::<Vec<Flying>>(lost);
        self.apply(Event::Down(LinkKey::Owner(OwnerKey(key))));
    }

    /// A node takes in a request: one that is on its way, or one of a lost connection.
    fn serve_one(&mut self) {
        if !self.ghosts.is_empty() && self.chance.one_of(1, 3) {
            let at = self.below(self.ghosts.len());
            let ghost = self.ghosts.swap_remove(at);
            // It was taken in before the loss was noticed: applied if it is new, as any owner would.
            if let (VolumeRequest::Io(io), Some((index, session))) = (&ghost.request, ghost.target) {
                self.apply_once(index, session, io, &ghost.data);
            }
            return;
        }
        if self.flying.is_empty() {
            return;
        }
        let at = self.below(self.flying.len());
        let flying = if self.chance.one_of(self.rough.duplicate, 1000) {
            self.flying[at].clone()
        } else {
            self.flying.swap_remove(at)
        };
        if let (Some(reply), data) = self.serve(&flying) {
            self.answers.push(Answer { flying, reply, data });
        }
    }

    fn apply_once(&mut self, index: usize, session: SessionId, io: &IoRequest, data: &Bytes) {
        let volume = &mut self.volumes[index];
        let (applied, below) = volume.sessions.entry(session).or_default();
        *below = (*below).max(io.below);
        if !io.code.changes() || io.number < *below || !applied.insert(io.number) {
            return;
        }
        let first = usize::try_from(io.offset).unwrap() / CLUSTER_LEN;
        let count = usize::try_from(io.length).unwrap() / CLUSTER_LEN;
        for at in 0..count {
            let content = match io.code {
                IoCode::Write => data[at * CLUSTER_LEN..at * CLUSTER_LEN + 8].try_into().unwrap(),
                _ => [0; 8],
            };
            volume.clusters[first + at] = content;
        }
    }

    fn serve(&mut self, flying: &Flying) -> (Option<VolumeReply>, Bytes) {
        let none = Bytes::new();
        let Some(link) = self.links.get(&flying.link.0) else {
            return (None, none);
        };
        let node = link.node;
        let refused = |refusal| (Some(VolumeReply::Refused(refusal)), Bytes::new());
        let not_owner = || Refusal::reroute(RefusalCode::NotOwner, "not the owner");
        match &flying.request {
            VolumeRequest::Control(VolumeControl::Open { volume, session }) => {
                let index = self.volumes.iter().position(|v| v.id == *volume).unwrap();
                if self.volumes[index].owner != node {
                    return refused(not_owner());
                }
                if self.chance.one_of(self.rough.refuse, 1000) {
                    return refused(Refusal::retry(RefusalCode::Unavailable, "recovering"));
                }
                let handle = self.next_handle;
                self.next_handle += 1;
                let epoch = Epoch(self.volumes[index].epoch);
                self.links
                    .get_mut(&flying.link.0)
                    .unwrap()
                    .handles
                    .insert(handle, (index, *session));
                let opened = VolumeControlReply::Opened {
                    handle,
                    epoch,
                    size: VolumeSize::new((CLUSTERS * CLUSTER_LEN) as u64).unwrap(),
                    read_only: false,
                };
                (Some(VolumeReply::Control(opened)), none)
            }
            VolumeRequest::Control(_) => (Some(VolumeReply::Control(VolumeControlReply::Done)), none),
            VolumeRequest::Io(io) => {
                let Some(&(index, session)) = link.handles.get(&io.handle) else {
                    return refused(Refusal::reroute(RefusalCode::NotOpen, "not open"));
                };
                if self.volumes[index].owner != node {
                    return refused(not_owner());
                }
                if self.chance.one_of(self.rough.refuse, 1000) {
                    let refusal = match self.chance.below(3) {
                        0 => Refusal::retry(RefusalCode::Unavailable, "busy"),
                        1 => Refusal::reject(RefusalCode::WaitsForOwner, "waits"),
                        _ => not_owner(),
                    };
                    return refused(refusal);
                }
                self.apply_once(index, session, io, &flying.data);
                match io.code {
                    IoCode::Read => self.read(index, io),
                    _ => (Some(VolumeReply::Done), none),
                }
            }
        }
    }

    fn read(&mut self, index: usize, io: &IoRequest) -> (Option<VolumeReply>, Bytes) {
        let first = usize::try_from(io.offset).unwrap() / CLUSTER_LEN;
        let last = usize::try_from(io.offset + io.length)
            .unwrap()
            .div_ceil(CLUSTER_LEN);
        let (mut extents, mut data) = (Vec::new(), Vec::new());
        for at in first..last {
            let content = self.volumes[index].clusters[at];
            let length = u32::try_from(CLUSTER_LEN).unwrap();
            if content == [0; 8] && self.chance.one_of(1, 2) {
                extents.push(ReadExtent::Zeros { length });
            } else if self.chance.one_of(self.rough.located, 1000) {
                extents.push(self.store(index, content));
            } else {
                extents.push(ReadExtent::Data { length });
                data.extend(cluster_of(content));
            }
        }
        (Some(VolumeReply::Read(extents)), data.into())
    }

    /// Puts a cluster into an object of its own.
    fn store(&mut self, index: usize, content: [u8; 8]) -> ReadExtent {
        // A clone's cluster may be its ancestor's.
        let ancestor = VolumeId([9; 16]);
        let volume = if self.chance.one_of(1, 3) {
            ancestor
        } else {
            self.volumes[index].id
        };
        let (sco, epoch) = (ScoId(self.next_object), Epoch(1));
        self.next_object += 1;
        let cluster = cluster_of(content);
        let crc = crc32c(&cluster);
        let name = ObjectName::Sco {
            volume,
            id: sco,
            epoch,
            version: 0,
        };
        self.objects.insert(name, cluster);
        ReadExtent::Located {
            volume,
            sco,
            epoch,
            version: 0,
            first_slot: Slot(5),
            crcs: vec![crc],
        }
    }

    fn serve_fetch(&mut self) {
        if self.fetches.is_empty() {
            return;
        }
        let at = self.below(self.fetches.len());
        let (link, id, request) = self.fetches.swap_remove(at);
        let StorageRequest::Get {
            pool,
            name,
            offset,
            length,
        } = request
        else {
            panic!("{request:?}");
        };
        assert_eq!((pool.as_str(), length as usize), ("pool-1", CLUSTER_LEN));
        assert_eq!(offset, ScoSize::default().slot_offset(Slot(5)));
        let mut bytes = self.objects[&name].clone();
        let mut reply = StorageReply::Data;
        // At most one kind of trouble each, and rarely: more than the core takes would be damage indeed.
        if self.chance.one_of(self.rough.storage_trouble, 1000) {
            match self.chance.below(40) {
                0 => bytes[17] ^= 1,
                1 => reply = StorageReply::Refused(Refusal::reject(RefusalCode::NotFound, "gone")),
                _ => reply = StorageReply::Refused(Refusal::retry(RefusalCode::Unavailable, "busy")),
            }
        }
        if reply != StorageReply::Data {
            bytes.clear();
        }
        self.apply(Event::StorageReplied {
            link,
            id,
            reply,
            data: bytes.into(),
        });
    }

    fn answer_one(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = self.below(self.answers.len());
        let answer = self.answers.swap_remove(at);
        let Answer { flying, reply, data } = answer;
        let Some(link) = self.links.get(&flying.link.0) else {
            return;
        };
        if !link.up || link.incarnation != flying.incarnation {
            return;
        }
        let is_first = self.answered.insert(flying.id);
        match (&reply, &flying.request) {
            (VolumeReply::Control(VolumeControlReply::Opened { handle, .. }), _) => {
                self.may_send.insert((flying.link, *handle), true);
            }
            // From here on the core knows that this owner refused. (Of an abandoned read it does not take the answer.)
            (VolumeReply::Refused(refusal), VolumeRequest::Io(io))
                if is_first && io.code.changes() && refusal.remedy == Remedy::Reroute =>
            {
                self.may_send.insert((flying.link, io.handle), false);
            }
            _ => {}
        }
        let (link, id) = (flying.link, flying.id);
        self.apply(Event::OwnerReplied {
            link,
            id,
            reply,
            data,
        });
    }

    fn look_up_one(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.below(self.pending.len());
        match self.pending.swap_remove(at) {
            Effect::FindOwner { session, volume } => {
                let index = self.volumes.iter().position(|v| v.id == volume).unwrap();
                let node = if self.rough.refuse > 0 && self.chance.one_of(1, 5) {
                    self.below(NODES)
                } else {
                    self.volumes[index].owner
                };
                let routed = if self.chance.one_of(self.rough.refuse, 1000) {
                    Routed::Unknown("the registry does not answer".to_owned())
                } else {
                    Routed::At {
                        endpoint: format!("node-{node}"),
                        writer: writer(),
                    }
                };
                self.apply(Event::Routed { session, routed });
            }
            Effect::FindWriter { volume } => {
                let writer = if self.chance.one_of(self.rough.refuse, 1000) {
                    Err("the registry does not answer".to_owned())
                } else {
                    Ok(Some(writer()))
                };
                self.apply(Event::WriterFound { volume, writer });
            }
            Effect::FindStorage => {
                let endpoints = vec!["storage-1".to_owned(), "storage-2".to_owned()];
                self.apply(Event::StorageFound { endpoints });
            }
            _ => {}
        }
    }

    /// What the volumes hold is what was acknowledged.
    pub(crate) fn check_content(&self) {
        for volume in &self.volumes {
            for at in 0..CLUSTERS {
                if !volume.busy.contains(&at) {
                    assert_eq!(
                        volume.clusters[at], volume.expected[at],
                        "cluster {at} of {}",
                        volume.id
                    );
                }
            }
        }
    }
}

/// Clusters that an operation is at.
fn clusters(operation: &Operation) -> std::ops::Range<usize> {
    let first = usize::try_from(operation.offset).unwrap() / CLUSTER_LEN;
    let end = usize::try_from(operation.offset + operation.length).unwrap();
    first..end.div_ceil(CLUSTER_LEN)
}

fn writer() -> Writer {
    Writer {
        pool: "pool-1".to_owned(),
        sco_size: ScoSize::default(),
    }
}
