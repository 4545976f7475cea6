//! The tracepoints, in the order in which an operation comes by them: the map of the IO path.
//!
//! Keeps: the one list from which `build.rs` makes LTTng's provider, the C shim and [`super::Point`].
//! Order: that of the path: front end, bus, volume, bus, storage, front end; then what goes on beside it.
//! Crash: nothing.
//! Knows no LTTng. Names are what recorded traces and their readers rely on: one that is given up is not used again.

/// Provider, event, and what the event says. All have the fields of [`super::Step`].
pub(crate) const POINTS: &[(&str, &str, &str)] = &[
    (
        "sconce_nbd",
        "entry",
        "A client's request was read from its NBD connection.",
    ),
    ("sconce_fuse", "entry", "A file request of the kernel is begun."),
    (
        "sconce_bus",
        "request_out",
        "A request waits to leave with the next message to its service; `length`: its data.",
    ),
    (
        "sconce_bus",
        "request_in",
        "A request was taken out of a message that came; `length`: its data.",
    ),
    (
        "sconce_volume",
        "receive",
        "An operation is handed to its volume.",
    ),
    (
        "sconce_volume",
        "append",
        "All of a change is in the write buffer.",
    ),
    (
        "sconce_volume",
        "twin_send",
        "Batch `address` with `length` bytes of data is given to the stream to the twin; waiting for the twin to take it comes after.",
    ),
    (
        "sconce_volume",
        "twin_receive",
        "The twin begins to write batch `address`; waiting for a free file of its write buffer comes after.",
    ),
    (
        "sconce_volume",
        "twin_ack",
        "The owner has heard how the twin fared with batch `address`.",
    ),
    (
        "sconce_volume",
        "twin_held",
        "All of a change is held by the twin too.",
    ),
    (
        "sconce_volume",
        "map_lookup",
        "The map has said where the data of a read is.",
    ),
    (
        "sconce_volume",
        "buffer_hit",
        "`length` bytes of a read, from `address` on, are in the write buffer.",
    ),
    (
        "sconce_volume",
        "stored_location",
        "`length` bytes of a read, from `address` on, are answered as locations of stored clusters.",
    ),
    (
        "sconce_volume",
        "flush_entry",
        "The sync that a flush (or a write that is to be durable) waits for begins; others may share it.",
    ),
    ("sconce_volume", "flush_exit", "That sync is done."),
    ("sconce_volume", "ack", "The owner has answered an operation."),
    (
        "sconce_bus",
        "reply_out",
        "A reply waits to leave with the next message to its client; `length`: its data.",
    ),
    (
        "sconce_bus",
        "reply_in",
        "A reply was taken out of a message that came; `length`: its data.",
    ),
    (
        "sconce_storage",
        "put",
        "A storage-router begins to store an object of `length` bytes.",
    ),
    (
        "sconce_storage",
        "get",
        "A storage-router begins to read `length` bytes of an object, from its byte `address` on.",
    ),
    (
        "sconce_backend",
        "put",
        "A back end is asked to store an object of `length` bytes.",
    ),
    (
        "sconce_backend",
        "get",
        "A back end is asked for `length` bytes of an object, from its byte `address` on.",
    ),
    (
        "sconce_backend",
        "exit",
        "The back end has done it, or has failed.",
    ),
    (
        "sconce_storage",
        "exit",
        "The storage-router has done it, or has failed.",
    ),
    (
        "sconce_fuse",
        "exit",
        "The file request's answer is ready for the kernel.",
    ),
    (
        "sconce_nbd",
        "exit",
        "The answer waits to be written to the client.",
    ),
    (
        "sconce_volume",
        "upload_entry",
        "SCO `address` of `length` bytes is to be stored; waiting for room is part of it.",
    ),
    (
        "sconce_volume",
        "upload_exit",
        "SCO `address` is stored, or its owner is owner no more.",
    ),
    (
        "sconce_volume",
        "checkpoint_entry",
        "A checkpoint is to be encoded and stored.",
    ),
    (
        "sconce_volume",
        "checkpoint_exit",
        "The checkpoint is stored, or its owner is owner no more.",
    ),
    (
        "sconce_volume",
        "scrub_entry",
        "A scrub asks for a piece of work; waiting for its turn is part of it.",
    ),
    (
        "sconce_volume",
        "scrub_exit",
        "That piece of work is over; `status` says nothing of how it ended.",
    ),
    (
        "sconce_volume",
        "takeover_entry",
        "A node begins to claim and recover a volume.",
    ),
    (
        "sconce_volume",
        "takeover_exit",
        "The volume is served, with epoch `address`, or why it is not is in `status`.",
    ),
];

/// What an operation does, by number.
pub(crate) const ACTIONS: &[&str] = &[
    "none",
    "read",
    "write",
    "discard",
    "write_zeroes",
    "flush",
    "extents",
    "resize",
    "changes",
    "put",
    "get",
    "control",
];

/// How it stands, by number.
pub(crate) const STATUSES: &[&str] = &["ok", "reroute", "retry", "reject", "damaged", "failed"];
