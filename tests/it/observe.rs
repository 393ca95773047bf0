//! Seeing what happens: one trace from Emit to the receiver, metrics, statistics, logs without
//! secrets.

use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};
use tonic::Request;

use crate::support::app::{emit_request, value};
use crate::support::process::{Served, operator_key};
use crate::support::{App, Client, Database, Receiver, Reply};

on_both! {
    async fn one_trace_leads_from_emit_to_the_receiver(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, n| Reply::status(if n == 0 { 500 } else { 200 })).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let trace_id = "0af7651916cd43dd8448eb211c80319c";
        let mut request = Request::new(emit_request(&tenant.id, "user.created", "{}"));
        let parent = format!("00-{trace_id}-b7ad6b7169203331-01");
        request.metadata_mut().insert("traceparent", parent.parse().expect("ASCII"));
        let emitted = app.operator.events().emit(request).await.expect("accepted").into_inner();
        let delivery =
            app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;

        let get = proto::GetEventRequest { tenant_id: tenant.id.clone(), event_id: emitted.event_id };
        let event = app.operator.events().get_event(get).await.expect("read").into_inner().event;
        assert_eq!(event.expect("an event").trace_id, trace_id);
        assert_eq!(delivery.trace_id, trace_id);
        let attempts = app.operator.attempts(&tenant.id, &delivery.id).await;
        let requests = receiver.requests();
        assert_eq!((attempts.len(), requests.len()), (2, 2));
        for (attempt, request) in attempts.iter().zip(&requests) {
            // The receiver's parent is the attempt's own span.
            let expected = format!("00-{trace_id}-{}-01", attempt.span_id);
            assert_eq!(request.header("traceparent"), expected);
            assert_eq!(attempt.trace_id, trace_id);
        }
        assert_ne!(attempts[0].span_id, attempts[1].span_id);

        // Without a parent, and with a malformed one, a trace begins here.
        let mut request = Request::new(emit_request(&tenant.id, "user.created", "{}"));
        request.metadata_mut().insert("traceparent", "nonsense".parse().expect("ASCII"));
        let emitted = app.operator.events().emit(request).await.expect("accepted").into_inner();
        let delivery =
            app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;
        assert_eq!(delivery.trace_id.len(), 32);
        assert_ne!(delivery.trace_id, trace_id);
        app.stop().await;
    }
}

on_both! {
    async fn metrics_exist_at_zero_and_count(database: Database) {
        let app = App::start(database).await;
        let page = app.metrics().await;
        let counted = [
            "tidings_events_accepted_total",
            "tidings_events_duplicate_total",
            "tidings_events_refused_total{reason=\"invalid\"}",
            "tidings_deliveries_created_total",
            "tidings_deliveries_ended_total{state=\"SUCCEEDED\"}",
            "tidings_deliveries_ended_total{state=\"FAILED\"}",
            "tidings_deliveries_retried_total",
            "tidings_webhook_attempts_total{result=\"delivered\"}",
            "tidings_webhook_attempts_total{result=\"http_status\"}",
            "tidings_webhook_attempts_total{result=\"address_refused\"}",
            "tidings_emit_duration_seconds_count",
            "tidings_webhook_attempt_duration_seconds_count",
            "tidings_delivery_lag_seconds_count",
            "tidings_delivery_duration_seconds_count",
            "tidings_queue_held",
            "tidings_queue_scheduled",
            "tidings_attempts_in_flight",
            "tidings_attempts_waiting",
            "tidings_watchers",
        ];
        for series in counted {
            assert!(value(&page, series).abs() < f64::EPSILON, "{series} is not zero");
        }
        let receiver = Receiver::scripted(|_, n| Reply::status(if n == 0 { 500 } else { 200 })).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;
        app.operator.events().emit(emit_request(&tenant.id, "bad type", "{}")).await.expect_err("refused");
        let page = app.metrics().await;
        for (series, expected) in [
            ("tidings_events_accepted_total", 1.0),
            ("tidings_deliveries_created_total", 1.0),
            ("tidings_deliveries_retried_total", 1.0),
            ("tidings_deliveries_ended_total{state=\"SUCCEEDED\"}", 1.0),
            ("tidings_webhook_attempts_total{result=\"http_status\"}", 1.0),
            ("tidings_webhook_attempts_total{result=\"delivered\"}", 1.0),
            ("tidings_delivery_lag_seconds_count", 1.0),
            ("tidings_delivery_duration_seconds_count", 1.0),
            ("tidings_events_refused_total{reason=\"invalid\"}", 1.0),
        ] {
            assert!((value(&page, series) - expected).abs() < f64::EPSILON, "{series} is not {expected}:\n{page}");
        }
        app.stop().await;
    }
}

