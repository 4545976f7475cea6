//! Waiting for a thing itself, with a deadline.
//!
//! Keeps: nothing.
//! Order: the condition is looked at at once, then every few milliseconds, and once more at the deadline.
//! Crash: nothing to lose.
//! Knows no cluster.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long between two looks at a condition: short against what the tests measure (1 s), long against a look.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Returns as soon as `look` gives something, and how long that took.
///
/// # Errors
/// `look` failed, or gave nothing within `limit`; the error names `what`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let begun = Instant::now();
    loop {
        let last_look = begun.elapsed() >= limit;
        if let Some(found) = look()? {
            return Ok((found, begun.elapsed()));
        }
        if last_look {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}
