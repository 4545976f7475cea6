//! What a pool promises: all copies or no answer, good bytes or an error, and every bad copy repaired.

mod bundles;
mod packed;

use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::Chance;
use sconce_schemas::records::PlacementEntry;
use sconce_schemas::wire::{RefusalCode, Remedy};
use sconce_schemas::{Epoch, ScoId};

use super::*;
use crate::share::PATIENCE;
use crate::testing::{Faults, FaultyBackend, MemoryBackend};

pub(super) struct Setup {
    pub(super) pool: Arc<Pool>,
    pub(super) memory: Vec<Arc<MemoryBackend>>,
    pub(super) faulty: Vec<Arc<FaultyBackend>>,
}

pub(super) const ABSENT: Faults = faults(0, 1000);
const FULL: Faults = faults(1000, 0);
pub(super) const NONE: Faults = faults(0, 0);

const fn faults(full: u16, absent: u16) -> Faults {
    Faults {
        slow: 0,
        delay_max: Duration::ZERO,
        full,
        absent,
        flip: 0,
        lost_answer: 0,
        torn: 0,
    }
}

pub(super) fn record(backends: usize, replicas: u8, placement_version: u64) -> PoolRecord {
    let entry = |index| PlacementEntry {
        backend: format!("disk-{index}"),
        weight: 1,
    };
    PoolRecord {
        name: "main".to_owned(),
        protection: Protection::Replicas(replicas),
        backends: (0..backends).map(entry).collect(),
        placement_version,
        compression: None,
        encrypted: false,
        keys: Vec::new(),
        change: None,
    }
}

/// No keys, and time for a slow read.
fn care() -> Care {
    Care {
        keys: Arc::default(),
        hedge_after: Duration::from_millis(100),
    }
}

fn setup_with(record: PoolRecord, seed: u64) -> Setup {
    setup_caring(record, seed, care())
}

pub(super) fn setup_caring(record: PoolRecord, seed: u64, care: Care) -> Setup {
    let memory: Vec<_> = (0..record.backends.len())
        .map(|index| Arc::new(MemoryBackend::new(&format!("disk-{index}"), 1 << 30)))
        .collect();
    let faulty: Vec<_> = (seed..)
        .zip(&memory)
        .map(|(seed, memory)| Arc::new(FaultyBackend::new(memory.clone(), NONE, seed)))
        .collect();
    let checked = |faulty: &Arc<FaultyBackend>| {
        Arc::new(Checked::new(
            faulty.clone(),
            Workers::inline(),
            Duration::from_secs(30),
        ))
    };
    let named = faulty
        .iter()
        .map(|faulty| (crate::Backend::name(&**faulty).to_owned(), checked(faulty)));
    let pool = Pool::new(record, &named.collect(), Workers::inline(), care).unwrap();
    Setup { pool, memory, faulty }
}

fn setup(backends: usize, replicas: u8) -> Setup {
    setup_with(record(backends, replicas, 1), 0)
}

impl Setup {
    fn copies(&self, name: ObjectName) -> Vec<usize> {
        (0..self.memory.len())
            .filter(|index| self.memory[*index].stored(name).is_some())
            .collect()
    }
}

pub(super) fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

pub(super) fn content(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    Chance::seeded(seed).fill(&mut bytes);
    bytes.into()
}

#[tokio::test]
async fn every_replica_is_on_a_back_end_of_its_own_before_a_put_is_done() {
    let setup = setup(5, 3);
    for id in 1..50 {
        setup.pool.put(name(id), content(id, 5000)).await.unwrap();
        assert_eq!(setup.copies(name(id)).len(), 3);
        let rank = setup.pool.placement.rank(&name(id));
        setup.faulty[rank[2]].set(ABSENT);
        let refusal = setup.pool.put(name(id + 1000), content(id, 5000)).await;
        let is_placed_there = setup.pool.places(&name(id + 1000)).contains(&rank[2]);
        assert_eq!(refusal.is_err(), is_placed_there);
        if let Err(refusal) = refusal {
            assert_eq!(
                (refusal.remedy, refusal.code),
                (Remedy::Retry, RefusalCode::Unavailable)
            );
            assert!(refusal.text.contains(&format!("disk-{}", rank[2])), "{refusal}");
        }
        setup.faulty[rank[2]].set(NONE);
        setup
            .pool
            .put(name(id + 1000), content(id, 5000))
            .await
            .expect("sent again");
    }
}

