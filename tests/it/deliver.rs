//! From Emit to the receiver: formats, signatures, retries, and what an administrator can do.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tidings::api::proto::{self, AttemptTrigger, DeliveryState, ErrorKind, FailureReason};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain, quick_retries};
use crate::support::{App, Database, Receiver, Reply};

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

on_both! {
    async fn an_event_arrives_signed_and_byte_for_byte(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, secret) = app.operator.subscribe(&tenant.id, &["billing.*"], &receiver.url()).await;
        // Spacing, key order, a duplicate key and an integer of 30 digits must survive.
        let data = r#"{ "b":1,  "a" : 123456789012345678901234567890, "a":2, "é":"\u0000" }"#;
        let emitted = app.operator.emit(&tenant.id, "billing.paid", data).await;
        assert_eq!(emitted.delivery_count, 1);

        let request = receiver.wait_for(1).await.remove(0);
        let body = std::str::from_utf8(&request.body).expect("UTF-8");
        assert!(body.contains(data), "{body}");
        assert!(body.starts_with(&format!(r#"{{"id":"{}","type":"billing.paid","timestamp":""#, emitted.event_id)));
        assert!(body.contains(&format!(r#""organization":{{"id":"{}","name":"Acme"}}"#, tenant.id)));
        assert_eq!(request.header("content-type"), "application/json");
        assert!(request.header("user-agent").starts_with("Tidings/"));
        assert_eq!(request.header("tidings-event-type"), "billing.paid");
        assert_eq!(request.header("tidings-attempt"), "1");
        assert_eq!(request.header("webhook-id"), emitted.event_id);

        let key = BASE64.decode(secret.strip_prefix("whsec_").expect("a prefix")).expect("Base64");
        let (id, timestamp) = (request.header("webhook-id"), request.header("webhook-timestamp"));
        let expected = hmac(&key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", &request.body]);
        assert_eq!(request.header("webhook-signature"), format!("v1,{}", BASE64.encode(expected)));

        let delivery =
            app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;
        assert_eq!(request.header("tidings-delivery-id"), delivery.id);
        assert_eq!(delivery.subscription_id, subscription.id);
        assert_eq!((delivery.attempt_count, delivery.next_attempt_time), (1, None));
        let attempts = app.operator.attempts(&tenant.id, &delivery.id).await;
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].http_status, 204);
        assert_eq!(attempts[0].trigger(), AttemptTrigger::Automatic);
        assert_eq!(attempts[0].trace_id, delivery.trace_id);
        let signature = attempts[0].request_headers.iter().find(|header| header.name == "webhook-signature");
        assert!(!signature.expect("kept").value.contains(&BASE64.encode(b"v1,")), "masked");
        app.stop().await;
    }
}

on_both! {
    async fn flat_payloads_and_plain_signatures_stand_beside_standard_ones(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let request = proto::CreateTenantRequest {
            tenant: Some(proto::Tenant {
                display_name: "Acme".into(),
                environment: "production".into(),
                account_id: Some(42),
                webhook_url: receiver.url(),
                ..Default::default()
            }),
        };
        let created = app.operator.tenants().create_tenant(request).await.expect("created").into_inner();
        let tenant = created.tenant.expect("a tenant");
        // Without a URL of its own the subscription uses the tenant's.
        let webhook = proto::WebhookChannel {
            signatures: vec![
                proto::SignatureScheme::StandardWebhooks as i32,
                proto::SignatureScheme::HmacSha256Hex as i32,
            ],
            signature_header: "X-Acme-Signature".into(),
            payload_format: proto::PayloadFormat::Flat as i32,
            headers: [("X-Team".to_owned(), "payments".to_owned())].into(),
            ..Default::default()
        };
        let (_, secret) = app.operator.subscribe_with(&tenant.id, &["run_failed"], webhook, None).await;
        let data = r#"{"run_id":7,"run_status":"failed","account_name":"not this one","big":123456789012345678901}"#;
        app.operator.emit(&tenant.id, "run_failed", data).await;

        let request = receiver.wait_for(1).await.remove(0);
        let json = request.json();
        assert_eq!(json["event_type"], "run_failed");
        assert_eq!(json["environment"], "production");
        assert_eq!(json["account_id"], 42);
        assert_eq!(json["account_name"], "Acme", "the common fields win");
        assert_eq!(json["run_id"], 7);
        assert!(std::str::from_utf8(&request.body).expect("UTF-8").contains(r#""big":123456789012345678901"#));
        assert_eq!(request.header("x-acme-signature"), hex::encode(hmac(secret.as_bytes(), &[&request.body])));
        assert!(request.header("webhook-signature").starts_with("v1,"));
        assert_eq!(request.header("x-team"), "payments");
        app.stop().await;
    }
}

on_both! {
    async fn failures_are_retried_by_policy_and_recorded(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, number| match number {
            0 => Reply::status(500).body("the disk is full").header("x-reason", "disk"),
            1 => Reply::status(302).header("location", "http://127.0.0.1:9/"),
            _ => Reply::status(200),
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let delivery =
            app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;
        assert_eq!(delivery.attempt_count, 3);

        let attempts = app.operator.attempts(&tenant.id, &delivery.id).await;
        assert_eq!(attempts.iter().map(|attempt| attempt.http_status).collect::<Vec<_>>(), [500, 302, 200]);
        assert_eq!(attempts[0].error_kind(), ErrorKind::HttpStatus);
        assert_eq!(attempts[0].response_body.as_ref(), b"the disk is full");
        assert!(attempts[0].response_headers.iter().any(|header| header.name == "x-reason" && header.value == "disk"));

        let requests = receiver.requests();
        assert_eq!(requests.len(), 3, "a redirect is not followed");
        let ids: Vec<_> = requests.iter().map(|request| request.header("webhook-id").to_owned()).collect();
        assert!(ids.iter().all(|id| *id == emitted.event_id), "the id stays the same over all attempts");
        let numbers: Vec<_> = requests.iter().map(|request| request.header("tidings-attempt").to_owned()).collect();
        assert_eq!(numbers, ["1", "2", "3"]);
        app.stop().await;
    }
}

on_both! {
    async fn exhausted_deliveries_fail_and_a_manual_attempt_leaves_its_own_record(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, number| Reply::status(if number < 2 { 503 } else { 200 })).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["*"], webhook, Some(quick_retries(1))).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let failed = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Failed).await;
        assert_eq!(failed.failure_reason(), FailureReason::Exhausted);
        assert_eq!(failed.attempt_count, 2);

        let request = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: failed.id.clone() };
        let retried = app.operator.deliveries().retry_delivery(request).await.expect("retried").into_inner();
        let (delivery, attempt) = (retried.delivery.expect("a delivery"), retried.attempt.expect("an attempt"));
        assert_eq!((attempt.number, attempt.http_status), (3, 200));
        assert_eq!(attempt.trigger(), AttemptTrigger::Manual);
        assert_eq!(delivery.state(), DeliveryState::Failed, "terminal states absorb");
        assert!(delivery.recover_time.is_some());
        assert!(delivery.revision > failed.revision);
        let recorded = app.operator.attempts(&tenant.id, &failed.id).await;
        assert_eq!(recorded.last(), Some(&attempt));
        assert_eq!(receiver.requests()[2].header("webhook-id"), emitted.event_id);
        app.stop().await;
    }
}

on_both! {
    async fn a_manual_attempt_does_not_disturb_the_schedule(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, number| Reply::status(if number < 2 { 500 } else { 200 })).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // The built-in policy: the first retry is due after about five seconds.
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let waiting = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Scheduled).await;
        assert_eq!(waiting.attempt_count, 1);

        let request = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: waiting.id.clone() };
        let retried = app.operator.deliveries().retry_delivery(request.clone()).await.expect("retried").into_inner();
        let after = retried.delivery.expect("a delivery");
        assert_eq!(after.state(), DeliveryState::Scheduled);
        assert_eq!(after.next_attempt_time, waiting.next_attempt_time);
        assert_eq!(after.attempt_count, 2);

        let retried = app.operator.deliveries().retry_delivery(request).await.expect("retried").into_inner();
        assert_eq!(retried.delivery.expect("a delivery").state(), DeliveryState::Succeeded);
        app.stop().await;
    }
}

