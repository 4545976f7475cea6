//! Messages: golden files decode to what they meant when they were written and encode to the same bytes; what a newer
//! minor version adds is passed over.
//!
//! `SCONCE_WRITE_GOLDEN=1` writes files that are missing; a file that exists is never changed.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use sconce_schemas::access::{AccessAsk, AccessChange, AccessMode, AccessReply};
use sconce_schemas::bundle::{BundleIndex, KeptCluster, Member};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{
    BackendPlace, BackendRecord, Compression, DtlMode, DtlState, KeyPrint, PlacementEntry, PoolRecord,
    Protection, S3Place,
};
use sconce_schemas::wire::envelope::{Header, Protocol, Reply, Request, Role};
use sconce_schemas::wire::event::{
    AccessWhy, EventPage, EventsAsk, Level, OwnedWhy, PoolEvent, TwinRefused, VolumeName, What,
};
use sconce_schemas::wire::msgpack::{put_array, put_named, put_str, put_uint, take_named};
use sconce_schemas::wire::registry::{
    Change, Entry, LeaseId, RegistryReply, RegistryRequest, Revision, WatchEvent,
};
use sconce_schemas::wire::scrub::{BundleJob, JobSource};
use sconce_schemas::wire::storage::{
    BackendStatus, PoolStatus, StorageControl, StorageControlReply, StorageNodeStatus, StorageReply,
    StorageRequest, Written,
};
use sconce_schemas::wire::twin::{TwinReply, TwinRequest, TwinSay};
use sconce_schemas::wire::volume::{
    ChangeKind, ChangedExtent, ErasureStatus, ExtentKind, ExtentStatus, FlattenProgress, IoCode, IoFlags,
    IoRequest, NodeStatus, ReadExtent, ScrubReport, Since, SnapshotStatus, VolumeControl, VolumeControlReply,
    VolumeReply, VolumeRequest, VolumeStatus,
};
use sconce_schemas::wire::{Body, Cause, Hello, Refusal, RefusalCode, Trace, Version, Welcome};
use sconce_schemas::{
    BackendId, BatchSeq, ByteLen, CheckpointId, ClusterAddress, Epoch, ManifestSeq, NodeName, ObjectName,
    ScoId, ScoSize, SessionId, Slot, SnapshotId, VolumeId, VolumeSize,
};

const VOLUME: VolumeId = VolumeId([0xab; 16]);
const VERSION: Version = Version { major: 1, minor: 0 };

/// Checks a header against its golden file, both ways.
fn golden<B: Body + Debug + PartialEq>(name: &str, data_len: usize, header: &Header<B>) {
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    let file = format!("tests/golden/wire-{name}-1.bin");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if !path.exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        stored, bytes,
        "{name}: a message must never change meaning within a major version"
    );
    assert_eq!(Header::decode(&stored, data_len).as_ref(), Ok(header), "{name}");
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::reroute(RefusalCode::NotOwner, "node-b owns it"),
        Refusal::retry(RefusalCode::Unavailable, "starting"),
        Refusal::reject(RefusalCode::OutOfRange, "beyond the end"),
        Refusal::damaged("slot 7"),
    ]
}

/// A batch with ids from 1 on; each request has as much data as its index, so that shares differ.
fn requests<B>(bodies: Vec<B>) -> (usize, Header<B>) {
    let requests: Vec<Request<B>> = (1u32..)
        .zip(bodies)
        .map(|(i, body)| Request {
            id: u64::from(i),
            data_len: i - 1,
            reply_len: i * 4096,
            trace: Trace::from(u64::from(i) << 40),
            body,
        })
        .collect();
    let data_len = requests.iter().map(|r| r.data_len as usize).sum();
    let mark = 0x1234_5678_9abc;
    (data_len, Header::Requests { mark, requests })
}

fn replies<B>(bodies: Vec<B>) -> (usize, Header<B>) {
    let replies: Vec<Reply<B>> = (1u32..)
        .zip(bodies)
        .map(|(i, body)| Reply {
            id: u64::from(i) << 20,
            data_len: i - 1,
            body,
        })
        .collect();
    let data_len = replies.iter().map(|r| r.data_len as usize).sum();
    let mark = u64::MAX;
    (data_len, Header::Replies { mark, replies })
}

fn golden_batch<B: Body + Debug + PartialEq>(name: &str, (data_len, header): (usize, Header<B>)) {
    golden(name, data_len, &header);
}

#[test]
fn greetings_keep_their_meaning() {
    let hello = Hello {
        version: VERSION,
        protocol: Protocol::Volume,
        role: Role::FsRouter,
        node: node("node-a"),
    };
    golden::<RegistryReply>("hello", 0, &Header::Hello(hello));
    let welcome = Welcome {
        version: VERSION,
        role: Role::VolumeRouter,
        node: node("node-b"),
        credit_bytes: 128 << 20,
        message_bytes_max: 40 << 20,
    };
    golden::<RegistryReply>("welcome", 0, &Header::Welcome(welcome));
    golden::<RegistryReply>("ping", 0, &Header::Ping(77));
    golden::<RegistryReply>("pong", 0, &Header::Pong(u64::MAX));
    let refusal = Refusal::reject(RefusalCode::Unsupported, "upgrade the older of the two");
    golden::<RegistryReply>("goodbye", 0, &Header::Goodbye(refusal));
}

/// Those of the first version; later ones have golden files of their own.
const CODES: [IoCode; 7] = [
    IoCode::Read,
    IoCode::Write,
    IoCode::Discard,
    IoCode::WriteZeroes,
    IoCode::Flush,
    IoCode::Extents,
    IoCode::Resize,
];

fn io(code: IoCode) -> IoRequest {
    IoRequest {
        handle: 3,
        number: 70_000,
        below: 69_000,
        code,
        flags: IoFlags(IoFlags::FUA | IoFlags::NO_HOLE),
        offset: 5 << 40,
        length: 4096,
    }
}

