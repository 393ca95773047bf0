//! Subscriptions and their statistics.

use std::time::Duration;

use crate::api::mask::{Fields, Selection};
use crate::api::proto as pb;
use crate::domain::channel::{Channel, EmailChannel, SignatureScheme, WebhookChannel};
use crate::domain::health::{self, Gate, Health};
use crate::domain::labels::Labels;
use crate::domain::pattern::Pattern;
use crate::domain::subscription::{DisableReason, State, Subscription, SubscriptionSpec};
use crate::domain::{Timestamp, Violations};
use crate::store::SubscriptionStats;

use super::channel::{email, email_to_proto, webhook, webhook_to_proto};
use super::delivery::error_kind_to_proto;
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
        "webhook.stripe_signature_header",
        "email.recipients",
        "email.template",
        "email.reply_to",
        "email.digest",
        "retry_policy",
        "labels",
    ],
    fixed: &[
        "id",
        "tenant_id",
        "state",
        "create_time",
        "update_time",
        "etag",
        "disable_reason",
        "signing_public_keys",
        "health",
    ],
};

/// Whether a field of `message` is set: what an update without a mask changes.
pub(crate) fn is_populated(message: &pb::Subscription, path: &str) -> bool {
    let webhook = match &message.channel {
        Some(pb::subscription::Channel::Webhook(webhook)) => Some(webhook),
        _ => None,
    };
    let email = match &message.channel {
        Some(pb::subscription::Channel::Email(email)) => Some(email),
        _ => None,
    };
    let of_email = |test: &dyn Fn(&pb::EmailChannel) -> bool| email.is_some_and(test);
    let of_webhook = |test: &dyn Fn(&pb::WebhookChannel) -> bool| webhook.is_some_and(test);
    match path {
        "display_name" => !message.display_name.is_empty(),
        "event_types" => !message.event_types.is_empty(),
        "retry_policy" => message.retry_policy.is_some(),
        "labels" => !message.labels.is_empty(),
        "webhook.url" => of_webhook(&|webhook| !webhook.url.is_empty()),
        "webhook.signatures" => of_webhook(&|webhook| !webhook.signatures.is_empty()),
        "webhook.signature_header" => of_webhook(&|webhook| !webhook.signature_header.is_empty()),
        "webhook.stripe_signature_header" => {
            of_webhook(&|webhook| !webhook.stripe_signature_header.is_empty())
        }
        "webhook.payload_format" => of_webhook(&|webhook| webhook.payload_format != 0),
        "webhook.headers" => of_webhook(&|webhook| !webhook.headers.is_empty()),
        "webhook.timeout" => of_webhook(&|webhook| webhook.timeout.is_some()),
        "webhook.max_in_flight" => of_webhook(&|webhook| webhook.max_in_flight != 0),
        "webhook.max_requests_per_second" => {
            of_webhook(&|webhook| webhook.max_requests_per_second != 0.0)
        }
        "email.recipients" => of_email(&|email| !email.recipients.is_empty()),
        "email.template" => of_email(&|email| !email.template.is_empty()),
        "email.reply_to" => of_email(&|email| !email.reply_to.is_empty()),
        "email.digest" => of_email(&|email| email.digest.is_some()),
        _ => false,
    }
}

/// A subscription to create. The domain's own rules are checked later.
pub(crate) fn new_subscription(
    message: &pb::Subscription,
    violations: &mut Violations,
) -> SubscriptionSpec {
    let channel = match &message.channel {
        Some(pb::subscription::Channel::Webhook(settings)) => {
            Channel::Webhook(webhook(settings, None, violations))
        }
        Some(pb::subscription::Channel::Email(settings)) => {
            Channel::Email(email(settings, violations))
        }
        None => {
            violations.add(
                "subscription.webhook",
                "must be set, or subscription.email: where to deliver, and how",
            );
            Channel::Webhook(WebhookChannel::default())
        }
    };
    SubscriptionSpec {
        display_name: message.display_name.clone(),
        event_types: event_types(&message.event_types, violations),
        channel,
        retry_policy: retry_policy(message, violations),
        labels: message.labels.clone().into_iter().collect(),
    }
}

/// What stands for the subscription that `message` changes, as long as nobody knows which one that
/// is: it has nothing to say against what `message` leaves as it is.
pub(crate) fn stand_in(message: &pb::Subscription) -> SubscriptionSpec {
    let channel = match &message.channel {
        Some(pb::subscription::Channel::Email(_)) => Channel::Email(EmailChannel::default()),
        Some(pb::subscription::Channel::Webhook(webhook)) => Channel::Webhook(WebhookChannel {
            // A mask stands for what is there.
            url: webhook.url.clone(),
            headers: webhook.headers.clone().into_iter().collect(),
            // Those whose headers have names to choose.
            signatures: vec![SignatureScheme::HmacSha256Hex, SignatureScheme::Stripe],
            ..WebhookChannel::default()
        }),
        None => Channel::Webhook(WebhookChannel::default()),
    };
    SubscriptionSpec {
        display_name: String::new(),
        event_types: Vec::new(),
        channel,
        retry_policy: None,
        labels: Labels::new(),
    }
}

