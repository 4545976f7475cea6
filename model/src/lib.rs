//! The twin protocol of docs/decisions/0170 as a model.

mod claim;
mod host;
mod owner;
mod properties;
mod rules;
mod search;
mod state;
mod step;
mod world;

pub use properties::Broken;
pub use rules::{Limits, Planted, Rules};
pub use search::{Found, search};
pub use state::{BATCHES, EPOCHS, NODES, SCOS, STREAMS};
pub use step::Step;