#[test]
fn volume_messages_keep_their_meaning() {
    let volume = VOLUME;
    let handle = 9;
    let mut bodies: Vec<VolumeRequest> = CODES.into_iter().map(|c| VolumeRequest::Io(io(c))).collect();
    bodies.extend(
        [
            VolumeControl::Open {
                volume,
                session: SessionId(u64::MAX),
                snapshot: None,
                access: None,
            },
            VolumeControl::Close { handle },
            VolumeControl::Show { volume },
            VolumeControl::Sync { volume },
            VolumeControl::Renamed { volume },
            VolumeControl::Delete { volume },
            VolumeControl::TakeOver { volume, force: true },
            VolumeControl::NodeStatus,
        ]
        .map(VolumeRequest::Control),
    );
    golden_batch("volume-requests", requests(bodies));
    golden_batch("volume-replies", replies(volume_replies()));
}

#[test]
fn snapshot_messages_keep_their_meaning() {
    let volume = VOLUME;
    let metadata: BTreeMap<String, String> = [("reason".to_owned(), "backup".to_owned())].into();
    let id = SnapshotId(u64::MAX >> 1);
    let name = || "daily".to_owned();
    let bodies = [
        VolumeControl::Open {
            volume,
            session: SessionId(1),
            snapshot: Some(name()),
            access: None,
        },
        VolumeControl::TakeSnapshot {
            volume,
            id,
            name: name(),
            metadata: metadata.clone(),
        },
        VolumeControl::RemoveSnapshot {
            volume,
            name: name(),
            id: None,
        },
        VolumeControl::RollBack {
            volume,
            to: name(),
            id,
            keep: Some("before".to_owned()),
        },
        VolumeControl::ListSnapshots { volume },
        VolumeControl::SetReadOnly {
            volume,
            read_only: true,
        },
    ];
    let bodies = bodies.map(VolumeRequest::Control).to_vec();
    golden_batch("volume-snapshot-requests", requests(bodies));
    let exactly = VolumeControl::RemoveSnapshot {
        volume,
        name: name(),
        id: Some(id),
    };
    golden_batch(
        "volume-snapshot-remove-exactly",
        requests(vec![VolumeRequest::Control(exactly)]),
    );
    let status = SnapshotStatus {
        id,
        name: name(),
        created_us: 1_700_000_000_000_000,
        size: VolumeSize::new(1 << 30).unwrap(),
        allocated: ByteLen(1 << 20),
        synced: true,
        metadata,
    };
    let snapshots = VolumeControlReply::Snapshots {
        snapshots: vec![status],
    };
    golden_batch(
        "volume-snapshot-replies",
        replies(vec![VolumeReply::Control(snapshots)]),
    );
    let opened = VolumeControlReply::Opened {
        handle: 9,
        epoch: Epoch(3),
        size: VolumeSize::new(1 << 30).unwrap(),
        read_only: true,
        snapshot: Some(SnapshotId(u64::MAX >> 1)),
        access: None,
    };
    golden_batch(
        "volume-snapshot-opened",
        replies(vec![VolumeReply::Control(opened)]),
    );
}

#[test]
fn messages_about_write_access_keep_their_meaning() {
    let volume = VOLUME;
    let open = |take, held| VolumeControl::Open {
        volume,
        session: SessionId(3),
        snapshot: None,
        access: Some(AccessAsk {
            node: node("hv-1"),
            incarnation: 77,
            take,
            held,
        }),
    };
    let change = |change| VolumeControl::SetAccess { volume, change };
    let modes = [AccessMode::Exclusive, AccessMode::Shared];
    let mut bodies = vec![open(false, None), open(true, Some(4))];
    bodies.extend(modes.map(|mode| change(AccessChange::Mode { mode })));
    bodies.push(change(AccessChange::HandOver {
        within_us: 300_000_000,
    }));
    bodies.push(change(AccessChange::Break));
    let bodies = bodies.into_iter().map(VolumeRequest::Control).collect();
    golden_batch("volume-access-requests", requests(bodies));
    let refused = Refusal::reject(RefusalCode::NoAccess, "hv-2 has it");
    let answers = [AccessReply::Granted(5), AccessReply::Refused(refused)];
    let opened = answers.map(|access| {
        VolumeReply::Control(VolumeControlReply::Opened {
            handle: 9,
            epoch: Epoch(3),
            size: VolumeSize::new(1 << 30).unwrap(),
            read_only: false,
            snapshot: None,
            access: Some(access),
        })
    });
    golden_batch("volume-access-replies", replies(opened.into()));
}

#[test]
fn requests_about_groups_keep_their_meaning() {
    let (volume, id) = (VOLUME, SnapshotId(u64::MAX >> 1));
    let bodies = [
        VolumeControl::ProposeSnapshot {
            volume,
            id,
            name: "daily".to_owned(),
            metadata: [("group".to_owned(), "7f".to_owned())].into(),
        },
        VolumeControl::ConfirmSnapshot { volume, id },
        VolumeControl::WithdrawSnapshot { volume, id },
    ];
    let bodies = bodies.map(VolumeRequest::Control).to_vec();
    golden_batch("volume-group-requests", requests(bodies));
}

#[test]
fn messages_about_changes_keep_their_meaning() {
    let volume = VOLUME;
    let since = |volume| Since {
        volume,
        snapshot: "monday".to_owned(),
    };
    let open = |snapshot: Option<&str>, since| {
        VolumeRequest::Control(VolumeControl::OpenChanges {
            volume,
            snapshot: snapshot.map(str::to_owned),
            since,
        })
    };
    let bodies = vec![
        VolumeRequest::Io(io(IoCode::Changes)),
        open(None, None),
        open(None, Some(since(None))),
        open(Some("tuesday"), Some(since(Some(VolumeId([0xcd; 16]))))),
    ];
    golden_batch("volume-changes-requests", requests(bodies));
    let opened = |snapshot, since| {
        VolumeReply::Control(VolumeControlReply::OpenedChanges {
            handle: 9,
            epoch: Epoch(3),
            size: VolumeSize::new(1 << 30).unwrap(),
            snapshot,
            since,
        })
    };
    let kinds = [
        ChangeKind::Same,
        ChangeKind::Data,
        ChangeKind::Zeros,
        ChangeKind::Hole,
    ];
    let extents = kinds.map(|kind| ChangedExtent {
        length: 1 << 33,
        kind,
    });
    let bodies = vec![
        VolumeReply::Changes(extents.to_vec()),
        opened(None, None),
        opened(Some(SnapshotId(7)), Some(SnapshotId(8))),
    ];
    golden_batch("volume-changes-replies", replies(bodies));
}

