//! The server of the database stops and comes back, in order and as in a crash, under load.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::replicas::Replicas;
use super::report::Report;
use super::world::World;
use super::{duration, seed};
use crate::support::Database;
use crate::support::cluster::{Cluster, Stop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_restarted() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut report = Report::begin("PostgreSQL restarted, 2 replicas", seed);
    let cluster = tokio::task::block_in_place(Cluster::start);
    let database = Database::on(&cluster.url()).await;
    let url = database.config.database_url.clone();
    // No lease runs out meanwhile, so nothing at all may be repeated: a result that could not be
    // recorded is kept until it can.
    let replicas = Replicas::start(database, &[url.clone(), url], Duration::from_mins(10)).await;
    let (client, key) = (&replicas.first.operator, &replicas.first.operator_key);
    let world = World::begin(client, key, &replicas.targets, seed).await;

    let start = Instant::now();
    while start.elapsed() < duration() || report.count("immediate") < 2 {
        for how in [Stop::Fast, Stop::Immediate] {
            world.load.wait_for_more(50).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
            tokio::task::block_in_place(|| cluster.stop(how));
            report.fired(how.name());
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
            tokio::task::block_in_place(|| cluster.restart());
        }
    }
    let failed = world.end(&replicas.first.database, 0, report).await;
    assert!(failed > 0, "no caller noticed any restart");
    replicas.stop().await;
}
