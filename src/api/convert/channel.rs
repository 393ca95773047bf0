//! Channels: webhooks, and email for as far as it goes.

use std::collections::BTreeMap;

use crate::api::proto as pb;
use crate::domain::channel::{EmailChannel, PayloadFormat, SignatureScheme, WebhookChannel};
use crate::domain::{Violations, endpoint};

use super::{count_to_proto, duration, duration_to_proto};

/// What is shown in place of a secret.
const MASK: &str = "***";

/// How much of a channel is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// All of it, to who asks for this one subscription.
    Full,
    /// Without the URL's query and the headers' values, which often hold secrets.
    Masked,
}

/// A webhook of the contract, with the defaults filled in. Violations stand below `webhook`.
pub(crate) fn webhook(webhook: &pb::WebhookChannel, violations: &mut Violations) -> WebhookChannel {
    let defaults = WebhookChannel::default();
    let mut found = Violations::new();
    refuse_masks(webhook, &mut found);
    let read = WebhookChannel {
        url: webhook.url.clone(),
        signatures: schemes(&webhook.signatures, &mut found),
        signature_header: webhook.signature_header.clone(),
        payload_format: format(webhook.payload_format, &mut found),
        headers: webhook.headers.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        timeout: duration(webhook.timeout.as_ref(), "timeout", &mut found)
            .unwrap_or(defaults.timeout),
        max_in_flight: match (webhook.max_in_flight, u32::try_from(webhook.max_in_flight)) {
            (0, _) => defaults.max_in_flight,
            (_, Ok(number)) => number,
            // The domain refuses 0 by the name of the field.
            (_, Err(_)) => 0,
        },
        max_requests_per_second: Some(webhook.max_requests_per_second).filter(|rate| *rate != 0.0),
    };
    violations.nest("subscription.webhook", found);
    read
}

/// What a list shows must not be stored: it would replace the secret that it stands for.
fn refuse_masks(webhook: &pb::WebhookChannel, violations: &mut Violations) {
    const ADVICE: &str = "is *** as lists show it; read the subscription with GetSubscription";
    if webhook.url.split_once('?').is_some_and(|(_, query)| query == MASK) {
        violations.add("url", ADVICE);
    }
    for (name, _) in webhook.headers.iter().filter(|(_, value)| *value == MASK) {
        violations.add(format!("headers[{name:?}]"), ADVICE);
    }
}

fn schemes(numbers: &[i32], violations: &mut Violations) -> Vec<SignatureScheme> {
    use pb::SignatureScheme as Wire;
    let mut schemes = Vec::new();
    for (index, number) in numbers.iter().enumerate().take(crate::domain::channel::MAX_SIGNATURES) {
        schemes.push(match Wire::try_from(*number) {
            Ok(Wire::StandardWebhooks) => SignatureScheme::StandardWebhooks,
            Ok(Wire::StandardWebhooksEd25519) => SignatureScheme::StandardWebhooksEd25519,
            Ok(Wire::HmacSha256Hex) => SignatureScheme::HmacSha256Hex,
            Ok(Wire::Github) => SignatureScheme::Github,
            Ok(Wire::Stripe) => SignatureScheme::Stripe,
            Ok(Wire::None) => SignatureScheme::None,
            Ok(Wire::Unspecified) | Err(_) => {
                violations.add(format!("signatures[{index}]"), "must be one of the named schemes");
                continue;
            }
        });
    }
    if numbers.len() > crate::domain::channel::MAX_SIGNATURES {
        violations.add("signatures", "must not name a scheme twice");
    }
    schemes
}

fn format(number: i32, violations: &mut Violations) -> PayloadFormat {
    use pb::PayloadFormat as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Unspecified | Wire::Standard) => PayloadFormat::Standard,
        Ok(Wire::Flat) => PayloadFormat::Flat,
        Ok(Wire::DataOnly) => PayloadFormat::DataOnly,
        Ok(Wire::CloudeventsStructured) => PayloadFormat::CloudEventsStructured,
        Ok(Wire::CloudeventsBinary) => PayloadFormat::CloudEventsBinary,
        Err(_) => {
            violations.add("payload_format", "must be one of the named formats");
            PayloadFormat::Standard
        }
    }
}

