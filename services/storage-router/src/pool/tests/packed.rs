//! What a pool promises of SCOs that are scrubbed: the same bytes at the same places, from whichever version is there.

use std::path::PathBuf;

use sconce_schemas::packed_sco::PackedSco;
use sconce_schemas::sco::ScoHeader;
use sconce_schemas::{BatchSeq, ScoSize, Slot};

use super::*;
use crate::directory::{DirectoryBackend, DirectorySettings};

/// Header and TLog area of the smallest SCO.
const FRONT: usize = 8192;
const CLUSTERS: usize = 40;
const LENGTH: usize = FRONT + CLUSTERS * 4096;

/// A pool of two copies on two back ends, and what lies on them.
struct World {
    setup: Option<Setup>,
    roots: Vec<PathBuf>,
    pool: Arc<Pool>,
    _dir: tempfile::TempDir,
}

impl World {
    fn memory() -> Self {
        let setup = setup(2, 2);
        Self {
            pool: Arc::clone(&setup.pool),
            setup: Some(setup),
            roots: Vec::new(),
            _dir: tempfile::tempdir().unwrap(),
        }
    }

    async fn directories() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<_> = (0..2)
            .map(|index| dir.path().join(format!("disk-{index}")))
            .collect();
        let mut backends = HashMap::new();
        for root in &roots {
            let name = root.file_name().unwrap().to_str().unwrap().to_owned();
            let backend = DirectoryBackend::new(DirectorySettings {
                name: name.clone(),
                root: root.clone(),
                node: "sr-1".parse().unwrap(),
                expected: None,
            });
            backend.attach().await.unwrap();
            let checked = Checked::new(
                Arc::new(backend),
                Workers::bounded(2, 1 << 30),
                Duration::from_secs(30),
            );
            backends.insert(name, Arc::new(checked));
        }
        Self {
            setup: None,
            pool: Pool::new(record(2, 2, 1), &backends, Workers::bounded(2, 1 << 30), care()).unwrap(),
            roots,
            _dir: dir,
        }
    }

    fn stored(&self, backend: usize, name: ObjectName) -> Option<Bytes> {
        match &self.setup {
            Some(setup) => setup.memory[backend].stored(name),
            None => std::fs::read(self.roots[backend].join(name.to_string()))
                .ok()
                .map(Bytes::from),
        }
    }

    fn damage(&self, backend: usize, name: ObjectName, stored: Option<Bytes>) {
        let file = || self.roots[backend].join(name.to_string());
        match (&self.setup, stored) {
            (Some(setup), Some(stored)) => setup.memory[backend].damage(name, stored),
            (Some(setup), None) => setup.memory[backend].lose(name),
            (None, Some(stored)) => std::fs::write(file(), stored).unwrap(),
            (None, None) => std::fs::remove_file(file()).unwrap(),
        }
    }

    async fn read(&self, name: ObjectName, offset: usize, length: usize) -> Bytes {
        self.pool
            .get(name, offset as u64, length as u64)
            .await
            .unwrap_or_else(|refusal| panic!("{name} {offset} {length}: {refusal}"))
    }
}

fn version(id: u64, version: u16) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        version,
    }
}

/// A SCO that ends in the middle of a cluster.
fn sco(id: u64) -> Bytes {
    let header = ScoHeader {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        size: ScoSize::new(64).unwrap(),
        first_batch: BatchSeq(1),
        synced_below: ScoId(1),
    };
    let mut object = content(id, LENGTH - 100).to_vec();
    object[..64].copy_from_slice(&header.to_bytes());
    object.into()
}

/// Version 1 keeps two thirds of the clusters, version 2 one third, ...
fn is_live(version: u16) -> impl Fn(Slot) -> bool {
    move |slot| slot.0 % 3 >= version
}

fn packed(id: u64, version: u16) -> Bytes {
    PackedSco::pack(&sco(id), is_live(version)).unwrap()
}

/// What readers must see of a version.
fn seen(id: u64, version: u16) -> Bytes {
    let mut seen = sco(id).to_vec();
    for (slot, cluster) in (0..).zip(seen[FRONT..].chunks_mut(4096)) {
        if !is_live(version)(Slot(slot)) {
            cluster.fill(0);
        }
    }
    seen.into()
}

