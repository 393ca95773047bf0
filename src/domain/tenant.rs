//! A tenant: one customer of the platform, the owner of everything else.

use serde::{Deserialize, Serialize};

use super::id::TenantId;
use super::labels::{self, Labels};
use super::locale::{self, DEFAULT_LOCALE, DEFAULT_TIME_ZONE};
use super::pattern::Pattern;
use super::retry::RetryPolicy;
use super::{Timestamp, Violations, endpoint, mail_address};

/// Most bytes in a display name or an environment's name.
pub const MAX_NAME_BYTES: usize = 256;
/// Most patterns of event types that the primary contact does not get.
pub const MAX_EXCLUSIONS: usize = 100;

/// What a client may say about a tenant.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TenantSpec {
    /// The organization's name, shown in payloads and mails.
    pub display_name: String,
    /// For example `production`; part of the FLAT payload.
    pub environment: String,
    /// The platform's own number for the tenant; part of the FLAT payload.
    pub account_id: Option<i64>,
    /// The email address that receives every event; empty for none.
    pub primary_contact: String,
    /// The event types that the primary contact does not get.
    #[serde(default)]
    pub primary_contact_off: Vec<Pattern>,
    /// The language that its mails are written in (BCP 47); empty for [`DEFAULT_LOCALE`].
    #[serde(default)]
    pub locale: String,
    /// The time zone that its mails tell times in (IANA); empty for [`DEFAULT_TIME_ZONE`].
    #[serde(default)]
    pub time_zone: String,
    /// The endpoint of webhook subscriptions that name none themselves; empty for none.
    pub webhook_url: String,
    /// Labels.
    pub labels: Labels,
    /// The retry policy where neither the subscription nor the event type has one.
    pub retry_policy: Option<RetryPolicy>,
}

/// A tenant as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// What its administrators said.
    pub spec: TenantSpec,
    /// Whether its `webhook_url` could not be read from where it is kept.
    pub unreadable: bool,
    /// Counts the changes, from 1: the etag.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

/// Hides the URL's query, so that no log can show it.
impl std::fmt::Debug for TenantSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantSpec")
            .field("display_name", &self.display_name)
            .field("webhook_url", &endpoint::redacted(&self.webhook_url))
            .finish_non_exhaustive()
    }
}

impl TenantSpec {
    /// Checks every field and makes the webhook URL canonical.
    ///
    /// # Errors
    /// All violations, with paths below `tenant`.
    pub fn validated(mut self, urls: &endpoint::Admission) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        check_name(&self.display_name, "tenant.display_name", &mut violations);
        if self.display_name.trim().is_empty() {
            violations.add("tenant.display_name", "must not be empty");
        }
        check_name(&self.environment, "tenant.environment", &mut violations);
        if !self.primary_contact.is_empty() {
            let field = "tenant.primary_contact";
            let address = mail_address::check_one(&self.primary_contact, field, &mut violations);
            if let Some(address) = address {
                address.as_str().clone_into(&mut self.primary_contact);
            }
        }
        if self.primary_contact_off.len() > MAX_EXCLUSIONS {
            violations.add(
                "tenant.primary_contact_exclusions",
                format!("must have at most {MAX_EXCLUSIONS} patterns"),
            );
        }
        locale::check_locale(&mut self.locale, "tenant.locale", &mut violations);
        locale::check_time_zone(&mut self.time_zone, "tenant.time_zone", &mut violations);
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

    /// The address that receives events of this type although no subscription names it.
    pub fn primary_contact_for(&self, event_type: &str) -> Option<&str> {
        let is_off = self.primary_contact_off.iter().any(|pattern| pattern.matches(event_type));
        Some(self.primary_contact.as_str()).filter(|address| !address.is_empty() && !is_off)
    }

    /// The language that mails are written in.
    pub fn locale(&self) -> &str {
        if self.locale.is_empty() { DEFAULT_LOCALE } else { &self.locale }
    }

    /// The time zone that mails tell times in.
    pub fn time_zone(&self) -> &str {
        if self.time_zone.is_empty() { DEFAULT_TIME_ZONE } else { &self.time_zone }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TenantSpec {
        TenantSpec { display_name: "Acme".into(), ..TenantSpec::default() }
    }

    #[test]
    fn mail_settings_are_checked_together_and_made_canonical() {
        let urls = endpoint::Admission::default();
        let wrong = TenantSpec {
            primary_contact: "ops@localhost".into(),
            locale: "english_US".into(),
            time_zone: "Vienna".into(),
            ..spec()
        };
        let violations = wrong.validated(&urls).expect_err("refused");
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["tenant.primary_contact", "tenant.locale", "tenant.time_zone"]);
        let right = TenantSpec {
            primary_contact: "The Ops <Ops@Company.COM>".into(),
            locale: "de-at".into(),
            time_zone: "europe/vienna".into(),
            ..spec()
        };
        let right = right.validated(&urls).expect("good");
        assert_eq!(right.primary_contact, "Ops@company.com");
        assert_eq!((right.locale(), right.time_zone()), ("de-AT", "Europe/Vienna"));
        assert_eq!((spec().locale(), spec().time_zone()), ("en", "UTC"));
    }

    #[test]
    fn a_primary_contact_gets_everything_but_what_is_switched_off() {
        let off = vec![Pattern::parse("billing.*").expect("a pattern")];
        let contact = TenantSpec {
            primary_contact: "ops@company.com".into(),
            primary_contact_off: off.clone(),
            ..spec()
        };
        assert_eq!(contact.primary_contact_for("user.created"), Some("ops@company.com"));
        assert_eq!(contact.primary_contact_for("billing.paid"), None);
        assert_eq!(spec().primary_contact_for("user.created"), None);
        let many =
            TenantSpec { primary_contact_off: vec![off[0].clone(); MAX_EXCLUSIONS + 1], ..spec() };
        assert!(many.validated(&endpoint::Admission::default()).is_err());
    }
}
