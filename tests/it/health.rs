//! Endpoints that fail: the breaker, the slow-down, the ramp, and subscriptions that are disabled.
//!
//! The receivers count what arrives. Times are only ever lower bounds: what must not come earlier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};
use tidings::api::proto::{self, DeliveryState, DisableReason, EndpointState, SubscriptionState};
use tidings::domain::health::Policy;

use crate::support::app::{explain, metric, options, quick_retries};
use crate::support::process::{Served, operator_key};
use crate::support::{App, Client, Database, Receiver, Reply};

const DISABLED: &str = "tidings.subscription.disabled";

/// A breaker that is not probed while a test lasts.
fn patient() -> Policy {
    let hour = Duration::from_hours(1);
    Policy { first_cool_down: hour, longest_cool_down: hour, ..Policy::default() }
}

/// A breaker that is probed soon, and equally often.
fn eager(cool_down: Duration) -> Policy {
    Policy { first_cool_down: cool_down, longest_cool_down: cool_down, ..Policy::default() }
}

async fn start(database: Database, health: Policy) -> App {
    let mut config = options(&database).config();
    config.dispatch.health = health;
    App::start_configured(database, config).await
}

/// A webhook that gets `in_flight` requests at once.
fn webhook(receiver: &Receiver, in_flight: i32) -> proto::WebhookChannel {
    proto::WebhookChannel { url: receiver.url(), max_in_flight: in_flight, ..Default::default() }
}

/// A receiver that answers `status` until it is mended.
async fn failing(status: u16) -> (Receiver, Arc<AtomicBool>) {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let receiver = Receiver::scripted(move |_, _| {
        Reply::status(if is_mended.load(Ordering::SeqCst) { 200 } else { status })
    })
    .await;
    (receiver, mended)
}

fn state_of(subscription: &proto::Subscription) -> EndpointState {
    subscription.health.as_ref().expect("a webhook has a health").state()
}

fn attempts_of(deliveries: &[proto::Delivery]) -> usize {
    let count =
        |delivery: &proto::Delivery| usize::try_from(delivery.attempt_count).expect("counted");
    deliveries.iter().map(count).sum()
}

/// A connection of the test's own to the database.
async fn connect(database: &Database) -> DatabaseConnection {
    sea_orm::Database::connect(&database.config.database_url).await.expect("connected")
}

async fn count(connection: &DatabaseConnection, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    let row = connection
        .query_one_raw(sea_orm::Statement::from_string(connection.get_database_backend(), sql));
    row.await.expect("counted").expect("a row").try_get_by_index(0).expect("a number")
}

on_both! {
    async fn ten_failures_open_the_breaker_for_good_also_over_a_restart(database: Database) {
        let app = start(database, patient()).await;
        let (receiver, mended) = failing(500).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // One at a time, so that it is exactly ten.
        let (subscription, _) = app.operator
            .subscribe_with(&tenant.id, &["*"], webhook(&receiver, 1), Some(quick_retries(100))).await;
        for _ in 0..40 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
        }
        let open = app.operator.wait_for_subscription(&subscription, |s| state_of(s) == EndpointState::Open).await;
        let health = open.health.expect("it");
        assert_eq!(health.consecutive_failures, 10);
        assert_eq!(health.last_error_kind(), proto::ErrorKind::HttpStatus);
        assert!(health.failing_since.is_some() && health.next_probe_time.is_some());
        // What was in memory is given back without an attempt.
        let waiting = app.operator.wait_for_all(&subscription, DeliveryState::Scheduled).await;
        assert_eq!((waiting.len(), attempts_of(&waiting)), (40, 10), "waiting burns no attempts");
        let later = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let born = app.operator.deliveries_of(&tenant.id, &later.event_id).await.remove(0);
        assert_eq!((born.state(), born.revision), (DeliveryState::Scheduled, 1), "never leased");
        assert_eq!(app.metric("tidings_breakers_total{state=\"open\"}").await, 1);

        // A restart remembers.
        let database = app.stop().await;
        // However long ago it was.
        let statement = "UPDATE endpoint_health SET update_time = update_time - 3600000000";
        connect(&database).await.execute_unprepared(statement).await.expect("aged");
        let app = start(database, patient()).await;
        assert_eq!(state_of(&app.operator.subscription(&subscription).await), EndpointState::Open);
        let another = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let born = app.operator.deliveries_of(&tenant.id, &another.event_id).await.remove(0);
        assert_eq!((born.state(), born.revision), (DeliveryState::Scheduled, 1));
        assert_eq!(receiver.requests().len(), 10);

        // Somebody tries by hand. That it fails is no news; that it succeeds closes the breaker.
        let retry = |id: &str| proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: id.into() };
        app.operator.deliveries().retry_delivery(retry(&born.id)).await.expect("tried");
        let health = app.operator.subscription(&subscription).await.health.expect("it");
        assert_eq!((health.state(), health.consecutive_failures), (EndpointState::Open, 10));
        mended.store(true, Ordering::SeqCst);
        app.operator.deliveries().retry_delivery(retry(&born.id)).await.expect("tried");
        app.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        let health = app.operator.subscription(&subscription).await.health.expect("it");
        assert_eq!((health.state(), health.consecutive_failures), (EndpointState::Healthy, 0));
        assert_eq!(app.metric("tidings_breakers_total{state=\"closed\"}").await, 1);
        assert_eq!(receiver.requests().len(), 10 + 1 + 42);
        app.stop().await;
    }
}

