//! Acknowledged means durable: kill -9 under load, a database that goes away, a graceful stop.
//! Every test counts what was acknowledged and what arrived, and fails if the fault never fired.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};
use tidings::domain::delivery::State;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain, options};
use crate::support::database::write_key;
use crate::support::process::{Served, operator_key};
use crate::support::proxy::Proxy;
use crate::support::{App, Client, Database, Receiver, Reply};

/// Callers that emit without a pause until they are told to stop.
pub(crate) struct Load {
    acknowledged: Arc<Mutex<HashSet<String>>>,
    failed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(client: &Client, tenant_id: &str, callers: usize) -> Self {
        let acknowledged = Arc::new(Mutex::new(HashSet::new()));
        let (failed, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (client, tenant_id) = (client.clone(), tenant_id.to_owned());
            let (acknowledged, failed, stop) =
                (Arc::clone(&acknowledged), Arc::clone(&failed), Arc::clone(&stop));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(answer) =
                        client.events().emit(emit_request(&tenant_id, "user.created", "{}")).await
                    {
                        acknowledged.lock().await.insert(answer.into_inner().event_id);
                    } else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        Self { acknowledged, failed, stop, callers: tasks }
    }

    pub(crate) async fn wait_for(&self, count: usize) {
        for _ in 0..3_000 {
            if self.acknowledged.lock().await.len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} events were never acknowledged");
    }

    pub(crate) async fn stop(mut self) -> (HashSet<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
        let failed = self.failed.load(Ordering::Relaxed);
        (std::mem::take(&mut *self.acknowledged.lock().await), failed)
    }
}

/// How often each event arrived.
fn arrivals(receiver: &Receiver) -> HashMap<String, usize> {
    let mut arrivals = HashMap::new();
    for request in receiver.requests() {
        *arrivals.entry(request.header("webhook-id").to_owned()).or_insert(0) += 1;
    }
    arrivals
}

/// Waits until every acknowledged event has arrived; returns the duplicates.
pub(crate) async fn all_arrive(receiver: &Receiver, acknowledged: &HashSet<String>) -> usize {
    let mut lost = 0;
    for _ in 0..600 {
        let arrived = arrivals(receiver);
        lost = acknowledged.iter().filter(|id| !arrived.contains_key(*id)).count();
        if lost == 0 {
            return arrived.values().map(|times| times - 1).sum();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{lost} of {} acknowledged events were lost", acknowledged.len());
}

on_both! {
    async fn kill_9_under_load_loses_nothing(database: Database) {
        const KILLS: usize = 3;
        // Attempts take a moment, so that a kill finds some under way.
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(20))).await;
        let key = operator_key(&database).await;
        let mut served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        for _ in 0..2 {
            client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        }
        let (mut acknowledged, mut failed) = (HashSet::new(), 0);
        for _ in 0..KILLS {
            let client = Client::connect(&served.endpoint, &key).await;
            let load = Load::start(&client, &tenant.id, 16);
            load.wait_for(200).await;
            served.kill().await;
            // The callers notice.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (good, bad) = load.stop().await;
            acknowledged.extend(good);
            failed += bad;
            served = Served::start(&database, &[]).await;
        }
        assert!(failed > 0, "the kills never hit a caller");
        all_arrive(&receiver, &acknowledged).await;

        // Both deliveries of every acknowledged event succeed: the fan-out is whole.
        let client = Client::connect(&served.endpoint, &key).await;
        for event_id in acknowledged.iter().take(300) {
            let mut deliveries = Vec::new();
            for _ in 0..600 {
                deliveries = client.deliveries_of(&tenant.id, event_id).await;
                if deliveries.iter().all(|delivery| delivery.state() == DeliveryState::Succeeded) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(deliveries.len(), 2);
            assert!(deliveries.iter().all(|delivery| delivery.state() == DeliveryState::Succeeded), "{deliveries:?}");
        }
        // Each event has two deliveries; beyond those, at most what was under way at each kill.
        let arrived: usize = arrivals(&receiver).values().sum();
        let events = arrivals(&receiver).len();
        let under_way = KILLS * 2 * 16 * 9;
        assert!(arrived <= 2 * events + under_way, "{arrived} requests for {events} events");
        served.kill().await;
    }
}

/// How many deliveries are in `state`, as the database has it.
async fn in_state(database: &Database, state: State) -> i64 {
    use sea_orm::ConnectionTrait;
    let connection =
        sea_orm::Database::connect(&database.config.database_url).await.expect("connected");
    let sql = format!("SELECT count(*) FROM deliveries WHERE state = {}", state.code());
    let row = connection
        .query_one_raw(sea_orm::Statement::from_string(connection.get_database_backend(), sql));
    let count = row.await.expect("read").expect("a row").try_get_by_index(0).expect("a count");
    connection.close().await.expect("closed");
    count
}

on_both! {
    async fn a_kill_in_the_middle_of_a_manual_attempt_leaves_the_schedule_as_it_was(database: Database) {
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_secs(14))).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let in_an_hour = std::time::SystemTime::now() + Duration::from_hours(1);
        let due = prost_types::Timestamp { nanos: 0, ..in_an_hour.into() };
        let request = proto::EmitRequest {
            deliver_time: Some(due),
            ..emit_request(&tenant.id, "user.created", "{}")
        };
        let event_id = client.events().emit(request).await.expect("accepted").into_inner().event_id;
        let waiting = client.wait_for_state(&tenant.id, &event_id, DeliveryState::Scheduled).await;
        assert_eq!(waiting.next_attempt_time, Some(due));
        let retry = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: waiting.id };
        let mut deliveries = client.deliveries();
        let attempt = tokio::spawn(async move { deliveries.retry_delivery(retry).await });
        receiver.wait_for(1).await;
        client.wait_for_state(&tenant.id, &event_id, DeliveryState::Delivering).await;
        served.kill().await;
        assert!(attempt.await.expect("ended").is_err(), "the kill came before the attempt's end");

        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let released = client.wait_for_state(&tenant.id, &event_id, DeliveryState::Scheduled).await;
        assert_eq!(released.next_attempt_time, Some(due));
        assert_eq!(receiver.requests().len(), 1);
        served.kill().await;
    }
}