#[tokio::test]
async fn full_is_a_retry_and_other_content_is_rejected() {
    let setup = setup(2, 2);
    setup.faulty[1].set(FULL);
    let full = setup.pool.put(name(1), content(1, 100)).await.unwrap_err();
    assert_eq!((full.remedy, full.code), (Remedy::Retry, RefusalCode::NoSpace));
    assert!(full.text.contains("\"disk-1\": it is full"), "{full}");
    setup.faulty[1].set(NONE);
    setup.pool.put(name(1), content(1, 100)).await.unwrap();
    let exists = setup.pool.put(name(1), content(2, 100)).await.unwrap_err();
    assert_eq!(
        (exists.remedy, exists.code),
        (Remedy::Reject, RefusalCode::Exists)
    );
    assert_eq!(setup.pool.get(name(1), 0, 100).await.unwrap(), content(1, 100));
    let large = Bytes::from(vec![0; (96 << 20) + 1]);
    let refused = setup.pool.put(name(2), large).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Invalid);
}

#[tokio::test]
async fn a_name_has_one_content_also_where_a_back_end_lost_it_and_took_another() {
    let setup = setup(2, 2);
    let (first, second) = (content(1, 600_000), content(2, 500_000));
    setup.pool.put(name(1), first.clone()).await.unwrap();
    setup.memory[1].lose(name(1));
    let refusal = setup.pool.put(name(1), second).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Exists);
    // Whichever back end is asked.
    for away in [0, 1] {
        setup.faulty[away].set(ABSENT);
        assert_eq!(
            setup.pool.get(name(1), 0, 600_000).await.unwrap(),
            first,
            "without {away}"
        );
        setup.faulty[away].set(NONE);
    }
    setup.pool.put(name(1), first).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_noticed_repaired_and_never_returned() {
    let setup = setup(2, 2);
    let data = content(3, 2 * 4096 + 100);
    setup.pool.put(name(1), data.clone()).await.unwrap();
    let good = setup.memory[0].stored(name(1)).unwrap();
    let first = setup.pool.places(&name(1))[0];
    let positions =
        (0..good.len() * 8).filter(|bit| bit / 8 < 140 || bit / 8 + 30 > good.len() || bit % 61 == 0);
    for bit in positions {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        setup.memory[first].damage(name(1), bad.into());
        assert_eq!(
            setup.pool.get(name(1), 0, 100_000).await.unwrap(),
            data,
            "bit {bit}"
        );
        setup.pool.settled().await;
        assert_eq!(
            setup.memory[first].stored(name(1)).unwrap(),
            good,
            "bit {bit} is repaired"
        );
    }
}

#[tokio::test]
async fn copies_that_are_missing_cut_foreign_or_each_damaged_elsewhere_are_repaired() {
    let setup = setup(3, 2);
    let data = content(4, 600_000);
    setup.pool.put(name(1), data.clone()).await.unwrap();
    let [one, two] = setup.pool.places(&name(1)).try_into().unwrap();
    let good = setup.memory[one].stored(name(1)).unwrap();
    let foreign = sealed(2).to_stored();
    for bad in [
        None,
        Some(good.slice(..good.len() / 2)),
        Some(good.slice(..5)),
        Some(Bytes::new()),
        Some(foreign),
    ] {
        match bad {
            Some(bad) => setup.memory[one].damage(name(1), bad),
            None => crate::Backend::delete(&*setup.memory[one], name(1))
                .await
                .unwrap(),
        }
        assert_eq!(
            setup.pool.get(name(1), 300_000, 5000).await.unwrap(),
            data.slice(300_000..305_000)
        );
        setup.pool.settled().await;
        assert_eq!(setup.memory[one].stored(name(1)).unwrap(), good);
    }
    let flipped_at = |at: usize| {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        Bytes::from(bad)
    };
    setup.memory[one].damage(name(1), flipped_at(1000));
    setup.memory[two].damage(name(1), flipped_at(500_000));
    assert_eq!(
        setup.pool.get(name(1), 0, 4096).await.unwrap(),
        data.slice(..4096)
    );
    setup.pool.settled().await;
    assert_eq!(
        setup.memory[one].stored(name(1)).unwrap(),
        good,
        "made of the good parts of both"
    );
    assert_eq!(
        setup.memory[two].stored(name(1)).unwrap(),
        flipped_at(500_000),
        "not yet read there"
    );
}

fn sealed(id: u64) -> sconce_schemas::stored_object::SealedObject {
    sconce_schemas::stored_object::SealedObject::seal(name(id), content(id, 600_000)).unwrap()
}