on_both! {
    async fn a_paused_subscription_holds_and_a_resumed_one_delivers(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let pause = proto::PauseSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id.clone() };
        let paused = app.operator.subscriptions().pause_subscription(pause).await.expect("paused").into_inner();
        assert_eq!(paused.subscription.expect("it").state(), proto::SubscriptionState::Paused);
        let mut held = Vec::new();
        for number in 0..5 {
            held.push(app.operator.emit(&tenant.id, "user.created", &format!("{{\"n\":{number}}}")).await.event_id);
        }
        app.operator.wait_for_state(&tenant.id, &held[0], DeliveryState::Held).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(receiver.requests().is_empty());

        let resume = proto::ResumeSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id };
        app.operator.subscriptions().resume_subscription(resume).await.expect("resumed");
        receiver.wait_for(5).await;
        for event_id in held {
            app.operator.wait_for_state(&tenant.id, &event_id, DeliveryState::Succeeded).await;
        }
        app.stop().await;
    }
}

on_both! {
    async fn deliveries_can_be_canceled_and_end_with_their_subscription(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(500).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        let (subscription, _) = app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        let first = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let second = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let waiting = app.operator.wait_for_state(&tenant.id, &first.event_id, DeliveryState::Scheduled).await;
        app.operator.wait_for_state(&tenant.id, &second.event_id, DeliveryState::Scheduled).await;

        let cancel = proto::CancelDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: waiting.id };
        let canceled = app.operator.deliveries().cancel_delivery(cancel.clone()).await.expect("canceled").into_inner();
        assert_eq!(canceled.delivery.expect("it").state(), DeliveryState::Canceled);
        let again = app.operator.deliveries().cancel_delivery(cancel).await.expect_err("ended");
        assert_eq!(explain(&again), (Code::FailedPrecondition, "DELIVERY_ENDED".into(), vec![]));

        let delete = proto::DeleteSubscriptionRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id,
            ..Default::default()
        };
        app.operator.subscriptions().delete_subscription(delete).await.expect("deleted");
        let ended = app.operator.wait_for_state(&tenant.id, &second.event_id, DeliveryState::Canceled).await;
        assert_eq!(ended.failure_reason(), FailureReason::SubscriptionDeleted);
        assert_eq!(app.operator.emit(&tenant.id, "user.created", "{}").await.delivery_count, 0);
        app.stop().await;
    }
}

