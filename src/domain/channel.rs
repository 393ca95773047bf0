//! How a subscription is delivered: the channel and its settings.
//!
//! The types are stored as JSON documents; their field names are part of the schema.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event_type::ChannelKind;
use super::{Violations, endpoint, headers};

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
/// The header of [`SignatureScheme::HmacSha256Hex`] unless the subscription names another.
pub const DEFAULT_SIGNATURE_HEADER: &str = "X-Signature";

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookChannel {
    /// The canonical URL; empty means the tenant's `webhook_url`.
    pub url: String,
    /// The schemes that sign each request, side by side. Never empty.
    pub signatures: Vec<SignatureScheme>,
    /// The header of the plain HMAC scheme; empty for `X-Signature`.
    pub signature_header: String,
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

impl Default for WebhookChannel {
    fn default() -> Self {
        Self {
            url: String::new(),
            signatures: vec![SignatureScheme::StandardWebhooks],
            signature_header: String::new(),
            payload_format: PayloadFormat::default(),
            headers: BTreeMap::new(),
            timeout: DEFAULT_TIMEOUT,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            max_requests_per_second: None,
        }
    }
}

/// The settings of an email channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmailChannel {
    /// Addresses.
    pub recipients: Vec<String>,
    /// A template's name; empty for the default.
    pub template: String,
    /// The address that answers go to; empty for none.
    pub reply_to: String,
}

impl WebhookChannel {
    /// Checks every field and makes the URL canonical. An empty list of signatures becomes the
    /// default scheme. `tenant_url` is the tenant's shared endpoint.
    ///
    /// # Errors
    /// All violations, with paths below `subscription.webhook`.
    pub fn validated(
        mut self,
        urls: &endpoint::Rules,
        tenant_url: &str,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        if !self.url.is_empty() {
            match urls.canonical(&self.url) {
                Ok(url) => self.url = url,
                Err(error) => violations.add("url", error.to_string()),
            }
        } else if tenant_url.is_empty() {
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
        if self.signature_header.is_empty() {
            return;
        }
        if !self.signatures.contains(&SignatureScheme::HmacSha256Hex) {
            violations
                .add("signature_header", "is only used by HMAC_SHA256_HEX, which is not listed");
        }
        if let Err(error) = headers::check_signature_header(&self.signature_header) {
            violations.add("signature_header", error);
        }
        if self.headers.keys().any(|name| name.eq_ignore_ascii_case(&self.signature_header)) {
            violations.add("signature_header", "is also named in headers");
        }
    }
}
