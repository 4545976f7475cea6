//! Single scenes of the routing core, told step by step: what a seeded world meets too rarely.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

use bytes::Bytes;
use sconce_fs_router::routing::core::{
    Clusters, Core, Effect, Event, FrontEndKey, Limits, LinkKey, Lookup, Micros, OwnerKey, Patience, Routed,
    Sent, SessionKey, StorageKey, Token, Wire, Writer,
};
use sconce_fs_router::routing::{Operation, Outcome};
use sconce_runtime::Chance;
use sconce_schemas::access::{AccessAsk, AccessReply};
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::storage::{StorageReply, StorageRequest};
use sconce_schemas::wire::volume::{
    IoCode, ReadExtent, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_LEN, Epoch, ScoId, ScoSize, Slot, SnapshotId, VolumeId, VolumeSize};

const VOLUME: VolumeId = VolumeId([3; 16]);
const GUEST: FrontEndKey = FrontEndKey(1);
/// Longer than any wait of the core.
const LONG: Micros = 100_000_000;

/// What the core sent.
#[derive(Default)]
struct Log {
    to_owner: Vec<(u64, VolumeRequest)>,
    to_storage: Vec<(StorageKey, u64)>,
    /// The link to the owner takes nothing.
    full: bool,
}

impl Wire for Log {
    fn to_owner(
        &mut self,
        _link: OwnerKey,
        id: u64,
        _trace: u64,
        request: &VolumeRequest,
        _data: Bytes,
        _reply_bytes: u32,
    ) -> Sent {
        if self.full {
            return Sent::NoRoom;
        }
        self.to_owner.push((id, request.clone()));
        Sent::Taken
    }

    fn to_storage(
        &mut self,
        link: StorageKey,
        id: u64,
        _trace: u64,
        _request: &StorageRequest,
        _reply_bytes: u32,
    ) -> Sent {
        self.to_storage.push((link, id));
        Sent::Taken
    }
}

/// A core with one volume that is open at its owner.
struct Scene {
    core: Core,
    now: Micros,
    session: SessionKey,
    owner: OwnerKey,
    log: Log,
    effects: Vec<Effect>,
}

fn routed() -> Routed {
    Routed::At {
        endpoint: "owner".to_owned(),
        writer: Writer {
            pool: "pool".to_owned(),
            sco_size: ScoSize::default(),
            is_cacheable: true,
        },
    }
}