on_both! {
    async fn an_open_breaker_lets_one_probe_through_per_cool_down(database: Database) {
        const COOL_DOWN: Duration = Duration::from_millis(400);
        const PROBES: usize = 3;
        let app = start(database, eager(COOL_DOWN)).await;
        let receiver = Receiver::scripted(|_, number| Reply::status(if number < 10 + PROBES { 500 } else { 200 })).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator
            .subscribe_with(&tenant.id, &["*"], webhook(&receiver, 1), Some(quick_retries(100))).await;
        for _ in 0..30 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
        }
        let all = app.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(attempts_of(&all), 30 + 10 + PROBES, "only the probes were attempts");
        let times: Vec<Instant> = receiver.requests().iter().map(|request| request.time).collect();
        assert_eq!(times.len(), 30 + 10 + PROBES);
        // The tenth failure opened it; jitter takes a tenth of the pause at most.
        for number in 10..=10 + PROBES {
            let pause = times[number] - times[number - 1];
            assert!(pause >= COOL_DOWN.mul_f64(0.89), "probe {number} came after {pause:?}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn what_succeeds_leaves_no_row(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        for _ in 0..20 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
        }
        app.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(state_of(&app.operator.subscription(&subscription).await), EndpointState::Healthy);
        let database = app.stop().await;
        assert_eq!(count(&connect(&database).await, "endpoint_health").await, 0);
    }
}

on_both! {
    async fn a_busy_endpoint_is_left_alone_as_long_as_it_asks_and_then_gets_more_and_more(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, number| match number {
            0 => Reply::status(429).header("retry-after", "2"),
            _ => Reply::status(200).after(Duration::from_millis(250)),
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator
            .subscribe_with(&tenant.id, &["*"], webhook(&receiver, 8), Some(quick_retries(5))).await;
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let slowed = app.operator.wait_for_subscription(&subscription, |s| state_of(s) == EndpointState::Slowed).await;
        assert!(slowed.health.expect("it").next_probe_time.is_some());
        // All at once, so that it takes less than the pause on a busy machine, too.
        let emits = (0..60).map(|_| app.operator.emit(&tenant.id, "user.created", "{}"));
        futures::future::join_all(emits).await;
        assert_eq!(receiver.requests().len(), 1);
        let all = app.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!((all.len(), attempts_of(&all)), (61, 62), "waiting burns no attempts");
        let requests = receiver.requests();
        let pause = requests[1].time - requests[0].time;
        assert!(pause >= Duration::from_millis(1_950), "the first after {pause:?}");
        let early = |request: &&crate::support::receiver::Captured| request.time - requests[1].time < Duration::from_millis(700);
        assert!(requests[1..].iter().filter(early).all(|request| request.under_way == 1), "the ramp begins with one");
        assert_eq!(requests.iter().map(|request| request.under_way).max(), Some(8), "and ends with all");
        app.stop().await;
    }
}

on_both! {
    async fn an_endpoint_that_is_gone_is_disabled_and_told_of_once(database: Database) {
        let app = App::start(database).await;
        let (receiver, mended) = failing(410).await;
        let told = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let url = format!("{}?token=canary", receiver.url());
        let hook = proto::WebhookChannel { url, ..Default::default() };
        let (subscription, _) = app.operator.subscribe_with(&tenant.id, &["user.*"], hook, None).await;
        app.operator.subscribe(&tenant.id, &[DISABLED], &told.url()).await;
        let first = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let failed = app.operator.wait_for_state(&tenant.id, &first.event_id, DeliveryState::Failed).await;
        assert_eq!(failed.failure_reason(), proto::FailureReason::Permanent);
        let disabled = app.operator.wait_for_subscription(&subscription, |s| s.state() == SubscriptionState::Disabled).await;
        assert_eq!(disabled.disable_reason(), DisableReason::Gone);
        let event = told.wait_for(1).await.remove(0).json();
        assert_eq!(event["type"], DISABLED);
        let data = &event["data"];
        assert_eq!(data["subscription_id"], subscription.id);
        assert_eq!(data["display_name"], "test");
        assert_eq!(data["reason"], "GONE");
        let origin = receiver.url().rsplit_once('/').expect("a path").0.to_owned();
        assert_eq!(data["url"], format!("{origin}/***"), "the path and the query may be secrets");
        assert_eq!(data["last_error_kind"], "HTTP_STATUS");
        assert!(data["failing_since"].is_string());

        let second = app.operator.emit(&tenant.id, "user.created", "{}").await;
        app.operator.wait_for_state(&tenant.id, &second.event_id, DeliveryState::Held).await;
        mended.store(true, Ordering::SeqCst);
        let resume = proto::ResumeSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id.clone() };
        let resumed = app.operator.subscriptions().resume_subscription(resume).await.expect("resumed").into_inner();
        let resumed = resumed.subscription.expect("it");
        assert_eq!((resumed.state(), state_of(&resumed)), (SubscriptionState::Active, EndpointState::Healthy));
        assert_eq!(resumed.health.expect("it").consecutive_failures, 0, "forgotten");
        app.operator.wait_for_state(&tenant.id, &second.event_id, DeliveryState::Succeeded).await;
        assert_eq!(told.requests().len(), 1);
        // No client can say what only the service may.
        let refused = app.operator.events()
            .emit(crate::support::app::emit_request(&tenant.id, DISABLED, "{}")).await.expect_err("refused");
        let (code, _, fields) = explain(&refused);
        assert_eq!((code, fields), (tonic::Code::InvalidArgument, vec!["type".to_owned()]));
        app.stop().await;
    }
}

