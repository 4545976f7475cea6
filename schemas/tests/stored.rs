//! Stored formats: golden files decode to what they meant when they were written and encode to the same bytes; arbitrary
//! and damaged bytes are refused without a panic.
//!
//! `SCONCE_WRITE_GOLDEN=1` writes files that are missing; a file that exists is never changed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken format ends the test")]

use proptest::prelude::*;
use sconce_schemas::checkpoint::{
    Bitmap, CheckpointBuilder, NodePlace, NodeRecord, NodeRef, TreeKind, decode_index, decode_node,
};
use sconce_schemas::geometry::VolumeSize;
use sconce_schemas::history::{HistoryState, PointState};
use sconce_schemas::log_record::{LogRecord, SnapshotLabel};
use sconce_schemas::manifest::{
    FlattenState, JoinedState, LogPlace, Manifest, RemovedState, RenewalState, SessionState, SnapshotState,
    TREE_HEIGHT_MAX, TreeRoot,
};
use sconce_schemas::records::{EpochStart, Origin};
use sconce_schemas::sco::{Batch, BatchBuilder, Entry, EntryKind, ScoHeader};
use sconce_schemas::{
    BatchSeq, CheckpointId, ClusterAddress, Epoch, LineageIndex, ManifestSeq, ObjectName, ScoId, ScoSize,
    Slot, SnapshotId, VolumeId,
};

const VOLUME: VolumeId = VolumeId([0xab; 16]);

fn golden(name: &str, bytes: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if !path.exists() && std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(stored, bytes, "{name}: what is stored must never change meaning");
}

fn header() -> ScoHeader {
    ScoHeader {
        volume: VOLUME,
        id: ScoId(77),
        epoch: Epoch(3),
        size: ScoSize::default(),
        first_batch: BatchSeq(4711),
        synced_below: ScoId(75),
    }
}

fn entries() -> Vec<Entry> {
    let kinds = [
        EntryKind::Session {
            id: 0x1122_3344_5566_7788,
        },
        EntryKind::Write {
            address: ClusterAddress(5),
            crc: 0xdead_beef,
        },
        EntryKind::Discard {
            address: ClusterAddress(1 << 33),
            count: u32::MAX,
        },
        EntryKind::Zero {
            address: ClusterAddress(9),
            count: 2,
        },
        EntryKind::Resize { size: 12_345 },
    ];
    kinds
        .into_iter()
        .zip(0..)
        .map(|(kind, n)| Entry {
            kind,
            session: 2,
            number: 40 + n,
            last: n % 2 == 1,
        })
        .collect()
}

fn batch() -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    entries().iter().for_each(|entry| builder.push(entry));
    builder.close(header().salt(), BatchSeq(4711), Slot(8), 1_700_000_000_000_000)
}

fn reference() -> NodeRef {
    NodeRef {
        checkpoint: CheckpointId(6),
        epoch: Epoch(2),
        offset: 48,
        length: 200,
        crc: 1,
        lineage: LineageIndex(0),
        chain: 2,
    }
}

fn node(base: Option<NodeRef>) -> NodeRecord {
    let (mut present, mut emptied) = (Bitmap::EMPTY, Bitmap::EMPTY);
    [0, 63, 64, 511].into_iter().for_each(|slot| present.set(slot));
    if base.is_some() {
        emptied.set(100);
    }
    let place = NodePlace {
        tree: TreeKind::Map,
        level: 0,
        index: 12,
    };
    NodeRecord {
        place,
        base,
        present,
        emptied,
        width: 12,
        values: (0..48).collect(),
    }
}

fn checkpoint() -> (Vec<u8>, Vec<(NodeRef, NodeRecord)>) {
    let mut builder = CheckpointBuilder::new(VOLUME, CheckpointId(7), Epoch(3));
    let nodes = [node(None), node(Some(reference()))];
    let placed = nodes.map(|node| (builder.push(&node, LineageIndex(0)).unwrap(), node));
    (builder.finish(), placed.to_vec())
}

