//! Restoring: pools of which fragments may be missing are looked through, until nothing is.
//!
//! Keeps: when to look again.
//! Order: one pool after the other; later each time that something was left.
//! Crash: the next start looks again.
//! Knows no fragments: a pool says whether there may be something to do.

use std::rc::Rc;
use std::time::Duration;

use sconce_runtime::Stop;

use super::handler::Handler;

/// How soon a pool is looked through once something may be missing.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// How long a back end that stays away makes it wait at most.
const LOOK_AFTER_MAX: Duration = Duration::from_secs(60);

/// Restores pools until the stop is requested.
pub(super) async fn restore(handler: Rc<Handler>, stop: Stop) {
    let mut pause = LOOK_AFTER;
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let mut is_whole = true;
        for name in handler.pools.names() {
            // Pools by older records are waited for: none is held while another one is restored.
            let Some(pool) = handler.pools.get(&name).filter(|pool| pool.is_short()) else {
                continue;
            };
            let restored = tokio::select! {
                biased;
                () = stop.requested() => return,
                restored = pool.restore(async |volume| handler.pools.is_in(&pool.record().name, volume).await) => restored,
            };
            let pool = &pool.record().name;
            match restored {
                Ok(restored) => {
                    is_whole &= restored.is_whole();
                    if restored.repaired > 0 || !restored.is_whole() {
                        tracing::info!(%pool, ?restored, "looked for missing fragments");
                    }
                }
                Err(refusal) => {
                    is_whole = false;
                    tracing::info!(%pool, %refusal, "cannot look for missing fragments now");
                }
            }
        }
        pause = if is_whole {
            LOOK_AFTER
        } else {
            (pause * 2).min(LOOK_AFTER_MAX)
        };
    }
}