on_both! {
    async fn an_attempt_under_way_when_its_delivery_is_canceled_is_still_recorded(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(700))).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        receiver.wait_for(1).await;
        let delivering = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Delivering).await;
        let cancel = proto::CancelDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: delivering.id.clone() };
        app.operator.deliveries().cancel_delivery(cancel).await.expect("canceled");
        for _ in 0..300 {
            if !app.operator.attempts(&tenant.id, &delivering.id).await.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let delivery = app.operator.deliveries_of(&tenant.id, &emitted.event_id).await.remove(0);
        assert_eq!(delivery.state(), DeliveryState::Canceled);
        assert_eq!(delivery.attempt_count, 1);
        assert!(delivery.recover_time.is_some(), "the receiver has it all the same");
        app.stop().await;
    }
}

on_both! {
    async fn an_attempt_under_way_when_its_subscription_is_deleted_may_still_end_its_delivery(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let mut cases = Vec::new();
        for (status, state) in [(200, DeliveryState::Succeeded), (500, DeliveryState::Canceled)] {
            let gate = std::sync::Arc::clone(&gate);
            let receiver = Receiver::scripted(move |_, _| Reply::status(status).behind(gate.clone())).await;
            let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
            cases.push((receiver, subscription, state));
        }
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        for (receiver, subscription, _) in &cases {
            receiver.wait_for(1).await;
            let (tenant_id, subscription_id) = (tenant.id.clone(), subscription.id.clone());
            let delete = proto::DeleteSubscriptionRequest { tenant_id, subscription_id, ..Default::default() };
            app.operator.subscriptions().delete_subscription(delete).await.expect("deleted");
        }
        gate.add_permits(cases.len());
        for (_, subscription, state) in &cases {
            let ended = app.operator.wait_for_all(subscription, *state).await.remove(0);
            assert_eq!(ended.attempt_count, 1, "the attempt is recorded");
            let is_canceled = *state == DeliveryState::Canceled;
            assert_eq!(ended.failure_reason() == FailureReason::SubscriptionDeleted, is_canceled);
        }
        app.stop().await;
    }
}

