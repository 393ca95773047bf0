//! Signing secrets: a client's own, and rotation.

use std::time::Duration;

use tonic::Request;

use crate::api::Reason;
use crate::api::context::caller;
use crate::api::convert;
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::Channel;
use crate::domain::signature::check_secret;
use crate::domain::subscription::{Secret, Subscription, SubscriptionSpec};
use crate::domain::{Timestamp, Violations};

use super::Subscriptions;

/// How long a replaced secret stays valid, unless the client says otherwise.
const DEFAULT_OVERLAP: Duration = Duration::from_hours(24);
const MAX_OVERLAP: Duration = Duration::from_hours(7 * 24);

impl Subscriptions {
    pub(super) async fn rotate(
        &self,
        request: Request<pb::RotateSecretRequest>,
    ) -> Result<pb::RotateSecretResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let overlap = convert::duration(request.overlap.as_ref(), "overlap", &mut violations);
        let overlap = overlap.unwrap_or(DEFAULT_OVERLAP);
        if overlap > MAX_OVERLAP {
            violations.add("overlap", "must be at most 7 days (604800s)");
        }
        let mut others = violations.clone();
        check_form(&request.signing_secret, &mut others);
        let (owner, id) = (&*request.tenant_id, &*request.subscription_id);
        let (owner, id) = ((owner, "tenant_id"), (id, "subscription_id"));
        let current = self.named(&caller, owner, id, &others).await?;
        if current.unreadable {
            // A new secret would stand in the place of what may yet be restored.
            return Err(Failure::of(Reason::SubscriptionUnreadable));
        }
        if let Channel::Email(_) = current.spec.channel {
            violations
                .add("subscription_id", "must be a webhook: mail is signed by the operator's keys");
        }
        check_own_secret(&request.signing_secret, &current.spec, &mut violations);
        violations.or_ok(())?;
        let secret = self.0.random(|random| Secret::new(request.signing_secret, random));
        let rotated = self
            .change(current, "", |subscription| {
                replace(subscription, secret.clone(), overlap, self.0.now());
                Ok(true)
            })
            .await?;
        let previous = rotated.secrets.get(1).and_then(|secret| secret.expire_time);
        let shown = self.with_health(&rotated).await?;
        Ok(pb::RotateSecretResponse {
            signing_public_key: newest_public_key(&shown),
            subscription: Some(shown),
            signing_secret: secret.text,
            previous_expire_time: previous.map(convert::timestamp_to_proto),
        })
    }
}

/// Makes `secret` the current one. That which was stays valid for `overlap`; any older one ends.
/// When `secret` is the current one already it keeps its key, and only the overlap changes.
fn replace(subscription: &mut Subscription, secret: Secret, overlap: Duration, now: Timestamp) {
    let mut known = std::mem::take(&mut subscription.secrets).into_iter().peekable();
    let current = known.next_if(|current| current.text == secret.text).unwrap_or(secret);
    let replaced = known.next().filter(|old| old.is_valid_at(now) && !overlap.is_zero());
    let replaced = replaced.map(|old| Secret { expire_time: Some(now.plus(overlap)), ..old });
    subscription.secrets = [current].into_iter().chain(replaced).collect();
}

/// The public key of the current secret; empty when the subscription does not list the scheme.
pub(super) fn newest_public_key(shown: &pb::Subscription) -> String {
    shown.signing_public_keys.first().cloned().unwrap_or_default()
}

/// Whether a secret of the client's own suits any scheme at all, as long as nobody knows which.
fn check_form(secret: &str, violations: &mut Violations) {
    if !secret.is_empty()
        && let Err(error) = check_secret(secret, &[])
    {
        violations.add("signing_secret", error);
    }
}

/// Whether a secret of the client's own suits the schemes.
pub(super) fn check_own_secret(secret: &str, spec: &SubscriptionSpec, violations: &mut Violations) {
    if secret.is_empty() {
        return;
    }
    if let Channel::Webhook(webhook) = &spec.channel
        && let Err(error) = check_secret(secret, &webhook.signatures)
    {
        violations.add("signing_secret", error);
    }
}

/// Whether the secret that is there suits schemes that are new.
pub(super) fn check_kept_secret(
    secret: &Secret,
    spec: &SubscriptionSpec,
    violations: &mut Violations,
) {
    if let Channel::Webhook(webhook) = &spec.channel
        && check_secret(&secret.text, &webhook.signatures).is_err()
    {
        violations.add(
            "subscription.webhook.signatures",
            "must suit the secret that is set; rotate it first to one that suits them",
        );
    }
}
