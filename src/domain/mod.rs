//! What Tidings decides, without doing anything.
//!
//! Pure code: no clock, no randomness, no socket, no database. Time and random numbers come in as
//! parameters, so states, retries, ids and signatures are tested by the thousand in milliseconds.
//! Nothing here imports another module of ours.

pub mod address;
pub mod attempt;
pub mod channel;
pub mod clock;
pub mod delivery;
pub mod endpoint;
pub mod envelope;
pub mod event;
pub mod event_type;
pub mod feedback;
pub mod header_list;
pub mod headers;
pub mod health;
pub mod id;
pub mod key;
pub mod labels;
pub mod locale;
pub mod mail;
pub mod mail_address;
pub mod pattern;
pub mod payload;
pub mod replicas;
pub mod retry;
pub mod schema;
pub mod signature;
pub mod subscription;
pub mod suppression;
pub mod tenant;
pub mod trace;
pub mod unsubscribe;
pub mod violation;

pub use clock::{Clock, Timestamp};
pub use violation::Violations;
