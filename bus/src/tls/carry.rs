//! Carries bytes between a TLS stream and a unix socket.
//!
//! Keeps: the filter of what comes from the peer, and how much of its node's memory budget it holds.
//! Order: bytes pass once the filter has seen them and the budget has room for the message that they belong to.
//! Crash: both ends are closed.
//! Knows no envelope.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::filter::{Filter, Violation};

/// A peer that takes or gives nothing for so long in the middle of a message is dropped.
const STALL: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 64 << 10;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the peer closed it")]
    ByPeer,
    #[error("this side closed it")]
    ByUs,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the peer sent {0}")]
    Violation(#[from] Violation),
    #[error("the peer did not move for {STALL:?} within a message")]
    Stalled,
}

/// Bounds the memory of messages under way from one node, over all of its connections, in units of 4 KiB.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

const UNIT: u64 = 4096;

impl Budget {
    /// Room for `bytes` of unfinished messages.
    pub(crate) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes / UNIT).unwrap_or(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }
}

/// What one connection holds of its node's budget.
struct Held {
    budget: Budget,
    units: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Holds as much as a message that announces `bytes` takes; waits for room.
    async fn adjust(&mut self, bytes: u64) {
        let wanted = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let mut held = self.units.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted < held {
            // The message ended; what is held from now on is for the one that follows.
            self.units = None;
            held = 0;
        }
        let more = u32::try_from(wanted - held).unwrap_or(u32::MAX);
        if more == 0 {
            return;
        }
        // The semaphore is never closed.
        let more = self.budget.0.clone().acquire_many_owned(more).await.ok();
        match (&mut self.units, more) {
            (Some(units), Some(more)) => units.merge(more),
            (units, more) => *units = more,
        }
    }
}

/// Carries bytes both ways until either side ends. What comes from the peer has to pass the filter.
pub(crate) async fn carry<S: AsyncRead + AsyncWrite>(
    peer: S,
    local: UnixStream,
    mut filter: Filter,
    budget: Budget,
) -> Ended {
    let (mut from_peer, mut to_peer) = split(peer);
    let (mut from_local, mut to_local) = local.into_split();
    let inward = async {
        let mut held = Held { budget, units: None };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = from_peer.read(&mut buffer);
            let count = match filter.announced() {
                0 => read.await?,
                _ => timeout(STALL, read).await.map_err(|_| Ended::Stalled)??,
            };
            if count == 0 {
                return Err(Ended::ByPeer);
            }
            filter.look(&buffer[..count])?;
            timeout(STALL, held.adjust(filter.announced()))
                .await
                .map_err(|_| Ended::Stalled)?;
            to_local.write_all(&buffer[..count]).await?;
        }
    };
    let outward = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = from_local.read(&mut buffer).await?;
            let sent = async {
                if count == 0 {
                    return to_peer.shutdown().await;
                }
                to_peer.write_all(&buffer[..count]).await?;
                to_peer.flush().await
            };
            timeout(STALL, sent).await.map_err(|_| Ended::Stalled)??;
            if count == 0 {
                return Err(Ended::ByUs);
            }
        }
    };
    let ended: Result<(), Ended> = tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
    };
    ended.err().unwrap_or(Ended::ByUs)
}
