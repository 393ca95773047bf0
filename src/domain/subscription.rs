//! A subscription: which of a tenant's events go where, and how.

use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::id::{SubscriptionId, TenantId};
use super::labels::{self, Labels};
use super::pattern::Pattern;
use super::retry::RetryPolicy;
use super::{Timestamp, Violations, tenant};

/// Most patterns on one subscription.
pub const MAX_PATTERNS: usize = 100;

/// Whether a subscription delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Deliveries are made.
    Active,
    /// Somebody paused it: new deliveries are held.
    Paused,
    /// Tidings disabled it, because its endpoint is gone or has failed for too long.
    Disabled,
}

/// Why Tidings disabled a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisableReason {
    /// The endpoint answered 410 Gone.
    Gone,
    /// Nothing but failures for five days.
    Failing,
}

/// What a client may say about a subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionSpec {
    /// What people call it.
    pub display_name: String,
    /// Which event types it wants. Never empty.
    pub event_types: Vec<Pattern>,
    /// Where its deliveries go.
    pub channel: Channel,
    /// Its retry policy; `None` for that of the event type, the tenant, or the built-in one.
    pub retry_policy: Option<RetryPolicy>,
    /// Labels.
    pub labels: Labels,
}

/// A secret that signs, and until when.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The secret's text.
    pub text: String,
    /// From when on it no longer signs; `None` for the current one.
    pub expire_time: Option<Timestamp>,
}

/// Hides the text, so that no log can show it.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("expire_time", &self.expire_time).finish_non_exhaustive()
    }
}

/// A subscription as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What its administrators said.
    pub spec: SubscriptionSpec,
    /// Whether it delivers.
    pub state: State,
    /// Why not, when Tidings disabled it.
    pub disable_reason: Option<DisableReason>,
    /// The secrets that sign, the newest first.
    pub secrets: Vec<Secret>,
    /// Counts the changes, from 1: the etag.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

impl Subscription {
    /// Whether it wants events of the type `name`.
    pub fn wants(&self, name: &str) -> bool {
        self.spec.event_types.iter().any(|pattern| pattern.matches(name))
    }

    /// The secrets that sign at `now`, the newest first.
    pub fn secrets_at(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        self.secrets
            .iter()
            .filter(move |secret| secret.expire_time.is_none_or(|expiry| now < expiry))
            .map(|secret| secret.text.as_str())
    }
}

impl SubscriptionSpec {
    /// Checks every field but the channel, which has a check of its own.
    pub fn check(&self, violations: &mut Violations) {
        tenant::check_name(&self.display_name, "subscription.display_name", violations);
        if self.event_types.is_empty() {
            violations
                .add("subscription.event_types", "must not be empty; * chooses every event type");
        }
        if self.event_types.len() > MAX_PATTERNS {
            violations.add(
                "subscription.event_types",
                format!("must have at most {MAX_PATTERNS} entries, has {}", self.event_types.len()),
            );
        }
        labels::check(&self.labels, "subscription.labels", violations);
        if let Some(policy) = &self.retry_policy {
            policy.check("subscription.retry_policy", violations);
        }
    }
}