/// `spec` with the selected fields of `message`. The domain's own rules are checked later. A webhook
/// does not become a mail, nor the other way round: a mask of `*` means the fields of the channel
/// that there is, unless the message carries the other one.
pub(crate) fn update_subscription(
    spec: &mut SubscriptionSpec,
    message: &pb::Subscription,
    selection: &Selection,
    violations: &mut Violations,
) {
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
    let (carries_webhook, carries_email) = match &message.channel {
        Some(pb::subscription::Channel::Webhook(_)) => (selection.has_below("webhook"), false),
        Some(pb::subscription::Channel::Email(_)) => (false, selection.has_below("email")),
        None => (false, false),
    };
    match &mut spec.channel {
        Channel::Webhook(_) if carries_email || selection.names_below("email") => {
            violations
                .add("subscription.email", "the subscription is a webhook; create another one");
        }
        Channel::Email(_) if carries_webhook || selection.names_below("webhook") => {
            violations
                .add("subscription.webhook", "the subscription is by mail; create another one");
        }
        Channel::Webhook(ours) if selection.has_below("webhook") => {
            let settings = match &message.channel {
                Some(pb::subscription::Channel::Webhook(settings)) => chosen(settings, selection),
                _ => pb::WebhookChannel::default(),
            };
            let theirs = webhook(&settings, Some(ours), violations);
            update_webhook(ours, theirs, selection);
        }
        Channel::Email(ours) if selection.has_below("email") => {
            let mut settings = match &message.channel {
                Some(pb::subscription::Channel::Email(settings)) => settings.clone(),
                _ => pb::EmailChannel::default(),
            };
            if !selection.has("email.digest") {
                settings.digest = None;
            }
            update_email(ours, email(&settings, violations), selection);
        }
        Channel::Webhook(_) | Channel::Email(_) => {}
    }
}

fn update_email(ours: &mut EmailChannel, theirs: EmailChannel, selection: &Selection) {
    if selection.has("email.recipients") {
        ours.recipients = theirs.recipients;
    }
    if selection.has("email.template") {
        ours.template = theirs.template;
    }
    if selection.has("email.reply_to") {
        ours.reply_to = theirs.reply_to;
    }
    if selection.has("email.digest") {
        ours.digest = theirs.digest;
    }
}

