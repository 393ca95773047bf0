//! Tests against real parts: a SQLite file, a PostgreSQL server, HTTP receivers, gRPC clients.
//!
//! One binary, one module per subject. `on_both!` runs a test on both databases.

#![expect(clippy::disallowed_methods, reason = "tests measure real time and make their own keys")]

#[macro_use]
mod support;

mod auth;
mod bad_input;
mod births;
mod bounces;
mod canary;
mod cloudevents;
mod command_line;
mod deliver;
mod durability;
mod email;
mod emit;
#[cfg(target_os = "linux")]
mod exhaustion;
mod fairness;
mod faults;
mod feed_order;
mod fleet;
mod foreign;
mod grpc_limits;
mod guard;
mod health;
mod hostile;
mod hot_path;
mod leases;
mod lost_commit;
mod master_key;
mod memory;
mod observe;
mod plans;
mod pooler;
#[cfg(target_os = "linux")]
mod power;
mod quarantine;
mod recipients;
mod replicas;
mod rotation;
mod scaling;
mod settings;
mod signatures;
#[cfg(target_os = "linux")]
mod skew;
mod store;
mod suppressions;
mod takeover;
mod unreadable;
mod unsubscribe;
mod watch;
mod write_back;