fn manifest() -> Manifest {
    Manifest {
        volume: VOLUME,
        seq: ManifestSeq(5),
        epoch: Epoch(3),
        path: "/vm1/disk.raw".into(),
        pool: "default".into(),
        size: VolumeSize::new(1 << 40).unwrap(),
        sco_size: ScoSize::default(),
        read_only: false,
        allocated_clusters: 99,
        map: TreeRoot {
            height: 2,
            node: Some(reference()),
            floor: CheckpointId::NONE,
        },
        scos: TreeRoot::default(),
        scos_count: 0,
        covered: BatchSeq(4710),
        covered_sco: ScoId(76),
        checkpoint: CheckpointId(7),
        lineage: vec![VOLUME],
        epochs: vec![EpochStart {
            epoch: Epoch(3),
            first_sco: ScoId(70),
        }],
        ancestor_epochs: Vec::new(),
        snapshots: Vec::new(),
        gone_snapshots: Vec::new(),
        condemned: Vec::new(),
        parent: None,
        origin: None,
        history: HistoryState::default(),
        flatten: None,
        independent: false,
        renewal: RenewalState::default(),
        sessions: vec![SessionState {
            slot: 2,
            id: 9,
            below: 40,
            applied: vec![41, 43],
            ranges: Vec::new(),
        }],
    }
}

/// As it is since sessions are stored as ranges.
fn manifest_with_ranges() -> Manifest {
    let mut manifest = manifest();
    (manifest.sessions[0].applied, manifest.sessions[0].ranges) = (Vec::new(), vec![(41, 1), (43, 300)]);
    manifest
}

/// As it is since volumes have a history.
fn manifest_with_history() -> Manifest {
    let mut manifest = manifest_with_snapshots();
    let point = |covered| PointState {
        time_us: 1_700_000_000_000_000 + covered,
        covered: BatchSeq(covered),
        covered_sco: ScoId(70),
        checkpoint: CheckpointId(6),
        entries: 500_000,
        size: VolumeSize::new(1 << 40).unwrap(),
        allocated_clusters: 97,
        map: manifest.map,
    };
    manifest.history = HistoryState {
        window_us: 86_400_000_000,
        upto_us: 1_700_000_000_004_710,
        points: vec![point(4000), point(4710)],
    };
    for snapshot in &mut manifest.snapshots {
        (snapshot.taken_in, snapshot.removed_in) = (BatchSeq(4100), BatchSeq(4200));
    }
    manifest.snapshots[0].removed_in = BatchSeq::NONE;
    manifest.snapshots[0].joined = Some(JoinedState {
        born_from: manifest.snapshots[0].at,
        child: manifest.map,
    });
    manifest
}

/// As it is since clones name what they began as.
fn manifest_of_clone() -> Manifest {
    Manifest {
        origin: Some(Origin {
            volume: VolumeId([1; 16]),
            snapshot: SnapshotId(9),
        }),
        ..manifest_with_snapshots()
    }
}

/// A clone with snapshots, as the first version that had them wrote it.
fn manifest_with_snapshots() -> Manifest {
    let label = |id, name: &str| SnapshotLabel {
        id: SnapshotId(id),
        name: name.into(),
        created_us: 1_700_000_000_000_000,
        metadata: [("reason".into(), "backup".into())].into(),
    };
    let at = LogPlace {
        sco: ScoId(75),
        slots: 100,
    };
    let snapshot = |id, name, hidden, removed| SnapshotState {
        label: label(id, name),
        size: VolumeSize::new(1 << 40).unwrap(),
        allocated_clusters: 98,
        at,
        parent: Some(SnapshotId(1)),
        map: manifest().map,
        hidden,
        proposed: false,
        own: false,
        removed,
        taken_in: BatchSeq::NONE,
        removed_in: BatchSeq::NONE,
        joined: None,
    };
    let removed = RemovedState {
        born_from: at,
        children: vec![manifest().map],
    };
    Manifest {
        lineage: vec![VolumeId([1; 16]), VOLUME],
        ancestor_epochs: vec![manifest().epochs],
        snapshots: vec![
            snapshot(2, "daily", false, None),
            snapshot(3, "", true, None),
            snapshot(4, "", true, Some(removed)),
        ],
        parent: Some(SnapshotId(2)),
        ..manifest()
    }
}

