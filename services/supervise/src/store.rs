//! The descriptors that the service stored: systemd's protocol (sd_notify(3)), as far as it is about descriptors.
//!
//! Keeps: descriptors by name, and the socket at which the service stores them.
//! Order: messages are obeyed in the order in which they were sent.
//! Crash: all is closed: what a service had open ends, as without a store.
//! Knows nothing of what the descriptors are.

use std::fs::{self, Permissions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Descriptors of one message at most: the kernel sends no more (SCM_MAX_FD).
const MESSAGE_DESCRIPTORS_MAX: usize = 253;
/// Bytes of a message at most; the service's are a few dozen.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Descriptors that are held at most.
const HELD_MAX: usize = 8192;
/// What a descriptor without a name is called, as systemd does.
const NAMELESS: &str = "stored";

pub(crate) struct Store {
    socket: UnixDatagram,
    held: Held,
}

/// What is held, in the order in which it came.
#[derive(Default)]
struct Held(Vec<(String, OwnedFd)>);

/// Listens at `path`, for this user only.
pub(crate) fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = std::os::unix::net::UnixDatagram::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Store {
    /// Serves the socket, in this thread's runtime.
    pub(crate) fn new(socket: std::os::unix::net::UnixDatagram) -> io::Result<Self> {
        Ok(Self {
            socket: UnixDatagram::from_std(socket)?,
            held: Held::default(),
        })
    }

    /// Obeys messages as they come, without an end but an error.
    pub(crate) async fn serve(&mut self) -> io::Result<std::convert::Infallible> {
        loop {
            self.socket.readable().await?;
            self.obey_all()?;
        }
    }

    /// Obeys what was sent.
    pub(crate) fn obey_all(&mut self) -> io::Result<()> {
        loop {
            match self.socket.try_io(Interest::READABLE, || receive(&self.socket)) {
                Ok((text, descriptors)) => self.held.obey(&text, descriptors),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// What is held, for the next process: names, and descriptors of its own.
    pub(crate) fn copies(&self) -> io::Result<(Vec<&str>, Vec<OwnedFd>)> {
        let names = self.held.0.iter().map(|(name, _)| name.as_str()).collect();
        let copies: io::Result<Vec<OwnedFd>> = self.held.0.iter().map(|(_, held)| held.try_clone()).collect();
        Ok((names, copies?))
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut into, &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        // Half a message is none: what it should have kept is closed, and the service's clients connect again.
        return Ok((String::new(), Vec::new()));
    }
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    Ok((text, descriptors))
}

impl Held {
    /// Does what a message asks for. What it sends along without a word to store it, as with `BARRIER=1`, is closed.
    fn obey(&mut self, text: &str, descriptors: Vec<OwnedFd>) {
        let has = |wanted: &str| text.lines().any(|line| line == wanted);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        if has("FDSTOREREMOVE=1") {
            self.0.retain(|(held, _)| Some(held.as_str()) != name);
        } else if has("FDSTORE=1") {
            let name = name.filter(|name| is_name(name)).unwrap_or(NAMELESS);
            let room = HELD_MAX.saturating_sub(self.0.len());
            let named = descriptors.into_iter().take(room);
            self.0
                .extend(named.map(|descriptor| (name.to_owned(), descriptor)));
        }
    }
}

/// Whether names of descriptors may be so: the next process finds them in a list with colons between them.
fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<OwnedFd> {
        vec![fs::File::open("/dev/null").unwrap().into()]
    }

    fn names(held: &Held) -> Vec<&str> {
        held.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_is_stored_is_held_until_its_name_is_removed() {
        let mut held = Held::default();
        held.obey("FDSTORE=1\nFDNAME=a\nFDPOLL=0\n", some());
        held.obey("FDSTORE=1\nFDNAME=b", some());
        held.obey("FDSTORE=1\nFDNAME=a", some());
        held.obey("BARRIER=1", some());
        held.obey("READY=1", Vec::new());
        assert_eq!(names(&held), ["a", "b", "a"]);
        held.obey("FDSTOREREMOVE=1\nFDNAME=a\n", Vec::new());
        assert_eq!(names(&held), ["b"]);
        held.obey("FDSTOREREMOVE=1", Vec::new());
        assert_eq!(names(&held), ["b"]);
    }

    #[test]
    fn a_name_that_would_break_the_list_of_names_is_not_taken() {
        let mut held = Held::default();
        for name in ["", "a:b", "ä", &"x".repeat(256)] {
            held.obey(&format!("FDSTORE=1\nFDNAME={name}"), some());
        }
        assert_eq!(names(&held), [NAMELESS; 4]);
    }
}