on_both! {
    async fn sigterm_finishes_what_is_in_flight_and_exits_with_0(database: Database) {
        const COUNT: usize = 120;
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(800))).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        // So few at once that there is time for the stop.
        let webhook =
            proto::WebhookChannel { url: receiver.url(), max_in_flight: 16, ..Default::default() };
        client.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        let emits = (0..COUNT).map(|_| client.emit(&tenant.id, "user.created", "{}"));
        let emitted = futures::future::join_all(emits).await;
        let acknowledged: HashSet<_> = emitted.into_iter().map(|answer| answer.event_id).collect();
        receiver.wait_for(16).await;
        assert_eq!(served.get("/readyz").await, 200);
        served.signal("TERM").await;
        // Not ready at once, but alive, while attempts are under way.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!((served.get("/readyz").await, served.get("/healthz").await), (503, 200));
        let (code, log) = served.wait().await;
        assert_eq!(code, Some(0), "{}", log.join("\n"));
        let before = receiver.requests().len();
        assert!(before < COUNT, "the stop came while deliveries waited");

        // What waited was given back by the process itself: it is due at once, and no lease has to
        // run out.
        assert_eq!(in_state(&database, State::Delivering).await, 0);
        assert!(in_state(&database, State::Scheduled).await > 0);
        // What was in flight is recorded: it is not sent again.
        let served = Served::start(&database, &[]).await;
        let duplicates = all_arrive(&receiver, &acknowledged).await;
        assert_eq!(duplicates, 0);
        served.kill().await;
    }
}

on_both! {
    async fn a_second_signal_ends_at_once(database: Database) {
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_secs(12))).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        client.emit(&tenant.id, "user.created", "{}").await;
        receiver.wait_for(1).await;
        let start = std::time::Instant::now();
        served.signal("TERM").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        served.signal("TERM").await;
        let (code, _) = served.wait().await;
        assert_ne!(code, Some(0));
        assert!(start.elapsed() < Duration::from_secs(8));
    }
}

/// The database goes away and comes back: callers are told to try again, nothing that was
/// acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_unavailable_and_comes_back() {
    let mut database = Database::postgres().await;
    let proxy = Proxy::before(&mut database).await;
    let opened = options(&database);
    let app = App::start_with(database, &opened).await;

    let receiver =
        Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(5))).await;
    let tenant = app.operator.create_tenant("Acme").await;
    app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let load = Load::start(&app.operator, &tenant.id, 8);
    load.wait_for(100).await;
    proxy.cut();
    let mut refused = None;
    for _ in 0..100 {
        refused =
            app.operator.events().emit(emit_request(&tenant.id, "user.created", "{}")).await.err();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("no Emit failed while the database was gone");
    assert_eq!(explain(&refused), (Code::Unavailable, "DATABASE_UNAVAILABLE".into(), vec![]));
    assert!(refused.get_error_details().retry_info().is_some(), "says when to try again");
    let list = proto::ListEventsRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let unread = app.operator.events().list_events(list).await.expect_err("gone");
    assert_eq!(unread.code(), Code::Unavailable);

    proxy.restore();
    let before = load.acknowledged.lock().await.len();
    load.wait_for(before + 100).await;
    let (acknowledged, failed) = load.stop().await;
    assert!(failed > 0, "the cut never hit a caller");
    all_arrive(&receiver, &acknowledged).await;
    app.stop().await;
}

/// Two services on one SQLite file would both write: the second is refused, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_is_served_once() {
    let database = Database::sqlite().await;
    let served = Served::start(&database, &[]).await;
    let second = crate::support::process::tidings(&[
        "serve",
        "--database-url",
        &database.config.database_url,
        "--grpc-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
    ])
    .output()
    .await
    .expect("ran");
    assert!(!second.status.success());
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("in use by another tidings"), "{error}");
    served.kill().await;
}

/// On PostgreSQL the schema is migrated on request alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_refuses_another_schema_and_migrates_once_for_many() {
    let url = Database::empty_postgres().await;
    let folder = tempfile::tempdir().expect("a folder");
    let key = write_key(&folder.path().join("master.key")).display().to_string();
    let serve = [
        "serve",
        "--database-url",
        &url,
        "--master-key-file",
        &key,
        "--grpc-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
    ];
    let refused = crate::support::process::tidings(&serve).output().await.expect("ran");
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("tidings migrate"), "{error}");

    // Replicas that migrate at once do not collide.
    let migrate = ["migrate", "--database-url", &url, "--master-key-file", &key];
    let migrations = (0..4).map(|_| crate::support::process::tidings(&migrate).output());
    for migrated in futures::future::join_all(migrations).await {
        let migrated = migrated.expect("ran");
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
}
