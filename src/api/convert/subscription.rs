//! Subscriptions and their statistics.

use std::time::Duration;

use crate::api::mask::{Fields, Selection};
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::{Channel, WebhookChannel};
use crate::domain::envelope::SUPPORTED_FORMATS;
use crate::domain::pattern::Pattern;
use crate::domain::signature::SUPPORTED_SCHEMES;
use crate::domain::subscription::{DisableReason, State, Subscription, SubscriptionSpec};
use crate::domain::{Timestamp, Violations};
use crate::store::SubscriptionStats;

use super::channel::{Detail, email_to_proto, webhook, webhook_to_proto};
use super::{duration_to_proto, retry, timestamp_to_proto};

/// The fields of a subscription, for update masks.
pub(crate) const FIELDS: Fields = Fields {
    mutable: &[
        "display_name",
        "event_types",
        "webhook.url",
        "webhook.signatures",
        "webhook.signature_header",
        "webhook.payload_format",
        "webhook.headers",
        "webhook.timeout",
        "webhook.max_in_flight",
        "webhook.max_requests_per_second",
        "email.recipients",
        "email.template",
        "email.reply_to",
        "retry_policy",
        "labels",
    ],
    fixed: &["id", "tenant_id", "state", "create_time", "update_time", "etag", "disable_reason"],
};

/// Whether a field of `message` is set: what an update without a mask changes.
pub(crate) fn is_populated(message: &pb::Subscription, path: &str) -> bool {
    let webhook = match &message.channel {
        Some(pb::subscription::Channel::Webhook(webhook)) => Some(webhook),
        _ => None,
    };
    let of_webhook = |test: &dyn Fn(&pb::WebhookChannel) -> bool| webhook.is_some_and(test);
    match path {
        "display_name" => !message.display_name.is_empty(),
        "event_types" => !message.event_types.is_empty(),
        "retry_policy" => message.retry_policy.is_some(),
        "labels" => !message.labels.is_empty(),
        "webhook.url" => of_webhook(&|webhook| !webhook.url.is_empty()),
        "webhook.signatures" => of_webhook(&|webhook| !webhook.signatures.is_empty()),
        "webhook.signature_header" => of_webhook(&|webhook| !webhook.signature_header.is_empty()),
        "webhook.payload_format" => of_webhook(&|webhook| webhook.payload_format != 0),
        "webhook.headers" => of_webhook(&|webhook| !webhook.headers.is_empty()),
        "webhook.timeout" => of_webhook(&|webhook| webhook.timeout.is_some()),
        "webhook.max_in_flight" => of_webhook(&|webhook| webhook.max_in_flight != 0),
        "webhook.max_requests_per_second" => {
            of_webhook(&|webhook| webhook.max_requests_per_second != 0.0)
        }
        _ => false,
    }
}

/// A subscription to create. The domain's own rules are checked later.
///
/// # Errors
/// When the channel is one that this version does not support.
pub(crate) fn new_subscription(
    message: &pb::Subscription,
    violations: &mut Violations,
) -> Result<SubscriptionSpec, Failure> {
    let channel = match &message.channel {
        Some(pb::subscription::Channel::Webhook(settings)) => webhook(settings, violations),
        Some(pb::subscription::Channel::Email(_)) => return Err(Failure::not_implemented("email")),
        None => {
            violations.add("subscription.webhook", "must be set: how to tell");
            WebhookChannel::default()
        }
    };
    refuse_unsupported(&channel)?;
    Ok(SubscriptionSpec {
        display_name: message.display_name.clone(),
        event_types: event_types(&message.event_types, violations),
        channel: Channel::Webhook(channel),
        retry_policy: retry_policy(message, violations),
        labels: message.labels.clone().into_iter().collect(),
    })
}

/// `spec` with the selected fields of `message`. The domain's own rules are checked later.
///
/// # Errors
/// When the channel would become one that this version does not support.
pub(crate) fn update_subscription(
    spec: &mut SubscriptionSpec,
    message: &pb::Subscription,
    selection: &Selection,
    violations: &mut Violations,
) -> Result<(), Failure> {
    if selection.has("display_name") {
        spec.display_name.clone_from(&message.display_name);
    }
    if selection.has("event_types") {
        spec.event_types = event_types(&message.event_types, violations);
    }
    if selection.has("retry_policy") {
        spec.retry_policy = retry_policy(message, violations);
    }
    if selection.has("labels") {
        spec.labels = message.labels.clone().into_iter().collect();
    }
    if matches!(message.channel, Some(pb::subscription::Channel::Email(_))) {
        return Err(Failure::not_implemented("email"));
    }
    if let Channel::Webhook(ours) = &mut spec.channel
        && selection.has_below("webhook")
    {
        let settings = match &message.channel {
            Some(pb::subscription::Channel::Webhook(settings)) => settings.clone(),
            _ => pb::WebhookChannel::default(),
        };
        update_webhook(ours, webhook(&settings, violations), selection);
        refuse_unsupported(ours)?;
    }
    Ok(())
}