fn records() -> Vec<LogRecord> {
    let label = |id| SnapshotLabel {
        id: SnapshotId(id),
        name: "daily".into(),
        created_us: 1_700_000_000_000_000,
        metadata: [("reason".into(), "backup".into())].into(),
    };
    vec![
        LogRecord::SnapshotTaken { snapshot: label(2) },
        LogRecord::SnapshotRemoved { id: SnapshotId(2) },
        LogRecord::RolledBack {
            to: SnapshotId(2),
            before: label(3),
            keep: true,
        },
        LogRecord::ReadOnly { read_only: true },
    ]
}

/// The one that turns the history on.
fn history_batch() -> Vec<u8> {
    record_batch(&[LogRecord::History {
        window_us: 86_400_000_000,
    }])
}

/// A part of a snapshot of several volumes that is not confirmed.
fn manifest_with_proposal() -> Manifest {
    let mut manifest = manifest_with_snapshots();
    manifest.snapshots.truncate(1);
    manifest.snapshots[0].proposed = true;
    manifest
}

/// A clone on its way to independence, and one that is there.
fn manifests_of_flattened() -> [Manifest; 2] {
    let mut flattening = manifest_of_clone();
    flattening.snapshots[0].own = true;
    flattening.flatten = Some(FlattenState {
        from: Some(CheckpointId(12)),
        clean: Some(BatchSeq(4700)),
    });
    let independent = Manifest {
        origin: None,
        flatten: None,
        independent: true,
        ..flattening.clone()
    };
    [flattening, independent]
}

/// One whose head was stored anew since its snapshots.
fn manifest_with_renewal() -> Manifest {
    let mut manifest = manifest_with_snapshots();
    manifest.map.floor = CheckpointId(5);
    (manifest.scos, manifest.scos_count) = (manifest.map, 20);
    manifest.renewal = RenewalState {
        written: 70_000,
        renewed: 30_000,
    };
    manifest
}

/// Of a snapshot of several volumes.
fn group_records() -> Vec<LogRecord> {
    let LogRecord::SnapshotTaken { snapshot } = records().remove(0) else {
        panic!("the first record takes a snapshot");
    };
    let id = snapshot.id;
    vec![
        LogRecord::SnapshotProposed { snapshot },
        LogRecord::SnapshotConfirmed { id },
    ]
}

fn record_batch(records: &[LogRecord]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for record in records {
        let pieces = record.to_pieces().unwrap();
        for (at, piece) in pieces.iter().enumerate() {
            builder.push(&Entry {
                kind: EntryKind::Record(*piece),
                session: 0,
                number: 0,
                last: at + 1 == pieces.len(),
            });
        }
    }
    builder.close(header().salt(), BatchSeq(4711), Slot(8), 1_700_000_000_000_000)
}

#[test]
fn records_of_a_batch_decode_to_themselves() {
    let mut records = records();
    records.extend(group_records());
    records.push(LogRecord::Flatten);
    let batch = Batch::from_bytes(&record_batch(&records), header().salt()).unwrap();
    let (mut bytes, mut found) = (Vec::new(), Vec::new());
    for entry in batch.entries {
        let EntryKind::Record(piece) = entry.kind else {
            panic!("{entry:?} is no record");
        };
        bytes.extend_from_slice(piece.bytes());
        if entry.last {
            found.push(LogRecord::from_bytes(&std::mem::take(&mut bytes)).unwrap());
        }
    }
    assert_eq!(found, records);
}