#[tokio::test]
async fn a_damaged_copy_met_by_a_put_is_replaced() {
    let setup = setup(2, 2);
    setup.pool.put(name(1), content(1, 9000)).await.unwrap();
    let good = setup.memory[1].stored(name(1)).unwrap();
    setup.memory[1].damage(name(1), good.slice(..200));
    setup.pool.put(name(1), content(1, 9000)).await.unwrap();
    assert_eq!(setup.memory[1].stored(name(1)).unwrap(), good);
    setup.memory[1].damage(name(1), good.slice(..200));
    let other = setup.pool.put(name(1), content(2, 9000)).await.unwrap_err();
    assert_eq!(other.code, RefusalCode::Exists, "the whole copy decides");
}

#[tokio::test]
async fn with_no_good_copy_the_error_names_volume_object_and_back_ends() {
    let setup = setup(2, 2);
    setup.pool.put(name(1), content(1, 9000)).await.unwrap();
    for memory in &setup.memory {
        memory.damage(name(1), Bytes::from_static(b"rubbish"));
    }
    let refusal = setup.pool.get(name(1), 0, 9000).await.unwrap_err();
    assert_eq!(
        (refusal.remedy, refusal.code),
        (Remedy::Damaged, RefusalCode::Corrupt)
    );
    for part in [
        &name(1).to_string(),
        &name(1).volume().to_string(),
        "disk-0",
        "disk-1",
    ] {
        assert!(refusal.text.contains(part), "{refusal}");
    }
    setup.faulty[0].set(ABSENT);
    let refusal = setup.pool.get(name(1), 0, 9000).await.unwrap_err();
    assert_eq!(refusal.remedy, Remedy::Retry, "the absent copy may be good");
    let gone = setup.pool.get(name(2), 0, 10).await.unwrap_err();
    assert_eq!(gone.remedy, Remedy::Retry, "the absent back end may have it");
    setup.faulty[0].set(NONE);
    let gone = setup.pool.stat(name(2)).await.unwrap_err();
    assert_eq!((gone.remedy, gone.code), (Remedy::Reject, RefusalCode::NotFound));
}

#[tokio::test(start_paused = true)]
async fn a_back_end_that_hangs_delays_one_read_and_not_all() {
    let setup = setup(2, 2);
    let first = setup.pool.places(&name(1))[0];
    setup.pool.put(name(1), content(1, 100)).await.unwrap();
    let hangs = Faults {
        slow: 1000,
        delay_max: Duration::from_secs(1 << 40),
        ..NONE
    };
    setup.faulty[first].set(hangs);
    let begun = tokio::time::Instant::now();
    let read = || setup.pool.get(name(1), 0, 100);
    let others = async {
        // The first read waits; the others go elsewhere as soon as that shows, and stay there.
        tokio::time::sleep(PATIENCE).await;
        for _ in 0..50 {
            assert_eq!(read().await.unwrap(), content(1, 100));
        }
        assert_eq!(begun.elapsed(), PATIENCE);
    };
    let (first_read, ()) = tokio::join!(read(), others);
    assert_eq!(first_read.unwrap(), content(1, 100));
    assert_eq!(begun.elapsed(), Duration::from_secs(30), "one deadline");
    for _ in 0..50 {
        assert_eq!(read().await.unwrap(), content(1, 100));
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(30), "and not another");
    setup.faulty[first].set(NONE);
    setup.pool.put(name(1), content(1, 100)).await.unwrap();
    assert!(
        setup.pool.backend(first).unwrap().works(),
        "a put finds it at work again"
    );
}

