//! A process that is simulated: all of it lives on one thread, and what a real one has from the system comes from a seed.
//!
//! Keeps: for this thread, whether it is one of a simulation, its source of random numbers, and the bugs that are planted.
//! Order: whatever asks gets the next number of the one source: the same program asks in the same order.
//! Crash: nothing; the simulation drops what a process was.
//! Knows no service and no faults.
//!
//! Time and messages are components that are passed in (tokio's paused clock, an in-process network). What is left are
//! threads and chance: they are made in the middle of a service, so that it is the thread that knows.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::Chance;

thread_local! {
    static SIMULATION: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

struct Simulation {
    chance: Chance,
    planted: Vec<Planted>,
}

/// A rule that is left out on purpose, so that a simulation has something to find. Only in builds with debug assertions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// An owner takes a batch for held by its twin once it has sent it.
    AckBeforeTwin,
    /// A DTL host goes on saying yes to an owner whose volume it has taken over.
    NoSeal,
    /// A node whose lease is over serves on, as one would whose clock stands still.
    NoLease,
    /// An operation that is sent again gets a new number.
    ResendAnew,
}

/// As long as it is there, this thread is one of a simulation.
#[derive(Debug)]
pub struct Simulated(PhantomData<*const ()>);

impl Simulated {
    /// Makes this thread one of a simulation, whose chance is `seed` and that leaves out the rules of `planted`.
    #[must_use]
    pub fn enter(seed: u64, planted: &[Planted]) -> Self {
        let simulation = Simulation {
            chance: Chance::seeded(seed),
            planted: planted.to_vec(),
        };
        SIMULATION.set(Some(simulation));
        Self(PhantomData)
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        SIMULATION.set(None);
    }
}

/// Whether this thread is one of a simulation.
#[must_use]
pub fn is_here() -> bool {
    SIMULATION.with_borrow(Option::is_some)
}

/// Whether this rule is left out here.
#[inline]
#[must_use]
pub fn leaves_out(rule: Planted) -> bool {
    cfg!(debug_assertions)
        && SIMULATION.with_borrow(|here| here.as_ref().is_some_and(|here| here.planted.contains(&rule)))
}

/// A source for a part of a simulated process.
pub(crate) fn chance() -> Option<Chance> {
    SIMULATION.with_borrow_mut(|here| here.as_mut().map(|here| here.chance.fork()))
}

/// Most simulated calls that block take less than so many microseconds, and one in so many takes so much longer.
const BLOCKS_US: u64 = 2000;
const SLOW_ONE_IN: u64 = 50;
const SLOW: u32 = 40;

/// How long a blocking call takes here.
fn blocks_for() -> Option<Duration> {
    let mut chance = chance()?;
    let usual = Duration::from_micros(chance.below(BLOCKS_US));
    Some(match chance.one_of(1, SLOW_ONE_IN) {
        true => usual * SLOW,
        false => usual,
    })
}

/// Does what blocks on a thread of the runtime for that; in a simulation on the one thread that there is, after the time
/// that it takes. To be called within a runtime, there within a `LocalSet`. It is begun whether or not its end is awaited.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match blocks_for() {
        None => tokio::task::spawn_blocking(work),
        Some(time) => tokio::task::spawn_local(async move {
            tokio::time::sleep(time).await;
            work()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a simulated process draws, and in which order what blocks ends.
    fn lived(seed: u64) -> (u64, Vec<u32>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _here = Simulated::enter(seed, &[]);
        let drawn = Chance::from_os().u64();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let begun: Vec<_> = (0..20)
                .map(|number| {
                    let ended = std::sync::Arc::clone(&ended);
                    blocking(move || ended.lock().unwrap().push(number))
                })
                .collect();
            for blocking in begun {
                blocking.await.unwrap();
            }
        });
        let ended = ended.lock().unwrap().clone();
        (drawn, ended)
    }

    #[test]
    fn a_seed_decides_chance_and_the_order_of_what_blocks() {
        assert_eq!(lived(1), lived(1));
        assert_ne!(lived(1), lived(2));
        assert!(!is_here(), "it ends with its guard");
        assert_ne!(Chance::from_os().u64(), Chance::from_os().u64());
    }

    #[test]
    fn a_rule_is_left_out_only_where_it_was_planted() {
        assert!(!leaves_out(Planted::NoSeal));
        let _here = Simulated::enter(1, &[Planted::NoSeal]);
        assert!(leaves_out(Planted::NoSeal) && !leaves_out(Planted::NoLease));
    }
}