#[test]
fn messages_about_flattening_keep_their_meaning() {
    let flatten = VolumeRequest::Control(VolumeControl::Flatten { volume: VOLUME });
    golden_batch("volume-flatten-requests", requests(vec![flatten]));
    let mut status = volume_status();
    status.flatten = Some(FlattenProgress {
        copied: ByteLen(1 << 30),
        percent: 40,
        waits_for: vec!["daily".to_owned(), String::new()],
        waits_for_history: true,
        trouble: Some("the back ends are away".to_owned()),
    });
    let reply = VolumeReply::Control(VolumeControlReply::Volume(Box::new(status)));
    golden_batch("volume-flatten-replies", replies(vec![reply]));
}

#[test]
fn messages_about_the_mode_of_a_twin_keep_their_meaning() {
    let set = |mode| VolumeRequest::Control(VolumeControl::SetDtl { volume: VOLUME, mode });
    let modes = [DtlMode::None, DtlMode::Async, DtlMode::Sync];
    golden_batch("volume-dtl-requests", requests(modes.map(set).to_vec()));
    let mut status = volume_status();
    status.dtl_mode = Some(DtlMode::Sync);
    status.dtl_host = Some(node("node-c"));
    let reply = VolumeReply::Control(VolumeControlReply::Volume(Box::new(status)));
    golden_batch("volume-dtl-replies", replies(vec![reply]));
}

#[test]
fn messages_about_moves_keep_their_meaning() {
    let moves = [
        VolumeControl::Move {
            volume: VOLUME,
            to: node("node-c"),
        },
        VolumeControl::LeaveTwin {
            volume: VOLUME,
            node: node("node-a"),
        },
    ];
    golden_batch(
        "volume-move-requests",
        requests(moves.map(VolumeRequest::Control).to_vec()),
    );
}

#[test]
fn what_a_twin_is_told_keeps_its_meaning() {
    let says = [
        TwinSay::Attach {
            path: "/vm1/disk.raw".to_owned(),
            sco_size: ScoSize::new(1024).unwrap(),
        },
        TwinSay::Open {
            sco: ScoId(9),
            first_batch: BatchSeq(70),
            synced_below: ScoId(8),
        },
        TwinSay::Append {
            sco: ScoId(9),
            seq: BatchSeq(70),
            tlog_offset: 4096,
            tlog: vec![0xab; 56],
            first_slot: Slot(3),
        },
        TwinSay::Copy {
            sco: ScoId(7),
            sco_epoch: Epoch(4),
            offset: ByteLen(1 << 20),
            length: ByteLen(3 << 20),
        },
        TwinSay::Sync { upto: BatchSeq(70) },
        TwinSay::Release { upto: ScoId(6) },
        TwinSay::Detach,
        TwinSay::Beat,
    ];
    let said = says.map(|say| {
        VolumeRequest::Twin(Box::new(TwinRequest {
            volume: VOLUME,
            epoch: Epoch(5),
            stream: 2,
            say,
        }))
    });
    golden_batch("twin-requests", requests(said.to_vec()));
    let buffer = "00112233445566778899aabbccddeeff".to_owned();
    let boot = Some("6f0ea6ac-93b8-4d9e-8e0c-1c4d1f6ad9a4".to_owned());
    let answers = [TwinReply::Attached { buffer, boot }, TwinReply::Done];
    golden_batch("twin-replies", replies(answers.map(VolumeReply::Twin).to_vec()));
}

fn volume_status() -> VolumeStatus {
    VolumeStatus {
        id: VOLUME,
        size: VolumeSize::new(2 << 40).unwrap(),
        allocated: ByteLen(1 << 30),
        owner: node("node-b"),
        epoch: Epoch(3),
        dtl_state: DtlState::Degraded,
        dtl_mode: None,
        dtl_host: None,
        sco_size: ScoSize::default(),
        unstored: ByteLen(4 << 20),
        map_memory: ByteLen(16 << 10),
        state: "serving".to_owned(),
        state_since_us: None,
        path: None,
        dtl_trouble: None,
        history: None,
        flatten: None,
        scrub: None,
    }
}

/// One of each kind.
fn happenings() -> Vec<What> {
    let cause = || "no answer".to_owned();
    let work = || "storing".to_owned();
    let backend = || "local".to_owned();
    let (name, host, owner) = (|| node("vr-1"), || node("vr-2"), || node("vr-1"));
    let (held, size) = (ByteLen(800), ByteLen(1000));
    let epoch = Epoch(3);
    let joined = |in_place_of| What::NodeJoined {
        name: name(),
        role: Role::VolumeRouter,
        pid: 7,
        in_place_of,
    };
    let owned = |why| What::Owned {
        from: name(),
        epoch,
        why,
        replayed: 12,
    };
    let refused = TwinRefused {
        node: host(),
        cause: cause(),
    };
    vec![
        joined(None),
        joined(Some(6)),
        What::NodeLeft {
            name: name(),
            role: Role::StorageRouter,
            pid: 7,
        },
        What::LeaseEnded,
        owned(OwnedWhy::Created),
        owned(OwnedWhy::Start),
        owned(OwnedWhy::TwinHost),
        owned(OwnedWhy::Moved),
        owned(OwnedWhy::Operator),
        owned(OwnedWhy::Forced),
        What::Released { epoch },
        What::Fenced {
            epoch,
            cause: cause(),
        },
        What::Over { cause: cause() },
        What::Halted {
            cause: cause(),
            device_failed: true,
        },
        What::WaitsForOwner { cause: cause() },
        What::Unavailable { cause: cause() },
        What::DtlMode { mode: DtlMode::Async },
        What::TwinChosen { host: host() },
        What::TwinNotFound {
            refused: vec![refused],
        },
        What::InSync { host: host() },
        What::TwinGivenUp {
            host: host(),
            cause: cause(),
        },
        What::MoveBegun { to: host() },
        What::NotMoved {
            to: host(),
            cause: cause(),
        },
        What::HandedOver { to: host(), epoch },
        What::TwinLost {
            host: host(),
            cause: cause(),
        },
        What::Degraded {
            wanted: true,
            host: Some(host()),
            cause: cause(),
        },
        What::KeepsTwin {
            owner: owner(),
            epoch,
        },
        What::TwinEnded { cause: cause() },
        What::BufferNearlyFull { held, size },
        What::BufferRelieved { held, size },
        What::WorkFails {
            work: work(),
            cause: cause(),
        },
        What::WorkGoesOn { work: work() },
        What::BackendFails {
            backend: backend(),
            cause: cause(),
        },
        What::BackendWorks { backend: backend() },
        What::Other,
    ]
}

