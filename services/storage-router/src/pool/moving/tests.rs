//! What a change of the placement map promises: every object is found at any moment by whoever knows the map or the one before, exactly
//! what has to moves, and what leaves is empty.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::{Compression, PlacementEntry, PoolRecord, Protection};

use super::*;
use crate::checked::Checked;
use crate::pool::tests::{ABSENT, NONE, content, name};
use crate::pool::{Care, Walk};
use crate::testing::{FaultyBackend, MemoryBackend};
use crate::workers::Workers;

const REPLICA_2: Protection = Protection::Replicas(2);
const EC_4_2: Protection = Protection::Erasure { data: 4, parity: 2 };

/// Back ends, and a pool on some of them.
struct World {
    memory: Vec<Arc<MemoryBackend>>,
    faulty: Vec<Arc<FaultyBackend>>,
    backends: HashMap<String, Arc<Checked>>,
    record: PoolRecord,
    pool: Arc<Pool>,
}

fn disk(index: usize) -> String {
    format!("disk-{index}")
}

fn weights(of: &[(usize, u32)]) -> Vec<PlacementEntry> {
    let entry = |(index, weight): &(usize, u32)| PlacementEntry {
        backend: disk(*index),
        weight: *weight,
    };
    of.iter().map(entry).collect()
}

impl World {
    /// A pool on the first of so many back ends.
    fn new(protection: Protection, compression: Option<Compression>, first: usize, all: usize) -> Self {
        let memory: Vec<_> = (0..all)
            .map(|index| Arc::new(MemoryBackend::new(&disk(index), 1 << 30)))
            .collect();
        let faulty: Vec<_> = (0..)
            .zip(&memory)
            .map(|(seed, memory)| Arc::new(FaultyBackend::new(memory.clone(), NONE, seed)))
            .collect();
        let checked = faulty.iter().enumerate().map(|(index, faulty)| {
            let checked = Checked::new(faulty.clone(), Workers::inline(), Duration::from_secs(30));
            (disk(index), Arc::new(checked))
        });
        let backends: HashMap<_, _> = checked.collect();
        let record = PoolRecord::proposed(
            "main".to_owned(),
            protection,
            (0..first).map(disk),
            compression,
            false,
        );
        let care = Care {
            keys: Arc::default(),
            hedge_after: Duration::from_millis(100),
        };
        let pool = Pool::new(record.clone(), &backends, Workers::inline(), care).unwrap();
        Self {
            memory,
            faulty,
            backends,
            record,
            pool,
        }
    }

    /// The pool goes on by a newer record; the one before is given back.
    fn goes_on_by(&mut self, record: PoolRecord) -> Arc<Pool> {
        let next = self.pool.succeeded_by(record.clone(), &self.backends).unwrap();
        self.record = record;
        std::mem::replace(&mut self.pool, next)
    }

    fn announce(&mut self, of: &[(usize, u32)], lost: &[usize]) -> Arc<Pool> {
        let lost: Vec<String> = lost.iter().copied().map(disk).collect();
        self.goes_on_by(self.record.announcing(&weights(of), &lost))
    }

    fn place(&mut self) -> Arc<Pool> {
        self.goes_on_by(self.record.placing())
    }

    /// While the placement changes, what it comes to where that is announced.
    fn next(&self) -> Option<Option<&[PlacementEntry]>> {
        let change = self.record.change.as_ref();
        change.map(|change| change.next.as_deref())
    }

    /// One walk: objects that moved, bytes that were written, objects that were left.
    async fn walk(&self) -> (u64, u64, u64) {
        let (mut walk, mut moved, mut bytes, mut left) = (Walk::default(), 0, 0, 0);
        while let Some(batch) = walk.next(&self.pool).await.unwrap() {
            left += batch.absent().len() as u64;
            for name in batch.names() {
                let Some(mut done) = self.pool.move_object(&batch, name).await else {
                    continue;
                };
                self.pool.remove_extras(&mut done).await;
                moved += u64::from(done.bytes > 0);
                bytes += done.bytes;
                left += u64::from(done.is_left);
            }
        }
        (moved, bytes, left)
    }

    async fn settle(&mut self) {
        for _ in 0..5 {
            if self.walk().await.2 == 0 {
                self.goes_on_by(self.record.settled());
                return;
            }
        }
        panic!("the objects do not come to where they belong");
    }

    fn on(&self, name: ObjectName) -> Vec<usize> {
        let has = |index: &usize| self.memory[*index].stored(name).is_some();
        (0..self.memory.len()).filter(has).collect()
    }

