//! A seeded world around the routing core: owners that apply each number once, links that lose and delay, moves,
//! storage-routers that answer with damage. It checks on every send what the core promises of its sends.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

mod cache;
mod clients;
mod nodes;
mod recorder;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
use sconce_schemas::{
    CLUSTER_LEN, Epoch, ObjectName, ScoId, ScoSize, SessionId, Slot, SnapshotId, VolumeId, VolumeSize,
};

use cache::Cached;
use recorder::{Recorder, SentLog};

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
    pub(crate) remove_snapshot: u64,
    /// There is a cache; in 1000 lookups of what was kept, so many find it.
    pub(crate) cached: Option<u64>,
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
        remove_snapshot: 0,
        cached: None,
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
        remove_snapshot: 1,
        cached: None,
    };

    /// The same with a cache.
    pub(crate) const fn with_cache(self, found: u64) -> Rough {
        Rough {
            cached: Some(found),
            ..self
        }
    }
}

/// The name of a volume's snapshot, and its id; once it is removed, others with this name come.
const SNAPSHOT: (&str, SnapshotId) = ("monday", SnapshotId(7));

/// What a volume, or its snapshot, holds, wherever it is served: it survives moves and restarts.
struct Volume {
    id: VolumeId,
    /// Of a snapshot: which volume's.
    of: Option<usize>,
    /// Of a snapshot: the id that its name has now.
    named: Option<SnapshotId>,
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
    /// Of the handles: those that are on the snapshot that was there first.
    on_snapshot: HashSet<u32>,
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
    /// Where a content was put.
    stored: HashMap<(VolumeId, [u8; 8]), ScoId>,
    cache: Cached,
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
    /// Operations that ended because their snapshot was gone.
    pub(crate) ended_gone: u64,
    pub(crate) sends: u64,
    pub(crate) resends: u64,
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
            has_cache: rough.cached.is_some(),
            ..Limits::default()
        };
        let mut core = Core::new(limits, chance.fork());
        let mut volumes: Vec<Volume> = (0..2_u8)
            .map(|n| {
                let id = VolumeId([n + 1; 16]);
                Volume {
                    id,
                    of: None,
                    named: None,
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
        for of in 0..volumes.len() {
            let id = volumes[of].id;
            let content: Vec<[u8; 8]> = (0..CLUSTERS)
                .map(|at| {
                    if at % 3 == 0 {
                        [0; 8]
                    } else {
                        stamp(((of + 1) * 1000 + at) as u64 | 1 << 60)
                    }
                })
                .collect();
            volumes.push(Volume {
                id,
                of: Some(of),
                named: Some(SNAPSHOT.1),
                owner: 0,
                epoch: 0,
                clusters: content.clone(),
                sessions: HashMap::new(),
                expected: content,
                busy: HashSet::new(),
                haunted: HashSet::new(),
                orphaned: false,
                key: core.snapshot_session(id, SNAPSHOT.0.to_owned(), Some(SNAPSHOT.1)),
            });
        }
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
            stored: HashMap::new(),
            cache: Cached::default(),
            pending: Vec::new(),
            wants: HashMap::new(),
            fleeting: FrontEndKey(100),
            next_token: 1,
            next_handle: 1,
            log: HashMap::new(),
            may_send: HashMap::new(),
            answered: HashSet::new(),
            completed: 0,
            ended_gone: 0,
            sends: 0,
            resends: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.chance.below(bound as u64)).unwrap()
    }

    /// The volume whose owner serves this one.
    fn served_with(&self, index: usize) -> usize {
        self.volumes[index].of.unwrap_or(index)
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
        self.rough = Rough {
            cached: self.rough.cached,
            ..Rough::NOT
        };
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
                        on_snapshot: HashSet::new(),
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
                Effect::LookUp { id, clusters } => self.cache.asked.push((id, clusters)),
                Effect::Keep {
                    clusters,
                    data,
                    is_cacheable,
                } => self.keep(&clusters, &data, is_cacheable),
                Effect::Release { clusters } => self.release(&clusters),
                Effect::AccessRefused { .. } => panic!("owners of this world take all writes"),
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
            let index = self.served_with(index);
            let volume = &mut self.volumes[index];
            (volume.owner, volume.epoch) = (node, volume.epoch + 1);
        }
        if self.chance.one_of(rough.remove_snapshot, 1000) {
            let index = self.below(self.volumes.len());
            if let Some(named) = self.volumes[index].named {
                // Another takes its name at once, or nothing does for a while.
                self.volumes[index].named = match self.chance.below(2) {
                    0 => Some(SnapshotId(named.0 + 1)),
                    _ => None,
                };
            }
        }
        match self.chance.below(8) {
            0 | 1 => self.serve_one(),
            2 | 3 => self.answer_one(),
            4 => self.serve_fetch(),
            5 if self.rough.cached.is_none() || self.chance.one_of(1, 2) => self.look_up_one(),
            5 => self.look_at_cache(),
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
        link.on_snapshot.clear();
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
}
