//! Volumes in memory, with the rules of an owner: what is beyond the end is refused, a hole reads as zeros.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use sconce_schemas::wire::volume::{ExtentKind, ExtentStatus, IoCode, IoFlags};
use sconce_schemas::wire::{Refusal, RefusalCode, Remedy};
use sconce_schemas::{CLUSTER_BYTES, CLUSTER_LEN, Epoch, SnapshotId, VolumeId, VolumeSize};
use tokio::sync::watch;

use crate::fuse::{Extent, Snapshot, Source, Space, Told, Volumes};
use crate::routing::{Opened, Operation, Outcome, Piece, ReadData};

/// A volume: its size and its clusters that are not holes.
#[derive(Clone, Default)]
struct Volume {
    size: u64,
    clusters: BTreeMap<u64, Vec<u8>>,
}

#[derive(Default)]
struct State {
    volumes: HashMap<VolumeId, Volume>,
    told: Vec<(VolumeId, Told)>,
    flushes: usize,
    durable_writes: usize,
    open: HashSet<Source>,
    snapshots: HashMap<VolumeId, Vec<(Snapshot, Volume)>>,
    /// Times that an owner was asked for its snapshots.
    asked: usize,
    /// Volumes that wait for owners that do not run.
    waiting: HashSet<VolumeId>,
}

/// Volumes that come to be when they are opened.
#[derive(Clone)]
pub(super) struct MemoryVolumes {
    state: Arc<Mutex<State>>,
    /// Whether owners answer.
    answers: Arc<watch::Sender<bool>>,
    /// Whether volumes wait for owners that do not run.
    absent: Arc<AtomicBool>,
}

impl Default for MemoryVolumes {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            answers: Arc::new(watch::Sender::new(true)),
            absent: Arc::default(),
        }
    }
}

impl State {
    fn snapshot(&mut self, volume: VolumeId, id: SnapshotId) -> Option<&mut (Snapshot, Volume)> {
        let snapshots = self.snapshots.get_mut(&volume)?;
        snapshots.iter_mut().find(|(snapshot, _)| snapshot.id == id)
    }
}

impl MemoryVolumes {
    /// Keeps a volume as it is now.
    pub(super) fn take_snapshot(&self, volume: VolumeId, id: u64, name: &str, created_us: u64) {
        let mut state = self.state();
        let then = state.volumes.entry(volume).or_default().clone();
        let snapshot = Snapshot {
            id: SnapshotId(id),
            name: name.to_owned(),
            created_us,
            size: then.size,
            allocated: then.clusters.len() as u64 * CLUSTER_BYTES,
        };
        state.snapshots.entry(volume).or_default().push((snapshot, then));
    }

    pub(super) fn remove_snapshot(&self, volume: VolumeId, id: u64) {
        let mut state = self.state();
        let snapshots = state.snapshots.entry(volume).or_default();
        snapshots.retain(|(snapshot, _)| snapshot.id != SnapshotId(id));
    }

    /// The volume's owner does not run any more.
    pub(super) fn lose_owner_of(&self, volume: VolumeId) {
        self.state().waiting.insert(volume);
    }

