//! Bad input gets a clear error that names every wrong field; nothing is stored and nothing is lost.

use std::time::Duration;

use tidings::api::proto;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain};
use crate::support::{App, Database};

/// The fields that are named, in order.
fn wrong(refused: &tonic::Status) -> Vec<String> {
    let (code, reason, mut fields) = explain(refused);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
    fields.sort_unstable();
    fields
}

async fn events_of(app: &App, tenant_id: &str) -> usize {
    let list = proto::ListEventsRequest { tenant_id: tenant_id.into(), ..Default::default() };
    app.operator.events().list_events(list).await.expect("listed").into_inner().events.len()
}

on_both! {
    async fn every_wrong_field_of_an_event_is_named(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let now = std::time::SystemTime::now();
        let request = proto::EmitRequest {
            subject: "s".repeat(257),
            labels: [("l".repeat(257), "v".to_owned())].into(),
            idempotency_key: "k\n".into(),
            deliver_time: Some((now + Duration::from_hours(9600)).into()),
            expire_time: Some((now - Duration::from_secs(1)).into()),
            occur_time: Some(prost_types::Timestamp { seconds: 0, nanos: -5 }),
            ..emit_request(&tenant.id, "no spaces", "{broken")
        };
        let (code, reason, mut fields) = explain(&app.operator.events().emit(request).await.expect_err("refused"));
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        for field in &mut fields {
            field.truncate(field.find('[').unwrap_or(field.len()));
        }
        fields.sort_unstable();
        fields.dedup();
        for field in ["data_json", "deliver_time", "expire_time", "idempotency_key", "labels", "occur_time", "subject", "type"] {
            assert!(fields.iter().any(|named| named == field), "{field} is not named in {fields:?}");
        }
        assert_eq!(events_of(&app, &tenant.id).await, 0);
        app.stop().await;
    }
}

on_both! {
    async fn only_fields_of_the_request_are_named(database: Database) {
        use prost_types::value::Kind;
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let data = |kind: Kind| proto::EmitRequest {
            payload: Some(proto::emit_request::Payload::Data(prost_types::Struct {
                fields: [("n".to_owned(), prost_types::Value { kind: Some(kind) })].into(),
            })),
            ..emit_request(&tenant.id, "user.created", "")
        };
        for kind in [Kind::NumberValue(f64::NAN), Kind::StringValue("x".repeat(300_000))] {
            let refused = app.operator.events().emit(data(kind)).await.expect_err("refused");
            assert_eq!(explain(&refused).2, ["data"]);
        }
        let empty = proto::Subscription { tenant_id: tenant.id.clone(), ..Default::default() };
        let request = proto::CreateSubscriptionRequest { subscription: Some(empty), ..Default::default() };
        let refused = app.operator.subscriptions().create_subscription(request).await.expect_err("refused");
        let mut fields = explain(&refused).2;
        fields.sort_unstable();
        assert_eq!(fields, ["subscription.event_types", "subscription.webhook"]);
        app.stop().await;
    }
}

on_both! {
    async fn payloads_beyond_the_limits_are_refused(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let large = format!("\"{}\"", "x".repeat(256 * 1024));
        for data in [deep.as_str(), large.as_str(), "", "not json", "{\"a\":1}{}", "\u{feff}{}"] {
            let refused = app.operator.events().emit(emit_request(&tenant.id, "user.created", data)).await.expect_err("refused");
            let (code, reason, fields) = explain(&refused);
            assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELDS"), "{data:.20}");
            assert_eq!(fields, ["data_json"], "{data:.20}");
        }
        let just_right = format!("\"{}\"", "x".repeat(256 * 1024 - 2));
        app.operator.emit(&tenant.id, "user.created", &just_right).await;
        let oversized = "x".repeat(5 * 1024 * 1024);
        let refused = app.operator.events().emit(emit_request(&tenant.id, "user.created", &oversized)).await.expect_err("refused");
        assert_eq!(explain(&refused).1, "REQUEST_TOO_LARGE");
        assert_eq!(events_of(&app, &tenant.id).await, 1);
        app.stop().await;
    }
}

