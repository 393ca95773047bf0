//! Three replicas of the real binary under load: everything is delivered once while nothing fails, a
//! watcher on one sees the deliveries of all, and replacing them one by one costs nobody anything.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tidings::api::proto::{WatchDeliveriesRequest, WebhookChannel};
use tonic::Code;

use crate::support::fleet::{Fleet, all_arrive};
use crate::support::{Database, Receiver, Reply};
use crate::watch;

const REPLICAS: usize = 3;
const SUCCEEDED: &str = "tidings_deliveries_ended_total{state=\"SUCCEEDED\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_deliver_everything_once_and_each_tells_of_all() {
    const CALLERS: usize = 48;
    const EACH: usize = 50;
    const COUNT: usize = CALLERS * EACH;
    let fleet = Fleet::start(Database::postgres().await, REPLICAS).await;
    let receiver = Receiver::answering(200).await;
    let tenant = fleet.client(0).create_tenant("Acme").await;
    fleet.client(0).subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let mut stream = watch::watch(&fleet.client(0), request).await;
    watch::next(&mut stream).await;

    let told = fleet.emit(&tenant.id, CALLERS, Some(EACH)).end().await;
    assert_eq!(told.errors, HashMap::new());
    assert_eq!(told.acknowledged.len(), COUNT);
    assert_eq!(all_arrive(&receiver, &told.acknowledged).await, 0, "duplicates");

    let (mut revisions, mut succeeded) = (HashMap::new(), 0);
    watch::read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, COUNT).await;
    assert_eq!(revisions.len(), COUNT);
    let mut sum = 0;
    for number in 0..REPLICAS {
        let delivered = fleet.metric(number, SUCCEEDED).await;
        assert!(delivered > 0, "replica {number} delivered nothing");
        assert_eq!(fleet.metric(number, "tidings_results_fenced_total").await, 0);
        sum += delivered;
    }
    assert_eq!(sum, i64::try_from(COUNT).expect("few"), "each delivery ended on one replica");
    assert_eq!(receiver.requests().len(), COUNT, "and nothing came later");
    fleet.kill().await;
}

/// Each replica in turn is asked to stop, and another one is started in its place, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_repeats_nothing() {
    let mut fleet = Fleet::start(Database::postgres().await, REPLICAS).await;
    // Attempts take longer than calls, so that each stop finds some under way when all calls have
    // ended.
    let receiver =
        Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(600))).await;
    let tenant = fleet.client(0).create_tenant("Acme").await;
    let webhook = WebhookChannel { url: receiver.url(), max_in_flight: 300, ..Default::default() };
    fleet.client(0).subscribe_with(&tenant.id, &["*"], webhook, None).await;
    let callers = fleet.emit(&tenant.id, 12, None);
    callers.wait_for_more(100).await;
    for _ in 0..REPLICAS {
        fleet.add(&[], &[]).await;
        // The oldest one. Its callers are told only by its answers: nobody takes it out before.
        fleet.replica(0).signal("TERM").await;
        tokio::time::timeout(Duration::from_secs(30), async {
            while fleet.replica(0).get("/readyz").await == 200 {}
        })
        .await
        .expect("not ready while it stops");
        let (code, log) = fleet.remove(0).wait().await;
        assert_eq!(code, Some(0), "{}", log.join("\n"));
        callers.wait_for_more(100).await;
    }
    let told = callers.stop().await;
    let retryable = HashSet::from([Code::Unavailable, Code::ResourceExhausted]);
    let others: Vec<_> = told.errors.iter().filter(|(code, _)| !retryable.contains(code)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(all_arrive(&receiver, &told.acknowledged).await, 0, "duplicates");
    let events = told.acknowledged.len();
    println!("rolling restart: {events} events, {:?} on the way", told.errors);
    fleet.kill().await;
}
