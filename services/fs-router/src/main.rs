//! The fs-router service.
fn main() {}
