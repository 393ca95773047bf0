//! Sealed rows that do not open: a ciphertext in another row's place fails that row's deliveries, and
//! nothing else; nor does a row that is no valid document hold up other tenants, or their watchers. And
//! what is sealed is opened when settings change, not for every delivery.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings::api::proto::{self, DeliveryState, ErrorKind, WatchDeliveriesRequest};
use tonic::Code;

use crate::support::app::explain;
use crate::support::make::feed_row;
use crate::support::{App, Database, Receiver, Reply};
use crate::watch::{next, read_until_succeeded, watch};

/// Exchanges the sealed columns of two rows.
async fn exchange(database: &Database, table: &str, one: &str, other: &str) {
    for (target, source) in [(one, other), (other, one)] {
        // The first statement keeps what the second one needs.
        let keep = format!("CREATE TABLE kept AS SELECT id, sealed FROM {table}");
        if target == one {
            database.execute(&keep).await;
        }
        let sql = format!(
            "UPDATE {table} SET sealed = (SELECT sealed FROM kept WHERE id = '{source}') WHERE id = '{target}'"
        );
        database.execute(&sql).await;
    }
    database.execute("DROP TABLE kept").await;
}

/// Many quick retries: a row is restored while they go on.
fn patient() -> proto::RetryPolicy {
    let interval = prost_types::Duration { seconds: 0, nanos: 300_000_000 };
    let schedule = proto::retry_policy::Schedule { intervals: vec![interval] };
    proto::RetryPolicy {
        max_retries: Some(100),
        jitter: Some(0.0),
        backoff: Some(proto::retry_policy::Backoff::Schedule(schedule)),
    }
}