/// Reads all, parts, and what lies across and beyond the end.
async fn reads_as(world: &World, asked: ObjectName, id: u64, version: u16) {
    let seen = seen(id, version);
    assert_eq!(
        world.read(asked, 0, 1 << 20).await,
        seen,
        "{asked} as version {version}"
    );
    assert_eq!(world.pool.stat(asked).await.unwrap(), seen.len() as u64);
    let mut chance = Chance::seeded(id + u64::from(version));
    let mut below = |most: usize| usize::try_from(chance.below(most as u64)).unwrap();
    for round in 0..60 {
        let (offset, length) = match round {
            // Whole clusters, as fs-routers ask, and any bytes.
            0..40 => (FRONT + below(CLUSTERS) * 4096, (1 + below(6)) * 4096),
            _ => (below(LENGTH + 5000), below(30_000)),
        };
        let from = offset.min(seen.len());
        let to = (offset + length).min(seen.len());
        assert_eq!(
            world.read(asked, offset, length).await,
            seen.slice(from..to),
            "{asked} {offset} {length}"
        );
    }
}

async fn both_kinds(test: impl AsyncFn(World)) {
    test(World::memory()).await;
    test(World::directories().await).await;
}

#[tokio::test]
async fn any_range_of_any_version_reads_the_same_before_and_after_the_older_ones_are_deleted() {
    both_kinds(async |world| {
        world.pool.put(version(1, 0), sco(1)).await.unwrap();
        reads_as(&world, version(1, 0), 1, 0).await;
        for newest in 1..=3 {
            world
                .pool
                .put(version(1, newest), packed(1, newest))
                .await
                .unwrap();
            reads_as(&world, version(1, newest), 1, newest).await;
            // Within the grace time a reader of the older version misses nothing.
            reads_as(&world, version(1, newest - 1), 1, newest - 1).await;
            world.pool.delete(version(1, newest - 1)).await.unwrap();
            for late in 0..=newest {
                reads_as(&world, version(1, late), 1, newest).await;
            }
        }
        let smaller = world.stored(0, version(1, 3)).unwrap().len();
        assert!(
            smaller < FRONT + 4096 + 1000,
            "{smaller} bytes for the areas in front alone"
        );
        world.pool.delete(version(1, 3)).await.unwrap();
        for late in 0..=3 {
            let gone = world.pool.get(version(1, late), 0, 10).await.unwrap_err();
            assert_eq!((gone.remedy, gone.code), (Remedy::Reject, RefusalCode::NotFound));
            assert!(gone.text.contains(&version(1, late).to_string()), "{gone}");
            assert_eq!(
                world.pool.stat(version(1, late)).await.unwrap_err().code,
                RefusalCode::NotFound
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_bad_copy_of_a_packed_sco_is_never_seen_and_repaired_whichever_version_was_asked_for() {
    both_kinds(async |world| {
        let newest = version(1, 1);
        world.pool.put(newest, packed(1, 1)).await.unwrap();
        let first = world.pool.places(&newest)[0];
        let good = world.stored(first, newest).unwrap();
        let flipped = |at: usize| {
            let mut bad = good.to_vec();
            bad[at] ^= 4;
            Some(Bytes::from(bad))
        };
        let bad_copies = [
            None,
            flipped(3),
            flipped(1000),
            flipped(good.len() - 1),
            Some(good.slice(..good.len() / 2)),
            // At the end of a chunk: the copy looks like a shorter object.
            Some(good.slice(..128 + 4 * 4100)),
            Some(Bytes::new()),
        ];
        for asked in [newest, version(1, 0)] {
            for bad in &bad_copies {
                for offset in [0, FRONT, LENGTH - 4096] {
                    // A router that has read the head before, and one that has not.
                    for is_known in [true, false] {
                        if !is_known {
                            world.pool.heads.forget(&newest);
                        }
                        world.damage(first, newest, bad.clone());
                        assert_eq!(
                            world.read(asked, offset, 4096).await,
                            seen(1, 1).slice(offset..(offset + 4096).min(LENGTH - 100))
                        );
                        // What this range did not touch is found by a read of all.
                        assert_eq!(world.read(asked, 0, 1 << 20).await, seen(1, 1));
                        assert_eq!(world.pool.stat(asked).await.unwrap(), (LENGTH - 100) as u64);
                        world.pool.settled().await;
                        world.pool.heads.forget(&newest);
                        assert_eq!(world.read(asked, 0, 1 << 20).await, seen(1, 1));
                        world.pool.settled().await;
                        assert_eq!(world.stored(first, newest).unwrap(), good, "repaired");
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn with_no_good_copy_of_a_packed_sco_the_error_names_it() {
    let world = World::memory();
    world.pool.put(version(1, 1), packed(1, 1)).await.unwrap();
    for backend in 0..2 {
        world.damage(backend, version(1, 1), Some(Bytes::from_static(b"rubbish")));
    }
    for asked in [version(1, 0), version(1, 1)] {
        let refusal = world.pool.get(asked, 0, 10).await.unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Damaged);
        for part in [&version(1, 1).to_string(), "disk-0", "disk-1"] {
            assert!(refusal.text.contains(part), "{refusal}");
        }
    }
}

#[tokio::test]
async fn a_newer_version_answers_where_no_copy_of_the_older_is_good() {
    let world = World::memory();
    world.pool.put(version(1, 0), sco(1)).await.unwrap();
    world.pool.put(version(1, 1), packed(1, 1)).await.unwrap();
    let rubbish = || Some(Bytes::from_static(b"rubbish"));
    // Damaged on both; on one, while its deletion has come as far as the other.
    for copies in [[rubbish(), rubbish()], [rubbish(), None]] {
        for (backend, copy) in copies.into_iter().enumerate() {
            world.damage(backend, version(1, 0), copy);
        }
        for _ in 0..2 {
            assert_eq!(world.read(version(1, 0), 0, 1 << 20).await, seen(1, 1));
        }
    }
    // With that one bad too there is nothing left, and the error is of both.
    for backend in 0..2 {
        world.damage(backend, version(1, 1), rubbish());
    }
    for _ in 0..2 {
        let refusal = world.pool.get(version(1, 0), 0, 10).await.unwrap_err();
        assert_eq!(refusal.remedy, Remedy::Damaged, "{refusal}");
    }
}

#[tokio::test]
async fn what_is_no_packed_sco_is_not_stored_as_one() {
    let world = World::memory();
    let longer = [packed(1, 1), Bytes::from_static(b"more")].concat();
    for wrong in [
        Bytes::new(),
        sco(1),
        packed(1, 1).slice(..LENGTH / 2),
        longer.into(),
    ] {
        let refusal = world.pool.put(version(1, 1), wrong).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reject, RefusalCode::Invalid)
        );
        assert!(refusal.text.contains(&version(1, 1).to_string()), "{refusal}");
    }
    assert_eq!(world.stored(0, version(1, 1)), None);
}

/// Requests that reached the back ends.
async fn requests(setup: &Setup) -> u64 {
    let mut requests = 0;
    for index in 0..setup.memory.len() {
        requests += setup.pool.backend(index).unwrap().status().await.requests;
    }
    requests
}

#[tokio::test]
async fn one_listing_is_enough_for_the_versions_of_many_scos_and_none_is_needed_again() {
    let setup = setup(2, 2);
    for id in 1..=20 {
        setup.pool.put(version(id, 1), packed(id, 1)).await.unwrap();
    }
    let read = async |id| {
        let before = requests(&setup).await;
        let got = setup.pool.get(version(id, 0), FRONT as u64, 4096).await.unwrap();
        assert_eq!(got, seen(id, 1).slice(FRONT..FRONT + 4096));
        requests(&setup).await - before
    };
    assert_eq!(
        read(1).await,
        2 + 2 + 2,
        "both places, both listings, head and data"
    );
    assert_eq!(read(2).await, 2 + 2, "both places, head and data");
    for id in [1, 2] {
        assert_eq!(read(id).await, 1, "data");
    }
    setup.pool.heads.forget(&version(1, 1));
    assert_eq!(read(1).await, 2, "head and data");
}

#[tokio::test]
async fn a_remembered_version_that_is_gone_is_looked_up_again() {
    both_kinds(async |world| {
        world.pool.put(version(1, 1), packed(1, 1)).await.unwrap();
        reads_as(&world, version(1, 0), 1, 1).await;
        world.pool.put(version(1, 2), packed(1, 2)).await.unwrap();
        reads_as(&world, version(1, 0), 1, 1).await;
        world.pool.delete(version(1, 1)).await.unwrap();
        reads_as(&world, version(1, 0), 1, 2).await;
        // A scrub that was given up left version 3, and the sweep removed it.
        world.pool.put(version(1, 3), packed(1, 3)).await.unwrap();
        world.pool.put(version(1, 2), packed(1, 2)).await.unwrap();
        world.pool.versions.clear();
        reads_as(&world, version(1, 0), 1, 3).await;
        world.pool.delete(version(1, 3)).await.unwrap();
        reads_as(&world, version(1, 0), 1, 2).await;
    })
    .await;
}

#[tokio::test]
async fn a_head_is_not_remembered_beyond_its_object() {
    let world = World::memory();
    for live in [1, 2] {
        world.pool.put(version(1, 1), packed(1, live)).await.unwrap();
        reads_as(&world, version(1, 1), 1, live).await;
        world.pool.delete(version(1, 1)).await.unwrap();
        assert!(world.pool.get(version(1, 1), 0, 10).await.is_err());
    }
}

#[tokio::test]
async fn more_versions_than_a_listing_shows_end_at_the_newest() {
    let setup = setup(2, 2);
    for other in [version(1, 1000), version(3, 1)] {
        setup.pool.put(other, packed(1, 1)).await.unwrap();
    }
    for number in 1..=2000 {
        let live = if number == 2000 { 2 } else { 1 };
        setup.pool.put(version(2, number), packed(2, live)).await.unwrap();
    }
    let got = setup.pool.get(version(2, 0), 0, 1 << 20).await.unwrap();
    assert_eq!(got, seen(2, 2));
}

#[tokio::test]
async fn another_ownerships_sco_of_the_same_number_is_not_a_version() {
    let world = World::memory();
    let ObjectName::Sco { volume, id, .. } = version(1, 0) else {
        panic!("a SCO")
    };
    let other = ObjectName::Sco {
        volume,
        id,
        epoch: Epoch(2),
        version: 1,
    };
    world.pool.put(other, packed(1, 1)).await.unwrap();
    world.pool.put(version(2, 1), packed(2, 1)).await.unwrap();
    let gone = world.pool.get(version(1, 0), 0, 10).await.unwrap_err();
    assert_eq!((gone.remedy, gone.code), (Remedy::Reject, RefusalCode::NotFound));
}

#[tokio::test]
async fn a_newer_version_answers_where_the_older_may_be_on_an_absent_back_end() {
    let setup = setup(2, 2);
    setup.pool.put(version(1, 1), packed(1, 1)).await.unwrap();
    setup.faulty[1].set(ABSENT);
    let read = async |name| setup.pool.get(name, 0, 1 << 20).await;
    for _ in 0..2 {
        assert_eq!(read(version(1, 0)).await.unwrap(), seen(1, 1));
    }
    let refusal = read(version(2, 0)).await.unwrap_err();
    assert_eq!(refusal.remedy, Remedy::Retry, "it may be there: {refusal}");
    assert!(refusal.text.contains("disk-1"), "{refusal}");
    setup.faulty[0].set(ABSENT);
    assert_eq!(read(version(1, 0)).await.unwrap_err().remedy, Remedy::Retry);
    for faulty in &setup.faulty {
        faulty.set(NONE);
    }
    // It was on the absent one after all: it was not taken for gone.
    setup.memory[1].damage(version(1, 0), {
        let sealed = sconce_schemas::stored_object::SealedObject::seal(version(1, 0), sco(1)).unwrap();
        sealed.to_stored()
    });
    assert_eq!(read(version(1, 0)).await.unwrap(), seen(1, 0));
}

#[tokio::test]
async fn a_listing_that_is_not_possible_is_a_retry_that_says_why() {
    let setup = setup_with(record(3, 1, 1), 0);
    let place = setup.pool.places(&version(1, 0))[0];
    setup.faulty[(place + 1) % 3].set(ABSENT);
    let refusal = setup.pool.get(version(1, 0), 0, 10).await.unwrap_err();
    assert_eq!(
        (refusal.remedy, refusal.code),
        (Remedy::Retry, RefusalCode::Unavailable)
    );
    let absent = format!("disk-{}", (place + 1) % 3);
    for part in [&version(1, 0).to_string(), &absent] {
        assert!(refusal.text.contains(part), "{refusal}");
    }
}

/// Everything goes wrong while SCOs are scrubbed: a late reader sees what is live, or is told to come again.
#[tokio::test(start_paused = true)]
async fn under_all_faults_a_late_reader_sees_what_is_live() {
    for seed in 0..100 {
        let setup = setup_with(record(3, 2, 1), seed * 10);
        let mut chance = Chance::seeded(seed);
        for faulty in &setup.faulty {
            let mut odds = || u16::try_from(chance.below(200)).unwrap();
            faulty.set(Faults {
                slow: odds(),
                delay_max: Duration::from_secs(40),
                full: odds(),
                absent: odds(),
                flip: odds(),
                lost_answer: odds(),
                torn: odds(),
            });
        }
        patient(async || setup.pool.put(version(1, 0), sco(1)).await).await;
        for newest in 1..=3 {
            patient(async || setup.pool.put(version(1, newest), packed(1, newest)).await).await;
            patient(async || setup.pool.delete(version(1, newest - 1)).await).await;
            for _ in 0..10 {
                let asked = u16::try_from(chance.below(u64::from(newest) + 1)).unwrap();
                let (offset, length) = (chance.below(LENGTH as u64), chance.below(50_000));
                let got = patient(async || setup.pool.get(version(1, asked), offset, length).await).await;
                let (seen, from) = (seen(1, newest), usize::try_from(offset).unwrap());
                let to = seen.len().min(from + usize::try_from(length).unwrap());
                assert_eq!(got, seen.slice(from.min(seen.len())..to), "seed {seed}");
            }
            setup.pool.settled().await;
        }
    }
}
