//! SIGKILL of a replica at random, under load.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::Targets;
use super::report::Report;
use super::world::{World, count_leased};
use super::{duration, seed};
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database};

/// A run has at least so many kills, however short it is.
const MIN_KILLS: usize = 4;
/// PostgreSQL's connections are for all tests.
const OPTIONS: &[&str] = &["--database-max-connections", "8"];

/// The names under which a process has leased: it takes a new one when it has lost its lease.
pub(super) fn nodes(log: &[String]) -> Vec<String> {
    let name = |line: &String, field: &str| {
        let (_, rest) = line.split_once(field)?;
        rest.split('"').next().map(ToOwned::to_owned)
    };
    let named = |line| [name(line, "\"node.id\":\""), name(line, "\"node.successor\":\"")];
    log.iter().flat_map(named).flatten().collect()
}

on_both! {
    async fn random_replicas_are_killed(database: Database) {
        let (seed, replicas) = (seed(), if database.is_sqlite() { 1 } else { 3 });
        let mut random = StdRng::seed_from_u64(seed);
        let name = if database.is_sqlite() { "SIGKILL, SQLite" } else { "SIGKILL, PostgreSQL" };
        let mut report = Report::begin(format!("{name}, {replicas} at once"), seed);
        let key = operator_key(&database).await;
        let targets = Targets::default();
        let mut running = Vec::new();
        for _ in 0..replicas {
            let served = Served::start(&database, OPTIONS).await;
            targets.add(&served.endpoint);
            running.push(served);
        }
        let client = Client::connect(&running[0].endpoint, &key).await;
        let world = World::begin(&client, &key, &targets, seed).await;

        // A delivery can come twice only if the node that had leased it was killed before its result
        // was committed. So at each kill the leases of the dead node are counted: that many, and no
        // more, may repeat. (The node has at most 8 deliveries in its lane per attempt that the
        // subscription allows at once, so this is at most 2 × 8 × 16 for these two endpoints.)
        let mut interrupted = 0;
        let start = Instant::now();
        while start.elapsed() < duration() || report.count("kills") < MIN_KILLS {
            tokio::time::sleep(Duration::from_millis(random.random_range(500..3_000))).await;
            world.load.wait_for_more(20).await;
            let victim = running.swap_remove(random.random_range(0..running.len()));
            let nodes = nodes(&victim.log.lines());
            targets.remove(&victim.endpoint);
            victim.kill().await;
            report.fired("kills");
            let leased = count_leased(&database, &nodes).await;
            assert!(leased <= 2 * 8 * 16, "{leased} leases for two endpoints");
            interrupted += leased;
            let served = Served::start(&database, OPTIONS).await;
            targets.add(&served.endpoint);
            running.push(served);
        }
        assert!(interrupted > 0, "no kill hit a delivery");
        let failed = world.end(&database, interrupted, report).await;
        assert!(failed > 0, "no caller noticed any kill");
        for served in running {
            served.kill().await;
        }
    }
}
