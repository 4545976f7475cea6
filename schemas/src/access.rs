//! Write access: which front ends may write a volume.
//!
//! Keeps: who may write, as the volume's record has it, and what an fs-router and an owner say to each other about it.
//! Order: each holder has a higher generation than the one before it; whoever knows a higher one refuses lower ones.
//! Crash: the record is whole or unchanged; the next owner goes on with what it says.
//! Knows no sessions.

use serde::{Deserialize, Serialize};

use crate::ids::NodeName;
use crate::wire::Refusal;

/// For so long, in seconds, an fs-router tries to tell an owner that a session is over that may have write access.
pub const FAREWELL_SECONDS: u64 = 60;

/// How many front ends may write a volume at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// One: who writes first has it until it is done.
    #[default]
    Exclusive,
    /// Any: for clients that agree among themselves, as a cluster file system does.
    Shared,
}

impl AccessMode {
    /// Its name, as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// Write access to a volume, in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// How many may have it.
    #[serde(default)]
    pub mode: AccessMode,
    /// Raised whenever it goes to another front end, or is taken from one. What a front end was granted under a lower one is
    /// over. 0: nobody ever had it.
    #[serde(default)]
    pub generation: u64,
    /// Who has it, or had it last; `None`: nobody had it since it was taken from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<AccessHolder>,
    /// Until then, in microseconds since 1970 by the owner's clock, the next other front end that writes takes it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over_until_us: Option<u64>,
}

/// A front end that has write access, or had it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessHolder {
    /// Its node.
    pub node: NodeName,
    /// Since when, in microseconds since 1970 by the owner's clock.
    pub since_us: u64,
    /// It gave it up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

impl Access {
    /// Whether it is as if nobody had ever written, or asked for anything.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Who has exclusive access now.
    #[must_use]
    pub fn held_by(&self) -> Option<&AccessHolder> {
        let is_exclusive = self.mode == AccessMode::Exclusive;
        self.holder
            .as_ref()
            .filter(|holder| is_exclusive && !holder.released)
    }

    /// Whether another front end may take it over at that time, in microseconds since 1970.
    #[must_use]
    pub fn is_offered(&self, now_us: u64) -> bool {
        self.hand_over_until_us.is_some_and(|until| now_us < until)
    }
}

/// Who opens a volume, and what it wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessAsk {
    /// The front end's node. A command has a name of its own.
    pub node: NodeName,
    /// Which process of that node it is: a later one has a higher number. 0: it is not in the registry, as a command is not.
    pub incarnation: u64,
    /// It wants to write. Without it nothing that it sends on the handle may change the volume.
    pub take: bool,
    /// The generation under which the session was granted access before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
}

/// What came of wanting to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessReply {
    /// What is sent on the handle may change the volume, until another front end has access. The generation to ask with
    /// when the volume is opened again; 0: there is none, as any front end may write.
    Granted(u64),
    /// It may not, now.
    Refused(Refusal),
}

/// What a person wants of a volume's write access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum AccessChange {
    /// So many front ends may write.
    Mode {
        /// How many.
        mode: AccessMode,
    },
    /// The next other front end that writes takes it over from the one that has it, once.
    HandOver {
        /// For so long, in microseconds.
        within_us: u64,
    },
    /// The front end that has it is dead: it is taken from it.
    Break,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_held_until_it_is_given_up_and_only_where_it_is_exclusive() {
        let mut access = Access {
            holder: Some(AccessHolder {
                node: "hv-1".parse().unwrap(),
                since_us: 1,
                released: false,
            }),
            hand_over_until_us: Some(10),
            ..Access::default()
        };
        assert!(access.held_by().is_some());
        assert!(access.is_offered(9) && !access.is_offered(10));
        access.mode = AccessMode::Shared;
        assert_eq!(access.held_by(), None);
        access.mode = AccessMode::Exclusive;
        access.holder.as_mut().unwrap().released = true;
        assert_eq!(access.held_by(), None);
    }
}