/// A webhook as the contract writes it.
pub(crate) fn webhook_to_proto(webhook: &WebhookChannel, detail: Detail) -> pb::WebhookChannel {
    pb::WebhookChannel {
        url: shown_url(&webhook.url, detail),
        signatures: webhook
            .signatures
            .iter()
            .map(|scheme| scheme_to_proto(*scheme) as i32)
            .collect(),
        signature_header: webhook.signature_header.clone(),
        payload_format: format_to_proto(webhook.payload_format) as i32,
        headers: shown_headers(&webhook.headers, detail),
        timeout: Some(duration_to_proto(webhook.timeout)),
        max_in_flight: count_to_proto(webhook.max_in_flight),
        max_requests_per_second: webhook.max_requests_per_second.unwrap_or(0.0),
    }
}

/// A URL, in lists with `***` for its query.
pub(crate) fn shown_url(url: &str, detail: Detail) -> String {
    if detail == Detail::Full || !url.contains('?') {
        return url.to_owned();
    }
    format!("{}?{MASK}", endpoint::redacted(url))
}

fn shown_headers(
    headers: &BTreeMap<String, String>,
    detail: Detail,
) -> std::collections::HashMap<String, String> {
    let shown = |value: &String| match detail {
        Detail::Full => value.clone(),
        Detail::Masked => MASK.to_owned(),
    };
    headers.iter().map(|(name, value)| (name.clone(), shown(value))).collect()
}

const fn scheme_to_proto(scheme: SignatureScheme) -> pb::SignatureScheme {
    match scheme {
        SignatureScheme::StandardWebhooks => pb::SignatureScheme::StandardWebhooks,
        SignatureScheme::StandardWebhooksEd25519 => pb::SignatureScheme::StandardWebhooksEd25519,
        SignatureScheme::HmacSha256Hex => pb::SignatureScheme::HmacSha256Hex,
        SignatureScheme::Github => pb::SignatureScheme::Github,
        SignatureScheme::Stripe => pb::SignatureScheme::Stripe,
        SignatureScheme::None => pb::SignatureScheme::None,
    }
}

const fn format_to_proto(format: PayloadFormat) -> pb::PayloadFormat {
    match format {
        PayloadFormat::Standard => pb::PayloadFormat::Standard,
        PayloadFormat::Flat => pb::PayloadFormat::Flat,
        PayloadFormat::DataOnly => pb::PayloadFormat::DataOnly,
        PayloadFormat::CloudEventsStructured => pb::PayloadFormat::CloudeventsStructured,
        PayloadFormat::CloudEventsBinary => pb::PayloadFormat::CloudeventsBinary,
    }
}

/// An email channel as the contract writes it.
pub(crate) fn email_to_proto(email: &EmailChannel) -> pb::EmailChannel {
    pb::EmailChannel {
        recipients: email.recipients.clone(),
        template: email.template.clone(),
        reply_to: email.reply_to.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &pb::WebhookChannel) -> (WebhookChannel, Vec<String>) {
        let mut violations = Violations::new();
        let read = webhook(message, &mut violations);
        (read, violations.iter().map(|violation| violation.field.clone()).collect())
    }

    #[test]
    fn an_empty_webhook_gets_the_defaults() {
        let (read, violations) = read(&pb::WebhookChannel::default());
        assert!(violations.is_empty());
        // The domain fills in the default scheme.
        assert_eq!(read, WebhookChannel { signatures: Vec::new(), ..WebhookChannel::default() });
    }

    #[test]
    fn webhooks_read_back() {
        let ours = WebhookChannel {
            url: "https://example.com/hook?token=s3cret".into(),
            signatures: vec![SignatureScheme::HmacSha256Hex, SignatureScheme::StandardWebhooks],
            signature_header: "X-Sig".into(),
            payload_format: PayloadFormat::Flat,
            headers: BTreeMap::from([("x-key".to_owned(), "s3cret".to_owned())]),
            timeout: std::time::Duration::from_millis(1_500),
            max_in_flight: 3,
            max_requests_per_second: Some(0.5),
        };
        assert_eq!(read(&webhook_to_proto(&ours, Detail::Full)), (ours.clone(), Vec::new()));
        let masked = webhook_to_proto(&ours, Detail::Masked);
        assert_eq!(masked.url, "https://example.com/hook?***");
        assert!(!format!("{masked:?}").contains("s3cret"));
        let refused = read(&masked).1;
        assert_eq!(
            refused,
            ["subscription.webhook.url", "subscription.webhook.headers[\"x-key\"]"]
        );
    }

    #[test]
    fn unknown_values_are_named() {
        let message = pb::WebhookChannel {
            signatures: vec![1, 0, 99],
            payload_format: 99,
            timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(
            read(&message).1,
            [
                "subscription.webhook.signatures[1]",
                "subscription.webhook.signatures[2]",
                "subscription.webhook.payload_format",
                "subscription.webhook.timeout"
            ]
        );
    }
}