on_both! {
    async fn what_is_not_protobuf_or_not_utf8_is_refused(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // Field 5, data_json: a string of one byte that is not UTF-8; and a truncated message.
        let not_utf8 = [[0x0a, 30].as_slice(), tenant.id.as_bytes(), &[0x2a, 1, 0xff]].concat();
        for message in [not_utf8, vec![0x0a, 200, 1]] {
            let refused = app.raw_emit(&message, &[]).await;
            assert_eq!(explain(&refused), (Code::InvalidArgument, "MALFORMED_REQUEST".into(), vec![]));
        }
        assert_eq!(events_of(&app, &tenant.id).await, 0);
        app.stop().await;
    }
}

on_both! {
    async fn every_wrong_field_of_a_subscription_is_named(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel {
            url: "http://user@localhost:22/#x".into(),
            headers: [
                ("X-Bad".to_owned(), "a\r\nb".to_owned()),
                ("Host".to_owned(), "evil".to_owned()),
            ]
            .into(),
            timeout: Some(prost_types::Duration { seconds: 31, nanos: 0 }),
            max_in_flight: -1,
            max_requests_per_second: f64::NAN,
            signature_header: "X-Sig".into(),
            ..Default::default()
        };
        let subscription = proto::Subscription {
            tenant_id: tenant.id.clone(),
            event_types: vec!["a.*.b".into(), "ok.*".into(), String::new()],
            channel: Some(proto::subscription::Channel::Webhook(webhook)),
            retry_policy: Some(proto::RetryPolicy { max_retries: Some(-1), jitter: Some(2.0), ..Default::default() }),
            ..Default::default()
        };
        let request = proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let refused = app.operator.subscriptions().create_subscription(request).await.expect_err("refused");
        let (code, reason, fields) = explain(&refused);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        for field in [
            "subscription.event_types[0]",
            "subscription.event_types[2]",
            "subscription.webhook.url",
            "subscription.webhook.headers",
            "subscription.webhook.timeout",
            "subscription.webhook.max_in_flight",
            "subscription.webhook.max_requests_per_second",
            "subscription.webhook.signature_header",
            "subscription.retry_policy.max_retries",
            "subscription.retry_policy.jitter",
        ] {
            assert!(fields.iter().any(|named| named.starts_with(field)), "{field} is not named in {fields:?}");
        }
        let list = proto::ListSubscriptionsRequest { tenant_id: tenant.id, ..Default::default() };
        let listed = app.operator.subscriptions().list_subscriptions(list).await.expect("listed").into_inner();
        assert!(listed.subscriptions.is_empty());
        app.stop().await;
    }
}

