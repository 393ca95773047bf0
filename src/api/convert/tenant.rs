//! Tenants and API keys.

use crate::api::mask::{Fields, Selection};
use crate::api::proto as pb;
use crate::domain::Violations;
use crate::domain::id::TenantId;
use crate::domain::key::{ApiKey, Scope};
use crate::domain::pattern::Pattern;
use crate::domain::tenant::{Tenant, TenantSpec};

use super::channel::{kept_url, shown_url};
use super::{retry, timestamp_to_proto};

/// The fields of a tenant, for update masks.
pub(crate) const FIELDS: Fields = Fields {
    mutable: &[
        "display_name",
        "environment",
        "account_id",
        "primary_contact",
        "webhook_url",
        "labels",
        "retry_policy",
        "locale",
        "time_zone",
        "primary_contact_exclusions",
    ],
    fixed: &["id", "create_time", "update_time", "etag"],
};

/// Whether a field of `message` is set: what an update without a mask changes.
pub(crate) fn is_populated(message: &pb::Tenant, path: &str) -> bool {
    match path {
        "display_name" => !message.display_name.is_empty(),
        "environment" => !message.environment.is_empty(),
        "account_id" => message.account_id.is_some(),
        "primary_contact" => !message.primary_contact.is_empty(),
        "webhook_url" => !message.webhook_url.is_empty(),
        "labels" => !message.labels.is_empty(),
        "retry_policy" => message.retry_policy.is_some(),
        "locale" => !message.locale.is_empty(),
        "time_zone" => !message.time_zone.is_empty(),
        "primary_contact_exclusions" => !message.primary_contact_exclusions.is_empty(),
        _ => false,
    }
}

/// A tenant to create. The domain's own rules are checked later.
pub(crate) fn new_tenant(message: &pb::Tenant, violations: &mut Violations) -> TenantSpec {
    let mut spec = TenantSpec::default();
    let everything = FIELDS.select(&["*".to_owned()], |_| true, violations);
    update_tenant(&mut spec, message, &everything, violations);
    spec
}

/// `spec` with the selected fields of `message`.
pub(crate) fn update_tenant(
    spec: &mut TenantSpec,
    message: &pb::Tenant,
    selection: &Selection,
    violations: &mut Violations,
) {
    for (path, ours, theirs) in [
        ("display_name", &mut spec.display_name, &message.display_name),
        ("environment", &mut spec.environment, &message.environment),
        ("primary_contact", &mut spec.primary_contact, &message.primary_contact),
        ("locale", &mut spec.locale, &message.locale),
        ("time_zone", &mut spec.time_zone, &message.time_zone),
    ] {
        if selection.has(path) {
            ours.clone_from(theirs);
        }
    }
    if selection.has("webhook_url") {
        match kept_url(&message.webhook_url, &spec.webhook_url) {
            Ok(url) => spec.webhook_url = url,
            Err(advice) => violations.add("tenant.webhook_url", advice),
        }
    }
    if selection.has("account_id") {
        spec.account_id = message.account_id;
    }
    if selection.has("labels") {
        spec.labels = message.labels.clone().into_iter().collect();
    }
    if selection.has("retry_policy") {
        let policy = message.retry_policy.as_ref();
        spec.retry_policy =
            policy.map(|policy| retry::policy(policy, "tenant.retry_policy", violations));
    }
    if selection.has("primary_contact_exclusions") {
        spec.primary_contact_off = exclusions(&message.primary_contact_exclusions, violations);
    }
}

/// The event types that the primary contact does not get.
fn exclusions(texts: &[String], violations: &mut Violations) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match Pattern::parse(text) {
            Ok(pattern) if patterns.contains(&pattern) => {}
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                violations.add(format!("tenant.primary_contact_exclusions[{index}]"), error);
            }
        }
    }
    patterns
}

