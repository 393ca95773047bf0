//! How a subscription is delivered: the channel and its settings.
//!
//! The types are stored as JSON documents; their field names are part of the schema.

mod email;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event_type::ChannelKind;
use super::signature::{GITHUB_HEADER, HMAC_HEADER, STRIPE_HEADER};
use super::{Violations, endpoint, headers};

pub use email::{Digest, EmailChannel};

/// The total time of one attempt unless the subscription says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest time of one attempt.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// The shortest time of one attempt: less could never succeed over a network.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Attempts under way at once to one subscription unless it says otherwise.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 16;
/// The largest `max_in_flight`.
pub const MAX_MAX_IN_FLIGHT: u32 = 1_000;
/// The largest `max_requests_per_second`.
pub const MAX_REQUESTS_PER_SECOND: f64 = 100_000.0;
/// Most signature schemes side by side on one request.
pub const MAX_SIGNATURES: usize = 6;

/// A channel with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Channel {
    /// A signed HTTP request.
    Webhook(WebhookChannel),
    /// A message to each recipient.
    Email(EmailChannel),
}

impl Channel {
    /// Which kind it is.
    pub const fn kind(&self) -> ChannelKind {
        match self {
            Self::Webhook(_) => ChannelKind::Webhook,
            Self::Email(_) => ChannelKind::Email,
        }
    }
}

/// How a request proves who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignatureScheme {
    /// Standard Webhooks, symmetric: `webhook-signature: v1,…`.
    StandardWebhooks,
    /// Standard Webhooks, Ed25519: `webhook-signature: v1a,…`.
    StandardWebhooksEd25519,
    /// Lower-case hexadecimal HMAC-SHA256 of the raw body.
    HmacSha256Hex,
    /// `X-Hub-Signature-256: sha256=…`.
    Github,
    /// `Stripe-Signature: t=…,v1=…`.
    Stripe,
    /// No signature: the URL is the shared secret.
    None,
}

impl SignatureScheme {
    /// Its name in the contract, without the prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StandardWebhooks => "STANDARD_WEBHOOKS",
            Self::StandardWebhooksEd25519 => "STANDARD_WEBHOOKS_ED25519",
            Self::HmacSha256Hex => "HMAC_SHA256_HEX",
            Self::Github => "GITHUB",
            Self::Stripe => "STRIPE",
            Self::None => "NONE",
        }
    }
}

/// What the body of a request looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PayloadFormat {
    /// An envelope with id, type, timestamp, organization and the data as emitted.
    #[default]
    Standard,
    /// Common fields and the data's fields side by side.
    Flat,
    /// The data as emitted.
    DataOnly,
    /// CloudEvents 1.0, the whole event in the body.
    CloudEventsStructured,
    /// CloudEvents 1.0, attributes in headers and the data in the body.
    CloudEventsBinary,
}

/// The settings of a webhook.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookChannel {
    /// The canonical URL; empty means the tenant's `webhook_url`.
    pub url: String,
    /// The schemes that sign each request, side by side. Never empty.
    pub signatures: Vec<SignatureScheme>,
    /// The header of the plain HMAC scheme; empty for `X-Signature`.
    pub signature_header: String,
    /// The header of the Stripe scheme; empty for `Stripe-Signature`.
    #[serde(default)]
    pub stripe_signature_header: String,
    /// What the body looks like.
    pub payload_format: PayloadFormat,
    /// Headers of the customer's own.
    pub headers: BTreeMap<String, String>,
    /// Total time of one attempt, connect and body included.
    pub timeout: Duration,
    /// Attempts under way at once.
    pub max_in_flight: u32,
    /// Requests started per second; `None` for no limit.
    pub max_requests_per_second: Option<f64>,
}

/// Hides the URL's query and the headers' values, so that no log can show them.
impl std::fmt::Debug for WebhookChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookChannel")
            .field("url", &endpoint::redacted(&self.url))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("signatures", &self.signatures)
            .finish_non_exhaustive()
    }
}

