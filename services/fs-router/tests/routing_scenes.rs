//! Single scenes of the routing core, told step by step: what a seeded world meets too rarely.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: what goes wrong fails it"
)]

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
    ReadExtent, VolumeControl, VolumeControlReply, VolumeReply, VolumeRequest,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{CLUSTER_LEN, Epoch, ScoId, ScoSize, Slot, VolumeId, VolumeSize};

const VOLUME: VolumeId = VolumeId([3; 16]);
const GUEST: FrontEndKey = FrontEndKey(1);
/// Longer than any wait of the core.
const LONG: Micros = 100_000_000;

/// What the core sent.
#[derive(Default)]
struct Log {
    to_owner: Vec<(u64, VolumeRequest)>,
    to_storage: Vec<(StorageKey, u64)>,
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
        },
    }
}

impl Scene {
    fn new() -> Scene {
        let mut core = Core::new(Limits::default(), Chance::seeded(1));
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

    /// A read of one cluster, which the owner answers with a location.
    fn located_read(&mut self, content: &[u8]) {
        let operation = Operation::read(0, CLUSTER_LEN as u64);
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
            crcs: vec![crc32c(content)],
        };
        self.happens(Event::OwnerReplied {
            link: self.owner,
            id,
            reply: VolumeReply::Read(vec![located]),
            data: Bytes::new(),
        });
    }

    fn opens(&mut self) {
        let (id, request) = self.log.to_owner.pop().unwrap();
        let VolumeRequest::Control(VolumeControl::Open { .. }) = request else {
            panic!("{request:?}");
        };
        let opened = VolumeControlReply::Opened {
            handle: 1,
            epoch: Epoch(1),
            size: VolumeSize::new(1 << 20).unwrap(),
            read_only: false,
        };
        self.happens(Event::OwnerReplied {
            link: self.owner,
            id,
            reply: VolumeReply::Control(opened),
            data: Bytes::new(),
        });
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