    /// Where the map wants an object, as numbers of disks.
    fn wanted(&self, name: ObjectName) -> Vec<usize> {
        let number = |place: &usize| self.record.backends[*place].backend[5..].parse().unwrap();
        let mut wanted: Vec<usize> = self.pool.places(&name).iter().map(number).collect();
        wanted.sort_unstable();
        wanted
    }

    async fn assert_reads(&self, pool: &Arc<Pool>, id: u64, data: &Bytes) {
        let length = data.len() as u64;
        assert_eq!(
            pool.get(name(id), 0, length).await.as_ref(),
            Ok(data),
            "object {id}"
        );
        let part = pool.get(name(id), length / 3, length / 2).await.unwrap();
        assert_eq!(part, data.slice(data.len() / 3..data.len() / 3 + data.len() / 2));
    }
}

/// Only what has to moves: the share of the back end that joins, and all of the one that leaves.
#[tokio::test]
async fn a_back_end_that_joins_takes_its_share_and_one_that_leaves_is_empty() {
    const OBJECTS: u64 = 400;
    /// All fragments are as long.
    const OBJECT_BYTES: usize = 1 << 16;
    for (protection, compression) in [
        (REPLICA_2, None),
        (EC_4_2, None),
        (EC_4_2, Some(Compression::Lz4)),
        (REPLICA_2, Some(Compression::Zstd)),
    ] {
        let mut world = World::new(protection, compression, 6, 7);
        for id in 0..OBJECTS {
            world.pool.put(name(id), content(id, OBJECT_BYTES)).await.unwrap();
        }
        let stored = |world: &World, id| -> u64 {
            let on = world.on(name(id));
            world.memory[on[0]].stored(name(id)).unwrap().len() as u64
        };
        for change in [[(6, 1)], [(2, 0)], [(0, 3)]] {
            let before: Vec<Vec<usize>> = (0..OBJECTS).map(|id| world.on(name(id))).collect();
            world.announce(&change, &[]);
            world.place();
            let due: Vec<u64> = (0..OBJECTS)
                .map(|id| {
                    let has = &before[usize::try_from(id).unwrap()];
                    let new = world
                        .wanted(name(id))
                        .into_iter()
                        .filter(|place| !has.contains(place));
                    new.count() as u64
                })
                .collect();
            let ideal: u64 = (0..).zip(&due).map(|(id, due)| due * stored(&world, id)).sum();
            let (moved, bytes, left) = world.walk().await;
            assert_eq!(left, 0);
            assert_eq!(moved, due.iter().filter(|due| **due > 0).count() as u64);
            assert!(
                bytes.abs_diff(ideal) <= ideal / 100,
                "{protection:?} {change:?}: {bytes} {ideal}"
            );
            let all: u64 = due.iter().sum();
            if change == [(6, 1)] {
                let share = OBJECTS * protection.width() as u64 / 7;
                assert!(all.abs_diff(share) < share / 5, "{all} of {share}");
            }
            world.settle().await;
            for id in 0..OBJECTS {
                assert_eq!(world.on(name(id)), world.wanted(name(id)));
                world
                    .assert_reads(&world.pool, id, &content(id, OBJECT_BYTES))
                    .await;
            }
        }
        assert!((0..OBJECTS).all(|id| world.memory[2].stored(name(id)).is_none()));
        assert!(world.record.backends.iter().all(|entry| entry.backend != disk(2)));
    }
}

/// A disk that died is given up: what was on it is made again, and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn what_was_on_a_lost_back_end_is_made_again() {
    for (protection, compression) in [
        (REPLICA_2, None),
        (EC_4_2, None),
        (Protection::Replicas(3), Some(Compression::Lz4)),
    ] {
        let mut world = World::new(protection, compression, 7, 7);
        for id in 0..60 {
            world.pool.put(name(id), content(id, 50_000)).await.unwrap();
        }
        world.faulty[3].set(ABSENT);
        world.announce(&[(3, 0)], &[3]);
        world.place();
        world.settle().await;
        for id in 0..60 {
            let on: Vec<usize> = world.on(name(id)).into_iter().filter(|on| *on != 3).collect();
            assert_eq!(on, world.wanted(name(id)));
            world.assert_reads(&world.pool, id, &content(id, 50_000)).await;
        }
        // Any others may go now: what is there is whole.
        for lost in [0, 5] {
            world.faulty[lost].set(ABSENT);
            if protection == EC_4_2 || lost == 0 {
                for id in 0..60 {
                    world.assert_reads(&world.pool, id, &content(id, 50_000)).await;
                }
            }
        }
    }
}

