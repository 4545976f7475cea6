//! A connection on its way from one process of this fs-router to the next.
//!
//! Keeps: what was agreed with the client, and the bytes of both directions that have not arrived.
//! Order: a connection is stored when all that was taken from it is answered; the next process takes it out of the store
//! before it serves it, so that the client sees its end.
//! Crash: what is not stored yet ends with the process; what is stored and not taken is there for the one after it.
//! Knows no volume. What another build has stored in another way is refused, never guessed at: its client connects again.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, sockopt};
use sconce_runtime::DescriptorStore;
use sconce_schemas::VolumeId;
use serde::{Deserialize, Serialize};

use super::contexts::{ContextKind, Selected};
use super::protocol::Export;
use super::protocol::request::Agreed;
use super::stream::{Accepted, Stream};
use crate::routing::{SessionHandle, View};

/// What the names of connections in the store begin with; a number follows.
const PREFIX: &str = "nbd-client-";
/// How a connection is written down: changes with each change of [`Record`] and of what it is made of.
const VERSION: u32 = 1;

/// A connection without the process that served it.
pub(super) struct Left<S> {
    pub(super) stream: S,
    pub(super) record: Record,
    /// Of answers.
    pub(super) unsent: Vec<u8>,
    /// Of requests.
    pub(super) unread: Vec<u8>,
}

/// What was agreed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// For people.
    pub(super) export: String,
    pub(super) volume: VolumeId,
    pub(super) view: Option<View>,
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    pub(super) contexts: Vec<Context>,
}

/// A metadata context.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Context {
    pub(super) id: u32,
    /// What it compares; `None`: it is `base:allocation`.
    pub(super) view: Option<View>,
}

/// The line in front of the bytes. `R`: [`Record`], or one that is borrowed.
#[derive(Serialize, Deserialize)]
struct Head<R> {
    version: u32,
    record: R,
    unsent: usize,
    unread: usize,
}

/// Of any build's.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why a connection that was stored cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Another build stored it.
    #[error("it was stored as version {found}; this build reads version {VERSION}")]
    Version {
        /// What it was stored as.
        found: u32,
    },
    /// It is not one socket and one file.
    #[error("it is stored as {found}, and not as a socket and a file")]
    Kind {
        /// What there is.
        found: String,
    },
    /// The file is shorter or longer than it says.
    #[error("{found} bytes are stored with it; {expected} would be right")]
    Length {
        /// What there is.
        found: usize,
        /// What there should be.
        expected: usize,
    },
    /// The file does not hold what it should.
    #[error("what is stored with it: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The system does not let it be read.
    #[error("what is stored with it: {0}")]
    Unreadable(#[from] io::Error),
}

impl Record {
    pub(super) fn new(agreed: &Agreed, session: &SessionHandle, contexts: &[Selected]) -> Self {
        let contexts = contexts.iter().map(|selected| Context {
            id: selected.id,
            view: match &selected.kind {
                ContextKind::Allocation => None,
                ContextKind::Changes(session) => session.view(),
            },
        });
        Self {
            export: String::new(),
            volume: session.volume(),
            view: session.view(),
            size: agreed.export.size,
            read_only: agreed.export.read_only,
            structured: agreed.structured,
            contexts: contexts.collect(),
        }
    }

    pub(super) fn agreed(&self) -> Agreed {
        Agreed {
            export: Export {
                size: self.size,
                read_only: self.read_only,
            },
            structured: self.structured,
            contexts: !self.contexts.is_empty(),
        }
    }
}

impl Left<Stream> {
    /// Stores it for the next process.
    pub(super) fn store(&self, descriptors: &DescriptorStore) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{PREFIX}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let file = self.written()?;
        // In one message: a connection without what was agreed would be of no use.
        descriptors.store(&name, &[self.stream.as_fd(), file.as_fd()])
    }
}

impl<S> Left<S> {
    fn written(&self) -> io::Result<File> {
        let mut head = serde_json::to_vec(&Head {
            version: VERSION,
            record: &self.record,
            unsent: self.unsent.len(),
            unread: self.unread.len(),
        })?;
        head.push(b'\n');
        let mut file = File::from(memfd_create("nbd-client", MemfdFlags::CLOEXEC)?);
        for bytes in [&head, &self.unsent, &self.unread] {
            file.write_all(bytes)?;
        }
        Ok(file)
    }
}

