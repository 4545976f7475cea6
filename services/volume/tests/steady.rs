//! The steady state of a full volume under uniform random overwrites of single clusters: how much is written to the back ends
//! for what guests write, in bytes and requests, how full of live clusters they are, and in how many objects.
//!
//! The host keeps no data: of each object its TLog or index, and its length. Everything else is done at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex, Member};
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::DtlMode;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::{ByteLen, Epoch, ObjectName, ScoId, ScoSize, SessionId, VolumeId, VolumeSize};
use sconce_volume::{
    BundlePlan, CheckpointPolicy, Effect, Event, Recovery, ScoObject, ScrubPolicy, SessionSlot, Step,
    SweepPolicy, Ticket, Volume, VolumeConfig,
};

const ID: VolumeId = VolumeId([4; 16]);
const SLOTS: u64 = 128;
/// SCOs that the volume fills.
const SCOS: u64 = 256;
const CLUSTERS: u64 = SCOS * SLOTS;
/// Writes of one batch.
const BATCH: u64 = 8;
/// A tick after this many writes: a second at some 10 MiB/s.
const TICK: u64 = 20 * SLOTS;

/// What the back ends were given.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    guest: u64,
    sco_puts: u64,
    sco_bytes: u64,
    bundle_puts: u64,
    bundle_bytes: u64,
    map_puts: u64,
    map_bytes: u64,
}

struct Host {
    volume: Volume,
    session: SessionSlot,
    number: u64,
    now_us: u64,
    /// TLogs of SCOs, indexes of bundles, and lengths.
    objects: BTreeMap<(ScoId, u16), (Vec<u8>, u64)>,
    /// Lengths of checkpoints and manifests.
    others: BTreeMap<ObjectName, u64>,
    counts: Counts,
    events: VecDeque<Event>,
    chance: fastrand::Rng,
    data: Bytes,
}

impl Host {
    fn new() -> Self {
        let config = VolumeConfig {
            id: ID,
            epoch: Epoch(1),
            path: "/steady.raw".into(),
            pool: "default".into(),
            sco_size: ScoSize::new(SLOTS).unwrap(),
            initial_size: VolumeSize::new(CLUSTERS * 4096).unwrap(),
            epochs: Vec::new(),
            origin: None,
            map_memory: ByteLen(1 << 30),
            checkpoint: CheckpointPolicy {
                renewal_bytes: 64 << 10,
                ..CheckpointPolicy::default()
            },
            scrub: ScrubPolicy {
                grace_us: 1,
                ..ScrubPolicy::default()
            },
            sweep: SweepPolicy {
                pause_us: 1,
                grace_us: 1,
                ..SweepPolicy::default()
            },
            dtl: DtlMode::None,
            dtl_behind: ByteLen(0),
        };
        let mut recovery = Recovery::new(config, None, &[]).unwrap();
        assert_eq!(recovery.step(), Step::Done);
        let (mut volume, _) = recovery.finish();
        let session = volume.open_session(SessionId(1)).unwrap();
        Self {
            volume,
            session,
            number: 0,
            now_us: 1_000_000_000,
            objects: BTreeMap::new(),
            others: BTreeMap::new(),
            counts: Counts::default(),
            events: VecDeque::new(),
            chance: fastrand::Rng::with_seed(1),
            data: Bytes::from_static(&[7; 4096]),
        }
    }

    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        while let Some(event) = self.events.pop_front() {
            let mut effects = Vec::new();
            self.volume.apply(event, &mut effects);
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let event = match effect {
            Effect::OpenSco { header } => {
                let size = usize::try_from(header.size.data_offset()).unwrap();
                let mut areas = header.to_bytes().to_vec();
                areas.resize(size, 0);
                self.objects.insert((header.id, 0), (areas, 0));
                Event::ScoOpened { sco: header.id }
            }
            Effect::Append(append) => {
                let (areas, _) = self.objects.get_mut(&(append.sco, 0)).unwrap();
                let at = usize::try_from(ScoSize::HEADER_AREA + append.tlog_offset).unwrap();
                areas[at..at + append.tlog.len()].copy_from_slice(&append.tlog);
                Event::AppendHeld { upto: append.seq }
            }
            Effect::CloseSco { sco } => Event::ScoSynced { sco },
            Effect::Sync { upto } => Event::Synced { upto },
            Effect::Upload { sco, length, .. } => {
                self.counts.sco_puts += 1;
                self.counts.sco_bytes += length.0;
                self.objects.get_mut(&(sco, 0)).unwrap().1 = length.0;
                Event::ScoStored { sco }
            }
            Effect::StoreCheckpoint { frozen } => {
                let (objects, roots) = frozen.encode().unwrap();
                for object in objects {
                    self.put(
                        ObjectName::Map {
                            volume: ID,
                            id: object.id,
                            epoch: object.epoch,
                        },
                        object.bytes.len(),
                    );
                }
                Event::CheckpointStored { roots }
            }
            Effect::StoreManifest { manifest } => {
                let name = ObjectName::Manifest {
                    volume: ID,
                    seq: manifest.seq,
                    epoch: manifest.epoch,
                };
                self.put(name, manifest.to_bytes().len());
                Event::ManifestStored { seq: manifest.seq }
            }
            Effect::ReadTlog { object } => {
                let (bytes, _) = &self.objects[&(object.sco, object.version)];
                let result = Ok(Bytes::copy_from_slice(bytes));
                Event::TlogRead { object, result }
            }
            Effect::WriteBundle { plan } => self.write(&plan),
            Effect::DeleteSco { object } => {
                assert!(self.objects.remove(&(object.sco, object.version)).is_some());
                Event::ScoDeleted { object, done: true }
            }
            Effect::Turn => Event::Turn,
            Effect::List { kind, after } => Event::Listed {
                result: Ok(self.page(kind, after)),
            },
            Effect::Delete { names } => {
                for name in &names {
                    assert!(self.others.remove(name).is_some(), "{name}");
                }
                Event::Deleted { done: true }
            }
            Effect::Reply { reply, .. } => {
                assert!(matches!(reply, VolumeReply::Done), "{reply:?}");
                return;
            }
            Effect::Evictable { .. } => return,
            other => unreachable!("{other:?}"),
        };
        self.events.push_back(event);
    }