fn update_webhook(ours: &mut WebhookChannel, theirs: WebhookChannel, selection: &Selection) {
    if selection.has("webhook.url") {
        ours.url = theirs.url;
    }
    if selection.has("webhook.signatures") {
        ours.signatures = theirs.signatures;
    }
    if selection.has("webhook.signature_header") {
        ours.signature_header = theirs.signature_header;
    }
    if selection.has("webhook.payload_format") {
        ours.payload_format = theirs.payload_format;
    }
    if selection.has("webhook.headers") {
        ours.headers = theirs.headers;
    }
    if selection.has("webhook.timeout") {
        ours.timeout = theirs.timeout;
    }
    if selection.has("webhook.max_in_flight") {
        ours.max_in_flight = theirs.max_in_flight;
    }
    if selection.has("webhook.max_requests_per_second") {
        ours.max_requests_per_second = theirs.max_requests_per_second;
    }
}

fn refuse_unsupported(webhook: &WebhookChannel) -> Result<(), Failure> {
    if !webhook.signatures.iter().all(|scheme| SUPPORTED_SCHEMES.contains(scheme)) {
        return Err(Failure::not_implemented("one of these signature schemes"));
    }
    if !SUPPORTED_FORMATS.contains(&webhook.payload_format) {
        return Err(Failure::not_implemented("this payload format"));
    }
    Ok(())
}

fn event_types(texts: &[String], violations: &mut Violations) -> Vec<Pattern> {
    if texts.is_empty() {
        // The domain says so too, but sees only what could be read.
        violations.add("subscription.event_types", "must not be empty; * means every type");
    }
    super::patterns(texts, "subscription.event_types", violations)
}

fn retry_policy(
    message: &pb::Subscription,
    violations: &mut Violations,
) -> Option<crate::domain::retry::RetryPolicy> {
    let policy = message.retry_policy.as_ref()?;
    retry::policy(policy, "subscription.retry_policy", violations)
}

/// A subscription as the contract writes it.
pub(crate) fn subscription_to_proto(
    subscription: &Subscription,
    detail: Detail,
) -> pb::Subscription {
    let spec = &subscription.spec;
    let channel = match &spec.channel {
        Channel::Webhook(webhook) => {
            pb::subscription::Channel::Webhook(webhook_to_proto(webhook, detail))
        }
        Channel::Email(email) => pb::subscription::Channel::Email(email_to_proto(email)),
    };
    pb::Subscription {
        id: subscription.id.to_string(),
        tenant_id: subscription.tenant_id.to_string(),
        display_name: spec.display_name.clone(),
        event_types: spec.event_types.iter().map(|p| p.as_str().to_owned()).collect(),
        state: state_to_proto(subscription.state) as i32,
        channel: Some(channel),
        retry_policy: spec.retry_policy.as_ref().map(retry::policy_to_proto),
        labels: spec.labels.clone().into_iter().collect(),
        create_time: Some(timestamp_to_proto(subscription.create_time)),
        update_time: Some(timestamp_to_proto(subscription.update_time)),
        etag: super::etag(subscription.revision, subscription.create_time),
        disable_reason: match subscription.disable_reason {
            None => pb::DisableReason::Unspecified,
            Some(DisableReason::Gone) => pb::DisableReason::Gone,
            Some(DisableReason::Failing) => pb::DisableReason::Failing,
        } as i32,
    }
}

const fn state_to_proto(state: State) -> pb::SubscriptionState {
    match state {
        State::Active => pb::SubscriptionState::Active,
        State::Paused => pb::SubscriptionState::Paused,
        State::Disabled => pb::SubscriptionState::Disabled,
    }
}

/// A state in a filter.
pub(crate) fn state(number: i32) -> Option<State> {
    match pb::SubscriptionState::try_from(number).ok()? {
        pb::SubscriptionState::Unspecified => None,
        pb::SubscriptionState::Active => Some(State::Active),
        pb::SubscriptionState::Paused => Some(State::Paused),
        pb::SubscriptionState::Disabled => Some(State::Disabled),
    }
}

