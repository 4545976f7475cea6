//! Asking some of several back ends: no more than needed, and others where one fails or is slow.
//!
//! Keeps: nothing.
//! Order: best first; the next one as soon as one fails, or has not answered for the time that a read waits.
//! Crash: nothing.
//! Knows no fragments.

use std::future::Future;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::backend::BackendError;

/// What came of it.
pub(super) struct Gathered<T> {
    /// What was asked for, by who was asked.
    pub(super) good: Vec<(usize, T)>,
    /// Who failed, and how.
    pub(super) failed: Vec<(usize, BackendError)>,
}

/// Asks `candidates` until `needed` have given what was asked for, or none is left.
pub(super) async fn gather<T, A: Future<Output = Result<T, BackendError>>>(
    candidates: &[usize],
    needed: usize,
    hedge_after: Duration,
    ask: impl Fn(usize) -> A,
) -> Gathered<T> {
    let mut left = candidates.iter().copied();
    let ask = &ask;
    let begin = |candidate: usize| async move { (candidate, ask(candidate).await) };
    let mut asked: FuturesUnordered<_> = left.by_ref().take(needed).map(begin).collect();
    let (mut good, mut failed) = (Vec::with_capacity(needed), Vec::new());
    while good.len() < needed {
        let answer = tokio::select! {
            biased;
            answer = asked.next() => answer,
            () = tokio::time::sleep(hedge_after), if left.len() > 0 => {
                asked.extend(left.next().map(begin));
                continue;
            }
        };
        match answer {
            Some((candidate, Ok(given))) => good.push((candidate, given)),
            Some((candidate, Err(error))) => {
                failed.push((candidate, error));
                asked.extend(left.next().map(begin));
            }
            None => break,
        }
    }
    Gathered { good, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEDGE: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn no_more_are_asked_than_needed_and_others_where_one_fails_or_is_slow() {
        let asked = std::cell::RefCell::new(Vec::new());
        let ask = |slow: usize, bad: usize| {
            let asked = &asked;
            move |candidate: usize| {
                asked.borrow_mut().push(candidate);
                async move {
                    if candidate == slow {
                        tokio::time::sleep(Duration::from_secs(9)).await;
                    }
                    if candidate == bad {
                        return Err(BackendError::NotFound);
                    }
                    Ok(candidate * 10)
                }
            }
        };
        for (slow, bad, who, failed) in [
            (9, 9, vec![0, 1], 0),
            (9, 0, vec![0, 1, 2], 1),
            (1, 9, vec![0, 1, 2], 0),
            (1, 2, vec![0, 1, 2, 3], 1),
        ] {
            asked.borrow_mut().clear();
            let begun = tokio::time::Instant::now();
            let gathered = gather(&[0, 1, 2, 3], 2, HEDGE, ask(slow, bad)).await;
            assert_eq!(*asked.borrow(), who);
            assert_eq!((gathered.good.len(), gathered.failed.len()), (2, failed));
            assert!(begun.elapsed() <= HEDGE, "nobody waits for the slow one");
        }
        let gathered = gather(&[0, 1], 2, HEDGE, ask(9, 0)).await;
        assert_eq!((gathered.good.len(), gathered.failed.len()), (1, 1));
    }
}