/// What happens to write access: told since there is any.
fn access_happenings() -> Vec<What> {
    let (name, holder) = (|| node("hv-2"), || node("hv-1"));
    let taken = |why| What::AccessTaken {
        node: name(),
        from: (why != AccessWhy::Free).then(holder),
        why,
    };
    vec![
        taken(AccessWhy::Free),
        taken(AccessWhy::HandedOver),
        taken(AccessWhy::Gone),
        What::AccessRefused {
            node: name(),
            cause: "hv-1 has it".to_owned(),
        },
        What::AccessOffered {
            holder: holder(),
            seconds: 300,
        },
        What::AccessBroken { holder: holder() },
        What::AccessMode {
            mode: AccessMode::Exclusive,
        },
        What::AccessMode {
            mode: AccessMode::Shared,
        },
    ]
}

fn event_page(happenings: Vec<What>) -> EventPage {
    let volume = VolumeName {
        id: VOLUME,
        path: "/vm1/disk.raw".to_owned(),
    };
    let events: Vec<PoolEvent> = (41..)
        .zip(happenings)
        .map(|(seq, what)| PoolEvent {
            seq,
            time_us: 1_700_000_000_000_000 + seq,
            level: what.level(),
            volume: (seq > 44).then(|| volume.clone()),
            text: what.to_string(),
            what,
        })
        .collect();
    EventPage {
        node: node("vr-1"),
        run: 0x1122_3344_5566_7788,
        began_us: 1_700_000_000_000_000,
        first: 7,
        last: 40 + events.len() as u64,
        events,
    }
}

#[test]
fn events_keep_their_meaning() {
    let ask = || EventsAsk {
        run: 0x1122_3344_5566_7788,
        after: 40,
        wait_ms: 20_000,
    };
    let asked = vec![VolumeRequest::Control(VolumeControl::Events(ask()))];
    golden_batch("volume-events-requests", requests(asked));
    let told = vec![VolumeReply::Control(VolumeControlReply::Events(event_page(
        happenings(),
    )))];
    golden_batch("volume-events-replies", replies(told));
    let asked = vec![StorageRequest::Control(StorageControl::Events(ask()))];
    golden_batch("storage-events-requests", requests(asked));
    let told = vec![StorageReply::Control(StorageControlReply::Events(event_page(
        happenings(),
    )))];
    golden_batch("storage-events-replies", replies(told));
    let told = event_page(access_happenings());
    let told = vec![VolumeReply::Control(VolumeControlReply::Events(told))];
    golden_batch("volume-access-events", replies(told));
}

/// What happens without anybody asking, and where an operator wants a twin.
fn placements() -> Vec<What> {
    let host = || node("vr-2");
    vec![
        What::TwinHostSet {
            host: None,
            only: false,
        },
        What::TwinHostSet {
            host: Some(host()),
            only: true,
        },
        What::TwinSharesDomain {
            host: host(),
            domain: "rack-1".to_owned(),
        },
        What::FollowsIo {
            to: host(),
            from: "hv-2".to_owned(),
            percent: 93,
            bytes: ByteLen(1 << 30),
            window_s: 300,
        },
        What::Rebalances {
            to: host(),
            here: 12,
            there: 3,
        },
    ]
}

#[test]
fn events_about_placement_keep_their_meaning() {
    let mut page = event_page(happenings());
    page.events.truncate(5);
    for (event, what) in page.events.iter_mut().zip(placements()) {
        event.text = what.to_string();
        event.what = what;
    }
    let told = vec![VolumeReply::Control(VolumeControlReply::Events(page))];
    golden_batch("volume-placement-replies", replies(told));
}

#[test]
fn events_are_called_as_they_are_written() {
    let mut names = std::collections::BTreeSet::new();
    let all = happenings()
        .into_iter()
        .chain(placements())
        .chain(access_happenings());
    for what in all {
        let mut bytes = Vec::new();
        put_named(&mut bytes, &what);
        let written = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            written.contains(&format!("type{}", mark_of(what.name()))),
            "{what:?}"
        );
        names.insert(what.name());
    }
    assert_eq!(names.len(), 38, "one of each kind is tested");
}

/// A short string with its msgpack mark in front.
fn mark_of(text: &str) -> String {
    let mark = 0xa0 | u8::try_from(text.len()).unwrap();
    let bytes = [&[mark], text.as_bytes()].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a newer minor version may tell: kinds, reasons and fields that this one does not know.
#[derive(serde::Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Newer {
    MovedAway {
        to: &'static str,
        bytes: u64,
    },
    Owned {
        from: &'static str,
        epoch: u64,
        why: &'static str,
        replayed: u64,
        pause_ms: u64,
    },
}

