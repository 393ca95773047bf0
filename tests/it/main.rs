//! Tests against real parts: a SQLite file, a PostgreSQL server, HTTP receivers, gRPC clients.
//!
//! One binary, one module per subject. `on_both!` runs a test on both databases.

#![expect(clippy::disallowed_methods, reason = "tests measure real time and make their own keys")]

#[macro_use]
mod support;

mod auth;
mod bad_input;
mod command_line;
mod deliver;
mod durability;
mod emit;
mod feed_order;
mod foreign;
mod observe;
mod plans;
mod store;
mod watch;