#[test]
fn golden_files_keep_their_meaning() {
    golden("sco-header-1.bin", &header().to_bytes());
    golden("tlog-batch-1.bin", &batch());
    golden("checkpoint-1.bin", &checkpoint().0);
    golden("manifest-1.bin", &manifest().to_bytes());
    golden("manifest-2.bin", &manifest_with_ranges().to_bytes());
    golden("manifest-snapshots-1.bin", &manifest_with_snapshots().to_bytes());
    golden("manifest-clone-1.bin", &manifest_of_clone().to_bytes());
    golden("manifest-history-1.bin", &manifest_with_history().to_bytes());
    golden("manifest-proposal-1.bin", &manifest_with_proposal().to_bytes());
    golden("manifest-renewal-1.bin", &manifest_with_renewal().to_bytes());
    golden("tlog-batch-history-1.bin", &history_batch());
    let [flattening, independent] = manifests_of_flattened();
    golden("manifest-flattening-1.bin", &flattening.to_bytes());
    golden("manifest-independent-1.bin", &independent.to_bytes());
    golden("tlog-batch-flatten-1.bin", &record_batch(&[LogRecord::Flatten]));
    golden("tlog-batch-records-1.bin", &record_batch(&records()));
    golden("tlog-batch-group-1.bin", &record_batch(&group_records()));
    golden("node-ref-1.bin", &reference().to_bytes());
}

#[test]
fn what_is_encoded_decodes_to_itself() {
    assert_eq!(ScoHeader::from_bytes(&header().to_bytes()), Ok(header()));
    let decoded = Batch::from_bytes(&batch(), header().salt()).unwrap();
    assert_eq!(
        (decoded.entries, decoded.seq, decoded.first_slot),
        (entries(), BatchSeq(4711), Slot(8))
    );
    let (object, nodes) = checkpoint();
    for (at, record) in &nodes {
        let bytes = &object[at.offset as usize..][..at.length as usize];
        assert_eq!(decode_node(VOLUME, at, bytes).as_ref(), Ok(record));
    }
    assert_eq!(decode_index(VOLUME, &object).unwrap().len(), 2);
    for manifest in [
        manifest(),
        manifest_with_ranges(),
        manifest_with_snapshots(),
        manifest_with_proposal(),
        manifest_with_renewal(),
    ]
    .into_iter()
    .chain(manifests_of_flattened())
    {
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()), Ok(manifest));
    }
    assert_eq!(NodeRef::from_bytes(&reference().to_bytes()), Ok(reference()));
}