#[test]
fn events_of_a_newer_version_keep_their_text() {
    #[derive(serde::Serialize)]
    struct NewerEvent {
        seq: u64,
        time_us: u64,
        level: Level,
        what: Newer,
        text: &'static str,
        color: &'static str,
    }
    let read = |what| {
        let event = NewerEvent {
            seq: 1,
            time_us: 2,
            level: Level::Info,
            what,
            text: "said",
            color: "blue",
        };
        let mut bytes = Vec::new();
        put_named(&mut bytes, &event);
        let event: PoolEvent = take_named(&mut bytes.as_slice(), "event").unwrap();
        assert_eq!((event.seq, event.text.as_str()), (1, "said"));
        event.what
    };
    assert_eq!(read(Newer::MovedAway { to: "vr-2", bytes: 7 }), What::Other);
    let owned = read(Newer::Owned {
        from: "vr-1",
        epoch: 3,
        why: "planned_move",
        replayed: 0,
        pause_ms: 12,
    });
    assert!(
        matches!(
            &owned,
            What::Owned {
                why: OwnedWhy::Other,
                epoch: Epoch(3),
                ..
            }
        ),
        "{owned:?}"
    );
}

#[test]
fn status_with_times_keeps_its_meaning() {
    let status = VolumeStatus {
        state_since_us: Some(1_700_000_000_000_000),
        path: Some("/vm1/disk.raw".to_owned()),
        dtl_trouble: Some("no other volume-router runs".to_owned()),
        ..volume_status()
    };
    let reply = VolumeReply::Control(VolumeControlReply::Volume(Box::new(status)));
    golden_batch("volume-since-replies", replies(vec![reply]));
}

fn volume_replies() -> Vec<VolumeReply> {
    let located = ReadExtent::Located {
        volume: VOLUME,
        sco: ScoId(77),
        epoch: Epoch(3),
        version: 2,
        first_slot: Slot(1000),
        crcs: vec![0, 1, u32::MAX],
    };
    let extents = [ExtentKind::Data, ExtentKind::Zeros, ExtentKind::Hole];
    let extents = extents.map(|kind| ExtentStatus {
        length: 1 << 33,
        kind,
    });
    let status = volume_status();
    let node = NodeStatus {
        node: node("node-b"),
        buffer_size: ByteLen(1 << 34),
        buffer_unstored: ByteLen(4 << 20),
        volumes: vec![status.clone()],
        queues: Vec::new(),
        erasing: Vec::new(),
    };
    let opened = VolumeControlReply::Opened {
        handle: 9,
        epoch: Epoch(3),
        size: status.size,
        read_only: false,
        snapshot: None,
        access: None,
    };
    let read = vec![
        ReadExtent::Data { length: 8192 },
        ReadExtent::Zeros { length: 4096 },
        located,
    ];
    let mut bodies = vec![
        VolumeReply::Done,
        VolumeReply::Read(read),
        VolumeReply::Extents(extents.to_vec()),
        VolumeReply::Control(opened),
        VolumeReply::Control(VolumeControlReply::Done),
        VolumeReply::Control(VolumeControlReply::Volume(Box::new(status))),
        VolumeReply::Control(VolumeControlReply::Node(node)),
    ];
    bodies.extend(refusals().into_iter().map(VolumeReply::Refused));
    bodies
}

#[test]
fn the_status_of_scrubbing_keeps_its_meaning() {
    let Some(mut status) = volume_replies().into_iter().find_map(|reply| match reply {
        VolumeReply::Control(VolumeControlReply::Volume(status)) => Some(status),
        _ => None,
    }) else {
        panic!("no reply is a volume's status");
    };
    status.scrub = Some(Box::new(ScrubReport {
        state: "sealing".to_owned(),
        stored: ByteLen(5 << 30),
        dead: ByteLen(2 << 30),
        to_win: ByteLen(1 << 30),
        won: ByteLen(7 << 30),
        objects: 1280,
        condemned: 3,
        rewritten: 400,
        removed: 50,
        failures: 1,
        last_success_us: 1_795_000_000_000_000,
        last_failure_us: 0,
        ..ScrubReport::default()
    }));
    let reply = VolumeReply::Control(VolumeControlReply::Volume(status.clone()));
    golden_batch("volume-scrub-replies", replies(vec![reply]));
    let report = status.scrub.as_mut().unwrap();
    (report.writing_at, report.helped, report.taken_back) = (Some(node("node-c")), 390, 2);
    let written = VolumeControlReply::BundleWritten {
        length: ByteLen(4 << 20),
    };
    let bodies = [VolumeControlReply::Volume(status.clone()), written].map(VolumeReply::Control);
    golden_batch("volume-scrub-job-replies", replies(bodies.to_vec()));
    let report = status.scrub.as_mut().unwrap();
    (report.swept, report.last_sweep_us) = (12, 1_795_000_000_000_000);
    let reply = VolumeReply::Control(VolumeControlReply::Volume(status));
    golden_batch("volume-scrub-sweep-replies", replies(vec![reply]));
}

fn sco(id: u64, version: u16) -> ObjectName {
    ObjectName::Sco {
        volume: VOLUME,
        id: ScoId(id),
        epoch: Epoch(3),
        version,
    }
}

/// Two SCOs of an earlier bundle, and one SCO.
fn bundle_job() -> (BundleJob, BundleIndex) {
    let source = |object, members| JobSource { object, members };
    let job = BundleJob {
        bundle: sco(77, 0x8001),
        sources: vec![source(sco(75, 0x8000), 2), source(sco(77, 0), 1)],
        pool: "fast".to_owned(),
        path: "/vm1/disk.raw".to_owned(),
        owner: node("node-b"),
        epoch: Epoch(4),
    };
    let member = |id| Member {
        sco: ScoId(id),
        epoch: Epoch(3),
        size: ScoSize::default(),
        length: ScoSize::default().file_len(),
        kept: vec![KeptCluster {
            slot: Slot(7),
            address: ClusterAddress(1 << 20),
            crc: 0xdead_beef,
        }],
    };
    let index = BundleIndex {
        volume: VOLUME,
        members: [73, 74, 77].map(member).to_vec(),
    };
    (job, index)
}

