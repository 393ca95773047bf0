//! Replicas that die, and one that is stopped and goes on: others take its deliveries over in time,
//! and whoever comes late changes nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
use tidings::api::proto::{DeliveryState, WebhookChannel};
use tidings::domain::delivery::State;
use tokio::sync::Semaphore;

use crate::support::app::{emit_request, quick_retries};
use crate::support::fleet::{Fleet, all_arrive};
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database, Receiver, Reply};

/// The lease of the replicas that tests start.
const LEASE: Duration = Duration::from_secs(3);
/// What a busy machine may take longer.
const BUSY: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_is_taken_over_when_its_lease_has_run_out() {
    const COUNT: usize = 40;
    let mut fleet = Fleet::start(Database::postgres().await, 2).await;
    let is_open = Arc::new(AtomicBool::new(false));
    let receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::after_answers(COUNT, move |_, _| {
            let reply = Reply::status(200);
            if is_open.load(Ordering::SeqCst) {
                reply
            } else {
                reply.after(Duration::from_hours(1))
            }
        })
        .await
    };
    let tenant = fleet.client(0).create_tenant("Acme").await;
    let webhook = WebhookChannel { url: receiver.url(), max_in_flight: 100, ..Default::default() };
    let (subscription, _) =
        fleet.client(0).subscribe_with(&tenant.id, &["*"], webhook, Some(quick_retries(3))).await;
    let mut acknowledged = fleet.client(0).earn(&tenant.id, COUNT).await;
    for _ in 0..COUNT {
        acknowledged.insert(fleet.client(0).emit(&tenant.id, "user.created", "{}").await.event_id);
    }
    receiver.wait_for(2 * COUNT).await;

    is_open.store(true, Ordering::SeqCst);
    let start = Instant::now();
    fleet.remove(0).kill().await;
    let done = fleet.client(0).wait_for_all(&subscription, DeliveryState::Succeeded).await;
    let taken = start.elapsed();
    println!("{COUNT} deliveries were taken over and sent again {taken:?} after the kill");
    assert_eq!(done.len(), 2 * COUNT);
    // A broken lease shows in no attempt: nobody knows how it ended.
    assert!(done.iter().all(|delivery| delivery.attempt_count == 1), "{done:?}");
    assert!(taken < LEASE + Duration::from_secs(2) + BUSY, "{taken:?}");
    assert_eq!(all_arrive(&receiver, &acknowledged).await, COUNT, "each was sent once more");
    fleet.kill().await;
}

/// The one that was stopped has an answer in its hands that says something else than what the one
/// that took over hears later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_stopped_past_its_lease_overwrites_nothing() {
    let mut fleet = Fleet::start(Database::postgres().await, 2).await;
    let (first, second) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let receiver = {
        let (first, second) = (Arc::clone(&first), Arc::clone(&second));
        Receiver::scripted(move |_, number| match number {
            0 => Reply::status(500).behind(Arc::clone(&first)),
            1 => Reply::status(200).behind(Arc::clone(&second)),
            _ => Reply::status(200),
        })
        .await
    };
    let tenant = fleet.client(0).create_tenant("Acme").await;
    fleet.client(0).subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let event_id = fleet.client(0).emit(&tenant.id, "user.created", "{}").await.event_id;
    receiver.wait_for(1).await;
    fleet.replica(0).signal("STOP").await;
    // The other one waits for its answer, too: the delivery is its own.
    receiver.wait_for(2).await;
    first.add_permits(1);
    fleet.replica(0).signal("CONT").await;
    fleet.wait_for_metric(0, "tidings_results_fenced_total", |count| count == 1).await;
    let other = fleet.client(1);
    let delivering = other.wait_for_state(&tenant.id, &event_id, DeliveryState::Delivering).await;
    assert_eq!(delivering.attempt_count, 0, "the late result is nowhere");
    second.add_permits(1);
    let delivery = other.wait_for_state(&tenant.id, &event_id, DeliveryState::Succeeded).await;
    assert_eq!(delivery.attempt_count, 1);
    assert_eq!(other.attempts(&tenant.id, &delivery.id).await.len(), 1);

    // It goes on, under a new name.
    fleet.wait_until_known().await;
    let late = fleet.client(0).emit(&tenant.id, "user.created", "{}").await.event_id;
    fleet.client(0).wait_for_state(&tenant.id, &late, DeliveryState::Succeeded).await;
    assert_eq!(all_arrive(&receiver, &HashSet::from([event_id, late])).await, 1);
    let stopped = fleet.remove(0);
    stopped.signal("TERM").await;
    let (code, log) = stopped.wait().await;
    assert_eq!(code, Some(0));
    let renamed = |line: &String| line.contains("going on under a new name");
    assert!(log.iter().any(renamed), "{}", log.join("\n"));
    fleet.kill().await;
}

