//! What a pool that keeps fragments promises: any M back ends may go, no bad byte comes out, nothing is in clear.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_fragments::{Key, Keyring};
use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{Compression, Protection};
use sconce_schemas::wire::{RefusalCode, Remedy};

use super::*;
use crate::pool::Found;
use crate::pool::tests::{ABSENT, NONE, Setup, content, name, record, setup_caring};
use crate::testing::Faults;

const REPLICA_2: Protection = Protection::Replicas(2);
const EC_2_1: Protection = Protection::Erasure { data: 2, parity: 1 };
const EC_4_2: Protection = Protection::Erasure { data: 4, parity: 2 };

fn key(id: u32, seed: u8) -> Key {
    Key::parse(id, &[seed; 32]).unwrap()
}

fn care(keys: Vec<Key>) -> Care {
    Care {
        keys: Arc::new(Keyring::new(keys).unwrap()),
        hedge_after: Duration::from_millis(50),
    }
}

fn pool_of(protection: Protection, compression: Option<Compression>, encrypted: bool, seed: u64) -> Setup {
    let mut record = record(protection.width() + 1, 1, 1);
    let is_plain = compression.is_none() && !encrypted;
    record.protection = if is_plain {
        protection
    } else {
        protection.as_fragments()
    };
    record.compression = compression;
    record.encrypted = encrypted;
    setup_caring(record, seed, care(vec![key(1, 1)]))
}

/// All policies that keep fragments.
fn policies() -> Vec<(Protection, Option<Compression>, bool)> {
    let mut policies = Vec::new();
    for protection in [
        Protection::Replicas(1),
        REPLICA_2,
        Protection::Replicas(3),
        EC_2_1,
        EC_4_2,
    ] {
        for compression in [None, Some(Compression::Lz4), Some(Compression::Zstd)] {
            for encrypted in [false, true] {
                let is_plain =
                    matches!(protection, Protection::Replicas(_)) && compression.is_none() && !encrypted;
                if !is_plain {
                    policies.push((protection, compression, encrypted));
                }
            }
        }
    }
    policies
}

/// Half noise, half the same: some chunks compress, others do not.
fn mixed(chance: &mut Chance, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    for part in bytes.chunks_mut(30_000) {
        match chance.below(3) {
            0 => chance.fill(part),
            1 => part.fill(u8::try_from(chance.below(256)).unwrap()),
            _ => {
                let (noise, rest) = part.split_at_mut(part.len() / 2);
                chance.fill(noise);
                rest.fill(9);
            }
        }
    }
    bytes.into()
}

fn length(chance: &mut Chance) -> usize {
    let most = [1, 100, 5000, 70_000, 400_000][usize::try_from(chance.below(5)).unwrap()];
    usize::try_from(chance.below(most)).unwrap()
}

impl Setup {
    /// The stored bytes of all fragments, by their numbers.
    fn fragments(&self, name: ObjectName) -> Vec<Option<Bytes>> {
        let places = self.pool.places(&name);
        places
            .iter()
            .map(|place| self.memory[*place].stored(name))
            .collect()
    }

    async fn restored(&self) {
        for _ in 0..10 {
            let restored = self.pool.restore(async |_| Ok(true)).await.unwrap();
            if restored.is_whole() {
                return;
            }
        }
        panic!("the pool is not restored");
    }
}

/// Random puts, reads and deletes against a map, while back ends are absent, lose everything, or flip bits; never more of
/// them at a time than the policy bears.
#[tokio::test(start_paused = true)]
async fn a_pool_of_any_policy_behaves_as_a_map() {
    let seeds = if std::env::var_os("SCONCE_TEST_FULL").is_some() {
        20
    } else {
        1
    };
    for (at, (protection, compression, encrypted)) in policies().into_iter().enumerate() {
        for seed in 0..seeds {
            let seed = seed * 100 + at as u64;
            as_a_map(
                &pool_of(protection, compression, encrypted, seed),
                protection,
                seed,
            )
            .await;
        }
    }
}