    fn put(&mut self, name: ObjectName, length: usize) {
        self.counts.map_puts += 1;
        self.counts.map_bytes += length as u64;
        assert!(self.others.insert(name, length as u64).is_none());
    }

    fn page(&self, kind: ObjectKind, after: Option<ObjectName>) -> Vec<ObjectName> {
        let scos = self.objects.keys().map(|(id, version)| ObjectName::Sco {
            volume: ID,
            id: *id,
            epoch: Epoch(1),
            version: *version,
        });
        let all = scos.chain(self.others.keys().copied());
        let behind = |name: &ObjectName| name.kind() == kind && after.is_none_or(|after| *name > after);
        all.filter(behind).take(1000).collect()
    }

    /// Bytes of the checkpoints that are there.
    fn map_bytes(&self) -> u64 {
        let maps = self
            .others
            .iter()
            .filter(|(name, _)| name.kind() == ObjectKind::Map);
        maps.map(|(_, length)| length).sum()
    }

    fn write(&mut self, plan: &BundlePlan) -> Event {
        let scos = plan.sources.iter().flat_map(|source| &source.scos);
        let members = scos.filter(|sco| !sco.kept.is_empty()).map(|sco| Member {
            sco: sco.sco,
            epoch: sco.epoch,
            size: sco.size,
            length: sco.size.file_len(),
            kept: sco.kept.clone(),
        });
        let index = BundleIndex {
            volume: ID,
            members: members.collect(),
        };
        index.check().unwrap();
        let above = plan.above;
        let version = above.version.max(BUNDLE_FROM - 1) + 1;
        self.counts.bundle_puts += 1;
        self.counts.bundle_bytes += index.object_len();
        let object = (index.to_bytes(), index.object_len());
        assert!(self.objects.insert((above.sco, version), object).is_none());
        Event::BundleWritten {
            above,
            to: Some(version),
        }
    }