impl Scene {
    fn new() -> Scene {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Scene {
        let mut core = Core::new(limits, Chance::seeded(1));
        let session = core.session(VOLUME);
        Scene {
            core,
            now: LONG,
            session,
            owner: OwnerKey(0),
            log: Log::default(),
            effects: Vec::new(),
        }
    }

    /// The same, on what the volume's snapshot `monday` is when it is opened first.
    fn on_snapshot() -> Scene {
        let mut scene = Self::new();
        scene.session = scene.core.snapshot_session(VOLUME, "monday".to_owned(), None);
        scene
    }

    fn submits(&mut self, token: Token, operation: Operation) {
        let submitted = self
            .core
            .submit(self.session, GUEST, token, operation, &mut self.effects);
        assert_eq!(submitted, Ok(()));
        self.core.drain_sends(&mut self.log, &mut self.effects);
    }

    /// The registry says where the volume is, and the connection is made.
    fn is_reached(&mut self) {
        let session = self.session;
        self.happens(Event::Routed {
            session,
            routed: routed(),
        });
        self.happens(Event::Up(LinkKey::Owner(self.owner)));
    }

    fn refusal(&mut self) -> RefusalCode {
        match self.outcome() {
            Some(Outcome::Refused(refusal)) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    fn happens(&mut self, event: Event) {
        self.core.apply(self.now, event, &mut self.effects);
        self.core.drain_sends(&mut self.log, &mut self.effects);
    }

    /// All that waits for a time has its time.
    fn time_passes(&mut self) {
        while let Some(at) = self.core.next_wake() {
            self.now = self.now.max(at);
            self.happens(Event::Tick);
        }
        self.now += LONG;
    }

    /// The first effect that is like this one, taken out.
    fn effect<T>(&mut self, like: impl Fn(&Effect) -> Option<T>) -> Option<T> {
        let at = self.effects.iter().position(|effect| like(effect).is_some())?;
        like(&self.effects.remove(at))
    }

    fn outcome(&mut self) -> Option<Outcome> {
        self.effect(|effect| match effect {
            Effect::Complete { outcome, .. } => Some(outcome.clone()),
            _ => None,
        })
    }

    fn connected_storage(&mut self) -> Option<(StorageKey, String)> {
        self.effect(|effect| match effect {
            Effect::Connect {
                link: LinkKey::Storage(link),
                endpoint,
            } => Some((*link, endpoint.clone())),
            _ => None,
        })
    }

    fn is_looking_for_storage(&mut self) -> bool {
        let found = self.effect(|effect| matches!(effect, Effect::FindStorage).then_some(()));
        found.is_some()
    }

    /// A read of clusters, which the owner answers with their locations.
    fn located_read(&mut self, content: &[u8]) {
        let operation = Operation::read(0, content.len() as u64);
        self.core
            .submit(self.session, GUEST, Token(1), operation, &mut self.effects)
            .unwrap();
        self.happens(Event::Routed {
            session: self.session,
            routed: routed(),
        });
        self.happens(Event::Up(LinkKey::Owner(self.owner)));
        self.opens();
        let id = self.take_io();
        let located = ReadExtent::Located {
            volume: VOLUME,
            sco: ScoId(1),
            epoch: Epoch(1),
            version: 0,
            first_slot: Slot(0),
            crcs: content.chunks(CLUSTER_LEN).map(crc32c).collect(),
        };
        self.happens(Event::OwnerReplied {
            link: self.owner,
            id,
            reply: VolumeReply::Read(vec![located]),
            data: Bytes::new(),
        });
    }

    fn opens(&mut self) {
        self.opens_on(1, None);
    }

    /// The owner answers an open, of what it calls a snapshot.
    fn opens_on(&mut self, handle: u32, snapshot: Option<SnapshotId>) {
        self.opens_with(handle, snapshot, None);
    }

    /// The same, and what it says of write access. Gives what was asked of that.
    fn opens_with(
        &mut self,
        handle: u32,
        snapshot: Option<SnapshotId>,
        access: Option<AccessReply>,
    ) -> Option<AccessAsk> {
        let (id, request) = self.log.to_owner.pop().unwrap();
        let VolumeRequest::Control(VolumeControl::Open {
            snapshot: name,
            access: asked,
            ..
        }) = request
        else {
            panic!("{request:?}");
        };
        assert_eq!(name.as_deref(), snapshot.map(|_| "monday"));
        let opened = VolumeControlReply::Opened {
            handle,
            epoch: Epoch(1),
            size: VolumeSize::new(1 << 20).unwrap(),
            read_only: snapshot.is_some(),
            snapshot,
            access,
        };
        self.happens(Event::OwnerReplied {
            link: self.owner,
            id,
            reply: VolumeReply::Control(opened),
            data: Bytes::new(),
        });
        asked
    }

    fn take_io(&mut self) -> u64 {
        let (id, request) = self.log.to_owner.pop().unwrap();
        assert!(matches!(request, VolumeRequest::Io(_)), "{request:?}");
        id
    }

    /// The storage-routers that there are; one of them is connected.
    fn storage_is(&mut self, endpoints: &[&str]) -> Option<(StorageKey, String)> {
        let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        self.happens(Event::StorageFound { endpoints });
        let connected = self.connected_storage()?;
        self.happens(Event::Up(LinkKey::Storage(connected.0)));
        Some(connected)
    }

    fn storage_answers(&mut self, reply: StorageReply, data: &[u8]) {
        let (link, id) = self.log.to_storage.pop().unwrap();
        self.happens(Event::StorageReplied {
            link,
            id,
            reply,
            data: Bytes::copy_from_slice(data),
        });
    }
}

fn later() -> StorageReply {
    StorageReply::Refused(Refusal::retry(RefusalCode::Unavailable, "no back end"))
}

#[test]
fn a_read_that_one_storage_router_holds_is_given_by_another() {
    let content = vec![7; CLUSTER_LEN];
    let mut scene = Scene::new();
    scene.located_read(&content);
    assert!(scene.is_looking_for_storage());
    let (bad, endpoint) = scene.storage_is(&["storage-a", "storage-b"]).unwrap();
    let mut answers = 0;
    while !scene.is_looking_for_storage() {
        answers += 1;
        assert!(answers < 10, "the one that says later is asked for ever");
        scene.storage_answers(later(), &[]);
        scene.time_passes();
    }
    let (good, other) = scene.storage_is(&["storage-a", "storage-b"]).unwrap();
    assert_ne!(other, endpoint);
    let left = LinkKey::Storage(bad);
    assert!(scene.effects.contains(&Effect::Disconnect { link: left }));
    scene.time_passes();
    assert_eq!(scene.log.to_storage.last().unwrap().0, good);
    scene.storage_answers(StorageReply::Data, &content);
    match scene.outcome() {
        Some(Outcome::Read(data)) => assert_eq!(data.into_bytes(), content),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_only_storage_router_is_kept_while_it_holds_reads() {
    let content = vec![7; CLUSTER_LEN];
    let mut scene = Scene::new();
    scene.located_read(&content);
    scene.storage_is(&["storage-a"]).unwrap();
    for _ in 0..20 {
        scene.storage_answers(later(), &[]);
        scene.time_passes();
        if scene.is_looking_for_storage() {
            assert_eq!(scene.storage_is(&["storage-a"]), None, "the link is made anew");
        }
    }
    scene.storage_answers(StorageReply::Data, &content);
    assert!(matches!(scene.outcome(), Some(Outcome::Read(_))));
}

/// A read of six clusters, of which the cache has some; what each is, and the scene.
fn partly_cached() -> (Vec<Bytes>, Vec<u8>, Scene) {
    let each: Vec<Bytes> = (1..=6).map(|n| Bytes::from(vec![n; CLUSTER_LEN])).collect();
    let content = each.concat();
    let mut scene = Scene::with(Limits {
        has_cache: true,
        ..Limits::default()
    });
    scene.located_read(&content);
    let (id, clusters) = scene.asks_cache();
    assert_eq!((clusters.first_slot, clusters.crcs.len()), (Slot(0), 6));
    assert!(!scene.is_looking_for_storage(), "the cache is asked first");
    let found = vec![
        Lookup::Here(each[0].clone()),
        Lookup::Ours,
        Lookup::Ours,
        Lookup::Others,
        Lookup::Here(each[4].clone()),
        Lookup::Ours,
    ];
    scene.happens(Event::LookedUp { id, clusters, found });
    (each, content, scene)
}

impl Scene {
    fn asks_cache(&mut self) -> (u64, Clusters) {
        let asked = self.effect(|effect| match effect {
            Effect::LookUp { id, clusters } => Some((*id, clusters.clone())),
            _ => None,
        });
        asked.unwrap()
    }

    fn keeps(&mut self) -> (Slot, Bytes) {
        let kept = self.effect(|effect| match effect {
            Effect::Keep {
                clusters,
                data,
                is_cacheable: true,
            } => Some((clusters.first_slot, data.clone())),
            _ => None,
        });
        kept.unwrap()
    }
}

#[test]
fn what_the_cache_does_not_have_is_fetched_in_runs_and_kept() {
    let (each, content, mut scene) = partly_cached();
    scene.storage_is(&["storage-a"]).unwrap();
    assert_eq!(scene.log.to_storage.len(), 2, "two runs");
    scene.storage_answers(StorageReply::Data, &each[5]);
    assert_eq!(scene.keeps(), (Slot(5), each[5].clone()));
    scene.storage_answers(StorageReply::Data, &content[CLUSTER_LEN..3 * CLUSTER_LEN]);
    assert_eq!(scene.keeps(), (Slot(1), Bytes::from(each[1..3].concat())));
    assert_eq!(scene.outcome(), None, "another fetches the fourth");
    let (id, clusters) = scene.asks_cache();
    assert_eq!((clusters.first_slot, clusters.crcs.len()), (Slot(3), 1));
    let found = vec![Lookup::Here(each[3].clone())];
    scene.happens(Event::LookedUp { id, clusters, found });
    match scene.outcome() {
        Some(Outcome::Read(data)) => assert!(data.into_bytes() == content),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_that_goes_leaves_its_fetches_to_those_that_wait_for_them() {
    let (each, _, mut scene) = partly_cached();
    let (id, clusters) = scene.asks_cache();
    scene.core.abandon(scene.now, GUEST, &mut scene.effects);
    let released = |scene: &mut Scene| {
        scene.effect(|effect| match effect {
            Effect::Release { clusters } => Some((clusters.first_slot, clusters.crcs.len())),
            _ => None,
        })
    };
    let mut all = vec![released(&mut scene).unwrap(), released(&mut scene).unwrap()];
    all.sort_unstable();
    assert_eq!(all, [(Slot(1), 2), (Slot(5), 1)]);
    // An answer that comes too late leaves its fetch to others too.
    let found = vec![Lookup::Ours];
    scene.happens(Event::LookedUp { id, clusters, found });
    assert_eq!(released(&mut scene), Some((Slot(3), 1)));
    assert_eq!(released(&mut scene), None);
    assert_eq!(scene.core.held_requests(), 0);
    drop(each);
}

#[test]
fn a_read_of_a_volume_that_is_deleted_meanwhile_ends() {
    let mut scene = Scene::new();
    scene.located_read(&vec![7; CLUSTER_LEN]);
    scene.storage_is(&["storage-a"]).unwrap();
    // While storage is asked, the owner is lost and the volume deleted.
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    let gone = || Routed::Gone(Refusal::reject(RefusalCode::NotFound, "deleted"));
    let session = scene.session;
    scene.time_passes();
    scene.happens(Event::Routed {
        session,
        routed: gone(),
    });
    // Its objects are gone too: the read goes back to the owner, which nobody is any more.
    let lost = Refusal::reject(RefusalCode::NotFound, "no such object");
    scene.storage_answers(StorageReply::Refused(lost), &[]);
    scene.time_passes();
    scene.happens(Event::Routed {
        session,
        routed: gone(),
    });
    match scene.outcome() {
        Some(Outcome::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::NotFound),
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.core.held_requests(), 0);
}

#[test]
fn a_snapshot_is_opened_again_as_the_one_that_it_was() {
    let mut scene = Scene::on_snapshot();
    let read = || Operation::read(0, CLUSTER_LEN as u64);
    scene.submits(Token(1), read());
    scene.is_reached();
    scene.opens_on(1, Some(SnapshotId(5)));
    scene.take_io();
    // The connection is lost; the owner comes back with the same snapshot: the read is sent again.
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.happens(Event::Up(LinkKey::Owner(scene.owner)));
    scene.opens_on(1, Some(SnapshotId(5)));
    let id = scene.take_io();
    let length = u32::try_from(CLUSTER_LEN).unwrap();
    scene.happens(Event::OwnerReplied {
        link: scene.owner,
        id,
        reply: VolumeReply::Read(vec![ReadExtent::Zeros { length }]),
        data: Bytes::new(),
    });
    assert!(matches!(scene.outcome(), Some(Outcome::Read(_))));
    // Next time another has its name: what is asked of the old one ends, and nothing is sent to the new one.
    scene.submits(Token(2), read());
    scene.take_io();
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.happens(Event::Up(LinkKey::Owner(scene.owner)));
    scene.opens_on(2, Some(SnapshotId(6)));
    assert_eq!(scene.refusal(), RefusalCode::NotFound);
    let closes = VolumeRequest::Control(VolumeControl::Close { handle: 2 });
    assert_eq!(scene.log.to_owner.pop().map(|(_, request)| request), Some(closes));
    // And so it stays, however often one asks.
    scene.submits(Token(3), read());
    let session = scene.session;
    scene.happens(Event::Routed {
        session,
        routed: routed(),
    });
    scene.opens_on(3, Some(SnapshotId(6)));
    assert_eq!(scene.refusal(), RefusalCode::NotFound);
    assert_eq!(scene.core.held_requests(), 0);
    // One who opens the name anew reads what has it now.
    scene.session = scene.core.snapshot_session(VOLUME, "monday".to_owned(), None);
    scene.log.to_owner.clear();
    scene.submits(Token(4), read());
    let session = scene.session;
    scene.happens(Event::Routed {
        session,
        routed: routed(),
    });
    scene.opens_on(4, Some(SnapshotId(6)));
    scene.take_io();
}

#[test]
fn a_snapshot_that_is_gone_ends_what_was_held_for_it() {
    let mut scene = Scene::on_snapshot();
    for token in 1..4 {
        scene.submits(Token(token), Operation::read(0, CLUSTER_LEN as u64));
    }
    scene.is_reached();
    let (id, _) = scene.log.to_owner.pop().unwrap();
    scene.happens(Event::OwnerReplied {
        link: scene.owner,
        id,
        reply: VolumeReply::Refused(Refusal::reject(RefusalCode::NotFound, "no snapshot")),
        data: Bytes::new(),
    });
    for _ in 1..4 {
        assert_eq!(scene.refusal(), RefusalCode::NotFound);
    }
    assert_eq!(scene.core.held_requests(), 0);
}

#[test]
fn changes_of_a_snapshot_are_refused_before_anybody_is_asked() {
    let mut scene = Scene::on_snapshot();
    let data = Bytes::from(vec![1; CLUSTER_LEN]);
    let length = CLUSTER_LEN as u64;
    for operation in [
        Operation::write(0, data, 0),
        Operation::discard(0, length, 0),
        Operation::write_zeroes(0, length, 0),
        Operation::resize(VolumeSize::new(length).unwrap()),
    ] {
        scene.submits(Token(1), operation);
        assert_eq!(scene.refusal(), RefusalCode::ReadOnly);
    }
    assert_eq!((scene.effects.len(), scene.log.to_owner.len()), (0, 0));
    assert_eq!(scene.core.held_requests(), 0);
}

#[test]
fn a_reader_of_a_snapshot_leaves_nothing_behind_that_others_wait_for() {
    let mut scene = Scene::on_snapshot();
    scene.submits(Token(1), Operation::read(0, CLUSTER_LEN as u64));
    scene.core.abandon(scene.now, GUEST, &mut scene.effects);
    let told = |effect: &Effect| matches!(effect, Effect::Orphaned(_) | Effect::Settled(_));
    assert!(!scene.effects.iter().any(told));
    assert_eq!(scene.core.held_requests(), 0);
}

/// A core that owners know, as the process 5 of its node, with a front end that has the volume open and only reads.
fn known() -> Scene {
    let mut scene = Scene::new();
    scene.core.identify("hv-1".parse().unwrap());
    scene.happens(Event::Announced { incarnation: 5 });
    scene.submits(Token(1), Operation::read(0, CLUSTER_LEN as u64));
    scene.is_reached();
    let asked = scene.opens_with(1, None, None).unwrap();
    assert!(!asked.take, "a read needs nothing: {asked:?}");
    let id = scene.take_io();
    scene.owner_answers(id, VolumeReply::Read(vec![ReadExtent::Zeros { length: 4096 }]));
    assert!(matches!(scene.outcome(), Some(Outcome::Read(_))));
    scene
}

fn write() -> Operation {
    Operation::write(0, vec![1; CLUSTER_LEN].into(), 0)
}

fn refused_access(refusal: Refusal) -> Option<AccessReply> {
    Some(AccessReply::Refused(refusal))
}

impl Scene {
    fn owner_answers(&mut self, id: u64, reply: VolumeReply) {
        self.happens(Event::OwnerReplied {
            link: self.owner,
            id,
            reply,
            data: Bytes::new(),
        });
    }

    /// A write is under way that was granted access.
    fn writes(&mut self) {
        self.submits(Token(2), write());
        let asked = self.opens_with(2, None, Some(AccessReply::Granted(3))).unwrap();
        assert_eq!((asked.node.as_str(), asked.incarnation), ("hv-1", 5));
        assert!(asked.take && asked.held.is_none(), "{asked:?}");
    }

    /// The owner does what it is asked, and the client is told so.
    fn is_done(&mut self) {
        let id = self.take_io();
        self.owner_answers(id, VolumeReply::Done);
        assert_eq!(self.outcome(), Some(Outcome::Done));
    }

    fn is_told_of_access(&mut self) -> bool {
        let told = self.effect(|effect| match effect {
            Effect::AccessRefused { refusal, .. } => Some(refusal.clone()),
            _ => None,
        });
        told.is_some()
    }
}

#[test]
fn the_first_change_asks_for_access_and_reads_do_not_wait_for_it() {
    let mut scene = known();
    scene.submits(Token(2), write());
    assert_eq!(scene.log.to_owner.len(), 1, "the open alone");
    scene.submits(Token(3), write());
    scene.submits(Token(4), Operation::read(0, CLUSTER_LEN as u64));
    let (_, read) = scene.log.to_owner.pop().unwrap();
    assert!(matches!(read, VolumeRequest::Io(io) if io.code == IoCode::Read && io.handle == 1));
    scene.opens_with(2, None, Some(AccessReply::Granted(3)));
    let numbers: Vec<(u64, u32)> = scene
        .log
        .to_owner
        .iter()
        .map(|(_, request)| match request {
            VolumeRequest::Io(io) => (io.number, io.handle),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [(1, 2), (2, 2)], "in the order in which they came");
    // From here on nothing is asked.
    scene.log.to_owner.clear();
    scene.submits(Token(5), write());
    scene.take_io();
}

#[test]
fn who_may_not_write_is_told_once_and_reads_on() {
    let mut scene = known();
    let refusal = || Refusal::reject(RefusalCode::NoAccess, "hv-2 has it");
    for times in 0..3 {
        scene.submits(Token(2), write());
        scene.opens_with(2 + times, None, refused_access(refusal()));
        assert_eq!(scene.refusal(), RefusalCode::NoAccess);
        assert_eq!(scene.is_told_of_access(), times == 0);
    }
    scene.submits(Token(3), Operation::read(0, CLUSTER_LEN as u64));
    scene.take_io();
    // It is told anew after it could write.
    scene.submits(Token(4), write());
    scene.opens_with(7, None, Some(AccessReply::Granted(9)));
    scene.is_done();
}

#[test]
fn a_change_waits_while_nobody_can_say_who_may_write() {
    let mut scene = known();
    scene.submits(Token(2), write());
    let later = Refusal::retry(RefusalCode::Unavailable, "the registry does not answer");
    scene.opens_with(2, None, refused_access(later));
    assert_eq!(scene.outcome(), None);
    assert_eq!(
        scene.core.trouble(scene.session),
        Some("the registry does not answer")
    );
    scene.submits(Token(3), Operation::read(0, CLUSTER_LEN as u64));
    scene.take_io();
    assert!(scene.log.to_owner.is_empty(), "not asked again at once");
    scene.time_passes();
    scene.opens_with(3, None, Some(AccessReply::Granted(1)));
    scene.is_done();
}

#[test]
fn nothing_is_written_before_it_is_known_which_process_this_is() {
    let mut scene = Scene::new();
    scene.core.identify("hv-1".parse().unwrap());
    scene.submits(Token(2), write());
    scene.is_reached();
    scene.opens_with(1, None, None);
    assert!(scene.log.to_owner.is_empty());
    scene.happens(Event::Announced { incarnation: 5 });
    let asked = scene.opens_with(2, None, Some(AccessReply::Granted(1))).unwrap();
    assert!(asked.take && asked.incarnation == 5);
    scene.take_io();
}

#[test]
fn a_front_end_that_lost_access_never_gets_it_again_and_another_may() {
    let mut scene = known();
    scene.writes();
    let sent = scene.take_io();
    // Its handle is not good for it any more: it opens the volume again and says what it had.
    let not_open = Refusal::reroute(RefusalCode::NotOpen, "not open for writing");
    scene.owner_answers(sent, VolumeReply::Refused(not_open));
    scene.time_passes();
    scene.is_reached();
    let taken = Refusal::reject(RefusalCode::NoAccess, "taken from hv-1");
    let asked = scene.opens_with(3, None, refused_access(taken)).unwrap();
    assert!(asked.take && asked.held == Some(3), "{asked:?}");
    assert_eq!(scene.refusal(), RefusalCode::NoAccess);
    scene.submits(Token(3), Operation::read(0, CLUSTER_LEN as u64));
    scene.take_io();
    // Another connection opens the volume: it may ask, and gets it.
    let other = FrontEndKey(2);
    let open = |scene: &mut Scene, front_end| {
        let patience = Patience::Endless;
        scene
            .core
            .open(scene.session, front_end, Token(8), patience, &mut scene.effects);
        scene.core.drain_sends(&mut scene.log, &mut scene.effects);
    };
    open(&mut scene, other);
    let asked = scene.opens_with(4, None, None).unwrap();
    assert_eq!((asked.take, asked.held), (false, None));
    assert!(matches!(scene.outcome(), Some(Outcome::Opened(_))));
    let submitted = scene
        .core
        .submit(scene.session, other, Token(9), write(), &mut scene.effects);
    submitted.unwrap();
    scene.core.drain_sends(&mut scene.log, &mut scene.effects);
    scene.opens_with(5, None, Some(AccessReply::Granted(7)));
    scene.take_io();
    // The first one does not, also where it opens the volume once more.
    open(&mut scene, GUEST);
    scene.opens_with(6, None, Some(AccessReply::Granted(7)));
    assert!(matches!(scene.outcome(), Some(Outcome::Opened(_))));
    scene.submits(Token(10), write());
    assert_eq!(scene.refusal(), RefusalCode::NoAccess);
    assert!(scene.log.to_owner.is_empty());
}

#[test]
fn who_opens_the_volume_after_access_was_lost_is_not_taken_for_one_that_lost_it() {
    let mut scene = known();
    let (first, second) = (FrontEndKey(4), FrontEndKey(5));
    let open = |scene: &mut Scene, front_end| {
        let patience = Patience::Endless;
        scene
            .core
            .open(scene.session, front_end, Token(8), patience, &mut scene.effects);
        scene.core.drain_sends(&mut scene.log, &mut scene.effects);
    };
    open(&mut scene, first);
    scene.opens_with(2, None, None);
    scene.writes();
    scene.take_io();
    // Nobody has noticed yet that it is lost; the open of the second one tells.
    open(&mut scene, second);
    let taken = Refusal::reject(RefusalCode::NoAccess, "taken from hv-1");
    let asked = scene.opens_with(3, None, refused_access(taken)).unwrap();
    assert_eq!(asked.held, Some(3));
    scene.effects.clear();
    for (front_end, may) in [(first, false), (second, true)] {
        let submitted = scene
            .core
            .submit(scene.session, front_end, Token(9), write(), &mut scene.effects);
        submitted.unwrap();
        scene.core.drain_sends(&mut scene.log, &mut scene.effects);
        assert_eq!(scene.log.to_owner.len(), usize::from(may), "{front_end:?}");
    }
}

#[test]
fn an_owner_that_does_not_know_that_a_session_is_over_is_told_when_it_is_back() {
    let mut scene = known();
    scene.writes();
    scene.is_done();
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.core.release(scene.now, scene.session);
    scene.happens(Event::Up(LinkKey::Owner(scene.owner)));
    let asked = scene.opens_with(4, None, Some(AccessReply::Granted(3))).unwrap();
    assert_eq!((asked.take, asked.held), (true, Some(3)));
    let (_, request) = scene.log.to_owner.pop().unwrap();
    assert_eq!(
        request,
        VolumeRequest::Control(VolumeControl::Close { handle: 4 })
    );
    // One that stays away is not looked for for ever.
    let mut scene = known();
    scene.writes();
    scene.is_done();
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.core.release(scene.now, scene.session);
    let mut looks = 0;
    for _ in 0..1000 {
        let Some(at) = scene.core.next_wake() else { break };
        scene.now = scene.now.max(at);
        scene.happens(Event::Tick);
        let session = scene.effect(|effect| match effect {
            Effect::FindOwner { session, .. } => Some(*session),
            _ => None,
        });
        if let Some(session) = session {
            looks += 1;
            let routed = Routed::Absent("it is away".to_owned());
            scene.happens(Event::Routed { session, routed });
        }
    }
    assert!(looks > 3 && scene.core.next_wake().is_none(), "{looks}");
}

impl Scene {
    /// The session's last word leaves.
    fn closes(&mut self, handle: u32) -> u64 {
        let (id, request) = self.log.to_owner.pop().unwrap();
        let close = VolumeRequest::Control(VolumeControl::Close { handle });
        assert_eq!(request, close);
        assert!(self.log.to_owner.is_empty());
        id
    }

    /// The owner has heard everything: whatever happens to the link, nobody looks for it.
    fn is_over(&mut self) {
        self.happens(Event::Down(LinkKey::Owner(self.owner)));
        self.happens(Event::Up(LinkKey::Owner(self.owner)));
        assert!(self.log.to_owner.is_empty(), "{:?}", self.log.to_owner);
    }
}

#[test]
fn a_client_that_goes_while_access_is_asked_for_leaves_none_behind() {
    let mut scene = known();
    scene.submits(Token(2), write());
    scene.core.abandon(scene.now, GUEST, &mut scene.effects);
    scene.core.release(scene.now, scene.session);
    scene.core.drain_sends(&mut scene.log, &mut scene.effects);
    let asked = scene.opens_with(1, None, Some(AccessReply::Granted(3))).unwrap();
    assert!(asked.take);
    let id = scene.closes(1);
    scene.owner_answers(id, VolumeReply::Control(VolumeControlReply::Done));
    scene.is_over();
    // The same, and the answer is lost with the connection.
    let mut scene = known();
    scene.submits(Token(2), write());
    scene.log.to_owner.clear();
    scene.core.abandon(scene.now, GUEST, &mut scene.effects);
    scene.core.release(scene.now, scene.session);
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.happens(Event::Up(LinkKey::Owner(scene.owner)));
    let asked = scene.opens_with(2, None, Some(AccessReply::Granted(3))).unwrap();
    assert!(asked.take && asked.held.is_none(), "{asked:?}");
    scene.closes(2);
}

#[test]
fn a_close_that_is_not_delivered_is_sent_again() {
    let mut scene = known();
    scene.writes();
    scene.is_done();
    // There is no room for it.
    scene.log.full = true;
    scene.core.release(scene.now, scene.session);
    scene.core.drain_sends(&mut scene.log, &mut scene.effects);
    assert!(scene.log.to_owner.is_empty());
    scene.log.full = false;
    scene.happens(Event::Room(LinkKey::Owner(scene.owner)));
    scene.closes(2);
    // Who opens the volume now has another session.
    let other = scene.core.session(VOLUME);
    assert_ne!(other, scene.session);
    scene.core.release(scene.now, other);
    // Its answer is lost with the connection.
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.happens(Event::Up(LinkKey::Owner(scene.owner)));
    let asked = scene.opens_with(4, None, Some(AccessReply::Granted(3))).unwrap();
    assert_eq!((asked.take, asked.held), (true, Some(3)));
    let id = scene.closes(4);
    // The volume stopped in between, and knows nothing of that handle.
    let stopped = Refusal::reroute(RefusalCode::NotOpen, "open it again");
    scene.owner_answers(id, VolumeReply::Refused(stopped));
    let is_looked_for = |effect: &Effect| matches!(effect, Effect::FindOwner { .. }).then_some(());
    scene.effects.clear();
    while scene.effect(is_looked_for).is_none() {
        scene.now = scene.now.max(scene.core.next_wake().unwrap());
        scene.happens(Event::Tick);
    }
    scene.happens(Event::Routed {
        session: scene.session,
        routed: routed(),
    });
    scene.opens_with(5, None, Some(AccessReply::Granted(3)));
    let id = scene.closes(5);
    scene.owner_answers(id, VolumeReply::Control(VolumeControlReply::Done));
    scene.is_over();
}

/// As many numbers as lie between the oldest change that was not answered and the newest one at most.
const WINDOW: u64 = 1 << 16;

impl Scene {
    /// The owner refuses what it was sent last, for now, until it was sent again; gives that.
    fn is_sent_again(&mut self) -> (u64, VolumeRequest) {
        let id = self.take_io();
        let later = Refusal::retry(RefusalCode::Unavailable, "no lease now");
        self.owner_answers(id, VolumeReply::Refused(later));
        self.time_passes();
        let sent = self.log.to_owner.last().cloned();
        sent.unwrap_or_else(|| panic!("nothing was sent again"))
    }

    fn sent(&self) -> Vec<(IoCode, u64, u64)> {
        let io = |(_, request): &(u64, VolumeRequest)| match request {
            VolumeRequest::Io(io) => (io.code, io.number, io.below),
            other => panic!("{other:?}"),
        };
        self.log.to_owner.iter().map(io).collect()
    }
}

#[test]
fn reads_that_are_asked_again_and_again_take_nothing_from_the_writes() {
    let mut scene = known();
    scene.writes();
    // The write is refused for now, and is to be sent again later than the reads are.
    let held = scene.take_io();
    scene.submits(Token(3), Operation::read(0, CLUSTER_LEN as u64));
    for _ in 0..=WINDOW {
        let (_, request) = scene.is_sent_again();
        assert!(matches!(request, VolumeRequest::Io(io) if io.code == IoCode::Read && io.number == 2));
    }
    scene.owner_answers(
        held,
        VolumeReply::Refused(Refusal::retry(RefusalCode::Unavailable, "no lease now")),
    );
    scene.time_passes();
    assert_eq!(scene.sent(), [(IoCode::Read, 2, 1), (IoCode::Write, 1, 1)]);
    scene.is_done();
    let id = scene.take_io();
    scene.owner_answers(id, VolumeReply::Read(vec![ReadExtent::Zeros { length: 4096 }]));
    assert!(matches!(scene.outcome(), Some(Outcome::Read(_))));
}

#[test]
fn a_change_that_is_to_be_sent_again_waits_for_no_number() {
    let mut scene = known();
    scene.writes();
    let first = scene.log.to_owner.pop().unwrap();
    for _ in 1..WINDOW {
        scene.submits(Token(3), write());
        scene.is_done();
    }
    // As far as the owner remembers numbers: what needs a new one waits, and nothing else does.
    scene.submits(Token(4), write());
    scene.submits(Token(5), Operation::read(0, CLUSTER_LEN as u64));
    assert_eq!(scene.sent(), [(IoCode::Read, WINDOW + 1, 1)]);
    scene.log.to_owner.clear();
    scene.happens(Event::Down(LinkKey::Owner(scene.owner)));
    scene.time_passes();
    scene.is_reached();
    scene.opens_with(3, None, Some(AccessReply::Granted(3)));
    assert_eq!(
        scene.sent(),
        [(IoCode::Write, 1, 1), (IoCode::Read, WINDOW + 1, 1)]
    );
    let (again, _) = scene.log.to_owner.remove(0);
    assert_ne!(again, first.0);
    scene.log.to_owner.clear();
    scene.owner_answers(again, VolumeReply::Done);
    assert_eq!(scene.outcome(), Some(Outcome::Done));
    assert_eq!(scene.sent(), [(IoCode::Write, WINDOW + 1, WINDOW + 1)]);
    scene.is_done();
}