#[test]
fn a_batch_holds_only_in_its_own_sco() {
    let other = [
        ScoHeader {
            volume: VolumeId([1; 16]),
            ..header()
        },
        ScoHeader {
            id: ScoId(78),
            ..header()
        },
        ScoHeader {
            epoch: Epoch(4),
            ..header()
        },
    ];
    for header in other {
        assert!(Batch::from_bytes(&batch(), header.salt()).is_err(), "{header:?}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (object, nodes) = checkpoint();
    let (at, _) = nodes[1];
    let node = object[at.offset as usize..][..at.length as usize].to_vec();
    type Check = Box<dyn Fn(&[u8]) -> bool>;
    let formats: Vec<(&str, Vec<u8>, Check)> = vec![
        (
            "header",
            header().to_bytes().to_vec(),
            Box::new(|b| ScoHeader::from_bytes(b).is_err()),
        ),
        (
            "batch",
            batch(),
            Box::new(|b| Batch::from_bytes(b, header().salt()).is_err()),
        ),
        (
            "manifest",
            manifest().to_bytes(),
            Box::new(|b| Manifest::from_bytes(b).is_err()),
        ),
        (
            "node",
            node,
            Box::new(move |b| decode_node(VOLUME, &at, b).is_err()),
        ),
    ];
    for (name, bytes, refuses) in formats {
        assert!(!refuses(&bytes), "{name} is good before it is damaged");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(refuses(&damaged), "{name}: flipped bit {bit} went unnoticed");
        }
    }
}

#[test]
fn a_tree_higher_than_its_numbers_is_refused() {
    let mut high = manifest();
    high.scos.height = TREE_HEIGHT_MAX;
    assert!(Manifest::from_bytes(&high.to_bytes()).is_ok());
    high.scos.height += 1;
    assert!(Manifest::from_bytes(&high.to_bytes()).is_err());
}

#[test]
fn object_names_read_back_and_sort() {
    let name = |id, epoch| ObjectName::Sco {
        volume: VOLUME,
        id: ScoId(id),
        epoch: Epoch(epoch),
        version: 0,
    };
    let names = [name(1, 9), name(2, 1), name(15, 1), name(16, 0), name(4096, 3)];
    for name in names {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    assert!(names.map(|name| name.to_string()).is_sorted());
    for wrong in [
        "",
        "x/sco/1.1.0",
        "abababababababababababababababab/sco/1.1.0",
        "../../etc/passwd",
    ] {
        assert!(wrong.parse::<ObjectName>().is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = ScoHeader::from_bytes(&bytes);
        let _ = Batch::from_bytes(&bytes, header().salt());
        let _ = Manifest::from_bytes(&bytes);
        let _ = decode_index(VOLUME, &bytes);
        let at = NodeRef { length: u32::try_from(bytes.len()).unwrap(), ..reference() };
        prop_assert!(decode_node(VOLUME, &at, &bytes).is_err());
    }

    #[test]
    fn cut_off_bytes_are_refused(keep in 0.0..1.0f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                 reason = "a share of a small length")]
        let cut = |bytes: &[u8]| bytes[..(bytes.len() as f64 * keep) as usize].to_vec();
        prop_assert!(ScoHeader::from_bytes(&cut(&header().to_bytes())).is_err());
        prop_assert!(Batch::from_bytes(&cut(&batch()), header().salt()).is_err());
        prop_assert!(Manifest::from_bytes(&cut(&manifest().to_bytes())).is_err());
        prop_assert!(decode_index(VOLUME, &cut(&checkpoint().0)).is_err());
    }

    #[test]
    fn bitmaps_rank_as_a_list_would(slots in proptest::collection::btree_set(0usize..512, 0..80)) {
        let mut bitmap = Bitmap::EMPTY;
        slots.iter().for_each(|slot| bitmap.set(*slot));
        prop_assert_eq!(bitmap.iter().collect::<Vec<_>>(), slots.iter().copied().collect::<Vec<_>>());
        for at in 0..512 {
            prop_assert_eq!(bitmap.has(at), slots.contains(&at));
            prop_assert_eq!(bitmap.rank(at), slots.range(..at).count());
        }
    }
}

proptest! {
    /// What the ranges have is what any root reaches, from its floor to the object that has it; nodes of ancestors do not count.
    #[test]
    fn a_manifest_says_which_checkpoints_its_trees_need(
        roots in prop::collection::vec((0..30_u64, 0..10_u64, any::<bool>()), 0..8),
    ) {
        let root = |(floor, length, own): (u64, u64, bool)| TreeRoot {
            height: 1,
            node: Some(NodeRef {
                checkpoint: CheckpointId(floor + length),
                lineage: LineageIndex(u16::from(own)),
                ..reference()
            }),
            floor: CheckpointId(floor),
        };
        let mut manifest = manifest_with_snapshots();
        let state = manifest.snapshots[0].clone();
        (manifest.map, manifest.scos) = (TreeRoot::default(), TreeRoot::default());
        manifest.snapshots = roots
            .iter()
            .map(|found| SnapshotState { map: root(*found), ..state.clone() })
            .collect();
        let ranges = manifest.checkpoints();
        for id in 0..50 {
            let needed = roots.iter().any(|(floor, length, own)| *own && (*floor..=floor + length).contains(&id));
            let said = ranges.iter().filter(|range| range.contains(&CheckpointId(id))).count();
            prop_assert_eq!(said, usize::from(needed), "{} in {:?}", id, &ranges);
        }
        prop_assert!(ranges.is_sorted_by(|a, b| a.end().next() < *b.start()));
    }
}