async fn as_a_map(setup: &Setup, protection: Protection, seed: u64) {
    let mut chance = Chance::seeded(seed);
    let mut model: BTreeMap<ObjectName, (Bytes, Vec<Option<Bytes>>)> = BTreeMap::new();
    let spare = protection.width() - setup.pool.coded.as_ref().unwrap().needed();
    for round in 0..12_u64 {
        let mut victims: Vec<usize> = (0..setup.memory.len()).collect();
        for at in (1..victims.len()).rev() {
            victims.swap(at, usize::try_from(chance.below(at as u64 + 1)).unwrap());
        }
        victims.truncate(usize::try_from(chance.below(spare as u64 + 1)).unwrap());
        let what = chance.below(3);
        for victim in &victims {
            match what {
                0 => setup.faulty[*victim].set(ABSENT),
                1 => model.keys().for_each(|name| setup.memory[*victim].lose(*name)),
                _ => {
                    for name in model.keys() {
                        if let Some(stored) = setup.memory[*victim].stored(*name) {
                            setup.memory[*victim].damage(*name, flipped(&stored, chance.u64()));
                        }
                    }
                }
            }
        }
        for step in 0..6 {
            let name = name(round * 10 + step);
            let length = length(&mut chance);
            let data = mixed(&mut chance, length);
            match setup.pool.put(name, data.clone()).await {
                Ok(()) => {
                    model.insert(name, (data, Vec::new()));
                }
                Err(refusal) => {
                    assert_eq!(refusal.remedy, Remedy::Retry, "{refusal}");
                    let absent = setup
                        .pool
                        .places(&name)
                        .iter()
                        .filter(|place| victims.contains(place))
                        .count();
                    assert!(
                        what == 0 && protection.width() - absent < setup.pool.quorum,
                        "{refusal}"
                    );
                }
            }
            for _ in 0..3 {
                let names: Vec<_> = model.keys().copied().collect();
                let Some(name) = names.get(usize::try_from(chance.below(names.len().max(1) as u64)).unwrap())
                else {
                    continue;
                };
                let data = &model[name].0;
                let offset = chance.below(data.len() as u64 + 10);
                let wanted = chance.below(100_000);
                let got = setup.pool.get(*name, offset, wanted).await.unwrap();
                let at = |offset: u64| usize::try_from(offset).unwrap().min(data.len());
                assert_eq!(
                    got,
                    data.slice(at(offset)..at(offset + wanted)),
                    "seed {seed}: {name}"
                );
                assert_eq!(setup.pool.stat(*name).await.unwrap(), data.len() as u64);
            }
        }
        setup.pool.settled().await;
        setup.faulty.iter().for_each(|faulty| faulty.set(NONE));
        setup.restored().await;
        for (name, (data, fragments)) in &mut model {
            let (found, _) = setup.pool.scrub(*name).await;
            assert!(matches!(found, Found::Good | Found::Repaired), "{found:?}");
            let now = setup.fragments(*name);
            assert!(now.iter().all(Option::is_some), "seed {seed}: {name} is restored");
            if fragments.is_empty() {
                *fragments = now;
            } else {
                assert_eq!(*fragments, now, "seed {seed}: what is rebuilt is what was there");
            }
            assert_eq!(setup.pool.get(*name, 0, u64::MAX).await.unwrap(), *data);
        }
        let listed = setup
            .pool
            .list(name(1).volume(), ObjectKind::Sco, None, 1000)
            .await
            .unwrap();
        assert!(
            model.keys().all(|name| listed.contains(name)),
            "what was answered for is listed"
        );
        if let Some(name) = model.keys().next().copied() {
            setup.pool.delete(name).await.unwrap();
            model.remove(&name);
            let gone = setup.pool.get(name, 0, 10).await.unwrap_err();
            assert_eq!(gone.code, RefusalCode::NotFound);
            let empty = setup.pool.get(name, 0, 0).await.unwrap_err();
            assert_eq!(
                empty.code,
                RefusalCode::NotFound,
                "a head that was read does not answer for it"
            );
        }
    }
}

fn flipped(stored: &Bytes, random: u64) -> Bytes {
    let mut bad = stored.to_vec();
    let bit = usize::try_from(random % (bad.len() as u64 * 8)).unwrap();
    bad[bit / 8] ^= 1 << (bit % 8);
    bad.into()
}

