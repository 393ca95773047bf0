//! Who plays in the demo: a tenant, its catalog, four subscriptions, ten events.
//!
//! The events and their policies are those of real systems: billing notices, the lifecycle of users
//! and invoices, integration runs that fail.

use std::time::Duration;

use super::super::Error;
use super::super::client::{Client, incomplete};
use super::super::subscriptions::retry;
use super::receivers::{Role, Urls};
use crate::api::proto::retry_policy::Backoff;
use crate::api::proto::subscription::Channel as To;
use crate::api::proto::{
    ApiKey, Channel, CreateApiKeyRequest, CreateEventTypeRequest, CreateSubscriptionRequest,
    CreateTenantRequest, EventType, EventTypeStatus, PayloadFormat, RetryPolicy, SignatureScheme,
    Subscription, Tenant, WebhookChannel,
};
use crate::cli::keys::tenant_scopes;

/// The waits before retries: short, so that they are seen.
const WAITS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];
/// Most requests at the same time to one receiver: the burst at the end should not wait for turns.
const MAX_IN_FLIGHT: i32 = 256;
/// Who gets every event by mail, but for the burst.
pub(super) const CONTACT: &str = "ops@acme.example";
/// The type of the events in the burst. Only `*` matches it.
pub(super) const BURST_TYPE: &str = "usage.recorded";

/// One subscription of the demo.
pub(super) struct Part {
    /// Its name.
    pub(super) name: &'static str,
    /// What it wants to be told of.
    pub(super) patterns: &'static [&'static str],
    /// How requests are signed.
    pub(super) signatures: &'static [SignatureScheme],
    /// What the body looks like.
    pub(super) format: PayloadFormat,
    /// How its receiver behaves.
    pub(super) role: Role,
}

/// The subscriptions, in the order of the table's columns.
pub(super) const PARTS: [Part; 4] = [
    Part {
        name: "ledger",
        patterns: &["billing.*"],
        signatures: &[SignatureScheme::StandardWebhooks],
        format: PayloadFormat::Standard,
        role: Role::Good,
    },
    Part {
        name: "audit",
        patterns: &["*"],
        signatures: &[SignatureScheme::StandardWebhooks, SignatureScheme::HmacSha256Hex],
        format: PayloadFormat::DataOnly,
        role: Role::Good,
    },
    Part {
        name: "crm",
        patterns: &["user.*", "invoice.*"],
        signatures: &[SignatureScheme::HmacSha256Hex],
        format: PayloadFormat::Flat,
        role: Role::Flaky,
    },
    Part {
        name: "ops",
        patterns: &["run_failed", "tenant_archived"],
        signatures: &[SignatureScheme::StandardWebhooks],
        format: PayloadFormat::Flat,
        role: Role::Refusing,
    },
];

/// One event of the demo.
pub(super) struct Scene {
    /// Its type.
    pub(super) event_type: &'static str,
    /// What it happened to.
    pub(super) subject: &'static str,
    /// Its payload.
    pub(super) data: &'static str,
}