/// While objects move, back ends are away that have more of an object than its policy bears: nobody says that it is gone, or bad.
#[tokio::test(start_paused = true)]
async fn what_is_away_before_it_moved_is_not_lost() {
    for (protection, compression) in [
        (EC_4_2, None),
        (REPLICA_2, None),
        (REPLICA_2, Some(Compression::Lz4)),
    ] {
        let width = protection.width();
        let mut world = World::new(protection, compression, width, 2 * width);
        for id in 0..20 {
            world.pool.put(name(id), content(id, 9000)).await.unwrap();
        }
        let change: Vec<(usize, u32)> = (0..2 * width)
            .map(|disk| (disk, u32::from(disk >= width)))
            .collect();
        world.announce(&change, &[]);
        world.place();
        (0..width).for_each(|disk| world.faulty[disk].set(ABSENT));
        for id in 0..20 {
            let read = world.pool.get(name(id), 0, 100).await.unwrap_err();
            assert_eq!(read.remedy, sconce_schemas::wire::Remedy::Retry, "{read}");
            let put = world
                .pool
                .put(name(id), content(id + 99, 9000))
                .await
                .unwrap_err();
            assert_eq!(put.remedy, sconce_schemas::wire::Remedy::Retry, "{put}");
            assert_eq!(world.pool.scrub(name(id)).await.0, crate::pool::Found::Left);
        }
        (0..width - 1).for_each(|disk| world.faulty[disk].set(NONE));
        assert!(world.walk().await.2 > 0, "one of them is away");
        world.faulty[width - 1].set(NONE);
        world.settle().await;
        for id in 0..20 {
            assert_eq!(world.on(name(id)), world.wanted(name(id)));
            world.assert_reads(&world.pool, id, &content(id, 9000)).await;
        }
    }
}

/// What has no good copy left keeps its back end in the pool, until that is given up; then the move ends.
#[tokio::test(start_paused = true)]
async fn what_is_bad_stays_in_the_pool_until_it_is_given_up() {
    let mut world = World::new(Protection::Replicas(1), None, 2, 3);
    for id in 0..20 {
        world.pool.put(name(id), content(id, 20_000)).await.unwrap();
    }
    let bad = (0..20).find(|id| world.on(name(*id)) == [0]).unwrap();
    let mut stored = world.memory[0].stored(name(bad)).unwrap().to_vec();
    *stored.last_mut().unwrap() ^= 1;
    world.memory[0].damage(name(bad), stored.into());
    world.announce(&[(0, 0), (2, 1)], &[]);
    world.place();
    for _ in 0..2 {
        assert_eq!(world.walk().await.2, 1);
    }
    let good = world.pool.get(name(bad), 0, 4096).await.unwrap();
    assert_eq!(good, content(bad, 20_000).slice(..4096));
    world.announce(&[], &[0]);
    world.place();
    world.settle().await;
    for id in (0..20).filter(|id| *id != bad) {
        world.assert_reads(&world.pool, id, &content(id, 20_000)).await;
    }
}

/// Of two copies one is on a disk that died, and the other is bad: that is told, and the move ends all the same. Nobody waits for the disk.
#[tokio::test(start_paused = true)]
async fn a_lost_back_end_is_asked_for_nothing() {
    let mut world = World::new(REPLICA_2, None, 3, 3);
    for id in 0..20 {
        world.pool.put(name(id), content(id, 9000)).await.unwrap();
    }
    let bad = (0..20).find(|id| world.on(name(*id)) == [0, 1]).unwrap();
    let mut stored = world.memory[1].stored(name(bad)).unwrap().to_vec();
    *stored.last_mut().unwrap() ^= 1;
    world.memory[1].damage(name(bad), stored.into());
    world.faulty[0].set(ABSENT);
    world.announce(&[(0, 0)], &[0]);
    world.place();
    let refusal = world.pool.get(name(bad), 8192, 500).await.unwrap_err();
    assert_eq!(refusal.remedy, sconce_schemas::wire::Remedy::Damaged, "{refusal}");
    let other = (0..20).find(|id| *id != bad).unwrap();
    world.pool.delete(name(other)).await.unwrap();
    let listed = world
        .pool
        .list_everywhere(name(0).volume(), ObjectKind::Sco, None, 100)
        .await
        .unwrap();
    assert_eq!(listed.len(), 19);
    world.settle().await;
    for id in (0..20).filter(|id| ![bad, other].contains(id)) {
        let on: Vec<usize> = world.on(name(id)).into_iter().filter(|on| *on != 0).collect();
        assert_eq!(on, [1, 2]);
        world.assert_reads(&world.pool, id, &content(id, 9000)).await;
    }
}

