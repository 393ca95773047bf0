//! Subscriptions and their statistics for people.

use super::super::Error;
use super::super::output::{Cell, Output, Style, Table, ago, labels, names, table, time};
use super::retry;
use crate::api::proto::subscription::Channel;
use crate::api::proto::{
    DeliveryState, DisableReason, EmailChannel, EndpointHealth, EndpointState, ErrorKind,
    PayloadFormat, SignatureScheme, Subscription, SubscriptionState, SubscriptionStats,
    WebhookChannel,
};

/// All of them, one per row.
pub(super) fn table(subscriptions: &[Subscription]) -> Table {
    let mut table =
        Table::new(&["ID", "NAME", "STATE", "ENDPOINT", "EVENT TYPES", "TO", "CHANGED"]);
    for subscription in subscriptions {
        let to = match &subscription.channel {
            Some(Channel::Webhook(webhook)) => url(webhook),
            Some(Channel::Email(email)) => email.recipients.join(","),
            None => String::new(),
        };
        table.row([
            subscription.id.as_str().into(),
            subscription.display_name.as_str().into(),
            Cell::new(
                names::short::<SubscriptionState>(subscription.state),
                style(subscription.state()),
            ),
            subscription.health.as_ref().map_or(Cell::from(""), |health| {
                let word = names::plain::<EndpointState>(health.state);
                Cell::new(word, style_of_endpoint(health.state()))
            }),
            subscription.event_types.join(",").into(),
            to.into(),
            ago(subscription.update_time.as_ref()).into(),
        ]);
    }
    table
}

/// One subscription with everything.
pub(super) fn subscription(output: Output, subscription: &Subscription) -> Result<(), Error> {
    let state = names::short::<SubscriptionState>(subscription.state);
    let mut state = output.paint(style(subscription.state()), &state);
    if subscription.disable_reason() != DisableReason::Unspecified {
        let reason = names::plain::<DisableReason>(subscription.disable_reason);
        state = format!("{state} ({reason}); `resume` brings it back");
    }
    let mut fields = vec![
        ("subscription", output.paint(Style::Strong, &subscription.id)),
        ("name", table::printable(&subscription.display_name)),
        ("state", state),
        ("endpoint", subscription.health.as_ref().map(|h| endpoint(output, h)).unwrap_or_default()),
        ("tenant", subscription.tenant_id.clone()),
        ("event types", subscription.event_types.join(", ")),
    ];
    match &subscription.channel {
        Some(Channel::Webhook(webhook)) => fields.extend(of_webhook(webhook)),
        Some(Channel::Email(email)) => fields.extend(of_email(email)),
        None => {}
    }
    fields.extend([
        ("public keys", subscription.signing_public_keys.join("\n")),
        ("retries", retry::describe(subscription.retry_policy.as_ref())),
        ("labels", labels(&subscription.labels)),
        ("created", output.time(subscription.create_time.as_ref())),
        ("changed", output.time(subscription.update_time.as_ref())),
        ("etag", output.paint(Style::Dim, &subscription.etag)),
    ]);
    output.fields(&fields)
}

fn of_webhook(webhook: &WebhookChannel) -> Vec<(&'static str, String)> {
    let signatures =
        webhook.signatures.iter().map(|number| names::plain::<SignatureScheme>(*number));
    let mut headers: Vec<_> = webhook
        .headers
        .iter()
        .map(|(name, value)| table::printable(&format!("{name}: {value}")))
        .collect();
    headers.sort();
    let timeout = webhook.timeout.as_ref().map(time::duration_from_proto).map(time::exact);
    let in_flight =
        (webhook.max_in_flight != 0).then(|| format!("{} at the same time", webhook.max_in_flight));
    let rate = (webhook.max_requests_per_second > 0.0)
        .then(|| format!("{} per second", webhook.max_requests_per_second));
    let limits: Vec<_> = in_flight.into_iter().chain(rate).collect();
    vec![
        ("url", url(webhook)),
        ("signatures", signatures.collect::<Vec<_>>().join(", ")),
        ("signature header", table::printable(&webhook.signature_header)),
        ("stripe header", table::printable(&webhook.stripe_signature_header)),
        ("format", names::plain::<PayloadFormat>(webhook.payload_format)),
        ("headers", headers.join("\n")),
        ("timeout", timeout.unwrap_or_default()),
        ("limits", limits.join(", ")),
    ]
}