on_both! {
    async fn deliver_time_and_expire_time_hold(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let now = std::time::SystemTime::now();
        let at = |after_ms: u64| Some(prost_types::Timestamp::from(now + Duration::from_millis(after_ms)));
        let later = proto::EmitRequest { deliver_time: at(1_200), ..emit_request(&tenant.id, "user.created", "{}") };
        let later = app.operator.events().emit(later).await.expect("accepted").into_inner();
        assert_eq!(app.operator.deliveries_of(&tenant.id, &later.event_id).await[0].state(), DeliveryState::Scheduled);
        assert!(receiver.requests().is_empty());
        app.operator.wait_for_state(&tenant.id, &later.event_id, DeliveryState::Succeeded).await;
        assert!(now.elapsed().expect("forward") >= Duration::from_millis(1_190), "not before its time");

        let failing = Receiver::answering(500).await;
        let webhook = proto::WebhookChannel { url: failing.url(), ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["trial.ending"], webhook, None).await;
        let now = std::time::SystemTime::now();
        let soon = proto::EmitRequest {
            expire_time: Some((now + Duration::from_secs(3)).into()),
            ..emit_request(&tenant.id, "trial.ending", "{}")
        };
        let soon = app.operator.events().emit(soon).await.expect("accepted").into_inner();
        for _ in 0..1_500 {
            let deliveries = app.operator.deliveries_of(&tenant.id, &soon.event_id).await;
            if deliveries.iter().any(|delivery| delivery.state() == DeliveryState::Expired) {
                assert_eq!(failing.requests().len(), 1, "no retry after the expiry");
                app.stop().await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the delivery never expired");
    }
}

on_both! {
    async fn retry_policies_are_found_from_the_subscription_down_to_the_built_in_one(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(500).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let event_type = |name: &str, retries| proto::EventType {
            name: name.into(),
            retry_policy: Some(quick_retries(retries)),
            ..Default::default()
        };
        // The platform's own types; the tenant overrides one of them.
        for (tenant_id, name, retries) in [("", "invoice.paid", 2), ("", "trial.ending", 2), (tenant.id.as_str(), "trial.ending", 0)] {
            let event_type = proto::EventType { tenant_id: tenant_id.into(), ..event_type(name, retries) };
            let request = proto::CreateEventTypeRequest { event_type: Some(event_type) };
            app.operator.catalog().create_event_type(request).await.expect("created");
        }
        let webhook = || proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["invoice.paid", "trial.ending"], webhook(), None).await;
        app.operator.subscribe_with(&tenant.id, &["user.created"], webhook(), Some(quick_retries(1))).await;
        for (name, attempts) in [("invoice.paid", 3), ("trial.ending", 1), ("user.created", 2)] {
            let emitted = app.operator.emit(&tenant.id, name, "{}").await;
            let failed = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Failed).await;
            assert_eq!(failed.attempt_count, attempts, "{name}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn addresses_that_are_not_public_are_refused_by_default(database: Database) {
        let receiver = Receiver::answering(200).await;
        // Stored while the address was open, attempted when it no longer is.
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let database = app.stop().await;
        let options = tidings::config::Options {
            allow_cidrs: Vec::new(),
            ..crate::support::app::options(&database)
        };
        let app = App::start_with(database, &options).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let failed = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Failed).await;
        let attempts = app.operator.attempts(&tenant.id, &failed.id).await;
        assert_eq!(attempts[0].error_kind(), ErrorKind::AddressRefused);
        assert!(!attempts[0].error_message.contains("127.0.0.1"), "no address is told");
        assert!(receiver.requests().is_empty(), "not one connection");
        // What is stored may stay while something else is changed.
        let update = proto::UpdateSubscriptionRequest {
            subscription: Some(proto::Subscription { display_name: "New".into(), ..subscription }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        };
        app.operator.subscriptions().update_subscription(update).await.expect("updated");
        app.stop().await;
    }
}

on_both! {
    async fn a_test_sends_a_signed_ping_and_stores_nothing(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["billing.*"], &receiver.url()).await;
        let request = proto::TestSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id };
        let tested = app.operator.subscriptions().test_subscription(request).await.expect("tested").into_inner();
        let attempt = tested.attempt.expect("an attempt");
        assert_eq!(attempt.trigger(), AttemptTrigger::Test);
        assert_eq!(attempt.http_status, 200);
        let ping = receiver.wait_for(1).await.remove(0);
        assert_eq!(ping.json()["type"], "tidings.ping");
        assert_eq!(ping.header("webhook-id"), tested.event_id);
        let list = proto::ListDeliveriesRequest { tenant_id: tenant.id, ..Default::default() };
        let listed = app.operator.deliveries().list_deliveries(list).await.expect("listed").into_inner();
        assert!(listed.deliveries.is_empty());
        app.stop().await;
    }
}

on_both! {
    async fn rotated_secrets_overlap(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, old) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let rotate = |overlap| proto::RotateSecretRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id.clone(),
            overlap,
            ..Default::default()
        };
        let rotated = app.operator.subscriptions().rotate_secret(rotate(None)).await.expect("rotated").into_inner();
        assert_ne!(rotated.signing_secret, old);
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let both = receiver.wait_for(1).await.remove(0);
        assert_eq!(both.header("webhook-signature").split(' ').count(), 2, "one entry per valid secret");

        let at_once = Some(prost_types::Duration::default());
        app.operator.subscriptions().rotate_secret(rotate(at_once)).await.expect("rotated");
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let alone = receiver.wait_for(2).await.remove(1);
        assert_eq!(alone.header("webhook-signature").split(' ').count(), 1);
        app.stop().await;
    }
}