fn webhook(receiver: &Receiver, name: &str) -> proto::WebhookChannel {
    proto::WebhookChannel {
        url: format!("{}?token={name}", receiver.url()),
        headers: [("X-Name".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

/// The delivery of `event_id` to `subscription_id`, once it has been attempted.
async fn attempted(
    app: &App,
    tenant: &str,
    event_id: &str,
    subscription_id: &str,
) -> proto::Delivery {
    for _ in 0..1_000 {
        let deliveries = app.operator.deliveries_of(tenant, event_id).await;
        let found = deliveries.into_iter().find(|d| d.subscription_id == subscription_id);
        let found = found.expect("a delivery");
        if found.attempt_count > 0 {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the delivery was never attempted");
}

on_both! {
    async fn a_swapped_ciphertext_fails_its_deliveries_alone(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await.id;
        let mut ids = Vec::new();
        for name in ["one", "other"] {
            let channel = webhook(&receiver, name);
            let (made, _) = app.operator.subscribe_with(&tenant, &["*"], channel, Some(patient())).await;
            ids.push(made.id);
        }
        exchange(&app.database, "subscriptions", &ids[0], &ids[1]).await;
        // A change that everybody sees has the settings read anew.
        let (good, _) = app.operator.subscribe_with(&tenant, &["*"], webhook(&receiver, "good"), None).await;

        let event = app.operator.emit(&tenant, "user.created", "{}").await;
        assert_eq!(event.delivery_count, 3);
        let arrived = receiver.wait_for(1).await;
        assert_eq!(arrived[0].header("x-name"), "good");
        for id in &ids {
            let delivery = attempted(&app, &tenant, &event.event_id, id).await;
            assert_ne!(delivery.state(), DeliveryState::Failed, "it is retried by its policy");
            let attempt = app.operator.attempts(&tenant, &delivery.id).await.remove(0);
            assert_eq!(attempt.error_kind(), ErrorKind::Configuration);
            assert!(attempt.error_message.contains("An operator has to restore it"), "{attempt:?}");
            for name in ["one", "other"] {
                assert!(!format!("{attempt:?}").contains(&format!("token={name}")));
            }
        }
        assert_eq!(attempted(&app, &tenant, &event.event_id, &good.id).await.state(), DeliveryState::Succeeded);
        assert_eq!(receiver.requests().len(), 1, "nothing went to the wrong endpoint");

        // What can be shown is shown, and what can be done without the secrets can be done.
        let mut subscriptions = app.operator.subscriptions();
        let get = proto::GetSubscriptionRequest { tenant_id: tenant.clone(), subscription_id: ids[0].clone() };
        let shown = subscriptions.get_subscription(get).await.expect("shown").into_inner();
        let mut shown = shown.subscription.expect("a subscription");
        let Some(proto::subscription::Channel::Webhook(channel)) = &shown.channel else { panic!("a webhook") };
        assert!(channel.url.ends_with("/***") && channel.headers["X-Name"] == "***", "{channel:?}");
        let list = proto::ListSubscriptionsRequest { tenant_id: tenant.clone(), ..Default::default() };
        let listed = subscriptions.list_subscriptions(list).await.expect("listed").into_inner();
        assert_eq!(listed.subscriptions.len(), 3);
        // Written back with another name.
        shown.display_name = "renamed".into();
        let update = proto::UpdateSubscriptionRequest { subscription: Some(shown.clone()), ..Default::default() };
        let renamed = subscriptions.update_subscription(update).await.expect("changed").into_inner();
        assert_eq!(renamed.subscription.expect("a subscription").display_name, "renamed");
        let other_url = proto::Subscription {
            channel: Some(proto::subscription::Channel::Webhook(webhook(&receiver, "new"))),
            etag: String::new(),
            ..shown.clone()
        };
        let update = proto::UpdateSubscriptionRequest { subscription: Some(other_url), ..Default::default() };
        let refused = subscriptions.update_subscription(update).await.expect_err("refused");
        assert_eq!(explain(&refused).1, "SUBSCRIPTION_UNREADABLE");
        let rotate = proto::RotateSecretRequest { tenant_id: tenant.clone(), subscription_id: ids[0].clone(), ..Default::default() };
        let refused = subscriptions.rotate_secret(rotate).await.expect_err("refused");
        assert_eq!(explain(&refused), (Code::FailedPrecondition, "SUBSCRIPTION_UNREADABLE".into(), vec![]));
        let test = proto::TestSubscriptionRequest { tenant_id: tenant.clone(), subscription_id: ids[0].clone() };
        let tested = subscriptions.test_subscription(test).await.expect("tried").into_inner();
        assert_eq!(tested.attempt.expect("an attempt").error_kind(), ErrorKind::Configuration);

        // Restored, the deliveries go on by themselves.
        exchange(&app.database, "subscriptions", &ids[0], &ids[1]).await;
        let arrived = receiver.wait_for(3).await;
        let mut names: Vec<_> = arrived.iter().map(|request| request.header("x-name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["good", "one", "other"]);
        for request in &arrived {
            assert!(request.target.ends_with(&format!("?token={}", request.header("x-name"))));
        }
        app.stop().await;
    }
}

on_both! {
    /// The tenant's URL in another tenant's place: its subscriptions without a URL fail alone.
    async fn a_swapped_tenant_fails_what_needs_its_url_alone(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let mut tenants = Vec::new();
        for name in ["one", "other"] {
            let tenant = proto::Tenant {
                display_name: name.into(),
                webhook_url: format!("{}?token={name}", receiver.url()),
                ..Default::default()
            };
            let request = proto::CreateTenantRequest { tenant: Some(tenant) };
            let made = app.operator.tenants().create_tenant(request).await.expect("made").into_inner();
            tenants.push(made.tenant.expect("a tenant").id);
        }
        exchange(&app.database, "tenants", &tenants[0], &tenants[1]).await;
        let shared = proto::WebhookChannel::default();
        let of_its_own = webhook(&receiver, "own");
        let (needs_it, _) = app.operator.subscribe_with(&tenants[0], &["*"], of_its_own.clone(), Some(patient())).await;
        let create = proto::CreateSubscriptionRequest {
            subscription: Some(proto::Subscription {
                tenant_id: tenants[0].clone(),
                event_types: vec!["*".into()],
                channel: Some(proto::subscription::Channel::Webhook(shared)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let refused = app.operator.subscriptions().create_subscription(create.clone()).await;
        assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
        let event = app.operator.emit(&tenants[0], "user.created", "{}").await;
        let delivery = attempted(&app, &tenants[0], &event.event_id, &needs_it.id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);

        // A URL that is set anew mends the tenant.
        let get = proto::GetTenantRequest { tenant_id: tenants[0].clone() };
        let shown = app.operator.tenants().get_tenant(get).await.expect("shown").into_inner();
        let mut tenant = shown.tenant.expect("a tenant");
        assert_eq!(tenant.webhook_url, "");
        tenant.webhook_url = format!("{}?token=new", receiver.url());
        let update = proto::UpdateTenantRequest { tenant: Some(tenant), ..Default::default() };
        app.operator.tenants().update_tenant(update).await.expect("mended");
        app.operator.subscriptions().create_subscription(create).await.expect("it has a URL again");
        app.operator.emit(&tenants[0], "user.created", "{}").await;
        let arrived = receiver.wait_for(3).await;
        assert!(arrived.iter().any(|request| request.target.ends_with("?token=new")));
        assert!(arrived.iter().all(|request| !request.target.ends_with("=one") && !request.target.ends_with("=other")));
        app.stop().await;
    }
}

/// How many sealed rows have been opened.
async fn opened(app: &App) -> u64 {
    let served = app.metrics().await;
    let line = served.lines().find(|line| line.starts_with("tidings_secrets_opened_total"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.and_then(|value| value.parse().ok()).expect("a count")
}

on_both! {
    async fn a_delivery_opens_nothing(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await.id;
        app.operator.subscribe(&tenant, &["*"], &receiver.url()).await;
        app.operator.emit(&tenant, "user.created", "{}").await;
        receiver.wait_for(1).await;
        let before = opened(&app).await;
        assert!(before > 0, "the settings were read");
        for count in 2..=101 {
            // A tenant's key names its tenant itself; an operator's call looks the tenant up.
            app.operator.emit(&tenant, "user.created", "{}").await;
            receiver.wait_for(count).await;
        }
        assert_eq!(opened(&app).await, before, "100 deliveries opened something");
        app.operator.subscribe(&tenant, &["*"], &receiver.url()).await;
        app.operator.emit(&tenant, "user.created", "{}").await;
        receiver.wait_for(103).await;
        assert!(opened(&app).await > before, "a change has the settings read anew");
        app.stop().await;
    }
}

on_both! {
    async fn a_row_that_is_no_document_holds_up_no_other_tenant(database: Database) {
        let app = App::start(database).await;
        let is_well = Arc::new(AtomicBool::new(false));
        let ill = Arc::clone(&is_well);
        let receiver = Receiver::scripted(move |_, _| {
            Reply::status(if ill.load(Ordering::SeqCst) { 200 } else { 500 })
        })
        .await;
        let (spoilt, sound) = (app.operator.create_tenant("A").await, app.operator.create_tenant("B").await);
        let mut subscriptions = Vec::new();
        for tenant in [&spoilt, &sound] {
            let webhook = webhook(&receiver, "all");
            let (subscription, _) =
                app.operator.subscribe_with(&tenant.id, &["*"], webhook, Some(patient())).await;
            app.operator.emit(&tenant.id, "user.created", "{}").await;
            subscriptions.push(subscription);
        }
        receiver.wait_for(2).await;
        let id = &subscriptions[0].id;
        let spoil = format!("UPDATE subscriptions SET channel = '{{}}' WHERE id = '{id}'");
        app.database.execute(&spoil).await;
        let changed = format!("UPDATE tenant_config SET version = version + 1 WHERE tenant_id = '{}'", spoilt.id);
        app.database.execute(&changed).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        is_well.store(true, Ordering::SeqCst);
        let all = app.operator.wait_for_all(&subscriptions[1], DeliveryState::Succeeded).await;
        assert_eq!(all.len(), 1);
        app.stop().await;
    }
}

on_both! {
    /// As an attempt of a newer version would write it that this one does not know: the tenant's watchers are told,
    /// and can watch what comes after it; others hear nothing of it.
    async fn a_row_of_the_feed_that_cannot_be_read_silences_no_other_tenant(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let mut watched = Vec::new();
        // Several, so that some of them are looked at after the spoilt one, in whichever order.
        for name in ["A", "B", "C", "D"] {
            let tenant = app.operator.create_tenant(name).await;
            app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
            let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
            let mut stream = watch(&app.operator, request.clone()).await;
            assert!(next(&mut stream).await.delivery.is_none(), "first a checkpoint");
            watched.push((tenant.id, request, stream));
        }
        let (spoilt, request, mut stream) = watched.remove(0);
        for sql in feed_row(&spoilt, "[[\"of another version\"]]") {
            app.database.execute(&sql).await;
        }
        let told = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("in time");
        assert_eq!(told.expect_err("told").code(), Code::Internal);
        for (tenant_id, _, stream) in &mut watched {
            app.operator.emit(tenant_id, "user.created", "{}").await;
            read_until_succeeded(stream, &mut HashMap::new(), &mut 0, 1).await;
        }
        let mut stream = watch(&app.operator, request).await;
        app.operator.emit(&spoilt, "user.created", "{}").await;
        read_until_succeeded(&mut stream, &mut HashMap::new(), &mut 0, 1).await;
        app.stop().await;
    }
}
