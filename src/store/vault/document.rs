//! What of a subscription and of a tenant is sealed, and what stays in the clear.
//!
//! Sealed: the signing secrets and keys, the whole URL, the values of custom headers, a tenant's
//! `webhook_url`. In the clear stay the URL's origin and the headers' names, so that a row whose
//! secrets cannot be read can still be shown.
//!
//! The documents are JSON; their field names are part of the schema.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::super::Error;
use super::super::Store;
use super::super::entity::{subscription as subscription_row, tenant as tenant_row};
use super::super::rows;
use super::Vault;
use super::envelope::Binding;
use crate::domain::channel::Channel;
use crate::domain::subscription::{Secret, Subscription};
use crate::domain::tenant::Tenant;

/// What stands in the clear in place of a URL's path and query.
const HIDDEN_PATH: &str = "/***";

/// The sealed part of a subscription.
#[derive(Default, Serialize, Deserialize)]
struct SubscriptionDocument {
    secrets: Vec<Secret>,
    url: String,
    headers: BTreeMap<String, String>,
}

/// The sealed part of a tenant.
#[derive(Serialize, Deserialize)]
struct TenantDocument {
    webhook_url: String,
}

pub(super) fn of_subscription<'a>(tenant_id: &'a str, row_id: &'a str) -> Binding<'a> {
    Binding { purpose: "subscription", tenant_id, row_id }
}

pub(super) fn of_tenant(tenant_id: &str) -> Binding<'_> {
    Binding { purpose: "tenant", tenant_id, row_id: "" }
}

/// A channel as it may stand in the clear, and its secrets beside it.
fn split(channel: &Channel, secrets: &[Secret]) -> (Channel, SubscriptionDocument) {
    let mut shown = channel.clone();
    let mut document =
        SubscriptionDocument { secrets: secrets.to_vec(), ..SubscriptionDocument::default() };
    if let Channel::Webhook(webhook) = &mut shown {
        let hidden = hidden_url(&webhook.url);
        document.url = std::mem::replace(&mut webhook.url, hidden);
        document.headers = std::mem::take(&mut webhook.headers);
        webhook.headers = document.headers.keys().map(|k| (k.clone(), String::new())).collect();
    }
    (shown, document)
}

fn hidden_url(url: &str) -> String {
    let origin = Url::parse(url).map(|url| url.origin().ascii_serialization());
    origin.map(|origin| origin + HIDDEN_PATH).unwrap_or_default()
}

fn join(mut channel: Channel, document: SubscriptionDocument) -> (Channel, Vec<Secret>) {
    if let Channel::Webhook(webhook) = &mut channel {
        webhook.url = document.url;
        webhook.headers = document.headers;
    }
    (channel, document.secrets)
}

fn bytes(document: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Error> {
    Ok(Zeroizing::new(serde_json::to_vec(document)?))
}

impl Vault {
    /// The columns `channel` and `sealed` of a subscription.
    pub(in super::super) async fn seal_subscription(
        &self,
        tenant_id: &str,
        id: &str,
        channel: &Channel,
        secrets: &[Secret],
    ) -> Result<(String, Vec<u8>), Error> {
        let (shown, document) = split(channel, secrets);
        let sealed = self.seal(of_subscription(tenant_id, id), &bytes(&document)?).await?;
        Ok((rows::json(&shown)?, sealed))
    }

    /// The column `sealed` of a tenant.
    pub(in super::super) async fn seal_tenant(
        &self,
        id: &str,
        webhook_url: &str,
    ) -> Result<Vec<u8>, Error> {
        let document = TenantDocument { webhook_url: webhook_url.to_owned() };
        self.seal(of_tenant(id), &bytes(&document)?).await
    }
}

impl Store {
    /// Subscriptions with their secrets. One whose secrets do not open is unreadable; that is no
    /// error.
    pub(in super::super) async fn open_subscriptions(
        &self,
        rows: Vec<subscription_row::Model>,
    ) -> Result<Vec<Subscription>, Error> {
        let vault = &self.vault;
        let ring = vault.keys_of(rows.iter().filter_map(|row| row.sealed.as_deref())).await?;
        let mut subscriptions = Vec::with_capacity(rows.len());
        for row in rows {
            let mut subscription = Subscription::try_from(&row)?;
            let binding = of_subscription(&row.tenant_id, &row.id);
            let document = vault.read(&ring, binding, row.sealed.as_deref());
            subscription.unreadable = document.is_none();
            if let Some(document) = document {
                let channel = subscription.spec.channel;
                (subscription.spec.channel, subscription.secrets) = join(channel, document);
            }
            subscriptions.push(subscription);
        }
        Ok(subscriptions)
    }

    /// Tenants with their secrets. One whose secrets do not open is unreadable; that is no error.
    pub(in super::super) async fn open_tenants(
        &self,
        rows: Vec<tenant_row::Model>,
    ) -> Result<Vec<Tenant>, Error> {
        let vault = &self.vault;
        let ring = vault.keys_of(rows.iter().filter_map(|row| row.sealed.as_deref())).await?;
        let mut tenants = Vec::with_capacity(rows.len());
        for row in rows {
            let mut tenant = Tenant::try_from(&row)?;
            let document: Option<TenantDocument> =
                vault.read(&ring, of_tenant(&row.id), row.sealed.as_deref());
            tenant.unreadable = document.is_none();
            if let Some(document) = document {
                tenant.spec.webhook_url = document.webhook_url;
            }
            tenants.push(tenant);
        }
        Ok(tenants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::channel::WebhookChannel;

    #[test]
    fn nothing_confidential_stays_in_the_clear_and_all_of_it_comes_back() {
        let webhook = WebhookChannel {
            url: "https://hooks.company.com:8443/T000/canary-path?token=canary-query".into(),
            headers: [("X-Key".to_owned(), "canary-value".to_owned())].into(),
            ..WebhookChannel::default()
        };
        let channel = Channel::Webhook(webhook);
        let secrets =
            [Secret { text: "canary-secret-text".into(), expire_time: None, signing_key: None }];
        let (shown, document) = split(&channel, &secrets);
        let text = serde_json::to_string(&shown).unwrap();
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("https://hooks.company.com:8443/***") && text.contains("X-Key"));
        assert_eq!(join(shown, document), (channel, secrets.to_vec()));
    }
}
