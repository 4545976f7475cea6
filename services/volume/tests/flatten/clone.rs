//! A parent, its clone, and what the clone must hold.
//!
//! Keeps: the model: the stamp of each cluster, of the head and of each snapshot.
//! Order: one operation of the guest at a time; anything else ends in between.
//! Crash: what was acknowledged stays; a request that was not is asked again.
//! Knows no map.

use std::collections::BTreeMap;

use bytes::Bytes;
use sconce_schemas::wire::volume::{IoCode, IoFlags, IoRequest, VolumeReply};
use sconce_schemas::{ScoId, Slot, SnapshotId, VolumeId};
use sconce_volume::{Ask, CloneOf, Event, Extent, MomentAsk, Ticket};

use crate::host::{Host, SIZE};
use crate::store::Store;

const PARENT: VolumeId = VolumeId([1; 16]);
const CLONE: VolumeId = VolumeId([2; 16]);
/// Where there is anything: leaves side by side, and one far away.
const REGIONS: [std::ops::Range<u64>; 3] = [0..40, 500..560, 700_000..700_040];
/// Leaves with one cluster each, which the clone writes before it is asked to be independent: nothing in them is to be copied,
/// and their nodes are changes of the parent's.
const LONE: std::ops::Range<u64> = 100..108;
/// The first of a leaf that has nothing but allocated zeros, and never changes.
const ZEROS: u64 = 120 * 512;
const SNAPSHOTS_MAX: usize = 4;

/// Where there is anything but zeros.
fn everywhere() -> impl Iterator<Item = std::ops::Range<u64>> {
    let lone = LONE.map(|leaf| leaf * 512..leaf * 512 + 1);
    REGIONS.into_iter().chain(lone)
}

type Model = BTreeMap<u64, u64>;

struct Past {
    from_us: u64,
    to_us: u64,
    head: Model,
}

/// What came about.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) copied: u64,
    pub(crate) crashes: u64,
    /// Writes while something was being copied.
    pub(crate) raced: u64,
    pub(crate) failed: u64,
    pub(crate) rollbacks: u64,
    /// Moments of its history, and those of them that were had while it was being flattened.
    pub(crate) moments: u64,
    pub(crate) moments_meanwhile: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.copied += other.copied;
        self.crashes += other.crashes;
        self.raced += other.raced;
        self.failed += other.failed;
        self.rollbacks += other.rollbacks;
        self.moments += other.moments;
        self.moments_meanwhile += other.moments_meanwhile;
    }
}

pub(crate) struct Clone {
    store: Store,
    host: Host,
    chance: fastrand::Rng,
    head: Model,
    snapshots: BTreeMap<String, Model>,
    /// What there was from when a change was done until, at least, when the next one was asked for.
    past: Vec<Past>,
    number: u64,
    tickets: u64,
    stamp: u64,
    asked: bool,
    parent_is_gone: bool,
    tally: Tally,
}

