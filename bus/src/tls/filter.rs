//! What may pass to a ZeroMQ socket.
//!
//! Keeps: where in the ZMTP 3 stream we are: greeting, handshake, frames.
//! Order: bytes are looked at once, in order; nothing is kept of them but the handshake command and the first message.
//! Crash: nothing.
//! Knows no sockets and no bodies: it reads frame headers.
//!
//! The crate that reads the stream believes every length that it is told and joins any number of parts; so a peer,
//! certificate or not, gets through this first.

/// The longest handshake command; ours has 26 bytes.
const COMMAND_MAX: u64 = 512;
/// The longest first message: a greeting of the bus, or its refusal.
const FIRST_MESSAGE_MAX: u64 = 4096;
/// A header frame and a data frame.
const PARTS_MAX: u32 = 2;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Says whether the bus's first message may pass.
pub(crate) type Admit = Box<dyn Fn(&[u8]) -> Result<(), String>>;

/// Looks at the bytes of one direction.
pub(crate) struct Filter {
    admit: Admit,
    message_bytes_max: u64,
    state: State,
    /// The bus's first message, until all of it was seen.
    greeting: Option<Vec<u8>>,
    /// Parts of the current message, and the sum of their announced lengths.
    parts: u32,
    announced: u64,
}

#[derive(Debug)]
enum State {
    /// The first 64 bytes.
    Greeting(Vec<u8>),
    /// A frame's flags; `handshake`: it must be the READY command.
    Flags { handshake: bool },
    /// A frame's length, `left` bytes of it to come.
    Length { flags: u8, left: u32, length: u64 },
    /// The handshake command.
    Ready { left: u64, body: Vec<u8> },
    /// A message frame's content.
    Content { flags: u8, left: u64 },
}

/// Why a stream is cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("not a ZMTP 3 greeting")]
    Greeting,
    #[error("frame flags {0:#04x} where {1} was expected")]
    Flags(u8, &'static str),
    #[error("a handshake of {0} bytes")]
    Handshake(u64),
    #[error("a handshake that claims an identity")]
    Identity,
    #[error("a message of {announced} bytes; at most {limit} may come")]
    Size { announced: u64, limit: u64 },
    #[error("a message of more than two parts")]
    Parts,
    #[error("a greeting that is refused: {0}")]
    Refused(String),
}

impl Filter {
    /// A filter of messages up to a size; `admit` judges the first.
    pub(crate) fn new(message_bytes_max: u64, admit: Admit) -> Self {
        Self {
            admit,
            message_bytes_max,
            state: State::Greeting(Vec::with_capacity(64)),
            greeting: Some(Vec::new()),
            parts: 0,
            announced: 0,
        }
    }

    /// Bytes that the message under way has announced; 0 between messages.
    pub(crate) fn announced(&self) -> u64 {
        self.announced
    }