/// Statistics as the contract writes them.
pub(crate) fn stats_to_proto(
    stats: &SubscriptionStats,
    from: Timestamp,
    until: Timestamp,
) -> pb::SubscriptionStats {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let percentile = |percent: usize| -> Option<prost_types::Duration> {
        stats.percentile(percent).map(|duration: Duration| duration_to_proto(duration))
    };
    pb::SubscriptionStats {
        start_time: Some(timestamp_to_proto(from)),
        end_time: Some(timestamp_to_proto(until)),
        delivery_counts: stats
            .deliveries
            .iter()
            .map(|(state, number)| pb::DeliveryStateCount {
                state: i32::from(state.code()),
                count: count(*number),
            })
            .collect(),
        attempt_count: count(stats.attempts),
        success_rate: stats.success_rate(),
        consecutive_failures: count(stats.consecutive_failures),
        last_success_time: stats.last_success_time.map(timestamp_to_proto),
        last_failure_time: stats.last_failure_time.map(timestamp_to_proto),
        p50_duration: percentile(50),
        p95_duration: percentile(95),
        p99_duration: percentile(99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> pb::Subscription {
        let webhook = pb::WebhookChannel {
            url: "https://example.com/a".into(),
            max_in_flight: 3,
            ..Default::default()
        };
        pb::Subscription {
            display_name: "Billing".into(),
            event_types: vec!["billing.*".into()],
            channel: Some(pb::subscription::Channel::Webhook(webhook)),
            ..Default::default()
        }
    }

    fn spec() -> SubscriptionSpec {
        new_subscription(&message(), &mut Violations::new()).expect("supported")
    }

    fn update(mask: &[&str], message: &pb::Subscription) -> (SubscriptionSpec, Violations) {
        let (mut spec, mut violations) = (spec(), Violations::new());
        let mask: Vec<_> = mask.iter().map(|path| (*path).to_owned()).collect();
        let selection = FIELDS.select(&mask, |path| is_populated(message, path), &mut violations);
        update_subscription(&mut spec, message, &selection, &mut violations).expect("supported");
        (spec, violations)
    }

    fn url(spec: &SubscriptionSpec) -> &str {
        match &spec.channel {
            Channel::Webhook(webhook) => &webhook.url,
            Channel::Email(_) => "email",
        }
    }

    #[test]
    fn an_update_changes_only_what_is_named() {
        let webhook =
            pb::WebhookChannel { url: "https://example.com/b".into(), ..Default::default() };
        let change = pb::Subscription {
            display_name: "New".into(),
            channel: Some(pb::subscription::Channel::Webhook(webhook)),
            ..Default::default()
        };
        let (changed, violations) = update(&["webhook.url"], &change);
        assert!(violations.is_empty());
        let mut expected = spec();
        if let Channel::Webhook(webhook) = &mut expected.channel {
            webhook.url = "https://example.com/b".into();
        }
        assert_eq!(changed, expected);
        // Without a mask: what is populated.
        let (changed, _) = update(&[], &change);
        assert_eq!(
            (changed.display_name.as_str(), url(&changed)),
            ("New", "https://example.com/b")
        );
        assert_eq!(changed.event_types, spec().event_types);
    }

    #[test]
    fn a_named_field_that_is_not_set_is_cleared() {
        let (changed, _) = update(&["display_name", "webhook"], &pb::Subscription::default());
        assert_eq!((changed.display_name.as_str(), url(&changed)), ("", ""));
        let (_, violations) = update(&["event_types"], &pb::Subscription::default());
        assert_eq!(violations.iter().next().expect("one").field, "subscription.event_types");
    }

    #[test]
    fn what_is_not_supported_yet_is_said() {
        let mut email = message();
        email.channel = Some(pb::subscription::Channel::Email(pb::EmailChannel::default()));
        let mut schemes = message();
        if let Some(pb::subscription::Channel::Webhook(webhook)) = &mut schemes.channel {
            webhook.signatures = vec![pb::SignatureScheme::Github as i32];
        }
        let mut format = message();
        if let Some(pb::subscription::Channel::Webhook(webhook)) = &mut format.channel {
            webhook.payload_format = pb::PayloadFormat::CloudeventsBinary as i32;
        }
        for message in [email, schemes, format] {
            let failure = new_subscription(&message, &mut Violations::new()).expect_err("refused");
            assert_eq!(failure.reason, crate::api::Reason::NotImplemented);
        }
    }
}
