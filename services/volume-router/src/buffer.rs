//! Tells when the write buffer fills up, and when it has room again.
//!
//! Keeps: whether it was told that it is nearly full.
//! Order: told at the level from which writes are slowed down; told again only once it was well below that.
//! Crash: nothing.
//! Knows no volumes.

use std::time::Duration;

use sconce_runtime::Events;
use sconce_schemas::wire::event::What;

use crate::actor::SLOW_FROM;
use crate::device::Device;

/// A buffer that fills within less than this is told of a moment late.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Below this it has room again, in thousandths: at the level of the alarm it would be told at each look.
const RELIEVED_BELOW: u64 = 600;

const _: () = assert!(
    RELIEVED_BELOW < SLOW_FROM,
    "it is relieved at a lower level than it is full"
);

/// Looks until it is aborted.
pub(crate) async fn watch(device: Device, events: Events) {
    let mut is_told = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let fullness = device.fullness();
        let usage = device.usage();
        let (held, size) = (usage.unstored, usage.size);
        match is_told {
            false if fullness > SLOW_FROM => events.tell(What::BufferNearlyFull { held, size }),
            true if fullness < RELIEVED_BELOW => events.tell(What::BufferRelieved { held, size }),
            _ => continue,
        }
        is_told = !is_told;
    }
}