/// While a back end is away that something has to come to, or may be on, the move is not over.
#[tokio::test(start_paused = true)]
async fn a_back_end_that_is_away_is_waited_for() {
    for protection in [REPLICA_2, EC_4_2] {
        let mut world = World::new(protection, None, 6, 7);
        for id in 0..40 {
            world.pool.put(name(id), content(id, 9000)).await.unwrap();
        }
        world.announce(&[(6, 1), (1, 0)], &[]);
        world.place();
        for away in [6, 1] {
            world.faulty[away].set(ABSENT);
            assert!(world.walk().await.2 > 0, "{protection:?}: {away} is away");
            world.faulty[away].set(NONE);
        }
        world.settle().await;
        for id in 0..40 {
            assert_eq!(world.on(name(id)), world.wanted(name(id)));
        }
    }
}

/// A mover that died between the copy and the removal, and a fragment that went bad where it was.
#[tokio::test]
async fn a_move_that_was_cut_short_is_gone_on_with() {
    for protection in [REPLICA_2, EC_4_2] {
        let mut world = World::new(protection, None, 6, 7);
        for id in 0..60 {
            world.pool.put(name(id), content(id, 9000)).await.unwrap();
        }
        world.announce(&[(6, 2), (4, 0)], &[]);
        world.place();
        let mut walk = Walk::default();
        while let Some(batch) = walk.next(&world.pool).await.unwrap() {
            for name in batch.names() {
                world.pool.move_object(&batch, name).await;
            }
        }
        assert!((0..60).any(|id| world.memory[4].stored(name(id)).is_some()));
        for id in 0..60 {
            // Of some objects the copy that has just come is bad, of others the one that is not removed.
            let victim = if id % 2 == 0 { 6 } else { 4 };
            if let Some(stored) = world.memory[victim].stored(name(id))
                && id % 3 == 0
            {
                let mut bad = stored.to_vec();
                *bad.last_mut().unwrap() ^= 1;
                world.memory[victim].damage(name(id), bad.into());
            }
        }
        world.settle().await;
        for id in 0..60 {
            assert_eq!(world.on(name(id)), world.wanted(name(id)), "{protection:?} {id}");
            world.assert_reads(&world.pool, id, &content(id, 9000)).await;
            let (found, _) = world.pool.scrub(name(id)).await;
            assert_eq!(found, crate::pool::Found::Good, "{protection:?} {id}");
        }
    }
}

/// A fragment that is there twice, on two of the object's own back ends, gives way to the one that has no place.
#[tokio::test]
async fn a_place_that_has_another_ones_fragment_gets_its_own() {
    let mut world = World::new(EC_4_2, None, 6, 7);
    for id in 0..60 {
        world.pool.put(name(id), content(id, 9000)).await.unwrap();
    }
    world.announce(&[(6, 1)], &[]);
    world.place();
    let mut doubled = 0;
    for id in 0..60 {
        let (has, wanted) = (world.on(name(id)), world.wanted(name(id)));
        let stays = wanted.iter().find(|place| has.contains(place)).unwrap();
        if wanted.contains(&6) {
            let stored = world.memory[*stays].stored(name(id)).unwrap();
            world.memory[6].damage(name(id), stored);
            doubled += 1;
        }
    }
    assert!(doubled > 20);
    world.settle().await;
    for id in 0..60 {
        assert_eq!(world.on(name(id)), world.wanted(name(id)), "{id}");
        let (found, _) = world.pool.scrub(name(id)).await;
        assert_eq!(found, crate::pool::Found::Good, "{id}");
        world.assert_reads(&world.pool, id, &content(id, 9000)).await;
    }
}

