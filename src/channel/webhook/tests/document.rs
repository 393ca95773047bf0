//! The requests that `docs/webhooks.md` shows are requests as they are sent, byte for byte but for the
//! host's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::endpoint::Endpoint;
use super::{NOW, OK, SECRET, client, loopback, parts, settings, task_over};
use crate::domain::attempt::{Outcome, Task};
use crate::domain::channel::{Channel, PayloadFormat, SignatureScheme, WebhookChannel};
use crate::domain::event::Event;
use crate::domain::tenant::Tenant;

use SignatureScheme::{Github, HmacSha256Hex, StandardWebhooks, StandardWebhooksEd25519, Stripe};

/// What the document's requests deliver.
fn example(webhook: WebhookChannel, is_rotating: bool) -> Task {
    let task = task_over(Channel::Webhook(webhook));
    let event = Event {
        subject: "invoice/2026-1".to_owned(),
        data: Bytes::from_static(br#"{"invoice":"2026-1","amount":"12.30","customer":"Zo\u00eb"}"#),
        labels: BTreeMap::from([("region".to_owned(), "Zürich".to_owned())]),
        ..(*task.event).clone()
    };
    let mut tenant = Tenant::clone(&task.tenant);
    tenant.spec.environment = "production".to_owned();
    tenant.spec.account_id = Some(42);
    let mut subscription = (*task.subscription).clone();
    if !is_rotating {
        subscription.secrets.truncate(1);
    }
    Task {
        number: 1,
        event: Arc::new(event),
        tenant: Arc::new(tenant),
        subscription: Arc::new(subscription),
        ..task
    }
}

async fn captured(
    format: PayloadFormat,
    signatures: &[SignatureScheme],
    is_rotating: bool,
) -> String {
    let mut endpoint = Endpoint::answering_once(OK).await;
    let webhook = WebhookChannel {
        payload_format: format,
        signatures: signatures.to_vec(),
        ..settings(&endpoint.url())
    };
    let task = example(webhook.clone(), is_rotating);
    let report = client(&loopback()).attempt(&task, &webhook).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    let request = endpoint.ended().await;
    let (head, body) = parts(&request);
    let head = head.replace(&endpoint.address.to_string(), "hooks.company.com");
    format!("{}\n\n{}\n", head.replace("\r\n", "\n"), String::from_utf8_lossy(body))
}

#[tokio::test]
async fn the_document_shows_requests_as_they_are_sent() {
    let document = include_str!("../../../../docs/webhooks.md");
    let signatures = vec![StandardWebhooksEd25519];
    let listing = WebhookChannel { signatures, ..WebhookChannel::default() };
    let subscription = example(listing, false).subscription;
    let key = subscription.public_keys_at(NOW).remove(0);
    let told = format!("signed with `{SECRET}`, and the public key is `{key}`.");
    assert!(document.contains(&told), "docs/webhooks.md does not say: {told}");
    for (name, format, signatures, is_rotating) in [
        (
            "standard",
            PayloadFormat::Standard,
            &[StandardWebhooks, StandardWebhooksEd25519][..],
            false,
        ),
        ("flat", PayloadFormat::Flat, &[HmacSha256Hex], false),
        ("data-only", PayloadFormat::DataOnly, &[Github, Stripe], true),
        (
            "cloudevents-structured",
            PayloadFormat::CloudEventsStructured,
            &[StandardWebhooks],
            false,
        ),
        ("cloudevents-binary", PayloadFormat::CloudEventsBinary, &[StandardWebhooks], false),
    ] {
        let request = captured(format, signatures, is_rotating).await;
        let block = format!("<!-- captured: {name} -->\n```http\n{request}```\n");
        assert!(document.contains(&block), "docs/webhooks.md does not show this:\n{block}");
    }
}
