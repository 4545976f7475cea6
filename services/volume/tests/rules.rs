//! Single rules of the engine that a random life reaches too seldom: long changes, a full map, a clock that goes back,
//! a size that changes under a waiting write.
//!
//! The host here keeps nothing: it opens SCOs and holds batches at once, and leaves lying what takes time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::DtlMode;
use sconce_schemas::wire::RefusalCode;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::{ByteLen, Epoch, ScoId, ScoSize, SessionId, VolumeId, VolumeSize};
use sconce_volume::{
    CheckpointPolicy, Effect, Event, FetchId, Frozen, Recovery, ScrubPolicy, SessionSlot, Step, SweepPolicy,
    Ticket, Volume, VolumeConfig,
};

const SIZE: u64 = 1 << 40;
const ROOMY: u64 = 256 << 20;

struct Host {
    volume: Volume,
    session: SessionSlot,
    number: u64,
    now_us: u64,
    turns: usize,
    fetches: Vec<FetchId>,
    closed: Vec<ScoId>,
    uploads: Vec<ScoId>,
    checkpoints: Vec<Arc<Frozen>>,
    manifests: Vec<Manifest>,
    replies: Vec<(u64, VolumeReply)>,
}

impl Host {
    fn new(map_memory: u64) -> Self {
        let config = VolumeConfig {
            id: VolumeId([4; 16]),
            epoch: Epoch(1),
            path: "/rules.raw".into(),
            pool: "default".into(),
            sco_size: ScoSize::new(1024).unwrap(),
            initial_size: VolumeSize::new(SIZE).unwrap(),
            epochs: Vec::new(),
            origin: None,
            map_memory: ByteLen(map_memory),
            checkpoint: CheckpointPolicy::default(),
            scrub: ScrubPolicy::default(),
            sweep: SweepPolicy {
                every_us: 0,
                ..SweepPolicy::default()
            },
            dtl: DtlMode::None,
            dtl_behind: ByteLen(0),
        };
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, _) = recovery.finish();
        let session = volume.open_session(SessionId(1)).unwrap();
        let mut host = Self {
            volume,
            session,
            number: 0,
            now_us: 1_000_000_000,
            turns: 0,
            fetches: Vec::new(),
            closed: Vec::new(),
            uploads: Vec::new(),
            checkpoints: Vec::new(),
            manifests: Vec::new(),
            replies: Vec::new(),
        };
        // The first manifest, of an empty volume.
        host.tick();
        host.store();
        host
    }

    fn feed(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.volume.apply(event, &mut effects);
        for effect in effects {
            match effect {
                Effect::OpenSco { header } => self.feed(Event::ScoOpened { sco: header.id }),
                Effect::Append(append) => self.feed(Event::AppendHeld { upto: append.seq }),
                Effect::CloseSco { sco } => self.closed.push(sco),
                Effect::Upload { sco, .. } => self.uploads.push(sco),
                Effect::StoreCheckpoint { frozen } => self.checkpoints.push(frozen),
                Effect::StoreManifest { manifest } => self.manifests.push(*manifest),
                Effect::Reply { ticket, reply } => self.replies.push((ticket.0, reply)),
                Effect::Fetch { fetch, .. } => self.fetches.push(fetch),
                Effect::Turn => self.turns += 1,
                Effect::Evictable { .. } => {}
                other => unreachable!("{other:?}"),
            }
        }
    }

    /// Sends a change; gives its number.
    fn change(&mut self, code: IoCode, flags: u8, offset: u64, length: u64) -> u64 {
        self.number += 1;
        let data = if code == IoCode::Write {
            vec![1; usize::try_from(length).unwrap()]
        } else {
            Vec::new()
        };
        let request = IoRequest {
            handle: 0,
            number: self.number,
            below: 0,
            code,
            flags: IoFlags(flags),
            offset,
            length,
        };
        self.feed(Event::Io {
            ticket: Ticket(self.number),
            session: self.session,
            request,
            data: Bytes::from(data),
        });
        self.feed(Event::BatchEnd { now_us: self.now_us });
        self.number
    }

    fn tick(&mut self) {
        self.feed(Event::Tick {
            now_us: self.now_us,
            pressed: false,
        });
        self.feed(Event::BatchEnd { now_us: self.now_us });
    }

    /// Stores everything that is to be stored, once.
    fn store(&mut self) {
        for sco in std::mem::take(&mut self.closed) {
            self.feed(Event::ScoSynced { sco });
        }
        for sco in std::mem::take(&mut self.uploads) {
            self.feed(Event::ScoStored { sco });
        }
        for frozen in std::mem::take(&mut self.checkpoints) {
            let (_, roots) = frozen.encode().unwrap();
            drop(frozen);
            self.feed(Event::CheckpointStored { roots });
        }
        for manifest in std::mem::take(&mut self.manifests) {
            self.feed(Event::ManifestStored { seq: manifest.seq });
        }
    }

    fn reply(&self, number: u64) -> Option<&VolumeReply> {
        let found = self.replies.iter().find(|(ticket, _)| *ticket == number);
        found.map(|(_, reply)| reply)
    }

    fn is_done(&self, number: u64) -> bool {
        matches!(self.reply(number), Some(VolumeReply::Done))
    }
}