on_both! {
    async fn a_subscriptions_rate_holds_even_when_it_was_idle(database: Database) {
        const PER_SECOND: f64 = 5.0;
        let app = App::start(database).await;
        let times = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = std::sync::Arc::clone(&times);
        let receiver = Receiver::scripted(move |_, _| {
            seen.lock().expect("not poisoned").push(std::time::Instant::now());
            Reply::status(200)
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel {
            url: receiver.url(),
            max_requests_per_second: PER_SECOND,
            ..Default::default()
        };
        app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        for count in 1..=5 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
            // One at a time, so that the lane is empty in between.
            receiver.wait_for(count).await;
        }
        let times = times.lock().expect("not poisoned").clone();
        // Four gaps; one is left out for a request that a busy machine saw late.
        let least = Duration::from_secs_f64(3.0 / PER_SECOND);
        assert!(times[4] - times[0] >= least, "{times:?}");
        app.stop().await;
    }
}

on_both! {
    /// Whoever asked for a manual attempt goes away while it runs: it is recorded all the same, and the
    /// delivery waits on as before.
    async fn a_manual_attempt_is_recorded_even_if_nobody_waits(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::scripted(|_, _| Reply::status(500).after(Duration::from_millis(600))).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        let later = std::time::SystemTime::now() + Duration::from_hours(1);
        let request = proto::EmitRequest {
            deliver_time: Some(later.into()),
            ..emit_request(&tenant.id, "user.created", "{}")
        };
        let emitted = app.operator.events().emit(request).await.expect("accepted").into_inner();
        let delivery = app.operator.deliveries_of(&tenant.id, &emitted.event_id).await.remove(0);
        let retry = proto::RetryDeliveryRequest {
            tenant_id: tenant.id.clone(),
            delivery_id: delivery.id.clone(),
        };
        let mut client = app.operator.deliveries();
        let call = tokio::time::timeout(Duration::from_millis(200), client.retry_delivery(retry)).await;
        assert!(call.is_err(), "the caller went away");
        let after =
            app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Scheduled).await;
        assert_eq!(after.attempt_count, 1);
        assert_eq!(after.next_attempt_time, delivery.next_attempt_time);
        app.stop().await;
    }
}

on_both! {
    async fn a_tenant_may_have_so_many_attempts_on_request_under_way(database: Database) {
        use tidings::dispatch::MAX_ON_REQUEST;
        let app = App::start(database).await;
        // The first request is refused for good; those that follow are answered late.
        let receiver = Receiver::scripted(|_, number| {
            if number == 0 { Reply::status(400) } else { Reply::status(200).after(Duration::from_secs(3)) }
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        let once = Some(quick_retries(0));
        let (subscription, _) = app.operator.subscribe_with(&tenant.id, &["user.*"], webhook, once).await;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        let failed = app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Failed).await;
        let retry = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: failed.id };
        let test = proto::TestSubscriptionRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id,
        };
        // Callers that go away: their attempts are under way all the same.
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..MAX_ON_REQUEST {
            let (mut client, retry) = (app.operator.deliveries(), retry.clone());
            callers.spawn(async move { client.retry_delivery(retry).await.map(|_| ()) });
        }
        receiver.wait_for(1 + MAX_ON_REQUEST).await;
        callers.shutdown().await;
        let retried = app.operator.deliveries().retry_delivery(retry.clone()).await.expect_err("refused");
        let tested = app.operator.subscriptions().test_subscription(test.clone()).await.expect_err("refused");
        for refused in [retried, tested] {
            assert_eq!(explain(&refused).1, "OVERLOADED");
            assert!(refused.get_details_retry_info().is_some(), "RetryInfo: {refused:?}");
        }
        assert_eq!(receiver.requests().len(), 1 + MAX_ON_REQUEST, "no request was sent");
        let other = app.operator.create_tenant("Globex").await;
        let (theirs, _) = app.operator.subscribe(&other.id, &["*"], &receiver.url()).await;
        let theirs = proto::TestSubscriptionRequest { tenant_id: other.id, subscription_id: theirs.id };
        app.operator.subscriptions().test_subscription(theirs).await.expect("a tenant of its own");
        // Their answer came after ours: as soon as one of ours is recorded, there is room again.
        while app.operator.attempts(&tenant.id, &retry.delivery_id).await.len() < 2 {
            tokio::task::yield_now().await;
        }
        app.operator.subscriptions().test_subscription(test).await.expect("room again");
        app.stop().await;
    }
}
