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

/// How many deliveries were taken over from living processes that lost their lease, at most: on a machine
/// that is busy enough one gets no turn for ten seconds. Zero when none did. `logs` are those of all
/// processes; a take-over does not say whether its node was dead or only silent, so all of them count then.
fn taken_from_the_living(logs: &[Vec<String>]) -> usize {
    let lines = || logs.iter().flatten();
    if !lines().any(|line| line.contains("the node's lease had run out")) {
        return 0;
    }
    let taken = |line: &String| {
        let (_, count) = line.split_once("\"deliveries\":")?;
        count.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
    };
    lines().filter(|line| line.contains("took over deliveries")).filter_map(taken).sum()
}

#[test]
fn take_overs_count_when_a_living_process_lost_its_lease() {
    let took = r#"{"message":"took over deliveries of nodes that fell silent","deliveries":12}"#;
    let lost = r#"{"message":"the node's lease had run out; going on under a new name"}"#;
    let logs = |lines: &[&str]| vec![lines.iter().map(|line| (*line).to_owned()).collect()];
    assert_eq!(taken_from_the_living(&logs(&[took, took])), 0);
    assert_eq!(taken_from_the_living(&logs(&[took, lost, took])), 24);
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
        let (mut interrupted, mut logs) = (0, Vec::new());
        let start = Instant::now();
        while start.elapsed() < duration() || report.count("kills") < MIN_KILLS {
            tokio::time::sleep(Duration::from_millis(random.random_range(500..3_000))).await;
            world.load.wait_for_more(20).await;
            let victim = running.swap_remove(random.random_range(0..running.len()));
            let log = victim.log.lines();
            let nodes = nodes(&log);
            logs.push(log);
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
        let in_all = || {
            logs.extend(running.iter().map(|served| served.log.lines()));
            interrupted + taken_from_the_living(&logs)
        };
        let failed = world.end_with(&database, in_all, report).await;
        assert!(failed > 0, "no caller noticed any kill");
        for served in running {
            served.kill().await;
        }
    }
}