impl Default for WebhookChannel {
    fn default() -> Self {
        Self {
            url: String::new(),
            signatures: vec![SignatureScheme::StandardWebhooks],
            signature_header: String::new(),
            stripe_signature_header: String::new(),
            payload_format: PayloadFormat::default(),
            headers: BTreeMap::new(),
            timeout: DEFAULT_TIMEOUT,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            max_requests_per_second: None,
        }
    }
}

impl WebhookChannel {
    /// Checks every field and makes the URL canonical. An empty list of signatures becomes the
    /// default scheme. `tenant_url` is the tenant's shared endpoint.
    ///
    /// # Errors
    /// All violations, with paths below `subscription.webhook`.
    pub fn validated(
        mut self,
        urls: &endpoint::Admission,
        tenant_url: &str,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        if !self.url.is_empty() {
            match urls.canonical(&self.url) {
                Ok(url) => self.url = url,
                Err(error) => violations.add("url", error.to_string()),
            }
        } else if tenant_url.is_empty() && !urls.keeps("") {
            violations.add("url", "must not be empty, because the tenant has no webhook_url");
        }
        if self.signatures.is_empty() {
            self.signatures.push(SignatureScheme::StandardWebhooks);
        }
        self.check_signatures(&mut violations);
        for (name, error) in headers::check(&self.headers) {
            violations.add(format!("headers[{name:?}]"), error);
        }
        if self.headers.len() > headers::MAX_HEADERS {
            violations
                .add("headers", format!("must have at most {} entries", headers::MAX_HEADERS));
        }
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&self.timeout) {
            violations.add("timeout", "must be from 0.1s to 30s");
        }
        if self.max_in_flight == 0 || self.max_in_flight > MAX_MAX_IN_FLIGHT {
            violations.add("max_in_flight", format!("must be from 1 to {MAX_MAX_IN_FLIGHT}"));
        }
        if self
            .max_requests_per_second
            .is_some_and(|rate| !(0.001..=MAX_REQUESTS_PER_SECOND).contains(&rate))
        {
            violations.add(
                "max_requests_per_second",
                "must be from 0.001 to 100000; 0 or unset for no limit",
            );
        }
        if violations.is_empty() {
            return Ok(self);
        }
        let mut nested = Violations::new();
        nested.nest("subscription.webhook", violations);
        Err(nested)
    }

    fn check_signatures(&self, violations: &mut Violations) {
        let twice = self
            .signatures
            .iter()
            .enumerate()
            .any(|(i, scheme)| self.signatures[..i].contains(scheme));
        if twice {
            violations.add("signatures", "must not name a scheme twice");
        }
        if self.signatures.contains(&SignatureScheme::None) && self.signatures.len() > 1 {
            violations.add("signatures", "NONE must stand alone");
        }
        for (field, name, scheme) in self.named_headers() {
            self.check_named_header(field, name, scheme, violations);
        }
    }

    /// The headers that the subscription may name, and the schemes that use them.
    fn named_headers(&self) -> [(&'static str, &str, SignatureScheme); 2] {
        [
            ("signature_header", &self.signature_header, SignatureScheme::HmacSha256Hex),
            ("stripe_signature_header", &self.stripe_signature_header, SignatureScheme::Stripe),
        ]
    }

    fn check_named_header(
        &self,
        field: &str,
        name: &str,
        scheme: SignatureScheme,
        violations: &mut Violations,
    ) {
        if name.is_empty() {
            return;
        }
        if !self.signatures.contains(&scheme) {
            let scheme = scheme.name();
            violations.add(field, format!("is only used by {scheme}, which is not listed"));
        }
        if let Err(error) = headers::check_signature_header(name) {
            violations.add(field, error);
        }
        if self.headers.keys().any(|other| other.eq_ignore_ascii_case(name)) {
            violations.add(field, "is also named in headers");
        }
        for other in self.signatures.iter().filter(|other| **other != scheme) {
            if self.header_of(*other).is_some_and(|header| header.eq_ignore_ascii_case(name)) {
                violations.add(field, format!("is also the header of {}", other.name()));
            }
        }
    }

    /// The header of [`SignatureScheme::HmacSha256Hex`].
    pub fn hmac_header(&self) -> &str {
        if self.signature_header.is_empty() { HMAC_HEADER } else { &self.signature_header }
    }

    /// The header of [`SignatureScheme::Stripe`].
    pub fn stripe_header(&self) -> &str {
        if self.stripe_signature_header.is_empty() {
            STRIPE_HEADER
        } else {
            &self.stripe_signature_header
        }
    }

    /// The header of a scheme; none for those whose headers are reserved for them.
    fn header_of(&self, scheme: SignatureScheme) -> Option<&str> {
        match scheme {
            SignatureScheme::HmacSha256Hex => Some(self.hmac_header()),
            SignatureScheme::Github => Some(GITHUB_HEADER),
            SignatureScheme::Stripe => Some(self.stripe_header()),
            SignatureScheme::StandardWebhooks
            | SignatureScheme::StandardWebhooksEd25519
            | SignatureScheme::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use SignatureScheme::{Github, HmacSha256Hex, None as Unsigned, StandardWebhooks, Stripe};

    /// The fields that are wrong.
    fn refused(webhook: WebhookChannel) -> Vec<String> {
        let url = "https://hooks.company.com/".to_owned();
        match (WebhookChannel { url, ..webhook }).validated(&endpoint::Admission::default(), "") {
            Ok(_) => Vec::new(),
            Err(violations) => violations
                .iter()
                .map(|violation| violation.field.replace("subscription.webhook.", ""))
                .collect(),
        }
    }

    fn named(schemes: &[SignatureScheme], hmac: &str, stripe: &str) -> Vec<String> {
        refused(WebhookChannel {
            signatures: schemes.to_vec(),
            signature_header: hmac.to_owned(),
            stripe_signature_header: stripe.to_owned(),
            ..WebhookChannel::default()
        })
    }

    #[test]
    fn no_two_schemes_share_a_header() {
        let (hmac, stripe) = ("signature_header", "stripe_signature_header");
        let all = [StandardWebhooks, HmacSha256Hex, Github, Stripe];
        assert_eq!(named(&all, "", ""), [""; 0]);
        assert_eq!(named(&all, "X-A", "X-B"), [""; 0]);
        // Each may have the other's usual name when the other has another.
        assert_eq!(named(&all, "Stripe-Signature", "X-Signature"), [""; 0]);
        assert_eq!(named(&[HmacSha256Hex], "X-Hub-Signature-256", ""), [""; 0]);

        assert_eq!(named(&all, "X-A", "x-a"), [hmac, stripe]);
        assert_eq!(named(&all, "stripe-signature", ""), [hmac]);
        assert_eq!(named(&all, "", "x-signature"), [stripe]);
        assert_eq!(
            named(&all, "x-hub-signature-256", "X-Hub-Signature-256"),
            [hmac, hmac, stripe, stripe]
        );
        assert_eq!(named(&all, "Webhook-Signature", "ce-id"), [hmac, stripe]);
    }

    #[test]
    fn a_named_header_needs_its_scheme_and_no_other_use() {
        let (hmac, stripe) = ("signature_header", "stripe_signature_header");
        assert_eq!(named(&[StandardWebhooks], "X-A", "X-B"), [hmac, stripe]);
        let both = WebhookChannel {
            signatures: vec![HmacSha256Hex, Stripe],
            signature_header: "X-A".into(),
            stripe_signature_header: "X-B".into(),
            headers: ["x-a", "x-b"].map(|name| (name.to_owned(), String::new())).into(),
            ..WebhookChannel::default()
        };
        assert_eq!(refused(both), [hmac, stripe]);
    }

    #[test]
    fn none_stands_alone_and_no_scheme_twice() {
        assert_eq!(named(&[Unsigned], "", ""), [""; 0]);
        assert_eq!(named(&[Unsigned, Github], "", ""), ["signatures"]);
        assert_eq!(named(&[Github, Stripe, Github], "", ""), ["signatures"]);
    }

    #[test]
    fn documents_from_before_the_stripe_header_are_read() {
        let stored = serde_json::to_value(WebhookChannel::default()).expect("JSON");
        let mut old = stored.clone();
        old.as_object_mut().expect("an object").remove("stripe_signature_header").expect("stored");
        for document in [stored, old] {
            let read: WebhookChannel = serde_json::from_value(document).expect("read");
            assert_eq!(read, WebhookChannel::default());
        }
    }
}