#[test]
fn the_job_of_a_bundle_keeps_its_meaning() {
    let job = VolumeControl::WriteBundle(Box::new(bundle_job().0));
    golden_batch(
        "volume-scrub-job-requests",
        requests(vec![VolumeRequest::Control(job)]),
    );
}

#[test]
fn a_job_is_of_the_bundle_whose_index_comes_beside_it() {
    type Change = fn(&mut BundleJob, &mut BundleIndex);
    const OTHER: VolumeId = VolumeId([1; 16]);
    const NAME: &str = "named after the last SCO";
    let (job, index) = bundle_job();
    assert_eq!(job.check(&index), Ok(()));
    let map = |volume| ObjectName::Map {
        volume,
        id: CheckpointId(77),
        epoch: Epoch(3),
    };
    assert!(sco(77, 0x8000).is_bundle() && !sco(77, 0x7fff).is_bundle() && !map(VOLUME).is_bundle());
    let changes: [(Change, &str); 12] = [
        (|job, _| job.bundle = sco(77, 0x7fff), NAME),
        (|job, _| job.bundle = sco(76, 0x8001), NAME),
        (|_, index| index.volume = OTHER, NAME),
        (|_, index| index.members.clear(), NAME),
        (|job, _| job.sources[0].object = sco(75, 1), "can hold"),
        (|job, _| job.sources[0].object = sco(73, 0x8000), "can hold"),
        (|job, _| job.sources[1].object = sco(78, 0), "can hold"),
        (|job, _| job.sources[0].members = 0, "can hold"),
        (|job, _| job.sources[1].members = u32::MAX, "as many in both"),
        (|job, _| job.sources.truncate(1), "as many in both"),
        (|job, _| job.sources.clear(), "as many in both"),
        (
            |job, index| {
                index.volume = OTHER;
                if let ObjectName::Sco { volume, .. } = &mut job.bundle {
                    *volume = OTHER;
                }
            },
            "same volume",
        ),
    ];
    for (change, says) in changes {
        let (mut job, mut index) = (job.clone(), index.clone());
        change(&mut job, &mut index);
        let said = job.check(&index).unwrap_err().to_string();
        assert!(said.contains(says), "{says:?} is not in {said:?}");
    }
}

#[test]
fn the_erasures_of_a_node_keep_their_meaning() {
    let status = NodeStatus {
        node: node("node-b"),
        buffer_size: ByteLen(1 << 34),
        buffer_unstored: ByteLen(0),
        volumes: Vec::new(),
        queues: Vec::new(),
        erasing: vec![ErasureStatus {
            volume: VOLUME,
            deleted: 77,
            state: "deleting".to_owned(),
        }],
    };
    let reply = VolumeReply::Control(VolumeControlReply::Node(status));
    golden_batch("volume-erasing-replies", replies(vec![reply]));
}

#[test]
fn storage_messages_keep_their_meaning() {
    let pool = || "fast".to_owned();
    let sco = ObjectName::Sco {
        volume: VOLUME,
        id: ScoId(77),
        epoch: Epoch(3),
        version: 2,
    };
    let map = ObjectName::Map {
        volume: VOLUME,
        id: CheckpointId(5),
        epoch: Epoch(3),
    };
    let manifest = ObjectName::Manifest {
        volume: VOLUME,
        seq: ManifestSeq(12),
        epoch: Epoch(3),
    };
    let mut bodies = vec![
        StorageRequest::Put {
            pool: pool(),
            name: sco,
        },
        StorageRequest::Get {
            pool: pool(),
            name: map,
            offset: 1 << 33,
            length: 4096,
            cached: false,
        },
    ];
    let controls = [
        StorageControl::Stat {
            pool: pool(),
            name: manifest,
        },
        StorageControl::Delete {
            pool: pool(),
            name: sco,
        },
        StorageControl::List {
            pool: pool(),
            volume: VOLUME,
            kind: ObjectKind::Sco,
            after: Some(sco),
            limit: 1000,
            everywhere: false,
        },
        StorageControl::ListVolumes {
            pool: pool(),
            after: None,
            limit: 10,
        },
        StorageControl::NodeStatus,
    ];
    bodies.extend(controls.map(StorageRequest::Control));
    golden_batch("storage-requests", requests(bodies));

    // As it is since reads may say that they are of guests.
    let cached = StorageRequest::Get {
        pool: pool(),
        name: map,
        offset: 1 << 33,
        length: 4096,
        cached: true,
    };
    golden_batch("storage-cached-get-requests", requests(vec![cached]));

    // As it is since whoever erases a volume has to know that nothing is left.
    let everywhere = StorageControl::List {
        pool: pool(),
        volume: VOLUME,
        kind: ObjectKind::Map,
        after: None,
        limit: 1000,
        everywhere: true,
    };
    golden_batch(
        "storage-list-everywhere-requests",
        requests(vec![StorageRequest::Control(everywhere)]),
    );

    let backend = BackendStatus {
        name: "disk-1".to_owned(),
        state: "ok".to_owned(),
        capacity: Some(ByteLen(1 << 40)),
        free: None,
        requests: 10,
        errors: 1,
        written: Written::default(),
    };
    let status = StorageNodeStatus {
        node: node("node-c"),
        backends: vec![backend],
        pools: Vec::new(),
    };
    let controls = [
        StorageControlReply::Stat { length: 4 << 20 },
        StorageControlReply::Names {
            names: vec![sco, map, manifest],
        },
        StorageControlReply::Volumes {
            volumes: vec![VOLUME],
        },
        StorageControlReply::Node(status),
    ];
    let mut bodies = vec![StorageReply::Done, StorageReply::Data];
    bodies.extend(controls.map(StorageReply::Control));
    bodies.extend(refusals().into_iter().map(StorageReply::Refused));
    golden_batch("storage-replies", replies(bodies));

    // As it is since back ends tell what was stored.
    let written = BackendStatus {
        name: "disk-2".to_owned(),
        state: "ok".to_owned(),
        capacity: None,
        free: None,
        requests: 4,
        errors: 0,
        written: Written {
            objects: 3,
            bytes: u64::MAX,
        },
    };
    let status = StorageNodeStatus {
        node: node("node-c"),
        backends: vec![written],
        pools: Vec::new(),
    };
    let bodies = vec![StorageReply::Control(StorageControlReply::Node(status))];
    golden_batch("storage-written-replies", replies(bodies));
}

