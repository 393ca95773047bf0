//! What lies between the replicas and PostgreSQL delays, throttles, withholds, cuts, and loses
//! answers, for each replica on its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tidings::api::proto::DeliveryState;
use tokio::sync::Semaphore;

use super::replicas::Replicas;
use super::report::Report;
use super::world::World;
use super::{duration, seed};
use crate::support::proxy::{Loss, Proxy, Weather};
use crate::support::{Client, Database, Receiver, Reply};

/// Leases run out in the longer of the faults.
const LEASE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// For so many milliseconds.
    Weather(Weather, u64),
    /// The next transaction with such a statement loses its COMMIT, or the answer to it.
    Loss(&'static str, Loss, &'static str),
}

/// Statements that only such transactions have.
const EVENTS: &str = "INSERT INTO events";
const RESULTS: &str = "INSERT INTO attempts";
const CLAIMS: &str = "UPDATE deliveries SET state = 2";

const FAULTS: &[Fault] = &[
    Fault::Weather(Weather::Cut, 1_500),
    Fault::Weather(Weather::BlackHole, 1_500),
    // Longer than a lease: others take over, and the node comes back.
    Fault::Weather(Weather::BlackHole, 9_000),
    Fault::Weather(Weather::Slow(Duration::from_millis(60)), 2_000),
    Fault::Weather(Weather::Narrow(60_000), 2_000),
    Fault::Loss("lost commits of events", Loss::Commit, EVENTS),
    Fault::Loss("lost commits of results", Loss::Commit, RESULTS),
    Fault::Loss("lost commits of claims", Loss::Commit, CLAIMS),
    Fault::Loss("lost answers to events", Loss::Answer, EVENTS),
    Fault::Loss("lost answers to results", Loss::Answer, RESULTS),
    Fault::Loss("lost answers to claims", Loss::Answer, CLAIMS),
];

async fn two_ways(database: &Database) -> ([Proxy; 2], [String; 2]) {
    let (one, its_url) = Proxy::on_the_way_to(&database.config.database_url).await;
    let (other, other_url) = Proxy::on_the_way_to(&database.config.database_url).await;
    ([one, other], [its_url, other_url])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_to_the_database_is_bad() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut report = Report::begin("bad network to PostgreSQL, 2 replicas", seed);
    let database = Database::postgres().await;
    let (proxies, urls) = two_ways(&database).await;
    let replicas = Replicas::start(database, &urls, LEASE).await;
    let (client, key) = (&replicas.first.operator, &replicas.first.operator_key);
    let world = World::begin(client, key, &replicas.targets, seed).await;

    let start = Instant::now();
    let mut faults = 0;
    while start.elapsed() < duration() || faults == 0 {
        let mut round = FAULTS.to_vec();
        round.shuffle(&mut random);
        for fault in round {
            let proxy = &proxies[random.random_range(0..proxies.len())];
            strike(proxy, fault, &mut report).await;
            world.load.wait_for_more(20).await;
            faults += 1;
        }
    }
    // A delivery is repeated when its node had lost its lease: at most what the two lanes hold, each
    // time.
    let failed = world.end(&replicas.first.database, faults * 2 * 8 * 16, report).await;
    assert!(failed > 0, "no caller noticed any fault");
    replicas.stop().await;
}

/// Has a fault come to pass, and end.
async fn strike(proxy: &Proxy, fault: Fault, report: &mut Report) {
    match fault {
        Fault::Weather(weather, ms) => {
            let before = proxy.met(weather);
            proxy.set(weather);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            proxy.restore();
            assert!(proxy.met(weather) > before, "{weather:?} met no connection");
            report.fired(weather.name());
        }
        Fault::Loss(name, loss, part) => {
            let before = proxy.lost();
            proxy.lose(loss, part);
            proxy.wait_for_lost(before + 1).await;
            report.fired(name);
        }
    }
}

/// A replica that nothing reaches any more is in the middle of transactions, and has locks: on the
/// tenant's feed, and on the keys under which its callers now ask another replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_behind_a_black_hole_holds_up_no_other_for_long() {
    let seed = seed();
    let mut report = Report::begin("one of 2 replicas behind a black hole", seed);
    let database = Database::postgres().await;
    let (proxies, urls) = two_ways(&database).await;
    let replicas = Replicas::start(database, &urls, LEASE).await;
    let (client, key) = (&replicas.first.operator, &replicas.first.operator_key);
    let world = World::begin(client, key, &replicas.targets, seed).await;
    world.load.wait_for_more(100).await;

    proxies[1].set(Weather::BlackHole);
    // Its callers give up after a while, and ask the other one under the same keys.
    world.load.wait_for_failure().await;
    replicas.targets.remove(&replicas.endpoint(1));
    world.load.wait_for_more(300).await;
    proxies[1].restore();
    report.fired("black holes");
    assert!(proxies[1].met(Weather::BlackHole) > 0, "nobody was held up");
    world.end(&replicas.first.database, 2 * 8 * 16, report).await;
    replicas.stop().await;
}

/// A result that was made before the lease ran out, and is written after somebody else has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_after_its_lease_overwrites_nothing() {
    let database = Database::postgres().await;
    let (proxies, urls) = two_ways(&database).await;
    let replicas = Replicas::start(database, &urls, LEASE).await;
    let first = &replicas.first.operator;
    let second = Client::connect(&replicas.endpoint(1), &replicas.first.operator_key).await;
    let gate = Arc::new(Semaphore::new(0));
    let behind = Arc::clone(&gate);
    let receiver =
        Receiver::scripted(move |_, _| Reply::status(200).behind(Arc::clone(&behind))).await;
    let tenant = first.create_tenant("Acme").await;
    first.subscribe(&tenant.id, &["*"], &receiver.url()).await;

    let event_id = second.emit(&tenant.id, "user.created", "{}").await.event_id;
    receiver.wait_for(1).await;
    proxies[1].set(Weather::BlackHole);
    gate.add_permits(1);
    // It has an answer, and cannot write it down. The other one takes over, and waits for its own.
    receiver.wait_for(2).await;
    proxies[1].restore();
    let start = Instant::now();
    while replicas.metric(1, "tidings_results_fenced_total").await == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the late result was not refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let delivery = &first.deliveries_of(&tenant.id, &event_id).await[0];
    assert_eq!(delivery.state(), DeliveryState::Delivering, "it is still the other one's");
    gate.add_permits(1);
    let delivery = first.wait_for_state(&tenant.id, &event_id, DeliveryState::Succeeded).await;
    // Leased, taken away, leased again, recorded.
    assert_eq!((delivery.revision, delivery.attempt_count), (4, 1));
    assert_eq!(first.attempts(&tenant.id, &delivery.id).await.len(), 1);
    assert_eq!(receiver.requests().len(), 2);
    replicas.stop().await;
}
