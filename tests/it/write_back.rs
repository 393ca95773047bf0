//! Who reads a resource, changes nothing, and writes all of it back has changed nothing: an update
//! with the mask `*`, for each resource and each channel.

use tidings::api::proto;

use crate::support::app::{explain, quick_retries};
use crate::support::{App, Database};

fn everything() -> prost_types::FieldMask {
    prost_types::FieldMask { paths: vec!["*".into()] }
}

async fn write_back(app: &App, subscription: &proto::Subscription) -> proto::Subscription {
    let request = proto::UpdateSubscriptionRequest {
        subscription: Some(subscription.clone()),
        update_mask: Some(everything()),
    };
    let updated = app.operator.subscriptions().update_subscription(request).await;
    updated.expect("updated").into_inner().subscription.expect("a subscription")
}

fn by_webhook(tenant_id: &str, webhook: proto::WebhookChannel) -> proto::Subscription {
    proto::Subscription {
        tenant_id: tenant_id.into(),
        display_name: "test".into(),
        event_types: vec!["billing.*".into(), "user.created".into()],
        channel: Some(proto::subscription::Channel::Webhook(webhook)),
        retry_policy: Some(quick_retries(3)),
        labels: [("team".to_owned(), "billing".to_owned())].into(),
        ..Default::default()
    }
}

fn by_mail(tenant_id: &str, email: proto::EmailChannel) -> proto::Subscription {
    let channel = Some(proto::subscription::Channel::Email(email));
    proto::Subscription { channel, ..by_webhook(tenant_id, proto::WebhookChannel::default()) }
}

async fn create(app: &App, subscription: proto::Subscription) -> proto::Subscription {
    let request =
        proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    let created = app.operator.subscriptions().create_subscription(request).await;
    created.expect("created").into_inner().subscription.expect("a subscription")
}