on_both! {
    /// However a delivery ends: canceled through the API, with its subscription, or by its time.
    async fn deliveries_that_end_without_an_attempt_are_counted(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) =
            app.operator.subscribe(&tenant.id, &["*"], "https://hooks.company.com/").await;
        let after = |seconds: f64| {
            let then = std::time::SystemTime::now() + Duration::from_secs_f64(seconds);
            Some(prost_types::Timestamp::from(then))
        };
        let emit = async || {
            let request = proto::EmitRequest {
                deliver_time: after(600.0),
                ..emit_request(&tenant.id, "user.created", "{}")
            };
            app.operator.events().emit(request).await.expect("accepted").into_inner().event_id
        };
        let canceled = emit().await;
        // Both wait for their deliver_time when the subscription goes.
        for _ in 0..2 {
            emit().await;
        }
        let delivery_id = app.operator.deliveries_of(&tenant.id, &canceled).await.remove(0).id;
        let cancel = proto::CancelDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id };
        app.operator.deliveries().cancel_delivery(cancel.clone()).await.expect("canceled");
        // A delivery that has ended is not counted again.
        let _ = app.operator.deliveries().cancel_delivery(cancel).await;
        let series = |state: &str| format!("tidings_deliveries_ended_total{{state=\"{state}\"}}");
        app.wait_for_metric(&series("CANCELED"), 1).await;

        let delete = proto::DeleteSubscriptionRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id,
            ..Default::default()
        };
        app.operator.subscriptions().delete_subscription(delete).await.expect("deleted");
        app.wait_for_metric(&series("CANCELED"), 3).await;

        // Held, so that its end does not wait for its deliver_time.
        let (paused, _) =
            app.operator.subscribe(&tenant.id, &["*"], "https://hooks.company.com/").await;
        let pause = proto::PauseSubscriptionRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: paused.id,
        };
        app.operator.subscriptions().pause_subscription(pause).await.expect("paused");
        let request = proto::EmitRequest {
            expire_time: after(2.0),
            ..emit_request(&tenant.id, "user.created", "{}")
        };
        app.operator.events().emit(request).await.expect("accepted");
        app.wait_for_metric(&series("EXPIRED"), 1).await;
        assert_eq!(app.metric(&series("CANCELED")).await, 3);
        app.stop().await;
    }
}

on_both! {
    async fn a_subscription_tells_how_it_does(database: Database) {
        let app = App::start(database).await;
        // Each event's first attempt fails; the second event's attempts all do.
        let receiver = Receiver::scripted(|request, _| {
            let is_lost = request.header("tidings-event-type") == "trial.ending";
            Reply::status(if is_lost || request.header("tidings-attempt") == "1" { 503 } else { 200 })
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let good = app.operator.emit(&tenant.id, "user.created", "{}").await;
        app.operator.wait_for_state(&tenant.id, &good.event_id, DeliveryState::Succeeded).await;
        let bad = app.operator.emit(&tenant.id, "trial.ending", "{}").await;
        app.operator.wait_for_state(&tenant.id, &bad.event_id, DeliveryState::Failed).await;
        let request = proto::GetSubscriptionStatsRequest {
            tenant_id: tenant.id,
            subscription_id: subscription.id,
            ..Default::default()
        };
        let stats = app.operator.subscriptions().get_subscription_stats(request).await.expect("counted");
        let stats = stats.into_inner().stats.expect("stats");
        let counts: Vec<_> = stats.delivery_counts.iter().map(|count| (count.state(), count.count)).collect();
        assert_eq!(counts, [(DeliveryState::Succeeded, 1), (DeliveryState::Failed, 1)]);
        assert_eq!((stats.attempt_count, stats.consecutive_failures), (6, 4));
        assert_eq!(stats.success_rate, Some(0.5));
        assert!(stats.last_success_time.is_some() && stats.last_failure_time.is_some());
        assert!(stats.p50_duration.is_some() && stats.p99_duration.is_some());
        app.stop().await;
    }
}

on_both! {
    /// A secret in a URL's query, a key, a signing secret: none of them in the log, at any level.
    async fn logs_hold_no_secrets(database: Database) {
        let receiver = Receiver::scripted(|_, n| Reply::status(if n == 0 { 500 } else { 200 })).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &["--log-filter", "trace"]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let canary = "canary-in-the-query";
        let webhook = proto::WebhookChannel {
            url: format!("{}?token={canary}", receiver.url()),
            signatures: vec![proto::SignatureScheme::None as i32],
            headers: [("X-Api-Key".to_owned(), "canary-in-a-header".to_owned())].into(),
            ..Default::default()
        };
        let retries = crate::support::app::quick_retries(2);
        client.subscribe_with(&tenant.id, &["*"], webhook, Some(retries)).await;
        let (_, secret) = client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let list = proto::ListSubscriptionsRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let listed = client.subscriptions().list_subscriptions(list).await.expect("listed").into_inner();
        assert!(!format!("{listed:?}").contains("canary"), "lists mask them, too");
        client.emit(&tenant.id, "user.created", "{}").await;
        receiver.wait_for(3).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        served.signal("TERM").await;
        let (code, log) = served.wait().await;
        assert_eq!(code, Some(0));
        assert!(!log.is_empty(), "there is a log to search");
        for line in &log {
            for secret in [canary, "canary-in-a-header", key.as_str(), secret.as_str()] {
                assert!(!line.contains(secret), "{line}");
            }
        }
    }
}

/// A tool that knows nothing but the address can decode everything that is answered: our messages,
/// and the details of errors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_serves_the_contract_and_the_details_of_errors() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let app = App::start(Database::sqlite().await).await;
    let symbols = [
        "tidings.v1.EventService",
        "tidings.v1.Delivery",
        "grpc.health.v1.Health",
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
    ];
    let requests = symbols.map(|symbol| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    });
    let mut client = ServerReflectionClient::new(app.operator.channel.clone());
    let mut answers = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .expect("served")
        .into_inner();
    for symbol in symbols {
        let answer: ServerReflectionResponse =
            answers.message().await.expect("answered").expect("an answer");
        assert!(
            matches!(&answer.message_response, Some(MessageResponse::FileDescriptorResponse(_))),
            "{symbol}: {:?}",
            answer.message_response
        );
    }
    app.stop().await;
}
