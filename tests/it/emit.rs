//! Emit, `EmitBatch` and `EmitStream`: idempotent, atomic, acknowledged after the commit.

use std::collections::HashSet;
use std::time::Duration;

use prost::Message;
use tidings::api::proto::{self, emit_result};
use tonic::Code;

use crate::support::app::{emit_request, explain};
use crate::support::{App, Database, Receiver};

on_both! {
    async fn a_key_makes_one_event_however_often_it_is_sent(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = |data: &str| proto::EmitRequest {
            idempotency_key: "invoice-7".into(),
            ..emit_request(&tenant.id, "billing.paid", data)
        };
        // All at once, in one batch or in several: one event.
        let calls = (0..20).map(|_| {
            let (mut events, request) = (app.operator.events(), request("{}"));
            async move { events.emit(request).await.expect("accepted").into_inner() }
        });
        let answers = futures::future::join_all(calls).await;
        let ids: HashSet<_> = answers.iter().map(|answer| answer.event_id.clone()).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
        assert!(answers.iter().all(|answer| answer.delivery_count == 1));

        let reused = app.operator.events().emit(request(r#"{"other":1}"#)).await.expect_err("another request");
        assert_eq!(explain(&reused), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED".into(), vec![]));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(receiver.requests().len(), 1);

        // The key is the tenant's own.
        let other = app.operator.create_tenant("Globex").await;
        let request = proto::EmitRequest { tenant_id: other.id, ..request("{}") };
        assert!(!app.operator.events().emit(request).await.expect("accepted").into_inner().duplicate);
        app.stop().await;
    }
}

on_both! {
    async fn a_failed_request_does_not_use_its_key_up(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let request = |event_type: &str| proto::EmitRequest {
            idempotency_key: "once".into(),
            ..emit_request(&tenant.id, event_type, "{}")
        };
        app.operator.events().emit(request("not a type")).await.expect_err("refused");
        let accepted = app.operator.events().emit(request("user.created")).await.expect("accepted").into_inner();
        assert!(!accepted.duplicate);
        app.stop().await;
    }
}

on_both! {
    async fn a_batch_answers_for_each_item(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let mut requests: Vec<_> =
            (0..300).map(|n| emit_request("", "user.created", &format!("{{\"n\":{n}}}"))).collect();
        requests[7].r#type = "bad type".into();
        requests[9] = emit_request("", "user.created", "{not json");
        let request = proto::EmitBatchRequest { tenant_id: tenant.id.clone(), requests };
        let results = app.operator.events().emit_batch(request).await.expect("answered").into_inner().results;
        assert_eq!(results.len(), 300);
        for (index, result) in results.into_iter().enumerate() {
            match result.result.expect("a result") {
                emit_result::Result::Response(response) => {
                    assert!(index != 7 && index != 9);
                    assert!(response.event_id.starts_with("evt_"));
                }
                emit_result::Result::Error(error) => {
                    assert!(index == 7 || index == 9, "{index}: {error:?}");
                    assert_eq!(error.code, Code::InvalidArgument as i32);
                    assert_eq!(error.violations.len(), 1);
                }
            }
        }
        let too_many = proto::EmitBatchRequest {
            tenant_id: tenant.id.clone(),
            requests: vec![emit_request("", "user.created", "{}"); 1_001],
        };
        let refused = app.operator.events().emit_batch(too_many).await.expect_err("too many");
        assert_eq!(explain(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into(), vec!["requests".into()]));

        let list = proto::ListEventsRequest { tenant_id: tenant.id, page_size: 1_000, ..Default::default() };
        let listed = app.operator.events().list_events(list).await.expect("listed").into_inner();
        assert_eq!(listed.events.len(), 298);
        app.stop().await;
    }
}

on_both! {
    async fn a_stream_acknowledges_in_order(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let tenant_id = tenant.id.clone();
        let requests = futures::stream::iter((0..500_i64).map(move |sequence| {
            let event_type = if sequence == 250 { "bad type" } else { "user.created" };
            proto::EmitStreamRequest { sequence, request: Some(emit_request(&tenant_id, event_type, "{}")) }
        }));
        let mut answers = app.operator.events().emit_stream(requests).await.expect("opened").into_inner();
        let mut expected = 0;
        while let Some(answer) = answers.message().await.expect("an answer") {
            assert_eq!(answer.sequence, expected);
            let result = answer.result.and_then(|result| result.result).expect("a result");
            assert_eq!(matches!(result, emit_result::Result::Error(_)), expected == 250);
            expected += 1;
        }
        assert_eq!(expected, 500);
        app.stop().await;
    }
}

on_both! {
    async fn people_may_send_a_struct(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let number = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(42.0)) };
        let data = prost_types::Struct { fields: [("amount".to_owned(), number)].into() };
        let request = proto::EmitRequest {
            payload: Some(proto::emit_request::Payload::Data(data)),
            ..emit_request(&tenant.id, "billing.paid", "")
        };
        let emitted = app.operator.events().emit(request).await.expect("accepted").into_inner();
        let body = receiver.wait_for(1).await.remove(0).body;
        assert!(body.ends_with(br#""data":{"amount":42}}"#), "{body:?}");
        let get = proto::GetEventRequest { tenant_id: tenant.id, event_id: emitted.event_id };
        let event = app.operator.events().get_event(get).await.expect("read").into_inner().event.expect("an event");
        assert_eq!(event.data_json, r#"{"amount":42}"#);
        app.stop().await;
    }
}

on_both! {
    async fn a_subscription_is_seen_by_the_next_emit_on_every_replica(database: Database) {
        // Two services on one PostgreSQL; on SQLite one, since its file has one.
        let is_postgres = database.config.database_url.starts_with("postgres");
        let options = crate::support::app::options(&database);
        let app = App::start(database).await;
        let second = if is_postgres {
            Some(tidings::app::start(options.config()).await.expect("a second replica"))
        } else {
            None
        };
        let other = match &second {
            Some(second) => crate::support::Client::connect(&format!("http://{}", second.grpc_addr()), &app.operator_key).await,
            None => app.operator.clone(),
        };
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        assert_eq!(other.emit(&tenant.id, "user.created", "{}").await.delivery_count, 0);
        for round in 1..=10 {
            app.operator.subscribe(&tenant.id, &["user.*"], &receiver.url()).await;
            let emitted = other.emit(&tenant.id, "user.created", "{}").await;
            assert_eq!(emitted.delivery_count, round, "each subscription is seen at once");
        }
        if let Some(second) = second {
            second.stop().await;
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_catalogs_schema_is_enforced(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let event_type = proto::EventType {
            tenant_id: tenant.id.clone(),
            name: "invoice.paid".into(),
            json_schema: r#"{"type":"object","required":["id"],"properties":{"id":{"type":"string"}}}"#.into(),
            ..Default::default()
        };
        let request = proto::CreateEventTypeRequest { event_type: Some(event_type) };
        app.operator.catalog().create_event_type(request).await.expect("created");
        app.operator.emit(&tenant.id, "invoice.paid", r#"{"id":"i7"}"#).await;
        let wrong = emit_request(&tenant.id, "invoice.paid", r#"{"id":7}"#);
        let refused = app.operator.events().emit(wrong).await.expect_err("against the schema");
        assert_eq!(explain(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into(), vec!["data_json.id".into()]));
        app.stop().await;
    }
}

on_both! {
    /// Settings are cached, and the cache may be behind: on SQLite until the next look, on the other
    /// replica of a PostgreSQL as well. What was acknowledged before an Emit judges it all the same.
    async fn a_changed_schema_judges_the_next_emit_on_every_replica(database: Database) {
        let is_postgres = database.config.database_url.starts_with("postgres");
        let options = crate::support::app::options(&database);
        let app = App::start(database).await;
        let second = if is_postgres {
            let running = tidings::app::start(options.config()).await.expect("a second replica");
            let url = format!("http://{}", running.grpc_addr());
            Some((crate::support::Client::connect(&url, &app.operator_key).await, running))
        } else {
            None
        };
        let other = second.as_ref().map_or(&app.operator, |(client, _)| client);
        let tenant = app.operator.create_tenant("Acme").await;
        let event_type = |kind: &str| proto::EventType {
            tenant_id: tenant.id.clone(),
            name: "invoice.paid".into(),
            json_schema: format!(r#"{{"type":"object","properties":{{"id":{{"type":"{kind}"}}}}}}"#),
            ..Default::default()
        };
        let change = async |kind: &str| {
            let request = proto::UpdateEventTypeRequest {
                event_type: Some(event_type(kind)),
                update_mask: Some(prost_types::FieldMask { paths: vec!["json_schema".into()] }),
            };
            app.operator.catalog().update_event_type(request).await.expect("changed");
        };
        // A small payload is judged where it is, a large one on a thread of its own.
        let large = "x".repeat(40_000);
        let texts = [r#"{"id":"i7"}"#.to_owned(), format!(r#"{{"id":"i7","text":"{large}"}}"#)];
        let request = proto::CreateEventTypeRequest { event_type: Some(event_type("string")) };
        app.operator.catalog().create_event_type(request).await.expect("created");
        for round in 0..4 {
            for text in &texts {
                other.emit(&tenant.id, "invoice.paid", text).await;
                change("integer").await;
                let wrong = emit_request(&tenant.id, "invoice.paid", text);
                let refused = other.events().emit(wrong).await.expect_err("against the new schema");
                let expected = (Code::InvalidArgument, "INVALID_FIELDS".into(), vec!["data_json.id".into()]);
                assert_eq!(explain(&refused), expected, "round {round}");
                change("string").await;
            }
        }
        if let Some((_, running)) = second {
            running.stop().await;
        }
        app.stop().await;
    }
}

on_both! {
    /// The committer commits for all, so it does not judge, unless a schema changed meanwhile.
    async fn payloads_are_judged_before_they_wait_for_a_commit(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let mut event_type = proto::EventType {
            tenant_id: tenant.id.clone(),
            name: "invoice.paid".into(),
            json_schema: r#"{"type":"object","required":["id"]}"#.into(),
            ..Default::default()
        };
        let request = proto::CreateEventTypeRequest { event_type: Some(event_type.clone()) };
        app.operator.catalog().create_event_type(request).await.expect("created");
        for round in 0..10 {
            app.operator.emit(&tenant.id, "invoice.paid", &format!(r#"{{"id":{round}}}"#)).await;
            // Other settings change, the schema does not.
            app.operator.subscribe(&tenant.id, &["other"], "https://hooks.company.com/").await;
        }
        let wrong = emit_request(&tenant.id, "invoice.paid", "{}");
        app.operator.events().emit(wrong).await.expect_err("against the schema");
        assert_eq!(app.metric("tidings_events_judged_again_total").await, 0);

        event_type.json_schema = r#"{"type":"object","required":["number"]}"#.into();
        let request = proto::UpdateEventTypeRequest {
            event_type: Some(event_type),
            update_mask: Some(prost_types::FieldMask { paths: vec!["json_schema".into()] }),
        };
        app.operator.catalog().update_event_type(request).await.expect("changed");
        app.operator.emit(&tenant.id, "invoice.paid", r#"{"id":1,"number":1}"#).await;
        let again = app.metric("tidings_events_judged_again_total").await;
        assert_eq!(again, 1);
        app.stop().await;
    }
}

on_both! {
    async fn an_expired_deadline_stores_nothing(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // By hand: a client library would give up by itself.
        let message = emit_request(&tenant.id, "user.created", "{}").encode_to_vec();
        let late = app.raw_emit(&message, &[("grpc-timeout", "1n")]).await;
        assert_eq!(explain(&late), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into(), vec![]));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let list = proto::ListEventsRequest { tenant_id: tenant.id, ..Default::default() };
        let listed = app.operator.events().list_events(list).await.expect("listed").into_inner();
        assert!(listed.events.is_empty());
        app.stop().await;
    }
}

on_both! {
    /// More deliveries than one transaction takes: the batch is cut, and every event is whole.
    async fn a_large_fan_out_is_cut_between_events(database: Database) {
        const SUBSCRIPTIONS: usize = 50;
        const EVENTS: usize = 250;
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        for _ in 0..SUBSCRIPTIONS {
            let (subscription, _) =
                app.operator.subscribe(&tenant.id, &["*"], "https://hooks.company.com/").await;
            // Paused: nothing is to be sent.
            let pause = proto::PauseSubscriptionRequest {
                tenant_id: tenant.id.clone(),
                subscription_id: subscription.id,
            };
            app.operator.subscriptions().pause_subscription(pause).await.expect("paused");
        }
        let requests = vec![emit_request("", "user.created", "{}"); EVENTS];
        let batch = proto::EmitBatchRequest { tenant_id: tenant.id.clone(), requests };
        let results = app.operator.events().emit_batch(batch).await.expect("answered").into_inner().results;
        let mut accepted = 0;
        for result in results {
            let Some(emit_result::Result::Response(response)) = result.result else { panic!("refused: {result:?}") };
            assert_eq!(usize::try_from(response.delivery_count), Ok(SUBSCRIPTIONS));
            accepted += 1;
        }
        assert_eq!(accepted, EVENTS);
        let store = app.database.open().await;
        let stats = store.count_scheduled(10).await.expect("counted");
        assert_eq!(stats, 0, "all are held");
        app.stop().await;
    }
}
