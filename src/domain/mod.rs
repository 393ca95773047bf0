//! What Tidings decides, without doing anything.
//!
//! Pure code: no clock, no randomness, no socket, no database. Time and random numbers come in as
//! parameters, so states, retries, ids and signatures are tested by the thousand in milliseconds.
//! Nothing here imports another module of ours.

pub mod attempt;
pub mod channel;
pub mod clock;
pub mod delivery;
pub mod endpoint;
pub mod envelope;
pub mod event;
pub mod event_type;
pub mod headers;
pub mod id;
pub mod key;
pub mod labels;
pub mod pattern;
pub mod payload;
pub mod retry;
pub mod schema;
pub mod signature;
pub mod subscription;
pub mod tenant;
pub mod trace;
pub mod violation;

pub use clock::{Clock, Timestamp};
pub use violation::Violations;