/// A tenant as the contract writes it, the query of its URL masked.
pub(crate) fn tenant_to_proto(tenant: Tenant) -> pb::Tenant {
    let spec = tenant.spec;
    pb::Tenant {
        id: tenant.id.to_string(),
        display_name: spec.display_name,
        environment: spec.environment,
        account_id: spec.account_id,
        primary_contact: spec.primary_contact,
        webhook_url: shown_url(&spec.webhook_url),
        labels: spec.labels.into_iter().collect(),
        retry_policy: spec.retry_policy.as_ref().map(retry::policy_to_proto),
        create_time: Some(timestamp_to_proto(tenant.create_time)),
        update_time: Some(timestamp_to_proto(tenant.update_time)),
        etag: super::etag(tenant.revision, tenant.create_time),
        locale: spec.locale,
        time_zone: spec.time_zone,
        primary_contact_exclusions: spec
            .primary_contact_off
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect(),
    }
}

/// The scopes of a new key, which a tenant's or an operator's may have: a tenant's key never is an
/// administrator's.
pub(crate) fn scopes(
    texts: &[String],
    owner: Option<TenantId>,
    violations: &mut Violations,
) -> Vec<Scope> {
    const FIELD: &str = "api_key.scopes";
    if texts.is_empty() {
        violations.add(FIELD, "must not be empty, for example events:emit");
    }
    let permitted = || {
        let all = Scope::ALL.into_iter();
        let permitted = all.filter(|scope| owner.is_none() || *scope != Scope::Admin);
        permitted.map(Scope::as_str).collect::<Vec<_>>().join(", ")
    };
    let mut scopes = Vec::new();
    for (index, text) in texts.iter().enumerate().take(2 * Scope::ALL.len()) {
        match Scope::parse(text) {
            Some(scope) if scopes.contains(&scope) => {}
            Some(scope) => scopes.push(scope),
            None => violations
                .add(format!("{FIELD}[{index}]"), format!("must be one of {}", permitted())),
        }
    }
    scopes
}

/// A key as the contract writes it, without its text.
pub(crate) fn key_to_proto(key: ApiKey) -> pb::ApiKey {
    pb::ApiKey {
        id: key.id.to_string(),
        tenant_id: key.tenant_id.map(|id| id.to_string()).unwrap_or_default(),
        display_name: key.display_name,
        prefix: key.prefix,
        scopes: key.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        create_time: Some(timestamp_to_proto(key.create_time)),
        expire_time: key.expire_time.map(timestamp_to_proto),
        revoke_time: key.revoke_time.map(timestamp_to_proto),
        last_use_time: key.last_use_time.map(timestamp_to_proto),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_read_back() {
        let message = pb::Tenant {
            display_name: "ACME".into(),
            account_id: Some(0),
            labels: [("plan".to_owned(), "gold".to_owned())].into(),
            webhook_url: "https://example.com/?key=s3cret".into(),
            ..Default::default()
        };
        let mut violations = Violations::new();
        let spec = new_tenant(&message, &mut violations);
        assert!(violations.is_empty());
        assert_eq!((spec.account_id, spec.labels["plan"].as_str()), (Some(0), "gold"));
        for path in FIELDS.mutable {
            assert!(!is_populated(&pb::Tenant::default(), path), "{path}");
        }
        assert!(is_populated(&message, "account_id"));
        let listed = pb::Tenant { webhook_url: shown_url(&spec.webhook_url), ..message };
        new_tenant(&listed, &mut violations);
        assert_eq!(violations.iter().next().expect("one").field, "tenant.webhook_url");
    }

    #[test]
    fn unknown_scopes_are_named() {
        let mut violations = Violations::new();
        let texts = ["events:emit", "events:emit", "events:*"].map(str::to_owned);
        let tenant_id = TenantId::first_at(crate::domain::Timestamp::default());
        for (owner, permits_admin) in [(None, true), (Some(tenant_id), false)] {
            let mut violations = Violations::new();
            assert_eq!(scopes(&texts, owner, &mut violations), [Scope::EventsEmit]);
            let wrong = violations.iter().next().expect("one");
            assert_eq!(wrong.field, "api_key.scopes[2]");
            assert_eq!(wrong.description.contains("admin"), permits_admin, "{violations}");
        }
        scopes(&[], None, &mut violations);
        assert_eq!(violations.iter().count(), 1);
    }
}
