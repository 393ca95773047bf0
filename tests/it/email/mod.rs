//! Mail from Emit to the server that takes it, through the whole service.

mod foreign;
mod hostile;
mod outcomes;
mod relays;
mod rpcs;

use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};
use tidings::channel::email;

use crate::support::app::{options, quick_retries};
use crate::support::{App, Client, Database};

/// Who sends in these tests.
const SENDER: &str = "Tidings <no-reply@tidings.company.com>";

/// How mail is sent by way of `urls`, in order of preference.
fn by_way_of(urls: &[&str]) -> email::Config {
    email::Config {
        servers: urls.iter().map(|url| url.parse().expect("a server")).collect(),
        sender: Some(SENDER.parse().expect("a sender")),
        ..email::Config::default()
    }
}

/// The service, sending mail as `email` says.
async fn start(database: Database, email: email::Config) -> App {
    let mut config = options(&database).config();
    config.email = email;
    App::start_configured(database, config).await
}

/// A channel to these addresses.
fn channel(recipients: &[&str]) -> proto::EmailChannel {
    let recipients = recipients.iter().map(ToString::to_string).collect();
    proto::EmailChannel { recipients, ..Default::default() }
}

/// A subscription to everything, by mail, that is yet to be made.
fn by_mail(tenant_id: &str, channel: proto::EmailChannel) -> proto::Subscription {
    proto::Subscription {
        tenant_id: tenant_id.into(),
        display_name: "by mail".into(),
        event_types: vec!["*".into()],
        channel: Some(proto::subscription::Channel::Email(channel)),
        retry_policy: Some(quick_retries(5)),
        ..Default::default()
    }
}

async fn create(
    client: &Client,
    subscription: proto::Subscription,
) -> Result<proto::CreateSubscriptionResponse, tonic::Status> {
    let request =
        proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    Ok(client.subscriptions().create_subscription(request).await?.into_inner())
}

/// A tenant with a subscription to everything, by mail to these addresses.
async fn subscribed(
    app: &App,
    channel: proto::EmailChannel,
) -> (proto::Tenant, proto::Subscription) {
    let tenant = app.operator.create_tenant("Acme").await;
    let created = create(&app.operator, by_mail(&tenant.id, channel)).await.expect("created");
    (tenant, created.subscription.expect("a subscription"))
}

/// Waits until none of the event's deliveries is under way; returns them by recipient.
async fn settled(app: &App, tenant_id: &str, event_id: &str) -> Vec<proto::Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..6_000 {
        deliveries = app.operator.deliveries_of(tenant_id, event_id).await;
        let is_over = |delivery: &proto::Delivery| {
            !matches!(delivery.state(), DeliveryState::Scheduled | DeliveryState::Delivering)
        };
        if !deliveries.is_empty() && deliveries.iter().all(is_over) {
            deliveries.sort_by(|one, other| one.recipient.cmp(&other.recipient));
            return deliveries;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the deliveries never ended: {deliveries:?}");
}

/// The same for the only delivery of an event, with its attempts.
async fn only(
    app: &App,
    tenant_id: &str,
    event_id: &str,
) -> (proto::Delivery, Vec<proto::Attempt>) {
    let mut deliveries = settled(app, tenant_id, event_id).await;
    assert_eq!(deliveries.len(), 1, "{deliveries:?}");
    let delivery = deliveries.remove(0);
    let attempts = app.operator.attempts(tenant_id, &delivery.id).await;
    (delivery, attempts)
}
