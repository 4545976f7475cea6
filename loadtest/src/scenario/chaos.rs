//! Chaos: what is done to services at set times.
//!
//! Keeps: what was done, and when it was over.
//! Order: each at its time, whether or not the one before is over.
//! Crash: a service that was stopped for a while goes on also when the run ends early.
//! Knows no service's inside.

use std::thread;
use std::time::{Duration, Instant};

use super::outcome::Happened;
use super::{Run, joined};

impl Run<'_> {
    /// Does all of it; gives what was done, and what could not be.
    pub(super) fn chaos(&self, begin: Instant) -> (Vec<Happened>, Vec<String>) {
        let (mut happened, mut problems) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .scenario
                .chaos
                .iter()
                .map(|chaos| {
                    scope.spawn(move || {
                        let due = begin + chaos.at.duration();
                        while Instant::now() < due && !self.is_over() {
                            let wait = due.saturating_duration_since(Instant::now());
                            thread::sleep(wait.min(Duration::from_millis(20)));
                        }
                        if self.is_over() {
                            return Err("the loads were over before its time".to_owned());
                        }
                        let at_s = begin.elapsed().as_secs_f64();
                        let struck = self.cluster.strike(chaos, || self.is_over());
                        struck.map_err(|why| format!("{why:#}"))?;
                        Ok(Happened {
                            at_s,
                            until_s: begin.elapsed().as_secs_f64(),
                            name: chaos.name(),
                        })
                    })
                })
                .collect();
            for (chaos, thread) in self.scenario.chaos.iter().zip(threads) {
                match joined(thread) {
                    Ok(Ok(done)) => happened.push(done),
                    Ok(Err(why)) => problems.push(format!("chaos {}: {why}", chaos.name())),
                    Err(why) => problems.push(format!("chaos {}: {why:#}", chaos.name())),
                }
            }
        });
        happened.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
        (happened, problems)
    }
}