#[test]
fn what_makes_pools_keeps_its_meaning() {
    let s3 = S3Place {
        bucket: "vms".to_owned(),
        endpoint: Some("https://s3.example:9000".to_owned()),
        region: Some("eu-west-1".to_owned()),
        folder: "a/b".to_owned(),
        style: Some("path".to_owned()),
        ca: Some("/etc/ca.pem".to_owned()),
        credentials: Some("file".to_owned()),
        credentials_file: Some("/etc/s3".to_owned()),
        profile: Some("vms".to_owned()),
    };
    let places = [
        BackendPlace::Directory("/srv/disk-1".to_owned()),
        BackendPlace::S3(Box::new(s3)),
    ];
    let names = ["disk-1", "bucket-1"];
    let pool = PoolRecord {
        keys: vec![KeyPrint {
            id: 2,
            fingerprint: u64::MAX,
        }],
        ..PoolRecord::proposed(
            "vms".to_owned(),
            Protection::Erasure { data: 4, parity: 2 },
            (1..7).map(|n| format!("disk-{n}")),
            Some(Compression::Zstd),
            true,
        )
    };
    let add = |(name, place): (&str, &BackendPlace)| StorageControl::AddBackend {
        name: node(name),
        place: place.clone(),
    };
    let mut asked: Vec<StorageControl> = names.into_iter().zip(&places).map(add).collect();
    asked.push(StorageControl::CreatePool { pool: pool.clone() });
    let asked = asked.into_iter().map(StorageRequest::Control);
    golden_batch("storage-pool-requests", requests(asked.collect()));

    let added = |(name, place): (&str, BackendPlace)| {
        StorageControlReply::Backend(BackendRecord {
            name: name.to_owned(),
            id: BackendId(7),
            place: Some(place),
        })
    };
    let mut told: Vec<StorageControlReply> = names.into_iter().zip(places).map(added).collect();
    told.push(StorageControlReply::Pool(pool));
    told.push(StorageControlReply::Node(StorageNodeStatus {
        node: node("node-c"),
        backends: Vec::new(),
        pools: vec![PoolStatus {
            name: "vms".to_owned(),
            state: "it lacks key 2".to_owned(),
        }],
    }));
    let told = told.into_iter().map(StorageReply::Control);
    golden_batch("storage-pool-replies", replies(told.collect()));
}

#[test]
fn what_changes_a_placement_keeps_its_meaning() {
    let weights = [("disk-1", 0), ("disk-4", 2)].map(|(backend, weight)| PlacementEntry {
        backend: backend.to_owned(),
        weight,
    });
    let lost = ["disk-1".to_owned()];
    let place = StorageControl::PlacePool {
        pool: "vms".to_owned(),
        weights: weights.to_vec(),
        lost: lost.to_vec(),
    };
    golden_batch(
        "storage-place-requests",
        requests(vec![StorageRequest::Control(place)]),
    );

    let backends = (1..4).map(|number| format!("disk-{number}"));
    let pool = PoolRecord::proposed("vms".to_owned(), Protection::Replicas(2), backends, None, false);
    let announced = pool.announcing(&weights, &lost);
    let placing = announced.placing();
    let settled = placing.settled();
    let told =
        [announced, placing, settled].map(|pool| StorageReply::Control(StorageControlReply::Pool(pool)));
    golden_batch("storage-place-replies", replies(told.to_vec()));
}

#[test]
fn registry_messages_keep_their_meaning() {
    let lease = LeaseId(77);
    let key = || "volume/x".to_owned();
    let change = Change {
        key: key(),
        expected: Some(Revision(41)),
        value: Some(vec![1, 2, 255]),
        lease: Some(lease),
    };
    let deletion = Change {
        key: key(),
        expected: None,
        value: None,
        lease: None,
    };
    let bodies = vec![
        RegistryRequest::Get { key: key() },
        RegistryRequest::List {
            prefix: "volume/".to_owned(),
            after: Some(key()),
            limit: 1000,
        },
        RegistryRequest::Commit {
            changes: vec![change, deletion],
        },
        RegistryRequest::Watch {
            prefix: String::new(),
            after: Revision(41),
            wait_ms: 30_000,
        },
        RegistryRequest::LeaseGrant { ttl_ms: 5000 },
        RegistryRequest::LeaseKeepAlive { lease },
        RegistryRequest::LeaseRevoke { lease },
    ];
    golden_batch("registry-requests", requests(bodies));

    let revision = Revision(42);
    let entry = Entry {
        key: key(),
        value: vec![1, 2, 255],
        revision: Revision(41),
    };
    let event = WatchEvent {
        key: key(),
        entry: Some(entry.clone()),
        revision: Revision(41),
    };
    let deleted = WatchEvent {
        key: key(),
        entry: None,
        revision,
    };
    let mut bodies = vec![
        RegistryReply::Entry {
            entry: Some(entry.clone()),
            revision,
        },
        RegistryReply::Entry {
            entry: None,
            revision,
        },
        RegistryReply::Entries {
            entries: vec![entry],
            more: true,
            revision,
        },
        RegistryReply::Committed { revision },
        RegistryReply::Conflict {
            key: key(),
            found: revision,
        },
        RegistryReply::Events {
            events: vec![event, deleted],
            revision,
            lost: true,
        },
        RegistryReply::Lease { lease },
        RegistryReply::Done,
    ];
    bodies.extend(
        refusals()
            .into_iter()
            .map(|refusal| RegistryReply::Refused { refusal }),
    );
    golden_batch("registry-replies", replies(bodies));
}

