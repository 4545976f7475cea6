//! A body that may be unknown to this build.
//!
//! A peer that is a minor version ahead may send a body that this build does not know. Only that one request (or
//! reply) is refused then, not the connection with everything else on it.

use sconce_schemas::DecodeError;
use sconce_schemas::wire::Body;
use sconce_schemas::wire::msgpack::skip;

/// A body, or why it could not be read, and how long it is.
pub(crate) struct Tolerant<B> {
    pub(crate) body: Result<B, DecodeError>,
    pub(crate) len: usize,
}

impl<B: Body> Body for Tolerant<B> {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Ok(body) = &self.body {
            body.encode(out);
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let before = *input;
        let body = B::decode(input);
        if body.is_err() {
            // Passes over the body; what is not even well-formed ends the connection.
            *input = before;
            skip(input, "body", 1)?;
        }
        Ok(Self {
            body,
            len: before.len() - input.len(),
        })
    }
}