    fn write_cluster(&mut self, cluster: u64) {
        self.number += 1;
        self.counts.guest += 4096;
        let request = IoRequest {
            handle: 0,
            number: self.number,
            below: self.number,
            code: IoCode::Write,
            flags: IoFlags(0),
            offset: cluster * 4096,
            length: 4096,
        };
        self.feed(Event::Io {
            ticket: Ticket(self.number),
            session: self.session,
            request,
            data: self.data.clone(),
        });
        let batch_ends = self.number.is_multiple_of(BATCH);
        self.now_us += 1_000_000 / TICK;
        if batch_ends {
            self.feed(Event::BatchEnd { now_us: self.now_us });
        }
        if self.number.is_multiple_of(TICK) {
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.feed(Event::Tick {
            now_us: self.now_us,
            pressed: false,
        });
    }

    /// Overwrites as much as the volume holds.
    fn overwrite(&mut self) {
        for _ in 0..CLUSTERS {
            let cluster = self.chance.u64(0..CLUSTERS);
            self.write_cluster(cluster);
        }
    }

    /// Slots that the SCO table has, and how many of them are live; the objects that it refers to.
    fn table(&self) -> (u64, u64, BTreeSet<(ScoId, u16)>) {
        let states = self.volume.sco_states().unwrap();
        let (mut slots, mut live, mut objects) = (0, 0, BTreeSet::new());
        for (sco, state) in states {
            let ScoObject { sco, version, .. } = self.volume.object_of(sco, state);
            objects.insert((sco, version));
            slots += u64::from(state.slots);
            live += u64::from(state.live);
        }
        (slots, live, objects)
    }
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "shares, for people")]
fn what_scrubbing_costs_at_four_fifths_of_live_clusters() {
    let mut host = Host::new();
    for cluster in 0..CLUSTERS {
        host.write_cluster(cluster);
    }
    for _ in 0..5 {
        host.overwrite();
    }
    let before = host.counts;
    let (mut utilisation, mut objects, rounds) = (0.0, 0.0, 4);
    for _ in 0..rounds {
        host.overwrite();
        let (slots, live, referred) = host.table();
        utilisation += live as f64 / slots as f64 / f64::from(rounds);
        objects += referred.len() as f64 / slots.div_ceil(SLOTS) as f64 / f64::from(rounds);
    }
    let after = host.counts;
    let guest = (after.guest - before.guest) as f64;
    let share = |part: fn(&Counts) -> u64| (part(&after) - part(&before)) as f64 / guest;
    let (data, scrub, map) = (
        share(|counts| counts.sco_bytes),
        share(|counts| counts.bundle_bytes),
        share(|counts| counts.map_bytes),
    );
    // In units of full SCOs, 256 in a GiB of 4 MiB each.
    let puts = |part: fn(&Counts) -> u64| share(part) * (SLOTS * 4096) as f64;
    let (data_puts, scrub_puts, map_puts) = (
        puts(|counts| counts.sco_puts),
        puts(|counts| counts.bundle_puts),
        puts(|counts| counts.map_puts),
    );
    let kept = host.map_bytes() as f64 / (CLUSTERS * 12) as f64;
    let found = format!(
        "a byte of guests costs {:.3}: data {data:.3}, scrubs {scrub:.3}, maps {map:.3}; a SCO of them costs requests: data \
         {data_puts:.3}, scrubs {scrub_puts:.3}, maps {map_puts:.3}; {utilisation:.3} live, {objects:.3} objects a full one; {kept:.3} times the map is kept",
        data + scrub + map
    );
    println!("{found}");
    assert!(data + scrub + map <= 3.0, "{found}");
    assert!((0.95..=1.05).contains(&data_puts), "{found}");
    assert!(utilisation >= 0.78, "{found}");
    assert!(objects <= 1.6, "{found}");
    assert!(map <= 0.1, "{found}");
    // Nothing but the head is kept: what was stored for it grows to some times what it takes, and no further.
    assert!(kept <= 8.0, "{found}");

    // Then nothing else is written: it becomes as full as it is to be, and no object is left over.
    for _ in 0..100 {
        host.now_us += 10_000_000;
        host.tick();
    }
    let (slots, live, referred) = host.table();
    assert_eq!(live, CLUSTERS);
    assert!(
        slots * 80 <= live * 100 + SLOTS * 100,
        "{live} of {slots} slots are live"
    );
    let there: BTreeSet<_> = host.objects.keys().copied().collect();
    let open = there.difference(&referred).count();
    assert!(
        open <= 1,
        "beside the open SCO, what the table refers to is there, and nothing else"
    );
    assert!(
        !host.volume.status().wants_ticks,
        "{:?}",
        host.volume.scrub_status()
    );
}