#[tokio::test]
async fn deletes_reach_all_copies_or_say_which_is_left_and_repairs_do_not_bring_them_back() {
    let setup = setup(2, 2);
    for id in 0..40 {
        setup.pool.put(name(id), content(id, 3000)).await.unwrap();
        crate::Backend::delete(&*setup.memory[setup.pool.places(&name(id))[0]], name(id))
            .await
            .unwrap();
        setup.pool.get(name(id), 0, 10).await.unwrap();
        // A repair is under way now.
        setup.pool.delete(name(id)).await.unwrap();
        setup.pool.settled().await;
        assert_eq!(setup.copies(name(id)), Vec::<usize>::new());
    }
    setup.pool.put(name(1), content(1, 3000)).await.unwrap();
    setup.faulty[1].set(ABSENT);
    let refusal = setup.pool.delete(name(1)).await.unwrap_err();
    assert!(
        refusal.remedy == Remedy::Retry && refusal.text.contains("disk-1"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_listing_is_complete_with_one_copy_of_each_object_in_reach() {
    let setup = setup(3, 2);
    for id in 1..=30 {
        setup.pool.put(name(id), content(id, 10)).await.unwrap();
    }
    let volume = name(1).volume();
    setup.faulty[2].set(ABSENT);
    let mut paged: Vec<ObjectName> = Vec::new();
    loop {
        let page = setup
            .pool
            .list(volume, ObjectKind::Sco, paged.last().copied(), 7)
            .await
            .unwrap();
        paged.extend(&page);
        if page.len() < 7 {
            break;
        }
    }
    assert_eq!(paged, (1..=30).map(name).collect::<Vec<_>>());
    assert_eq!(setup.pool.list_volumes(None, 10).await.unwrap(), [volume]);
    let everywhere = setup.pool.list_everywhere(volume, ObjectKind::Sco, None, 7);
    let refusal = everywhere.await.unwrap_err();
    assert!(
        refusal.remedy == Remedy::Retry && refusal.text.contains("disk-2"),
        "one that is away may have the only copy that is left: {refusal}"
    );
    setup.faulty[1].set(ABSENT);
    let refusal = setup
        .pool
        .list(volume, ObjectKind::Sco, None, 7)
        .await
        .unwrap_err();
    assert!(
        refusal.remedy == Remedy::Retry && refusal.text.contains("disk-1"),
        "{refusal}"
    );
}

#[tokio::test]
async fn after_a_change_of_the_map_objects_are_found_where_they_were() {
    let before = setup(2, 2);
    for id in 1..=30 {
        before.pool.put(name(id), content(id, 100)).await.unwrap();
    }
    let after = setup_with(record(4, 2, 2), 0);
    for id in 1..=30 {
        for old in 0..2 {
            after.memory[old].damage(name(id), before.memory[old].stored(name(id)).unwrap());
        }
        assert_eq!(after.pool.get(name(id), 0, 100).await.unwrap(), content(id, 100));
        after.pool.settled().await;
        let copies = after.copies(name(id));
        assert!(
            after
                .pool
                .places(&name(id))
                .iter()
                .any(|place| copies.contains(place))
        );
        after.pool.delete(name(id)).await.unwrap();
        assert_eq!(after.copies(name(id)), Vec::<usize>::new(), "old places too");
    }
}

#[tokio::test]
async fn a_back_end_without_settings_is_named() {
    let pool = Pool::new(record(1, 1, 1), &HashMap::new(), Workers::inline(), care()).unwrap();
    let refusal = pool.put(name(1), Bytes::new()).await.unwrap_err();
    assert!(
        refusal.remedy == Remedy::Retry && refusal.text.contains("does not know where it is"),
        "{refusal}"
    );
}

#[test]
fn records_that_cannot_be_followed_are_refused() {
    let refused = |record| {
        Pool::new(record, &HashMap::new(), Workers::inline(), care())
            .err()
            .unwrap_or_default()
    };
    assert!(refused(record(1, 0, 1)).contains("replica:1 to replica:8"));
    assert!(refused(record(9, 9, 1)).contains("replica:1 to replica:8"));
    assert!(refused(record(2, 3, 1)).contains("replica:3, but 2 back ends"));
    let mut drained = record(2, 2, 1);
    drained.backends[0].weight = 0;
    assert!(refused(drained).contains("1 back ends"));
    let mut twice = record(2, 1, 1);
    twice.backends[1].backend = "disk-0".to_owned();
    assert!(refused(twice).contains("\"disk-0\" twice"));
}

/// Everything goes wrong at once; a caller that follows the remedies gets every object back, and nothing else.
#[tokio::test(start_paused = true)]
async fn under_all_faults_a_patient_caller_loses_nothing_and_never_sees_bad_bytes() {
    for seed in 0..200 {
        let setup = setup_with(record(3, 2, 1), seed * 10);
        let mut chance = Chance::seeded(seed);
        for faulty in &setup.faulty {
            let mut odds = || u16::try_from(chance.below(250)).unwrap();
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
        for id in 1..=8 {
            let data = content(seed + id, 9000);
            patient(async || setup.pool.put(name(id), data.clone()).await).await;
            assert_eq!(setup.copies(name(id)).len(), 2);
            let offset = chance.below(9000);
            let at = usize::try_from(offset).unwrap();
            let got = patient(async || setup.pool.get(name(id), offset, 5000).await).await;
            assert_eq!(got, data.slice(at..9000.min(at + 5000)));
            setup.pool.settled().await;
        }
    }
}

async fn patient<T>(mut ask: impl AsyncFnMut() -> Result<T, Refusal>) -> T {
    for _ in 0..1000 {
        match ask().await {
            Ok(done) => return done,
            // Bits flip on the way here, so what is damaged on both copies now is good at the next read.
            Err(refusal) => assert!(
                matches!(refusal.remedy, Remedy::Retry | Remedy::Damaged),
                "{refusal}"
            ),
        }
    }
    panic!("never done")
}
