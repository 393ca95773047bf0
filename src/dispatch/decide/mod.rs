//! What the engine decides, without doing anything: no lock, no task, no clock, no database. Time,
//! random numbers and what others know come in as parameters.
//!
//! | part | decides |
//! |---|---|
//! | [`claims`] | what to lease next, and when to look again |
//! | [`delivery`] | whether a delivery is attempted now, whether apart, and what follows |
//! | [`endpoints`] | what may be sent where, by what this node knows |
//! | [`lanes`] | who has a place in memory, and which deliveries start |
//! | [`lease`] | under which name, and how long, this node surely leases |
//! | [`pace`] | how fast a lane works |
//! | [`places`] | who makes the next attempt |
//! | [`ramp`] | at which pace attempts begin that may hang |
//! | [`trust`] | how many attempts at once an endpoint has earned |
//! | [`wants`] | for which lanes to claim when a place becomes free |
//!
//! The files beside this folder act on it. `tests/simulation.rs` acts on it, too, in a world of its
//! own: thousands of faults in seconds.

pub mod claims;
pub mod delivery;
pub mod endpoints;
pub mod lanes;
pub mod lease;
pub mod pace;
pub mod places;
pub mod ramp;
pub mod trust;
pub mod wants;
