//! What a subscription shows of its endpoint's health: read with it, and never kept.

use crate::api::convert::subscription as convert_subscription;
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::{Channel, DEFAULT_MAX_IN_FLIGHT};
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::subscription::Subscription;

use super::Subscriptions;

impl Subscriptions {
    /// The subscription with its endpoint's health.
    pub(super) async fn with_health(
        &self,
        subscription: &Subscription,
    ) -> Result<pb::Subscription, Failure> {
        let mut message = self.shown(subscription);
        if let Channel::Webhook(webhook) = &subscription.spec.channel {
            let (tenant_id, id) = (subscription.tenant_id, subscription.id);
            let health = self.0.store.health_of(tenant_id, &[id]).await?.remove(&id);
            let health = health.unwrap_or_default();
            let limit = webhook.max_in_flight;
            message.health =
                Some(convert_subscription::health_to_proto(&health, limit, self.0.now()));
        }
        Ok(message)
    }

    /// Adds the health of their endpoints to a tenant's subscriptions.
    pub(super) async fn add_health(
        &self,
        tenant_id: TenantId,
        subscriptions: &mut [pb::Subscription],
    ) -> Result<(), Failure> {
        let ids: Vec<SubscriptionId> =
            subscriptions.iter().filter_map(|shown| shown.id.parse().ok()).collect();
        let known = self.0.store.health_of(tenant_id, &ids).await?;
        let now = self.0.now();
        for shown in subscriptions {
            let Some(pb::subscription::Channel::Webhook(webhook)) = &shown.channel else {
                continue;
            };
            let limit = u32::try_from(webhook.max_in_flight).unwrap_or(DEFAULT_MAX_IN_FLIGHT);
            let health = shown.id.parse().ok().and_then(|id| known.get(&id).copied());
            let health = health.unwrap_or_default();
            shown.health = Some(convert_subscription::health_to_proto(&health, limit, now));
        }
        Ok(())
    }
}