on_both! {
    async fn a_policy_that_cannot_be_read_is_judged_as_well(database: Database) {
        let app = App::start(database).await;
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let policy = proto::RetryPolicy {
            max_retries: Some(5),
            backoff: Some(proto::retry_policy::Backoff::Exponential(proto::retry_policy::Exponential {
                initial_interval: seconds(-1),
                multiplier: 0.5,
                max_interval: seconds(999_999_999),
            })),
            jitter: Some(3.0),
        };
        let tenant = proto::Tenant { display_name: "Acme".into(), retry_policy: Some(policy.clone()), ..Default::default() };
        let event_type = proto::EventType { name: "billing.paid".into(), retry_policy: Some(policy.clone()), ..Default::default() };
        let webhook = proto::WebhookChannel { url: "https://hooks.company.com/".into(), ..Default::default() };
        let subscription = proto::Subscription {
            tenant_id: app.operator.create_tenant("Globex").await.id,
            event_types: vec!["*".into()],
            channel: Some(proto::subscription::Channel::Webhook(webhook)),
            retry_policy: Some(policy),
            ..Default::default()
        };
        let request = proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let of_subscription = app.operator.subscriptions().create_subscription(request).await.expect_err("refused");
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let of_tenant = app.operator.tenants().create_tenant(request).await.expect_err("refused");
        let request = proto::CreateEventTypeRequest { event_type: Some(event_type) };
        let of_type = app.operator.catalog().create_event_type(request).await.expect_err("refused");
        for (refused, resource) in [(of_subscription, "subscription"), (of_tenant, "tenant"), (of_type, "event_type")] {
            assert_eq!(wrong(&refused), ["exponential.initial_interval", "exponential.max_interval", "exponential.multiplier", "jitter"]
                .map(|field| format!("{resource}.retry_policy.{field}")));
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_name_that_is_missing_hides_nothing_else(database: Database) {
        let app = App::start(database).await;
        let operator = &app.operator;
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });

        // An operator's calls without a tenant.
        let request = proto::CreateSubscriptionRequest { signing_secret: "x".into(), ..Default::default() };
        let refused = operator.subscriptions().create_subscription(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["signing_secret", "subscription.event_types", "subscription.tenant_id", "subscription.webhook"]);
        let request = proto::ListSubscriptionsRequest { page_size: -1, states: vec![99], ..Default::default() };
        let refused = operator.subscriptions().list_subscriptions(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["page_size", "states[0]", "tenant_id"]);
        let request = proto::ListEventsRequest { page_size: -1, ..Default::default() };
        let refused = operator.events().list_events(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["page_size", "tenant_id"]);
        let refused = operator.events().get_event(proto::GetEventRequest::default()).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["event_id", "tenant_id"]);
        let request = proto::ListDeliveriesRequest { page_size: -1, ..Default::default() };
        let refused = operator.deliveries().list_deliveries(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["page_size", "tenant_id"]);
        let request = proto::WatchDeliveriesRequest { states: vec![99], ..Default::default() };
        let refused = operator.deliveries().watch_deliveries(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["states[0]", "tenant_id"]);
        let request = proto::ListSuppressionsRequest { page_size: -1, address: "x".into(), ..Default::default() };
        let refused = operator.suppressions().list_suppressions(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["address", "page_size", "tenant_id"]);
        let refused = operator.suppressions().create_suppression(proto::CreateSuppressionRequest::default()).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["suppression.address", "suppression.tenant_id"]);
        let refused = operator.suppressions().delete_suppression(proto::DeleteSuppressionRequest::default()).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["address", "tenant_id"]);
        let feedback = proto::Feedback { address: "x".into(), ..Default::default() };
        let request = proto::ReportFeedbackRequest {
            report: Some(proto::report_feedback_request::Report::Feedback(feedback)),
            ..Default::default()
        };
        let refused = operator.suppressions().report_feedback(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["feedback.address", "feedback.kind", "tenant_id"]);
        let request = proto::PreviewEmailRequest { data_json: "{".into(), template: "{% block".into(), ..Default::default() };
        let refused = operator.subscriptions().preview_email(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["data_json", "template", "tenant_id"]);

        // Calls without the id of what they are about.
        let request = proto::RotateSecretRequest { overlap: negative, signing_secret: "x".into(), ..Default::default() };
        let refused = operator.subscriptions().rotate_secret(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["overlap", "signing_secret", "subscription_id", "tenant_id"]);
        let request = proto::GetSubscriptionStatsRequest { window: negative, ..Default::default() };
        let refused = operator.subscriptions().get_subscription_stats(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["subscription_id", "tenant_id", "window"]);
        let request = proto::ListAttemptsRequest { page_size: -4, ..Default::default() };
        let refused = operator.deliveries().list_attempts(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["delivery_id", "page_size", "tenant_id"]);
        app.stop().await;
    }
}

