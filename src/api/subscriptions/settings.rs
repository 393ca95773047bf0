//! What clients may say about a subscription: creating it, and changing it.

use tonic::Request;

use crate::api::Reason;
use crate::api::context::{caller, named_tenant};
use crate::api::convert::{self, subscription as convert_subscription};
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::Channel;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::subscription::{Secret, State, Subscription, SubscriptionSpec};
use crate::domain::tenant as domain_tenant;
use crate::domain::{Violations, endpoint, labels};

use super::Subscriptions;
use super::secrets::{check_kept_secret, check_own_secret, newest_public_key};

/// The warning of who wants mail from a service that has no mail server.
const NO_MAIL: &str = "No mail can be sent: the service has no relay and sender. Deliveries fail until an \
                       operator sets smtp-url and mail-from.";

impl Subscriptions {
    pub(super) async fn create(
        &self,
        request: Request<pb::CreateSubscriptionRequest>,
    ) -> Result<pb::CreateSubscriptionResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let message = request.subscription.unwrap_or_default();
        let mut violations = Violations::new();
        let owner = (&*message.tenant_id, "subscription.tenant_id");
        let tenant_id = named_tenant(&caller, owner.0, owner.1, &mut violations)?;
        let (urls, tenant_url) = if violations.is_empty() {
            let tenant = self.0.existing_tenant(tenant_id).await?;
            (self.0.urls.clone(), tenant.spec.webhook_url)
        } else {
            // Whether it may be without a URL, the tenant would say.
            (self.0.urls.keeping(""), String::new())
        };
        let spec = convert_subscription::new_subscription(&message, &mut violations);
        let spec = validated(spec, &urls, &tenant_url, &mut violations);
        check_own_secret(&request.signing_secret, &spec, &mut violations);
        violations.or_ok(())?;
        self.check_room(tenant_id).await?;
        let secret = self.0.random(|random| Secret::new(request.signing_secret, random));
        let now = self.0.now();
        let subscription = Subscription {
            id: self.0.random(|random| SubscriptionId::new(now, random)),
            tenant_id,
            spec,
            state: State::Active,
            disable_reason: None,
            secrets: vec![secret.clone()],
            unreadable: false,
            revision: 1,
            create_time: now,
            update_time: now,
        };
        self.0.store.create_subscription(&subscription).await?;
        let shown = self.with_health(&subscription).await?;
        let is_mail = matches!(subscription.spec.channel, Channel::Email(_));
        let warnings = if is_mail && !self.0.sends_mail {
            tracing::warn!(subscription.id = %subscription.id, tenant.id = %tenant_id, "a subscription by mail was created, and no mail can be sent: set smtp-url and mail-from");
            vec![NO_MAIL.to_owned()]
        } else {
            Vec::new()
        };
        Ok(pb::CreateSubscriptionResponse {
            warnings,
            signing_public_key: newest_public_key(&shown),
            subscription: Some(shown),
            signing_secret: match subscription.spec.channel {
                Channel::Webhook(_) => secret.text,
                // Nothing is signed by it.
                Channel::Email(_) => String::new(),
            },
        })
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
        let mask = request.update_mask.unwrap_or_default().paths;
        let others = self.judged_apart(&message, &mask);
        let id = (&*message.id, "subscription.id");
        let current = self.named(&caller, owner, id, &others).await?;
        let tenant = self.0.existing_tenant(current.tenant_id).await?;
        let old_url = url(&current).to_owned();
        let updated = self
            .change(current, &message.etag, |subscription| {
                let mut violations = Violations::new();
                let populated = |path: &str| convert_subscription::is_populated(&message, path);
                let selection =
                    convert_subscription::FIELDS.select(&mask, populated, &mut violations);
                let mut spec = subscription.spec.clone();
                convert_subscription::update_subscription(
                    &mut spec,
                    &message,
                    &selection,
                    &mut violations,
                );
                let urls = match &subscription.spec.channel {
                    Channel::Webhook(stored) => self.0.urls.keeping(&stored.url),
                    Channel::Email(_) => self.0.urls.clone(),
                };
                spec = validated(spec, &urls, &tenant.spec.webhook_url, &mut violations);
                for secret in subscription.secrets.iter().take(1) {
                    check_kept_secret(secret, &spec, &mut violations);
                }
                violations.or_ok(())?;
                if subscription.unreadable
                    && is_confidential(&subscription.spec.channel, &spec.channel)
                {
                    return Err(Failure::of(Reason::SubscriptionUnreadable));
                }
                let changed = spec != subscription.spec;
                subscription.spec = spec;
                self.0.random(|random| subscription.complete_keys(random));
                Ok(changed)
            })
            .await?;
        if url(&updated) != old_url {
            // What is known of the old endpoint says nothing about the new one.
            self.0.store.reset_health(updated.tenant_id, updated.id, self.0.now()).await?;
            (self.0.kick)();
        }
        Ok(updated)
    }

    /// What is wrong with an update as far as it can be told without knowing what it changes.
    fn judged_apart(&self, message: &pb::Subscription, mask: &[String]) -> Violations {
        let mut violations = Violations::new();
        let populated = |path: &str| convert_subscription::is_populated(message, path);
        let selection = convert_subscription::FIELDS.select(mask, populated, &mut violations);
        let mut spec = convert_subscription::stand_in(message);
        let mut found = Violations::new();
        convert_subscription::update_subscription(&mut spec, message, &selection, &mut found);
        validated(spec, &self.0.urls.keeping(""), "", &mut found);
        selection.take_over("subscription", &found, &mut violations);
        violations
    }
}

/// A webhook's own URL.
fn url(subscription: &Subscription) -> &str {
    match &subscription.spec.channel {
        Channel::Webhook(webhook) => &webhook.url,
        Channel::Email(_) => "",
    }
}

/// `spec` with a canonical URL. The domain's violations are added to those there are.
fn validated(
    mut spec: SubscriptionSpec,
    urls: &endpoint::Admission,
    tenant_url: &str,
    violations: &mut Violations,
) -> SubscriptionSpec {
    domain_tenant::check_name(&spec.display_name, "subscription.display_name", violations);
    labels::check(&spec.labels, "subscription.labels", violations);
    if let Some(policy) = &spec.retry_policy {
        let mut found = Violations::new();
        policy.check("subscription.retry_policy", &mut found);
        convert::merge(violations, &found);
    }
    let channel = match spec.channel.clone() {
        Channel::Webhook(webhook) => webhook.validated(urls, tenant_url).map(Channel::Webhook),
        Channel::Email(email) => email.validated().map(Channel::Email),
    };
    match channel {
        Ok(channel) => spec.channel = channel,
        Err(found) => convert::merge(violations, &found),
    }
    spec
}

/// Whether a change from `old` to `new` touches what is kept with the secrets.
fn is_confidential(old: &Channel, new: &Channel) -> bool {
    match (old, new) {
        (Channel::Webhook(old), Channel::Webhook(new)) => {
            old.url != new.url || old.headers != new.headers
        }
        (Channel::Email(_), Channel::Email(_)) => false,
        _ => old != new,
    }
}
