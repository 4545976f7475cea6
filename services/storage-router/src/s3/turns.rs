//! One writer for each key: puts and deletes of one object take turns within this process.
//!
//! Keeps: who is at a key, and who waits for it.
//! Order: whoever came first.
//! Crash: nothing.
//! Knows no requests. Two puts of one name with different bytes are then one after the other also on a server that
//! looks first and writes then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// The keys at which somebody is.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Gate>>);

/// A turn at a key; over when it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for a turn at `key`.
    pub(super) async fn take(&self, key: &str) -> Turn<'_> {
        let gate = Arc::clone(self.gates().entry(key.to_owned()).or_default());
        // Before the wait: who is dropped while it waits leaves nothing behind either.
        let mut turn = Turn {
            turns: self,
            key: key.to_owned(),
            guard: None,
        };
        turn.guard = Some(gate.lock_owned().await);
        turn
    }

    fn gates(&self) -> std::sync::MutexGuard<'_, HashMap<String, Gate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut gates = self.turns.gates();
        self.guard = None;
        // Nobody else is at it and nobody waits: only the map holds it.
        if gates
            .get(&self.key)
            .is_some_and(|gate| Arc::strong_count(gate) == 1)
        {
            gates.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_key_and_nothing_stays() {
        let turns = Turns::default();
        let (at_a, at_b) = (AtomicU32::new(0), AtomicU32::new(0));
        let visit = async |key: &str, count: &AtomicU32| {
            let _turn = turns.take(key).await;
            assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "two at {key}");
            tokio::task::yield_now().await;
            count.fetch_sub(1, Ordering::SeqCst);
        };
        join_all((0..20).map(|number| match number % 2 {
            0 => visit("a", &at_a),
            _ => visit("b", &at_b),
        }))
        .await;
        assert!(turns.gates().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_nothing() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let wait = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(wait, turns.take("a")).await.is_err());
        drop(first);
        assert!(turns.gates().is_empty());
    }
}