on_both! {
    async fn an_update_of_nothing_tells_what_else_is_wrong(database: Database) {
        let app = App::start(database).await;
        let mask = |paths: &[&str]| Some(prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
        let policy = Some(proto::RetryPolicy { jitter: Some(3.0), ..Default::default() });
        // What is not changed is not judged, and a mask stands for what is there.
        let webhook = proto::WebhookChannel {
            url: "https://hooks.company.com/?***".into(),
            max_in_flight: -1,
            payload_format: 99,
            ..Default::default()
        };
        let subscription = proto::Subscription {
            channel: Some(proto::subscription::Channel::Webhook(webhook)),
            retry_policy: policy.clone(),
            ..Default::default()
        };
        let request = proto::UpdateSubscriptionRequest {
            subscription: Some(subscription),
            update_mask: mask(&["webhook.url", "webhook.max_in_flight", "retry_policy", "nonsense"]),
        };
        let refused = app.operator.subscriptions().update_subscription(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), [
            "subscription.id",
            "subscription.retry_policy.jitter",
            "subscription.tenant_id",
            "subscription.webhook.max_in_flight",
            "update_mask",
        ]);
        let tenant = proto::Tenant { primary_contact: "x".into(), retry_policy: policy.clone(), ..Default::default() };
        let request = proto::UpdateTenantRequest { tenant: Some(tenant), ..Default::default() };
        let refused = app.operator.tenants().update_tenant(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["tenant.id", "tenant.primary_contact", "tenant.retry_policy.jitter"]);
        let event_type = proto::EventType { json_schema: "{".into(), retry_policy: policy, ..Default::default() };
        let request = proto::UpdateEventTypeRequest { event_type: Some(event_type), update_mask: mask(&["*"]) };
        let refused = app.operator.catalog().update_event_type(request).await.expect_err("refused");
        assert_eq!(wrong(&refused), ["event_type.json_schema", "event_type.name", "event_type.retry_policy.jitter"]);
        app.stop().await;
    }
}