on_both! {
    async fn nothing_but_failures_for_too_long_disables(database: Database) {
        let health = Policy { disable_after: Some(Duration::from_millis(300)), ..Policy::default() };
        let app = start(database, health).await;
        let receiver = Receiver::answering(500).await;
        let told = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &[DISABLED], &told.url()).await;
        let (subscription, _) = app.operator
            .subscribe_with(&tenant.id, &["user.*"], webhook(&receiver, 1), Some(quick_retries(100))).await;
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let event = told.wait_for(1).await.remove(0).json();
        assert_eq!(event["data"]["reason"], "FAILING");
        let disabled = app.operator.subscription(&subscription).await;
        assert_eq!(disabled.disable_reason(), DisableReason::Failing);
        app.operator.wait_for_all(&subscription, DeliveryState::Held).await;
        assert!(receiver.requests().len() > 1, "once is no time");
        app.stop().await;
    }
}

/// Refuses every idempotency key, and with it the service's own events: the only ones in these tests
/// that have one.
async fn refuse_keys(connection: &DatabaseConnection) {
    let statements: &[&str] = match connection.get_database_backend() {
        DbBackend::Postgres => &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION refuse()",
        ],
        _ => &[
            "CREATE TRIGGER refuse BEFORE INSERT ON idempotency_keys BEGIN SELECT RAISE(ABORT, 'refused'); END",
        ],
    };
    for statement in statements {
        connection.execute_unprepared(statement).await.expect("a trigger");
    }
}

async fn permit_keys(connection: &DatabaseConnection) {
    let statement = match connection.get_database_backend() {
        DbBackend::Postgres => "DROP TRIGGER refuse ON idempotency_keys",
        _ => "DROP TRIGGER refuse",
    };
    connection.execute_unprepared(statement).await.expect("no trigger");
}

async fn wait_until_empty(connection: &DatabaseConnection, table: &str) {
    for _ in 0..3_000 {
        if count(connection, table).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{table} never was empty");
}

on_both! {
    /// Killed between the change and the event, and between the event and the note that it is out.
    async fn a_tenant_is_told_once_even_if_the_service_is_killed(database: Database) {
        let (gone, told) = (Receiver::answering(410).await, Receiver::answering(200).await);
        let key = operator_key(&database).await;
        let connection = connect(&database).await;
        refuse_keys(&connection).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let (subscription, _) = client.subscribe(&tenant.id, &["user.*"], &gone.url()).await;
        let (telling, _) = client.subscribe(&tenant.id, &[DISABLED], &told.url()).await;
        client.emit(&tenant.id, "user.created", "{}").await;
        client.wait_for_subscription(&subscription, |s| s.state() == SubscriptionState::Disabled).await;
        // It has tried, and could not.
        let http = served.http.parse().expect("an address");
        for _ in 0..1_000 {
            if metric(http, "tidings_announcements_waiting").await == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        served.kill().await;
        assert_eq!(count(&connection, "announcements").await, 1, "it was killed in between");
        assert!(told.requests().is_empty());

        permit_keys(&connection).await;
        connection.execute_unprepared("CREATE TABLE emitted AS SELECT * FROM announcements").await.expect("kept");
        let served = Served::start(&database, &[]).await;
        let event = told.wait_for(1).await.remove(0).json();
        assert_eq!(event["data"]["subscription_id"], subscription.id);
        wait_until_empty(&connection, "announcements").await;
        // Recorded, or the next start would deliver the same event again, as it may.
        let client = Client::connect(&served.endpoint, &key).await;
        client.wait_for_all(&telling, DeliveryState::Succeeded).await;
        served.kill().await;

        // As if it had been killed before it noted that the event was out.
        connection.execute_unprepared("INSERT INTO announcements SELECT * FROM emitted").await.expect("again");
        let served = Served::start(&database, &[]).await;
        wait_until_empty(&connection, "announcements").await;
        let client = Client::connect(&served.endpoint, &key).await;
        let list = proto::ListEventsRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let events = client.events().list_events(list).await.expect("listed").into_inner().events;
        assert_eq!(events.iter().filter(|event| event.r#type == DISABLED).count(), 1);
        assert_eq!(told.requests().len(), 1);
        served.kill().await;
    }
}
