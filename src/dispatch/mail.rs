//! What mail has beside an attempt: addresses that get nothing, links that end a subscription.

use crate::domain::Clock;
use crate::domain::attempt::{Attempt, Outcome, Task};
use crate::domain::channel::Channel;
use crate::domain::delivery::FailureReason;
use crate::domain::id::SubscriptionId;
use crate::domain::subscription::Subscription;
use crate::domain::suppression::{Reason, Suppression};
use crate::domain::unsubscribe::{self, Link};
use crate::store::Suppressing;

use super::Shared;

/// Whether there may be an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Yes.
    MayGo,
    /// Not now.
    Waits,
    /// Never: the recipient gets nothing more.
    Suppressed(FailureReason),
}

impl Shared {
    /// Whether the delivery's recipient may have a message. A webhook's always may.
    pub(super) async fn standing(&self, recipient: &str, subscription: &Subscription) -> Standing {
        if let Channel::Webhook(_) = subscription.spec.channel {
            return Standing::MayGo;
        }
        let recipient = (subscription.tenant_id, recipient, own_subscription(subscription));
        match Box::pin(self.store.suppressed(&[recipient])).await {
            Ok(found) => match found.into_iter().flatten().next() {
                Some(Suppression { reason: Reason::Bounced, .. }) => {
                    Standing::Suppressed(FailureReason::Bounced)
                }
                Some(_) => Standing::Suppressed(FailureReason::Unsubscribed),
                None => Standing::MayGo,
            },
            Err(error) => {
                tracing::warn!(%error, subscription.id = %subscription.id, "it cannot be known whether the recipient wants mail; the delivery waits");
                Standing::Waits
            }
        }
    }

    /// Has an address that does not work get nothing more, and the tenant be told.
    pub(super) async fn suppress_bounced(&self, task: &Task, attempt: &Attempt) {
        if attempt.report.outcome != Outcome::Bounced {
            return;
        }
        let wanted = Suppression {
            tenant_id: task.tenant.id,
            address: task.recipient.clone(),
            subscription_id: None,
            reason: Reason::Bounced,
            detail: attempt.report.smtp_reply.clone(),
            delivery_id: Some(task.delivery_id),
            create_time: self.clock.now(),
        };
        match Box::pin(self.store.suppress(&wanted)).await {
            Ok(Suppressing::Done(_)) => self.chores.notify_one(),
            Ok(Suppressing::Known(_) | Suppressing::NoTenant) => {}
            // The next message to the address bounces, too.
            Err(error) => {
                tracing::warn!(%error, delivery.id = %task.delivery_id, "an address that bounces could not be suppressed");
            }
        }
    }

    /// Where the recipient of a subscription's mail unsubscribes; empty without a public URL.
    pub(super) fn unsubscribe_url(&self, subscription: &Subscription, recipient: &str) -> String {
        let Some(public_url) = &self.config.public_url else { return String::new() };
        if recipient.is_empty() {
            return String::new();
        }
        let link = Link {
            tenant_id: subscription.tenant_id,
            subscription_id: own_subscription(subscription),
            address: recipient.to_owned(),
        };
        match self.store.unsubscribe_token(&link) {
            Ok(token) => unsubscribe::url(public_url, &token),
            Err(error) => {
                tracing::warn!(%error, "a message has no link to unsubscribe");
                String::new()
            }
        }
    }
}

/// The subscription that somebody has made; `None` for the mail of a primary contact.
fn own_subscription(subscription: &Subscription) -> Option<SubscriptionId> {
    (!subscription.is_of_primary_contact()).then_some(subscription.id)
}