#[test]
fn what_a_newer_minor_version_adds_is_passed_over() {
    // Requests with a field more, in a header with a field more.
    let mut frame = Vec::new();
    put_array(&mut frame, 4);
    put_uint(&mut frame, 2);
    put_uint(&mut frame, 9);
    put_array(&mut frame, 1);
    put_array(&mut frame, 6);
    [1, 0, 0, 5]
        .into_iter()
        .for_each(|field| put_uint(&mut frame, field));
    put_array(&mut frame, 9);
    [0, 3, 70_000, 69_000, 1, 5, 5 << 40, 4096]
        .into_iter()
        .for_each(|field| put_uint(&mut frame, field));
    put_str(&mut frame, "a field of tomorrow");
    put_array(&mut frame, 0);
    put_uint(&mut frame, 1);
    let header = Header::decode(&frame, 0).unwrap();
    let request = Request {
        id: 1,
        data_len: 0,
        reply_len: 0,
        trace: Trace::from(5),
        body: VolumeRequest::Io(io(IoCode::Write)),
    };
    let requests = vec![request];
    assert_eq!(header, Header::Requests { mark: 9, requests });
}

const CAUSE: Cause = Cause {
    trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
    span_id: 0x00f0_67aa_0ba9_02b7,
};

#[test]
fn a_recorded_request_names_its_cause() {
    let (data_len, header) = requests(vec![VolumeRequest::Io(io(IoCode::Write)); 2]);
    let Header::Requests { mark, mut requests } = header else {
        unreachable!("it is a batch of requests");
    };
    requests[1].trace.cause = Some(CAUSE);
    golden(
        "recorded-requests",
        data_len,
        &Header::Requests { mark, requests },
    );
}

/// What a build before 1.2 does with a cause, and what this one does with what later ones may put there.
#[test]
fn a_cause_that_is_none_or_has_more_to_it_is_no_error() {
    let high = 0x4bf9_2f35_77b3_4da6;
    let low = 0xa3ce_929d_0e0e_4736;
    let span = CAUSE.span_id;
    let cases: [(&[u64], Option<Cause>); 8] = [
        (&[], None),
        (&[high, low, span], None),
        (&[high, low, span, 1], Some(CAUSE)),
        (&[high, low, span, 0x81], Some(CAUSE)),
        (&[high, low, span, 0], None),
        (&[high, low, 0, 1], None),
        (&[0, 0, span, 1], None),
        (&[high, low, span, 1, 77], Some(CAUSE)),
    ];
    for (fields, wanted) in cases {
        let mut frame = Vec::new();
        put_array(&mut frame, 3);
        put_uint(&mut frame, 2);
        put_uint(&mut frame, 9);
        put_array(&mut frame, 1);
        put_array(&mut frame, 7);
        for field in [1, 0, 0, 5] {
            put_uint(&mut frame, field);
        }
        VolumeRequest::Io(io(IoCode::Write)).encode(&mut frame);
        put_array(&mut frame, fields.len());
        fields.iter().for_each(|field| put_uint(&mut frame, *field));
        put_str(&mut frame, "a field of tomorrow");
        let header = Header::<VolumeRequest>::decode(&frame, 0).unwrap();
        let Header::Requests { requests, .. } = header else {
            unreachable!("it is a batch of requests");
        };
        assert_eq!(requests[0].trace.cause, wanted, "{fields:?}");
        assert_eq!(requests[0].trace.operation, 5);
    }
}

#[test]
fn shares_that_do_not_add_up_to_the_data_frame_are_refused() {
    let (data_len, header) = replies(volume_replies());
    let mut frame = Vec::new();
    header.encode(&mut frame);
    for wrong in [0, data_len - 1, data_len + 1] {
        let error = Header::<VolumeReply>::decode(&frame, wrong)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("{wrong} bytes long")), "{error}");
    }
}

prop_compose! {
    fn any_io()(
        handle: u32, number: u64, below: u64, code in 0..CODES.len(), flags: u8, offset: u64, length: u64,
    ) -> VolumeRequest {
        VolumeRequest::Io(IoRequest { handle, number, below, code: CODES[code], flags: IoFlags(flags), offset, length })
    }
}

fn any_extent() -> impl Strategy<Value = ReadExtent> {
    let located = (
        any::<[u8; 16]>(),
        any::<[u64; 2]>(),
        any::<u16>(),
        any::<u16>(),
        any::<Vec<u32>>(),
    );
    prop_oneof![
        any::<u32>().prop_map(|length| ReadExtent::Data { length }),
        any::<u32>().prop_map(|length| ReadExtent::Zeros { length }),
        located.prop_map(
            |(volume, [sco, epoch], version, slot, crcs)| ReadExtent::Located {
                volume: VolumeId(volume),
                sco: ScoId(sco),
                epoch: Epoch(epoch),
                version,
                first_slot: Slot(slot),
                crcs,
            }
        ),
    ]
}

fn round_trip<B: Body + Debug + PartialEq + Clone>(data_len: usize, header: &Header<B>) {
    let mut frame = Vec::new();
    header.encode(&mut frame);
    assert_eq!(Header::decode(&frame, data_len).as_ref(), Ok(header));
}

proptest! {
    #[test]
    fn requests_decode_to_what_was_encoded(bodies in prop::collection::vec(any_io(), 0..50)) {
        let (data_len, header) = requests(bodies);
        round_trip(data_len, &header);
    }

    #[test]
    fn replies_decode_to_what_was_encoded(
        reads in prop::collection::vec(prop::collection::vec(any_extent(), 0..20), 0..20), text: String,
    ) {
        let mut bodies: Vec<VolumeReply> = reads.into_iter().map(VolumeReply::Read).collect();
        let cut = text.floor_char_boundary(Refusal::TEXT_MAX);
        bodies.push(VolumeReply::Refused(Refusal::retry(RefusalCode::NoSpace, &text[..cut])));
        let (data_len, header) = replies(bodies);
        round_trip(data_len, &header);
    }

    #[test]
    fn registry_values_of_any_bytes_survive(key: String, value: Vec<u8>) {
        let change = Change { key, expected: None, value: Some(value), lease: None };
        let (data_len, header) = requests(vec![RegistryRequest::Commit { changes: vec![change] }]);
        round_trip(data_len, &header);
    }
}