/// The events, in the order in which they are emitted.
pub(super) const SCENES: [Scene; 10] = [
    scene("billing.generated", "invoice/1042", r#"{"invoice_id":1042,"amount":"199.00"}"#),
    scene("user.created", "user/7", r#"{"user_id":9007199254740993,"name":"Ada"}"#),
    scene("run_failed", "run/311", r#"{"run_id":311,"run_status":"failed","tenant_id":12}"#),
    scene("billing.paid", "invoice/1042", r#"{"invoice_id":1042,"amount":"199.00"}"#),
    scene("invoice.paid", "invoice/1042", r#"{"invoice_id":1042,"method":"card"}"#),
    scene("trial.ending", "account/88", r#"{"account_id":88,"days_left":3}"#),
    scene("user.deleted", "user/5", r#"{"user_id":5,"reason":"requested"}"#),
    scene("billing.overdue", "invoice/1017", r#"{"invoice_id":1017,"days":14}"#),
    scene("tenant_archived", "tenant/12", r#"{"tenant_id":12,"tenant_name":"Initech"}"#),
    scene("key.disabled", "key/31", r#"{"key":"key/31","by":"security"}"#),
];

const fn scene(event_type: &'static str, subject: &'static str, data: &'static str) -> Scene {
    Scene { event_type, subject, data }
}

/// The catalog: name, category, since, status, retries.
const CATALOG: [(&str, &str, &str, EventTypeStatus, i32); 5] = [
    ("user.created", "Users", "v1.0", EventTypeStatus::Ga, 3),
    ("user.deleted", "Users", "v1.0", EventTypeStatus::Ga, 3),
    ("invoice.paid", "Billing", "v1.2", EventTypeStatus::Ga, 5),
    ("trial.ending", "Billing", "v2.4", EventTypeStatus::Beta, 1),
    ("run_failed", "Integrations", "v1.0", EventTypeStatus::Ga, 2),
];

impl Part {
    /// Whether it wants to be told of this type of event.
    pub(super) fn wants(&self, event_type: &str) -> bool {
        self.patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => event_type.starts_with(prefix),
            None => *pattern == event_type,
        })
    }

    /// After how many attempts a delivery to it ends.
    pub(super) fn attempts(&self) -> i32 {
        if self.role == Role::Good { 1 } else { 3 }
    }

    /// The event types decide how often to retry; the refusing receiver is given up soon.
    fn retry_policy(&self) -> Option<RetryPolicy> {
        (self.role == Role::Refusing).then(|| policy(2))
    }
}

/// A tenant, with a key that can do everything for it.
pub(super) struct Cast {
    /// The tenant.
    pub(super) tenant: Tenant,
    /// The text of its key.
    pub(super) api_key: String,
}

/// Creates the tenant, its key, and the platform's catalog.
///
/// # Errors
/// When the service refuses.
pub(super) async fn cast(operator: &Client) -> Result<Cast, Error> {
    let tenant = Tenant {
        display_name: "Acme".into(),
        environment: "production".into(),
        account_id: Some(42),
        primary_contact: CONTACT.into(),
        primary_contact_exclusions: vec![BURST_TYPE.into()],
        retry_policy: Some(policy(3)),
        ..Tenant::default()
    };
    let request = CreateTenantRequest { tenant: Some(tenant) };
    let response = operator.tenants().create_tenant(request).await?.into_inner();
    let tenant = response.tenant.ok_or_else(|| incomplete("tenant"))?;
    let api_key = ApiKey {
        tenant_id: tenant.id.clone(),
        display_name: "demo".into(),
        scopes: tenant_scopes(),
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest { api_key: Some(api_key) };
    let api_key = operator.tenants().create_api_key(request).await?.into_inner().secret;
    for (name, category, since, status, retries) in CATALOG {
        let event_type = EventType {
            name: name.into(),
            category: category.into(),
            since: since.into(),
            status: status.into(),
            retry_policy: Some(policy(retries)),
            recommended_channels: vec![Channel::Webhook.into()],
            ..EventType::default()
        };
        let request = CreateEventTypeRequest { event_type: Some(event_type) };
        operator.catalog().create_event_type(request).await?;
    }
    Ok(Cast { tenant, api_key })
}

/// Creates the subscriptions; gives the id and the signing secret of each part.
///
/// # Errors
/// When the service refuses.
pub(super) async fn subscribe(
    client: &Client,
    urls: &Urls,
) -> Result<[(String, String); 4], Error> {
    let mut made: [(String, String); 4] = Default::default();
    for (part, place) in PARTS.iter().zip(&mut made) {
        let webhook = WebhookChannel {
            url: urls.of(part),
            signatures: part.signatures.iter().map(|scheme| i32::from(*scheme)).collect(),
            payload_format: part.format.into(),
            max_in_flight: MAX_IN_FLIGHT,
            ..WebhookChannel::default()
        };
        let subscription = Subscription {
            display_name: part.name.into(),
            event_types: part.patterns.iter().map(|text| (*text).to_owned()).collect(),
            channel: Some(To::Webhook(webhook)),
            retry_policy: part.retry_policy(),
            ..Subscription::default()
        };
        let request = CreateSubscriptionRequest {
            subscription: Some(subscription),
            ..CreateSubscriptionRequest::default()
        };
        let response = client.subscriptions().create_subscription(request).await?.into_inner();
        let subscription = response.subscription.ok_or_else(|| incomplete("subscription"))?;
        *place = (subscription.id, response.signing_secret);
    }
    Ok(made)
}

fn policy(retries: i32) -> RetryPolicy {
    RetryPolicy {
        max_retries: Some(retries),
        backoff: Some(Backoff::Schedule(retry::schedule(&WAITS))),
        jitter: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_something_to_do_and_no_breaker_opens() {
        for part in &PARTS {
            let wanted = SCENES.iter().filter(|scene| part.wants(scene.event_type)).count();
            assert!(wanted > 0, "{}", part.name);
            // Ten failures in a row would open the endpoint's breaker, and the demo would wait.
            let failures = match part.role {
                Role::Good => 0,
                Role::Flaky => wanted * 2,
                Role::Refusing => wanted * 3,
            };
            assert!(failures < 10, "{}: {failures}", part.name);
        }
        assert_eq!(PARTS.iter().filter(|part| part.wants(BURST_TYPE)).count(), 1);
    }

    #[test]
    fn the_payloads_are_json() {
        for scene in &SCENES {
            assert!(crate::domain::payload::check(scene.data, 1_000).is_ok(), "{}", scene.data);
        }
    }
}
