//! The volume-router's process.

fn main() {}
