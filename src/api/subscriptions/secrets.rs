//! Signing secrets: a client's own, and rotation.

use std::time::Duration;

use tonic::Request;

use crate::api::context::caller;
use crate::api::convert;
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::Violations;
use crate::domain::channel::Channel;
use crate::domain::signature::{check_secret, generate_secret};
use crate::domain::subscription::{Secret, SubscriptionSpec};

use super::{Subscriptions, shown};

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
        let current =
            self.plainly_named(&caller, &request.tenant_id, &request.subscription_id).await?;
        let mut violations = Violations::new();
        let overlap = convert::duration(request.overlap.as_ref(), "overlap", &mut violations);
        let overlap = overlap.unwrap_or(DEFAULT_OVERLAP);
        if overlap > MAX_OVERLAP {
            violations.add("overlap", "must be at most 7 days (604800s)");
        }
        check_own_secret(&request.signing_secret, &current.spec, &mut violations);
        violations.or_ok(())?;
        let secret = if request.signing_secret.is_empty() {
            self.0.random(generate_secret)
        } else {
            request.signing_secret
        };
        let rotated = self
            .change(current, "", |subscription| {
                let now = self.0.now();
                let repeated = subscription.secrets.first().is_some_and(|s| s.text == secret);
                let valid = |s: &Secret| s.expire_time.is_none_or(|expiry| now < expiry);
                let replaced = subscription.secrets.drain(..).skip(usize::from(repeated));
                let replaced = replaced.take(1).find(|s| valid(s) && !overlap.is_zero());
                let replaced =
                    replaced.map(|s| Secret { expire_time: Some(now.plus(overlap)), ..s });
                subscription.secrets.push(Secret { text: secret.clone(), expire_time: None });
                subscription.secrets.extend(replaced);
                Ok(true)
            })
            .await?;
        let previous = rotated.secrets.get(1).and_then(|secret| secret.expire_time);
        Ok(pb::RotateSecretResponse {
            subscription: Some(shown(&rotated)),
            signing_secret: secret,
            previous_expire_time: previous.map(convert::timestamp_to_proto),
        })
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