on_both! {
    async fn addresses_that_no_delivery_would_reach_are_not_stored(database: Database) {
        let options = tidings::config::Options {
            allow_cidrs: vec!["10.1.0.0/16".parse().expect("a network")],
            deny_cidrs: vec!["10.1.2.0/24".parse().expect("a network")],
            ..crate::support::app::options(&database)
        };
        let app = App::start_with(database, &options).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let subscription = |url: &str| proto::Subscription {
            tenant_id: tenant.id.clone(),
            event_types: vec!["*".into()],
            channel: Some(proto::subscription::Channel::Webhook(proto::WebhookChannel {
                url: url.into(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let create = |url: &str| proto::CreateSubscriptionRequest {
            subscription: Some(subscription(url)),
            ..Default::default()
        };
        let kept = app.operator.subscriptions().create_subscription(create("https://10.1.1.1/")).await;
        let kept = kept.expect("opened by allow_cidrs").into_inner().subscription.expect("a subscription");
        let refused_urls =
            ["https://10.0.0.1/", "https://169.254.169.254/a", "https://[::1]:8443/", "https://127.0.0.1/", "https://10.1.2.3/"];
        let mut messages = std::collections::BTreeSet::new();
        for url in refused_urls {
            let created = app.operator.subscriptions().create_subscription(create(url)).await;
            let update = proto::UpdateSubscriptionRequest {
                subscription: Some(proto::Subscription { id: kept.id.clone(), ..subscription(url) }),
                update_mask: Some(prost_types::FieldMask { paths: vec!["webhook.url".into()] }),
            };
            let updated = app.operator.subscriptions().update_subscription(update).await;
            let of_tenant = proto::Tenant { webhook_url: url.into(), ..tenant.clone() };
            let new_tenant = proto::CreateTenantRequest { tenant: Some(of_tenant.clone()) };
            let tenant_created = app.operator.tenants().create_tenant(new_tenant).await;
            let update = proto::UpdateTenantRequest {
                tenant: Some(of_tenant),
                update_mask: Some(prost_types::FieldMask { paths: vec!["webhook_url".into()] }),
            };
            let tenant_updated = app.operator.tenants().update_tenant(update).await;
            for (status, field) in [
                (created.expect_err("refused"), "subscription.webhook.url"),
                (updated.expect_err("refused"), "subscription.webhook.url"),
                (tenant_created.expect_err("refused"), "tenant.webhook_url"),
                (tenant_updated.expect_err("refused"), "tenant.webhook_url"),
            ] {
                assert_eq!(explain(&status), (Code::InvalidArgument, "INVALID_FIELDS".into(), vec![field.into()]), "{url}");
                let details = status.get_error_details();
                messages.insert(details.bad_request().expect("violations").field_violations[0].description.clone());
            }
        }
        assert_eq!(messages.len(), 1, "the same words for every address: {messages:?}");
        app.stop().await;
    }
}

on_both! {
    async fn masks_pages_and_tokens_are_checked(database: Database) {
        let app = App::start(database).await;
        let (tenant, other) = (app.operator.create_tenant("Acme").await, app.operator.create_tenant("Globex").await);
        for _ in 0..5 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
        }
        let list = |tenant_id: &str, page_size, page_token: &str| proto::ListEventsRequest {
            tenant_id: tenant_id.into(),
            page_size,
            page_token: page_token.into(),
            ..Default::default()
        };
        let negative = app.operator.events().list_events(list(&tenant.id, -1, "")).await.expect_err("refused");
        assert_eq!(explain(&negative), (Code::InvalidArgument, "INVALID_FIELDS".into(), vec!["page_size".into()]));
        let first = app.operator.events().list_events(list(&tenant.id, 3, "")).await.expect("listed").into_inner();
        assert_eq!(first.events.len(), 3);
        let second = app.operator.events().list_events(list(&tenant.id, 3, &first.next_page_token)).await.expect("listed").into_inner();
        assert_eq!((second.events.len(), second.next_page_token.as_str()), (2, ""));
        let filtered = proto::ListEventsRequest { subject: "x".into(), ..list(&tenant.id, 3, &first.next_page_token) };
        for request in [list(&other.id, 3, &first.next_page_token), filtered, list(&tenant.id, 3, "bm9uc2Vuc2U")] {
            let refused = app.operator.events().list_events(request).await.expect_err("refused");
            assert_eq!(explain(&refused).1, "PAGE_TOKEN_INVALID");
        }
        let update = proto::UpdateTenantRequest {
            tenant: Some(tenant.clone()),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into(), "nonsense".into(), "create_time".into()] }),
        };
        let (_, reason, fields) = explain(&app.operator.tenants().update_tenant(update).await.expect_err("refused"));
        assert_eq!(reason, "INVALID_FIELDS");
        assert_eq!(fields.len(), 2, "{fields:?}");
        app.stop().await;
    }
}

on_both! {
    async fn etags_protect_against_lost_updates(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let update = |display_name: &str, etag: &str| proto::UpdateTenantRequest {
            tenant: Some(proto::Tenant {
                display_name: display_name.into(),
                etag: etag.into(),
                environment: "ignored by the mask".into(),
                ..tenant.clone()
            }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        };
        let updated = app.operator.tenants().update_tenant(update("First", &tenant.etag)).await.expect("updated").into_inner();
        let updated = updated.tenant.expect("a tenant");
        assert_eq!((updated.display_name.as_str(), updated.environment.as_str()), ("First", ""));
        assert_ne!(updated.etag, tenant.etag);
        let lost = app.operator.tenants().update_tenant(update("Second", &tenant.etag)).await.expect_err("stale");
        assert_eq!(explain(&lost), (Code::Aborted, "ETAG_MISMATCH".into(), vec![]));
        app.operator.tenants().update_tenant(update("Third", "")).await.expect("no etag, no check");
        app.stop().await;
    }
}

on_both! {
    async fn what_comes_later_says_so(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], "https://hooks.company.com/").await;
        let check = proto::CheckSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id };
        let poll = proto::PollEventsRequest { tenant_id: tenant.id.clone(), consumer: "c".into(), ..Default::default() };
        let import = proto::ImportCatalogRequest { tenant_id: tenant.id, ..Default::default() };
        for status in [
            app.operator.subscriptions().check_subscription(check).await.expect_err("later"),
            app.operator.events().poll_events(poll).await.expect_err("later"),
            app.operator.catalog().import_catalog(import).await.expect_err("later"),
        ] {
            assert_eq!(explain(&status), (Code::Unimplemented, "NOT_IMPLEMENTED".into(), vec![]));
        }
        app.stop().await;
    }
}
