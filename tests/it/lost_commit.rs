//! A COMMIT whose confirmation is lost: the service does not know what is stored, and still nothing
//! is lost and nothing counts twice. PostgreSQL alone: between the service and its SQLite file
//! there is nothing that could lose an answer.

use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain, options};
use crate::support::proxy::{Loss, Proxy};
use crate::support::{App, Database, Receiver};

/// A service behind a proxy. It gives back leases that it does not know after `forgotten_after`.
async fn behind_a_proxy(forgotten_after: Duration) -> (App, Proxy) {
    let mut database = Database::postgres().await;
    let proxy = Proxy::before(&mut database).await;
    let mut config = options(&database).config();
    config.dispatch.forgotten_after = forgotten_after;
    (App::start_configured(database, config).await, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emit_without_a_confirmation_is_unavailable_and_still_delivered() {
    let (app, proxy) = behind_a_proxy(Duration::from_secs(4)).await;
    let receiver = Receiver::answering(200).await;
    let tenant = app.operator.create_tenant("Acme").await;
    app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let request = proto::EmitRequest {
        idempotency_key: "invoice-7".into(),
        ..emit_request(&tenant.id, "billing.paid", "{}")
    };

    proxy.lose(Loss::Answer, "INSERT INTO events");
    let refused = app.operator.events().emit(request.clone()).await.expect_err("not confirmed");
    proxy.wait_for_lost(1).await;
    assert_eq!(explain(&refused), (Code::Unavailable, "DATABASE_UNAVAILABLE".into(), vec![]));
    assert!(refused.get_error_details().retry_info().is_some(), "says when to try again");

    // It is stored all the same: its delivery is leased to this node, which does not know of it.
    let list = proto::ListEventsRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let stored = app.operator.events().list_events(list).await.expect("listed").into_inner().events;
    assert_eq!(stored.len(), 1);
    let deliveries = app.operator.deliveries_of(&tenant.id, &stored[0].id).await;
    assert_eq!(deliveries[0].state(), DeliveryState::Delivering);
    assert!(receiver.requests().is_empty());

    let again = app.operator.events().emit(request).await.expect("accepted").into_inner();
    assert_eq!((again.duplicate, again.event_id.as_str()), (true, stored[0].id.as_str()));
    assert_eq!(again.delivery_count, 1);

    let delivery =
        app.operator.wait_for_state(&tenant.id, &stored[0].id, DeliveryState::Succeeded).await;
    assert_eq!(delivery.attempt_count, 1);
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1, "the retried Emit made no second delivery");
    assert_eq!(requests[0].header("webhook-id"), stored[0].id);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_without_a_confirmation_is_recorded_once() {
    let (app, proxy) = behind_a_proxy(Duration::from_mins(1)).await;
    let receiver = Receiver::answering(200).await;
    let tenant = app.operator.create_tenant("Acme").await;
    app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;

    proxy.lose(Loss::Answer, "INSERT INTO attempts");
    let first = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
    proxy.wait_for_lost(1).await;
    // Results are written in their order: once the second one is, the first has been written again.
    let second = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
    app.operator.wait_for_state(&tenant.id, &second.event_id, DeliveryState::Succeeded).await;

    let delivery =
        app.operator.wait_for_state(&tenant.id, &first.event_id, DeliveryState::Succeeded).await;
    assert_eq!(delivery.attempt_count, 1);
    assert_eq!(delivery.revision, 2, "born leased, then recorded: one change");
    assert_eq!(app.operator.attempts(&tenant.id, &delivery.id).await.len(), 1);
    assert_eq!(receiver.requests().len(), 2, "one request for each");
    let ended = app.metric("tidings_deliveries_ended_total{state=\"SUCCEEDED\"}").await;
    assert_eq!(ended, 2, "each success is counted once");
    let fenced = app.metric("tidings_results_fenced_total").await;
    assert_eq!(fenced, 0, "no result counts as lost to another node");
    app.stop().await;
}
