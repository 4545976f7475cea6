//! The task behind a client: dials, greets, sends what is queued, and notices a silent peer.
//!
//! Keeps: the sending half of the connection.
//! Order: a lost connection is told to the caller before the next one is dialed.
//! Crash: nothing; it ends with its receiver.
//! Knows no bodies.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sconce_schemas::wire::envelope::Header;
use sconce_schemas::wire::registry::RegistryReply;
use sconce_schemas::wire::{Hello, Refusal, RefusalCode, Remedy, Welcome};
use tokio::time::{Instant, sleep, timeout};

use super::state::{Shared, Stage};
use crate::endpoint::Endpoint;
use crate::link::{Frames, LinkReceiver, LinkSender, LostReason};
use crate::network::{DialError, Network};
use crate::refuse::another_major;

const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How long a server may take to answer the greeting.
const GREETING: Duration = Duration::from_secs(5);
/// With requests outstanding and nothing heard for so long, the server is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(1);
/// So many silences in a row, and it is not. A host that is stopped or cut off closes no connection: for so long guests wait for an owner
/// that another one has replaced.
const SILENCES_MAX: u32 = 2;

pub(super) async fn drive(shared: Rc<Shared>, network: Network, endpoint: Endpoint, hello: Hello) {
    let mut chance = network.chance();
    let mut backoff = BACKOFF_MIN;
    loop {
        while !shared.is_dialing() {
            shared.driver.rung().await;
        }
        match reach(&network, &endpoint, &hello).await {
            Ok((mut sender, receiver, welcome)) => {
                let since = Instant::now();
                shared.enter(Stage::Greeted(welcome, receiver));
                if let Err(reason) = pump(&shared, &mut sender).await {
                    shared.lose(reason);
                }
                tracing::debug!(%endpoint, "connection lost");
                if since.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                    continue;
                }
            }
            Err(Unreached::Refused(refusal)) => {
                shared.enter(Stage::Refused(refusal));
                return;
            }
            Err(Unreached::Absent(cause)) => {
                tracing::debug!(%endpoint, cause, "not reached");
            }
        }
        // Up to a quarter off, so that clients of a restarted server do not come all at once.
        let jitter = backoff.mul_f64(chance.f64() / 4.0);
        sleep(backoff - jitter).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

enum Unreached {
    /// Try again.
    Absent(String),
    /// Do not.
    Refused(Refusal),
}

impl From<DialError> for Unreached {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Absent(cause) => Unreached::Absent(cause),
            DialError::Never(cause) => Unreached::Refused(Refusal::reject(RefusalCode::Invalid, cause)),
        }
    }
}

async fn reach(
    network: &Network,
    endpoint: &Endpoint,
    hello: &Hello,
) -> Result<(LinkSender, LinkReceiver, Welcome), Unreached> {
    let (mut sender, mut receiver) = network.dial(endpoint, &hello.node).await?;
    let greeting = async {
        send(&mut sender, &Header::Hello(hello.clone())).await?;
        receiver.recv().await
    };
    let frames = match timeout(GREETING, greeting).await {
        Ok(Ok(frames)) => frames,
        Ok(Err(reason)) => return Err(Unreached::Absent(reason.to_string())),
        Err(_) => return Err(Unreached::Absent("no answer to the greeting".to_owned())),
    };
    match Header::<NoBody>::decode(&frames.header, frames.data.len()) {
        Ok(Header::Welcome(welcome)) => Ok((sender, receiver, welcome)),
        Ok(Header::Foreign(server)) => Err(Unreached::Refused(another_major(&server, &hello.node))),
        Ok(Header::Goodbye(refusal)) if refusal.remedy == Remedy::Retry => {
            Err(Unreached::Absent(refusal.to_string()))
        }
        Ok(Header::Goodbye(refusal)) => Err(Unreached::Refused(refusal)),
        Ok(_) => Err(Unreached::Absent("the server did not greet".to_owned())),
        Err(error) => Err(Unreached::Absent(error.to_string())),
    }
}

/// Headers of a greeting carry no bodies; any type does.
type NoBody = RegistryReply;

async fn send(sender: &mut LinkSender, header: &Header<NoBody>) -> Result<(), LostReason> {
    let mut out = Vec::new();
    header.encode(&mut out);
    let frames = Frames {
        header: Bytes::from(out),
        data: Bytes::new(),
    };
    sender.send(frames).await
}

/// Sends what is queued until the connection is lost; `Ok`: the receiver noticed it.
async fn pump(shared: &Shared, sender: &mut LinkSender) -> Result<(), LostReason> {
    let alarm = sleep(SILENCE);
    tokio::pin!(alarm);
    let mut watch = Watch::default();
    loop {
        while let Some(frames) = shared.next_message() {
            sender.send(frames).await?;
        }
        if !shared.is_connected() {
            return Ok(());
        }
        if !watch.armed && shared.outstanding() > 0 {
            watch.armed = true;
            alarm.as_mut().reset(Instant::now() + SILENCE);
        }
        tokio::select! {
            biased;
            () = shared.driver.rung() => {}
            () = &mut alarm, if watch.armed => {
                watch.armed = false;
                if watch.is_due(shared)? {
                    send(sender, &Header::Ping(shared.mark())).await?;
                }
            }
        }
    }
}

/// Looks now and then, not at every request, whether anything comes back.
#[derive(Default)]
struct Watch {
    armed: bool,
    seen: u64,
    silences: u32,
}

impl Watch {
    /// Whether to ping.
    fn is_due(&mut self, shared: &Shared) -> Result<bool, LostReason> {
        let arrivals = shared.arrivals();
        if arrivals != self.seen || shared.outstanding() == 0 {
            self.seen = arrivals;
            self.silences = 0;
            return Ok(false);
        }
        self.silences += 1;
        if self.silences > SILENCES_MAX {
            return Err(LostReason::Silent(SILENCE * SILENCES_MAX));
        }
        Ok(true)
    }
}
