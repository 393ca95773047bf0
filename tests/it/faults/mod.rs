//! The fault suite: the service under load while something breaks, and a checker that compares what
//! was attempted, acknowledged, delivered, told to watchers and stored in the end. Every fault is counted,
//! and a run in which one never fired fails.
//!
//! `make test` runs the short form, `make faults` the long one; `docs/faults.md` says what each run
//! claims.

mod history;
mod kills;
mod load;
mod network;
#[cfg(feature = "failpoints")]
mod noise;
mod outage;
mod replicas;
mod report;
#[cfg(feature = "failpoints")]
mod walk;
mod watchers;
mod world;

use std::time::Duration;

/// How many seconds things break in a run, at least.
const SECONDS: &str = "TIDINGS_TEST_FAULT_SECONDS";
/// Where the randomness of a run starts; a new one each time when it is not set.
const SEED: &str = "TIDINGS_TEST_FAULT_SEED";

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is to be a number, not {text}")))
}

fn duration() -> Duration {
    Duration::from_secs(number(SECONDS).unwrap_or(6))
}

fn seed() -> u64 {
    number(SEED).unwrap_or_else(|| u64::from(rand::random::<u32>()))
}