#[test]
fn a_write_that_waited_across_a_shrink_does_not_grow_the_volume_again() {
    let mut host = Host::new(ROOMY);
    host.change(IoCode::Write, 0, 1 << 30, 4096);
    let waits = host.change(IoCode::Write, 0, (1 << 30) + 512, 512);
    let [fetch] = host.fetches[..] else {
        unreachable!("it covers a cluster in part")
    };
    let shrink = host.change(IoCode::Resize, 0, 1 << 20, 0);
    assert!(host.is_done(shrink));
    host.feed(Event::Fetched {
        fetch,
        result: Ok(Bytes::from(vec![1; 4096])),
    });
    assert_eq!(host.volume.size().bytes(), 1 << 20);
    match host.reply(waits) {
        Some(VolumeReply::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::OutOfRange),
        other => unreachable!("{other:?}"),
    }
    // One that may extend the volume does.
    let extends = host.change(IoCode::Write, IoFlags::EXTEND, 1 << 21, 4096);
    assert!(host.is_done(extends));
    assert_eq!(host.volume.size().bytes(), (1 << 21) + 4096);
}

#[test]
fn a_shrink_that_waited_zeroes_by_the_size_that_is() {
    let mut host = Host::new(ROOMY);
    let small = (1 << 20) + 512;
    let shrink = host.change(IoCode::Resize, 0, small, 0);
    assert!(host.is_done(shrink));
    host.change(IoCode::Resize, 0, SIZE, 0);
    host.change(IoCode::Write, 0, 1 << 20, 4096);
    // What is left of its last cluster has to be zeros: the old content is needed.
    let shrink = host.change(IoCode::Resize, 0, small, 0);
    assert!(!host.is_done(shrink));
    let fetch = host.fetches.pop().unwrap();
    host.feed(Event::Fetched {
        fetch,
        result: Ok(Bytes::from(vec![1; 4096])),
    });
    host.feed(Event::BatchEnd { now_us: host.now_us });
    assert!(host.is_done(shrink));
}

#[test]
fn a_long_change_is_done_in_pieces_with_others_in_between() {
    for (code, flags) in [
        (IoCode::WriteZeroes, IoFlags::NO_HOLE),
        (IoCode::Discard, 0),
        (IoCode::Resize, 0),
    ] {
        let mut host = Host::new(ROOMY);
        // 1 GiB of allocated zeros, so that a discard has something to do.
        let zeroes = host.change(IoCode::WriteZeroes, IoFlags::NO_HOLE, 0, 1 << 30);
        let finish = |host: &mut Host, number| {
            let mut pieces = 0;
            while !host.is_done(number) {
                let before = host.volume.status().allocated.0;
                assert!(host.turns <= 1, "one turn at a time");
                if std::mem::take(&mut host.turns) > 0 {
                    host.feed(Event::Turn);
                    host.feed(Event::BatchEnd { now_us: host.now_us });
                    pieces += 1;
                }
                let touched = host.volume.status().allocated.0.abs_diff(before);
                assert!(touched <= 160 << 20, "{touched} bytes in one event");
                host.store();
            }
            pieces
        };
        assert!(finish(&mut host, zeroes) >= 7);
        let change = match code {
            IoCode::Resize => host.change(code, flags, 4096, 0),
            _ => host.change(code, flags, 0, 1 << 30),
        };
        assert!(!host.is_done(change), "{code:?} of a gigabyte in one event");
        let between = host.change(IoCode::Write, 0, 0, 4096);
        assert!(host.is_done(between), "it did not have to wait");
        let pieces = finish(&mut host, change);
        assert!(pieces >= 7, "{code:?} in {pieces} pieces");
    }
}

#[test]
fn changes_wait_while_the_map_is_full_and_a_checkpoint_runs() {
    let memory_max = 256 << 10;
    let mut host = Host::new(memory_max);
    let mut numbers = Vec::new();
    // Each write touches a leaf of its own; nothing is stored meanwhile.
    for at in 0..10_000_u64 {
        numbers.push(host.change(IoCode::Write, 0, at << 21, 4096));
        let memory = host.volume.status().map_memory.0;
        assert!(
            memory <= memory_max * 2 + (64 << 10),
            "{memory} bytes of map nodes"
        );
    }
    assert!(host.volume.status().held > 0);
    assert_eq!(host.volume.status().held + host.replies.len(), numbers.len());
    // As checkpoints are stored, they all go on.
    for _ in 0..1000 {
        host.store();
        host.now_us += 10_000_000;
        host.tick();
    }
    assert_eq!(host.volume.status().held, 0);
    assert!(numbers.iter().all(|number| host.is_done(*number)));
}

#[test]
fn a_clock_that_is_set_back_delays_no_checkpoint() {
    let mut host = Host::new(ROOMY);
    host.change(IoCode::Write, 0, 0, 4096);
    assert!(host.checkpoints.is_empty());
    host.now_us -= 900_000_000;
    host.tick();
    assert!(host.checkpoints.is_empty(), "not idle yet");
    host.now_us += 6_000_000;
    host.tick();
    assert_eq!(host.checkpoints.len(), 1);
}
