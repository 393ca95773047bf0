//! A tenant: one customer of the platform, the owner of everything else.

use super::id::TenantId;
use super::labels::{self, Labels};
use super::retry::RetryPolicy;
use super::{Timestamp, Violations, endpoint};

/// Most bytes in a display name or an environment's name.
pub const MAX_NAME_BYTES: usize = 256;
/// Most bytes in an email address (RFC 5321, section 4.5.3.1.3, without the angle brackets).
pub const MAX_ADDRESS_BYTES: usize = 254;

/// What a client may say about a tenant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantSpec {
    /// The organization's name, shown in payloads and mails.
    pub display_name: String,
    /// For example `production`; part of the FLAT payload.
    pub environment: String,
    /// The platform's own number for the tenant; part of the FLAT payload.
    pub account_id: Option<i64>,
    /// The email address that receives every event; empty for none.
    pub primary_contact: String,
    /// The endpoint of webhook subscriptions that name none themselves; empty for none.
    pub webhook_url: String,
    /// Labels.
    pub labels: Labels,
    /// The retry policy where neither the subscription nor the event type has one.
    pub retry_policy: Option<RetryPolicy>,
}

/// A tenant as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// What its administrators said.
    pub spec: TenantSpec,
    /// Counts the changes, from 1: the etag.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

impl TenantSpec {
    /// Checks every field and makes the webhook URL canonical.
    ///
    /// # Errors
    /// All violations, with paths below `tenant`.
    pub fn validated(mut self, urls: &endpoint::Rules) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        check_name(&self.display_name, "tenant.display_name", &mut violations);
        if self.display_name.trim().is_empty() {
            violations.add("tenant.display_name", "must not be empty");
        }
        check_name(&self.environment, "tenant.environment", &mut violations);
        if !self.primary_contact.is_empty() {
            check_address(&self.primary_contact, "tenant.primary_contact", &mut violations);
        }
        if !self.webhook_url.is_empty() {
            match urls.canonical(&self.webhook_url) {
                Ok(url) => self.webhook_url = url,
                Err(error) => violations.add("tenant.webhook_url", error.to_string()),
            }
        }
        labels::check(&self.labels, "tenant.labels", &mut violations);
        if let Some(policy) = &self.retry_policy {
            policy.check("tenant.retry_policy", &mut violations);
        }
        violations.or_ok(self)
    }
}

/// Notes a name that is too long or holds control characters.
pub fn check_name(name: &str, field: &str, violations: &mut Violations) {
    if name.len() > MAX_NAME_BYTES {
        violations
            .add(field, format!("must have at most {MAX_NAME_BYTES} bytes, has {}", name.len()));
    }
    if name.chars().any(char::is_control) {
        violations.add(field, "must not contain control characters");
    }
}

/// Notes what cannot be an email address. The email channel checks deeper before it sends.
pub fn check_address(address: &str, field: &str, violations: &mut Violations) {
    let parts = address.rsplit_once('@');
    let plausible = parts.is_some_and(|(local, domain)| {
        !local.is_empty()
            && domain.contains('.')
            && !domain.starts_with('.')
            && !domain.ends_with('.')
    });
    let clean = !address.chars().any(|c| c.is_control() || c.is_whitespace() || ",;<>".contains(c));
    if !plausible || !clean || address.len() > MAX_ADDRESS_BYTES {
        violations.add(
            field,
            format!("must be an email address of at most {MAX_ADDRESS_BYTES} bytes, for example ops@company.com"),
        );
    }
}
