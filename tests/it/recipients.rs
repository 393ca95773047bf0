//! Whom mail reaches: recipients of subscriptions, the primary contact, nobody who has asked for
//! nothing more, and one message for a window of events.

use std::path::Path;
use std::time::{Duration, Instant};

use tidings::api::proto::{self, DeliveryState, subscription};

use crate::support::app::{explain, options};
use crate::support::http;
use crate::support::{App, Client, Database, Receiver};

/// A service that puts its messages into `folder`.
async fn with_mail(database: Database, folder: &Path) -> App {
    let mut config = options(&database).config();
    let url = format!("file://{}", folder.display());
    config.email.servers = vec![url.parse().expect("a folder")];
    config.email.sender = Some("Company <no-reply@company.com>".parse().expect("a sender"));
    config.dispatch.public_url = Some("https://tidings.company.com".into());
    App::start_configured(database, config).await
}

async fn subscribe(
    client: &Client,
    tenant_id: &str,
    types: &[&str],
    email: proto::EmailChannel,
) -> proto::Subscription {
    let subscription = proto::Subscription {
        tenant_id: tenant_id.into(),
        event_types: types.iter().map(ToString::to_string).collect(),
        channel: Some(subscription::Channel::Email(email)),
        ..Default::default()
    };
    let request =
        proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    let created = client.subscriptions().create_subscription(request).await.expect("created");
    created.into_inner().subscription.expect("a subscription")
}

fn to(recipients: &[&str]) -> proto::EmailChannel {
    let recipients = recipients.iter().map(ToString::to_string).collect();
    proto::EmailChannel { recipients, ..Default::default() }
}

async fn with_contact(client: &Client, contact: &str, exclusions: &[&str]) -> proto::Tenant {
    let tenant = proto::Tenant {
        display_name: "Acme".into(),
        primary_contact: contact.into(),
        primary_contact_exclusions: exclusions.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let request = proto::CreateTenantRequest { tenant: Some(tenant) };
    client.tenants().create_tenant(request).await.expect("created").into_inner().tenant.expect("it")
}

/// The messages in `folder`, whole.
fn messages(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).expect("a folder");
    let mut messages: Vec<_> = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
        .map(|path| String::from_utf8(std::fs::read(path).expect("a message")).expect("ASCII"))
        .collect();
    messages.sort();
    messages
}

/// The value of a header, unfolded.
fn header(message: &str, name: &str) -> String {
    let head = message.split("\r\n\r\n").next().expect("a head").replace("\r\n ", " ");
    let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).to_owned()
}

/// Recipients of an event's deliveries in order, once all of them have succeeded.
async fn recipients(client: &Client, tenant_id: &str, event_id: &str) -> Vec<String> {
    let ended = ended(client, tenant_id, event_id).await;
    assert!(ended.iter().all(|(_, state, _)| *state == DeliveryState::Succeeded), "{ended:?}");
    ended.into_iter().map(|(recipient, ..)| recipient).collect()
}