/// An object that has not moved yet is on none of the back ends that the map has for it.
#[tokio::test]
async fn a_name_keeps_its_content_wherever_that_is() {
    for compression in [None, Some(Compression::Lz4)] {
        let mut world = World::new(REPLICA_2, compression, 2, 4);
        world.pool.put(name(1), content(1, 9000)).await.unwrap();
        world.announce(&[(0, 0), (1, 0), (2, 1), (3, 1)], &[]);
        world.place();
        let refusal = world.pool.put(name(1), content(2, 9000)).await.unwrap_err();
        assert_eq!(
            refusal.code,
            sconce_schemas::wire::RefusalCode::Exists,
            "{refusal}"
        );
        assert_eq!(world.on(name(1)), [0, 1]);
        world.pool.put(name(1), content(1, 9000)).await.unwrap();
        world.assert_reads(&world.pool, 1, &content(1, 9000)).await;
        world.settle().await;
        assert_eq!(world.on(name(1)), [2, 3]);
        world.assert_reads(&world.pool, 1, &content(1, 9000)).await;
    }
}

/// Random puts, the same puts again, reads, deletes and listings by two storage-routers of which one knows each next record later, while
/// weights change and objects move: as a map, by both.
#[tokio::test(start_paused = true)]
async fn two_that_are_one_record_apart_see_the_same_objects() {
    let seeds = if std::env::var_os("SCONCE_TEST_FULL").is_some() {
        200
    } else {
        12
    };
    for seed in 0..seeds {
        let mut chance = Chance::seeded(seed);
        let (protection, compression) = match seed % 4 {
            0 => (REPLICA_2, None),
            1 => (EC_4_2, None),
            2 => (Protection::Erasure { data: 2, parity: 1 }, Some(Compression::Lz4)),
            _ => (REPLICA_2, Some(Compression::Zstd)),
        };
        let mut world = World::new(
            protection,
            compression,
            protection.width() + 1,
            protection.width() + 3,
        );
        let mut behind = Arc::clone(&world.pool);
        let mut map: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut next = 0;
        for step in 0..300 {
            let at = format!("seed {seed}, step {step}");
            let known: Vec<u64> = map.keys().copied().collect();
            let some = (!known.is_empty())
                .then(|| known[usize::try_from(chance.below(known.len() as u64)).unwrap()]);
            let pool = match chance.below(2) {
                0 => Arc::clone(&world.pool),
                _ => Arc::clone(&behind),
            };
            match (chance.below(20), some) {
                (0..7, _) => {
                    let data = content(
                        seed * 1000 + next,
                        usize::try_from(chance.below(30_000) + 1).unwrap(),
                    );
                    pool.put(name(next), data.clone()).await.expect(&at);
                    map.insert(next, data);
                    next += 1;
                }
                (7, Some(id)) => pool.put(name(id), map[&id].clone()).await.expect(&at),
                (8, Some(id)) => {
                    let refused = pool.put(name(id), content(id + 7777, 100)).await;
                    assert!(refused.is_err(), "{at}: {id} has two contents");
                }
                (9 | 10, Some(id)) => {
                    pool.delete(name(id)).await.expect(&at);
                    map.remove(&id);
                    assert!(world.on(name(id)).is_empty(), "{at}");
                }
                (11..15, Some(id)) => world.assert_reads(&pool, id, &map[&id]).await,
                (15, _) => {
                    let listed = pool
                        .list(name(0).volume(), ObjectKind::Sco, None, 1000)
                        .await
                        .expect(&at);
                    assert_eq!(
                        listed,
                        known.iter().map(|id| name(*id)).collect::<Vec<_>>(),
                        "{at}"
                    );
                }
                (16, _) => {
                    // The one behind comes to know what the other does; only then the other goes on.
                    let (index, weight) = (chance.below(world.memory.len() as u64), chance.below(3));
                    let change = [(usize::try_from(index).unwrap(), u32::try_from(weight).unwrap())];
                    let wanted = world.record.announcing(&weights(&change), &[]);
                    let takers = wanted.wanted().iter().filter(|entry| entry.weight > 0).count();
                    if takers >= protection.width() && world.record.change.is_none() {
                        behind = world.announce(&change, &[]);
                    }
                }
                (17, _) if world.next().is_some_and(|next| next.is_some()) => behind = world.place(),
                (18, _) if world.next().is_some_and(|next| next.is_none()) => {
                    behind = Arc::clone(&world.pool);
                    let (_, _, left) = world.walk().await;
                    assert_eq!(left, 0, "{at}");
                    if chance.below(2) == 0 {
                        behind = world.goes_on_by(world.record.settled());
                    }
                }
                _ => {}
            }
        }
        for (id, data) in &map {
            world.assert_reads(&world.pool, *id, data).await;
            world.assert_reads(&behind, *id, data).await;
        }
    }
}