    /// Looks at the next bytes. After an error nothing of them may pass.
    pub(crate) fn look(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some(first) = bytes.first() {
            let taken = match &mut self.state {
                State::Content { flags, left } => {
                    let flags = *flags;
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    let ended = *left == 0;
                    if let Some(greeting) = &mut self.greeting {
                        greeting.extend_from_slice(&bytes[..taken]);
                    }
                    if ended {
                        self.end_frame(flags)?;
                    }
                    taken
                }
                State::Flags { handshake } => {
                    let handshake = *handshake;
                    self.start_frame(*first, handshake)?;
                    1
                }
                State::Length { flags, left, length } => {
                    *length = *length << 8 | u64::from(*first);
                    *left -= 1;
                    if *left == 0 {
                        let (flags, length) = (*flags, *length);
                        self.announce(flags, length)?;
                    }
                    1
                }
                State::Greeting(greeting) => {
                    let taken = bytes.len().min(64 - greeting.len());
                    greeting.extend_from_slice(&bytes[..taken]);
                    check_greeting(greeting)?;
                    if greeting.len() == 64 {
                        self.state = State::Flags { handshake: true };
                    }
                    taken
                }
                State::Ready { left, body } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    body.extend_from_slice(&bytes[..taken]);
                    *left -= taken as u64;
                    if *left == 0 {
                        check_ready(body)?;
                        self.state = State::Flags { handshake: false };
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn start_frame(&mut self, flags: u8, handshake: bool) -> Result<(), Violation> {
        let wanted = if handshake { COMMAND } else { flags & MORE };
        if flags & !LONG != wanted {
            let expected = if handshake { "a command" } else { "a message" };
            return Err(Violation::Flags(flags, expected));
        }
        let left = if flags & LONG == 0 { 1 } else { 8 };
        self.state = State::Length {
            flags,
            left,
            length: 0,
        };
        Ok(())
    }

    fn announce(&mut self, flags: u8, length: u64) -> Result<(), Violation> {
        if flags & COMMAND != 0 {
            if length == 0 || length > COMMAND_MAX {
                return Err(Violation::Handshake(length));
            }
            self.state = State::Ready {
                left: length,
                body: Vec::new(),
            };
            return Ok(());
        }
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(Violation::Parts);
        }
        self.announced = self.announced.saturating_add(length);
        let limit = match self.greeting {
            Some(_) => FIRST_MESSAGE_MAX,
            None => self.message_bytes_max,
        };
        if self.announced > limit {
            return Err(Violation::Size {
                announced: self.announced,
                limit,
            });
        }
        self.state = State::Content { flags, left: length };
        if length == 0 {
            self.end_frame(flags)?;
        }
        Ok(())
    }

    fn end_frame(&mut self, flags: u8) -> Result<(), Violation> {
        if flags & MORE == 0 {
            if let Some(greeting) = self.greeting.take() {
                (self.admit)(&greeting).map_err(Violation::Refused)?;
            }
            self.parts = 0;
            self.announced = 0;
        }
        self.state = State::Flags { handshake: false };
        Ok(())
    }
}

/// Checks as much of a greeting as there is: signature, version 3, mechanism NULL.
fn check_greeting(greeting: &[u8]) -> Result<(), Violation> {
    let right = greeting.iter().enumerate().all(|(i, byte)| match i {
        0 => *byte == 0xff,
        9 => *byte == 0x7f,
        10 => *byte == 3,
        12..32 => *byte == b"NULL".get(i - 12).copied().unwrap_or(0),
        _ => true,
    });
    if right { Ok(()) } else { Err(Violation::Greeting) }
}

/// A server keeps its clients apart by identity: who claims another's would get its replies.
fn check_ready(body: &[u8]) -> Result<(), Violation> {
    let claims = body.windows(8).any(|part| part.eq_ignore_ascii_case(b"identity"));
    if claims { Err(Violation::Identity) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handshake() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[0] = 0xff;
        bytes[9] = 0x7f;
        bytes[10] = 3;
        bytes[12..16].copy_from_slice(b"NULL");
        let ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER";
        bytes.extend_from_slice(&[COMMAND, u8::try_from(ready.len()).expect("short")]);
        bytes.extend_from_slice(ready);
        bytes
    }

    fn long(flags: u8, length: u64) -> Vec<u8> {
        let mut bytes = vec![flags | LONG];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    }

    fn filter() -> Filter {
        let admit = |greeting: &[u8]| match greeting {
            b"stranger" => Err("who?".to_owned()),
            _ => Ok(()),
        };
        Filter::new(10_000, Box::new(admit))
    }

    fn look(bytes: &[u8]) -> Result<(), Violation> {
        filter().look(bytes)
    }

    fn after_hello(bytes: &[u8]) -> Result<(), Violation> {
        let hello = [&handshake()[..], &[0, 5], b"hello"].concat();
        look(&[&hello[..], bytes].concat())
    }

    #[test]
    fn an_honest_stream_passes() {
        let two_parts = [&long(MORE, 300)[..], &[7; 300], &long(0, 9700), &[7; 9700]].concat();
        assert_eq!(after_hello(&two_parts.repeat(3)), Ok(()));
    }

    #[test]
    fn who_greets_wrong_does_not_pass() {
        let stranger = [&handshake()[..], &[0, 8], b"stranger"].concat();
        assert_eq!(look(&stranger), Err(Violation::Refused("who?".to_owned())));
        let parts = [&handshake()[..], &[MORE, 5], b"stran", &[0, 3], b"ger"].concat();
        assert_eq!(look(&parts), Err(Violation::Refused("who?".to_owned())));
        assert_eq!(
            after_hello(&[&[0, 8], &b"stranger"[..]].concat()),
            Ok(()),
            "only the first counts"
        );
    }

    #[test]
    fn what_would_take_memory_does_not() {
        let limit = 10_000;
        let size = |announced| Err(Violation::Size { announced, limit });
        assert_eq!(after_hello(&long(0, 1 << 44)), size(1 << 44));
        assert_eq!(after_hello(&long(0, u64::MAX)), size(u64::MAX));
        let parts = [&long(MORE, 10_000)[..], &[7; 10_000], &[0, 1]].concat();
        assert_eq!(after_hello(&parts), size(10_001));
        assert_eq!(after_hello(&[MORE, 0, MORE, 0, MORE, 0]), Err(Violation::Parts));
        let first = [&handshake()[..], &long(0, 4097)].concat();
        let (announced, limit) = (4097, FIRST_MESSAGE_MAX);
        assert_eq!(look(&first), Err(Violation::Size { announced, limit }));
    }

    #[test]
    fn what_is_no_handshake_does_not_pass() {
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), Err(Violation::Greeting));
        let mut curve = handshake();
        curve[12..17].copy_from_slice(b"CURVE");
        assert_eq!(look(&curve), Err(Violation::Greeting));
        assert_eq!(
            look(&[&handshake()[..64], &[0, 1]].concat()),
            Err(Violation::Flags(0, "a command"))
        );
        let long_command = [&handshake()[..64], &long(COMMAND, 513)].concat();
        assert_eq!(look(&long_command), Err(Violation::Handshake(513)));
        let ready = b"\x05READY\x08Identity\x00\x00\x00\x01a";
        let identity = [
            &handshake()[..64],
            &[COMMAND, u8::try_from(ready.len()).expect("short")],
            ready,
        ]
        .concat();
        assert_eq!(look(&identity), Err(Violation::Identity));
        assert_eq!(
            after_hello(&[COMMAND, 1]),
            Err(Violation::Flags(COMMAND, "a message"))
        );
        assert_eq!(after_hello(&[0x80, 1]), Err(Violation::Flags(0x80, "a message")));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0usize..300, 0..10),
        ) {
            let bytes = [&handshake()[..], &[0, 2, 9, 9], &tail].concat();
            let whole = look(&bytes);
            let mut filter = filter();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).try_for_each(|cut| filter.look(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(parts, whole);
        }
    }
}
