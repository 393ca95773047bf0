//! What clients may say about a subscription: creating it, and changing it.

use tonic::Request;

use crate::api::Reason;
use crate::api::context::caller;
use crate::api::convert::{self, subscription as convert_subscription};
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::Channel;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::signature::generate_secret;
use crate::domain::subscription::{Secret, State, Subscription, SubscriptionSpec};
use crate::domain::tenant::{self as domain_tenant, Tenant};
use crate::domain::{Violations, labels};

use super::Subscriptions;
use super::secrets::{check_kept_secret, check_own_secret};

impl Subscriptions {
    pub(super) async fn create(
        &self,
        request: Request<pb::CreateSubscriptionRequest>,
    ) -> Result<(Subscription, String), Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let message = request.subscription.unwrap_or_default();
        let tenant_id =
            self.0.tenant(&caller, &message.tenant_id, "subscription.tenant_id").await?;
        let mut violations = Violations::new();
        let spec = convert_subscription::new_subscription(&message, &mut violations)?;
        let tenant = self.0.existing_tenant(tenant_id).await?;
        let spec = self.validated(spec, &tenant, &mut violations);
        check_own_secret(&request.signing_secret, &spec, &mut violations);
        violations.or_ok(())?;
        self.check_room(tenant_id).await?;
        let secret = if request.signing_secret.is_empty() {
            self.0.random(generate_secret)
        } else {
            request.signing_secret
        };
        let now = self.0.now();
        let subscription = Subscription {
            id: self.0.random(|random| SubscriptionId::new(now, random)),
            tenant_id,
            spec,
            state: State::Active,
            disable_reason: None,
            secrets: vec![Secret { text: secret.clone(), expire_time: None }],
            revision: 1,
            create_time: now,
            update_time: now,
        };
        self.0.store.create_subscription(&subscription).await?;
        Ok((subscription, secret))
    }

    /// `spec` with a canonical URL. The domain's violations are added to those there are.
    fn validated(
        &self,
        mut spec: SubscriptionSpec,
        tenant: &Tenant,
        violations: &mut Violations,
    ) -> SubscriptionSpec {
        domain_tenant::check_name(&spec.display_name, "subscription.display_name", violations);
        labels::check(&spec.labels, "subscription.labels", violations);
        if let Some(policy) = &spec.retry_policy {
            policy.check("subscription.retry_policy", violations);
        }
        if let Channel::Webhook(webhook) = &spec.channel {
            match webhook.clone().validated(&self.0.urls, &tenant.spec.webhook_url) {
                Ok(webhook) => spec.channel = Channel::Webhook(webhook),
                Err(found) => convert::merge(violations, &found),
            }
        }
        spec
    }

    /// Refuses one subscription more than a tenant may have. Two calls at the same time may both
    /// take the last place: the limit keeps memory bounded, and need not be exact.
    async fn check_room(&self, tenant_id: TenantId) -> Result<(), Failure> {
        let max = u64::from(self.0.max_subscriptions);
        let page = self.0.store.list_subscriptions(tenant_id, &[], None, max).await?;
        if page.items.len() as u64 >= max {
            let message = format!("The tenant has {max} subscriptions, which is the limit.");
            return Err(Failure::new(Reason::TooManySubscriptions, message));
        }
        Ok(())
    }

    pub(super) async fn update(
        &self,
        request: Request<pb::UpdateSubscriptionRequest>,
    ) -> Result<Subscription, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let message = request.subscription.unwrap_or_default();
        let owner = (message.tenant_id.as_str(), "subscription.tenant_id");
        let current = self.named(&caller, owner, (&message.id, "subscription.id")).await?;
        let tenant = self.0.existing_tenant(current.tenant_id).await?;
        let mask = request.update_mask.unwrap_or_default().paths;
        self.change(current, &message.etag, |subscription| {
            let mut violations = Violations::new();
            let populated = |path: &str| convert_subscription::is_populated(&message, path);
            let selection = convert_subscription::FIELDS.select(&mask, populated, &mut violations);
            if mask.iter().any(|path| path == "email" || path.starts_with("email.")) {
                return Err(Failure::not_implemented("email"));
            }
            let mut spec = subscription.spec.clone();
            convert_subscription::update_subscription(
                &mut spec,
                &message,
                &selection,
                &mut violations,
            )?;
            spec = self.validated(spec, &tenant, &mut violations);
            for secret in subscription.secrets.iter().take(1) {
                check_kept_secret(secret, &spec, &mut violations);
            }
            violations.or_ok(())?;
            let changed = spec != subscription.spec;
            subscription.spec = spec;
            Ok(changed)
        })
        .await
    }
}
