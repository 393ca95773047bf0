//! Memory is bounded by configuration: in bytes, not in counts alone, and whatever the number of
//! subscriptions.

use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database as SeaDatabase, DatabaseConnection};
use tidings::api::proto::{self, DeliveryState};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain, options};
use crate::support::{App, Database, Receiver, Reply};

const KIB: usize = 1024;

/// Keeps everybody else from storing events, until it is let go.
pub(crate) struct Blocked(DatabaseConnection);

impl Blocked {
    pub(crate) async fn begin(database: &Database) -> Self {
        let mut options = ConnectOptions::new(&database.config.database_url);
        options.max_connections(1);
        let connection = SeaDatabase::connect(options).await.expect("connected");
        let statements = if database.config.database_url.starts_with("postgres") {
            "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE"
        } else {
            "BEGIN IMMEDIATE"
        };
        connection.execute_unprepared(statements).await.expect("locked");
        Self(connection)
    }

    pub(crate) async fn end(self) {
        self.0.execute_unprepared("ROLLBACK").await.expect("unlocked");
        self.0.close().await.expect("closed");
    }
}

/// A payload of about `bytes` bytes.
fn payload(bytes: usize) -> String {
    format!("{{\"text\":\"{}\"}}", "x".repeat(bytes))
}

on_both! {
    async fn events_that_wait_for_their_commit_are_bounded_in_bytes(database: Database) {
        const FIT: usize = 10;
        const CALLS: usize = 25;
        let mut config = options(&database).config();
        config.intake.queue_bytes = 1_024 * KIB;
        let app = App::start_configured(database, config).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // Settings and keys are cached from here on.
        app.operator.emit(&tenant.id, "user.created", "{}").await;

        let blocked = Blocked::begin(&app.database).await;
        let mut calls: JoinSet<Result<(), Status>> = JoinSet::new();
        for _ in 0..CALLS {
            let request = emit_request(&tenant.id, "user.created", &payload(100 * KIB));
            let mut events = app.operator.events();
            calls.spawn(async move { events.emit(request).await.map(drop) });
        }
        // Those that do not fit are refused at once, while the others wait.
        for _ in 0..CALLS - FIT {
            let refused = tokio::time::timeout(Duration::from_secs(20), calls.join_next()).await;
            let refused = refused.expect("at once").expect("a call").expect("ended").expect_err("no room");
            assert_eq!(explain(&refused), (Code::ResourceExhausted, "OVERLOADED".into(), vec![]));
            assert!(refused.get_error_details().retry_info().is_some(), "says when to try again");
        }
        let early = tokio::time::timeout(Duration::from_millis(200), calls.join_next()).await;
        assert!(early.is_err(), "what fits waits for its commit");
        blocked.end().await;
        while let Some(call) = calls.join_next().await {
            call.expect("ended").expect("accepted");
        }
        // Their bytes are given back.
        for _ in 0..3 {
            let requests = vec![emit_request("", "user.created", &payload(100 * KIB)); FIT];
            let batch = proto::EmitBatchRequest { tenant_id: tenant.id.clone(), requests };
            let results = app.operator.events().emit_batch(batch).await.expect("answered");
            for result in results.into_inner().results {
                let result = result.result.expect("a result");
                assert!(matches!(result, proto::emit_result::Result::Response(_)), "{result:?}");
            }
        }
        app.stop().await;
    }
}

/// Each of many subscriptions gets one event of `event_bytes`, and nobody answers for a while.
/// Exactly `fit` of the deliveries, a tenant's three quarters of all, may be in memory at once; in
/// the end all arrive.
async fn hangs_in_bounds(app: &App, subscriptions: usize, event_bytes: usize, fit: usize) {
    let receiver =
        Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_secs(3))).await;
    let tenant = app.operator.create_tenant("Acme").await;
    for _ in 0..subscriptions {
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    }
    let event = app.operator.emit(&tenant.id, "user.created", &payload(event_bytes)).await;
    receiver.wait_for(fit).await;
    let deliveries = app.operator.deliveries_of(&tenant.id, &event.event_id).await;
    let in_state = |state| deliveries.iter().filter(|delivery| delivery.state() == state).count();
    assert_eq!(in_state(DeliveryState::Delivering), fit);
    assert_eq!(in_state(DeliveryState::Scheduled), subscriptions - fit, "the others wait");
    assert_eq!(receiver.requests().len(), fit);
    receiver.wait_for(subscriptions).await;
    app.wait_for_metric("tidings_queue_bytes", 0).await;
    app.wait_for_metric(
        "tidings_deliveries_ended_total{state=\"SUCCEEDED\"}",
        i64::try_from(subscriptions).expect("small"),
    )
    .await;
    assert_eq!(receiver.requests().len(), subscriptions);
}

on_both! {
    async fn deliveries_in_memory_are_bounded_in_bytes(database: Database) {
        let mut config = options(&database).config();
        config.dispatch.queue_bytes = 1_024 * KIB;
        let app = App::start_configured(database, config).await;
        hangs_in_bounds(&app, 24, 100 * KIB, 7).await;
        app.stop().await;
    }
}

on_both! {
    async fn deliveries_in_memory_are_bounded_in_number(database: Database) {
        let mut config = options(&database).config();
        config.dispatch.queue_size = 8;
        let app = App::start_configured(database, config).await;
        hangs_in_bounds(&app, 20, 10, 6).await;
        app.stop().await;
    }
}

on_both! {
    /// Large events to an endpoint that hangs take their share, and small ones pass by.
    async fn large_events_to_a_slow_endpoint_leave_room_for_others(database: Database) {
        let mut config = options(&database).config();
        config.dispatch.queue_bytes = 1_024 * KIB;
        let app = App::start_configured(database, config).await;
        let slow = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_secs(5))).await;
        let quick = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["large.event"], &slow.url()).await;
        app.operator.subscribe(&tenant.id, &["small.event"], &quick.url()).await;
        for _ in 0..12 {
            app.operator.emit(&tenant.id, "large.event", &payload(100 * KIB)).await;
        }
        slow.wait_for(2).await;
        for _ in 0..40 {
            app.operator.emit(&tenant.id, "small.event", &payload(10)).await;
        }
        quick.wait_for(40).await;
        assert_eq!(slow.requests().len(), 2, "the first ones alone; more would pass the lane's share");
        app.stop().await;
    }
}