#[tokio::test]
async fn every_flipped_bit_is_found_and_repaired_and_never_returned() {
    let flips = if std::env::var_os("SCONCE_TEST_FULL").is_some() {
        1000
    } else {
        100
    };
    let policies = policies();
    let setups: Vec<Setup> = policies
        .iter()
        .map(|(protection, compression, encrypted)| pool_of(*protection, *compression, *encrypted, 0))
        .collect();
    let mut chance = Chance::seeded(7);
    let data = mixed(&mut chance, 200_000);
    for setup in &setups {
        setup.pool.put(name(1), data.clone()).await.unwrap();
    }
    for flip in 0..flips {
        let at = flip % setups.len();
        let (setup, protection) = (&setups[at], policies[at].0);
        if protection.width() == 1 {
            continue;
        }
        let fragment = usize::try_from(chance.below(protection.width() as u64)).unwrap();
        let place = setup.pool.places(&name(1))[fragment];
        let good = setup.memory[place].stored(name(1)).unwrap();
        // Each part of a fragment: envelope, head, padding and body.
        let random = match chance.below(3) {
            0 => chance.below(140 * 8),
            1 => chance.below(4300 * 8),
            _ => chance.u64(),
        };
        setup.memory[place].damage(name(1), flipped(&good, random));
        setup.pool.coded.as_ref().unwrap().forget(&name(1));
        assert_eq!(
            setup.pool.get(name(1), 0, u64::MAX).await.unwrap(),
            data,
            "{protection}"
        );
        setup.pool.settled().await;
        setup.pool.scrub(name(1)).await;
        assert_eq!(
            setup.memory[place].stored(name(1)).unwrap(),
            good,
            "{protection}: {random}"
        );
    }
}

/// A recovery asks for the SCO after the last one: that nobody has it must not wait for back ends that cannot have it alone.
#[tokio::test]
async fn what_too_few_back_ends_could_have_was_never_stored() {
    let setup = pool_of(EC_4_2, None, true, 9);
    let places = setup.pool.places(&name(1)).to_vec();
    for (absent, expected) in [
        (0, RefusalCode::NotFound),
        (2, RefusalCode::NotFound),
        (3, RefusalCode::NotFound),
        (4, RefusalCode::Unavailable),
        (6, RefusalCode::Unavailable),
    ] {
        for (at, place) in places.iter().enumerate() {
            setup.faulty[*place].set(if at < absent { ABSENT } else { NONE });
        }
        let refusal = setup.pool.get(name(1), 0, u64::MAX).await.unwrap_err();
        assert_eq!(refusal.code, expected, "{absent} absent: {refusal}");
    }
}

