//! Channels: webhooks and email.

use std::collections::BTreeMap;

use crate::api::proto as pb;
use crate::domain::channel::{
    Digest, EmailChannel, PayloadFormat, SignatureScheme, WebhookChannel,
};
use crate::domain::{Violations, endpoint};

use super::{count_to_proto, duration, duration_to_proto};

/// What is shown in place of a secret.
const MASK: &str = "***";

/// What a path of `/***` says: even the path could not be read.
const MASKED_PATH: &str = "/***";
/// What to do about a mask that stands for nothing.
const ADVICE: &str = "is *** as answers show it, and there is no such value to keep; write the \
                      value itself";

/// A webhook of the contract, with the defaults filled in. Violations stand below `webhook`.
///
/// A URL and header values that are masked as answers show them stand for what `current` has: who
/// reads, changes and writes back changes nothing else. Where there is nothing to keep they are
/// refused, since they would replace the secret that they stand for.
pub(crate) fn webhook(
    webhook: &pb::WebhookChannel,
    current: Option<&WebhookChannel>,
    violations: &mut Violations,
) -> WebhookChannel {
    let defaults = WebhookChannel::default();
    let mut found = Violations::new();
    let nothing = WebhookChannel::default();
    let current = current.unwrap_or(&nothing);
    let read = WebhookChannel {
        url: kept_url(&webhook.url, &current.url).unwrap_or_else(|advice| {
            found.add("url", advice);
            String::new()
        }),
        signatures: schemes(&webhook.signatures, &mut found),
        signature_header: webhook.signature_header.clone(),
        stripe_signature_header: webhook.stripe_signature_header.clone(),
        payload_format: format(webhook.payload_format, &mut found),
        headers: kept_headers(&webhook.headers, &current.headers, &mut found),
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

/// The URL that a client means: its own, or the current one when it wrote that one's mask.
///
/// # Errors
/// What is wrong with a mask that stands for nothing.
pub(crate) fn kept_url(written: &str, current: &str) -> Result<String, &'static str> {
    let is_masked = written.split_once('?').is_some_and(|(_, query)| query == MASK)
        || written.ends_with(MASKED_PATH);
    if !is_masked {
        return Ok(written.to_owned());
    }
    if !current.is_empty() && shown_url(current) == written {
        return Ok(current.to_owned());
    }
    Err(ADVICE)
}

fn kept_headers(
    written: &std::collections::HashMap<String, String>,
    current: &BTreeMap<String, String>,
    violations: &mut Violations,
) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in written {
        let kept = match current.get(name) {
            Some(kept) if value == MASK => kept,
            None if value == MASK => {
                violations.add(format!("headers[{name:?}]"), ADVICE);
                value
            }
            _ => value,
        };
        headers.insert(name.clone(), kept.clone());
    }
    headers
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

/// A webhook as the contract writes it, without the URL's query and the headers' values: they are
/// often secrets.
pub(crate) fn webhook_to_proto(webhook: &WebhookChannel) -> pb::WebhookChannel {
    pb::WebhookChannel {
        url: shown_url(&webhook.url),
        signatures: webhook
            .signatures
            .iter()
            .map(|scheme| scheme_to_proto(*scheme) as i32)
            .collect(),
        signature_header: webhook.signature_header.clone(),
        payload_format: format_to_proto(webhook.payload_format) as i32,
        headers: webhook.headers.keys().map(|name| (name.clone(), MASK.to_owned())).collect(),
        timeout: Some(duration_to_proto(webhook.timeout)),
        max_in_flight: count_to_proto(webhook.max_in_flight),
        max_requests_per_second: webhook.max_requests_per_second.unwrap_or(0.0),
        stripe_signature_header: webhook.stripe_signature_header.clone(),
    }
}

/// A URL with `***` for its query.
pub(crate) fn shown_url(url: &str) -> String {
    if !url.contains('?') {
        return url.to_owned();
    }
    format!("{}?{MASK}", endpoint::redacted(url))
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

/// An email channel of the contract. Violations stand below `email`.
pub(crate) fn email(email: &pb::EmailChannel, violations: &mut Violations) -> EmailChannel {
    let mut found = Violations::new();
    let digest = email.digest.as_ref().map(|digest| Digest {
        // The domain refuses 0 by the name of the field.
        interval: duration(digest.interval.as_ref(), "digest.interval", &mut found)
            .unwrap_or_default(),
        max_per_hour: u32::try_from(digest.max_per_hour).unwrap_or(u32::MAX),
    });
    violations.nest("subscription.email", found);
    EmailChannel {
        recipients: email.recipients.clone(),
        template: email.template.clone(),
        reply_to: email.reply_to.clone(),
        digest,
    }
}

/// An email channel as the contract writes it.
pub(crate) fn email_to_proto(email: &EmailChannel) -> pb::EmailChannel {
    pb::EmailChannel {
        recipients: email.recipients.clone(),
        template: email.template.clone(),
        reply_to: email.reply_to.clone(),
        digest: email.digest.map(|digest| pb::EmailDigest {
            interval: (!digest.interval.is_zero()).then(|| duration_to_proto(digest.interval)),
            max_per_hour: count_to_proto(digest.max_per_hour),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &pb::WebhookChannel) -> (WebhookChannel, Vec<String>) {
        read_over(message, None)
    }

    fn read_over(
        message: &pb::WebhookChannel,
        current: Option<&WebhookChannel>,
    ) -> (WebhookChannel, Vec<String>) {
        let mut violations = Violations::new();
        let read = webhook(message, current, &mut violations);
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
            signatures: vec![SignatureScheme::HmacSha256Hex, SignatureScheme::Stripe],
            signature_header: "X-Sig".into(),
            stripe_signature_header: "X-Stripe".into(),
            payload_format: PayloadFormat::Flat,
            headers: BTreeMap::from([("x-key".to_owned(), "s3cret".to_owned())]),
            timeout: std::time::Duration::from_millis(1_500),
            max_in_flight: 3,
            max_requests_per_second: Some(0.5),
        };
        let masked = webhook_to_proto(&ours);
        assert_eq!(masked.url, "https://example.com/hook?***");
        assert!(!format!("{masked:?}").contains("s3cret"));
        // Written back it changes nothing; without anything to keep it is refused.
        assert_eq!(read_over(&masked, Some(&ours)), (ours.clone(), Vec::new()));
        let refused = ["subscription.webhook.url", "subscription.webhook.headers[\"x-key\"]"];
        assert_eq!(read(&masked).1, refused);
        let elsewhere = WebhookChannel {
            url: "https://other.com/hook?token=s3cret".into(),
            headers: BTreeMap::from([("x-other".to_owned(), "s3cret".to_owned())]),
            ..ours.clone()
        };
        assert_eq!(read_over(&masked, Some(&elsewhere)).1, refused);
        let hidden = pb::WebhookChannel { url: "https://example.com/***".into(), ..masked };
        assert_eq!(read_over(&hidden, Some(&ours)).1, refused[..1]);
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
