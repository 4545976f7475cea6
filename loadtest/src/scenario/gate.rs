//! The gate that all loads wait at: filling takes each another time, and all begin at the same instant.
//!
//! Keeps: how many are ready, and when it begins.
//! Order: it opens when all are ready, or for nobody when one cannot be.
//! Crash: nothing.
//! Knows no load.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// A gate.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    missing: usize,
    failed: bool,
    begin: Option<Instant>,
}

impl Gate {
    pub(super) fn new(loads: usize) -> Self {
        let state = State {
            missing: loads,
            failed: false,
            begin: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        self.changed.notify_all();
        changed
    }

    fn wait<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&state) {
                return found;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One is ready; it asks [`Gate::begin`] from now on.
    pub(super) fn arrive(&self) {
        self.change(|state| state.missing = state.missing.saturating_sub(1));
    }

    /// When all begin, once that is known.
    pub(super) fn begin(&self) -> Result<Option<Instant>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!state.failed, "another load could not begin");
        Ok(state.begin)
    }

    /// One is ready, and waits until all begin.
    pub(super) fn ready(&self) -> Result<Instant> {
        self.arrive();
        let begin = self.wait(|state| (state.failed || state.begin.is_some()).then_some(state.begin));
        begin
            .filter(|_| !self.is_shut())
            .context("another load could not begin")
    }

    fn is_shut(&self) -> bool {
        self.begin().is_err()
    }

    /// One that should wait at it cannot. Once it is open this changes nothing.
    pub(super) fn fail(&self) {
        self.change(|state| state.failed |= state.begin.is_none());
    }

    /// Waits until all are ready, and lets them begin when `begin` says.
    pub(super) fn open(&self, begin: impl FnOnce() -> Result<Instant>) -> Result<Instant> {
        let failed = self.wait(|state| (state.failed || state.missing == 0).then_some(state.failed));
        let begin = match failed {
            true => Err(anyhow::anyhow!("not all loads could begin")),
            false => begin(),
        };
        self.change(|state| match &begin {
            Ok(begin) => state.begin = Some(*begin),
            Err(_) => state.failed = true,
        });
        begin
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_begin_at_once_or_none() {
        let gate = Gate::new(2);
        thread::scope(|scope| {
            let waiting = [scope.spawn(|| gate.ready()), scope.spawn(|| gate.ready())];
            let begin = gate.open(|| Ok(Instant::now())).unwrap();
            for one in waiting {
                assert_eq!(one.join().unwrap().unwrap(), begin);
            }
        });
        let gate = Gate::new(2);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.ready());
            gate.fail();
            assert!(gate.open(|| Ok(Instant::now())).is_err());
            assert!(waiting.join().unwrap().is_err());
        });
    }
}