#[tokio::test]
async fn any_m_back_ends_are_destroyed_and_then_any_m_others() {
    for (protection, spare) in [(EC_4_2, 2), (EC_2_1, 1), (Protection::Replicas(3), 2)] {
        let setup = pool_of(protection, Some(Compression::Lz4), true, 3);
        let mut chance = Chance::seeded(3);
        let objects: Vec<Bytes> = (0..20).map(|_| mixed(&mut chance, 150_000)).collect();
        for (id, data) in (0..).zip(&objects) {
            setup.pool.put(name(id), data.clone()).await.unwrap();
        }
        for first in 0..setup.memory.len() {
            for memory in setup.memory.iter().cycle().skip(first).take(spare) {
                (0..20).for_each(|id| memory.lose(name(id)));
            }
            for (id, data) in (0..).zip(&objects) {
                assert_eq!(
                    setup.pool.get(name(id), 0, u64::MAX).await.unwrap(),
                    *data,
                    "{protection}"
                );
            }
            setup.pool.settled().await;
            setup.restored().await;
            for id in 0..20 {
                assert!(
                    setup.fragments(name(id)).iter().all(Option::is_some),
                    "{protection}"
                );
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_in_clear_and_without_its_key_nothing_is_read_or_touched() {
    const MARKER: &[u8] = b"nobody but the guest may read this";
    for compression in [None, Some(Compression::Zstd)] {
        for protection in [REPLICA_2, EC_4_2] {
            let setup = pool_of(protection, compression, true, 5);
            let mut data = content(5, 300_000).to_vec();
            data[100_000..200_000].fill(0);
            for at in [0, 4096, 150_000, 299_900] {
                data[at..at + MARKER.len()].copy_from_slice(MARKER);
            }
            setup.pool.put(name(1), data.clone().into()).await.unwrap();
            let fragments = setup.fragments(name(1));
            for stored in fragments.iter().flatten() {
                assert!(
                    !stored.windows(MARKER.len()).any(|bytes| bytes == MARKER),
                    "{protection}"
                );
            }
            for (keys, wanted) in [
                (vec![], "(none)"),
                (vec![key(2, 2)], "key 1, which is not among the keys here (2)"),
                (vec![key(1, 9)], "another key 1"),
            ] {
                let other = setup_caring(setup.pool.record().clone(), 0, care(keys));
                for (index, memory) in setup.memory.iter().enumerate() {
                    if let Some(stored) = memory.stored(name(1)) {
                        other.memory[index].damage(name(1), stored);
                    }
                }
                let refusal = other.pool.get(name(1), 0, 100).await.unwrap_err();
                assert_eq!(refusal.remedy, Remedy::Retry);
                assert!(
                    refusal.text.contains(wanted) && refusal.text.contains("pool \"main\""),
                    "{refusal}"
                );
                other.pool.settled().await;
                assert_eq!(other.fragments(name(1)), fragments);
                // Whoever has no key repairs all the same.
                let lost = other.pool.places(&name(1))[1];
                other.memory[lost].lose(name(1));
                other.restored().await;
                assert_eq!(other.fragments(name(1)), fragments);
            }
        }
    }
    let no_key = pool_of(EC_2_1, None, true, 0);
    let no_key = setup_caring(no_key.pool.record().clone(), 0, care(vec![]));
    let refusal = no_key.pool.put(name(1), content(1, 10)).await.unwrap_err();
    assert!(
        refusal.remedy == Remedy::Retry && refusal.text.contains("[[keys]]"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_new_key_writes_and_the_old_one_reads() {
    let setup = pool_of(EC_2_1, None, true, 0);
    setup.pool.put(name(1), content(1, 100_000)).await.unwrap();
    let rotated = setup_caring(setup.pool.record().clone(), 0, care(vec![key(2, 2), key(1, 1)]));
    for (old, new) in setup.memory.iter().zip(&rotated.memory) {
        if let Some(stored) = old.stored(name(1)) {
            new.damage(name(1), stored);
        }
    }
    assert_eq!(
        rotated.pool.get(name(1), 5, 70_000).await.unwrap(),
        content(1, 100_000).slice(5..70_005)
    );
    // A put that is sent again after the keys were changed finds its object; another one does not take its name.
    rotated.pool.put(name(1), content(1, 100_000)).await.unwrap();
    assert_eq!(rotated.fragments(name(1)), setup.fragments(name(1)));
    let other = rotated.pool.put(name(1), content(2, 100_000)).await.unwrap_err();
    assert_eq!(other.code, RefusalCode::Exists);
    rotated.pool.put(name(2), content(2, 100_000)).await.unwrap();
    let coded = rotated.pool.coded.as_ref().unwrap();
    for (id, wanted) in [(1, 1), (2, 2)] {
        let survey = rotated.pool.survey(coded, name(id)).await;
        assert_eq!(survey.sets[0].head.sealing().unwrap().key, wanted);
    }
}

#[tokio::test]
async fn what_too_few_back_ends_have_is_not_listed_until_it_is_put_again() {
    let setup = pool_of(EC_4_2, None, false, 0);
    let places = setup.pool.places(&name(1));
    for place in &places[..3] {
        setup.faulty[*place].set(ABSENT);
    }
    let refusal = setup.pool.put(name(1), content(1, 100_000)).await.unwrap_err();
    assert_eq!(refusal.remedy, Remedy::Retry);
    setup.faulty.iter().for_each(|faulty| faulty.set(NONE));
    // A back end that is absent on purpose has done what it was asked.
    places[..3]
        .iter()
        .for_each(|place| setup.memory[*place].lose(name(1)));
    let volume = name(1).volume();
    let listed = async || setup.pool.list(volume, ObjectKind::Sco, None, 10).await.unwrap();
    assert_eq!(listed().await, [], "three of four fragments are none");
    let everywhere = setup
        .pool
        .list_everywhere(volume, ObjectKind::Sco, None, 10)
        .await
        .unwrap();
    assert_eq!(everywhere, [name(1)], "whoever cleans up sees it");
    let refusal = setup.pool.get(name(1), 0, 10).await.unwrap_err();
    assert_eq!(refusal.remedy, Remedy::Damaged, "{refusal}");
    setup.pool.put(name(1), content(1, 100_000)).await.unwrap();
    assert_eq!(listed().await, [name(1)]);
    assert_eq!(
        setup.pool.get(name(1), 0, u64::MAX).await.unwrap(),
        content(1, 100_000)
    );
}

/// A put is refused because its name is taken, after it reached a back end that had nothing of the object.
#[tokio::test]
async fn a_fragment_of_a_refused_put_is_never_read_as_one_of_the_objects() {
    for (away, length) in [(0, 100_000), (1, 100_000), (0, 10), (5, 50_000)] {
        let setup = pool_of(EC_4_2, None, false, 0);
        let data = content(1, 100_000);
        let places = setup.pool.places(&name(1));
        setup.faulty[places[away]].set(ABSENT);
        setup.pool.put(name(1), data.clone()).await.unwrap();
        setup.faulty[places[away]].set(NONE);
        // As a crash leaves it: one fragment, where nothing was.
        let other = setup_caring(setup.pool.record().clone(), 0, care(vec![]));
        other.pool.put(name(1), content(2, length)).await.unwrap();
        let stray = other.memory[places[away]].stored(name(1)).unwrap();
        setup.memory[places[away]].damage(name(1), stray);
        setup.pool.coded.as_ref().unwrap().forget(&name(1));
        for offset in [0, 30_000, 60_000, 90_000] {
            assert_eq!(setup.pool.stat(name(1)).await.unwrap(), 100_000);
            let got = setup.pool.get(name(1), offset, 5000).await.unwrap();
            let at = usize::try_from(offset).unwrap();
            assert_eq!(got, data.slice(at..at + 5000));
        }
        let refusal = setup.pool.put(name(1), content(2, length)).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Exists);
        setup.pool.settled().await;
        let coded = setup.pool.coded.as_ref().unwrap();
        let survey = setup.pool.survey(coded, name(1)).await;
        assert_eq!(
            (survey.sets.len(), survey.sets[0].members()),
            (1, 6),
            "and is replaced"
        );
        assert_eq!(setup.pool.get(name(1), 0, u64::MAX).await.unwrap(), data);
    }
}

/// Two storage-routers put the same object, one with the next key already: whoever comes second agrees with the first.
#[tokio::test]
async fn puts_in_two_encodings_come_to_one_set() {
    for reached in 1..6 {
        let setup = pool_of(EC_4_2, None, true, 0);
        let data = content(1, 100_000);
        let places = setup.pool.places(&name(1));
        let old = setup_caring(setup.pool.record().clone(), 0, care(vec![key(1, 1)]));
        old.pool.put(name(1), data.clone()).await.unwrap();
        let both = setup_caring(setup.pool.record().clone(), 0, care(vec![key(1, 1), key(2, 2)]));
        for place in &places[..reached] {
            both.memory[*place].damage(name(1), old.memory[*place].stored(name(1)).unwrap());
        }
        both.pool.put(name(1), data.clone()).await.unwrap();
        let coded = both.pool.coded.as_ref().unwrap();
        let survey = both.pool.survey(coded, name(1)).await;
        let set = &survey.sets[0];
        assert_eq!((survey.sets.len(), set.members()), (1, 6), "{reached}");
        // Two of the first one's leave the second its quorum; three were one too many for it.
        let key = if reached <= 2 { 2 } else { 1 };
        assert_eq!(set.head.sealing().unwrap().key, key, "{reached}");
        assert_eq!(both.pool.get(name(1), 0, u64::MAX).await.unwrap(), data);
    }
}

/// What is not compressed lies behind what is: the places in the body are not those in the object.
#[tokio::test]
async fn every_range_is_right_where_compressed_and_plain_chunks_mix() {
    const CHUNK: usize = 65_536;
    for protection in [REPLICA_2, EC_2_1, EC_4_2] {
        for compression in [Compression::Lz4, Compression::Zstd] {
            let setup = pool_of(protection, Some(compression), false, 0);
            let mut data = content(1, 16 * CHUNK).to_vec();
            for chunk in data.chunks_mut(CHUNK).step_by(2) {
                chunk.fill(0);
            }
            let data = Bytes::from(data);
            setup.pool.put(name(1), data.clone()).await.unwrap();
            for lost in [None, Some(0), Some(1)] {
                if let Some(lost) = lost {
                    setup.faulty[setup.pool.places(&name(1))[lost]].set(ABSENT);
                }
                for at in (0..data.len()).step_by(4096 * 5) {
                    for length in [1, 4096, 70_000] {
                        let end = data.len().min(at + length);
                        let got = setup.pool.get(name(1), at as u64, length as u64).await.unwrap();
                        assert_eq!(got, data.slice(at..end), "{protection} {compression} {at}");
                    }
                }
                setup.faulty.iter().for_each(|faulty| faulty.set(NONE));
            }
        }
    }
}

#[tokio::test]
async fn with_a_back_end_away_nothing_is_read_that_cannot_be_written() {
    let setup = pool_of(EC_4_2, None, false, 0);
    for id in 0..10 {
        setup.pool.put(name(id), content(id, 50_000)).await.unwrap();
    }
    setup.faulty[2].set(ABSENT);
    let asked = || async {
        let mut requests = 0;
        for index in 0..setup.memory.len() {
            requests += setup.pool.backend(index).unwrap().status().await.requests;
        }
        requests
    };
    let before = asked().await;
    let restored = setup.pool.restore(async |_| Ok(true)).await.unwrap();
    assert_eq!((restored.objects, restored.left, restored.absent), (10, 0, 1));
    // Volumes, and each kind of one volume's objects.
    assert_eq!(asked().await - before, 4 * setup.memory.len() as u64);
    assert!(setup.pool.is_short(), "whoever comes back is looked at");
}

#[tokio::test(start_paused = true)]
async fn a_back_end_that_hangs_costs_a_read_the_hedge_and_a_put_its_patience() {
    let setup = pool_of(EC_4_2, None, false, 0);
    let data = content(1, 100_000);
    setup.pool.put(name(1), data.clone()).await.unwrap();
    let places = setup.pool.places(&name(1));
    let hangs = Faults {
        slow: 1000,
        delay_max: Duration::from_secs(1 << 40),
        ..NONE
    };
    setup.faulty[places[0]].set(hangs);
    // For the head, and for the range; then for the range alone.
    for hedges in [2, 1] {
        let begun = tokio::time::Instant::now();
        assert_eq!(
            setup.pool.get(name(1), 0, 5000).await.unwrap(),
            data.slice(..5000)
        );
        assert_eq!(begun.elapsed(), Duration::from_millis(50) * hedges);
    }
    let begun = tokio::time::Instant::now();
    setup.pool.put(name(1), data).await.unwrap();
    assert_eq!(begun.elapsed(), crate::share::PATIENCE);
}

#[tokio::test]
async fn after_a_change_of_the_map_fragments_are_found_where_they_were() {
    let before = pool_of(EC_2_1, None, false, 0);
    let mut record = before.pool.record().clone();
    record.placement_version = 2;
    record.backends.push(sconce_schemas::records::PlacementEntry {
        backend: "disk-4".to_owned(),
        weight: 5,
    });
    let after = setup_caring(record, 0, care(vec![]));
    for id in 0..20 {
        before.pool.put(name(id), content(id, 50_000)).await.unwrap();
        for (index, memory) in before.memory.iter().enumerate() {
            if let Some(stored) = memory.stored(name(id)) {
                after.memory[index].damage(name(id), stored);
            }
        }
        assert_eq!(
            after.pool.get(name(id), 100, 40_000).await.unwrap(),
            content(id, 50_000).slice(100..40_100)
        );
    }
}