/// Takes the connections that the last process left out of the store.
pub(super) fn take(descriptors: &DescriptorStore) -> Vec<Left<Accepted>> {
    let mut taken = Vec::new();
    for (name, left) in descriptors.take_all(PREFIX) {
        // First: while the store has it too, nothing that is done here ends it.
        if let Err(error) = descriptors.remove(&name) {
            tracing::warn!(%error, "an NBD client stays in the store");
        }
        match Left::read(left) {
            Ok(left) => taken.push(left),
            Err(why) => {
                tracing::warn!(%why, "an NBD client of the last process is dropped: it has to connect again")
            }
        }
    }
    taken
}

impl Left<Accepted> {
    fn read(descriptors: Vec<OwnedFd>) -> Result<Self, Unusable> {
        let (mut sockets, mut files) = (Vec::new(), Vec::new());
        for descriptor in descriptors {
            match sockopt::socket_domain(&descriptor) {
                Ok(AddressFamily::UNIX) => sockets.push(Accepted::Unix(descriptor.into())),
                Ok(_) => sockets.push(Accepted::Tcp(descriptor.into())),
                Err(_) => files.push(File::from(descriptor)),
            }
        }
        let found = format!("{} sockets and {} files", sockets.len(), files.len());
        match (sockets.pop(), files.pop()) {
            (Some(stream), Some(file)) if sockets.is_empty() && files.is_empty() => Self::parse(stream, file),
            _ => Err(Unusable::Kind { found }),
        }
    }
}

impl<S> Left<S> {
    fn parse(stream: S, mut file: File) -> Result<Self, Unusable> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let line = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(bytes.len());
        let Versioned { version } = serde_json::from_slice(&bytes[..line])?;
        if version != VERSION {
            return Err(Unusable::Version { found: version });
        }
        let head: Head<Record> = serde_json::from_slice(&bytes[..line])?;
        let mut unsent = bytes.split_off((line + 1).min(bytes.len()));
        let expected = head.unsent.saturating_add(head.unread);
        if unsent.len() != expected {
            return Err(Unusable::Length {
                found: unsent.len(),
                expected,
            });
        }
        let unread = unsent.split_off(head.unsent);
        Ok(Self {
            stream,
            record: head.record,
            unsent,
            unread,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left() -> Left<()> {
        let since = sconce_schemas::wire::volume::Since {
            volume: None,
            snapshot: "monday".to_owned(),
        };
        Left {
            stream: (),
            record: Record {
                export: "/vm1/disk.raw".to_owned(),
                volume: VolumeId([7; 16]),
                view: Some(View::snapshot(
                    "tuesday\n".to_owned(),
                    Some(sconce_schemas::SnapshotId(u64::MAX)),
                )),
                size: 1 << 40,
                read_only: true,
                structured: true,
                contexts: vec![
                    Context { id: 1, view: None },
                    Context {
                        id: 2,
                        view: Some(View::changes(None, Some(since))),
                    },
                ],
            },
            unsent: b"half an answ\n".to_vec(),
            unread: b"half a requ".to_vec(),
        }
    }

    /// The file with its bytes changed.
    fn changed(change: impl FnOnce(String) -> String) -> Result<Left<()>, Unusable> {
        let mut text = String::new();
        let mut file = left().written().unwrap();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(change(text).as_bytes()).unwrap();
        Left::parse((), file)
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let (wrote, read) = (left(), changed(|text| text).unwrap());
        assert_eq!(read.record, wrote.record);
        assert_eq!((read.unsent, read.unread), (wrote.unsent, wrote.unread));
    }

    #[test]
    fn what_another_build_wrote_is_refused() {
        let refused = changed(|text| text.replace("\"version\":1", "\"version\":2"));
        assert!(matches!(refused, Err(Unusable::Version { found: 2 })));
        // Its record may be of any shape.
        let refused = changed(|_| "{\"version\":9,\"what\":[]}\n".to_owned());
        assert!(matches!(refused, Err(Unusable::Version { found: 9 })));
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for broken in [
            changed(|mut text| text.split_off(1)),
            changed(|mut text| {
                text.pop();
                text
            }),
            changed(|text| text + "x"),
            changed(|_| String::new()),
        ] {
            assert!(broken.is_err());
        }
    }
}
