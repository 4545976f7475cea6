//! Following the registry: pools and back ends that are made, changed or removed while the service runs.
//!
//! Keeps: the revision up to which the registry was looked at.
//! Order: the revision first, then the look: what changes in between is looked at once more. What is told to be known here is
//! looked at before.
//! Crash: the next start looks at everything.
//! Knows no record: a change of any of them is a reason to look.

use std::rc::Rc;
use std::time::Duration;

use sconce_registry::{CommitError, Registry, RegistryError, Revision};
use sconce_runtime::{Backoff, Chance, Stop};
use sconce_schemas::records::keys;

use super::handler::Handler;

/// How long a watch waits for a change.
const WATCH_WAIT: Duration = Duration::from_secs(30);
/// How long what cannot be opened waits for the next look: what is wrong may be a file on this machine.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long requests by an older record have to end before it is looked whether they did.
const LOOK_WHETHER_OVER: Duration = Duration::from_millis(100);
/// First and longest wait while the registry does not answer.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Follows the registry until the stop is requested.
pub(super) async fn follow(handler: Rc<Handler>, registry: Registry, stop: Stop) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, Chance::from_os());
    loop {
        let followed = tokio::select! {
            biased;
            () = stop.requested() => return,
            followed = look_and_wait(&handler, &registry) => followed,
        };
        let Err(error) = followed else {
            backoff.reset();
            continue;
        };
        tracing::debug!(%error, "the registry does not tell now which pools and back ends there are");
        tokio::select! {
            biased;
            () = stop.requested() => return,
            () = tokio::time::sleep(backoff.wait()) => {}
        }
    }
}

/// Looks at everything; whether all of it can be used.
pub(super) async fn look(handler: &Handler) -> Result<bool, RegistryError> {
    let announced = handler.standing.announced();
    let are_open = handler.pools.look().await?;
    handler.standing.looked(announced);
    Ok(are_open)
}

/// Looks at everything, and waits until something of it changes.
async fn look_and_wait(handler: &Handler, registry: &Registry) -> Result<(), CommitError> {
    let after = registry.revision().await?;
    let are_open = look(handler).await?;
    tokio::select! {
        error = tell_known(handler) => Err(error),
        () = handler.standing.lost() => Ok(()),
        () = tokio::time::sleep(LOOK_AGAIN), if !are_open => Ok(()),
        changed = change_of(registry, keys::BACKENDS, after) => Ok(changed?),
        changed = change_of(registry, keys::POOLS, after) => Ok(changed?),
    }
}

/// Tells which placements are known here, once nothing is under way by older ones; returns only where that cannot be told.
async fn tell_known(handler: &Handler) -> CommitError {
    handler.standing.alone_here().await;
    loop {
        match handler.pools.tell_known(&handler.node).await {
            Ok(true) => return std::future::pending().await,
            Ok(false) => tokio::time::sleep(LOOK_WHETHER_OVER).await,
            Err(error) => return error,
        }
    }
}

async fn change_of(registry: &Registry, prefix: &str, after: Revision) -> Result<(), RegistryError> {
    let mut after = after;
    loop {
        let watched = registry.watch(prefix, after, WATCH_WAIT).await?;
        if watched.lost || !watched.events.is_empty() {
            return Ok(());
        }
        after = watched.revision;
    }
}
