//! The catalog: which event types there are, and what is said about each.

use serde::{Deserialize, Serialize};

use super::id::TenantId;
use super::retry::RetryPolicy;
use super::{Timestamp, Violations, mail, pattern, tenant};

/// Most bytes in a description or in guidance.
pub const MAX_TEXT_BYTES: usize = 8 * 1024;

/// How far along an event type is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// May still change.
    Beta,
    /// Generally available.
    #[default]
    Ga,
    /// Will go away.
    Deprecated,
}

/// A way to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelKind {
    /// A signed HTTP request to the customer's system.
    Webhook,
    /// A message to a person.
    Email,
}

/// What a client may say about an event type. Stored as one JSON document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventTypeSpec {
    /// The name, for example `billing.paid`. Never changes.
    pub name: String,
    /// When it is emitted, in a sentence.
    pub description: String,
    /// Groups types in lists, for example `Billing`.
    pub category: String,
    /// The platform's version that had it first, for example `v1.2`.
    pub since: String,
    /// How far along it is.
    pub status: Status,
    /// A JSON Schema that every payload of the type must satisfy; empty for none.
    pub json_schema: String,
    /// The retry policy of its deliveries, where the subscription has none.
    pub retry_policy: Option<RetryPolicy>,
    /// The channels that suit it.
    pub recommended_channels: Vec<ChannelKind>,
    /// What a receiver should do with it.
    pub guidance: String,
    /// The template of mails about it; empty for the built-in one.
    #[serde(default)]
    pub email_template: String,
}

/// An event type as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EventType {
    /// Whose it is; `None` for the platform's own, which every tenant sees.
    pub tenant_id: Option<TenantId>,
    /// What its administrators said.
    pub spec: EventTypeSpec,
    /// Counts the changes, from 1: the etag.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

impl EventTypeSpec {
    /// Checks every field but whether the schema compiles, which the caller knows.
    ///
    /// # Errors
    /// All violations, with paths below `event_type`.
    pub fn validated(self) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        if let Err(error) = pattern::check_name(&self.name) {
            violations.add("event_type.name", error);
        }
        tenant::check_name(&self.category, "event_type.category", &mut violations);
        tenant::check_name(&self.since, "event_type.since", &mut violations);
        let texts = [
            ("event_type.description", &self.description, MAX_TEXT_BYTES),
            ("event_type.guidance", &self.guidance, MAX_TEXT_BYTES),
        ];
        for (field, text, limit) in texts {
            if text.len() > limit {
                violations
                    .add(field, format!("must have at most {limit} bytes, has {}", text.len()));
            }
        }
        if let Err(error) = mail::check_for(&self.email_template, &self.json_schema) {
            violations.add("event_type.email_template", error.to_string());
        }
        if let Some(policy) = &self.retry_policy {
            policy.check("event_type.retry_policy", &mut violations);
        }
        violations.or_ok(self)
    }
}