fn of_email(email: &EmailChannel) -> Vec<(&'static str, String)> {
    let digest = email.digest.as_ref().map(|digest| match digest.max_per_hour {
        0 => format!(
            "one message for {}",
            digest
                .interval
                .as_ref()
                .map(time::duration_from_proto)
                .map(time::exact)
                .unwrap_or_default()
        ),
        count => format!("at most {count} messages an hour"),
    });
    vec![
        ("recipients", table::printable(&email.recipients.join(", "))),
        ("template", table::printable_lines(&email.template)),
        ("reply to", table::printable(&email.reply_to)),
        ("digest", digest.unwrap_or_default()),
    ]
}

fn url(webhook: &WebhookChannel) -> String {
    match webhook.url.as_str() {
        "" => "(the tenant's webhook URL)".to_owned(),
        url => table::printable(url),
    }
}

/// How an endpoint fares, in words: `open: failed 12 times in a row since …; tried again at …`.
fn endpoint(output: Output, health: &EndpointHealth) -> String {
    let state = names::plain::<EndpointState>(health.state);
    let mut parts = Vec::new();
    if health.consecutive_failures > 0 {
        let times = match health.consecutive_failures {
            1 => "once".to_owned(),
            count => format!("{count} times in a row"),
        };
        let kind = names::plain::<ErrorKind>(health.last_error_kind);
        let since = output.time(health.failing_since.as_ref());
        parts.push(format!("failed {times} since {since} ({kind})"));
    }
    if health.next_probe_time.is_some() {
        parts.push(format!(
            "nothing is sent before: {}",
            output.time(health.next_probe_time.as_ref())
        ));
    }
    let state = output.paint(style_of_endpoint(health.state()), &state);
    if parts.is_empty() { state } else { format!("{state}: {}", parts.join("; ")) }
}

fn style_of_endpoint(state: EndpointState) -> Style {
    match state {
        EndpointState::Healthy => Style::Good,
        EndpointState::Slowed | EndpointState::Recovering => Style::Pending,
        EndpointState::Open => Style::Error,
        EndpointState::Unspecified => Style::Dim,
    }
}

fn style(state: SubscriptionState) -> Style {
    match state {
        SubscriptionState::Active => Style::Good,
        SubscriptionState::Paused => Style::Pending,
        SubscriptionState::Disabled => Style::Error,
        SubscriptionState::Unspecified => Style::Dim,
    }
}

/// How a subscription fared.
pub(super) fn stats(output: Output, stats: &SubscriptionStats) -> Result<(), Error> {
    let duration = |value: &Option<prost_types::Duration>| {
        value.as_ref().map(time::duration_from_proto).map(time::coarse).unwrap_or_default()
    };
    let counts = stats.delivery_counts.iter().map(|count| {
        let name = names::short::<DeliveryState>(count.state);
        format!("{} {}", count.count, output.paint(Style::of_state(count.state()), &name))
    });
    let rate = stats.success_rate;
    let rate = rate.map(|rate| format!(" ({:.1} % of those that ended succeeded)", rate * 100.0));
    output.fields(&[
        ("from", output.time(stats.start_time.as_ref())),
        ("deliveries", counts.collect::<Vec<_>>().join(", ") + &rate.unwrap_or_default()),
        ("attempts", stats.attempt_count.to_string()),
        ("failed in a row", stats.consecutive_failures.to_string()),
        ("last success", output.time(stats.last_success_time.as_ref())),
        ("last failure", output.time(stats.last_failure_time.as_ref())),
        ("half within", duration(&stats.p50_duration)),
        ("95 % within", duration(&stats.p95_duration)),
        ("99 % within", duration(&stats.p99_duration)),
    ])
}