    /// Times that an owner was asked for its snapshots.
    pub(super) fn asked(&self) -> usize {
        self.state().asked
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn told(&self) -> Vec<(VolumeId, Told)> {
        self.state().told.clone()
    }

    pub(super) fn flushes(&self) -> usize {
        self.state().flushes
    }

    pub(super) fn durable_writes(&self) -> usize {
        self.state().durable_writes
    }

    pub(super) fn open_volumes(&self) -> usize {
        self.state().open.len()
    }

    /// Owners stop answering, or answer again.
    pub(super) fn answer(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    /// Owners do not run any more.
    pub(super) fn lose_owners(&self) {
        self.answer(false);
        self.absent.store(true, Ordering::Relaxed);
    }

    async fn answering(&self) {
        self.answers
            .subscribe()
            .wait_for(|answers| *answers)
            .await
            .unwrap();
    }
}

fn refusal(code: RefusalCode, remedy: Remedy) -> Refusal {
    Refusal {
        remedy,
        code,
        text: format!("{code:?}"),
    }
}

impl Volume {
    fn fill(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let within = usize::try_from(at % CLUSTER_BYTES).unwrap();
            let (now, rest) = data.split_at(data.len().min(CLUSTER_LEN - within));
            let cluster = self
                .clusters
                .entry(at / CLUSTER_BYTES)
                .or_insert_with(|| vec![0; CLUSTER_LEN]);
            cluster[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            data = rest;
        }
    }

    /// Whole clusters become holes; parts of clusters stay as they are.
    fn discard(&mut self, offset: u64, length: u64) {
        let (first, last) = (offset.div_ceil(CLUSTER_BYTES), (offset + length) / CLUSTER_BYTES);
        let whole: Vec<u64> = match first < last {
            true => self
                .clusters
                .range(first..last)
                .map(|(cluster, _)| *cluster)
                .collect(),
            false => Vec::new(),
        };
        whole.iter().for_each(|cluster| _ = self.clusters.remove(cluster));
    }

    /// The exact range reads as zeros; whole clusters become holes.
    fn zero(&mut self, offset: u64, length: u64) {
        self.discard(offset, length);
        let mut at = offset;
        while at < offset + length {
            let within = at % CLUSTER_BYTES;
            let now = (CLUSTER_BYTES - within).min(offset + length - at);
            if let Some(cluster) = self.clusters.get_mut(&(at / CLUSTER_BYTES)) {
                cluster[usize::try_from(within).unwrap()..usize::try_from(within + now).unwrap()].fill(0);
            }
            at += now;
        }
    }

    fn read(&self, offset: u64, length: u64) -> ReadData {
        let mut found = vec![0; usize::try_from(length).unwrap()];
        let (mut at, mut rest) = (offset, found.as_mut_slice());
        while !rest.is_empty() {
            let within = usize::try_from(at % CLUSTER_BYTES).unwrap();
            let (now, after) = rest.split_at_mut(rest.len().min(CLUSTER_LEN - within));
            if let Some(cluster) = self.clusters.get(&(at / CLUSTER_BYTES)) {
                now.copy_from_slice(&cluster[within..within + now.len()]);
            }
            at += now.len() as u64;
            rest = after;
        }
        let mut data = ReadData::default();
        data.push(Piece::Data(found.into()));
        data
    }

    /// One extent at a time, so that callers have to go on asking.
    fn extents(&self, offset: u64) -> Vec<ExtentStatus> {
        let cluster = offset / CLUSTER_BYTES;
        let kind = if self.clusters.contains_key(&cluster) {
            ExtentKind::Data
        } else {
            ExtentKind::Hole
        };
        vec![ExtentStatus {
            length: (cluster + 1) * CLUSTER_BYTES - offset,
            kind,
        }]
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size.next_multiple_of(CLUSTER_BYTES) - size);
        }
        self.size = size;
    }

    fn run(&mut self, operation: &Operation) -> Outcome {
        let (offset, length, data): (u64, u64, &Bytes) =
            (operation.offset, operation.length, &operation.data);
        if operation.code == IoCode::Write && operation.flags.has(IoFlags::EXTEND) {
            self.size = self.size.max(offset + length);
        }
        let ranged = !matches!(operation.code, IoCode::Flush | IoCode::Resize);
        if ranged && offset + length > self.size {
            return Outcome::Refused(refusal(RefusalCode::OutOfRange, Remedy::Reject));
        }
        match operation.code {
            IoCode::Read => return Outcome::Read(self.read(offset, length)),
            IoCode::Extents => return Outcome::Extents(self.extents(offset)),
            IoCode::Changes => unreachable!("no file is compared"),
            IoCode::Write => self.fill(offset, data),
            IoCode::Discard => self.discard(offset, length),
            IoCode::WriteZeroes if operation.flags.has(IoFlags::NO_HOLE) => {
                self.fill(offset, &vec![0; usize::try_from(length).unwrap()]);
            }
            IoCode::WriteZeroes => self.zero(offset, length),
            IoCode::Resize => self.resize(offset),
            IoCode::Flush => {}
        }
        Outcome::Done
    }
}

