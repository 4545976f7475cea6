//! The bus as its users see it.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod connection;
mod hostile;
mod in_process;
mod tls;
mod versions;
mod zmtp;
