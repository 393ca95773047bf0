//! A deterministic simulation of the engine: scheduler, retries, leases, breakers and fairness, under
//! virtual time and seeded faults.
//!
//! A world has one to five nodes, tenants (one of them loud), receivers, and a database with the
//! semantics of ours. What a node decides is decided by the product's own code: `tidings::domain` and
//! `tidings::dispatch::decide`. What `src/dispatch` does with tasks, locks and SQL is done here by
//! events, one at a time, in an order that the seed decides. Nodes die, by themselves or of what they
//! attempt, stand still and go on, transactions fail before or after their commit, clocks are off and
//! jump, receivers fail, hang and ask for pauses, and clients pause, resume, cancel, retry and change
//! settings meanwhile.
//!
//! `simulation/checks.rs` and `Database::change` say what must hold. Beside that, each fault must have
//! fired in at least one of the worlds.
//!
//! | variable | |
//! |---|---|
//! | `TIDINGS_SIMULATION_SEED` | lives through this one seed and prints all that happens in it |
//! | `TIDINGS_SIMULATION_SEEDS` | how many seeds to live through instead of 3,000 |

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/database.rs"]
mod database;
#[path = "simulation/engine.rs"]
mod engine;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/node.rs"]
mod node;
#[path = "simulation/receiver.rs"]
mod receiver;
#[path = "simulation/scenario.rs"]
mod scenario;
#[path = "simulation/transactions.rs"]
mod transactions;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use faults::{Fired, Tally};
use world::{Ending, live};

/// Seeds that are lived through unless `TIDINGS_SIMULATION_SEEDS` says otherwise.
const SEEDS: u64 = 3_000;
/// From so many seeds on each fault must have fired.
const ENOUGH_SEEDS: u64 = 1_000;
/// Lines of the trace that are printed of a world that broke.
const LAST_LINES: usize = 60;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, is {text:?}")))
}

/// What is found over many seeds.
#[derive(Default)]
struct Found {
    tally: Tally,
    steps: u64,
    deliveries: usize,
    /// The first seed whose world broke.
    broken: Option<u64>,
}

/// Lives through the seeds from 0 on, with a thread for each processor.
fn live_through(seeds: u64) -> Found {
    let (next, found) = (AtomicU64::new(0), Mutex::new(Found::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let ending = live(seed, false);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.tally.add(&ending.tally);
                    found.steps += ending.steps;
                    found.deliveries += ending.deliveries;
                    if ending.broken.is_some() {
                        // Others may still find an earlier one.
                        next.store(seeds, Ordering::Relaxed);
                        found.broken = Some(found.broken.map_or(seed, |other| other.min(seed)));
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn replay(seed: u64, lines: usize) {
    let Ending { trace, broken, steps, .. } = live(seed, true);
    for line in &trace[trace.len().saturating_sub(lines)..] {
        println!("{line}");
    }
    println!("seed {seed}: {steps} steps");
    assert!(
        broken.is_none(),
        "seed {seed}: {}\nreplay it with TIDINGS_SIMULATION_SEED={seed}",
        broken.unwrap_or_default()
    );
}

#[test]
fn whatever_fails_the_engine_keeps_its_promises() {
    if let Some(seed) = number("TIDINGS_SIMULATION_SEED") {
        return replay(seed, usize::MAX);
    }
    let seeds = number("TIDINGS_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let found = live_through(seeds);
    if let Some(seed) = found.broken {
        replay(seed, LAST_LINES);
        panic!("seed {seed} breaks, but not when it is replayed");
    }
    println!("{seeds} seeds, {} deliveries, {} steps", found.deliveries, found.steps);
    for fired in Fired::ALL {
        println!("{:>9}  {fired:?}", found.tally.of(fired));
    }
    let missing: Vec<_> = Fired::ALL.into_iter().filter(|f| found.tally.of(*f) == 0).collect();
    assert!(seeds < ENOUGH_SEEDS || missing.is_empty(), "never fired: {missing:?}");
}

#[test]
fn a_seed_always_tells_the_same_story() {
    for seed in 0..20 {
        let (one, other) = (live(seed, true), live(seed, true));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!((one.hash, one.steps), (other.hash, other.steps), "seed {seed}");
        assert!(one.trace.len() > 20, "seed {seed} tells something");
    }
}