/// `settings` with the selected fields alone: what an update does not touch may be anything, such as
/// the `***` that a list shows.
fn chosen(settings: &pb::WebhookChannel, selection: &Selection) -> pb::WebhookChannel {
    let mut chosen = settings.clone();
    let defaults = pb::WebhookChannel::default();
    if !selection.has("webhook.url") {
        chosen.url = defaults.url;
    }
    if !selection.has("webhook.signatures") {
        chosen.signatures = defaults.signatures;
    }
    if !selection.has("webhook.payload_format") {
        chosen.payload_format = defaults.payload_format;
    }
    if !selection.has("webhook.headers") {
        chosen.headers = defaults.headers;
    }
    if !selection.has("webhook.timeout") {
        chosen.timeout = defaults.timeout;
    }
    chosen
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
    if selection.has("webhook.stripe_signature_header") {
        ours.stripe_signature_header = theirs.stripe_signature_header;
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
    Some(retry::policy(policy, "subscription.retry_policy", violations))
}

/// A subscription as the contract writes it at `now`, what is confidential masked.
pub(crate) fn subscription_to_proto(
    subscription: &Subscription,
    now: Timestamp,
) -> pb::Subscription {
    let spec = &subscription.spec;
    let channel = match &spec.channel {
        Channel::Webhook(webhook) => pb::subscription::Channel::Webhook(webhook_to_proto(webhook)),
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
        signing_public_keys: subscription
            .public_keys_at(now)
            .iter()
            .map(ToString::to_string)
            .collect(),
        health: None,
    }
}

/// An endpoint's health as the contract writes it.
pub(crate) fn health_to_proto(
    health: &Health,
    max_in_flight: u32,
    now: Timestamp,
) -> pb::EndpointHealth {
    let state = health.state(max_in_flight, now);
    let next_probe_time = match health.gate(max_in_flight, now) {
        Gate::Closed { until } => Some(until),
        // The probe is due.
        Gate::Probe => health.breaker.map(|breaker| breaker.open_until),
        Gate::Open { .. } => None,
    };
    pb::EndpointHealth {
        state: match state {
            health::State::Healthy => pb::EndpointState::Healthy,
            health::State::Slowed => pb::EndpointState::Slowed,
            health::State::Open => pb::EndpointState::Open,
            health::State::Recovering => pb::EndpointState::Recovering,
        } as i32,
        consecutive_failures: super::count_to_proto(health.consecutive_failures),
        failing_since: health.failing_since.map(timestamp_to_proto),
        next_probe_time: next_probe_time.map(timestamp_to_proto),
        last_error_kind: health.last_error.map_or(pb::ErrorKind::Unspecified, error_kind_to_proto)
            as i32,
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
        new_subscription(&message(), &mut Violations::new())
    }

    fn update(mask: &[&str], message: &pb::Subscription) -> (SubscriptionSpec, Violations) {
        let (mut spec, mut violations) = (spec(), Violations::new());
        let mask: Vec<_> = mask.iter().map(|path| (*path).to_owned()).collect();
        let selection = FIELDS.select(&mask, |path| is_populated(message, path), &mut violations);
        update_subscription(&mut spec, message, &selection, &mut violations);
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
    fn what_an_update_does_not_touch_is_not_judged() {
        let webhook = pb::WebhookChannel {
            url: "https://example.com/?***".into(),
            signatures: vec![99],
            payload_format: 99,
            headers: [("x-key".to_owned(), "***".to_owned())].into(),
            timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            max_in_flight: 5,
            ..Default::default()
        };
        let listed = pb::Subscription {
            channel: Some(pb::subscription::Channel::Webhook(webhook)),
            ..Default::default()
        };
        let (changed, violations) = update(&["webhook.max_in_flight"], &listed);
        assert!(violations.is_empty(), "{violations}");
        let Channel::Webhook(webhook) = &changed.channel else { panic!("a webhook") };
        assert_eq!((webhook.max_in_flight, url(&changed)), (5, url(&spec())));
        assert_eq!(update(&["webhook"], &listed).1.iter().count(), 5, "chosen, all are judged");
    }

    #[test]
    fn a_named_field_that_is_not_set_is_cleared() {
        let (changed, _) = update(&["display_name", "webhook"], &pb::Subscription::default());
        assert_eq!((changed.display_name.as_str(), url(&changed)), ("", ""));
        let (_, violations) = update(&["event_types"], &pb::Subscription::default());
        assert_eq!(violations.iter().next().expect("one").field, "subscription.event_types");
    }

    #[test]
    fn a_star_means_the_fields_of_the_channel_that_there_is() {
        let (changed, violations) = update(&["*"], &message());
        assert!(violations.is_empty(), "{violations}");
        assert_eq!(changed, spec());
        // What is not set is cleared.
        let bare = pb::Subscription { event_types: vec!["*".into()], ..Default::default() };
        let (changed, violations) = update(&["*"], &bare);
        assert!(violations.is_empty(), "{violations}");
        let Channel::Webhook(webhook) = &changed.channel else { panic!("a webhook") };
        let cleared = WebhookChannel { signatures: Vec::new(), ..WebhookChannel::default() };
        assert_eq!((changed.display_name.as_str(), webhook), ("", &cleared));
        // A message with the other channel would change one into the other.
        let channel = Some(pb::subscription::Channel::Email(pb::EmailChannel::default()));
        let (_, violations) = update(&["*"], &pb::Subscription { channel, ..message() });
        assert_eq!(violations.iter().next().expect("one").field, "subscription.email");
    }

    #[test]
    fn a_mail_is_read_and_changed_by_its_fields() {
        let settings = pb::EmailChannel {
            recipients: vec!["a@company.com".into()],
            reply_to: "b@company.com".into(),
            digest: Some(pb::EmailDigest {
                interval: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                max_per_hour: 2,
            }),
            ..Default::default()
        };
        let channel = Some(pb::subscription::Channel::Email(settings.clone()));
        let message = pb::Subscription { channel, ..message() };
        let mut violations = Violations::new();
        let mut spec = new_subscription(&message, &mut violations);
        let Channel::Email(read) = &spec.channel else { panic!("a mail") };
        assert_eq!(email_to_proto(read), settings);
        let change = pb::EmailChannel { template: "x".into(), ..Default::default() };
        let channel = Some(pb::subscription::Channel::Email(change));
        let message = pb::Subscription { channel, ..Default::default() };
        let populated = |path: &str| is_populated(&message, path);
        let selection = FIELDS.select(&[], populated, &mut violations);
        update_subscription(&mut spec, &message, &selection, &mut violations);
        assert!(violations.is_empty(), "{violations}");
        let Channel::Email(changed) = &spec.channel else { panic!("a mail") };
        let expected = pb::EmailChannel { template: "x".into(), ..settings };
        assert_eq!(email_to_proto(changed), expected);
        // One kind of channel does not become the other.
        let selection = FIELDS.select(&["webhook.url".to_owned()], |_| false, &mut violations);
        update_subscription(&mut spec, &message, &selection, &mut violations);
        assert_eq!(violations.iter().next().expect("one").field, "subscription.webhook");
    }
}