on_both! {
    async fn a_subscription_that_is_written_back_is_as_it_was(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let full = proto::WebhookChannel {
            url: "https://hooks.company.com/a?token=s3cret".into(),
            signatures: vec![
                proto::SignatureScheme::HmacSha256Hex.into(),
                proto::SignatureScheme::Stripe.into(),
            ],
            signature_header: "x-sig".into(),
            stripe_signature_header: "x-stripe".into(),
            payload_format: proto::PayloadFormat::Flat.into(),
            headers: [("x-key".to_owned(), "s3cret".to_owned())].into(),
            timeout: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            max_in_flight: 3,
            max_requests_per_second: 0.5,
        };
        let bare = proto::WebhookChannel { url: "https://hooks.company.com/".into(), ..Default::default() };
        let mail = proto::EmailChannel {
            recipients: vec!["ada@company.com, bob@company.com".into()],
            template: "{% block subject %}Paid{% endblock %}".into(),
            reply_to: "billing@company.com".into(),
            digest: Some(proto::EmailDigest { interval: None, max_per_hour: 2 }),
        };
        for subscription in [
            by_webhook(&tenant.id, full),
            by_webhook(&tenant.id, bare),
            by_mail(&tenant.id, mail),
            by_mail(&tenant.id, proto::EmailChannel { recipients: vec!["ada@company.com".into()], ..Default::default() }),
        ] {
            let created = create(&app, subscription).await;
            let read = app.operator.subscription(&created).await;
            // The etag is the same, too: there was nothing to change.
            assert_eq!(write_back(&app, &read).await, read);
            assert_eq!(app.operator.subscription(&created).await, read);
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_star_clears_what_is_not_set_and_turns_no_channel_into_the_other(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel {
            url: "https://hooks.company.com/".into(),
            headers: [("x-key".to_owned(), "s3cret".to_owned())].into(),
            max_in_flight: 3,
            ..Default::default()
        };
        let mail = proto::EmailChannel {
            recipients: vec!["ada@company.com".into()],
            reply_to: "billing@company.com".into(),
            ..Default::default()
        };
        let of_webhook = create(&app, by_webhook(&tenant.id, webhook.clone())).await;
        let of_mail = create(&app, by_mail(&tenant.id, mail.clone())).await;

        let less = proto::WebhookChannel { url: webhook.url.clone(), ..Default::default() };
        let less = proto::Subscription {
            id: of_webhook.id.clone(),
            tenant_id: tenant.id.clone(),
            event_types: vec!["*".into()],
            channel: Some(proto::subscription::Channel::Webhook(less)),
            ..Default::default()
        };
        let cleared = write_back(&app, &less).await;
        let Some(proto::subscription::Channel::Webhook(read)) = &cleared.channel else { panic!("a webhook") };
        assert_eq!((read.max_in_flight, read.headers.len()), (16, 0));
        assert_eq!((cleared.display_name.as_str(), cleared.labels.len(), &cleared.retry_policy), ("", 0, &None));

        let less = proto::EmailChannel { recipients: mail.recipients.clone(), ..Default::default() };
        let less = proto::Subscription { id: of_mail.id.clone(), ..by_mail(&tenant.id, less) };
        let cleared = write_back(&app, &less).await;
        let Some(proto::subscription::Channel::Email(read)) = &cleared.channel else { panic!("a mail") };
        assert_eq!(read.reply_to, "");

        for (changed, field) in [
            (proto::Subscription { id: of_webhook.id, ..by_mail(&tenant.id, mail) }, "subscription.email"),
            (proto::Subscription { id: of_mail.id, ..by_webhook(&tenant.id, webhook) }, "subscription.webhook"),
        ] {
            let request = proto::UpdateSubscriptionRequest { subscription: Some(changed), update_mask: Some(everything()) };
            let refused = app.operator.subscriptions().update_subscription(request).await.expect_err("refused");
            assert_eq!(explain(&refused).2, [field]);
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_tenant_and_an_event_type_that_are_written_back_are_as_they_were(database: Database) {
        let app = App::start(database).await;
        let tenant = proto::Tenant {
            display_name: "Acme".into(),
            environment: "production".into(),
            account_id: Some(0),
            primary_contact: "ops@company.com".into(),
            webhook_url: "https://hooks.company.com/?token=s3cret".into(),
            labels: [("plan".to_owned(), "gold".to_owned())].into(),
            retry_policy: Some(quick_retries(2)),
            locale: "de".into(),
            time_zone: "Europe/Vienna".into(),
            primary_contact_exclusions: vec!["billing.*".into()],
            ..Default::default()
        };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let created = app.operator.tenants().create_tenant(request).await.expect("created").into_inner().tenant;
        let read = proto::GetTenantRequest { tenant_id: created.expect("a tenant").id };
        let read = app.operator.tenants().get_tenant(read).await.expect("read").into_inner().tenant;
        let request = proto::UpdateTenantRequest { tenant: read.clone(), update_mask: Some(everything()) };
        let written = app.operator.tenants().update_tenant(request).await.expect("updated").into_inner().tenant;
        assert_eq!(written, read);

        let event_type = proto::EventType {
            tenant_id: read.expect("a tenant").id,
            name: "billing.paid".into(),
            description: "An invoice was paid.".into(),
            category: "Billing".into(),
            since: "v1".into(),
            status: proto::EventTypeStatus::Beta.into(),
            json_schema: r#"{"type":"object"}"#.into(),
            retry_policy: Some(quick_retries(1)),
            recommended_channels: vec![proto::Channel::Email.into()],
            guidance: "Thank them.".into(),
            email_template: "{% block subject %}Paid{% endblock %}".into(),
            ..Default::default()
        };
        let request = proto::CreateEventTypeRequest { event_type: Some(event_type) };
        let created = app.operator.catalog().create_event_type(request).await.expect("created").into_inner().event_type;
        let request = proto::UpdateEventTypeRequest { event_type: created.clone(), update_mask: Some(everything()) };
        let written = app.operator.catalog().update_event_type(request).await.expect("updated").into_inner().event_type;
        assert_eq!(written, created);
        app.stop().await;
    }
}
