//! Tidings: one Emit becomes signed webhooks, stored before it is acknowledged, retried by policy,
//! recorded attempt by attempt, and watched live.
//!
//! > `domain` decides, `store` remembers, `intake` accepts, `dispatch` acts, `channel` delivers,
//! > `feed` tells, `api` speaks gRPC, `web` speaks HTTP, `app` wires.
//!
//! The way of an event, in seven steps:
//!
//! 1. [`api`] authenticates an Emit and converts it; [`intake`] validates it: all violations in one
//!    answer.
//! 2. [`intake`] matches it against the tenant's subscriptions, which a versioned cache in [`store`]
//!    keeps exact.
//! 3. Concurrent Emits share one transaction; the answer goes out after the commit.
//! 4. Deliveries that found a place in the queue of [`dispatch`] are born leased to this node and go
//!    to work at once; the others are born due, and any node claims them.
//! 5. [`channel`] makes an attempt. The outcome is data.
//! 6. [`domain`] decides what follows; [`dispatch`] records it in group commits, fenced by revisions.
//! 7. [`feed`] tells every change to every watcher on every replica.
//!
//! `ARCHITECTURE.md` has the map, the rules and the invariants.

#[macro_use]
pub mod failpoint;

pub mod api;
pub mod app;
pub mod channel;
pub mod cli;
pub mod config;
pub mod dispatch;
pub mod domain;
pub mod feed;
pub mod intake;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod web;