impl Volumes for MemoryVolumes {
    async fn open(&self, volume: VolumeId) -> Result<Opened, Refusal> {
        self.answering().await;
        let mut state = self.state();
        state.open.insert(volume.into());
        let size = VolumeSize::new(state.volumes.entry(volume).or_default().size).unwrap();
        Ok(Opened {
            epoch: Epoch::FIRST,
            size,
            read_only: false,
        })
    }

    async fn open_snapshot(&self, volume: VolumeId, id: SnapshotId, name: &str) -> Result<Opened, Refusal> {
        self.answering().await;
        let mut state = self.state();
        let snapshot = state.snapshot(volume, id);
        let (known, _) = snapshot.ok_or_else(|| refusal(RefusalCode::NotFound, Remedy::Reject))?;
        assert_eq!(known.name, name);
        let size = VolumeSize::new(known.size).unwrap();
        let snapshot = Some(id);
        state.open.insert(Source { volume, snapshot });
        Ok(Opened {
            epoch: Epoch::FIRST,
            size,
            read_only: true,
        })
    }

    fn attach_snapshot(&self, volume: VolumeId, id: SnapshotId, _name: &str) {
        let snapshot = Some(id);
        self.state().open.insert(Source { volume, snapshot });
    }

    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, Refusal> {
        if self.absent.load(Ordering::Relaxed) {
            return Err(refusal(RefusalCode::WaitsForOwner, Remedy::Retry));
        }
        if !*self.answers.borrow() {
            return Err(refusal(RefusalCode::Unavailable, Remedy::Retry));
        }
        let mut state = self.state();
        if state.waiting.contains(&volume) {
            return Err(refusal(RefusalCode::WaitsForOwner, Remedy::Retry));
        }
        state.asked += 1;
        let snapshots = state.snapshots.entry(volume).or_default();
        Ok(snapshots.iter().map(|(snapshot, _)| snapshot.clone()).collect())
    }

    async fn run(&self, source: Source, operation: Operation) -> Outcome {
        self.answering().await;
        let mut state = self.state();
        state.flushes += usize::from(operation.code == IoCode::Flush);
        state.durable_writes += usize::from(operation.flags.has(IoFlags::FUA));
        assert!(
            state.open.contains(&source),
            "an operation on a volume that is not open"
        );
        match source.snapshot {
            None => state.volumes.get_mut(&source.volume).unwrap().run(&operation),
            Some(id) => {
                assert!(!operation.code.changes(), "a change of a snapshot");
                match state.snapshot(source.volume, id) {
                    Some((_, then)) => then.run(&operation),
                    None => Outcome::Refused(refusal(RefusalCode::NotFound, Remedy::Reject)),
                }
            }
        }
    }

    fn close(&self, source: Source) {
        assert!(
            self.state().open.remove(&source),
            "a volume is closed once, for all the opens of a file"
        );
    }

    async fn extent(&self, volume: VolumeId) -> Result<Extent, Refusal> {
        if self.absent.load(Ordering::Relaxed) {
            return Err(refusal(RefusalCode::WaitsForOwner, Remedy::Retry));
        }
        if !*self.answers.borrow() {
            return Err(refusal(RefusalCode::Unavailable, Remedy::Retry));
        }
        let mut state = self.state();
        let volume = state.volumes.entry(volume).or_default();
        Ok(Extent {
            size: volume.size,
            allocated: Some(volume.clusters.len() as u64 * CLUSTER_BYTES),
        })
    }

    fn tell(&self, volumes: Vec<VolumeId>, told: Told) {
        self.state()
            .told
            .extend(volumes.into_iter().map(|volume| (volume, told)));
    }

    async fn space(&self) -> Space {
        Space {
            capacity: 1 << 40,
            free: 1 << 39,
        }
    }
}