on_both! {
    async fn the_primary_contact_gets_every_event_once(database: Database) {
        let folder = tempfile::tempdir().expect("a folder");
        let app = with_mail(database, folder.path()).await;
        let (client, receiver) = (&app.operator, Receiver::answering(200).await);
        let tenant = with_contact(client, "Ops@company.com", &["noise.*"]).await;
        client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        subscribe(client, &tenant.id, &["billing.*"], to(&["ops@company.com, books@company.com", "books@COMPANY.com"])).await;
        for (event_type, expected) in [
            // The subscription names the contact: no second message.
            ("billing.paid", &["", "books@company.com", "ops@company.com"][..]),
            ("user.created", &["", "Ops@company.com"]),
            ("noise.made", &[""]),
        ] {
            let emitted = client.emit(&tenant.id, event_type, r#"{"name":"Ada"}"#).await;
            assert_eq!(usize::try_from(emitted.delivery_count), Ok(expected.len()), "{event_type}");
            assert_eq!(recipients(client, &tenant.id, &emitted.event_id).await, expected, "{event_type}");
        }
        assert_eq!((messages(folder.path()).len(), receiver.requests().len()), (3, 3));

        // Without a contact nothing is sent to it, from the next event on.
        let request = proto::UpdateTenantRequest {
            tenant: Some(proto::Tenant { id: tenant.id.clone(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["primary_contact".into()] }),
        };
        client.tenants().update_tenant(request).await.expect("updated");
        let emitted = client.emit(&tenant.id, "user.created", "{}").await;
        assert_eq!(recipients(client, &tenant.id, &emitted.event_id).await, [""]);
        app.stop().await;
    }
}

on_both! {
    async fn who_wants_nothing_more_gets_nothing_more(database: Database) {
        let folder = tempfile::tempdir().expect("a folder");
        let app = with_mail(database, folder.path()).await;
        let (client, receiver) = (&app.operator, Receiver::answering(200).await);
        let tenant = with_contact(client, "boss@company.com", &["*"]).await;
        client.subscribe(&tenant.id, &["tidings.recipient.*"], &receiver.url()).await;
        let subscription = subscribe(client, &tenant.id, &["user.*"], to(&["a@company.com", "b@company.com"])).await;
        let suppression = proto::Suppression { tenant_id: tenant.id.clone(), address: "A@company.com".into(), ..Default::default() };
        let request = proto::CreateSuppressionRequest { suppression: Some(suppression) };
        client.suppressions().create_suppression(request).await.expect("created");

        let emitted = client.emit(&tenant.id, "user.created", "{}").await;
        assert_eq!(emitted.delivery_count, 2);
        let states = ended(client, &tenant.id, &emitted.event_id).await;
        assert_eq!(states, [("a@company.com".to_owned(), DeliveryState::Suppressed, 0), ("b@company.com".to_owned(), DeliveryState::Succeeded, 1)]);

        // The link in b's message.
        let sent = messages(folder.path());
        assert_eq!(sent.len(), 1);
        assert_eq!(header(&sent[0], "List-Unsubscribe-Post"), "List-Unsubscribe=One-Click");
        let link = header(&sent[0], "List-Unsubscribe");
        let path = link.trim_matches(['<', '>']).strip_prefix("https://tidings.company.com").expect("the public URL");
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let answer = http::request(app.running.http_addr(), ("POST", path), &form, b"List-Unsubscribe=One-Click").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let emitted = client.emit(&tenant.id, "user.created", "{}").await;
        let states = ended(client, &tenant.id, &emitted.event_id).await;
        assert!(states.iter().all(|(_, state, attempts)| (*state, *attempts) == (DeliveryState::Suppressed, 0)), "{states:?}");
        for delivery in client.deliveries_of(&tenant.id, &emitted.event_id).await {
            assert_eq!(delivery.failure_reason(), proto::FailureReason::Unsubscribed);
            let request = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: delivery.id };
            let refused = client.deliveries().retry_delivery(request).await.expect_err("not on request either");
            assert_eq!(explain(&refused).1, "DELIVERY_NOT_RETRYABLE");
        }
        assert_eq!(messages(folder.path()).len(), 1);
        // The tenant is told, once: what it did itself is no news.
        receiver.wait_for(1).await;
        let told = String::from_utf8_lossy(&receiver.requests()[0].body).into_owned();
        assert!(told.contains("b@company.com") && told.contains(&subscription.id) && told.contains("UNSUBSCRIBED"), "{told}");
        app.stop().await;
    }
}

on_both! {
    /// Windows of a minute: the shortest.
    async fn a_digest_is_one_message_and_each_event_has_its_delivery(database: Database) {
        const EVENTS: usize = 12;
        let folder = tempfile::tempdir().expect("a folder");
        let app = with_mail(database, folder.path()).await;
        let client = &app.operator;
        let tenant = client.create_tenant("Acme").await;
        let digest = Some(proto::EmailDigest { interval: None, max_per_hour: 60 });
        let email = proto::EmailChannel { digest, ..to(&["a@company.com", "b@company.com"]) };
        let subscription = subscribe(client, &tenant.id, &["user.*"], email).await;
        // Not at the end of a window.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        if now % 60 > 40 {
            tokio::time::sleep(Duration::from_secs(61 - now % 60)).await;
        }
        let mut events = Vec::new();
        for number in 0..EVENTS {
            let data = format!(r#"{{"number":{number}}}"#);
            events.push(client.emit(&tenant.id, "user.created", &data).await.event_id);
        }
        let first = &client.deliveries_of(&tenant.id, &events[0]).await[0];
        assert_eq!(first.state(), DeliveryState::Scheduled);
        assert_eq!(first.next_attempt_time.as_ref().expect("a time").seconds % 60, 0, "the end of a minute");
        assert!(messages(folder.path()).is_empty(), "before its time");

        let start = Instant::now();
        while messages(folder.path()).len() < 2 {
            assert!(start.elapsed() < Duration::from_mins(3), "no digest came");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for event in &events {
            assert_eq!(recipients(client, &tenant.id, event).await, ["a@company.com", "b@company.com"]);
        }
        let sent = messages(folder.path());
        assert_eq!(sent.len(), 2, "one for each recipient");
        assert!(sent.iter().all(|message| header(message, "Tidings-Digest") == format!("{EVENTS} events")), "{sent:?}");
        // The digest shows in each attempt: the same answer, and how many events it had.
        let mut replies = std::collections::HashSet::new();
        for delivery in client.deliveries_to(&subscription).await {
            let attempts = client.attempts(&tenant.id, &delivery.id).await;
            assert_eq!(attempts.len(), 1);
            replies.insert(attempts[0].smtp_reply.clone());
            let shown = attempts[0].request_headers.iter().any(|it| it.name == "Tidings-Digest" && it.value == format!("{EVENTS} events"));
            assert!(shown, "{:?}", attempts[0].request_headers);
        }
        assert_eq!(replies.len(), 2, "{replies:?}");
        app.stop().await;
    }
}

on_both! {
    async fn what_no_digest_can_be_is_refused(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let digest = Some(proto::EmailDigest::default());
        let email = proto::EmailChannel { digest, ..to(&["a@company.com", "x@localhost"]) };
        let subscription = proto::Subscription {
            tenant_id: tenant.id.clone(),
            event_types: vec!["*".into()],
            channel: Some(subscription::Channel::Email(email)),
            ..Default::default()
        };
        let request = proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        let refused = app.operator.subscriptions().create_subscription(request).await.expect_err("refused");
        let (_, reason, fields) = explain(&refused);
        assert_eq!((reason.as_str(), fields.len()), ("INVALID_FIELDS", 2), "{fields:?}");
        assert!(fields.iter().any(|it| it.contains("recipients[1]")) && fields.iter().any(|it| it.contains("digest")), "{fields:?}");
        app.stop().await;
    }
}

/// The event's deliveries by recipient, once none waits any more: state, and attempts.
async fn ended(
    client: &Client,
    tenant_id: &str,
    event_id: &str,
) -> Vec<(String, DeliveryState, i32)> {
    let start = Instant::now();
    loop {
        let deliveries = client.deliveries_of(tenant_id, event_id).await;
        let open = |it: &proto::Delivery| {
            matches!(it.state(), DeliveryState::Scheduled | DeliveryState::Delivering)
        };
        if !deliveries.iter().any(open) {
            let mut states: Vec<_> = deliveries
                .iter()
                .map(|it| (it.recipient.clone(), it.state(), it.attempt_count))
                .collect();
            states.sort_by(|one, other| one.0.cmp(&other.0));
            return states;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "{deliveries:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
