//! A walk over all fail points: at each one the process aborts, the step fails, the step dawdles.
//! Which points there are is said by `FailPoint::ALL`, so a new one is walked over, too; one at which
//! nothing came to pass fails the walk.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tidings::failpoint::FailPoint;

use super::kills::nodes;
use super::load::Targets;
use super::noise::Noise;
use super::report::Report;
use super::world::{World, count_leased};
use super::{duration, seed};
use crate::support::process::{Ended, Log, Served, operator_key};
use crate::support::{Client, Database};

/// How long a point may take to be come to: some wait for a lease to run out, and the machine may be
/// busy.
const PATIENCE: Duration = Duration::from_mins(2);
/// The number of SIGABRT.
const ABORTED: i32 = 6;

/// Points that are passed at the start, before anybody can be asked for anything.
const AT_START: &[FailPoint] = &[FailPoint::RegisterBefore, FailPoint::RegisterAfter];
/// Points that are passed at a graceful end.
const AT_END: &[FailPoint] = &[FailPoint::RemoveBefore, FailPoint::RemoveAfter];
/// Points of the lease's renewal, which may fail now and then, but not twice in a row.
const RENEWAL: &[FailPoint] = &[FailPoint::RenewBefore, FailPoint::RenewAfter];
/// Points at which there is no step that could fail.
const WITHOUT_ERROR: &[FailPoint] = &[FailPoint::AttemptBefore, FailPoint::AttemptAfter];
/// Points that every event passes: it need not be the first one that is hit.
const OFTEN: &[FailPoint] = &[
    FailPoint::AcceptBeforeCommit,
    FailPoint::AcceptAfterCommit,
    FailPoint::AcceptHandOver,
    FailPoint::AttemptBefore,
    FailPoint::AttemptAfter,
    FailPoint::RecordBeforeCommit,
    FailPoint::RecordAfterCommit,
];

/// Points that are passed only when something was left behind.
const AFTER_A_DEATH: &[FailPoint] = &[FailPoint::TakeOverBetween, FailPoint::PurgeBetween];

/// The service, one process at a time, with load and noise.
struct Walk {
    database: Database,
    options: Vec<&'static str>,
    targets: Targets,
    world: World,
    noise: Noise,
}

impl Walk {
    /// Makes the tenants; nobody serves them yet.
    async fn begin(database: Database, lease: &'static str, seed: u64) -> Self {
        let options = vec![
            "--allow-cidr",
            "127.0.0.0/8",
            "--allow-http",
            "--lease-ttl",
            lease,
            "--poll-interval",
            "50ms",
            "--database-max-connections",
            "8",
        ];
        let key = operator_key(&database).await;
        let served = Served::start_as_shipped(&database, &options, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let targets = Targets::default();
        let noise = Noise::begin(&client, &key).await;
        let world = World::begin(&client, &key, &targets, seed).await;
        served.kill().await;
        Self { database, options, targets, world, noise }
    }

    /// Starts a process with these fail points.
    async fn launch(&self, points: &str) -> Result<Served, Ended> {
        let variables = [("FAILPOINTS", points)];
        let launched = Served::launch(&self.database, &self.options, &variables).await;
        if let Ok(served) = &launched {
            self.targets.add(&served.endpoint);
            self.noise.go_to(&served.endpoint);
        }
        launched
    }

    /// Asks the process to stop, and sees it do so.
    async fn terminate(&self, served: Served) -> Ended {
        served.signal("TERM").await;
        let ended = self.ended(served).await;
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log.join("\n"));
        let leased = count_leased(&self.database, &nodes(&ended.log)).await;
        assert_eq!(leased, 0, "leases that were not given back: {}", ended.log.join("\n"));
        ended
    }

    /// Leaves what some points need: a deleted tenant, and leases of a node that is dead. Returns how
    /// many leases.
    async fn leave_something(&self) -> usize {
        let mut all = 0;
        loop {
            let served = self.launch("").await.expect("ready");
            self.noise.wait_for_a_round().await;
            self.world.load.wait_for_more(10).await;
            let nodes = nodes(&served.log.lines());
            self.targets.remove(&served.endpoint);
            served.kill().await;
            let leased = count_leased(&self.database, &nodes).await;
            all += leased;
            if leased > 0 {
                return all;
            }
        }
    }

    /// Waits for the process's end.
    async fn ended(&self, served: Served) -> Ended {
        let endpoint = served.endpoint.clone();
        let ended = served.ended(PATIENCE).await;
        self.targets.remove(&endpoint);
        ended
    }

    async fn end(self, interrupted: usize, report: Report) -> usize {
        let failed = self.world.end(&self.database, interrupted, report).await;
        self.noise.end(&self.database).await;
        failed
    }
}

/// The points at which something came to pass, by the log.
fn fired(log: &[String]) -> impl Iterator<Item = FailPoint> {
    let is_in = |point: &FailPoint| {
        let field = format!("\"fail.point\":\"{}\"", point.name());
        log.iter().any(|line| line.contains(&field))
    };
    FailPoint::ALL.iter().copied().filter(is_in)
}

