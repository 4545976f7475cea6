//! ZeroMQ DEALER and ROUTER over unix sockets: the only module that names ZeroMQ.
//!
//! Keeps: one socket for each connection of a client, one for each endpoint of a server.
//! Order: as sent, within a connection.
//! Crash: the crate's DEALER never connects again and loses what it was given meanwhile, so a lost connection is
//! reported here and its socket thrown away.
//! Knows no envelope.

mod bind;
mod dial;
mod directory;

pub(crate) use bind::{ListenReceiver, ListenSender, listen};
pub(crate) use dial::{DialReceiver, DialSender, dial, dial_tunnel};
pub(crate) use directory::private_directory;

use zeromq::SocketOptions;

use crate::link::Frames;

/// Options of every socket: reads start at a page and grow to what a busy connection fills at once, so that a lone
/// request is one read and a batch a few.
fn socket_options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.read_buffer(8 << 10, 256 << 10, 4);
    options
}

fn to_message(frames: Frames) -> zeromq::ZmqMessage {
    let mut message = zeromq::ZmqMessage::from(frames.header);
    if !frames.data.is_empty() {
        message.push_back(frames.data);
    }
    message
}

/// The frames of a message of one or two parts; otherwise how many it has.
fn to_frames(parts: std::collections::VecDeque<bytes::Bytes>) -> Result<Frames, usize> {
    let count = parts.len();
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(header), data, None) => Ok(Frames {
            header,
            data: data.unwrap_or_default(),
        }),
        _ => Err(count),
    }
}
