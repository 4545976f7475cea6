//! Whatever happens to its file, a cache gives a piece unharmed or not at all, and takes pieces again afterwards.

mod support;

use proptest::prelude::*;
use sconce_cache::{Cache, Use};
use support::{LONG, MemoryDisk, key, open, piece};

const CELLS: u32 = 24;
const PIECE: u32 = 4096;

#[derive(Debug, Clone)]
enum Step {
    Put(u32),
    Get(u32),
    Settle,
    Corrupt,
    Delete,
    Restart,
    LosePower,
    Fill,
    FailReads,
    Heal,
    Wait,
    /// The process dies in that write and is started again.
    DieIn(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..60_u32).prop_map(Step::Put),
        12 => (0..60_u32).prop_map(Step::Get),
        4 => Just(Step::Settle),
        2 => Just(Step::Corrupt),
        1 => Just(Step::Delete),
        1 => Just(Step::Restart),
        1 => Just(Step::LosePower),
        1 => Just(Step::Fill),
        1 => Just(Step::FailReads),
        2 => Just(Step::Heal),
        1 => Just(Step::Wait),
        1 => (1..12_usize).prop_map(Step::DieIn),
    ]
}

/// A cache, its disk, and what must be true of both.
struct World {
    disk: MemoryDisk,
    cache: Cache,
    random: fastrand::Rng,
    looked_up: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let disk = MemoryDisk::default();
        let mut random = fastrand::Rng::with_seed(seed);
        disk.state().nothing_in_memory = random.bool();
        Self {
            cache: open(&disk, CELLS, PIECE).await,
            disk,
            random,
            looked_up: 0,
        }
    }

    async fn reopen(&mut self) {
        self.cache = open(&self.disk, CELLS, PIECE).await;
        self.looked_up = 0;
    }

    async fn get(&mut self, number: u32) -> bool {
        self.looked_up += 1;
        let got = self.cache.get(&key(number), Use::Counts).await;
        if let Some(got) = &got {
            assert_eq!(*got, piece(number, PIECE), "piece {number} is not what was put");
        }
        let counters = self.cache.counters();
        assert_eq!(counters.hits + counters.misses, self.looked_up);
        assert!(counters.pieces < u64::from(CELLS));
        got.is_some()
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Put(number) => self.cache.put(key(number), piece(number, PIECE)),
            Step::Get(number) => {
                self.get(number).await;
            }
            Step::Settle => self.cache.settled().await,
            Step::Corrupt => self.disk.corrupt(&mut self.random),
            Step::Delete => self.disk.delete(),
            Step::Restart => {
                self.disk.restart();
                self.reopen().await;
            }
            Step::LosePower => {
                self.disk.lose_power(&mut self.random);
                self.reopen().await;
            }
            Step::Fill => self.disk.state().is_full = true,
            Step::FailReads => self.disk.state().reads_fail = true,
            Step::Heal => self.heal(),
            Step::Wait => tokio::time::advance(LONG).await,
            Step::DieIn(writes) => {
                self.disk.state().writes_left = Some(writes);
                for number in 100..100 + 4 {
                    self.cache.put(key(number), piece(number, PIECE));
                }
                self.cache.settled().await;
                self.disk.restart();
                self.reopen().await;
            }
        }
    }

    fn heal(&self) {
        let mut state = self.disk.state();
        state.is_full = false;
        state.reads_fail = false;
    }

    /// After all that, a disk that is well again is a cache again.
    async fn works_again(&mut self) {
        self.heal();
        // What failed before says so, however late its thread is: the wait after that begins there.
        self.cache.settled().await;
        tokio::time::advance(LONG).await;
        // A lookup is what tries again; the first write after a deletion is what notices it.
        for number in [1000, 1001] {
            self.get(number).await;
            self.cache.settled().await;
            self.cache.put(key(number), piece(number, PIECE));
            self.cache.settled().await;
        }
        assert!(!self.cache.counters().off);
        // Cells whose reads failed are not used again.
        if self.cache.counters().errors == 0 {
            assert!(
                self.get(1001).await,
                "a cache that is well does not give what it was given"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_given_is_what_was_put(seed in any::<u64>(), steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new(seed).await;
            for step in steps {
                world.take(step).await;
            }
            world.works_again().await;
        });
    }
}