impl Clone {
    /// A parent with something in it, and a clone of its snapshot.
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let store = Store::default();
        let host = Host::new(PARENT, chance.fork(), None);
        let mut parent = Self {
            store,
            host,
            chance: chance.fork(),
            head: Model::new(),
            snapshots: BTreeMap::new(),
            past: Vec::new(),
            number: 0,
            tickets: 1 << 32,
            stamp: 0,
            asked: true,
            parent_is_gone: true,
            tally: Tally::default(),
        };
        parent.write_lone();
        parent.io_with(
            IoFlags(IoFlags::NO_HOLE),
            IoCode::WriteZeroes,
            ZEROS,
            3,
            Bytes::new(),
        );
        for _ in 0..chance.usize(20..200) {
            parent.guest();
        }
        // Some of its deltas are on nodes that are deltas.
        for _ in 0..3 {
            parent.guest();
            parent.host.settle(&mut parent.store);
        }
        parent.ask(Ask::Take {
            id: SnapshotId(1),
            name: "base".into(),
            metadata: BTreeMap::new(),
        });
        let head = parent.head.clone();
        // It goes on, and scrubs.
        for _ in 0..50 {
            parent.guest();
        }
        parent.host.settle(&mut parent.store);
        let Self { mut store, .. } = parent;
        let manifest = Box::new(store.newest_manifest(PARENT).unwrap());
        let origin = CloneOf {
            manifest,
            snapshot: SnapshotId(1),
        };
        let mut host = Host::new(CLONE, chance.fork(), Some(origin));
        // From its first manifest on it recovers without its parent's.
        while !host.has_manifest(&store) {
            if !host.finish_one(&mut store) {
                host.tick();
            }
        }
        let mut clone = Self {
            store,
            host,
            chance,
            head,
            snapshots: BTreeMap::new(),
            past: Vec::new(),
            number: 0,
            tickets: 1 << 32,
            stamp: 1 << 20,
            asked: false,
            parent_is_gone: false,
            tally: Tally::default(),
        };
        clone.write_lone();
        clone.host.settle(&mut clone.store);
        clone
    }

    fn write_lone(&mut self) {
        for leaf in LONE {
            self.write(leaf * 512);
        }
    }

    fn write(&mut self, address: u64) {
        self.stamp += 1;
        let data = self.stamp.to_le_bytes().repeat(512).into();
        self.io(IoCode::Write, address, 1, data);
        self.head.insert(address, self.stamp);
    }

    pub(crate) fn live(mut self) -> Tally {
        let steps = self.chance.usize(150..500);
        let asked_at = self.chance.usize(0..steps / 2);
        for step in 0..steps {
            self.note_past();
            match self.chance.u32(0..100) {
                0..37 => self.guest(),
                37..38 => self.history(),
                38..40 => self.moment(),
                40..80 => drop(self.host.finish_one(&mut self.store)),
                80..88 => self.host.tick(),
                88..93 => self.snapshot(),
                93..96 => self.host.evict_some(),
                96..98 => self.read_anywhere(),
                _ => self.crash(),
            }
            if step == asked_at {
                self.asked = true;
                self.ask(Ask::Flatten);
            }
            self.parent_may_go();
        }
        self.host.settle(&mut self.store);
        self.parent_may_go();
        self.check();
        // What was taken before it was clean may need the parent, and its history: without these it does not.
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        if !self.parent_is_gone {
            names.iter().for_each(|name| self.remove(name));
            self.ask(Ask::History { window_us: 0 });
        }
        self.host.settle(&mut self.store);
        self.parent_may_go();
        assert!(
            self.parent_is_gone,
            "it is not independent: {:?}",
            self.host.volume.flatten_status()
        );
        self.check();
        // Cold: nothing of the map is in memory.
        self.crash();
        self.check();
        for _ in 0..50 {
            self.guest();
            self.host.finish_one(&mut self.store);
        }
        self.host.settle(&mut self.store);
        self.crash();
        self.check();
        self.check_accounting();
        self.tally.failed = self.host.failed;
        self.tally
    }

    /// The registry let go of the parent: it is deleted with all that it has.
    fn parent_may_go(&mut self) {
        if self.host.independent && !self.parent_is_gone {
            self.parent_is_gone = true;
            self.store.erase(PARENT);
        }
    }

    /// Nothing is under way: what is there now has been since the last change was done.
    fn note_past(&mut self) {
        let now_us = self.host.now_us;
        match self.past.last_mut() {
            Some(past) if past.head == self.head => past.to_us = now_us,
            _ => self.past.push(Past {
                from_us: now_us,
                to_us: now_us,
                head: self.head.clone(),
            }),
        }
    }

    /// Its history is turned on or off.
    fn history(&mut self) {
        let window_us = [0, 10_000_000, 60_000_000][self.chance.usize(0..3)];
        self.ask(Ask::History { window_us });
    }

    /// A moment of which is known what was there then; it becomes a snapshot.
    fn moment(&mut self) {
        let Some(from_us) = self.host.volume.history_status().from_us else {
            return;
        };
        let known = |past: &&Past| past.from_us < past.to_us && from_us <= past.from_us;
        let known: Vec<&Past> = self.past.iter().filter(known).collect();
        if known.is_empty() || self.snapshots.len() >= SNAPSHOTS_MAX {
            return;
        }
        let past = known[self.chance.usize(0..known.len())];
        let (time_us, then) = (self.chance.u64(past.from_us..past.to_us), past.head.clone());
        self.stamp += 1;
        let ask = MomentAsk {
            id: SnapshotId(self.stamp),
            name: format!("moment-{}", self.stamp),
            metadata: BTreeMap::new(),
            time_us,
        };
        let name = ask.name.clone();
        let (ticket, now_us) = (self.ticket(), self.host.now_us);
        self.host.feed(Event::Moment { ticket, ask, now_us });
        assert_eq!(self.answer(ticket), VolumeReply::Done, "a moment at {time_us}");
        self.tally.moments += 1;
        self.tally.moments_meanwhile += u64::from(self.host.volume.flatten_status().is_some());
        self.snapshots.insert(name, then);
    }

    fn crash(&mut self) {
        self.note_copied();
        self.tally.crashes += 1;
        self.host.crash(&self.store);
        if self.asked {
            assert!(
                self.host.volume.is_independent() || self.host.volume.flatten_status().is_some(),
                "it was asked for, and forgotten"
            );
        }
    }

    fn note_copied(&mut self) {
        let status = self.host.volume.flatten_status();
        self.tally.copied += status.map_or(0, |status| status.copied.0 / 4096);
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// An address that is written to, or one like it.
    fn address(&mut self) -> u64 {
        let region = REGIONS[self.chance.usize(0..REGIONS.len())].clone();
        self.chance.u64(region)
    }

    fn io(&mut self, code: IoCode, address: u64, clusters: u64, data: Bytes) {
        self.io_with(IoFlags::default(), code, address, clusters, data);
    }

    fn io_with(&mut self, flags: IoFlags, code: IoCode, address: u64, clusters: u64, data: Bytes) {
        self.number += 1;
        let ticket = self.ticket();
        let request = IoRequest {
            handle: 0,
            number: self.number,
            below: self.number,
            code,
            flags,
            offset: address * 4096,
            length: clusters * 4096,
        };
        let session = self.host.session;
        self.host.feed(Event::Io {
            ticket,
            session,
            request,
            data,
        });
        assert_eq!(self.answer(ticket), VolumeReply::Done);
    }

    fn answer(&mut self, ticket: Ticket) -> VolumeReply {
        for _ in 0..100_000 {
            if let Some(reply) = self.host.replies.remove(&ticket) {
                return reply;
            }
            if !self.host.finish_one(&mut self.store) {
                self.host.tick();
            }
        }
        panic!("no answer");
    }

    fn ask(&mut self, ask: Ask) {
        let (ticket, now_us) = (self.ticket(), self.host.now_us);
        self.host.feed(Event::Ask { ticket, ask, now_us });
        assert_eq!(self.answer(ticket), VolumeReply::Done);
    }

    /// One change of the guest.
    fn guest(&mut self) {
        let address = self.address();
        let status = self.host.volume.flatten_status();
        self.tally.raced += u64::from(status.is_some_and(|status| status.percent < 100));
        match self.chance.u32(0..10) {
            0 => {
                let clusters = self.chance.u64(1..30);
                self.io(IoCode::Discard, address, clusters, Bytes::new());
                self.head
                    .retain(|at, _| !(address..address + clusters).contains(at));
            }
            // A part of a cluster, which has the rest from wherever it is.
            1 if self.head.contains_key(&address) => self.write_part(address),
            2 => {
                self.io(IoCode::WriteZeroes, address, 3, Bytes::new());
                self.head.retain(|at, _| !(address..address + 3).contains(at));
            }
            _ => self.write(address),
        }
    }

    /// Writes what the second half of the cluster has already: it stays as it is, and is the volume's own.
    fn write_part(&mut self, address: u64) {
        let (ticket, stamp) = (self.ticket(), self.head[&address]);
        self.number += 1;
        let request = IoRequest {
            handle: 0,
            number: self.number,
            below: self.number,
            code: IoCode::Write,
            flags: IoFlags::default(),
            offset: address * 4096 + 2048,
            length: 2048,
        };
        let (session, data) = (self.host.session, stamp.to_le_bytes().repeat(256).into());
        self.host.feed(Event::Io {
            ticket,
            session,
            request,
            data,
        });
        assert_eq!(self.answer(ticket), VolumeReply::Done);
    }

    fn snapshot(&mut self) {
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        let any = self.chance.choice(&names).cloned();
        match (self.chance.u32(0..10), any) {
            (0..3, Some(name)) => self.remove(&name),
            (3..5, Some(to)) => {
                self.tally.rollbacks += 1;
                self.stamp += 1;
                let (id, keep) = (SnapshotId(self.stamp), format!("before-{}", self.stamp));
                let keep = Some(keep).filter(|_| names.len() < SNAPSHOTS_MAX && self.chance.bool());
                self.ask(Ask::RollBack {
                    to: to.clone(),
                    id,
                    keep: keep.clone(),
                });
                let then = self.snapshots[&to].clone();
                let before = std::mem::replace(&mut self.head, then);
                if let Some(name) = keep {
                    self.snapshots.insert(name, before);
                }
            }
            _ if names.len() < SNAPSHOTS_MAX => {
                self.stamp += 1;
                let name = format!("snapshot-{}", self.stamp);
                self.ask(Ask::Take {
                    id: SnapshotId(self.stamp),
                    name: name.clone(),
                    metadata: BTreeMap::new(),
                });
                self.snapshots.insert(name, self.head.clone());
            }
            _ => {}
        }
    }

    fn remove(&mut self, name: &str) {
        self.ask(Ask::Remove {
            name: name.to_owned(),
        });
        self.snapshots.remove(name);
    }

    fn read_anywhere(&mut self) {
        let region = REGIONS[self.chance.usize(0..REGIONS.len())].clone();
        let head = self.head.clone();
        self.check_region(None, &region, &head);
    }

    /// Every byte of the head and of all snapshots.
    fn check(&mut self) {
        assert_eq!(self.host.volume.size().bytes(), SIZE);
        let known: Vec<(SnapshotId, String)> = self
            .host
            .volume
            .snapshots()
            .into_iter()
            .map(|snapshot| (snapshot.label.id, snapshot.label.name))
            .collect();
        let mut roots = vec![(None, self.head.clone())];
        assert_eq!(known.len(), self.snapshots.len());
        roots.extend(
            known
                .into_iter()
                .map(|(id, name)| (Some(id), self.snapshots[&name].clone())),
        );
        for (root, model) in roots {
            for region in everywhere() {
                self.check_region(root, &region, &model);
            }
        }
    }

    fn extents(&mut self, root: Option<SnapshotId>, region: &std::ops::Range<u64>) -> Vec<Extent> {
        let ticket = self.ticket();
        let request = IoRequest {
            handle: 0,
            number: 0,
            below: 0,
            code: IoCode::Read,
            flags: IoFlags::default(),
            offset: region.start * 4096,
            length: (region.end - region.start) * 4096,
        };
        let event = match root {
            None => Event::Io {
                ticket,
                session: self.host.session,
                request,
                data: Bytes::new(),
            },
            Some(snapshot) => Event::SnapshotIo {
                ticket,
                snapshot,
                request,
            },
        };
        self.host.feed(event);
        for _ in 0..100_000 {
            if let Some(extents) = self.host.reads.remove(&ticket) {
                return extents;
            }
            assert!(self.host.finish_one(&mut self.store), "a read is answered");
        }
        panic!("no answer to a read");
    }

    fn check_region(&mut self, root: Option<SnapshotId>, region: &std::ops::Range<u64>, model: &Model) {
        let extents = self.extents(root, region);
        let clusters = extents
            .iter()
            .flat_map(|extent| self.host.clusters(&self.store, extent));
        let mut at = region.start;
        for cluster in clusters {
            let expected = model.get(&at).copied().unwrap_or(0);
            let is_it = cluster.chunks_exact(8).all(|word| word == expected.to_le_bytes());
            assert!(
                is_it,
                "cluster {at} of {root:?} is not {expected}: {:?}",
                &cluster[..8]
            );
            at += 1;
        }
        assert_eq!(at, region.end);
    }

    /// The live counts are what a scan of all roots finds.
    fn check_accounting(&mut self) {
        self.host.settle(&mut self.store);
        let kept = self.host.volume.kept_roots();
        let mut live = std::collections::BTreeSet::new();
        let roots = std::iter::once(None).chain(kept.into_iter().map(|(id, _)| Some(id)));
        for root in roots {
            for region in everywhere() {
                for extent in self.extents(root, &region) {
                    let (sco, first, count) = match extent {
                        Extent::Zeros { .. } => continue,
                        Extent::Local {
                            sco,
                            first_slot,
                            crcs,
                        } => (sco, first_slot, crcs.len()),
                        Extent::Stored {
                            volume,
                            sco,
                            first_slot,
                            crcs,
                            ..
                        } => {
                            assert_eq!(volume, CLONE, "it reads what its parent had");
                            (sco, first_slot, crcs.len())
                        }
                    };
                    let slots = first.0..first.0 + u16::try_from(count).unwrap();
                    live.extend(slots.map(|slot| (sco, Slot(slot))));
                }
            }
        }
        let mut found: BTreeMap<ScoId, u16> = BTreeMap::new();
        for (sco, _) in live {
            *found.entry(sco).or_default() += 1;
        }
        let states = loop {
            match self.host.volume.sco_states() {
                Ok(states) => break states,
                Err((place, reference)) => {
                    let result = Ok(self.store.node(&self.host.lineage, reference));
                    self.host.feed(Event::NodeLoaded {
                        place,
                        reference,
                        result,
                    });
                }
            }
        };
        for (sco, state) in states {
            let scanned = found.remove(&sco).unwrap_or_default();
            assert_eq!(
                scanned, state.live,
                "live slots of SCO {sco}: scanned, and counted"
            );
        }
        assert!(found.is_empty(), "SCOs that the table lacks: {found:?}");
    }
}
