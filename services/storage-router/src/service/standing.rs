//! Standing: whether this service knows of every placement map that others go by.
//!
//! Keeps: of which time of its announcement the registry was looked at.
//! Order: announced first, then the look: whoever changes a placement waits for those that are announced, so from then on it waits for
//! this service.
//! Crash: nothing; the next start is announced, and looks.
//! Knows no pool. Who was cut off from the registry may be behind: what it does not find can be elsewhere by now
//! (docs/decisions/0203).

use std::cell::Cell;

use sconce_registry::announce::{NODE_TTL, Tenure};
use sconce_runtime::Moment;
use tokio::time::Instant;

/// Whether what this service does not find is nowhere.
#[derive(Debug)]
pub(super) struct Standing {
    /// `None`: nobody changes a placement.
    tenure: Option<Tenure>,
    /// Since when it was announced when the registry was looked at last.
    looked: Cell<Option<Moment>>,
    /// When an earlier process of this name, which may be cut off, knows by its own clock that it is announced no more.
    alone_from: Instant,
}

impl Standing {
    /// Of an announced service; after a look it stands.
    pub(super) fn new(tenure: Tenure) -> Self {
        Self {
            tenure: Some(tenure),
            looked: Cell::new(None),
            alone_from: Instant::now() + NODE_TTL,
        }
    }

    /// Of a service that is the only one.
    #[cfg(test)]
    pub(super) fn alone() -> Self {
        Self {
            tenure: None,
            looked: Cell::new(Some(Moment::now())),
            alone_from: Instant::now(),
        }
    }

    /// The time of the announcement that a look which begins now is of.
    pub(super) fn announced(&self) -> Option<Moment> {
        match &self.tenure {
            Some(tenure) => Some(tenure.held_since()),
            None => self.looked.get(),
        }
    }

    /// A look that began in this time of the announcement found all that is there.
    pub(super) fn looked(&self, announced: Option<Moment>) {
        self.looked.set(announced);
    }

    /// Returns when no other process acts under this name.
    pub(super) async fn alone_here(&self) {
        tokio::time::sleep_until(self.alone_from).await;
    }

    /// Since when it stands without a gap; `None`: it does not.
    pub(super) fn since(&self) -> Option<Moment> {
        let Some(tenure) = &self.tenure else {
            return self.looked.get();
        };
        let since = tenure.held_since();
        (tenure.is_held() && self.looked.get() == Some(since)).then_some(since)
    }

    /// Returns when the service was announced anew, so that the registry is to be looked at.
    pub(super) async fn lost(&self) {
        match (&self.tenure, self.looked.get()) {
            (Some(tenure), Some(looked)) => tenure.held_anew(looked).await,
            (Some(_), None) => {}
            (None, _) => std::future::pending().await,
        }
    }
}
