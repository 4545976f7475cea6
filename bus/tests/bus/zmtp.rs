//! A peer that speaks ZMTP by hand, so that it can lie.

use sconce_bus::{Body, Hello};
use sconce_schemas::wire::envelope::Header;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) const MORE: u8 = 1;
pub(crate) const LONG: u8 = 2;
pub(crate) const COMMAND: u8 = 4;

const STALL: std::time::Duration = std::time::Duration::from_secs(2);

/// The 64 bytes that start a ZMTP 3.0 connection with the NULL mechanism.
pub(crate) fn greeting() -> Vec<u8> {
    let mut greeting = vec![0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// A READY command of a DEALER, with more properties.
pub(crate) fn ready(properties: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", &b"DEALER"[..])].iter().chain(properties) {
        body.push(u8::try_from(name.len()).expect("short"));
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend_from_slice(value);
    }
    frame(COMMAND, &body)
}

/// A frame with its true length.
pub(crate) fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = announce(flags, body.len() as u64);
    frame.extend_from_slice(body);
    frame
}

/// The start of a frame that says it is so long.
pub(crate) fn announce(flags: u8, len: u64) -> Vec<u8> {
    match u8::try_from(len) {
        Ok(len) => vec![flags, len],
        Err(_) => {
            let mut start = vec![flags | LONG];
            start.extend_from_slice(&len.to_be_bytes());
            start
        }
    }
}

/// A header frame, and a data frame where there is data.
pub(crate) fn message(header: &Header<RegistryRequest>, data: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    header.encode(&mut encoded);
    if data.is_empty() {
        return frame(0, &encoded);
    }
    let mut both = frame(MORE, &encoded);
    both.extend_from_slice(&frame(0, data));
    both
}

/// One end of a connection on which anything can be said.
pub(crate) struct Raw<S>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Says what every ZeroMQ peer says first, and hears it.
    pub(crate) async fn shake_hands(mut stream: S) -> Self {
        stream.write_all(&greeting()).await.expect("written");
        stream.write_all(&ready(&[])).await.expect("written");
        let mut heard = [0; 64];
        stream.read_exact(&mut heard).await.expect("a greeting");
        let mut raw = Self(stream);
        let (flags, _ready) = raw.read_frame().await.expect("a READY command");
        assert_eq!(flags & COMMAND, COMMAND);
        raw
    }

    /// The handshake, and the bus's greeting.
    pub(crate) async fn greet(stream: S, hello: Hello) -> Self {
        let mut raw = Self::shake_hands(stream).await;
        raw.say(&message(&Header::Hello(hello), &[]))
            .await
            .expect("written");
        let header = raw.hear::<RegistryReply>().await;
        assert!(matches!(header, Some(Header::Welcome(_))), "{header:?}");
        raw
    }

    /// Writes. An error: the connection is closed, or for two seconds nobody read what was written.
    pub(crate) async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        tokio::time::timeout(STALL, self.0.write_all(bytes)).await?
    }

    /// Writes what the server takes sooner or later: on a busy machine nobody may read for longer than that.
    pub(crate) async fn say_in_the_end(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// A frame's flags and body; `None`: the connection ended.
    pub(crate) async fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let flags = self.0.read_u8().await.ok()?;
        let len = match flags & LONG {
            0 => u64::from(self.0.read_u8().await.ok()?),
            _ => self.0.read_u64().await.ok()?,
        };
        let mut body = vec![0; usize::try_from(len).ok()?];
        self.0.read_exact(&mut body).await.ok()?;
        Some((flags, body))
    }

    /// The next message's header; `None`: the connection ended.
    pub(crate) async fn hear<R: Body>(&mut self) -> Option<Header<R>> {
        let (flags, header) = self.read_frame().await?;
        let data = match flags & MORE {
            0 => Vec::new(),
            _ => self.read_frame().await?.1,
        };
        Some(Header::decode(&header, data.len()).expect("a header"))
    }

    /// Reads to the end of the connection: the reason of its goodbye, or `None` where it said none.
    pub(crate) async fn hear_goodbye(&mut self) -> Option<String> {
        let mut reason = None;
        while let Some(header) = self.hear::<RegistryReply>().await {
            if let Header::Goodbye(refusal) = header {
                reason = Some(refusal.text);
            }
        }
        reason
    }
}