/// How many of the database's sessions stand in a transaction without doing anything.
async fn stalled(connection: &sea_orm::DatabaseConnection) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'tidings' AND state = 'idle in transaction'";
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
    row.expect("read").expect("a row").try_get_by_index(0).expect("a count")
}

/// A process that is stopped keeps its sessions, and with them the locks of a transaction that it was
/// in: the tenant's feed, here. The others must not wait for it to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_stopped_in_a_transaction_stops_nobody_else() {
    let mut fleet = Fleet::start(Database::postgres().await, 1).await;
    let receiver = Receiver::answering(200).await;
    let tenant = fleet.client(0).create_tenant("Acme").await;
    fleet.client(0).subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let connection =
        sea_orm::Database::connect(&fleet.database.config.database_url).await.expect("connected");
    let callers = fleet.emit(&tenant.id, 8, None);
    callers.wait_for_more(50).await;
    let mut is_caught = false;
    for _ in 0..2_000 {
        fleet.replica(0).signal("STOP").await;
        // What the server still had to do for it is done now, or soon.
        tokio::time::sleep(Duration::from_millis(20)).await;
        is_caught = stalled(&connection).await > 0;
        if is_caught {
            break;
        }
        fleet.replica(0).signal("CONT").await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(is_caught, "the replica never was stopped in a transaction");

    // Started only now: it finds nothing of its own in a transaction.
    fleet.add(&[], &[]).await;
    let other = fleet.client(1);
    let emitted = other.emit(&tenant.id, "user.created", "{}");
    let emitted = tokio::time::timeout(Duration::from_secs(30), emitted).await;
    let mut expected =
        HashSet::from([emitted.expect("nobody waits for a stopped process").event_id]);
    // With everything that the stopped one had acknowledged, before it goes on.
    fleet.replica(0).signal("CONT").await;
    callers.wait_for_more(50).await;
    let told = callers.stop().await;
    expected.extend(told.acknowledged);
    let duplicates = all_arrive(&receiver, &expected).await;
    println!("{} events, {duplicates} duplicates, {:?}", expected.len(), told.errors);
    // What was under way when it was stopped, and nothing beyond it.
    assert!(duplicates <= 8 + 16, "{duplicates} duplicates");
    let request = emit_request(&tenant.id, "user.created", "{}");
    fleet.client(0).events().emit(request).await.expect("the stopped one goes on");
    connection.close().await.expect("closed");
    fleet.kill().await;
}

/// What one error leaves would have to run out: after a deadlock with somebody else, for example.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_given_back_although_the_first_try_fails() {
    let database = Database::postgres().await;
    let receiver = Receiver::scripted(|_, _| Reply::status(200).after(BUSY)).await;
    let key = operator_key(&database).await;
    let served = Served::start(&database, &["--shutdown-grace", "2s"]).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("Acme").await;
    client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    client.emit(&tenant.id, "user.created", "{}").await;
    receiver.wait_for(1).await;

    let url = &database.config.database_url;
    let other = sea_orm::Database::connect(url).await.expect("connected");
    let holding = other.begin().await.expect("begun");
    holding.execute_unprepared("SELECT id FROM deliveries FOR UPDATE").await.expect("locked");
    served.signal("TERM").await;
    database.wait_for_lock().await;
    assert_eq!(database.end_waiting().await, 1, "the session that gives the lease back");
    holding.rollback().await.expect("released");
    other.close().await.expect("closed");

    let (code, log) = served.wait().await;
    assert_eq!(code, Some(0), "{}", log.join("\n"));
    let leased =
        format!("SELECT count(*) FROM deliveries WHERE state <> {}", State::Scheduled.code());
    assert_eq!(database.count(&leased).await, 0, "{}", log.join("\n"));
}
