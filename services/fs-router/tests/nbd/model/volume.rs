//! Volumes in memory, with what an owner has to keep of sessions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use sconce_schemas::crc::crc32c;
use sconce_schemas::wire::volume::{
    ChangeKind, ChangedExtent, ExtentKind, ExtentStatus, IoCode, IoFlags, IoRequest, ReadExtent,
    SnapshotStatus, VolumeReply,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{
    ByteLen, CLUSTER_BYTES, CLUSTER_LEN, Epoch, ScoId, SessionId, Slot, SnapshotId, VolumeId, VolumeSize,
};

/// Clusters that are kept together.
pub(crate) const CHUNK: usize = 64;
/// The volume that wrote what cold volumes read.
pub(crate) const ANCESTOR: VolumeId = VolumeId([0xc0; 16]);

#[derive(Clone)]
struct Chunk {
    data: Box<[u8]>,
    kinds: [ExtentKind; CHUNK],
}

/// A volume.
pub(crate) struct Model {
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    /// Reads are answered with locations, as of data that is on the back ends only.
    pub(crate) cold: bool,
    chunks: BTreeMap<u64, Chunk>,
    snapshots: Vec<Snapshot>,
    sessions: HashMap<SessionId, Applied>,
    /// Operations that were applied.
    pub(crate) applied: u64,
    /// Operations that came again after they had been applied.
    pub(crate) again: u64,
    pub(crate) flushes: u64,
    /// Flags of the last operation that changed something.
    pub(crate) last_flags: IoFlags,
    /// Refusals for the next operations.
    pub(crate) refuse_next: Vec<Refusal>,
}

struct Snapshot {
    id: SnapshotId,
    name: String,
    size: u64,
    chunks: BTreeMap<u64, Chunk>,
}

#[derive(Default)]
struct Applied {
    numbers: BTreeSet<u64>,
    below: u64,
}

/// All volumes, shared by the owners that serve them and by the test.
#[derive(Clone, Default)]
pub(crate) struct Models {
    volumes: Arc<Mutex<HashMap<VolumeId, Model>>>,
}

impl Models {
    pub(crate) fn create(&self, volume: VolumeId, size: u64) {
        let model = Model {
            size,
            read_only: false,
            cold: false,
            chunks: BTreeMap::new(),
            snapshots: Vec::new(),
            sessions: HashMap::new(),
            applied: 0,
            again: 0,
            flushes: 0,
            last_flags: IoFlags(0),
            refuse_next: Vec::new(),
        };
        self.lock().insert(volume, model);
    }

    pub(crate) fn with<T>(&self, volume: VolumeId, look: impl FnOnce(&mut Model) -> T) -> Option<T> {
        self.lock().get_mut(&volume).map(look)
    }

    /// Looks at the volume whose data is on the back ends.
    pub(crate) fn cold<T>(&self, look: impl FnOnce(&Model) -> T) -> Option<T> {
        self.lock().values().find(|model| model.cold).map(look)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Model>> {
        self.volumes.lock().unwrap()
    }
}

impl Model {
    pub(crate) fn close_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    pub(crate) fn take_snapshot(&mut self, id: SnapshotId, name: &str) {
        self.snapshots.push(Snapshot {
            id,
            name: name.to_owned(),
            size: self.size,
            chunks: self.chunks.clone(),
        });
    }

    pub(crate) fn remove_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.retain(|snapshot| snapshot.id != id);
    }

    /// Id and size of the snapshot with this name.
    pub(crate) fn snapshot_named(&self, name: &str) -> Option<(SnapshotId, u64)> {
        let found = self.snapshots.iter().find(|snapshot| snapshot.name == name)?;
        Some((found.id, found.size))
    }

    pub(crate) fn list_snapshots(&self) -> Vec<SnapshotStatus> {
        let status = |snapshot: &Snapshot| SnapshotStatus {
            id: snapshot.id,
            name: snapshot.name.clone(),
            created_us: 1,
            size: VolumeSize::new(snapshot.size).unwrap(),
            allocated: ByteLen(0),
            synced: true,
            metadata: BTreeMap::new(),
        };
        self.snapshots.iter().map(status).collect()
    }

    /// What differs, by content and kind; a few extents at a time.
    pub(crate) fn changes(&self, of: Option<SnapshotId>, since: SnapshotId, io: &IoRequest) -> VolumeReply {
        let gone = || Refusal::reject(RefusalCode::NotFound, "the snapshot was removed");
        let chunks = |id| {
            let found = self.snapshots.iter().find(|snapshot| snapshot.id == id);
            found.map(|snapshot| &snapshot.chunks)
        };
        let now = match of {
            None => Some(&self.chunks),
            Some(id) => chunks(id),
        };
        let (Some(now), Some(before)) = (now, chunks(since)) else {
            return VolumeReply::Refused(gone());
        };
        let cluster = |chunks: &BTreeMap<u64, Chunk>, at: u64| {
            let (index, from) = place(at / CLUSTER_BYTES * CLUSTER_BYTES);
            let chunk = chunks.get(&index)?;
            let kind = chunk.kinds[from / CLUSTER_LEN];
            let data = chunk.data[from..from + CLUSTER_LEN].to_vec();
            (kind != ExtentKind::Hole).then_some((kind, data))
        };
        let (mut extents, mut at): (Vec<ChangedExtent>, _) = (Vec::new(), io.offset);
        let end = io.offset + io.length;
        while at < end && extents.len() < 4 {
            let next = ((at / CLUSTER_BYTES + 1) * CLUSTER_BYTES).min(end);
            let (now, before) = (cluster(now, at), cluster(before, at));
            let kind = match &now {
                same if *same == before => ChangeKind::Same,
                None => ChangeKind::Hole,
                Some((ExtentKind::Zeros, _)) => ChangeKind::Zeros,
                Some(_) => ChangeKind::Data,
            };
            let length = next - at;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.length += length,
                _ => extents.push(ChangedExtent { length, kind }),
            }
            at = next;
        }
        VolumeReply::Changes(extents)
    }

    /// One operation on a snapshot.
    pub(crate) fn snapshot_io(&mut self, id: SnapshotId, io: &IoRequest) -> (VolumeReply, Bytes) {
        let reject = |code, text: &str| (VolumeReply::Refused(Refusal::reject(code, text)), Bytes::new());
        if io.code.changes() {
            return reject(RefusalCode::ReadOnly, "a snapshot takes no writes");
        }
        let Some(at) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else {
            return reject(RefusalCode::NotFound, "the snapshot was removed");
        };
        // The volume as it was then, for as long as it is looked at.
        let exchange = |model: &mut Self| {
            let Snapshot { size, chunks, .. } = &mut model.snapshots[at];
            std::mem::swap(&mut model.size, size);
            std::mem::swap(&mut model.chunks, chunks);
        };
        exchange(self);
        let answer = self.io(SessionId(0), io, &Bytes::new());
        exchange(self);
        answer
    }

    /// Clusters that count as written.
    pub(crate) fn written(&self) -> usize {
        let kinds = self.chunks.values().flat_map(|chunk| chunk.kinds);
        kinds.filter(|kind| *kind != ExtentKind::Hole).count()
    }

    /// One operation of a session.
    pub(crate) fn io(&mut self, session: SessionId, io: &IoRequest, data: &Bytes) -> (VolumeReply, Bytes) {
        let none = Bytes::new();
        if let Some(refusal) = self.refuse_next.pop() {
            return (VolumeReply::Refused(refusal), none);
        }
        let reject = |code, text: &str| (VolumeReply::Refused(Refusal::reject(code, text)), Bytes::new());
        if io.code.changes() {
            if self.read_only {
                return reject(RefusalCode::ReadOnly, "the volume takes no writes");
            }
            let applied = self.sessions.entry(session).or_default();
            applied.below = applied.below.max(io.below);
            let is_known = io.number < applied.below || !applied.numbers.insert(io.number);
            applied.numbers = applied.numbers.split_off(&applied.below);
            if is_known {
                self.again += 1;
                return (VolumeReply::Done, none);
            }
            self.applied += 1;
            self.last_flags = io.flags;
        }
        let is_range = !matches!(io.code, IoCode::Flush | IoCode::Resize);
        if is_range && io.offset + io.length > self.size {
            return reject(RefusalCode::OutOfRange, "beyond the end of the volume");
        }
        match io.code {
            IoCode::Read => self.read(io),
            IoCode::Write => {
                self.write(io.offset, data);
                (VolumeReply::Done, none)
            }
            IoCode::Discard => {
                self.zero(io.offset, io.length, ExtentKind::Hole);
                (VolumeReply::Done, none)
            }
            IoCode::WriteZeroes => {
                let no_hole = io.flags.has(IoFlags::NO_HOLE);
                let kind = if no_hole {
                    ExtentKind::Zeros
                } else {
                    ExtentKind::Hole
                };
                self.zero(io.offset, io.length, kind);
                (VolumeReply::Done, none)
            }
            IoCode::Flush => {
                self.flushes += 1;
                (VolumeReply::Done, none)
            }
            IoCode::Extents => (VolumeReply::Extents(self.extents(io.offset, io.length)), none),
            IoCode::Changes => reject(RefusalCode::Unsupported, "nothing is compared"),
            IoCode::Resize => {
                self.size = io.offset;
                (VolumeReply::Done, none)
            }
        }
    }

    fn chunk(&mut self, index: u64) -> &mut Chunk {
        self.chunks.entry(index).or_insert_with(|| Chunk {
            data: vec![0; CHUNK * CLUSTER_LEN].into(),
            kinds: [ExtentKind::Hole; CHUNK],
        })
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (index, at) = place(offset);
            let some = data.len().min(CHUNK * CLUSTER_LEN - at);
            let chunk = self.chunk(index);
            chunk.data[at..at + some].copy_from_slice(&data[..some]);
            chunk.kinds[at / CLUSTER_LEN..(at + some).div_ceil(CLUSTER_LEN)].fill(ExtentKind::Data);
            offset += some as u64;
            data = &data[some..];
        }
    }

    /// Costs nothing where nothing was written.
    fn zero(&mut self, offset: u64, length: u64, kind: ExtentKind) {
        let end = offset + length;
        let (first, last) = (place(offset).0, place(end).0);
        if kind != ExtentKind::Hole {
            (first..=last).for_each(|index| {
                self.chunk(index);
            });
        }
        for (index, chunk) in self.chunks.range_mut(first..=last) {
            let start = index * (CHUNK * CLUSTER_LEN) as u64;
            for cluster in 0..CHUNK {
                let from = start + (cluster * CLUSTER_LEN) as u64;
                let (low, high) = (offset.max(from), end.min(from + CLUSTER_BYTES));
                if low >= high {
                    continue;
                }
                let at = usize::try_from(low - start).unwrap();
                chunk.data[at..at + usize::try_from(high - low).unwrap()].fill(0);
                if high - low == CLUSTER_BYTES {
                    chunk.kinds[cluster] = kind;
                }
            }
        }
    }

    fn kind_at(&self, cluster: u64) -> ExtentKind {
        let (index, at) = place(cluster * CLUSTER_BYTES);
        self.chunks
            .get(&index)
            .map_or(ExtentKind::Hole, |chunk| chunk.kinds[at / CLUSTER_LEN])
    }

    fn read(&self, io: &IoRequest) -> (VolumeReply, Bytes) {
        let (first, last) = (
            io.offset / CLUSTER_BYTES,
            (io.offset + io.length).div_ceil(CLUSTER_BYTES),
        );
        let (mut extents, mut data): (Vec<ReadExtent>, _) = (Vec::new(), BytesMut::new());
        for cluster in first..last {
            let (index, at) = place(cluster * CLUSTER_BYTES);
            let length = u32::try_from(CLUSTER_LEN).unwrap();
            let Some(chunk) = self
                .chunks
                .get(&index)
                .filter(|_| self.kind_at(cluster) == ExtentKind::Data)
            else {
                match extents.last_mut() {
                    Some(ReadExtent::Zeros { length: before }) => *before += length,
                    _ => extents.push(ReadExtent::Zeros { length }),
                }
                continue;
            };
            let bytes = &chunk.data[at..at + CLUSTER_LEN];
            if self.cold {
                extents.push(ReadExtent::Located {
                    volume: ANCESTOR,
                    sco: ScoId(index + 1),
                    epoch: Epoch(1),
                    version: 0,
                    first_slot: Slot(u16::try_from(at / CLUSTER_LEN).unwrap()),
                    crcs: vec![crc32c(bytes)],
                });
                continue;
            }
            data.extend_from_slice(bytes);
            match extents.last_mut() {
                Some(ReadExtent::Data { length: before }) => *before += length,
                _ => extents.push(ReadExtent::Data { length }),
            }
        }
        (VolumeReply::Read(extents), data.freeze())
    }

    /// A chunk's data from a slot on, as a storage-router has it.
    pub(crate) fn stored(&self, sco: ScoId, slot: u64, length: usize) -> Option<Bytes> {
        let chunk = self.chunks.get(&(sco.0 - 1))?;
        let from = usize::try_from(slot).unwrap() * CLUSTER_LEN;
        chunk.data.get(from..from + length).map(Bytes::copy_from_slice)
    }

    fn extents(&self, offset: u64, length: u64) -> Vec<ExtentStatus> {
        let (mut extents, mut at): (Vec<ExtentStatus>, _) = (Vec::new(), offset);
        let end = offset + length;
        while at < end && extents.len() < 4096 {
            let next = ((at / CLUSTER_BYTES + 1) * CLUSTER_BYTES).min(end);
            let (index, _) = place(at);
            let kind = self.kind_at(at / CLUSTER_BYTES);
            // A chunk that was never written is skipped whole, up to the next that was.
            let next = if self.chunks.contains_key(&index) {
                next
            } else {
                let after = self
                    .chunks
                    .range(index..)
                    .next()
                    .map_or(end, |(next, _)| next * CHUNK as u64 * CLUSTER_BYTES);
                after.min(end)
            };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.length += next - at,
                _ => extents.push(ExtentStatus {
                    length: next - at,
                    kind,
                }),
            }
            at = next;
        }
        extents
    }
}

/// The chunk that holds a byte, and where in it.
fn place(offset: u64) -> (u64, usize) {
    let chunk = (CHUNK * CLUSTER_LEN) as u64;
    (offset / chunk, usize::try_from(offset % chunk).unwrap())
}
