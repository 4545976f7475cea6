//! How much a server lets a client have outstanding.

use sconce_schemas::wire::Protocol;

const MIB: u64 = 1 << 20;

/// What a server lets each of its clients have outstanding, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sum over a client's unanswered requests of body, data and expected reply data, and
    /// [`REQUEST_OVERHEAD`](sconce_schemas::wire::envelope::REQUEST_OVERHEAD) for each.
    pub credit_bytes: u64,
    /// Largest message, both frames together.
    pub message_bytes_max: u64,
    /// Most clients at a time; one more is told to try again later.
    pub peers_max: usize,
}

impl Limits {
    /// Largest message of any protocol: what a filter lets through that does not know the protocol. An object of
    /// 96 MiB with its header fits.
    pub const MESSAGE_BYTES_CEILING: u64 = 104 * MIB;

    /// What a server keeps for all connections of one node together: unanswered requests and unread answers. One
    /// that a node's many connections fill is refused with "try again" until some of it is taken in.
    #[must_use]
    pub const fn node_bytes_max(&self) -> u64 {
        self.credit_bytes.saturating_mul(2)
    }

    /// What fits a protocol: the largest request of each fits a few times into the credit.
    #[must_use]
    pub const fn of(protocol: Protocol) -> Self {
        let (credit_bytes, message_bytes_max) = match protocol {
            // The largest NBD request is 32 MiB.
            Protocol::Volume => (128 * MIB, 40 * MIB),
            // The largest object is 96 MiB.
            Protocol::Storage => (256 * MIB, 100 * MIB),
            Protocol::Registry => (16 * MIB, 4 * MIB),
        };
        Self {
            credit_bytes,
            message_bytes_max,
            peers_max: 512,
        }
    }
}

/// Data of several requests is joined into one frame up to this size; beyond it a message of its own costs less than
/// the copy. Also about what a unix socket's buffer takes at once (208 KiB).
pub(crate) const JOINED_DATA_MAX: usize = 192 << 10;

const _: () = {
    let protocols = [Protocol::Volume, Protocol::Storage, Protocol::Registry];
    let mut i = 0;
    while i < protocols.len() {
        let limits = Limits::of(protocols[i]);
        assert!(limits.message_bytes_max < Limits::MESSAGE_BYTES_CEILING);
        assert!(limits.message_bytes_max < limits.credit_bytes);
        assert!(limits.message_bytes_max > JOINED_DATA_MAX as u64);
        i += 1;
    }
};