/// Waits until something has come to pass at all of `points`.
async fn wait_for(log: &Log, points: &[FailPoint]) {
    let start = Instant::now();
    loop {
        let fired: Vec<_> = fired(&log.lines()).collect();
        let missing: Vec<_> = points.iter().filter(|point| !fired.contains(point)).collect();
        if missing.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "nothing came to pass at {missing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn all_but(excluded: &[&[FailPoint]]) -> Vec<FailPoint> {
    let is_left = |point: &FailPoint| excluded.iter().all(|some| !some.contains(point));
    FailPoint::ALL.iter().copied().filter(is_left).collect()
}

/// What all of `points` are set to.
fn set(points: &[FailPoint], action: &str) -> String {
    let set: Vec<_> = points.iter().map(|point| format!("{}={action}", point.name())).collect();
    set.join(";")
}

fn named(walk: &str, database: &Database) -> String {
    format!("{walk}, {}", if database.is_sqlite() { "SQLite" } else { "PostgreSQL" })
}

on_both! {
    async fn an_abort_at_any_point_loses_nothing(database: Database) {
        let seed = seed();
        let mut random = StdRng::seed_from_u64(seed);
        let mut report = Report::begin(named("abort at every fail point", &database), seed);
        let walk = Walk::begin(database, "3s", seed).await;
        let (start, mut interrupted, mut points) = (Instant::now(), 0, Vec::new());
        while !points.is_empty() || report.count("aborts") == 0 || start.elapsed() < duration() {
            if points.is_empty() {
                points.extend(FailPoint::ALL);
                points.shuffle(&mut random);
            }
            let point = points.pop().expect("not empty");
            if AFTER_A_DEATH.contains(&point) {
                interrupted += walk.leave_something().await;
            }
            let passed = if OFTEN.contains(&point) { random.random_range(1..12) } else { 0 };
            let action = format!("{passed}*off->1*return(abort)");
            let action = if passed == 0 { "1*return(abort)" } else { &action };
            let ended = match walk.launch(&set(&[point], action)).await {
                Err(ended) => ended,
                Ok(served) => {
                    if AT_END.contains(&point) {
                        served.signal("TERM").await;
                    }
                    walk.ended(served).await
                }
            };
            let log = || ended.log.join("\n");
            assert_eq!(ended.status.signal(), Some(ABORTED), "{point:?}: {}", log());
            assert_eq!(fired(&ended.log).collect::<Vec<_>>(), [point], "{}", log());
            report.fired("aborts");
            interrupted += count_leased(&walk.database, &nodes(&ended.log)).await;
        }
        assert!(report.count("aborts") >= FailPoint::ALL.len());
        let served = walk.launch("").await.expect("ready");
        let failed = walk.end(interrupted, report).await;
        assert!(failed > 0, "no caller noticed any abort");
        served.kill().await;
    }
}

on_both! {
    async fn an_error_at_any_point_loses_nothing(database: Database) {
        let seed = seed();
        let mut report = Report::begin(named("error at every fail point", &database), seed);
        // A lease is renewed three times in its time. It is never lost here, or takeover would mend
        // what is to be mended by the node itself.
        let walk = Walk::begin(database, "30s", seed).await;
        for point in AT_START {
            let ended = walk.launch(&set(&[*point], "return(error)")).await.err();
            let ended = ended.expect("a node without a lease does not start");
            assert_eq!(ended.status.code(), Some(1), "{}", ended.log.join("\n"));
            assert_eq!(fired(&ended.log).collect::<Vec<_>>(), [*point]);
            report.fired("errors");
        }
        for point in AT_END {
            let served = walk.launch(&set(&[*point], "return(error)")).await.expect("ready");
            walk.world.load.wait_for_more(20).await;
            let ended = walk.terminate(served).await;
            assert_eq!(fired(&ended.log).collect::<Vec<_>>(), [*point]);
            report.fired("errors");
        }
        let interrupted = walk.leave_something().await;
        let points = all_but(&[AT_START, AT_END, WITHOUT_ERROR]);
        let others = all_but(&[AT_START, AT_END, WITHOUT_ERROR, RENEWAL]);
        let set = [
            set(&others, "2*return(error)"),
            set(&RENEWAL[..1], "1*return(error)"),
            set(&RENEWAL[1..], "1*off->1*return(error)"),
        ];
        let served = walk.launch(&set.join(";")).await.expect("ready");
        wait_for(&served.log, &points).await;
        for _ in &points {
            report.fired("errors");
        }
        let failed = walk.end(interrupted, report).await;
        assert!(failed > 0, "no caller noticed any error");
        served.kill().await;
    }
}

on_both! {
    async fn a_delay_at_any_point_loses_nothing(database: Database) {
        let seed = seed();
        let mut report = Report::begin(named("delay at every fail point", &database), seed);
        let walk = Walk::begin(database, "60s", seed).await;
        let interrupted = walk.leave_something().await;
        let points = set(FailPoint::ALL, "3*return(delay)");
        let served = walk.launch(&points).await.expect("ready");
        wait_for(&served.log, &all_but(&[AT_END])).await;
        let ended = walk.terminate(served).await;
        assert_eq!(fired(&ended.log).count(), FailPoint::ALL.len());
        for _ in FailPoint::ALL {
            report.fired("delays");
        }
        // A claim that is under way when the process is asked to stop, and that might commit after
        // the leases were given back.
        for _ in 0..3 {
            let slow = [FailPoint::ClaimBeforeCommit, FailPoint::RemoveBefore];
            let points = set(&slow, "return(delay)");
            let served = walk.launch(&points).await.expect("ready");
            wait_for(&served.log, &[FailPoint::ClaimBeforeCommit]).await;
            walk.world.load.wait_for_more(20).await;
            walk.terminate(served).await;
            report.fired("stops");
        }
        let served = walk.launch("").await.expect("ready");
        walk.end(interrupted, report).await;
        served.kill().await;
    }
}
